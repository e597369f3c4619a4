//! What a command would change in the topology, as a request for a plan and its answer: pure functions of a snapshot.

use std::collections::BTreeMap;

use kv_core::topology::Change;
use kv_core::types::NodeId;
use kv_proto::v1;
use serde_json::Value;

use super::{limits, plan, topology};
use crate::command::{AddArgs, Command, NodeCommand};
use crate::error::CommandError;
use crate::observe::snapshot::ClusterSnapshot;

/// Asks for the plan of a command that changes the topology, with the limit on copying that is in force.
///
/// # Errors
/// `Usage` if it changes nothing there, `NotFound` for a node that is no member.
pub fn request(
    command: &Command,
    cluster: &ClusterSnapshot,
    throttle: Option<&v1::ThrottleSetting>,
) -> Result<v1::PlanRequest, CommandError> {
    let Some(settings) = command.topology() else {
        return Err(CommandError::usage("this command does not change the topology"));
    };
    Ok(topology::request(cluster, &changes(command, cluster)?, limits::assumed(&settings, throttle)))
}

/// What the addition of a node changes.
pub(super) fn addition(args: &AddArgs, node: NodeId) -> Vec<Change> {
    let zone = args.zone.clone().map(|zone| Change::Zone { node, zone });
    let weight = args.weight.map(|weight| Change::Weight { node, weight });
    zone.into_iter().chain(weight).chain([Change::Add { node }]).collect()
}

/// What a command changes: the one place where the words of the language become changes.
pub(super) fn changes(command: &Command, cluster: &ClusterSnapshot) -> Result<Vec<Change>, CommandError> {
    let find = |node: &str| member(cluster, node);
    let change = match command {
        Command::Node(NodeCommand::Add(args)) => {
            let name = args.node.as_deref().ok_or_else(|| {
                CommandError::usage("a new process of the local cluster has no plan before it runs; name a spare")
            })?;
            return Ok(addition(args, find(name)?));
        }
        Command::Node(NodeCommand::Remove(args)) if args.dead => Change::RemoveDead { node: find(&args.node)? },
        Command::Node(NodeCommand::Remove(args)) => Change::Remove { node: find(&args.node)? },
        Command::Node(NodeCommand::Replace(args)) => Change::Replace { old: find(&args.old)?, new: find(&args.new)? },
        Command::Node(NodeCommand::Weight(args)) => Change::Weight { node: find(&args.node)?, weight: args.weight },
        Command::Node(NodeCommand::Zone(args)) => Change::Zone { node: find(&args.node)?, zone: args.zone.clone() },
        Command::Copies(args) => Change::Copies { copies: args.copies },
        Command::Rebalance(_) => Change::Rebalance,
        _ => return Err(CommandError::usage("this command does not change the topology")),
    };
    Ok(vec![change])
}

/// The member of this name, number or address.
///
/// # Errors
/// `NotFound`, naming those that there are.
pub fn member(cluster: &ClusterSnapshot, node: &str) -> Result<NodeId, CommandError> {
    topology::find(cluster, node)
}

/// Keys and bytes of one copy of each partition, by its number, as far as reported.
#[must_use]
pub fn sizes(cluster: &ClusterSnapshot) -> BTreeMap<u32, (u64, u64)> {
    topology::sizes(cluster).into_iter().map(|size| (size.partition, (size.keys, size.bytes))).collect()
}

/// What a plan means, in lines of a word and a text: moves, time, safety, the way back, warnings and refusals.
#[must_use]
pub fn summary(cluster: &ClusterSnapshot, plan: &v1::PlanResponse, bytes_per_second: u64) -> Vec<String> {
    plan::summary(&plan::Names(cluster), plan, bytes_per_second)
}

/// A plan as `--dry-run` prints it as JSON.
#[must_use]
pub fn json(cluster: &ClusterSnapshot, plan: &v1::PlanResponse, bytes_per_second: u64) -> Value {
    plan::plan_json(&plan::Names(cluster), plan, bytes_per_second)
}
