//! Answers that need several loops: slices for scans of other nodes, and scans of clients. Each loop answers for its own
//! partitions, and what they answer is joined in key order.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{Kernel, To};
use crate::config::NodeConfig;
use crate::error::RequestError;
use crate::kernel::Place;
use crate::message::{
    CallId, Message, Outcome, Refusal, Response, ScanEntry, ScanRequest, SliceAnswer, SliceQuery, weight,
};
use crate::parts::Tell;
use crate::rule::Rule;
use crate::shell::{Effect, Tag};
use crate::slices::part_entries;
use crate::types::{Monotonic, NodeId};

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Joins {
    loops: u16,
    /// Answers that are being joined at once, of each kind.
    joins_max: usize,
    entries_max: usize,
    bytes_max: usize,
    made: u64,
    slices: BTreeMap<u64, SliceJoin>,
    scans: BTreeMap<Tag, ScanJoin>,
}

/// A slice for another node.
#[derive(Debug)]
struct SliceJoin {
    node: NodeId,
    call: CallId,
    limit: usize,
    waiting: usize,
    parts: Vec<SliceAnswer>,
}

/// A scan of a client.
#[derive(Debug)]
struct ScanJoin {
    limit: usize,
    waiting: usize,
    parts: Vec<(Vec<ScanEntry>, Option<Bytes>)>,
}

impl Joins {
    pub(super) fn new(config: &NodeConfig) -> Self {
        Self {
            loops: config.loops.max(1),
            joins_max: config.requests_max,
            entries_max: config.slice_entries_max,
            bytes_max: config.slice_bytes_max,
            made: 0,
            slices: BTreeMap::new(),
            scans: BTreeMap::new(),
        }
    }

    /// Another node wants a slice of several partitions.
    pub(super) fn slice(&mut self, kernel: &mut Kernel, node: NodeId, call: CallId, query: &SliceQuery) {
        let mut parts: BTreeMap<u16, SliceQuery> = BTreeMap::new();
        for &(partition, epoch) in &query.partitions {
            let empty = || SliceQuery { partitions: Vec::new(), ..query.clone() };
            let part = parts.entry(Place::of_partition(partition, self.loops)).or_insert_with(empty);
            part.partitions.push((partition, epoch));
        }
        if self.slices.len() >= self.joins_max || parts.is_empty() {
            let message = format!("{} slices are being read, the most that this node reads at once", self.slices.len());
            let result = Err(Refusal::Busy(RequestError::exhausted(message)));
            return kernel.send(node, Message::SliceResult { call, result });
        }
        self.made += 1;
        let (job, waiting, limit) = (self.made, parts.len(), query.limit.min(self.entries_max));
        self.slices.insert(job, SliceJoin { node, call, limit, waiting, parts: Vec::new() });
        for (index, mut query) in parts {
            query.limit = part_entries(limit, waiting);
            kernel.say((To::Loop(index), Tell::Slice { job, query }));
        }
    }

    /// A loop has read its part of a slice, or refuses it.
    pub(super) fn slice_part(&mut self, kernel: &mut Kernel, job: u64, result: Result<SliceAnswer, Refusal>) {
        let Some(join) = self.slices.get_mut(&job) else { return };
        join.waiting -= 1;
        let result = match result {
            Ok(part) => {
                join.parts.push(part);
                if join.waiting > 0 {
                    return;
                }
                Ok(join_slices(std::mem::take(&mut join.parts), join.limit, self.bytes_max))
            }
            Err(refusal) => Err(refusal),
        };
        let (node, call) = (join.node, join.call);
        self.slices.remove(&job);
        kernel.send(node, Message::SliceResult { call, result });
    }

    /// Nobody waits any more for what a peer has asked.
    pub(super) fn peer_down(&mut self, node: NodeId) {
        self.slices.retain(|_, join| join.node != node);
    }

    /// A client scans.
    pub(super) fn scan(&mut self, kernel: &mut Kernel, tag: Tag, mut request: ScanRequest, deadline: Monotonic) {
        if self.scans.len() >= self.joins_max {
            let message = format!(
                "{} scans are in flight, the most that this node takes; slow down and try again",
                self.scans.len()
            );
            return kernel.effect(Effect::Reply { tag, outcome: Err(RequestError::exhausted(message)) });
        }
        let limit = request.limit.min(self.entries_max);
        let all = kernel.rules.keep(Rule::AskEveryLoop);
        let waiting = if all { usize::from(self.loops) } else { 1 };
        request.limit = part_entries(limit, waiting);
        self.scans.insert(tag, ScanJoin { limit, waiting, parts: Vec::new() });
        let to = if all { To::All } else { To::Loop(0) };
        kernel.say((to, Tell::Scan { tag, request, deadline }));
    }

    /// A loop has a page of its own partitions, or none.
    pub(super) fn page(&mut self, kernel: &mut Kernel, tag: Tag, outcome: Outcome) {
        let Some(join) = self.scans.get_mut(&tag) else { return };
        join.waiting -= 1;
        let outcome = match outcome {
            Ok(Response::Page { entries, next }) => {
                join.parts.push((entries, next));
                if join.waiting > 0 {
                    return;
                }
                let (entries, next) = join_pages(std::mem::take(&mut join.parts), join.limit);
                Ok(Response::Page { entries, next })
            }
            other => other,
        };
        self.scans.remove(&tag);
        kernel.effect(Effect::Reply { tag, outcome });
    }
}

/// Joins slices of different partitions: records in key order, up to where every part has spoken.
fn join_slices(parts: Vec<SliceAnswer>, limit: usize, bytes_max: usize) -> SliceAnswer {
    // Behind the end of the shortest unfinished part some loop has not spoken.
    let ends = parts.iter().filter(|part| part.more);
    let bound: Option<Bytes> =
        ends.map(|part| part.records.last().map(|last| last.1.clone()).unwrap_or_default()).min();
    let mut more = bound.is_some();
    let settled = parts.iter().flat_map(|part| part.settled.iter().copied()).collect();
    let mut found: Vec<_> = parts.into_iter().flat_map(|part| part.records).collect();
    found.retain(|record| bound.as_ref().is_none_or(|bound| record.1 <= *bound));
    found.sort_by(|a, b| a.1.cmp(&b.1));
    let mut bytes = 0;
    let mut records = Vec::new();
    for record in found {
        if records.len() == limit.max(1) || bytes >= bytes_max {
            more = true;
            break;
        }
        bytes += weight::of_keyed(&record);
        records.push(record);
    }
    SliceAnswer { records, more, settled }
}

/// Joins pages of different partitions: entries in key order, up to where every part has spoken.
fn join_pages(parts: Vec<(Vec<ScanEntry>, Option<Bytes>)>, limit: usize) -> (Vec<ScanEntry>, Option<Bytes>) {
    let mut next = parts.iter().filter_map(|part| part.1.clone()).min();
    let mut entries: Vec<ScanEntry> = parts.into_iter().flat_map(|part| part.0).collect();
    entries.retain(|entry| next.as_ref().is_none_or(|next| entry.key <= *next));
    entries.sort_by(|a, b| a.key.cmp(&b.key));
    if entries.len() > limit {
        entries.truncate(limit);
        next = entries.last().map(|entry| entry.key.clone());
    }
    (entries, next)
}
