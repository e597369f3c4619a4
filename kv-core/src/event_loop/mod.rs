//! A loop: the state machine of one set of partitions of a node. `EventLoop::step` is its single entry point.
//!
//! `EventLoop` holds the kernel, the view and the components, and wires them together: it gives each input, timer and
//! finished piece of work to the component that it belongs to, and what a component has brought about to the next one. Each
//! component owns its state; none touches that of another. What belongs to the node as a whole is the hub's.

mod dispatch;
mod protocol;
mod recovery;
mod sessions;
#[cfg(test)]
mod tests;
mod topology;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::comparisons::{Comparisons, comparable};
use crate::error::{Kind, RequestError};
use crate::event::Event;
use crate::exchange::{Exchanges, Serving, Situation};
use crate::filling::Filling;
use crate::handoff::Handoff;
use crate::parts::{Ask, LoopInput};
use crate::purge::Purge;
use crate::replication::Replications;
use crate::requests::Requests;
use crate::residue::Residues;
use crate::ring::Layout;
use crate::rule::Rule;
use crate::settled::Settling;
use crate::shell::{Effects, SettleStatus, Status};
use crate::slices::Slices;
use crate::storage::HotStats;
use crate::sweeper::Sweeper;
use crate::topology::{Receipt, Residue, Transfer};
use crate::types::{NodeId, Now, PartitionId};
use crate::view::View;
use crate::wiring::Kernel;

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct EventLoop {
    kernel: Kernel,
    view: View,
    requests: Requests,
    replications: Replications,
    slices: Slices,
    exchanges: Exchanges,
    serving: Serving,
    filling: Filling,
    residues: Residues,
    comparisons: Comparisons,
    handoff: Handoff,
    sweeper: Sweeper,
    purge: Purge,
    settling: Settling,
    /// Why nothing is served any more, once the store has failed.
    poisoned: Option<RequestError>,
}

/// The context in which the components of a loop are called. A macro, so that each component is borrowed beside it.
macro_rules! ctx {
    ($node:ident) => {
        &mut $crate::wiring::Ctx {
            kernel: &mut $node.kernel,
            view: &$node.view,
            replications: $node.replications.len(),
        }
    };
}
use ctx;

impl EventLoop {
    /// Takes one input and adds what the shell must do to `effects`, and what is for the hub to `asked`, in order.
    pub(crate) fn step(&mut self, now: Now, input: LoopInput, effects: &mut Effects, asked: &mut Vec<Ask>) {
        // A clock that is off judges nothing: the node goes by the time of the other members.
        let is_corrected = self.view.keep(Rule::TimeOfMajority);
        let wall = if is_corrected { self.view.clock.corrected(now.wall) } else { now.wall };
        self.kernel.begin(Now { wall, ..now }, effects);
        if self.view.keep(Rule::ClockGoesBack) {
            self.kernel.clock.keep_near(wall, self.view.cluster.clock_skew_max);
        }
        self.handle(input);
        self.settle();
        while let Some(timer) = self.kernel.due() {
            self.fire(timer);
            self.settle();
        }
        debug_assert!(self.kernel.timers_set() <= self.timers_max(), "timers without an end: {:?}", self.kernel);
        self.kernel.end(effects);
        asked.append(&mut self.kernel.take_said());
    }

    /// What the loop is busy with.
    pub(crate) fn status(&self) -> Status {
        let held = self.kernel.held();
        Status {
            epoch: self.view.epoch(),
            requests: self.requests.len(),
            request_bytes: self.requests.request_bytes(),
            answer_bytes: self.requests.answer_bytes(),
            peer_bytes: self.kernel.peers.bytes_most(),
            replications: self.replications.len(),
            hints: held.hints,
            hint_bytes: held.hint_bytes,
            missed_writes: held.missed_writes,
            unsynced: self.view.unsynced(),
            receiving: self.filling.receiving(&self.view),
            leaving: self.residues.leaving(),
            repairing: self.comparisons.pending(&self.kernel.peers),
            repairs: self.comparisons.figures(),
            dropping: self.purge.partitions(),
            settling: SettleStatus {
                set_aside: self.kernel.aside(),
                ..self.settling.status(&self.view, self.kernel.now.wall)
            },
            // That is the hub's.
            reclaiming: false,
            clock: self.view.clock,
            clocks: BTreeMap::new(),
            unsynced_batches: self.kernel.unsynced_batches(),
            keys_busy: self.kernel.keys_busy(),
            poisoned: self.poisoned.is_some(),
        }
    }

    /// How well the hot tier serves.
    pub(crate) fn hot_stats(&self) -> HotStats {
        self.kernel.hot_stats()
    }

    /// Bytes of keys and records that came in for copies and refills of partitions since the loop began.
    pub(crate) fn copied_bytes(&self) -> u64 {
        self.filling.bytes()
    }

    /// Forwarded requests that were sent to another owner as well since the loop began.
    pub(crate) fn hedged(&self) -> u64 {
        self.requests.hedged()
    }

    pub(crate) fn register_retries(&self) -> u64 {
        self.requests.register_retries()
    }

    /// So many values, of so many bytes, were set aside in earlier runs; each is counted by one loop.
    pub(crate) fn recover_aside(&mut self, values: u64, bytes: u64) {
        self.kernel.recover_aside(values, bytes);
    }

    /// Retired requests (rule A7) that were forgotten because a record had no room for them, since the loop began.
    pub(crate) fn retired_forgotten(&self) -> u64 {
        self.kernel.retired_forgotten
    }

    /// The layout on which the loop acts.
    pub(crate) fn layout(&self) -> Option<&Arc<Layout>> {
        self.view.layout()
    }

    /// The receipts of the migrations under way: the control plane cuts over by them.
    pub(crate) fn receipts(&self) -> Vec<Receipt> {
        self.filling.receipts(&self.view)
    }

    /// The partitions that migrate to this node, and how far each is.
    pub(crate) fn transfers(&self) -> Vec<Transfer> {
        self.filling.transfers(&self.situation())
    }

    /// What this node still holds of partitions that it has left.
    pub(crate) fn residue(&self) -> Vec<Residue> {
        self.residues.residue(&self.situation())
    }

    /// The other owners with which this node's copy of a partition can be compared, and whether each is up. None if this
    /// node does not hold all of it.
    pub(crate) fn comparable(&self, partition: PartitionId) -> Vec<(NodeId, bool)> {
        let peers = comparable(&self.view, partition).into_iter();
        peers.map(|peer| (peer, self.kernel.peers.is_up(peer))).collect()
    }

    fn situation(&self) -> Situation<'_> {
        let (view, peers, exchanges) = (&self.view, &self.kernel.peers, &self.exchanges);
        Situation { at: self.kernel.now.mono, view, peers, exchanges }
    }

    /// Switches a protocol rule off.
    #[cfg(feature = "mutation")]
    pub(crate) fn break_rule(&mut self, rule: crate::rule::Rule) {
        self.kernel.rules.break_rule(rule);
        self.view.rules.break_rule(rule);
        if rule == crate::rule::Rule::ResumePurge {
            self.purge.forget();
        }
        if rule == crate::rule::Rule::WriteAboveConfirmed {
            self.kernel.clock = crate::version::Clock::default();
        }
        self.filling.plan(ctx!(self), &mut self.exchanges);
    }

    /// A commit failed: what reached the disk is unknown, so nothing is answered from here any more.
    fn poison(&mut self, reason: String) {
        let stopped = RequestError::new(Kind::Poisoned, format!("the node has stopped serving: {reason}"));
        self.requests.stop(ctx!(self), &reason, &stopped);
        self.kernel.discard_batch();
        self.poisoned = Some(stopped);
        self.kernel.event(Event::Poisoned { reason });
    }

    /// Timers that what is under way may have set: whatever waits has one, a request two, and each peer may be watched.
    fn timers_max(&self) -> usize {
        let partitions = self.view.layout().map_or(0, |layout| layout.partitions.len());
        let (requests, peers) = (2 * self.requests.len(), self.kernel.peers.len());
        10 + partitions + peers + requests + self.replications.len() + self.exchanges.len()
    }
}
