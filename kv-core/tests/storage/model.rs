//! Random histories on every engine, against an ordered map and a recount.

use std::collections::BTreeMap;

use kv_core::storage::{
    Batch, Committer, MemoryStore, Reader, Slice, SliceRequest, Space, StorageKey, Stored, recount,
};
use kv_core::types::{Seq, StoreId};
use proptest::prelude::*;

use crate::conformance::all;
use crate::disk;
use crate::support::{any_stored, key, meta, write};

/// What happens to a store.
#[derive(Clone, Debug)]
enum Step {
    /// Batches of (key, record or removal), committed together.
    Commit(Vec<Vec<(StorageKey, Option<Stored>)>>),
    /// Closed and opened again.
    Reopen,
    /// Copied while open, as a crash would leave it, and the copy opened.
    Crash,
    /// A slice with bounds.
    Slice(StorageKey, StorageKey, usize, usize),
}

fn any_key() -> impl Strategy<Value = StorageKey> {
    let space = prop_oneof![3 => Just(Space::Owned), 1 => Just(Space::Hint)];
    (space, prop_oneof![0..4u16, Just(u16::MAX)], 0..2u32, proptest::collection::vec(0..3u8, 0..3))
        .prop_map(|(space, partition, keyspace, name)| key(space, partition, keyspace, &name))
}

fn any_step() -> impl Strategy<Value = Step> {
    let write = (any_key(), proptest::option::weighted(0.75, any_stored()));
    let batch = proptest::collection::btree_map(any_key(), proptest::option::weighted(0.75, any_stored()), 0..6)
        .prop_map(|batch| batch.into_iter().collect::<Vec<_>>());
    let one = write.prop_map(|write| vec![vec![write]]);
    prop_oneof![
        6 => proptest::collection::vec(batch, 1..4).prop_map(Step::Commit),
        6 => one.prop_map(Step::Commit),
        1 => Just(Step::Reopen),
        1 => Just(Step::Crash),
        2 => (any_key(), any_key(), 0..5usize, 0..400usize).prop_map(|(a, b, n, m)| Step::Slice(a, b, n, m)),
    ]
}

#[derive(Default)]
struct Model {
    held: BTreeMap<StorageKey, Stored>,
    commits: u64,
}

impl Model {
    fn commit(&mut self, batches: Vec<Vec<(StorageKey, Option<Stored>)>>, committer: &mut impl Committer) {
        self.commits += 1;
        let mut out = Vec::new();
        for batch in batches {
            let mut writes = vec![meta(b"last", Some(&self.commits.to_be_bytes()))];
            for (key, next) in batch {
                let before = self.held.remove(&key);
                writes.push(write(&key, before.as_ref(), next.as_ref()));
                next.into_iter().for_each(|next| drop(self.held.insert(key.clone(), next)));
            }
            out.push(Batch { writes });
        }
        committer.commit(&out, Seq(self.commits)).unwrap();
    }

    fn slice(&self, request: &SliceRequest) -> Slice {
        let mut slice = Slice::default();
        let mut bytes = 0;
        for (key, stored) in self.held.iter().filter(|it| request.from <= *it.0 && *it.0 < request.until) {
            let full = slice.entries.len() >= request.entries_max.max(1) || bytes >= request.bytes_max.max(1);
            if full {
                slice.more = true;
                break;
            }
            let value = stored.encode();
            bytes += key.as_bytes().len() + value.len();
            slice.entries.push((key.clone(), value));
        }
        slice
    }

    fn check(&self, reader: &impl Reader, committer: &impl Committer) {
        for space in Space::ALL {
            let request = all(StorageKey::space_start(space), StorageKey::space_end(space));
            assert_eq!(reader.slice(&request).unwrap(), self.slice(&request));
        }
        let last = (self.commits > 0).then(|| self.commits.to_be_bytes().to_vec());
        assert_eq!(reader.meta(b"last").unwrap().map(|bytes| bytes.to_vec()), last);
        let counted = recount(reader).unwrap();
        assert_eq!(*committer.stats(), counted.stats);
        assert_eq!(counted.damaged, []);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn memory_is_an_ordered_map(steps in proptest::collection::vec(any_step(), 1..40)) {
        let (_, reader, mut committer) = MemoryStore::open(StoreId(1), 1);
        let mut model = Model::default();
        for step in steps {
            match step {
                Step::Commit(batches) => model.commit(batches, &mut committer),
                Step::Slice(from, until, entries_max, bytes_max) => {
                    let request = SliceRequest { from, until, entries_max, bytes_max };
                    prop_assert_eq!(reader.slice(&request).unwrap(), model.slice(&request));
                }
                Step::Reopen | Step::Crash => {}
            }
        }
        model.check(&reader, &committer);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn disk_is_an_ordered_map(steps in proptest::collection::vec(any_step(), 1..40)) {
        let directory = tempfile::tempdir().unwrap();
        let (_, mut reader, mut committer) = disk::open(directory.path());
        let mut model = Model::default();
        for step in steps {
            match step {
                Step::Commit(batches) => model.commit(batches, &mut committer),
                Step::Slice(from, until, entries_max, bytes_max) => {
                    let request = SliceRequest { from, until, entries_max, bytes_max };
                    prop_assert_eq!(reader.slice(&request).unwrap(), model.slice(&request));
                }
                Step::Reopen => {
                    drop((reader, committer));
                    (_, reader, committer) = disk::open(directory.path());
                    prop_assert!(!reader.metrics().recounted);
                    model.check(&reader, &committer);
                }
                Step::Crash => {
                    let image = disk::crash_image(directory.path());
                    let (_, reader, committer) = disk::open(image.path());
                    prop_assert!(!reader.metrics().recounted);
                    model.check(&reader, &committer);
                }
            }
        }
        model.check(&reader, &committer);
    }
}
