//! What a register remembers of requests: which it has carried out, so that none takes effect twice (rule C5).
//!
//! The list is part of the state on which replicas agree. So it is never older than the value beside it, and no clock decides what it
//! holds: a request that it does not hold, and whose stamp is above all that were forgotten, has never taken effect.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Ballot;
use crate::types::{Hlc, RequestId};

/// How many requests a register remembers at most.
pub(crate) const KEPT: usize = 16;

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// The request.
    pub request: RequestId,
    /// The name of what it wrote; `None`: its condition did not hold, and nothing was done.
    pub version: Option<Ballot>,
}

/// The requests that a register remembers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Requests {
    /// The latest of them by their stamps, in the order in which they came.
    kept: Vec<Done>,
    /// The highest stamp of one that is not remembered any more.
    forgotten: Hlc,
}

/// What is known of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It was never carried out.
    New,
    /// It was.
    Done(Done),
    /// It is as old as some that are not remembered any more: nobody knows.
    Forgotten,
}

impl Requests {
    /// What is known of a request.
    #[must_use]
    pub fn find(&self, request: RequestId) -> Known {
        match self.kept.iter().rev().find(|done| done.request == request) {
            Some(done) => Known::Done(*done),
            None if request.stamp <= self.forgotten => Known::Forgotten,
            None => Known::New,
        }
    }

    /// Remembers a request. Those that are older by `lasts` are forgotten, and of too many the one with the lowest stamp: a stamp from
    /// a clock that is far ahead takes a place, and does not make everything else too old.
    pub fn remember(&mut self, done: Done, lasts: Duration) {
        let stamp = done.request.stamp;
        self.kept.push(done);
        let lowest = self.kept.iter().map(|done| done.request.stamp).min().filter(|_| self.kept.len() > KEPT);
        let forgotten = &mut self.forgotten;
        self.kept.retain(|done| {
            let goes = Some(done.request.stamp) == lowest || done.request.stamp.plus(lasts) < stamp;
            if goes {
                *forgotten = (*forgotten).max(done.request.stamp);
            }
            !goes
        });
    }

    /// The request that wrote a version, if it is remembered.
    #[must_use]
    pub fn that_wrote(&self, version: Ballot) -> Option<RequestId> {
        self.kept.iter().find(|done| done.version == Some(version)).map(|done| done.request)
    }

    /// The highest stamp of all of them, and of those that are forgotten.
    #[must_use]
    pub fn latest(&self) -> Hlc {
        self.kept.iter().map(|done| done.request.stamp).max().unwrap_or_default().max(self.forgotten)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.kept.len()
    }

    /// Whether they are within the bound. What comes from a peer or a disk is checked once.
    pub(super) fn are_valid(&self) -> bool {
        self.kept.len() <= KEPT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LASTS: Duration = Duration::from_mins(10);

    fn done(stamp: u64) -> Done {
        Done { request: RequestId { stamp: Hlc(stamp), client: 1 }, version: None }
    }

    fn request(stamp: u64) -> RequestId {
        done(stamp).request
    }

    #[test]
    fn what_is_forgotten_is_not_taken_for_new() {
        let mut requests = Requests::default();
        for stamp in 1..=KEPT as u64 {
            requests.remember(done(stamp), LASTS);
        }
        assert_eq!(requests.find(request(1)), Known::Done(done(1)));
        requests.remember(done(100), LASTS);
        assert_eq!(requests.len(), KEPT);
        assert_eq!(requests.find(request(1)), Known::Forgotten);
        assert_eq!(requests.find(request(2)), Known::Done(done(2)));
        assert_eq!(requests.find(request(50)), Known::New, "it may come late");
        assert_eq!(requests.latest(), Hlc(100));
        requests.remember(done(50), LASTS);
        assert_eq!(requests.find(request(2)), Known::Forgotten);
        assert_eq!(requests.find(request(50)), Known::Done(done(50)));
        // One that is older than all that are remembered is forgotten at once.
        requests.remember(done(2), LASTS);
        assert_eq!((requests.find(request(2)), requests.find(request(3))), (Known::Forgotten, Known::Done(done(3))));
    }

    #[test]
    fn a_clock_that_is_ahead_does_not_make_everything_too_old() {
        let ahead = Hlc(1000).plus(LASTS).plus(LASTS);
        let mut requests = Requests::default();
        requests.remember(done(ahead.0), LASTS);
        for stamp in 1..100 {
            assert_eq!(requests.find(request(stamp)), Known::New);
            requests.remember(done(stamp), LASTS);
        }
        assert_eq!(requests.latest(), ahead);
    }

    #[test]
    fn old_requests_are_not_kept() {
        let (early, late) = (Hlc(5), Hlc(5).plus(LASTS).next());
        let mut requests = Requests::default();
        requests.remember(done(early.0), LASTS);
        requests.remember(done(late.0), LASTS);
        assert_eq!((requests.len(), requests.find(request(early.0))), (1, Known::Forgotten));
        assert_eq!(requests.latest(), late);
    }
}
