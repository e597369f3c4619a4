//! The timers of one loop, ordered by moment and then by age.

use std::collections::BTreeMap;

use crate::coordinator::OpId;
use crate::replica::{ExchangeId, ReplicationId};
use crate::types::{Monotonic, PartitionId};

/// What a timer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timer {
    /// A request runs out of time.
    Deadline(OpId),
    /// A read asks the replicas that it has not asked yet.
    Hedge(OpId),
    /// A replication is sent again.
    Retry(ReplicationId),
    /// Hints and lag marks are looked for.
    Handoff,
    /// Expired records are looked for.
    Sweep,
    /// A refill or copy looks for its next source.
    Copy(PartitionId),
    /// An exchange goes on, or asks again.
    Exchange(ExchangeId),
    /// Exchanges that wait for the limit on bytes may go on.
    Turns,
    /// What was left of partitions is looked at.
    HandOver,
    /// Two owners compare what they hold.
    Repair,
}

/// Names a timer that is set.
pub(crate) type TimerKey = (Monotonic, u64);

/// The timers that are set.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    set: BTreeMap<TimerKey, Timer>,
    made: u64,
    announced: Option<Monotonic>,
}

impl Timers {
    /// Sets a timer for `at`.
    pub(crate) fn set(&mut self, at: Monotonic, timer: Timer) -> TimerKey {
        self.made += 1;
        let key = (at, self.made);
        self.set.insert(key, timer);
        key
    }

    /// Takes a timer back; nothing happens if it has fired.
    pub(crate) fn cancel(&mut self, key: TimerKey) {
        self.set.remove(&key);
    }

    /// The next timer that is due at `now`.
    pub(crate) fn due(&mut self, now: Monotonic) -> Option<Timer> {
        let entry = self.set.first_entry()?;
        (entry.key().0 <= now).then(|| entry.remove())
    }

    /// When the shell must wake the loop, if that is earlier than what it was told last, or if that moment has passed.
    pub(crate) fn announce(&mut self, now: Monotonic) -> Option<Monotonic> {
        let next = self.set.first_key_value()?.0.0;
        if self.announced.is_some_and(|announced| announced > now && announced <= next) {
            return None;
        }
        self.announced = Some(next);
        Some(next)
    }
}
