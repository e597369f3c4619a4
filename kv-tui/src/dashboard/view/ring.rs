//! The ring: every node's share of all copies as an arc, in the order of the letters, clockwise from the top.

use kv_core::types::NodeId;
use ratatui::layout::Rect;

use super::canvas::{Canvas, grouped, known};
use super::table::state;
use crate::dashboard::cluster::Cluster;
use crate::dashboard::theme::{Role, Theme};

/// Dots of a cell: columns and rows.
const DOTS: (u16, u16) = (2, 4);

/// The bit of each dot of a braille character, by column and row (Unicode block 2800).
const BITS: [[u32; 4]; 2] = [[0x01, 0x02, 0x04, 0x40], [0x08, 0x10, 0x20, 0x80]];

/// The inner radius, as a part of the outer one.
const HOLE: f64 = 0.72;

/// Above so many nodes the hues repeat, and only the selected node keeps its own.
const HUES: usize = 6;

/// Draws the ring with the sums in its hole and the shares below it.
pub(super) fn draw(canvas: &mut Canvas<'_>, cluster: &Cluster, selected: Option<NodeId>, area: Rect) {
    let arcs = arcs(cluster);
    let legend = legend(canvas, cluster, &arcs, area.width);
    let legend_rows = u16::try_from(legend.len()).unwrap_or(0).min(area.height / 3);
    let rows = area.height.saturating_sub(legend_rows).min(area.width / 2);
    if rows >= 6 {
        let ring = Rect {
            x: area.x + (area.width - rows * 2) / 2,
            y: area.y + (area.height - legend_rows - rows) / 2,
            width: rows * 2,
            height: rows,
        };
        draw_ring(canvas, cluster, &arcs, selected, ring);
        draw_sums(canvas, cluster, ring);
    }
    let top = area.height - legend_rows;
    for (y, line) in (top..area.height).zip(legend) {
        let mut x = 0;
        for (text, role) in line {
            x = canvas.text(area, x, y, &text, role);
        }
    }
}

/// A node's part of the ring, in turns from the top.
struct Arc {
    index: usize,
    node: NodeId,
    from: f64,
    to: f64,
}

fn arcs(cluster: &Cluster) -> Vec<Arc> {
    let mut from = 0.0;
    let mut arcs = Vec::new();
    for (index, member) in cluster.snapshot.description.members.iter().enumerate() {
        let share = cluster.shares.get(&member.id).map_or(0.0, |share| share.ownership);
        if share > 0.0 {
            arcs.push(Arc { index, node: member.id, from, to: from + share });
            from += share;
        }
    }
    arcs
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "cells of a screen; casts of floats saturate"
)]
fn draw_ring(canvas: &mut Canvas<'_>, cluster: &Cluster, arcs: &[Arc], selected: Option<NodeId>, area: Rect) {
    let middle = f64::from(area.height * DOTS.1) / 2.0;
    let (outer, inner) = (middle - 0.5, (middle - 0.5) * HOLE);
    let role = |arc: &Arc| {
        let dimmed = arcs.len() > HUES && selected.is_some_and(|node| node != arc.node);
        if dimmed { Role::Dim } else { Role::Node(arc.index) }
    };
    for y in 0..area.height {
        for x in 0..area.width {
            let mut dots = 0;
            let mut counts = vec![0_u32; arcs.len()];
            for (column, bits) in (0..DOTS.0).zip(BITS) {
                for (row, bit) in (0..DOTS.1).zip(bits) {
                    let dx = f64::from(x * DOTS.0 + column) + 0.5 - middle;
                    let dy = f64::from(y * DOTS.1 + row) + 0.5 - middle;
                    let radius = dx.hypot(dy);
                    if radius > outer || radius < inner {
                        continue;
                    }
                    let turn = (dx.atan2(-dy) / std::f64::consts::TAU).rem_euclid(1.0);
                    let Some(at) = arcs.iter().position(|arc| turn < arc.to).or(arcs.len().checked_sub(1)) else {
                        continue;
                    };
                    // A gap of about two dots separates neighbours without colours.
                    let arc = &arcs[at];
                    let edge = (turn - arc.from).min(arc.to - turn) * std::f64::consts::TAU * radius;
                    if arcs.len() > 1 && edge < 0.9 {
                        continue;
                    }
                    dots |= bit;
                    counts[at] += 1;
                }
            }
            let most = (0..arcs.len()).max_by_key(|at| counts[*at]).filter(|at| counts[*at] > 0);
            let Some(arc) = most.map(|at| &arcs[at]) else { continue };
            if let Some(mark) = mark(canvas.theme, arc.index, dots) {
                canvas.text(area, x, y, &mark.to_string(), role(arc));
            }
        }
    }
    for arc in arcs {
        let angle = (arc.from + arc.to) / 2.0 * std::f64::consts::TAU;
        let radius = inner - 4.5;
        let x = ((middle + angle.sin() * radius) / f64::from(DOTS.0)) as u16;
        let y = ((middle - angle.cos() * radius) / f64::from(DOTS.1)) as u16;
        let member = cluster.snapshot.description.members.get(arc.index);
        let shown = member.map(|member| state(cluster, member)).filter(|(symbol, _, _)| *symbol != '●');
        let x = canvas.text(area, x, y, &Theme::letter(arc.index).to_string(), role(arc));
        // A node that is not up carries the symbol of its state.
        if let Some((symbol, _, role)) = shown {
            canvas.text(area, x, y, &canvas.symbol(symbol).to_string(), role);
        }
    }
}

/// The character for the dots of a cell; `None`: too few for what the theme has.
fn mark(theme: Theme, index: usize, dots: u32) -> Option<char> {
    if theme.ascii {
        (dots.count_ones() >= 4).then(|| Theme::letter(index))
    } else if theme.has_dots() {
        char::from_u32(0x2800 + dots)
    } else {
        let half = |bits: u32| (dots & bits).count_ones() >= 2;
        match (half(0x01 | 0x02 | 0x08 | 0x10), half(0x04 | 0x40 | 0x20 | 0x80)) {
            (true, true) => Some('█'),
            (true, false) => Some('▀'),
            (false, true) => Some('▄'),
            (false, false) => None,
        }
    }
}

/// What is shown in the hole.
fn draw_sums(canvas: &mut Canvas<'_>, cluster: &Cluster, ring: Rect) {
    let Some(layout) = cluster.snapshot.description.layout.as_deref() else { return };
    let most = cluster.shares.values().filter(|share| share.fair > 0.0).map(|share| share.ownership / share.fair);
    let skew = most.fold(0.0, f64::max);
    let pending = cluster.snapshot.pending();
    let lines = [
        format!("{} keys", known(cluster.live_keys(), grouped)),
        format!("{} partitions", layout.partitions.len()),
        format!("skew {skew:.2}"),
        match pending.transfers {
            0 => format!("{} hints", grouped(pending.hints)),
            moving => format!("{} moving", grouped(moving)),
        },
    ];
    let fitting = usize::from((ring.height / 3).max(1)).min(lines.len());
    let top = ring.height / 2 - u16::try_from(fitting / 2).unwrap_or(0);
    for (y, line) in (top..).zip(&lines[..fitting]) {
        let width = canvas.width(line);
        if width + 8 <= ring.width {
            canvas.text(ring, (ring.width - width) / 2, y, line, if y == top { Role::Title } else { Role::Text });
        }
    }
}

/// Each node's letter, name and share, in as many columns as there is room for.
fn legend(canvas: &Canvas<'_>, cluster: &Cluster, arcs: &[Arc], width: u16) -> Vec<Vec<(String, Role)>> {
    let entries: Vec<(String, String, Role)> = arcs
        .iter()
        .map(|arc| {
            let share = cluster.shares.get(&arc.node).map_or(0.0, |share| share.ownership);
            let name = crate::output::bytes::printable(cluster.name_of(arc.node).as_bytes());
            let name = canvas.fitted(&name, 10);
            (Theme::letter(arc.index).to_string(), format!(" {name} {:.1}%", share * 100.0), Role::Node(arc.index))
        })
        .collect();
    let widest = entries.iter().map(|(_, text, _)| canvas.width(text) + 2).max().unwrap_or(1);
    let across = usize::from((width / widest).max(1));
    entries
        .chunks(across)
        .map(|chunk| {
            let mut line = Vec::new();
            for (letter, text, role) in chunk {
                let pad = widest.saturating_sub(canvas.width(text) + 1);
                line.push((letter.clone(), *role));
                line.push((format!("{text}{}", " ".repeat(usize::from(pad))), Role::Text));
            }
            line
        })
        .collect()
}
