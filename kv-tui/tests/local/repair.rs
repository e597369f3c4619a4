//! Repairs that an operator requests, on real processes: copies that differ, and transfers that wait.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kv_core::types::NodeId;
use kv_proto::client::{Client, How, Options, Write};
use kv_proto::v1;
use serde_json::{Value, json};

use crate::support::Local;

/// How long anything may take before the test gives up.
const PATIENCE: Duration = Duration::from_secs(90);

/// A client of a local cluster, with a runtime of its own.
struct Asker {
    runtime: tokio::runtime::Runtime,
    client: Client,
}

impl Asker {
    fn of(local: &Local) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let options = Options { timeout: Duration::from_secs(20), ..Options::default() };
        let client = runtime.block_on(Client::connect(&local.addresses(), options)).expect("connected");
        Self { runtime, client }
    }

    fn put(&self, key: &str, value: &[u8]) {
        let (key, value) = (Bytes::from(key.to_owned()), Bytes::copy_from_slice(value));
        self.runtime.block_on(self.client.put(&How::default(), &key, &value, &Write::default())).expect("written");
    }

    /// The reports of the nodes that answer, by name.
    fn reports(&self) -> BTreeMap<String, v1::NodeSnapshot> {
        let request = v1::WatchRequest { once: true, partitions: true, ..v1::WatchRequest::default() };
        let reports = self.runtime.block_on(async {
            // Members may have come since.
            drop(self.client.refresh().await);
            self.client.reports(request, Duration::from_secs(5)).await
        });
        reports
            .into_iter()
            .filter_map(|report| report.snapshot.ok())
            .map(|reported| (reported.name.clone(), *reported))
            .collect()
    }

    /// Waits until the reports are as they are meant to be.
    fn until<T>(&self, what: &str, mut check: impl FnMut(&BTreeMap<String, v1::NodeSnapshot>) -> Option<T>) -> T {
        let begin = Instant::now();
        loop {
            let reports = self.reports();
            if let Some(found) = check(&reports) {
                return found;
            }
            assert!(begin.elapsed() < PATIENCE, "waited in vain until {what}: {reports:?}");
        }
    }
}

/// Partitions in which two copies are made to differ.
const APART: usize = 12;

fn roots(report: &v1::NodeSnapshot) -> BTreeMap<u32, u64> {
    report.partitions.iter().map(|stats| (stats.partition, stats.merkle_root)).collect()
}

#[test]
fn a_repair_waits_for_its_end_and_tells_what_it_restored() {
    let local = Local::new();
    local.start();
    let asker = Asker::of(&local);
    let layout = asker.client.description().layout.clone().expect("a layout");
    let members = &asker.client.description().members;
    let first = members.iter().find(|member| member.member.name == "n1").expect("n1").id;
    // Keys for which clients ask n1, each in a partition of its own.
    let mut keys: BTreeMap<u16, String> = BTreeMap::new();
    for name in (0..).map(|index| format!("k{index}")) {
        let partition = layout.partition_of(name.as_bytes());
        if layout.entry(partition).is_some_and(|entry| entry.owners[0].node == first) {
            keys.insert(partition.0, name);
        }
        if keys.len() == APART {
            break;
        }
    }
    // So slow that a record takes minutes: whatever makes copies equal by itself moves one or two, and then waits.
    local.exec(&["op", "throttle", "1KiB/s"]).ok();
    asker.until("every node knows the limit", |reports| {
        let limited = |reported: &v1::NodeSnapshot| {
            reported.throttle.as_ref().is_some_and(|throttle| throttle.bytes_per_second_max == Some(1024))
        };
        (reports.len() == 3 && reports.values().all(limited)).then_some(())
    });
    local.exec(&["node", "kill", "n2"]).ok();
    keys.values().for_each(|key| asker.put(key, &[b'v'; 200 * 1024]));
    // What n2 misses only n1 remembers.
    local.exec(&["node", "kill", "n1"]).ok();
    local.exec(&["node", "start", "n2"]).ok();
    let apart = asker.until("n2 and n3 know each other", |reports| {
        let (second, third) = (reports.get("n2")?, reports.get("n3")?);
        let up = |reported: &v1::NodeSnapshot, node: u64| {
            reported.peers.iter().any(|peer| peer.node == node && peer.state() == v1::MemberState::Up)
        };
        let gone = |reported: &v1::NodeSnapshot| {
            reported.peers.iter().any(|peer| peer.node == first.0 && peer.state() == v1::MemberState::Down)
        };
        let known = up(second, third.node) && up(third, second.node) && gone(second) && gone(third);
        let (second, third) = (roots(second), roots(third));
        known.then(|| second.iter().filter(|(partition, root)| third[*partition] != **root).count())
    });
    assert!(apart + 2 >= APART, "{apart} partitions differ");

    let repair = local.begin(&["repair", "--wait"]);
    asker.until("the comparisons are asked for", |reports| {
        let asked = |reported: &v1::NodeSnapshot| reported.repairs.is_some_and(|stats| stats.asked > 0);
        (reports.len() == 2 && reports.values().all(asked)).then_some(())
    });
    local.exec(&["--timeout", "60s", "op", "throttle", "off"]).ok();
    let reported = repair.end().ok().one();
    let stats = ["partitions", "comparisons", "done", "failed", "incomplete"].map(|field| reported[field].clone());
    assert_eq!(stats, [256, 512, 512, 0, 0].map(Value::from), "{reported}");
    assert_eq!(
        (&reported["nodes"], &reported["unreached"]),
        (&json!({"n2": 256, "n3": 256}), &json!(["n1"])),
        "{reported}"
    );
    // Each of both may have had a comparison under way that nobody had asked for.
    let restored = reported["records"].as_u64().expect("a number");
    assert!(restored + 2 >= apart as u64, "{reported}");
    let message = reported["message"].as_str().expect("text");
    assert!(message.contains(&format!("512 done, {restored} records restored; out of reach")), "{message}");
    let reports = asker.reports();
    assert_eq!(roots(&reports["n2"]), roots(&reports["n3"]), "what was compared is equal");

    // What is equal has nothing to mend.
    let partition = keys.keys().next().expect("a key").to_string();
    let again = local.exec(&["repair", &partition, "--wait"]).ok().one();
    let stats = ["partitions", "comparisons", "done", "records"].map(|field| again[field].clone());
    assert_eq!(stats, [1, 2, 2, 0].map(Value::from), "{again}");
    local.exec(&["node", "start", "n1"]).ok();
    local.exec(&["wait", "healthy", "--timeout", "90s"]).ok();
    let reports = asker.reports();
    assert!(reports.len() == 3 && reports.values().all(|reported| roots(reported) == roots(&reports["n2"])));
}

/// The transfers of an operation that wait for nothing but a node that is down, by partition, with how often they were
/// begun.
fn waiting_for(local: &Local, operation: &str, node: NodeId, name: &str) -> BTreeMap<u64, u64> {
    let shown = local.exec(&["op", "show", operation]).ok().one();
    let reasons = [format!("{name} is down"), format!("{node} is down")].map(Value::from);
    let waiting = shown["transfers"].as_array().into_iter().flatten().filter(|it| reasons.contains(&it["waiting_for"]));
    let number = |transfer: &Value, field: &str| transfer[field].as_u64().expect("a number");
    waiting.map(|transfer| (number(transfer, "partition"), number(transfer, "tries"))).collect()
}

#[test]
fn transfers_that_wait_for_a_frozen_source_try_again_and_the_operation_ends_when_it_is_back() {
    let local = Local::new();
    local.start();
    // With two copies of each partition, both owners must be copied from.
    local.exec(&["--timeout", "60s", "--yes", "copies", "2", "--wait"]).ok();
    let asker = Asker::of(&local);
    (0..200).for_each(|index| asker.put(&format!("k{index}"), &[b'v'; 2000]));
    local.exec(&["op", "throttle", "16KiB/s"]).ok();
    local.exec(&["--timeout", "60s", "node", "add"]).ok();
    let frozen = asker.until("something is copied from n3", |reports| {
        let (third, receiver) = (reports.get("n3")?, reports.get("n4")?);
        let copies = |it: &v1::Transfer| it.source == third.node && it.keys > 0;
        receiver.transfers.iter().any(copies).then_some(NodeId(third.node))
    });
    local.exec(&["node", "freeze", "n3"]).ok();
    local.exec(&["--timeout", "60s", "op", "throttle", "off"]).ok();
    let begin = Instant::now();
    let before = loop {
        let waiting = waiting_for(&local, "2", frozen, "n3");
        if !waiting.is_empty() {
            break waiting;
        }
        assert!(begin.elapsed() < PATIENCE, "{}", local.exec(&["op", "show", "2"]).out);
    };

    let one = before.keys().next().expect("a partition").to_string();
    let reported = local.exec(&["--timeout", "60s", "op", "retry", "2", &one]).ok().one();
    assert_eq!((&reported["retried"], &reported["retries"]), (&json!([before.keys().next()]), &json!(1)), "{reported}");
    assert_eq!(reported["message"], json!(format!("1 transfer tries again: {one}")));
    let reported = local.exec(&["--timeout", "60s", "op", "retry", "2"]).ok().one();
    // More may have come to wait for it.
    let retried: BTreeSet<u64> =
        reported["retried"].as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
    assert!(before.keys().all(|partition| retried.contains(partition)), "{before:?}: {reported}");
    assert_eq!((&reported["retries"], &reported["unreached"]), (&json!(2), &json!([])), "{reported}");
    let after = waiting_for(&local, "2", frozen, "n3");
    for (partition, tries) in &before {
        let more = if partition.to_string() == one { 2 } else { 1 };
        assert_eq!(after.get(partition), Some(&(tries + more)), "each retry counts: {partition} of {after:?}");
    }

    local.exec(&["node", "thaw", "n3"]).ok();
    local.exec(&["--timeout", "90s", "op", "watch", "2"]).ok();
    local.exec(&["wait", "healthy", "--timeout", "90s"]).ok();
    let done = local.exec(&["op", "show", "2"]).ok().one();
    assert_eq!((&done["state"], &done["moved"], &done["retries"]), (&json!("done"), &done["moves"], &json!(2)));
    assert_eq!(local.exec(&["count"]).ok().one()["keys"], json!(200));
}
