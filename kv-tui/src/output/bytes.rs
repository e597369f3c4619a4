//! Keys and values are bytes: how they are shown and how they travel in JSON.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use serde_json::{Value, json};

/// Bytes in JSON: a string if they are UTF-8, else `{"base64": ...}`.
#[must_use]
pub fn to_json(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => Value::from(text),
        Err(_) => json!({ "base64": STANDARD.encode(bytes) }),
    }
}

/// Bytes from JSON: a string, or `{"base64": ...}`.
///
/// # Errors
/// What was expected.
pub fn from_json(value: Value) -> Result<Bytes, String> {
    match value {
        Value::String(text) => Ok(Bytes::from(text)),
        Value::Object(object) => match object.get("base64") {
            Some(Value::String(text)) if object.len() == 1 => {
                STANDARD.decode(text).map(Bytes::from).map_err(|error| format!("is not base64: {error}"))
            }
            _ => Err("is an object without exactly \"base64\"".to_owned()),
        },
        _ => Err("is neither a string nor {\"base64\": ...}".to_owned()),
    }
}

/// A context or cursor as it is printed, and read back by `--context` and `--cursor`.
#[must_use]
pub fn token(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Bytes on the screen. What is not text, and what could change the screen, appears as `\xNN`, which the command
/// language reads back.
#[must_use]
pub fn printable(bytes: &[u8]) -> String {
    escaped(bytes, looks_like_escape)
}

/// A printed line on the screen: what could change the screen appears as `\xNN`; what was escaped before stays.
#[must_use]
pub fn harmless(line: &[u8]) -> String {
    escaped(line, |_| false)
}

fn escaped(bytes: &[u8], is_ambiguous: fn(&str) -> bool) -> String {
    let mut out = String::new();
    for chunk in bytes.utf8_chunks() {
        let text = chunk.valid();
        for (at, c) in text.char_indices() {
            if is_safe(c) && !(c == '\\' && is_ambiguous(&text[at..])) {
                out.push(c);
            } else {
                let mut buffer = [0; 4];
                escape(&mut out, c.encode_utf8(&mut buffer).as_bytes());
            }
        }
        escape(&mut out, chunk.invalid());
    }
    out
}

fn escape(out: &mut String, bytes: &[u8]) {
    for byte in bytes {
        out.push_str(&format!("\\x{byte:02x}"));
    }
}

/// A backslash that would be read back as the start of an escape, also together with what is escaped behind it.
fn looks_like_escape(text: &str) -> bool {
    text.starts_with("\\x")
}

fn is_safe(c: char) -> bool {
    // Direction marks and isolates reorder their neighbours; zero-width and interlinear characters hide.
    let hidden = matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
        | '\u{2028}'..='\u{2029}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}');
    !c.is_control() && !hidden
}

/// At most `width` characters of `text`, with a mark where something is left out.
#[must_use]
pub fn shortened(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_screen_cannot_be_changed() {
        assert_eq!(printable(b"a\x1b[31m\x00\xff"), r"a\x1b[31m\x00\xff");
        assert_eq!(printable("강남점 🦀 é".as_bytes()), "강남점 🦀 é");
        assert_eq!(printable("x\u{202e}y".as_bytes()), r"x\xe2\x80\xaey");
        assert_eq!(printable(br"C:\dir \x41"), r"C:\dir \x5cx41");
        assert_eq!(harmless(b"C:\\dir \\x41 \x1b"), r"C:\dir \x41 \x1b");
    }

    #[test]
    fn json_keeps_all_bytes() {
        for bytes in [&b"text"[..], b"", b"\xff\x00", "é".as_bytes()] {
            assert_eq!(from_json(to_json(bytes)).as_deref(), Ok(bytes));
        }
        for wrong in [
            json!(1),
            json!(null),
            json!({"base64": 1}),
            json!({"base64": "?"}),
            json!({"a": 1}),
            json!({"base64": "", "b": 1}),
        ] {
            assert!(from_json(wrong.clone()).is_err(), "{wrong}");
        }
    }
}
