//! The audit trail as it travels, and as it is logged.

use std::sync::Arc;

use kv_proto::v1::{self, EventKind, Severity};

use super::Shared;
use crate::control::{AuditEntry, AuditKind};

/// An entry of the trail as an event.
pub(super) fn to_wire(entry: &AuditEntry) -> v1::Event {
    let AuditEntry { number, at, by, kind, what, command, undo } = entry.clone();
    let severity = if kind.is_warning() { Severity::Warning } else { Severity::Info };
    v1::Event {
        sequence: number,
        time_us: at.0,
        node: 0,
        severity: severity.into(),
        kind: event_kind(kind).into(),
        message: what,
        undo,
        audit: Some(v1::Audit { by, command }),
    }
}

fn event_kind(kind: AuditKind) -> EventKind {
    match kind {
        AuditKind::ClusterFounded => EventKind::ClusterFounded,
        AuditKind::ClusterFormed => EventKind::ClusterFormed,
        AuditKind::MemberJoined => EventKind::MemberJoined,
        AuditKind::MemberMoved => EventKind::MemberMoved,
        AuditKind::StoreReplaced => EventKind::StoreReplaced,
        AuditKind::MemberLeft => EventKind::MemberLeft,
        AuditKind::KeyspaceCreated => EventKind::KeyspaceCreated,
        AuditKind::KeyspaceDropped => EventKind::KeyspaceDropped,
        AuditKind::OperationBegun => EventKind::OperationBegun,
        AuditKind::OperationPaused => EventKind::OperationPaused,
        AuditKind::OperationResumed => EventKind::OperationResumed,
        AuditKind::OperationRetried => EventKind::OperationRetried,
        AuditKind::OperationCancelled => EventKind::OperationCancelled,
        AuditKind::OperationDone => EventKind::OperationDone,
        AuditKind::ThrottleChanged => EventKind::ThrottleChanged,
        AuditKind::GenerationFounded => EventKind::GenerationFounded,
        AuditKind::MemberRejoined => EventKind::MemberRejoined,
    }
}

/// Logs each change of the cluster that this node learns of while it runs.
pub(crate) async fn log(shared: Arc<Shared>) {
    let mut state = shared.control.state();
    let mut logged = state.borrow().audit.newest();
    while state.changed().await.is_ok() {
        for AuditEntry { number, by, kind, what, command, undo, .. } in state.borrow_and_update().audit.after(logged) {
            tracing::info!(event = event_kind(*kind).word(), by, command, undo, "{what}");
            logged = *number;
        }
    }
}
