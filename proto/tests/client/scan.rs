//! Scans over several nodes.

use kv_testing::ScanFault;
use std::collections::BTreeSet;
use tonic::Status;

use super::*;

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
    let mut cluster = cluster();
    let client = cluster.client(Options::default()).await;
    put_many(&client, 0..200).await;
    let all: Vec<Bytes> = (0..200).map(key).collect();
    assert_eq!(scan_all(&client, ScanQuery::default()).await, all);

    // Streams that break after every third page, and a node that is gone.
    cluster.world().scan_fault = Some(ScanFault::Break(3, Status::internal("broken")));
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
    let cluster = cluster();
    let client = cluster.client(Options::default()).await;
    put_many(&client, 0..20).await;
    cluster.world().scan_fault = Some(ScanFault::Repeat(2, Status::internal("broken")));
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
