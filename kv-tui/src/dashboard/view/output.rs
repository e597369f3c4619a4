//! What a command printed, in the lower part of the screen: every character of it, in rows as wide as the screen.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use super::canvas::{Canvas, Panel};
use super::{Room, body_of};
use crate::dashboard::model::{Model, Output};
use crate::dashboard::theme::Role;
use crate::output::bytes::{harmless, printable};

/// Where in an output its rows stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::dashboard) struct Place {
    /// The first row shown.
    pub first: usize,
    /// Rows shown.
    pub fitting: usize,
    /// All rows.
    pub all: usize,
}

impl Place {
    /// The last row that can be the first one shown.
    pub(in crate::dashboard) fn last(self) -> usize {
        self.all.saturating_sub(self.fitting)
    }

    fn note(self) -> String {
        if self.all <= self.fitting {
            return String::new();
        }
        format!("{}-{} of {}, j/k scroll, ", self.first + 1, (self.first + self.fitting).min(self.all), self.all)
    }
}

/// The rows of an output at a width.
struct Rows<'a> {
    lines: Vec<(&'a str, Role)>,
    /// Rows of each line.
    heights: Vec<usize>,
    width: u16,
}

impl<'a> Rows<'a> {
    fn of(canvas: &Canvas<'_>, output: &'a Output, error: &'a [String], width: u16) -> Self {
        let reported = output.lines.iter().map(|line| (line.as_str(), Role::Text));
        let lines: Vec<_> = reported.chain(error.iter().map(|line| (line.as_str(), Role::Bad))).collect();
        let heights = lines.iter().map(|(line, _)| height(canvas, line, width)).collect();
        Self { lines, heights, width }
    }

    fn place(&self, output: &Output, height: u16) -> Place {
        let (all, fitting) = (self.heights.iter().sum(), usize::from(height));
        let place = Place { first: 0, fitting, all };
        let first = output.first_row.unwrap_or(if output.follows { place.last() } else { 0 });
        Place { first: first.min(place.last()), ..place }
    }

    /// The rows from `first` on.
    fn shown(&self, canvas: &Canvas<'_>, place: Place) -> Vec<(String, Role)> {
        let (mut shown, mut row) = (Vec::new(), 0);
        for ((line, role), height) in self.lines.iter().zip(&self.heights) {
            if row + height > place.first && row < place.first + place.fitting {
                let rows = canvas.chopped(line, self.width).into_iter();
                let skipped = place.first.saturating_sub(row);
                shown.extend(rows.skip(skipped).map(|text| (text, *role)).take(place.fitting - shown.len()));
            }
            row += height;
        }
        shown
    }
}

/// Rows of a line. One of ASCII, such as a long value in base64, need not be looked at for that.
fn height(canvas: &Canvas<'_>, line: &str, width: u16) -> usize {
    if line.is_ascii() {
        line.len().div_ceil(usize::from(width.max(1))).max(1)
    } else {
        canvas.chopped(line, width).len()
    }
}

/// How a command failed, in lines.
fn error_of(output: &Output) -> Vec<String> {
    let lines = output.error.lines().filter(|line| !line.trim().is_empty());
    lines.map(|line| harmless(line.as_bytes())).collect()
}

/// The rows of an output in a body of a screen, the area in which they are shown, and where they stand there.
fn laid_out<'a>(
    canvas: &Canvas<'_>,
    output: &'a Output,
    error: &'a [String],
    body: Rect,
    room: Room,
) -> (Rows<'a>, Rect, Place) {
    // A frame, or one line above.
    let (beside, above) = if room.is_framed() { (4, 2) } else { (2, 1) };
    let rows = Rows::of(canvas, output, error, body.width.saturating_sub(beside));
    let wanted = u16::try_from(rows.heights.iter().sum::<usize>()).unwrap_or(u16::MAX).saturating_add(2);
    let height = wanted.clamp(3, (body.height * 2 / 3).max(3)).min(body.height);
    let area = Rect { y: body.y + body.height - height, height, ..body };
    let place = rows.place(output, height.saturating_sub(above));
    (rows, area, place)
}

/// Draws what a command printed.
pub(super) fn draw(canvas: &mut Canvas<'_>, output: &Output, body: Rect, room: Room) {
    let error = error_of(output);
    let (rows, area, place) = laid_out(canvas, output, &error, body, room);
    let place_note = place.note();
    let note = match output.code {
        None => format!("{place_note}running; Esc ends it"),
        Some(0) => format!("{place_note}done; Esc closes"),
        Some(code) => format!("{place_note}exit code {code}; Esc closes"),
    };
    canvas.clear(area);
    let title = format!(":{}", printable(output.line.as_bytes()));
    let title = canvas.fitted(&title, area.width.saturating_sub(canvas.width(&note) + 12));
    let inner = canvas.panel(area, Panel { title: &title, note: &note, framed: room.is_framed(), pane: None });
    for (y, (line, role)) in (0..inner.height).zip(rows.shown(canvas, place)) {
        canvas.text(inner, 0, y, &line, role);
    }
}

/// Where in the output of the last command its rows stand; `None` if none is shown.
pub(in crate::dashboard) fn place(model: &Model) -> Option<Place> {
    let output = model.output.as_ref()?;
    let room = Room::of(model.size)?;
    let body = body_of(Rect::new(0, 0, model.size.0, model.size.1), room);
    let mut buffer = Buffer::empty(Rect::new(0, 0, 1, 1));
    let canvas = Canvas::new(&mut buffer, model.theme);
    let error = error_of(output);
    Some(laid_out(&canvas, output, &error, body, room).2)
}
