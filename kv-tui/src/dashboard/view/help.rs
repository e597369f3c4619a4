//! What helps an operation that makes no progress: keys that can also be clicked, and commands.

use std::collections::BTreeSet;

use kv_core::types::NodeId;
use kv_proto::v1::OperationState;
use ratatui::layout::Rect;

use super::canvas::Canvas;
use crate::dashboard::cluster::Cluster;
use crate::dashboard::keymap::Action;
use crate::dashboard::model::Model;
use crate::dashboard::mouse::Target;
use crate::dashboard::progress::{MoveId, MoveState, Progress};
use crate::dashboard::theme::Role;
use crate::output::bytes::printable;

/// The most nodes that are named.
const NODES_MAX: usize = 3;

/// What helps: a key, if one does it, and what it does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Remedy {
    action: Option<Action>,
    key: String,
    what: String,
}

/// What helps an operation that makes no progress, the most likely first; empty while it does.
pub(super) fn remedies(model: &Model, cluster: &Cluster, progress: &Progress) -> Vec<Remedy> {
    let by_key = |action: Action, what: String| Remedy { action: Some(action), key: model.keymap.key_of(action), what };
    if progress.operation.state() == OperationState::Paused {
        return vec![by_key(Action::Resume, "resume".to_owned()), by_key(Action::CancelOperation, "cancel".to_owned())];
    }
    if !progress.is_active() {
        return Vec::new();
    }
    let mut helps = Vec::new();
    let unfinished =
        || progress.steps.iter().filter(|(_, step)| !matches!(step.state, MoveState::Moved | MoveState::Undone));
    let away = |node: &u64| *node > 0 && !cluster.snapshot.serves(NodeId(*node));
    let receivers: BTreeSet<u64> = unfinished().map(|((_, to), _)| *to).filter(away).collect();
    let sources: BTreeSet<u64> = unfinished().map(|(_, step)| step.source).filter(away).collect();
    for node in receivers.union(&sources).take(NODES_MAX) {
        let name = printable(cluster.name_of(NodeId(*node)).as_bytes());
        let what = if model.target == "local" { format!(":node start {name}") } else { format!("start {name}") };
        helps.push(Remedy { action: None, key: String::new(), what });
    }
    if unfinished().any(|(_, step)| step.state == MoveState::Stalled) {
        // The key is about the selected move, which may be another one.
        let moves = cluster.moves_of(&model.moves);
        let ids: Vec<MoveId> = moves.iter().map(|(id, _)| *id).collect();
        let selected = moves.get(model.moves.row_in(&ids)).filter(|(_, step)| step.state == MoveState::Stalled);
        helps.extend(selected.map(|((partition, _), _)| by_key(Action::Resume, format!("retry {partition}"))));
        helps.push(by_key(Action::RetryAll, "retry all".to_owned()));
        if cluster.operations.throttle.as_ref().is_some_and(|throttle| throttle.bytes_per_second_max.is_some()) {
            helps.push(by_key(Action::Throttle, "limit".to_owned()));
        }
    }
    if !receivers.is_empty() {
        helps.push(by_key(Action::CancelOperation, "cancel".to_owned()));
    }
    helps
}

/// Draws them in a row; a click on a key presses it.
pub(super) fn draw(canvas: &mut Canvas<'_>, helps: &[Remedy], area: Rect, y: u16) {
    let mut x = canvas.text(area, 0, y, "helps    ", Role::Dim);
    for help in helps {
        let text = if help.key.is_empty() { help.what.clone() } else { format!("[{}] {}", help.key, help.what) };
        let width = canvas.width(&text);
        if x + width > area.width {
            return;
        }
        if let Some(action) = help.action {
            canvas.target(area, x, y, width, Target::Do(action));
        }
        x = canvas.text(area, x, y, &text, Role::Title) + 2;
    }
}
