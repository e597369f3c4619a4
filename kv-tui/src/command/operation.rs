//! The arguments of commands about operations.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::duration;
use super::values::rate;

/// `op`
#[derive(Clone, Debug, Subcommand)]
pub enum OpCommand {
    /// List the operations that are remembered, oldest first.
    Ls,
    /// Show one operation: its moves, their receipts, and why they wait; without a number, the newest one.
    Show(ShowArgs),
    /// Follow an operation to its end; without a number, the newest one. Exit code 0: done, 4: cancelled.
    Watch(WatchArgs),
    /// Copy and cut over nothing new until it is resumed.
    Pause(OpArgs),
    /// Go on with a paused operation.
    Resume(OpArgs),
    /// Restart transfers that wait, from another source where possible.
    Retry(RetryArgs),
    /// End it: what is not cut over goes back.
    Cancel(OpArgs),
    /// Limit how fast each node copies, in this operation and later ones.
    Throttle(ThrottleArgs),
}

/// `op show` and its like
#[derive(Clone, Copy, Debug, Args)]
pub struct OpArgs {
    /// Its number, as op ls lists it.
    pub id: u64,
}

/// `op retry`
#[derive(Clone, Debug, Args)]
pub struct RetryArgs {
    /// Its number, as op ls lists it.
    pub id: u64,
    /// Only these partitions; without any, all that wait.
    #[arg(value_name = "PARTITION")]
    pub partitions: Vec<u32>,
}

/// `op show`
#[derive(Clone, Copy, Debug, Args)]
pub struct ShowArgs {
    /// Its number; without it, the newest one, which is the one under way if there is one.
    pub id: Option<u64>,
}

/// `op watch`
#[derive(Clone, Copy, Debug, Args)]
pub struct WatchArgs {
    /// Its number; without it, the newest one, which is the one under way if there is one.
    pub id: Option<u64>,
    /// How often it is asked for.
    #[arg(long, value_parser = duration, default_value = "1s")]
    pub every: Duration,
}

/// `op throttle`
#[derive(Clone, Copy, Debug, Args)]
pub struct ThrottleArgs {
    /// Bytes a second for each receiving node, such as 16MiB/s, or off.
    #[arg(value_parser = rate)]
    pub rate: u64,
}
