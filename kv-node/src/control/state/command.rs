//! What can be agreed on: commands, and what became of them.

use std::fmt;
use std::num::NonZeroU64;

use kv_core::config::{ClusterConfig, Mode};
use kv_core::recovery::Origin;
use kv_core::ring::Layout;
use kv_core::topology::{Plan, Receipt};
use kv_core::types::{Epoch, Incarnation, KeyspaceId, NodeId, PartitionId, StoreId, WallTime};
use serde::{Deserialize, Serialize};

use super::operation::{Asked, Estimate, OperationId};

/// The longest entry of the control plane's log, in bytes. It bounds proposals, too.
pub const ENTRY_BYTES_MAX: usize = 3 * 1024 * 1024;

/// The identity of one proposal, random. A proposal that is sent again under its id is applied once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CommandId(pub u128);

/// A command under its id: what the log of the control plane holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Proposal {
    /// Recognises a repeated proposal.
    pub id: CommandId,
    /// When it was proposed, by the clock of the node that took it; for the record, no decision depends on it.
    pub at: WallTime,
    /// What is proposed.
    pub command: Command,
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:032x})", self.command, self.id.0)
    }
}

/// A change of the agreed state. Everything that is random or depends on a clock is drawn by the proposer and is part
/// of the command, so that applying it is deterministic. The encoding numbers variants in order, so new ones go to the
/// end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// The first command of every cluster: what is to be formed, and its first member.
    Found {
        /// How the cluster will be cut.
        founding: Founding,
        /// Settings on which all nodes agree.
        config: ClusterConfig,
        /// The founding node.
        founder: NodeDescriptor,
    },
    /// A node reports: it becomes a member, or what is known of the member is brought up to date.
    Admit(NodeDescriptor),
    /// The cluster forms. The layout was computed by the proposer from the members that it saw; if another has come
    /// since, the command is refused as stale and proposed again.
    Form {
        /// The first layout. Its cluster id and hash seed become those of the cluster.
        layout: Layout,
    },
    /// Adds a keyspace.
    CreateKeyspace {
        /// Its name and settings.
        spec: KeyspaceSpec,
        /// Who wants it.
        asked: Asked,
    },
    /// Drops a keyspace and everything in it. Its number is never used again.
    DropKeyspace {
        /// Its name.
        name: String,
        /// Who wants it.
        asked: Asked,
    },
    /// Begins to carry a plan out, as an operation.
    Apply {
        /// Exactly what is to be done. It is refused as stale if the layout has changed since it was made.
        plan: Plan,
        /// How much it moves, as far as the proposer knows.
        estimate: Estimate,
        /// Who wants it.
        asked: Asked,
    },
    /// The next step of an operation: receipts, the cut-over of what has all of its own, and the next partitions.
    Advance {
        /// The operation.
        operation: OperationId,
        /// The layout that the proposer saw; another one has other migrating partitions.
        epoch: Epoch,
        /// What receivers have reported.
        receipts: Vec<Receipt>,
        /// When it was proposed.
        asked: Asked,
    },
    /// Copies and cuts over nothing new until the operation is resumed.
    Pause {
        /// The operation.
        operation: OperationId,
        /// Who wants it.
        asked: Asked,
    },
    /// Goes on with a paused operation.
    Resume {
        /// The operation.
        operation: OperationId,
        /// Who wants it.
        asked: Asked,
    },
    /// Limits the bytes per second that each receiving node copies, in every operation from now on.
    Throttle {
        /// The limit; `None` takes it away.
        bytes_per_second_max: Option<NonZeroU64>,
        /// Who wants it.
        asked: Asked,
    },
    /// Transfers that make no progress begin again.
    Retry {
        /// The operation.
        operation: OperationId,
        /// The transfers of these partitions; empty: all.
        partitions: Vec<PartitionId>,
        /// Who wants it.
        asked: Asked,
    },
    /// Ends an operation. What is not cut over goes back to its owners.
    Cancel {
        /// The operation.
        operation: OperationId,
        /// Who wants it.
        asked: Asked,
    },
    /// A node that was removed owns and holds nothing any more: it leaves the cluster, and its store for good.
    Dismiss {
        /// The node.
        node: NodeId,
        /// Its store.
        store: StoreId,
        /// The layout on which it acted when it said so.
        epoch: Epoch,
    },
    /// A node of an earlier generation comes to this one with what it holds.
    Rejoin {
        /// What it says of itself.
        descriptor: NodeDescriptor,
        /// Where it comes from.
        origin: Box<Origin>,
    },
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Found { founder, founding, .. } => {
                write!(f, "{} founds a cluster of {}", founder.name, founding.expect)
            }
            Self::Admit(descriptor) => write!(f, "{} reports from {}", descriptor.name, descriptor.address),
            Self::Form { layout } => write!(f, "form cluster {}", layout.cluster),
            Self::CreateKeyspace { spec, .. } => write!(f, "create keyspace {}", spec.name),
            Self::DropKeyspace { name, .. } => write!(f, "drop keyspace {name}"),
            Self::Apply { plan, .. } => write!(f, "carry out plan {}", plan.hash),
            Self::Advance { operation, receipts, .. } => {
                write!(f, "advance operation {operation} by {} receipts", receipts.len())
            }
            Self::Pause { operation, .. } => write!(f, "pause operation {operation}"),
            Self::Resume { operation, .. } => write!(f, "resume operation {operation}"),
            Self::Throttle { bytes_per_second_max: Some(limit), .. } => write!(f, "throttle to {limit} bytes/s"),
            Self::Throttle { bytes_per_second_max: None, .. } => f.write_str("throttle off"),
            Self::Retry { operation, partitions, .. } if partitions.is_empty() => {
                write!(f, "retry operation {operation}")
            }
            Self::Retry { operation, partitions, .. } => {
                write!(f, "retry {} partitions of operation {operation}", partitions.len())
            }
            Self::Cancel { operation, .. } => write!(f, "cancel operation {operation}"),
            Self::Dismiss { node, .. } => write!(f, "{node} leaves the cluster"),
            Self::Rejoin { descriptor, origin } => {
                let NodeDescriptor { name, address, .. } = descriptor;
                write!(f, "{name} comes from generation {} at {address}", origin.generation.number)
            }
        }
    }
}

/// What is decided once, when a cluster is founded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Founding {
    /// The members that the cluster waits for before it forms; at least 1.
    pub expect: u32,
    /// N, the number of copies wanted.
    pub copies: u8,
    /// Q, the number of partitions: a power of two.
    pub partitions: u32,
}

impl Default for Founding {
    fn default() -> Self {
        Self { expect: 1, copies: 3, partitions: 256 }
    }
}

/// What a node says of itself when it reports.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeDescriptor {
    /// The name that people use, unique in the cluster.
    pub name: String,
    /// Where it takes requests, as `host:port`.
    pub address: String,
    /// Its failure domain.
    pub zone: String,
    /// Its capacity relative to the other members.
    pub weight: f64,
    /// Its store and boot.
    pub incarnation: Incarnation,
    /// The release that it runs, for people.
    pub version: String,
    /// Stores that are lost. If the member of this name has one of them, the node takes its place (rule D2): it keeps the
    /// number and is refilled. Usually empty.
    pub replaces: Vec<StoreId>,
}

/// What a new keyspace is to be like.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyspaceSpec {
    /// Its name, unique in the cluster.
    pub name: String,
    /// What it promises.
    pub mode: Mode,
}

/// What became of a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It was carried out.
    Done(Done),
    /// It was agreed on and has no effect.
    Refused(Refusal),
}

impl Outcome {
    /// The result, with a refusal as the error.
    ///
    /// # Errors
    /// If the command was refused.
    pub fn into_result(self) -> Result<Done, Refusal> {
        match self {
            Self::Done(done) => Ok(done),
            Self::Refused(refusal) => Err(refusal),
        }
    }
}

/// What a command did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Done {
    /// An entry of the log without a command.
    Nothing,
    /// The cluster is being formed.
    Founded,
    /// The node is a member.
    Admitted {
        /// Its number.
        node: NodeId,
        /// Whether it must not own partitions (yet).
        spare: bool,
    },
    /// The cluster has its id, seed and first layout.
    Formed {
        /// The epoch of the first layout.
        epoch: Epoch,
    },
    /// The keyspace exists.
    KeyspaceCreated {
        /// Its number.
        id: KeyspaceId,
    },
    /// The keyspace is gone.
    KeyspaceDropped {
        /// The number that it had.
        id: KeyspaceId,
    },
    /// An operation has begun.
    Begun {
        /// Its number.
        operation: OperationId,
    },
    /// An operation has taken a step.
    Advanced {
        /// Its number.
        operation: OperationId,
        /// Whether the layout has changed.
        cut_over: bool,
    },
    /// An operation was paused or resumed.
    Changed {
        /// Its number.
        operation: OperationId,
    },
    /// The limit on copying is what was asked for.
    Throttled,
    /// An operation was cancelled; its record says what that undid.
    Cancelled {
        /// Its number.
        operation: OperationId,
    },
    /// A node has left the cluster.
    Dismissed {
        /// The number that it had.
        node: NodeId,
    },
    /// Transfers of an operation were told to begin again.
    Retried {
        /// Its number.
        operation: OperationId,
        /// The number of the retry.
        retry: u32,
    },
}

/// Why a command has no effect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct Refusal {
    /// For programs.
    pub kind: RefusalKind,
    /// For people: the problem, the limit and the remedy.
    pub message: String,
}

impl Refusal {
    pub(in crate::control) fn new(kind: RefusalKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

/// What sort of refusal it is. Each has one status code on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum RefusalKind {
    /// The command is wrong and will never succeed as it is.
    Invalid,
    /// It names something that does not exist.
    NotFound,
    /// The name is taken by something else.
    Exists,
    /// The state of the cluster does not allow it.
    Precondition,
    /// It was made for a state that has changed since: look again and repeat.
    Stale,
    /// A bound was reached.
    Exhausted,
    /// The node shows an older copy of its store than it has shown before: it must draw a new store id (rule D2).
    RolledBack,
    /// The store was given up: its member was removed, or another store took its place. It can never come back.
    Removed,
    /// The node obeys the control plane of an earlier generation of the cluster: it must be brought to this one.
    Superseded,
    /// The node belongs to another control plane: of another cluster, or of another generation of this one.
    Foreign,
}
