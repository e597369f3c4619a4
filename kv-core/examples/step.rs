//! The smallest shell around the engine: one node, the memory engine, and every effect carried out on the spot.
//!
//!     cargo run -p kv-core --example step
//!
//! It prints what goes into `Node::step` and what comes out. A server does the same with threads, disks and sockets.

#![allow(clippy::print_stdout, reason = "showing the steps is its purpose")]

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;

use bytes::Bytes;
use kv_core::config::{ClusterConfig, NodeConfig};
use kv_core::message::{Consistency, KeyRequest, Operation, Outcome, Request};
use kv_core::node::{Effect, Input, Node, Tag};
use kv_core::ring::{FIRST_EPOCH, FirstLayout, Member, first_layout};
use kv_core::storage::{Committer, MemoryCommitter, MemoryReader, MemoryStore, Reader};
use kv_core::types::{ClusterId, Epoch, HashSeed, KeyspaceId, Monotonic, NodeId, Now, StoreId, WallTime};

struct Shell {
    node: Node,
    reader: MemoryReader,
    committer: MemoryCommitter,
    now: Now,
}

impl Shell {
    /// Gives one input and carries out what follows from it, until nothing follows any more.
    fn give(&mut self, input: Input) -> Result<Option<Outcome>, Box<dyn Error>> {
        let mut answer = None;
        let mut inputs = vec![input];
        while let Some(input) = inputs.pop() {
            println!("in   {input:?}");
            let mut effects = Vec::new();
            self.node.step(self.now, input, &mut effects);
            for effect in effects {
                println!("out  {effect:?}");
                match effect {
                    Effect::Read { read, key } => {
                        inputs.push(Input::ReadDone { read, result: self.reader.get(&key) });
                    }
                    // What depends on the batch comes out with the step that learns that it is durable.
                    Effect::Persist { seq, batch } => {
                        self.committer.commit(&[batch], seq)?;
                        inputs.push(Input::Persisted { seq });
                    }
                    Effect::Reply { outcome, .. } => answer = Some(outcome),
                    // One node has nobody to send to, and this program ends before a timer would fire.
                    _ => {}
                }
            }
        }
        Ok(answer)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let store = StoreId(7);
    let (opened, reader, committer) = MemoryStore::open(store, 1);
    let member = Member { name: "n1".into(), zone: "a".into(), weight: 1.0, store, spare: false };
    let layout = first_layout(FirstLayout {
        cluster: ClusterId(1),
        seed: HashSeed(1),
        epoch: FIRST_EPOCH,
        copies: 1,
        partitions: 4,
        members: BTreeMap::from([(NodeId(1), member)]),
    })?;
    let config = NodeConfig::new(NodeId(1));
    let node = Node::recover(config, ClusterConfig::default(), opened.incarnation, &reader, committer.stats())?;
    let now = Now { mono: Monotonic(1), wall: WallTime(1_700_000_000_000_000) };
    let mut shell = Shell { node, reader, committer, now };
    shell.give(Input::Layout(Arc::new(layout)))?;

    let value = Some(Bytes::from_static(b"Ada"));
    let put = Operation::plain_write(value);
    for (tag, operation) in [(Tag(1), put), (Tag(2), Operation::Get)] {
        let request = Request::Key(KeyRequest {
            keyspace: KeyspaceId(0),
            key: Bytes::from_static(b"user:42"),
            epoch: Epoch(0),
            consistency: Consistency::default(),
            operation,
        });
        let answer = shell.give(Input::Request { tag, request, deadline: None })?;
        println!("=>   {answer:?}\n");
    }
    Ok(())
}
