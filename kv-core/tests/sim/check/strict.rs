//! Strict reads: where R + W > N, a strict read that starts after a strict write was acknowledged has seen that write,
//! and shows it or what replaces it.

use std::collections::BTreeSet;

use bytes::Bytes;
use kv_core::message::{Consistency, Value};
use kv_core::ring::Entry;

use super::{collected, deleted, shown};
use crate::clock::Time;
use crate::history::{Ack, Answer, KeyId, replicas};
use crate::report::Count;
use crate::world::World;

/// A get, sent at `sent`, is answered.
pub(crate) fn read(
    world: &mut World,
    sent: Time,
    key: KeyId,
    consistency: Consistency,
    values: &[Value],
    token: &Bytes,
) -> Result<(), String> {
    let (context, ops) = shown::values(world, key, values, token)?;
    if ops.len() > 1 {
        world.count(Count::Siblings);
    }
    let acks = promised(world, sent, key, consistency);
    if acks.is_empty() {
        return Ok(());
    }
    world.count(Count::StrictReads);
    let context = collected::with_collected(world, key, &context);
    let answer = Answer { values: &ops, context: Some(&context), wall: world.wall_high() };
    for ack in &acks {
        // An answer covers all dots of a repeated write that its coordinator knew; one of them reached W replicas.
        let seen = |dot| context.covers(dot) && world.history.is_settled(ack.op, dot, &answer);
        if !ack.dots.iter().any(|dot| seen(*dot)) {
            return Err(format!(
                "a strict read of {key:?} shows {ops:?} and misses {:?}, acknowledged before it started; dots {:?}",
                ack.op, ack.dots
            ));
        }
    }
    deleted::stays_replaced(&world.history, key, &ops, &acks)
}

/// The acknowledged writes that a read of `key` with this consistency must have seen if it starts at `sent`.
///
/// Where a migration has touched the partition, both the write and the read must ask majorities: copies are made from a
/// majority of the old owners, and an old owner beyond that majority may not know yet that the partition has moved.
pub(crate) fn promised(world: &World, sent: Time, key: KeyId, consistency: Consistency) -> Vec<Ack> {
    let name = world.history.key(key);
    if !world.owners_only(name.keyspace, consistency) {
        return Vec::new();
    }
    let (r, w) = world.settings_of(name.keyspace).map_or((1, 1), |settings| (settings.r, settings.w));
    let entries: Vec<&Entry> = world.layouts.iter().filter_map(|layout| layout.entry(name.partition)).collect();
    let mut sizes: Vec<usize> = entries.iter().flat_map(|entry| entry.sets()).map(<[_]>::len).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let owners = |entry: &Entry| entry.owners.iter().map(|owner| owner.node).collect::<BTreeSet<_>>();
    let moved = entries.iter().any(|entry| entry.joint.is_some() || owners(entry) != owners(entries[0]));
    let overlap = |ack: &&Ack| {
        let level = world.history.op(ack.op).consistency.level;
        sizes.iter().all(|&size| {
            let (asked, held) = (replicas(consistency.level, r, size), replicas(level, w, size));
            if moved { asked > size / 2 && held > size / 2 } else { asked + held > size }
        })
    };
    let acks = world.history.acks[key.0].iter();
    acks.filter(|ack| ack.strict && ack.at < sent).filter(overlap).cloned().collect()
}
