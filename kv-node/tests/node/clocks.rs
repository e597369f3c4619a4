//! Clocks that are off, on real processes.

use bytes::Bytes;
use kv_core::error::Kind;
use kv_core::message::{Consistency, Level};
use kv_proto::client::{Client, How, Options, Retry, Write};
use kv_proto::v1;

use crate::world::{World, report_of, until_async};

/// Three hours.
const AHEAD_MS: &str = "10800000";

const KEY: Bytes = Bytes::from_static(b"key");

/// Three nodes with a keyspace where the last writer wins. The clock of the third is three hours ahead.
async fn cluster() -> (World, Client, How) {
    let mut world = World::new();
    world.add("n1", &["--bootstrap", "--expect", "3", "--partitions", "8"]);
    let first = world.nodes[0].address.clone();
    world.add("n2", &["--join", &first]);
    world.add("n3", &["--join", &first, "--clock-ahead-ms", AHEAD_MS]);
    let client = world.client().await;
    world.wait_until_all_up(&client).await;
    let keyspace = v1::CreateKeyspaceRequest {
        name: "last".to_owned(),
        conflict: v1::Conflict::Lww.into(),
        ..v1::CreateKeyspaceRequest::default()
    };
    until_async("a keyspace is made", || async { client.create_keyspace(keyspace.clone()).await.ok() }).await;
    let how = How { keyspace: "last".to_owned(), ..How::default() };
    until_async("all nodes know the keyspace", || async {
        client.put(&how, &Bytes::from_static(b"other"), &KEY, &Write::default()).await.ok()
    })
    .await;
    (world, client, how)
}

/// What a node says of its clock.
async fn clock(address: &str) -> Option<v1::Clock> {
    report_of(address).await?.clock
}

async fn is_off(address: &str) -> v1::Clock {
    until_async("the node says that its clock is off", || async {
        clock(address).await.filter(|clock| clock.state() == v1::ClockState::Off)
    })
    .await
}

/// A client that knows one node only.
async fn by_way_of(address: &str) -> Client {
    Client::connect(&[address.to_owned()], Options { retry: Retry::Never, ..Options::default() }).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_ahead_is_named_and_makes_no_later_write_lose() {
    let (world, client, how) = cluster().await;
    let third = world.nodes[2].address.clone();
    let off = is_off(&third).await;
    assert!((10_799_000_000..10_801_000_000).contains(&off.ahead_us), "{off:?}");
    for node in &world.nodes[..2] {
        let right = until_async("the others are right", || async {
            let right = clock(&node.address).await.filter(|clock| clock.state() == v1::ClockState::Right)?;
            right.peers.iter().any(|peer| peer.ahead_us > 10_799_000_000).then_some(right)
        })
        .await;
        assert_eq!(right.ahead_us, 0);
    }
    assert_eq!(world.nodes[2].metric("clock_off"), Some(1));

    // Put there, then at another node, in turns: the later one is read everywhere.
    let all = How { consistency: Consistency { level: Level::All, strict: true }, ..how.clone() };
    let direct = [by_way_of(&third).await, by_way_of(&world.nodes[0].address).await];
    for round in 0..4 {
        let value = Bytes::from(format!("v{round}"));
        direct[round % 2].put(&how, &KEY, &value, &Write::default()).await.unwrap();
        for node in &world.nodes {
            let got = by_way_of(&node.address).await.get(&all, &KEY).await.unwrap();
            let values: Vec<_> = got.values.iter().map(|found| found.value.clone()).collect();
            assert_eq!(values, std::slice::from_ref(&value), "by way of {}", node.name);
        }
    }
    // What lives for an hour is not over after three hours on one clock.
    let hour = Write { ttl: Some(std::time::Duration::from_secs(3600)), ..Write::default() };
    direct[0].put(&how, &KEY, &Bytes::from_static(b"lives"), &hour).await.unwrap();
    assert_eq!(by_way_of(&third).await.get(&all, &KEY).await.unwrap().values.len(), 1);
    world.wait_until_idle(&client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_clock_is_off_refuses_what_nobody_else_can_coordinate() {
    let (mut world, _client, how) = cluster().await;
    let third = world.nodes[2].address.clone();
    is_off(&third).await;
    for node in &mut world.nodes[..2] {
        node.kill();
    }
    let alone = by_way_of(&third).await;
    let one = How { consistency: Consistency { level: Level::One, strict: false }, ..how };
    let error = until_async("the node is alone", || async {
        let refused = alone.put(&one, &KEY, &Bytes::from_static(b"v"), &Write::default()).await.unwrap_err();
        refused.message.contains("no other owner can be reached").then_some(refused)
    })
    .await;
    assert_eq!(error.kind, Kind::Unavailable, "{error}");
    assert!(error.message.contains("ahead of those of most members") && error.message.contains("NTP"), "{error}");
    // What needs no clock is served as before.
    let how = How { consistency: one.consistency, ..How::default() };
    alone.put(&how, &KEY, &Bytes::from_static(b"v"), &Write::default()).await.unwrap();
}
