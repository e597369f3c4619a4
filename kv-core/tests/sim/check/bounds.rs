//! Invariant 9: what a node holds is bounded by its configuration.

use kv_core::config::NodeConfig;
use kv_core::node::Status;

use crate::settings::node_id;

/// Bytes of hints by which a node may pass its limit: records are let in one by one while there is room for any, and
/// several may be on their way into the store.
const HINT_BYTES_SLACK: u64 = 16 * 1024;

/// Whether a node keeps to its limits.
pub(crate) fn are_kept(machine: usize, status: &Status, loops: usize, config: &NodeConfig) -> Result<(), String> {
    let node = node_id(machine);
    // Each loop has an equal part of a limit, rounded up, and lets one alone pass that is larger.
    let over_loops = |most: usize, one: usize| most.div_ceil(loops).max(one) * loops;
    if status.requests > over_loops(config.requests_max, 1) {
        return Err(format!(
            "invariant 9: {node} has {} requests, {} are allowed",
            status.requests, config.requests_max
        ));
    }
    // One that is larger than the bound is let in alone.
    let one = 16 * 1024;
    let bytes = [
        ("of puts", status.request_bytes, config.request_bytes_max),
        ("of answers of replicas", status.answer_bytes, config.answer_bytes_max),
        ("that a peer has not answered", status.peer_bytes, config.peer_bytes_max + config.request_bytes_max),
    ];
    for (what, found, allowed) in bytes {
        if found > over_loops(allowed, one) {
            return Err(format!("invariant 9: {node} holds {found} bytes {what}, {allowed} are allowed"));
        }
    }
    if status.hint_bytes > config.hint_bytes_max + HINT_BYTES_SLACK * loops as u64 {
        return Err(format!(
            "invariant 9: {node} holds {} bytes of hints, {} are allowed",
            status.hint_bytes, config.hint_bytes_max
        ));
    }
    Ok(())
}
