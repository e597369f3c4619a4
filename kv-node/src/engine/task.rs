//! The loop: take what has come in, step the core for each, then carry out the effects.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kv_core::error::{RequestError, StorageError};
use kv_core::event::Event;
use kv_core::message::{FORWARD_AGE_MAX, Message, Outcome, Request};
use kv_core::node::{Effect, Effects, Input, Node, Tag};
use kv_core::storage::{Committer, Reader};
use kv_core::types::{Monotonic, NodeId, PartitionId};
use tokio::sync::{mpsc, oneshot, watch};

use super::counters::{Counters, Durations, Latencies, RequestKind, Requests};
use super::room::StoreRoom;
use super::storage::{Done, Handle, Storage};
use super::{Answer, Command, EngineConfig, Queued, Repair, ReplyTo, Report, Shown, bytes_of, stopped};
use crate::budget::Budget;
use crate::clock::Clock;
use crate::outbox::Outbox;

/// Commands taken at once.
const TURN_COMMANDS_MAX: usize = 256;

/// While this many bytes are on their way to the disk, nothing new is taken in: the disk sets the pace.
const PENDING_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Bytes of results that one stream holds: a part of what all may, so that one client that takes nothing does not keep the
/// others from reading.
const STREAM_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Records and slices that were read and wait for the loop.
const READS_AHEAD: usize = 16;
/// How often the loop turns at least, so that it notices when it was paused.
const TURN_EVERY: Duration = Duration::from_millis(50);

/// How often it is looked whether the store is behind with its own work.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A loop that has not turned for this long was paused: the process was stopped. What it then reads may have been sent
/// long ago, by senders that have continued without this node.
const PAUSE_MIN: Duration = Duration::from_millis(500);

/// How long after that writes are refused, until what was sent during the pause has been read.
const WRITES_REFUSED_FOR: Duration = Duration::from_millis(50);

/// How long a stop waits for requests in flight.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

struct Waiting {
    reply: ReplyTo,
    kind: RequestKind,
    /// The mode of its keyspace.
    mode: &'static str,
    started: Monotonic,
}

struct Session {
    number: u64,
    outbox: Outbox,
}

struct Loop {
    node: Node,
    clock: Clock,
    storage: Storage,
    /// Whether the store is behind with its own work.
    is_behind: Box<dyn Fn() -> bool + Send>,
    /// When that was looked at last.
    looked: Monotonic,
    /// Whether a thread does what it is behind with, or looks whether somebody does.
    catches_up: bool,
    room: Arc<StoreRoom>,
    events: mpsc::UnboundedSender<Event>,
    answers: Arc<Budget>,
    effects: Effects,
    waiting: BTreeMap<Tag, Waiting>,
    tags: u64,
    sessions: BTreeMap<NodeId, Session>,
    wake: Option<Monotonic>,
    /// When the loop turned last.
    turned: Monotonic,
    /// It was paused, and refuses writes until then.
    writes_refused_until: Monotonic,
    counters: Counters,
    requests: Requests,
    latencies: Latencies,
    commits: Durations,
    loop_waits: Durations,
    /// Why the store has failed.
    poisoned: watch::Sender<Option<String>>,
    stopping: Option<(oneshot::Sender<()>, Monotonic)>,
}

/// Starts the storage threads, and the loop on the current runtime; says why the store fails, when it does.
pub(super) fn start<R: Reader, C: Committer>(
    config: EngineConfig<R, C>,
    commands: mpsc::Receiver<Queued>,
    room: Arc<StoreRoom>,
) -> Result<(Handle, watch::Receiver<Option<String>>), StorageError> {
    let EngineConfig { node, cluster, incarnation, reader, committer, clock, events, answers } = config;
    let node = Node::recover(node, cluster, incarnation, &reader, committer.stats())?;
    let (done, finished) = mpsc::unbounded_channel();
    let (read, reads) = mpsc::channel(READS_AHEAD);
    let storage = Storage::start(&reader, committer, done, read, Arc::clone(&room))?;
    let handle = storage.handle();
    let (poisoned, failed) = watch::channel(None);
    let now = clock.now().mono;
    let latencies = Latencies::new(now).ok_or_else(|| StorageError::Engine {
        path: "latencies".to_owned(),
        reason: "the histogram cannot be made".to_owned(),
    })?;
    let this = Loop {
        node,
        clock,
        storage,
        is_behind: Box::new(move || reader.is_behind()),
        looked: now,
        catches_up: false,
        room,
        events,
        answers,
        effects: Effects::new(),
        waiting: BTreeMap::new(),
        tags: 0,
        sessions: BTreeMap::new(),
        wake: Some(now),
        turned: now,
        writes_refused_until: now,
        counters: Counters::default(),
        requests: Requests::default(),
        latencies,
        commits: Durations::default(),
        loop_waits: Durations::default(),
        poisoned,
        stopping: None,
    };
    tokio::spawn(this.run(commands, finished, reads));
    Ok((handle, failed))
}

/// Ignores that the receiver may have gone away: then nobody waits for the value.
fn ignore_closed<T>(_: Result<(), T>) {}

fn micros(took: Duration) -> u64 {
    u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
}

impl Loop {
    async fn run(
        mut self,
        mut commands: mpsc::Receiver<Queued>,
        mut finished: mpsc::UnboundedReceiver<Done>,
        mut reads: mpsc::Receiver<Done>,
    ) {
        let mut taken = Vec::with_capacity(TURN_COMMANDS_MAX);
        let mut ready = Vec::with_capacity(TURN_COMMANDS_MAX);
        let mut fetched = Vec::with_capacity(READS_AHEAD);
        loop {
            let now = self.clock.now().mono;
            self.look_behind(now);
            let turn_every = if self.room.is_open() { TURN_EVERY } else { LOOK_EVERY };
            let pause = self.wake.map_or(turn_every, |wake| wake.since(now).min(turn_every));
            self.turned = now;
            let open = self.storage.pending_bytes() < PENDING_BYTES_MAX && self.stopping.is_none();
            tokio::select! {
                biased;
                count = finished.recv_many(&mut ready, TURN_COMMANDS_MAX) => if count == 0 { break },
                count = reads.recv_many(&mut fetched, READS_AHEAD) => if count == 0 { break },
                count = commands.recv_many(&mut taken, TURN_COMMANDS_MAX), if open => if count == 0 { break },
                () = tokio::time::sleep(pause) => {}
            }
            self.notice_pause();
            let mut ended = false;
            for done in ready.drain(..).chain(fetched.drain(..)) {
                ended |= self.done(done);
            }
            for queued in taken.drain(..) {
                self.loop_waits.record(micros(queued.since.elapsed()));
                self.command(queued.command);
            }
            if self.wake.is_some_and(|wake| wake <= self.clock.now().mono) {
                self.wake = None;
                self.step(Input::Wake);
            }
            if ended || self.may_stop() {
                break;
            }
        }
        for (_, waiting) in std::mem::take(&mut self.waiting) {
            waiting.reply.send(Err(stopped()));
        }
        self.room.end();
        // Threads that read must not wait for somebody to take what they have read.
        drop(reads);
        let Self { storage, stopping, .. } = self;
        storage.end();
        while let Some(done) = finished.recv().await {
            if matches!(done, Done::Ended) {
                break;
            }
        }
        if let Some((reply, _)) = stopping {
            ignore_closed(reply.send(()));
        }
    }

    /// Looks now and then whether the store is behind: nothing tells when that ends.
    fn look_behind(&mut self, now: Monotonic) {
        if now.since(self.looked) >= LOOK_EVERY {
            self.looked = now;
            let behind = (self.is_behind)();
            self.room.set_behind(behind);
            if behind && !self.catches_up {
                self.catches_up = true;
                self.storage.catch_up();
            }
        }
    }

    fn notice_pause(&mut self) {
        let now = self.clock.now().mono;
        if now.since(self.turned) >= PAUSE_MIN {
            self.writes_refused_until = now.plus(WRITES_REFUSED_FOR);
            tracing::warn!(
                for_ms = now.since(self.turned).as_millis(),
                "the process was paused; writes that were sent during that time are refused"
            );
        }
    }

    /// Whether a stop was asked for and nothing is in flight any more, or nobody waits any longer.
    fn may_stop(&self) -> bool {
        let Some((_, since)) = &self.stopping else { return false };
        let idle = self.waiting.is_empty() && self.node.status().unsynced_batches == 0;
        idle || self.poisoned.borrow().is_some() || self.clock.now().mono >= since.plus(DRAIN_TIMEOUT)
    }

    /// Takes what a storage thread finished; says whether the committing thread has ended.
    fn done(&mut self, done: Done) -> bool {
        match done {
            Done::Persisted { seq, batches, took } => {
                self.commits.record(micros(took));
                self.counters.commits += 1;
                self.counters.committed_batches += batches;
                self.storage.persisted(seq);
                self.step(Input::Persisted { seq });
            }
            Done::Failed(error) => {
                self.room.end();
                self.poisoned.send_replace(Some(error.to_string()));
                self.step(Input::PersistFailed { error });
            }
            Done::Read { read, result } => self.step(Input::ReadDone { read, result }),
            Done::Slice { read, result } => self.step(Input::SliceDone { read, result }),
            Done::Leaves { read, stats } => self.step(Input::LeavesDone { read, result: Ok(stats) }),
            Done::Reclaimed(result) => {
                if let Err(error) = result {
                    // What is deleted stays deleted; later compactions give its space back.
                    tracing::warn!("the space of deleted records could not be given back yet: {error}");
                }
                self.step(Input::Reclaimed);
            }
            Done::CaughtUp(result) => {
                self.catches_up = false;
                if let Err(error) = result {
                    // A store that has failed says so at its next commit.
                    tracing::warn!("compactions that are behind could not be made: {error}");
                }
            }
            Done::Ended => return self.poisoned.borrow().is_none(),
        }
        false
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Request { request, timeout, reply } => self.request(request, timeout, reply),
            Command::Requests(requests) => {
                for (request, timeout, reply) in requests {
                    self.request(request, timeout, reply);
                }
            }
            Command::Messages { from, session, sent, messages } => {
                // Frames of a closed session are discarded.
                if self.sessions.get(&from).is_some_and(|current| current.number == session) {
                    let now = self.clock.now().mono;
                    let least = if now < self.writes_refused_until { FORWARD_AGE_MAX } else { Duration::ZERO };
                    let age = now.since(sent).max(least);
                    for mut message in messages {
                        message.waited(age);
                        self.step(Input::Message { from, message });
                    }
                }
            }
            Command::Heard { node, session } => {
                if self.sessions.get(&node).is_some_and(|current| current.number == session) {
                    self.step(Input::Heard { from: node });
                }
            }
            Command::PeerSilent { node } => self.step(Input::PeerSilent { node }),
            Command::PeerUp { node, session, incarnation, commit, outbox } => {
                let current = self.sessions.get(&node);
                if current.is_some_and(|current| current.number >= session) {
                    return;
                }
                if self.sessions.insert(node, Session { number: session, outbox }).is_some() {
                    self.step(Input::PeerDown { node });
                }
                self.step(Input::PeerUp { node, incarnation, commit });
            }
            Command::PeerDoubted { node, session, outbox } => {
                let current = self.sessions.get(&node);
                if current.is_some_and(|current| current.number >= session) {
                    return;
                }
                if self.sessions.insert(node, Session { number: session, outbox }).is_some() {
                    self.step(Input::PeerDown { node });
                }
                self.step(Input::PeerDoubted { node });
            }
            Command::PeerDown { node, session } => {
                if self.sessions.get(&node).is_some_and(|current| current.number == session) {
                    self.sessions.remove(&node);
                    self.step(Input::PeerDown { node });
                }
            }
            Command::Layout(layout) => self.step(Input::Layout(layout)),
            Command::Keyspaces(keyspaces) => {
                self.requests.keyspaces(&keyspaces);
                self.step(Input::Keyspaces(keyspaces));
            }
            Command::Transfers(settings) => self.step(Input::Transfers(settings)),
            Command::Repair { partitions, reply } => ignore_closed(reply.send(self.repair(partitions))),
            Command::Retry { partitions, reply } => ignore_closed(reply.send(self.retry(partitions))),
            Command::Seen { node, store, reply } => {
                let seen = store.map_or_else(|| self.node.seen(node), |store| self.node.seen_against(node, store));
                ignore_closed(reply.send(Shown { seen, commit: self.node.commit() }));
            }
            Command::Ping(reply) => ignore_closed(reply.send(())),
            Command::Report(reply) => drop(reply.send(self.report())),
            Command::Stop(reply) => self.stopping = Some((reply, self.clock.now().mono)),
        }
    }

    /// Compares partitions with their other owners, as far as they are up.
    fn repair(&mut self, partitions: Vec<PartitionId>) -> Repair {
        let status = self.node.status();
        let mut begun = Repair { before: status.repairs, ..Repair::default() };
        for &partition in &partitions {
            let (up, down): (Vec<_>, Vec<_>) = self.node.comparable(partition).into_iter().partition(|peer| peer.1);
            begun.comparisons += up.len();
            begun.down.extend(down.into_iter().map(|peer| peer.0));
            if !up.is_empty() {
                begun.partitions.push(partition);
            }
        }
        begun.incomplete = status.unsynced.into_iter().filter(|partition| partitions.contains(partition)).collect();
        self.step(Input::Repair(partitions));
        begun
    }

    /// Lets copies that wait begin again; those whose tries have grown did.
    fn retry(&mut self, partitions: Vec<PartitionId>) -> Vec<PartitionId> {
        let tries = |node: &Node| -> BTreeMap<PartitionId, u32> {
            let transfers = node.transfers().into_iter().filter(|transfer| partitions.contains(&transfer.partition));
            transfers.map(|transfer| (transfer.partition, transfer.tries)).collect()
        };
        let before = tries(&self.node);
        self.step(Input::Retry(partitions.clone()));
        let grew = |(partition, tries): &(PartitionId, u32)| before.get(partition).is_some_and(|before| before < tries);
        tries(&self.node).into_iter().filter(grew).map(|(partition, _)| partition).collect()
    }

    fn request(&mut self, request: Request, timeout: Option<Duration>, reply: ReplyTo) {
        let started = self.clock.now().mono;
        if started < self.writes_refused_until && request.is_write() {
            let why = "the node was paused and may have been replaced; nothing was done, ask again";
            return reply.send(Err(RequestError::unavailable(why)));
        }
        self.tags += 1;
        let tag = Tag(self.tags);
        let deadline = timeout.map(|timeout| started.plus(timeout));
        let mode = self.requests.mode_of(&request);
        self.waiting.insert(tag, Waiting { reply, kind: RequestKind::of(&request), mode, started });
        self.step(Input::Request { tag, request, deadline });
    }

    fn step(&mut self, input: Input) {
        let mut effects = std::mem::take(&mut self.effects);
        self.node.step(self.clock.now(), input, &mut effects);
        for effect in effects.drain(..) {
            self.carry_out(effect);
        }
        self.effects = effects;
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Send { to, message } => {
                self.counters.forwards += u64::from(matches!(message, Message::Forward { .. }));
                if let Some(session) = self.sessions.get(&to) {
                    session.outbox.push(&message);
                }
            }
            Effect::Reply { tag, outcome } => self.reply(tag, outcome),
            Effect::Read { read, key } => self.storage.get(read, key),
            Effect::Slice { read, request } => self.storage.slice(read, request),
            Effect::Leaves { read, partition } => self.storage.leaves(read, partition),
            Effect::Persist { seq, batch } => self.storage.persist(seq, batch),
            Effect::Reclaim { bytes } => self.storage.reclaim(bytes),
            Effect::WakeAt(at) => self.wake = Some(at),
            Effect::Event(event) => {
                match &event {
                    Event::ReadRepaired { replicas, .. } => self.counters.read_repairs += *replicas as u64,
                    Event::HandedOff { records } => self.counters.handoffs += records,
                    _ => {}
                }
                drop(self.events.send(event));
            }
        }
    }

    fn reply(&mut self, tag: Tag, outcome: Outcome) {
        let Some(waiting) = self.waiting.remove(&tag) else { return };
        let now = self.clock.now().mono;
        let answer = self.answer(outcome, &waiting.reply);
        self.counters.count(waiting.kind, &answer.outcome);
        let took = now.since(waiting.started);
        self.requests.record(waiting.kind, waiting.mode, &answer.outcome, took);
        self.latencies.record(now, took);
        waiting.reply.send(answer);
    }

    /// An outcome with the room that it takes. A read whose answer finds none is refused, and so is a write whose condition fails:
    /// they have done nothing.
    fn answer(&self, outcome: Outcome, reply: &ReplyTo) -> Answer {
        let bytes = bytes_of(&outcome);
        if bytes == 0 {
            return outcome.into();
        }
        if let ReplyTo::Stream { waiting, .. } = reply
            && waiting.held() > 0
            && waiting.held() + bytes > STREAM_BYTES_MAX
        {
            return Err(RequestError::exhausted(format!(
                "{} bytes of results wait in this stream and there are {bytes} more, the most that a stream holds is \
                 {STREAM_BYTES_MAX}; take results faster, ask for less at a time, and try again",
                waiting.held()
            )))
            .into();
        }
        let share = self.answers.take(bytes);
        if share.is_none() {
            return Err(RequestError::exhausted(format!(
                "{} bytes of answers wait for clients and there are {bytes} more, the most that this node holds is {}; take \
                 answers faster, ask for less at a time, and try again",
                self.answers.held(),
                self.answers.limit()
            )))
            .into();
        }
        Answer { outcome, share }
    }

    fn report(&mut self) -> Report {
        let hot = self.node.hot_stats();
        let copied_bytes = self.node.copied_bytes();
        let (hedges, retired_forgotten) = (self.node.hedged(), self.node.retired_forgotten());
        let counters = Counters {
            hot_hits: hot.hits,
            hot_misses: hot.misses,
            copied_bytes,
            hedges,
            retired_forgotten,
            register_retries: self.node.register_retries(),
            ..self.counters
        };
        Report {
            status: self.node.status(),
            counters,
            requests: self.requests.classes(),
            latency: self.latencies.last(self.clock.now().mono),
            commits: self.commits,
            loop_waits: self.loop_waits,
            large_waiting: self.room.waiting(),
            poisoned: self.poisoned.borrow().clone(),
            receipts: self.node.receipts(),
            transfers: self.node.transfers(),
            residue: self.node.residue(),
        }
    }
}
