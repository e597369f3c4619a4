//! How fast bulk may go: a bucket that fills with bytes at a steady rate.
//!
//! A question is booked before it is asked, with as much as its answer may bring, and settled when the answer is there. So
//! several questions under way at once never bring more together than the bucket allows, whatever their number, and an
//! answer that brings less gives the rest back to those that wait. Over any time `t`, at most `rate * (t + BURST)` bytes are
//! booked, but for one record that is larger than a question may be; and as long as somebody wants more, no less.

use std::num::NonZeroU64;
use std::time::Duration;

use crate::types::Monotonic;

/// What may have gathered while nothing was booked: it bridges the time in which copies only compare.
const BURST: Duration = Duration::from_millis(500);

/// What one question may bring, as a part of what the rate allows: small enough that several copies take turns.
const SHARE: Duration = Duration::from_millis(100);

/// Millionths of a byte, so that a rate in bytes a second times microseconds is a whole number.
const MICRO: i128 = 1_000_000;

/// A limit on bytes a second, if there is one.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Throttle {
    bytes_per_second_max: Option<NonZeroU64>,
    /// Millionths of bytes that are booked and not paid for at `at`; below zero: what has gathered.
    debt: i128,
    at: Monotonic,
}

/// What a question may bring, until it is known what it brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub(crate) struct Booking {
    /// The limit under which it was booked. What is booked under one is nothing to another.
    under: Option<NonZeroU64>,
    bytes: u64,
}

/// The most bytes that one question may ask for where so many bytes a second are allowed.
pub(crate) fn share(rate: NonZeroU64) -> usize {
    let part = (u128::from(rate.get()) * SHARE.as_micros() / MICRO.unsigned_abs()).max(1);
    usize::try_from(part).unwrap_or(usize::MAX)
}

impl Throttle {
    /// Sets the rate; `None`: no limit. What was booked at another rate is forgiven, and what had gathered is lost.
    pub(crate) fn limit(&mut self, bytes_per_second_max: Option<NonZeroU64>, now: Monotonic) {
        if self.bytes_per_second_max != bytes_per_second_max {
            *self = Self { bytes_per_second_max, debt: 0, at: now };
        }
    }

    /// Books what a question may bring.
    pub(crate) fn book(&mut self, bytes: u64, now: Monotonic) -> Booking {
        self.change(i128::from(bytes), now);
        Booking { under: self.bytes_per_second_max, bytes }
    }

    /// A question that was booked brought so many bytes.
    pub(crate) fn settle(&mut self, booking: Booking, bytes: u64, now: Monotonic) {
        let booked = if booking.under == self.bytes_per_second_max { booking.bytes } else { 0 };
        self.change(i128::from(bytes) - i128::from(booked), now);
    }

    /// Notes that so many bytes were taken without having been booked.
    pub(crate) fn take(&mut self, bytes: u64, now: Monotonic) {
        self.change(i128::from(bytes), now);
    }

    /// When more may be booked, if not now.
    pub(crate) fn wait(&self, now: Monotonic) -> Option<Monotonic> {
        let rate = i128::from(self.bytes_per_second_max?.get());
        let debt = self.debt_at(now);
        let micros = u64::try_from((debt + rate - 1) / rate).unwrap_or(u64::MAX);
        (debt > 0).then(|| now.plus(Duration::from_micros(micros)))
    }

    fn debt_at(&self, now: Monotonic) -> i128 {
        let rate = i128::from(self.bytes_per_second_max.map_or(0, NonZeroU64::get));
        let micros = |time: Duration| i128::try_from(time.as_micros()).unwrap_or(i128::from(u64::MAX));
        (self.debt - rate * micros(now.since(self.at))).max(-rate * micros(BURST))
    }

    fn change(&mut self, bytes: i128, now: Monotonic) {
        if self.bytes_per_second_max.is_some() {
            self.debt = self.debt_at(now) + bytes * MICRO;
            self.at = self.at.max(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000;

    fn limited(bytes: u64, now: u64) -> Throttle {
        let mut throttle = Throttle::default();
        throttle.limit(NonZeroU64::new(bytes), Monotonic(now));
        throttle
    }

    #[test]
    fn the_rate_is_kept_exactly() {
        let mut now = Monotonic(100 * SECOND);
        let (start, mut throttle) = (now, limited(1000, 100 * SECOND));
        for _ in 0..50 {
            throttle.take(100, now);
            now = throttle.wait(now).unwrap_or(now);
        }
        assert_eq!(now.since(start), Duration::from_secs(5));
    }

    #[test]
    fn without_a_limit_nothing_waits() {
        let mut throttle = Throttle::default();
        throttle.take(u64::MAX, Monotonic(5));
        assert_eq!(throttle.wait(Monotonic(5)), None);
    }

    #[test]
    fn another_rate_forgives_what_was_taken_and_saves_nothing() {
        let mut throttle = limited(1, SECOND);
        throttle.take(1000, Monotonic(SECOND));
        assert!(throttle.wait(Monotonic(SECOND)).is_some());
        let booking = throttle.book(500, Monotonic(SECOND));
        throttle.limit(NonZeroU64::new(1000), Monotonic(SECOND));
        assert_eq!(throttle.wait(Monotonic(SECOND)), None);
        throttle.settle(booking, 100, Monotonic(SECOND));
        assert_eq!(throttle.wait(Monotonic(SECOND)), Some(Monotonic(SECOND + 100_000)), "what it brings counts now");
    }

    #[test]
    fn no_more_than_a_burst_is_saved_up() {
        let mut throttle = limited(1000, 0);
        throttle.take(1000, Monotonic(60 * SECOND));
        assert_eq!(throttle.wait(Monotonic(60 * SECOND)), Some(Monotonic(60 * SECOND + 500_000)));
    }

    #[test]
    fn what_a_question_does_not_bring_is_given_back() {
        let mut throttle = limited(1000, 0);
        let booking = throttle.book(100, Monotonic(0));
        assert_eq!(throttle.wait(Monotonic(0)), Some(Monotonic(100_000)));
        throttle.settle(booking, 30, Monotonic(10_000));
        assert_eq!(throttle.wait(Monotonic(10_000)), Some(Monotonic(30_000)));
    }

    #[test]
    fn small_amounts_at_high_rates_add_up() {
        let mut throttle = limited(1 << 40, 0);
        for _ in 0..1 << 20 {
            throttle.take(1, Monotonic(0));
        }
        assert_eq!(throttle.wait(Monotonic(0)), Some(Monotonic(1)), "a mebibyte takes just under a microsecond");
    }

    /// One copy: how long its questions are under way, how many hundredths each brings of what it may, and how long it
    /// compares between two of them.
    #[derive(Clone, Debug)]
    struct Copy {
        answer_us: u64,
        part_of_share: u64,
        pause_us: u64,
    }

    fn any_copy() -> impl Strategy<Value = Copy> {
        (100..60_000_u64, 5..120_u64, 0..300_000_u64).prop_map(|(answer_us, part_of_share, pause_us)| Copy {
            answer_us,
            part_of_share,
            pause_us,
        })
    }

    /// What a copy does until a moment.
    #[derive(Clone, Copy, Debug)]
    enum Doing {
        Comparing,
        Waiting,
        Asking(Booking),
    }

    /// Runs copies beside each other for some time; returns when how many bytes arrived. Wake-ups are late by `late_us`.
    fn run(rate: u64, copies: &[Copy], late_us: u64, seconds: u64) -> Vec<(u64, u64)> {
        let mut throttle = limited(rate, 0);
        let share = share(NonZeroU64::new(rate).unwrap()) as u64;
        let mut next: Vec<(u64, Doing)> = copies.iter().map(|_| (0, Doing::Comparing)).collect();
        let mut arrived = Vec::new();
        loop {
            let (index, &(now, doing)) = next.iter().enumerate().min_by_key(|(_, next)| next.0).unwrap();
            if now > seconds * SECOND {
                return arrived;
            }
            let (copy, at) = (&copies[index], Monotonic(now));
            next[index] = if let Doing::Asking(booking) = doing {
                let bytes = (share * copy.part_of_share / 100).max(1);
                throttle.settle(booking, bytes, at);
                arrived.push((now, bytes));
                let due = throttle.wait(at).map_or(now, |at| at.0) + late_us;
                for (wake, _) in next.iter_mut().filter(|next| matches!(next.1, Doing::Waiting)) {
                    *wake = due;
                }
                (now + copy.pause_us, Doing::Comparing)
            } else if let Some(until) = throttle.wait(at) {
                (until.0 + late_us, Doing::Waiting)
            } else {
                (now + copy.answer_us, Doing::Asking(throttle.book(share, at)))
            };
        }
    }

    proptest! {
        /// However many copies there are and however small their answers: the rate is reached within a hundredth once
        /// it is steady, and never passed by more than a burst and the questions under way.
        #[test]
        fn copies_together_take_what_the_rate_allows(
            rate in prop::sample::select(vec![2_000, 61_440, 1_000_000, 50_000_000_u64]),
            copies in prop::collection::vec(any_copy(), 1..6),
            late_us in 0..3_000_u64,
        ) {
            // The first alone must be able to use the rate.
            let mut copies = copies;
            copies[0] = Copy { answer_us: copies[0].answer_us.min(20_000), part_of_share: 90, pause_us: 0 };
            let arrived = run(rate, &copies, late_us, 30);
            let within = |from: u64, to: u64| -> u64 {
                arrived.iter().filter(|(at, _)| (from..to).contains(at)).map(|(_, bytes)| bytes).sum()
            };
            #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
            let used = within(5 * SECOND, 30 * SECOND) as f64 / (25 * rate) as f64;
            prop_assert!((0.97..1.03).contains(&used), "{used} of the rate");
            let share = rate / 10 + 1;
            for from in 0..30 {
                for seconds in 1..=5 {
                    let most = rate * seconds + rate / 2 + 2 * share * copies.len() as u64;
                    let found = within(from * SECOND, (from + seconds) * SECOND);
                    prop_assert!(found <= most, "{found} bytes in {seconds} s from {from} s, {most} are allowed");
                }
            }
        }
    }
}
