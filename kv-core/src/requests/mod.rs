//! One request from start to end: each operation is a small state machine, numbered and bounded in time.

mod forward;
mod get;
mod in_flight;
mod inspect;
mod once;
mod register;
mod scan;
mod write;

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

use crate::cell::Cell;
use crate::config::{Keyspace, Mode};
use crate::error::{Kind, RequestError};
use crate::kernel::TimerKey;
use crate::message::{
    CallId, KeyRequest, Message, Operation, Outcome, ReadReply, Refusal, Request, Role, ScanRequest, SliceQuery, When,
    weight,
};
use crate::parts::Ask;
use crate::register::token;
use crate::replication::{Goal, Target};
use crate::rule::Rule;
use crate::shell::{Effect, Tag};
use crate::storage::StorageKey;
use crate::types::{Hlc, KeyspaceId, Monotonic, NodeId, PartitionId};
use crate::view::View;
use crate::wiring::{Ctx, OpId, Task, Timer, Waiter};
use forward::HedgeBudget;
use get::GetOp;
use in_flight::InFlight;
use inspect::InspectOp;
use register::{RegisterOp, Registers};
use scan::ScanOp;
use write::WriteOp;

/// The requests that this node coordinates, forwards or answers.
#[derive(Debug)]
pub(crate) struct Requests {
    ops: InFlight,
    hedges: HedgeBudget,
    registers: Registers,
    commands: VecDeque<Command>,
}

/// What a request needs of others.
#[derive(Debug)]
pub(crate) enum Command {
    /// A cell is to be brought to other nodes.
    Replicate { key: StorageKey, cell: Cell, targets: Vec<Target>, goal: Goal },
    /// A slice of this node's own is to be read for an attempt of a scan.
    Slice { op: OpId, attempt: u32, query: SliceQuery },
    /// Slices that are being read for a scan are not needed any more.
    ForgetSlices { op: OpId },
}

/// A request in flight.
#[derive(Debug)]
struct Op {
    origin: Origin,
    /// When its client stops waiting.
    deadline: Monotonic,
    timer: TimerKey,
    /// Bytes of the request that count, if it is a write.
    bytes: usize,
    /// Bytes that replicas have answered, if it is a read.
    answer_bytes: usize,
    state: OpState,
}

/// Who gets the answer.
#[derive(Clone, Debug)]
enum Origin {
    /// A client of this node.
    Client(Tag),
    /// A node that forwarded its client's request.
    Peer { node: NodeId, call: CallId },
    /// The hub, for a client's scan of which this loop has a part.
    Part(Tag),
    /// A scan of this node, of which an attempt needs to know what is certain of a key.
    Page { scan: OpId, attempt: u32, key: Bytes },
    /// Nobody: the node replaces a record of its own that it cannot read.
    Restore(StorageKey),
    /// Nobody: the node brings replicas together.
    Nobody,
}

#[derive(Debug)]
enum OpState {
    Forward(forward::ForwardOp),
    Get(GetOp),
    Write(WriteOp),
    Register(Box<RegisterOp>),
    Scan(ScanOp),
    Inspect(InspectOp),
}

impl Op {
    /// Bytes that replicas have answered.
    fn answer_bytes(&self) -> usize {
        self.answer_bytes
    }

    /// The keyspace that it is about.
    fn keyspace(&self) -> KeyspaceId {
        match &self.state {
            OpState::Forward(forward) => forward.keyspace(),
            OpState::Get(get) => get.key.keyspace(),
            OpState::Write(write) => write.key().keyspace(),
            OpState::Register(register) => register.key().keyspace(),
            OpState::Scan(scan) => scan.keyspace(),
            OpState::Inspect(inspect) => inspect.keyspace,
        }
    }

    /// Whether a write was started that may take effect although the client is told nothing good.
    fn may_take_effect(&self) -> bool {
        match &self.state {
            OpState::Write(write) => write.is_started(),
            OpState::Register(register) => register.may_take_effect(),
            OpState::Forward(forward) => forward.may_take_effect(),
            OpState::Get(_) | OpState::Scan(_) | OpState::Inspect(_) => false,
        }
    }
}

impl Requests {
    pub(crate) fn new(map_seed: u64) -> Self {
        Self {
            ops: InFlight::default(),
            hedges: HedgeBudget::default(),
            registers: Registers::new(map_seed),
            commands: VecDeque::new(),
        }
    }

    /// How many are in flight.
    pub(crate) fn len(&self) -> usize {
        self.ops.len()
    }

    /// Bytes of keys and values of the writes in flight.
    pub(crate) fn request_bytes(&self) -> usize {
        self.ops.request_bytes()
    }

    /// Bytes that replicas have answered to the reads in flight.
    pub(crate) fn answer_bytes(&self) -> usize {
        self.ops.answer_bytes()
    }

    /// Forwarded requests that were sent to another owner as well.
    pub(crate) fn hedged(&self) -> u64 {
        self.hedges.spent
    }

    /// How often proposals for registers began again.
    pub(crate) fn register_retries(&self) -> u64 {
        self.registers.retries()
    }

    /// Whether a request is in flight.
    pub(crate) fn is_open(&self, op: OpId) -> bool {
        self.ops.get(&op).is_some()
    }

    /// The next thing that a request needs of others.
    pub(crate) fn next_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// The store has failed, so what reached it is unknown: nothing is answered from here any more.
    pub(crate) fn stop(&mut self, ctx: &mut Ctx<'_>, reason: &str, stopped: &RequestError) {
        for op in self.ops.keys().copied().collect::<Vec<_>>() {
            // The end of one may have been that of another one, which waited for it.
            let Some(found) = self.ops.get(&op) else { continue };
            let outcome = if found.may_take_effect() {
                RequestError::new(Kind::Unknown, format!("the outcome is unknown: {reason}"))
            } else {
                stopped.clone()
            };
            self.finish(ctx, op, Err(outcome));
        }
    }

    /// Requests on keyspaces that were dropped meanwhile have nothing to wait for.
    pub(crate) fn end_dropped(&mut self, ctx: &mut Ctx<'_>) {
        let gone = self.ops.iter().filter(|(_, op)| ctx.view.is_dropped(op.keyspace()));
        let gone: Vec<(OpId, KeyspaceId, bool)> =
            gone.map(|(&id, op)| (id, op.keyspace(), op.may_take_effect())).collect();
        for (op, keyspace, may_take_effect) in gone {
            let error = ctx.view.dropped_error(keyspace);
            let kind = if may_take_effect { Kind::Unknown } else { error.kind };
            self.finish(ctx, op, Err(RequestError::new(kind, error.message)));
        }
    }

    /// Refuses a write for whose bytes there is no room. One alone always fits.
    fn admit_bytes(&self, ctx: &Ctx<'_>, request: &Request) -> Result<(), RequestError> {
        let bytes = weight::of_request(request);
        let (held, limit) = (self.ops.request_bytes(), ctx.view.config.request_bytes_max);
        if bytes > 0 && held > 0 && held + bytes > limit {
            return Err(RequestError::exhausted(format!(
                "{held} bytes of puts are in flight and this one has {bytes}, the most that this node takes is {limit}; slow \
                 down and try again"
            )));
        }
        Ok(())
    }

    /// Counts what replicas have told for a read. If there is no room the read ends and this says so.
    fn keep_answer(&mut self, ctx: &mut Ctx<'_>, op: OpId, bytes: usize) -> bool {
        let (held, limit) = (self.ops.answer_bytes(), ctx.view.config.answer_bytes_max);
        // One alone always fits.
        let others = held > self.ops.get(&op).map_or(0, Op::answer_bytes);
        if others && bytes > 0 && held + bytes > limit {
            let error = RequestError::exhausted(format!(
                "{held} bytes of answers of replicas are held for reads in flight and there are {bytes} more, the most that \
                 this node holds is {limit}; nothing was done, slow down and try again"
            ));
            self.finish(ctx, op, Err(error));
            return false;
        }
        self.ops.add_answer(op, bytes);
        true
    }

    /// A client asks this node.
    pub(crate) fn client_request(&mut self, ctx: &mut Ctx<'_>, tag: Tag, mut request: Request, deadline: Monotonic) {
        if let Err(error) = self.admit(ctx, &request) {
            ctx.kernel.effect(Effect::Reply { tag, outcome: Err(error) });
            return;
        }
        as_keyspace_says(ctx, &mut request);
        match request {
            Request::Key(mut request) => {
                once::identify(ctx, &mut request);
                self.route(ctx, Origin::Client(tag), request, deadline);
            }
            Request::Scan(request) => self.start_scan(ctx, Origin::Client(tag), request, deadline),
            Request::Inspect { keyspace, key } => self.start_inspect(ctx, Origin::Client(tag), keyspace, key, deadline),
        }
    }

    /// A client scans: this loop has a part of it.
    pub(crate) fn part_of_scan(&mut self, ctx: &mut Ctx<'_>, tag: Tag, request: ScanRequest, deadline: Monotonic) {
        let mut request = Request::Scan(request);
        as_keyspace_says(ctx, &mut request);
        match (self.admit(ctx, &request), request) {
            (Ok(()), Request::Scan(request)) => {
                self.start_scan(ctx, Origin::Part(tag), request, deadline);
            }
            (Err(error), _) => self.answer(ctx, Origin::Part(tag), Err(error)),
            (Ok(()), _) => {}
        }
    }

    /// A peer forwards its client's request: it is coordinated here or refused, never passed on.
    pub(crate) fn forwarded_request(
        &mut self,
        ctx: &mut Ctx<'_>,
        node: NodeId,
        call: CallId,
        mut request: Request,
        left: Duration,
    ) {
        as_keyspace_says(ctx, &mut request);
        let refusal = match self.admit(ctx, &request) {
            // Whoever waited for it has been told something else.
            Ok(()) if left.is_zero() => Some(Refusal::Late),
            Err(error) if error.kind == Kind::Exhausted => Some(Refusal::Busy(error)),
            // The node that forwards it knows the keyspace: either it is younger than what this node knows, or it was
            // dropped and the other one does not know that yet. Neither is for the client to hear.
            Err(error) if error.kind == Kind::NotFound && ctx.view.keep(Rule::UnknownIsBehind) => {
                Some(Refusal::Behind { epoch: ctx.view.newest() })
            }
            Err(error) => Some(Refusal::Failed(error)),
            Ok(()) => match &request {
                Request::Key(key) => self.refuses_to_coordinate(ctx, key),
                Request::Scan(_) | Request::Inspect { .. } => Some(Refusal::NotOwner),
            },
        };
        let origin = Origin::Peer { node, call };
        match (refusal, request) {
            (None, Request::Key(mut request)) => {
                once::identify(ctx, &mut request);
                let deadline = ctx.kernel.now.mono.plus(left.min(ctx.view.config.deadline));
                self.coordinate(ctx, origin, request, Role::Owner, deadline);
            }
            (refusal, _) => {
                let outcome = Err(refusal.unwrap_or(Refusal::NotOwner));
                ctx.kernel.send(node, Message::Forwarded { call, outcome });
            }
        }
    }

    fn refuses_to_coordinate(&self, ctx: &Ctx<'_>, request: &KeyRequest) -> Option<Refusal> {
        let partition = ctx.view.partition_of(&request.key)?;
        if let Err(refusal) = ctx.view.fence(partition, request.epoch) {
            return Some(refusal);
        }
        if !ctx.view.owns(partition) {
            return Some(Refusal::NotOwner);
        }
        if !ctx.view.is_synced(partition) {
            return Some(Refusal::NotSynced);
        }
        once::needs_right_clock(ctx, request).then_some(Refusal::ClockOff)
    }

    /// Checks a request before anything is spent on it.
    fn admit(&self, ctx: &Ctx<'_>, request: &Request) -> Result<(), RequestError> {
        if self.ops.len() >= ctx.view.config.requests_max {
            return Err(RequestError::exhausted(format!(
                "{} requests are in flight, the most that this node takes; slow down and try again",
                ctx.view.config.requests_max
            )));
        }
        if ctx.view.layout().is_none() {
            return Err(RequestError::unavailable("the node has no layout yet; try again when the cluster has formed"));
        }
        let (keyspace, key) = match request {
            Request::Key(request) => (request.keyspace, Some(&request.key)),
            Request::Scan(request) => (request.keyspace, None),
            Request::Inspect { keyspace, key } => (*keyspace, Some(key)),
        };
        if ctx.view.keyspace(keyspace).is_none() {
            return Err(RequestError::new(
                Kind::NotFound,
                format!("there is no keyspace {keyspace}; `keyspace ls` lists those that exist"),
            ));
        }
        if let Some(key) = key {
            self.check_key(ctx, key)?;
        }
        if let Request::Key(KeyRequest { operation, key, .. }) = request {
            self.check_operation(ctx, keyspace, key, operation)?;
        }
        self.admit_bytes(ctx, request)
    }

    fn check_key(&self, ctx: &Ctx<'_>, key: &Bytes) -> Result<(), RequestError> {
        let limit = ctx.view.cluster.key_bytes_max;
        if key.is_empty() {
            return Err(RequestError::invalid(format!("the key is empty; a key has 1 to {limit} bytes")));
        }
        if key.len() > limit {
            return Err(RequestError::invalid(format!(
                "the key has {} bytes, the limit is {limit}; use a shorter key, for instance a hash of this one",
                key.len()
            )));
        }
        let partition = ctx.view.partition_of(key);
        if partition.is_some_and(|partition| !ctx.view.serves(partition)) {
            return Err(RequestError::unavailable("the request was given to a loop that does not serve its partition"));
        }
        Ok(())
    }

    fn check_operation(
        &self,
        ctx: &Ctx<'_>,
        keyspace: KeyspaceId,
        key: &[u8],
        operation: &Operation,
    ) -> Result<(), RequestError> {
        let Operation::Write { value, context, ttl, when, .. } = operation else { return Ok(()) };
        let limit = ctx.view.cluster.value_bytes_max;
        if let Some(value) = value
            && value.len() > limit
        {
            return Err(RequestError::invalid(format!(
                "the value has {} bytes, the limit is {limit}; split it over several keys",
                value.len()
            )));
        }
        if ttl.is_some_and(|ttl| ttl.is_zero()) {
            return Err(RequestError::invalid(
                "the time to live is zero; leave it out to keep the key, or delete the key",
            ));
        }
        match (ctx.view.keyspace(keyspace), context, when) {
            (Some(Keyspace { mode: Mode::Consistent, .. }), Some(context), When::Unchanged) => {
                token::decode(context, keyspace, key).map_err(|error| RequestError::invalid(error.to_string()))?;
            }
            (Some(Keyspace { mode: Mode::Consistent, name, .. }), Some(_), _) => {
                return Err(RequestError::invalid(format!(
                    "keyspace {name} is consistent: there a context is a condition; ask for the write if nothing has changed"
                )));
            }
            (Some(Keyspace { mode: Mode::Available(_), name, .. }), _, When::Absent | When::Unchanged) => {
                return Err(RequestError::invalid(format!(
                    "keyspace {name} is available: two nodes could both find a condition true; conditions need a consistent keyspace"
                )));
            }
            (_, Some(context), _) => {
                crate::version::ContextToken::decode(context, keyspace, key)
                    .map_err(|error| RequestError::invalid(error.to_string()))?;
            }
            (_, None, _) => {}
        }
        Ok(())
    }

    /// Numbers an operation and starts its clock.
    fn open_op(&mut self, ctx: &mut Ctx<'_>, origin: Origin, deadline: Monotonic, state: OpState) -> OpId {
        let op = OpId(ctx.kernel.next_id());
        let timer = ctx.kernel.set_timer(deadline, Timer::Deadline(op));
        let bytes = match &state {
            OpState::Forward(forward) => weight::of_key_request(forward.request()),
            OpState::Write(write) => weight::of_key_request(write.request()),
            OpState::Register(register) => weight::of_key_request(register.request()),
            OpState::Get(_) | OpState::Scan(_) | OpState::Inspect(_) => 0,
        };
        self.ops.insert(op, Op { origin, deadline, timer, bytes, answer_bytes: 0, state });
        op
    }

    /// Answers a request and forgets it.
    pub(crate) fn finish(&mut self, ctx: &mut Ctx<'_>, op: OpId, outcome: Outcome) {
        let Some(Op { origin, timer, state, .. }) = self.ops.remove(&op) else { return };
        ctx.kernel.cancel_timer(timer);
        let hedge = match state {
            OpState::Get(GetOp { hedge, .. }) => hedge,
            OpState::Forward(forward) => {
                // Others may have it as well, and nobody waits for them any more.
                for &node in forward.asked() {
                    ctx.kernel.give_up_asking(node, Waiter::Forward(op));
                }
                forward.hedge
            }
            OpState::Register(register) => {
                self.answer(ctx, origin, outcome);
                return self.end_register(ctx, op, *register);
            }
            OpState::Write(_) | OpState::Scan(_) | OpState::Inspect(_) => None,
        };
        if let Some(hedge) = hedge {
            ctx.kernel.cancel_timer(hedge);
        }
        self.answer(ctx, origin, outcome);
    }

    fn answer(&mut self, ctx: &mut Ctx<'_>, origin: Origin, outcome: Outcome) {
        match origin {
            Origin::Client(tag) => ctx.kernel.effect(Effect::Reply { tag, outcome }),
            Origin::Part(tag) => ctx.kernel.say(Ask::Page { tag, outcome }),
            Origin::Peer { node, call } => ctx.kernel.send(node, Message::Forwarded { call, outcome: Ok(outcome) }),
            Origin::Page { scan, attempt, key } => self.page_learns(ctx, (scan, attempt), key, outcome),
            Origin::Restore(_) | Origin::Nobody => {}
        }
    }

    /// A request ran out of time.
    pub(crate) fn deadline_passed(&mut self, ctx: &mut Ctx<'_>, op: OpId) {
        let Some(found) = self.ops.get(&op) else { return };
        let error = if found.may_take_effect() {
            RequestError::new(
                Kind::Unknown,
                format!(
                    "the outcome is unknown: {}; repeating it with the same request id is safe",
                    found.progress(ctx.view)
                ),
            )
        } else {
            RequestError::unavailable(format!("deadline exceeded: {}; nothing was done", found.progress(ctx.view)))
        };
        // What was read in time but damaged or late is still worth showing.
        if let OpState::Inspect(inspect) = &found.state {
            let response = inspect.response();
            self.finish(ctx, op, Ok(response));
            return;
        }
        self.finish(ctx, op, Err(error));
    }

    /// A layout has changed the entries of some partitions: requests on them start again by the new one.
    pub(crate) fn reroute(&mut self, ctx: &mut Ctx<'_>, changed: &dyn Fn(PartitionId) -> bool) {
        for op in self.ops.keys().copied().collect::<Vec<_>>() {
            let Some(Op { state, .. }) = self.ops.get(&op) else { continue };
            match state {
                OpState::Get(get) if changed(get.key.partition()) => self.restart_get(ctx, op),
                OpState::Scan(_) => self.restart_scan(ctx, op),
                // What was asked by the entry before is refused, or counts for nothing.
                OpState::Register(register) if changed(register.key().partition()) => self.register_again(ctx, op),
                // Other owners may be enough now.
                OpState::Write(write) if changed(write.key().partition()) => {
                    self.write_evaluate(ctx, op);
                }
                _ => {}
            }
        }
    }

    /// A replica or fallback answered a read.
    pub(crate) fn read_answered(
        &mut self,
        ctx: &mut Ctx<'_>,
        op: OpId,
        (from, role): (NodeId, Role),
        held: ReadReply,
        settled: Hlc,
    ) {
        if !self.keep_answer(ctx, op, weight::of_read_reply(&held)) {
            return;
        }
        match self.ops.get_mut(&op).map(|op| &mut op.state) {
            Some(OpState::Get(_)) => self.get_answered(ctx, op, (from, role), held, settled),
            Some(OpState::Inspect(_)) => {
                let cell = match held {
                    ReadReply::Full(cell) => cell,
                    ReadReply::Digest(_) => None,
                };
                self.inspect_answered(ctx, op, from, Ok(cell));
            }
            _ => {}
        }
    }

    /// A request has waited for a while for those that it asked.
    pub(crate) fn hedge(&mut self, ctx: &mut Ctx<'_>, op: OpId) {
        match self.ops.get(&op).map(|op| &op.state) {
            Some(OpState::Get(_)) => self.hedge_get(ctx, op),
            Some(OpState::Forward(_)) => self.hedge_forward(ctx, op),
            Some(OpState::Register(_)) => self.hedge_register(ctx, op),
            _ => {}
        }
    }

    /// A replica or fallback that a read waits for has stalled.
    pub(crate) fn read_stalled(&mut self, ctx: &mut Ctx<'_>, op: OpId, from: NodeId) {
        match self.ops.get(&op).map(|op| &op.state) {
            Some(OpState::Get(_)) => {
                self.hedge_get(ctx, op);
                // What fallbacks have answered may be enough without it.
                self.evaluate_get(ctx, op);
            }
            Some(OpState::Inspect(_)) => self.inspect_answered(ctx, op, from, Err(inspect::stalled())),
            _ => {}
        }
    }

    /// A replica or fallback will not answer a read; `None`: its session has ended.
    pub(crate) fn read_failed(
        &mut self,
        ctx: &mut Ctx<'_>,
        op: OpId,
        from: NodeId,
        role: Role,
        refusal: Option<Refusal>,
    ) {
        match self.ops.get_mut(&op).map(|op| &mut op.state) {
            Some(OpState::Get(_)) => self.get_failed(ctx, op, from, role, refusal),
            Some(OpState::Inspect(_)) => {
                let error = refusal
                    .map_or_else(|| RequestError::unavailable("the node is down"), |refusal| refusal_error(&refusal));
                self.inspect_answered(ctx, op, from, Err(error));
            }
            _ => {}
        }
    }

    /// Reads a key at a replica or a fallback, this node included. It must be reachable: what is asked of a node without a
    /// session is neither answered nor fails.
    fn ask_read(&mut self, ctx: &mut Ctx<'_>, op: OpId, node: NodeId, role: Role, key: &StorageKey, digest: bool) {
        if node == ctx.me() {
            ctx.kernel.read_key(key.in_space(role.space()), Task::ReadForOp(op, role));
            return;
        }
        let Some(epoch) = ctx.view.entry(key.partition()).map(|entry| entry.changed) else { return };
        let call = ctx.kernel.next_call();
        let message = Message::Read { call, epoch, role, keyspace: key.keyspace(), key: key.key_bytes(), digest };
        ctx.kernel.ask(node, call, Waiter::Read(op, role), message);
    }
}

impl Op {
    /// For people: how far a request got.
    fn progress(&self, view: &View) -> String {
        let entry = |key: &StorageKey| view.entry(key.partition());
        match &self.state {
            OpState::Forward(forward) => forward.progress(),
            OpState::Get(get) => get.progress(entry(&get.key)),
            OpState::Write(write) => write.progress(entry(write.key())),
            OpState::Register(register) => register.progress(),
            OpState::Scan(_) => "some replicas did not answer the scan".to_owned(),
            OpState::Inspect(_) => "some replicas did not answer".to_owned(),
        }
    }
}

/// What a refusal means for a client.
pub(crate) fn refusal_error(refusal: &Refusal) -> RequestError {
    match refusal {
        Refusal::Stale { .. } => RequestError::new(Kind::StaleEpoch, refusal.to_string()),
        Refusal::Behind { .. } | Refusal::NotSynced | Refusal::NotOwner | Refusal::Late | Refusal::ClockOff => {
            RequestError::unavailable(refusal.to_string())
        }
        Refusal::Busy(error) | Refusal::Failed(error) => error.clone(),
    }
}

/// In a strict keyspace every request is strict.
fn as_keyspace_says(ctx: &Ctx<'_>, request: &mut Request) {
    let (keyspace, consistency) = match request {
        Request::Key(request) => (request.keyspace, &mut request.consistency),
        Request::Scan(request) => (request.keyspace, &mut request.consistency),
        // It shows what each replica holds.
        Request::Inspect { .. } => return,
    };
    match ctx.view.mode(keyspace) {
        Some(Mode::Available(settings)) => consistency.strict |= settings.strict,
        // Nobody stands in for an owner.
        Some(Mode::Consistent) => consistency.strict = true,
        None => {}
    }
}
