//! Where the other nodes are, what they have shown, and whether they answer.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use kv_core::handshake::is_rolled_back;
use kv_core::types::{Incarnation, Monotonic, NodeId, StoreId};
use tokio::sync::watch;

use super::raft::{RaftId, raft_id, store_of};
use super::state::ClusterState;
use crate::liveness::{Condition, Liveness, Opinion};

/// The most nodes whose contacts are remembered: members, their former stores, and nodes that are joining.
const CONTACTS_MAX: usize = 2 * super::apply::MEMBERS_MAX;

/// The node's one opinion of its peers, shared with the peer streams.
pub type SharedLiveness = Arc<Mutex<dyn Liveness>>;

/// Reads the node's monotonic clock.
pub type Clock = Arc<dyn Fn() -> Monotonic + Send + Sync>;

/// What a node knows of the others.
pub(crate) struct Peers {
    state: watch::Receiver<Arc<ClusterState>>,
    /// What nodes said of themselves, which may be newer than what is agreed on: after a change of addresses it lets
    /// the nodes find each other, so that they can agree on it.
    contacts: Mutex<BTreeMap<RaftId, Contact>>,
    liveness: SharedLiveness,
    clock: Clock,
}

#[derive(Clone, Debug)]
struct Contact {
    address: String,
    incarnation: Incarnation,
}

impl Peers {
    pub(crate) fn new(state: watch::Receiver<Arc<ClusterState>>, liveness: SharedLiveness, clock: Clock) -> Self {
        Self { state, contacts: Mutex::default(), liveness, clock }
    }

    /// Notes a message from `incarnation` at `address`.
    ///
    /// # Errors
    /// With the newest incarnation seen, if the sender runs an older copy of its store (rule D2).
    pub(crate) fn heard(&self, incarnation: Incarnation, address: &str) -> Result<(), Incarnation> {
        let id = raft_id(incarnation.store);
        let member = self.node_of(id);
        {
            let mut contacts = self.contacts();
            let told = contacts.get(&id).map(|contact| contact.incarnation);
            let agreed = self.state.borrow().member_of(incarnation.store).map(|(_, member)| member.incarnation);
            if let Some(seen) = told.max(agreed)
                && is_rolled_back(incarnation, seen)
            {
                return Err(seen);
            }
            if told.is_some() || contacts.len() < CONTACTS_MAX {
                contacts.insert(id, Contact { address: address.to_owned(), incarnation });
            }
        }
        if let Some(node) = member {
            let now = (self.clock)();
            self.liveness().heard(node, now);
        }
        Ok(())
    }

    /// Where the node is that takes part under `id`.
    pub(crate) fn address(&self, id: RaftId) -> Option<String> {
        if let Some(contact) = self.contacts().get(&id) {
            return Some(contact.address.clone());
        }
        self.state.borrow().member_of(store_of(id)).map(|(_, member)| member.address.clone())
    }

    /// Whether `store` was given up, so that nothing it says counts any more.
    pub(crate) fn is_retired(&self, store: StoreId) -> bool {
        self.state.borrow().retired.contains(&store)
    }

    /// The member that takes part under `id`.
    pub(crate) fn node_of(&self, id: RaftId) -> Option<NodeId> {
        self.state.borrow().member_of(store_of(id)).map(|(node, _)| node)
    }

    /// What the node thinks of a member.
    pub(crate) fn opinion(&self, node: NodeId) -> Option<Opinion> {
        let now = (self.clock)();
        self.liveness().opinion(node, now)
    }

    /// Whether the member that takes part under `id` answers.
    pub(crate) fn is_up(&self, id: RaftId) -> bool {
        self.node_of(id).and_then(|node| self.opinion(node)).is_some_and(|opinion| opinion.condition == Condition::Up)
    }

    /// Has an opinion of every member but `me`, and of nobody else.
    pub(crate) fn follow(&self, me: RaftId, before: &ClusterState, now: &ClusterState) {
        let moment = (self.clock)();
        let mut liveness = self.liveness();
        for node in before.members.keys().filter(|node| !now.members.contains_key(node)) {
            liveness.forget(*node);
        }
        for (&node, member) in &now.members {
            if raft_id(member.incarnation.store) != me {
                liveness.watch(node, moment);
            }
        }
    }

    fn contacts(&self) -> MutexGuard<'_, BTreeMap<RaftId, Contact>> {
        self.contacts.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn liveness(&self) -> MutexGuard<'_, dyn Liveness + 'static> {
        self.liveness.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
