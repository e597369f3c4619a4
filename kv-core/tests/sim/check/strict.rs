//! Strict reads: where R + W > N, a strict read that starts after a strict write was acknowledged has seen that write,
//! and shows it or what replaces it.

use bytes::Bytes;
use kv_core::message::{Consistency, Level, Value};

use super::{deleted, shown};
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
    let answer = Answer { values: &ops, context: Some(&context), wall: world.wall_max };
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
pub(crate) fn promised(world: &World, sent: Time, key: KeyId, consistency: Consistency) -> Vec<Ack> {
    if !consistency.strict && consistency.level != Level::All {
        return Vec::new();
    }
    let name = world.history.key(key);
    let owners = world.owners(name.partition).len();
    let keyspace = world.keyspaces.iter().find(|keyspace| keyspace.id == name.keyspace);
    let asked = replicas(consistency.level, keyspace.map_or(1, |keyspace| keyspace.r), owners);
    let acks = world.history.acks[key.0].iter();
    acks.filter(|ack| ack.at < sent && ack.owners + asked > owners).cloned().collect()
}
