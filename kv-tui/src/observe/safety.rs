//! What may fail now: copies, quorums and moves in flight, for the cluster and for each node. A pure function of a
//! snapshot.

use std::collections::{BTreeMap, HashMap};

use kv_core::ring::{Entry, FIRST_EPOCH, Owner};
use kv_core::types::NodeId;
use serde_json::{Value, json};

use super::needed::Needed;
use super::snapshot::ClusterSnapshot;

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
    pub migrating: usize,
}

/// Whether a node can be stopped now, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// It can.
    pub safe: bool,
    /// Why, as a sentence.
    pub why: String,
}

/// How a member is.
#[derive(Clone, Copy, Debug, Default)]
struct Fact {
    /// It reports, acts on a layout, and its store works.
    serving: bool,
    /// The layout on which it acted when it reported.
    acted_on: Option<u64>,
}

/// What the assessment needs. Clusters have many more partitions than nodes, so nothing here is looked up by partition.
struct Assessment<'a> {
    cluster: &'a ClusterSnapshot,
    facts: HashMap<NodeId, Fact>,
    /// The layout that is known here.
    epoch: u64,
    needed: Needed,
}

impl<'a> Assessment<'a> {
    fn of(cluster: &'a ClusterSnapshot) -> Self {
        let mut facts: HashMap<NodeId, Fact> =
            cluster.description.members.iter().map(|member| (member.id, Fact::default())).collect();
        for report in &cluster.reports {
            let Ok(reported) = &report.snapshot else { continue };
            if let Some(fact) = facts.get_mut(&report.node) {
                let serving = reported.layout_epoch > 0 && reported.poisoned.is_empty();
                *fact = Fact { serving, acted_on: Some(reported.layout_epoch) };
            }
        }
        let entries = cluster.description.layout.as_ref().map_or(&[][..], |layout| &layout.partitions);
        let needed = Needed::of(&cluster.description.keyspaces, entries);
        let epoch = cluster.description.layout.as_ref().map_or(0, |layout| layout.epoch.0);
        Self { cluster, facts, epoch, needed }
    }

    fn fact(&self, node: NodeId) -> Fact {
        self.facts.get(&node).copied().unwrap_or_default()
    }

    /// How many owners of a set may still fail; below 0: some are missing.
    fn spare(&self, owners: &[Owner]) -> isize {
        let alive = owners.iter().filter(|owner| self.fact(owner.node).serving).count();
        let needed = self.needed.among(owners);
        isize::try_from(alive).unwrap_or(isize::MAX) - isize::try_from(needed).unwrap_or(isize::MAX)
    }

    /// How many owners of a partition may still fail, in the set that has the fewest to spare.
    fn spare_of(&self, entry: &Entry) -> isize {
        entry.sets().map(|owners| self.spare(owners)).min().unwrap_or(0)
    }

    /// Whether an owner has proven its copy: a partition is cut over to such owners only, and a report from before the
    /// cut-over cannot say otherwise.
    fn has_proven(&self, entry: &Entry, fact: Fact) -> bool {
        let acted_on = fact.acted_on.unwrap_or(self.epoch);
        acted_on < entry.changed.0 && entry.joint.is_none() && entry.changed > FIRST_EPOCH
    }

    /// Whether an owner is reachable and holds a complete copy, reported or not.
    fn holds(&self, entry: &Entry, node: NodeId, reported: Option<bool>) -> bool {
        let fact = self.fact(node);
        // By a layout that is not known here yet the node has left, which it may when others have proven copies.
        let complete = reported.unwrap_or(fact.acted_on.unwrap_or(self.epoch) > self.epoch);
        fact.serving && (self.has_proven(entry, fact) || complete)
    }

    /// Complete copies in reach of every partition.
    fn copies(&self, entries: &[Entry]) -> Vec<usize> {
        let mut copies = vec![0_usize; entries.len()];
        // Nodes ahead of this layout: for each partition, whether they reported it.
        let mut ahead: HashMap<NodeId, Vec<bool>> = HashMap::new();
        for snapshot in self.cluster.node_reports() {
            let node = NodeId(snapshot.node);
            let mut reported = vec![false; if snapshot.layout_epoch > self.epoch { entries.len() } else { 0 }];
            let fact = self.fact(node);
            for stats in &snapshot.partitions {
                let at = usize::try_from(stats.partition).unwrap_or(usize::MAX);
                let Some(entry) = entries.get(at) else { continue };
                if let Some(reported) = reported.get_mut(at) {
                    *reported = true;
                }
                let counts = stats.synced && fact.serving && !self.has_proven(entry, fact);
                if counts && entry.nodes().any(|owner| owner == node) {
                    copies[at] += 1;
                }
            }
            if !reported.is_empty() {
                ahead.insert(node, reported);
            }
        }
        for (at, entry) in entries.iter().enumerate() {
            for owner in entry.nodes() {
                let fact = self.fact(owner);
                let silent = || ahead.get(&owner).is_some_and(|reported| !reported[at]);
                let counts = fact.serving && (self.has_proven(entry, fact) || silent());
                copies[at] += usize::from(counts);
            }
        }
        copies
    }
}

impl Safety {
    /// What may fail; the snapshot must have the stats of the partitions.
    #[must_use]
    pub fn of(cluster: &ClusterSnapshot) -> Self {
        let assessment = Assessment::of(cluster);
        let mut safety = Self { copies: None, short: 0, failures: 0, migrating: 0 };
        let Some(layout) = cluster.description.layout.as_deref() else { return safety };
        let mut least = isize::MAX;
        for entry in &layout.partitions {
            let spare = assessment.spare_of(entry);
            least = least.min(spare);
            safety.short += usize::from(spare < 0);
            safety.migrating += usize::from(entry.joint.is_some());
        }
        safety.copies = assessment.copies(&layout.partitions).into_iter().min();
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
            (Some(copies), 0) if self.failures == 0 => format!("copies: {copies} at least, no node may fail"),
            (Some(copies), 0) => format!("copies: {copies} at least, {} may fail", self.failures),
            (Some(_), short) => format!("{short} partitions lack owners"),
        }
    }

    /// All of it in a sentence.
    #[must_use]
    pub fn line(&self) -> String {
        let Some(copies) = self.copies else { return "the cluster is forming; nothing is stored yet".to_owned() };
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
        let moving = match self.migrating {
            0 => String::new(),
            1 => "; 1 partition on the move is counted".to_owned(),
            migrating => format!("; {migrating} partitions on the move are counted"),
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
            "partitions_moving": self.migrating,
            "what": self.line(),
        })
    }
}

impl Verdict {
    /// Whether `node` can be stopped now.
    #[must_use]
    pub fn of(cluster: &ClusterSnapshot, node: NodeId) -> Self {
        let no = |why: String| Self { safe: false, why };
        let description = &cluster.description;
        let Some(layout) = description.layout.as_deref() else { return no("the cluster is forming".to_owned()) };
        let assessment = Assessment::of(cluster);
        let in_reach = assessment.fact(node).serving;
        if in_reach && description.voters.contains(&node) {
            let others = description.voters.iter().filter(|voter| **voter != node && assessment.fact(**voter).serving);
            if others.count() < description.voters.len() / 2 + 1 && description.voters.len() > 1 {
                return no("too few voters would be left to change anything".to_owned());
            }
        }
        let mut short = 0_usize;
        let mut fewest = usize::MAX;
        let copies = assessment.copies(&layout.partitions);
        let reported: BTreeMap<u32, bool> = cluster.report(node).map_or_else(BTreeMap::new, |snapshot| {
            snapshot.partitions.iter().map(|stats| (stats.partition, stats.synced)).collect()
        });
        let owned = (0_u32..).zip(layout.partitions.iter().zip(copies)).filter(|(_, (entry, _))| entry.owns(node));
        for (partition, (entry, copies)) in owned {
            let lost = |owners: &[Owner]| isize::from(in_reach && owners.iter().any(|owner| owner.node == node));
            let spare = entry.sets().map(|owners| assessment.spare(owners) - lost(owners)).min().unwrap_or(0);
            short += usize::from(spare < 0);
            let own = usize::from(assessment.holds(entry, node, reported.get(&partition).copied()));
            fewest = fewest.min(copies.saturating_sub(own));
        }
        if short > 0 {
            return no(format!("{short} partitions would have too few owners for R or W"));
        }
        let pending = cluster.report(node).and_then(|reported| reported.pending).unwrap_or_default();
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
    use crate::observe::health::tests::cluster;

    /// Four partitions on three nodes, changed; how many complete copies every key has at least.
    #[track_caller]
    fn check(change: impl FnOnce(&mut ClusterSnapshot), copies: usize) {
        let mut cluster = cluster();
        change(&mut cluster);
        assert_eq!(Safety::of(&cluster).copies, Some(copies));
    }

    fn entry(cluster: &mut ClusterSnapshot, change: impl FnOnce(&mut Entry)) {
        let description = Arc::make_mut(&mut cluster.description);
        let Description { layout: Some(layout), .. } = description else { return };
        change(&mut Arc::make_mut(layout).partitions[2]);
    }

    fn reported(cluster: &mut ClusterSnapshot, index: usize) -> &mut kv_proto::v1::NodeSnapshot {
        cluster.reports[index].snapshot.as_mut().expect("reported")
    }

    #[test]
    fn copies_are_counted_as_they_are_told() {
        check(|_| (), 3);
        check(|cluster| reported(cluster, 1).partitions[2].synced = false, 2);
        check(|cluster| drop(reported(cluster, 1).partitions.remove(2)), 2);
    }

    #[test]
    fn a_node_that_is_ahead_and_has_left_was_let_go() {
        check(
            |cluster| {
                reported(cluster, 1).layout_epoch = 4;
                reported(cluster, 1).partitions.remove(2);
            },
            3,
        );
        // What it does report counts as usual.
        check(
            |cluster| {
                reported(cluster, 1).layout_epoch = 4;
                reported(cluster, 1).partitions[2].synced = false;
            },
            2,
        );
    }

    #[test]
    fn a_cut_over_proves_copies_and_a_migration_does_not() {
        let behind = |cluster: &mut ClusterSnapshot| {
            reported(cluster, 1).layout_epoch = 2;
            reported(cluster, 1).partitions[2].synced = false;
        };
        check(
            |cluster| {
                behind(cluster);
                entry(cluster, |entry| entry.changed = Epoch(3));
            },
            3,
        );
        check(
            |cluster| {
                behind(cluster);
                entry(cluster, |entry| {
                    entry.changed = Epoch(3);
                    let owners = entry.owners.clone();
                    entry.joint = Some(Joint { epoch: Epoch(3), owners, receivers: Vec::new(), sources_min: 1 });
                });
            },
            2,
        );
    }
}
