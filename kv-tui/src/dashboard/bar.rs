//! The line being typed: editing by whole characters, history by prefix, completion and usage from the command language.

use bytes::Bytes;
use clap::CommandFactory;
use unicode_segmentation::UnicodeSegmentation;

use super::keymap::Key;
use crate::command::{Line, Scanner, Word, quoted, unescape, words};

/// Bytes that a line may have.
pub const LINE_BYTES_MAX: usize = 64 * 1024;

/// The names that completion offers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Nodes.
    pub nodes: Vec<String>,
    /// Keyspaces.
    pub keyspaces: Vec<String>,
    /// Those of them that are consistent.
    pub consistent: Vec<String>,
    /// Keys that may stand where a key is typed.
    pub keys: Vec<Bytes>,
}

/// A line being typed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bar {
    /// The text.
    pub text: String,
    /// Where the cursor is, in bytes, always between two whole characters.
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

    /// Puts text at the cursor, if the line has room for it. Line ends and other control characters become spaces.
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

    /// Puts text that was pasted into a command; `false` if the line would become too long. It means what it would mean
    /// in a script: between quotes a control character becomes its escape, elsewhere it separates words.
    pub fn paste(&mut self, text: &str) -> bool {
        if text.len() > LINE_BYTES_MAX {
            return false;
        }
        let mut scanner = Scanner::default();
        // A line that cannot be meant has no quotes that would count.
        let mut counts = scanner.push(&self.text.as_bytes()[..self.cursor]).is_ok();
        let mut pasted = String::new();
        for c in text.trim_end_matches(['\r', '\n']).chars() {
            let from = pasted.len();
            if c.is_control() && counts && scanner.is_quoted() {
                let mut bytes = [0; 4];
                c.encode_utf8(&mut bytes).bytes().for_each(|byte| pasted.push_str(&format!("\\x{byte:02x}")));
            } else {
                pasted.push(if c.is_control() { ' ' } else { c });
            }
            counts = counts && scanner.push(&pasted.as_bytes()[from..]).is_ok();
        }
        let fits = self.text.len() + pasted.len() <= LINE_BYTES_MAX;
        self.insert(&pasted);
        fits
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
    pub fn complete(&mut self, names: &Names) {
        let candidates = self.candidates(names);
        let Some(first) = candidates.first() else { return };
        let start = self.typed().1.start;
        let typed = &self.text[start..self.cursor];
        let common = candidates.iter().skip(1).fold(first.as_str(), |common, candidate| {
            let same = common.char_indices().zip(candidate.chars()).find(|((_, a), b)| a != b);
            &common[..same.map_or(common.len().min(candidate.len()), |((at, _), _)| at)]
        });
        // A name that needs quotes takes the place of what was typed without them.
        if common.starts_with(typed) || candidates.len() == 1 {
            let common = common.to_owned();
            self.cut(start, self.cursor);
            self.insert(&common);
            if candidates.len() == 1 && self.cursor == self.text.len() {
                self.insert(" ");
            }
        }
    }

    /// The words in front of the one at the cursor, and that one.
    fn typed(&self) -> (Vec<String>, Word) {
        let empty = Word { start: self.cursor, end: self.cursor, ..Word::default() };
        let mut words = words(&self.text.as_bytes()[..self.cursor]).unwrap_or_default();
        let word = words.pop_if(|word| word.end == self.cursor).unwrap_or(empty);
        (plain(&words), word)
    }

    /// The words that may stand at the cursor as they are shown: consistent keyspaces with their mode.
    #[must_use]
    pub fn hints(&self, names: &Names) -> Vec<String> {
        let (words, _) = self.typed();
        let (command, rest) = command_of(&words);
        let option = words.last().and_then(|word| command.get_arguments().find(|arg| is_option(arg, word)));
        let place = option.or_else(|| command.get_positionals().nth(rest).filter(|_| command.get_name() == "drop"));
        let names_keyspace = place.is_some_and(|place| matches!(place.get_id().as_str(), "keyspace" | "name"));
        let shown = |name: String| {
            let is_consistent = names_keyspace && names.consistent.iter().any(|known| quoted(known.as_bytes()) == name);
            if is_consistent { format!("{name} (consistent)") } else { name }
        };
        self.candidates(names).into_iter().map(shown).collect()
    }

    /// The words that may stand at the cursor.
    #[must_use]
    pub fn candidates(&self, names: &Names) -> Vec<String> {
        let (words, word) = self.typed();
        let typed = &self.text[word.start..self.cursor];
        let (command, rest) = command_of(&words);
        let mut found: Vec<Bytes> = Vec::new();
        let mut offer = |name: &str| found.push(Bytes::copy_from_slice(name.as_bytes()));
        let option = words.last().and_then(|word| command.get_arguments().find(|arg| is_option(arg, word)));
        if let Some(option) = option.filter(|option| option.get_action().takes_values()) {
            if option.get_id() == "keyspace" {
                names.keyspaces.iter().for_each(|name| offer(name));
            }
            option.get_possible_values().iter().for_each(|value| offer(value.get_name()));
        } else if typed.starts_with('-') {
            let known = command.get_arguments().filter(|arg| !arg.is_hide_set());
            let options = known.filter_map(|arg| arg.get_long()).map(|long| format!("--{long}"));
            let mut options: Vec<String> = options.filter(|option| option.starts_with(typed)).collect();
            options.sort();
            options.dedup();
            return options;
        } else {
            command.get_subcommands().for_each(|command| offer(command.get_name()));
            if let Some(place) = place_of(&command, rest) {
                place.get_possible_values().iter().for_each(|value| offer(value.get_name()));
                match place.get_id().as_str() {
                    "node" | "nodes" | "old" | "new" | "sides" | "what" => {
                        names.nodes.iter().for_each(|name| offer(name))
                    }
                    "name" if command.get_name() == "drop" => names.keyspaces.iter().for_each(|name| offer(name)),
                    "key" | "prefix" => found.extend(names.keys.iter().cloned()),
                    _ => {}
                }
            }
        }
        let meant = unescape(&word.bytes);
        let written = found.iter().map(|name| (name, quoted(name)));
        let fitting = written.filter(|(name, text)| text.starts_with(typed) || name.starts_with(&meant));
        let mut found: Vec<String> = fitting.map(|(_, text)| text).collect();
        found.sort();
        found.dedup();
        found
    }

    /// The keyspace and the beginning of the key being typed; `None` where there is no key.
    #[must_use]
    pub fn key_place(&self) -> Option<(String, Bytes)> {
        let (before, word) = self.typed();
        let (command, rest) = command_of(&before);
        let place = command.get_positionals().nth(rest)?;
        let follows_option = before
            .last()
            .and_then(|word| command.get_arguments().find(|arg| is_option(arg, word)))
            .is_some_and(|option| option.get_action().takes_values());
        if follows_option || word.bytes.starts_with(b"-") || !matches!(place.get_id().as_str(), "key" | "prefix") {
            return None;
        }
        Some((self.keyspace(), Bytes::from(unescape(&word.bytes))))
    }

    /// The keyspace that the line names, wherever it does so.
    fn keyspace(&self) -> String {
        let all = plain(&words(self.text.as_bytes()).unwrap_or_default());
        let apart = all.iter().position(|word| matches!(word.as_str(), "-k" | "--keyspace"));
        let apart = apart.and_then(|at| all.get(at + 1));
        let joined = || all.iter().find_map(|word| word.strip_prefix("--keyspace=").map(str::to_owned));
        apart.cloned().or_else(joined).unwrap_or_else(|| "default".to_owned())
    }

    /// The usage of the command being typed, and what it does.
    #[must_use]
    pub fn usage(&self) -> (String, String) {
        let (mut command, _) = command_of(&plain(&words(self.text.as_bytes()).unwrap_or_default()));
        if command.get_name() == "kv" {
            let names: Vec<&str> = command.get_subcommands().map(clap::Command::get_name).collect();
            return ("COMMAND".to_owned(), names.join(" "));
        }
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        let usage = command.render_usage().to_string();
        let usage = usage.trim_start_matches("Usage:").trim().trim_start_matches("kv-tui exec").trim();
        (usage.to_owned(), about)
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

    /// Where the word that is cut begins: also over the spaces behind it.
    fn cut_start(&self) -> usize {
        self.text[..self.cursor].trim_end().trim_end_matches(|c: char| !c.is_whitespace()).len()
    }
}

/// What words say.
fn plain(words: &[Word]) -> Vec<String> {
    words.iter().map(|word| String::from_utf8_lossy(&word.bytes).into_owned()).collect()
}

/// The value that stands behind so many others; the last one may be there many times.
fn place_of(command: &clap::Command, before: usize) -> Option<&clap::Arg> {
    let takes_many = |place: &&clap::Arg| place.get_num_args().is_some_and(|count| count.max_values() > 1);
    command.get_positionals().nth(before).or_else(|| command.get_positionals().last().filter(takes_many))
}

/// The command that the words name, and how many of its values stand behind its name.
fn command_of(words: &[String]) -> (clap::Command, usize) {
    let mut command = Line::command();
    command.build();
    let (mut values, mut words) = (0, words.iter());
    while let Some(word) = words.next() {
        if let Some(inner) = command.find_subcommand(word).filter(|_| values == 0) {
            command = inner.clone();
        } else if word.starts_with('-') {
            let option = command.get_arguments().find(|arg| is_option(arg, word));
            if option.is_some_and(|option| option.get_action().takes_values()) {
                words.next();
            }
        } else {
            values += 1;
        }
    }
    (command, values)
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
        let names = Names {
            nodes: vec!["n1".to_owned(), "n2".to_owned()],
            keyspaces: vec!["locks".to_owned(), "users".to_owned()],
            consistent: vec!["locks".to_owned()],
            keys: vec![Bytes::from_static(b"cart:1"), Bytes::from_static(b"cart 2")],
        };
        let found = Bar::with(text).hints(&names);
        assert_eq!(found, expected, "{text:?}");
    }

    #[test]
    fn what_is_pasted_means_what_it_means_in_a_script() {
        let pasted = |before: &str, text: &str| {
            let mut bar = Bar::with(before);
            assert!(bar.paste(text));
            bar.text
        };
        assert_eq!(pasted("", "put k v\n"), "put k v");
        assert_eq!(pasted("put ", "k\tv"), "put k v");
        let line = pasted("put t ", "'{\n\t\"a\": 1\n}'\r\n");
        assert_eq!(line, r#"put t '{\x0a\x09"a": 1\x0a}'"#);
        let Ok(Some(Line { command: crate::command::Command::Put(put), .. })) = Line::parse_line(line.as_bytes())
        else {
            panic!("{line}");
        };
        assert_eq!(put.value.expect("a value").0, "{\n\t\"a\": 1\n}");
        assert_eq!(pasted("put t 'a", "\nb'"), r"put t 'a\x0ab'");
        let mut bar = Bar::default();
        assert!(!bar.paste(&"x".repeat(LINE_BYTES_MAX + 1)) && bar.text.is_empty());
    }

    #[test]
    fn the_place_of_a_key_is_found() {
        let place = |text: &str| Bar::with(text).key_place().map(|(keyspace, key)| (keyspace, key.to_vec()));
        assert_eq!(place("get ca"), Some(("default".to_owned(), b"ca".to_vec())));
        assert_eq!(place("get -k users c\\x00"), Some(("users".to_owned(), b"c\x00".to_vec())));
        assert_eq!(place("get 'a b"), Some(("default".to_owned(), b"a b".to_vec())));
        assert_eq!(place("get --keyspace=users k"), Some(("users".to_owned(), b"k".to_vec())));
        assert_eq!(place("get k -k us"), None);
        assert_eq!(place("put k v"), None);
        assert_eq!(place("node show n"), None);
        assert_eq!(place("ge"), None);
    }

    #[test]
    fn words_are_completed_from_the_language() {
        check_completion("st", &["status"]);
        check_completion("node s", &["show", "start", "stop"]);
        check_completion("node show ", &["n1", "n2"]);
        check_completion("fault p", &["pause-disk"]);
        check_completion("fault cut ", &["n1", "n2"]);
        check_completion("fault cut n1 | n", &["n1", "n2"]);
        check_completion("fault heal n1 ", &["n1", "n2"]);
        check_completion("get k -k ", &["locks (consistent)", "users"]);
        check_completion("keyspace drop ", &["locks (consistent)", "users"]);
        check_completion("keyspace create x --mode ", &["available", "consistent"]);
        check_completion("put locks v --if-", &["--if-absent", "--if-context"]);
        check_completion("del k --if-", &["--if-context"]);
        check_completion("get k -c ", &["all", "one", "quorum"]);
        check_completion("wait ", &["healthy", "idle", "ready"]);
        check_completion("get ca", &["'cart 2'", "cart:1"]);
        check_completion("get 'cart 2", &["'cart 2'"]);
        check_completion("scan ", &["'cart 2'", "cart:1"]);
        check_completion("-o json no", &["node"]);
        check_completion("get -c one cart:", &["cart:1"]);
        check_completion("scan --ke", &["--keys-only", "--keyspace"]);
        let mut bar = Bar::with("get \"cart ");
        bar.complete(&Names { keys: vec![Bytes::from_static(b"cart 2")], ..Names::default() });
        assert_eq!(bar.text, "get 'cart 2' ");
        let mut bar = Bar::with("stat");
        bar.complete(&Names::default());
        assert_eq!(bar.text, "status ");
        let (usage, about) = Bar::with("put k").usage();
        assert!(usage.starts_with("put [OPTIONS] <KEY>") && about == "Write a key", "{usage} {about}");
    }
}
