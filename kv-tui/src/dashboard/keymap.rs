//! The one vocabulary of keys. What a key does, the hints and the help all come from this table.

use std::collections::BTreeMap;

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

/// A key as the dashboard distinguishes keys.
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

/// The keys that have names, and how people write them.
const NAMES: &[(Key, &str)] = &[
    (Key::Char(' '), "Space"),
    (Key::Up, "Up"),
    (Key::Down, "Down"),
    (Key::Left, "Left"),
    (Key::Right, "Right"),
    (Key::Home, "Home"),
    (Key::End, "End"),
    (Key::PageUp, "PgUp"),
    (Key::PageDown, "PgDn"),
    (Key::Enter, "Enter"),
    (Key::Esc, "Esc"),
    (Key::Tab, "Tab"),
    (Key::BackTab, "Shift-Tab"),
    (Key::Backspace, "Backspace"),
    (Key::Delete, "Delete"),
];

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
        if let Some((_, name)) = NAMES.iter().find(|(key, _)| *key == self) {
            return (*name).to_owned();
        }
        match self {
            Self::Char(c) => c.to_string(),
            Self::Ctrl(c) => format!("Ctrl-{}", c.to_ascii_uppercase()),
            _ => String::new(),
        }
    }

    /// The key that people write so; `None` if there is none.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        if let Some((key, _)) = NAMES.iter().find(|(_, known)| known.eq_ignore_ascii_case(name)) {
            return Some(*key);
        }
        let single = |text: &str| {
            let mut chars = text.chars();
            chars.next().filter(|c| chars.next().is_none() && !c.is_control())
        };
        match name.strip_prefix("Ctrl-").or_else(|| name.strip_prefix("ctrl-")) {
            Some(letter) => single(letter).map(|c| Self::Ctrl(c.to_ascii_lowercase())),
            None => single(name).map(Self::Char),
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
    NextPane,
    Up,
    Down,
    Left,
    Right,
    PageUp,
    PageDown,
    First,
    Last,
    Open,
    Back,
    Sort,
    Reverse,
    Map,
    Wider,
    Narrower,
    Filter,
    Keyspace,
    Put,
    Delete,
    AddNode,
    RemoveNode,
    ReplaceNode,
    Weigh,
    Pause,
    Resume,
    Throttle,
    CancelOperation,
    RetryAll,
    Export,
    View,
    Audit,
    Copy,
    Freeze,
    Mouse,
    Command,
    Help,
    Redraw,
    Suspend,
    Quit,
}

/// The screens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[allow(missing_docs, reason = "named as on the screen")]
pub enum Screen {
    #[default]
    Overview,
    Nodes,
    Migration,
    Keys,
    Events,
}

impl Screen {
    /// All of them, in the order of their tabs.
    pub const ALL: [Self; 5] = [Self::Overview, Self::Nodes, Self::Migration, Self::Keys, Self::Events];

    /// The name on the tab.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Overview => "Overview",
            Self::Nodes => "Nodes",
            Self::Migration => "Migration",
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
#[derive(Clone, Debug)]
pub struct Binding {
    /// What it is called in the configuration.
    pub name: &'static str,
    /// Any of these keys.
    pub keys: Vec<Key>,
    /// What it does.
    pub action: Action,
    /// In a word or two, for the hints.
    pub short: &'static str,
    /// In a sentence, for the help.
    pub long: &'static str,
    /// Where it works; empty: everywhere.
    pub screens: &'static [Screen],
}

/// A row of the table: name, keys, action, hint, help, screens.
type Row = (&'static str, &'static [Key], Action, &'static str, &'static str, &'static [Screen]);

use Action as A;
use Key as K;
use Screen as S;

/// Every binding as it is without a configuration. Those of a screen stand before those that work everywhere.
const ROWS: &[Row] = &[
    (
        "open",
        &[K::Enter],
        A::Open,
        "open",
        "open what is selected: the node, the operation's receipts, or the key's replicas",
        &[S::Overview, S::Nodes, S::Migration, S::Keys],
    ),
    (
        "map",
        &[K::Char('v')],
        A::Map,
        "view",
        "the map: primaries, all copies, or the ring where it has no room",
        &[S::Overview],
    ),
    ("left", &[K::Char('h'), K::Left], A::Left, "", "the partition before", &[S::Overview]),
    ("right", &[K::Char('l'), K::Right], A::Right, "", "the next partition", &[S::Overview]),
    ("wider", &[K::Char('-')], A::Wider, "", "show more time in the chart", &[S::Overview]),
    ("narrower", &[K::Char('+'), K::Char('=')], A::Narrower, "", "show less time in the chart", &[S::Overview]),
    ("pause", &[K::Char('p')], A::Pause, "pause", "copy and cut over nothing new until it is resumed", &[S::Migration]),
    (
        "resume",
        &[K::Char('r')],
        A::Resume,
        "resume/retry",
        "resume; while it runs, let the selected move try another source",
        &[S::Migration],
    ),
    (
        "cancel",
        &[K::Char('x')],
        A::CancelOperation,
        "cancel",
        "end the operation, after a word is typed",
        &[S::Migration],
    ),
    (
        "throttle",
        &[K::Char('b')],
        A::Throttle,
        "bandwidth",
        "limit how fast nodes copy, in the command bar",
        &[S::Migration],
    ),
    (
        "retry-all",
        &[K::Char('R')],
        A::RetryAll,
        "retry all",
        "let all moves that wait try another source",
        &[S::Migration],
    ),
    (
        "export",
        &[K::Char('E')],
        A::Export,
        "export",
        "write the operation with its receipts to a file, as op show --output json prints it",
        &[S::Migration],
    ),
    ("flow", &[K::Char('v')], A::View, "view", "moves, flow or map, where there is no room for all", &[S::Migration]),
    (
        "audit",
        &[K::Char('a')],
        A::Audit,
        "audit",
        "only changes of the cluster: who made them, and what undoes them; again: all events",
        &[S::Events],
    ),
    (
        "add-node",
        &[K::Char('a')],
        A::AddNode,
        "add",
        "add a node: its plan is shown before anything moves",
        &[S::Overview, S::Nodes, S::Migration],
    ),
    (
        "remove-node",
        &[K::Char('D')],
        A::RemoveNode,
        "remove",
        "remove the selected node: its plan is shown before anything moves",
        &[S::Overview, S::Nodes],
    ),
    (
        "replace-node",
        &[K::Char('R')],
        A::ReplaceNode,
        "",
        "give the places of the selected node to a spare",
        &[S::Nodes],
    ),
    ("weight", &[K::Char('w')], A::Weigh, "", "change the capacity of the selected node", &[S::Nodes]),
    ("put", &[K::Char('p')], A::Put, "put", "write a key, in the command bar", &[S::Keys]),
    (
        "delete",
        &[K::Char('d'), K::Delete],
        A::Delete,
        "delete",
        "delete the selected key, after its name is typed",
        &[S::Keys],
    ),
    ("keyspace", &[K::Char('K')], A::Keyspace, "keyspace", "choose the keyspace whose keys are shown", &[S::Keys]),
    ("filter", &[K::Char('/')], A::Filter, "filter", "show only what holds a text; of keys, what starts with it", &[]),
    (
        "sort",
        &[K::Char('s')],
        A::Sort,
        "sort",
        "sort the list by its next column",
        &[S::Overview, S::Nodes, S::Migration, S::Events],
    ),
    (
        "reverse",
        &[K::Char('S')],
        A::Reverse,
        "",
        "turn the order of the list round",
        &[S::Overview, S::Nodes, S::Migration, S::Events],
    ),
    (
        "pane",
        &[K::Tab, K::BackTab],
        A::NextPane,
        "pane",
        "the other part of the screen",
        &[S::Overview, S::Nodes, S::Migration, S::Keys],
    ),
    ("down", &[K::Char('j'), K::Down], A::Down, "", "one row down", &[]),
    ("up", &[K::Char('k'), K::Up], A::Up, "", "one row up", &[]),
    ("page-down", &[K::PageDown, K::Ctrl('f')], A::PageDown, "", "one page down", &[]),
    ("page-up", &[K::PageUp, K::Ctrl('b')], A::PageUp, "", "one page up", &[]),
    ("first", &[K::Char('g'), K::Home], A::First, "", "to the first row", &[]),
    ("last", &[K::Char('G'), K::End], A::Last, "", "to the last row that is loaded", &[]),
    ("overview", &[K::Char('1')], A::Go(S::Overview), "", "the overview", &[]),
    ("nodes", &[K::Char('2')], A::Go(S::Nodes), "", "the nodes", &[]),
    ("migration", &[K::Char('3')], A::Go(S::Migration), "", "operations and what they move", &[]),
    ("keys", &[K::Char('4')], A::Go(S::Keys), "", "the keys", &[]),
    ("events", &[K::Char('5')], A::Go(S::Events), "", "the events", &[]),
    ("next-screen", &[K::Char(']')], A::NextScreen, "", "the next screen", &[]),
    ("previous-screen", &[K::Char('[')], A::PreviousScreen, "", "the screen before", &[]),
    ("copy", &[K::Char('y')], A::Copy, "copy", "copy what is selected: address, key, event or output", &[]),
    ("freeze", &[K::Char(' ')], A::Freeze, "freeze", "freeze the view while data is still collected, and resume", &[]),
    ("mouse", &[K::Char('M')], A::Mouse, "", "leave the mouse to the terminal, to select text, and take it back", &[]),
    ("redraw", &[K::Ctrl('l')], A::Redraw, "", "draw the screen again", &[]),
    ("suspend", &[K::Ctrl('z')], A::Suspend, "", "suspend; fg brings it back", &[]),
    ("back", &[K::Esc], A::Back, "", "close what lies on top, else clear the filter, else go to the overview", &[]),
    ("command", &[K::Char(':')], A::Command, "command", "type a command, as for kv-tui exec", &[]),
    ("help", &[K::Char('?')], A::Help, "help", "this help", &[]),
    ("quit", &[K::Char('q'), K::Ctrl('c')], A::Quit, "quit", "leave the dashboard", &[]),
];

/// All bindings.
#[derive(Clone, Debug)]
pub struct KeyMap {
    bindings: Vec<Binding>,
}

impl Default for KeyMap {
    fn default() -> Self {
        let binding = |(name, keys, action, short, long, screens): &Row| Binding {
            name,
            keys: keys.to_vec(),
            action: *action,
            short,
            long,
            screens,
        };
        Self { bindings: ROWS.iter().map(binding).collect() }
    }
}

impl KeyMap {
    /// The bindings with other keys for some actions.
    ///
    /// # Errors
    /// The name that is wrong, and why: no such action, no such key, none at all, or a key that already means something.
    pub fn with(changes: &BTreeMap<String, Vec<String>>) -> Result<Self, (String, String)> {
        let mut map = Self::default();
        for (name, keys) in changes {
            let failed = |why: String| Err((name.clone(), why));
            let Some(binding) = map.bindings.iter_mut().find(|binding| binding.name == name) else {
                let known: Vec<&str> = ROWS.iter().map(|row| row.0).collect();
                return failed(format!("no action is named {name}; there are: {}", known.join(", ")));
            };
            if keys.is_empty() {
                return failed(format!("{name} needs a key"));
            }
            let mut parsed = Vec::new();
            for key in keys {
                match Key::parse(key) {
                    Some(key) => parsed.push(key),
                    None => return failed(format!("{key:?} is not a key; write one such as x, Ctrl-X, Enter or PgUp")),
                }
            }
            binding.keys = parsed;
        }
        for screen in Screen::ALL {
            let bound: Vec<(&Binding, Key)> =
                map.active(screen).flat_map(|binding| binding.keys.iter().map(move |key| (binding, *key))).collect();
            for (at, (binding, key)) in bound.iter().enumerate() {
                let Some((other, _)) = bound[at + 1..].iter().find(|(_, other)| other == key) else { continue };
                let (changed, other) =
                    if changes.contains_key(other.name) { (other, binding) } else { (binding, other) };
                return Err((changed.name.to_owned(), format!("{} already means {}", key.name(), other.name)));
            }
        }
        Ok(map)
    }

    /// The bindings that work on a screen.
    pub fn active(&self, screen: Screen) -> impl Iterator<Item = &Binding> {
        self.bindings.iter().filter(move |binding| binding.screens.is_empty() || binding.screens.contains(&screen))
    }

    /// What a key does on a screen.
    #[must_use]
    pub fn action(&self, screen: Screen, key: Key) -> Option<Action> {
        let meaning = |key: Key| self.active(screen).find(|binding| binding.keys.contains(&key));
        let typed = if let Key::Char(c) = key { Key::Char(latin(c)) } else { key };
        meaning(key).or_else(|| meaning(typed)).map(|binding| binding.action)
    }

    /// The first key of an action, for hints in sentences.
    #[must_use]
    pub fn key_of(&self, action: Action) -> String {
        let binding = self.bindings.iter().find(|binding| binding.action == action);
        binding.and_then(|binding| binding.keys.first()).map(|key| key.name()).unwrap_or_default()
    }
}

/// The Latin letter on the key that gives `c` in the Korean two-set layout, so that shortcuts work there too.
pub(super) fn latin(c: char) -> char {
    const JAMO: &str = "ㅂㅈㄷㄱㅅㅛㅕㅑㅐㅔㅁㄴㅇㄹㅎㅗㅓㅏㅣㅋㅌㅊㅍㅠㅜㅡㅃㅉㄸㄲㅆㅒㅖ";
    const KEYS: &str = "qwertyuiopasdfghjklzxcvbnmQWERTOP";
    JAMO.chars().zip(KEYS.chars()).find(|(jamo, _)| *jamo == c).map_or(c, |(_, key)| key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_means_two_things() {
        KeyMap::with(&BTreeMap::new()).expect("the table is consistent");
    }

    #[test]
    fn names_are_read_back() {
        for row in ROWS {
            for key in row.1 {
                assert_eq!(Key::parse(&key.name()), Some(*key), "{}", row.0);
            }
        }
        assert_eq!(Key::parse("Ctrl-"), None);
        assert_eq!(Key::parse("xx"), None);
    }

    fn check_changed(name: &str, keys: &[&str], expected: Result<Action, &str>) {
        let keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
        let changes = BTreeMap::from([(name.to_owned(), keys.clone())]);
        match (KeyMap::with(&changes), expected) {
            (Ok(map), Ok(action)) => {
                let key = Key::parse(&keys[0]).expect("a key");
                assert_eq!(map.action(Screen::Overview, key), Some(action));
            }
            (Err((_, why)), Err(expected)) => assert!(why.contains(expected), "{why}"),
            (found, expected) => panic!("{found:?} instead of {expected:?}"),
        }
    }

    #[test]
    fn keys_can_be_changed() {
        check_changed("quit", &["Q"], Ok(Action::Quit));
        check_changed("quti", &["Q"], Err("no action is named quti"));
        check_changed("quit", &[], Err("needs a key"));
        check_changed("quit", &["Hyper-Q"], Err("is not a key"));
        check_changed("quit", &["j"], Err("j already means down"));
    }

    #[test]
    fn shortcuts_work_in_the_korean_layout() {
        let map = KeyMap::default();
        assert_eq!(map.action(Screen::Overview, Key::Char('ㅂ')), Some(Action::Quit));
        assert_eq!(map.action(Screen::Keys, Key::Char('ㅓ')), Some(Action::Down));
        assert_eq!(map.action(Screen::Keys, Key::Char('ㅍ')), None, "v has no meaning on this screen");
    }
}
