//! export: what import reads back.

use kv_proto::client::{Client, ScanQuery};
use serde_json::json;

use super::how;
use super::ndjson::Record;
use super::stream::Out;
use crate::command::{ExportArgs, is_standard};
use crate::error::CommandError;
use crate::output::{Human, Item, Sink};

pub(super) async fn export(args: &ExportArgs, client: &Client, sink: &mut dyn Sink) -> Result<(), CommandError> {
    let path = args.file.to_string_lossy().into_owned();
    let to_stdout = is_standard(&args.file);
    let failed = |error: std::io::Error| CommandError::file("write", &path, &error);
    let mut out = if to_stdout { None } else { Some(Out::create(&args.file).map_err(failed)?) };
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
    let text = format!("{exported} exported to {path}");
    match out {
        None => {
            sink.flush()?;
            sink.note(&format!("{exported} exported"));
            Ok(())
        }
        Some(out) => {
            out.finish().map_err(failed)?;
            sink.item(Item {
                json: json!({"schema": 1, "file": path, "exported": exported}),
                raw: format!("{exported}\n").into_bytes(),
                human: Human::Text(text),
            })
        }
    }
}
