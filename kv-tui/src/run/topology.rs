//! Changes of the topology: planned, shown before anything moves, and carried out as operations.

use std::collections::BTreeMap;
use std::time::Duration;

use kv_core::topology::Change;
use kv_core::types::{NodeId, PartitionId};
use kv_proto::address::check_address;
use kv_proto::client::Client;
use kv_proto::describe::MemberView;
use kv_proto::v1;
use tokio::time::{Instant, sleep};

use super::{limits, op, operation, plan, preview};
use crate::asker::asker;
use crate::command::{AddArgs, Command, NodeCommand, Topology, did_you_mean};
use crate::error::{Class, CommandError};
use crate::local::nodes;
use crate::observe::snapshot::ClusterSnapshot;
use crate::output::Sink;

/// How long a node that was started may take to become a member.
const SPARE_TIMEOUT: Duration = Duration::from_secs(30);

/// Carries out a command that changes the topology.
pub(super) async fn execute(command: &Command, client: &Client, sink: &mut dyn Sink) -> Result<(), CommandError> {
    let Some(topology) = command.topology() else {
        return Err(CommandError::usage("this command does not change the topology"));
    };
    if let Command::Node(NodeCommand::Add(args)) = command {
        let Added { cluster, node, fresh } = added(args, client, sink).await?;
        let done = run(&cluster, preview::addition(args, node), topology, client, sink).await;
        return match (done, fresh) {
            // Whether it began is not known: what may own partitions soon stays.
            (Err(error), Some(name)) if error.class != Class::Unavailable => {
                let after = nodes::take_away(&name).await.message(&name);
                Err(CommandError { message: format!("{}; {after}", error.message), ..error })
            }
            (Err(error), Some(name)) => {
                let message = format!("{}; {name} stays, and is a spare unless the operation has begun", error.message);
                Err(CommandError { message, ..error })
            }
            (done, _) => done,
        };
    }
    let (cluster, changes) = ClusterSnapshot::with(client, |cluster| preview::changes(command, cluster)).await?;
    run(&cluster, changes, topology, client, sink).await
}

/// The node that is to be added.
struct Added {
    cluster: ClusterSnapshot,
    node: NodeId,
    /// Its name, if it is a process that was started just for that.
    fresh: Option<String>,
}

/// The node that is to be added: a spare, or a process of the local cluster that becomes one.
async fn added(args: &AddArgs, client: &Client, sink: &mut dyn Sink) -> Result<Added, CommandError> {
    let Some(node) = &args.node else { return new_spare(args, client, sink).await };
    match spare(node, client).await {
        Err(error) if error.class == Class::NotFound && nodes::is_removed(node)? => new_spare(args, client, sink).await,
        Err(error) if error.class == Class::NotFound => {
            coming(node, error, client).await.map(|(cluster, node)| Added { cluster, node, fresh: None })
        }
        found => found.map(|(cluster, node)| Added { cluster, node, fresh: None }),
    }
}

/// Waits, as long as a command may take, for a node that says that it is ready and is no member yet: it joins after that.
async fn coming(node: &str, unknown: CommandError, client: &Client) -> Result<(ClusterSnapshot, NodeId), CommandError> {
    let deadline = Instant::now() + client.options().timeout;
    loop {
        let cluster = ClusterSnapshot::take_newest(client, true).await?;
        if let Ok(id) = find(&cluster, node)
            && (cluster.report(id).is_some() || Instant::now() >= deadline)
        {
            return Ok((cluster, id));
        }
        if Instant::now() >= deadline {
            return Err(unknown);
        }
        sleep(operation::FOLLOW_EVERY).await;
    }
}

/// Members that are named where one is not found.
const NAMED_MAX: usize = 20;

/// There is no such member; names those that there are.
pub(super) fn no_node(cluster: &ClusterSnapshot, node: &str) -> CommandError {
    let names = || cluster.description.members.iter().map(|member| member.member.name.as_str());
    let known: Vec<&str> = names().take(NAMED_MAX).collect();
    let meant = did_you_mean(node, names());
    CommandError::new(Class::NotFound, format!("no node {node:?}{meant}; the nodes are: {}", known.join(", ")))
}

/// The member of this name, number or address.
pub(super) fn find(cluster: &ClusterSnapshot, node: &str) -> Result<NodeId, CommandError> {
    let description = &cluster.description;
    let by_address = || description.members.iter().find(|member| member.address == node);
    // No name has a colon: what has one is meant as an address, and a wrong one belongs to no node.
    if node.contains(':') && by_address().is_none() {
        check_address(node)?;
    }
    description.member(node).or_else(by_address).map(|member| member.id).ok_or_else(|| {
        let mut error = no_node(cluster, node);
        error.message.push_str("; a new one is started with --join first, and is then a spare");
        error
    })
}

async fn run(
    cluster: &ClusterSnapshot,
    changes: Vec<Change>,
    topology: Topology,
    client: &Client,
    sink: &mut dyn Sink,
) -> Result<(), CommandError> {
    let throttle = throttle(client).await?;
    let assumed = limits::assumed(&topology, throttle.as_ref());
    let planned = client.plan(request(cluster, &changes, assumed)).await?;
    if let Some(expected) = topology.plan
        && expected.to_string() != planned.hash
    {
        let message = format!(
            "plan {expected} is stale: at epoch {} the changes make plan {}; show it with --dry-run",
            planned.parent_epoch, planned.hash
        );
        return Err(CommandError::new(Class::Conflict, message));
    }
    if topology.dry_run {
        return plan::show(cluster, &planned, assumed, sink);
    }
    if let Some(refusal) = planned.refusals.first() {
        return Err(CommandError::new(Class::Refused, format!("{}; {}", refusal.reason, refusal.remedy)));
    }
    let request = v1::ApplyRequest {
        changes: changes.iter().map(Into::into).collect(),
        // What was planned just now, or earlier with --dry-run: exactly that, or nothing.
        plan_hash: topology.plan.map_or_else(String::new, |hash| hash.to_string()),
        request_id: request_id()?,
        by: asker(),
        size: planned.size,
    };
    let limited = limits::set(&topology, throttle.as_ref(), client, sink).await?;
    let operation = match client.apply(request).await {
        Ok(operation) => operation,
        Err(error) => {
            // What did not begin leaves no limit behind; if it cannot be taken back, that it did not begin counts more.
            if limited {
                drop(limits::restore(throttle.as_ref(), client).await);
            }
            return Err(error.into());
        }
    };
    if topology.wait {
        op::follow(Some(operation.id), operation::FOLLOW_EVERY, client, sink).await?;
        return gone(&changes, client, sink).await;
    }
    sink.item(operation::steered(&operation, cluster, true))
}

/// The limit on copying that is in force.
async fn throttle(client: &Client) -> Result<Option<v1::ThrottleSetting>, CommandError> {
    Ok(client.operations(v1::OperationsRequest::default()).await?.throttle)
}

/// Random, so that a request that is repeated is recognised.
fn request_id() -> Result<bytes::Bytes, CommandError> {
    let mut id = vec![0; 16];
    getrandom::fill(&mut id).map_err(|error| CommandError::failed(format!("no random numbers: {error}")))?;
    Ok(id.into())
}

/// Waits until the nodes that were removed have handed over what they held and have left: only then may they be stopped.
async fn gone(changes: &[Change], client: &Client, sink: &mut dyn Sink) -> Result<(), CommandError> {
    let leaving: Vec<NodeId> = changes
        .iter()
        .filter_map(|change| match change {
            Change::Remove { node } | Change::Replace { old: node, .. } => Some(*node),
            _ => None,
        })
        .collect();
    let mut reported = String::new();
    loop {
        let cluster = ClusterSnapshot::take(client, false).await?;
        let members = &cluster.description.members;
        let left: Vec<&MemberView> = members.iter().filter(|member| leaving.contains(&member.id)).collect();
        if left.is_empty() {
            return Ok(());
        }
        if left.iter().all(|member| cluster.report(member.id).is_none()) {
            // Nothing that is waited for here brings it back.
            left.iter().for_each(|member| sink.note(&operation::why_not_gone(&cluster, member)));
            return Ok(());
        }
        let why = left.iter().map(|member| operation::why_not_gone(&cluster, member)).collect::<Vec<_>>().join("; ");
        if why != reported {
            sink.note(&why);
            reported = why;
        }
        sleep(operation::FOLLOW_EVERY).await;
    }
}

/// The spare that is meant by a name, a number or an address.
async fn spare(node: &str, client: &Client) -> Result<(ClusterSnapshot, NodeId), CommandError> {
    let cluster = ClusterSnapshot::take(client, true).await?;
    match find(&cluster, node) {
        Ok(id) => Ok((cluster, id)),
        // An address may lead to a member that advertises another one, or to something else altogether.
        Err(unknown) if node.contains(':') => {
            let id = probe(node, &cluster, client).await?;
            let known = cluster.description.members.iter().any(|member| member.id == id);
            if known { Ok((cluster, id)) } else { Err(unknown) }
        }
        Err(unknown) => Err(unknown),
    }
}

/// Asks who answers at an address.
async fn probe(address: &str, cluster: &ClusterSnapshot, client: &Client) -> Result<NodeId, CommandError> {
    let options = client.options().clone();
    let join = cluster.description.members.first().map_or_else(String::new, |member| member.address.clone());
    let remedy = format!("start a node there with --join {join}, which makes it a spare, then add it");
    let there = match Client::connect(&[address.to_owned()], options).await {
        Ok(there) => there.description(),
        Err(error) => {
            return Err(CommandError::new(Class::Unavailable, format!("{}; {remedy}", error.message)));
        }
    };
    let build = &there.build;
    let mine = cluster.description.cluster;
    match there.cluster {
        Some(other) if Some(other) != mine => Err(CommandError::new(
            Class::Conflict,
            format!(
                "the node {} at {address} (build {build}) belongs to another cluster, {other}; a node belongs to one for \
                 good: {remedy}, with an empty data directory",
                there.node_name
            ),
        )),
        None => Err(CommandError::new(
            Class::Conflict,
            format!("the node {} at {address} (build {build}) belongs to no cluster yet; {remedy}", there.node_name),
        )),
        Some(_) => Ok(there.node),
    }
}

/// Starts a node process of the local cluster, a new one or one that was removed, and waits until it is a spare.
async fn new_spare(args: &AddArgs, client: &Client, sink: &mut dyn Sink) -> Result<Added, CommandError> {
    let cluster = ClusterSnapshot::take(client, false).await?;
    let members = &cluster.description.members;
    let addresses: Vec<String> = members.iter().map(|member| member.address.clone()).collect();
    nodes::check_local(&addresses)?;
    if args.topology.dry_run || args.topology.plan.is_some() {
        return Err(CommandError::usage(
            "a new process has no plan before it runs; add it as it is, or start a node with --join and name it",
        ));
    }
    // A plan is refused then, and no one could take the node away again.
    if let Some(running) = cluster.operation().filter(|operation| operation.ended_us == 0) {
        return Err(CommandError::new(Class::Conflict, operation::in_the_way(running)));
    }
    let taken: Vec<String> = members.iter().map(|member| member.member.name.clone()).collect();
    let started = match &args.node {
        Some(name) => nodes::bring_back(name, args.zone.as_deref(), args.weight).await?,
        None => nodes::add(args.zone.as_deref(), args.weight, &taken).await?,
    };
    sink.note(&format!("started {} at {}", started.name, started.address));
    let deadline = Instant::now() + SPARE_TIMEOUT;
    loop {
        let cluster = ClusterSnapshot::take(client, true).await?;
        if let Some(member) = cluster.description.member(&started.name)
            && cluster.report(member.id).is_some()
        {
            let node = member.id;
            return Ok(Added { cluster, node, fresh: Some(started.name) });
        }
        if Instant::now() >= deadline {
            let after = nodes::take_away(&started.name).await.message(&started.name);
            let message = format!("{} runs but is no member yet; {after}", started.name);
            return Err(CommandError::new(Class::Unavailable, message));
        }
        sleep(operation::FOLLOW_EVERY).await;
    }
}

/// A request for a plan, with what the members report of themselves.
pub(super) fn request(cluster: &ClusterSnapshot, changes: &[Change], bytes_per_second: u64) -> v1::PlanRequest {
    let nodes = cluster.description.members.iter().map(|member| {
        let usage = cluster.report(member.id).and_then(|snapshot| snapshot.usage.as_ref());
        v1::NodeCondition {
            node: member.id.0,
            down: cluster.report(member.id).is_none(),
            latency_p99_us: usage.map_or(0, |usage| usage.latency_p99_us),
            disk_free_bytes: usage.map(|usage| usage.disk_free_bytes).filter(|&free| free > 0),
        }
    });
    v1::PlanRequest {
        changes: changes.iter().map(Into::into).collect(),
        sizes: sizes(cluster),
        nodes: nodes.collect(),
        bytes_per_second,
    }
}

/// What one copy of each partition holds, as its first reachable owner reports it; a complete copy counts before others.
pub(super) fn sizes(cluster: &ClusterSnapshot) -> Vec<v1::PartitionSize> {
    let mut reported: BTreeMap<(u32, u64), &v1::PartitionStats> = BTreeMap::new();
    for snapshot in cluster.node_reports() {
        reported.extend(snapshot.partitions.iter().map(|stats| ((stats.partition, snapshot.node), stats)));
    }
    let Some(layout) = cluster.description.layout.as_deref() else { return Vec::new() };
    let size = |partition: PartitionId| {
        let number = u32::from(partition.0);
        let owners = layout.entry(partition)?.nodes().filter_map(|owner| reported.get(&(number, owner.0)));
        let stats = owners.min_by_key(|stats| !stats.synced)?;
        let sum = |of: fn(&v1::PartitionKeyspaceStats) -> u64| stats.keyspaces.iter().map(of).sum();
        Some(v1::PartitionSize { partition: number, keys: sum(|it| it.keys), bytes: sum(|it| it.bytes) })
    };
    layout.partition_ids().filter_map(size).collect()
}
