//! Splits a line into words, with the quoting that shells have taught everybody.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

/// A line that cannot be split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the quote ({quote}) that opens at column {column} is not closed; close it, or write \\{quote} for the character"
)]
pub struct LineError {
    /// Which quote.
    pub quote: char,
    /// Where it opens, from 1, in bytes.
    pub column: usize,
}

/// The words of a line. Single quotes keep everything; double quotes keep everything but `\"` and `\\`; outside quotes a
/// backslash takes the meaning from a space, quote, `#` or backslash and stays where it stands before anything else, so
/// that `\x00` reaches the command. A `#` that starts a word starts a comment.
///
/// # Errors
/// If a quote is not closed.
pub fn split(line: &[u8]) -> Result<Vec<OsString>, LineError> {
    let mut words = Vec::new();
    let mut word: Option<Vec<u8>> = None;
    let mut bytes = line.iter().copied().enumerate().peekable();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' => words.extend(word.take()),
            b'#' if word.is_none() => break,
            b'\'' | b'"' => {
                let word = word.get_or_insert_default();
                loop {
                    match bytes.next() {
                        None => return Err(LineError { quote: char::from(byte), column: at + 1 }),
                        Some((_, end)) if end == byte => break,
                        Some((_, b'\\')) if byte == b'"' => {
                            match bytes.next_if(|(_, next)| matches!(next, b'"' | b'\\')) {
                                Some((_, next)) => word.push(next),
                                None => word.push(b'\\'),
                            }
                        }
                        Some((_, inner)) => word.push(inner),
                    }
                }
            }
            b'\\' => {
                let word = word.get_or_insert_default();
                match bytes.next_if(|(_, next)| matches!(next, b' ' | b'\t' | b'\'' | b'"' | b'#' | b'\\')) {
                    Some((_, next)) => word.push(next),
                    None => word.push(b'\\'),
                }
            }
            _ => word.get_or_insert_default().push(byte),
        }
    }
    words.extend(word);
    Ok(words.into_iter().map(OsString::from_vec).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &[u8], expected: &[&[u8]]) {
        let words = split(line).expect("splits");
        let words: Vec<Vec<u8>> = words.into_iter().map(OsString::into_vec).collect();
        assert_eq!(words, expected);
    }

    #[test]
    fn words_are_split_as_in_a_shell() {
        check(b"", &[]);
        check(b"  put  k\tv\r\n", &[b"put", b"k", b"v"]);
        check(b"put 'a b' \"c \\\" d\" e\\ f", &[b"put", b"a b", b"c \" d", b"e f"]);
        check(b"put k ''", &[b"put", b"k", b""]);
        check(b"put a'b'\"c\"d", &[b"put", b"abcd"]);
        check(b"put k '{\"a\":\"C:\\\\dir\\n\"}'", &[b"put", b"k", b"{\"a\":\"C:\\\\dir\\n\"}"]);
        check(b"get \\x00\\xff", &[b"get", b"\\x00\\xff"]);
        check(b"get k # why", &[b"get", b"k"]);
        check(b"# all", &[]);
        check(b"get k#1 \\#2", &[b"get", b"k#1", b"#2"]);
        check(b"get \xff\xfe", &[b"get", b"\xff\xfe"]);
        check(b"get k\\", &[b"get", b"k\\"]);
    }

    #[test]
    fn open_quotes_are_named() {
        assert_eq!(split(b"get 'abc"), Err(LineError { quote: '\'', column: 5 }));
        assert_eq!(split(b"get \"abc\\\""), Err(LineError { quote: '"', column: 5 }));
    }
}
