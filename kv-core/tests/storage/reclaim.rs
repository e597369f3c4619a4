//! The space of what was deleted goes back to the device.

use std::path::Path;

use kv_core::storage::{Committer, DiskCommitter, Reader, Space, StorageKey, Stored};
use kv_core::types::Seq;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::conformance::all;
use crate::disk::open;
use crate::support::{batch, key, stored, write};

const KEYS: u32 = 4000;

/// Bytes that the files below a folder take, without journals: these are allocated ahead.
fn table_bytes(path: &Path) -> u64 {
    let entries = std::fs::read_dir(path).unwrap().map(Result::unwrap);
    let sizes = entries.map(|entry| match entry.file_type().unwrap().is_dir() {
        true => table_bytes(&entry.path()),
        false if entry.path().extension().is_some_and(|ending| ending == "jnl") => 0,
        false => entry.metadata().map_or(0, |data| data.len()),
    });
    sizes.sum()
}

fn commit(
    committer: &mut DiskCommitter,
    seq: u64,
    writes: impl Iterator<Item = (StorageKey, Option<Stored>, Option<Stored>)>,
) {
    let writes = writes.map(|(key, before, after)| write(&key, before.as_ref(), after.as_ref()));
    committer.commit(&[batch(writes)], Seq(seq)).unwrap();
}

#[test]
fn what_was_deleted_takes_no_space_any_more() {
    let directory = tempfile::tempdir().unwrap();
    let (_, reader, mut committer) = open(directory.path());
    let mut random = StdRng::seed_from_u64(1);
    let values: Vec<Vec<u8>> = (0..KEYS).map(|_| (0..8192).map(|_| random.random()).collect()).collect();
    let at = |number: u32, keyspace: u32| {
        key(Space::Owned, u16::try_from(number % 16).unwrap(), keyspace, &number.to_be_bytes())
    };
    let record = |number: u32| stored(u64::from(number) + 1, Some(&values[number as usize]));
    let mut seq = 0;
    let mut next = || {
        seq += 1;
        seq
    };
    for from in (0..KEYS).step_by(100) {
        // Every tenth record is of a keyspace that stays.
        let writes = (from..from + 100).map(|it| (at(it, u32::from(it % 10 > 0)), None, Some(record(it))));
        commit(&mut committer, next(), writes);
    }
    let deleted = u64::from(KEYS) * 9 / 10 * 8192;
    for from in (0..KEYS).step_by(100) {
        let gone = (from..from + 100).filter(|it| it % 10 > 0);
        commit(&mut committer, next(), gone.map(|it| (at(it, 1), Some(record(it)), None)));
    }
    let before = table_bytes(directory.path());
    reader.reclaim(deleted).unwrap();
    let after = table_bytes(directory.path());
    assert!(after < deleted / 4, "{deleted} bytes were deleted; {before} bytes on disk became {after}");
    let slice = reader.slice(&all(StorageKey::space_start(Space::Owned), StorageKey::space_end(Space::Owned))).unwrap();
    assert_eq!(slice.entries.len(), KEYS as usize / 10, "what was not deleted is there");
    // Little that was deleted is left to the compactions that come anyway.
    commit(&mut committer, next(), std::iter::once((at(10, 0), Some(record(10)), None)));
    reader.reclaim(8192).unwrap();
    drop((reader, committer));
    let (_, reader, committer) = open(directory.path());
    let recounted = kv_core::storage::recount(&reader).unwrap();
    assert!(recounted.stats == *committer.stats() && recounted.damaged.is_empty());
}
