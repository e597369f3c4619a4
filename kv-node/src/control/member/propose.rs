//! Getting a command agreed on, from any node.

use std::time::Duration;

use kv_core::types::NodeId;
use tokio::time::Instant;

use super::Member;
use crate::control::config::PROPOSALS_MAX;
use crate::control::peers::transport::{ProposeReply, RaftKind};
use crate::control::peers::{CallError, RaftId};
use crate::control::raft::leads;
use crate::control::state::{ENTRY_BYTES_MAX, Outcome, Proposal, Refusal};
use crate::liveness::Condition;

/// How long a node waits before it tries again, unless it learns of a new leader earlier.
const RETRY: Duration = Duration::from_millis(100);

/// Why a command was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// It was agreed on and has no effect.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Nobody could take it; nothing was done.
    #[error("no leader: {reason}; puts and gets go on, changes of the cluster wait for a majority of the voters")]
    NoLeader {
        /// Who is reachable and who is not.
        reason: String,
    },
    /// It was sent and no answer came: it may or may not take effect.
    #[error(
        "no answer within the deadline ({reason}); the change may or may not have been made: check before you repeat it"
    )]
    Unknown {
        /// Who is reachable and who is not.
        reason: String,
    },
    /// Too many proposals wait already; nothing was done.
    #[error("{PROPOSALS_MAX} changes of the cluster wait already, the most there may be; try again in a moment")]
    Overloaded,
    /// The command is longer than the log takes.
    #[error("the command has {bytes} bytes, the limit is {ENTRY_BYTES_MAX}; make it smaller")]
    TooLong {
        /// How long it is.
        bytes: usize,
    },
    /// The node is shutting down, or its control plane has failed.
    #[error("the control plane of this node has stopped: {reason}; ask another node")]
    Stopped {
        /// Why.
        reason: String,
    },
}

impl From<getrandom::Error> for ProposeError {
    fn from(error: getrandom::Error) -> Self {
        Self::Stopped { reason: format!("no random numbers: {error}") }
    }
}

/// What one attempt came to, if it did not end the matter.
enum Attempt {
    /// Nothing was sent.
    NotSent,
    /// It may have arrived.
    Sent,
}

impl Member {
    /// Has a proposal agreed on. It keeps its id through all attempts, so it is applied once.
    pub(in crate::control) async fn propose(
        &self,
        proposal: Proposal,
        timeout: Duration,
    ) -> Result<Outcome, ProposeError> {
        let bytes = postcard::to_stdvec(&proposal).map_or(usize::MAX, |bytes| bytes.len());
        // An entry of the log is a little longer than its proposal.
        if bytes > ENTRY_BYTES_MAX - 1024 {
            return Err(ProposeError::TooLong { bytes });
        }
        let _permit = self.group.proposals.try_acquire().map_err(|error| match error {
            tokio::sync::TryAcquireError::NoPermits => ProposeError::Overloaded,
            tokio::sync::TryAcquireError::Closed => stopped("it is shutting down"),
        })?;
        let deadline = Instant::now() + timeout;
        let mut servers = self.group.raft.server_metrics();
        let mut sent = false;
        loop {
            servers.borrow_and_update();
            match self.attempt(&proposal, deadline).await? {
                Ok(outcome) => return Ok(outcome),
                Err(Attempt::NotSent) => {}
                Err(Attempt::Sent) => sent = true,
            }
            let retry = (Instant::now() + RETRY).min(deadline);
            // Whichever comes first; the next attempt reads the metrics again.
            tokio::time::timeout_at(retry, servers.changed()).await.ok();
            if Instant::now() >= deadline {
                let reason = self.reachable_voters();
                return Err(if sent { ProposeError::Unknown { reason } } else { ProposeError::NoLeader { reason } });
            }
        }
    }

    async fn attempt(&self, proposal: &Proposal, deadline: Instant) -> Result<Result<Outcome, Attempt>, ProposeError> {
        if let Some(reason) = self.group.failure() {
            return Err(ProposeError::Stopped { reason });
        }
        let metrics = self.group.metrics();
        let left = deadline.saturating_duration_since(Instant::now());
        match metrics.current_leader {
            Some(leader) if leader == self.group.id() => {
                if !leads(&metrics, &self.group.timing) {
                    return Ok(Err(Attempt::NotSent));
                }
                Ok(match self.leader.write(proposal.clone(), left).await {
                    ProposeReply::Committed(outcome) => Ok(outcome),
                    ProposeReply::NotLeader => Err(Attempt::NotSent),
                    ProposeReply::Unknown(_) => Err(Attempt::Sent),
                    ProposeReply::Overloaded => return Err(ProposeError::Overloaded),
                })
            }
            Some(leader) => self.forward(leader, proposal, left).await,
            None => Ok(Err(Attempt::NotSent)),
        }
    }

    async fn forward(
        &self,
        leader: RaftId,
        proposal: &Proposal,
        left: Duration,
    ) -> Result<Result<Outcome, Attempt>, ProposeError> {
        Ok(match self.group.link.call(leader, RaftKind::Propose, proposal, left.min(self.group.timing.call)).await {
            Ok(ProposeReply::Committed(outcome)) => Ok(outcome),
            Ok(ProposeReply::NotLeader) => Err(Attempt::NotSent),
            Ok(ProposeReply::Overloaded) => return Err(ProposeError::Overloaded),
            Ok(ProposeReply::Unknown(_)) => Err(Attempt::Sent),
            Err(CallError::Unreachable(error)) if !error.may_have_arrived => Err(Attempt::NotSent),
            Err(CallError::NotMine { .. } | CallError::RolledBack { .. }) => Err(Attempt::NotSent),
            Err(CallError::Unreachable(_) | CallError::Failed { .. } | CallError::Malformed { .. }) => {
                Err(Attempt::Sent)
            }
        })
    }

    /// Which voters answer and which do not, in words.
    pub(super) fn reachable_voters(&self) -> String {
        let metrics = self.group.metrics();
        let voters: Vec<RaftId> = metrics.membership_config.membership().voter_ids().collect();
        if voters.is_empty() {
            return format!("no voter is known yet, {}", *self.membership.borrow());
        }
        let state = self.group.state();
        let mut silent = Vec::new();
        for &voter in voters.iter().filter(|&&voter| voter != self.group.id()) {
            let node = self.group.link.peers.node_of(voter);
            let opinion = node.and_then(|node: NodeId| self.group.link.peers.opinion(node));
            match (node, opinion) {
                (_, Some(opinion)) if opinion.condition == Condition::Up => {}
                (Some(node), Some(opinion)) => {
                    silent.push(format!("{} is {}: {}", state.name_of(node), opinion.condition, opinion.reason));
                }
                (Some(node), None) => silent.push(format!("{} is unknown", state.name_of(node))),
                (None, _) => silent.push(format!("store {voter:016x} is unknown")),
            }
        }
        let reachable = voters.len() - silent.len();
        if silent.is_empty() {
            format!("{reachable} of {} voters reachable, an election is under way", voters.len())
        } else {
            format!("{reachable} of {} voters reachable ({})", voters.len(), silent.join(", "))
        }
    }
}

fn stopped(reason: &str) -> ProposeError {
    ProposeError::Stopped { reason: reason.to_owned() }
}
