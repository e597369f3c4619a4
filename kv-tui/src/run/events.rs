//! events: what happened, newest last.

use std::collections::BTreeMap;
use std::time::Duration;

use kv_core::types::NodeId;
use kv_proto::client::Client;
use kv_proto::v1;
use kv_proto::v1::watch_response::Item as Watched;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::picture::REPORT_TIMEOUT;
use crate::command::EventsArgs;
use crate::error::CommandError;
use crate::output::bytes::printable;
use crate::output::time::rfc3339;
use crate::output::{Human, Item, Sink};

/// The pause before a broken stream is opened again.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Events that wait to be printed.
const QUEUED_MAX: usize = 1024;

pub(super) async fn events(args: EventsArgs, client: &Client, sink: &mut dyn Sink) -> Result<(), CommandError> {
    client.refresh().await?;
    let request = v1::WatchRequest { events_after: Some(0), once: true, ..Default::default() };
    let reports = client.reports(request, REPORT_TIMEOUT).await;
    let mut events: Vec<v1::Event> = Vec::new();
    let mut seen: BTreeMap<NodeId, u64> = BTreeMap::new();
    let mut failures = Vec::new();
    for report in reports {
        seen.insert(report.node, report.events.last().map_or(0, |event| event.sequence));
        events.extend(report.events);
        failures.extend(report.snapshot.err());
    }
    events.sort_by_key(|event| (event.time_us, event.node, event.sequence));
    for event in &events {
        sink.item(event_item(event, client))?;
    }
    sink.pass()?;
    for failure in &failures {
        sink.note(&failure.message);
    }
    if seen.len() == failures.len()
        && let Some(failure) = failures.into_iter().next()
    {
        return Err(failure.into());
    }
    if args.follow { follow(client, seen, sink).await } else { Ok(()) }
}

async fn follow(client: &Client, seen: BTreeMap<NodeId, u64>, sink: &mut dyn Sink) -> Result<(), CommandError> {
    let (found, mut events) = mpsc::channel(QUEUED_MAX);
    for (node, last) in seen {
        let (client, found) = (client.clone(), found.clone());
        tokio::spawn(async move { follow_one(&client, node, last, &found).await });
    }
    drop(found);
    while let Some(event) = events.recv().await {
        sink.item(event_item(&event, client))?;
        sink.pass()?;
    }
    Ok(())
}

/// Follows one node, also over its restarts, until nobody listens.
async fn follow_one(client: &Client, node: NodeId, mut last: u64, found: &mpsc::Sender<v1::Event>) {
    while !found.is_closed() {
        let request = v1::WatchRequest { events_after: Some(last), interval_ms: 60_000, ..Default::default() };
        if let Ok(mut stream) = client.watch(node, request).await {
            let mut boot = None;
            while let Ok(Some(watched)) = stream.message().await {
                match watched.item {
                    Some(Watched::Event(event)) => {
                        last = event.sequence;
                        if found.send(event).await.is_err() {
                            return;
                        }
                    }
                    Some(Watched::Snapshot(snapshot)) => boot = boot.or(Some(snapshot.uptime_us)),
                    None => {}
                }
            }
            // Numbers begin again where the process does; what a restarted node kept is new to us.
            if boot.is_some() {
                last = 0;
            }
        }
        sleep(AGAIN_AFTER).await;
    }
}

fn event_item(event: &v1::Event, client: &Client) -> Item {
    let severity = match event.severity() {
        v1::Severity::Unspecified | v1::Severity::Info => "info",
        v1::Severity::Warning => "warning",
        v1::Severity::Error => "error",
    };
    let node = if event.node == 0 { "-".to_owned() } else { client.description().name_of(NodeId(event.node)) };
    let time = rfc3339(event.time_us);
    let message = printable(event.message.as_bytes());
    let undo = (!event.undo.is_empty()).then(|| event.undo.clone());
    let shown = undo.as_ref().map_or_else(|| message.clone(), |undo| format!("{message}  (undo: {undo})"));
    Item {
        json: json!({
            "schema": 1,
            "time": time,
            "node": node,
            "sequence": event.sequence,
            "severity": severity,
            "kind": event.kind,
            "message": event.message,
            "undo": undo,
        }),
        raw: format!("{time} {node} {message}\n").into_bytes(),
        human: Human::Row {
            header: &["TIME", "LEVEL", "NODE", "KIND", "EVENT"],
            cells: vec![time, severity.to_owned(), node, event.kind.clone(), shown],
        },
    }
}
