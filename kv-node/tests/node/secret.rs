//! The secret of a cluster: who does not know it is no peer, whatever he says.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use kv_core::message::PROTOCOL_VERSION;
use kv_core::types::{Incarnation, StoreId};
use kv_node::trust::{self, Purpose, Trust};
use kv_proto::client::Client;
use kv_proto::v1;
use kv_proto::v1::peer_client::PeerClient;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use crate::strangers::{Stranger, expect_unharmed, report, store_of, stores, theft};
use crate::world::{Node, World, get, put, report_of, run_to_end, strings, until, until_async};

const OLD: &str = "old-old-old-old-old-old-old-old-old-old";
const NEW: &str = "new-new-new-new-new-new-new-new-new-new";

/// A cluster whose founding node has made its secret; the file.
async fn secured(count: usize) -> (World, Client, PathBuf) {
    let mut world = World::new();
    let file = world.dir("secret");
    let secret = ["--cluster-secret-file", file.to_str().unwrap()];
    let expect = count.to_string();
    let founds = ["--bootstrap", "--expect", &expect, "--partitions", "32"];
    world.add("n1", &[&founds[..], &secret].concat());
    for number in 2..=count {
        let first = world.nodes[0].address.clone();
        world.add(&format!("n{number}"), &[&["--join", &first][..], &secret].concat());
    }
    let client = world.client().await;
    world.wait_until_all_up(&client).await;
    (world, client, file)
}

/// A file with these lines that only its owner can read.
fn write(path: &Path, lines: &[&str]) {
    std::fs::write(path, lines.join("\n")).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// How many peers a node has refused for this reason.
fn refused(node: &Node, reason: &str) -> u64 {
    let page = node.page("GET", "/metrics", "").body;
    let line = page
        .lines()
        .find(|line| line.starts_with("kv_refused_peers_total{") && line.contains(&format!("reason=\"{reason}\"")));
    line.unwrap().rsplit(' ').next().unwrap().parse().unwrap()
}

/// What `status` tells of a peer: why a node and it refuse each other.
async fn told(node: &Node, peer: u64) -> Option<String> {
    let snapshot = report_of(&node.address).await?;
    let opinion = snapshot.peers.into_iter().find(|opinion| opinion.node == peer)?;
    Some(opinion.refused).filter(|refused| !refused.is_empty())
}

async fn plain(node: &Node) -> PeerClient<Channel> {
    PeerClient::connect(format!("http://{}", node.address)).await.unwrap()
}

#[tokio::test]
async fn who_shows_no_secret_is_no_peer() {
    let (world, client, file) = secured(3).await;
    let metadata = std::fs::metadata(&file).unwrap();
    assert_eq!((metadata.mode() & 0o777, metadata.len()), (0o600, 65));
    put(&client, "secret", "treasure").await;
    let before = stores(&client).await;
    for node in &world.nodes {
        assert_eq!(node.metric("peers_proven"), Some(1));
        let held = store_of(&before, &node.name);
        let stranger = Stranger {
            seen: Some(v1::Incarnation { store_id: held, boot: u32::MAX, nonce: 0 }),
            ..Stranger::of(&client)
        };
        let error = stranger.talk(&node.address, &theft(), 3).await.unwrap_err();
        assert_eq!(error.code(), Code::Unauthenticated, "{error:?}");
        assert!(error.message().contains("--cluster-secret-file"), "{error:?}");
        let mut peer = plain(node).await;
        let raft =
            v1::RaftRequest { kind: v1::RaftKind::Vote.into(), protocol: PROTOCOL_VERSION, ..Default::default() };
        assert_eq!(peer.raft(raft).await.unwrap_err().code(), Code::Unauthenticated);
        let incarnation = v1::Incarnation { store_id: held, boot: 9, nonce: 9 };
        let mut join = report(&client, "n2", "127.0.0.1:1", incarnation, 1);
        assert_eq!(peer.join(join.clone()).await.unwrap_err().code(), Code::Unauthenticated);
        join.incarnation = Some(v1::Incarnation { store_id: 99, boot: 1, nonce: 1 });
        join.replaces = vec![held];
        assert_eq!(peer.join(join).await.unwrap_err().code(), Code::Unauthenticated);
        let sender = v1::NodeAddress { incarnation: Some(incarnation), address: "127.0.0.1:1".to_owned() };
        let identify = v1::IdentifyRequest { protocol: PROTOCOL_VERSION, group: 1, sender: Some(sender) };
        assert_eq!(peer.identify(identify).await.unwrap_err().code(), Code::Unauthenticated);
        assert!(refused(node, "no-secret") >= 5, "each was counted");
    }
    expect_unharmed(&world, &client, &before).await;
    assert_eq!(get(&client, "secret").await, ["treasure"], "clients need no secret");
    let secret = std::fs::read_to_string(&file).unwrap();
    for node in &world.nodes {
        assert!(!node.log().contains(secret.trim()), "the secret is nobody's to read in a log");
    }
}

/// A connection of somebody who knows the secret.
async fn proven(node: &Node, file: &Path, incarnation: v1::Incarnation, purpose: Purpose) -> PeerClient<Channel> {
    let trust = Trust::new("n9", incarnation.into(), trust::secret::read(file).unwrap(), false);
    let endpoint = Endpoint::from_shared(format!("http://{}", node.address)).unwrap();
    PeerClient::new(trust::connect(&trust, endpoint, purpose, Duration::from_secs(20)).await.unwrap())
}

#[tokio::test]
async fn who_knows_the_secret_speaks_for_nobody_else() {
    let (world, client, file) = secured(3).await;
    let before = stores(&client).await;
    let stranger = Stranger::of(&client);
    let node = &world.nodes[0];
    // It is no member.
    let peer = proven(node, &file, stranger.incarnation, Purpose::Link).await;
    let error = stranger.talk_over(peer, &theft(), 3).await.unwrap_err();
    assert!(error.message().contains("not a member"), "{error:?}");
    // It says hello as a member.
    let member = v1::Incarnation { store_id: store_of(&before, "n2"), boot: 1, nonce: 1 };
    let peer = proven(node, &file, stranger.incarnation, Purpose::Link).await;
    let liar = Stranger { node: 2, incarnation: member, ..stranger.clone() };
    let error = liar.talk_over(peer, &[], 0).await.unwrap_err();
    assert!(error.message().contains("nobody but a node itself"), "{error:?}");
    assert_eq!(refused(node, "other-identity"), 1);
    // It reports for a member.
    let mut peer = proven(node, &file, stranger.incarnation, Purpose::Control).await;
    let forged = v1::Incarnation { boot: 9, ..member };
    let error = peer.join(report(&client, "n2", "127.0.0.1:1", forged, 1)).await.unwrap_err();
    assert_eq!(error.code(), Code::PermissionDenied, "{error:?}");
    // A connection serves what it was opened for.
    let error = stranger.talk_over(peer, &[], 0).await.unwrap_err();
    assert_eq!(error.code(), Code::Unauthenticated, "{error:?}");
    expect_unharmed(&world, &client, &before).await;
    // Two clusters with one secret are two clusters.
    let trust = Trust::new(
        "n9",
        Incarnation { store: StoreId(7), boot: 1, nonce: 1 },
        trust::secret::read(&file).unwrap(),
        false,
    );
    trust.belongs_to(kv_core::types::NodeId(9), kv_core::types::ClusterId(1));
    let endpoint = Endpoint::from_shared(format!("http://{}", node.address)).unwrap();
    let error = trust::connect(&trust, endpoint, Purpose::Link, Duration::from_secs(20)).await.unwrap_err();
    assert!(trust::Refused::behind(&error).unwrap().to_string().contains("different clusters"), "{error:?}");
}

#[tokio::test]
async fn a_node_that_joins_is_told_about_the_secret() {
    let (world, client, _file) = secured(1).await;
    let first = world.nodes[0].address.clone();
    let directory = world.dir("n9");
    let joins = |more: &[&str]| {
        let flags =
            ["--data-dir", directory.to_str().unwrap(), "--listen", "127.0.0.1:0", "--name", "n9", "--join", &first];
        run_to_end(&strings(&[&flags[..], more].concat()))
    };
    let (code, log) = joins(&[]);
    assert_eq!(code, Some(1), "{log}");
    for word in ["n1 talks only to nodes that know", "--cluster-secret-file PATH", "copy of the file of n1"] {
        assert!(log.contains(word), "{word} is missing in {log}");
    }
    let other = world.dir("other");
    write(&other, &[OLD]);
    let (code, log) = joins(&["--cluster-secret-file", other.to_str().unwrap()]);
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("n9 and n1 have no cluster secret in common"), "{log}");
    let told = world.nodes[0].log();
    assert!(told.contains("somebody who says to be n9") && told.contains("the same --cluster-secret-file"), "{told}");
    assert!(refused(&world.nodes[0], "wrong-secret") > 0 && refused(&world.nodes[0], "no-secret") > 0);
    assert_eq!(client.refresh().await.unwrap().members.len(), 1);
    // The other way round.
    let (open, _client) = World::cluster(1).await;
    let address = open.nodes[0].address.clone();
    let flags =
        ["--data-dir", directory.to_str().unwrap(), "--listen", "127.0.0.1:0", "--name", "n9", "--join", &address];
    let (code, log) = run_to_end(&strings(&[&flags[..], &["--cluster-secret-file", other.to_str().unwrap()]].concat()));
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("n1 has no cluster secret"), "{log}");
}

#[tokio::test]
async fn a_member_with_another_secret_is_named_on_both_sides() {
    let (mut world, client, file) = secured(3).await;
    put(&client, "k", "v").await;
    let other = world.dir("other");
    write(&other, &[OLD]);
    world.nodes[1].kill();
    world.nodes[1].restart_with(&[("--cluster-secret-file", other.to_str().unwrap())]);
    for (asked, about, name) in [(0, 2, "n2"), (1, 1, "n1"), (1, 3, "n3"), (2, 2, "n2")] {
        let node = &world.nodes[asked];
        let told = until_async("status tells of it", || told(node, about)).await;
        assert!(told.contains(name) && told.contains("no cluster secret in common"), "{told}");
        until("the log tells of it", || node.log().contains(&told).then_some(()));
    }
    assert_eq!(get(&client, "k").await, ["v"], "the others serve");
    // What is said every second fills no log.
    let lines = |node: &Node| node.log().lines().filter(|line| line.contains("secret in common")).count();
    assert!(lines(&world.nodes[0]) < 20, "{}", world.nodes[0].log());
    world.nodes[1].kill();
    // Without the flag it would be open to everybody, and alone.
    let (code, log) = run_to_end(&strings(&["--data-dir", world.dir("n2").to_str().unwrap()]));
    assert_eq!(code, Some(2), "{log}");
    assert!(log.contains("cluster-secret-file: is not given, and the cluster of this node has a secret"), "{log}");
    world.nodes[1].restart_with(&[("--cluster-secret-file", file.to_str().unwrap())]);
    world.wait_until_all_up(&client).await;
    assert_eq!(told(&world.nodes[0], 2).await, None, "it is over");
    put(&client, "k2", "v").await;
}

#[tokio::test]
async fn the_secret_is_changed_while_the_cluster_serves() {
    let mut world = World::new();
    let files: Vec<PathBuf> = (1..=3).map(|number| world.dir(&format!("secret{number}"))).collect();
    files.iter().for_each(|file| write(file, &[OLD]));
    let secret = |at: usize| ["--cluster-secret-file", files[at].to_str().unwrap()];
    world.add("n1", &[&["--bootstrap", "--expect", "3", "--partitions", "32"][..], &secret(0)].concat());
    let first = world.nodes[0].address.clone();
    for at in [1, 2] {
        world.add(&format!("n{}", at + 1), &[&["--join", &first][..], &secret(at)].concat());
    }
    let client = world.client().await;
    world.wait_until_all_up(&client).await;
    for lines in [&[NEW, OLD][..], &[NEW]] {
        for (at, file) in files.iter().enumerate() {
            write(file, lines);
            world.nodes[at].kill();
            put(&client, &format!("k{}-{at}", lines.len()), "v").await;
            world.nodes[at].restart();
            world.wait_until_all_up(&client).await;
        }
    }
    for key in ["k2-0", "k2-1", "k2-2", "k1-0", "k1-1", "k1-2"] {
        assert_eq!(get(&client, key).await, ["v"]);
    }
    for node in &world.nodes {
        assert_eq!(refused(node, "wrong-secret"), 0, "{} was refused nobody and by nobody", node.name);
    }
    // Who knows the old one only is out.
    write(&files[2], &[OLD]);
    world.nodes[2].kill();
    world.nodes[2].restart();
    let told = until_async("it is refused", || told(&world.nodes[0], 3)).await;
    assert!(told.contains("no cluster secret in common"), "{told}");
}

#[tokio::test]
async fn a_cluster_gets_its_first_secret_node_by_node() {
    let (mut world, client) = World::cluster(3).await;
    let file = world.dir("secret");
    write(&file, &[NEW]);
    let path = file.to_str().unwrap().to_owned();
    for open in ["true", "false"] {
        for at in 0..3 {
            world.nodes[at].kill();
            world.nodes[at].restart_with(&[("--cluster-secret-file", &path), ("--allow-open-peers", open)]);
            world.wait_until_all_up(&client).await;
            put(&client, &format!("{open}-{at}"), "v").await;
        }
    }
    for node in &world.nodes {
        assert_eq!(node.metric("peers_proven"), Some(1));
        let error = Stranger::of(&client).talk(&node.address, &[], 0).await.unwrap_err();
        assert_eq!(error.code(), Code::Unauthenticated, "{error:?}");
    }
    assert_eq!(get(&client, "true-0").await, ["v"]);
}

#[test]
fn files_that_hold_no_secret_keep_a_node_from_starting() {
    let world = World::new();
    let directory = world.dir("n1");
    let start = |file: &Path, mode: &[&str]| {
        let flags = ["--data-dir", directory.to_str().unwrap(), "--listen", "127.0.0.1:0", "--cluster-secret-file"];
        run_to_end(&strings(&[&flags[..], &[file.to_str().unwrap()], mode].concat()))
    };
    let file = world.dir("secret");
    let joins = ["--join", "127.0.0.1:1"];
    let check = |mode: &[&str], words: &[&str]| {
        let (code, log) = start(&file, mode);
        assert_eq!(code, Some(2), "{log}");
        for word in words {
            assert!(log.contains(word), "{word} is missing in {log}");
        }
        assert!(!directory.exists(), "nothing was begun");
    };
    check(&joins, &["cluster-secret-file: ", "does not exist", "copy it from a node"]);
    for (content, words) in [
        (&b""[..], "holds no secret"),
        (b"too short\n", "a blank or a control character"),
        (b"tooshort\n", "8 characters in line 1, 32 to 256"),
        (&[b'x'; 300], "300 characters"),
        (&[0xff; 64], "is not text"),
        (&[b'x'; 9000], "more than 8192 bytes"),
    ] {
        std::fs::write(&file, content).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        check(&joins, &[words]);
        // What is there is not replaced, either.
        check(&["--bootstrap"], &[words]);
    }
    write(&file, &[OLD]);
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    check(&joins, &["open to every user", "mode 644", "chmod 600"]);
    let folder = world.dir("folder");
    std::fs::create_dir(&folder).unwrap();
    let (code, log) = start(&folder, &joins);
    assert!(code == Some(2) && log.contains("is not a file"), "{log}");
}

#[tokio::test]
async fn a_node_that_is_open_says_so() {
    let mut world = World::new();
    let port = crate::world::free_port().to_string();
    let (listen, advertise) = (format!("0.0.0.0:{port}"), format!("127.0.0.1:{port}"));
    let flags = ["--listen", &listen, "--advertise", &advertise, "--allow-open-peers"];
    world.add("n1", &flags);
    let node = &world.nodes[0];
    until("the log tells of it", || node.log().contains("this node is open").then_some(()));
    assert!(report_of(&advertise).await.is_some());
}
