//! Invariant 3: after faults heal, and every key was read at `all`, the replicas of a partition are equal: the same
//! records, the same Merkle leaves. On every disk the kept statistics equal a recount.

use kv_core::storage::{LEAVES, Leaf, Space, Stats};
use kv_core::types::PartitionId;

use crate::disk::Disk;
use crate::settings::node_id;
use crate::world::World;

/// Whether the kept statistics of a disk are those of its entries.
pub(crate) fn statistics_are_exact(machine: usize, disk: &Disk) -> Result<(), String> {
    let recounted = disk.recount();
    if disk.stats() == &recounted {
        return Ok(());
    }
    Err(format!(
        "the statistics of {} say {:?} for {:?}, its entries {:?}",
        node_id(machine),
        Space::ALL.map(|space| disk.stats().total(space)),
        Space::ALL,
        Space::ALL.map(|space| recounted.total(space))
    ))
}

/// Whether all owners of every partition hold the same, and nobody holds hints or marks.
pub(crate) fn replicas_are_equal(world: &World) -> Result<(), String> {
    for (index, machine) in world.machines.iter().enumerate().filter(|(_, machine)| !machine.dead) {
        statistics_are_exact(index, &machine.disk)?;
        for space in [Space::Hint, Space::Missed] {
            let left = machine.disk.stats().total(space).records;
            if left > 0 {
                return Err(format!("{} still holds {left} entries in its {space:?} space", node_id(index)));
            }
        }
    }
    for (index, machine) in world.machines.iter().enumerate().filter(|(_, machine)| !machine.dead) {
        for (partition, stats) in machine.disk.stats().partitions() {
            let left = stats.total(Space::Owned).records;
            if left > 0 && !world.owners(partition).contains(&index) {
                return Err(format!("{} still holds {left} records of {partition}, which it left", node_id(index)));
            }
        }
    }
    nothing_is_left_of_dropped(world)?;
    for key in world.history.key_ids() {
        let stored = world.storage_key(Space::Owned, key);
        let owners = world.owners(stored.partition());
        let record = |owner: &usize| world.machines[*owner].disk.durable_record(&stored).unwrap_or_default();
        let first = record(&owners[0]);
        for owner in &owners[1..] {
            let other = record(owner);
            if other.digest() != first.digest() {
                return Err(format!(
                    "invariant 3: {} and {} differ at {stored}: {first:?} and {other:?}",
                    node_id(owners[0]),
                    node_id(*owner)
                ));
            }
        }
    }
    for partition in world.layouts[0].partition_ids() {
        leaves_are_equal(world, partition)?;
    }
    Ok(())
}

/// Rule K1: nobody holds a record, a hint or a marker of a dropped keyspace.
fn nothing_is_left_of_dropped(world: &World) -> Result<(), String> {
    for (index, machine) in world.machines.iter().enumerate().filter(|(_, machine)| !machine.dead) {
        for (partition, stats) in machine.disk.stats().partitions() {
            for (space, keyspace) in
                Space::ALL.into_iter().flat_map(|space| stats.tallies(space).map(move |it| (space, it.0)))
            {
                if world.history.dropped.contains(&keyspace) {
                    return Err(format!(
                        "rule K1: {} still holds {:?} of {keyspace} in the {space:?} space of {partition}, which was dropped",
                        node_id(index),
                        stats.tally(space, keyspace)
                    ));
                }
            }
        }
    }
    Ok(())
}

fn leaves_are_equal(world: &World, partition: PartitionId) -> Result<(), String> {
    let owners = world.owners(partition);
    let stats = |owner: &usize| world.machines[*owner].disk.stats();
    let first = stats(&owners[0]);
    for owner in &owners[1..] {
        let other = stats(owner);
        let leaves =
            |stats: &Stats| stats.partition(partition).map_or([Leaf::default(); LEAVES], |stats| *stats.leaves());
        if first.root(partition) != other.root(partition) || leaves(first) != leaves(other) {
            return Err(format!(
                "invariant 3: the Merkle leaves of {partition} differ on {} and {}",
                node_id(owners[0]),
                node_id(*owner)
            ));
        }
    }
    Ok(())
}
