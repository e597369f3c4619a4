//! Whether there is a control plane, and if not, why, and what helps: from what every node reports of it.

use kv_core::types::NodeId;
use kv_proto::v1::{self, ControlTrouble, MemberState};

use super::snapshot::ClusterSnapshot;

/// The control plane as all reports together show it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ControlPlane {
    /// The newest generation to which a node belongs; 0: no node says.
    pub generation: u32,
    /// Why nobody leads; `None`: somebody does.
    pub trouble: Option<NoControl>,
    /// How many vote.
    pub voters: usize,
    /// How many are to vote.
    pub voters_wanted: usize,
    /// Members that are to come from an earlier generation.
    pub awaited: Vec<NodeId>,
    /// Members that obey nobody, since others belong to a later generation than they, and which theirs is.
    pub left_behind: Vec<(NodeId, u32)>,
}

/// Why nobody leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoControl {
    /// A leader is being elected.
    Election,
    /// A majority of the voters is down: these.
    VotersDown {
        /// The voters that no voter in reach can reach.
        down: Vec<NodeId>,
        /// All voters.
        voters: usize,
    },
    /// Voters take each other's stores for older copies: what these members say.
    VotersRefuse(Vec<NodeId>),
    /// These members have got new stores, and too few voters are left to agree on them.
    LogsSetAside(Vec<NodeId>),
}

impl ControlPlane {
    /// What a snapshot shows.
    #[must_use]
    pub fn of(cluster: &ClusterSnapshot) -> Self {
        let reports =
            || cluster.reports.iter().filter_map(|report| Some((report.node, report.snapshot.as_deref().ok()?)));
        let control = || reports().filter_map(|(node, snapshot)| Some((node, snapshot, snapshot.control.as_ref()?)));
        let generation = control().map(|(.., control)| control.generation).max().unwrap_or(0);
        if generation == 0 {
            // Nodes of an earlier release say nothing of it.
            return Self::default();
        }
        let left_behind = control()
            .filter(|(.., control)| control.trouble() == ControlTrouble::OtherGeneration)
            .map(|(node, _, control)| (node, control.generation))
            .collect();
        // Who leads knows best.
        let present = || control().filter(|(.., control)| control.generation == generation);
        let Some((.., newest)) = present().max_by_key(|(.., control)| (control.leads, control.voters.len())) else {
            return Self::default();
        };
        let leads = present().any(|(_, snapshot, control)| control.leads || hears_leader(cluster, snapshot, control));
        Self {
            generation,
            trouble: if leads {
                None
            } else {
                Some(NoControl::of(&present().map(|it| (it.0, it.2)).collect::<Vec<_>>()))
            },
            voters: newest.voters.len(),
            voters_wanted: usize::try_from(newest.voters_wanted).unwrap_or(usize::MAX),
            awaited: newest.awaited.iter().copied().map(NodeId).collect(),
            left_behind,
        }
    }
}

impl ControlPlane {
    /// That the cluster goes on from directories that were left or restored, in one line; `None`: it does not.
    #[must_use]
    pub fn restored(&self) -> Option<String> {
        (self.generation > 1).then(|| {
            format!(
                "restored: generation {} of the cluster, founded from what its nodes had left; what none of their directories held is missing",
                self.generation
            )
        })
    }
}

/// Whether a node obeys a leader that does not report here and that it reaches.
fn hears_leader(cluster: &ClusterSnapshot, snapshot: &v1::NodeSnapshot, control: &v1::ControlReport) -> bool {
    let is_up = |peer: &v1::PeerOpinion| !matches!(peer.state(), MemberState::Down | MemberState::Suspect);
    control.leader != 0
        && control.trouble() == ControlTrouble::Unspecified
        && cluster.report(NodeId(control.leader)).is_none()
        && snapshot.peers.iter().any(|peer| peer.node == control.leader && is_up(peer))
}

impl NoControl {
    /// The reason for programs.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Election => "election",
            Self::VotersDown { .. } => "voters-down",
            Self::VotersRefuse(_) => "voters-refuse",
            Self::LogsSetAside(_) => "logs-set-aside",
        }
    }

    /// What nodes of one generation report of which none leads: the worst of it.
    fn of(reports: &[(NodeId, &v1::ControlReport)]) -> Self {
        let with = |trouble: ControlTrouble| -> Vec<NodeId> {
            reports.iter().filter(|(_, control)| control.trouble() == trouble).map(|(node, _)| *node).collect()
        };
        let (aside, refuse) = (with(ControlTrouble::LogSetAside), with(ControlTrouble::VotersRefuse));
        let down: Vec<_> = reports.iter().filter(|(_, it)| it.trouble() == ControlTrouble::VotersDown).collect();
        if !refuse.is_empty() {
            Self::VotersRefuse(refuse)
        } else if let Some((_, most)) = down.iter().max_by_key(|(_, control)| control.unreachable.len()) {
            let others = if aside.is_empty() { None } else { Some(Self::LogsSetAside(aside)) };
            let down = most.unreachable.iter().copied().map(NodeId).collect();
            others.unwrap_or(Self::VotersDown { down, voters: most.voters.len() })
        } else if !aside.is_empty() {
            Self::LogsSetAside(aside)
        } else {
            Self::Election
        }
    }

    /// The reason for people.
    #[must_use]
    pub fn text(&self, cluster: &ClusterSnapshot) -> String {
        let names = |nodes: &[NodeId]| cluster.description.names_of(nodes.iter().copied());
        match self {
            Self::Election => "no control plane: the voters are electing a leader".to_owned(),
            Self::VotersDown { down, voters } => {
                format!("no control plane: {} of {voters} voters cannot be reached ({})", down.len(), names(down))
            }
            Self::VotersRefuse(nodes) => format!(
                "no control plane: voters take each other's stores for older copies ({} and others), so no majority talks to each other",
                names(nodes)
            ),
            Self::LogsSetAside(nodes) => format!(
                "no control plane: the stores of {} were older copies and have new ids, and too few voters are left to agree on them",
                names(nodes)
            ),
        }
    }

    /// What helps.
    #[must_use]
    pub fn remedy(&self, cluster: &ClusterSnapshot) -> String {
        const RECOVER: &str = "stop all nodes, look at each directory (kv-node recover --data-dir DIR), found the next generation of the \
                               cluster on one of them (--found), and have the others join it (--join ADDR:PORT)";
        match self {
            Self::Election => String::new(),
            Self::VotersDown { down, .. } => {
                let names = cluster.description.names_of(down.iter().copied());
                format!("start {names}, or check the network; if a majority of the voters is lost for good: {RECOVER}")
            }
            Self::VotersRefuse(_) | Self::LogsSetAside(_) => RECOVER.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::observe::health::tests::cluster;
    use crate::observe::health::{Health, Word};

    /// A cluster of three whose reports say this of the control plane, by node: who leads, and what troubles it.
    fn with(reports: [(u64, ControlTrouble); 3]) -> ClusterSnapshot {
        let mut cluster = cluster();
        for (at, (leader, trouble)) in reports.into_iter().enumerate() {
            let id = cluster.reports[at].node.0;
            report(&mut cluster, at).control = Some(v1::ControlReport {
                generation: 1,
                founder: 1,
                leads: leader == id,
                leader,
                voters: vec![1, 2, 3],
                voters_wanted: 3,
                trouble: trouble.into(),
                ..Default::default()
            });
        }
        cluster
    }

    fn report(cluster: &mut ClusterSnapshot, at: usize) -> &mut v1::NodeSnapshot {
        cluster.reports[at].snapshot.as_mut().expect("reported")
    }

    fn control(cluster: &mut ClusterSnapshot, at: usize) -> &mut v1::ControlReport {
        report(cluster, at).control.as_mut().expect("set")
    }

    #[track_caller]
    fn check(cluster: &ClusterSnapshot, word: Word, first: &str, remedy: &str) {
        let health = Health::of(cluster);
        assert_eq!(health.word, word, "{health:?}");
        match health.reasons.first() {
            Some(reason) => {
                assert_eq!(reason.what, first);
                assert!(reason.remedy.contains(remedy), "{remedy:?} is missing in {:?}", reason.remedy);
            }
            None => assert_eq!(first, ""),
        }
    }

    const NONE: ControlTrouble = ControlTrouble::Unspecified;

    #[test]
    fn with_a_leader_there_is_nothing_to_say() {
        check(&with([(1, NONE), (1, NONE), (1, NONE)]), Word::Healthy, "", "");
        // Somebody whose report does not come leads, and another one hears him.
        let mut cluster = with([(1, NONE), (1, NONE), (1, NONE)]);
        cluster.reports[0].snapshot = Err(kv_core::error::RequestError::unavailable("refused"));
        let up = v1::PeerOpinion { node: 1, state: MemberState::Up.into(), ..Default::default() };
        report(&mut cluster, 1).peers = vec![up];
        assert_eq!(ControlPlane::of(&cluster).trouble, None);
        report(&mut cluster, 1).peers[0].state = MemberState::Down.into();
        assert_eq!(ControlPlane::of(&cluster).trouble, Some(NoControl::Election));
    }

    #[test]
    fn why_there_is_none_and_what_helps_is_said() {
        use ControlTrouble::{Election, LogSetAside, VotersDown, VotersRefuse};
        let electing = "no control plane: the voters are electing a leader";
        check(&with([(0, Election), (0, Election), (0, Election)]), Word::Settling, electing, "");
        let mut down = with([(0, VotersDown), (0, VotersDown), (0, VotersDown)]);
        control(&mut down, 0).unreachable = vec![2, 3];
        let text = "no control plane: 2 of 3 voters cannot be reached (n2, n3)";
        check(&down, Word::Degraded, text, "start n2, n3");
        check(&down, Word::Degraded, text, "kv-node recover --data-dir DIR");
        let text = "no control plane: the stores of n1, n2 were older copies and have new ids, and too few voters are left to agree on \
                    them";
        check(&with([(0, LogSetAside), (0, LogSetAside), (0, VotersDown)]), Word::Degraded, text, "--found");
        let text = "no control plane: voters take each other's stores for older copies (n3 and others), so no majority talks to each \
                    other";
        let mut refuse = with([(0, VotersDown), (0, LogSetAside), (0, VotersRefuse)]);
        check(&refuse, Word::Degraded, text, "--join");
        // Nothing that is said besides leads anybody to empty a directory.
        let claims = "says that this node's store is an older copy".to_owned();
        let peer = v1::PeerOpinion { node: 3, state: MemberState::Down.into(), claims, ..Default::default() };
        report(&mut refuse, 0).peers = vec![v1::PeerOpinion { refused: "an older copy".to_owned(), ..peer }];
        let others = Health::of(&refuse).reasons.split_off(1);
        assert!(others.len() >= 2 && others.iter().all(|reason| !reason.remedy.contains("directory")), "{others:?}");
    }

    #[test]
    fn voters_and_members_that_are_to_come_are_waited_for() {
        let mut cluster = with([(1, NONE), (1, NONE), (1, NONE)]);
        for at in 0..3 {
            control(&mut cluster, at).voters = vec![1];
        }
        check(&cluster, Word::Settling, "1 of 3 voters of the control plane are there", "");
        for at in 0..3 {
            let control = control(&mut cluster, at);
            (control.generation, control.awaited) = (2, vec![3]);
        }
        cluster.reports[2].snapshot = Err(kv_core::error::RequestError::unavailable("refused"));
        // One of several is named at a time: so is the command that gives it up.
        let text = "n3 is to come to generation 2 of the cluster, with what it holds";
        check(&cluster, Word::Degraded, text, "node remove n3 --dead");
        let health = Health::of(&cluster);
        assert!(
            !health.idle && health.reasons.iter().all(|reason| !reason.what.contains("not in reach")),
            "{health:?}"
        );
    }

    #[test]
    fn who_was_left_behind_is_named_and_does_not_count() {
        let mut cluster = with([(1, NONE), (1, NONE), (0, ControlTrouble::OtherGeneration)]);
        for at in 0..2 {
            let control = control(&mut cluster, at);
            (control.generation, control.voters, control.voters_wanted) = (2, vec![1], 1);
        }
        control(&mut cluster, 2).later_generation = 2;
        let text = "n3 obeys no control plane: it belongs to generation 1 of the cluster, and others to a later one";
        check(&cluster, Word::Degraded, text, "have its directory join: kv-node recover");
        assert!(!cluster.serves(NodeId(3)) && cluster.serves(NodeId(1)));
        let shown = ControlPlane::of(&cluster);
        assert_eq!(shown.left_behind, [(NodeId(3), 1)]);
        assert!(shown.restored().is_some_and(|line| line.starts_with("restored: generation 2 of the cluster")));
        assert_eq!(ControlPlane { generation: 1, ..shown }.restored(), None);
        let nothing = ClusterSnapshot { description: Arc::clone(&cluster.description), reports: Vec::new() };
        assert_eq!(ControlPlane::of(&nothing), ControlPlane::default());
    }
}
