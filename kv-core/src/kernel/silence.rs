//! Peers that have stalled: a process that was stopped, a link that swallows what is sent on it. The session stays open
//! for seconds, and all that waits for the peer would wait as long.
//!
//! A peer is stalled when something was asked of it, nothing at all has come from it for `NodeConfig::stall_after`, and
//! meanwhile it was asked to show itself (`Message::Ping`), which a peer that is only slow does at once. What waits for a
//! stalled peer goes on without it, and new requests ask it last, until something comes from it again. It stays an owner.

use std::time::Duration;

use super::{Kernel, Wiring};
use crate::message::Message;
use crate::rule::Rule;
use crate::types::{Monotonic, NodeId};

/// How many times its shortest round trip a peer may be silent, where that is more than `NodeConfig::stall_after`.
const ROUND_TRIPS: u32 = 3;

/// What is known of a peer's silence in its present session.
#[derive(Debug, Default)]
pub(super) struct Silence {
    /// Since when something is asked of the peer and nothing has come from it. While it is set and the peer is not
    /// stalled, the timer `Wiring::watch` is armed.
    since: Option<Monotonic>,
    /// When it was asked since then to show itself.
    probed: Option<Monotonic>,
    /// When it is looked at next. If that turns out much later, it is this node that stood still.
    look_at: Monotonic,
    /// The shortest time in which something has come from it.
    round_trip: Option<Duration>,
    stalled: bool,
}

impl Silence {
    pub(super) fn is_stalled(&self) -> bool {
        self.stalled
    }
}

impl<W: Wiring> Kernel<W> {
    /// Something is asked of a peer.
    pub(super) fn note_asked(&mut self, node: NodeId) {
        let Some(peer) = self.peers.get_mut(node) else { return };
        if peer.silence.stalled || peer.silence.since.is_some() {
            return;
        }
        peer.silence.since = Some(self.now.mono);
        peer.silence.probed = None;
        self.look_after(node, self.look_every(node));
    }

    /// Something has come from a peer.
    pub(crate) fn note_heard(&mut self, node: NodeId) {
        let now = self.now.mono;
        let Some(peer) = self.peers.get_mut(node) else { return };
        let silence = &mut peer.silence;
        if let Some(since) = silence.since {
            let took = now.since(since);
            silence.round_trip = Some(silence.round_trip.map_or(took, |shortest| shortest.min(took)));
        }
        let was_stalled = std::mem::take(&mut silence.stalled);
        silence.probed = None;
        if was_stalled || silence.since.is_some() {
            silence.since = (!peer.calls.is_empty()).then_some(now);
        }
        if was_stalled && peer.silence.since.is_some() {
            self.look_after(node, self.look_every(node));
        }
    }

    /// How long a peer may be silent: on a long way, more than the setting.
    fn stall_after(&self, node: NodeId) -> Duration {
        let round_trip = self.peers.get(node).and_then(|peer| peer.silence.round_trip).unwrap_or_default();
        self.config.stall_after.max(round_trip * ROUND_TRIPS)
    }

    /// Half of that, in whole microseconds as the clock counts: a rest below one would be due at once, again and again.
    fn look_every(&self, node: NodeId) -> Duration {
        let micros = u64::try_from(self.stall_after(node).as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros((micros / 2).max(1))
    }

    fn look_after(&mut self, node: NodeId, wait: Duration) {
        let at = self.now.mono.plus(wait);
        if let Some(peer) = self.peers.get_mut(node) {
            peer.silence.look_at = at;
        }
        self.arm(at, W::watch(node));
    }

    /// Looks whether a peer is still silent. `awaited`: whether a request or a replication waits for it. True: it is to
    /// be considered as stalled.
    pub(crate) fn watch_peer(&mut self, node: NodeId, awaited: bool) -> bool {
        let now = self.now.mono;
        let half = self.look_every(node);
        let is_up = self.peers.is_up(node);
        let Some(peer) = self.peers.get_mut(node).filter(|peer| is_up && !peer.silence.stalled) else { return false };
        let silence = &mut peer.silence;
        let Some(since) = silence.since else { return false };
        if now.since(since) < half {
            let left = half.saturating_sub(now.since(since));
            self.look_after(node, left);
            return false;
        }
        if !awaited {
            silence.since = None;
            return false;
        }
        if now.since(silence.look_at) > half {
            // This node stood still itself: what has come meanwhile is still to be read.
            (silence.since, silence.probed) = (Some(now), None);
            self.look_after(node, half);
            return false;
        }
        match silence.probed {
            None => {
                silence.probed = Some(now);
                self.send(node, Message::Ping);
                self.look_after(node, half);
                false
            }
            Some(probed) if now.since(probed) < half => {
                let left = half.saturating_sub(now.since(probed));
                self.look_after(node, left);
                false
            }
            Some(_) => true,
        }
    }

    /// A peer is stalled, unless that was known or it has no session: true if what waits for it is to go on without it.
    pub(crate) fn note_stalled(&mut self, node: NodeId) -> bool {
        let may = self.rules.keep(Rule::MoveOnFromStalled) && self.peers.is_up(node) && !self.peers.is_stalled(node);
        if may {
            self.peers.peer(node).silence.stalled = true;
        }
        may
    }

    #[cfg(test)]
    pub(crate) fn set_round_trip(&mut self, node: NodeId, round_trip: Duration) {
        self.peers.peer(node).silence.round_trip = Some(round_trip);
    }
}
