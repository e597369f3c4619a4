//! What is written is read, counted, and still there after a restart.

use bytes::Bytes;
use kv_proto::client::{Client, How, Options, ScanQuery, Transport, Write};

use crate::world::{World, get, options, put, reports, until_async};

#[tokio::test]
async fn one_node_is_a_complete_store_and_keeps_everything_over_sigkill() {
    let (mut world, client) = World::cluster(1).await;
    for index in 0..200 {
        put(&client, &format!("k{index}"), &format!("v{index}")).await;
    }
    world.nodes[0].kill();
    world.nodes[0].restart();
    let client = world.client().await;
    for index in 0..200 {
        assert_eq!(get(&client, &format!("k{index}")).await, [format!("v{index}")]);
    }
    let snapshot = reports(&client).await.remove(0);
    assert_eq!((snapshot.keys, snapshot.keys_primary, snapshot.boot), (200, 200, 2));
    assert_eq!(world.nodes[0].stop(), Some(0), "SIGTERM ends with 0");
}

#[tokio::test]
async fn three_nodes_hold_three_copies_and_nothing_is_forwarded() {
    let (world, client) = World::cluster(3).await;
    let unary =
        Client::connect(&world.addresses(), Options { transport: Transport::Unary, ..options() }).await.unwrap();
    for index in 0..300 {
        let client = if index % 2 == 0 { &client } else { &unary };
        put(client, &format!("k{index}"), &format!("v{index}")).await;
    }
    for index in 0..300 {
        let client = if index % 2 == 0 { &unary } else { &client };
        assert_eq!(get(client, &format!("k{index}")).await, [format!("v{index}")]);
    }
    world.wait_until_idle(&client).await;
    let reports = reports(&client).await;
    let sum = |figure: fn(&kv_proto::v1::NodeSnapshot) -> u64| reports.iter().map(figure).sum::<u64>();
    assert_eq!(sum(|node| node.keys), 900, "three copies of each key");
    assert_eq!(sum(|node| node.keys_primary), 300, "each key has one primary");
    assert_eq!(sum(|node| node.counters.unwrap_or_default().forwards), 0, "clients go straight to an owner");
    let roots = |node: &kv_proto::v1::NodeSnapshot| {
        node.partitions.iter().map(|partition| partition.merkle_root).collect::<Vec<_>>()
    };
    assert!(reports.iter().all(|node| roots(node) == roots(&reports[0])), "all copies are equal");
}

#[tokio::test]
async fn deletes_contexts_ttl_and_scans_work_across_nodes() {
    let (_world, client) = World::cluster(3).await;
    let how = How::default();
    for index in 0..50 {
        put(&client, &format!("user:{index:02}"), "v").await;
    }
    put(&client, "other", "v").await;
    let key = Bytes::from_static(b"user:07");
    client.delete(&how, &key, None).await.unwrap();
    assert!(get(&client, "user:07").await.is_empty());
    let read = client.get(&how, &Bytes::from_static(b"user:08")).await.unwrap();
    let write = Write { context: Some(read.context), ttl: Some(std::time::Duration::from_secs(3600)) };
    let value = Bytes::from_static(b"replaced");
    client.put(&how, &Bytes::from_static(b"user:08"), &value, &write).await.unwrap();
    let mut scan = client.scan(&how, ScanQuery { prefix: Bytes::from_static(b"user:"), ..ScanQuery::default() });
    let mut keys = Vec::new();
    while let Some(page) = scan.next_page().await.unwrap() {
        for entry in page.entries {
            let key = String::from_utf8_lossy(&entry.key).into_owned();
            if key == "user:08" {
                assert_eq!(entry.values[0].value, value);
                assert!(entry.values[0].expires.is_some());
            }
            keys.push(key);
        }
    }
    let wanted: Vec<String> = (0..50).filter(|index| *index != 7).map(|index| format!("user:{index:02}")).collect();
    assert_eq!(keys, wanted, "in byte order, each once");
}

#[tokio::test]
async fn keyspaces_are_created_used_and_dropped() {
    let (_world, client) = World::cluster(3).await;
    let keyspace = kv_proto::v1::CreateKeyspaceRequest {
        name: "sessions".to_owned(),
        conflict: kv_proto::v1::Conflict::Lww.into(),
        ..kv_proto::v1::CreateKeyspaceRequest::default()
    };
    assert!(client.create_keyspace(keyspace.clone()).await.unwrap().created);
    assert!(!client.create_keyspace(keyspace).await.unwrap().created, "creating it again is no error");
    let how = How { keyspace: "sessions".to_owned(), ..How::default() };
    let (key, value) = (Bytes::from_static(b"k"), Bytes::from_static(b"v"));
    // Every node learns of the keyspace soon.
    until_async("all nodes know the keyspace", || async {
        client.put(&how, &key, &value, &Write::default()).await.ok()
    })
    .await;
    assert_eq!(client.get(&how, &key).await.unwrap().values[0].value, value);
    assert!(get(&client, "k").await.is_empty(), "keyspaces do not share keys");
    client
        .drop_keyspace(kv_proto::v1::DropKeyspaceRequest { name: "sessions".to_owned(), ..Default::default() })
        .await
        .unwrap();
    let error = until_async("the keyspace is gone", || async { client.get(&how, &key).await.err() }).await;
    assert_eq!(error.kind, kv_core::error::Kind::NotFound);
}
