//! Who is asked for a request, and how many must answer.

use crate::config::Keyspace;
use crate::message::{Consistency, Level, Role};
use crate::node::Node;
use crate::ring::Entry;
use crate::types::{NodeId, PartitionId};

/// How many of `owners` copies a request needs; `keyspace_level` is the keyspace's R or W.
pub(super) fn needed(consistency: Consistency, keyspace_level: u8, owners: usize) -> usize {
    let wanted = match consistency.level {
        Level::Keyspace => usize::from(keyspace_level),
        Level::One => 1,
        Level::Quorum => owners / 2 + 1,
        Level::All => owners,
    };
    wanted.clamp(1, owners.max(1))
}

/// Whether only owners count.
pub(super) fn owners_only(consistency: Consistency) -> bool {
    consistency.strict || consistency.level == Level::All
}

/// What a read of `keyspace` needs.
pub(super) fn reads(consistency: Consistency, keyspace: &Keyspace, owners: usize) -> usize {
    needed(consistency, keyspace.r, owners)
}

/// What a write to `keyspace` needs.
pub(super) fn writes(consistency: Consistency, keyspace: &Keyspace, owners: usize) -> usize {
    needed(consistency, keyspace.w, owners)
}

impl Node {
    /// The entry of a partition in the current layout.
    pub(crate) fn entry(&self, partition: PartitionId) -> Option<&Entry> {
        self.layout.as_ref()?.entry(partition)
    }

    /// Whether `node` can be asked: it is this node, or there is a session.
    pub(crate) fn reachable(&self, node: NodeId) -> bool {
        node == self.config.node || self.is_up(node)
    }

    /// The owners of `partition` that can be asked, this node first (unless it is being refilled), then by preference.
    pub(super) fn owners_up(&self, partition: PartitionId) -> Vec<NodeId> {
        let me = self.config.node;
        let mut nodes: Vec<NodeId> = self.entry(partition).map(|entry| entry.nodes().collect()).unwrap_or_default();
        nodes.retain(|&node| if node == me { self.is_synced(partition) } else { self.is_up(node) });
        nodes.sort_by_key(|&node| node != me);
        nodes
    }

    /// Stand-ins for `partition` that can be asked, nearest first. A node that coordinates without being an owner comes
    /// first, wherever it stands on the ring.
    pub(crate) fn stand_ins_up(&self, partition: PartitionId, wanted: usize) -> Vec<NodeId> {
        if wanted == 0 {
            // The usual case, on every write: nobody is down, and the ring need not be walked.
            return Vec::new();
        }
        let Some(layout) = &self.layout else { return Vec::new() };
        let me = self.config.node;
        let mut nodes = layout.fallbacks(partition, layout.members.len());
        nodes.retain(|&node| node != me && self.is_up(node));
        if !layout.entry(partition).is_none_or(|entry| entry.owns(me)) {
            nodes.insert(0, me);
        }
        nodes.truncate(wanted);
        nodes
    }
}

/// A node in the role in which it is asked.
pub(super) type Asked = (NodeId, Role);
