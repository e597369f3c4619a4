//! What is left of partitions that this node has left: handed over to every current owner, and only then dropped.
//!
//! Residue does not change: whoever does not own a partition takes no writes for it. So when every owner of an epoch has
//! been compared with it and given what it lacked, all of it is dominated by records that each of them holds durably, and
//! it may go (rule A4). Each deletion asks again whether the entry is still that of the comparison and the node still no
//! owner: one that comes back keeps what is left, which merges into its new copy. For available data that is sound: dots
//! go on from the same record instances on the same disk, and no tombstone is collected while a member holds residue.
//!
//! Which partitions have residue is derived from the statistics, so it survives restarts.

use std::collections::{BTreeMap, BTreeSet};

use super::exchange::{Exchange, ExchangeId};
use bytes::Bytes;

use crate::event::Event;
use crate::message::Errand;
use crate::node::keys::{Held, LeavesFor, ReadFor, Task};
use crate::node::timers::Timer;
use crate::node::{Effect, Node, ReadId};
use crate::rule::Rule;
use crate::storage::{PartitionStats, Slice, SliceRequest, Space, StorageKey};
use crate::topology::{Residue, Wait};
use crate::types::{Epoch, KeyspaceId, Monotonic, NodeId, PartitionId};

/// Partitions that are handed over at once.
const HANDOVERS_MAX: usize = 2;

/// What a node may hold beside the partitions that it owns.
#[derive(Debug, Default)]
pub(crate) struct Leftovers {
    /// Partitions of which records may be stored, owned ones included.
    pub(crate) stocked: BTreeSet<PartitionId>,
    left: BTreeMap<PartitionId, Left>,
}

/// A partition that was left.
#[derive(Debug, Default)]
struct Left {
    /// The epoch of the entry by which it is handed over.
    epoch: Epoch,
    /// Records and bytes left; `None` until they are counted.
    size: Option<(u64, u64)>,
    /// Whether they are being counted.
    counting: bool,
    exchange: Option<(ExchangeId, NodeId)>,
    /// Owners that dominate all of it.
    covered: BTreeSet<NodeId>,
    /// Why owners could not take it, and when each is asked again.
    failed: BTreeMap<NodeId, (String, Monotonic)>,
    /// Deletions of the present slice that are not made.
    dropping: usize,
    reading: bool,
    dropped: u64,
}

impl Left {
    fn is_busy(&self) -> bool {
        self.exchange.is_some() || self.counting || self.reading || self.dropping > 0
    }
}

impl Node {
    /// The layout has changed: looks for what was left, and stops handing over what is owned again.
    pub(crate) fn plan_handovers(&mut self) {
        let Some(layout) = self.layout.clone() else { return };
        for partition in layout.partition_ids() {
            let changed = self.entry(partition).map(|entry| entry.changed).unwrap_or_default();
            if self.keeps(partition) {
                self.leftovers.stocked.insert(partition);
                self.stop_handover(partition);
            } else if self.leftovers.stocked.contains(&partition)
                && self.leftovers.left.get(&partition).is_none_or(|left| left.epoch != changed)
            {
                self.stop_handover(partition);
                self.leftovers.left.insert(partition, Left { epoch: changed, ..Left::default() });
            }
        }
        self.arm_handovers();
    }

    fn stop_handover(&mut self, partition: PartitionId) {
        if let Some(Left { exchange: Some((id, _)), .. }) = self.leftovers.left.remove(&partition) {
            self.cancel_exchange(id);
        }
    }

    /// Whether this node owns a partition at the newest layout on which it acts.
    fn keeps(&self, partition: PartitionId) -> bool {
        if !self.rules.keep(Rule::DropAfterAdoption)
            && let Some(given) = &self.given
        {
            return given.entry(partition).is_some_and(|entry| entry.owns(self.config.node));
        }
        !self.config.partitions.contains(partition) || self.owns(partition)
    }

    /// Makes sure that what was left is looked at soon.
    pub(crate) fn arm_handovers(&mut self) {
        if !self.leftovers.left.is_empty() {
            self.arm(self.now.mono, Timer::HandOver);
        }
    }

    /// Looks at what was left, a few partitions at a time.
    pub(crate) fn handover_pass(&mut self) {
        let mut busy = self.leftovers.left.values().filter(|left| left.is_busy()).count();
        for partition in self.leftovers.left.keys().copied().collect::<Vec<_>>() {
            if busy >= HANDOVERS_MAX {
                return;
            }
            if self.leftovers.left.get(&partition).is_some_and(|left| !left.is_busy()) {
                self.handover_step(partition);
                busy += usize::from(self.leftovers.left.get(&partition).is_some_and(Left::is_busy));
            }
        }
    }

    fn handover_step(&mut self, partition: PartitionId) {
        let early = !self.rules.keep(Rule::DropAfterAdoption) && self.owns(partition);
        if early {
            return self.drop_slice(partition);
        }
        let Some(left) = self.leftovers.left.get_mut(&partition) else { return };
        if left.size.is_none() {
            left.counting = true;
            return self.read_leaves(partition, LeavesFor::Residue(partition));
        }
        if self.transfers.paused {
            return;
        }
        let owners: Vec<NodeId> = self.entry(partition).map(|entry| entry.nodes().collect()).unwrap_or_default();
        let now = self.now.mono;
        let Some(left) = self.leftovers.left.get(&partition) else { return };
        let mut open: Vec<NodeId> = owners.into_iter().filter(|node| !left.covered.contains(node)).collect();
        if open.is_empty() || !self.rules.keep(Rule::HandOverBeforeDrop) {
            return self.drop_slice(partition);
        }
        open.retain(|&node| self.is_up(node));
        let is_due = |node: &NodeId| left.failed.get(node).is_none_or(|failed| failed.1 <= now);
        if let Some(owner) = open.iter().copied().find(is_due) {
            let id = self.start_exchange(partition, owner, Errand::HandOver, true, None);
            if let Some(left) = self.leftovers.left.get_mut(&partition) {
                left.exchange = Some((id, owner));
            }
        } else if let Some(at) = open.iter().filter_map(|node| left.failed.get(node)).map(|failed| failed.1).min() {
            self.arm(at, Timer::HandOver);
        }
    }

    /// It is known what is left.
    pub(crate) fn residue_counted(&mut self, partition: PartitionId, stats: &PartitionStats) {
        let total = self.kept(stats);
        let Some(left) = self.leftovers.left.get_mut(&partition).filter(|left| left.counting) else { return };
        left.counting = false;
        left.size = Some((total.records, total.bytes));
        if total.records == 0 {
            self.leftovers.left.remove(&partition);
            self.leftovers.stocked.remove(&partition);
        }
        self.arm_handovers();
    }

    pub(crate) fn residue_unreadable(&mut self, partition: PartitionId) {
        if let Some(left) = self.leftovers.left.get_mut(&partition) {
            left.counting = false;
            let at = self.now.mono.plus(self.config.handoff_every);
            self.arm(at, Timer::HandOver);
        }
    }

    fn left_of(&mut self, id: ExchangeId, partition: PartitionId) -> Option<&mut Left> {
        let is = |left: &&mut Left| left.exchange.is_some_and(|exchange| exchange.0 == id);
        self.leftovers.left.get_mut(&partition).filter(is)
    }

    /// An owner dominates everything that is left.
    pub(crate) fn handover_covered(&mut self, id: ExchangeId, exchange: &Exchange) {
        if let Some(left) = self.left_of(id, exchange.partition) {
            left.exchange = None;
            left.failed.remove(&exchange.peer);
            left.covered.insert(exchange.peer);
            self.arm_handovers();
        }
    }

    /// An owner cannot take it now.
    pub(crate) fn handover_failed(&mut self, id: ExchangeId, exchange: &Exchange, why: String) {
        let at = self.now.mono.plus(self.config.retry_after);
        if let Some(left) = self.left_of(id, exchange.partition) {
            left.exchange = None;
            left.failed.insert(exchange.peer, (why, at));
            self.arm_handovers();
        }
    }

    /// Every owner has confirmed: deletes some records.
    fn drop_slice(&mut self, partition: PartitionId) {
        if let Some(at) = self.throttle.wait(self.now.mono) {
            self.arm(at, Timer::HandOver);
            return;
        }
        let request = SliceRequest {
            from: StorageKey::new(Space::Owned, partition, KeyspaceId(0), &[]),
            until: StorageKey::partition_end(Space::Owned, partition),
            entries_max: self.config.slice_entries_max,
            bytes_max: self.config.slice_bytes_max,
        };
        if let Some(left) = self.leftovers.left.get_mut(&partition) {
            left.reading = true;
        }
        let read = ReadId(self.next_id());
        self.reads.insert(read, ReadFor::Drop(partition));
        self.out.push(Effect::Slice { read, request });
    }

    /// A slice of what is to be dropped was read; `None`: it could not be.
    pub(crate) fn drop_read(&mut self, partition: PartitionId, slice: Option<Slice>) {
        let keyspaces = &self.keyspaces;
        let Some(left) = self.leftovers.left.get_mut(&partition).filter(|left| left.reading) else { return };
        left.reading = false;
        let epoch = left.epoch;
        let Some(slice) = slice else {
            let at = self.now.mono.plus(self.config.handoff_every);
            self.arm(at, Timer::HandOver);
            return;
        };
        if slice.entries.is_empty() {
            let records = left.dropped;
            self.leftovers.left.remove(&partition);
            self.leftovers.stocked.remove(&partition);
            if records > 0 {
                self.out.push(Effect::Event(Event::ResidueDropped { partition, records }));
            }
            return self.arm_handovers();
        }
        // What is left of dropped keyspaces goes by itself.
        let entries: Vec<(StorageKey, Bytes)> =
            slice.entries.into_iter().filter(|(key, _)| !keyspaces.is_dropped(key.keyspace())).collect();
        if entries.is_empty() {
            let at = self.now.mono.plus(self.config.handoff_every);
            return self.arm(at, Timer::HandOver);
        }
        left.dropping = entries.len();
        let bytes = entries.iter().map(|(key, value)| (key.key().len() + value.len()) as u64).sum();
        self.throttle.take(bytes, self.now.mono);
        for (key, _) in entries {
            self.with_key(key, Task::Drop { epoch });
        }
    }

    /// Whether what was compared at an epoch may be deleted.
    pub(crate) fn may_drop(&self, partition: PartitionId, epoch: Epoch) -> bool {
        !self.keeps(partition) && self.leftovers.left.get(&partition).is_some_and(|left| left.epoch == epoch)
    }

    /// A record was deleted, was gone already, or must stay.
    pub(crate) fn drop_made(&mut self, partition: PartitionId, bytes: Option<u64>) {
        let Some(left) = self.leftovers.left.get_mut(&partition) else { return };
        left.dropping = left.dropping.saturating_sub(1);
        if let Some(bytes) = bytes {
            left.dropped += 1;
            let (records, size) = left.size.unwrap_or_default();
            left.size = Some((records.saturating_sub(1), size.saturating_sub(bytes)));
        }
        if left.dropping == 0 {
            // A slice that is read before the deletions are durable may show them again.
            left.reading = true;
            self.hold(self.issued(), Held::Dropped(partition));
        }
    }

    /// The deletions of a slice are durable.
    pub(crate) fn drop_durable(&mut self, partition: PartitionId) {
        if let Some(left) = self.leftovers.left.get_mut(&partition)
            && left.dropping == 0
        {
            left.reading = false;
            self.arm_handovers();
        }
    }

    /// What this node still holds of partitions that it has left.
    #[must_use]
    pub fn residue(&self) -> Vec<Residue> {
        let left = self.leftovers.left.iter().filter_map(|(&partition, left)| {
            let (records, bytes) = left.size?;
            let waiting_for = self.why_left(partition, left);
            Some(Residue { partition, records, bytes, waiting_for })
        });
        left.collect()
    }

    fn why_left(&self, partition: PartitionId, left: &Left) -> Option<String> {
        if let Some((id, _)) = left.exchange {
            return self.exchanges.get(&id)?.waiting_for(self.now.mono).map(|wait| wait.to_string());
        }
        if left.is_busy() {
            return None;
        }
        if self.transfers.paused {
            return Some(Wait::Paused.to_string());
        }
        let open = self.entry(partition)?.nodes().filter(|node| !left.covered.contains(node));
        let why = |node: NodeId| match left.failed.get(&node) {
            _ if !self.is_up(node) => Some(format!("{node} is down")),
            failed => failed.map(|(why, _)| why.clone()),
        };
        let reasons: Vec<String> = open.filter_map(why).collect();
        Some(if reasons.is_empty() { "its turn".to_owned() } else { reasons.join("; ") })
    }

    /// Partitions that are being left, counted or not.
    pub(crate) fn leaving(&self) -> usize {
        self.leftovers.left.len()
    }
}
