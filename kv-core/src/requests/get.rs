//! Gets: one full record and digests from R replicas; merge, answer, repair.

use super::{Command, Op, OpState, Origin, Requests};
use crate::cell::Cell;
use crate::config::Mode;
use crate::error::{Kind, RequestError};
use crate::event::Event;
use crate::kernel::TimerKey;
use crate::message::{Consistency, KeyRequest, Level, ReadReply, Refusal, Response, Role, Value};
use crate::replication::{Goal, Target};
use crate::ring::{Entry, Owner};
use crate::rule::Rule;
use crate::storage::{Space, StorageKey};
use crate::types::{Hlc, Monotonic, NodeId};
use crate::version::{ContextToken, Record, Version};
use crate::view::quorum::{self, Asked, Needs};
use crate::wiring::{Applied, Ctx, OpId, Task, Timer, Waiter};

/// A read in flight.
#[derive(Debug)]
pub(super) struct GetOp {
    pub(super) key: StorageKey,
    consistency: Consistency,
    /// What must answer.
    needs: Needs,
    /// Who may be asked and has not been, in order.
    candidates: Vec<Asked>,
    /// Who has been asked and has not answered.
    waiting: Vec<Asked>,
    answers: Vec<Answer>,
    /// Who has refused at this epoch and may answer when either side knows the other's layout.
    late: Vec<Asked>,
    failures: Vec<String>,
    /// Whether one of them failed because it had no room.
    is_busy: bool,
    pub(super) hedge: Option<TimerKey>,
}

#[derive(Debug)]
struct Answer {
    from: Asked,
    /// `None` if it holds nothing.
    digest: Option<u64>,
    /// What it holds; `None` if only the digest is known.
    held: Option<Option<Cell>>,
    /// Up to when its copy has settled (rule A6).
    settled: Hlc,
}

impl GetOp {
    pub(super) fn progress(&self, entry: Option<&Entry>) -> String {
        let has = |owner: &Owner| self.answers.iter().any(|answer| answer.from == (owner.node, Role::Owner));
        let fallbacks = self.answers.iter().filter(|answer| answer.from.1 == Role::Fallback).count();
        let answered = entry.map_or_else(|| "none".to_owned(), |entry| self.needs.progress(entry, has, 0));
        let mut text = match fallbacks {
            0 => format!("{answered} replicas answered"),
            _ => format!("{answered} owners answered, and {fallbacks} fallbacks"),
        };
        for failure in &self.failures {
            text.push_str("; ");
            text.push_str(failure);
        }
        text
    }
}

impl Requests {
    pub(super) fn start_get(&mut self, ctx: &mut Ctx<'_>, origin: Origin, request: &KeyRequest, deadline: Monotonic) {
        let Some(partition) = ctx.view.partition_of(&request.key) else { return };
        let key = StorageKey::owned(partition, request.keyspace, &request.key);
        self.open_get(ctx, origin, key, request.consistency, deadline);
    }

    fn open_get(
        &mut self,
        ctx: &mut Ctx<'_>,
        origin: Origin,
        key: StorageKey,
        consistency: Consistency,
        deadline: Monotonic,
    ) {
        let get = GetOp {
            key,
            consistency,
            needs: Needs::every_old_owner(),
            candidates: Vec::new(),
            waiting: Vec::new(),
            answers: Vec::new(),
            late: Vec::new(),
            failures: Vec::new(),
            is_busy: false,
            hedge: None,
        };
        let op = self.open_op(ctx, origin, deadline, OpState::Get(get));
        self.restart_get(ctx, op);
    }

    /// Asks as many replicas as must answer: the first for its record, the others for digests.
    pub(super) fn restart_get(&mut self, ctx: &mut Ctx<'_>, op: OpId) {
        // A late answer to the last attempt is one of another epoch.
        ctx.kernel.forget_calls(|purpose| matches!(purpose, Waiter::Read(other, _) if other == op));
        let Some(Op { state: OpState::Get(get), origin, .. }) = self.ops.get(&op) else { return };
        let partition = get.key.partition();
        let keyspace_id = get.key.keyspace();
        let consistency = get.consistency;
        let restores = matches!(origin, Origin::Restore(_));
        let Some(keyspace) = ctx.view.available(keyspace_id) else { return };
        let Some(entry) = ctx.view.entry(partition).cloned() else { return };
        let me = ctx.me();
        let mut candidates: Vec<Asked> = ctx.owners_up(partition).into_iter().map(|node| (node, Role::Owner)).collect();
        let mut needs = ctx.by_rule(Needs::of_read(consistency, keyspace));
        let mut fallbacks = 0;
        let up = |owner: &Owner| ctx.is_owner_up(partition, owner.node);
        if restores {
            // The damaged record may have been one of a write's W copies: all others together hold the write.
            candidates.retain(|asked| asked.0 != me);
            needs = Needs::every_old_owner();
        } else if !quorum::owners_only(consistency) && !needs.are_met(&entry, up, 0) {
            let absent = entry.nodes().count().saturating_sub(candidates.len());
            let found = ctx.fallbacks_up(partition, absent);
            fallbacks = found.len();
            candidates.extend(found.into_iter().map(|node| (node, Role::Fallback)));
        }
        if !needs.are_met(&entry, |owner| (restores && owner.node == me) || up(owner), fallbacks) {
            let reached = needs.progress(&entry, up, fallbacks);
            let error = RequestError::unavailable(format!(
                "{partition}: only {reached} replicas that this read needs can be reached"
            ));
            self.finish(ctx, op, Err(error));
            return;
        }
        let (first, candidates) = needs.choose(&entry, candidates);
        let hedge = ctx.kernel.now.mono.plus(ctx.view.config.hedge_after);
        let hedge = ctx.kernel.set_timer(hedge, Timer::Hedge(op));
        self.ops.forget_answers(op);
        let Some(Op { state: OpState::Get(get), .. }) = self.ops.get_mut(&op) else { return };
        get.needs = needs;
        get.candidates = candidates;
        get.waiting.clone_from(&first);
        get.answers.clear();
        get.late.clear();
        let old = get.hedge.replace(hedge);
        let key = get.key.clone();
        if let Some(old) = old {
            ctx.kernel.cancel_timer(old);
        }
        for (index, (node, role)) in first.into_iter().enumerate() {
            self.ask_read(ctx, op, node, role, &key, index > 0 && !restores);
        }
    }

    /// Some replica is slow: ask those that were not asked.
    pub(super) fn hedge_get(&mut self, ctx: &mut Ctx<'_>, op: OpId) {
        let Some(Op { state: OpState::Get(get), .. }) = self.ops.get_mut(&op) else { return };
        if let Some(timer) = get.hedge.take() {
            ctx.kernel.cancel_timer(timer);
        }
        let more = std::mem::take(&mut get.candidates);
        get.waiting.extend(&more);
        self.ask_more(ctx, op, more);
    }

    /// Asks some of those that the read waits for, for their records. The session of one of them may have ended since it became
    /// a candidate, or since it told its digest.
    fn ask_more(&mut self, ctx: &mut Ctx<'_>, op: OpId, more: Vec<Asked>) {
        let Some(Op { state: OpState::Get(get), .. }) = self.ops.get(&op) else { return };
        let key = get.key.clone();
        let (up, gone): (Vec<Asked>, Vec<Asked>) = more.into_iter().partition(|asked| ctx.reachable(asked.0));
        for (node, role) in up {
            self.ask_read(ctx, op, node, role, &key, false);
        }
        for (node, role) in gone {
            self.get_failed(ctx, op, node, role, None);
        }
    }

    pub(super) fn get_answered(&mut self, ctx: &mut Ctx<'_>, op: OpId, from: Asked, held: ReadReply, settled: Hlc) {
        let Some(Op { state: OpState::Get(get), .. }) = self.ops.get_mut(&op) else { return };
        if !get.waiting.contains(&from) {
            return;
        }
        get.waiting.retain(|asked| *asked != from);
        let answer = match held {
            ReadReply::Full(cell) => {
                Answer { from, digest: cell.as_ref().map(Cell::digest), held: Some(cell), settled }
            }
            ReadReply::Digest(digest) => Answer { from, digest, held: None, settled },
        };
        match get.answers.iter_mut().find(|known| known.from == from) {
            Some(known) => *known = answer,
            None => get.answers.push(answer),
        }
        self.evaluate_get(ctx, op);
    }

    pub(super) fn get_failed(
        &mut self,
        ctx: &mut Ctx<'_>,
        op: OpId,
        node: NodeId,
        role: Role,
        refusal: Option<Refusal>,
    ) {
        let again = matches!(refusal, Some(Refusal::Behind { epoch }) if epoch < ctx.kernel.peers.caught_up(node));
        let Some(Op { state: OpState::Get(get), .. }) = self.ops.get_mut(&op) else { return };
        get.waiting.retain(|asked| *asked != (node, role));
        // An answer that was a digest cannot be completed any more.
        get.answers.retain(|answer| answer.from != (node, role) || answer.held.is_some());
        if matches!(refusal, Some(Refusal::Behind { .. } | Refusal::Stale { .. })) {
            get.late.push((node, role));
        }
        get.is_busy |= matches!(refusal, Some(Refusal::Busy(_)));
        let why = refusal.map_or_else(|| "down".to_owned(), |refusal| refusal.to_string());
        get.failures.push(format!("{node}: {why}"));
        if !get.candidates.is_empty() {
            let next = get.candidates.remove(0);
            get.waiting.push(next);
            self.ask_more(ctx, op, vec![next]);
        }
        if again {
            self.read_late(ctx, op, node);
        }
        self.evaluate_get(ctx, op);
    }

    /// A node that refused reads because it lacked a layout has it now.
    pub(crate) fn read_again(&mut self, ctx: &mut Ctx<'_>, node: NodeId) {
        for op in self.late_reads(node) {
            self.read_late(ctx, op, node);
        }
    }

    /// A node that refused reads because it lacked a layout has gone.
    pub(crate) fn late_reads_lost(&mut self, ctx: &mut Ctx<'_>, node: NodeId) {
        for op in self.late_reads(node) {
            if let Some(Op { state: OpState::Get(get), .. }) = self.ops.get_mut(&op) {
                get.late.retain(|late| late.0 != node);
            }
            self.evaluate_get(ctx, op);
        }
    }

    fn late_reads(&self, node: NodeId) -> Vec<OpId> {
        let is_late = |op: &Op| matches!(&op.state, OpState::Get(get) if get.late.iter().any(|late| late.0 == node));
        self.ops.iter().filter(|(_, op)| is_late(op)).map(|(&id, _)| id).collect()
    }

    fn read_late(&mut self, ctx: &mut Ctx<'_>, op: OpId, node: NodeId) {
        let Some(Op { state: OpState::Get(get), .. }) = self.ops.get_mut(&op) else { return };
        let again: Vec<Asked> = get.late.extract_if(.., |late| late.0 == node).collect();
        get.waiting.extend(&again);
        self.ask_more(ctx, op, again);
    }

    pub(super) fn evaluate_get(&mut self, ctx: &mut Ctx<'_>, op: OpId) {
        let Some(Op { state: OpState::Get(get), origin, .. }) = self.ops.get(&op) else { return };
        let Some(entry) = ctx.view.entry(get.key.partition()) else { return };
        let restores = matches!(origin, Origin::Restore(_));
        let own = |node: NodeId| restores && node == ctx.me();
        let answered: Vec<Asked> = get.answers.iter().map(|answer| answer.from).collect();
        let met = |asked: &[Asked]| {
            let fallbacks = asked.iter().filter(|asked| asked.1 == Role::Fallback).count();
            let has = |owner: &Owner| own(owner.node) || asked.contains(&(owner.node, Role::Owner));
            let partition = get.key.partition();
            let can = |owner: &Owner| {
                let asked = (owner.node, Role::Owner);
                let waits = get.waiting.iter().chain(&get.candidates).chain(&get.late).any(|other| *other == asked);
                waits && ctx.may_still_answer(partition, owner.node)
            };
            get.needs.are_met_in_place(entry, has, can, fallbacks)
        };
        if !met(&answered) {
            let mut possible = answered.clone();
            for asked in get.waiting.iter().chain(&get.candidates).chain(&get.late) {
                if !possible.contains(asked) {
                    possible.push(*asked);
                }
            }
            if !met(&possible) {
                let kind = if get.is_busy { Kind::Exhausted } else { Kind::Unavailable };
                let error = RequestError::new(kind, format!("{}; try again", get.progress(Some(entry))));
                self.finish(ctx, op, Err(error));
            }
            return;
        }
        let mode = ctx.view.mode(get.key.keyspace());
        let mut merged = Merged::default();
        for answer in &get.answers {
            if let Some(held) = &answer.held {
                merged.add(held.as_ref(), answer.settled, mode);
            }
        }
        let merged = merged.cell;
        // A digest says enough if it is that of the result or of a cell that is known.
        let of_merged = merged.as_ref().map(Cell::digest);
        let is_known = |digest: Option<u64>| {
            digest == of_merged || get.answers.iter().any(|answer| answer.held.is_some() && answer.digest == digest)
        };
        let no_cell = get.answers.iter().all(|answer| answer.held.is_none());
        let unknown: Vec<Asked> = get
            .answers
            .iter()
            .filter(|answer| answer.held.is_none() && (no_cell || !is_known(answer.digest)))
            .map(|answer| answer.from)
            .collect();
        let known: Vec<Asked> = answered.into_iter().filter(|asked| !unknown.contains(asked)).collect();
        if !unknown.is_empty() && met(&known) {
            // Others have told enough: one that has told its digest and then says nothing is not waited for.
            if let Some(Op { state: OpState::Get(get), .. }) = self.ops.get_mut(&op) {
                get.answers.retain(|answer| !unknown.contains(&answer.from));
            }
        } else if !unknown.is_empty() {
            let ask: Vec<Asked> = unknown.into_iter().filter(|asked| !get.waiting.contains(asked)).collect();
            if let Some(Op { state: OpState::Get(get), .. }) = self.ops.get_mut(&op) {
                get.waiting.extend(&ask);
            }
            return self.ask_more(ctx, op, ask);
        }
        self.complete_get(ctx, op, merged);
    }

    fn complete_get(&mut self, ctx: &mut Ctx<'_>, op: OpId, merged: Option<Cell>) {
        let Some(Op { state: OpState::Get(get), origin, .. }) = self.ops.get_mut(&op) else { return };
        let key = get.key.clone();
        let digest = merged.as_ref().map(Cell::digest);
        let owner_answered = get.answers.iter().any(|answer| answer.from.1 == Role::Owner);
        let stale: Vec<NodeId> = get
            .answers
            .iter()
            .filter(|answer| answer.from.1 == Role::Owner && answer.digest != digest)
            .map(|answer| answer.from.0)
            .collect();
        if let Origin::Restore(damaged) = origin {
            let damaged = damaged.clone();
            self.finish(ctx, op, Ok(Response::Inspected { replicas: Vec::new() }));
            ctx.restore(&damaged, merged);
            return;
        }
        let empty = Record::default();
        let record = merged.as_ref().and_then(Cell::record).unwrap_or(&empty);
        // Fallbacks that hold nothing know nothing: without an owner's word a key is not called absent.
        if record.siblings.is_empty() && !owner_answered {
            let error = RequestError::unavailable(format!(
                "no owner of {} can be reached, and no fallback holds the key",
                key.partition()
            ));
            self.finish(ctx, op, Err(error));
            return;
        }
        let response = Response::Got {
            values: record.live(ctx.kernel.now.wall).into_iter().map(|version| value_of(version, false)).collect(),
            context: ContextToken::of(record).encode(key.keyspace(), key.key()),
            newest: ctx.newest(record.latest()),
        };
        self.finish(ctx, op, Ok(response));
        if let Some(cell) = merged
            && !stale.is_empty()
            && ctx.view.keep(Rule::ReadRepair)
        {
            self.read_repair(ctx, &key, cell, &stale);
        }
    }

    /// Sends the merged cell to the owners that lack some of it.
    fn read_repair(&mut self, ctx: &mut Ctx<'_>, key: &StorageKey, merged: Cell, stale: &[NodeId]) {
        let me = ctx.me();
        ctx.kernel.event(Event::ReadRepaired { partition: key.partition(), replicas: stale.len() });
        if stale.contains(&me) {
            ctx.kernel.with_key(key.clone(), Task::Apply { cell: merged.clone(), applied: Applied::Repair });
        }
        let targets: Vec<Target> = stale.iter().filter(|&&node| node != me).map(|&node| Target::owner(node)).collect();
        if !targets.is_empty() {
            self.commands.push_back(Command::Replicate { key: key.clone(), cell: merged, targets, goal: Goal::Repair });
        }
    }

    /// Reads a record of this node's own that is damaged from all other owners, to put theirs in its place.
    pub(crate) fn restore(&mut self, ctx: &mut Ctx<'_>, key: &StorageKey) {
        let under_way = self.ops.values().any(|op| matches!(&op.origin, Origin::Restore(other) if other == key));
        let me = ctx.me();
        let others = ctx
            .view
            .entry(key.partition())
            .map_or(0, |entry| entry.owners.iter().filter(|owner| owner.node != me).count());
        if key.space() != Space::Owned
            || ctx.view.is_dropped(key.keyspace())
            || under_way
            || others == 0
            || self.ops.len() >= ctx.view.config.requests_max
        {
            return;
        }
        let deadline = ctx.kernel.now.mono.plus(ctx.view.config.deadline);
        let consistency = Consistency { level: Level::All, strict: true };
        self.open_get(ctx, Origin::Restore(key.clone()), key.clone(), consistency, deadline);
    }
}

/// What several copies hold of a key. What is at or below the watermark of one that does not hold it was replaced or collected there: an
/// answer of another one from before that does not bring it back (rule A6).
#[derive(Debug, Default)]
pub(super) struct Merged {
    pub(super) cell: Option<Cell>,
    settled: Hlc,
}

impl Merged {
    pub(super) fn add(&mut self, held: Option<&Cell>, settled: Hlc, mode: Option<&Mode>) {
        match (held, &mut self.cell) {
            (Some(held), _) => {
                Cell::merge_settled_into(&mut self.cell, self.settled, held, settled, mode);
            }
            (None, Some(known)) if settled > Hlc::default() => {
                let nothing = known.nothing();
                Cell::merge_settled_into(&mut self.cell, self.settled, &nothing, settled, mode);
            }
            (None, _) => {}
        }
        self.settled = self.settled.max(settled);
    }
}

/// What a client sees of a version.
pub(super) fn value_of(version: &Version, keys_only: bool) -> Value {
    let value = if keys_only { bytes::Bytes::new() } else { version.value.clone().unwrap_or_default() };
    Value { value, written: version.written, expires: version.expires }
}
