//! `Node::step`: the single entry point of the core. Core decides, shell acts.

mod adopt;
pub(crate) mod keys;
pub(crate) mod meta;
pub(crate) mod peers;
mod stall;
pub(crate) mod timers;
pub(crate) mod weight;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::config::{ClusterConfig, KeyspaceList, NodeConfig};
use crate::coordinator::{HedgeBudget, Requests};
use crate::error::{Kind, RequestError, StorageError};
use crate::event::Event;
use crate::map::{Map, map};
use crate::message::{Message, Outcome, Request};
use crate::replica::{
    Copy, Exchange, ExchangeId, HandoffPass, Leftovers, Progress, Purge, Repairs, Replication, ReplicationId, Serving,
    SliceJob, Sweeper, Throttle, Turns,
};
use crate::ring::Layout;
use crate::rule::Rules;
use crate::storage::{Batch, HotStats, HotTier, PartitionStats, Reader, Slice, SliceRequest, Space, Stats, StorageKey};
use crate::topology::{Receipt, TransferSettings};
use crate::types::{Epoch, Incarnation, Monotonic, NodeId, Now, PartitionId, Seq, StoreId};
use crate::version::Clock;
use keys::{HeldQueue, ReadFor, Slot};
use peers::Peer;
use timers::{Timer, TimerKey, Timers};

pub use crate::replica::{RepairFigures, left_of_dropped};

/// The shell's name for a client request, returned with the answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(pub u64);

/// Numbers the reads that the core asks of the shell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReadId(pub u64);

/// What happens to a node.
#[derive(Debug)]
pub enum Input {
    /// A client asks.
    Request {
        /// Names the answer.
        tag: Tag,
        /// What is asked.
        request: Request,
        /// When the client stops waiting; `None`: after the configured time.
        deadline: Option<Monotonic>,
    },
    /// A message of the current session with a peer.
    Message {
        /// The peer.
        from: NodeId,
        /// What it says.
        message: Message,
    },
    /// A session with a peer begins; its handshake was accepted.
    PeerUp {
        /// The peer.
        node: NodeId,
        /// Its store and boot.
        incarnation: Incarnation,
    },
    /// Something has come from a peer that is not for the core, such as a heartbeat.
    Heard {
        /// The peer.
        from: NodeId,
    },
    /// The failure detector has heard nothing of a peer for longer than usual. Its session stays open.
    PeerSilent {
        /// The peer.
        node: NodeId,
    },
    /// The failure detector gives a peer up. Its session is closed.
    PeerDown {
        /// The peer.
        node: NodeId,
    },
    /// An `Effect::Read` was carried out.
    ReadDone {
        /// Which read.
        read: ReadId,
        /// The encoded record.
        result: Result<Option<Bytes>, StorageError>,
    },
    /// An `Effect::Slice` was carried out.
    SliceDone {
        /// Which read.
        read: ReadId,
        /// The entries.
        result: Result<Slice, StorageError>,
    },
    /// An `Effect::Leaves` was carried out.
    LeavesDone {
        /// Which read.
        read: ReadId,
        /// The statistics of the partition as of the last commit or later; the default if it has no entries.
        result: Result<PartitionStats, StorageError>,
    },
    /// Every batch up to and with this one is durable.
    Persisted {
        /// The last durable batch.
        seq: Seq,
    },
    /// A commit failed: the store is poisoned.
    PersistFailed {
        /// Why.
        error: StorageError,
    },
    /// The control plane has committed a layout. Older ones than the current are ignored.
    Layout(Arc<Layout>),
    /// The control plane has committed the keyspaces. Older lists than the current one are ignored.
    Keyspaces(KeyspaceList),
    /// An `Effect::Reclaim` was carried out, as far as possible.
    Reclaimed,
    /// How fast partitions may be copied from now on. Until the first, the defaults hold.
    Transfers(TransferSettings),
    /// An operator wants the copies of these partitions that wait for a source to begin anew.
    Retry(Vec<PartitionId>),
    /// An operator wants these partitions compared with their other owners now, as far as this node holds all of them.
    Repair(Vec<PartitionId>),
    /// The moment of the last `Effect::WakeAt` has come.
    Wake,
}

/// What the shell does for the core, in order.
#[derive(Debug)]
pub enum Effect {
    /// Send a message on the session with a peer; dropped if there is none.
    Send {
        /// The peer.
        to: NodeId,
        /// What to say.
        message: Message,
    },
    /// Answer a client.
    Reply {
        /// Which request.
        tag: Tag,
        /// The answer.
        outcome: Outcome,
    },
    /// Read one record; answered by `Input::ReadDone`.
    Read {
        /// Names the answer.
        read: ReadId,
        /// Which record.
        key: StorageKey,
    },
    /// Read a slice beside the loop; answered by `Input::SliceDone`.
    Slice {
        /// Names the answer.
        read: ReadId,
        /// Which range.
        request: SliceRequest,
    },
    /// Read the statistics of a partition, as of the last commit or later; answered by `Input::LeavesDone`.
    Leaves {
        /// Names the answer.
        read: ReadId,
        /// The partition.
        partition: PartitionId,
    },
    /// Commit a batch behind all earlier ones; answered by `Input::Persisted`.
    Persist {
        /// Its position.
        seq: Seq,
        /// The writes.
        batch: Batch,
    },
    /// So many bytes of records were deleted at once: have the storage engine give their space back to the device, beside
    /// the loop; answered by `Input::Reclaimed`.
    Reclaim {
        /// The bytes.
        bytes: u64,
    },
    /// Give `Input::Wake` at this moment. A later effect of this kind replaces an earlier one.
    WakeAt(Monotonic),
    /// Something worth telling an operator.
    Event(Event),
}

/// The effects of one or more steps, in order.
pub type Effects = Vec<Effect>;

/// What a node is busy with: zeros mean that nothing waits to be settled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The epoch of the layout on which the node acts; 0 before the first.
    pub epoch: Epoch,
    /// Requests without an answer.
    pub requests: usize,
    /// Bytes of keys and values of the writes among them.
    pub request_bytes: usize,
    /// Bytes that replicas have answered to the reads among them.
    pub answer_bytes: usize,
    /// Bytes of records that a peer has been sent and has not answered; those of the peer with most.
    pub peer_bytes: usize,
    /// Writes that some replica has not confirmed.
    pub replications: usize,
    /// Records held for owners that were down.
    pub hints: u64,
    /// Bytes of these.
    pub hint_bytes: u64,
    /// Keys of owned records that some other owner has not confirmed.
    pub lagging: u64,
    /// Owned partitions that are not complete: the store was lost and they are being refilled.
    pub unsynced: Vec<PartitionId>,
    /// Partitions that migrate to this node and are not covered yet.
    pub receiving: usize,
    /// Partitions that this node has left and may still hold records of.
    pub leaving: usize,
    /// Comparisons with other owners that were asked for by hand, or are owed since copies may have become unequal, and are
    /// not done. Those with owners that are down are left out.
    pub repairing: usize,
    /// What became of comparisons asked for by hand.
    pub repairs: RepairFigures,
    /// Partitions that may hold records of dropped keyspaces, which are being removed.
    pub dropping: usize,
    /// Whether the storage engine gives back the space of what was removed.
    pub reclaiming: bool,
    /// Batches that are not durable.
    pub unsynced_batches: u64,
    /// Keys with work in progress.
    pub keys_busy: usize,
    /// Whether the store failed.
    pub poisoned: bool,
}

/// The state machine of one loop: a set of partitions of one node.
#[derive(Debug)]
pub struct Node {
    pub(crate) config: NodeConfig,
    pub(crate) cluster: ClusterConfig,
    pub(crate) incarnation: Incarnation,
    pub(crate) rules: Rules,

    /// The time of the current step.
    pub(crate) now: Now,
    /// The effects of the current step.
    pub(crate) out: Effects,
    pub(crate) clock: Clock,
    pub(crate) timers: Timers,

    /// The layout on which the node acts: durable here.
    pub(crate) layout: Option<Arc<Layout>>,
    /// The newest layout given, durable or not.
    pub(crate) newest: Epoch,
    pub(crate) given: Option<Arc<Layout>>,
    pub(crate) keyspaces: KeyspaceList,
    /// The store, if it was there when the cluster was formed.
    pub(crate) original: Option<StoreId>,
    pub(crate) synced: BTreeMap<PartitionId, meta::Synced>,
    pub(crate) peers: BTreeMap<NodeId, Peer>,

    pub(crate) actors_drawn: u64,
    pub(crate) calls_made: u64,
    pub(crate) ids_made: u64,

    /// The batch of the current step, and the position that it will have.
    pub(crate) batch: Batch,
    pub(crate) seq: Seq,
    pub(crate) durable: Seq,
    pub(crate) held: HeldQueue,
    pub(crate) poisoned: Option<RequestError>,

    /// Keys with work in progress. Every key with a write that is not durable is among them.
    pub(crate) slots: Map<StorageKey, Slot>,
    pub(crate) hot: HotTier,
    pub(crate) reads: Map<ReadId, ReadFor>,

    pub(crate) ops: Requests,
    pub(crate) hedges: HedgeBudget,
    pub(crate) replications: BTreeMap<ReplicationId, Replication>,
    pub(crate) slice_jobs: BTreeMap<ReadId, SliceJob>,
    pub(crate) copies: BTreeMap<PartitionId, Copy>,
    /// How far the copies of this and of earlier runs are; durable.
    pub(crate) progress: BTreeMap<PartitionId, Progress>,
    /// The receipts of copies; durable.
    pub(crate) receipts: BTreeMap<PartitionId, Receipt>,
    pub(crate) exchanges: BTreeMap<ExchangeId, Exchange>,
    /// Questions of other replicas that are being answered.
    pub(crate) serving: BTreeMap<ReadId, Serving>,
    pub(crate) leftovers: Leftovers,
    pub(crate) repairs: Repairs,
    pub(crate) transfers: TransferSettings,
    pub(crate) throttle: Throttle,
    pub(crate) turns: Turns,
    /// Bytes that came in for copies and refills since the loop began.
    pub(crate) copied_bytes: u64,
    pub(crate) handoff: HandoffPass,
    pub(crate) sweeper: Sweeper,
    pub(crate) purge: Purge,

    /// Entries in the hint and lag spaces, batches in flight included.
    pub(crate) hints: u64,
    pub(crate) hint_bytes: u64,
    pub(crate) lagging: u64,
}

impl Node {
    /// Builds the loop from what the store holds. `stats` are those of the store as opened.
    ///
    /// # Errors
    /// If the node's own entries cannot be read.
    pub fn recover(
        config: NodeConfig,
        cluster: ClusterConfig,
        incarnation: Incarnation,
        reader: &impl Reader,
        stats: &Stats,
    ) -> Result<Self, StorageError> {
        let keyspaces: KeyspaceList = match reader.meta(meta::KEYSPACES)? {
            Some(value) => meta::decode(meta::KEYSPACES, &value)?,
            None => KeyspaceList::initial(),
        };
        let unreclaimed = reader.meta(meta::UNRECLAIMED)?;
        let unreclaimed = unreclaimed.map(|value| meta::decode(meta::UNRECLAIMED, &value)).transpose()?.unwrap_or(0);
        let layout: Option<Layout> =
            reader.meta(meta::LAYOUT)?.map(|value| meta::decode(meta::LAYOUT, &value)).transpose()?;
        let original = reader.meta(meta::ORIGINAL)?.map(|value| meta::decode(meta::ORIGINAL, &value)).transpose()?;
        let mut peers = BTreeMap::new();
        for (name, value) in reader.metas(meta::PEER)? {
            if let Some(id) = meta::id(&name, meta::PEER) {
                let peer = Peer { seen: Some(meta::decode(&name, &value)?), ..Peer::default() };
                peers.insert(NodeId(u64::from_be_bytes(id)), peer);
            }
        }
        let mut synced = BTreeMap::new();
        for (name, value) in reader.metas(meta::SYNCED)? {
            if let Some(id) = meta::id(&name, meta::SYNCED) {
                synced.insert(PartitionId(u16::from_be_bytes(id)), meta::decode(&name, &value)?);
            }
        }
        let (mut progress, mut receipts) = (BTreeMap::new(), BTreeMap::new());
        for (name, value) in reader.metas(meta::PROGRESS)? {
            if let Some(id) = meta::id(&name, meta::PROGRESS) {
                progress.insert(PartitionId(u16::from_be_bytes(id)), meta::decode(&name, &value)?);
            }
        }
        for (name, value) in reader.metas(meta::RECEIPT)? {
            if let Some(id) = meta::id(&name, meta::RECEIPT) {
                receipts.insert(PartitionId(u16::from_be_bytes(id)), meta::decode(&name, &value)?);
            }
        }
        let mut leftovers = Leftovers::default();
        let stored = stats.partitions().filter(|(_, stats)| stats.total(Space::Owned).records > 0);
        leftovers.stocked.extend(stored.map(|(partition, _)| partition).filter(|&id| config.partitions.contains(id)));
        let (seed, serves) = (config.map_seed, config.partitions);
        let mut node = Self {
            hot: HotTier::new(config.hot_bytes_max, seed),
            hints: stats.total(Space::Hint).records,
            hint_bytes: stats.total(Space::Hint).bytes,
            lagging: stats.total(Space::Lag).records,
            config,
            cluster,
            incarnation,
            rules: Rules::default(),
            now: Now::default(),
            out: Effects::new(),
            clock: Clock::default(),
            timers: Timers::default(),
            newest: layout.as_ref().map_or(Epoch(0), |layout| layout.epoch),
            layout: layout.map(Arc::new),
            given: None,
            purge: Purge::recover(&keyspaces, serves, stats, unreclaimed),
            keyspaces,
            original,
            synced,
            peers,
            actors_drawn: 0,
            calls_made: 0,
            ids_made: 0,
            batch: Batch::default(),
            seq: Seq(0),
            durable: Seq(0),
            held: HeldQueue::default(),
            poisoned: None,
            slots: map(seed),
            reads: map(seed),
            ops: Requests::default(),
            hedges: HedgeBudget::default(),
            replications: BTreeMap::new(),
            slice_jobs: BTreeMap::new(),
            copies: BTreeMap::new(),
            progress,
            receipts,
            exchanges: BTreeMap::new(),
            serving: BTreeMap::new(),
            leftovers,
            repairs: Repairs::default(),
            transfers: TransferSettings::default(),
            throttle: Throttle::default(),
            turns: Turns::default(),
            copied_bytes: 0,
            handoff: HandoffPass::default(),
            sweeper: Sweeper::default(),
        };
        // Whatever the last run left to do is looked for at the first step.
        node.arm(Monotonic(0), Timer::Handoff);
        node.arm(Monotonic(0), Timer::Sweep);
        node.arm(Monotonic(0), Timer::Repair);
        node.resume_purge();
        node.restart_copies(&|_| false);
        node.restart_repairs(&|_| true);
        node.plan_handovers();
        Ok(node)
    }

    /// Takes one input and adds what the shell must do to `effects`.
    pub fn step(&mut self, now: Now, input: Input, effects: &mut Effects) {
        self.now = now;
        // What the recovery left to do comes first.
        effects.append(&mut self.out);
        std::mem::swap(&mut self.out, effects);
        self.handle(input);
        while let Some(timer) = self.timers.due(now.mono) {
            self.fire(timer);
        }
        self.flush();
        debug_assert!(self.timers.len() <= self.timers_max(), "timers without an end: {:?}", self.timers);
        if let Some(at) = self.timers.announce(now.mono) {
            self.out.push(Effect::WakeAt(at));
        }
        std::mem::swap(&mut self.out, effects);
    }

    /// What the node is busy with.
    #[must_use]
    pub fn status(&self) -> Status {
        let unsynced = self.layout.as_ref().map_or_else(Vec::new, |layout| {
            let ids = layout.partition_ids();
            ids.filter(|&partition| self.owns(partition) && !self.holds(partition)).collect()
        });
        Status {
            epoch: self.layout.as_ref().map_or(Epoch(0), |layout| layout.epoch),
            requests: self.ops.len(),
            request_bytes: self.ops.request_bytes(),
            answer_bytes: self.ops.answer_bytes(),
            peer_bytes: self.peers.values().map(|peer| peer.calls.bytes()).max().unwrap_or(0),
            replications: self.replications.len(),
            hints: self.hints,
            hint_bytes: self.hint_bytes,
            lagging: self.lagging,
            unsynced,
            receiving: self.receiving(),
            leaving: self.leaving(),
            repairing: self.repairing(),
            repairs: self.repair_figures(),
            dropping: self.purge.partitions(),
            reclaiming: self.purge.is_reclaiming(),
            unsynced_batches: self.seq.0 - self.durable.0,
            keys_busy: self.slots.len(),
            poisoned: self.poisoned.is_some(),
        }
    }

    /// The highest incarnation seen of `peer`, for the handshake.
    #[must_use]
    pub fn seen(&self, peer: NodeId) -> Option<Incarnation> {
        self.peers.get(&peer)?.seen.as_ref().map(|seen| seen.current)
    }

    /// The same, once the peer has shown its store: a store that another one has replaced counts as rolled back.
    #[must_use]
    pub fn seen_against(&self, peer: NodeId, store: StoreId) -> Option<Incarnation> {
        self.peers.get(&peer)?.seen.as_ref().map(|seen| seen.against(store))
    }

    /// How well the hot tier serves.
    #[must_use]
    pub fn hot_stats(&self) -> HotStats {
        self.hot.stats()
    }

    /// Bytes of keys and records that came in for copies and refills of partitions since the loop began.
    #[must_use]
    pub fn copied_bytes(&self) -> u64 {
        self.copied_bytes
    }

    /// Forwarded requests that were sent to another owner as well since the loop began.
    #[must_use]
    pub fn hedged(&self) -> u64 {
        self.hedges.spent
    }

    /// The layout on which the node acts.
    #[must_use]
    pub fn layout(&self) -> Option<&Arc<Layout>> {
        self.layout.as_ref()
    }

    /// Switches a protocol rule off.
    #[cfg(feature = "mutation")]
    pub fn break_rule(&mut self, rule: crate::rule::Rule) {
        self.rules.break_rule(rule);
        if rule == crate::rule::Rule::ResumePurge {
            self.forget_purge();
        }
        self.plan_copies();
    }

    fn handle(&mut self, input: Input) {
        if let Some(error) = &self.poisoned {
            if let Input::Request { tag, .. } = input {
                self.out.push(Effect::Reply { tag, outcome: Err(error.clone()) });
            }
            return;
        }
        match input {
            Input::Request { tag, request, deadline } => self.client_request(tag, request, deadline),
            Input::Message { from, message } => self.message(from, message),
            Input::PeerUp { node, incarnation } => self.peer_up(node, incarnation),
            Input::PeerDown { node } => self.peer_down(node),
            Input::Heard { from } => self.note_heard(from),
            Input::PeerSilent { node } => self.peer_silent(node),
            Input::ReadDone { read, result } => self.read_done(read, result),
            Input::SliceDone { read, result } => self.slice_done(read, result),
            Input::LeavesDone { read, result } => self.leaves_done(read, result),
            Input::Persisted { seq } => self.persisted(seq),
            Input::PersistFailed { error } => self.poison(&error),
            Input::Layout(layout) => self.layout_given(layout),
            Input::Keyspaces(keyspaces) => self.keyspaces_given(keyspaces),
            Input::Reclaimed => self.reclaimed(),
            Input::Transfers(settings) => self.transfers_given(settings),
            Input::Retry(partitions) => self.retry_copies(&partitions),
            Input::Repair(partitions) => self.repair_by_hand(&partitions),
            Input::Wake => {}
        }
    }

    fn fire(&mut self, timer: Timer) {
        match timer {
            Timer::Deadline(op) => self.deadline_passed(op),
            Timer::Hedge(op) => self.hedge(op),
            Timer::Retry(replication) => self.retry(replication),
            Timer::Watch(node) => self.watch_peer(node),
            Timer::Handoff => self.handoff_pass(),
            Timer::Sweep => self.sweep_pass(),
            Timer::Purge => self.purge_step(),
            Timer::Copy(partition) => self.copy_step(partition),
            Timer::Exchange(exchange) => self.exchange_step(exchange),
            Timer::Turns => self.take_turns(),
            Timer::HandOver => self.handover_pass(),
            Timer::Repair => self.repair_turn(),
            Timer::Owed => self.owed_again(),
            Timer::GivenUp => self.forget_given_up(),
        }
    }

    /// A commit failed: what reached the disk is unknown, so nothing is answered from here any more.
    fn poison(&mut self, error: &StorageError) {
        let reason = error.to_string();
        let stopped = RequestError::new(Kind::Poisoned, format!("the node has stopped serving: {reason}"));
        for op in self.ops.keys().copied().collect::<Vec<_>>() {
            let outcome = if self.ops[&op].may_take_effect() {
                RequestError::new(Kind::Unknown, format!("the outcome is unknown: {reason}"))
            } else {
                stopped.clone()
            };
            self.finish(op, Err(outcome));
        }
        self.batch.writes.clear();
        self.poisoned = Some(stopped);
        self.out.push(Effect::Event(Event::Poisoned { reason }));
    }

    /// Timers that what is under way may have set: whatever waits has one, a request two, and each peer may be watched.
    fn timers_max(&self) -> usize {
        let partitions = self.layout.as_ref().map_or(0, |layout| layout.partitions.len());
        8 + partitions + self.peers.len() + 2 * self.ops.len() + self.replications.len() + self.exchanges.len()
    }

    /// Sets a timer of which there is one at most; the earliest moment counts.
    pub(crate) fn arm(&mut self, at: Monotonic, timer: Timer) {
        self.timers.arm(at, timer);
    }

    pub(crate) fn set_timer(&mut self, at: Monotonic, timer: Timer) -> TimerKey {
        self.timers.set(at, timer)
    }

    /// A number that this incarnation has not used for an operation, a replication or a read.
    pub(crate) fn next_id(&mut self) -> u64 {
        self.ids_made += 1;
        self.ids_made
    }
}
