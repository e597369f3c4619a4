//! One node with one copy is a complete store: the smallest shell around `Node::step`, on the memory engine.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kv_core::config::{ClusterConfig, NodeConfig};
use kv_core::error::Kind;
use kv_core::message::{Attempt, Consistency, KeyRequest, Operation, Outcome, Request, Response, ScanRequest, When};
use kv_core::node::{Effect, Input, Node, Tag};
use kv_core::ring::{FIRST_EPOCH, FirstLayout, Layout, Member, first_layout};
use kv_core::storage::{Committer, MemoryCommitter, MemoryReader, MemoryStore, Reader};
use kv_core::types::{ClusterId, Epoch, HashSeed, KeyspaceId, Monotonic, NodeId, Now, StoreId, WallTime};

struct Shell {
    node: Node,
    reader: MemoryReader,
    committer: MemoryCommitter,
    now: Now,
    answers: BTreeMap<Tag, Outcome>,
    asked: u64,
    layout: Layout,
}

impl Shell {
    fn new() -> Self {
        let (opened, reader, committer) = MemoryStore::open(StoreId(7), 1);
        let member = Member { name: "n1".into(), zone: "a".into(), weight: 1.0, store: StoreId(7), spare: false };
        let layout = first_layout(FirstLayout {
            cluster: ClusterId(1),
            seed: HashSeed(1),
            epoch: FIRST_EPOCH,
            copies: 3,
            partitions: 16,
            members: BTreeMap::from([(NodeId(1), member)]),
        })
        .unwrap();
        let config = NodeConfig::new(NodeId(1));
        let node = Node::recover(config, ClusterConfig::default(), opened.incarnation, &reader, committer.stats());
        let now = Now { mono: Monotonic(1), wall: WallTime(1_700_000_000_000_000) };
        let mut shell =
            Self { node: node.unwrap(), reader, committer, now, answers: BTreeMap::new(), asked: 0, layout };
        shell.give(Input::Layout(Arc::new(shell.layout.clone())));
        shell
    }

    /// Gives an input and carries out every effect that follows from it.
    fn give(&mut self, input: Input) {
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            let mut effects = Vec::new();
            self.node.step(self.now, input, &mut effects);
            for effect in effects {
                match effect {
                    Effect::Read { read, key } => {
                        inputs.push(Input::ReadDone { read, result: self.reader.get(&key) });
                    }
                    Effect::Slice { read, request } => {
                        inputs.push(Input::SliceDone { read, result: self.reader.slice(&request) });
                    }
                    Effect::Leaves { read, partition } => {
                        let stats = self.committer.stats().partition(partition).cloned().unwrap_or_default();
                        inputs.push(Input::LeavesDone { read, result: Ok(stats) });
                    }
                    Effect::Persist { seq, batch } => {
                        self.committer.commit(&[batch], seq).unwrap();
                        inputs.push(Input::Persisted { seq });
                    }
                    Effect::Reply { tag, outcome } => {
                        assert!(self.answers.insert(tag, outcome).is_none(), "answered twice");
                    }
                    Effect::Send { .. } => panic!("there is nobody to send to"),
                    Effect::WakeAt(_) | Effect::Event(_) | Effect::Reclaim { .. } => {}
                }
            }
        }
    }

    fn ask(&mut self, request: Request) -> Outcome {
        self.asked += 1;
        let tag = Tag(self.asked);
        self.give(Input::Request { tag, request, deadline: None });
        self.answers.remove(&tag).expect("one node answers at once")
    }

    fn key(&mut self, key: &str, operation: Operation) -> Outcome {
        self.ask(Request::Key(KeyRequest {
            keyspace: KeyspaceId(0),
            key: Bytes::copy_from_slice(key.as_bytes()),
            epoch: Epoch(0),
            consistency: Consistency::default(),
            operation,
        }))
    }

    fn write(&mut self, key: &str, value: Option<&str>, context: Option<Bytes>, ttl: Option<Duration>) -> Outcome {
        let value = value.map(|value| Bytes::copy_from_slice(value.as_bytes()));
        self.key(
            key,
            Operation::Write { request: None, attempt: Attempt::Plain, value, context, ttl, when: When::Always },
        )
    }

    fn get(&mut self, key: &str) -> (Vec<String>, Bytes) {
        match self.key(key, Operation::Get) {
            Ok(Response::Got { values, context, .. }) => {
                (values.iter().map(|value| String::from_utf8_lossy(&value.value).into_owned()).collect(), context)
            }
            other => panic!("{other:?}"),
        }
    }

    fn page(&mut self, prefix: &str, after: Option<Bytes>, limit: usize) -> (Vec<String>, Option<Bytes>) {
        let request = ScanRequest {
            keyspace: KeyspaceId(0),
            prefix: Bytes::copy_from_slice(prefix.as_bytes()),
            after,
            limit,
            keys_only: false,
            consistency: Consistency::default(),
        };
        match self.ask(Request::Scan(request)) {
            Ok(Response::Page { entries, next }) => {
                (entries.iter().map(|entry| String::from_utf8_lossy(&entry.key).into_owned()).collect(), next)
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn puts_gets_and_deletes() {
    let mut shell = Shell::new();
    assert_eq!(shell.get("k").0, Vec::<String>::new());
    shell.write("k", Some("v1"), None, None).unwrap();
    shell.write("k", Some("v2"), None, None).unwrap();
    assert_eq!(shell.get("k").0, ["v2"]);
    shell.write("k", None, None, None).unwrap();
    assert_eq!(shell.get("k").0, Vec::<String>::new());
    assert_eq!(shell.node.status().keys_busy, 0);
    assert_eq!(shell.node.status().requests, 0);
    assert_eq!(shell.node.status().replications, 0);
}

#[test]
fn a_store_that_was_given_up_neither_answers_nor_confirms() {
    let mut shell = Shell::new();
    shell.write("k", Some("v1"), None, None).unwrap();
    // Another store has taken its place: what that one confirmed is not here.
    let mut layout = shell.layout.clone();
    layout.epoch = Epoch(layout.epoch.0 + 1);
    layout.members.get_mut(&NodeId(1)).unwrap().store = StoreId(8);
    shell.give(Input::Layout(Arc::new(layout)));
    assert_eq!(shell.key("k", Operation::Get).unwrap_err().kind, Kind::Unavailable);
    assert_eq!(shell.write("k", Some("v2"), None, None).unwrap_err().kind, Kind::Unavailable);
    assert_eq!(shell.node.status().unsynced.len(), 16);
}

#[test]
fn a_context_replaces_what_was_read_and_nothing_else() {
    let mut shell = Shell::new();
    shell.write("k", Some("a"), None, None).unwrap();
    let (_, read_a) = shell.get("k");
    shell.write("k", Some("b"), Some(read_a.clone()), None).unwrap();
    // The second writer saw only "a": both values survive.
    shell.write("k", Some("c"), Some(read_a), None).unwrap();
    let (values, read_both) = shell.get("k");
    assert_eq!(values, ["b", "c"]);
    shell.write("k", Some("d"), Some(read_both.clone()), None).unwrap();
    assert_eq!(shell.get("k").0, ["d"]);
    let error = shell.write("other", Some("e"), Some(read_both), None).unwrap_err();
    assert_eq!(error.kind, Kind::Invalid);
}

#[test]
fn expired_values_are_absent_and_leave_the_counts() {
    let mut shell = Shell::new();
    shell.write("k", Some("v"), None, Some(Duration::from_secs(5))).unwrap();
    assert_eq!(shell.get("k").0, ["v"]);
    let keys = |shell: &Shell| shell.committer.stats().total(kv_core::storage::Space::Owned).keys;
    assert_eq!(keys(&shell), 1);
    shell.now.wall = shell.now.wall.plus(Duration::from_secs(6));
    assert_eq!(shell.get("k").0, Vec::<String>::new());
    // Within the stated bound each partition has had its turn.
    for _ in 0..64 {
        shell.now.mono = shell.now.mono.plus(NodeConfig::new(NodeId(1)).sweep_every / 32);
        shell.give(Input::Wake);
    }
    assert_eq!(keys(&shell), 0);
}

#[test]
fn scans_are_in_byte_order_and_pages_join_up() {
    let mut shell = Shell::new();
    for index in (0..100).rev() {
        shell.write(&format!("key:{index:03}"), Some("v"), None, None).unwrap();
        shell.write(&format!("other:{index:03}"), Some("v"), None, None).unwrap();
    }
    let mut found = Vec::new();
    let mut after = None;
    loop {
        let (keys, next) = shell.page("key:", after, 7);
        assert!(keys.len() <= 7);
        found.extend(keys);
        match next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    let wanted: Vec<String> = (0..100).map(|index| format!("key:{index:03}")).collect();
    assert_eq!(found, wanted);
}

#[test]
fn bad_requests_name_the_limit() {
    let mut shell = Shell::new();
    let check = |outcome: Outcome, kind: Kind, text: &str| {
        let error = outcome.unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.message.contains(text), "{error}");
    };
    check(shell.write("", Some("v"), None, None), Kind::Invalid, "empty");
    check(shell.write(&"k".repeat(4097), Some("v"), None, None), Kind::Invalid, "4096");
    check(shell.write("k", Some(&"v".repeat(1024 * 1024 + 1)), None, None), Kind::Invalid, "1048576");
    check(shell.write("k", Some("v"), Some(Bytes::from_static(b"no context")), None), Kind::Invalid, "context");
    check(shell.write("k", Some("v"), None, Some(Duration::ZERO)), Kind::Invalid, "time to live");
    let unknown = Request::Inspect { keyspace: KeyspaceId(9), key: Bytes::from_static(b"k") };
    check(shell.ask(unknown), Kind::NotFound, "keyspace");
}
