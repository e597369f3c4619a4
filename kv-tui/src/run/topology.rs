//! Changes of the topology: planned, and shown before anything moves.

use std::collections::BTreeMap;

use kv_core::topology::Change;
use kv_core::types::{NodeId, PartitionId};
use kv_proto::client::Client;
use kv_proto::v1;

use super::picture::Picture;
use super::plan;
use crate::command::{AddArgs, CopiesArgs, RemoveArgs, ReplaceArgs, Topology, WeightArgs, ZoneArgs};
use crate::error::{Class, CommandError};
use crate::output::Sink;

pub(super) async fn add(args: &AddArgs, client: &Client, sink: &mut dyn Sink) -> Result<(), CommandError> {
    let picture = Picture::take(client, true).await?;
    let node = find(&picture, &args.node)?;
    let zone = args.zone.clone().map(|zone| Change::Zone { node, zone });
    let weight = args.weight.map(|weight| Change::Weight { node, weight });
    let changes = zone.into_iter().chain(weight).chain([Change::Add { node }]).collect();
    run(&picture, changes, args.topology, client, sink).await
}

pub(super) async fn remove(args: &RemoveArgs, client: &Client, sink: &mut dyn Sink) -> Result<(), CommandError> {
    let picture = Picture::take(client, true).await?;
    let node = find(&picture, &args.node)?;
    let change = if args.dead { Change::RemoveDead { node } } else { Change::Remove { node } };
    run(&picture, vec![change], args.topology, client, sink).await
}

pub(super) async fn replace(args: &ReplaceArgs, client: &Client, sink: &mut dyn Sink) -> Result<(), CommandError> {
    let picture = Picture::take(client, true).await?;
    let change = Change::Replace { old: find(&picture, &args.old)?, new: find(&picture, &args.new)? };
    run(&picture, vec![change], args.topology, client, sink).await
}

pub(super) async fn weight(args: &WeightArgs, client: &Client, sink: &mut dyn Sink) -> Result<(), CommandError> {
    let picture = Picture::take(client, true).await?;
    let change = Change::Weight { node: find(&picture, &args.node)?, weight: args.weight };
    run(&picture, vec![change], args.topology, client, sink).await
}

pub(super) async fn zone(args: &ZoneArgs, client: &Client, sink: &mut dyn Sink) -> Result<(), CommandError> {
    let picture = Picture::take(client, true).await?;
    let change = Change::Zone { node: find(&picture, &args.node)?, zone: args.zone.clone() };
    run(&picture, vec![change], args.topology, client, sink).await
}

pub(super) async fn copies(args: CopiesArgs, client: &Client, sink: &mut dyn Sink) -> Result<(), CommandError> {
    let picture = Picture::take(client, true).await?;
    run(&picture, vec![Change::Copies { copies: args.copies }], args.topology, client, sink).await
}

/// The member of this name, number or address.
pub(super) fn find(picture: &Picture, node: &str) -> Result<NodeId, CommandError> {
    let description = &picture.description;
    let by_address = || description.members.iter().find(|member| member.address == node);
    description.member(node).or_else(by_address).map(|member| member.id).ok_or_else(|| {
        let known: Vec<&str> = description.members.iter().map(|member| member.member.name.as_str()).take(20).collect();
        let message = format!(
            "no node {node:?}; the nodes are: {}; a new one is started with --join first, and is then a spare",
            known.join(", ")
        );
        CommandError::new(Class::NotFound, message)
    })
}

async fn run(
    picture: &Picture,
    changes: Vec<Change>,
    topology: Topology,
    client: &Client,
    sink: &mut dyn Sink,
) -> Result<(), CommandError> {
    let planned = client.plan(request(picture, &changes, topology.limit)).await?;
    if let Some(expected) = topology.plan
        && expected.to_string() != planned.hash
    {
        let message = format!(
            "plan {expected} is stale: at epoch {} the changes make plan {}; look at it with --dry-run",
            planned.parent_epoch, planned.hash
        );
        return Err(CommandError::new(Class::Conflict, message));
    }
    if topology.dry_run {
        return plan::show(picture, &planned, topology.limit, sink);
    }
    if let Some(refusal) = planned.refusals.first() {
        return Err(CommandError::new(Class::Refused, format!("{}; {}", refusal.reason, refusal.remedy)));
    }
    let message = format!("plan {} is not carried out: this release only plans; add --dry-run to see it", planned.hash);
    Err(CommandError::new(Class::Refused, message))
}

/// Asks for a plan, with what the members tell of themselves.
pub(super) fn request(picture: &Picture, changes: &[Change], bytes_per_second: u64) -> v1::PlanRequest {
    let nodes = picture.description.members.iter().map(|member| {
        let usage = picture.snapshot(member.id).and_then(|snapshot| snapshot.usage.as_ref());
        v1::NodeCondition {
            node: member.id.0,
            down: picture.snapshot(member.id).is_none(),
            latency_p99_us: usage.map_or(0, |usage| usage.latency_p99_us),
            disk_free_bytes: usage.map(|usage| usage.disk_free_bytes).filter(|&free| free > 0),
        }
    });
    v1::PlanRequest {
        changes: changes.iter().map(Into::into).collect(),
        sizes: sizes(picture),
        nodes: nodes.collect(),
        bytes_per_second,
    }
}

/// What one copy of each partition holds, as its first owner in reach tells it; a complete copy counts before others.
fn sizes(picture: &Picture) -> Vec<v1::PartitionSize> {
    let mut told: BTreeMap<(u32, u64), &v1::PartitionFigures> = BTreeMap::new();
    for snapshot in picture.snapshots() {
        told.extend(snapshot.partitions.iter().map(|figures| ((figures.partition, snapshot.node), figures)));
    }
    let Some(layout) = picture.description.layout.as_deref() else { return Vec::new() };
    let size = |partition: PartitionId| {
        let number = u32::from(partition.0);
        let owners = layout.entry(partition)?.nodes().filter_map(|owner| told.get(&(number, owner.0)));
        let figures = owners.min_by_key(|figures| !figures.synced)?;
        let sum = |of: fn(&v1::PartitionKeyspaceFigures) -> u64| figures.keyspaces.iter().map(of).sum();
        Some(v1::PartitionSize { partition: number, keys: sum(|it| it.keys), bytes: sum(|it| it.bytes) })
    };
    layout.partition_ids().filter_map(size).collect()
}
