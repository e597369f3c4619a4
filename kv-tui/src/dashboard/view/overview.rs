//! The overview: ring, nodes, the partition grid, throughput, events.

use kv_proto::v1::OperationState;
use ratatui::layout::Rect;

use super::canvas::Canvas;
use super::grid::{self, Grid};
use super::{Room, chart, columns, events, filter_note, pane, plain, ring, safety, split, table};
use crate::command::Line;
use crate::dashboard::cluster::Cluster;
use crate::dashboard::columns::Column;
use crate::dashboard::keymap::Action;
use crate::dashboard::level::Level;
use crate::dashboard::model::{Map, Model, Pane};
use crate::dashboard::theme::Role;
use crate::observe::health::Word;
use crate::output::bytes::printable;
use crate::run::report;

/// Columns of the ring where it is beside the table.
const RING_WIDTH: u16 = 38;

/// Rows of the ring there.
const RING_HEIGHT: u16 = 22;

/// Rows that a chart must have to be worth its frame.
const CHART_MIN: u16 = 6;

pub(super) fn draw(canvas: &mut Canvas<'_>, model: &Model, cluster: &Cluster, area: Rect, room: Room) {
    let area = draw_reason(canvas, model, cluster, area);
    if room == Room::Wide {
        draw_wide(canvas, model, cluster, area);
    } else {
        draw_narrow(canvas, model, cluster, area, room);
    }
}

/// Why the cluster is not healthy and what helps, as `status` says, in the first row; what is left of the area. How far an
/// operation is is shown elsewhere.
fn draw_reason(canvas: &mut Canvas<'_>, model: &Model, cluster: &Cluster, area: Rect) -> Rect {
    let health = cluster.health();
    let reason = health.reasons.iter().find(|reason| !reason.remedy.is_empty());
    let Some(reason) = reason.filter(|_| cluster.operations.active().is_none() && health.word != Word::Healthy) else {
        return area;
    };
    let (row, rest) = split(area, 1);
    let is_command = Line::parse_line(reason.remedy.as_bytes()).is_ok_and(|line| line.is_some());
    let helps = if is_command && !model.read_only {
        format!("   helps: {}{}", model.keymap.key_of(Action::Command), reason.remedy)
    } else {
        format!("   helps: {}", reason.remedy)
    };
    let helps = canvas.fitted(&printable(helps.as_bytes()), row.width / 2);
    let level = Level::from(health.word);
    let mark = level.mark().map_or_else(String::new, |mark| format!("{} ", canvas.symbol(mark)));
    let what = printable(format!("{mark}{}", reason.what).as_bytes());
    let what = canvas.fitted(&what, row.width.saturating_sub(canvas.width(&helps) + 2));
    let x = canvas.text(row, 1, 0, &what, level.role());
    canvas.text(row, x, 0, &helps, Role::Title);
    rest
}

/// The ring and what belongs to it at the left, the exact numbers at the right, events at the bottom.
fn draw_wide(canvas: &mut Canvas<'_>, model: &Model, cluster: &Cluster, area: Rect) {
    let room = Room::Wide;
    let (left, right) = columns(area, RING_WIDTH);
    let grid = Grid::of(cluster, model.map == Map::Copies, right.width - 4);
    let nodes_height = (table::rows(cluster, model, false) + 2).min(area.height / 3);
    let grid_height = grid.rows().saturating_add(2).min(area.height / 2);
    let used = nodes_height + grid_height;
    // The chart is at the right if it fits beside the ring, else below the ring.
    let beside = RING_HEIGHT.max(used).saturating_sub(used) >= CHART_MIN;
    let upper = if beside { RING_HEIGHT } else { used.max(RING_HEIGHT) };
    let (nodes, rest) = split(right, nodes_height);
    draw_nodes(canvas, model, cluster, nodes, room);
    let (grid_area, rest) = split(rest, grid_height);
    grid::draw(canvas, model, cluster, &grid, grid_area, room);
    let (ring_area, below_ring) = split(left, if beside { upper } else { RING_HEIGHT });
    let inner = canvas.panel(ring_area, plain("Ring: share of all copies", "", room));
    ring::draw(canvas, cluster, model.selected().map(|member| member.id), inner);
    if beside {
        let (chart_area, below) = split(rest, upper - used);
        chart::draw(canvas, model, cluster, chart_area, room);
        let bottom = Rect { x: area.x, width: area.width, ..below };
        events::panel(canvas, model, cluster, bottom, room, Pane::Side);
    } else {
        chart::draw(canvas, model, cluster, below_ring, room);
        events::panel(canvas, model, cluster, rest, room, Pane::Side);
    }
}

/// One below the other, as far as there is room.
fn draw_narrow(canvas: &mut Canvas<'_>, model: &Model, cluster: &Cluster, area: Rect, room: Room) {
    let (state, area) = split(area, 1);
    draw_state(canvas, cluster, state);
    let nodes_height = (table::rows(cluster, model, false) + 1).min((area.height / 3).max(5));
    let (nodes, rest) = split(area, nodes_height);
    draw_nodes(canvas, model, cluster, nodes, room);
    if model.map == Map::Ring {
        let inner = canvas.panel(rest, plain("Ring: share of all copies", "v view", room));
        ring::draw(canvas, cluster, model.selected().map(|member| member.id), inner);
        return;
    }
    let grid = Grid::of(cluster, model.map == Map::Copies, area.width - 2);
    let reserve = if room == Room::Small { 1 } else { 3 };
    let (grid_area, below) = split(rest, grid.rows().saturating_add(1).min(rest.height.saturating_sub(reserve)));
    grid::draw(canvas, model, cluster, &grid, grid_area, room);
    let chart_height = match below.height {
        0..=5 => 1,
        6..=8 => 3,
        _ => 5,
    };
    let (chart_area, bottom) = split(below, chart_height);
    chart::draw(canvas, model, cluster, chart_area, room);
    events::panel(canvas, model, cluster, bottom, room, Pane::Side);
}

/// What may fail now, and how far the operation under way is.
fn draw_state(canvas: &mut Canvas<'_>, cluster: &Cluster, area: Rect) {
    let (safe, role) = safety(canvas, cluster, &cluster.safety().short_line());
    let end = canvas.text(area, 1, 0, &safe, role);
    let Some(progress) = cluster.operations.progress.as_ref().filter(|progress| progress.is_active()) else { return };
    let paused = progress.operation.state() == OperationState::Paused;
    let left = match progress.eta() {
        _ if paused => ", paused".to_owned(),
        Some((left, _)) => format!(", {} left", report::seconds(left)),
        None => String::new(),
    };
    let command = printable(progress.operation.command.as_bytes());
    let far = format!("{:.1}%{left}", progress.share() * 100.0);
    let room = area.width.saturating_sub(end + canvas.width(&far) + 5);
    let text = format!("{}  {far}", canvas.fitted(&command, room));
    canvas.right(area, area.width - 1, 0, &text, if paused { Role::Warn } else { Role::Title });
}

fn draw_nodes(canvas: &mut Canvas<'_>, model: &Model, cluster: &Cluster, area: Rect, room: Room) {
    let note = nodes_note(model, cluster);
    let inner = canvas.panel(area, pane(model, Pane::Main, "Nodes", &note, room));
    table::draw(canvas, model, cluster, inner, table::Table { columns: &model.columns[0], totals: false });
}

/// What is filtered and how it is sorted.
pub(super) fn nodes_note(model: &Model, cluster: &Cluster) -> String {
    let all = cluster.snapshot.description.members.len();
    let filter = filter_note(&model.nodes.filter, cluster.ordered(&model.nodes).len(), all);
    let turned = if model.nodes.reverse { ", turned round" } else { "" };
    let column = if model.nodes.sort == Column::Name { "as they joined" } else { model.nodes.sort.title() };
    let gap = if filter.is_empty() { "" } else { "   " };
    format!("{filter}{gap}sort: {column}{turned}")
}
