//! Copies that differ are compared at an operator's request, and become equal.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use kv_core::ring::Layout;
use kv_core::types::{NodeId, PartitionId};
use kv_proto::client::Client;
use kv_proto::v1::{self, MemberState};

use crate::moving::{number, throttle};
use crate::world::{World, get, report_of, reports, until_async};

/// Partitions in which two copies differ.
const APART: usize = 12;

/// So slow that one record of [`VALUE_BYTES`] takes minutes.
const LIMIT: u64 = 1024;

const VALUE_BYTES: usize = 200 * 1024;

fn roots(report: &v1::NodeSnapshot) -> BTreeMap<u32, u64> {
    report.partitions.iter().map(|partition| (partition.partition, partition.merkle_root)).collect()
}

/// One key for each of [`APART`] partitions.
fn keys_apart(layout: &Layout) -> BTreeMap<PartitionId, String> {
    let mut keys = BTreeMap::new();
    for name in (0..).map(|index| format!("k{index}")) {
        keys.insert(layout.partition_of(name.as_bytes()), name);
        if keys.len() == APART {
            break;
        }
    }
    keys
}

/// Limits copying, so that whatever makes copies equal without a request moves a record or two, and then waits.
async fn limit_copying(client: &Client) {
    throttle(client, Some(LIMIT)).await;
    until_async("every node knows the limit", || async {
        let limited = |node: &v1::NodeSnapshot| {
            node.throttle.as_ref().is_some_and(|throttle| throttle.bytes_per_second_max == Some(LIMIT))
        };
        let reports = reports(client).await;
        (reports.len() == 3 && reports.iter().all(limited)).then_some(())
    })
    .await;
}

/// Writes what n2 misses and only n1 remembers; afterwards n1 is away and n2 is back.
async fn write_past_n2(world: &mut World, keys: impl Iterator<Item = &String>, first: NodeId) {
    world.nodes[1].kill();
    let address = format!("http://{}", world.nodes[0].address);
    let mut coordinator = v1::key_value_client::KeyValueClient::connect(address).await.unwrap();
    let value = Bytes::from(vec![b'v'; VALUE_BYTES]);
    for key in keys {
        let (key, value) = (Bytes::from(key.clone()), value.clone());
        coordinator.put(v1::PutRequest { key, value, ..v1::PutRequest::default() }).await.unwrap();
    }
    world.nodes[0].kill();
    world.nodes[1].restart();
    let (second, third) = (world.nodes[1].address.clone(), world.nodes[2].address.clone());
    let both = async || Some([report_of(&second).await?, report_of(&third).await?]);
    until_async("n2 and n3 know each other, and that n1 is away", || async {
        let up =
            |node: &v1::NodeSnapshot| node.peers.iter().filter(|peer| peer.state() == MemberState::Up).count() == 1;
        let gone = |node: &v1::NodeSnapshot| {
            node.peers.iter().any(|peer| peer.node == first.0 && peer.state() == MemberState::Down)
        };
        let reports = both().await?;
        reports.iter().all(|node| up(node) && gone(node)).then_some(())
    })
    .await;
}

/// Asks for comparisons of all partitions; the counters of each node that answered, from before.
async fn request_repair(client: &Client, away: NodeId) -> BTreeMap<u64, v1::RepairStats> {
    let request = v1::RepairRequest { partitions: Vec::new(), by: "test".to_owned() };
    let mut begun = BTreeMap::new();
    for (node, answer) in client.repair(&request, Duration::from_secs(5)).await {
        match answer {
            Ok(answer) => {
                assert_eq!((answer.partitions.len(), answer.comparisons), (32, 32), "with one other owner each");
                assert_eq!(
                    (answer.down.as_slice(), answer.incomplete.as_slice()),
                    ([away.0].as_slice(), [].as_slice())
                );
                begun.insert(node.0, answer.before.unwrap());
            }
            Err(error) => assert_eq!(node, away, "{error}"),
        }
    }
    begun
}

#[tokio::test]
async fn copies_that_differ_are_made_equal_on_request_and_the_answer_says_how() {
    let (mut world, client) = World::cluster(3).await;
    let keys = keys_apart(client.description().layout.as_ref().unwrap());
    limit_copying(&client).await;
    // n1 does not come back before the others are equal.
    let first = number(&reports(&client).await, "n1").unwrap();
    write_past_n2(&mut world, keys.values(), first).await;

    let reports_of_both = async || {
        let mut reports = reports(&client).await;
        reports.retain(|report| report.node != first.0);
        reports
    };
    let before = reports_of_both().await;
    let apart = {
        let (second, third) = (roots(&before[0]), roots(&before[1]));
        second.iter().filter(|(partition, root)| third[*partition] != **root).count()
    };
    assert!(apart + 2 >= APART, "{apart} partitions differ");

    let begun = request_repair(&client, first).await;
    let compared: BTreeSet<u64> = begun.keys().copied().collect();
    assert_eq!(compared, before.iter().map(|report| report.node).collect());
    until_async("copying is not limited any more", || async {
        client.throttle(v1::ThrottleRequest { bytes_per_second_max: None, by: "test".to_owned() }).await.ok()
    })
    .await;
    let ended = until_async("all comparisons have ended", || async {
        let reports = reports_of_both().await;
        let ended =
            |report: &v1::NodeSnapshot| report.repairs.is_some_and(|stats| stats.done + stats.failed == stats.asked);
        (reports.len() == 2 && reports.iter().all(ended)).then_some(reports)
    })
    .await;
    let mut restored = 0;
    for report in &ended {
        let (before, after) = (begun[&report.node], report.repairs.unwrap());
        assert_eq!((after.asked - before.asked, after.done - before.done, after.failed), (32, 32, 0), "{after:?}");
        restored += after.records - before.records;
    }
    // Each of both may have had a comparison under way that nobody had asked for.
    assert!(restored + 2 >= apart as u64, "{restored} records restored of {apart} partitions");
    assert_eq!(roots(&ended[0]), roots(&ended[1]), "what was compared is equal");

    world.nodes[0].restart();
    world.wait_until_all_up(&client).await;
    world.wait_until_idle(&client).await;
    let all = reports(&client).await;
    assert!(all.iter().all(|report| report.keys == APART as u64 && roots(report) == roots(&all[0])));
    for key in keys.values() {
        assert_eq!(get(&client, key).await.len(), 1, "{key}");
    }
}
