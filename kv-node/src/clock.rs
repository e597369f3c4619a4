//! The clocks of the process: the one place where the node reads time.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use kv_core::types::{Monotonic, Now, WallTime};

/// Reads both clocks. Copies agree on the start of the monotonic one.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
    /// By how many microseconds the wall clock is shown wrong, for tests.
    ahead_us: i64,
}

impl Clock {
    /// A clock whose monotonic reading starts near zero.
    #[must_use]
    pub fn start() -> Self {
        Self { start: Instant::now(), ahead_us: 0 }
    }

    /// The same with a wall clock that is wrong by so many milliseconds.
    #[must_use]
    pub fn ahead_by(self, ms: i64) -> Self {
        Self { ahead_us: ms.saturating_mul(1000), ..self }
    }

    /// Both clocks now.
    #[must_use]
    pub fn now(&self) -> Now {
        let mono = u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX);
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let wall = u64::try_from(wall.as_micros()).unwrap_or(u64::MAX);
        Now { mono: Monotonic(mono), wall: WallTime(wall.saturating_add_signed(self.ahead_us)) }
    }

    /// The wall clock's reading at a moment of the monotonic one.
    #[must_use]
    pub fn wall_at(&self, at: Monotonic) -> WallTime {
        let now = self.now();
        let ago = now.mono.0.saturating_sub(at.0);
        WallTime(now.wall.0.saturating_sub(ago))
    }
}
