//! Puts and deletes: write here, send the whole record to the other replicas, answer after W durable copies.

use bytes::Bytes;

use super::{Op, OpId, OpState, Origin, quorum};
use crate::error::{Kind, RequestError};
use crate::message::{KeyRequest, Operation, Response, Role};
use crate::node::Node;
use crate::node::keys::{Held, Task};
use crate::replica::{Goal, Target};
use crate::rule::Rule;
use crate::storage::{Space, StorageKey, Stored};
use crate::types::{Monotonic, NodeId};
use crate::version::{Actor, Conflict, Context, ContextToken, Dot, Hlc, Record, Write};

/// A write in flight.
#[derive(Debug)]
pub(super) struct WriteOp {
    request: KeyRequest,
    /// Durable copies that the client waits for.
    need: usize,
    /// Nodes that durably hold the write.
    acks: Vec<NodeId>,
    /// The answer, once the write has been made here.
    response: Option<Response>,
}

impl WriteOp {
    pub(super) fn is_started(&self) -> bool {
        self.response.is_some()
    }

    pub(super) fn progress(&self) -> String {
        format!("{} of {} copies are confirmed", self.acks.len(), self.need)
    }
}

impl Node {
    pub(super) fn start_write(&mut self, origin: Origin, request: KeyRequest, role: Role, deadline: Monotonic) {
        let Some(partition) = self.partition_of(&request.key) else { return };
        let Some(keyspace) = self.keyspace(request.keyspace) else { return };
        let owners = self.entry(partition).map_or(0, |entry| entry.owners.len());
        let need = quorum::writes(request.consistency, keyspace, owners);
        let owners_up = self.owners_up(partition).len();
        let possible = if quorum::owners_only(request.consistency) {
            owners_up
        } else {
            owners_up + self.stand_ins_up(partition, owners - owners_up.min(owners)).len()
        };
        if possible < need {
            let error = RequestError::unavailable(format!(
                "{partition} needs {need} copies for this write and only {possible} of {owners} can be reached; nothing was written"
            ));
            self.answer(origin, Err(error));
            return;
        }
        if self.replications.len() >= self.config.replications_max {
            let error = RequestError::exhausted(format!(
                "{} writes wait for slow replicas, the most that this node keeps; slow down and try again",
                self.config.replications_max
            ));
            self.answer(origin, Err(error));
            return;
        }
        let space = match role {
            Role::Owner => Space::Owned,
            Role::StandIn => Space::Hint,
        };
        if space == Space::Hint && self.hint_bytes >= self.config.hint_bytes_max {
            self.answer(origin, Err(self.hints_full()));
            return;
        }
        let key = StorageKey::new(space, partition, request.keyspace, &request.key);
        let write = WriteOp { request, need, acks: Vec::new(), response: None };
        let op = self.open_op(origin, deadline, OpState::Write(write));
        self.with_key(key, Task::Write(op));
    }

    /// The key's record is in memory: write, and replicate.
    pub(crate) fn coordinate_write(&mut self, op: OpId, key: &StorageKey, stored: Option<&Stored>) {
        let Some(Op { state: OpState::Write(write), .. }) = self.ops.get(&op) else { return };
        let request = write.request.clone();
        let Operation::Write { request: request_id, value, context, ttl } = &request.operation else { return };
        let Some(conflict) = self.keyspace(request.keyspace).map(|keyspace| keyspace.conflict) else { return };
        let token = match context {
            Some(context) => match ContextToken::decode(context, request.keyspace, &request.key) {
                Ok(token) => Some(token),
                Err(error) => return self.finish(op, Err(RequestError::invalid(error.to_string()))),
            },
            None => None,
        };
        let before = stored.map(|stored| &stored.record);
        let repeated =
            before.is_some_and(|record| record.siblings.iter().any(|sibling| sibling.request == *request_id));
        let (record, dot) = if repeated && self.rules.keep(Rule::RememberRequests) {
            // Rule A7: the write is here already. It is confirmed and replicated again without a new dot.
            (before.cloned().unwrap_or_default(), None)
        } else {
            if let Some(token) = &token
                && conflict == Conflict::Lww
                && let Err(skew) = self.clock.observe(self.now.wall, token.latest, self.cluster.clock_skew_max)
            {
                return self.finish(op, Err(RequestError::unavailable(skew.to_string())));
            }
            let mut record = before.cloned().unwrap_or_default();
            let seen = token.as_ref().map_or_else(|| record.context.clone(), |token| token.context.clone());
            let latest = token.as_ref().map_or(Hlc::default(), |token| token.latest).max(record.latest());
            let actor = self.actor_for(key, stored);
            let written = self.clock.tick(self.now.wall, latest);
            let expires = ttl.map(|ttl| self.now.wall.plus(ttl));
            let dot = record.write(
                actor,
                &seen,
                conflict,
                Write { written, request: *request_id, expires, value: value.clone().map(|value| copy(&value)) },
            );
            if let Err(error) = self.check_growth(&record) {
                return self.finish(op, Err(error));
            }
            self.note_expiry(key.partition(), expires);
            self.put(key, Some(Stored { own: Some(actor), record: record.clone() }));
            (record, Some(dot))
        };
        let response = Response::Written {
            context: ContextToken::after_write(&record, &token.unwrap_or_default())
                .encode(request.keyspace, &request.key),
            siblings: record.live(self.now.wall).len(),
        };
        if let Some(Op { state: OpState::Write(write), .. }) = self.ops.get_mut(&op) {
            write.response = Some(response);
        }
        self.hold_key(key, Held::Acked { op });
        self.replicate_write(op, key, record, dot, &request);
    }

    /// Sends the record to the other owners, and to a stand-in for each owner that is down.
    fn replicate_write(&mut self, op: OpId, key: &StorageKey, record: Record, dot: Option<Dot>, request: &KeyRequest) {
        let me = self.config.node;
        let partition = key.partition();
        let owners: Vec<NodeId> = self.entry(partition).map(|entry| entry.nodes().collect()).unwrap_or_default();
        let down = owners.iter().filter(|&&owner| !self.reachable(owner)).count();
        let mut targets: Vec<Target> =
            owners.into_iter().filter(|&owner| owner != me).map(|owner| Target::new(owner, Role::Owner)).collect();
        if !quorum::owners_only(request.consistency) && down > 0 {
            let stand_ins = self.stand_ins_up(partition, down);
            targets
                .extend(stand_ins.into_iter().filter(|&node| node != me).map(|node| Target::new(node, Role::StandIn)));
        }
        let sent = match dot {
            Some(dot) if !self.rules.keep(Rule::WholeRecord) => delta(&record, dot),
            _ => record,
        };
        self.start_replication(key.clone(), sent, targets, Goal::Write(op));
    }

    /// `node` durably holds the write.
    pub(crate) fn write_acked(&mut self, op: OpId, node: NodeId) {
        let Some(Op { state: OpState::Write(write), .. }) = self.ops.get_mut(&op) else { return };
        if !write.acks.contains(&node) {
            write.acks.push(node);
        }
        if write.acks.len() >= write.need
            && let Some(response) = write.response.take()
        {
            self.finish(op, Ok(response));
        }
    }

    /// Whether a write still waits for copies and lets stand-ins count.
    pub(crate) fn write_wants_stand_in(&self, op: OpId) -> bool {
        match self.ops.get(&op) {
            Some(Op { state: OpState::Write(write), .. }) => !quorum::owners_only(write.request.consistency),
            _ => false,
        }
    }

    /// Replication has ended and the write's copies are too few: the client learns that now instead of at its deadline.
    pub(crate) fn write_short(&mut self, op: OpId) {
        let Some(Op { state: OpState::Write(write), .. }) = self.ops.get(&op) else { return };
        // The node's own copy may still be on its way to the disk.
        let own = usize::from(!write.acks.contains(&self.config.node));
        if write.acks.len() + own < write.need {
            let message = format!(
                "the outcome is unknown: {}, and the other replicas cannot be reached; repeating it with the same request id is safe",
                write.progress()
            );
            self.finish(op, Err(RequestError::new(Kind::Unknown, message)));
        }
    }

    /// The actor of the next dot on this record (rule A1): the one that this incarnation already uses for this record
    /// instance, or a fresh one.
    fn actor_for(&mut self, key: &StorageKey, stored: Option<&Stored>) -> Actor {
        let own = stored.and_then(|stored| stored.own);
        if let Some(own) = own
            && (own.belongs_to(self.incarnation)
                || (!self.rules.keep(Rule::FreshActorAfterBoot) && own.store == self.incarnation.store))
        {
            return own;
        }
        let mut actor = Actor {
            store: self.incarnation.store,
            boot: self.incarnation.boot,
            nonce: self.incarnation.nonce,
            instance: 0,
        };
        if key.space() == Space::Hint && !self.rules.keep(Rule::FreshActorPerHint) {
            return actor;
        }
        self.actors_drawn += 1;
        actor.instance = self.actors_drawn;
        actor
    }

    fn check_growth(&self, record: &Record) -> Result<(), RequestError> {
        let values = record.siblings.len();
        if values > self.cluster.siblings_max {
            return Err(RequestError::new(
                Kind::Exhausted,
                format!(
                    "{values} concurrent values would stand side by side, the limit is {}; read the key and put with its context",
                    self.cluster.siblings_max
                ),
            ));
        }
        let bytes = record.value_bytes();
        let bytes_max = self.cluster.record_bytes_max();
        if values > 1 && bytes > bytes_max {
            return Err(RequestError::new(
                Kind::Exhausted,
                format!(
                    "the concurrent values of the key would take {bytes} bytes, the limit is {bytes_max}; read the key and put with its context"
                ),
            ));
        }
        let actors = record.context.len();
        if actors > self.cluster.actors_max {
            return Err(RequestError::new(
                Kind::Exhausted,
                format!(
                    "the context of the key would name {actors} actors, the limit is {}; copy the value to a new key",
                    self.cluster.actors_max
                ),
            ));
        }
        Ok(())
    }

    pub(crate) fn hints_full(&self) -> RequestError {
        RequestError::exhausted(format!(
            "{} bytes of hints are held for nodes that are down, the limit is {}; bring these nodes back",
            self.hint_bytes, self.config.hint_bytes_max
        ))
    }
}

/// What a coordinator must not send (rule A2): only the new version. For the mutation check.
fn delta(record: &Record, dot: Dot) -> Record {
    let mut context = Context::new();
    context.see(dot);
    let siblings = record.siblings.iter().filter(|sibling| sibling.dot == dot).cloned().collect();
    Record { context, siblings }
}

/// A value of its own: a slice of a request's frame would keep the whole frame in memory.
fn copy(value: &Bytes) -> Bytes {
    Bytes::copy_from_slice(value)
}
