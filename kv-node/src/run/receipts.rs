//! A node's part in operations: it gets the settings of the running one, reports receipts until they are agreed on, keeps
//! room on its disk, and notices copies that make no progress.

use std::sync::Arc;
use std::time::Duration;

use kv_core::topology::{Receipt, TransferSettings};
use kv_proto::v1::{EventKind, Severity};

use crate::control::{ClusterState, Operation, OperationState, REPORT_EVERY, Reported, TransferReport};
use crate::engine::{Command, Engine, Report};
use crate::events::NewEvent;
use crate::server::Shared;
use crate::transfers::STALL_AFTER;

/// How often a node checks whether it has a part in an operation.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// The settings for the engine, and why nothing is copied if the disk has too little room.
fn settings(state: &ClusterState, free: Option<u64>, reserve: u64, name: &str) -> (TransferSettings, Option<String>) {
    let settings = state.throttle.settings(state.active_operation());
    let short = free.filter(|free| *free < reserve);
    let reason = short.map(|free| {
        format!(
            "no room on the disk of {name}: {free} bytes are free and {reserve} are kept free; make room there, or cancel the \
             operation"
        )
    });
    (TransferSettings { paused: settings.paused || reason.is_some(), ..settings }, reason)
}

/// Receipts that are not agreed on yet, as many as one report takes.
fn unagreed(state: &ClusterState, receipts: &[Receipt]) -> Vec<Receipt> {
    let Some(active) = state.active_operation() else { return Vec::new() };
    let agreed = |receipt: &Receipt| active.receipts.get(&(receipt.partition, receipt.node)) == Some(receipt);
    receipts.iter().filter(|receipt| !agreed(receipt)).take(TransferReport::RECEIPTS_MAX).cloned().collect()
}

/// Plays the node's part for as long as it runs.
pub(super) async fn follow(shared: Arc<Shared>, engine: Engine) {
    let mut state = shared.control.state();
    let mut given: Option<TransferSettings> = None;
    loop {
        let agreed = Arc::clone(&state.borrow_and_update());
        let node = shared.node();
        let busy = agreed.active_operation().is_some() || agreed.leaving.contains_key(&node);
        let free = shared.usage.free_bytes();
        let (wanted, no_room) = settings(&agreed, free, shared.disk_reserve_bytes, &shared.name);
        report_room(&shared, busy, no_room);
        if given != Some(wanted) {
            engine.send(Command::Transfers(wanted)).await;
            given = Some(wanted);
        }
        if let Some(operation) = agreed.active_operation().filter(|_| !wanted.paused) {
            retry(&shared, &engine, operation).await;
        }
        let report = engine.report().await;
        if let Some(report) = &report {
            report_stalls(&shared, &agreed, report);
            let next = transfer_report(&shared, &agreed, report);
            // Again and again until it is agreed on: a new leader knows nothing of it.
            if (!next.receipts.is_empty() || agreed.leaving.contains_key(&node))
                && let Reported::Later(reason) = shared.control.report(next).await
            {
                tracing::debug!(%reason, "a report was not taken");
            }
        }
        let working = busy || report.is_some_and(|report| !report.residue.is_empty() || !report.transfers.is_empty());
        let wait = if working { REPORT_EVERY } else { CHECK_EVERY };
        // Whichever comes first: a change of the agreed state, or the time for another check.
        if let Ok(Err(_closed)) = tokio::time::timeout(wait, state.changed()).await {
            return;
        }
    }
}

/// Carries out the retries that this node has not carried out yet. After a restart it repeats them: what does not wait
/// is not affected.
async fn retry(shared: &Shared, engine: &Engine, operation: &Operation) {
    let known = shared.watchdog.retries(operation.id);
    if operation.retries <= known {
        return;
    }
    // An engine that does not answer is asked again at the next check.
    if let Some(began) = engine.retry(operation.retried_after(known).collect()).await {
        shared.watchdog.note_retry(operation, &began, shared.clock.now().mono);
    }
}

/// The report for the leader.
fn transfer_report(shared: &Shared, agreed: &ClusterState, report: &Report) -> TransferReport {
    let status = &report.status;
    let records: u64 = report.residue.iter().map(|residue| residue.records).sum();
    TransferReport {
        store: shared.incarnation.store,
        epoch: status.epoch,
        receipts: unagreed(agreed, &report.receipts),
        // A partition that is not counted yet may hold anything.
        left: records.max(status.leaving as u64) + status.hints + status.missed_writes + status.replications as u64,
    }
}

fn report_stalls(shared: &Shared, agreed: &ClusterState, report: &Report) {
    let running = agreed.active_operation().is_some_and(|operation| operation.state == OperationState::Running);
    let now = shared.clock.now().mono;
    for transfer in shared.watchdog.observe(&report.transfers, now).into_iter().filter(|_| running) {
        let why = shared.watchdog.waits_for(&transfer).map_or_else(String::new, |wait| wait.to_string());
        let why = agreed.with_names(&why);
        let source = transfer.source.map_or_else(String::new, |node| format!(" from {}", agreed.name_of(node)));
        let why = if why.is_empty() { String::new() } else { format!(": {why}") };
        let id = agreed.active_operation().map_or(0, |operation| operation.id.0);
        shared.event(NewEvent {
            severity: Severity::Warning,
            kind: EventKind::TransferStalled,
            message: format!(
                "the copy of partition {}{source} has made no progress for {} s{why}; op retry {id} begins it again",
                transfer.partition.0,
                STALL_AFTER.as_secs()
            ),
            undo: String::new(),
        });
    }
}

fn report_room(shared: &Shared, busy: bool, no_room: Option<String>) {
    let reason = no_room.clone();
    if !shared.watchdog.set_no_room(no_room) {
        return;
    }
    match reason {
        Some(message) if busy => shared.event(NewEvent {
            severity: Severity::Error,
            kind: EventKind::DiskShort,
            message: format!("copying is paused, {message}"),
            undo: String::new(),
        }),
        Some(_) => {}
        None => shared.event(NewEvent {
            severity: Severity::Info,
            kind: EventKind::DiskRoom,
            message: "there is room on the disk again".to_owned(),
            undo: String::new(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_pauses_and_says_why() {
        let state = ClusterState::default();
        assert_eq!(settings(&state, Some(1000), 100, "n4"), (TransferSettings::default(), None));
        assert_eq!(settings(&state, None, 100, "n4").1, None, "what is not known stops nothing");
        let (short, reason) = settings(&state, Some(99), 100, "n4");
        assert!(short.paused);
        assert!(reason.is_some_and(|reason| reason.starts_with("no room on the disk of n4: 99 bytes are free")));
    }
}
