//! The engines: reads from the hot tier, memory, a warm and a cold disk, and commits of 1, 64 and 1024 records.
//!
//! The cold reads leave the block cache out, not the operating system's: they show what a block costs to find, check and
//! uncompress.
#![allow(missing_docs, reason = "criterion's macros make public items")]
#![allow(clippy::unwrap_used, reason = "a bench that cannot go on fails")]

mod maker;

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kv_core::storage::{
    Committer, DiskConfig, DiskStore, Hot, HotTier, MemoryStore, OpenIds, Reader, SliceRequest, Space, StorageKey,
    Stored,
};
use kv_core::types::{Seq, StoreId};
use maker::{Maker, key};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const RECORDS: u64 = 100_000;

/// A maker of records whose values compress to about half.
fn new_maker() -> Maker {
    Maker::new(RECORDS, b'a'..=b'p')
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
    let mut maker = new_maker();
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
    let mut maker = new_maker();
    maker.load(&mut committer);
    gets(criterion, "memory", &reader);
    slices(criterion, "memory", &reader);
    commits(criterion, "memory", &mut maker, &mut committer);
}

fn disk(criterion: &mut Criterion) {
    let directory = tempfile::tempdir().unwrap();
    let ids = OpenIds { store: StoreId(1), nonce: 1 };
    let mut maker = new_maker();
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
    let mut maker = new_maker();
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
