//! Makes records for benches of stores.

use std::ops::RangeInclusive;

use bytes::Bytes;
use kv_core::storage::{Batch, Committer, Footprint, StorageKey, Stored, Write};
use kv_core::types::{KeyspaceId, PartitionId, RequestId, Seq, StoreId};
use kv_core::version::{Actor, Conflict, ContextToken, Hlc, Record, Replaces, Write as VersionWrite};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const VALUE_BYTES: usize = 100;
const PARTITIONS: u16 = 256;

/// Records that are being made, with what was made of each key before.
pub(crate) struct Maker {
    pub(crate) random: StdRng,
    pub(crate) records: u64,
    /// What values consist of: with 16 different bytes they compress to about half.
    values: RangeInclusive<u8>,
    held: Vec<Option<Footprint>>,
}

impl Maker {
    pub(crate) fn new(records: u64, values: RangeInclusive<u8>) -> Self {
        let held = vec![None; usize::try_from(records).unwrap()];
        Self { random: StdRng::seed_from_u64(1), records, values, held }
    }

    pub(crate) fn write(&mut self, number: u64) -> Write {
        let (key, stored) = (key(number), self.record());
        let value = stored.encode();
        let after = Some(stored.footprint(&key, value.len()));
        let before = std::mem::replace(&mut self.held[usize::try_from(number).unwrap()], after);
        Write::Record { key, value: Some(value), before, after, damaged: false }
    }

    pub(crate) fn record(&mut self) -> Stored {
        let actor = Actor { store: StoreId(u64::MAX / 3), boot: 3, nonce: 0x9abc_def0, instance: self.random.random() };
        let request = RequestId { client: self.random.random(), stamp: Hlc(5) };
        let value: Vec<u8> = (0..VALUE_BYTES).map(|_| self.random.random_range(self.values.clone())).collect();
        let mut record = Record::default();
        let write = VersionWrite { written: Hlc(1 << 62), request, expires: None, value: Some(Bytes::from(value)) };
        record.write(actor, Replaces::Shown(&ContextToken::default()), Conflict::Siblings, write);
        Stored { own: Some(actor), cell: record.into() }
    }

    /// Writes of so many different records.
    pub(crate) fn batch(&mut self, size: u64) -> Batch {
        let mut numbers = std::collections::BTreeSet::new();
        while u64::try_from(numbers.len()).unwrap() < size {
            numbers.insert(self.random.random_range(0..self.records));
        }
        Batch { writes: numbers.into_iter().map(|number| self.write(number)).collect() }
    }

    /// Writes all of them.
    pub(crate) fn load(&mut self, committer: &mut impl Committer) {
        for start in (0..self.records).step_by(1000) {
            let numbers = start..self.records.min(start + 1000);
            let batch = Batch { writes: numbers.map(|number| self.write(number)).collect() };
            committer.commit(&[batch], Seq(start)).unwrap();
        }
    }
}

pub(crate) fn key(number: u64) -> StorageKey {
    let partition = u16::try_from(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56).unwrap() % PARTITIONS;
    StorageKey::owned(PartitionId(partition), KeyspaceId(0), format!("user:{number:011}").as_bytes())
}
