//! What planning costs: the largest sizes that are promised, with the changes that people make.

use std::collections::BTreeMap;
use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use kv_core::ring::{FirstLayout, Layout, Member, first_layout};
use kv_core::topology::{Change, plan};
use kv_core::types::{ClusterId, Epoch, HashSeed, NodeId, StoreId};

/// Nodes of weights 1, 2 and 3 in five zones, with three copies; the last one is a spare.
fn layout(partitions: u32, nodes: u64) -> Layout {
    let member = |node: u64| Member {
        name: format!("node-{node}"),
        zone: format!("zone-{}", node % 5),
        weight: [1.0, 2.0, 3.0][usize::try_from(node % 3).unwrap_or(0)],
        store: StoreId(node),
        spare: node > nodes,
    };
    let members: BTreeMap<NodeId, Member> = (1..=nodes + 1).map(|node| (NodeId(node), member(node))).collect();
    let input =
        FirstLayout { cluster: ClusterId(1), seed: HashSeed(42), epoch: Epoch(1), copies: 3, partitions, members };
    first_layout(input).expect("the input is sound")
}

fn plans(c: &mut Criterion) {
    let mut group = c.benchmark_group("plan");
    group.sample_size(10);
    for (partitions, nodes) in [(256, 5), (4096, 100), (65_536, 1000)] {
        let layout = layout(partitions, nodes);
        let spare = NodeId(nodes + 1);
        let several = vec![
            Change::Add { node: spare },
            Change::Remove { node: NodeId(3) },
            Change::Weight { node: NodeId(4), weight: 9.0 },
            Change::Weight { node: NodeId(2), weight: 0.1 },
        ];
        let half = (1..=nodes / 2)
            .map(|node| Change::Weight { node: NodeId(node), weight: [0.5, 5.0][usize::from(node % 2 == 0)] });
        for (name, changes) in [
            ("add", vec![Change::Add { node: spare }]),
            ("remove", vec![Change::Remove { node: NodeId(2) }]),
            ("replace across zones", vec![Change::Replace { old: NodeId(4), new: spare }]),
            ("several", several),
            ("half of the weights", half.collect()),
            ("copies 4", vec![Change::Copies { copies: 4 }]),
        ] {
            // Five nodes in five zones cannot lose one.
            let Ok(planned) = plan(&layout, &changes) else { continue };
            assert_eq!(planned.gap(), 0, "{partitions} x {nodes}, {name}: proven to have the fewest moves");
            group.bench_function(format!("{partitions} x {nodes}, {name}"), |b| {
                b.iter(|| plan(black_box(&layout), black_box(&changes)));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, plans);
criterion_main!(benches);
