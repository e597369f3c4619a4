//! The hot tier: decoded records in memory, bounded in bytes.

use std::mem::size_of;
use std::sync::Arc;

use quick_cache::Weighter;
use quick_cache::unsync::{Cache, DefaultLifecycle};

use super::{Footprint, StorageKey, Stored};
use crate::map::MapState;

/// Bytes that a record is expected to take, from which the cache derives how many evicted keys it remembers.
const RECORD_BYTES_EXPECTED: usize = 512;

/// The header of a shared allocation, and what an allocator adds to each on average.
const ALLOCATION: usize = 16 + 8;

/// What the cache itself keeps of a record: a slot of its slab (links, state, usage count), one of its hash table, and
/// its share of the remembered hashes of evicted records. Both tables grow by doubling: a quarter is free on average.
const SLOT: usize = (24 + 12 + 20) * 5 / 4;

/// How often the hot tier had what was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HotStats {
    /// Look-ups that found a record.
    pub hits: u64,
    /// Look-ups that found none.
    pub misses: u64,
    /// Records held.
    pub records: u64,
    /// Bytes that they take, keys and overhead included.
    pub bytes: u64,
}

impl HotStats {
    /// Those of two tiers together.
    pub(crate) fn sum(self, other: Self) -> Self {
        Self {
            hits: self.hits + other.hits,
            misses: self.misses + other.misses,
            records: self.records + other.records,
            bytes: self.bytes + other.bytes,
        }
    }
}

/// A record in memory, and what it adds to the statistics of the store: a write that replaces it must say so, and would
/// have to encode it once more to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hot {
    /// The record.
    pub stored: Arc<Stored>,
    /// Its footprint.
    pub footprint: Footprint,
}

/// Decoded records by storage key, least useful ones evicted first (S3-FIFO and Clock-PRO, as `quick_cache` has them).
///
/// It belongs to one loop, which fills it when a write is durable or a read is done, and so it never shows what a crash
/// could take back. It does not remember that a key is absent: a negative entry would have to be dropped by writes
/// that today only add an entry, to save look-ups that the engine's filters answer from memory.
pub struct HotTier {
    cache: Cache<StorageKey, Hot, Bytes, MapState, DefaultLifecycle<StorageKey, Hot>>,
    hits: u64,
    misses: u64,
}

impl HotTier {
    /// An empty tier that keeps at most `bytes_max` bytes. The seed decides no outcome that a client can see.
    #[must_use]
    pub fn new(bytes_max: usize, map_seed: u64) -> Self {
        let capacity = u64::try_from(bytes_max).unwrap_or(u64::MAX);
        let hasher = MapState::with_seed(map_seed);
        let expected = bytes_max / RECORD_BYTES_EXPECTED;
        let cache = Cache::with(expected, capacity, Bytes, hasher, DefaultLifecycle::default());
        Self { cache, hits: 0, misses: 0 }
    }

    /// The record at `key`, if the tier has it; `None` says nothing about the store.
    pub fn get(&mut self, key: &StorageKey) -> Option<Hot> {
        let found = self.cache.get(key).cloned();
        if found.is_some() {
            self.hits += 1;
        } else {
            self.misses += 1;
        }
        found
    }

    /// Keeps the record that the store now holds at `key`, in place of an earlier one. A record that is too large for
    /// the tier is not kept, nor is the earlier one.
    pub fn insert(&mut self, key: StorageKey, record: Hot) {
        self.cache.insert(key, record);
    }

    /// Forgets what the store no longer holds at `key`.
    pub fn remove(&mut self, key: &StorageKey) {
        self.cache.remove(key);
    }

    /// Counters since the tier was made, and its size now.
    #[must_use]
    pub fn stats(&self) -> HotStats {
        let records = u64::try_from(self.cache.len()).unwrap_or(u64::MAX);
        HotStats { hits: self.hits, misses: self.misses, records, bytes: self.cache.weight() }
    }
}

/// Weighs a record with all that it keeps in memory.
#[derive(Clone, Copy)]
struct Bytes;

impl Weighter<StorageKey, Hot> for Bytes {
    fn weight(&self, key: &StorageKey, hot: &Hot) -> u64 {
        let heap = hot.stored.cell.heap();
        let total = SLOT
            + size_of::<StorageKey>()
            + key.as_bytes().len()
            + size_of::<Hot>()
            + size_of::<Stored>()
            + heap.bytes
            // The key and the cell are allocations of their own.
            + (2 + heap.allocations) * ALLOCATION;
        u64::try_from(total).unwrap_or(u64::MAX)
    }
}

impl std::fmt::Debug for HotTier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HotTier").field("stats", &self.stats()).finish_non_exhaustive()
    }
}
