//! Scans: one page of a keyspace in byte order, read from R owners of every partition.
//!
//! A scan is not a snapshot. It goes on behind a key, so a key that is present throughout appears exactly once (rule R1).

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::get::value_of;
use super::{Command, Op, OpState, Origin, Requests};
use crate::cell::Cell;
use crate::error::{Kind, RequestError};
use crate::message::{Message, Refusal, Response, Role, ScanEntry, ScanRequest, SliceAnswer, SliceQuery, weight};
use crate::ring::Owner;
use crate::rule::Rule;
use crate::types::{Epoch, KeyspaceId, Monotonic, NodeId, PartitionId};
use crate::version::ContextToken;
use crate::view::quorum::Needs;
use crate::wiring::{Ctx, OpId, Waiter};

/// A page in flight.
#[derive(Debug)]
pub(super) struct ScanOp {
    request: ScanRequest,
    /// Nodes that have not answered.
    waiting: BTreeSet<NodeId>,
    answers: Vec<SliceAnswer>,
    /// Nodes that failed; they are not asked again.
    avoid: BTreeSet<NodeId>,
    failures: Vec<String>,
    /// Whether one of them failed because it had no room.
    is_busy: bool,
    /// Counts how often the scan was started.
    attempt: u32,
}

impl ScanOp {
    pub(super) fn keyspace(&self) -> KeyspaceId {
        self.request.keyspace
    }
}

impl Requests {
    pub(super) fn start_scan(
        &mut self,
        ctx: &mut Ctx<'_>,
        origin: Origin,
        mut request: ScanRequest,
        deadline: Monotonic,
    ) {
        if request.limit == 0 {
            self.answer(
                ctx,
                origin,
                Err(RequestError::invalid("the limit of a scan is zero; ask for at least one key")),
            );
            return;
        }
        let longest = ctx.view.cluster.key_bytes_max;
        if request.prefix.len() > longest || request.after.as_ref().is_some_and(|after| after.len() > longest) {
            let message = format!("the prefix and the cursor of a scan have at most {longest} bytes, like keys");
            self.answer(ctx, origin, Err(RequestError::invalid(message)));
            return;
        }
        request.limit = request.limit.min(ctx.view.config.slice_entries_max);
        let scan = ScanOp {
            request,
            waiting: BTreeSet::new(),
            answers: Vec::new(),
            avoid: BTreeSet::new(),
            failures: Vec::new(),
            is_busy: false,
            attempt: 0,
        };
        let op = self.open_op(ctx, origin, deadline, OpState::Scan(scan));
        self.restart_scan(ctx, op);
    }

    /// Chooses R owners of every partition, few nodes in all, and asks each for its slice.
    pub(super) fn restart_scan(&mut self, ctx: &mut Ctx<'_>, op: OpId) {
        // A late answer to the last attempt may be about other partitions.
        ctx.kernel.forget_calls(|purpose| purpose == Waiter::Slice(op));
        self.commands.push_back(Command::ForgetSlices { op });
        let Some(Op { state: OpState::Scan(scan), .. }) = self.ops.get(&op) else { return };
        let asked = match self.scan_owners(ctx, scan) {
            Ok(asked) => asked,
            Err(error) => return self.finish(ctx, op, Err(error)),
        };
        let request = scan.request.clone();
        self.ops.forget_answers(op);
        let Some(Op { state: OpState::Scan(scan), .. }) = self.ops.get_mut(&op) else { return };
        scan.waiting = asked.keys().copied().collect();
        scan.answers.clear();
        scan.attempt += 1;
        let attempt = scan.attempt;
        for (node, partitions) in asked {
            let query = SliceQuery {
                partitions,
                keyspace: request.keyspace,
                prefix: request.prefix.clone(),
                after: request.after.clone(),
                limit: request.limit,
                keys_only: request.keys_only,
            };
            if node == ctx.me() {
                self.commands.push_back(Command::Slice { op, attempt, query });
            } else {
                let call = ctx.kernel.next_call();
                ctx.kernel.ask(node, call, Waiter::Slice(op), Message::Slice { call, slice: query });
            }
        }
    }

    /// Which nodes a scan asks for which partitions.
    fn scan_owners(
        &self,
        ctx: &Ctx<'_>,
        scan: &ScanOp,
    ) -> Result<BTreeMap<NodeId, Vec<(PartitionId, Epoch)>>, RequestError> {
        let layout =
            ctx.view.layout().cloned().ok_or_else(|| RequestError::unavailable("the node has no layout yet"))?;
        let keyspace = ctx
            .view
            .available(scan.request.keyspace)
            .ok_or_else(|| RequestError::new(Kind::NotFound, "the keyspace was dropped meanwhile"))?;
        let mut asked: BTreeMap<NodeId, Vec<(PartitionId, Epoch)>> = BTreeMap::new();
        for partition in layout.partition_ids().filter(|&partition| ctx.view.serves(partition)) {
            let Some(entry) = layout.entry(partition) else { continue };
            let needs = ctx.by_rule(Needs::of_read(scan.request.consistency, keyspace));
            let mut owners = ctx.owners_up(partition);
            owners.retain(|node| !scan.avoid.contains(node));
            // Nodes that have stalled come last. Nodes that are asked anyway come first, so that few are asked in all. Of a
            // migrating partition some old owner always answers: what only new owners hold is merged with what the old ones
            // do.
            owners.sort_by_key(|node| (ctx.is_stalled(*node), entry.enters(*node), !asked.contains_key(node)));
            let has = |owner: &Owner| owners.contains(&owner.node);
            if !needs.are_met(entry, has, 0) {
                let reached = needs.progress(entry, has, 0);
                let mut message = format!("{partition}: only {reached} replicas that this scan needs can be reached");
                for failure in &scan.failures {
                    message.push_str("; ");
                    message.push_str(failure);
                }
                let kind = if scan.is_busy { Kind::Exhausted } else { Kind::Unavailable };
                return Err(RequestError::new(kind, message));
            }
            let owners = owners.into_iter().map(|node| (node, Role::Owner)).collect();
            for (node, _) in needs.choose(entry, owners).0 {
                asked.entry(node).or_default().push((partition, entry.changed));
            }
        }
        Ok(asked)
    }

    /// A node that a scan waits for has stalled: the scan begins again without it, if the others are enough.
    pub(crate) fn scan_stalled(&mut self, ctx: &mut Ctx<'_>, op: OpId, from: NodeId) {
        let Some(Op { state: OpState::Scan(scan), .. }) = self.ops.get(&op) else { return };
        let needed = || self.scan_owners(ctx, scan).is_ok_and(|asked| asked.contains_key(&from));
        if scan.waiting.contains(&from) && !needed() {
            self.restart_scan(ctx, op);
        }
    }

    /// This node's own slice of an attempt of a scan was read, or refused.
    pub(crate) fn own_slice(
        &mut self,
        ctx: &mut Ctx<'_>,
        (op, attempt): (OpId, u32),
        result: Result<SliceAnswer, Refusal>,
    ) {
        let current = |op: &Op| matches!(&op.state, OpState::Scan(scan) if scan.attempt == attempt);
        if self.ops.get(&op).is_some_and(current) {
            let me = ctx.me();
            match result {
                Ok(answer) => self.scan_answered(ctx, op, me, answer),
                Err(refusal) => self.scan_failed(ctx, op, me, Some(refusal)),
            }
        }
    }

    pub(crate) fn scan_answered(&mut self, ctx: &mut Ctx<'_>, op: OpId, from: NodeId, answer: SliceAnswer) {
        let Some(Op { state: OpState::Scan(scan), .. }) = self.ops.get_mut(&op) else { return };
        if !scan.waiting.remove(&from) || !self.keep_answer(ctx, op, weight::of_slice(&answer)) {
            return;
        }
        let Some(Op { state: OpState::Scan(scan), .. }) = self.ops.get_mut(&op) else { return };
        scan.answers.push(answer);
        if scan.waiting.is_empty() {
            let answers = std::mem::take(&mut scan.answers);
            let request = scan.request.clone();
            let page = self.page(ctx, &request, answers);
            self.finish(ctx, op, Ok(page));
        }
    }

    pub(crate) fn scan_failed(&mut self, ctx: &mut Ctx<'_>, op: OpId, from: NodeId, refusal: Option<Refusal>) {
        let Some(Op { state: OpState::Scan(scan), .. }) = self.ops.get_mut(&op) else { return };
        if !scan.waiting.contains(&from) {
            return;
        }
        scan.is_busy |= matches!(refusal, Some(Refusal::Busy(_)));
        let why = refusal.map_or_else(|| "down".to_owned(), |refusal| refusal.to_string());
        scan.failures.push(format!("{from}: {why}"));
        scan.avoid.insert(from);
        self.restart_scan(ctx, op);
    }

    /// Merges the slices of all nodes into a page.
    fn page(&self, ctx: &Ctx<'_>, request: &ScanRequest, answers: Vec<SliceAnswer>) -> Response {
        let mode = ctx.view.mode(request.keyspace);
        // Behind the end of the shortest unfinished slice some replica has not spoken.
        let bound: Option<Bytes> = answers
            .iter()
            .filter(|answer| answer.more && ctx.view.keep(Rule::PageEndsWhereOneStops))
            .map(|answer| answer.records.last().map(|record| record.1.clone()).unwrap_or_default())
            .min();
        let mut cells: BTreeMap<Bytes, Option<Cell>> = BTreeMap::new();
        for (_, key, cell) in answers.into_iter().flat_map(|answer| answer.records) {
            if bound.as_ref().is_none_or(|bound| key <= *bound) {
                Cell::merge_into(cells.entry(key).or_default(), &cell, mode);
            }
        }
        let mut entries = Vec::new();
        let mut next = bound;
        for (key, cell) in cells {
            let Some(record) = cell.as_ref().and_then(Cell::record) else { continue };
            let live = record.live(ctx.kernel.now.wall);
            if live.is_empty() {
                continue;
            }
            if entries.len() == request.limit {
                next = entries.last().map(|entry: &ScanEntry| entry.key.clone());
                break;
            }
            let values = live.into_iter().map(|version| value_of(version, request.keys_only)).collect();
            let context = ContextToken::of(record).encode(request.keyspace, &key);
            entries.push(ScanEntry { key, values, context });
        }
        Response::Page { entries, next }
    }
}
