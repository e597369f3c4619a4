//! Peers: their stores, their sessions, and what is known of them in the present one.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::calls::Calls;
use super::silence::Silence;
use crate::message::{CallId, Message, weight};
use crate::types::{Epoch, Incarnation, NodeId, StoreId};

/// What the loop knows of another node.
#[derive(Debug)]
pub(super) struct Peer<P> {
    /// Whether there is a session.
    up: bool,
    /// Sessions with it so far.
    sessions: u64,
    /// What it has sent in a session that may not be used yet, since its incarnation is not durably known. `None`: there is
    /// no such session.
    early: Option<Early>,
    /// The stores that the peer has shown, durable before it counts as up (rule D2).
    seen: Option<Seen>,
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
            sessions: 0,
            early: None,
            seen: None,
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
#[derive(Debug, Default)]
struct Early {
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
        if self.is_retired(store) { Incarnation { store, boot: u32::MAX, nonce: 0 } } else { self.current }
    }

    fn is_retired(&self, store: StoreId) -> bool {
        self.retired.contains(&store)
    }

    fn after(before: Option<Self>, current: Incarnation) -> Self {
        let Some(mut seen) = before else { return Self { current, retired: Vec::new() } };
        if seen.current.store != current.store && !seen.is_retired(seen.current.store) {
            if seen.retired.len() >= RETIRED_MAX {
                seen.retired.remove(0);
            }
            seen.retired.push(seen.current.store);
        }
        Self { current, ..seen }
    }
}

/// What a peer has shown at the beginning of a session.
#[derive(Debug)]
pub(crate) struct Shown {
    /// What must be durable before the session may be used; `None`: it is.
    pub(crate) to_persist: Option<Seen>,
    /// Whether the peer has another store than before.
    pub(crate) is_replaced: bool,
}

/// All peers of a loop.
#[derive(Debug)]
pub(crate) struct Peers<P>(BTreeMap<NodeId, Peer<P>>);

impl<P: Copy + Eq> Peers<P> {
    /// The peers of which something is durably known.
    pub(crate) fn new(seen: impl IntoIterator<Item = (NodeId, Seen)>) -> Self {
        let peer = |(node, seen)| (node, Peer { seen: Some(seen), ..Peer::default() });
        Self(seen.into_iter().map(peer).collect())
    }

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

    /// The peers with sessions.
    pub(crate) fn up(&self) -> Vec<NodeId> {
        self.0.iter().filter(|(_, peer)| peer.up).map(|(&node, _)| node).collect()
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

    /// The stores that a peer has shown.
    pub(crate) fn seen(&self, node: NodeId) -> Option<&Seen> {
        self.get(node)?.seen.as_ref()
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

    /// A session begins in which a peer shows its store. `None`: the store was replaced by another one, so the session is
    /// not used. The handshake refuses such a store; should it get here, it gets no further.
    pub(crate) fn show(&mut self, node: NodeId, incarnation: Incarnation) -> Option<Shown> {
        let peer = self.peer(node);
        let before = peer.seen.clone();
        if before.as_ref().is_some_and(|before| before.is_retired(incarnation.store)) {
            return None;
        }
        let seen = Seen::after(before.clone(), incarnation);
        peer.seen = Some(seen.clone());
        peer.early = Some(Early::default());
        let is_replaced = before.as_ref().is_some_and(|before| before.current.store != incarnation.store);
        let to_persist = (before.as_ref() != Some(&seen)).then_some(seen);
        Some(Shown { to_persist, is_replaced })
    }

    /// The peer's incarnation is durably known: the session may be used. What has come in it already, unless the session has
    /// ended meanwhile.
    pub(crate) fn begin_session(&mut self, node: NodeId, incarnation: Incarnation) -> Option<Vec<Message>> {
        let peer = self.peer(node);
        if peer.up || peer.seen.as_ref().map(|seen| seen.current) != Some(incarnation) {
            return None;
        }
        let early = peer.early.take()?;
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
