//! What is stored of keyspaces that were dropped: removed here, by each loop for itself, and never moved.
//!
//! The cluster's list of keyspaces only ever gets newer (`config::KeyspaceList`), and the numbers of dropped ones are never
//! used again. So a node that knows of a drop takes nothing of the keyspace any more: no write, no copy, no hint. Once
//! the list is durable here, it walks through all partitions, those that it has left among them, and removes records,
//! hints and missed-write markers in slices beside the loop. Which partitions are left to do follows from the
//! statistics, so it goes on after a restart.
//!
//! Nodes learn of a drop one after the other, from the control plane or from each other: who knows a newer list tells it
//! at the beginning of each session and when it comes. Meanwhile the Merkle trees of two owners may differ by what one
//! of them has removed already. Comparisons leave dropped keyspaces out wherever records are listed, fetched or offered,
//! so they find nothing to do there, and the trees are equal again when both are done.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::config::KeyspaceList;
use crate::error::StorageError;
use crate::event::Event;
use crate::parts::Ask;
use crate::storage::{PartitionStats, Reader, Slice, SliceRequest, Space, Stats, StorageKey, Tally};
use crate::types::{KeyspaceId, PartitionId};
use crate::view::{View, meta};
use crate::wiring::{AfterDurable, Ctx, ReadFor, StatsFor, Timer};

/// The pause between two slices: with the bounds of a slice, what limits the work that a drop makes.
const SLICE_EVERY: Duration = Duration::from_millis(20);

/// What is left to remove of dropped keyspaces.
#[derive(Debug, Default)]
pub(crate) struct Purge {
    /// The list that is durable here. What it does not have any more may be deleted.
    durable: KeyspaceList,
    /// Partitions that may hold something of dropped keyspaces.
    pending: BTreeSet<PartitionId>,
    /// Whether these are all that may hold something.
    is_planned: bool,
    /// Whether a slice is read, counted or being made durable.
    is_busy: bool,
    /// What was removed since there was last nothing to do.
    records: u64,
    bytes: u64,
    /// Bytes that were removed of each partition and that the storage engine may still keep; durable.
    unreclaimed: BTreeMap<PartitionId, u64>,
    /// Whether the hub was told, and has not said that their space was given back.
    is_told: bool,
}

impl Purge {
    /// What a store holds of keyspaces that the list does not have any more, and the space that is still to be given back.
    ///
    /// # Errors
    /// If the node's own entries cannot be read.
    pub(crate) fn recover(view: &View, reader: &impl Reader, stats: &Stats) -> Result<Self, StorageError> {
        let list = view.keyspaces();
        let holds = |stats: &PartitionStats| dropped(list, stats).next().is_some();
        let holding = stats.partitions().filter(|(_, stats)| holds(stats)).map(|(partition, _)| partition);
        let pending = holding.filter(|&partition| view.serves(partition)).collect();
        let unreclaimed = meta::read_partitions(reader, meta::UNRECLAIMED, view.place)?;
        Ok(Self { durable: list.clone(), pending, is_planned: true, unreclaimed, ..Self::default() })
    }

    /// Whether there is nothing to remove and no space to give back.
    fn is_done(&self) -> bool {
        self.pending.is_empty() && self.unreclaimed.is_empty()
    }

    /// Partitions that may hold something to remove.
    pub(crate) fn partitions(&self) -> usize {
        self.pending.len()
    }

    /// The list is durable: what is stored of dropped keyspaces goes.
    pub(crate) fn list_durable(&mut self, ctx: &mut Ctx<'_>, list: KeyspaceList) {
        // Of keyspaces that were created and dropped since, copies may have brought something, too.
        self.is_planned &= list.dropped() == self.durable.dropped();
        self.durable = list;
        self.plan(ctx);
    }

    /// Every partition may hold something of what was dropped, those that were left among them.
    pub(crate) fn plan(&mut self, ctx: &mut Ctx<'_>) {
        if let Some(layout) = ctx.view.layout().filter(|_| !self.is_planned) {
            self.is_planned = true;
            self.pending.extend(layout.partition_ids().filter(|&id| ctx.view.serves(id)));
            ctx.kernel.arm(ctx.kernel.now.mono, Timer::Purge);
        }
    }

    /// Goes on with what an earlier run has not finished.
    pub(crate) fn resume(&mut self, ctx: &mut Ctx<'_>) {
        if !self.is_done() {
            ctx.kernel.arm(ctx.kernel.now.mono, Timer::Purge);
        }
    }

    /// Forgets what an earlier run has not finished: rule K2 broken.
    #[cfg(feature = "mutation")]
    pub(crate) fn forget(&mut self) {
        self.pending.clear();
    }

    /// Looks at the next partition, or gives space back when none is left.
    pub(crate) fn step(&mut self, ctx: &mut Ctx<'_>) {
        if self.is_busy {
            return;
        }
        if let Some(&partition) = self.pending.first() {
            self.is_busy = true;
            return ctx.kernel.read_stats(partition, ReadFor::Stats(StatsFor::Purge(partition)));
        }
        let (records, bytes) = (std::mem::take(&mut self.records), std::mem::take(&mut self.bytes));
        if records > 0 {
            ctx.kernel.event(Event::KeyspacesRemoved { records, bytes });
        }
        let bytes = self.unreclaimed.values().sum();
        if bytes > 0 && !self.is_told {
            self.is_told = true;
            ctx.kernel.say(Ask::Removed { bytes });
        }
    }

    /// It is known what a partition holds.
    pub(crate) fn counted(&mut self, ctx: &mut Ctx<'_>, partition: PartitionId, stats: &PartitionStats) {
        let first = dropped(&self.durable, stats).next();
        let Some((space, keyspace)) = first else {
            self.pending.remove(&partition);
            self.is_busy = false;
            return ctx.kernel.arm(ctx.kernel.now.mono, Timer::Purge);
        };
        let (from, until) = range(space, partition, keyspace);
        let (entries_max, bytes_max) = (ctx.view.config.slice_entries_max, ctx.view.config.slice_bytes_max);
        let request = SliceRequest { from, until, entries_max, bytes_max };
        ctx.kernel.read_slice(request, ReadFor::Purge(partition));
    }

    /// Something could not be read: it is tried again.
    pub(crate) fn unreadable(&mut self, ctx: &mut Ctx<'_>) {
        self.is_busy = false;
        ctx.kernel.arm(ctx.kernel.now.mono.plus(ctx.view.config.handoff_every), Timer::Purge);
    }

    /// A slice was read: its records go. Nothing writes them any more, so what was read is what the store holds.
    pub(crate) fn read(&mut self, ctx: &mut Ctx<'_>, partition: PartitionId, slice: Option<Slice>) {
        let Some(slice) = slice else { return self.unreadable(ctx) };
        let mut bytes = 0;
        for (key, value) in slice.entries {
            let size = (key.as_bytes().len() + value.len()) as u64;
            // A read that was asked for before the drop may still be on its way: then the next slice shows it again.
            if self.durable.is_dropped(key.keyspace()) && ctx.kernel.delete_read(key, &value) {
                self.records += 1;
                bytes += size;
            }
        }
        if bytes == 0 {
            return self.unreadable(ctx);
        }
        self.bytes += bytes;
        let unreclaimed = self.unreclaimed.entry(partition).or_default();
        *unreclaimed += bytes;
        let durable = ctx.kernel.persist_meta(meta::unreclaimed(partition), meta::encode(unreclaimed));
        ctx.kernel.after(durable, AfterDurable::Purged);
    }

    /// The deletions of a slice are durable.
    pub(crate) fn slice_durable(&mut self, ctx: &mut Ctx<'_>) {
        self.is_busy = false;
        ctx.kernel.arm(ctx.kernel.now.mono.plus(SLICE_EVERY), Timer::Purge);
    }

    /// The storage engine has given back what it could.
    pub(crate) fn reclaimed(&mut self, ctx: &mut Ctx<'_>) {
        if std::mem::take(&mut self.is_told) && self.pending.is_empty() {
            for partition in std::mem::take(&mut self.unreclaimed).into_keys() {
                ctx.kernel.forget_meta(meta::unreclaimed(partition));
            }
        }
        ctx.kernel.arm(ctx.kernel.now.mono, Timer::Purge);
    }
}

/// The dropped keyspaces of which a partition holds something, and in which space.
fn dropped<'a>(list: &'a KeyspaceList, stats: &'a PartitionStats) -> impl Iterator<Item = (Space, KeyspaceId)> + 'a {
    let of = move |space: Space| stats.tallies(space).map(move |(keyspace, _)| (space, keyspace));
    Space::ALL.into_iter().flat_map(of).filter(move |(_, keyspace)| list.is_dropped(*keyspace))
}

/// Everything of one keyspace in a partition.
fn range(space: Space, partition: PartitionId, keyspace: KeyspaceId) -> (StorageKey, StorageKey) {
    let until = match keyspace.0.checked_add(1) {
        Some(next) => StorageKey::keyspace_start(space, partition, KeyspaceId(next)),
        None => StorageKey::partition_end(space, partition),
    };
    (StorageKey::keyspace_start(space, partition, keyspace), until)
}

/// What a store still holds of dropped keyspaces.
#[must_use]
pub fn left_of_dropped(list: &KeyspaceList, stats: &Stats) -> Tally {
    let mut left = Tally::default();
    for (_, stats) in stats.partitions() {
        for (space, keyspace) in dropped(list, stats) {
            left = left.sum(&stats.tally(space, keyspace));
        }
    }
    left
}
