//! Sessions with peers: they begin, stall and end, and what depends on that.

use super::{EventLoop, ctx};
use crate::message::Message;
use crate::rule::Rule;
use crate::types::{Epoch, Incarnation, NodeId};
use crate::wiring::{Timer, Waiter};

impl EventLoop {
    /// A session was opened: what comes in it is kept until it may be used.
    pub(super) fn peer_opened(&mut self, node: NodeId, incarnation: Incarnation) {
        if self.kernel.peers.can_be_pulled(node) {
            self.peer_down(node);
        }
        self.kernel.peers.open_session(node, incarnation);
    }

    /// A stream was opened of which one of both takes the other's store for an older copy. Either may be asked for what it holds: a
    /// pull needs to know who somebody is, not how fresh (rule D2). Else two owners that doubt each other would wait for each
    /// other with their refills.
    pub(super) fn peer_doubted(&mut self, node: NodeId) {
        self.peer_down(node);
        if self.view.keep(Rule::PullByIdentity) {
            self.kernel.peers.open_doubted(node);
            self.filling.plan(ctx!(self), &mut self.exchanges);
        }
    }

    /// The peer's incarnation is durably known: the session may be used.
    pub(super) fn peer_known(&mut self, node: NodeId, incarnation: Incarnation) {
        let Some(early) = self.kernel.peers.begin_session(node, incarnation) else { return };
        self.kernel.arm(self.kernel.now.mono, Timer::Handoff);
        self.filling.plan(ctx!(self), &mut self.exchanges);
        self.residues.arm(ctx!(self));
        // Comparisons with it may be pending.
        self.comparisons.again(ctx!(self), &mut self.exchanges);
        for message in early {
            self.message(node, message);
        }
    }

    pub(super) fn peer_down(&mut self, node: NodeId) {
        let Some((was_up, failed)) = self.kernel.peers.end_session(node) else { return };
        for (call, waiter) in failed {
            match waiter {
                Waiter::Forward(op) => self.requests.forward_failed(ctx!(self), op, node, None),
                Waiter::Read(op, role) => self.requests.read_failed(ctx!(self), op, node, role, None),
                Waiter::Register(op) => self.requests.register_answered(ctx!(self), op, node, call, Err(None)),
                Waiter::Slice(op) => self.requests.scan_failed(ctx!(self), op, node, None),
                Waiter::Replicate(replication) => self.replications.failed(ctx!(self), replication, node, call),
                Waiter::Exchange(exchange) => self.exchanges.lost(ctx!(self), exchange),
            }
        }
        self.replications.session_ended(node);
        self.settling.peer_down(ctx!(self), &mut self.exchanges, node);
        self.requests.late_reads_lost(ctx!(self), node);
        self.requests.writes_without(ctx!(self));
        if was_up {
            self.comparisons.add_without(ctx!(self), &mut self.exchanges, node);
        }
    }

    /// Looks whether a peer is still silent.
    pub(super) fn watch_peer(&mut self, node: NodeId) {
        let awaited = self.kernel.peers.waiters(node).into_iter().any(|waiter| self.waits(waiter));
        if self.kernel.watch_peer(node, awaited) {
            self.peer_stalled(node);
        }
    }

    /// A peer takes part in nothing at present: what waits for it goes on without it.
    pub(super) fn peer_stalled(&mut self, node: NodeId) {
        if !self.kernel.note_stalled(node) {
            return;
        }
        for waiter in self.kernel.peers.waiters(node) {
            match waiter {
                Waiter::Forward(op) => self.requests.forward_stalled(ctx!(self), op),
                Waiter::Read(op, _) => self.requests.read_stalled(ctx!(self), op, node),
                Waiter::Slice(op) => self.requests.scan_stalled(ctx!(self), op, node),
                // A majority does without it, or waits.
                Waiter::Register(op) => self.requests.register_stalled(ctx!(self), op, node),
                // No fallback is asked in its place (rule A9). What those hold that were asked for others counts now, below.
                Waiter::Replicate(_) | Waiter::Exchange(_) => {}
            }
        }
        self.requests.writes_without(ctx!(self));
    }

    /// This node knows more than before: whoever it refused for lack of that may ask again at once.
    pub(super) fn tell_caught_up(&mut self) {
        let epoch = self.view.epoch();
        for node in self.kernel.peers.take_waiting_for_layout() {
            self.kernel.send(node, Message::CaughtUp { epoch });
        }
    }

    /// A peer that refused something because it lacked a layout has it now: that is asked again.
    pub(super) fn peer_caught_up(&mut self, node: NodeId, epoch: Epoch) {
        self.kernel.peers.note_caught_up(node, epoch);
        self.replications.again(ctx!(self), node);
        self.requests.read_again(ctx!(self), node);
        self.exchanges.peer_caught_up(ctx!(self), node);
    }
}
