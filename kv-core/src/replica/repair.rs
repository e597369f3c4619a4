//! Anti-entropy: the owners of a partition compare what they hold, two at a time, and each gives the other what it lacks.
//! Replicas so become equal without reads, marks or anybody asking.
//!
//! In the background the owner with the lower number begins, at a pace at which every pair has had its turn within
//! `repair_every`. A coordinator that dies amid a write leaves a record on some owners only, and nobody who would bring it
//! to the others: comparisons are **owed** then, and follow one another at once, but for those that were asked for by hand.
//! One comparison of a node's own runs at a time.
//!
//! Owed is every pair of owners that may have been left apart, by whoever of them learns of it: all other pairs when the
//! session of a member ends, by a node that starts all of its own (it may have coordinated), and the pairs of a partition
//! that was cut over or filled, since its owners then are not those that were compared. Owners notice the end of a session
//! one after the other, so both sides of a pair begin; the later one sees all that was on its way. What is equal costs one
//! short question.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use super::exchange::{Exchange, ExchangeId};
use crate::event::Event;
use crate::message::Errand;
use crate::node::timers::Timer;
use crate::node::{Effect, Node};
use crate::rule::Rule;
use crate::types::{NodeId, PartitionId};

/// Turns are never closer together than this, however many partitions there are.
const TURN_MIN: Duration = Duration::from_millis(10);

/// Comparisons, by hand and in the background.
#[derive(Debug, Default)]
pub(crate) struct Repairs {
    /// Those asked for by hand that have not begun, in order and by name.
    asked: VecDeque<(PartitionId, NodeId)>,
    names: BTreeSet<(PartitionId, NodeId)>,
    /// Comparisons that are owed, by the other owner. Those whose owner is down wait for it.
    owed: BTreeMap<NodeId, BTreeSet<PartitionId>>,
    /// Those owed that failed, until they are tried again.
    put_off: Vec<(PartitionId, NodeId)>,
    /// What those owed have come to since there were none.
    paid: Paid,
    running: Option<Running>,
    figures: RepairFigures,
    /// The last one that had its turn in the background.
    last: Option<(PartitionId, NodeId)>,
    /// How many take turns in the background; `None` if that has to be counted again.
    pairs: Option<u32>,
}

/// The comparison that runs.
#[derive(Debug)]
struct Running {
    id: ExchangeId,
    reason: Reason,
}

/// Why two owners are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    ByHand,
    Owed,
    Turn,
}

/// Comparisons that were owed and are done.
#[derive(Clone, Copy, Debug, Default)]
struct Paid {
    comparisons: u64,
    records: u64,
}

/// What became of the comparisons that were asked for by hand, since the node started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RepairFigures {
    /// Comparisons asked for; those that are neither done nor failed are still to come.
    pub asked: u64,
    /// Comparisons that came to their end.
    pub done: u64,
    /// Comparisons that did not: the other owner refused or went down, or the layout changed.
    pub failed: u64,
    /// Records that they fetched and offered.
    pub records: u64,
}

impl Node {
    /// Compares partitions with all of their other owners, as soon as possible. Those that this node does not hold all of
    /// are left out.
    pub(crate) fn repair_by_hand(&mut self, partitions: &[PartitionId]) {
        for &partition in partitions {
            let peers = self.repair_peers(partition);
            for peer in peers.into_iter().filter(|peer| self.is_up(*peer)).collect::<Vec<_>>() {
                if self.repairs.names.insert((partition, peer)) {
                    self.repairs.asked.push_back((partition, peer));
                    self.repairs.figures.asked += 1;
                }
            }
        }
        self.next_repair(false);
    }

    /// The other owners with which this node's copy of a partition can be compared, and whether each is up. None if this
    /// node does not hold all of it.
    #[must_use]
    pub fn comparable(&self, partition: PartitionId) -> Vec<(NodeId, bool)> {
        self.repair_peers(partition).into_iter().map(|peer| (peer, self.is_up(peer))).collect()
    }

    /// The other owners with which this node's copy can be compared.
    fn repair_peers(&self, partition: PartitionId) -> Vec<NodeId> {
        let me = self.config.node;
        let complete = self.owns(partition) && self.is_synced(partition);
        let Some(entry) = self.entry(partition).filter(|_| complete) else { return Vec::new() };
        entry.owners.iter().map(|owner| owner.node).filter(|&node| node != me).collect()
    }

    /// A background comparison's turn has come.
    pub(crate) fn repair_turn(&mut self) {
        self.next_repair(true);
        let every = self.config.repair_every;
        if !every.is_zero() {
            let pace = (every / self.pairs().max(1)).max(TURN_MIN);
            self.arm(self.now.mono.plus(pace), Timer::Repair);
        }
    }

    /// Begins the next comparison, unless one runs.
    fn next_repair(&mut self, background: bool) {
        if self.repairs.running.is_some() {
            return;
        }
        while let Some((partition, peer)) = self.repairs.asked.pop_front() {
            self.repairs.names.remove(&(partition, peer));
            if self.repair_peers(partition).contains(&peer) && self.is_up(peer) {
                return self.start_repair(partition, peer, Reason::ByHand);
            }
            self.repairs.figures.failed += 1;
        }
        if let Some((partition, peer)) = self.next_owed() {
            return self.start_repair(partition, peer, Reason::Owed);
        }
        self.tell_paid();
        let Some(layout) = self.layout.clone().filter(|_| background) else { return };
        let last = self.repairs.last;
        let from = last.map_or(PartitionId(0), |last| last.0);
        // Once around, from the last one's partition to what precedes the last one in it.
        let ids =
            layout.partition_ids().filter(|&id| id >= from).chain(layout.partition_ids().filter(|&id| id <= from));
        let mut is_first = true;
        for partition in ids {
            let behind_last = std::mem::take(&mut is_first);
            let after = |peer: &NodeId| !behind_last || last.is_none_or(|last| (partition, *peer) > last);
            let mut peers = self.begun_here(partition);
            peers.sort_unstable();
            if let Some(&peer) = peers.iter().find(|peer| after(peer) && self.is_up(**peer)) {
                self.repairs.last = Some((partition, peer));
                return self.start_repair(partition, peer, Reason::Turn);
            }
        }
    }

    /// A member's session has ended. Should it have died amid a write, only some of the others may have it.
    pub(crate) fn owe_without(&mut self, gone: NodeId) {
        self.owe(|_, peer| peer != gone);
        self.next_repair(false);
    }

    /// A partition's copy here may differ from those of its other owners.
    pub(crate) fn owe_partition(&mut self, partition: PartitionId) {
        self.owe_of(partition, |_| true);
        self.next_repair(false);
    }

    fn owe(&mut self, which: impl Fn(PartitionId, NodeId) -> bool) {
        let ids = self.layout.iter().flat_map(|layout| layout.partition_ids());
        for partition in ids.collect::<Vec<_>>() {
            self.owe_of(partition, |peer| which(partition, peer));
        }
    }

    /// Whether the copy here is complete is asked when the turn has come: a partition that is filled is owed when it is.
    fn owe_of(&mut self, partition: PartitionId, which: impl Fn(NodeId) -> bool) {
        if !self.owns(partition) || !self.rules.keep(Rule::CompareAfterCrash) {
            return;
        }
        let me = self.config.node;
        let Some(entry) = self.entry(partition) else { return };
        let peers = entry.owners.iter().map(|owner| owner.node).filter(|&node| node != me && which(node));
        for peer in peers.collect::<Vec<_>>() {
            self.repairs.owed.entry(peer).or_default().insert(partition);
        }
    }

    /// Takes the next comparison that is owed and can be made.
    fn next_owed(&mut self) -> Option<(PartitionId, NodeId)> {
        loop {
            let up = |(peer, owed): &(&NodeId, &BTreeSet<PartitionId>)| self.is_up(**peer) && !owed.is_empty();
            let peer = *self.repairs.owed.iter().find(up)?.0;
            let partition = self.repairs.owed.get_mut(&peer)?.pop_first()?;
            if self.repair_peers(partition).contains(&peer) {
                return Some((partition, peer));
            }
        }
    }

    /// Tries again what was owed and failed.
    pub(crate) fn owed_again(&mut self) {
        for (partition, peer) in std::mem::take(&mut self.repairs.put_off) {
            self.repairs.owed.entry(peer).or_default().insert(partition);
        }
        self.next_repair(false);
    }

    /// Says what the comparisons that were owed have come to, when none is left.
    fn tell_paid(&mut self) {
        if self.owed() > 0 {
            return;
        }
        let Paid { comparisons, records } = std::mem::take(&mut self.repairs.paid);
        if records > 0 {
            self.out.push(Effect::Event(Event::Compared { comparisons, records }));
        }
    }

    /// Comparisons that are owed with owners that are up, the one that runs included.
    fn owed(&self) -> usize {
        let waiting = self.repairs.owed.iter().filter(|(peer, _)| self.is_up(**peer)).map(|(_, owed)| owed.len());
        let put_off = self.repairs.put_off.iter().filter(|(_, peer)| self.is_up(*peer)).count();
        let running = self.repairs.running.as_ref().is_some_and(|running| running.reason == Reason::Owed);
        waiting.sum::<usize>() + put_off + usize::from(running)
    }

    /// Layouts, and partitions that have become complete, change how many pairs there are.
    pub(crate) fn recount_pairs(&mut self) {
        self.repairs.pairs = None;
    }

    fn pairs(&mut self) -> u32 {
        if let Some(pairs) = self.repairs.pairs {
            return pairs;
        }
        let ids = self.layout.iter().flat_map(|layout| layout.partition_ids());
        let pairs: usize = ids.map(|partition| self.begun_here(partition).len()).sum();
        let pairs = u32::try_from(pairs).unwrap_or(u32::MAX);
        self.repairs.pairs = Some(pairs);
        pairs
    }

    /// The other owners with which this node begins comparisons in the background.
    fn begun_here(&self, partition: PartitionId) -> Vec<NodeId> {
        let me = self.config.node;
        self.repair_peers(partition).into_iter().filter(|&peer| me < peer).collect()
    }

    fn start_repair(&mut self, partition: PartitionId, peer: NodeId, reason: Reason) {
        let id = self.start_exchange(partition, peer, Errand::Repair, true, None);
        self.repairs.running = Some(Running { id, reason });
    }

    /// Both hold the same, except for what was written meanwhile.
    pub(crate) fn repair_done(&mut self, id: ExchangeId, exchange: &Exchange) {
        if let Some(running) = self.repairs.running.take_if(|running| running.id == id) {
            let (partition, peer, records) = (exchange.partition, exchange.peer, exchange.records);
            match running.reason {
                Reason::ByHand => {
                    self.repairs.figures.done += 1;
                    self.repairs.figures.records += records;
                }
                Reason::Owed => {
                    self.repairs.paid.comparisons += 1;
                    self.repairs.paid.records += records;
                }
                Reason::Turn => {}
            }
            // Of those owed one event tells in the end: there are many, and writes under way make copies differ, too.
            if records > 0 && running.reason != Reason::Owed {
                self.out.push(Effect::Event(Event::Repaired { partition, peer, records }));
            }
            self.next_repair(false);
        }
    }

    /// The other owner is not complete, or one of both does not know the layout: it owes the comparison when that changes.
    pub(crate) fn repair_refused(&mut self, id: ExchangeId) {
        if let Some(running) = &mut self.repairs.running
            && running.id == id
            && running.reason == Reason::Owed
        {
            running.reason = Reason::Turn;
        }
    }

    /// The other owner cannot compare now: its turn comes again.
    pub(crate) fn repair_failed(&mut self, id: ExchangeId, exchange: &Exchange) {
        if let Some(running) = self.repairs.running.take_if(|running| running.id == id) {
            match running.reason {
                Reason::ByHand => self.repairs.figures.failed += 1,
                Reason::Owed => {
                    self.arm(self.now.mono.plus(self.config.retry_after), Timer::Owed);
                    self.repairs.put_off.push((exchange.partition, exchange.peer));
                }
                Reason::Turn => {}
            }
            self.next_repair(false);
        }
    }

    /// The entries of some partitions have changed: their comparisons are void, and owed by those who own them now.
    pub(crate) fn restart_repairs(&mut self, changed: &dyn Fn(PartitionId) -> bool) {
        self.recount_pairs();
        if let Some(layout) = &self.layout {
            self.repairs.owed.retain(|peer, _| layout.members.contains_key(peer));
        }
        self.owe(|partition, _| changed(partition));
        let exchanges = &self.exchanges;
        let is_void =
            |running: &mut Running| exchanges.get(&running.id).is_some_and(|exchange| changed(exchange.partition));
        if let Some(running) = self.repairs.running.take_if(is_void) {
            self.cancel_exchange(running.id);
            self.repairs.figures.failed += u64::from(running.reason == Reason::ByHand);
        }
        self.next_repair(false);
    }

    /// Comparisons asked for by hand, and those owed with owners that are up, until they are done.
    pub(crate) fn repairing(&self) -> usize {
        let by_hand = self.repairs.running.as_ref().is_some_and(|running| running.reason == Reason::ByHand);
        self.repairs.asked.len() + usize::from(by_hand) + self.owed()
    }

    /// What became of comparisons asked for by hand.
    pub(crate) fn repair_figures(&self) -> RepairFigures {
        self.repairs.figures
    }
}
