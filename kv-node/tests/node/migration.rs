//! Nodes join, leave and die under constant writes, and nothing that was acknowledged is lost.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use kv_core::error::Kind;
use kv_core::topology::Change;
use kv_core::types::NodeId;
use kv_proto::client::{Client, How, Write};
use kv_proto::v1::{self, MemberState, OperationState, TransferPhase};
use tokio::task::JoinHandle;

use crate::world::{World, get, put, reports, until, until_async, wait_for_exit_code};

/// Writes that were acknowledged, by key: the last value of each.
type Acknowledged = Arc<Mutex<BTreeMap<String, String>>>;

/// Somebody who writes without a pause.
struct Writer {
    stop: Arc<AtomicBool>,
    acknowledged: Acknowledged,
    task: JoinHandle<()>,
}

impl Writer {
    fn start(client: &Client) -> Self {
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Acknowledged::default());
        let (client, ended, known) = (client.clone(), Arc::clone(&stop), Arc::clone(&acknowledged));
        let task = tokio::spawn(async move {
            let mut count = 0_u64;
            while !ended.load(Ordering::Relaxed) {
                // Each key belongs to one write only, so what was acknowledged is what must be read.
                let (key, value) = (format!("w{count}"), format!("v{count}"));
                count += 1;
                let (wire, bytes) = (Bytes::from(key.clone()), Bytes::from(value.clone()));
                if client.put(&How::default(), &wire, &bytes, &Write::default()).await.is_ok() {
                    known.lock().unwrap().insert(key, value);
                }
            }
        });
        Self { stop, acknowledged, task }
    }

    fn count(&self) -> usize {
        self.acknowledged.lock().unwrap().len()
    }

    /// Waits until it has written a good deal more: the cluster serves.
    async fn go_on(&self) {
        let before = self.count();
        until_async("writes go on", || async { (self.count() > before + 20).then_some(()) }).await;
    }

    async fn end(self) -> BTreeMap<String, String> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
        self.acknowledged.lock().unwrap().clone()
    }
}

async fn apply(client: &Client, change: Change) -> u64 {
    // A change may be asked for before every node knows the last one.
    let operation = until_async("the operation begins", || async {
        let request = v1::ApplyRequest { changes: vec![(&change).into()], by: "test".to_owned(), ..Default::default() };
        match client.apply(request).await {
            Ok(operation) => Some(operation),
            Err(error) => {
                assert!(error.kind != Kind::Invalid, "{error}");
                None
            }
        }
    })
    .await;
    operation.id
}

async fn operation(client: &Client, id: u64) -> Option<v1::Operation> {
    let request = v1::OperationsRequest { id, details: true };
    client.operations(request).await.ok()?.operations.into_iter().next()
}

/// Waits for the end of an operation, which must have moved what was planned and no more than needed, with a receipt for
/// each move.
async fn until_done(client: &Client, id: u64) -> v1::Operation {
    let done = until_async("the operation is done", || async {
        operation(client, id).await.filter(|operation| operation.state() == OperationState::Done)
    })
    .await;
    assert_eq!((done.moved, done.moves), (done.moves, done.moves_minimum), "{}", done.command);
    assert_eq!(done.details.len() as u64, done.moves);
    for step in &done.details {
        let receipt = step.receipt.as_ref().unwrap();
        assert!(step.moved && !receipt.sources.is_empty(), "{step:?}");
    }
    done
}

/// Waits until no node has anything left to do, the clean-up included.
async fn until_clean(client: &Client, members: usize) -> Vec<v1::NodeSnapshot> {
    until_async("everything is settled and cleaned up", || async {
        let reports = reports(client).await;
        let clean = |node: &v1::NodeSnapshot| {
            let pending = node.pending.unwrap_or_default();
            let left = pending.replications + pending.hints + pending.lag + pending.refills;
            left + pending.transfers + pending.residue == 0
        };
        (reports.len() == members && reports.iter().all(clean)).then_some(reports)
    })
    .await
}

/// All that was acknowledged is there, and the counts are exact.
async fn check(client: &Client, written: &BTreeMap<String, String>, members: usize, copies: u64) {
    let reports = until_clean(client, members).await;
    for (key, value) in written {
        assert_eq!(get(client, key).await.as_slice(), std::slice::from_ref(value), "{key}");
    }
    let sum = |figure: fn(&v1::NodeSnapshot) -> u64| reports.iter().map(figure).sum::<u64>();
    let keys = sum(|node| node.keys_primary);
    // A write that failed may have reached some copies, and then reaches all of them.
    assert!(keys >= written.len() as u64);
    assert_eq!(sum(|node| node.keys), copies * keys, "each key has all of its copies and no more");
    let mut roots: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
    for figures in reports.iter().flat_map(|node| &node.partitions) {
        roots.entry(figures.partition).or_default().push(figures.merkle_root);
    }
    assert!(roots.values().all(|roots| roots.iter().all(|root| *root == roots[0])), "all copies are equal");
}

fn number(reports: &[v1::NodeSnapshot], name: &str) -> Option<NodeId> {
    reports.iter().find(|node| node.name == name).map(|node| NodeId(node.node))
}

/// Starts a node that becomes a spare, and waits until the others take it for up.
async fn spare(world: &mut World, client: &Client, name: &str) -> NodeId {
    let addresses = world.nodes.iter().map(|node| node.address.clone()).collect::<Vec<_>>().join(",");
    world.add(name, &["--join", &addresses]);
    until_async("the spare is up", || async {
        let reports = reports(client).await;
        let id = number(&reports, name)?;
        let known = |node: &v1::NodeSnapshot| {
            node.node == id.0 || node.peers.iter().any(|peer| peer.node == id.0 && peer.state() == MemberState::Spare)
        };
        reports.iter().all(known).then_some(id)
    })
    .await
}

async fn throttle(client: &Client, limit: Option<u64>) {
    let request = v1::ThrottleRequest { bytes_per_second_max: limit, by: "test".to_owned() };
    client.throttle(request).await.unwrap();
}

#[tokio::test]
async fn a_fourth_and_a_fifth_node_join_and_one_leaves_under_constant_writes() {
    let (mut world, client) = World::cluster(3).await;
    for index in 0..200 {
        put(&client, &format!("k{index}"), "v").await;
    }
    let writer = Writer::start(&client);
    for name in ["n4", "n5"] {
        let id = spare(&mut world, &client, name).await;
        let number = apply(&client, Change::Add { node: id }).await;
        let done = until_done(&client, number).await;
        assert_eq!((done.kind.as_str(), done.entering.as_slice()), ("add", [id.0].as_slice()));
        writer.go_on().await;
    }
    let leaving = number(&reports(&client).await, "n2").unwrap();
    let removal = apply(&client, Change::Remove { node: leaving }).await;
    until_done(&client, removal).await;
    let index = world.nodes.iter().position(|node| node.name == "n2").unwrap();
    assert_eq!(wait_for_exit_code(&mut world.nodes[index]), Some(0), "a removed node ends by itself");
    world.nodes.remove(index);
    writer.go_on().await;
    let mut written = writer.end().await;
    written.extend((0..200).map(|index| (format!("k{index}"), "v".to_owned())));
    check(&client, &written, 4, 3).await;
}

/// When a node is killed.
#[derive(Clone, Copy, Debug)]
enum Phase {
    /// The partitions are in joint and nothing is copied yet.
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
            Self::Joint => operation.joint > 0,
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
    until_async("it is taken for down", || async {
        let down = |node: &v1::NodeSnapshot| {
            node.peers.iter().any(|peer| peer.node == dead.0 && peer.state() == MemberState::Down)
        };
        reports(&client).await.iter().all(down).then_some(())
    })
    .await;
    let replaced = apply(&client, Change::Replace { old: dead, new: id }).await;
    until_done(&client, replaced).await;
    let forgotten = apply(&client, Change::RemoveDead { node: dead }).await;
    until_done(&client, forgotten).await;
    let members = until_async("it is forgotten", || async {
        let members = client.refresh().await.ok()?.members.clone();
        (members.len() == 3).then_some(members)
    })
    .await;
    assert!(members.iter().all(|member| member.member.name != "n2"));
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
