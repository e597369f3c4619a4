//! Properties of layouts: what `first_layout` makes, what `check` refuses, where keys and fallbacks are.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::types::{ClusterId, Epoch, HashSeed, NodeId, PartitionId, StoreId};

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

/// How many copies each member holds, and in how many primaries.
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

/// A sound layout, and what of it is to be broken.
#[derive(Clone, Debug)]
struct Sound {
    layout: Layout,
    /// A partition, and the place of one of its owners.
    partition: usize,
    place: usize,
    /// Another member, if there is one.
    other: prop::sample::Index,
}

impl Sound {
    fn id(&self) -> PartitionId {
        PartitionId(u16::try_from(self.partition).unwrap())
    }

    fn node(&self) -> NodeId {
        self.layout.partitions[self.partition].owners[self.place].node
    }

    fn other(&self) -> Option<NodeId> {
        let others: Vec<NodeId> = self.layout.members.keys().copied().filter(|&id| id != self.node()).collect();
        (!others.is_empty()).then(|| others[self.other.index(others.len())])
    }

    /// What `check` says of the layout with a change.
    fn broken(&self, change: &dyn Fn(&mut Layout)) -> Result<(), LayoutError> {
        let mut layout = self.layout.clone();
        change(&mut layout);
        check(&layout)
    }
}

fn any_sound() -> impl Strategy<Value = Sound> {
    let index = any::<prop::sample::Index>;
    (any_members(12), 2u32..7, 1u8..5, index(), index(), index()).prop_map(
        |(members, bits, copies, at, place, other)| {
            let layout = first_layout(input(1 << bits, copies, members)).expect("sound input");
            let partition = at.index(layout.partitions.len());
            let place = place.index(layout.owners_per_partition());
            Sound { layout, partition, place, other }
        },
    )
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
  A n1 node-1 zone a weight 1: 4 copies (fair 4.00), 2 primaries (fair 2.00)
  B n2 node-2 zone b weight 1: 4 copies (fair 4.00), 2 primaries (fair 2.00)
  C n3 node-3 zone c weight 2: 8 copies (fair 8.00), 4 primaries (fair 4.00)
  p0 BC CA CB AC BC CA AC CB";
    assert_eq!(layout.to_string(), picture);
}

/// Every assignment of owners to partitions that keeps the zone limit, as the copies that each node would hold.
fn all_copies(layout: &Layout) -> BTreeSet<Vec<u32>> {
    let nodes: Vec<&Member> = layout.members.values().collect();
    let owners = layout.owners_per_partition();
    let mut zones: BTreeMap<&str, usize> = BTreeMap::new();
    nodes.iter().for_each(|member| *zones.entry(&member.zone).or_default() += 1);
    let limit = zone_limit(&zones.values().copied().collect::<Vec<_>>(), owners);
    let fits = |set: &u32| {
        let chosen = |zone: &str| (0..nodes.len()).filter(|&at| set >> at & 1 == 1 && nodes[at].zone == zone).count();
        set.count_ones() as usize == owners && zones.keys().all(|zone| chosen(zone) <= limit)
    };
    let sets: Vec<u32> = (0..1 << nodes.len()).filter(fits).collect();
    let mut found = BTreeSet::from([vec![0; nodes.len()]]);
    for _ in &layout.partitions {
        let add = |counts: &Vec<u32>, set: u32| {
            counts.iter().enumerate().map(|(at, count)| count + (set >> at & 1)).collect::<Vec<u32>>()
        };
        found = found.iter().flat_map(|counts| sets.iter().map(move |&set| add(counts, set))).collect();
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// Among all layouts that keep the zone rule, none is nearer to the fair shares.
    #[test]
    fn no_layout_is_better_balanced(
        list in prop::collection::vec((0usize..4, prop_oneof![Just(1.0), 0.2..9.0f64]), 1..=5),
        bits in 0u32..4,
        copies in 1u8..4,
    ) {
        let list: Vec<(&str, f64)> = list.iter().map(|&(zone, weight)| (["a", "b", "c", "d"][zone], weight)).collect();
        let layout = made(1 << bits, copies, &list);
        let shares: Vec<f64> = fair_shares(&layout.members, 1 << bits, copies).into_values().collect();
        let far = |counts: &[u32]| {
            counts.iter().zip(&shares).map(|(&count, share)| (f64::from(count) - share).powi(2)).sum::<f64>()
        };
        let counts: Vec<u32> = held(&layout).into_values().map(|counts| counts.0).collect();
        let all = all_copies(&layout);
        prop_assert!(all.contains(&counts));
        let best = all.iter().map(|counts| far(counts)).fold(f64::INFINITY, f64::min);
        prop_assert!(far(&counts) <= best + 1e-6, "{} is {} away, {best} is possible", layout, far(&counts));
    }

    /// Shares add up, keep the caps, and follow the weights wherever no cap stands in between.
    #[test]
    fn shares_are_fair(members in any_members(20), copies in 1u8..8) {
        const PARTITIONS: u32 = 1024;
        let shares = fair_shares(&members, PARTITIONS, copies);
        let able: BTreeMap<NodeId, Member> = members.into_iter().filter(|entry| !entry.1.spare).collect();
        prop_assert!(shares.keys().eq(able.keys()));
        let owners = usize::from(copies).min(able.len());
        let q = f64::from(PARTITIONS);
        let near = |a: f64, b: f64| (a - b).abs() <= 1e-6 * q;
        prop_assert!(near(shares.values().sum(), q * owners as f64));
        let mut zones: BTreeMap<&str, Vec<NodeId>> = BTreeMap::new();
        able.iter().for_each(|(&node, member)| zones.entry(&member.zone).or_default().push(node));
        let limit = zone_limit(&zones.values().map(Vec::len).collect::<Vec<_>>(), owners);
        let zone_full: BTreeMap<&str, bool> = zones
            .iter()
            .map(|(&zone, nodes)| (zone, near(nodes.iter().map(|node| shares[node]).sum(), q * limit as f64)))
            .collect();
        for (zone, nodes) in &zones {
            prop_assert!(nodes.iter().map(|node| shares[node]).sum::<f64>() <= q * limit as f64 + 1e-6 * q, "zone {zone}");
        }
        for (a, member_a) in &able {
            prop_assert!(shares[a] <= q + 1e-6 * q);
            for (b, member_b) in &able {
                let (share_a, share_b) = (shares[a], shares[b]);
                let blocked = near(share_a, q) || (zone_full[member_a.zone.as_str()] && member_a.zone != member_b.zone);
                // Whoever has less per weight than another is held back by a cap.
                let less = share_a / member_a.weight < share_b / member_b.weight * (1.0 - 1e-6);
                prop_assert!(blocked || !less || near(share_b, 0.0), "{a}: {share_a}, {b}: {share_b}");
            }
        }
    }

    /// Each single change to the layout as a whole that breaks an invariant is found and named.
    #[test]
    fn check_names_what_is_broken_in_a_layout(sound in any_sound()) {
        use LayoutError as E;
        let broken = |change: &dyn Fn(&mut Layout)| sound.broken(change);
        prop_assert_eq!(broken(&|l| l.partitions.truncate(3)), Err(E::PartitionCount { found: 3 }));
        prop_assert_eq!(broken(&|l| l.partitions.clear()), Err(E::PartitionCount { found: 0 }));
        prop_assert_eq!(broken(&|l| l.copies = 0), Err(E::NoCopies));
        prop_assert_eq!(
            broken(&|l| l.epoch = Epoch(2)),
            Err(E::Changed { partition: PartitionId(0), changed: Epoch(3), epoch: Epoch(2) })
        );
        prop_assert!(broken(&|l| drop(l.members.remove(&sound.node()))).is_err());
        let members = sound.layout.members.len();
        prop_assert_eq!(
            broken(&|l| l.members.values_mut().for_each(|m| m.spare = true)),
            Err(E::NoOwners { members })
        );
    }

    /// The same for one entry.
    #[test]
    fn check_names_what_is_broken_in_an_entry(sound in any_sound()) {
        use LayoutError as E;
        let (id, node, place) = (sound.id(), sound.node(), sound.place);
        let owners = sound.layout.owners_per_partition();
        let entry = |change: &dyn Fn(&mut Entry)| sound.broken(&|layout| change(&mut layout.partitions[sound.partition]));
        prop_assert_eq!(
            entry(&|e| e.changed = Epoch(4)),
            Err(E::Changed { partition: id, changed: Epoch(4), epoch: Epoch(3) })
        );
        let since = entry(&|e| e.changed = Epoch(2));
        prop_assert!(matches!(since, Err(E::Since { partition, .. }) if partition == id), "{since:?}");
        prop_assert_eq!(
            entry(&|e| e.owners[place].since = Epoch(4)),
            Err(E::Since { partition: id, node, since: Epoch(4), changed: Epoch(3) })
        );
        prop_assert_eq!(
            entry(&|e| e.owners[place].node = NodeId(99)),
            Err(E::NotMember { partition: id, node: NodeId(99) })
        );
        prop_assert_eq!(
            entry(&|e| e.owners.truncate(owners - 1)),
            Err(E::OwnerCount { partition: id, found: owners - 1, wanted: owners })
        );
        let old = &sound.layout.partitions[sound.partition].owners;
        prop_assert_eq!(entry(&|e| e.owners.push(e.owners[0])), Err(E::OwnerTwice { partition: id, node: old[0].node }));
        if owners > 1 {
            let twice = old[(place + 1) % owners].node;
            prop_assert_eq!(
                entry(&|e| e.owners[place].node = twice),
                Err(E::OwnerTwice { partition: id, node: twice })
            );
        }
        let stays = Joint { epoch: Epoch(3), owners: old.clone(), receivers: Vec::new(), sources_min: 1 };
        for settled in [true, false] {
            let joint = sound.broken(&|l| {
                l.settled = settled;
                l.partitions[sound.partition].joint = Some(stays.clone());
            });
            prop_assert_eq!(joint, Err(E::Joint { partition: id }), "nobody receives, settled: {}", settled);
        }
    }

    /// The same for one member.
    #[test]
    fn check_names_what_is_broken_in_a_member(sound in any_sound()) {
        use LayoutError as E;
        let node = sound.node();
        let member = |change: &dyn Fn(&mut Member)| sound.broken(&|l| change(l.members.get_mut(&node).unwrap()));
        for weight in [0.0, -1.0, f64::NAN, f64::INFINITY, WEIGHT_MIN / 2.0, WEIGHT_MAX * 2.0] {
            let error = member(&|m| m.weight = weight);
            prop_assert!(matches!(error, Err(E::Weight { node: found, .. }) if found == node), "{weight}: {error:?}");
        }
        for name in ["", "-a", "a b", "a\n", "\u{e9}", &"a".repeat(NAME_BYTES_MAX + 1)] {
            prop_assert_eq!(member(&|m| m.name = name.to_owned()), Err(E::Name { node, name: name.to_owned() }));
            prop_assert_eq!(member(&|m| m.zone = name.to_owned()), Err(E::Zone { node, zone: name.to_owned() }));
        }
        let Some(other) = sound.other() else { return Ok(()) };
        let taken = |error: Result<(), E>| match error {
            Err(E::NameTaken { node, other, .. } | E::StoreTaken { node, other, .. }) => Some(BTreeSet::from([node, other])),
            _ => None,
        };
        let (pair, twin) = (Some(BTreeSet::from([node, other])), &sound.layout.members[&other]);
        prop_assert_eq!(taken(member(&|m| m.name.clone_from(&twin.name))), pair.clone());
        prop_assert_eq!(taken(member(&|m| m.store = twin.store)), pair);
    }

    /// Copies or primaries that are given to another member are named by what they break: it is a spare, its zone has one of
    /// them already, or it holds more than its share.
    #[test]
    fn check_names_what_is_unfair(sound in any_sound()) {
        use LayoutError as E;
        let Some(other) = sound.other() else { return Ok(()) };
        let Sound { ref layout, partition, place, .. } = sound;
        let node = sound.node();
        let fair = fair_shares(&layout.members, layout.partition_count(), layout.copies)[&other];
        let mut moved = layout.clone();
        if layout.members[&other].spare {
            moved.partitions[partition].owners[place].node = other;
            prop_assert_eq!(check(&moved), Err(E::Spare { partition: sound.id(), node: other }));
        } else if layout.partitions[partition].owns(other) {
            // Moving primaries about breaks their balance as soon as one node is more than one away.
            for e in &mut moved.partitions {
                if let Some(at) = e.owners.iter().position(|owner| owner.node == other) {
                    e.owners.swap(0, at);
                }
            }
            let found = held(&moved)[&other].1;
            if f64::from(found) - fair / layout.owners_per_partition() as f64 > 1.001 {
                let error = check(&moved);
                prop_assert!(matches!(error, Err(E::FirstPlaces { .. })), "{error:?}");
            }
        } else {
            // Giving the copies of one node to another one crowds a zone or breaks the balance.
            for e in moved.partitions.iter_mut().filter(|e| e.owns(node) && !e.owns(other)) {
                e.owners.iter_mut().filter(|owner| owner.node == node).for_each(|owner| owner.node = other);
            }
            let is_near = |id: &NodeId| layout.members[id].zone == layout.members[&other].zone;
            let crowded = moved.partitions.iter().any(|e| e.nodes().filter(is_near).count() > zone_limit_of(layout));
            let off = (f64::from(held(&moved)[&other].0) - fair).abs() > 1.001;
            match check(&moved) {
                Err(E::ZoneCrowded { .. }) => prop_assert!(crowded),
                Err(E::Copies { .. }) => prop_assert!(!crowded),
                Err(E::FirstPlaces { .. }) | Ok(()) => prop_assert!(!crowded && !off),
                Err(error) => prop_assert!(false, "{error}"),
            }
        }
    }

    /// A key is in the partition whose tokens surround its own.
    #[test]
    fn partitions_are_ranges_of_tokens(token in any::<u64>(), bits in 0u32..=16) {
        let partitions = 1 << bits;
        let at = hash::partition(token, partitions);
        prop_assert!(u32::from(at.0) < partitions && hash::first_token(at, partitions) <= token);
        let first = hash::first_token(at, partitions);
        prop_assert_eq!(hash::partition(first, partitions), at);
        match at.0.checked_add(1).map(PartitionId).filter(|next| u32::from(next.0) < partitions) {
            Some(next) => prop_assert!(token < hash::first_token(next, partitions)),
            None => prop_assert_eq!(hash::partition(u64::MAX, partitions), at),
        }
        if at.0 > 0 {
            prop_assert_eq!(hash::partition(first - 1, partitions), PartitionId(at.0 - 1));
        }
    }

    /// Fallbacks are all the other owners on the ring, nearest first, each once.
    #[test]
    fn fallbacks_are_all_others_once(members in any_members(10), bits in 0u32..7, copies in 1u8..4, wanted in 0usize..12) {
        let layout = first_layout(input(1 << bits, copies, members)).expect("sound input");
        let holders: BTreeSet<NodeId> = layout.partitions.iter().flat_map(Entry::nodes).collect();
        for partition in layout.partition_ids() {
            let entry = layout.entry(partition).expect("it exists");
            let all = layout.fallbacks(partition, usize::MAX);
            let distinct: BTreeSet<NodeId> = all.iter().copied().collect();
            prop_assert_eq!(distinct.len(), all.len());
            let others: BTreeSet<NodeId> = holders.iter().copied().filter(|&node| !entry.owns(node)).collect();
            prop_assert_eq!(distinct, others);
            prop_assert_eq!(layout.fallbacks(partition, wanted), &all[..wanted.min(all.len())]);
        }
    }
}

fn zone_limit_of(layout: &Layout) -> usize {
    let mut zones: BTreeMap<&str, usize> = BTreeMap::new();
    layout
        .members
        .values()
        .filter(|member| !member.spare)
        .for_each(|member| *zones.entry(&member.zone).or_default() += 1);
    zone_limit(&zones.into_values().collect::<Vec<_>>(), layout.owners_per_partition())
}

#[test]
fn zone_limits() {
    let check =
        |sizes: &[usize], owners: usize, limit: usize| assert_eq!(zone_limit(sizes, owners), limit, "{sizes:?}");
    check(&[1], 1, 1);
    check(&[3], 3, 3);
    check(&[1, 1, 1], 3, 1);
    check(&[5, 5], 3, 2);
    check(&[5, 5], 4, 2);
    check(&[4, 4, 4], 5, 2);
    // A small zone cannot take its part, so the others take more.
    check(&[1, 5], 4, 3);
    check(&[1, 1, 5], 5, 3);
}

#[test]
fn check_finds_a_crowded_zone_and_an_unfair_share() {
    // Two zones of two, two copies: swapping owners across zones keeps the balance and breaks the zones.
    let layout = made(4, 2, &[("a", 1.0), ("a", 1.0), ("b", 1.0), ("b", 1.0)]);
    let mut crowded = layout.clone();
    let (n1, n2, n3, n4) = (NodeId(1), NodeId(2), NodeId(3), NodeId(4));
    for (entry, nodes) in crowded.partitions.iter_mut().zip([[n1, n2], [n2, n1], [n3, n4], [n4, n3]]) {
        entry.owners.iter_mut().zip(nodes).for_each(|(owner, node)| owner.node = node);
    }
    let zone = "a".to_owned();
    assert_eq!(check(&crowded), Err(LayoutError::ZoneCrowded { partition: PartitionId(0), zone, found: 2, limit: 1 }));

    // One away is allowed, both ways; two away is not.
    let with_first = |first: [u64; 4]| {
        let mut layout = made(4, 1, &[("a", 1.0), ("b", 1.0), ("c", 1.0), ("d", 1.0)]);
        layout.partitions.iter_mut().zip(first).for_each(|(entry, node)| entry.owners[0].node = NodeId(node));
        check(&layout)
    };
    assert_eq!(with_first([1, 1, 2, 3]), Ok(()));
    assert_eq!(with_first([1, 1, 1, 2]), Err(LayoutError::Copies { node: n1, found: 3, fair: 1.0 }));
    let mut layout = made(8, 2, &[("a", 1.0), ("b", 1.0)]);
    layout.partitions.iter_mut().for_each(|entry| entry.owners.sort_unstable_by_key(|owner| owner.node));
    assert_eq!(check(&layout), Err(LayoutError::FirstPlaces { node: n1, found: 8, fair: 4.0 }));
}

#[test]
fn first_layout_refuses_bad_input() {
    use LayoutError as E;
    let one = || members(&[("a", 1.0)]);
    let refused = |partitions: u32, copies: u8, members| first_layout(input(partitions, copies, members)).map(|_| ());
    for partitions in [0, 3, 100, PARTITIONS_MAX * 2, u32::MAX] {
        assert_eq!(refused(partitions, 3, one()), Err(E::PartitionCount { found: partitions as usize }));
    }
    assert_eq!(refused(8, 0, one()), Err(E::NoCopies));
    assert_eq!(refused(8, 3, BTreeMap::new()), Err(E::NoOwners { members: 0 }));
    assert_eq!(refused(8, 3, members(&[("a", 0.0)])), Err(E::Weight { node: NodeId(1), weight: 0.0 }));
    let many: Vec<(&str, f64)> = vec![("a", 1.0); MEMBERS_MAX + 1];
    assert_eq!(refused(8, 3, members(&many)), Err(E::MemberCount { found: MEMBERS_MAX + 1 }));
    let mut twins = members(&[("a", 1.0), ("b", 1.0)]);
    twins.get_mut(&NodeId(2)).unwrap().name = "node-1".to_owned();
    let error = refused(8, 3, twins).unwrap_err();
    assert_eq!(error, E::NameTaken { node: NodeId(2), other: NodeId(1), name: "node-1".to_owned() });
    assert_eq!(error.to_string(), "n2 and n1 are both named \"node-1\"; give one of them another name");
}

/// When a node dies, its load falls on whom it shares partitions with, and its primaries on who comes second: on
/// everybody alike, but for those in its own zone, with whom it shares nothing.
#[test]
fn partners_are_mixed() {
    for (partitions, zones, nodes) in [(256u32, 5u64, 5u64), (256, 3, 6), (4096, 5, 20), (1024, 10, 10), (1024, 1, 10)]
    {
        let list: Vec<String> = (0..nodes).map(|node| format!("z{}", node % zones)).collect();
        let list: Vec<(&str, f64)> = list.iter().map(|zone| (zone.as_str(), 1.0)).collect();
        let layout = made(partitions, 3, &list);
        let mut shared: BTreeMap<(NodeId, NodeId), u32> = BTreeMap::new();
        let mut second: BTreeMap<(NodeId, NodeId), u32> = BTreeMap::new();
        for entry in &layout.partitions {
            let nodes: Vec<NodeId> = entry.nodes().collect();
            *second.entry((nodes[0], nodes[1])).or_default() += 1;
            for &a in &nodes {
                nodes.iter().filter(|&&b| b != a).for_each(|&b| *shared.entry((a, b)).or_default() += 1);
            }
        }
        let pairs = nodes * if zones == 1 { nodes - 1 } else { nodes - nodes / zones };
        let near = |found: &BTreeMap<(NodeId, NodeId), u32>, total: u32, away: f64| {
            let fair = f64::from(total) / pairs as f64;
            assert_eq!(found.len() as u64, pairs, "{partitions} x {nodes}: everybody is everybody's partner");
            for (pair, &count) in found {
                let count = f64::from(count);
                assert!((count - fair).abs() <= away, "{partitions} x {nodes}: {pair:?} {count}, fair {fair}");
            }
        };
        near(&shared, partitions * 6, 2.0);
        near(&second, partitions, 3.0);
    }
}

/// Vectors of the reference implementation's own self-test (xxHash 0.8, `sanityCheck`): stored positions must never
/// depend on a library's release.
#[test]
fn tokens_are_xxh3() {
    let mut generator = 2_654_435_761_u64;
    let bytes: Vec<u8> = (0..403)
        .map(|_| {
            let byte = generator.to_be_bytes()[0];
            generator = generator.wrapping_mul(0x9e37_79b1_85eb_ca8d);
            byte
        })
        .collect();
    let seed = HashSeed(0x9e37_79b1_85eb_ca8d);
    let check = |length: usize, plain: u64, seeded: u64| {
        assert_eq!(hash::token(HashSeed(0), &bytes[..length]), plain, "length {length}");
        assert_eq!(hash::token(seed, &bytes[..length]), seeded, "length {length}");
    };
    check(0, 0x2d06_8005_38d3_94c2, 0xa8a6_b918_b2f0_364a);
    check(1, 0xc44b_dff4_074e_ecdb, 0x032b_e332_dd76_6ef8);
    check(6, 0x27b5_6a84_cd2d_7325, 0x8458_9c11_6ab5_9ab9);
    check(12, 0xa713_daf0_dfbb_77e7, 0xe730_3e1b_2336_de0e);
    check(24, 0xa3fe_70bf_9d35_10eb, 0x850e_80fc_35bd_d690);
    check(48, 0x397d_a259_ecba_1f11, 0xadc2_cbaa_44ac_c616);
    check(80, 0xbcde_fbbb_2c47_c90a, 0xc6dd_0cb6_9953_2e73);
    check(195, 0xcd94_217e_e362_ec3a, 0xba68_003d_370c_b3d9);
    check(403, 0xcdeb_804d_65c6_dea4, 0x6259_f6ec_fd64_43fd);
}
