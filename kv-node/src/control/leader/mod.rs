//! What the leader does: it admits nodes, founds and forms the cluster, takes the next step of an operation when the
//! members' reports allow it, and keeps the Raft group equal to the members.
//!
//! | module | concept |
//! | --- | --- |
//! | `admission` | answering a node that makes itself known |
//! | `forming` | founding a cluster and forming it |
//! | `operations` | the members' reports, and the next step of an operation |
//! | `membership`, `voters` | who takes part in the Raft group and who votes |
//! | `proposals` | having a command agreed on |

mod admission;
mod forming;
mod membership;
mod operations;
mod proposals;
mod voters;

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::peers::RaftId;
use super::raft::{Group, leads};
use super::state::Phase;
pub(super) use membership::voters_wanted;
pub(super) use operations::Reports;
#[cfg(test)]
pub(super) use operations::next_step;
pub use operations::{REPORT_EVERY, TransferReport};
pub(super) use proposals::command_id;
pub use voters::{Candidate, choose};

/// The log on disk may have this many bytes before a snapshot is made whatever the number of entries.
const LOG_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// A snapshot for the log's size is worth it when at least this many entries are behind the last one.
const SNAPSHOT_GAIN_MIN: u64 = 16;

/// The leader's part of a node. Every node has one; it does nothing while another node leads.
pub(super) struct Leader {
    group: Arc<Group>,
    /// What nodes have reported while this one led.
    reports: Mutex<Reports>,
    /// Notified when a report is new.
    reported: Notify,
    /// Since when stores take part that belong to no member any more.
    surplus: Mutex<BTreeMap<RaftId, Instant>>,
}

impl Leader {
    pub(super) fn new(group: Arc<Group>) -> Self {
        Self { group, reports: Mutex::default(), reported: Notify::new(), surplus: Mutex::default() }
    }
}

/// Runs until the node stops.
pub(super) async fn run(leader: Arc<Leader>) {
    let mut state = leader.group.state.clone();
    let mut servers = leader.group.raft.server_metrics();
    loop {
        state.borrow_and_update();
        servers.borrow_and_update();
        review(&leader).await;
        let changed = tokio::select! {
            changed = state.changed() => changed.is_ok(),
            changed = servers.changed() => changed.is_ok(),
            () = leader.reported.notified() => true,
            () = tokio::time::sleep(leader.group.timing.review) => true,
        };
        if !changed {
            return;
        }
    }
}

async fn review(leader: &Leader) {
    bound_log(leader).await;
    loop {
        let metrics = leader.group.metrics();
        if !leads(&metrics, &leader.group.timing) {
            return;
        }
        let state = leader.group.state();
        let progressed = match state.phase {
            Phase::Unfounded => forming::found(leader).await,
            Phase::Forming(founding) if forming::is_complete(&state, founding) => {
                forming::form(leader, &state, founding).await
            }
            Phase::Forming(_) => false,
            Phase::Formed { .. } => operations::propose_next_step(leader, &state).await,
        };
        if progressed {
            continue;
        }
        match membership::next_change(leader, &state, &metrics) {
            Some(change) => {
                if !membership::carry_out(leader, change).await {
                    return;
                }
            }
            None => return,
        }
    }
}

/// Makes a snapshot if the log has grown long in bytes, which the engine does not check.
async fn bound_log(leader: &Leader) {
    let metrics = leader.group.metrics();
    let applied = metrics.last_applied.map_or(0, |id| id.index);
    let covered = metrics.snapshot.map_or(0, |id| id.index);
    if leader.group.log_bytes() > LOG_BYTES_MAX && applied.saturating_sub(covered) >= SNAPSHOT_GAIN_MIN {
        report_failure("make a snapshot", leader.group.raft.trigger().snapshot().await);
    }
}

fn report_failure<T, E: std::fmt::Display>(what: &str, result: Result<T, E>) -> bool {
    result.inspect_err(|error| tracing::debug!(%error, "the control plane could not {what}")).is_ok()
}
