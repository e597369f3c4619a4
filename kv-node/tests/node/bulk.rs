//! Copies have connections of their own: requests get on even if nothing of a copy does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use kv_core::message::{Consistency, Level};
use kv_core::topology::Change;
use kv_core::types::NodeId;
use kv_proto::client::{Client, How, Write};
use kv_proto::v1;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::moving::{apply, check, fill, operation, spare_with, until_done};
use crate::world::{World, free_port, get, report_of, until_async};

/// A connection over which more flows belongs to copies: requests and the control plane are far below.
const BULK_BYTES: u64 = 512 * 1024;

/// Stands between a node and everybody else, and while it is closed stops what flows over connections that carry bulk.
pub(crate) struct Gate {
    /// The most connections that it stops at once.
    most: usize,
    /// Connections that are stopped.
    held: AtomicUsize,
}

impl Gate {
    /// Listens on `port` for what is meant for `target`, until the runtime ends. `true` opens it.
    pub(crate) async fn at(port: u16, target: u16, most: usize) -> (Arc<Self>, watch::Sender<bool>) {
        let gate = Arc::new(Self { most, held: AtomicUsize::new(0) });
        let (opened, open) = watch::channel(false);
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let shared = Arc::clone(&gate);
        tokio::spawn(async move {
            while let Ok((caller, _)) = listener.accept().await {
                let (gate, open) = (Arc::clone(&shared), open.clone());
                tokio::spawn(async move {
                    if let Ok(node) = TcpStream::connect(("127.0.0.1", target)).await {
                        drop((caller.set_nodelay(true), node.set_nodelay(true)));
                        let (carried, held) = (AtomicU64::new(0), AtomicBool::new(false));
                        let (from_caller, to_caller) = caller.into_split();
                        let (from_node, to_node) = node.into_split();
                        tokio::select! {
                            () = gate.pass(from_caller, to_node, &carried, &held, open.clone()) => {}
                            () = gate.pass(from_node, to_caller, &carried, &held, open) => {}
                        }
                        gate.held.fetch_sub(usize::from(held.into_inner()), Ordering::Relaxed);
                    }
                });
            }
        });
        (gate, opened)
    }

    /// Passes on what comes, until the end of it.
    async fn pass(
        &self,
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
        carried: &AtomicU64,
        held: &AtomicBool,
        mut open: watch::Receiver<bool>,
    ) {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            let is_open = *open.borrow();
            let is_bulk = !is_open && carried.fetch_add(count as u64, Ordering::Relaxed) + count as u64 > BULK_BYTES;
            if is_bulk && self.holds(held) && open.wait_for(|open| *open).await.is_err() {
                return;
            }
            if to.write_all(&buffer[..count]).await.is_err() {
                return;
            }
        }
    }

    /// Whether a connection is one of those that are stopped.
    fn holds(&self, held: &AtomicBool) -> bool {
        let more = |stopped: usize| (stopped < self.most).then_some(stopped + 1);
        held.load(Ordering::Relaxed) || {
            let holds = self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok();
            held.fetch_or(holds, Ordering::Relaxed);
            holds
        }
    }
}

/// Starts a spare behind a gate that may stop so many connections: its number, and the address at which it is reached
/// past the gate.
pub(crate) async fn spare_behind_gate(
    world: &mut World,
    client: &Client,
    most: usize,
) -> (NodeId, String, Arc<Gate>, watch::Sender<bool>) {
    let (port, advertised) = (free_port(), free_port());
    let (gate, open) = Gate::at(advertised, port, most).await;
    let (listen, advertise) = (format!("127.0.0.1:{port}"), format!("127.0.0.1:{advertised}"));
    // What is asked until it is known to everybody is no bulk.
    open.send_replace(true);
    let id = spare_with(world, client, "n4", &["--listen", &listen, "--advertise", &advertise]).await;
    open.send_replace(false);
    (id, listen, gate, open)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_get_on_while_the_connections_of_copies_stand_still() {
    let (mut world, client) = World::cluster(3).await;
    let mut written = fill(&client, 2000, 2000).await;
    let (id, listen, gate, open) = spare_behind_gate(&mut world, &client, usize::MAX).await;
    let begun = apply(&client, Change::Add { node: id }).await;
    let all_stand_still = async || {
        let report = report_of(&listen).await?;
        let under_way = |transfer: &&v1::Transfer| {
            matches!(transfer.phase(), v1::TransferPhase::Copying | v1::TransferPhase::Verifying)
        };
        let stuck = |transfer: &v1::Transfer| transfer.waiting_for.contains("has not answered");
        let all = report.transfers.iter().filter(under_way).all(stuck);
        (gate.held.load(Ordering::Relaxed) > 0 && all).then_some(())
    };
    until_async("all copies under way stand still", &all_stand_still).await;
    // Writes that need every owner, the receiver included, and reads that ask it.
    let all = How { consistency: Consistency { level: Level::All, strict: true }, ..How::default() };
    for index in 0..200 {
        let (key, value) = (format!("r{index}"), "w".repeat(50));
        let (wire, bytes) = (Bytes::from(key.clone()), Bytes::from(value.clone()));
        client.put(&all, &wire, &bytes, &Write::default()).await.unwrap();
        assert_eq!(client.get(&all, &wire).await.unwrap().values[0].value, bytes);
        written.insert(key, value);
    }
    for index in 0..200 {
        assert_eq!(get(&client, &format!("k{index}")).await.len(), 1);
    }
    // A node that hears nothing for half a minute makes another connection, which is stopped like the first one.
    until_async("the copies still stand still", &all_stand_still).await;
    assert!(operation(&client, begun).await.unwrap().ended_us == 0);
    open.send_replace(true);
    until_done(&client, begun).await;
    check(&client, &written, 4, 3).await;
}
