//! Data directories that come back as copies of what they were: whatever they were copied from, and however often they were
//! started since, the others notice (rule D2).

use std::path::Path;

use bytes::Bytes;
use kv_proto::client::{Client, How};
use kv_proto::v1;

use crate::strangers::incarnation_of;
use crate::used::copy;
use crate::world::{World, get, put, reports, run_to_end, strings, until, until_async, wait_for_exit_code};
use crate::{collecting, recover};

const KEYS: usize = 100;

async fn write_all(world: &World, client: &Client, value: &str) {
    for index in 0..KEYS {
        put(client, &format!("k{index}"), value).await;
    }
    // Every owner has acknowledged to whoever coordinated: each of them knows how far the others are.
    world.wait_until_idle(client).await;
}

async fn expect_all(client: &Client, value: &str) {
    for index in 0..KEYS {
        assert_eq!(get(client, &format!("k{index}")).await, [value], "k{index}");
    }
}

/// Waits until the third node serves under another store than before, and has all that the others have.
async fn until_renewed(world: &World, client: &Client, before: u64) {
    until_async("the store is renewed", || async {
        let reports = reports(client).await;
        (reports.len() == 3 && reports[2].store_id != before).then_some(())
    })
    .await;
    world.wait_until_all_up(client).await;
    world.wait_until_idle(client).await;
    let log = world.nodes[2].log();
    for word in
        ["older copy of its store", "which others have seen", "starts again under a new id", "kept as an old copy"]
    {
        assert!(log.contains(word), "{word:?} is missing in {log}");
    }
    // The log of the control plane stays as well, until what is agreed on has the new store.
    let name = format!("former-{before:016x}-vote");
    assert!(world.dir("n3").join("control").join(&name).exists(), "{name} is kept");
}

/// The third node's directory is what it was when it was copied.
fn restore(world: &mut World, kept: &Path) {
    world.nodes[2].kill();
    std::fs::remove_dir_all(world.dir("n3")).unwrap();
    copy(kept, &world.dir("n3"));
}

#[tokio::test]
async fn a_copy_of_a_running_node_is_noticed_when_it_comes_back() {
    let (mut world, client) = World::cluster(3).await;
    write_all(&world, &client, "old").await;
    let before = reports(&client).await[2].store_id;
    let kept = world.dir("kept");
    // Nothing is written meanwhile but what nodes remember of each other, so the copy is whole.
    copy(&world.dir("n3"), &kept);
    write_all(&world, &client, "new").await;
    // Not a single start lies between the two, and the copy counts one more.
    restore(&mut world, &kept);
    world.nodes[2].restart();
    until_renewed(&world, &client, before).await;
    expect_all(&client, "new").await;

    // The next start finds that the new store was agreed on.
    world.nodes[2].kill();
    world.nodes[2].restart();
    world.wait_until_all_up(&client).await;
    let names = std::fs::read_dir(world.dir("n3").join("control")).unwrap().map(|entry| entry.unwrap().file_name());
    let former: Vec<_> = names.filter(|name| name.to_string_lossy().starts_with("former-")).collect();
    assert!(former.is_empty(), "{former:?}");

    // The same copy once more: now its store was given up. The node stops, and its disk is kept.
    world.nodes[2].kill();
    let renewed = world.dir("renewed");
    std::fs::rename(world.dir("n3"), &renewed).unwrap();
    copy(&kept, &world.dir("n3"));
    world.nodes[2].restart();
    assert_eq!(wait_for_exit_code(&mut world.nodes[2]), Some(0));
    let log = world.nodes[2].log();
    assert!(log.contains("was given up and must not come back"), "{log}");
    for name in ["identity", "data"] {
        assert!(world.dir("n3").join("store").join(name).exists(), "{name} is kept");
    }
    std::fs::rename(world.dir("n3"), world.dir("given-up")).unwrap();
    std::fs::rename(&renewed, world.dir("n3")).unwrap();
    world.nodes[2].restart();
    world.wait_until_all_up(&client).await;
    expect_all(&client, "new").await;
}

#[tokio::test]
async fn what_was_deleted_meanwhile_is_set_aside() {
    let (mut world, client) = collecting::cluster().await;
    put(&client, "gone", "a value").await;
    write_all(&world, &client, "old").await;
    let before = reports(&client).await[2].store_id;
    let kept = world.dir("kept");
    copy(&world.dir("n3"), &kept);
    until_async("the delete is taken", || async {
        client.delete(&How::default(), &Bytes::from_static(b"gone"), None).await.ok()
    })
    .await;
    collecting::until_collected(&client, 3).await;
    restore(&mut world, &kept);
    world.nodes[2].restart();
    until_renewed(&world, &client, before).await;
    assert!(get(&client, "gone").await.is_empty(), "it does not come back");
    expect_all(&client, "old").await;
    let aside = reports(&client).await[2].settling.clone().unwrap_or_default().set_aside;
    assert_eq!((aside, world.nodes[2].metric("set_aside_values")), (1, Some(1)));

    world.nodes[2].kill();
    let lines = recover::done(&["--data-dir", world.dir("n3").to_str().unwrap(), "--set-aside"]);
    assert_eq!(lines.lines().count(), 1, "{lines}");
    for part in [r#""key":"gone""#, r#""value":"a value""#, r#""keyspace":0"#] {
        assert!(lines.contains(part), "{part} is missing in {lines}");
    }
}

#[tokio::test]
async fn a_copy_that_failed_to_start_is_noticed_when_it_comes_back() {
    let (mut world, client) = World::cluster(3).await;
    write_all(&world, &client, "old").await;
    let before = reports(&client).await[2].store_id;
    let kept = world.dir("kept");
    copy(&world.dir("n3"), &kept);
    world.nodes[2].kill();
    world.nodes[2].restart();
    world.wait_until_all_up(&client).await;
    write_all(&world, &client, "new").await;
    restore(&mut world, &kept);
    let taken = world.nodes[0].address.clone();
    for _ in 0..2 {
        let directory = world.dir("n3");
        let flags = ["--data-dir", directory.to_str().unwrap(), "--name", "n3", "--listen", &taken];
        let (code, log) = run_to_end(&strings(&flags));
        assert_eq!(code, Some(1), "{log}");
        assert!(log.contains("another process listens there"), "{log}");
    }
    world.nodes[2].restart();
    until_renewed(&world, &client, before).await;
    expect_all(&client, "new").await;
}

#[tokio::test]
async fn a_start_that_fails_is_no_boot() {
    let (mut world, client) = World::cluster(3).await;
    put(&client, "k", "v").await;
    let before = incarnation_of(&world.nodes[2]).await;
    assert_eq!(world.nodes[2].stop(), Some(0));
    let (taken, directory) = (world.nodes[0].address.clone(), world.dir("n3"));
    let directory = directory.to_str().unwrap();
    let identity = std::fs::read(world.dir("n3").join("store").join("identity")).unwrap();
    for flags in [
        // The port is in use; the flags are those of another node; the address is none of this machine.
        vec!["--data-dir", directory, "--name", "n3", "--listen", &taken],
        vec!["--data-dir", directory, "--name", "n3", "--listen", "127.0.0.1:0", "--bootstrap"],
        vec!["--data-dir", directory, "--name", "n4", "--listen", "127.0.0.1:0"],
        vec!["--data-dir", directory, "--name", "n3", "--listen", "192.0.2.1:1", "--allow-open-peers"],
    ] {
        let (code, log) = run_to_end(&strings(&flags));
        assert!(code.is_some_and(|code| code != 0), "{flags:?}: {log}");
        let after = std::fs::read(world.dir("n3").join("store").join("identity")).unwrap();
        assert_eq!(after, identity, "{flags:?} changed the identity of the store");
    }
    world.nodes[2].restart();
    world.wait_until_all_up(&client).await;
    let after = incarnation_of(&world.nodes[2]).await;
    assert_eq!((after.store_id, after.boot), (before.store_id, before.boot + 1));
}

/// Two processes run on copies of one store: the one that peers met last goes on, and the other one stops or renews its store.
#[tokio::test]
async fn a_second_process_on_a_copy_costs_nothing_that_was_acknowledged() {
    let (world, client) = World::cluster(3).await;
    write_all(&world, &client, "v").await;
    let before = reports(&client).await[2].store_id;
    let twin = world.dir("twin");
    copy(&world.dir("n3"), &twin);
    world.nodes[2].signal("STOP");
    // At the address where the first one is not reached: the others dial it there.
    let first = world.nodes[0].address.clone();
    let flags = ["--data-dir", twin.to_str().unwrap(), "--name", "n3", "--listen", "127.0.0.1:0", "--join", &first];
    let (mut child, log) = crate::world::spawn(&strings(&flags));
    until("the second process talks to the others", || {
        let text = log.lock().unwrap().clone();
        (text.contains("is up, store") || text.contains("kv-node: ")).then_some(())
    });
    child.kill().unwrap();
    child.wait().unwrap();
    world.nodes[2].signal("CONT");
    // Whether the others have met the second one or not, in the end there is one node, and everything is there.
    until_async("the third node is a member again", || async {
        let reports = reports(&client).await;
        (reports.len() == 3).then_some(())
    })
    .await;
    world.wait_until_all_up(&client).await;
    world.wait_until_idle(&client).await;
    expect_all(&client, "v").await;
    let after = reports(&client).await[2].store_id;
    let renewed = world.nodes[2].log().contains("starts again under a new id");
    assert_eq!(after != before, renewed, "a store is given up only if others have seen a later boot of it");
}

/// The log of the control plane alone comes back as it was: the node does not vote with it.
#[tokio::test]
async fn a_voter_whose_log_was_set_back_does_not_vote() {
    let (mut world, client) = World::cluster(3).await;
    // Another one leads from here on, and learns what the third has of the log.
    world.nodes[2].kill();
    world.nodes[2].restart();
    world.wait_until_all_up(&client).await;
    until("it votes again", || world.nodes[2].log().contains("it votes from now on").then_some(()));
    let create = async |name: &str| {
        let keyspace = v1::CreateKeyspaceRequest { name: name.to_owned(), ..v1::CreateKeyspaceRequest::default() };
        until_async("a keyspace is made", || async { client.create_keyspace(keyspace.clone()).await.ok() }).await;
    };
    create("before").await;
    let kept = world.dir("kept");
    copy(&world.dir("n3").join("control"), &kept);
    for name in ["one", "two", "three"] {
        create(name).await;
    }
    world.nodes[2].kill();
    let control = world.dir("n3").join("control");
    std::fs::remove_dir_all(&control).unwrap();
    copy(&kept, &control);
    world.nodes[2].restart();
    until("it is told", || world.nodes[2].log().contains("is older than the leader knows it").then_some(()));
    // The others go on without its vote. Whoever makes a keyspace waits for it, since it does not learn of that.
    let keyspace = v1::CreateKeyspaceRequest { name: "after".to_owned(), ..v1::CreateKeyspaceRequest::default() };
    let made = async {
        drop(client.create_keyspace(keyspace).await);
        std::future::pending::<()>().await;
    };
    let agreed = || async { world.nodes[1].log().contains("keyspace after created").then_some(()) };
    tokio::select! {
        () = made => {}
        () = until_async("the others agree on a keyspace", agreed) => {}
    }
    put(&client, "k", "v").await;
    assert_eq!(get(&client, "k").await, ["v"]);
    assert!(!world.nodes[2].log().contains("it votes from now on"), "it has voted");
}
