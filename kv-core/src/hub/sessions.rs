//! Sessions with peers, and what peers have shown of their stores (rule D2).
//!
//! The run of a peer's store is durable here before its session may be used. How far it has come since is kept in memory at
//! once, from each acknowledgement and from what peers say every second, and is durable within a second. It is kept whatever
//! becomes of this node's own store: what was shown once stays true.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::clocks::Clocks;
use super::{HubDurable, HubTimer, Kernel, To};
use crate::config::KeyspaceList;
use crate::error::StorageError;
use crate::event::Event;
use crate::handshake::is_rolled_back;
use crate::message::Message;
use crate::parts::Tell;
use crate::rule::Rule;
use crate::storage::Reader;
use crate::types::{Incarnation, NodeId, Point, StoreId};
use crate::view::meta;

/// How often peers are told how far this node's store is, and how often what they have said is made durable: well within the
/// second that rule D2 allows, so that a sync has time as well.
const SHOW_EVERY: Duration = Duration::from_millis(500);

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Sessions {
    seen: BTreeMap<NodeId, Seen>,
    /// Peers that have shown something that is not on its way to the disk.
    changed: BTreeSet<NodeId>,
    open: BTreeMap<NodeId, Session>,
    /// How far this node's own store is.
    shows: u64,
}

/// A session that is open.
#[derive(Debug)]
struct Session {
    incarnation: Incarnation,
    /// Whether it may be used: the incarnation is durably known.
    is_up: bool,
}

/// The stores that a peer has shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Seen {
    /// The newest that it has shown of its present store.
    current: Point,
    /// Stores that another one has replaced, oldest first: should one return, it has missed what came after it.
    retired: Vec<StoreId>,
}

/// Retired stores of one peer that are remembered.
const RETIRED_MAX: usize = 256;

impl Seen {
    /// What to hold against one that shows `store`: for a retired store something that none can reach.
    fn against(&self, store: StoreId) -> Point {
        let never = Point { incarnation: Incarnation { store, boot: u32::MAX, nonce: 0 }, commit: u64::MAX };
        if self.is_retired(store) { never } else { self.current }
    }

    fn is_retired(&self, store: StoreId) -> bool {
        self.retired.contains(&store)
    }

    fn after(before: Option<Self>, current: Point) -> Self {
        let Some(mut seen) = before else { return Self { current, retired: Vec::new() } };
        let old = seen.current.incarnation.store;
        if old != current.incarnation.store && !seen.is_retired(old) {
            if seen.retired.len() >= RETIRED_MAX {
                seen.retired.remove(0);
            }
            seen.retired.push(old);
        }
        let is_older = seen.current.incarnation == current.incarnation && seen.current.commit > current.commit;
        Self { current: if is_older { seen.current } else { current }, ..seen }
    }
}

impl Sessions {
    pub(super) fn recover(reader: &impl Reader) -> Result<Self, StorageError> {
        let seen = meta::read_all(reader, meta::PEER, |id| NodeId(u64::from_be_bytes(id)))?;
        Ok(Self { seen, changed: BTreeSet::new(), open: BTreeMap::new(), shows: 0 })
    }

    /// A session begins in which a peer shows its store. One whose store was replaced by another one is not used: the
    /// handshake refuses such a store, and should it get here, it gets no further.
    pub(super) fn opened(&mut self, kernel: &mut Kernel, node: NodeId, shown: Point) {
        self.closed(kernel, node);
        let incarnation = shown.incarnation;
        let before = self.seen.get(&node).cloned();
        // So is one of an earlier boot: two processes may have greeted at the same time with copies of one store.
        let is_older = |before: &Seen| is_rolled_back(incarnation, before.current.incarnation);
        if before.as_ref().is_some_and(|before| before.is_retired(incarnation.store) || is_older(before)) {
            return;
        }
        if before.as_ref().is_some_and(|before| before.current.incarnation.store != incarnation.store) {
            kernel.event(Event::PeerStoreReplaced { node });
        }
        let seen = Seen::after(before.clone(), shown);
        // How far the run has come may be durable later.
        let is_known = before.as_ref().is_some_and(|before| before.current.incarnation == incarnation);
        let durable = if is_known {
            if before.as_ref() != Some(&seen) {
                self.changed.insert(node);
            }
            kernel.durable()
        } else {
            self.changed.remove(&node);
            kernel.persist_meta(meta::peer(node), meta::encode(&seen))
        };
        self.seen.insert(node, seen);
        kernel.arm(kernel.now.mono.plus(SHOW_EVERY), HubTimer::Show);
        self.open.insert(node, Session { incarnation, is_up: false });
        kernel.after(durable, HubDurable::PeerUp { node, incarnation });
    }

    /// The peer's incarnation is durably known: its session may be used, unless it has ended meanwhile.
    pub(super) fn known(
        &mut self,
        kernel: &mut Kernel,
        keyspaces: &KeyspaceList,
        node: NodeId,
        incarnation: Incarnation,
    ) {
        let Some(session) = self.open.get_mut(&node) else { return };
        if session.is_up || session.incarnation != incarnation {
            return;
        }
        session.is_up = true;
        kernel.event(Event::PeerUp { node, incarnation });
        kernel.send(node, Message::Keyspaces { list: keyspaces.clone() });
        kernel.say((To::All, Tell::PeerUp { node, incarnation }));
    }

    /// A peer has shown how far its store is.
    pub(super) fn shown(&mut self, node: NodeId, shown: Point) {
        if let Some(seen) = self.seen.get_mut(&node)
            && seen.current.incarnation == shown.incarnation
            && seen.current.commit < shown.commit
        {
            seen.current = shown;
            self.changed.insert(node);
        }
    }

    /// How far this node's own store is.
    pub(super) fn shows(&mut self, commit: u64) {
        self.shows = commit;
    }

    /// Every now and then: tells peers how far this node's store is and what its clocks show, and makes durable what they have said.
    pub(super) fn show(&mut self, kernel: &mut Kernel, clocks: &Clocks) {
        if kernel.rules.keep(Rule::ShowCommits) {
            for peer in self.up() {
                self.show_to(kernel, clocks, peer);
            }
        }
        let changed = std::mem::take(&mut self.changed);
        if kernel.rules.keep(Rule::RememberShown) {
            for (node, seen) in changed.iter().filter_map(|node| Some((*node, self.seen.get(node)?))) {
                kernel.persist_meta(meta::peer(node), meta::encode(seen));
            }
        }
        if !self.open.is_empty() {
            kernel.arm(kernel.now.mono.plus(SHOW_EVERY), HubTimer::Show);
        }
    }

    /// Tells a peer how far this node's store is and what its clocks show.
    pub(super) fn show_to(&self, kernel: &mut Kernel, clocks: &Clocks, peer: NodeId) {
        kernel.send(peer, Message::Shown { commit: self.shows, clock: clocks.reading(kernel.now, peer) });
    }

    /// The session has ended.
    pub(super) fn closed(&mut self, kernel: &mut Kernel, node: NodeId) {
        if self.open.remove(&node).is_some_and(|session| session.is_up) {
            kernel.event(Event::PeerDown { node });
        }
    }

    /// Whether there is a session, in use or not yet.
    pub(super) fn is_open(&self, node: NodeId) -> bool {
        self.open.contains_key(&node)
    }

    /// Whether a peer's session is in use.
    pub(super) fn is_up(&self, node: NodeId) -> bool {
        self.open.get(&node).is_some_and(|session| session.is_up)
    }

    /// The peers whose sessions are in use.
    pub(super) fn up(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.open.iter().filter(|(_, session)| session.is_up).map(|(&node, _)| node)
    }

    /// The newest that was seen of a peer's store.
    pub(super) fn seen(&self, node: NodeId) -> Option<Point> {
        self.seen.get(&node).map(|seen| seen.current)
    }

    /// The same, once the peer has shown its store: a store that another one has replaced counts as rolled back.
    pub(super) fn seen_against(&self, node: NodeId, store: StoreId) -> Option<Point> {
        self.seen.get(&node).map(|seen| seen.against(store))
    }
}
