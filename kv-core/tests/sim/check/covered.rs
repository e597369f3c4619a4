//! Rule M1: a receipt says the truth. Each of its sources acted on the joint epoch, and from then on confirmed nothing at
//! an earlier one; everything that it durably held at that moment is durably held or dominated by the receiver. There
//! are as many sources as the entry demands.

use std::sync::Arc;

use kv_core::ring::Layout;
use kv_core::storage::Space;
use kv_core::topology::Receipt;
use kv_core::types::{Epoch, PartitionId};
use kv_core::version::Context;

use super::collected;
use crate::history::KeyId;
use crate::settings::machine_of;
use crate::world::World;

/// What a machine durably holds of a partition.
pub(crate) fn held(world: &World, machine: usize, partition: PartitionId) -> Vec<(KeyId, Context)> {
    let keys = world.history.key_ids().filter(|key| world.history.key(*key).partition == partition);
    let context = |key: KeyId| {
        let record = world.machines[machine].disk.durable_record(&world.storage_key(Space::Owned, key));
        (key, record.unwrap_or_default().context)
    };
    keys.map(context).collect()
}

/// A machine acts on a layout for a partition, after an older one: it is fenced for the migration if it is an old owner.
pub(crate) fn fence(world: &mut World, machine: usize, partition: PartitionId, after: Epoch, now: Epoch) {
    let is_passed = |layout: &&Arc<Layout>| layout.epoch > after && layout.epoch <= now;
    let passed: Vec<Arc<Layout>> = world.layouts.iter().filter(is_passed).cloned().collect();
    for entry in passed.iter().filter_map(|layout| layout.entry(partition)) {
        let old = entry.owners.iter().any(|owner| machine_of(owner.node) == machine);
        if let Some(joint) = entry.joint.as_ref().filter(|_| old) {
            let at = (machine, partition, joint.epoch);
            if !world.fenced.contains_key(&at) {
                let held = held(world, machine, partition);
                world.fenced.insert(at, held);
            }
        }
    }
}

/// Whether a receipt says the truth.
pub(crate) fn is_true(world: &World, receipt: &Receipt) -> Result<(), String> {
    let partition = receipt.partition;
    let machine = machine_of(receipt.node);
    let entries = world.layouts.iter().filter_map(|layout| layout.entry(partition));
    let found = entries.rev().find_map(|entry| Some((entry, entry.joint.as_ref()?)));
    let Some((entry, joint)) = found.filter(|(_, joint)| joint.epoch == receipt.joint) else {
        // Of a migration that the control plane has already forgotten about; it will not count.
        return if world.layouts.iter().any(|layout| layout.epoch == receipt.joint) {
            Ok(())
        } else {
            Err(format!("rule E3: a receipt of {partition} is for {}, which is no layout", receipt.joint))
        };
    };
    let stays = entry.owners.iter().any(|owner| owner.node == receipt.node);
    let sources = receipt.sources.len() + usize::from(stays);
    if sources < usize::from(joint.sources_min) {
        return Err(format!(
            "rule M1: {} is covered by {sources} old owners of {partition}, {} are demanded",
            receipt.node, joint.sources_min
        ));
    }
    for source in &receipt.sources {
        let from = machine_of(source.node);
        let Some(fenced) = world.fenced.get(&(from, partition, joint.epoch)) else {
            // A store that was lost meanwhile was fenced as well; what it held then is not known any more.
            if world.machines[from].ever_lost {
                continue;
            }
            return Err(format!(
                "rule M1: {} copied {partition} from {}, which does not act on {} yet",
                receipt.node, source.node, joint.epoch
            ));
        };
        for (key, context) in fenced.iter().filter(|(key, _)| !world.history.is_dropped(*key)) {
            let record = world.machines[machine].disk.durable_record(&world.storage_key(Space::Owned, *key));
            let seen = collected::with_collected(world, *key, &record.unwrap_or_default().context);
            if !seen.dominates(context) {
                return Err(format!(
                    "rule M1: {} gives a receipt for {partition}, but lacks what {} held of {key:?} when it was fenced",
                    receipt.node, source.node
                ));
            }
        }
    }
    Ok(())
}
