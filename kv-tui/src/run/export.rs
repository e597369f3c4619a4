//! export: what import reads back.

use std::io;

use kv_proto::client::{Client, ScanQuery};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use super::how;
use super::ndjson::Record;
use super::stream::Out;
use crate::command::{ExportArgs, is_standard};
use crate::error::CommandError;
use crate::output::{Human, Item, Sink};

pub(super) async fn export(args: &ExportArgs, client: &Client, sink: &mut dyn Sink) -> Result<(), CommandError> {
    let signal = signals().map_err(|error| CommandError::failed(format!("signals cannot be received: {error}")))?;
    tokio::select! {
        done = copy(args, client, sink) => done,
        // What is not complete is removed with the future that writes it.
        name = signal => Err(CommandError::failed(match is_standard(&args.file) {
            true => format!("ended by {name} before the end of the export"),
            false => format!("ended by {name}; {} was not written", args.file.to_string_lossy()),
        })),
    }
}

async fn copy(args: &ExportArgs, client: &Client, sink: &mut dyn Sink) -> Result<(), CommandError> {
    let path = args.file.to_string_lossy().into_owned();
    let failed = |error: std::io::Error| CommandError::file("write", &path, &error);
    let mut out = if is_standard(&args.file) { None } else { Some(Out::create(&args.file).map_err(failed)?) };
    let query = ScanQuery {
        prefix: args.prefix.as_ref().map(|prefix| prefix.0.clone()).unwrap_or_default(),
        ..ScanQuery::default()
    };
    let mut scan = client.scan(&how(&args.within, args.consistency), query);
    let mut exported: u64 = 0;
    while let Some(page) = scan.next_page().await? {
        // A key that expired or was deleted since has nothing to export.
        for entry in page.entries.iter().filter(|entry| !entry.values.is_empty()) {
            let line = Record::to_line(entry);
            exported += 1;
            match &mut out {
                Some(out) => out.line(&line).map_err(failed)?,
                None => sink.item(Item {
                    json: serde_json::from_str(&line).unwrap_or_default(),
                    raw: format!("{line}\n").into_bytes(),
                    human: Human::Text(line),
                })?,
            }
        }
    }
    let Some(out) = out else {
        sink.flush()?;
        sink.note(&format!("{exported} exported"));
        return Ok(());
    };
    out.finish().map_err(failed)?;
    sink.item(Item {
        json: json!({"schema": 1, "file": path, "exported": exported}),
        raw: format!("{exported}\n").into_bytes(),
        human: Human::Text(format!("{exported} exported to {path}")),
    })
}

/// The name of the signal that asks the process to end, when it comes.
fn signals() -> io::Result<impl Future<Output = &'static str>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => "Ctrl-C",
            _ = terminate.recv() => "SIGTERM",
            _ = hangup.recv() => "SIGHUP",
        }
    })
}
