//! What plans promise: fair, fewest moves, deterministic; and what is refused.

mod optimal;
mod plans;
mod refusals;

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{Change, Plan, operation, plan};
use crate::ring::{FirstLayout, Layout, Member, check, fair_shares, first_layout};
use crate::types::{ClusterId, Epoch, HashSeed, NodeId, StoreId};

fn member(node: u64, zone: &str, weight: f64, spare: bool) -> (NodeId, Member) {
    let member = Member { name: format!("n{node}"), zone: zone.to_owned(), weight, store: StoreId(1000 + node), spare };
    (NodeId(node), member)
}

/// A layout of `(zone, weight, spare)`, numbered from 1.
fn layout(partitions: u32, copies: u8, list: &[(&str, f64, bool)]) -> Layout {
    let members = (1..).zip(list).map(|(node, &(zone, weight, spare))| member(node, zone, weight, spare)).collect();
    let input = FirstLayout { cluster: ClusterId(7), seed: HashSeed(42), epoch: Epoch(3), copies, partitions, members };
    first_layout(input).expect("sound input")
}

/// The layout that a plan leads to, which must be sound and rounded shares.
fn target(layout: &Layout, plan: &Plan) -> Layout {
    let target = plan.target(layout, Epoch(layout.epoch.0 + 1)).expect("the plan is for this layout");
    assert_eq!(check(&target), Ok(()));
    let owners = target.owners_per_partition() as f64;
    let held = held(&target);
    for (node, share) in fair_shares(&target.members, target.partition_count(), target.copies) {
        let (copies, first) = held[&node];
        let rounded = |count: u32, share: f64| {
            let count = f64::from(count);
            assert!(
                count >= (share + 1e-6).floor() && count <= (share - 1e-6).ceil(),
                "{node}: {count} of {share}\n{target}"
            );
        };
        rounded(copies, share);
        rounded(first, share / owners);
    }
    target
}

/// A layout after an operation that was cancelled when `done` of its partitions were cut over.
fn cancelled(layout: &Layout, changes: &[Change], done: usize) -> Layout {
    let plan = plan(layout, changes).expect("can be planned");
    let target = plan.operation(layout).expect("made for this layout");
    let mut between = plan.clone();
    between.partitions.truncate(done);
    let mut now = layout.clone();
    now.epoch = Epoch(layout.epoch.0 + 1);
    now.members = plan.members.clone();
    now.copies = plan.copies;
    now.settled = false;
    for change in &between.partitions {
        let owners = change.owners.iter().map(|&node| crate::ring::Owner { node, since: now.epoch }).collect();
        now.partitions[usize::from(change.partition.0)] = crate::ring::Entry::settled(now.epoch, owners);
    }
    operation::cancel(&now, &target)
}

/// How many copies each member holds, and in how many primaries.
fn held(layout: &Layout) -> BTreeMap<NodeId, (u32, u32)> {
    let mut held: BTreeMap<NodeId, (u32, u32)> = layout.members.keys().map(|&node| (node, (0, 0))).collect();
    for (place, node) in layout.partitions.iter().flat_map(|entry| entry.nodes().enumerate()) {
        let counts = held.entry(node).or_default();
        counts.0 += 1;
        counts.1 += u32::from(place == 0);
    }
    held
}

/// Replicas that are new in `after`.
fn moved(before: &Layout, after: &Layout) -> usize {
    let pairs = before.partitions.iter().zip(&after.partitions);
    pairs.map(|(before, after)| after.nodes().filter(|&node| !before.owns(node)).count()).sum()
}

/// Up to `nodes` members in up to `zones` zones, some of them spares, with weights of all kinds.
fn any_members(nodes: usize, zones: usize) -> impl Strategy<Value = Vec<(&'static str, f64, bool)>> {
    let weight = prop_oneof![4 => Just(1.0), 2 => (1u32..=4).prop_map(f64::from), 2 => 0.2..9.0f64];
    let one = (0..zones, weight, prop::bool::weighted(0.35));
    prop::collection::vec(one, 2..=nodes).prop_map(|list| {
        let zone = |at: usize| ["a", "b", "c", "d", "e", "f"][at];
        // The first two may always own.
        let made = list.into_iter().enumerate();
        made.map(|(at, (number, weight, spare))| (zone(number), weight, spare && at > 1)).collect()
    })
}

/// A change, of nodes that are chosen when the layout is known.
fn any_change() -> impl Strategy<Value = (u8, prop::sample::Index, prop::sample::Index, f64)> {
    (0u8..8, any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0.2..9.0f64)
}

/// The changes for a layout.
fn changes(layout: &Layout, chosen: &[(u8, prop::sample::Index, prop::sample::Index, f64)]) -> Vec<Change> {
    let ids = |spare: bool| -> Vec<NodeId> {
        layout.members.iter().filter(|entry| entry.1.spare == spare).map(|entry| *entry.0).collect()
    };
    let (spares, owning) = (ids(true), ids(false));
    let change = |&(kind, one, other, weight): &(u8, prop::sample::Index, prop::sample::Index, f64)| {
        let node = owning[one.index(owning.len())];
        let spare = (!spares.is_empty()).then(|| spares[other.index(spares.len())]);
        Some(match kind {
            0 | 1 => Change::Add { node: spare? },
            2 => Change::Remove { node },
            3 => Change::RemoveDead { node },
            4 => Change::Replace { old: node, new: spare? },
            5 => Change::Weight { node, weight },
            6 => Change::Zone { node, zone: ["a", "b", "c", "d"][other.index(4)].to_owned() },
            _ => Change::Copies { copies: u8::try_from(other.index(4)).unwrap() + 1 },
        })
    };
    chosen.iter().filter_map(change).collect()
}
