//! The one vocabulary of keys. What a key does, the hints and the help all come from this table.

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

/// A key as the dashboard tells keys apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the keys of a keyboard")]
pub enum Key {
    Char(char),
    Ctrl(char),
    Up,
    Down,
    Left,
    Right,
    Home,
    End,
    PageUp,
    PageDown,
    Enter,
    Esc,
    Tab,
    BackTab,
    Backspace,
    Delete,
}

impl Key {
    /// The key of a terminal event; `None` for those that mean nothing here.
    #[must_use]
    pub fn from_event(event: &KeyEvent) -> Option<Self> {
        if event.kind == KeyEventKind::Release || event.modifiers.contains(KeyModifiers::ALT) {
            return None;
        }
        let ctrl = event.modifiers.contains(KeyModifiers::CONTROL);
        Some(match event.code {
            KeyCode::Char(c) if ctrl => Self::Ctrl(latin(c).to_ascii_lowercase()),
            KeyCode::Char(c) => Self::Char(c),
            KeyCode::Up => Self::Up,
            KeyCode::Down => Self::Down,
            KeyCode::Left => Self::Left,
            KeyCode::Right => Self::Right,
            KeyCode::Home => Self::Home,
            KeyCode::End => Self::End,
            KeyCode::PageUp => Self::PageUp,
            KeyCode::PageDown => Self::PageDown,
            KeyCode::Enter => Self::Enter,
            KeyCode::Esc => Self::Esc,
            KeyCode::Tab => Self::Tab,
            KeyCode::BackTab => Self::BackTab,
            KeyCode::Backspace => Self::Backspace,
            KeyCode::Delete => Self::Delete,
            _ => return None,
        })
    }

    /// How people write it.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Self::Char(' ') => "Space".to_owned(),
            Self::Char(c) => c.to_string(),
            Self::Ctrl(c) => format!("Ctrl-{}", c.to_ascii_uppercase()),
            Self::PageUp => "PgUp".to_owned(),
            Self::PageDown => "PgDn".to_owned(),
            Self::BackTab => "Shift-Tab".to_owned(),
            other => format!("{other:?}"),
        }
    }
}

/// What a key can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the table says what each does")]
pub enum Action {
    Go(Screen),
    NextScreen,
    PreviousScreen,
    Up,
    Down,
    PageUp,
    PageDown,
    First,
    Last,
    Open,
    Back,
    Sort,
    Grid,
    Prefix,
    Freeze,
    Command,
    Help,
    Redraw,
    Suspend,
    Quit,
}

/// The screens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "named as on the screen")]
pub enum Screen {
    Overview,
    Nodes,
    Keys,
    Events,
}

impl Screen {
    /// All of them, in the order of their tabs.
    pub const ALL: [Self; 4] = [Self::Overview, Self::Nodes, Self::Keys, Self::Events];

    /// The name on the tab.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Overview => "Overview",
            Self::Nodes => "Nodes",
            Self::Keys => "Keys",
            Self::Events => "Events",
        }
    }

    /// The screen `steps` tabs to the right.
    #[must_use]
    pub fn stepped(self, steps: usize) -> Self {
        let at = Self::ALL.iter().position(|screen| *screen == self).unwrap_or(0);
        Self::ALL[(at + steps) % Self::ALL.len()]
    }
}

/// Keys with one meaning.
#[derive(Clone, Copy, Debug)]
pub struct Binding {
    /// Any of these keys.
    pub keys: &'static [Key],
    /// What it does.
    pub action: Action,
    /// In a word or two, for the hints.
    pub short: &'static str,
    /// In a sentence, for the help.
    pub long: &'static str,
    /// Where it works; empty: everywhere.
    pub screens: &'static [Screen],
}

const fn everywhere(keys: &'static [Key], action: Action, short: &'static str, long: &'static str) -> Binding {
    Binding { keys, action, short, long, screens: &[] }
}

use Action as A;
use Key as K;
use Screen as S;

/// Every binding. Those of a screen stand before those that work everywhere.
pub const BINDINGS: &[Binding] = &[
    Binding {
        keys: &[K::Char('s')],
        action: A::Sort,
        short: "sort",
        long: "sort the nodes by the next column",
        screens: &[S::Overview, S::Nodes],
    },
    Binding {
        keys: &[K::Char('v')],
        action: A::Grid,
        short: "places",
        long: "partition grid: first places, or all copies",
        screens: &[S::Overview],
    },
    Binding {
        keys: &[K::Enter],
        action: A::Open,
        short: "open",
        long: "open what is selected: the node, or the key's replicas",
        screens: &[S::Overview, S::Keys],
    },
    Binding {
        keys: &[K::Char('/')],
        action: A::Prefix,
        short: "prefix",
        long: "show only keys that start with a prefix",
        screens: &[S::Keys],
    },
    everywhere(&[K::Char('j'), K::Down], A::Down, "", "one row down"),
    everywhere(&[K::Char('k'), K::Up], A::Up, "", "one row up"),
    everywhere(&[K::PageDown, K::Ctrl('f')], A::PageDown, "", "one page down"),
    everywhere(&[K::PageUp, K::Ctrl('b')], A::PageUp, "", "one page up"),
    everywhere(&[K::Char('g'), K::Home], A::First, "", "to the first row"),
    everywhere(&[K::Char('G'), K::End], A::Last, "", "to the last row that is loaded"),
    everywhere(&[K::Char('1')], A::Go(S::Overview), "", "overview"),
    everywhere(&[K::Char('2')], A::Go(S::Nodes), "", "nodes"),
    everywhere(&[K::Char('3')], A::Go(S::Keys), "", "keys"),
    everywhere(&[K::Char('4')], A::Go(S::Events), "", "events"),
    everywhere(&[K::Tab], A::NextScreen, "", "the next screen"),
    everywhere(&[K::BackTab], A::PreviousScreen, "", "the screen before"),
    everywhere(&[K::Char(' ')], A::Freeze, "freeze", "hold the view while figures are still collected, and let go"),
    everywhere(&[K::Char(':')], A::Command, "command", "type a command, as for kv-tui exec"),
    everywhere(&[K::Char('?')], A::Help, "help", "this help"),
    everywhere(&[K::Esc], A::Back, "", "close what lies on top, else back to the overview"),
    everywhere(&[K::Ctrl('l')], A::Redraw, "", "draw the screen again"),
    everywhere(&[K::Ctrl('z')], A::Suspend, "", "suspend; fg brings it back"),
    everywhere(&[K::Char('q'), K::Ctrl('c')], A::Quit, "quit", "leave; the cluster goes on running"),
];

/// The bindings that work on a screen.
pub fn active(screen: Screen) -> impl Iterator<Item = &'static Binding> {
    BINDINGS.iter().filter(move |binding| binding.screens.is_empty() || binding.screens.contains(&screen))
}

/// What a key does on a screen.
#[must_use]
pub fn action(screen: Screen, key: Key) -> Option<Action> {
    let key = if let Key::Char(c) = key { Key::Char(latin(c)) } else { key };
    active(screen).find(|binding| binding.keys.contains(&key)).map(|binding| binding.action)
}

/// The Latin letter on the key that gives `c` in the Korean two-set layout, so that shortcuts work there too.
fn latin(c: char) -> char {
    const JAMO: &str = "ㅂㅈㄷㄱㅅㅛㅕㅑㅐㅔㅁㄴㅇㄹㅎㅗㅓㅏㅣㅋㅌㅊㅍㅠㅜㅡㅃㅉㄸㄲㅆㅒㅖ";
    const KEYS: &str = "qwertyuiopasdfghjklzxcvbnmQWERTOP";
    JAMO.chars().zip(KEYS.chars()).find(|(jamo, _)| *jamo == c).map_or(c, |(_, key)| key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_means_two_things() {
        for screen in Screen::ALL {
            let keys: Vec<Key> = active(screen).flat_map(|binding| binding.keys.iter().copied()).collect();
            for (at, key) in keys.iter().enumerate() {
                assert!(!keys[at + 1..].contains(key), "{} on {}", key.name(), screen.title());
            }
        }
    }

    #[test]
    fn shortcuts_work_in_the_korean_layout() {
        assert_eq!(action(Screen::Overview, Key::Char('ㅂ')), Some(Action::Quit));
        assert_eq!(action(Screen::Keys, Key::Char('ㅓ')), Some(Action::Down));
        assert_eq!(action(Screen::Keys, Key::Char('ㅍ')), None, "v has no meaning on this screen");
    }
}
