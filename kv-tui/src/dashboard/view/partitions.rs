//! The partitions of a node: place, keys, bytes, owners, and whether the copies are equal.

use kv_core::types::NodeId;
use ratatui::layout::Rect;

use super::canvas::{Canvas, grouped, known};
use super::{Room, filter_note, pane, split};
use crate::dashboard::cluster::{Cluster, PartitionRow};
use crate::dashboard::columns::PartitionOrder;
use crate::dashboard::list::top_of;
use crate::dashboard::model::{Model, Pane};
use crate::dashboard::mouse::Target;
use crate::dashboard::theme::{Role, Theme};
use crate::output::bytes::printable;
use crate::output::time::size;

/// The headings: where each ends (starts, for words), and what it sorts by.
const HEADINGS: &[(&str, u16, Option<PartitionOrder>, bool)] = &[
    ("PART", 7, Some(PartitionOrder::Number), false),
    ("PLACE", 14, Some(PartitionOrder::Place), false),
    ("KEYS", 24, Some(PartitionOrder::Keys), false),
    ("BYTES", 35, Some(PartitionOrder::Bytes), false),
    ("OWNERS", 37, None, true),
    ("COPY", 46, None, true),
];

pub(super) fn draw(canvas: &mut Canvas<'_>, model: &Model, cluster: &Cluster, node: NodeId, area: Rect, room: Room) {
    let rows = cluster.partitions_of(node, &model.partitions);
    let title = format!("Partitions of {}", printable(cluster.name_of(node).as_bytes()));
    let all = cluster.shares.get(&node).map_or(0, |share| share.partitions);
    let filter = filter_note(&model.partitions.filter, rows.len(), usize::try_from(all).unwrap_or(0));
    let first = rows.iter().filter(|row| row.place == 0).count();
    let note = if filter.is_empty() { format!("{} copies, {first} primaries", grouped(all)) } else { filter };
    let inner = canvas.panel(area, pane(model, Pane::Side, &title, &note, room));
    for (title, x, order, text) in HEADINGS {
        let sorted = *order == Some(model.partitions.sort) && model.partitions.sort != PartitionOrder::Number;
        let arrow = if sorted { canvas.symbol('▼').to_string() } else { String::new() };
        let role = if sorted { Role::Title } else { Role::Dim };
        if *text {
            canvas.text(inner, *x, 0, title, role);
        } else {
            canvas.right(inner, *x, 0, &format!("{title}{arrow}"), role);
            if let Some(order) = order {
                canvas.target(inner, x.saturating_sub(7), 0, 7, Target::PartitionColumn(*order));
            }
        }
    }
    let (_, list) = split(inner, 1);
    let detail_rows = u16::from(list.height > 6) * 2;
    let (list, detail) = split(list, list.height - detail_rows);
    let ids: Vec<u32> = rows.iter().map(|row| row.partition).collect();
    let cursor = model.partitions.row_in(&ids);
    let fitting = usize::from(list.height);
    if rows.is_empty() {
        canvas.text(list, 2, 0, "none", Role::Dim);
    }
    for (y, (at, row)) in (0_u16..).zip(rows.iter().enumerate().skip(top_of(cursor, fitting)).take(fitting)) {
        draw_row(canvas, cluster, row, list, y);
        if at == cursor {
            canvas.text(list, 0, y, &canvas.symbol('▸').to_string(), Role::Title);
        }
        canvas.target(list, 0, y, list.width, Target::Partition(row.partition));
    }
    if let Some(row) = rows.get(cursor).filter(|_| detail_rows > 0) {
        draw_detail(canvas, cluster, row, detail);
    }
}

fn draw_row(canvas: &mut Canvas<'_>, cluster: &Cluster, row: &PartitionRow, area: Rect, y: u16) {
    let place = if row.place == 0 { "first".to_owned() } else { (row.place + 1).to_string() };
    let cells = [row.partition.to_string(), place, known(row.keys, grouped), known(row.bytes, size)];
    for ((_, end, _, _), cell) in HEADINGS.iter().zip(&cells) {
        canvas.right(area, *end, y, cell, Role::Text);
    }
    let mut x = 37;
    for owner in &row.owners {
        let index = cluster.index(*owner);
        let letter = index.map_or('?', Theme::letter).to_string();
        x = canvas.text(area, x, y, &letter, index.map_or(Role::Dim, Role::Node)) + 1;
    }
    let (word, role) = match row.synced {
        None => ("-", Role::Dim),
        Some(false) => ("being refilled", Role::Warn),
        Some(true) => ("complete", Role::Text),
    };
    canvas.text(area, x.max(46), y, word, role);
}

/// The whole preference list of a partition, and what the Merkle roots of its copies say.
fn draw_detail(canvas: &mut Canvas<'_>, cluster: &Cluster, row: &PartitionRow, area: Rect) {
    let arrow = canvas.symbol('→');
    let names: Vec<String> = row.owners.iter().map(|owner| printable(cluster.name_of(*owner).as_bytes())).collect();
    let text = format!("partition {}: {}", row.partition, names.join(&format!(" {arrow} ")));
    let text = canvas.fitted(&text, area.width);
    canvas.text(area, 0, 0, &text, Role::Dim);
    let roots: Vec<u64> = row
        .owners
        .iter()
        .filter_map(|owner| cluster.snapshot.report(*owner))
        .filter_map(|reported| reported.partitions.iter().find(|stats| stats.partition == row.partition))
        .map(|stats| stats.merkle_root)
        .collect();
    let equal = roots.windows(2).all(|pair| pair[0] == pair[1]);
    let (text, role) = match (roots.len() == row.owners.len(), equal) {
        (true, true) => ("all copies hold the same", Role::Good),
        (false, true) => ("an owner does not report; the others hold the same", Role::Warn),
        (_, false) => ("copies differ: writes are on their way, or an owner lacks some", Role::Warn),
    };
    canvas.text(area, 0, 1, text, role);
}
