use proptest::prelude::*;

use super::*;
use crate::ring::{FirstLayout, first_layout};
use crate::topology::SourceReceipt;
use crate::types::{ClusterId, HashSeed, StoreId};

const PARTITIONS: u32 = 16;

fn member(id: u64, spare: bool) -> (NodeId, Member) {
    let member =
        Member { name: format!("n{id}"), zone: format!("z{}", id % 3), weight: 1.0, store: StoreId(id), spare };
    (NodeId(id), member)
}

/// A cluster of members 1 to 7 of which `owning` may own.
fn layout(copies: u8, seed: u64, owning: &[bool]) -> Layout {
    let members = (1..).zip(owning).map(|(id, &owns)| member(id, !owns)).collect();
    let input = FirstLayout {
        cluster: ClusterId(1),
        seed: HashSeed(seed),
        epoch: Epoch(1),
        copies,
        partitions: PARTITIONS,
        members,
    };
    first_layout(input).expect("sound input")
}

/// The target that turns `from` into a layout like `to`; members that `dead` names are gone.
fn target(from: &Layout, to: &Layout, dead: &[NodeId]) -> Result<Target, OperationError> {
    let lists = to.partition_ids().zip(&to.partitions).map(|(partition, entry)| (partition, entry.nodes().collect()));
    let standing = |(&node, member): (&NodeId, &Member)| (node, Standing::of(member));
    let members = to.members.iter().filter(|(node, _)| !dead.contains(node)).map(standing).collect();
    Target::new(from, members, to.copies, &lists.collect(), &BTreeMap::new())
}

fn receipt(layout: &Layout, partition: PartitionId, joint: &Joint, receiver: &Receiver) -> Receipt {
    let old = layout.entry(partition).expect("a partition").owners.iter();
    let sources = old.filter(|owner| owner.node != receiver.node);
    Receipt {
        partition,
        joint: joint.epoch,
        node: receiver.node,
        store: layout.members[&receiver.node].store,
        sources: sources.map(|owner| SourceReceipt { node: owner.node, root: 0 }).collect(),
        keys: 0,
        bytes: 0,
    }
}

/// What holds of every step of an operation.
#[track_caller]
fn check_step(before: &Layout, after: &Layout, migrating_max: usize) {
    check(after).expect("sound");
    assert_eq!(after.epoch, Epoch(before.epoch.0 + 1));
    assert!(joint_entries(after).count() <= migrating_max);
    for (old, new) in before.partitions.iter().zip(&after.partitions) {
        let same = (&old.owners, &old.joint) == (&new.owners, &new.joint);
        assert_eq!(new.changed, if same { old.changed } else { after.epoch });
        // Who stays keeps its place in time, whatever else happens to the entry.
        for owner in new.target() {
            let stayed = before.partitions.iter().any(|_| old.owners.iter().any(|was| was.node == owner.node));
            if stayed {
                assert!(old.owners.contains(owner), "{owner:?} of {old:?}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// An operation between any two layouts ends at the second, each step sound, whatever the order of the receipts.
    #[test]
    fn an_operation_ends_at_its_target(
        copies in (1u8..5, 1u8..5),
        seeds in (0u64..1000, 0u64..1000),
        owning in prop::collection::vec((any::<bool>(), any::<bool>()), 7),
        migrating_max in 1usize..6,
        order in prop::collection::vec(any::<prop::sample::Index>(), 400),
        cancelled_after in prop::option::of(0usize..30),
    ) {
        let (from, to): (Vec<bool>, Vec<bool>) = owning.into_iter().unzip();
        prop_assume!(from.contains(&true) && to.contains(&true));
        let first = layout(copies.0, seeds.0, &from);
        let end = layout(copies.1, seeds.1, &to);
        let target = target(&first, &end, &[]).expect("nobody is dead");
        let mut now = begin(&first, &target, migrating_max).expect("fits");
        check_step(&first, &now, migrating_max);
        let mut receipts = BTreeMap::new();
        for (step, at) in order.into_iter().enumerate() {
            if now.settled {
                break;
            }
            if cancelled_after == Some(step) {
                let back = cancel(&now, &target);
                check_step(&now, &back, 0);
                for (partition, was) in first.partition_ids().zip(&first.partitions) {
                    let is = back.entry(partition).expect("a partition");
                    prop_assert!(is.nodes().eq(was.nodes()) || is.nodes().eq(end.partitions[usize::from(partition.0)].nodes()));
                }
                prop_assert_eq!(back.copies, first.copies);
                return Ok(());
            }
            // One more receipt, at times of an earlier try or of another store, which must not count.
            let open: Vec<(PartitionId, Receiver)> =
                joint_entries(&now).flat_map(|(p, joint)| joint.receivers.iter().map(move |&to| (p, to))).collect();
            let (partition, receiver) = open[at.index(open.len())];
            let joint = now.entry(partition).and_then(|entry| entry.joint.clone()).expect("joint");
            let good = receipt(&now, partition, &joint, &receiver);
            let wrong = [
                Receipt { joint: Epoch(joint.epoch.0 - 1), ..good.clone() },
                Receipt { store: StoreId(99), ..good.clone() },
                Receipt { sources: Vec::new(), ..good.clone() },
            ];
            for wrong in wrong {
                let alone = BTreeMap::from([((partition, receiver.node), wrong.clone())]);
                let staying_alone = wrong.sources.is_empty() && joint.sources_min == 1
                    && now.entry(partition).is_some_and(|entry| !entry.enters(receiver.node));
                if !receipts.contains_key(&(partition, receiver.node)) && !staying_alone {
                    prop_assert_eq!(advance(&now, &target, &alone, migrating_max), None);
                }
            }
            receipts.insert((partition, receiver.node), good);
            if let Some(next) = advance(&now, &target, &receipts, migrating_max) {
                check_step(&now, &next, migrating_max);
                now = next;
            }
        }
        prop_assert!(now.settled);
        prop_assert!(now.partitions.iter().zip(&end.partitions).all(|(is, goal)| is.nodes().eq(goal.nodes())));
        prop_assert_eq!(advance(&now, &target, &receipts, migrating_max), None);
        let members = |layout: &Layout| layout.members.values().map(Standing::of).collect::<Vec<_>>();
        prop_assert_eq!(members(&now), members(&end));
    }
}

#[test]
fn a_dead_member_is_gone_at_once_and_covers_nothing() {
    let first = layout(3, 1, &[true, true, true, true]);
    let mut end = layout(3, 2, &[true, true, true, false]);
    let dead = NodeId(4);
    end.members.remove(&dead);
    let target = target(&first, &end, &[dead]).expect("two survivors");
    let now = begin(&first, &target, 4).expect("fits");
    assert!(now.partitions.iter().all(|entry| !entry.owns(dead)));
    assert!(!now.members.contains_key(&dead));
    for (_, joint) in joint_entries(&now) {
        assert_eq!(joint.sources_min, 2);
    }
    let back = cancel(&now, &target);
    assert!(!back.members.contains_key(&dead), "a store that was given up never comes back");
    assert!(!back.settled);
}

#[test]
fn another_store_of_a_member_enters_all_its_partitions_anew() {
    let first = layout(2, 1, &[true, true, true]);
    let end = layout(2, 2, &[true, true, true, true]);
    let mut first = first.with_members(end.members.iter().map(|(&node, member)| (node, member.clone())).collect());
    first.members.get_mut(&NodeId(4)).expect("a member").spare = true;
    let target = target(&first, &end, &[]).expect("fits");
    let migrating = begin(&first, &target, 4).expect("fits");
    for lost in [NodeId(1), NodeId(4)] {
        let mut members = migrating.members.clone();
        members.get_mut(&lost).expect("a member").store = StoreId(77);
        let next = migrating.with_members(members);
        check(&next).expect("sound");
        for (old, new) in migrating.partitions.iter().zip(&next.partitions) {
            assert_eq!(new.changed, if old.owns(lost) { next.epoch } else { old.changed });
            let ids = |entry: &Entry| entry.sets().map(|set| set.iter().map(|owner| owner.node).collect()).collect();
            let (was, is): (Vec<Vec<NodeId>>, Vec<Vec<NodeId>>) = (ids(old), ids(new));
            assert_eq!(was, is);
            assert_eq!(old.joint.as_ref().map(|joint| joint.epoch), new.joint.as_ref().map(|joint| joint.epoch));
            for (was, is) in old.sets().flatten().zip(new.sets().flatten()) {
                assert_eq!(is.since, if was.node == lost { next.epoch } else { was.since });
            }
        }
        assert!(next.partitions.iter().any(|entry| entry.changed == next.epoch));
    }
}

#[test]
fn a_partition_without_survivors_is_refused() {
    let first = layout(1, 1, &[true, true]);
    let mut end = layout(1, 2, &[true, false]);
    let dead = NodeId(2);
    end.members.remove(&dead);
    assert!(matches!(target(&first, &end, &[dead]), Err(OperationError::NoSurvivor { .. })));
}

#[test]
fn fewer_copies_are_covered_by_all_who_stay() {
    let first = layout(3, 1, &[true, true, true]);
    let end = layout(2, 1, &[true, true, true]);
    let target = target(&first, &end, &[]).expect("nobody is dead");
    let now = begin(&first, &target, 100).expect("fits");
    for (_, joint) in joint_entries(&now) {
        assert_eq!(joint.receivers.len(), joint.owners.len());
        assert_eq!(joint.sources_min, 2);
    }
}

#[test]
fn a_second_operation_is_refused_while_partitions_migrate() {
    let first = layout(2, 1, &[true, true, false]);
    let end = layout(2, 1, &[true, true, true]);
    let goal = target(&first, &end, &[]).expect("nobody is dead");
    let now = begin(&first, &goal, 4).expect("fits");
    assert!(matches!(begin(&now, &goal, 4), Err(OperationError::Migrating { .. })));
    assert!(matches!(target(&now, &end, &[]), Err(OperationError::Migrating { .. })));
}

#[test]
fn a_plan_is_carried_out_move_by_move_and_none_is_made_meanwhile() {
    let first = layout(3, 1, &[true, true, true, false]);
    let change = [crate::topology::Change::Add { node: NodeId(4) }];
    let plan = crate::topology::plan(&first, &change).expect("a spare can be added");
    let target = plan.operation(&first).expect("made for this layout");
    let mut now = begin(&first, &target, 4).expect("fits");
    let refusal = crate::topology::plan(&now, &change).expect_err("partitions migrate");
    assert!(refusal.to_string().contains("is migrating"), "{refusal}");
    let mut entered = 0;
    while !now.settled {
        let mut receipts = BTreeMap::new();
        for (partition, joint) in joint_entries(&now) {
            for receiver in &joint.receivers {
                let planned = plan.moves.iter().find(|step| (step.partition, step.to) == (partition, receiver.node));
                assert_eq!(planned.map(|step| step.source), Some(receiver.source));
                receipts.insert((partition, receiver.node), receipt(&now, partition, joint, receiver));
                entered += 1;
            }
        }
        now = advance(&now, &target, &receipts, 4).expect("all receipts are there");
    }
    assert_eq!(entered, plan.moves.len());
    let end = plan.target(&first, now.epoch).expect("made for this layout");
    assert!(now.partitions.iter().zip(&end.partitions).all(|(is, goal)| is.nodes().eq(goal.nodes())));
}
