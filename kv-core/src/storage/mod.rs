//! Engines: what keeps records on a medium, behind one contract.
//!
//! # The contract
//!
//! A store is a sorted map from storage keys to bytes, and the statistics of what it holds. An engine has two halves:
//! a [`Reader`], which any thread may clone and use, and a [`Committer`], which one thread uses.
//!
//! * **Order.** Batches are committed in the order in which they are given, each whole or not at all.
//! * **Durable when.** When `commit` returns `Ok`, every batch given to it survives a crash of the process, of the
//!   operating system and a loss of power, provided that the device keeps what it confirmed. Before that, a batch may
//!   already be visible to readers. The core holds every answer until the batch that it depends on is durable.
//! * **A crash** loses a suffix of the batches that were given but not confirmed: if a batch survives, so do those before
//!   it. Nothing that was confirmed changes. (The simulator's disk is harsher: it loses any subset.)
//! * **Failure.** After an `Err` from `commit` the store is *poisoned*: nobody knows what reached the disk, so the node
//!   stops serving and is started again, which reads the truth back.
//! * **Damage.** Each record has a format byte, which names the kind of its cell, and a checksum. A read of a damaged record is an error that names it;
//!   it is never answered with absence, and the other records stay readable.
//! * **Statistics.** Each record write says what it replaces and what it leaves ([`Footprint`]). The store keeps exact
//!   counts and Merkle leaves ([`Stats`]) from these, atomically with the writes, through any crash that keeps the
//!   promise above. A damaged record counts nothing once a write with `damaged` has had its partition counted again. A
//!   disk that loses a batch and keeps a later one must count all of it again ([`recount`]).

mod aside;
mod codec;
mod disk;
mod hot;
mod key;
mod memory;
mod seal;
mod stats;

use bytes::Bytes;

pub(crate) use aside::ASIDE_BYTES_MAX;
pub use aside::{ASIDE, SetAside};
pub use codec::{FORMAT_AVAILABLE, FORMAT_CONSISTENT, Stored, StoredError};
pub use disk::{DiskCommitter, DiskConfig, DiskMetrics, DiskReader, DiskStore, OpenIds, StoreLock};
pub use hot::{Hot, HotStats, HotTier};
pub use key::{Space, StorageKey};
pub use memory::{MemoryCommitter, MemoryImage, MemoryReader, MemoryStore};
pub use stats::{Footprint, LEAVES, Leaf, PartitionStats, Recount, Stats, Tally, leaf_of, recount};

use crate::boots::Boots;
use crate::error::StorageError;
use crate::types::{ClusterId, HashSeed, Incarnation, Seq};

/// The name of the entry of the meta space that an engine writes when it renews a store: the ids that the store had before, the
/// last one last. What it holds from then is an old copy (rule D2).
pub const FORMER: &[u8] = b"former";

/// The most such ids that are kept.
pub const FORMER_MAX: usize = 16;

/// One change of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Puts (or removes, with `None`) the encoded record at a key of the record, hint or space of missed-write markers.
    Record {
        /// Where.
        key: StorageKey,
        /// The encoded record.
        value: Option<Bytes>,
        /// What the record at this key weighed before the batch; `None` if there was none.
        before: Option<Footprint>,
        /// What it weighs now; `None` exactly if `value` is.
        after: Option<Footprint>,
        /// The store holds something unreadable at this key, so `before` is unknown: the statistics of its partition
        /// are counted again.
        damaged: bool,
    },
    /// Puts or removes a small named value of the node itself: its layout, its peers' identities, its synced partitions.
    Meta {
        /// The name, unique in the meta space.
        name: Bytes,
        /// The value.
        value: Option<Bytes>,
    },
}

/// Writes that become durable together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The writes, in order; at most one for each key.
    pub writes: Vec<Write>,
}

/// Where a scan slice starts and when it ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceRequest {
    /// First key, included.
    pub from: StorageKey,
    /// End of the range, excluded.
    pub until: StorageKey,
    /// The most entries to return; 0 counts as 1.
    pub entries_max: usize,
    /// The slice ends after the entry that reaches this many bytes of keys and values.
    pub bytes_max: usize,
}

/// A bounded piece of a range, read from one snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slice {
    /// The entries, ascending.
    pub entries: Vec<(StorageKey, Bytes)>,
    /// Whether the range may hold more entries behind the last one.
    pub more: bool,
}

impl Slice {
    /// Whether the slice has all that the request allows; `bytes` is what its keys and values take. A slice never ends
    /// before its first entry, so that a reader always makes progress.
    fn is_full(&self, request: &SliceRequest, bytes: usize) -> bool {
        !self.entries.is_empty() && (self.entries.len() >= request.entries_max || bytes >= request.bytes_max)
    }
}

/// The reading half of an engine.
pub trait Reader: Clone + Send + 'static {
    /// The encoded record at `key`.
    ///
    /// # Errors
    /// If the medium fails.
    fn get(&self, key: &StorageKey) -> Result<Option<Bytes>, StorageError>;

    /// A slice of a range, from one snapshot.
    ///
    /// # Errors
    /// If the medium fails.
    fn slice(&self, request: &SliceRequest) -> Result<Slice, StorageError>;

    /// The value of a name in the meta space.
    ///
    /// # Errors
    /// If the medium fails.
    fn meta(&self, name: &[u8]) -> Result<Option<Bytes>, StorageError>;

    /// All names and values in the meta space that start with `prefix`, ascending.
    ///
    /// # Errors
    /// If the medium fails.
    fn metas(&self, prefix: &[u8]) -> Result<Vec<(Bytes, Bytes)>, StorageError>;

    /// Whether the medium is so far behind with its own work that commits will have to wait for it if many more bytes come.
    fn is_behind(&self) -> bool {
        false
    }

    /// Does what the medium is behind with, unless somebody does it already. It may take long.
    ///
    /// # Errors
    /// If the medium fails.
    fn catch_up(&self) -> Result<(), StorageError> {
        Ok(())
    }

    /// Gives the space of deleted records back to the device, where the medium would keep it until later writes push it
    /// out; `deleted` is how many bytes these were. It may take long; the other readers and the committer go on meanwhile.
    ///
    /// # Errors
    /// If the medium fails.
    fn reclaim(&self, deleted: u64) -> Result<(), StorageError> {
        let _ = deleted;
        Ok(())
    }
}

/// The writing half of an engine.
pub trait Committer: Send + 'static {
    /// Makes this boot durable: the store is about to serve. Until then nothing of it is changed. The first commit does it
    /// as well; a second call does nothing.
    ///
    /// # Errors
    /// If the medium fails. The store must not be used then.
    fn begin(&mut self) -> Result<(), StorageError> {
        Ok(())
    }

    /// Commits the batches in order and makes them durable. `through` is the sequence number of the last one.
    ///
    /// # Errors
    /// If anything could not be made durable. The store is then poisoned, and every later call fails.
    fn commit(&mut self, batches: &[Batch], through: Seq) -> Result<(), StorageError>;

    /// Makes the store, durably, one of this cluster; does nothing if it already is.
    ///
    /// # Errors
    /// If it belongs to another cluster, or the cluster to another seed, or the medium fails.
    fn bind(&mut self, cluster: ClusterId, seed: HashSeed) -> Result<(), StorageError>;

    /// The statistics as of the last commit.
    fn stats(&self) -> &Stats;
}

/// What an engine learns when it opens a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// This run of the store. It counts once [`Committer::begin`] has made it durable.
    pub incarnation: Incarnation,
    /// The boots of the store, this one last.
    pub boots: Boots,
    /// The cluster that the store belongs to, once it has joined one, with the hash seed of the cluster's ring.
    pub cluster: Option<(ClusterId, HashSeed)>,
}
