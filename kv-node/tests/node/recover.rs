//! A control plane that is lost for good: directories that were copied one after the other and are all restored, or most of them. Another
//! generation goes on with all that any of them holds.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

use kv_core::topology::Change;
use kv_core::types::NodeId;
use kv_proto::client::Client;
use kv_proto::v1;

use crate::collecting;
use crate::used::copy;
use crate::world::{Node, World, get, options, put, report_of, reports, run_to_end, strings, until, until_async};

/// What a run of the command came to.
struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

/// Runs `kv-node recover`; nobody is there to type anything.
fn recover(args: &[&str]) -> Ran {
    let ran = Command::new(env!("CARGO_BIN_EXE_kv-node"))
        .arg("recover")
        .args(args)
        .stdin(Stdio::null())
        .env_clear()
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ran { code: ran.status.code(), out: text(ran.stdout), err: text(ran.stderr) }
}

#[track_caller]
pub(crate) fn done(args: &[&str]) -> String {
    let Ran { code, out, err } = recover(args);
    assert_eq!(code, Some(0), "{args:?}: {out}{err}");
    out
}

#[track_caller]
fn refused(args: &[&str], code: i32, words: &str) {
    let ran = recover(args);
    assert_eq!(ran.code, Some(code), "{args:?}: {}{}", ran.out, ran.err);
    assert!(ran.err.contains(words), "{args:?}: {words:?} is missing in {}", ran.err);
}

fn found(dir: &Path, name: &str) {
    let out = done(&["--data-dir", dir.to_str().unwrap(), "--found", "--confirm", name]);
    assert!(out.contains(&format!("{name} founds generation")), "{out}");
}

fn join(dir: &Path, name: &str, address: &str) {
    let out = done(&["--data-dir", dir.to_str().unwrap(), "--join", address, "--confirm", name]);
    assert!(out.contains(&format!("{name} comes from generation")), "{out}");
}

/// The node at a place founds the next generation, and starts.
fn founds(world: &mut World, index: usize) {
    let name = world.nodes[index].name.clone();
    found(&world.dir(&name), &name);
    world.nodes[index].restart();
}

/// The node at a place comes to the generation that another one has founded, and starts.
fn comes(world: &mut World, index: usize, founder: usize) {
    let name = world.nodes[index].name.clone();
    join(&world.dir(&name), &name, &world.nodes[founder].address);
    world.nodes[index].restart();
}

async fn create(client: &Client, name: &str) -> u32 {
    let keyspace = || v1::CreateKeyspaceRequest { name: name.to_owned(), ..v1::CreateKeyspaceRequest::default() };
    until_async("a keyspace is made", || async { client.create_keyspace(keyspace()).await.ok() }).await;
    id_of(client, name).await
}

async fn id_of(client: &Client, name: &str) -> u32 {
    let description = client.refresh().await.unwrap();
    description.keyspaces.iter().find(|keyspace| keyspace.name == name).unwrap().id.0
}

async fn put_in(client: &Client, keyspace: &str, key: &str, value: &str) {
    let how = kv_proto::client::How { keyspace: keyspace.to_owned(), ..kv_proto::client::How::default() };
    let (key, value) = (bytes::Bytes::from(key.to_owned()), bytes::Bytes::from(value.to_owned()));
    client.put(&how, &key, &value, &kv_proto::client::Write::default()).await.unwrap();
}

async fn get_from(client: &Client, keyspace: &str, key: &str) -> Vec<String> {
    let how = kv_proto::client::How { keyspace: keyspace.to_owned(), ..kv_proto::client::How::default() };
    let got = client.get(&how, &bytes::Bytes::from(key.to_owned())).await.unwrap();
    got.values.iter().map(|value| String::from_utf8_lossy(&value.value).into_owned()).collect()
}

/// Stops a node, keeps a copy of its directory, and starts it again: as backups are taken, one node after the other.
async fn back_up(world: &mut World, client: &Client, index: usize) {
    let name = world.nodes[index].name.clone();
    assert_eq!(world.nodes[index].stop(), Some(0));
    copy(&world.dir(&name), &world.dir(&format!("{name}.kept")));
    world.nodes[index].restart();
    world.wait_until_all_up(client).await;
    world.wait_until_idle(client).await;
}

/// Puts the copy of a node's directory in its place. The node is stopped.
fn restore(world: &World, name: &str) {
    std::fs::remove_dir_all(world.dir(name)).unwrap();
    copy(&world.dir(&format!("{name}.kept")), &world.dir(name));
}

fn stop_all(world: &mut World) {
    for node in &mut world.nodes {
        node.kill();
    }
}

/// What a node reports of the control plane.
async fn control_of(node: &Node) -> Option<v1::ControlReport> {
    report_of(&node.address).await?.control
}

/// Waits until all members vote that are to, all are up and nothing is pending: what `wait healthy` waits for.
async fn until_healthy(world: &World, client: &Client, generation: u32, voters: usize) {
    until_async("the generation has all of its voters", || async {
        for node in &world.nodes {
            let control = control_of(node).await?;
            let is_whole = control.generation == generation
                && control.voters.len() == voters
                && control.awaited.is_empty()
                && control.trouble() == v1::ControlTrouble::Unspecified;
            if !is_whole {
                return None;
            }
        }
        Some(())
    })
    .await;
    world.wait_until_all_up(client).await;
    world.wait_until_idle(client).await;
    let unsynced = |snapshot: &v1::NodeSnapshot| snapshot.partitions.iter().filter(|stats| !stats.synced).count();
    assert_eq!(reports(client).await.iter().map(unsynced).sum::<usize>(), 0, "copies are not complete");
}

async fn expect(client: &Client, prefix: &str, count: usize, value: &str) {
    for index in 0..count {
        let key = format!("{prefix}{index}");
        assert_eq!(get(client, &key).await, [value], "{key}");
    }
}

async fn write(client: &Client, prefix: &str, count: usize, value: &str) {
    for index in 0..count {
        put(client, &format!("{prefix}{index}"), value).await;
    }
}

/// Backups that were taken one after the other, all restored: every store is an older copy than the others have seen.
#[tokio::test]
async fn rolling_copies_of_all_nodes_become_a_new_generation_with_all_that_any_held() {
    let (mut world, client) = World::cluster(3).await;
    let before = create(&client, "before").await;
    write(&client, "first-", 40, "v").await;
    world.wait_until_idle(&client).await;
    // Each copy has what the one before lacks. What is written while a node is down, it lacks but for hints.
    back_up(&mut world, &client, 0).await;
    let between = create(&client, "between").await;
    write(&client, "second-", 40, "v").await;
    put_in(&client, "between", "k", "v").await;
    back_up(&mut world, &client, 1).await;
    let last = create(&client, "last").await;
    write(&client, "third-", 40, "v").await;
    write(&client, "first-", 40, "w").await;
    put_in(&client, "last", "k", "v").await;
    back_up(&mut world, &client, 2).await;
    let lost = create(&client, "lost").await;
    stop_all(&mut world);
    for name in ["n1", "n2", "n3"] {
        restore(&world, name);
    }
    for node in &mut world.nodes {
        node.restart();
    }
    // Nobody can lead: each says so and why, and nothing is cleared.
    until_async("all say that there is no control plane", || async {
        for node in &world.nodes {
            let control = control_of(node).await?;
            if control.leads || control.trouble() == v1::ControlTrouble::Unspecified {
                return None;
            }
        }
        Some(())
    })
    .await;
    refused(&["--data-dir", world.dir("n1").to_str().unwrap()], 5, "a node runs on");
    stop_all(&mut world);

    let dirs: Vec<String> = ["n1", "n2", "n3"].map(|name| world.dir(name).to_str().unwrap().to_owned()).to_vec();
    let plan = done(&["--data-dir", &dirs[0], "--data-dir", &dirs[1], "--data-dir", &dirs[2], "--json"]);
    assert!(plan.contains(&format!("\"found_on\":\"{}\"", dirs[2])), "the last copy knows most: {plan}");
    // The operator chooses the oldest all the same: nothing of the others may be lost.
    founds(&mut world, 0);
    let control = control_of(&world.nodes[0]).await.unwrap();
    assert_eq!((control.generation, control.awaited), (2, vec![2, 3]));
    comes(&mut world, 1, 0);
    comes(&mut world, 2, 0);
    let client = world.client().await;
    until_healthy(&world, &client, 2, 3).await;
    expect(&client, "first-", 40, "w").await;
    expect(&client, "second-", 40, "v").await;
    expect(&client, "third-", 40, "v").await;
    for (name, id) in [("before", before), ("between", between), ("last", last)] {
        assert_eq!(id_of(&client, name).await, id, "{name}");
    }
    assert_eq!(get_from(&client, "between", "k").await, ["v"]);
    assert_eq!(get_from(&client, "last", "k").await, ["v"]);
    // A number that was given out is not given out again, not even that of a keyspace that nobody knows any more.
    let next = create(&client, "next").await;
    assert!(next > lost && next > last, "{next} is used again");
    // The generation goes on like any other.
    for node in &mut world.nodes {
        node.kill();
    }
    for node in &mut world.nodes {
        node.restart();
    }
    until_healthy(&world, &client, 2, 3).await;
    expect(&client, "third-", 40, "v").await;
}

/// Two of three are restored: the third one is newer than both, and cannot lead alone.
#[tokio::test]
async fn two_of_three_that_were_restored_join_what_the_third_founds() {
    let (mut world, client) = World::cluster(3).await;
    write(&client, "old-", 30, "v").await;
    world.wait_until_idle(&client).await;
    back_up(&mut world, &client, 0).await;
    back_up(&mut world, &client, 1).await;
    write(&client, "new-", 30, "v").await;
    world.wait_until_idle(&client).await;
    stop_all(&mut world);
    restore(&world, "n1");
    restore(&world, "n2");
    for node in &mut world.nodes {
        node.restart();
    }
    until_async("the third one says that there is no control plane", || async {
        let control = control_of(&world.nodes[2]).await?;
        (control.trouble() != v1::ControlTrouble::Unspecified).then_some(())
    })
    .await;
    stop_all(&mut world);
    founds(&mut world, 2);
    comes(&mut world, 0, 2);
    comes(&mut world, 1, 2);
    let client = world.client().await;
    until_healthy(&world, &client, 2, 3).await;
    expect(&client, "old-", 30, "v").await;
    expect(&client, "new-", 30, "v").await;
}

/// The founder of two, its only voter, is restored; and the other one, which has not, founds the next generation.
#[tokio::test]
async fn the_founder_of_two_comes_to_what_the_other_one_founds() {
    let (mut world, client) = World::cluster(2).await;
    write(&client, "old-", 30, "v").await;
    world.wait_until_idle(&client).await;
    back_up(&mut world, &client, 0).await;
    write(&client, "new-", 30, "v").await;
    world.wait_until_idle(&client).await;
    stop_all(&mut world);
    restore(&world, "n1");
    founds(&mut world, 1);
    comes(&mut world, 0, 1);
    let client = world.client().await;
    until_healthy(&world, &client, 2, 1).await;
    expect(&client, "old-", 30, "v").await;
    expect(&client, "new-", 30, "v").await;
}

/// A node that was left out comes back as it was: it is told, obeyed by nobody, and what it holds comes with it when it joins.
#[tokio::test]
async fn a_node_of_the_former_generation_is_not_obeyed_and_comes_with_what_it_holds() {
    let (mut world, client) = World::cluster(3).await;
    write(&client, "all-", 20, "v").await;
    world.wait_until_idle(&client).await;
    // Only the third one holds these, as hints and copies, when the others are set back.
    back_up(&mut world, &client, 0).await;
    back_up(&mut world, &client, 1).await;
    let late = create(&client, "late").await;
    put_in(&client, "late", "k", "v").await;
    write(&client, "late-", 20, "v").await;
    world.wait_until_idle(&client).await;
    stop_all(&mut world);
    restore(&world, "n1");
    restore(&world, "n2");
    founds(&mut world, 0);
    comes(&mut world, 1, 0);

    // The third is started as it was. It knows a later agreed state than both, and obeys nobody.
    let (code, log) = run_third(&world);
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("kv-node recover --data-dir DIR --join ADDR:PORT"), "{log}");
    let control = control_of(&world.nodes[0]).await.unwrap();
    assert_eq!((control.generation, control.awaited), (2, vec![3]));

    // It is given up, and comes back later: as a spare, whose records are handed over.
    let addresses = world.addresses()[..2].to_vec();
    let client = Client::connect(&addresses, options()).await.unwrap();
    let description = client.refresh().await.unwrap();
    assert!(description.keyspaces.iter().all(|keyspace| keyspace.name != "late"), "nobody knows it");
    comes(&mut world, 2, 0);
    let client = world.client().await;
    until_healthy(&world, &client, 2, 3).await;
    expect(&client, "all-", 20, "v").await;
    expect(&client, "late-", 20, "v").await;
    assert_eq!(id_of(&client, "late").await, late);
    assert_eq!(get_from(&client, "late", "k").await, ["v"]);
}

/// The only voter of the former generation comes back as it was, and goes on leading it: nobody obeys it, and what is written there
/// meanwhile comes along when it joins.
#[tokio::test]
async fn a_leader_that_was_left_behind_is_not_obeyed_and_loses_nothing() {
    let (mut world, client) = World::cluster(2).await;
    write(&client, "both-", 20, "v").await;
    world.wait_until_idle(&client).await;
    stop_all(&mut world);
    founds(&mut world, 1);
    world.nodes[0].restart();
    until_async("the first one learns that it was left behind", || async {
        let control = control_of(&world.nodes[0]).await?;
        let is_told = control.trouble() == v1::ControlTrouble::OtherGeneration && control.later_generation == 2;
        (control.leads && control.generation == 1 && is_told).then_some(())
    })
    .await;
    let behind = Client::connect(&world.addresses()[..1], options()).await.unwrap();
    let apart = create(&behind, "apart").await;
    let mut direct =
        v1::key_value_client::KeyValueClient::connect(format!("http://{}", world.nodes[0].address)).await.unwrap();
    let (key, value) = (bytes::Bytes::from_static(b"k"), bytes::Bytes::from_static(b"v"));
    let level = v1::Level::One.into();
    let request = v1::PutRequest { keyspace: "apart".to_owned(), key, value, level, ..v1::PutRequest::default() };
    direct.put(request).await.unwrap();

    let ahead = Client::connect(&world.addresses()[1..], options()).await.unwrap();
    let description = ahead.refresh().await.unwrap();
    assert_eq!(description.generation.number, 2);
    assert!(description.keyspaces.iter().all(|keyspace| keyspace.name != "apart"), "it was obeyed");
    assert_eq!(control_of(&world.nodes[1]).await.unwrap().awaited, [1]);

    world.nodes[0].kill();
    comes(&mut world, 0, 1);
    let client = world.client().await;
    until_healthy(&world, &client, 2, 1).await;
    expect(&client, "both-", 20, "v").await;
    assert_eq!(id_of(&client, "apart").await, apart);
    assert_eq!(get_from(&client, "apart", "k").await, ["v"]);
}

/// Starts the third node as it was started before, and waits until it ends by itself.
fn run_third(world: &World) -> (Option<i32>, String) {
    let (dir, address) = (world.dir("n3"), world.nodes[2].address.clone());
    let dir = dir.to_str().unwrap();
    run_to_end(&strings(&["--data-dir", dir, "--name", "n3", "--listen", &address]))
}

/// The member was removed while its node was away: what the node holds is handed over to the owners all the same.
#[tokio::test]
async fn a_node_whose_place_was_given_up_hands_over_what_it_holds() {
    let (mut world, client) = World::cluster(3).await;
    write(&client, "all-", 20, "v").await;
    world.wait_until_idle(&client).await;
    back_up(&mut world, &client, 0).await;
    back_up(&mut world, &client, 1).await;
    write(&client, "late-", 20, "v").await;
    world.wait_until_idle(&client).await;
    stop_all(&mut world);
    restore(&world, "n1");
    restore(&world, "n2");
    founds(&mut world, 0);
    comes(&mut world, 1, 0);
    let client = Client::connect(&world.addresses()[..2], options()).await.unwrap();
    remove_dead(&client, &[3], 2).await;
    until_async("the copies of both are complete", || async {
        let reports = reports(&client).await;
        let complete = |snapshot: &v1::NodeSnapshot| {
            snapshot.partitions_held > 0 && snapshot.partitions.iter().all(|stats| stats.synced)
        };
        (reports.len() == 2 && reports.iter().all(complete)).then_some(())
    })
    .await;
    expect(&client, "all-", 20, "v").await;
    comes(&mut world, 2, 0);
    until_async("it has handed over what it held", || async {
        let reports = reports(&client).await;
        // Before it acts on a layout it does not know what is whose.
        let left = |snapshot: &v1::NodeSnapshot| {
            snapshot.layout_epoch == 0 || snapshot.pending.is_none_or(|pending| pending.residue > 0)
        };
        (reports.len() == 3 && !reports.iter().any(left)).then_some(())
    })
    .await;
    expect(&client, "late-", 20, "v").await;
    assert_eq!(reports(&client).await[2].state(), v1::MemberState::Spare);
}

/// Gives members up that are down, and goes on with so many copies.
async fn remove_dead(client: &Client, nodes: &[u64], copies: u8) {
    let dead = nodes.iter().map(|node| Change::RemoveDead { node: NodeId(*node) });
    let changes: Vec<v1::Change> = dead.chain([Change::Copies { copies }]).map(|change| (&change).into()).collect();
    let request = || v1::ApplyRequest { changes: changes.clone(), ..Default::default() };
    // Until the others have given it up as well.
    until_async("it is given up", || async {
        client.apply(request()).await.ok()?;
        Some(())
    })
    .await;
    until_async("it is forgotten", || async {
        let description = client.refresh().await.ok()?;
        description.members.iter().all(|member| !nodes.contains(&member.id.0)).then_some(())
    })
    .await;
}

/// What was deleted and collected before the copies were lost does not come back with an older copy.
#[tokio::test]
async fn what_was_collected_stays_gone_when_an_older_copy_comes() {
    let (mut world, client) = collecting::cluster().await;
    write(&client, "gone-", 20, "v").await;
    write(&client, "kept-", 20, "v").await;
    world.wait_until_idle(&client).await;
    back_up(&mut world, &client, 0).await;
    for index in 0..20 {
        let key = bytes::Bytes::from(format!("gone-{index}"));
        let how = kv_proto::client::How::default();
        until_async("the delete is taken", || async { client.delete(&how, &key, None).await.ok() }).await;
    }
    until_async("the tombstones are collected", || async {
        let reports = reports(&client).await;
        let none = |snapshot: &v1::NodeSnapshot| {
            let settling = snapshot.settling.clone().unwrap_or_default();
            settling.tombstones == 0 && settling.collected > 0
        };
        (reports.len() == 3 && reports.iter().all(none)).then_some(())
    })
    .await;
    stop_all(&mut world);
    restore(&world, "n1");
    founds(&mut world, 0);
    comes(&mut world, 1, 0);
    comes(&mut world, 2, 0);
    let client = world.client().await;
    until_healthy(&world, &client, 2, 3).await;
    expect(&client, "kept-", 20, "v").await;
    for index in 0..20 {
        assert_eq!(get(&client, &format!("gone-{index}")).await, [""; 0], "gone-{index} is back");
    }
}

/// Only one of three is left: it is complete with what it holds when the others are given up.
#[tokio::test]
async fn the_last_node_goes_on_alone() {
    let (mut world, client) = World::cluster(3).await;
    write(&client, "k-", 30, "v").await;
    world.wait_until_idle(&client).await;
    stop_all(&mut world);
    founds(&mut world, 1);
    let client = Client::connect(&world.addresses()[1..2], options()).await.unwrap();
    remove_dead(&client, &[1, 3], 1).await;
    until_async("its copies are complete", || async {
        let reports = reports(&client).await;
        let complete = |snapshot: &v1::NodeSnapshot| {
            snapshot.partitions_held == 32 && snapshot.partitions.iter().all(|stats| stats.synced)
        };
        (reports.len() == 1 && reports.iter().all(complete)).then_some(())
    })
    .await;
    expect(&client, "k-", 30, "v").await;
    put(&client, "more", "v").await;
    // So it does after another start.
    world.nodes[1].kill();
    world.nodes[1].restart();
    until_async("it serves again", || async {
        let key = bytes::Bytes::from_static(b"more");
        client.get(&kv_proto::client::How::default(), &key).await.ok()
    })
    .await;
    expect(&client, "k-", 30, "v").await;
}

/// A control plane that works is not replaced, and nobody comes to where there is no later generation.
#[tokio::test]
async fn a_control_plane_that_works_is_not_replaced() {
    let (mut world, client) = World::cluster(3).await;
    put(&client, "k", "v").await;
    world.wait_until_idle(&client).await;
    assert_eq!(world.nodes[2].stop(), Some(0));
    let dir = world.dir("n3");
    let dir = dir.to_str().unwrap();
    refused(&["--data-dir", dir, "--found", "--confirm", "n3"], 6, "the control plane is not lost");
    let first = world.nodes[0].address.clone();
    refused(&["--data-dir", dir, "--join", &first, "--confirm", "n3"], 6, "belongs to generation 1 of the cluster");
    world.nodes[2].restart();
    world.wait_until_all_up(&client).await;
}

/// What is refused changes nothing.
#[tokio::test]
async fn what_is_refused_changes_nothing() {
    let (mut world, client) = World::cluster(3).await;
    put(&client, "k", "v").await;
    world.wait_until_idle(&client).await;
    let dir = world.dir("n3");
    let dir = dir.to_str().unwrap();
    for aim in [vec!["--found"], vec!["--join", "127.0.0.1:1"], vec![]] {
        let args = [&["--data-dir", dir, "--confirm", "n3"][..], &aim].concat();
        refused(&args, 5, "a node runs on");
    }
    stop_all(&mut world);
    let before = files(&world.dir("n3"));
    refused(&["--data-dir", dir, "--found"], 6, "--confirm n3");
    refused(&["--data-dir", dir, "--found", "--confirm", "n2"], 6, "this is the directory of n3");
    refused(&["--data-dir", dir, "--join", "nowhere", "--confirm", "n3"], 2, "join: ");
    refused(&["--data-dir", dir, "--found", "--name", "n9", "--confirm", "n9"], 6, "its node is called n3");
    let missing = world.dir("missing");
    refused(&["--data-dir", missing.to_str().unwrap(), "--found", "--confirm", "n3"], 3, "does not exist");
    std::fs::create_dir(world.dir("foreign")).unwrap();
    std::fs::write(world.dir("foreign").join("letter"), "dear").unwrap();
    refused(&["--data-dir", world.dir("foreign").to_str().unwrap()], 3, "is not the data directory of a kv-node");
    let plan = done(&["--data-dir", dir, "--found", "--dry-run"]);
    for word in ["n3, member n3", "generation 1", "n1 (127.0.0.1:", "keys", "default (0)", "may found      yes"] {
        assert!(plan.contains(word), "{word:?} is missing in {plan}");
    }
    let json = done(&["--data-dir", dir, "--json"]);
    assert!(json.contains("\"schema\":1") && json.contains("\"name\":\"n3\""), "{json}");
    assert_eq!(files(&world.dir("n3")), before, "files have come or gone");
    // The nodes go on as if nothing had been.
    for node in &mut world.nodes {
        node.restart();
    }
    world.wait_until_all_up(&client).await;
    assert_eq!(get(&client, "k").await, ["v"]);
}

/// The names of the files in a directory, but for those of the storage engine, which tidies up.
fn files(dir: &Path) -> BTreeSet<String> {
    let list = |dir: &Path| -> Vec<String> {
        let names = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name());
        names.map(|name| format!("{}/{}", dir.display(), name.to_string_lossy())).collect()
    };
    [dir.to_owned(), dir.join("control"), dir.join("store")].iter().flat_map(|dir| list(dir)).collect()
}

/// The control plane's files are damaged: what is left of them is used, and a node that cannot found can join.
#[tokio::test]
async fn a_directory_whose_agreed_state_is_damaged_can_still_join() {
    let (mut world, client) = World::cluster(3).await;
    write(&client, "k-", 20, "v").await;
    world.wait_until_idle(&client).await;
    stop_all(&mut world);
    for name in ["newest", "snapshot"] {
        let path = world.dir("n3").join("control").join(name);
        if path.exists() {
            std::fs::write(&path, b"damaged").unwrap();
        }
    }
    let dir = world.dir("n3");
    let dir = dir.to_str().unwrap();
    let plan = done(&["--data-dir", dir]);
    assert!(plan.contains("not used, since it cannot be read") && plan.contains("may found      no: "), "{plan}");
    refused(&["--data-dir", dir, "--found", "--confirm", "n3"], 6, "nothing is left of the agreed state");
    founds(&mut world, 0);
    comes(&mut world, 1, 0);
    comes(&mut world, 2, 0);
    let client = world.client().await;
    until_healthy(&world, &client, 2, 3).await;
    expect(&client, "k-", 20, "v").await;
}

/// A recovery that was cut short keeps the node from starting, and is finished by the same command.
#[tokio::test]
async fn a_recovery_that_was_cut_short_is_finished() {
    let (mut world, client) = World::cluster(1).await;
    put(&client, "k", "v").await;
    world.nodes[0].kill();
    let dir = world.dir("n1");
    // As it is after each of the steps.
    for step in 0..3 {
        std::fs::write(dir.join("recovering"), "cut short\n").unwrap();
        match step {
            0 => {}
            1 => copy(&dir.join("control"), &dir.join("control.new")),
            _ => std::fs::rename(dir.join("control"), dir.join("control-generation-9")).unwrap(),
        }
        let (code, log) = run_to_end(&strings(&["--data-dir", dir.to_str().unwrap(), "--name", "n1"]));
        assert_eq!(code, Some(1), "{log}");
        assert!(log.contains("was cut short"), "{log}");
        found(&dir, "n1");
        world.nodes[0].restart();
        until("it serves", || world.nodes[0].page("GET", "/readyz", "").status.eq(&200).then_some(()));
        assert_eq!(get(&client, "k").await, ["v"], "after step {step}");
        world.nodes[0].kill();
    }
}
