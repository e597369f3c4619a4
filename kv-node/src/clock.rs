//! The clocks of the process: the one place where the node reads time.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use kv_core::types::{Monotonic, Now, WallTime};

/// Reads both clocks. Copies agree on the start of the monotonic one.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
    /// By how many milliseconds the wall clock is shown wrong, for tests and drills. Copies share it for as long as the process runs.
    ahead_ms: &'static AtomicI64,
}

impl Clock {
    /// A clock whose monotonic reading starts near zero.
    #[must_use]
    pub fn start() -> Self {
        Self { start: Instant::now(), ahead_ms: Box::leak(Box::default()) }
    }

    /// Shows the wall clock wrong by so many milliseconds from now on.
    pub fn set_ahead(&self, ms: i64) {
        self.ahead_ms.store(ms, Ordering::Relaxed);
    }

    /// By how many milliseconds the wall clock is shown wrong.
    #[must_use]
    pub fn ahead_ms(&self) -> i64 {
        self.ahead_ms.load(Ordering::Relaxed)
    }

    /// Both clocks now.
    #[must_use]
    pub fn now(&self) -> Now {
        let mono = u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX);
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let wall = u64::try_from(wall.as_micros()).unwrap_or(u64::MAX);
        Now { mono: Monotonic(mono), wall: WallTime(wall.saturating_add_signed(self.ahead_ms().saturating_mul(1000))) }
    }

    /// The wall clock's reading at a moment of the monotonic one.
    #[must_use]
    pub fn wall_at(&self, at: Monotonic) -> WallTime {
        let now = self.now();
        let ago = now.mono.0.saturating_sub(at.0);
        WallTime(now.wall.0.saturating_sub(ago))
    }
}
