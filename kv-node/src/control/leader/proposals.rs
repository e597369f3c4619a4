//! How the leader has commands agreed on: those of members, and its own.

use std::time::Duration;

use openraft::error::{ClientWriteError, RaftError};

use super::Leader;
use crate::control::peers::transport::ProposeReply;
use crate::control::state::{Command, CommandId, Outcome, Proposal};

/// A random id.
pub(in crate::control) fn command_id() -> Result<CommandId, getrandom::Error> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)?;
    Ok(CommandId(u128::from_le_bytes(bytes)))
}

impl Leader {
    /// Writes a proposal as the leader.
    pub(in crate::control) async fn write(&self, proposal: Proposal, timeout: Duration) -> ProposeReply {
        match tokio::time::timeout(timeout, self.group.raft.client_write(proposal)).await {
            Ok(Ok(written)) => ProposeReply::Committed(written.data),
            // The engine also says this when it loses the lead with the entry in its log, which may still be committed.
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_)))) => {
                ProposeReply::Unknown("the lead was lost".to_owned())
            }
            Ok(Err(error)) => ProposeReply::Unknown(error.to_string()),
            Err(_elapsed) => ProposeReply::Unknown(format!("no majority within {timeout:?}")),
        }
    }

    /// Writes a proposal if this node leads.
    pub(in crate::control) async fn lead(&self, proposal: Proposal, timeout: Duration) -> ProposeReply {
        if !self.group.is_leader() {
            return ProposeReply::NotLeader;
        }
        match self.group.proposals.try_acquire() {
            Ok(_permit) => self.write(proposal, timeout).await,
            Err(_) => ProposeReply::Overloaded,
        }
    }

    /// Has a command of the leader itself agreed on. Returns whether the state has changed.
    pub(super) async fn commit(&self, command: Command) -> bool {
        let Ok(id) = command_id() else { return false };
        let what = command.to_string();
        match self.write(Proposal { id, at: self.group.wall().at, command }, self.group.timing.call).await {
            ProposeReply::Committed(Outcome::Done(_)) => {
                tracing::info!("agreed: {what}");
                true
            }
            ProposeReply::Committed(Outcome::Refused(refusal)) => {
                // The state has moved on since this node read it; it will read it again.
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
}
