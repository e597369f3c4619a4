//! Carries commands out: a command and a client go in, results come out of the sink.

mod bench;
mod bench_load;
mod cluster;
mod events;
mod export;
mod fault;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
mod import;
pub(crate) mod inspect;
mod keys;
pub mod limits;
mod ndjson;
pub(crate) mod op;
pub mod operation;
mod plan;
pub mod preview;
mod repair;
pub(crate) mod report;
mod retry;
pub(crate) mod stream;
mod topology;
mod wait;

use kv_core::message::{Consistency, Level};
use kv_proto::client::{Client, How};

use crate::command::{self, Command, KeyspaceCommand, Line, NodeCommand, did_you_mean};
use crate::error::{Class, CommandError};
use crate::local::nodes;
use crate::output::Sink;

/// Carries out one command. Results that were already given to `sink` stand even if it then fails.
///
/// # Errors
/// Why it failed, with the exit code.
pub async fn execute(line: &Line, client: &Client, sink: &mut dyn Sink) -> Result<(), CommandError> {
    let done = match &line.command {
        Command::Put(args) => keys::put(args, client, sink).await,
        Command::Get(args) => keys::get(args, client, sink).await,
        Command::Del(args) => keys::del(args, client, sink).await,
        Command::Scan(args) => keys::scan(args, client, sink).await,
        Command::Count(within) => cluster::count(within, client, sink).await,
        Command::Import(args) => import::import(args, client, sink).await,
        Command::Export(args) => export::export(args, client, sink).await,
        Command::Where(args) => inspect::inspect(&args.key, &args.within, client, sink).await,
        Command::Status => cluster::status(client, sink).await,
        Command::Wait(args) => wait::wait(*args, client, sink).await,
        Command::Node(
            NodeCommand::Start(_)
            | NodeCommand::Stop(_)
            | NodeCommand::Kill(_)
            | NodeCommand::Freeze(_)
            | NodeCommand::Thaw(_),
        ) => {
            let addresses: Vec<String> =
                client.description().members.iter().map(|member| member.address.clone()).collect();
            on_process(line, &addresses, sink).await
        }
        Command::Node(NodeCommand::Ls) => cluster::node_list(client, sink).await,
        Command::Node(NodeCommand::Show { node }) => cluster::node_show(node, client, sink).await,
        Command::Op(command) => op::execute(command, client, sink).await,
        command @ (Command::Node(
            NodeCommand::Add(_)
            | NodeCommand::Remove(_)
            | NodeCommand::Replace(_)
            | NodeCommand::Weight(_)
            | NodeCommand::Zone(_),
        )
        | Command::Copies(_)
        | Command::Rebalance(_)) => topology::execute(command, client, sink).await,
        Command::Ring(args) => cluster::ring(*args, client, sink).await,
        Command::Keyspace(KeyspaceCommand::Ls) => cluster::keyspace_list(client, sink).await,
        Command::Keyspace(KeyspaceCommand::Create(args)) => cluster::keyspace_create(args, client, sink).await,
        Command::Keyspace(KeyspaceCommand::Drop { name }) => cluster::keyspace_drop(name, line.yes, client, sink).await,
        Command::Repair(args) => repair::repair(args, client, sink).await,
        Command::Fault(command) => fault::execute(command, client, sink).await,
        Command::Events(args) => events::events(*args, client, sink).await,
        Command::Bench(args) => bench::bench(args, client, sink).await,
    };
    let flushed = sink.flush();
    done.and(flushed).map_err(|error| with_suggestion(error, &line.command, client))
}

/// Says which keyspace was probably meant, where the one that was named does not exist.
fn with_suggestion(mut error: CommandError, command: &Command, client: &Client) -> CommandError {
    let description = client.description();
    let known = || description.keyspaces.iter().map(|keyspace| keyspace.name.as_str());
    let unknown =
        command.keyspace().filter(|name| error.class == Class::NotFound && !known().any(|known| known == *name));
    if let Some(name) = unknown {
        error.message.push_str(&did_you_mean(name, known()));
    }
    error
}

/// Carries out a command on a process of the local cluster, which must be the one with nodes at `addresses`.
///
/// # Errors
/// Why it failed, with the exit code.
pub async fn on_process(line: &Line, addresses: &[String], sink: &mut dyn Sink) -> Result<(), CommandError> {
    let Some((process, node)) = line.command.on_process() else {
        return Err(CommandError::usage("this command is not about a process of the local cluster"));
    };
    nodes::check_local(addresses)?;
    let done = nodes::act(process, node, sink).await;
    let flushed = sink.flush();
    done.and(flushed)
}

/// How an operation on a key is to be done.
fn how(within: &command::In, consistency: command::Consistency) -> How {
    let level = match consistency.level {
        None => Level::Keyspace,
        Some(command::Level::One) => Level::One,
        Some(command::Level::Quorum) => Level::Quorum,
        Some(command::Level::All) => Level::All,
    };
    let consistency = Consistency { level, strict: consistency.strict };
    How { keyspace: within.keyspace.clone(), consistency, timeout: None }
}
