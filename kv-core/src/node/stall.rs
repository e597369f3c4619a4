//! Peers that have stalled: a process that was stopped, a link that swallows what is sent on it. The session stays open
//! for seconds, and all that waits for the peer would wait as long.
//!
//! A peer is stalled when something was asked of it, nothing at all has come from it for `NodeConfig::stall_after`, and
//! meanwhile it was asked to show itself (`Message::Ping`), which a peer that is only slow does at once. What waits for a
//! stalled peer goes on without it, and new requests ask it last, until something comes from it again. It stays an owner.

use std::time::Duration;

use super::peers::Purpose;
use super::{Monotonic, Node, NodeId};
use crate::message::Message;
use crate::node::timers::Timer;
use crate::rule::Rule;

/// How many times its shortest round trip a peer may be silent, where that is more than `NodeConfig::stall_after`.
const ROUND_TRIPS: u32 = 3;

/// What is known of a peer's silence in its present session.
#[derive(Debug, Default)]
pub(crate) struct Silence {
    /// Since when something is asked of the peer and nothing has come from it. While it is set and the peer is not
    /// stalled, `Timer::Watch` is armed.
    since: Option<Monotonic>,
    /// When it was asked since then to show itself.
    probed: Option<Monotonic>,
    /// When it is looked at next. If that turns out much later, it is this node that stood still.
    look_at: Monotonic,
    /// The shortest time in which something has come from it.
    round_trip: Option<Duration>,
    stalled: bool,
}

impl Node {
    /// Whether a peer takes part in nothing at present although its session is open: it is asked last.
    pub(crate) fn is_stalled(&self, node: NodeId) -> bool {
        self.peers.get(&node).is_some_and(|peer| peer.silence.stalled)
    }

    /// Something is asked of a peer.
    pub(super) fn note_asked(&mut self, node: NodeId) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if peer.silence.stalled || peer.silence.since.is_some() {
            return;
        }
        peer.silence.since = Some(self.now.mono);
        peer.silence.probed = None;
        self.look_after(node, self.look_every(node));
    }

    /// Something has come from a peer.
    pub(super) fn note_heard(&mut self, node: NodeId) {
        let now = self.now.mono;
        let Some(peer) = self.peers.get_mut(&node) else { return };
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

    /// The failure detector has heard nothing of a peer for longer than usual.
    pub(super) fn peer_silent(&mut self, node: NodeId) {
        if self.is_up(node) && !self.is_stalled(node) {
            self.stalled(node);
        }
    }

    /// How long a peer may be silent: on a long way, more than the setting.
    fn stall_after(&self, node: NodeId) -> Duration {
        let round_trip = self.peers.get(&node).and_then(|peer| peer.silence.round_trip).unwrap_or_default();
        self.config.stall_after.max(round_trip * ROUND_TRIPS)
    }

    /// Half of that, in whole microseconds as the clock counts: a rest below one would be due at once, again and again.
    fn look_every(&self, node: NodeId) -> Duration {
        let micros = u64::try_from(self.stall_after(node).as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros((micros / 2).max(1))
    }

    fn look_after(&mut self, node: NodeId, wait: Duration) {
        let at = self.now.mono.plus(wait);
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.silence.look_at = at;
        }
        self.arm(at, Timer::Watch(node));
    }

    /// Looks whether a peer is still silent.
    pub(super) fn watch_peer(&mut self, node: NodeId) {
        let now = self.now.mono;
        let half = self.look_every(node);
        let awaited = self.is_awaited(node);
        let Some(peer) = self.peers.get_mut(&node).filter(|peer| peer.up && !peer.silence.stalled) else { return };
        let silence = &mut peer.silence;
        let Some(since) = silence.since else { return };
        if now.since(since) < half {
            let left = half.saturating_sub(now.since(since));
            return self.look_after(node, left);
        }
        if !awaited {
            silence.since = None;
            return;
        }
        if now.since(silence.look_at) > half {
            // This node stood still itself: what has come meanwhile is still to be read.
            (silence.since, silence.probed) = (Some(now), None);
            return self.look_after(node, half);
        }
        match silence.probed {
            None => {
                silence.probed = Some(now);
                self.send(node, Message::Ping);
                self.look_after(node, half);
            }
            Some(probed) if now.since(probed) < half => {
                let left = half.saturating_sub(now.since(probed));
                self.look_after(node, left);
            }
            Some(_) => self.stalled(node),
        }
    }

    /// Whether a request or a replication waits for a peer. Exchanges have time.
    fn is_awaited(&self, node: NodeId) -> bool {
        let waits = |purpose: &Purpose| match purpose {
            Purpose::Forward(op) | Purpose::Read(op, _) | Purpose::Slice(op) => self.ops.get(op).is_some(),
            Purpose::Replicate(replication) => self.replications.contains_key(replication),
            Purpose::Exchange(_) => false,
        };
        self.peers.get(&node).is_some_and(|peer| peer.calls.purposes().any(waits))
    }

    /// A peer is stalled: what waits for it goes on without it.
    fn stalled(&mut self, node: NodeId) {
        if !self.rules.keep(Rule::MoveOnFromStalled) {
            return;
        }
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.silence.stalled = true;
        let waiting: Vec<Purpose> = peer.calls.purposes().copied().collect();
        for purpose in waiting {
            match purpose {
                Purpose::Forward(op) => self.forward_stalled(op),
                Purpose::Read(op, _) => self.read_stalled(op, node),
                Purpose::Slice(op) => self.scan_stalled(op, node),
                // Fallbacks count only in place of owners that are down (rule A9): a pause must not weaken what a write
                // promises.
                Purpose::Replicate(_) | Purpose::Exchange(_) => {}
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;

    use crate::config::{ClusterConfig, NodeConfig};
    use crate::message::{CallId, Message, Role};
    use crate::node::{Effect, Input, Node};
    use crate::replica::{Goal, Target};
    use crate::storage::{Committer, MemoryStore, Space, StorageKey};
    use crate::types::{Epoch, Incarnation, KeyspaceId, Monotonic, NodeId, Now, StoreId, WallTime};
    use crate::version::Record;

    const PEER: NodeId = NodeId(2);
    const MS: u64 = 1000;

    /// A node with a session, and what it says to the peer.
    struct Talk {
        node: Node,
        pings: usize,
    }

    impl Talk {
        fn new() -> Self {
            let (opened, reader, committer) = MemoryStore::open(StoreId(7), 1);
            let config = NodeConfig::new(NodeId(1));
            let node = Node::recover(config, ClusterConfig::default(), opened.incarnation, &reader, committer.stats())
                .unwrap();
            let mut talk = Self { node, pings: 0 };
            let incarnation = Incarnation { store: StoreId(8), boot: 1, nonce: 1 };
            let effects = talk.give(1, Input::PeerUp { node: PEER, incarnation });
            let persisted = |effect: &Effect| if let Effect::Persist { seq, .. } = effect { Some(*seq) } else { None };
            let seq = effects.iter().find_map(persisted).unwrap();
            talk.give(1, Input::Persisted { seq });
            talk
        }

        fn give(&mut self, at: u64, input: Input) -> Vec<Effect> {
            let mut effects = Vec::new();
            self.node.step(Now { mono: Monotonic(at * MS), wall: WallTime(1) }, input, &mut effects);
            let pings = |effect: &&Effect| matches!(effect, Effect::Send { message: Message::Ping, .. });
            self.pings += effects.iter().filter(pings).count();
            effects
        }

        /// A record is sent to the peer, which does not confirm it.
        fn send_record(&mut self, at: u64) {
            self.node.now.mono = Monotonic(at * MS);
            let key = StorageKey::space_start(Space::Owned);
            let targets = vec![Target::new(PEER, Role::Owner)];
            self.node.start_replication(key, Record::default(), targets, Goal::Repair);
        }

        fn wake(&mut self, from: u64, to: u64) {
            (from..=to).for_each(|at| drop(self.give(at, Input::Wake)));
        }

        fn hear(&mut self, at: u64) {
            self.give(at, Input::Message { from: PEER, message: Message::Pong });
        }

        #[track_caller]
        fn check(&self, stalled: bool, pings: usize) {
            assert_eq!((self.node.is_stalled(PEER), self.pings), (stalled, pings));
        }
    }

    #[test]
    fn a_peer_that_says_nothing_is_asked_to_show_itself_and_then_stalled() {
        let mut talk = Talk::new();
        talk.wake(2, 500);
        talk.check(false, 0);
        talk.send_record(500);
        talk.wake(501, 549);
        talk.check(false, 0);
        talk.wake(550, 599);
        talk.check(false, 1);
        talk.wake(600, 601);
        talk.check(true, 1);
        talk.hear(602);
        talk.check(false, 1);
    }

    #[test]
    fn a_peer_that_shows_itself_is_only_slow() {
        let mut talk = Talk::new();
        talk.send_record(10);
        for round in 1..=20 {
            talk.wake(10 + round * 51 - 50, 10 + round * 51);
            talk.hear(10 + round * 51);
        }
        // After the first answer its way is known to be long, and it is not asked again within that time.
        talk.check(false, 1);
    }

    /// Three round trips of an odd length have no half in whole microseconds.
    #[test]
    fn a_look_is_never_due_at_the_moment_at_which_it_is_set() {
        let mut talk = Talk::new();
        talk.send_record(10);
        talk.node.peers.get_mut(&PEER).unwrap().silence.round_trip = Some(Duration::from_micros(50_001));
        for at in 11 * MS..200 * MS {
            let mut effects = Vec::new();
            talk.node.step(Now { mono: Monotonic(at), wall: WallTime(1) }, Input::Wake, &mut effects);
        }
        talk.check(true, 0);
    }

    #[test]
    fn a_node_that_stood_still_itself_blames_nobody() {
        let mut talk = Talk::new();
        talk.send_record(10);
        talk.wake(11, 70);
        talk.check(false, 1);
        talk.give(3000, Input::Wake);
        talk.check(false, 1);
        talk.hear(3001);
        talk.check(false, 1);
    }

    #[test]
    fn the_failure_detector_makes_a_peer_stalled_until_it_is_heard() {
        let mut talk = Talk::new();
        talk.give(5, Input::PeerSilent { node: PEER });
        talk.check(true, 0);
        talk.give(6, Input::Heard { from: PEER });
        talk.check(false, 0);
    }

    #[test]
    fn a_forwarded_write_that_stood_still_is_not_carried_out() {
        use crate::message::{FORWARD_AGE_MAX, KeyRequest, Operation, Request};
        let forward = |operation| Message::Forward {
            call: CallId(1),
            request: Request::Key(KeyRequest {
                keyspace: KeyspaceId(0),
                key: Bytes::from_static(b"k"),
                epoch: Epoch(1),
                consistency: crate::message::Consistency::default(),
                operation,
            }),
            deadline: Duration::from_secs(5),
        };
        let left = |mut message: Message, age| {
            message.waited(age);
            if let Message::Forward { deadline, .. } = message { deadline } else { Duration::MAX }
        };
        let write = || Operation::Write {
            request: crate::types::RequestId { client: 1, sequence: 1 },
            value: None,
            context: None,
            ttl: None,
        };
        let second = Duration::from_secs(1);
        assert_eq!(left(forward(write()), Duration::from_millis(100)), Duration::from_millis(4900));
        assert_eq!(left(forward(write()), FORWARD_AGE_MAX), Duration::ZERO);
        assert_eq!(left(forward(Operation::Get), second), Duration::from_secs(4), "a read does no harm");
        assert_eq!(left(forward(Operation::Get), 6 * second), Duration::ZERO);
    }
}
