//! Opening a store on disk: who it is, whether it is whole, and where it stands.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use fjall::compaction::Leveled;
use fjall::compaction::filter::Factory;
use fjall::config::CompressionPolicy;
use fjall::{CompressionType, Database, KeyspaceCreateOptions};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::background::LowPriority;
use super::descriptors::Descriptors;
use super::engine::{DiskCommitter, DiskReader, Shared, guarded, ledger_key, meta_key};
use super::identity::{Confirmed, Directory, Identity, io_error, not_a_store, read_identity};
use super::ledger::{Ledger, Recovery};
use super::{BOOTS, CHECKPOINT, DiskConfig, END, ENGINE, ENTRY, journal, tables};
use crate::boots::Boots;
use crate::error::StorageError;
use crate::storage::seal::{seal, unseal};
use crate::storage::{Committer, FORMER, FORMER_MAX, recount};
use crate::types::{Incarnation, PartitionId, Seq, StoreId};

/// The name of fjall's one tree.
const TREE: &str = "store";

/// The format of the seal under the engine's mark.
const SEAL: u8 = 1;

/// With fewer threads fjall waits for itself, or wastes a processor; see `DiskConfig::workers`.
const WORKERS_MIN: usize = 3;

/// With fewer fjall stops.
const FILES_MIN: usize = 10;

/// fjall's trees: its own, which knows the names of the others, and ours.
const TREES: [&str; 2] = ["keyspaces/0", "keyspaces/1"];

/// Files that fjall makes again, without what was in them, when they are missing.
const REQUIRED: [&str; 3] = ["version", "keyspaces/0/current", "keyspaces/1/current"];

/// What opening a store needs from outside: the core draws nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenIds {
    /// Random; the id of the store if it is new or renewed.
    pub store: StoreId,
    /// Random, drawn for this boot.
    pub nonce: u32,
}

/// The engine's own record of who it is and of the last boot that it was opened for. Written before the identity file, so
/// a lower boot than the identity's shows that the engine's files are older than they should be.
#[derive(Serialize, Deserialize)]
struct Mark {
    data: StoreId,
    boot: u32,
}

/// How far a boot has come: the last batch that was committed in it.
#[derive(Clone, Copy, Default, Serialize, Deserialize)]
struct End {
    boot: u32,
    through: u64,
}

/// What makes the present boot durable, until it is.
#[derive(Debug)]
pub(super) struct Beginning {
    boots: Boots,
    /// The ledger as it was counted anew, if it was.
    ledger: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    /// The ids that the store had before, if it is renewed.
    former: Option<Vec<StoreId>>,
}

/// The engine on disk.
#[derive(Debug)]
pub struct DiskStore;

impl DiskStore {
    /// Opens the store in `directory`, or makes one in an empty or missing directory, and begins a boot of it.
    ///
    /// # Errors
    /// As for [`DiskStore::prepare`] and [`Committer::begin`].
    pub fn open(
        directory: &Path,
        config: &DiskConfig,
        ids: OpenIds,
    ) -> Result<(crate::storage::Opened, DiskReader, DiskCommitter), StorageError> {
        let (opened, reader, mut committer) = Self::prepare(directory, config, ids)?;
        committer.begin()?;
        Ok((opened, reader, committer))
    }

    /// The id of the store in `directory`; `None` if there is no store.
    ///
    /// # Errors
    /// If its identity cannot be read.
    pub fn id_of(directory: &Path) -> Result<Option<StoreId>, StorageError> {
        Ok(read_identity(directory)?.map(|identity| identity.store))
    }

    /// Opens the store in `directory`, or makes one in an empty or missing directory. Its boot begins with
    /// [`Committer::begin`]: a start that fails before that leaves an existing store as it was.
    ///
    /// # Errors
    /// If another process has it open, if the directory holds something else or a store of another format, if its files
    /// are damaged or older than they should be, or if the medium fails. Nothing is changed then, but for a torn batch at
    /// the end of the journal, which was never confirmed.
    pub fn prepare(
        directory: &Path,
        config: &DiskConfig,
        ids: OpenIds,
    ) -> Result<(crate::storage::Opened, DiskReader, DiskCommitter), StorageError> {
        let (directory, identity) = Directory::open(directory)?;
        let mut identity = match identity {
            Some(identity) => identity,
            None => {
                let identity = Identity { store: ids.store, data: ids.store, boot: 0, cluster: None };
                directory.write_identity(&identity)?;
                identity
            }
        };
        let is_new = identity.boot == 0;
        let shared = open_engine(directory, config, identity.data, is_new)?;
        let mark = read_mark(&shared, &identity, is_new)?;
        let (confirmed, confirmed_before) = shared.directory.open_confirmed()?;
        let (recovery, trouble) = read_ledger(&shared)?;
        let rolled_back = |what: String| StorageError::RolledBack { path: shared.path().display().to_string(), what };
        if !config.renew {
            if mark.boot < identity.boot {
                let (found, expected) = (mark.boot, identity.boot);
                return Err(rolled_back(format!("its data is of boot {found}, but it was opened for boot {expected}")));
            }
            // An unreadable ledger says nothing about how far it came.
            if recovery.last() < confirmed_before && trouble.is_none() {
                let found = recovery.last();
                return Err(rolled_back(format!(
                    "it ends at commit {found}, but commit {confirmed_before} was confirmed"
                )));
            }
        }

        let last = recovery.last().max(confirmed_before);
        let finished = trouble.map_or_else(|| recovery.finish(), Err);
        let boot = mark.boot.max(identity.boot).checked_add(1).ok_or_else(|| StorageError::Engine {
            path: shared.path().display().to_string(),
            reason: "its boot counter is used up".to_owned(),
        })?;
        let (ledger, written, recounted) = match finished {
            Ok(ledger) if !config.recount => (ledger, Vec::new(), false),
            _ => {
                let (ledger, written) = renew_ledger(&shared, last)?;
                (ledger, written, true)
            }
        };
        let (mut boots, end) = read_boots(&shared)?;
        let ended = if end.boot == boots.newest() { end.through } else { 0 };
        let mut former = None;
        if config.renew {
            let mut ids_before = read_former(&shared)?;
            // It is there already if an earlier renewal was cut short.
            ids_before.retain(|before| *before != identity.store);
            ids_before.push(identity.store);
            let surplus = ids_before.len().saturating_sub(FORMER_MAX);
            ids_before.drain(..surplus);
            former = Some(ids_before);
            identity.store = ids.store;
            // Another store has other boots.
            boots = Boots::default();
        }
        boots.begin(boot, ids.nonce, ended);
        identity.boot = boot;

        let incarnation = Incarnation { store: identity.store, boot, nonce: ids.nonce };
        let opened = crate::storage::Opened { incarnation, boots: boots.clone(), cluster: identity.cluster };
        let reader = DiskReader::new(shared.clone(), recounted);
        let committer = DiskCommitter {
            shared,
            reader: reader.clone(),
            ledger,
            identity,
            confirmed,
            stall_ms_max: config.stall_ms_max,
            poisoned: None,
            beginning: Some(Beginning { boots, ledger: written, former }),
        };
        Ok((opened, reader, committer))
    }
}

impl Beginning {
    /// Makes the boot durable.
    pub(super) fn make_durable(
        self,
        shared: &Shared,
        identity: &Identity,
        confirmed: &mut Confirmed,
        last: u64,
    ) -> Result<(), StorageError> {
        let mut out = shared.database.batch();
        out.insert(&shared.tree, [ENGINE], seal(SEAL, &Mark { data: identity.data, boot: identity.boot }));
        out.insert(&shared.tree, BOOTS, seal(SEAL, &self.boots));
        if let Some(former) = &self.former {
            out.insert(&shared.tree, meta_key(FORMER), postcard::to_allocvec(former).unwrap_or_default());
        }
        for (key, bytes) in self.ledger {
            match bytes {
                Some(bytes) => out.insert(&shared.tree, key, bytes),
                None => out.remove(&shared.tree, key),
            }
        }
        shared.commit(out)?;
        // A file that was missing or behind is right from here on; one that was ahead was accepted by a renewal.
        confirmed.write(last)?;
        shared.directory.write_identity(identity)
    }
}

/// The entry that says how far a boot has come with a commit.
pub(super) fn end_entry(boot: u32, through: Seq) -> ([u8; 2], Vec<u8>) {
    (END, seal(SEAL, &End { boot, through: through.0 }))
}

fn read_boots(shared: &Shared) -> Result<(Boots, End), StorageError> {
    let damaged = |what: &str, reason: &str| StorageError::Damaged {
        path: shared.directory.data().display().to_string(),
        reason: format!("{what}: {reason}"),
    };
    let read = |key: [u8; 2]| guarded(shared.path(), || shared.tree.get(key));
    let boots = read(BOOTS)?.map(|bytes| unseal::<Boots>(SEAL, &bytes)).transpose();
    let boots = boots.map_err(|reason| damaged("the list of boots", reason))?.unwrap_or_default();
    if !boots.is_valid() {
        return Err(damaged("the list of boots", "its numbers do not grow"));
    }
    let end = read(END)?.map(|bytes| unseal::<End>(SEAL, &bytes)).transpose();
    Ok((boots, end.map_err(|reason| damaged("the end of the last boot", reason))?.unwrap_or_default()))
}

/// The ids that the store had before.
fn read_former(shared: &Shared) -> Result<Vec<StoreId>, StorageError> {
    let bytes = guarded(shared.path(), || shared.tree.get(meta_key(FORMER)))?;
    // One that does not decode says nothing; the store itself is what is kept.
    Ok(bytes.and_then(|bytes| postcard::from_bytes(&bytes).ok()).unwrap_or_default())
}

fn open_engine(
    directory: Directory,
    config: &DiskConfig,
    store: StoreId,
    is_new: bool,
) -> Result<Shared, StorageError> {
    let data = directory.data();
    if is_new {
        // Whatever a first start left behind that was cut short: nobody has used it.
        match fs::remove_dir_all(&data) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(io_error("clearing", &data, error));
            }
            _ => {}
        }
    } else {
        for name in REQUIRED {
            let path = data.join(name);
            if !path.try_exists().map_err(|source| io_error("looking for", &path, source))? {
                return Err(StorageError::Damaged {
                    path: path.display().to_string(),
                    reason: "it is missing".to_owned(),
                });
            }
        }
        // The journals come last: only they are changed, and only if all else is whole.
        TREES.iter().try_for_each(|tree| tables::check(&data.join(tree)))?;
        journal::check(&data)?;
    }
    let descriptors =
        Descriptors::open(directory.path()).map_err(|source| io_error("opening", directory.path(), source))?;
    let filters = LowPriority(descriptors.clone());
    let database = guarded(directory.path(), || {
        let filters = Arc::new(filters);
        Database::builder(&data)
            .cache_size(config.cache_bytes)
            .max_cached_files(Some(config.files.max(FILES_MIN)))
            .worker_threads(config.workers.max(WORKERS_MIN))
            .with_compaction_filter_factories(Arc::new(move |_| Some(Arc::clone(&filters) as Arc<dyn Factory>)))
            .open()
    })?;
    if !is_new && !database.keyspace_exists(TREE) {
        let reason = format!("its tree {TREE:?} is missing");
        return Err(StorageError::Damaged { path: data.display().to_string(), reason });
    }
    let memtable_bytes = memtable_bytes(config.memtable_bytes, store);
    let options = || {
        KeyspaceCreateOptions::default()
            .max_memtable_size(memtable_bytes)
            .compaction_strategy(Arc::new(Leveled::default().with_table_target_size(config.table_bytes)))
            .data_block_compression_policy(CompressionPolicy::all(CompressionType::Lz4))
    };
    let tree = guarded(directory.path(), || database.keyspace(TREE, options))?;
    Ok(Shared {
        tree,
        database,
        stalled_ms: Arc::default(),
        reclaiming: Arc::default(),
        descriptors,
        table_bytes: config.table_bytes,
        memtable_bytes,
        directory: Arc::new(directory),
    })
}

/// How much a store gathers in memory: a part of `most` between three quarters and all of it.
fn memtable_bytes(most: u64, store: StoreId) -> u64 {
    const STEPS: u64 = 64;
    let step = xxh3_64(&store.0.to_le_bytes()) % STEPS;
    most - most / 4 / STEPS * step
}

fn read_mark(shared: &Shared, identity: &Identity, is_new: bool) -> Result<Mark, StorageError> {
    if is_new {
        return Ok(Mark { data: identity.data, boot: 0 });
    }
    let damaged = |reason: &str| StorageError::Damaged {
        path: shared.directory.data().display().to_string(),
        reason: format!("the engine's mark: {reason}"),
    };
    let bytes = guarded(shared.path(), || shared.tree.get([ENGINE]))?.ok_or_else(|| damaged("it is missing"))?;
    let mark: Mark = unseal(SEAL, &bytes).map_err(damaged)?;
    if mark.data != identity.data {
        return Err(not_a_store(shared.path(), "its identity file and its data belong to different stores"));
    }
    Ok(mark)
}

/// Reads the ledger, and what is wrong with it if something is.
fn read_ledger(shared: &Shared) -> Result<(Recovery, Option<String>), StorageError> {
    let mut recovery = Recovery::default();
    let mut trouble = None;
    for (key, bytes) in guarded(shared.path(), || shared.all_with_prefix(&[CHECKPOINT]))? {
        let read = match <[u8; 2]>::try_from(&key[1..]) {
            Ok(partition) => recovery.checkpoint(PartitionId(u16::from_be_bytes(partition)), &bytes),
            Err(_) => Err("a checkpoint has no partition".to_owned()),
        };
        trouble = trouble.or(read.err());
    }
    for (key, bytes) in guarded(shared.path(), || shared.all_with_prefix(&[ENTRY]))? {
        let read = match <[u8; 4]>::try_from(&key[1..]) {
            Ok(slot) => recovery.entry(u32::from_be_bytes(slot), &bytes),
            Err(_) => Err("a statistics entry has no slot".to_owned()),
        };
        trouble = trouble.or(read.err());
    }
    Ok((recovery, trouble))
}

/// A ledger with the statistics counted again, and what puts it in place of the old one.
type Renewed = (Ledger, Vec<(Vec<u8>, Option<Vec<u8>>)>);

fn renew_ledger(shared: &Shared, last: u64) -> Result<Renewed, StorageError> {
    let counted = recount(&DiskReader::new(shared.clone(), false))?;
    let (ledger, written) = Ledger::renew(counted.stats, last);
    let mut out: Vec<_> = written.into_iter().map(ledger_key).map(|(key, bytes)| (key, Some(bytes))).collect();
    let kept: BTreeSet<Vec<u8>> = out.iter().map(|(key, _)| key.clone()).collect();
    for prefix in [CHECKPOINT, ENTRY] {
        for (key, _) in guarded(shared.path(), || shared.all_with_prefix(&[prefix]))? {
            if !kept.contains(&key[..]) {
                out.push((key.to_vec(), None));
            }
        }
    }
    Ok((ledger, out))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn stores_gather_different_amounts_within_the_limit() {
        let sizes: BTreeSet<u64> = (0..200).map(|store| memtable_bytes(1 << 24, StoreId(store))).collect();
        assert!(sizes.len() > 32, "{} sizes", sizes.len());
        assert!(sizes.iter().all(|size| (3 << 22..=1 << 24).contains(size)), "{sizes:?}");
        assert!((0..200).all(|store| memtable_bytes(u64::MAX, StoreId(store)) >= u64::MAX / 4 * 3), "no overflow");
    }
}
