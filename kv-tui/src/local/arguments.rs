//! The arguments of `local`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::error::CommandError;
use crate::output::Format;

/// Nodes of a local cluster, unless somebody says how many.
const NODES: u8 = 3;

/// How a local cluster is made at its first start.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(crate) struct Size {
    /// How many nodes at the first start; 3 unless it says otherwise.
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub(crate) nodes: Option<u8>,
    /// Over how many zones they are spread at the first start, as az1, az2 and so on; without it all are in one.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=16))]
    pub(crate) zones: Option<u8>,
}

impl Size {
    /// The number of nodes.
    ///
    /// # Errors
    /// If there would be zones without one.
    pub(crate) fn of_nodes(self) -> Result<usize, CommandError> {
        let nodes = self.nodes.unwrap_or(NODES);
        match self.zones {
            Some(zones) if zones > nodes => Err(CommandError::usage(format!(
                "{zones} zones need at least as many nodes, and there are {nodes}; add --nodes {zones}, or name fewer zones"
            ))),
            _ => Ok(nodes.into()),
        }
    }
}

/// `local` without an action
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct LocalOpen {
    #[command(flatten)]
    pub(crate) size: Size,
    /// Its folder; without it, local/ in the data folder.
    #[arg(long, value_name = "DIR", env = "KV_LOCAL_DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// A temporary folder, stopped and deleted on leaving.
    #[arg(long)]
    pub(crate) ephemeral: bool,
    /// `local` was named; not an argument.
    #[arg(skip = true)]
    pub(crate) named: bool,
}

impl LocalOpen {
    /// Whether it was asked for by its name, and is not only what is shown where nothing is named.
    pub(crate) fn is_asked(&self) -> bool {
        self.named
    }
}

/// `local`
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum LocalAction {
    /// Start it, or find it running; returns when it is ready, and prints the addresses.
    Start {
        #[command(flatten)]
        size: Size,
        #[command(flatten)]
        place: Place,
    },
    /// Stop its nodes; the data stays.
    Stop {
        #[command(flatten)]
        place: Place,
    },
    /// Say which nodes run.
    Status {
        #[command(flatten)]
        place: Place,
    },
    /// Stop its nodes and delete its data (--yes).
    Destroy {
        #[command(flatten)]
        place: Place,
        /// Delete without asking.
        #[arg(long, short = 'y')]
        yes: bool,
    },
}

/// Where a local cluster lives.
#[derive(Clone, Debug, Args)]
pub(crate) struct Place {
    /// Its folder; without it, local/ in the data folder.
    #[arg(long, value_name = "DIR", env = "KV_LOCAL_DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// How results are printed.
    #[arg(long, short = 'o', value_enum, default_value = "table")]
    pub(crate) output: Format,
}
