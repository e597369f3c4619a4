//! Fewest moves: against all layouts where they can be tried, against a bound of separate code where not.

use std::collections::BTreeMap;

use super::*;
use crate::ring::zone_limit;

#[allow(clippy::cast_possible_truncation, reason = "shares are at most 65,536")]
fn up(share: f64) -> u32 {
    (share - 1e-6).ceil() as u32
}

#[allow(clippy::cast_possible_truncation, reason = "shares are at most 65,536")]
fn down(share: f64) -> u32 {
    (share + 1e-6).floor() as u32
}

/// The fewest and the most copies and primaries of each node after changes: rounded fair shares, wider by what a node
/// was away from its own before, unless they rebalance.
fn limits(before: &Layout, after: &Layout, changes: &[Change]) -> Vec<[(u32, u32); 2]> {
    let held = held(before);
    let was_fair = fair_shares(&before.members, before.partition_count(), before.copies);
    let owners_of = |layout: &Layout| u32::try_from(layout.owners_per_partition()).unwrap();
    let (owners_before, owners) = (owners_of(before), owners_of(after));
    let first = |(least, most): (u32, u32), owners: u32| (least / owners, most.div_ceil(owners));
    let wider = |(least, most): (u32, u32), had: (u32, u32), found: u32| {
        (least.saturating_sub(had.0.saturating_sub(found)), most + found.saturating_sub(had.1))
    };
    let heir_of = |node: NodeId| {
        changes.iter().find_map(|change| match change {
            Change::Replace { old, new } if *new == node => Some(*old),
            _ => None,
        })
    };
    let of = |(node, share): (NodeId, f64)| {
        let was = heir_of(node).unwrap_or(node);
        let (copies, primaries) = held.get(&was).copied().unwrap_or_default();
        let old = was_fair.get(&was).map_or((0, 0), |share| (down(*share), up(*share)));
        let new = (down(share), up(share));
        if changes.contains(&Change::Rebalance) {
            return [new, first(new, owners)];
        }
        let old_first = first(wider(old, old, copies), owners_before);
        let new = wider(new, old, copies);
        [new, wider(first(new, owners), old_first, primaries)]
    };
    fair_shares(&after.members, after.partition_count(), after.copies).into_iter().map(of).collect()
}

/// The fewest moves to any layout within limits on copies and on primaries, by trying all of them: for every way to
/// give out the copies and primaries so far, the fewest moves.
fn fewest_by_force(before: &Layout, after: &Layout, limits: &[[(u32, u32); 2]]) -> usize {
    let owning: Vec<(NodeId, &Member)> =
        after.members.iter().filter(|(_, member)| !member.spare).map(|(&node, member)| (node, member)).collect();
    let owners = after.owners_per_partition();
    let mut zones: BTreeMap<&str, usize> = BTreeMap::new();
    owning.iter().for_each(|(_, member)| *zones.entry(&member.zone).or_default() += 1);
    let limit = zone_limit(&zones.values().copied().collect::<Vec<_>>(), owners);
    let fits = |set: &u32| {
        let chosen =
            |zone: &str| (0..owning.len()).filter(|&at| set >> at & 1 == 1 && owning[at].1.zone == zone).count();
        set.count_ones() as usize == owners && zones.keys().all(|zone| chosen(zone) <= limit)
    };
    let sets: Vec<u32> = (0..1 << owning.len()).filter(fits).collect();
    let mut found: BTreeMap<Vec<(u32, u32)>, usize> = BTreeMap::from([(vec![(0, 0); owning.len()], 0)]);
    for entry in &before.partitions {
        let mut next: BTreeMap<Vec<(u32, u32)>, usize> = BTreeMap::new();
        for (counts, moves) in &found {
            for &set in &sets {
                let in_set = |at: &usize| set >> at & 1 == 1;
                let new = (0..owning.len()).filter(in_set).filter(|&at| !entry.owns(owning[at].0)).count();
                for first in (0..owning.len()).filter(in_set) {
                    let mut counts = counts.clone();
                    (0..owning.len()).filter(in_set).for_each(|at| counts[at].0 += 1);
                    counts[first].1 += 1;
                    let over = |(&(all, first), limit): (&(u32, u32), &[(u32, u32); 2])| {
                        all > limit[0].1 || first > limit[1].1
                    };
                    if !counts.iter().zip(limits).any(over) {
                        let fewest = next.entry(counts).or_insert(usize::MAX);
                        *fewest = (*fewest).min(moves + new);
                    }
                }
            }
        }
        found = next;
    }
    let enough = |counts: &Vec<(u32, u32)>| {
        counts.iter().zip(limits).all(|(&(all, first), limit)| all >= limit[0].0 && first >= limit[1].0)
    };
    found.into_iter().filter(|(counts, _)| enough(counts)).map(|found| found.1).min().expect("some layout is fair")
}

/// A bound that looks at the nodes one by one: however copies are given out fairly, a node that ends with more than it had
/// receives the difference. The cheapest way to reach the total raises nodes to what they had first.
fn fewest_by_counting(before: &Layout, after: &Layout) -> u64 {
    let held = held(before);
    let shares = fair_shares(&after.members, after.partition_count(), after.copies);
    let mut received = 0u64;
    let mut total = 0u64;
    let mut free = 0u64;
    for (node, share) in &shares {
        let had = u64::from(held.get(node).map_or(0, |held| held.0));
        let (least, most) = (u64::from(down(*share)), u64::from(up(*share)));
        total += least;
        received += least.saturating_sub(had);
        free += most.min(had).saturating_sub(least);
    }
    let missing = u64::from(after.partition_count()) * after.owners_per_partition() as u64 - total;
    received + missing.saturating_sub(free)
}

fn reversed(layout: &Layout, changes: &[Change]) -> (Layout, Vec<Change>) {
    let other = |node: NodeId| NodeId(10_000 - node.0);
    let mut layout = layout.clone();
    layout.members = layout.members.into_iter().map(|(node, member)| (other(node), member)).collect();
    layout.partitions.iter_mut().flat_map(|entry| &mut entry.owners).for_each(|owner| owner.node = other(owner.node));
    let mut changes = changes.to_vec();
    for change in &mut changes {
        match change {
            Change::Add { node }
            | Change::Remove { node }
            | Change::RemoveDead { node }
            | Change::Weight { node, .. }
            | Change::Zone { node, .. } => *node = other(*node),
            Change::Replace { old, new } => (*old, *new) = (other(*old), other(*new)),
            Change::Copies { .. } | Change::Rebalance => {}
        }
    }
    (layout, changes)
}

/// What holds of every plan that is not refused.
fn check_plan(layout: &Layout, changes: &[Change]) -> Option<(Plan, Layout)> {
    let plan = plan(layout, changes).ok()?;
    let target = target(layout, &plan);
    assert_eq!(plan.moves.len(), moved(layout, &target), "moves are what differs");
    assert_eq!(plan.gap(), 0, "{changes:?}: {} moves, bound {}\n{layout}", plan.moves.len(), plan.minimum);
    assert!(plan.minimum <= plan.moves.len() as u64, "the bound is one");
    assert!(fewest_by_counting(layout, &target) <= plan.minimum, "a weaker bound is lower");
    assert_eq!(super::plan(layout, changes).as_ref(), Ok(&plan), "the same input makes the same plan");
    let (other_layout, other_changes) = reversed(layout, changes);
    let other = super::plan(&other_layout, &other_changes).expect("numbers do not matter");
    assert_eq!(other.moves.len(), plan.moves.len(), "{changes:?}\n{layout}");
    Some((plan, target))
}

/// What holds of every plan for a layout that may be uneven.
fn check_uneven(layout: &Layout, changes: &[Change], by_force: bool) {
    let Ok(plan) = plan(layout, changes) else { return };
    let target = plan.target(layout, Epoch(layout.epoch.0 + 1)).expect("the plan is for this layout");
    assert_eq!(check(&target), Ok(()));
    assert_eq!(plan.moves.len(), moved(layout, &target), "moves are what differs");
    assert_eq!(plan.gap(), 0, "{changes:?}: {} moves, bound {}\n{layout}", plan.moves.len(), plan.minimum);
    if plan.partitions.is_empty() && plan.moves.is_empty() {
        return;
    }
    let limits = limits(layout, &target, changes);
    let held = held(&target);
    for (node, limit) in target.members.iter().filter(|(_, member)| !member.spare).zip(&limits) {
        let (copies, first) = held[node.0];
        assert!(
            (limit[0].0..=limit[0].1).contains(&copies),
            "{}: {copies} copies, {limit:?}\n{layout}\n{target}",
            node.0
        );
        assert!((limit[1].0..=limit[1].1).contains(&first), "{}: {first} first, {limit:?}\n{layout}\n{target}", node.0);
    }
    if by_force {
        assert_eq!(plan.moves.len(), fewest_by_force(layout, &target, &limits), "{changes:?}\n{layout}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// No fair layout is reached with fewer moves: all of them are tried. Primaries cost nothing.
    #[test]
    fn no_layout_is_nearer(
        members in any_members(5, 4),
        bits in 0u32..3,
        copies in 1u8..4,
        chosen in prop::collection::vec(any_change(), 1..4),
    ) {
        let layout = layout(1 << bits, copies, &members);
        let changes = changes(&layout, &chosen);
        if let Some((plan, target)) = check_plan(&layout, &changes) {
            let fewest = fewest_by_force(&layout, &target, &limits(&layout, &target, &changes));
            prop_assert_eq!(plan.moves.len(), fewest, "{:?}\n{}", changes, layout);
        }
    }

    /// After a cancel a change moves what it must: nobody ends further from a fair share, and no such layout is nearer.
    #[test]
    fn a_change_of_an_uneven_layout_moves_what_it_must(
        members in any_members(5, 4),
        bits in 0u32..3,
        copies in 1u8..4,
        first in prop::collection::vec(any_change(), 1..3),
        done in any::<prop::sample::Index>(),
        chosen in prop::collection::vec(any_change(), 1..3),
        rebalances in prop::bool::weighted(0.2),
    ) {
        let layout = layout(1 << bits, copies, &members);
        let Ok(begun) = plan(&layout, &changes(&layout, &first)) else { return Ok(()) };
        let done = done.index(begun.partitions.len() + 1);
        let uneven = cancelled(&layout, &begun.changes, done);
        let mut changes = changes(&uneven, &chosen);
        if rebalances {
            changes.push(Change::Rebalance);
        }
        check_uneven(&uneven, &changes, true);
    }

    /// The same for larger ones, where the bound of separate code is the proof; and a rebalance ends even.
    #[test]
    fn chains_of_cancelled_plans_meet_the_bound(
        members in any_members(14, 6),
        bits in 3u32..9,
        copies in 1u8..6,
        steps in prop::collection::vec((prop::collection::vec(any_change(), 1..4), any::<prop::sample::Index>()), 1..5),
    ) {
        let mut layout = layout(1 << bits, copies, &members);
        for (step, done) in &steps {
            let changes = changes(&layout, step);
            check_uneven(&layout, &changes, false);
            let Ok(begun) = plan(&layout, &changes) else { continue };
            layout = cancelled(&layout, &changes, done.index(begun.partitions.len() + 1));
        }
        if let Some((_, target)) = check_plan(&layout, &[Change::Rebalance]) {
            prop_assert!(target.settled && crate::ring::Balance::of(&target).is_even());
        }
    }

    /// Larger ones, several changes after each other, meet the bound of separate code.
    #[test]
    fn chains_of_plans_meet_the_bound(
        members in any_members(14, 6),
        bits in 3u32..9,
        copies in 1u8..6,
        steps in prop::collection::vec(prop::collection::vec(any_change(), 1..4), 1..5),
    ) {
        let mut layout = layout(1 << bits, copies, &members);
        for step in &steps {
            let changes = changes(&layout, step);
            if let Some((_, target)) = check_plan(&layout, &changes) {
                layout = target;
            }
        }
    }
}

/// Layouts of the sizes that are promised to be planned exactly. The counting bound is separate code, and it is met where
/// zones do not bind.
#[test]
fn large_layouts_meet_both_bounds() {
    for (partitions, nodes, zones) in [(4096u32, 100u64, 1u64), (4096, 100, 5), (1024, 30, 30)] {
        let zone = |node: u64| format!("z{}", node % zones);
        let members: Vec<(String, f64, bool)> =
            (0..=nodes).map(|node| (zone(node), 1.0 + (node % 3) as f64, node == nodes)).collect();
        let members: Vec<(&str, f64, bool)> =
            members.iter().map(|(zone, weight, spare)| (zone.as_str(), *weight, *spare)).collect();
        let layout = layout(partitions, 3, &members);
        let spare = NodeId(nodes + 1);
        for changes in [
            vec![Change::Add { node: spare }],
            vec![Change::Remove { node: NodeId(7) }],
            vec![Change::RemoveDead { node: NodeId(8) }],
            vec![Change::Replace { old: NodeId(9), new: spare }],
            vec![Change::Weight { node: NodeId(10), weight: 2.5 }],
            vec![Change::Copies { copies: 4 }],
            vec![Change::Copies { copies: 2 }],
            vec![
                Change::Add { node: spare },
                Change::Remove { node: NodeId(3) },
                Change::Weight { node: NodeId(4), weight: 9.0 },
            ],
        ] {
            let Ok(plan) = plan(&layout, &changes) else { continue };
            let target = target(&layout, &plan);
            assert_eq!(plan.gap(), 0, "{changes:?}");
            if zones == 1 {
                assert_eq!(plan.moves.len() as u64, fewest_by_counting(&layout, &target), "{changes:?}");
            }
        }
    }
}
