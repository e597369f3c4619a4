//! Requests for partitions that this node cannot coordinate go, whole, to an owner.

use super::{Op, OpId, OpState, Origin};
use crate::error::{Kind, RequestError};
use crate::message::{KeyRequest, Message, Operation, Refusal, Request, Role};
use crate::node::peers::Purpose;
use crate::node::{Node, weight};
use crate::types::{KeyspaceId, Monotonic, NodeId};

/// A request that waits for another node.
#[derive(Debug)]
pub(super) struct ForwardOp {
    request: KeyRequest,
    /// Owners that have had it; the last one has it now.
    tried: Vec<NodeId>,
    /// Whether the node that has it has not refused it.
    sent: bool,
    /// Why the owners tried before refused.
    refusals: Vec<String>,
}

impl ForwardOp {
    pub(super) fn keyspace(&self) -> KeyspaceId {
        self.request.keyspace
    }

    pub(super) fn may_take_effect(&self) -> bool {
        self.sent && matches!(self.request.operation, Operation::Write { .. })
    }

    /// The node that has the request.
    pub(super) fn asked(&self) -> Option<NodeId> {
        self.tried.last().copied().filter(|_| self.sent)
    }

    pub(super) fn request(&self) -> &KeyRequest {
        &self.request
    }

    pub(super) fn progress(&self) -> String {
        match self.tried.last() {
            Some(node) => format!("{node} coordinates the request and has not answered"),
            None => "no owner took the request".to_owned(),
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
        let forward = ForwardOp { request, tried: Vec::new(), sent: false, refusals: Vec::new() };
        let op = self.open_op(origin, deadline, OpState::Forward(forward));
        self.forward_next(op);
    }

    /// Starts a request in which this node plays `role`.
    pub(super) fn coordinate(&mut self, origin: Origin, request: KeyRequest, role: Role, deadline: Monotonic) {
        match request.operation {
            Operation::Get => self.start_get(origin, &request, deadline),
            Operation::Write { .. } => self.start_write(origin, request, role, deadline),
        }
    }

    fn forward_next(&mut self, op: OpId) {
        let Some(Op { state: OpState::Forward(forward), deadline, .. }) = self.ops.get(&op) else { return };
        let deadline = *deadline;
        let Some(partition) = self.partition_of(&forward.request.key) else { return };
        let bytes = weight::of_key_request(&forward.request);
        let untried = || self.coordinators_up(partition).into_iter().filter(|node| !forward.tried.contains(node));
        let next = untried().find(|&node| bytes == 0 || self.peer_has_room(node, bytes));
        if next.is_none() && untried().next().is_some() {
            let error = self.peers_full(untried());
            self.finish(op, Err(error));
            return;
        }
        let mut request = forward.request.clone();
        request.epoch = self.entry(partition).map_or(request.epoch, |entry| entry.changed);
        let Some(node) = next else {
            self.coordinate_as_stand_in(op, request);
            return;
        };
        if let Some(Op { state: OpState::Forward(forward), .. }) = self.ops.get_mut(&op) {
            forward.tried.push(node);
            forward.sent = true;
        }
        let call = self.next_call();
        let left = deadline.since(self.now.mono);
        self.ask(
            node,
            call,
            Purpose::Forward(op),
            Message::Forward { call, request: Request::Key(request), deadline: left },
        );
    }

    /// No owner can be had. This node stands in for them if the request allows it and this node is not one of them.
    fn coordinate_as_stand_in(&mut self, op: OpId, request: KeyRequest) {
        let Some(Op { origin, deadline, timer, state: OpState::Forward(forward), .. }) = self.ops.remove(&op) else {
            return;
        };
        self.timers.cancel(timer);
        let Some(partition) = self.partition_of(&request.key) else { return };
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

    /// The node that had the request refused it (nothing was done), or its session ended.
    pub(crate) fn forward_failed(&mut self, op: OpId, refusal: Option<Refusal>) {
        let Some(Op { state: OpState::Forward(forward), .. }) = self.ops.get_mut(&op) else { return };
        let node = forward.tried.last().copied().unwrap_or_default();
        match refusal {
            Some(Refusal::Failed(error) | Refusal::Busy(error)) => {
                self.finish(op, Err(error));
            }
            Some(refusal) => {
                forward.sent = false;
                forward.refusals.push(format!("{node}: {refusal}"));
                self.forward_next(op);
            }
            None if forward.may_take_effect() => {
                let message = format!(
                    "the outcome is unknown: {node} went down with the request; repeating it with the same request id is safe"
                );
                self.finish(op, Err(RequestError::new(Kind::Unknown, message)));
            }
            None => {
                forward.sent = false;
                self.forward_next(op);
            }
        }
    }
}
