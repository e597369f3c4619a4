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
    /// The epoch at which the node entered this partition, or at which another store took the place of the one with which it
    /// had entered (rule E3). What it stored and confirmed under an earlier ownership does not count.
    pub since: Epoch,
}

/// The owners of one partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The epoch that last changed this entry. Requests carry it, so that a change elsewhere disturbs nobody (rule E1).
    pub changed: Epoch,
    /// The preference list: distinct nodes, the primary first. While the partition migrates these are the old
    /// owners: they hold all of it, answer for it, and are copied from.
    pub owners: Vec<Owner>,
    /// Set while the partition migrates to other owners.
    pub joint: Option<Joint>,
}

/// The second half of a migrating partition's entry: from its epoch to the cut-over, every quorum is needed among the
/// old owners and among these (rule A3).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joint {
    /// The joint epoch. Cursors and receipts are keyed by it, so that nothing of an earlier try counts (rule E3).
    pub epoch: Epoch,
    /// The preference list from the cut-over on. Who stays keeps its `since`; who enters has entered at `epoch`, or later if
    /// its store was replaced meanwhile.
    pub owners: Vec<Owner>,
    /// The new owners that must be covered by old ones before the cut-over: those that enter, and when the number of
    /// copies shrinks all of them, since fewer owners may then hold what a quorum of the old ones confirmed.
    pub receivers: Vec<Receiver>,
    /// By how many old owners each receiver must be covered: a majority, or all that are left where members were
    /// declared dead.
    pub sources_min: u8,
}

/// A new owner that copies a migrating partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receiver {
    /// The new owner.
    pub node: NodeId,
    /// The old owner that the plan lets it copy from first. Another one may serve if it is down.
    pub source: NodeId,
}

/// Whether there is an owner, each once, and none entered later than `changed`.
fn are_valid(owners: &[Owner], changed: Epoch) -> bool {
    let once = |(at, owner): (usize, &Owner)| owners[..at].iter().all(|other| other.node != owner.node);
    !owners.is_empty()
        && owners.len() <= usize::from(u8::MAX)
        && owners.iter().all(|owner| owner.since <= changed)
        && owners.iter().enumerate().all(once)
}

impl Entry {
    /// An entry that does not migrate.
    #[must_use]
    pub fn settled(changed: Epoch, owners: Vec<Owner>) -> Self {
        Self { changed, owners, joint: None }
    }

    /// Whether the entry is well formed by itself: there are owners, each once, that entered no later than the entry last
    /// changed, and the same holds for the new owners of a migrating partition, whose receivers are among them and copy
    /// from old owners. What comes from a peer is checked on receipt; [`super::check`] looks at whole layouts.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        are_valid(&self.owners, self.changed) && self.joint.as_ref().is_none_or(|joint| self.is_joint_valid(joint))
    }

    fn is_joint_valid(&self, joint: &Joint) -> bool {
        let old = |node: NodeId| self.owners.iter().any(|owner| owner.node == node);
        let receives = |node: NodeId| joint.receivers.iter().any(|receiver| receiver.node == node);
        let sound = |owner: &Owner| old(owner.node) || (owner.since >= joint.epoch && receives(owner.node));
        let once = |(at, receiver): (usize, &Receiver)| {
            joint.receivers[..at].iter().all(|other| other.node != receiver.node)
                && joint.owners.iter().any(|owner| owner.node == receiver.node)
                && old(receiver.source)
                && receiver.source != receiver.node
        };
        are_valid(&joint.owners, self.changed)
            && joint.epoch <= self.changed
            && joint.owners.iter().all(sound)
            && !joint.receivers.is_empty()
            && joint.receivers.iter().enumerate().all(once)
            && (1..=self.owners.len()).contains(&usize::from(joint.sources_min))
    }

    /// Whether `node` is an owner: an old or a new one while the partition migrates.
    #[must_use]
    pub fn owns(&self, node: NodeId) -> bool {
        self.owner(node).is_some()
    }

    /// `node` as an owner; while the partition migrates, an old one or one that enters.
    #[must_use]
    pub fn owner(&self, node: NodeId) -> Option<Owner> {
        self.sets().flatten().find(|owner| owner.node == node).copied()
    }

    /// `node` as an owner that holds what was written so far: while the partition migrates, an old one.
    #[must_use]
    pub fn old_owner(&self, node: NodeId) -> Option<Owner> {
        self.owners.iter().find(|owner| owner.node == node).copied()
    }

    /// The owning nodes in preference order; while the partition migrates, those that enter follow the old ones.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + Clone + '_ {
        let entering = self.joint.iter().flat_map(|joint| &joint.owners);
        let entering = entering.filter(|owner| self.owners.iter().all(|old| old.node != owner.node));
        self.owners.iter().chain(entering).map(|owner| owner.node)
    }

    /// The sets of owners whose quorums count, one or, while the partition migrates, two: the old ones first.
    pub fn sets(&self) -> impl Iterator<Item = &[Owner]> + Clone + '_ {
        std::iter::once(&*self.owners).chain(self.joint.iter().map(|joint| &*joint.owners))
    }

    /// The preference list that the entry has or will have.
    #[must_use]
    pub fn target(&self) -> &[Owner] {
        self.joint.as_ref().map_or(&self.owners, |joint| &joint.owners)
    }

    /// Whether `node` becomes an owner by the migration under way.
    #[must_use]
    pub fn enters(&self, node: NodeId) -> bool {
        self.owns(node) && self.owners.iter().all(|owner| owner.node != node)
    }

    /// Whether `node` is no owner any more after the migration under way.
    #[must_use]
    pub fn leaves(&self, node: NodeId) -> bool {
        self.owns(node) && self.target().iter().all(|owner| owner.node != node)
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
    /// Whether the layout is even: every partition has its copies in their zones, every node its fair share. While an
    /// operation runs, and after one was cancelled midway until the layout is rebalanced, the numbers of owners and the
    /// balance are those of neither side, and only what holds of each entry is demanded.
    pub settled: bool,
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

    /// The next layout, with other members over the same partitions. A member that has another store than before enters all
    /// its partitions anew: their entries change, so that nothing which the lost store confirmed is counted (rule E3).
    #[must_use]
    pub fn with_members(&self, members: BTreeMap<NodeId, Member>) -> Self {
        let epoch = Epoch(self.epoch.0 + 1);
        let mut next = Self { epoch, members, ..self.clone() };
        let kept = |node: &NodeId| {
            let before = self.members.get(node).map(|member| member.store);
            before == next.members.get(node).map(|member| member.store)
        };
        let replaced: Vec<NodeId> = self.members.keys().copied().filter(|node| !kept(node)).collect();
        for entry in next.partitions.iter_mut().filter(|entry| replaced.iter().any(|&node| entry.owns(node))) {
            entry.changed = epoch;
            let entering = entry.joint.iter_mut().flat_map(|joint| &mut joint.owners);
            for owner in entry.owners.iter_mut().chain(entering).filter(|owner| replaced.contains(&owner.node)) {
                owner.since = epoch;
            }
        }
        next
    }

    /// The first layout of another generation of the cluster, at an epoch above all that the generation before can have reached: the
    /// same partitions and owners. Every entry changes, so that whoever acts on an older one learns this one first (rule E2).
    /// Nothing may migrate.
    #[must_use]
    pub fn of_generation(&self, members: BTreeMap<NodeId, Member>, epoch: Epoch) -> Self {
        let before = Self { epoch: Epoch(epoch.0.saturating_sub(1)), ..self.clone() };
        let mut next = before.with_members(members);
        for entry in &mut next.partitions {
            entry.changed = next.epoch;
        }
        next
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
