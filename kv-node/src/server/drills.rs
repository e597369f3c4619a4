//! Faults that an operator injects into this node.

use kv_proto::status::to_status;
use kv_proto::v1::{self, EventKind, Severity};
use tonic::Status;

use super::Shared;
use super::operations::asked;
use crate::events::NewEvent;
use crate::faults::InWords;

/// Acts out these faults from now on, and says so; without any it tells those that it acts out.
///
/// # Errors
/// `FAILED_PRECONDITION` if this node takes none, `INVALID_ARGUMENT` if one of them cannot be.
pub(super) fn set(shared: &Shared, request: v1::SetFaultsRequest) -> Result<v1::SetFaultsResponse, Status> {
    let v1::SetFaultsRequest { faults, by } = request;
    let asked = asked(shared, by)?;
    let changed = match faults {
        Some(faults) => shared.faults.set(faults),
        None => shared.faults.check().map(|()| None),
    };
    let changed = changed.map_err(to_status)?;
    if let Some(faults) = changed {
        let by = if asked.by.is_empty() { "unknown" } else { &asked.by };
        let (severity, kind, message) = if faults == v1::Faults::default() {
            (Severity::Info, EventKind::FaultsEnded, format!("{} acts out no faults any more, by {by}", shared.name))
        } else {
            let what = InWords(&faults);
            (Severity::Warning, EventKind::FaultsSet, format!("{} acts out faults: {what}; by {by}", shared.name))
        };
        shared.event(NewEvent { severity, kind, message, undo: String::new() });
    }
    Ok(v1::SetFaultsResponse { faults: shared.faults.get() })
}
