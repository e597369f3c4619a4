//! The Raft group as this node takes part in it: how it starts and ends, who leads it, what it has agreed on.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use kv_core::config::ClusterConfig;
use kv_core::types::WallTime;
use openraft::{EmptyNode, ServerState, SnapshotPolicy};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};

use super::log::store::{LogStore, SEGMENT_BYTES};
use super::log::writer::Writer;
use super::machine::{self, Machine, Published};
use super::network::Network;
use super::{Metrics, Raft};
use crate::control::config::{ControlConfig, PROPOSALS_MAX, StartError, Timing};
use crate::control::files::{Disk, FileError};
use crate::control::peers::transport::{GroupId, Transport};
use crate::control::peers::{Link, Peers, RaftId, raft_id};
use crate::control::state::{Asked, ClusterState, Founding, NodeDescriptor};

/// How long `shutdown` waits for the log's thread.
const THREAD_TIMEOUT: Duration = Duration::from_secs(10);

/// What this node is in its group.
pub(in crate::control) struct GroupStart {
    /// What it says of itself.
    pub(in crate::control) me: NodeDescriptor,
    /// The group; `None` until the node has been admitted.
    pub(in crate::control) group: Option<GroupId>,
    /// Set if the node founds its cluster.
    pub(in crate::control) founding: Option<Founding>,
}

/// Who leads, as far as messages say, before this node has asked the voters what they remember of it.
#[derive(Default)]
struct EntriesFrom {
    /// Who has sent entries last.
    wants: Option<RaftId>,
    /// Who has said that it remembers no more of this node than it has.
    allowed: Option<RaftId>,
}

/// The Raft group, and this node as one that takes part in it.
pub(in crate::control) struct Group {
    pub(in crate::control) link: Arc<Link>,
    pub(in crate::control) raft: Raft,
    /// The newest agreed state that is durable on this node.
    pub(in crate::control) state: watch::Receiver<Arc<ClusterState>>,
    /// Keeps `state` open when the engine has failed.
    _published: Published,
    /// Set once the disk has failed. The engine notices only when it writes next.
    pub(in crate::control) failed: watch::Receiver<Option<FileError>>,
    /// What this node says of itself.
    pub(in crate::control) me: NodeDescriptor,
    /// Set if the node founds its cluster.
    pub(in crate::control) founding: Option<Founding>,
    /// The settings that this node was started with.
    pub(in crate::control) cluster: ClusterConfig,
    pub(in crate::control) timing: Timing,
    /// Bounds the proposals that wait on this node.
    pub(in crate::control) proposals: Semaphore,
    /// From whom it takes entries of the log before that: who leads, and has been asked itself.
    entries_from: Mutex<EntriesFrom>,
    /// Whether this node votes and takes entries of anybody: a majority of the voters remembers no more of it than it has (rule D2).
    takes_part: AtomicBool,
    /// Whether a data plane runs beside it that remembers what members have shown.
    pub(in crate::control) has_data: bool,
    writer: Mutex<Option<Writer>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Group {
    /// Starts the engine on what the disk holds.
    pub(in crate::control) async fn start<D: Disk>(
        mut disk: D,
        config: &ControlConfig,
        start: GroupStart,
        transport: Arc<dyn Transport>,
    ) -> Result<Self, StartError> {
        let GroupStart { me, group, founding } = start;
        let incarnation = me.incarnation;
        let stored = machine::load(&mut disk)?;
        let (log, thread) = LogStore::open(disk, SEGMENT_BYTES)?;
        let writer = log.writer().clone();
        let failed = writer.failed();
        let (machine, published) = Machine::new(stored, &log);
        let state = published.subscribe();
        let peers = Peers::new(state.clone(), Arc::clone(&config.liveness), Arc::clone(&config.clock));
        let link =
            Arc::new(Link::new((incarnation, config.boots.clone()), config.address.clone(), group, peers, transport));
        let network = Network(Arc::clone(&link));
        let id = raft_id(incarnation.store);
        let raft = Raft::new(id, Arc::new(raft_config(&config.timing)?), network, log, machine)
            .await
            .map_err(|error| StartError::Engine(error.to_string()))?;
        if founding.is_some() && group == Some(GroupId(id)) {
            begin_group(&raft, id).await?;
        }
        // The engine says who votes when it has begun.
        raft.is_initialized().await.map_err(|error| StartError::Engine(error.to_string()))?;
        let alone = votes_alone(&raft, id);
        // Who has no log has forgotten none.
        let takes_part = alone || raft.metrics().borrow().membership_config.voter_ids().next().is_none();
        raft.runtime_config().elect(takes_part);
        if alone {
            // Nobody else can lead, so there is nothing to wait for.
            raft.trigger().elect().await.map_err(|error| StartError::Engine(error.to_string()))?;
        }
        Ok(Self {
            link,
            raft,
            state,
            _published: published,
            failed,
            me,
            founding,
            cluster: config.cluster.clone(),
            timing: config.timing,
            proposals: Semaphore::new(PROPOSALS_MAX),
            entries_from: Mutex::default(),
            takes_part: AtomicBool::new(takes_part),
            has_data: config.has_data,
            writer: Mutex::new(Some(writer)),
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Whether this node votes and takes entries of the log.
    pub(in crate::control) fn takes_part(&self) -> bool {
        self.takes_part.load(Ordering::Acquire)
    }

    /// Whether this node takes entries of the log from this one. One that must be asked before is noted.
    pub(in crate::control) fn takes_entries_from(&self, from: RaftId) -> bool {
        if self.takes_part() {
            return true;
        }
        let mut entries = self.entries_from.lock();
        entries.wants = Some(from);
        entries.allowed == Some(from)
    }

    /// Who has sent entries last, while this node takes none.
    pub(in crate::control) fn wants_to_lead(&self) -> Option<RaftId> {
        self.entries_from.lock().wants
    }

    /// From now on this node takes entries of the log from this one.
    pub(in crate::control) fn take_entries_from(&self, from: RaftId) {
        self.entries_from.lock().allowed = Some(from);
    }

    /// From now on it does.
    pub(in crate::control) fn take_part(&self) {
        if !self.takes_part.swap(true, Ordering::AcqRel) {
            tracing::info!("a majority of the voters remembers no more of this node than it has: it votes from now on");
        }
        self.raft.runtime_config().elect(true);
    }

    /// Ends the engine and waits for the log's thread.
    pub(in crate::control) async fn shutdown(&self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(%error, "the Raft engine did not end properly");
        }
        drop(self.writer.lock().take());
        let thread = self.thread.lock().take();
        if let Some(thread) = thread {
            let joined = tokio::task::spawn_blocking(move || thread.join());
            if tokio::time::timeout(THREAD_TIMEOUT, joined).await.is_err() {
                tracing::warn!("the control plane's log is still being written; not waiting any longer");
            }
        }
    }

    pub(in crate::control) fn metrics(&self) -> Metrics {
        self.raft.metrics().borrow().clone()
    }

    /// The id under which this node takes part.
    pub(in crate::control) fn id(&self) -> RaftId {
        raft_id(self.me.incarnation.store)
    }

    /// Who leads, as far as this node knows.
    pub(in crate::control) fn leader(&self) -> Option<RaftId> {
        // What the engine remembers of the run before says nothing of now, and without elections it is never corrected.
        let has_led = |leader: &RaftId| self.takes_part() || self.entries_from.lock().allowed == Some(*leader);
        self.raft.metrics().borrow().current_leader.filter(has_led)
    }

    /// Whether this node leads and a majority has confirmed it lately.
    pub(in crate::control) fn is_leader(&self) -> bool {
        leads(&self.raft.metrics().borrow(), &self.timing)
    }

    pub(in crate::control) fn state(&self) -> Arc<ClusterState> {
        Arc::clone(&self.state.borrow())
    }

    /// The moment, for the records of what is changed. No decision depends on it.
    pub(in crate::control) fn wall(&self) -> Asked {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Asked { by: String::new(), at: WallTime(u64::try_from(since.as_micros()).unwrap_or(u64::MAX)) }
    }

    pub(in crate::control) fn log_bytes(&self) -> u64 {
        self.writer.lock().as_ref().map_or(0, Writer::log_bytes)
    }

    /// Durably replaces a file of the control plane.
    pub(in crate::control) async fn replace_file(&self, name: &'static str, content: Vec<u8>) -> Result<(), FileError> {
        let writer = self.writer.lock().clone().ok_or(FileError::Closed)?;
        writer.replace(name, content).await
    }

    /// Has an opinion of every member, and of nobody else.
    pub(in crate::control) fn follow_members(&self, before: &ClusterState) {
        self.link.peers.follow(self.id(), before, &self.state());
    }

    /// Why the control plane has stopped, if it has.
    pub(in crate::control) fn failure(&self) -> Option<String> {
        let disk = self.failed.borrow().as_ref().map(|error| chain(error));
        disk.or_else(|| self.raft.metrics().borrow().running_state.as_ref().err().map(|error| error.to_string()))
    }
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// Whether a node with these metrics leads and a majority has confirmed it lately. One that lost its majority believes
/// forever that it leads, since nobody contradicts it.
pub(in crate::control) fn leads(metrics: &Metrics, timing: &Timing) -> bool {
    let longest = timing.election_max.saturating_mul(2);
    metrics.state == ServerState::Leader
        && metrics.millis_since_quorum_ack.is_none_or(|millis| Duration::from_millis(millis) <= longest)
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
        // Not before the voters have said what they remember of this node.
        enable_elect: false,
        ..openraft::Config::default()
    };
    config.validate().map_err(|error| StartError::Flags(format!("the control plane's timing is wrong: {error}")))
}
