use std::sync::Arc;

use kv_core::storage::{Footprint, Hot, HotTier, Space};

use crate::support::{key, stored};

fn record(bytes: usize) -> Hot {
    let stored = Arc::new(stored(1, Some(&vec![1; bytes])));
    let encoded = stored.encode();
    let footprint = Footprint::of_entry(&key(Space::Owned, 0, 0, b"a"), &encoded).expect("a whole record");
    Hot { stored, footprint }
}

#[test]
fn it_counts_hits_and_misses() {
    let mut hot = HotTier::new(1 << 20, 1);
    let (a, b) = (key(Space::Owned, 0, 0, b"a"), key(Space::Owned, 0, 0, b"b"));
    hot.insert(a.clone(), record(100));
    assert_eq!(hot.get(&a), Some(record(100)));
    assert_eq!(hot.get(&b), None);
    hot.insert(a.clone(), record(10));
    assert_eq!(hot.get(&a), Some(record(10)), "a newer record takes the place of the older");
    hot.remove(&a);
    assert_eq!(hot.get(&a), None);
    let stats = hot.stats();
    assert_eq!((stats.hits, stats.misses, stats.records, stats.bytes), (2, 2, 0, 0));
}

#[test]
fn its_bytes_stay_within_the_bound() {
    let bytes_max = 1 << 20;
    let mut hot = HotTier::new(bytes_max, 1);
    for number in 0..20_000u32 {
        let size = (number as usize * 7919) % 3000;
        hot.insert(key(Space::Owned, 0, 0, &number.to_be_bytes()), record(size));
        assert!(hot.stats().bytes <= bytes_max as u64, "{:?}", hot.stats());
    }
    let stats = hot.stats();
    assert!(stats.records > 100, "{stats:?}");
    assert!(stats.bytes > stats.records * 1000, "values must be weighed: {stats:?}");
}

#[test]
fn a_record_larger_than_the_tier_replaces_the_smaller_one_by_nothing() {
    let mut hot = HotTier::new(10_000, 1);
    let a = key(Space::Owned, 0, 0, b"a");
    hot.insert(a.clone(), record(10));
    hot.insert(a.clone(), record(20_000));
    assert_eq!(hot.get(&a), None, "the old record must not stay when the new one does not fit");
}

#[test]
fn a_tier_without_memory_keeps_nothing() {
    let mut hot = HotTier::new(0, 1);
    let a = key(Space::Owned, 0, 0, b"a");
    hot.insert(a.clone(), record(10));
    assert_eq!(hot.get(&a), None);
}

#[test]
fn the_same_seed_and_history_keep_the_same_records() {
    let run = || {
        let mut hot = HotTier::new(50_000, 42);
        for number in 0..5000u32 {
            let wanted = key(Space::Owned, 0, 0, &(number * 31 % 700).to_be_bytes());
            if hot.get(&wanted).is_none() {
                hot.insert(wanted, record(number as usize % 300));
            }
        }
        hot.stats()
    };
    assert_eq!(run(), run());
    assert!(run().hits > 0 && run().misses > 700);
}
