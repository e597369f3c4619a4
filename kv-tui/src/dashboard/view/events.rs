//! What happened, newest first.

use kv_core::types::NodeId;
use kv_proto::v1::Severity;
use ratatui::layout::Rect;

use super::Room;
use super::canvas::Canvas;
use crate::dashboard::model::{Cluster, Model};
use crate::dashboard::theme::Role;
use crate::dashboard::update::node_name;
use crate::output::bytes::printable;
use crate::output::time::rfc3339;

pub(super) fn draw(canvas: &mut Canvas<'_>, model: &Model, cluster: &Cluster, area: Rect, room: Room) {
    panel(canvas, cluster, area, model.event_top, room == Room::Wide);
}

/// Events from the `top`-th newest on.
pub(super) fn panel(canvas: &mut Canvas<'_>, cluster: &Cluster, area: Rect, top: usize, framed: bool) {
    let note = format!("{} kept, newest first, times in UTC", cluster.events.len());
    let inner = canvas.panel(area, "Events", &note, framed);
    for (y, event) in (0..inner.height).zip(cluster.events.iter().rev().skip(top)) {
        let time = rfc3339(event.time_us);
        let (word, role) = match event.severity() {
            Severity::Unspecified | Severity::Info => ("INFO", Role::Dim),
            Severity::Warning => ("WARN", Role::Warn),
            Severity::Error => ("ERROR", Role::Bad),
        };
        canvas.text(inner, 0, y, time.get(11..19).unwrap_or(&time), Role::Dim);
        canvas.text(inner, 10, y, word, role);
        let node = if event.node == 0 { "-".to_owned() } else { node_name(cluster, NodeId(event.node)) };
        canvas.text(Rect { width: inner.width.min(25), ..inner }, 16, y, &printable(node.as_bytes()), Role::Text);
        let mut message = printable(event.message.as_bytes());
        if !event.undo.is_empty() {
            message.push_str(&format!("   undo: {}", printable(event.undo.as_bytes())));
        }
        canvas.text(inner, 26, y, &message, Role::Text);
    }
}
