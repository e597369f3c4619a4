//! Nodes die, stall and come back.

use std::time::Duration;

use bytes::Bytes;
use kv_core::error::Kind;
use kv_core::message::{Consistency, Level};
use kv_proto::client::{Client, How, Write};
use kv_proto::v1::MemberState;

use crate::world::{World, get, options, put, reports, until_async};

#[tokio::test]
async fn a_killed_node_is_not_noticed_by_clients_and_catches_up() {
    let (mut world, client) = World::cluster(3).await;
    for index in 0..50 {
        put(&client, &format!("k{index}"), "before").await;
    }
    world.nodes[2].kill();
    for index in 0..50 {
        put(&client, &format!("k{index}"), "after").await;
        assert_eq!(get(&client, &format!("k{index}")).await, ["after"]);
    }
    world.nodes[2].restart();
    world.wait_until_all_up(&client).await;
    world.wait_until_idle(&client).await;
    let reports = reports(&client).await;
    assert_eq!(reports.iter().map(|node| node.keys).sum::<u64>(), 150);
    let roots =
        |index: usize| reports[index].partitions.iter().map(|partition| partition.merkle_root).collect::<Vec<_>>();
    assert_eq!(roots(0), roots(2), "what was missed has been delivered");
    assert_eq!(roots(1), roots(2));
}

#[tokio::test]
async fn a_stalled_node_blocks_nobody_and_is_taken_for_down() {
    let (world, client) = World::cluster(3).await;
    world.nodes[1].signal("STOP");
    for index in 0..20 {
        put(&client, &format!("k{index}"), "v").await;
        assert_eq!(get(&client, &format!("k{index}")).await, ["v"]);
    }
    until_async("the others take it for down", || async {
        let reports = reports(&client).await;
        let down = reports.iter().flat_map(|node| &node.peers).filter(|peer| peer.state() == MemberState::Down);
        (down.count() == 2).then_some(())
    })
    .await;
    world.nodes[1].signal("CONT");
    world.wait_until_all_up(&client).await;
    world.wait_until_idle(&client).await;
    let reports = reports(&client).await;
    assert!(reports.iter().all(|node| node.keys == 20), "the stalled node has caught up");
}

#[tokio::test]
async fn a_node_whose_store_has_failed_is_down_for_its_peers() {
    let (world, client) = World::cluster(3).await;
    put(&client, "k", "before").await;
    world.nodes[2].fail_writes();
    // Whoever owns the key: every write goes to all three stores.
    put(&client, "k", "after").await;
    until_async("both others take it for down, and say why", || async {
        let reports = reports(&client).await;
        let why = |report: &kv_proto::v1::NodeSnapshot| {
            let peer = report.peers.iter().find(|peer| peer.state() == MemberState::Down)?;
            peer.reason.contains("has stopped serving").then_some(())
        };
        // The node itself still answers for its own view, in which it has no sessions.
        let others: Vec<_> = reports.iter().filter(|report| report.name != "n3").collect();
        (others.len() == 2 && others.into_iter().all(|report| why(report).is_some())).then_some(())
    })
    .await;
    // Nothing is left waiting for an answer from it.
    for index in 0..20 {
        put(&client, &format!("k{index}"), "v").await;
        assert_eq!(get(&client, &format!("k{index}")).await, ["v"]);
    }
    assert_eq!(get(&client, "k").await, ["after"]);
}

#[tokio::test]
async fn without_a_majority_data_is_served_and_changes_are_refused() {
    let (mut world, client) = World::cluster(3).await;
    put(&client, "k", "v").await;
    world.nodes[1].kill();
    world.nodes[2].kill();
    // A restart without anybody to ask: the newest layout is on disk.
    world.nodes[0].kill();
    world.nodes[0].restart();
    let alone = Client::connect(&[world.nodes[0].address.clone()], options()).await.unwrap();
    let one = How { consistency: Consistency { level: Level::One, strict: false }, ..How::default() };
    let key = Bytes::from_static(b"k");
    let got = until_async("the node serves alone", || async { alone.get(&one, &key).await.ok() }).await;
    assert_eq!(got.values[0].value, "v");
    alone.put(&one, &Bytes::from_static(b"k2"), &Bytes::from_static(b"v2"), &Write::default()).await.unwrap();
    let brief = How { timeout: Some(Duration::from_secs(2)), ..How::default() };
    let error = alone.get(&brief, &key).await.unwrap_err();
    assert_eq!(error.kind, Kind::Unavailable, "R=2 cannot be had: {error}");
    let keyspace = kv_proto::v1::CreateKeyspaceRequest {
        name: "more".to_owned(),
        ..kv_proto::v1::CreateKeyspaceRequest::default()
    };
    let error = alone.create_keyspace(keyspace).await.unwrap_err();
    assert!(matches!(error.kind, Kind::Unavailable | Kind::Unknown), "{error}");
}

#[tokio::test]
async fn a_wiped_node_is_refilled_before_it_answers() {
    let (mut world, client) = World::cluster(3).await;
    for index in 0..100 {
        put(&client, &format!("k{index}"), "v").await;
    }
    world.wait_until_idle(&client).await;
    world.nodes[1].kill();
    std::fs::remove_dir_all(world.dir("n2").join("store")).unwrap();
    world.nodes[1].restart();
    world.wait_until_all_up(&client).await;
    world.wait_until_idle(&client).await;
    let reports = reports(&client).await;
    assert!(reports.iter().all(|node| node.keys == 100), "{:?}", reports.iter().map(|n| n.keys).collect::<Vec<_>>());
    assert!(world.nodes[1].log().contains("refilled"), "the refill is told");
}

#[tokio::test]
async fn a_node_takes_the_place_of_a_lost_one() {
    let (mut world, client) = World::cluster(3).await;
    for index in 0..100 {
        put(&client, &format!("k{index}"), "v").await;
    }
    world.wait_until_idle(&client).await;
    let lost = reports(&client).await[1].store_id;
    world.nodes[1].kill();
    world.nodes.remove(1);
    std::fs::remove_dir_all(world.dir("n2")).unwrap();
    let first = world.nodes[0].address.clone();
    world.add("n2", &["--join", &first, "--replaces", &format!("{lost:016x}")]);
    world.wait_until_all_up(&client).await;
    world.wait_until_idle(&client).await;
    let reports = reports(&client).await;
    assert!(reports.iter().all(|node| node.keys == 100 && node.partitions_held == 32));
    assert!(reports.iter().all(|node| node.store_id != lost));
}

#[tokio::test]
async fn a_late_arrival_is_a_spare_that_passes_requests_on() {
    let (mut world, client) = World::cluster(3).await;
    put(&client, "k", "v").await;
    let first = world.nodes[0].address.clone();
    let spare = world.add("n4", &["--join", &first]);
    world.wait_until_all_up(&client).await;
    let request = kv_proto::v1::GetRequest { key: Bytes::from_static(b"k"), ..Default::default() };
    let address = format!("http://{}", world.nodes[spare].address);
    let mut direct = kv_proto::v1::key_value_client::KeyValueClient::connect(address).await.unwrap();
    let got = direct.get(request).await.unwrap().into_inner();
    assert_eq!(got.versions[0].value, "v");
    let reports = reports(&client).await;
    assert_eq!(reports[spare].state(), MemberState::Spare);
    assert_eq!(reports[spare].partitions_held, 0);
    assert!(reports[spare].counters.unwrap_or_default().forwards > 0);
}
