//! What the leader does by itself: found, form, and keep the Raft group equal to the members.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use kv_core::ring::{FirstLayout, Layout, LayoutError, first_layout};
use kv_core::types::{ClusterId, Epoch, HashSeed};
use openraft::error::{ClientWriteError, RaftError};
use openraft::{ChangeMembers, EmptyNode};
use tokio::time::Instant;

use super::command::{Command, Founding, Outcome, Proposal};
use super::drive::drive;
use super::plane::{Inner, leads, unpoisoned};
use super::propose::command_id;
use super::raft::{Metrics, RaftId, TypeConfig, raft_id};
use super::state::{ClusterState, Phase};
use super::transport::ProposeReply;
use super::voters::{Candidate, choose};

/// A learner that is behind by at most this many entries may become a voter.
const LAG_MAX: u64 = 16;

/// The log on disk may have this many bytes before a snapshot is made whatever the number of entries.
const LOG_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// A snapshot for the log's size is worth it when at least this many entries are behind the last one.
const SNAPSHOT_GAIN_MIN: u64 = 16;

/// Runs until the node stops.
pub(super) async fn run(inner: Arc<Inner>) {
    let mut state = inner.state.clone();
    let mut servers = inner.raft.server_metrics();
    loop {
        state.borrow_and_update();
        servers.borrow_and_update();
        review(&inner).await;
        let changed = tokio::select! {
            changed = state.changed() => changed.is_ok(),
            changed = servers.changed() => changed.is_ok(),
            () = inner.reported.notified() => true,
            () = tokio::time::sleep(inner.timing.review) => true,
        };
        if !changed {
            return;
        }
    }
}

async fn review(inner: &Inner) {
    bound_log(inner).await;
    loop {
        let metrics = inner.metrics();
        if !leads(&metrics, &inner.timing) {
            return;
        }
        let state = inner.state();
        let progressed = match state.phase {
            Phase::Unfounded => found(inner).await,
            Phase::Forming(founding) if is_complete(&state, founding) => form(inner, &state, founding).await,
            Phase::Forming(_) => false,
            Phase::Formed { .. } => drive(inner, &state).await,
        };
        if progressed {
            continue;
        }
        match next_change(inner, &state, &metrics) {
            Some(change) => {
                if !carry_out(inner, change).await {
                    return;
                }
            }
            None => return,
        }
    }
}

/// Makes a snapshot if the log has grown long in bytes, which the engine does not look at.
async fn bound_log(inner: &Inner) {
    let metrics = inner.metrics();
    let applied = metrics.last_applied.map_or(0, |id| id.index);
    let covered = metrics.snapshot.map_or(0, |id| id.index);
    if inner.log_bytes() > LOG_BYTES_MAX && applied.saturating_sub(covered) >= SNAPSHOT_GAIN_MIN {
        report_failure("make a snapshot", inner.raft.trigger().snapshot().await);
    }
}

fn is_complete(state: &ClusterState, founding: Founding) -> bool {
    usize::try_from(founding.expect).is_ok_and(|expect| state.members.len() >= expect)
}

/// Commits what is to be formed. Returns whether the state has changed.
async fn found(inner: &Inner) -> bool {
    let Some(founding) = inner.founding else { return false };
    let command = Command::Found { founding, config: inner.cluster.clone(), founder: inner.me.clone() };
    commit(inner, command).await
}

/// Commits the cluster's identity and first layout. Returns whether the state has changed.
async fn form(inner: &Inner, state: &ClusterState, founding: Founding) -> bool {
    match draw_layout(state, founding) {
        Ok(layout) => commit(inner, Command::Form { layout }).await,
        Err(error) => {
            tracing::error!(%error, "no first layout is possible");
            false
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum DrawError {
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error("no random numbers: {0}")]
    Random(getrandom::Error),
}

fn draw_layout(state: &ClusterState, founding: Founding) -> Result<Layout, DrawError> {
    let mut drawn = [0_u8; 24];
    getrandom::fill(&mut drawn).map_err(DrawError::Random)?;
    let [id @ .., s0, s1, s2, s3, s4, s5, s6, s7] = drawn;
    Ok(first_layout(FirstLayout {
        cluster: ClusterId(u128::from_le_bytes(id)),
        seed: HashSeed(u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7])),
        epoch: Epoch(1),
        copies: founding.copies,
        partitions: founding.partitions,
        members: state.layout_members(),
    })?)
}

pub(super) async fn commit(inner: &Inner, command: Command) -> bool {
    let Ok(id) = command_id() else { return false };
    let what = command.to_string();
    match inner.write(Proposal { id, at: inner.wall().at, command }, inner.timing.call).await {
        ProposeReply::Committed(Outcome::Done(_)) => {
            tracing::info!("agreed: {what}");
            true
        }
        ProposeReply::Committed(Outcome::Refused(refusal)) => {
            // The state has moved on since this node looked at it, which it will do again.
            tracing::debug!(%refusal, "refused: {what}");
            false
        }
        ProposeReply::NotLeader | ProposeReply::Overloaded => false,
        ProposeReply::Unknown(reason) => {
            tracing::debug!(reason, "not agreed yet: {what}");
            false
        }
    }
}

/// One change of the Raft group.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    /// A member listens from now on.
    AddLearner(RaftId),
    /// These vote from now on, the other voters only listen.
    SetVoters(BTreeSet<RaftId>),
    /// A store that belongs to no member any more.
    Remove(RaftId),
}

/// The next change that brings the group nearer to the members; one at a time.
fn next_change(inner: &Inner, state: &ClusterState, metrics: &Metrics) -> Option<Change> {
    let membership = metrics.membership_config.membership();
    if membership.get_joint_config().len() > 1 {
        // A change is under way. If its leader was lost in the middle, setting the voters finishes it.
        let last = membership.get_joint_config().last()?;
        return Some(Change::SetVoters(last.clone()));
    }
    let present: BTreeSet<RaftId> = membership.nodes().map(|(&id, _)| id).collect();
    let voters: BTreeSet<RaftId> = membership.voter_ids().collect();
    let wanted: BTreeSet<RaftId> = state.members.values().map(|member| raft_id(member.incarnation.store)).collect();
    if let Some(&missing) = wanted.difference(&present).next() {
        return Some(Change::AddLearner(missing));
    }
    let ready = |id: RaftId| id == inner.id() || (keeps_up(metrics, id) && inner.link.peers.is_up(id));
    let chosen = choose_voters(state, &voters, ready);
    if chosen != voters {
        return Some(Change::SetVoters(chosen));
    }
    let surplus: BTreeSet<RaftId> = present.difference(&wanted).filter(|&id| !voters.contains(id)).copied().collect();
    let told = |id: RaftId| keeps_up(metrics, id);
    farewell(&mut unpoisoned(&inner.surplus), &surplus, told, inner.timing.election_max).map(Change::Remove)
}

/// Which of the surplus stores may be removed from the group now: after a while, so that the node learns why, and a node
/// that does not answer after a longer one.
fn farewell(
    since: &mut BTreeMap<RaftId, Instant>,
    surplus: &BTreeSet<RaftId>,
    told: impl Fn(RaftId) -> bool,
    grace: Duration,
) -> Option<RaftId> {
    let now = Instant::now();
    since.retain(|id, _| surplus.contains(id));
    surplus.iter().copied().find(|&id| {
        let waited = now.duration_since(*since.entry(id).or_insert(now));
        waited >= grace * if told(id) { 1 } else { 10 }
    })
}

/// The voters to have: the choice among the present ones and the learners that are `ready`, without members that are
/// about to leave. As long as too few are ready for as many as there should be, the present voters stay.
fn choose_voters(state: &ClusterState, voters: &BTreeSet<RaftId>, ready: impl Fn(RaftId) -> bool) -> BTreeSet<RaftId> {
    let all: Vec<Candidate<'_>> = state
        .members
        .iter()
        .filter(|(node, _)| !state.leaving.contains_key(node))
        .map(|(&node, member)| {
            let votes = voters.contains(&raft_id(member.incarnation.store));
            Candidate { node, zone: &member.zone, votes }
        })
        .collect();
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

fn keeps_up(metrics: &Metrics, id: RaftId) -> bool {
    let Some(Some(matched)) = metrics.replication.as_ref().and_then(|replication| replication.get(&id)) else {
        return false;
    };
    metrics.last_log_index.is_none_or(|last| matched.index.saturating_add(LAG_MAX) >= last)
}

/// Returns whether the change was made.
async fn carry_out(inner: &Inner, change: Change) -> bool {
    tracing::info!(?change, "changing the voters and listeners of the control plane");
    let raft = &inner.raft;
    match change {
        Change::AddLearner(id) => within(inner, raft.add_learner(id, EmptyNode::new(), false)).await,
        Change::SetVoters(voters) => within(inner, raft.change_membership(voters, true)).await,
        Change::Remove(id) => {
            within(inner, raft.change_membership(ChangeMembers::RemoveNodes(BTreeSet::from([id])), true)).await
        }
    }
}

type Written = openraft::raft::ClientWriteResponse<TypeConfig>;
type WriteError = RaftError<RaftId, ClientWriteError<RaftId, EmptyNode>>;

async fn within(inner: &Inner, change: impl Future<Output = Result<Written, WriteError>>) -> bool {
    let changed = async {
        let written = change.await.map_err(|error| error.to_string())?;
        // The next change is found by what the metrics say, so they must say this one first.
        let seen = |metrics: &Metrics| *metrics.membership_config.log_id() >= Some(written.log_id);
        inner.raft.wait(None).metrics(seen, "the change").await.map_err(|error| error.to_string())
    };
    match tokio::time::timeout(inner.timing.call, changed).await {
        Ok(result) => report_failure("change the voters and listeners", result),
        Err(_elapsed) => {
            tracing::warn!("no majority within {:?} for a change of the voters and listeners", inner.timing.call);
            false
        }
    }
}

fn report_failure<T, E: std::fmt::Display>(what: &str, result: Result<T, E>) -> bool {
    result.inspect_err(|error| tracing::debug!(%error, "the control plane could not {what}")).is_ok()
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
