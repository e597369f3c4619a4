//! One data directory of a stopped node. To look into it changes nothing, and takes the lock that a node would take.

use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use kv_core::boots::Boots;
use kv_core::error::StorageError;
use kv_core::recovery::{Examined, examine};
use kv_core::storage::{Committer as _, DiskCommitter, DiskConfig, DiskReader, DiskStore, OpenIds, Opened};
use kv_core::types::{ClusterId, HashSeed, NodeId, StoreId, WallTime};

use super::RecoverError;
use crate::control::{self, Known, MemberRecord};
use crate::own_files;

/// The control plane's files in a data directory.
pub(super) const CONTROL: &str = "control";

/// What the names of folders begin with in which the control plane's files of earlier generations are kept.
pub(super) const KEPT: &str = "control-generation-";

/// Where the files of the next generation are made ready.
pub(super) const NEW: &str = "control.new";

/// How long is waited for the threads of the store to end.
const LOCK_TIMEOUT: Duration = Duration::from_secs(60);

/// What a data directory holds.
#[derive(Clone, Debug)]
pub(super) struct Directory {
    pub(super) path: PathBuf,
    /// When its node has last written to it.
    pub(super) used: Option<WallTime>,
    pub(super) store: Store,
    /// What its control plane knew.
    pub(super) known: Known,
    /// Whether a recovery was begun here and not finished.
    pub(super) is_interrupted: bool,
    /// Why its node was removed from the cluster, if it was.
    pub(super) removed: Option<String>,
}

/// The store in a data directory.
#[derive(Clone, Debug)]
pub(super) struct Store {
    pub(super) id: StoreId,
    pub(super) cluster: Option<(ClusterId, HashSeed)>,
    pub(super) boots: Boots,
    pub(super) examined: Examined,
    /// How it shows that it is older than it was, if it shows that by itself.
    pub(super) rolled_back: Option<String>,
}

impl Directory {
    /// Looks into the data directory `path`.
    pub(super) fn read(path: &Path) -> Result<Self, RecoverError> {
        let is_node = path.join("store").join("identity").is_file();
        if !is_node {
            let what = if path.is_dir() { "is not the data directory of a kv-node" } else { "does not exist" };
            return Err(RecoverError::NotFound(format!(
                "{} {what}; name the directory that the node was started with (--data-dir)",
                path.display()
            )));
        }
        let (store, rolled_back) = match open(path, false) {
            Ok(store) => (store, None),
            Err(StorageError::RolledBack { what, .. }) => (open(path, true)?, Some(what)),
            Err(error) => return Err(error.into()),
        };
        // With the lock held, so that no node starts meanwhile.
        let used = used(path);
        let is_interrupted = own_files::is_recovering(path);
        let known = known(path);
        let removed = own_files::check_not_removed(path).err().map(|error| error.to_string());
        let Open { opened, reader, committer } = store;
        let mut boots = opened.boots.clone();
        boots.forget_last();
        // A store that was opened to be renewed shows the id that it would get.
        let id = DiskStore::id_of(&path.join("store"))?.unwrap_or(opened.incarnation.store);
        let examined = examine(id, &reader, committer.stats())?;
        let store = Store { id, cluster: opened.cluster, boots, examined, rolled_back };
        close(reader, committer)?;
        Ok(Self { path: path.to_owned(), used, store, known, is_interrupted, removed })
    }

    /// All ids that the store has had, the present one last.
    pub(super) fn stores(&self) -> Vec<StoreId> {
        let mut stores: Vec<StoreId> = self.store.examined.former.clone();
        let others = self.known.replaces.iter().chain(&self.known.store).copied();
        let others: Vec<StoreId> = others.filter(|store| !stores.contains(store)).collect();
        stores.extend(others);
        stores.retain(|store| *store != self.store.id);
        stores.push(self.store.id);
        stores
    }

    /// The member whose directory this is, by what its control plane knew.
    pub(super) fn member(&self) -> Option<(NodeId, &MemberRecord)> {
        self.known.member(&self.stores())
    }

    /// The cluster to which it belongs.
    pub(super) fn cluster(&self) -> Option<(ClusterId, HashSeed)> {
        self.known.state.as_ref().and_then(|state| state.identity()).or(self.store.cluster)
    }
}

impl Store {
    /// The records that it holds, tombstones included, and the hints.
    pub(super) fn held(&self) -> (u64, u64) {
        (self.examined.records.values().map(|tally| tally.records).sum(), self.examined.hints.records)
    }
}

/// A store that is open.
pub(super) struct Open {
    pub(super) opened: Opened,
    pub(super) reader: DiskReader,
    pub(super) committer: DiskCommitter,
}

/// Opens the store of a data directory, under a new id if `renew`. Nothing of it is changed before its boot begins.
pub(super) fn open(path: &Path, renew: bool) -> Result<Open, StorageError> {
    let store = path.join("store");
    let drawn = || -> Result<OpenIds, getrandom::Error> {
        let (mut id, mut nonce) = ([0; 8], [0; 4]);
        getrandom::fill(&mut id)?;
        getrandom::fill(&mut nonce)?;
        Ok(OpenIds { store: StoreId(u64::from_le_bytes(id)), nonce: u32::from_le_bytes(nonce) })
    };
    let ids = drawn().map_err(|error| StorageError::Engine {
        path: store.display().to_string(),
        reason: format!("the system gives no random numbers: {error}"),
    })?;
    let config = DiskConfig { renew, ..DiskConfig::default() };
    let (opened, reader, committer) = DiskStore::prepare(&store, &config, ids)?;
    Ok(Open { opened, reader, committer })
}

/// Closes a store, and waits until its lock is free.
pub(super) fn close(reader: DiskReader, committer: DiskCommitter) -> Result<(), RecoverError> {
    let lock = reader.lock();
    drop((reader, committer));
    if lock.wait_until_free(LOCK_TIMEOUT) {
        return Ok(());
    }
    let waited = LOCK_TIMEOUT.as_secs();
    Err(RecoverError::System(format!("the store is still in use after {waited} s; its disk may have stalled")))
}

/// What the control plane's files know; where those of the present generation know no agreed state, those that are kept of the one
/// before.
fn known(path: &Path) -> Known {
    let mut known = control::look(&path.join(CONTROL));
    if known.state.is_some() {
        return known;
    }
    for kept in kept(path).into_iter().rev() {
        let before = control::look(&path.join(kept));
        if before.state.is_some() {
            let replaces = known.replaces.iter().chain(&known.store).copied();
            let replaces = before.replaces.iter().copied().chain(replaces).collect();
            return Known { replaces, coming: known.coming.take(), ..before };
        }
    }
    known
}

/// The folders in which files of earlier generations are kept, oldest first.
pub(super) fn kept(path: &Path) -> Vec<String> {
    let names = std::fs::read_dir(path).into_iter().flatten().flatten();
    let mut names: Vec<String> = names.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.retain(|name| number_of(name).is_some());
    names.sort_by_key(|name| number_of(name));
    names
}

/// What the folders are ordered by: the generation, and the number behind it.
fn number_of(name: &str) -> Option<(u32, u32)> {
    let numbers = name.strip_prefix(KEPT)?;
    let (generation, count) = numbers.split_once('.').unwrap_or((numbers, "0"));
    Some((generation.parse().ok()?, count.parse().ok()?))
}

/// A name for the folder in which the present files are kept.
pub(super) fn name_to_keep(path: &Path, generation: u32) -> String {
    let names = std::iter::once(format!("{KEPT}{generation}"));
    let mut names = names.chain((1_u32..).map(|count| format!("{KEPT}{generation}.{count}")));
    names.find(|name| !path.join(name).exists()).unwrap_or_default()
}

/// When the files that change with each write were changed last.
fn used(path: &Path) -> Option<WallTime> {
    let files = [path.join("store").join("confirmed"), path.join(CONTROL).join("newest")];
    let changed = |file: &PathBuf| {
        let modified = file.metadata().ok()?.modified().ok()?;
        let since = modified.duration_since(UNIX_EPOCH).ok()?;
        u64::try_from(since.as_micros()).ok().map(WallTime)
    };
    files.iter().filter_map(changed).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_kept_beside_each_other() {
        let dir = tempfile::tempdir().unwrap();
        for _ in 0..3 {
            std::fs::create_dir(dir.path().join(name_to_keep(dir.path(), 1))).unwrap();
        }
        std::fs::create_dir(dir.path().join(name_to_keep(dir.path(), 10))).unwrap();
        std::fs::create_dir(dir.path().join(name_to_keep(dir.path(), 2))).unwrap();
        std::fs::create_dir(dir.path().join("control-generation-x")).unwrap();
        let expected = ["1", "1.1", "1.2", "2", "10"].map(|number| format!("{KEPT}{number}"));
        assert_eq!(kept(dir.path()), expected);
    }

    #[test]
    fn what_is_no_data_directory_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        for (path, word) in [(dir.path().join("missing"), "does not exist"), (dir.path().to_owned(), "is not the data")]
        {
            let error = Directory::read(&path).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
            assert_eq!(error.class().0, 3);
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
