//! What other nodes ask of this one.

use std::time::Duration;

use kv_core::message::PROTOCOL_VERSION;
use openraft::error::{InstallSnapshotError, RaftError};
use openraft::raft::{AppendEntriesRequest, InstallSnapshotRequest, VoteRequest};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::apply::check_place;
use super::command::{Arrival, Command, Done, Outcome, Proposal, Refusal, RefusalKind};
use super::drive::TransferReport;
use super::machine::SNAPSHOT_BYTES_MAX;
use super::plane::{ControlPlane, Inner};
use super::raft::{RaftId, TypeConfig, raft_id};
use super::state::Phase;
use super::transport::{Answer, GroupId, JoinReply, JoinRequest, ProposeReply, RaftKind, SnapshotReply};
use crate::liveness::Condition;

impl ControlPlane {
    /// Answers a message of the Raft group that another node sent by its `Transport::raft`. Bad input of any kind gets
    /// an answer that says so.
    pub async fn handle_raft(&self, kind: RaftKind, payload: &[u8]) -> Vec<u8> {
        let answer = self.inner.answer(kind, payload).await;
        // An answer holds nothing that cannot be encoded; an empty one reads as malformed on the other side.
        postcard::to_stdvec(&answer).unwrap_or_default()
    }

    /// Answers the report of a node that sent it by its `Transport::join`.
    pub async fn handle_join(&self, request: JoinRequest) -> JoinReply {
        self.inner.join(request).await
    }
}

impl Inner {
    async fn answer(&self, kind: RaftKind, payload: &[u8]) -> Answer {
        let envelope = match self.link.open(payload) {
            Ok(envelope) => envelope,
            Err(answer) => return answer,
        };
        let body = &envelope.body;
        match kind {
            RaftKind::Append => match read::<AppendEntriesRequest<TypeConfig>>(body) {
                Ok(request) => self.reply(self.raft.append_entries(request).await),
                Err(answer) => answer,
            },
            RaftKind::Vote => match read::<VoteRequest<RaftId>>(body) {
                Ok(request) => self.reply(self.raft.vote(request).await),
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
                Ok(report) => self.link.answer(&self.take_report(report)),
                Err(answer) => answer,
            },
            RaftKind::CatchUp => match read(body) {
                Ok(request) => self.link.answer(&self.answer_catch_up(request).await),
                Err(answer) => answer,
            },
            RaftKind::Propose => match read(body) {
                Ok(proposal) => self.link.answer(&self.lead(proposal, self.timing.call).await),
                Err(answer) => answer,
            },
        }
    }

    fn reply<A: Serialize>(&self, result: Result<A, RaftError<RaftId>>) -> Answer {
        match result {
            Ok(reply) => self.link.answer(&reply),
            Err(error) => Answer::Failed(error.to_string()),
        }
    }

    async fn install(&self, request: InstallSnapshotRequest<TypeConfig>) -> Answer {
        let end = request.offset.saturating_add(request.data.len() as u64);
        if end > SNAPSHOT_BYTES_MAX {
            return Answer::Failed(format!("a snapshot of {end} bytes or more; the limit is {SNAPSHOT_BYTES_MAX}"));
        }
        match self.raft.install_snapshot(request).await {
            Ok(response) => self.link.answer(&SnapshotReply::Installed(response)),
            Err(RaftError::APIError(InstallSnapshotError::SnapshotMismatch(mismatch))) => {
                self.link.answer(&SnapshotReply::Mismatch(mismatch))
            }
            Err(RaftError::Fatal(error)) => Answer::Failed(error.to_string()),
        }
    }

    /// Writes a proposal if this node leads.
    async fn lead(&self, proposal: Proposal, timeout: Duration) -> ProposeReply {
        if !self.is_leader() {
            return ProposeReply::NotLeader;
        }
        match self.proposals.try_acquire() {
            Ok(_permit) => self.write(proposal, timeout).await,
            Err(_) => ProposeReply::Overloaded,
        }
    }

    /// Takes a report: admits the node as the leader, or says where the leader is.
    pub(super) async fn join(&self, request: JoinRequest) -> JoinReply {
        let JoinRequest { protocol, id, group, config, arrival } = request;
        if protocol != PROTOCOL_VERSION {
            return refused(format!(
                "{} speaks protocol version {protocol}, this cluster {PROTOCOL_VERSION}; run the same release on both",
                arrival.name
            ));
        }
        let Some(&mine) = self.link.group.get() else {
            return later("this node has not joined a cluster itself yet".to_owned(), None);
        };
        if let Some(group) = group
            && group != mine
        {
            return refused(format!(
                "{} belongs to another cluster (group {group}, this is {mine}); check the addresses given to --join, or \
                 start it with an empty directory",
                arrival.name
            ));
        }
        let state = self.state();
        if state.phase != Phase::Unfounded && config != state.config {
            return refused(format!(
                "{} has other cluster settings (limits or clock skew); start it with those of the cluster",
                arrival.name
            ));
        }
        if let Err(refusal) = check_place(&arrival) {
            return JoinReply::Refused(refusal);
        }
        if !self.is_leader() {
            let leader = self.leader().filter(|&leader| leader != self.id());
            let address = leader.and_then(|leader| self.link.peers.address(leader));
            return later(format!("{} does not lead", self.me.name), address);
        }
        if let Some(reply) = self.refuse_to_displace(&arrival, mine).await {
            return reply;
        }
        let proposal = Proposal { id, at: self.wall().at, command: Command::Admit(arrival) };
        match self.lead(proposal, self.timing.call).await {
            ProposeReply::Committed(Outcome::Done(Done::Admitted { node, spare })) => {
                let cluster = self.state().identity().map(|(cluster, _)| cluster);
                JoinReply::Admitted { group: mine, node, spare, cluster }
            }
            ProposeReply::Committed(Outcome::Done(_)) => {
                refused("the report's id belongs to another command; draw a new one".to_owned())
            }
            // The founder has not committed its first entry yet.
            ProposeReply::Committed(Outcome::Refused(refusal)) if state.phase == Phase::Unfounded => {
                later(refusal.message, None)
            }
            ProposeReply::Committed(Outcome::Refused(refusal)) => JoinReply::Refused(refusal),
            ProposeReply::NotLeader => later(format!("{} does not lead", self.me.name), None),
            ProposeReply::Overloaded => later("too many changes wait already".to_owned(), None),
            ProposeReply::Unknown(reason) => later(reason, None),
        }
    }
}

impl Inner {
    /// Refuses a node that would take the place of a member which is alive: that one would be told to leave for good.
    async fn refuse_to_displace(&self, arrival: &Arrival, group: GroupId) -> Option<JoinReply> {
        let state = self.state();
        let (node, member) = state.member_named(&arrival.name)?;
        let held = member.incarnation.store;
        if held == arrival.incarnation.store || !arrival.replaces.contains(&held) {
            return None;
        }
        let address = self.link.peers.address(raft_id(held)).unwrap_or_else(|| member.address.clone());
        let answer = self.who_is_at(group, &address).await.map(|answer| answer.me.incarnation);
        // A node whose own store was renewed or lost is back at once, where it was: nobody else can be there.
        if answer == Some(arrival.incarnation) && arrival.address == address {
            return None;
        }
        if held == self.me.incarnation.store || answer.is_some_and(|answer| answer.store == held) {
            return Some(refused(format!(
                "{} is up at {address} with store {held}, and its store would be given up; stop it first if another store \
                 is to take its place, or start this node under another --name",
                member.name
            )));
        }
        match self.link.peers.opinion(node) {
            Some(opinion) if opinion.condition == Condition::Down => None,
            // It may only be slow.
            opinion => {
                let why = opinion.map_or_else(|| "nothing is known of it".to_owned(), |opinion| opinion.reason);
                Some(later(
                    format!("{} is not taken for down yet ({why}), so its place is not free", member.name),
                    None,
                ))
            }
        }
    }
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Answer> {
    postcard::from_bytes(body)
        .map_err(|error| Answer::Failed(format!("the message cannot be read: {error}; run the same release")))
}

fn refused(message: String) -> JoinReply {
    JoinReply::Refused(Refusal { kind: RefusalKind::Precondition, message })
}

fn later(reason: String, leader: Option<String>) -> JoinReply {
    JoinReply::Later { reason, leader }
}
