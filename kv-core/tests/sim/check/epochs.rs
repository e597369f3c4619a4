//! Invariant 7: epochs only grow. A node that has acted on a layout finds it again after any crash (rule E1).

use kv_core::types::Epoch;

use crate::settings::node_id;

/// Whether a node that has acted on `before` may go on with `now`.
pub(crate) fn never_fall(machine: usize, now: Epoch, before: Epoch) -> Result<(), String> {
    if now >= before {
        return Ok(());
    }
    Err(format!("invariant 7: {} has acted on layout {before} and goes on with {now}", node_id(machine)))
}
