//! The line being typed: editing by whole characters, history by prefix, completion and usage from the command language.

use clap::CommandFactory;
use unicode_segmentation::UnicodeSegmentation;

use super::keymap::Key;
use crate::command::Line;

/// Bytes that a line may have.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// A line being typed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bar {
    /// The text.
    pub text: String,
    /// Where the cursor stands, in bytes, always between two whole characters.
    pub cursor: usize,
    /// Where in the history: its index, and what had been typed before.
    recalled: Option<(usize, String)>,
}

impl Bar {
    /// A line that holds `text`, with the cursor at its end.
    #[must_use]
    pub fn with(text: &str) -> Self {
        Self { text: text.to_owned(), cursor: text.len(), recalled: None }
    }

    /// Edits the line; `false` if the key is none of editing.
    pub fn edit(&mut self, key: Key) -> bool {
        match key {
            Key::Char(c) => self.insert(c.encode_utf8(&mut [0; 4])),
            Key::Left | Key::Ctrl('b') => self.cursor = self.before(),
            Key::Right | Key::Ctrl('f') => self.cursor = self.behind(),
            Key::Home | Key::Ctrl('a') => self.cursor = 0,
            Key::End | Key::Ctrl('e') => self.cursor = self.text.len(),
            Key::Backspace | Key::Ctrl('h') => self.cut(self.before(), self.cursor),
            Key::Delete | Key::Ctrl('d') => self.cut(self.cursor, self.behind()),
            Key::Ctrl('u') => self.cut(0, self.cursor),
            Key::Ctrl('k') => self.cut(self.cursor, self.text.len()),
            Key::Ctrl('w') => self.cut(self.cut_start(), self.cursor),
            _ => return false,
        }
        true
    }

    /// Puts text at the cursor. Line ends and other control characters become spaces.
    pub fn insert(&mut self, text: &str) {
        if self.text.len() + text.len() > LINE_BYTES_MAX {
            return;
        }
        let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        self.text.insert_str(self.cursor, &text);
        self.cursor += text.len();
        self.recalled = None;
        // What was typed may join the character before or behind it.
        self.cursor = self.boundary(self.cursor);
    }

    /// Goes back in the history to the line before that starts with what was typed.
    pub fn recall_older(&mut self, history: &[String]) {
        let (from, typed) = self.recalled.clone().unwrap_or((history.len(), self.text.clone()));
        let older = history.iter().take(from).rposition(|line| line.starts_with(&typed) && *line != self.text);
        if let Some(at) = older {
            *self = Self { recalled: Some((at, typed)), ..Self::with(&history[at]) };
        }
    }

    /// Goes forward in the history, at last to what was typed.
    pub fn recall_newer(&mut self, history: &[String]) {
        let Some((from, typed)) = self.recalled.clone() else { return };
        let newer = history.iter().enumerate().skip(from + 1).find(|(_, line)| line.starts_with(&typed));
        *self = match newer {
            Some((at, line)) => Self { recalled: Some((at, typed)), ..Self::with(line) },
            None => Self::with(&typed),
        };
    }

    /// Completes the word at the cursor as far as the candidates agree.
    pub fn complete(&mut self, nodes: &[String], keyspaces: &[String]) {
        let candidates = self.candidates(nodes, keyspaces);
        let Some(first) = candidates.first() else { return };
        let common = candidates.iter().skip(1).fold(first.as_str(), |common, candidate| {
            let same = common.char_indices().zip(candidate.chars()).find(|((_, a), b)| a != b);
            &common[..same.map_or(common.len().min(candidate.len()), |((at, _), _)| at)]
        });
        let typed = self.cursor - self.word_start();
        if common.len() >= typed {
            let rest = common[typed..].to_owned();
            self.insert(&rest);
            if candidates.len() == 1 && self.cursor == self.text.len() {
                self.insert(" ");
            }
        }
    }

    /// The words that may stand at the cursor.
    #[must_use]
    pub fn candidates(&self, nodes: &[String], keyspaces: &[String]) -> Vec<String> {
        let typed = &self.text[self.word_start()..self.cursor];
        let words: Vec<&str> = self.text[..self.word_start()].split_whitespace().collect();
        let (command, rest) = command_of(&words);
        let mut found: Vec<String> = Vec::new();
        let option = words.last().and_then(|word| command.get_arguments().find(|arg| is_option(arg, word)));
        if let Some(option) = option.filter(|option| option.get_action().takes_values()) {
            if option.get_id() == "keyspace" {
                found.extend(keyspaces.iter().cloned());
            }
            found.extend(option.get_possible_values().iter().map(|value| value.get_name().to_owned()));
        } else if typed.starts_with('-') {
            found.extend(command.get_arguments().filter_map(|arg| arg.get_long()).map(|long| format!("--{long}")));
        } else {
            found.extend(command.get_subcommands().map(|command| command.get_name().to_owned()));
            if let Some(place) = command.get_positionals().nth(rest) {
                found.extend(place.get_possible_values().iter().map(|value| value.get_name().to_owned()));
                match place.get_id().as_str() {
                    "node" => found.extend(nodes.iter().cloned()),
                    "name" if command.get_name() == "drop" => found.extend(keyspaces.iter().cloned()),
                    _ => {}
                }
            }
        }
        found.retain(|word| word.starts_with(typed));
        found.sort();
        found.dedup();
        found
    }

    /// The usage of the command being typed, and what it does.
    #[must_use]
    pub fn usage(&self) -> String {
        let words: Vec<&str> = self.text.split_whitespace().collect();
        let (mut command, _) = command_of(&words);
        if command.get_name() == "kv" {
            let names: Vec<&str> = command.get_subcommands().map(clap::Command::get_name).collect();
            return names.join(" ");
        }
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        let usage = command.render_usage().to_string();
        let usage = usage.trim_start_matches("Usage:").trim().trim_start_matches("kv-tui exec").trim();
        format!("{usage}   {about}")
    }

    fn cut(&mut self, from: usize, to: usize) {
        self.text.replace_range(from..to, "");
        self.cursor = self.boundary(from);
        self.recalled = None;
    }

    /// The next place between two whole characters from `at` on.
    fn boundary(&self, at: usize) -> usize {
        self.text.grapheme_indices(true).map(|(start, _)| start).find(|start| *start >= at).unwrap_or(self.text.len())
    }

    fn before(&self) -> usize {
        self.text[..self.cursor].grapheme_indices(true).next_back().map_or(0, |(start, _)| start)
    }

    fn behind(&self) -> usize {
        self.text[self.cursor..].graphemes(true).next().map_or(self.cursor, |next| self.cursor + next.len())
    }

    fn word_start(&self) -> usize {
        let typed = &self.text[..self.cursor];
        typed.trim_end_matches(|c: char| !c.is_whitespace()).len()
    }

    /// Where the word that is cut begins: also over the spaces behind it.
    fn cut_start(&self) -> usize {
        self.text[..self.cursor].trim_end().trim_end_matches(|c: char| !c.is_whitespace()).len()
    }
}

/// The command that the words name, and how many words stand behind its name.
fn command_of(words: &[&str]) -> (clap::Command, usize) {
    let mut command = Line::command();
    command.build();
    let mut named = 0;
    for word in words {
        match command.find_subcommand(word) {
            Some(inner) => command = inner.clone(),
            None => break,
        }
        named += 1;
    }
    let rest = words[named..].iter().filter(|word| !word.starts_with('-')).count();
    (command, rest)
}

fn is_option(arg: &clap::Arg, word: &str) -> bool {
    let long = arg.get_long().is_some_and(|long| word.strip_prefix("--") == Some(long));
    let short = arg.get_short().is_some_and(|short| word.strip_prefix('-').is_some_and(|w| w == short.to_string()));
    long || short
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(keys: &[Key]) -> Bar {
        let mut bar = Bar::default();
        for key in keys {
            assert!(bar.edit(*key), "{key:?}");
        }
        bar
    }

    #[test]
    fn whole_characters_are_edited() {
        let mut bar = Bar::with("get 👩‍👩‍👧안e\u{301}");
        bar.edit(Key::Backspace);
        assert_eq!(bar.text, "get 👩‍👩‍👧안");
        bar.edit(Key::Left);
        bar.edit(Key::Backspace);
        assert_eq!((bar.text.as_str(), bar.cursor), ("get 안", 4));
        bar.edit(Key::Ctrl('k'));
        bar.edit(Key::Ctrl('w'));
        assert_eq!(bar.text, "");
        assert_eq!(typed(&[Key::Char('a'), Key::Char('c'), Key::Left, Key::Char('b')]).text, "abc");
        bar.insert("a\nb\u{1b}[31m");
        assert_eq!(bar.text, "a b [31m", "a paste cannot run a line or change the screen");
    }

    #[test]
    fn the_history_is_searched_by_prefix() {
        let history = ["get a", "put a 1", "get b"].map(str::to_owned);
        let mut bar = Bar::with("get");
        bar.recall_older(&history);
        assert_eq!(bar.text, "get b");
        bar.recall_older(&history);
        assert_eq!(bar.text, "get a");
        bar.recall_newer(&history);
        bar.recall_newer(&history);
        assert_eq!(bar.text, "get");
    }

    fn check_completion(text: &str, expected: &[&str]) {
        let found = Bar::with(text).candidates(&["n1".to_owned(), "n2".to_owned()], &["users".to_owned()]);
        assert_eq!(found, expected, "{text:?}");
    }

    #[test]
    fn words_are_completed_from_the_language() {
        check_completion("st", &["status"]);
        check_completion("node s", &["show", "start", "stop"]);
        check_completion("node show ", &["n1", "n2"]);
        check_completion("get k -k ", &["users"]);
        check_completion("get k -c ", &["all", "one", "quorum"]);
        check_completion("wait ", &["healthy", "idle", "ready"]);
        check_completion("scan --ke", &["--keys-only", "--keyspace"]);
        let mut bar = Bar::with("stat");
        bar.complete(&[], &[]);
        assert_eq!(bar.text, "status ");
        assert!(Bar::with("put k").usage().starts_with("put [OPTIONS] <KEY>"), "{}", Bar::with("put k").usage());
    }
}
