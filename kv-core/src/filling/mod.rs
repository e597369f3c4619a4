//! Filling a partition of this node's own from other owners, source by source.
//!
//! * A *refill*: the store was lost, and the partition is copied back from all of its other owners before this node
//!   acknowledges or answers for it (rule D2).
//! * A *copy*: the partition migrates to this node, which must be covered by as many old owners as the entry demands.
//!   Each is fenced by its answers at the joint epoch, so together they hold whatever was confirmed before it (rule M1).
//!   Then a receipt is made durable and reported.
//!
//! How far a copy is, is durable no earlier than its data (rule M2), and is void at another joint epoch or on another
//! store (rule E3). A source that takes the place of another starts from nothing.

mod progress;
mod retry;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::StorageError;
use crate::event::Event;
use crate::exchange::{Ended, Exchanges};
use crate::message::{Position, Purpose};
use crate::parts::Ask;
use crate::ring::{Entry, Joint};
use crate::rule::Rule;
use crate::storage::{PartitionStats, Reader};
use crate::topology::{Receipt, SourceReceipt};
use crate::types::{Epoch, Monotonic, NodeId, PartitionId, StoreId};
use crate::view::{View, meta};
use crate::wiring::{AfterDurable, Ctx, ExchangeId, ReadFor, StatsFor, Timer};

/// The partitions that are being filled, how far earlier fills got, and the receipts of those that are done.
#[derive(Debug, Default)]
pub(crate) struct Filling {
    copies: BTreeMap<PartitionId, Copy>,
    /// How far the copies of this and of earlier runs are; durable.
    progress: BTreeMap<PartitionId, Progress>,
    /// The receipts of copies; durable.
    receipts: BTreeMap<PartitionId, Receipt>,
    /// Turns that were asked of the hub, and whether each was given.
    turns: BTreeMap<(PartitionId, Purpose), bool>,
    /// Bytes that came in for copies and refills since the loop began.
    bytes: u64,
}

/// A partition that is being filled.
#[derive(Debug)]
struct Copy {
    purpose: Purpose,
    /// The exchange under way, and with whom.
    exchange: Option<(ExchangeId, NodeId)>,
    progress: Progress,
    /// What the first source held when it was asked.
    keys_total: u64,
    bytes_total: u64,
    tries: u32,
    /// Why sources failed, and when each is asked again.
    failed: BTreeMap<NodeId, (String, Monotonic)>,
    /// Sources that were given up for another try, each once, the last one last: others are asked before them.
    given_up: Vec<NodeId>,
    /// Whether all sources have been covered and this is being made durable.
    ending: bool,
}

/// How far a copy is. Durable for copies, so that a restart goes on from it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Progress {
    /// The store and the joint epoch to which it belongs.
    store: StoreId,
    joint: Epoch,
    /// From whom records are taken in order, and up to where they are durable here.
    cursor: Option<(NodeId, Position)>,
    /// Whether that has come to its end.
    compare_only: bool,
    /// The sources of which everything is held.
    covered: Vec<SourceReceipt>,
    keys: u64,
    bytes: u64,
}

impl Filling {
    /// What the store remembers.
    ///
    /// # Errors
    /// If the node's own entries cannot be read.
    pub(crate) fn recover(view: &View, reader: &impl Reader) -> Result<Self, StorageError> {
        Ok(Self {
            progress: meta::read_partitions(reader, meta::PROGRESS, view.place)?,
            receipts: meta::read_partitions(reader, meta::RECEIPT, view.place)?,
            ..Self::default()
        })
    }

    /// Starts to fill partitions that lack something, as many at once as the settings allow.
    pub(crate) fn plan(&mut self, ctx: &mut Ctx<'_>, exchanges: &mut Exchanges) {
        // Those that wait for a source or a turn come first.
        for partition in self.copies.keys().copied().collect::<Vec<_>>() {
            self.step(ctx, exchanges, partition);
        }
        for partition in ctx.view.partition_ids() {
            if let Some(purpose) = self.lacks(ctx.view, partition)
                && !self.copies.contains_key(&partition)
                && self.has_turn(ctx, partition, purpose)
            {
                self.start(ctx, exchanges, partition, purpose);
            }
        }
        self.end_turns(ctx);
    }

    /// What has to be done before this node's copy of a partition is complete.
    fn lacks(&self, view: &View, partition: PartitionId) -> Option<Purpose> {
        if !view.is_listed() {
            return None;
        }
        let me = view.me();
        let entry = view.entry(partition).filter(|_| view.serves(partition))?;
        if entry.owners.iter().any(|owner| owner.node == me) && !view.is_synced(partition) {
            // Without another owner nothing can be copied back. The partition stays closed: an empty answer would be
            // a lie, and only an operator can decide that what the store holds is all there is.
            return (entry.owners.len() > 1 || view.may_be_alone()).then_some(Purpose::Refill);
        }
        let receives = entry.joint.as_ref().is_some_and(|joint| joint.receivers.iter().any(|to| to.node == me));
        (receives && self.receipt(view, partition).is_none()).then_some(Purpose::Copy)
    }

    /// Whether a partition may be filled now. If not, its turn is asked for. Those that have nobody to ask take no turn.
    fn has_turn(&mut self, ctx: &mut Ctx<'_>, partition: PartitionId, purpose: Purpose) -> bool {
        if purpose == Purpose::Copy && ctx.view.transfers.paused {
            return false;
        }
        *self.turns.entry((partition, purpose)).or_insert_with(|| {
            ctx.kernel.say(Ask::WantTurn { partition, purpose });
            false
        })
    }

    /// A partition may be filled now, if it still needs that.
    pub(crate) fn turn(
        &mut self,
        ctx: &mut Ctx<'_>,
        exchanges: &mut Exchanges,
        partition: PartitionId,
        purpose: Purpose,
    ) {
        self.turns.insert((partition, purpose), true);
        if self.copies.contains_key(&partition) {
            self.step(ctx, exchanges, partition);
        } else if self.lacks(ctx.view, partition) == Some(purpose) && self.has_turn(ctx, partition, purpose) {
            self.start(ctx, exchanges, partition, purpose);
        }
        self.end_turns(ctx);
    }

    /// Gives turns back that are not used.
    fn end_turns(&mut self, ctx: &mut Ctx<'_>) {
        let copies = &self.copies;
        self.turns.retain(|&(partition, purpose), given| {
            let runs = |copy: &Copy| copy.purpose == purpose && (copy.exchange.is_some() || copy.ending);
            let used = !*given || copies.get(&partition).is_some_and(runs);
            if !used {
                ctx.kernel.say(Ask::EndTurn { partition, purpose });
            }
            used
        });
    }

    fn start(&mut self, ctx: &mut Ctx<'_>, exchanges: &mut Exchanges, partition: PartitionId, purpose: Purpose) {
        let joint = ctx.view.joint_epoch(partition).unwrap_or_default();
        let store = ctx.view.incarnation.store;
        let kept = if purpose == Purpose::Copy { self.progress.remove(&partition) } else { None };
        let counts = |progress: &Progress| {
            progress.store == store && (progress.joint == joint || !ctx.view.keep(Rule::SinceCounts))
        };
        let progress = kept.filter(counts).unwrap_or_else(|| Progress { store, joint, ..Progress::default() });
        let copy = Copy {
            purpose,
            exchange: None,
            progress,
            keys_total: 0,
            bytes_total: 0,
            tries: 1,
            failed: BTreeMap::new(),
            given_up: Vec::new(),
            ending: false,
        };
        ctx.kernel.event(match purpose {
            Purpose::Copy => Event::CopyStarted { partition },
            _ => Event::RefillStarted { partition },
        });
        self.copies.insert(partition, copy);
        self.step(ctx, exchanges, partition);
    }

    /// The entries of some partitions have changed: what is under way for them belongs to the past.
    pub(crate) fn restart(
        &mut self,
        ctx: &mut Ctx<'_>,
        exchanges: &mut Exchanges,
        changed: &dyn Fn(PartitionId) -> bool,
    ) {
        for partition in self.copies.keys().copied().filter(|&partition| changed(partition)).collect::<Vec<_>>() {
            if let Some(Copy { exchange: Some((id, _)), .. }) = self.copies.remove(&partition) {
                exchanges.cancel(ctx, id);
            }
        }
        if ctx.view.keep(Rule::SinceCounts) {
            self.forget_outdated(ctx);
        }
        self.plan(ctx, exchanges);
    }

    /// Progress and receipts count at their joint epoch only (rule E3).
    fn forget_outdated(&mut self, ctx: &mut Ctx<'_>) {
        let joint = |partition: PartitionId| ctx.view.joint_epoch(partition);
        let outdated: Vec<PartitionId> = self
            .receipts
            .iter()
            .filter(|(at, receipt)| joint(**at) != Some(receipt.joint))
            .map(|(at, _)| *at)
            .collect();
        let void: Vec<PartitionId> = self
            .progress
            .iter()
            .filter(|(at, progress)| joint(**at) != Some(progress.joint))
            .map(|(at, _)| *at)
            .collect();
        for partition in outdated {
            self.receipts.remove(&partition);
            ctx.kernel.forget_meta(meta::receipt(partition));
        }
        for partition in void {
            self.progress.remove(&partition);
            ctx.kernel.forget_meta(meta::progress(partition));
        }
    }

    /// Begins the next exchange, or ends the copy.
    pub(crate) fn step(&mut self, ctx: &mut Ctx<'_>, exchanges: &mut Exchanges, partition: PartitionId) {
        let Some(copy) = self.copies.get(&partition) else { return };
        if copy.exchange.is_some() || copy.ending {
            return;
        }
        let purpose = copy.purpose;
        let Some(entry) = ctx.view.entry(partition).cloned() else { return };
        let sources = Self::sources(ctx.view, &entry, copy.purpose);
        let covered = |node: &NodeId| copy.progress.covered.iter().any(|source| source.node == *node);
        let need = match (copy.purpose, &entry.joint) {
            (Purpose::Copy, Some(joint)) => Self::sources_needed(ctx.view, &entry, joint),
            _ if ctx.view.keep(Rule::RefillFromAll) => sources.len(),
            _ => 1,
        };
        if sources.iter().filter(|&node| covered(node)).count() >= need {
            return self.end(ctx, partition);
        }
        let now = ctx.kernel.now.mono;
        let is_due = |node: &NodeId| copy.failed.get(node).is_none_or(|failed| failed.1 <= now);
        let mut open = sources.iter().copied().filter(|node| !covered(node) && ctx.can_be_asked(*node, purpose));
        let Some(source) = open.clone().filter(is_due).min_by_key(|&node| copy.turn_of(node)) else {
            let next = open.by_ref().filter_map(|node| copy.failed.get(&node)).map(|failed| failed.1).min();
            if let Some(at) = next {
                ctx.kernel.arm(at, Timer::Copy(partition));
            }
            return;
        };
        if !self.has_turn(ctx, partition, purpose) {
            return;
        }
        let Some(copy) = self.copies.get(&partition) else { return };
        let after = copy.progress.cursor.as_ref().filter(|cursor| cursor.0 == source).map(|cursor| cursor.1.clone());
        let compare_only = copy.progress.compare_only;
        let id = exchanges.start(ctx, partition, source, purpose, compare_only, after);
        if let Some(copy) = self.copies.get_mut(&partition) {
            copy.exchange = Some((id, source));
        }
    }

    /// From whom a partition may be filled, in the order in which they are asked.
    fn sources(view: &View, entry: &Entry, purpose: Purpose) -> Vec<NodeId> {
        let me = view.me();
        let mut sources: Vec<NodeId> = entry.owners.iter().map(|owner| owner.node).filter(|&node| node != me).collect();
        if purpose == Purpose::Copy
            && let Some(joint) = &entry.joint
        {
            let first = joint.receivers.iter().find(|to| to.node == me).map(|to| to.source);
            // Who leaves is asked before who stays: what only a leaving owner holds is covered early that way.
            sources.sort_by_key(|&node| (Some(node) != first, !entry.leaves(node)));
        }
        sources
    }

    /// How many other old owners must cover this node. An old owner that stays covers itself.
    fn sources_needed(view: &View, entry: &Entry, joint: &Joint) -> usize {
        let me = view.me();
        let own = usize::from(!entry.enters(me));
        if view.keep(Rule::CoveredByMajority) {
            usize::from(joint.sources_min).saturating_sub(own)
        } else {
            1usize.saturating_sub(own)
        }
    }

    /// Records were received from the source under way.
    pub(crate) fn received(&mut self, id: ExchangeId, partition: PartitionId, keys: u64, bytes: u64) {
        let Some(copy) = self.copy_of(id, partition) else { return };
        copy.progress.keys += keys;
        copy.progress.bytes += bytes;
        self.bytes += bytes;
    }

    fn copy_of(&mut self, id: ExchangeId, partition: PartitionId) -> Option<&mut Copy> {
        self.copies.get_mut(&partition).filter(|copy| copy.exchange.is_some_and(|exchange| exchange.0 == id))
    }

    /// Everything up to a place, or all (`None`), was taken in order from the source under way and is durable.
    pub(crate) fn moved(&mut self, ctx: &mut Ctx<'_>, id: ExchangeId, partition: PartitionId, at: Option<Position>) {
        let Some(copy) = self.copy_of(id, partition) else { return };
        let Some((_, source)) = copy.exchange else { return };
        copy.progress.compare_only |= at.is_none();
        copy.progress.cursor = at.map(|at| (source, at));
        self.persist_progress(ctx, partition);
    }

    fn persist_progress(&mut self, ctx: &mut Ctx<'_>, partition: PartitionId) {
        let Some(copy) = self.copies.get(&partition) else { return };
        if copy.purpose == Purpose::Copy {
            let progress = copy.progress.clone();
            ctx.kernel.persist_meta(meta::progress(partition), meta::encode(&progress));
            self.progress.insert(partition, progress);
        }
    }

    /// All that a source held is held here.
    pub(crate) fn covered(&mut self, ctx: &mut Ctx<'_>, exchanges: &mut Exchanges, ended: &Ended) {
        let partition = ended.partition;
        let Some(copy) = self.copy_of(ended.id, partition) else { return };
        copy.exchange = None;
        let root = ended.tree.as_ref().map_or(0, |tree| tree.root);
        let tally = ended.tree.as_ref().map(|tree| tree.tally).unwrap_or_default();
        copy.keys_total = copy.keys_total.max(tally.keys);
        copy.bytes_total = copy.bytes_total.max(tally.bytes);
        copy.failed.remove(&ended.peer);
        copy.progress.covered.push(SourceReceipt { node: ended.peer, root });
        copy.progress.compare_only = true;
        copy.progress.cursor = None;
        self.persist_progress(ctx, partition);
        self.step(ctx, exchanges, partition);
        self.end_turns(ctx);
    }

    /// The source under way can not go on.
    pub(crate) fn failed(&mut self, ctx: &mut Ctx<'_>, exchanges: &mut Exchanges, ended: &Ended, why: String) {
        let partition = ended.partition;
        let at = ctx.kernel.now.mono.plus(ctx.view.config.retry_after);
        let inherits = !ctx.view.keep(Rule::CoverageOfEachSource) && ended.tree.is_some();
        let Some(copy) = self.copy_of(ended.id, partition) else { return };
        copy.exchange = None;
        copy.tries += 1;
        copy.failed.insert(ended.peer, (why, at));
        if inherits {
            copy.progress.covered.push(SourceReceipt { node: ended.peer, root: 0 });
        }
        ctx.kernel.arm(at, Timer::Copy(partition));
        self.plan(ctx, exchanges);
    }

    /// Enough sources are covered.
    fn end(&mut self, ctx: &mut Ctx<'_>, partition: PartitionId) {
        let Some(copy) = self.copies.get_mut(&partition) else { return };
        copy.ending = true;
        if copy.purpose == Purpose::Refill {
            let synced = ctx.view.entry(partition).and_then(|entry| {
                let own = entry.old_owner(ctx.me())?;
                Some((ctx.view.incarnation.store, own.since))
            });
            if let Some(synced) = synced {
                let durable = ctx.kernel.persist_meta(meta::synced(partition), meta::encode(&synced));
                ctx.kernel.after(durable, AfterDurable::Synced { partition, synced });
            }
        } else {
            ctx.kernel.read_stats(partition, ReadFor::Stats(StatsFor::Receipt(partition)));
        }
    }

    pub(crate) fn receipt_unreadable(&mut self, ctx: &mut Ctx<'_>, partition: PartitionId) {
        if let Some(copy) = self.copies.get_mut(&partition) {
            copy.ending = false;
            let at = ctx.kernel.now.mono.plus(ctx.view.config.retry_after);
            ctx.kernel.arm(at, Timer::Copy(partition));
        }
    }

    /// The receipt and what it stands for become durable together.
    pub(crate) fn write_receipt(&mut self, ctx: &mut Ctx<'_>, partition: PartitionId, own: &PartitionStats) {
        let Some(copy) = self.copies.get(&partition).filter(|copy| copy.ending) else { return };
        let receipt = Receipt {
            partition,
            joint: ctx.view.joint_epoch(partition).unwrap_or_default(),
            node: ctx.me(),
            store: ctx.view.incarnation.store,
            sources: copy.progress.covered.clone(),
            keys: ctx.view.kept(own).keys,
            bytes: copy.progress.bytes,
        };
        self.progress.remove(&partition);
        ctx.kernel.forget_meta(meta::progress(partition));
        ctx.kernel.persist_meta(meta::receipt(partition), meta::encode(&receipt));
        if let Some(synced) = ctx.view.synced_by_entering(partition) {
            ctx.kernel.persist_meta(meta::synced(partition), meta::encode(&synced));
        }
        ctx.kernel.after_issued(AfterDurable::Covered(Box::new(receipt)));
    }

    /// A receipt is durable. Whether it counts: the migration may have ended meanwhile, or another one begun.
    pub(crate) fn receipt_durable(&mut self, ctx: &mut Ctx<'_>, exchanges: &mut Exchanges, receipt: Receipt) -> bool {
        let partition = receipt.partition;
        let counts = ctx.view.joint_epoch(partition) == Some(receipt.joint);
        if counts {
            let (sources, keys) = (receipt.sources.len(), receipt.keys);
            ctx.kernel.event(Event::CopyDone { partition, sources, keys });
            self.receipts.insert(partition, receipt);
            self.copies.remove(&partition);
        }
        self.plan(ctx, exchanges);
        counts
    }

    /// It is durable that a partition is complete.
    pub(crate) fn refilled(&mut self, ctx: &mut Ctx<'_>, exchanges: &mut Exchanges, partition: PartitionId) {
        // A layout may have begun the refill again meanwhile.
        let is_refill = self.copies.get(&partition).is_some_and(|copy| copy.purpose == Purpose::Refill);
        let refill = if is_refill { self.copies.remove(&partition) } else { None };
        if let Some(Copy { exchange: Some((id, _)), .. }) = refill {
            exchanges.cancel(ctx, id);
        }
        let records = refill.map_or(0, |copy| copy.progress.keys);
        ctx.kernel.event(Event::RefillDone { partition, records });
        if let Some((values, kept)) = ctx.kernel.take_set_aside() {
            ctx.kernel.event(Event::SetAside { values, kept });
        }
        self.plan(ctx, exchanges);
    }

    /// Partitions that migrate to this node and are not covered yet.
    pub(crate) fn receiving(&self, view: &View) -> usize {
        view.partition_ids().filter(|&partition| self.lacks(view, partition) == Some(Purpose::Copy)).count()
    }

    /// Bytes of keys and records that came in for copies and refills since the loop began.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The receipt of this store for the migration of a partition under way.
    fn receipt(&self, view: &View, partition: PartitionId) -> Option<&Receipt> {
        let joint = view.joint(partition)?;
        let counts = |receipt: &&Receipt| {
            receipt.store == view.incarnation.store && (receipt.joint == joint.epoch || !view.keep(Rule::SinceCounts))
        };
        self.receipts.get(&partition).filter(counts)
    }

    /// The receipts of the migrations under way: the control plane cuts over by them.
    pub(crate) fn receipts(&self, view: &View) -> Vec<Receipt> {
        self.receipts.keys().filter_map(|&partition| self.receipt(view, partition).cloned()).collect()
    }
}
