//! fjall's background threads: which priority they have, and who compacts when none of them does.
//!
//! **Priority.** A compaction is a second or more of work for one thread, and replicas that take in the same writes begin
//! theirs at the same time. fjall tells nobody when one begins, but it makes a filter for each, on the thread that is going
//! to merge: that is the place to lower the thread's priority, and to wait for file descriptors. The filter itself keeps
//! everything.
//!
//! **Wake-ups.** fjall looks for something to compact when a flush is done, and no more if the levels concerned are busy
//! just then. The next flush makes up for that, but there is none once commits wait for compactions: then the thread that
//! commits compacts itself. Large records wait before that point (`Reader::is_behind`), and then there may be no flush either, so
//! somebody compacts for them (`Reader::catch_up`).

use std::sync::atomic::Ordering;
use std::time::Duration;

use fjall::AbstractTree;
use fjall::compaction::filter::{CompactionFilter, CompactionFilterResult, Context, Factory, ItemAccessor, Verdict};

use super::descriptors::{Descriptors, pause};
use super::engine::{Shared, guarded};
use crate::error::StorageError;

/// A key that no store has: those of records and of metadata are longer.
const NOTHING: &[u8] = &[u8::MAX];

/// How often it is tried to have replaced tables deleted, how long between, and how many files may be new just then.
const RELEASES_MAX: usize = 100;
const RELEASE_STEP: Duration = Duration::from_millis(100);
const FILES_BESIDE: usize = 2;

/// The name that fjall gives its threads.
const THREAD: &str = "fjall:worker";

/// Compacts what needs it most, on this thread, unless another one is compacting.
pub(super) fn compact_if_nobody_does(shared: &Shared) -> Result<(), StorageError> {
    let Shared { tree, database, .. } = shared;
    if database.active_compactions() > 0 {
        return Ok(());
    }
    let strategy = tree.config.compaction_strategy.clone();
    let unseen = database.supervisor.snapshot_tracker.get_seqno_safe_to_gc();
    guarded(shared.path(), || Ok(tree.tree.compact(strategy, unseen)?))
}

/// Compacts the whole store on this thread, so that nothing is left of what was deleted.
pub(super) fn compact_all(shared: &Shared) -> Result<(), StorageError> {
    let Shared { tree, database, .. } = shared;
    lower_priority();
    shared.reclaiming.store(true, Ordering::Release);
    let compacted = guarded(shared.path(), || {
        // The deletions may be in memory still.
        flush(shared)?;
        let unseen = database.supervisor.snapshot_tracker.get_seqno_safe_to_gc();
        tree.tree.major_compact(shared.table_bytes, unseen)?;
        release(shared)
    });
    shared.reclaiming.store(false, Ordering::Release);
    compacted.map_err(|error| shared.explain(error))
}

/// Lets fjall delete the tables that a compaction has replaced. It keeps them until something was written after them and its next
/// flush begins, which may take days in a quiet store; deleting a key that nobody has is such a write. And it keeps them while
/// somebody reads who began before: then it is done again.
#[allow(clippy::disallowed_methods, reason = "this thread does nothing else, and nothing tells it when")]
fn release(shared: &Shared) -> Result<(), fjall::Error> {
    let tree = &shared.tree;
    let folder = tree.path().join("tables");
    for _ in 0..RELEASES_MAX {
        tree.remove(NOTHING)?;
        flush(shared)?;
        let files = std::fs::read_dir(&folder).map_or(0, Iterator::count);
        if files <= tree.tree.table_count() + FILES_BESIDE {
            break;
        }
        std::thread::sleep(RELEASE_STEP);
    }
    Ok(())
}

/// Brings what is in memory now into tables, and waits for nothing that is written meanwhile. Ends with an error if the thread
/// that should do so has failed.
fn flush(shared: &Shared) -> Result<(), fjall::Error> {
    let Shared { tree, database, .. } = shared;
    let newest = tree.tree.get_highest_seqno();
    tree.rotate_memtable()?;
    while tree.tree.sealed_memtable_count() > 0 && tree.tree.get_highest_persisted_seqno() < newest {
        pause();
        database.persist(fjall::PersistMode::Buffer)?;
    }
    Ok(())
}

/// Makes the filters.
pub(super) struct LowPriority(pub(super) Descriptors);

impl Factory for LowPriority {
    fn name(&self) -> &str {
        "low-priority"
    }

    fn make_filter(&self, _: &Context) -> Box<dyn CompactionFilter> {
        give_way();
        self.0.wait();
        Box::new(KeepAll)
    }
}

struct KeepAll;

impl CompactionFilter for KeepAll {
    fn filter_item(&mut self, _: ItemAccessor<'_>, _: &Context) -> CompactionFilterResult {
        Ok(Verdict::Keep)
    }
}

/// Lowers the priority of this thread if it is one of fjall's.
fn give_way() {
    if std::thread::current().name() == Some(THREAD) {
        lower_priority();
    }
}

/// Makes this thread ten steps nicer than its process. One that cannot be made so compacts all the same.
#[cfg(target_os = "linux")]
pub(super) fn lower_priority() {
    use rustix::process::{getpid, getpriority_process, setpriority_process};
    use rustix::thread::gettid;

    /// A tenth of the processor time that another thread gets.
    const STEPS: i32 = 10;

    let thread = Some(gettid());
    let Ok(usual) = getpriority_process(Some(getpid())) else { return };
    // What has been lowered stays so, since not everybody may raise it again.
    if getpriority_process(thread).is_ok_and(|priority| priority < usual + STEPS) {
        setpriority_process(thread, usual + STEPS).unwrap_or_default();
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) fn lower_priority() {}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::storage::disk::engine::{RUNS_BEHIND, RUNS_MAX};
    use crate::storage::{Batch, Committer, DiskCommitter, DiskConfig, DiskReader, DiskStore, OpenIds, Reader, Write};
    use crate::types::{Seq, StoreId};

    fn open(path: &std::path::Path, config: &DiskConfig) -> (DiskReader, DiskCommitter) {
        let (_, reader, committer) = DiskStore::open(path, config, OpenIds { store: StoreId(1), nonce: 1 }).unwrap();
        (reader, committer)
    }

    fn commit(committer: &mut DiskCommitter, number: u64) -> Result<(), StorageError> {
        let name = Bytes::copy_from_slice(&(number % 3).to_be_bytes());
        let write = Write::Meta { name, value: Some(Bytes::from(vec![7; 100])) };
        committer.commit(&[Batch { writes: vec![write] }], Seq(number))
    }

    /// Flushes on request wake none of fjall's threads, as if all had looked while the levels were busy.
    #[test]
    fn what_no_thread_of_the_engine_compacts_holds_no_commit_back() {
        let directory = tempfile::tempdir().unwrap();
        let config = DiskConfig { stall_ms_max: 0, ..DiskConfig::default() };
        let (reader, mut committer) = open(directory.path(), &config);
        for number in 1.. {
            commit(&mut committer, number).unwrap();
            committer.shared.tree.tree.flush_active_memtable(0).unwrap();
            if reader.metrics().runs >= RUNS_MAX as u64 {
                commit(&mut committer, number + 1).unwrap();
                break;
            }
        }
        assert!(reader.metrics().runs < RUNS_MAX as u64, "{:?}", reader.metrics());
    }

    #[test]
    fn a_store_is_behind_before_commits_have_to_wait_and_catches_up_without_them() {
        let directory = tempfile::tempdir().unwrap();
        let (reader, mut committer) = open(directory.path(), &DiskConfig::default());
        for number in 1.. {
            commit(&mut committer, number).unwrap();
            assert!(!reader.is_behind());
            committer.shared.tree.tree.flush_active_memtable(0).unwrap();
            if reader.is_behind() {
                break;
            }
        }
        assert_eq!(reader.metrics().runs, RUNS_BEHIND as u64);
        reader.catch_up().unwrap();
        assert!(!reader.is_behind(), "{:?}", reader.metrics());
    }

    #[test]
    fn a_store_is_behind_when_a_flush_is_about_to_be_overtaken() {
        let directory = tempfile::tempdir().unwrap();
        let config = DiskConfig { memtable_bytes: 1 << 20, ..DiskConfig::default() };
        let (reader, mut committer) = open(directory.path(), &config);
        let tree = committer.shared.tree.clone();
        let mut large = |number: u64| {
            let (name, value) = (Bytes::from_static(b"large"), Some(Bytes::from(vec![7; 600 << 10])));
            committer.commit(&[Batch { writes: vec![Write::Meta { name, value }] }], Seq(number)).unwrap();
        };
        large(1);
        // Sealed, and nobody is told to flush it.
        tree.tree.rotate_memtable().unwrap();
        assert!(!reader.is_behind(), "there is room in the next one");
        large(2);
        assert!(reader.is_behind());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn threads_that_compact_are_nicer_than_the_others() {
        use rustix::process::getpriority_process;
        use rustix::thread::gettid;

        let usual = getpriority_process(Some(gettid())).unwrap();
        give_way();
        assert_eq!(getpriority_process(Some(gettid())).unwrap(), usual, "only fjall's threads");
        let lowered = || {
            give_way();
            getpriority_process(Some(gettid())).unwrap()
        };
        let twice = std::thread::Builder::new().name(THREAD.to_owned()).spawn(move || (lowered(), lowered())).unwrap();
        let expected = (usual + 10).min(19);
        assert_eq!(twice.join().unwrap(), (expected, expected));
    }
}
