//! The timers of one loop, ordered by moment and then by age.

use std::collections::BTreeMap;

use crate::coordinator::OpId;
use crate::replica::{ExchangeId, ReplicationId};
use crate::types::{Monotonic, NodeId, PartitionId};

/// What a timer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// A request runs out of time.
    Deadline(OpId),
    /// A read asks the replicas that it has not asked yet, a forwarded request another owner.
    Hedge(OpId),
    /// A replication is sent again.
    Retry(ReplicationId),
    /// A peer of which something was asked may be silent.
    Watch(NodeId),
    /// Hints and lag marks are looked for.
    Handoff,
    /// Expired records are looked for.
    Sweep,
    /// What is stored of dropped keyspaces is removed, a slice at a time.
    Purge,
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
    /// Comparisons that are owed and failed are tried again.
    Owed,
    /// What was given up long ago does not count any more.
    GivenUp,
}

/// Names a timer that is set.
pub(crate) type TimerKey = (Monotonic, u64);

/// The timers that are set.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    set: BTreeMap<TimerKey, Timer>,
    /// Those that are there once at most.
    armed: BTreeMap<Timer, TimerKey>,
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

    /// Sets a timer for `at` unless the same is set for an earlier moment, and takes it back for a later one. What looks
    /// again and again at something that waits uses this: each look would otherwise leave another timer behind.
    pub(crate) fn arm(&mut self, at: Monotonic, timer: Timer) {
        match self.armed.get(&timer) {
            Some(earlier) if earlier.0 <= at => return,
            Some(&later) => self.cancel(later),
            None => {}
        }
        let key = self.set(at, timer);
        self.armed.insert(timer, key);
    }

    /// Takes a timer of which there is one at most back.
    pub(crate) fn disarm(&mut self, timer: Timer) {
        if let Some(key) = self.armed.remove(&timer) {
            self.cancel(key);
        }
    }

    /// How many are set.
    pub(crate) fn len(&self) -> usize {
        self.set.len()
    }

    /// Takes a timer back; nothing happens if it has fired.
    pub(crate) fn cancel(&mut self, key: TimerKey) {
        self.set.remove(&key);
    }

    /// The next timer that is due at `now`.
    pub(crate) fn due(&mut self, now: Monotonic) -> Option<Timer> {
        let (key, timer) =
            self.set.first_key_value().filter(|(key, _)| key.0 <= now).map(|(&key, &timer)| (key, timer))?;
        self.set.remove(&key);
        if self.armed.get(&timer) == Some(&key) {
            self.armed.remove(&timer);
        }
        Some(timer)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_armed_timer_is_there_once_and_fires_at_the_earliest_moment() {
        let mut timers = Timers::default();
        for at in [30, 10, 20, 10] {
            timers.arm(Monotonic(at), Timer::HandOver);
        }
        timers.arm(Monotonic(15), Timer::Owed);
        assert_eq!(timers.len(), 2);
        assert_eq!(timers.due(Monotonic(9)), None);
        assert_eq!(timers.due(Monotonic(40)), Some(Timer::HandOver));
        timers.arm(Monotonic(50), Timer::HandOver);
        assert_eq!(timers.due(Monotonic(40)), Some(Timer::Owed));
        assert_eq!(timers.due(Monotonic(40)), None);
        timers.disarm(Timer::HandOver);
        assert_eq!((timers.len(), timers.due(Monotonic(60))), (0, None));
    }
}
