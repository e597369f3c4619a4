//! Calls: questions to peers that are not answered yet, and the bytes that they hold.
//!
//! A record on its way to a peer counts until the peer has answered, so the bytes that wait in the shell's queue for the
//! peer are never more. A write is admitted if the peers that it needs are below `peer_bytes_max`. What was admitted always
//! fits: the queue may grow beyond by what requests may hold, and then the peer gets no more records. The writes go on
//! without it as if it were down, and leave missed-write markers. So one peer that takes nothing holds nobody up for long,
//! and its session stays.

use std::collections::BTreeMap;

use super::{Kernel, Wiring};
use crate::message::{CallId, Message, weight};
use crate::types::{Monotonic, NodeId};

/// The questions to one peer that it has not answered.
#[derive(Debug)]
pub(super) struct Calls<P> {
    open: BTreeMap<CallId, (P, usize)>,
    /// Questions that nobody waits for any more. They may still be queued, so they count until they are answered, but not
    /// for ever: an answer that never comes must not take the room for good.
    given_up: BTreeMap<CallId, (Monotonic, usize)>,
    /// Bytes of both.
    bytes: usize,
}

/// How many times the deadline of a request what was given up counts.
const GIVEN_UP_DEADLINES: u32 = 4;

impl<P> Default for Calls<P> {
    fn default() -> Self {
        Self { open: BTreeMap::new(), given_up: BTreeMap::new(), bytes: 0 }
    }
}

impl<P: Copy + Eq> Calls<P> {
    /// Adds a question, or another copy of it.
    fn ask(&mut self, call: CallId, waiter: P, message: &Message) {
        let bytes = weight::of_message(message);
        self.open.entry(call).or_insert((waiter, 0)).1 += bytes;
        self.bytes += bytes;
    }

    fn take(&mut self, call: CallId) -> Option<P> {
        if let Some((_, bytes)) = self.given_up.remove(&call) {
            self.bytes -= bytes;
        }
        let (waiter, bytes) = self.open.remove(&call)?;
        self.bytes -= bytes;
        Some(waiter)
    }

    /// Nobody waits for this answer any more.
    fn give_up(&mut self, call: CallId, until: Monotonic) {
        if let Some((_, bytes)) = self.open.remove(&call) {
            self.given_up.insert(call, (until, bytes));
        }
    }

    fn of(&self, waiter: P) -> Option<CallId> {
        self.open.iter().find(|(_, asked)| asked.0 == waiter).map(|(call, _)| *call)
    }

    fn forget_given_up(&mut self, now: Monotonic) {
        self.given_up.retain(|_, (until, bytes)| {
            let counts = *until > now;
            self.bytes -= if counts { 0 } else { *bytes };
            counts
        });
    }

    fn forget(&mut self, outdated: impl Fn(P) -> bool) {
        self.open.retain(|_, (waiter, bytes)| {
            let outdated = outdated(*waiter);
            self.bytes -= if outdated { *bytes } else { 0 };
            !outdated
        });
    }

    pub(super) fn take_all(&mut self) -> Vec<(CallId, P)> {
        self.bytes = 0;
        self.given_up.clear();
        std::mem::take(&mut self.open).into_iter().map(|(call, (waiter, _))| (call, waiter)).collect()
    }

    /// Whether the peer has answered everything that somebody waits for.
    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Who waits for answers.
    pub(super) fn waiters(&self) -> impl Iterator<Item = P> + '_ {
        self.open.values().map(|(waiter, _)| *waiter)
    }

    /// Bytes of records that the peer has been sent and has not answered.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl<W: Wiring> Kernel<W> {
    /// Asks `to` something; the answer, or the failure of the session, goes to `waiter`.
    pub(crate) fn ask(&mut self, to: NodeId, call: CallId, waiter: W::Waiter, message: Message) {
        self.peers.peer(to).calls.ask(call, waiter, &message);
        self.note_asked(to);
        self.send(to, message);
    }

    /// Takes the call that `from` answers, if it is still open.
    pub(crate) fn answered(&mut self, from: NodeId, call: CallId) -> Option<W::Waiter> {
        self.peers.get_mut(from)?.calls.take(call)
    }

    /// Forgets the questions of some waiters: they are asked again, and an answer to the old ones must not count.
    pub(crate) fn forget_calls(&mut self, outdated: impl Fn(W::Waiter) -> bool) {
        for peer in self.peers.all_mut() {
            peer.calls.forget(&outdated);
        }
    }

    /// Nobody waits any more for the answer of `node` to a call.
    pub(crate) fn give_up_call(&mut self, node: NodeId, call: CallId) {
        let until = self.now.mono.plus(self.config.deadline * GIVEN_UP_DEADLINES);
        if let Some(peer) = self.peers.get_mut(node) {
            peer.calls.give_up(call, until);
            self.arm(until, W::given_up());
        }
    }

    /// This waiter does not wait any more for the answer of `node`.
    pub(crate) fn give_up_asking(&mut self, node: NodeId, waiter: W::Waiter) {
        if let Some(call) = self.peers.get(node).and_then(|peer| peer.calls.of(waiter)) {
            self.give_up_call(node, call);
        }
    }

    /// What was given up long ago does not count any more.
    pub(crate) fn forget_given_up(&mut self) {
        let now = self.now.mono;
        for peer in self.peers.all_mut() {
            peer.calls.forget_given_up(now);
        }
        let given_up = self.peers.all().flat_map(|peer| peer.calls.given_up.values());
        if let Some(next) = given_up.map(|given_up| given_up.0).min() {
            self.arm(next, W::given_up());
        }
    }

    /// Whether a write of so many bytes may count on `node`.
    pub(crate) fn peer_has_room(&self, node: NodeId, bytes: usize) -> bool {
        self.peers.takes(node, bytes, self.config.peer_bytes_max)
    }

    /// Whether a record may still be sent to `node`.
    pub(crate) fn peer_has_last_room(&self, node: NodeId, bytes: usize) -> bool {
        self.peers.takes(node, bytes, self.config.peer_bytes_max.saturating_add(self.config.request_bytes_max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Role;
    use crate::types::{Epoch, KeyspaceId};
    use crate::version::Record;

    #[test]
    fn a_call_counts_once_for_each_time_it_was_sent_until_it_is_answered() {
        let mut calls = Calls::default();
        let message = Message::Replicate {
            call: CallId(1),
            epoch: Epoch(1),
            role: Role::Owner,
            keyspace: KeyspaceId(0),
            key: bytes::Bytes::from_static(b"k"),
            cell: Record::default().into(),
        };
        let waiter = 1;
        calls.ask(CallId(1), waiter, &message);
        let once = calls.bytes();
        calls.ask(CallId(1), waiter, &message);
        calls.ask(CallId(2), waiter, &message);
        assert_eq!((once, calls.bytes()), (weight::OVERHEAD + 1, 3 * (weight::OVERHEAD + 1)));
        assert_eq!(calls.take(CallId(1)), Some(waiter));
        assert_eq!((calls.take(CallId(1)), calls.bytes()), (None, once));
        assert_eq!(calls.of(waiter), Some(CallId(2)));
        calls.give_up(CallId(2), Monotonic(9));
        calls.forget_given_up(Monotonic(8));
        assert_eq!((calls.bytes(), calls.open.len()), (once, 0), "it may still be queued");
        calls.forget_given_up(Monotonic(9));
        assert_eq!(calls.bytes(), 0);
        calls.ask(CallId(3), waiter, &message);
        calls.forget(|_| true);
        assert_eq!(calls.bytes(), 0);
    }
}
