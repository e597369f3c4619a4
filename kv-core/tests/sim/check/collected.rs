//! Rule A6: an owner removes a record only when it has settled. Nothing in it has a value, it is older than the minimum age by every
//! clock, every owner has held it or what replaced it, and no owner and nobody with residue holds a value that it has replaced. In the
//! end, when every member is up, no tombstone that is old enough is left.

use kv_core::ring::Entry;
use kv_core::storage::{Space, StorageKey};
use kv_core::types::{Hlc, NodeId, WallTime};
use kv_core::version::{Context, Record, Version};

use super::registers;
use crate::history::KeyId;
use crate::report::Count;
use crate::settings::{machine_of, node_id};
use crate::world::World;

/// A machine removes a record of a partition that it owns.
pub(crate) fn may_go(world: &mut World, machine: usize, entry: &Entry, key: &StorageKey) -> Result<(), String> {
    if Some(key.keyspace()) == world.registers.keyspace() {
        return registers::may_go(world, machine, entry, key);
    }
    let node = node_id(machine);
    let Some(record) = world.machines[machine].disk.visible_record(key) else { return Ok(()) };
    let Some(id) = world.history.key_named(key.keyspace(), &key.key_bytes()) else { return Ok(()) };
    let disk = &world.machines[machine].disk;
    // A copy that is being filled learns from another one what was collected; who stays may be filled, too.
    let fills = world.machines[machine].ever_lost || entry.joint.is_some();
    if !fills && disk.durable_watermark(key.partition()) < record.latest() {
        return Err(format!("A6: {node} removes {key} before its watermark is durable"));
    }
    if world.collected.get(&id).is_some_and(|collected| collected.dominates(&record.context)) {
        return Ok(());
    }
    // One batch may sweep a value and collect it.
    let has_ended = |version: &Version| version.expires.is_some_and(|expires| expires <= world.wall_high());
    if record.siblings.iter().any(|version| version.value.is_some() && !has_ended(version)) {
        return Err(format!("A6: {node} removes {key}, which has a value: {record:?}"));
    }
    let clocks_are_right = world.report.get(Count::ClockSkews) + world.report.get(Count::ClockJumps) == 0;
    if clocks_are_right && !is_old(world, &record) {
        return Err(format!("A6: {node} removes {key}, which is younger than {:?}", world.settings.age()));
    }
    let holds = |owner: NodeId| {
        world.machines[machine_of(owner)].disk.ever_held(key, |held| held.context.dominates(&record.context))
    };
    if let Some(owner) = entry.nodes().find(|owner| !holds(*owner)) {
        return Err(format!("A6: {node} removes {key}, which {owner} does not hold"));
    }
    let stays = |held: &Record| {
        held.siblings.iter().any(|version| {
            let same = record.siblings.iter().any(|tombstone| tombstone.dot == version.dot);
            // What has expired is collected by each owner when that one has swept it.
            let lives = version.value.is_some() && version.expires.is_none_or(|expires| expires > world.wall_min());
            lives && !same && record.context.covers(version.dot)
        })
    };
    for (index, other) in world.machines.iter().enumerate().filter(|(_, other)| !other.dead && !other.ever_lost) {
        let owned = key.in_space(Space::Owned);
        let held = [other.disk.durable_record(&owned), other.disk.visible_record(&owned)];
        if held.iter().flatten().any(stays) {
            return Err(format!("A6: {node} removes {key}, and {} holds a value that it replaced", node_id(index)));
        }
    }
    world.count(Count::Collected);
    world.collected.entry(id).or_default().join(&record.context);
    Ok(())
}

/// Whether all of a record is older than the minimum age by every clock.
fn is_old(world: &World, record: &Record) -> bool {
    is_past(world, record.latest())
}

/// Whether a timestamp is older than the minimum age by every clock.
pub(super) fn is_past(world: &World, at: Hlc) -> bool {
    let clocks = world.machines.iter().filter(|machine| !machine.dead).map(|machine| machine.clock.wall(world.time));
    at.wall().plus(world.settings.age()) <= clocks.min().unwrap_or_default()
}

/// What a context says of a key together with what was collected of it.
pub(crate) fn with_collected(world: &World, key: KeyId, context: &Context) -> Context {
    let mut seen = context.clone();
    if let Some(collected) = world.collected.get(&key) {
        seen.join(collected);
    }
    seen
}

/// Whether no owner holds a record without a value that is old enough.
pub(crate) fn none_is_left(world: &World) -> Result<(), String> {
    for key in world.history.key_ids() {
        let stored = world.storage_key(Space::Owned, key);
        for owner in world.owners(stored.partition()) {
            let Some(record) = world.machines[owner].disk.durable_record(&stored) else { continue };
            if !record.has_value() && is_old(world, &record) && record.latest().wall() > WallTime(0) {
                return Err(format!(
                    "A6: {} still holds {stored}, which is old enough to be collected: {record:?}",
                    node_id(owner)
                ));
            }
        }
    }
    registers::none_is_left(world)
}
