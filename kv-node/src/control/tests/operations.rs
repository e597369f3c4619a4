//! Operations in the agreed state: one at a time, exactly as planned, cut over by receipts only.

use std::collections::BTreeMap;
use std::num::NonZeroU64;

use kv_core::config::ClusterConfig;
use kv_core::ring::Layout;
use kv_core::topology::{Change, Plan, Receipt, SourceReceipt, plan};
use kv_core::types::{Epoch, NodeId, PartitionId, StoreId, WallTime};
use proptest::prelude::*;

use super::state::{apply, done, form, refused};
use crate::control::leader::{Reports, TransferReport, next_step};
use crate::control::state::ClusterState;
use crate::control::state::{Asked, Estimate, OperationId, OperationKind, OperationState};
use crate::control::state::{Command, Done, Founding, NodeDescriptor, Outcome, RefusalKind};

pub(super) fn asked(at: u64) -> Asked {
    Asked { by: "ann".to_owned(), at: WallTime(at) }
}

/// A node in the zone of all others.
pub(super) fn descriptor(number: u8, store: u8, boot: u32) -> NodeDescriptor {
    NodeDescriptor { zone: "z".to_owned(), ..super::state::descriptor(number, store, boot) }
}

/// A cluster of `owners` members and `spares`, with eight partitions.
pub(super) fn cluster(owners: u8, spares: u8) -> ClusterState {
    let mut state = ClusterState::default();
    let founding = Founding { expect: u32::from(owners), copies: 3, partitions: 8 };
    let found = Command::Found { founding, config: ClusterConfig::default(), founder: descriptor(1, 1, 1) };
    done(&mut state, 1, found);
    for number in 2..=owners {
        done(&mut state, u128::from(number), Command::Admit(descriptor(number, number, 1)));
    }
    let command = form(&state);
    done(&mut state, 100, command);
    for number in owners + 1..=owners + spares {
        done(&mut state, u128::from(number), Command::Admit(descriptor(number, number, 1)));
    }
    state
}

pub(super) fn layout(state: &ClusterState) -> &Layout {
    state.layout.as_deref().unwrap()
}

fn planned(state: &ClusterState, changes: &[Change]) -> Plan {
    plan(layout(state), changes).unwrap()
}

pub(super) fn begin(state: &ClusterState, changes: &[Change]) -> Command {
    Command::Apply { plan: planned(state, changes), estimate: Estimate { keys: 80, bytes: 8000 }, asked: asked(1) }
}

/// The receipts that the receivers of all joint partitions would report, without those of `silent` nodes.
fn receipts(state: &ClusterState, silent: &[NodeId]) -> Vec<Receipt> {
    let layout = layout(state);
    let mut found = Vec::new();
    for (partition, entry) in layout.partition_ids().zip(&layout.partitions) {
        let Some(joint) = &entry.joint else { continue };
        for receiver in joint.receivers.iter().filter(|receiver| !silent.contains(&receiver.node)) {
            let sources = entry.owners.iter().map(|owner| SourceReceipt { node: owner.node, root: 7 }).collect();
            let store = layout.members[&receiver.node].store;
            found.push(Receipt {
                partition,
                joint: joint.epoch,
                node: receiver.node,
                store,
                sources,
                keys: 10,
                bytes: 1000,
            });
        }
    }
    found
}

fn advance(state: &ClusterState, id: u64, receipts: Vec<Receipt>, at: u64) -> Command {
    Command::Advance { operation: OperationId(id), epoch: layout(state).epoch, receipts, asked: asked(at) }
}

/// Carries the operation under way to its end.
pub(super) fn finish(state: &mut ClusterState, from: u128) {
    for step in 0..1000 {
        let Some(active) = state.active_operation() else { return };
        let command = advance(state, active.id.0, receipts(state, &[]), 2);
        done(state, from + step, command);
    }
    panic!("the operation does not end");
}

#[test]
fn a_plan_is_carried_out_as_previewed_and_its_record_is_kept() {
    let mut state = cluster(3, 1);
    let add = begin(&state, &[Change::Add { node: NodeId(4) }]);
    let Command::Apply { plan, .. } = add.clone() else { unreachable!() };
    assert_eq!(done(&mut state, 200, add.clone()), Done::Begun { operation: OperationId(1) });
    assert_eq!(done(&mut state, 200, add.clone()), Done::Begun { operation: OperationId(1) }, "repeated, applied once");
    assert!(!layout(&state).settled);
    finish(&mut state, 300);

    let operation = state.operation(OperationId(1)).unwrap();
    assert_eq!((operation.state, operation.kind()), (OperationState::Done, Some(OperationKind::Add)));
    assert_eq!(operation.command, "node add n4");
    assert_eq!((operation.moved, operation.moves_planned, operation.moves_minimum), (6, 6, 6));
    assert_eq!(operation.receipts_agreed, 6, "a receipt for each move");
    assert!(operation.moves.iter().all(|step| operation.receipts.contains_key(&(step.partition, step.to))));
    assert_eq!((operation.copied.keys, operation.copied.bytes), (60, 6000));
    assert_eq!((operation.asked.by.as_str(), operation.ended.clone().unwrap().at), ("ann", WallTime(2)));
    assert!(operation.first_cut_over.is_some() && operation.target.is_none());

    let end = layout(&state);
    assert!(end.settled && end.partitions.iter().all(|entry| entry.joint.is_none()));
    for change in &plan.partitions {
        let owners: Vec<NodeId> = end.entry(change.partition).unwrap().nodes().collect();
        assert_eq!(owners, change.owners);
    }
    assert!(!state.members[&NodeId(4)].spare);
    assert_eq!(refused(&mut state, 201, add), RefusalKind::Stale, "the plan was made for another layout");
}

#[test]
fn there_is_one_operation_at_a_time() {
    let mut state = cluster(3, 2);
    let (first, second) =
        (begin(&state, &[Change::Add { node: NodeId(4) }]), begin(&state, &[Change::Add { node: NodeId(5) }]));
    done(&mut state, 200, first);
    let refusal = apply(&mut state, 201, second).into_result().unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::Precondition);
    let expected = "operation 1 (node add n4, begun by ann) is running, and there is one at a time; wait for it with op \
                    watch 1, or end it with op cancel 1";
    assert_eq!(refusal.message, expected);
    finish(&mut state, 300);
    let again = begin(&state, &[Change::Add { node: NodeId(5) }]);
    assert_eq!(done(&mut state, 202, again), Done::Begun { operation: OperationId(2) });
}

#[test]
fn nothing_is_cut_over_without_the_receipts_of_the_stores_that_are_there() {
    let mut state = cluster(3, 1);
    let add = begin(&state, &[Change::Add { node: NodeId(4) }]);
    done(&mut state, 200, add);
    let command = advance(&state, 1, Vec::new(), 2);
    assert_eq!(refused(&mut state, 201, command), RefusalKind::Stale);
    let good = receipts(&state, &[]);
    let spoil = |change: fn(&mut Receipt)| {
        let mut bad = good.clone();
        bad.iter_mut().for_each(change);
        bad
    };
    let bad = [
        spoil(|receipt| receipt.store = StoreId(99)),
        spoil(|receipt| receipt.joint = Epoch(receipt.joint.0 - 1)),
        spoil(|receipt| receipt.node = NodeId(3)),
    ];
    for (number, receipts) in (0..).zip(bad) {
        let command = advance(&state, 1, receipts, 2);
        assert_eq!(refused(&mut state, 210 + number, command), RefusalKind::Stale);
    }
    let mut few = receipts(&state, &[]);
    few.iter_mut().for_each(|receipt| receipt.sources.truncate(1));
    let command = advance(&state, 1, few, 2);
    assert_eq!(done(&mut state, 220, command), Done::Advanced { operation: OperationId(1), cut_over: false });
    assert_eq!(state.active_operation().unwrap().moved, 0, "one source of three is no majority");
    let late = Command::Advance { operation: OperationId(1), epoch: Epoch(1), receipts: good, asked: asked(2) };
    assert_eq!(refused(&mut state, 221, late), RefusalKind::Stale);
}

#[test]
fn a_receiver_that_lost_its_store_begins_anew() {
    let mut state = cluster(3, 1);
    let add = begin(&state, &[Change::Add { node: NodeId(4) }]);
    done(&mut state, 200, add);
    let old = receipts(&state, &[]);
    let mut wiped = descriptor(4, 44, 1);
    wiped.replaces = vec![StoreId(4)];
    done(&mut state, 201, Command::Admit(wiped));
    let command = advance(&state, 1, old, 2);
    assert_eq!(refused(&mut state, 202, command), RefusalKind::Stale, "the receipts are of a store that is gone");
    finish(&mut state, 300);
    assert_eq!(state.operation(OperationId(1)).unwrap().moved, 6);
}

#[test]
fn a_retry_names_partitions_that_migrate() {
    let mut state = cluster(3, 1);
    let add = begin(&state, &[Change::Add { node: NodeId(4) }]);
    done(&mut state, 200, add);
    let operation = OperationId(1);
    let retry = |partitions: &[u16]| Command::Retry {
        operation,
        partitions: partitions.iter().map(|&id| PartitionId(id)).collect(),
        asked: asked(2),
    };
    let moving: Vec<PartitionId> = state.operations[0].moves.iter().map(|step| step.partition).collect();
    let resting = layout(&state).partition_ids().find(|partition| !moving.contains(partition)).unwrap();
    assert_eq!(refused(&mut state, 201, retry(&[8])), RefusalKind::NotFound);
    assert_eq!(refused(&mut state, 202, retry(&[moving[0].0, resting.0])), RefusalKind::Precondition);
    assert_eq!(refused(&mut state, 203, retry(&[0; 4097])), RefusalKind::Invalid);
    let told = |state: &ClusterState, known| state.operations[0].retried_after(known).collect::<Vec<_>>();
    assert_eq!((state.operations[0].retries, told(&state, 0)), (0, Vec::new()), "nothing was agreed on");

    assert_eq!(done(&mut state, 204, retry(&[])), Done::Retried { operation, retry: 1 });
    assert_eq!(told(&state, 0), moving, "all that lack a receipt");
    assert_eq!(done(&mut state, 205, retry(&[moving[1].0])), Done::Retried { operation, retry: 2 });
    assert_eq!((told(&state, 0), told(&state, 1)), (moving.clone(), vec![moving[1]]));
    let bytes = postcard::to_stdvec(&state).unwrap();
    assert_eq!(postcard::from_bytes::<ClusterState>(&bytes).unwrap(), state, "whoever leads or restarts knows it");

    let first: Vec<Receipt> = receipts(&state, &[]).into_iter().filter(|it| it.partition == moving[0]).collect();
    let command = advance(&state, 1, first, 3);
    done(&mut state, 206, command);
    assert_eq!(refused(&mut state, 207, retry(&[moving[0].0])), RefusalKind::Precondition, "it is cut over");
    done(&mut state, 208, retry(&[]));
    assert_eq!(told(&state, 2), moving[1..], "what has its receipts is left alone");
    finish(&mut state, 300);
    assert_eq!((state.operations[0].retries, told(&state, 0)), (3, Vec::new()), "nobody needs it any more");
}

#[test]
fn a_paused_operation_waits_and_a_throttle_stays() {
    let mut state = cluster(3, 1);
    let add = begin(&state, &[Change::Add { node: NodeId(4) }]);
    done(&mut state, 200, add);
    let id = OperationId(1);
    done(&mut state, 201, Command::Pause { operation: id, asked: asked(2) });
    assert!(state.throttle.settings(state.active_operation()).paused);
    let command = advance(&state, 1, receipts(&state, &[]), 2);
    assert_eq!(refused(&mut state, 202, command), RefusalKind::Precondition);
    assert_eq!(
        refused(&mut state, 203, Command::Retry { operation: id, partitions: Vec::new(), asked: asked(2) }),
        RefusalKind::Precondition
    );
    done(&mut state, 204, Command::Resume { operation: id, asked: asked(3) });
    done(&mut state, 205, Command::Resume { operation: id, asked: asked(3) });
    done(&mut state, 206, Command::Retry { operation: id, partitions: Vec::new(), asked: asked(3) });
    let limit = |bytes: u64| Command::Throttle { bytes_per_second_max: NonZeroU64::new(bytes), asked: asked(4) };
    assert_eq!(refused(&mut state, 207, limit(1)), RefusalKind::Invalid);
    assert_eq!(refused(&mut state, 208, limit(u64::MAX)), RefusalKind::Invalid);
    done(&mut state, 209, limit(16 << 20));
    let settings = state.throttle.settings(state.active_operation());
    assert_eq!((settings.paused, settings.bytes_per_second_max), (false, NonZeroU64::new(16 << 20)));
    finish(&mut state, 300);
    assert_eq!(state.throttle.bytes_per_second_max, NonZeroU64::new(16 << 20), "also for the next operation");
    for command in [
        Command::Pause { operation: id, asked: asked(5) },
        Command::Cancel { operation: id, asked: asked(5) },
        Command::Retry { operation: id, partitions: Vec::new(), asked: asked(5) },
    ] {
        assert_eq!(refused(&mut state, 400, command), RefusalKind::Precondition, "it has ended");
    }
    let unknown = Command::Pause { operation: OperationId(9), asked: asked(5) };
    assert_eq!(refused(&mut state, 401, unknown), RefusalKind::NotFound);
}

#[test]
fn a_cancel_undoes_what_is_not_cut_over_and_says_so() {
    let mut state = cluster(3, 1);
    let (before, add) = (layout(&state).clone(), begin(&state, &[Change::Add { node: NodeId(4) }]));
    done(&mut state, 200, add.clone());
    done(&mut state, 201, Command::Cancel { operation: OperationId(1), asked: asked(2) });
    let operation = state.operation(OperationId(1)).unwrap();
    assert_eq!(operation.state, OperationState::Cancelled);
    assert_eq!(operation.outcome, "6 migrating partitions went back to their owners, 6 moves were not made");
    let owners =
        |layout: &Layout| layout.partitions.iter().map(|entry| entry.nodes().collect::<Vec<_>>()).collect::<Vec<_>>();
    assert_eq!(owners(layout(&state)), owners(&before));
    assert!(state.members[&NodeId(4)].spare && layout(&state).settled);

    let again = begin(&state, &[Change::Add { node: NodeId(4) }]);
    done(&mut state, 202, again);
    let some = receipts(&state, &[]).into_iter().take(2).collect();
    let command = advance(&state, 2, some, 3);
    done(&mut state, 203, command);
    done(&mut state, 204, Command::Cancel { operation: OperationId(2), asked: asked(4) });
    let operation = state.operation(OperationId(2)).unwrap();
    assert!(operation.outcome.contains("2 moves were cut over before and stay"), "{}", operation.outcome);
    assert!(!state.members[&NodeId(4)].spare, "it owns what was cut over");
    // Whatever a cancel left uneven, the next operation evens out.
    let rest = begin(&state, &[Change::Remove { node: NodeId(4) }]);
    done(&mut state, 205, rest);
    finish(&mut state, 300);
    assert!(layout(&state).settled);
}

#[test]
fn a_removed_node_stays_until_it_holds_nothing_and_never_comes_back() {
    let mut state = cluster(4, 0);
    let remove = begin(&state, &[Change::Remove { node: NodeId(2) }]);
    done(&mut state, 200, remove);
    let dismiss =
        |state: &ClusterState| Command::Dismiss { node: NodeId(2), store: StoreId(2), epoch: layout(state).epoch };
    let early = dismiss(&state);
    assert_eq!(refused(&mut state, 201, early.clone()), RefusalKind::Precondition, "it still owns");
    finish(&mut state, 300);
    assert!(state.leaving.contains_key(&NodeId(2)) && state.members[&NodeId(2)].spare);
    assert_eq!(refused(&mut state, 202, early), RefusalKind::Stale, "it has not acted on its last cut-over");
    let last = dismiss(&state);
    let epoch = layout(&state).epoch;
    assert_eq!(done(&mut state, 203, last), Done::Dismissed { node: NodeId(2) });
    assert_eq!(layout(&state).epoch, Epoch(epoch.0 + 1));
    assert!(!state.members.contains_key(&NodeId(2)) && state.leaving.is_empty());
    assert_eq!(refused(&mut state, 204, Command::Admit(descriptor(2, 2, 2))), RefusalKind::Removed);
}

#[test]
fn a_node_that_is_added_again_while_it_leaves_stays() {
    let mut state = cluster(4, 0);
    let remove = begin(&state, &[Change::Remove { node: NodeId(2) }]);
    done(&mut state, 200, remove);
    finish(&mut state, 300);
    let add = begin(&state, &[Change::Add { node: NodeId(2) }]);
    done(&mut state, 201, add);
    assert!(state.leaving.is_empty());
    let late = Command::Dismiss { node: NodeId(2), store: StoreId(2), epoch: layout(&state).epoch };
    assert_eq!(refused(&mut state, 202, late), RefusalKind::Precondition);
    finish(&mut state, 400);
    assert!(!state.members[&NodeId(2)].spare);
}

#[test]
fn a_dead_node_leaves_at_once_and_a_replaced_one_gives_its_places_away() {
    let mut state = cluster(4, 1);
    let remove = begin(&state, &[Change::RemoveDead { node: NodeId(3) }]);
    done(&mut state, 200, remove);
    assert!(!state.members.contains_key(&NodeId(3)) && state.retired.contains(&StoreId(3)));
    assert_eq!(refused(&mut state, 201, Command::Admit(descriptor(3, 3, 2))), RefusalKind::Removed);
    finish(&mut state, 300);
    let replace = begin(&state, &[Change::Replace { old: NodeId(1), new: NodeId(5) }]);
    done(&mut state, 202, replace);
    finish(&mut state, 400);
    assert!(state.leaving.contains_key(&NodeId(1)) && !state.members[&NodeId(5)].spare);
    assert!(layout(&state).partitions.iter().all(|entry| !entry.owns(NodeId(1)) && entry.owners.len() == 3));
}

#[test]
fn the_leader_takes_the_next_step_when_the_reports_allow_it() {
    let mut state = cluster(3, 1);
    let mut reports = Reports::new();
    assert_eq!(next_step(&state, &reports, &|_| false, asked(1)), None);
    let add = begin(&state, &[Change::Add { node: NodeId(4) }]);
    done(&mut state, 200, add);
    assert_eq!(next_step(&state, &reports, &|_| false, asked(1)), None, "nothing is reported");
    let tell = |state: &ClusterState, node: u64, left: u64| TransferReport {
        store: StoreId(node),
        epoch: layout(state).epoch,
        receipts: receipts(state, &[]).into_iter().filter(|receipt| receipt.node == NodeId(node)).collect(),
        left,
    };
    reports.insert(NodeId(4), tell(&state, 4, 0));
    let step = next_step(&state, &reports, &|_| false, asked(2)).unwrap();
    let Command::Advance { receipts, .. } = &step else { panic!("{step}") };
    assert_eq!(receipts.len(), 6);
    done(&mut state, 201, Command::Pause { operation: OperationId(1), asked: asked(2) });
    assert_eq!(next_step(&state, &reports, &|_| false, asked(2)), None, "it is paused");
    done(&mut state, 202, Command::Resume { operation: OperationId(1), asked: asked(2) });
    done(&mut state, 203, step);
    assert_eq!(next_step(&state, &reports, &|_| false, asked(3)), None, "it has ended");

    let remove = begin(&state, &[Change::Remove { node: NodeId(4) }]);
    done(&mut state, 204, remove);
    reports.extend((1..4).map(|node| (NodeId(node), tell(&state, node, 0))));
    let step = next_step(&state, &reports, &|_| false, asked(4)).unwrap();
    done(&mut state, 205, step);
    assert_eq!(next_step(&state, &reports, &|_| false, asked(5)), None, "the node has not acted on its last cut-over");
    reports.insert(NodeId(4), tell(&state, 4, 3));
    assert_eq!(next_step(&state, &reports, &|_| false, asked(5)), None, "it holds three records that others may need");
    reports.insert(NodeId(4), tell(&state, 4, 0));
    let votes = state.members[&NodeId(4)].incarnation.store;
    assert_eq!(next_step(&state, &reports, &|store| store == votes, asked(5)), None, "others must vote first");
    let step = next_step(&state, &reports, &|_| false, asked(5)).unwrap();
    assert_eq!(done(&mut state, 206, step), Done::Dismissed { node: NodeId(4) });
}

/// What happens to the cluster, by small numbers so that collisions are frequent.
#[derive(Clone, Debug)]
enum Step {
    Apply(Change),
    /// An old plan, made when the list was this long.
    Late(usize),
    Advance {
        silent: u8,
        keep: usize,
    },
    /// An old step, sent again under a new id.
    Again(usize),
    Pause(bool),
    Cancel,
    Dismiss(u8),
    Arrive {
        number: u8,
        store: u8,
        replaces: bool,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let node = || (1..8_u64).prop_map(NodeId);
    let change = prop_oneof![
        4 => node().prop_map(|node| Change::Add { node }),
        2 => node().prop_map(|node| Change::Remove { node }),
        1 => node().prop_map(|node| Change::RemoveDead { node }),
        2 => (node(), node()).prop_map(|(old, new)| Change::Replace { old, new }),
        1 => (node(), prop::sample::select(vec![0.5, 1.0, 2.0])).prop_map(|(node, weight)| Change::Weight { node, weight }),
        1 => (1..5_u8).prop_map(|copies| Change::Copies { copies }),
    ];
    let step = prop_oneof![
        4 => change.prop_map(Step::Apply),
        1 => (0..16_usize).prop_map(Step::Late),
        10 => (0..8_u8, 0..20_usize).prop_map(|(silent, keep)| Step::Advance { silent, keep }),
        2 => (0..64_usize).prop_map(Step::Again),
        1 => any::<bool>().prop_map(Step::Pause),
        1 => Just(Step::Cancel),
        2 => (1..8_u8).prop_map(Step::Dismiss),
        2 => (1..8_u8, 1..16_u8, any::<bool>())
            .prop_map(|(number, store, replaces)| Step::Arrive { number, store, replaces }),
    ];
    prop::collection::vec(step, 1..80)
}

/// What must be true of every state, and of the way from one to the next.
fn check(before: &ClusterState, after: &ClusterState) -> Result<(), TestCaseError> {
    let (old, new) = (layout(before), layout(after));
    prop_assert_eq!(kv_core::ring::check(new), Ok(()));
    prop_assert_eq!(&new.members, &after.layout_members());
    prop_assert!(old == new || old.epoch < new.epoch, "epochs only grow");
    prop_assert!(after.operations.iter().filter(|operation| operation.state.is_active()).count() <= 1);
    prop_assert_eq!(after.active_operation().is_some(), after.operations.iter().any(|it| it.state.is_active()));
    let joint = |layout: &Layout| layout.partitions.iter().filter(|entry| entry.joint.is_some()).count();
    prop_assert!(after.active_operation().is_some() || joint(new) == 0, "joint partitions belong to an operation");
    prop_assert!(joint(new) <= crate::control::state::migrating_max(new.partition_count()));
    for operation in &after.operations {
        prop_assert!(operation.moved <= operation.moves_planned);
        if operation.state == OperationState::Done {
            prop_assert_eq!(operation.moved, operation.moves_planned);
        }
        if let Some(earlier) = before.operation(operation.id) {
            prop_assert!(earlier.moved <= operation.moved, "progress never goes backwards");
            prop_assert!(earlier.state.is_active() || earlier.state == operation.state, "an end is an end");
        }
    }
    let stores: Vec<StoreId> = after.members.values().map(|member| member.incarnation.store).collect();
    prop_assert!(stores.iter().all(|store| !after.retired.contains(store)));
    prop_assert!(before.retired.is_subset(&after.retired));
    // A cut-over has the receipt of every receiver, of the store that it has.
    for ((partition, was), is) in old.partition_ids().zip(&old.partitions).zip(&new.partitions) {
        let Some(joint) = &was.joint else { continue };
        if is.joint.is_none() && is.owners == joint.owners {
            let operation = after.operations.back().unwrap();
            for receiver in &joint.receivers {
                let receipt = operation.receipts.get(&(partition, receiver.node));
                let store = new.members.get(&receiver.node).map(|member| member.store);
                prop_assert!(
                    receipt.is_some_and(|receipt| receipt.joint == joint.epoch && Some(receipt.store) == store)
                );
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_steps_keep_operations_sound(steps in steps()) {
        let mut state = cluster(3, 3);
        let mut plans: Vec<Command> = Vec::new();
        let mut sent: Vec<Command> = Vec::new();
        let mut stores: BTreeMap<u8, u8> = (1..7).map(|number| (number, number)).collect();
        for (id, step) in steps.into_iter().enumerate() {
            let active = state.active_operation().map_or(OperationId(1), |operation| operation.id);
            let command = match step {
                Step::Apply(change) => match plan(layout(&state), &[change]) {
                    Ok(plan) => {
                        let command = Command::Apply { plan, estimate: Estimate::default(), asked: asked(1) };
                        plans.push(command.clone());
                        command
                    }
                    Err(_) => continue,
                },
                Step::Late(at) => match plans.get(at) {
                    Some(late) => late.clone(),
                    None => continue,
                },
                Step::Advance { silent, keep } => {
                    let silent = NodeId(u64::from(silent));
                    let told = receipts(&state, &[silent]).into_iter().take(keep).collect();
                    advance(&state, active.0, told, 3)
                }
                Step::Again(at) => match sent.get(at) {
                    Some(again) => again.clone(),
                    None => continue,
                },
                Step::Pause(true) => Command::Pause { operation: active, asked: asked(4) },
                Step::Pause(false) => Command::Resume { operation: active, asked: asked(4) },
                Step::Cancel => Command::Cancel { operation: active, asked: asked(5) },
                Step::Dismiss(number) => Command::Dismiss {
                    node: NodeId(u64::from(number)),
                    store: StoreId(u64::from(stores.get(&number).copied().unwrap_or(0))),
                    epoch: layout(&state).epoch,
                },
                Step::Arrive { number, store, replaces } => {
                    let mut descriptor = descriptor(number, store, 1);
                    if replaces {
                        descriptor.replaces = stores.get(&number).map(|&store| StoreId(u64::from(store))).into_iter().collect();
                    }
                    Command::Admit(descriptor)
                }
            };
            sent.push(command.clone());
            let before = state.clone();
            let outcome = apply(&mut state, 1000 + id as u128, command);
            check(&before, &state)?;
            if let Outcome::Refused(refusal) = outcome {
                prop_assert_eq!(state.revision, before.revision);
                prop_assert!(refusal.message.len() > 20, "{}", refusal);
            }
            stores = state.members.iter().filter_map(|(node, member)| {
                Some((u8::try_from(node.0).ok()?, u8::try_from(member.incarnation.store.0).ok()?))
            }).collect();
            let copy: ClusterState = postcard::from_bytes(&postcard::to_stdvec(&state).unwrap()).unwrap();
            prop_assert_eq!(&copy, &state);
        }
        // Whatever happened, an operation under way comes to its end.
        if let Some(active) = state.active_operation() {
            let resume = Command::Resume { operation: active.id, asked: asked(9) };
            done(&mut state, 5000, resume);
            finish(&mut state, 6000);
        }
        prop_assert!(state.active_operation().is_none());
    }
}
