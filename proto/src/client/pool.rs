//! One connection for each address, made when it is first used and made again when it breaks.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use kv_core::error::RequestError;
use parking_lot::Mutex;
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};

use super::options::Options;
use super::session::Session;
use crate::address::check_address;

/// How long a node that failed is tried only after all others.
const SUSPECT_FOR: Duration = Duration::from_secs(1);

/// HTTP/2 windows, in bytes: what may be on its way before the other side has read it.
const STREAM_WINDOW: u32 = 2 * 1024 * 1024;
const CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;

/// How often an idle or silent connection is probed, and how long the answer may take.
const PROBE_EVERY: Duration = Duration::from_secs(10);
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// The nodes by address.
#[derive(Debug)]
pub(super) struct Pool {
    connect_timeout: Duration,
    in_flight_max: usize,
    stall_after: Duration,
    only_given: bool,
    nodes: Mutex<BTreeMap<String, Arc<Node>>>,
}

impl Pool {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            connect_timeout: options.connect_timeout,
            in_flight_max: options.in_flight_max.max(1),
            stall_after: options.stall_after,
            only_given: options.only_given,
            nodes: Mutex::default(),
        }
    }

    /// Whether no node is asked but those that were given.
    pub(super) fn only_given(&self) -> bool {
        self.only_given
    }

    /// The node at `address`, with which nothing is exchanged yet.
    pub(super) fn node(&self, address: &str) -> Result<Arc<Node>, RequestError> {
        let mut nodes = self.nodes.lock();
        if let Some(node) = nodes.get(address) {
            return Ok(Arc::clone(node));
        }
        check_address(address)?;
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| RequestError::invalid(format!("address: {address:?} is not host:port: {error}")))?
            .tcp_nodelay(true)
            .connect_timeout(self.connect_timeout)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_keep_alive_interval(PROBE_EVERY)
            .keep_alive_timeout(PROBE_TIMEOUT)
            .keep_alive_while_idle(true);
        let node = Arc::new(Node {
            address: address.to_owned(),
            channel: endpoint.connect_lazy(),
            in_flight_max: self.in_flight_max,
            stall_after: self.stall_after,
            session: Mutex::default(),
            suspect_until: Mutex::default(),
        });
        nodes.insert(address.to_owned(), Arc::clone(&node));
        Ok(node)
    }

    /// Forgets the nodes at other addresses. Operations that still run on them end as they would.
    pub(super) fn keep(&self, addresses: &BTreeSet<&str>) {
        let mut nodes = self.nodes.lock();
        nodes.retain(|address, _| addresses.contains(address.as_str()));
    }
}

/// A node and the connection to it.
pub(super) struct Node {
    address: String,
    channel: Channel,
    in_flight_max: usize,
    stall_after: Duration,
    session: Mutex<Option<Arc<Session>>>,
    suspect_until: Mutex<Option<Instant>>,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Node {
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    pub(super) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// The stream for operations on keys; a new one if there is none, or if the last one has ended.
    pub(super) fn session(&self) -> Arc<Session> {
        let mut session = self.session.lock();
        match &*session {
            Some(session) if !session.is_closed() => Arc::clone(session),
            _ => {
                let opened =
                    Arc::new(Session::open(self.channel(), &self.address, self.in_flight_max, self.stall_after));
                *session = Some(Arc::clone(&opened));
                opened
            }
        }
    }

    /// Marks the node as one to try after the others.
    pub(super) fn suspect(&self) {
        *self.suspect_until.lock() = Some(Instant::now() + SUSPECT_FOR);
    }

    /// Takes the mark away.
    pub(super) fn trust(&self) {
        *self.suspect_until.lock() = None;
    }

    pub(super) fn is_suspect(&self) -> bool {
        let until = *self.suspect_until.lock();
        until.is_some_and(|until| Instant::now() < until) || self.is_stalled()
    }

    /// Whether the node is connected and does not answer at present.
    fn is_stalled(&self) -> bool {
        let session = self.session.lock();
        session.as_ref().is_some_and(|session| session.is_stalled())
    }

    /// Waits until the node stops answering. A node that has stopped already is no second choice: what is asked of
    /// it all the same waits for it.
    pub(super) async fn stalls(&self) {
        // Most answers come before this is worth anything.
        tokio::time::sleep(self.stall_after / 3).await;
        let session = self.session();
        if session.is_stalled() {
            std::future::pending::<()>().await;
        }
        session.stalls().await;
    }
}
