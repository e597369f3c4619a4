//! The engines: reads from the hot tier, memory, a warm and a cold disk, and commits of 1, 64 and 1024 records.
//!
//! The cold reads leave the block cache out, not the operating system's: they show what a block costs to find, check and
//! uncompress.
#![allow(missing_docs, reason = "criterion's macros make public items")]
#![allow(clippy::unwrap_used, reason = "a bench that cannot go on fails")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kv_core::storage::{
    Batch, Committer, DiskConfig, DiskStore, Footprint, Hot, HotTier, MemoryStore, OpenIds, Reader, SliceRequest,
    Space, StorageKey, Stored, Write,
};
use kv_core::types::{KeyspaceId, PartitionId, RequestId, Seq, StoreId};
use kv_core::version::{Actor, Conflict, Context, Hlc, Record, Write as VersionWrite};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const RECORDS: u64 = 100_000;
const VALUE_BYTES: usize = 100;
const PARTITIONS: u16 = 256;

/// Records that are being made, with what was made of each key before.
struct Maker {
    random: StdRng,
    held: Vec<Option<Footprint>>,
}

impl Maker {
    fn new() -> Self {
        Self { random: StdRng::seed_from_u64(1), held: vec![None; usize::try_from(RECORDS).unwrap()] }
    }

    fn write(&mut self, number: u64) -> Write {
        let (key, stored) = (key(number), self.record());
        let value = stored.encode();
        let after = Some(stored.footprint(&key, value.len()));
        let before = std::mem::replace(&mut self.held[usize::try_from(number).unwrap()], after);
        Write::Record { key, value: Some(value), before, after, damaged: false }
    }

    /// A record whose value compresses to about half.
    fn record(&mut self) -> Stored {
        let actor = Actor { store: StoreId(u64::MAX / 3), boot: 3, nonce: 0x9abc_def0, instance: self.random.random() };
        let request = RequestId { client: self.random.random(), sequence: 5 };
        let value: Vec<u8> = (0..VALUE_BYTES).map(|_| self.random.random_range(b'a'..b'q')).collect();
        let mut record = Record::default();
        let write = VersionWrite { written: Hlc(1 << 62), request, expires: None, value: Some(Bytes::from(value)) };
        record.write(actor, &Context::new(), Conflict::Siblings, write);
        Stored { own: Some(actor), record }
    }

    fn batch(&mut self, size: u64) -> Batch {
        let mut numbers = std::collections::BTreeSet::new();
        while u64::try_from(numbers.len()).unwrap() < size {
            numbers.insert(self.random.random_range(0..RECORDS));
        }
        Batch { writes: numbers.into_iter().map(|number| self.write(number)).collect() }
    }

    fn load(&mut self, committer: &mut impl Committer) {
        for start in (0..RECORDS).step_by(1000) {
            let batch = Batch { writes: (start..start + 1000).map(|number| self.write(number)).collect() };
            committer.commit(&[batch], Seq(start)).unwrap();
        }
    }
}

fn key(number: u64) -> StorageKey {
    let partition = u16::try_from(number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56).unwrap() % PARTITIONS;
    StorageKey::new(Space::Owned, PartitionId(partition), KeyspaceId(0), format!("user:{number:011}").as_bytes())
}

fn gets(criterion: &mut Criterion, name: &str, reader: &impl Reader) {
    let mut random = StdRng::seed_from_u64(2);
    let mut group = criterion.benchmark_group("get");
    group.throughput(Throughput::Elements(1));
    group.bench_function(name, |bencher| {
        bencher.iter_batched(
            || key(random.random_range(0..RECORDS)),
            |key| Stored::decode(&reader.get(&key).unwrap().unwrap()).unwrap(),
            BatchSize::SmallInput,
        );
    });
    group.bench_function(format!("{name}, absent"), |bencher| {
        bencher.iter_batched(
            || key(RECORDS + random.random_range(0..RECORDS)),
            |key| assert_eq!(reader.get(&key).unwrap(), None),
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

fn slices(criterion: &mut Criterion, name: &str, reader: &impl Reader) {
    let mut group = criterion.benchmark_group("slice of 100");
    group.throughput(Throughput::Elements(100));
    let until = StorageKey::space_end(Space::Owned);
    let request = |from| SliceRequest { from, until: until.clone(), entries_max: 100, bytes_max: usize::MAX };
    let mut random = StdRng::seed_from_u64(3);
    group.bench_function(name, |bencher| {
        bencher.iter_batched(
            || request(key(random.random_range(0..RECORDS))),
            |request| black_box(reader.slice(&request).unwrap()),
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

fn commits(criterion: &mut Criterion, name: &str, maker: &mut Maker, committer: &mut impl Committer) {
    let mut group = criterion.benchmark_group("commit");
    for size in [1, 64, 1024] {
        group.throughput(Throughput::Elements(size));
        group.bench_function(BenchmarkId::new(name, size), |bencher| {
            bencher.iter_batched(
                || [maker.batch(size)],
                |batches| committer.commit(&batches, Seq(0)).unwrap(),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

fn hot(criterion: &mut Criterion) {
    let mut maker = Maker::new();
    let mut tier = HotTier::new(256 * 1024 * 1024, 1);
    for number in 0..RECORDS {
        let (key, stored) = (key(number), Arc::new(maker.record()));
        let footprint = stored.footprint(&key, stored.encode().len());
        tier.insert(key, Hot { stored, footprint });
    }
    assert_eq!(tier.stats().records, RECORDS);
    let mut random = StdRng::seed_from_u64(2);
    let mut group = criterion.benchmark_group("get");
    group.throughput(Throughput::Elements(1));
    group.bench_function("hot", |bencher| {
        bencher.iter_batched(
            || key(random.random_range(0..RECORDS)),
            |key| tier.get(&key).unwrap(),
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

fn memory(criterion: &mut Criterion) {
    let (_, reader, mut committer) = MemoryStore::open(StoreId(1), 1);
    let mut maker = Maker::new();
    maker.load(&mut committer);
    gets(criterion, "memory", &reader);
    slices(criterion, "memory", &reader);
    commits(criterion, "memory", &mut maker, &mut committer);
}

fn disk(criterion: &mut Criterion) {
    let directory = tempfile::tempdir().unwrap();
    let ids = OpenIds { store: StoreId(1), nonce: 1 };
    let mut maker = Maker::new();
    // A small memtable, so that the records lie in tables.
    let warm = DiskConfig { memtable_bytes: 1024 * 1024, ..DiskConfig::default() };
    let (_, reader, mut committer) = DiskStore::open(directory.path(), &warm, ids).unwrap();
    maker.load(&mut committer);
    gets(criterion, "disk, warm", &reader);
    slices(criterion, "disk, warm", &reader);
    drop((reader, committer));

    let cold = DiskConfig { cache_bytes: 0, ..warm };
    let (_, reader, committer) = DiskStore::open(directory.path(), &cold, ids).unwrap();
    gets(criterion, "disk, cold", &reader);
    drop((reader, committer));

    let fresh = tempfile::tempdir().unwrap();
    let (_, _, mut committer) = DiskStore::open(fresh.path(), &DiskConfig::default(), ids).unwrap();
    let mut maker = Maker::new();
    commits(criterion, "disk", &mut maker, &mut committer);
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = hot, memory, disk
}
criterion_main!(benches);
