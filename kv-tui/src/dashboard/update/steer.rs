//! What steers the operation under way, and what is looked at of operations.

use super::typing::{start, start_quietly};
use crate::dashboard::bar::Bar;
use crate::dashboard::dialog::{Confirm, Dialog};
use crate::dashboard::keymap::Action;
use crate::dashboard::model::{Model, Pane};
use crate::dashboard::msg::Effect;
use crate::dashboard::progress::MoveId;
use kv_proto::v1::OperationState;

/// The word that must be typed before an operation is cancelled.
const WORD: &str = "cancel";

pub(super) fn act(model: &mut Model, action: Action) -> Vec<Effect> {
    if model.read_only {
        "this changes the cluster, and only reading is allowed".clone_into(&mut model.notice);
        return Vec::new();
    }
    if action == Action::Throttle {
        let limit = model.shown().and_then(|cluster| cluster.operations.throttle.as_ref()?.bytes_per_second_max);
        let limit = limit.map_or_else(|| "16MiB/s".to_owned(), |limit| format!("{limit}/s"));
        model.bar = Some(Bar::with(&format!("op throttle {limit}")));
        return Vec::new();
    }
    let active = model.cluster.as_ref().and_then(|cluster| cluster.operations.active()).map(|operation| {
        let left = operation.moves.saturating_sub(operation.moved);
        (operation.id, operation.state(), operation.command.clone(), left)
    });
    let Some((id, state, command, left)) = active else {
        "no operation is under way".clone_into(&mut model.notice);
        return Vec::new();
    };
    match (action, state) {
        (Action::Pause, _) => start_quietly(model, format!("op pause {id}")),
        (Action::Resume, OperationState::Paused) => start_quietly(model, format!("op resume {id}")),
        (Action::Resume, _) => start_quietly(model, format!("op retry {id}")),
        _ => {
            let what = format!("ends operation {id} ({command}): {left} replicas are not moved, what has moved stays");
            let confirm = Confirm::new(format!("op cancel {id}"), what, WORD.to_owned());
            model.dialog = Some(Dialog::Confirm(Box::new(confirm)));
            Vec::new()
        }
    }
}

/// The number of the selected operation; `None`: there is none.
pub(super) fn selected_operation(model: &Model) -> Option<u64> {
    let operations = model.shown()?.operations_of(&model.operations);
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
    let newest = model.shown().and_then(|cluster| cluster.operations.all.last()).map(|operation| operation.id);
    let id = if model.pane == Pane::Side { selected_operation(model) } else { newest };
    id.map_or_else(Vec::new, |id| start(model, format!("op show {id}"), false))
}
