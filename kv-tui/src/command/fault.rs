//! The arguments of commands about faults.

use std::time::Duration;

use clap::{Args, Subcommand};
use kv_proto::limits::FAULT_DROP_PERCENT_MAX;

use super::duration;
use super::values::{name, offset};

/// `fault`
#[derive(Clone, Debug, Subcommand)]
pub enum FaultCommand {
    /// List the faults that nodes act out.
    Ls,
    /// Cut nodes off: fault cut n3, or fault cut n1,n2 "|" n3. Without a second side it is all others.
    Cut(CutArgs),
    /// Slow the links of a node, or between two zones: fault slow n3 40ms, or fault slow az1 az2 40ms.
    Slow(SlowArgs),
    /// Lose segments on the links of a node; each is sent again, 200 ms later or more.
    Drop(DropArgs),
    /// Let the disk of a node stand still.
    PauseDisk(FaultNode),
    /// Let the disk of a node be full: its store fails at the next write, and it needs a restart.
    FillDisk(FaultNode),
    /// Show a node a clock that is wrong: fault clock n3 5m, or fault clock n3 -2h; 0s ends it.
    Clock(ClockArgs),
    /// End all faults, or those of some nodes.
    Heal(HealArgs),
}

/// `fault cut`
#[derive(Clone, Debug, Args)]
pub struct CutArgs {
    /// Names of nodes with commas between them, and behind | those from which they are cut off.
    #[arg(required = true, num_args = 1.., value_name = "NODES")]
    pub sides: Vec<String>,
    /// Only what the first side sends is lost; what the second one sends arrives.
    #[arg(long)]
    pub one_way: bool,
    /// Hold back the reads and writes of clients of the first side, too.
    #[arg(long)]
    pub clients: bool,
}

/// `fault slow`
#[derive(Clone, Debug, Args)]
pub struct SlowArgs {
    /// A node, or two zones, and how much longer each message takes.
    #[arg(required = true, num_args = 2..=3, value_name = "NODE|ZONE")]
    pub what: Vec<String>,
    /// By up to how much longer still.
    #[arg(long, value_parser = duration)]
    pub jitter: Option<Duration>,
}

/// `fault drop`
#[derive(Clone, Debug, Args)]
pub struct DropArgs {
    /// The node.
    #[arg(value_parser = name)]
    pub node: String,
    /// How many of a hundred segments are lost, up to 90; 0 ends it.
    #[arg(value_parser = clap::value_parser!(u32).range(0..=i64::from(FAULT_DROP_PERCENT_MAX)))]
    pub percent: u32,
}

/// `fault pause-disk` and its like
#[derive(Clone, Debug, Args)]
pub struct FaultNode {
    /// The node.
    #[arg(value_parser = name)]
    pub node: String,
}

/// `fault clock`
#[derive(Clone, Debug, Args)]
pub struct ClockArgs {
    /// The node.
    #[arg(value_parser = name)]
    pub node: String,
    /// How far ahead; behind with a minus. In milliseconds once read.
    #[arg(value_parser = offset, value_name = "OFFSET", allow_hyphen_values = true)]
    pub ahead_ms: i64,
}

/// `fault heal`
#[derive(Clone, Debug, Args)]
pub struct HealArgs {
    /// Only these nodes, and their links; without any, all.
    #[arg(value_parser = name, value_name = "NODE")]
    pub nodes: Vec<String>,
}

impl CutArgs {
    /// The names on both sides; the second one is empty for all others.
    ///
    /// # Errors
    /// How sides are written.
    pub fn parts(&self) -> Result<(Vec<String>, Vec<String>), String> {
        let text = self.sides.join(" ");
        let names = |side: &str| -> Vec<String> {
            let names = side.split([',', ' ']).map(str::trim).filter(|name| !name.is_empty());
            names.map(str::to_owned).collect()
        };
        let mut sides = text.split('|').map(names);
        let (first, second) = (sides.next().unwrap_or_default(), sides.next());
        let is_open = second.as_ref().is_some_and(Vec::is_empty);
        if first.is_empty() || is_open || sides.next().is_some() {
            return Err("a cut has one or two sides, such as n3, or n1,n2 | n3; in a shell quote the |".to_owned());
        }
        Ok((first, second.unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_has_one_or_two_sides() {
        let parts = |text: &str| {
            let sides = text.split_whitespace().map(str::to_owned).collect();
            CutArgs { sides, one_way: false, clients: false }.parts()
        };
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(parts("n3"), Ok((names(&["n3"]), names(&[]))));
        assert_eq!(parts("n1,n2 | n3"), Ok((names(&["n1", "n2"]), names(&["n3"]))));
        assert_eq!(parts("n1, n2|n3 n4"), Ok((names(&["n1", "n2"]), names(&["n3", "n4"]))));
        for wrong in ["| n3", "n1 |", "n1 | n2 | n3", ","] {
            assert!(parts(wrong).is_err(), "{wrong}");
        }
    }
}
