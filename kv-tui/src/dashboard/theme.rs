//! Colours and symbols. Every state is a word and a symbol as well, so nothing depends on colour.

use ratatui::style::{Color, Modifier, Style};

/// Sets of colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Palette {
    /// For dark backgrounds.
    #[default]
    Dark,
    /// For light backgrounds.
    Light,
    /// None: bold, dim and reversed only.
    Mono,
}

/// How everything is drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Theme {
    /// The colours.
    pub palette: Palette,
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
    Good,
    Warn,
    Bad,
    Get,
    Put,
    Selected,
    Node(usize),
}

/// Hues that people with colour-blindness tell apart (Okabe and Ito), for dark and for light backgrounds: sky, orange,
/// green, yellow, purple, vermillion.
const DARK: [u32; 6] = [0x56_b4e9, 0xe6_9f00, 0x00_9e73, 0xf0_e442, 0xcc_79a7, 0xd5_5e00];
const LIGHT: [u32; 6] = [0x0b_6ea8, 0x9a_6700, 0x00_704f, 0x7a_6f00, 0x98_457a, 0xb3_4700];

impl Theme {
    /// The style of a role.
    #[must_use]
    pub fn style(self, role: Role) -> Style {
        let hue = |index: usize| match self.palette {
            Palette::Dark => Style::new().fg(Color::from_u32(DARK[index % DARK.len()])),
            Palette::Light => Style::new().fg(Color::from_u32(LIGHT[index % LIGHT.len()])),
            Palette::Mono => Style::new(),
        };
        match role {
            Role::Text => Style::new(),
            Role::Dim => Style::new().add_modifier(Modifier::DIM),
            Role::Title => Style::new().add_modifier(Modifier::BOLD),
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
            '▲' => '!',
            '✗' => 'x',
            '◆' => '#',
            '○' => 'o',
            '▸' | '▶' => '>',
            '─' => '-',
            '│' => '|',
            '╭' | '╮' | '╰' | '╯' => '+',
            '█' => '#',
            '░' => '.',
            '·' => '.',
            '∥' => '|',
            '…' => '~',
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
}
