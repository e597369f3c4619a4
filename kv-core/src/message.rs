//! What clients ask, what nodes tell each other, and the one encoding of it.
//!
//! The messages of one stream belong to one session between two incarnations. The shell discards the frames of a closed
//! session; within one the core copes with loss, repetition and any order.

mod clock;
mod exchange;
mod settle;
pub(crate) mod weight;

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub use clock::{Echo, Reading};
pub use exchange::{Answer, DigestEntry, Keyed, LeafSet, Position, Purpose, Question, Tree};
pub use settle::{HinderedBy, Hindrance, SettleStep};

use crate::boots::Boots;
use crate::cell::Cell;
use crate::config::KeyspaceList;
use crate::error::RequestError;
use crate::register::proposal::{self, Reply};
use crate::ring::Entry;
use crate::storage::Space;
use crate::types::{Epoch, Incarnation, KeyspaceId, NodeId, PartitionId, Point, RequestId, WallTime};
use crate::version::Hlc;

/// The version of the messages. Nodes with different ones do not talk.
pub const PROTOCOL_VERSION: u32 = 14;

/// How long a forwarded write may be under way. One that takes longer is refused: then the link or the node stood still.
pub const FORWARD_AGE_MAX: Duration = Duration::from_millis(500);

/// How many replicas a request waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Level {
    /// The keyspace's R or W.
    #[default]
    Keyspace,
    /// One copy.
    One,
    /// A majority of the copies.
    Quorum,
    /// Every copy; fallbacks do not count.
    All,
}

/// How consistent one request must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Consistency {
    /// How many replicas.
    pub level: Level,
    /// Only owners count, no fallbacks: with R + W > N a read then sees every acknowledged write.
    pub strict: bool,
}

/// A client's operation on one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRequest {
    /// The keyspace.
    pub keyspace: KeyspaceId,
    /// The key.
    pub key: Bytes,
    /// The epoch of the partition's entry by which the request was routed (rule E1).
    pub epoch: Epoch,
    /// How consistent.
    pub consistency: Consistency,
    /// What to do.
    pub operation: Operation,
}

/// What to do with a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// Read it.
    Get,
    /// Write it, or delete it.
    Write {
        /// The client operation, recognised when it is repeated; `None`: it is never repeated, and the node that takes it names
        /// it.
        request: Option<RequestId>,
        /// Whether it may have taken effect already.
        attempt: Attempt,
        /// The value; `None` deletes.
        value: Option<Bytes>,
        /// The context of an earlier read, whose result this write replaces.
        context: Option<Bytes>,
        /// After which time the value reads as absent.
        ttl: Option<Duration>,
        /// On which condition; only in consistent keyspaces.
        when: When,
    },
}

impl Operation {
    /// A write of somebody who says nothing but what is to stand there; `None` deletes.
    #[must_use]
    pub fn plain_write(value: Option<Bytes>) -> Self {
        let (attempt, when) = (Attempt::Plain, When::Always);
        Self::Write { request: None, attempt, value, context: None, ttl: None, when }
    }
}

/// On which condition a key is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum When {
    /// On none.
    #[default]
    Always,
    /// It is absent.
    Absent,
    /// Nothing has changed since the read that gave the context.
    Unchanged,
}

/// What is known of the attempts of a write (rule A7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Attempt {
    /// Its client does not say more than that it has not repeated it.
    #[default]
    Plain,
    /// The first, of somebody who draws another stamp if this one is too low for it to replace what stands there: then it is
    /// refused, and nothing is written.
    First,
    /// Perhaps not the first: an earlier one may have taken effect, or may yet.
    Repeated,
    /// Beside another one of the same node: it replaces no more than a repetition may, and is refused like a first attempt.
    Hedge,
}

/// A page of the keys of one keyspace in byte order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScanRequest {
    /// The keyspace.
    pub keyspace: KeyspaceId,
    /// Only keys that start with it.
    pub prefix: Bytes,
    /// Only keys behind it: the last key of the page before.
    pub after: Option<Bytes>,
    /// The most keys to return, at least 1.
    pub limit: usize,
    /// Leave the values out.
    pub keys_only: bool,
    /// How many replicas of each partition are asked.
    pub consistency: Consistency,
}

/// What a client asks of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// An operation on one key.
    Key(KeyRequest),
    /// A page of keys.
    Scan(ScanRequest),
    /// What each replica of a key holds.
    Inspect {
        /// The keyspace.
        keyspace: KeyspaceId,
        /// The key.
        key: Bytes,
    },
}

impl Request {
    /// Whether it writes something.
    #[must_use]
    pub fn is_write(&self) -> bool {
        matches!(self, Self::Key(KeyRequest { operation: Operation::Write { .. }, .. }))
    }
}

/// One value as a client sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Value {
    /// The bytes; empty in a scan of keys only.
    pub value: Bytes,
    /// When it was written.
    pub written: Hlc,
    /// From when on it reads as absent.
    pub expires: Option<WallTime>,
}

/// One key of a scan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScanEntry {
    /// The key.
    pub key: Bytes,
    /// Its values: one, or the siblings of a conflict.
    pub values: Vec<Value>,
    /// What a put passes to replace exactly these.
    pub context: Bytes,
}

/// What one replica holds of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaView {
    /// The replica.
    pub node: NodeId,
    /// Whether it is an owner; otherwise a fallback that holds a hint.
    pub owner: bool,
    /// What it holds, or why there is no answer.
    pub cell: Result<Option<Cell>, RequestError>,
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    /// To a get. No values: the key is absent.
    Got {
        /// The values.
        values: Vec<Value>,
        /// What a put passes to replace exactly these.
        context: Bytes,
        /// The newest timestamp that the node knows. Stamps of later requests are above it (rule A7).
        newest: Hlc,
    },
    /// To a put or a delete.
    Written {
        /// What a put passes to replace this write. If values stand beside it, which the writer has not seen, or if the
        /// write had taken effect before, it is what the writer passed and this write: a get shows them all, and its context
        /// replaces them.
        context: Bytes,
        /// How many values now stand side by side.
        siblings: usize,
        /// The newest timestamp that the node knows. Stamps of later requests are above it (rule A7).
        newest: Hlc,
    },
    /// To a write whose condition does not hold; nothing was done.
    Unchanged {
        /// What stands there.
        value: Option<Value>,
        /// What a write on the condition that nothing changes from now on passes.
        context: Bytes,
        /// The newest timestamp that the node knows.
        newest: Hlc,
    },
    /// To a scan.
    Page {
        /// The keys, ascending.
        entries: Vec<ScanEntry>,
        /// The key after which the next page starts; `None` at the end.
        next: Option<Bytes>,
    },
    /// To an inspection.
    Inspected {
        /// Owners in preference order, then fallbacks.
        replicas: Vec<ReplicaView>,
    },
}

/// A request's end.
pub type Outcome = Result<Response, RequestError>;

/// Numbers one node's questions to its peers, so that answers find them. Its upper half is the nonce of the asking
/// incarnation: an answer to a question of an earlier one finds nobody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CallId(pub u64);

/// Why a replica did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Refusal {
    /// The replica knows a newer entry of the partition (rule E2: the refusal carries it).
    #[error("the partition's entry has changed at {}", .newer.changed)]
    Stale {
        /// The newer entry.
        newer: Entry,
    },
    /// The replica knows only an older entry and must learn the layout first.
    #[error("the replica knows the layout only up to {epoch}")]
    Behind {
        /// Its layout's epoch.
        epoch: Epoch,
    },
    /// The replica has not been refilled since its store was lost (rule D2).
    #[error("the replica's store is being refilled")]
    NotSynced,
    /// The replica does not own the partition.
    #[error("the replica does not own the partition")]
    NotOwner,
    /// The replica's clock is off, and timestamps decide what the request does (rule A8).
    #[error("the replica's clock is off, and timestamps decide what the request does")]
    ClockOff,
    /// The request was under way for so long that its sender may have gone on without this node.
    #[error("the request came too late")]
    Late,
    /// The replica cannot take more.
    #[error("{0}")]
    Busy(RequestError),
    /// The request itself is at fault, or the replica's data is.
    #[error("{0}")]
    Failed(RequestError),
}

/// What nodes send to each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// A whole client request for a node that can coordinate it.
    Forward {
        /// Correlates the answer.
        call: CallId,
        /// The request.
        request: Request,
        /// How much time it has left.
        deadline: Duration,
    },
    /// The answer to `Forward`.
    Forwarded {
        /// Which forward.
        call: CallId,
        /// The outcome, or why it was not coordinated there; then nothing was done.
        outcome: Result<Outcome, Refusal>,
    },
    /// A coordinator's whole merged cell for a replica (rule A2), or for a fallback.
    Replicate {
        /// Correlates the answer.
        call: CallId,
        /// The epoch of the partition's entry.
        epoch: Epoch,
        /// Where it is kept.
        role: Role,
        /// The keyspace.
        keyspace: KeyspaceId,
        /// The key.
        key: Bytes,
        /// The cell.
        cell: Cell,
    },
    /// The answer to `Replicate`: the replica durably holds a cell that dominates the one sent.
    Replicated {
        /// Which replication.
        call: CallId,
        /// Done, or why not.
        result: Result<(), Refusal>,
        /// How far the replica's store is; filled in when it is sent (rule D2).
        commit: u64,
    },
    /// Asks a replica for its cell, or a fallback for its hint.
    Read {
        /// Correlates the answer.
        call: CallId,
        /// The epoch of the partition's entry.
        epoch: Epoch,
        /// Which of the two.
        role: Role,
        /// The keyspace.
        keyspace: KeyspaceId,
        /// The key.
        key: Bytes,
        /// Only the digest is wanted.
        digest: bool,
    },
    /// The answer to `Read`.
    ReadResult {
        /// Which read.
        call: CallId,
        /// What the replica holds, durably, or why it does not say.
        result: Result<ReadReply, Refusal>,
        /// Up to when its copy of the partition has settled: what is that old and it does not hold was replaced or collected there (rule
        /// A6).
        settled: Hlc,
    },
    /// Asks an owner about a register of a consistent keyspace.
    Register {
        /// Correlates the answer.
        call: CallId,
        /// The epoch of the partition's entry.
        epoch: Epoch,
        /// The keyspace.
        keyspace: KeyspaceId,
        /// The key.
        key: Bytes,
        /// The question.
        question: proposal::Question,
    },
    /// The answer to `Register`. What it depends on is durable (rule D1).
    RegisterAnswer {
        /// Which question.
        call: CallId,
        /// The answer, or why there is none; then nothing was done.
        result: Result<Reply, Refusal>,
        /// How far the replica's store is; filled in when it is sent (rule D2).
        commit: u64,
    },
    /// Asks a replica for a slice of some of its partitions.
    Slice {
        /// Correlates the answer.
        call: CallId,
        /// What is wanted.
        slice: SliceQuery,
    },
    /// The answer to `Slice`.
    SliceResult {
        /// Which slice.
        call: CallId,
        /// The records, or why there are none.
        result: Result<SliceAnswer, Refusal>,
    },
    /// Asks another replica of a partition something about all of it.
    Exchange {
        /// Correlates the answer.
        call: CallId,
        /// The partition.
        partition: PartitionId,
        /// The epoch of its entry.
        epoch: Epoch,
        /// What for.
        purpose: Purpose,
        /// The question.
        question: Question,
    },
    /// The answer to `Exchange`.
    ExchangeResult {
        /// Which question.
        call: CallId,
        /// The answer, or why there is none.
        result: Result<Answer, Refusal>,
        /// How far the answering node's store is; filled in when it is sent (rule D2).
        commit: u64,
    },
    /// The sender refused something because it knew only an older layout; now it acts on this one. What it refused may
    /// be asked again.
    CaughtUp {
        /// The epoch of its layout.
        epoch: Epoch,
    },
    /// How far the sender's store is (rule D2), and what its clocks show (rule A8), twice a second.
    Shown {
        /// The last batch of the present boot that is durable.
        commit: u64,
        /// The clocks.
        clock: Reading,
    },
    /// An owner of some partitions takes a step of the settled barrier (rule A6).
    Settle {
        /// Names the round.
        round: CallId,
        /// The step.
        step: SettleStep,
        /// What is written at or before it is to be settled.
        until: Hlc,
        /// The partitions with the epochs of their entries.
        partitions: Vec<(PartitionId, Epoch)>,
    },
    /// The answer to `Settle`, for some of the partitions. What the step asks for is durable.
    Settled {
        /// Which round.
        round: CallId,
        /// Which step.
        step: SettleStep,
        /// Whether each partition takes the step, or why not.
        answers: Vec<(PartitionId, Result<(), Hindrance>)>,
    },
    /// Asks a node that has been silent to show itself.
    Ping,
    /// The answer to `Ping`.
    Pong,
    /// The keyspaces as the sender knows them, said at the beginning of a session and when it learns of a newer list.
    Keyspaces {
        /// They.
        list: KeyspaceList,
    },
}

/// In which role a node is addressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Role {
    /// As an owner of the partition.
    Owner,
    /// As a fallback that holds hints.
    Fallback,
}

impl Role {
    /// Where a node in this role holds what it is asked for.
    pub(crate) fn space(self) -> Space {
        match self {
            Self::Owner => Space::Owned,
            Self::Fallback => Space::Hint,
        }
    }
}

/// What a replica holds of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReadReply {
    /// The cell; `None` if it holds none.
    Full(Option<Cell>),
    /// Its digest; `None` if it holds none.
    Digest(Option<u64>),
}

/// What a scan wants of one node: keys of one keyspace in byte order, over several partitions at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SliceQuery {
    /// The partitions with the epochs of their entries.
    pub partitions: Vec<(PartitionId, Epoch)>,
    /// The keyspace.
    pub keyspace: KeyspaceId,
    /// Only keys that start with it.
    pub prefix: Bytes,
    /// Only keys behind it.
    pub after: Option<Bytes>,
    /// The most keys to return.
    pub limit: usize,
    /// Values may be left out.
    pub keys_only: bool,
}

/// The records of a slice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SliceAnswer {
    /// The records, in the order of the query.
    pub records: Vec<Keyed>,
    /// Whether there may be more behind the last one.
    pub more: bool,
    /// Up to when the copies have settled, of partitions that have: what is that old and they do not hold was replaced or collected there
    /// (rule A6).
    pub settled: Vec<(PartitionId, Hlc)>,
}

/// What two nodes tell each other first on every session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// `PROTOCOL_VERSION`.
    pub protocol: u32,
    /// The cluster, if the sender belongs to one.
    pub cluster: Option<crate::types::ClusterId>,
    /// The ring's hash seed (rule D3).
    pub seed: crate::types::HashSeed,
    /// The settings on which all nodes must agree.
    pub config: crate::config::ClusterConfig,
    /// The sender.
    pub node: NodeId,
    /// The sender's store and boot.
    pub incarnation: Incarnation,
    /// The newest that the sender has been shown of the receiver's store (rule D2).
    pub seen: Option<Point>,
    /// The boots of the sender's store, the present one last.
    pub boots: Boots,
    /// The last batch of the present boot that is durable.
    pub commit: u64,
    /// The control plane that the sender obeys.
    pub generation: crate::types::Generation,
}

/// A message that is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a message of protocol version {PROTOCOL_VERSION}: {reason}; the session is closed")]
pub struct MessageError {
    /// What is wrong.
    pub reason: &'static str,
}

impl Message {
    /// Whether the message may wait behind all others: the shell sends such messages, and large ones, on a stream of their
    /// own, and the core copes with any order between the two.
    #[must_use]
    pub fn is_bulk(&self) -> bool {
        matches!(self, Self::Exchange { .. } | Self::ExchangeResult { .. })
    }

    /// Whether it asks for what a node holds of a partition that is refilled, or answers that: all that nodes say to each other
    /// of which one takes the other's store for an older copy (rule D2).
    #[must_use]
    pub fn is_pull(&self) -> bool {
        match self {
            Self::Exchange { purpose: Purpose::Refill, question, .. } => !matches!(question, Question::Offer { .. }),
            Self::ExchangeResult { .. } => true,
            _ => false,
        }
    }

    /// Whether it brings a client's write or a record that its receiver is to store.
    #[must_use]
    pub fn is_written(&self) -> bool {
        match self {
            Self::Replicate { .. } | Self::Register { question: proposal::Question::Accept { .. }, .. } => true,
            Self::Forward { request, .. } => request.is_write(),
            _ => false,
        }
    }

    /// A refusal in the place of an answer that carries records; `None` if it is no such answer.
    #[must_use]
    pub fn refused(&self, refusal: Refusal) -> Option<Self> {
        match self {
            Self::Forwarded { call, outcome: Ok(Ok(response)) } if !matches!(response, Response::Written { .. }) => {
                Some(Self::Forwarded { call: *call, outcome: Err(refusal) })
            }
            Self::ReadResult { call, result: Ok(ReadReply::Full(_)), settled } => {
                Some(Self::ReadResult { call: *call, result: Err(refusal), settled: *settled })
            }
            Self::RegisterAnswer { call, result: Ok(Reply::Told(Some(_))), commit } => {
                Some(Self::RegisterAnswer { call: *call, result: Err(refusal), commit: *commit })
            }
            Self::SliceResult { call, result: Ok(_) } => Some(Self::SliceResult { call: *call, result: Err(refusal) }),
            Self::ExchangeResult { call, result: Ok(_), commit } => {
                Some(Self::ExchangeResult { call: *call, result: Err(refusal), commit: *commit })
            }
            _ => None,
        }
    }

    /// The message was under way, or waited to be read, for so long. A forwarded request has that much less time left, and
    /// a write that comes too late is not carried out: its sender may have sent it to another node, and its client may
    /// have written something else since.
    pub fn waited(&mut self, time: Duration) {
        if let Self::Forward { request, deadline, .. } = self {
            let is_late = request.is_write() && time >= FORWARD_AGE_MAX;
            *deadline = if is_late { Duration::ZERO } else { deadline.saturating_sub(time) };
        }
    }

    /// How far the sender's store is, if the message says so.
    pub(crate) fn shown(&self) -> Option<u64> {
        match self {
            Self::Replicated { commit, .. }
            | Self::RegisterAnswer { commit, .. }
            | Self::ExchangeResult { commit, .. }
            | Self::Shown { commit, .. } => Some(*commit),
            _ => None,
        }
    }

    /// Says how far the sender's store is, if the message has a place for it.
    pub(crate) fn show(&mut self, shown: u64) {
        if let Self::Replicated { commit, .. }
        | Self::RegisterAnswer { commit, .. }
        | Self::ExchangeResult { commit, .. }
        | Self::Shown { commit, .. } = self
        {
            *commit = shown;
        }
    }

    /// Whether it refuses something because its sender knows only an older layout.
    pub(crate) fn is_behind(&self) -> bool {
        let refusal = match self {
            Self::Forwarded { outcome: Err(refusal), .. }
            | Self::Replicated { result: Err(refusal), .. }
            | Self::ReadResult { result: Err(refusal), .. }
            | Self::SliceResult { result: Err(refusal), .. }
            | Self::ExchangeResult { result: Err(refusal), .. } => refusal,
            _ => return false,
        };
        matches!(refusal, Refusal::Behind { .. })
    }

    /// The encoding.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        // Writing to a vector cannot fail, and the types hold nothing that postcard refuses.
        postcard::to_allocvec(self).unwrap_or_default()
    }

    /// Reads a message and checks what the types alone do not say.
    ///
    /// # Errors
    /// If the bytes are not exactly one valid message.
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let (message, rest) =
            postcard::take_from_bytes::<Self>(bytes).map_err(|error| MessageError { reason: reason_of(&error) })?;
        if !rest.is_empty() {
            return Err(MessageError { reason: "bytes follow the message" });
        }
        let sound = |refusal: &Refusal| match refusal {
            Refusal::Stale { newer } => newer.is_valid(),
            _ => true,
        };
        let valid = match &message {
            Self::Replicate { cell, .. } => cell.is_valid(),
            Self::ReadResult { result: Ok(ReadReply::Full(Some(cell))), .. } => cell.is_valid(),
            Self::SliceResult { result: Ok(answer), .. } => answer.records.iter().all(|entry| entry.2.is_valid()),
            Self::Exchange { question, .. } => question.is_valid(),
            Self::Keyspaces { list } => list.is_valid(),
            Self::ExchangeResult { result: Ok(answer), .. } => answer.is_valid(),
            Self::Forwarded { outcome: Ok(Ok(Response::Inspected { replicas })), .. } => {
                replicas.iter().filter_map(|view| view.cell.as_ref().ok()?.as_ref()).all(Cell::is_valid)
            }
            Self::Forwarded { outcome: Err(refusal), .. }
            | Self::Replicated { result: Err(refusal), .. }
            | Self::ReadResult { result: Err(refusal), .. }
            | Self::SliceResult { result: Err(refusal), .. }
            | Self::ExchangeResult { result: Err(refusal), .. } => sound(refusal),
            _ => true,
        };
        if valid { Ok(message) } else { Err(MessageError { reason: "a record or an entry breaks its own rules" }) }
    }
}

fn reason_of(error: &postcard::Error) -> &'static str {
    match error {
        postcard::Error::DeserializeUnexpectedEnd => "it is cut short",
        _ => "a field does not decode",
    }
}

#[cfg(test)]
mod tests;
