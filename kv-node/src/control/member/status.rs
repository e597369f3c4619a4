//! The membership status of the node, and statistics of its control plane.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use kv_core::types::{NodeId, Point};

use super::{Member, introduce};
use crate::control::leader::voters_wanted;
use crate::control::peers::{RaftId, store_of};
use crate::control::raft::leads;
use crate::control::state::{ClusterState, Phase, Refusal, removed, superseded};

/// The membership status of the node in its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MembershipStatus {
    /// It is not known yet to be a member.
    Joining {
        /// What it waits for.
        reason: String,
    },
    /// It is a member of a cluster that waits for more.
    Forming {
        /// Its number.
        node: NodeId,
        /// Members so far.
        members: usize,
        /// Members expected.
        expect: u32,
    },
    /// It is a member of a formed cluster.
    Member {
        /// Its number.
        node: NodeId,
        /// Whether it must not own partitions (yet).
        spare: bool,
    },
    /// The cluster refuses the node as it is. It must be stopped and started differently.
    Refused(Refusal),
    /// Its control plane has stopped. Puts and gets go on with the layout that is known.
    Failed {
        /// Why.
        reason: String,
    },
}

impl fmt::Display for MembershipStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Joining { reason } => write!(f, "joining: {reason}"),
            Self::Forming { members, expect, .. } => write!(f, "forming: {members} of {expect} members"),
            Self::Member { node, spare: false } => write!(f, "member {node}"),
            Self::Member { node, spare: true } => write!(f, "member {node}, a spare"),
            Self::Refused(refusal) => write!(f, "refused: {refusal}"),
            Self::Failed { reason } => write!(f, "the control plane has stopped: {reason}"),
        }
    }
}

/// Statistics of the control plane, for status and metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ControlStatus {
    /// Who leads, as far as this node knows.
    pub leader: Option<NodeId>,
    /// Whether this node leads.
    pub is_leader: bool,
    /// The term.
    pub term: u64,
    /// Members that vote.
    pub voters: Vec<NodeId>,
    /// Learners: members that do not vote.
    pub learners: Vec<NodeId>,
    /// Whether the voters are being changed: both the old ones and the new ones must have a majority until then.
    pub voters_change: bool,
    /// Index of the last entry of the log; `None` if there is none.
    pub last_log: Option<u64>,
    /// Index of the last entry that was applied.
    pub applied: Option<u64>,
    /// Index of the last entry in the snapshot.
    pub snapshot: Option<u64>,
    /// Index of the last entry that was purged.
    pub purged: Option<u64>,
    /// Bytes of the log on disk.
    pub log_bytes: u64,
    /// On the leader: milliseconds since a majority last confirmed it.
    pub quorum_ms: Option<u64>,
    /// Set if the control plane has stopped.
    pub failed: Option<String>,
}

/// Why a node obeys no leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// A leader is being elected.
    Election,
    /// Too many voters are down.
    VotersDown,
    /// This node and voters take each other's stores for older copies.
    VotersRefuse,
    /// This node's store has got a new id, which is not agreed on yet.
    LogSetAside,
    /// Others belong to this later generation of the cluster.
    OtherGeneration(u32),
}

/// The control plane, as this node sees it at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ControlView {
    /// Members that vote.
    pub voters: Vec<NodeId>,
    /// How many are to vote when all members are there.
    pub voters_wanted: usize,
    /// Voters that this node does not reach.
    pub unreachable: Vec<NodeId>,
    /// Why this node obeys no leader, if it obeys none.
    pub trouble: Option<Trouble>,
}

impl Member {
    /// The control plane as this node sees it now.
    pub(in crate::control) fn view(&self) -> ControlView {
        let state = self.group.state();
        let metrics = self.group.metrics();
        let ids: BTreeSet<RaftId> = metrics.membership_config.membership().voter_ids().collect();
        let peers = &self.group.link.peers;
        let answers = |id: RaftId| id == self.group.id() || peers.is_up(id);
        // A voter that belongs to no member any more does not answer, either.
        let up = ids.iter().filter(|id| answers(**id)).count();
        let is_majority = up * 2 > ids.len();
        let nodes = |ids: &mut dyn Iterator<Item = RaftId>| {
            let mut nodes: Vec<NodeId> = ids.filter_map(|id| peers.node_of(id)).collect();
            nodes.sort();
            nodes
        };
        let trouble = if !matches!(state.phase, Phase::Formed { .. }) {
            None
        } else if let Some((_, later)) = self.group.link.later_generations().first() {
            Some(Trouble::OtherGeneration(later.number))
        } else if state.member_of(self.group.me.incarnation.store).is_none() || ids.is_empty() {
            Some(Trouble::LogSetAside)
        } else if leads(&metrics, &self.group.timing) || self.group.leader().is_some_and(|leader| peers.is_up(leader)) {
            None
        } else if is_majority {
            Some(Trouble::Election)
        } else if self.is_doubted(&ids) {
            Some(Trouble::VotersRefuse)
        } else {
            Some(Trouble::VotersDown)
        };
        ControlView {
            voters_wanted: voters_wanted(&state, &ids),
            voters: nodes(&mut ids.iter().copied()),
            unreachable: nodes(&mut ids.iter().copied().filter(|id| !answers(*id))),
            trouble,
        }
    }

    /// Whether voters say that this node's store is an older copy or was given up, or this node says so of theirs.
    fn is_doubted(&self, voters: &BTreeSet<RaftId>) -> bool {
        let peers = &self.group.link.peers;
        let claims = self.group.link.claimed();
        let author = |node: NodeId| voters.iter().any(|id| peers.node_of(*id) == Some(node));
        claims.iter().any(|(node, _)| author(*node)) || voters.iter().any(|id| peers.is_doubted(store_of(*id)))
    }

    /// Brings `membership` and `status` up to date before anything has happened.
    pub(in crate::control) fn begin_status(&self) {
        self.group.follow_members(&ClusterState::default());
        self.update_membership();
        self.update_status();
    }

    fn update_status(&self) {
        let metrics = self.group.metrics();
        let membership = metrics.membership_config.membership();
        let nodes = |ids: &mut dyn Iterator<Item = RaftId>| {
            let mut nodes: Vec<NodeId> = ids.filter_map(|id| self.group.link.peers.node_of(id)).collect();
            nodes.sort();
            nodes
        };
        let status = ControlStatus {
            leader: self.group.leader().and_then(|id| self.group.link.peers.node_of(id)),
            is_leader: leads(&metrics, &self.group.timing),
            term: metrics.current_term,
            voters: nodes(&mut membership.voter_ids()),
            learners: nodes(&mut membership.learner_ids()),
            voters_change: membership.get_joint_config().len() > 1,
            last_log: metrics.last_log_index,
            applied: metrics.last_applied.map(|id| id.index),
            snapshot: metrics.snapshot.map(|id| id.index),
            purged: metrics.purged.map(|id| id.index),
            log_bytes: self.group.log_bytes(),
            quorum_ms: metrics.millis_since_quorum_ack,
            failed: self.group.failure(),
        };
        self.status.send_if_modified(|current| {
            let differs = *current != status;
            *current = status;
            differs
        });
    }

    /// Whether the node was removed: by what was agreed on, or since enough members say so (rule D2).
    fn is_given_up(&self, state: &ClusterState) -> bool {
        state.retired.contains(&self.group.me.incarnation.store)
            || self.electorates(state).iter().any(|nodes| self.group.link.proven_given_up(nodes))
    }

    /// Whether there is a later generation of the cluster, by the same rule.
    fn is_superseded(&self, state: &ClusterState) -> bool {
        self.electorates(state).iter().any(|nodes| self.group.link.proven_superseded(nodes).is_some())
    }

    /// Whether the node's store is an older copy, by the same rule: what others have seen of it.
    fn rolled_back(&self, state: &ClusterState) -> Option<Option<Point>> {
        let me = self.group.me.incarnation;
        let agreed = state.member_of(me.store).map(|(_, member)| Point { incarnation: member.incarnation, commit: 0 });
        match agreed.filter(|agreed| self.group.link.lacks(*agreed)) {
            Some(agreed) => Some(Some(agreed)),
            None => self.electorates(state).iter().find_map(|nodes| self.group.link.proven_older(nodes)),
        }
    }

    /// Those of whom more than half decide, if they say the same: the voters, who keep what is agreed on, or all members.
    fn electorates(&self, state: &ClusterState) -> [Vec<NodeId>; 2] {
        let metrics = self.group.metrics();
        let voters = metrics.membership_config.voter_ids();
        // A voter that belongs to no member any more counts as one that says nothing.
        let voters = voters.map(|id| self.group.link.peers.node_of(id).unwrap_or(NodeId(0))).collect();
        [voters, state.members.keys().copied().collect()]
    }

    /// What members claim of this node's store while nothing proves it.
    pub(in crate::control) fn unproven_claims(&self) -> Vec<(NodeId, String)> {
        let state = self.group.state();
        let is_proven = self.is_given_up(&state) || self.rolled_back(&state).is_some();
        if is_proven { Vec::new() } else { self.group.link.claimed() }
    }

    fn update_membership(&self) {
        let state = self.group.state();
        let rolled_back = self.rolled_back(&state);
        let failed = self.group.failure();
        let progress = self.progress.borrow().clone();
        let member = state.member_of(self.group.me.incarnation.store);
        let membership = match (failed, progress.refused, rolled_back, member, state.phase) {
            (Some(reason), ..) => MembershipStatus::Failed { reason },
            (None, Some(refusal), ..) => MembershipStatus::Refused(refusal),
            (None, None, Some(seen), ..) => MembershipStatus::Refused(introduce::rolled_back(&self.group.me, seen)),
            (None, None, None, _, _) if self.is_given_up(&state) => {
                MembershipStatus::Refused(removed(self.group.me.incarnation.store))
            }
            (None, None, None, _, _) if self.is_superseded(&state) => {
                let generation = self.group.link.generation().map_or(1, |generation| generation.number);
                MembershipStatus::Refused(superseded(&self.group.me.name, generation))
            }
            (None, None, None, Some((node, _)), Phase::Forming(founding)) => {
                MembershipStatus::Forming { node, members: state.members.len(), expect: founding.expect }
            }
            (None, None, None, Some((node, member)), Phase::Formed { .. }) => {
                MembershipStatus::Member { node, spare: member.spare }
            }
            (None, None, None, None, _) | (.., Phase::Unfounded) => {
                MembershipStatus::Joining { reason: progress.waits_for }
            }
        };
        self.membership.send_if_modified(|current| {
            let differs = *current != membership;
            *current = membership;
            differs
        });
    }
}

/// Keeps `membership` and `status` true and the failure detector informed of the members.
pub(in crate::control) async fn follow(member: Arc<Member>) {
    let mut claims = member.group.link.claims_changed.subscribe();
    let mut state = member.group.state.clone();
    let mut report = member.progress.subscribe();
    // Only these say that the engine has failed.
    let mut metrics = member.group.raft.metrics();
    let mut failed = member.group.failed.clone();
    let mut before = Arc::new(ClusterState::default());
    loop {
        member.group.follow_members(&before);
        before = member.group.state();
        claims.borrow_and_update();
        member.update_membership();
        member.update_status();
        let changed = tokio::select! {
            changed = state.changed() => changed.is_ok(),
            changed = report.changed() => changed.is_ok(),
            changed = claims.changed() => changed.is_ok(),
            changed = metrics.changed() => changed.is_ok(),
            Ok(()) = failed.changed() => true,
        };
        if !changed {
            // The engine has ended.
            member.update_membership();
            member.update_status();
            return;
        }
    }
}
