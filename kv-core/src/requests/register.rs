//! Requests on consistent keyspaces: a proposal, which asks the owners of the key, and is asked again until its answer is certain.
//!
//! A node has one proposal for a key at a time. The others wait for it, in the order in which they came: two proposals of one node
//! would end each other's.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;

use super::in_flight::InFlight;
use super::write::copy;
use super::{Op, OpState, Origin, Requests, once};
use crate::acceptor;
use crate::error::{Kind, RequestError};
use crate::kernel::TimerKey;
use crate::map::{Map, map};
use crate::message::{
    Attempt, CallId, Consistency, KeyRequest, Message, Operation, Refusal, Response, Value, When, weight,
};
use crate::register::proposal::{Answer, Change, Condition, Lease, Moment, Proposal, Question, Reply, Step, Wish};
use crate::register::{Ballot, Proposer, State, token};
use crate::ring::Owner;
use crate::storage::StorageKey;
use crate::types::{Hlc, KeyspaceId, Monotonic, NodeId, PartitionId};
use crate::view::quorum::Needs;
use crate::wiring::{Ctx, OpId, Timer, Waiter};

/// Keys of which it is remembered that this node was the last to change them.
const LEASES_MAX: usize = 4096;

/// The first pause before a proposal begins again, and how often it doubles.
const PAUSE_FIRST: Duration = Duration::from_millis(2);
const PAUSES_DOUBLED: u32 = 6;

/// A request on a register.
#[derive(Debug)]
pub(super) struct RegisterOp {
    request: KeyRequest,
    key: StorageKey,
    run: Option<Run>,
    /// A majority is to hold one state, whatever it is.
    confirms: bool,
    /// How often it began again.
    tries: u32,
    pub(super) pause: Option<TimerKey>,
}

/// Its proposal, once it is its turn.
#[derive(Debug)]
struct Run {
    proposal: Proposal,
    question: Question,
    call: CallId,
    /// Owners that have not answered the question.
    awaited: Vec<NodeId>,
    /// Owners that are asked only if those do not tell enough, and when that is.
    spare: Vec<NodeId>,
    hedge: Option<TimerKey>,
    /// Whether one has not done what it asks.
    is_refused: bool,
    /// Whether the proposal has come to its answer.
    is_done: bool,
}

/// What this node knows of registers as a proposer.
#[derive(Debug)]
pub(super) struct Registers {
    /// The requests on a key, the one whose turn it is first.
    turns: Map<StorageKey, VecDeque<OpId>>,
    /// The leases, each gone while a request uses it, and their keys in the order in which they came.
    leases: Map<StorageKey, Option<Lease>>,
    order: VecDeque<StorageKey>,
    /// The highest counter of a ballot that was used.
    used: u64,
    /// How often a proposal began again, since others propose for the same key, or too few answered.
    retries: u64,
    /// Owners that have not answered the last question of a request that has ended, by its call.
    late: BTreeMap<CallId, (PartitionId, Vec<NodeId>)>,
}

impl RegisterOp {
    pub(super) fn key(&self) -> &StorageKey {
        &self.key
    }

    pub(super) fn request(&self) -> &KeyRequest {
        &self.request
    }

    pub(super) fn may_take_effect(&self) -> bool {
        self.run.as_ref().is_some_and(|run| run.proposal.may_take_effect())
    }

    pub(super) fn progress(&self) -> String {
        match &self.run {
            None => "another request on the key has not ended".to_owned(),
            Some(run) if run.awaited.is_empty() => "others write the key at the same time".to_owned(),
            Some(run) => {
                let silent: Vec<String> = run.awaited.iter().map(NodeId::to_string).collect();
                format!("{} did not answer", silent.join(", "))
            }
        }
    }
}

impl Registers {
    pub(super) fn new(map_seed: u64) -> Self {
        Self {
            turns: map(map_seed),
            leases: map(map_seed),
            order: VecDeque::new(),
            used: 0,
            retries: 0,
            late: BTreeMap::new(),
        }
    }

    pub(super) fn retries(&self) -> u64 {
        self.retries
    }

    fn lease(&mut self, key: &StorageKey) -> Option<Lease> {
        self.leases.get_mut(key)?.take()
    }

    fn keep_lease(&mut self, key: &StorageKey, lease: Lease) {
        if let Some(kept) = self.leases.get_mut(key) {
            *kept = Some(lease);
            return;
        }
        self.leases.insert(key.clone(), Some(lease));
        self.order.push_back(key.clone());
        while self.order.len() > LEASES_MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.leases.remove(&oldest);
            }
        }
    }
}

impl Requests {
    pub(super) fn start_register(
        &mut self,
        ctx: &mut Ctx<'_>,
        origin: Origin,
        request: KeyRequest,
        deadline: Monotonic,
    ) {
        let Some(partition) = ctx.view.partition_of(&request.key) else { return };
        if let Some(error) = no_majority(ctx, partition) {
            return self.answer(ctx, origin, Err(error));
        }
        if let Operation::Write { request: Some(id), attempt, .. } = &request.operation
            && let Err(error) = once::accept_stamp(ctx, *id, *attempt)
        {
            return self.answer(ctx, origin, Err(error));
        }
        let key = StorageKey::owned(partition, request.keyspace, &request.key);
        let waiting = self.registers.turns.get(&key).map_or(0, VecDeque::len);
        if waiting > ctx.view.config.key_waiters_max {
            let error = RequestError::exhausted(format!(
                "{waiting} operations wait for this key, the most that a node allows; try again"
            ));
            return self.answer(ctx, origin, Err(error));
        }
        self.open_register(ctx, origin, (request, key), deadline, false);
    }

    /// Replicas of a register cannot be brought together by what they hold (rule C2): a proposal of its own does that.
    pub(crate) fn confirm_register(&mut self, ctx: &mut Ctx<'_>, key: &StorageKey) {
        let is_full = self.ops.len() >= ctx.view.config.requests_max;
        if is_full || self.registers.turns.contains_key(key) || no_majority(ctx, key.partition()).is_some() {
            // Whoever proposes now does it, or it is tried again.
            return;
        }
        let deadline = ctx.kernel.now.mono.plus(ctx.view.config.deadline);
        self.open_register(ctx, Origin::Nobody, (get_of(ctx, key), key.clone()), deadline, true);
    }

    /// Reads a key for a scan of this node.
    pub(super) fn read_for_page(
        &mut self,
        ctx: &mut Ctx<'_>,
        (scan, attempt): (OpId, u32),
        (partition, keyspace, key): (PartitionId, KeyspaceId, Bytes),
        deadline: Monotonic,
    ) {
        let stored = StorageKey::owned(partition, keyspace, &key);
        let request = get_of(ctx, &stored);
        let origin = Origin::Page { scan, attempt, key };
        self.open_register(ctx, origin, (request, stored), deadline, false);
    }

    /// Takes a request in. It runs if it is the only one on its key.
    fn open_register(
        &mut self,
        ctx: &mut Ctx<'_>,
        origin: Origin,
        (request, key): (KeyRequest, StorageKey),
        deadline: Monotonic,
        confirms: bool,
    ) {
        let state = RegisterOp { request, key: key.clone(), run: None, confirms, tries: 0, pause: None };
        let op = self.open_op(ctx, origin, deadline, OpState::Register(Box::new(state)));
        let turns = self.registers.turns.entry(key).or_default();
        turns.push_back(op);
        if turns.len() == 1 {
            self.run_register(ctx, op);
        }
    }

    /// It is the turn of a request.
    fn run_register(&mut self, ctx: &mut Ctx<'_>, op: OpId) {
        let Some(Op { state: OpState::Register(register), .. }) = self.ops.get(&op) else { return };
        let key = register.key.clone();
        let wish = match wish_of(&register.request, ctx.view.cluster.repeat_within) {
            Ok(_) if register.confirms => Wish::Confirm,
            Ok(wish) => wish,
            Err(error) => return self.finish(ctx, op, Err(error)),
        };
        let me = Proposer::new(ctx.me(), ctx.view.incarnation);
        let epoch = ctx.view.entry_epoch(key.partition());
        let lease = self.registers.lease(&key);
        let begin = (me, epoch, ctx.view.rules.clone());
        let (proposal, question) = Proposal::begin(begin, wish, lease, &mut self.registers.used, moment(ctx));
        let run = Run {
            proposal,
            question: question.clone(),
            call: CallId(0),
            awaited: Vec::new(),
            spare: Vec::new(),
            hedge: None,
            is_refused: false,
            is_done: false,
        };
        if let Some(Op { state: OpState::Register(register), .. }) = self.ops.get_mut(&op) {
            register.run = Some(run);
        }
        self.ask_register(ctx, op, question);
    }

    /// Asks the owners: to read as many as are a majority, and the others if one of those is slow or has something else; for a promise,
    /// or to accept, all of them.
    fn ask_register(&mut self, ctx: &mut Ctx<'_>, op: OpId, question: Question) {
        let call = ctx.kernel.next_call();
        let Some((key, run)) = running(&mut self.ops, op) else { return };
        let partition = key.partition();
        let up = ctx.owners_up(partition);
        let down: Vec<NodeId> = ctx.view.owners(partition).into_iter().filter(|node| !up.contains(node)).collect();
        let (first, spare) = match ctx.view.entry(partition) {
            Some(entry) if question == Question::Read => {
                let (first, spare) = Needs::majority().choose_owners(entry, up);
                first.first().into_iter().for_each(|&nearest| run.proposal.set_nearest(nearest));
                (first, spare)
            }
            _ => (up, Vec::new()),
        };
        run.question = question;
        run.is_refused = false;
        let hedge = (!spare.is_empty()).then(|| {
            let at = ctx.kernel.now.mono.plus(ctx.view.config.hedge_after);
            ctx.kernel.set_timer(at, Timer::Hedge(op))
        });
        run.spare = spare;
        let before = std::mem::replace(&mut run.call, call);
        let unanswered = std::mem::take(&mut run.awaited);
        if let Some(timer) = std::mem::replace(&mut run.hedge, hedge) {
            ctx.kernel.cancel_timer(timer);
        }
        give_up(ctx, before, &unanswered);
        self.ask_owners(ctx, op, &first);
        for node in down {
            self.register_answered(ctx, op, node, call, Err(None));
        }
    }

    /// Puts the present question to some of the owners. Of a reading the nearest tells what it has accepted; of the others the ballot is
    /// enough to know whether they have the same.
    fn ask_owners(&mut self, ctx: &mut Ctx<'_>, op: OpId, nodes: &[NodeId]) {
        let Some((key, run)) = running(&mut self.ops, op) else { return };
        run.awaited.extend(nodes);
        let (key, call, epoch) = (key.clone(), run.call, run.proposal.epoch());
        let me = ctx.me();
        for &node in nodes {
            let question = run.proposal.question_for(node, &run.question);
            if node == me {
                acceptor::ask_own(ctx, (op, call, epoch), &key, question);
                continue;
            }
            let message = Message::Register { call, epoch, keyspace: key.keyspace(), key: key.key_bytes(), question };
            ctx.kernel.ask(node, call, Waiter::Register(op), message);
        }
    }

    /// One of those that were asked to read is slow, or will not answer: the others are asked, too.
    pub(super) fn hedge_register(&mut self, ctx: &mut Ctx<'_>, op: OpId) {
        let Some((key, run)) = running(&mut self.ops, op) else { return };
        if let Some(timer) = run.hedge.take() {
            ctx.kernel.cancel_timer(timer);
        }
        let (partition, call) = (key.partition(), run.call);
        let spare = std::mem::take(&mut run.spare);
        let (up, gone): (Vec<NodeId>, Vec<NodeId>) =
            spare.into_iter().partition(|&node| ctx.is_owner_up(partition, node));
        self.ask_owners(ctx, op, &up);
        for node in gone {
            self.register_answered(ctx, op, node, call, Err(None));
        }
    }

    /// An owner has answered; `Err(None)`: its session has ended, or there is none.
    pub(crate) fn register_answered(
        &mut self,
        ctx: &mut Ctx<'_>,
        op: OpId,
        node: NodeId,
        call: CallId,
        result: Result<Reply, Option<Refusal>>,
    ) {
        let Some((_, run)) = running(&mut self.ops, op) else {
            return self.late_answered(ctx, node, call, result.is_ok_and(|reply| reply == Reply::Accepted));
        };
        if run.call != call {
            return;
        }
        // A write goes on whatever others have told; reads make room.
        let bytes = if run.proposal.is_read() { weight::of_told(&result) } else { 0 };
        if !self.keep_answer(ctx, op, bytes) {
            return;
        }
        let Some((key, run)) = running(&mut self.ops, op) else { return };
        let is_late = result.is_err() && run.awaited.contains(&node);
        run.awaited.retain(|awaited| *awaited != node);
        run.is_refused |= !matches!(result, Ok(Reply::Told(_) | Reply::At(_) | Reply::Accepted));
        let entry = ctx.view.entry(key.partition());
        let quorum = |has: &dyn Fn(NodeId) -> bool| {
            entry.is_some_and(|entry| Needs::majority().are_met(entry, |owner| has(owner.node), 0))
        };
        let question = run.question.clone();
        let now = (&mut self.registers.used, moment(ctx));
        let step = run.proposal.answered(node, &question, result.ok(), &quorum, now);
        match step {
            Step::Wait if is_late || run.awaited.is_empty() => self.hedge_register(ctx, op),
            Step::Wait => {}
            Step::Ask(question) => self.ask_register(ctx, op, question),
            Step::Blocked => self.register_blocked(ctx, op),
            Step::Done(answer) => self.register_done(ctx, op, answer),
        }
    }

    /// An owner has stalled. Those that answer are waited for; without it they may be no majority any more, and then it is.
    pub(crate) fn register_stalled(&mut self, ctx: &mut Ctx<'_>, op: OpId, node: NodeId) {
        let Some((_, run)) = running(&mut self.ops, op) else { return };
        if matches!(run.question, Question::Read | Question::ReadAll) {
            let call = run.call;
            self.register_answered(ctx, op, node, call, Err(None));
        }
    }

    /// Somebody else proposes, or too few owners can be asked.
    fn register_blocked(&mut self, ctx: &mut Ctx<'_>, op: OpId) {
        let Some(Op { state: OpState::Register(register), .. }) = self.ops.get(&op) else { return };
        if let Some(error) = no_majority(ctx, register.key.partition()) {
            let error = if register.may_take_effect() {
                RequestError::new(Kind::Unknown, format!("the outcome is unknown: {error}"))
            } else {
                error
            };
            return self.finish(ctx, op, Err(error));
        }
        // Others do not come back at the same moment.
        let tries = register.tries;
        let most = PAUSE_FIRST * (1 << tries.min(PAUSES_DOUBLED));
        let part = u32::try_from(ctx.kernel.draw() % 1000).unwrap_or(0);
        let pause = most / 2 + most * part / 2000;
        let timer = ctx.kernel.set_timer(ctx.kernel.now.mono.plus(pause), Timer::Again(op));
        self.registers.retries += 1;
        if let Some(Op { state: OpState::Register(register), .. }) = self.ops.get_mut(&op) {
            register.tries += 1;
            register.pause = Some(timer);
        }
    }

    /// A proposal begins again, by the layout that is in force.
    pub(crate) fn register_again(&mut self, ctx: &mut Ctx<'_>, op: OpId) {
        let Some(Op { state: OpState::Register(register), .. }) = self.ops.get_mut(&op) else { return };
        if let Some(timer) = register.pause.take() {
            ctx.kernel.cancel_timer(timer);
        }
        let Some(run) = &mut register.run else { return };
        let epoch = ctx.view.entry_epoch(register.key.partition());
        let question = run.proposal.again(epoch, &mut self.registers.used);
        self.ask_register(ctx, op, question);
    }

    fn register_done(&mut self, ctx: &mut Ctx<'_>, op: OpId, answer: Answer) {
        let Some(Op { state: OpState::Register(register), .. }) = self.ops.get_mut(&op) else { return };
        let key = register.key.clone();
        let deletes = matches!(register.request.operation, Operation::Write { value: None, .. });
        let Some(run) = &mut register.run else { return };
        let (keyspace, name) = (key.keyspace(), key.key_bytes());
        let token = |version: Option<Ballot>| token::encode(version, keyspace, &name);
        let context = |state: Option<&State>| token(state.map(|state| state.version));
        let lease = run.proposal.take_lease();
        run.is_done = true;
        let is_accepted = matches!(run.question, Question::Accept { .. });
        let (call, awaited) = (run.call, if is_accepted { std::mem::take(&mut run.awaited) } else { Vec::new() });
        if is_accepted && run.is_refused {
            // It may hold something that the others do not, or lack what they hold.
            give_up(ctx, call, &awaited);
            ctx.kernel.note_uneven(key.partition());
        } else if !awaited.is_empty() {
            self.note_late(ctx, call, key.partition(), awaited);
        }
        if let Some(lease) = lease {
            self.registers.keep_lease(&key, lease);
        }
        let newest = ctx.newest(Hlc::default());
        let outcome = match answer {
            Answer::Found(state) => {
                let context = context(state.as_ref());
                Ok(Response::Got { values: state.and_then(value_of).into_iter().collect(), context, newest })
            }
            Answer::Changed(version) => {
                let siblings = usize::from(!deletes);
                Ok(Response::Written { context: token(Some(version)), siblings, newest })
            }
            Answer::Failed(state) => {
                let context = context(state.as_ref());
                Ok(Response::Unchanged { value: state.and_then(value_of), context, newest })
            }
            Answer::Confirmed => Ok(Response::Got { values: Vec::new(), context: Bytes::new(), newest }),
            Answer::FailedBefore => Err(RequestError::new(
                Kind::Conflict,
                "the condition did not hold when an earlier attempt of this request was made, and nothing was done; read the key, \
                 then decide, and write with a new request id",
            )),
            Answer::Forgotten { above, is_unknown } => match self.forgotten(ctx, op, above, is_unknown) {
                Some(error) => Err(error),
                None => return,
            },
        };
        self.finish(ctx, op, outcome);
    }

    /// A register does not remember requests as old as this one, so nobody knows whether it took effect. If it was sent nowhere yet it gets
    /// another name: its client may give it one, and so does this node if it has named it. Otherwise what its client is told.
    fn forgotten(&mut self, ctx: &mut Ctx<'_>, op: OpId, above: Hlc, is_unknown: bool) -> Option<RequestError> {
        let Some(Op { state: OpState::Register(register), .. }) = self.ops.get_mut(&op) else { return None };
        let Operation::Write { request: Some(request), attempt, .. } = &mut register.request.operation else {
            return None;
        };
        let newest = ctx.newest(above);
        if is_unknown {
            return Some(RequestError::new(
                Kind::Unknown,
                "the outcome is unknown: the key was written so often since the first attempt of this request that it is not \
                 remembered; this attempt did nothing, an earlier one may have; read the key, then decide, and write with a new \
                 request id",
            ));
        }
        if newest < above || !once::is_own(ctx, *request) {
            let message = "the request's stamp is below those of requests that the key does not remember any more; nothing was \
                           done; draw a new request id with a stamp above the newest timestamp of this answer";
            return Some(match attempt {
                Attempt::First | Attempt::Hedge => RequestError::stamp(newest, message),
                Attempt::Plain | Attempt::Repeated => RequestError::unavailable(message),
            });
        }
        *request = once::own(ctx, above);
        register.run = None;
        self.run_register(ctx, op);
        None
    }

    /// A request has ended before all owners have accepted what it wrote. Those that never do are compared with the others.
    fn note_late(&mut self, ctx: &mut Ctx<'_>, call: CallId, partition: PartitionId, awaited: Vec<NodeId>) {
        if self.registers.late.len() >= ctx.view.config.replications_max {
            give_up(ctx, call, &awaited);
            return ctx.kernel.note_uneven(partition);
        }
        if self.registers.late.is_empty() {
            ctx.kernel.arm(ctx.kernel.now.mono.plus(ctx.view.config.retry_after), Timer::Late);
        }
        self.registers.late.insert(call, (partition, awaited));
    }

    fn late_answered(&mut self, ctx: &mut Ctx<'_>, node: NodeId, call: CallId, well: bool) {
        let Some((partition, awaited)) = self.registers.late.get_mut(&call) else { return };
        awaited.retain(|awaited| *awaited != node);
        let (partition, ended) = (*partition, awaited.is_empty());
        if ended {
            self.registers.late.remove(&call);
        }
        if !well {
            ctx.kernel.note_uneven(partition);
        }
    }

    /// Some time has passed: whoever has not answered by now has perhaps not been reached.
    pub(crate) fn late_registers(&mut self, ctx: &mut Ctx<'_>) {
        for (call, (partition, awaited)) in std::mem::take(&mut self.registers.late) {
            give_up(ctx, call, &awaited);
            ctx.kernel.note_uneven(partition);
        }
    }

    /// A request has ended: the next one on its key has its turn.
    pub(super) fn end_register(&mut self, ctx: &mut Ctx<'_>, op: OpId, register: RegisterOp) {
        if let Some(pause) = register.pause {
            ctx.kernel.cancel_timer(pause);
        }
        if let Some(run) = register.run {
            if let Some(timer) = run.hedge {
                ctx.kernel.cancel_timer(timer);
            }
            give_up(ctx, run.call, &run.awaited);
            let is_accepted = run.is_done && matches!(run.question, Question::Accept { .. });
            if run.proposal.leaves_replicas_apart() && !is_accepted {
                ctx.kernel.note_uneven(register.key.partition());
            }
        }
        let Some(turns) = self.registers.turns.get_mut(&register.key) else { return };
        let was_first = turns.front() == Some(&op);
        turns.retain(|waiting| *waiting != op);
        let next = turns.front().copied();
        if next.is_none() {
            self.registers.turns.remove(&register.key);
        }
        if let Some(next) = next.filter(|_| was_first) {
            self.run_register(ctx, next);
        }
    }
}

/// A get of this node's own.
fn get_of(ctx: &Ctx<'_>, key: &StorageKey) -> KeyRequest {
    KeyRequest {
        keyspace: key.keyspace(),
        key: key.key_bytes(),
        epoch: ctx.view.entry_epoch(key.partition()),
        consistency: Consistency::default(),
        operation: Operation::Get,
    }
}

/// The proposal of a request, and its key.
fn running(ops: &mut InFlight, op: OpId) -> Option<(&StorageKey, &mut Run)> {
    match &mut ops.get_mut(&op)?.state {
        OpState::Register(register) => Some((&register.key, register.run.as_mut()?)),
        _ => None,
    }
}

/// Nobody waits for these answers any more.
fn give_up(ctx: &mut Ctx<'_>, call: CallId, nodes: &[NodeId]) {
    let me = ctx.me();
    for &node in nodes.iter().filter(|&&node| node != me) {
        ctx.kernel.give_up_call(node, call);
    }
}

/// The error of a request for which too few owners can be asked; nothing was done.
fn no_majority(ctx: &Ctx<'_>, partition: PartitionId) -> Option<RequestError> {
    let entry = ctx.view.entry(partition)?;
    let up = |owner: &Owner| ctx.is_owner_up(partition, owner.node);
    let needs = Needs::majority();
    if needs.are_met(entry, up, 0) {
        return None;
    }
    let reached = needs.progress(entry, up, 0);
    Some(RequestError::unavailable(format!(
        "{partition}: only {reached} owners can be reached of those that a consistent keyspace needs, a majority; nothing was done; try \
         again when more of them are up"
    )))
}

/// The time, for a proposal.
fn moment(ctx: &Ctx<'_>) -> Moment {
    let wall = ctx.kernel.now.wall;
    Moment { wall, stamp: ctx.kernel.clock.reading(wall), floor: ctx.kernel.clock.floor() }
}

/// What a request wants of its register.
fn wish_of(request: &KeyRequest, remembers: Duration) -> Result<Wish, RequestError> {
    let Operation::Write { request: Some(id), attempt, value, context, ttl, when } = &request.operation else {
        return Ok(Wish::Get);
    };
    let repeats = matches!(attempt, Attempt::Repeated | Attempt::Hedge);
    let condition = match (when, context) {
        (When::Always, _) => Condition::Always,
        (When::Absent, _) => Condition::Absent,
        (When::Unchanged, Some(context)) => {
            let version = token::decode(context, request.keyspace, &request.key);
            Condition::Unchanged(version.map_err(|error| RequestError::invalid(error.to_string()))?)
        }
        (When::Unchanged, None) => {
            return Err(RequestError::invalid(
                "the condition has no context; pass the one that a get of this key returned",
            ));
        }
    };
    let expires = ttl.map(|ttl| id.stamp.wall().plus(ttl));
    let value = value.as_ref().map(copy);
    Ok(Wish::Change(Change { request: *id, repeats, remembers, when: condition, value, expires }))
}

pub(super) fn value_of(state: State) -> Option<Value> {
    let State { written, expires, value, .. } = state;
    value.map(|value| Value { value, written, expires })
}
