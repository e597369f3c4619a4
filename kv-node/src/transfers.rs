//! A node's part in operations: it gets the settings of the running one, reports receipts until they are agreed on, keeps
//! room on its disk, and notices copies that do not get on.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kv_core::topology::{Receipt, Transfer, TransferPhase, TransferSettings, Wait};
use kv_core::types::{Epoch, Monotonic, PartitionId};
use kv_proto::v1::{self, Severity};

use crate::control::{ClusterState, Operation, OperationId, OperationState, REPORT_EVERY, Reported, TransferReport};
use crate::engine::{Command, Engine, Report};
use crate::events::NewEvent;
use crate::server::Shared;

/// A copy that should get on and has not for this long is stalled.
pub const STALL_AFTER: Duration = Duration::from_secs(10);

/// How often a node looks whether it has a part in anything.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What the node remembers of its copies beside what the engine tells.
#[derive(Debug, Default)]
pub struct Watchdog(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    seen: BTreeMap<(PartitionId, Epoch), Seen>,
    /// Why nothing is copied for want of room.
    no_room: Option<String>,
    /// What became of the last retry.
    retried: Option<v1::Retried>,
}

/// How far a copy was when it got on last.
#[derive(Clone, Copy, Debug)]
struct Seen {
    mark: (TransferPhase, u64, u64),
    at: Monotonic,
    told: bool,
}

impl Watchdog {
    /// How long a copy has not got on, and whether it is stalled.
    #[must_use]
    pub fn idle(&self, transfer: &Transfer, now: Monotonic) -> (Duration, bool) {
        let state = self.state();
        let seen = state.seen.get(&(transfer.partition, transfer.joint));
        let idle = seen.map_or(Duration::ZERO, |seen| now.since(seen.at));
        (idle, may_stall(transfer) && idle >= STALL_AFTER)
    }

    /// Why a copy waits: because the disk lacks room, or as the engine says.
    #[must_use]
    pub fn waits_for(&self, transfer: &Transfer) -> Option<Wait> {
        match &self.state().no_room {
            Some(reason) if transfer.phase != TransferPhase::Covered => Some(Wait::Other(reason.clone())),
            _ => transfer.waiting_for.clone(),
        }
    }

    /// What this node has made of the last retry that it has heard of.
    #[must_use]
    pub fn retried(&self) -> Option<v1::Retried> {
        self.state().retried.clone()
    }

    /// How many retries of an operation were carried out here.
    fn retries(&self, operation: OperationId) -> u32 {
        let state = self.state();
        state.retried.as_ref().filter(|retried| retried.operation == operation.0).map_or(0, |retried| retried.retry)
    }

    /// Copies begin anew: their time begins, too.
    fn note_retry(&self, operation: &Operation, began: &[PartitionId], now: Monotonic) {
        let mut state = self.state();
        for (_, seen) in state.seen.iter_mut().filter(|(key, _)| began.contains(&key.0)) {
            (seen.at, seen.told) = (now, false);
        }
        state.retried = Some(v1::Retried {
            operation: operation.id.0,
            retry: operation.retries,
            partitions: began.iter().map(|partition| partition.0.into()).collect(),
        });
    }

    /// Looks at the copies; returns those that have just stalled, each once until it gets on again.
    fn look(&self, transfers: &[Transfer], now: Monotonic) -> Vec<Transfer> {
        let mut state = self.state();
        let mut before = std::mem::take(&mut state.seen);
        let mut stalled = Vec::new();
        for transfer in transfers {
            let key = (transfer.partition, transfer.joint);
            let mark = (transfer.phase, transfer.keys, transfer.bytes);
            let mut seen = match before.remove(&key) {
                // What waits in good order is not late when its turn comes.
                Some(seen) if seen.mark == mark && may_stall(transfer) => seen,
                _ => Seen { mark, at: now, told: false },
            };
            if !seen.told && may_stall(transfer) && now.since(seen.at) >= STALL_AFTER {
                seen.told = true;
                stalled.push(transfer.clone());
            }
            state.seen.insert(key, seen);
        }
        stalled
    }

    fn set_no_room(&self, reason: Option<String>) -> bool {
        let mut state = self.state();
        let differs = state.no_room.is_some() != reason.is_some();
        state.no_room = reason;
        differs
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every holder leaves whole values behind.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a copy that does not get on is late: it has begun, and nobody has paused it.
fn may_stall(transfer: &Transfer) -> bool {
    transfer.tries > 0 && transfer.phase != TransferPhase::Covered && transfer.waiting_for != Some(Wait::Paused)
}

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
pub(crate) async fn follow(shared: Arc<Shared>, engine: Engine) {
    let mut state = shared.control.state();
    let mut given: Option<TransferSettings> = None;
    loop {
        let agreed = Arc::clone(&state.borrow_and_update());
        let node = shared.node();
        let busy = agreed.active_operation().is_some() || agreed.leaving.contains_key(&node);
        let free = shared.usage.free_bytes();
        let (wanted, no_room) = settings(&agreed, free, shared.disk_reserve_bytes, &shared.name);
        tell_room(&shared, busy, no_room);
        if given != Some(wanted) {
            engine.tell(Command::Transfers(wanted)).await;
            given = Some(wanted);
        }
        if let Some(operation) = agreed.active_operation().filter(|_| !wanted.paused) {
            retry(&shared, &engine, operation).await;
        }
        let report = engine.report().await;
        if let Some(report) = &report {
            tell_stalls(&shared, &agreed, report);
            let next = account(&shared, &agreed, report);
            // Again and again until it is agreed on: a new leader knows nothing of it.
            if (!next.receipts.is_empty() || agreed.leaving.contains_key(&node))
                && let Reported::Later(reason) = shared.control.report(next).await
            {
                tracing::debug!(%reason, "a report was not taken");
            }
        }
        let working = busy || report.is_some_and(|report| !report.residue.is_empty() || !report.transfers.is_empty());
        let wait = if working { REPORT_EVERY } else { LOOK_EVERY };
        // Whichever comes first: a change of the agreed state, or the time for another look.
        if let Ok(Err(_closed)) = tokio::time::timeout(wait, state.changed()).await {
            return;
        }
    }
}

/// Carries out the retries that this node has not carried out yet. After a restart it repeats them: what does not wait
/// does not mind.
async fn retry(shared: &Shared, engine: &Engine, operation: &Operation) {
    let known = shared.watchdog.retries(operation.id);
    if operation.retries <= known {
        return;
    }
    // An engine that does not answer is asked again at the next look.
    if let Some(began) = engine.retry(operation.retried_after(known).collect()).await {
        shared.watchdog.note_retry(operation, &began, shared.clock.now().mono);
    }
}

/// What the leader is told.
fn account(shared: &Shared, agreed: &ClusterState, report: &Report) -> TransferReport {
    let status = &report.status;
    let records: u64 = report.residue.iter().map(|residue| residue.records).sum();
    TransferReport {
        store: shared.incarnation.store,
        epoch: status.epoch,
        receipts: unagreed(agreed, &report.receipts),
        // A partition that is not counted yet may hold anything.
        left: records.max(status.leaving as u64) + status.hints + status.lagging + status.replications as u64,
    }
}

fn tell_stalls(shared: &Shared, agreed: &ClusterState, report: &Report) {
    let running = agreed.active_operation().is_some_and(|operation| operation.state == OperationState::Running);
    let now = shared.clock.now().mono;
    for transfer in shared.watchdog.look(&report.transfers, now).into_iter().filter(|_| running) {
        let why = shared.watchdog.waits_for(&transfer).map_or_else(String::new, |wait| wait.to_string());
        let why = agreed.with_names(&why);
        let source = transfer.source.map_or_else(String::new, |node| format!(" from {}", agreed.name_of(node)));
        let why = if why.is_empty() { String::new() } else { format!(": {why}") };
        let id = agreed.active_operation().map_or(0, |operation| operation.id.0);
        shared.event(NewEvent {
            severity: Severity::Warning,
            kind: "transfer-stalled",
            message: format!(
                "the copy of partition {}{source} has not got on for {} s{why}; op retry {id} begins it anew",
                transfer.partition.0,
                STALL_AFTER.as_secs()
            ),
            undo: String::new(),
        });
    }
}

fn tell_room(shared: &Shared, busy: bool, no_room: Option<String>) {
    let reason = no_room.clone();
    if !shared.watchdog.set_no_room(no_room) {
        return;
    }
    match reason {
        Some(message) if busy => shared.event(NewEvent {
            severity: Severity::Error,
            kind: "disk-short",
            message: format!("copying is paused, {message}"),
            undo: String::new(),
        }),
        Some(_) => {}
        None => shared.event(NewEvent {
            severity: Severity::Info,
            kind: "disk-room",
            message: "there is room on the disk again".to_owned(),
            undo: String::new(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transfer(phase: TransferPhase, bytes: u64, tries: u32, waiting_for: Option<Wait>) -> Transfer {
        Transfer {
            partition: PartitionId(1),
            joint: Epoch(3),
            source: None,
            phase,
            keys: bytes / 10,
            keys_total: 100,
            bytes,
            bytes_total: 1000,
            tries,
            waiting_for,
        }
    }

    fn at(seconds: u64) -> Monotonic {
        Monotonic(seconds * 1_000_000)
    }

    #[test]
    fn a_copy_without_bytes_for_ten_seconds_is_told_once() {
        let watchdog = Watchdog::default();
        let look = |transfer: &Transfer, seconds| watchdog.look(std::slice::from_ref(transfer), at(seconds)).len();
        let begun = transfer(TransferPhase::Copying, 100, 1, None);
        assert_eq!(look(&begun, 0), 0);
        assert_eq!(look(&begun, 9), 0);
        assert_eq!(watchdog.idle(&begun, at(9)), (Duration::from_secs(9), false));
        assert_eq!(look(&begun, 10), 1, "it is stalled");
        assert!(watchdog.idle(&begun, at(10)).1);
        assert_eq!(look(&begun, 30), 0, "told once");
        let further = transfer(TransferPhase::Copying, 200, 1, None);
        assert_eq!(look(&further, 31), 0);
        assert_eq!(look(&further, 41), 1, "it stalls again");
        for in_order in [
            transfer(TransferPhase::Waiting, 0, 0, Some(Wait::Other("its turn".to_owned()))),
            transfer(TransferPhase::Copying, 200, 1, Some(Wait::Paused)),
            transfer(TransferPhase::Covered, 1000, 1, None),
        ] {
            assert_eq!(look(&in_order, 50) + look(&in_order, 100), 0, "{in_order:?}");
        }
        assert_eq!(look(&further, 101), 0, "its time begins when it goes on");
    }

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
