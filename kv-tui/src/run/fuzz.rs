//! What the tests with random bytes, and the fuzz targets of `fuzz/`, demand of decoders that are private to this crate:
//! no input panics, and what decodes encodes to what decodes again.

use std::io::Read;
use std::os::unix::ffi::OsStrExt;

use bytes::Bytes;
use kv_core::message::{ScanEntry, Value};
use kv_core::types::WallTime;
use kv_core::version::Hlc;

use super::ndjson::Record;
use super::stream;
use crate::command::{Line, quoted, split, unescape};

/// The most bytes that a compressed file is read for: a few bytes may stand for gigabytes.
const UNPACKED_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// A line of an import.
///
/// # Panics
/// If a line that was read is not written as one that is read alike.
pub fn import_line(line: &[u8]) {
    let Ok(record) = Record::parse(line) else { return };
    let values = record.values.iter().map(|kept| Value {
        value: kept.value.clone(),
        written: Hlc::default(),
        expires: kept.expires.map(WallTime),
    });
    let entry = ScanEntry { key: record.key.clone(), values: values.collect(), context: Bytes::new() };
    let again = Record::parse(Record::to_line(&entry).as_bytes());
    assert_eq!(again.as_ref(), Ok(&record), "{:?}", line.escape_ascii().to_string());
}

/// A file of an import, compressed as its name says.
///
/// # Panics
/// Never; an error is a result.
pub fn import_file(name: &str, content: &[u8]) {
    let unpacked = stream::In::of(name, content.to_vec()).lines();
    let read = unpacked.and_then(|lines| lines.take(UNPACKED_BYTES_MAX).read_to_end(&mut Vec::new()));
    assert!(read.map_or_else(|error| !error.to_string().is_empty(), |_| true), "an error says what is wrong");
}

/// A line of a script or of the command bar.
///
/// # Panics
/// If the words of a line are not written as a line of the same words.
pub fn command_line(line: &[u8]) {
    let parsed = Line::parse_line(line);
    let Ok(words) = split(line) else {
        assert!(parsed.is_err(), "what cannot be split is no command");
        return;
    };
    let mean = |words: &[std::ffi::OsString]| words.iter().map(|word| unescape(word.as_bytes())).collect::<Vec<_>>();
    let meant = mean(&words);
    let again = meant.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
    assert_eq!(split(again.as_bytes()).map(|words| mean(&words)), Ok(meant), "{again:?}");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// How files begin: as text, and with the marks of gzip, of a zstd frame and of a skippable one.
    const STARTS: &[&[u8]] = &[b"", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18"];

    /// Bytes in which those that mean something come more often than by chance.
    fn text_like(special: &'static [u8]) -> impl Strategy<Value = Vec<u8>> {
        let special = proptest::sample::select(special);
        proptest::collection::vec(prop_oneof![4 => special, 1 => any::<u8>()], 0..60)
    }

    /// A line that is nearly one of an import.
    fn line_like() -> impl Strategy<Value = Vec<u8>> {
        let moment = prop_oneof![
            Just("1970-01-01T00:00:01Z".to_owned()),
            "[0-9]{1,5}-[0-9]{1,3}-[0-9]{1,21}[Tt ][0-9]{1,2}:[0-9]{1,2}:[0-9]{1,2}(\\.[0-9]{1,9})?[Zz]",
        ];
        let value = prop_oneof![
            "[a-z]{0,4}".prop_map(|text| format!("{text:?}")),
            Just(r#"{"base64":"/wA="}"#.to_owned()),
            Just("null".to_owned()),
        ];
        let version = (value.clone(), proptest::option::of(moment)).prop_map(|(value, moment)| match moment {
            Some(moment) => format!(r#""value":{value},"expires":"{moment}""#),
            None => format!(r#""value":{value}"#),
        });
        let versions = proptest::collection::vec(version.clone(), 0..3).prop_map(|all| {
            format!(r#""values":[{}]"#, all.iter().map(|one| format!("{{{one}}}")).collect::<Vec<_>>().join(","))
        });
        let changes = proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..2);
        (value, prop_oneof![version, versions], changes).prop_map(|(key, rest, changes)| {
            let mut line = format!(r#"{{"key":{key},{rest}}}"#).into_bytes();
            for (at, byte) in changes {
                let at = at.index(line.len());
                line[at] = byte;
            }
            line
        })
    }

    proptest! {
        #[test]
        fn any_bytes_as_an_import_line_are_refused_or_read_back(line in text_like(b"{}[]\":,\\u0keyvalu")) {
            import_line(&line);
        }

        #[test]
        fn a_changed_import_line_is_refused_or_read_back(line in line_like()) {
            import_line(&line);
        }

        #[test]
        fn any_bytes_as_a_command_line_are_refused_or_read_back(line in text_like(b"'\"\\# -x=\t\n{}0aA;kput")) {
            command_line(&line);
        }

        #[test]
        fn any_bytes_as_a_compressed_file_are_refused_or_read(
            start in proptest::sample::select(STARTS),
            rest in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let content = [start, &rest[..]].concat();
            for name in ["a.ndjson", "a.gz", "a.zst"] {
                import_file(name, &content);
            }
        }
    }
}
