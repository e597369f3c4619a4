//! The handle of the control plane: start, look, shut down.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kv_core::handshake::HandshakeError;
use kv_core::message::Hello;
use kv_core::types::{Generation, Incarnation, NodeId, StoreId};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::config::{ControlConfig, StartError};
use super::files::{Disk, OsDisk};
use super::leader::{self, Leader, TransferReport, command_id};
use super::member::{
    ControlStatus, ControlView, Member, MembershipStatus, ProposeError, Reported, claims, discover, identity,
    introduce, recall, status,
};
use super::peers::Memory;
use super::peers::transport::{IdentifyReply, IdentifyRequest, JoinReply, JoinRequest, RaftKind, Transport};
use super::raft::{Group, GroupStart};
use super::state::{ClusterState, Command, CommandId, Done, NodeDescriptor, Proposal, check_descriptor, check_place};

/// The control plane of one node. Clones share it.
#[derive(Clone)]
pub struct ControlPlane {
    pub(super) inner: Arc<Inner>,
}

impl fmt::Debug for ControlPlane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlPlane")
            .field("membership", &*self.inner.member.membership.borrow())
            .finish_non_exhaustive()
    }
}

pub(super) struct Inner {
    pub(super) leader: Arc<Leader>,
    pub(super) member: Arc<Member>,
    tasks: Mutex<JoinSet<()>>,
    stopping: AtomicBool,
}

impl ControlPlane {
    /// Starts the control plane on the current runtime. It returns before the node has reached anybody: `state` holds
    /// the newest state that the disk remembers, and `membership` says how far the node is.
    ///
    /// # Errors
    /// If the flags do not fit the directory, or its files cannot be read or written.
    pub async fn start(config: ControlConfig, transport: Arc<dyn Transport>) -> Result<Self, StartError> {
        Self::start_on(OsDisk::open(&config.dir)?, config, transport).await
    }

    /// Whether the flags fit the directory and what the node says of itself is sound. Changes nothing that was there.
    ///
    /// # Errors
    /// As for `start`, if it would fail for that.
    pub fn check(config: &ControlConfig) -> Result<(), StartError> {
        let replaces: Vec<StoreId> = config.replaces.iter().copied().collect();
        let mut disk = OsDisk::open(&config.dir)?;
        identity::check(&mut disk, &config.start_mode, config.incarnation.store, &replaces)?;
        Self::describe(config, replaces).map(drop)
    }

    /// What the node says of itself, checked.
    fn describe(config: &ControlConfig, replaces: Vec<StoreId>) -> Result<NodeDescriptor, StartError> {
        let me = NodeDescriptor {
            name: config.name.clone(),
            address: config.address.clone(),
            zone: config.zone.clone(),
            weight: config.weight,
            incarnation: config.incarnation,
            version: config.version.clone(),
            replaces,
        };
        check_descriptor(&me).and_then(|()| check_place(&me)).map_err(|refusal| StartError::Flags(refusal.message))?;
        Ok(me)
    }

    /// Starts on any disk.
    pub(super) async fn start_on<D: Disk>(
        mut disk: D,
        config: ControlConfig,
        transport: Arc<dyn Transport>,
    ) -> Result<Self, StartError> {
        let ControlConfig { start_mode, incarnation, replaces, .. } = &config;
        let replaces: Vec<StoreId> = replaces.iter().copied().collect();
        let identity = identity::settle(&mut disk, start_mode, incarnation.store, &replaces)?;
        let me = Self::describe(&config, identity.replaces.clone())?;
        let start = GroupStart { me, group: identity.group, founding: identity.founding };
        let group = Arc::new(Group::start(disk, &config, start, transport).await?);
        let leader = Arc::new(Leader::new(Arc::clone(&group)));
        let member = Arc::new(Member::new(group, Arc::clone(&leader), identity, &config.start_mode));
        member.begin_status();
        let mut tasks = JoinSet::new();
        tasks.spawn(status::follow(Arc::clone(&member)));
        tasks.spawn(introduce::run(Arc::clone(&member)));
        tasks.spawn(claims::run(Arc::clone(&member)));
        if !member.group.takes_part() {
            tasks.spawn(recall::run(Arc::clone(&member)));
        }
        tasks.spawn(leader::run(Arc::clone(&leader)));
        tasks.spawn(discover::run(Arc::clone(&member)));
        let (tasks, stopping) = (Mutex::new(tasks), AtomicBool::new(false));
        Ok(Self { inner: Arc::new(Inner { leader, member, tasks, stopping }) })
    }

    /// The newest agreed state that this node knows. It is durable on this node before it appears here, only moves
    /// forward, and is served without a leader, and when the control plane has failed. The data plane takes layout and
    /// keyspaces from it. The channel stays open as long as the handle exists.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<Arc<ClusterState>> {
        self.inner.member.group.state.clone()
    }

    /// Where a member takes requests, as far as this node knows: what it found itself may be newer than what is agreed on.
    #[must_use]
    pub fn address_of(&self, node: NodeId) -> Option<String> {
        self.inner.member.address_of(node)
    }

    /// Changes when a node was found at another address.
    #[must_use]
    pub fn moved(&self) -> watch::Receiver<u64> {
        self.inner.member.group.link.peers.moved()
    }

    /// The membership status of the node in its cluster.
    #[must_use]
    pub fn membership(&self) -> watch::Receiver<MembershipStatus> {
        self.inner.member.membership.subscribe()
    }

    /// The generation of the cluster to which this node belongs; `None` before it has joined one.
    #[must_use]
    pub fn generation(&self) -> Option<Generation> {
        self.inner.member.group.link.generation()
    }

    /// Who leads, as far as this node knows.
    #[must_use]
    pub fn leader(&self) -> Option<NodeId> {
        self.inner.member.group.leader().and_then(|id| self.inner.member.group.link.peers.node_of(id))
    }

    /// Whether this node leads.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        self.inner.member.group.is_leader()
    }

    /// The control plane as this node sees it now.
    #[must_use]
    pub fn view(&self) -> ControlView {
        self.inner.member.view()
    }

    /// Figures for status and metrics, as they change.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<ControlStatus> {
        self.inner.member.status.subscribe()
    }

    /// Stops taking part. What was acknowledged is durable; proposals under way end with an error.
    pub async fn shutdown(&self) {
        let inner = &self.inner;
        if inner.stopping.swap(true, Ordering::SeqCst) {
            return;
        }
        let group = &inner.member.group;
        group.proposals.close();
        let mut tasks = std::mem::take(&mut *inner.tasks.lock());
        tasks.shutdown().await;
        group.shutdown().await;
    }

    /// Whether the node takes part no more.
    #[must_use]
    pub fn has_stopped(&self) -> bool {
        self.inner.stopping.load(Ordering::SeqCst)
    }

    /// Has `command` agreed on and applied, by way of the leader, and returns what it did. The result is visible in
    /// `state` of the leader at once and of other nodes soon.
    ///
    /// # Errors
    /// If it was refused, or no answer came within `timeout`.
    pub async fn propose(&self, command: Command, timeout: Duration) -> Result<Done, ProposeError> {
        self.propose_as(command_id()?, command, timeout).await
    }

    /// As [`ControlPlane::propose`], under an id that the caller has drawn: proposed again, it is applied once.
    ///
    /// # Errors
    /// If it was refused, or no answer came within `timeout`.
    pub async fn propose_as(&self, id: CommandId, command: Command, timeout: Duration) -> Result<Done, ProposeError> {
        let member = &self.inner.member;
        let at = member.group.wall().at;
        Ok(member.propose(Proposal { id, at, command }, timeout).await?.into_result()?)
    }

    /// Hands a report to the leader, which may be this node.
    pub async fn report(&self, report: TransferReport) -> Reported {
        self.inner.member.report(report).await
    }

    /// Checks the greeting of a peer against this node's own and what was agreed on. What the peer claims of this node's store is
    /// noted; once it is proven, `membership` says so.
    ///
    /// # Errors
    /// If the two must not talk.
    pub fn check_hello(&self, mine: &Hello, theirs: &Hello) -> Result<(), HandshakeError> {
        self.inner.member.group.link.check_hello(mine, theirs)
    }

    /// Says what the data plane has seen of the stores of others, once it runs.
    pub fn remembers(&self, memory: Memory) {
        self.inner.member.group.link.memory.get_or_init(|| memory);
    }

    /// What members claim of this node's store and nothing proves, for people.
    #[must_use]
    pub fn unproven_claims(&self) -> Vec<(NodeId, String)> {
        self.inner.member.unproven_claims()
    }

    /// Notes that the data plane acts on the state of this revision.
    pub fn acts_on(&self, revision: u64) {
        self.inner.member.acts_on(revision);
    }

    /// Returns when this node acts on all that was agreed on before the call: the revision.
    ///
    /// # Errors
    /// With the reason, if the leader cannot be asked, or the node does not get so far, within `timeout`.
    pub async fn catch_up(&self, timeout: Duration) -> Result<u64, String> {
        self.inner.member.catch_up(timeout).await
    }

    /// Returns when this node knows all that was agreed on before the call, whether it acts on it or not.
    ///
    /// # Errors
    /// As [`ControlPlane::catch_up`].
    pub async fn learn(&self, timeout: Duration) -> Result<(), String> {
        self.inner.member.learn(timeout).await
    }

    /// Returns when every member in reach acts on `revision`, or after `timeout`: the members that do not.
    pub async fn spread(&self, revision: u64, timeout: Duration) -> Vec<NodeId> {
        self.inner.member.spread(revision, timeout).await
    }

    /// Answers a message of the Raft group that another node sent by its `Transport::raft`. Bad input of any kind gets
    /// an answer that says so.
    pub async fn handle_raft(&self, kind: RaftKind, payload: &[u8]) -> Vec<u8> {
        self.handle_raft_of(kind, payload, None).await
    }

    /// The same, of a node that has proven to be this store and boot.
    pub(super) async fn handle_raft_of(&self, kind: RaftKind, payload: &[u8], proven: Option<Incarnation>) -> Vec<u8> {
        let answer = self.inner.answer(kind, payload, proven).await;
        // An answer holds nothing that cannot be encoded; an empty one reads as malformed on the other side.
        postcard::to_stdvec(&answer).unwrap_or_default()
    }

    /// Answers the report of a node that sent it by its `Transport::join`.
    pub async fn handle_join(&self, request: JoinRequest) -> JoinReply {
        self.inner.leader.join(request).await
    }

    /// Answers a node that asked by its `Transport::identify`.
    #[must_use]
    pub fn handle_identify(&self, request: IdentifyRequest) -> IdentifyReply {
        self.inner.member.identify(request)
    }
}
