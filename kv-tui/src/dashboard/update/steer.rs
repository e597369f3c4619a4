//! What steers the operation under way, and what is looked at of operations.

use std::time::Duration;

use kv_proto::v1;
use kv_proto::v1::OperationState;

use super::typing::{start, start_quietly};
use crate::dashboard::bar::Bar;
use crate::dashboard::confirm::Confirm;
use crate::dashboard::dialog::Dialog;
use crate::dashboard::keymap::Action;
use crate::dashboard::model::{Model, Pane};
use crate::dashboard::msg::{Ask, Effect};
use crate::dashboard::planning::rate_text;
use crate::dashboard::progress::{MoveId, MoveState};
use crate::output::bytes::printable;
use crate::output::time::short;
use crate::run::operation::why_not_gone;

/// The word that must be typed before an operation is cancelled.
const WORD: &str = "cancel";

pub(super) fn act(model: &mut Model, action: Action) -> Vec<Effect> {
    if model.read_only {
        "this changes the cluster, and only reading is allowed".clone_into(&mut model.notice);
        return Vec::new();
    }
    if action == Action::Throttle {
        let limit = model.shown().and_then(|cluster| cluster.operations.throttle.as_ref()?.bytes_per_second_max);
        let limit = limit.map_or_else(|| "16MiB/s".to_owned(), rate_text);
        model.bar = Some(Bar::with(&format!("op throttle {limit}")));
        return Vec::new();
    }
    let operations = model.cluster.as_ref().map(|cluster| &cluster.operations);
    let active = operations.and_then(|operations| operations.active().map(|operation| (operations, operation)));
    let active = active.map(|(operations, operation)| {
        let left = operation.moves.saturating_sub(operations.stats(operation).moved);
        (operation.id, operation.state(), operation.command.clone(), left)
    });
    let Some((id, state, command, left)) = active else {
        "no operation is under way".clone_into(&mut model.notice);
        return Vec::new();
    };
    match (action, state) {
        (Action::Pause, _) => start_quietly(model, format!("op pause {id}")),
        (Action::Resume, OperationState::Paused) => start_quietly(model, format!("op resume {id}")),
        (Action::RetryAll, _) => start_quietly(model, format!("op retry {id}")),
        (Action::Resume, _) => retry(model, id),
        _ => {
            let what = format!("ends operation {id} ({command}): {left} replicas are not moved, what has moved stays");
            let confirm = Confirm::new(format!("op cancel {id}"), what, WORD.to_owned());
            model.dialog = Some(Dialog::Confirm(Box::new(confirm)));
            Vec::new()
        }
    }
}

/// Restarts the selected move.
fn retry(model: &mut Model, id: u64) -> Vec<Effect> {
    let selected = model.shown().and_then(|cluster| {
        let moves = cluster.moves_of(&model.moves);
        let ids: Vec<MoveId> = moves.iter().map(|(id, _)| *id).collect();
        moves.get(model.moves.row_in(&ids)).map(|((partition, _), step)| (*partition, step.state))
    });
    match selected {
        None => "no move is selected".clone_into(&mut model.notice),
        Some((partition, MoveState::Moved)) => {
            model.notice = format!("partition {partition} has moved; there is nothing to restart");
        }
        Some((partition, _)) => return start_quietly(model, format!("op retry {id} {partition}")),
    }
    Vec::new()
}

/// Writes an operation to a file: the selected one, or the newest.
pub(super) fn export(model: &mut Model) -> Vec<Effect> {
    let Some(id) = meant(model) else {
        "no operation was ever begun".clone_into(&mut model.notice);
        return Vec::new();
    };
    model.notice = format!("writing operation {id}");
    vec![Effect::Ask(Ask::Export { id })]
}

/// The operation that is meant: the selected one where they are listed, else the newest.
fn meant(model: &Model) -> Option<u64> {
    let newest = model.shown().and_then(|cluster| cluster.operations.all.last()).map(|operation| operation.id);
    if model.pane == Pane::Side { selected_operation(model) } else { newest }
}

/// The number of the selected operation; `None`: there is none.
pub(super) fn selected_operation(model: &Model) -> Option<u64> {
    let operations = model.shown()?.operations.listed(&model.operations);
    let ids: Vec<u64> = operations.iter().map(|operation| operation.id).collect();
    ids.get(model.operations.row_in(&ids)).copied()
}

/// The partition of the selected move.
pub(super) fn selected_move(model: &Model) -> Option<String> {
    let moves = model.shown()?.moves_of(&model.moves);
    let ids: Vec<MoveId> = moves.iter().map(|(id, _)| *id).collect();
    ids.get(model.moves.row_in(&ids)).map(|(partition, _)| partition.to_string())
}

/// Shows an operation with its receipts: the selected one, or the newest.
pub(super) fn show(model: &mut Model) -> Vec<Effect> {
    meant(model).map_or_else(Vec::new, |id| start(model, format!("op show {id}"), false))
}

/// Tells of an operation that is followed when it has ended, and the nodes that it removed have left.
pub(super) fn on_change(model: &mut Model) {
    let Some((operation, leaving)) = followed(model) else { return };
    if operation.ended_us == 0 || leaving.is_some() {
        return;
    }
    let (id, command) = (operation.id, &operation.command);
    let moved = model.cluster.as_ref().map_or(operation.moved, |cluster| cluster.operations.stats(operation).moved);
    let text = match operation.state() {
        OperationState::Cancelled => {
            format!("operation {id} ({command}) was cancelled: {}", operation.outcome)
        }
        _ => {
            let took = Duration::from_secs(operation.ended_us.saturating_sub(operation.begun_us) / 1_000_000);
            format!("operation {id} ({command}) is done: {moved} replicas moved in {}", short(took))
        }
    };
    model.notice = printable(text.as_bytes());
    model.followed = None;
}

/// The operation that is followed, and why nodes that it removed are still members.
#[must_use]
pub fn followed(model: &Model) -> Option<(&v1::Operation, Option<String>)> {
    let hash = model.followed.as_ref()?;
    let cluster = model.cluster.as_ref()?;
    let operation = cluster.operations.all.iter().rev().find(|operation| operation.plan_hash == *hash)?;
    let members = &cluster.snapshot.description.members;
    let done = operation.state() == OperationState::Done;
    // Who is not in reach does not leave by waiting for it.
    let left = members.iter().find(|member| {
        done && operation.leaving.contains(&member.id.0) && cluster.snapshot.report(member.id).is_some()
    });
    Some((operation, left.map(|member| why_not_gone(&cluster.snapshot, member))))
}
