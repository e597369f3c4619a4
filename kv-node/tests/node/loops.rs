//! Nodes with several loops: what a client sees does not depend on how many there are.

use bytes::Bytes;
use kv_core::topology::Change;
use kv_proto::client::{Client, How, ScanQuery};

use crate::moving::{Writer, apply, check, fill, spare_with, throttle, until_done};
use crate::world::{World, get, put, run_to_end, strings};

/// The keys that scans of seven at a time find below a prefix.
async fn scanned(client: &Client, prefix: &'static str) -> Vec<String> {
    let (how, prefix) = (How::default(), Bytes::from_static(prefix.as_bytes()));
    let (mut keys, mut cursor) = (Vec::new(), Bytes::new());
    loop {
        let query = ScanQuery { prefix: prefix.clone(), cursor, limit: Some(7), ..ScanQuery::default() };
        let mut scan = client.scan(&how, query);
        let mut next = None;
        while let Some(page) = scan.next_page().await.unwrap() {
            keys.extend(page.entries.iter().map(|entry| String::from_utf8_lossy(&entry.key).into_owned()));
            next = page.cursor;
        }
        let Some(next) = next else { return keys };
        cursor = next;
    }
}

#[tokio::test]
async fn nodes_with_different_numbers_of_loops_are_one_store_and_a_restart_may_change_the_number() {
    let (mut world, client) = World::cluster(3).await;
    for (round, loops) in [["1", "2", "4"], ["4", "1", "3"], ["2", "4", "1"]].into_iter().enumerate() {
        for (node, loops) in world.nodes.iter_mut().zip(loops) {
            assert_eq!(node.stop(), Some(0));
            node.restart_with(&[("--loops", loops)]);
        }
        world.wait_until_all_up(&client).await;
        for index in 0..40 {
            put(&client, &format!("r{round}:{index:02}"), "v").await;
        }
        for earlier in 0..=round {
            let wanted: Vec<String> = (0..40).map(|index| format!("r{earlier}:{index:02}")).collect();
            let prefix = ["r0:", "r1:", "r2:"][earlier];
            assert_eq!(scanned(&client, prefix).await, wanted, "in byte order, each once");
            assert_eq!(get(&client, &wanted[17]).await, ["v"]);
        }
    }
    world.wait_until_idle(&client).await;
}

#[tokio::test]
async fn partitions_move_between_nodes_with_different_numbers_of_loops_under_constant_writes() {
    let (mut world, client) = World::cluster(3).await;
    for (node, loops) in world.nodes.iter_mut().zip(["4", "1", "2"]) {
        assert_eq!(node.stop(), Some(0));
        node.restart_with(&[("--loops", loops)]);
    }
    world.wait_until_all_up(&client).await;
    let filled = fill(&client, 300, 100).await;
    let id = spare_with(&mut world, &client, "n4", &["--loops", "3"]).await;
    let writer = Writer::start(&client);
    let number = apply(&client, Change::Add { node: id }).await;
    // The limit holds for all loops of a node together; without it the operation ends.
    throttle(&client, Some(20_000)).await;
    writer.go_on().await;
    throttle(&client, None).await;
    until_done(&client, number).await;
    writer.go_on().await;
    let mut written = writer.end().await;
    written.extend(filled);
    check(&client, &written, 4, 3).await;
}

#[test]
fn a_number_of_loops_that_no_node_can_have_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (given, said) in [("0", "is 0; a node has 1 to 255 loops"), ("256", "is 256; a node has 1 to 255 loops")] {
        let dir = dir.path().to_string_lossy();
        let (code, log) = run_to_end(&strings(&["--data-dir", &dir, "--listen", "127.0.0.1:0", "--loops", given]));
        assert_eq!(code, Some(2), "{log}");
        assert!(log.contains("loops") && log.contains(said), "{log}");
    }
}
