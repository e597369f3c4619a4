//! Connections and file descriptors: silent ones, too many, none left.

use std::io::{Read, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use bytes::Bytes;
use kv_proto::client::{Client, How, Write};
use kv_proto::v1;
use kv_proto::v1::cluster_client::ClusterClient;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tonic::Code;

use crate::limits::direct;
use crate::world::{Node, PATIENCE, World, get, put, until};

async fn put_bytes(client: &Client, key: String, bytes: usize) {
    let value = Bytes::from(vec![7; bytes]);
    let how = How { timeout: Some(PATIENCE), ..How::default() };
    client.put(&how, &Bytes::from(key), &value, &Write::default()).await.unwrap();
}

fn silent(node: &Node, count: usize) -> Vec<TcpStream> {
    (0..count).map(|_| TcpStream::connect(&node.address).unwrap()).collect()
}

#[tokio::test]
async fn silent_connections_take_nothing_from_the_store() {
    let mut world = World::new();
    world.add_with_files("n1", &["--bootstrap"], 160);
    let client = world.client().await;
    let node = &world.nodes[0];
    let mut held = silent(node, 300);
    // Enough for several flushes and a compaction, under connections that come again and again.
    for number in 0..80 {
        put_bytes(&client, format!("large-{number}"), 1024 * 1024).await;
        held.extend(silent(node, 5));
        held.drain(..5);
    }
    assert!(!node.log().contains("store-failed"), "the store has failed");
    // A newcomer is served while all of them are there.
    let newcomer = world.client().await;
    put(&newcomer, "k", "v").await;
    assert_eq!(get(&newcomer, "k").await, ["v"]);
    until("the log says that connections were refused", || node.log().contains("a connection is closed").then_some(()));
    // Who asks for the figures is a newcomer, too, and may be refused.
    until("most connections were refused or gave way", || {
        let refused = node.metric("connections_refused_total")? + node.metric("connections_gave_way_total")?;
        (refused > 200).then_some(())
    });
    drop(held);
}

fn ends(mut stream: TcpStream) -> bool {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let end = stream.read_to_end(&mut Vec::new());
    end.map_or_else(|error| error.kind() == std::io::ErrorKind::ConnectionReset, |_| true)
}

#[tokio::test]
async fn silent_and_idle_connections_are_closed() {
    let mut world = World::new();
    world.add("n1", &["--bootstrap", "--idle-timeout-s", "15"]);
    let node = &world.nodes[0];
    let silent = TcpStream::connect(&node.address).unwrap();
    let mut half = TcpStream::connect(&node.address).unwrap();
    half.write_all(b"GET /metrics HTTP/1.1\r\nHost: ").unwrap();
    let mut idle = TcpStream::connect(&node.address).unwrap();
    idle.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    assert!(ends(silent), "one that says nothing");
    assert!(ends(half), "one that does not finish its request");
    assert!(ends(idle), "one without a request");
    assert!(node.metric("connections_silent_total").unwrap() >= 1);
    assert!(node.metric("connections_idle_total").unwrap() >= 1);
}

#[tokio::test]
async fn clients_at_work_lock_no_peer_out_and_one_more_is_told_why() {
    let (mut world, _client) = World::cluster(2).await;
    // The first node dials the second.
    world.nodes[1].stop();
    world.nodes[1].restart_with(&[("--connections-max", "3")]);
    let address = format!("http://{}", world.nodes[1].address);
    let mut watching = Vec::new();
    let refusal = loop {
        let request = v1::WatchRequest::default();
        let mut cluster = ClusterClient::connect(address.clone()).await.unwrap();
        match cluster.watch(request).await {
            Ok(stream) => watching.push(stream.into_inner()),
            Err(refusal) => break refusal,
        }
        assert!(watching.len() <= 3);
    };
    assert_eq!(refusal.code(), Code::ResourceExhausted, "{refusal}");
    assert!(refusal.message().contains("--connections-max"), "{refusal}");
    // The other member comes back although clients have every place of theirs.
    world.nodes[0].kill();
    world.nodes[0].restart();
    let first = &world.nodes[0];
    until("the peer is heard again", || (first.metric("peer_up") == Some(1)).then_some(()));
    drop(watching);
}

fn limit_files(node: &Node, files: Option<u64>) {
    let pid = Pid::from_raw(i32::try_from(node.pid()).unwrap());
    let now = rustix::process::getrlimit(Resource::Nofile);
    let current = files.or(now.current);
    prlimit(pid, Resource::Nofile, Rlimit { current, maximum: now.maximum }).unwrap();
}

#[tokio::test]
async fn descriptors_that_run_out_for_a_while_stop_nothing_for_good() {
    let (world, client) = World::cluster(1).await;
    let node = &world.nodes[0];
    put(&client, "k", "before").await;
    let mut other = direct(&node.address).await;
    limit_files(node, Some(4));
    // Connections wait, and so do writes: nothing of them is begun.
    let waiting = TcpStream::connect(&node.address).unwrap();
    until("the node says that it can take none", || node.log().contains("no connection can be accepted").then_some(()));
    let request =
        v1::PutRequest { key: "k2".into(), value: "v".into(), timeout_ms: 60_000, ..v1::PutRequest::default() };
    let written = tokio::spawn(async move { other.put(request).await });
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!written.is_finished());
    limit_files(node, None);
    written.await.unwrap().unwrap();
    drop(waiting);
    put(&client, "k3", "after").await;
    assert_eq!(get(&client, "k").await, ["before"]);
    assert!(!node.log().contains("store-failed"));
    let failures = until("the node answers", || node.metric("accept_failures_total"));
    assert!((1..1000).contains(&failures), "{failures}: it waits longer each time");
    assert!(node.log().matches("no connection can be accepted").count() < 20);
}
