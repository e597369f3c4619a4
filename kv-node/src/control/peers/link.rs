//! One call to another node: puts the message in its envelope, checks the answer's, and notes who was heard.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use kv_core::message::PROTOCOL_VERSION;
use kv_core::types::Incarnation;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::transport::{
    Answer, Envelope, GroupId, IdentifyReply, IdentifyRequest, MESSAGE_BYTES_MAX, NodeAddress, RaftKind, Transport,
    TransportError,
};
use super::{Peers, RaftId, raft_id, store_of};

/// How long a place may take to say who is there.
const IDENTIFY_TIMEOUT: Duration = Duration::from_secs(2);

/// This node's end of all connections.
pub(in crate::control) struct Link {
    pub(in crate::control) me: Incarnation,
    pub(in crate::control) address: String,
    /// Set once the node knows its group.
    pub(in crate::control) group: OnceLock<GroupId>,
    pub(in crate::control) peers: Peers,
    pub(in crate::control) transport: Arc<dyn Transport>,
    /// Set when a peer says that this node runs an older copy of its store.
    pub(in crate::control) rolled_back: tokio::sync::watch::Sender<Option<Incarnation>>,
    /// Set when a peer says that the store of this node was given up.
    pub(in crate::control) given_up: tokio::sync::watch::Sender<bool>,
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
    #[error("{address}: a store was rolled back to boot {}, boot {} has been seen", .shown.boot, .seen.boot)]
    RolledBack { address: String, shown: Incarnation, seen: Incarnation },
    /// The node cannot answer.
    #[error("{address}: {reason}")]
    Failed { address: String, reason: String },
    /// The message or the answer cannot be read or is too long.
    #[error("{address}: {reason}")]
    Malformed { address: String, reason: String },
}

impl Link {
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
            return Err(CallError::Unreachable(TransportError { address, reason, may_have_arrived: false }));
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
                postcard::from_bytes(&body).map_err(|error| malformed(error.to_string()))
            }
            Answer::NotMine(reason) => Err(CallError::NotMine { address, reason }),
            Answer::RolledBack { seen } => {
                self.rolled_back.send_replace(Some(seen));
                Err(CallError::RolledBack { address, shown: self.me, seen })
            }
            Answer::Failed(reason) => Err(CallError::Failed { address, reason }),
            Answer::GivenUp => {
                self.given_up.send_replace(true);
                Err(CallError::NotMine { address, reason: format!("store {} was given up", self.me.store) })
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

    /// Checks the envelope of a message that came in.
    ///
    /// # Errors
    /// With the answer to give, if the message is not for this node.
    pub(in crate::control) fn open(&self, payload: &[u8]) -> Result<Envelope, Answer> {
        let envelope: Envelope = postcard::from_bytes(payload)
            .map_err(|error| Answer::NotMine(format!("the message cannot be read: {error}; run the same release")))?;
        match self.group.get() {
            None => return Err(Answer::NotMine("the node has not joined a cluster yet".to_owned())),
            Some(group) if *group != envelope.group => {
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
