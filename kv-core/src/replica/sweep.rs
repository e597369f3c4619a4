//! The sweeper: expired values become tombstones, so that they leave the counts within a stated bound.
//!
//! Partitions take turns. One whose records are all known not to expire before some moment is left alone until then.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::event::Event;
use crate::node::keys::{ReadFor, Task};
use crate::node::timers::Timer;
use crate::node::{Effect, Node, ReadId};
use crate::storage::{Slice, SliceRequest, Space, StorageKey, Stored};
use crate::types::{KeyspaceId, PartitionId, WallTime};

/// Turns are never closer together than this, however many partitions there are.
const TURN_MIN: Duration = Duration::from_millis(10);

/// Where the sweeper is, and what it knows.
#[derive(Debug, Default)]
pub(crate) struct Sweeper {
    /// For each partition that was looked at since the start: the earliest moment at which something in it expires.
    known: BTreeMap<PartitionId, Option<WallTime>>,
    /// The partition whose turn it is, the place in it, and the earliest expiry met so far.
    turn: Option<(PartitionId, StorageKey, Option<WallTime>)>,
    /// The partition that was looked at last.
    last: Option<PartitionId>,
    /// Records swept in this turn.
    swept: u64,
}

impl Node {
    /// Something in `partition` expires at that moment.
    pub(crate) fn note_expiry(&mut self, partition: PartitionId, expires: Option<WallTime>) {
        if let (Some(known), Some(expires)) = (self.sweeper.known.get_mut(&partition), expires) {
            *known = Some(known.map_or(expires, |known| known.min(expires)));
        }
        if let (Some((turn, _, earliest)), Some(expires)) = (&mut self.sweeper.turn, expires)
            && *turn == partition
        {
            *earliest = Some(earliest.map_or(expires, |earliest| earliest.min(expires)));
        }
    }

    /// Goes on with the partition whose turn it is, or gives the next one its turn.
    pub(crate) fn sweep_pass(&mut self) {
        if self.sweeper.turn.is_none() {
            self.sweeper.turn = self.next_turn().map(|partition| {
                let start = StorageKey::new(Space::Owned, partition, KeyspaceId(0), &[]);
                (partition, start, None)
            });
            self.sweeper.swept = 0;
        }
        let Some((partition, from, _)) = self.sweeper.turn.clone() else {
            self.arm(self.now.mono.plus(self.turn_length()), Timer::Sweep);
            return;
        };
        let request = SliceRequest {
            from,
            until: StorageKey::partition_end(Space::Owned, partition),
            entries_max: self.config.slice_entries_max,
            bytes_max: self.config.slice_bytes_max,
        };
        let read = ReadId(self.next_id());
        self.reads.insert(read, ReadFor::Sweep(partition));
        self.out.push(Effect::Slice { read, request });
    }

    /// A slice was read; `None`: it could not be.
    pub(crate) fn sweep_read(&mut self, partition: PartitionId, slice: Option<Slice>) {
        let Some((_, _, mut earliest)) = self.sweeper.turn.take() else { return };
        let slice = slice.unwrap_or_default();
        for (key, bytes) in &slice.entries {
            if self.is_dropped(key.keyspace()) {
                continue;
            }
            let Ok(stored) = Stored::decode(bytes) else {
                self.mend(key);
                continue;
            };
            let Some(expires) = stored.record.expires() else { continue };
            if expires <= self.now.wall {
                self.with_key(key.clone(), Task::Sweep);
            } else {
                earliest = Some(earliest.map_or(expires, |earliest| earliest.min(expires)));
            }
        }
        match slice.entries.last() {
            Some((last, _)) if slice.more => {
                self.sweeper.turn = Some((partition, last.successor(), earliest));
                self.arm(self.now.mono.plus(TURN_MIN), Timer::Sweep);
            }
            _ => {
                self.sweeper.known.insert(partition, earliest);
                self.sweeper.last = Some(partition);
                if self.sweeper.swept > 0 {
                    self.out.push(Effect::Event(Event::Swept { records: self.sweeper.swept }));
                }
                self.arm(self.now.mono.plus(self.turn_length()), Timer::Sweep);
            }
        }
    }

    /// The record is in memory: sweep it.
    pub(crate) fn sweep_record(&mut self, key: &StorageKey, stored: Option<&Stored>) {
        let Some(stored) = stored else { return };
        let mut record = stored.record.clone();
        if record.sweep(self.now.wall) {
            self.sweeper.swept += 1;
            self.note_expiry(key.partition(), record.expires());
            self.put(key, Some(Stored { own: stored.own, record }));
        }
    }

    /// The next owned partition, in turn, that may hold something expired.
    fn next_turn(&self) -> Option<PartitionId> {
        let layout = self.layout.as_ref()?;
        let is_due = |partition: &PartitionId| {
            self.owns(*partition)
                && match self.sweeper.known.get(partition) {
                    None => true,
                    Some(earliest) => earliest.is_some_and(|earliest| earliest <= self.now.wall),
                }
        };
        let last = self.sweeper.last;
        let behind = layout.partition_ids().filter(|&partition| last.is_none_or(|last| partition > last)).find(is_due);
        behind.or_else(|| layout.partition_ids().find(is_due))
    }

    /// How long a turn lasts, so that every partition has had one within `sweep_every`.
    fn turn_length(&self) -> Duration {
        let partitions = self.layout.as_ref().map_or(1, |layout| layout.partition_count());
        (self.config.sweep_every / partitions.max(1)).max(TURN_MIN)
    }
}
