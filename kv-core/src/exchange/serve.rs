//! Bringing one partition into line with one other replica: the answering side.
//!
//! Every answer is given at the epoch of the question, by a node that acts on that entry: a source is fenced by it, since
//! from then on it confirms nothing at an earlier epoch (rules E2 and M1). What an answer shows is durable.

use std::collections::BTreeMap;

use super::{position, records_behind, storage_key};
use crate::apply::{decoded, may_take};
use crate::cell::Cell;
use crate::error::{Kind, RequestError, StorageError};
use crate::message::{
    Answer, CallId, DigestEntry, Keyed, LeafSet, Message, Position, Purpose, Question, Refusal, Tree,
};
use crate::rule::Rule;
use crate::storage::{PartitionStats, Slice, Space, StorageKey};
use crate::types::{Epoch, KeyspaceId, NodeId, PartitionId};
use crate::version::Hlc;
use crate::view::View;
use crate::wiring::{AfterDurable, Applied, Ctx, ReadFor, ServingId, StatsFor, Task};

/// Questions of other replicas that are answered at once: each holds what it reads.
const SERVING_MAX: usize = 256;

/// The questions of other replicas that are being answered.
#[derive(Debug, Default)]
pub(crate) struct Serving {
    open: BTreeMap<ServingId, Asked>,
}

/// A question of another replica that is being answered.
#[derive(Debug)]
struct Asked {
    peer: NodeId,
    call: CallId,
    partition: PartitionId,
    epoch: Epoch,
    purpose: Purpose,
    /// The watermark of this copy before anything of it was read for the answer (rule A6).
    settled: Hlc,
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

impl Serving {
    /// Another replica asks.
    pub(crate) fn serve(
        &mut self,
        ctx: &mut Ctx<'_>,
        peer: NodeId,
        call: CallId,
        (partition, epoch, purpose): (PartitionId, Epoch, Purpose),
        question: Question,
    ) {
        if let Err(refusal) = Self::may_serve(ctx.view, partition, epoch, purpose).and_then(|()| self.has_room(ctx)) {
            return ctx.kernel.send(peer, Message::ExchangeResult { call, result: Err(refusal), commit: 0 });
        }
        let id = ServingId(ctx.kernel.next_id());
        let settled = ctx.view.watermark(partition);
        let serving = |kind| Asked { peer, call, partition, epoch, purpose, settled, kind };
        match question {
            Question::Leaves { unless } => {
                self.open.insert(id, serving(Kinds::Tree { unless }));
                ctx.kernel.read_stats(partition, ReadFor::Stats(StatsFor::Serving(id)));
            }
            Question::Records { after, bytes_max } => {
                self.open.insert(id, serving(Kinds::Records));
                let bytes_max = usize::try_from(bytes_max).unwrap_or(usize::MAX).min(ctx.view.config.copy_bytes_max);
                self.read_slice_for(ctx, id, partition, after.as_ref(), bytes_max);
            }
            Question::Digests { leaves, after } => {
                self.open.insert(id, serving(Kinds::Digests(leaves)));
                self.read_slice_for(ctx, id, partition, after.as_ref(), ctx.view.config.slice_bytes_max);
            }
            Question::Fetch { keys } => {
                let left = keys.len();
                self.open.insert(id, serving(Kinds::Fetch { left, records: Vec::new() }));
                for key in keys {
                    ctx.kernel.with_key(storage_key(partition, &key), Task::Fetch { serving: id });
                }
                self.serve_if_complete(ctx, id);
            }
            Question::Offer { mut records } => {
                // Nobody has to hold what belongs to a dropped keyspace.
                records.retain(|(keyspace, ..)| !ctx.view.is_dropped(*keyspace));
                let left = records.len();
                self.open.insert(id, serving(Kinds::Offer { left }));
                for (keyspace, key, cell) in records {
                    let taken = may_take(ctx, partition, keyspace, &key, &cell);
                    let applied = match taken.and_then(|()| Self::offered(ctx.view, id, purpose, keyspace)) {
                        Ok(applied) => applied,
                        Err(refusal) => return self.refuse(ctx, id, refusal),
                    };
                    ctx.kernel.with_key(storage_key(partition, &(keyspace, key)), Task::Apply { cell, applied });
                }
                self.serve_if_complete(ctx, id);
            }
        }
    }

    /// Whether this node may answer about a partition at an epoch (invariant 6).
    fn may_serve(view: &View, partition: PartitionId, epoch: Epoch, purpose: Purpose) -> Result<(), Refusal> {
        match view.fence(partition, epoch) {
            Err(Refusal::Behind { .. }) if !view.keep(Rule::FencedSource) => {}
            fenced => fenced?,
        }
        if !view.owns(partition) {
            return Err(Refusal::NotOwner);
        }
        let complete = match purpose {
            // A node that is being refilled itself gives what it has: the asker merges all that survives.
            Purpose::Refill => true,
            Purpose::HandOver => view.holds(partition),
            Purpose::Copy | Purpose::Repair | Purpose::Settle => view.is_synced(partition),
        };
        if complete { Ok(()) } else { Err(Refusal::NotSynced) }
    }

    /// As what an offered record is merged.
    fn offered(view: &View, serving: ServingId, purpose: Purpose, keyspace: KeyspaceId) -> Result<Applied, Refusal> {
        match purpose {
            Purpose::HandOver => Ok(Applied::Residue { serving, keyspace: view.available_sent(keyspace)? }),
            Purpose::Refill | Purpose::Copy | Purpose::Repair | Purpose::Settle => Ok(Applied::Offered { serving }),
        }
    }

    fn has_room(&self, ctx: &Ctx<'_>) -> Result<(), Refusal> {
        if self.open.len() < ctx.view.config.requests_max.min(SERVING_MAX) {
            return Ok(());
        }
        let message = format!(
            "{} questions of other replicas are being answered, the most that this node answers at once",
            self.open.len()
        );
        Err(Refusal::Busy(RequestError::exhausted(message)))
    }

    /// Whether what a question is about is still this node's to answer: a layout may have come while it read.
    pub(crate) fn serves(&self, view: &View, id: ServingId) -> Result<(), Refusal> {
        let Some(serving) = self.open.get(&id) else { return Err(Refusal::NotOwner) };
        Self::may_serve(view, serving.partition, serving.epoch, serving.purpose)
    }

    fn read_slice_for(
        &mut self,
        ctx: &mut Ctx<'_>,
        id: ServingId,
        partition: PartitionId,
        after: Option<&Position>,
        bytes_max: usize,
    ) {
        let end = StorageKey::partition_end(Space::Owned, partition);
        let request = records_behind(ctx.view, partition, after, end, bytes_max);
        ctx.kernel.read_slice(request, ReadFor::Serving(id));
    }

    fn answer_exchange(&mut self, ctx: &mut Ctx<'_>, id: ServingId, result: Result<Answer, Refusal>) {
        let still = self.serves(ctx.view, id);
        let Some(Asked { peer, call, .. }) = self.open.remove(&id) else { return };
        let result = still.and(result);
        ctx.kernel.send(peer, Message::ExchangeResult { call, result, commit: 0 });
    }

    /// Something that the question needs cannot be had.
    pub(crate) fn refuse(&mut self, ctx: &mut Ctx<'_>, id: ServingId, refusal: Refusal) {
        self.answer_exchange(ctx, id, Err(refusal));
    }

    pub(crate) fn unreadable(&mut self, ctx: &mut Ctx<'_>, id: ServingId, error: &StorageError) {
        self.refuse(ctx, id, Refusal::Failed(RequestError::new(Kind::Corrupt, error.to_string())));
    }

    pub(crate) fn serve_tree(&mut self, ctx: &mut Ctx<'_>, id: ServingId, stats: &PartitionStats) {
        let is_equal = |serving: &Asked| matches!(serving.kind, Kinds::Tree { unless } if unless == Some(stats.root()));
        if self.open.get(&id).is_some_and(is_equal) {
            return self.answer_exchange(ctx, id, Ok(Answer::Equal));
        }
        let settled = self.open.get(&id).map(|asked| asked.settled).unwrap_or_default();
        let tree = Tree { leaves: stats.leaves().to_vec(), root: stats.root(), tally: ctx.view.kept(stats), settled };
        self.answer_exchange(ctx, id, Ok(Answer::Leaves(tree)));
    }

    /// A slice for a question was read.
    pub(crate) fn serving_read(&mut self, ctx: &mut Ctx<'_>, id: ServingId, result: Result<Slice, StorageError>) {
        match result {
            // The snapshot may show writes that are not durable yet: they must be before they are shown (D1).
            Ok(slice) => ctx.kernel.after_issued(AfterDurable::Served { id, slice }),
            Err(error) => self.unreadable(ctx, id, &error),
        }
    }

    pub(crate) fn served_durable(&mut self, ctx: &mut Ctx<'_>, id: ServingId, slice: Slice) {
        let Some(serving) = self.open.get(&id) else { return };
        let mut settled = serving.settled;
        let digests = match serving.kind {
            Kinds::Digests(leaves) => Some(leaves),
            _ => None,
        };
        let next = slice.more.then(|| slice.entries.last().map(|entry| position(&entry.0))).flatten();
        let wanted = |key: &StorageKey| digests.is_none_or(|leaves| leaves.contains(key));
        let mut records = Vec::new();
        let mut entries = Vec::new();
        for (key, bytes) in slice.entries.into_iter().filter(|entry| wanted(&entry.0)) {
            if ctx.view.is_dropped(key.keyspace()) {
                continue;
            }
            // A damaged record has nothing to give; the other sources have theirs, and it is restored meanwhile.
            let Some(cell) = decoded(ctx, &key, &bytes) else {
                // It is not there, and was not collected.
                settled = Hlc::default();
                continue;
            };
            if cell.is_blank() {
                continue;
            }
            if digests.is_some() {
                let size = u32::try_from(key.key().len() + bytes.len()).unwrap_or(u32::MAX);
                let (keyspace, key) = position(&key);
                entries.push(DigestEntry { keyspace, key, digest: cell.digest(), bytes: size });
            } else {
                records.push((key.keyspace(), key.key_bytes(), cell));
            }
        }
        let answer = if digests.is_some() {
            Answer::Digests { entries, next, settled }
        } else {
            Answer::Records { records, next, settled }
        };
        self.answer_exchange(ctx, id, Ok(answer));
    }

    /// What a key holds is durable.
    pub(crate) fn fetched(&mut self, ctx: &mut Ctx<'_>, id: ServingId, key: &StorageKey, cell: Option<Cell>) {
        if let Some(Asked { kind: Kinds::Fetch { left, records }, .. }) = self.open.get_mut(&id) {
            *left = left.saturating_sub(1);
            records.extend(cell.map(|cell| (key.keyspace(), key.key_bytes(), cell)));
            self.serve_if_complete(ctx, id);
        }
    }

    /// An offered record is durable.
    pub(crate) fn taken(&mut self, ctx: &mut Ctx<'_>, id: ServingId) {
        if let Some(Asked { kind: Kinds::Offer { left }, .. }) = self.open.get_mut(&id) {
            *left = left.saturating_sub(1);
            self.serve_if_complete(ctx, id);
        }
    }

    fn serve_if_complete(&mut self, ctx: &mut Ctx<'_>, id: ServingId) {
        let Some(serving) = self.open.get_mut(&id) else { return };
        let settled = serving.settled;
        let answer = match &mut serving.kind {
            Kinds::Fetch { left: 0, records } => {
                let records = std::mem::take(records);
                Answer::Records { records, next: None, settled }
            }
            Kinds::Offer { left: 0 } => Answer::Taken,
            _ => return,
        };
        self.answer_exchange(ctx, id, Ok(answer));
    }
}
