//! The audit trail as it travels, and as it is logged.

use std::sync::Arc;

use kv_proto::v1::{self, Severity};

use super::Shared;
use crate::control::AuditEntry;

/// An entry of the trail as an event.
pub(super) fn to_wire(entry: &AuditEntry) -> v1::Event {
    let AuditEntry { number, at, by, kind, what, command, undo } = entry.clone();
    let severity = if kind.is_warning() { Severity::Warning } else { Severity::Info };
    v1::Event {
        sequence: number,
        time_us: at.0,
        node: 0,
        severity: severity.into(),
        kind: kind.word().to_owned(),
        message: what,
        undo,
        audit: Some(v1::Audit { by, command }),
    }
}

/// Logs each change of the cluster that this node learns of while it runs.
pub(crate) async fn log(shared: Arc<Shared>) {
    let mut state = shared.control.state();
    let mut logged = state.borrow().audit.newest();
    while state.changed().await.is_ok() {
        for AuditEntry { number, by, kind, what, command, undo, .. } in state.borrow_and_update().audit.after(logged) {
            tracing::info!(event = kind.word(), by, command, undo, "{what}");
            logged = *number;
        }
    }
}
