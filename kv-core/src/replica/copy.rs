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

mod retry;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::exchange::{Exchange, ExchangeId};
use crate::event::Event;
use crate::message::{Errand, Position};
use crate::node::keys::{Held, LeavesFor};
use crate::node::timers::Timer;
use crate::node::{Effect, Node, meta};
use crate::ring::{Entry, Joint};
use crate::rule::Rule;
use crate::storage::PartitionStats;
use crate::topology::{Receipt, SourceReceipt, Transfer, TransferPhase, TransferSettings, Wait};
use crate::types::{Epoch, Monotonic, NodeId, PartitionId, StoreId};

/// A partition that is being filled.
#[derive(Debug)]
pub(crate) struct Copy {
    errand: Errand,
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
pub(crate) struct Progress {
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

impl Node {
    /// Starts to fill partitions that lack something, as many at once as the settings allow.
    pub(crate) fn plan_copies(&mut self) {
        let Some(layout) = self.layout.clone() else { return };
        // Those that wait for a source or a turn come first.
        for partition in self.copies.keys().copied().collect::<Vec<_>>() {
            self.copy_step(partition);
        }
        for partition in layout.partition_ids() {
            if let Some(errand) = self.lacks(partition)
                && !self.copies.contains_key(&partition)
                && self.has_turn(errand)
            {
                self.start_copy(partition, errand);
            }
        }
    }

    /// What has to be done before this node's copy of a partition is complete.
    fn lacks(&self, partition: PartitionId) -> Option<Errand> {
        if !self.is_listed() {
            return None;
        }
        let me = self.config.node;
        let entry = self.entry(partition).filter(|_| self.config.partitions.contains(partition))?;
        if entry.owners.iter().any(|owner| owner.node == me) && !self.is_synced(partition) {
            // Without another owner nothing can be copied back. The partition stays closed: an empty answer would be
            // a lie, and only an operator can decide that its data is given up.
            return (entry.owners.len() > 1).then_some(Errand::Refill);
        }
        let receives = entry.joint.as_ref().is_some_and(|joint| joint.receivers.iter().any(|to| to.node == me));
        (receives && self.receipt(partition).is_none()).then_some(Errand::Copy)
    }

    /// Whether the layout lists this store. A store is filled only by such a layout (rule D2): it is newer than anything
    /// that the store's predecessor confirmed, and no receipt of the predecessor counts any more. By an older one, the
    /// other owners might all lack what the predecessor confirmed with an owner that has entered since.
    pub(crate) fn is_listed(&self) -> bool {
        let member = self.layout.as_ref().and_then(|layout| layout.members.get(&self.config.node));
        member.is_some_and(|member| member.store == self.incarnation.store) || !self.rules.keep(Rule::ListedStore)
    }

    /// Whether one more may ask. Those that have nobody to ask take no turn.
    fn has_turn(&self, errand: Errand) -> bool {
        let runs = |copy: &&Copy| copy.errand == errand && (copy.exchange.is_some() || copy.ending);
        let running = self.copies.values().filter(runs).count();
        if errand == Errand::Refill {
            return running < self.config.refills_max;
        }
        !self.transfers.paused && running < usize::from(self.transfers.transfers_max.max(1))
    }

    fn start_copy(&mut self, partition: PartitionId, errand: Errand) {
        let joint = self.joint(partition).map(|joint| joint.epoch).unwrap_or_default();
        let store = self.incarnation.store;
        let kept = if errand == Errand::Copy { self.progress.remove(&partition) } else { None };
        let counts = |progress: &Progress| {
            progress.store == store && (progress.joint == joint || !self.rules.keep(Rule::SinceCounts))
        };
        let progress = kept.filter(counts).unwrap_or_else(|| Progress { store, joint, ..Progress::default() });
        let copy = Copy {
            errand,
            exchange: None,
            progress,
            keys_total: 0,
            bytes_total: 0,
            tries: 1,
            failed: BTreeMap::new(),
            given_up: Vec::new(),
            ending: false,
        };
        self.out.push(Effect::Event(match errand {
            Errand::Copy => Event::CopyStarted { partition },
            _ => Event::RefillStarted { partition },
        }));
        self.copies.insert(partition, copy);
        self.copy_step(partition);
    }

    /// The entries of some partitions have changed: what is under way for them belongs to the past.
    pub(crate) fn restart_copies(&mut self, changed: &dyn Fn(PartitionId) -> bool) {
        for partition in self.copies.keys().copied().filter(|&partition| changed(partition)).collect::<Vec<_>>() {
            if let Some(Copy { exchange: Some((id, _)), .. }) = self.copies.remove(&partition) {
                self.cancel_exchange(id);
            }
        }
        if self.rules.keep(Rule::SinceCounts) {
            self.forget_outdated();
        }
        self.plan_copies();
    }

    /// Progress and receipts count at their joint epoch only (rule E3).
    fn forget_outdated(&mut self) {
        let joint = |partition: PartitionId| self.joint(partition).map(|joint| joint.epoch);
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
            self.forget_meta(meta::receipt(partition));
        }
        for partition in void {
            self.progress.remove(&partition);
            self.forget_meta(meta::progress(partition));
        }
    }

    /// Begins the next exchange, or ends the copy.
    pub(crate) fn copy_step(&mut self, partition: PartitionId) {
        let Some(copy) = self.copies.get(&partition) else { return };
        if copy.exchange.is_some() || copy.ending {
            return;
        }
        let Some(entry) = self.entry(partition).cloned() else { return };
        let sources = self.sources(&entry, copy.errand);
        let covered = |node: &NodeId| copy.progress.covered.iter().any(|source| source.node == *node);
        let need = match (copy.errand, &entry.joint) {
            (Errand::Copy, Some(joint)) => self.sources_needed(&entry, joint),
            _ => sources.len(),
        };
        if sources.iter().filter(|&node| covered(node)).count() >= need {
            return self.end_copy(partition);
        }
        let now = self.now.mono;
        let is_due = |node: &NodeId| copy.failed.get(node).is_none_or(|failed| failed.1 <= now);
        let mut open = sources.iter().copied().filter(|node| !covered(node) && self.is_up(*node));
        let Some(source) = open.clone().filter(is_due).min_by_key(|&node| copy.turn_of(node)) else {
            let next = open.by_ref().filter_map(|node| copy.failed.get(&node)).map(|failed| failed.1).min();
            if let Some(at) = next {
                self.arm(at, Timer::Copy(partition));
            }
            return;
        };
        if !self.has_turn(copy.errand) {
            return;
        }
        let after = copy.progress.cursor.as_ref().filter(|cursor| cursor.0 == source).map(|cursor| cursor.1.clone());
        let compare_only = copy.progress.compare_only;
        let errand = copy.errand;
        let id = self.start_exchange(partition, source, errand, compare_only, after);
        if let Some(copy) = self.copies.get_mut(&partition) {
            copy.exchange = Some((id, source));
        }
    }

    /// From whom a partition may be filled, in the order in which they are asked.
    fn sources(&self, entry: &Entry, errand: Errand) -> Vec<NodeId> {
        let me = self.config.node;
        let mut sources: Vec<NodeId> = entry.owners.iter().map(|owner| owner.node).filter(|&node| node != me).collect();
        if errand == Errand::Copy
            && let Some(joint) = &entry.joint
        {
            let first = joint.receivers.iter().find(|to| to.node == me).map(|to| to.source);
            // Who leaves is asked before who stays: what only a leaving owner holds is covered early that way.
            sources.sort_by_key(|&node| (Some(node) != first, !entry.leaves(node)));
        }
        sources
    }

    /// How many other old owners must cover this node. An old owner that stays covers itself.
    fn sources_needed(&self, entry: &Entry, joint: &Joint) -> usize {
        let me = self.config.node;
        let own = usize::from(!entry.enters(me));
        if self.rules.keep(Rule::CoveredByMajority) {
            usize::from(joint.sources_min).saturating_sub(own)
        } else {
            1usize.saturating_sub(own)
        }
    }

    /// Records were received from the source under way.
    pub(crate) fn copy_received(&mut self, id: ExchangeId, partition: PartitionId, keys: u64, bytes: u64) {
        let Some(copy) = self.copy_of(id, partition) else { return };
        copy.progress.keys += keys;
        copy.progress.bytes += bytes;
        self.copied_bytes += bytes;
    }

    fn copy_of(&mut self, id: ExchangeId, partition: PartitionId) -> Option<&mut Copy> {
        self.copies.get_mut(&partition).filter(|copy| copy.exchange.is_some_and(|exchange| exchange.0 == id))
    }

    /// Everything up to a place, or all (`None`), was taken in order from the source under way and is durable.
    pub(crate) fn copy_moved(&mut self, id: ExchangeId, at: Option<Position>) {
        let Some(partition) = self.exchanges.get(&id).map(|exchange| exchange.partition) else { return };
        let Some(copy) = self.copy_of(id, partition) else { return };
        let Some((_, source)) = copy.exchange else { return };
        copy.progress.compare_only |= at.is_none();
        copy.progress.cursor = at.map(|at| (source, at));
        self.persist_progress(partition);
    }

    fn persist_progress(&mut self, partition: PartitionId) {
        let Some(copy) = self.copies.get(&partition) else { return };
        if copy.errand == Errand::Copy {
            let progress = copy.progress.clone();
            self.persist_meta(meta::progress(partition), meta::encode(&progress));
            self.progress.insert(partition, progress);
        }
    }

    /// All that a source held is held here.
    pub(crate) fn copy_covered(&mut self, id: ExchangeId, exchange: &Exchange) {
        let partition = exchange.partition;
        let Some(copy) = self.copy_of(id, partition) else { return };
        copy.exchange = None;
        let root = exchange.tree.as_ref().map_or(0, |tree| tree.root);
        let tally = exchange.tree.as_ref().map(|tree| tree.tally).unwrap_or_default();
        copy.keys_total = copy.keys_total.max(tally.keys);
        copy.bytes_total = copy.bytes_total.max(tally.bytes);
        copy.failed.remove(&exchange.peer);
        copy.progress.covered.push(SourceReceipt { node: exchange.peer, root });
        copy.progress.compare_only = true;
        copy.progress.cursor = None;
        self.persist_progress(partition);
        self.copy_step(partition);
    }

    /// The source under way can not go on.
    pub(crate) fn copy_failed(&mut self, id: ExchangeId, exchange: &Exchange, why: String) {
        let partition = exchange.partition;
        let at = self.now.mono.plus(self.config.retry_after);
        let inherits = !self.rules.keep(Rule::CoverageOfEachSource) && exchange.tree.is_some();
        let Some(copy) = self.copy_of(id, partition) else { return };
        copy.exchange = None;
        copy.tries += 1;
        copy.failed.insert(exchange.peer, (why, at));
        if inherits {
            copy.progress.covered.push(SourceReceipt { node: exchange.peer, root: 0 });
        }
        self.arm(at, Timer::Copy(partition));
        self.plan_copies();
    }

    /// Enough sources are covered.
    fn end_copy(&mut self, partition: PartitionId) {
        let Some(copy) = self.copies.get_mut(&partition) else { return };
        copy.ending = true;
        if copy.errand == Errand::Refill {
            self.mark_synced(partition);
        } else {
            self.read_leaves(partition, LeavesFor::Receipt(partition));
        }
    }

    pub(crate) fn receipt_unreadable(&mut self, partition: PartitionId) {
        if let Some(copy) = self.copies.get_mut(&partition) {
            copy.ending = false;
            let at = self.now.mono.plus(self.config.retry_after);
            self.arm(at, Timer::Copy(partition));
        }
    }

    /// The receipt and what it stands for become durable together.
    pub(crate) fn write_receipt(&mut self, partition: PartitionId, own: &PartitionStats) {
        let Some(copy) = self.copies.get(&partition).filter(|copy| copy.ending) else { return };
        let receipt = Receipt {
            partition,
            joint: self.joint(partition).map(|joint| joint.epoch).unwrap_or_default(),
            node: self.config.node,
            store: self.incarnation.store,
            sources: copy.progress.covered.clone(),
            keys: self.kept(own).keys,
            bytes: copy.progress.bytes,
        };
        self.progress.remove(&partition);
        self.forget_meta(meta::progress(partition));
        self.persist_meta(meta::receipt(partition), meta::encode(&receipt));
        if self.entry(partition).is_some_and(|entry| entry.enters(self.config.node)) {
            let synced = (self.incarnation.store, receipt.joint);
            self.persist_meta(meta::synced(partition), meta::encode(&synced));
        }
        self.hold(self.issued(), Held::Covered(Box::new(receipt)));
    }

    /// The receipt is durable.
    pub(crate) fn receipt_durable(&mut self, receipt: Receipt) {
        let partition = receipt.partition;
        // The migration may have ended meanwhile, or another one begun.
        if self.joint(partition).map(|joint| joint.epoch) == Some(receipt.joint) {
            if self.entry(partition).is_some_and(|entry| entry.enters(self.config.node)) {
                self.synced.insert(partition, (receipt.store, receipt.joint));
            }
            let (sources, keys) = (receipt.sources.len(), receipt.keys);
            self.out.push(Effect::Event(Event::CopyDone { partition, sources, keys }));
            self.receipts.insert(partition, receipt);
            self.recount_pairs();
            self.copies.remove(&partition);
        }
        self.plan_copies();
    }

    /// It is durable that the partition is complete.
    pub(crate) fn synced_durable(&mut self, partition: PartitionId, synced: meta::Synced) {
        self.synced.insert(partition, synced);
        // A layout may have begun the refill anew meanwhile.
        let is_refill = self.copies.get(&partition).is_some_and(|copy| copy.errand == Errand::Refill);
        let refill = if is_refill { self.copies.remove(&partition) } else { None };
        if let Some(Copy { exchange: Some((id, _)), .. }) = refill {
            self.cancel_exchange(id);
        }
        let records = refill.map_or(0, |copy| copy.progress.keys);
        self.out.push(Effect::Event(Event::RefillDone { partition, records }));
        self.recount_pairs();
        self.plan_copies();
        self.owe_partition(partition);
    }

    /// How fast partitions may be copied from now on.
    pub(crate) fn transfers_given(&mut self, settings: TransferSettings) {
        if self.transfers == settings {
            return;
        }
        self.transfers = settings;
        self.throttle.limit(settings.bytes_per_second_max, self.now.mono);
        self.wake_exchanges(|_| true);
        self.plan_copies();
        self.arm_handovers();
    }

    /// Partitions that migrate to this node and are not covered yet.
    pub(crate) fn receiving(&self) -> usize {
        let Some(layout) = &self.layout else { return 0 };
        layout.partition_ids().filter(|&partition| self.lacks(partition) == Some(Errand::Copy)).count()
    }

    /// The migration of a partition.
    fn joint(&self, partition: PartitionId) -> Option<&Joint> {
        self.entry(partition)?.joint.as_ref()
    }

    /// The receipt of this store for the migration of a partition under way.
    fn receipt(&self, partition: PartitionId) -> Option<&Receipt> {
        let joint = self.joint(partition)?;
        let counts = |receipt: &&Receipt| {
            receipt.store == self.incarnation.store
                && (receipt.joint == joint.epoch || !self.rules.keep(Rule::SinceCounts))
        };
        self.receipts.get(&partition).filter(counts)
    }

    /// The receipts of the migrations under way: the control plane cuts over by them.
    #[must_use]
    pub fn receipts(&self) -> Vec<Receipt> {
        self.receipts.keys().filter_map(|&partition| self.receipt(partition).cloned()).collect()
    }

    /// The partitions that migrate to this node, and how far each is.
    #[must_use]
    pub fn transfers(&self) -> Vec<Transfer> {
        let Some(layout) = &self.layout else { return Vec::new() };
        let me = self.config.node;
        let ids = layout.partition_ids().filter(|&partition| self.config.partitions.contains(partition));
        ids.filter_map(|partition| {
            let joint = self.joint(partition)?;
            joint.receivers.iter().any(|to| to.node == me).then(|| self.transfer(partition, joint.epoch))
        })
        .collect()
    }

    fn transfer(&self, partition: PartitionId, joint: Epoch) -> Transfer {
        let mut transfer = Transfer {
            partition,
            joint,
            source: None,
            phase: TransferPhase::Waiting,
            keys: 0,
            keys_total: 0,
            bytes: 0,
            bytes_total: 0,
            tries: 0,
            waiting_for: None,
        };
        if let Some(receipt) = self.receipt(partition) {
            transfer.phase = TransferPhase::Covered;
            (transfer.keys, transfer.keys_total) = (receipt.keys, receipt.keys);
            (transfer.bytes, transfer.bytes_total) = (receipt.bytes, receipt.bytes);
            return transfer;
        }
        let Some(copy) = self.copies.get(&partition) else {
            transfer.waiting_for = Some(if !self.is_listed() {
                Wait::Other("the control plane to list this node's new store".to_owned())
            } else if self.transfers.paused {
                Wait::Paused
            } else {
                let most = self.transfers.transfers_max.max(1);
                Wait::Other(format!("its turn: {most} partitions are copied at once"))
            });
            return transfer;
        };
        let exchange = copy.exchange.and_then(|(id, _)| self.exchanges.get(&id));
        let tree = exchange.and_then(|exchange| exchange.tree.as_ref()).map(|tree| tree.tally).unwrap_or_default();
        let copying = copy.progress.covered.is_empty() && exchange.is_none_or(Exchange::is_copying);
        transfer.phase = if copying { TransferPhase::Copying } else { TransferPhase::Verifying };
        transfer.source = copy.exchange.map(|exchange| exchange.1);
        transfer.keys = copy.progress.keys;
        transfer.bytes = copy.progress.bytes;
        transfer.keys_total = copy.keys_total.max(tree.keys).max(transfer.keys);
        transfer.bytes_total = copy.bytes_total.max(tree.bytes).max(transfer.bytes);
        transfer.tries = copy.tries;
        transfer.waiting_for = match exchange {
            Some(exchange) => exchange.waiting_for(self.now.mono),
            None if copy.ending => None,
            None => self.why_no_source(partition, copy).map(Wait::Other),
        };
        transfer
    }

    /// Why a copy has nobody to ask.
    fn why_no_source(&self, partition: PartitionId, copy: &Copy) -> Option<String> {
        if copy.errand == Errand::Refill {
            return Some("this node's own copy, whose store was lost, is being refilled first".to_owned());
        }
        let entry = self.entry(partition)?;
        let covered = |node: &NodeId| copy.progress.covered.iter().any(|source| source.node == *node);
        let why = |node: NodeId| match copy.failed.get(&node) {
            _ if !self.is_up(node) => format!("{node} is down"),
            Some((why, _)) => why.clone(),
            None => format!("{node} has not been asked yet"),
        };
        let reasons: Vec<String> =
            self.sources(entry, copy.errand).into_iter().filter(|node| !covered(node)).map(why).collect();
        Some(reasons.join("; "))
    }
}
