//! The cluster's health in words, with the reasons and what to do: a pure function of the snapshot.

use std::collections::BTreeSet;

use kv_core::ring::{Layout, Owner};
use kv_core::types::NodeId;
use kv_proto::v1;

use super::clocks;
use super::control::{ControlPlane, NoControl};
use super::faults::Faults;
use super::needed::Needed;
use super::snapshot::{ClusterSnapshot, state_word};
use super::uneven;

/// The word for a cluster's health, the worst that applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Word {
    /// All members are up, every partition has all of its copies, nothing is pending.
    Healthy,
    /// As healthy, but the nodes do not hold their fair shares, as after a cancelled operation: nothing changes it by itself.
    Uneven,
    /// As healthy, but writes are still on their way to some copies.
    Settling,
    /// Every request can be served, but some copy or member is missing.
    Degraded,
    /// Some partition cannot meet R or W with its owners.
    Unavailable,
    /// The cluster waits for its first members.
    Forming,
}

impl Word {
    /// The word.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Uneven => "uneven",
            Self::Settling => "settling",
            Self::Degraded => "degraded",
            Self::Unavailable => "unavailable",
            Self::Forming => "forming",
        }
    }
}

/// Why, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// What is the matter.
    pub what: String,
    /// What to do; empty: wait.
    pub remedy: String,
}

/// The health of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// In a word.
    pub word: Word,
    /// Why it is not healthy.
    pub reasons: Vec<Reason>,
    /// Whether every partition can meet R and W.
    pub ready: bool,
    /// Whether nothing is pending on any member, all of which were asked.
    pub idle: bool,
}

impl Health {
    /// The health that a snapshot shows.
    #[must_use]
    pub fn of(cluster: &ClusterSnapshot) -> Self {
        let mut health = Self { word: Word::Healthy, reasons: Vec::new(), ready: true, idle: true };
        if cluster.description.layout.is_none() {
            health.ready = false;
            let (what, remedy) = cluster.why_no_layout();
            health.because(Word::Forming, what, remedy);
            return health;
        }
        health.check_faults(cluster);
        health.check_control(cluster);
        health.check_members(cluster);
        health.check_partitions(cluster);
        health.check_operation(cluster);
        health.check_balance(cluster);
        health.check_pending(cluster);
        health
    }

    fn because(&mut self, word: Word, what: impl Into<String>, remedy: impl Into<String>) {
        self.word = self.word.max(word);
        self.reasons.push(Reason { what: what.into(), remedy: remedy.into() });
    }

    fn check_faults(&mut self, cluster: &ClusterSnapshot) {
        let faults = Faults::of(cluster);
        if !faults.is_empty() {
            self.because(Word::Degraded, format!("faults are injected: {}", faults.in_words(cluster)), "fault heal");
        }
    }

    fn check_control(&mut self, cluster: &ClusterSnapshot) {
        let control = ControlPlane::of(cluster);
        let names = |nodes: &[NodeId]| cluster.description.names_of(nodes.iter().copied());
        match &control.trouble {
            None => {}
            Some(NoControl::Election) => {
                self.because(Word::Settling, "no control plane: the voters are electing a leader", "");
            }
            Some(trouble) => self.because(Word::Degraded, trouble.text(cluster), trouble.remedy(cluster)),
        }
        for (node, generation) in &control.left_behind {
            self.because(
                Word::Degraded,
                format!(
                    "{} obeys no control plane: it belongs to generation {generation} of the cluster, and others to a later one",
                    names(&[*node])
                ),
                format!(
                    "stop {}, have its directory join: kv-node recover --data-dir DIR --join ADDR:PORT, and start it again",
                    names(&[*node])
                ),
            );
        }
        if control.awaited.is_empty() {
            if control.trouble.is_none() && control.voters < control.voters_wanted {
                let (voters, wanted) = (control.voters, control.voters_wanted);
                self.because(Word::Settling, format!("{voters} of {wanted} voters of the control plane are there"), "");
            }
            return;
        }
        for name in control.awaited.iter().map(|node| names(&[*node])) {
            self.because(
                Word::Degraded,
                format!("{name} is to come to generation {} of the cluster, with what it holds", control.generation),
                format!(
                    "on its machine: kv-node recover --data-dir DIR --join ADDR:PORT, then start it; if it is lost for good: node remove \
                     {name} --dead"
                ),
            );
        }
    }

    fn check_members(&mut self, cluster: &ClusterSnapshot) {
        let newest = cluster.node_reports().map(|snapshot| snapshot.layout_epoch).max().unwrap_or(0);
        for member in &cluster.description.members {
            let name = &member.member.name;
            match cluster.report(member.id) {
                // Why it is not there has been said.
                None if cluster.is_awaited(member.id) => self.idle = false,
                None => {
                    let why = cluster.reports.iter().find(|report| report.node == member.id).map_or_else(
                        || "its address is not known".to_owned(),
                        |report| report.snapshot.as_ref().map_or_else(|error| error.message.clone(), |_| String::new()),
                    );
                    self.idle = false;
                    self.because(
                        Word::Degraded,
                        format!("{name} is not in reach ({why})"),
                        format!("start {name}, or check the network between here and it"),
                    );
                }
                Some(snapshot) if !snapshot.poisoned.is_empty() => {
                    self.idle = false;
                    self.because(
                        Word::Degraded,
                        format!("{name} has stopped serving: {}", snapshot.poisoned),
                        format!("check the disk of {name}, then restart it"),
                    );
                }
                Some(snapshot) if snapshot.disk_stalled => {
                    self.idle = false;
                    self.because(
                        Word::Degraded,
                        format!("the disk of {name} does not answer: what needs it waits, and its keys and bytes are as last known"),
                        format!("check the disk of {name}"),
                    );
                }
                Some(snapshot) if snapshot.layout_epoch < newest => {
                    // Before it acts on any it does not know what it has to hand over.
                    self.idle &= snapshot.layout_epoch > 0;
                    self.because(
                        Word::Settling,
                        format!("{name} acts on layout {}, the newest is {newest}", snapshot.layout_epoch),
                        "",
                    );
                }
                Some(_) => {}
            }
        }
        for fault in clocks::faults(cluster) {
            self.because(Word::Degraded, fault.what, fault.remedy);
        }
        self.look_at_opinions(cluster);
    }

    /// A member may be in reach from here and not from its peers.
    fn look_at_opinions(&mut self, cluster: &ClusterSnapshot) {
        // Where the control plane is lost, what that takes comes first: nothing else helps, and no directory may be emptied.
        let is_lost = !matches!(ControlPlane::of(cluster).trouble, None | Some(NoControl::Election));
        let unless_lost = |remedy: String| if is_lost { String::new() } else { remedy };
        for snapshot in cluster.node_reports() {
            for peer in &snapshot.peers {
                let state = peer.state();
                let bad = matches!(state, v1::MemberState::Down | v1::MemberState::Suspect);
                let name = cluster.description.name_of(NodeId(peer.node));
                if !peer.claims.is_empty() {
                    self.because(
                        Word::Degraded,
                        format!("{name} refuses {}: it {}", snapshot.name, peer.claims.replace("this node", &snapshot.name)),
                        unless_lost(format!(
                            "nothing else proves it: if the data of {0} was restored from a copy, start it with an empty directory \
                             and --replaces; else restart {0}",
                            snapshot.name
                        )),
                    );
                }
                if bad && !peer.refused.is_empty() {
                    self.because(
                        Word::Degraded,
                        format!("{} and {name} refuse each other ({})", snapshot.name, peer.refused),
                        unless_lost(format!(
                            "give {} and {name} the same --cluster-secret-file, or what the reason names, and restart the one that was \
                             changed",
                            snapshot.name
                        )),
                    );
                } else if bad && cluster.serves(NodeId(peer.node)) {
                    if peer.is_new {
                        self.because(Word::Settling, format!("{} has not heard from {name} yet", snapshot.name), "");
                        continue;
                    }
                    let why = if peer.reason.is_empty() { String::new() } else { format!(": {}", peer.reason) };
                    self.because(
                        Word::Degraded,
                        format!("{} considers {name} {}{why}", snapshot.name, state_word(state)),
                        format!("check the network between {} and {name}", snapshot.name),
                    );
                }
            }
        }
    }

    fn check_partitions(&mut self, cluster: &ClusterSnapshot) {
        let Some(layout) = cluster.description.layout.as_deref() else { return };
        let needed = Needed::of(&cluster.description.keyspaces, &layout.partitions);
        let serving: BTreeSet<u64> =
            cluster.node_reports().map(|snapshot| snapshot.node).filter(|node| cluster.serves(NodeId(*node))).collect();
        let lacks =
            |set: &[Owner]| set.iter().filter(|owner| serving.contains(&owner.node.0)).count() < needed.among(set);
        // While a partition migrates, both its old and its new owners must be enough.
        let short = layout.partitions.iter().filter(|entry| entry.sets().any(lacks)).count();
        let unsynced: usize = cluster.node_reports().map(|snapshot| unsynced_copies(snapshot, layout)).sum();
        if short > 0 {
            self.ready = false;
            self.because(
                Word::Unavailable,
                format!("{short} of {} partitions have too few owners in reach for R or W", layout.partitions.len()),
                "start the nodes that are down",
            );
        }
        if unsynced > 0 {
            self.because(Word::Degraded, format!("{unsynced} copies of partitions are being refilled"), "");
        }
        let wanted = usize::from(layout.copies);
        let may_own = layout.owners_per_partition();
        if may_own < wanted {
            // A small cluster is a complete store: it grows copies as members come.
            self.because(
                Word::Healthy,
                format!("{wanted} copies are wanted, {may_own} members may hold one"),
                "add nodes for more copies",
            );
        }
    }

    /// An operation under way, and nodes that have not gone yet.
    fn check_operation(&mut self, cluster: &ClusterSnapshot) {
        if let Some(operation) = cluster.operation() {
            let (id, command) = (operation.id, &operation.command);
            let moved = format!("{} of {} replicas moved", operation.moved, operation.moves);
            match operation.state() {
                v1::OperationState::Running => {
                    self.idle = false;
                    let what = format!("operation {id} ({command}) is running, {moved}");
                    self.because(Word::Settling, what, format!("follow it with op watch {id}"));
                }
                v1::OperationState::Paused => {
                    self.idle = false;
                    let what = format!("operation {id} ({command}) is paused, {moved}");
                    self.because(Word::Settling, what, format!("continue it with op resume {id}"));
                }
                _ => {}
            }
        }
        for member in &cluster.description.members {
            if cluster.report(member.id).is_some_and(|reported| reported.state() == v1::MemberState::Leaving) {
                self.idle = false;
                let name = &member.member.name;
                self.because(Word::Settling, format!("{name} is leaving and hands over what it holds"), "");
            }
        }
    }

    fn check_balance(&mut self, cluster: &ClusterSnapshot) {
        for (lacks_copies, what) in uneven::reasons(cluster) {
            self.because(if lacks_copies { Word::Degraded } else { Word::Uneven }, what, "rebalance");
        }
    }

    fn check_pending(&mut self, cluster: &ClusterSnapshot) {
        let pending = cluster.pending();
        let parts = [
            (pending.requests, "requests in flight"),
            (pending.replications, "writes on their way to a copy"),
            (pending.hints, "hints held for absent owners"),
            (pending.missed_writes, "keys that a copy lacks"),
            (pending.refills, "partitions being refilled"),
            (pending.transfers, "partitions being copied to new owners"),
            (pending.comparisons, "comparisons of copies that may differ"),
            (pending.residue, "records to be handed over by former owners"),
            (pending.dropped, "records of dropped keyspaces to be removed"),
            (pending.reclaiming, "nodes that reclaim the space of removed records"),
        ];
        let parts: Vec<String> =
            parts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
        if !parts.is_empty() {
            self.idle = false;
            self.because(Word::Settling, parts.join(", "), "");
        }
    }
}

/// Copies that a node should hold and that are not complete. One that is on its way to a new owner is not missing yet.
fn unsynced_copies(snapshot: &v1::NodeSnapshot, layout: &Layout) -> usize {
    let owned = |stats: &v1::PartitionStats| {
        let at = usize::try_from(stats.partition).unwrap_or(usize::MAX);
        layout.partitions.get(at).is_some_and(|entry| entry.owners.iter().any(|owner| owner.node.0 == snapshot.node))
    };
    snapshot.partitions.iter().filter(|stats| !stats.synced && owned(stats)).count()
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use kv_core::config::{Available, Keyspace, Mode};
    use kv_core::error::RequestError;
    use kv_core::ring::{Entry, Member};
    use kv_core::types::{ClusterId, Epoch, HashSeed, KeyspaceId, PartitionId, StoreId};
    use kv_core::version::Conflict;
    use kv_proto::client::NodeReport;
    use kv_proto::describe::{Description, MemberView};

    use super::*;

    /// Four partitions on three nodes, each with all of its keys, nothing pending.
    pub(in crate::observe) fn cluster() -> ClusterSnapshot {
        let member = |id: u64| Member {
            name: format!("n{id}"),
            zone: "a".to_owned(),
            weight: 1.0,
            store: StoreId(id),
            spare: false,
        };
        let owners =
            |first: u64| (0..3).map(|place| Owner { node: NodeId((first + place) % 3 + 1), since: Epoch(1) }).collect();
        let layout = Layout {
            cluster: ClusterId(1),
            seed: HashSeed(1),
            epoch: Epoch(3),
            copies: 3,
            members: (1..=3).map(|id| (NodeId(id), member(id))).collect(),
            partitions: (0..4).map(|first| Entry::settled(Epoch(1), owners(first))).collect(),
            settled: true,
        };
        let view = |id: u64| MemberView {
            id: NodeId(id),
            member: member(id),
            address: format!("127.0.0.1:{id}"),
            state: v1::MemberState::Up,
        };
        let stats = |partition: u32| v1::PartitionStats {
            partition,
            synced: true,
            keyspaces: vec![v1::PartitionKeyspaceStats { keyspace: 0, keys: 10 + u64::from(partition), bytes: 1 }],
            merkle_root: 0,
        };
        let report = |id: u64| NodeReport {
            node: NodeId(id),
            address: format!("127.0.0.1:{id}"),
            snapshot: Ok(Box::new(v1::NodeSnapshot {
                node: id,
                name: format!("n{id}"),
                state: v1::MemberState::Up.into(),
                layout_epoch: 3,
                partitions: (0..4).map(stats).collect(),
                ..Default::default()
            })),
            events: Vec::new(),
        };
        ClusterSnapshot {
            description: Arc::new(Description {
                cluster: Some(ClusterId(1)),
                seed: HashSeed(1),
                layout: Some(Arc::new(layout)),
                members: (1..=3).map(view).collect(),
                keyspaces: vec![Keyspace::initial()],
                node: NodeId(1),
                node_name: "n1".to_owned(),
                ..Description::default()
            }),
            reports: (1..=3).map(report).collect(),
        }
    }

    fn lose(cluster: &mut ClusterSnapshot, index: usize) {
        cluster.reports[index].snapshot = Err(RequestError::unavailable("connection refused"));
    }

    fn snapshot(cluster: &mut ClusterSnapshot, index: usize) -> &mut v1::NodeSnapshot {
        cluster.reports[index].snapshot.as_mut().expect("reported")
    }

    fn check(change: impl FnOnce(&mut ClusterSnapshot), expected: &str) {
        let mut cluster = cluster();
        change(&mut cluster);
        let health = Health::of(&cluster);
        let reasons: Vec<&str> = health.reasons.iter().map(|reason| reason.what.as_str()).collect();
        let reported = format!(
            "{}{}{}: {}",
            health.word.text(),
            if health.ready { " ready" } else { "" },
            if health.idle { " idle" } else { "" },
            reasons.join("; ")
        );
        assert_eq!(reported, expected);
    }

    /// Two copies, both of which n1 and n3 hold.
    fn make_uneven(cluster: &mut ClusterSnapshot) {
        let layout = Arc::make_mut(&mut cluster.description).layout.as_mut().expect("formed");
        let layout = Arc::make_mut(layout);
        layout.settled = false;
        layout.copies = 2;
        for entry in &mut layout.partitions {
            entry.owners = [1, 3].map(|node| Owner { node: NodeId(node), since: Epoch(1) }).to_vec();
        }
    }

    /// The settings of a keyspace that writes to every owner.
    fn three_copies() -> Mode {
        Mode::Available(Available { r: 2, w: 3, strict: false, conflict: Conflict::Siblings })
    }

    #[test]
    fn a_healthy_cluster_needs_no_reasons() {
        check(|_| {}, "healthy ready idle: ");
        check(
            |cluster| Arc::make_mut(&mut cluster.description).keyspaces[0].mode = three_copies(),
            "healthy ready idle: ",
        );
    }

    #[test]
    fn copies_that_are_spread_unevenly_are_named() {
        check(
            make_uneven,
            "uneven ready idle: the copies are not spread evenly: n2 holds 0 % (fair 33 %), n1 holds 50 % (fair 33 %), n3 \
             holds 50 % (fair 33 %)",
        );
        check(
            |cluster| {
                make_uneven(cluster);
                Arc::make_mut(Arc::make_mut(&mut cluster.description).layout.as_mut().expect("formed")).copies = 3;
            },
            "degraded ready idle: the copies are not spread evenly: n2 holds 0 % (fair 33 %); 4 partitions have fewer than 3 \
             copies",
        );
        // An operation that is under way leads to another balance.
        check(
            |cluster| {
                make_uneven(cluster);
                let state = v1::OperationState::Paused.into();
                snapshot(cluster, 1).operation = Some(v1::Operation { id: 1, state, ..Default::default() });
            },
            "settling ready: operation 1 () is paused, 0 of 0 replicas moved",
        );
    }

    #[test]
    fn work_that_is_pending_means_settling() {
        check(
            |cluster| {
                snapshot(cluster, 1).pending = Some(v1::Pending { hints: 4, missed_writes: 2, ..Default::default() })
            },
            "settling ready: 4 hints held for absent owners, 2 keys that a copy lacks",
        );
        check(
            |cluster| {
                snapshot(cluster, 1).pending = Some(v1::Pending { transfers: 3, residue: 7, ..Default::default() });
                let operation =
                    v1::Operation { id: 4, command: "node add n4".to_owned(), moves: 9, ..Default::default() };
                let older = v1::Operation { state: v1::OperationState::Running.into(), ..operation.clone() };
                let newer = v1::Operation { moved: 2, state: v1::OperationState::Paused.into(), ..operation };
                snapshot(cluster, 1).operation = Some(newer);
                snapshot(cluster, 2).operation = Some(older);
                snapshot(cluster, 0).state = v1::MemberState::Leaving.into();
            },
            "settling ready: operation 4 (node add n4) is paused, 2 of 9 replicas moved; n1 is leaving and hands over what \
             it holds; 3 partitions being copied to new owners, 7 records to be handed over by former owners",
        );
        check(
            |cluster| snapshot(cluster, 2).layout_epoch = 2,
            "settling ready idle: n3 acts on layout 2, the newest is 3",
        );
    }

    #[test]
    fn failures_mean_degraded_or_unavailable() {
        check(|cluster| lose(cluster, 1), "degraded ready: n2 is not in reach (connection refused)");
        check(
            |cluster| {
                lose(cluster, 1);
                lose(cluster, 2);
            },
            "unavailable: n2 is not in reach (connection refused); n3 is not in reach (connection refused); \
             4 of 4 partitions have too few owners in reach for R or W",
        );
        check(
            |cluster| snapshot(cluster, 0).poisoned = "fsync failed".to_owned(),
            "degraded ready: n1 has stopped serving: fsync failed",
        );
        check(
            |cluster| snapshot(cluster, 0).disk_stalled = true,
            "degraded ready: the disk of n1 does not answer: what needs it waits, and its keys and bytes are as last known",
        );
        check(
            |cluster| snapshot(cluster, 0).partitions[2].synced = false,
            "degraded ready idle: 1 copies of partitions are being refilled",
        );
        check(
            |cluster| {
                snapshot(cluster, 0).peers.push(v1::PeerOpinion {
                    node: 2,
                    state: v1::MemberState::Down.into(),
                    reason: "no heartbeat".to_owned(),
                    ..Default::default()
                });
            },
            "degraded ready idle: n1 considers n2 down: no heartbeat",
        );
        check(
            |cluster| {
                snapshot(cluster, 0).peers.push(v1::PeerOpinion {
                    node: 2,
                    state: v1::MemberState::Suspect.into(),
                    is_new: true,
                    ..Default::default()
                });
            },
            "settling ready idle: n1 has not heard from n2 yet",
        );
    }

    #[test]
    fn nodes_that_refuse_each_other_are_named() {
        check(
            |cluster| {
                snapshot(cluster, 0).peers.push(v1::PeerOpinion {
                    node: 2,
                    state: v1::MemberState::Down.into(),
                    reason: "no heartbeat".to_owned(),
                    refused: "n2 and n1 have no cluster secret in common".to_owned(),
                    ..Default::default()
                });
            },
            "degraded ready idle: n1 and n2 refuse each other (n2 and n1 have no cluster secret in common)",
        );
        check(
            |cluster| {
                snapshot(cluster, 2).peers.push(v1::PeerOpinion {
                    node: 1,
                    state: v1::MemberState::Up.into(),
                    claims: "says that this node's store is an older copy (boot 2, it has seen boot 9)".to_owned(),
                    ..Default::default()
                });
            },
            "degraded ready idle: n1 refuses n3: it says that n3's store is an older copy (boot 2, it has seen boot 9)",
        );
    }

    #[test]
    fn a_cluster_that_is_forming_says_how_far() {
        check(
            |cluster| {
                let description = Arc::make_mut(&mut cluster.description);
                description.layout = None;
                description.forming = Some((2, 3));
            },
            "forming idle: 2 of 3 members have reported",
        );
        check(
            |cluster| {
                let description = Arc::make_mut(&mut cluster.description);
                description.layout = None;
                description.waiting = "joining: 127.0.0.1:1: connection refused".to_owned();
            },
            "forming idle: n1 belongs to no cluster yet: joining: 127.0.0.1:1: connection refused",
        );
    }

    #[test]
    fn keys_are_counted_at_the_first_complete_owner() {
        let mut cluster = cluster();
        let layout = cluster.description.layout.clone().expect("formed");
        let keyspace = KeyspaceId(0);
        assert_eq!(cluster.count(&layout, keyspace), Ok(10 + 11 + 12 + 13));
        assert_eq!(cluster.count(&layout, KeyspaceId(9)), Ok(0));
        // Partition 1 belongs to n2 first, whose copy is not complete; n3 holds another number.
        snapshot(&mut cluster, 1).partitions[1].synced = false;
        snapshot(&mut cluster, 2).partitions[1].keyspaces[0].keys = 100;
        assert_eq!(cluster.count(&layout, keyspace), Ok(10 + 100 + 12 + 13));
        lose(&mut cluster, 0);
        lose(&mut cluster, 2);
        assert_eq!(cluster.count(&layout, keyspace), Err(PartitionId(1)));
    }

    #[test]
    fn shares_add_up() {
        let shares = cluster().shares();
        assert_eq!(shares.values().map(|share| share.partitions).sum::<u64>(), 12);
        assert_eq!(shares.values().map(|share| share.primary).sum::<u64>(), 4);
        let owned: f64 = shares.values().map(|share| share.ownership).sum();
        let fair: f64 = shares.values().map(|share| share.fair).sum();
        assert!((owned - 1.0).abs() < 1e-5 && (fair - 1.0).abs() < 1e-5, "{shares:?}");
    }
}
