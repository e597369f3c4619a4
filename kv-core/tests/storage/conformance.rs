//! What every engine does alike. Each function takes a way to open a fresh store.

use bytes::Bytes;
use kv_core::storage::{
    Committer, DiskConfig, DiskStore, MemoryStore, OpenIds, Reader, SliceRequest, Space, StorageKey, Tally, recount,
};
use kv_core::types::{ClusterId, HashSeed, Seq, StoreId};

use crate::support::{batch, key, mark, meta, stored, write};

macro_rules! suite {
    ($engine:ident, $open:expr) => {
        mod $engine {
            use super::*;

            #[test]
            fn later_writes_win() {
                super::later_writes_win($open);
            }

            #[test]
            fn slices_are_bounded_and_complete() {
                super::slices_are_bounded_and_complete($open);
            }

            #[test]
            fn a_slice_never_shows_half_a_commit() {
                super::a_slice_never_shows_half_a_commit($open);
            }

            #[test]
            fn spaces_and_metas_are_apart() {
                super::spaces_and_metas_are_apart($open);
            }

            #[test]
            fn large_and_odd_entries_are_kept() {
                super::large_and_odd_entries_are_kept($open);
            }

            #[test]
            fn statistics_follow_every_commit() {
                super::statistics_follow_every_commit($open);
            }

            #[test]
            fn a_store_belongs_to_one_cluster() {
                super::a_store_belongs_to_one_cluster($open);
            }
        }
    };
}

suite!(memory, {
    let (_, reader, committer) = MemoryStore::open(StoreId(1), 1);
    ((), reader, committer)
});

suite!(disk, {
    let directory = tempfile::tempdir().unwrap();
    let ids = OpenIds { store: StoreId(1), nonce: 1 };
    let (_, reader, committer) = DiskStore::open(directory.path(), &DiskConfig::default(), ids).unwrap();
    (directory, reader, committer)
});

pub fn all(from: StorageKey, until: StorageKey) -> SliceRequest {
    SliceRequest { from, until, entries_max: usize::MAX, bytes_max: usize::MAX }
}

fn space(space: Space) -> SliceRequest {
    all(StorageKey::space_start(space), StorageKey::space_end(space))
}

fn later_writes_win<G>((_guard, reader, mut committer): (G, impl Reader, impl Committer)) {
    let k = key(Space::Owned, 1, 0, b"k");
    let (one, two) = (stored(1, Some(b"one")), stored(2, Some(b"two")));
    assert_eq!(reader.get(&k).unwrap(), None);
    committer.commit(&[], Seq(0)).unwrap();
    let batches = [batch([write(&k, None, Some(&one))]), batch([write(&k, Some(&one), Some(&two))])];
    committer.commit(&batches, Seq(2)).unwrap();
    assert_eq!(reader.get(&k).unwrap(), Some(two.encode()), "batches of one commit are carried out in order");
    committer.commit(&[batch([write(&k, Some(&two), None)])], Seq(3)).unwrap();
    assert_eq!(reader.get(&k).unwrap(), None);
    let batches = [batch([write(&k, None, Some(&one))]), batch([write(&k, Some(&one), None)])];
    committer.commit(&batches, Seq(5)).unwrap();
    assert_eq!(reader.get(&k).unwrap(), None, "a removal hides a put of the same commit");
    committer.commit(&[batch([write(&k, None, Some(&one))])], Seq(6)).unwrap();
    assert_eq!(reader.clone().get(&k).unwrap(), Some(one.encode()));
}

fn slices_are_bounded_and_complete<G>((_guard, reader, mut committer): (G, impl Reader, impl Committer)) {
    let record = stored(1, Some(&[5; 100]));
    let keys: Vec<_> =
        (0..50u32).map(|n| key(Space::Owned, u16::try_from(n % 3).unwrap(), 0, &n.to_be_bytes())).collect();
    committer.commit(&[batch(keys.iter().map(|key| write(key, None, Some(&record))))], Seq(1)).unwrap();
    let mut sorted = keys.clone();
    sorted.sort();

    let found = reader.slice(&space(Space::Owned)).unwrap();
    assert_eq!(found.entries.iter().map(|entry| entry.0.clone()).collect::<Vec<_>>(), sorted);
    assert!(!found.more);

    let partition =
        reader.slice(&all(sorted[0].clone(), StorageKey::partition_end(Space::Owned, sorted[0].partition())));
    assert_eq!(partition.unwrap().entries.len(), 17, "a partition is one range");

    for (entries_max, bytes_max) in [(1, usize::MAX), (7, usize::MAX), (usize::MAX, 1), (usize::MAX, 700), (0, 0)] {
        let mut request = SliceRequest { entries_max, bytes_max, ..space(Space::Owned) };
        let mut met = Vec::new();
        loop {
            let slice = reader.slice(&request).unwrap();
            assert!(slice.entries.len() <= entries_max.max(1));
            let bytes = |entries: &[(StorageKey, Bytes)]| {
                entries.iter().map(|(key, value)| key.as_bytes().len() + value.len()).sum::<usize>()
            };
            let (_, before_last) = slice.entries.split_last().unwrap();
            assert!(
                before_last.is_empty() || bytes(before_last) < bytes_max,
                "the slice ends where the bound is reached"
            );
            met.extend(slice.entries.iter().map(|entry| entry.0.clone()));
            if !slice.more {
                break;
            }
            request.from = met.last().unwrap().successor();
        }
        assert_eq!(met, sorted, "{entries_max} entries, {bytes_max} bytes");
    }

    let bounds = all(sorted[10].clone(), sorted[12].clone());
    assert_eq!(reader.slice(&bounds).unwrap().entries.len(), 2, "the start is included, the end is not");
    let empty = all(sorted[12].clone(), sorted[12].clone());
    assert_eq!(reader.slice(&empty).unwrap(), kv_core::storage::Slice::default());
    let inverted = all(sorted[12].clone(), sorted[10].clone());
    assert_eq!(reader.slice(&inverted).unwrap(), kv_core::storage::Slice::default());
}

/// Every commit gives all keys the same new value; a reader beside it must never see two values in one slice.
#[allow(clippy::disallowed_methods, reason = "the contract has a reader and a committer on two threads")]
fn a_slice_never_shows_half_a_commit<G>((_guard, reader, mut committer): (G, impl Reader + Sync, impl Committer)) {
    let keys: Vec<_> = (0..20u32).map(|n| key(Space::Missed, 0, 0, &n.to_be_bytes())).collect();
    let value = |round: u32| round.to_be_bytes();
    let first: Vec<_> = keys.iter().map(|key| mark(key, None, Some(&value(0)))).collect();
    committer.commit(&[batch(first)], Seq(0)).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..200u32 {
                let writes = |keys: &[StorageKey]| {
                    batch(keys.iter().map(|key| mark(key, Some(&value(round - 1)), Some(&value(round)))))
                };
                committer.commit(&[writes(&keys[..10]), writes(&keys[10..])], Seq(u64::from(round))).unwrap();
            }
            done.store(true, std::sync::atomic::Ordering::Release);
        });
        let mut last = 0;
        loop {
            let finished = done.load(std::sync::atomic::Ordering::Acquire);
            let slice = reader.slice(&space(Space::Missed)).unwrap();
            let rounds: Vec<_> =
                slice.entries.iter().map(|(_, value)| u32::from_be_bytes(value[..].try_into().unwrap())).collect();
            assert_eq!(rounds.len(), 20);
            assert!(rounds.iter().all(|round| *round == rounds[0]), "{rounds:?}");
            assert!(rounds[0] >= last, "a later slice shows no earlier state");
            last = rounds[0];
            if finished {
                assert_eq!(last, 199);
                break;
            }
        }
    });
}

fn spaces_and_metas_are_apart<G>((_guard, reader, mut committer): (G, impl Reader, impl Committer)) {
    let k = key(Space::Owned, u16::MAX, u32::MAX, b"k");
    let record = stored(1, Some(b"v"));
    committer
        .commit(
            &[batch([
                write(&k, None, Some(&record)),
                write(&k.in_space(Space::Hint), None, Some(&record)),
                mark(&k.in_space(Space::Missed), None, Some(b"m")),
                meta(b"layout", Some(b"L")),
                meta(b"peer/1", Some(b"one")),
                meta(b"peer/2", Some(b"two")),
                meta(b"peer0", Some(b"behind")),
            ])],
            Seq(1),
        )
        .unwrap();
    for found in Space::ALL {
        assert_eq!(reader.slice(&space(found)).unwrap().entries.len(), 1, "{found:?}");
    }
    assert_eq!(reader.meta(b"layout").unwrap(), Some(Bytes::from_static(b"L")));
    assert_eq!(reader.meta(b"lay").unwrap(), None);
    let peers = reader.metas(b"peer/").unwrap();
    let expected = [("peer/1", "one"), ("peer/2", "two")];
    assert_eq!(peers, expected.map(|(name, value)| (Bytes::from(name), Bytes::from(value))));
    assert_eq!(reader.metas(b"").unwrap().len(), 4);
    committer.commit(&[batch([meta(b"peer/1", None), meta(b"layout", Some(b"L2"))])], Seq(2)).unwrap();
    assert_eq!(reader.metas(b"peer/").unwrap().len(), 1);
    assert_eq!(reader.meta(b"layout").unwrap(), Some(Bytes::from_static(b"L2")));
}

fn large_and_odd_entries_are_kept<G>((_guard, reader, mut committer): (G, impl Reader, impl Committer)) {
    let large = stored(1, Some(&vec![7; 1024 * 1024]));
    let empty = stored(2, Some(b""));
    let cases = [
        (key(Space::Owned, 0, 0, b""), &empty),
        (key(Space::Owned, 0, 0, &[0; 4096]), &large),
        (key(Space::Owned, u16::MAX, u32::MAX, &[0xff; 4096]), &empty),
    ];
    committer.commit(&[batch(cases.iter().map(|(key, record)| write(key, None, Some(record))))], Seq(1)).unwrap();
    for (key, record) in &cases {
        assert_eq!(reader.get(key).unwrap(), Some(record.encode()), "{key}");
    }
    assert_eq!(reader.slice(&space(Space::Owned)).unwrap().entries.len(), 3);
}

fn statistics_follow_every_commit<G>((_guard, reader, mut committer): (G, impl Reader, impl Committer)) {
    let mut held = std::collections::BTreeMap::new();
    for round in 0..40u64 {
        let mut writes = Vec::new();
        for n in 0..10u64 {
            let k =
                key(Space::ALL[usize::from(n % 2 == 1)], u16::try_from(n % 5).unwrap(), 0, &(n * 7 % 10).to_be_bytes());
            let next = match (round + n) % 4 {
                0 => None,
                1 => Some(stored(round + 1, None)),
                _ => Some(stored(round + 1, Some(&vec![0; usize::try_from(n).unwrap()]))),
            };
            let before = held.remove(&k);
            if before.is_none() && next.is_none() {
                continue;
            }
            writes.push(write(&k, before.as_ref(), next.as_ref()));
            next.into_iter().for_each(|next| drop(held.insert(k.clone(), next)));
        }
        committer.commit(&[batch(writes)], Seq(round)).unwrap();
        let counted = recount(&reader).unwrap();
        assert_eq!(*committer.stats(), counted.stats, "round {round}");
        assert_eq!(counted.damaged, []);
    }
    assert_ne!(committer.stats().total(Space::Owned), Tally::default());
    assert_ne!(committer.stats().total(Space::Hint), Tally::default());
}

fn a_store_belongs_to_one_cluster<G>((_guard, _reader, mut committer): (G, impl Reader, impl Committer)) {
    committer.bind(ClusterId(1), HashSeed(9)).unwrap();
    committer.bind(ClusterId(1), HashSeed(9)).unwrap();
    let error = committer.bind(ClusterId(2), HashSeed(9)).unwrap_err();
    assert!(matches!(error, kv_core::error::StorageError::OtherCluster { .. }), "{error}");
    assert!(committer.bind(ClusterId(1), HashSeed(8)).is_err(), "the seed never changes");
    committer.bind(ClusterId(1), HashSeed(9)).unwrap();
}
