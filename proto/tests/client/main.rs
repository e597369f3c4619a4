//! The client against a fake cluster whose nodes die, stall, refuse, forget and send garbage.

mod admin;
mod conditions;
mod deadlines;
mod retries;
mod routing;
mod scan;
mod stalls;

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use kv_core::error::{Kind, RequestError};
use kv_core::types::NodeId;
use kv_proto::client::{Client, How, Options, Retry, ScanQuery, Transport, Write};
use kv_testing::{Cluster, Fault, layout};
use tokio::task::JoinSet;

/// How long anything may take before a test gives up, where time is not what it is about.
const PATIENCE: Duration = Duration::from_secs(60);

/// Two copies on three nodes, so that one node owns nothing of a key; pages are small, so that scans have many.
fn cluster() -> Cluster {
    let cluster = Cluster::start(Some(layout(2, 1)));
    cluster.world().page_entries_max = 7;
    cluster
}

fn key(index: usize) -> Bytes {
    Bytes::from(format!("key-{index:04}"))
}

/// Short waits, so that what must time out does so soon.
fn brisk() -> Options {
    Options { attempt_timeout: Duration::from_millis(150), ..Options::default() }
}

/// Nothing is asked again for being late: what is counted must not depend on how busy the machine is.
fn unhurried() -> Options {
    let (timeout, attempt_timeout, connect_timeout, stall_after) = (PATIENCE, PATIENCE, PATIENCE, PATIENCE);
    Options { timeout, attempt_timeout, connect_timeout, stall_after, ..Options::default() }
}

async fn put(client: &Client, index: usize) -> Result<(), RequestError> {
    client.put(&How::default(), &key(index), &key(index), &Write::default()).await.map(drop)
}

async fn value(client: &Client, index: usize) -> Option<Bytes> {
    let got = client.get(&How::default(), &key(index)).await.expect("readable");
    got.values.first().map(|value| value.value.clone())
}

async fn put_many(client: &Client, indexes: std::ops::Range<usize>) {
    let mut tasks = JoinSet::new();
    for index in indexes {
        let client = client.clone();
        tasks.spawn(async move { put(&client, index).await });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("no panic").expect("written");
    }
}
