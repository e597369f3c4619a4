//! The steps by which an operation leads from one layout to another. Pure: the control plane commits what these
//! functions return, and the simulator does the same.
//!
//! Each partition goes through `joint` (old and new owners, quorums in both) to its cut-over, which needs a receipt of
//! every receiver. A bounded number of partitions is joint at once; one epoch cuts over all that are ready and opens
//! the next ones.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::Receipt;
use crate::ring::check::is_balanced;
use crate::ring::{Entry, Joint, Layout, LayoutError, Member, Owner, Receiver, check};
use crate::types::{Epoch, NodeId, PartitionId};

/// What an operation makes of a layout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Target {
    /// What the members are to be. Who is missing was declared dead: it leaves at once, and its store never comes back.
    pub members: BTreeMap<NodeId, Standing>,
    /// The number of copies wanted.
    pub copies: u8,
    /// The partitions whose preference lists change, or whose owners include a dead member.
    pub partitions: BTreeMap<PartitionId, Goal>,
    /// What `members` and `copies` were, for a cancel.
    before: (BTreeMap<NodeId, Standing>, u8),
}

/// What an operation may change of a member.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Standing {
    /// The failure domain.
    pub zone: String,
    /// The capacity relative to the other members.
    pub weight: f64,
    /// Whether it must not own partitions.
    pub spare: bool,
}

impl Standing {
    /// That of a member.
    #[must_use]
    pub fn of(member: &Member) -> Self {
        Self { zone: member.zone.clone(), weight: member.weight, spare: member.spare }
    }
}

/// Where one partition is to go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Goal {
    /// The new preference list.
    pub owners: Vec<NodeId>,
    /// From whom each new owner copies first, where it has to.
    pub sources: BTreeMap<NodeId, NodeId>,
    /// By how many old owners a receiver must be covered.
    sources_min: u8,
}

/// Why a target does not fit a layout.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum OperationError {
    /// Every owner of a partition was declared dead.
    #[error("every owner of {partition} is declared dead, so nothing is left to copy; bring one of them back")]
    NoSurvivor {
        /// The partition.
        partition: PartitionId,
    },
    /// Another operation is under way.
    #[error("{partition} is still migrating; finish or cancel that operation first")]
    Migrating {
        /// A partition migrating.
        partition: PartitionId,
    },
    /// What would come out is no layout.
    #[error(transparent)]
    Layout(#[from] LayoutError),
}

impl Target {
    /// The target of an operation on `layout`: `lists` are the preference lists that are to change, `sources` says from
    /// whom a new owner of a partition copies first (where it is silent, the first survivor is taken).
    ///
    /// # Errors
    /// If a partition migrates already or would lose its last owner, or the end would break an invariant of layouts.
    pub fn new(
        layout: &Layout,
        members: BTreeMap<NodeId, Standing>,
        copies: u8,
        lists: &BTreeMap<PartitionId, Vec<NodeId>>,
        sources: &BTreeMap<(PartitionId, NodeId), NodeId>,
    ) -> Result<Self, OperationError> {
        let mut partitions = BTreeMap::new();
        for (partition, entry) in layout.partition_ids().zip(&layout.partitions) {
            if entry.joint.is_some() {
                return Err(OperationError::Migrating { partition });
            }
            let survivors: Vec<NodeId> = entry.nodes().filter(|node| members.contains_key(node)).collect();
            let list = lists.get(&partition).cloned().unwrap_or_else(|| survivors.clone());
            if entry.nodes().eq(list.iter().copied()) {
                continue;
            }
            if survivors.is_empty() {
                return Err(OperationError::NoSurvivor { partition });
            }
            let source = |&node: &NodeId| {
                let planned = sources.get(&(partition, node)).copied();
                let fits = |source: &NodeId| *source != node && survivors.contains(source);
                let source = planned.filter(fits).or_else(|| survivors.iter().copied().find(fits))?;
                Some((node, source))
            };
            let sources_min = (entry.owners.len() / 2 + 1).min(survivors.len());
            let goal = Goal {
                sources: list.iter().filter_map(source).collect(),
                owners: list,
                sources_min: u8::try_from(sources_min).unwrap_or(u8::MAX),
            };
            partitions.insert(partition, goal);
        }
        let standing = |(&node, member): (&NodeId, &Member)| (node, Standing::of(member));
        let before = (layout.members.iter().map(standing).collect(), layout.copies);
        let target = Self { members, copies, partitions, before };
        check(&target.end(layout))?;
        Ok(target)
    }

    /// The layout to which the operation leads, as if nothing had to be copied.
    #[must_use]
    pub fn end(&self, layout: &Layout) -> Layout {
        let mut end = self.start(layout);
        for (partition, goal) in &self.partitions {
            if let Some(entry) = end.partitions.get_mut(usize::from(partition.0)) {
                entry.joint = None;
                entry.owners = goal.new_owners(entry, end.epoch);
                entry.changed = end.epoch;
            }
        }
        end.settled = is_balanced(&end);
        end
    }

    /// The next layout, before any partition migrates: members as they are to be, dead ones gone.
    fn start(&self, layout: &Layout) -> Layout {
        let mut next = successor(layout);
        next.settled = false;
        next.copies = self.copies;
        next.members.retain(|node, _| self.members.contains_key(node));
        set_standings(&mut next, &self.members);
        for entry in &mut next.partitions {
            let left = entry.owners.len();
            entry.owners.retain(|owner| self.members.contains_key(&owner.node));
            if entry.owners.len() < left {
                entry.changed = next.epoch;
            }
        }
        next
    }
}

impl Goal {
    /// The new owners: who is an owner already keeps its `since`.
    fn new_owners(&self, entry: &Entry, epoch: Epoch) -> Vec<Owner> {
        let since = |node: NodeId| entry.old_owner(node).map_or(epoch, |old| old.since);
        self.owners.iter().map(|&node| Owner { node, since: since(node) }).collect()
    }

    /// The new owners that must be covered: those that enter, and all of them if there are fewer than before.
    fn receivers(&self, entry: &Entry) -> Vec<Receiver> {
        let shrinks = self.owners.len() < entry.owners.len();
        let receives = |node: NodeId| shrinks || !entry.owns(node);
        self.sources
            .iter()
            .filter(|&(&node, _)| receives(node))
            .map(|(&node, &source)| Receiver { node, source })
            .collect()
    }
}

/// The first layout of an operation: members as they are to be, and the first partitions migrating. Partitions that only
/// change the order of their owners are done at once.
///
/// # Errors
/// If the target does not fit the layout, for instance because it was made for another one.
pub fn begin(layout: &Layout, target: &Target, migrating_max: usize) -> Result<Layout, OperationError> {
    if let Some((partition, _)) = joint_entries(layout).next() {
        return Err(OperationError::Migrating { partition });
    }
    let mut next = target.start(layout);
    for (partition, entry) in next.partition_ids().zip(&next.partitions) {
        if entry.owners.is_empty() {
            return Err(OperationError::NoSurvivor { partition });
        }
    }
    open(&mut next, target, migrating_max);
    settle(&mut next, target);
    check(&next)?;
    Ok(next)
}

/// The next layout of an operation: cuts over what has all its receipts and opens the next partitions. `None` if nothing
/// is ready.
#[must_use]
pub fn advance(
    layout: &Layout,
    target: &Target,
    receipts: &BTreeMap<(PartitionId, NodeId), Receipt>,
    migrating_max: usize,
) -> Option<Layout> {
    let mut next = successor(layout);
    let ready: Vec<PartitionId> = joint_entries(layout)
        .filter(|(partition, joint)| {
            joint.receivers.iter().all(|to| has_receipt(layout, *partition, joint, to, receipts))
        })
        .map(|(partition, _)| partition)
        .collect();
    for partition in &ready {
        let Some(entry) = next.partitions.get_mut(usize::from(partition.0)) else { continue };
        if let Some(joint) = entry.joint.take() {
            entry.owners = joint.owners;
            entry.changed = next.epoch;
        }
    }
    let opened = open(&mut next, target, migrating_max);
    let settled = settle(&mut next, target);
    (opened || settled || !ready.is_empty()).then_some(next)
}

/// The layout after a cancel: what is joint goes back to its old owners; what was cut over stays where it is. Members
/// are again what they were, as far as they own nothing new. Members declared dead stay away.
#[must_use]
pub fn cancel(layout: &Layout, target: &Target) -> Layout {
    let mut next = successor(layout);
    for entry in &mut next.partitions {
        if entry.joint.take().is_some() {
            entry.changed = next.epoch;
        }
    }
    let (members, copies) = &target.before;
    set_standings(&mut next, members);
    next.copies = *copies;
    let owners: BTreeSet<NodeId> = next.partitions.iter().flat_map(Entry::nodes).collect();
    for (node, member) in &mut next.members {
        member.spare &= !owners.contains(node);
    }
    // Whatever moved leaves the cluster between two balances; the next operation starts from there.
    next.settled = is_balanced(&next);
    next
}

/// The partitions that the target changes and that have not reached their preference list.
#[must_use]
pub fn remaining(layout: &Layout, target: &Target) -> usize {
    let differs =
        |(partition, goal): (&PartitionId, &Goal)| layout.entry(*partition).is_some_and(|entry| !is_done(entry, goal));
    target.partitions.iter().filter(|&goal| differs(goal)).count()
}

fn is_done(entry: &Entry, goal: &Goal) -> bool {
    entry.joint.is_none() && entry.nodes().eq(goal.owners.iter().copied())
}

/// Whether the receipt counts: of this joint epoch, of the store that the receiver has now, by enough old owners.
fn has_receipt(
    layout: &Layout,
    partition: PartitionId,
    joint: &Joint,
    receiver: &Receiver,
    receipts: &BTreeMap<(PartitionId, NodeId), Receipt>,
) -> bool {
    let Some(receipt) = receipts.get(&(partition, receiver.node)) else { return false };
    let store = layout.members.get(&receiver.node).map(|member| member.store);
    let old = |source: NodeId| {
        layout.entry(partition).is_some_and(|entry| entry.owners.iter().any(|owner| owner.node == source))
    };
    // A staying receiver covers itself with what it holds.
    let mut sources: BTreeSet<NodeId> = receipt.sources.iter().map(|source| source.node).collect();
    sources.insert(receiver.node);
    receipt.joint == joint.epoch
        && receipt.partition == partition
        && receipt.node == receiver.node
        && Some(receipt.store) == store
        && sources.into_iter().filter(|&source| old(source)).count() >= usize::from(joint.sources_min)
}

fn joint_entries(layout: &Layout) -> impl Iterator<Item = (PartitionId, &Joint)> {
    let ids = layout.partition_ids().zip(&layout.partitions);
    ids.filter_map(|(partition, entry)| Some((partition, entry.joint.as_ref()?)))
}

/// Opens partitions up to the bound, and finishes those that need no copy. Whether anything changed.
fn open(layout: &mut Layout, target: &Target, migrating_max: usize) -> bool {
    let mut joint = joint_entries(layout).count();
    let epoch = layout.epoch;
    let mut changed = false;
    for (partition, goal) in &target.partitions {
        let Some(entry) = layout.partitions.get_mut(usize::from(partition.0)) else { continue };
        if entry.joint.is_some() || is_done(entry, goal) {
            continue;
        }
        let owners = goal.new_owners(entry, epoch);
        let receivers = goal.receivers(entry);
        if receivers.is_empty() {
            entry.owners = owners;
        } else if joint < migrating_max.max(1) {
            joint += 1;
            // Fewer owners than planned may be left by now.
            let sources_min = goal.sources_min.min(u8::try_from(entry.owners.len()).unwrap_or(u8::MAX));
            entry.joint = Some(Joint { epoch, owners, receivers, sources_min });
        } else {
            continue;
        }
        entry.changed = epoch;
        changed = true;
    }
    changed
}

/// Notes that the operation has reached its end, and whether that is even. Whether it is now and was not before.
fn settle(layout: &mut Layout, target: &Target) -> bool {
    let settled = remaining(layout, target) == 0 && is_balanced(layout);
    std::mem::replace(&mut layout.settled, settled) != settled
}

fn successor(layout: &Layout) -> Layout {
    Layout { epoch: Epoch(layout.epoch.0 + 1), ..layout.clone() }
}

fn set_standings(layout: &mut Layout, standings: &BTreeMap<NodeId, Standing>) {
    for (node, member) in &mut layout.members {
        if let Some(standing) = standings.get(node) {
            member.zone.clone_from(&standing.zone);
            member.weight = standing.weight;
            member.spare = standing.spare;
        }
    }
}

#[cfg(test)]
mod tests;
