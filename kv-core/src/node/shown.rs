//! How far the stores of peers are, as each message says that acknowledges something, and how far this node's own is
//! (rule D2). It is kept here, so that an acknowledgement costs one look-up; the hub takes it over several times a second.

use std::collections::{BTreeMap, VecDeque};

use crate::storage::{Batch, Write};
use crate::types::{Incarnation, NodeId, Point, Seq};
use crate::view::meta;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Shown {
    peers: BTreeMap<NodeId, Peer>,
    /// Batches that are not durable, and whether each counts.
    open: VecDeque<(Seq, bool)>,
    /// The last batch that is durable and counts.
    own: u64,
}

/// A peer with a session.
#[derive(Debug)]
struct Peer {
    shown: Point,
    /// Whether the hub knows.
    told: bool,
}

impl Shown {
    /// A session with a peer begins.
    pub(super) fn opened(&mut self, node: NodeId, incarnation: Incarnation, commit: u64) {
        self.peers.insert(node, Peer { shown: Point { incarnation, commit }, told: true });
    }

    /// The session with a peer has ended. What it has shown and the hub does not know.
    pub(super) fn closed(&mut self, node: NodeId) -> Option<(NodeId, Point)> {
        self.peers.remove(&node).filter(|peer| !peer.told).map(|peer| (node, peer.shown))
    }

    /// A peer says how far its store is.
    pub(super) fn note(&mut self, node: NodeId, commit: u64) {
        if let Some(peer) = self.peers.get_mut(&node)
            && peer.shown.commit < commit
        {
            peer.shown.commit = commit;
            peer.told = false;
        }
    }

    /// What peers have shown since this was asked last.
    pub(super) fn take(&mut self) -> Vec<(NodeId, Point)> {
        let new = self.peers.iter_mut().filter(|(_, peer)| !peer.told);
        new.map(|(&node, peer)| {
            peer.told = true;
            (node, peer.shown)
        })
        .collect()
    }

    /// The newest of a peer: what the hub knows, or what it does not know yet.
    pub(super) fn newest(&self, node: NodeId, known: Option<Point>) -> Option<Point> {
        let mut newest = known?;
        if let Some(peer) = self.peers.get(&node)
            && peer.shown.incarnation == newest.incarnation
        {
            newest.commit = newest.commit.max(peer.shown.commit);
        }
        Some(newest)
    }

    /// A batch goes to the disk. One that only remembers what peers have shown does not count: two idle nodes would tell each
    /// other for ever that they have remembered.
    pub(super) fn issued(&mut self, seq: Seq, batch: &Batch) {
        let is_memory = |write: &Write| matches!(write, Write::Meta { name, .. } if name.starts_with(meta::PEER));
        self.open.push_back((seq, !batch.writes.iter().all(is_memory)));
    }

    /// Every batch up to this one is durable.
    pub(super) fn durable(&mut self, seq: Seq) {
        while let Some((seq, counts)) = self.open.pop_front_if(|(open, _)| *open <= seq) {
            if counts {
                self.own = seq.0;
            }
        }
    }

    /// How far this node's store is.
    pub(super) fn own(&self) -> u64 {
        self.own
    }
}
