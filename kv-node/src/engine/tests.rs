//! A disk that stalls or fails, under a running engine.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex};

use bytes::Bytes;
use kv_core::config::{ClusterConfig, KeyspaceList, NodeConfig};
use kv_core::error::{Kind, StorageError};
use kv_core::message::{Consistency, KeyRequest, Operation, Outcome, Request, Response};
use kv_core::ring::{FIRST_EPOCH, FirstLayout, Member, first_layout};
use kv_core::storage::{Batch, Committer, MemoryCommitter, MemoryReader, MemoryStore, Stats};
use kv_core::types::{ClusterId, Epoch, HashSeed, KeyspaceId, NodeId, Seq, StoreId};
use tokio::sync::mpsc;

use super::{Command, Engine, EngineConfig};
use crate::clock::Clock;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Disk {
    Works,
    Stalls,
    Fails,
}

/// What the disk does, and a signal when that changes.
type Switch = Arc<(Mutex<Disk>, Condvar)>;

struct Unreliable {
    inner: MemoryCommitter,
    disk: Switch,
}

impl Committer for Unreliable {
    fn commit(&mut self, batches: &[Batch], through: Seq) -> Result<(), StorageError> {
        let guard = self.disk.0.lock().unwrap();
        let disk = *self.disk.1.wait_while(guard, |disk| *disk == Disk::Stalls).unwrap();
        if disk == Disk::Fails {
            return Err(StorageError::Full { path: "test".to_owned() });
        }
        self.inner.commit(batches, through)
    }

    fn bind(&mut self, cluster: ClusterId, seed: HashSeed) -> Result<(), StorageError> {
        self.inner.bind(cluster, seed)
    }

    fn stats(&self) -> &Stats {
        self.inner.stats()
    }
}

async fn engine() -> (Engine, Switch, MemoryReader) {
    let (opened, reader, inner) = MemoryStore::open(StoreId(7), 1);
    let disk: Switch = Arc::new((Mutex::new(Disk::Works), Condvar::new()));
    let (events, _) = mpsc::unbounded_channel();
    let engine = Engine::start(EngineConfig {
        node: NodeConfig::new(NodeId(1)),
        cluster: ClusterConfig::default(),
        incarnation: opened.incarnation,
        reader: reader.clone(),
        committer: Unreliable { inner, disk: Arc::clone(&disk) },
        clock: Clock::start(),
        events,
        answers: crate::budget::Budget::new(1 << 20),
    })
    .unwrap();
    let member = Member { name: "n1".into(), zone: "a".into(), weight: 1.0, store: StoreId(7), spare: false };
    let layout = first_layout(FirstLayout {
        cluster: ClusterId(1),
        seed: HashSeed(1),
        epoch: FIRST_EPOCH,
        copies: 1,
        partitions: 8,
        members: BTreeMap::from([(NodeId(1), member)]),
    });
    engine.send(Command::Layout(Arc::new(layout.unwrap()))).await;
    engine.send(Command::Keyspaces(KeyspaceList::initial())).await;
    while engine.report().await.is_none_or(|report| report.status.epoch == Epoch(0)) {
        tokio::task::yield_now().await;
    }
    (engine, disk, reader)
}

fn turn(disk: &Switch, to: Disk) {
    *disk.0.lock().unwrap() = to;
    disk.1.notify_all();
}

async fn ask(engine: &Engine, key: &str, operation: Operation) -> Outcome {
    let request = KeyRequest {
        keyspace: KeyspaceId(0),
        key: Bytes::from(key.to_owned()),
        epoch: Epoch(0),
        consistency: Consistency::default(),
        operation,
    };
    engine.request(Request::Key(request), None).await
}

async fn put(engine: &Engine, key: &str) -> Outcome {
    let value = Some(Bytes::from_static(b"v"));
    ask(engine, key, Operation::plain_write(value)).await
}

async fn holds(engine: &Engine, key: &str) -> bool {
    match ask(engine, key, Operation::Get).await.unwrap() {
        Response::Got { values, .. } => !values.is_empty(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_stalled_disk_holds_only_what_depends_on_it() {
    let (engine, disk, _) = engine().await;
    put(&engine, "before").await.unwrap();
    turn(&disk, Disk::Stalls);
    let waiting = tokio::spawn({
        let engine = engine.clone();
        async move { put(&engine, "waits").await }
    });
    while engine.report().await.unwrap().status.unsynced_batches == 0 {
        tokio::task::yield_now().await;
    }
    // Other keys are served, and the one that waits is neither acknowledged nor shown.
    assert!(holds(&engine, "before").await);
    assert!(!holds(&engine, "never written").await);
    let shown = tokio::spawn({
        let engine = engine.clone();
        async move { holds(&engine, "waits").await }
    });
    assert!(holds(&engine, "before").await);
    assert!(!waiting.is_finished() && !shown.is_finished(), "nothing undurable is acknowledged or shown");
    turn(&disk, Disk::Works);
    waiting.await.unwrap().unwrap();
    assert!(shown.await.unwrap());
    engine.stop().await;
}

#[tokio::test]
async fn a_failed_commit_stops_the_engine_and_says_why() {
    let (engine, disk, _) = engine().await;
    put(&engine, "before").await.unwrap();
    turn(&disk, Disk::Fails);
    let error = put(&engine, "lost").await.unwrap_err();
    assert_eq!(error.kind, Kind::Unknown, "{error}");
    let error = ask(&engine, "before", Operation::Get).await.unwrap_err();
    assert_eq!(error.kind, Kind::Poisoned, "{error}");
    assert!(error.message.contains("full"), "{error}");
    assert!(engine.report().await.unwrap().poisoned.is_some());
    engine.stop().await;
}

#[tokio::test]
async fn a_stop_makes_everything_durable() {
    let (engine, _, reader) = engine().await;
    for index in 0..100 {
        put(&engine, &format!("k{index}")).await.unwrap();
    }
    engine.stop().await;
    let error = put(&engine, "late").await.unwrap_err();
    assert_eq!(error.kind, Kind::Unavailable);
    let stored = kv_core::storage::recount(&reader).unwrap();
    assert_eq!(stored.stats.total(kv_core::storage::Space::Owned).keys, 100);
}

async fn put_large(engine: &Engine, key: &str) -> Outcome {
    let value = Some(Bytes::from(vec![7; 1 << 20]));
    ask(engine, key, Operation::plain_write(value)).await
}

#[tokio::test]
async fn large_writes_wait_where_they_come_from_while_the_disk_has_much_to_do_and_small_ones_do_not() {
    let (engine, disk, _) = engine().await;
    turn(&disk, Disk::Stalls);
    let mut writes = Vec::new();
    for key in ["a", "bb", "ccc"] {
        let engine = engine.clone();
        writes.push(tokio::spawn(async move { put_large(&engine, key).await }));
    }
    while engine.report().await.unwrap().status.unsynced_batches < 3 {
        tokio::task::yield_now().await;
    }
    let (clients, peers) = (engine.clone(), engine.clone());
    let client = tokio::spawn(async move { clients.room_for(1 << 20).await.is_some() });
    let record = kv_core::version::Record::default();
    let message = kv_core::message::Message::Replicate {
        call: kv_core::message::CallId(1),
        epoch: FIRST_EPOCH,
        role: kv_core::message::Role::Owner,
        keyspace: KeyspaceId(0),
        key: Bytes::from_static(b"k"),
        cell: record.into(),
    };
    let peer = tokio::spawn(async move {
        peers.bulk(NodeId(2), 1, vec![message], 1 << 20, kv_core::types::Monotonic(1)).await;
    });
    while engine.report().await.unwrap().large_waiting < 2 {
        tokio::task::yield_now().await;
    }
    assert!(engine.room_for(1000).await.is_none(), "a small write needs none");
    // What brings nothing to write goes on as well.
    engine.bulk(NodeId(2), 1, vec![kv_core::message::Message::Ping], 1 << 20, kv_core::types::Monotonic(1)).await;
    assert!(!client.is_finished() && !peer.is_finished());
    turn(&disk, Disk::Works);
    assert!(client.await.unwrap(), "a promise");
    peer.await.unwrap();
    for write in writes {
        write.await.unwrap().unwrap();
    }
    let report = engine.report().await.unwrap();
    assert_eq!(report.large_waiting, 0);
    assert!(report.commits.count > 0 && report.loop_waits.count >= 3, "{report:?}");
    engine.stop().await;
}
