//! Changes survive the wire, requests are validated once, and answers hold all that a plan says.

use std::collections::BTreeMap;

use kv_core::error::Kind;
use kv_core::ring::{FirstLayout, Layout, Member, first_layout};
use kv_core::topology::Change;
use kv_core::types::{ClusterId, Epoch, HashSeed, NodeId, StoreId};
use kv_proto::plan::{CHANGES_MAX, PlanQuestion, answer};
use kv_proto::v1;

/// Four nodes, the last one a spare.
fn layout() -> Layout {
    let member = |id: u64| Member {
        name: format!("n{id}"),
        zone: format!("z{}", id % 2),
        weight: 1.0,
        store: StoreId(id),
        spare: id == 4,
    };
    let members: BTreeMap<NodeId, Member> = (1..=4).map(|id| (NodeId(id), member(id))).collect();
    let (cluster, seed) = (ClusterId(7), HashSeed(42));
    first_layout(FirstLayout { cluster, seed, epoch: Epoch(5), copies: 2, partitions: 16, members }).expect("sound")
}

fn every_change() -> Vec<Change> {
    let node = NodeId(4);
    vec![
        Change::Add { node },
        Change::Remove { node },
        Change::RemoveDead { node },
        Change::Replace { old: NodeId(1), new: node },
        Change::Weight { node, weight: 2.5 },
        Change::Zone { node, zone: "rack/7".to_owned() },
        Change::Copies { copies: 255 },
        Change::Rebalance,
    ]
}

#[test]
fn every_change_survives_the_wire() {
    for change in every_change() {
        let wire = v1::Change::from(&change);
        assert_eq!(Change::try_from(wire), Ok(change));
    }
}

#[test]
fn wrong_requests_name_the_field_and_the_limit() {
    let layout = layout();
    let add = || vec![v1::Change::from(&Change::Add { node: NodeId(4) })];
    let size = |partition: u32| v1::PartitionSize { partition, keys: 1, bytes: 1 };
    let check = |request: v1::PlanRequest, says: &str| {
        let error = PlanQuestion::from_wire(request, &layout).expect_err(says);
        assert!(error.kind == Kind::Invalid && error.message.contains(says), "{}", error.message);
    };
    let request = |changes| v1::PlanRequest { changes, ..Default::default() };
    check(request(Vec::new()), "changes: are 0, 1 to 4096 are allowed");
    check(request(vec![add().remove(0); CHANGES_MAX + 1]), "changes: are 4097");
    check(request(vec![v1::Change::default()]), "changes.change: is missing");
    for copies in [0, 256] {
        let copies = v1::Change { change: Some(v1::change::Change::Copies(copies)) };
        check(request(vec![copies]), "1 to 255 are allowed");
    }
    for partition in [16, 65_536, u32::MAX] {
        let request = v1::PlanRequest { sizes: vec![size(partition)], ..request(add()) };
        check(request, "is beyond the last one, 15");
    }
    check(v1::PlanRequest { sizes: vec![size(3), size(3)], ..request(add()) }, "partition 3 is given twice");
    let nodes = vec![v1::NodeCondition::default(); 4097];
    check(v1::PlanRequest { nodes, ..request(add()) }, "nodes: are 4097");
}

#[test]
fn an_answer_holds_the_plan_and_what_it_means() {
    let layout = layout();
    let changes = vec![v1::Change::from(&Change::Add { node: NodeId(4) })];
    let sizes = (0..16).map(|partition| v1::PartitionSize { partition, keys: 10, bytes: 1000 }).collect();
    let nodes = vec![v1::NodeCondition { node: 4, disk_free_bytes: Some(1 << 30), ..Default::default() }];
    let request = v1::PlanRequest { changes, sizes, nodes, bytes_per_second: 500 };
    let plan = answer(request.clone(), &layout).expect("planned");
    let known = kv_core::topology::plan(&layout, &[Change::Add { node: NodeId(4) }]).expect("planned");
    let moves = known.moves.len();
    assert_eq!((plan.hash.as_str(), plan.parent_epoch, plan.copies), (known.hash.to_string().as_str(), 5, 2));
    assert_eq!(
        (plan.moves.len(), plan.moves_minimum, plan.partitions.len()),
        (moves, moves as u64, known.partitions.len())
    );
    for (step, known) in plan.moves.iter().zip(&known.moves) {
        assert_eq!((step.partition, step.to, step.source), (u32::from(known.partition.0), known.to.0, known.source.0));
        assert_eq!((Some(NodeId(step.from)), step.keys, step.bytes), (known.from, 10, 1000));
    }
    let size = plan.size.expect("a size");
    assert_eq!((size.keys, size.bytes, plan.partitions_unknown), (moves as u64 * 10, moves as u64 * 1000, 0));
    assert_eq!((plan.nodes.len(), plan.nodes[3].name.as_str(), plan.nodes[3].moves_in as usize), (4, "n4", moves));
    assert_eq!(plan.nodes[3].disk_free_bytes, Some(1 << 30));
    assert_eq!(plan.links.iter().map(|link| link.moves as usize).sum::<usize>(), moves);
    assert_eq!(plan.zones.iter().map(|zone| zone.copies_after).sum::<u32>(), 32);
    assert!(plan.estimate.is_some_and(|estimate| estimate.seconds == estimate.bytes / 500));
    assert_eq!((plan.undo.len(), plan.refusals.len()), (1, 0));
    // The figures that come with a request do not change the plan.
    let bare = v1::PlanRequest { changes: request.changes, ..Default::default() };
    let bare = answer(bare, &layout).expect("planned");
    assert_eq!((bare.hash, bare.partitions_unknown, bare.estimate), (plan.hash, 16, None));
}

#[test]
fn refused_changes_are_errors_by_what_to_do() {
    let layout = layout();
    let kind = |change: Change| {
        let request = v1::PlanRequest { changes: vec![(&change).into()], ..Default::default() };
        answer(request, &layout).expect_err("refused").kind
    };
    assert_eq!(kind(Change::Add { node: NodeId(9) }), Kind::NotFound);
    assert_eq!(kind(Change::Add { node: NodeId(1) }), Kind::Conflict);
    assert_eq!(kind(Change::Weight { node: NodeId(1), weight: -1.0 }), Kind::Invalid);
}
