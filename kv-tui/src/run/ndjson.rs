//! Lines of import and export: one record a line.
//!
//! `{"key": "k", "value": "v"}` is a record with one value; `"expires"` gives the moment from when on it reads as absent.
//! `{"key": "k", "values": [{"value": "v"}, {"value": "w"}]}` is one whose values stand side by side. Other fields are
//! ignored, so that what other programs write can be read. Bytes that are not UTF-8 are `{"base64": ...}`.

use bytes::Bytes;
use kv_core::message::ScanEntry;
use serde_json::{Map, Value, json};

use crate::output::bytes::{from_json, to_json};
use crate::output::time::{from_rfc3339, rfc3339};

/// One key with its values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub key: Bytes,
    /// At least one.
    pub values: Vec<ImportedValue>,
}

/// One value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ImportedValue {
    pub value: Bytes,
    /// From when on it reads as absent, in microseconds since 1970.
    pub expires: Option<u64>,
}

impl Record {
    /// Reads a line.
    pub(super) fn parse(line: &[u8]) -> Result<Self, String> {
        let value: Value = serde_json::from_slice(line).map_err(|error| {
            // The position within the line is all that is left of the parser's own, which counts lines too.
            format!("is not JSON: {} at column {}", category(&error), error.column())
        })?;
        let Value::Object(mut fields) = value else { return Err("is not an object".to_owned()) };
        let key = fields.remove("key").ok_or("has no \"key\"")?;
        let key = from_json(key).map_err(|error| format!("\"key\" {error}"))?;
        if key.is_empty() {
            return Err("\"key\" is empty; a key has at least 1 byte".to_owned());
        }
        let values = match fields.remove("values") {
            None => vec![imported(fields)?],
            Some(Value::Array(values)) if !values.is_empty() => values
                .into_iter()
                .map(|value| match value {
                    Value::Object(fields) => imported(fields),
                    _ => Err("\"values\" must hold objects only".to_owned()),
                })
                .collect::<Result<_, _>>()?,
            Some(_) => return Err("\"values\" is not an array with at least one value".to_owned()),
        };
        Ok(Self { key, values })
    }

    /// The line that is read back as this record.
    pub(super) fn to_line(entry: &ScanEntry) -> String {
        let fields = |version: &kv_core::message::Value| {
            let mut fields = Map::new();
            fields.insert("value".to_owned(), to_json(&version.value));
            if let Some(expires) = version.expires {
                fields.insert("expires".to_owned(), Value::from(rfc3339(expires.0)));
            }
            fields
        };
        let mut line = Map::new();
        line.insert("key".to_owned(), to_json(&entry.key));
        match entry.values.as_slice() {
            [one] => line.extend(fields(one)),
            many => {
                let values: Vec<Value> = many.iter().map(|version| Value::Object(fields(version))).collect();
                line.insert("values".to_owned(), json!(values));
            }
        }
        Value::Object(line).to_string()
    }
}

fn imported(mut fields: Map<String, Value>) -> Result<ImportedValue, String> {
    let value = fields.remove("value").ok_or("has no \"value\"")?;
    let value = from_json(value).map_err(|error| format!("\"value\" {error}"))?;
    let expires = match fields.remove("expires") {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => {
            Some(from_rfc3339(&text).ok_or_else(|| format!("\"expires\" {text:?} is not a moment in UTC (RFC 3339)"))?)
        }
        Some(_) => return Err("\"expires\" is not a string".to_owned()),
    };
    Ok(ImportedValue { value, expires })
}

fn category(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or(&text).to_owned()
}

#[cfg(test)]
mod tests {
    use kv_core::message::Value as Version;
    use kv_core::types::WallTime;
    use kv_core::version::Hlc;

    use super::*;

    fn check(line: &str, expected: &str) {
        let read = match Record::parse(line.as_bytes()) {
            Ok(record) => format!("{record:?}"),
            Err(error) => error,
        };
        assert_eq!(read, expected);
    }

    #[test]
    fn lines_are_read() {
        check(
            r#"{"key":"k","value":"v","extra":1}"#,
            r#"Record { key: b"k", values: [ImportedValue { value: b"v", expires: None }] }"#,
        );
        check(
            r#"{"value":{"base64":"/wA="},"key":{"base64":"AA=="},"expires":"1970-01-01T00:00:01Z"}"#,
            r#"Record { key: b"\0", values: [ImportedValue { value: b"\xff\0", expires: Some(1000000) }] }"#,
        );
    }

    #[test]
    fn malformed_lines_say_why() {
        check("", "is not JSON: EOF while parsing a value at column 0");
        check(r#"{"key":"k","value":"v""#, "is not JSON: EOF while parsing an object at column 22");
        check(r#"{"key":"k","value":"v"} x"#, "is not JSON: trailing characters at column 25");
        check("[]", "is not an object");
        check(r#"{"value":"v"}"#, "has no \"key\"");
        check(r#"{"key":"","value":"v"}"#, "\"key\" is empty; a key has at least 1 byte");
        check(r#"{"key":1,"value":"v"}"#, "\"key\" is neither a string nor {\"base64\": ...}");
        check(r#"{"key":"k"}"#, "has no \"value\"");
        check(r#"{"key":"k","value":null}"#, "\"value\" is neither a string nor {\"base64\": ...}");
        check(r#"{"key":"k","values":[]}"#, "\"values\" is not an array with at least one value");
        check(r#"{"key":"k","values":[1]}"#, "\"values\" must hold objects only");
        check(r#"{"key":"k","value":"v","expires":"soon"}"#, "\"expires\" \"soon\" is not a moment in UTC (RFC 3339)");
        check(r#"{"key":"k","value":"v","expires":5}"#, "\"expires\" is not a string");
    }

    #[test]
    fn what_is_exported_can_be_imported() {
        let version = |value: &'static [u8], expires: Option<u64>| Version {
            value: Bytes::from_static(value),
            written: Hlc(1),
            expires: expires.map(WallTime),
        };
        let entry = |values| ScanEntry { key: Bytes::from_static(b"\xffk"), values, context: Bytes::new() };
        for values in [
            vec![version(b"v", None)],
            vec![version(b"\xfe", Some(1_700_000_000_123_456))],
            vec![version(b"v", None), version(b"", Some(5))],
        ] {
            let entry = entry(values);
            let read = Record::parse(Record::to_line(&entry).as_bytes()).expect("readable");
            assert_eq!(read.key, entry.key);
            let expected: Vec<ImportedValue> = entry
                .values
                .iter()
                .map(|version| ImportedValue {
                    value: version.value.clone(),
                    expires: version.expires.map(|wall| wall.0),
                })
                .collect();
            assert_eq!(read.values, expected);
        }
    }
}
