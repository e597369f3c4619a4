//! The client against servers that die, stall, refuse, forget and talk nonsense.

mod fake;
mod stalls;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use fake::{Act, Cluster, layout};
use kv_core::error::Kind;
use kv_core::ring::{Entry, Owner};
use kv_core::types::{Epoch, NodeId};
use kv_proto::client::{Client, How, Options, Retry, ScanQuery, Transport, Write};
use kv_proto::v1;
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;

/// How long anything may take before a test gives up, where time is not what it is about.
const PATIENCE: Duration = Duration::from_secs(60);

fn key(index: usize) -> Bytes {
    Bytes::from(format!("key-{index:04}"))
}

/// Short waits, so that what must time out does so soon.
fn brisk() -> Options {
    Options { attempt_timeout: Duration::from_millis(150), ..Options::default() }
}

/// Nothing is asked again for being late: what is counted must not depend on how busy the machine is.
fn unhurried() -> Options {
    let (timeout, attempt_timeout, connect_timeout, stall_after) = (PATIENCE, PATIENCE, PATIENCE, PATIENCE);
    Options { timeout, attempt_timeout, connect_timeout, stall_after, ..Options::default() }
}

async fn put(client: &Client, index: usize) -> Result<(), kv_core::error::RequestError> {
    client.put(&How::default(), &key(index), &key(index), &Write::default()).await.map(drop)
}

async fn value(client: &Client, index: usize) -> Option<Bytes> {
    let got = client.get(&How::default(), &key(index)).await.expect("readable");
    got.values.first().map(|value| value.value.clone())
}

async fn put_many(client: &Client, indexes: std::ops::Range<usize>) {
    let mut tasks = JoinSet::new();
    for index in indexes {
        let client = client.clone();
        tasks.spawn(async move { put(&client, index).await });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("no panic").expect("written");
    }
}

fn set(figure: &AtomicU64, value: u64) {
    figure.store(value, Ordering::Relaxed);
}

async fn goes_straight_to_the_owner(transport: Transport) {
    let cluster = Cluster::start(Some(layout(1)));
    let client = cluster.client(Options { transport, ..unhurried() }).await;
    put_many(&client, 0..600).await;
    for index in 0..600 {
        assert_eq!(value(&client, index).await, Some(key(index)));
    }
    client.delete(&How::default(), &key(0), None).await.expect("deleted");
    assert_eq!(value(&client, 0).await, None);

    assert_eq!(cluster.sum(|node| &node.forwards), 0, "forwards");
    for node in &cluster.nodes {
        assert!(node.operations.load(Ordering::Relaxed) > 200, "{} had too little to do", node.id);
    }
    let stats = client.stats();
    assert_eq!((stats.attempts, stats.retries, stats.failovers, stats.refreshes), (1202, 0, 0, 0));
}

#[tokio::test]
async fn batches_go_straight_to_the_owner() {
    goes_straight_to_the_owner(Transport::Batch).await;
}

#[tokio::test]
async fn unary_calls_go_straight_to_the_owner() {
    goes_straight_to_the_owner(Transport::Unary).await;
}

#[tokio::test]
async fn operations_that_are_ready_together_share_messages() {
    let cluster = Cluster::start(Some(layout(1)));
    let client = cluster.client(unhurried()).await;
    put_many(&client, 0..900).await;
    let (frames, operations) = (cluster.sum(|node| &node.frames), cluster.sum(|node| &node.operations));
    assert_eq!(operations, 900);
    assert!(frames * 10 < operations, "{operations} operations took {frames} messages");
}

#[tokio::test]
async fn a_refusal_by_epoch_teaches_the_new_layout() {
    let cluster = Cluster::start(Some(layout(1)));
    let client = cluster.client(unhurried()).await;
    put_many(&client, 0..100).await;

    // Every partition moves to the one node that did not own it.
    let mut next = layout(2);
    for entry in &mut next.partitions {
        let other = (1..=3).map(NodeId).find(|id| !entry.owns(*id)).expect("three nodes, two owners");
        *entry = Entry::settled(Epoch(2), vec![Owner { node: other, since: Epoch(2) }]);
    }
    for node in &cluster.nodes {
        *node.layout.lock().expect("lock") = Some(next.clone());
    }
    put_many(&client, 100..400).await;
    assert_eq!(client.description().layout.as_deref(), Some(&next));
    assert_eq!(client.stats().refreshes, 1, "one answer serves all that were refused");
    assert_eq!(cluster.sum(|node| &node.forwards), 0);
    assert_eq!(client.stats().failovers, 0);
}

async fn survives_the_death_of_an_owner(transport: Transport) {
    let mut cluster = Cluster::start(Some(layout(1)));
    let client = cluster.client(Options { transport, ..Options::default() }).await;
    put_many(&client, 0..100).await;
    cluster.kill(0);
    put_many(&client, 100..200).await;
    // A refused connection did nothing: it does not take the permission to repeat unknown outcomes.
    let careful = cluster.client(Options { transport, retry: Retry::NothingDone, ..Options::default() }).await;
    put_many(&careful, 200..300).await;
    for index in 0..300 {
        assert_eq!(value(&client, index).await, Some(key(index)));
    }
    assert!(client.stats().failovers > 0);
}

#[tokio::test]
async fn batches_survive_the_death_of_an_owner() {
    survives_the_death_of_an_owner(Transport::Batch).await;
}

#[tokio::test]
async fn unary_calls_survive_the_death_of_an_owner() {
    survives_the_death_of_an_owner(Transport::Unary).await;
}

#[tokio::test]
async fn survives_a_death_with_operations_in_flight() {
    let mut cluster = Cluster::start(Some(layout(1)));
    let client = cluster.client(Options::default()).await;
    put_many(&client, 0..50).await;
    *cluster.nodes[1].habit.lock().expect("lock") = Some(Act::Stall);
    let writers = tokio::spawn({
        let client = client.clone();
        async move { put_many(&client, 50..350).await }
    });
    // The node dies when it holds operations that it has not answered.
    while cluster.nodes[1].operations.load(Ordering::Relaxed) < 40 {
        tokio::task::yield_now().await;
    }
    cluster.kill(1);
    writers.await.expect("all written");
    for index in 0..350 {
        assert_eq!(value(&client, index).await, Some(key(index)));
    }
}

async fn a_forgotten_write_is_repeated_under_its_id(transport: Transport) {
    let cluster = Cluster::start(Some(layout(1)));
    let client = cluster.client(Options { transport, ..Options::default() }).await;
    let first = cluster.first_owner(&key(1));
    cluster.nodes[first].script.lock().expect("lock").push_back(Act::Forget);
    put(&client, 1).await.expect("written");
    let writes = cluster.world.writes.lock().expect("lock").clone();
    assert_eq!(writes.len(), 2);
    assert_eq!(writes[0].1, writes[1].1, "the same identity");
    assert_ne!(writes[0].0, writes[1].0, "another node");
}

#[tokio::test]
async fn batches_repeat_a_forgotten_write_under_its_id() {
    a_forgotten_write_is_repeated_under_its_id(Transport::Batch).await;
}

#[tokio::test]
async fn unary_calls_repeat_a_forgotten_write_under_its_id() {
    a_forgotten_write_is_repeated_under_its_id(Transport::Unary).await;
}

#[tokio::test]
async fn what_is_not_safe_is_not_repeated() {
    let cluster = Cluster::start(Some(layout(1)));
    let first = cluster.first_owner(&key(1));
    for transport in [Transport::Batch, Transport::Unary] {
        let careful = cluster.client(Options { transport, retry: Retry::NothingDone, ..Options::default() }).await;
        cluster.world.writes.lock().expect("lock").clear();
        cluster.nodes[first].script.lock().expect("lock").push_back(Act::Forget);
        assert_eq!(put(&careful, 1).await.map_err(|error| error.kind), Err(Kind::Unknown));
        assert_eq!(cluster.world.writes.lock().expect("lock").len(), 1);
    }

    let client = cluster.client(unhurried()).await;
    for kind in [Kind::Invalid, Kind::NotFound, Kind::Corrupt] {
        let before = cluster.sum(|node| &node.operations);
        cluster.nodes[first].script.lock().expect("lock").push_back(Act::Refuse(kind));
        assert_eq!(put(&client, 1).await.map_err(|error| error.kind), Err(kind));
        assert_eq!(cluster.sum(|node| &node.operations), before + 1, "{kind:?}");
    }

    // Another keyspace of the name may have been created meanwhile.
    let users = v1::DropKeyspaceRequest { name: "users".to_owned(), ..Default::default() };
    assert_eq!(client.drop_keyspace(users).await.map_err(|error| error.kind), Err(Kind::Unknown));
    assert_eq!(cluster.sum(|node| &node.drops), 1);
}

#[tokio::test]
async fn what_did_nothing_is_repeated() {
    let cluster = Cluster::start(Some(layout(1)));
    let client = cluster.client(Options { retry: Retry::NothingDone, ..Options::default() }).await;
    let first = cluster.first_owner(&key(1));
    for kind in [Kind::Unavailable, Kind::Exhausted, Kind::StaleEpoch] {
        cluster.nodes[first].script.lock().expect("lock").push_back(Act::Refuse(kind));
        put(&client, 1).await.expect("written in the end");
    }
    // A write under `Never` is told at once.
    let never = cluster.client(Options { retry: Retry::Never, ..Options::default() }).await;
    cluster.nodes[first].script.lock().expect("lock").push_back(Act::Refuse(Kind::Unavailable));
    assert_eq!(put(&never, 1).await.map_err(|error| error.kind), Err(Kind::Unavailable));
}

#[tokio::test]
async fn an_unknown_outcome_stays_unknown() {
    let cluster = Cluster::start(Some(layout(1)));
    let client = cluster.client(Options::default()).await;
    let first = cluster.first_owner(&key(1));
    cluster.nodes[first].script.lock().expect("lock").push_back(Act::Forget);
    for node in &cluster.nodes {
        *node.habit.lock().expect("lock") = Some(Act::Refuse(Kind::Unavailable));
    }
    let how = How { timeout: Some(Duration::from_millis(200)), ..How::default() };
    let error = client.put(&how, &key(1), &key(1), &Write::default()).await.expect_err("nobody serves");
    assert_eq!(error.kind, Kind::Unknown);
    assert!(error.message.contains("gave up"), "{error}");
    // A read has no outcome to be unknown about.
    let error = client.get(&how, &key(1)).await.expect_err("nobody serves");
    assert_eq!(error.kind, Kind::Unavailable);
}

#[tokio::test]
async fn a_deadline_ends_what_stalls() {
    let cluster = Cluster::start(Some(layout(1)));
    for transport in [Transport::Batch, Transport::Unary] {
        let client = cluster.client(Options { transport, ..brisk() }).await;
        // One that stalls is left for another.
        let first = cluster.first_owner(&key(1));
        cluster.nodes[first].script.lock().expect("lock").push_back(Act::Stall);
        put(&client, 1).await.expect("another node answers");

        for node in &cluster.nodes {
            *node.habit.lock().expect("lock") = Some(Act::Stall);
        }
        let how = How { timeout: Some(Duration::from_millis(300)), ..How::default() };
        let error = client.put(&how, &key(1), &key(1), &Write::default()).await.expect_err("nobody answers");
        assert_eq!(error.kind, Kind::Unknown);
        assert!(error.message.contains("gave up after 300 ms"), "{error}");
        for node in &cluster.nodes {
            *node.habit.lock().expect("lock") = None;
        }
    }
}

#[tokio::test]
async fn operations_that_are_given_up_free_their_places() {
    let cluster = Cluster::start(Some(layout(1)));
    let client = cluster.client(Options { in_flight_max: 4, ..Options::default() }).await;
    for node in &cluster.nodes {
        *node.habit.lock().expect("lock") = Some(Act::Stall);
    }
    for _ in 0..20 {
        let mut tasks = JoinSet::new();
        let before = cluster.sum(|node| &node.operations);
        for index in 0..30 {
            let client = client.clone();
            tasks.spawn(async move { put(&client, index).await });
        }
        // They are dropped while they wait: some for an answer, some for a place.
        while cluster.sum(|node| &node.operations) == before {
            tokio::task::yield_now().await;
        }
        tasks.shutdown().await;
    }
    for node in &cluster.nodes {
        *node.habit.lock().expect("lock") = None;
    }
    put_many(&client, 0..100).await;
}

#[tokio::test]
async fn nonsense_is_an_unknown_outcome_and_the_next_node_is_asked() {
    let cluster = Cluster::start(Some(layout(1)));
    for transport in [Transport::Batch, Transport::Unary] {
        let client = cluster.client(Options { transport, ..Options::default() }).await;
        put(&client, 1).await.expect("written");
        let first = cluster.first_owner(&key(1));
        // Twice: once without content, once with the content of another answer.
        cluster.nodes[first].script.lock().expect("lock").extend([Act::Garbage, Act::Garbage]);
        assert_eq!(value(&client, 1).await, Some(key(1)));
        let never = cluster.client(Options { transport, retry: Retry::Never, ..Options::default() }).await;
        for node in &cluster.nodes {
            *node.habit.lock().expect("lock") = Some(Act::Garbage);
        }
        for _ in 0..4 {
            let got = never.get(&How::default(), &key(1)).await;
            assert_eq!(got.map_err(|error| error.kind), Err(Kind::Unknown));
        }
        for node in &cluster.nodes {
            node.script.lock().expect("lock").clear();
            *node.habit.lock().expect("lock") = None;
        }
    }
}

#[tokio::test]
async fn too_much_is_refused_before_it_is_sent() {
    let cluster = Cluster::start(Some(layout(1)));
    let client = cluster.client(Options::default()).await;
    let check = |result: Result<_, kv_core::error::RequestError>, expected: &str| {
        let error = result.map(|_: kv_proto::client::Written| ()).expect_err("refused");
        assert_eq!((error.kind, error.message.as_str()), (Kind::Invalid, expected));
    };
    let (how, write) = (How::default(), Write::default());
    check(client.put(&how, &Bytes::new(), &key(1), &write).await, "key: is empty; a key has at least 1 byte");
    check(
        client.put(&how, &key(1), &vec![0; 9 * 1024 * 1024].into(), &write).await,
        "value: has 9437184 bytes, 1048576 are allowed; store a larger value in pieces",
    );
    check(
        client.delete(&how, &vec![b'k'; 5000].into(), None).await,
        "key: has 5000 bytes, 4096 are allowed; use a shorter key, such as a hash of this one",
    );
    assert_eq!(cluster.sum(|node| &node.operations), 0);
    // The largest values travel, many at once.
    let mut tasks = JoinSet::new();
    for index in 0..24 {
        let client = client.clone();
        tasks.spawn(async move {
            let value = Bytes::from(vec![7; 1024 * 1024]);
            client.put(&How::default(), &key(index), &value, &Write::default()).await
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("no panic").expect("written");
    }
}

async fn scan_all(client: &Client, query: ScanQuery) -> Vec<Bytes> {
    let mut scan = client.scan(&How::default(), query);
    let mut keys = Vec::new();
    while let Some(page) = scan.next_page().await.expect("a page") {
        keys.extend(page.entries.into_iter().map(|entry| entry.key));
    }
    keys
}

#[tokio::test]
async fn a_scan_goes_on_at_another_node_without_gap_or_repetition() {
    let mut cluster = Cluster::start(Some(layout(1)));
    let client = cluster.client(Options::default()).await;
    put_many(&client, 0..200).await;
    let all: Vec<Bytes> = (0..200).map(key).collect();
    assert_eq!(scan_all(&client, ScanQuery::default()).await, all);

    // Streams that break after every third page, and a node that is gone.
    for node in &cluster.nodes {
        set(&node.pages_max, 3);
    }
    cluster.kill(0);
    assert_eq!(scan_all(&client, ScanQuery::default()).await, all);
    let query = ScanQuery { prefix: "key-01".into(), limit: Some(50), ..ScanQuery::default() };
    assert_eq!(scan_all(&client, query).await, all[100..150]);

    // Stopped and continued by cursor.
    let mut seen = Vec::new();
    let mut cursor = Bytes::new();
    loop {
        let query = ScanQuery { cursor, limit: Some(11), ..ScanQuery::default() };
        let mut scan = client.scan(&How::default(), query);
        let mut next = None;
        while let Some(page) = scan.next_page().await.expect("a page") {
            seen.extend(page.entries.into_iter().map(|entry| entry.key));
            next = page.cursor;
        }
        let Some(next) = next else { break };
        cursor = next;
    }
    assert_eq!(seen, all);
}

#[tokio::test]
async fn a_scan_that_repeats_keys_is_an_error() {
    let cluster = Cluster::start(Some(layout(1)));
    let client = cluster.client(Options::default()).await;
    put_many(&client, 0..20).await;
    for node in &cluster.nodes {
        node.repeats_pages.store(true, Ordering::Relaxed);
        set(&node.pages_max, 2);
    }
    let how = How { timeout: Some(Duration::from_millis(200)), ..How::default() };
    let mut scan = client.scan(&how, ScanQuery::default());
    let mut keys = BTreeSet::new();
    loop {
        match scan.next_page().await {
            Ok(Some(page)) => {
                for entry in page.entries {
                    assert!(keys.insert(entry.key), "a key came twice");
                }
            }
            Ok(None) => panic!("the scan ended as if it were complete"),
            Err(_) => break,
        }
    }
}

#[tokio::test]
async fn a_forming_cluster_is_described_and_refuses_data() {
    let cluster = Cluster::start(None);
    let client = cluster.client(brisk()).await;
    assert_eq!(client.description().forming, Some((1, 3)));
    let how = How { timeout: Some(Duration::from_millis(100)), ..How::default() };
    let error = client.get(&how, &key(1)).await.expect_err("no data yet");
    assert_eq!(error.kind, Kind::Unavailable);
    assert!(error.message.contains("forming: 1 of 3 members"), "{error}");
    // As soon as it has formed, the same client finds it.
    for node in &cluster.nodes {
        *node.layout.lock().expect("lock") = Some(layout(1));
    }
    client.refresh().await.expect("described");
    put(&client, 1).await.expect("written");
    assert_eq!(client.description().forming, None);
}

#[tokio::test]
async fn questions_about_the_cluster_are_answered_by_any_node() {
    let mut cluster = Cluster::start(Some(layout(1)));
    let client = cluster.client(Options::default()).await;
    cluster.kill(0);
    assert_eq!(client.inspect(&How::default(), &key(1)).await.map(|seen| seen.partition), Ok(5));
    assert_eq!(client.keyspaces().await.map(|all| all.len()), Ok(1));
    let created = client.create_keyspace(v1::CreateKeyspaceRequest { name: "users".to_owned(), ..Default::default() });
    assert_eq!(created.await.map(|answer| answer.created), Ok(true));
    let reports = client.reports(v1::WatchRequest::default(), Duration::from_secs(5)).await;
    let told: Vec<(NodeId, bool, usize)> =
        reports.iter().map(|report| (report.node, report.snapshot.is_ok(), report.events.len())).collect();
    assert_eq!(told, [(NodeId(1), false, 0), (NodeId(2), true, 1), (NodeId(3), true, 1)]);
}

#[tokio::test]
async fn commands_about_operations_are_repeated_where_that_is_harmless() {
    let cluster = Cluster::start(Some(layout(1)));
    // A client that suspects nobody yet asks the first node first.
    let script = async |acts: &[Act]| {
        for node in &cluster.nodes {
            node.script.lock().expect("lock").clear();
        }
        cluster.nodes[0].script.lock().expect("lock").extend(acts.iter().copied());
        for node in &cluster.nodes {
            node.operations.store(0, Ordering::Relaxed);
        }
        cluster.client(Options::default()).await
    };
    let client = script(&[Act::Forget]).await;
    let paused = client.pause(v1::PauseRequest { id: 7, by: "ann".to_owned() }).await.expect("repeated elsewhere");
    assert_eq!((paused.id, cluster.sum(|node| &node.operations)), (7, 2));
    let client = script(&[Act::Forget]).await;
    let error = client.cancel(v1::CancelRequest { id: 7, by: String::new() }).await.expect_err("not repeated");
    assert_eq!((error.kind, cluster.sum(|node| &node.operations)), (Kind::Unknown, 1));
    let add = v1::ApplyRequest { changes: vec![v1::Change::default()], ..Default::default() };
    let client = script(&[Act::Forget]).await;
    let error = client.apply(add.clone()).await.expect_err("nothing recognises it");
    assert_eq!((error.kind, cluster.sum(|node| &node.operations)), (Kind::Unknown, 1));
    let client = script(&[Act::Forget]).await;
    let named = v1::ApplyRequest { request_id: vec![7; 16].into(), ..add };
    assert_eq!(client.apply(named).await.expect("repeated under its id").id, 1);
    for kind in [Kind::Conflict, Kind::NotFound, Kind::Invalid] {
        let client = script(&[Act::Refuse(kind)]).await;
        let error = client.resume(v1::ResumeRequest { id: 7, by: String::new() }).await.expect_err("refused");
        assert_eq!((error.kind, cluster.sum(|node| &node.operations)), (kind, 1));
    }
    let client = script(&[Act::Refuse(Kind::Unavailable)]).await;
    assert_eq!(client.cancel(v1::CancelRequest { id: 7, by: String::new() }).await.expect("nothing was done").id, 7);
}

#[tokio::test]
async fn no_cluster_is_a_clear_error() {
    let refused = {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        closed.local_addr().expect("an address").to_string()
    };
    let garbage = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let garbage_address = garbage.local_addr().expect("an address").to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = garbage.accept().await {
            drop(stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nhello").await);
        }
    });
    let connect = |addresses: Vec<String>| async move { Client::connect(&addresses, brisk()).await.map(drop) };

    let error = connect(vec![refused.clone(), garbage_address]).await.expect_err("no node");
    assert_eq!(error.kind, Kind::Unavailable);
    assert!(error.message.contains(&refused) && error.message.contains("refused"), "{error}");
    assert!(error.message.ends_with("check the addresses, and that the nodes run"), "{error}");
    let error = connect(vec![]).await.expect_err("no address");
    assert!(error.message.contains("no address was given"), "{error}");
    let error = connect(vec!["nonsense".to_owned()]).await.expect_err("not an address");
    assert_eq!(error.kind, Kind::Invalid);
}
