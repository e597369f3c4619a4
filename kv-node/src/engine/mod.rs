//! The engine's shell: one task steps the core, one thread commits, others read. The loop never waits for the disk.

mod counters;
mod storage;
mod task;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use kv_core::config::{ClusterConfig, Keyspace, NodeConfig};
use kv_core::error::{Kind, RequestError, StorageError};
use kv_core::event::Event;
use kv_core::message::{Message, Outcome, Request};
use kv_core::node::{RepairFigures, Status};
use kv_core::ring::Layout;
use kv_core::storage::{Committer, Reader, Stats};
use kv_core::topology::{Receipt, Residue, Transfer, TransferSettings};
use kv_core::types::{Incarnation, NodeId, PartitionId, StoreId};
use kv_proto::reply::BatchKind;
use tokio::sync::{mpsc, oneshot, watch};

pub use counters::{BUCKETS_US, Counters, Durations, Latency, RequestClass, RequestKind};

use crate::clock::Clock;
use crate::link::Outbox;

/// Commands that may wait for the loop. Whoever gives one more waits, and so does the stream that it came from.
const COMMANDS_MAX: usize = 4096;

/// How long a question about the engine itself may take before the node is called stalled.
const ANSWER_PATIENCE: Duration = Duration::from_secs(2);

/// Where an outcome goes.
#[derive(Debug)]
pub enum ReplyTo {
    /// To one caller.
    One(oneshot::Sender<Outcome>),
    /// To a stream of many operations.
    Stream {
        /// The client's number for this one.
        id: u64,
        /// What it is.
        kind: BatchKind,
        /// The stream.
        results: mpsc::UnboundedSender<StreamResult>,
    },
}

/// The end of one operation of a stream.
pub type StreamResult = (u64, BatchKind, Outcome);

impl ReplyTo {
    /// Hands the outcome over. A caller that has gone away does not want it any more.
    pub(crate) fn send(self, outcome: Outcome) {
        match self {
            Self::One(sender) => drop(sender.send(outcome)),
            Self::Stream { id, kind, results } => drop(results.send((id, kind, outcome))),
        }
    }
}

/// What the loop is told.
#[derive(Debug)]
pub(crate) enum Command {
    Request { request: Request, timeout: Option<Duration>, reply: ReplyTo },
    Requests(Vec<(Request, Option<Duration>, ReplyTo)>),
    Messages { from: NodeId, session: u64, messages: Vec<Message> },
    PeerUp { node: NodeId, session: u64, incarnation: Incarnation, outbox: Outbox },
    PeerDown { node: NodeId, session: u64 },
    Layout(Arc<Layout>),
    Keyspaces(Vec<Keyspace>),
    Transfers(TransferSettings),
    Repair { partitions: Vec<PartitionId>, reply: oneshot::Sender<Repair> },
    Retry { partitions: Vec<PartitionId>, reply: oneshot::Sender<Vec<PartitionId>> },
    Seen { node: NodeId, store: Option<StoreId>, reply: oneshot::Sender<Option<Incarnation>> },
    Report(oneshot::Sender<Report>),
    Ping(oneshot::Sender<()>),
    Stop(oneshot::Sender<()>),
}

/// What the engine says of itself.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// What it is busy with.
    pub status: Status,
    /// What it has done.
    pub counters: Counters,
    /// How long requests took since the start, by what they were and how they ended.
    pub requests: BTreeMap<RequestClass, Durations>,
    /// How long requests took lately.
    pub latency: Latency,
    /// Why it has stopped serving.
    pub poisoned: Option<String>,
    /// Receipts of the migrations under way.
    pub receipts: Vec<Receipt>,
    /// Partitions that migrate to this node.
    pub transfers: Vec<Transfer>,
    /// What it holds of partitions that it has left.
    pub residue: Vec<Residue>,
}

/// What the engine has begun to compare.
#[derive(Clone, Debug, Default)]
pub struct Repair {
    /// Partitions that are compared with at least one other owner, ascending.
    pub partitions: Vec<PartitionId>,
    /// One for each partition and other owner that is up.
    pub comparisons: usize,
    /// Other owners that are down.
    pub down: BTreeSet<NodeId>,
    /// Partitions whose own copy is not complete.
    pub incomplete: Vec<PartitionId>,
    /// The figures before.
    pub before: RepairFigures,
}

/// What an engine is started with.
pub struct EngineConfig<R, C> {
    /// The loop's settings.
    pub node: NodeConfig,
    /// The settings on which all nodes agree.
    pub cluster: ClusterConfig,
    /// This run of the store.
    pub incarnation: Incarnation,
    /// The reading half of the store.
    pub reader: R,
    /// The writing half.
    pub committer: C,
    /// Both clocks.
    pub clock: Clock,
    /// Is told every event.
    pub events: mpsc::UnboundedSender<Event>,
}

/// The handle of a running engine. Clones share it.
#[derive(Clone, Debug)]
pub struct Engine {
    commands: mpsc::Sender<Command>,
    storage: storage::Handle,
    failed: watch::Receiver<Option<String>>,
}

impl Engine {
    /// Starts the loop on the current runtime, and its threads.
    ///
    /// # Errors
    /// If the store's own entries cannot be read, or a thread cannot be started.
    pub fn start<R: Reader, C: Committer>(config: EngineConfig<R, C>) -> Result<Self, StorageError> {
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
        let (storage, failed) = task::start(config, inbox)?;
        Ok(Self { commands, storage, failed })
    }

    /// Asks something on behalf of a client.
    ///
    /// # Errors
    /// The request's own; `Unknown` if the engine stops meanwhile.
    pub async fn request(&self, request: Request, timeout: Option<Duration>) -> Outcome {
        let (reply, outcome) = oneshot::channel();
        let command = Command::Request { request, timeout, reply: ReplyTo::One(reply) };
        if self.commands.send(command).await.is_err() {
            return Err(stopped());
        }
        outcome.await.unwrap_or_else(|_closed| {
            Err(RequestError::new(Kind::Unknown, "the outcome is unknown: the node stopped with the request in flight"))
        })
    }

    /// Hands over many requests at once; each outcome goes where its `ReplyTo` says.
    pub async fn requests(&self, requests: Vec<(Request, Option<Duration>, ReplyTo)>) {
        if let Err(mpsc::error::SendError(Command::Requests(requests))) =
            self.commands.send(Command::Requests(requests)).await
        {
            for (_, _, reply) in requests {
                reply.send(Err(stopped()));
            }
        }
    }

    pub(crate) async fn tell(&self, command: Command) {
        // A stopped engine needs to know nothing.
        drop(self.commands.send(command).await);
    }

    /// The highest incarnation seen of a peer, for the handshake; `store` is the one that it shows, if it has.
    pub async fn seen(&self, node: NodeId, store: Option<StoreId>) -> Option<Incarnation> {
        let (reply, answer) = oneshot::channel();
        self.tell(Command::Seen { node, store, reply }).await;
        answer.await.ok().flatten()
    }

    /// Compares partitions with their other owners. `None` if the engine does not answer in time.
    pub async fn repair(&self, partitions: Vec<PartitionId>) -> Option<Repair> {
        self.ask(|reply| Command::Repair { partitions, reply }).await
    }

    /// Lets copies that wait begin anew; which of them did. `None` if the engine does not answer in time.
    pub async fn retry(&self, partitions: Vec<PartitionId>) -> Option<Vec<PartitionId>> {
        self.ask(|reply| Command::Retry { partitions, reply }).await
    }

    /// Why the store has failed, as soon as it has.
    #[must_use]
    pub fn failed(&self) -> watch::Receiver<Option<String>> {
        self.failed.clone()
    }

    /// Whether the loop answers in time.
    pub async fn answers(&self) -> bool {
        self.ask(Command::Ping).await.is_some()
    }

    /// What the engine is busy with; `None` if it does not answer in time: its disk has stalled, or it has stopped.
    pub async fn report(&self) -> Option<Report> {
        self.ask(Command::Report).await
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        let ask = async {
            self.tell(command(reply)).await;
            answer.await.ok()
        };
        tokio::time::timeout(ANSWER_PATIENCE, ask).await.ok().flatten()
    }

    /// The statistics as of the last commit; `None` if the storage thread does not answer in time.
    pub async fn stats(&self) -> Option<Arc<Stats>> {
        let answer = self.storage.stats();
        tokio::time::timeout(ANSWER_PATIENCE, answer).await.ok()?.ok()
    }

    /// Finishes what is in flight, makes it durable and ends the threads.
    pub async fn stop(&self) {
        let (done, ended) = oneshot::channel();
        self.tell(Command::Stop(done)).await;
        drop(ended.await);
    }
}

fn stopped() -> RequestError {
    RequestError::unavailable("the node is stopping; ask another one")
}
