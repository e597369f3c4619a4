//! where: token, partition, preference list, and what each replica holds.

use kv_core::types::NodeId;
use kv_proto::client::{Client, How};
use kv_proto::describe::Description;
use kv_proto::v1;
use kv_proto::v1::replica_view::Answer;
use serde_json::{Value, json};

use crate::command::{In, Text};
use crate::error::CommandError;
use crate::output::bytes::{printable, shortened, to_json};
use crate::output::time::rfc3339;
use crate::output::{Human, Item, Sink};

pub(super) async fn inspect(key: &Text, within: &In, client: &Client, sink: &mut dyn Sink) -> Result<(), CommandError> {
    let how = How { keyspace: within.keyspace.clone(), ..How::default() };
    let seen = client.inspect(&how, &key.0).await?;
    let description = client.description();
    let owners: Vec<String> = seen
        .replicas
        .iter()
        .filter(|replica| replica.owner)
        .map(|replica| description.name_of(NodeId(replica.node)))
        .collect();
    let json = json!({
        "schema": 1,
        "key": to_json(&key.0),
        "keyspace": within.keyspace,
        "token": format!("{:016x}", seen.token),
        "partition": seen.partition,
        "epoch": seen.epoch,
        "owners": owners,
        "replicas": seen.replicas.iter().map(|replica| replica_json(replica, &description)).collect::<Vec<_>>(),
    });
    let mut lines = vec![
        format!("key        {}", printable(&key.0)),
        format!("token      {:016x}", seen.token),
        format!("partition  {} (epoch {})", seen.partition, seen.epoch),
        format!("owners     {}", owners.join(", ")),
    ];
    for replica in &seen.replicas {
        lines.extend(replica_lines(replica, &description));
    }
    let raw = owners.iter().map(|owner| format!("{owner}\n")).collect::<String>().into_bytes();
    sink.item(Item { json, raw, human: Human::Text(lines.join("\n")) })
}

fn replica_json(replica: &v1::ReplicaView, description: &Description) -> Value {
    let mut out = json!({"node": description.name_of(NodeId(replica.node)), "owner": replica.owner});
    match &replica.answer {
        Some(Answer::Record(record)) => {
            out["digest"] = json!(format!("{:016x}", record.digest));
            out["versions"] = record.versions.iter().map(version_json).collect();
            out["context"] = record.context.iter().map(|dot| json!(dot_text(Some(dot)))).collect();
        }
        Some(Answer::Error(error)) => out["error"] = json!(error.message),
        None => out["error"] = json!("no answer"),
    }
    out
}

fn version_json(version: &v1::VersionView) -> Value {
    json!({
        "dot": dot_text(version.dot.as_ref()),
        "value": version.value.as_ref().map(|value| to_json(value)),
        "deleted": version.value.is_none(),
        "written": rfc3339(version.written_us),
        "expires": version.expires_us.map(rfc3339),
    })
}

fn replica_lines(replica: &v1::ReplicaView, description: &Description) -> Vec<String> {
    let name = description.name_of(NodeId(replica.node));
    let role = if replica.owner { "" } else { " (fallback)" };
    match &replica.answer {
        Some(Answer::Record(record)) if record.versions.is_empty() => vec![format!("{name}{role}: nothing")],
        Some(Answer::Record(record)) => {
            let mut lines = vec![format!("{name}{role}: digest {:016x}", record.digest)];
            for version in &record.versions {
                let value = version
                    .value
                    .as_ref()
                    .map_or_else(|| "(deleted)".to_owned(), |value| shortened(&printable(value), 60));
                let expires = version.expires_us.map(|us| format!(", expires {}", rfc3339(us))).unwrap_or_default();
                lines.push(format!(
                    "  {}  written {}{expires}  {value}",
                    dot_text(version.dot.as_ref()),
                    rfc3339(version.written_us)
                ));
            }
            lines
        }
        Some(Answer::Error(error)) => vec![format!("{name}{role}: {}", error.message)],
        None => vec![format!("{name}{role}: no answer")],
    }
}

fn dot_text(dot: Option<&v1::Dot>) -> String {
    dot.map(|dot| format!("{}:{}", dot.actor, dot.counter)).unwrap_or_default()
}
