//! What a coordinator and a replica do to one record in memory. Values have 100 bytes.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use kv_core::types::{RequestId, StoreId};
use kv_core::version::{Actor, Clock, Conflict, ContextToken, Hlc, Record, Replaces, Write};

fn actor(instance: u64) -> Actor {
    Actor { store: StoreId(0x0123_4567_89ab_cdef ^ instance), boot: 1, nonce: 0xdead_beef, instance }
}

fn write(sequence: u64) -> Write {
    let request = RequestId { client: 0xfeed, stamp: Hlc(sequence) };
    Write { written: Hlc(sequence), request, expires: None, value: Some(Bytes::from_static(&[b'v'; 100])) }
}

/// A record with so many siblings, each by an actor of its own.
fn record(siblings: u64) -> Record {
    let mut record = Record::default();
    for instance in 0..siblings {
        record.write(actor(instance), Replaces::Shown(&ContextToken::default()), Conflict::Siblings, write(instance));
    }
    record
}

fn merge(c: &mut Criterion) {
    let mut group = c.benchmark_group("merge");
    for siblings in [1, 8] {
        let old = record(siblings);
        let mut new = old.clone();
        new.write(actor(0), Replaces::Held, Conflict::Siblings, write(100));
        let mut other = old.clone();
        other.write(actor(100), Replaces::Shown(&ContextToken::default()), Conflict::Siblings, write(101));
        let pairs = [("newer", &old, &new), ("equal", &new, &new), ("concurrent", &new, &other)];
        for (name, mine, theirs) in pairs {
            group.bench_function(format!("{name}, {siblings} siblings"), |b| {
                let merge = |mut record: Record| {
                    record.merge(black_box(theirs), Conflict::Siblings);
                    record
                };
                b.iter_batched(|| mine.clone(), merge, BatchSize::SmallInput);
            });
        }
        group.bench_function(format!("dominates, {siblings} siblings"), |b| {
            b.iter(|| black_box(&new).dominates(black_box(&old)));
        });
        group.bench_function(format!("write, {siblings} siblings"), |b| {
            let mut clock = Clock::default();
            let put = |mut record: Record| {
                let written = clock.tick(Default::default(), record.latest());
                let write = Write { written, ..write(7) };
                record.write(actor(0), black_box(Replaces::Held), Conflict::Siblings, write);
                record
            };
            b.iter_batched(|| old.clone(), put, BatchSize::SmallInput);
        });
        group.bench_function(format!("digest, {siblings} siblings"), |b| b.iter(|| black_box(&old).digest()));
    }
    group.finish();
}

criterion_group!(benches, merge);
criterion_main!(benches);
