//! Where a key lives: the look-ups of every request, and the making of layouts.

use std::collections::BTreeMap;
use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use kv_core::ring::{self, FirstLayout, Layout, Member, hash};
use kv_core::types::{ClusterId, Epoch, HashSeed, NodeId, StoreId};

/// Nodes in five zones, with three copies.
fn input(partitions: u32, nodes: u64) -> FirstLayout {
    let member = |node: u64| Member {
        name: format!("node-{node}"),
        zone: format!("zone-{}", node % 5),
        weight: 1.0,
        store: StoreId(node),
        spare: false,
    };
    let members: BTreeMap<NodeId, Member> = (1..=nodes).map(|node| (NodeId(node), member(node))).collect();
    FirstLayout { cluster: ClusterId(1), seed: HashSeed(42), epoch: Epoch(1), copies: 3, partitions, members }
}

fn layout(partitions: u32, nodes: u64) -> Layout {
    ring::first_layout(input(partitions, nodes)).expect("the input is sound")
}

fn look_ups(c: &mut Criterion) {
    let mut group = c.benchmark_group("ring");
    // 16-byte keys, one after the other, so that the partitions come in no order.
    let keys: Vec<String> = (0..1024).map(|number| format!("key-{number:012}")).collect();
    let mut at = 0;
    let mut next = || {
        at = (at + 1) % keys.len();
        keys[at].as_bytes()
    };
    for (partitions, nodes) in [(256, 5), (65_536, 100)] {
        let layout = layout(partitions, nodes);
        group.bench_function(format!("token and partition, {partitions}"), |b| {
            b.iter(|| hash::partition(hash::token(layout.seed, black_box(next())), layout.partition_count()));
        });
        group.bench_function(format!("preference list, {partitions} x {nodes}"), |b| {
            b.iter(|| {
                let partition = layout.partition_of(black_box(next()));
                layout.entry(partition).map(|entry| entry.nodes().fold(0, |all, node| all ^ node.0))
            });
        });
        group.bench_function(format!("one fallback, {partitions} x {nodes}"), |b| {
            b.iter(|| layout.fallbacks(layout.partition_of(black_box(next())), 1));
        });
    }
    group.finish();
}

fn layouts(c: &mut Criterion) {
    let mut group = c.benchmark_group("layout");
    group.sample_size(10);
    for (partitions, nodes) in [(256, 5), (4096, 100), (65_536, 100), (65_536, 1000)] {
        let input = input(partitions, nodes);
        group.bench_function(format!("first_layout, {partitions} x {nodes}"), |b| {
            b.iter(|| ring::first_layout(black_box(&input).clone()));
        });
        let layout = layout(partitions, nodes);
        group.bench_function(format!("check, {partitions} x {nodes}"), |b| b.iter(|| ring::check(black_box(&layout))));
    }
    group.finish();
}

criterion_group!(benches, look_ups, layouts);
criterion_main!(benches);
