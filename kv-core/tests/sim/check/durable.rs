//! Invariant 8: nothing is acknowledged before it is durable on the number of replicas promised.
//!
//! At the moment of each acknowledgement the disks are counted that durably hold a record which has seen the write. A
//! strict request, or one at `all`, counts owners only; any other also counts the hints of stand-ins. A disk that was
//! taken away after it had confirmed counts, since it held the write when the coordinator learnt of it.

use bytes::Bytes;
use kv_core::message::Level;
use kv_core::storage::{Space, StorageKey};
use kv_core::version::{ContextToken, Dot, Record};

use crate::disk::Disk;
use crate::history::{Ack, OpId, replicas};
use crate::world::World;

/// A write is acknowledged with this token.
pub(crate) fn acknowledged(world: &mut World, id: OpId, token: &Bytes) -> Result<(), String> {
    let op = world.history.op(id).clone();
    let key = world.history.key(op.key).clone();
    let context = ContextToken::decode(token, key.keyspace, &key.bytes)
        .map_err(|error| format!("the answer to a write has a context that is none: {error}"))?
        .context;
    let owners = world.owners(key.partition);
    let keyspace = world.keyspaces.iter().find(|keyspace| keyspace.id == key.keyspace);
    let promised = replicas(op.consistency.level, keyspace.map_or(1, |keyspace| keyspace.w), owners.len());
    let owners_only = op.consistency.strict || op.consistency.level == Level::All;
    let (owned, hint) = (world.storage_key(Space::Owned, op.key), world.storage_key(Space::Hint, op.key));
    let covers = |dot: Dot| move |record: &Record| record.context.covers(dot);
    let held_now = |disk: &Disk, key: &StorageKey, dot| disk.durable_record(key).is_some_and(|it| covers(dot)(&it));
    let held_ever = |disk: &Disk, key: &StorageKey, dot| disk.ever_held(key, covers(dot));
    let holders = |world: &World, dot, holds: &dyn Fn(&Disk, &StorageKey, Dot) -> bool| {
        let counts = |index: &usize| {
            let disk = &world.machines[*index].disk;
            owners.contains(index) && holds(disk, &owned, dot) || !owners_only && holds(disk, &hint, dot)
        };
        (0..world.machines.len()).filter(counts).count()
    };
    let known = world.history.acknowledged_dots(id, &context);
    let mut dots: Vec<Dot> = Vec::new();
    // What the disks hold now explains the acknowledgement better than what lost disks held.
    for holds in [&held_now as &dyn Fn(&Disk, &StorageKey, Dot) -> bool, &held_ever] {
        if dots.is_empty() {
            dots.extend(known.iter().filter(|dot| holders(world, **dot, holds) >= promised));
        }
    }
    if dots.is_empty() {
        let claimed = world.history.claim_dot(id, &context);
        dots.extend(claimed.filter(|dot| holders(world, *dot, &held_ever) >= promised));
    }
    if dots.is_empty() {
        return Err(format!(
            "invariant 8: {id:?} is acknowledged with {:?}, which promises {promised} durable copies; there are fewer: {known:?}",
            op.consistency
        ));
    }
    let owners = if owners_only { promised } else { 0 };
    let at = world.time;
    world.history.acks[op.key.0].push(Ack { op: id, dots, at, owners });
    Ok(())
}
