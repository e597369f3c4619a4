//! The exact partition grid: one cell a copy, in token order, never a sample.

use kv_core::ring::Entry;
use ratatui::layout::Rect;

use super::canvas::Canvas;
use super::{Room, plain};
use crate::dashboard::cluster::Cluster;
use crate::dashboard::model::Model;
use crate::dashboard::mouse::Target;
use crate::dashboard::theme::{Role, Theme};

/// Columns of the labels.
const LABEL: u16 = 6;

/// Nodes that have a capital letter of their own.
const CAPITALS: usize = 26;

/// The grid as it fits into a width.
pub(super) struct Grid<'a> {
    entries: &'a [Entry],
    /// Lines of cells for each line of partitions: one for each place shown.
    places: usize,
    /// Partitions on a line, in groups of 16.
    across: usize,
}

impl<'a> Grid<'a> {
    pub(super) fn of(cluster: &'a Cluster, copies: bool, width: u16) -> Self {
        let layout = cluster.snapshot.description.layout.as_deref();
        let room = usize::from(width.saturating_sub(LABEL));
        let across = [64, 32, 16].into_iter().find(|across| across + across / 16 - 1 <= room).unwrap_or(16);
        let places = layout.map_or(1, |layout| if copies { layout.owners_per_partition().max(1) } else { 1 });
        Self { entries: layout.map_or(&[], |layout| &layout.partitions), places, across }
    }

    /// The lines that it takes.
    pub(super) fn rows(&self) -> u16 {
        u16::try_from(self.entries.len().div_ceil(self.across) * self.places).unwrap_or(u16::MAX)
    }

    /// What is marked, or what the grid shows.
    fn note(&self, canvas: &Canvas<'_>, model: &Model, cluster: &Cluster) -> String {
        if let Some((at, entry)) = model.partition.and_then(|at| self.entries.get(at).map(|entry| (at, entry))) {
            let arrow = canvas.symbol('→');
            let owners: Vec<String> = entry.nodes().map(|node| cluster.name_of(node)).collect();
            let moving = if entry.joint.is_some() { ", on the move" } else { "" };
            return format!("partition {at}: {}{moving}", owners.join(&format!(" {arrow} ")));
        }
        let key = model.keymap.key_of(crate::dashboard::keymap::Action::Map);
        let moving = self.entries.iter().filter(|entry| entry.joint.is_some()).count();
        if moving > 0 {
            let mark = letter_of(canvas, cluster, Some(0), true);
            let what = if self.places > 1 { "all copies" } else { "primaries" };
            return format!("{what}, {mark}: {moving} on the move   {key} view");
        }
        if self.places > 1 {
            format!("all {} copies, a line a place   {key} view", self.places)
        } else {
            format!("primaries   {key} view")
        }
    }
}

/// The letter of an owner, small while the partition needs its old and its new owners. Where there are more nodes than
/// capital letters, what is on the move has one mark.
fn letter_of(canvas: &Canvas<'_>, cluster: &Cluster, index: Option<usize>, moving: bool) -> char {
    let Some(index) = index else { return canvas.symbol('·') };
    let letter = Theme::letter(index);
    if !moving {
        letter
    } else if cluster.snapshot.description.members.len() > CAPITALS {
        canvas.symbol('▸')
    } else {
        letter.to_ascii_lowercase()
    }
}

/// Draws the grid below its title.
pub(super) fn draw(canvas: &mut Canvas<'_>, model: &Model, cluster: &Cluster, grid: &Grid<'_>, area: Rect, room: Room) {
    let title = format!("Partitions: {} in token order", grid.entries.len());
    let note = crate::output::bytes::printable(grid.note(canvas, model, cluster).as_bytes());
    let inner = canvas.panel(area, plain(&title, &note, room));
    if inner.height == 0 {
        return;
    }
    let fitting = usize::from(inner.height);
    let hidden = usize::from(grid.rows()) > fitting;
    let lines = if hidden { fitting - 1 } else { fitting };
    // The part with the marked partition is the one that is shown.
    let shown_rows = (lines / grid.places).max(1);
    let marked_row = model.partition.map_or(0, |at| at / grid.across);
    let first_row = crate::dashboard::list::top_of(marked_row, shown_rows);
    let mut y = 0_u16;
    let mut shown = 0;
    'rows: for (row, entries) in grid.entries.chunks(grid.across).enumerate().skip(first_row) {
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
                let letter = letter_of(canvas, cluster, index, entry.joint.is_some());
                let partition = row * grid.across + at;
                let marked = model.partition == Some(partition);
                let role = if marked { Role::Selected } else { index.map_or(Role::Dim, Role::Node) };
                canvas.text(inner, x, y, letter.encode_utf8(&mut [0; 4]), role);
                canvas.target(inner, x, y, 1, Target::Cell(partition));
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
