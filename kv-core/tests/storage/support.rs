//! Records, writes and generators that the storage tests share.

use bytes::Bytes;
use kv_core::storage::{Batch, Footprint, Space, StorageKey, Stored, Write};
use kv_core::types::{KeyspaceId, PartitionId, RequestId, StoreId, WallTime};
use kv_core::version::{Actor, Conflict, Context, ContextToken, Hlc, Record, Replaces, Write as VersionWrite};
use proptest::prelude::*;

pub fn actor(instance: u64) -> Actor {
    Actor { store: StoreId(0x0123_4567_89ab_cdef), boot: 3, nonce: 0xdead_beef, instance }
}

pub fn write_of(value: Option<Bytes>) -> VersionWrite {
    let request = RequestId { client: 0x8899_aabb_ccdd_eeff, stamp: Hlc(7) };
    VersionWrite { written: Hlc(1 << 62), request, expires: None, value }
}

/// A record with one sibling.
pub fn stored(instance: u64, value: Option<&[u8]>) -> Stored {
    let own = actor(instance);
    let mut record = Record::default();
    record.write(
        own,
        Replaces::Shown(&ContextToken::default()),
        Conflict::Siblings,
        write_of(value.map(Bytes::copy_from_slice)),
    );
    Stored { own: Some(own), cell: record.into() }
}

pub fn key(space: Space, partition: u16, keyspace: u32, key: &[u8]) -> StorageKey {
    StorageKey::owned(PartitionId(partition), KeyspaceId(keyspace), key).in_space(space)
}

/// A write of `after` at `key`, where `before` was.
pub fn write(key: &StorageKey, before: Option<&Stored>, after: Option<&Stored>) -> Write {
    let side = |stored: &Stored| {
        let encoded = stored.encode();
        (stored.footprint(key, encoded.len()), encoded)
    };
    let (after, value) = after.map(side).unzip();
    Write::Record { key: key.clone(), value, before: before.map(|stored| side(stored).0), after, damaged: false }
}

/// A missed-write marker.
pub fn mark(key: &StorageKey, before: Option<&[u8]>, after: Option<&[u8]>) -> Write {
    let side = |value: &[u8]| Footprint::of_mark(key, value.len());
    Write::Record {
        key: key.clone(),
        value: after.map(Bytes::copy_from_slice),
        before: before.map(side),
        after: after.map(side),
        damaged: false,
    }
}

pub fn meta(name: &[u8], value: Option<&[u8]>) -> Write {
    Write::Meta { name: Bytes::copy_from_slice(name), value: value.map(Bytes::copy_from_slice) }
}

pub fn batch(writes: impl IntoIterator<Item = Write>) -> Batch {
    Batch { writes: writes.into_iter().collect() }
}

/// One step in a record's history: by which actor, with or without having seen what is there, what.
type Step = (u64, bool, Option<Vec<u8>>, Option<u64>);

/// Any record that writes can make.
pub fn any_stored() -> impl Strategy<Value = Stored> {
    let value = proptest::option::of(proptest::collection::vec(any::<u8>(), 0..200));
    let step = (1..6u64, any::<bool>(), value, proptest::option::of(any::<u64>()));
    (proptest::collection::vec(step, 0..8), proptest::option::of(1..8u64)).prop_map(|(steps, own)| {
        let mut record = Record::default();
        for step in steps {
            apply(&mut record, step);
        }
        Stored { own: own.map(actor), cell: record.into() }
    })
}

fn apply(record: &mut Record, (instance, seen, value, expires): Step) {
    let context = if seen { record.context.clone() } else { Context::new() };
    let token = ContextToken { context, ..ContextToken::default() };
    let mut write = write_of(value.map(Bytes::from));
    write.expires = expires.map(WallTime);
    // Each is a request of its own.
    write.request.stamp = Hlc(record.context.iter().map(|entry| entry.1).sum::<u64>() + 1);
    record.write(actor(instance), Replaces::Shown(&token), Conflict::Siblings, write);
}
