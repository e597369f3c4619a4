//! Operations as clients see them, and the commands that steer them.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use kv_core::error::RequestError;
use kv_core::topology::{Move, TransferSettings};
use kv_core::types::{PartitionId, WallTime};
use kv_proto::limits::BY_BYTES_MAX;
use kv_proto::status::to_status;
use kv_proto::v1;
use tonic::Status;

use super::Shared;
use super::cluster::propose;
use crate::control::{
    Asked, ClusterState, Command, Done, Operation, OperationId, OperationKind, OperationState, Throttle, migrating_max,
};

/// How long a node may take to learn what the leader has just agreed on.
const APPLY_TIMEOUT: Duration = Duration::from_secs(2);

/// Who asks, checked.
///
/// # Errors
/// `INVALID_ARGUMENT` if the text is too long or not printable.
pub(super) fn asked(shared: &Shared, by: String) -> Result<Asked, Status> {
    let plain = by.len() <= BY_BYTES_MAX && !by.chars().any(char::is_control);
    if !plain {
        let message = format!("by: has {} bytes, {BY_BYTES_MAX} without control characters are allowed", by.len());
        return Err(to_status(RequestError::invalid(message)));
    }
    Ok(Asked { by, at: shared.clock.now().wall })
}

/// The remembered operations.
///
/// # Errors
/// `NOT_FOUND` if one is asked for that is not remembered.
pub(super) fn list(shared: &Shared, request: &v1::OperationsRequest) -> Result<v1::OperationsResponse, Status> {
    let state = shared.state();
    let wanted = |operation: &&Operation| request.id == 0 || operation.id.0 == request.id;
    let operations: Vec<v1::Operation> =
        state.operations.iter().filter(wanted).map(|operation| to_wire(&state, operation, request.details)).collect();
    if request.id != 0 && operations.is_empty() {
        return Err(to_status(unknown(request.id)));
    }
    Ok(v1::OperationsResponse { operations, throttle: Some(throttle_to_wire(&state)) })
}

fn unknown(id: u64) -> RequestError {
    let message = format!("there is no operation {id}; op ls lists those that are remembered");
    RequestError::new(kv_core::error::Kind::NotFound, message)
}

/// What is done to an operation that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Steer {
    Pause,
    Resume,
    Cancel,
}

/// Has an operation paused, resumed or cancelled.
///
/// # Errors
/// As the control plane says.
pub(super) async fn steer(shared: &Shared, steer: Steer, id: u64, by: String) -> Result<v1::Operation, Status> {
    let (operation, asked) = (OperationId(id), asked(shared, by)?);
    let command = match steer {
        Steer::Pause => Command::Pause { operation, asked },
        Steer::Resume => Command::Resume { operation, asked },
        Steer::Cancel => Command::Cancel { operation, asked },
    };
    propose(shared, command).await?;
    let agreed = |state: &ClusterState| {
        let found = state.operation(operation).map(|operation| operation.state);
        match (steer, found) {
            (Steer::Pause, Some(found)) => found != OperationState::Running,
            (Steer::Resume, Some(found)) => found != OperationState::Paused,
            (Steer::Cancel, Some(found)) => !found.is_active(),
            (_, None) => false,
        }
    };
    let state = caught_up(shared, agreed).await;
    let operation = state.operation(operation).ok_or_else(|| to_status(unknown(id)))?;
    Ok(to_wire(&state, operation, false))
}

/// Has transfers of an operation begin again.
///
/// # Errors
/// As the control plane says.
pub(super) async fn retry(shared: &Shared, request: v1::RetryRequest) -> Result<v1::RetryResponse, Status> {
    let v1::RetryRequest { id, by, partitions } = request;
    let (operation, asked) = (OperationId(id), asked(shared, by)?);
    let count = shared.state().layout.as_ref().map_or(0, |layout| layout.partition_count());
    let named: Vec<PartitionId> =
        partitions.iter().map(|&partition| partition_of(partition, count)).collect::<Result<_, _>>()?;
    let command = Command::Retry { operation, partitions: named, asked };
    let Done::Retried { retry, .. } = propose(shared, command).await? else {
        return Err(Status::internal("the command did something else"));
    };
    let is_known = |found: &Operation| found.retries >= retry || !found.state.is_active();
    let state = caught_up(shared, |state| state.operation(operation).is_some_and(is_known)).await;
    let found = state.operation(operation).ok_or_else(|| to_status(unknown(id)))?;
    // Those of a later retry are listed, too.
    let named: Vec<u32> = found.retried_after(retry.saturating_sub(1)).map(|partition| partition.0.into()).collect();
    Ok(v1::RetryResponse { operation: Some(to_wire(&state, found, false)), partitions: named, retry })
}

/// One of `count` partitions.
///
/// # Errors
/// `NOT_FOUND` for a number that none has.
pub(super) fn partition_of(number: u32, count: u32) -> Result<PartitionId, Status> {
    let found = u16::try_from(number).ok().filter(|_| number < count).map(PartitionId);
    found.ok_or_else(|| {
        let message = format!("there is no partition {number}; the cluster has 0 to {}", count.saturating_sub(1));
        to_status(RequestError::new(kv_core::error::Kind::NotFound, message))
    })
}

/// The agreed state, once it shows what was just agreed on: where another node leads, this one learns it a moment later.
pub(super) async fn caught_up(shared: &Shared, agreed: impl Fn(&ClusterState) -> bool) -> Arc<ClusterState> {
    let mut state = shared.control.state();
    // If it takes too long, the caller sees what is known here.
    drop(tokio::time::timeout(APPLY_TIMEOUT, state.wait_for(|state| agreed(state))).await);
    shared.state()
}

/// Limits how fast nodes copy.
///
/// # Errors
/// `INVALID_ARGUMENT` for a limit that is not possible, otherwise as the control plane says.
pub(super) async fn throttle(shared: &Shared, request: v1::ThrottleRequest) -> Result<v1::ThrottleResponse, Status> {
    let asked = asked(shared, request.by)?;
    let limit = match request.bytes_per_second_max {
        None => None,
        Some(bytes) => Some(NonZeroU64::new(bytes).ok_or_else(|| {
            let message =
                "bytes_per_second_max: is 0; pause the operation to stop it, or leave the field out for no limit";
            to_status(RequestError::invalid(message))
        })?),
    };
    propose(shared, Command::Throttle { bytes_per_second_max: limit, asked: asked.clone() }).await?;
    let mut state = ClusterState::clone(&shared.state());
    // What was agreed on, even if this node applies it a moment later.
    state.throttle = Throttle { bytes_per_second_max: limit, asked: Some(asked) };
    Ok(v1::ThrottleResponse { throttle: Some(throttle_to_wire(&state)) })
}

/// The limit on copying.
pub(super) fn throttle_to_wire(state: &ClusterState) -> v1::ThrottleSetting {
    let Throttle { bytes_per_second_max, asked } = &state.throttle;
    let partitions = state.layout.as_ref().map_or(0, |layout| layout.partition_count());
    v1::ThrottleSetting {
        bytes_per_second_max: bytes_per_second_max.map(NonZeroU64::get),
        by: asked.as_ref().map_or_else(String::new, |asked| asked.by.clone()),
        set_us: asked.as_ref().map_or(0, |asked| asked.at.0),
        transfers_max: TransferSettings::TRANSFERS_MAX.into(),
        migrating_max: u32::try_from(migrating_max(partitions)).unwrap_or(u32::MAX),
    }
}

/// The newest operation, without details.
pub(super) fn newest(state: &ClusterState) -> Option<v1::Operation> {
    state.operations.back().map(|operation| to_wire(state, operation, false))
}

/// An operation as it travels.
pub(super) fn to_wire(state: &ClusterState, operation: &Operation, details: bool) -> v1::Operation {
    let layout = state.layout.as_deref();
    let active = operation.state.is_active();
    let migrating = layout.filter(|_| active).map_or(0, |layout| {
        u32::try_from(layout.partitions.iter().filter(|entry| entry.joint.is_some()).count()).unwrap_or(u32::MAX)
    });
    let moment = |at: Option<WallTime>| at.map_or(0, |at| at.0);
    let moves = operation.moves.iter().filter(|_| details);
    v1::Operation {
        id: operation.id.0,
        kind: kind_to_wire(operation.kind()).into(),
        command: operation.command.clone(),
        state: state_to_wire(operation.state).into(),
        plan_hash: operation.hash.to_string(),
        parent_epoch: operation.parent.0,
        by: operation.asked.by.clone(),
        begun_us: operation.asked.at.0,
        first_cut_over_us: moment(operation.first_cut_over),
        last_cut_over_us: moment(operation.last_cut_over),
        ended_us: moment(operation.ended.as_ref().map(|asked| asked.at)),
        ended_by: operation.ended.as_ref().map_or_else(String::new, |asked| asked.by.clone()),
        moves: operation.moves_planned,
        moves_minimum: operation.moves_minimum,
        moved: operation.moved,
        keys_planned: operation.estimate.keys,
        bytes_planned: operation.estimate.bytes,
        keys_moved: operation.copied.keys,
        bytes_moved: operation.copied.bytes,
        receipts: operation.receipts_agreed,
        migrating,
        retries: operation.retries,
        outcome: operation.outcome.clone(),
        undo: if active { format!("op cancel {}", operation.id) } else { operation.undo.clone() },
        entering: operation.entering.iter().map(|node| node.0).collect(),
        leaving: operation.leaving.iter().map(|node| node.0).collect(),
        details: moves.map(|step| move_to_wire(state, operation, step)).collect(),
    }
}

fn move_to_wire(state: &ClusterState, operation: &Operation, step: &Move) -> v1::OperationMove {
    let entry = state.layout.as_ref().and_then(|layout| layout.entry(step.partition));
    let receipt = operation.receipts.get(&(step.partition, step.to));
    let ended = operation.state == OperationState::Done;
    v1::OperationMove {
        partition: u32::from(step.partition.0),
        from: step.from.map_or(0, |from| from.0),
        to: step.to.0,
        source: step.source.0,
        moved: ended || entry.is_some_and(|entry| entry.joint.is_none() && entry.owns(step.to)),
        receipt: receipt.map(|receipt| v1::Receipt {
            joint_epoch: receipt.joint.0,
            store_id: receipt.store.0,
            sources: receipt
                .sources
                .iter()
                .map(|source| v1::ReceiptSource { node: source.node.0, merkle_root: source.root })
                .collect(),
            keys: receipt.keys,
            bytes: receipt.bytes,
        }),
    }
}

fn state_to_wire(state: OperationState) -> v1::OperationState {
    match state {
        OperationState::Running => v1::OperationState::Running,
        OperationState::Paused => v1::OperationState::Paused,
        OperationState::Done => v1::OperationState::Done,
        OperationState::Cancelled => v1::OperationState::Cancelled,
    }
}

fn kind_to_wire(kind: Option<OperationKind>) -> v1::OperationKind {
    match kind {
        None => v1::OperationKind::Unspecified,
        Some(OperationKind::Rebalance) => v1::OperationKind::Rebalance,
        Some(OperationKind::Zone) => v1::OperationKind::Zone,
        Some(OperationKind::Weight) => v1::OperationKind::Weight,
        Some(OperationKind::Copies) => v1::OperationKind::Copies,
        Some(OperationKind::Add) => v1::OperationKind::Add,
        Some(OperationKind::Remove) => v1::OperationKind::Remove,
        Some(OperationKind::Replace) => v1::OperationKind::Replace,
    }
}
