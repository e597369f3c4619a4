//! What other nodes ask of this one.

use kv_core::types::Incarnation;
use openraft::error::{InstallSnapshotError, RaftError};
use openraft::raft::{AppendEntriesRequest, InstallSnapshotRequest, VoteRequest};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::leader::TransferReport;
use super::peers::transport::{Answer, CatchUpRequest, RaftKind, SnapshotReply};
use super::peers::{RaftId, raft_id};
use super::plane::Inner;
use super::raft::TypeConfig;
use super::raft::machine::SNAPSHOT_BYTES_MAX;

impl Inner {
    /// Answers a message of the Raft group. Bad input of any kind gets an answer that says so.
    pub(super) async fn answer(&self, kind: RaftKind, payload: &[u8], proven: Option<Incarnation>) -> Answer {
        let envelope = match self.member.group.link.open(payload, proven) {
            Ok(envelope) => envelope,
            Err(answer) => return answer,
        };
        // Who replicates the log or stands for election may have become a member by an entry that this node has not seen yet.
        // Everything else only members ask, of a node that knows that they are some.
        let is_of_group = matches!(kind, RaftKind::Append | RaftKind::Vote | RaftKind::Snapshot);
        let takes = match kind {
            RaftKind::Append | RaftKind::Snapshot => self.member.group.takes_entries_from(raft_id(envelope.from.store)),
            RaftKind::Vote => self.member.group.takes_part(),
            RaftKind::Propose | RaftKind::Report | RaftKind::CatchUp => true,
        };
        if !takes {
            // Whoever asks tries again.
            return Answer::Failed("this node has not been told yet what the voters remember of it".to_owned());
        }
        if !is_of_group && self.member.group.link.peers.node_of(raft_id(envelope.from.store)).is_none() {
            return Answer::NotMine(format!("store {} belongs to no member that this node knows", envelope.from.store));
        }
        let body = &envelope.body;
        match kind {
            RaftKind::Append => match read::<AppendEntriesRequest<TypeConfig>>(body) {
                Ok(request) => self.reply(self.member.group.raft.append_entries(request).await),
                Err(answer) => answer,
            },
            RaftKind::Vote => match read::<VoteRequest<RaftId>>(body) {
                Ok(request) => self.reply(self.member.group.raft.vote(request).await),
                Err(answer) => answer,
            },
            RaftKind::Snapshot => match read(body) {
                Ok(request) => self.install(request).await,
                Err(answer) => answer,
            },
            RaftKind::Report => match read::<TransferReport>(body) {
                Ok(report) if report.store != envelope.from.store => {
                    Answer::Failed(format!("a report of store {} from {}", report.store, envelope.from.store))
                }
                Ok(report) => self.member.group.link.answer(&self.leader.take_report(report)),
                Err(answer) => answer,
            },
            RaftKind::CatchUp => match read(body) {
                Ok(CatchUpRequest::Recall { boots }) if boots.is_valid() => {
                    self.member.recall(envelope.from, &boots).await
                }
                Ok(CatchUpRequest::Recall { .. }) => Answer::Failed("this cannot be a list of boots".to_owned()),
                Ok(request) => self.member.group.link.answer(&self.member.answer_catch_up(request).await),
                Err(answer) => answer,
            },
            RaftKind::Propose => match read(body) {
                Ok(proposal) => {
                    self.member.group.link.answer(&self.leader.lead(proposal, self.member.group.timing.call).await)
                }
                Err(answer) => answer,
            },
        }
    }

    fn reply<A: Serialize>(&self, result: Result<A, RaftError<RaftId>>) -> Answer {
        match result {
            Ok(reply) => self.member.group.link.answer(&reply),
            Err(error) => Answer::Failed(error.to_string()),
        }
    }

    async fn install(&self, request: InstallSnapshotRequest<TypeConfig>) -> Answer {
        let end = request.offset.saturating_add(request.data.len() as u64);
        if end > SNAPSHOT_BYTES_MAX {
            return Answer::Failed(format!("a snapshot of {end} bytes or more; the limit is {SNAPSHOT_BYTES_MAX}"));
        }
        match self.member.group.raft.install_snapshot(request).await {
            Ok(response) => self.member.group.link.answer(&SnapshotReply::Installed(response)),
            Err(RaftError::APIError(InstallSnapshotError::SnapshotMismatch(mismatch))) => {
                self.member.group.link.answer(&SnapshotReply::Mismatch(mismatch))
            }
            Err(RaftError::Fatal(error)) => Answer::Failed(error.to_string()),
        }
    }
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Answer> {
    postcard::from_bytes(body)
        .map_err(|error| Answer::Failed(format!("the message cannot be read: {error}; run the same release")))
}
