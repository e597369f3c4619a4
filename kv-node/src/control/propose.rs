//! Getting a command agreed on, from any node.

use std::time::Duration;

use kv_core::types::NodeId;
use openraft::error::{ClientWriteError, RaftError};
use tokio::time::Instant;

use super::command::{Command, CommandId, Done, Outcome, Proposal, Refusal};
use super::link::CallError;
use super::log::ENTRY_BYTES_MAX;
use super::plane::{ControlPlane, Inner, PROPOSALS_MAX, leads};
use super::raft::RaftId;
use super::transport::{ProposeReply, RaftKind};
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
        "no answer within the deadline ({reason}); the change may or may not have been made: look before you repeat it"
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

impl ControlPlane {
    /// Has `command` agreed on and applied, by way of the leader, and returns what it did. The result is visible in
    /// `state` of the leader at once and of other nodes soon.
    ///
    /// # Errors
    /// If it was refused, or no answer came within `timeout`.
    pub async fn propose(&self, command: Command, timeout: Duration) -> Result<Done, ProposeError> {
        self.propose_as(command_id()?, command, timeout).await
    }

    /// As [`ControlPlane::propose`], under an id that the caller has drawn: proposed again, it is applied once.
    ///
    /// # Errors
    /// If it was refused, or no answer came within `timeout`.
    pub async fn propose_as(&self, id: CommandId, command: Command, timeout: Duration) -> Result<Done, ProposeError> {
        let at = self.inner.wall().at;
        Ok(self.inner.propose(Proposal { id, at, command }, timeout).await?.into_result()?)
    }
}

/// A random id.
pub(super) fn command_id() -> Result<CommandId, ProposeError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| ProposeError::Stopped { reason: format!("no random numbers: {error}") })?;
    Ok(CommandId(u128::from_le_bytes(bytes)))
}

/// What one attempt came to, if it did not end the matter.
enum Attempt {
    /// Nothing was sent.
    NotSent,
    /// It may have arrived.
    Sent,
}

impl Inner {
    /// Has a proposal agreed on. It keeps its id through all attempts, so it is applied once.
    pub(super) async fn propose(&self, proposal: Proposal, timeout: Duration) -> Result<Outcome, ProposeError> {
        let bytes = postcard::to_stdvec(&proposal).map_or(usize::MAX, |bytes| bytes.len());
        // An entry of the log is a little longer than its proposal.
        if bytes > ENTRY_BYTES_MAX - 1024 {
            return Err(ProposeError::TooLong { bytes });
        }
        let _permit = self.proposals.try_acquire().map_err(|error| match error {
            tokio::sync::TryAcquireError::NoPermits => ProposeError::Overloaded,
            tokio::sync::TryAcquireError::Closed => stopped("it is shutting down"),
        })?;
        let deadline = Instant::now() + timeout;
        let mut servers = self.raft.server_metrics();
        let mut sent = false;
        loop {
            servers.borrow_and_update();
            match self.attempt(&proposal, deadline).await? {
                Ok(outcome) => return Ok(outcome),
                Err(Attempt::NotSent) => {}
                Err(Attempt::Sent) => sent = true,
            }
            let retry = (Instant::now() + RETRY).min(deadline);
            // Whichever comes first; the next attempt looks for itself.
            tokio::time::timeout_at(retry, servers.changed()).await.ok();
            if Instant::now() >= deadline {
                let reason = self.reachable_voters();
                return Err(if sent { ProposeError::Unknown { reason } } else { ProposeError::NoLeader { reason } });
            }
        }
    }

    async fn attempt(&self, proposal: &Proposal, deadline: Instant) -> Result<Result<Outcome, Attempt>, ProposeError> {
        if let Some(reason) = self.failure() {
            return Err(ProposeError::Stopped { reason });
        }
        let metrics = self.metrics();
        let left = deadline.saturating_duration_since(Instant::now());
        match metrics.current_leader {
            Some(leader) if leader == self.id() => {
                if !leads(&metrics, &self.timing) {
                    return Ok(Err(Attempt::NotSent));
                }
                Ok(match self.write(proposal.clone(), left).await {
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
        Ok(match self.link.call(leader, RaftKind::Propose, proposal, left.min(self.timing.call)).await {
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

    /// Writes a proposal as the leader.
    pub(super) async fn write(&self, proposal: Proposal, timeout: Duration) -> ProposeReply {
        match tokio::time::timeout(timeout, self.raft.client_write(proposal)).await {
            Ok(Ok(written)) => ProposeReply::Committed(written.data),
            // The engine also says this when it loses the lead with the entry in its log, which may still be committed.
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_)))) => {
                ProposeReply::Unknown("the lead was lost".to_owned())
            }
            Ok(Err(error)) => ProposeReply::Unknown(error.to_string()),
            Err(_elapsed) => ProposeReply::Unknown(format!("no majority within {timeout:?}")),
        }
    }

    /// Which voters answer and which do not, in words.
    pub(super) fn reachable_voters(&self) -> String {
        let metrics = self.metrics();
        let voters: Vec<RaftId> = metrics.membership_config.membership().voter_ids().collect();
        if voters.is_empty() {
            return format!("no voter is known yet, {}", *self.standing.borrow());
        }
        let state = self.state();
        let mut silent = Vec::new();
        for &voter in voters.iter().filter(|&&voter| voter != self.id()) {
            let node = self.link.peers.node_of(voter);
            let opinion = node.and_then(|node: NodeId| self.link.peers.opinion(node));
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
