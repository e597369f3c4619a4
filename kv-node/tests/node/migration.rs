//! Nodes join, leave and die under constant writes, and nothing that was acknowledged is lost.

use std::sync::Arc;

use kv_core::error::Kind;
use kv_core::topology::Change;
use kv_core::types::NodeId;
use kv_proto::client::Client;
use kv_proto::v1::{self, MemberState, OperationState, TransferPhase};

use crate::moving::{Writer, apply, check, number, operation, spare, throttle, until_done};
use crate::world::{World, put, reports, until, until_async, wait_for_exit_code};

#[tokio::test]
async fn a_fourth_and_a_fifth_node_join_one_leaves_and_a_dead_one_is_replaced_under_constant_writes() {
    let (mut world, client) = World::cluster(3).await;
    for index in 0..200 {
        put(&client, &format!("k{index}"), "v").await;
    }
    let writer = Writer::start(&client);
    let mut spares = Vec::new();
    for name in ["n4", "n5"] {
        spares.push(spare(&mut world, &client, name).await);
    }
    // The second begins as soon as the first is done, while what it has left is still handed over.
    for id in spares {
        let number = apply(&client, Change::Add { node: id }).await;
        let done = until_done(&client, number).await;
        assert_eq!((done.kind().word(), done.entering.as_slice()), ("add", [id.0].as_slice()));
    }
    writer.go_on().await;
    let leaving = number(&reports(&client).await, "n2").unwrap();
    let removal = apply(&client, Change::Remove { node: leaving }).await;
    until_done(&client, removal).await;
    let index = world.nodes.iter().position(|node| node.name == "n2").unwrap();
    assert_eq!(wait_for_exit_code(&mut world.nodes[index]), Some(0), "a removed node ends by itself");
    world.nodes.remove(index);
    writer.go_on().await;
    let index = world.nodes.iter().position(|node| node.name == "n3").unwrap();
    let dead = number(&reports(&client).await, "n3").unwrap();
    world.nodes[index].kill();
    world.nodes.remove(index);
    let id = spare(&mut world, &client, "n6").await;
    replace_dead(&client, dead, id).await;
    writer.go_on().await;
    let mut written = writer.end().await;
    written.extend((0..200).map(|index| (format!("k{index}"), "v".to_owned())));
    check(&client, &written, 4, 3).await;
}

/// When a node is killed.
#[derive(Clone, Copy, Debug)]
enum Phase {
    /// The partitions migrate and nothing is copied yet.
    Joint,
    /// Records are on their way.
    Copy,
    /// Some partitions are cut over, others are not.
    CutOver,
    /// All are cut over, and what is left is handed over.
    Drop,
}

impl Phase {
    fn is_now(self, operation: &v1::Operation, reports: &[v1::NodeSnapshot]) -> bool {
        let transfers = || reports.iter().flat_map(|node| &node.transfers);
        match self {
            Self::Joint => operation.migrating > 0,
            Self::Copy => transfers().any(|transfer| {
                transfer.keys > 0 && matches!(transfer.phase(), TransferPhase::Copying | TransferPhase::Verifying)
            }),
            Self::CutOver => operation.moved > 0,
            Self::Drop => operation.state() == OperationState::Done,
        }
    }
}

/// Kills the node called `victim` in one phase of adding n4, and starts it again.
async fn survives(phase: Phase, victim: &str) {
    let (mut world, client) = World::cluster(3).await;
    for index in 0..300 {
        put(&client, &format!("k{index}"), &"v".repeat(100)).await;
    }
    let id = spare(&mut world, &client, "n4").await;
    let writer = Writer::start(&client);
    // Slow enough that each phase can be seen, whatever the machine does.
    throttle(&client, Some(4096)).await;
    let number = apply(&client, Change::Add { node: id }).await;
    until_async("the phase is reached", || async {
        if matches!(phase, Phase::CutOver | Phase::Drop) {
            throttle(&client, None).await;
        }
        let (operation, reports) = (operation(&client, number).await?, reports(&client).await);
        phase.is_now(&operation, &reports).then_some(())
    })
    .await;
    let index = world.nodes.iter().position(|node| node.name == victim).unwrap();
    world.nodes[index].kill();
    writer.go_on().await;
    world.nodes[index].restart();
    throttle(&client, None).await;
    until_done(&client, number).await;
    writer.go_on().await;
    let mut written = writer.end().await;
    written.extend((0..300).map(|index| (format!("k{index}"), "v".repeat(100))));
    check(&client, &written, 4, 3).await;
}

#[tokio::test]
async fn the_destination_dies_in_joint() {
    survives(Phase::Joint, "n4").await;
}

#[tokio::test]
async fn the_destination_dies_while_it_copies() {
    survives(Phase::Copy, "n4").await;
}

#[tokio::test]
async fn the_destination_dies_between_cut_overs() {
    survives(Phase::CutOver, "n4").await;
}

#[tokio::test]
async fn a_source_dies_while_it_is_copied_from() {
    survives(Phase::Copy, "n2").await;
}

#[tokio::test]
async fn the_first_leader_dies_between_cut_overs() {
    survives(Phase::CutOver, "n1").await;
}

#[tokio::test]
async fn a_source_dies_while_it_hands_over() {
    survives(Phase::Drop, "n3").await;
}

/// Puts a spare in the place of a dead node, and has the dead one forgotten.
async fn replace_dead(client: &Client, dead: NodeId, id: NodeId) {
    until_async("it is considered down", || async {
        let down = |node: &v1::NodeSnapshot| {
            node.peers.iter().any(|peer| peer.node == dead.0 && peer.state() == MemberState::Down)
        };
        reports(client).await.iter().all(down).then_some(())
    })
    .await;
    let replaced = apply(client, Change::Replace { old: dead, new: id }).await;
    until_done(client, replaced).await;
    let forgotten = apply(client, Change::RemoveDead { node: dead }).await;
    until_done(client, forgotten).await;
    until_async("it is forgotten", || async {
        let description = client.refresh().await.ok()?;
        description.members.iter().all(|member| member.id != dead).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_dead_node_is_replaced() {
    let (mut world, client) = World::cluster(3).await;
    for index in 0..200 {
        put(&client, &format!("k{index}"), "v").await;
    }
    world.wait_until_idle(&client).await;
    let dead = number(&reports(&client).await, "n2").unwrap();
    let error = client
        .apply(v1::ApplyRequest { changes: vec![(&Change::RemoveDead { node: dead }).into()], ..Default::default() })
        .await
        .unwrap_err();
    assert_eq!(error.kind, Kind::Conflict, "it is up: {error}");
    world.nodes[1].kill();
    world.nodes.remove(1);
    let writer = Writer::start(&client);
    let id = spare(&mut world, &client, "n4").await;
    replace_dead(&client, dead, id).await;
    assert_eq!(client.refresh().await.unwrap().members.len(), 3);
    let mut written = writer.end().await;
    written.extend((0..200).map(|index| (format!("k{index}"), "v".to_owned())));
    check(&client, &written, 3, 3).await;
}

#[tokio::test]
async fn what_is_not_possible_is_refused_with_the_remedy() {
    let (mut world, client) = World::cluster(3).await;
    for index in 0..100 {
        put(&client, &format!("k{index}"), &"v".repeat(100)).await;
    }
    let id = spare(&mut world, &client, "n4").await;
    let refused = async |request: v1::ApplyRequest, kind: Kind, says: &str| {
        let error = client.apply(request).await.unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.message.contains(says), "{error}");
    };
    let ask = |change: Change| v1::ApplyRequest { changes: vec![(&change).into()], ..Default::default() };
    let first = number(&reports(&client).await, "n1").unwrap();
    refused(ask(Change::Remove { node: first }), Kind::Conflict, "2 nodes are left for 3 copies").await;
    refused(ask(Change::Add { node: first }), Kind::Conflict, "owns partitions already").await;
    refused(ask(Change::Add { node: NodeId(99) }), Kind::NotFound, "is no member").await;
    refused(v1::ApplyRequest::default(), Kind::Invalid, "changes: are 0").await;
    let add = ask(Change::Add { node: id });
    let wrong = v1::ApplyRequest { plan_hash: "xyz".to_owned(), ..add.clone() };
    refused(wrong, Kind::Invalid, "plan_hash: ").await;
    let stale = v1::ApplyRequest { plan_hash: "0123456789abcdef".to_owned(), ..add.clone() };
    refused(stale, Kind::Conflict, "is stale").await;
    let long = v1::ApplyRequest { by: "x".repeat(200), ..add.clone() };
    refused(long, Kind::Invalid, "by: has 200 bytes").await;
    let odd = v1::ApplyRequest { request_id: vec![1].into(), ..add.clone() };
    refused(odd, Kind::Invalid, "request_id: has 1 bytes").await;
    for nonsense in [0, 1, u64::MAX] {
        let request = v1::ThrottleRequest { bytes_per_second_max: Some(nonsense), by: String::new() };
        assert_eq!(client.throttle(request).await.unwrap_err().kind, Kind::Invalid, "{nonsense}");
    }

    throttle(&client, Some(2048)).await;
    let named = v1::ApplyRequest { request_id: vec![7; 16].into(), ..add.clone() };
    let begun = client.apply(named.clone()).await.unwrap();
    assert_eq!(client.apply(named).await.unwrap().id, begun.id, "a repeated request finds its operation");
    refused(add, Kind::Conflict, "operation 1 (node add n4").await;
    let paused = client.pause(v1::PauseRequest { id: 1, by: "ann".to_owned() }).await.unwrap();
    assert_eq!(paused.state(), OperationState::Paused);
    let resumed = client.resume(v1::ResumeRequest { id: 1, by: "ann".to_owned() }).await.unwrap();
    assert_eq!(resumed.state(), OperationState::Running);
    let cancelled = client.cancel(v1::CancelRequest { id: 1, by: "ann".to_owned() }).await.unwrap();
    assert_eq!((cancelled.state(), cancelled.ended_by.as_str()), (OperationState::Cancelled, "ann"));
    assert!(cancelled.outcome.contains("went back to their owners"), "{}", cancelled.outcome);
    let again = client.cancel(v1::CancelRequest { id: 1, by: String::new() }).await.unwrap_err();
    assert_eq!((again.kind, again.message.contains("is cancelled already")), (Kind::Conflict, true), "{again}");
    let unknown = client.pause(v1::PauseRequest { id: 9, by: String::new() }).await.unwrap_err();
    assert_eq!(unknown.kind, Kind::NotFound, "{unknown}");
    throttle(&client, None).await;
    let written = (0..100).map(|index| (format!("k{index}"), "v".repeat(100))).collect();
    check(&client, &written, 4, 3).await;
    // Stopping a node for maintenance moves nothing.
    let before = client.refresh().await.unwrap().layout.clone();
    assert_eq!(world.nodes[2].stop(), Some(0));
    world.nodes[2].restart();
    until("the log tells that it serves", || world.nodes[2].log().contains("serves as").then_some(()));
    world.wait_until_idle(&client).await;
    let after = client.refresh().await.unwrap().layout.clone();
    let entries = |layout: &Option<Arc<kv_core::ring::Layout>>| layout.as_ref().map(|layout| layout.partitions.clone());
    assert_eq!(entries(&before), entries(&after));
}
