//! Exact counts and Merkle leaves, kept from the footprints of committed writes, so that neither needs a scan.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_64, xxh3_64_with_seed};

use super::{Batch, Reader, SliceRequest, Space, StorageKey, Stored, StoredError, Write};
use crate::error::StorageError;
use crate::types::{KeyspaceId, PartitionId};

/// Merkle leaves of a partition.
pub const LEAVES: usize = 256;

/// Seeds the hash that gives a key its leaf. Fixed, and not the ring's: all nodes must agree on leaves, a store keeps
/// leaves before it has joined a cluster and learnt the ring's seed, and a partition's keys share the top bits of their
/// tokens, how many depends on the number of partitions.
const LEAF_SEED: u64 = 0x6b76_6c65_6166;

/// What one stored entry adds to the statistics of its partition and keyspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// Whether the record holds a value (expired or not): it counts as a key.
    pub live: bool,
    /// Bytes of the user's key and of the encoded record.
    pub bytes: u32,
    /// The hash of (keyspace, key, digest of the record) that is added to the Merkle leaf of the key.
    pub hash: u64,
    /// Whether replicas are equal without it: it is in no leaf.
    pub blank: bool,
}

impl Footprint {
    /// The footprint of a cell in the owned or hint space. Equal on every replica that holds an equal cell,
    /// except for `bytes`: the encoding also keeps what is local.
    #[must_use]
    pub fn of_cell(key: &StorageKey, live: bool, encoded_len: usize, digest: u64) -> Self {
        let mut both = [0; 16];
        both[..8].copy_from_slice(&key_hash(key).to_le_bytes());
        both[8..].copy_from_slice(&digest.to_le_bytes());
        Self { live, bytes: bytes_of(key, encoded_len), hash: xxh3_64(&both), blank: false }
    }

    /// The footprint of a cell that adds nothing to its leaf, since replicas are equal without it.
    #[must_use]
    pub fn of_blank(key: &StorageKey, encoded_len: usize) -> Self {
        Self { live: false, bytes: bytes_of(key, encoded_len), hash: 0, blank: true }
    }

    /// The footprint of an entry in the space of missed-write markers, whatever its value: it counts as a key. Missed-write markers have no leaves.
    #[must_use]
    pub fn of_mark(key: &StorageKey, encoded_len: usize) -> Self {
        Self { live: true, bytes: bytes_of(key, encoded_len), hash: 0, blank: false }
    }

    /// The footprint of the entry that a store holds at `key`.
    ///
    /// # Errors
    /// If the entry is a damaged record.
    pub fn of_entry(key: &StorageKey, encoded: &[u8]) -> Result<Self, StoredError> {
        match key.space() {
            Space::Owned | Space::Hint => Ok(Stored::decode(encoded)?.footprint(key, encoded.len())),
            Space::Missed => Ok(Self::of_mark(key, encoded.len())),
        }
    }
}

fn bytes_of(key: &StorageKey, encoded_len: usize) -> u32 {
    u32::try_from(key.key().len() + encoded_len).unwrap_or(u32::MAX)
}

fn key_hash(key: &StorageKey) -> u64 {
    xxh3_64_with_seed(key.key(), LEAF_SEED.wrapping_add(u64::from(key.keyspace().0)))
}

/// The Merkle leaf of a key: 8 bits of a hash of keyspace and key, the same on every node of every cluster.
#[must_use]
pub fn leaf_of(key: &StorageKey) -> u8 {
    key_hash(key).to_be_bytes()[0]
}

/// What is stored of one keyspace in one partition and space, or in a sum of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Live keys: records that hold a value, expired or not.
    pub keys: u64,
    /// Bytes of the user's keys and of the encoded records, tombstones included.
    pub bytes: u64,
    /// Records, tombstones included.
    pub records: u64,
}

impl Tally {
    fn add(&mut self, change: &Change) {
        self.keys = signed(self.keys, i64::from(change.keys));
        self.bytes = signed(self.bytes, change.bytes);
        self.records = signed(self.records, change.records());
    }

    fn difference(mut self, other: &Self) -> Self {
        self.keys = self.keys.wrapping_sub(other.keys);
        self.bytes = self.bytes.wrapping_sub(other.bytes);
        self.records = self.records.wrapping_sub(other.records);
        self
    }

    pub(crate) fn sum(mut self, other: &Self) -> Self {
        self.keys += other.keys;
        self.bytes += other.bytes;
        self.records += other.records;
        self
    }
}

/// A count never falls below zero unless a writer misstates what it replaces. It wraps then, so that the change that
/// makes up for it makes the count right again.
fn signed(count: u64, change: i64) -> u64 {
    debug_assert!(count.checked_add_signed(change).is_some(), "{count} entries or bytes cannot change by {change}");
    count.wrapping_add_signed(change)
}

/// One leaf of a partition's Merkle tree: equal on two replicas when they hold equal records of its keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaf {
    /// Records, tombstones included, and blank ones left out.
    pub count: u64,
    /// The wrapping sum of the records' hashes: independent of order, and a record can be taken out again.
    #[serde(with = "postcard::fixint::le")]
    pub hash: u64,
}

/// What one write changes. Changes add up in any order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Change {
    pub(crate) space: u8,
    pub(crate) partition: PartitionId,
    keyspace: KeyspaceId,
    leaf: u8,
    keys: i8,
    /// By how much the numbers of records, and of those in the leaf, change: in balanced ternary, the first in the lower digit, and what the
    /// second one differs by in the higher one. A number below that is what was written when every record was in its leaf.
    counts: i8,
    bytes: i64,
    #[serde(with = "postcard::fixint::le")]
    hash: u64,
}

impl Change {
    /// The change that a write makes; `None` if it makes none.
    pub(crate) fn of(write: &Write) -> Option<Self> {
        let Write::Record { key, before, after, value, .. } = write else { return None };
        debug_assert_eq!(value.is_some(), after.is_some(), "{key}: a value has a footprint, a removal has none");
        (before != after).then(|| Self::between(key, *before, *after))
    }

    fn between(key: &StorageKey, before: Option<Footprint>, after: Option<Footprint>) -> Self {
        let keys = |side: Option<Footprint>| i8::from(side.is_some_and(|it| it.live));
        let bytes = |side: Option<Footprint>| side.map_or(0, |it| i64::from(it.bytes));
        let hash = |side: Option<Footprint>| side.map_or(0, |it| it.hash);
        let in_leaf = |side: Option<Footprint>| i8::from(side.is_some_and(|it| !it.blank));
        let records = i8::from(after.is_some()) - i8::from(before.is_some());
        Self {
            space: key.space() as u8,
            partition: key.partition(),
            keyspace: key.keyspace(),
            leaf: leaf_of(key),
            keys: keys(after) - keys(before),
            counts: records + 3 * (in_leaf(after) - in_leaf(before) - records),
            bytes: bytes(after) - bytes(before),
            hash: hash(after).wrapping_sub(hash(before)),
        }
    }

    fn records(&self) -> i64 {
        i64::from(self.counts + 4).rem_euclid(3) - 1
    }

    fn in_leaf(&self) -> i64 {
        self.records() + (i64::from(self.counts) - self.records()) / 3
    }
}

/// The statistics of one partition.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "PartitionForm")]
pub struct PartitionStats {
    /// No empty tallies, so that equal stores have equal statistics.
    tallies: BTreeMap<(Space, KeyspaceId), Tally>,
    /// The leaves of the owned space; there are none while all of them are empty.
    leaves: Option<Box<[Leaf; LEAVES]>>,
}

static LEAVES_EMPTY: [Leaf; LEAVES] = [Leaf { count: 0, hash: 0 }; LEAVES];

impl PartitionStats {
    /// The tally of one keyspace.
    #[must_use]
    pub fn tally(&self, space: Space, keyspace: KeyspaceId) -> Tally {
        self.tallies.get(&(space, keyspace)).copied().unwrap_or_default()
    }

    /// The keyspaces that have entries in `space`, ascending, with their tallies.
    pub fn tallies(&self, space: Space) -> impl Iterator<Item = (KeyspaceId, Tally)> + '_ {
        let range = (space, KeyspaceId(0))..=(space, KeyspaceId(u32::MAX));
        self.tallies.range(range).map(|(&(_, keyspace), tally)| (keyspace, *tally))
    }

    /// The sum over all keyspaces.
    #[must_use]
    pub fn total(&self, space: Space) -> Tally {
        self.tallies(space).fold(Tally::default(), |sum, (_, tally)| sum.sum(&tally))
    }

    /// The leaves of the Merkle tree over the owned space.
    #[must_use]
    pub fn leaves(&self) -> &[Leaf; LEAVES] {
        self.leaves.as_deref().unwrap_or(&LEAVES_EMPTY)
    }

    /// The root of the Merkle tree: equal on two replicas when all leaves are. 0 for no records but blank ones.
    #[must_use]
    pub fn root(&self) -> u64 {
        let Some(leaves) = &self.leaves else { return 0 };
        let mut hasher = Xxh3::new();
        for leaf in leaves.iter() {
            hasher.update(&leaf.count.to_le_bytes());
            hasher.update(&leaf.hash.to_le_bytes());
        }
        hasher.digest()
    }

    fn is_empty(&self) -> bool {
        self.tallies.is_empty()
    }

    fn add(&mut self, change: &Change) {
        let Some(space) = Space::from_byte(change.space) else { return };
        if space == Space::Owned && (change.in_leaf(), change.hash) != (0, 0) {
            let leaves = self.leaves.get_or_insert_with(|| Box::new(LEAVES_EMPTY));
            let leaf = &mut leaves[usize::from(change.leaf)];
            leaf.count = signed(leaf.count, change.in_leaf());
            leaf.hash = leaf.hash.wrapping_add(change.hash);
            if *leaf == Leaf::default() && **leaves == LEAVES_EMPTY {
                self.leaves = None;
            }
        }
        let tally = self.tallies.entry((space, change.keyspace)).or_default();
        tally.add(change);
        if *tally == Tally::default() {
            self.tallies.remove(&(space, change.keyspace));
        }
    }
}

/// How the statistics of a partition lie on the medium: leaves without records are left out.
#[derive(Serialize, Deserialize)]
struct PartitionForm {
    tallies: Vec<(u8, KeyspaceId, Tally)>,
    leaves: Vec<(u8, Leaf)>,
}

impl From<PartitionForm> for PartitionStats {
    fn from(form: PartitionForm) -> Self {
        let mut stats = Self::default();
        for (space, keyspace, tally) in form.tallies {
            if let Some(space) = Space::from_byte(space) {
                stats.tallies.insert((space, keyspace), tally);
            }
        }
        if !form.leaves.is_empty() {
            let mut leaves = Box::new(LEAVES_EMPTY);
            for (place, leaf) in form.leaves {
                leaves[usize::from(place)] = leaf;
            }
            stats.leaves = Some(leaves);
        }
        stats
    }
}

impl Serialize for PartitionStats {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let leaves = (0..=u8::MAX).zip(self.leaves().iter().copied()).filter(|(_, leaf)| *leaf != Leaf::default());
        let tallies = self.tallies.iter().map(|(&(space, keyspace), tally)| (space as u8, keyspace, *tally));
        PartitionForm { tallies: tallies.collect(), leaves: leaves.collect() }.serialize(serializer)
    }
}

/// The statistics of a store, as of its last commit. They take 4 KiB for each partition that has owned records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// No empty partitions, so that equal stores have equal statistics.
    partitions: BTreeMap<PartitionId, PartitionStats>,
    /// The sums over all partitions, by space; kept so that bounds can be checked at every write.
    totals: [Tally; Space::ALL.len()],
}

impl Stats {
    /// The statistics of an empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The statistics of one partition; `None` if it has no entries.
    #[must_use]
    pub fn partition(&self, partition: PartitionId) -> Option<&PartitionStats> {
        self.partitions.get(&partition)
    }

    /// The partitions that have entries, ascending.
    pub fn partitions(&self) -> impl Iterator<Item = (PartitionId, &PartitionStats)> {
        self.partitions.iter().map(|(&partition, stats)| (partition, stats))
    }

    /// The tally of one keyspace in one partition.
    #[must_use]
    pub fn tally(&self, space: Space, partition: PartitionId, keyspace: KeyspaceId) -> Tally {
        self.partition(partition).map_or_else(Tally::default, |stats| stats.tally(space, keyspace))
    }

    /// The root of a partition's Merkle tree: 0 if it has no owned records but blank ones.
    #[must_use]
    pub fn root(&self, partition: PartitionId) -> u64 {
        self.partition(partition).map_or(0, PartitionStats::root)
    }

    /// The sum over all partitions and keyspaces, without adding them up.
    #[must_use]
    pub fn total(&self, space: Space) -> Tally {
        self.totals[usize::from(space as u8) - 1]
    }

    /// The sum of one keyspace over all partitions.
    #[must_use]
    pub fn keyspace(&self, space: Space, keyspace: KeyspaceId) -> Tally {
        self.partitions.values().fold(Tally::default(), |sum, stats| sum.sum(&stats.tally(space, keyspace)))
    }

    /// Takes in what committed batches changed. `reader` shows the store as it was before them; it is asked only for
    /// partitions of which a damaged record is replaced.
    ///
    /// # Errors
    /// If the medium fails.
    pub fn apply(&mut self, batches: &[Batch], reader: &impl Reader) -> Result<(), StorageError> {
        for partition in damaged(batches) {
            self.replace(partition, recount_partition(reader, partition)?);
        }
        for change in batches.iter().flat_map(|batch| &batch.writes).filter_map(Change::of) {
            self.add(&change);
        }
        Ok(())
    }

    pub(crate) fn add(&mut self, change: &Change) {
        let Some(space) = Space::from_byte(change.space) else { return };
        self.totals[usize::from(space as u8) - 1].add(change);
        let stats = self.partitions.entry(change.partition).or_default();
        stats.add(change);
        if stats.is_empty() {
            self.partitions.remove(&change.partition);
        }
    }

    /// Sets the statistics of one partition.
    pub(crate) fn replace(&mut self, partition: PartitionId, stats: PartitionStats) {
        let before = self.partitions.remove(&partition).unwrap_or_default();
        for (total, space) in self.totals.iter_mut().zip(Space::ALL) {
            *total = total.sum(&stats.total(space)).difference(&before.total(space));
        }
        if !stats.is_empty() {
            self.partitions.insert(partition, stats);
        }
    }
}

/// The partitions in which a batch replaces a damaged record.
pub(crate) fn damaged(batches: &[Batch]) -> BTreeSet<PartitionId> {
    let writes = batches.iter().flat_map(|batch| &batch.writes);
    writes
        .filter_map(|write| match write {
            Write::Record { key, damaged: true, .. } => Some(key.partition()),
            _ => None,
        })
        .collect()
}

/// Statistics counted from the entries themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recount {
    /// The statistics of all entries that can be read.
    pub stats: Stats,
    /// Damaged records. They are in no statistics.
    pub damaged: Vec<StorageKey>,
}

/// Counts every entry of a store that nobody writes meanwhile: to check the kept statistics, and to make them again
/// after damage. Reads the whole store, in slices.
///
/// # Errors
/// If the medium fails.
pub fn recount(reader: &impl Reader) -> Result<Recount, StorageError> {
    let mut found = Recount::default();
    for space in Space::ALL {
        count(reader, StorageKey::space_start(space), StorageKey::space_end(space), &mut found)?;
    }
    Ok(found)
}

/// The same for one partition.
pub(crate) fn recount_partition(reader: &impl Reader, partition: PartitionId) -> Result<PartitionStats, StorageError> {
    let mut found = Recount::default();
    for space in Space::ALL {
        let from = StorageKey::keyspace_start(space, partition, KeyspaceId(0));
        count(reader, from, StorageKey::partition_end(space, partition), &mut found)?;
    }
    Ok(found.stats.partitions.remove(&partition).unwrap_or_default())
}

fn count(reader: &impl Reader, from: StorageKey, until: StorageKey, found: &mut Recount) -> Result<(), StorageError> {
    let mut next = Some(from);
    while let Some(from) = next.take() {
        let request = SliceRequest { from, until: until.clone(), entries_max: 4096, bytes_max: 4 * 1024 * 1024 };
        let slice = reader.slice(&request)?;
        if slice.more {
            next = slice.entries.last().map(|(key, _)| key.successor());
        }
        for (key, encoded) in slice.entries {
            match Footprint::of_entry(&key, &encoded) {
                Ok(footprint) => found.stats.add(&Change::between(&key, None, Some(footprint))),
                Err(_) => found.damaged.push(key),
            }
        }
    }
    Ok(())
}
