//! The engine in memory: an ordered map that is gone with the process. Made for tests and benches, for nodes that need
//! not outlive their process, and as the map under a simulated disk.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;

use super::{Batch, Committer, Opened, Reader, Slice, SliceRequest, Stats, StorageKey, Write};
use crate::boots::Boots;
use crate::error::StorageError;
use crate::types::{ClusterId, HashSeed, Incarnation, Seq, StoreId};

/// What a store holds, as ordered maps. Applying the same batches gives the same image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryImage {
    /// Records, hints and missed-write markers.
    records: BTreeMap<StorageKey, Bytes>,
    /// The meta space.
    metas: BTreeMap<Bytes, Bytes>,
}

impl MemoryImage {
    /// An image that holds nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Carries out the writes of a batch.
    pub fn apply(&mut self, batch: &Batch) {
        for write in &batch.writes {
            match write {
                Write::Record { key, value: Some(value), .. } => {
                    self.records.insert(key.clone(), value.clone());
                }
                Write::Record { key, value: None, .. } => {
                    self.records.remove(key);
                }
                Write::Meta { name, value: Some(value) } => {
                    self.metas.insert(name.clone(), value.clone());
                }
                Write::Meta { name, value: None } => {
                    self.metas.remove(name);
                }
            }
        }
    }

    /// The encoded record at `key`.
    #[must_use]
    pub fn get(&self, key: &StorageKey) -> Option<Bytes> {
        self.records.get(key).cloned()
    }

    /// A slice of a range.
    #[must_use]
    pub fn slice(&self, request: &SliceRequest) -> Slice {
        let mut slice = Slice::default();
        if request.from >= request.until {
            return slice;
        }
        let mut bytes = 0;
        for (key, value) in self.records.range(&request.from..&request.until) {
            if slice.is_full(request, bytes) {
                slice.more = true;
                break;
            }
            bytes += key.as_bytes().len() + value.len();
            slice.entries.push((key.clone(), value.clone()));
        }
        slice
    }

    /// The value of a name in the meta space.
    #[must_use]
    pub fn meta(&self, name: &[u8]) -> Option<Bytes> {
        self.metas.get(name).cloned()
    }

    /// All names and values in the meta space that start with `prefix`, ascending.
    #[must_use]
    pub fn metas(&self, prefix: &[u8]) -> Vec<(Bytes, Bytes)> {
        self.metas
            .range(Bytes::copy_from_slice(prefix)..)
            .take_while(|(name, _)| name.starts_with(prefix))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    }

    /// All records, ascending.
    pub fn records(&self) -> impl Iterator<Item = (&StorageKey, &Bytes)> {
        self.records.iter()
    }
}

/// A store in memory. It is new each time, so each needs a store id of its own.
#[derive(Debug)]
pub struct MemoryStore;

impl MemoryStore {
    /// An empty store. `store` and `nonce` are random, drawn by the caller.
    #[must_use]
    pub fn open(store: StoreId, nonce: u32) -> (Opened, MemoryReader, MemoryCommitter) {
        let image = Arc::new(RwLock::new(MemoryImage::new()));
        let mut boots = Boots::default();
        boots.begin(1, nonce, 0);
        let opened = Opened { incarnation: Incarnation { store, boot: 1, nonce }, boots, cluster: None };
        let reader = MemoryReader { image: Arc::clone(&image) };
        (opened, reader, MemoryCommitter { image, stats: Stats::new(), cluster: None })
    }
}

/// The reading half. A slice is read under a lock that a commit waits for, so its bounds also bound that wait.
#[derive(Clone, Debug)]
pub struct MemoryReader {
    image: Arc<RwLock<MemoryImage>>,
}

impl MemoryReader {
    fn read<T>(&self, read: impl FnOnce(&MemoryImage) -> T) -> T {
        // No code panics between two writes of a batch, so a poisoned lock still guards a whole image.
        read(&self.image.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Reader for MemoryReader {
    fn get(&self, key: &StorageKey) -> Result<Option<Bytes>, StorageError> {
        Ok(self.read(|image| image.get(key)))
    }

    fn slice(&self, request: &SliceRequest) -> Result<Slice, StorageError> {
        Ok(self.read(|image| image.slice(request)))
    }

    fn meta(&self, name: &[u8]) -> Result<Option<Bytes>, StorageError> {
        Ok(self.read(|image| image.meta(name)))
    }

    fn metas(&self, prefix: &[u8]) -> Result<Vec<(Bytes, Bytes)>, StorageError> {
        Ok(self.read(|image| image.metas(prefix)))
    }
}

/// The writing half. "Durable" means held by the process.
#[derive(Debug)]
pub struct MemoryCommitter {
    image: Arc<RwLock<MemoryImage>>,
    stats: Stats,
    cluster: Option<(ClusterId, HashSeed)>,
}

impl Committer for MemoryCommitter {
    fn commit(&mut self, batches: &[Batch], _through: Seq) -> Result<(), StorageError> {
        self.stats.apply(batches, &MemoryReader { image: Arc::clone(&self.image) })?;
        let mut image = self.image.write().unwrap_or_else(PoisonError::into_inner);
        batches.iter().for_each(|batch| image.apply(batch));
        Ok(())
    }

    fn bind(&mut self, cluster: ClusterId, seed: HashSeed) -> Result<(), StorageError> {
        match self.cluster {
            Some(found) if found != (cluster, seed) => Err(StorageError::OtherCluster {
                path: "the memory store".to_owned(),
                found: found.0,
                expected: cluster,
            }),
            _ => {
                self.cluster = Some((cluster, seed));
                Ok(())
            }
        }
    }

    fn stats(&self) -> &Stats {
        &self.stats
    }
}
