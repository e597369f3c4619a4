//! Anti-entropy: the owners of a partition compare what they hold, two at a time, and each gives the other what it lacks.
//! Replicas so become equal without reads, marks or anybody asking.
//!
//! Of two owners the one with the lower number begins. One comparison runs at a time, at a pace at which every pair has
//! had its turn within `repair_every`; those that were asked for by hand come first and follow one another at once.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use super::exchange::{Exchange, ExchangeId};
use crate::event::Event;
use crate::message::Errand;
use crate::node::timers::Timer;
use crate::node::{Effect, Node};
use crate::types::{NodeId, PartitionId};

/// Turns are never closer together than this, however many partitions there are.
const TURN_MIN: Duration = Duration::from_millis(10);

/// Comparisons, by hand and in the background.
#[derive(Debug, Default)]
pub(crate) struct Repairs {
    /// Those asked for by hand that have not begun, in order and by name.
    asked: VecDeque<(PartitionId, NodeId)>,
    names: BTreeSet<(PartitionId, NodeId)>,
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
    by_hand: bool,
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
        let Some(entry) = self.entry(partition).filter(|_| self.is_synced(partition)) else { return Vec::new() };
        entry.owners.iter().map(|owner| owner.node).filter(|&node| node != me).collect()
    }

    /// A background comparison's turn has come.
    pub(crate) fn repair_turn(&mut self) {
        self.next_repair(true);
        let every = self.config.repair_every;
        if !every.is_zero() {
            let pace = (every / self.pairs().max(1)).max(TURN_MIN);
            self.set_timer(self.now.mono.plus(pace), Timer::Repair);
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
                return self.start_repair(partition, peer, true);
            }
            self.repairs.figures.failed += 1;
        }
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
                return self.start_repair(partition, peer, false);
            }
        }
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

    fn start_repair(&mut self, partition: PartitionId, peer: NodeId, by_hand: bool) {
        let id = self.start_exchange(partition, peer, Errand::Repair, true, None);
        self.repairs.running = Some(Running { id, by_hand });
    }

    /// Both hold the same, except for what was written meanwhile.
    pub(crate) fn repair_done(&mut self, id: ExchangeId, exchange: &Exchange) {
        if let Some(running) = self.repairs.running.take_if(|running| running.id == id) {
            let (partition, peer, records) = (exchange.partition, exchange.peer, exchange.records);
            if running.by_hand {
                self.repairs.figures.done += 1;
                self.repairs.figures.records += records;
            }
            if records > 0 {
                self.out.push(Effect::Event(Event::Repaired { partition, peer, records }));
            }
            self.next_repair(false);
        }
    }

    /// The other owner cannot compare now: its turn comes again.
    pub(crate) fn repair_failed(&mut self, id: ExchangeId) {
        if let Some(running) = self.repairs.running.take_if(|running| running.id == id) {
            self.repairs.figures.failed += u64::from(running.by_hand);
            self.next_repair(false);
        }
    }

    /// The entries of some partitions have changed: their comparisons are void.
    pub(crate) fn restart_repairs(&mut self, changed: &dyn Fn(PartitionId) -> bool) {
        self.recount_pairs();
        let exchanges = &self.exchanges;
        let is_void =
            |running: &mut Running| exchanges.get(&running.id).is_some_and(|exchange| changed(exchange.partition));
        if let Some(running) = self.repairs.running.take_if(is_void) {
            self.cancel_exchange(running.id);
            self.repairs.figures.failed += u64::from(running.by_hand);
            self.next_repair(false);
        }
    }

    /// Comparisons under way or asked for by hand.
    pub(crate) fn repairing(&self) -> usize {
        self.repairs.asked.len() + usize::from(self.repairs.running.is_some())
    }

    /// What became of comparisons asked for by hand.
    pub(crate) fn repair_figures(&self) -> RepairFigures {
        self.repairs.figures
    }
}
