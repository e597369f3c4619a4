//! The programs' arguments.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

use crate::dashboard::Look;
use crate::output::Format;

/// The kv store's terminal: scripting, the local cluster, and the state of any cluster.
#[derive(Clone, Debug, Parser)]
#[command(name = "kv-tui", version, about)]
pub(crate) struct Cli {
    /// Which cluster.
    #[command(flatten)]
    pub(crate) reach: Reach,
    /// The dashboard, which opens without a program.
    #[command(flatten)]
    pub(crate) look: Look,
    #[command(subcommand)]
    pub(crate) program: Option<Program>,
}

/// Which cluster.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Reach {
    /// Nodes of the cluster, as ADDR:PORT,...; without it, the one that KV_CONNECT names, else the local cluster.
    #[arg(long, env = "KV_CONNECT", value_delimiter = ',', value_name = "ADDR:PORT,...")]
    pub(crate) connect: Vec<String>,
}

/// What to run.
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum Program {
    /// Execute one command, or a script.
    Exec(Exec),
    /// The local cluster of real node processes.
    Local {
        #[command(subcommand)]
        action: LocalAction,
    },
    /// Every path and setting that is used.
    Info {
        /// How it is printed.
        #[arg(long, short = 'o', value_enum, default_value = "table")]
        output: Format,
    },
    /// Completions for a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
}

/// `exec`
#[derive(Clone, Debug, Args)]
pub(crate) struct Exec {
    /// Which cluster.
    #[command(flatten)]
    pub(crate) reach: Reach,
    /// How results are printed.
    #[arg(long, short = 'o', value_enum, default_value = "table")]
    pub(crate) output: Format,
    /// Do what destroys without asking.
    #[arg(long, short = 'y')]
    pub(crate) yes: bool,
    /// How long each operation may take.
    #[arg(long, value_parser = crate::command::duration, default_value = "5s")]
    pub(crate) timeout: Duration,
    /// Execute the lines of a script; - reads standard input.
    #[arg(long, short = 'f', value_name = "SCRIPT|-", conflicts_with = "command")]
    pub(crate) file: Option<OsString>,
    /// Go on behind a line that fails.
    #[arg(long, requires = "file")]
    pub(crate) keep_going: bool,
    /// The command; `kv-tui exec help` lists them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required_unless_present = "file")]
    pub(crate) command: Vec<OsString>,
}

/// `local`
#[derive(Clone, Debug, Subcommand)]
pub(crate) enum LocalAction {
    /// Start it, or find it running; returns when it is ready, and prints the addresses.
    Start {
        /// How many nodes at the first start; 3 unless it says otherwise.
        #[arg(long, value_parser = clap::value_parser!(u8).range(1..=16))]
        nodes: Option<u8>,
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

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_words_of_a_command_are_left_alone() {
        let words =
            ["kv-tui", "exec", "--output", "json", "--connect", "a:1,b:2", "scan", "--limit", "3", "-k", "users"];
        let Ok(Cli { program: Some(Program::Exec(exec)), .. }) = Cli::try_parse_from(words) else {
            panic!("exec is a program");
        };
        assert_eq!(exec.output, Format::Json);
        assert_eq!(exec.reach.connect, ["a:1", "b:2"]);
        assert_eq!(exec.command, ["scan", "--limit", "3", "-k", "users"]);
    }
}
