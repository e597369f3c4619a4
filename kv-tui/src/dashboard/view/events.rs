//! What happened, newest first.

use kv_core::types::NodeId;
use kv_proto::v1;
use kv_proto::v1::Severity;
use ratatui::layout::Rect;

use super::canvas::{Canvas, clock};
use super::{Room, filter_note, pane, plain, split};
use crate::dashboard::cluster::{Cluster, EventId, event_id};
use crate::dashboard::columns::EventOrder;
use crate::dashboard::level::Level;
use crate::dashboard::list::top_of;
use crate::dashboard::model::{Model, Pane};
use crate::dashboard::mouse::Target;
use crate::dashboard::theme::Role;
use crate::output::bytes::printable;
use crate::output::time::rfc3339;

/// Where the columns begin.
const TIME: u16 = 2;
const LEVEL: u16 = 12;
const NODE: u16 = 19;
const MESSAGE: u16 = 29;

/// Rows of the selected event's own panel.
const DETAIL: u16 = 6;

pub(super) fn draw(canvas: &mut Canvas<'_>, model: &Model, cluster: &Cluster, area: Rect, room: Room) {
    let detail = if area.height > 16 { DETAIL } else { DETAIL - 2 };
    let (list, below) = split(area, area.height.saturating_sub(detail));
    panel(canvas, model, cluster, list, room, Pane::Main);
    let events = cluster.listed(&model.events, model.audit);
    let ids: Vec<EventId> = events.iter().map(|event| event_id(event)).collect();
    let Some(event) = events.get(model.events.row_in(&ids)) else { return };
    let time = rfc3339(event.time_us);
    let title = format!("{} UTC", time.get(..23).unwrap_or(&time).replace('T', " "));
    let kind = event.kind().word();
    let inner = canvas.panel(below, plain(&title, kind, room));
    let mut lines = canvas.wrapped(&printable(event.message.as_bytes()), inner.width);
    if let Some(audit) = &event.audit {
        let command = if audit.command.is_empty() { String::new() } else { format!("   command: {}", audit.command) };
        let undo = if event.undo.is_empty() { "nothing" } else { &event.undo };
        let by = printable(format!("by {}{command}   undo: {undo}", audit.by).as_bytes());
        lines.extend(canvas.wrapped(&by, inner.width));
    } else if !event.undo.is_empty() {
        lines.extend(canvas.wrapped(&format!("undo:  {}", printable(event.undo.as_bytes())), inner.width));
    }
    for (y, line) in (0..inner.height).zip(&lines) {
        canvas.text(inner, 0, y, line, Role::Text);
    }
}

/// The list of events, with headings where it is the main part of the screen.
pub(super) fn panel(canvas: &mut Canvas<'_>, model: &Model, cluster: &Cluster, area: Rect, room: Room, place: Pane) {
    let events = cluster.listed(&model.events, model.audit);
    let all = cluster.events.iter().filter(|event| !model.audit || event.audit.is_some()).count();
    let filter = filter_note(&model.events.filter, events.len(), all);
    let order = match (model.events.sort, model.events.reverse) {
        (EventOrder::Time, false) => "newest first",
        (EventOrder::Time, true) => "oldest first",
        (EventOrder::Level, _) => "by level",
        (EventOrder::Node, _) => "by node",
    };
    let kept = if filter.is_empty() { format!("{all} kept") } else { filter };
    let note = format!("{kept}, {order}, UTC");
    let main = place == Pane::Main;
    let title = if model.audit { "Audit: who changed the cluster" } else { "Events" };
    let shown = if main { plain(title, &note, room) } else { pane(model, place, title, &note, room) };
    let mut inner = canvas.panel(area, shown);
    if main {
        for (title, x, width, order) in [
            ("TIME", TIME, 10, EventOrder::Time),
            ("LEVEL", LEVEL, 7, EventOrder::Level),
            ("NODE", NODE, 10, EventOrder::Node),
        ] {
            let role = if model.events.sort == order { Role::Title } else { Role::Dim };
            canvas.text(inner, x, 0, title, role);
            canvas.target(inner, x, 0, width, Target::EventColumn(order));
        }
        canvas.text(inner, MESSAGE, 0, "EVENT", Role::Dim);
        inner = split(inner, 1).1;
    }
    let ids: Vec<EventId> = events.iter().map(|event| event_id(event)).collect();
    let (cursor, rows) = (model.events.row_in(&ids), usize::from(inner.height));
    if events.is_empty() {
        let text = match (model.events.filter.is_empty(), model.audit) {
            (false, _) => "no event passes the filter",
            (true, true) => "no change of the cluster is known yet",
            (true, false) => "nothing yet",
        };
        canvas.text(inner, TIME, 0, text, Role::Dim);
    }
    let marked = main || model.pane == place;
    for (y, (at, event)) in (0_u16..).zip(events.iter().enumerate().skip(top_of(cursor, rows)).take(rows)) {
        row(canvas, cluster, event, inner, y);
        if at == cursor && marked {
            canvas.text(inner, 0, y, &canvas.symbol('▸').to_string(), Role::Title);
        }
        canvas.target(inner, 0, y, inner.width, Target::Event(event_id(event)));
    }
}

fn row(canvas: &mut Canvas<'_>, cluster: &Cluster, event: &v1::Event, area: Rect, y: u16) {
    let (word, role) = match (event.severity(), Level::from(event.severity()).role()) {
        (Severity::Unspecified | Severity::Info, _) if event.audit.is_some() => ("AUDIT", Role::Title),
        (Severity::Unspecified | Severity::Info, role) => ("INFO", role),
        (Severity::Warning, role) => ("WARN", role),
        (Severity::Error, role) => ("ERROR", role),
    };
    canvas.text(area, TIME, y, &clock(event.time_us), Role::Dim);
    canvas.text(area, LEVEL, y, word, role);
    // Who changed the cluster is shown where others have their node.
    let node = match &event.audit {
        Some(audit) => audit.by.clone(),
        None if event.node == 0 => "-".to_owned(),
        None => cluster.name_of(NodeId(event.node)),
    };
    let node = canvas.fitted(&printable(node.as_bytes()), MESSAGE - NODE - 1);
    canvas.text(area, NODE, y, &node, Role::Text);
    let message = printable(event.message.as_bytes());
    let undo =
        if event.undo.is_empty() { String::new() } else { format!("   undo: {}", printable(event.undo.as_bytes())) };
    let width = area.width.saturating_sub(MESSAGE);
    // The undo command matters more than the end of the message, as long as the message keeps half of the width.
    let kept = width.saturating_sub(canvas.width(&undo)).max(width / 2);
    let message = canvas.fitted(&message, kept);
    let x = canvas.text(area, MESSAGE, y, &message, Role::Text);
    let undo = canvas.fitted(&undo, (area.width).saturating_sub(x));
    canvas.text(area, x, y, &undo, Role::Dim);
}
