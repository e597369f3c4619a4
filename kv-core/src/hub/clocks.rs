//! How this node's wall clock compares with those of the members (rule A8).
//!
//! Peers tell each other several times a second what their clocks show, and what they heard last and how long ago. So each knows
//! how long the way there and back took, and the other's clock up to that (as in NTP, RFC 5905, section 8, without its assumption
//! that both ways take equally long). A node is off if more than half of the members, its own clock included, are certainly further
//! from it than is allowed, on one side: no single clock makes another one wrong.
//!
//! What a peer's clock shows is kept as its distance from this node's *monotonic* clock. So a step of this node's own wall clock is
//! noticed at once, without waiting for anybody.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Kernel, To};
use crate::event::Event;
use crate::message::{Echo, Reading};
use crate::parts::Tell;
use crate::ring::Layout;
use crate::shell::ClockState;
use crate::types::{Monotonic, NodeId, Now};

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Clocks {
    me: NodeId,
    /// How far clocks may be apart.
    limit: i64,
    members: BTreeSet<NodeId>,
    /// Those with which there was a session.
    peers: BTreeMap<NodeId, Peer>,
    state: ClockState,
    /// How far the wall clock was ahead of the monotonic one when that was looked at last.
    base: Option<i64>,
}

#[derive(Debug, Default)]
struct Peer {
    /// What its monotonic clock showed in its last reading, and when that came, in a session that is open.
    heard: Option<(Monotonic, Monotonic)>,
    /// By how much its wall clock was ahead of this node's monotonic one, at least and at most, and when that was found. It holds when the
    /// session has ended, too: a node that is cut off still knows that its clock is off.
    ahead: Option<(i64, i64, Monotonic)>,
}

/// Clocks of two machines drift apart by no more than one part in this many.
const DRIFT: u64 = 1000;

impl Peer {
    /// By how much its wall clock is ahead of this node's monotonic one now: at least, and at most.
    fn bounds(&self, now: Monotonic) -> Option<(i64, i64)> {
        let (least, most, at) = self.ahead?;
        let drift = i64::try_from(now.0.saturating_sub(at.0) / DRIFT).unwrap_or(i64::MAX);
        Some((least.saturating_sub(drift), most.saturating_add(drift)))
    }
}

impl Clocks {
    pub(super) fn new(me: NodeId, limit: Duration, layout: Option<&Layout>) -> Self {
        let limit = i64::try_from(limit.as_micros()).unwrap_or(i64::MAX);
        let mut clocks = Self {
            me,
            limit,
            members: BTreeSet::new(),
            peers: BTreeMap::new(),
            state: ClockState::Unknown,
            base: None,
        };
        if let Some(layout) = layout {
            clocks.layout(layout);
        }
        clocks
    }

    /// Whose clocks count.
    pub(super) fn layout(&mut self, layout: &Layout) {
        self.members = layout.members.keys().copied().collect();
    }

    /// A session with a peer was opened.
    pub(super) fn opened(&mut self, node: NodeId) {
        self.peers.entry(node).or_default();
    }

    /// The session with a peer has ended: its clock may have begun anew before the next one.
    pub(super) fn closed(&mut self, node: NodeId) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.heard = None;
        }
    }

    /// What a peer is told.
    pub(super) fn reading(&self, now: Now, peer: NodeId) -> Reading {
        let heard = self.peers.get(&peer).and_then(|peer| peer.heard);
        let echo = heard.map(|(theirs, at)| Echo { mono: theirs, held: now.mono.since(at) });
        Reading { wall: now.wall, mono: now.mono, echo }
    }

    /// A peer tells what its clock shows. Whether it wants an answer at once, since it has none yet.
    pub(super) fn heard(&mut self, now: Now, node: NodeId, reading: Reading) -> bool {
        let Some(peer) = self.peers.get_mut(&node) else { return false };
        peer.heard = Some((reading.mono, now.mono));
        let Some(echo) = reading.echo else { return true };
        // An echo of what this node has not said yet is of another run.
        if let Some(since) = now.mono.0.checked_sub(echo.mono.0)
            && let Some(way) = Duration::from_micros(since).checked_sub(echo.held)
        {
            let least = difference(reading.wall.0, now.mono.0);
            let way = i64::try_from(way.as_micros()).unwrap_or(i64::MAX);
            peer.ahead = Some((least, least.saturating_add(way), now.mono));
        }
        false
    }

    /// Whether the wall clock was set since it was looked at last.
    pub(super) fn was_set(&self, now: Now) -> bool {
        let moved = |base: i64| base.abs_diff(difference(now.wall.0, now.mono.0)) > self.limit.unsigned_abs() / 4;
        self.base.is_some_and(moved)
    }

    /// Judges this node's clock. Loops are told when that has changed.
    pub(super) fn judge(&mut self, kernel: &mut Kernel) {
        let base = difference(kernel.now.wall.0, kernel.now.mono.0);
        self.base = Some(base);
        let state = self.state_at(base, kernel.now.mono);
        let is_same = match (self.state, state) {
            (ClockState::Off { ahead_us: before }, ClockState::Off { ahead_us: after }) => {
                before.abs_diff(after) <= self.limit.unsigned_abs() / 8
            }
            (before, after) => before == after,
        };
        if is_same {
            return;
        }
        match (self.state, state) {
            (ClockState::Off { .. }, ClockState::Off { .. }) => {}
            (_, ClockState::Off { ahead_us }) => kernel.event(Event::ClockOff { ahead_us }),
            (ClockState::Off { .. }, _) => kernel.event(Event::ClockRight),
            _ => {}
        }
        self.state = state;
        kernel.say((To::All, Tell::Clock(state)));
    }

    fn state_at(&self, base: i64, now: Monotonic) -> ClockState {
        // By how much the clocks of other members are ahead of this node's: at least, and at most.
        let others = self.peers.iter().filter(|(node, _)| **node != self.me && self.members.contains(node));
        let known: Vec<(i64, i64)> = others
            .filter_map(|(_, peer)| peer.bounds(now))
            .map(|(least, most)| (least.saturating_sub(base), most.saturating_sub(base)))
            .collect();
        // A clock that is about as far off as is allowed does not change sides all the time.
        let limit = match self.state {
            ClockState::Off { .. } => self.limit - self.limit / 8,
            ClockState::Unknown | ClockState::Right => self.limit,
        };
        let is_majority = |count: usize| count * 2 > self.members.len().max(1);
        let later = known.iter().filter(|(least, _)| *least > limit).count();
        let earlier = known.iter().filter(|(_, most)| *most < -limit).count();
        if is_majority(later) || is_majority(earlier) {
            // The time that more than half of the members have certainly reached, its own counted: nothing expires early because a
            // message was long under way, or because one clock is ahead.
            let mut shown: Vec<i64> = known.iter().map(|(least, _)| *least).chain([0]).collect();
            shown.sort_unstable_by_key(|least| Reverse(*least));
            let reached = shown.get(self.members.len() / 2).copied().unwrap_or_default();
            return ClockState::Off { ahead_us: -reached };
        }
        // Its own clock is one of those that agree.
        let agree = 1 + known.len() - later - earlier;
        if is_majority(agree) { ClockState::Right } else { ClockState::Unknown }
    }

    /// How this node's clock compares.
    pub(super) fn state(&self) -> ClockState {
        self.state
    }

    /// By how much the clocks of other members are ahead of this node's, as far as that is known, in the middle.
    pub(super) fn others(&self) -> BTreeMap<NodeId, i64> {
        let base = self.base.unwrap_or_default();
        let middle = |peer: &Peer| peer.ahead.map(|(least, most, _)| i64::midpoint(least, most).saturating_sub(base));
        let members = self.peers.iter().filter(|(node, _)| self.members.contains(node));
        members.filter_map(|(&node, peer)| Some((node, middle(peer)?))).collect()
    }
}

/// How far one clock is ahead of another, in microseconds.
fn difference(one: u64, other: u64) -> i64 {
    i64::try_from(i128::from(one) - i128::from(other)).unwrap_or(if one > other { i64::MAX } else { i64::MIN })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::WallTime;

    const LIMIT: Duration = Duration::from_millis(500);
    const START: u64 = 1_700_000_000_000_000;

    fn at(time_ms: i64, ahead_ms: i64) -> Now {
        let micros = |ms: i64| u64::try_from(ms * 1000).unwrap();
        Now { mono: Monotonic(micros(time_ms)), wall: WallTime(START + micros(time_ms + ahead_ms)) }
    }

    /// Clocks of node 1 in a cluster of `members`, with sessions to all others.
    fn clocks(members: u64) -> Clocks {
        let mut clocks = Clocks::new(NodeId(1), LIMIT, None);
        clocks.members = (1..=members).map(NodeId).collect();
        (2..=members).for_each(|node| clocks.opened(NodeId(node)));
        clocks
    }

    /// A peer whose clock is ahead by so much answers what was said to it, and `way_ms` pass there and back.
    fn exchange(clocks: &mut Clocks, node: u64, time_ms: i64, ahead_ms: i64, way_ms: i64) {
        let mono = at(time_ms - way_ms, 0).mono;
        let there = at(time_ms, ahead_ms - way_ms / 2);
        // Its monotonic clock began at another moment.
        let echo = Some(Echo { mono, held: Duration::ZERO });
        let reading = Reading { wall: there.wall, mono: Monotonic(there.mono.0 + 7_000_000), echo };
        clocks.heard(at(time_ms, 0), NodeId(node), reading);
    }

    fn state(clocks: &Clocks, time_ms: i64, ahead_ms: i64) -> ClockState {
        let now = at(time_ms, ahead_ms);
        clocks.state_at(difference(now.wall.0, now.mono.0), now.mono)
    }

    #[test]
    fn a_clock_is_off_only_if_most_clocks_say_so() {
        let mut clocks = clocks(5);
        assert_eq!(state(&clocks, 10_000, 0), ClockState::Unknown);
        for (node, ahead) in [(2, 3), (3, -9000)] {
            exchange(&mut clocks, node, 10_000, ahead, 4);
        }
        assert_eq!(state(&clocks, 10_001, 0), ClockState::Unknown, "two of five agree");
        exchange(&mut clocks, 4, 10_000, -4, 4);
        assert_eq!(state(&clocks, 10_001, 0), ClockState::Right, "three of five agree");
        // The clock itself is set.
        let ClockState::Off { ahead_us } = state(&clocks, 10_002, 3000) else { panic!("three of five are behind it") };
        assert!((2_990_000..=3_010_000).contains(&ahead_us), "{ahead_us}");
        assert_eq!(state(&clocks, 10_002, -3000), ClockState::Unknown, "one that is off itself is on the other side");
        exchange(&mut clocks, 5, 10_000, 0, 4);
        let ClockState::Off { ahead_us } = state(&clocks, 10_002, -3000) else { panic!("three of five say so") };
        assert!((-3_010_000..=-2_990_000).contains(&ahead_us), "{ahead_us}");
    }

    #[test]
    fn of_two_clocks_that_differ_neither_is_off() {
        let mut clocks = clocks(2);
        exchange(&mut clocks, 2, 10_000, 9000, 4);
        assert_eq!(state(&clocks, 10_001, 0), ClockState::Unknown);
        exchange(&mut clocks, 2, 10_100, 10, 4);
        assert_eq!(state(&clocks, 10_101, 0), ClockState::Right);
        assert_eq!(clocks_of_one(), ClockState::Right, "alone it is right");
    }

    #[test]
    fn who_is_cut_off_still_knows_what_it_knew() {
        let mut clocks = clocks(3);
        for node in [2, 3] {
            exchange(&mut clocks, node, 10_000, -3000, 4);
            clocks.closed(NodeId(node));
        }
        assert!(state(&clocks, 60_000, 0).is_off());
        assert_eq!(clocks.reading(at(60_000, 0), NodeId(2)).echo, None);
        assert!(!state(&clocks, 10_000_000, 0).is_off(), "clocks drift");
    }

    fn clocks_of_one() -> ClockState {
        state(&clocks(1), 0, 0)
    }

    #[test]
    fn what_was_long_under_way_says_little() {
        let mut clocks = clocks(3);
        for node in [2, 3] {
            exchange(&mut clocks, node, 10_000, 800, 900);
        }
        assert_eq!(state(&clocks, 10_001, 0), ClockState::Right, "it may be only 350 ms");
        for node in [2, 3] {
            exchange(&mut clocks, node, 11_000, 800, 2);
        }
        let ClockState::Off { ahead_us } = state(&clocks, 11_001, 0) else { panic!("it is certain") };
        assert!((-800_000..=-798_000).contains(&ahead_us), "{ahead_us}");
    }

    #[test]
    fn the_time_is_what_most_clocks_have_reached() {
        for (ahead, reached) in [([800, 3000], 800), ([-800, -3000], -800)] {
            let mut clocks = clocks(3);
            for (node, ahead) in (2..).zip(ahead) {
                exchange(&mut clocks, node, 10_000, ahead, 2);
            }
            let ClockState::Off { ahead_us } = state(&clocks, 10_001, 0) else { panic!("both are on one side") };
            assert!(ahead_us.abs_diff(-reached * 1000) < 10_000, "{ahead_us}");
        }
    }

    #[test]
    fn an_echo_of_another_run_counts_for_nothing() {
        let mut clocks = clocks(3);
        let reading = |mono, held| Reading {
            wall: at(0, 0).wall,
            mono: Monotonic(1),
            echo: Some(Echo { mono: Monotonic(mono), held: Duration::from_micros(held) }),
        };
        for (mono, held) in [(2_000_000, 0), (999_000, 5_000)] {
            assert!(!clocks.heard(at(1000, 0), NodeId(2), reading(mono, held)));
            assert!(clocks.others().is_empty());
        }
        let first = Reading { echo: None, ..reading(0, 0) };
        assert!(clocks.heard(at(1000, 0), NodeId(2), first), "it wants an answer");
        assert!(!clocks.heard(at(1000, 0), NodeId(9), first), "there is no session");
        assert_eq!(
            clocks.reading(at(1003, 0), NodeId(2)).echo,
            Some(Echo { mono: Monotonic(1), held: Duration::from_millis(3) })
        );
    }
}
