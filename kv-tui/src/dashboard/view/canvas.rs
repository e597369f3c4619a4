//! Drawing text and frames into a buffer, clipped to an area.

use std::borrow::Cow;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use unicode_segmentation::UnicodeSegmentation;
use unicode_width::UnicodeWidthStr;

use crate::dashboard::model::Pane;
use crate::dashboard::mouse::{Target, Targets};
use crate::dashboard::theme::{Role, Theme};
use crate::output::time::rfc3339;

/// A buffer with the theme in which it is drawn, and what can be clicked in it.
pub(super) struct Canvas<'a> {
    buffer: &'a mut Buffer,
    pub(super) theme: Theme,
    pub(super) targets: Targets,
}

/// A titled part of the screen.
#[derive(Clone, Copy, Debug)]
pub(super) struct Panel<'a> {
    /// At the left of its upper edge.
    pub(super) title: &'a str,
    /// At the right of its upper edge, where there is room.
    pub(super) note: &'a str,
    /// Framed, or below a rule.
    pub(super) framed: bool,
    /// Which part of the screen it is, and whether the keys move in it.
    pub(super) pane: Option<(Pane, bool)>,
}

impl<'a> Canvas<'a> {
    pub(super) fn new(buffer: &'a mut Buffer, theme: Theme) -> Self {
        Self { buffer, theme, targets: Targets::default() }
    }

    /// A row, or a part of one, can be clicked.
    pub(super) fn target(&mut self, area: Rect, x: u16, y: u16, width: u16, target: Target) {
        if y < area.height && x < area.width {
            let row = Rect::new(area.x + x, area.y + y, width.min(area.width - x), 1);
            self.targets.add(row.intersection(self.buffer.area), target);
        }
    }

    /// Writes at a place within `area`, cut at its right edge, and returns the column behind the text. What does not fit
    /// is left out; control characters never reach a cell.
    pub(super) fn text(&mut self, area: Rect, x: u16, y: u16, text: &str, role: Role) -> u16 {
        let area = area.intersection(self.buffer.area);
        if x >= area.width || y >= area.height {
            return x;
        }
        // The style of the old cell is not kept for the new one.
        let style = Style::reset().patch(self.theme.style(role));
        let room = usize::from(area.width - x);
        let (end, _) = self.buffer.set_stringn(area.x + x, area.y + y, composed(text), room, style);
        end - area.x
    }

    /// Writes with its right edge at column `end`.
    pub(super) fn right(&mut self, area: Rect, end: u16, y: u16, text: &str, role: Role) {
        self.text(area, end.saturating_sub(self.width(text)), y, text, role);
    }

    /// Reverses a row of `area`.
    pub(super) fn select(&mut self, area: Rect, y: u16) {
        if y < area.height {
            let row = Rect { y: area.y + y, height: 1, ..area }.intersection(self.buffer.area);
            self.buffer.set_style(row, self.theme.style(Role::Selected));
        }
    }

    /// The columns that a text takes.
    pub(super) fn width(&self, text: &str) -> u16 {
        u16::try_from(text.width()).unwrap_or(u16::MAX)
    }

    /// A symbol in this theme.
    pub(super) fn symbol(&self, symbol: char) -> char {
        self.theme.symbol(symbol)
    }

    /// Empties an area.
    pub(super) fn clear(&mut self, area: Rect) {
        let blank = " ".repeat(usize::from(area.width));
        for y in 0..area.height {
            self.text(area, 0, y, &blank, Role::Text);
        }
    }

    /// Draws a part of the screen; what is left inside.
    pub(super) fn panel(&mut self, area: Rect, panel: Panel<'_>) -> Rect {
        let area = area.intersection(self.buffer.area);
        if area.width < 4 || area.height < 2 {
            return Rect { height: 0, ..area };
        }
        let (line, side) = (self.symbol('─'), self.symbol('│'));
        let rule: String = std::iter::repeat_n(line, usize::from(area.width)).collect();
        self.text(area, 0, 0, &rule, Role::Dim);
        if panel.framed {
            let bottom = area.height - 1;
            self.text(area, 0, bottom, &rule, Role::Dim);
            let corners = ['╭', '╮', '╰', '╯'].map(|corner| self.symbol(corner).to_string());
            let right = area.width - 1;
            for (corner, (x, y)) in corners.iter().zip([(0, 0), (right, 0), (0, bottom), (right, bottom)]) {
                self.text(area, x, y, corner, Role::Dim);
            }
            for y in 1..bottom {
                self.text(area, 0, y, &side.to_string(), Role::Dim);
                self.text(area, right, y, &side.to_string(), Role::Dim);
            }
        }
        let inside = Rect { width: area.width - 2, ..area };
        let (title, role) = match panel.pane {
            Some((_, true)) => (format!(" {} {} ", self.symbol('▸'), panel.title), Role::Focus),
            _ => (format!(" {} ", panel.title), Role::Title),
        };
        let end = self.text(inside, 2, 0, &title, role);
        let note = if panel.note.is_empty() { String::new() } else { format!(" {} ", panel.note) };
        if end + self.width(&note) < inside.width {
            self.right(inside, inside.width, 0, &note, Role::Dim);
        }
        if let Some((pane, _)) = panel.pane {
            self.targets.add(area, Target::Pane(pane));
        }
        if panel.framed {
            Rect::new(area.x + 2, area.y + 1, area.width - 4, area.height - 2)
        } else {
            Rect::new(area.x + 1, area.y + 1, area.width - 2, area.height - 1)
        }
    }

    /// A text in lines of at most `width` columns, broken at spaces where there are any.
    pub(super) fn wrapped(&self, text: &str, width: u16) -> Vec<String> {
        let room = usize::from(width.max(1));
        let mut lines = vec![String::new()];
        for word in text.split_whitespace() {
            let line = lines.last_mut().filter(|line| !line.is_empty());
            if let Some(line) = line {
                if line.width() + 1 + word.width() <= room {
                    line.push(' ');
                    line.push_str(word);
                    continue;
                }
                lines.push(String::new());
            }
            for character in word.graphemes(true) {
                if lines.last().is_some_and(|line| line.width() + character.width() > room && !line.is_empty()) {
                    lines.push(String::new());
                }
                if let Some(line) = lines.last_mut() {
                    line.push_str(character);
                }
            }
        }
        lines
    }

    /// A text in lines of at most `width` columns, every space of it kept.
    pub(super) fn chopped(&self, text: &str, width: u16) -> Vec<String> {
        let room = usize::from(width.max(1));
        let mut lines = vec![String::new()];
        for character in text.graphemes(true) {
            if lines.last().is_some_and(|line| line.width() + character.width() > room) {
                lines.push(String::new());
            }
            if let Some(line) = lines.last_mut() {
                line.push_str(character);
            }
        }
        lines
    }

    /// As much of a text as fits into `width` columns, with a mark where something is left out.
    pub(super) fn fitted(&self, text: &str, width: u16) -> String {
        let room = usize::from(width);
        if text.width() <= room {
            return text.to_owned();
        }
        let mut out = String::new();
        for character in text.graphemes(true) {
            if out.width() + character.width() + 1 > room {
                break;
            }
            out.push_str(character);
        }
        if room > 0 {
            out.push(self.symbol('…'));
        }
        out
    }

    /// A bar of `width` cells, of which the part `share` (0 to 1) is filled.
    pub(super) fn meter(&self, share: f64, width: usize) -> String {
        #[allow(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a bar has few cells, and casts of floats saturate"
        )]
        let filled = ((share.clamp(0.0, 1.0) * width as f64).round() as usize).min(width);
        let (full, empty) = (self.symbol('█'), self.symbol('░'));
        std::iter::repeat_n(full, filled).chain(std::iter::repeat_n(empty, width - filled)).collect()
    }
}

/// Korean syllables that are written as single letters (NFD), composed, since not every terminal does it. Other
/// combining characters share the cell of what they combine with. (The Unicode Standard, section 3.12, arithmetic.)
fn composed(text: &str) -> Cow<'_, str> {
    const LEADING: u32 = 0x1100;
    const VOWEL: u32 = 0x1161;
    const TRAILING: u32 = 0x11a7;
    const SYLLABLES: u32 = 0xac00;
    if !text.chars().any(|c| (0x1100..0x1200).contains(&u32::from(c))) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let code = u32::from(c);
        let joined = out.chars().next_back().map(u32::from).and_then(|last| match (last, code) {
            (0x1100..=0x1112, 0x1161..=0x1175) => Some(SYLLABLES + ((last - LEADING) * 21 + (code - VOWEL)) * 28),
            (0xac00..=0xd7a3, 0x11a8..=0x11c2) if (last - SYLLABLES).is_multiple_of(28) => {
                Some(last + (code - TRAILING))
            }
            _ => None,
        });
        match joined.and_then(char::from_u32) {
            Some(syllable) => {
                out.pop();
                out.push(syllable);
            }
            None => out.push(c),
        }
    }
    Cow::Owned(out)
}

/// A count with separators, such as 1,204,318.
pub(super) fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A rate with three digits or so.
pub(super) fn rate(value: f64) -> String {
    match value {
        value if value >= 999_500.0 => format!("{:.1}M", value / 1e6),
        value if value >= 9_999.5 => format!("{:.1}k", value / 1e3),
        value if value >= 99.5 || value == 0.0 => format!("{value:.0}"),
        value => format!("{value:.1}"),
    }
}

/// A latency.
pub(super) fn latency(us: u64) -> String {
    match us {
        0..1000 => format!("{us}us"),
        1000..100_000 => format!("{}.{}ms", us / 1000, us % 1000 / 100),
        100_000..10_000_000 => format!("{}ms", us / 1000),
        _ => format!("{}s", us / 1_000_000),
    }
}

/// The clock of a moment, in UTC.
pub(super) fn clock(us: u64) -> String {
    rfc3339(us).get(11..19).unwrap_or_default().to_owned()
}

/// `-` for what is not known.
pub(super) fn known<T>(value: Option<T>, show: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| "-".to_owned(), show)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn korean_letters_become_syllables() {
        let check = |apart: &str, together: &str| assert_eq!(composed(apart), together);
        check("\u{1100}\u{1161}\u{11bc}\u{1102}\u{1161}\u{11b7}", "강남");
        check("\u{1112}\u{1161}x\u{11ab}", "하x\u{11ab}");
        check("e\u{301}", "e\u{301}");
    }

    #[test]
    fn figures_are_short() {
        assert_eq!([grouped(7), grouped(1_204_318), grouped(999)], ["7", "1,204,318", "999"]);
        assert_eq!([rate(0.0), rate(0.25), rate(4120.4), rate(19_520.0)], ["0", "0.2", "4120", "19.5k"]);
        assert_eq!([latency(950), latency(1900), latency(250_000)], ["950us", "1.9ms", "250ms"]);
    }
}
