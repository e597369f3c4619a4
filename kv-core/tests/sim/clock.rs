//! The clocks of one machine. Virtual time is the same for all; what a machine reads of it is not.

use kv_core::types::{Monotonic, Now, WallTime};

/// Virtual time, in microseconds since the start of the run.
pub(crate) type Time = u64;

/// A wall clock reading at virtual time 0, so that expiry and timestamps look as in life.
const WALL_START: u64 = 1_700_000_000_000_000;

/// A wall clock that is wrong and drifts, and a monotonic clock that starts again at each boot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MachineClock {
    /// How wrong the wall clock is, in microseconds.
    pub(crate) skew: i64,
    /// How much the wall clock gains, in millionths.
    pub(crate) drift: i64,
    /// Virtual time of the boot.
    pub(crate) booted: Time,
    /// What the monotonic clock showed at the boot.
    pub(crate) mono_start: u64,
}

impl MachineClock {
    /// A correct clock.
    pub(crate) fn new() -> Self {
        Self { skew: 0, drift: 0, booted: 0, mono_start: 0 }
    }

    /// Both readings.
    pub(crate) fn now(&self, time: Time) -> Now {
        Now { mono: Monotonic(self.mono_start + (time - self.booted)), wall: self.wall(time) }
    }

    /// The wall clock's reading.
    pub(crate) fn wall(&self, time: Time) -> WallTime {
        let gained = i64::try_from(time).unwrap_or(i64::MAX).saturating_mul(self.drift) / 1_000_000;
        WallTime((WALL_START + time).saturating_add_signed(self.skew + gained))
    }

    /// The virtual time at which the monotonic clock shows `mono`.
    pub(crate) fn time_of(&self, mono: Monotonic) -> Time {
        self.booted + mono.0.saturating_sub(self.mono_start)
    }
}
