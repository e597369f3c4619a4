//! What is stored of keyspaces that were dropped: removed here, by each node for itself, and never moved.
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

use std::collections::BTreeSet;
use std::time::Duration;

use crate::config::{KeyspaceList, PartitionSet};
use crate::coordinator::OpId;
use crate::error::{Kind, RequestError};
use crate::event::Event;
use crate::message::Message;
use crate::node::keys::{Held, LeavesFor, ReadFor};
use crate::node::timers::Timer;
use crate::node::{Effect, Node, ReadId, meta};
use crate::rule::Rule;
use crate::storage::{PartitionStats, Slice, SliceRequest, Space, Stats, StorageKey, Tally};
use crate::types::{KeyspaceId, NodeId, PartitionId};

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
    /// Bytes that were removed and that the storage engine may still keep; durable.
    unreclaimed: u64,
    /// Whether the storage engine gives their space back now.
    is_reclaiming: bool,
}

impl Purge {
    /// What a store holds of keyspaces that `list` does not have any more, and the space that is still to be given back.
    pub(crate) fn recover(list: &KeyspaceList, serves: PartitionSet, stats: &Stats, unreclaimed: u64) -> Self {
        let holds = |stats: &PartitionStats| dropped(list, stats).next().is_some();
        let holding = stats.partitions().filter(|(_, stats)| holds(stats)).map(|(partition, _)| partition);
        let pending = holding.filter(|&partition| serves.contains(partition)).collect();
        Self { durable: list.clone(), pending, is_planned: true, unreclaimed, ..Self::default() }
    }

    /// Whether there is nothing to remove and no space to give back.
    pub(crate) fn is_done(&self) -> bool {
        self.pending.is_empty() && self.unreclaimed == 0
    }

    /// Partitions that may hold something to remove.
    pub(crate) fn partitions(&self) -> usize {
        self.pending.len()
    }

    /// Whether space is still to be given back.
    pub(crate) fn is_reclaiming(&self) -> bool {
        self.is_reclaiming
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
        Some(next) => StorageKey::new(space, partition, KeyspaceId(next), &[]),
        None => StorageKey::partition_end(space, partition),
    };
    (StorageKey::new(space, partition, keyspace, &[]), until)
}

impl Node {
    /// A newer list of keyspaces: what exists by it can be used at once, what was dropped is refused at once. What is
    /// stored of that goes when the list is durable.
    pub(crate) fn keyspaces_given(&mut self, list: KeyspaceList) {
        let is_older = || self.rules.keep(Rule::NewestKeyspaces) && !list.is_newer_than(&self.keyspaces);
        if list == self.keyspaces || is_older() {
            return;
        }
        self.keyspaces = list;
        let durable = self.persist_meta(meta::keyspaces(), meta::encode(&self.keyspaces));
        self.hold(durable, Held::Keyspaces(Box::new(self.keyspaces.clone())));
        let peers: Vec<NodeId> = self.peers.keys().copied().filter(|&peer| self.is_up(peer)).collect();
        for peer in peers {
            self.tell_keyspaces(peer);
        }
        self.end_dropped_requests();
        // Whoever was refused something on a keyspace that was not known here may ask again.
        if let Some(epoch) = self.layout.as_ref().map(|layout| layout.epoch) {
            self.tell_caught_up(epoch);
        }
    }

    /// Tells a peer which keyspaces there are, so that whoever knows of a drop lets the others know.
    pub(crate) fn tell_keyspaces(&mut self, peer: NodeId) {
        self.send(peer, Message::Keyspaces { list: self.keyspaces.clone() });
    }

    /// Whether a keyspace was dropped: nothing of it is taken, given away or kept.
    pub(crate) fn is_dropped(&self, keyspace: KeyspaceId) -> bool {
        self.keyspaces.is_dropped(keyspace)
    }

    /// Whether nothing is done any more with a partition's records of a keyspace.
    pub(crate) fn refuses_dropped(&self, partition: PartitionId, keyspace: KeyspaceId) -> bool {
        let is_removing = || self.purge.pending.contains(&partition) || !self.purge.durable.is_dropped(keyspace);
        self.keyspaces.is_dropped(keyspace) && (self.rules.keep(Rule::RefuseDropped) || is_removing())
    }

    /// Why a request on a dropped keyspace is refused.
    pub(crate) fn dropped_error(&self, keyspace: KeyspaceId) -> RequestError {
        RequestError::new(
            Kind::NotFound,
            format!("the keyspace {keyspace} was dropped; `keyspace ls` lists those that exist"),
        )
    }

    /// Requests and replications on keyspaces that were dropped meanwhile have nothing to wait for.
    fn end_dropped_requests(&mut self) {
        let gone = self.ops.iter().filter(|(_, op)| self.is_dropped(op.keyspace()));
        let gone: Vec<(OpId, KeyspaceId, bool)> =
            gone.map(|(&id, op)| (id, op.keyspace(), op.may_take_effect())).collect();
        for (op, keyspace, may_take_effect) in gone {
            let error = self.dropped_error(keyspace);
            let kind = if may_take_effect { Kind::Unknown } else { error.kind };
            self.finish(op, Err(RequestError::new(kind, error.message)));
        }
        let pointless = self.replications.iter().filter(|(_, found)| self.is_dropped(found.key.keyspace()));
        for id in pointless.map(|(&id, _)| id).collect::<Vec<_>>() {
            self.give_up_replication(id);
        }
    }

    /// The list is durable: what is stored of dropped keyspaces goes.
    pub(crate) fn keyspaces_durable(&mut self, list: KeyspaceList) {
        // Of keyspaces that were created and dropped since, copies may have brought something, too.
        self.purge.is_planned &= list.dropped() == self.purge.durable.dropped();
        self.purge.durable = list;
        self.plan_purge();
    }

    /// Every partition may hold something of what was dropped, those that were left among them.
    pub(crate) fn plan_purge(&mut self) {
        if let Some(layout) = self.layout.clone().filter(|_| !self.purge.is_planned) {
            self.purge.is_planned = true;
            self.purge.pending.extend(layout.partition_ids().filter(|&id| self.config.partitions.contains(id)));
            self.arm(self.now.mono, Timer::Purge);
        }
    }

    /// Goes on with what an earlier run has not finished.
    pub(crate) fn resume_purge(&mut self) {
        if !self.purge.is_done() {
            self.arm(self.now.mono, Timer::Purge);
        }
    }

    /// Forgets what an earlier run has not finished: rule K2 broken.
    #[cfg(feature = "mutation")]
    pub(crate) fn forget_purge(&mut self) {
        self.purge.pending.clear();
    }

    /// Looks at the next partition, or gives space back when none is left.
    pub(crate) fn purge_step(&mut self) {
        if self.purge.is_busy {
            return;
        }
        if let Some(&partition) = self.purge.pending.first() {
            self.purge.is_busy = true;
            return self.read_leaves(partition, LeavesFor::Purge(partition));
        }
        let (records, bytes) = (std::mem::take(&mut self.purge.records), std::mem::take(&mut self.purge.bytes));
        if records > 0 {
            self.out.push(Effect::Event(Event::KeyspacesRemoved { records, bytes }));
        }
        if self.purge.unreclaimed > 0 && !self.purge.is_reclaiming {
            self.purge.is_reclaiming = true;
            self.out.push(Effect::Reclaim { bytes: self.purge.unreclaimed });
        }
    }

    /// It is known what a partition holds.
    pub(crate) fn purge_counted(&mut self, partition: PartitionId, stats: &PartitionStats) {
        let first = dropped(&self.purge.durable, stats).next();
        let Some((space, keyspace)) = first else {
            self.purge.pending.remove(&partition);
            self.purge.is_busy = false;
            return self.arm(self.now.mono, Timer::Purge);
        };
        let (from, until) = range(space, partition, keyspace);
        let (entries_max, bytes_max) = (self.config.slice_entries_max, self.config.slice_bytes_max);
        let read = ReadId(self.next_id());
        self.reads.insert(read, ReadFor::Purge);
        self.out.push(Effect::Slice { read, request: SliceRequest { from, until, entries_max, bytes_max } });
    }

    /// Something could not be read: it is tried again.
    pub(crate) fn purge_unreadable(&mut self) {
        self.purge.is_busy = false;
        self.arm(self.now.mono.plus(self.config.handoff_every), Timer::Purge);
    }

    /// A slice was read: its records go. Nothing writes them any more, so what was read is what the store holds.
    pub(crate) fn purge_read(&mut self, slice: Option<Slice>) {
        let Some(slice) = slice else { return self.purge_unreadable() };
        let mut bytes = 0;
        for (key, value) in slice.entries {
            let size = (key.as_bytes().len() + value.len()) as u64;
            // A read that was asked for before the drop may still be on its way: then the next slice shows it again.
            if self.purge.durable.is_dropped(key.keyspace()) && self.delete_read(key, &value) {
                self.purge.records += 1;
                bytes += size;
            }
        }
        if bytes == 0 {
            return self.purge_unreadable();
        }
        self.purge.bytes += bytes;
        self.purge.unreclaimed += bytes;
        let durable = self.persist_meta(meta::unreclaimed(), meta::encode(&self.purge.unreclaimed));
        self.hold(durable, Held::Purged);
    }

    /// The deletions of a slice are durable.
    pub(crate) fn purge_durable(&mut self) {
        self.purge.is_busy = false;
        self.arm(self.now.mono.plus(SLICE_EVERY), Timer::Purge);
    }

    /// The storage engine has given back what it could.
    pub(crate) fn reclaimed(&mut self) {
        if std::mem::take(&mut self.purge.is_reclaiming) && self.purge.pending.is_empty() {
            self.purge.unreclaimed = 0;
            self.forget_meta(meta::unreclaimed());
        }
        self.arm(self.now.mono, Timer::Purge);
    }

    /// The sum of what a partition holds of keyspaces that exist, as far as is known here.
    pub(crate) fn kept(&self, stats: &PartitionStats) -> Tally {
        let kept = stats.tallies(Space::Owned).filter(|(keyspace, _)| !self.is_dropped(*keyspace));
        kept.fold(Tally::default(), |sum, (_, tally)| sum.sum(&tally))
    }

    /// The first place at or behind `from` that is in no dropped keyspace: a slice that is to be given away, or compared,
    /// need not read what nobody wants.
    pub(crate) fn behind_dropped(&self, from: StorageKey) -> StorageKey {
        if !self.is_dropped(from.keyspace()) {
            return from;
        }
        let next = self.keyspaces.next_kept(from.keyspace());
        StorageKey::new(from.space(), from.partition(), next, &[])
    }
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
