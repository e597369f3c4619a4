//! Keyspaces that are dropped, on real processes: their records go from every node, give their space back, and are not moved.

use std::path::Path;

use bytes::Bytes;
use kv_core::topology::Change;
use kv_proto::client::{Client, How, Write};
use kv_proto::v1;

use crate::moving::{apply, spare, until_clean, until_done};
use crate::world::{World, get, put, reports, until, until_async};

/// Keys of the keyspace that is dropped, and the bytes of each value.
const KEYS: usize = 3000;
const VALUE_BYTES: usize = 8192;

/// Bytes of the tables of a store. Journals are allocated ahead.
fn table_bytes(path: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(path) else { return 0 };
    let sizes = entries.filter_map(Result::ok).map(|entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => table_bytes(&entry.path()),
        Ok(_) if entry.path().extension().is_some_and(|ending| ending == "jnl") => 0,
        _ => entry.metadata().map_or(0, |data| data.len()),
    });
    sizes.sum()
}

/// A value that no compression makes smaller.
fn value(seed: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    (0..VALUE_BYTES).map(|_| next()).collect()
}

async fn create(client: &Client, name: &str) {
    let keyspace = v1::CreateKeyspaceRequest { name: name.to_owned(), r: 2, w: 2, ..Default::default() };
    client.create_keyspace(keyspace).await.unwrap();
}

fn doomed() -> How {
    How { keyspace: "doomed".to_owned(), ..How::default() }
}

/// Fills the keyspace that is dropped.
async fn fill_doomed(client: &Client) {
    for index in 0..KEYS {
        let key = Bytes::from(format!("k{index}"));
        let value = value(index as u64 + 1);
        until_async("the write is taken", || async {
            client.put(&doomed(), &key, &value, &Write::default()).await.is_ok().then_some(())
        })
        .await;
    }
}

async fn drop_doomed(client: &Client) {
    client.drop_keyspace(v1::DropKeyspaceRequest { name: "doomed".to_owned(), ..Default::default() }).await.unwrap();
}

/// Waits until nobody holds anything of dropped keyspaces, nor the space of it.
async fn until_removed(client: &Client, members: usize) -> Vec<v1::NodeSnapshot> {
    until_async("what was dropped is removed", || async {
        let reports = reports(client).await;
        let removed =
            |node: &v1::NodeSnapshot| node.pending.is_some_and(|pending| pending.dropped + pending.reclaiming == 0);
        (reports.len() == members && reports.iter().all(removed)).then_some(reports)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_keyspace_leaves_every_node_and_is_not_copied() {
    let (mut world, client) = World::cluster(3).await;
    create(&client, "doomed").await;
    put(&client, "stays", "here").await;
    fill_doomed(&client).await;
    until_clean(&client, 3).await;
    let total = (KEYS * VALUE_BYTES) as u64;
    // A node that is away does not hear of the drop.
    world.nodes[2].stop();
    drop_doomed(&client).await;
    let refused = client.put(&doomed(), &Bytes::from("late"), &Bytes::from("v"), &Write::default()).await;
    assert!(refused.is_err(), "{refused:?}");
    world.nodes[2].restart();
    let reports = until_removed(&client, 3).await;
    for node in &reports {
        assert!(node.bytes < 1000, "{} counts {} bytes", node.name, node.bytes);
    }
    for name in ["n1", "n2", "n3"] {
        let path = world.dir(name);
        until_async("the space is given back", || async { (table_bytes(&path) < total / 4).then_some(()) }).await;
    }
    let node = spare(&mut world, &client, "n4").await;
    let id = apply(&client, Change::Add { node }).await;
    let done = until_done(&client, id).await;
    let copied: u64 = done.details.iter().filter_map(|step| step.receipt.as_ref()).map(|receipt| receipt.bytes).sum();
    assert!(copied < 10_000, "{copied} bytes were copied for one key");
    assert!(table_bytes(&world.dir("n4")) < total / 10);
    let roots = until_clean(&client, 4).await;
    assert!(roots.iter().all(|node| node.bytes < 1000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_fails_while_it_gives_space_back_ends_cleanly_and_goes_on_when_it_is_well() {
    let (mut world, client) = World::cluster(3).await;
    create(&client, "doomed").await;
    put(&client, "stays", "here").await;
    fill_doomed(&client).await;
    until_clean(&client, 3).await;
    drop_doomed(&client).await;
    // On a fast machine it may be done before it is looked at.
    until("space is being given back", || {
        let (left, gives_back) = (world.nodes[2].metric("dropped_records")?, world.nodes[2].metric("reclaiming")?);
        (left == 0 || gives_back == 1).then_some(())
    });
    // From now on nothing can be written there: it fails at whatever it does next, and at the latest with this put.
    world.nodes[2].fail_writes();
    put(&client, "stays", "there").await;
    let failed = until_async("the store has failed, and the node says so", || async {
        let page = world.nodes[2].page("GET", "/readyz", "");
        (page.status == 503).then_some(page.body)
    });
    assert!(failed.await.contains("store"));
    assert_eq!(world.nodes[2].stop(), Some(0), "nothing of it hangs: {}", world.nodes[2].log());
    assert!(!world.nodes[2].log().contains("panicked"), "{}", world.nodes[2].log());
    world.nodes[2].restart();
    until_removed(&client, 3).await;
    let path = world.dir("n3");
    let total = (KEYS * VALUE_BYTES) as u64;
    until_async("the space is given back", || async { (table_bytes(&path) < total / 4).then_some(()) }).await;
    assert_eq!(get(&client, "stays").await, ["there"]);
}
