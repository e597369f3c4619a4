//! The arguments of commands that change the topology.

use clap::Args;
use kv_core::topology::PlanHash;

use super::values::{name, rate};
use super::{Command, NodeCommand};

/// What all commands that change the topology take.
#[derive(Clone, Copy, Debug, Args)]
pub struct Topology {
    /// Print the plan and its hash, and change nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Only if the plan is this one, as --dry-run printed it.
    #[arg(long, value_name = "HASH")]
    pub plan: Option<PlanHash>,
    /// Follow the operation to its end.
    #[arg(long, conflicts_with = "dry_run")]
    pub wait: bool,
    /// Limit what each receiving node copies, as op throttle does, in this operation and later ones; off for no limit.
    #[arg(long, value_name = "RATE", value_parser = rate)]
    pub limit: Option<u64>,
}

/// `node add`
#[derive(Clone, Debug, Args)]
pub struct AddArgs {
    /// The name, number or address of a spare; without it a new node process of the local cluster.
    #[arg(value_parser = name)]
    pub node: Option<String>,
    /// Its failure domain, if it is to be another one.
    #[arg(long, value_parser = name)]
    pub zone: Option<String>,
    /// Its weight, if it is to be another one.
    #[arg(long, value_name = "W")]
    pub weight: Option<f64>,
    /// What to do with the plan.
    #[command(flatten)]
    pub topology: Topology,
}

/// `node remove`
#[derive(Clone, Debug, Args)]
pub struct RemoveArgs {
    /// Its name, number or address.
    #[arg(value_parser = name)]
    pub node: String,
    /// It will not come back: its copies are restored from the others, and it leaves the cluster for good.
    #[arg(long)]
    pub dead: bool,
    /// What to do with the plan.
    #[command(flatten)]
    pub topology: Topology,
}

/// `node replace`
#[derive(Clone, Debug, Args)]
pub struct ReplaceArgs {
    /// The name, number or address of the node that gives its places away.
    #[arg(value_parser = name)]
    pub old: String,
    /// That of the spare that takes them.
    #[arg(value_parser = name)]
    pub new: String,
    /// What to do with the plan.
    #[command(flatten)]
    pub topology: Topology,
}

/// `node weight`
#[derive(Clone, Debug, Args)]
pub struct WeightArgs {
    /// Its name, number or address.
    #[arg(value_parser = name)]
    pub node: String,
    /// Its capacity relative to the other nodes.
    pub weight: f64,
    /// What to do with the plan.
    #[command(flatten)]
    pub topology: Topology,
}

/// `node zone`
#[derive(Clone, Debug, Args)]
pub struct ZoneArgs {
    /// Its name, number or address.
    #[arg(value_parser = name)]
    pub node: String,
    /// Its failure domain.
    #[arg(value_parser = name)]
    pub zone: String,
    /// What to do with the plan.
    #[command(flatten)]
    pub topology: Topology,
}

/// `copies`
#[derive(Clone, Copy, Debug, Args)]
pub struct CopiesArgs {
    /// How many copies of each key are wanted.
    #[arg(value_parser = clap::value_parser!(u8).range(1..))]
    pub copies: u8,
    /// What to do with the plan.
    #[command(flatten)]
    pub topology: Topology,
}

/// `rebalance`
#[derive(Clone, Copy, Debug, Args)]
pub struct RebalanceArgs {
    /// What to do with the plan.
    #[command(flatten)]
    pub topology: Topology,
}

impl Command {
    /// What is to become of the plan, if the command changes the topology.
    #[must_use]
    pub fn topology(&self) -> Option<Topology> {
        match self {
            Self::Node(NodeCommand::Add(args)) => Some(args.topology),
            Self::Node(NodeCommand::Remove(args)) => Some(args.topology),
            Self::Node(NodeCommand::Replace(args)) => Some(args.topology),
            Self::Node(NodeCommand::Weight(args)) => Some(args.topology),
            Self::Node(NodeCommand::Zone(args)) => Some(args.topology),
            Self::Copies(args) => Some(args.topology),
            Self::Rebalance(args) => Some(args.topology),
            _ => None,
        }
    }
}
