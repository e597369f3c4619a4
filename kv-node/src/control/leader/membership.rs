//! Keeps the Raft group equal to the members: who takes part, and who votes. One change at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::time::Duration;

use openraft::error::{ClientWriteError, RaftError};
use openraft::{ChangeMembers, EmptyNode};
use tokio::time::Instant;

use super::voters::{Candidate, choose};
use super::{Leader, report_failure};
use crate::control::peers::{RaftId, raft_id};
use crate::control::raft::{Metrics, TypeConfig};
use crate::control::state::ClusterState;

/// A learner that is behind by at most this many entries may become a voter.
const LAG_MAX: u64 = 16;

/// One change of the Raft group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// A member is a learner from now on.
    AddLearner(RaftId),
    /// These vote from now on, the other voters become learners.
    SetVoters(BTreeSet<RaftId>),
    /// A store that belongs to no member any more.
    Remove(RaftId),
}

/// The next change towards a group that equals the members; one at a time.
pub(super) fn next_change(leader: &Leader, state: &ClusterState, metrics: &Metrics) -> Option<Change> {
    let membership = metrics.membership_config.membership();
    if membership.get_joint_config().len() > 1 {
        // A change is under way. If its leader was lost in the middle, setting the voters finishes it.
        let last = membership.get_joint_config().last()?;
        return Some(Change::SetVoters(last.clone()));
    }
    let present: BTreeSet<RaftId> = membership.nodes().map(|(&id, _)| id).collect();
    let voters: BTreeSet<RaftId> = membership.voter_ids().collect();
    // Who is to come from an earlier generation comes under another store.
    let here = state.members.iter().filter(|(node, _)| !state.is_awaited(**node));
    let wanted: BTreeSet<RaftId> = here.map(|(_, member)| raft_id(member.incarnation.store)).collect();
    if let Some(&missing) = wanted.difference(&present).next() {
        return Some(Change::AddLearner(missing));
    }
    let ready = |id: RaftId| id == leader.group.id() || (keeps_up(metrics, id) && leader.group.link.peers.is_up(id));
    let chosen = choose_voters(state, &voters, ready);
    if chosen != voters {
        return Some(Change::SetVoters(chosen));
    }
    let surplus: BTreeSet<RaftId> = present.difference(&wanted).filter(|&id| !voters.contains(id)).copied().collect();
    let informed = |id: RaftId| keeps_up(metrics, id);
    next_removable(&mut leader.surplus.lock(), &surplus, informed, leader.group.timing.election_max).map(Change::Remove)
}

/// Which of the surplus stores may be removed from the group now: after a while, so that the node learns why, and a node
/// that does not answer after a longer one.
fn next_removable(
    since: &mut BTreeMap<RaftId, Instant>,
    surplus: &BTreeSet<RaftId>,
    informed: impl Fn(RaftId) -> bool,
    grace: Duration,
) -> Option<RaftId> {
    let now = Instant::now();
    since.retain(|id, _| surplus.contains(id));
    surplus.iter().copied().find(|&id| {
        let waited = now.duration_since(*since.entry(id).or_insert(now));
        waited >= grace * if informed(id) { 1 } else { 10 }
    })
}

/// The voters to have: the choice among the present ones and the learners that are `ready`, without members that are
/// about to leave. As long as too few are ready for as many as there should be, the present voters stay.
fn choose_voters(state: &ClusterState, voters: &BTreeSet<RaftId>, ready: impl Fn(RaftId) -> bool) -> BTreeSet<RaftId> {
    let all = candidates(state, voters);
    let id_of =
        |candidate: &Candidate<'_>| state.members.get(&candidate.node).map(|member| raft_id(member.incarnation.store));
    let able: Vec<Candidate<'_>> =
        all.iter().filter(|candidate| candidate.votes || id_of(candidate).is_some_and(&ready)).copied().collect();
    let chosen = choose(&able);
    let shrinks_for_lack = chosen.len() < voters.len() && chosen.len() < choose(&all).len();
    if chosen.is_empty() || shrinks_for_lack {
        return voters.clone();
    }
    able.iter().filter(|candidate| chosen.contains(&candidate.node)).filter_map(id_of).collect()
}

/// The members that may vote, once they are there and have caught up.
fn candidates<'a>(state: &'a ClusterState, voters: &BTreeSet<RaftId>) -> Vec<Candidate<'a>> {
    let stay = state.members.iter().filter(|(node, _)| !state.leaving.contains_key(node));
    stay.map(|(&node, member)| {
        let votes = voters.contains(&raft_id(member.incarnation.store));
        Candidate { node, zone: &member.zone, votes }
    })
    .collect()
}

/// How many members are to vote when all are there.
pub(in crate::control) fn voters_wanted(state: &ClusterState, voters: &BTreeSet<RaftId>) -> usize {
    choose(&candidates(state, voters)).len()
}

fn keeps_up(metrics: &Metrics, id: RaftId) -> bool {
    let Some(Some(matched)) = metrics.replication.as_ref().and_then(|replication| replication.get(&id)) else {
        return false;
    };
    metrics.last_log_index.is_none_or(|last| matched.index.saturating_add(LAG_MAX) >= last)
}

/// Returns whether the change was made.
pub(super) async fn carry_out(leader: &Leader, change: Change) -> bool {
    tracing::info!(?change, "changing the voters and learners of the control plane");
    let raft = &leader.group.raft;
    match change {
        Change::AddLearner(id) => within(leader, raft.add_learner(id, EmptyNode::new(), false)).await,
        Change::SetVoters(voters) => within(leader, raft.change_membership(voters, true)).await,
        Change::Remove(id) => {
            within(leader, raft.change_membership(ChangeMembers::RemoveNodes(BTreeSet::from([id])), true)).await
        }
    }
}

type Written = openraft::raft::ClientWriteResponse<TypeConfig>;
type WriteError = RaftError<RaftId, ClientWriteError<RaftId, EmptyNode>>;

async fn within(leader: &Leader, change: impl Future<Output = Result<Written, WriteError>>) -> bool {
    let changed = async {
        let written = change.await.map_err(|error| error.to_string())?;
        // The next change is found by what the metrics say, so they must say this one first.
        let seen = |metrics: &Metrics| *metrics.membership_config.log_id() >= Some(written.log_id);
        leader.group.raft.wait(None).metrics(seen, "the change").await.map_err(|error| error.to_string())
    };
    match tokio::time::timeout(leader.group.timing.call, changed).await {
        Ok(result) => report_failure("change the voters and learners", result),
        Err(_elapsed) => {
            tracing::warn!("no majority within {:?} for a change of the voters and learners", leader.group.timing.call);
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use kv_core::types::{Incarnation, NodeId, StoreId};

    use super::*;
    use crate::control::state::MemberRecord;

    /// Members `1..=size` with store ids of their own; `voters` vote, `ready` have caught up; who should vote.
    #[track_caller]
    fn check(size: u64, voters: &[RaftId], ready: &[RaftId], expected: &[RaftId]) {
        check_leaving(size, &[], voters, ready, expected);
    }

    /// The same, while the members `leaving` are about to go.
    #[track_caller]
    fn check_leaving(size: u64, leaving: &[u64], voters: &[RaftId], ready: &[RaftId], expected: &[RaftId]) {
        let mut state = ClusterState::default();
        for number in 1..=size {
            let member = MemberRecord {
                name: format!("n{number}"),
                address: String::new(),
                zone: "z".to_owned(),
                weight: 1.0,
                incarnation: Incarnation { store: StoreId(number), boot: 1, nonce: 0 },
                version: String::new(),
                spare: false,
            };
            state.members.insert(NodeId(number), member);
        }
        state.leaving = leaving.iter().map(|&number| (NodeId(number), kv_core::types::Epoch(1))).collect();
        let chosen = choose_voters(&state, &voters.iter().copied().collect(), |id| ready.contains(&id));
        assert_eq!(chosen, expected.iter().copied().collect());
    }

    #[test]
    fn voters_grow_with_the_learners_that_keep_up() {
        check(1, &[1], &[1], &[1]);
        check(3, &[1], &[1], &[1]);
        check(3, &[1], &[1, 2], &[1]);
        check(3, &[1], &[1, 2, 3], &[1, 2, 3]);
        check(5, &[1, 2, 3], &[1, 2, 3, 4], &[1, 2, 3]);
        check(5, &[1, 2, 3], &[1, 2, 3, 4, 5], &[1, 2, 3, 4, 5]);
    }

    #[test]
    fn voters_that_are_silent_stay() {
        check(3, &[1, 2, 3], &[1], &[1, 2, 3]);
        check(5, &[1, 2, 3], &[1, 4, 5], &[1, 2, 3, 4, 5]);
    }

    #[test]
    fn who_leaves_votes_until_another_can() {
        check_leaving(2, &[1], &[1], &[1], &[1]);
        check_leaving(2, &[1], &[1], &[1, 2], &[2]);
        check_leaving(3, &[1], &[1, 2, 3], &[1, 2, 3], &[2]);
        check_leaving(4, &[1], &[1, 2, 3], &[1, 2, 3], &[1, 2, 3]);
        check_leaving(4, &[1], &[1, 2, 3], &[1, 2, 3, 4], &[2, 3, 4]);
    }

    #[test]
    fn a_store_that_is_gone_votes_until_another_can() {
        // Store 9 was replaced by store 3, which has not caught up.
        check(3, &[1, 2, 9], &[1, 2], &[1, 2, 9]);
        check(3, &[1, 2, 9], &[1, 2, 3], &[1, 2, 3]);
        check(4, &[1, 2, 9], &[1, 2, 4], &[1, 2, 4]);
    }
}
