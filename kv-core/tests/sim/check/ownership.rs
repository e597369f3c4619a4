//! Invariant 6: a node answers only for partitions that it owns at the epoch of the question, and not while its store is
//! being refilled. One that enters a migrating partition answers, too; its answers count among the new owners only.

use std::sync::Arc;

use kv_core::ring::Layout;
use kv_core::types::{Epoch, PartitionId};

use crate::settings::node_id;

/// Whether a machine may answer a question about these partitions as their owner.
pub(crate) fn may_answer(
    machine: usize,
    about: &[(PartitionId, Epoch)],
    layouts: &[Arc<Layout>],
    is_unsynced: impl Fn(PartitionId) -> bool,
) -> Result<(), String> {
    let node = node_id(machine);
    for (partition, epoch) in about {
        let entries = layouts.iter().filter_map(|layout| layout.entry(*partition));
        let Some(entry) = entries.rev().find(|entry| entry.changed == *epoch) else {
            return Err(format!("{node} answers for {partition} at {epoch}, at which its entry never changed"));
        };
        if !entry.owns(node) {
            return Err(format!("invariant 6: {node} answers for {partition}, which it does not own at {epoch}"));
        }
        if is_unsynced(*partition) && !entry.enters(node) {
            return Err(format!("{node} answers for {partition}, which its store has lost and not refilled (rule D2)"));
        }
    }
    Ok(())
}
