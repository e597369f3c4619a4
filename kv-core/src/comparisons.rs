//! Anti-entropy: the owners of a partition compare what they hold, two at a time, and each gives the other what it lacks.
//! Replicas so become equal without reads, marks or anybody asking.
//!
//! In the background the owner with the lower number begins, at a pace at which every pair has had its turn within
//! `repair_every`. A coordinator that dies during a write leaves a record on some owners only, and nobody who would bring it
//! to the others: comparisons are **pending** then, and follow one another at once, but for those that were requested by an operator.
//! One comparison of a node's own runs at a time.
//!
//! Pending is every pair of owners that may have been left apart, by whoever of them learns of it: all other pairs when the
//! session of a member ends, by a node that starts all of its own (it may have coordinated), and the pairs of a partition
//! that was cut over or filled, since its owners then are not those that were compared. Owners notice the end of a session
//! one after the other, so both sides of a pair begin; the later one sees all that was on its way. What is equal costs one
//! short question.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::event::Event;
use crate::exchange::{Ended, Exchanges};
use crate::message::Purpose;
use crate::rule::Rule;
use crate::shell::RepairStats;
use crate::types::{NodeId, PartitionId};
use crate::view::View;
use crate::wiring::{Ctx, ExchangeId, Peers, Timer};

/// Turns are never closer together than this, however many partitions there are.
const TURN_MIN: Duration = Duration::from_millis(10);

/// Comparisons, on request and in the background.
#[derive(Debug, Default)]
pub(crate) struct Comparisons {
    /// Those requested by an operator that have not begun, in order and by name.
    asked: VecDeque<(PartitionId, NodeId)>,
    names: BTreeSet<(PartitionId, NodeId)>,
    /// Comparisons that are pending, by the other owner. Those whose owner is down wait for it.
    pending_with: BTreeMap<NodeId, BTreeSet<PartitionId>>,
    /// Those that failed, until they are tried again.
    deferred: Vec<(PartitionId, NodeId)>,
    /// What those have come to since there were none.
    done: Done,
    running: Option<Running>,
    figures: RepairStats,
    /// The last one that had its turn in the background.
    last: Option<(PartitionId, NodeId)>,
    /// How many take turns in the background; `None` if that has to be counted again.
    pairs: Option<u32>,
}

/// The comparison that runs.
#[derive(Debug)]
struct Running {
    id: ExchangeId,
    partition: PartitionId,
    reason: Reason,
}

/// Why two owners are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    Requested,
    Pending,
    Turn,
}

/// Comparisons that were pending and are done.
#[derive(Clone, Copy, Debug, Default)]
struct Done {
    comparisons: u64,
    records: u64,
}

impl Comparisons {
    /// Compares partitions with all of their other owners, as soon as possible. Those that this node does not hold all of
    /// are left out.
    pub(crate) fn request(&mut self, ctx: &mut Ctx<'_>, exchanges: &mut Exchanges, partitions: &[PartitionId]) {
        for &partition in partitions {
            let peers = comparable(ctx.view, partition);
            for peer in peers.into_iter().filter(|peer| ctx.is_up(*peer)).collect::<Vec<_>>() {
                if self.names.insert((partition, peer)) {
                    self.asked.push_back((partition, peer));
                    self.figures.asked += 1;
                }
            }
        }
        self.next(ctx, exchanges, false);
    }

    /// A background comparison's turn has come.
    pub(crate) fn turn(&mut self, ctx: &mut Ctx<'_>, exchanges: &mut Exchanges) {
        self.next(ctx, exchanges, true);
        let every = ctx.view.config.repair_every;
        if !every.is_zero() {
            let pace = (every / self.pairs(ctx).max(1)).max(TURN_MIN);
            ctx.kernel.arm(ctx.kernel.now.mono.plus(pace), Timer::Repair);
        }
    }

    /// Begins the next comparison, unless one runs.
    fn next(&mut self, ctx: &mut Ctx<'_>, exchanges: &mut Exchanges, background: bool) {
        if self.running.is_some() {
            return;
        }
        while let Some((partition, peer)) = self.asked.pop_front() {
            self.names.remove(&(partition, peer));
            if comparable(ctx.view, partition).contains(&peer) && ctx.is_up(peer) {
                return self.start(ctx, exchanges, partition, peer, Reason::Requested);
            }
            self.figures.failed += 1;
        }
        if let Some((partition, peer)) = self.next_pending(ctx) {
            return self.start(ctx, exchanges, partition, peer, Reason::Pending);
        }
        self.report_done(ctx);
        let Some(layout) = ctx.view.layout().cloned().filter(|_| background) else { return };
        let last = self.last;
        let from = last.map_or(PartitionId(0), |last| last.0);
        // Once around, from the last one's partition to what precedes the last one in it.
        let ids =
            layout.partition_ids().filter(|&id| id >= from).chain(layout.partition_ids().filter(|&id| id <= from));
        let mut is_first = true;
        for partition in ids {
            let behind_last = std::mem::take(&mut is_first);
            let after = |peer: &NodeId| !behind_last || last.is_none_or(|last| (partition, *peer) > last);
            let mut peers = self.begun_here(ctx, partition);
            peers.sort_unstable();
            if let Some(&peer) = peers.iter().find(|peer| after(peer) && ctx.is_up(**peer)) {
                self.last = Some((partition, peer));
                return self.start(ctx, exchanges, partition, peer, Reason::Turn);
            }
        }
    }

    /// A member's session has ended. Should it have died during a write, only some of the others may have it.
    pub(crate) fn add_without(&mut self, ctx: &mut Ctx<'_>, exchanges: &mut Exchanges, gone: NodeId) {
        self.add(ctx, |_, peer| peer != gone);
        self.next(ctx, exchanges, false);
    }

    /// A partition's copy here may differ from those of its other owners.
    pub(crate) fn add_partition(&mut self, ctx: &mut Ctx<'_>, exchanges: &mut Exchanges, partition: PartitionId) {
        self.add_of(ctx, partition, |_| true);
        self.next(ctx, exchanges, false);
    }

    fn add(&mut self, ctx: &mut Ctx<'_>, which: impl Fn(PartitionId, NodeId) -> bool) {
        for partition in ctx.view.partition_ids() {
            self.add_of(ctx, partition, |peer| which(partition, peer));
        }
    }

    /// Whether the copy here is complete is asked when the turn has come: a partition that is filled is pending when it is.
    fn add_of(&mut self, ctx: &mut Ctx<'_>, partition: PartitionId, which: impl Fn(NodeId) -> bool) {
        if !ctx.view.owns(partition) || !ctx.view.keep(Rule::CompareAfterCrash) {
            return;
        }
        let me = ctx.me();
        let Some(entry) = ctx.view.entry(partition) else { return };
        let peers = entry.owners.iter().map(|owner| owner.node).filter(|&node| node != me && which(node));
        for peer in peers.collect::<Vec<_>>() {
            self.pending_with.entry(peer).or_default().insert(partition);
        }
    }

    /// Takes the next comparison that is pending and can be made.
    fn next_pending(&mut self, ctx: &mut Ctx<'_>) -> Option<(PartitionId, NodeId)> {
        loop {
            let up = |(peer, pending): &(&NodeId, &BTreeSet<PartitionId>)| ctx.is_up(**peer) && !pending.is_empty();
            let peer = *self.pending_with.iter().find(up)?.0;
            let partition = self.pending_with.get_mut(&peer)?.pop_first()?;
            if comparable(ctx.view, partition).contains(&peer) {
                return Some((partition, peer));
            }
        }
    }

    /// Tries again what was pending and failed.
    pub(crate) fn again(&mut self, ctx: &mut Ctx<'_>, exchanges: &mut Exchanges) {
        for (partition, peer) in std::mem::take(&mut self.deferred) {
            self.pending_with.entry(peer).or_default().insert(partition);
        }
        self.next(ctx, exchanges, false);
    }

    /// Says what the comparisons that were pending have come to, when none is left.
    fn report_done(&mut self, ctx: &mut Ctx<'_>) {
        if self.pending_up(&ctx.kernel.peers) > 0 {
            return;
        }
        let Done { comparisons, records } = std::mem::take(&mut self.done);
        if records > 0 {
            ctx.kernel.event(Event::Compared { comparisons, records });
        }
    }

    /// Comparisons that are pending with owners that are up, the one that runs included.
    fn pending_up(&self, peers: &Peers) -> usize {
        let waiting =
            self.pending_with.iter().filter(|(peer, _)| peers.is_up(**peer)).map(|(_, pending)| pending.len());
        let deferred = self.deferred.iter().filter(|(_, peer)| peers.is_up(*peer)).count();
        let running = self.running.as_ref().is_some_and(|running| running.reason == Reason::Pending);
        waiting.sum::<usize>() + deferred + usize::from(running)
    }

    /// Layouts, and partitions that have become complete, change how many pairs there are.
    pub(crate) fn recount(&mut self) {
        self.pairs = None;
    }

    fn pairs(&mut self, ctx: &mut Ctx<'_>) -> u32 {
        if let Some(pairs) = self.pairs {
            return pairs;
        }
        let pairs: usize = ctx.view.partition_ids().map(|partition| self.begun_here(ctx, partition).len()).sum();
        let pairs = u32::try_from(pairs).unwrap_or(u32::MAX);
        self.pairs = Some(pairs);
        pairs
    }

    /// The other owners with which this node begins comparisons in the background.
    fn begun_here(&self, ctx: &Ctx<'_>, partition: PartitionId) -> Vec<NodeId> {
        let me = ctx.me();
        comparable(ctx.view, partition).into_iter().filter(|&peer| me < peer).collect()
    }

    fn start(
        &mut self,
        ctx: &mut Ctx<'_>,
        exchanges: &mut Exchanges,
        partition: PartitionId,
        peer: NodeId,
        reason: Reason,
    ) {
        let id = exchanges.start(ctx, partition, peer, Purpose::Repair, true, None);
        self.running = Some(Running { id, partition, reason });
    }

    /// Both hold the same, except for what was written meanwhile.
    pub(crate) fn done(&mut self, ctx: &mut Ctx<'_>, exchanges: &mut Exchanges, ended: &Ended) {
        if let Some(running) = self.running.take_if(|running| running.id == ended.id) {
            let (partition, peer, records) = (ended.partition, ended.peer, ended.records);
            match running.reason {
                Reason::Requested => {
                    self.figures.done += 1;
                    self.figures.records += records;
                }
                Reason::Pending => {
                    self.done.comparisons += 1;
                    self.done.records += records;
                }
                Reason::Turn => {}
            }
            // Of pending ones one event tells in the end: there are many, and writes under way make copies differ, too.
            if records > 0 && running.reason != Reason::Pending {
                ctx.kernel.event(Event::Repaired { partition, peer, records });
            }
            self.next(ctx, exchanges, false);
        }
    }

    /// The other owner is not complete, or one of both does not know the layout: the comparison is pending again when that changes.
    pub(crate) fn refused(&mut self, id: ExchangeId) {
        if let Some(running) = &mut self.running
            && running.id == id
            && running.reason == Reason::Pending
        {
            running.reason = Reason::Turn;
        }
    }

    /// The other owner cannot compare now: its turn comes again.
    pub(crate) fn failed(&mut self, ctx: &mut Ctx<'_>, exchanges: &mut Exchanges, ended: &Ended) {
        if let Some(running) = self.running.take_if(|running| running.id == ended.id) {
            match running.reason {
                Reason::Requested => self.figures.failed += 1,
                Reason::Pending => {
                    ctx.kernel.arm(ctx.kernel.now.mono.plus(ctx.view.config.retry_after), Timer::Deferred);
                    self.deferred.push((ended.partition, ended.peer));
                }
                Reason::Turn => {}
            }
            self.next(ctx, exchanges, false);
        }
    }

    /// The entries of some partitions have changed: their comparisons are void, and pending for those who own them now.
    pub(crate) fn restart(
        &mut self,
        ctx: &mut Ctx<'_>,
        exchanges: &mut Exchanges,
        changed: &dyn Fn(PartitionId) -> bool,
    ) {
        self.recount();
        if let Some(layout) = ctx.view.layout() {
            self.pending_with.retain(|peer, _| layout.members.contains_key(peer));
        }
        self.add(ctx, |partition, _| changed(partition));
        let is_void = |running: &mut Running| changed(running.partition);
        if let Some(running) = self.running.take_if(is_void) {
            exchanges.cancel(ctx, running.id);
            self.figures.failed += u64::from(running.reason == Reason::Requested);
        }
        self.next(ctx, exchanges, false);
    }

    /// Comparisons requested by an operator, and those pending with owners that are up, until they are done.
    pub(crate) fn pending(&self, peers: &Peers) -> usize {
        let requested = self.running.as_ref().is_some_and(|running| running.reason == Reason::Requested);
        self.asked.len() + usize::from(requested) + self.pending_up(peers)
    }

    /// What became of comparisons requested by an operator.
    pub(crate) fn figures(&self) -> RepairStats {
        self.figures
    }
}

/// The other owners with which this node's copy of a partition can be compared. None if this node does not hold all of it.
pub(crate) fn comparable(view: &View, partition: PartitionId) -> Vec<NodeId> {
    let complete = view.owns(partition) && view.is_synced(partition);
    let Some(entry) = view.entry(partition).filter(|_| complete) else { return Vec::new() };
    entry.owners.iter().map(|owner| owner.node).filter(|&node| node != view.me()).collect()
}
