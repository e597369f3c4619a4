//! Colours and symbols. Every state is a word and a symbol as well, so nothing depends on colour.

use ratatui::style::{Color, Modifier, Style};
use serde::Deserialize;

/// Sets of colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Palette {
    /// For dark backgrounds.
    #[default]
    Dark,
    /// For light backgrounds.
    Light,
    /// None: bold, dim and reversed only.
    Mono,
}

/// What charts and the ring are drawn with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Marks {
    /// Dots, eight to a cell.
    #[default]
    Braille,
    /// Blocks, for fonts without dots.
    Block,
}

/// How many colours the terminal has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Depth {
    /// 16 million.
    #[default]
    True,
    /// 256, of which 240 are the same everywhere.
    Indexed,
    /// 16, which the person has chosen.
    Basic,
}

impl Depth {
    /// The depth that the environment names: COLORTERM, else TERM.
    #[must_use]
    pub fn of(colorterm: &str, term: &str) -> Self {
        if matches!(colorterm, "truecolor" | "24bit") || term.ends_with("-direct") {
            Self::True
        } else if term.contains("256") {
            Self::Indexed
        } else {
            Self::Basic
        }
    }
}

/// How everything is drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Theme {
    /// The colours.
    pub palette: Palette,
    /// How many of them there are.
    pub depth: Depth,
    /// What charts are drawn with.
    pub marks: Marks,
    /// Draw with ASCII only; data keeps its characters.
    pub ascii: bool,
}

/// What is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "roles, named for what they mark")]
pub enum Role {
    Text,
    Dim,
    Title,
    Focus,
    Good,
    Warn,
    Bad,
    Get,
    Put,
    Selected,
    Node(usize),
}

/// Hues that people with colour-blindness can distinguish (Okabe and Ito), for dark and for light backgrounds: sky, orange,
/// green, yellow, purple, vermillion; then the nearest ones of 256, and of 16.
const DARK: [u32; 6] = [0x56_b4e9, 0xe6_9f00, 0x00_9e73, 0xf0_e442, 0xcc_79a7, 0xd5_5e00];
const LIGHT: [u32; 6] = [0x0b_6ea8, 0x9a_6700, 0x00_704f, 0x7a_6f00, 0x98_457a, 0xb3_4700];
const DARK_INDEXED: [u8; 6] = [74, 178, 36, 227, 175, 166];
const LIGHT_INDEXED: [u8; 6] = [25, 94, 23, 100, 96, 130];
const BASIC: [Color; 6] = [Color::Cyan, Color::Yellow, Color::Green, Color::Blue, Color::Magenta, Color::Red];

impl Theme {
    /// The style of a role.
    #[must_use]
    pub fn style(self, role: Role) -> Style {
        let hue = |index: usize| {
            let at = index % DARK.len();
            let color = match (self.palette, self.depth) {
                (Palette::Mono, _) => return Style::new(),
                (_, Depth::Basic) => BASIC[at],
                (Palette::Dark, Depth::Indexed) => Color::Indexed(DARK_INDEXED[at]),
                (Palette::Light, Depth::Indexed) => Color::Indexed(LIGHT_INDEXED[at]),
                (Palette::Dark, Depth::True) => Color::from_u32(DARK[at]),
                (Palette::Light, Depth::True) => Color::from_u32(LIGHT[at]),
            };
            Style::new().fg(color)
        };
        match role {
            Role::Text => Style::new(),
            Role::Dim => Style::new().add_modifier(Modifier::DIM),
            Role::Title => Style::new().add_modifier(Modifier::BOLD),
            Role::Focus => hue(0).add_modifier(Modifier::BOLD),
            Role::Good => hue(2),
            Role::Warn => hue(1).add_modifier(Modifier::BOLD),
            Role::Bad => hue(5).add_modifier(Modifier::BOLD),
            Role::Get => hue(0),
            Role::Put => hue(1),
            Role::Selected => Style::new().add_modifier(Modifier::REVERSED),
            Role::Node(index) => hue(index),
        }
    }

    /// A symbol, or what stands for it in ASCII.
    #[must_use]
    pub fn symbol(self, symbol: char) -> char {
        if !self.ascii {
            return symbol;
        }
        match symbol {
            '●' => '*',
            '✓' => '+',
            '▲' => '!',
            '✗' => 'x',
            '◆' => '#',
            '○' => 'o',
            '▸' | '▶' | '→' => '>',
            '▼' => 'v',
            '─' | '━' => '-',
            '│' => '|',
            '╭' | '╮' | '╰' | '╯' => '+',
            '█' => '#',
            '░' => '.',
            '·' => '.',
            '∥' => '|',
            '…' => '~',
            'Σ' => '=',
            other => other,
        }
    }

    /// The letter of a node; beyond the alphabets the mark `#`.
    #[must_use]
    pub fn letter(index: usize) -> char {
        ('A'..='Z').chain('a'..='z').nth(index).unwrap_or('#')
    }

    /// A column of a chart, filled to `eighths` of its cell, 0 to 8.
    #[must_use]
    pub fn bar(self, eighths: usize) -> char {
        let levels: [char; 9] = if self.ascii {
            [' ', '.', '.', ':', ':', '=', '=', '#', '#']
        } else {
            [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█']
        };
        levels[eighths.min(8)]
    }

    /// Whether charts are drawn with dots.
    #[must_use]
    pub fn has_dots(self) -> bool {
        self.marks == Marks::Braille && !self.ascii
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_fit_the_terminal() {
        assert_eq!(Depth::of("truecolor", "xterm"), Depth::True);
        assert_eq!(Depth::of("", "xterm-256color"), Depth::Indexed);
        assert_eq!(Depth::of("", "linux"), Depth::Basic);
        let color = |depth, palette| Theme { depth, palette, ..Theme::default() }.style(Role::Node(6)).fg;
        assert_eq!(color(Depth::Indexed, Palette::Dark), Some(Color::Indexed(74)));
        assert_eq!(color(Depth::Basic, Palette::Light), Some(Color::Cyan));
        assert_eq!(color(Depth::True, Palette::Mono), None);
    }
}
