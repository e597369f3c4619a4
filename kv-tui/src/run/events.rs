//! events: what happened, newest last.

use std::collections::BTreeMap;
use std::time::Duration;

use kv_core::types::NodeId;
use kv_proto::client::Client;
use kv_proto::v1;
use kv_proto::v1::watch_response::Item as Watched;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::command::EventsArgs;
use crate::error::CommandError;
use crate::observe::snapshot::REPORT_TIMEOUT;
use crate::output::bytes::printable;
use crate::output::time::rfc3339;
use crate::output::{Human, Item, Sink};

/// The pause before a broken stream is opened again.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Events that wait to be printed.
const QUEUED_MAX: usize = 1024;

pub(super) async fn events(args: EventsArgs, client: &Client, sink: &mut dyn Sink) -> Result<(), CommandError> {
    client.refresh().await?;
    let EventsArgs { follow: follows, audit } = args;
    let request = v1::WatchRequest { once: true, ..Newest::default().request(audit) };
    let reports = client.reports(request, REPORT_TIMEOUT).await;
    let mut events: BTreeMap<Id, v1::Event> = BTreeMap::new();
    let mut seen: BTreeMap<NodeId, Newest> = BTreeMap::new();
    let mut failures = Vec::new();
    for report in reports {
        let mut from = Newest::default();
        report.events.iter().for_each(|event| from.note(event));
        seen.insert(report.node, from);
        events.extend(report.events.into_iter().map(|event| (id(&event), event)));
        failures.extend(report.snapshot.err());
    }
    for event in events.values() {
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
    if follows { follow(client, seen, audit, sink).await } else { Ok(()) }
}

/// What identifies an event, in the order in which events are shown. Every node reports the same changes of the cluster.
type Id = (u64, u64, bool, u64);

fn id(event: &v1::Event) -> Id {
    (event.time_us, event.node, event.audit.is_some(), event.sequence)
}

/// What is known of the events of a node.
#[derive(Clone, Copy, Debug, Default)]
struct Newest {
    /// The number of its newest event.
    event: u64,
    /// The number of the newest change of the cluster.
    audit: u64,
}

impl Newest {
    fn note(&mut self, event: &v1::Event) {
        let newest = if event.audit.is_some() { &mut self.audit } else { &mut self.event };
        *newest = event.sequence.max(*newest);
    }

    /// Asks for what is newer, with `audit` only for changes of the cluster.
    fn request(self, audit: bool) -> v1::WatchRequest {
        v1::WatchRequest {
            events_after: (!audit).then_some(self.event),
            audit_after: Some(self.audit),
            ..v1::WatchRequest::default()
        }
    }
}

async fn follow(
    client: &Client,
    seen: BTreeMap<NodeId, Newest>,
    audit: bool,
    sink: &mut dyn Sink,
) -> Result<(), CommandError> {
    let (found, mut events) = mpsc::channel(QUEUED_MAX);
    // Every node reports the changes of the cluster; the first report counts.
    let mut newest = seen.values().map(|from| from.audit).max().unwrap_or(0);
    for (node, from) in seen {
        let (client, found) = (client.clone(), found.clone());
        tokio::spawn(async move { follow_one(&client, node, from, audit, &found).await });
    }
    drop(found);
    while let Some(event) = events.recv().await {
        if event.audit.is_some() {
            if event.sequence <= newest {
                continue;
            }
            newest = event.sequence;
        }
        sink.item(event_item(&event, client))?;
        sink.pass()?;
    }
    Ok(())
}

/// Follows one node, also over its restarts, until the receiver is gone.
async fn follow_one(client: &Client, node: NodeId, mut from: Newest, audit: bool, found: &mpsc::Sender<v1::Event>) {
    while !found.is_closed() {
        let request = v1::WatchRequest { interval_ms: 60_000, ..from.request(audit) };
        if let Ok(mut stream) = client.watch(node, request).await {
            let mut boot = None;
            while let Ok(Some(watched)) = stream.message().await {
                match watched.item {
                    Some(Watched::Event(event)) => {
                        from.note(&event);
                        if found.send(event).await.is_err() {
                            return;
                        }
                    }
                    Some(Watched::Snapshot(snapshot)) => boot = boot.or(Some(snapshot.uptime_us)),
                    None => {}
                }
            }
            // Numbers begin again where the process does; what a restarted node kept is new to us. Those of changes of the
            // cluster go on.
            if boot.is_some() {
                from.event = 0;
            }
        }
        sleep(AGAIN_AFTER).await;
    }
}

/// An event in words: of a change of the cluster also who made it, and what undoes it.
pub(crate) fn shown(event: &v1::Event) -> String {
    let text = match &event.audit {
        None if event.undo.is_empty() => event.message.clone(),
        None => format!("{}  (undo: {})", event.message, event.undo),
        Some(audit) => {
            let undo = if event.undo.is_empty() { "nothing" } else { &event.undo };
            format!("{}  (by {}; undo: {undo})", event.message, audit.by)
        }
    };
    printable(text.as_bytes())
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
    let shown = shown(event);
    let mut json = json!({
        "schema": 1,
        "time": time,
        "node": node,
        "sequence": event.sequence,
        "severity": severity,
        "kind": event.kind().word(),
        "message": event.message,
        "undo": undo,
        "audit": event.audit.is_some(),
    });
    if let Some(audit) = &event.audit {
        json["node"] = Value::Null;
        json["by"] = json!(audit.by);
        json["command"] = json!((!audit.command.is_empty()).then_some(&audit.command));
    }
    Item {
        json,
        raw: format!("{time} {node} {message}\n").into_bytes(),
        human: Human::Row {
            header: &["TIME", "LEVEL", "NODE", "KIND", "EVENT"],
            cells: vec![time, severity.to_owned(), node, event.kind().word().to_owned(), shown],
        },
    }
}
