//! What is left of partitions that this node has left: handed over to every current owner, and only then dropped.
//!
//! Residue does not change: whoever does not own a partition takes no writes for it. So when every owner of an epoch has
//! been compared with it and given what it lacked, all of it is dominated by records that each of them holds durably, and
//! it may go (rule A4). Each deletion asks again whether the entry is still that of the comparison and the node still no
//! owner: one that comes back keeps what is left, which merges into its new copy. For available data that is sound: dots
//! go on from the same record instances on the same disk, and no tombstone is collected while a member holds residue.
//!
//! Which partitions have residue is derived from the statistics, so it survives restarts.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::event::Event;
use crate::exchange::{Ended, Exchanges, Situation};
use crate::kernel::footprint;
use crate::message::Purpose;
use crate::parts::{Ask, Mover};
use crate::rule::Rule;
use crate::storage::{PartitionStats, Slice, Space, Stats, StorageKey, Stored};
use crate::topology::{Residue, Wait};
use crate::types::{Epoch, Monotonic, NodeId, PartitionId};
use crate::view::View;
use crate::wiring::{AfterDurable, Ctx, ExchangeId, ReadFor, StatsFor, Task, Timer};

/// Partitions that are handed over at once.
const HANDOVERS_MAX: usize = 2;

/// What a node may hold beside the partitions that it owns.
#[derive(Debug, Default)]
pub(crate) struct Residues {
    /// Partitions of which records may be stored, owned ones included.
    may_hold: BTreeSet<PartitionId>,
    left: BTreeMap<PartitionId, Left>,
}

/// A partition that was left.
#[derive(Debug, Default)]
struct Left {
    /// The epoch of the entry by which it is handed over.
    epoch: Epoch,
    /// Records and bytes left; `None` until they are counted.
    size: Option<(u64, u64)>,
    /// Whether they are being counted.
    counting: bool,
    exchange: Option<(ExchangeId, NodeId)>,
    /// Owners that dominate all of it.
    covered: BTreeSet<NodeId>,
    /// Why owners could not take it, and when each is asked again.
    failed: BTreeMap<NodeId, (String, Monotonic)>,
    /// Deletions of the present slice that are not made.
    dropping: usize,
    reading: bool,
    dropped: u64,
    /// Whether the hub was asked to delete, where bytes are limited, and whether it may be done.
    asks_leave: bool,
    has_leave: bool,
}

impl Left {
    fn is_busy(&self) -> bool {
        self.exchange.is_some() || self.counting || self.reading || self.dropping > 0
    }
}

impl Residues {
    /// What a store may hold of partitions that it does not own.
    pub(crate) fn recover(view: &View, stats: &Stats) -> Self {
        let stored = stats.partitions().filter(|(_, stats)| stats.total(Space::Owned).records > 0);
        let may_hold = stored.map(|(partition, _)| partition).filter(|&partition| view.serves(partition)).collect();
        Self { may_hold, left: BTreeMap::new() }
    }

    /// The layout has changed: looks for what was left, and stops handing over what is owned again.
    pub(crate) fn plan(&mut self, ctx: &mut Ctx<'_>, exchanges: &mut Exchanges) {
        for partition in ctx.view.partition_ids() {
            let changed = ctx.view.entry_epoch(partition);
            if ctx.view.keeps(partition) {
                self.may_hold.insert(partition);
                self.stop(ctx, exchanges, partition);
            } else if self.may_hold.contains(&partition)
                && self.left.get(&partition).is_none_or(|left| left.epoch != changed)
            {
                self.stop(ctx, exchanges, partition);
                self.left.insert(partition, Left { epoch: changed, ..Left::default() });
            }
        }
        self.arm(ctx);
    }

    fn stop(&mut self, ctx: &mut Ctx<'_>, exchanges: &mut Exchanges, partition: PartitionId) {
        if let Some(Left { exchange: Some((id, _)), .. }) = self.left.remove(&partition) {
            exchanges.cancel(ctx, id);
        }
    }

    /// Makes sure that what was left is looked at soon.
    pub(crate) fn arm(&mut self, ctx: &mut Ctx<'_>) {
        if !self.left.is_empty() {
            ctx.kernel.arm(ctx.kernel.now.mono, Timer::HandOver);
        }
    }

    /// Looks at what was left, a few partitions at a time.
    pub(crate) fn pass(&mut self, ctx: &mut Ctx<'_>, exchanges: &mut Exchanges) {
        let mut busy = self.left.values().filter(|left| left.is_busy()).count();
        for partition in self.left.keys().copied().collect::<Vec<_>>() {
            if busy >= HANDOVERS_MAX {
                return;
            }
            if self.left.get(&partition).is_some_and(|left| !left.is_busy()) {
                self.step(ctx, exchanges, partition);
                busy += usize::from(self.left.get(&partition).is_some_and(Left::is_busy));
            }
        }
    }

    fn step(&mut self, ctx: &mut Ctx<'_>, exchanges: &mut Exchanges, partition: PartitionId) {
        let early = !ctx.view.keep(Rule::DropAfterAdoption) && ctx.view.owns(partition);
        if early {
            return self.drop_slice(ctx, partition);
        }
        let Some(left) = self.left.get_mut(&partition) else { return };
        if left.size.is_none() {
            left.counting = true;
            return ctx.kernel.read_stats(partition, ReadFor::Stats(StatsFor::Residue(partition)));
        }
        if ctx.view.transfers.paused {
            return;
        }
        let owners = ctx.view.owners(partition);
        let now = ctx.kernel.now.mono;
        let Some(left) = self.left.get(&partition) else { return };
        let mut open: Vec<NodeId> = owners.into_iter().filter(|node| !left.covered.contains(node)).collect();
        if open.is_empty() || !ctx.view.keep(Rule::HandOverBeforeDrop) {
            return self.drop_slice(ctx, partition);
        }
        open.retain(|&node| ctx.is_up(node));
        let is_due = |node: &NodeId| left.failed.get(node).is_none_or(|failed| failed.1 <= now);
        if let Some(owner) = open.iter().copied().find(is_due) {
            let id = exchanges.start(ctx, partition, owner, Purpose::HandOver, true, None);
            if let Some(left) = self.left.get_mut(&partition) {
                left.exchange = Some((id, owner));
            }
        } else if let Some(at) = open.iter().filter_map(|node| left.failed.get(node)).map(|failed| failed.1).min() {
            ctx.kernel.arm(at, Timer::HandOver);
        }
    }

    /// It is known what is left.
    pub(crate) fn counted(&mut self, ctx: &mut Ctx<'_>, partition: PartitionId, stats: &PartitionStats) {
        let total = ctx.view.kept(stats);
        let Some(left) = self.left.get_mut(&partition).filter(|left| left.counting) else { return };
        left.counting = false;
        left.size = Some((total.records, total.bytes));
        if total.records == 0 {
            self.left.remove(&partition);
            self.may_hold.remove(&partition);
        }
        self.arm(ctx);
    }

    pub(crate) fn unreadable(&mut self, ctx: &mut Ctx<'_>, partition: PartitionId) {
        if let Some(left) = self.left.get_mut(&partition) {
            left.counting = false;
            let at = ctx.kernel.now.mono.plus(ctx.view.config.handoff_every);
            ctx.kernel.arm(at, Timer::HandOver);
        }
    }

    fn left_of(&mut self, id: ExchangeId, partition: PartitionId) -> Option<&mut Left> {
        let is = |left: &&mut Left| left.exchange.is_some_and(|exchange| exchange.0 == id);
        self.left.get_mut(&partition).filter(is)
    }

    /// An owner dominates everything that is left.
    pub(crate) fn covered(&mut self, ctx: &mut Ctx<'_>, ended: &Ended) {
        if let Some(left) = self.left_of(ended.id, ended.partition) {
            left.exchange = None;
            left.failed.remove(&ended.peer);
            left.covered.insert(ended.peer);
            self.arm(ctx);
        }
    }

    /// An owner cannot take it now.
    pub(crate) fn failed(&mut self, ctx: &mut Ctx<'_>, ended: &Ended, why: String) {
        let at = ctx.kernel.now.mono.plus(ctx.view.config.retry_after);
        if let Some(left) = self.left_of(ended.id, ended.partition) {
            left.exchange = None;
            left.failed.insert(ended.peer, (why, at));
            self.arm(ctx);
        }
    }

    /// Every owner has confirmed: deletes some records.
    fn drop_slice(&mut self, ctx: &mut Ctx<'_>, partition: PartitionId) {
        let is_limited = ctx.view.transfers.bytes_per_second_max.is_some();
        let Some(left) = self.left.get_mut(&partition) else { return };
        if is_limited && !std::mem::take(&mut left.has_leave) {
            if !std::mem::replace(&mut left.asks_leave, true) {
                ctx.kernel.say(Ask::Book { by: Mover::Drop(partition), bytes: 0 });
            }
            return;
        }
        left.reading = true;
        let request = ctx.view.slice_of(partition, None);
        ctx.kernel.read_slice(request, ReadFor::Drop(partition));
    }

    /// The limit on bytes allows that a slice is deleted.
    pub(crate) fn booked(&mut self, ctx: &mut Ctx<'_>, partition: PartitionId) {
        if let Some(left) = self.left.get_mut(&partition) {
            (left.asks_leave, left.has_leave) = (false, true);
            self.arm(ctx);
        }
    }

    /// A slice of what is to be dropped was read; `None`: it could not be.
    pub(crate) fn drop_read(&mut self, ctx: &mut Ctx<'_>, partition: PartitionId, slice: Option<Slice>) {
        let Some(left) = self.left.get_mut(&partition).filter(|left| left.reading) else { return };
        left.reading = false;
        let epoch = left.epoch;
        let Some(slice) = slice else {
            let at = ctx.kernel.now.mono.plus(ctx.view.config.handoff_every);
            ctx.kernel.arm(at, Timer::HandOver);
            return;
        };
        if slice.entries.is_empty() {
            let records = left.dropped;
            self.left.remove(&partition);
            self.may_hold.remove(&partition);
            if records > 0 {
                ctx.kernel.event(Event::ResidueDropped { partition, records });
            }
            return self.arm(ctx);
        }
        // What is left of dropped keyspaces goes by itself.
        let entries: Vec<(StorageKey, Bytes)> =
            slice.entries.into_iter().filter(|(key, _)| !ctx.view.is_dropped(key.keyspace())).collect();
        if entries.is_empty() {
            let at = ctx.kernel.now.mono.plus(ctx.view.config.handoff_every);
            return ctx.kernel.arm(at, Timer::HandOver);
        }
        left.dropping = entries.len();
        let bytes = entries.iter().map(|(key, value)| (key.key().len() + value.len()) as u64).sum();
        if ctx.view.transfers.bytes_per_second_max.is_some() {
            ctx.kernel.say(Ask::Moved { bytes });
        }
        for (key, _) in entries {
            ctx.kernel.with_key(key, Task::Drop { epoch });
        }
    }

    /// The record of a partition that was left is in memory: deletes it, if what was compared at this epoch may be deleted.
    pub(crate) fn drop_record(&mut self, ctx: &mut Ctx<'_>, key: &StorageKey, stored: Option<&Stored>, epoch: Epoch) {
        let partition = key.partition();
        let is_left = |left: &Left| left.epoch == epoch;
        let may = !ctx.view.keeps(partition) && self.left.get(&partition).is_some_and(is_left);
        let bytes = stored.map(|stored| u64::from(footprint(key, stored, stored.encode().len()).bytes));
        let bytes = bytes.filter(|_| may);
        if bytes.is_some() {
            ctx.kernel.put(key, None);
        }
        self.drop_made(ctx, partition, bytes);
    }

    /// A record was deleted, was gone already, or must stay.
    pub(crate) fn drop_made(&mut self, ctx: &mut Ctx<'_>, partition: PartitionId, bytes: Option<u64>) {
        let Some(left) = self.left.get_mut(&partition) else { return };
        left.dropping = left.dropping.saturating_sub(1);
        if let Some(bytes) = bytes {
            left.dropped += 1;
            let (records, size) = left.size.unwrap_or_default();
            left.size = Some((records.saturating_sub(1), size.saturating_sub(bytes)));
        }
        if left.dropping == 0 {
            // A slice that is read before the deletions are durable may show them again.
            left.reading = true;
            ctx.kernel.after_issued(AfterDurable::Dropped(partition));
        }
    }

    /// The deletions of a slice are durable.
    pub(crate) fn drop_durable(&mut self, ctx: &mut Ctx<'_>, partition: PartitionId) {
        if let Some(left) = self.left.get_mut(&partition)
            && left.dropping == 0
        {
            left.reading = false;
            self.arm(ctx);
        }
    }

    /// Whether something of a partition may be stored, owned or not.
    pub(crate) fn may_hold(&self, partition: PartitionId) -> bool {
        self.may_hold.contains(&partition)
    }

    /// What this node still holds of partitions that it has left.
    pub(crate) fn residue(&self, now: &Situation<'_>) -> Vec<Residue> {
        let left = self.left.iter().filter_map(|(&partition, left)| {
            let (records, bytes) = left.size?;
            Some(Residue { partition, records, bytes, waiting_for: why_left(now, partition, left) })
        });
        left.collect()
    }

    /// Partitions that are being left, counted or not.
    pub(crate) fn leaving(&self) -> usize {
        self.left.len()
    }
}

fn why_left(now: &Situation<'_>, partition: PartitionId, left: &Left) -> Option<String> {
    if let Some((id, _)) = left.exchange {
        return now.exchanges.get(id)?.waiting_for(now.at).map(|wait| wait.to_string());
    }
    if left.is_busy() {
        return None;
    }
    if now.view.transfers.paused {
        return Some(Wait::Paused.to_string());
    }
    let open = now.view.entry(partition)?.nodes().filter(|node| !left.covered.contains(node));
    let why = |node: NodeId| match left.failed.get(&node) {
        _ if !now.peers.is_up(node) => Some(format!("{node} is down")),
        failed => failed.map(|(why, _)| why.clone()),
    };
    let reasons: Vec<String> = open.filter_map(why).collect();
    Some(if reasons.is_empty() { "its turn".to_owned() } else { reasons.join("; ") })
}
