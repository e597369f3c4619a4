//! One request from start to end: each operation is a small state machine, numbered and bounded in time.

mod forward;
mod get;
mod inspect;
mod quorum;
mod requests;
mod scan;
mod write;

use std::time::Duration;

use bytes::Bytes;

use crate::error::{Kind, RequestError};
use crate::message::{CallId, Held, KeyRequest, Message, Operation, Outcome, Refusal, Request, Role};
use crate::node::peers::Purpose;
use crate::node::timers::{Timer, TimerKey};
use crate::node::{Effect, Node, Tag, weight};
use crate::storage::StorageKey;
use crate::types::{KeyspaceId, Monotonic, NodeId, PartitionId};
pub(crate) use forward::HedgeBudget;
use get::GetOp;
use inspect::InspectOp;
pub(crate) use requests::Requests;
use scan::ScanOp;
use write::WriteOp;

/// Numbers the operations of one incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct OpId(pub(crate) u64);

/// A request in flight.
#[derive(Debug)]
pub(crate) struct Op {
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
    /// Nobody: the node replaces a record of its own that it cannot read.
    Mend(StorageKey),
}

#[derive(Debug)]
enum OpState {
    Forward(forward::ForwardOp),
    Get(GetOp),
    Write(WriteOp),
    Scan(ScanOp),
    Inspect(InspectOp),
}

impl Op {
    /// Bytes that replicas have answered.
    pub(crate) fn answer_bytes(&self) -> usize {
        self.answer_bytes
    }

    /// The keyspace that it is about.
    pub(crate) fn keyspace(&self) -> KeyspaceId {
        match &self.state {
            OpState::Forward(forward) => forward.keyspace(),
            OpState::Get(get) => get.key.keyspace(),
            OpState::Write(write) => write.key().keyspace(),
            OpState::Scan(scan) => scan.keyspace(),
            OpState::Inspect(inspect) => inspect.keyspace,
        }
    }

    /// Whether a write was started that may take effect although the client is told nothing good.
    pub(crate) fn may_take_effect(&self) -> bool {
        match &self.state {
            OpState::Write(write) => write.is_started(),
            OpState::Forward(forward) => forward.may_take_effect(),
            OpState::Get(_) | OpState::Scan(_) | OpState::Inspect(_) => false,
        }
    }
}

impl Node {
    /// A client asks this node.
    pub(crate) fn client_request(&mut self, tag: Tag, request: Request, deadline: Option<Monotonic>) {
        let limit = self.now.mono.plus(self.config.deadline);
        let deadline = deadline.unwrap_or(limit);
        if let Err(error) = self.admit(&request) {
            self.out.push(Effect::Reply { tag, outcome: Err(error) });
            return;
        }
        match request {
            Request::Key(request) => self.route(Origin::Client(tag), request, deadline),
            Request::Scan(request) => self.start_scan(Origin::Client(tag), request, deadline),
            Request::Inspect { keyspace, key } => self.start_inspect(Origin::Client(tag), keyspace, key, deadline),
        }
    }

    /// A peer forwards its client's request: it is coordinated here or refused, never passed on.
    pub(crate) fn forwarded_request(&mut self, node: NodeId, call: CallId, request: Request, left: Duration) {
        let refusal = match self.admit(&request) {
            // Whoever waited for it has been told something else.
            Ok(()) if left.is_zero() => Some(Refusal::Late),
            Err(error) if error.kind == Kind::Exhausted => Some(Refusal::Busy(error)),
            // The node that forwards it knows the keyspace: either it is younger than what this node knows, or it was
            // dropped and the other one does not know that yet. Neither is for the client to hear.
            Err(error) if error.kind == Kind::NotFound => Some(Refusal::Behind { epoch: self.newest }),
            Err(error) => Some(Refusal::Failed(error)),
            Ok(()) => match &request {
                Request::Key(key) => self.refuses_to_coordinate(key),
                Request::Scan(_) | Request::Inspect { .. } => Some(Refusal::NotOwner),
            },
        };
        let origin = Origin::Peer { node, call };
        match (refusal, request) {
            (None, Request::Key(request)) => {
                let deadline = self.now.mono.plus(left.min(self.config.deadline));
                self.coordinate(origin, request, Role::Owner, deadline);
            }
            (refusal, _) => {
                let outcome = Err(refusal.unwrap_or(Refusal::NotOwner));
                self.send(node, Message::Forwarded { call, outcome });
            }
        }
    }

    fn refuses_to_coordinate(&self, request: &KeyRequest) -> Option<Refusal> {
        let partition = self.partition_of(&request.key)?;
        if let Err(refusal) = self.fence(partition, request.epoch) {
            return Some(refusal);
        }
        if !self.owns(partition) {
            return Some(Refusal::NotOwner);
        }
        (!self.is_synced(partition)).then_some(Refusal::NotSynced)
    }

    /// Checks a request before anything is spent on it.
    fn admit(&self, request: &Request) -> Result<(), RequestError> {
        if self.ops.len() >= self.config.requests_max {
            return Err(RequestError::exhausted(format!(
                "{} requests are in flight, the most that this node takes; slow down and try again",
                self.config.requests_max
            )));
        }
        if self.layout.is_none() {
            return Err(RequestError::unavailable("the node has no layout yet; try again when the cluster has formed"));
        }
        let (keyspace, key) = match request {
            Request::Key(request) => (request.keyspace, Some(&request.key)),
            Request::Scan(request) => (request.keyspace, None),
            Request::Inspect { keyspace, key } => (*keyspace, Some(key)),
        };
        if self.keyspace(keyspace).is_none() {
            return Err(RequestError::new(
                Kind::NotFound,
                format!("there is no keyspace {keyspace}; `keyspace ls` lists those that exist"),
            ));
        }
        if let Some(key) = key {
            self.check_key(key)?;
        }
        if let Request::Key(KeyRequest { operation, key, .. }) = request {
            self.check_operation(keyspace, key, operation)?;
        }
        self.admit_bytes(request)
    }

    fn check_key(&self, key: &Bytes) -> Result<(), RequestError> {
        let limit = self.cluster.key_bytes_max;
        if key.is_empty() {
            return Err(RequestError::invalid(format!("the key is empty; a key has 1 to {limit} bytes")));
        }
        if key.len() > limit {
            return Err(RequestError::invalid(format!(
                "the key has {} bytes, the limit is {limit}; use a shorter key, for instance a hash of this one",
                key.len()
            )));
        }
        let partition = self.partition_of(key);
        if partition.is_some_and(|partition| !self.config.partitions.contains(partition)) {
            return Err(RequestError::unavailable("the request was given to a loop that does not serve its partition"));
        }
        Ok(())
    }

    fn check_operation(&self, keyspace: KeyspaceId, key: &[u8], operation: &Operation) -> Result<(), RequestError> {
        let Operation::Write { value, context, ttl, .. } = operation else { return Ok(()) };
        let limit = self.cluster.value_bytes_max;
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
        if let Some(context) = context {
            crate::version::ContextToken::decode(context, keyspace, key)
                .map_err(|error| RequestError::invalid(error.to_string()))?;
        }
        Ok(())
    }

    pub(crate) fn partition_of(&self, key: &[u8]) -> Option<PartitionId> {
        self.layout.as_ref().map(|layout| layout.partition_of(key))
    }

    /// Numbers an operation and starts its clock.
    fn open_op(&mut self, origin: Origin, deadline: Monotonic, state: OpState) -> OpId {
        let op = OpId(self.next_id());
        let timer = self.set_timer(deadline, Timer::Deadline(op));
        let bytes = match &state {
            OpState::Forward(forward) => weight::of_key_request(forward.request()),
            OpState::Write(write) => weight::of_key_request(write.request()),
            OpState::Get(_) | OpState::Scan(_) | OpState::Inspect(_) => 0,
        };
        self.ops.insert(op, Op { origin, deadline, timer, bytes, answer_bytes: 0, state });
        op
    }

    /// Answers a request and forgets it.
    pub(crate) fn finish(&mut self, op: OpId, outcome: Outcome) {
        let Some(Op { origin, timer, state, .. }) = self.ops.remove(&op) else { return };
        self.timers.cancel(timer);
        let hedge = match state {
            OpState::Get(GetOp { hedge, .. }) => hedge,
            OpState::Forward(forward) => {
                // Others may have it as well, and nobody waits for them any more.
                for &node in forward.asked() {
                    self.give_up_asking(node, Purpose::Forward(op));
                }
                forward.hedge
            }
            OpState::Write(_) | OpState::Scan(_) | OpState::Inspect(_) => None,
        };
        if let Some(hedge) = hedge {
            self.timers.cancel(hedge);
        }
        self.answer(origin, outcome);
    }

    fn answer(&mut self, origin: Origin, outcome: Outcome) {
        match origin {
            Origin::Client(tag) => self.out.push(Effect::Reply { tag, outcome }),
            Origin::Peer { node, call } => self.send(node, Message::Forwarded { call, outcome: Ok(outcome) }),
            Origin::Mend(_) => {}
        }
    }

    /// A request ran out of time.
    pub(crate) fn deadline_passed(&mut self, op: OpId) {
        let Some(found) = self.ops.get(&op) else { return };
        let error = if found.may_take_effect() {
            RequestError::new(
                Kind::Unknown,
                format!(
                    "the outcome is unknown: {}; repeating it with the same request id is safe",
                    found.progress(self)
                ),
            )
        } else {
            RequestError::unavailable(format!("the time is up: {}; nothing was done", found.progress(self)))
        };
        // What was read in time but damaged or late is still worth showing.
        if let OpState::Inspect(inspect) = &found.state {
            let response = inspect.response();
            self.finish(op, Ok(response));
            return;
        }
        self.finish(op, Err(error));
    }

    /// A layout has changed the entries of some partitions: requests on them start again by the new one.
    pub(crate) fn reroute(&mut self, changed: &dyn Fn(PartitionId) -> bool) {
        for op in self.ops.keys().copied().collect::<Vec<_>>() {
            let Some(Op { state, .. }) = self.ops.get(&op) else { continue };
            match state {
                OpState::Get(get) if changed(get.key.partition()) => self.restart_get(op),
                OpState::Scan(_) => self.restart_scan(op),
                // Other owners may be enough now.
                OpState::Write(write) if changed(write.key().partition()) => {
                    self.write_evaluate(op);
                }
                _ => {}
            }
        }
        for replication in self.replications.keys().copied().collect::<Vec<_>>() {
            if self.replications.get(&replication).is_some_and(|found| changed(found.key.partition())) {
                self.retarget(replication);
            }
        }
    }

    /// A replica or stand-in answered a read.
    pub(crate) fn read_answered(&mut self, op: OpId, from: NodeId, role: Role, held: Held) {
        if !self.keep_answer(op, weight::of_held(&held)) {
            return;
        }
        match self.ops.get_mut(&op).map(|op| &mut op.state) {
            Some(OpState::Get(_)) => self.get_answered(op, from, role, held),
            Some(OpState::Inspect(_)) => {
                let record = match held {
                    Held::Full(record) => Some(record),
                    Held::Digest(_) => None,
                };
                self.inspect_answered(op, from, Ok(record));
            }
            _ => {}
        }
    }

    /// A request has waited for a while for those that it asked.
    pub(crate) fn hedge(&mut self, op: OpId) {
        match self.ops.get(&op).map(|op| &op.state) {
            Some(OpState::Get(_)) => self.hedge_get(op),
            Some(OpState::Forward(_)) => self.hedge_forward(op),
            _ => {}
        }
    }

    /// A replica or fallback that a read waits for has stalled.
    pub(crate) fn read_stalled(&mut self, op: OpId, from: NodeId) {
        match self.ops.get(&op).map(|op| &op.state) {
            Some(OpState::Get(_)) => self.hedge_get(op),
            Some(OpState::Inspect(_)) => self.inspect_answered(op, from, Err(inspect::stalled())),
            _ => {}
        }
    }

    /// A replica or stand-in will not answer a read; `None`: its session has ended.
    pub(crate) fn read_failed(&mut self, op: OpId, from: NodeId, role: Role, refusal: Option<Refusal>) {
        match self.ops.get_mut(&op).map(|op| &mut op.state) {
            Some(OpState::Get(_)) => self.get_failed(op, from, role, refusal),
            Some(OpState::Inspect(_)) => {
                let error = refusal.map_or_else(
                    || RequestError::unavailable("the node is down"),
                    |refusal| crate::node::keys::refusal_error(&refusal),
                );
                self.inspect_answered(op, from, Err(error));
            }
            _ => {}
        }
    }

    /// Reads a key at a replica or a stand-in, this node included.
    fn ask_read(&mut self, op: OpId, node: NodeId, role: Role, key: &StorageKey, digest: bool) {
        let space = match role {
            Role::Owner => crate::storage::Space::Owned,
            Role::StandIn => crate::storage::Space::Hint,
        };
        if node == self.config.node {
            self.with_key(key.in_space(space), crate::node::keys::Task::ReadForOp(op, role));
            return;
        }
        let Some(epoch) = self.layout.as_ref().and_then(|layout| layout.entry(key.partition())).map(|e| e.changed)
        else {
            return;
        };
        let call = self.next_call();
        let message = Message::Read { call, epoch, role, keyspace: key.keyspace(), key: key.key_bytes(), digest };
        self.ask(node, call, Purpose::Read(op, role), message);
    }
}

impl Op {
    /// For people: how far a request got.
    fn progress(&self, node: &Node) -> String {
        let entry = |key: &StorageKey| node.entry(key.partition());
        match &self.state {
            OpState::Forward(forward) => forward.progress(),
            OpState::Get(get) => get.progress(entry(&get.key)),
            OpState::Write(write) => write.progress(entry(write.key())),
            OpState::Scan(_) => "some replicas did not answer the scan".to_owned(),
            OpState::Inspect(_) => "some replicas did not answer".to_owned(),
        }
    }
}
