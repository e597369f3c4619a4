//! Who answers: each node's own opinion of its peers. It never decides who owns what.
//!
//! [`Liveness`] is the interface; [`Heartbeats`] is the first implementation. It is fed by "heard from the peer at t",
//! whatever was heard: a heartbeat or a frame on the peer stream, or an answer to the control plane. Time is an
//! argument, so a test plays hours in microseconds.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use kv_core::types::{Monotonic, NodeId};

/// What a node thinks of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Condition {
    /// It was heard from lately.
    Up,
    /// It has been silent for longer than usual. Requests still go to it.
    Suspect,
    /// It has been silent for so long that fallbacks take its place.
    Down,
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Up => "up",
            Self::Suspect => "suspect",
            Self::Down => "down",
        })
    }
}

/// A condition with its history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opinion {
    /// What the node thinks.
    pub condition: Condition,
    /// Since when it has thought so without a break.
    pub since: Monotonic,
    /// Why, for people.
    pub reason: String,
    /// The peer became known a moment ago and was not heard from yet: that says nothing of how it is.
    pub is_new: bool,
}

/// A peer's condition changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// The peer.
    pub peer: NodeId,
    /// What it was taken for.
    pub from: Condition,
    /// What it is taken for now.
    pub to: Opinion,
}

/// A failure detector. All methods are cheap and none waits.
pub trait Liveness: Send {
    /// Starts to have an opinion of `peer`. A peer is suspect until it is first heard. No effect if it is known.
    fn watch(&mut self, peer: NodeId, now: Monotonic);

    /// Ends the opinion of a peer that left the cluster.
    fn forget(&mut self, peer: NodeId);

    /// Something came from `peer`. Ignored if the peer is not watched.
    fn heard(&mut self, peer: NodeId, now: Monotonic);

    /// Something came from `peer` outside of its session. It runs; whether it serves only its session shows, so one that is
    /// broken stays so.
    fn noticed(&mut self, peer: NodeId, now: Monotonic);

    /// The session with `peer` broke: it is suspect until it is heard again, and down after the usual time.
    fn lost(&mut self, peer: NodeId, now: Monotonic, reason: &str);

    /// The opinion of `peer` at `now`; `None` if it is not watched.
    fn opinion(&self, peer: NodeId, now: Monotonic) -> Option<Opinion>;

    /// Every change of condition up to `now` that has not been reported yet, by peer.
    fn transitions(&mut self, now: Monotonic) -> Vec<Transition>;

    /// When silence alone will next change an opinion: the moment to ask for `transitions` again.
    fn next_change(&self, now: Monotonic) -> Option<Monotonic>;
}

/// How long silence may last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// A peer that is silent for this long is suspect.
    pub suspect_after: Duration,
    /// A peer that is silent for this long is down; above `suspect_after`.
    pub down_after: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { suspect_after: Duration::from_millis(1500), down_after: Duration::from_secs(5) }
    }
}

/// A failure detector with two fixed limits on silence.
#[derive(Clone, Debug)]
pub struct Heartbeats {
    timeouts: Timeouts,
    peers: BTreeMap<NodeId, Peer>,
}

#[derive(Clone, Debug)]
struct Peer {
    /// When it was last heard, or when it began to be watched.
    last: Monotonic,
    /// Since when it has been heard without a pause; `None` until it is first heard.
    up_since: Option<Monotonic>,
    /// Set while its session is broken.
    broken: Option<Broken>,
    /// The condition that was last reported.
    reported: Condition,
}

#[derive(Clone, Debug)]
struct Broken {
    at: Monotonic,
    reason: String,
}

impl Heartbeats {
    /// A detector that knows nobody yet.
    #[must_use]
    pub fn new(timeouts: Timeouts) -> Self {
        Self { timeouts, peers: BTreeMap::new() }
    }

    fn judge(&self, peer: &Peer, now: Monotonic) -> Opinion {
        let silent = now.since(peer.last);
        let Timeouts { suspect_after, down_after } = self.timeouts;
        let reason = || match (&peer.broken, peer.up_since) {
            (Some(broken), _) => broken.reason.clone(),
            (None, Some(_)) => format!("silent for {}", Seconds(silent)),
            (None, None) if silent < suspect_after => "it has just become known, and was not heard from yet".to_owned(),
            (None, None) => format!("not heard from in the {} since it became known", Seconds(silent)),
        };
        let is_new = peer.broken.is_none() && peer.up_since.is_none() && silent < suspect_after;
        let opinion = |condition, since, reason| Opinion { condition, since, reason, is_new };
        if silent >= down_after {
            return opinion(Condition::Down, peer.last.plus(down_after), reason());
        }
        if let Some(broken) = &peer.broken {
            let since = broken.at.min(peer.last.plus(suspect_after));
            return opinion(Condition::Suspect, since, reason());
        }
        match peer.up_since {
            Some(since) if silent < suspect_after => {
                opinion(Condition::Up, since, format!("heard {} ago", Seconds(silent)))
            }
            Some(_) => opinion(Condition::Suspect, peer.last.plus(suspect_after), reason()),
            None => opinion(Condition::Suspect, peer.last, reason()),
        }
    }
}

impl Liveness for Heartbeats {
    fn watch(&mut self, peer: NodeId, now: Monotonic) {
        self.peers.entry(peer).or_insert(Peer {
            last: now,
            up_since: None,
            broken: None,
            reported: Condition::Suspect,
        });
    }

    fn forget(&mut self, peer: NodeId) {
        self.peers.remove(&peer);
    }

    fn heard(&mut self, peer: NodeId, now: Monotonic) {
        let Some(known) = self.peers.get(&peer) else { return };
        let was_up = self.judge(known, now).condition == Condition::Up;
        if let Some(known) = self.peers.get_mut(&peer) {
            // Readings of one clock by several threads may arrive out of order.
            known.last = known.last.max(now);
            known.broken = None;
            if !was_up {
                known.up_since = Some(now);
            }
        }
    }

    fn noticed(&mut self, peer: NodeId, now: Monotonic) {
        if self.peers.get(&peer).is_some_and(|known| known.broken.is_none()) {
            self.heard(peer, now);
        }
    }

    fn lost(&mut self, peer: NodeId, now: Monotonic, reason: &str) {
        if let Some(known) = self.peers.get_mut(&peer) {
            let at = known.broken.as_ref().map_or(now, |broken| broken.at);
            known.broken = Some(Broken { at, reason: reason.to_owned() });
        }
    }

    fn opinion(&self, peer: NodeId, now: Monotonic) -> Option<Opinion> {
        self.peers.get(&peer).map(|known| self.judge(known, now))
    }

    fn transitions(&mut self, now: Monotonic) -> Vec<Transition> {
        let changed: Vec<Transition> = self
            .peers
            .iter()
            .map(|(&peer, known)| Transition { peer, from: known.reported, to: self.judge(known, now) })
            .filter(|transition| transition.from != transition.to.condition)
            .collect();
        for transition in &changed {
            if let Some(known) = self.peers.get_mut(&transition.peer) {
                known.reported = transition.to.condition;
            }
        }
        changed
    }

    fn next_change(&self, now: Monotonic) -> Option<Monotonic> {
        let moment = |peer: &Peer| match self.judge(peer, now).condition {
            Condition::Up => Some(peer.last.plus(self.timeouts.suspect_after)),
            Condition::Suspect => Some(peer.last.plus(self.timeouts.down_after)),
            Condition::Down => None,
        };
        self.peers.values().filter_map(moment).min()
    }
}

/// A duration in seconds with one decimal.
struct Seconds(Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} s", self.0.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const N2: NodeId = NodeId(2);

    fn at(millis: u64) -> Monotonic {
        Monotonic(millis * 1000)
    }

    fn detector() -> Heartbeats {
        let mut detector = Heartbeats::new(Timeouts::default());
        detector.watch(N2, at(0));
        detector
    }

    #[track_caller]
    fn check(detector: &Heartbeats, now: u64, expected: &str) {
        let opinion = detector.opinion(N2, at(now)).unwrap();
        let found = format!("{} since {} ms: {}", opinion.condition, opinion.since.0 / 1000, opinion.reason);
        assert_eq!(found, expected);
    }

    #[test]
    fn silence_makes_a_peer_suspect_and_then_down() {
        let mut detector = detector();
        detector.heard(N2, at(100));
        check(&detector, 100, "up since 100 ms: heard 0.0 s ago");
        check(&detector, 1599, "up since 100 ms: heard 1.5 s ago");
        check(&detector, 1600, "suspect since 1600 ms: silent for 1.5 s");
        check(&detector, 5099, "suspect since 1600 ms: silent for 5.0 s");
        check(&detector, 5100, "down since 5100 ms: silent for 5.0 s");
        check(&detector, 9100, "down since 5100 ms: silent for 9.0 s");
    }

    #[test]
    fn a_peer_that_never_spoke_is_suspect_and_then_down() {
        let detector = detector();
        check(&detector, 1, "suspect since 0 ms: it has just become known, and was not heard from yet");
        check(&detector, 1500, "suspect since 0 ms: not heard from in the 1.5 s since it became known");
        check(&detector, 5000, "down since 5000 ms: not heard from in the 5.0 s since it became known");
    }

    #[test]
    fn a_peer_is_new_for_a_moment_until_it_is_heard_or_its_session_breaks() {
        let is_new = |detector: &Heartbeats, now| detector.opinion(N2, at(now)).unwrap().is_new;
        assert!(is_new(&detector(), 0) && is_new(&detector(), 1499) && !is_new(&detector(), 1500));
        let mut heard = detector();
        heard.heard(N2, at(100));
        assert!(!is_new(&heard, 101));
        let mut broken = detector();
        broken.lost(N2, at(100), "it refuses this node");
        assert!(!is_new(&broken, 101));
    }

    #[test]
    fn up_since_is_kept_while_the_peer_speaks_and_restarts_after_silence() {
        let mut detector = detector();
        for now in (100..2000).step_by(100) {
            detector.heard(N2, at(now));
        }
        check(&detector, 2000, "up since 100 ms: heard 0.1 s ago");
        detector.heard(N2, at(9000));
        check(&detector, 9000, "up since 9000 ms: heard 0.0 s ago");
    }

    #[test]
    fn a_broken_session_is_suspect_at_once_until_the_peer_is_heard_again() {
        let mut detector = detector();
        detector.heard(N2, at(100));
        detector.lost(N2, at(200), "connection reset");
        check(&detector, 201, "suspect since 200 ms: connection reset");
        detector.lost(N2, at(300), "connection refused");
        check(&detector, 301, "suspect since 200 ms: connection refused");
        check(&detector, 5100, "down since 5100 ms: connection refused");
        detector.heard(N2, at(6000));
        check(&detector, 6000, "up since 6000 ms: heard 0.0 s ago");
    }

    #[test]
    fn a_peer_whose_session_is_broken_is_not_up_because_it_is_noticed_elsewhere() {
        let mut detector = detector();
        detector.noticed(N2, at(100));
        check(&detector, 200, "up since 100 ms: heard 0.1 s ago");
        detector.lost(N2, at(200), "its store has failed");
        detector.noticed(N2, at(5000));
        check(&detector, 5100, "down since 5100 ms: its store has failed");
        detector.heard(N2, at(6000));
        check(&detector, 6000, "up since 6000 ms: heard 0.0 s ago");
    }

    #[test]
    fn each_transition_is_reported_once_and_next_change_says_when() {
        let mut detector = detector();
        let mut seen = Vec::new();
        detector.heard(N2, at(100));
        let mut now = at(100);
        loop {
            for change in detector.transitions(now) {
                seen.push(format!("{} ms: {} -> {}", now.0 / 1000, change.from, change.to.condition));
            }
            assert!(detector.transitions(now).is_empty(), "a transition was reported twice");
            let Some(next) = detector.next_change(now) else { break };
            assert!(next > now, "the next change must lie ahead");
            now = next;
        }
        assert_eq!(seen, ["100 ms: suspect -> up", "1600 ms: up -> suspect", "5100 ms: suspect -> down"]);
    }

    #[test]
    fn unknown_peers_have_no_opinion_and_create_none() {
        let mut detector = detector();
        detector.heard(NodeId(3), at(1));
        detector.lost(NodeId(3), at(1), "x");
        assert_eq!(detector.opinion(NodeId(3), at(1)), None);
        detector.forget(N2);
        assert_eq!(detector.opinion(N2, at(1)), None);
        assert_eq!(detector.next_change(at(1)), None);
    }

    #[test]
    fn a_clock_reading_from_the_past_does_not_age_a_peer() {
        let mut detector = detector();
        detector.heard(N2, at(2000));
        detector.heard(N2, at(1000));
        check(&detector, 3000, "up since 2000 ms: heard 1.0 s ago");
    }
}
