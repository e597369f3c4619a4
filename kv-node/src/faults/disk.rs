//! A store whose disk stands still or is full.

use std::sync::Arc;

use bytes::Bytes;
use kv_core::error::StorageError;
use kv_core::storage::{Batch, Committer, Reader, Slice, SliceRequest, Stats, StorageKey};
use kv_core::types::{ClusterId, HashSeed, Seq};
use parking_lot::{Condvar, Mutex};

/// The faults of a node's disk. Clones share them. The default is that of a node that takes none.
#[derive(Clone, Debug, Default)]
pub struct Disk(Option<Arc<(Mutex<State>, Condvar)>>);

#[derive(Clone, Copy, Debug, Default)]
struct State {
    paused: bool,
    full: bool,
}

impl Disk {
    /// Of a node that takes faults.
    pub(super) fn allowed() -> Self {
        Self(Some(Arc::default()))
    }

    pub(super) fn set(&self, paused: bool, full: bool) {
        if let Some((state, changed)) = self.0.as_deref() {
            *state.lock() = State { paused, full };
            changed.notify_all();
        }
    }

    /// Whether nothing can be written.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.0.as_deref().is_some_and(|(state, _)| state.lock().full)
    }

    /// Waits while it stands still.
    fn wait(&self) {
        let Some((state, changed)) = self.0.as_deref() else { return };
        let mut state = state.lock();
        while state.paused {
            changed.wait(&mut state);
        }
    }
}

/// Writes to a disk with these faults. A store that could not write something fails at every later write.
#[derive(Debug)]
pub struct FaultyCommitter<C> {
    inner: C,
    disk: Disk,
    /// Where the store is.
    path: String,
    has_failed: bool,
}

impl<C: Committer> FaultyCommitter<C> {
    /// Writes by `inner`, whose store lies at `path`.
    #[must_use]
    pub fn new(inner: C, disk: Disk, path: String) -> Self {
        Self { inner, disk, path, has_failed: false }
    }
}

impl<C: Committer> Committer for FaultyCommitter<C> {
    fn begin(&mut self) -> Result<(), StorageError> {
        self.inner.begin()
    }

    fn commit(&mut self, batches: &[Batch], through: Seq) -> Result<(), StorageError> {
        self.disk.wait();
        self.has_failed |= self.disk.is_full();
        if self.has_failed {
            return Err(StorageError::Full { path: self.path.clone() });
        }
        self.inner.commit(batches, through)
    }

    fn bind(&mut self, cluster: ClusterId, seed: HashSeed) -> Result<(), StorageError> {
        self.inner.bind(cluster, seed)
    }

    fn stats(&self) -> &Stats {
        self.inner.stats()
    }
}

/// Reads from a disk with these faults.
#[derive(Clone, Debug)]
pub struct FaultyReader<R> {
    inner: R,
    disk: Disk,
}

impl<R: Reader> FaultyReader<R> {
    /// Reads by `inner`.
    #[must_use]
    pub fn new(inner: R, disk: Disk) -> Self {
        Self { inner, disk }
    }
}

impl<R: Reader> Reader for FaultyReader<R> {
    fn get(&self, key: &StorageKey) -> Result<Option<Bytes>, StorageError> {
        self.disk.wait();
        self.inner.get(key)
    }

    fn slice(&self, request: &SliceRequest) -> Result<Slice, StorageError> {
        self.disk.wait();
        self.inner.slice(request)
    }

    fn meta(&self, name: &[u8]) -> Result<Option<Bytes>, StorageError> {
        self.inner.meta(name)
    }

    fn metas(&self, prefix: &[u8]) -> Result<Vec<(Bytes, Bytes)>, StorageError> {
        self.inner.metas(prefix)
    }

    fn is_behind(&self) -> bool {
        self.inner.is_behind()
    }

    fn catch_up(&self) -> Result<(), StorageError> {
        self.disk.wait();
        self.inner.catch_up()
    }

    fn reclaim(&self, deleted: u64) -> Result<(), StorageError> {
        self.disk.wait();
        self.inner.reclaim(deleted)
    }
}

#[cfg(test)]
mod tests {
    use kv_core::storage::MemoryStore;
    use kv_core::types::StoreId;

    use super::*;

    fn committer(disk: &Disk) -> FaultyCommitter<impl Committer> {
        let (_, _, committer) = MemoryStore::open(StoreId(1), 1);
        FaultyCommitter::new(committer, disk.clone(), "/data/store".to_owned())
    }

    #[test]
    fn a_store_whose_disk_was_full_once_stays_failed() {
        let disk = Disk::allowed();
        let mut committer = committer(&disk);
        committer.commit(&[], Seq(1)).unwrap();
        disk.set(false, true);
        let error = committer.commit(&[], Seq(2)).unwrap_err();
        assert!(error.to_string().contains("/data/store is full"), "{error}");
        disk.set(false, false);
        committer.commit(&[], Seq(3)).unwrap_err();
    }

    #[test]
    fn nothing_is_written_while_the_disk_stands_still() {
        let disk = Disk::allowed();
        let mut committer = committer(&disk);
        disk.set(true, false);
        let (done, written) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            committer.commit(&[], Seq(1)).unwrap();
            done.send(()).unwrap();
        });
        assert!(written.try_recv().is_err());
        disk.set(false, false);
        written.recv().unwrap();
        thread.join().unwrap();
    }
}
