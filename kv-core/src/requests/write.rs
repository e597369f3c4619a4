//! Puts and deletes in available keyspaces: write here, send the whole record to the other replicas, answer after W durable copies.

use bytes::Bytes;

use super::once::{self, Asked, Verdict};
use super::{Command, Op, OpState, Origin, Requests};
use crate::cell::Cell;
use crate::config::AvailableKeyspace;
use crate::error::{Kind, RequestError};
use crate::message::{KeyRequest, Message, Operation, Refusal, Response, Role, weight};
use crate::replication::{Goal, Target};
use crate::ring::{Entry, Owner};
use crate::rule::Rule;
use crate::storage::{Space, StorageKey, Stored};
use crate::types::{Epoch, Monotonic, NodeId};
use crate::version::{Context, ContextToken, Dot, Record, Retired, Write};
use crate::view::quorum::{self, Needs};
use crate::wiring::{AfterDurable, Ctx, OpId, Task};

/// A write in flight.
#[derive(Debug)]
pub(super) struct WriteOp {
    request: KeyRequest,
    /// The key, in the space in which this node holds the record.
    key: StorageKey,
    /// Durable copies that the client waits for.
    needs: Needs,
    /// Nodes that durably hold the write.
    acks: Vec<Ack>,
    /// Owners that were asked and have not declined.
    expected: Vec<NodeId>,
    /// The answer, once the write has been made here.
    response: Option<Response>,
}

/// A confirmation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ack {
    node: NodeId,
    role: Role,
    /// The epoch at which the node was asked. Under a later ownership than that the record may be gone again.
    epoch: Epoch,
}

impl WriteOp {
    pub(super) fn is_started(&self) -> bool {
        self.response.is_some()
    }

    pub(super) fn key(&self) -> &StorageKey {
        &self.key
    }

    pub(super) fn request(&self) -> &KeyRequest {
        &self.request
    }

    pub(super) fn progress(&self, entry: Option<&Entry>) -> String {
        let confirmed = entry
            .map_or_else(|| "none".to_owned(), |entry| self.needs.progress(entry, |owner| self.is_confirmed(owner), 0));
        match self.fallbacks() {
            0 => format!("{confirmed} copies are confirmed"),
            fallbacks => format!("{confirmed} copies are confirmed by owners, {fallbacks} by fallbacks"),
        }
    }

    fn is_confirmed(&self, owner: &Owner) -> bool {
        let by = |ack: &Ack| ack.node == owner.node && ack.role == Role::Owner && ack.epoch >= owner.since;
        self.acks.iter().any(by)
    }

    fn fallbacks(&self) -> usize {
        // One that has become an owner meanwhile counts as that.
        let owner = |node: NodeId| self.acks.iter().any(|ack| ack.node == node && ack.role == Role::Owner);
        self.acks.iter().filter(|ack| ack.role == Role::Fallback && !owner(ack.node)).count()
    }

    fn is_enough(&self, entry: &Entry, can: impl Fn(NodeId) -> bool) -> bool {
        let can = |owner: &Owner| self.expected.contains(&owner.node) && can(owner.node);
        self.needs.are_met_in_place(entry, |owner| self.is_confirmed(owner), can, self.fallbacks())
    }
}

impl Requests {
    pub(super) fn start_write(
        &mut self,
        ctx: &mut Ctx<'_>,
        origin: Origin,
        request: KeyRequest,
        role: Role,
        deadline: Monotonic,
    ) {
        let Some(partition) = ctx.view.partition_of(&request.key) else { return };
        let Some(keyspace) = ctx.view.available(request.keyspace) else { return };
        let Some(entry) = ctx.view.entry(partition) else { return };
        let needs = ctx.by_rule(Needs::of_write(request.consistency, keyspace));
        let up = |owner: &Owner| ctx.is_owner_up(partition, owner.node);
        let mut fallbacks = 0;
        if !needs.are_met(entry, up, 0) && !quorum::owners_only(request.consistency) {
            let down = entry.nodes().filter(|&node| !ctx.is_owner_up(partition, node)).count();
            fallbacks = ctx.fallbacks_up(partition, down).len();
        }
        if !needs.are_met(entry, up, fallbacks) {
            let reached = needs.progress(entry, up, fallbacks);
            let error = RequestError::unavailable(format!(
                "{partition}: only {reached} copies that this write needs can be made; nothing was written"
            ));
            self.answer(ctx, origin, Err(error));
            return;
        }
        let bytes = weight::of_key_request(&request);
        let takes = |owner: &Owner| up(owner) && ctx.kernel.peer_has_room(owner.node, bytes);
        if !needs.are_met(entry, takes, fallbacks) {
            let error = ctx.peers_full(entry.nodes().filter(|&node| !ctx.kernel.peer_has_room(node, bytes)));
            self.answer(ctx, origin, Err(error));
            return;
        }
        if ctx.replications >= ctx.view.config.replications_max {
            let error = RequestError::exhausted(format!(
                "{} writes wait for slow replicas, the most that this node keeps; slow down and try again",
                ctx.view.config.replications_max
            ));
            self.answer(ctx, origin, Err(error));
            return;
        }
        if role == Role::Fallback
            && let Some(full) = ctx.hints_full()
        {
            self.answer(ctx, origin, Err(full));
            return;
        }
        let key = match role {
            Role::Owner => StorageKey::owned(partition, request.keyspace, &request.key),
            Role::Fallback => StorageKey::hint(keyspace, partition, &request.key),
        };
        let write =
            WriteOp { request, key: key.clone(), needs, acks: Vec::new(), expected: Vec::new(), response: None };
        let op = self.open_op(ctx, origin, deadline, OpState::Write(write));
        ctx.kernel.with_key(key, Task::Write(op));
    }

    /// The key's record is in memory: write, and replicate.
    pub(crate) fn coordinate_write(&mut self, ctx: &mut Ctx<'_>, op: OpId, key: &StorageKey, stored: Option<&Stored>) {
        let Some(Op { state: OpState::Write(write), .. }) = self.ops.get(&op) else { return };
        if key.space() == Space::Owned && !ctx.view.is_synced(key.partition()) {
            // A layout came while the key was read: others coordinate now.
            return self.withdraw_write(ctx, op);
        }
        let request = write.request.clone();
        let Operation::Write { request: Some(id), attempt, value, context, ttl, .. } = &request.operation else {
            return;
        };
        let Some(keyspace) = ctx.view.available(request.keyspace) else {
            return self.finish(ctx, op, Err(ctx.view.dropped_error(request.keyspace)));
        };
        let conflict = keyspace.settings().conflict;
        let token = match context {
            Some(context) => match ContextToken::decode(context, request.keyspace, &request.key) {
                Ok(token) => Some(self.trusted(ctx, token)),
                Err(error) => return self.finish(ctx, op, Err(RequestError::invalid(error.to_string()))),
            },
            None => None,
        };
        let before = stored.and_then(|stored| stored.cell.record());
        let asked = Asked { request: *id, attempt: *attempt, token: token.as_ref() };
        let verdict = match once::judge(ctx, asked, conflict, before) {
            Ok(verdict) => verdict,
            Err(error) => return self.finish(ctx, op, Err(error)),
        };
        let (record, dot, token) = match verdict {
            // It is confirmed and replicated again without a new dot. What stands there may be later than what its client
            // knows of, so the client is told of its own write only (rule A7).
            Verdict::Done => {
                let token = token.unwrap_or_default().with(*id, id.stamp);
                (before.cloned().unwrap_or_default(), None, token)
            }
            Verdict::Write { request: id, written, replaces } => {
                let mut record = before.cloned().unwrap_or_default();
                let actor = ctx.actor_for(key, stored);
                let expires = ttl.map(|ttl| id.stamp.wall().plus(ttl));
                let value = value.as_ref().map(copy);
                let new = Write { written, request: id, expires, value };
                let (dot, forgotten) = record.write(actor, replaces, conflict, new);
                self.break_rules(ctx, &mut record, before, dot, token.as_ref());
                if let Err(error) = self.check_growth(ctx, &record) {
                    return self.finish(ctx, op, Err(error));
                }
                ctx.kernel.retired_forgotten += forgotten as u64;
                let mut cell = Cell::from(record);
                ctx.age_out(key.partition(), &mut cell);
                let record = cell.record().cloned().unwrap_or_default();
                let token = ContextToken::after_write(&record, token.unwrap_or_default(), id, written);
                ctx.kernel.put(key, Some(Stored { own: Some(actor), cell }));
                (record, Some(dot), token)
            }
        };
        let response = Response::Written {
            context: token.encode(request.keyspace, &request.key),
            siblings: record.live(ctx.kernel.now.wall).len(),
            newest: ctx.newest(record.latest()),
        };
        if let Some(Op { state: OpState::Write(write), .. }) = self.ops.get_mut(&op) {
            write.response = Some(response);
        }
        let epoch = ctx.view.entry_epoch(key.partition());
        ctx.kernel.after_key(key, AfterDurable::Acked { op, epoch });
        self.replicate_write(ctx, (op, keyspace), key, record, dot, &request);
    }

    /// What a client passed, without what nobody can have made.
    #[allow(clippy::unused_self, reason = "it belongs to the steps of a write")]
    fn trusted(&self, ctx: &Ctx<'_>, mut token: ContextToken) -> ContextToken {
        token.forget_above(ctx.latest_credible());
        if !ctx.view.keep(Rule::TokensNameShown) {
            token.shown.clear();
        }
        token
    }

    /// What a write must not do to a record (rule A7), for the mutation check.
    #[allow(clippy::unused_self, reason = "it belongs to the steps of a write")]
    fn break_rules(
        &self,
        ctx: &Ctx<'_>,
        record: &mut Record,
        before: Option<&Record>,
        dot: Dot,
        token: Option<&ContextToken>,
    ) {
        if !ctx.view.keep(Rule::RetireReplaced) {
            record.retired = before.map(|before| before.retired.clone()).unwrap_or_default();
        }
        if let (Some(token), Some(before)) = (token, before)
            && !ctx.view.keep(Rule::ReplaceById)
        {
            let mut siblings: Vec<_> =
                before.siblings.iter().filter(|it| !token.context.covers(it.dot)).cloned().collect();
            siblings.extend(record.siblings.iter().filter(|it| it.dot == dot).cloned());
            siblings.sort_by_key(|it| it.dot);
            record.retired.retain(|id| !siblings.iter().any(|it| it.request == id));
            record.siblings = siblings;
        }
    }

    /// Sends the record to the other owners, and to a fallback for each owner that is down.
    fn replicate_write(
        &mut self,
        ctx: &mut Ctx<'_>,
        (op, keyspace): (OpId, AvailableKeyspace),
        key: &StorageKey,
        record: Record,
        dot: Option<Dot>,
        request: &KeyRequest,
    ) {
        let me = ctx.me();
        let partition = key.partition();
        let owners: Vec<NodeId> = ctx.view.entry(partition).map(|entry| entry.nodes().collect()).unwrap_or_default();
        let is_down = |owner: NodeId| !ctx.reachable(owner) || !ctx.view.keep(Rule::FallbackOnlyForDown);
        let down = owners.iter().filter(|&&owner| is_down(owner)).count();
        let expected = owners.iter().copied().filter(|&owner| ctx.reachable(owner)).collect();
        let mut targets: Vec<Target> = owners.into_iter().filter(|&owner| owner != me).map(Target::owner).collect();
        if !quorum::owners_only(request.consistency) && down > 0 {
            let fallbacks = ctx.fallbacks_up(partition, down);
            targets
                .extend(fallbacks.into_iter().filter(|&node| node != me).map(|node| Target::fallback(node, keyspace)));
        }
        if let Some(Op { state: OpState::Write(write), .. }) = self.ops.get_mut(&op) {
            write.expected = expected;
        }
        let sent = match dot {
            Some(dot) if !ctx.view.keep(Rule::WholeRecord) => delta(&record, dot),
            _ => record,
        };
        let goal = Goal::Write { op, keyspace };
        self.commands.push_back(Command::Replicate { key: key.clone(), cell: sent.into(), targets, goal });
    }

    /// Nothing was written yet, and this node must not: the request goes to whoever owns the key now.
    fn withdraw_write(&mut self, ctx: &mut Ctx<'_>, op: OpId) {
        let Some(Op { origin, deadline, timer, state: OpState::Write(write), .. }) = self.ops.remove(&op) else {
            return;
        };
        ctx.kernel.cancel_timer(timer);
        match origin {
            Origin::Peer { node, call } => {
                let newer = ctx.view.entry(write.key.partition()).cloned();
                let refusal = newer.map_or(Refusal::NotOwner, |newer| Refusal::Stale { newer });
                ctx.kernel.send(node, Message::Forwarded { call, outcome: Err(refusal) });
            }
            origin => self.route(ctx, origin, KeyRequest { epoch: Epoch(0), ..write.request }, deadline),
        }
    }

    /// This node's own copy of a write is durable.
    pub(crate) fn write_durable(&mut self, ctx: &mut Ctx<'_>, op: OpId, epoch: Epoch) {
        let Some(Op { state: OpState::Write(write), .. }) = self.ops.get(&op) else { return };
        let role = if write.key.space() == Space::Hint { Role::Fallback } else { Role::Owner };
        self.write_acked(ctx, op, ctx.me(), role, epoch);
    }

    /// `node`, asked at `epoch`, durably holds the write.
    pub(crate) fn write_acked(&mut self, ctx: &mut Ctx<'_>, op: OpId, node: NodeId, role: Role, epoch: Epoch) {
        let Some(Op { state: OpState::Write(write), .. }) = self.ops.get_mut(&op) else { return };
        let ack = Ack { node, role, epoch };
        if !write.acks.contains(&ack) {
            write.acks.push(ack);
        }
        self.write_evaluate(ctx, op);
    }

    /// Answers a write that has enough copies, by the entry that is in force now.
    pub(super) fn write_evaluate(&mut self, ctx: &mut Ctx<'_>, op: OpId) {
        let Some(Op { state: OpState::Write(write), .. }) = self.ops.get(&op) else { return };
        let partition = write.key.partition();
        let can = |node| ctx.may_still_answer(partition, node);
        let enough = ctx.view.entry(partition).is_some_and(|entry| write.is_enough(entry, can));
        if enough
            && let Some(Op { state: OpState::Write(write), .. }) = self.ops.get_mut(&op)
            && let Some(response) = write.response.take()
        {
            self.finish(ctx, op, Ok(response));
        }
    }

    /// An owner or a fallback does not take the write now, or its session has ended.
    pub(crate) fn write_declined(&mut self, ctx: &mut Ctx<'_>, op: OpId, node: NodeId) {
        if let Some(Op { state: OpState::Write(write), .. }) = self.ops.get_mut(&op) {
            write.expected.retain(|expected| *expected != node);
            self.write_evaluate(ctx, op);
        }
    }

    /// A node has stalled or gone: what fallbacks have confirmed may be enough for writes that waited for it.
    pub(crate) fn writes_without(&mut self, ctx: &mut Ctx<'_>) {
        let waits = |op: &Op| matches!(&op.state, OpState::Write(write) if write.fallbacks() > 0);
        for op in self.ops.iter().filter(|(_, op)| waits(op)).map(|(&id, _)| id).collect::<Vec<_>>() {
            self.write_evaluate(ctx, op);
        }
    }

    /// Whether a write still waits for copies and lets fallbacks count.
    pub(crate) fn write_wants_fallback(&self, op: OpId) -> bool {
        match self.ops.get(&op) {
            Some(Op { state: OpState::Write(write), .. }) => !quorum::owners_only(write.request.consistency),
            _ => false,
        }
    }

    /// Replication has ended and the write's copies are too few: the client learns that now instead of at its deadline.
    pub(crate) fn write_short(&mut self, ctx: &mut Ctx<'_>, op: OpId) {
        let Some(Op { state: OpState::Write(write), .. }) = self.ops.get(&op) else { return };
        let me = ctx.me();
        let Some(entry) = ctx.view.entry(write.key.partition()) else { return };
        // The node's own copy may still be on its way to the disk.
        let stands_in = write.key.space() == Space::Hint;
        let own_pending = stands_in && !write.acks.iter().any(|ack| ack.node == me);
        let has = |owner: &Owner| write.is_confirmed(owner) || (!stands_in && owner.node == me);
        if !write.needs.are_met(entry, has, write.fallbacks() + usize::from(own_pending)) {
            let message = format!(
                "the outcome is unknown: {}, and the other replicas cannot be reached; repeating it with the same request id is safe",
                write.progress(Some(entry))
            );
            self.finish(ctx, op, Err(RequestError::new(Kind::Unknown, message)));
        }
    }

    fn check_growth(&self, ctx: &Ctx<'_>, record: &Record) -> Result<(), RequestError> {
        // A write that was repeated at another coordinator has two dots and is one value.
        let values = record.operations();
        if values > ctx.view.cluster.siblings_max {
            return Err(RequestError::new(
                Kind::Exhausted,
                format!(
                    "{values} concurrent values would stand side by side, the limit is {}; read the key and put with its context",
                    ctx.view.cluster.siblings_max
                ),
            ));
        }
        let bytes = record.value_bytes();
        let bytes_max = ctx.view.cluster.record_bytes_max();
        if values > 1 && bytes > bytes_max {
            return Err(RequestError::new(
                Kind::Exhausted,
                format!(
                    "the concurrent values of the key would take {bytes} bytes, the limit is {bytes_max}; read the key and put with its context"
                ),
            ));
        }
        let actors = record.context.len();
        if actors > ctx.view.cluster.actors_max {
            return Err(RequestError::new(
                Kind::Exhausted,
                format!(
                    "the context of the key would name {actors} actors, the limit is {}; copy the value to a new key",
                    ctx.view.cluster.actors_max
                ),
            ));
        }
        Ok(())
    }
}

/// What a coordinator must not send (rule A2): only the new version. For the mutation check.
fn delta(record: &Record, dot: Dot) -> Record {
    let mut context = Context::new();
    context.see(dot);
    let siblings = record.siblings.iter().filter(|sibling| sibling.dot == dot).cloned().collect();
    Record { context, siblings, retired: Retired::default() }
}

/// A value of its own: a slice of a request's frame would keep the whole frame in memory.
pub(super) fn copy(value: &Bytes) -> Bytes {
    Bytes::copy_from_slice(value)
}
