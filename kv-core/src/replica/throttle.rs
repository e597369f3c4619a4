//! How fast bulk may go: a bucket of bytes that fills at a steady rate.

use std::num::NonZeroU64;
use std::time::Duration;

use crate::types::Monotonic;

/// What may have gathered while nothing was taken. Enough to bridge the time until an answer comes.
const BURST: Duration = Duration::from_millis(100);

/// A rate that is kept on average. What is taken is known only afterwards, so it is paid back by waiting.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Throttle {
    bytes_per_second_max: Option<NonZeroU64>,
    /// When everything taken so far is paid for.
    free_at: Monotonic,
}

impl Throttle {
    /// Sets the rate; `None`: no limit. What was taken at another rate is forgiven.
    pub(crate) fn limit(&mut self, bytes_per_second_max: Option<NonZeroU64>, now: Monotonic) {
        if self.bytes_per_second_max != bytes_per_second_max {
            self.bytes_per_second_max = bytes_per_second_max;
            self.free_at = self.free_at.min(now);
        }
    }

    /// Notes that so many bytes were taken.
    pub(crate) fn take(&mut self, bytes: u64, now: Monotonic) {
        let Some(rate) = self.bytes_per_second_max else { return };
        let burst = u64::try_from(BURST.as_micros()).unwrap_or(u64::MAX);
        let from = self.free_at.max(Monotonic(now.0.saturating_sub(burst)));
        let micros = u128::from(bytes) * 1_000_000 / u128::from(rate.get());
        self.free_at = from.plus(Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX)));
    }

    /// When more may be taken, if not now.
    pub(crate) fn wait(&self, now: Monotonic) -> Option<Monotonic> {
        (self.bytes_per_second_max.is_some() && self.free_at > now).then_some(self.free_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    #[test]
    fn the_rate_is_kept_on_average() {
        let mut throttle = Throttle::default();
        let mut now = Monotonic(100 * SECOND);
        let start = now;
        throttle.limit(NonZeroU64::new(1000), now);
        for _ in 0..50 {
            throttle.take(100, now);
            now = throttle.wait(now).unwrap_or(now);
        }
        // 5,000 bytes, 100 of them at once.
        assert_eq!(now.since(start), Duration::from_millis(4900));
    }

    #[test]
    fn without_a_limit_nothing_waits() {
        let mut throttle = Throttle::default();
        throttle.take(u64::MAX, Monotonic(5));
        assert_eq!(throttle.wait(Monotonic(5)), None);
    }

    #[test]
    fn another_rate_forgives_what_was_taken() {
        let mut throttle = Throttle::default();
        throttle.limit(NonZeroU64::new(1), Monotonic(SECOND));
        throttle.take(1000, Monotonic(SECOND));
        assert!(throttle.wait(Monotonic(SECOND)).is_some());
        throttle.limit(NonZeroU64::new(1000), Monotonic(SECOND));
        assert_eq!(throttle.wait(Monotonic(SECOND)), None);
    }

    #[test]
    fn an_idle_time_is_not_saved_up() {
        let mut throttle = Throttle::default();
        throttle.limit(NonZeroU64::new(1000), Monotonic(0));
        throttle.take(1000, Monotonic(60 * SECOND));
        assert_eq!(throttle.wait(Monotonic(60 * SECOND)), Some(Monotonic(60 * SECOND + 900_000)));
    }
}
