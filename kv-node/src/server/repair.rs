//! Anti-entropy requested by an operator.

use kv_core::error::RequestError;
use kv_core::node::RepairFigures;
use kv_core::types::PartitionId;
use kv_proto::status::to_status;
use kv_proto::v1::{self, EventKind, Severity};
use tonic::Status;

use super::Shared;
use super::operations::{asked, partition_of};
use crate::events::NewEvent;

/// The most partitions that one request names: as many as there can be.
const PARTITIONS_MAX: usize = 65_536;

/// Has this node compare partitions with their other owners.
///
/// # Errors
/// `NOT_FOUND` for a partition that does not exist, `UNAVAILABLE` while the node does not serve.
pub(super) async fn begin(shared: &Shared, request: v1::RepairRequest) -> Result<v1::RepairResponse, Status> {
    let v1::RepairRequest { partitions: named, by } = request;
    if named.len() > PARTITIONS_MAX {
        let message = format!("partitions: {} are named, {PARTITIONS_MAX} are allowed; name none for all", named.len());
        return Err(to_status(RequestError::invalid(message)));
    }
    let asked = asked(shared, by)?;
    let serving = shared.serving().map_err(to_status)?;
    let state = shared.state();
    let layout = state.layout.as_ref().ok_or_else(|| Status::unavailable("the cluster has no layout yet"))?;
    let count = layout.partition_count();
    let mut partitions: Vec<PartitionId> =
        named.iter().map(|&number| partition_of(number, count)).collect::<Result<_, _>>()?;
    partitions.sort_unstable();
    partitions.dedup();
    if partitions.is_empty() {
        partitions = layout.partition_ids().collect();
    }
    let Some(begun) = serving.engine.repair(partitions).await else {
        return Err(to_status(RequestError::unavailable("the node's engine does not answer; try again")));
    };
    if begun.comparisons > 0 {
        let words: String = named.iter().take(8).map(|partition| format!(" {partition}")).collect();
        let more = if named.len() > 8 { " ..." } else { "" };
        let by = if asked.by.is_empty() { "unknown" } else { &asked.by };
        let what = format!("{} comparisons of {} partitions begun", begun.comparisons, begun.partitions.len());
        shared.event(NewEvent {
            severity: Severity::Info,
            kind: EventKind::RepairBegun,
            message: format!("{what}: repair{words}{more}, by {by}"),
            undo: String::new(),
        });
    }
    let numbers = |partitions: &[PartitionId]| partitions.iter().map(|partition| partition.0.into()).collect();
    Ok(v1::RepairResponse {
        node: shared.node().0,
        partitions: numbers(&begun.partitions),
        comparisons: u32::try_from(begun.comparisons).unwrap_or(u32::MAX),
        down: begun.down.iter().map(|node| node.0).collect(),
        incomplete: numbers(&begun.incomplete),
        before: Some(stats_to_wire(begun.before)),
    })
}

/// The statistics as they travel.
pub(super) fn stats_to_wire(stats: RepairFigures) -> v1::RepairStats {
    let RepairFigures { asked, done, failed, records } = stats;
    v1::RepairStats { asked, done, failed, records }
}
