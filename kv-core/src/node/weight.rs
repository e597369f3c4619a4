//! Bytes in flight: what the requests of this node hold in memory, and what its peers have been sent and not answered.
//! Each has a bound, and reaching it is an answer ("exhausted", nothing was done) before anything is spent.
//!
//! **Requests.** A put counts with its key and value from its admission to its answer.
//!
//! **Answers.** What replicas have told about gets and scans counts until the client is answered. How much that will be is
//! known only when it comes, so a read that was admitted may still be refused.
//!
//! **Peers.** A record on its way to a peer counts until the peer has answered, so the bytes that wait in the shell's queue
//! for the peer are never more. A write is admitted if the peers that it needs are below `peer_bytes_max`. What was admitted
//! always fits: the queue may grow beyond by what requests may hold, and then the peer gets no more records. The writes go
//! on without it as if it were down, and leave missed-write markers. So one peer that takes nothing holds nobody up for
//! long, and its session stays.

use std::collections::BTreeMap;

use super::Node;
use super::peers::Purpose;
use super::timers::Timer;
use crate::coordinator::{Op, OpId};
use crate::error::RequestError;
use crate::message::{CallId, Held, KeyRequest, Message, Operation, Request, SliceAnswer};
use crate::types::{Monotonic, NodeId};
use crate::version::Record;

/// What a record or a request takes beside its key and values.
const OVERHEAD: usize = 128;

/// What a context takes for each actor.
const ACTOR_BYTES: usize = 32;

/// Bytes that count for a client's request.
pub(crate) fn of_request(request: &Request) -> usize {
    match request {
        Request::Key(request) => of_key_request(request),
        Request::Scan(_) | Request::Inspect { .. } => 0,
    }
}

/// Bytes that count for a request about a key: gets bring nothing with them.
pub(crate) fn of_key_request(request: &KeyRequest) -> usize {
    match &request.operation {
        Operation::Get => 0,
        Operation::Write { value, context, .. } => {
            let len = |bytes: &Option<bytes::Bytes>| bytes.as_ref().map_or(0, bytes::Bytes::len);
            OVERHEAD + request.key.len() + len(value) + len(context)
        }
    }
}

/// Bytes that count for a record.
pub(crate) fn of_record(record: &Record) -> usize {
    OVERHEAD + record.value_bytes() + record.context.len() * ACTOR_BYTES + record.siblings.len() * OVERHEAD
}

/// Bytes that count for a replica's answer to a get.
pub(crate) fn of_held(held: &Held) -> usize {
    match held {
        Held::Full(record) => of_record(record),
        Held::Digest(_) => 0,
    }
}

/// Bytes that count for a replica's answer to a scan.
pub(crate) fn of_slice(answer: &SliceAnswer) -> usize {
    answer.records.iter().map(|(_, key, record)| key.len() + of_record(record)).sum()
}

/// Bytes that count while a peer has not answered a message.
pub(super) fn of_message(message: &Message) -> usize {
    match message {
        Message::Forward { request, .. } => of_request(request),
        Message::Replicate { key, record, .. } => key.len() + of_record(record),
        _ => 0,
    }
}

/// The questions to one peer that it has not answered.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    open: BTreeMap<CallId, (Purpose, usize)>,
    /// Questions that nobody waits for any more. They may still be queued, so they count until they are answered, but not
    /// for ever: an answer that never comes must not take the room for good.
    given_up: BTreeMap<CallId, (Monotonic, usize)>,
    /// Bytes of both.
    bytes: usize,
}

/// How many times the deadline of a request what was given up counts.
const GIVEN_UP_DEADLINES: u32 = 4;

impl Calls {
    /// Adds a question, or another copy of it.
    pub(super) fn ask(&mut self, call: CallId, purpose: Purpose, message: &Message) {
        let bytes = of_message(message);
        self.open.entry(call).or_insert((purpose, 0)).1 += bytes;
        self.bytes += bytes;
    }

    pub(super) fn take(&mut self, call: CallId) -> Option<Purpose> {
        if let Some((_, bytes)) = self.given_up.remove(&call) {
            self.bytes -= bytes;
        }
        let (purpose, bytes) = self.open.remove(&call)?;
        self.bytes -= bytes;
        Some(purpose)
    }

    /// Nobody waits for this answer any more.
    fn give_up(&mut self, call: CallId, until: Monotonic) {
        if let Some((_, bytes)) = self.open.remove(&call) {
            self.given_up.insert(call, (until, bytes));
        }
    }

    fn of(&self, purpose: Purpose) -> Option<CallId> {
        self.open.iter().find(|(_, asked)| asked.0 == purpose).map(|(call, _)| *call)
    }

    fn forget_given_up(&mut self, now: Monotonic) {
        self.given_up.retain(|_, (until, bytes)| {
            let counts = *until > now;
            self.bytes -= if counts { 0 } else { *bytes };
            counts
        });
    }

    pub(super) fn forget(&mut self, outdated: impl Fn(Purpose) -> bool) {
        self.open.retain(|_, (purpose, bytes)| {
            let outdated = outdated(*purpose);
            self.bytes -= if outdated { *bytes } else { 0 };
            !outdated
        });
    }

    pub(super) fn take_all(&mut self) -> Vec<(CallId, Purpose)> {
        self.bytes = 0;
        self.given_up.clear();
        std::mem::take(&mut self.open).into_iter().map(|(call, (purpose, _))| (call, purpose)).collect()
    }

    /// Whether the peer has answered everything that somebody waits for.
    pub(crate) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Who waits for answers.
    pub(crate) fn purposes(&self) -> impl Iterator<Item = &Purpose> {
        self.open.values().map(|(purpose, _)| purpose)
    }

    /// Bytes of records that the peer has been sent and has not answered.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Node {
    /// Refuses a write for whose bytes there is no room. One alone always fits.
    pub(crate) fn admit_bytes(&self, request: &Request) -> Result<(), RequestError> {
        let bytes = of_request(request);
        let held = self.ops.request_bytes();
        if bytes > 0 && held > 0 && held + bytes > self.config.request_bytes_max {
            return Err(RequestError::exhausted(format!(
                "{held} bytes of puts are in flight and this one has {bytes}, the most that this node takes is {}; slow \
                 down and try again",
                self.config.request_bytes_max
            )));
        }
        Ok(())
    }

    /// Whether a write of so many bytes may count on `node`.
    pub(crate) fn peer_has_room(&self, node: NodeId, bytes: usize) -> bool {
        self.takes(node, bytes, self.config.peer_bytes_max)
    }

    /// Whether a record may still be sent to `node`.
    pub(crate) fn peer_has_last_room(&self, node: NodeId, bytes: usize) -> bool {
        self.takes(node, bytes, self.config.peer_bytes_max.saturating_add(self.config.request_bytes_max))
    }

    /// Nobody waits any more for the answer of `node` to a call.
    pub(crate) fn give_up_call(&mut self, node: NodeId, call: CallId) {
        let until = self.now.mono.plus(self.config.deadline * GIVEN_UP_DEADLINES);
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.calls.give_up(call, until);
            self.arm(until, Timer::GivenUp);
        }
    }

    /// Nobody waits any more for the answer of `node` for this purpose.
    pub(crate) fn give_up_asking(&mut self, node: NodeId, purpose: Purpose) {
        if let Some(call) = self.peers.get(&node).and_then(|peer| peer.calls.of(purpose)) {
            self.give_up_call(node, call);
        }
    }

    /// What was given up long ago does not count any more.
    pub(super) fn forget_given_up(&mut self) {
        let now = self.now.mono;
        for peer in self.peers.values_mut() {
            peer.calls.forget_given_up(now);
        }
        let given_up = self.peers.values().flat_map(|peer| peer.calls.given_up.values());
        if let Some(next) = given_up.map(|given_up| given_up.0).min() {
            self.arm(next, Timer::GivenUp);
        }
    }

    fn takes(&self, node: NodeId, bytes: usize, limit: usize) -> bool {
        let pending = self.peer_bytes(node);
        pending == 0 || pending.saturating_add(bytes) <= limit
    }

    /// Bytes of records that `node` has been sent and has not answered.
    pub(crate) fn peer_bytes(&self, node: NodeId) -> usize {
        self.peers.get(&node).map_or(0, |peer| peer.calls.bytes())
    }

    /// The error of a write that only nodes without room could take.
    pub(crate) fn peers_full(&self, nodes: impl Iterator<Item = NodeId>) -> RequestError {
        let full: Vec<String> = nodes
            .filter(|&node| node != self.config.node && self.is_up(node))
            .map(|node| format!("{node} has not answered {} bytes", self.peer_bytes(node)))
            .collect();
        RequestError::exhausted(format!(
            "{}, the most that this node sends ahead is {}; nothing was written, slow down and try again",
            full.join(", "),
            self.config.peer_bytes_max
        ))
    }

    /// Counts what replicas have told for a read. If there is no room the read ends and this says so.
    pub(crate) fn keep_answer(&mut self, op: OpId, bytes: usize) -> bool {
        let held = self.ops.answer_bytes();
        // One alone always fits.
        let others = held > self.ops.get(&op).map_or(0, Op::answer_bytes);
        if others && bytes > 0 && held + bytes > self.config.answer_bytes_max {
            let error = RequestError::exhausted(format!(
                "{held} bytes of answers of replicas are held for reads in flight and there are {bytes} more, the most that \
                 this node holds is {}; nothing was done, slow down and try again",
                self.config.answer_bytes_max
            ));
            self.finish(op, Err(error));
            return false;
        }
        self.ops.add_answer(op, bytes);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_counts_once_for_each_time_it_was_sent_until_it_is_answered() {
        let mut calls = Calls::default();
        let message = Message::Replicate {
            call: CallId(1),
            epoch: crate::types::Epoch(1),
            role: crate::message::Role::Owner,
            keyspace: crate::types::KeyspaceId(0),
            key: bytes::Bytes::from_static(b"k"),
            record: Record::default(),
        };
        let purpose = Purpose::Replicate(crate::replica::ReplicationId(1));
        calls.ask(CallId(1), purpose, &message);
        let once = calls.bytes();
        calls.ask(CallId(1), purpose, &message);
        calls.ask(CallId(2), purpose, &message);
        assert_eq!((once, calls.bytes()), (OVERHEAD + 1, 3 * (OVERHEAD + 1)));
        assert_eq!(calls.take(CallId(1)), Some(purpose));
        assert_eq!((calls.take(CallId(1)), calls.bytes()), (None, once));
        assert_eq!(calls.of(purpose), Some(CallId(2)));
        calls.give_up(CallId(2), Monotonic(9));
        calls.forget_given_up(Monotonic(8));
        assert_eq!((calls.bytes(), calls.open.len()), (once, 0), "it may still be queued");
        calls.forget_given_up(Monotonic(9));
        assert_eq!(calls.bytes(), 0);
        calls.ask(CallId(3), purpose, &message);
        calls.forget(|_| true);
        assert_eq!(calls.bytes(), 0);
    }
}
