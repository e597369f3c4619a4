//! A stored record that cannot be read is replaced by what the other owners hold, be that nothing, and the statistics are
//! exact afterwards.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use kv_core::cell::Cell;
use kv_core::config::{ClusterConfig, NodeConfig};
use kv_core::message::{Consistency, KeyRequest, Message, Operation, ReadReply, Request};
use kv_core::node::{Effect, Input, Node, Tag};
use kv_core::ring::{FIRST_EPOCH, FirstLayout, Member, first_layout};
use kv_core::storage::{Batch, Committer, Footprint, MemoryStore, Reader, StorageKey, Stored, Write, recount};
use kv_core::types::{
    ClusterId, Epoch, HashSeed, Incarnation, KeyspaceId, Monotonic, NodeId, Now, RequestId, Seq, StoreId, WallTime,
};
use kv_core::version::{Actor, Conflict, ContextToken, Hlc, Record, Replaces, Write as VersionWrite};

const PEER: NodeId = NodeId(2);

fn record() -> Cell {
    let mut record = Record::default();
    let write = VersionWrite {
        written: Hlc(1),
        request: RequestId { client: 1, stamp: Hlc(1) },
        expires: None,
        value: Some(Bytes::from_static(b"value")),
    };
    record.write(
        Actor { instance: 1, ..Actor::default() },
        Replaces::Shown(&ContextToken::default()),
        Conflict::Siblings,
        write,
    );
    record.into()
}

/// A node reads a damaged record while the only other owner holds `theirs`. What is stored in the end.
fn restored(theirs: Option<Cell>) -> Option<Bytes> {
    let (opened, reader, mut committer) = MemoryStore::open(StoreId(1), 1);
    let member = |node: u64| {
        let (name, zone) = (format!("n{node}"), "a".to_owned());
        (NodeId(node), Member { name, zone, weight: 1.0, store: StoreId(node), spare: false })
    };
    let layout = first_layout(FirstLayout {
        cluster: ClusterId(1),
        seed: HashSeed(1),
        epoch: FIRST_EPOCH,
        copies: 2,
        partitions: 4,
        members: BTreeMap::from([member(1), member(2)]),
    })
    .unwrap();
    let key = StorageKey::owned(layout.partition_of(b"key"), KeyspaceId(0), b"key");
    let after = Some(Footprint { live: true, bytes: 10, hash: 1, blank: false });
    let value = Some(Bytes::from_static(b"\x02damage"));
    let damage = Write::Record { key: key.clone(), value, before: None, after, damaged: false };
    committer.commit(&[Batch { writes: vec![damage] }], Seq(1)).unwrap();

    let config = NodeConfig::new(NodeId(1));
    let mut node =
        Node::recover(config, ClusterConfig::default(), opened.incarnation, &reader, committer.stats()).unwrap();
    let get = Request::Key(KeyRequest {
        keyspace: KeyspaceId(0),
        key: Bytes::from_static(b"key"),
        epoch: Epoch(0),
        consistency: Consistency::default(),
        operation: Operation::Get,
    });
    let now = Now { mono: Monotonic(1), wall: WallTime(1_700_000_000_000_000) };
    let incarnation = Incarnation { store: StoreId(2), boot: 1, nonce: 1 };
    for first in [
        Input::Layout(Arc::new(layout)),
        Input::PeerUp { node: PEER, incarnation, commit: 0 },
        Input::Request { tag: Tag(1), request: get, deadline: None },
    ] {
        let mut inputs = vec![first];
        while let Some(input) = inputs.pop() {
            let mut effects = Vec::new();
            node.step(now, input, &mut effects);
            for effect in effects {
                match effect {
                    Effect::Read { read, key } => inputs.push(Input::ReadDone { read, result: reader.get(&key) }),
                    Effect::Persist { seq, batch } => {
                        committer.commit(&[batch], seq).unwrap();
                        inputs.push(Input::Persisted { seq });
                    }
                    Effect::Send { message: Message::Read { call, digest, .. }, .. } => {
                        let held = match digest {
                            true => ReadReply::Digest(theirs.as_ref().map(Cell::digest)),
                            false => ReadReply::Full(theirs.clone()),
                        };
                        let message = Message::ReadResult { call, result: Ok(held), settled: Hlc::default() };
                        inputs.push(Input::Message { from: PEER, message });
                    }
                    _ => {}
                }
            }
        }
    }
    let counted = recount(&reader).unwrap();
    assert_eq!((committer.stats(), counted.damaged), (&counted.stats, Vec::new()));
    reader.get(&key).unwrap()
}

#[test]
fn a_damaged_record_is_replaced_by_that_of_the_other_owner() {
    let bytes = restored(Some(record())).expect("the other owner's record");
    assert_eq!(Stored::decode(&bytes), Ok(Stored { own: None, cell: record() }));
}

#[test]
fn a_damaged_record_that_nobody_else_holds_goes() {
    assert_eq!(restored(None), None);
}
