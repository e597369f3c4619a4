//! Operations on real processes: begun, steered, followed to their end and checked.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use kv_core::error::Kind;
use kv_core::topology::Change;
use kv_core::types::NodeId;
use kv_proto::client::{Client, How, Write};
use kv_proto::v1::{self, MemberState, OperationState};
use tokio::task::{JoinHandle, JoinSet};

use crate::world::{World, get, put, reports, until_async};

/// Writes that were acknowledged, by key: the last value of each.
type Acknowledged = Arc<Mutex<BTreeMap<String, String>>>;

/// Somebody who writes without a pause.
pub(crate) struct Writer {
    stop: Arc<AtomicBool>,
    acknowledged: Acknowledged,
    task: JoinHandle<()>,
}

impl Writer {
    pub(crate) fn start(client: &Client) -> Self {
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Acknowledged::default());
        let (client, ended, known) = (client.clone(), Arc::clone(&stop), Arc::clone(&acknowledged));
        let task = tokio::spawn(async move {
            let mut count = 0_u64;
            while !ended.load(Ordering::Relaxed) {
                // Each key belongs to one write only, so what was acknowledged is what must be read.
                let (key, value) = (format!("w{count}"), format!("v{count}"));
                count += 1;
                let (wire, bytes) = (Bytes::from(key.clone()), Bytes::from(value.clone()));
                if client.put(&How::default(), &wire, &bytes, &Write::default()).await.is_ok() {
                    known.lock().unwrap().insert(key, value);
                }
            }
        });
        Self { stop, acknowledged, task }
    }

    fn count(&self) -> usize {
        self.acknowledged.lock().unwrap().len()
    }

    /// Waits until it has written a good deal more: the cluster serves.
    pub(crate) async fn go_on(&self) {
        let before = self.count();
        until_async("writes go on", || async { (self.count() > before + 20).then_some(()) }).await;
    }

    pub(crate) async fn end(self) -> BTreeMap<String, String> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
        self.acknowledged.lock().unwrap().clone()
    }
}

pub(crate) async fn apply(client: &Client, change: Change) -> u64 {
    // A change may be asked for before every node knows the last one.
    let operation = until_async("the operation begins", || async {
        let request = v1::ApplyRequest { changes: vec![(&change).into()], by: "test".to_owned(), ..Default::default() };
        match client.apply(request).await {
            Ok(operation) => Some(operation),
            Err(error) => {
                assert!(error.kind != Kind::Invalid, "{error}");
                None
            }
        }
    })
    .await;
    operation.id
}

pub(crate) async fn operation(client: &Client, id: u64) -> Option<v1::Operation> {
    let request = v1::OperationsRequest { id, details: true };
    client.operations(request).await.ok()?.operations.into_iter().next()
}

/// Waits for the end of an operation, which must have moved what was planned and no more than needed, with a receipt for
/// each move.
pub(crate) async fn until_done(client: &Client, id: u64) -> v1::Operation {
    let done = until_async("the operation is done", || async {
        operation(client, id).await.filter(|operation| operation.state() == OperationState::Done)
    })
    .await;
    assert_eq!((done.moved, done.moves), (done.moves, done.moves_minimum), "{}", done.command);
    assert_eq!(done.details.len() as u64, done.moves);
    for step in &done.details {
        let receipt = step.receipt.as_ref().unwrap();
        assert!(step.moved && !receipt.sources.is_empty(), "{step:?}");
    }
    done
}

/// Waits until no node has anything left to do, the clean-up included.
pub(crate) async fn until_clean(client: &Client, members: usize) -> Vec<v1::NodeSnapshot> {
    // Accounts are given one after the other: what a node did before its own may have changed a copy after another's.
    clean_reports(client, members).await;
    clean_reports(client, members).await
}

async fn clean_reports(client: &Client, members: usize) -> Vec<v1::NodeSnapshot> {
    until_async("everything is settled and cleaned up", || async {
        let reports = reports(client).await;
        let agreed = client.description().layout.as_ref().map_or(0, |layout| layout.epoch.0);
        let newest = reports.iter().map(|node| node.layout_epoch).max().max(Some(agreed));
        let clean = |node: &v1::NodeSnapshot| {
            let pending = node.pending.unwrap_or_default();
            let left = pending.replications + pending.hints + pending.missed_writes + pending.refills;
            // A node that does not act on the last cut-over yet knows nothing of what it has to clean up.
            Some(node.layout_epoch) == newest && left + pending.transfers + pending.residue + pending.comparisons == 0
        };
        (reports.len() == members && reports.iter().all(clean)).then_some(reports)
    })
    .await
}

/// All that was acknowledged is there, and the counts are exact.
pub(crate) async fn check(client: &Client, written: &BTreeMap<String, String>, members: usize, copies: u64) {
    let reports = until_clean(client, members).await;
    for (key, value) in written {
        assert_eq!(get(client, key).await.as_slice(), std::slice::from_ref(value), "{key}");
    }
    let sum = |figure: fn(&v1::NodeSnapshot) -> u64| reports.iter().map(figure).sum::<u64>();
    let keys = sum(|node| node.keys_primary);
    // A write that failed may have reached some copies, and then reaches all of them.
    assert!(keys >= written.len() as u64);
    assert_eq!(sum(|node| node.keys), copies * keys, "each key has all of its copies and no more");
    let mut roots: BTreeMap<u32, Vec<u64>> = BTreeMap::new();
    for figures in reports.iter().flat_map(|node| &node.partitions) {
        roots.entry(figures.partition).or_default().push(figures.merkle_root);
    }
    assert!(roots.values().all(|roots| roots.iter().all(|root| *root == roots[0])), "all copies are equal");
}

pub(crate) fn number(reports: &[v1::NodeSnapshot], name: &str) -> Option<NodeId> {
    reports.iter().find(|node| node.name == name).map(|node| NodeId(node.node))
}

/// Starts a node that becomes a spare, and waits until the others take it for up.
pub(crate) async fn spare(world: &mut World, client: &Client, name: &str) -> NodeId {
    spare_with(world, client, name, &[]).await
}

/// The same with more flags.
pub(crate) async fn spare_with(world: &mut World, client: &Client, name: &str, flags: &[&str]) -> NodeId {
    let addresses = world.addresses().join(",");
    world.add(name, &[&["--join", addresses.as_str()], flags].concat());
    until_async("the spare is up", || async {
        let reports = reports(client).await;
        let id = number(&reports, name)?;
        let known = |node: &v1::NodeSnapshot| {
            node.node == id.0 || node.peers.iter().any(|peer| peer.node == id.0 && peer.state() == MemberState::Spare)
        };
        reports.iter().all(known).then_some(id)
    })
    .await
}

pub(crate) async fn throttle(client: &Client, limit: Option<u64>) {
    let request = v1::ThrottleRequest { bytes_per_second_max: limit, by: "test".to_owned() };
    client.throttle(request).await.unwrap();
}

/// Fills a cluster; what was written is what `check` takes.
pub(crate) async fn fill(client: &Client, keys: usize, bytes: usize) -> BTreeMap<String, String> {
    let value = "v".repeat(bytes);
    let mut writes = JoinSet::new();
    for writer in 0..8 {
        let (client, value) = (client.clone(), value.clone());
        writes.spawn(async move {
            for index in (writer..keys).step_by(8) {
                put(&client, &format!("k{index}"), &value).await;
            }
        });
    }
    while let Some(written) = writes.join_next().await {
        written.unwrap();
    }
    (0..keys).map(|index| (format!("k{index}"), value.clone())).collect()
}
