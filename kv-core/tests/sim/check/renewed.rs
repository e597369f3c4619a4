//! Rule D2: a store is given up only if it is an older copy, keeps all that it holds, and what it holds comes to every owner; and
//! nobody counts an older copy who has seen more of it.

use kv_core::storage::Space;
use kv_core::version::Context;

use crate::history::KeyId;
use crate::machine::Machine;
use crate::settings::node_id;
use crate::world::World;

/// Whether the store that a machine gives up is an older copy.
pub(crate) fn is_older_copy(index: usize, machine: &Machine) -> Result<(), String> {
    if machine.is_older_copy {
        return Ok(());
    }
    let store = machine.disk.store;
    Err(format!("D2: {} gives up store {store}, which is no older copy", node_id(index)))
}

/// What a store durably holds.
pub(crate) fn held(world: &World, machine: usize) -> Vec<(KeyId, Context)> {
    let record = |key| world.machines[machine].disk.durable_record(&world.storage_key(Space::Owned, key));
    world.history.key_ids().filter_map(|key| Some((key, record(key)?.context))).collect()
}

/// Whether a store that is renewed keeps what it held.
pub(crate) fn is_kept(world: &World, machine: usize, before: &[(KeyId, Context)]) -> Result<(), String> {
    if held(world, machine) == before {
        return Ok(());
    }
    Err(format!("D2: {} is renewed and does not keep what it held", node_id(machine)))
}

/// Whether what renewed stores held is held by every owner of now.
pub(crate) fn old_copies_are_merged(world: &World) -> Result<(), String> {
    for (machine, held) in world.old_copies.iter().filter(|(machine, _)| !world.machines[*machine].dead) {
        for (key, context) in held.iter().filter(|(key, _)| !world.history.is_dropped(*key)) {
            let stored = world.storage_key(Space::Owned, *key);
            for owner in world.owners(stored.partition()) {
                let mut seen = world.machines[owner].disk.durable_record(&stored).unwrap_or_default().context;
                // What was collected goes from old copies as well (rule A6).
                if let Some(collected) = world.collected.get(key) {
                    seen.join(collected);
                }
                if !seen.dominates(context) {
                    return Err(format!(
                        "D2: {} lacks what the old copy of {} held of {key:?}",
                        node_id(owner),
                        node_id(*machine)
                    ));
                }
            }
        }
    }
    Ok(())
}

/// Whether a machine may have a session with a peer: that one does not run an older copy of which the machine has seen more.
pub(crate) fn may_count(world: &World, machine: usize, peer: usize) -> Result<(), String> {
    let other = &world.machines[peer];
    if other.generation != world.machines[machine].generation {
        let (machine, peer) = (node_id(machine), node_id(peer));
        return Err(format!("D2: {machine} counts {peer}, which obeys another generation of the cluster"));
    }
    if other.is_older_copy && other.known_to.contains(&machine) {
        let (machine, peer) = (node_id(machine), node_id(peer));
        return Err(format!("D2: {machine} counts {peer}, which runs an older copy than it has shown to {machine}"));
    }
    Ok(())
}
