//! Hybrid logical clocks (Kulkarni et al., "Logical Physical Clocks and Consistent Snapshots", 2014).

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::types::WallTime;

/// Bits of the logical counter below the microseconds. 52 bits of microseconds reach the year 2112.
const LOGICAL_BITS: u32 = 12;

/// A timestamp: microseconds of the wall clock, then a logical counter for what happens within one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Hlc(pub u64);

impl Hlc {
    /// The first timestamp of the moment.
    #[must_use]
    pub fn at(wall: WallTime) -> Self {
        Self(wall.0.min(u64::MAX >> LOGICAL_BITS) << LOGICAL_BITS)
    }

    /// The wall clock part.
    #[must_use]
    pub fn wall(self) -> WallTime {
        WallTime(self.0 >> LOGICAL_BITS)
    }

    /// The next timestamp.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Hlc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.wall().0, self.0 & ((1 << LOGICAL_BITS) - 1))
    }
}

/// A timestamp lies further in the future than the cluster allows (rule A8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error(
    "the timestamp is {ahead_ms} ms ahead of this node's clock, {limit_ms} ms are allowed; \
     set the clocks of both nodes (for instance with NTP) and try again"
)]
pub struct ClockSkew {
    /// How far ahead, in milliseconds.
    pub ahead_ms: u64,
    /// The limit, in milliseconds.
    pub limit_ms: u64,
}

/// The clock of one loop: it never goes back, and only the wall clock and accepted timestamps advance it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    last: Hlc,
}

impl Clock {
    /// A timestamp above every one that this clock has accepted, and above `seen`, the latest that the write replaces
    /// (rule A8: a new write exceeds every timestamp that its coordinator sees).
    ///
    /// `seen` raises this timestamp but not the clock: where conflicts are kept as siblings, records from nodes with
    /// wrong clocks are taken, and one of these must not carry every other key's timestamps into the future.
    pub fn tick(&mut self, wall: WallTime, seen: Hlc) -> Hlc {
        self.last = Hlc::at(wall).max(self.last.next());
        self.last.max(seen.next())
    }

    /// Nothing is written at or before `floor` any more.
    pub fn raise(&mut self, floor: Hlc) {
        self.last = self.last.max(floor);
    }

    /// Accepts a timestamp from elsewhere.
    ///
    /// # Errors
    /// If it is more than `limit` ahead of `wall`; the clock then stays as it was.
    pub fn observe(&mut self, wall: WallTime, remote: Hlc, limit: Duration) -> Result<(), ClockSkew> {
        let ahead = remote.wall().0.saturating_sub(wall.0);
        let limit_us = u64::try_from(limit.as_micros()).unwrap_or(u64::MAX);
        if ahead > limit_us {
            return Err(ClockSkew { ahead_ms: ahead / 1000, limit_ms: limit_us / 1000 });
        }
        self.last = self.last.max(remote);
        Ok(())
    }
}
