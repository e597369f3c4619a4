//! Properties of layouts: what `first_layout` makes, what `check` refuses, where keys and stand-ins are.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::types::{ClusterId, Epoch, HashSeed, NodeId, StoreId};

fn member(node: u64, zone: &str, weight: f64) -> (NodeId, Member) {
    let (name, zone, store) = (format!("node-{node}"), zone.to_owned(), StoreId(1000 + node));
    (NodeId(node), Member { name, zone, weight, store, spare: false })
}

fn members(list: &[(&str, f64)]) -> BTreeMap<NodeId, Member> {
    (1..).zip(list).map(|(node, &(zone, weight))| member(node, zone, weight)).collect()
}

fn input(partitions: u32, copies: u8, members: BTreeMap<NodeId, Member>) -> FirstLayout {
    FirstLayout { cluster: ClusterId(7), seed: HashSeed(42), epoch: Epoch(3), copies, partitions, members }
}

fn made(partitions: u32, copies: u8, list: &[(&str, f64)]) -> Layout {
    let layout = first_layout(input(partitions, copies, members(list))).expect("sound input");
    check(&layout).expect("a first layout is sound");
    layout
}

/// How many copies each member holds, and in how many first places.
fn held(layout: &Layout) -> BTreeMap<NodeId, (u32, u32)> {
    let mut held: BTreeMap<NodeId, (u32, u32)> = layout.members.keys().map(|&node| (node, (0, 0))).collect();
    for entry in &layout.partitions {
        for (place, node) in entry.nodes().enumerate() {
            let counts = held.entry(node).or_default();
            counts.0 += 1;
            counts.1 += u32::from(place == 0);
        }
    }
    held
}

fn any_members(most: usize) -> impl Strategy<Value = BTreeMap<NodeId, Member>> {
    let weight = prop_oneof![
        4 => Just(1.0),
        2 => (1u32..=8).prop_map(f64::from),
        2 => 0.1..20.0f64,
        1 => prop_oneof![Just(WEIGHT_MIN), Just(WEIGHT_MAX), Just(1.0 / 3.0)],
    ];
    let one = (0usize..6, weight, prop::bool::weighted(0.1));
    prop::collection::vec(one, 1..=most).prop_map(|list| {
        let mut members = BTreeMap::new();
        for (node, (zone, weight, spare)) in (1..).zip(list) {
            let (id, mut made) = member(node, ["a", "b", "c", "d", "e", "f"][zone], weight);
            // The first one may always own.
            made.spare = spare && node > 1;
            members.insert(id, made);
        }
        members
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn first_layouts_are_sound_and_rounded_shares(
        members in any_members(14),
        bits in 0u32..10,
        copies in 1u8..7,
        seed in any::<u64>(),
    ) {
        let mut input = input(1 << bits, copies, members);
        input.seed = HashSeed(seed);
        let layout = first_layout(input.clone()).expect("sound input");
        prop_assert_eq!(check(&layout), Ok(()), "{}", layout);
        // `check` allows one partition either way; a first layout is a rounded share.
        let owners = layout.owners_per_partition() as f64;
        let held = held(&layout);
        for (node, share) in fair_shares(&layout.members, layout.partition_count(), copies) {
            let (all, first) = held[&node];
            prop_assert!((f64::from(all) - share).abs() < 1.0 + 1e-6 && (f64::from(first) - share / owners).abs() < 1.0 + 1e-6);
            prop_assert!(f64::from(all) >= (share - 1e-6).floor() && f64::from(all) <= (share + 1e-6).ceil());
            prop_assert!(f64::from(first) >= ((share - 1e-6) / owners).floor());
            prop_assert!(f64::from(first) <= ((share + 1e-6) / owners).ceil());
        }
        prop_assert_eq!(first_layout(input).expect("sound input"), layout, "the same input makes the same layout");
    }
}

#[test]
fn a_picture() {
    let layout = made(8, 2, &[("a", 1.0), ("b", 1.0), ("c", 2.0)]);
    let picture = "\
layout e3: 8 partitions, 2 copies, 3 members
  A n1 node-1 zone a weight 1: 4 copies (fair 4.00), 2 first places (fair 2.00)
  B n2 node-2 zone b weight 1: 4 copies (fair 4.00), 2 first places (fair 2.00)
  C n3 node-3 zone c weight 2: 8 copies (fair 8.00), 4 first places (fair 4.00)
  p0 BC CA CB AC BC CA AC CB";
    assert_eq!(layout.to_string(), picture);
}
