//! Reads at a node whose sessions end while they are under way: whoever is out of reach is not waited for.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kv_core::cell::Cell;
use kv_core::config::{ClusterConfig, NodeConfig};
use kv_core::error::Kind;
use kv_core::message::{
    CallId, Consistency, KeyRequest, Level, Message, Operation, Outcome, ReadReply, Request, Response,
};
use kv_core::node::{Effect, Input, Node, ReadId, Tag};
use kv_core::ring::{FIRST_EPOCH, FirstLayout, Member, first_layout};
use kv_core::storage::{Committer, MemoryStore};
use kv_core::types::{
    ClusterId, Epoch, HashSeed, Hlc, Incarnation, KeyspaceId, Monotonic, NodeId, Now, StoreId, WallTime,
};
use kv_core::version::Record;

const ME: NodeId = NodeId(1);
const SECOND: NodeId = NodeId(2);
const THIRD: NodeId = NodeId(3);

/// One of three owners, with sessions to both others.
struct Owner {
    node: Node,
    now: Now,
    /// What it has asked of the others and they have not answered, in order: whom, the call, and whether for a digest.
    asked: Vec<(NodeId, CallId, bool)>,
    /// Its own read of the store.
    own: Option<ReadId>,
    answer: Option<Outcome>,
}

fn incarnation(node: NodeId) -> Incarnation {
    Incarnation { store: StoreId(node.0), boot: 1, nonce: 1 }
}

impl Owner {
    fn new() -> Self {
        let (opened, reader, committer) = MemoryStore::open(StoreId(1), 1);
        let member = |node: NodeId| Member {
            name: format!("n{}", node.0),
            zone: "a".into(),
            weight: 1.0,
            store: StoreId(node.0),
            spare: false,
        };
        let layout = first_layout(FirstLayout {
            cluster: ClusterId(1),
            seed: HashSeed(1),
            epoch: FIRST_EPOCH,
            copies: 3,
            partitions: 16,
            members: [ME, SECOND, THIRD].map(|node| (node, member(node))).into(),
        });
        let config = NodeConfig::new(ME);
        let node = Node::recover(config, ClusterConfig::default(), opened.incarnation, &reader, committer.stats());
        let now = Now { mono: Monotonic(1), wall: WallTime(1_700_000_000_000_000) };
        let mut owner = Self { node: node.unwrap(), now, asked: Vec::new(), own: None, answer: None };
        owner.give(Input::Layout(Arc::new(layout.unwrap())));
        for node in [SECOND, THIRD] {
            owner.give(Input::PeerUp { node, incarnation: incarnation(node), commit: 0 });
        }
        owner
    }

    fn give(&mut self, input: Input) {
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            let mut effects = Vec::new();
            self.node.step(self.now, input, &mut effects);
            for effect in effects {
                match effect {
                    Effect::Read { read, .. } => self.own = Some(read),
                    Effect::Persist { seq, .. } => inputs.push(Input::Persisted { seq }),
                    Effect::Reply { outcome, .. } => self.answer = Some(outcome),
                    Effect::Send { to, message: Message::Read { call, digest, .. } } => {
                        self.asked.push((to, call, digest));
                    }
                    _ => {}
                }
            }
        }
    }

    /// Asks for a key at two owners, this node among them.
    fn get(&mut self) {
        let request = Request::Key(KeyRequest {
            keyspace: KeyspaceId(0),
            key: Bytes::from_static(b"k"),
            epoch: Epoch(0),
            consistency: Consistency { level: Level::Quorum, strict: true },
            operation: Operation::Get,
        });
        self.give(Input::Request { tag: Tag(1), request, deadline: None });
    }

    /// The node's own copy is read: it has none.
    fn read_own(&mut self) {
        let read = self.own.take().unwrap();
        self.give(Input::ReadDone { read, result: Ok(None) });
    }

    /// The other one that was asked first answers.
    fn answers(&mut self, record: &Record) -> NodeId {
        self.answers_at(0, record)
    }

    /// One that was asked answers with what it was asked for, the record or its digest.
    fn answers_at(&mut self, index: usize, record: &Record) -> NodeId {
        let (from, call, digest) = self.asked.remove(index);
        let cell = Some(Cell::from(record.clone()));
        let reply = if digest { ReadReply::Digest(cell.as_ref().map(Cell::digest)) } else { ReadReply::Full(cell) };
        self.give(Input::Message {
            from,
            message: Message::ReadResult { call, result: Ok(reply), settled: Hlc::default() },
        });
        from
    }

    fn passes(&mut self, time: Duration) {
        self.now.mono = self.now.mono.plus(time);
        self.give(Input::Wake);
    }
}

fn other(node: NodeId) -> NodeId {
    if node == SECOND { THIRD } else { SECOND }
}

#[test]
fn one_whose_session_has_ended_is_not_asked_when_another_one_is_slow() {
    let mut owner = Owner::new();
    owner.get();
    owner.read_own();
    let slow = owner.asked[0].0;
    owner.give(Input::PeerDown { node: other(slow) });
    owner.passes(Duration::from_millis(60));
    assert_eq!(owner.asked.len(), 1, "nobody is left to ask");
    assert_eq!(owner.answer, None, "the slow one may answer");
    owner.give(Input::PeerDown { node: slow });
    let kind = owner.answer.map(|answer| answer.unwrap_err().kind);
    assert_eq!(kind, Some(Kind::Unavailable), "at once, and not when its time is up");
}

#[test]
fn one_whose_session_has_ended_is_not_asked_for_the_record_of_its_digest() {
    let mut owner = Owner::new();
    owner.get();
    // What it tells is not what this node has, so its record would be needed.
    let gone = owner.answers(&written());
    owner.give(Input::PeerDown { node: gone });
    owner.read_own();
    assert_eq!(owner.asked.iter().map(|asked| asked.0).collect::<Vec<_>>(), [other(gone)]);
    owner.answers(&written());
    assert!(
        matches!(owner.answer, Some(Ok(Response::Got { ref values, .. })) if values.len() == 1),
        "{:?}",
        owner.answer
    );
}

#[test]
fn one_that_falls_silent_behind_its_digest_is_not_waited_for_when_others_tell_enough() {
    let mut owner = Owner::new();
    owner.get();
    let silent = owner.answers(&written());
    owner.read_own();
    let asked = |owner: &Owner| owner.asked.iter().map(|asked| (asked.0, asked.2)).collect::<Vec<_>>();
    assert_eq!(asked(&owner), [(silent, false)], "its record is wanted");
    owner.passes(Duration::from_millis(60));
    assert_eq!(asked(&owner), [(silent, false), (other(silent), false)]);
    owner.answers_at(1, &Record::default());
    assert!(
        matches!(owner.answer, Some(Ok(Response::Got { ref values, .. })) if values.is_empty()),
        "{:?}",
        owner.answer
    );
}

fn written() -> Record {
    use kv_core::types::RequestId;
    use kv_core::version::{Actor, Conflict, ContextToken, Hlc, Replaces, Write};
    let actor = Actor { store: StoreId(2), boot: 1, nonce: 1, instance: 1 };
    let request = RequestId { client: 1, stamp: Hlc(1) };
    let write = Write { written: request.stamp, request, expires: None, value: Some(Bytes::from_static(b"v")) };
    let mut record = Record::default();
    record.write(actor, Replaces::Shown(&ContextToken::default()), Conflict::Siblings, write);
    record
}
