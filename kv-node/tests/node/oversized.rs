//! A key that five nodes took large values for, each cut off from the others, has more than a frame carries. It is read, compared
//! and replaced as any other.

use std::collections::BTreeMap;

use bytes::Bytes;
use kv_core::error::Kind;
use kv_core::message::{Consistency, Level};
use kv_proto::client::{Client, How, ScanQuery, Write};
use kv_proto::limits::MESSAGE_BYTES_MAX;

use crate::world::{World, get, options, put, reports, until_async};

const VALUE_BYTES: usize = 1_000_000;

/// Two values beside each other at a node that is alone. `absent` is the context of the key before it was written.
async fn put_twice_alone(address: &str, key: &Bytes, absent: &Bytes, node: u8) {
    let alone = Client::connect(&[address.to_owned()], options()).await.unwrap();
    let one = How { consistency: Consistency { level: Level::One, strict: false }, ..How::default() };
    for number in 0..2 {
        let value = Bytes::from(vec![16 * node + number; VALUE_BYTES]);
        let write = Write { context: Some(absent.clone()), ..Write::default() };
        until_async("the node takes a value alone", || async {
            match alone.put(&one, key, &value, &write).await {
                Ok(_) => Some(()),
                // Nothing was written.
                Err(error) if error.kind == Kind::Unavailable => None,
                Err(error) => panic!("{error}"),
            }
        })
        .await;
    }
}

#[tokio::test]
async fn a_key_with_more_values_than_a_frame_carries_is_read_compared_and_replaced() {
    let (mut world, client) = World::cluster(5).await;
    let key = Bytes::from_static(b"large");
    for index in 0..20 {
        put(&client, &format!("k{index}"), "v").await;
    }
    let absent = client.get(&How::default(), &key).await.unwrap().context;
    world.nodes.iter_mut().for_each(|node| node.kill());
    for index in 0..5_u8 {
        let node = &mut world.nodes[usize::from(index)];
        node.restart();
        put_twice_alone(&node.address.clone(), &key, &absent, index).await;
        world.nodes[usize::from(index)].kill();
    }
    world.nodes.iter_mut().for_each(|node| node.restart());
    let client = world.client().await;
    world.wait_until_all_up(&client).await;
    world.wait_until_idle(&client).await;

    let got = client.get(&How::default(), &key).await.unwrap();
    assert_eq!(got.values.len(), 10);
    assert!(got.values.iter().map(|value| value.value.len()).sum::<usize>() > MESSAGE_BYTES_MAX);
    let mut scan = client.scan(&How::default(), ScanQuery::default());
    let mut found = Vec::new();
    while let Some(page) = scan.next_page().await.unwrap() {
        found.extend(page.entries.into_iter().map(|entry| (entry.key, entry.values.len())));
    }
    assert_eq!(found.len(), 21, "{found:?}");
    assert!(found.contains(&(key.clone(), 10)), "{found:?}");
    // All copies of each partition are equal.
    let mut roots: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
    for report in reports(&client).await {
        let complete = report.partitions.into_iter().filter(|copy| copy.synced);
        complete.for_each(|copy| roots.entry(copy.partition).or_default().push(copy.merkle_root));
    }
    for (partition, roots) in roots {
        assert!(roots.len() == 3 && roots.iter().all(|root| *root == roots[0]), "p{partition}: {roots:?}");
    }

    let write = Write { context: Some(got.context), ..Write::default() };
    client.put(&How::default(), &key, &Bytes::from_static(b"resolved"), &write).await.unwrap();
    assert_eq!(get(&client, "large").await, ["resolved"]);
    assert_eq!(get(&client, "k7").await, ["v"]);
}
