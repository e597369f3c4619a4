//! Sessions with peers, and the stores that peers have shown: durable before a session may be used (rule D2).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{HubDurable, Kernel, To};
use crate::config::KeyspaceList;
use crate::error::StorageError;
use crate::event::Event;
use crate::message::Message;
use crate::parts::Tell;
use crate::storage::Reader;
use crate::types::{Incarnation, NodeId, StoreId};
use crate::view::meta;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Sessions {
    seen: BTreeMap<NodeId, Seen>,
    open: BTreeMap<NodeId, Session>,
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
    /// The highest incarnation of its present store.
    current: Incarnation,
    /// Stores that another one has replaced, oldest first: should one return, it has missed what came after it.
    retired: Vec<StoreId>,
}

/// Retired stores of one peer that are remembered.
const RETIRED_MAX: usize = 256;

impl Seen {
    /// The highest incarnation to hold against one that shows `store`: for a retired store one that none can reach.
    fn against(&self, store: StoreId) -> Incarnation {
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

impl Sessions {
    pub(super) fn recover(reader: &impl Reader) -> Result<Self, StorageError> {
        let seen = meta::read_all(reader, meta::PEER, |id| NodeId(u64::from_be_bytes(id)))?;
        Ok(Self { seen, open: BTreeMap::new() })
    }

    /// A session begins in which a peer shows its store. One whose store was replaced by another one is not used: the
    /// handshake refuses such a store, and should it get here, it gets no further.
    pub(super) fn opened(&mut self, kernel: &mut Kernel, node: NodeId, incarnation: Incarnation) {
        self.closed(kernel, node);
        let before = self.seen.get(&node).cloned();
        if before.as_ref().is_some_and(|before| before.is_retired(incarnation.store)) {
            return;
        }
        if before.as_ref().is_some_and(|before| before.current.store != incarnation.store) {
            kernel.event(Event::PeerStoreReplaced { node });
        }
        let seen = Seen::after(before.clone(), incarnation);
        let durable = if before.as_ref() == Some(&seen) {
            kernel.durable()
        } else {
            kernel.persist_meta(meta::peer(node), meta::encode(&seen))
        };
        self.seen.insert(node, seen);
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

    /// The peers whose sessions are in use.
    pub(super) fn up(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.open.iter().filter(|(_, session)| session.is_up).map(|(&node, _)| node)
    }

    /// The highest incarnation seen of a peer.
    pub(super) fn seen(&self, node: NodeId) -> Option<Incarnation> {
        self.seen.get(&node).map(|seen| seen.current)
    }

    /// The same, once the peer has shown its store: a store that another one has replaced counts as rolled back.
    pub(super) fn seen_against(&self, node: NodeId, store: StoreId) -> Option<Incarnation> {
        self.seen.get(&node).map(|seen| seen.against(store))
    }
}
