//! How messages of the control plane travel, and what they hold.

mod grpc;
pub(in crate::control) mod wire;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use kv_core::boots::Boots;
use kv_core::config::ClusterConfig;
use kv_core::types::{ClusterId, Generation, Incarnation, NodeId, Point};
use serde::{Deserialize, Serialize};

use crate::control::peers::RaftId;
use crate::control::state::{CommandId, ENTRY_BYTES_MAX, NodeDescriptor, Origin, Outcome, Refusal};

pub use grpc::GrpcTransport;

/// The longest message, in bytes: an entry with what surrounds it, or a piece of a snapshot.
pub const MESSAGE_BYTES_MAX: usize = ENTRY_BYTES_MAX + 64 * 1024;

/// What is sent, boxed because the transport is chosen at run time.
pub type Call<'a, T> = Pin<Box<dyn Future<Output = Result<T, TransportError>> + Send + 'a>>;

/// Carries messages between nodes: in one process in tests, by the `Peer` service in production. An implementation
/// gives up after `timeout` and keeps no more than a bounded number of calls; it may lose, delay or repeat messages.
pub trait Transport: Send + Sync + 'static {
    /// Sends one message of the Raft group to `address` and returns the answer, which `ControlPlane::handle_raft` of
    /// that node gave.
    fn raft<'a>(&'a self, address: &'a str, kind: RaftKind, payload: Vec<u8>, timeout: Duration) -> Call<'a, Vec<u8>>;

    /// Reports to the node at `address`, whose `ControlPlane::handle_join` answers.
    fn join<'a>(&'a self, address: &'a str, request: JoinRequest, timeout: Duration) -> Call<'a, JoinReply>;

    /// Asks the node at `address` who it is; its `ControlPlane::handle_identify` answers.
    fn identify<'a>(&'a self, address: &'a str, request: IdentifyRequest, timeout: Duration)
    -> Call<'a, IdentifyReply>;
}

/// Why no answer came.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{address} does not answer: {reason}")]
pub struct TransportError {
    /// Where the message was sent.
    pub address: String,
    /// What happened.
    pub reason: String,
    /// Whether the message may have arrived, and only the answer is missing.
    pub may_have_arrived: bool,
    /// Whether the two nodes do not talk: one of them does not know the cluster's secret.
    pub refused: bool,
}

/// What a message of the Raft group asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum RaftKind {
    /// Append entries, or a heartbeat.
    Append,
    /// A vote.
    Vote,
    /// A piece of a snapshot.
    Snapshot,
    /// A proposal, for the leader to commit.
    Propose,
    /// What a node reports to the leader about its part in an operation.
    Report,
    /// Which state is the newest, or whether a node acts on one.
    CatchUp,
}

/// A node reports to a cluster, to become a member of it or to say that it is back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The version of the messages.
    pub protocol: u32,
    /// Recognises a repeated request.
    pub id: CommandId,
    /// The Raft group that the node belongs to; `None` before it has joined one.
    pub group: Option<GroupId>,
    /// The settings that the node was started with; they must be the cluster's.
    pub config: ClusterConfig,
    /// What the node says of itself.
    pub descriptor: NodeDescriptor,
    /// The boots of its store.
    pub boots: Boots,
    /// Where it comes from, if an operator has prepared it to come to this generation of its cluster with what it holds.
    pub origin: Option<Box<Origin>>,
}

/// What became of a report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum JoinReply {
    /// The node is a member.
    Admitted {
        /// The group to take part in.
        group: GroupId,
        /// The node's number.
        node: NodeId,
        /// Whether it must not own partitions (yet).
        spare: bool,
        /// The cluster's identity; `None` while it is forming.
        cluster: Option<ClusterId>,
    },
    /// The node cannot be a member as it is: asking again does not help.
    Refused(Refusal),
    /// Not now, or not here: ask the leader, or again later.
    Later {
        /// For people.
        reason: String,
        /// Where the leader is, if it is known.
        leader: Option<String>,
    },
}

/// One run of one store, and where it takes requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeAddress {
    /// The store and its boot.
    pub incarnation: Incarnation,
    /// Where it takes requests, as `host:port`.
    pub address: String,
}

/// A node asks another one who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentifyRequest {
    /// The version of the messages.
    pub protocol: u32,
    /// The group of the node that asks.
    pub group: GroupId,
    /// Who asks.
    pub sender: NodeAddress,
}

/// Who a node is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentifyReply {
    /// Its group; `None` before it has joined one.
    pub group: Option<GroupId>,
    /// The identity of its cluster; `None` while it is forming.
    pub cluster: Option<ClusterId>,
    /// Its store and boot, and where it says that others reach it.
    pub me: NodeAddress,
    /// Where it knows members to be.
    pub known: Vec<NodeAddress>,
}

/// The identity of a Raft group: the id of the store that founded it. Messages carry it, so that a wrong address never
/// makes a node vote in another cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct GroupId(pub u64);

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// What surrounds every message of the Raft group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::control) struct Envelope {
    pub(in crate::control) group: GroupId,
    /// The sender's store and boot.
    pub(in crate::control) from: Incarnation,
    /// Where the sender takes requests.
    pub(in crate::control) address: String,
    /// Who is meant; another node refuses.
    pub(in crate::control) to: RaftId,
    pub(in crate::control) body: Vec<u8>,
}

/// What surrounds every answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::control) enum Answer {
    /// The message was for this node.
    Accepted {
        /// Its store and boot.
        from: Incarnation,
        body: Vec<u8>,
    },
    /// The message was for another group, another node, or none.
    NotMine(String),
    /// The sender runs an older copy of its store than it has shown.
    RolledBack { seen: Point },
    /// The node cannot answer.
    Failed(String),
    /// The sender's store was given up: it was removed, or another one took its place.
    GivenUp,
    /// The sender obeys the control plane of an earlier generation of the cluster: the receiver's.
    Superseded { generation: Generation },
}

/// The leader's answer to a proposal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::control) enum ProposeReply {
    /// It is committed.
    Committed(Outcome),
    /// The node does not lead; nothing was done.
    NotLeader,
    /// Too many proposals wait already; nothing was done.
    Overloaded,
    /// The proposal may or may not be committed later.
    Unknown(String),
}

/// The answer to a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::control) enum ReportReply {
    /// It is kept.
    Taken,
    /// The node does not lead; report to the leader.
    NotLeader,
}

/// What a node wants to know of the agreed state at another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::control) enum CatchUpRequest {
    /// The revision of the newest state, of the leader.
    Newest,
    /// Whether the node acts on this revision; it answers when it does, or when it has waited so long.
    ActsOn { revision: u64, timeout: Duration },
    /// What the node remembers of the sender, whose store has these boots. One that has seen more answers that the sender runs an
    /// older copy.
    Recall { boots: Boots },
}

/// The answer to such a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::control) enum CatchUpReply {
    /// This revision is the newest, confirmed by a majority.
    Newest(u64),
    /// The node does not lead, or no majority confirms that it does.
    NotLeader,
    /// Whether the node acts on the revision.
    ActsOn(bool),
    /// The node has seen no more of the sender than it has. `matched`: the last entry of the log that a node which leads knows
    /// the sender to have.
    Recalled { matched: Option<u64> },
}

/// The answer to a piece of a snapshot.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::control) enum SnapshotReply {
    Installed(openraft::raft::InstallSnapshotResponse<RaftId>),
    /// The pieces do not follow each other: begin again.
    Mismatch(openraft::error::SnapshotMismatch),
}
