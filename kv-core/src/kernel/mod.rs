//! What every component of a node stands on: time, effects, timers, key slots, what waits for durability, and calls to
//! peers.
//!
//! The kernel names no component. What is to be continued (a timer, a task on a key, what follows durability, a read, the
//! answer to a call) is a type of the [`Wiring`], and everything that has become possible comes back as a [`Ready`] value
//! from [`Kernel::next`], in the order in which it became possible. So nothing is called back from within a component:
//! `Node` takes the next value and gives it to whom it belongs.

mod calls;
mod durability;
mod peers;
mod silence;
mod slots;
mod timers;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Debug;
use std::sync::Arc;

use bytes::Bytes;

use crate::cell::Unsettled;
use crate::config::NodeConfig;
use crate::error::StorageError;
use crate::event::Event;
use crate::map::{Map, map};
use crate::message::{CallId, Message, Refusal};
use crate::register::Ballot;
use crate::rule::Rules;
use crate::shell::{Effect, Effects, ReadId};
use crate::storage::{ASIDE_BYTES_MAX, HotStats, HotTier, SetAside, SliceRequest, StorageKey, Stored};
use crate::types::{Incarnation, Monotonic, NodeId, Now, PartitionId, WallTime};
use crate::version::{Clock, Version};

use durability::Durability;
pub(crate) use peers::Peers;
use slots::Slot;
pub(crate) use slots::footprint;
pub(crate) use timers::{TimerKey, Timers};

/// What a kernel continues. One type a kind, so that the kernel needs to know none of them.
pub(crate) trait Wiring: Debug {
    /// What a timer is for.
    type Timer: Copy + Ord + Debug;
    /// What is to be done with a key when its record is in memory.
    type Task: Debug;
    /// What is to be done when a batch is durable.
    type AfterDurable: Debug;
    /// What a read beside the loop is for.
    type ReadFor: Debug;
    /// Who waits for the answer to a call.
    type Waiter: Copy + Eq + Debug;
    /// What is said to other parts of the same node.
    type Said: Debug;

    /// The timer at which a silent peer is looked at.
    fn watch(peer: NodeId) -> Self::Timer;

    /// The timer at which calls that were given up cease to count.
    fn given_up() -> Self::Timer;
}

/// What was set aside.
#[derive(Clone, Copy, Debug, Default)]
struct Aside {
    values: u64,
    bytes: u64,
    /// Of what no operator was told yet.
    new: u64,
}

/// Something that has become possible.
#[derive(Debug)]
pub(crate) enum Ready<W: Wiring> {
    /// The record of a key is in memory.
    Run { key: StorageKey, stored: Option<Arc<Stored>>, task: W::Task },
    /// A task cannot run, because its record cannot be had.
    Refused { key: StorageKey, task: W::Task, refusal: Refusal },
    /// A batch is durable.
    Durable(W::AfterDurable),
    /// A record of this node's own cannot be read.
    Unreadable(StorageKey),
}

/// What waits to be given out.
#[derive(Debug)]
enum Queued<W: Wiring> {
    /// The first task of a key's slot.
    Slot(StorageKey),
    /// A task that needs no slot.
    Ready(Ready<W>),
    /// The slot of a key may be idle.
    Settle(StorageKey),
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Kernel<W: Wiring> {
    config: Arc<NodeConfig>,
    pub(crate) rules: Rules,
    /// The time of the current step.
    pub(crate) now: Now,
    /// Timestamps of writes.
    pub(crate) clock: Clock,
    /// Retired requests that were forgotten because a record had no room for them (rule A7).
    pub(crate) retired_forgotten: u64,
    timers: Timers<W::Timer>,
    pub(crate) peers: Peers<W::Waiter>,
    durability: Durability<W>,
    /// Keys with work in progress. Every key with a write that is not durable is among them.
    slots: Map<StorageKey, Slot<W::Task>>,
    /// The slots whose records are being read.
    loading: Map<ReadId, StorageKey>,
    hot: HotTier,
    reads: Map<ReadId, W::ReadFor>,
    /// When the first of what was written of each partition expires, since that was taken last.
    expiries: BTreeMap<PartitionId, WallTime>,
    /// What waits for the watermark of each partition and was stored or found since that was taken last.
    unsettled: BTreeMap<PartitionId, Unsettled>,
    /// Partitions in which this node alone has written something, so that their owners are to be compared.
    uneven: BTreeSet<PartitionId>,
    /// Registers of which replicas are to be brought together.
    apart: BTreeSet<StorageKey>,
    /// What is promised for every register of a partition of which nothing is held (rule C7).
    floors: BTreeMap<PartitionId, Ballot>,
    /// Instances of actors that were drawn (rule A1).
    actors_drawn: u64,
    aside: Aside,
    queue: VecDeque<Queued<W>>,
    /// The key whose task was given out last.
    running: Option<StorageKey>,
    /// The effects of the current step.
    effects: Effects,
    /// What is said to other parts of the node in the current step.
    said: Vec<W::Said>,
    nonce: u32,
    /// Which part of its node this is.
    place: Place,
    calls_made: u64,
    ids_made: u64,
}

impl<W: Wiring> Kernel<W> {
    pub(crate) fn new(
        config: Arc<NodeConfig>,
        incarnation: Incarnation,
        place: Place,
        held: Holding,
        hints: HintsHeld,
    ) -> Self {
        let seed = config.map_seed;
        Self {
            rules: Rules::default(),
            now: Now::default(),
            clock: Clock::default(),
            retired_forgotten: 0,
            timers: Timers::default(),
            peers: Peers::default(),
            durability: Durability::new(held, hints),
            slots: map(seed),
            loading: map(seed),
            hot: HotTier::new(config.hot_bytes_max, seed),
            reads: map(seed),
            expiries: BTreeMap::new(),
            unsettled: BTreeMap::new(),
            uneven: BTreeSet::new(),
            apart: BTreeSet::new(),
            floors: BTreeMap::new(),
            actors_drawn: 0,
            aside: Aside::default(),
            queue: VecDeque::new(),
            running: None,
            effects: Effects::new(),
            said: Vec::new(),
            nonce: incarnation.nonce,
            place,
            calls_made: 0,
            ids_made: 0,
            config,
        }
    }

    /// Begins a step. What an earlier one has left to do comes first in `effects`.
    pub(crate) fn begin(&mut self, now: Now, effects: &mut Effects) {
        self.now = now;
        effects.append(&mut self.effects);
        std::mem::swap(&mut self.effects, effects);
    }

    /// Ends a step: hands its batch to the disk and its effects to the shell.
    pub(crate) fn end(&mut self, effects: &mut Effects) {
        self.flush();
        if let Some(at) = self.timers.announce(self.now.mono) {
            self.effects.push(Effect::WakeAt(at));
        }
        std::mem::swap(&mut self.effects, effects);
    }

    /// What has become possible next; `None`: nothing.
    pub(crate) fn next(&mut self) -> Option<Ready<W>> {
        if let Some(key) = self.running.take() {
            self.go_on(key);
        }
        loop {
            match self.queue.pop_front()? {
                Queued::Ready(ready) => return Some(ready),
                Queued::Settle(key) => self.settle(&key),
                Queued::Slot(key) => {
                    if let Some((stored, task)) = self.take_task(&key) {
                        self.running = Some(key.clone());
                        return Some(Ready::Run { key, stored, task });
                    }
                }
            }
        }
    }

    /// The next timer that is due.
    pub(crate) fn due(&mut self) -> Option<W::Timer> {
        self.timers.due(self.now.mono)
    }

    /// How many timers are set.
    pub(crate) fn timers_set(&self) -> usize {
        self.timers.len()
    }

    /// Sets a timer of which there is one at most; the earliest moment counts.
    pub(crate) fn arm(&mut self, at: Monotonic, timer: W::Timer) {
        self.timers.arm(at, timer);
    }

    /// Takes back a timer of which there is one at most.
    pub(crate) fn disarm(&mut self, timer: W::Timer) {
        self.timers.disarm(timer);
    }

    pub(crate) fn set_timer(&mut self, at: Monotonic, timer: W::Timer) -> TimerKey {
        self.timers.set(at, timer)
    }

    pub(crate) fn cancel_timer(&mut self, timer: TimerKey) {
        self.timers.cancel(timer);
    }

    /// Asks the shell for something.
    pub(crate) fn effect(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    /// Says something to another part of the node.
    pub(crate) fn say(&mut self, what: W::Said) {
        self.said.push(what);
    }

    /// What was said since this was asked last.
    pub(crate) fn take_said(&mut self) -> Vec<W::Said> {
        std::mem::take(&mut self.said)
    }

    /// Tells an operator something.
    pub(crate) fn event(&mut self, event: Event) {
        self.effects.push(Effect::Event(event));
    }

    /// Sends a message on the session with a peer, if there is one.
    pub(crate) fn send(&mut self, to: NodeId, message: Message) {
        if message.is_behind() {
            self.peers.note_behind(to);
        }
        self.effects.push(Effect::Send { to, message });
    }

    /// A number that this incarnation has not used for an operation, a replication or a read.
    pub(crate) fn next_id(&mut self) -> u64 {
        self.ids_made += 1;
        self.ids_made
    }

    /// A number that differs from one to the next, and from node to node: for pauses, not for names.
    pub(crate) fn draw(&mut self) -> u64 {
        xxhash_rust::xxh3::xxh3_64_with_seed(&self.next_id().to_le_bytes(), u64::from(self.nonce))
    }

    /// A call id that no incarnation of this node has used. A peer may hold back its answer, for a slow disk, until the
    /// node has restarted and talks to it again: the answer must not be taken for one to a later question.
    pub(crate) fn next_call(&mut self) -> CallId {
        self.calls_made += 1;
        self.place.call(self.nonce, self.calls_made)
    }

    /// A number that nobody draws twice in this run of the node.
    pub(crate) fn next_instance(&mut self) -> u64 {
        self.actors_drawn += 1;
        self.actors_drawn * u64::from(self.place.of.max(1)) + u64::from(self.place.index)
    }

    /// Reads a slice beside the loop.
    pub(crate) fn read_slice(&mut self, request: SliceRequest, reason: W::ReadFor) {
        let read = self.note_read(reason);
        self.effects.push(Effect::Slice { read, request });
    }

    /// Reads the statistics of a partition beside the loop.
    pub(crate) fn read_stats(&mut self, partition: PartitionId, reason: W::ReadFor) {
        let read = self.note_read(reason);
        self.effects.push(Effect::Leaves { read, partition });
    }

    fn note_read(&mut self, reason: W::ReadFor) -> ReadId {
        let read = ReadId(self.next_id());
        self.reads.insert(read, reason);
        read
    }

    /// What a slice or statistics were read for.
    pub(crate) fn take_read(&mut self, read: ReadId) -> Option<W::ReadFor> {
        self.reads.remove(&read)
    }

    /// When the first of what was written of each partition expires, since this was asked last.
    pub(crate) fn take_expiries(&mut self) -> BTreeMap<PartitionId, WallTime> {
        std::mem::take(&mut self.expiries)
    }

    /// This was stored, or found, in a partition that may be owned.
    pub(crate) fn note_unsettled(&mut self, partition: PartitionId, unsettled: Unsettled) {
        if !unsettled.is_none() {
            self.unsettled.entry(partition).or_default().add(unsettled);
        }
    }

    /// What waits for the watermark of each partition and was stored or found since this was asked last.
    pub(crate) fn take_unsettled(&mut self) -> BTreeMap<PartitionId, Unsettled> {
        std::mem::take(&mut self.unsettled)
    }

    /// This node alone has written something in a partition.
    pub(crate) fn note_uneven(&mut self, partition: PartitionId) {
        self.uneven.insert(partition);
    }

    /// This replica of a register cannot take what another one has accepted: a round is to bring them together.
    pub(crate) fn note_apart(&mut self, key: &StorageKey) {
        self.apart.insert(key.clone());
    }

    /// The next register of which replicas are to be brought together.
    pub(crate) fn take_apart(&mut self) -> Option<StorageKey> {
        self.apart.pop_first()
    }

    /// What is promised for a register of which nothing is held (rule C7).
    pub(crate) fn floor(&self, partition: PartitionId) -> Ballot {
        self.floors.get(&partition).copied().unwrap_or_default()
    }

    /// Promises that for all registers of a partition of which nothing is held. Says whether that is more than before: then it is to be
    /// made durable.
    pub(crate) fn raise_floor(&mut self, partition: PartitionId, promised: Ballot) -> bool {
        let floor = self.floors.entry(partition).or_default();
        let is_more = promised > *floor;
        *floor = promised.max(*floor);
        is_more
    }

    /// What earlier runs have promised.
    pub(crate) fn recover_floors(&mut self, floors: BTreeMap<PartitionId, Ballot>) {
        self.floors = floors;
    }

    /// The next partition whose owners are to be compared.
    pub(crate) fn take_uneven(&mut self) -> Option<PartitionId> {
        self.uneven.pop_first()
    }

    /// What the store has set aside already.
    pub(crate) fn recover_aside(&mut self, values: u64, bytes: u64) {
        self.aside = Aside { values, bytes, new: 0 };
    }

    /// Sets values aside that are about to be removed although nothing here has replaced them (rule D2).
    pub(crate) fn set_aside(&mut self, key: &StorageKey, versions: &[Version]) {
        let wall = self.now.wall;
        for version in versions.iter().filter(|version| version.is_live(wall)) {
            let Some((name, value)) = SetAside::entry(key, version, wall) else { continue };
            self.aside.new += 1;
            if self.aside.bytes + value.len() as u64 > ASIDE_BYTES_MAX {
                continue;
            }
            self.aside.values += 1;
            self.aside.bytes += value.len() as u64;
            self.persist_meta(name, value);
        }
    }

    /// Values that were to be set aside since this was asked last, and all that are.
    pub(crate) fn take_set_aside(&mut self) -> Option<(u64, u64)> {
        let new = std::mem::take(&mut self.aside.new);
        (new > 0).then_some((new, self.aside.values))
    }

    /// Values that are set aside.
    pub(crate) fn aside(&self) -> u64 {
        self.aside.values
    }

    /// A record of this node's own cannot be read. `reason`: what an operator is told, unless that was said before.
    pub(crate) fn unreadable(&mut self, key: StorageKey, reason: Option<String>) {
        if let Some(reason) = reason {
            self.event(Event::Damaged { reason });
        }
        self.queue.push_back(Queued::Ready(Ready::Unreadable(key)));
    }

    /// How well the hot tier serves.
    pub(crate) fn hot_stats(&self) -> HotStats {
        self.hot.stats()
    }

    /// Keys with work in progress.
    pub(crate) fn keys_busy(&self) -> usize {
        self.slots.len()
    }
}

/// Which of the loops of a node this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Counts from 0.
    pub(crate) index: u16,
    /// How many loops there are.
    pub(crate) of: u16,
}

impl Place {
    /// Whether this loop serves a partition.
    pub(crate) fn serves(self, partition: PartitionId) -> bool {
        Self::of_partition(partition, self.of) == self.index
    }

    /// The index of the loop, of so many, that serves a partition.
    pub(crate) fn of_partition(partition: PartitionId, of: u16) -> u16 {
        partition.0 % of.max(1)
    }

    /// The only loop of a node.
    pub(crate) const ONLY: Self = Self { index: 0, of: 1 };

    /// The call with a number of this loop's own. Its place is part of the id, so that an answer finds the loop that asked.
    fn call(self, nonce: u32, number: u64) -> CallId {
        let of = u64::from(self.of.max(1));
        let each = (u64::from(u32::MAX) + 1) / of;
        CallId((u64::from(nonce) << 32) | (number % each * of + u64::from(self.index)))
    }

    /// The index of the loop, of so many, that asked a call.
    pub(crate) fn of_call(call: CallId, of: u16) -> u16 {
        let index = (call.0 & u64::from(u32::MAX)) % u64::from(of.max(1));
        u16::try_from(index).unwrap_or(0)
    }
}

/// What a store holds beside owned records: hints for other nodes, and markers of missed writes. Batches that are under way
/// are counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Holding {
    pub(crate) hints: u64,
    pub(crate) hint_bytes: u64,
    pub(crate) missed_writes: u64,
}

/// How many hints a store holds of each partition of which it holds any.
pub(crate) type HintsHeld = BTreeMap<PartitionId, u64>;

/// The encoded record of a read that has ended, or why there is none.
pub(crate) type Loaded = Result<Option<Bytes>, StorageError>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_to_a_call_finds_the_loop_that_asked() {
        for of in [1, 2, 3, 4, 7, 16] {
            let each = (u64::from(u32::MAX) + 1) / u64::from(of);
            let mut made = std::collections::BTreeSet::new();
            for index in 0..of {
                for number in [1, 2, each - 1, each, each + 3] {
                    let call = Place { index, of }.call(7, number);
                    assert_eq!(
                        (call.0 >> 32, Place::of_call(call, of)),
                        (7, index),
                        "{number} of loop {index} of {of}"
                    );
                    made.insert(call);
                }
            }
            assert_eq!(made.len(), 5 * usize::from(of), "no two loops make the same id");
        }
    }
}
