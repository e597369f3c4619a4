//! Scans: one page of a keyspace in byte order, read from R owners of every partition.
//!
//! A scan is not a snapshot. It goes on behind a key, so a key that is present throughout appears exactly once (rule R1).
//!
//! Of a consistent keyspace each key of a page is as certain as if it were read alone: where a majority has not accepted one and the
//! same, it is.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use super::get::{Merged, value_of};
use super::register::value_of as value_of_state;
use super::{Command, Op, OpState, Origin, Requests};
use crate::cell::Cell;
use crate::config::Mode;
use crate::error::{Kind, RequestError};
use crate::message::{Message, Outcome, Refusal, Response, ScanEntry, ScanRequest, SliceAnswer, SliceQuery, weight};
use crate::register::{Register, token};
use crate::ring::Owner;
use crate::rule::Rule;
use crate::types::{Epoch, Hlc, KeyspaceId, Monotonic, NodeId, PartitionId, WallTime};
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
    /// How many nodes are asked about a partition, in a consistent keyspace.
    asked: BTreeMap<PartitionId, usize>,
    page: Option<Page>,
}

/// Keys of a page of a consistent keyspace that are read one by one.
const READS_MAX: usize = 16;

/// A page of a consistent keyspace of which not all is certain.
#[derive(Debug)]
struct Page {
    /// Keys that are to be read.
    unsure: VecDeque<Bytes>,
    /// How many are being read.
    reads: usize,
    entries: BTreeMap<Bytes, ScanEntry>,
    next: Option<Bytes>,
}

/// Whether all of so many that were asked have accepted one and the same, which has not expired. `told`: what they have accepted.
fn is_sure(told: &[Register], asked: usize, now: WallTime) -> bool {
    let one = told.first().map(Register::ballot);
    let is_one = told.iter().all(|register| Some(register.ballot()) == one);
    let has_ended = told.iter().any(|register| register.expires().is_some_and(|expires| expires <= now));
    told.len() == asked && is_one && !has_ended
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
            asked: BTreeMap::new(),
            page: None,
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
        scan.page = None;
        scan.asked.clear();
        if ctx.view.mode(request.keyspace) == Some(&Mode::Consistent) {
            for (partition, _) in asked.values().flatten() {
                *scan.asked.entry(*partition).or_default() += 1;
            }
        }
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
            .keyspace(scan.request.keyspace)
            .ok_or_else(|| RequestError::new(Kind::NotFound, "the keyspace was dropped meanwhile"))?;
        let needs = match keyspace.available() {
            Some(available) => ctx.by_rule(Needs::of_read(scan.request.consistency, available)),
            None => Needs::majority(),
        };
        let mut asked: BTreeMap<NodeId, Vec<(PartitionId, Epoch)>> = BTreeMap::new();
        for partition in layout.partition_ids().filter(|&partition| ctx.view.serves(partition)) {
            let Some(entry) = layout.entry(partition) else { continue };
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
            for node in needs.choose_owners(entry, owners).0 {
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
            if ctx.view.mode(request.keyspace) == Some(&Mode::Consistent) {
                return self.begin_page(ctx, op, answers);
            }
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
        let bound = bound_of(ctx, &answers);
        let mut cells: BTreeMap<Bytes, (Option<PartitionId>, Merged)> = BTreeMap::new();
        for (_, key, _) in answers.iter().flat_map(|answer| &answer.records) {
            if bound.as_ref().is_none_or(|bound| key <= bound) && !cells.contains_key(key) {
                cells.insert(key.clone(), (ctx.view.partition_of(key), Merged::default()));
            }
        }
        for SliceAnswer { records, settled, .. } in answers {
            let settled: BTreeMap<PartitionId, Hlc> = settled.into_iter().collect();
            let mut held: BTreeMap<Bytes, Cell> = records.into_iter().map(|(_, key, cell)| (key, cell)).collect();
            for (key, (partition, merged)) in &mut cells {
                // Nobody speaks for partitions of which he was not asked: they have no watermark here.
                let until = partition.and_then(|partition| settled.get(&partition)).copied().unwrap_or_default();
                merged.add(held.remove(key).as_ref(), until, mode);
            }
        }
        let mut entries = Vec::new();
        let mut next = bound;
        for (key, (_, merged)) in cells {
            let Some(record) = merged.cell.as_ref().and_then(Cell::record) else { continue };
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

    /// All nodes have answered a scan of a consistent keyspace.
    fn begin_page(&mut self, ctx: &mut Ctx<'_>, op: OpId, answers: Vec<SliceAnswer>) {
        let Some(Op { state: OpState::Scan(scan), .. }) = self.ops.get_mut(&op) else { return };
        let bound = bound_of(ctx, &answers);
        let mut told: BTreeMap<Bytes, Vec<Register>> = BTreeMap::new();
        for (_, key, cell) in answers.into_iter().flat_map(|answer| answer.records) {
            // A promise alone is nothing that others need to have.
            let Cell::Consistent(register) = cell else { continue };
            if register.accepted.is_some() && bound.as_ref().is_none_or(|bound| key <= *bound) {
                told.entry(key).or_default().push(register);
            }
        }
        let mut page = Page { unsure: VecDeque::new(), reads: 0, entries: BTreeMap::new(), next: bound };
        let mut last = None;
        for (key, mut told) in told {
            if page.entries.len() + page.unsure.len() == scan.request.limit {
                page.next = last;
                break;
            }
            let partition = ctx.view.partition_of(&key);
            let asked = partition.and_then(|partition| scan.asked.get(&partition)).copied().unwrap_or_default();
            if is_sure(&told, asked, ctx.kernel.now.wall) || !ctx.view.keep(Rule::ReadWantsAgreement) {
                let state = told.pop().and_then(|register| register.accepted).map(|accepted| accepted.state);
                let Some(state) = state.filter(|state| state.value.is_some()) else { continue };
                let context = token::encode(Some(state.version), scan.request.keyspace, &key);
                let values = value_of_state(state).into_iter().collect();
                page.entries.insert(key.clone(), ScanEntry { key: key.clone(), values, context });
            } else {
                page.unsure.push_back(key.clone());
            }
            last = Some(key);
        }
        scan.page = Some(page);
        self.read_page(ctx, op);
    }

    /// Reads keys of a page of which it is not certain what they hold. Without any the page is complete.
    fn read_page(&mut self, ctx: &mut Ctx<'_>, op: OpId) {
        loop {
            let is_full = self.ops.len() >= ctx.view.config.requests_max;
            let Some(Op { state: OpState::Scan(scan), deadline, .. }) = self.ops.get_mut(&op) else { return };
            let (deadline, attempt, keyspace) = (*deadline, scan.attempt, scan.request.keyspace);
            let Some(page) = &mut scan.page else { return };
            if page.reads == 0 && page.unsure.is_empty() {
                let (entries, next) = (std::mem::take(&mut page.entries), page.next.take());
                return self.finish(ctx, op, Ok(Response::Page { entries: entries.into_values().collect(), next }));
            }
            if is_full && page.reads == 0 {
                let message = "there is no room for the reads of a scan; slow down and try again";
                return self.finish(ctx, op, Err(RequestError::exhausted(message)));
            }
            if is_full || page.reads == READS_MAX {
                return;
            }
            let Some(key) = page.unsure.pop_front() else { return };
            let Some(partition) = ctx.view.partition_of(&key) else { return };
            page.reads += 1;
            self.read_for_page(ctx, (op, attempt), (partition, keyspace, key), deadline);
        }
    }

    /// A key of a page was read.
    pub(super) fn page_learns(&mut self, ctx: &mut Ctx<'_>, (op, attempt): (OpId, u32), key: Bytes, outcome: Outcome) {
        let Some(Op { state: OpState::Scan(scan), .. }) = self.ops.get_mut(&op) else { return };
        let Some(page) = scan.page.as_mut().filter(|_| scan.attempt == attempt) else { return };
        page.reads -= 1;
        match outcome {
            Ok(Response::Got { mut values, context, .. }) => {
                if scan.request.keys_only {
                    values.iter_mut().for_each(|value| value.value = Bytes::new());
                }
                if !values.is_empty() {
                    page.entries.insert(key.clone(), ScanEntry { key, values, context });
                }
                self.read_page(ctx, op);
            }
            Ok(_) => {}
            Err(error) => self.finish(ctx, op, Err(error)),
        }
    }
}

/// Behind the end of the shortest unfinished slice some replica has not spoken.
fn bound_of(ctx: &Ctx<'_>, answers: &[SliceAnswer]) -> Option<Bytes> {
    let unfinished = answers.iter().filter(|answer| answer.more && ctx.view.keep(Rule::PageEndsWhereOneStops));
    unfinished.map(|answer| answer.records.last().map(|record| record.1.clone()).unwrap_or_default()).min()
}
