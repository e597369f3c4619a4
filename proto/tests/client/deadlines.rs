//! How long an operation may take, and what is said of one that was given up.

use super::*;

#[tokio::test]
async fn an_unknown_outcome_stays_unknown() {
    let cluster = cluster();
    let client = cluster.client(Options::default()).await;
    let primary = cluster.primary(&key(1));
    cluster.nodes[primary].fail_next(&[Fault::Forget]);
    cluster.all_fail(Some(Fault::Refuse(Kind::Unavailable)));
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
    let cluster = cluster();
    for transport in [Transport::Batch, Transport::Unary] {
        let client = cluster.client(Options { transport, ..brisk() }).await;
        // One that stalls is left for another.
        let primary = cluster.primary(&key(1));
        cluster.nodes[primary].fail_next(&[Fault::Stall]);
        put(&client, 1).await.expect("another node answers");

        cluster.all_fail(Some(Fault::Stall));
        let how = How { timeout: Some(Duration::from_millis(300)), ..How::default() };
        let error = client.put(&how, &key(1), &key(1), &Write::default()).await.expect_err("nobody answers");
        assert_eq!(error.kind, Kind::Unknown);
        assert!(error.message.contains("gave up after 300 ms"), "{error}");
        cluster.all_fail(None);
    }
}

#[tokio::test]
async fn operations_that_are_given_up_free_their_places() {
    let cluster = cluster();
    let client = cluster.client(Options { in_flight_max: 4, ..Options::default() }).await;
    cluster.all_fail(Some(Fault::Stall));
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
    cluster.all_fail(None);
    put_many(&client, 0..100).await;
}
