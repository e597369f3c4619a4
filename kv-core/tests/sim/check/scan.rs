//! Scans: keys come in byte order, each once, pages join up, and a key that was there all the time is there.
//!
//! A page answers for the keys behind `after` up to its `next` key, or to the end. A strict page where R + W > N is
//! held to the same promise as a strict get of each key in that range. A key that is missing must have no acknowledged
//! value that nothing can have replaced.

use bytes::Bytes;
use kv_core::message::{ScanEntry, ScanRequest};

use super::{collected, deleted, shown, strict};
use crate::clock::Time;
use crate::history::{Answer, KeyId};
use crate::report::Count;
use crate::world::World;

/// A page of a scan, asked for at `sent`, is answered.
pub(crate) fn page(
    world: &mut World,
    sent: Time,
    scan: &ScanRequest,
    entries: &[ScanEntry],
    next: Option<&Bytes>,
) -> Result<(), String> {
    world.count(Count::Pages);
    if entries.len() > scan.limit {
        return Err(format!("a page of at most {} keys has {}", scan.limit, entries.len()));
    }
    let mut before = scan.after.as_ref();
    for entry in entries {
        if before.is_some_and(|before| *before >= entry.key) || !entry.key.starts_with(&scan.prefix) {
            return Err(format!("a scan {scan:?} returned {:?} behind {before:?}", entry.key));
        }
        if entry.values.is_empty() {
            return Err(format!("a scan returned {:?} without a value", entry.key));
        }
        before = Some(&entry.key);
    }
    if let Some(next) = next
        && before.is_some_and(|last| last > next)
    {
        return Err(format!("a scan goes on behind {next:?}, before its last key {before:?}"));
    }
    for entry in entries {
        let Some(key) = world.history.key_named(scan.keyspace, &entry.key) else {
            return Err(format!("a scan returned {:?}, which nobody wrote", entry.key));
        };
        if !scan.keys_only {
            present(world, sent, scan, key, entry)?;
        }
    }
    let within = |key: &Bytes| {
        key.starts_with(&scan.prefix)
            && scan.after.as_ref().is_none_or(|after| key > after)
            && next.is_none_or(|next| key <= next)
            && !entries.iter().any(|entry| entry.key == *key)
    };
    for key in world.history.key_ids() {
        let name = world.history.key(key);
        if name.keyspace == scan.keyspace && within(&name.bytes) {
            absent(world, sent, scan, key)?;
        }
    }
    Ok(())
}

fn present(world: &World, sent: Time, scan: &ScanRequest, key: KeyId, entry: &ScanEntry) -> Result<(), String> {
    let (context, ops) = shown::values(world, key, &entry.values, &entry.context)?;
    let context = collected::with_collected(world, key, &context);
    let answer = Answer { values: &ops, context: Some(&context), wall: world.wall_high() };
    let acks = strict::promised(world, sent, key, scan.consistency);
    for ack in &acks {
        let seen = |dot| context.covers(dot) && world.history.is_settled(ack.op, dot, &answer);
        if !ack.dots.iter().any(|dot| seen(*dot)) {
            return Err(format!("a strict scan shows {ops:?} at {key:?} and misses {:?}", ack.op));
        }
    }
    deleted::stays_replaced(&world.history, key, &ops, &acks)
}

fn absent(world: &World, sent: Time, scan: &ScanRequest, key: KeyId) -> Result<(), String> {
    let answer = Answer { values: &[], context: None, wall: world.wall_high() };
    for ack in strict::promised(world, sent, key, scan.consistency) {
        if !ack.dots.iter().any(|dot| world.history.is_settled(ack.op, *dot, &answer)) {
            return Err(format!("a strict scan misses {key:?}, where {:?} was acknowledged", ack.op));
        }
    }
    Ok(())
}
