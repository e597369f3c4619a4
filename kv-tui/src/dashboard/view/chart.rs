//! Throughput over time: dots, two moments and four levels to a cell. Where nothing was reported there is a gap.

use ratatui::layout::Rect;

use super::canvas::{Canvas, rate};
use super::{Room, plain, split};
use crate::dashboard::cluster::{Cluster, Rates};
use crate::dashboard::model::{Model, ZOOMS};
use crate::dashboard::theme::Role;
use crate::output::time::short;

/// Columns for the name and the present rate.
const LABEL: u16 = 10;

/// The bits of a braille character's columns, from the bottom up (Unicode block 2800).
const BITS: [[u32; 4]; 2] = [[0x40, 0x04, 0x02, 0x01], [0x80, 0x20, 0x10, 0x08]];

/// Points that fit into a cell.
const fn points_of_cell(dots: bool) -> usize {
    if dots { 2 } else { 1 }
}

/// Half of the chart: where, what it is called, the present rate, its colour, and which rate it shows.
type Half<'a> = (Rect, &'a str, String, Role, fn(&Rates) -> f64);

/// Draws gets above puts.
pub(super) fn draw(canvas: &mut Canvas<'_>, model: &Model, cluster: &Cluster, area: Rect, room: Room) {
    let now = cluster.rates(if model.frozen.is_some() { cluster.reported_us } else { model.now_us });
    let words = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), rate);
    let (gets, puts) = (words(now.map(|rates| rates.gets)), words(now.map(|rates| rates.writes)));
    if area.height < 3 {
        // Without room for a chart the rates are shown in a line.
        let line = format!("Throughput   GET {gets}/s   PUT {puts}/s");
        canvas.text(area, 1, 0, &line, Role::Text);
        return;
    }
    let dots = canvas.theme.has_dots();
    let edges = if room.is_framed() { 4 } else { 2 };
    let count = usize::from(area.width.saturating_sub(edges + LABEL)) * points_of_cell(dots);
    let seconds = ZOOMS[model.zoom.min(ZOOMS.len() - 1)];
    let points = points(cluster, seconds, count);
    let span = short(std::time::Duration::from_secs(u64::try_from(count * seconds).unwrap_or(0)));
    let note = format!("last {span}   -/+ time");
    let inner = canvas.panel(area, plain("Throughput", &note, room));
    let (upper, lower) = split(inner, inner.height / 2);
    let halves: [Half<'_>; 2] = [
        (upper, "GET/s", gets, Role::Get, |rates| rates.gets),
        (lower, "PUT/s", puts, Role::Put, |rates| rates.writes),
    ];
    for (part, name, value, role, pick) in halves {
        if part.height == 0 {
            continue;
        }
        let plot = Rect { x: part.x + LABEL, width: part.width.saturating_sub(LABEL), ..part };
        let fitting = usize::from(plot.width) * points_of_cell(dots);
        let values: Vec<Option<f64>> =
            points.iter().skip(points.len().saturating_sub(fitting)).map(|point| point.as_ref().map(pick)).collect();
        // Each half has its own scale, and says it.
        let peak = values.iter().flatten().copied().fold(0.0, f64::max);
        if part.height == 1 {
            canvas.text(part, 0, 0, &name[..3], role);
            canvas.right(part, LABEL - 1, 0, &value, Role::Text);
        } else {
            canvas.text(part, 0, 0, name, role);
            canvas.text(part, 0, 1, &value, Role::Text);
            if part.height > 2 {
                canvas.text(part, 0, 2, &format!("max {}", rate(peak)), Role::Dim);
            }
        }
        draw_area(canvas, plot, &values, peak, role, dots);
    }
}

/// The newest points, each the mean of `seconds` seconds; `None` where none of them was reported. Points begin at whole
/// multiples of `seconds`, so that they keep their values while the chart moves on.
fn points(cluster: &Cluster, seconds: usize, count: usize) -> Vec<Option<Rates>> {
    let kept = &cluster.throughput;
    let step = u64::try_from(seconds).unwrap_or(1);
    let second_of = |at: usize| cluster.slot.saturating_sub(u64::try_from(kept.len() - 1 - at).unwrap_or(0));
    let mut points: Vec<(u64, Rates, u32)> = Vec::new();
    for (at, slot) in kept.iter().enumerate().skip(kept.len().saturating_sub((count + 1) * seconds)) {
        let number = second_of(at) / step;
        if points.last().is_none_or(|(last, _, _)| *last != number) {
            points.push((number, Rates::default(), 0));
        }
        if let (Some((_, sum, reported)), Some(rates)) = (points.last_mut(), slot) {
            sum.gets += rates.gets;
            sum.writes += rates.writes;
            sum.contention += rates.contention;
            *reported += 1;
        }
    }
    let mean = |(_, sum, reported): (u64, Rates, u32)| {
        (reported > 0).then(|| Rates {
            gets: sum.gets / f64::from(reported),
            writes: sum.writes / f64::from(reported),
            contention: sum.contention / f64::from(reported),
        })
    };
    let skipped = points.len().saturating_sub(count);
    points.into_iter().skip(skipped).map(mean).collect()
}

/// A filled area from the right, the newest point last. A point that was not reported is a gap with a dot in the middle of
/// nothing, which no rate looks like.
fn draw_area(canvas: &mut Canvas<'_>, plot: Rect, values: &[Option<f64>], peak: f64, role: Role, dots: bool) {
    let each = points_of_cell(dots);
    let levels = usize::from(plot.height) * if dots { 4 } else { 8 };
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a chart has few levels, and casts of floats saturate"
    )]
    let level = |value: f64| if peak > 0.0 { (value / peak * levels as f64).ceil() as usize } else { 0 };
    // An odd number of points leaves the first half of the first cell empty.
    let lead = (each - values.len() % each) % each;
    let padded: Vec<Option<Option<f64>>> =
        std::iter::repeat_n(None, lead).chain(values.iter().map(|value| Some(*value))).collect();
    let cells = u16::try_from(padded.len() / each).unwrap_or(u16::MAX);
    for (x, cell) in (plot.width.saturating_sub(cells)..).zip(padded.chunks(each)) {
        if cell.iter().all(|point| matches!(point, Some(None))) {
            let bottom = plot.height.saturating_sub(1);
            canvas.text(plot, x, bottom, &canvas.symbol('·').to_string(), Role::Dim);
            continue;
        }
        let heights: Vec<usize> = cell.iter().map(|point| point.flatten().map_or(0, level)).collect();
        for row in 0..plot.height {
            let below = usize::from(plot.height - 1 - row);
            let mark = if dots {
                let bits = heights.iter().zip(BITS).flat_map(|(height, bits)| {
                    let filled = height.saturating_sub(below * 4).min(4);
                    bits.into_iter().take(filled)
                });
                Some(bits.sum::<u32>()).filter(|bits| *bits > 0).and_then(|bits| char::from_u32(0x2800 + bits))
            } else {
                let filled = heights.first().copied().unwrap_or(0).saturating_sub(below * 8).min(8);
                (filled > 0).then(|| canvas.theme.bar(filled))
            };
            if let Some(mark) = mark {
                canvas.text(plot, x, row, &mark.to_string(), role);
            }
        }
    }
}
