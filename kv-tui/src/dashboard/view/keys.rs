//! The keys screen: keys by prefix, and what each replica of one holds.

use kv_core::types::NodeId;
use kv_proto::client::Inspection;
use kv_proto::v1;
use kv_proto::v1::replica_view::Answer;
use ratatui::layout::Rect;

use super::Room;
use super::canvas::Canvas;
use crate::dashboard::model::{Cluster, Model};
use crate::dashboard::theme::{Role, Theme};
use crate::dashboard::update::node_name;
use crate::output::bytes::printable;
use crate::output::time::rfc3339;

/// Bytes of a value that are shown.
const VALUE_BYTES: usize = 400;

pub(super) fn draw(canvas: &mut Canvas<'_>, model: &Model, cluster: &Cluster, area: Rect, room: Room) {
    let framed = room == Room::Wide;
    let width = area.width * 2 / 5;
    draw_list(canvas, model, cluster, Rect { width, ..area }, framed);
    let right = Rect { x: area.x + width, width: area.width - width, ..area };
    match &model.keys.inspected {
        None => {
            let inner = canvas.panel(right, "Replicas", "", framed);
            canvas.text(inner, 0, 0, "Enter asks every replica of the selected key", Role::Dim);
        }
        Some((key, result)) => {
            let inner = canvas.panel(right, &printable(key), "", framed);
            match result {
                Ok(seen) => draw_replicas(canvas, cluster, seen, inner),
                Err(error) => {
                    for (y, line) in (0_u16..).zip(canvas.wrapped(&printable(error.as_bytes()), inner.width)) {
                        canvas.text(inner, 0, y, &line, Role::Bad);
                    }
                }
            }
        }
    }
}

fn draw_list(canvas: &mut Canvas<'_>, model: &Model, cluster: &Cluster, area: Rect, framed: bool) {
    let keys = &model.keys;
    let title = if keys.prefix.is_empty() { "Keys".to_owned() } else { format!("Keys {}", keys.prefix) };
    let more = if keys.more.is_some() || keys.loading { "+" } else { "" };
    let inner = canvas.panel(area, &title, &format!("{}{more}", keys.keys.len()), framed);
    let bottom = u16::from(!keys.error.is_empty());
    let rows = usize::from(inner.height.saturating_sub(bottom));
    if keys.keys.is_empty() && keys.error.is_empty() {
        let text = if keys.loading { "reading" } else { "no keys" };
        canvas.text(inner, 2, 0, text, Role::Dim);
    }
    let layout = cluster.picture.description.layout.as_deref();
    let top = keys.cursor.saturating_sub(rows.saturating_sub(1));
    for (y, (index, key)) in (0_u16..).zip(keys.keys.iter().enumerate().skip(top).take(rows)) {
        let names = Rect { width: inner.width.saturating_sub(3), ..inner };
        canvas.text(names, 2, y, &printable(key), Role::Text);
        let owner =
            layout.and_then(|layout| layout.entry(layout.partition_of(key))).and_then(|entry| entry.nodes().next());
        if let Some(place) = owner.and_then(|owner| cluster.index(owner)) {
            canvas.right(inner, inner.width, y, &Theme::letter(place).to_string(), Role::Node(place));
        }
        if index == keys.cursor {
            canvas.select(names, y);
        }
    }
    if bottom > 0 {
        canvas.text(inner, 0, inner.height.saturating_sub(1), &printable(keys.error.as_bytes()), Role::Bad);
    }
}

fn draw_replicas(canvas: &mut Canvas<'_>, cluster: &Cluster, seen: &Inspection, area: Rect) {
    let place = format!("token {:016x}  partition {}  epoch {}", seen.token, seen.partition, seen.epoch);
    canvas.text(area, 0, 0, &place, Role::Dim);
    let digests: Vec<u64> = seen.replicas.iter().filter(|replica| replica.owner).filter_map(digest).collect();
    let answering = digests.len() == seen.replicas.iter().filter(|replica| replica.owner).count();
    let equal = digests.windows(2).all(|pair| pair[0] == pair[1]);
    let (words, role) = match (answering, equal) {
        (true, true) => ("all owners hold the same", Role::Good),
        (_, false) => ("owners differ", Role::Warn),
        (false, true) => ("an owner did not answer; those that did agree", Role::Warn),
    };
    canvas.text(area, 0, 1, words, role);
    let mut y = 3;
    for replica in &seen.replicas {
        let node = NodeId(replica.node);
        let index = cluster.index(node);
        let x =
            canvas.text(area, 0, y, &index.map_or('?', Theme::letter).to_string(), index.map_or(Role::Dim, Role::Node));
        let role = if replica.owner { "owner" } else { "stand-in, holds a hint" };
        let name = printable(node_name(cluster, node).as_bytes());
        canvas.text(area, x + 1, y, &format!("{name}  {role}"), Role::Title);
        y += 1;
        for (text, role) in replica_lines(replica) {
            for line in canvas.wrapped(&text, area.width.saturating_sub(2)) {
                canvas.text(area, 2, y, &line, role);
                y = y.saturating_add(1);
            }
        }
        y = y.saturating_add(1);
    }
}

fn digest(replica: &v1::ReplicaView) -> Option<u64> {
    match &replica.answer {
        Some(Answer::Record(record)) => Some(record.digest),
        _ => None,
    }
}

fn replica_lines(replica: &v1::ReplicaView) -> Vec<(String, Role)> {
    let record = match &replica.answer {
        Some(Answer::Record(record)) => record,
        Some(Answer::Error(error)) => return vec![(printable(error.message.as_bytes()), Role::Bad)],
        None => return vec![("no answer".to_owned(), Role::Bad)],
    };
    if record.versions.is_empty() {
        return vec![("no copy".to_owned(), Role::Dim)];
    }
    let mut lines = Vec::new();
    for version in &record.versions {
        let dot = version.dot.as_ref().map(|dot| format!("{}:{}", dot.actor, dot.counter)).unwrap_or_default();
        lines.push((format!("written {}  {}", rfc3339(version.written_us), printable(dot.as_bytes())), Role::Dim));
        if let Some(expires) = version.expires_us {
            lines.push((format!("expires {}", rfc3339(expires)), Role::Dim));
        }
        lines.push(match &version.value {
            None => ("deleted".to_owned(), Role::Warn),
            Some(value) if value.len() > VALUE_BYTES => {
                (format!("{} ... ({} bytes)", printable(&value[..VALUE_BYTES]), value.len()), Role::Text)
            }
            Some(value) => (printable(value), Role::Text),
        });
    }
    if record.versions.len() > 1 {
        lines.insert(0, (format!("{} concurrent versions", record.versions.len()), Role::Warn));
    }
    lines
}
