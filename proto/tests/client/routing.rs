//! Which node an operation goes to, and what travels together.

use kv_core::ring::{Entry, Owner};
use kv_core::types::Epoch;

use super::*;

async fn goes_straight_to_the_owner(transport: Transport) {
    let cluster = cluster();
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
    let cluster = cluster();
    let client = cluster.client(unhurried()).await;
    put_many(&client, 0..900).await;
    let (frames, operations) = (cluster.sum(|node| &node.frames), cluster.sum(|node| &node.operations));
    assert_eq!(operations, 900);
    assert!(frames * 10 < operations, "{operations} operations took {frames} messages");
}

#[tokio::test]
async fn a_refusal_by_epoch_teaches_the_new_layout() {
    let cluster = cluster();
    let client = cluster.client(unhurried()).await;
    put_many(&client, 0..100).await;

    // Every partition moves to the one node that did not own it.
    let mut next = layout(2, 2);
    for entry in &mut next.partitions {
        let other = (1..=3).map(NodeId).find(|id| !entry.owns(*id)).expect("three nodes, two owners");
        *entry = Entry::settled(Epoch(2), vec![Owner { node: other, since: Epoch(2) }]);
    }
    cluster.world().layout = Some(next.clone());
    put_many(&client, 100..400).await;
    assert_eq!(client.description().layout.as_deref(), Some(&next));
    assert_eq!(client.stats().refreshes, 1, "one answer serves all that were refused");
    assert_eq!(cluster.sum(|node| &node.forwards), 0);
    assert_eq!(client.stats().failovers, 0);
}

#[tokio::test]
async fn too_much_is_refused_before_it_is_sent() {
    let cluster = cluster();
    let client = cluster.client(Options::default()).await;
    let check = |result: Result<_, RequestError>, expected: &str| {
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
