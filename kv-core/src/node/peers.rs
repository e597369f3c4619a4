//! Peers, and the questions to them that are not answered yet.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::Node;
use super::stall::Silence;
use crate::coordinator::OpId;
use crate::event::Event;
use crate::message::{CallId, Message, Refusal, Role};

use crate::node::keys::Held;
use crate::node::timers::Timer;
use crate::node::weight::Calls;
use crate::node::{Effect, meta, weight};
use crate::replica::{ExchangeId, ReplicationId};
use crate::types::{Epoch, Incarnation, NodeId, PartitionId, StoreId};

/// What the loop knows of another node.
#[derive(Debug, Default)]
pub(crate) struct Peer {
    /// Whether there is a session.
    pub(crate) up: bool,
    /// Sessions with it so far.
    pub(crate) sessions: u64,
    /// What it has sent in a session that may not be used yet, since its incarnation is not durably known. `None`: there is
    /// no such session.
    pub(crate) early: Option<Early>,
    /// The stores that the peer has shown, durable before it counts as up (rule D2).
    pub(crate) seen: Option<Seen>,
    /// How long it has said nothing.
    pub(crate) silence: Silence,
    /// Questions without an answer.
    pub(crate) calls: Calls,
    /// Forwards of this session that were taken or refused.
    pub(crate) forwards: ForwardsSeen,
    /// Whether the peer was refused something because this node knows only an older layout.
    pub(crate) waits_for_layout: bool,
    /// The newest epoch on which the peer has said, in this session, that it acts now.
    pub(crate) caught_up: Epoch,
}

/// How many messages are kept until the session may be used. Senders repeat what is lost beyond it, but only after a while.
const EARLY_MAX: usize = 1024;

/// Bytes of records in these messages.
const EARLY_BYTES_MAX: usize = 16 * 1024 * 1024;

/// How many forwards of a session are remembered, to recognise a repeated frame.
const FORWARDS_SEEN_MAX: usize = 4096;

/// What a peer has sent in a session that may not be used yet.
#[derive(Debug, Default)]
pub(crate) struct Early {
    messages: Vec<Message>,
    bytes: usize,
}

impl Early {
    fn keep(&mut self, message: Message) {
        let bytes = weight::of_message(&message);
        if self.messages.len() < EARLY_MAX && self.bytes + bytes <= EARLY_BYTES_MAX {
            self.bytes += bytes;
            self.messages.push(message);
        }
    }
}

/// The forwards that a peer has sent. The repetition of one that was refused must not be carried out: the client may
/// have been told that nothing was done.
#[derive(Debug, Default)]
pub(crate) struct ForwardsSeen {
    calls: BTreeSet<CallId>,
    /// Calls below this were forgotten; their frames are too late.
    floor: CallId,
}

impl ForwardsSeen {
    /// Whether this is the first frame of the call.
    fn is_first(&mut self, call: CallId) -> bool {
        if call < self.floor || !self.calls.insert(call) {
            return false;
        }
        if self.calls.len() > FORWARDS_SEEN_MAX
            && let Some(oldest) = self.calls.pop_first()
        {
            self.floor = CallId(oldest.0 + 1);
        }
        true
    }
}

/// The stores that a peer has shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seen {
    /// The highest incarnation of its present store.
    pub(crate) current: Incarnation,
    /// Stores that another one has replaced, oldest first: should one return, it has missed what came after it.
    retired: Vec<StoreId>,
}

/// Retired stores of one peer that are remembered.
const RETIRED_MAX: usize = 256;

impl Seen {
    /// The highest incarnation to hold against one that shows `store`: for a retired store one that none can reach.
    pub(crate) fn against(&self, store: StoreId) -> Incarnation {
        if self.retired.contains(&store) { Incarnation { store, boot: u32::MAX, nonce: 0 } } else { self.current }
    }

    fn after(before: Option<Self>, current: Incarnation) -> Self {
        let Some(mut seen) = before else { return Self { current, retired: Vec::new() } };
        if seen.current.store != current.store && !seen.retired.contains(&seen.current.store) {
            if seen.retired.len() >= RETIRED_MAX {
                seen.retired.remove(0);
            }
            seen.retired.push(seen.current.store);
        }
        Self { current, ..seen }
    }
}

/// Who waits for the answer to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A request that was forwarded.
    Forward(OpId),
    /// A read or an inspection.
    Read(OpId, Role),
    /// A scan.
    Slice(OpId),
    /// A replication.
    Replicate(ReplicationId),
    /// An exchange.
    Exchange(ExchangeId),
}

impl Node {
    /// Whether messages can be sent to `node`.
    pub(crate) fn is_up(&self, node: NodeId) -> bool {
        self.peers.get(&node).is_some_and(|peer| peer.up)
    }

    /// A call id that no incarnation of this node has used. A peer may hold back its answer, for a slow disk, until the
    /// node has restarted and talks to it again: the answer must not be taken for one to a later question.
    pub(crate) fn next_call(&mut self) -> CallId {
        self.calls_made += 1;
        CallId(u64::from(self.incarnation.nonce) << 32 | self.calls_made & u64::from(u32::MAX))
    }

    /// Asks `to` something; the answer, or the failure of the session, goes to `purpose`.
    pub(crate) fn ask(&mut self, to: NodeId, call: CallId, purpose: Purpose, message: Message) {
        self.peers.entry(to).or_default().calls.ask(call, purpose, &message);
        self.note_asked(to);
        self.send(to, message);
    }

    /// Takes the call that `from` answers, if it is still open.
    pub(crate) fn answered(&mut self, from: NodeId, call: CallId) -> Option<Purpose> {
        self.peers.get_mut(&from)?.calls.take(call)
    }

    /// Forgets the questions of some purpose: they are asked anew, and an answer to the old ones must not count.
    pub(crate) fn forget_calls(&mut self, outdated: impl Fn(Purpose) -> bool) {
        for peer in self.peers.values_mut() {
            peer.calls.forget(&outdated);
        }
    }

    pub(crate) fn send(&mut self, to: NodeId, message: Message) {
        if message.is_behind() {
            self.peers.entry(to).or_default().waits_for_layout = true;
        }
        self.out.push(Effect::Send { to, message });
    }

    pub(super) fn peer_up(&mut self, node: NodeId, incarnation: Incarnation) {
        if self.is_up(node) {
            self.peer_down(node);
        }
        let peer = self.peers.entry(node).or_default();
        let before = peer.seen.clone();
        if before.as_ref().is_some_and(|before| before.against(incarnation.store).boot == u32::MAX) {
            // The handshake refuses such a store; should it get here, it gets no further.
            return;
        }
        let seen = Seen::after(before.clone(), incarnation);
        peer.seen = Some(seen.clone());
        peer.early = Some(Early::default());
        if before.as_ref().is_some_and(|before| before.current.store != incarnation.store) {
            self.out.push(Effect::Event(Event::PeerStoreReplaced { node }));
        }
        let durable = if before.as_ref() == Some(&seen) {
            self.durable
        } else {
            self.persist_meta(meta::peer(node), meta::encode(&seen))
        };
        self.hold(durable, Held::PeerUp { node, incarnation });
    }

    /// The peer's incarnation is durably known: the session may be used.
    pub(super) fn peer_known(&mut self, node: NodeId, incarnation: Incarnation) {
        let peer = self.peers.entry(node).or_default();
        if peer.up || peer.seen.as_ref().map(|seen| seen.current) != Some(incarnation) {
            return;
        }
        // The session may have ended meanwhile.
        let Some(early) = peer.early.take() else { return };
        peer.up = true;
        peer.sessions += 1;
        peer.forwards = ForwardsSeen::default();
        peer.silence = Silence::default();
        (peer.waits_for_layout, peer.caught_up) = (false, Epoch(0));
        self.out.push(Effect::Event(Event::PeerUp { node, incarnation }));
        self.arm(self.now.mono, Timer::Handoff);
        self.tell_keyspaces(node);
        self.plan_copies();
        self.arm_handovers();
        // Comparisons with it may be owed.
        self.owed_again();
        for message in early.messages {
            self.message(node, message);
        }
    }

    pub(super) fn peer_down(&mut self, node: NodeId) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.early = None;
        let was_up = std::mem::take(&mut peer.up);
        peer.silence = Silence::default();
        if was_up {
            self.out.push(Effect::Event(Event::PeerDown { node }));
        }
        // Everything asked of the peer fails now. Taking the calls first keeps what they start from being failed, too.
        for (call, purpose) in self.peers.entry(node).or_default().calls.take_all() {
            match purpose {
                Purpose::Forward(op) => self.forward_failed(op, node, None),
                Purpose::Read(op, role) => self.read_failed(op, node, role, None),
                Purpose::Slice(op) => self.scan_failed(op, node, None),
                Purpose::Replicate(replication) => self.replication_failed(replication, node, call),
                Purpose::Exchange(exchange) => self.exchange_lost(exchange),
            }
        }
        self.late_reads_lost(node);
        if was_up {
            self.owe_without(node);
        }
    }

    /// The session with `node` that is in use, by number.
    pub(crate) fn session(&self, node: NodeId) -> Option<u64> {
        self.peers.get(&node).filter(|peer| peer.up).map(|peer| peer.sessions)
    }

    /// This node acts on another layout: whoever it refused for want of it may ask again at once.
    pub(crate) fn tell_caught_up(&mut self, epoch: Epoch) {
        let waits = |peer: &mut Peer| std::mem::take(&mut peer.waits_for_layout) && peer.up;
        let waiting: Vec<NodeId> =
            self.peers.iter_mut().filter_map(|(node, peer)| waits(peer).then_some(*node)).collect();
        for node in waiting {
            self.send(node, Message::CaughtUp { epoch });
        }
    }

    /// A peer that refused something for want of a layout has it now: that is asked again.
    fn peer_caught_up(&mut self, node: NodeId, epoch: Epoch) {
        let peer = self.peers.entry(node).or_default();
        peer.caught_up = peer.caught_up.max(epoch);
        self.replicate_again(node);
        self.read_again(node);
        self.wake_exchanges(|exchange| exchange.peer == node);
    }

    /// The newest epoch on which a peer has said that it acts. A refusal at an older one was overtaken by that.
    pub(crate) fn caught_up(&self, node: NodeId) -> Epoch {
        self.peers.get(&node).map_or(Epoch(0), |peer| peer.caught_up)
    }

    pub(super) fn message(&mut self, from: NodeId, message: Message) {
        if !self.is_up(from) {
            // The peer may use the session already.
            let early = self.peers.get_mut(&from).and_then(|peer| peer.early.as_mut());
            if let Some(early) = early {
                early.keep(message);
            }
            return;
        }
        self.note_heard(from);
        match message {
            Message::Ping => self.send(from, Message::Pong),
            // That it came is all that it says.
            Message::Pong => {}
            Message::Forward { call, request, deadline } => {
                if self.peers.entry(from).or_default().forwards.is_first(call) {
                    self.forwarded_request(from, call, request, deadline);
                }
            }
            Message::Forwarded { call, outcome } => {
                if let Some(Purpose::Forward(op)) = self.answered(from, call) {
                    match outcome {
                        Ok(outcome) => self.forward_answered(op, from, outcome),
                        Err(refusal) => self.forward_failed(op, from, Some(refusal)),
                    }
                }
            }
            Message::Replicate { call, epoch, role, keyspace, key, record } => {
                self.replicate(from, call, epoch, role, keyspace, &key, record);
            }
            Message::Replicated { call, result } => {
                if let Some(Purpose::Replicate(replication)) = self.answered(from, call) {
                    self.replicated(replication, from, call, result);
                }
            }
            Message::Read { call, epoch, role, keyspace, key, digest } => {
                self.replica_read(from, call, epoch, role, keyspace, &key, digest);
            }
            Message::ReadResult { call, result } => {
                if let Some(Purpose::Read(op, role)) = self.answered(from, call) {
                    match result {
                        Ok(held) => self.read_answered(op, from, role, held),
                        Err(refusal) => self.read_failed(op, from, role, Some(refusal)),
                    }
                }
            }
            Message::Slice { call, slice } => self.replica_slice(from, call, slice),
            Message::SliceResult { call, result } => match (self.answered(from, call), result) {
                (Some(Purpose::Slice(op)), Ok(answer)) => self.scan_answered(op, from, answer),
                (Some(Purpose::Slice(op)), Err(refusal)) => self.scan_failed(op, from, Some(refusal)),
                _ => {}
            },
            Message::Exchange { call, partition, epoch, errand, question } => {
                self.serve_exchange(from, call, (partition, epoch, errand), question);
            }
            Message::CaughtUp { epoch } => self.peer_caught_up(from, epoch),
            Message::Keyspaces { list } => self.keyspaces_given(list),
            Message::ExchangeResult { call, result } => {
                if let Some(Purpose::Exchange(exchange)) = self.answered(from, call) {
                    self.exchange_answered(exchange, call, result);
                }
            }
        }
    }

    /// Refuses a request for a partition at another epoch than this node's, by rule E2.
    pub(crate) fn fence(&self, partition: PartitionId, epoch: Epoch) -> Result<(), Refusal> {
        let Some(layout) = &self.layout else { return Err(Refusal::Behind { epoch: Epoch(0) }) };
        let Some(entry) = layout.entry(partition) else { return Err(Refusal::NotOwner) };
        match epoch.cmp(&entry.changed) {
            std::cmp::Ordering::Equal => Ok(()),
            std::cmp::Ordering::Less => Err(Refusal::Stale { newer: entry.clone() }),
            std::cmp::Ordering::Greater => Err(Refusal::Behind { epoch: layout.epoch }),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::config::{ClusterConfig, NodeConfig};
    use crate::node::Input;
    use crate::storage::{Committer, MemoryStore};
    use crate::types::{KeyspaceId, Monotonic, Now, Seq, WallTime};

    const PEER: NodeId = NodeId(2);

    /// A node whose disk has not finished anything by itself.
    fn node() -> Node {
        let (opened, reader, committer) = MemoryStore::open(StoreId(7), 1);
        let config = NodeConfig::new(NodeId(1));
        Node::recover(config, ClusterConfig::default(), opened.incarnation, &reader, committer.stats()).unwrap()
    }

    fn give(node: &mut Node, input: Input) -> Vec<Effect> {
        let mut effects = Vec::new();
        node.step(Now { mono: Monotonic(1), wall: WallTime(1) }, input, &mut effects);
        effects
    }

    fn greet(node: &mut Node) -> Seq {
        let incarnation = Incarnation { store: StoreId(8), boot: 1, nonce: 1 };
        let effects = give(node, Input::PeerUp { node: PEER, incarnation });
        let persisted = |effect: &Effect| if let Effect::Persist { seq, .. } = effect { Some(*seq) } else { None };
        effects.iter().find_map(persisted).unwrap()
    }

    fn read() -> Input {
        let (call, role, key) = (CallId(5), Role::Owner, Bytes::from_static(b"k"));
        let message = Message::Read { call, epoch: Epoch(1), role, keyspace: KeyspaceId(0), key, digest: false };
        Input::Message { from: PEER, message }
    }

    fn answers(effects: &[Effect]) -> usize {
        let is_answer = |effect: &&Effect| match effect {
            // The list of keyspaces is sent at the beginning of every session.
            Effect::Send { to: PEER, message } => !matches!(message, Message::Keyspaces { .. }),
            _ => false,
        };
        effects.iter().filter(is_answer).count()
    }

    #[test]
    fn what_comes_before_the_peer_is_durably_known_is_answered_then() {
        let mut node = node();
        assert_eq!(answers(&give(&mut node, read())), 0, "there is no session");
        let seq = greet(&mut node);
        assert_eq!(answers(&give(&mut node, read())), 0, "the peer is not known yet");
        assert_eq!(answers(&give(&mut node, Input::Persisted { seq })), 1);
        assert_eq!(answers(&give(&mut node, read())), 1);
    }

    #[test]
    fn a_session_that_ends_before_the_peer_is_durably_known_is_never_used() {
        let mut node = node();
        let seq = greet(&mut node);
        give(&mut node, read());
        give(&mut node, Input::PeerDown { node: PEER });
        assert_eq!(answers(&give(&mut node, Input::Persisted { seq })), 0);
        assert!(!node.is_up(PEER));
    }
}
