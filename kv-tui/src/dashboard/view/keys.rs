//! The keys screen: keys by prefix, and what each replica of one holds.

use ratatui::layout::Rect;

use super::canvas::Canvas;
use super::{Room, columns, inspector, pane};
use crate::dashboard::cluster::Cluster;
use crate::dashboard::list::top_of;
use crate::dashboard::model::{Model, Pane};
use crate::dashboard::mouse::Target;
use crate::dashboard::theme::{Role, Theme};
use crate::output::bytes::printable;

pub(super) fn draw(canvas: &mut Canvas<'_>, model: &Model, cluster: &Cluster, area: Rect, room: Room) {
    let (left, right) = columns(area, area.width * 2 / 5);
    draw_list(canvas, model, cluster, left, room);
    inspector::draw(canvas, model, right, room);
}

fn draw_list(canvas: &mut Canvas<'_>, model: &Model, cluster: &Cluster, area: Rect, room: Room) {
    let keys = &model.keys;
    let name = printable(keys.keyspace.as_bytes());
    let title = match model.mode_of(&keys.keyspace) {
        // The usual one goes without saying.
        "" | "available" => format!("Keys in {name}"),
        mode => format!("{name} ({mode})"),
    };
    let more = if keys.more.is_some() || keys.loading { "+" } else { "" };
    let count = format!("{}{more}", super::canvas::grouped(u64::try_from(keys.keys.len()).unwrap_or(0)));
    let inner = canvas.panel(area, pane(model, Pane::Main, &title, &count, room));
    let mut top_rows = 0;
    if !keys.prefix.is_empty() {
        let text = canvas.fitted(&format!("prefix {}", printable(keys.prefix.as_bytes())), inner.width);
        canvas.text(inner, 0, 0, &text, Role::Dim);
        top_rows = 1;
    }
    let error = canvas.wrapped(&printable(keys.error.as_bytes()), inner.width);
    let bottom = if keys.error.is_empty() { 0 } else { u16::try_from(error.len()).unwrap_or(1).min(inner.height / 2) };
    let list = Rect { y: inner.y + top_rows, height: inner.height.saturating_sub(top_rows + bottom), ..inner };
    let rows = usize::from(list.height);
    if keys.keys.is_empty() && keys.error.is_empty() {
        let text = if keys.loading { "reading" } else { "no keys; p writes one" };
        canvas.text(list, 2, 0, text, Role::Dim);
    }
    let layout = cluster.snapshot.description.layout.as_deref();
    let first = top_of(keys.cursor, rows);
    for (y, (index, key)) in (0_u16..).zip(keys.keys.iter().enumerate().skip(first).take(rows)) {
        let names = Rect { width: list.width.saturating_sub(2), ..list };
        let name = canvas.fitted(&printable(key), names.width.saturating_sub(3));
        canvas.text(names, 2, y, &name, Role::Text);
        let owner =
            layout.and_then(|layout| layout.entry(layout.partition_of(key))).and_then(|entry| entry.nodes().next());
        if let Some(place) = owner.and_then(|owner| cluster.index(owner)) {
            canvas.right(list, list.width, y, &Theme::letter(place).to_string(), Role::Node(place));
        }
        if index == keys.cursor {
            canvas.text(list, 0, y, &canvas.symbol('▸').to_string(), Role::Title);
            canvas.select(Rect { x: names.x + 2, width: names.width.saturating_sub(2), ..names }, y);
        }
        canvas.target(list, 0, y, list.width, Target::Key(index));
    }
    for (y, line) in (inner.height.saturating_sub(bottom)..inner.height).zip(&error) {
        canvas.text(inner, 0, y, line, Role::Bad);
    }
}
