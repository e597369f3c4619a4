//! Slices of this node's partitions for scans, in key order over many partitions.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use crate::apply::decoded;
use crate::error::{Kind, RequestError, StorageError};
use crate::message::{CallId, Message, Refusal, SliceAnswer, SliceQuery};
use crate::parts::Ask;
use crate::storage::{Slice, SliceRequest, Space, StorageKey};
use crate::types::{Epoch, Hlc, KeyspaceId, NodeId, PartitionId};
use crate::wiring::{AfterDurable, Ctx, OpId, ReadFor, SliceId};

/// The fewest entries that are asked of a part at once.
const PART_ENTRIES_MIN: usize = 16;

/// The fewest bytes at which a partition's part of a slice ends.
const PART_BYTES_MIN: usize = 16 * 1024;

/// Slices that are read at once: one thread reads them, and each is held whole.
const SLICES_MAX: usize = 64;

/// What one of so many parts is asked for, so that all together bring about twice what is wanted: keys are spread evenly.
pub(crate) fn part_entries(limit: usize, parts: usize) -> usize {
    (2 * limit / parts.max(1)).max(PART_ENTRIES_MIN).min(limit)
}

/// Who wants a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Requester {
    /// An attempt of a scan that this node coordinates.
    Op(OpId, u32),
    /// Another node.
    Peer { node: NodeId, call: CallId },
    /// The hub, for another node's slice of which this loop has a part.
    Hub { job: u64 },
}

/// A slice that is being read.
#[derive(Debug)]
struct SliceJob {
    requester: Requester,
    query: SliceQuery,
    /// One for each partition; `None` until it is read.
    parts: Vec<Option<Slice>>,
    /// Watermarks from before anything was read: what is at or below one and not held was gone then.
    settled: Vec<(PartitionId, Hlc)>,
}

/// The slices that are being read, for this node's own scans and for those of others.
#[derive(Debug, Default)]
pub(crate) struct Slices {
    jobs: BTreeMap<SliceId, SliceJob>,
    answers: VecDeque<OwnSlice>,
}

/// A slice for an attempt of a scan that this node coordinates.
#[derive(Debug)]
pub(crate) struct OwnSlice {
    pub(crate) scan: (OpId, u32),
    pub(crate) result: Result<SliceAnswer, Refusal>,
}

impl Slices {
    /// The next slice for a scan of this node.
    pub(crate) fn next_answer(&mut self) -> Option<OwnSlice> {
        self.answers.pop_front()
    }

    /// Slices for a scan are not needed any more.
    pub(crate) fn forget(&mut self, op: OpId) {
        self.jobs.retain(|_, job| !matches!(job.requester, Requester::Op(of, _) if of == op));
    }

    /// Reads a slice, or refuses it.
    pub(crate) fn serve(&mut self, ctx: &mut Ctx<'_>, requester: Requester, query: SliceQuery) {
        let ranges = match self.ranges(ctx, &query) {
            Ok(ranges) => ranges,
            Err(refusal) => return self.slice_answer(ctx, requester, Err(refusal)),
        };
        let job = SliceId(ctx.kernel.next_id());
        let parts = ranges.iter().map(|_| None).collect();
        let settled = query.partitions.iter().map(|asked| (asked.0, ctx.view.watermark(asked.0)));
        let settled = settled.filter(|settled| settled.1 > Hlc::default()).collect();
        self.jobs.insert(job, SliceJob { requester, query, parts, settled });
        for (part, request) in ranges.into_iter().enumerate() {
            ctx.kernel.read_slice(request, ReadFor::Slice { job, part });
        }
    }

    fn ranges(&self, ctx: &Ctx<'_>, query: &SliceQuery) -> Result<Vec<SliceRequest>, Refusal> {
        if self.jobs.len() >= ctx.view.config.requests_max.min(SLICES_MAX) {
            let message = format!("{} slices are being read, the most that this node reads at once", self.jobs.len());
            return Err(Refusal::Busy(RequestError::exhausted(message)));
        }
        let SliceQuery { partitions, keyspace, prefix, after, limit, .. } = query;
        let count = partitions.len().max(1);
        let limit = (*limit).min(ctx.view.config.slice_entries_max);
        let entries_max = part_entries(limit.max(1), count);
        let bytes_max = (ctx.view.config.slice_bytes_max / count).max(PART_BYTES_MIN);
        self.may_scan(ctx, partitions, *keyspace)?;
        let range = |&(partition, _): &(PartitionId, Epoch)| {
            let start = StorageKey::owned(partition, *keyspace, prefix);
            let from = match after {
                Some(after) => StorageKey::owned(partition, *keyspace, after).successor().max(start),
                None => start,
            };
            let until = prefix_end(partition, *keyspace, prefix);
            SliceRequest { from, until, entries_max, bytes_max }
        };
        Ok(partitions.iter().map(range).collect())
    }

    /// Whether this node's copies of some partitions count at these epochs (invariant 6).
    fn may_scan(
        &self,
        ctx: &Ctx<'_>,
        partitions: &[(PartitionId, Epoch)],
        keyspace: KeyspaceId,
    ) -> Result<(), Refusal> {
        if ctx.view.is_dropped(keyspace) {
            return Err(Refusal::Failed(ctx.view.dropped_error(keyspace)));
        }
        for &(partition, epoch) in partitions {
            ctx.view.fence(partition, epoch)?;
            if !ctx.view.owns(partition) {
                return Err(Refusal::NotOwner);
            }
            if !ctx.view.holds(partition) {
                return Err(Refusal::NotSynced);
            }
        }
        Ok(())
    }

    /// A part of a slice was read.
    pub(crate) fn part_done(
        &mut self,
        ctx: &mut Ctx<'_>,
        id: SliceId,
        part: usize,
        result: Result<Slice, StorageError>,
    ) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        match result {
            Ok(slice) => {
                if let Some(place) = job.parts.get_mut(part) {
                    *place = Some(slice);
                }
                if job.parts.iter().all(Option::is_some) {
                    // The snapshot may show writes that are not durable yet: they must be before they are shown (D1).
                    ctx.kernel.after_issued(AfterDurable::Slice { job: id });
                }
            }
            Err(error) => {
                let requester = job.requester;
                self.jobs.remove(&id);
                let error = RequestError::new(Kind::Corrupt, error.to_string());
                self.slice_answer(ctx, requester, Err(Refusal::Failed(error)));
            }
        }
    }

    pub(crate) fn durable(&mut self, ctx: &mut Ctx<'_>, id: SliceId) {
        let Some(SliceJob { requester, query, parts, settled }) = self.jobs.remove(&id) else { return };
        let parts = parts.into_iter().flatten().collect();
        // A layout may have come while it was read, and what was left may have been dropped.
        let answer = self.may_scan(ctx, &query.partitions, query.keyspace);
        let answer = answer.and_then(|()| self.scan_answer(ctx, parts, settled, query.limit, query.keys_only));
        self.slice_answer(ctx, requester, answer);
    }

    fn scan_answer(
        &mut self,
        ctx: &mut Ctx<'_>,
        parts: Vec<Slice>,
        settled: Vec<(PartitionId, Hlc)>,
        limit: usize,
        keys_only: bool,
    ) -> Result<SliceAnswer, Refusal> {
        // Behind the end of the shortest unfinished part some partition has not been read.
        let ends = parts.iter().filter(|part| part.more).filter_map(|part| part.entries.last());
        let bound: Option<Bytes> = ends.map(|entry| entry.0.key_bytes()).min();
        let mut more = parts.iter().any(|part| part.more);
        let mut found: Vec<(StorageKey, Bytes)> = parts
            .into_iter()
            .flat_map(|part| part.entries)
            .filter(|(key, _)| bound.as_ref().is_none_or(|bound| key.key() <= bound.as_ref()))
            .collect();
        found.sort_by(|a, b| a.0.key().cmp(b.0.key()));
        let mut records = Vec::new();
        let mut bytes_left = ctx.view.config.slice_bytes_max;
        for (key, bytes) in found {
            if records.len() == limit.max(1) || bytes_left == 0 {
                more = true;
                break;
            }
            let Some(mut cell) = decoded(ctx, &key, &bytes) else {
                let message =
                    format!("this node's copy of {} cannot be read and is being restored", key.key().escape_ascii());
                return Err(Refusal::Failed(RequestError::new(Kind::Corrupt, message)));
            };
            if keys_only {
                cell.strip();
            }
            bytes_left = bytes_left.saturating_sub(key.key().len() + cell.value_bytes() + 64);
            records.push((key.keyspace(), key.key_bytes(), cell));
        }
        Ok(SliceAnswer { records, more, settled })
    }

    fn slice_answer(&mut self, ctx: &mut Ctx<'_>, requester: Requester, result: Result<SliceAnswer, Refusal>) {
        match (requester, result) {
            (Requester::Peer { node, call }, result) => ctx.kernel.send(node, Message::SliceResult { call, result }),
            (Requester::Hub { job }, result) => ctx.kernel.say(Ask::Slice { job, result }),
            (Requester::Op(op, attempt), result) => {
                self.answers.push_back(OwnSlice { scan: (op, attempt), result });
            }
        }
    }
}

/// The first storage key behind all that start with `prefix`.
fn prefix_end(partition: PartitionId, keyspace: KeyspaceId, prefix: &[u8]) -> StorageKey {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if let Some(next) = last.checked_add(1) {
            end.push(next);
            return StorageKey::owned(partition, keyspace, &end);
        }
    }
    match keyspace.0.checked_add(1) {
        Some(next) => StorageKey::keyspace_start(Space::Owned, partition, KeyspaceId(next)),
        None => StorageKey::partition_end(Space::Owned, partition),
    }
}
