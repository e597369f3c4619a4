//! The hub: what belongs to a node and not to any of its partitions. Sessions with peers, which stores and clocks they have shown,
//! what the cluster agrees on and makes durable once for all loops, how much is filled and moved at once, and answers that
//! need several loops.
//!
//! A loop never waits for another one, and none reads what is another's. Loops ask the hub (`parts::Ask`), and the hub tells
//! them (`parts::Tell`).

mod agreed;
mod clocks;
mod join;
mod pace;
mod reclaim;
mod sessions;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::config::{ClusterConfig, NodeConfig};
use crate::error::StorageError;
use crate::kernel::{self, Holding, Place, Ready};
use crate::message::Message;
use crate::parts::{Ask, HubInput, Tell};
use crate::ring::Layout;
use crate::shell::{ClockState, Effects};
use crate::storage::Reader;
use crate::types::{Incarnation, NodeId, Now, Point, StoreId};
use crate::view::meta;

use agreed::Agreed;
use clocks::Clocks;
use join::Joins;
use pace::Pace;
use reclaim::Reclaim;
use sessions::Sessions;

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Hub {
    kernel: Kernel,
    config: Arc<NodeConfig>,
    agreed: Agreed,
    sessions: Sessions,
    clocks: Clocks,
    pace: Pace,
    joins: Joins,
    reclaim: Reclaim,
    /// Whether the store has failed: nothing is promised any more.
    poisoned: bool,
}

/// The wiring of the hub's kernel: it has no records, and calls nobody.
#[derive(Debug)]
pub(crate) struct HubWires;

/// There is no such thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Never {}

/// What a timer of the hub is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum HubTimer {
    /// Whoever waits for the limit on bytes may go on.
    Throttle,
    /// Peers are told how far the store is, and what they have said becomes durable.
    Show,
    /// Never set: the hub calls nobody.
    Calls,
}

/// What the hub does once a batch of its own is durable.
#[derive(Debug)]
pub(crate) enum HubDurable {
    /// The session with a peer may be used.
    PeerUp { node: NodeId, incarnation: Incarnation },
    /// Loops act on a layout.
    Layout(Arc<crate::ring::Layout>),
    /// Loops remove what a list of keyspaces does not have any more.
    Keyspaces(Box<crate::config::KeyspaceList>),
}

/// To whom the hub says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum To {
    /// To every loop.
    All,
    /// To one loop.
    Loop(u16),
}

impl kernel::Wiring for HubWires {
    type Timer = HubTimer;
    type Task = Never;
    type AfterDurable = HubDurable;
    type ReadFor = Never;
    type Waiter = Never;
    type Said = (To, Tell);

    fn watch(_: NodeId) -> HubTimer {
        HubTimer::Calls
    }

    fn given_up() -> HubTimer {
        HubTimer::Calls
    }
}

/// The hub's kernel.
type Kernel = kernel::Kernel<HubWires>;

impl Hub {
    /// What the store remembers.
    ///
    /// # Errors
    /// If the node's own entries cannot be read.
    pub(crate) fn recover(
        config: Arc<NodeConfig>,
        cluster: &ClusterConfig,
        incarnation: Incarnation,
        reader: &impl Reader,
    ) -> Result<Self, StorageError> {
        let layout: Option<Layout> = meta::read(reader, meta::LAYOUT)?;
        let loops = usize::from(config.loops.max(1));
        Ok(Self {
            agreed: Agreed::recover(incarnation, loops, reader)?,
            sessions: Sessions::recover(reader)?,
            clocks: Clocks::new(config.node, cluster.clock_skew_max, layout.as_ref()),
            pace: Pace::new(&config),
            joins: Joins::new(&config),
            reclaim: Reclaim::new(loops),
            kernel: Kernel::new(config.clone(), incarnation, Place::ONLY, Holding::default(), BTreeMap::new()),
            config,
            poisoned: false,
        })
    }

    /// Takes one input. What loops are to know is added to `said`, in order.
    pub(crate) fn step(&mut self, now: Now, input: HubInput, effects: &mut Effects, said: &mut Vec<(To, Tell)>) {
        self.kernel.begin(now, effects);
        self.handle(input);
        self.settle();
        while let Some(timer) = self.kernel.due() {
            match timer {
                HubTimer::Throttle => self.pace.give_bytes(&mut self.kernel),
                HubTimer::Show => self.sessions.show(&mut self.kernel, &self.clocks),
                HubTimer::Calls => {}
            }
        }
        if !self.poisoned {
            self.clocks.judge(&mut self.kernel);
        }
        debug_assert!(self.kernel.timers_set() <= 2, "the hub has two timers");
        self.kernel.end(effects);
        said.append(&mut self.kernel.take_said());
    }

    fn handle(&mut self, input: HubInput) {
        if self.poisoned {
            return;
        }
        match input {
            HubInput::Layout(layout) => {
                self.clocks.layout(&layout);
                self.agreed.layout(&mut self.kernel, self.config.node, layout);
            }
            HubInput::Keyspaces(list) => self.agreed.keyspaces(&mut self.kernel, &self.sessions, list),
            HubInput::Transfers(settings) => self.pace.settings(&mut self.kernel, settings),
            HubInput::PeerOpened { node, shown } => {
                self.clocks.opened(node);
                self.sessions.opened(&mut self.kernel, node, shown);
            }
            HubInput::Shown { peers, shows } => {
                peers.into_iter().for_each(|(node, shown)| self.sessions.shown(node, shown));
                self.sessions.shows(shows);
            }
            HubInput::PeerDown { node } => {
                self.sessions.closed(&mut self.kernel, node);
                self.clocks.closed(node);
                self.joins.peer_down(node);
            }
            HubInput::Message { from, message } => self.message(from, message),
            HubInput::Scan { tag, request, deadline } => self.joins.scan(&mut self.kernel, tag, request, deadline),
            HubInput::Reclaimed => self.reclaim.done(&mut self.kernel),
            HubInput::Persisted { seq } => self.kernel.persisted(seq),
            HubInput::PersistFailed => {
                self.kernel.discard_batch();
                self.poisoned = true;
            }
            HubInput::Asked { index, ask } => self.asked(index, ask),
            HubInput::Wake => {}
        }
    }

    fn message(&mut self, from: NodeId, message: Message) {
        if !self.sessions.is_open(from) {
            return;
        }
        match message {
            Message::Ping => self.kernel.send(from, Message::Pong),
            Message::Shown { clock, .. } if self.clocks.heard(self.kernel.now, from, clock) => {
                self.sessions.show_to(&mut self.kernel, &self.clocks, from);
            }
            Message::Keyspaces { list } => self.agreed.keyspaces(&mut self.kernel, &self.sessions, list),
            Message::Slice { call, slice } => self.joins.slice(&mut self.kernel, from, call, &slice),
            // Loops get every other message.
            _ => {}
        }
    }

    fn asked(&mut self, index: u16, ask: Ask) {
        let kernel = &mut self.kernel;
        match ask {
            Ask::Adopted { epoch } => self.agreed.adopted(kernel, index, epoch),
            Ask::WantTurn { partition, purpose } => self.pace.want_turn(kernel, partition, purpose),
            Ask::EndTurn { partition, purpose } => self.pace.end_turn(kernel, partition, purpose),
            Ask::Book { by, bytes } => self.pace.book(kernel, index, by, bytes),
            Ask::Settle { booking, bytes } => self.pace.settle(kernel, booking, bytes),
            Ask::Moved { bytes } => self.pace.moved(kernel, bytes),
            Ask::Removed { bytes } => self.reclaim.removed(kernel, index, bytes),
            Ask::Slice { job, result } => self.joins.slice_part(kernel, job, result),
            Ask::Page { tag, outcome } => self.joins.page(kernel, tag, outcome),
        }
    }

    fn settle(&mut self) {
        while let Some(ready) = self.kernel.next() {
            let Ready::Durable(then) = ready else { continue };
            match then {
                HubDurable::PeerUp { node, incarnation } => {
                    self.sessions.known(&mut self.kernel, self.agreed.list(), node, incarnation);
                    if self.sessions.is_up(node) {
                        self.sessions.show_to(&mut self.kernel, &self.clocks, node);
                    }
                }
                HubDurable::Layout(layout) => self.agreed.layout_durable(&mut self.kernel, layout),
                HubDurable::Keyspaces(list) => self.kernel.say((To::All, Tell::KeyspacesDurable(*list))),
            }
        }
    }

    /// The newest that was seen of a peer's store.
    pub(crate) fn seen(&self, peer: NodeId) -> Option<Point> {
        self.sessions.seen(peer)
    }

    /// The same, once the peer has shown its store.
    pub(crate) fn seen_against(&self, peer: NodeId, store: StoreId) -> Option<Point> {
        self.sessions.seen_against(peer, store)
    }

    /// Whether the wall clock was set since the hub has looked at it.
    pub(crate) fn clock_was_set(&self, now: Now) -> bool {
        self.clocks.was_set(now)
    }

    /// How the node's clock compares with those of the members, and by how many microseconds those are ahead of it.
    pub(crate) fn clock(&self) -> (ClockState, BTreeMap<NodeId, i64>) {
        (self.clocks.state(), self.clocks.others())
    }

    /// Batches that are not durable.
    pub(crate) fn unsynced_batches(&self) -> u64 {
        self.kernel.unsynced_batches()
    }

    /// Whether the storage engine gives back the space of what was removed.
    pub(crate) fn is_reclaiming(&self) -> bool {
        self.reclaim.is_running()
    }

    /// Switches a protocol rule off.
    #[cfg(feature = "mutation")]
    pub(crate) fn break_rule(&mut self, rule: crate::rule::Rule) {
        self.kernel.rules.break_rule(rule);
    }
}
