//! A loop as it begins: from what the store holds of its partitions, and with what an earlier run has left to do.

use std::sync::Arc;

use super::{EventLoop, ctx};
use crate::comparisons::Comparisons;
use crate::config::{ClusterConfig, NodeConfig};
use crate::error::StorageError;
use crate::exchange::{Exchanges, Serving};
use crate::filling::Filling;
use crate::handoff::Handoff;
use crate::kernel::{HintsHeld, Holding, Place};
use crate::purge::Purge;
use crate::replication::Replications;
use crate::requests::Requests;
use crate::residue::Residues;
use crate::settled::Settling;
use crate::slices::Slices;
use crate::storage::{Reader, Space, Stats};
use crate::sweeper::Sweeper;
use crate::types::{Incarnation, Monotonic};
use crate::view::{View, meta};
use crate::wiring::{Kernel, Timer};

impl EventLoop {
    /// Builds a loop from what the store holds. `node` are the settings of the whole node.
    ///
    /// # Errors
    /// If the node's own entries cannot be read.
    pub(crate) fn recover(
        node: &NodeConfig,
        index: u16,
        cluster: ClusterConfig,
        incarnation: Incarnation,
        reader: &impl Reader,
        stats: &Stats,
    ) -> Result<Self, StorageError> {
        let config = Arc::new(node.of_loop(index));
        let place = Place { index, of: config.loops.max(1) };
        let (held, hints) = holding(place, stats);
        let view = View::recover(config.clone(), cluster, incarnation, place, reader)?;
        let map_seed = config.map_seed;
        let mut new = Self {
            kernel: Kernel::new(config, incarnation, place, held, hints),
            requests: Requests::new(map_seed),
            replications: Replications::default(),
            slices: Slices::default(),
            exchanges: Exchanges::default(),
            serving: Serving::default(),
            filling: Filling::recover(&view, reader)?,
            residues: Residues::recover(&view, stats),
            comparisons: Comparisons::default(),
            handoff: Handoff::default(),
            sweeper: Sweeper::default(),
            settling: Settling::recover(reader)?,
            purge: Purge::recover(&view, reader, stats)?,
            view,
            poisoned: None,
        };
        new.kernel.recover_floors(meta::read_partitions(reader, meta::FLOOR, place)?);
        // Whatever the last run left to do is looked for at the first step.
        new.kernel.arm(Monotonic(0), Timer::Handoff);
        new.kernel.arm(Monotonic(0), Timer::Sweep);
        new.kernel.arm(Monotonic(0), Timer::Repair);
        new.settling.resume(ctx!(new));
        new.purge.resume(ctx!(new));
        new.filling.restart(ctx!(new), &mut new.exchanges, &|_| false);
        new.comparisons.restart(ctx!(new), &mut new.exchanges, &|_| true);
        new.residues.plan(ctx!(new), &mut new.exchanges);
        Ok(new)
    }
}

/// What a store holds of some partitions beside owned records.
fn holding(place: Place, stats: &Stats) -> (Holding, HintsHeld) {
    let (mut held, mut hints) = (Holding::default(), HintsHeld::new());
    for (partition, stats) in stats.partitions().filter(|(partition, _)| place.serves(*partition)) {
        held.hints += stats.total(Space::Hint).records;
        held.hint_bytes += stats.total(Space::Hint).bytes;
        held.missed_writes += stats.total(Space::Missed).records;
        if stats.total(Space::Hint).records > 0 {
            hints.insert(partition, stats.total(Space::Hint).records);
        }
    }
    (held, hints)
}
