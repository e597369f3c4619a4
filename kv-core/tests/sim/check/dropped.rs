//! Rules A4 and M4: a node deletes a record of a partition only when a durable layout does not make it an owner, and
//! every owner of that layout durably holds, or held, a record that dominates it. Rule K1: or when a durable list of keyspaces,
//! which only gets newer, says that its keyspace was dropped.

use kv_core::config::KeyspaceList;
use kv_core::ring::Entry;
use kv_core::storage::StorageKey;
use kv_core::types::NodeId;

use crate::settings::{machine_of, node_id};
use crate::world::World;

/// Rule K1: a node deletes what it holds of a keyspace only when its durable list of keyspaces says that it was dropped.
fn may_purge(world: &World, machine: usize, key: &StorageKey) -> Result<(), String> {
    let list = world.machines[machine].disk.durable_keyspaces().unwrap_or_default();
    if list.is_dropped(key.keyspace()) {
        return Ok(());
    }
    Err(format!("rule K1: {} deletes {key}, although its durable list has that keyspace", node_id(machine)))
}

/// Rule K1: a list of keyspaces takes the place of an older one only.
pub(crate) fn list_is_newer(world: &World, machine: usize, list: &[u8]) -> Result<(), String> {
    let given: KeyspaceList =
        postcard::from_bytes(list).map_err(|error| format!("{} writes no list: {error}", node_id(machine)))?;
    let known = world.machines[machine].disk.visible_keyspaces().unwrap_or_default();
    if given.is_newer_than(&known) && world.keyspace_lists.contains(&given) {
        return Ok(());
    }
    Err(format!("rule K1: {} goes from {known:?} to {given:?}", node_id(machine)))
}

/// A machine deletes an owned record.
pub(crate) fn may_go(world: &World, machine: usize, key: &StorageKey) -> Result<(), String> {
    if world.history.dropped.contains(&key.keyspace()) && may_purge(world, machine, key).is_ok() {
        return Ok(());
    }
    let node = node_id(machine);
    let disk = &world.machines[machine].disk;
    let Some(record) = disk.visible_record(key) else { return Ok(()) };
    // What has settled and was collected since is not taken by whoever it is handed over to (rule A6).
    let id = world.history.key_named(key.keyspace(), &key.key_bytes());
    let collected = id.and_then(|id| world.collected.get(&id));
    let has_settled = collected.is_some_and(|collected| collected.dominates(&record.context));
    let partition = key.partition();
    // The loop may have gone on to a newer layout within this step, and a newer one may be durable already of which it has not
    // been told yet. Whatever that one makes of the node, the loop has confirmed nothing by it.
    let durable = disk.durable_layout().map(|layout| layout.epoch).unwrap_or_default();
    let mut left = world.acted_entries(machine, partition);
    left.retain(|entry| !entry.owns(node) && entry.changed <= durable);
    if left.is_empty() {
        return Err(format!("rule M4: {node} drops {key} although no durable layout takes it away from it"));
    }
    let holds = |owner: NodeId| {
        world.machines[machine_of(owner)].disk.ever_held(key, |held| held.context.dominates(&record.context))
    };
    let lacks = |entry: &Entry| entry.nodes().find(|owner| !has_settled && !holds(*owner));
    match left.iter().map(lacks).min() {
        Some(Some(owner)) => Err(format!("rule A4: {node} drops {key}, which {owner} does not hold")),
        _ => Ok(()),
    }
}
