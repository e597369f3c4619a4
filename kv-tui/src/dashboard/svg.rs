//! A drawn screen as SVG, for documents. The same screen always gives the same bytes.

use std::collections::BTreeMap;

use kv_proto::v1;
use ratatui::buffer::{Buffer, Cell};
use ratatui::style::{Color, Modifier};
use unicode_width::UnicodeWidthStr;

use super::keymap::Key;
use super::model::Model;
use super::msg::{Effect, Feed, Msg};
use super::source::fake::{Fake, START_US};
use super::theme::{Palette, Theme};
use super::update::update;
use super::view::draw;

/// A cell, in pixels.
const CELL: (usize, usize) = (8, 17);

/// Around the screen, in pixels.
const MARGIN: usize = 12;

const BACKGROUND: &str = "#16181d";
const FOREGROUND: &str = "#d5d8de";

/// A screen as SVG.
#[must_use]
pub fn svg(screen: &Buffer) -> String {
    let (columns, rows) = (usize::from(screen.area.width), usize::from(screen.area.height));
    let (width, height) = (columns * CELL.0 + 2 * MARGIN, rows * CELL.1 + 2 * MARGIN);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\">\n\
         <rect width=\"{width}\" height=\"{height}\" rx=\"8\" fill=\"{BACKGROUND}\"/>\n\
         <g font-family=\"DejaVu Sans Mono, Menlo, Consolas, monospace\" font-size=\"13.3\" xml:space=\"preserve\">\n"
    );
    for y in 0..screen.area.height {
        let mut x = 0;
        while x < screen.area.width {
            let run = run_at(screen, x, y);
            out.push_str(&run.svg(usize::from(x), usize::from(y)));
            x = x.saturating_add(u16::try_from(run.width.max(1)).unwrap_or(1));
        }
    }
    out.push_str("</g>\n</svg>\n");
    out
}

/// Cells in a row that look alike.
struct Run {
    cells: Vec<(char, String)>,
    width: usize,
    style: (Color, Modifier),
}

fn run_at(screen: &Buffer, x: u16, y: u16) -> Run {
    let style = |cell: &Cell| (cell.fg, cell.modifier);
    let mut run = Run { cells: Vec::new(), width: 0, style: (Color::Reset, Modifier::empty()) };
    let mut at = x;
    while let Some(cell) = screen.cell((at, y)).filter(|_| at < screen.area.width) {
        if run.width == 0 {
            run.style = style(cell);
        } else if style(cell) != run.style {
            break;
        }
        let width = cell.symbol().width().max(1);
        run.cells.push((cell.symbol().chars().next().unwrap_or(' '), cell.symbol().to_owned()));
        run.width += width;
        at = at.saturating_add(u16::try_from(width).unwrap_or(1));
    }
    run
}

impl Run {
    fn svg(&self, x: usize, y: usize) -> String {
        let (color, modifier) = self.style;
        let reversed = modifier.contains(Modifier::REVERSED);
        let ink = match color {
            Color::Rgb(r, g, b) => format!("#{r:02x}{g:02x}{b:02x}"),
            _ => FOREGROUND.to_owned(),
        };
        let top = MARGIN + y * CELL.1;
        let mut out = String::new();
        if reversed {
            let (left, width, height) = (MARGIN + x * CELL.0, self.width * CELL.0, CELL.1);
            out.push_str(&format!(
                "<rect x=\"{left}\" y=\"{top}\" width=\"{width}\" height=\"{height}\" fill=\"{ink}\"/>\n"
            ));
        }
        let fill = if reversed { BACKGROUND } else { &ink };
        let faint = modifier.contains(Modifier::DIM);
        let weight = if modifier.contains(Modifier::BOLD) { " font-weight=\"bold\"" } else { "" };
        // Lines and dots are drawn, so that they join whatever the font; words stand where their first cell is.
        let (mut lines, mut dots, mut words) = (String::new(), String::new(), Vec::<(usize, String)>::new());
        let (mut column, mut blanks) = (x, 2);
        for (character, symbol) in &self.cells {
            let left = MARGIN + column * CELL.0;
            let drawn = match character {
                '\u{2801}'..='\u{28ff}' => {
                    dots.push_str(&braille(*character, left, top));
                    true
                }
                _ => line_of(*character, left, top).is_some_and(|line| {
                    lines.push_str(&line);
                    true
                }),
            };
            let blank = drawn || symbol == " " || symbol == "\u{2800}";
            match words.last_mut().filter(|_| blanks < 2) {
                Some((_, word)) => word.push_str(if blank { " " } else { symbol }),
                None if !blank => words.push((column, symbol.clone())),
                None => {}
            }
            blanks = if blank { blanks + 1 } else { 0 };
            column += symbol.width().max(1);
        }
        let opacity = if faint { " opacity=\"0.5\"" } else { "" };
        if !lines.is_empty() {
            out.push_str(&format!("<path d=\"{lines}\" fill=\"none\" stroke=\"{fill}\"{opacity}/>\n"));
        }
        if !dots.is_empty() {
            out.push_str(&format!("<path d=\"{dots}\" fill=\"{fill}\"{opacity}/>\n"));
        }
        for (column, word) in words {
            let word = word.trim_end();
            let (left, baseline) = (MARGIN + column * CELL.0, top + 13);
            let length = word.width() * CELL.0;
            let escaped = word.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
            let faint = if faint { " fill-opacity=\"0.55\"" } else { "" };
            out.push_str(&format!(
                "<text x=\"{left}\" y=\"{baseline}\" textLength=\"{length}\" \
                 fill=\"{fill}\"{weight}{faint}>{escaped}</text>\n"
            ));
        }
        out
    }
}

/// The dots of a braille character as squares (Unicode block 2800: bits 0 to 2 and 6 at the left, the others at the
/// right).
fn braille(character: char, left: usize, top: usize) -> String {
    let bits = u32::from(character) - 0x2800;
    let places = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (0, 3), (1, 3)];
    let mut out = String::new();
    for (_, (x, y)) in places.into_iter().enumerate().filter(|(bit, _)| bits >> bit & 1 == 1) {
        out.push_str(&format!("M{} {}h3v3h-3z", left + x * 4, top + 1 + y * 4));
    }
    out
}

/// The strokes of a character of frames; `None` for any other.
fn line_of(character: char, left: usize, top: usize) -> Option<String> {
    let (right, bottom) = (left + CELL.0, top + CELL.1);
    let (x, y) = (left + CELL.0 / 2, top + CELL.1 / 2);
    Some(match character {
        '─' => format!("M{left} {y}H{right}"),
        '│' => format!("M{x} {top}V{bottom}"),
        '╭' => format!("M{x} {bottom}Q{x} {y} {right} {y}"),
        '╮' => format!("M{x} {bottom}Q{x} {y} {left} {y}"),
        '╰' => format!("M{x} {top}Q{x} {y} {right} {y}"),
        '╯' => format!("M{x} {top}Q{x} {y} {left} {y}"),
        _ => return None,
    })
}

/// A triangular wave from 0 to 100, in whole numbers, so that every machine draws the same.
fn wave(second: u64, period: u64) -> u64 {
    let at = second % period;
    at.min(period - at) * 200 / period
}

/// The image in the README: the overview of five nodes in memory after three minutes of work.
#[must_use]
pub fn overview() -> String {
    let Ok(fake) = Fake::new(5) else { return String::new() };
    let theme = Theme { palette: Palette::Dark, ..Theme::default() };
    let mut model = Model::new("local".to_owned(), theme, false, (120, 36), START_US);
    let mut send = |msg: Msg| {
        for effect in update(&mut model, msg) {
            if let Effect::Ask(ask) = effect {
                for feed in fake.answer(ask) {
                    update(&mut model, Msg::Feed(feed));
                }
            }
        }
    };
    fake.first().into_iter().map(Msg::Feed).for_each(&mut send);
    let mut sums = BTreeMap::new();
    for second in 1..=180 {
        send(Msg::Clock(START_US + second * 1_000_000));
        for mut feed in fake.second(second) {
            if let Feed::Snapshot(node, snapshot) = &mut feed {
                let (gets, puts) = sums.entry(*node).or_insert((0, 0));
                *gets += 2400 + 300 * wave(second, 61) / 10 + 25 * wave(second + node.0 * 5, 17);
                *puts += 600 + 40 * wave(second + 20, 97) / 10 + 5 * wave(second + node.0 * 3, 13);
                snapshot.counters = Some(v1::Counters { gets: *gets, puts: *puts, ..v1::Counters::default() });
            }
            send(Msg::Feed(feed));
        }
    }
    send(Msg::Key(Key::Down));
    svg(&draw(&model).buffer)
}

#[cfg(test)]
mod tests {
    use ratatui::layout::Rect;
    use ratatui::style::Style;

    use super::*;

    #[test]
    fn the_image_in_the_documents_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/overview.svg");
        let saved = std::fs::read_to_string(path).expect("the image");
        let again = "cargo run -p kv-tui --example overview > docs/overview.svg";
        assert!(saved == overview(), "the screen has changed; draw the image again: {again}");
    }

    #[test]
    fn cells_become_text() {
        let mut buffer = Buffer::empty(Rect::new(0, 0, 8, 1));
        buffer.set_string(0, 0, "a<강", Style::new().fg(Color::Rgb(1, 2, 3)));
        buffer.set_string(5, 0, "b", Style::new().add_modifier(Modifier::REVERSED));
        let drawn = svg(&buffer);
        assert!(drawn.contains("textLength=\"32\" fill=\"#010203\">a&lt;강</text>"), "{drawn}");
        assert!(drawn.contains("<rect x=\"52\""), "{drawn}");
    }
}
