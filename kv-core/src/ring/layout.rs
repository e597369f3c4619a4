//! The layout: an immutable, numbered map from partitions to their owners.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::hash;
use crate::types::{ClusterId, Epoch, HashSeed, NodeId, PartitionId, StoreId};

/// The most partitions that a cluster can have.
pub const PARTITIONS_MAX: u32 = 65_536;

/// The epoch of the layout with which a cluster is formed. Who owns a partition since then has nothing to copy.
pub const FIRST_EPOCH: Epoch = Epoch(1);

/// What a layout knows of a node. Addresses are not part of it: they may change without a new epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Member {
    /// The name that people use, unique in the cluster.
    pub name: String,
    /// The failure domain.
    pub zone: String,
    /// The capacity relative to the other members; above zero.
    pub weight: f64,
    /// The data directory that belongs to the member. A node with another store is refilled before it answers (rule D2).
    pub store: StoreId,
    /// A spare is a member that must not own partitions (yet). Without the flag a member whose fair share is below one
    /// partition could not be told from it.
    pub spare: bool,
}

/// One owner of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Owner {
    /// The node that holds the copy.
    pub node: NodeId,
    /// The epoch at which the node entered this partition (rule E3). Data that it stored under an earlier ownership
    /// does not count.
    pub since: Epoch,
}

/// The owners of one partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The epoch that last changed this entry. Requests carry it, so that a change elsewhere disturbs nobody (rule E1).
    pub changed: Epoch,
    /// The preference list: distinct nodes, the first place first.
    pub owners: Vec<Owner>,
}

impl Entry {
    /// Whether the entry is well formed by itself: there are owners, each once, that entered no later than the entry last
    /// changed. What comes from a peer is checked on receipt; [`super::check`] looks at whole layouts.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        let once = |(at, owner): (usize, &Owner)| self.owners[..at].iter().all(|other| other.node != owner.node);
        !self.owners.is_empty()
            && self.owners.len() <= usize::from(u8::MAX)
            && self.owners.iter().all(|owner| owner.since <= self.changed)
            && self.owners.iter().enumerate().all(once)
    }

    /// Whether `node` holds a copy.
    #[must_use]
    pub fn owns(&self, node: NodeId) -> bool {
        self.owners.iter().any(|owner| owner.node == node)
    }

    /// The owning nodes in preference order.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + Clone + '_ {
        self.owners.iter().map(|owner| owner.node)
    }
}

/// An immutable map from partitions to nodes. `ring::check::check` states what every layout satisfies.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Layout {
    /// The cluster that the layout belongs to.
    pub cluster: ClusterId,
    /// The seed of the ring hash.
    pub seed: HashSeed,
    /// The number of this layout.
    pub epoch: Epoch,
    /// N, the number of copies wanted. A partition has `min(copies, members that are no spares)` owners.
    pub copies: u8,
    /// Every member, spares included.
    pub members: BTreeMap<NodeId, Member>,
    /// One entry per partition, in token order; the length is a power of two.
    pub partitions: Vec<Entry>,
}

impl Layout {
    /// The number of partitions, Q.
    #[must_use]
    pub fn partition_count(&self) -> u32 {
        // `check` bounds the length by PARTITIONS_MAX.
        u32::try_from(self.partitions.len()).unwrap_or(PARTITIONS_MAX)
    }

    /// The number of owners of each partition: `copies`, or fewer while the cluster has fewer members that may own.
    #[must_use]
    pub fn owners_per_partition(&self) -> usize {
        usize::from(self.copies).min(self.members.values().filter(|member| !member.spare).count())
    }

    /// The partition of `key`.
    #[must_use]
    pub fn partition_of(&self, key: &[u8]) -> PartitionId {
        hash::partition(hash::token(self.seed, key), self.partition_count())
    }

    /// The entry of `partition`, or `None` if the layout has no such partition.
    #[must_use]
    pub fn entry(&self, partition: PartitionId) -> Option<&Entry> {
        self.partitions.get(usize::from(partition.0))
    }

    /// All partition ids in token order.
    pub fn partition_ids(&self) -> impl Iterator<Item = PartitionId> + use<> {
        let last = self.partition_count().saturating_sub(1);
        (0..=last).filter_map(|index| u16::try_from(index).ok()).map(PartitionId)
    }

    /// The fallbacks of `partition`: the nodes that stand in for a down owner, nearest first. They are the distinct
    /// owners of the partitions that follow on the ring, without the partition's own.
    #[must_use]
    pub fn fallbacks(&self, partition: PartitionId, wanted: usize) -> Vec<NodeId> {
        let mut found = Vec::new();
        let start = usize::from(partition.0);
        let Some(own) = self.partitions.get(start) else { return found };
        for step in 1..self.partitions.len() {
            if found.len() >= wanted {
                break;
            }
            let next = &self.partitions[(start + step) % self.partitions.len()];
            for node in next.nodes() {
                if found.len() < wanted && !own.owns(node) && !found.contains(&node) {
                    found.push(node);
                }
            }
        }
        found
    }
}
