//! Names and values of the meta space: what a node must remember beside its records. Those that bear a partition are written
//! by the loop that serves it, all others by the hub: no entry has two writers.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::StorageError;
use crate::kernel::Place;
use crate::storage::Reader;
use crate::types::{Epoch, NodeId, PartitionId, StoreId};
use crate::version::Hlc;

/// The layout on which the node acts.
pub(crate) const LAYOUT: &[u8] = b"layout";
/// The list of keyspaces.
pub(crate) const KEYSPACES: &[u8] = b"keyspace-list";
/// Prefix of bytes of dropped keyspaces that were removed of a partition and whose space the storage engine may still keep.
pub(crate) const UNRECLAIMED: &[u8] = b"unreclaimed/";
/// The store, if it was there when the cluster was formed: it has had its partitions from the start.
pub(crate) const ORIGINAL: &[u8] = b"original";
/// The store, if an operator has decided that it enters another generation of its cluster with what it holds, whether anybody is left
/// to refill it or not.
pub(crate) const ENTERED: &[u8] = b"entered-generation";
/// Prefix of the highest incarnation seen of each peer.
pub(crate) const PEER: &[u8] = b"peer/";
/// Prefix of the partitions that were refilled or copied to this store.
pub(crate) const SYNCED: &[u8] = b"synced/";
/// Prefix of how far the copies of entered partitions are.
pub(crate) const PROGRESS: &[u8] = b"progress/";
/// Prefix of the watermarks below which everything in a partition has settled (rule A6).
pub(crate) const SETTLED: &[u8] = b"settled/";
/// Prefix of what is promised for every register of a partition of which nothing is held (rule C7).
pub(crate) const FLOOR: &[u8] = b"floor/";
/// Prefix of what each loop has confirmed that it will write above. The number behind it is that of the loop, which serves the
/// partition of this number; what another number of loops has left is an older promise of the same node.
pub(crate) const CONFIRMED: &[u8] = b"confirmed/";
/// Prefix of the receipts of copies.
pub(crate) const RECEIPT: &[u8] = b"receipt/";

/// Up to when a partition has settled, and since which ownership: a copy that was made anew has a watermark of its own.
pub(crate) type Settled = (Hlc, Epoch);

/// In place of the ownership of a watermark: the store has brought it along into another generation of its cluster, with all that it
/// held then, and it belongs to the ownership under which the layout lists the store there.
pub(crate) const CARRIED: Epoch = Epoch(0);

/// Since which ownership, and on which store, a partition is complete.
pub(crate) type Synced = (StoreId, Epoch);

pub(crate) fn peer(node: NodeId) -> Bytes {
    Bytes::from([PEER, &node.0.to_be_bytes()].concat())
}

pub(crate) fn keyspaces() -> Bytes {
    Bytes::from_static(KEYSPACES)
}

pub(crate) fn unreclaimed(partition: PartitionId) -> Bytes {
    of_partition(UNRECLAIMED, partition)
}

pub(crate) fn synced(partition: PartitionId) -> Bytes {
    of_partition(SYNCED, partition)
}

pub(crate) fn progress(partition: PartitionId) -> Bytes {
    of_partition(PROGRESS, partition)
}

pub(crate) fn settled(partition: PartitionId) -> Bytes {
    of_partition(SETTLED, partition)
}

pub(crate) fn floor(partition: PartitionId) -> Bytes {
    of_partition(FLOOR, partition)
}

pub(crate) fn confirmed(index: u16) -> Bytes {
    of_partition(CONFIRMED, PartitionId(index))
}

pub(crate) fn receipt(partition: PartitionId) -> Bytes {
    of_partition(RECEIPT, partition)
}

fn of_partition(prefix: &[u8], partition: PartitionId) -> Bytes {
    Bytes::from([prefix, &partition.0.to_be_bytes()].concat())
}

/// An entry of the node's own.
///
/// # Errors
/// If it cannot be read.
pub(crate) fn read<T: DeserializeOwned>(reader: &impl Reader, name: &[u8]) -> Result<Option<T>, StorageError> {
    reader.meta(name)?.map(|value| decode(name, &value)).transpose()
}

/// All entries of the node's own that begin with a prefix, by the number behind it.
///
/// # Errors
/// If one cannot be read.
pub(crate) fn read_all<K: Ord, T: DeserializeOwned, const N: usize>(
    reader: &impl Reader,
    prefix: &[u8],
    key: impl Fn([u8; N]) -> K,
) -> Result<BTreeMap<K, T>, StorageError> {
    let mut entries = BTreeMap::new();
    for (name, value) in reader.metas(prefix)? {
        if let Some(id) = id(&name, prefix) {
            entries.insert(key(id), decode(&name, &value)?);
        }
    }
    Ok(entries)
}

/// All entries of one kind, of the partitions of one loop.
///
/// # Errors
/// If one cannot be read.
pub(crate) fn read_partitions<T: DeserializeOwned>(
    reader: &impl Reader,
    prefix: &[u8],
    place: Place,
) -> Result<BTreeMap<PartitionId, T>, StorageError> {
    let mut entries = read_all(reader, prefix, |id| PartitionId(u16::from_be_bytes(id)))?;
    entries.retain(|&partition, _| place.serves(partition));
    Ok(entries)
}

/// The number at the end of a name.
fn id<const N: usize>(name: &[u8], prefix: &[u8]) -> Option<[u8; N]> {
    name.strip_prefix(prefix)?.try_into().ok()
}

pub(crate) fn encode(value: &impl Serialize) -> Bytes {
    // Writing to a vector cannot fail, and the types hold nothing that postcard refuses.
    postcard::to_allocvec(value).map(Bytes::from).unwrap_or_default()
}

fn decode<T: DeserializeOwned>(name: &[u8], value: &[u8]) -> Result<T, StorageError> {
    postcard::from_bytes(value).map_err(|error| StorageError::Corrupt {
        what: format!("the node's own entry {}", name.escape_ascii()),
        reason: error.to_string(),
    })
}
