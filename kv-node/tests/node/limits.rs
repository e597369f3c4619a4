//! Bytes are bounded: each bound answers with an error that says so, and nothing breaks or grows.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use kv_core::error::Kind;
use kv_proto::client::{Client, How, Write};
use kv_proto::limits::{BATCH_OPERATIONS_MAX, MESSAGE_BYTES_MAX};
use kv_proto::v1::batch_operation::Operation;
use kv_proto::v1::key_value_client::KeyValueClient;
use kv_proto::v1::{self, BatchOperation, BatchRequest};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::transport::Channel;

use crate::world::{Node, World, get, put, reports, until, until_async};

const MIB: usize = 1024 * 1024;

/// The line of docs/limits.md: what a node takes at the most with the default settings and a debug build, apart from one
/// MiB for each connection.
const MEMORY_LINE: u64 = 1024 * 1024 * 1024;

pub(crate) async fn direct(address: &str) -> KeyValueClient<Channel> {
    let client = until_async("the node takes a connection", || async {
        KeyValueClient::connect(format!("http://{address}")).await.ok()
    });
    client.await.max_decoding_message_size(MESSAGE_BYTES_MAX)
}

fn put_request(key: String, bytes: usize) -> v1::PutRequest {
    v1::PutRequest { key: key.into(), value: vec![7; bytes].into(), timeout_ms: 30_000, ..v1::PutRequest::default() }
}

/// Puts of this size, all at once; how many had which outcome.
async fn put_all(address: &str, name: &str, count: usize, bytes: usize) -> BTreeMap<String, usize> {
    let mut clients = Vec::new();
    for _ in 0..8 {
        clients.push(direct(address).await);
    }
    let mut puts = JoinSet::new();
    for number in 0..count {
        let mut client = clients[number % clients.len()].clone();
        let request = put_request(format!("{name}-{number}"), bytes);
        puts.spawn(async move {
            client.put(request).await.map_or_else(|status| format!("{:?}", status.code()), |_| "ok".to_owned())
        });
    }
    let mut outcomes = BTreeMap::new();
    while let Some(outcome) = puts.join_next().await {
        *outcomes.entry(outcome.unwrap()).or_default() += 1;
    }
    outcomes
}

/// Records that `never_read` asks for: more than what a node keeps in memory, so that each result is one of its own.
const LARGE_KEYS: u64 = 192;

async fn put_large(client: &Client) -> Bytes {
    let large = Bytes::from(vec![7; MIB / 2]);
    for number in 0..LARGE_KEYS {
        let key = Bytes::from(format!("large-{number}"));
        client.put(&How::default(), &key, &large, &Write::default()).await.unwrap();
    }
    large
}

/// Opens a stream of gets whose results nobody takes, and sends until it takes no more; how many were sent.
async fn never_read(address: &str) -> (usize, Box<dyn Send>) {
    const MOST: usize = 400;
    let (sender, requests) = mpsc::channel(1);
    let mut client = direct(address).await;
    let stream = client.batch(ReceiverStream::new(requests)).await.unwrap().into_inner();
    let mut sent = 0;
    while sent < MOST {
        let get = |id| {
            let key = format!("large-{}", id % LARGE_KEYS).into();
            BatchOperation { id, operation: Some(Operation::Get(v1::GetRequest { key, ..v1::GetRequest::default() })) }
        };
        let operations = (0..512).map(get).collect();
        // Some seconds without room: the node reads no further. If it is only slow, less is asked of it.
        match tokio::time::timeout(Duration::from_secs(3), sender.send(BatchRequest { operations, sent_us: 0 })).await {
            Ok(Ok(())) => sent += 1,
            _ => break,
        }
    }
    assert!(sent < MOST, "the stream is read although nobody takes its results");
    (sent, Box::new((stream, sender)))
}

fn broken_sessions(world: &World) -> Vec<String> {
    let words = ["too slow", "session with a peer ended", "record-damaged", "store-failed"];
    let lines = world.nodes.iter().flat_map(|node| node.log().lines().map(str::to_owned).collect::<Vec<_>>());
    lines.filter(|line| words.iter().any(|word| line.contains(word))).collect()
}

#[tokio::test]
async fn puts_beyond_the_room_are_refused_and_no_session_breaks() {
    let (world, client) = World::cluster(3).await;
    let outcomes = put_all(&world.nodes[0].address, "large", 192, MIB).await;
    let known = ["ok", "ResourceExhausted"];
    assert!(outcomes.keys().all(|outcome| known.contains(&outcome.as_str())), "{outcomes:?}");
    assert!(outcomes.len() == 2, "{outcomes:?}");
    assert_eq!(broken_sessions(&world), Vec::<String>::new());
    // What was refused succeeds when it is tried again, and everybody has what was acknowledged.
    put(&client, "k", "v").await;
    world.wait_until_idle(&client).await;
    let up = reports(&client).await.iter().all(|report| report.peers.len() == 2);
    assert!(up);
    for node in &world.nodes {
        assert!(node.memory("VmHWM") < MEMORY_LINE, "{}: {}", node.name, node.memory("VmHWM"));
    }
}

#[tokio::test]
async fn a_client_that_takes_no_results_costs_little_and_harms_nobody() {
    let (world, client) = World::cluster(1).await;
    let node = &world.nodes[0];
    let large = put_large(&client).await;
    let (_, stalled) = never_read(&node.address).await;
    assert!(node.memory("VmHWM") < MEMORY_LINE, "{}", node.memory("VmHWM"));
    assert!(node.metric("answer_bytes").unwrap() > 0);
    // Others read as ever.
    put(&client, "k", "v").await;
    assert_eq!(get(&client, "k").await, ["v"]);
    let got = client.get(&How::default(), &Bytes::from_static(b"large-0")).await.unwrap();
    assert_eq!(got.values[0].value, large);
    // And when it goes, everything that it held is free.
    drop(stalled);
    until("what the client held is free", || (node.metric("answer_bytes") == Some(0)).then_some(()));
}

/// A stream with one good operation and then this message: the results, and how it ended.
async fn stream_with(node: &Node, last: BatchRequest) -> (Vec<v1::BatchResult>, Option<tonic::Status>) {
    let mut client = direct(&node.address).await;
    let good = BatchOperation { id: 0, operation: Some(Operation::Put(put_request("good".to_owned(), 1))) };
    let messages = [BatchRequest { operations: vec![good], sent_us: 0 }, last];
    let mut stream = client.batch(tokio_stream::iter(messages)).await.unwrap().into_inner();
    let mut results = Vec::new();
    loop {
        match stream.message().await {
            Ok(Some(response)) => results.extend(response.results),
            Ok(None) => return (results, None),
            Err(status) => return (results, Some(status)),
        }
    }
}

#[tokio::test]
async fn a_message_of_too_many_operations_is_refused_by_name() {
    let (world, _client) = World::cluster(1).await;
    let get = |id| BatchOperation {
        id,
        operation: Some(Operation::Get(v1::GetRequest { key: "good".into(), ..v1::GetRequest::default() })),
    };
    let operations = |count: usize| BatchRequest { operations: (1..=count as u64).map(get).collect(), sent_us: 0 };
    let (results, end) = stream_with(&world.nodes[0], operations(BATCH_OPERATIONS_MAX)).await;
    assert_eq!((results.len(), end.is_none()), (BATCH_OPERATIONS_MAX + 1, true), "as many as are allowed are served");
    let (results, end) = stream_with(&world.nodes[0], operations(BATCH_OPERATIONS_MAX + 1)).await;
    let end = end.unwrap();
    assert_eq!((results.len(), end.code()), (1, Code::InvalidArgument), "what came before is answered: {end}");
    assert!(end.message().contains("4097") && end.message().contains("4096"), "{end}");
}

#[tokio::test]
async fn a_message_over_the_limit_ends_the_stream_with_an_error() {
    let (world, client) = World::cluster(1).await;
    let put_large =
        BatchOperation { id: 1, operation: Some(Operation::Put(put_request("k".to_owned(), MESSAGE_BYTES_MAX))) };
    let (results, end) = stream_with(&world.nodes[0], BatchRequest { operations: vec![put_large], sent_us: 0 }).await;
    let end = end.expect("an error, not the end");
    assert_eq!(results.len(), 1, "what came before is answered");
    assert!(end.message().contains(&format!("limit is: {MESSAGE_BYTES_MAX}")), "{end}");
    // The client sends no such message: it would end the stream that all operations share.
    let large = Bytes::from(vec![7; MESSAGE_BYTES_MAX]);
    let (how, write) = (How::default(), Write::default());
    let (key, other) = (Bytes::from_static(b"k"), Bytes::from_static(b"other"));
    let (refused, done) =
        tokio::join!(client.put(&how, &key, &large, &write), client.put(&how, &other, &other, &write));
    assert_eq!(refused.unwrap_err().kind, Kind::Invalid);
    done.unwrap();
}

/// All bounds of one node at once, round after round. `KV_SOAK_ROUNDS=200 cargo test --release -p kv-node --test node soak`
/// is the long one.
#[tokio::test]
async fn soak_of_all_bounds_stays_below_the_line() {
    let rounds = std::env::var("KV_SOAK_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(3);
    let (world, client) = World::cluster(1).await;
    let node = &world.nodes[0];
    put_large(&client).await;
    for round in 0..rounds {
        let silent: Vec<_> = (0..200).filter_map(|_| std::net::TcpStream::connect(&node.address).ok()).collect();
        let mut greedy = JoinSet::new();
        for _ in 0..8 {
            let address = node.address.clone();
            greedy.spawn(async move { never_read(&address).await });
        }
        let outcomes = put_all(&node.address, &format!("round-{round}"), 128, MIB).await;
        assert!(outcomes.keys().all(|outcome| ["ok", "ResourceExhausted"].contains(&outcome.as_str())), "{outcomes:?}");
        let many = BatchRequest { operations: vec![BatchOperation::default(); BATCH_OPERATIONS_MAX + 1], sent_us: 0 };
        assert!(stream_with(node, many).await.1.is_some());
        let mut stalled = Vec::new();
        while let Some(held) = greedy.join_next().await {
            stalled.push(held.unwrap());
        }
        put(&client, "k", "v").await;
        let (now, most) = (node.memory("VmRSS"), node.memory("VmHWM"));
        eprintln!("round {round}: {outcomes:?}, {} MiB, at most {} MiB", now >> 20, most >> 20);
        assert!(most < MEMORY_LINE, "round {round}: {most} bytes");
        drop((silent, stalled));
    }
    until("everything that was held is free", || (node.metric("answer_bytes") == Some(0)).then_some(()));
    assert_eq!(broken_sessions(&world), Vec::<String>::new());
}
