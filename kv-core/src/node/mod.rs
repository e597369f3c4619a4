//! `Node::step`: the single entry point of the core. Core decides, shell acts.
//!
//! A node has a hub, with what belongs to the node, and one or more loops, each with a set of partitions. They say things to
//! each other and share nothing (`crate::parts`), so that each may run on a thread of its own. `Node` runs them on one: it
//! gives each input to the part that it is for, carries what the parts say, and numbers their batches in one order, for one
//! committing thread.

mod route;
mod shown;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;

use crate::config::{ClusterConfig, NodeConfig};
use crate::error::StorageError;
use crate::event_loop::EventLoop;
use crate::hub::{Hub, To};
use crate::kernel::Place;
use crate::parts::{HubInput, LoopInput};
use crate::ring::Layout;
use crate::storage::{ASIDE, HotStats, Reader, Stats};
use crate::topology::{Receipt, Residue, Transfer};
use crate::types::{Incarnation, Monotonic, NodeId, Now, PartitionId, Point, Seq, StoreId};
use shown::Shown;

pub use crate::purge::left_of_dropped;
pub use crate::shell::{ClockState, Effect, Effects, Input, ReadId, RepairStats, SettleStatus, Status, Tag};

/// The most loops of a node: the number of a read has room for so many.
pub const LOOPS_MAX: u16 = 255;

/// The state machine of one node.
#[derive(Debug)]
pub struct Node {
    config: Arc<NodeConfig>,
    hub: Hub,
    loops: Vec<EventLoop>,
    /// Where keys belong. Partitions never change their keys, so any layout will do.
    layout: Option<Arc<Layout>>,
    /// What waits for the hub and for each loop, the hub first.
    inboxes: Vec<VecDeque<PartInput>>,
    /// Parts that take nothing at present.
    #[cfg(feature = "mutation")]
    held: Vec<bool>,
    /// When each part wants to be woken.
    wakes: Vec<Option<Monotonic>>,
    /// What the shell was told last of that.
    announced: Option<Monotonic>,
    batches: Batches,
    shown: Shown,
}

/// What is for one part.
#[derive(Debug)]
enum PartInput {
    Hub(HubInput),
    Loop(LoopInput),
}

/// Batches on their way to the disk, in one order over all parts.
#[derive(Debug, Default)]
struct Batches {
    issued: u64,
    /// For each batch that is not durable, the part and its own number for it.
    open: VecDeque<(Seq, usize, Seq)>,
}

impl Batches {
    fn issue(&mut self, part: usize, own: Seq) -> Seq {
        self.issued += 1;
        self.open.push_back((Seq(self.issued), part, own));
        Seq(self.issued)
    }

    /// Every batch up to this one is durable: the parts that wait for that, and up to which of their own.
    fn durable(&mut self, seq: Seq) -> Vec<(usize, Seq)> {
        let mut parts: Vec<(usize, Seq)> = Vec::new();
        while let Some((_, part, own)) = self.open.pop_front_if(|batch| batch.0 <= seq) {
            match parts.iter_mut().find(|known| known.0 == part) {
                Some(known) => known.1 = own,
                None => parts.push((part, own)),
            }
        }
        parts
    }
}

impl Node {
    /// Builds a node from what its store holds. `stats` are those of the store as opened.
    ///
    /// # Errors
    /// If the node's own entries cannot be read.
    pub fn recover(
        config: NodeConfig,
        cluster: ClusterConfig,
        incarnation: Incarnation,
        reader: &impl Reader,
        stats: &Stats,
    ) -> Result<Self, StorageError> {
        let config = Arc::new(NodeConfig { loops: config.loops.clamp(1, LOOPS_MAX), ..config });
        let build = |index| EventLoop::recover(&config, index, cluster.clone(), incarnation, reader, stats);
        let mut loops = (0..config.loops).map(build).collect::<Result<Vec<_>, _>>()?;
        let aside = reader.metas(ASIDE)?;
        let bytes = aside.iter().map(|(_, value)| value.len() as u64).sum();
        for (index, found) in loops.iter_mut().enumerate() {
            found.recover_aside(if index == 0 { aside.len() as u64 } else { 0 }, bytes);
        }
        let parts = loops.len() + 1;
        Ok(Self {
            layout: loops.first().and_then(|first| first.layout().cloned()),
            loops,
            inboxes: (0..parts).map(|_| VecDeque::new()).collect(),
            #[cfg(feature = "mutation")]
            held: vec![false; parts],
            // Whatever the last run left to do is looked for at the first step.
            wakes: vec![Some(Monotonic(0)); parts],
            announced: None,
            batches: Batches::default(),
            shown: Shown::default(),
            hub: Hub::recover(config.clone(), &cluster, incarnation, reader)?,
            config,
        })
    }

    /// Takes one input and adds what the shell must do to `effects`.
    pub fn step(&mut self, now: Now, input: Input, effects: &mut Effects) {
        if self.wakes.first().copied().flatten().is_some_and(|at| at <= now.mono) {
            let (peers, shows) = (self.shown.take(), self.shown.own());
            self.tell_hub(HubInput::Shown { peers, shows });
        }
        if self.hub.clock_was_set(now) {
            // Before anything is judged by it.
            self.tell_hub(HubInput::Wake);
            self.run(now, effects);
        }
        self.route(now, input);
        self.wake(now);
        self.run(now, effects);
        let next = self.wakes.iter().flatten().min().copied();
        let known = self.announced.is_some_and(|told| told > now.mono && next.is_none_or(|next| told <= next));
        if let Some(at) = next.filter(|_| !known) {
            self.announced = Some(at);
            effects.push(Effect::WakeAt(at));
        }
    }

    fn put(&mut self, part: usize, input: PartInput) {
        if let Some(inbox) = self.inboxes.get_mut(part) {
            inbox.push_back(input);
        }
    }

    fn tell_hub(&mut self, input: HubInput) {
        self.put(0, PartInput::Hub(input));
    }

    fn tell_loop(&mut self, index: u16, input: LoopInput) {
        self.put(usize::from(index) + 1, PartInput::Loop(input));
    }

    fn tell_loops(&mut self, input: impl Fn() -> LoopInput) {
        (0..self.loop_count()).for_each(|index| self.tell_loop(index, input()));
    }

    fn loop_count(&self) -> u16 {
        u16::try_from(self.loops.len()).unwrap_or(LOOPS_MAX)
    }

    /// Whether a part takes something now.
    fn takes(&self, part: usize) -> bool {
        #[cfg(feature = "mutation")]
        if self.held.get(part).is_some_and(|held| *held) {
            return false;
        }
        self.inboxes.get(part).is_some_and(|inbox| !inbox.is_empty())
    }

    /// Lets the parts take what waits for them, until nothing waits.
    fn run(&mut self, now: Now, effects: &mut Effects) {
        while let Some(part) = (0..self.inboxes.len()).find(|&part| self.takes(part)) {
            let Some(input) = self.inboxes.get_mut(part).and_then(VecDeque::pop_front) else { return };
            let first = effects.len();
            match input {
                PartInput::Hub(input) => {
                    let mut said = Vec::new();
                    self.hub.step(now, input, effects, &mut said);
                    for (to, tell) in said {
                        match to {
                            To::All => self.tell_loops(|| LoopInput::Told(tell.clone())),
                            To::Loop(index) => self.tell_loop(index, LoopInput::Told(tell)),
                        }
                    }
                }
                PartInput::Loop(input) => {
                    let mut asked = Vec::new();
                    let index = part - 1;
                    if let Some(found) = self.loops.get_mut(index) {
                        found.step(now, input, effects, &mut asked);
                    }
                    let index = u16::try_from(index).unwrap_or(LOOPS_MAX);
                    asked.into_iter().for_each(|ask| self.tell_hub(HubInput::Asked { index, ask }));
                }
            }
            self.number(part, effects, first);
        }
    }

    /// Gives what a part wants of the shell names that no other part uses.
    fn number(&mut self, part: usize, effects: &mut Effects, first: usize) {
        let mut wake = None;
        for effect in effects.iter_mut().skip(first) {
            match effect {
                Effect::Read { read, .. } | Effect::Slice { read, .. } | Effect::Leaves { read, .. } => {
                    *read = ReadId((read.0 << 8) | part as u64);
                }
                Effect::Persist { seq, batch } => {
                    *seq = self.batches.issue(part, *seq);
                    self.shown.issued(*seq, batch);
                }
                Effect::Send { message, .. } => message.show(self.shown.own()),
                Effect::WakeAt(at) => wake = Some(*at),
                _ => {}
            }
        }
        if let Some(at) = wake {
            let mut index = 0;
            effects.retain(|effect| {
                index += 1;
                index <= first || !matches!(effect, Effect::WakeAt(_))
            });
            if let Some(wake) = self.wakes.get_mut(part) {
                *wake = Some(at);
            }
        }
    }

    /// What the node is busy with.
    #[must_use]
    pub fn status(&self) -> Status {
        let (clock, clocks) = self.hub.clock();
        let mut all = Status { reclaiming: self.hub.is_reclaiming(), clock, clocks, ..Status::default() };
        all.unsynced_batches = self.hub.unsynced_batches();
        for (index, status) in self.loops.iter().map(EventLoop::status).enumerate() {
            all.epoch = if index == 0 { status.epoch } else { all.epoch.min(status.epoch) };
            all.add(status);
        }
        all
    }

    /// The newest that was seen of the store of `peer`, for the handshake.
    #[must_use]
    pub fn seen(&self, peer: NodeId) -> Option<Point> {
        self.shown.newest(peer, self.hub.seen(peer))
    }

    /// The last batch of this boot that is durable, as peers are told: how far the store is.
    #[must_use]
    pub fn commit(&self) -> u64 {
        self.shown.own()
    }

    /// The same, once the peer has shown its store: a store that another one has replaced counts as rolled back.
    #[must_use]
    pub fn seen_against(&self, peer: NodeId, store: StoreId) -> Option<Point> {
        self.shown.newest(peer, self.hub.seen_against(peer, store))
    }

    /// How well the hot tier serves.
    #[must_use]
    pub fn hot_stats(&self) -> HotStats {
        self.loops.iter().map(EventLoop::hot_stats).fold(HotStats::default(), HotStats::sum)
    }

    /// Bytes of keys and records that came in for copies and refills of partitions since the node began.
    #[must_use]
    pub fn copied_bytes(&self) -> u64 {
        self.loops.iter().map(EventLoop::copied_bytes).sum()
    }

    /// Forwarded requests that were sent to another owner as well since the node began.
    #[must_use]
    pub fn hedged(&self) -> u64 {
        self.loops.iter().map(EventLoop::hedged).sum()
    }

    /// How often proposals for keys of consistent keyspaces began again, since others proposed for the same key or too few owners
    /// answered.
    #[must_use]
    pub fn register_retries(&self) -> u64 {
        self.loops.iter().map(EventLoop::register_retries).sum()
    }

    /// Retired requests (rule A7) that were forgotten because a record had no room for them, since the node began. A late
    /// repetition of one may bring its value back beside what replaced it.
    #[must_use]
    pub fn retired_forgotten(&self) -> u64 {
        self.loops.iter().map(EventLoop::retired_forgotten).sum()
    }

    /// The layout on which the node acts: the oldest on which any of its loops does.
    #[must_use]
    pub fn layout(&self) -> Option<&Arc<Layout>> {
        let layouts = self.loops.iter().map(EventLoop::layout);
        layouts.min_by_key(|layout| layout.map(|layout| layout.epoch)).flatten()
    }

    /// The layout by which the node serves a partition.
    #[must_use]
    pub fn layout_for(&self, partition: PartitionId) -> Option<&Arc<Layout>> {
        self.loop_for(partition)?.layout()
    }

    /// The receipts of the migrations under way: the control plane cuts over by them.
    #[must_use]
    pub fn receipts(&self) -> Vec<Receipt> {
        sorted(self.loops.iter().flat_map(EventLoop::receipts), |receipt| receipt.partition)
    }

    /// The partitions that migrate to this node, and how far each is.
    #[must_use]
    pub fn transfers(&self) -> Vec<Transfer> {
        sorted(self.loops.iter().flat_map(EventLoop::transfers), |transfer| transfer.partition)
    }

    /// What this node still holds of partitions that it has left.
    #[must_use]
    pub fn residue(&self) -> Vec<Residue> {
        sorted(self.loops.iter().flat_map(EventLoop::residue), |residue| residue.partition)
    }

    /// The other owners with which this node's copy of a partition can be compared, and whether each is up. None if this
    /// node does not hold all of it.
    #[must_use]
    pub fn comparable(&self, partition: PartitionId) -> Vec<(NodeId, bool)> {
        self.loop_for(partition).map(|found| found.comparable(partition)).unwrap_or_default()
    }

    fn loop_for(&self, partition: PartitionId) -> Option<&EventLoop> {
        self.loops.get(usize::from(Place::of_partition(partition, self.loop_count())))
    }

    /// Switches a protocol rule off.
    #[cfg(feature = "mutation")]
    pub fn break_rule(&mut self, rule: crate::rule::Rule) {
        self.hub.break_rule(rule);
        self.loops.iter_mut().for_each(|found| found.break_rule(rule));
    }

    /// How many parts the node has: the hub and its loops.
    #[cfg(feature = "mutation")]
    #[must_use]
    pub fn parts(&self) -> usize {
        self.inboxes.len()
    }

    /// Lets a part lag, as a thread that is not given the processor: what is for it waits until it is let go on, and then the
    /// next input.
    #[cfg(feature = "mutation")]
    pub fn hold_part(&mut self, part: usize, held: bool) {
        if let Some(place) = self.held.get_mut(part) {
            *place = held;
        }
    }
}

fn sorted<T, K: Ord>(items: impl Iterator<Item = T>, key: impl Fn(&T) -> K) -> Vec<T> {
    let mut items: Vec<T> = items.collect();
    items.sort_by_key(key);
    items
}
