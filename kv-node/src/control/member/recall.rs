//! After each start a node asks a majority of the voters what they remember of it, before it votes (rule D2), and who leads before
//! it takes entries of the log from it: the voters that it knows of may all have been replaced while it was away. A voter that was set back has forgotten votes that it gave and entries that it confirmed: counted again, it could
//! help a leader who lacks what was agreed on.
//!
//! Whoever has seen more of its store than it has says so. One such word keeps it from voting until it is withdrawn; what
//! becomes of the store, `claims` decides.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use kv_core::boots::Boots;
use kv_core::types::{Incarnation, Point};
use tokio::task::JoinSet;

use super::Member;
use crate::control::peers::transport::{Answer, CatchUpReply, CatchUpRequest, RaftKind};
use crate::control::peers::{RaftId, raft_id};
use crate::control::state::Phase;

/// How long a node may take to say what it remembers.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// Asks until this node may vote.
pub(in crate::control) async fn run(member: Arc<Member>) {
    let mut wait = member.group.timing.report_min;
    let mut rounds = 0_u32;
    while !ask_all(&member).await {
        rounds = rounds.saturating_add(1);
        if rounds == 10 {
            tracing::warn!(
                "this node does not vote yet: no majority of the voters has said what it remembers of this node's store; start \
                 the voters that are down"
            );
        }
        tokio::time::sleep(wait).await;
        wait = wait.saturating_mul(2).min(member.group.timing.report_max);
    }
    member.group.take_part();
}

/// Asks every other voter. Whether a majority has answered, and nobody has seen more than this node has.
async fn ask_all(member: &Arc<Member>) -> bool {
    let me = member.group.id();
    let metrics = member.group.metrics();
    let membership = metrics.membership_config.membership().clone();
    let last = metrics.last_log_index;
    let mut asking = JoinSet::new();
    let leader = member.group.wants_to_lead();
    let ask: BTreeSet<RaftId> = membership.voter_ids().chain(leader).filter(|voter| *voter != me).collect();
    for voter in ask {
        let member = Arc::clone(member);
        asking.spawn(async move {
            let question = CatchUpRequest::Recall { boots: member.group.link.boots.clone() };
            let timeout = ANSWER_TIMEOUT.min(member.group.timing.call);
            let answer = member.group.link.call::<_, CatchUpReply>(voter, RaftKind::CatchUp, &question, timeout).await;
            (voter, answer)
        });
    }
    // This node remembers itself.
    let mut fine: Vec<RaftId> = vec![me];
    while let Some(answered) = asking.join_next().await {
        match answered {
            Ok((voter, Ok(CatchUpReply::Recalled { matched }))) if matched <= last => fine.push(voter),
            Ok((voter, Ok(CatchUpReply::Recalled { matched }))) => {
                tracing::error!(
                    ?matched,
                    ?last,
                    "this node's log of the control plane is older than the leader knows it: it was restored from a copy; the node \
                     does not vote"
                );
                if let Some(author) = member.group.link.peers.node_of(voter) {
                    member.group.link.is_older(author, None);
                }
                return false;
            }
            // A claim is noted where the answer comes in.
            Ok((_, answer)) => tracing::debug!(?answer, "a voter was asked what it remembers"),
            Err(error) => tracing::debug!(%error, "a question to a voter failed"),
        }
    }
    let is_claimed = !member.group.link.claimed().is_empty();
    if let Some(leader) = leader.filter(|leader| !is_claimed && fine.contains(leader)) {
        member.group.take_entries_from(leader);
    }
    // While the voters change, both the old ones and the new ones must agree.
    let agrees =
        |voters: &BTreeSet<RaftId>| voters.iter().filter(|voter| fine.contains(voter)).count() * 2 > voters.len();
    !is_claimed && membership.get_joint_config().iter().all(agrees)
}

impl Member {
    /// Answers what this node remembers of a store that runs as `from` and has these boots.
    pub(in crate::control) async fn recall(&self, from: Incarnation, boots: &Boots) -> Answer {
        let state = self.group.state();
        let Some((node, member)) = state.member_of(from.store) else {
            return Answer::NotMine(format!("store {} belongs to no member that this node knows", from.store));
        };
        let agreed = Point { incarnation: member.incarnation, commit: 0 };
        let shown = match (self.group.link.memory.get(), &state.phase) {
            (Some(memory), _) => memory(node, from.store).await,
            (None, Phase::Formed { .. }) if self.group.has_data => {
                return Answer::Failed("this node's data plane has not started yet".to_owned());
            }
            // Nobody has shown anything to anybody yet.
            (None, _) => None,
        };
        match [Some(agreed), shown].into_iter().flatten().find(|seen| !boots.has(from, *seen)) {
            Some(seen) => Answer::RolledBack { seen },
            None => {
                let metrics = self.group.metrics();
                let replication = metrics.replication.as_ref().and_then(|known| known.get(&raft_id(from.store)));
                let matched = replication.and_then(|log| log.as_ref()).map(|log| log.index);
                self.group.link.answer(&CatchUpReply::Recalled { matched })
            }
        }
    }
}
