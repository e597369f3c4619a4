//! Slices of this node's partitions for scans, in key order over many partitions.

use bytes::Bytes;

use crate::coordinator::OpId;
use crate::error::{Kind, RequestError, StorageError};
use crate::message::{CallId, Message, Refusal, SliceAnswer, SliceQuery};
use crate::node::keys::{Held, ReadFor};
use crate::node::{Effect, Node, ReadId};
use crate::storage::{Slice, SliceRequest, Space, StorageKey};
use crate::types::{Epoch, KeyspaceId, NodeId, PartitionId};
use crate::version::Record;

/// The fewest entries that are read of a partition at once.
const PART_ENTRIES_MIN: usize = 16;

/// The fewest bytes at which a partition's part of a slice ends.
const PART_BYTES_MIN: usize = 16 * 1024;

/// Slices that are read at once: one thread reads them, and each is held whole.
const SLICES_MAX: usize = 64;

/// Who wants a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Requester {
    /// A scan that this node coordinates.
    Op(OpId),
    /// Another node.
    Peer { node: NodeId, call: CallId },
}

/// A slice that is being read.
#[derive(Debug)]
pub(crate) struct SliceJob {
    pub(crate) requester: Requester,
    query: SliceQuery,
    /// One for each partition; `None` until it is read.
    parts: Vec<Option<Slice>>,
}

impl Node {
    /// Another node wants a slice.
    pub(crate) fn replica_slice(&mut self, node: NodeId, call: CallId, query: SliceQuery) {
        self.serve_slice(Requester::Peer { node, call }, query);
    }

    /// Reads a slice, or refuses it.
    pub(crate) fn serve_slice(&mut self, requester: Requester, query: SliceQuery) {
        let ranges = match self.ranges(&query) {
            Ok(ranges) => ranges,
            Err(refusal) => return self.slice_answer(requester, Err(refusal)),
        };
        let job = ReadId(self.next_id());
        let parts = ranges.iter().map(|_| None).collect();
        self.slice_jobs.insert(job, SliceJob { requester, query, parts });
        for (part, request) in ranges.into_iter().enumerate() {
            let read = ReadId(self.next_id());
            self.reads.insert(read, ReadFor::Slice { job, part });
            self.out.push(Effect::Slice { read, request });
        }
    }

    fn ranges(&self, query: &SliceQuery) -> Result<Vec<SliceRequest>, Refusal> {
        if self.slice_jobs.len() >= self.config.requests_max.min(SLICES_MAX) {
            let message =
                format!("{} slices are being read, the most that this node reads at once", self.slice_jobs.len());
            return Err(Refusal::Busy(RequestError::exhausted(message)));
        }
        let SliceQuery { partitions, keyspace, prefix, after, limit, .. } = query;
        let count = partitions.len().max(1);
        let limit = (*limit).min(self.config.slice_entries_max);
        let entries_max = (2 * limit / count).max(PART_ENTRIES_MIN).min(limit.max(1));
        let bytes_max = (self.config.slice_bytes_max / count).max(PART_BYTES_MIN);
        self.may_scan(partitions, *keyspace)?;
        let range = |&(partition, _): &(PartitionId, Epoch)| {
            let start = StorageKey::new(Space::Owned, partition, *keyspace, prefix);
            let from = match after {
                Some(after) => StorageKey::new(Space::Owned, partition, *keyspace, after).successor().max(start),
                None => start,
            };
            let until = prefix_end(partition, *keyspace, prefix);
            SliceRequest { from, until, entries_max, bytes_max }
        };
        Ok(partitions.iter().map(range).collect())
    }

    /// Whether this node's copies of some partitions count at these epochs (invariant 6).
    fn may_scan(&self, partitions: &[(PartitionId, Epoch)], keyspace: KeyspaceId) -> Result<(), Refusal> {
        if self.is_dropped(keyspace) {
            return Err(Refusal::Failed(self.dropped_error(keyspace)));
        }
        for &(partition, epoch) in partitions {
            self.fence(partition, epoch)?;
            if !self.owns(partition) {
                return Err(Refusal::NotOwner);
            }
            if !self.holds(partition) {
                return Err(Refusal::NotSynced);
            }
        }
        Ok(())
    }

    pub(crate) fn slice_done(&mut self, read: ReadId, result: Result<Slice, StorageError>) {
        match self.reads.remove(&read) {
            Some(ReadFor::Slice { job, part }) => self.part_done(job, part, result),
            Some(ReadFor::HandOff) => match result {
                Ok(slice) => self.handoff_read(&slice),
                Err(_) => self.handoff_unreadable(),
            },
            Some(ReadFor::Sweep(partition)) => self.sweep_read(partition, result.ok()),
            Some(ReadFor::Exchange(exchange)) => self.own_page_read(exchange, result),
            Some(ReadFor::Serving(serving)) => self.serving_read(serving, result),
            Some(ReadFor::Drop(partition)) => self.drop_read(partition, result.ok()),
            Some(ReadFor::Purge) => self.purge_read(result.ok()),
            Some(ReadFor::Slot(_) | ReadFor::Leaves(_)) | None => {}
        }
    }

    fn part_done(&mut self, id: ReadId, part: usize, result: Result<Slice, StorageError>) {
        let Some(job) = self.slice_jobs.get_mut(&id) else { return };
        match result {
            Ok(slice) => {
                if let Some(place) = job.parts.get_mut(part) {
                    *place = Some(slice);
                }
                if job.parts.iter().all(Option::is_some) {
                    // The snapshot may show writes that are not durable yet: they must be before they are shown (D1).
                    self.hold(self.issued(), Held::Slice { job: id });
                }
            }
            Err(error) => {
                let requester = job.requester;
                self.slice_jobs.remove(&id);
                let error = RequestError::new(Kind::Corrupt, error.to_string());
                self.slice_answer(requester, Err(Refusal::Failed(error)));
            }
        }
    }

    pub(crate) fn slice_durable(&mut self, id: ReadId) {
        let Some(SliceJob { requester, query, parts }) = self.slice_jobs.remove(&id) else { return };
        let parts = parts.into_iter().flatten().collect();
        // A layout may have come while it was read, and what was left may have been dropped.
        let answer = self.may_scan(&query.partitions, query.keyspace);
        let answer = answer.and_then(|()| self.scan_answer(parts, query.limit, query.keys_only));
        self.slice_answer(requester, answer);
    }

    fn scan_answer(&mut self, parts: Vec<Slice>, limit: usize, keys_only: bool) -> Result<SliceAnswer, Refusal> {
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
        let mut bytes_left = self.config.slice_bytes_max;
        for (key, bytes) in found {
            if records.len() == limit.max(1) || bytes_left == 0 {
                more = true;
                break;
            }
            let Some(mut record) = self.decoded(&key, &bytes) else {
                let message =
                    format!("this node's copy of {} cannot be read and is being mended", key.key().escape_ascii());
                return Err(Refusal::Failed(RequestError::new(Kind::Corrupt, message)));
            };
            if keys_only {
                strip(&mut record);
            }
            bytes_left = bytes_left.saturating_sub(key.key().len() + record.value_bytes() + 64);
            records.push((key.keyspace(), key.key_bytes(), record));
        }
        Ok(SliceAnswer { records, more })
    }

    fn slice_answer(&mut self, requester: Requester, result: Result<SliceAnswer, Refusal>) {
        match (requester, result) {
            (Requester::Peer { node, call }, result) => self.send(node, Message::SliceResult { call, result }),
            (Requester::Op(op), Ok(answer)) => self.scan_answered(op, self.config.node, answer),
            (Requester::Op(op), Err(refusal)) => self.scan_failed(op, self.config.node, Some(refusal)),
        }
    }
}

/// Leaves the values out but keeps what is live.
fn strip(record: &mut Record) {
    for sibling in &mut record.siblings {
        if let Some(value) = &mut sibling.value {
            *value = Bytes::new();
        }
    }
}

/// The first storage key behind all that start with `prefix`.
fn prefix_end(partition: PartitionId, keyspace: KeyspaceId, prefix: &[u8]) -> StorageKey {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if let Some(next) = last.checked_add(1) {
            end.push(next);
            return StorageKey::new(Space::Owned, partition, keyspace, &end);
        }
    }
    match keyspace.0.checked_add(1) {
        Some(next) => StorageKey::new(Space::Owned, partition, KeyspaceId(next), &[]),
        None => StorageKey::partition_end(Space::Owned, partition),
    }
}
