//! count, status, node, ring, keyspace.

use kv_core::config::{Keyspace, Mode as KeyspaceMode};
use kv_core::types::{KeyspaceId, NodeId};
use kv_proto::client::Client;
use kv_proto::describe::MemberView;
use kv_proto::v1;
use serde_json::{Value, json};

use super::topology::no_node;
use crate::asker::asker;
use crate::command::{Conflict, CreateArgs, In, Mode, RingArgs};
use crate::error::{Class, CommandError};
use crate::observe::control::{ControlPlane, NoControl};
use crate::observe::health::Health;
use crate::observe::safety::{Safety, Verdict};
use crate::observe::settling::Tombstones;
use crate::observe::snapshot::{ClusterSnapshot, Share, state_word};
use crate::observe::uneven;
use crate::output::time::{short, size};
use crate::output::{Human, Item, Sink};

/// Keyspaces that a status names.
const KEYSPACES_NAMED_MAX: usize = 8;

pub(super) async fn count(within: &In, client: &Client, sink: &mut dyn Sink) -> Result<(), CommandError> {
    let (cluster, keyspace) = ClusterSnapshot::with(client, |cluster| keyspace_id(cluster, &within.keyspace)).await?;
    let Some(layout) = cluster.description.layout.as_deref() else { return Err(forming(&cluster)) };
    let keys = cluster.count(layout, keyspace).map_err(|partition| {
        CommandError::new(
            Class::Unavailable,
            format!("no owner of partition {} is in reach and complete; start the nodes that are down", partition.0),
        )
    })?;
    let (pending, idle) = (cluster.pending(), Health::of(&cluster).idle);
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
    let cluster = ClusterSnapshot::take(client, true).await?;
    sink.item(status_item(&cluster))
}

/// The health of a snapshot as a result.
pub(super) fn status_item(cluster: &ClusterSnapshot) -> Item {
    let health = Health::of(cluster);
    let safety = Safety::of(cluster);
    let tombstones = Tombstones::of(cluster);
    let description = &cluster.description;
    let members = &description.members;
    let up = members.iter().filter(|member| cluster.serves(member.id)).count();
    let layout = description.layout.as_deref();
    let cluster_id = description.cluster.map(|id| id.to_string());
    let reasons: Vec<Value> =
        health.reasons.iter().map(|reason| json!({"what": reason.what, "remedy": reason.remedy})).collect();
    let json = json!({
        "schema": 1,
        "health": health.word.text(),
        "ready": health.ready,
        "idle": health.idle,
        "reasons": reasons,
        "cluster": cluster_id,
        "epoch": layout.map(|layout| layout.epoch.0),
        "members": members.len(),
        "up": up,
        "copies": layout.map(|layout| layout.copies),
        "partitions": layout.map(kv_core::ring::Layout::partition_count),
        "leader": description.leader.map(|leader| description.name_of(leader)),
        "forming": description.forming.map(|(present, expected)| json!({"present": present, "expected": expected})),
        "pending": pending_json(&cluster.pending()),
        "safety": safety.json(),
        "tombstones": tombstones.json(),
        "control": control_json(cluster),
        "uneven": uneven::json(cluster),
        "keyspaces": keyspaces_json(&description.keyspaces),
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
        lines.extend(tombstones.line().map(|line| format!("  {line}")));
        lines.extend(keyspaces_line(&description.keyspaces).map(|line| format!("  {line}")));
        lines.extend(ControlPlane::of(cluster).restored().map(|line| format!("  {line}")));
    }
    for reason in &health.reasons {
        let remedy = if reason.remedy.is_empty() { String::new() } else { format!(": {}", reason.remedy) };
        lines.push(format!("  - {}{remedy}", reason.what));
    }
    Item { json, raw: format!("{}\n", health.word.text()).into_bytes(), human: Human::Text(lines.join("\n")) }
}

/// How many keyspaces have each mode, for programs.
fn keyspaces_json(keyspaces: &[Keyspace]) -> Value {
    let consistent = keyspaces.iter().filter(|keyspace| keyspace.mode == KeyspaceMode::Consistent).count();
    json!({"available": keyspaces.len() - consistent, "consistent": consistent})
}

/// The same for people; `None`: all are available, which goes without saying.
fn keyspaces_line(keyspaces: &[Keyspace]) -> Option<String> {
    let consistent: Vec<&str> = keyspaces
        .iter()
        .filter(|keyspace| keyspace.mode == KeyspaceMode::Consistent)
        .map(|keyspace| keyspace.name.as_str())
        .collect();
    let named = consistent.iter().take(KEYSPACES_NAMED_MAX).copied().collect::<Vec<_>>().join(", ");
    let more = consistent.len().saturating_sub(KEYSPACES_NAMED_MAX);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    (!consistent.is_empty()).then(|| format!("{} keyspaces, of which consistent: {named}{more}", keyspaces.len()))
}

/// The control plane for programs; `null` where nodes do not say.
fn control_json(cluster: &ClusterSnapshot) -> Value {
    let control = ControlPlane::of(cluster);
    if control.generation == 0 {
        return Value::Null;
    }
    let names = |nodes: &[NodeId]| nodes.iter().map(|node| cluster.description.name_of(*node)).collect::<Vec<_>>();
    let left_behind: Vec<Value> = control
        .left_behind
        .iter()
        .map(|(node, generation)| json!({"name": cluster.description.name_of(*node), "generation": generation}))
        .collect();
    json!({
        "generation": control.generation,
        "restored": control.restored().is_some(),
        "trouble": control.trouble.as_ref().map(NoControl::word),
        "voters": control.voters,
        "voters_wanted": control.voters_wanted,
        "to_come": names(&control.awaited),
        "left_behind": left_behind,
    })
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
    let cluster = ClusterSnapshot::take(client, true).await?;
    let shares = cluster.shares();
    for member in &cluster.description.members {
        sink.item(node_item(&cluster, member, shares.get(&member.id).copied().unwrap_or_default()))?;
    }
    if cluster.description.members.is_empty() { Err(forming(&cluster)) } else { Ok(()) }
}

const NODE_HEADER: &[&str] = &[
    "NODE", "STATE", "ADDRESS", "ZONE", ">WEIGHT", ">PART", ">PRIMARY", ">KEYS", ">BYTES", ">OWN%", ">FAIR%", ">HINTS",
    ">UP",
];

fn node_item(cluster: &ClusterSnapshot, member: &MemberView, share: Share) -> Item {
    let snapshot = cluster.report(member.id);
    let state = state_word(cluster.state(member));
    let reported = |metric: fn(&v1::NodeSnapshot) -> u64| snapshot.map(metric);
    let cell = |metric: Option<u64>| metric.map_or_else(|| "-".to_owned(), |metric| metric.to_string());
    let pending = snapshot.and_then(|snapshot| snapshot.pending).unwrap_or_default();
    let verdict = Verdict::of(cluster, member.id);
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
        "keys": reported(|snapshot| snapshot.keys),
        "keys_primary": reported(|snapshot| snapshot.keys_primary),
        "bytes": reported(|snapshot| snapshot.bytes),
        "ownership": share.ownership,
        "fair_share": share.fair,
        "store": member.member.store.to_string(),
        "leader": cluster.description.leader == Some(member.id),
        "voter": cluster.description.voters.contains(&member.id),
        "epoch": reported(|snapshot| snapshot.layout_epoch),
        "build": snapshot.map(|snapshot| snapshot.build.clone()),
        "pid": reported(|snapshot| u64::from(snapshot.pid)),
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
        cell(reported(|snapshot| snapshot.keys)),
        reported(|snapshot| snapshot.bytes).map_or_else(|| "-".to_owned(), size),
        percent(share.ownership),
        percent(share.fair),
        cell(snapshot.map(|_| pending.hints)),
        uptime.map_or_else(|| "-".to_owned(), short),
    ];
    Item { json, raw: format!("{name}\n").into_bytes(), human: Human::Row { header: NODE_HEADER, cells } }
}

pub(super) async fn node_show(node: &str, client: &Client, sink: &mut dyn Sink) -> Result<(), CommandError> {
    let (cluster, member) = ClusterSnapshot::with(client, |cluster| {
        cluster.description.member(node).cloned().ok_or_else(|| no_node(cluster, node))
    })
    .await?;
    let share = cluster.shares().get(&member.id).copied().unwrap_or_default();
    let mut item = node_item(&cluster, &member, share);
    if let Some(snapshot) = cluster.report(member.id) {
        let peers: Vec<Value> = snapshot.peers.iter().map(|peer| peer_json(&cluster, peer)).collect();
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

fn peer_json(cluster: &ClusterSnapshot, peer: &v1::PeerOpinion) -> Value {
    json!({
        "name": cluster.description.name_of(NodeId(peer.node)),
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
        "retired_forgotten": counters.retired_forgotten,
        "register_retries": counters.register_retries,
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
    let cluster = ClusterSnapshot { description: client.refresh().await?, reports: Vec::new() };
    let Some(layout) = cluster.description.layout.as_deref() else { return Err(forming(&cluster)) };
    let name = |id: NodeId| cluster.description.name_of(id);
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
    for (id, share) in cluster.shares() {
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
    let settings = [
        ("--r", args.r.is_some()),
        ("--w", args.w.is_some()),
        ("--strict", args.strict),
        ("--conflict", args.conflict.is_some()),
    ];
    if let (Mode::Consistent, Some((flag, _))) = (args.mode, settings.iter().find(|(_, is_set)| *is_set)) {
        return Err(CommandError::usage(format!(
            "{flag} is a setting of available keyspaces; leave it out: in a consistent keyspace a majority of the owners agrees on every \
             answer"
        )));
    }
    let request = v1::CreateKeyspaceRequest {
        name: args.name.clone(),
        mode: match args.mode {
            Mode::Available => v1::KeyspaceMode::Available.into(),
            Mode::Consistent => v1::KeyspaceMode::Consistent.into(),
        },
        // 0: as the cluster does it without.
        r: args.r.map_or(0, u32::from),
        w: args.w.map_or(0, u32::from),
        conflict: match args.conflict {
            None => v1::Conflict::Unspecified.into(),
            Some(Conflict::Siblings) => v1::Conflict::Siblings.into(),
            Some(Conflict::Lww) => v1::Conflict::Lww.into(),
        },
        by: asker(),
        strict: args.strict,
    };
    let answer = client.create_keyspace(request).await?;
    let keyspace = answer.keyspace.unwrap_or_default();
    sink.item(keyspace_item(&keyspace, Some(answer.created)))
}

fn keyspace_item(keyspace: &v1::Keyspace, created: Option<bool>) -> Item {
    let mut json = json!({"schema": 1, "name": keyspace.name, "id": keyspace.id});
    let cells = match keyspace.mode() {
        v1::KeyspaceMode::Consistent => {
            json["mode"] = Value::from("consistent");
            // Every request is strict there; R, W and what becomes of concurrent writes do not exist.
            json["strict"] = Value::from(true);
            ["consistent", "-", "-", "yes", "-"].map(str::to_owned)
        }
        v1::KeyspaceMode::Available | v1::KeyspaceMode::Unspecified => {
            let conflict = match keyspace.conflict() {
                v1::Conflict::Lww => "lww",
                v1::Conflict::Siblings | v1::Conflict::Unspecified => "siblings",
            };
            json["mode"] = Value::from("available");
            json["r"] = Value::from(keyspace.r);
            json["w"] = Value::from(keyspace.w);
            json["strict"] = Value::from(keyspace.strict);
            json["conflict"] = Value::from(conflict);
            let strict = if keyspace.strict { "yes" } else { "no" };
            ["available", &keyspace.r.to_string(), &keyspace.w.to_string(), strict, conflict].map(str::to_owned)
        }
    };
    if let Some(created) = created {
        json["created"] = Value::from(created);
    }
    let cells = std::iter::once(keyspace.name.clone()).chain(cells).collect();
    Item {
        json,
        raw: format!("{}\n", keyspace.name).into_bytes(),
        human: Human::Row { header: &["KEYSPACE", "MODE", ">R", ">W", "STRICT", "CONFLICT"], cells },
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

fn keyspace_id(cluster: &ClusterSnapshot, name: &str) -> Result<KeyspaceId, CommandError> {
    // A node outside of any cluster knows no keyspaces, and that is the better answer.
    if cluster.description.layout.is_none() {
        return Err(forming(cluster));
    }
    let keyspaces = &cluster.description.keyspaces;
    keyspaces.iter().find(|keyspace| keyspace.name == name).map(|keyspace| keyspace.id).ok_or_else(|| {
        let known: Vec<&str> = keyspaces.iter().map(|keyspace| keyspace.name.as_str()).take(20).collect();
        CommandError::new(
            Class::NotFound,
            format!("no keyspace {name:?}; create it, or use one of: {}", known.join(", ")),
        )
    })
}

fn forming(cluster: &ClusterSnapshot) -> CommandError {
    let (what, remedy) = cluster.why_no_layout();
    let forming = if cluster.description.forming.is_some() { "the cluster is forming: " } else { "" };
    CommandError::new(Class::Unavailable, format!("{forming}{what}; {remedy}"))
}
