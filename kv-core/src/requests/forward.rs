//! Requests for partitions that this node cannot coordinate go, whole, to an owner.

use super::{Op, OpState, Origin, Requests, once};
use crate::config::Mode;
use crate::error::{Kind, RequestError};
use crate::kernel::TimerKey;
use crate::message::{
    Attempt, KeyRequest, Message, Operation, Outcome, Refusal, Request, Response, Role, When, weight,
};
use crate::rule::Rule;
use crate::types::{Hlc, KeyspaceId, Monotonic, NodeId, PartitionId};
use crate::version::Conflict;
use crate::view::quorum;
use crate::wiring::{Ctx, OpId, Timer, Waiter};

/// Forwards for which one hedge of a peer that is slow, but answers, is allowed.
const FORWARDS_PER_HEDGE: u32 = 10;

/// How often a write that came without a request id gets another stamp, each time because a later value stood there.
const STAMPS_MAX: u32 = 8;

/// Hedges of slow peers that may come at once after a quiet time.
const HEDGES_AT_ONCE: u32 = 32;

/// How many forwarded requests may be sent to a second owner because the first one is slow: one in ten, and a few more
/// after a quiet time. Under overload every owner is slow, and doubling all requests would make that worse. A peer that
/// has stalled does not count: what waits for it is nobody's load.
#[derive(Debug)]
pub(super) struct HedgeBudget {
    /// What is left, in forwards.
    left: u32,
    /// Forwards sent to another owner as well, for whatever reason.
    pub(super) spent: u64,
}

impl Default for HedgeBudget {
    fn default() -> Self {
        Self { left: HEDGES_AT_ONCE * FORWARDS_PER_HEDGE, spent: 0 }
    }
}

impl HedgeBudget {
    fn earn(&mut self) {
        self.left = (self.left + 1).min(HEDGES_AT_ONCE * FORWARDS_PER_HEDGE);
    }

    fn spend(&mut self) -> bool {
        let enough = self.left >= FORWARDS_PER_HEDGE;
        if enough {
            self.left -= FORWARDS_PER_HEDGE;
        }
        enough
    }
}

/// A request that waits for other nodes.
#[derive(Debug)]
pub(super) struct ForwardOp {
    request: KeyRequest,
    /// Owners that have had it.
    tried: Vec<NodeId>,
    /// Those of them that have it: they have neither answered nor refused it.
    waiting: Vec<NodeId>,
    /// Those that went down with it, or do not know what became of it.
    lost: Vec<NodeId>,
    /// Why owners refused, without doing anything.
    refusals: Vec<String>,
    pub(super) hedge: Option<TimerKey>,
    /// How often its stamp was drawn anew, if this node has drawn it.
    stamps: u32,
    /// Another attempt was refused for its stamp: it is put beside what it may not replace once nobody answers who has it.
    goes_beside: bool,
}

impl ForwardOp {
    fn new(request: KeyRequest) -> Self {
        let (tried, waiting, lost, refusals) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { request, tried, waiting, lost, refusals, hedge: None, stamps: 0, goes_beside: false }
    }

    pub(super) fn keyspace(&self) -> KeyspaceId {
        self.request.keyspace
    }

    pub(super) fn may_take_effect(&self) -> bool {
        let is_somewhere = !self.waiting.is_empty() || !self.lost.is_empty();
        is_somewhere && matches!(self.request.operation, Operation::Write { .. })
    }

    /// The nodes that have the request.
    pub(super) fn asked(&self) -> &[NodeId] {
        &self.waiting
    }

    pub(super) fn request(&self) -> &KeyRequest {
        &self.request
    }

    pub(super) fn progress(&self) -> String {
        let first = match (self.waiting.last().or(self.lost.last()), self.waiting.is_empty()) {
            (Some(node), false) => format!("{node} coordinates the request and has not answered"),
            (Some(node), true) => format!("{node} went down with the request"),
            (None, _) => "no owner took the request".to_owned(),
        };
        std::iter::once(&first).chain(&self.refusals).map(String::as_str).collect::<Vec<_>>().join("; ")
    }
}

impl Requests {
    /// Coordinates a request here if this node is a replica of its key, else passes it on to one.
    pub(super) fn route(&mut self, ctx: &mut Ctx<'_>, origin: Origin, mut request: KeyRequest, deadline: Monotonic) {
        let Some(partition) = ctx.view.partition_of(&request.key) else { return };
        let Some(entry) = ctx.view.entry(partition) else { return };
        // Epoch 0 comes from clients that do not know the layout; they are routed here.
        if request.epoch.0 != 0 && request.epoch != entry.changed {
            let message = if request.epoch < entry.changed {
                format!(
                    "{partition} has changed at {}, the request knows {}; learn the layout again",
                    entry.changed, request.epoch
                )
            } else {
                format!(
                    "this node knows {partition} only as of {}, the request {}; try again",
                    entry.changed, request.epoch
                )
            };
            self.answer(ctx, origin, Err(RequestError::new(Kind::StaleEpoch, message)));
            return;
        }
        request.epoch = entry.changed;
        if ctx.view.owns(partition) && ctx.view.is_synced(partition) && !once::needs_right_clock(ctx, &request) {
            self.coordinate(ctx, origin, request, Role::Owner, deadline);
            return;
        }
        self.hedges.earn();
        let op = self.open_op(ctx, origin, deadline, OpState::Forward(ForwardOp::new(request)));
        self.forward_next(ctx, op);
    }

    /// Starts a request in which this node plays `role`.
    pub(super) fn coordinate(
        &mut self,
        ctx: &mut Ctx<'_>,
        origin: Origin,
        request: KeyRequest,
        role: Role,
        deadline: Monotonic,
    ) {
        if ctx.view.mode(request.keyspace) == Some(&Mode::Consistent) {
            return self.start_register(ctx, origin, request, deadline);
        }
        match request.operation {
            Operation::Get => self.start_get(ctx, origin, &request, deadline),
            Operation::Write { .. } => self.start_write(ctx, origin, request, role, deadline),
        }
    }

    /// Sends a request to the next owner, whether others have it or not. Without one it waits for those that have it.
    fn forward_next(&mut self, ctx: &mut Ctx<'_>, op: OpId) {
        let Some(Op { state: OpState::Forward(forward), deadline, .. }) = self.ops.get(&op) else { return };
        let deadline = *deadline;
        let Some(partition) = ctx.view.partition_of(&forward.request.key) else { return };
        let next = self.next_coordinator(ctx, partition, forward);
        let waits = !forward.waiting.is_empty();
        if next.is_none() && !waits && !forward.may_take_effect() {
            let mut untried = ctx.coordinators_up(partition);
            untried.retain(|node| *node != ctx.me() && !forward.tried.contains(node));
            if !untried.is_empty() {
                let error = ctx.peers_full(untried.into_iter());
                self.finish(ctx, op, Err(error));
                return;
            }
        }
        let mut request = forward.request.clone();
        request.epoch = ctx.view.entry(partition).map_or(request.epoch, |entry| entry.changed);
        let goes_beside = forward.goes_beside && self.nobody_answers(ctx, forward);
        // Whoever has it may have carried it out, or may yet (rule A7).
        if let Operation::Write { attempt, .. } = &mut request.operation
            && forward.may_take_effect()
        {
            *attempt = match *attempt {
                Attempt::First | Attempt::Hedge if !goes_beside => Attempt::Hedge,
                _ => Attempt::Repeated,
            };
        }
        let Some(node) = next else {
            if !waits {
                self.coordinate_as_fallback(ctx, op, request);
            }
            return;
        };
        if let Some(Op { state: OpState::Forward(forward), .. }) = self.ops.get_mut(&op) {
            forward.tried.push(node);
            forward.waiting.push(node);
        }
        self.set_hedge(ctx, op);
        let call = ctx.kernel.next_call();
        let left = deadline.since(ctx.kernel.now.mono);
        ctx.kernel.ask(
            node,
            call,
            Waiter::Forward(op),
            Message::Forward { call, request: Request::Key(request), deadline: left },
        );
    }

    /// Who gets a request next: nobody without room for it and, while somebody has it, nobody who has stalled.
    fn next_coordinator(&self, ctx: &Ctx<'_>, partition: PartitionId, forward: &ForwardOp) -> Option<NodeId> {
        if !forward.waiting.is_empty() && !ctx.view.keep(Rule::HedgeForwards) {
            return None;
        }
        let is_conditional =
            matches!(forward.request.operation, Operation::Write { when: When::Absent | When::Unchanged, .. });
        if is_conditional && !forward.waiting.is_empty() {
            // The one may tell the client that the condition does not hold, before the other one finds that it does.
            return None;
        }
        let bytes = weight::of_key_request(&forward.request);
        let may = |&node: &NodeId| {
            let has_room = bytes == 0 || ctx.kernel.peer_has_room(node, bytes);
            node != ctx.me()
                && !forward.tried.contains(&node)
                && has_room
                && (forward.waiting.is_empty() || !ctx.is_stalled(node))
        };
        ctx.coordinators_up(partition).into_iter().find(may)
    }

    fn set_hedge(&mut self, ctx: &mut Ctx<'_>, op: OpId) {
        let timer = ctx.kernel.set_timer(ctx.kernel.now.mono.plus(ctx.view.config.hedge_after), Timer::Hedge(op));
        let Some(Op { state: OpState::Forward(forward), .. }) = self.ops.get_mut(&op) else { return };
        if let Some(old) = forward.hedge.replace(timer) {
            ctx.kernel.cancel_timer(old);
        }
    }

    /// The owner that has a request has not answered for a while: another one gets it, too, under the same request id.
    pub(super) fn hedge_forward(&mut self, ctx: &mut Ctx<'_>, op: OpId) {
        if let Some(Op { state: OpState::Forward(forward), .. }) = self.ops.get_mut(&op) {
            forward.hedge = None;
        }
        let Some(Op { state: OpState::Forward(forward), .. }) = self.ops.get(&op) else { return };
        let next = ctx.view.partition_of(&forward.request.key).and_then(|it| self.next_coordinator(ctx, it, forward));
        if next.is_none() || self.forward_on(ctx, op) {
            return;
        }
        if self.hedges.spend() {
            self.hedges.spent += 1;
            self.forward_next(ctx, op);
        } else {
            self.set_hedge(ctx, op);
        }
    }

    /// An owner that has a request has stalled.
    pub(crate) fn forward_stalled(&mut self, ctx: &mut Ctx<'_>, op: OpId) {
        self.forward_on(ctx, op);
    }

    /// No owner can be had. This node stands in for them if the request allows it and this node is not one of them.
    fn coordinate_as_fallback(&mut self, ctx: &mut Ctx<'_>, op: OpId, request: KeyRequest) {
        let Some(Op { origin, deadline, timer, state: OpState::Forward(forward), .. }) = self.ops.remove(&op) else {
            return;
        };
        ctx.kernel.cancel_timer(timer);
        if let Some(hedge) = forward.hedge {
            ctx.kernel.cancel_timer(hedge);
        }
        let Some(partition) = ctx.view.partition_of(&request.key) else { return };
        if forward.may_take_effect() {
            let message = format!(
                "the outcome is unknown: {}; repeating it with the same request id is safe",
                forward.progress()
            );
            self.answer(ctx, origin, Err(RequestError::new(Kind::Unknown, message)));
            return;
        }
        if once::needs_right_clock(ctx, &request) {
            let others = if forward.refusals.is_empty() {
                "no other owner can be reached".to_owned()
            } else {
                forward.refusals.join("; ")
            };
            let error = RequestError::unavailable(format!("{}; {partition}: {others}", once::clock_is_off(ctx)));
            self.answer(ctx, origin, Err(error));
            return;
        }
        if !quorum::owners_only(request.consistency) && !ctx.view.owns(partition) && forward.refusals.is_empty() {
            self.coordinate(ctx, origin, request, Role::Fallback, deadline);
            return;
        }
        let why = if forward.refusals.is_empty() {
            "no owner can be reached".to_owned()
        } else {
            forward.refusals.join("; ")
        };
        self.answer(ctx, origin, Err(RequestError::unavailable(format!("{partition}: {why}; try again"))));
    }

    /// A node that has the request answers it. An error counts only if nobody else has it: others may yet do what is asked.
    pub(crate) fn forward_answered(&mut self, ctx: &mut Ctx<'_>, op: OpId, node: NodeId, outcome: Outcome) {
        let Some(Op { state: OpState::Forward(forward), .. }) = self.ops.get_mut(&op) else { return };
        forward.waiting.retain(|waiting| *waiting != node);
        let error = match outcome {
            Ok(response) => {
                if let Response::Written { newest, .. } | Response::Got { newest, .. } = response {
                    ctx.newest(newest);
                }
                return self.finish(ctx, op, Ok(response));
            }
            Err(error) => error,
        };
        let wants_stamp = error.wants_stamp();
        let error = match self.stamp_anew(ctx, op, error) {
            Some(error) => error,
            None => return,
        };
        let Some(Op { state: OpState::Forward(forward), .. }) = self.ops.get_mut(&op) else { return };
        let is_decided = forward.waiting.is_empty() && !forward.may_take_effect();
        if is_decided || (forward.waiting.is_empty() && !error.is_safe_to_retry()) {
            return self.finish(ctx, op, Err(error));
        }
        if !error.is_safe_to_retry() {
            forward.lost.push(node);
        }
        if wants_stamp
            && !forward.goes_beside
            && may_go_beside(ctx, &forward.request)
            && ctx.view.keep(Rule::HedgeGoesBeside)
        {
            // Whoever has it is slow and may yet replace what stands there, or says nothing any more. Then nobody waits for it:
            // those that refused get it again.
            forward.goes_beside = true;
            forward.tried.retain(|tried| forward.waiting.contains(tried) || forward.lost.contains(tried));
        }
        forward.refusals.push(format!("{node}: {error}"));
        if self.forward_on(ctx, op) {
            return;
        }
        // A read need not wait for those that say nothing to learn what the others say.
        let Some(Op { state: OpState::Forward(forward), .. }) = self.ops.get(&op) else { return };
        if !forward.may_take_effect() && self.nobody_answers(ctx, forward) {
            self.finish(ctx, op, Err(error));
        }
    }

    /// A write that this node has named was refused for its stamp. If nobody else has it, it gets another one and is sent again.
    /// Otherwise what its client, who knows of no stamp, is told.
    fn stamp_anew(&mut self, ctx: &mut Ctx<'_>, op: OpId, error: RequestError) -> Option<RequestError> {
        let Some(Op { state: OpState::Forward(forward), .. }) = self.ops.get_mut(&op) else { return None };
        let Operation::Write { request: Some(request), attempt, .. } = &mut forward.request.operation else {
            return Some(error);
        };
        if !error.wants_stamp() || !once::is_own(ctx, *request) {
            return Some(error);
        }
        // If this node's stamp was ahead, or it cannot believe how late it is elsewhere, the clocks of the two nodes are too far
        // apart for any stamp of this one.
        let can_stamp = error.newest >= request.stamp && ctx.newest(error.newest) >= error.newest;
        if !can_stamp || !forward.waiting.is_empty() || !forward.lost.is_empty() || forward.stamps > STAMPS_MAX {
            return Some(RequestError::unavailable(error.message));
        }
        *request = once::own(ctx, Hlc::default());
        forward.stamps += 1;
        if forward.stamps == STAMPS_MAX {
            // Whatever stands there when it comes, it is put beside that.
            *attempt = Attempt::Plain;
        }
        forward.tried.clear();
        self.forward_next(ctx, op);
        None
    }

    /// Sends a request on if nobody who has it answers at present; says whether that was possible.
    fn forward_on(&mut self, ctx: &mut Ctx<'_>, op: OpId) -> bool {
        let Some(Op { state: OpState::Forward(forward), .. }) = self.ops.get(&op) else { return false };
        let may_wait = !forward.waiting.is_empty();
        let next = ctx.view.partition_of(&forward.request.key).and_then(|it| self.next_coordinator(ctx, it, forward));
        let goes_on = self.nobody_answers(ctx, forward) && (next.is_some() || !may_wait);
        if goes_on {
            self.hedges.spent += u64::from(may_wait);
            self.forward_next(ctx, op);
        }
        goes_on
    }

    fn nobody_answers(&self, ctx: &Ctx<'_>, forward: &ForwardOp) -> bool {
        forward.waiting.iter().all(|&node| ctx.is_stalled(node))
    }

    /// A node that had the request refused it (nothing was done), or its session ended.
    pub(crate) fn forward_failed(&mut self, ctx: &mut Ctx<'_>, op: OpId, node: NodeId, refusal: Option<Refusal>) {
        // What one owner says of the request itself the others would say, too.
        if let Some(Refusal::Failed(error) | Refusal::Busy(error)) = refusal {
            return self.forward_answered(ctx, op, node, Err(error));
        }
        let Some(Op { state: OpState::Forward(forward), .. }) = self.ops.get_mut(&op) else { return };
        forward.waiting.retain(|waiting| *waiting != node);
        match refusal {
            Some(refusal) => forward.refusals.push(format!("{node}: {refusal}")),
            None => forward.lost.push(node),
        }
        self.forward_on(ctx, op);
    }
}

/// Whether a write may stand beside a value that it may not replace: where the last writer wins it would be lost, and with a context it
/// is below what its client was shown.
fn may_go_beside(ctx: &Ctx<'_>, request: &KeyRequest) -> bool {
    let is_blind = matches!(request.operation, Operation::Write { context: None, .. });
    let conflict = ctx.view.available(request.keyspace).map(|keyspace| keyspace.settings().conflict);
    is_blind && conflict == Some(Conflict::Siblings)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_forward_in_ten_is_hedged_and_a_few_more_after_a_quiet_time() {
        let mut budget = HedgeBudget::default();
        let spend = |budget: &mut HedgeBudget| (0..1000).filter(|_| budget.spend()).count();
        assert_eq!(spend(&mut budget), 32);
        (0..1000).for_each(|_| budget.earn());
        assert_eq!(spend(&mut budget), 32, "no more is saved up");
        let hedged = (0..1000).filter(|_| {
            budget.earn();
            budget.spend()
        });
        assert_eq!(hedged.count(), 100);
    }
}
