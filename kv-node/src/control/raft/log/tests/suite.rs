//! The Raft engine's own tests of a store, and what they leave out: the same after a restart.

use std::future::Future;

use openraft::RaftLogReader;
use openraft::storage::{RaftLogStorage, RaftLogStorageExt};
use openraft::testing::{StoreBuilder, Suite, blank_ent, log_id};
use tempfile::TempDir;

use crate::control::files::OsDisk;
use crate::control::raft::log::store::LogStore;
use crate::control::raft::machine::{Machine, load};
use crate::control::raft::{StorageError, TypeConfig, Vote};

/// Small, so that the suite crosses segments.
const SEGMENT_BYTES: u64 = 256;

struct OnDisk;

impl StoreBuilder<TypeConfig, LogStore, Machine, TempDir> for OnDisk {
    async fn build(&self) -> Result<(TempDir, LogStore, Machine), StorageError> {
        let dir = tempfile::tempdir().unwrap();
        let mut disk = OsDisk::open(dir.path()).unwrap();
        let stored = load(&mut disk).unwrap();
        let (log, _thread) = LogStore::open(disk, SEGMENT_BYTES).unwrap();
        let (machine, _) = Machine::new(stored, &log);
        Ok((dir, log, machine))
    }
}

type Tests = Suite<TypeConfig, LogStore, Machine, OnDisk, TempDir>;

macro_rules! engine_tests {
    ($($name:ident,)*) => {
        $(
            #[test]
            fn $name() {
                run(async {
                    let (_dir, log, machine) = OnDisk.build().await.unwrap();
                    Tests::$name(log, machine).await.unwrap();
                });
            }
        )*
    };
}

// The whole suite, but for `get_initial_state_membership_from_log_and_sm`: it appends entry 3 behind entry 1, a hole
// that the engine's own contract forbids and that this log refuses.
engine_tests! {
    last_membership_in_log_initial,
    last_membership_in_log,
    last_membership_in_log_multi_step,
    get_membership_initial,
    get_membership_from_log_and_empty_sm,
    get_membership_from_empty_log_and_sm,
    get_membership_from_log_le_sm_last_applied,
    get_membership_from_log_gt_sm_last_applied_1,
    get_membership_from_log_gt_sm_last_applied_2,
    get_initial_state_without_init,
    get_initial_state_with_state,
    get_initial_state_last_log_gt_sm,
    get_initial_state_last_log_lt_sm,
    get_initial_state_log_ids,
    get_initial_state_re_apply_committed,
    save_vote,
    get_log_entries,
    limited_get_log_entries,
    try_get_log_entry,
    initial_logs,
    get_log_state,
    get_log_id,
    last_id_in_log,
    last_applied_state,
    purge_logs_upto_0,
    purge_logs_upto_5,
    purge_logs_upto_20,
    delete_logs_since_11,
    delete_logs_since_0,
    append_to_log,
    snapshot_meta,
    apply_single,
    apply_multiple,
}

#[test]
fn transfer_snapshot() {
    run(async { Tests::transfer_snapshot(&OnDisk).await.unwrap() });
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

#[test]
fn a_restart_finds_vote_entries_and_purge() {
    let dir = tempfile::tempdir().unwrap();
    let open = || LogStore::open(OsDisk::open(dir.path()).unwrap(), SEGMENT_BYTES).unwrap();
    run(async {
        let (mut log, thread) = open();
        log.save_vote(&Vote::new(3, 7)).await.unwrap();
        for batch in 0..10 {
            let entries = (batch * 5..batch * 5 + 5).map(|index| blank_ent::<TypeConfig>(2, 7, index));
            log.blocking_append(entries.collect::<Vec<_>>()).await.unwrap();
        }
        log.truncate(log_id(2, 7, 44)).await.unwrap();
        log.blocking_append([blank_ent::<TypeConfig>(3, 7, 44)]).await.unwrap();
        log.purge(log_id(2, 7, 12)).await.unwrap();
        let before = log.get_log_state().await.unwrap();
        let kept = log.try_get_log_entries(..).await.unwrap();
        assert_eq!((kept[0].log_id.index, kept.last().unwrap().log_id), (13, log_id(3, 7, 44)));
        drop(log);
        tokio::task::spawn_blocking(move || thread.join()).await.unwrap().unwrap();

        let (mut log, _) = open();
        assert_eq!(log.read_vote().await.unwrap(), Some(Vote::new(3, 7)));
        assert_eq!(log.get_log_state().await.unwrap(), before);
        assert_eq!(log.try_get_log_entries(..).await.unwrap(), kept);
    });
}

#[test]
fn messages_to_followers_are_bounded() {
    use crate::control::{Command, CommandId, NodeDescriptor, Proposal};
    use kv_core::types::{Incarnation, StoreId, WallTime};
    run(async {
        let (_dir, mut log, _) = OnDisk.build().await.unwrap();
        let long = |index: u64| {
            let descriptor = NodeDescriptor {
                name: "x".repeat(400_000),
                address: String::new(),
                zone: String::new(),
                weight: 1.0,
                incarnation: Incarnation { store: StoreId(1), boot: 1, nonce: 1 },
                version: String::new(),
                replaces: Vec::new(),
            };
            let proposal =
                Proposal { id: CommandId(index.into()), at: WallTime(index), command: Command::Admit(descriptor) };
            openraft::Entry { log_id: log_id(1, 7, index), payload: openraft::EntryPayload::Normal(proposal) }
        };
        log.blocking_append((0..10).map(long).collect::<Vec<_>>()).await.unwrap();
        assert_eq!(log.limited_get_log_entries(0, 10).await.unwrap().len(), 2);
        assert_eq!(log.limited_get_log_entries(9, 10).await.unwrap().len(), 1);
        assert_eq!(log.try_get_log_entries(0..10).await.unwrap().len(), 10);
        #[expect(clippy::reversed_empty_ranges, reason = "the engine may ask for such a range")]
        let none = log.try_get_log_entries(5..3).await.unwrap();
        assert_eq!(none.len(), 0);
    });
}
