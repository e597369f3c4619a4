//! The programs' arguments.

use std::ffi::OsString;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

use crate::dashboard::DisplayOptions;
use crate::local::{LocalAction, LocalOpen};
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
    pub(crate) display: DisplayOptions,
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
    /// The local cluster of real node processes: started unless it runs, and shown.
    #[command(args_conflicts_with_subcommands = true)]
    Local {
        #[command(flatten)]
        open: LocalOpen,
        #[command(flatten)]
        display: DisplayOptions,
        #[command(subcommand)]
        action: Option<LocalAction>,
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
    /// Talk only to the nodes that --connect names, as a client does that reaches no other one.
    #[arg(long, requires = "connect")]
    pub(crate) only: bool,
    /// How results are printed.
    #[arg(long, short = 'o', value_enum, default_value = "table")]
    pub(crate) output: Format,
    /// Do what destroys without asking.
    #[arg(long, short = 'y')]
    pub(crate) yes: bool,
    /// Refuse what changes the cluster.
    #[arg(long)]
    pub(crate) read_only: bool,
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

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_local_cluster_is_shown_without_an_action() {
        let open = |words: &[&str]| match Cli::try_parse_from(words).map(|cli| cli.program) {
            Ok(Some(Program::Local { open, display, action: None })) => (open, display),
            other => panic!("{other:?}"),
        };
        let (parsed, display) = open(&["kv-tui", "local", "--nodes", "5", "--ephemeral", "--once", "--plain"]);
        assert!((parsed.size.nodes, parsed.ephemeral, display.plain) == (Some(5), true, true));
        assert!(Cli::try_parse_from(["kv-tui", "local", "--ephemeral", "stop"]).is_err());
        let Ok(Cli { program: Some(Program::Local { action: Some(LocalAction::Start { size, .. }), .. }), .. }) =
            Cli::try_parse_from(["kv-tui", "local", "start", "--nodes", "4"])
        else {
            panic!("start is an action");
        };
        assert_eq!((size.nodes, size.zones), (Some(4), None));
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
