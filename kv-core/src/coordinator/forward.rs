//! Requests for partitions that this node cannot coordinate go, whole, to an owner.

use super::{Op, OpId, OpState, Origin};
use crate::error::{Kind, RequestError};
use crate::message::{KeyRequest, Message, Operation, Outcome, Refusal, Request, Role};
use crate::node::peers::Purpose;
use crate::node::timers::{Timer, TimerKey};
use crate::node::{Node, weight};
use crate::rule::Rule;
use crate::types::{KeyspaceId, Monotonic, NodeId, PartitionId};

/// Forwards for which one hedge of a peer that is slow, but answers, is allowed.
const FORWARDS_PER_HEDGE: u32 = 10;

/// Hedges of slow peers that may come at once after a quiet time.
const HEDGES_AT_ONCE: u32 = 32;

/// How many forwarded requests may be sent to a second owner because the first one is slow: one in ten, and a few more
/// after a quiet time. Under overload every owner is slow, and doubling all requests would make that worse. A peer that
/// has stalled does not count: what waits for it is nobody's load.
#[derive(Debug)]
pub(crate) struct HedgeBudget {
    /// What is left, in forwards.
    left: u32,
    /// Forwards sent to another owner as well, for whatever reason.
    pub(crate) spent: u64,
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
}

impl ForwardOp {
    fn new(request: KeyRequest) -> Self {
        let (tried, waiting, lost, refusals) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { request, tried, waiting, lost, refusals, hedge: None }
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
        match (self.waiting.last().or(self.lost.last()), self.waiting.is_empty()) {
            (Some(node), false) => format!("{node} coordinates the request and has not answered"),
            (Some(node), true) => format!("{node} went down with the request"),
            (None, _) => "no owner took the request".to_owned(),
        }
    }
}

impl Node {
    /// Coordinates a request here if this node is a replica of its key, else passes it on to one.
    pub(super) fn route(&mut self, origin: Origin, mut request: KeyRequest, deadline: Monotonic) {
        let Some(partition) = self.partition_of(&request.key) else { return };
        let Some(entry) = self.entry(partition) else { return };
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
            self.answer(origin, Err(RequestError::new(Kind::StaleEpoch, message)));
            return;
        }
        request.epoch = entry.changed;
        if self.owns(partition) && self.is_synced(partition) {
            self.coordinate(origin, request, Role::Owner, deadline);
            return;
        }
        self.hedges.earn();
        let op = self.open_op(origin, deadline, OpState::Forward(ForwardOp::new(request)));
        self.forward_next(op);
    }

    /// Starts a request in which this node plays `role`.
    pub(super) fn coordinate(&mut self, origin: Origin, request: KeyRequest, role: Role, deadline: Monotonic) {
        match request.operation {
            Operation::Get => self.start_get(origin, &request, deadline),
            Operation::Write { .. } => self.start_write(origin, request, role, deadline),
        }
    }

    /// Sends a request to the next owner, whether others have it or not. Without one it waits for those that have it.
    fn forward_next(&mut self, op: OpId) {
        let Some(Op { state: OpState::Forward(forward), deadline, .. }) = self.ops.get(&op) else { return };
        let deadline = *deadline;
        let Some(partition) = self.partition_of(&forward.request.key) else { return };
        let next = self.next_coordinator(partition, forward);
        let waits = !forward.waiting.is_empty();
        if next.is_none() && !waits && !forward.may_take_effect() {
            let mut untried = self.coordinators_up(partition);
            untried.retain(|node| !forward.tried.contains(node));
            if !untried.is_empty() {
                let error = self.peers_full(untried.into_iter());
                self.finish(op, Err(error));
                return;
            }
        }
        let mut request = forward.request.clone();
        request.epoch = self.entry(partition).map_or(request.epoch, |entry| entry.changed);
        let Some(node) = next else {
            if !waits {
                self.coordinate_as_stand_in(op, request);
            }
            return;
        };
        if let Some(Op { state: OpState::Forward(forward), .. }) = self.ops.get_mut(&op) {
            forward.tried.push(node);
            forward.waiting.push(node);
        }
        self.set_hedge(op);
        let call = self.next_call();
        let left = deadline.since(self.now.mono);
        self.ask(
            node,
            call,
            Purpose::Forward(op),
            Message::Forward { call, request: Request::Key(request), deadline: left },
        );
    }

    /// Who gets a request next: nobody without room for it and, while somebody has it, nobody who has stalled.
    fn next_coordinator(&self, partition: PartitionId, forward: &ForwardOp) -> Option<NodeId> {
        if !forward.waiting.is_empty() && !self.rules.keep(Rule::HedgeForwards) {
            return None;
        }
        let bytes = weight::of_key_request(&forward.request);
        let may = |&node: &NodeId| {
            let has_room = bytes == 0 || self.peer_has_room(node, bytes);
            !forward.tried.contains(&node) && has_room && (forward.waiting.is_empty() || !self.is_stalled(node))
        };
        self.coordinators_up(partition).into_iter().find(may)
    }

    fn set_hedge(&mut self, op: OpId) {
        let timer = self.set_timer(self.now.mono.plus(self.config.hedge_after), Timer::Hedge(op));
        let Some(Op { state: OpState::Forward(forward), .. }) = self.ops.get_mut(&op) else { return };
        if let Some(old) = forward.hedge.replace(timer) {
            self.timers.cancel(old);
        }
    }

    /// The owner that has a request has not answered for a while: another one gets it, too, under the same request id.
    pub(super) fn hedge_forward(&mut self, op: OpId) {
        if let Some(Op { state: OpState::Forward(forward), .. }) = self.ops.get_mut(&op) {
            forward.hedge = None;
        }
        let Some(Op { state: OpState::Forward(forward), .. }) = self.ops.get(&op) else { return };
        let next = self.partition_of(&forward.request.key).and_then(|it| self.next_coordinator(it, forward));
        if next.is_none() || self.forward_on(op) {
            return;
        }
        if self.hedges.spend() {
            self.hedges.spent += 1;
            self.forward_next(op);
        } else {
            self.set_hedge(op);
        }
    }

    /// An owner that has a request has stalled.
    pub(crate) fn forward_stalled(&mut self, op: OpId) {
        self.forward_on(op);
    }

    /// No owner can be had. This node stands in for them if the request allows it and this node is not one of them.
    fn coordinate_as_stand_in(&mut self, op: OpId, request: KeyRequest) {
        let Some(Op { origin, deadline, timer, state: OpState::Forward(forward), .. }) = self.ops.remove(&op) else {
            return;
        };
        self.timers.cancel(timer);
        if let Some(hedge) = forward.hedge {
            self.timers.cancel(hedge);
        }
        let Some(partition) = self.partition_of(&request.key) else { return };
        if forward.may_take_effect() {
            let message = format!(
                "the outcome is unknown: {}; repeating it with the same request id is safe",
                forward.progress()
            );
            self.answer(origin, Err(RequestError::new(Kind::Unknown, message)));
            return;
        }
        if !super::quorum::owners_only(request.consistency) && !self.owns(partition) && forward.refusals.is_empty() {
            self.coordinate(origin, request, Role::StandIn, deadline);
            return;
        }
        let why = if forward.refusals.is_empty() {
            "no owner can be reached".to_owned()
        } else {
            forward.refusals.join("; ")
        };
        self.answer(origin, Err(RequestError::unavailable(format!("{partition}: {why}; try again"))));
    }

    /// A node that has the request answers it. An error counts only if nobody else has it: others may yet do what is asked.
    pub(crate) fn forward_answered(&mut self, op: OpId, node: NodeId, outcome: Outcome) {
        let Some(Op { state: OpState::Forward(forward), .. }) = self.ops.get_mut(&op) else { return };
        forward.waiting.retain(|waiting| *waiting != node);
        let error = match outcome {
            Ok(response) => return self.finish(op, Ok(response)),
            Err(error) => error,
        };
        let is_decided = forward.waiting.is_empty() && !forward.may_take_effect();
        if is_decided || (forward.waiting.is_empty() && !error.is_safe_to_retry()) {
            return self.finish(op, Err(error));
        }
        if !error.is_safe_to_retry() {
            forward.lost.push(node);
        }
        forward.refusals.push(format!("{node}: {error}"));
        if self.forward_on(op) {
            return;
        }
        // A read need not wait for those that say nothing to learn what the others say.
        let Some(Op { state: OpState::Forward(forward), .. }) = self.ops.get(&op) else { return };
        if !forward.may_take_effect() && self.nobody_answers(forward) {
            self.finish(op, Err(error));
        }
    }

    /// Sends a request on if nobody who has it answers at present; says whether that was possible.
    fn forward_on(&mut self, op: OpId) -> bool {
        let Some(Op { state: OpState::Forward(forward), .. }) = self.ops.get(&op) else { return false };
        let may_wait = !forward.waiting.is_empty();
        let next = self.partition_of(&forward.request.key).and_then(|it| self.next_coordinator(it, forward));
        let goes_on = self.nobody_answers(forward) && (next.is_some() || !may_wait);
        if goes_on {
            self.hedges.spent += u64::from(may_wait);
            self.forward_next(op);
        }
        goes_on
    }

    fn nobody_answers(&self, forward: &ForwardOp) -> bool {
        forward.waiting.iter().all(|&node| self.is_stalled(node))
    }

    /// A node that had the request refused it (nothing was done), or its session ended.
    pub(crate) fn forward_failed(&mut self, op: OpId, node: NodeId, refusal: Option<Refusal>) {
        // What one owner says of the request itself the others would say, too.
        if let Some(Refusal::Failed(error) | Refusal::Busy(error)) = refusal {
            return self.forward_answered(op, node, Err(error));
        }
        let Some(Op { state: OpState::Forward(forward), .. }) = self.ops.get_mut(&op) else { return };
        forward.waiting.retain(|waiting| *waiting != node);
        match refusal {
            Some(refusal) => forward.refusals.push(format!("{node}: {refusal}")),
            None => forward.lost.push(node),
        }
        self.forward_on(op);
    }
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
