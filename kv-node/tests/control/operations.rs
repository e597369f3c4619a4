//! Operations are driven to their end by whoever leads, whoever asked for them.

use std::sync::Arc;
use std::time::Duration;

use kv_core::topology::{Change, Receipt, SourceReceipt, plan};
use kv_core::types::NodeId;
use kv_node::control::{
    Asked, ClusterState, Command, ControlPlane, Done, Estimate, MembershipStatus, OperationId, OperationState,
    ProposeError, RefusalKind, TransferReport,
};
use tokio::task::JoinHandle;

use crate::world::{Spec, World, leader_of, propose, run, until_equal, until_membership, until_state};

/// Reports as the data plane of a node would, as if every copy were made at once.
fn play(control: &ControlPlane, spec: &Spec) -> JoinHandle<()> {
    let (control, store) = (control.clone(), spec.incarnation.store);
    tokio::spawn(async move {
        let mut state = control.state();
        loop {
            let now = Arc::clone(&state.borrow_and_update());
            let epoch = now.layout.as_ref().map_or_else(Default::default, |layout| layout.epoch);
            let receipts = now.member_of(store).map_or_else(Vec::new, |(node, _)| receipts_of(&now, node));
            drop(control.report(TransferReport { store, epoch, receipts, left: 0 }).await);
            drop(tokio::time::timeout(Duration::from_millis(50), state.changed()).await);
        }
    })
}

fn receipts_of(state: &ClusterState, node: NodeId) -> Vec<Receipt> {
    let Some(layout) = state.layout.as_deref() else { return Vec::new() };
    let mut receipts = Vec::new();
    for (partition, entry) in layout.partition_ids().zip(&layout.partitions) {
        let Some(joint) = entry.joint.as_ref().filter(|joint| joint.receivers.iter().any(|it| it.node == node)) else {
            continue;
        };
        receipts.push(Receipt {
            partition,
            joint: joint.epoch,
            node,
            store: layout.members[&node].store,
            sources: entry.owners.iter().map(|owner| SourceReceipt { node: owner.node, root: 1 }).collect(),
            keys: 1,
            bytes: 100,
        });
    }
    receipts
}

fn apply(control: &ControlPlane, change: Change) -> Command {
    let state = Arc::clone(&control.state().borrow());
    let plan = plan(state.layout.as_deref().unwrap(), &[change]).unwrap();
    Command::Apply { plan, estimate: Estimate::default(), asked: Asked::default() }
}

async fn until_ended(control: &ControlPlane, id: u64) -> Arc<ClusterState> {
    until_state(control, "the operation ends", |state| {
        state.operation(OperationId(id)).is_some_and(|operation| operation.state == OperationState::Done)
    })
    .await
}

#[test]
fn an_operation_survives_its_leader_and_the_one_who_asked() {
    run(async {
        let world = World::new();
        let mut nodes = world.cluster(3).await;
        let spare = Spec::joiner(4);
        let control = world.start(&spare).await;
        until_membership(&control, "a spare", |membership| {
            matches!(membership, MembershipStatus::Member { spare: true, .. })
        })
        .await;
        nodes.push((spare, control));
        let leader = leader_of(&nodes).await;
        let asker = (leader + 1) % 3;
        until_state(&nodes[asker].1, "the spare", |state| state.members.len() == 4).await;
        let add = apply(&nodes[asker].1, Change::Add { node: NodeId(4) });
        assert_eq!(propose(&nodes[asker].1, add).await, Ok(Done::Begun { operation: OperationId(1) }));
        until_state(&nodes[3].1, "the operation", |state| state.active_operation().is_some()).await;
        // Another operator at another node.
        let second = Command::Pause { operation: OperationId(2), asked: Asked::default() };
        let Err(ProposeError::Refused(refusal)) = propose(&nodes[3].1, second).await else { panic!("no such one") };
        assert_eq!(refusal.kind, RefusalKind::NotFound);

        // The leader dies before anything is reported; the others go on.
        let (spec, control) = nodes.remove(leader);
        world.stop(&spec, control).await;
        let players: Vec<_> = nodes.iter().map(|(spec, control)| play(control, spec)).collect();
        let state = until_ended(&nodes[2].1, 1).await;
        let operation = state.operation(OperationId(1)).unwrap();
        assert_eq!((operation.moved, operation.receipts_agreed), (operation.moves_planned, operation.moves_planned));
        assert_eq!(operation.moves_planned, operation.moves_minimum);
        assert!(state.layout.as_ref().unwrap().settled);
        let back = world.start(&spec.rebooted()).await;
        nodes.push((spec.rebooted(), back));
        for (_, control) in &nodes {
            until_state(control, "the old leader is back", |state| {
                state.members.values().any(|member| member.incarnation.boot == 2)
            })
            .await;
        }
        let controls: Vec<_> = nodes.iter().map(|(_, control)| control).collect();
        until_equal(&controls).await;
        players.into_iter().for_each(|player| player.abort());
    });
}

#[test]
fn a_removed_node_leaves_when_it_holds_nothing_and_learns_so() {
    run(async {
        let world = World::new();
        let nodes = world.cluster(4).await;
        let players: Vec<_> = nodes.iter().map(|(spec, control)| play(control, spec)).collect();
        let remove = apply(&nodes[1].1, Change::Remove { node: NodeId(1) });
        assert_eq!(propose(&nodes[1].1, remove).await, Ok(Done::Begun { operation: OperationId(1) }));
        until_ended(&nodes[1].1, 1).await;
        for (_, control) in &nodes[1..] {
            let state = until_state(control, "it has left", |state| state.members.len() == 3).await;
            assert!(state.layout.as_ref().unwrap().partitions.iter().all(|entry| !entry.owns(NodeId(1))));
        }
        // The founder, which led when the cluster was formed: the others elect a leader and go on.
        let membership =
            until_membership(&nodes[0].1, "removed", |membership| matches!(membership, MembershipStatus::Refused(_)))
                .await;
        let MembershipStatus::Refused(refusal) = membership else { unreachable!("waited for") };
        assert_eq!(refusal.kind, RefusalKind::Removed);
        let copies = apply(&nodes[2].1, Change::Copies { copies: 2 });
        assert_eq!(propose(&nodes[2].1, copies).await, Ok(Done::Begun { operation: OperationId(2) }));
        until_ended(&nodes[3].1, 2).await;
        players.into_iter().for_each(|player| player.abort());
    });
}
