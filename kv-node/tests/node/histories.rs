//! What clients of a consistent keyspace are told is linearizable, while nodes die, stop, come back, join and leave, and the number of
//! copies changes. The long form, with cuts of the network, is the bench of the same name.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use bytes::Bytes;
use kv_core::topology::Change;
use kv_histories::{Action, Condition, Operation, Outcome, Violation, check, write};
use kv_proto::client::{Client, How};
use kv_proto::v1;
use kv_testing::recording::{Counts, Recorder, Workload};

use crate::moving::{apply, number, spare, until_done};
use crate::world::{World, reports, until_async, wait_for_exit_code};

const KEYSPACE: &str = "histories";

/// Waits until clients have been told a good deal more.
async fn go_on(recorder: &Recorder) {
    let before = recorder.counts().known();
    until_async("clients go on", || async { (recorder.counts().known() > before + 50).then_some(()) }).await;
}

/// Runs clients, and whatever happens meanwhile.
async fn run_with_faults() -> (Vec<Operation>, Counts) {
    let (mut world, client) = World::cluster_of(5, 16).await;
    let mode = v1::KeyspaceMode::Consistent.into();
    let keyspace = v1::CreateKeyspaceRequest { name: KEYSPACE.to_owned(), mode, ..Default::default() };
    client.create_keyspace(keyspace).await.unwrap();
    let how = How { keyspace: KEYSPACE.to_owned(), ..How::default() };
    for node in &world.nodes {
        // Every node knows it before it is asked for it by others.
        let addresses = [node.address.clone()];
        until_async("the node knows the keyspace", || async {
            let client = Client::connect(&addresses, client.options().clone()).await.ok()?;
            client.get(&how, &Bytes::from_static(b"known")).await.ok()
        })
        .await;
    }
    let workload = Workload { keyspace: KEYSPACE.to_owned(), rotate_after: 1000, ..Workload::default() };
    let recorder = Recorder::start(&world.addresses(), workload).await.unwrap();
    go_on(&recorder).await;

    // More copies, while a node dies; fewer, while another one is frozen.
    let operation = apply(&client, Change::Copies { copies: 5 }).await;
    world.nodes[3].kill();
    go_on(&recorder).await;
    world.nodes[3].restart();
    until_done(&client, operation).await;
    go_on(&recorder).await;
    let operation = apply(&client, Change::Copies { copies: 3 }).await;
    world.nodes[1].signal("STOP");
    go_on(&recorder).await;
    world.nodes[1].signal("CONT");
    until_done(&client, operation).await;
    world.wait_until_all_up(&client).await;

    // Two nodes of five are down: some keys have no majority.
    let before = recorder.counts().refused;
    world.nodes[3].kill();
    world.nodes[4].kill();
    until_async("clients are refused", || async { (recorder.counts().refused > before + 10).then_some(()) }).await;
    go_on(&recorder).await;
    world.nodes[3].restart();
    world.nodes[4].restart();
    world.wait_until_all_up(&client).await;

    // A node joins, and dies while it does. Another one leaves.
    let joins = spare(&mut world, &client, "n6").await;
    recorder.ask_at(&world.addresses());
    let operation = apply(&client, Change::Add { node: joins }).await;
    world.nodes[5].kill();
    go_on(&recorder).await;
    world.nodes[5].restart();
    until_done(&client, operation).await;
    let leaves = number(&reports(&client).await, "n5").unwrap();
    let operation = apply(&client, Change::Remove { node: leaves }).await;
    until_done(&client, operation).await;
    let index = world.nodes.iter().position(|node| node.name == "n5").unwrap();
    assert_eq!(wait_for_exit_code(&mut world.nodes[index]), Some(0), "a removed node ends by itself");
    world.nodes.remove(index);
    recorder.ask_at(&world.addresses());
    go_on(&recorder).await;

    // The power fails.
    world.nodes.iter_mut().for_each(|node| node.kill());
    for node in &mut world.nodes {
        node.restart();
    }
    go_on(&recorder).await;
    recorder.stop().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_clients_are_told_is_linearizable() {
    let (history, counts) = run_with_faults().await;
    if let Err(violation) = check(&history) {
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("history-{}.ndjson", std::process::id()));
        write(File::create(&file).unwrap(), &history).unwrap();
        panic!("{violation}\n{} operations are in {}", history.len(), file.display());
    }
    eprintln!("{} operations: {counts}", history.len());
    assert_eq!(counts.wrong, 0, "{}", counts.wrong_because);
    let each =
        [counts.found, counts.absent, counts.scanned, counts.puts, counts.expiring, counts.deletes, counts.failed];
    assert!(each.iter().all(|count| *count > 0), "{counts}");
    let rare = [counts.refused, counts.unknown, counts.repetitions, counts.by_repetition, counts.late];
    assert!(rare.iter().all(|count| *count > 0), "{counts}");
    fails_with_an_older_value(&history);
}

/// One read is told the value that another put had replaced before it began.
fn fails_with_an_older_value(history: &[Operation]) {
    let mut done: BTreeMap<&str, Vec<(&str, &Operation)>> = BTreeMap::new();
    for operation in history.iter().filter(|operation| operation.outcome == Outcome::Done) {
        if let Action::Put { value, when: Condition::Always | Condition::Absent, expires: None } = &operation.action {
            done.entry(&operation.key).or_default().push((value, operation));
        }
    }
    let before = |first: &Operation, then: &Operation| first.returned.is_some_and(|returned| returned < then.called);
    let older = |read: &Operation| {
        let puts = done.get(read.key.as_str())?;
        let (_, replaced_by) = puts.iter().rev().find(|(_, put)| before(put, read))?;
        let (value, _) = puts.iter().rev().find(|(_, put)| before(put, replaced_by))?;
        Some((*value).to_owned())
    };
    let is_read = |operation: &Operation| matches!(operation.outcome, Outcome::Got { value: Some(_) });
    let found = history.iter().enumerate().filter(|(_, operation)| is_read(operation));
    let (at, value) = found.filter_map(|(at, read)| Some((at, older(read)?))).next_back().unwrap();
    let mut changed = history.to_vec();
    changed[at].outcome = Outcome::Got { value: Some(value) };
    match check(&changed) {
        Err(Violation::Impossible { key, .. }) => assert_eq!(key, changed[at].key),
        other => panic!("{}: {other:?}", changed[at]),
    }
}
