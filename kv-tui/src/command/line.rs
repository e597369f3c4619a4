//! Splits a line into words, and writes words so that they are read back.
//!
//! What is inside a word arrives as it is, quotes and backslashes included: `{"a":1}` and `C:\dir` need nothing around
//! them. Quotes around a whole word group it and are taken off; between double quotes `\"` and `\\` stand for the
//! character. The value in `--name='a b'` counts as a word. A quote that ends in the middle of a word, an open quote and
//! a backslash in front of a space could mean several things, and are refused. A `#` at the beginning of the line, or one
//! that is a word of its own, starts a comment.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use crate::output::bytes::printable;

/// A line that cannot be split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// A quote is not closed.
    #[error(
        "the quote ({quote}) that opens at column {column} is not closed; close it, or put the word into quotes of the \
         other kind"
    )]
    Open {
        /// Which quote.
        quote: char,
        /// Where it opens, from 1, in bytes.
        column: usize,
    },
    /// A quote is closed, and the word goes on.
    #[error(
        "the quote ({quote}) that opens at column {column} is closed in the middle of a word; put quotes around the whole \
         word, and quotes of the other kind around one that begins with a quote"
    )]
    Inside {
        /// Which quote.
        quote: char,
        /// Where it opens, from 1, in bytes.
        column: usize,
    },
    /// A backslash is in front of a space.
    #[error("the backslash at column {column} is in front of a space; put quotes around the whole word")]
    Space {
        /// Where it is, from 1, in bytes.
        column: usize,
    },
}

/// A word of a line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Word {
    /// What it says, without its quotes.
    pub bytes: Vec<u8>,
    /// Where it begins in the line.
    pub start: usize,
    /// Where it ends in the line.
    pub end: usize,
    /// Its quote is not closed.
    pub is_open: bool,
    /// There are no quotes around it.
    pub is_bare: bool,
}

impl Word {
    /// Whether it looks as if its quotes were meant to group words: some are without their partners.
    fn has_odd_quotes(&self) -> bool {
        let odd = |quote: u8| self.bytes.iter().filter(|byte| **byte == quote).count() % 2 == 1;
        self.is_bare && (odd(b'\'') || odd(b'"'))
    }

    /// Whether it is an option that ends where its value begins.
    fn awaits_value(&self) -> bool {
        let name = self.bytes.strip_prefix(b"--").and_then(|rest| rest.strip_suffix(b"="));
        self.is_bare && name.is_some_and(|name| name.iter().all(|byte| byte.is_ascii_alphabetic() || *byte == b'-'))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Between words.
    Between,
    /// In a word without quotes.
    Bare,
    /// Between quotes that opened at this column.
    Quoted(u8, usize),
    /// Behind a backslash between double quotes.
    Escaped(u8, usize),
    /// Behind the closing quote.
    Closed(u8, usize),
    /// To the end of the line.
    Comment,
}

/// Reads a line byte by byte.
#[derive(Clone, Debug)]
pub struct Scanner {
    state: State,
    words: Vec<Word>,
    word: Word,
    at: usize,
}

impl Default for Scanner {
    fn default() -> Self {
        Self { state: State::Between, words: Vec::new(), word: Word::default(), at: 0 }
    }
}

impl Scanner {
    /// Whether the next byte is between quotes.
    #[must_use]
    pub fn is_quoted(&self) -> bool {
        matches!(self.state, State::Quoted(..) | State::Escaped(..))
    }

    /// Reads bytes.
    ///
    /// # Errors
    /// If they cannot be meant.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), LineError> {
        for byte in bytes {
            self.step(*byte)?;
            self.at += 1;
        }
        Ok(())
    }

    fn step(&mut self, byte: u8) -> Result<(), LineError> {
        let is_space = matches!(byte, b' ' | b'\t' | b'\r' | b'\n');
        let column = self.at + 1;
        self.state = match (self.state, byte) {
            (State::Comment, _) => State::Comment,
            (State::Between, _) if is_space => State::Between,
            (State::Between, b'#') if self.words.is_empty() => State::Comment,
            (State::Between, b'\'' | b'"') => {
                self.word = Word { start: self.at, ..Word::default() };
                State::Quoted(byte, column)
            }
            (State::Between, _) => {
                self.word = Word { start: self.at, is_bare: true, bytes: vec![byte], ..Word::default() };
                State::Bare
            }
            (State::Bare, b' ' | b'\t') if self.word.bytes.ends_with(b"\\") => {
                return Err(LineError::Space { column: column - 1 });
            }
            (State::Bare, _) if is_space && self.word.bytes == b"#" => State::Comment,
            (State::Bare | State::Closed(..), _) if is_space => {
                self.end();
                State::Between
            }
            (State::Bare, b'\'' | b'"') if self.word.awaits_value() => {
                self.word.is_bare = false;
                State::Quoted(byte, column)
            }
            (State::Bare, _) => {
                self.word.bytes.push(byte);
                State::Bare
            }
            (State::Quoted(quote, opened), _) if byte == quote => State::Closed(quote, opened),
            (State::Quoted(b'"', opened), b'\\') => State::Escaped(b'"', opened),
            (State::Quoted(quote, opened), _) => {
                self.word.bytes.push(byte);
                State::Quoted(quote, opened)
            }
            (State::Escaped(quote, opened), _) => {
                if !matches!(byte, b'"' | b'\\') {
                    self.word.bytes.push(b'\\');
                }
                self.word.bytes.push(byte);
                State::Quoted(quote, opened)
            }
            (State::Closed(quote, column), _) => {
                return Err(LineError::Inside { quote: char::from(quote), column });
            }
        };
        Ok(())
    }

    fn end(&mut self) {
        self.word.end = self.at;
        self.words.push(std::mem::take(&mut self.word));
    }

    /// The words so far. The last one may be open.
    #[must_use]
    pub fn finish(mut self) -> Vec<Word> {
        match self.state {
            State::Between | State::Comment => {}
            State::Bare if self.word.bytes == b"#" => {}
            State::Bare | State::Closed(..) => self.end(),
            State::Quoted(..) => {
                self.word.is_open = true;
                self.end();
            }
            State::Escaped(..) => {
                self.word.is_open = true;
                self.word.bytes.push(b'\\');
                self.end();
            }
        }
        self.words
    }

    fn open_quote(&self) -> Option<LineError> {
        match self.state {
            State::Quoted(quote, column) | State::Escaped(quote, column) => {
                Some(LineError::Open { quote: char::from(quote), column })
            }
            _ => None,
        }
    }
}

/// The words of a line that may not be complete yet: its last quote may be open.
///
/// # Errors
/// If it cannot be meant.
pub fn words(line: &[u8]) -> Result<Vec<Word>, LineError> {
    let mut scanner = Scanner::default();
    scanner.push(line)?;
    Ok(scanner.finish())
}

/// The words of a line.
///
/// # Errors
/// If it cannot be meant.
pub fn split(line: &[u8]) -> Result<Vec<OsString>, LineError> {
    let mut scanner = Scanner::default();
    scanner.push(line)?;
    match scanner.open_quote() {
        Some(error) => Err(error),
        None => Ok(scanner.finish().into_iter().map(|word| OsString::from_vec(word.bytes)).collect()),
    }
}

/// What may be wrong with a line whose words are not understood; empty: nothing that can be seen.
#[must_use]
pub(super) fn hint(line: &[u8]) -> &'static str {
    let odd = words(line).is_ok_and(|words| words.iter().any(Word::has_odd_quotes));
    if odd {
        "\n\nQuotes inside a word group nothing; put them around the whole word, such as '{\"a\": 1}'."
    } else {
        ""
    }
}

/// A key, value or name as it is written in a line, so that it is read back.
#[must_use]
pub fn quoted(bytes: &[u8]) -> String {
    let text = printable(bytes);
    // Quotes do not make a value of what looks like an option.
    let text = match text.strip_prefix('-') {
        Some(rest) => format!("\\x2d{rest}"),
        None => text,
    };
    let bare = !text.is_empty() && !text.contains(' ') && !text.starts_with(['\'', '"', '#']) && !text.ends_with('\\');
    if bare {
        text
    } else if text.contains('\'') {
        format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
    } else {
        format!("'{text}'")
    }
}

/// A line as a shell reads it.
#[must_use]
pub fn for_shell(line: &str) -> String {
    let Ok(words) = split(line.as_bytes()) else { return line.to_owned() };
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"_./:=,@%+-".contains(byte);
    let shelled = words.iter().map(|word| {
        if !word.is_empty() && word.as_bytes().iter().all(plain) {
            word.to_string_lossy().into_owned()
        } else {
            format!("'{}'", word.to_string_lossy().replace('\'', "'\\''"))
        }
    });
    shelled.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::command::{Command, Line};

    fn check(line: &[u8], expected: &[&[u8]]) {
        let words = split(line).expect("splits");
        let words: Vec<Vec<u8>> = words.into_iter().map(OsString::into_vec).collect();
        assert_eq!(words, expected, "{:?}", String::from_utf8_lossy(line));
    }

    #[test]
    fn what_is_inside_a_word_arrives_as_it_is() {
        check(b"", &[]);
        check(b"  put  k\tv\r\n", &[b"put", b"k", b"v"]);
        check(br#"put t {"a":1}"#, &[b"put", b"t", br#"{"a":1}"#]);
        check(br#"put t {"a":"C:\\dir\n\"x\""}"#, &[b"put", b"t", br#"{"a":"C:\\dir\n\"x\""}"#]);
        check(br"put t it's C:\dir\\n k\", &[b"put", b"t", b"it's", br"C:\dir\\n", br"k\"]);
        check(br"get \x00\xff \'a", &[b"get", br"\x00\xff", br"\'a"]);
        check(b"get \xff\xfe", &[b"get", b"\xff\xfe"]);
        check("get a\u{a0}b\u{3000}".as_bytes(), &[b"get", "a\u{a0}b\u{3000}".as_bytes()]);
    }

    #[test]
    fn quotes_around_a_word_group_it() {
        check(br#"put 'a b' "c \" d" "e\f\\""#, &[b"put", b"a b", b"c \" d", br"e\f\"]);
        check(b"put k ''", &[b"put", b"k", b""]);
        check(br#"put k '{"a": "C:\\dir\n"}'"#, &[b"put", b"k", br#"{"a": "C:\\dir\n"}"#]);
        check(b"node add --zone='a b' --limit=\"off\"", &[b"node", b"add", b"--zone=a b", b"--limit=off"]);
    }

    #[test]
    fn comments_stand_alone() {
        check(b"get k # why 'so", &[b"get", b"k"]);
        check(b"get k #", &[b"get", b"k"]);
        check(b"#all", &[]);
        check(b" # all", &[]);
        check(b"get k#1 #2 '#'", &[b"get", b"k#1", b"#2", b"#"]);
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        assert_eq!(split(b"get 'abc"), Err(LineError::Open { quote: '\'', column: 5 }));
        assert_eq!(split(b"get \"abc\\\""), Err(LineError::Open { quote: '"', column: 5 }));
        assert_eq!(split(b"put k 'a'b"), Err(LineError::Inside { quote: '\'', column: 7 }));
        assert_eq!(split(b"put k ''''"), Err(LineError::Inside { quote: '\'', column: 7 }));
        assert_eq!(split(b"node add --zone='a'b"), Err(LineError::Inside { quote: '\'', column: 17 }));
        assert_eq!(split(br"get a\ b"), Err(LineError::Space { column: 6 }));
        let error = Line::parse_line(br#"put t {"a":"x y"}"#).expect_err("two words");
        assert!(error.message.contains("put them around the whole word"), "{}", error.message);
        let error = Line::parse_line(b"put t a b").expect_err("a word too many");
        assert!(!error.message.contains("Quotes"), "{}", error.message);
    }

    #[test]
    fn a_line_for_a_shell_is_quoted_for_it() {
        assert_eq!(for_shell("node add n4 --plan 0123 --limit 16MiB/s"), "node add n4 --plan 0123 --limit 16MiB/s");
        assert_eq!(for_shell(r#"del {"a":1}"#), r#"del '{"a":1}'"#);
        assert_eq!(for_shell("del \"it's $HOME\""), r"del 'it'\''s $HOME'");
        assert_eq!(for_shell("put k ''"), "put k ''");
    }

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        // Characters that mean something come more often than by chance.
        let special = proptest::sample::select(b"'\"\\# -x=\t\n{}0aA".to_vec());
        proptest::collection::vec(prop_oneof![3 => special, 1 => any::<u8>()], 1..24)
    }

    proptest! {
        #[test]
        fn what_is_quoted_is_read_back(key in bytes(), value in proptest::option::of(bytes())) {
            let value = value.unwrap_or_default();
            let line = format!("put {} {} -k users", quoted(&key), quoted(&value));
            let parsed = Line::parse_line(line.as_bytes()).map(|line| line.map(|line| line.command));
            let Ok(Some(Command::Put(put))) = parsed else { panic!("{line:?} became {parsed:?}") };
            prop_assert_eq!((&put.key.0[..], put.value.as_ref().map(|value| &value.0[..])), (&key[..], Some(&value[..])));
        }

        #[test]
        fn what_a_person_types_without_spaces_arrives(text in "[!$-~]{1,30}", more in "[!-~]{0,10}") {
            prop_assume!(!text.starts_with(['\'', '"', '#']));
            let typed = format!("{text}{more}");
            let option = typed.starts_with("--") && (typed.contains("='") || typed.contains("=\""));
            prop_assume!(!option);
            let words = split(format!("put {typed}").as_bytes()).expect("splits");
            prop_assert_eq!(words.last().map(|word| word.as_bytes()), Some(typed.as_bytes()));
        }
    }
}
