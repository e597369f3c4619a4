//! Peers: their stores, their sessions, and what is known of them in the present one.

use std::collections::{BTreeMap, BTreeSet};

use super::calls::Calls;
use super::silence::Silence;
use crate::message::{CallId, Message, weight};
use crate::types::{Epoch, Incarnation, NodeId};

/// What the loop knows of another node.
#[derive(Debug)]
pub(super) struct Peer<P> {
    /// Whether there is a session.
    up: bool,
    /// Whether there is no session, since one of both takes the other's store for an older copy, but both can be asked for what
    /// they hold (rule D2).
    doubted: bool,
    /// Sessions with it so far.
    sessions: u64,
    /// What it has sent in a session that may not be used yet, since its incarnation is not durably known (rule D2). `None`:
    /// there is no such session.
    early: Option<Early>,
    /// How long it has said nothing.
    pub(super) silence: Silence,
    /// Questions without an answer.
    pub(super) calls: Calls<P>,
    /// Forwards of this session that were taken or refused.
    forwards: ForwardsSeen,
    /// Whether the peer was refused something because this node knows only an older layout.
    waits_for_layout: bool,
    /// The newest epoch on which the peer has said, in this session, that it acts now.
    caught_up: Epoch,
}

impl<P> Default for Peer<P> {
    fn default() -> Self {
        Self {
            up: false,
            doubted: false,
            sessions: 0,
            early: None,
            silence: Silence::default(),
            calls: Calls::default(),
            forwards: ForwardsSeen::default(),
            waits_for_layout: false,
            caught_up: Epoch(0),
        }
    }
}

/// How many messages are kept until the session may be used. Senders repeat what is lost beyond it, but only after a while.
const EARLY_MAX: usize = 1024;

/// Bytes of records in these messages.
const EARLY_BYTES_MAX: usize = 16 * 1024 * 1024;

/// How many forwards of a session are remembered, to recognise a repeated frame.
const FORWARDS_SEEN_MAX: usize = 4096;

/// What a peer has sent in a session that may not be used yet.
#[derive(Debug)]
struct Early {
    incarnation: Incarnation,
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
struct ForwardsSeen {
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

/// All peers of a loop.
#[derive(Debug)]
pub(crate) struct Peers<P>(BTreeMap<NodeId, Peer<P>>);

impl<P> Default for Peers<P> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<P: Copy + Eq> Peers<P> {
    pub(super) fn peer(&mut self, node: NodeId) -> &mut Peer<P> {
        self.0.entry(node).or_default()
    }

    pub(super) fn get(&self, node: NodeId) -> Option<&Peer<P>> {
        self.0.get(&node)
    }

    pub(super) fn get_mut(&mut self, node: NodeId) -> Option<&mut Peer<P>> {
        self.0.get_mut(&node)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Peer<P>> {
        self.0.values()
    }

    pub(super) fn all_mut(&mut self) -> impl Iterator<Item = &mut Peer<P>> {
        self.0.values_mut()
    }

    /// How many peers are known.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether messages can be sent to `node`.
    pub(crate) fn is_up(&self, node: NodeId) -> bool {
        self.get(node).is_some_and(|peer| peer.up)
    }

    /// Whether `node` can be asked for what it holds of a partition that is refilled.
    pub(crate) fn can_be_pulled(&self, node: NodeId) -> bool {
        self.get(node).is_some_and(|peer| peer.up || peer.doubted)
    }

    /// Whether nothing else may be asked of `node`, nor by it.
    pub(crate) fn is_doubted(&self, node: NodeId) -> bool {
        self.get(node).is_some_and(|peer| peer.doubted)
    }

    /// There is no session with `node`, but a stream on which it can be asked for what it holds.
    pub(crate) fn open_doubted(&mut self, node: NodeId) {
        self.peer(node).doubted = true;
    }

    /// The session with `node` that is in use, by number.
    pub(crate) fn session(&self, node: NodeId) -> Option<u64> {
        self.get(node).filter(|peer| peer.up).map(|peer| peer.sessions)
    }

    /// Whether a peer takes part in nothing at present although its session is open: it is asked last.
    pub(crate) fn is_stalled(&self, node: NodeId) -> bool {
        self.get(node).is_some_and(|peer| peer.silence.is_stalled())
    }

    /// The newest epoch on which a peer has said that it acts. A refusal at an older one was overtaken by that.
    pub(crate) fn caught_up(&self, node: NodeId) -> Epoch {
        self.get(node).map_or(Epoch(0), |peer| peer.caught_up)
    }

    /// Bytes of records that `node` has been sent and has not answered.
    pub(crate) fn bytes(&self, node: NodeId) -> usize {
        self.get(node).map_or(0, |peer| peer.calls.bytes())
    }

    /// The same of the peer with most.
    pub(crate) fn bytes_most(&self) -> usize {
        self.all().map(|peer| peer.calls.bytes()).max().unwrap_or(0)
    }

    pub(super) fn takes(&self, node: NodeId, bytes: usize, limit: usize) -> bool {
        let pending = self.bytes(node);
        pending == 0 || pending.saturating_add(bytes) <= limit
    }

    /// Who waits for answers of a peer.
    pub(crate) fn waiters(&self, node: NodeId) -> Vec<P> {
        self.get(node).map(|peer| peer.calls.waiters().collect()).unwrap_or_default()
    }

    /// A session begins in which a peer shows its store. It may not be used before that is durably known.
    pub(crate) fn open_session(&mut self, node: NodeId, incarnation: Incarnation) {
        self.peer(node).early = Some(Early { incarnation, messages: Vec::new(), bytes: 0 });
    }

    /// The peer's incarnation is durably known: the session may be used. What has come in it already, unless the session has
    /// ended meanwhile.
    pub(crate) fn begin_session(&mut self, node: NodeId, incarnation: Incarnation) -> Option<Vec<Message>> {
        let peer = self.peer(node);
        let early = peer.early.take_if(|early| early.incarnation == incarnation)?;
        peer.up = true;
        peer.sessions += 1;
        peer.forwards = ForwardsSeen::default();
        peer.silence = Silence::default();
        (peer.waits_for_layout, peer.caught_up) = (false, Epoch(0));
        Some(early.messages)
    }

    /// The session has ended: whether it was in use, and everything asked of the peer, which fails now. `None`: the peer is
    /// not known.
    pub(crate) fn end_session(&mut self, node: NodeId) -> Option<(bool, Vec<(CallId, P)>)> {
        let peer = self.get_mut(node)?;
        peer.early = None;
        peer.doubted = false;
        let was_up = std::mem::take(&mut peer.up);
        peer.silence = Silence::default();
        Some((was_up, peer.calls.take_all()))
    }

    /// Keeps a message of a session that may not be used yet: the peer may use it already.
    pub(crate) fn keep_early(&mut self, node: NodeId, message: Message) {
        if let Some(early) = self.get_mut(node).and_then(|peer| peer.early.as_mut()) {
            early.keep(message);
        }
    }

    /// Whether this is the first frame of a forward.
    pub(crate) fn is_first_forward(&mut self, node: NodeId, call: CallId) -> bool {
        self.peer(node).forwards.is_first(call)
    }

    /// A peer is refused something because this node knows only an older layout.
    pub(super) fn note_behind(&mut self, node: NodeId) {
        self.peer(node).waits_for_layout = true;
    }

    /// The peers that were refused something because this node knew only an older layout, each once.
    pub(crate) fn take_waiting_for_layout(&mut self) -> Vec<NodeId> {
        let waits = |peer: &mut Peer<P>| std::mem::take(&mut peer.waits_for_layout) && peer.up;
        self.0.iter_mut().filter_map(|(node, peer)| waits(peer).then_some(*node)).collect()
    }

    /// A peer acts on a layout now.
    pub(crate) fn note_caught_up(&mut self, node: NodeId, epoch: Epoch) {
        let peer = self.peer(node);
        peer.caught_up = peer.caught_up.max(epoch);
    }
}
