//! Identities of operations (rule A7).

use std::time::{Duration, Instant};

use kv_core::error::RequestError;
use kv_core::types::{Hlc, RequestId, WallTime};
use parking_lot::Mutex;

use crate::v1;

/// Stamps are not before this moment, the beginning of 2020: a client that counts its operations instead is told so.
const STAMP_MIN: WallTime = WallTime(1_577_836_800_000_000);

/// Gives every operation of one session its own identity, with a stamp above every timestamp that the session was shown.
#[derive(Debug)]
pub struct RequestIds {
    session: Mutex<Session>,
}

#[derive(Debug)]
struct Session {
    client: u64,
    /// The time of some node, and when it was that here.
    base: (WallTime, Instant),
    /// The newest timestamp that was shown or given out.
    newest: Hlc,
}

impl RequestIds {
    /// The identities of the session `client`, which the caller draws at random. `time`: that of a node, just now.
    #[must_use]
    pub fn new(client: u64, time: WallTime) -> Self {
        let base = (time, Instant::now());
        Self { session: Mutex::new(Session { client: client.max(1), base, newest: Hlc::default() }) }
    }

    /// The next one; never the same twice.
    pub fn next(&self) -> RequestId {
        let mut session = self.session.lock();
        let now = session.base.0.plus(session.base.1.elapsed());
        session.newest = session.newest.next().max(Hlc::at(now));
        RequestId { stamp: session.newest, client: session.client }
    }

    /// An answer has shown this timestamp.
    pub fn shown(&self, newest: Hlc) {
        let mut session = self.session.lock();
        session.newest = session.newest.max(newest);
    }

    /// A node has refused the stamp of `request` without doing anything; its own time is `newest`. If that is earlier, this
    /// session's time is wrong: it begins again, as another client, so that it gives out nothing twice.
    pub fn refused(&self, request: RequestId, newest: Hlc) {
        let mut session = self.session.lock();
        if newest >= request.stamp {
            session.newest = session.newest.max(newest);
        } else if session.client == request.client {
            // Far from every other number that anybody draws.
            let client = session.client.wrapping_add(0x9e37_79b9_7f4a_7c15).max(1);
            *session = Session { client, base: (newest.wall(), Instant::now()), newest };
        }
    }

    /// For how long a request has been known.
    #[must_use]
    pub fn age(&self, request: RequestId) -> Duration {
        let session = self.session.lock();
        let now = session.base.0.plus(session.base.1.elapsed());
        Duration::from_micros(now.0.saturating_sub(request.stamp.wall().0))
    }
}

impl From<RequestId> for v1::RequestId {
    fn from(id: RequestId) -> Self {
        Self { client: id.client, stamp: id.stamp.0 }
    }
}

impl TryFrom<v1::RequestId> for RequestId {
    type Error = RequestError;

    fn try_from(id: v1::RequestId) -> Result<Self, Self::Error> {
        // A client that forgot to fill it in would have all of its writes taken for repetitions of the first.
        if id.client == 0 {
            return Err(RequestError::invalid(
                "request: client is 0; draw a random number for each session, or leave the request id out to have the node draw one",
            ));
        }
        let stamp = Hlc(id.stamp);
        if stamp.wall() < STAMP_MIN {
            return Err(RequestError::invalid(format!(
                "request: stamp is {}, which is no time after 2019; stamps are microseconds since 1970 times 4096, above the newest \
                 timestamp of every answer; leave the request id out to have the node draw one",
                id.stamp
            )));
        }
        Ok(Self { client: id.client, stamp })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: WallTime = WallTime(1_800_000_000_000_000);

    #[test]
    fn stamps_ascend_and_are_above_what_was_shown() {
        let ids = RequestIds::new(7, TIME);
        let (one, other) = (ids.next(), ids.next());
        assert!(one.stamp >= Hlc::at(TIME) && other.stamp > one.stamp && one.client == other.client);
        let shown = Hlc::at(TIME.plus(Duration::from_secs(3600)));
        ids.shown(shown);
        assert_eq!(ids.next().stamp, shown.next());
        ids.shown(one.stamp);
        assert_eq!(ids.next().stamp, shown.next().next(), "it does not go back");
        assert!(ids.age(one) < Duration::from_secs(600));
    }

    #[test]
    fn a_session_whose_time_is_wrong_begins_again_as_another_client() {
        let ids = RequestIds::new(7, TIME);
        let request = ids.next();
        let later = request.stamp.plus(Duration::from_secs(1));
        ids.refused(request, later);
        let again = ids.next();
        assert!(again.client == 7 && again.stamp > later, "overtaken");
        let earlier = Hlc::at(WallTime(TIME.0 - 3_600_000_000));
        ids.refused(again, earlier);
        let restarted = ids.next();
        assert!(restarted.client != 7 && restarted.stamp > earlier && restarted.stamp < request.stamp);
        ids.refused(again, earlier);
        assert_eq!(ids.next().client, restarted.client, "once for all that were under way");
    }
}
