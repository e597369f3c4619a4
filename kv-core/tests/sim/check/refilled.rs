//! Rule D2: a store that was lost is refilled from *all* other owners before it counts as complete. Then it durably holds
//! all that any of them durably held when it was lost.

use kv_core::ring::Entry;
use kv_core::storage::Space;
use kv_core::types::PartitionId;
use kv_core::version::Context;

use super::collected;
use crate::history::KeyId;
use crate::settings::node_id;
use crate::world::World;

/// What the other owners of a partition durably hold: what a machine that loses its store now must get back.
pub(crate) fn lost(world: &World, machine: usize, partition: PartitionId) -> Vec<(KeyId, Context)> {
    let others: Vec<usize> = world.old_owners(partition).into_iter().filter(|owner| *owner != machine).collect();
    let keys = world.history.key_ids().filter(|key| world.history.key(*key).partition == partition);
    let lost = |key: KeyId| {
        let stored = world.storage_key(Space::Owned, key);
        let mut context = Context::new();
        for record in others.iter().filter_map(|owner| world.machines[*owner].disk.durable_record(&stored)) {
            context.join(&record.context);
        }
        (key, context)
    };
    keys.map(lost).collect()
}

/// The control plane has changed an entry. Who owns the partition no more needs nothing back. Who stays must get back what
/// it was, as far as the other owners of now hold it. Who has become an owner by the receipt of a store that is lost is
/// get back all that the others hold.
pub(crate) fn entry_changed(world: &mut World, partition: PartitionId, was: &Entry, is: &Entry) {
    for machine in 0..world.machines.len() {
        let node = node_id(machine);
        let owns = |entry: &Entry| entry.owners.iter().any(|owner| owner.node == node);
        let before = world.unsynced.remove(&(machine, partition));
        if !owns(is) {
            continue;
        }
        let now = lost(world, machine, partition);
        let held =
            |key: &KeyId, context: &Context| now.iter().any(|(other, held)| other == key && held.dominates(context));
        let entered = !owns(was);
        if let Some(before) = before {
            let rest = before.into_iter().filter(|(key, context)| held(key, context)).collect();
            world.unsynced.insert((machine, partition), rest);
        } else if entered && !world.is_listed(machine) {
            world.unsynced.insert((machine, partition), now);
        }
    }
}

/// Whether a machine that calls a partition complete has got back what it had lost.
pub(crate) fn is_restored(
    world: &World,
    machine: usize,
    partition: PartitionId,
    lost: &[(KeyId, Context)],
) -> Result<(), String> {
    for (key, context) in lost.iter().filter(|(key, _)| !world.history.is_dropped(*key)) {
        let record = world.machines[machine].disk.durable_record(&world.storage_key(Space::Owned, *key));
        let seen = collected::with_collected(world, *key, &record.unwrap_or_default().context);
        if !seen.dominates(context) {
            return Err(format!(
                "rule D2: {} calls {partition} complete, but lacks what other owners held of {key:?} when its store was lost",
                node_id(machine)
            ));
        }
    }
    Ok(())
}
