//! A node as it begins: from what its store holds, and with what an earlier run has left to do.

use std::sync::Arc;

use super::{Node, ctx};
use crate::comparisons::Comparisons;
use crate::config::{ClusterConfig, NodeConfig};
use crate::error::StorageError;
use crate::exchange::{Exchanges, Serving};
use crate::filling::Filling;
use crate::handoff::Handoff;
use crate::kernel;
use crate::purge::Purge;
use crate::replication::Replications;
use crate::requests::Requests;
use crate::residue::Residues;
use crate::slices::Slices;
use crate::storage::{Reader, Space, Stats};
use crate::sweeper::Sweeper;
use crate::types::{Incarnation, Monotonic, NodeId};
use crate::view::{View, meta};
use crate::wiring::{Kernel, Peers, Timer};

impl Node {
    /// Builds the loop from what the store holds. `stats` are those of the store as opened.
    ///
    /// # Errors
    /// If the node's own entries cannot be read.
    pub fn recover(
        config: NodeConfig,
        cluster: ClusterConfig,
        incarnation: Incarnation,
        reader: &impl Reader,
        stats: &Stats,
    ) -> Result<Self, StorageError> {
        let config = Arc::new(config);
        let view = View::recover(config.clone(), cluster, incarnation, reader)?;
        let seen = meta::read_all(reader, meta::PEER, |id| NodeId(u64::from_be_bytes(id)))?;
        let held = kernel::Holding {
            hints: stats.total(Space::Hint).records,
            hint_bytes: stats.total(Space::Hint).bytes,
            missed_writes: stats.total(Space::Missed).records,
        };
        let mut node = Self {
            kernel: Kernel::new(config, incarnation, Peers::new(seen), held),
            requests: Requests::default(),
            replications: Replications::default(),
            slices: Slices::default(),
            exchanges: Exchanges::default(),
            serving: Serving::default(),
            filling: Filling::recover(reader)?,
            residues: Residues::recover(&view, stats),
            comparisons: Comparisons::default(),
            handoff: Handoff::default(),
            sweeper: Sweeper::default(),
            purge: Purge::recover(&view, reader, stats)?,
            view,
            poisoned: None,
        };
        // Whatever the last run left to do is looked for at the first step.
        node.kernel.arm(Monotonic(0), Timer::Handoff);
        node.kernel.arm(Monotonic(0), Timer::Sweep);
        node.kernel.arm(Monotonic(0), Timer::Repair);
        node.purge.resume(ctx!(node));
        node.filling.restart(ctx!(node), &mut node.exchanges, &|_| false);
        node.comparisons.restart(ctx!(node), &mut node.exchanges, &|_| true);
        node.residues.plan(ctx!(node), &mut node.exchanges);
        Ok(node)
    }
}
