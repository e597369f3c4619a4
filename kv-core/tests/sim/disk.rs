//! The disk of one machine.
//!
//! A batch is visible when it is given and durable when its sync is confirmed. A crash loses any subset of the batches
//! that are not durable, each whole: harsher than the contract of `kv_core::storage`, which lets it lose only the last.
//! A read shows the durable batches and any number of the following ones, as a reader beside a busy committer would.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use kv_core::boots::Boots;
use kv_core::cell::Cell;
use kv_core::config::KeyspaceList;
use kv_core::error::StorageError;
use kv_core::recovery::{enter, examine};
use kv_core::ring::Layout;
use kv_core::storage::{
    Batch, FORMER, MemoryImage, Reader, Slice, SliceRequest, Stats, StorageKey, Stored, Write, recount,
};
use kv_core::types::{Epoch, Incarnation, NodeId, PartitionId, Point, Seq, StoreId};
use kv_core::version::{Hlc, Record};

use crate::dice::Dice;

/// Where a node keeps its list of keyspaces.
pub(crate) const KEYSPACE_LIST: &[u8] = b"keyspace-list";

/// A copy of a disk, as an operator might keep and restore.
#[derive(Clone, Debug)]
pub(crate) struct DiskCopy {
    /// The store that was copied.
    pub(crate) store: StoreId,
    /// Its boots, up to where the copy was taken.
    pub(crate) boots: Boots,
    image: MemoryImage,
}

/// What a crash did.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Crash {
    /// Batches lost.
    pub(crate) lost: u64,
    /// Whether a lost batch was older than a surviving one.
    pub(crate) hole: bool,
}

/// One disk.
#[derive(Debug)]
pub(crate) struct Disk {
    /// The id of the data directory.
    pub(crate) store: StoreId,
    /// Its boots.
    pub(crate) boots: Boots,
    /// The last batch of the last boot that was confirmed.
    commit: u64,
    durable: MemoryImage,
    /// Shared with nobody but a reader that is at work.
    visible: Arc<MemoryImage>,
    /// The statistics of what is visible.
    stats: Stats,
    pending: VecDeque<(Seq, Batch)>,
    /// Whether a sync is under way.
    pub(crate) syncing: bool,
    /// Whether the next sync fails.
    pub(crate) failing: bool,
    /// Whether the next crash loses all that is not durable.
    pub(crate) forgets: bool,
    /// What wiped and rolled-back disks held durably: it counted when it was confirmed.
    lost: Vec<MemoryImage>,
    /// What was durable and was deleted since: likewise.
    deleted: BTreeMap<StorageKey, Vec<Bytes>>,
}

impl Disk {
    /// An empty disk.
    pub(crate) fn new(store: StoreId) -> Self {
        Self {
            store,
            boots: Boots::default(),
            commit: 0,
            durable: MemoryImage::new(),
            visible: Arc::new(MemoryImage::new()),
            stats: Stats::new(),
            pending: VecDeque::new(),
            syncing: false,
            failing: false,
            forgets: false,
            lost: Vec::new(),
            deleted: BTreeMap::new(),
        }
    }

    /// A batch is durable.
    fn settle(&mut self, batch: &Batch) {
        for write in &batch.writes {
            if let Write::Record { key, value: None, .. } = write
                && let Some(before) = self.durable.get(key)
            {
                self.deleted.entry(key.clone()).or_default().push(before);
            }
        }
        self.durable.apply(batch);
    }

    /// The layout that a node finds when it starts.
    pub(crate) fn durable_layout(&self) -> Option<Layout> {
        self.durable.meta(b"layout").and_then(|value| postcard::from_bytes(&value).ok())
    }

    /// The watermark of a partition that a node finds when it starts (rule A6).
    pub(crate) fn durable_watermark(&self, partition: PartitionId) -> Hlc {
        self.durable_settled(partition).unwrap_or_default().0
    }

    /// How far a partition had settled in which ownership, as a node finds it when it starts (rule A6).
    pub(crate) fn durable_settled(&self, partition: PartitionId) -> Option<(Hlc, Epoch)> {
        let name = [b"settled/".as_slice(), &partition.0.to_be_bytes()].concat();
        self.durable.meta(&name).and_then(|value| postcard::from_bytes(&value).ok())
    }

    /// The list of keyspaces that a node finds when it starts.
    pub(crate) fn durable_keyspaces(&self) -> Option<KeyspaceList> {
        self.durable.meta(KEYSPACE_LIST).and_then(|value| postcard::from_bytes(&value).ok())
    }

    /// The list of keyspaces that the node wrote last.
    pub(crate) fn visible_keyspaces(&self) -> Option<KeyspaceList> {
        self.visible.meta(KEYSPACE_LIST).and_then(|value| postcard::from_bytes(&value).ok())
    }

    /// Opens the store: the boot is durable before anything else happens.
    pub(crate) fn open(&mut self, nonce: u32) -> Incarnation {
        let boot = self.boots.newest() + 1;
        self.boots.begin(boot, nonce, self.commit);
        self.commit = 0;
        Incarnation { store: self.store, boot, nonce }
    }

    /// Durable entries of the node's own whose names begin so.
    pub(crate) fn durable_metas(&self, prefix: &[u8]) -> Vec<(Bytes, Bytes)> {
        self.durable.metas(prefix)
    }

    /// What the node durably remembers of a peer: how far it was, and the stores that it has replaced.
    pub(crate) fn durable_seen(&self, peer: NodeId) -> Option<(Point, Vec<StoreId>)> {
        let name = [&b"peer/"[..], &peer.0.to_be_bytes()].concat();
        self.durable.meta(&name).and_then(|value| postcard::from_bytes(&value).ok())
    }

    /// A reader of what is visible, and the statistics of it, for a recovery.
    pub(crate) fn recovery(&self) -> (ImageReader, &Stats) {
        (ImageReader(Arc::clone(&self.visible)), &self.stats)
    }

    /// Takes a batch: visible now, durable after a sync.
    pub(crate) fn persist(&mut self, seq: Seq, batch: Batch) {
        let before = ImageReader(Arc::clone(&self.visible));
        let applied = self.stats.apply(std::slice::from_ref(&batch), &before);
        debug_assert!(applied.is_ok(), "a reader in memory does not fail");
        drop(before);
        Arc::make_mut(&mut self.visible).apply(&batch);
        self.pending.push_back((seq, batch));
    }

    /// The last batch that waits for a sync.
    pub(crate) fn last_pending(&self) -> Option<Seq> {
        self.pending.back().map(|(seq, _)| *seq)
    }

    /// A sync is complete: everything up to `through` is durable.
    pub(crate) fn confirm(&mut self, through: Seq) {
        self.commit = self.commit.max(through.0);
        while self.pending.front().is_some_and(|(seq, _)| *seq <= through) {
            if let Some((_, batch)) = self.pending.pop_front() {
                self.settle(&batch);
            }
        }
    }

    /// The machine stops: each batch that is not durable survives or not, by chance.
    pub(crate) fn crash(&mut self, dice: &mut Dice) -> Crash {
        let mut crash = Crash::default();
        // Sometimes all or nothing, which mixed subsets would hardly ever show.
        let survive = *dice.pick(&[0, 300, 500, 800, 1000]);
        let survive = if std::mem::take(&mut self.forgets) { 0 } else { survive };
        let pending = std::mem::take(&mut self.pending);
        if !pending.is_empty() {
            for (_, batch) in pending {
                if dice.chance(survive) {
                    self.settle(&batch);
                    crash.hole |= crash.lost > 0;
                } else {
                    crash.lost += 1;
                }
            }
            self.visible = Arc::new(self.durable.clone());
            self.stats = count_anew(&self.visible);
        }
        self.syncing = false;
        self.failing = false;
        crash
    }

    /// Replaces the disk of a stopped machine by an empty one.
    pub(crate) fn wipe(&mut self, store: StoreId, boots: Boots) {
        self.bury();
        self.replace(store, boots, MemoryImage::new());
    }

    /// A copy of what is durable.
    pub(crate) fn copy(&self) -> DiskCopy {
        let mut boots = self.boots.clone();
        boots.end(self.commit);
        DiskCopy { store: self.store, boots, image: self.durable.clone() }
    }

    /// Replaces the disk of a stopped machine by an older copy of it.
    pub(crate) fn restore(&mut self, copy: DiskCopy) {
        self.bury();
        self.replace(copy.store, copy.boots, copy.image);
    }

    /// Gives the store another identity: same data, as an old copy, and no history.
    pub(crate) fn renew(&mut self, store: StoreId) {
        let mut former: Vec<StoreId> =
            self.durable.meta(FORMER).and_then(|value| postcard::from_bytes(&value).ok()).unwrap_or_default();
        former.push(self.store);
        let value = postcard::to_allocvec(&former).ok().map(Bytes::from);
        let write = Write::Meta { name: Bytes::from_static(FORMER), value };
        self.write_offline(&Batch { writes: vec![write] });
        self.store = store;
        self.boots = Boots::default();
        self.commit = 0;
    }

    /// Gives the store of a stopped machine another identity under which it enters another generation.
    pub(crate) fn enter(&mut self, store: StoreId, keep: impl Fn(&[u8]) -> bool) {
        let reader = ImageReader(Arc::new(self.durable.clone()));
        let Ok(examined) = examine(self.store, &reader, &self.stats) else { return };
        self.renew(store);
        let mut batch = enter(&examined, store);
        batch.writes.retain(|write| !matches!(write, Write::Meta { name, .. } if !keep(name)));
        self.write_offline(&batch);
    }

    /// Writes to the disk of a stopped machine, durably.
    fn write_offline(&mut self, batch: &Batch) {
        self.durable.apply(batch);
        Arc::make_mut(&mut self.visible).apply(batch);
    }

    fn bury(&mut self) {
        self.lost.push(std::mem::take(&mut self.durable));
    }

    fn replace(&mut self, store: StoreId, boots: Boots, image: MemoryImage) {
        self.store = store;
        self.commit = boots.all().last().map_or(0, |boot| boot.last);
        self.boots = boots;
        self.durable = image.clone();
        self.visible = Arc::new(image);
        self.stats = count_anew(&self.visible);
        self.pending.clear();
    }

    /// How many batches a reader sees beyond the durable ones: by chance, since it works beside the committer.
    pub(crate) fn reader_sees(&self, dice: &mut Dice) -> usize {
        dice.index(self.pending.len() + 1)
    }

    /// Reads an entry as a reader that sees the first `sees` pending batches.
    pub(crate) fn read(&self, key: &StorageKey, sees: usize) -> Option<Bytes> {
        for (_, batch) in self.pending.iter().take(sees).rev() {
            for write in &batch.writes {
                if let Write::Record { key: written, value, .. } = write
                    && written == key
                {
                    return value.clone();
                }
            }
        }
        self.durable.get(key)
    }

    /// Reads a slice, likewise.
    pub(crate) fn slice(&self, request: &SliceRequest, sees: usize) -> Slice {
        if sees >= self.pending.len() {
            return self.visible.slice(request);
        }
        let mut image = self.durable.clone();
        self.pending.iter().take(sees).for_each(|(_, batch)| image.apply(batch));
        image.slice(request)
    }

    /// The record that is visible at `key`.
    pub(crate) fn visible_record(&self, key: &StorageKey) -> Option<Record> {
        self.visible_cell(key).as_ref().and_then(Cell::record).cloned()
    }

    /// The record that is durable at `key`.
    pub(crate) fn durable_record(&self, key: &StorageKey) -> Option<Record> {
        self.durable_cell(key).as_ref().and_then(Cell::record).cloned()
    }

    /// The cell that is visible at `key`, of whatever mode.
    pub(crate) fn visible_cell(&self, key: &StorageKey) -> Option<Cell> {
        decode(self.visible.get(key))
    }

    /// The cell that is durable at `key`, of whatever mode.
    pub(crate) fn durable_cell(&self, key: &StorageKey) -> Option<Cell> {
        decode(self.durable.get(key))
    }

    /// Whether some durable record at `key`, on this disk or on one that it replaces, satisfies `check`.
    pub(crate) fn ever_held(&self, key: &StorageKey, check: impl Fn(&Record) -> bool) -> bool {
        self.ever_held_cell(key, |cell| cell.record().is_some_and(&check))
    }

    /// The same of a cell of any kind.
    pub(crate) fn ever_held_cell(&self, key: &StorageKey, check: impl Fn(&Cell) -> bool) -> bool {
        let images = std::iter::once(&self.durable).chain(&self.lost);
        let deleted = self.deleted.get(key).into_iter().flatten().cloned();
        let held = images.filter_map(|image| image.get(key)).chain(deleted);
        held.filter_map(|bytes| decode(Some(bytes))).any(|cell| check(&cell))
    }

    /// The statistics of what is visible.
    pub(crate) fn stats(&self) -> &Stats {
        &self.stats
    }

    /// The statistics as counted from the entries.
    pub(crate) fn recount(&self) -> Stats {
        count_anew(&self.visible)
    }
}

fn decode(encoded: Option<Bytes>) -> Option<Cell> {
    // What does not decode is not held; the simulator damages none.
    encoded.and_then(|bytes| Stored::decode(&bytes).ok()).map(|stored| stored.cell)
}

fn count_anew(image: &Arc<MemoryImage>) -> Stats {
    // An image in memory does not fail.
    recount(&ImageReader(Arc::clone(image))).map(|recount| recount.stats).unwrap_or_default()
}

/// A reader of an image that nobody changes.
#[derive(Clone, Debug)]
pub(crate) struct ImageReader(Arc<MemoryImage>);

impl Reader for ImageReader {
    fn get(&self, key: &StorageKey) -> Result<Option<Bytes>, StorageError> {
        Ok(self.0.get(key))
    }

    fn slice(&self, request: &SliceRequest) -> Result<Slice, StorageError> {
        Ok(self.0.slice(request))
    }

    fn meta(&self, name: &[u8]) -> Result<Option<Bytes>, StorageError> {
        Ok(self.0.meta(name))
    }

    fn metas(&self, prefix: &[u8]) -> Result<Vec<(Bytes, Bytes)>, StorageError> {
        Ok(self.0.metas(prefix))
    }
}
