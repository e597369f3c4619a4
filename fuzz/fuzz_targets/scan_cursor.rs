//! The cursor of a scan's page as a client passes it, and a whole scan.

#![no_main]

use bytes::Bytes;
use kv_core::config::{ClusterConfig, Keyspace};
use kv_proto::edge::{Edge, Keyspaces, cursor_after};
use kv_proto::v1;
use libfuzzer_sys::fuzz_target;
use prost::Message as _;

fuzz_target!(|bytes: &[u8]| {
    let keyspaces = Keyspaces::from_iter([Keyspace::initial()]);
    let limits = ClusterConfig::default();
    let edge = Edge { limits: &limits, keyspaces: &keyspaces };
    let cursor = v1::ScanRequest { cursor: Bytes::copy_from_slice(bytes), ..Default::default() };
    for wire in [Some(cursor), v1::ScanRequest::decode(bytes).ok()].into_iter().flatten() {
        if let Ok(scan) = edge.scan(&wire) {
            assert_eq!(cursor_after(scan.page.after.as_deref()), wire.cursor);
        }
    }
});
