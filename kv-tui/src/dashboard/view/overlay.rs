//! What lies on top: dialogs, the output of a command, and the line being typed.

use ratatui::layout::{Position, Rect};

use super::canvas::{Canvas, Panel};
use crate::command::for_shell;
use crate::dashboard::bar::Bar;
use crate::dashboard::confirm::Confirm;
use crate::dashboard::dialog::{Choice, Dialog};
use crate::dashboard::list::top_of;
use crate::dashboard::model::Model;
use crate::dashboard::mouse::Target;
use crate::dashboard::theme::Role;
use crate::output::bytes::printable;

/// A frame in the middle of an area, emptied; what is left inside.
pub(super) fn boxed(canvas: &mut Canvas<'_>, area: Rect, size: (u16, u16), title: &str, note: &str) -> Rect {
    let (width, height) = (size.0.min(area.width), size.1.min(area.height));
    let frame = Rect { x: area.x + (area.width - width) / 2, y: area.y + (area.height - height) / 2, width, height };
    canvas.targets.clear();
    canvas.clear(frame);
    canvas.panel(frame, Panel { title, note, framed: true, pane: None })
}

/// Draws a dialog; where the cursor is if it asks for text.
pub(super) fn dialog(canvas: &mut Canvas<'_>, model: &Model, dialog: &Dialog, area: Rect) -> Option<Position> {
    match dialog {
        Dialog::Help { top } => {
            help(canvas, model, *top, area);
            None
        }
        Dialog::Choose { choice, names, row } => {
            choose(canvas, model, *choice, (names, *row), area);
            None
        }
        Dialog::Confirm(asked) => Some(confirm(canvas, asked, area)),
        Dialog::Plan(planning) => super::plan::draw(canvas, model, planning, area),
    }
}

/// The keys that work here, from the table that gives them their meaning.
fn help(canvas: &mut Canvas<'_>, model: &Model, top: usize, area: Rect) {
    let title = format!("Keys that work on {}", model.screen.title());
    let inner = boxed(canvas, area, (area.width, area.height), &title, "? or Esc closes");
    let bindings: Vec<_> = model.keymap.active(model.screen).collect();
    let rows = usize::from(inner.height);
    let last = bindings.len().saturating_sub(rows);
    let top = top.min(last);
    for (y, binding) in (0..inner.height).zip(bindings.iter().skip(top)) {
        let keys: Vec<String> = binding.keys.iter().map(|key| key.name()).collect();
        canvas.text(inner, 0, y, &keys.join(" "), Role::Title);
        let text = canvas.fitted(binding.long, inner.width.saturating_sub(17));
        canvas.text(inner, 17, y, &text, Role::Text);
    }
    if top < last && inner.height > 0 {
        let text = format!(" {} more below ", last - top);
        canvas.right(inner, inner.width, inner.height - 1, &text, Role::Dim);
    }
}

fn choose(canvas: &mut Canvas<'_>, model: &Model, choice: Choice, (names, row): (&[String], usize), area: Rect) {
    let title = match choice {
        Choice::Keyspace => "Keyspace",
    };
    let height = u16::try_from(names.len()).unwrap_or(u16::MAX).saturating_add(2).min(area.height * 2 / 3).max(3);
    let inner = boxed(canvas, area, (44, height), title, "Enter chooses");
    let rows = usize::from(inner.height);
    for (y, (at, name)) in (0_u16..).zip(names.iter().enumerate().skip(top_of(row, rows)).take(rows)) {
        let about = match choice {
            Choice::Keyspace => model.mode_of(name),
        };
        let room = inner.width.saturating_sub(3 + canvas.width(about));
        let name = canvas.fitted(&printable(name.as_bytes()), room);
        canvas.text(inner, 2, y, &name, Role::Text);
        canvas.right(inner, inner.width, y, about, Role::Dim);
        if at == row {
            canvas.text(inner, 0, y, &canvas.symbol('▸').to_string(), Role::Title);
            canvas.select(Rect { x: inner.x + 2, width: inner.width.saturating_sub(2), ..inner }, y);
        }
        canvas.target(inner, 0, y, inner.width, Target::Choice(at));
    }
}

fn confirm(canvas: &mut Canvas<'_>, asked: &Confirm, area: Rect) -> Position {
    let width = 64.min(area.width);
    let what = canvas.wrapped(&format!("This {}.", asked.what), width.saturating_sub(4));
    let rows = u16::try_from(what.len()).unwrap_or(2).min(area.height.saturating_sub(6));
    let inner = boxed(canvas, area, (width, rows + 6), "Confirm", "nothing has changed yet");
    for (y, line) in (0..rows).zip(&what) {
        canvas.text(inner, 0, y, line, Role::Text);
    }
    let same = canvas.fitted(&format!("same as   kv-tui exec --yes {}", for_shell(&asked.line)), inner.width);
    canvas.text(inner, 0, rows + 1, &same, Role::Dim);
    let prompt = format!("Type {} to do it: ", asked.word);
    let y = rows + 3;
    let field = Rect { y: inner.y + y, height: 1, ..inner };
    let start = canvas.text(field, 0, 0, &prompt, Role::Warn);
    draw_typed(canvas, &asked.typed, field, start)
}

/// The command being typed, with what may come behind it, and the usage in the line above.
pub(super) fn bar(canvas: &mut Canvas<'_>, model: &Model, bar: &Bar, above: Rect, area: Rect) -> Position {
    canvas.clear(above);
    let (usage, about) = bar.usage();
    let usage = canvas.fitted(&usage, above.width.saturating_sub(2));
    let end = canvas.text(above, 1, 0, &usage, Role::Title);
    let room = above.width.saturating_sub(end + 4);
    if room > 12 {
        let about = canvas.fitted(&about, room);
        canvas.text(above, end + 3, 0, &about, Role::Dim);
    }
    let position = line(canvas, ":", bar, area);
    let candidates = bar.hints(&model.names());
    let typed = 2 + canvas.width(&bar.text) + 4;
    if !candidates.is_empty() && !bar.text.is_empty() && typed + 12 < area.width {
        let hint = canvas.fitted(&candidates.join("  "), area.width - typed - 1);
        canvas.text(area, typed, 0, &hint, Role::Dim);
    }
    position
}

/// A line being typed behind its prompt; where the cursor is.
pub(super) fn line(canvas: &mut Canvas<'_>, prompt: &str, bar: &Bar, area: Rect) -> Position {
    let start = canvas.text(area, 1, 0, prompt, Role::Title);
    draw_typed(canvas, bar, area, start)
}

pub(super) fn draw_typed(canvas: &mut Canvas<'_>, bar: &Bar, area: Rect, start: u16) -> Position {
    let room = area.width.saturating_sub(start + 1);
    // A long line is shown from where its cursor fits.
    let mut from = 0;
    while canvas.width(&bar.text[from..bar.cursor]) > room {
        from += bar.text[from..].chars().next().map_or(1, char::len_utf8);
    }
    canvas.text(area, start, 0, &bar.text[from..], Role::Text);
    let column = (start + canvas.width(&bar.text[from..bar.cursor])).min(area.width.saturating_sub(1));
    Position::new(area.x + column, area.y)
}
