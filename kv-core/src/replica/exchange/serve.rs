//! Bringing one partition into line with one other replica: the answering side.
//!
//! Every answer is given at the epoch of the question, by a node that acts on that entry: a source is fenced by it, since
//! from then on it confirms nothing at an earlier epoch (rules E2 and M1). What an answer shows is durable.

use bytes::Bytes;

use super::{position, storage_key};
use crate::error::{Kind, RequestError, StorageError};
use crate::event::Event;
use crate::message::{Answer, CallId, DigestEntry, Errand, Keyed, LeafSet, Message, Position, Question, Refusal, Tree};
use crate::node::keys::{Applied, Held, LeavesFor, ReadFor, Task};
use crate::node::{Effect, Node, ReadId};
use crate::rule::Rule;
use crate::storage::{PartitionStats, Slice, Space, StorageKey, Stored};
use crate::types::{Epoch, NodeId, PartitionId};
use crate::version::Record;

/// Questions of other replicas that are answered at once: each holds what it reads.
const SERVING_MAX: usize = 256;

/// A question of another replica that is being answered.
#[derive(Debug)]
pub(crate) struct Serving {
    peer: NodeId,
    call: CallId,
    partition: PartitionId,
    epoch: Epoch,
    errand: Errand,
    kind: Kinds,
}

#[derive(Debug)]
enum Kinds {
    /// Unless the root is this one.
    Tree {
        unless: Option<u64>,
    },
    Records,
    Digests(LeafSet),
    /// Keys that are not read yet, and what was found.
    Fetch {
        left: usize,
        records: Vec<Keyed>,
    },
    /// Records that are not durable yet.
    Offer {
        left: usize,
    },
}

impl Node {
    /// Another replica asks.
    pub(crate) fn serve_exchange(
        &mut self,
        peer: NodeId,
        call: CallId,
        (partition, epoch, errand): (PartitionId, Epoch, Errand),
        question: Question,
    ) {
        if let Err(refusal) = self.may_serve(partition, epoch, errand).and_then(|()| self.has_room()) {
            return self.send(peer, Message::ExchangeResult { call, result: Err(refusal) });
        }
        let id = ReadId(self.next_id());
        let serving = |kind| Serving { peer, call, partition, epoch, errand, kind };
        match question {
            Question::Leaves { unless } => {
                self.serving.insert(id, serving(Kinds::Tree { unless }));
                self.read_leaves(partition, LeavesFor::Serving(id));
            }
            Question::Records { after, bytes_max } => {
                self.serving.insert(id, serving(Kinds::Records));
                let bytes_max = usize::try_from(bytes_max).unwrap_or(usize::MAX).min(self.config.copy_bytes_max);
                self.read_slice_for(id, partition, after.as_ref(), bytes_max);
            }
            Question::Digests { leaves, after } => {
                self.serving.insert(id, serving(Kinds::Digests(leaves)));
                self.read_slice_for(id, partition, after.as_ref(), self.config.slice_bytes_max);
            }
            Question::Fetch { keys } => {
                let left = keys.len();
                self.serving.insert(id, serving(Kinds::Fetch { left, records: Vec::new() }));
                for key in keys {
                    self.with_key(storage_key(partition, &key), Task::Fetch { serving: id });
                }
                self.serve_if_complete(id);
            }
            Question::Offer { mut records } => {
                // Nobody has to hold what belongs to a dropped keyspace.
                records.retain(|(keyspace, ..)| !self.is_dropped(*keyspace));
                let left = records.len();
                self.serving.insert(id, serving(Kinds::Offer { left }));
                for (keyspace, key, record) in records {
                    if let Err(refusal) = self.may_take(partition, keyspace, &key, &record) {
                        return self.serving_refused(id, refusal);
                    }
                    let key = storage_key(partition, &(keyspace, key));
                    self.with_key(key, Task::Apply { record, applied: Applied::Offered { serving: id } });
                }
                self.serve_if_complete(id);
            }
        }
    }

    /// Whether this node may answer about a partition at an epoch (invariant 6).
    fn may_serve(&self, partition: PartitionId, epoch: Epoch, errand: Errand) -> Result<(), Refusal> {
        match self.fence(partition, epoch) {
            Err(Refusal::Behind { .. }) if !self.rules.keep(Rule::FencedSource) => {}
            fenced => fenced?,
        }
        if !self.owns(partition) {
            return Err(Refusal::NotOwner);
        }
        let complete = match errand {
            // A node that is being refilled itself gives what it has: the asker merges all that survives.
            Errand::Refill => true,
            Errand::HandOver => self.holds(partition),
            Errand::Copy | Errand::Repair => self.is_synced(partition),
        };
        if complete { Ok(()) } else { Err(Refusal::NotSynced) }
    }

    fn has_room(&self) -> Result<(), Refusal> {
        if self.serving.len() < self.config.requests_max.min(SERVING_MAX) {
            return Ok(());
        }
        let message = format!(
            "{} questions of other replicas are being answered, the most that this node answers at once",
            self.serving.len()
        );
        Err(Refusal::Busy(RequestError::exhausted(message)))
    }

    /// Whether what a question is about is still this node's to answer: a layout may have come while it read.
    pub(crate) fn serves(&self, id: ReadId) -> Result<(), Refusal> {
        let Some(serving) = self.serving.get(&id) else { return Err(Refusal::NotOwner) };
        self.may_serve(serving.partition, serving.epoch, serving.errand)
    }

    fn read_slice_for(&mut self, id: ReadId, partition: PartitionId, after: Option<&Position>, bytes_max: usize) {
        let end = StorageKey::partition_end(Space::Owned, partition);
        let request = self.records_behind(partition, after, end, bytes_max);
        let read = ReadId(self.next_id());
        self.reads.insert(read, ReadFor::Serving(id));
        self.out.push(Effect::Slice { read, request });
    }

    fn answer_exchange(&mut self, id: ReadId, result: Result<Answer, Refusal>) {
        let still = self.serves(id);
        let Some(Serving { peer, call, .. }) = self.serving.remove(&id) else { return };
        let result = still.and(result);
        self.send(peer, Message::ExchangeResult { call, result });
    }

    /// Something that the question needs cannot be had.
    pub(crate) fn serving_refused(&mut self, id: ReadId, refusal: Refusal) {
        self.answer_exchange(id, Err(refusal));
    }

    pub(super) fn serving_unreadable(&mut self, id: ReadId, error: &StorageError) {
        self.serving_refused(id, Refusal::Failed(RequestError::new(Kind::Corrupt, error.to_string())));
    }

    pub(super) fn serve_tree(&mut self, id: ReadId, stats: &PartitionStats) {
        let is_equal =
            |serving: &Serving| matches!(serving.kind, Kinds::Tree { unless } if unless == Some(stats.root()));
        if self.serving.get(&id).is_some_and(is_equal) {
            return self.answer_exchange(id, Ok(Answer::Equal));
        }
        let tree = Tree { leaves: stats.leaves().to_vec(), root: stats.root(), tally: self.kept(stats) };
        self.answer_exchange(id, Ok(Answer::Leaves(tree)));
    }

    /// A slice for a question was read.
    pub(crate) fn serving_read(&mut self, id: ReadId, result: Result<Slice, StorageError>) {
        match result {
            // The snapshot may show writes that are not durable yet: they must be before they are shown (D1).
            Ok(slice) => self.hold(self.issued(), Held::Served { id, slice }),
            Err(error) => self.serving_unreadable(id, &error),
        }
    }

    pub(crate) fn served_durable(&mut self, id: ReadId, slice: Slice) {
        let Some(serving) = self.serving.get(&id) else { return };
        let digests = match serving.kind {
            Kinds::Digests(leaves) => Some(leaves),
            _ => None,
        };
        let next = slice.more.then(|| slice.entries.last().map(|entry| position(&entry.0))).flatten();
        let wanted = |key: &StorageKey| digests.is_none_or(|leaves| leaves.contains(key));
        let mut records = Vec::new();
        let mut entries = Vec::new();
        for (key, bytes) in slice.entries.into_iter().filter(|entry| wanted(&entry.0)) {
            if self.is_dropped(key.keyspace()) {
                continue;
            }
            // A damaged record has nothing to give; the other sources have theirs, and it is mended meanwhile.
            let Some(record) = self.decoded(&key, &bytes) else { continue };
            if digests.is_some() {
                let size = u32::try_from(key.key().len() + bytes.len()).unwrap_or(u32::MAX);
                let (keyspace, key) = position(&key);
                entries.push(DigestEntry { keyspace, key, digest: record.digest(), bytes: size });
            } else {
                records.push((key.keyspace(), key.key_bytes(), record));
            }
        }
        let answer =
            if digests.is_some() { Answer::Digests { entries, next } } else { Answer::Records { records, next } };
        self.answer_exchange(id, Ok(answer));
    }

    /// What a key holds is durable.
    pub(crate) fn fetched(&mut self, id: ReadId, key: &StorageKey, record: Option<Record>) {
        if let Some(Serving { kind: Kinds::Fetch { left, records }, .. }) = self.serving.get_mut(&id) {
            *left = left.saturating_sub(1);
            records.extend(record.map(|record| (key.keyspace(), key.key_bytes(), record)));
            self.serve_if_complete(id);
        }
    }

    /// An offered record is durable.
    pub(crate) fn taken(&mut self, id: ReadId) {
        if let Some(Serving { kind: Kinds::Offer { left }, .. }) = self.serving.get_mut(&id) {
            *left = left.saturating_sub(1);
            self.serve_if_complete(id);
        }
    }

    fn serve_if_complete(&mut self, id: ReadId) {
        let answer = match self.serving.get_mut(&id).map(|serving| &mut serving.kind) {
            Some(Kinds::Fetch { left: 0, records }) => {
                let records = std::mem::take(records);
                Answer::Records { records, next: None }
            }
            Some(Kinds::Offer { left: 0 }) => Answer::Taken,
            _ => return,
        };
        self.answer_exchange(id, Ok(answer));
    }

    pub(crate) fn decoded(&mut self, key: &StorageKey, bytes: &Bytes) -> Option<Record> {
        match Stored::decode(bytes) {
            Ok(stored) => Some(stored.record),
            Err(error) => {
                self.out.push(Effect::Event(Event::Damaged { reason: format!("{key}: {error}") }));
                self.mend(key);
                None
            }
        }
    }
}
