use std::collections::BTreeSet;

use kv_core::cell::Cell;
use kv_core::register::{Ballot, Register};
use kv_core::storage::{Batch, Footprint, LEAVES, MemoryStore, Space, Stats, Stored, Tally, Write, leaf_of};
use kv_core::types::{KeyspaceId, PartitionId, StoreId};

use crate::support::{key, mark, stored, write};

const P: PartitionId = PartitionId(3);

/// Takes in the writes of one batch.
fn apply(stats: &mut Stats, writes: impl IntoIterator<Item = Write>) {
    let (_, reader, _) = MemoryStore::open(StoreId(1), 1);
    stats.apply(&[Batch { writes: writes.into_iter().collect() }], &reader).unwrap();
}

#[test]
fn a_put_an_overwrite_a_delete_and_a_removal_are_counted() {
    let key = key(Space::Owned, 3, 1, b"alpha");
    let (first, second, dead) = (stored(1, Some(b"one")), stored(2, Some(b"longer")), stored(3, None));
    let mut stats = Stats::new();
    let tally = |stats: &Stats| stats.tally(Space::Owned, P, KeyspaceId(1));
    let bytes = |it: &kv_core::storage::Stored| 5 + it.encode().len() as u64;

    apply(&mut stats, [write(&key, None, Some(&first))]);
    assert_eq!(tally(&stats), Tally { keys: 1, bytes: bytes(&first), records: 1 });
    let root = stats.root(P);
    assert_ne!(root, 0);

    apply(&mut stats, [write(&key, Some(&first), Some(&second))]);
    assert_eq!(tally(&stats), Tally { keys: 1, bytes: bytes(&second), records: 1 });
    assert_ne!(stats.root(P), root, "another version is another tree");

    apply(&mut stats, [write(&key, Some(&second), Some(&dead))]);
    assert_eq!(tally(&stats), Tally { keys: 0, bytes: bytes(&dead), records: 1 });
    assert_eq!(stats.partition(P).unwrap().leaves()[usize::from(leaf_of(&key))].count, 1);

    apply(&mut stats, [write(&key, Some(&dead), None)]);
    assert_eq!(stats, Stats::new(), "nothing stays of a partition without records");
    assert_eq!(stats.root(P), 0);
}

#[test]
fn what_has_promised_something_and_accepted_nothing_is_in_no_leaf() {
    let key = key(Space::Owned, 3, 1, b"alpha");
    let register = Register { promised: Ballot { counter: 7, ..Ballot::default() }, ..Register::default() };
    let blank = Stored { own: None, cell: Cell::Consistent(register) };
    let accepted = stored(1, Some(b"one"));
    let records = |stats: &Stats| stats.tally(Space::Owned, P, KeyspaceId(1)).records;
    let (mut without, mut stats) = (Stats::new(), Stats::new());
    apply(&mut without, [write(&key, None, Some(&accepted))]);

    apply(&mut stats, [write(&key, None, Some(&blank))]);
    assert_eq!((records(&stats), stats.root(P)), (1, 0), "replicas are equal without it");
    apply(&mut stats, [write(&key, Some(&blank), Some(&accepted))]);
    assert_eq!(stats, without);
    apply(&mut stats, [write(&key, Some(&accepted), Some(&blank))]);
    assert_eq!((records(&stats), stats.root(P)), (1, 0));
    apply(&mut stats, [write(&key, Some(&blank), None)]);
    assert_eq!(stats, Stats::new());
}

#[test]
fn spaces_keyspaces_and_partitions_are_counted_apart() {
    let record = stored(1, Some(b"value"));
    let lag = key(Space::Missed, 3, 1, b"a");
    let mut stats = Stats::new();
    apply(
        &mut stats,
        [
            write(&key(Space::Owned, 3, 1, b"a"), None, Some(&record)),
            write(&key(Space::Owned, 3, 2, b"a"), None, Some(&record)),
            write(&key(Space::Owned, 4, 1, b"a"), None, Some(&record)),
            write(&key(Space::Hint, 3, 1, b"a"), None, Some(&record)),
            mark(&lag, None, Some(b"n2")),
        ],
    );
    assert_eq!(stats.total(Space::Owned).keys, 3);
    assert_eq!(stats.keyspace(Space::Owned, KeyspaceId(1)).keys, 2);
    assert_eq!(stats.tally(Space::Owned, P, KeyspaceId(1)).keys, 1);
    assert_eq!(stats.total(Space::Hint).bytes, 1 + record.encode().len() as u64);
    assert_eq!(stats.total(Space::Missed), Tally { keys: 1, bytes: 3, records: 1 });
    assert_eq!(stats.partitions().map(|(partition, _)| partition.0).collect::<Vec<_>>(), [3, 4]);

    let hints_only = stats.partition(P).unwrap().leaves().iter().map(|leaf| leaf.count).sum::<u64>();
    assert_eq!(hints_only, 2, "hints and marks are in no tree");
}

#[test]
fn the_tree_does_not_depend_on_the_order_of_writes() {
    let keys: Vec<_> = (0..300u32).map(|n| key(Space::Owned, 3, 0, &n.to_be_bytes())).collect();
    let record = stored(1, Some(b"v"));
    let mut forward = Stats::new();
    let mut backward = Stats::new();
    for key in &keys {
        apply(&mut forward, [write(key, None, Some(&record))]);
    }
    apply(&mut backward, keys.iter().rev().map(|key| write(key, None, Some(&record))));
    assert_eq!(forward, backward);
    assert_eq!(forward.root(P), backward.root(P));
}

#[test]
fn equal_records_weigh_equal_on_every_replica() {
    let key = key(Space::Owned, 3, 0, b"k");
    let here = stored(1, Some(b"v"));
    let mut there = here.clone();
    there.own = None;
    assert_eq!(here.footprint(&key, 10).hash, there.footprint(&key, 10).hash);
    let other = stored(2, Some(b"v"));
    assert_ne!(here.footprint(&key, 10).hash, other.footprint(&key, 10).hash, "another dot is another version");
}

#[test]
fn the_hash_tells_keys_and_keyspaces_apart() {
    let record = stored(1, Some(b"v"));
    let hash = |keyspace, name: &[u8]| record.footprint(&key(Space::Owned, 0, keyspace, name), 10).hash;
    let hashes = BTreeSet::from([hash(0, b"a"), hash(0, b"b"), hash(1, b"a"), hash(1, b"b")]);
    assert_eq!(hashes.len(), 4);
}

#[test]
fn leaves_are_evenly_used_and_the_same_everywhere() {
    let mut used = [0u32; LEAVES];
    for number in 0..25_600u32 {
        used[usize::from(leaf_of(&key(Space::Owned, 1, 0, format!("user:{number}").as_bytes())))] += 1;
    }
    assert!(used.iter().all(|count| (50..170).contains(count)), "{used:?}");
    // A node of another build must find a key in the same leaf.
    assert_eq!(leaf_of(&key(Space::Owned, 1, 0, b"user:1")), leaf_of(&key(Space::Owned, 9, 0, b"user:1")));
    assert_eq!([leaf_of(&key(Space::Owned, 1, 0, b"user:1")), leaf_of(&key(Space::Owned, 1, 5, b""))], LEAVES_EXPECTED);
}

const LEAVES_EXPECTED: [u8; 2] = [50, 21];

#[test]
fn a_stored_entry_weighs_what_its_write_said() {
    let record = stored(1, Some(b"v"));
    let encoded = record.encode();
    let owned = key(Space::Owned, 3, 0, b"k");
    assert_eq!(Footprint::of_entry(&owned, &encoded), Ok(record.footprint(&owned, encoded.len())));
    let lag = owned.in_space(Space::Missed);
    assert_eq!(Footprint::of_entry(&lag, b"any"), Ok(Footprint::of_mark(&lag, 3)));
    assert!(Footprint::of_entry(&owned, b"any").is_err());
}
