//! Consistent keyspaces on real processes: conditions, a majority that is missing, and counters through several nodes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kv_core::error::{Kind, RequestError};
use kv_core::topology::Change;
use kv_proto::client::{Client, Condition, How, Options, Transport, Write};
use kv_proto::v1;
use kv_proto::v1::key_value_client::KeyValueClient;
use kv_testing::{done, failed};
use tokio::task::JoinSet;
use tonic::Code;
use tonic::transport::Channel;

use crate::moving::{apply, spare, until_done};
use crate::world::{Node, World, options, reports, until_async};

fn locks() -> How {
    How { keyspace: "locks".to_owned(), ..How::default() }
}

fn consistent(name: &str) -> v1::CreateKeyspaceRequest {
    let mode = v1::KeyspaceMode::Consistent.into();
    v1::CreateKeyspaceRequest { name: name.to_owned(), mode, ..v1::CreateKeyspaceRequest::default() }
}

/// Three nodes, and the keyspace `locks`.
async fn with_locks() -> (World, Client) {
    let (world, client) = World::cluster(3).await;
    assert!(client.create_keyspace(consistent("locks")).await.unwrap().created);
    (world, client)
}

async fn direct(node: &Node) -> KeyValueClient<Channel> {
    KeyValueClient::connect(format!("http://{}", node.address)).await.unwrap()
}

fn put(key: &'static str, value: &str) -> v1::PutRequest {
    let (key, value) = (Bytes::from_static(key.as_bytes()), Bytes::copy_from_slice(value.as_bytes()));
    v1::PutRequest { keyspace: locks().keyspace, key, value, timeout_ms: 30_000, ..v1::PutRequest::default() }
}

#[tokio::test]
async fn conditions_are_kept_across_nodes() {
    let (world, client) = with_locks().await;
    assert!(!client.create_keyspace(consistent("locks")).await.unwrap().created, "creating it again is no error");
    let unary =
        Client::connect(&world.addresses(), Options { transport: Transport::Unary, ..options() }).await.unwrap();
    let text = Bytes::from_static;
    for (key, client) in [(text(b"batch"), &client), (text(b"unary"), &unary)] {
        let put = async |value, condition| client.put_if(&locks(), &key, &text(value), None, &condition).await.unwrap();
        let absent = client.get(&locks(), &key).await.unwrap();
        assert!(absent.values.is_empty());
        let first = done(put(b"a", Condition::Unchanged(absent.context.clone())).await);
        assert_eq!(failed(put(b"b", Condition::Absent).await), (Some(text(b"a")), first.clone()));
        assert_eq!(failed(put(b"b", Condition::Unchanged(absent.context)).await), (Some(text(b"a")), first.clone()));
        let second = done(put(b"b", Condition::Unchanged(first.clone())).await);
        let got = client.get(&locks(), &key).await.unwrap();
        assert_eq!((&got.values[0].value, &got.context), (&text(b"b"), &second));
        let delete = async |context: &Bytes| client.delete_if(&locks(), &key, context).await.unwrap();
        assert_eq!(failed(delete(&first).await), (Some(text(b"b")), second.clone()));
        let gone = done(delete(&second).await);
        assert_eq!(failed(put(b"c", Condition::Unchanged(second)).await), (None, gone.clone()));
        assert!(client.get(&locks(), &key).await.unwrap().values.is_empty());
        drop(done(put(b"c", Condition::Absent).await));
        client.put(&locks(), &key, &text(b"d"), &Write::default()).await.unwrap();
        client.delete(&locks(), &key, None).await.unwrap();
        let hour = Some(Duration::from_secs(3600));
        drop(done(client.put_if(&locks(), &key, &text(b"e"), hour, &Condition::Absent).await.unwrap()));
        assert!(client.get(&locks(), &key).await.unwrap().values[0].expires.is_some());
    }
    // Whatever node is asked, it tells what the last one has written.
    let mut nodes = Vec::new();
    for node in &world.nodes {
        nodes.push(direct(node).await);
    }
    let mut context = None;
    for round in 0..30 {
        let value = format!("r{round}");
        let conditional = match context.take() {
            None => v1::PutRequest { if_absent: true, ..put("passed-on", &value) },
            Some(context) => v1::PutRequest { if_context: Some(context), ..put("passed-on", &value) },
        };
        let written = nodes[round % 3].put(conditional).await.unwrap().into_inner();
        assert_eq!(written.unchanged, None, "{round}");
        let (keyspace, key) = (locks().keyspace, Bytes::from_static(b"passed-on"));
        let get = v1::GetRequest { keyspace, key, ..v1::GetRequest::default() };
        let got = nodes[(round + 1) % 3].get(get).await.unwrap().into_inner();
        assert_eq!((&got.versions[0].value[..], &got.context), (value.as_bytes(), &written.context));
        context = Some(got.context);
    }
    world.wait_until_idle(&client).await;
    let reports = reports(&client).await;
    assert!(reports.iter().all(|node| node.keys == 3), "every node has every key");
}

#[tokio::test]
async fn without_a_majority_nothing_is_done_and_that_is_said_at_once() {
    let (mut world, client) = with_locks().await;
    let key = Bytes::from_static(b"k");
    let first = done(client.put_if(&locks(), &key, &Bytes::from_static(b"a"), None, &Condition::Absent).await.unwrap());
    world.nodes[0].kill();
    // Two of three agree on their own.
    let mut context = first;
    for round in 0..10 {
        let value = Bytes::from(format!("b{round}"));
        let condition = Condition::Unchanged(context);
        // One that was with the node that died may have been carried out.
        context = match client.put_if(&locks(), &key, &value, None, &condition).await {
            Ok(conditional) => done(conditional),
            Err(RequestError { kind: Kind::Unknown, .. }) => client.get(&locks(), &key).await.unwrap().context,
            Err(error) => panic!("{error}"),
        };
    }
    let before = client.get(&locks(), &key).await.unwrap();
    world.nodes[1].kill();
    let mut alone = direct(&world.nodes[2]).await;
    let refused = async |alone: &mut KeyValueClient<Channel>| {
        let began = Instant::now();
        let condition = v1::PutRequest { if_context: Some(before.context.clone()), ..put("k", "lonely") };
        let status = alone.put(condition).await.unwrap_err();
        (status, began.elapsed())
    };
    // The session to a process that was killed ends with it, which the node learns in a moment.
    let (status, took) = until_async("the other node is known to be down", || {
        let mut alone = alone.clone();
        async move {
            let (status, took) = refused(&mut alone).await;
            (status.code() == Code::Unavailable).then_some((status, took))
        }
    })
    .await;
    assert!(status.message().contains("nothing was done"), "{status}");
    assert!(took < Duration::from_secs(15), "it had half a minute, and took {took:?}");
    let get = v1::GetRequest { keyspace: locks().keyspace, key: key.clone(), ..v1::GetRequest::default() };
    assert_eq!(alone.get(get).await.unwrap_err().code(), Code::Unavailable);
    world.nodes[0].restart();
    world.nodes[1].restart();
    world.wait_until_all_up(&client).await;
    assert_eq!(client.get(&locks(), &key).await.unwrap(), before, "nothing was done");
    drop(done(client.put_if(&locks(), &key, &key, None, &Condition::Unchanged(before.context)).await.unwrap()));
}

#[tokio::test]
async fn bad_input_is_named_with_its_remedy() {
    let (world, client) = with_locks().await;
    let mut node = direct(&world.nodes[0]).await;
    let context = node.put(put("k", "v")).await.unwrap().into_inner().context;
    let available = |request: v1::PutRequest| v1::PutRequest { keyspace: String::new(), ..request };
    let table = [
        (available(v1::PutRequest { if_absent: true, ..put("k", "v") }), "keyspace default is available"),
        (available(v1::PutRequest { if_context: Some(context.clone()), ..put("k", "v") }), "--mode consistent"),
        (v1::PutRequest { context: Some(context.clone()), ..put("k", "v") }, "--if-context"),
        (v1::PutRequest { if_context: Some(context.clone()), ..put("other", "v") }, "of another key"),
        (
            v1::PutRequest { if_absent: true, if_context: Some(context.clone()), ..put("k", "v") },
            "a write has one condition",
        ),
        (v1::PutRequest { level: v1::Level::One.into(), ..put("k", "v") }, "leave the level out"),
        (v1::PutRequest { level: v1::Level::All.into(), ..put("k", "v") }, "leave the level out"),
        (put("k", &"x".repeat(1024 * 1024 + 1)), "1048576 are allowed"),
    ];
    for (request, says) in table {
        let status = node.put(request).await.unwrap_err();
        assert_eq!((status.code(), status.message().contains(says)), (Code::InvalidArgument, true), "{status}");
    }
    // A context of an available keyspace is none here, and the other way round.
    let written =
        client.put(&How::default(), &Bytes::from_static(b"k"), &Bytes::new(), &Write::default()).await.unwrap();
    let foreign = v1::PutRequest { if_context: Some(written.context), ..put("k", "v") };
    assert!(node.put(foreign).await.unwrap_err().message().contains("of another keyspace"));
    let foreign = available(v1::PutRequest { context: Some(context.clone()), ..put("k", "v") });
    assert_eq!(node.put(foreign).await.unwrap_err().code(), Code::InvalidArgument);
    // Levels that say what is done anyway.
    let quorum = v1::PutRequest { level: v1::Level::Quorum.into(), strict: true, ..put("k", "w") };
    assert_eq!(node.put(quorum).await.unwrap().into_inner().unchanged, None);
    // Names that exist in the other mode.
    let exists = client.create_keyspace(consistent("default")).await.unwrap_err();
    let says = "keyspace default exists already and is available, not consistent";
    assert_eq!((exists.kind, exists.message.contains(says)), (Kind::Invalid, true), "{exists}");
    let other = v1::CreateKeyspaceRequest { mode: v1::KeyspaceMode::Available.into(), ..consistent("locks") };
    let exists = client.create_keyspace(other).await.unwrap_err();
    assert!(exists.message.contains("keyspace locks exists already and is consistent, not available"), "{exists}");
    let with_r = client.create_keyspace(v1::CreateKeyspaceRequest { r: 2, ..consistent("more") }).await.unwrap_err();
    assert!(with_r.message.starts_with("r: is set, and only available keyspaces have it"), "{with_r}");
    // From before the keyspace was dropped and created again.
    let drop = v1::DropKeyspaceRequest { name: "locks".to_owned(), ..v1::DropKeyspaceRequest::default() };
    client.drop_keyspace(drop).await.unwrap();
    client.create_keyspace(consistent("locks")).await.unwrap();
    let before = v1::PutRequest { if_context: Some(context), ..put("k", "v") };
    assert!(node.put(before).await.unwrap_err().message().contains("dropped and created again"));
    let again = v1::PutRequest { if_absent: true, ..put("k", "v") };
    assert_eq!(node.put(again).await.unwrap().into_inner().unchanged, None, "it is another keyspace");
}

/// What became of one addition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Added {
    Once,
    Perhaps,
}

/// Adds 1 by way of one node, as a client would that knows no other.
async fn add_by(node: &mut KeyValueClient<Channel>) -> Added {
    let (keyspace, key) = (locks().keyspace, Bytes::from_static(b"counter"));
    loop {
        let get = v1::GetRequest { keyspace: keyspace.clone(), key: key.clone(), ..v1::GetRequest::default() };
        let got = node.get(get).await.unwrap().into_inner();
        let before: i64 =
            got.versions.first().map_or(0, |version| std::str::from_utf8(&version.value).unwrap().parse().unwrap());
        let next = v1::PutRequest { if_context: Some(got.context), ..put("counter", &(before + 1).to_string()) };
        match node.put(next).await {
            Ok(written) if written.get_ref().unchanged.is_none() => return Added::Once,
            Ok(_) => {}
            // Others have written on top of a write that was sent, which the node says.
            Err(status) if status.code() == Code::DeadlineExceeded => return Added::Perhaps,
            Err(status) => panic!("{status}"),
        }
    }
}

#[tokio::test]
async fn a_counter_that_is_raised_through_all_nodes_adds_up() {
    const ROUNDS: i64 = 25;
    let (world, client) = with_locks().await;
    let mut tasks = JoinSet::new();
    for task in 0..8 {
        let client = client.clone();
        let mut node = direct(&world.nodes[task % 3]).await;
        tasks.spawn(async move {
            let mut added = Vec::new();
            for _ in 0..ROUNDS {
                // Half of them with the helper, which asks the first owner; the others by their own node.
                added.push(if task < 4 {
                    match client.add(&locks(), &Bytes::from_static(b"counter"), 1).await {
                        Ok(_) => Added::Once,
                        Err(RequestError { kind: Kind::Unknown, .. }) => Added::Perhaps,
                        Err(error) => panic!("{error}"),
                    }
                } else {
                    add_by(&mut node).await
                });
            }
            added
        });
    }
    let mut added = Vec::new();
    while let Some(ended) = tasks.join_next().await {
        added.extend(ended.unwrap());
    }
    let perhaps = i64::try_from(added.iter().filter(|added| **added == Added::Perhaps).count()).unwrap();
    let sum = client.add(&locks(), &Bytes::from_static(b"counter"), 0).await.unwrap();
    assert!((8 * ROUNDS - perhaps..=8 * ROUNDS).contains(&sum), "{sum}, and {perhaps} are not known");
}

#[tokio::test]
async fn counters_go_on_while_a_node_joins() {
    let (mut world, client) = with_locks().await;
    let key = |index: usize| Bytes::from(format!("counter-{index}"));
    for index in 0..60 {
        client.add(&locks(), &key(index), 100).await.unwrap();
    }
    let id = spare(&mut world, &client, "n4").await;
    let (stop, adding) = (Arc::new(AtomicBool::new(false)), client.clone());
    let stopped = Arc::clone(&stop);
    let adder = tokio::spawn(async move {
        let (mut added, mut perhaps) = (vec![0_i64; 60], vec![0_i64; 60]);
        for index in (0..60).cycle() {
            // Each key at least once.
            if stopped.load(Ordering::Relaxed) && added.iter().zip(&perhaps).all(|(added, perhaps)| added + perhaps > 0)
            {
                break;
            }
            match adding.add(&locks(), &key(index), 1).await {
                Ok(_) => added[index] += 1,
                Err(RequestError { kind: Kind::Unknown, .. }) => perhaps[index] += 1,
                Err(error) => panic!("{error}"),
            }
        }
        (added, perhaps)
    });
    let operation = apply(&client, Change::Add { node: id }).await;
    until_done(&client, operation).await;
    stop.store(true, Ordering::Relaxed);
    let (added, perhaps) = adder.await.unwrap();
    for index in 0..60 {
        let sum = client.add(&locks(), &key(index), 0).await.unwrap();
        let least = 100 + added[index];
        assert!((least..=least + perhaps[index]).contains(&sum), "{index}: {sum}, {least} at least, {perhaps:?}");
    }
}
