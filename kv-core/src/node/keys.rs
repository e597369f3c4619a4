//! Keys with work in progress: loading, the order of operations on one key, and answers that wait for durability.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use super::{Effect, Node, ReadId, meta};
use crate::config::KeyspaceList;
use crate::coordinator::OpId;
use crate::error::StorageError;
use crate::event::Event;
use crate::message::{CallId, Held as HeldRecord, Message, Refusal, Role};
use crate::replica::ExchangeId;
use crate::ring::Layout;
use crate::rule::Rule;
use crate::storage::{Footprint, Hot, PartitionStats, Slice, Space, StorageKey, Stored, Write};
use crate::topology::Receipt;
use crate::types::{Epoch, Incarnation, NodeId, PartitionId, Seq};
use crate::version::Record;

/// One key with work in progress. While a slot exists it is the truth about its key; the store catches up.
#[derive(Debug)]
pub(crate) struct Slot {
    state: State,
    /// What the store will hold for the key once all batches are durable, for the statistics.
    footprint: Option<Footprint>,
    /// Whether the store holds something at this key that could not be read, so that its footprint is unknown.
    damaged: bool,
    /// What waits for the record to be loaded.
    waiting: VecDeque<Task>,
    /// The last batch that changed the key; zero if none is in flight.
    seq: Seq,
    /// Where in the current step's batch the key's write is, if it has one there.
    batched: Option<(Seq, usize)>,
}

#[derive(Debug)]
enum State {
    Loading,
    /// `None`: there is no such record.
    Ready(Option<Arc<Stored>>),
}

/// What a read effect was for.
#[derive(Debug)]
pub(crate) enum ReadFor {
    /// A slot.
    Slot(StorageKey),
    /// A part of a slice.
    Slice { job: ReadId, part: usize },
    /// Hints and lag marks.
    HandOff,
    /// The sweeper's partition.
    Sweep(PartitionId),
    /// The statistics of a partition.
    Leaves(LeavesFor),
    /// This node's own part of a page.
    Exchange(ExchangeId),
    /// A question of another replica.
    Serving(ReadId),
    /// What is to be dropped of a partition that was left.
    Drop(PartitionId),
    /// What a partition holds of a dropped keyspace.
    Purge,
}

/// What the statistics of a partition are read for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum LeavesFor {
    /// To compare them with another replica's.
    Exchange(ExchangeId),
    /// For another replica.
    Serving(ReadId),
    /// For the receipt of a copy.
    Receipt(PartitionId),
    /// To know what is left of a partition.
    Residue(PartitionId),
    /// To know what a partition holds of dropped keyspaces.
    Purge(PartitionId),
}

/// What to do with a key as soon as its record is in memory.
#[derive(Debug)]
pub(crate) enum Task {
    /// A coordinator's own write.
    Write(OpId),
    /// A coordinator's own read.
    ReadForOp(OpId, Role),
    /// A peer's read.
    ReadForPeer { peer: NodeId, call: CallId, digest: bool },
    /// Merge a record.
    Apply { record: Record, applied: Applied },
    /// Turn expired values into tombstones.
    Sweep,
    /// Send the record to the owners that may lack it.
    HandOff { space: Space },
    /// Note that some owner has not confirmed the owned record of this key (a key of the lag space).
    Mark,
    /// Remove a hint that every owner has confirmed, unless it has changed since it was sent.
    RemoveHint { digest: u64 },
    /// Remove the lag mark of an owned record, unless the record has changed since it was sent.
    UnmarkUnchanged { digest: u64 },
    /// Remove a lag mark (a key of the lag space).
    Unmark,
    /// Give the record to another replica that asked for it.
    Fetch { serving: ReadId },
    /// Delete a record of a partition that was left at this epoch.
    Drop { epoch: Epoch },
}

/// Who is told that a record was merged.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Applied {
    /// A peer that replicates at this epoch, in this session.
    Peer { peer: NodeId, call: CallId, epoch: Epoch, session: Option<u64> },
    /// A read that repairs this node's own copy.
    Repair,
    /// A hint for this node itself.
    OwnHint,
    /// An exchange, for its answer to this call.
    Exchange { id: ExchangeId, round: CallId },
    /// Another replica that offers it.
    Offered { serving: ReadId },
}

/// What happens once a batch is durable.
#[derive(Debug)]
pub(crate) enum Held {
    Send {
        to: NodeId,
        message: Message,
    },
    Replicated {
        peer: NodeId,
        call: CallId,
        session: Option<u64>,
        partition: PartitionId,
    },
    Acked {
        op: OpId,
        epoch: Epoch,
    },
    ReadForOp {
        op: OpId,
        role: Role,
        record: Record,
    },
    Merged {
        id: ExchangeId,
        round: CallId,
    },
    Slice {
        job: ReadId,
    },
    Leaves {
        reason: LeavesFor,
        stats: Box<PartitionStats>,
    },
    OwnPage {
        id: ExchangeId,
        slice: Slice,
    },
    Served {
        id: ReadId,
        slice: Slice,
    },
    Fetched {
        serving: ReadId,
        key: StorageKey,
        record: Option<Record>,
    },
    Taken {
        serving: ReadId,
    },
    OwnHint {
        key: StorageKey,
        record: Record,
    },
    Covered(Box<Receipt>),
    Dropped(PartitionId),
    Keyspaces(Box<KeyspaceList>),
    Purged,
    PeerUp {
        node: NodeId,
        incarnation: Incarnation,
    },
    Adopt(Arc<Layout>),
    Synced {
        partition: PartitionId,
        synced: meta::Synced,
    },
    /// The key's slot may be idle.
    Settle(StorageKey),
}

/// What waits for durability, by the batch that it waits for.
#[derive(Debug, Default)]
pub(crate) struct HeldQueue(BTreeMap<Seq, Vec<Held>>);

impl Node {
    /// Runs `task` on `key`: at once if its record is in memory, else when it has been read.
    pub(crate) fn with_key(&mut self, key: StorageKey, task: Task) {
        if self.refuses_dropped(key.partition(), key.keyspace()) {
            let refusal = Refusal::Failed(self.dropped_error(key.keyspace()));
            return self.refuse_task(&key, task, &refusal);
        }
        if let Some(slot) = self.slots.get_mut(&key) {
            if let State::Ready(stored) = &slot.state {
                let stored = stored.clone();
                self.run(&key, stored, task);
            } else if slot.waiting.len() >= self.config.key_waiters_max {
                self.refuse_task(
                    &key,
                    task,
                    &Refusal::Busy(crate::error::RequestError::exhausted(format!(
                        "{} operations wait for this key, the most that a node allows; try again",
                        self.config.key_waiters_max
                    ))),
                );
            } else {
                slot.waiting.push_back(task);
            }
            return;
        }
        if let Some(Hot { stored, footprint }) = self.hot.get(&key) {
            if matches!(task, Task::ReadForOp(..) | Task::ReadForPeer { .. }) {
                // Nothing is in flight on the key and a read changes nothing: it needs no slot.
                self.run(&key, Some(stored), task);
                return;
            }
            self.open(&key, State::Ready(Some(stored.clone())), Some(footprint));
            self.run(&key, Some(stored), task);
            self.settle(&key);
            return;
        }
        let read = ReadId(self.next_id());
        self.reads.insert(read, ReadFor::Slot(key.clone()));
        self.out.push(Effect::Read { read, key: key.clone() });
        self.open(&key, State::Loading, None);
        if let Some(slot) = self.slots.get_mut(&key) {
            slot.waiting.push_back(task);
        }
    }

    fn open(&mut self, key: &StorageKey, state: State, footprint: Option<Footprint>) {
        let slot = Slot { state, footprint, damaged: false, waiting: VecDeque::new(), seq: Seq(0), batched: None };
        self.slots.insert(key.clone(), slot);
    }

    pub(super) fn read_done(&mut self, read: ReadId, result: Result<Option<Bytes>, StorageError>) {
        let Some(ReadFor::Slot(key)) = self.reads.remove(&read) else { return };
        let passing = result.as_ref().is_err_and(StorageError::is_out_of_descriptors);
        let loaded = result.map_err(|error| error.to_string()).and_then(|bytes| {
            let decoded = bytes.map(|bytes| Stored::decode(&bytes).map(|stored| (Arc::new(stored), bytes.len())));
            decoded.transpose().map_err(|error| format!("{key}: {error}"))
        });
        let waiting = self.slots.get_mut(&key).map(|slot| std::mem::take(&mut slot.waiting)).unwrap_or_default();
        match loaded {
            Ok(stored) => {
                if let Some(slot) = self.slots.get_mut(&key) {
                    slot.footprint = stored.as_ref().map(|(stored, len)| footprint(&key, stored, *len));
                    slot.state = State::Ready(stored.map(|(stored, _)| stored));
                }
                for task in waiting {
                    self.with_key(key.clone(), task);
                }
                self.settle(&key);
            }
            Err(reason) => {
                self.slots.remove(&key);
                if passing {
                    let error =
                        crate::error::RequestError::unavailable(format!("{reason}; nothing was done, try again"));
                    for task in waiting {
                        self.refuse_task(&key, task, &Refusal::Busy(error.clone()));
                    }
                    return;
                }
                self.damaged(&key, waiting, reason);
            }
        }
    }

    /// The record cannot be read. Only what replaces it whole may touch it; everything else is refused.
    fn damaged(&mut self, key: &StorageKey, waiting: VecDeque<Task>, reason: String) {
        self.out.push(Effect::Event(Event::Damaged { reason: reason.clone() }));
        let refusal = Refusal::Failed(crate::error::RequestError::new(
            crate::error::Kind::Corrupt,
            format!("this node's copy cannot be read: {reason}"),
        ));
        for task in waiting {
            self.refuse_task(key, task, &refusal);
        }
        self.mend(key);
    }

    /// The other owners' copies of a damaged record are here: they take its place.
    pub(crate) fn mend_with(&mut self, key: &StorageKey, record: Record) {
        if self.slots.contains_key(key) || self.refuses_dropped(key.partition(), key.keyspace()) {
            return;
        }
        self.open(key, State::Ready(None), None);
        if let Some(slot) = self.slots.get_mut(key) {
            slot.damaged = true;
        }
        self.put(key, Some(Stored { own: None, record }));
    }

    /// A task that cannot run because its record cannot be had.
    pub(crate) fn refuse_task(&mut self, key: &StorageKey, task: Task, refusal: &Refusal) {
        let node = self.config.node;
        match task {
            Task::Write(op) => self.finish(op, Err(refusal_error(refusal))),
            Task::ReadForOp(op, role) => self.read_failed(op, node, role, Some(refusal.clone())),
            Task::ReadForPeer { peer, call, .. } => {
                self.send(peer, Message::ReadResult { call, result: Err(refusal.clone()) });
            }
            Task::Apply { applied: Applied::Peer { peer, call, .. }, .. } => {
                self.send(peer, Message::Replicated { call, result: Err(refusal.clone()) });
            }
            Task::Apply { applied: Applied::Exchange { id, round }, .. } => self.exchange_merged(id, round, false),
            Task::Apply { applied: Applied::Offered { serving }, .. } => {
                self.serving_refused(serving, refusal.clone());
            }
            Task::Fetch { serving } => self.fetched(serving, key, None),
            Task::Drop { .. } => self.drop_made(key.partition(), None),
            Task::HandOff { .. } | Task::Apply { applied: Applied::OwnHint, .. } => self.handoff_skipped(),
            Task::Apply { applied: Applied::Repair, .. }
            | Task::Sweep
            | Task::Mark
            | Task::RemoveHint { .. }
            | Task::UnmarkUnchanged { .. }
            | Task::Unmark => {}
        }
    }

    fn run(&mut self, key: &StorageKey, stored: Option<Arc<Stored>>, task: Task) {
        match task {
            Task::Write(op) => self.coordinate_write(op, key, stored.as_deref()),
            Task::ReadForOp(op, role) => {
                let record = stored.map(|stored| stored.record.clone()).unwrap_or_default();
                self.hold_key(key, Held::ReadForOp { op, role, record });
            }
            Task::ReadForPeer { peer, call, digest } => {
                let held = match (&stored, digest) {
                    (Some(stored), false) => HeldRecord::Full(stored.record.clone()),
                    (None, false) => HeldRecord::Full(Record::default()),
                    (Some(stored), true) => HeldRecord::Digest(stored.record.digest()),
                    (None, true) => HeldRecord::Digest(Record::default().digest()),
                };
                self.hold_key(key, Held::Send { to: peer, message: Message::ReadResult { call, result: Ok(held) } });
            }
            Task::Apply { record, applied } => self.apply(key, stored.as_deref(), record, applied),
            Task::Sweep => self.sweep_record(key, stored.as_deref()),
            Task::HandOff { space } => self.hand_off(key, space, stored.as_deref()),
            Task::Mark => {
                if stored.is_none() {
                    self.put(key, Some(Stored::default()));
                }
            }
            Task::RemoveHint { digest } => {
                if stored.is_some_and(|stored| stored.record.digest() == digest) {
                    self.put(key, None);
                }
            }
            Task::UnmarkUnchanged { digest } => {
                if stored.is_none_or(|stored| stored.record.digest() == digest) {
                    self.with_key(key.in_space(Space::Lag), Task::Unmark);
                }
            }
            Task::Unmark => {
                if stored.is_some() {
                    self.put(key, None);
                }
            }
            Task::Fetch { serving } => {
                let record = stored.map(|stored| stored.record.clone());
                self.hold_key(key, Held::Fetched { serving, key: key.clone(), record });
            }
            Task::Drop { epoch } => {
                let bytes = stored.map(|stored| u64::from(footprint(key, &stored, stored.encode().len()).bytes));
                let bytes = bytes.filter(|_| self.may_drop(key.partition(), epoch));
                if bytes.is_some() {
                    self.put(key, None);
                }
                self.drop_made(key.partition(), bytes);
            }
        }
    }

    /// Writes the record of a key whose slot is ready; returns the batch in which it becomes durable.
    pub(crate) fn put(&mut self, key: &StorageKey, stored: Option<Stored>) -> Seq {
        let seq = self.batch_seq();
        let Some(slot) = self.slots.get_mut(key) else { return seq };
        let value = stored.as_ref().map(Stored::encode);
        let after = match (&stored, &value) {
            (Some(stored), Some(value)) => Some(footprint(key, stored, value.len())),
            _ => None,
        };
        let before = std::mem::replace(&mut slot.footprint, after);
        slot.state = State::Ready(stored.map(Arc::new));
        slot.seq = seq;
        match slot.batched {
            // A batch holds at most one write of a key: the later one takes the place of the earlier.
            Some((batch, index)) if batch == seq => {
                if let Some(Write::Record { value: old_value, after: old_after, .. }) = self.batch.writes.get_mut(index)
                {
                    *old_value = value;
                    *old_after = after;
                }
            }
            _ => {
                slot.batched = Some((seq, self.batch.writes.len()));
                let damaged = std::mem::take(&mut slot.damaged);
                self.batch.writes.push(Write::Record { key: key.clone(), value, before, after, damaged });
            }
        }
        self.recount(key, before, after);
        self.hold(seq, Held::Settle(key.clone()));
        if key.space() != Space::Owned {
            self.arm_handoff();
        }
        seq
    }

    /// Keeps the numbers of hints and lag marks right when what stands at a key changes.
    fn recount(&mut self, key: &StorageKey, before: Option<Footprint>, after: Option<Footprint>) {
        let bytes = |footprint: Option<Footprint>| footprint.map_or(0, |footprint| u64::from(footprint.bytes));
        let (count, weight) = match key.space() {
            Space::Owned => return,
            Space::Hint => (&mut self.hints, Some(&mut self.hint_bytes)),
            Space::Lag => (&mut self.lagging, None),
        };
        *count = (*count + u64::from(after.is_some())).saturating_sub(u64::from(before.is_some()));
        if let Some(weight) = weight {
            *weight = (*weight + bytes(after)).saturating_sub(bytes(before));
        }
    }

    /// Deletes what a slice has shown at a key that nobody writes or waits for any more. False: somebody waits for it.
    pub(crate) fn delete_read(&mut self, key: StorageKey, value: &Bytes) -> bool {
        if self.slots.contains_key(&key) {
            return false;
        }
        self.hot.remove(&key);
        let before = Footprint::of_entry(&key, value).ok();
        self.recount(&key, before, None);
        let damaged = before.is_none();
        self.batch.writes.push(Write::Record { key, value: None, before, after: None, damaged });
        true
    }

    pub(crate) fn persist_meta(&mut self, name: Bytes, value: Bytes) -> Seq {
        self.write_meta(name, Some(value))
    }

    fn write_meta(&mut self, name: Bytes, value: Option<Bytes>) -> Seq {
        let write = Write::Meta { name: name.clone(), value };
        let same = |write: &Write| matches!(write, Write::Meta { name: other, .. } if *other == name);
        match self.batch.writes.iter_mut().find(|write| same(write)) {
            Some(earlier) => *earlier = write,
            None => self.batch.writes.push(write),
        }
        self.batch_seq()
    }

    pub(crate) fn forget_meta(&mut self, name: Bytes) {
        self.write_meta(name, None);
    }

    /// The batch of the current step.
    fn batch_seq(&self) -> Seq {
        Seq(self.seq.0 + 1)
    }

    /// The last batch that anything seen so far can depend on.
    pub(crate) fn issued(&self) -> Seq {
        if self.batch.writes.is_empty() { self.seq } else { self.batch_seq() }
    }

    pub(super) fn flush(&mut self) {
        if !self.batch.writes.is_empty() {
            self.seq = self.batch_seq();
            self.out.push(Effect::Persist { seq: self.seq, batch: std::mem::take(&mut self.batch) });
        }
    }

    /// Does `held` once everything that is known of `key` is durable: at once if it is.
    pub(crate) fn hold_key(&mut self, key: &StorageKey, held: Held) {
        let seq = self.slots.get(key).map_or(Seq(0), |slot| slot.seq);
        self.hold(seq, held);
    }

    /// Does `held` once the batch `seq` is durable (rule D1): at once if it is.
    pub(crate) fn hold(&mut self, seq: Seq, held: Held) {
        let settles = matches!(held, Held::Settle(_));
        if seq <= self.durable || (!settles && !self.rules.keep(Rule::SyncBeforeReply)) {
            self.release(held);
        } else {
            self.held.0.entry(seq).or_default().push(held);
        }
    }

    pub(super) fn persisted(&mut self, seq: Seq) {
        self.durable = self.durable.max(seq.min(self.seq));
        while let Some(entry) = self.held.0.first_entry() {
            if *entry.key() > self.durable {
                break;
            }
            for held in entry.remove() {
                self.release(held);
            }
        }
    }

    fn release(&mut self, held: Held) {
        match held {
            Held::Send { to, message } => self.send(to, message),
            Held::Replicated { peer, call, session, partition } => {
                self.replica_durable(peer, call, session, partition);
            }
            Held::Acked { op, epoch } => self.write_durable(op, epoch),
            Held::ReadForOp { op, role, record } => {
                self.read_answered(op, self.config.node, role, HeldRecord::Full(record));
            }
            Held::Merged { id, round } => self.exchange_merged(id, round, true),
            Held::Slice { job } => self.slice_durable(job),
            Held::Leaves { reason, stats } => self.leaves_durable(reason, &stats),
            Held::OwnPage { id, slice } => self.own_page_durable(id, slice),
            Held::Served { id, slice } => self.served_durable(id, slice),
            Held::Fetched { serving, key, record } => self.fetched(serving, &key, record),
            Held::Taken { serving } => self.taken(serving),
            Held::OwnHint { key, record } => {
                let own = self.entry(key.partition()).map(|entry| entry.changed);
                self.hand_off_to_others(&key, Space::Hint, record, own);
            }
            Held::Covered(receipt) => self.receipt_durable(*receipt),
            Held::Dropped(partition) => self.drop_durable(partition),
            Held::Keyspaces(list) => self.keyspaces_durable(*list),
            Held::Purged => self.purge_durable(),
            Held::PeerUp { node, incarnation } => self.peer_known(node, incarnation),
            Held::Adopt(layout) => self.adopt(layout),
            Held::Synced { partition, synced } => self.synced_durable(partition, synced),
            Held::Settle(key) => self.settle(&key),
        }
    }

    /// Closes the slot of a key with nothing in progress; its record moves to the hot tier.
    fn settle(&mut self, key: &StorageKey) {
        let Some(slot) = self.slots.get(key) else { return };
        let State::Ready(stored) = &slot.state else { return };
        if !slot.waiting.is_empty() || slot.seq > self.durable {
            return;
        }
        match (stored, slot.footprint) {
            (Some(stored), Some(footprint)) => {
                self.hot.insert(key.clone(), Hot { stored: stored.clone(), footprint });
            }
            _ => self.hot.remove(key),
        }
        self.slots.remove(key);
    }
}

fn footprint(key: &StorageKey, stored: &Stored, encoded_len: usize) -> Footprint {
    match key.space() {
        Space::Owned | Space::Hint => stored.footprint(key, encoded_len),
        Space::Lag => Footprint::of_mark(key, encoded_len),
    }
}

/// What a refusal means for a client.
pub(crate) fn refusal_error(refusal: &Refusal) -> crate::error::RequestError {
    use crate::error::{Kind, RequestError};
    match refusal {
        Refusal::Stale { .. } => RequestError::new(Kind::StaleEpoch, refusal.to_string()),
        Refusal::Behind { .. } | Refusal::NotSynced | Refusal::NotOwner | Refusal::Late => {
            RequestError::unavailable(refusal.to_string())
        }
        Refusal::Busy(error) | Refusal::Failed(error) => error.clone(),
    }
}
