//! What lies on top: help, the output of a command, and the line being typed.

use ratatui::layout::{Position, Rect};

use super::Room;
use super::canvas::Canvas;
use crate::dashboard::bar::Bar;
use crate::dashboard::keymap::{Key, Screen, active};
use crate::dashboard::model::Output;
use crate::dashboard::theme::Role;
use crate::output::bytes::printable;

/// The keys that work here, from the table that gives them their meaning.
pub(super) fn help(canvas: &mut Canvas<'_>, screen: Screen, top: usize, area: Rect) {
    canvas.clear(area);
    let title = format!("Keys that work on {}", screen.title());
    let inner = canvas.panel(area, &title, "? or Esc closes", true);
    let bindings: Vec<_> = active(screen).collect();
    let top = top.min(bindings.len().saturating_sub(usize::from(inner.height)));
    for (y, binding) in (0..inner.height).zip(bindings.iter().skip(top)) {
        let keys: Vec<String> = binding.keys.iter().map(|key| Key::name(*key)).collect();
        canvas.text(inner, 0, y, &keys.join(" "), Role::Title);
        canvas.text(inner, 16, y, binding.long, Role::Text);
    }
}

/// What a command printed, in the lower part of the screen.
pub(super) fn output(canvas: &mut Canvas<'_>, output: &Output, area: Rect, room: Room) {
    let error = canvas.wrapped(&printable(output.error.as_bytes()), area.width.saturating_sub(4));
    let told = output.lines.len() + if output.error.is_empty() { 0 } else { error.len() };
    let height = u16::try_from(told.saturating_add(2)).unwrap_or(u16::MAX).clamp(3, (area.height * 2 / 3).max(3));
    let height = height.min(area.height);
    let area = Rect { y: area.y + area.height - height, height, ..area };
    canvas.clear(area);
    let note = match output.code {
        None => "running; Esc ends it".to_owned(),
        Some(0) => "done; Esc closes".to_owned(),
        Some(code) => format!("exit code {code}; Esc closes"),
    };
    let inner = canvas.panel(area, &format!(":{}", printable(output.line.as_bytes())), &note, room != Room::Small);
    let mut lines: Vec<(&str, Role)> = output.lines.iter().map(|line| (line.as_str(), Role::Text)).collect();
    if !output.error.is_empty() {
        lines.extend(error.iter().map(|line| (line.as_str(), Role::Bad)));
    }
    let fitting = usize::from(inner.height);
    let end = lines.len().saturating_sub(output.up).max(fitting.min(lines.len()));
    let start = end.saturating_sub(fitting);
    for (y, (line, role)) in (0_u16..).zip(&lines[start..end]) {
        canvas.text(inner, 0, y, line, *role);
    }
}

/// The line being typed, with what may come and the usage behind it; where the cursor stands.
pub(super) fn bar(canvas: &mut Canvas<'_>, prompt: &str, bar: &Bar, candidates: &[String], area: Rect) -> Position {
    let start = canvas.text(area, 1, 0, prompt, Role::Title);
    let room = area.width.saturating_sub(start + 1);
    // A long line is shown from where its cursor fits.
    let mut from = 0;
    while canvas.width(&bar.text[from..bar.cursor]) > room {
        from += bar.text[from..].chars().next().map_or(1, char::len_utf8);
    }
    let end = canvas.text(area, start, 0, &bar.text[from..], Role::Text);
    let column = (start + canvas.width(&bar.text[from..bar.cursor])).min(area.width.saturating_sub(1));
    if prompt == ":" {
        let hint = if candidates.is_empty() || bar.text.is_empty() { bar.usage() } else { candidates.join("  ") };
        if end + 4 < area.width {
            canvas.text(area, end + 4, 0, &hint, Role::Dim);
        }
    }
    Position::new(area.x + column, area.y)
}
