//! The types that the Raft engine is used with.

use std::io::Cursor;

use kv_core::types::StoreId;

use super::command::{Outcome, Proposal};

openraft::declare_raft_types!(
    /// The control plane's use of the Raft engine.
    pub(crate) TypeConfig:
        D = Proposal,
        R = Outcome,
        NodeId = RaftId,
        Node = openraft::EmptyNode,
        Entry = openraft::Entry<TypeConfig>,
        SnapshotData = Cursor<Vec<u8>>,
        AsyncRuntime = openraft::TokioRuntime,
);

/// Who takes part in the Raft group: the id of a store, not of a member. A member whose store is lost takes part under
/// a new id, so a store that has forgotten its votes and entries can never act for the one that gave them (rule D2).
pub(crate) type RaftId = u64;

pub(crate) type Raft = openraft::Raft<TypeConfig>;
pub(crate) type Entry = openraft::Entry<TypeConfig>;
pub(crate) type LogId = openraft::LogId<RaftId>;
pub(crate) type Vote = openraft::Vote<RaftId>;
pub(crate) type StorageError = openraft::StorageError<RaftId>;
pub(crate) type StorageIoError = openraft::StorageIOError<RaftId>;
pub(crate) type StoredMembership = openraft::StoredMembership<RaftId, openraft::EmptyNode>;
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<RaftId, openraft::EmptyNode>;
pub(crate) type Snapshot = openraft::Snapshot<TypeConfig>;
pub(crate) type Metrics = openraft::RaftMetrics<RaftId, openraft::EmptyNode>;

/// The id under which a store takes part.
pub(crate) fn raft_id(store: StoreId) -> RaftId {
    store.0
}

/// The store that takes part under `id`.
pub(crate) fn store_of(id: RaftId) -> StoreId {
    StoreId(id)
}
