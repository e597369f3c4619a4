//! Encoding and decoding of stored records.
#![allow(missing_docs, reason = "criterion's macros make public items")]
#![allow(clippy::unwrap_used, reason = "a bench that cannot go on fails")]

use bytes::Bytes;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kv_core::storage::{StorageKey, Stored};
use kv_core::types::{KeyspaceId, PartitionId, RequestId, StoreId};
use kv_core::version::{Actor, Conflict, ContextToken, Hlc, Record, Replaces, Write};
use std::hint::black_box;

fn record(value_bytes: usize, siblings: u64) -> Stored {
    let mut record = Record::default();
    let mut own = None;
    for instance in 1..=siblings {
        let actor = Actor { store: StoreId(u64::MAX / 3), boot: 3, nonce: 0x9abc_def0, instance };
        let request = RequestId { client: u64::MAX / 5, stamp: Hlc(instance) };
        let value = Some(Bytes::from(vec![7; value_bytes]));
        let write = Write { written: Hlc(1 << 62), request, expires: None, value };
        record.write(actor, Replaces::Shown(&ContextToken::default()), Conflict::Siblings, write);
        own = Some(actor);
    }
    Stored { own, cell: record.into() }
}

fn codec(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("codec");
    for (value_bytes, siblings) in [(100, 1), (100, 3), (10_000, 1)] {
        let stored = record(value_bytes, siblings);
        let encoded = stored.encode();
        let name = format!("{siblings}x{value_bytes}B ({} B stored)", encoded.len());
        group.throughput(Throughput::Elements(1));
        group.bench_function(BenchmarkId::new("encode", &name), |bencher| bencher.iter(|| black_box(&stored).encode()));
        group.bench_function(BenchmarkId::new("decode", &name), |bencher| {
            bencher.iter_batched(|| encoded.clone(), |bytes| Stored::decode(&bytes).unwrap(), BatchSize::SmallInput);
        });
        let key = StorageKey::owned(PartitionId(7), KeyspaceId(0), b"user:0000000000001");
        group.bench_function(BenchmarkId::new("footprint", &name), |bencher| {
            bencher.iter(|| black_box(&stored).footprint(black_box(&key), encoded.len()));
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(std::time::Duration::from_millis(300)).measurement_time(std::time::Duration::from_secs(1));
    targets = codec
}
criterion_main!(benches);
