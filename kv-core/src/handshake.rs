//! What two nodes check before they talk (rules D2 and D3).

use crate::message::{Hello, PROTOCOL_VERSION};
use crate::types::{Incarnation, NodeId};

/// Why two nodes do not talk.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// Another build.
    #[error("{node} speaks protocol version {theirs}, this node {PROTOCOL_VERSION}; run the same release on both")]
    Protocol {
        /// The peer.
        node: NodeId,
        /// Its version.
        theirs: u32,
    },
    /// Another cluster.
    #[error("{node} belongs to another cluster; check the addresses given to --join")]
    OtherCluster {
        /// The peer.
        node: NodeId,
    },
    /// Settings on which all nodes must agree differ.
    #[error("{node} has other cluster settings (limits or clock skew); start both nodes with the same ones")]
    OtherConfig {
        /// The peer.
        node: NodeId,
    },
    /// The node meets itself.
    #[error("{node} is this node's own number; two nodes were started with copies of one data directory")]
    Myself {
        /// The number.
        node: NodeId,
    },
    /// The peer's store is older than one that it has already shown.
    #[error(
        "{node} runs an older copy of its store (boot {}, seen {}); it must be refilled under a new store id before it serves",
        .theirs.boot,
        .seen.boot
    )]
    PeerRolledBack {
        /// The peer.
        node: NodeId,
        /// What it shows.
        theirs: Incarnation,
        /// The highest seen.
        seen: Incarnation,
    },
    /// This node's store is older than one that it has already shown: the shell renews the store id and starts again,
    /// so that the node is refilled.
    #[error("this node's store is an older copy (boot {}, {node} has seen {})", .mine.boot, .seen.boot)]
    RolledBack {
        /// The peer that noticed.
        node: NodeId,
        /// What this node shows.
        mine: Incarnation,
        /// The highest that the peer has seen.
        seen: Incarnation,
    },
}

/// Checks the peer's greeting against one's own. `seen` in each is the highest incarnation seen of the other.
///
/// # Errors
/// If the two must not talk.
pub fn check(mine: &Hello, theirs: &Hello) -> Result<(), HandshakeError> {
    let node = theirs.node;
    if theirs.protocol != mine.protocol {
        return Err(HandshakeError::Protocol { node, theirs: theirs.protocol });
    }
    if theirs.cluster != mine.cluster || theirs.seed != mine.seed {
        return Err(HandshakeError::OtherCluster { node });
    }
    if theirs.config != mine.config {
        return Err(HandshakeError::OtherConfig { node });
    }
    if node == mine.node {
        return Err(HandshakeError::Myself { node });
    }
    if let Some(seen) = mine.seen
        && is_rolled_back(theirs.incarnation, seen)
    {
        return Err(HandshakeError::PeerRolledBack { node, theirs: theirs.incarnation, seen });
    }
    if let Some(seen) = theirs.seen
        && is_rolled_back(mine.incarnation, seen)
    {
        return Err(HandshakeError::RolledBack { node, mine: mine.incarnation, seen });
    }
    Ok(())
}

/// Whether `shown` is an older copy of the store that has shown `seen`: a lower boot, or the same boot under another
/// nonce. Another store id is not an older copy but a new store.
#[must_use]
pub fn is_rolled_back(shown: Incarnation, seen: Incarnation) -> bool {
    shown.store == seen.store && (shown.boot < seen.boot || (shown.boot == seen.boot && shown.nonce != seen.nonce))
}
