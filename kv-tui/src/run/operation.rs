//! op: operations listed, shown, followed and steered.

use std::collections::BTreeSet;
use std::time::Duration;

use kv_core::types::NodeId;
use kv_proto::client::Client;
use kv_proto::describe::{Description, MemberView};
use kv_proto::v1;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::picture::Picture;
use super::retry;
use crate::command::{OpCommand, WatchArgs};
use crate::error::{Class, CommandError};
use crate::output::time::{now_us, rfc3339, short, size};
use crate::output::{Human, Item, Sink};

/// How often something is looked at that is waited for.
pub(super) const FOLLOW_EVERY: Duration = Duration::from_millis(200);

/// A transfer that waits for no longer than this, in microseconds, is not worth a word.
const HELD_UP_US: u64 = 1_000_000;

/// What is not known, or has not happened.
const NONE: &str = "-";

pub(super) async fn execute(command: &OpCommand, client: &Client, sink: &mut dyn Sink) -> Result<(), CommandError> {
    let by = asker();
    let changed = match command {
        OpCommand::Ls => return list(client, sink).await,
        OpCommand::Show(args) => return show(args.id, client, sink).await,
        OpCommand::Watch(args) => return watch(*args, client, sink).await,
        OpCommand::Pause(args) => client.pause(v1::PauseRequest { id: args.id, by }).await?,
        OpCommand::Resume(args) => client.resume(v1::ResumeRequest { id: args.id, by }).await?,
        OpCommand::Retry(args) => return retry::retry(args, client, sink).await,
        OpCommand::Cancel(args) => client.cancel(v1::CancelRequest { id: args.id, by }).await?,
        OpCommand::Throttle(args) => {
            let limit = (args.rate > 0).then_some(args.rate);
            let setting = client.throttle(v1::ThrottleRequest { bytes_per_second_max: limit, by }).await?;
            return sink.item(throttle_item(&setting));
        }
    };
    let picture = Picture::take(client, false).await?;
    sink.item(item(&changed, &picture))
}

/// Who asks, for the record: the user of this machine.
pub(crate) fn asker() -> String {
    let user = std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).unwrap_or_default();
    user.chars().filter(|letter| !letter.is_control()).take(32).collect()
}

async fn list(client: &Client, sink: &mut dyn Sink) -> Result<(), CommandError> {
    let picture = Picture::take(client, false).await?;
    for operation in client.operations(v1::OperationsRequest::default()).await?.operations {
        sink.item(item(&operation, &picture))?;
    }
    Ok(())
}

async fn show(id: u64, client: &Client, sink: &mut dyn Sink) -> Result<(), CommandError> {
    let picture = Picture::take(client, false).await?;
    let answer = client.operations(v1::OperationsRequest { id, details: true }).await?;
    let Some(operation) = answer.operations.first() else {
        return Err(CommandError::new(Class::NotFound, format!("there is no operation {id}; op ls lists them")));
    };
    let mut shown = item(operation, &picture);
    let names = &picture.description;
    let moves: Vec<Value> = operation.details.iter().map(|step| move_json(step, names)).collect();
    shown.json["moves_detail"] = Value::from(moves);
    shown.json["transfers"] = Value::from(transfers(operation, &picture));
    let mut lines = lines(operation, &picture, answer.throttle.as_ref());
    lines.extend(operation.details.iter().map(|step| move_line(step, names)));
    shown.human = Human::Text(lines.join("\n"));
    sink.item(shown)
}

/// Follows an operation to its end.
async fn watch(args: WatchArgs, client: &Client, sink: &mut dyn Sink) -> Result<(), CommandError> {
    let id = match args.id {
        Some(id) => id,
        None => {
            let known = client.operations(v1::OperationsRequest::default()).await?.operations;
            known.last().map(|operation| operation.id).ok_or_else(|| {
                CommandError::new(Class::NotFound, "no operation was ever begun; node add begins one, for instance")
            })?
        }
    };
    follow(id, args.every, client, sink).await.map(drop)
}

/// Tells how an operation gets on until it ends, and how it ended.
///
/// # Errors
/// If it does not exist, or was cancelled.
pub(super) async fn follow(
    id: u64,
    every: Duration,
    client: &Client,
    sink: &mut dyn Sink,
) -> Result<v1::Operation, CommandError> {
    let mut told = String::new();
    loop {
        let picture = Picture::take(client, false).await?;
        let found = match client.operations(v1::OperationsRequest { id, details: false }).await {
            Ok(answer) => answer.operations.into_iter().next(),
            // A node that was away may not know it yet; that it exists was told before.
            Err(error) if !told.is_empty() && CommandError::from(error.clone()).retry => None,
            Err(error) => return Err(error.into()),
        };
        if let Some(operation) = found {
            let mut shown = item(&operation, &picture);
            let line = watch_line(&operation, &picture);
            // Nothing new is not worth a line.
            if line != told {
                shown.human = Human::Text(line.clone());
                told = line;
                sink.item(shown)?;
                sink.flush()?;
            }
            match operation.state() {
                v1::OperationState::Done => return Ok(operation),
                v1::OperationState::Cancelled => {
                    let outcome = &operation.outcome;
                    return Err(CommandError::new(Class::Conflict, format!("operation {id} was cancelled: {outcome}")));
                }
                _ => {}
            }
        }
        sleep(every).await;
    }
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
    #[allow(clippy::cast_precision_loss, reason = "at most some million moves")]
    let part = operation.moved.min(operation.moves) as f64 / operation.moves as f64;
    part
}

/// What an operation under way waits for, the worst first; empty if nothing stands in its way or it has ended.
#[must_use]
pub fn waiting_for(operation: &v1::Operation, picture: &Picture) -> Vec<String> {
    match operation.state() {
        v1::OperationState::Paused => return vec![format!("paused; op resume {} goes on", operation.id)],
        v1::OperationState::Running => {}
        _ => return Vec::new(),
    }
    let mut reasons = Vec::new();
    if picture.description.leader.is_none() {
        reasons.push("no majority of the voters: nothing can be cut over or cancelled".to_owned());
    }
    let layout = picture.description.layout.as_deref();
    let joint = || layout.into_iter().flat_map(|layout| &layout.partitions).filter_map(|entry| entry.joint.as_ref());
    let receivers: BTreeSet<NodeId> = joint().flat_map(|joint| joint.receivers.iter().map(|it| it.node)).collect();
    for node in receivers.iter().filter(|node| !picture.serves(**node)) {
        let name = picture.description.name_of(*node);
        reasons
            .push(format!("{name} is down and must get copies: start it, or end this with op cancel {}", operation.id));
    }
    let mut told: BTreeSet<String> = BTreeSet::new();
    for snapshot in picture.snapshots() {
        for transfer in snapshot.transfers.iter().filter(|transfer| is_held_up(transfer)) {
            let stalled = if transfer.stalled { "stalled: " } else { "" };
            // One line for all transfers that wait for the same.
            if told.insert(transfer.waiting_for.clone()) {
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
pub(super) fn why_not_gone(picture: &Picture, member: &MemberView) -> String {
    let name = &member.member.name;
    let Some(snapshot) = picture.snapshot(member.id) else {
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
        pending.residue, pending.hints, pending.lag
    )
}

/// An operation as a result.
pub(super) fn item(operation: &v1::Operation, picture: &Picture) -> Item {
    let waiting = waiting_for(operation, picture);
    let waiting = (!waiting.is_empty()).then(|| waiting.join("; "));
    let moment = |us: u64| (us > 0).then(|| rfc3339(us));
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let names = |ids: &[u64]| ids.iter().map(|id| picture.description.name_of(NodeId(*id))).collect::<Vec<_>>();
    let state = state_word(operation.state());
    let end = if operation.ended_us > 0 { operation.ended_us } else { now_us() };
    let took = Duration::from_micros(end.saturating_sub(operation.begun_us));
    let json = json!({
        "schema": 1,
        "id": operation.id,
        "kind": operation.kind,
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
        "joint": operation.joint,
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

/// Whether a transfer has begun and does not get on, for longer than a moment.
fn is_held_up(transfer: &v1::Transfer) -> bool {
    transfer.tries > 0 && !transfer.waiting_for.is_empty() && (transfer.stalled || transfer.idle_us >= HELD_UP_US)
}

/// An operation in one line; it stays the same until something happens.
fn watch_line(operation: &v1::Operation, picture: &Picture) -> String {
    let mut line = format!(
        "operation {} ({}) {}: {} of {} replicas moved ({:.1} %), {} keys, {}",
        operation.id,
        operation.command,
        state_word(operation.state()),
        operation.moved,
        operation.moves,
        progress(operation) * 100.0,
        operation.keys_moved,
        size(operation.bytes_moved)
    );
    for reason in waiting_for(operation, picture) {
        line.push_str(&format!("; waits: {reason}"));
    }
    line
}

fn lines(operation: &v1::Operation, picture: &Picture, throttle: Option<&v1::ThrottleSetting>) -> Vec<String> {
    let moment = |us: u64| if us > 0 { rfc3339(us) } else { NONE.to_owned() };
    let by = if operation.by.is_empty() { String::new() } else { format!(", by {}", operation.by) };
    let mut lines = vec![
        format!("operation {}: {} ({})", operation.id, operation.command, state_word(operation.state())),
        format!(
            "moved     {} of {} replicas ({:.1} %), the minimum is {}; {} receipts",
            operation.moved,
            operation.moves,
            progress(operation) * 100.0,
            operation.moves_minimum,
            operation.receipts
        ),
        format!(
            "copied    {} of {} keys, {} of {}",
            operation.keys_moved,
            operation.keys_planned,
            size(operation.bytes_moved),
            size(operation.bytes_planned)
        ),
        format!(
            "begun     {}{by}; plan {} for epoch {}",
            moment(operation.begun_us),
            operation.plan_hash,
            operation.parent_epoch
        ),
        format!("cut over  first {}, last {}", moment(operation.first_cut_over_us), moment(operation.last_cut_over_us)),
    ];
    if operation.ended_us > 0 {
        lines.push(format!("ended     {}", moment(operation.ended_us)));
    }
    if let Some(throttle) = throttle {
        lines.push(format!("limits    {}", throttle_text(throttle)));
    }
    lines.extend(waiting_for(operation, picture).into_iter().map(|reason| format!("waits     {reason}")));
    if !operation.outcome.is_empty() {
        lines.push(format!("outcome   {}", operation.outcome));
    }
    if !operation.undo.is_empty() {
        lines.push(format!("undo      {}", operation.undo));
    }
    lines
}

fn move_json(step: &v1::OperationMove, names: &Description) -> Value {
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

fn move_line(step: &v1::OperationMove, names: &Description) -> String {
    let name = |id: u64| if id > 0 { names.name_of(NodeId(id)) } else { NONE.to_owned() };
    let state = match (&step.receipt, step.moved) {
        (Some(receipt), moved) => {
            let sources: Vec<String> = receipt.sources.iter().map(|source| name(source.node)).collect();
            let done = if moved { "cut over" } else { "covered" };
            format!("{done}, {} keys, {}, covered by {}", receipt.keys, size(receipt.bytes), sources.join(" "))
        }
        (None, true) => "cut over".to_owned(),
        (None, false) => "waiting".to_owned(),
    };
    format!("{:>6}  {} -> {}  {state}", step.partition, name(step.from), name(step.to))
}

/// The transfers of all nodes that belong to an operation under way.
fn transfers(operation: &v1::Operation, picture: &Picture) -> Vec<Value> {
    let active = matches!(operation.state(), v1::OperationState::Running | v1::OperationState::Paused);
    let name = |id: u64| (id > 0).then(|| picture.description.name_of(NodeId(id)));
    let told = picture
        .snapshots()
        .filter(|_| active)
        .flat_map(|snapshot| snapshot.transfers.iter().map(move |transfer| (snapshot.name.clone(), transfer)));
    told.map(|(to, transfer)| {
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

fn throttle_text(throttle: &v1::ThrottleSetting) -> String {
    let rate = match throttle.bytes_per_second_max {
        None => "no limit on bytes".to_owned(),
        Some(limit) => {
            let by = if throttle.by.is_empty() { String::new() } else { format!(" by {}", throttle.by) };
            format!("{}/s for each receiving node, set by op throttle{by} at {}", size(limit), rfc3339(throttle.set_us))
        }
    };
    format!(
        "{rate}; {} copies at once on each node; {} partitions in joint at once",
        throttle.transfers_max, throttle.joint_max
    )
}

fn throttle_item(throttle: &v1::ThrottleSetting) -> Item {
    let limit = throttle.bytes_per_second_max;
    Item {
        json: json!({
            "schema": 1,
            "bytes_per_second_max": limit,
            "by": (!throttle.by.is_empty()).then(|| throttle.by.clone()),
            "set": (throttle.set_us > 0).then(|| rfc3339(throttle.set_us)),
            "transfers_max": throttle.transfers_max,
            "joint_max": throttle.joint_max,
        }),
        raw: limit.map_or_else(|| "off\n".to_owned(), |limit| format!("{limit}\n")).into_bytes(),
        human: Human::Text(throttle_text(throttle)),
    }
}
