//! Keeps the statistics exact through any crash, without a scan at start and at a small, steady cost.
//!
//! Every commit carries one *entry*: its number and what it changed in the statistics. Beside it go *checkpoints*, the
//! whole statistics of single partitions with the number of the commit up to which they count, in turns, as many bytes as
//! the entries have brought. All of it is part of the same atomic batch as the records. So after any crash that keeps a
//! prefix of the commits
//!
//! > statistics of a partition = its checkpoint + the changes of all entries with higher numbers.
//!
//! An entry is needed while some partition that it touches has no checkpoint at least as new. Partitions are
//! checkpointed in the order in which they were first changed since their last checkpoint, so the entries that are
//! needed are always the latest ones, and the slot of an older one is used again. A slot that was not yet used again does
//! no harm: every partition that it touches has a newer checkpoint.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use crate::storage::seal::{seal, unseal};
use crate::storage::stats::{Change, PartitionStats, Stats};
use crate::types::PartitionId;

/// The format of entries and checkpoints.
const FORMAT: u8 = 1;

/// Checkpoint bytes written for each byte of an entry, and for each entry. More of them shorten what is read at start and
/// lengthen every commit.
const CHECKPOINT_RATIO: i64 = 2;
const CHECKPOINT_PER_ENTRY: i64 = 64;

/// What a ledger writes with a commit.
pub(super) enum Written {
    /// An entry, into a slot.
    Entry(u32, Vec<u8>),
    /// The checkpoint of a partition.
    Checkpoint(PartitionId, Vec<u8>),
}

#[derive(Serialize, Deserialize)]
struct Entry {
    number: u64,
    changes: Vec<Change>,
}

/// `S` is a reference for writing.
#[derive(Serialize, Deserialize)]
struct Checkpoint<S> {
    number: u64,
    stats: S,
}

/// The statistics with their durable form.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    stats: Stats,
    /// The number of the last commit; the first is 1.
    last: u64,
    /// Entries that are needed: numbers ascending without gaps up to `last`, with their slots.
    needed: VecDeque<(u64, u32)>,
    /// Slots whose entries are not needed.
    free: Vec<u32>,
    /// All slots are below it.
    slots: u32,
    /// Partitions changed since their checkpoints, with the number of the first such change, ascending by it.
    changed: VecDeque<(u64, PartitionId)>,
    /// The same partitions, to find them.
    is_changed: BTreeSet<PartitionId>,
    /// Checkpoint bytes that the entries have brought and that are not yet written; below zero if too many are.
    debt: i64,
}

impl Ledger {
    pub(super) fn stats(&self) -> &Stats {
        &self.stats
    }

    /// The number of the last commit.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// Takes in the changes of a commit and returns what must be committed with it. `recounted` are partitions whose
    /// statistics, as they were before the commit, are given rather than kept.
    pub(super) fn commit(
        &mut self,
        changes: Vec<Change>,
        recounted: Vec<(PartitionId, PartitionStats)>,
    ) -> Vec<Written> {
        self.last += 1;
        let mut written = Vec::new();
        let again: BTreeSet<_> = recounted.iter().map(|(partition, _)| *partition).collect();
        for (partition, stats) in recounted {
            self.stats.replace(partition, stats);
        }
        for change in &changes {
            self.stats.add(change);
            if self.is_changed.insert(change.partition) {
                self.changed.push_back((self.last, change.partition));
            }
        }
        written.extend(again.iter().map(|partition| self.checkpoint(*partition)));
        let entry = self.entry(changes);
        if let Written::Entry(_, bytes) = &entry {
            self.debt += CHECKPOINT_PER_ENTRY + CHECKPOINT_RATIO * length(bytes);
        }
        written.push(entry);

        while self.debt > 0 {
            let Some((_, partition)) = self.changed.pop_front() else {
                self.debt = 0;
                break;
            };
            self.is_changed.remove(&partition);
            if again.contains(&partition) {
                continue;
            }
            let checkpoint = self.checkpoint(partition);
            if let Written::Checkpoint(_, bytes) = &checkpoint {
                self.debt -= length(bytes);
            }
            written.push(checkpoint);
        }
        self.release();
        written
    }

    /// A ledger for statistics that were counted again, behind commit `last`, and all that it consists of.
    pub(super) fn renew(stats: Stats, last: u64) -> (Self, Vec<Written>) {
        let mut ledger = Self { stats, last: last + 1, ..Self::default() };
        let mut written = vec![ledger.entry(Vec::new())];
        written.extend(ledger.stats.partitions().map(|(partition, _)| ledger.checkpoint(partition)));
        (ledger, written)
    }

    fn entry(&mut self, changes: Vec<Change>) -> Written {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots += 1;
            self.slots - 1
        });
        self.needed.push_back((self.last, slot));
        Written::Entry(slot, seal(FORMAT, &Entry { number: self.last, changes }))
    }

    fn checkpoint(&self, partition: PartitionId) -> Written {
        let none = PartitionStats::default();
        let stats = self.stats.partition(partition).unwrap_or(&none);
        Written::Checkpoint(partition, seal(FORMAT, &Checkpoint { number: self.last, stats }))
    }

    /// Frees the slots of entries that no partition needs. The last one stays: it carries the number.
    fn release(&mut self) {
        let oldest = self.changed.front().map_or(self.last, |(number, _)| *number);
        while let Some(&(number, slot)) = self.needed.front() {
            if number >= oldest {
                break;
            }
            self.needed.pop_front();
            self.free.push(slot);
        }
    }
}

fn length(bytes: &[u8]) -> i64 {
    i64::try_from(bytes.len()).unwrap_or(i64::MAX)
}

/// Puts a ledger together from what a store holds.
#[derive(Default)]
pub(super) struct Recovery {
    checkpoints: BTreeMap<PartitionId, u64>,
    stats: Stats,
    entries: Vec<(u64, u32, Vec<Change>)>,
    last: u64,
}

impl Recovery {
    /// Adds a checkpoint.
    pub(super) fn checkpoint(&mut self, partition: PartitionId, bytes: &[u8]) -> Result<(), String> {
        let Checkpoint::<PartitionStats> { number, stats } =
            unseal(FORMAT, bytes).map_err(|reason| format!("the checkpoint of {partition}: {reason}"))?;
        self.last = self.last.max(number);
        self.checkpoints.insert(partition, number);
        self.stats.replace(partition, stats);
        Ok(())
    }

    /// Adds the entry of a slot.
    pub(super) fn entry(&mut self, slot: u32, bytes: &[u8]) -> Result<(), String> {
        let Entry { number, changes } =
            unseal(FORMAT, bytes).map_err(|reason| format!("the statistics entry in slot {slot}: {reason}"))?;
        self.last = self.last.max(number);
        self.entries.push((number, slot, changes));
        Ok(())
    }

    /// The number of the last commit that left a trace.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// The ledger as it was after the last commit.
    pub(super) fn finish(mut self) -> Result<Ledger, String> {
        self.entries.sort_unstable_by_key(|(number, slot, _)| (*number, *slot));
        let mut ledger = Ledger { stats: self.stats, last: self.last, ..Ledger::default() };
        for (number, slot, changes) in self.entries {
            ledger.slots = ledger.slots.max(slot.saturating_add(1));
            for change in changes {
                if number <= self.checkpoints.get(&change.partition).copied().unwrap_or(0) {
                    continue;
                }
                ledger.stats.add(&change);
                if ledger.is_changed.insert(change.partition) {
                    ledger.changed.push_back((number, change.partition));
                }
            }
            ledger.needed.push_back((number, slot));
        }
        ledger.release();
        let known = ledger.needed.len() + ledger.free.len();
        let gap = ledger.needed.iter().zip(ledger.needed.iter().skip(1)).find(|(one, next)| one.0 + 1 != next.0);
        let ends = ledger.needed.back().map_or(0, |(number, _)| *number);
        if gap.is_some() || ends != ledger.last || usize::try_from(ledger.slots).unwrap_or(usize::MAX) != known {
            return Err("some statistics entries are missing".to_owned());
        }
        Ok(ledger)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::storage::{Footprint, StorageKey, Write};
    use crate::types::KeyspaceId;

    /// What a store would hold of the ledger.
    #[derive(Clone, Default)]
    struct Medium {
        entries: BTreeMap<u32, Vec<u8>>,
        checkpoints: BTreeMap<PartitionId, Vec<u8>>,
    }

    impl Medium {
        fn write(&mut self, written: Vec<Written>) {
            let mut keys = BTreeSet::new();
            for written in written {
                let fresh = match written {
                    Written::Entry(slot, bytes) => {
                        self.entries.insert(slot, bytes);
                        keys.insert((0, slot))
                    }
                    Written::Checkpoint(partition, bytes) => {
                        self.checkpoints.insert(partition, bytes);
                        keys.insert((1, u32::from(partition.0)))
                    }
                };
                assert!(fresh, "a commit writes no key twice");
            }
        }

        fn recover(&self) -> Result<Ledger, String> {
            let mut recovery = Recovery::default();
            for (partition, bytes) in &self.checkpoints {
                recovery.checkpoint(*partition, bytes)?;
            }
            for (slot, bytes) in &self.entries {
                recovery.entry(*slot, bytes)?;
            }
            recovery.finish()
        }
    }

    /// Puts (`true`) and removals of some keys in some partitions.
    type Commit = Vec<(u16, u8, bool)>;

    fn any_history(commits: usize) -> impl Strategy<Value = Vec<(Commit, bool)>> {
        let write = (0..12u16, 0..40u8, proptest::bool::weighted(0.7));
        let commit = proptest::collection::vec(write, 0..5);
        proptest::collection::vec((commit, proptest::bool::weighted(0.02)), 1..commits)
    }

    struct World {
        ledger: Ledger,
        medium: Medium,
        held: BTreeMap<StorageKey, Footprint>,
        truth: Stats,
        hash: u64,
    }

    impl World {
        fn new() -> Self {
            let (ledger, medium) = (Ledger::default(), Medium::default());
            Self { ledger, medium, held: BTreeMap::new(), truth: Stats::new(), hash: 0 }
        }

        fn commit(&mut self, commit: &Commit) {
            let mut changes = Vec::new();
            for (partition, name, put) in commit {
                let key = StorageKey::owned(PartitionId(*partition), KeyspaceId(0), &[*name]);
                self.hash = self.hash.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let after = put.then_some(Footprint {
                    live: name % 3 > 0,
                    bytes: u32::from(*name),
                    hash: if name % 5 == 0 { 0 } else { self.hash },
                    blank: name % 5 == 0,
                });
                let before = match after {
                    Some(after) => self.held.insert(key.clone(), after),
                    None => self.held.remove(&key),
                };
                let value = after.map(|_| bytes::Bytes::new());
                let write = Write::Record { key, value, before, after, damaged: false };
                changes.extend(Change::of(&write));
            }
            changes.iter().for_each(|change| self.truth.add(change));
            let written = self.ledger.commit(changes, Vec::new());
            self.medium.write(written);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

        /// After every commit, what is on the medium alone gives the statistics back; a start goes on from there.
        #[test]
        fn the_medium_always_gives_the_statistics_back(history in any_history(300)) {
            let mut world = World::new();
            for (number, (commit, restart)) in history.iter().enumerate() {
                world.commit(commit);
                let recovered = world.medium.recover().unwrap();
                prop_assert_eq!(recovered.stats(), &world.truth);
                prop_assert_eq!(world.ledger.stats(), &world.truth);
                prop_assert_eq!(recovered.last(), u64::try_from(number).unwrap() + 1);
                if *restart {
                    world.ledger = recovered;
                }
            }
        }
    }

    #[test]
    fn entries_and_checkpoints_stay_few() {
        let mut world = World::new();
        for number in 0..5000u16 {
            world.commit(&vec![(number % 12, u8::try_from(number % 40).unwrap(), true)]);
        }
        assert!(world.medium.entries.len() < 200, "{} slots", world.medium.entries.len());
        assert!(world.ledger.needed.len() < 150, "{} entries", world.ledger.needed.len());
    }

    #[test]
    fn a_missing_or_damaged_entry_is_noticed() {
        let mut world = World::new();
        for number in 0..100u16 {
            world.commit(&vec![(number % 12, u8::try_from(number % 40).unwrap(), true)]);
        }
        for slot in world.medium.entries.keys() {
            let mut missing = world.medium.clone();
            missing.entries.remove(slot);
            let recovered = missing.recover();
            assert!(recovered.is_err() || recovered.unwrap().stats() == &world.truth, "slot {slot}");
            let mut damaged = world.medium.clone();
            damaged.entries.get_mut(slot).unwrap()[12] ^= 1;
            assert!(damaged.recover().is_err(), "slot {slot}");
        }
        let needed = world.ledger.needed[world.ledger.needed.len() / 2].1;
        world.medium.entries.remove(&needed);
        assert!(world.medium.recover().is_err());
    }

    #[test]
    fn a_recounted_partition_is_right_at_once() {
        let mut world = World::new();
        for number in 0..40u16 {
            world.commit(&vec![(number % 3, 1, true)]);
        }
        let before = world.truth.partition(PartitionId(1)).cloned().unwrap();
        let damaged = PartitionStats::default();
        let written = world.ledger.commit(Vec::new(), vec![(PartitionId(1), damaged)]);
        world.medium.write(written);
        assert_eq!(world.medium.recover().unwrap().stats(), world.ledger.stats());
        assert_eq!(world.ledger.stats().root(PartitionId(1)), 0);
        let written = world.ledger.commit(Vec::new(), vec![(PartitionId(1), before)]);
        world.medium.write(written);
        assert_eq!(world.medium.recover().unwrap().stats(), &world.truth);
        for number in 0..40u16 {
            world.commit(&vec![(number % 3, 1, true)]);
            assert_eq!(world.medium.recover().unwrap().stats(), &world.truth);
        }
    }

    #[test]
    fn a_renewed_ledger_stands_alone() {
        let mut world = World::new();
        for number in 0..40u16 {
            world.commit(&vec![(number % 12, 1, true)]);
        }
        let (ledger, written) = Ledger::renew(world.truth.clone(), world.ledger.last());
        world.medium = Medium::default();
        world.medium.write(written);
        assert_eq!(world.medium.recover().unwrap().stats(), ledger.stats());
        assert_eq!(world.medium.recover().unwrap().last(), 41);
        world.ledger = ledger;
        for number in 0..40u16 {
            world.commit(&vec![(number % 12, 1, number % 2 == 0)]);
            assert_eq!(world.medium.recover().unwrap().stats(), &world.truth);
        }
    }
}
