//! Peers that have stalled.

use std::time::Duration;

use bytes::Bytes;

use crate::cell::Cell;
use crate::config::{ClusterConfig, NodeConfig};
use crate::event_loop::EventLoop;
use crate::message::{CallId, Message};
use crate::parts::{LoopInput, Tell};
use crate::replication::{Goal, Target};
use crate::shell::Effect;
use crate::storage::{Committer, MemoryStore, Space, StorageKey};
use crate::types::{Epoch, Incarnation, KeyspaceId, Monotonic, NodeId, Now, StoreId, WallTime};
use crate::version::Record;
use crate::wiring::Ctx;

const PEER: NodeId = NodeId(2);
const MS: u64 = 1000;

/// A loop with a session, and what it says to the peer.
struct Talk {
    node: EventLoop,
    pings: usize,
}

impl Talk {
    fn new() -> Self {
        let (opened, reader, committer) = MemoryStore::open(StoreId(7), 1);
        let (config, cluster) = (NodeConfig::new(NodeId(1)), ClusterConfig::default());
        let node = EventLoop::recover(&config, 0, cluster, opened.incarnation, &reader, committer.stats()).unwrap();
        let mut talk = Self { node, pings: 0 };
        let incarnation = Incarnation { store: StoreId(8), boot: 1, nonce: 1 };
        talk.give(1, LoopInput::PeerOpened { node: PEER, incarnation });
        talk.give(1, LoopInput::Told(Tell::PeerUp { node: PEER, incarnation }));
        talk
    }

    fn give(&mut self, at: u64, input: LoopInput) {
        self.step(at * MS, input);
    }

    fn step(&mut self, at: u64, input: LoopInput) {
        let (mut effects, mut asked) = (Vec::new(), Vec::new());
        self.node.step(Now { mono: Monotonic(at), wall: WallTime(1) }, input, &mut effects, &mut asked);
        let pings = |effect: &&Effect| matches!(effect, Effect::Send { message: Message::Ping, .. });
        self.pings += effects.iter().filter(pings).count();
    }

    /// A record is sent to the peer, which does not confirm it.
    fn send_record(&mut self, at: u64) {
        let node = &mut self.node;
        node.kernel.now.mono = Monotonic(at * MS);
        let key = StorageKey::space_start(Space::Owned);
        let targets = vec![Target::owner(PEER)];
        let replications = &mut node.replications;
        let ctx = &mut Ctx { kernel: &mut node.kernel, view: &node.view, replications: 0 };
        replications.start(ctx, key, Cell::from(Record::default()), targets, Goal::Repair);
    }

    fn wake(&mut self, from: u64, to: u64) {
        (from..=to).for_each(|at| self.give(at, LoopInput::Wake));
    }

    fn hear(&mut self, at: u64) {
        self.give(at, LoopInput::Heard { from: PEER });
    }

    #[track_caller]
    fn check(&self, stalled: bool, pings: usize) {
        assert_eq!((self.node.kernel.peers.is_stalled(PEER), self.pings), (stalled, pings));
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
    talk.node.kernel.set_round_trip(PEER, Duration::from_micros(50_001));
    for at in 11 * MS..200 * MS {
        talk.step(at, LoopInput::Wake);
    }
    talk.check(true, 1);
}

#[test]
fn a_node_that_stood_still_itself_blames_nobody() {
    let mut talk = Talk::new();
    talk.send_record(10);
    talk.wake(11, 70);
    talk.check(false, 1);
    talk.give(3000, LoopInput::Wake);
    talk.check(false, 1);
    talk.hear(3001);
    talk.check(false, 1);
}

#[test]
fn the_failure_detector_makes_a_peer_stalled_until_it_is_heard() {
    let mut talk = Talk::new();
    talk.give(5, LoopInput::PeerSilent { node: PEER });
    talk.check(true, 0);
    talk.give(6, LoopInput::Heard { from: PEER });
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
    let write = || Operation::plain_write(None);
    let second = Duration::from_secs(1);
    assert_eq!(left(forward(write()), Duration::from_millis(100)), Duration::from_millis(4900));
    assert_eq!(left(forward(write()), FORWARD_AGE_MAX), Duration::ZERO);
    assert_eq!(left(forward(Operation::Get), second), Duration::from_secs(4), "a read does no harm");
    assert_eq!(left(forward(Operation::Get), 6 * second), Duration::ZERO);
}
