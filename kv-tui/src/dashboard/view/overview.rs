//! The overview: nodes, the partition grid, throughput, events.

use kv_core::ring::Entry;
use ratatui::layout::Rect;

use super::canvas::{Canvas, rate};
use super::{Room, events, table};
use crate::dashboard::model::{Cluster, Model};
use crate::dashboard::theme::{Role, Theme};

/// Columns of the grid's labels.
const LABEL: u16 = 6;

pub(super) fn draw(canvas: &mut Canvas<'_>, model: &Model, cluster: &Cluster, area: Rect, room: Room) {
    let framed = room == Room::Wide;
    let edges = if framed { 2 } else { 1 };
    let grid_width = if framed { 78 } else { area.width };
    let grid = Grid::of(cluster, model.copies, grid_width.saturating_sub(if framed { 4 } else { 2 }));
    let nodes_height = (table::rows(cluster) + edges).min((area.height / 3).max(5));
    let (nodes, rest) = split(area, nodes_height);
    let note = format!("sort {}", model.sort.title());
    let inner = canvas.panel(nodes, "Nodes", &note, framed);
    table::draw(canvas, model, cluster, inner, room);
    let grid_height = grid.rows().saturating_add(edges);
    match room {
        Room::Wide => {
            let (middle, bottom) = split(rest, grid_height.max(9).min(rest.height.saturating_sub(5)));
            let (left, right) = (
                Rect { width: grid_width, ..middle },
                Rect { x: middle.x + grid_width, width: middle.width - grid_width, ..middle },
            );
            draw_grid(canvas, cluster, &grid, left, framed);
            draw_throughput(canvas, model, cluster, right, framed);
            events::panel(canvas, cluster, bottom, 0, framed);
        }
        Room::Medium | Room::Small => {
            let (top, below) = split(rest, grid_height);
            draw_grid(canvas, cluster, &grid, top, framed);
            let (chart, bottom) = split(below, if below.height >= 7 { 4 } else { below.height });
            draw_throughput(canvas, model, cluster, chart, framed);
            events::panel(canvas, cluster, bottom, 0, framed);
        }
    }
}

fn split(area: Rect, height: u16) -> (Rect, Rect) {
    let height = height.min(area.height);
    (Rect { height, ..area }, Rect { y: area.y + height, height: area.height - height, ..area })
}

/// The exact partition grid: one cell a copy, in token order, never a sample.
struct Grid<'a> {
    entries: &'a [Entry],
    /// Lines of cells for each line of partitions: one for each place shown.
    places: usize,
    /// Partitions on a line, in groups of 16.
    across: usize,
}

impl<'a> Grid<'a> {
    fn of(cluster: &'a Cluster, copies: bool, width: u16) -> Self {
        let layout = cluster.picture.description.layout.as_deref();
        let room = usize::from(width.saturating_sub(LABEL));
        let across = [64, 32, 16].into_iter().find(|across| across + across / 16 - 1 <= room).unwrap_or(16);
        let places = layout.map_or(1, |layout| if copies { layout.owners_per_partition().max(1) } else { 1 });
        Self { entries: layout.map_or(&[], |layout| &layout.partitions), places, across }
    }

    fn rows(&self) -> u16 {
        u16::try_from(self.entries.len().div_ceil(self.across) * self.places).unwrap_or(u16::MAX)
    }
}

fn draw_grid(canvas: &mut Canvas<'_>, cluster: &Cluster, grid: &Grid<'_>, area: Rect, framed: bool) {
    let title = format!("Partitions: {} in token order", grid.entries.len());
    let places =
        if grid.places > 1 { format!("all {} copies, a line a place", grid.places) } else { "first places".to_owned() };
    let inner = canvas.panel(area, &title, &format!("{places}  v"), framed);
    if inner.height == 0 {
        return;
    }
    let fitting = usize::from(inner.height);
    let hidden = usize::from(grid.rows()) > fitting;
    let lines = if hidden { fitting - 1 } else { fitting };
    let mut y = 0_u16;
    let mut shown = 0;
    'rows: for (row, entries) in grid.entries.chunks(grid.across).enumerate() {
        for place in 0..grid.places {
            if usize::from(y) >= lines {
                break 'rows;
            }
            if place == 0 {
                canvas.right(inner, LABEL - 1, y, &(row * grid.across).to_string(), Role::Dim);
            }
            for (at, entry) in entries.iter().enumerate() {
                let x = u16::try_from(at + at / 16).unwrap_or(u16::MAX).saturating_add(LABEL);
                let index = entry.nodes().nth(place).and_then(|node| cluster.index(node));
                let letter = index.map_or_else(|| canvas.symbol('·'), Theme::letter);
                canvas.text(inner, x, y, letter.encode_utf8(&mut [0; 4]), index.map_or(Role::Dim, Role::Node));
            }
            y += 1;
        }
        shown += entries.len();
    }
    if hidden {
        let text = format!("{} of {} partitions fit; :ring --grid lists all", shown, grid.entries.len());
        canvas.text(inner, LABEL, y, &text, Role::Dim);
    }
}

fn draw_throughput(canvas: &mut Canvas<'_>, model: &Model, cluster: &Cluster, area: Rect, framed: bool) {
    let shown = &cluster.throughput;
    let width = usize::from(area.width.saturating_sub(if framed { 4 } else { 2 }));
    let window: Vec<Option<_>> = shown.iter().skip(shown.len().saturating_sub(width)).copied().collect();
    let peak = window.iter().flatten().map(|rates| rates.gets.max(rates.writes)).fold(0.0, f64::max);
    let now = cluster.rates(if model.frozen.is_some() { cluster.told_us } else { model.now_us });
    let words = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), rate);
    let (gets, writes) = (words(now.map(|rates| rates.gets)), words(now.map(|rates| rates.writes)));
    if area.height < 4 {
        // Without room for a chart the numbers stand in the rule.
        if area.height > 0 {
            let line = format!("GET/s {gets}   PUT/s {writes}");
            canvas.text(area, 1, 0, &line, Role::Text);
        }
        return;
    }
    let seconds = format!("window {width}s  peak {}", rate(peak));
    let inner = canvas.panel(area, "Throughput", &seconds, framed);
    let half = inner.height / 2;
    if half < 1 {
        return;
    }
    for (part, name, value, role, pick) in [
        (0, "GET/s", gets, Role::Get, (|rates: super::super::model::Rates| rates.gets) as fn(_) -> f64),
        (1, "PUT/s", writes, Role::Put, |rates| rates.writes),
    ] {
        let chart = Rect { y: inner.y + part * half, height: half, ..inner };
        let above = u16::from(half > 1);
        if above > 0 {
            canvas.text(chart, 0, 0, &format!("{name} {value}"), role);
        }
        let left = if above > 0 { 0 } else { canvas.text(chart, 0, 0, &format!("{name} {value} "), role).max(14) };
        let plot = Rect {
            x: chart.x + left,
            y: chart.y + above,
            width: chart.width.saturating_sub(left),
            height: half - above,
        };
        let points: Vec<Option<f64>> = window
            .iter()
            .skip(window.len().saturating_sub(usize::from(plot.width)))
            .map(|slot| slot.map(pick))
            .collect();
        draw_bars(canvas, plot, &points, peak, role);
    }
}

/// Bars from the right, the newest last. A second without data is a gap with a dot, which no rate looks like.
fn draw_bars(canvas: &mut Canvas<'_>, plot: Rect, points: &[Option<f64>], peak: f64, role: Role) {
    let start = plot.width.saturating_sub(u16::try_from(points.len()).unwrap_or(u16::MAX));
    let rows = usize::from(plot.height);
    for (x, point) in (start..).zip(points) {
        let Some(value) = point else {
            canvas.text(plot, x, plot.height.saturating_sub(1), &canvas.symbol('·').to_string(), Role::Dim);
            continue;
        };
        #[allow(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a chart has few rows, and casts of floats saturate"
        )]
        let eighths = if peak > 0.0 { (value / peak * rows as f64 * 8.0).ceil() as usize } else { 0 };
        for row in 0..rows {
            let filled = eighths.saturating_sub(row * 8).min(8);
            if filled > 0 {
                let y = u16::try_from(rows - 1 - row).unwrap_or(0);
                canvas.text(plot, x, y, &canvas.theme.bar(filled).to_string(), role);
            }
        }
    }
}
