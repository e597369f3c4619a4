//! The handle of the control plane: start, look, shut down.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use kv_core::config::ClusterConfig;
use kv_core::types::{Incarnation, NodeId, StoreId, WallTime};
use openraft::{EmptyNode, ServerState, SnapshotPolicy};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::apply::{check_arrival, check_place, removed};
use super::catch_up::CatchingUp;
use super::command::{Arrival, Founding, Refusal};
use super::disk::{Disk, OsDisk};
use super::drive::Reports;
use super::identity::{self, Entrance, Identity, StartError};
use super::link::Link;
use super::log::store::{LogStore, SEGMENT_BYTES};
use super::log::writer::Writer;
use super::machine::{self, Machine, Published};
use super::network::Network;
use super::operation::Asked;
use super::peers::{Clock, Peers, SharedLiveness};
use super::raft::{Metrics, Raft, RaftId, raft_id};
use super::state::{ClusterState, Phase};
use super::transport::{GroupId, Transport};
use super::{discover, keeper, report};

/// The most proposals that wait on one node at once; one more is refused.
pub const PROPOSALS_MAX: usize = 256;

/// How long `shutdown` waits for the log's thread.
const THREAD_PATIENCE: Duration = Duration::from_secs(10);

/// What the control plane of a node is started with.
pub struct ControlConfig {
    /// The directory for its files, of its own: `control/` in the data directory. Locked by whoever owns that.
    pub dir: PathBuf,
    /// How the node comes to its cluster.
    pub entrance: Entrance,
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
    /// Its store and boot; the boot counter is durable already (rule D2).
    pub incarnation: Incarnation,
    /// A lost store of a member of this name whose place the node takes. Only for an empty directory.
    pub replaces: Option<StoreId>,
    /// The settings on which all nodes agree. The founder's become the cluster's; those of the others are checked.
    pub cluster: ClusterConfig,
    /// The node's opinion of its peers. The control plane tells it the members and from whom it heard.
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

/// How the node stands in its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is not known yet to be a member.
    Joining {
        /// What it waits for.
        reason: String,
    },
    /// It is a member of a cluster that waits for more.
    Forming {
        /// Its number.
        node: NodeId,
        /// Members so far.
        members: usize,
        /// Members expected.
        expect: u32,
    },
    /// It is a member of a formed cluster.
    Member {
        /// Its number.
        node: NodeId,
        /// Whether it must not own partitions (yet).
        spare: bool,
    },
    /// The cluster does not take the node as it is. It must be stopped and started differently.
    Refused(Refusal),
    /// Its control plane has stopped. Puts and gets go on with the layout that is known.
    Failed {
        /// Why.
        reason: String,
    },
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Joining { reason } => write!(f, "joining: {reason}"),
            Self::Forming { members, expect, .. } => write!(f, "forming: {members} of {expect} members"),
            Self::Member { node, spare: false } => write!(f, "member {node}"),
            Self::Member { node, spare: true } => write!(f, "member {node}, a spare"),
            Self::Refused(refusal) => write!(f, "refused: {refusal}"),
            Self::Failed { reason } => write!(f, "the control plane has stopped: {reason}"),
        }
    }
}

/// Figures of the control plane, for status and metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ControlStatus {
    /// Who leads, as far as this node knows.
    pub leader: Option<NodeId>,
    /// Whether this node leads.
    pub is_leader: bool,
    /// The term.
    pub term: u64,
    /// Members that vote.
    pub voters: Vec<NodeId>,
    /// Members that only listen.
    pub learners: Vec<NodeId>,
    /// Whether the voters are being changed: both the old ones and the new ones must have a majority meanwhile.
    pub voters_change: bool,
    /// Index of the last entry of the log; `None` if there is none.
    pub last_log: Option<u64>,
    /// Index of the last entry that was applied.
    pub applied: Option<u64>,
    /// Index of the last entry in the snapshot.
    pub snapshot: Option<u64>,
    /// Index of the last entry that was purged.
    pub purged: Option<u64>,
    /// Bytes of the log on disk.
    pub log_bytes: u64,
    /// On the leader: milliseconds since a majority last confirmed it.
    pub quorum_ms: Option<u64>,
    /// Set if the control plane has stopped.
    pub failed: Option<String>,
}

/// The control plane of one node. Clones share it.
#[derive(Clone)]
pub struct ControlPlane {
    pub(super) inner: Arc<Inner>,
}

impl fmt::Debug for ControlPlane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlPlane").field("standing", &*self.inner.standing.borrow()).finish_non_exhaustive()
    }
}

pub(super) struct Inner {
    pub(super) link: Arc<Link>,
    pub(super) raft: Raft,
    pub(super) state: watch::Receiver<Arc<ClusterState>>,
    /// Keeps `state` open when the engine has failed.
    _published: Published,
    pub(super) standing: watch::Sender<Standing>,
    status: watch::Sender<ControlStatus>,
    /// Set once the disk has failed. The engine notices only when it writes next.
    failed: watch::Receiver<Option<super::FileError>>,
    /// Why the node is not a member yet, and whether that is final.
    pub(super) report: watch::Sender<report::Progress>,
    pub(super) me: Arrival,
    pub(super) contacts: Vec<String>,
    pub(super) founding: Option<Founding>,
    pub(super) cluster: ClusterConfig,
    pub(super) timing: Timing,
    pub(super) proposals: Semaphore,
    /// Learning what is newer than what this node knows.
    pub(super) catching_up: CatchingUp,
    /// What nodes have reported while this one led.
    pub(super) reports: Mutex<Reports>,
    /// Told when a report is new.
    pub(super) reported: Notify,
    /// Since when stores take part that belong to no member any more.
    pub(super) surplus: Mutex<BTreeMap<RaftId, Instant>>,
    identity: Mutex<Identity>,
    writer: Mutex<Option<Writer>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    tasks: Mutex<JoinSet<()>>,
    stopping: AtomicBool,
}

impl ControlPlane {
    /// Starts the control plane on the current runtime. It returns before the node has reached anybody: `state` holds
    /// the newest state that the disk remembers, and `standing` says how far the node is.
    ///
    /// # Errors
    /// If the flags do not fit the directory, or its files cannot be read or written.
    pub async fn start(config: ControlConfig, transport: Arc<dyn Transport>) -> Result<Self, StartError> {
        Self::start_on(OsDisk::open(&config.dir)?, config, transport).await
    }

    /// Starts on any disk.
    pub(super) async fn start_on<D: Disk>(
        mut disk: D,
        config: ControlConfig,
        transport: Arc<dyn Transport>,
    ) -> Result<Self, StartError> {
        let ControlConfig { entrance, incarnation, replaces, timing, .. } = &config;
        let replaces: Vec<StoreId> = replaces.iter().copied().collect();
        let identity = identity::settle(&mut disk, entrance, incarnation.store, &replaces)?;
        let me = Arrival {
            name: config.name.clone(),
            address: config.address.clone(),
            zone: config.zone.clone(),
            weight: config.weight,
            incarnation: *incarnation,
            version: config.version.clone(),
            replaces: identity.replaces.clone(),
        };
        check_arrival(&me).and_then(|()| check_place(&me)).map_err(|refusal| StartError::Flags(refusal.message))?;
        let stored = machine::load(&mut disk)?;
        let (log, thread) = LogStore::open(disk, SEGMENT_BYTES)?;
        let writer = log.writer().clone();
        let failed = writer.failed();
        let (machine, published) = Machine::new(stored, &log);
        let state = published.subscribe();
        let (rolled_back, rollback) = watch::channel(None);
        let (given_up, _) = watch::channel(false);
        let peers = Peers::new(state.clone(), Arc::clone(&config.liveness), Arc::clone(&config.clock));
        let group = identity.group.map_or_else(OnceLock::new, OnceLock::from);
        let address = config.address.clone();
        let link = Arc::new(Link { me: *incarnation, address, group, peers, transport, rolled_back, given_up });
        let network = Network(Arc::clone(&link));
        let id = raft_id(incarnation.store);
        let raft = Raft::new(id, Arc::new(raft_config(timing)?), network, log, machine)
            .await
            .map_err(|error| StartError::Engine(error.to_string()))?;
        if identity.founding.is_some() && identity.group == Some(GroupId(id)) {
            begin_group(&raft, id).await?;
        }
        if votes_alone(&raft, id) {
            // Nobody else can lead, so there is nothing to wait for.
            raft.trigger().elect().await.map_err(|error| StartError::Engine(error.to_string()))?;
        }
        let given = match &config.entrance {
            Entrance::Join(contacts) => contacts.as_slice(),
            Entrance::Bootstrap(_) | Entrance::Resume => &[],
        };
        let contacts = given.iter().chain(&identity.contacts).cloned().collect();
        let (standing, _) = watch::channel(Standing::Joining { reason: "starting".to_owned() });
        let (status, _) = watch::channel(ControlStatus::default());
        let (report, _) = watch::channel(report::Progress { waits_for: "starting".to_owned(), refused: None });
        let inner = Arc::new(Inner {
            link,
            raft,
            state,
            _published: published,
            standing,
            status,
            failed,
            report,
            me,
            contacts,
            founding: identity.founding,
            cluster: config.cluster.clone(),
            timing: config.timing,
            proposals: Semaphore::new(PROPOSALS_MAX),
            catching_up: CatchingUp::default(),
            reports: Mutex::default(),
            reported: Notify::new(),
            surplus: Mutex::default(),
            identity: Mutex::new(identity),
            writer: Mutex::new(Some(writer)),
            thread: Mutex::new(Some(thread)),
            tasks: Mutex::default(),
            stopping: AtomicBool::new(false),
        });
        inner.follow(&ClusterState::default());
        inner.update_standing(None);
        inner.update_status();
        {
            let mut tasks = unpoisoned(&inner.tasks);
            tasks.spawn(watch_standing(Arc::clone(&inner), rollback));
            tasks.spawn(report::run(Arc::clone(&inner)));
            tasks.spawn(keeper::run(Arc::clone(&inner)));
            tasks.spawn(discover::run(Arc::clone(&inner)));
        }
        Ok(Self { inner })
    }

    /// The newest agreed state that this node knows. It is durable on this node before it appears here, only moves
    /// forward, and is served without a leader, and when the control plane has failed. The data plane takes layout and
    /// keyspaces from it. The channel stays open as long as the handle exists.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<Arc<ClusterState>> {
        self.inner.state.clone()
    }

    /// Where a member takes requests, as far as this node knows: what it found itself may be newer than what is agreed on.
    #[must_use]
    pub fn address_of(&self, node: NodeId) -> Option<String> {
        self.inner.address_of(node)
    }

    /// Changes when a node was found at another address.
    #[must_use]
    pub fn moved(&self) -> watch::Receiver<u64> {
        self.inner.link.peers.moved()
    }

    /// How the node stands in its cluster.
    #[must_use]
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.inner.standing.subscribe()
    }

    /// Who leads, as far as this node knows.
    #[must_use]
    pub fn leader(&self) -> Option<NodeId> {
        self.inner.leader().and_then(|id| self.inner.link.peers.node_of(id))
    }

    /// Whether this node leads.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.inner.is_leader()
    }

    /// Figures for status and metrics, as they change.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<ControlStatus> {
        self.inner.status.subscribe()
    }

    /// Stops taking part. What was acknowledged is durable; proposals under way end with an error.
    pub async fn shutdown(&self) {
        let inner = &self.inner;
        if inner.stopping.swap(true, Ordering::SeqCst) {
            return;
        }
        inner.proposals.close();
        let mut tasks = std::mem::take(&mut *unpoisoned(&inner.tasks));
        tasks.shutdown().await;
        if let Err(error) = inner.raft.shutdown().await {
            tracing::warn!(%error, "the Raft engine did not end properly");
        }
        drop(unpoisoned(&inner.writer).take());
        let thread = unpoisoned(&inner.thread).take();
        if let Some(thread) = thread {
            let joined = tokio::task::spawn_blocking(move || thread.join());
            if tokio::time::timeout(THREAD_PATIENCE, joined).await.is_err() {
                tracing::warn!("the control plane's log is still being written; not waiting any longer");
            }
        }
    }
}

impl Inner {
    pub(super) fn metrics(&self) -> Metrics {
        self.raft.metrics().borrow().clone()
    }

    pub(super) fn id(&self) -> RaftId {
        raft_id(self.me.incarnation.store)
    }

    pub(super) fn leader(&self) -> Option<RaftId> {
        self.raft.metrics().borrow().current_leader
    }

    /// Whether this node leads and a majority has confirmed it lately.
    pub(super) fn is_leader(&self) -> bool {
        leads(&self.raft.metrics().borrow(), &self.timing)
    }

    pub(super) fn state(&self) -> Arc<ClusterState> {
        Arc::clone(&self.state.borrow())
    }

    /// The moment, for the records of what is changed. No decision depends on it.
    pub(super) fn wall(&self) -> Asked {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Asked { by: String::new(), at: WallTime(u64::try_from(since.as_micros()).unwrap_or(u64::MAX)) }
    }

    pub(super) fn log_bytes(&self) -> u64 {
        unpoisoned(&self.writer).as_ref().map_or(0, Writer::log_bytes)
    }

    /// Remembers the group that the node was admitted to; it takes part from then on.
    pub(super) async fn admitted(&self, group: GroupId) -> Result<(), super::FileError> {
        let identity = {
            let mut identity = unpoisoned(&self.identity);
            identity.group = Some(group);
            identity.replaces.clear();
            identity.clone()
        };
        let writer = unpoisoned(&self.writer).clone().ok_or(super::FileError::Closed)?;
        writer.replace(identity::IDENTITY, super::file::encode(&identity)?).await?;
        self.link.group.get_or_init(|| group);
        Ok(())
    }

    fn follow(&self, before: &ClusterState) {
        self.link.peers.follow(self.id(), before, &self.state());
    }

    /// Why the control plane has stopped, if it has.
    pub(super) fn failure(&self) -> Option<String> {
        let disk = self.failed.borrow().as_ref().map(|error| chain(error));
        disk.or_else(|| self.raft.metrics().borrow().running_state.as_ref().err().map(|error| error.to_string()))
    }

    fn update_status(&self) {
        let metrics = self.metrics();
        let membership = metrics.membership_config.membership();
        let nodes = |ids: &mut dyn Iterator<Item = RaftId>| {
            let mut nodes: Vec<NodeId> = ids.filter_map(|id| self.link.peers.node_of(id)).collect();
            nodes.sort();
            nodes
        };
        let status = ControlStatus {
            leader: metrics.current_leader.and_then(|id| self.link.peers.node_of(id)),
            is_leader: leads(&metrics, &self.timing),
            term: metrics.current_term,
            voters: nodes(&mut membership.voter_ids()),
            learners: nodes(&mut membership.learner_ids()),
            voters_change: membership.get_joint_config().len() > 1,
            last_log: metrics.last_log_index,
            applied: metrics.last_applied.map(|id| id.index),
            snapshot: metrics.snapshot.map(|id| id.index),
            purged: metrics.purged.map(|id| id.index),
            log_bytes: self.log_bytes(),
            quorum_ms: metrics.millis_since_quorum_ack,
            failed: self.failure(),
        };
        self.status.send_if_modified(|current| {
            let differs = *current != status;
            *current = status;
            differs
        });
    }

    /// Whether the node was removed: it has learned so itself, or was told.
    fn is_given_up(&self, state: &ClusterState) -> bool {
        state.retired.contains(&self.me.incarnation.store) || *self.link.given_up.borrow()
    }

    fn update_standing(&self, rolled_back: Option<Incarnation>) {
        let state = self.state();
        let failed = self.failure();
        let progress = self.report.borrow().clone();
        let member = state.member_of(self.me.incarnation.store);
        let standing = match (failed, progress.refused, rolled_back, member, state.phase) {
            (Some(reason), ..) => Standing::Failed { reason },
            (None, Some(refusal), ..) => Standing::Refused(refusal),
            (None, None, Some(seen), ..) => Standing::Refused(report::rolled_back(&self.me, seen)),
            (None, None, None, _, _) if self.is_given_up(&state) => {
                Standing::Refused(removed(self.me.incarnation.store))
            }
            (None, None, None, Some((node, _)), Phase::Forming(founding)) => {
                Standing::Forming { node, members: state.members.len(), expect: founding.expect }
            }
            (None, None, None, Some((node, member)), Phase::Formed { .. }) => {
                Standing::Member { node, spare: member.spare }
            }
            (None, None, None, None, _) | (.., Phase::Unfounded) => Standing::Joining { reason: progress.waits_for },
        };
        self.standing.send_if_modified(|current| {
            let differs = *current != standing;
            *current = standing;
            differs
        });
    }
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// Whether a node with these metrics leads and a majority has confirmed it lately. One that lost its majority believes
/// for ever that it leads, since nobody tells it otherwise.
pub(super) fn leads(metrics: &Metrics, timing: &Timing) -> bool {
    let patience = timing.election_max.saturating_mul(2);
    metrics.state == ServerState::Leader
        && metrics.millis_since_quorum_ack.is_none_or(|millis| Duration::from_millis(millis) <= patience)
}

pub(super) fn unpoisoned<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Every holder of these locks only moves values in or out.
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

async fn begin_group(raft: &Raft, id: RaftId) -> Result<(), StartError> {
    let engine = |error: &dyn fmt::Display| StartError::Engine(error.to_string());
    if !raft.is_initialized().await.map_err(|error| engine(&error))? {
        let members = std::collections::BTreeMap::from([(id, EmptyNode::new())]);
        raft.initialize(members).await.map_err(|error| engine(&error))?;
    }
    Ok(())
}

fn votes_alone(raft: &Raft, id: RaftId) -> bool {
    let metrics = raft.metrics();
    let metrics = metrics.borrow();
    metrics.state != ServerState::Leader && metrics.membership_config.voter_ids().eq([id])
}

fn raft_config(timing: &Timing) -> Result<openraft::Config, StartError> {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let config = openraft::Config {
        cluster_name: "kv".to_owned(),
        heartbeat_interval: millis(timing.heartbeat),
        election_timeout_min: millis(timing.election_min),
        election_timeout_max: millis(timing.election_max),
        install_snapshot_timeout: millis(timing.call),
        max_payload_entries: 256,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(timing.snapshot_entries),
        snapshot_max_chunk_size: 1024 * 1024,
        max_in_snapshot_log_to_keep: timing.kept_entries,
        // A follower that lags by more than what is kept would ask for purged entries.
        replication_lag_threshold: timing.kept_entries.max(1),
        ..openraft::Config::default()
    };
    config.validate().map_err(|error| StartError::Flags(format!("the control plane's timing is wrong: {error}")))
}

/// Keeps `standing` and `status` true and the failure detector informed of the members.
async fn watch_standing(inner: Arc<Inner>, mut rollback: watch::Receiver<Option<Incarnation>>) {
    let mut state = inner.state.clone();
    let mut report = inner.report.subscribe();
    // Only these say that the engine has failed.
    let mut metrics = inner.raft.metrics();
    let mut failed = inner.failed.clone();
    let mut given_up = inner.link.given_up.subscribe();
    let mut before = Arc::new(ClusterState::default());
    loop {
        inner.follow(&before);
        before = inner.state();
        let seen = *rollback.borrow_and_update();
        inner.update_standing(seen);
        inner.update_status();
        let changed = tokio::select! {
            changed = state.changed() => changed.is_ok(),
            changed = report.changed() => changed.is_ok(),
            changed = rollback.changed() => changed.is_ok(),
            changed = given_up.changed() => changed.is_ok(),
            changed = metrics.changed() => changed.is_ok(),
            Ok(()) = failed.changed() => true,
        };
        if !changed {
            // The engine has ended.
            inner.update_standing(seen);
            inner.update_status();
            return;
        }
    }
}
