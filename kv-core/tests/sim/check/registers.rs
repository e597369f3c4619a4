//! Rules C1 to C8 on one replica: what it has promised never falls, and it accepts nothing below that. No two states are accepted under one
//! ballot anywhere (C4). What all replicas together tell
//! clients is judged by `kv_histories`.

use bytes::Bytes;
use kv_core::cell::Cell;
use kv_core::register::{Accepted, Register};
use kv_core::ring::Entry;
use kv_core::storage::{StorageKey, Stored};
use kv_core::types::Hlc;

use super::collected::is_past;
use crate::report::Count;
use crate::settings::{machine_of, node_id};
use crate::world::World;

/// A machine writes a register. Whether in place of one that had accepted more: that one was removed first.
pub(crate) fn never_fall(world: &mut World, machine: usize, key: &StorageKey, value: &Bytes) -> Result<bool, String> {
    let node = node_id(machine);
    let stored = Stored::decode(value).map_err(|error| format!("{key} is written damaged: {error}"))?;
    let Some(after) = stored.cell.register() else { return Err(format!("{node} stores a record at {key}")) };
    if let Some(accepted) = &after.accepted {
        let place = (key.clone(), accepted.ballot);
        let first = world.proposed.entry(place).or_insert_with(|| accepted.state.clone());
        if *first != accepted.state {
            return Err(format!("C4: {:?} of {key} names {first:?} and {:?}", accepted.ballot, accepted.state));
        }
    }
    let before = world.machines[machine].disk.visible_cell(key);
    let before: Register = before.and_then(|cell| cell.register().cloned()).unwrap_or_default();
    if after.ballot() < before.ballot() {
        return Ok(true);
    }
    if after.promised < before.promised {
        return Err(format!(
            "C1: {node} has promised {:?} of {key}, and forgets that for {:?}",
            before.promised, after.promised
        ));
    }
    let core = world.machines[machine].core.as_ref();
    let layout = core.and_then(|core| core.layout_for(key.partition()));
    let entry = layout.and_then(|layout| layout.entry(key.partition()));
    let binds = entry.is_none_or(|entry| before.promised.epoch >= entry.changed);
    // A copy that is being filled has promised nothing to anybody: what it holds of promises came with the records.
    let fills = || core.is_some_and(|core| core.status().unsynced.contains(&key.partition()));
    if binds && after.ballot() > before.ballot() && after.ballot() < before.promised && !fills() {
        return Err(format!(
            "C2: {node} accepts {:?} of {key} below its promise {:?}",
            after.ballot(),
            before.promised
        ));
    }
    Ok(false)
}

/// Rule C7: an owner removes a register when it has settled that there is no value, and every owner has held that or something later.
pub(super) fn may_go(world: &mut World, machine: usize, entry: &Entry, key: &StorageKey) -> Result<(), String> {
    let node = node_id(machine);
    let disk = &world.machines[machine].disk;
    let held = disk.visible_cell(key).and_then(|cell| cell.register().cloned());
    let Some(register) = held else { return Ok(()) };
    let Some(version) = register.accepted.as_ref().map(|accepted| accepted.state.version) else { return Ok(()) };
    let is_due = |deleted: Hlc| disk.durable_watermark(key.partition()) >= deleted;
    // A copy that is being filled learns from another one what was collected; who stays may be filled, too.
    if world.machines[machine].ever_lost || entry.joint.is_some() {
        if register.tombstone().is_some_and(is_due) {
            world.registers.collected.insert(key.clone(), version);
        }
        return Ok(());
    }
    // Others may agree on it once more meanwhile.
    if world.registers.collected.get(key).is_some_and(|collected| *collected >= version) {
        return Ok(());
    }
    let Some(deleted) = register.tombstone() else {
        return Err(format!("C7: {node} removes {key}, which has a value: {register:?}"));
    };
    if !is_due(deleted) {
        return Err(format!("C7: {node} removes {key} before its watermark is durable"));
    }
    // The same may be agreed on once more at any time, under a higher ballot; and under a higher ballot something else may have been agreed
    // on, if no majority had accepted this.
    let is_later = |held: &Accepted| held.state.version >= version || held.ballot >= register.ballot();
    let has_it = |cell: &Cell| cell.register().and_then(|held| held.accepted.as_ref()).is_some_and(is_later);
    let without = entry.nodes().find(|owner| !world.machines[machine_of(*owner)].disk.ever_held_cell(key, has_it));
    if let Some(owner) = without {
        return Err(format!("C7: {node} removes {version:?} of {key}, which {owner} does not hold"));
    }
    world.count(Count::RegistersCollected);
    world.registers.collected.insert(key.clone(), version);
    Ok(())
}

/// Whether no owner holds a register without a value that is old enough.
pub(super) fn none_is_left(world: &World) -> Result<(), String> {
    for stored in world.registers.stored(&world.layout()) {
        for owner in world.owners(stored.partition()) {
            let cell = world.machines[owner].disk.durable_cell(&stored);
            let Some(register) = cell.as_ref().and_then(Cell::register) else { continue };
            if register.tombstone().is_some_and(|deleted| is_past(world, deleted)) {
                let node = node_id(owner);
                return Err(format!("C7: {node} still holds {stored}, which is old enough: {register:?}"));
            }
        }
    }
    Ok(())
}
