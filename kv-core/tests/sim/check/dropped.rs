//! Rules A4 and M4: a node deletes a record of a partition only when a durable layout does not make it an owner, and
//! every owner of that layout durably holds, or held, a record that dominates it.

use kv_core::ring::Layout;
use kv_core::storage::StorageKey;

use crate::settings::{machine_of, node_id};
use crate::world::World;

/// A machine deletes an owned record.
pub(crate) fn may_go(world: &World, machine: usize, key: &StorageKey) -> Result<(), String> {
    let node = node_id(machine);
    let disk = &world.machines[machine].disk;
    let Some(record) = disk.visible_record(key) else { return Ok(()) };
    let partition = key.partition();
    let durable = disk.durable_layout();
    let acts_on = world.machines[machine].core.as_ref().and_then(|core| core.layout().cloned());
    let owns = |layout: &Layout| layout.entry(partition).is_some_and(|entry| entry.owns(node));
    if durable.as_ref().is_none_or(owns) {
        return Err(format!("rule M4: {node} drops {key} although its durable layout makes it an owner"));
    }
    let Some(entry) = acts_on.as_ref().and_then(|layout| layout.entry(partition)) else {
        return Err(format!("rule M4: {node} drops {key} without a layout"));
    };
    for owner in entry.nodes() {
        let disk = &world.machines[machine_of(owner)].disk;
        if !disk.ever_held(key, |held| held.context.dominates(&record.context)) {
            return Err(format!("rule A4: {node} drops {key}, which {owner} does not hold"));
        }
    }
    Ok(())
}
