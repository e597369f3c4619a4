//! The timers of one loop, ordered by moment and then by age.

use std::collections::BTreeMap;

use crate::types::Monotonic;

/// Names a timer that is set.
pub(crate) type TimerKey = (Monotonic, u64);

/// The timers that are set.
#[derive(Debug)]
pub(crate) struct Timers<T> {
    set: BTreeMap<TimerKey, T>,
    /// Those that are there once at most.
    armed: BTreeMap<T, TimerKey>,
    made: u64,
    announced: Option<Monotonic>,
}

impl<T> Default for Timers<T> {
    fn default() -> Self {
        Self { set: BTreeMap::new(), armed: BTreeMap::new(), made: 0, announced: None }
    }
}

impl<T: Copy + Ord> Timers<T> {
    /// Sets a timer for `at`.
    pub(crate) fn set(&mut self, at: Monotonic, timer: T) -> TimerKey {
        self.made += 1;
        let key = (at, self.made);
        self.set.insert(key, timer);
        key
    }

    /// Sets a timer for `at` unless the same is set for an earlier moment, and takes it back for a later one. What looks
    /// again and again at something that waits uses this: each look would otherwise leave another timer behind.
    pub(crate) fn arm(&mut self, at: Monotonic, timer: T) {
        match self.armed.get(&timer) {
            Some(earlier) if earlier.0 <= at => return,
            Some(&later) => self.cancel(later),
            None => {}
        }
        let key = self.set(at, timer);
        self.armed.insert(timer, key);
    }

    /// Takes a timer of which there is one at most back.
    pub(crate) fn disarm(&mut self, timer: T) {
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
    pub(crate) fn due(&mut self, now: Monotonic) -> Option<T> {
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
            timers.arm(Monotonic(at), 1);
        }
        timers.arm(Monotonic(15), 2);
        assert_eq!(timers.len(), 2);
        assert_eq!(timers.due(Monotonic(9)), None);
        assert_eq!(timers.due(Monotonic(40)), Some(1));
        timers.arm(Monotonic(50), 1);
        assert_eq!(timers.due(Monotonic(40)), Some(2));
        assert_eq!(timers.due(Monotonic(40)), None);
        timers.disarm(1);
        assert_eq!((timers.len(), timers.due(Monotonic(60))), (0, None));
    }
}
