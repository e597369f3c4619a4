//! What may fail now: copies, quorums and moves in flight, for the cluster and for each node. A pure function of the
//! picture.

use std::collections::{BTreeMap, BTreeSet};

use kv_core::ring::{Entry, FIRST_EPOCH, Owner};
use kv_core::types::NodeId;
use serde_json::{Value, json};

use super::picture::Picture;

/// What may fail without a request failing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Safety {
    /// The fewest complete copies in reach of any key; `None`: no layout is known.
    pub copies: Option<usize>,
    /// Partitions that are short of it: they cannot meet R or W now.
    pub short: usize,
    /// Nodes, whichever they are, that may fail now with every request still served.
    pub failures: usize,
    /// Partitions that need their old and their new owners at present.
    pub joint: usize,
}

/// Whether a node can be stopped now, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// It can.
    pub safe: bool,
    /// Why, as a sentence.
    pub why: String,
}

/// What is needed to judge.
struct Judge {
    serving: BTreeSet<NodeId>,
    /// The partitions of which each member told, and whether its copy is complete.
    told: BTreeMap<(u32, NodeId), bool>,
    /// The layouts on which the members acted when they told their figures.
    acted_on: BTreeMap<NodeId, u64>,
    /// The layout that is known here.
    epoch: u64,
    needed: usize,
}

impl Judge {
    fn of(picture: &Picture) -> Self {
        let serving = picture.description.members.iter().map(|member| member.id).filter(|id| picture.serves(*id));
        let told = picture.snapshots().flat_map(|told| {
            let node = NodeId(told.node);
            told.partitions.iter().map(move |figures| ((figures.partition, node), figures.synced))
        });
        let strictest = picture.description.keyspaces.iter().map(|keyspace| keyspace.r.max(keyspace.w)).max();
        let needed = usize::from(strictest.unwrap_or(1));
        let acted_on = picture.snapshots().map(|told| (NodeId(told.node), told.layout_epoch)).collect();
        let epoch = picture.description.layout.as_ref().map_or(0, |layout| layout.epoch.0);
        Self { serving: serving.collect(), told: told.collect(), acted_on, epoch, needed }
    }

    /// How many owners of a set may still fail; below 0: some are missing.
    fn spare(&self, owners: &[Owner]) -> isize {
        let alive = owners.iter().filter(|owner| self.serving.contains(&owner.node)).count();
        let needed = self.needed.min(owners.len());
        isize::try_from(alive).unwrap_or(isize::MAX) - isize::try_from(needed).unwrap_or(isize::MAX)
    }

    /// How many owners of a partition may still fail, in the set that has the fewest to spare.
    fn spare_of(&self, entry: &Entry) -> isize {
        entry.sets().map(|owners| self.spare(owners)).min().unwrap_or(0)
    }

    /// Whether an owner holds a complete copy in reach.
    fn holds(&self, partition: u32, entry: &Entry, node: NodeId) -> bool {
        // A partition is cut over to owners that have proven their copies: figures from before say nothing else.
        let acted_on = self.acted_on.get(&node).copied().unwrap_or(self.epoch);
        let proven = acted_on < entry.changed.0 && entry.joint.is_none() && entry.changed > FIRST_EPOCH;
        let complete = match self.told.get(&(partition, node)) {
            Some(synced) => *synced,
            // By a layout that is not known here yet the node has left, which it may when others have proven copies.
            None => acted_on > self.epoch,
        };
        self.serving.contains(&node) && (proven || complete)
    }

    /// Complete copies in reach.
    fn copies(&self, partition: u32, entry: &Entry) -> usize {
        entry.nodes().filter(|node| self.holds(partition, entry, *node)).count()
    }
}

impl Safety {
    /// What may fail, as a picture with the figures of the partitions shows it.
    #[must_use]
    pub fn of(picture: &Picture) -> Self {
        let judge = Judge::of(picture);
        let mut safety = Self { copies: None, short: 0, failures: 0, joint: 0 };
        let Some(layout) = picture.description.layout.as_deref() else { return safety };
        let mut least = isize::MAX;
        for (id, entry) in layout.partition_ids().zip(&layout.partitions) {
            let spare = judge.spare_of(entry);
            least = least.min(spare);
            safety.short += usize::from(spare < 0);
            safety.joint += usize::from(entry.joint.is_some());
            let copies = judge.copies(u32::from(id.0), entry);
            safety.copies = Some(safety.copies.map_or(copies, |fewest| fewest.min(copies)));
        }
        safety.failures = usize::try_from(least).unwrap_or(0);
        safety
    }

    /// Whether some request cannot be served now.
    #[must_use]
    pub fn is_short(&self) -> bool {
        self.short > 0 || self.copies == Some(0)
    }

    /// The same in a few words; empty while there is nothing to say.
    #[must_use]
    pub fn short_line(&self) -> String {
        match (self.copies, self.short) {
            (None, _) => String::new(),
            (Some(copies), 0) => format!("copies: {copies} at least, {} may fail", self.failures),
            (Some(_), short) => format!("{short} partitions lack owners"),
        }
    }

    /// All of it in a sentence.
    #[must_use]
    pub fn line(&self) -> String {
        let Some(copies) = self.copies else { return "the cluster is forming; nothing is kept yet".to_owned() };
        let kept = match copies {
            0 => "some keys have no complete copy in reach".to_owned(),
            1 => "every key has 1 copy at least".to_owned(),
            copies => format!("every key has {copies} copies at least"),
        };
        let may = match (self.short, self.failures) {
            (0, 0) => "no node may fail now".to_owned(),
            (0, 1) => "one more node may fail".to_owned(),
            (0, nodes) => format!("{nodes} more nodes may fail"),
            (short, _) => format!("{short} partitions have too few owners in reach for R or W"),
        };
        let moving = match self.joint {
            0 => String::new(),
            1 => "; 1 partition on the move is counted".to_owned(),
            joint => format!("; {joint} partitions on the move are counted"),
        };
        format!("{kept}; {may}{moving}")
    }

    /// For scripts.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({
            "copies_min": self.copies,
            "failures": self.failures,
            "partitions_short": self.short,
            "partitions_moving": self.joint,
            "what": self.line(),
        })
    }
}

impl Verdict {
    /// Whether `node` can be stopped now.
    #[must_use]
    pub fn of(picture: &Picture, node: NodeId) -> Self {
        let no = |why: String| Self { safe: false, why };
        let description = &picture.description;
        let Some(layout) = description.layout.as_deref() else { return no("the cluster is forming".to_owned()) };
        let judge = Judge::of(picture);
        let in_reach = judge.serving.contains(&node);
        if in_reach && description.voters.contains(&node) {
            let others = description.voters.iter().filter(|voter| **voter != node && judge.serving.contains(voter));
            if others.count() < description.voters.len() / 2 + 1 && description.voters.len() > 1 {
                return no("too few voters would be left to change anything".to_owned());
            }
        }
        let mut short = 0_usize;
        let mut fewest = usize::MAX;
        for (id, entry) in layout.partition_ids().zip(&layout.partitions).filter(|(_, entry)| entry.owns(node)) {
            let lost = |owners: &[Owner]| isize::from(in_reach && owners.iter().any(|owner| owner.node == node));
            let spare = entry.sets().map(|owners| judge.spare(owners) - lost(owners)).min().unwrap_or(0);
            short += usize::from(spare < 0);
            let own = usize::from(judge.holds(u32::from(id.0), entry, node));
            fewest = fewest.min(judge.copies(u32::from(id.0), entry) - own);
        }
        if short > 0 {
            return no(format!("{short} partitions would have too few owners for R or W"));
        }
        let pending = picture.snapshot(node).and_then(|told| told.pending).unwrap_or_default();
        if pending.residue > 0 {
            return no(format!("it still hands over {} records", pending.residue));
        }
        let why = match fewest {
            usize::MAX => "it holds no copy of anything".to_owned(),
            1 => "one complete copy of every key would stay in reach, and every request be served".to_owned(),
            copies => format!("{copies} complete copies of every key would stay in reach, and every request be served"),
        };
        Self { safe: true, why }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kv_core::ring::Joint;
    use kv_core::types::Epoch;
    use kv_proto::describe::Description;

    use super::*;
    use crate::run::health::tests::picture;

    /// Four partitions on three nodes, changed; how many complete copies every key has at least.
    #[track_caller]
    fn check(change: impl FnOnce(&mut Picture), copies: usize) {
        let mut picture = picture();
        change(&mut picture);
        assert_eq!(Safety::of(&picture).copies, Some(copies));
    }

    fn entry(picture: &mut Picture, change: impl FnOnce(&mut Entry)) {
        let description = Arc::make_mut(&mut picture.description);
        let Description { layout: Some(layout), .. } = description else { return };
        change(&mut Arc::make_mut(layout).partitions[2]);
    }

    fn told(picture: &mut Picture, index: usize) -> &mut kv_proto::v1::NodeSnapshot {
        picture.reports[index].snapshot.as_mut().expect("told")
    }

    #[test]
    fn copies_are_counted_as_they_are_told() {
        check(|_| (), 3);
        check(|picture| told(picture, 1).partitions[2].synced = false, 2);
        check(|picture| drop(told(picture, 1).partitions.remove(2)), 2);
    }

    #[test]
    fn a_node_that_is_ahead_and_has_left_was_let_go() {
        check(
            |picture| {
                told(picture, 1).layout_epoch = 4;
                told(picture, 1).partitions.remove(2);
            },
            3,
        );
        // What it does tell counts as ever.
        check(
            |picture| {
                told(picture, 1).layout_epoch = 4;
                told(picture, 1).partitions[2].synced = false;
            },
            2,
        );
    }

    #[test]
    fn a_cut_over_proves_copies_and_a_migration_does_not() {
        let behind = |picture: &mut Picture| {
            told(picture, 1).layout_epoch = 2;
            told(picture, 1).partitions[2].synced = false;
        };
        check(
            |picture| {
                behind(picture);
                entry(picture, |entry| entry.changed = Epoch(3));
            },
            3,
        );
        check(
            |picture| {
                behind(picture);
                entry(picture, |entry| {
                    entry.changed = Epoch(3);
                    let owners = entry.owners.clone();
                    entry.joint = Some(Joint { epoch: Epoch(3), owners, receivers: Vec::new(), sources_min: 1 });
                });
            },
            2,
        );
    }
}
