//! Links: one long-lived stream for each pair of nodes, and beside it one for bulk. The node with the lower number opens
//! them.

mod bulk;
mod dial;
mod session;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use kv_core::boots::Boots;
use kv_core::config::ClusterConfig;
use kv_core::message::{Hello, PROTOCOL_VERSION};
use kv_core::types::{ClusterId, Generation, HashSeed, Incarnation, NodeId};
use parking_lot::Mutex;
use tokio::sync::watch;

pub use bulk::accept_bulk;
pub use dial::{Members, keep_links};
#[cfg(test)]
pub(crate) use session::Assembly;
use session::Ending;
pub use session::{Frames, accept};

use crate::clock::Clock;
use crate::control::{ControlPlane, SharedLiveness};
use crate::engine::{Command, Engine, Shown};
use crate::outbox::Outbox;
use crate::trust::Trust;

/// Who has opened a stream.
pub struct Caller {
    /// The store and boot that it has proven to be, if it has.
    pub incarnation: Option<Incarnation>,
    /// Called when it has shown that it is a peer.
    pub is_peers: Box<dyn FnOnce() + Send>,
}

/// What a node is among its peers.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its number.
    pub node: NodeId,
    /// Its store and boot.
    pub incarnation: Incarnation,
    /// The boots of its store, this one last.
    pub boots: Boots,
    /// The cluster.
    pub cluster: ClusterId,
    /// The seed of the ring hash.
    pub seed: HashSeed,
    /// The settings on which all nodes agree.
    pub config: ClusterConfig,
    /// Whose control plane it obeys.
    pub generation: Generation,
}

/// The links of one node. Clones share them.
#[derive(Clone)]
pub struct Links(Arc<Inner>);

struct Inner {
    identity: Identity,
    engine: Engine,
    liveness: SharedLiveness,
    /// Who is a member is agreed on there.
    control: ControlPlane,
    /// Whom this node takes for a peer.
    trust: Trust,
    clock: Clock,
    sessions: AtomicU64,
    /// The session of each peer, for those who want to know or to close it.
    open: Mutex<BTreeMap<NodeId, Open>>,
    /// Why no session may begin any more; set under the lock of `open`, so that no session misses it.
    stopped: OnceLock<String>,
}

/// A session that is open.
struct Open {
    number: u64,
    /// The peer's store and boot.
    incarnation: Incarnation,
    outbox: Outbox,
    round_trip_us: Arc<AtomicU64>,
    /// Why this node has closed it, if it has.
    ending: watch::Sender<Option<Ending>>,
}

impl Open {
    /// Closes the session; the first reason counts.
    fn end(&self, why: Ending) {
        self.ending.send_if_modified(|ending| {
            let is_first = ending.is_none();
            ending.get_or_insert(why);
            is_first
        });
    }
}

/// What is known of a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// The round trip of the last heartbeat, in microseconds; 0: none yet.
    pub round_trip_us: u64,
    /// Bytes queued for the peer.
    pub queued_bytes: usize,
}

impl Links {
    /// Links for a node whose engine runs.
    #[must_use]
    pub fn new(
        identity: Identity,
        engine: Engine,
        liveness: SharedLiveness,
        control: ControlPlane,
        trust: Trust,
        clock: Clock,
    ) -> Self {
        Self(Arc::new(Inner {
            identity,
            engine,
            liveness,
            control,
            trust,
            clock,
            sessions: AtomicU64::new(1),
            open: Mutex::default(),
            stopped: OnceLock::new(),
        }))
    }

    /// What is known of the link to each peer that has one.
    #[must_use]
    pub fn stats(&self) -> BTreeMap<NodeId, LinkStats> {
        let stats = |open: &Open| LinkStats {
            round_trip_us: open.round_trip_us.load(Ordering::Relaxed),
            queued_bytes: open.outbox.queued_bytes(),
        };
        self.0.open.lock().iter().map(|(node, open)| (*node, stats(open))).collect()
    }

    /// Closes the session with a peer that is considered down: it may be stalled, and its stream would never end.
    pub fn close(&self, node: NodeId) {
        if let Some(open) = self.0.open.lock().get(&node) {
            open.end(Ending::Silent);
        }
    }

    /// Ends all sessions and lets none begin: this node's store has failed for `reason`. It would leave what peers ask
    /// unanswered; as it is, they turn to others at once.
    pub fn stop(&self, reason: &str) {
        let open = self.0.open.lock();
        // The first reason counts.
        let reason = self.0.stopped.get_or_init(|| reason.to_owned());
        for open in open.values() {
            open.end(Ending::Stopped(reason.clone()));
        }
    }

    /// Refuses a session of a node that has stopped.
    fn check_running(&self) -> Result<(), Ending> {
        self.0.stopped.get().map_or(Ok(()), |reason| Err(Ending::Stopped(reason.clone())))
    }

    /// Reports to the engine that a peer has been silent for longer than usual.
    pub async fn silent(&self, node: NodeId) {
        self.0.engine.send(Command::PeerSilent { node }).await;
    }

    fn hello(&self, shown: Shown) -> Hello {
        let Identity { node, incarnation, boots, cluster, seed, config, generation } = self.0.identity.clone();
        let Shown { seen, commit } = shown;
        Hello {
            protocol: PROTOCOL_VERSION,
            cluster: Some(cluster),
            seed,
            config,
            node,
            incarnation,
            seen,
            boots,
            commit,
            generation,
        }
    }

    fn heard(&self, node: NodeId) {
        let now = self.0.clock.now().mono;
        self.0.liveness.lock().heard(node, now);
    }

    fn lost(&self, node: NodeId, reason: &str) {
        let now = self.0.clock.now().mono;
        self.0.liveness.lock().lost(node, now, reason);
    }
}
