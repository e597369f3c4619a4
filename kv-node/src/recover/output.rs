//! The plan and the outcome, for people and for programs.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use kv_core::storage::SetAside;
use kv_core::types::WallTime;
use serde_json::{Value, json};

use super::act::{Done, What};
use super::plan::{Place, Plan};

/// The version of the JSON, as everywhere.
const SCHEMA: u32 = 1;

/// The plan for people.
pub(super) fn plan_text(plan: &Plan) -> String {
    let mut texts: Vec<String> = plan.places.iter().map(place_text).collect();
    if let Some(best) = plan.best.and_then(|best| plan.places.get(best)) {
        let (path, name) = (best.directory.path.display(), best.name.as_deref().unwrap_or("its node"));
        texts.push(format!("{path} has the newest agreed state: found the next generation there, on {name}"));
    }
    texts.join("\n")
}

fn place_text(place: &Place) -> String {
    let directory = &place.directory;
    let store = &directory.store;
    let mut text = format!("{}\n", directory.path.display());
    let mut line = |what: &str, value: String| {
        // Writing to a string cannot fail.
        let _written = writeln!(text, "  {what:<14} {value}");
    };
    let number = place.node.map_or_else(|| "no member".to_owned(), |node| format!("member {node}"));
    line("node", format!("{}, {number}", place.name.as_deref().unwrap_or("unknown")));
    line("last written", time_or(directory.used, "unknown"));
    let boots = store.boots.newest();
    let former = store.examined.former.len();
    let former = if former == 0 { String::new() } else { format!(", {former} ids before") };
    line("store", format!("{}, boot {boots}{former}", store.id));
    if let Some((cluster, seed)) = directory.cluster() {
        let generation = place.generation.map_or_else(|| "unknown".to_owned(), |it| it.number.to_string());
        line("cluster", format!("{cluster}, seed {:016x}, generation {generation}", seed.0));
    }
    if let Some(state) = &directory.known.state {
        let epoch = state.layout.as_ref().map_or(0, |layout| layout.epoch.0);
        let changed = time_or(place.changed, "never");
        line("agreed state", format!("revision {}, epoch {epoch}, last change {changed}", state.revision));
        let members: Vec<String> = state
            .members
            .iter()
            .map(|(node, member)| {
                let votes = directory.known.voting.voters.contains(&member.incarnation.store);
                let to_come = if state.is_awaited(*node) { ", to come" } else { "" };
                format!("{} ({}{}{to_come})", member.name, member.address, if votes { ", votes" } else { "" })
            })
            .collect();
        line("members", members.join(", "));
    }
    let keyspaces = place.keyspaces();
    let named: Vec<String> = keyspaces.iter().map(|it| format!("{} ({})", it.name, it.id.0)).collect();
    line("keyspaces", named.join(", "));
    for (id, tally) in &store.examined.records {
        let name = keyspaces.get(*id).map_or_else(|| format!("dropped or unknown ({})", id.0), |it| it.name.clone());
        line("holds", format!("{} keys, {} records, {} bytes of {name}", tally.keys, tally.records, tally.bytes));
    }
    if store.examined.records.is_empty() {
        line("holds", "no records".to_owned());
    }
    if store.examined.hints.records > 0 {
        line("holds", format!("{} hints for owners that were down", store.examined.hints.records));
    }
    let aside = store.examined.set_aside.len();
    if aside > 0 {
        line("set aside", format!("{aside} values of old copies that were deleted elsewhere; --set-aside prints them"));
    }
    for (node, seen) in &store.examined.seen {
        let name = directory.known.state.as_ref().map_or_else(|| node.to_string(), |state| state.name_of(*node));
        let point = seen.incarnation;
        line("has seen", format!("{name} with store {}, boot {}, commit {}", point.store, point.boot, seen.commit));
    }
    for note in &place.notes {
        line("note", note.clone());
    }
    let path = directory.path.display();
    line(
        "may found",
        place
            .cannot_found
            .as_ref()
            .map_or_else(|| format!("yes: kv-node recover --data-dir {path} --found"), |why| format!("no: {why}")),
    );
    line(
        "may join",
        place.cannot_join.as_ref().map_or_else(
            || format!("yes: kv-node recover --data-dir {path} --join ADDR:PORT"),
            |why| format!("no: {why}"),
        ),
    );
    text
}

/// The plan for programs.
pub(super) fn plan_json(plan: &Plan) -> String {
    let best = plan.best.and_then(|best| plan.places.get(best)).map(|best| best.directory.path.display().to_string());
    let directories: Vec<Value> = plan.places.iter().map(place_json).collect();
    json!({"schema": SCHEMA, "directories": directories, "found_on": best}).to_string()
}

fn place_json(place: &Place) -> Value {
    let directory = &place.directory;
    let store = &directory.store;
    let keyspaces = place.keyspaces();
    let members = directory.known.state.as_ref().map(|state| {
        let member = |(node, member): (&kv_core::types::NodeId, &crate::control::MemberRecord)| {
            json!({
                "name": member.name,
                "id": node.0,
                "address": member.address,
                "store": member.incarnation.store.to_string(),
                "spare": member.spare,
                "votes": directory.known.voting.voters.contains(&member.incarnation.store),
                "to_come": state.is_awaited(*node),
                "seen": store.examined.seen.get(node).map(|seen| json!({
                    "store": seen.incarnation.store.to_string(),
                    "boot": seen.incarnation.boot,
                    "commit": seen.commit,
                })),
            })
        };
        state.members.iter().map(member).collect::<Vec<Value>>()
    });
    let holds: Vec<Value> = store
        .examined
        .records
        .iter()
        .map(|(id, tally)| {
            json!({
                "keyspace": id.0,
                "name": keyspaces.get(*id).map(|it| it.name.clone()),
                "keys": tally.keys,
                "records": tally.records,
                "bytes": tally.bytes,
            })
        })
        .collect();
    json!({
        "directory": directory.path.display().to_string(),
        "name": place.name,
        "id": place.node.map(|node| node.0),
        "last_written": directory.used.map(rfc3339),
        "store": store.id.to_string(),
        "boot": store.boots.newest(),
        "former_stores": store.examined.former.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "cluster": directory.cluster().map(|(cluster, _)| cluster.to_string()),
        "seed": directory.cluster().map(|(_, seed)| format!("{:016x}", seed.0)),
        "generation": place.generation.map(|generation| generation.number),
        "revision": directory.known.state.as_ref().map(|state| state.revision),
        "epoch": directory.known.state.as_ref().and_then(|state| state.layout.as_ref()).map(|layout| layout.epoch.0),
        "last_change": place.changed.map(rfc3339),
        "members": members,
        "keyspaces": keyspaces.iter().map(|it| json!({"id": it.id.0, "name": it.name})).collect::<Vec<_>>(),
        "next_keyspace": keyspaces.next().0,
        "holds": holds,
        "hints": store.examined.hints.records,
        "set_aside": store.examined.set_aside.len(),
        "settled": store.examined.settled.map(rfc3339),
        "notes": place.notes,
        "cannot_found": place.cannot_found,
        "cannot_join": place.cannot_join,
    })
}

/// What was done, for people.
pub(super) fn done_text(done: &Done) -> String {
    let Done { path, name, store, kept, records, hints, what } = done;
    let kept = kept.as_ref().map_or_else(String::new, |kept| {
        format!("\nThe control plane's files of the generation before are kept in {}.", kept.display())
    });
    let held = format!("It keeps {records} records and {hints} hints under the new store id {store}.{kept}");
    let path = path.display();
    match what {
        What::Founds { generation, awaited } if awaited.is_empty() => {
            format!("{name} founds generation {} of the cluster. {held}\nStart it as before.", generation.number)
        }
        What::Founds { generation, awaited } => format!(
            "{name} founds generation {} of the cluster. {held}\nStart it as before. To come: {}. On each of their machines: kv-node \
             recover --data-dir DIR --join ADDR:PORT, with the address of {name}, then start the node as before. Who is lost for good \
             is given up with node remove NAME --dead; until then partitions wait for what it may hold.",
            generation.number,
            awaited.join(", ")
        ),
        What::Joins { from, contacts } => format!(
            "{name} comes from generation {from} to the one of {}. {held}\nStart it as before ({path}); wait healthy returns when all that it \
             holds is merged.",
            contacts.join(", ")
        ),
    }
}

/// What was done, for programs.
pub(super) fn done_json(done: &Done) -> String {
    let Done { path, name, store, kept, records, hints, what } = done;
    let (word, generation, awaited, contacts) = match what {
        What::Founds { generation, awaited } => ("founded", generation.number, Some(awaited), None),
        What::Joins { from, contacts } => ("joins", *from, None, Some(contacts)),
    };
    json!({
        "schema": SCHEMA,
        "done": word,
        "directory": path.display().to_string(),
        "name": name,
        "store": store.to_string(),
        "generation": generation,
        "to_come": awaited,
        "contacts": contacts,
        "records": records,
        "hints": hints,
        "kept": kept.as_ref().map(|kept| kept.display().to_string()),
    })
    .to_string()
}

/// Why nothing was done, for programs.
pub(super) fn error_json(kind: &str, message: &str) -> String {
    json!({"schema": SCHEMA, "error": {"kind": kind, "message": message, "retry": false}}).to_string()
}

fn time_or(time: Option<WallTime>, otherwise: &str) -> String {
    time.map_or_else(|| otherwise.to_owned(), rfc3339)
}

fn rfc3339(time: WallTime) -> String {
    let micros = i64::try_from(time.0).unwrap_or(i64::MAX);
    Timestamp::from_microsecond(micros).map_or_else(|_| time.0.to_string(), |time| format!("{time:.6}"))
}
/// A value that was set aside, as a line that can be imported.
pub(super) fn set_aside(aside: &SetAside) -> String {
    let bytes = |bytes: &[u8]| match std::str::from_utf8(bytes) {
        Ok(text) => json!(text),
        Err(_) => json!({ "base64": STANDARD.encode(bytes) }),
    };
    let line = json!({
        "key": bytes(&aside.key),
        "value": bytes(&aside.value),
        "keyspace": aside.keyspace.0,
        "written": rfc3339(aside.written),
        "set_aside": rfc3339(aside.at),
    });
    line.to_string()
}
