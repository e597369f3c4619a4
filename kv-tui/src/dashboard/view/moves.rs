//! The table of moves, and the operations that are remembered.

use std::time::Duration;

use kv_core::types::NodeId;
use kv_proto::v1;
use ratatui::layout::Rect;

use super::canvas::{Canvas, clock, grouped};
use super::{Room, filter_note, pane, split};
use crate::dashboard::cluster::Cluster;
use crate::dashboard::columns::MoveOrder;
use crate::dashboard::level::Level;
use crate::dashboard::list::top_of;
use crate::dashboard::model::{Model, Pane};
use crate::dashboard::mouse::Target;
use crate::dashboard::progress::{MoveId, MoveState, Progress, Step};
use crate::dashboard::theme::Role;
use crate::output::bytes::printable;
use crate::output::time::{short, size};
use crate::run::operation::state_word;
use crate::run::report::{self, seconds, whole};

/// The symbol and the role of a state.
fn mark(state: MoveState) -> (char, Role) {
    let symbol = match state {
        MoveState::Stalled => '▲',
        MoveState::Copying | MoveState::Verifying => '▶',
        MoveState::Covered | MoveState::Moved => '✓',
        MoveState::Waiting => '·',
        MoveState::Undone => '✗',
    };
    (symbol, Level::from(state).role())
}

/// Draws the moves and, below them, what there is to say of the selected one.
pub(super) fn table(canvas: &mut Canvas<'_>, model: &Model, cluster: &Cluster, area: Rect, room: Room) {
    let moves = cluster.moves_of(&model.moves);
    let Some(progress) = &cluster.operations.progress else { return };
    let count = |state: MoveState| progress.count(state);
    let active = count(MoveState::Copying) + count(MoveState::Verifying) + count(MoveState::Stalled);
    let title =
        format!("Moves: {active} active, {} waiting, {} moved", count(MoveState::Waiting), count(MoveState::Moved));
    let order = match model.moves.sort {
        MoveOrder::State => "busy first",
        MoveOrder::Partition => "by partition",
        MoveOrder::Node => "by source",
        MoveOrder::Progress => "by progress",
        MoveOrder::Rate => "by rate",
        MoveOrder::Eta => "by time left",
    };
    let filter = filter_note(&model.moves.filter, moves.len(), progress.steps.len());
    let gap = if filter.is_empty() { "" } else { "   " };
    let turned = if model.moves.reverse { ", turned round" } else { "" };
    let note = format!("{filter}{gap}{order}{turned}");
    let inner = canvas.panel(area, pane(model, Pane::Main, &title, &note, room));
    let detail = u16::from(inner.height > 4);
    let (inner, below) = split(inner, inner.height.saturating_sub(detail));
    let columns = Columns::of(inner.width);
    columns.header(canvas, model, inner);
    let ids: Vec<MoveId> = moves.iter().map(|(id, _)| *id).collect();
    let cursor = model.moves.row_in(&ids);
    let rows = usize::from(inner.height.saturating_sub(1));
    if moves.is_empty() {
        let text = if progress.steps.is_empty() { "its moves are not known" } else { "no move passes the filter" };
        canvas.text(inner, 2, 1, text, Role::Dim);
    }
    for (y, (at, (id, step))) in (1_u16..).zip(moves.iter().enumerate().skip(top_of(cursor, rows)).take(rows)) {
        if at == cursor {
            canvas.text(inner, 0, y, &canvas.symbol('▸').to_string(), Role::Title);
        }
        columns.row(canvas, cluster, *id, step, inner, y);
        canvas.target(inner, 0, y, inner.width, Target::Move(*id));
    }
    if let Some((id, step)) = moves.get(cursor) {
        let text = canvas.fitted(&about(cluster, progress, *id, step), below.width);
        let role = match Level::from(step.state) {
            Level::Good | Level::Quiet => Role::Dim,
            level => level.role(),
        };
        canvas.text(below, 0, 0, &text, role);
    }
}

/// Whether a move that is not done yet would be read from a node that does not serve.
fn is_away(cluster: &Cluster, step: &Step) -> bool {
    let open = !matches!(step.state, MoveState::Covered | MoveState::Moved | MoveState::Undone);
    open && step.source > 0 && !cluster.snapshot.serves(NodeId(step.source))
}

/// What there is to say of a move.
fn about(cluster: &Cluster, progress: &Progress, (partition, to): MoveId, step: &Step) -> String {
    let name = |node: u64| cluster.name_of(NodeId(node));
    let place = if step.from == 0 { "a new copy".to_owned() } else { format!("the place of {}", name(step.from)) };
    let away = if is_away(cluster, step) { ", which does not serve now" } else { "" };
    let mut text = format!("partition {partition}: {} gets {place}, read from {}{away}", name(to), name(step.source));
    if !step.covered_by.is_empty() {
        let sources: Vec<String> = step.covered_by.iter().map(|node| name(*node)).collect();
        text.push_str(&format!("; proven complete against {}", sources.join(" and ")));
    }
    let reason = report::reason(progress, cluster.operations.throttle.as_ref(), step);
    if !reason.is_empty() {
        text.push_str(&format!("; {reason}"));
    }
    printable(text.as_bytes())
}

/// The cell that says from where to where a move goes.
const ENDS: usize = 1;

/// Where the columns end, from the width; what has no room is left out.
struct Columns {
    meter: usize,
    rate: bool,
    keys: bool,
    width: u16,
}

impl Columns {
    fn of(width: u16) -> Self {
        let meter = match width {
            110.. => 14,
            74.. => 10,
            _ => 6,
        };
        Self { meter, rate: width >= 74, keys: width >= 96, width }
    }

    /// The cells of a row or of the header: text, width, whether it is aligned right, and what it sorts by.
    fn cells(&self, texts: [String; 9]) -> Vec<(String, u16, bool, Option<MoveOrder>)> {
        let [partition, ends, meter, keys, rate, eta, tries, check, state] = texts;
        let meter_width = u16::try_from(self.meter).unwrap_or(24) + 6;
        let mut cells = vec![
            (partition, 7, true, Some(MoveOrder::Partition)),
            (ends, 12, false, Some(MoveOrder::Node)),
            (meter, meter_width, false, Some(MoveOrder::Progress)),
        ];
        if self.keys {
            cells.push((keys, 16, true, None));
        }
        if self.rate {
            cells.push((rate, 12, true, Some(MoveOrder::Rate)));
        }
        cells.push((eta, 7, true, Some(MoveOrder::Eta)));
        if self.keys {
            cells.push((tries, 4, true, None));
            cells.push((check, 8, false, None));
        }
        cells.push((state, self.width, false, Some(MoveOrder::State)));
        cells
    }

    fn header(&self, canvas: &mut Canvas<'_>, model: &Model, area: Rect) {
        let titles = ["PART", "FROM > TO", "PROGRESS", "KEYS", "RATE", "LEFT", "TRY", "CHECK", "STATE"];
        let mut x = 1;
        for (title, width, right, order) in self.cells(titles.map(str::to_owned)) {
            let sorted = order == Some(model.moves.sort);
            let arrow = if sorted { canvas.symbol('▼').to_string() } else { String::new() };
            let role = if sorted { Role::Title } else { Role::Dim };
            let text = format!("{title}{arrow}");
            if right {
                canvas.right(area, x + width, 0, &text, role);
            } else {
                canvas.text(area, x + 1, 0, &text, role);
            }
            if let Some(order) = order {
                canvas.target(area, x, 0, width, Target::MoveColumn(order));
            }
            x += width + 1;
        }
    }

    fn row(&self, canvas: &mut Canvas<'_>, cluster: &Cluster, id: MoveId, step: &Step, area: Rect, y: u16) {
        let name = |node: u64| match node {
            0 => "-".to_owned(),
            node => printable(cluster.name_of(NodeId(node)).as_bytes()),
        };
        let (symbol, role) = mark(step.state);
        // From whom it is read, which may be another node than the one whose place is taken.
        let away = is_away(cluster, step);
        let mark = if away { canvas.symbol('✗').to_string() } else { String::new() };
        let ends = canvas.fitted(&format!("{mark}{} {} {}", name(step.source), canvas.symbol('→'), name(id.1)), 12);
        let state = if step.waiting_for().is_empty() {
            format!("{} {}", canvas.symbol(symbol), step.state.word())
        } else {
            format!("{} {}: {}", canvas.symbol(symbol), step.state.word(), printable(step.waiting_for().as_bytes()))
        };
        let eta = Progress::step_eta(step).map_or_else(|| "-".to_owned(), seconds);
        let texts = [
            id.0.to_string(),
            ends,
            format!("{} {:>3.0}%", canvas.meter(step.share, self.meter), (step.share * 100.0).floor()),
            format!("{}/{}", grouped(step.copied.0), grouped(step.total.0)),
            if step.rate >= 1.0 { format!("{}/s", size(whole(step.rate))) } else { "-".to_owned() },
            eta,
            if step.tries == 0 { "-".to_owned() } else { step.tries.to_string() },
            if step.covered_by.is_empty() { "-".to_owned() } else { format!("{} roots", step.covered_by.len()) },
            state,
        ];
        let cells = self.cells(texts);
        let last = cells.len() - 1;
        let mut x = 1;
        for (at, (text, width, right, _)) in cells.into_iter().enumerate() {
            if right {
                canvas.right(area, x + width, y, &text, Role::Text);
            } else {
                let text = canvas.fitted(&text, area.width.saturating_sub(x + 1));
                let role = match at {
                    _ if at == last => role,
                    ENDS if away => Role::Bad,
                    _ => Role::Text,
                };
                canvas.text(area, x + 1, y, &text, role);
            }
            x += width + 1;
        }
    }
}

/// Draws all operations, the newest first. Enter shows one with its receipts.
pub(super) fn finished(canvas: &mut Canvas<'_>, model: &Model, cluster: &Cluster, area: Rect, room: Room) {
    let operations = cluster.operations.listed(&model.operations);
    let all = cluster.operations.all.len();
    let filter = filter_note(&model.operations.filter, operations.len(), all);
    let note = if filter.is_empty() { "Enter shows the receipts".to_owned() } else { filter };
    let inner = canvas.panel(area, pane(model, Pane::Side, "Operations", &note, room));
    let ids: Vec<u64> = operations.iter().map(|operation| operation.id).collect();
    let cursor = model.operations.row_in(&ids);
    let rows = usize::from(inner.height);
    for (y, (at, operation)) in (0_u16..).zip(operations.iter().enumerate().skip(top_of(cursor, rows)).take(rows)) {
        if at == cursor && model.pane == Pane::Side {
            canvas.text(inner, 0, y, &canvas.symbol('▸').to_string(), Role::Title);
        }
        let role = match operation.state() {
            v1::OperationState::Running => Role::Text,
            state => Level::from(state).role(),
        };
        canvas.right(inner, 6, y, &operation.id.to_string(), Role::Text);
        canvas.text(inner, 8, y, state_word(operation.state()), role);
        let end = if operation.ended_us > 0 { operation.ended_us } else { model.now_us };
        let took = short(Duration::from_secs(end.saturating_sub(operation.begun_us) / 1_000_000));
        let stats = cluster.operations.stats(operation);
        let mut text = format!(
            "{}  {}  {}/{} moves, {} keys, {}, {took}",
            clock(operation.begun_us),
            operation.command,
            grouped(stats.moved),
            grouped(operation.moves),
            grouped(stats.keys),
            size(stats.bytes),
        );
        if !operation.undo.is_empty() && operation.ended_us > 0 {
            text.push_str(&format!("   undo: {}", operation.undo));
        }
        let text = canvas.fitted(&printable(text.as_bytes()), inner.width.saturating_sub(19));
        canvas.text(inner, 19, y, &text, Role::Text);
        canvas.target(inner, 0, y, inner.width, Target::Operation(operation.id));
    }
}
