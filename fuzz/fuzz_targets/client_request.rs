//! A message of a client's batch, and its operations behind the edge.

#![no_main]

use kv_core::config::{ClusterConfig, Keyspace, Mode};
use kv_core::types::KeyspaceId;
use kv_proto::edge::{Edge, Keyspaces};
use kv_proto::v1;
use libfuzzer_sys::fuzz_target;
use prost::Message as _;

fuzz_target!(|bytes: &[u8]| {
    let Ok(batch) = v1::BatchRequest::decode(bytes) else { return };
    assert_eq!(v1::BatchRequest::decode(&batch.encode_to_vec()[..]), Ok(batch.clone()));
    // Each mode takes what the other refuses.
    let consistent = Keyspace { id: KeyspaceId(1), name: "c".to_owned(), mode: Mode::Consistent };
    let keyspaces = Keyspaces::from_iter([Keyspace::initial(), consistent]);
    let limits = ClusterConfig::default();
    let edge = Edge { limits: &limits, keyspaces: &keyspaces };
    for operation in &batch.operations {
        if let Err(error) = edge.operation(operation) {
            assert!(!error.message.is_empty());
        }
    }
});
