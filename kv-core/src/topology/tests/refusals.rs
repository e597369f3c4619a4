//! What is refused, and with which remedy.

use super::*;
use crate::topology::{NoticeKind, Refusal, RefusalKind};

/// Three nodes in two zones, and two spares.
fn small() -> Layout {
    let list = [("a", 1.0, false), ("a", 1.0, false), ("b", 2.0, false), ("b", 1.0, true), ("c", 1.0, true)];
    layout(16, 2, &list)
}

fn refused(layout: &Layout, changes: &[Change]) -> Refusal {
    plan(layout, changes).expect_err("refused")
}

#[test]
fn wrong_changes_are_refused_with_a_remedy() {
    let layout = small();
    let check = |changes: &[Change], kind: RefusalKind, says: &str| {
        let refusal = refused(&layout, changes);
        assert_eq!(refusal.kind, kind, "{changes:?}: {refusal}");
        assert!(refusal.to_string().contains(says), "{changes:?}: {refusal}");
        assert!(!refusal.remedy.is_empty(), "{changes:?}");
    };
    let node = NodeId;
    check(&[], RefusalKind::Invalid, "no change is given");
    check(&[Change::Add { node: node(9) }], RefusalKind::NotFound, "n9 is no member");
    check(&[Change::Add { node: node(1) }], RefusalKind::Precondition, "n1 owns partitions already");
    check(&[Change::Replace { old: node(4), new: node(5) }], RefusalKind::Precondition, "n4 is a spare");
    check(&[Change::Replace { old: node(1), new: node(2) }], RefusalKind::Precondition, "n2 owns partitions already");
    let twice = [Change::Add { node: node(4) }, Change::Remove { node: node(4) }];
    check(&twice, RefusalKind::Invalid, "two of the changes add, remove or replace n4");
    check(&[Change::Replace { old: node(1), new: node(1) }], RefusalKind::Invalid, "n1");
    check(&[Change::Weight { node: node(1), weight: 0.0 }], RefusalKind::Invalid, "weight 0");
    check(&[Change::Weight { node: node(1), weight: f64::NAN }], RefusalKind::Invalid, "weight NaN");
    check(&[Change::Zone { node: node(1), zone: "a b".to_owned() }], RefusalKind::Invalid, "zone \"a b\"");
    check(&[Change::Copies { copies: 0 }], RefusalKind::Invalid, "0 copies");
    check(&[Change::Remove { node: node(3) }], RefusalKind::Zones, "add a node in zone b first");
    let all = [1, 2, 3].map(|number| Change::Remove { node: node(number) });
    check(&all, RefusalKind::Nodes, "no node would be left");
    check(
        &all[1..],
        RefusalKind::Nodes,
        "1 nodes are left for 2 copies; add a node first or in the same plan, or set copies to 1",
    );
    // The same with what the remedies name.
    let mut rescued = all[1..].to_vec();
    rescued.push(Change::Add { node: node(4) });
    assert!(plan(&layout, &rescued).is_ok());
    rescued[2] = Change::Copies { copies: 1 };
    assert!(plan(&layout, &rescued).is_ok());
}

#[test]
fn the_last_copies_are_not_given_up() {
    let layout = layout(16, 1, &[("a", 1.0, false), ("a", 1.0, false)]);
    let refusal = refused(&layout, &[Change::RemoveDead { node: NodeId(2) }]);
    assert_eq!(refusal.kind, RefusalKind::Data);
    assert!(refusal.reason.contains("n2 holds the only copies of 8 partitions"), "{refusal}");
    // A node that lives can be read.
    let plan = plan(&layout, &[Change::Remove { node: NodeId(2) }]).unwrap();
    assert!(plan.moves.len() == 8 && plan.moves.iter().all(|step| step.source == NodeId(2)));
}

#[test]
fn a_plan_fits_one_layout_only() {
    let layout = small();
    let plan = plan(&layout, &[Change::Add { node: NodeId(4) }]).unwrap();
    assert!(plan.target(&layout, Epoch(4)).is_ok());
    let mut later = layout.clone();
    later.epoch = Epoch(4);
    assert_eq!(plan.target(&later, Epoch(5)).unwrap_err().kind, RefusalKind::Stale);
    let mut other = layout.clone();
    other.cluster = ClusterId(8);
    assert_eq!(plan.target(&other, Epoch(4)).unwrap_err().kind, RefusalKind::Stale);
    // Whatever is altered shows in the hash.
    let altered = |alter: &dyn Fn(&mut Plan)| {
        let mut plan = plan.clone();
        alter(&mut plan);
        let refusal = plan.target(&layout, Epoch(4)).unwrap_err();
        assert!(refusal.reason.contains("other contents"), "{refusal}");
    };
    altered(&|plan| plan.copies = 1);
    altered(&|plan| plan.moves.truncate(1));
    altered(&|plan| plan.partitions[0].owners.reverse());
    altered(&|plan| plan.members.get_mut(&NodeId(1)).unwrap().weight = 2.0);
    altered(&|plan| plan.changes.clear());
    // An altered plan with a hash to match is still no sound layout.
    let mut forged = plan.clone();
    forged.partitions[0].owners = vec![NodeId(1), NodeId(2)];
    forged.hash = forged.computed_hash();
    assert!(forged.target(&layout, Epoch(4)).unwrap_err().reason.contains("no sound layout"));
    let text = plan.hash.to_string();
    assert_eq!((text.len(), text.parse()), (16, Ok(plan.hash)));
    assert!(
        "8f3a".parse::<crate::topology::PlanHash>().is_err()
            && "+00000000000000f".parse::<crate::topology::PlanHash>().is_err()
    );
}

#[test]
fn a_running_operation_is_named() {
    let layout = small();
    let plan = plan(&layout, &[Change::Add { node: NodeId(4) }]).unwrap();
    let mut running = layout.clone();
    let mut operation = plan.operation(&layout).unwrap();
    let entry = running
        .partitions
        .iter_mut()
        .zip(0u16..)
        .find(|(_, at)| operation.partitions.contains_key(&crate::types::PartitionId(*at)));
    let (entry, at) = entry.expect("something moves");
    let goal = operation.partitions.remove(&crate::types::PartitionId(at)).unwrap();
    let owners = goal.owners.iter().map(|&node| crate::ring::Owner { node, since: entry.changed }).collect();
    let receivers = goal.sources.iter().map(|(&node, &source)| crate::ring::Receiver { node, source }).collect();
    entry.joint = Some(crate::ring::Joint { epoch: entry.changed, owners, receivers, sources_min: 1 });
    running.settled = false;
    let refusal = super::plan(&running, &[Change::Add { node: NodeId(5) }]).unwrap_err();
    assert!(matches!(refusal.kind, RefusalKind::Running), "{refusal}");
}

/// The reasons for which less moves than one might expect, and what would help.
#[test]
fn a_plan_says_why_it_moves_less() {
    let says = |layout: &Layout, changes: &[Change], moves: usize, text: &str, help: &str| {
        let plan = plan(layout, changes).unwrap();
        assert_eq!(plan.moves.len(), moves, "{changes:?}");
        let preview = crate::topology::preview(layout, &plan, &Default::default()).unwrap();
        let less = preview.notices.iter().filter(|notice| notice.kind == NoticeKind::Less);
        let told: Vec<String> = less.map(|notice| format!("{} | {}", notice.text, notice.help)).collect();
        assert!(told.iter().any(|told| told.contains(text) && told.contains(help)), "{changes:?}: {told:#?}");
    };
    let three = layout(64, 3, &[("a", 1.0, false), ("a", 1.0, false), ("a", 1.0, false), ("a", 1.0, true)]);
    let weight = |node: u64, weight: f64| Change::Weight { node: NodeId(node), weight };
    says(&three, &[weight(1, 5.0)], 0, "every node holds every partition", "add nodes");
    says(&three, &[Change::Copies { copies: 5 }], 0, "5 copies are wanted, and 3 are kept", "add 2 nodes");
    says(&three, &[Change::Copies { copies: 2 }], 0, "drops 1 of its 3 copies", "");
    says(&three, &[Change::Remove { node: NodeId(4) }], 0, "own no partitions", "");
    let add = [Change::Add { node: NodeId(4) }, weight(4, 1000.0)];
    says(&three, &add, 64, "no node holds more than one copy of each of the 64", "add more nodes");
    let add = [Change::Add { node: NodeId(4) }, weight(4, 0.001)];
    says(&three, &add, 0, "less than one", "more weight");
    let five = layout(64, 3, &[("a", 1.0, false); 5]);
    says(&five, &[weight(1, 1.0001)], 0, "its fair share already", "greater change");
    // Each zone holds a copy of everything, so only the third one's node gets relief.
    let zones = layout(64, 3, &[("a", 1.0, false), ("b", 1.0, false), ("c", 1.0, false), ("c", 1.0, true)]);
    says(&zones, &[Change::Add { node: NodeId(4) }], 32, "relieves only the 1 other nodes of zone c", "every zone");
}
