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
        Some(Answer::Register(register)) => {
            out["promised"] = json!(ballot_text(register.promised.as_ref(), description));
            out["accepted"] = register.accepted.as_ref().map_or(Value::Null, |it| accepted_json(it, description));
        }
        Some(Answer::Error(error)) => out["error"] = json!(error.message),
        None => out["error"] = json!("no answer"),
    }
    out
}

fn accepted_json(accepted: &v1::AcceptedView, description: &Description) -> Value {
    json!({
        "ballot": ballot_text(accepted.ballot.as_ref(), description),
        "version": ballot_text(accepted.version.as_ref(), description),
        "value": accepted.value.as_ref().map(|value| to_json(value)),
        "deleted": accepted.value.is_none(),
        "written": rfc3339(accepted.written_us),
        "expires": accepted.expires_us.map(rfc3339),
    })
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
                let facts = facts(version.written_us, version.expires_us, version.value.as_deref());
                lines.push(format!("  {}  {facts}", dot_text(version.dot.as_ref())));
            }
            lines
        }
        Some(Answer::Register(register)) => register_lines(&name, register, description),
        Some(Answer::Error(error)) => vec![format!("{name}{role}: {}", error.message)],
        None => vec![format!("{name}{role}: no answer")],
    }
}

fn register_lines(name: &str, register: &v1::RegisterView, description: &Description) -> Vec<String> {
    let ballot = |ballot: &Option<v1::Ballot>| ballot_text(ballot.as_ref(), description);
    let promised = ballot(&register.promised);
    let Some(accepted) = &register.accepted else {
        return vec![format!("{name}: promised {promised}, has accepted nothing")];
    };
    let facts = facts(accepted.written_us, accepted.expires_us, accepted.value.as_deref());
    vec![
        format!("{name}: promised {promised}, has accepted {}", ballot(&accepted.ballot)),
        format!("  version {}  {facts}", ballot(&accepted.version)),
    ]
}

/// When something was written, until when it is there, and what it is.
fn facts(written_us: u64, expires_us: Option<u64>, value: Option<&[u8]>) -> String {
    let value = value.map_or_else(|| "(deleted)".to_owned(), |value| shortened(&printable(value), 60));
    let expires = expires_us.map(|us| format!(", expires {}", rfc3339(us))).unwrap_or_default();
    format!("written {}{expires}  {value}", rfc3339(written_us))
}

/// A ballot: epoch, counter, and the node that made it.
pub(crate) fn ballot_text(ballot: Option<&v1::Ballot>, description: &Description) -> String {
    match ballot {
        None | Some(v1::Ballot { node: 0, .. }) => "nothing".to_owned(),
        Some(v1::Ballot { epoch, counter, node }) => {
            format!("{epoch}.{counter}.{}", description.name_of(NodeId(*node)))
        }
    }
}

fn dot_text(dot: Option<&v1::Dot>) -> String {
    dot.map(|dot| format!("{}:{}", dot.actor, dot.counter)).unwrap_or_default()
}
