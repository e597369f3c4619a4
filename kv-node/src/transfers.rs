//! What a node remembers of the copies that it makes: since when each makes no progress, why it waits, and what became of
//! retries.

use std::collections::BTreeMap;
use std::time::Duration;

use kv_core::topology::{Transfer, TransferPhase, Wait};
use kv_core::types::{Epoch, Monotonic, PartitionId};
use kv_proto::v1;
use parking_lot::Mutex;

use crate::control::{Operation, OperationId};

/// A copy that should make progress and has made none for this long is stalled.
pub const STALL_AFTER: Duration = Duration::from_secs(10);

/// What the node remembers of its copies beside what the engine reports.
#[derive(Debug, Default)]
pub struct Watchdog(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    seen: BTreeMap<(PartitionId, Epoch), Seen>,
    /// Why nothing is copied because the disk lacks room.
    no_room: Option<String>,
    /// What became of the last retry.
    retried: Option<v1::Retried>,
}

/// How far a copy was when it last made progress.
#[derive(Clone, Copy, Debug)]
struct Seen {
    mark: (TransferPhase, u64, u64),
    at: Monotonic,
    reported: bool,
}

impl Watchdog {
    /// How long a copy has made no progress, and whether it is stalled.
    #[must_use]
    pub fn idle(&self, transfer: &Transfer, now: Monotonic) -> (Duration, bool) {
        let state = self.0.lock();
        let seen = state.seen.get(&(transfer.partition, transfer.joint));
        let idle = seen.map_or(Duration::ZERO, |seen| now.since(seen.at));
        (idle, may_stall(transfer) && idle >= STALL_AFTER)
    }

    /// Why a copy waits: because the disk lacks room, or as the engine says.
    #[must_use]
    pub fn waits_for(&self, transfer: &Transfer) -> Option<Wait> {
        match &self.0.lock().no_room {
            Some(reason) if transfer.phase != TransferPhase::Covered => Some(Wait::Other(reason.clone())),
            _ => transfer.waiting_for.clone(),
        }
    }

    /// How this node has carried out the last retry that it has learned of.
    #[must_use]
    pub fn retried(&self) -> Option<v1::Retried> {
        self.0.lock().retried.clone()
    }

    /// How many retries of an operation were carried out here.
    pub(crate) fn retries(&self, operation: OperationId) -> u32 {
        let state = self.0.lock();
        state.retried.as_ref().filter(|retried| retried.operation == operation.0).map_or(0, |retried| retried.retry)
    }

    /// Copies begin again: their time begins, too.
    pub(crate) fn note_retry(&self, operation: &Operation, began: &[PartitionId], now: Monotonic) {
        let mut state = self.0.lock();
        for (_, seen) in state.seen.iter_mut().filter(|(key, _)| began.contains(&key.0)) {
            (seen.at, seen.reported) = (now, false);
        }
        state.retried = Some(v1::Retried {
            operation: operation.id.0,
            retry: operation.retries,
            partitions: began.iter().map(|partition| partition.0.into()).collect(),
        });
    }

    /// Observes the copies; returns those that have just stalled, each once until it makes progress again.
    pub(crate) fn observe(&self, transfers: &[Transfer], now: Monotonic) -> Vec<Transfer> {
        let mut state = self.0.lock();
        let mut before = std::mem::take(&mut state.seen);
        let mut stalled = Vec::new();
        for transfer in transfers {
            let key = (transfer.partition, transfer.joint);
            let mark = (transfer.phase, transfer.keys, transfer.bytes);
            let mut seen = match before.remove(&key) {
                // What waits as planned is not late when its turn comes.
                Some(seen) if seen.mark == mark && may_stall(transfer) => seen,
                _ => Seen { mark, at: now, reported: false },
            };
            if !seen.reported && may_stall(transfer) && now.since(seen.at) >= STALL_AFTER {
                seen.reported = true;
                stalled.push(transfer.clone());
            }
            state.seen.insert(key, seen);
        }
        stalled
    }

    pub(crate) fn set_no_room(&self, reason: Option<String>) -> bool {
        let mut state = self.0.lock();
        let differs = state.no_room.is_some() != reason.is_some();
        state.no_room = reason;
        differs
    }
}

/// Whether a copy that makes no progress is late: it has begun, and nobody has paused it.
fn may_stall(transfer: &Transfer) -> bool {
    transfer.tries > 0 && transfer.phase != TransferPhase::Covered && transfer.waiting_for != Some(Wait::Paused)
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
    fn a_copy_without_bytes_for_ten_seconds_is_reported_once() {
        let watchdog = Watchdog::default();
        let observe =
            |transfer: &Transfer, seconds| watchdog.observe(std::slice::from_ref(transfer), at(seconds)).len();
        let begun = transfer(TransferPhase::Copying, 100, 1, None);
        assert_eq!(observe(&begun, 0), 0);
        assert_eq!(observe(&begun, 9), 0);
        assert_eq!(watchdog.idle(&begun, at(9)), (Duration::from_secs(9), false));
        assert_eq!(observe(&begun, 10), 1, "it is stalled");
        assert!(watchdog.idle(&begun, at(10)).1);
        assert_eq!(observe(&begun, 30), 0, "reported once");
        let further = transfer(TransferPhase::Copying, 200, 1, None);
        assert_eq!(observe(&further, 31), 0);
        assert_eq!(observe(&further, 41), 1, "it stalls again");
        for in_order in [
            transfer(TransferPhase::Waiting, 0, 0, Some(Wait::Other("its turn".to_owned()))),
            transfer(TransferPhase::Copying, 200, 1, Some(Wait::Paused)),
            transfer(TransferPhase::Covered, 1000, 1, None),
        ] {
            assert_eq!(observe(&in_order, 50) + observe(&in_order, 100), 0, "{in_order:?}");
        }
        assert_eq!(observe(&further, 101), 0, "its time begins when it continues");
    }
}
