//! The Raft group: the engine's types, its start, its log and state machine on disk, and its way to the other nodes.

mod group;
pub(in crate::control) mod log;
pub(in crate::control) mod machine;
mod network;

use std::io::Cursor;

pub(in crate::control) use group::{Group, GroupStart, leads};

use crate::control::peers::RaftId;
use crate::control::state::{Outcome, Proposal};

openraft::declare_raft_types!(
    /// The control plane's use of the Raft engine.
    pub(in crate::control) TypeConfig:
        D = Proposal,
        R = Outcome,
        NodeId = RaftId,
        Node = openraft::EmptyNode,
        Entry = openraft::Entry<TypeConfig>,
        SnapshotData = Cursor<Vec<u8>>,
        AsyncRuntime = openraft::TokioRuntime,
);

pub(in crate::control) type Raft = openraft::Raft<TypeConfig>;
pub(in crate::control) type Entry = openraft::Entry<TypeConfig>;
pub(in crate::control) type LogId = openraft::LogId<RaftId>;
pub(in crate::control) type Vote = openraft::Vote<RaftId>;
pub(in crate::control) type StorageError = openraft::StorageError<RaftId>;
pub(in crate::control) type StorageIoError = openraft::StorageIOError<RaftId>;
pub(in crate::control) type StoredMembership = openraft::StoredMembership<RaftId, openraft::EmptyNode>;
pub(in crate::control) type SnapshotMeta = openraft::SnapshotMeta<RaftId, openraft::EmptyNode>;
pub(in crate::control) type Snapshot = openraft::Snapshot<TypeConfig>;
pub(in crate::control) type Metrics = openraft::RaftMetrics<RaftId, openraft::EmptyNode>;
