//! Tombstones on real processes: they go from every disk when every member has settled, wait for one that is down, and go on when it is back.

use bytes::Bytes;
use kv_proto::client::{Client, How};
use kv_proto::v1;

use crate::world::{World, get, put, reports, until, until_async};

const KEYS: usize = 200;

/// A cluster of three whose tombstones go when they are a second old, and twice the allowed skew.
pub(crate) async fn cluster() -> (World, Client) {
    let mut world = World::new();
    let age = ["--tombstone-age-s", "1"];
    let founds = ["--bootstrap", "--expect", "3", "--partitions", "8", "--repeat-within-s", "1"];
    world.add("n1", &[&founds[..], &age].concat());
    for name in ["n2", "n3"] {
        let first = world.nodes[0].address.clone();
        world.add(name, &[&["--join", first.as_str()][..], &age].concat());
    }
    let client = world.client().await;
    world.wait_until_all_up(&client).await;
    (world, client)
}

async fn write_and_delete(client: &Client, prefix: &str) {
    for index in 0..KEYS {
        let key = format!("{prefix}{index}");
        put(client, &key, "a value").await;
        until_async("the delete is taken", || async {
            client.delete(&How::default(), &Bytes::from(key.clone()), None).await.ok()
        })
        .await;
    }
}

fn settling(reports: &[v1::NodeSnapshot]) -> Vec<v1::Settling> {
    reports.iter().map(|node| node.settling.clone().unwrap_or_default()).collect()
}

/// Waits until no node holds a tombstone.
pub(crate) async fn until_collected(client: &Client, members: usize) -> Vec<v1::NodeSnapshot> {
    until_async("the tombstones are collected", || async {
        let reports = reports(client).await;
        let none = settling(&reports).iter().all(|settling| settling.tombstones == 0);
        (reports.len() == members && none).then_some(reports)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn tombstones_go_from_every_node_and_wait_for_a_member_that_is_down() {
    let (mut world, client) = cluster().await;
    put(&client, "stays", "here").await;
    write_and_delete(&client, "first").await;
    let reports_then = until_collected(&client, 3).await;
    for node in &reports_then {
        let collected = node.settling.clone().unwrap_or_default().collected;
        assert!(collected >= KEYS as u64, "{} has collected {collected}", node.name);
        assert!(node.bytes < 1000, "{} counts {} bytes for one key", node.name, node.bytes);
        assert_eq!(node.keys, 1, "{}", node.name);
    }
    let before: u64 = reports_then.iter().map(|node| node.settling.clone().unwrap_or_default().collected).sum();

    // With a member down nothing goes, and the others say for whom they wait.
    let absent = reports_then.iter().find(|node| node.name == "n3").map_or(0, |node| node.node);
    world.nodes[2].stop();
    write_and_delete(&client, "second").await;
    let waiting = until_async("the others say who holds them up", || async {
        let reports = reports(&client).await;
        let says = |settling: &v1::Settling| settling.hindered_by == absent && settling.hindered_why == "is down";
        (reports.len() == 2 && settling(&reports).iter().all(says)).then_some(reports)
    })
    .await;
    for node in &waiting {
        let settling = node.settling.clone().unwrap_or_default();
        assert_eq!(settling.tombstones, KEYS as u64, "{}", node.name);
        assert!(settling.due_partitions > 0 && settling.oldest_us > 0, "{settling:?}");
    }
    assert_eq!(world.nodes[0].metric("settling_hindered"), Some(1));
    assert_eq!(world.nodes[0].metric("tombstones"), Some(KEYS as u64));

    // It comes back, and everything goes on. A crash in between takes nothing back.
    world.nodes[2].restart();
    let done = until_collected(&client, 3).await;
    let after: u64 = done.iter().map(|node| node.settling.clone().unwrap_or_default().collected).sum();
    assert!(after > before, "{after} were collected, {before} before");
    for node in &mut world.nodes {
        node.kill();
        node.restart();
    }
    world.wait_until_all_up(&client).await;
    until_collected(&client, 3).await;
    assert_eq!(get(&client, "stays").await, ["here"]);
    for key in ["first0", "second0", "second199"] {
        assert_eq!(get(&client, key).await, [""; 0], "{key} is back");
    }
    until("nobody is held up", || (world.nodes[0].metric("settling_hindered")? == 0).then_some(()));
}
