//! The clients: each does one operation after the other on a few keys that all of them share.
//!
//! An operation is tried on one node after another, always with the same request id. It ends when it is answered, or
//! when the client gives up; then its outcome is known to be nothing only if every attempt was refused with an error
//! that says so.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use kv_core::config::{Available, Keyspace as KeyspaceSettings, Mode};
use kv_core::error::{Kind, RequestError};
use kv_core::message::{
    Attempt, Consistency, KeyRequest, Level, Operation, Outcome, Request, Response, ScanRequest, When,
};
use kv_core::node::{Input, Tag};
use kv_core::types::{Hlc, KeyspaceId, RequestId, WallTime};
use kv_core::version::{Context, ContextToken};

use crate::check;
use crate::clock::Time;
use crate::history::{End, Key, KeyId, OpId, Seen, WriteOp};
use crate::report::Count;
use crate::settings::MS;
use crate::trace::{self, note};
use crate::world::{Event, World};

/// How often a client tries an operation.
const ATTEMPTS_MAX: u32 = 4;
/// A request must be answered this long after its deadline: timers are late, and so is the step that they wake.
const ANSWER_BOUND: Time = 20 * MS;

/// What is asked.
#[derive(Clone, Debug)]
pub(crate) enum Ask {
    /// A write, and what its client says of its attempts.
    Write(OpId, Attempt),
    /// A read of one key.
    Read { key: KeyId, consistency: Consistency },
    /// A page of a scan.
    Scan(ScanRequest),
    /// What each replica of a key holds.
    Inspect { key: KeyId },
    /// An attempt of an operation on a register, by its number.
    Register(usize, Attempt),
    /// A page of the registers, with at most so many keys.
    Registers { limit: usize },
    /// A request that can only be refused, and how.
    Bad { request: Request, kind: Kind },
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asker {
    /// One of the clients.
    Client(usize),
    /// A client of the consistent keyspace, for an operation with this number, and which of its attempts.
    Register(usize, u32),
    /// Somebody who reads all registers, since then.
    Registers { called: Time },
    /// The audit at the end of the run.
    Audit,
    /// A client that does not wait for the answer: it repeats what it has done, or has gone on without it.
    Past,
}

/// An operation that a client has under way.
#[derive(Clone, Debug)]
struct Running {
    ask: Ask,
    attempts: u32,
    /// Whether some attempt may have taken effect.
    uncertain: bool,
}

/// What gives the operations of one client their identities (rule A7).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stamps {
    client: u64,
    /// The time of some node, and when it was that.
    base: (WallTime, Time),
    /// The newest timestamp that an answer has shown, or that was given out.
    newest: Hlc,
}

impl Stamps {
    /// Those of a client which has learnt the time of a node just now.
    pub(crate) fn new(client: u64, base: WallTime, now: Time) -> Self {
        Self { client, base: (base, now), newest: Hlc::default() }
    }

    /// The identity of an operation that begins now.
    pub(crate) fn next(&mut self, now: Time) -> RequestId {
        let elapsed = Duration::from_micros(now.saturating_sub(self.base.1));
        self.newest = self.newest.next().max(Hlc::at(self.base.0.plus(elapsed)));
        RequestId { stamp: self.newest, client: self.client }
    }

    /// An answer has shown a timestamp.
    pub(crate) fn shown(&mut self, newest: Hlc) {
        self.newest = self.newest.max(newest);
    }

    /// A node has refused a stamp. If its time is earlier, this client's was wrong: it begins again as another one.
    fn refused(&mut self, refused: Hlc, newest: Hlc, now: Time) {
        if newest >= refused {
            return self.shown(newest);
        }
        *self = Self { client: self.client + 1000, base: (newest.wall(), now), newest };
    }
}

/// A client.
#[derive(Debug)]
pub(crate) struct Client {
    stamps: Stamps,
    /// Operations that it has not begun.
    left: usize,
    running: Option<Running>,
    /// What it has last seen of each key.
    seen: BTreeMap<KeyId, Seen>,
    /// Which of the layouts it knows.
    layout: usize,
}

/// A request that was sent to a node.
#[derive(Clone, Debug)]
pub(crate) struct Pending {
    pub(crate) asker: Asker,
    pub(crate) ask: Ask,
    pub(crate) machine: usize,
    /// The run of the node that has received it.
    life: Option<u64>,
    /// When the client sent it.
    pub(crate) sent: Time,
    request: Option<Request>,
    answered: bool,
}

impl World {
    /// Makes the keys and the clients.
    pub(crate) fn plan_work(&mut self) {
        for keyspace in self.keyspaces.clone() {
            self.plan_keys(&keyspace);
        }
        self.plan_registers();
        for client in 0..self.settings.clients {
            let left = self.settings.operations;
            let base = self.machines[client % self.machines.len()].clock.wall(0);
            let stamps = Stamps::new(client as u64 + 1, base, 0);
            self.clients.push(Client { stamps, left, running: None, seen: BTreeMap::new(), layout: 0 });
            let at = 10 * MS + self.dice.below(30 * MS);
            self.at(at, Event::ClientWorks { client });
        }
    }

    /// Makes the keys of a keyspace.
    pub(crate) fn plan_keys(&mut self, keyspace: &KeyspaceSettings) {
        for index in 0..self.settings.keys_per_keyspace {
            let bytes = Bytes::from(format!("{}{index}", if index % 2 == 0 { "a" } else { "b/" }));
            let partition = self.layouts[0].partition_of(&bytes);
            let perishable = self.dice.chance(700);
            let Mode::Available(Available { conflict, .. }) = keyspace.mode else { continue };
            let keyspace = keyspace.id;
            self.history.add_key(Key { keyspace, conflict, bytes, partition, perishable });
        }
    }

    /// Whether every client has finished.
    pub(crate) fn clients_are_done(&self) -> bool {
        self.registers.are_done() && self.clients.iter().all(|client| client.running.is_none() && client.left == 0)
    }

    /// No client begins anything new.
    pub(crate) fn stop_clients(&mut self) {
        self.registers.stop();
        self.clients.iter_mut().for_each(|client| client.left = 0);
    }

    /// A client begins its next operation, or tries its present one again.
    pub(crate) fn client_works(&mut self, index: usize) {
        if self.clients[index].running.is_none() {
            if self.clients[index].left == 0 {
                return;
            }
            self.clients[index].left -= 1;
            let ask = self.draw_operation(index);
            self.clients[index].running = Some(Running { ask, attempts: 0, uncertain: false });
        }
        let Some(running) = &mut self.clients[index].running else { return };
        running.attempts += 1;
        if running.attempts > 1 && matches!(running.ask, Ask::Write(..)) {
            self.report.add(Count::Retries, 1);
        }
        if let Ask::Write(_, attempt) = &mut running.ask
            && running.uncertain
        {
            *attempt = Attempt::Repeated;
        }
        let ask = running.ask.clone();
        let layout = self.clients[index].layout;
        let machine = self.draw_machine(&ask);
        self.ask(Asker::Client(index), ask, machine, layout);
    }

    /// Sends a request to a node.
    pub(crate) fn ask(&mut self, asker: Asker, ask: Ask, machine: usize, layout: usize) {
        self.tags += 1;
        let tag = Tag(self.tags);
        let request = Some(self.request_of(&ask, layout));
        let pending = Pending { asker, ask, machine, life: None, sent: self.time, request, answered: false };
        self.pending.insert(tag, pending);
        let delay = 20 + self.dice.below(MS);
        self.at(self.time + delay, Event::Request { tag });
    }

    fn draw_machine(&mut self, ask: &Ask) -> usize {
        let key = match ask {
            Ask::Write(op, _) => Some(self.history.op(*op).key),
            Ask::Read { key, .. } | Ask::Inspect { key } => Some(*key),
            Ask::Scan(_) | Ask::Register(..) | Ask::Registers { .. } | Ask::Bad { .. } => None,
        };
        match key {
            Some(key) if self.dice.chance(600) => {
                let owners = self.owners(self.history.key(key).partition);
                *self.dice.pick(&owners)
            }
            _ => self.dice.index(self.machines.len()),
        }
    }

    fn draw_consistency(&mut self) -> Consistency {
        use Level::{All, Keyspace, One, Quorum};
        let level = *self.dice.pick(&[Keyspace, Keyspace, Keyspace, Keyspace, One, Quorum, Quorum, All]);
        Consistency { level, strict: self.dice.chance(600) }
    }

    fn draw_operation(&mut self, client: usize) -> Ask {
        let key = KeyId(self.dice.index(self.history.keys.len()));
        let consistency = self.draw_consistency();
        match self.dice.below(100) {
            0..50 => self.draw_write(client, key, consistency),
            50..85 => Ask::Read { key, consistency },
            85..96 => {
                let prefix = *self.dice.pick(&["", "", "a", "b/", "c"]);
                Ask::Scan(ScanRequest {
                    keyspace: self.history.key(key).keyspace,
                    prefix: Bytes::from_static(prefix.as_bytes()),
                    after: None,
                    limit: self.dice.index(4) + 1,
                    keys_only: self.dice.chance(200),
                    consistency,
                })
            }
            96..98 => Ask::Inspect { key },
            _ => self.draw_bad_request(key, consistency),
        }
    }

    fn draw_write(&mut self, client: usize, key: KeyId, consistency: Consistency) -> Ask {
        let perishable = self.history.key(key).perishable;
        let delete = perishable && self.dice.chance(300);
        let ttl = perishable && !delete && self.dice.chance(150);
        let padding = if self.dice.chance(50) { 300 } else { self.dice.index(20) };
        let seen = if self.dice.chance(500) { self.clients[client].seen.get(&key).cloned() } else { None };
        let request = self.clients[client].stamps.next(self.time);
        let value = (!delete).then(|| self.history.next_value(padding));
        // Drawn aside, so that it changes nothing else of a run.
        let mut aside = self.dice.aside();
        let unnamed = !delete && aside.chance(150);
        let op = WriteOp { seen, ttl, unnamed, ..WriteOp::new(key, consistency, request, value, self.time) };
        let op = self.history.add_op(op);
        if unnamed {
            self.count(Count::Unnamed);
            return Ask::Write(op, Attempt::Plain);
        }
        let attempt = if aside.chance(700) { Attempt::First } else { Attempt::Plain };
        if aside.chance(self.settings.repetitions) {
            for _ in 0..aside.between(1, 3) {
                let most = *aside.pick(&[100 * MS, 1000 * MS, self.settings.repeat_within()]);
                let at = self.time + aside.below(most + most / 8);
                self.at(at, Event::Repeat { op });
            }
        }
        Ask::Write(op, attempt)
    }

    /// Somebody sends a write again that has ended: a client that does not know its outcome, a proxy, a queue.
    pub(crate) fn repeat(&mut self, op: OpId) {
        let write = self.history.op(op);
        // A client that was told that nothing was done would do it for the first time.
        if self.healed && self.is_audited || !matches!(write.end, Some(End::Done | End::Unknown)) {
            return;
        }
        self.count(Count::Repetitions);
        let ask = Ask::Write(op, Attempt::Repeated);
        let layout = self.layouts.len() - 1;
        let machine = self.draw_machine(&ask);
        self.ask(Asker::Past, ask, machine, layout);
    }

    fn draw_bad_request(&mut self, key: KeyId, consistency: Consistency) -> Ask {
        let cluster = &self.settings.cluster;
        let key_max = cluster.key_bytes_max;
        let value_max = cluster.value_bytes_max;
        let name = self.history.key(key).clone();
        let epoch = self.layouts[0].epoch;
        let write = |value: Bytes, context: Option<Bytes>| Operation::Write {
            request: None,
            attempt: Attempt::Plain,
            value: Some(value),
            context,
            ttl: None,
            when: When::Always,
        };
        let on = |keyspace: KeyspaceId, key: Bytes, operation: Operation| {
            Request::Key(KeyRequest { keyspace, key, epoch, consistency, operation })
        };
        let value = Bytes::from_static(b"none");
        let other_key = ContextToken::default().encode(name.keyspace, b"another key");
        let (request, kind) = match self.dice.below(7) {
            0 => (on(name.keyspace, Bytes::from(vec![b'k'; key_max + 1]), write(value, None)), Kind::Invalid),
            1 => (on(name.keyspace, name.bytes, write(Bytes::from(vec![b'v'; value_max + 1]), None)), Kind::Invalid),
            2 => (on(KeyspaceId(99), name.bytes, write(value, None)), Kind::NotFound),
            3 => (on(KeyspaceId(99), name.bytes, Operation::Get), Kind::NotFound),
            4 => (on(name.keyspace, name.bytes, write(value, Some(Bytes::from_static(b"?")))), Kind::Invalid),
            5 => (on(name.keyspace, name.bytes, write(value, Some(other_key))), Kind::Invalid),
            _ => (on(name.keyspace, Bytes::new(), write(value, None)), Kind::Invalid),
        };
        Ask::Bad { request, kind }
    }

    fn request_of(&self, ask: &Ask, layout: usize) -> Request {
        let on = |key: KeyId, consistency: Consistency, operation: Operation| {
            let key = self.history.key(key);
            let epoch = self.layouts[layout].entry(key.partition).map(|entry| entry.changed).unwrap_or_default();
            Request::Key(KeyRequest { keyspace: key.keyspace, key: key.bytes.clone(), epoch, consistency, operation })
        };
        match ask {
            Ask::Write(op, attempt) => {
                let op = self.history.op(*op);
                let operation = Operation::Write {
                    request: (!op.unnamed).then_some(op.request),
                    attempt: *attempt,
                    value: op.value.clone(),
                    context: op.seen.as_ref().map(|seen| seen.token.clone()),
                    ttl: op.ttl.then(|| Duration::from_millis(200)),
                    when: When::Always,
                };
                on(op.key, op.consistency, operation)
            }
            Ask::Read { key, consistency } => on(*key, *consistency, Operation::Get),
            Ask::Scan(scan) => Request::Scan(scan.clone()),
            Ask::Inspect { key } => {
                let key = self.history.key(*key);
                Request::Inspect { keyspace: key.keyspace, key: key.bytes.clone() }
            }
            Ask::Register(number, attempt) => self.register_request(*number, *attempt, layout),
            Ask::Registers { limit } => self.registers_request(*limit),
            Ask::Bad { request, .. } => request.clone(),
        }
    }

    /// A request reaches its node, or finds nobody there.
    pub(crate) fn request_arrives(&mut self, tag: Tag) {
        let Some(index) = self.pending.get(&tag).map(|pending| pending.machine) else { return };
        if let Some(thaws) = self.thaws(index) {
            // It waits until the process goes on and reads it.
            return self.at(thaws, Event::Request { tag });
        }
        let Some(pending) = self.pending.get_mut(&tag) else { return };
        let machine = &self.machines[index];
        let Some(request) = pending.request.take() else { return };
        if machine.core.is_none() || machine.quarantined {
            pending.answered = true;
            let outcome = Err(RequestError::unavailable("the connection is refused"));
            self.at(self.time + 100, Event::Answer { tag, outcome });
            return;
        }
        pending.life = Some(machine.life);
        let mut patience = u64::try_from(self.settings.node.deadline.as_micros()).unwrap_or(u64::MAX);
        let mut deadline = None;
        if matches!(pending.asker, Asker::Client(_)) && self.dice.chance(200) {
            patience = self.dice.between(1, 300) * MS;
            deadline = Some(machine.clock.now(self.time).mono.plus(Duration::from_micros(patience)));
        }
        // The shell asks what is agreed on before it says that a keyspace does not exist.
        if !self.machines[index].knows_keyspaces {
            self.tell_keyspaces(index, self.newest_keyspaces());
        }
        note!(self, "client -> {}: #{} {}", crate::settings::node_id(index), tag.0, trace::request(&request));
        self.at(self.time + patience + ANSWER_BOUND, Event::Overdue { tag });
        self.step(index, Input::Request { tag, request, deadline });
    }

    /// The deadline of a request has passed.
    pub(crate) fn expect_answered(&mut self, tag: Tag) {
        if let Some(pending) = self.pending.get(&tag)
            && !pending.answered
        {
            // A frozen process answers when it goes on, and so does a part that lags.
            let machine = &self.machines[pending.machine];
            let thawed = machine.frozen_until.max(machine.lags_until) + ANSWER_BOUND;
            if thawed > self.time {
                return self.at(thawed, Event::Overdue { tag });
            }
            self.fail(format!("request #{} has no answer {} ms after its deadline", tag.0, ANSWER_BOUND / MS));
        }
    }

    /// A node answers.
    pub(crate) fn reply(&mut self, machine: usize, tag: Tag, outcome: Outcome) {
        note!(self, "{} -> client: #{} {}", crate::settings::node_id(machine), tag.0, trace::outcome(&outcome));
        let Some(pending) = self.pending.get_mut(&tag) else {
            return self.fail(format!("request #{} is answered although nobody asked", tag.0));
        };
        if std::mem::replace(&mut pending.answered, true) {
            return self.fail(format!("request #{} is answered twice", tag.0));
        }
        self.report.add(Count::Answered, 1);
        let pending = pending.clone();
        let judged = self.judge_answer(&pending, &outcome);
        self.expect(judged.map_err(|what| format!("request #{}: {what}", tag.0)));
        let delay = 20 + self.dice.below(MS);
        self.at(self.time + delay, Event::Answer { tag, outcome });
    }

    fn judge_answer(&mut self, pending: &Pending, outcome: &Outcome) -> Result<(), String> {
        let keyspace = self.keyspace_of(&pending.ask);
        if keyspace.is_some_and(|keyspace| self.history.dropped.contains(&keyspace)) {
            return match outcome {
                Err(error) if error.message.is_empty() => Err("an error without a message".to_owned()),
                // A node that does not know of the drop yet answers as before.
                _ => Ok(()),
            };
        }
        check::answers::error_is_allowed(&pending.ask, outcome, &self.settings, self.history.clocks_are_wrong)?;
        match (&pending.ask, outcome) {
            (Ask::Write(op, _), Ok(Response::Written { context, .. })) => {
                check::once::is_not_too_old(self, *op, pending.sent)?;
                check::durable::acknowledged(self, pending.machine, *op, context)
            }
            (Ask::Read { key, consistency }, Ok(Response::Got { values, context, .. })) => {
                check::shown::claim_unseen(self, *key, values, context);
                check::strict::read(self, pending.sent, *key, *consistency, values, context)
            }
            (Ask::Scan(scan), Ok(Response::Page { entries, next })) => {
                check::scan::page(self, pending.sent, scan, entries, next.as_ref())
            }
            (Ask::Inspect { key }, Ok(Response::Inspected { replicas })) => {
                check::answers::owners_are_listed(self, *key, replicas)
            }
            (Ask::Register(..) | Ask::Registers { .. }, Ok(_)) | (_, Err(_)) => Ok(()),
            (ask, Ok(response)) => Err(format!("{ask:?} is answered with {response:?}")),
        }
    }

    /// The keyspace that is asked about.
    fn keyspace_of(&self, ask: &Ask) -> Option<KeyspaceId> {
        match ask {
            Ask::Write(op, _) => Some(self.history.key(self.history.op(*op).key).keyspace),
            Ask::Read { key, .. } | Ask::Inspect { key } => Some(self.history.key(*key).keyspace),
            Ask::Scan(scan) => Some(scan.keyspace),
            Ask::Register(..) | Ask::Registers { .. } => self.registers.keyspace(),
            Ask::Bad { request: Request::Key(request), .. } => Some(request.keyspace),
            Ask::Bad { request: Request::Scan(request), .. } => Some(request.keyspace),
            Ask::Bad { request: Request::Inspect { keyspace, .. }, .. } => Some(*keyspace),
        }
    }

    /// The node that clients talk to has stopped: their connections break.
    pub(crate) fn connections_break(&mut self, machine: usize) {
        let life = self.machines[machine].life;
        let broken = |pending: &Pending| {
            !pending.answered && pending.machine == machine && pending.life.is_some_and(|known| known < life)
        };
        let tags: Vec<Tag> = self.pending.iter().filter(|(_, p)| broken(p)).map(|(tag, _)| *tag).collect();
        for tag in tags {
            if let Some(pending) = self.pending.get_mut(&tag) {
                pending.answered = true;
            }
            let outcome = Err(RequestError::new(Kind::Unknown, "the connection broke"));
            self.at(self.time + 100, Event::Answer { tag, outcome });
        }
    }

    /// An answer reaches its client.
    pub(crate) fn answer_arrives(&mut self, tag: Tag, outcome: Outcome) {
        let Some(pending) = self.pending.remove(&tag) else { return };
        match pending.asker {
            Asker::Client(client) => self.client_learns(client, &outcome),
            Asker::Register(number, attempt) => self.register_learns(number, attempt, outcome),
            Asker::Registers { called } => self.registers_are_read(called, outcome),
            Asker::Audit => self.audit_learns(&pending.ask, outcome),
            Asker::Past => {
                self.wanted_stamp = outcome.err().filter(RequestError::wants_stamp).map(|error| error.newest);
                if self.wanted_stamp.is_some() {
                    self.count(Count::StampedAnew);
                }
            }
        }
    }

    fn client_learns(&mut self, index: usize, outcome: &Outcome) {
        let Some(mut running) = self.clients[index].running.take() else { return };
        match outcome {
            Ok(response) => self.client_succeeds(index, running, response),
            Err(error) => {
                self.count_error(error.kind);
                if let Ask::Write(op, _) = running.ask
                    && error.wants_stamp()
                {
                    // Nothing of it was written yet, anywhere.
                    let refused = self.history.op(op).request.stamp;
                    let stamps = &mut self.clients[index].stamps;
                    stamps.refused(refused, error.newest, self.time);
                    let request = stamps.next(self.time);
                    self.history.stamp_anew(op, request, self.time);
                    self.count(Count::StampedAnew);
                }
                if error.kind == Kind::StaleEpoch {
                    // The client learns the layout in force, as it would from the node that refused.
                    self.clients[index].layout = self.layouts.len() - 1;
                }
                running.uncertain |= matches!(error.kind, Kind::Unknown | Kind::Poisoned);
                // Nobody would recognise a write without a name.
                let unnamed = matches!(running.ask, Ask::Write(op, _) if self.history.op(op).unnamed);
                let gives_up = matches!(running.ask, Ask::Bad { .. }) || (unnamed && running.uncertain);
                let tries_again = !gives_up
                    && error.kind != Kind::Invalid
                    && running.attempts < ATTEMPTS_MAX
                    && self.dice.chance(700);
                if !tries_again {
                    self.set_end(&running.ask, if running.uncertain { End::Unknown } else { End::Nothing });
                    return self.client_rests(index);
                }
                self.clients[index].running = Some(running);
                let delay = self.dice.below(20 * MS);
                self.at(self.time + delay, Event::ClientWorks { client: index });
            }
        }
    }

    fn client_succeeds(&mut self, index: usize, running: Running, response: &Response) {
        match (&running.ask, response) {
            (Ask::Write(op, _), Response::Written { context, newest, .. }) => {
                self.clients[index].stamps.shown(*newest);
                let op = self.history.op(*op);
                // With siblings beside the write the client has seen no more than before.
                let before = op.seen.as_ref().map(|seen| seen.context.clone()).unwrap_or_default();
                let (key, values) = (op.key, op.seen.as_ref().and_then(|seen| seen.values.clone()));
                self.remember(index, key, context, values, Some(before));
            }
            (Ask::Read { key, .. }, Response::Got { values, context, newest }) => {
                self.clients[index].stamps.shown(*newest);
                let values = values.iter().filter_map(|value| self.history.op_of_value(*key, &value.value)).collect();
                self.remember(index, *key, context, Some(values), None);
            }
            (Ask::Scan(scan), Response::Page { next: Some(next), .. }) => {
                // The next page is a new request of the same scan.
                let ask = Ask::Scan(ScanRequest { after: Some(next.clone()), ..scan.clone() });
                self.clients[index].running = Some(Running { ask, attempts: 0, uncertain: false });
                return self.at(self.time, Event::ClientWorks { client: index });
            }
            _ => {}
        }
        self.set_end(&running.ask, End::Done);
        self.client_rests(index);
    }

    /// A client keeps what it has seen of a key. `before`: what it had seen before its own write, of which alone the answer to
    /// that may tell.
    fn remember(
        &mut self,
        client: usize,
        key: KeyId,
        token: &Bytes,
        values: Option<Vec<OpId>>,
        before: Option<Context>,
    ) {
        let name = self.history.key(key);
        if let Ok(ContextToken { context, shown, .. }) = ContextToken::decode(token, name.keyspace, &name.bytes) {
            // After a write that tells of the whole record, all that it covers was seen.
            let values = if before.is_some_and(|before| before != context) { None } else { values };
            let seen = Seen { token: token.clone(), context, shown, values };
            self.clients[client].seen.insert(key, seen);
        }
    }

    fn client_rests(&mut self, client: usize) {
        let pause = self.dice.below(self.settings.think + 1);
        self.at(self.time + pause, Event::ClientWorks { client });
    }

    pub(crate) fn set_end(&mut self, ask: &Ask, end: End) {
        if let Ask::Write(op, _) = ask {
            self.history.ops[op.0].end = Some(end);
        }
    }

    fn count_error(&mut self, kind: Kind) {
        let what = match kind {
            Kind::Unavailable => Count::Unavailable,
            Kind::Unknown | Kind::Poisoned | Kind::Corrupt => Count::Unknown,
            Kind::Exhausted => Count::Exhausted,
            Kind::StaleEpoch => Count::StaleEpochs,
            Kind::Invalid | Kind::NotFound | Kind::Conflict => Count::Invalid,
        };
        self.count(what);
    }

    /// An owner of a key that runs, for the audit.
    pub(crate) fn first_owner(&self, key: KeyId) -> usize {
        self.old_owners(self.history.key(key).partition)[0]
    }
}
