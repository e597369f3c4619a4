//! Invariant 6: a node answers only for partitions that it owns, and not while its store is being refilled.

use kv_core::ring::Layout;
use kv_core::types::PartitionId;

use crate::settings::node_id;

/// Whether a machine may answer a question about these partitions as their owner.
pub(crate) fn may_answer(
    machine: usize,
    about: &[PartitionId],
    layout: &Layout,
    is_unsynced: impl Fn(PartitionId) -> bool,
) -> Result<(), String> {
    let node = node_id(machine);
    for partition in about {
        if !layout.entry(*partition).is_some_and(|entry| entry.owns(node)) {
            return Err(format!("{node} answers for {partition}, which it does not own"));
        }
        if is_unsynced(*partition) {
            return Err(format!("{node} answers for {partition}, which its store has lost and not refilled (rule D2)"));
        }
    }
    Ok(())
}
