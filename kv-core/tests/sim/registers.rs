//! Clients of a consistent keyspace. What they are told must be linearizable, whatever else happens in the run.
//!
//! They draw by dice of their own, so that nothing else of a run depends on them.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use kv_core::config::Mode;
use kv_core::error::Kind;
use kv_core::message::{
    Attempt, Consistency, KeyRequest, Level, Operation, Outcome, Request, Response, ScanRequest, When,
};
use kv_core::register::{Ballot, Register};
use kv_core::ring::Layout;
use kv_core::storage::{Space, StorageKey};
use kv_core::types::{Hlc, KeyspaceId, RequestId};
use kv_histories::{Action, Condition, Expiry, Operation as Told, Outcome as End, check};

use crate::clock::Time;
use crate::dice::Dice;
use crate::report::Count;
use crate::settings::{MS, machine_of};
use crate::workload::{Ask, Asker};
use crate::world::{Event, World};

/// What a client has seen of a key: the context, and the value.
type Seen = (Bytes, Option<String>);

/// One client.
#[derive(Debug)]
struct Client {
    left: usize,
    /// The operation that it waits for.
    running: Option<usize>,
    seen: BTreeMap<usize, Seen>,
}

/// All of them, and what they were told.
#[derive(Debug)]
pub(crate) struct Registers {
    dice: Dice,
    keyspace: Option<KeyspaceId>,
    keys: Vec<Bytes>,
    clients: Vec<Client>,
    asked: Vec<Asked>,
    pub(crate) history: Vec<Told>,
    /// What was collected of each key: the highest version.
    pub(crate) collected: BTreeMap<StorageKey, Ballot>,
}

/// What was asked.
#[derive(Clone, Debug)]
struct Asked {
    client: Option<usize>,
    key: usize,
    operation: Operation,
    /// Attempts that were sent, and the one for which its client waits. `None`: it has heard enough.
    sent: u32,
    awaited: Option<u32>,
    /// Whether another attempt than the awaited one may have taken effect, or may yet.
    is_uncertain: bool,
}

/// How often a client asks for one operation.
const ATTEMPTS_MAX: u32 = 4;

impl Registers {
    pub(crate) fn new(dice: Dice) -> Self {
        Self {
            dice,
            keyspace: None,
            keys: Vec::new(),
            clients: Vec::new(),
            asked: Vec::new(),
            history: Vec::new(),
            collected: BTreeMap::new(),
        }
    }

    /// Whether every client has finished.
    pub(crate) fn are_done(&self) -> bool {
        self.clients.iter().all(|client| client.running.is_none() && client.left == 0)
    }

    pub(crate) fn stop(&mut self) {
        self.clients.iter_mut().for_each(|client| client.left = 0);
    }

    /// Where the keys are stored.
    pub(crate) fn stored(&self, layout: &Layout) -> Vec<StorageKey> {
        let place =
            |keyspace| self.keys.iter().map(move |key| StorageKey::owned(layout.partition_of(key), keyspace, key));
        self.keyspace.into_iter().flat_map(place).collect()
    }

    /// What the client of a key is asked for.
    pub(crate) fn keyspace(&self) -> Option<KeyspaceId> {
        self.keyspace
    }
}

impl World {
    /// Makes the keys and the clients.
    pub(crate) fn plan_registers(&mut self) {
        let found = self.keyspaces.iter().find(|keyspace| keyspace.mode == Mode::Consistent);
        let Some(keyspace) = found.map(|keyspace| keyspace.id) else { return };
        self.registers.keyspace = Some(keyspace);
        let keys = self.registers.dice.between(1, 3);
        self.registers.keys = (0..keys).map(|key| Bytes::from(format!("r{key}"))).collect();
        if self.settings.clients == 0 {
            return;
        }
        for client in 0..usize::try_from(self.registers.dice.between(1, 4)).unwrap_or(1) {
            let left = self.settings.register_operations;
            self.registers.clients.push(Client { left, running: None, seen: BTreeMap::new() });
            let at = 10 * MS + self.registers.dice.below(40 * MS);
            self.at(at, Event::RegisterClient { client });
        }
    }

    /// A client begins its next operation.
    pub(crate) fn register_client(&mut self, index: usize) {
        let Some(client) = self.registers.clients.get_mut(index) else { return };
        if client.running.is_some() || client.left == 0 {
            return;
        }
        client.left -= 1;
        if self.registers.dice.chance(80) {
            let machine = self.registers.dice.index(self.machines.len());
            self.read_registers(machine);
        }
        let key = self.registers.dice.index(self.registers.keys.len());
        let machine = self.registers.dice.index(self.machines.len());
        let (operation, action) = self.draw_register(index, key);
        self.ask_register(Some(index), key, machine, operation, action);
    }

    fn draw_register(&mut self, client: usize, key: usize) -> (Operation, Action) {
        let number = self.registers.history.len();
        let seen = self.registers.clients[client].seen.get(&key).cloned();
        let dice = &mut self.registers.dice;
        if dice.chance(450) {
            return (Operation::Get, Action::Get);
        }
        let (when, context, condition) = match (dice.below(4), seen) {
            (0, _) => (When::Absent, None, Condition::Absent),
            (1 | 2, Some((context, Some(value)))) => (When::Unchanged, Some(context), Condition::Holds(value)),
            (1 | 2, Some((context, None))) => (When::Unchanged, Some(context), Condition::StillAbsent),
            _ => (When::Always, None, Condition::Always),
        };
        let is_delete = dice.chance(150);
        let ttl = (!is_delete && dice.chance(150)).then(|| Duration::from_millis(dice.between(50, 400)));
        let value = (!is_delete).then(|| format!("v{number}"));
        let now = crate::clock::MachineClock::new().wall(self.time);
        let request = RequestId { stamp: Hlc(Hlc::at(now).0 + number as u64 % 1000), client: 5000 + client as u64 };
        let operation = Operation::Write {
            request: Some(request),
            attempt: Attempt::First,
            value: value.clone().map(Bytes::from),
            context,
            ttl,
            when,
        };
        // Clocks decide when a value goes, within what they are wrong.
        let expires = ttl.map(|ttl| {
            let ends = self.time + u64::try_from(ttl.as_micros()).unwrap_or(u64::MAX);
            let wrong = 60_000 * MS;
            Expiry { earliest: ends.saturating_sub(wrong), latest: ends + wrong }
        });
        let action = match value {
            Some(value) => Action::Put { value, when: condition, expires },
            None => Action::Delete { when: condition },
        };
        (operation, action)
    }

    fn ask_register(
        &mut self,
        client: Option<usize>,
        key: usize,
        machine: usize,
        operation: Operation,
        action: Action,
    ) {
        let number = self.registers.history.len();
        self.registers.history.push(Told {
            client: client.map_or(99, |client| client as u64),
            key: format!("r{key}"),
            action,
            called: self.time,
            returned: None,
            outcome: End::Unknown,
        });
        let is_write = operation != Operation::Get;
        let asked = Asked { client, key, operation, sent: 0, awaited: None, is_uncertain: false };
        self.registers.asked.push(asked);
        if let Some(client) = client {
            self.registers.clients[client].running = Some(number);
        }
        let attempt = if is_write && self.registers.dice.chance(40) {
            // The first attempt is overtaken by the second one.
            let late = self.registers.dice.below(1500 * MS);
            self.at(self.time + late, Event::RegisterLate { number, attempt: Attempt::First });
            self.registers.asked[number].is_uncertain = true;
            Attempt::Repeated
        } else {
            Attempt::First
        };
        self.attempt_register(number, attempt, machine);
        if is_write && self.registers.dice.chance(150) {
            let patience = self.registers.dice.below(400 * MS);
            self.at(self.time + patience, Event::RegisterAgain { number });
        }
    }

    /// Sends an attempt, for which the client waits.
    fn attempt_register(&mut self, number: usize, attempt: Attempt, machine: usize) {
        let asked = &mut self.registers.asked[number];
        asked.sent += 1;
        asked.awaited = Some(asked.sent);
        let sent = asked.sent;
        let layout = self.layouts.len() - 1;
        self.ask(Asker::Register(number, sent), Ask::Register(number, attempt), machine, layout);
    }

    /// A client does not wait for the answer any more, or has got none: it asks another node.
    pub(crate) fn register_again(&mut self, number: usize) {
        let asked = &mut self.registers.asked[number];
        if asked.awaited.is_none() || asked.sent >= ATTEMPTS_MAX {
            return;
        }
        asked.is_uncertain = true;
        self.count(Count::RegisterRepetitions);
        let machine = self.registers.dice.index(self.machines.len());
        self.attempt_register(number, Attempt::Repeated, machine);
    }

    /// An attempt comes late. Nobody waits for its answer.
    pub(crate) fn register_late(&mut self, number: usize, attempt: Attempt) {
        let machine = self.registers.dice.index(self.machines.len());
        let layout = self.layouts.len() - 1;
        self.count(Count::RegisterRepetitions);
        self.ask(Asker::Register(number, 0), Ask::Register(number, attempt), machine, layout);
    }

    /// The request of an operation.
    pub(crate) fn register_request(&self, number: usize, attempt: Attempt, layout: usize) -> Request {
        let Asked { key, operation, .. } = &self.registers.asked[number];
        let key = self.registers.keys[*key].clone();
        let layout = &self.layouts[layout];
        let epoch = layout.entry(layout.partition_of(&key)).map(|entry| entry.changed).unwrap_or_default();
        let consistency = Consistency { level: Level::Keyspace, strict: false };
        let keyspace = self.registers.keyspace.unwrap_or_default();
        let mut operation = operation.clone();
        if let Operation::Write { attempt: of, .. } = &mut operation {
            *of = attempt;
        }
        Request::Key(KeyRequest { keyspace, key, epoch, consistency, operation })
    }

    /// An attempt of an operation has ended.
    pub(crate) fn register_learns(&mut self, number: usize, attempt: u32, outcome: Outcome) {
        let text = |value: &kv_core::message::Value| String::from_utf8_lossy(&value.value).into_owned();
        let Asked { client, key, awaited, is_uncertain, sent, .. } = self.registers.asked[number].clone();
        if awaited != Some(attempt) {
            return;
        }
        let (end, seen) = match outcome {
            Ok(Response::Got { values, context, .. }) => {
                let value = values.first().map(text);
                (End::Got { value: value.clone() }, Some((context, value)))
            }
            Ok(Response::Written { context, .. }) => {
                let value = match &self.registers.history[number].action {
                    Action::Put { value, .. } => Some(value.clone()),
                    Action::Get | Action::Delete { .. } => None,
                };
                (End::Done, Some((context, value)))
            }
            Ok(Response::Unchanged { value, context, .. }) => {
                let value = value.as_ref().map(text);
                (End::Failed { found: Some(value.clone()) }, Some((context, value)))
            }
            Ok(response) => return self.fail(format!("an operation on a register is answered with {response:?}")),
            Err(error) if matches!(error.kind, Kind::Unknown | Kind::Poisoned) => (End::Unknown, None),
            Err(error) if error.kind == Kind::Conflict && !error.wants_stamp() => (End::Failed { found: None }, None),
            Err(_) if is_uncertain => (End::Unknown, None),
            Err(_) => (End::Refused, None),
        };
        if end == End::Unknown && client.is_some() && sent < ATTEMPTS_MAX && self.registers.dice.chance(600) {
            self.registers.asked[number].is_uncertain = true;
            let rest = self.registers.dice.below(300 * MS);
            return self.at(self.time + rest, Event::RegisterAgain { number });
        }
        self.registers.asked[number].awaited = None;
        // Who was told that the condition did not hold, and had asked once only, does not ask again.
        let may_repeat = match end {
            End::Done | End::Unknown => self.registers.asked[number].operation != Operation::Get,
            End::Failed { .. } => is_uncertain,
            End::Got { .. } | End::Refused => false,
        };
        if may_repeat && self.registers.dice.chance(100) {
            let late = self.registers.dice.below(2000 * MS);
            self.at(self.time + late, Event::RegisterLate { number, attempt: Attempt::Repeated });
        }
        let what = match &end {
            End::Got { .. } => Count::RegisterGets,
            End::Done => Count::RegisterWrites,
            End::Failed { .. } => Count::RegisterConditions,
            End::Refused => Count::RegisterRefusals,
            End::Unknown => Count::RegisterUnknown,
        };
        self.count(what);
        let told = &mut self.registers.history[number];
        told.returned = (end != End::Unknown).then_some(self.time);
        told.outcome = end;
        if let Some(client) = client {
            if let Some(seen) = seen {
                self.registers.clients[client].seen.insert(key, seen);
            }
            self.registers.clients[client].running = None;
            let think = self.registers.dice.below(self.settings.think.max(MS));
            self.at(self.time + think, Event::RegisterClient { client });
        }
    }

    /// Somebody scans them.
    fn read_registers(&mut self, machine: usize) {
        let limit = usize::try_from(self.registers.dice.between(1, 4)).unwrap_or(1);
        let (asker, layout) = (Asker::Registers { called: self.time }, self.layouts.len() - 1);
        self.ask(asker, Ask::Registers { limit }, machine, layout);
    }

    /// The request of a scan.
    pub(crate) fn registers_request(&self, limit: usize) -> Request {
        Request::Scan(ScanRequest {
            keyspace: self.registers.keyspace.unwrap_or_default(),
            prefix: Bytes::new(),
            after: None,
            limit,
            keys_only: false,
            consistency: Consistency::default(),
        })
    }

    /// A scan has ended: each key of the page was read, and so was each one that would be on it.
    pub(crate) fn registers_are_read(&mut self, called: Time, outcome: Outcome) {
        let Ok(Response::Page { entries, next }) = outcome else { return };
        for (index, key) in self.registers.keys.clone().into_iter().enumerate() {
            if next.as_ref().is_some_and(|next| key > *next) {
                continue;
            }
            let entry = entries.iter().find(|entry| entry.key == key);
            let value = entry.and_then(|entry| entry.values.first());
            let value = value.map(|value| String::from_utf8_lossy(&value.value).into_owned());
            self.count(Count::RegistersRead);
            // A page has an end, but each key was read for itself.
            self.registers.asked.push(Asked {
                client: None,
                key: index,
                operation: Operation::Get,
                sent: 0,
                awaited: None,
                is_uncertain: false,
            });
            self.registers.history.push(Told {
                client: 98,
                key: format!("r{index}"),
                action: Action::Get,
                called,
                returned: Some(self.time),
                outcome: End::Got { value },
            });
        }
    }

    /// Everything has healed: each machine tells each key, and says the same. What all clients were told is linearizable.
    pub(crate) fn judge_registers(&mut self) {
        for key in 0..self.registers.keys.len() {
            for machine in self.living() {
                let mut asked = 0;
                for _ in 0..100 {
                    // What is busy is asked again.
                    asked = self.registers.history.len();
                    self.ask_register(None, key, machine, Operation::Get, Action::Get);
                    self.wait_for(3000 * MS, |world| world.registers.history[asked].returned.is_some());
                    if self.registers.history[asked].outcome != End::Refused {
                        break;
                    }
                }
                let told = &self.registers.history[asked];
                if !matches!(told.outcome, End::Got { .. }) && self.failure.is_none() {
                    let told = told.to_string();
                    self.fail(format!("liveness: after everything has healed: {told}"));
                }
            }
        }
        for machine in self.living() {
            let read = self.registers.history.len();
            for _ in 0..100 {
                // What is busy is asked again.
                self.read_registers(machine);
                self.wait_for(3000 * MS, |world| world.pending.is_empty());
                if self.registers.history.len() > read {
                    break;
                }
                // Some parts of the node may still read for the last one.
                self.run_until(self.time + 50 * MS);
            }
            if self.registers.history.len() == read && !self.registers.keys.is_empty() && self.failure.is_none() {
                self.fail("liveness: after everything has healed a scan of the registers fails".to_owned());
            }
        }
        if self.failure.is_none()
            && let Err(violation) = check(&self.registers.history)
        {
            let lines: String = self.registers.history.iter().map(|told| format!("\n  {told}")).collect();
            self.fail(format!("invariant 2: {violation}{lines}"));
        }
    }

    /// Whether of every register a majority of the owners of each set is left without a machine, and holds what it has accepted: a majority
    /// that is lost is nobody's promise.
    pub(crate) fn registers_are_safe_without(&self, machine: usize) -> bool {
        let Some(keyspace) = self.registers.keyspace else { return true };
        self.registers.keys.iter().all(|key| {
            let partition = self.layout().partition_of(key);
            let stored = StorageKey::owned(partition, keyspace, key);
            let held = |owner: usize| {
                let cell = self.machines[owner].disk.durable_cell(&stored);
                cell.and_then(|cell| cell.register().map(Register::ballot)).unwrap_or_default()
            };
            let accepted = held(machine);
            self.entry(partition).sets().all(|set| {
                let owners: Vec<usize> = set.iter().map(|owner| machine_of(owner.node)).collect();
                let others = owners.iter().copied().filter(|owner| *owner != machine && !self.machines[*owner].dead);
                let is_owner = owners.contains(&machine);
                !is_owner || others.filter(|owner| held(*owner) >= accepted).count() * 2 >= owners.len()
            })
        })
    }

    /// All owners hold the same of every register.
    pub(crate) fn registers_are_equal(&self) -> Result<(), String> {
        let Some(keyspace) = self.registers.keyspace else { return Ok(()) };
        for key in &self.registers.keys {
            let partition = self.layout().partition_of(key);
            let stored = StorageKey::owned(partition, keyspace, key).in_space(Space::Owned);
            let held = |owner: usize| self.machines[owner].disk.durable_cell(&stored).map(|cell| cell.digest());
            let owners = self.owners(partition);
            let first = owners.first().copied().map(held);
            if let Some(other) = owners.iter().find(|owner| Some(held(**owner)) != first) {
                return Err(format!(
                    "invariant 3: register {key:?} differs between owners {owners:?}, machine {other} among them"
                ));
            }
        }
        Ok(())
    }
}
