//! The world of one run: virtual time, the queue of what is to happen, and everything that it happens to.
//!
//! Events are handled in the order of (time, number). Whatever is left to chance is drawn from the run's dice in that
//! order, so a seed decides everything.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kv_core::config::{Available, Keyspace, KeyspaceList};
use kv_core::message::{Attempt, CallId, Consistency, Level, Outcome};
use kv_core::node::{Effects, Input, Tag};
use kv_core::register::{Ballot, State};
use kv_core::ring::{Entry, Layout};
use kv_core::storage::StorageKey;
use kv_core::topology::{Receipt, TransferSettings};
use kv_core::types::{
    Epoch, Generation, Incarnation, KeyspaceId, Monotonic, NodeId, PartitionId, Seq, StoreId, WallTime,
};
use kv_core::version::Context;

use crate::audit::Audit;
use crate::clock::{MachineClock, Time};
use crate::control::Running;
use crate::dice::Dice;
use crate::history::{History, KeyId, OpId};
use crate::machine::Machine;
use crate::nemesis::Fault;
use crate::network::{Network, SessionId};
use crate::registers::Registers;
use crate::report::{Count, Report};
use crate::settings::{MS, Settings};
use crate::workload::{Client, Pending};

/// Something that is to happen.
#[derive(Debug)]
pub(crate) enum Event {
    /// A frame arrives at an end of a session.
    Frame {
        session: SessionId,
        side: usize,
        number: u64,
        sent: Time,
        bytes: Vec<u8>,
    },
    /// An end learns that its session has begun.
    SessionOpens {
        session: SessionId,
        side: usize,
    },
    /// An end learns that its session is over.
    SessionCloses {
        session: SessionId,
        side: usize,
    },
    /// Two machines try to talk.
    Connect {
        one: usize,
        other: usize,
    },
    /// Two machines that have refused each other try again.
    ConnectAgain {
        one: usize,
        other: usize,
    },
    /// The failure detector of `to` has heard nothing from `from`.
    Silence {
        session: SessionId,
        from: usize,
        to: usize,
    },
    /// An input for the run `life` of a machine; nothing happens if that run is over.
    Input {
        machine: usize,
        life: u64,
        input: Input,
    },
    /// The moment of a wake-up, if it is still the one that the node wants.
    Wake {
        machine: usize,
        life: u64,
        at: Monotonic,
    },
    /// A sync ends.
    Synced {
        machine: usize,
        life: u64,
        through: Seq,
    },
    /// A machine starts.
    Start {
        machine: usize,
    },
    /// A machine stops, unless that run is over.
    Crash {
        machine: usize,
        life: u64,
    },
    /// A client goes on with its work.
    ClientWorks {
        client: usize,
    },
    /// A request reaches its node.
    Request {
        tag: Tag,
    },
    /// A client of the consistent keyspace begins its next operation.
    RegisterClient {
        client: usize,
    },
    RegisterAgain {
        number: usize,
    },
    RegisterLate {
        number: usize,
        attempt: Attempt,
    },
    /// A request must have been answered by now.
    Overdue {
        tag: Tag,
    },
    /// A write is sent again.
    Repeat {
        op: OpId,
    },
    /// An answer reaches its client.
    Answer {
        tag: Tag,
        outcome: Outcome,
    },
    /// A machine that was frozen goes on.
    Thaw {
        machine: usize,
    },
    /// A part of a node that has lagged goes on.
    GoesOn {
        machine: usize,
        life: u64,
        part: usize,
    },
    /// A fault strikes.
    Fault(Fault),
    /// The control plane goes on with its operation.
    ControlTick,
    /// A receipt reaches the control plane.
    Receipt(Receipt),
    /// The control plane hears of a machine's store.
    StoreReported {
        machine: usize,
    },
    /// A node hears of new layouts.
    TellLayouts {
        machine: usize,
    },
    /// A node hears of the keyspaces.
    TellKeyspaces {
        machine: usize,
        list: usize,
    },
}

/// An event and when it happens. Only time and number are compared.
#[derive(Debug)]
struct Queued {
    at: Time,
    number: u64,
    event: Event,
}

impl PartialEq for Queued {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}

impl Eq for Queued {}

impl PartialOrd for Queued {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Queued {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// An acknowledgement that its coordinator has given.
#[derive(Debug, Default)]
pub(crate) struct UnderWay {
    /// Who has given it; `None` once a client knows it.
    pub(crate) coordinator: Option<usize>,
    pub(crate) at: Time,
    /// The entries on which the coordinator acted.
    pub(crate) entries: Vec<Entry>,
}

/// What the control plane knows of the store of a machine.
#[derive(Clone, Debug, Default)]
pub(crate) struct AgreedStore {
    /// The newest boot that was reported.
    pub(crate) newest: Incarnation,
    /// Stores that another one has replaced.
    pub(crate) retired: BTreeSet<StoreId>,
}

/// One run.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) settings: Settings,
    pub(crate) dice: Dice,
    /// Decide how many loops nodes have and when their parts lag, so that nothing else of a run depends on that.
    pub(crate) loop_dice: Dice,
    pub(crate) time: Time,
    queue: BinaryHeap<Reverse<Queued>>,
    queued: u64,

    pub(crate) machines: Vec<Machine>,
    pub(crate) network: Network,
    /// Whether all faults are over.
    pub(crate) healed: bool,
    /// What the last write without a client that waits was refused for, if it wants another stamp.
    pub(crate) wanted_stamp: Option<kv_core::types::Hlc>,
    /// Whether the audit has begun: nothing else is asked any more.
    pub(crate) is_audited: bool,
    /// When clocks were set last, and the earliest and the latest that any showed before.
    pub(crate) clocks_before: Option<(Time, WallTime, WallTime)>,
    /// By how many microseconds a clock was behind the truth before it was set, at the most.
    pub(crate) behind_most: u64,
    /// What the control plane knows of the store of each machine.
    pub(crate) agreed: Vec<AgreedStore>,
    /// The generation of the control plane.
    pub(crate) generation: Generation,
    /// Every layout that the control plane has committed; the last is in force.
    pub(crate) layouts: Vec<Arc<Layout>>,
    pub(crate) keyspaces: Vec<Keyspace>,
    /// The number of the next one.
    pub(crate) next_keyspace: u32,
    /// Every list of keyspaces that the control plane has committed; the last is in force.
    pub(crate) keyspace_lists: Vec<KeyspaceList>,
    /// The operation that runs.
    pub(crate) operation: Option<Running>,
    /// How fast nodes may copy.
    pub(crate) transfers: TransferSettings,

    pub(crate) clients: Vec<Client>,
    pub(crate) pending: BTreeMap<Tag, Pending>,
    pub(crate) tags: u64,

    pub(crate) audit: Audit,
    pub(crate) history: History,
    /// What was accepted under each ballot.
    pub(crate) proposed: BTreeMap<(StorageKey, Ballot), State>,
    /// The consistent keyspace and its clients.
    pub(crate) registers: Registers,
    /// What was seen of keys of which something was collected.
    pub(crate) collected: BTreeMap<KeyId, Context>,
    pub(crate) report: Report,
    /// The latest wall clock reading of any machine.
    pub(crate) wall_max: WallTime,
    /// Partitions that a machine's store has lost and that were not refilled yet, with what it has lost of them.
    pub(crate) unsynced: BTreeMap<(usize, PartitionId), Vec<(KeyId, Context)>>,
    /// What stores held that were renewed since, by machine.
    pub(crate) old_copies: Vec<(usize, Vec<(KeyId, Context)>)>,
    /// What old owners of migrating partitions durably held when they came to act on the joint epoch.
    pub(crate) fenced: BTreeMap<(usize, PartitionId, Epoch), Vec<(KeyId, Context)>>,
    /// Receipts that were judged.
    pub(crate) receipts_seen: BTreeSet<(NodeId, PartitionId, Epoch, StoreId)>,
    /// Acknowledgements that are on their way to their clients through another node, by their tokens.
    pub(crate) under_way: BTreeMap<Bytes, UnderWay>,
    /// On which layout the machine acted before its present step.
    pub(crate) acted_before: Vec<Epoch>,
    /// The partitions that each open question of a machine's run is about, for rule D2's checker.
    pub(crate) asked: BTreeMap<(usize, u64, CallId), Vec<(PartitionId, Epoch)>>,
    /// The first broken promise; it ends the run.
    pub(crate) failure: Option<String>,
    pub(crate) trace: Option<Vec<String>>,
    /// Reused between steps.
    pub(crate) effects: Effects,
}

impl World {
    /// The settings of an available keyspace; `None` if it was never made.
    pub(crate) fn settings_of(&self, keyspace: KeyspaceId) -> Option<Available> {
        let found = self.keyspaces.iter().find(|found| found.id == keyspace)?;
        found.available().map(|keyspace| keyspace.settings())
    }

    /// Whether only owners count for a request.
    pub(crate) fn owners_only(&self, keyspace: KeyspaceId, consistency: Consistency) -> bool {
        let is_strict = self.settings_of(keyspace).is_some_and(|settings| settings.strict);
        consistency.strict || consistency.level == Level::All || is_strict
    }

    /// The world of a seed, before anything has happened.
    pub(crate) fn new(settings: Settings, mut dice: Dice, traced: bool) -> Self {
        let stores: Vec<StoreId> = (0..settings.nodes).map(|_| StoreId(dice.any())).collect();
        let layout = Arc::new(settings.layout(&mut dice, &stores));
        let mut world = Self {
            time: 0,
            queue: BinaryHeap::new(),
            queued: 0,
            machines: stores.into_iter().map(Machine::new).collect(),
            network: Network::new(settings.nodes),
            healed: false,
            wanted_stamp: None,
            is_audited: false,
            clocks_before: None,
            behind_most: 0,
            agreed: vec![AgreedStore::default(); settings.nodes],
            generation: Generation::default(),
            layouts: vec![layout],
            keyspaces: settings.keyspaces.clone(),
            next_keyspace: u32::try_from(settings.keyspaces.len()).unwrap_or(u32::MAX),
            keyspace_lists: vec![
                KeyspaceList::initial(),
                KeyspaceList::new(KeyspaceId(0), settings.keyspaces.iter().cloned()),
            ],
            operation: None,
            transfers: TransferSettings::default(),
            clients: Vec::new(),
            pending: BTreeMap::new(),
            tags: 0,
            audit: Audit::default(),
            history: History::new(settings.overlooks_actors),
            proposed: BTreeMap::new(),
            registers: Registers::new(dice.aside()),
            collected: BTreeMap::new(),
            report: Report::new(),
            wall_max: WallTime(0),
            unsynced: BTreeMap::new(),
            asked: BTreeMap::new(),
            fenced: BTreeMap::new(),
            old_copies: Vec::new(),
            receipts_seen: BTreeSet::new(),
            under_way: BTreeMap::new(),
            acted_before: Vec::new(),
            failure: None,
            trace: traced.then(Vec::new),
            effects: Effects::new(),
            settings,
            loop_dice: dice.aside(),
            dice,
        };
        for machine in 0..world.machines.len() {
            let at = world.dice.below(5 * MS);
            world.at(at, Event::Start { machine });
        }
        world
    }

    /// The layout in force.
    pub(crate) fn layout(&self) -> Arc<Layout> {
        Arc::clone(&self.layouts[self.layouts.len() - 1])
    }

    /// The machines that own a partition by the newest layout.
    pub(crate) fn owners(&self, partition: PartitionId) -> Vec<usize> {
        self.entry(partition).nodes().map(crate::settings::machine_of).collect()
    }

    /// Queues an event.
    pub(crate) fn at(&mut self, at: Time, event: Event) {
        self.queued += 1;
        self.queue.push(Reverse(Queued { at: at.max(self.time), number: self.queued, event }));
    }

    /// Notes a broken promise.
    pub(crate) fn fail(&mut self, what: String) {
        if self.failure.is_none() {
            self.failure = Some(what);
        }
    }

    /// Notes what a checker found.
    pub(crate) fn expect(&mut self, result: Result<(), String>) {
        if let Err(what) = result {
            self.fail(what);
        }
    }

    /// Handles events until the given moment, or until a promise is broken.
    pub(crate) fn run_until(&mut self, end: Time) {
        while self.failure.is_none() {
            match self.queue.peek() {
                Some(Reverse(next)) if next.at <= end => {}
                _ => break,
            }
            if let Some(Reverse(next)) = self.queue.pop() {
                self.time = next.at;
                self.report.events += 1;
                self.handle(next.event);
            }
        }
        self.time = self.time.max(end);
        self.report.duration = self.time;
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Frame { session, side, number, sent, bytes } => self.frame(session, side, (number, sent), bytes),
            Event::SessionOpens { session, side } => self.session_opens(session, side),
            Event::SessionCloses { session, side } => self.close_end(session, side),
            Event::Connect { one, other } => self.connect(one, other),
            Event::ConnectAgain { one, other } => self.connect_again(one, other),
            Event::Silence { session, from, to } => self.silent(session, from, to),
            Event::Input { machine, life, input } => {
                if self.machines[machine].life == life {
                    self.step(machine, input);
                }
            }
            Event::Wake { machine, life, at } => {
                if self.machines[machine].life == life && self.machines[machine].wake == Some(at) {
                    self.machines[machine].wake = None;
                    self.step(machine, Input::Wake);
                }
            }
            Event::Synced { machine, life, through } => self.synced(machine, life, through),
            Event::Start { machine } => self.start(machine),
            Event::Crash { machine, life } => {
                if self.machines[machine].life == life {
                    self.crash(machine);
                }
            }
            Event::ClientWorks { client } => self.client_works(client),
            Event::RegisterClient { client } => self.register_client(client),
            Event::RegisterAgain { number } => self.register_again(number),
            Event::RegisterLate { number, attempt } => self.register_late(number, attempt),
            Event::Request { tag } => self.request_arrives(tag),
            Event::Overdue { tag } => self.expect_answered(tag),
            Event::Repeat { op } => self.repeat(op),
            Event::Answer { tag, outcome } => self.answer_arrives(tag, outcome),
            Event::Thaw { machine } => self.thaw(machine),
            Event::GoesOn { machine, life, part } => self.part_goes_on(machine, life, part),
            Event::Fault(fault) => self.strike(fault),
            Event::ControlTick => self.control_tick(),
            Event::Receipt(receipt) => self.receipt_arrives(receipt),
            Event::StoreReported { machine } => self.store_reported(machine),
            Event::TellLayouts { machine } => self.tell_layouts(machine),
            Event::TellKeyspaces { machine, list } => self.tell_keyspaces(machine, list),
        }
    }

    /// The earliest wall clock reading of any machine now.
    pub(crate) fn wall_min(&self) -> WallTime {
        self.machines.iter().map(|machine| machine.clock.wall(self.time)).min().unwrap_or_default()
    }

    /// Clocks are about to be set.
    pub(crate) fn remember_clocks(&mut self) {
        self.clocks_before = Some((self.time, self.wall_low(), self.wall_high()));
        self.behind_most = self.behind_most.max(self.behind());
    }

    /// By how many microseconds a clock is behind the truth, at the most.
    fn behind(&self) -> u64 {
        MachineClock::new().wall(self.time).0.saturating_sub(self.wall_min().0)
    }

    /// A time that no clock had reached at `time`, as far as clocks have been wrong until now.
    pub(crate) fn wall_at_least(&self, time: Time) -> WallTime {
        let behind = self.behind_most.max(self.behind());
        WallTime(MachineClock::new().wall(time).0.saturating_sub(behind))
    }

    /// The earliest time by which an answer may have been given that is under way: clocks may have been set since.
    pub(crate) fn wall_low(&self) -> WallTime {
        let now = self.wall_min();
        self.clocks_before.filter(|before| self.time < before.0 + 1000 * MS).map_or(now, |before| now.min(before.1))
    }

    /// The latest time by which an answer may have been given: a node whose clock is off goes by those of others for a while as they
    /// were before they were set.
    pub(crate) fn wall_high(&self) -> WallTime {
        let before = self.clocks_before.filter(|before| self.time < before.0 + 1000 * MS);
        let went_on = before.map(|(at, _, high)| high.plus(Duration::from_micros(self.time - at)));
        went_on.map_or(self.wall_max, |high| high.max(self.wall_max))
    }

    /// Adds a line to the trace.
    pub(crate) fn write_trace(&mut self, line: &str) {
        let time = self.time;
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>6}.{:03} {line}", time / MS, time % MS));
        }
    }

    /// Counts something.
    pub(crate) fn count(&mut self, what: Count) {
        self.report.add(what, 1);
    }
}
