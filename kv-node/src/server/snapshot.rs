//! One node's own report: its statistics, and its opinion of its peers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kv_core::message::{HinderedBy, Hindrance};
use kv_core::node::{ClockState, SettleStatus, Status, left_of_dropped};
use kv_core::ring::Member;
use kv_core::storage::{Space, Stats};
use kv_core::topology::{Residue, Transfer, TransferPhase, Wait};
use kv_core::types::{KeyspaceId, NodeId, PartitionId};
use kv_proto::describe::member_to_wire;
use kv_proto::v1::{self, MemberState};

use super::Shared;
use super::cluster::forming;
use super::operations::{newest, throttle_to_wire};
use super::repair::stats_to_wire;
use crate::control::{ClusterState, Trouble};
use crate::engine::{Durations, RequestClass};
use crate::liveness::{Condition, Opinion};

/// The members as this node sees them.
pub(super) fn members(shared: &Shared, state: &ClusterState) -> Vec<v1::Member> {
    state
        .members
        .iter()
        .map(|(&id, record)| {
            let member = Member {
                name: record.name.clone(),
                zone: record.zone.clone(),
                weight: record.weight,
                store: record.incarnation.store,
                spare: record.spare,
            };
            let role = state_of(shared, state, id, record.spare);
            // Where it was found; after a change of addresses that is agreed on later.
            let address = shared.control.address_of(id).unwrap_or_else(|| record.address.clone());
            member_to_wire(id, &member, &address, role)
        })
        .collect()
}

/// The part that a member plays, in this node's opinion.
fn state_of(shared: &Shared, state: &ClusterState, id: NodeId, spare: bool) -> MemberState {
    match condition_of(shared, id) {
        Condition::Up => role_of(state, id, spare),
        Condition::Suspect => MemberState::Suspect,
        Condition::Down => MemberState::Down,
    }
}

/// How a member is, in this node's opinion.
pub(super) fn condition_of(shared: &Shared, id: NodeId) -> Condition {
    if id == shared.node() { Condition::Up } else { opinion(shared, id).map_or(Condition::Suspect, |o| o.condition) }
}

/// The part that a member plays while it is up.
fn role_of(state: &ClusterState, id: NodeId, spare: bool) -> MemberState {
    let active = state.active_operation();
    if active.is_some_and(|operation| operation.entering.contains(&id)) {
        MemberState::Joining
    } else if state.leaving.contains_key(&id) || active.is_some_and(|operation| operation.leaving.contains(&id)) {
        MemberState::Leaving
    } else if spare {
        MemberState::Spare
    } else {
        MemberState::Up
    }
}

fn opinion(shared: &Shared, id: NodeId) -> Option<Opinion> {
    let now = shared.clock.now().mono;
    shared.liveness.lock().opinion(id, now)
}

/// The node's report at this moment.
pub(super) async fn take(shared: &Arc<Shared>, with_partitions: bool) -> v1::NodeSnapshot {
    take_with_requests(shared, with_partitions).await.0
}

/// The node's report, and how long its requests took until then.
pub(super) async fn take_with_requests(
    shared: &Arc<Shared>,
    with_partitions: bool,
) -> (v1::NodeSnapshot, BTreeMap<RequestClass, Durations>) {
    let mut requests = BTreeMap::new();
    let now = shared.clock.now();
    let state = shared.state();
    let node = shared.node();
    let record = state.members.get(&node);
    let role = record.map_or(MemberState::Up, |member| role_of(&state, node, member.spare));
    let mut snapshot = v1::NodeSnapshot {
        faults: shared.faults.get(),
        taken_us: now.wall.0,
        node: node.0,
        name: shared.name.clone(),
        address: shared.address.clone(),
        zone: record.map_or_else(|| shared.zone.clone(), |member| member.zone.clone()),
        weight: record.map_or(shared.weight, |member| member.weight),
        state: role.into(),
        store_id: shared.incarnation.store.0,
        boot: shared.incarnation.boot,
        build: crate::BUILD.to_owned(),
        pid: std::process::id(),
        uptime_us: now.mono.0,
        forming: forming(&state),
        peers: peers(shared, &state),
        operation: newest(&state),
        throttle: Some(throttle_to_wire(&state)),
        retried: shared.watchdog.retried(),
        control: Some(control(shared, &state)),
        ..v1::NodeSnapshot::default()
    };
    let mut usage = shared.usage.read();
    let serving = shared.serving.borrow().clone();
    if let Some(serving) = serving {
        match serving.engine.report().await {
            Some(report) => {
                let status = &report.status;
                snapshot.layout_epoch = status.epoch.0;
                snapshot.transfers = report.transfers.iter().map(|it| transfer_to_wire(shared, &state, it)).collect();
                snapshot.residue = report.residue.iter().map(|it| residue_to_wire(&state, it)).collect();
                snapshot.repairs = Some(stats_to_wire(status.repairs));
                snapshot.poisoned = report.poisoned.clone().unwrap_or_default();
                snapshot.pending = Some(v1::Pending {
                    requests: status.requests as u64,
                    replications: status.replications as u64,
                    hints: status.hints,
                    hint_bytes: status.hint_bytes,
                    missed_writes: status.missed_writes,
                    refills: status.unsynced.len() as u64,
                    transfers: status.receiving as u64,
                    comparisons: status.repairing as u64,
                    // A partition that is not counted yet may hold anything.
                    residue: report
                        .residue
                        .iter()
                        .map(|residue| residue.records)
                        .sum::<u64>()
                        .max(status.leaving as u64),
                    // Partitions that were not checked yet may hold anything.
                    dropped: status.dropping as u64,
                    reclaiming: status.reclaiming.into(),
                });
                snapshot.settling = Some(settling_to_wire(&state, &status.settling));
                snapshot.clock = Some(clock_to_wire(status, state.config.clock_skew_max));
                requests = report.requests;
                let counters = report.counters;
                snapshot.counters = Some(v1::Counters {
                    gets: counters.gets,
                    puts: counters.puts,
                    deletes: counters.deletes,
                    scans: counters.scans,
                    failures: counters.failures,
                    forwards: counters.forwards,
                    hedges: counters.hedges,
                    read_repairs: counters.read_repairs,
                    handoffs: counters.handoffs,
                    hot_hits: counters.hot_hits,
                    hot_misses: counters.hot_misses,
                    commits: counters.commits,
                    committed_batches: counters.committed_batches,
                    copied_bytes: counters.copied_bytes,
                    retired_forgotten: counters.retired_forgotten,
                    register_retries: counters.register_retries,
                });
                usage.latency_p50_us = report.latency.p50_us;
                usage.latency_p99_us = report.latency.p99_us;
                let (stats, is_new) = serving.engine.stats().await;
                snapshot.disk_stalled = !is_new;
                if let Some(stats) = stats {
                    if let Some(pending) = &mut snapshot.pending {
                        pending.dropped = pending.dropped.max(left_of_dropped(&state.keyspace_list(), &stats).records);
                    }
                    add_stats(&mut snapshot, &state, node, &stats, &status.unsynced, with_partitions);
                }
            }
            None => "the engine does not answer: its disk may have stalled".clone_into(&mut snapshot.poisoned),
        }
        let stats = serving.links.stats();
        for peer in &mut snapshot.peers {
            if let Some(link) = stats.get(&NodeId(peer.node)) {
                peer.round_trip_us = link.round_trip_us;
                peer.queued_bytes = link.queued_bytes as u64;
            }
        }
    }
    snapshot.usage = Some(usage);
    (snapshot, requests)
}

/// The control plane, as this node sees it.
fn control(shared: &Shared, state: &ClusterState) -> v1::ControlReport {
    let view = shared.control.view();
    let generation = shared.control.generation().unwrap_or_default();
    let (trouble, later) = match view.trouble {
        None => (v1::ControlTrouble::Unspecified, 0),
        Some(Trouble::Election) => (v1::ControlTrouble::Election, 0),
        Some(Trouble::VotersDown) => (v1::ControlTrouble::VotersDown, 0),
        Some(Trouble::VotersRefuse) => (v1::ControlTrouble::VotersRefuse, 0),
        Some(Trouble::LogSetAside) => (v1::ControlTrouble::LogSetAside, 0),
        Some(Trouble::OtherGeneration(later)) => (v1::ControlTrouble::OtherGeneration, later),
    };
    v1::ControlReport {
        generation: generation.number,
        founder: generation.founder.0,
        leads: shared.control.is_leader(),
        leader: shared.control.leader().map_or(0, |leader| leader.0),
        voters: view.voters.iter().map(|voter| voter.0).collect(),
        voters_wanted: u32::try_from(view.voters_wanted).unwrap_or(u32::MAX),
        awaited: state.awaited.iter().map(|node| node.0).collect(),
        trouble: trouble.into(),
        unreachable: view.unreachable.iter().map(|voter| voter.0).collect(),
        later_generation: later,
    }
}

fn transfer_to_wire(shared: &Shared, state: &ClusterState, transfer: &Transfer) -> v1::Transfer {
    let wait = shared.watchdog.waits_for(transfer);
    let (idle, stalled) = shared.watchdog.idle(transfer, shared.clock.now().mono);
    v1::Transfer {
        partition: u32::from(transfer.partition.0),
        joint_epoch: transfer.joint.0,
        source: transfer.source.map_or(0, |node| node.0),
        phase: match transfer.phase {
            TransferPhase::Waiting => v1::TransferPhase::Waiting,
            TransferPhase::Copying => v1::TransferPhase::Copying,
            TransferPhase::Verifying => v1::TransferPhase::Verifying,
            TransferPhase::Covered => v1::TransferPhase::Covered,
        }
        .into(),
        keys: transfer.keys,
        keys_total: transfer.keys_total,
        bytes: transfer.bytes,
        bytes_total: transfer.bytes_total,
        tries: transfer.tries,
        waiting_for: wait.as_ref().map_or_else(String::new, |wait| state.with_names(&wait.to_string())),
        wait: match wait {
            None => v1::TransferWait::Unspecified,
            Some(Wait::Paused) => v1::TransferWait::Paused,
            Some(Wait::Limited) => v1::TransferWait::Limited,
            Some(Wait::Other(_)) => v1::TransferWait::Other,
        }
        .into(),
        idle_us: u64::try_from(idle.as_micros()).unwrap_or(u64::MAX),
        stalled,
    }
}

fn settling_to_wire(state: &ClusterState, settling: &SettleStatus) -> v1::Settling {
    let (by, why) = settling.hindered.as_ref().map_or((0, String::new()), |(node, by)| (node.0, by.to_string()));
    let reason = settling.hindered.as_ref().map(|(_, by)| hindrance_to_wire(by)).unwrap_or_default();
    v1::Settling {
        // Counted from the statistics of the store.
        tombstones: 0,
        due_partitions: settling.due as u64,
        oldest_us: settling.oldest.unwrap_or_default().0,
        watermark_us: settling.watermark.unwrap_or_default().0,
        hindered_by: by,
        hindered_why: state.with_names(&why),
        collected: settling.collected,
        hindered_reason: reason.into(),
        set_aside: settling.set_aside,
    }
}

fn hindrance_to_wire(by: &HinderedBy) -> v1::SettlingHindrance {
    match by {
        HinderedBy::Down => v1::SettlingHindrance::Down,
        HinderedBy::Disk => v1::SettlingHindrance::Disk,
        HinderedBy::Silence => v1::SettlingHindrance::Silence,
        HinderedBy::Refusal(Hindrance::Epoch) => v1::SettlingHindrance::Layout,
        HinderedBy::Refusal(Hindrance::Hints) => v1::SettlingHindrance::Hints,
        HinderedBy::Refusal(Hindrance::Residue) => v1::SettlingHindrance::Residue,
        HinderedBy::Refusal(Hindrance::Incomplete) => v1::SettlingHindrance::Refill,
        HinderedBy::Refusal(Hindrance::Clock { .. }) => v1::SettlingHindrance::Clock,
        HinderedBy::Refusal(Hindrance::NotOwner) => v1::SettlingHindrance::NotOwner,
        HinderedBy::Comparison { .. } => v1::SettlingHindrance::Comparison,
    }
}

fn clock_to_wire(status: &Status, limit: Duration) -> v1::Clock {
    let (state, ahead_us) = match status.clock {
        ClockState::Unknown => (v1::ClockState::Unknown, 0),
        ClockState::Right => (v1::ClockState::Right, 0),
        ClockState::Off { ahead_us } => (v1::ClockState::Off, ahead_us),
    };
    let peers = status.clocks.iter().map(|(node, &ahead_us)| v1::PeerClock { node: node.0, ahead_us }).collect();
    let limit_us = u64::try_from(limit.as_micros()).unwrap_or(u64::MAX);
    v1::Clock { state: state.into(), ahead_us, peers, limit_us }
}

fn residue_to_wire(state: &ClusterState, residue: &Residue) -> v1::Residue {
    v1::Residue {
        partition: u32::from(residue.partition.0),
        records: residue.records,
        bytes: residue.bytes,
        waiting_for: state.with_names(residue.waiting_for.as_deref().unwrap_or_default()),
    }
}

fn peers(shared: &Shared, state: &ClusterState) -> Vec<v1::PeerOpinion> {
    let me = shared.node();
    let others = state.members.iter().filter(|(id, _)| **id != me);
    let claims: BTreeMap<NodeId, String> = shared.control.unproven_claims().into_iter().collect();
    others
        .map(|(&id, record)| {
            let opinion = opinion(shared, id);
            // Whoever is refused can say any name. A member that answers was not refused.
            let is_up = opinion.as_ref().is_some_and(|opinion| opinion.condition == Condition::Up);
            let refused = shared.trust.refusals().latest(record.incarnation.store).filter(|_| !is_up);
            v1::PeerOpinion {
                node: id.0,
                state: state_of(shared, state, id, record.spare).into(),
                reason: opinion.as_ref().map(|opinion| opinion.reason.clone()).unwrap_or_default(),
                is_new: opinion.as_ref().is_none_or(|opinion| opinion.is_new),
                since_us: opinion.map_or(0, |opinion| shared.clock.wall_at(opinion.since).0),
                refused: refused.unwrap_or_default(),
                claims: claims.get(&id).cloned().unwrap_or_default(),
                ..v1::PeerOpinion::default()
            }
        })
        .collect()
}

/// Adds what the store holds, counted from its statistics.
fn add_stats(
    snapshot: &mut v1::NodeSnapshot,
    state: &ClusterState,
    node: NodeId,
    stats: &Stats,
    unsynced: &[PartitionId],
    with_partitions: bool,
) {
    let Some(layout) = &state.layout else { return };
    let mut keyspaces: BTreeMap<KeyspaceId, v1::KeyspaceStats> = BTreeMap::new();
    let mut tombstones = 0;
    for partition in layout.partition_ids() {
        let Some(entry) = layout.entry(partition) else { continue };
        // A copy that is being made is no copy yet.
        let Some(place) = entry.owners.iter().position(|owner| owner.node == node) else { continue };
        let primary = place == 0;
        snapshot.partitions_held += 1;
        snapshot.primary += u32::from(primary);
        let mut held = v1::PartitionStats {
            partition: u32::from(partition.0),
            synced: !unsynced.contains(&partition),
            keyspaces: Vec::new(),
            merkle_root: stats.root(partition),
        };
        for keyspace in state.keyspaces.keys() {
            let tally = stats.tally(Space::Owned, partition, *keyspace);
            let sum = keyspaces
                .entry(*keyspace)
                .or_insert_with(|| v1::KeyspaceStats { keyspace: keyspace.0, ..v1::KeyspaceStats::default() });
            tombstones += tally.records.saturating_sub(tally.keys);
            sum.keys += tally.keys;
            sum.bytes += tally.bytes;
            sum.keys_primary += if primary { tally.keys } else { 0 };
            if tally.keys > 0 {
                held.keyspaces.push(v1::PartitionKeyspaceStats {
                    keyspace: keyspace.0,
                    keys: tally.keys,
                    bytes: tally.bytes,
                });
            }
        }
        if with_partitions {
            snapshot.partitions.push(held);
        }
    }
    if let Some(settling) = &mut snapshot.settling {
        settling.tombstones = tombstones;
    }
    for stats in keyspaces.into_values() {
        snapshot.keys += stats.keys;
        snapshot.keys_primary += stats.keys_primary;
        snapshot.bytes += stats.bytes;
        snapshot.keyspaces.push(stats);
    }
}
