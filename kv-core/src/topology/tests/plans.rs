//! Single plans, as people would check them on request.

use super::*;
use crate::topology::RefusalKind;
use crate::topology::preview::{Facts, NodeFacts, Size, preview};
use crate::types::PartitionId;

#[test]
fn a_fourth_node_takes_exactly_its_share() {
    let layout = layout(256, 3, &[("a", 1.0, false), ("b", 1.0, false), ("c", 1.0, false), ("d", 1.0, true)]);
    let plan = plan(&layout, &[Change::Add { node: NodeId(4) }]).unwrap();
    assert_eq!((plan.moves.len(), plan.minimum, plan.parent), (192, 192, Epoch(3)));
    let target = target(&layout, &plan);
    assert!(held(&target).values().all(|&counts| counts == (192, 64)), "{target}");
    // And back: the same moves, the other way.
    let back = super::plan(&target, &[Change::Remove { node: NodeId(4) }]).unwrap();
    assert_eq!((back.moves.len(), back.minimum), (192, 192));
}

fn facts(layout: &Layout, bytes: u64) -> Facts {
    let size = |partition: PartitionId| (partition, Size { keys: 10 + u64::from(partition.0), bytes });
    Facts { sizes: layout.partition_ids().map(size).collect(), nodes: BTreeMap::new(), bytes_per_second: 1000 }
}

/// Every figure of a plan adds up.
#[test]
fn a_preview_adds_up() {
    let list = [("a", 1.0, false), ("b", 1.0, false), ("c", 2.0, false), ("a", 1.0, false), ("b", 3.0, true)];
    let layout = layout(64, 3, &list);
    let plan = plan(&layout, &[Change::Add { node: NodeId(5) }]).unwrap();
    let facts = facts(&layout, 100);
    let preview = preview(&layout, &plan, &facts).unwrap();
    let moves = u32::try_from(plan.moves.len()).unwrap();
    assert_eq!(preview.size.bytes, u64::from(moves) * 100);
    assert_eq!(preview.size.keys, plan.moves.iter().map(|step| 10 + u64::from(step.partition.0)).sum::<u64>());
    assert_eq!(preview.links.values().map(|link| link.moves).sum::<u32>(), moves);
    assert_eq!(preview.links.values().map(|link| link.size.keys).sum::<u64>(), preview.size.keys);
    assert_eq!(preview.nodes.iter().map(|node| node.moves.0).sum::<u32>(), moves);
    assert_eq!(preview.nodes.iter().map(|node| node.moves.1).sum::<u32>(), moves);
    for node in &preview.nodes {
        let (before, after) = &node.holds;
        assert_eq!(before.copies + node.moves.0, after.copies + node.moves.1, "{}", node.name);
        assert_eq!(node.disk_needed, u64::from(node.moves.0) * 100);
        assert_eq!(after.size.bytes, u64::from(after.copies) * 100);
        assert!((f64::from(after.copies) - after.fair).abs() < 1.0);
    }
    let whole = |ownership: f64| assert!((ownership - 1.0).abs() < 1e-9);
    whole(preview.nodes.iter().map(|node| node.ownership.0).sum());
    whole(preview.nodes.iter().map(|node| node.ownership.1).sum());
    let zones: Vec<(&str, (u32, u32), u32)> =
        preview.zones.iter().map(|(name, zone)| (name.as_str(), zone.nodes, zone.copies.1)).collect();
    assert_eq!(zones, [("a", (2, 2), 64), ("b", (1, 2), 64), ("c", (1, 1), 64)]);
    let safety = preview.safety;
    assert_eq!((safety.copies_min, safety.nodes, safety.zone), (3, (1, 1, 1), (true, true, true)));
    let slowest = preview.estimate.unwrap();
    let given = |source: NodeId| plan.moves.iter().filter(|step| step.source == source).count() as u64 * 100;
    assert_eq!((slowest.bytes, slowest.seconds), (given(slowest.source), given(slowest.source).div_ceil(1000)));
    assert!(layout.members.keys().all(|&node| given(node) <= slowest.bytes));
    assert_eq!(preview.undo, [Change::Remove { node: NodeId(5) }]);
    assert_eq!((preview.unknown, preview.refusals.len()), (0, 0));
}

#[test]
fn a_full_disk_is_refused_and_a_bad_source_is_named() {
    let layout = layout(64, 2, &[("a", 1.0, false), ("a", 1.0, false), ("a", 1.0, false), ("a", 1.0, true)]);
    let plan = plan(&layout, &[Change::Add { node: NodeId(4) }]).unwrap();
    let mut facts = facts(&layout, 1000);
    let node = |disk_free: u64, latency_p99_us: u64, down: bool| NodeFacts {
        down,
        latency_p99_us,
        disk_free: Some(disk_free),
    };
    facts.nodes.insert(NodeId(1), node(1 << 40, 900, true));
    facts.nodes.insert(NodeId(2), node(1 << 40, 9700, false));
    facts.nodes.insert(NodeId(3), node(1 << 40, 900, false));
    facts.nodes.insert(NodeId(4), node(32_000, 900, false));
    let refused = preview(&layout, &plan, &facts).unwrap();
    assert_eq!(refused.refusals[0].kind, RefusalKind::Disk);
    assert!(refused.refusals[0].reason.starts_with("n4 would get 32000 bytes"), "{}", refused.refusals[0]);
    let told: Vec<&str> = refused.notices.iter().map(|notice| notice.text.as_str()).collect();
    assert!(told[0].starts_with("n1 is down") && told[1].starts_with("n2 is slow now (p99 9 ms)"), "{told:?}");
    facts.nodes.insert(NodeId(4), node(40_000, 900, false));
    assert_eq!(preview(&layout, &plan, &facts).unwrap().refusals, []);
    // Nothing of this is part of the plan.
    facts.sizes.clear();
    let unknown = preview(&layout, &plan, &facts).unwrap();
    assert_eq!((unknown.unknown, unknown.size, unknown.estimate), (64, Size::default(), None));
}

#[test]
fn an_heir_takes_exactly_the_places_that_it_inherits() {
    let list = [("a", 1.0, false), ("a", 3.0, false), ("b", 1.0, false), ("b", 1.0, false), ("a", 9.0, true)];
    let layout = layout(64, 2, &list);
    let plan = plan(&layout, &[Change::Replace { old: NodeId(2), new: NodeId(5) }]).unwrap();
    let target = target(&layout, &plan);
    for (before, after) in layout.partitions.iter().zip(&target.partitions) {
        let heir = |node: NodeId| if node == NodeId(2) { NodeId(5) } else { node };
        assert!(before.nodes().map(heir).eq(after.nodes()), "{before:?} became {after:?}");
    }
    assert_eq!((target.members[&NodeId(5)].weight, target.members[&NodeId(2)].spare), (3.0, true));
    assert!(plan.moves.iter().all(|step| step.from == Some(NodeId(2)) && step.source == NodeId(2)));
}

#[test]
fn a_dead_node_is_never_a_source() {
    let layout = layout(256, 3, &[("a", 1.0, false); 6]);
    let plan = plan(&layout, &[Change::RemoveDead { node: NodeId(3) }]).unwrap();
    let target = target(&layout, &plan);
    assert!(!target.members.contains_key(&NodeId(3)));
    assert!(plan.moves.iter().all(|step| step.from == Some(NodeId(3)) && step.source != NodeId(3)));
    let mut read: BTreeMap<NodeId, usize> = BTreeMap::new();
    for step in &plan.moves {
        assert!(layout.entry(step.partition).unwrap().owns(step.source), "a source holds the partition");
        *read.entry(step.source).or_default() += 1;
    }
    let (least, most) = (read.values().min().unwrap(), read.values().max().unwrap());
    assert!(read.len() == 5 && most - least <= 2, "reading is spread: {read:?}");
}

#[test]
fn more_copies_are_created_and_fewer_are_dropped() {
    let layout = layout(64, 2, &[("a", 1.0, false); 5]);
    let plan = plan(&layout, &[Change::Copies { copies: 3 }]).unwrap();
    assert_eq!((plan.moves.len(), plan.moves.iter().filter(|step| step.from.is_none()).count()), (64, 64));
    let target = target(&layout, &plan);
    let back = super::plan(&target, &[Change::Copies { copies: 2 }]).unwrap();
    assert_eq!((back.moves.len(), back.partitions.len()), (0, 64));
}

fn spread(layout: &Layout) -> Vec<u32> {
    held(layout).into_values().map(|held| held.0).collect()
}

/// Three nodes and two spares, one of which got half of what it was to get before that was cancelled.
fn uneven() -> Layout {
    let list = [("a", 1.0, false), ("b", 1.0, false), ("c", 1.0, false), ("d", 1.0, true), ("e", 1.0, true)];
    let even = layout(256, 3, &list);
    let uneven = cancelled(&even, &[Change::Add { node: NodeId(4) }], 96);
    assert!(!uneven.settled && check(&uneven).is_ok());
    assert_eq!(spread(&uneven)[3], 96, "half of its fair share");
    uneven
}

#[test]
fn removing_an_empty_spare_moves_nothing_after_a_cancel() {
    let uneven = uneven();
    for change in [Change::Remove { node: NodeId(5) }, Change::RemoveDead { node: NodeId(5) }] {
        let plan = plan(&uneven, &[change]).unwrap();
        assert_eq!((plan.moves.len(), plan.partitions.len(), plan.minimum), (0, 0, 0));
        let target = plan.target(&uneven, Epoch(9)).unwrap();
        assert!(!target.settled && check(&target).is_ok(), "it is as uneven as before, and says so");
        let preview = preview(&uneven, &plan, &Facts::default()).unwrap();
        let told: Vec<String> = preview.notices.iter().map(|it| format!("{} | {}", it.text, it.help)).collect();
        assert!(
            told.iter().any(|it| it.contains("n4 holds 96 copies of its fair share of 192 | rebalance")),
            "{told:?}"
        );
    }
}

#[test]
fn a_removal_moves_what_the_node_holds_and_no_more() {
    let uneven = uneven();
    let before = spread(&uneven);
    let plan = plan(&uneven, &[Change::Remove { node: NodeId(4) }]).unwrap();
    assert_eq!((plan.moves.len(), plan.minimum), (96, 96));
    assert!(plan.moves.iter().all(|step| step.from == Some(NodeId(4))));
    let target = plan.target(&uneven, Epoch(9)).unwrap();
    assert!(target.settled, "the others hold everything again: {before:?} became {:?}", spread(&target));
    // The fifth is added: it gets its fair share, and no other node is brought nearer to its own than that demands.
    let plan = super::plan(&uneven, &[Change::Add { node: NodeId(5) }]).unwrap();
    let target = plan.target(&uneven, Epoch(9)).unwrap();
    let after = spread(&target);
    assert!(plan.moves.iter().all(|step| step.to == NodeId(5)), "nobody else gets anything");
    assert!(after[4] == 153 && after[3] >= 57, "{before:?} became {after:?}");
    assert_eq!(plan.moves.len(), 153);
}

#[test]
fn an_heir_inherits_the_unevenness_too() {
    let uneven = uneven();
    let plan = plan(&uneven, &[Change::Replace { old: NodeId(4), new: NodeId(5) }]).unwrap();
    assert_eq!((plan.moves.len(), plan.minimum), (96, 96));
    assert!(plan.moves.iter().all(|step| (step.from, step.to) == (Some(NodeId(4)), NodeId(5))));
}

#[test]
fn a_rebalance_evens_out_with_the_fewest_moves() {
    let uneven = uneven();
    let plan = plan(&uneven, &[Change::Rebalance]).unwrap();
    assert_eq!((plan.moves.len(), plan.minimum), (96, 96));
    let target = target(&uneven, &plan);
    assert_eq!(spread(&target), [192, 192, 192, 192, 0]);
    // And it is there at once if asked again.
    let again = super::plan(&target, &[Change::Rebalance]).unwrap();
    assert_eq!((again.moves.len(), again.partitions.len()), (0, 0));
    // With weights: what a cancelled change of weight left.
    let heavy = cancelled(&target, &[Change::Weight { node: NodeId(1), weight: 4.0 }], 20);
    assert!(!heavy.settled && (heavy.members[&NodeId(1)].weight - 1.0).abs() < 1e-9);
    let plan = super::plan(&heavy, &[Change::Rebalance]).unwrap();
    assert!(plan.moves.len() as u64 == plan.minimum && !plan.moves.is_empty());
    assert_eq!(spread(&super::target(&heavy, &plan)), [192, 192, 192, 192, 0]);
    // Another weight on the uneven layout moves what it must; both together end even.
    let weight = Change::Weight { node: NodeId(1), weight: 2.0 };
    let both = super::plan(&heavy, &[weight, Change::Rebalance]).unwrap();
    super::target(&heavy, &both);
}

#[test]
fn a_cancelled_change_of_copies_is_evened_out() {
    let layout = layout(64, 2, &[("a", 1.0, false); 5]);
    let more = cancelled(&layout, &[Change::Copies { copies: 3 }], 20);
    let balance = crate::ring::Balance::of(&more);
    assert_eq!((more.settled, balance.extra, balance.lacking), (false, 20, 0));
    let plan = plan(&more, &[Change::Rebalance]).unwrap();
    assert_eq!(plan.gap(), 0);
    assert!(crate::ring::Balance::of(&target(&more, &plan)).is_even());
    let three = target(&layout, &super::plan(&layout, &[Change::Copies { copies: 3 }]).unwrap());
    let less = cancelled(&three, &[Change::Copies { copies: 2 }], 20);
    let balance = crate::ring::Balance::of(&less);
    assert_eq!((less.settled, balance.lacking), (false, 20));
    let plan = super::plan(&less, &[Change::Rebalance]).unwrap();
    assert!(plan.moves.len() >= 20 && plan.gap() == 0);
    target(&less, &plan);
}
