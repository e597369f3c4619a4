//! Sessions that begin and end before their peers are durably known.

use bytes::Bytes;

use crate::config::{ClusterConfig, NodeConfig};
use crate::message::{CallId, Message, Role};
use crate::node::{Effect, Input, Node};
use crate::storage::{Committer, MemoryStore};
use crate::types::{Epoch, Incarnation, KeyspaceId, Monotonic, NodeId, Now, Seq, StoreId, WallTime};

const PEER: NodeId = NodeId(2);

/// A node whose disk has not finished anything by itself.
fn node() -> Node {
    let (opened, reader, committer) = MemoryStore::open(StoreId(7), 1);
    let config = NodeConfig::new(NodeId(1));
    Node::recover(config, ClusterConfig::default(), opened.incarnation, &reader, committer.stats()).unwrap()
}

fn give(node: &mut Node, input: Input) -> Vec<Effect> {
    let mut effects = Vec::new();
    node.step(Now { mono: Monotonic(1), wall: WallTime(1) }, input, &mut effects);
    effects
}

fn greet(node: &mut Node) -> Seq {
    let incarnation = Incarnation { store: StoreId(8), boot: 1, nonce: 1 };
    let effects = give(node, Input::PeerUp { node: PEER, incarnation, commit: 0 });
    let persisted = |effect: &Effect| if let Effect::Persist { seq, .. } = effect { Some(*seq) } else { None };
    effects.iter().find_map(persisted).unwrap()
}

fn read() -> Input {
    let (call, role, key) = (CallId(5), Role::Owner, Bytes::from_static(b"k"));
    let message = Message::Read { call, epoch: Epoch(1), role, keyspace: KeyspaceId(0), key, digest: false };
    Input::Message { from: PEER, message }
}

fn answers(effects: &[Effect]) -> usize {
    let is_answer = |effect: &&Effect| match effect {
        // The list of keyspaces and what the clocks show are sent at the beginning of every session.
        Effect::Send { to: PEER, message } => !matches!(message, Message::Keyspaces { .. } | Message::Shown { .. }),
        _ => false,
    };
    effects.iter().filter(is_answer).count()
}

#[test]
fn what_comes_before_the_peer_is_durably_known_is_answered_then() {
    let mut node = node();
    assert_eq!(answers(&give(&mut node, read())), 0, "there is no session");
    let seq = greet(&mut node);
    assert_eq!(answers(&give(&mut node, read())), 0, "the peer is not known yet");
    assert_eq!(answers(&give(&mut node, Input::Persisted { seq })), 1);
    assert_eq!(answers(&give(&mut node, read())), 1);
}

#[test]
fn a_session_that_ends_before_the_peer_is_durably_known_is_never_used() {
    let mut node = node();
    let seq = greet(&mut node);
    give(&mut node, read());
    give(&mut node, Input::PeerDown { node: PEER });
    assert_eq!(answers(&give(&mut node, Input::Persisted { seq })), 0);
    assert_eq!(answers(&give(&mut node, read())), 0, "there is no session");
}
