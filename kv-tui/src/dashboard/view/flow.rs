//! What flows from where to where, and the partitions in token order as they move.

use kv_core::types::NodeId;
use ratatui::layout::Rect;

use super::canvas::Canvas;
use super::{Room, plain};
use crate::dashboard::cluster::Cluster;
use crate::dashboard::level::Level;
use crate::dashboard::model::Model;
use crate::dashboard::progress::{Flow, Link, MoveState, Progress};
use crate::dashboard::theme::{Role, Theme};
use crate::output::bytes::printable;
use crate::output::time::size;
use crate::run::report::{seconds, whole};

/// Cells between two marks of a line along which bytes flow.
const STRIDE: u64 = 7;

/// Columns of the labels of the map.
const LABEL: u16 = 5;

/// Draws a line for each source and receiver. The marks on it step when bytes have arrived, and only then.
pub(super) fn links(
    canvas: &mut Canvas<'_>,
    _model: &Model,
    cluster: &Cluster,
    progress: &Progress,
    area: Rect,
    room: Room,
) {
    let flows = progress.flows();
    let inner = canvas.panel(area, plain("Flow", "a mark steps when bytes arrive", room));
    let rows = if inner.height < 2 * u16::try_from(flows.len()).unwrap_or(u16::MAX) { 1 } else { 2 };
    let fitting = usize::from(inner.height / rows);
    // What is busy is shown before what is done.
    let mut order: Vec<(&(u64, u64), &Flow)> = flows.iter().collect();
    order.sort_by_key(|(_, flow)| flow.moved == flow.moves);
    let none = Link::default();
    for (y, ((from, to), flow)) in (0..inner.height).step_by(usize::from(rows)).zip(order.iter().take(fitting)) {
        let link = progress.links.get(&(*from, *to)).unwrap_or(&none);
        let away = flow.moved < flow.moves && !cluster.snapshot.serves(NodeId(*from)) && progress.is_active();
        let x = draw_end(canvas, cluster, *from, away, inner, 0, y);
        let rate = format!("{:>11}/s ", size(whole(flow.rate)));
        let end = canvas.width(&rate) + 12;
        let width = inner.width.saturating_sub(x + end).max(4);
        let role = if flow.stalled { Role::Warn } else { Role::Text };
        let line = canvas.text(inner, x, y, &marked(canvas, link, width), role);
        let line = canvas.text(inner, line + 1, y, &rate, Role::Text);
        draw_end(canvas, cluster, *to, false, inner, line, y);
        if rows > 1 {
            let text = about(canvas, flow);
            let text = canvas.fitted(&text, inner.width.saturating_sub(3));
            canvas.text(inner, 2, y + 1, &text, if flow.stalled { Role::Warn } else { Role::Dim });
        }
    }
    if order.len() > fitting && inner.height > 0 {
        let text = format!(" {} more ", order.len() - fitting);
        canvas.right(inner, inner.width, inner.height - 1, &text, Role::Dim);
    }
    if order.is_empty() {
        canvas.text(inner, 0, 0, "the moves of this operation are not known", Role::Dim);
    }
}

/// Draws a node at one end of a line; `away`: it does not serve, and is marked.
fn draw_end(canvas: &mut Canvas<'_>, cluster: &Cluster, node: u64, away: bool, area: Rect, x: u16, y: u16) -> u16 {
    let index = cluster.index(NodeId(node));
    if away {
        let name = canvas.fitted(&printable(cluster.name_of(NodeId(node)).as_bytes()), 8);
        return canvas.text(area, x, y, &format!("{} {name} ", canvas.symbol('✗')), Role::Bad);
    }
    let letter = index.map_or('?', Theme::letter);
    let name = canvas.fitted(&printable(cluster.name_of(NodeId(node)).as_bytes()), 8);
    canvas.text(area, x, y, &format!("{letter} {name} "), index.map_or(Role::Dim, Role::Node))
}

fn marked(canvas: &Canvas<'_>, link: &Link, width: u16) -> String {
    let (line, mark) = (canvas.symbol('━'), canvas.symbol('▸'));
    let at = |x: u64| if link.ticks > 0 && x % STRIDE == link.ticks % STRIDE { mark } else { line };
    (0..u64::from(width)).map(at).collect()
}

fn about(canvas: &Canvas<'_>, flow: &Flow) -> String {
    let mut text = format!("{} of {} replicas, {:.0}%", flow.moved, flow.moves, (flow.share * 100.0).floor());
    if flow.moved == flow.moves {
        text.push_str(&format!(", {} done", canvas.symbol('✓')));
    } else if flow.stalled {
        text.push_str(&format!(", {} stalled", canvas.symbol('▲')));
    } else if let Some(left) = flow.eta {
        text.push_str(&format!(", about {}", seconds(left)));
    }
    text
}

/// Draws the partitions in token order: how each of them is, and who has got those that have moved.
pub(super) fn map(canvas: &mut Canvas<'_>, model: &Model, cluster: &Cluster, area: Rect, room: Room) {
    let count = cluster.snapshot.description.layout.as_deref().map_or(0, |layout| layout.partitions.len());
    let moving = cluster.operations.moving();
    let cursor = {
        let ids: Vec<_> = cluster.moves_of(&model.moves).into_iter().map(|(id, _)| id).collect();
        ids.get(model.moves.row_in(&ids)).map(|(partition, _)| *partition)
    };
    let [stays, will, busy, stalled, undone] = ['·', '○', '▸', '▲', '✗'].map(|symbol| canvas.symbol(symbol));
    let note = format!("{stays} stays {will} will {busy} moving {stalled} stalled {undone} undone A moved");
    let inner = canvas.panel(area, plain("Map", &note, room));
    let label = if count > 9999 { LABEL + 1 } else { LABEL };
    let fitting = usize::from(inner.width.saturating_sub(label));
    let across = [64, 32, 16].into_iter().find(|across| across + across / 16 - 1 <= fitting).unwrap_or(16);
    let rows = usize::from(inner.height);
    let all = count.div_ceil(across);
    // The part with the selected move is the one that is shown.
    let at = cursor.and_then(|partition| usize::try_from(partition).ok()).unwrap_or(0) / across;
    let first = if all > rows { at.saturating_sub(rows / 2).min(all - rows) } else { 0 };
    for (y, row) in (0..inner.height).zip(first..all) {
        canvas.right(inner, label - 1, y, &(row * across).to_string(), Role::Dim);
        for column in 0..across.min(count - row * across) {
            let partition = u32::try_from(row * across + column).unwrap_or(u32::MAX);
            let (symbol, role) = match moving.get(&partition) {
                None => (stays, Role::Dim),
                Some((MoveState::Moved, to)) => {
                    let index = cluster.index(NodeId(*to));
                    (index.map_or('?', Theme::letter), index.map_or(Role::Text, Role::Node))
                }
                Some((MoveState::Waiting, _)) => (will, Role::Text),
                Some((state @ MoveState::Stalled, _)) => (stalled, Level::from(*state).role()),
                Some((state @ MoveState::Undone, _)) => (undone, Level::from(*state).role()),
                Some((MoveState::Copying | MoveState::Verifying | MoveState::Covered, _)) => (busy, Role::Focus),
            };
            let role = if cursor == Some(partition) { Role::Selected } else { role };
            let x = label + u16::try_from(column + column / 16).unwrap_or(u16::MAX - label);
            canvas.text(inner, x, y, &symbol.to_string(), role);
        }
    }
    if all > rows && inner.height > 0 {
        canvas.right(inner, inner.width, inner.height - 1, &format!(" {rows} of {all} lines "), Role::Dim);
    }
}
