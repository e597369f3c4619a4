//! Nodes that stop without a word: their connections stay open, and nothing is answered.
//!
//! Attempts may take longer than any test: whatever ends has not waited for the stopped node.

use std::collections::BTreeSet;

use kv_proto::client::Scan;

use super::*;

fn moves_on() -> Options {
    Options { stall_after: Duration::from_millis(100), ..unhurried() }
}

/// Keys whose first owner is a node.
fn keys_of(cluster: &Cluster, owner: usize) -> Vec<usize> {
    (0..600).filter(|index| cluster.primary(&key(*index)) == owner).take(40).collect()
}

async fn keys(scan: &mut Scan) -> usize {
    let mut count = 0;
    while let Some(page) = scan.next_page().await.expect("a page") {
        count += page.entries.len();
    }
    count
}

async fn moves_on_from_a_stopped_node(transport: Transport) {
    let cluster = cluster();
    let client = cluster.client(Options { transport, ..moves_on() }).await;
    let mine = keys_of(&cluster, 0);
    put_many(&client, 0..600).await;
    cluster.world().writes.clear();
    let frozen = cluster.freeze(0);
    let before = client.stats();
    for &index in &mine {
        put(&client, index).await.expect("another node takes it");
        assert_eq!(value(&client, index).await, Some(key(index)));
    }
    let stats = client.stats();
    assert!(stats.failovers > before.failovers, "{stats:?}");
    // The first one finds out; the others go elsewhere at once. On a busy machine others seem to have stopped, too.
    let attempts = stats.attempts - before.attempts;
    assert!(attempts <= 6 * mine.len() as u64, "{attempts} attempts of {} operations", 2 * mine.len());
    // What was sent to the stopped node and to another one has one identity.
    drop(frozen);
    let served = || cluster.nodes[0].operations.load(Ordering::Relaxed);
    let at_thaw = served();
    let begun = std::time::Instant::now();
    while served() < at_thaw + 10 {
        put(&client, mine[0]).await.expect("written");
        assert!(begun.elapsed() < PATIENCE, "the client does not come back to a node that answers again");
    }
    let writes = cluster.world().writes.clone();
    let requests: BTreeSet<_> = writes.iter().map(|(_, request)| *request).collect();
    assert!(writes.len() <= 3 * requests.len(), "{} writes of {} requests", writes.len(), requests.len());
}

#[tokio::test]
async fn batches_move_on_from_a_stopped_node_and_come_back() {
    moves_on_from_a_stopped_node(Transport::Batch).await;
}

#[tokio::test]
async fn unary_calls_move_on_from_a_stopped_node_and_come_back() {
    moves_on_from_a_stopped_node(Transport::Unary).await;
}

#[tokio::test]
async fn what_is_under_way_moves_on_together() {
    let cluster = cluster();
    let client = cluster.client(moves_on()).await;
    put_many(&client, 0..100).await;
    let frozen = cluster.freeze(1);
    put_many(&client, 0..600).await;
    let stats = client.stats();
    assert!(stats.moved > 0, "{stats:?}");
    assert!(stats.attempts <= 700 + 600, "each operation is sent to each node once at most: {stats:?}");
    drop(frozen);
}

#[tokio::test]
async fn a_write_that_must_not_be_repeated_waits_for_its_node() {
    for retry in [Retry::Never, Retry::NothingDone] {
        let cluster = cluster();
        let client = cluster.client(Options { retry, ..moves_on() }).await;
        let index = keys_of(&cluster, 2)[0];
        put(&client, index).await.expect("the connection is made");
        let frozen = cluster.freeze(2);
        let writing = tokio::spawn({
            let client = client.clone();
            async move { put(&client, index).await }
        });
        // Reads of other clients notice that the node has stopped; a read may be repeated unless nothing may.
        if retry == Retry::NothingDone {
            assert_eq!(value(&client, index).await, Some(key(index)));
        } else {
            tokio::time::sleep(Duration::from_millis(400)).await;
        }
        assert!(!writing.is_finished(), "it waits");
        let writes = || cluster.world().writes.len();
        assert_eq!(writes(), 1);
        drop(frozen);
        writing.await.expect("no panic").expect("written");
        assert_eq!(writes(), 2, "once");
    }
}

#[tokio::test]
async fn a_node_that_is_slow_but_answers_keeps_its_work() {
    let cluster = cluster();
    let client = cluster.client(Options { attempt_timeout: Duration::from_millis(700), ..moves_on() }).await;
    let index = keys_of(&cluster, 0)[0];
    cluster.nodes[0].fail_next(&[Fault::Stall]);
    put(&client, index).await.expect("asked again after the time for an attempt");
    let stats = client.stats();
    assert_eq!((stats.moved, stats.attempts), (0, 2), "{stats:?}");
}

#[tokio::test]
async fn scans_descriptions_and_questions_move_on() {
    let cluster = cluster();
    let client = cluster.client(moves_on()).await;
    put_many(&client, 0..100).await;
    let mut scan = client.scan(&How::default(), ScanQuery::default());
    let first = scan.next_page().await.expect("a page").expect("keys").entries.len();
    // Scans begin at the first node.
    let frozen = cluster.freeze(0);
    assert_eq!(first + keys(&mut scan).await, 100, "a scan under way goes on elsewhere");
    client.refresh().await.expect("another node describes the cluster");
    client.keyspaces().await.expect("another node lists them");
    assert_eq!(keys(&mut client.scan(&How::default(), ScanQuery::default())).await, 100);
    drop(frozen);
}
