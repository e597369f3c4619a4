//! Keyspaces that are dropped, on real processes: their records go from every node, give their space back, and are not moved.

use std::path::Path;

use bytes::Bytes;
use kv_core::topology::Change;
use kv_proto::client::{Client, How, Write};
use kv_proto::v1;

use crate::moving::{apply, spare, until_clean, until_done};
use crate::world::{World, put, reports, until_async};

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
    let how = How { keyspace: "doomed".to_owned(), ..How::default() };
    for index in 0..KEYS {
        let key = Bytes::from(format!("k{index}"));
        let value = value(index as u64 + 1);
        until_async("the write is taken", || async {
            client.put(&how, &key, &value, &Write::default()).await.is_ok().then_some(())
        })
        .await;
    }
    until_clean(&client, 3).await;
    let total = (KEYS * VALUE_BYTES) as u64;
    // A node that is away does not hear of the drop.
    world.nodes[2].stop();
    client.drop_keyspace(v1::DropKeyspaceRequest { name: "doomed".to_owned(), ..Default::default() }).await.unwrap();
    let refused = client.put(&how, &Bytes::from("late"), &Bytes::from("v"), &Write::default()).await;
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
