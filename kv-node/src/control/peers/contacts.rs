//! Where the other nodes are, what they have shown, and whether they answer.

use std::collections::BTreeMap;
use std::sync::Arc;

use kv_core::handshake::is_rolled_back;
use kv_core::types::{Generation, Incarnation, Monotonic, NodeId, Point, StoreId};
use kv_proto::address::check_address;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::transport::GroupId;
use super::{RaftId, raft_id, store_of};
use crate::control::state::{ClusterState, MEMBERS_MAX};
use crate::liveness::{Condition, Liveness, Opinion};

/// The most nodes whose contacts are remembered: members, their former stores, and nodes that are joining.
const CONTACTS_MAX: usize = 2 * MEMBERS_MAX;

/// The node's one opinion of its peers, shared with the peer streams.
pub type SharedLiveness = Arc<Mutex<dyn Liveness>>;

/// Reads the node's monotonic clock.
pub type Clock = Arc<dyn Fn() -> Monotonic + Send + Sync>;

/// What a node knows of the others.
pub(in crate::control) struct Peers {
    state: watch::Receiver<Arc<ClusterState>>,
    /// What nodes said of themselves, which may be newer than what is agreed on: after a change of addresses it lets
    /// the nodes find each other, so that they can agree on it.
    contacts: Mutex<BTreeMap<RaftId, Contact>>,
    /// Stores that have shown, in a greeting, that they are older copies than they were: as what they run, and what was seen.
    doubted: Mutex<BTreeMap<StoreId, (Incarnation, Point)>>,
    /// Where members may be, as they or others said; nobody has asked there yet. One for each member.
    candidates: Mutex<BTreeMap<RaftId, String>>,
    /// Notified when there is a new candidate.
    pub(in crate::control) candidate_added: Notify,
    /// Counts how often a node was found to be elsewhere.
    moved: watch::Sender<u64>,
    liveness: SharedLiveness,
    clock: Clock,
}

#[derive(Clone, Debug)]
struct Contact {
    address: String,
    incarnation: Incarnation,
}

impl Peers {
    pub(in crate::control) fn new(
        state: watch::Receiver<Arc<ClusterState>>,
        liveness: SharedLiveness,
        clock: Clock,
    ) -> Self {
        Self {
            state,
            contacts: Mutex::default(),
            doubted: Mutex::default(),
            candidates: Mutex::default(),
            candidate_added: Notify::new(),
            moved: watch::Sender::new(0),
            liveness,
            clock,
        }
    }

    /// Notes a message from `incarnation` at `address`.
    ///
    /// # Errors
    /// With the newest that was seen, if the sender runs an older copy of its store (rule D2).
    pub(in crate::control) fn heard(&self, incarnation: Incarnation, address: &str) -> Result<(), Point> {
        if let Some((_, seen)) = self.doubted.lock().get(&incarnation.store).filter(|doubted| doubted.0 == incarnation)
        {
            return Err(*seen);
        }
        let id = raft_id(incarnation.store);
        let member = self.node_of(id);
        {
            let mut contacts = self.contacts.lock();
            let shown = contacts.get(&id).map(|contact| contact.incarnation);
            let agreed = self.state.borrow().member_of(incarnation.store).map(|(_, member)| member.incarnation);
            if let Some(seen) = shown.max(agreed)
                && is_rolled_back(incarnation, seen)
            {
                return Err(Point { incarnation: seen, commit: 0 });
            }
            // An invalid address is not kept, but its sender still counts as heard.
            let usable = check_address(address).is_ok();
            if usable && (shown.is_some() || contacts.len() < CONTACTS_MAX) {
                let contact = Contact { address: address.to_owned(), incarnation };
                let before = contacts.insert(id, contact);
                if before.is_none_or(|before| before.address != address) {
                    self.moved.send_modify(|count| *count += 1);
                }
            }
        }
        if let Some(node) = member {
            let now = (self.clock)();
            self.liveness.lock().noticed(node, now);
        }
        Ok(())
    }

    /// A member has greeted with an older copy of its store: until it greets otherwise, nothing that it says counts.
    pub(in crate::control) fn doubt(&self, shown: Incarnation, seen: Point) {
        let mut doubted = self.doubted.lock();
        if doubted.len() < CONTACTS_MAX || doubted.contains_key(&shown.store) {
            doubted.insert(shown.store, (shown, seen));
        }
    }

    /// A member has greeted with a store that has all that it has shown.
    pub(in crate::control) fn believe(&self, store: StoreId) {
        self.doubted.lock().remove(&store);
    }

    /// Whether this store has greeted as an older copy of itself.
    pub(in crate::control) fn is_doubted(&self, store: StoreId) -> bool {
        self.doubted.lock().contains_key(&store)
    }

    /// Where the node is that takes part under `id`: what it said itself, unless a later run of it is agreed on.
    pub(in crate::control) fn address(&self, id: RaftId) -> Option<String> {
        let state = self.state.borrow();
        let agreed = state.member_of(store_of(id)).map(|(_, member)| member);
        match (self.contacts.lock().get(&id), agreed) {
            (Some(contact), Some(agreed)) if agreed.incarnation.boot > contact.incarnation.boot => {
                Some(agreed.address.clone())
            }
            (Some(contact), _) => Some(contact.address.clone()),
            (None, agreed) => agreed.map(|member| member.address.clone()),
        }
    }

    /// Changes when a node was found to be elsewhere.
    pub(in crate::control) fn moved(&self) -> watch::Receiver<u64> {
        self.moved.subscribe()
    }

    /// Notes where a member may be. Whether it is there is for that place to say.
    pub(in crate::control) fn suggest(&self, store: StoreId, address: &str) {
        let id = raft_id(store);
        if self.node_of(id).is_none() || self.address(id).as_deref() == Some(address) {
            return;
        }
        let before = self.candidates.lock().insert(id, address.to_owned());
        if before.as_deref() != Some(address) {
            self.candidate_added.notify_one();
        }
    }

    /// Takes the places that nobody has asked yet.
    pub(in crate::control) fn take_candidates(&self) -> BTreeMap<RaftId, String> {
        std::mem::take(&mut *self.candidates.lock())
    }

    /// Whether `store` was given up, so that nothing it says counts any more.
    pub(in crate::control) fn is_retired(&self, store: StoreId) -> bool {
        self.state.borrow().retired.contains(&store)
    }

    /// Whether a group was that of an earlier generation of this cluster.
    pub(in crate::control) fn is_of_former_generation(&self, group: GroupId) -> bool {
        self.state.borrow().former_generation(StoreId(group.0)).is_some()
    }

    /// The generation of the cluster whose group this is.
    pub(in crate::control) fn generation(&self, group: GroupId) -> Generation {
        self.state.borrow().generation(StoreId(group.0))
    }

    /// The store and boot of a member, as far as this node knows what was agreed on.
    pub(in crate::control) fn agreed(&self, node: NodeId) -> Option<Incarnation> {
        self.state.borrow().members.get(&node).map(|member| member.incarnation)
    }

    /// The member that takes requests at `address`, as far as this node knows.
    pub(in crate::control) fn member_at(&self, address: &str) -> Option<NodeId> {
        let state = Arc::clone(&self.state.borrow());
        let is_there = |store: StoreId| self.address(raft_id(store)).as_deref() == Some(address);
        state.members.iter().find(|(_, member)| is_there(member.incarnation.store)).map(|(node, _)| *node)
    }

    /// The member that takes part under `id`.
    pub(in crate::control) fn node_of(&self, id: RaftId) -> Option<NodeId> {
        self.state.borrow().member_of(store_of(id)).map(|(node, _)| node)
    }

    /// What the node thinks of a member.
    pub(in crate::control) fn opinion(&self, node: NodeId) -> Option<Opinion> {
        let now = (self.clock)();
        self.liveness.lock().opinion(node, now)
    }

    /// Whether the member that takes part under `id` answers.
    pub(in crate::control) fn is_up(&self, id: RaftId) -> bool {
        self.node_of(id).and_then(|node| self.opinion(node)).is_some_and(|opinion| opinion.condition == Condition::Up)
    }

    /// Has an opinion of every member but `me`, and of nobody else.
    pub(in crate::control) fn follow(&self, me: RaftId, before: &ClusterState, now: &ClusterState) {
        let moment = (self.clock)();
        let mut liveness = self.liveness.lock();
        for node in before.members.keys().filter(|node| !now.members.contains_key(node)) {
            liveness.forget(*node);
        }
        for (&node, member) in &now.members {
            if raft_id(member.incarnation.store) != me {
                liveness.watch(node, moment);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::state::MemberRecord;
    use crate::liveness::{Heartbeats, Timeouts};

    fn run_of(store: u64, boot: u32) -> Incarnation {
        Incarnation { store: StoreId(store), boot, nonce: boot }
    }

    /// Knows member 2 of store 20, at its third boot.
    fn peers() -> (watch::Sender<Arc<ClusterState>>, Peers) {
        let mut state = ClusterState::default();
        let member = MemberRecord {
            name: "n2".to_owned(),
            address: "agreed:1".to_owned(),
            zone: "z".to_owned(),
            weight: 1.0,
            incarnation: run_of(20, 3),
            version: String::new(),
            spare: false,
        };
        state.members.insert(NodeId(2), member);
        let liveness = Arc::new(Mutex::new(Heartbeats::new(Timeouts::default())));
        let (sender, receiver) = watch::channel(Arc::new(state.clone()));
        let peers = Peers::new(receiver, liveness, Arc::new(|| Monotonic(5)));
        peers.follow(1, &ClusterState::default(), &state);
        (sender, peers)
    }

    #[test]
    fn the_latest_run_of_a_node_says_where_it_is() {
        let (sender, peers) = peers();
        assert_eq!(peers.address(20).as_deref(), Some("agreed:1"));
        assert_eq!(peers.heard(run_of(20, 4), "told:4"), Ok(()));
        assert_eq!(peers.address(20).as_deref(), Some("told:4"), "before it is agreed on");
        sender.send_modify(|state| {
            let mut later = ClusterState::clone(state);
            if let Some(member) = later.members.get_mut(&NodeId(2)) {
                member.incarnation = run_of(20, 5);
                member.address = "agreed:5".to_owned();
            }
            *state = Arc::new(later);
        });
        assert_eq!(peers.address(20).as_deref(), Some("agreed:5"), "it moved and told others only");
        assert_eq!(peers.address(21), None);
    }

    #[test]
    fn an_older_copy_is_recognised_by_what_was_told_and_by_what_is_agreed_on() {
        let (_sender, peers) = peers();
        let seen = |incarnation| Err(Point { incarnation, commit: 0 });
        assert_eq!(peers.heard(run_of(20, 2), "a:1"), seen(run_of(20, 3)));
        assert!(!peers.is_up(20), "an older copy is no sign of life");
        assert_eq!(peers.heard(run_of(20, 3), "a:1"), Ok(()));
        assert!(peers.is_up(20));
        let twin = Incarnation { nonce: 9, ..run_of(20, 3) };
        assert_eq!(peers.heard(twin, "a:1"), seen(run_of(20, 3)));
        assert_eq!(peers.heard(run_of(30, 7), "b:1"), Ok(()), "a node that joins");
        assert_eq!(peers.heard(run_of(30, 6), "b:1"), seen(run_of(30, 7)));
        // A later boot may be one of an older copy as well, which its greeting shows.
        let point = Point { incarnation: run_of(20, 3), commit: 50 };
        peers.doubt(run_of(20, 4), point);
        assert_eq!(peers.heard(run_of(20, 4), "a:1"), Err(point));
        peers.believe(StoreId(20));
        assert_eq!(peers.heard(run_of(20, 4), "a:1"), Ok(()));
    }
}
