//! The log as the Raft engine sees it.
//!
//! Entries that are not purged are kept in memory as well: there are few of them, since a snapshot follows every so
//! many entries or bytes, and readers (one for each follower) never wait for the disk.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;
use std::thread::JoinHandle;

use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{AnyError, LogState, OptionalSend, RaftLogReader};
use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::files::{LogFiles, Recovered};
use super::writer::Writer;
use crate::control::files::checked as file;
use crate::control::files::{Disk, FileError};
use crate::control::raft::{Entry, LogId, StorageError, StorageIoError, TypeConfig, Vote};
use crate::control::state::ENTRY_BYTES_MAX;

const VOTE: &str = "vote";

/// The bytes at which a segment is followed by a new one.
pub(in crate::control) const SEGMENT_BYTES: u64 = 8 * 1024 * 1024;

/// The most bytes of entries in one message to a follower, unless a single entry is longer. gRPC refuses messages of
/// more than 4 MiB.
const READ_BYTES_MAX: usize = 1024 * 1024;

/// The log of one node.
#[derive(Clone, Debug)]
pub(in crate::control) struct LogStore {
    shared: Arc<RwLock<Shared>>,
    writer: Writer,
}

#[derive(Debug, Default)]
struct Shared {
    vote: Option<Vote>,
    purged: Option<LogId>,
    /// By index, without a gap, with the length of the encoding.
    entries: BTreeMap<u64, (Entry, usize)>,
}

impl LogStore {
    /// Opens the log on `disk` and starts its thread, which ends when the last clone of the store is dropped.
    pub(in crate::control) fn open<D: Disk>(
        mut disk: D,
        segment_bytes: u64,
    ) -> Result<(Self, JoinHandle<()>), FileError> {
        let vote = file::value(&mut disk, VOTE)?;
        let index = |mark: &[u8]| postcard::from_bytes::<LogId>(mark).ok().map(|id| id.index);
        let path = disk.path("");
        let (files, Recovered { purged, entries }) = LogFiles::open(disk, segment_bytes, index)?;
        let purged = purged.and_then(|mark| postcard::from_bytes(&mark).ok());
        let mut decoded = BTreeMap::new();
        for (index, bytes) in entries {
            let entry: Entry = postcard::from_bytes(&bytes).map_err(|error| FileError::Corrupt {
                path: path.clone(),
                reason: format!("entry {index} cannot be read: {error}"),
            })?;
            decoded.insert(index, (entry, bytes.len()));
        }
        let (writer, thread) = Writer::start(files)?;
        let shared = Arc::new(RwLock::new(Shared { vote, purged, entries: decoded }));
        Ok((Self { shared, writer }, thread))
    }

    /// Writes what a node has that has led a group of one voter up to the entry `first`, and has kept a snapshot of that.
    pub(in crate::control) fn write_first<D: Disk>(disk: &mut D, first: LogId) -> Result<(), FileError> {
        let vote = Vote::new_committed(first.leader_id.term, first.leader_id.node_id);
        file::replace(disk, VOTE, &file::encode(&vote)?)?;
        LogFiles::write_purged(disk, &file::encode(&first)?)
    }

    /// The entries of the log on `disk`, as far as they can be read, ascending. Nothing is changed if `disk` does not let itself be.
    pub(in crate::control) fn entries<D: Disk>(disk: D) -> Result<Vec<Entry>, FileError> {
        let index = |mark: &[u8]| postcard::from_bytes::<LogId>(mark).ok().map(|id| id.index);
        let (_, Recovered { entries, .. }) = LogFiles::open(disk, SEGMENT_BYTES, index)?;
        Ok(entries.iter().map_while(|(_, bytes)| postcard::from_bytes(bytes).ok()).collect())
    }

    /// Sets vote and log on `disk` aside, under names that begin with `prefix`.
    pub(in crate::control) fn set_aside<D: Disk>(disk: &mut D, prefix: &str) -> Result<(), FileError> {
        // The log first: a vote without a log is a node that has promised something, the reverse one that forgot it.
        LogFiles::set_aside(disk, prefix)?;
        file::set_aside(disk, VOTE, prefix)
    }

    /// The thread's inbox, for the small files beside the log.
    pub(in crate::control) fn writer(&self) -> &Writer {
        &self.writer
    }

    fn read(&self) -> RwLockReadGuard<'_, Shared> {
        // A panic inside the few lines that hold the lock leaves no half-made change.
        self.shared.read()
    }

    fn write(&self) -> RwLockWriteGuard<'_, Shared> {
        self.shared.write()
    }
}

fn write_failed(error: &FileError) -> StorageError {
    StorageIoError::write_logs(AnyError::new(error)).into()
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, StorageError> {
        if is_empty(&range) {
            return Ok(Vec::new());
        }
        Ok(self.read().entries.range(range).map(|(_, (entry, _))| entry.clone()).collect())
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, StorageError> {
        if start >= end {
            return Ok(Vec::new());
        }
        let mut bytes = 0;
        let shared = self.read();
        let within = |(_, (_, len)): &(&u64, &(Entry, usize))| {
            let fits = bytes == 0 || bytes + len <= READ_BYTES_MAX;
            bytes += len;
            fits
        };
        Ok(shared.entries.range(start..end).take_while(within).map(|(_, (entry, _))| entry.clone()).collect())
    }
}

/// `BTreeMap::range` panics on a range that ends before it begins.
fn is_empty(range: &impl RangeBounds<u64>) -> bool {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    match range.end_bound() {
        Bound::Included(end) => *end < start,
        Bound::Excluded(end) => *end <= start,
        Bound::Unbounded => false,
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        let shared = self.read();
        let last = shared.entries.values().next_back().map(|(entry, _)| entry.log_id);
        Ok(LogState { last_purged_log_id: shared.purged, last_log_id: last.or(shared.purged) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let failed = |error: FileError| StorageIoError::write_vote(AnyError::new(&error));
        let content = file::encode(vote).map_err(failed)?;
        self.writer.replace(VOTE, content).await.map_err(failed)?;
        self.write().vote = Some(*vote);
        Ok(())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        Ok(self.read().vote)
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<TypeConfig>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut encoded = Vec::new();
        let mut kept = Vec::new();
        for entry in entries {
            let bytes = file::encode(&entry).map_err(|error| write_failed(&error))?;
            if bytes.len() > ENTRY_BYTES_MAX {
                let reason = format!("an entry has {} bytes; {ENTRY_BYTES_MAX} are allowed", bytes.len());
                return Err(write_failed(&FileError::Poisoned { reason }));
            }
            kept.push((entry.log_id.index, (entry, bytes.len())));
            encoded.push((kept.last().map_or(0, |(index, _)| *index), bytes));
        }
        self.write().entries.extend(kept);
        self.writer.append(encoded, callback).await.map_err(|error| write_failed(&error))
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        self.write().entries.split_off(&log_id.index);
        self.writer.truncate(log_id.index).await.map_err(|error| write_failed(&error))
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        {
            let mut shared = self.write();
            if shared.purged >= Some(log_id) {
                return Ok(());
            }
            shared.purged = Some(log_id);
            shared.entries = shared.entries.split_off(&log_id.index.saturating_add(1));
        }
        let mark = file::encode(&log_id).map_err(|error| write_failed(&error))?;
        self.writer.purge(log_id.index, mark).await.map_err(|error| write_failed(&error))
    }
}
