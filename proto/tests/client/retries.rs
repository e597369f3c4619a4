//! Nodes that die, refuse, forget and send garbage: what is repeated, and what is not.

use kv_proto::v1;

use super::*;

async fn survives_the_death_of_an_owner(transport: Transport) {
    let mut cluster = cluster();
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
    let mut cluster = cluster();
    let client = cluster.client(Options::default()).await;
    put_many(&client, 0..50).await;
    cluster.nodes[1].always_fail(Some(Fault::Stall));
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
    let cluster = cluster();
    let client = cluster.client(Options { transport, ..Options::default() }).await;
    let primary = cluster.primary(&key(1));
    cluster.nodes[primary].fail_next(&[Fault::Forget]);
    put(&client, 1).await.expect("written");
    let writes = cluster.world().writes.clone();
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
    let cluster = cluster();
    let primary = cluster.primary(&key(1));
    for transport in [Transport::Batch, Transport::Unary] {
        let careful = cluster.client(Options { transport, retry: Retry::NothingDone, ..Options::default() }).await;
        cluster.world().writes.clear();
        cluster.nodes[primary].fail_next(&[Fault::Forget]);
        assert_eq!(put(&careful, 1).await.map_err(|error| error.kind), Err(Kind::Unknown));
        assert_eq!(cluster.world().writes.len(), 1);
    }

    let client = cluster.client(unhurried()).await;
    for kind in [Kind::Invalid, Kind::NotFound, Kind::Corrupt] {
        let before = cluster.sum(|node| &node.operations);
        cluster.nodes[primary].fail_next(&[Fault::Refuse(kind)]);
        assert_eq!(put(&client, 1).await.map_err(|error| error.kind), Err(kind));
        assert_eq!(cluster.sum(|node| &node.operations), before + 1, "{kind:?}");
    }

    // Another keyspace of the name may have been created meanwhile.
    let users = v1::DropKeyspaceRequest { name: "users".to_owned(), ..Default::default() };
    let before = cluster.sum(|node| &node.operations);
    cluster.all_fail(Some(Fault::Refuse(Kind::Unknown)));
    assert_eq!(client.drop_keyspace(users).await.map_err(|error| error.kind), Err(Kind::Unknown));
    assert_eq!(cluster.sum(|node| &node.operations), before + 1);
}

#[tokio::test]
async fn what_did_nothing_is_repeated() {
    let cluster = cluster();
    let client = cluster.client(Options { retry: Retry::NothingDone, ..Options::default() }).await;
    let primary = cluster.primary(&key(1));
    for kind in [Kind::Unavailable, Kind::Exhausted, Kind::StaleEpoch] {
        cluster.nodes[primary].fail_next(&[Fault::Refuse(kind)]);
        put(&client, 1).await.expect("written in the end");
    }
    // A write under `Never` is told at once.
    let never = cluster.client(Options { retry: Retry::Never, ..Options::default() }).await;
    cluster.nodes[primary].fail_next(&[Fault::Refuse(Kind::Unavailable)]);
    assert_eq!(put(&never, 1).await.map_err(|error| error.kind), Err(Kind::Unavailable));
}

#[tokio::test]
async fn nonsense_is_an_unknown_outcome_and_the_next_node_is_asked() {
    let cluster = cluster();
    for transport in [Transport::Batch, Transport::Unary] {
        let client = cluster.client(Options { transport, ..Options::default() }).await;
        put(&client, 1).await.expect("written");
        let primary = cluster.primary(&key(1));
        // Twice: once without content, once with the content of another answer.
        cluster.nodes[primary].fail_next(&[Fault::Garbage, Fault::Garbage]);
        assert_eq!(value(&client, 1).await, Some(key(1)));
        let never = cluster.client(Options { transport, retry: Retry::Never, ..Options::default() }).await;
        cluster.all_fail(Some(Fault::Garbage));
        for _ in 0..4 {
            let got = never.get(&How::default(), &key(1)).await;
            assert_eq!(got.map_err(|error| error.kind), Err(Kind::Unknown));
        }
        for node in &cluster.nodes {
            node.heal();
        }
    }
}
