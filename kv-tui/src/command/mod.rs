//! The command language: parsed here for `exec`, scripts, pipes and the command bar alike.

mod fault;
mod line;
mod operation;
mod suggest;
mod topology;
mod values;

use std::ffi::OsString;
use std::time::Duration;

use bytes::Bytes;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::error::{Class, CommandError};
use crate::output::Format;
use crate::output::bytes::printable;
pub use fault::{ClockArgs, CutArgs, DropArgs, FaultCommand, FaultNode, HealArgs, SlowArgs};
pub use line::{LineError, Scanner, Word, for_shell, quoted, split, words};
pub use operation::{OpArgs, OpCommand, RetryArgs, ShowArgs, ThrottleArgs, WatchArgs};
pub use suggest::did_you_mean;
pub use topology::{AddArgs, CopiesArgs, RebalanceArgs, RemoveArgs, ReplaceArgs, Topology, WeightArgs, ZoneArgs};
pub(crate) use values::duration;
pub use values::is_standard;
pub use values::{Text, unescape};
use values::{context, keyspace, name, percent, size, text};

/// One line of the command language.
#[derive(Clone, Debug, Parser)]
#[command(name = "kv", bin_name = "kv-tui exec", no_binary_name = true, disable_version_flag = true)]
pub struct Line {
    /// How results are printed.
    #[arg(long, short = 'o', value_enum, global = true)]
    pub output: Option<Format>,
    /// Do what destroys without asking.
    #[arg(long, short = 'y', global = true)]
    pub yes: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// A command.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Write a key.
    Put(PutArgs),
    /// Read a key.
    Get(GetArgs),
    /// Delete a key.
    Del(DelArgs),
    /// List keys in byte order.
    Scan(ScanArgs),
    /// Count live keys, each once.
    Count(In),
    /// Import NDJSON, one {"key": ..., "value": ...} a line; .gz and .zst too.
    Import(ImportArgs),
    /// Export what import reads back.
    Export(ExportArgs),
    /// Where a key lives, and what each replica holds.
    Where(WhereArgs),
    /// The cluster's health, with reasons and what to do.
    Status,
    /// Wait until the cluster is ready, idle or healthy.
    Wait(WaitArgs),
    /// The nodes.
    #[command(subcommand)]
    Node(NodeCommand),
    /// Change the number of copies.
    Copies(CopiesArgs),
    /// Even out what a cancelled operation or failures left uneven, with the fewest moves.
    Rebalance(RebalanceArgs),
    /// Ownership by node and by partition.
    Ring(RingArgs),
    /// Operations: plans that are carried out.
    #[command(subcommand)]
    Op(OpCommand),
    /// The keyspaces.
    #[command(subcommand)]
    Keyspace(KeyspaceCommand),
    /// Let the owners of partitions compare what they hold now, and give each other what they lack.
    Repair(RepairArgs),
    /// Faults that nodes of a local cluster act out: cuts, delays, losses, disks, clocks.
    #[command(subcommand)]
    Fault(FaultCommand),
    /// What happened, newest last.
    Events(EventsArgs),
    /// Measure throughput and latency, and verify what was written.
    Bench(BenchArgs),
}

/// The keyspace of a command.
#[derive(Clone, Debug, Args)]
pub struct In {
    /// The keyspace.
    #[arg(short = 'k', long, default_value = "default", value_parser = keyspace)]
    pub keyspace: String,
}

/// How many copies a command waits for.
#[derive(Clone, Copy, Debug, Args)]
pub struct Consistency {
    /// How many copies answer; without it the keyspace's own numbers hold. In a consistent keyspace it is always a quorum.
    #[arg(short = 'c', long = "consistency", value_enum)]
    pub level: Option<Level>,
    /// Let only owners count, no fallbacks: refuse where too few of them can be reached.
    #[arg(long)]
    pub strict: bool,
}

/// How many copies a command waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Level {
    /// One copy.
    One,
    /// A majority of the copies.
    Quorum,
    /// Every copy.
    All,
}

/// `put`
#[derive(Clone, Debug, Args)]
pub struct PutArgs {
    /// The key; \xNN stands for a byte.
    #[arg(value_parser = text())]
    pub key: Text,
    /// The value; \xNN stands for a byte.
    #[arg(value_parser = text(), required_unless_present = "value_file")]
    pub value: Option<Text>,
    /// The keyspace.
    #[command(flatten)]
    pub within: In,
    /// How many copies it waits for.
    #[command(flatten)]
    pub consistency: Consistency,
    /// The context of an earlier get, whose result this write replaces; for available keyspaces.
    #[arg(long, value_parser = context, value_name = "CTX", conflicts_with_all = ["if_absent", "if_context"])]
    pub context: Option<Bytes>,
    /// Write only if the key is absent, else exit with 4; for consistent keyspaces.
    #[arg(long, conflicts_with = "if_context")]
    pub if_absent: bool,
    /// Write only if nothing has changed since the get that gave this context, else exit with 4; for consistent keyspaces.
    #[arg(long, value_parser = context, value_name = "CTX")]
    pub if_context: Option<Bytes>,
    /// After which time the value reads as absent, such as 30s.
    #[arg(long, value_parser = duration)]
    pub ttl: Option<Duration>,
    /// Take the value from a file, or from standard input with -.
    #[arg(long, value_name = "F|-", conflicts_with = "value")]
    pub value_file: Option<OsString>,
}

/// `get`
#[derive(Clone, Debug, Args)]
pub struct GetArgs {
    /// The key; \xNN stands for a byte.
    #[arg(value_parser = text())]
    pub key: Text,
    /// The keyspace.
    #[command(flatten)]
    pub within: In,
    /// How many copies it waits for.
    #[command(flatten)]
    pub consistency: Consistency,
    /// Show what each replica holds.
    #[arg(long)]
    pub all_replicas: bool,
}

/// `del`
#[derive(Clone, Debug, Args)]
pub struct DelArgs {
    /// The key; \xNN stands for a byte.
    #[arg(value_parser = text())]
    pub key: Text,
    /// The keyspace.
    #[command(flatten)]
    pub within: In,
    /// How many copies it waits for.
    #[command(flatten)]
    pub consistency: Consistency,
    /// The context of an earlier get: only what it returned is deleted; for available keyspaces.
    #[arg(long, value_parser = context, value_name = "CTX", conflicts_with = "if_context")]
    pub context: Option<Bytes>,
    /// Delete only if nothing has changed since the get that gave this context, else exit with 4; for consistent keyspaces.
    #[arg(long, value_parser = context, value_name = "CTX")]
    pub if_context: Option<Bytes>,
    /// Known only to be refused with a reason.
    #[arg(long, hide = true)]
    pub if_absent: bool,
}

/// `scan`
#[derive(Clone, Debug, Args)]
pub struct ScanArgs {
    /// Only keys that start with it.
    #[arg(value_parser = text())]
    pub prefix: Option<Text>,
    /// The keyspace.
    #[command(flatten)]
    pub within: In,
    /// How many copies it waits for.
    #[command(flatten)]
    pub consistency: Consistency,
    /// The most keys to list.
    #[arg(long, value_name = "N")]
    pub limit: Option<u64>,
    /// Where an earlier scan stopped.
    #[arg(long, value_parser = context, value_name = "C")]
    pub cursor: Option<Bytes>,
    /// Leave the values out.
    #[arg(long)]
    pub keys_only: bool,
}

/// `import`
#[derive(Clone, Debug, Args)]
pub struct ImportArgs {
    /// The file; - reads standard input.
    pub file: OsString,
    /// The keyspace.
    #[command(flatten)]
    pub within: In,
    /// How many copies it waits for.
    #[command(flatten)]
    pub consistency: Consistency,
    /// Count lines and records that fail, and go on.
    #[arg(long)]
    pub keep_going: bool,
    /// Records in flight.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub in_flight: u16,
}

/// `export`
#[derive(Clone, Debug, Args)]
pub struct ExportArgs {
    /// The file, which must not exist; .gz and .zst compress; - writes standard output.
    pub file: OsString,
    /// Only keys that start with it.
    #[arg(value_parser = text())]
    pub prefix: Option<Text>,
    /// The keyspace.
    #[command(flatten)]
    pub within: In,
    /// How many copies it waits for.
    #[command(flatten)]
    pub consistency: Consistency,
}

/// `where`
#[derive(Clone, Debug, Args)]
pub struct WhereArgs {
    /// The key; \xNN stands for a byte.
    #[arg(value_parser = text())]
    pub key: Text,
    /// The keyspace.
    #[command(flatten)]
    pub within: In,
}

/// `wait`
#[derive(Clone, Copy, Debug, Args)]
pub struct WaitArgs {
    /// Until when.
    #[arg(value_enum)]
    pub until: Until,
    /// How long at most.
    #[arg(id = "wait_timeout", long = "timeout", value_parser = duration, default_value = "60s")]
    pub timeout: Duration,
}

/// What to wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Until {
    /// Every partition can meet R and W.
    Ready,
    /// Nothing is pending: no operation, hint or missed_writes write.
    Idle,
    /// Idle, all members up, fully replicated.
    Healthy,
}

/// `node`
#[derive(Clone, Debug, Subcommand)]
pub enum NodeCommand {
    /// List the nodes.
    Ls,
    /// Show one node.
    Show {
        /// Its name or number.
        #[arg(value_parser = name)]
        node: String,
    },
    /// Let a spare own partitions.
    Add(AddArgs),
    /// Take all copies from a node, which then leaves the cluster.
    Remove(RemoveArgs),
    /// Give the places of one node, which then leaves, to a spare.
    Replace(ReplaceArgs),
    /// Change the capacity of a node.
    Weight(WeightArgs),
    /// Change the failure domain of a node.
    Zone(ZoneArgs),
    /// Run a node of the local cluster again.
    Start(ProcessArgs),
    /// Ask a node of the local cluster to finish and end.
    Stop(ProcessArgs),
    /// End a node of the local cluster at once, as a crash would.
    Kill(ProcessArgs),
    /// Stop a node of the local cluster in its tracks.
    Freeze(ProcessArgs),
    /// Let a frozen node of the local cluster go on.
    Thaw(ProcessArgs),
}

/// `node start` and its like
#[derive(Clone, Debug, Args)]
pub struct ProcessArgs {
    /// The name of a node of the local cluster.
    #[arg(value_parser = name)]
    pub node: String,
}

/// What is done to the process of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Process {
    /// Runs it again with its data.
    Start,
    /// Asks it to finish and end.
    Stop,
    /// Ends it at once, as a crash would.
    Kill,
    /// Stops it in its tracks.
    Freeze,
    /// Lets a frozen one go on.
    Thaw,
}

/// `ring`
#[derive(Clone, Copy, Debug, Args)]
pub struct RingArgs {
    /// The first owner of each partition.
    #[arg(long)]
    pub grid: bool,
    /// Every owner of each partition.
    #[arg(long)]
    pub copies: bool,
}

/// `keyspace`
#[derive(Clone, Debug, Subcommand)]
pub enum KeyspaceCommand {
    /// List the keyspaces.
    Ls,
    /// Create a keyspace.
    Create(CreateArgs),
    /// Drop a keyspace with all its keys (--yes).
    Drop {
        /// Its name.
        #[arg(value_parser = name)]
        name: String,
    },
}

/// `keyspace create`
#[derive(Clone, Debug, Args)]
pub struct CreateArgs {
    /// Its name: 1 to 64 of a-z, 0-9, '-', '_' and '.'.
    pub name: String,
    /// What it promises. It never changes; the other settings are those of available keyspaces.
    #[arg(long, value_enum, default_value = "available")]
    pub mode: Mode,
    /// Copies that a read asks; 2 without it.
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub r: Option<u8>,
    /// Durable copies that a write waits for; 2 without it.
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub w: Option<u8>,
    /// Let only owners count, no fallbacks, for every request.
    #[arg(long)]
    pub strict: bool,
    /// What becomes of concurrent writes; without it they stand side by side.
    #[arg(long, value_enum)]
    pub conflict: Option<Conflict>,
}

/// What a keyspace promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Always answers, reconciles later.
    Available,
    /// Linearizable for each key, with conditions on writes; refuses where a majority of the owners is out of reach.
    Consistent,
}

/// What becomes of concurrent writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Conflict {
    /// They stand side by side.
    Siblings,
    /// The latest timestamp survives.
    Lww,
}

/// `repair`
#[derive(Clone, Debug, Args)]
pub struct RepairArgs {
    /// Only these partitions; without any, all.
    #[arg(value_name = "PARTITION")]
    pub partitions: Vec<u32>,
    /// Wait until all are compared.
    #[arg(long)]
    pub wait: bool,
}

/// `events`
#[derive(Clone, Copy, Debug, Args)]
pub struct EventsArgs {
    /// Go on with what happens from now on.
    #[arg(long)]
    pub follow: bool,
    /// Only the changes of the cluster: who made them, and the commands that undo them. They are durable.
    #[arg(long)]
    pub audit: bool,
}

/// `bench`
#[derive(Clone, Debug, Args)]
pub struct BenchArgs {
    /// How long to measure.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub seconds: u64,
    /// How long to run before measuring.
    #[arg(long, value_parser = duration, default_value = "1s")]
    pub warm_up: Duration,
    /// Operations in flight.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub clients: u32,
    /// The share of reads.
    #[arg(long, value_parser = percent, default_value = "50%")]
    pub reads: f64,
    /// How many keys.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub keys: u64,
    /// Bytes of each value, at least 32.
    #[arg(long, value_parser = size, default_value = "100")]
    pub value_size: u64,
    /// The share of operations that may fail; with more the exit code is 5.
    #[arg(long, value_name = "SHARE", value_parser = percent, default_value = "1%")]
    pub allow_failures: f64,
    /// A call for each operation instead of batches.
    #[arg(long)]
    pub unary: bool,
    /// The keyspace.
    #[command(flatten)]
    pub within: In,
    /// How many copies it waits for.
    #[command(flatten)]
    pub consistency: Consistency,
}

impl Command {
    /// What the command does to a process of the local cluster, if that is all it does. It needs no node in reach.
    #[must_use]
    pub fn on_process(&self) -> Option<(Process, &str)> {
        let Self::Node(command) = self else { return None };
        let (process, args) = match command {
            NodeCommand::Start(args) => (Process::Start, args),
            NodeCommand::Stop(args) => (Process::Stop, args),
            NodeCommand::Kill(args) => (Process::Kill, args),
            NodeCommand::Freeze(args) => (Process::Freeze, args),
            NodeCommand::Thaw(args) => (Process::Thaw, args),
            _ => return None,
        };
        Some((process, &args.node))
    }

    /// The keyspace that it is about, if it is about one that must exist.
    #[must_use]
    pub fn keyspace(&self) -> Option<&str> {
        let within = match self {
            Self::Put(args) => &args.within,
            Self::Get(args) => &args.within,
            Self::Del(args) => &args.within,
            Self::Scan(args) => &args.within,
            Self::Count(within) => within,
            Self::Import(args) => &args.within,
            Self::Export(args) => &args.within,
            Self::Where(args) => &args.within,
            Self::Bench(args) => &args.within,
            Self::Keyspace(KeyspaceCommand::Drop { name }) => return Some(name),
            _ => return None,
        };
        Some(&within.keyspace)
    }

    /// Whether it reads standard input.
    #[must_use]
    pub fn reads_standard_input(&self) -> bool {
        match self {
            Self::Put(args) => args.value_file.as_deref().is_some_and(is_standard),
            Self::Import(args) => is_standard(&args.file),
            _ => false,
        }
    }

    /// Whether it prints a line for each change until it ends.
    #[must_use]
    pub fn follows(&self) -> bool {
        match self {
            Self::Import(_) | Self::Wait(_) | Self::Bench(_) | Self::Op(OpCommand::Watch(_)) => true,
            Self::Events(args) => args.follow,
            Self::Repair(args) => args.wait,
            _ => self.topology().is_some_and(|topology| topology.wait),
        }
    }

    /// Whether it changes the cluster; such commands are refused where only reading is allowed.
    #[must_use]
    pub fn changes(&self) -> bool {
        if let Some(topology) = self.topology() {
            return !topology.dry_run;
        }
        match self {
            Self::Put(_) | Self::Del(_) | Self::Import(_) | Self::Repair(_) | Self::Bench(_) => true,
            Self::Keyspace(command) => !matches!(command, KeyspaceCommand::Ls),
            Self::Op(command) => !matches!(command, OpCommand::Ls | OpCommand::Show(_) | OpCommand::Watch(_)),
            Self::Node(command) => !matches!(command, NodeCommand::Ls | NodeCommand::Show { .. }),
            Self::Fault(command) => !matches!(command, FaultCommand::Ls),
            Self::Get(_)
            | Self::Scan(_)
            | Self::Count(_)
            | Self::Export(_)
            | Self::Where(_)
            | Self::Status
            | Self::Wait(_)
            | Self::Copies(_)
            | Self::Rebalance(_)
            | Self::Ring(_)
            | Self::Events(_) => false,
        }
    }

    /// What it destroys for good, as people are asked about it, and the word that confirms it; `None`: nothing.
    #[must_use]
    pub fn destroys(&self) -> Option<(String, String)> {
        match self {
            Self::Del(args) => {
                let key = printable(&args.key.0);
                Some((format!("deletes the key {key} of the keyspace {} for good", args.within.keyspace), key))
            }
            Self::Keyspace(KeyspaceCommand::Drop { name }) => {
                Some((format!("drops the keyspace {name} with all of its keys for good"), name.clone()))
            }
            Self::Node(NodeCommand::Remove(args)) if !args.topology.dry_run => Some((
                format!("takes all copies from the node {}; with --dry-run it shows the plan", args.node),
                args.node.clone(),
            )),
            _ => None,
        }
    }
}

impl Line {
    /// Refuses what changes the cluster where only reading is allowed.
    ///
    /// # Errors
    /// `Refused`, with the remedy.
    pub fn check_read_only(&self, read_only: bool) -> Result<(), CommandError> {
        if read_only && self.command.changes() {
            return Err(CommandError::new(
                Class::Refused,
                "this changes the cluster, and only reading is allowed; leave --read-only out to do it",
            ));
        }
        Ok(())
    }

    /// Parses the words of a command.
    ///
    /// # Errors
    /// A usage error with what was expected; asking for help is one too, whose text is the help.
    pub fn parse_words<I, T>(words: I) -> Result<Self, CommandError>
    where
        I: IntoIterator<Item = T>,
        T: Into<OsString> + Clone,
    {
        Self::try_parse_from(words).map_err(|error| CommandError::from_clap(&error))
    }

    /// Parses one line of a script; `None` if it holds nothing but a comment.
    ///
    /// # Errors
    /// A usage error.
    pub fn parse_line(line: &[u8]) -> Result<Option<Self>, CommandError> {
        let words = split(line).map_err(|error| CommandError::usage(error.to_string()))?;
        if words.is_empty() {
            return Ok(None);
        }
        Self::parse_words(words).map(Some).map_err(|mut error| {
            if !error.help {
                error.message.push_str(line::hint(line));
            }
            error
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_language_is_consistent() {
        Line::command().debug_assert();
    }

    /// What becomes of a line, shortened to what the test is about.
    fn check(line: &str, expected: &str) {
        let parsed = match Line::parse_line(line.as_bytes()) {
            Ok(parsed) => format!("{:?}", parsed.map(|line| line.command)),
            Err(error) => format!("{:?}: {}", error.class, error.message),
        };
        assert!(parsed.contains(expected), "{line:?} became {parsed}");
    }

    #[test]
    fn lines_become_commands() {
        check("get 'a key'", r#"Some(Get(GetArgs { key: Text(b"a key"), within: In { keyspace: "default" }"#);
        check(r"put k\x00\xff v -k users -c all --ttl 1m30s", r#"key: Text(b"k\0\xff")"#);
        check("put k v -c all", "level: Some(All)");
        for command in
            ["put k v --strict", "get k --strict", "del k --strict", "scan --strict", "keyspace create l --strict"]
        {
            check(command, "strict: true");
        }
        check("put k v --ttl 1m30s", "ttl: Some(90s)");
        check("put k --value-file -", r#"value: None"#);
        check("op throttle 16MiB/s", "Op(Throttle(ThrottleArgs { rate: 16777216 }))");
        check("op throttle off", "Op(Throttle(ThrottleArgs { rate: 0 }))");
        check("op watch", "Op(Watch(WatchArgs { id: None, every: 1s }))");
        check("op cancel 7", "Op(Cancel(OpArgs { id: 7 }))");
        check("op retry 7", "Op(Retry(RetryArgs { id: 7, partitions: [] }))");
        check("op retry 7 12 90", "Op(Retry(RetryArgs { id: 7, partitions: [12, 90] }))");
        check("repair", "Repair(RepairArgs { partitions: [], wait: false })");
        check("repair 7 12 --wait", "Repair(RepairArgs { partitions: [7, 12], wait: true })");
        check("wait idle", "until: Idle, timeout: 60s");
        check("wait healthy --timeout 500ms", "until: Healthy, timeout: 500ms");
        check("bench --reads 25% --value-size 1KiB", "reads: 0.25");
        check("bench --reads 25% --value-size 1KiB", "value_size: 1024");
        check("keyspace create users --r 1 --conflict lww", "r: Some(1), w: None, strict: false, conflict: Some(Lww)");
        check("keyspace create locks --mode consistent", "mode: Consistent, r: None, w: None");
        check("put k v --if-absent", "if_absent: true");
        check("del k --if-context AAAA", r#"if_context: Some(b"\0\0\0")"#);
        check("  # nothing", "None");
        check("", "None");
    }

    #[test]
    fn bad_lines_say_what_is_expected() {
        check("", "None");
        check("gett k", "similar subcommand exists: 'get'");
        check("get", "required");
        check("put k", "required");
        check("put k v --value-file f", "cannot be used with");
        check("put k v --ttl soon", "is not a duration");
        check("put k v --ttl 0s", "must be above 0");
        check("bench --reads 120%", "0% to 100%");
        check("op throttle 0/s", "is not a rate");
        check("op throttle fast", "is not a rate");
        check("op cancel", "required");
        check("op cancel x", "invalid digit");
        check("get 'open", "the quote");
        check("wait forever", "possible values: ready, idle, healthy");
        check("get k --context !", "unexpected argument");
        check("put k v --context !", "is not a context");
        check("put k v --if-absent --if-context AAAA", "cannot be used with");
        check("put k v --if-absent --context AAAA", "cannot be used with");
        check("del k --if-context AAAA --context AAAA", "cannot be used with");
        check(r"get '\xzz'", r#"key: Text(b"\\xzz")"#);
    }
}
