//! Rules C1 to C8 on one replica: what it has promised never falls, and it accepts nothing below that. No two states are accepted under one
//! ballot anywhere (C4). What all replicas together tell
//! clients is judged by `kv_histories`.

use bytes::Bytes;
use kv_core::register::Register;
use kv_core::storage::{StorageKey, Stored};

use crate::settings::node_id;
use crate::world::World;

/// A machine writes a register.
pub(crate) fn never_fall(world: &mut World, machine: usize, key: &StorageKey, value: &Bytes) -> Result<(), String> {
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
    if after.promised < before.promised {
        return Err(format!(
            "C1: {node} has promised {:?} of {key}, and forgets that for {:?}",
            before.promised, after.promised
        ));
    }
    if after.ballot() < before.ballot() {
        return Err(format!(
            "C2: {node} has accepted {:?} of {key}, and goes back to {:?}",
            before.ballot(),
            after.ballot()
        ));
    }
    let core = world.machines[machine].core.as_ref();
    let entry = core.and_then(|core| core.layout()).and_then(|layout| layout.entry(key.partition()));
    let binds = entry.is_none_or(|entry| before.promised.epoch >= entry.changed);
    if binds && after.ballot() > before.ballot() && after.ballot() < before.promised {
        return Err(format!(
            "C2: {node} accepts {:?} of {key} below its promise {:?}",
            after.ballot(),
            before.promised
        ));
    }
    Ok(())
}
