//! The gRPC services of a node, all on one port.

mod apply;
pub(crate) mod audit;
mod batch;
mod bounds;
mod cluster;
pub mod connections;
mod drills;
mod health;
mod key_value;
mod metrics;
mod operations;
mod pages;
mod peer;
mod repair;
mod snapshot;
mod unknown;

use std::sync::Arc;
use std::time::Duration;

use kv_core::boots::Boots;
use kv_core::config::{ClusterConfig, NodeConfig};
use kv_core::error::RequestError;
use kv_core::message::{KeyRequest, Operation, Request};
use kv_core::types::{Incarnation, NodeId, WallTime};
use kv_proto::edge::{Edge, Keyspaces};
use kv_proto::limits::{ANSWER_BYTES_MAX, MESSAGE_BYTES_MAX};
use kv_proto::v1::cluster_server::ClusterServer;
use kv_proto::v1::key_value_server::KeyValueServer;
use kv_proto::v1::peer_server::PeerServer;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::service::Routes;
use tonic_health::pb::health_server::HealthServer;

use crate::admission::Ticket;
use connections::{Connection, Connections};

use crate::clock::Clock;
use crate::control::{ClusterState, ControlPlane, MembershipStatus, SharedLiveness};
use crate::engine::{Engine, Promise, bytes_of_request};
use crate::events::{Events, NewEvent};
use crate::faults::Faults;
use crate::link::Links;
use crate::read_window::ReadTicket;
use crate::transfers::Watchdog;
use crate::trust::Trust;
use crate::usage::Usage;

pub use health::Vitals;

/// What the services share. It exists before the node belongs to a cluster; `serving` is set when it does.
pub struct Shared {
    /// The name that people use.
    pub name: String,
    /// Where the node takes requests.
    pub address: String,
    /// Its failure domain.
    pub zone: String,
    /// Its weight.
    pub weight: f64,
    /// Its store and boot.
    pub incarnation: Incarnation,
    /// The boots of its store, this one last.
    pub boots: Boots,
    /// The settings on which all nodes agree.
    pub cluster: ClusterConfig,
    /// Both clocks.
    pub clock: Clock,
    /// The control plane.
    pub control: ControlPlane,
    /// Whom it takes for a peer.
    pub trust: Trust,
    /// The opinion of the peers.
    pub liveness: SharedLiveness,
    /// What happened.
    pub events: Events,
    /// What the process uses.
    pub usage: Usage,
    /// The faults that it acts out.
    pub faults: Faults,
    /// Bytes that copying leaves free on the device of the data directory.
    pub disk_reserve_bytes: u64,
    /// Which copies make no progress.
    pub watchdog: Watchdog,
    /// The engine and the links, once the node belongs to a formed cluster.
    pub serving: watch::Sender<Option<Serving>>,
    /// The keyspaces by name, kept as the agreed state has them.
    pub keyspaces: Mutex<Arc<Keyspaces>>,
    /// Whether the node is well, for those who ask from outside.
    pub vitals: watch::Sender<Vitals>,
    /// The connections, and the bytes that wait in them.
    pub connections: Arc<Connections>,
    /// Set when the node stops: long streams end.
    pub stopping: watch::Sender<bool>,
}

/// The running data plane.
#[derive(Clone)]
pub struct Serving {
    /// The node's number.
    pub node: NodeId,
    /// The loop.
    pub engine: Engine,
    /// The streams to the peers.
    pub links: Links,
}

/// What requests need a turn for.
#[derive(Clone, Copy, Debug, Default)]
struct Wants {
    /// Bytes of writes.
    bytes: usize,
    /// Reads.
    reads: usize,
}

impl Wants {
    fn of<'a>(requests: impl IntoIterator<Item = &'a Request>) -> Self {
        let mut wants = Self::default();
        for request in requests {
            wants.bytes += bytes_of_request(request);
            wants.reads += usize::from(is_read(request));
        }
        wants
    }

    fn is_nothing(self) -> bool {
        self.bytes == 0 && self.reads == 0
    }
}

/// Whether a request reads one key. The pages of a scan are bounded, and made one by one.
fn is_read(request: &Request) -> bool {
    matches!(request, Request::Key(KeyRequest { operation: Operation::Get, .. }))
}

/// Requests that were let in, until this is dropped.
struct Turn {
    write: Option<Ticket>,
    /// One for each read.
    reads: Vec<ReadTicket>,
    /// What large writes have of the store's room, until the loop has them.
    promise: Option<Promise>,
}

impl Shared {
    /// The data plane.
    ///
    /// # Errors
    /// `Unavailable` with the reason, before the cluster has formed.
    pub fn serving(&self) -> Result<Serving, RequestError> {
        let serving = self.serving.borrow().clone();
        serving.ok_or_else(|| RequestError::unavailable(self.membership_text()))
    }

    /// What the node waits for before it serves.
    fn membership_text(&self) -> String {
        let membership = self.control.membership().borrow().to_string();
        format!("{}: {membership}; try again when the cluster has formed", self.name)
    }

    /// The newest agreed state.
    #[must_use]
    pub fn state(&self) -> Arc<ClusterState> {
        Arc::clone(&self.control.state().borrow())
    }

    /// The node's number; 0 while it has none.
    #[must_use]
    pub fn node(&self) -> NodeId {
        match &*self.control.membership().borrow() {
            MembershipStatus::Forming { node, .. } | MembershipStatus::Member { node, .. } => *node,
            MembershipStatus::Joining { .. } | MembershipStatus::Refused(_) | MembershipStatus::Failed { .. } => {
                NodeId(0)
            }
        }
    }

    /// The keyspaces by name.
    #[must_use]
    pub fn keyspaces(&self) -> Arc<Keyspaces> {
        Arc::clone(&self.keyspaces.lock())
    }

    /// Validates requests against what the cluster has agreed on, with these keyspaces.
    #[must_use]
    pub fn edge<'a>(&'a self, keyspaces: &'a Keyspaces) -> Edge<'a> {
        Edge { limits: &self.cluster, keyspaces }
    }

    /// The turn of reads alone, if they need not wait.
    fn turn_now(&self, connection: Option<&Arc<Connection>>, wants: Wants) -> Option<Turn> {
        if wants.bytes > 0 {
            return None;
        }
        let reads =
            connection.map_or_else(|| Some(Vec::new()), |connection| connection.reads.admit_now(wants.reads))?;
        Some(Turn { write: None, reads, promise: None })
    }

    /// Waits for the turn of requests; how long that took, and what lasts until they have ended. Large writes wait until the store
    /// has room for them as well.
    ///
    /// # Errors
    /// `Exhausted` if it takes half of the time that they have.
    async fn turn(
        &self,
        engine: &Engine,
        connection: Option<&Arc<Connection>>,
        wants: Wants,
        timeout: Option<Duration>,
    ) -> Result<(Turn, Duration), RequestError> {
        if let Some(turn) = self.turn_now(connection, wants) {
            return Ok((turn, Duration::ZERO));
        }
        let began = Instant::now();
        let turn = async {
            let reads = match connection {
                Some(connection) if wants.reads > 0 => connection.reads.admit(wants.reads).await,
                _ => Vec::new(),
            };
            let write = self.connections.turn(connection, wants.bytes).await;
            Turn { write, reads, promise: engine.room_for(wants.bytes).await }
        };
        // Told in time it is an answer; told at the end of its time it would come too late.
        match tokio::time::timeout(timeout.unwrap_or_else(usual_timeout) / 2, turn).await {
            Ok(turn) => Ok((turn, began.elapsed().min(timeout.unwrap_or_default()))),
            Err(_) => Err(RequestError::exhausted(format!(
                "{} bytes of writes and {} reads waited {} ms for their turn behind others; nothing was done, slow down and \
                 try again",
                wants.bytes,
                wants.reads,
                began.elapsed().as_millis()
            ))),
        }
    }

    /// The time for sessions of clients: by the clocks of the other members while this node's is off.
    async fn time(&self) -> WallTime {
        let serving = self.serving.borrow().clone();
        let report = async { serving?.engine.report().await };
        // A loop that stands still is no reason to keep a client waiting.
        let report = tokio::time::timeout(TIME_PATIENCE, report).await.ok().flatten();
        let wall = self.clock.now().wall;
        report.map_or(wall, |report| report.status.clock.corrected(wall))
    }

    /// Remembers that something happened.
    pub fn event(&self, event: NewEvent) {
        self.events.add(self.node().0, self.clock.now().wall, event);
    }
}

/// How long the loop may take to say how the node's clock is.
const TIME_PATIENCE: Duration = Duration::from_millis(100);

/// How long a request may take that does not say so.
fn usual_timeout() -> Duration {
    NodeConfig::new(NodeId(0)).deadline
}

/// Ends when the node stops.
async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // A sender that is gone has stopped, too.
    drop(stopping.wait_for(|stopping| *stopping).await);
}

/// All services.
pub fn routes(shared: &Arc<Shared>) -> Result<axum::Router, tonic_reflection::server::Error> {
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(kv_proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let key_value = KeyValueServer::new(key_value::Service(Arc::clone(shared)))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(ANSWER_BYTES_MAX);
    let cluster = ClusterServer::new(cluster::Service(Arc::clone(shared)))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let peer = PeerServer::new(peer::Service(Arc::clone(shared)))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let services = Routes::new(key_value)
        .add_service(cluster)
        .add_service(peer)
        .add_service(reflection().build_v1()?)
        // Several clients, those of Python among them, still ask for the older version.
        .add_service(reflection().build_v1alpha()?)
        .add_service(HealthServer::new(health::Service(Arc::clone(shared))))
        .into_axum_router();
    Ok(pages::beside(services, shared))
}
