//! put, get, del, scan.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;

use bytes::Bytes;
use kv_core::message::Value as Version;
use kv_proto::client::{Client, Condition, Conditional, ScanQuery, Unchanged, Write, Written};
use serde_json::{Value, json};

use super::how;
use super::inspect::inspect;
use crate::command::{DelArgs, GetArgs, PutArgs, ScanArgs, is_standard};
use crate::error::{Class, CommandError};
use crate::output::bytes::{printable, shortened, to_json, token};
use crate::output::time::rfc3339;
use crate::output::{Format, Human, Item, Sink};

/// Characters of a value in a table.
const CELL_MAX: usize = 60;

pub(super) async fn put(args: &PutArgs, client: &Client, sink: &mut dyn Sink) -> Result<(), CommandError> {
    let value = match (&args.value, &args.value_file) {
        (Some(value), _) => value.0.clone(),
        (None, Some(file)) => read_value(file, client.description().limits.value_bytes_max)?,
        (None, None) => return Err(CommandError::usage("a value or --value-file is needed")),
    };
    let condition = match &args.if_context {
        Some(context) => Some(Condition::Unchanged(context.clone())),
        None => args.if_absent.then_some(Condition::Absent),
    };
    let (how, key) = (how(&args.within, args.consistency), &args.key.0);
    let done = match condition {
        Some(condition) => client.put_if(&how, key, &value, args.ttl, &condition).await?,
        None => {
            let write = Write { context: args.context.clone(), ttl: args.ttl };
            Conditional::Written(client.put(&how, key, &value, &write).await?)
        }
    };
    report_write(key, done, "written", sink)
}

pub(super) async fn del(args: &DelArgs, client: &Client, sink: &mut dyn Sink) -> Result<(), CommandError> {
    if args.if_absent {
        return Err(CommandError::usage(
            "--if-absent is a condition of put: there is nothing to delete where a key is absent; use --if-context to delete what a get \
             returned",
        ));
    }
    let (how, key) = (how(&args.within, args.consistency), &args.key.0);
    let done = match &args.if_context {
        Some(context) => client.delete_if(&how, key, context).await?,
        None => Conditional::Written(client.delete(&how, key, args.context.as_ref()).await?),
    };
    report_write(key, done, "deleted", sink)
}

/// Shows how a write has ended. One whose condition fails is an error, as JSON beside what was found.
fn report_write(key: &Bytes, done: Conditional, what: &str, sink: &mut dyn Sink) -> Result<(), CommandError> {
    match done {
        Conditional::Written(Written { context, siblings }) => sink.item(written_item(key, &context, siblings, what)),
        Conditional::Unchanged(unchanged) => {
            let error = unchanged_error(key, &unchanged, what);
            if sink.format() == Format::Json {
                sink.item(unchanged_item(key, &unchanged))?;
            }
            Err(error)
        }
    }
}

fn written_item(key: &Bytes, context: &Bytes, siblings: usize, what: &str) -> Item {
    let text = match siblings {
        0 | 1 => format!("{what} {}", printable(key)),
        _ => format!(
            "{what} {}; {siblings} values now stand side by side: a put with the context of a get resolves them",
            printable(key)
        ),
    };
    Item {
        json: json!({
            "schema": 1,
            "key": to_json(key),
            "unchanged": false,
            "context": token(context),
            "siblings": siblings,
        }),
        raw: format!("{}\n", token(context)).into_bytes(),
        human: Human::Text(text),
    }
}

fn unchanged_item(key: &Bytes, unchanged: &Unchanged) -> Item {
    let Unchanged { value, context } = unchanged;
    Item {
        json: json!({
            "schema": 1,
            "key": to_json(key),
            "unchanged": true,
            "found": value.is_some(),
            "versions": value.iter().map(version_json).collect::<Vec<_>>(),
            "context": token(context),
        }),
        raw: Vec::new(),
        human: Human::Text(String::new()),
    }
}

fn unchanged_error(key: &Bytes, unchanged: &Unchanged, what: &str) -> CommandError {
    let Unchanged { value, context } = unchanged;
    let found = value.as_ref().map_or_else(
        || "is absent".to_owned(),
        |value| format!("holds {}", shortened(&printable(&value.value), CELL_MAX)),
    );
    CommandError::new(
        Class::Conflict,
        format!(
            "the condition does not hold, and nothing was {what}: {} {found}; to go on from that, pass --if-context {}",
            printable(key),
            token(context)
        ),
    )
}

pub(super) async fn get(args: &GetArgs, client: &Client, sink: &mut dyn Sink) -> Result<(), CommandError> {
    if args.all_replicas {
        return inspect(&args.key, &args.within, client, sink).await;
    }
    let key = &args.key.0;
    let got = client.get(&how(&args.within, args.consistency), key).await?;
    if sink.format() == Format::Raw && got.values.len() > 1 {
        return Err(CommandError::new(
            Class::Conflict,
            format!(
                "{} has {} values side by side; read them with --output json, and put one with the context given there",
                printable(key),
                got.values.len()
            ),
        ));
    }
    let found = !got.values.is_empty();
    let json = json!({
        "schema": 1,
        "key": to_json(key),
        "found": found,
        "versions": got.values.iter().map(version_json).collect::<Vec<_>>(),
        "context": token(&got.context),
    });
    let human = match got.values.as_slice() {
        [] => Human::Text("(absent)".to_owned()),
        [one] => Human::Text(printable(&one.value)),
        many => {
            let lines = many.iter().enumerate().map(|(index, version)| {
                format!("{}  {}  {}", index + 1, rfc3339(version.written.wall().0), printable(&version.value))
            });
            let mut lines: Vec<String> = lines.collect();
            lines.push(format!(
                "{} values stand side by side; put one with --context {}",
                many.len(),
                token(&got.context)
            ));
            Human::Text(lines.join("\n"))
        }
    };
    let raw = got.values.first().map(|version| version.value.to_vec()).unwrap_or_default();
    if found || sink.format() == Format::Json {
        sink.item(Item { json, raw, human })?;
    }
    if found { Ok(()) } else { Err(CommandError::new(Class::NotFound, format!("{} is absent", printable(key)))) }
}

/// A version as `get` and `scan` show it.
pub(super) fn version_json(version: &Version) -> Value {
    json!({
        "value": to_json(&version.value),
        "written": rfc3339(version.written.wall().0),
        "expires": version.expires.map(|expires| rfc3339(expires.0)),
    })
}

pub(super) async fn scan(args: &ScanArgs, client: &Client, sink: &mut dyn Sink) -> Result<(), CommandError> {
    let query = ScanQuery {
        prefix: args.prefix.as_ref().map(|prefix| prefix.0.clone()).unwrap_or_default(),
        cursor: args.cursor.clone().unwrap_or_default(),
        limit: args.limit,
        keys_only: args.keys_only,
    };
    let mut scan = client.scan(&how(&args.within, args.consistency), query);
    let mut more = None;
    while let Some(page) = scan.next_page().await? {
        for entry in page.entries {
            sink.item(entry_item(&entry.key, &entry.values, &entry.context, args.keys_only))?;
        }
        more = page.cursor;
    }
    let Some(cursor) = more else { return Ok(()) };
    let cursor = token(&cursor);
    match sink.format() {
        Format::Json => sink.item(Item {
            json: json!({"schema": 1, "cursor": cursor}),
            raw: Vec::new(),
            human: Human::Text(String::new()),
        }),
        Format::Table | Format::Raw => {
            sink.flush()?;
            sink.note(&format!("there is more: --cursor {cursor}"));
            Ok(())
        }
    }
}

fn entry_item(key: &Bytes, values: &[Version], context: &Bytes, keys_only: bool) -> Item {
    let shown = printable(key);
    if keys_only {
        return Item {
            json: json!({"schema": 1, "key": to_json(key)}),
            raw: [key, &b"\n"[..]].concat(),
            human: Human::Row { header: &["KEY"], cells: vec![shown] },
        };
    }
    let value = match values {
        [one] => shortened(&printable(&one.value), CELL_MAX),
        many => format!("({} values side by side)", many.len()),
    };
    let mut raw = Vec::new();
    for version in values {
        raw.extend_from_slice(key);
        raw.push(b'\t');
        raw.extend_from_slice(&version.value);
        raw.push(b'\n');
    }
    let written = values.iter().map(|version| version.written).max().unwrap_or_default();
    Item {
        json: json!({
            "schema": 1,
            "key": to_json(key),
            "versions": values.iter().map(version_json).collect::<Vec<_>>(),
            "context": token(context),
        }),
        raw,
        human: Human::Row {
            header: &["KEY", "VALUE", "WRITTEN"],
            cells: vec![shown, value, rfc3339(written.wall().0)],
        },
    }
}

/// Reads a value of at most `bytes_max`, and no more of what may have no end.
fn read_value(file: &OsStr, bytes_max: usize) -> Result<Bytes, CommandError> {
    let path = file.to_string_lossy();
    let limit = (bytes_max as u64).saturating_add(1);
    let mut value = Vec::new();
    let read = if is_standard(file) {
        std::io::stdin().lock().take(limit).read_to_end(&mut value)
    } else {
        File::open(file).and_then(|file| file.take(limit).read_to_end(&mut value))
    };
    match read {
        Err(error) if error.kind() == std::io::ErrorKind::IsADirectory => {
            Err(CommandError::usage(format!("--value-file: {path} is a folder; name a file")))
        }
        Err(error) => Err(CommandError::file("read", &path, &error)),
        Ok(_) if value.len() as u64 == limit => Err(CommandError::usage(format!(
            "--value-file: {path} has more than {bytes_max} bytes, which is the most that a value may have"
        ))),
        Ok(_) => Ok(Bytes::from(value)),
    }
}
