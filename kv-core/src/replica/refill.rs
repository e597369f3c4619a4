//! Refilling a lost store: each owned partition is copied back from all of its other owners before this node
//! acknowledges or answers for it (rule D2).

use bytes::Bytes;

use crate::event::Event;
use crate::message::{CallId, Message, SliceAnswer, SliceQuery};
use crate::node::keys::{Applied, Task};
use crate::node::peers::Purpose;
use crate::node::timers::Timer;
use crate::node::{Effect, Node};
use crate::storage::{Space, StorageKey};
use crate::types::{Epoch, KeyspaceId, Monotonic, NodeId, PartitionId, StoreId};

/// A partition that is being copied back.
#[derive(Debug)]
pub(crate) struct Refill {
    sources: Vec<Source>,
    /// The question that is under way, and when it was asked.
    asked: Option<(NodeId, CallId, Monotonic)>,
    /// The question whose slice is being merged. What an earlier refill of the partition asked for or merges does not
    /// count: a layout may start the refill again at any moment.
    slice: CallId,
    /// Records of that slice that are not durable here.
    applying: usize,
    /// Whether a record of the last slice could not be merged: the slice is asked for again.
    spoiled: bool,
    records: u64,
}

#[derive(Debug)]
struct Source {
    node: NodeId,
    /// Everything up to here is durable here.
    after: Option<(KeyspaceId, Bytes)>,
    /// The end of the slice that is being merged.
    next: Option<(KeyspaceId, Bytes)>,
    more: bool,
    done: bool,
}

impl Node {
    /// Starts refills for owned partitions that are not complete, as many at once as the configuration allows.
    pub(crate) fn plan_refills(&mut self) {
        let Some(layout) = self.layout.clone() else { return };
        for partition in layout.partition_ids() {
            if self.refills.len() >= self.config.refills_max {
                return;
            }
            if !self.owns(partition) || self.is_synced(partition) || self.refills.contains_key(&partition) {
                continue;
            }
            let me = self.config.node;
            let sources: Vec<Source> = layout
                .entry(partition)
                .into_iter()
                .flat_map(|entry| entry.nodes())
                .filter(|&node| node != me)
                .map(|node| Source { node, after: None, next: None, more: true, done: false })
                .collect();
            // Without another owner nothing can be copied back. The partition stays closed: an empty answer would be
            // a lie, and only an operator can decide that its data is given up.
            if sources.is_empty() {
                continue;
            }
            self.out.push(Effect::Event(Event::RefillStarted { partition }));
            self.refills.insert(
                partition,
                Refill { sources, asked: None, slice: CallId(0), applying: 0, spoiled: false, records: 0 },
            );
            self.set_timer(self.now.mono, Timer::Refill(partition));
        }
    }

    /// A peer came back: refills may go on.
    pub(crate) fn wake_refills(&mut self) {
        for partition in self.refills.keys().copied().collect::<Vec<_>>() {
            self.set_timer(self.now.mono, Timer::Refill(partition));
        }
    }

    /// Asks for the next slice, or ends the refill.
    pub(crate) fn refill_step(&mut self, partition: PartitionId) {
        let patience = self.config.retry_after * 4;
        let Some(refill) = self.refills.get_mut(&partition) else { return };
        if refill.applying > 0 {
            return;
        }
        if let Some((node, call, at)) = refill.asked {
            if self.now.mono < at.plus(patience) {
                return;
            }
            // The question or its answer was lost.
            refill.asked = None;
            self.answered(node, call);
        }
        let Some(refill) = self.refills.get(&partition) else { return };
        if refill.sources.iter().all(|source| source.done) {
            self.mark_synced(partition);
            return;
        }
        let next = refill.sources.iter().find(|source| !source.done && self.is_up(source.node));
        let Some((node, after)) = next.map(|source| (source.node, source.after.clone())) else { return };
        let epoch = self.entry(partition).map(|entry| entry.changed).unwrap_or_default();
        let call = self.next_call();
        if let Some(refill) = self.refills.get_mut(&partition) {
            refill.asked = Some((node, call, self.now.mono));
        }
        let slice = SliceQuery::Copy { partition, epoch, after };
        self.ask(node, call, Purpose::Refill(partition), Message::Slice { call, slice });
        self.set_timer(self.now.mono.plus(patience), Timer::Refill(partition));
    }

    /// A slice has arrived: merge it.
    pub(crate) fn refill_received(&mut self, partition: PartitionId, call: CallId, answer: SliceAnswer) {
        let Some(refill) = self.refills.get_mut(&partition) else { return };
        let Some((from, _, _)) = refill.asked.take_if(|asked| asked.1 == call) else { return };
        refill.slice = call;
        let Some(source) = refill.sources.iter_mut().find(|source| source.node == from) else { return };
        source.next = answer.records.last().map(|(keyspace, key, _)| (*keyspace, key.clone()));
        source.more = answer.more;
        refill.applying = answer.records.len();
        refill.spoiled = false;
        if answer.records.is_empty() {
            // A slice without an end cannot be followed by another one.
            source.done = true;
            self.refill_step(partition);
            return;
        }
        for (keyspace, key, record) in answer.records {
            let key = StorageKey::new(Space::Owned, partition, keyspace, &key);
            self.with_key(key, Task::Apply { record, applied: Applied::Refill { partition, slice: call } });
        }
    }

    /// A record of the slice is durable here.
    pub(crate) fn refill_applied(&mut self, partition: PartitionId, slice: CallId) {
        if let Some(refill) = self.refills.get_mut(&partition)
            && refill.slice == slice
        {
            refill.records += 1;
            self.refill_settled(partition);
        }
    }

    /// A record of the slice could not be merged.
    pub(crate) fn refill_refused(&mut self, partition: PartitionId, slice: CallId) {
        if let Some(refill) = self.refills.get_mut(&partition)
            && refill.slice == slice
        {
            refill.spoiled = true;
            self.refill_settled(partition);
        }
    }

    fn refill_settled(&mut self, partition: PartitionId) {
        let Some(refill) = self.refills.get_mut(&partition) else { return };
        refill.applying = refill.applying.saturating_sub(1);
        if refill.applying > 0 {
            return;
        }
        if refill.spoiled {
            self.refill_stalled(partition);
            return;
        }
        // The cursor moves no earlier than its data is durable (rule M2).
        for source in &mut refill.sources {
            if let Some(next) = source.next.take() {
                source.after = Some(next);
                source.done = !source.more;
            }
        }
        self.refill_step(partition);
    }

    /// The source refused, or its session ended.
    pub(crate) fn refill_failed(&mut self, partition: PartitionId, call: CallId) {
        let asked = self.refills.get(&partition).and_then(|refill| refill.asked);
        if asked.is_some_and(|asked| asked.1 == call) {
            self.refill_stalled(partition);
        }
    }

    /// The last slice is lost: try again soon.
    fn refill_stalled(&mut self, partition: PartitionId) {
        if let Some(refill) = self.refills.get_mut(&partition) {
            refill.asked = None;
            for source in &mut refill.sources {
                source.next = None;
            }
            let at = self.now.mono.plus(self.config.retry_after);
            self.set_timer(at, Timer::Refill(partition));
        }
    }

    /// It is durable that the partition is complete.
    pub(crate) fn synced_durable(&mut self, partition: PartitionId, synced: (StoreId, Epoch)) {
        self.synced.insert(partition, synced);
        if let Some(refill) = self.refills.remove(&partition) {
            self.out.push(Effect::Event(Event::RefillDone { partition, records: refill.records }));
        }
        self.plan_refills();
    }
}
