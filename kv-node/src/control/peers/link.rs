//! One call to another node: puts the message in its envelope, checks the answer's, and notes who was heard, and what members
//! claim of this node's store.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use kv_core::boots::Boots;
use kv_core::handshake::{Claims, Gate, HandshakeError};
use kv_core::message::{Hello, PROTOCOL_VERSION};
use kv_core::types::{Generation, Incarnation, NodeId, Point, StoreId};
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::transport::{
    Answer, Envelope, GroupId, IdentifyReply, IdentifyRequest, MESSAGE_BYTES_MAX, NodeAddress, RaftKind, Transport,
    TransportError,
};
use super::{Peers, RaftId, raft_id, store_of};

/// What the data plane has seen of a member's store.
pub type Memory = Arc<dyn Fn(NodeId, StoreId) -> Pin<Box<dyn Future<Output = Option<Point>> + Send>> + Send + Sync>;

/// How long a place may take to say who is there.
const IDENTIFY_TIMEOUT: Duration = Duration::from_secs(2);

/// This node's end of all connections.
pub(in crate::control) struct Link {
    pub(in crate::control) me: Incarnation,
    /// The boots of this node's store.
    pub(in crate::control) boots: Boots,
    pub(in crate::control) address: String,
    /// Set once the node knows its group.
    pub(in crate::control) group: OnceLock<GroupId>,
    pub(in crate::control) peers: Peers,
    pub(in crate::control) transport: Arc<dyn Transport>,
    /// What the data plane has seen of the stores of others; set once it runs.
    pub(in crate::control) memory: OnceLock<Memory>,
    gate: Gate,
    claims: Mutex<AllClaims>,
    /// Counts how often the claims have changed.
    pub(in crate::control) claims_changed: tokio::sync::watch::Sender<u64>,
}

/// What members say of this node's store (rule D2).
#[derive(Default)]
struct AllClaims {
    /// It is an older copy: what they have seen, as far as they say.
    older: Claims<Option<Point>>,
    /// It was given up.
    given_up: Claims<()>,
    /// There is a later generation of the cluster, to which they belong.
    superseded: Claims<Generation>,
}

/// Why a call brought no answer that can be used.
#[derive(Debug, thiserror::Error)]
pub(in crate::control) enum CallError {
    /// Nothing came back, or the address is not known.
    #[error(transparent)]
    Unreachable(TransportError),
    /// Another node answered.
    #[error("{address}: {reason}")]
    NotMine { address: String, reason: String },
    /// One of the two runs an older copy of its store.
    #[error("{address}: the store that runs as {shown} is an older copy; {seen} has been seen")]
    RolledBack { address: String, shown: Incarnation, seen: Point },
    /// The node cannot answer.
    #[error("{address}: {reason}")]
    Failed { address: String, reason: String },
    /// The message or the answer cannot be read or is too long.
    #[error("{address}: {reason}")]
    Malformed { address: String, reason: String },
}

impl Link {
    pub(in crate::control) fn new(
        (me, boots): (Incarnation, Boots),
        address: String,
        group: Option<GroupId>,
        peers: Peers,
        transport: Arc<dyn Transport>,
    ) -> Self {
        let group = group.map_or_else(OnceLock::new, OnceLock::from);
        let (claims_changed, _) = tokio::sync::watch::channel(0);
        let (gate, claims) = (Gate::default(), Mutex::default());
        Self { me, boots, address, group, peers, transport, memory: OnceLock::new(), gate, claims, claims_changed }
    }

    /// Checks the greeting of a peer: only members under their agreed stores are talked to (rule D4).
    pub(in crate::control) fn check_hello(&self, mine: &Hello, theirs: &Hello) -> Result<(), HandshakeError> {
        let agreed = self.peers.agreed(theirs.node);
        let checked = self.gate.check(mine, theirs, agreed.map(|agreed| agreed.store)).and_then(|()| {
            let agreed = agreed.map(|incarnation| Point { incarnation, commit: 0 });
            match agreed.filter(|agreed| !theirs.boots.has(theirs.incarnation, *agreed)) {
                Some(seen) => {
                    Err(HandshakeError::PeerRolledBack { node: theirs.node, theirs: theirs.incarnation, seen })
                }
                None => Ok(()),
            }
        });
        match &checked {
            Ok(()) => {
                self.peers.believe(theirs.incarnation.store);
                self.withdraw(theirs.node);
            }
            // What it says by way of the control plane counts no more than what it would say in a session.
            Err(HandshakeError::PeerRolledBack { theirs, seen, .. }) => self.peers.doubt(*theirs, *seen),
            Err(HandshakeError::RolledBack { node, seen, .. }) => self.is_older(*node, Some(*seen)),
            Err(HandshakeError::OtherGeneration { node, theirs, mine, .. }) if theirs.number > mine.number => {
                // Who is no member here may say anything.
                if agreed.is_some() {
                    self.is_superseded(*node, *theirs);
                }
            }
            Err(_) => {}
        }
        checked
    }

    /// Whether this node's store lacks what was seen of it, by the list of its boots.
    pub(in crate::control) fn lacks(&self, seen: Point) -> bool {
        !self.boots.has(self.me, seen)
    }

    /// A member says that this node's store is an older copy.
    pub(in crate::control) fn is_older(&self, author: NodeId, seen: Option<Point>) {
        if self.claims.lock().older.note(author, seen) {
            tracing::warn!(
                peer = %author,
                "a member says that this node's store is an older copy; it is given up only if the agreed state or more than half \
                 of the members say so"
            );
        }
        self.claims_changed.send_modify(|count| *count += 1);
    }

    /// A member says that this node's store was given up.
    pub(in crate::control) fn is_given_up(&self, author: NodeId) {
        if self.claims.lock().given_up.note(author, ()) {
            tracing::warn!(
                peer = %author,
                "a member says that this node's store was given up; it ends only if the agreed state or more than half of the \
                 members say so"
            );
        }
        self.claims_changed.send_modify(|count| *count += 1);
    }

    /// A member says that it belongs to a later generation of the cluster.
    pub(in crate::control) fn is_superseded(&self, author: NodeId, generation: Generation) {
        if self.claims.lock().superseded.note(author, generation) {
            tracing::warn!(
                peer = %author, %generation,
                "a member belongs to a later generation of the cluster; stop this node and have its data directory join that: kv-node \
                 recover --data-dir DIR --join ADDR:PORT"
            );
        }
        self.claims_changed.send_modify(|count| *count += 1);
    }

    /// The generation of the cluster to which this node belongs; `None` before it has joined one.
    pub(in crate::control) fn generation(&self) -> Option<Generation> {
        self.group.get().map(|group| self.peers.generation(*group))
    }

    /// Who says that there is a later generation of the cluster, and which.
    pub(in crate::control) fn later_generations(&self) -> Vec<(NodeId, Generation)> {
        self.claims.lock().superseded.all().collect()
    }

    /// Whether more than half of these nodes belong to a later generation: which.
    pub(in crate::control) fn proven_superseded(&self, electorate: &[NodeId]) -> Option<Generation> {
        self.claims.lock().superseded.proven(electorate.iter().copied())
    }

    /// A member talks to this node, so it claims nothing.
    fn withdraw(&self, author: NodeId) {
        let mut claims = self.claims.lock();
        claims.superseded.withdraw(author);
        claims.older.withdraw(author);
        claims.given_up.withdraw(author);
    }

    /// Whether more than half of these nodes say that this node's store is an older copy: what they have seen.
    pub(in crate::control) fn proven_older(&self, electorate: &[NodeId]) -> Option<Option<Point>> {
        self.claims.lock().older.proven(electorate.iter().copied())
    }

    /// Whether more than half of these nodes say that this node's store was given up.
    pub(in crate::control) fn proven_given_up(&self, electorate: &[NodeId]) -> bool {
        self.claims.lock().given_up.proven(electorate.iter().copied()).is_some()
    }

    /// What members claim, for people.
    pub(in crate::control) fn claimed(&self) -> Vec<(NodeId, String)> {
        let claims = self.claims.lock();
        let older = claims.older.all().map(|(author, seen)| {
            let seen = seen.map_or_else(String::new, |Point { incarnation, commit }| {
                format!(", it has seen boot {} up to commit {commit}", incarnation.boot)
            });
            (author, format!("says that this node's store is an older copy (boot {}{seen})", self.me.boot))
        });
        let given_up =
            claims.given_up.all().map(|(author, ())| (author, "says that this node's store was given up".to_owned()));
        older.chain(given_up).collect()
    }

    /// Sends `request` to the node that takes part under `target`.
    pub(in crate::control) async fn call<Q: Serialize, A: DeserializeOwned>(
        &self,
        target: RaftId,
        kind: RaftKind,
        request: &Q,
        timeout: Duration,
    ) -> Result<A, CallError> {
        let (Some(address), Some(&group)) = (self.peers.address(target), self.group.get()) else {
            let reason = "its address is not known yet".to_owned();
            let address = store_of(target).to_string();
            return Err(CallError::Unreachable(TransportError {
                address,
                reason,
                may_have_arrived: false,
                refused: false,
            }));
        };
        let malformed = |reason: String| CallError::Malformed { address: address.clone(), reason };
        let body = postcard::to_stdvec(request).map_err(|error| malformed(error.to_string()))?;
        let envelope = Envelope { group, from: self.me, address: self.address.clone(), to: target, body };
        let payload = postcard::to_stdvec(&envelope).map_err(|error| malformed(error.to_string()))?;
        if payload.len() > MESSAGE_BYTES_MAX {
            let reason = format!("a message of {} bytes is too long, the limit is {MESSAGE_BYTES_MAX}", payload.len());
            return Err(malformed(reason));
        }
        let sent = tokio::time::timeout(timeout, self.transport.raft(&address, kind, payload, timeout)).await;
        let answer = sent
            .map_err(|_elapsed| TransportError {
                address: address.clone(),
                reason: format!("silent for {timeout:?}"),
                may_have_arrived: true,
                refused: false,
            })
            .and_then(|answer| answer)
            .map_err(CallError::Unreachable)?;
        match postcard::from_bytes(&answer).map_err(|error| malformed(error.to_string()))? {
            Answer::Accepted { from, .. } if raft_id(from.store) != target => {
                let reason = format!("store {} answered for {}", from.store, store_of(target));
                Err(CallError::NotMine { address, reason })
            }
            Answer::Accepted { from, body } => {
                if let Err(seen) = self.peers.heard(from, &address) {
                    return Err(CallError::RolledBack { address, shown: from, seen });
                }
                if let Some(author) = self.peers.node_of(target) {
                    self.withdraw(author);
                }
                postcard::from_bytes(&body).map_err(|error| malformed(error.to_string()))
            }
            Answer::NotMine(reason) => Err(CallError::NotMine { address, reason }),
            Answer::RolledBack { seen } => {
                if let Some(author) = self.peers.node_of(target) {
                    self.is_older(author, Some(seen));
                }
                Err(CallError::RolledBack { address, shown: self.me, seen })
            }
            Answer::Failed(reason) => Err(CallError::Failed { address, reason }),
            Answer::GivenUp => {
                if let Some(author) = self.peers.node_of(target) {
                    self.is_given_up(author);
                }
                Err(CallError::NotMine { address, reason: format!("store {} was given up", self.me.store) })
            }
            Answer::Superseded { generation } => {
                if let Some(author) = self.peers.node_of(target) {
                    self.is_superseded(author, generation);
                }
                Err(CallError::NotMine { address, reason: format!("it belongs to {generation} of the cluster") })
            }
        }
    }

    /// Asks who is at an address; `None` if nobody answers.
    pub(in crate::control) async fn identify(&self, group: GroupId, address: &str) -> Option<IdentifyReply> {
        let sender = NodeAddress { incarnation: self.me, address: self.address.clone() };
        let request = IdentifyRequest { protocol: PROTOCOL_VERSION, group, sender };
        let call = self.transport.identify(address, request, IDENTIFY_TIMEOUT);
        match tokio::time::timeout(IDENTIFY_TIMEOUT, call).await {
            Ok(Ok(reply)) => Some(reply),
            Ok(Err(error)) => {
                tracing::debug!(%error, "nobody to be found");
                None
            }
            Err(_elapsed) => None,
        }
    }

    /// Checks the envelope of a message that came in, of a node that has proven to be this store and boot, if it has.
    ///
    /// # Errors
    /// With the answer to give, if the message is not for this node.
    pub(in crate::control) fn open(&self, payload: &[u8], proven: Option<Incarnation>) -> Result<Envelope, Answer> {
        let envelope: Envelope = postcard::from_bytes(payload)
            .map_err(|error| Answer::NotMine(format!("the message cannot be read: {error}; run the same release")))?;
        match self.group.get() {
            None => return Err(Answer::NotMine("the node has not joined a cluster yet".to_owned())),
            Some(group) if *group != envelope.group => {
                if self.peers.is_of_former_generation(envelope.group) {
                    return Err(Answer::Superseded { generation: self.peers.generation(*group) });
                }
                return Err(Answer::NotMine(format!(
                    "the node belongs to group {group}, the message is for {}",
                    envelope.group
                )));
            }
            Some(_) => {}
        }
        let me = self.me.store;
        if envelope.to != raft_id(me) {
            return Err(Answer::NotMine(format!("this is store {me}, the message is for {}", store_of(envelope.to))));
        }
        if let Some(proven) = proven.filter(|proven| *proven != envelope.from) {
            return Err(Answer::NotMine(format!(
                "{proven} speaks for {}; nobody but a node itself may do that",
                envelope.from
            )));
        }
        if self.peers.is_retired(envelope.from.store) {
            return Err(Answer::GivenUp);
        }
        match self.peers.heard(envelope.from, &envelope.address) {
            Ok(()) => Ok(envelope),
            Err(seen) => Err(Answer::RolledBack { seen }),
        }
    }

    /// The answer to a message that was for this node.
    pub(in crate::control) fn answer<A: Serialize>(&self, body: &A) -> Answer {
        match postcard::to_stdvec(body) {
            Ok(body) => Answer::Accepted { from: self.me, body },
            Err(error) => Answer::Failed(format!("the answer cannot be encoded: {error}")),
        }
    }
}
