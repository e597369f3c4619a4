//! Whether a node still answers: something is awaited from it, and for how long nothing at all has come.
//!
//! A node that is slow is not stalled: after a third of the time it is asked to show itself, which it does at once
//! whatever else it is busy with. So overload moves nothing to other nodes, and a stopped process does.

use std::time::Duration;

use tokio::time::Instant;

/// How many times the shortest round trip a node may be silent, where that is longer than the setting.
const ROUND_TRIPS: u32 = 3;

/// What a connection carries in a millisecond at least: large messages take time before anything can come back.
const BYTES_PER_MS: usize = 8 * 1024;

/// What is known of a node's silence.
#[derive(Debug)]
pub(super) struct Pulse {
    stall_after: Duration,
    /// Since when something is awaited and nothing has come.
    since: Option<Instant>,
    /// When the node was asked since then to show itself.
    probed: Option<Instant>,
    /// Bytes handed to the connection since then.
    bytes: usize,
    round_trip: Option<Duration>,
    /// When the next check is due. If it comes much later, this process was paused.
    due: Option<Instant>,
}

/// What a check finds.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Check {
    /// Nothing is awaited.
    Idle,
    /// Nothing is wrong yet; check again then.
    Again(Instant),
    /// Ask the node to show itself, and check again then.
    Probe(Instant),
    /// The node does not answer.
    Stalled,
}

impl Pulse {
    pub(super) fn new(stall_after: Duration) -> Self {
        Self { stall_after, since: None, probed: None, bytes: 0, round_trip: None, due: None }
    }

    /// Something is awaited from the node. Says whether nothing was before.
    pub(super) fn asked(&mut self, now: Instant) -> bool {
        let is_first = self.since.is_none();
        self.since.get_or_insert(now);
        is_first
    }

    /// Bytes were handed to the connection.
    pub(super) fn sent(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Something has come; `awaits`: more is awaited.
    pub(super) fn heard(&mut self, now: Instant, awaits: bool) {
        if let Some(since) = self.since {
            let took = now.saturating_duration_since(since);
            self.round_trip = Some(self.round_trip.map_or(took, |shortest| shortest.min(took)));
        }
        self.since = awaits.then_some(now);
        (self.probed, self.bytes) = (None, 0);
    }

    fn limit(&self) -> Duration {
        let transfer = Duration::from_millis((self.bytes / BYTES_PER_MS) as u64);
        self.stall_after.max(self.round_trip.unwrap_or_default() * ROUND_TRIPS).saturating_add(transfer)
    }

    /// Looks whether the node answers; `awaits`: something is awaited from it.
    pub(super) fn check(&mut self, now: Instant, awaits: bool) -> Check {
        let Some(since) = self.since.filter(|_| awaits) else {
            (self.since, self.due) = (None, None);
            return Check::Idle;
        };
        let limit = self.limit();
        if self.due.is_some_and(|due| now > due + limit / 2) {
            // What has come in the meantime is still to be read.
            (self.since, self.probed) = (Some(now), None);
            return self.again(now + limit / 3);
        }
        match self.probed {
            None if now < since + limit / 3 => self.again(since + limit / 3),
            None => {
                self.probed = Some(now);
                let next = (since + limit).max(now + limit / 2);
                self.due = Some(next);
                Check::Probe(next)
            }
            Some(probed) => {
                let verdict = (since + limit).max(probed + limit / 2);
                if now < verdict { self.again(verdict) } else { Check::Stalled }
            }
        }
    }

    fn again(&mut self, at: Instant) -> Check {
        self.due = Some(at);
        Check::Again(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(150);

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_node_that_says_nothing_is_probed_and_then_stalled() {
        let (mut pulse, start) = (Pulse::new(LIMIT), Instant::now());
        assert_eq!(pulse.check(start, false), Check::Idle);
        assert!(pulse.asked(start) && !pulse.asked(start + ms(1)));
        assert_eq!(pulse.check(start + ms(1), true), Check::Again(start + ms(50)));
        assert_eq!(pulse.check(start + ms(50), true), Check::Probe(start + ms(150)));
        assert_eq!(pulse.check(start + ms(150), true), Check::Stalled);
    }

    #[test]
    fn whatever_comes_begins_the_time_anew() {
        let (mut pulse, start) = (Pulse::new(LIMIT), Instant::now());
        pulse.asked(start);
        pulse.check(start + ms(50), true);
        pulse.heard(start + ms(51), true);
        assert_eq!(
            pulse.check(start + ms(100), true),
            Check::Again(start + ms(51 + 51)),
            "3 times 51 ms is the limit now"
        );
        pulse.heard(start + ms(102), false);
        assert_eq!(pulse.check(start + ms(900), false), Check::Idle);
    }

    #[test]
    fn a_long_way_and_large_messages_are_given_time() {
        let (mut pulse, start) = (Pulse::new(LIMIT), Instant::now());
        pulse.asked(start);
        pulse.heard(start + ms(200), true);
        assert_eq!(pulse.check(start + ms(201), true), Check::Again(start + ms(400)), "a third of three round trips");
        let mut pulse = Pulse::new(LIMIT);
        pulse.asked(start);
        pulse.sent(BYTES_PER_MS * 300);
        assert_eq!(pulse.check(start + ms(149), true), Check::Again(start + ms(150)));
    }

    #[test]
    fn a_process_that_stood_still_itself_blames_nobody() {
        let (mut pulse, start) = (Pulse::new(LIMIT), Instant::now());
        pulse.asked(start);
        pulse.check(start + ms(50), true);
        assert_eq!(pulse.check(start + ms(3000), true), Check::Again(start + ms(3050)));
    }
}
