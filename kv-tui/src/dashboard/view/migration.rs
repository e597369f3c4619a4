//! The migration screen: how far the newest operation is, what flows, what moves, and what was carried out before.

use std::collections::BTreeSet;

use kv_proto::v1;
use ratatui::layout::Rect;

use super::canvas::{Canvas, clock, grouped, known, latency};
use super::{Room, columns, flow, help, moves, plain, safety, split};
use crate::dashboard::cluster::Cluster;
use crate::dashboard::keymap::Action;
use crate::dashboard::level::Level;
use crate::dashboard::model::{MigrationView, Model, Pane};
use crate::dashboard::progress::Progress;
use crate::dashboard::theme::Role;
use crate::output::bytes::printable;
use crate::output::time::size;
use crate::run::operation::{state_word, waiting_for};
use crate::run::report;

/// A line: pieces with their roles.
pub(super) type Line = Vec<(String, Role)>;

/// Rows of the flow and the map where both stand beside each other: the fewest and the most.
const MIDDLE: (u16, u16) = (6, 10);

/// Columns of the flow there, so that 64 partitions fit beside it.
const FLOW: u16 = 44;

/// Rows of the operations that are remembered, with frame: while the keys move elsewhere, and while they move there.
const OPERATIONS: (u16, u16) = (5, 12);

pub(super) fn draw(canvas: &mut Canvas<'_>, model: &Model, cluster: &Cluster, area: Rect, room: Room) {
    let Some(progress) = &cluster.operations.progress else { return draw_empty(canvas, model, cluster, area, room) };
    let width = area.width.saturating_sub(if room.is_framed() { 4 } else { 2 });
    let lines = summary(canvas, model, cluster, progress, width, room);
    let helps = help::remedies(model, cluster, progress);
    let edges = if room.is_framed() { 2 } else { 1 };
    let rows = u16::try_from(lines.len()).unwrap_or(0) + u16::from(!helps.is_empty());
    let (top, below) = split(area, rows + edges);
    let operation = &progress.operation;
    let title = format!("Operation {}: {}", operation.id, printable(operation.command.as_bytes()));
    let title = canvas.fitted(&title, area.width / 2);
    let by =
        if operation.by.is_empty() { String::new() } else { format!(" by {}", printable(operation.by.as_bytes())) };
    let note = format!("begun {}{by}, plan {}", clock(operation.begun_us), operation.plan_hash);
    let inner = canvas.panel(top, plain(&title, &note, room));
    for (y, line) in (0..inner.height).zip(&lines) {
        let mut x = 0;
        for (text, role) in line {
            x = canvas.text(inner, x, y, text, *role);
        }
    }
    if !helps.is_empty() && inner.height > 0 {
        help::draw(canvas, &helps, inner, inner.height - 1);
    }
    match room {
        Room::Wide => {
            let flows: BTreeSet<(u64, u64)> = progress.steps.iter().map(|((_, to), step)| (step.source, *to)).collect();
            let height = u16::try_from(flows.len() * 2 + 2).unwrap_or(u16::MAX).clamp(MIDDLE.0, MIDDLE.1);
            let (middle, rest) = split(below, height.min(below.height / 2));
            let (left, right) = columns(middle, FLOW);
            flow::links(canvas, model, cluster, progress, left, room);
            flow::map(canvas, model, cluster, right, room);
            let remembered = if model.pane == Pane::Side { OPERATIONS.1 } else { OPERATIONS.0 };
            let (table, finished) = split(rest, rest.height.saturating_sub(remembered));
            moves::table(canvas, model, cluster, table, room);
            moves::finished(canvas, model, cluster, finished, room);
        }
        // With less room one part is seen; Tab and v lead to the others.
        _ if model.pane == Pane::Side => moves::finished(canvas, model, cluster, below, room),
        _ => match model.view {
            MigrationView::Moves => moves::table(canvas, model, cluster, below, room),
            MigrationView::Flow => flow::links(canvas, model, cluster, progress, below, room),
            MigrationView::Map => flow::map(canvas, model, cluster, below, room),
        },
    }
}

/// No operation was ever begun.
fn draw_empty(canvas: &mut Canvas<'_>, model: &Model, cluster: &Cluster, area: Rect, room: Room) {
    let inner = canvas.panel(area, plain("Migration", "", room));
    let add = model.keymap.key_of(Action::AddNode);
    let remove = model.keymap.key_of(Action::RemoveNode);
    let texts = [
        ("Nothing is moving, and nothing has been moved yet.".to_owned(), Role::Title),
        (String::new(), Role::Text),
        (format!("{add} adds a node. {remove} on the nodes screen removes one."), Role::Text),
        (":node replace, :node weight, :node zone and :copies change the cluster, too.".to_owned(), Role::Text),
        ("Each shows its plan first; nothing moves before you have confirmed it.".to_owned(), Role::Text),
        (String::new(), Role::Text),
        match safety(canvas, cluster, &cluster.safety().line()) {
            (text, Role::Good) => (text, Role::Text),
            dangerous => dangerous,
        },
    ];
    let mut y = 1;
    for (text, role) in texts {
        for line in canvas.wrapped(&text, inner.width.saturating_sub(2)) {
            canvas.text(inner, 2, y, &line, role);
            y += 1;
        }
    }
}

fn summary(
    canvas: &Canvas<'_>,
    model: &Model,
    cluster: &Cluster,
    progress: &Progress,
    width: u16,
    room: Room,
) -> Vec<Line> {
    let operation = &progress.operation;
    let ((keys, bytes), (keys_all, bytes_all)) = progress.copied();
    let role = Level::from(operation.state()).role();
    let symbol = match operation.state() {
        v1::OperationState::Running => '▶',
        v1::OperationState::Paused => '◆',
        v1::OperationState::Done => '✓',
        v1::OperationState::Cancelled => '✗',
        v1::OperationState::Unspecified => '○',
    };
    let word = state_word(operation.state()).to_uppercase();
    let cells = usize::from(width / 4).min(32);
    let percent = format!("{:5.1}%", progress.share() * 100.0);
    let moves = format!("{}/{} moves", grouped(progress.moved()), grouped(operation.moves));
    let total = if operation.state() == v1::OperationState::Done {
        // What it was expected to be does not matter any more.
        format!("{moves}   {} keys   {}", grouped(keys), size(bytes))
    } else {
        let (keys_all, bytes_all) = (grouped(keys_all), size(bytes_all));
        format!("{moves}   {}/{keys_all} keys   {}/{bytes_all}", grouped(keys), size(bytes))
    };
    let state = (format!("{} {word}", canvas.symbol(symbol)), role);
    let bar = (format!("  {} {percent}", canvas.meter(progress.share(), cells)), Role::Title);
    let fact = |label: &str, text: String, role: Role| {
        vec![(format!("{label:<9}"), Role::Dim), (printable(text.as_bytes()), role)]
    };
    let mut lines = if room == Room::Wide {
        vec![vec![state, bar, (format!("  {total}"), Role::Text)]]
    } else {
        vec![vec![state, bar], vec![(total, Role::Text)]]
    };
    let throttle = cluster.operations.throttle.as_ref();
    let speed = report::speed(progress, throttle);
    let time = report::time(progress, &cluster.snapshot, model.now_us);
    if room == Room::Wide {
        lines.push(fact("speed", format!("{speed}   {time}"), Role::Text));
    } else {
        lines.push(fact("speed", speed, Role::Text));
        lines.push(fact("time", time, Role::Text));
    }
    let may_fail = cluster.safety();
    if room == Room::Small {
        let (text, role) = safety(canvas, cluster, &may_fail.short_line());
        lines.push(fact("safety", text, role));
    } else {
        let first = known(Some(operation.first_cut_over_us).filter(|us| *us > 0), clock);
        let phases = report::phases(progress, canvas.symbol('→'));
        lines.push(fact("phases", format!("{phases} (first {first})"), Role::Text));
        lines.push(fact("clients", effect(cluster), Role::Text));
        let (text, role) = safety(canvas, cluster, &may_fail.line());
        lines.push(fact("safety", text, role));
    }
    let waits = waiting_for(operation, &cluster.snapshot).join("; ");
    if !waits.is_empty() {
        lines.push(fact("waits", waits, Role::Warn));
    } else if !operation.outcome.is_empty() {
        lines.push(fact("outcome", operation.outcome.clone(), Role::Text));
    } else if !operation.undo.is_empty() && !progress.is_active() {
        lines.push(fact("undo", operation.undo.clone(), Role::Text));
    }
    for line in &mut lines {
        let before: u16 = line.iter().rev().skip(1).map(|(text, _)| canvas.width(text)).sum();
        if let Some((text, _)) = line.last_mut() {
            *text = canvas.fitted(text, width.saturating_sub(before));
        }
    }
    lines
}

/// What clients notice.
fn effect(cluster: &Cluster) -> String {
    let worst =
        cluster.snapshot.node_reports().filter_map(|reported| reported.usage).map(|usage| usage.latency_p99_us).max();
    let before = known(cluster.operations.p99_before_us, latency);
    let now = known(worst.filter(|us| *us > 0), latency);
    let failed = cluster.operations.failures_since();
    format!("p99 {before} before, {now} now   {} requests failed since it began", grouped(failed))
}
