//! The engine's shell: one task steps the core, one thread commits, others read. The loop never waits for the disk.

mod counters;
mod room;
mod storage;
mod task;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use kv_core::cell::Cell;
use kv_core::config::{ClusterConfig, KeyspaceList, NodeConfig};
use kv_core::error::{Kind, RequestError, StorageError};
use kv_core::event::Event;
use kv_core::message::{KeyRequest, Message, Operation, Outcome, Request, Response, ScanEntry, Value};
use kv_core::node::{RepairStats, Status};
use kv_core::ring::Layout;
use kv_core::storage::{Committer, Reader, Stats};
use kv_core::topology::{Receipt, Residue, Transfer, TransferSettings};
use kv_core::types::{Incarnation, Monotonic, NodeId, PartitionId, Point, StoreId};
use kv_proto::reply::BatchKind;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::Instant;

pub use counters::{BUCKETS_US, Counters, Durations, Latency, RequestClass, RequestKind};

use crate::admission::Ticket;
use crate::budget::{Budget, Share};
use crate::clock::Clock;
use crate::outbox::Outbox;
use crate::read_window::ReadTicket;
pub use room::Promise;
use room::StoreRoom;

/// Commands that may wait for the loop. A caller with one more waits, and so does the stream that it came from.
const COMMANDS_MAX: usize = 4096;

/// Bytes of requests that may wait for the loop, and of messages of peers. A caller with more waits.
const WAITING_BYTES_MAX: usize = 32 * 1024 * 1024;

/// The unit in which these are counted.
const WAITING_UNIT: usize = 1024;

/// Writes that come together with fewer bytes than this wait for no room in the store.
const LARGE_WRITE_BYTES: usize = 64 * 1024;

/// How long a question about the engine itself may take before the node is called stalled.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the storage thread may take to show its statistics before its disk is said not to answer: less than who asks for a report
/// waits for it.
const STATS_PATIENCE: Duration = Duration::from_millis(500);

/// Where an outcome goes.
#[derive(Debug)]
pub enum ReplyTo {
    /// To one caller.
    One(oneshot::Sender<Answer>),
    /// To a stream of many operations.
    Stream {
        /// The client's number for this one.
        id: u64,
        /// What it is.
        kind: BatchKind,
        /// The stream.
        results: mpsc::UnboundedSender<StreamResult>,
        /// Counts what waits in the stream.
        waiting: Arc<Budget>,
        /// The turn of the message that it came with, if that had writes.
        ticket: Option<Arc<Ticket>>,
        /// Its own turn, if it is a read.
        read: Option<ReadTicket>,
    },
}

/// An outcome, and the room that it takes.
#[derive(Debug)]
pub struct Answer {
    /// The outcome.
    pub outcome: Outcome,
    /// Its bytes among those of all answers, while it waits for the client; `None` if it has next to none.
    pub share: Option<Share>,
}

impl From<Outcome> for Answer {
    fn from(outcome: Outcome) -> Self {
        Self { outcome, share: None }
    }
}

/// The end of one operation of a stream.
#[derive(Debug)]
pub struct StreamResult {
    /// The client's number for it.
    pub id: u64,
    /// What it is.
    pub kind: BatchKind,
    /// How it ended.
    pub answer: Answer,
    /// Its bytes among those that wait in the stream.
    pub waits: Share,
}

impl ReplyTo {
    /// Hands the answer over. A caller that has gone away does not want it any more.
    pub(crate) fn send(self, answer: impl Into<Answer>) {
        let answer = answer.into();
        match self {
            Self::One(sender) => drop(sender.send(answer)),
            Self::Stream { id, kind, results, waiting, ticket: _, read } => {
                let bytes = bytes_of(&answer.outcome);
                if let Some(read) = read {
                    read.ended(bytes);
                }
                let waits = waiting.hold(bytes);
                drop(results.send(StreamResult { id, kind, answer, waits }));
            }
        }
    }
}

/// Bytes of what an outcome brings to the client.
pub(crate) fn bytes_of(outcome: &Outcome) -> usize {
    match outcome {
        Ok(Response::Got { values, context, .. }) => bytes_of_values(values) + context.len(),
        Ok(Response::Unchanged { value, context, .. }) => {
            value.as_ref().map_or(0, |value| value.value.len()) + context.len()
        }
        Ok(Response::Page { entries, .. }) => {
            let bytes = |entry: &ScanEntry| entry.key.len() + bytes_of_values(&entry.values) + entry.context.len();
            entries.iter().map(bytes).sum()
        }
        Ok(Response::Inspected { replicas }) => {
            let cells = replicas.iter().filter_map(|view| view.cell.as_ref().ok()?.as_ref());
            cells.map(Cell::value_bytes).sum()
        }
        Ok(Response::Written { .. }) | Err(_) => 0,
    }
}

fn bytes_of_values(values: &[Value]) -> usize {
    values.iter().map(|value| value.value.len()).sum()
}

/// Bytes that a request brings.
pub(crate) fn bytes_of_request(request: &Request) -> usize {
    match request {
        Request::Key(KeyRequest { key, operation: Operation::Write { value, .. }, .. }) => {
            key.len() + value.as_ref().map_or(0, bytes::Bytes::len)
        }
        Request::Key(_) | Request::Scan(_) | Request::Inspect { .. } => 0,
    }
}

/// What the loop is to do or to know.
#[derive(Debug)]
pub(crate) enum Command {
    Request {
        request: Request,
        timeout: Option<Duration>,
        reply: ReplyTo,
    },
    Requests(Vec<(Request, Option<Duration>, ReplyTo)>),
    /// `sent`: when they were sent, by this node's clock.
    Messages {
        from: NodeId,
        session: u64,
        sent: Monotonic,
        messages: Vec<Message>,
    },
    /// Something else has come from a peer.
    Heard {
        node: NodeId,
        session: u64,
    },
    /// A peer has been silent for longer than usual.
    PeerSilent {
        node: NodeId,
    },
    PeerUp {
        node: NodeId,
        session: u64,
        incarnation: Incarnation,
        /// How far the peer said that its store is.
        commit: u64,
        outbox: Outbox,
    },
    /// There is a stream with a peer, and no session: one of both takes the other's store for an older copy.
    PeerDoubted {
        node: NodeId,
        session: u64,
        outbox: Outbox,
    },
    PeerDown {
        node: NodeId,
        session: u64,
    },
    Layout(Arc<Layout>),
    Keyspaces(KeyspaceList),
    Transfers(TransferSettings),
    Repair {
        partitions: Vec<PartitionId>,
        reply: oneshot::Sender<Repair>,
    },
    Retry {
        partitions: Vec<PartitionId>,
        reply: oneshot::Sender<Vec<PartitionId>>,
    },
    Seen {
        node: NodeId,
        store: Option<StoreId>,
        reply: oneshot::Sender<Shown>,
    },
    Report(oneshot::Sender<Report>),
    Ping(oneshot::Sender<()>),
    Stop(oneshot::Sender<()>),
}

/// What two nodes show each other of their stores.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shown {
    /// The newest that was seen of the peer's store.
    pub seen: Option<Point>,
    /// The last batch of this node's boot that is durable.
    pub commit: u64,
}

/// A command on its way to the loop, with the room that it takes until the loop has it.
pub(crate) struct Queued {
    pub(crate) command: Command,
    _room: Option<OwnedSemaphorePermit>,
    _promise: Option<Promise>,
    /// Since when it waits.
    since: Instant,
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
    /// How long commits took since the start.
    pub commits: Durations,
    /// How long requests and messages of peers waited for the loop since the start.
    pub loop_waits: Durations,
    /// Writes, of clients or from peers, that wait for room in the store.
    pub large_waiting: usize,
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
    pub before: RepairStats,
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
    /// Receives every event.
    pub events: mpsc::UnboundedSender<Event>,
    /// Bytes of answers that wait for clients.
    pub answers: Arc<Budget>,
}

/// The handle of a running engine. Clones share it.
#[derive(Clone, Debug)]
pub struct Engine {
    commands: mpsc::Sender<Queued>,
    storage: storage::Handle,
    failed: watch::Receiver<Option<String>>,
    /// Room for requests that wait for the loop, and for messages of peers: neither takes that of the other.
    from_clients: Arc<Semaphore>,
    from_peers: Arc<Semaphore>,
    /// The same for what is large or bulk.
    bulk_from_peers: Arc<Semaphore>,
    room: Arc<StoreRoom>,
    /// The statistics that were shown last.
    last_stats: Arc<Mutex<Option<Arc<Stats>>>>,
}

impl Engine {
    /// Starts the loop on the current runtime, and its threads.
    ///
    /// # Errors
    /// If the store's own entries cannot be read, or a thread cannot be started.
    pub fn start<R: Reader, C: Committer>(config: EngineConfig<R, C>) -> Result<Self, StorageError> {
        let (commands, inbox) = mpsc::channel(COMMANDS_MAX);
        let store_room = StoreRoom::new();
        let (storage, failed) = task::start(config, inbox, Arc::clone(&store_room))?;
        let room = || Arc::new(Semaphore::new(WAITING_BYTES_MAX / WAITING_UNIT));
        let (from_clients, from_peers, bulk_from_peers) = (room(), room(), room());
        let (room, last_stats) = (store_room, Arc::default());
        Ok(Self { commands, storage, failed, from_clients, from_peers, bulk_from_peers, room, last_stats })
    }

    async fn queue(
        &self,
        command: Command,
        room: &Arc<Semaphore>,
        bytes: usize,
        promise: Option<Promise>,
    ) -> Result<(), Command> {
        let units = bytes.div_ceil(WAITING_UNIT).clamp(1, WAITING_BYTES_MAX / WAITING_UNIT);
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        // Nobody closes it.
        let room = Arc::clone(room).acquire_many_owned(units).await.ok();
        self.enqueue(Queued { command, _room: room, _promise: promise, since: Instant::now() }).await
    }

    async fn enqueue(&self, queued: Queued) -> Result<(), Command> {
        self.commands.send(queued).await.map_err(|mpsc::error::SendError(queued)| queued.command)
    }

    /// Asks something on behalf of a client.
    ///
    /// # Errors
    /// The request's own; `Unknown` if the engine stops before the answer.
    pub async fn request(&self, request: Request, timeout: Option<Duration>) -> Outcome {
        self.answer(request, timeout, None).await.outcome
    }

    /// The same; the answer holds its room until it is dropped. `promise`: the room that the request has in the store.
    pub async fn answer(&self, request: Request, timeout: Option<Duration>, promise: Option<Promise>) -> Answer {
        let (reply, answer) = oneshot::channel();
        let bytes = bytes_of_request(&request);
        let command = Command::Request { request, timeout, reply: ReplyTo::One(reply) };
        if self.queue(command, &self.from_clients, bytes, promise).await.is_err() {
            return Err(stopped()).into();
        }
        answer.await.unwrap_or_else(|_closed| {
            let problem = "the outcome is unknown: the node stopped with the request in flight";
            Err(RequestError::new(Kind::Unknown, problem)).into()
        })
    }

    /// Hands over many requests at once; each outcome goes where its `ReplyTo` says.
    pub async fn requests(&self, requests: Vec<(Request, Option<Duration>, ReplyTo)>, promise: Option<Promise>) {
        let bytes = requests.iter().map(|(request, _, _)| bytes_of_request(request)).sum();
        let queued = self.queue(Command::Requests(requests), &self.from_clients, bytes, promise).await;
        if let Err(Command::Requests(requests)) = queued {
            for (_, _, reply) in requests {
                reply.send(Err(stopped()));
            }
        }
    }

    /// Hands over messages of a peer; `bytes` is what they had in their encoding, `sent` when that was by this node's clock.
    pub(crate) async fn messages(
        &self,
        from: NodeId,
        session: u64,
        messages: Vec<Message>,
        bytes: usize,
        sent: Monotonic,
    ) {
        let command = Command::Messages { from, session, sent, messages };
        drop(self.queue(command, &self.from_peers, bytes, None).await);
    }

    /// The same for messages that came as bulk. Those that bring something to write wait until the store has room for it.
    pub(crate) async fn bulk(&self, from: NodeId, session: u64, messages: Vec<Message>, bytes: usize, sent: Monotonic) {
        let is_written = messages.iter().any(Message::is_written);
        let promise = if is_written { Some(self.room.promise(bytes).await) } else { None };
        let command = Command::Messages { from, session, sent, messages };
        drop(self.queue(command, &self.bulk_from_peers, bytes, promise).await);
    }

    /// Waits until the store has room for writes of so many bytes. Small ones need no promise.
    pub async fn room_for(&self, bytes: usize) -> Option<Promise> {
        if bytes >= LARGE_WRITE_BYTES { Some(self.room.promise(bytes).await) } else { None }
    }

    pub(crate) async fn send(&self, command: Command) {
        // A stopped engine needs no commands.
        drop(self.enqueue(Queued { command, _room: None, _promise: None, since: Instant::now() }).await);
    }

    /// What was seen of a peer, and how far this node's store is, for the handshake; `store` is the one that the peer shows, if it
    /// has.
    pub async fn seen(&self, node: NodeId, store: Option<StoreId>) -> Shown {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Seen { node, store, reply }).await;
        answer.await.unwrap_or_default()
    }

    /// Compares partitions with their other owners. `None` if the engine does not answer in time.
    pub async fn repair(&self, partitions: Vec<PartitionId>) -> Option<Repair> {
        self.ask(|reply| Command::Repair { partitions, reply }).await
    }

    /// Lets copies that wait begin again; which of them did. `None` if the engine does not answer in time.
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
            self.send(command(reply)).await;
            answer.await.ok()
        };
        tokio::time::timeout(ANSWER_TIMEOUT, ask).await.ok().flatten()
    }

    /// The statistics as of the last commit, and whether the storage thread has shown them just now. While its disk does not answer they
    /// are those that it has shown last; `None` if it has never shown any, or has ended.
    pub async fn stats(&self) -> (Option<Arc<Stats>>, bool) {
        match tokio::time::timeout(STATS_PATIENCE, self.storage.stats()).await {
            Ok(stats) => {
                let stats = stats.ok();
                self.last_stats.lock().clone_from(&stats);
                (stats, true)
            }
            Err(_elapsed) => (self.last_stats.lock().clone(), false),
        }
    }

    /// Finishes what is in flight, makes it durable and ends the threads.
    pub async fn stop(&self) {
        let (done, ended) = oneshot::channel();
        self.send(Command::Stop(done)).await;
        drop(ended.await);
    }
}

fn stopped() -> RequestError {
    RequestError::unavailable("the node is stopping; ask another one")
}
