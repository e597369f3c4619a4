//! The migration screen: how far the newest operation is, what flows, what moves, and what was carried out before.

use std::collections::BTreeSet;
use std::time::Duration;

use kv_core::types::NodeId;
use kv_proto::v1;
use ratatui::layout::Rect;

use super::canvas::{Canvas, clock, grouped, known, latency};
use super::{Room, columns, flow, moves, plain, split};
use crate::dashboard::cluster::Cluster;
use crate::dashboard::keymap::Action;
use crate::dashboard::model::{MigrationView, Model, Pane};
use crate::dashboard::progress::{MoveState, Progress};
use crate::dashboard::theme::Role;
use crate::output::bytes::printable;
use crate::output::time::{short, size};
use crate::run::operation::{state_word, waiting_for};

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
    let edges = if room.is_framed() { 2 } else { 1 };
    let (top, below) = split(area, u16::try_from(lines.len()).unwrap_or(0) + edges);
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
        (cluster.safety.line(), Role::Text),
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
    let (symbol, role) = match operation.state() {
        v1::OperationState::Running => ('▶', Role::Good),
        v1::OperationState::Paused => ('◆', Role::Warn),
        v1::OperationState::Done => ('✓', Role::Good),
        v1::OperationState::Cancelled => ('✗', Role::Bad),
        v1::OperationState::Unspecified => ('○', Role::Dim),
    };
    let word = state_word(operation.state()).to_uppercase();
    let cells = usize::from(width / 4).min(32);
    let percent = format!("{:5.1}%", progress.share() * 100.0);
    let total = format!(
        "  {}/{} moves   {}/{} keys   {}/{}",
        grouped(operation.moved),
        grouped(operation.moves),
        grouped(keys),
        grouped(keys_all),
        size(bytes),
        size(bytes_all)
    );
    let state = format!("{} {word}", canvas.symbol(symbol));
    let bar = format!("  {} {percent}", canvas.meter(progress.share(), cells));
    let mut lines = if room == Room::Wide {
        vec![vec![(state, role), (bar, Role::Title), (total, Role::Text)]]
    } else {
        vec![vec![(state, role), (bar, Role::Title)], vec![(total.trim_start().to_owned(), Role::Text)]]
    };
    lines.push(vec![(speed(model, cluster, progress), Role::Text)]);
    lines.push(vec![(phases(canvas, progress), Role::Text)]);
    if room != Room::Small {
        lines.push(vec![(effect(cluster), Role::Text)]);
    }
    let safety = &cluster.safety;
    lines.push(vec![
        ("safety   ".to_owned(), Role::Dim),
        (safety.line(), if safety.is_short() { Role::Bad } else { Role::Good }),
    ]);
    let waits = waiting_for(operation, &cluster.picture).join("; ");
    if !waits.is_empty() {
        lines.push(vec![("waits    ".to_owned(), Role::Dim), (printable(waits.as_bytes()), Role::Warn)]);
    } else if !operation.outcome.is_empty() {
        lines.push(vec![("outcome  ".to_owned(), Role::Dim), (printable(operation.outcome.as_bytes()), Role::Text)]);
    } else if !operation.undo.is_empty() && !progress.is_active() {
        lines.push(vec![("undo     ".to_owned(), Role::Dim), (printable(operation.undo.as_bytes()), Role::Text)]);
    }
    for line in &mut lines {
        if let Some((text, _)) = line.last_mut() {
            *text = canvas.fitted(text, width);
        }
    }
    lines
}

/// Rate, limit with its source, elapsed and left.
fn speed(model: &Model, cluster: &Cluster, progress: &Progress) -> String {
    let operation = &progress.operation;
    let end = if operation.ended_us > 0 { operation.ended_us } else { model.now_us };
    // Whole seconds: fractions would be the only thing that moves.
    let elapsed = short(Duration::from_secs(end.saturating_sub(operation.begun_us) / 1_000_000));
    let throttle = cluster.operations.throttle.as_ref();
    let limit = match throttle.and_then(|throttle| Some((throttle, throttle.bytes_per_second_max?))) {
        None => "no limit".to_owned(),
        Some((throttle, limit)) => {
            let by = if throttle.by.is_empty() { String::new() } else { format!(", set by {}", throttle.by) };
            format!("limit {}/s a receiver{by}", size(limit))
        }
    };
    if !progress.is_active() {
        return format!("took     {elapsed}   {}", printable(limit.as_bytes()));
    }
    let eta = match progress.eta() {
        Some((left, slowest)) => {
            let left = short(Duration::from_secs(left.as_secs().max(1)));
            format!("about {left} left, {} is the slowest", cluster.name_of(NodeId(slowest)))
        }
        None => "no end in sight yet".to_owned(),
    };
    let rate = format!("{}/s", size(whole(progress.rate())));
    printable(format!("speed    {rate}   {limit}   {elapsed} so far, {eta}").as_bytes())
}

/// A rate in whole bytes.
pub(super) fn whole(rate: f64) -> u64 {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate above 0; casts saturate")]
    let whole = rate.max(0.0) as u64;
    whole
}

fn phases(canvas: &Canvas<'_>, progress: &Progress) -> String {
    let operation = &progress.operation;
    let count = |state: MoveState| progress.count(state);
    let arrow = canvas.symbol('→');
    let first = known(Some(operation.first_cut_over_us).filter(|us| *us > 0), clock);
    let mut text = format!(
        "phases   {} wait {arrow} {} copy {arrow} {} verify {arrow} {} covered {arrow} {} moved (first {first})",
        count(MoveState::Waiting),
        count(MoveState::Copying) + count(MoveState::Stalled),
        count(MoveState::Verifying),
        count(MoveState::Covered),
        count(MoveState::Moved),
    );
    let undone = count(MoveState::Undone);
    if undone > 0 {
        text.push_str(&format!(", {undone} undone"));
    }
    text
}

/// What clients notice.
fn effect(cluster: &Cluster) -> String {
    let worst = cluster.picture.snapshots().filter_map(|told| told.usage).map(|usage| usage.latency_p99_us).max();
    let before = known(cluster.operations.p99_before_us, latency);
    let now = known(worst.filter(|us| *us > 0), latency);
    let failed = cluster.operations.failures_since(&cluster.picture);
    format!("clients  p99 {before} before, {now} now   {} requests failed since it began", grouped(failed))
}
