//! An operation as a result: its row, its JSON, and what it waits for.

use std::collections::BTreeSet;
use std::time::Duration;

use kv_core::types::NodeId;
use kv_proto::describe::{Description, MemberView};
use kv_proto::v1;
use serde_json::{Value, json};

use crate::observe::snapshot::ClusterSnapshot;
use crate::output::bytes::printable;
use crate::output::time::{now_us, rfc3339, short, size};
use crate::output::{Human, Item};

/// How often the state is asked for while something is waited for.
pub(super) const FOLLOW_EVERY: Duration = Duration::from_millis(200);

/// A transfer that waits for no longer than this, in microseconds, is not mentioned.
const HELD_UP_US: u64 = 1_000_000;

/// What is not known, or has not happened.
pub(super) const NONE: &str = "-";

/// Why no process is started for a new node while an operation is under way.
pub(crate) fn in_the_way(running: &v1::Operation) -> String {
    let v1::Operation { id, command, .. } = running;
    let command = printable(command.as_bytes());
    format!(
        "operation {id} ({command}) is under way, and there is one at a time; op watch {id} follows it; no node was started"
    )
}

/// An operation that was begun or steered just now: what has become of it, and what can be done next.
pub(crate) fn steered(operation: &v1::Operation, cluster: &ClusterSnapshot, begun: bool) -> Item {
    let v1::Operation { id, command, moved, moves, .. } = operation;
    let far = format!("{moved} of {moves} replicas moved");
    let what = format!("operation {id} ({})", printable(command.as_bytes()));
    let text = match operation.state() {
        v1::OperationState::Running if begun => {
            format!("begun: {what}, {moves} replicas move; op watch {id} follows it, op cancel {id} ends it")
        }
        v1::OperationState::Running => format!("running: {what}, {far}; op watch {id} follows it"),
        v1::OperationState::Paused => format!("paused: {what}, {far}; op resume {id} continues it"),
        v1::OperationState::Cancelled => format!("cancelled: {what}: {}", printable(operation.outcome.as_bytes())),
        v1::OperationState::Done | v1::OperationState::Unspecified => format!("done: {what}, {far}"),
    };
    Item { human: Human::Text(text), ..item(operation, cluster) }
}

/// The word of a state.
#[must_use]
pub fn state_word(state: v1::OperationState) -> &'static str {
    match state {
        v1::OperationState::Unspecified => "unknown",
        v1::OperationState::Running => "running",
        v1::OperationState::Paused => "paused",
        v1::OperationState::Done => "done",
        v1::OperationState::Cancelled => "cancelled",
    }
}

/// The part of the plan that is carried out, from 0 to 1: computed from the plan, so it never passes 1, and from what is
/// agreed on, so it never goes backwards.
#[must_use]
pub fn progress(operation: &v1::Operation) -> f64 {
    if operation.moves == 0 {
        return if operation.state() == v1::OperationState::Done { 1.0 } else { 0.0 };
    }
    part(operation.moved, operation.moves)
}

/// The part of the moves that is carried out.
#[must_use]
pub fn part(moved: u64, moves: u64) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "at most some million moves")]
    let part = moved.min(moves) as f64 / moves.max(1) as f64;
    part
}

/// What an operation under way waits for, the worst first; empty if nothing blocks it or it has ended.
#[must_use]
pub fn waiting_for(operation: &v1::Operation, cluster: &ClusterSnapshot) -> Vec<String> {
    match operation.state() {
        v1::OperationState::Paused => return vec![format!("paused; op resume {} continues it", operation.id)],
        v1::OperationState::Running => {}
        _ => return Vec::new(),
    }
    let mut reasons = Vec::new();
    if cluster.description.leader.is_none() {
        reasons.push("no majority of the voters: nothing can be cut over or cancelled".to_owned());
    }
    let layout = cluster.description.layout.as_deref();
    let joint = || layout.into_iter().flat_map(|layout| &layout.partitions).filter_map(|entry| entry.joint.as_ref());
    let receivers: BTreeSet<NodeId> = joint().flat_map(|joint| joint.receivers.iter().map(|it| it.node)).collect();
    for node in receivers.iter().filter(|node| !cluster.serves(**node)) {
        let name = cluster.description.name_of(*node);
        reasons
            .push(format!("{name} is down and must get copies: start it, or end this with op cancel {}", operation.id));
    }
    let mut reported: BTreeSet<String> = BTreeSet::new();
    for snapshot in cluster.node_reports() {
        for transfer in snapshot.transfers.iter().filter(|transfer| is_held_up(transfer)) {
            let stalled = if transfer.stalled { "stalled: " } else { "" };
            // One line for all transfers that wait for the same.
            if reported.insert(transfer.waiting_for.clone()) {
                reasons.push(format!(
                    "{stalled}{} waits with partition {}: {}",
                    snapshot.name, transfer.partition, transfer.waiting_for
                ));
            }
        }
    }
    reasons
}

/// Why a node that was removed is still a member.
pub(crate) fn why_not_gone(cluster: &ClusterSnapshot, member: &MemberView) -> String {
    let name = &member.member.name;
    let Some(snapshot) = cluster.report(member.id) else {
        return format!("{name} is down: start it, or give it up with node remove {name} --dead");
    };
    let pending = snapshot.pending.unwrap_or_default();
    let reasons: BTreeSet<&str> =
        snapshot.residue.iter().map(|left| left.waiting_for.as_str()).filter(|reason| !reason.is_empty()).collect();
    let because = if reasons.is_empty() {
        String::new()
    } else {
        format!(" ({})", reasons.into_iter().collect::<Vec<_>>().join("; "))
    };
    format!(
        "{name} hands over what it holds: {} records left, {} hints, {} keys that a copy lacks{because}",
        pending.residue, pending.hints, pending.missed_writes
    )
}

/// An operation as a result.
pub(super) fn item(operation: &v1::Operation, cluster: &ClusterSnapshot) -> Item {
    let waiting = waiting_for(operation, cluster);
    let waiting = (!waiting.is_empty()).then(|| waiting.join("; "));
    let moment = |us: u64| (us > 0).then(|| rfc3339(us));
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let names = |ids: &[u64]| ids.iter().map(|id| cluster.description.name_of(NodeId(*id))).collect::<Vec<_>>();
    let state = state_word(operation.state());
    let end = if operation.ended_us > 0 { operation.ended_us } else { now_us() };
    let took = Duration::from_micros(end.saturating_sub(operation.begun_us));
    let json = json!({
        "schema": 1,
        "id": operation.id,
        "kind": operation.kind().word(),
        "command": operation.command,
        "state": state,
        "progress": progress(operation),
        "moved": operation.moved,
        "moves": operation.moves,
        "moves_minimum": operation.moves_minimum,
        "receipts": operation.receipts,
        "keys_planned": operation.keys_planned,
        "bytes_planned": operation.bytes_planned,
        "keys_moved": operation.keys_moved,
        "bytes_moved": operation.bytes_moved,
        "migrating": operation.migrating,
        "waiting_for": waiting,
        "plan": operation.plan_hash,
        "parent_epoch": operation.parent_epoch,
        "by": text(&operation.by),
        "begun": moment(operation.begun_us),
        "first_cut_over": moment(operation.first_cut_over_us),
        "last_cut_over": moment(operation.last_cut_over_us),
        "ended": moment(operation.ended_us),
        "ended_by": text(&operation.ended_by),
        "seconds": took.as_secs_f64(),
        "retries": operation.retries,
        "outcome": text(&operation.outcome),
        "undo": text(&operation.undo),
        "entering": names(&operation.entering),
        "leaving": names(&operation.leaving),
    });
    let cells = vec![
        operation.id.to_string(),
        state.to_owned(),
        operation.command.clone(),
        format!("{}/{}", operation.moved, operation.moves),
        format!("{:.1}", progress(operation) * 100.0),
        operation.keys_moved.to_string(),
        size(operation.bytes_moved),
        short(took),
        waiting.or_else(|| text(&operation.outcome)).unwrap_or_else(|| NONE.to_owned()),
    ];
    Item {
        json,
        raw: format!("{} {state} {}/{}\n", operation.id, operation.moved, operation.moves).into_bytes(),
        human: Human::Row {
            header: &[">OP", "STATE", "COMMAND", ">MOVED", ">%", ">KEYS", ">BYTES", ">TIME", "WAITS FOR"],
            cells,
        },
    }
}

/// Whether a transfer has begun and makes no progress for longer than a moment.
fn is_held_up(transfer: &v1::Transfer) -> bool {
    transfer.tries > 0 && !transfer.waiting_for.is_empty() && (transfer.stalled || transfer.idle_us >= HELD_UP_US)
}

pub(super) fn move_json(step: &v1::OperationMove, names: &Description) -> Value {
    let name = |id: u64| (id > 0).then(|| names.name_of(NodeId(id)));
    let receipt = step.receipt.as_ref().map(|receipt| {
        let source = |source: &v1::ReceiptSource| {
            json!({"node": name(source.node), "merkle_root": format!("{:016x}", source.merkle_root)})
        };
        json!({
            "joint_epoch": receipt.joint_epoch,
            "store": format!("{:016x}", receipt.store_id),
            "sources": receipt.sources.iter().map(source).collect::<Vec<_>>(),
            "keys": receipt.keys,
            "bytes": receipt.bytes,
        })
    });
    json!({
        "partition": step.partition,
        "from": name(step.from),
        "to": name(step.to),
        "source": name(step.source),
        "moved": step.moved,
        "receipt": receipt,
    })
}

/// The transfers of all nodes that belong to an operation under way.
pub(super) fn transfers(operation: &v1::Operation, cluster: &ClusterSnapshot) -> Vec<Value> {
    let active = matches!(operation.state(), v1::OperationState::Running | v1::OperationState::Paused);
    let name = |id: u64| (id > 0).then(|| cluster.description.name_of(NodeId(id)));
    let reported = cluster
        .node_reports()
        .filter(|_| active)
        .flat_map(|snapshot| snapshot.transfers.iter().map(move |transfer| (snapshot.name.clone(), transfer)));
    reported
        .map(|(to, transfer)| {
            json!({
                "partition": transfer.partition,
                "to": to,
                "source": name(transfer.source),
                "phase": phase_word(transfer.phase()),
                "keys": transfer.keys,
                "keys_total": transfer.keys_total,
                "bytes": transfer.bytes,
                "bytes_total": transfer.bytes_total,
                "tries": transfer.tries,
                "stalled": transfer.stalled,
                "waiting_for": (!transfer.waiting_for.is_empty()).then(|| transfer.waiting_for.clone()),
            })
        })
        .collect()
}

/// The word of a phase.
#[must_use]
pub fn phase_word(phase: v1::TransferPhase) -> &'static str {
    match phase {
        v1::TransferPhase::Unspecified => "unknown",
        v1::TransferPhase::Waiting => "waiting",
        v1::TransferPhase::Copying => "copying",
        v1::TransferPhase::Verifying => "verifying",
        v1::TransferPhase::Covered => "covered",
    }
}

pub(super) fn throttle_text(throttle: &v1::ThrottleSetting) -> String {
    let rate = match throttle.bytes_per_second_max {
        None => "no limit on bytes".to_owned(),
        Some(limit) => {
            let by = if throttle.by.is_empty() { String::new() } else { format!(" by {}", throttle.by) };
            format!("{}/s for each receiving node, set by op throttle{by} at {}", size(limit), rfc3339(throttle.set_us))
        }
    };
    format!(
        "{rate}; {} copies at once on each node; {} partitions migrate at once",
        throttle.transfers_max, throttle.migrating_max
    )
}

/// The limits on copying.
pub(super) fn throttle_json(throttle: &v1::ThrottleSetting) -> Value {
    json!({
        "bytes_per_second_max": throttle.bytes_per_second_max,
        "by": (!throttle.by.is_empty()).then(|| throttle.by.clone()),
        "set": (throttle.set_us > 0).then(|| rfc3339(throttle.set_us)),
        "transfers_max": throttle.transfers_max,
        "migrating_max": throttle.migrating_max,
    })
}

pub(super) fn throttle_item(throttle: &v1::ThrottleSetting) -> Item {
    let limit = throttle.bytes_per_second_max;
    let mut json = throttle_json(throttle);
    json["schema"] = json!(1);
    Item {
        json,
        raw: limit.map_or_else(|| "off\n".to_owned(), |limit| format!("{limit}\n")).into_bytes(),
        human: Human::Text(throttle_text(throttle)),
    }
}
