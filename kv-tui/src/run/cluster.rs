//! count, status, node, ring, keyspace.

use kv_core::types::{KeyspaceId, NodeId};
use kv_proto::client::Client;
use kv_proto::describe::MemberView;
use kv_proto::v1;
use serde_json::{Value, json};

use super::health::Health;
use super::operation::asker;
use super::picture::{Picture, Share, state_word};
use super::safety::{Safety, Verdict};
use super::topology::no_node;
use super::uneven;
use crate::command::{Conflict, CreateArgs, In, Mode, RingArgs};
use crate::error::{Class, CommandError};
use crate::output::time::{short, size};
use crate::output::{Human, Item, Sink};

pub(super) async fn count(within: &In, client: &Client, sink: &mut dyn Sink) -> Result<(), CommandError> {
    let (picture, keyspace) = Picture::with(client, |picture| keyspace_id(picture, &within.keyspace)).await?;
    let Some(layout) = picture.description.layout.as_deref() else { return Err(forming(&picture)) };
    let keys = picture.count(layout, keyspace).map_err(|partition| {
        CommandError::new(
            Class::Unavailable,
            format!("no owner of partition {} is in reach and complete; start the nodes that are down", partition.0),
        )
    })?;
    let (pending, idle) = (picture.pending(), Health::of(&picture).idle);
    let mut text = keys.to_string();
    if !idle {
        text.push_str(&format!(
            "  (not settled: {} writes on their way, {} hints, {} keys that a copy lacks)",
            pending.replications, pending.hints, pending.missed_writes
        ));
    }
    sink.item(Item {
        json: json!({
            "schema": 1,
            "keyspace": within.keyspace,
            "keys": keys,
            "settled": idle,
            "pending": pending_json(&pending),
        }),
        raw: format!("{keys}\n").into_bytes(),
        human: Human::Text(text),
    })
}

pub(super) async fn status(client: &Client, sink: &mut dyn Sink) -> Result<(), CommandError> {
    let picture = Picture::take(client, true).await?;
    sink.item(status_item(&picture))
}

/// The health of a picture as a result.
pub(super) fn status_item(picture: &Picture) -> Item {
    let health = Health::of(picture);
    let safety = Safety::of(picture);
    let description = &picture.description;
    let members = &description.members;
    let up = members.iter().filter(|member| picture.serves(member.id)).count();
    let layout = description.layout.as_deref();
    let cluster = description.cluster.map(|cluster| cluster.to_string());
    let reasons: Vec<Value> =
        health.reasons.iter().map(|reason| json!({"what": reason.what, "remedy": reason.remedy})).collect();
    let json = json!({
        "schema": 1,
        "health": health.word.text(),
        "ready": health.ready,
        "idle": health.idle,
        "reasons": reasons,
        "cluster": cluster,
        "epoch": layout.map(|layout| layout.epoch.0),
        "members": members.len(),
        "up": up,
        "copies": layout.map(|layout| layout.copies),
        "partitions": layout.map(kv_core::ring::Layout::partition_count),
        "leader": description.leader.map(|leader| description.name_of(leader)),
        "forming": description.forming.map(|(present, expected)| json!({"present": present, "expected": expected})),
        "pending": pending_json(&picture.pending()),
        "safety": safety.json(),
        "uneven": uneven::json(picture),
    });
    let mut lines = vec![match layout {
        Some(layout) => format!(
            "{}  {up}/{} up, {} copies of {} partitions, epoch {}",
            health.word.text(),
            members.len(),
            layout.owners_per_partition(),
            layout.partition_count(),
            layout.epoch.0
        ),
        None => health.word.text().to_owned(),
    }];
    if layout.is_some() {
        lines.push(format!("  {}", safety.line()));
    }
    for reason in &health.reasons {
        let remedy = if reason.remedy.is_empty() { String::new() } else { format!(": {}", reason.remedy) };
        lines.push(format!("  - {}{remedy}", reason.what));
    }
    Item { json, raw: format!("{}\n", health.word.text()).into_bytes(), human: Human::Text(lines.join("\n")) }
}

fn pending_json(pending: &v1::Pending) -> Value {
    json!({
        "requests": pending.requests,
        "replications": pending.replications,
        "hints": pending.hints,
        "hint_bytes": pending.hint_bytes,
        "missed_writes": pending.missed_writes,
        "refills": pending.refills,
        "transfers": pending.transfers,
        "residue": pending.residue,
        "comparisons": pending.comparisons,
        "dropped": pending.dropped,
        "reclaiming": pending.reclaiming,
    })
}

pub(super) async fn node_list(client: &Client, sink: &mut dyn Sink) -> Result<(), CommandError> {
    let picture = Picture::take(client, true).await?;
    let shares = picture.shares();
    for member in &picture.description.members {
        sink.item(node_item(&picture, member, shares.get(&member.id).copied().unwrap_or_default()))?;
    }
    if picture.description.members.is_empty() { Err(forming(&picture)) } else { Ok(()) }
}

const NODE_HEADER: &[&str] = &[
    "NODE", "STATE", "ADDRESS", "ZONE", ">WEIGHT", ">PART", ">PRIMARY", ">KEYS", ">BYTES", ">OWN%", ">FAIR%", ">HINTS",
    ">UP",
];

fn node_item(picture: &Picture, member: &MemberView, share: Share) -> Item {
    let snapshot = picture.snapshot(member.id);
    let state = state_word(picture.state(member));
    let told = |figure: fn(&v1::NodeSnapshot) -> u64| snapshot.map(figure);
    let cell = |figure: Option<u64>| figure.map_or_else(|| "-".to_owned(), |figure| figure.to_string());
    let pending = snapshot.and_then(|snapshot| snapshot.pending).unwrap_or_default();
    let verdict = Verdict::of(picture, member.id);
    let uptime = snapshot.map(|snapshot| std::time::Duration::from_micros(snapshot.uptime_us));
    let name = &member.member.name;
    let json = json!({
        "schema": 1,
        "name": name,
        "id": member.id.0.to_string(),
        "address": member.address,
        "zone": member.member.zone,
        "state": state,
        "weight": member.member.weight,
        "partitions": share.partitions,
        "primary": share.primary,
        "keys": told(|snapshot| snapshot.keys),
        "keys_primary": told(|snapshot| snapshot.keys_primary),
        "bytes": told(|snapshot| snapshot.bytes),
        "ownership": share.ownership,
        "fair_share": share.fair,
        "store": member.member.store.to_string(),
        "leader": picture.description.leader == Some(member.id),
        "voter": picture.description.voters.contains(&member.id),
        "epoch": told(|snapshot| snapshot.layout_epoch),
        "build": snapshot.map(|snapshot| snapshot.build.clone()),
        "pid": told(|snapshot| u64::from(snapshot.pid)),
        "uptime_seconds": uptime.map(|uptime| uptime.as_secs()),
        "pending": snapshot.map(|_| pending_json(&pending)),
        "residue": snapshot.map(|_| pending.residue),
        "transfers": snapshot.map(|snapshot| snapshot.transfers.len()),
        "safe_to_stop": verdict.safe,
        "safe_to_stop_why": verdict.why,
    });
    let percent = |share: f64| format!("{:.1}", share * 100.0);
    let cells = vec![
        name.clone(),
        state.to_owned(),
        member.address.clone(),
        member.member.zone.clone(),
        member.member.weight.to_string(),
        share.partitions.to_string(),
        share.primary.to_string(),
        cell(told(|snapshot| snapshot.keys)),
        told(|snapshot| snapshot.bytes).map_or_else(|| "-".to_owned(), size),
        percent(share.ownership),
        percent(share.fair),
        cell(snapshot.map(|_| pending.hints)),
        uptime.map_or_else(|| "-".to_owned(), short),
    ];
    Item { json, raw: format!("{name}\n").into_bytes(), human: Human::Row { header: NODE_HEADER, cells } }
}

pub(super) async fn node_show(node: &str, client: &Client, sink: &mut dyn Sink) -> Result<(), CommandError> {
    let (picture, member) = Picture::with(client, |picture| {
        picture.description.member(node).cloned().ok_or_else(|| no_node(picture, node))
    })
    .await?;
    let share = picture.shares().get(&member.id).copied().unwrap_or_default();
    let mut item = node_item(&picture, &member, share);
    if let Some(snapshot) = picture.snapshot(member.id) {
        let peers: Vec<Value> = snapshot.peers.iter().map(|peer| peer_json(&picture, peer)).collect();
        item.json["peers"] = Value::from(peers);
        item.json["counters"] = counters_json(&snapshot.counters.unwrap_or_default());
        item.json["usage"] = usage_json(&snapshot.usage.unwrap_or_default());
        item.json["poisoned"] =
            if snapshot.poisoned.is_empty() { Value::Null } else { Value::from(snapshot.poisoned.clone()) };
    }
    let Value::Object(fields) = &item.json else { return sink.item(item) };
    let lines: Vec<String> =
        fields.iter().filter(|(name, _)| *name != "schema").flat_map(|(name, value)| flat(name, value)).collect();
    item.human = Human::Text(lines.join("\n"));
    sink.item(item)
}

/// One line for each scalar of a JSON value.
fn flat(name: &str, value: &Value) -> Vec<String> {
    match value {
        Value::Object(fields) => {
            fields.iter().flat_map(|(inner, value)| flat(&format!("{name}.{inner}"), value)).collect()
        }
        Value::Array(values) if values.iter().any(Value::is_object) => {
            values.iter().enumerate().flat_map(|(index, value)| flat(&format!("{name}[{index}]"), value)).collect()
        }
        Value::String(text) => vec![format!("{name:<28} {text}")],
        Value::Null => vec![format!("{name:<28} -")],
        other => vec![format!("{name:<28} {other}")],
    }
}

fn peer_json(picture: &Picture, peer: &v1::PeerOpinion) -> Value {
    json!({
        "name": picture.description.name_of(NodeId(peer.node)),
        "state": state_word(peer.state()),
        "reason": peer.reason,
        "since": crate::output::time::rfc3339(peer.since_us),
        "round_trip_us": peer.round_trip_us,
        "queued_bytes": peer.queued_bytes,
    })
}

fn counters_json(counters: &v1::Counters) -> Value {
    json!({
        "gets": counters.gets,
        "puts": counters.puts,
        "deletes": counters.deletes,
        "scans": counters.scans,
        "failures": counters.failures,
        "forwards": counters.forwards,
        "hedges": counters.hedges,
        "read_repairs": counters.read_repairs,
        "handoffs": counters.handoffs,
        "hot_hits": counters.hot_hits,
        "hot_misses": counters.hot_misses,
        "commits": counters.commits,
        "committed_batches": counters.committed_batches,
        "copied_bytes": counters.copied_bytes,
    })
}

fn usage_json(usage: &v1::Usage) -> Value {
    json!({
        "cpu_us": usage.cpu_us,
        "memory_bytes": usage.memory_bytes,
        "disk_bytes": usage.disk_bytes,
        "disk_free_bytes": usage.disk_free_bytes,
        "latency_p50_us": usage.latency_p50_us,
        "latency_p99_us": usage.latency_p99_us,
    })
}

pub(super) async fn ring(args: RingArgs, client: &Client, sink: &mut dyn Sink) -> Result<(), CommandError> {
    let picture = Picture { description: client.refresh().await?, reports: Vec::new() };
    let Some(layout) = picture.description.layout.as_deref() else { return Err(forming(&picture)) };
    let name = |id: NodeId| picture.description.name_of(id);
    if args.grid || args.copies {
        for (id, entry) in layout.partition_ids().zip(&layout.partitions) {
            let places = if args.copies { entry.owners.len() } else { 1 };
            let owners: Vec<String> = entry.nodes().take(places).map(name).collect();
            let shown = owners.join(" ");
            sink.item(Item {
                json: json!({"schema": 1, "partition": id.0, "epoch": entry.changed.0, "owners": owners}),
                raw: format!("{} {shown}\n", id.0).into_bytes(),
                human: Human::Row {
                    header: &[">PARTITION", ">EPOCH", "OWNERS"],
                    cells: vec![id.0.to_string(), entry.changed.0.to_string(), shown],
                },
            })?;
        }
        return Ok(());
    }
    for (id, share) in picture.shares() {
        let member = layout.members.get(&id);
        let zone = member.map(|member| member.zone.clone()).unwrap_or_default();
        #[allow(clippy::cast_precision_loss, reason = "at most 65,536 partitions of 16 copies")]
        let over = share.partitions as f64 - share.fair_partitions;
        sink.item(Item {
            json: json!({
                "schema": 1,
                "name": name(id),
                "zone": zone,
                "weight": member.map(|member| member.weight),
                "partitions": share.partitions,
                "primary": share.primary,
                "ownership": share.ownership,
                "fair_share": share.fair,
            }),
            raw: format!("{} {} {}\n", name(id), share.partitions, share.primary).into_bytes(),
            human: Human::Row {
                header: &["NODE", "ZONE", ">PART", ">PRIMARY", ">OWN%", ">FAIR%", ">+/-"],
                cells: vec![
                    name(id),
                    zone,
                    share.partitions.to_string(),
                    share.primary.to_string(),
                    format!("{:.1}", share.ownership * 100.0),
                    format!("{:.1}", share.fair * 100.0),
                    format!("{over:+.1}"),
                ],
            },
        })?;
    }
    Ok(())
}

pub(super) async fn keyspace_list(client: &Client, sink: &mut dyn Sink) -> Result<(), CommandError> {
    for keyspace in client.keyspaces().await? {
        sink.item(keyspace_item(&keyspace, None))?;
    }
    Ok(())
}

pub(super) async fn keyspace_create(
    args: &CreateArgs,
    client: &Client,
    sink: &mut dyn Sink,
) -> Result<(), CommandError> {
    let request = v1::CreateKeyspaceRequest {
        name: args.name.clone(),
        mode: match args.mode {
            Mode::Available => v1::KeyspaceMode::Available.into(),
            Mode::Consistent => v1::KeyspaceMode::Consistent.into(),
        },
        r: u32::from(args.r),
        w: u32::from(args.w),
        conflict: match args.conflict {
            Conflict::Siblings => v1::Conflict::Siblings.into(),
            Conflict::Lww => v1::Conflict::Lww.into(),
        },
        by: asker(),
    };
    let answer = client.create_keyspace(request).await?;
    let keyspace = answer.keyspace.unwrap_or_default();
    sink.item(keyspace_item(&keyspace, Some(answer.created)))
}

fn keyspace_item(keyspace: &v1::Keyspace, created: Option<bool>) -> Item {
    let mode = match keyspace.mode() {
        v1::KeyspaceMode::Consistent => "consistent",
        v1::KeyspaceMode::Available | v1::KeyspaceMode::Unspecified => "available",
    };
    let conflict = match keyspace.conflict() {
        v1::Conflict::Lww => "lww",
        v1::Conflict::Siblings | v1::Conflict::Unspecified => "siblings",
    };
    let mut json = json!({
        "schema": 1,
        "name": keyspace.name,
        "id": keyspace.id,
        "mode": mode,
        "r": keyspace.r,
        "w": keyspace.w,
        "conflict": conflict,
    });
    if let Some(created) = created {
        json["created"] = Value::from(created);
    }
    let cells = vec![
        keyspace.name.clone(),
        mode.to_owned(),
        keyspace.r.to_string(),
        keyspace.w.to_string(),
        conflict.to_owned(),
    ];
    Item {
        json,
        raw: format!("{}\n", keyspace.name).into_bytes(),
        human: Human::Row { header: &["KEYSPACE", "MODE", ">R", ">W", "CONFLICT"], cells },
    }
}

pub(super) async fn keyspace_drop(
    name: &str,
    confirmed: bool,
    client: &Client,
    sink: &mut dyn Sink,
) -> Result<(), CommandError> {
    if !confirmed {
        return Err(CommandError::new(
            Class::Refused,
            format!("dropping {name} deletes all of its keys for good; add --yes to do it"),
        ));
    }
    client.drop_keyspace(v1::DropKeyspaceRequest { name: name.to_owned(), by: asker() }).await?;
    sink.item(Item {
        json: json!({"schema": 1, "name": name, "dropped": true}),
        raw: format!("{name}\n").into_bytes(),
        human: Human::Text(format!("dropped {name}")),
    })
}

fn keyspace_id(picture: &Picture, name: &str) -> Result<KeyspaceId, CommandError> {
    // A node outside of any cluster knows no keyspaces, and that is the better answer.
    if picture.description.layout.is_none() {
        return Err(forming(picture));
    }
    let keyspaces = &picture.description.keyspaces;
    keyspaces.iter().find(|keyspace| keyspace.name == name).map(|keyspace| keyspace.id).ok_or_else(|| {
        let known: Vec<&str> = keyspaces.iter().map(|keyspace| keyspace.name.as_str()).take(20).collect();
        CommandError::new(
            Class::NotFound,
            format!("no keyspace {name:?}; create it, or use one of: {}", known.join(", ")),
        )
    })
}

fn forming(picture: &Picture) -> CommandError {
    let (what, remedy) = picture.why_no_layout();
    let forming = if picture.description.forming.is_some() { "the cluster is forming: " } else { "" };
    CommandError::new(Class::Unavailable, format!("{forming}{what}; {remedy}"))
}
