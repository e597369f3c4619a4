//! What the control plane of a node is started with, and why it does not start.

use std::path::PathBuf;
use std::time::Duration;

use kv_core::boots::Boots;
use kv_core::config::ClusterConfig;
use kv_core::types::{Incarnation, StoreId};

use super::files::FileError;
use super::peers::{Clock, SharedLiveness};
use super::state::Founding;

/// The most proposals that wait on one node at once; one more is refused.
pub const PROPOSALS_MAX: usize = 256;

/// What the control plane of a node is started with.
pub struct ControlConfig {
    /// The directory for its files, of its own: `control/` in the data directory. The owner of the data directory holds the lock.
    pub dir: PathBuf,
    /// How the node comes to its cluster.
    pub start_mode: StartMode,
    /// The name that people use.
    pub name: String,
    /// Where other nodes reach it, as `host:port`.
    pub address: String,
    /// Its failure domain.
    pub zone: String,
    /// Its capacity relative to the other members.
    pub weight: f64,
    /// The release that it runs, for people.
    pub version: String,
    /// Its store and boot, which is durable already (rule D2).
    pub incarnation: Incarnation,
    /// The boots of its store, this one last.
    pub boots: Boots,
    /// Whether a data plane runs beside it: then `ControlPlane::remembers` says what that has seen of the others.
    pub has_data: bool,
    /// A lost store of a member of this name whose place the node takes. Only for an empty directory.
    pub replaces: Option<StoreId>,
    /// The settings on which all nodes agree. The founder's become the cluster's; those of the others are checked.
    pub cluster: ClusterConfig,
    /// The node's opinion of its peers. The control plane reports to it the members and from whom it heard.
    pub liveness: SharedLiveness,
    /// Reads the monotonic clock of `liveness`.
    pub clock: Clock,
    /// How long things take.
    pub timing: Timing,
}

/// How long things take in the control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How often the leader shows that it is alive. A follower must answer within this time, its disk included.
    pub heartbeat: Duration,
    /// How long a voter waits for the leader at least, before it stands for election; above `heartbeat`.
    pub election_min: Duration,
    /// How long it waits at most.
    pub election_max: Duration,
    /// How often the leader looks whether the voters should change, beside every change that it notices.
    pub review: Duration,
    /// How long a node waits at least before it reports again.
    pub report_min: Duration,
    /// How long it waits at most.
    pub report_max: Duration,
    /// How long a single call to another node, or a change of the voters, may take.
    pub call: Duration,
    /// Entries after which a snapshot is made.
    pub snapshot_entries: u64,
    /// Entries that are kept behind a snapshot, for nodes that were away for a moment.
    pub kept_entries: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(300),
            election_min: Duration::from_millis(1500),
            election_max: Duration::from_millis(3000),
            review: Duration::from_secs(1),
            report_min: Duration::from_millis(100),
            report_max: Duration::from_secs(2),
            call: Duration::from_secs(5),
            snapshot_entries: 512,
            kept_entries: 64,
        }
    }
}

/// How a node comes to its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartMode {
    /// It founds one. On a used directory the values are checked against those that it was founded with.
    Bootstrap(Founding),
    /// It reports to the nodes at these addresses. On a used directory they are further places where members may be.
    Join(Vec<String>),
    /// It goes on where it was; the directory must have been used.
    Resume,
}

/// Why the control plane of a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A file cannot be read or written, or is damaged.
    #[error(transparent)]
    File(#[from] FileError),
    /// The flags do not fit the directory.
    #[error("{0}")]
    Flags(String),
    /// The store of the only member is gone.
    #[error(
        "the data directory belongs to store {held}, but its data is that of {found}, and no other node has a copy; put the \
         old data back, or start with an empty directory"
    )]
    StoreLost {
        /// The store that the control plane knows.
        held: StoreId,
        /// The store that was found.
        found: StoreId,
    },
    /// The Raft engine does not start.
    #[error("the control plane does not start: {0}")]
    Engine(String),
}
