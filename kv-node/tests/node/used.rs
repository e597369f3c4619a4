//! Starts on used data directories: after a loss of power, after a roll-back, with old flags, at other addresses.

use std::path::Path;
use std::time::{Duration, Instant};

use kv_proto::client::Client;

use crate::world::{Node, World, free_port, get, options, put, reports, run_to_end, strings, until_async};

pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test]
async fn a_node_whose_listen_file_was_lost_with_the_power_starts_where_it_was() {
    let (mut world, client) = World::cluster(1).await;
    put(&client, "k", "v").await;
    let file = world.dir("n1").join("listen");
    let right = std::fs::read(&file).unwrap();
    for damaged in [&b""[..], b"\0\0\0\0\0\0\0\0", &right[..right.len() - 2], b"\xffgarbage\n"] {
        world.nodes[0].kill();
        std::fs::write(&file, damaged).unwrap();
        world.nodes[0].restart();
        let log = world.nodes[0].log();
        assert!(log.contains("is damaged; it is written again from the address that the cluster knows"), "{log}");
        assert_eq!(std::fs::read(&file).unwrap(), right);
        let client = world.client().await;
        assert_eq!(get(&client, "k").await, ["v"]);
    }
}

#[tokio::test]
async fn a_node_with_old_flags_takes_what_was_agreed_on() {
    let (mut world, client) = World::cluster(3).await;
    put(&client, "k", "v").await;
    world.nodes[1].kill();
    world.nodes[1].restart_with(&[("--zone", "mars"), ("--weight", "3")]);
    world.wait_until_all_up(&client).await;
    let reports = reports(&client).await;
    assert_eq!((reports[1].zone.as_str(), reports[1].weight), ("default", 1.0));
    let log = world.nodes[1].log();
    for word in
        ["--zone is not what the cluster has agreed on", "mars", "--weight is not what the cluster", "node weight"]
    {
        assert!(log.contains(word), "{word} is missing in {log}");
    }
    // The number of copies can be changed, too, since the cluster was founded.
    world.nodes[0].kill();
    world.nodes[0].restart_with(&[("--copies", "2")]);
    world.wait_until_all_up(&client).await;
    assert!(world.nodes[0].log().contains("--copies 2 is not what the cluster was founded with"));
    assert_eq!(client.refresh().await.unwrap().layout.as_ref().unwrap().copies, 3);
}

#[tokio::test]
async fn a_store_that_was_rolled_back_is_renewed_every_time() {
    let (mut world, client) = World::cluster(3).await;
    let older = world.dir("older");
    for round in 0..8 {
        put(&client, &format!("k{round}"), "v").await;
        world.wait_until_idle(&client).await;
        let before = reports(&client).await[2].store_id;
        world.nodes[2].kill();
        copy(&world.dir("n3"), &older);
        world.nodes[2].restart();
        world.wait_until_all_up(&client).await;
        world.nodes[2].kill();
        std::fs::remove_dir_all(world.dir("n3")).unwrap();
        std::fs::rename(&older, world.dir("n3")).unwrap();
        world.nodes[2].restart();
        until_async("the store is renewed", || async {
            let reports = reports(&client).await;
            (reports.len() == 3 && reports[2].store_id != before).then_some(())
        })
        .await;
        world.wait_until_all_up(&client).await;
        let log = world.nodes[2].log();
        assert!(log.contains("the store starts again under a new id"), "round {round}: {log}");
    }
    world.wait_until_idle(&client).await;
    for round in 0..8 {
        assert_eq!(get(&client, &format!("k{round}")).await, ["v"]);
    }
}

#[tokio::test]
async fn the_place_of_a_member_that_is_up_is_not_given_away() {
    let (mut world, client) = World::cluster(3).await;
    put(&client, "k", "v").await;
    let held = format!("{:016x}", reports(&client).await[1].store_id);
    let first = world.nodes[0].address.clone();
    let directory = world.dir("imposter");
    let flags = ["--data-dir", directory.to_str().unwrap(), "--listen", "127.0.0.1:0", "--name", "n2"];
    let flags = [&flags[..], &["--join", &first, "--replaces", &held]].concat();
    let (code, log) = run_to_end(&strings(&flags));
    assert_eq!(code, Some(1), "{log}");
    for word in ["n2 is up at", &world.nodes[1].address, &held, "stop it first", "--name"] {
        assert!(log.contains(word), "{word} is missing in {log}");
    }
    // A frozen member may go on at any moment: its place is free when it is down.
    world.wait_until_all_up(&client).await;
    assert_eq!(format!("{:016x}", reports(&client).await[1].store_id), held, "n2 has kept its place");
    world.nodes[1].kill();
    world.nodes.remove(1);
    world.add("n2", &["--join", &first, "--replaces", &held]);
    world.wait_until_all_up(&client).await;
    assert_eq!(get(&client, "k").await, ["v"]);
}

/// Restarts `moved` of `count` nodes on other ports, each told the new addresses that `joins` gives it; how long it took
/// until all were up, at their new addresses and agreed on.
async fn all_find_each_other(
    count: usize,
    moved: &[usize],
    joins: impl Fn(&[String], usize) -> Vec<String>,
) -> Duration {
    let (mut world, client) = World::cluster(count).await;
    put(&client, "k", "v").await;
    world.wait_until_idle(&client).await;
    drop(client);
    for &index in moved {
        world.nodes[index].kill();
    }
    let mut addresses = world.addresses();
    for &index in moved {
        addresses[index] = format!("127.0.0.1:{}", free_port());
    }
    let begin = Instant::now();
    for &index in moved {
        let join = joins(&addresses, index).join(",");
        let flags: &[(&str, &str)] = &[("--listen", &addresses[index]), ("--join", &join)];
        world.nodes[index].restart_at(flags);
        assert_eq!(world.nodes[index].address, addresses[index]);
    }
    let client = until_async("a node answers", || async { Client::connect(&addresses, options()).await.ok() }).await;
    world.wait_until_all_up(&client).await;
    let took = begin.elapsed();
    until_async("all nodes have agreed on the new addresses", || async {
        let description = client.refresh().await.ok()?;
        let mut known: Vec<&str> = description.members.iter().map(|member| member.address.as_str()).collect();
        let mut expected: Vec<&str> = addresses.iter().map(String::as_str).collect();
        known.sort_unstable();
        expected.sort_unstable();
        (known == expected).then_some(())
    })
    .await;
    assert_eq!(get(&client, "k").await, ["v"]);
    put(&client, "k2", "v").await;
    // What was found is agreed on: a further start needs no hint.
    world.nodes.iter_mut().for_each(Node::kill);
    world.nodes.iter_mut().for_each(|node| node.restart_at(&[("--join", "")]));
    world.wait_until_all_up(&client).await;
    assert_eq!(get(&client, "k2").await, ["v"]);
    took
}

fn all(addresses: &[String], index: usize) -> Vec<String> {
    addresses.iter().enumerate().filter(|(other, _)| *other != index).map(|(_, address)| address.clone()).collect()
}

#[tokio::test]
async fn three_nodes_that_have_all_moved_find_each_other() {
    all_find_each_other(3, &[0, 1, 2], all).await;
}

#[tokio::test]
async fn nodes_find_each_other_by_one_address_that_leads_to_one_of_them() {
    // Nobody is told where the last one is but itself, which is told of one other.
    all_find_each_other(3, &[0, 1, 2], |addresses, index| vec![addresses[usize::from(index == 0)].clone()]).await;
}

#[tokio::test]
async fn some_of_three_nodes_that_have_moved_are_found() {
    all_find_each_other(3, &[1, 2], all).await;
    all_find_each_other(3, &[0], all).await;
}

#[tokio::test]
async fn two_nodes_that_have_both_moved_find_each_other() {
    all_find_each_other(2, &[0, 1], all).await;
}

#[tokio::test]
async fn five_nodes_that_have_all_moved_find_each_other() {
    all_find_each_other(5, &[0, 1, 2, 3, 4], all).await;
}

/// Writes another address of a member into the newest agreed state that a stopped node has stored, as a build could that did
/// not check addresses. Both have the same length, so that nothing else of the state changes.
fn store_address(directory: &Path, good: &str, bad: &str) {
    const HEADER: usize = 16;
    let file = directory.join("control").join("newest");
    let mut bytes = std::fs::read(&file).unwrap();
    let places: Vec<usize> =
        (HEADER..bytes.len() - good.len()).filter(|&at| bytes[at..].starts_with(good.as_bytes())).collect();
    assert!(!places.is_empty() && good.len() == bad.len(), "{good} is not stored");
    for at in places {
        bytes[at..at + bad.len()].copy_from_slice(bad.as_bytes());
    }
    let sum = xxhash_rust::xxh3::xxh3_64(&bytes[HEADER..]);
    bytes[8..HEADER].copy_from_slice(&sum.to_le_bytes());
    std::fs::write(&file, bytes).unwrap();
}

#[tokio::test]
async fn a_member_that_was_stored_with_a_bad_address_keeps_no_other_from_being_used() {
    let (mut world, client) = World::cluster(3).await;
    put(&client, "k", "v").await;
    let good = world.nodes[1].address.clone();
    let bad = format!("{:0>1$}", "::1:7400", good.len());
    world.nodes.iter_mut().for_each(Node::kill);
    store_address(&world.dir("n1"), &good, &bad);
    // Alone it learns nothing newer.
    world.nodes[0].restart();
    let first = Client::connect(&[world.nodes[0].address.clone()], options()).await.unwrap();
    let description = first.description();
    let stored: Vec<&str> = description.members.iter().map(|member| member.address.as_str()).collect();
    assert!(stored.len() == 3 && stored.contains(&bad.as_str()), "{stored:?}");
    assert_eq!(reports(&first).await.len(), 1, "it tells how it is");
    // With the third there is a majority: the two serve, and whoever asks the first finds the third.
    world.nodes[2].restart();
    until_async("the two serve", || async {
        let key = bytes::Bytes::from_static(b"k2");
        let how = kv_proto::client::How::default();
        first.put(&how, &key, &key, &kv_proto::client::Write::default()).await.ok()
    })
    .await;
    assert_eq!((get(&first, "k").await, get(&first, "k2").await), (vec!["v".to_owned()], vec!["k2".to_owned()]));
    // When it comes itself its own word counts.
    world.nodes[1].restart();
    world.wait_until_all_up(&first).await;
    until_async("its address is known again", || async {
        let description = first.refresh().await.ok()?;
        description.members.iter().any(|member| member.address == good).then_some(())
    })
    .await;
}
