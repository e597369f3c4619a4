//! Faults that nodes act out when they are told to.

use std::time::{Duration, Instant};

use bytes::Bytes;
use kv_core::error::Kind;
use kv_core::message::{Consistency, Level};
use kv_core::types::NodeId;
use kv_proto::client::{Client, How, Write};
use kv_proto::v1::key_value_client::KeyValueClient;
use kv_proto::v1::{self, EventKind, MemberState};
use tokio::time::timeout;
use tonic::Code;
use tonic::transport::Channel;

use crate::world::{World, get, put, reports, run_to_end, strings, until_async};

/// Three nodes that take faults.
async fn with_faults() -> (World, Client) {
    World::cluster_with(3, 32, &["--allow-faults"]).await
}

fn cut() -> Option<v1::PathFault> {
    Some(v1::PathFault { cut: true, ..v1::PathFault::default() })
}

fn slow(delay_ms: u32) -> Option<v1::PathFault> {
    Some(v1::PathFault { delay_ms, ..v1::PathFault::default() })
}

/// The numbers of the nodes, in the order of their names.
async fn numbers(client: &Client) -> Vec<NodeId> {
    let description = client.refresh().await.unwrap();
    let number = |name: &str| description.member(name).expect("a member").id;
    ["n1", "n2", "n3"].map(number).to_vec()
}

/// Sets what happens from the last node to the others, and from these to it, on both ends of each link.
async fn isolate(world: &World, client: &Client, out: Option<v1::PathFault>, back: Option<v1::PathFault>) {
    let (numbers, addresses) = (numbers(client).await, world.addresses());
    let link = |address: &String, out, back| v1::LinkFault { address: address.clone(), out, back };
    let faults = |links| v1::Faults { links, ..v1::Faults::default() };
    let mine = addresses[..2].iter().map(|address| link(address, out, back)).collect();
    client.set_faults(numbers[2], faults(mine), "test").await.unwrap();
    for number in &numbers[..2] {
        client.set_faults(*number, faults(vec![link(&addresses[2], back, out)]), "test").await.unwrap();
    }
}

async fn heal(client: &Client) {
    for number in numbers(client).await {
        client.set_faults(number, v1::Faults::default(), "test").await.unwrap();
    }
}

/// How one node sees another one.
async fn sees(client: &Client, node: &str, other: &str) -> Option<MemberState> {
    let description = client.description();
    let id = description.member(other)?.id.0;
    let reports = reports(client).await;
    let report = reports.iter().find(|report| report.name == node)?;
    report.peers.iter().find(|peer| peer.node == id).map(v1::PeerOpinion::state)
}

async fn direct(world: &World, index: usize) -> KeyValueClient<Channel> {
    KeyValueClient::connect(format!("http://{}", world.nodes[index].address)).await.unwrap()
}

fn put_request(keyspace: &str, value: &str) -> v1::PutRequest {
    let value = Bytes::copy_from_slice(value.as_bytes());
    v1::PutRequest { keyspace: keyspace.to_owned(), key: "k".into(), value, ..v1::PutRequest::default() }
}

#[tokio::test]
async fn only_nodes_that_were_started_so_take_faults() {
    let (world, client) = World::cluster(1).await;
    let number = client.description().members[0].id;
    let error = client.set_faults(number, v1::Faults::default(), "test").await.unwrap_err();
    assert!(error.kind == Kind::Conflict && error.message.contains("--allow-faults"), "{error}");
    assert_eq!(reports(&client).await[0].faults, None);
    let data = world.dir("open").display().to_string();
    let args = ["--data-dir", &data, "--listen", "0.0.0.0:0", "--advertise", "127.0.0.1:1", "--allow-open-peers"];
    let args = [&args[..], &["--allow-faults"]].concat();
    let (code, said) = run_to_end(&strings(&args));
    assert!(code == Some(2) && said.contains("allow-faults: is for clusters on one machine"), "{code:?}: {said}");
}

#[tokio::test]
async fn a_node_that_is_cut_off_takes_what_may_be_reconciled_and_refuses_what_may_not() {
    let (world, client) = with_faults().await;
    let mode = v1::KeyspaceMode::Consistent.into();
    let locks = v1::CreateKeyspaceRequest { name: "locks".to_owned(), mode, ..Default::default() };
    client.create_keyspace(locks).await.unwrap();
    put(&client, "k", "before").await;
    isolate(&world, &client, cut(), cut()).await;
    until_async("each side takes the other one for down", || async {
        let down = Some(MemberState::Down);
        let all = sees(&client, "n1", "n3").await == down
            && sees(&client, "n2", "n3").await == down
            && sees(&client, "n3", "n1").await == down
            && sees(&client, "n3", "n2").await == down;
        all.then_some(())
    })
    .await;
    assert_eq!(sees(&client, "n1", "n2").await, Some(MemberState::Up));
    let (mut majority, mut alone) = (direct(&world, 0).await, direct(&world, 2).await);
    majority.put(put_request("default", "of two")).await.unwrap();
    let one_copy = v1::PutRequest { level: v1::Level::One.into(), ..put_request("default", "of one") };
    alone.put(one_copy).await.unwrap();
    majority.put(put_request("locks", "of two")).await.unwrap();
    let refused = alone.put(put_request("locks", "of one")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert!(refused.message().contains("nothing was done"), "{refused}");
    heal(&client).await;
    world.wait_until_all_up(&client).await;
    world.wait_until_idle(&client).await;
    let mut values = get(&client, "k").await;
    values.sort();
    assert_eq!(values, ["of one", "of two"], "both sides were acknowledged");
    let locks = How { keyspace: "locks".to_owned(), ..How::default() };
    let held = client.get(&locks, &Bytes::from_static(b"k")).await.unwrap().values;
    assert_eq!(held.into_iter().map(|value| value.value).collect::<Vec<_>>(), ["of two"]);
    let reports = reports(&client).await;
    let roots = |index: usize| reports[index].partitions.iter().map(|it| it.merkle_root).collect::<Vec<_>>();
    assert!(roots(0) == roots(1) && roots(1) == roots(2), "the copies are equal");
}

#[tokio::test]
async fn what_a_node_sends_is_lost_and_what_it_is_sent_arrives() {
    let (world, client) = with_faults().await;
    isolate(&world, &client, cut(), None).await;
    // Nothing that it answers arrives, either: nobody can know that it hears them.
    until_async("the others take it for down", || async {
        let down = Some(MemberState::Down);
        (sees(&client, "n1", "n3").await == down && sees(&client, "n2", "n3").await == down).then_some(())
    })
    .await;
    put(&client, "k", "v").await;
    heal(&client).await;
    world.wait_until_all_up(&client).await;
    world.wait_until_idle(&client).await;
    assert_eq!(get(&client, "k").await, ["v"]);
}

#[tokio::test]
async fn a_slow_link_makes_slow_what_waits_for_it() {
    let (world, client) = with_faults().await;
    isolate(&world, &client, slow(60), slow(60)).await;
    let all = How { consistency: Consistency { level: Level::All, strict: true }, ..How::default() };
    let began = Instant::now();
    let text = Bytes::from_static;
    client.put(&all, &text(b"k"), &text(b"v"), &Write::default()).await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(120), "{:?}", began.elapsed());
    let request = v1::WatchRequest { once: true, events_after: Some(0), ..v1::WatchRequest::default() };
    let said: Vec<v1::Event> =
        client.reports(request, Duration::from_secs(5)).await.into_iter().flat_map(|report| report.events).collect();
    assert!(said.iter().any(|event| event.kind() == EventKind::FaultsSet && event.message.contains("60 ms later")));
    heal(&client).await;
    assert!(reports(&client).await.iter().all(|report| report.faults == Some(v1::Faults::default())));
}

#[tokio::test]
async fn a_disk_that_stands_still_keeps_what_is_not_durable_waiting() {
    let (world, client) = with_faults().await;
    let number = numbers(&client).await[2];
    let paused = v1::Faults { disk_paused: true, ..v1::Faults::default() };
    client.set_faults(number, paused.clone(), "test").await.unwrap();
    let told = client.faults(Duration::from_secs(5)).await;
    assert!(told.contains(&(number, Ok(paused))), "it says so although its disk stands still: {told:?}");
    // Two copies are enough.
    put(&client, "k", "v").await;
    until_async("its report says that its disk does not answer", || async {
        let reports = reports(&client).await;
        reports.iter().find(|report| report.name == "n3")?.disk_stalled.then_some(())
    })
    .await;
    let mut n1 = direct(&world, 0).await;
    let everywhere = v1::PutRequest { level: v1::Level::All.into(), timeout_ms: 30_000, ..put_request("default", "w") };
    let writing = tokio::spawn(async move { n1.put(everywhere).await });
    heal(&client).await;
    timeout(Duration::from_secs(30), writing).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_full_disk_stops_a_node_until_it_is_started_again() {
    let (mut world, client) = with_faults().await;
    let number = numbers(&client).await[2];
    let full = v1::Faults { disk_full: true, ..v1::Faults::default() };
    client.set_faults(number, full, "test").await.unwrap();
    for index in 0..20 {
        put(&client, &format!("k{index}"), "v").await;
    }
    until_async("the node says why it has stopped", || async {
        let reports = reports(&client).await;
        let n3 = reports.iter().find(|report| report.name == "n3")?;
        n3.poisoned.contains("is full; free space there").then_some(())
    })
    .await;
    world.nodes[2].kill();
    world.nodes[2].restart();
    world.wait_until_all_up(&client).await;
    world.wait_until_idle(&client).await;
    assert!(reports(&client).await.iter().all(|report| report.keys == 20), "nothing that was acknowledged is lost");
}

#[tokio::test]
async fn a_clock_is_shown_wrong_and_clients_are_held_back() {
    let (world, client) = with_faults().await;
    let number = numbers(&client).await[2];
    put(&client, "k", "v").await;
    let faults = v1::Faults { clients_cut: true, clock_ahead_ms: 3_600_000, ..v1::Faults::default() };
    client.set_faults(number, faults, "test").await.unwrap();
    until_async("the others see that its clock is wrong", || async {
        let reports = reports(&client).await;
        let n3 = reports.iter().find(|report| report.name == "n3")?;
        n3.clock.as_ref().filter(|clock| clock.state() == v1::ClockState::Off).map(drop)
    })
    .await;
    let mut n3 = direct(&world, 2).await;
    let get = v1::GetRequest { keyspace: "default".to_owned(), key: "k".into(), ..v1::GetRequest::default() };
    let asking = tokio::spawn(async move { n3.get(get).await });
    heal(&client).await;
    let answer = timeout(Duration::from_secs(30), asking).await.unwrap().unwrap().unwrap().into_inner();
    assert_eq!(answer.versions[0].value, "v");
}
