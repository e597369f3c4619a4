//! Hinted handoff: hints and lag marks are delivered to all current owners as soon as these can be reached (rule A5).
//!
//! A pass walks through the hint space and the lag space in slices. A hint is removed only when every current owner has
//! durably confirmed a record that dominates it, and only if it has not changed since it was sent.

use crate::event::Event;
use crate::message::Role;
use crate::node::keys::{Applied, ReadFor, Task};
use crate::node::timers::Timer;
use crate::node::{Effect, Node, ReadId};
use crate::replica::{Goal, Target};
use crate::rule::Rule;
use crate::storage::{Slice, SliceRequest, Space, StorageKey, Stored};
use crate::types::{Epoch, NodeId};
use crate::version::Record;

/// The walk through what is to be delivered.
#[derive(Debug, Default)]
pub(crate) struct HandoffPass {
    /// Where the next slice starts, while a pass is under way.
    cursor: Option<StorageKey>,
    /// Whether the current slice was the last.
    last: bool,
    /// Whether the current slice is still being read.
    reading: bool,
    /// Entries of the current slice that are not settled.
    in_flight: usize,
    /// Entries of this pass that every owner confirmed.
    delivered: u64,
    /// Whether something happened since the pass began that deserves another one at once.
    again: bool,
    /// Whether a timer for the next pass is set.
    pub(crate) armed: bool,
}

impl Node {
    /// Looks through all hints and lag marks, unless that is being done.
    pub(crate) fn handoff_pass(&mut self) {
        self.handoff.armed = false;
        if self.handoff.cursor.is_some() {
            self.handoff.again = true;
            return;
        }
        if self.hints + self.lagging == 0 {
            return;
        }
        self.handoff.cursor = Some(StorageKey::space_start(Space::Hint));
        self.handoff.delivered = 0;
        self.handoff_slice();
    }

    /// A hint or lag mark is there: make sure that a pass will come.
    pub(crate) fn arm_handoff(&mut self) {
        if !self.handoff.armed && self.handoff.cursor.is_none() {
            self.handoff.armed = true;
            let at = self.now.mono.plus(self.config.handoff_every);
            self.arm(at, Timer::Handoff);
        }
    }

    fn handoff_slice(&mut self) {
        let Some(from) = self.handoff.cursor.clone() else { return };
        let request = SliceRequest {
            from,
            until: StorageKey::space_end(Space::Lag),
            entries_max: self.config.handoffs_max,
            bytes_max: self.config.slice_bytes_max,
        };
        let read = ReadId(self.next_id());
        self.reads.insert(read, ReadFor::HandOff);
        self.handoff.reading = true;
        self.out.push(Effect::Slice { read, request });
    }

    pub(crate) fn handoff_read(&mut self, slice: &Slice) {
        self.handoff.reading = false;
        self.handoff.last = !slice.more;
        self.handoff.cursor = slice.entries.last().map(|entry| entry.0.successor()).or(self.handoff.cursor.take());
        // Counted first: an entry may settle before the next is looked at.
        let mine: Vec<StorageKey> = slice
            .entries
            .iter()
            .map(|entry| entry.0.clone())
            .filter(|key| self.config.partitions.contains(key.partition()) && self.can_hand_off(key))
            .filter(|key| !self.is_dropped(key.keyspace()))
            .collect();
        self.handoff.in_flight = mine.len();
        for key in mine {
            let space = key.space();
            let held = if space == Space::Lag { key.in_space(Space::Owned) } else { key };
            self.with_key(held, Task::HandOff { space });
        }
        self.handoff_go_on();
    }

    /// The slice could not be read: the next pass tries again.
    pub(crate) fn handoff_unreadable(&mut self) {
        self.handoff.reading = false;
        self.handoff.last = true;
        self.handoff_go_on();
    }

    /// Whether any owner but this node can be reached.
    fn can_hand_off(&self, key: &StorageKey) -> bool {
        self.entry(key.partition()).is_some_and(|entry| {
            let others = || entry.nodes().filter(|&node| node != self.config.node);
            others().next().is_none() || others().any(|node| self.is_up(node))
        })
    }

    /// The record is in memory: send it to every owner.
    pub(crate) fn hand_off(&mut self, key: &StorageKey, space: Space, stored: Option<&Stored>) {
        let Some(stored) = stored else {
            // A lag mark without a record has nothing to deliver; a hint that is gone has been delivered.
            if space == Space::Lag {
                self.with_key(key.in_space(Space::Lag), Task::Unmark);
            }
            self.handoff_settled(false);
            return;
        };
        let record = stored.record.clone();
        if space == Space::Hint && self.owns(key.partition()) {
            // This node has become an owner itself: its own copy first.
            self.with_key(key.in_space(Space::Owned), Task::Apply { record, applied: Applied::OwnHint });
        } else {
            self.hand_off_to_others(key, space, record, None);
        }
    }

    /// Sends a record to every other owner. `own`: the epoch at which this node's own copy of it was made.
    pub(crate) fn hand_off_to_others(&mut self, key: &StorageKey, space: Space, record: Record, own: Option<Epoch>) {
        let me = self.config.node;
        let owners: Vec<NodeId> = self.entry(key.partition()).map(|entry| entry.nodes().collect()).unwrap_or_default();
        let targets =
            owners.into_iter().filter(|&owner| owner != me).map(|owner| Target::new(owner, Role::Owner)).collect();
        let digest = record.digest();
        self.start_replication(key.clone(), record, targets, Goal::HandOff { space, digest, own });
    }

    /// The record could not be read.
    pub(crate) fn handoff_skipped(&mut self) {
        self.handoff_settled(false);
    }

    /// Whether this node needs no copy of a hint among those that it owns, or has one. It may have become an owner after
    /// the hint was sent to the others: then nobody has told it yet.
    pub(crate) fn has_own_copy(&self, key: &StorageKey, space: Space, own: Option<Epoch>) -> bool {
        let mine = self.entry(key.partition()).and_then(|entry| entry.owner(self.config.node));
        space != Space::Hint || mine.is_none_or(|owner| own.is_some_and(|made| owner.since <= made))
    }

    /// Everybody has confirmed the record, or was given up.
    pub(crate) fn handed_off(&mut self, key: &StorageKey, space: Space, digest: u64, confirmed: bool) {
        if confirmed || !self.rules.keep(Rule::KeepHintUntilConfirmed) {
            let task = match space {
                Space::Lag => Task::UnmarkUnchanged { digest },
                Space::Hint | Space::Owned => Task::RemoveHint { digest },
            };
            self.with_key(key.clone(), task);
        }
        self.handoff_settled(confirmed);
    }

    fn handoff_settled(&mut self, delivered: bool) {
        self.handoff.delivered += u64::from(delivered);
        self.handoff.in_flight = self.handoff.in_flight.saturating_sub(1);
        self.handoff_go_on();
    }

    fn handoff_go_on(&mut self) {
        if self.handoff.in_flight > 0 || self.handoff.reading || self.handoff.cursor.is_none() {
            return;
        }
        if !self.handoff.last {
            self.handoff_slice();
            return;
        }
        self.handoff.cursor = None;
        if self.handoff.delivered > 0 {
            self.out.push(Effect::Event(Event::HandedOff { records: self.handoff.delivered }));
        }
        if std::mem::take(&mut self.handoff.again) {
            self.handoff.armed = true;
            self.arm(self.now.mono, Timer::Handoff);
        } else if self.hints + self.lagging > 0 {
            self.arm_handoff();
        }
    }
}
