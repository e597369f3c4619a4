//! Names and values of the meta space: what a node must remember beside its records.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::StorageError;
use crate::types::{Epoch, NodeId, PartitionId, StoreId};

/// The layout on which the node acts.
pub(super) const LAYOUT: &[u8] = b"layout";
/// The list of keyspaces.
pub(super) const KEYSPACES: &[u8] = b"keyspace-list";
/// Bytes of dropped keyspaces that were removed and whose space the storage engine may still keep.
pub(super) const UNRECLAIMED: &[u8] = b"unreclaimed";
/// The store, if it was there when the cluster was formed: it has had its partitions from the start.
pub(super) const ORIGINAL: &[u8] = b"original";
/// Prefix of the highest incarnation seen of each peer.
pub(super) const PEER: &[u8] = b"peer/";
/// Prefix of the partitions that were refilled or copied to this store.
pub(super) const SYNCED: &[u8] = b"synced/";
/// Prefix of how far the copies of entered partitions are.
pub(super) const PROGRESS: &[u8] = b"progress/";
/// Prefix of the receipts of copies.
pub(super) const RECEIPT: &[u8] = b"receipt/";

/// Since which ownership, and on which store, a partition is complete.
pub(crate) type Synced = (StoreId, Epoch);

pub(super) fn peer(node: NodeId) -> Bytes {
    Bytes::from([PEER, &node.0.to_be_bytes()].concat())
}

pub(crate) fn keyspaces() -> Bytes {
    Bytes::from_static(KEYSPACES)
}

pub(crate) fn unreclaimed() -> Bytes {
    Bytes::from_static(UNRECLAIMED)
}

pub(crate) fn synced(partition: PartitionId) -> Bytes {
    of_partition(SYNCED, partition)
}

pub(crate) fn progress(partition: PartitionId) -> Bytes {
    of_partition(PROGRESS, partition)
}

pub(crate) fn receipt(partition: PartitionId) -> Bytes {
    of_partition(RECEIPT, partition)
}

fn of_partition(prefix: &[u8], partition: PartitionId) -> Bytes {
    Bytes::from([prefix, &partition.0.to_be_bytes()].concat())
}

/// The id at the end of a name.
pub(super) fn id<const N: usize>(name: &[u8], prefix: &[u8]) -> Option<[u8; N]> {
    name.strip_prefix(prefix)?.try_into().ok()
}

pub(crate) fn encode(value: &impl Serialize) -> Bytes {
    // Writing to a vector cannot fail, and the types hold nothing that postcard refuses.
    postcard::to_allocvec(value).map(Bytes::from).unwrap_or_default()
}

pub(super) fn decode<T: DeserializeOwned>(name: &[u8], value: &[u8]) -> Result<T, StorageError> {
    postcard::from_bytes(value).map_err(|error| StorageError::Corrupt {
        what: format!("the node's own entry {}", name.escape_ascii()),
        reason: error.to_string(),
    })
}
