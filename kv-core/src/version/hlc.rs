//! Hybrid logical clocks (Kulkarni et al., "Logical Physical Clocks and Consistent Snapshots", 2014).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::types::{Hlc, WallTime};

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

/// The clock of one loop: only the wall clock and accepted timestamps advance it, and it goes back only with a wall clock that was
/// set back.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    last: Hlc,
    /// Nothing is written at or before it.
    floor: Hlc,
    /// The last stamps that were given to requests, those that are credible and those that are too far ahead.
    named: [Hlc; 2],
    set_back: u32,
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

    /// A stamp for a request, above `seen`, and whether it is from too far ahead to be credible elsewhere: more than `limit`. It is unlike
    /// any other one of these, or any other one of the rest, that it has given to a request since it last went back: two requests with one
    /// name would be taken for one. A stamp that was from too far ahead may be given again when its time has come.
    pub fn name(&mut self, wall: WallTime, seen: Hlc, limit: Duration) -> (Hlc, bool) {
        let latest = Hlc::at(wall.plus(limit));
        let far = usize::from(seen >= latest);
        if far == 0 && self.named[0] >= latest {
            // The wall clock was set back a little: who names requests is somebody else from now on.
            self.named = [Hlc::default(); 2];
            self.set_back += 1;
        }
        let stamp = self.tick(wall, seen.max(self.named[far]));
        self.named[far] = stamp;
        (stamp, far == 1)
    }

    /// Nothing is written at or before `floor` any more.
    pub fn raise(&mut self, floor: Hlc) {
        self.last = self.last.max(floor);
        self.floor = self.floor.max(floor);
    }

    /// Goes back to a wall clock that was set back: timestamps from further ahead than is allowed would be refused everywhere.
    pub fn keep_near(&mut self, wall: WallTime, limit: Duration) {
        let latest = Hlc::at(wall.plus(limit));
        if self.last > latest && self.floor < latest {
            self.last = self.floor.max(Hlc::at(wall));
            self.named = [Hlc::default(); 2];
            self.set_back += 1;
        }
    }

    /// How often it went back. What it has given out before it may give out again.
    #[must_use]
    pub fn set_back(&self) -> u32 {
        self.set_back
    }

    /// At or before what nothing is written any more.
    #[must_use]
    pub fn floor(&self) -> Hlc {
        self.floor
    }

    /// What this clock shows: the wall clock, or the latest timestamp that was accepted or given out, if that is later. It is
    /// no timestamp of a write: several may be shown the same.
    #[must_use]
    pub fn reading(&self, wall: WallTime) -> Hlc {
        self.last.max(Hlc::at(wall))
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
