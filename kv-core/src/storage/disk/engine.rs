//! The two halves of the engine on disk.

use std::io::{self, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use fjall::{AbstractTree, Database, Keyspace, OwnedWriteBatch, PersistMode, Readable};

use super::background::{compact_all, compact_if_nobody_does, lower_priority};
use super::descriptors::{Descriptors, patiently};
use super::identity::{Confirmed, Directory, Identity, StoreLock, is_full};
use super::ledger::{Ledger, Written};
use super::open::{Beginning, end_entry};
use super::{CHECKPOINT, ENTRY, META};
use crate::error::StorageError;
use crate::map;
use crate::storage::stats::{Change, damaged, recount_partition};
use crate::storage::{Batch, Committer, Reader, Slice, SliceRequest, Stats, StorageKey, Write};
use crate::types::{ClusterId, HashSeed, Seq};

/// The longest key that fjall stores.
const ENGINE_KEY_BYTES_MAX: usize = u16::MAX as usize;

/// Memtables that wait to be flushed, and overlapping runs of tables that wait to be compacted, from which on a commit
/// waits. fjall itself would wait from 4 and 30 on, without end and without a word.
const SEALED_MAX: usize = 2;
pub(super) const RUNS_MAX: usize = 20;

/// Overlapping runs of tables from which on the store counts as behind: large records wait, so that small ones need not.
pub(super) const RUNS_BEHIND: usize = RUNS_MAX / 2;

/// How long a waiting commit sleeps before it looks again.
const STALL_STEP: Duration = Duration::from_millis(1);

/// A store is compacted as a whole to give back the space of deleted records if it has at most this many bytes, since it
/// takes as much room again meanwhile and no other compaction runs, and if the deleted ones are one of so many of them.
const RECLAIM_BYTES_MAX: u64 = 4 << 30;
const RECLAIM_RATIO: u64 = 16;

/// How much is written to find out whether the disk is full.
const PROBE_BYTES: usize = 1024 * 1024;

/// What both halves hold. The directory comes last, so that its lock outlives the engine.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) tree: Keyspace,
    pub(super) database: Database,
    pub(super) stalled_ms: Arc<AtomicU64>,
    pub(super) descriptors: Descriptors,
    /// Whether everything is being compacted: no other compaction runs then, and commits that wait for one are not lost.
    pub(super) reclaiming: Arc<AtomicBool>,
    /// Bytes of a table that a compaction writes.
    pub(super) table_bytes: u64,
    /// Bytes that are gathered in memory before they are written to a table.
    pub(super) memtable_bytes: u64,
    pub(super) directory: Arc<Directory>,
}

impl Shared {
    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Commits to fjall and syncs.
    pub(super) fn commit(&self, batch: OwnedWriteBatch) -> Result<(), StorageError> {
        let result = guarded(self.path(), || batch.durability(Some(PersistMode::SyncAll)).commit());
        result.map_err(|error| self.explain(error))
    }

    /// fjall's background threads tell why they stopped only to the log: a full disk is found by trying it.
    pub(super) fn explain(&self, error: StorageError) -> StorageError {
        let probe = self.path().join("probe");
        let write = || {
            let mut file = std::fs::File::create(&probe)?;
            file.write_all(&vec![0; PROBE_BYTES])?;
            file.sync_all()
        };
        let found = write();
        // What is left of it is overwritten by the next probe.
        std::fs::remove_file(&probe).unwrap_or_default();
        match found {
            Err(full) if is_full(&full) => StorageError::Full { path: self.path().display().to_string() },
            _ => error,
        }
    }
}

/// Runs a piece of fjall. A damaged file makes some of its code panic: here that becomes an error. Nothing that fjall
/// shares stays behind half-changed: its locks are poisoned by the panic, and its later calls fail.
pub(super) fn guarded<T>(path: &Path, run: impl FnOnce() -> fjall::Result<T>) -> Result<T, StorageError> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(translate(path, error)),
        Err(_) => {
            Err(StorageError::Engine { path: path.display().to_string(), reason: "it hit a damaged file".to_owned() })
        }
    }
}

fn translate(path: &Path, error: fjall::Error) -> StorageError {
    let path = path.display().to_string();
    match error {
        fjall::Error::Io(source) | fjall::Error::Storage(fjall::LsmError::Io(source)) => {
            if is_full(&source) {
                StorageError::Full { path }
            } else if matches!(source.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) {
                StorageError::Damaged { path, reason: source.to_string() }
            } else {
                StorageError::Io { action: "reading or writing in", path, source }
            }
        }
        fjall::Error::Locked => StorageError::Locked { path },
        fjall::Error::Poisoned => {
            let reason = "a flush or compaction in the background has failed, or an earlier write".to_owned();
            StorageError::Engine { path, reason }
        }
        error => StorageError::Damaged { path, reason: format!("{error:?}") },
    }
}

fn to_bytes(value: fjall::Slice) -> Bytes {
    Bytes::from_owner(value)
}

pub(super) fn meta_key(name: &[u8]) -> Vec<u8> {
    [&[META], name].concat()
}

/// How the engine is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskMetrics {
    /// Bytes on disk: tables and journals.
    pub disk_bytes: u64,
    /// Bytes of journals: what a restart replays.
    pub journal_bytes: u64,
    /// Bytes of the block cache in use.
    pub cache_bytes: u64,
    /// Memtables that wait to be flushed.
    pub memtables_sealed: u64,
    /// Overlapping runs of tables that wait to be compacted.
    pub runs: u64,
    /// How long commits have waited for the two, in milliseconds, since the store was opened.
    pub stalled_ms: u64,
    /// Whether the statistics were counted again at start.
    pub recounted: bool,
}

/// The reading half.
#[derive(Clone)]
pub struct DiskReader {
    shared: Shared,
    recounted: bool,
}

impl DiskReader {
    pub(super) fn new(shared: Shared, recounted: bool) -> Self {
        Self { shared, recounted }
    }

    /// Tells when the store is closed and can be opened again.
    #[must_use]
    pub fn lock(&self) -> StoreLock {
        self.shared.directory.lock()
    }

    /// How the engine is doing.
    #[must_use]
    pub fn metrics(&self) -> DiskMetrics {
        let Shared { tree, database, stalled_ms, .. } = &self.shared;
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let journal_bytes = database.journal_disk_space().unwrap_or_default();
        DiskMetrics {
            disk_bytes: tree.disk_space() + journal_bytes,
            journal_bytes,
            cache_bytes: database.cache_size(),
            memtables_sealed: count(tree.tree.sealed_memtable_count()),
            runs: count(tree.tree.l0_run_count()),
            stalled_ms: stalled_ms.load(Ordering::Relaxed),
            recounted: self.recounted,
        }
    }

    fn read<T>(
        &self,
        what: impl FnOnce() -> String,
        run: impl FnOnce() -> fjall::Result<T>,
    ) -> Result<T, StorageError> {
        guarded(self.shared.path(), run).map_err(|error| match error {
            StorageError::Damaged { reason, .. } => StorageError::Corrupt { what: what(), reason },
            error => error,
        })
    }
}

impl Reader for DiskReader {
    fn get(&self, key: &StorageKey) -> Result<Option<Bytes>, StorageError> {
        // One key cannot show half a batch, so it needs no snapshot.
        let what = || format!("the block that holds {key}");
        Ok(patiently(|| self.read(what, || self.shared.tree.get(key.as_bytes())))?.map(to_bytes))
    }

    fn slice(&self, request: &SliceRequest) -> Result<Slice, StorageError> {
        patiently(|| self.slice_once(request))
    }

    fn meta(&self, name: &[u8]) -> Result<Option<Bytes>, StorageError> {
        let what = || format!("the block that holds the setting {}", name.escape_ascii());
        Ok(patiently(|| self.read(what, || self.shared.tree.get(meta_key(name))))?.map(to_bytes))
    }

    fn metas(&self, prefix: &[u8]) -> Result<Vec<(Bytes, Bytes)>, StorageError> {
        let what = || format!("a block with settings from {} on", prefix.escape_ascii());
        let found = patiently(|| self.read(what, || self.shared.all_with_prefix(&meta_key(prefix))))?;
        Ok(found.into_iter().map(|(key, value)| (to_bytes(key).slice(1..), to_bytes(value))).collect())
    }

    fn is_behind(&self) -> bool {
        let tree = &self.shared.tree.tree;
        // The second memtable must not be full before the first is a table.
        let is_filling = || tree.active_memtable().size() >= self.shared.memtable_bytes / 2;
        let sealed = tree.sealed_memtable_count();
        sealed >= SEALED_MAX || tree.l0_run_count() >= RUNS_BEHIND || (sealed > 0 && is_filling())
    }

    fn catch_up(&self) -> Result<(), StorageError> {
        if self.shared.tree.tree.l0_run_count() < RUNS_BEHIND {
            // A flush is always under way if there is something to flush.
            return Ok(());
        }
        lower_priority();
        compact_if_nobody_does(&self.shared).map_err(|error| self.shared.explain(error))
    }

    fn reclaim(&self, deleted: u64) -> Result<(), StorageError> {
        let stored = self.shared.tree.disk_space();
        if stored > RECLAIM_BYTES_MAX || deleted.saturating_mul(RECLAIM_RATIO) < stored {
            // Later writes push the deletions down, level by level, and what they hide goes with them.
            return Ok(());
        }
        compact_all(&self.shared)
    }
}

impl DiskReader {
    fn slice_once(&self, request: &SliceRequest) -> Result<Slice, StorageError> {
        let mut slice = Slice::default();
        if request.from >= request.until {
            return Ok(slice);
        }
        let behind = |slice: &Slice| match slice.entries.last() {
            Some((key, _)) => format!("a block with keys behind {key}"),
            None => format!("a block with keys from {} on", request.from),
        };
        let snapshot = self.shared.database.snapshot();
        let range = request.from.as_bytes()..request.until.as_bytes();
        let mut entries = self.read(|| behind(&slice), || Ok(snapshot.range(&self.shared.tree, range)))?;
        let mut bytes = 0;
        loop {
            let next = self.read(|| behind(&slice), || entries.next().map(fjall::Guard::into_inner).transpose())?;
            let Some((key, value)) = next else { return Ok(slice) };
            if slice.is_full(request, bytes) {
                slice.more = true;
                return Ok(slice);
            }
            bytes += key.len() + value.len();
            let key = StorageKey::from_bytes(Bytes::copy_from_slice(&key)).ok_or_else(|| StorageError::Corrupt {
                what: behind(&slice),
                reason: "a key there is none of ours".to_owned(),
            })?;
            slice.entries.push((key, to_bytes(value)));
        }
    }
}

impl Shared {
    pub(super) fn all_with_prefix(&self, prefix: &[u8]) -> fjall::Result<Vec<(fjall::Slice, fjall::Slice)>> {
        self.database.snapshot().prefix(&self.tree, prefix).map(fjall::Guard::into_inner).collect()
    }
}

/// The writing half.
pub struct DiskCommitter {
    pub(super) shared: Shared,
    pub(super) reader: DiskReader,
    pub(super) ledger: Ledger,
    pub(super) identity: Identity,
    pub(super) confirmed: Confirmed,
    pub(super) stall_ms_max: u64,
    /// The last batch of the commit that failed.
    pub(super) poisoned: Option<Seq>,
    /// What makes the boot durable, until it is.
    pub(super) beginning: Option<Beginning>,
}

impl DiskCommitter {
    fn try_begin(&mut self) -> Result<(), StorageError> {
        match self.beginning.take() {
            Some(beginning) => {
                beginning.make_durable(&self.shared, &self.identity, &mut self.confirmed, self.ledger.last())
            }
            None => Ok(()),
        }
    }

    fn try_commit(&mut self, batches: &[Batch], through: Seq) -> Result<(), StorageError> {
        self.try_begin()?;
        self.wait_for_room()?;
        let recounted = damaged(batches).into_iter();
        let recounted = recounted
            .map(|partition| Ok((partition, recount_partition(&self.reader, partition)?)))
            .collect::<Result<_, _>>()?;
        let Shared { tree, database, .. } = &self.shared;
        let mut out = database.batch();
        for (key, value) in last_writes(batches) {
            if key.len() > ENGINE_KEY_BYTES_MAX {
                let reason =
                    format!("a key of {} bytes; the engine stores keys up to {ENGINE_KEY_BYTES_MAX}", key.len());
                return Err(StorageError::Engine { path: self.shared.path().display().to_string(), reason });
            }
            match value {
                Some(value) => out.insert(tree, key, &value[..]),
                None => out.remove(tree, key),
            }
        }
        let changes = batches.iter().flat_map(|batch| &batch.writes).filter_map(Change::of).collect();
        let written = self.ledger.commit(changes, recounted);
        put_ledger(&mut out, tree, written);
        let (key, bytes) = end_entry(self.identity.boot, through);
        out.insert(tree, key, bytes);
        self.shared.commit(out)?;
        self.confirmed.write(self.ledger.last())
    }

    /// Waits while flushes or compactions have fallen behind, so that fjall never waits itself: it would not notice that
    /// its threads are gone.
    #[allow(
        clippy::disallowed_methods,
        reason = "the committer has a thread of its own, and nothing else tells it when"
    )]
    fn wait_for_room(&self) -> Result<(), StorageError> {
        let Shared { tree, database, stalled_ms, descriptors, .. } = &self.shared;
        // What follows may make fjall open files.
        stalled_ms.fetch_add(descriptors.wait(), Ordering::Relaxed);
        let behind = || (tree.tree.sealed_memtable_count(), tree.tree.l0_run_count());
        let mut waited_ms = 0;
        loop {
            if behind().1 >= RUNS_MAX {
                compact_if_nobody_does(&self.shared).map_err(|error| self.shared.explain(error))?;
            }
            let (sealed, runs) = behind();
            if sealed < SEALED_MAX && runs < RUNS_MAX {
                return Ok(());
            }
            // Fails when a background thread has.
            let alive = guarded(self.shared.path(), || database.persist(PersistMode::Buffer));
            alive.map_err(|error| self.shared.explain(error))?;
            if waited_ms >= self.stall_ms_max && !self.shared.reclaiming.load(Ordering::Acquire) {
                let path = self.shared.path().display().to_string();
                return Err(StorageError::Stalled { path, waited_ms, sealed, runs });
            }
            std::thread::sleep(STALL_STEP);
            waited_ms += 1;
            stalled_ms.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Committer for DiskCommitter {
    fn begin(&mut self) -> Result<(), StorageError> {
        if let Some(at) = self.poisoned {
            return Err(StorageError::Poisoned { at });
        }
        self.try_begin().inspect_err(|_| self.poisoned = Some(Seq(0)))
    }

    fn commit(&mut self, batches: &[Batch], through: Seq) -> Result<(), StorageError> {
        if let Some(at) = self.poisoned {
            return Err(StorageError::Poisoned { at });
        }
        if batches.iter().all(|batch| batch.writes.is_empty()) {
            return Ok(());
        }
        self.try_commit(batches, through).inspect_err(|_| self.poisoned = Some(through))
    }

    fn bind(&mut self, cluster: ClusterId, seed: HashSeed) -> Result<(), StorageError> {
        match self.identity.cluster {
            Some(found) if found == (cluster, seed) => Ok(()),
            Some((found, _)) => {
                let path = self.shared.path().display().to_string();
                Err(StorageError::OtherCluster { path, found, expected: cluster })
            }
            None => {
                // The identity file tells the boot as well.
                self.begin()?;
                let identity = Identity { cluster: Some((cluster, seed)), ..self.identity };
                self.shared.directory.write_identity(&identity)?;
                self.identity = identity;
                Ok(())
            }
        }
    }

    fn stats(&self) -> &Stats {
        self.ledger.stats()
    }
}

/// The last write of each key: two of one key in one fjall batch would have the same number, and no order.
fn last_writes(batches: &[Batch]) -> Vec<(Vec<u8>, Option<&Bytes>)> {
    let count = batches.iter().map(|batch| batch.writes.len()).sum();
    let mut last = Vec::with_capacity(count);
    let mut places = map::map(0);
    places.reserve(if batches.len() > 1 { count } else { 0 });
    for write in batches.iter().flat_map(|batch| &batch.writes) {
        let (space, key, value) = match write {
            Write::Record { key, value, .. } => (None, key.as_bytes(), value.as_ref()),
            Write::Meta { name, value } => (Some(META), &name[..], value.as_ref()),
        };
        // One batch has each key once.
        let place = if batches.len() > 1 { *places.entry((space, key)).or_insert(last.len()) } else { last.len() };
        if place == last.len() {
            let key = if space.is_some() { meta_key(key) } else { key.to_vec() };
            last.push((key, value));
        } else {
            last[place].1 = value;
        }
    }
    last
}

pub(super) fn put_ledger(out: &mut OwnedWriteBatch, tree: &Keyspace, written: Vec<Written>) {
    for written in written {
        let (key, bytes) = ledger_key(written);
        out.insert(tree, key, bytes);
    }
}

pub(super) fn ledger_key(written: Written) -> (Vec<u8>, Vec<u8>) {
    match written {
        Written::Entry(slot, bytes) => ([&[ENTRY][..], &slot.to_be_bytes()].concat(), bytes),
        Written::Checkpoint(partition, bytes) => ([&[CHECKPOINT][..], &partition.0.to_be_bytes()].concat(), bytes),
    }
}
