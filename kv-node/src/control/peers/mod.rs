//! Where the other nodes are, and messages to and from them.

mod contacts;
mod link;
pub(in crate::control) mod transport;

use kv_core::types::StoreId;

pub(in crate::control) use contacts::Peers;
pub use contacts::{Clock, SharedLiveness};
pub use link::Memory;
pub(in crate::control) use link::{CallError, Link};

/// Who takes part in the Raft group: the id of a store, not of a member. A member whose store is lost takes part under
/// a new id, so a store that has forgotten its votes and entries can never act for the one that gave them (rule D2).
pub(in crate::control) type RaftId = u64;

/// The id under which a store takes part.
pub(in crate::control) fn raft_id(store: StoreId) -> RaftId {
    store.0
}

/// The store that takes part under `id`.
pub(in crate::control) fn store_of(id: RaftId) -> StoreId {
    StoreId(id)
}
