//! A fake cluster: three gRPC servers over one set of records in memory, which fail on demand. The tests of the client
//! (kv-proto) and of the command language (kv-tui) share it; nothing that is released depends on it.
//!
//! Besides, [`recording`]: clients that write down histories, for tests on real nodes.

/// The generated types and clients of etcd, as far as `kv-node/benches/beside` speaks with it.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::allow_attributes_without_reason,
    clippy::let_underscore_must_use,
    reason = "generated code"
)]
pub mod etcd {
    tonic::include_proto!("etcdserverpb");
}
mod node;
pub mod recording;
mod registers;
mod services;
mod world;

use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use kv_core::ring::Layout;
use kv_core::types::NodeId;
use kv_proto::client::{Client, Options};
use kv_proto::v1::cluster_server::ClusterServer;
use kv_proto::v1::key_value_server::KeyValueServer;
use parking_lot::{Mutex, MutexGuard};
use tokio::runtime::{Builder, Runtime};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;

pub use node::{Fault, Node};
pub use registers::{Registers, done, failed};
pub use world::{PARTITIONS, ScanFault, World, layout};

/// A running cluster of three nodes, `n1` to `n3`. It ends when it is dropped.
#[derive(Debug)]
pub struct Cluster {
    /// The nodes, by ascending id.
    pub nodes: Vec<Arc<Node>>,
    /// Where the nodes listen, in the same order.
    pub addresses: Vec<String>,
    world: Arc<Mutex<World>>,
    /// One for each node, so that killing a node breaks its connections as a crash does.
    runtimes: Vec<Option<Runtime>>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for runtime in self.runtimes.drain(..).flatten() {
            runtime.shutdown_background();
        }
    }
}

impl Cluster {
    /// A cluster that acts on `layout`; `None`: it is still forming.
    #[must_use]
    pub fn start(layout: Option<Layout>) -> Self {
        let listeners: Vec<TcpListener> =
            (0..3).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
        let address = |listener: &TcpListener| listener.local_addr().expect("an address").to_string();
        let addresses: Vec<String> = listeners.iter().map(address).collect();
        let world = Arc::new(Mutex::new(World::new(layout, addresses.clone())));
        let (mut nodes, mut runtimes) = (Vec::new(), Vec::new());
        for (id, listener) in (1..).zip(listeners) {
            let node = Node::new(NodeId(id), &world);
            // One thread each: `freeze` stops a node by blocking it.
            let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
            runtime.spawn(serve(listener, Arc::clone(&node)));
            nodes.push(node);
            runtimes.push(Some(runtime));
        }
        Self { nodes, addresses, world, runtimes }
    }

    /// What all nodes share.
    pub fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock()
    }

    /// A client of all nodes.
    pub async fn client(&self, options: Options) -> Client {
        Client::connect(&self.addresses, options).await.expect("the cluster answers")
    }

    /// Ends a node (counted from 0) as a crash would: its connections break, its port is closed.
    pub fn kill(&mut self, index: usize) {
        self.runtimes[index].take().expect("the node still runs").shutdown_background();
        // The port is closed when the runtime's thread has ended.
        while TcpStream::connect(&self.addresses[index]).is_ok() {
            thread::yield_now();
        }
    }

    /// Stops a node (counted from 0) as a debugger would: its connections stay open, and it answers nothing until the
    /// guard is dropped.
    #[must_use]
    pub fn freeze(&self, index: usize) -> Frozen {
        let frozen = Arc::new(AtomicBool::new(true));
        let (held, (stopped, stops)) = (Arc::clone(&frozen), mpsc::channel());
        self.runtimes[index].as_ref().expect("the node still runs").spawn(async move {
            stopped.send(()).expect("the test waits");
            while held.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(1));
            }
        });
        stops.recv().expect("the thread stops");
        Frozen(frozen)
    }

    /// Lets every node answer every operation with `fault`; `None`: they serve again.
    pub fn all_fail(&self, fault: Option<Fault>) {
        self.nodes.iter().for_each(|node| node.always_fail(fault));
    }

    /// The primary of `key`, counted from 0.
    #[must_use]
    pub fn primary(&self, key: &[u8]) -> usize {
        let world = self.world();
        let layout = world.layout.as_ref().expect("the cluster has formed");
        let primary = layout.entry(layout.partition_of(key)).expect("a partition").owners[0].node;
        usize::try_from(primary.0).expect("small") - 1
    }

    /// The sum of a counter over all nodes.
    #[must_use]
    pub fn sum(&self, counter: fn(&Node) -> &AtomicU64) -> u64 {
        self.nodes.iter().map(|node| counter(node).load(Ordering::Relaxed)).sum()
    }
}

/// A node that is stopped; dropping this lets it continue.
#[derive(Debug)]
pub struct Frozen(Arc<AtomicBool>);

impl Drop for Frozen {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

async fn serve(listener: TcpListener, node: Arc<Node>) {
    listener.set_nonblocking(true).expect("non-blocking");
    let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
    Server::builder()
        .add_service(KeyValueServer::from_arc(Arc::clone(&node)))
        .add_service(ClusterServer::from_arc(node))
        .serve_with_incoming(TcpListenerStream::new(listener))
        .await
        .expect("the server ends with its runtime");
}
