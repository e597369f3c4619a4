//! Invariant 8: nothing is acknowledged before it is durable on the number of replicas promised.
//!
//! At the moment of each acknowledgement the disks are counted that durably hold a record which has seen the write. A
//! strict request, or one at `all`, counts owners only; any other also counts the hints of fallbacks. A disk that was
//! taken away after it had confirmed counts, since it held the write when the coordinator learnt of it.

use bytes::Bytes;
use kv_core::ring::Entry;
use kv_core::storage::{Space, StorageKey};
use kv_core::version::{Conflict, ContextToken, Dot, Record};

use crate::disk::Disk;
use crate::history::{Ack, OpId, WriteOp, replicas};
use crate::settings::node_id;
use crate::world::World;

/// A write is acknowledged with this token by a machine.
pub(crate) fn acknowledged(world: &mut World, machine: usize, id: OpId, token: &Bytes) -> Result<(), String> {
    let op = world.history.op(id).clone();
    let key = world.history.key(op.key).clone();
    let context = ContextToken::decode(token, key.keyspace, &key.bytes)
        .map_err(|error| format!("the answer to a write has a context that is none: {error}"))?
        .context;
    // The entry on which its coordinator acts. A token does not always tell two writes of a client apart, so what the
    // answering machine acts on counts as well.
    let mut entries = Vec::new();
    if let Some(under_way) = world.under_way.get_mut(token) {
        entries.clone_from(&under_way.entries);
        // A client knows now. What its coordinator acted on still counts for another write with the same token.
        under_way.coordinator = None;
    }
    entries.extend(world.acted_entries(machine, key.partition));
    let w = world.settings_of(key.keyspace).map_or(1, |settings| settings.w);
    let owners_only = world.owners_only(key.keyspace, op.consistency);
    let (owned, hint) = (world.storage_key(Space::Owned, op.key), world.storage_key(Space::Hint, op.key));
    let covers = |dot: Dot| move |record: &Record| record.context.covers(dot);
    let held_now = |disk: &Disk, key: &StorageKey, dot| disk.durable_record(key).is_some_and(|it| covers(dot)(&it));
    let held_ever = |disk: &Disk, key: &StorageKey, dot| disk.ever_held(key, covers(dot));
    // Enough of the old owners and, of a migrating partition, enough of the new ones (rule A3).
    let enough = |world: &World, dot, holds: &dyn Fn(&Disk, &StorageKey, Dot) -> bool| {
        let by_entry = |entry: &Entry| {
            entry.sets().all(|set| {
                let counts = |index: &usize| {
                    let disk = &world.machines[*index].disk;
                    let owner = set.iter().any(|owner| owner.node == node_id(*index));
                    owner && holds(disk, &owned, dot) || !owners_only && holds(disk, &hint, dot)
                };
                let found = (0..world.machines.len()).filter(counts).count();
                found >= replicas(op.consistency.level, w, set.len())
            })
        };
        entries.iter().any(by_entry)
    };
    let known = world.history.acknowledged_dots(id, &context);
    let mut dots: Vec<Dot> = Vec::new();
    let store = world.machines[machine].incarnation.store;
    // The answer is that of a later attempt, whose dot was replaced in the batch that made it: an earlier one, of another machine, may go
    // with its disk.
    if !known.is_empty() && !known.iter().any(|dot| dot.actor.store == store || context.covers(*dot)) {
        let of_answer = |dot: Dot| dot.actor.store == store && context.covers(dot);
        let claimed = world.history.claim_dot_if(id, of_answer);
        dots.extend(claimed.filter(|dot| enough(world, *dot, &held_ever)));
    }
    // What the disks hold now explains the acknowledgement better than what lost disks held, and so does a later write.
    if dots.is_empty() {
        dots.extend(known.iter().filter(|dot| enough(world, **dot, &held_now)));
    }
    if dots.is_empty() && is_outdone(world, &op, &entries, owners_only) {
        return Ok(());
    }
    if dots.is_empty() {
        dots.extend(known.iter().filter(|dot| enough(world, **dot, &held_ever)));
    }
    // Two attempts were carried out, and the answer does not say which of them it is about: that of the machine that answers, if
    // one is. What another one did may be gone with its disk, and nobody was told of it.
    if dots.iter().any(|dot| dot.actor.store == store) && !dots.iter().any(|dot| context.covers(*dot)) {
        dots.retain(|dot| dot.actor.store == store);
    }
    if dots.is_empty() {
        let claimed = world.history.claim_dot(id, &context);
        dots.extend(claimed.filter(|dot| enough(world, *dot, &held_ever)));
    }
    if dots.is_empty() {
        return Err(format!(
            "invariant 8: {id:?} is acknowledged with {:?} and W {w} by {entries:?}; there are fewer durable copies: {known:?}",
            op.consistency
        ));
    }
    let (at, strict) = (world.time, owners_only);
    world.history.acks[op.key.0].push(Ack { op: id, dots, at, strict });
    Ok(())
}

/// A repetition is acknowledged without a dot of its own (rule A7) where the record remembers that the request was replaced,
/// perhaps by a client that knew it by name, or where the last writer wins and something as new is held. Whether enough disks say
/// so.
fn is_outdone(world: &World, op: &WriteOp, entries: &[Entry], owners_only: bool) -> bool {
    let name = world.history.key(op.key);
    let w = world.settings_of(name.keyspace).map_or(1, |settings| settings.w);
    let (owned, hint) = (world.storage_key(Space::Owned, op.key), world.storage_key(Space::Hint, op.key));
    let is_done = |record: &Record| match name.conflict {
        Conflict::Siblings => record.retired.contains(op.request),
        Conflict::Lww => record.latest() >= op.request.stamp,
    };
    let holds = |index: &usize, key: &StorageKey| {
        let disk = &world.machines[*index].disk;
        disk.durable_record(key).is_some_and(|record| is_done(&record)) || disk.ever_held(key, is_done)
    };
    let by_entry = |entry: &Entry| {
        entry.sets().all(|set| {
            let is_owner = |index: &usize| set.iter().any(|owner| owner.node == node_id(*index));
            let counts = |index: &usize| is_owner(index) && holds(index, &owned) || !owners_only && holds(index, &hint);
            let found = (0..world.machines.len()).filter(counts).count();
            found >= replicas(op.consistency.level, w, set.len())
        })
    };
    entries.iter().any(by_entry)
}
