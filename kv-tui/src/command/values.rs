//! The values of arguments: bytes with escapes, durations, sizes, shares, contexts.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use clap::builder::{OsStringValueParser, TypedValueParser};
use jiff::{Span, SpanRelativeTo};

/// Bytes that were written as text.
#[derive(Clone, PartialEq, Eq)]
pub struct Text(pub Bytes);

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Text({:?})", self.0)
    }
}

/// Reads bytes from an argument.
pub(super) fn text() -> impl TypedValueParser<Value = Text> {
    OsStringValueParser::new().map(|word: OsString| Text(Bytes::from(unescape(&word.into_vec()))))
}

/// Replaces each `\xNN` by the byte that it stands for. Everything else stays, so that JSON and paths can be passed as
/// they are; who means the four characters `\x41` writes `\x5cx41`.
#[must_use]
pub fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, tail)) = rest.split_first() {
        let escaped = match rest {
            [b'\\', b'x', high, low, ..] => hex(*high).zip(hex(*low)).map(|(high, low)| high << 4 | low),
            _ => None,
        };
        (out, rest) = match escaped {
            Some(value) => (push(out, value), &rest[4..]),
            None => (push(out, byte), tail),
        };
    }
    out
}

fn push(mut out: Vec<u8>, byte: u8) -> Vec<u8> {
    out.push(byte);
    out
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

/// Reads the name of a keyspace that an option gives.
pub(super) fn keyspace(text: &str) -> Result<String, String> {
    if text.is_empty() {
        Err("it is empty; leave the option out for the keyspace default".to_owned())
    } else {
        Ok(text.to_owned())
    }
}

/// Reads a name, or what else a word gives that must say something.
pub(super) fn name(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("it is empty".to_owned()) } else { Ok(text.to_owned()) }
}

/// Reads a context or cursor as it was printed.
pub(super) fn context(text: &str) -> Result<Bytes, String> {
    if text.is_empty() {
        return Err("it is empty; give it as a command prints it, or leave the option out".to_owned());
    }
    URL_SAFE_NO_PAD
        .decode(text)
        .map(Bytes::from)
        .map_err(|error| format!("{text:?} is not a context or cursor as a command prints it ({error})"))
}

/// Reads a duration such as `250ms`, `30s` or `1h30m`; above 0.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration; write a number and a unit (us, ms, s, m, h, d), such as 30s");
    let span: Span = text.trim().parse().ok().ok_or_else(wrong)?;
    let total = span.to_duration(SpanRelativeTo::days_are_24_hours()).ok().ok_or_else(wrong)?;
    let total = Duration::try_from(total).ok().ok_or_else(wrong)?;
    if total.is_zero() {
        return Err(format!("{text:?} must be above 0"));
    }
    Ok(total)
}

/// Reads how far a clock is ahead, or with a minus behind, such as `5m`, `-2h` or `0s`; in milliseconds.
pub(super) fn offset(text: &str) -> Result<i64, String> {
    let wrong = || format!("{text:?} is no offset; write a duration such as 5m, one with a minus such as -2h, or 0s");
    let span: Span = text.trim().parse().ok().ok_or_else(wrong)?;
    let total = span.to_duration(SpanRelativeTo::days_are_24_hours()).ok().ok_or_else(wrong)?;
    i64::try_from(total.as_millis()).ok().ok_or_else(wrong)
}

/// Reads a size such as `100`, `4KiB` or `1MiB`, in bytes.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a size; write a number of bytes, or with a unit such as 64KiB, 16MiB");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok().ok_or_else(wrong)?;
    let unit: u64 = match text[digits..].trim() {
        "" | "B" => 1,
        "KiB" | "K" | "k" => 1 << 10,
        "MiB" | "M" => 1 << 20,
        "GiB" | "G" => 1 << 30,
        "kB" | "KB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return Err(wrong()),
    };
    number.checked_mul(unit).ok_or_else(wrong)
}

/// Reads a rate such as `16MiB/s`, in bytes a second, or `off`, which is 0.
pub(super) fn rate(text: &str) -> Result<u64, String> {
    if text == "off" {
        return Ok(0);
    }
    let wrong = || format!("{text:?} is not a rate; write bytes a second, such as 16MiB/s, or off");
    let bytes = size(text.strip_suffix("/s").ok_or_else(wrong)?).ok().ok_or_else(wrong)?;
    if bytes == 0 { Err(wrong()) } else { Ok(bytes) }
}

/// Reads a share such as `50%` or `50`.
pub(super) fn percent(text: &str) -> Result<f64, String> {
    let number: f64 = text.trim_end_matches('%').parse().unwrap_or(f64::NAN);
    if (0.0..=100.0).contains(&number) {
        Ok(number / 100.0)
    } else {
        Err(format!("{text:?} is not a share; write 0% to 100%"))
    }
}

/// Whether a file argument means a standard stream.
#[must_use]
pub fn is_standard(file: &OsStr) -> bool {
    file == "-"
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::output::bytes::printable;

    #[test]
    fn only_full_escapes_are_replaced() {
        assert_eq!(unescape(br"a\x00\xFFb"), b"a\0\xffb");
        assert_eq!(unescape(br"\x4 \xzz \n \\ \x5cx41"), br"\x4 \xzz \n \\ \x41");
        assert_eq!(unescape(br"\x"), br"\x");
    }

    proptest! {
        #[test]
        fn what_is_printed_can_be_typed(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            prop_assert_eq!(unescape(printable(&bytes).as_bytes()), bytes);
        }
    }

    #[test]
    fn units_are_read() {
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        for wrong in ["", "5", "s", "5 s x", "1..2s", "-1s", "1e9d", "99999999999999999999d"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
        assert_eq!(size("64KiB"), Ok(65_536));
        assert_eq!(size("7"), Ok(7));
        for wrong in ["", "KiB", "1XB", "99999999999GiB", "-1"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
        assert_eq!((rate("16MiB/s"), rate("off")), (Ok(16 << 20), Ok(0)));
        for wrong in ["", "16MiB", "0/s", "fast", "/s"] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
        assert_eq!(percent("25%"), Ok(0.25));
        for wrong in ["", "101", "-1%", "x"] {
            assert!(percent(wrong).is_err(), "{wrong}");
        }
    }
}
