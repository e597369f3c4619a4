//! The directory of a store: whose it is, who uses it, and how far it is known to have come.
//!
//! | file | what |
//! | --- | --- |
//! | `lock` | locked while a process has the store open |
//! | `identity` | magic, format, and the sealed identity; replaced as a whole, synced |
//! | `confirmed` | the number of the last confirmed commit, written after each and never synced: it may lag behind the truth, but not run ahead of it |
//! | `data/` | the engine's files |

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::StorageError;
use crate::small_file::{self, Access};
use crate::storage::seal::{seal, unseal};
use crate::types::{ClusterId, HashSeed, StoreId};

/// The first bytes of an identity file.
const MAGIC: &[u8; 8] = b"kv-store";

/// The format of the whole directory. It changes when an older build could not read it.
pub(super) const FORMAT: u32 = 3;

/// The format of the seals in this file.
const SEAL: u8 = 1;

const IDENTITY: &str = "identity";
/// What `small_file` leaves behind when a write of the identity is cut short.
const IDENTITY_NEW: &str = "identity.new";
const LOCK: &str = "lock";
const CONFIRMED: &str = "confirmed";
const DATA: &str = "data";

/// What may lie in a directory that is not yet a store: traces of a first start that was cut short, and what a fresh
/// file system has.
const HARMLESS: [&str; 3] = [LOCK, IDENTITY_NEW, "lost+found"];

/// Who a store is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    /// The name that peers know; another one after a renewal.
    pub(super) store: StoreId,
    /// The name in the engine's files, drawn with them: tells that both belong together.
    pub(super) data: StoreId,
    /// The last boot that was given out; 0 before the first.
    pub(super) boot: u32,
    pub(super) cluster: Option<(ClusterId, HashSeed)>,
}

/// A locked directory.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    /// Held open for its lock.
    _lock: File,
    /// Behind the lock: it tells that the lock is free.
    holder: Holder,
}

/// The lock of a store, for who waits for it: a store is closed when the last of its readers and its committer are
/// dropped, by whichever thread that is.
#[derive(Clone, Debug, Default)]
pub struct StoreLock(Arc<(Mutex<bool>, Condvar)>);

impl StoreLock {
    /// Waits until the store is closed and its lock is free, at most for `patience`; says whether that has happened.
    #[must_use]
    pub fn wait_until_free(&self, patience: Duration) -> bool {
        let (free, changed) = &*self.0;
        let free = free.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = changed.wait_timeout_while(free, patience, |free| !*free);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// Says that a lock is free when it is dropped.
#[derive(Debug)]
struct Holder(StoreLock);

impl Drop for Holder {
    fn drop(&mut self) {
        let (free, changed) = &*self.0.0;
        *free.lock().unwrap_or_else(PoisonError::into_inner) = true;
        changed.notify_all();
    }
}

impl Directory {
    /// Locks the directory, which is created if it is missing, and reads its identity; `None` if it is empty.
    pub(super) fn open(path: &Path) -> Result<(Self, Option<Identity>), StorageError> {
        small_file::create_folder(path).map_err(|source| match source.kind() {
            ErrorKind::AlreadyExists | ErrorKind::NotADirectory => not_a_store(path, "it is not a directory"),
            _ => io_error("creating", path, source),
        })?;
        // Before the lock, so that not even a lock file appears in somebody else's directory.
        refuse_strangers(path)?;
        let lock_path = path.join(LOCK);
        let lock = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&lock_path);
        let lock = lock.map_err(|source| io_error("opening", &lock_path, source))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StorageError::Locked { path: path.display().to_string() }),
            Err(TryLockError::Error(source)) => return Err(io_error("locking", &lock_path, source)),
        }
        refuse_strangers(path)?;
        let identity = read_identity(path)?;
        Ok((Self { path: path.to_owned(), _lock: lock, holder: Holder(StoreLock::default()) }, identity))
    }

    /// Tells when the directory is free again.
    pub(super) fn lock(&self) -> StoreLock {
        self.holder.0.clone()
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the engine's files are.
    pub(super) fn data(&self) -> PathBuf {
        self.path.join(DATA)
    }

    /// Replaces the identity, durably.
    pub(super) fn write_identity(&self, identity: &Identity) -> Result<(), StorageError> {
        let path = self.path.join(IDENTITY);
        let bytes = [MAGIC, FORMAT.to_le_bytes().as_slice(), &seal(SEAL, identity)].concat();
        small_file::replace(&path, &bytes, Access::Usual).map_err(|source| io_error("writing", &path, source))
    }

    /// Opens the file with the number of the last confirmed commit, and reads it; 0 if it does not say.
    pub(super) fn open_confirmed(&self) -> Result<(Confirmed, u64), StorageError> {
        let path = self.path.join(CONFIRMED);
        let open = || {
            let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
            let mut bytes = Vec::new();
            Read::by_ref(&mut file).take(64).read_to_end(&mut bytes)?;
            Ok((Confirmed { file, path: path.clone() }, unseal::<[u8; 8]>(SEAL, &bytes).map_or(0, u64::from_le_bytes)))
        };
        open().map_err(|source| io_error("opening", &path, source))
    }
}

/// The file that remembers how far the store is known to have come.
#[derive(Debug)]
pub(super) struct Confirmed {
    file: File,
    path: PathBuf,
}

impl Confirmed {
    /// Remembers that the commit with this number was confirmed. It costs no sync: see the module's text.
    pub(super) fn write(&mut self, number: u64) -> Result<(), StorageError> {
        let write = |file: &mut File| {
            file.seek(SeekFrom::Start(0))?;
            // Always of the same length, far below a sector: it is never torn.
            file.write_all(&seal(SEAL, &number.to_le_bytes()))
        };
        write(&mut self.file).map_err(|source| io_error("writing", &self.path, source))
    }
}

/// An error of the operating system, with the case that has a remedy of its own.
pub(super) fn io_error(action: &'static str, path: &Path, source: io::Error) -> StorageError {
    let path = path.display().to_string();
    if is_full(&source) { StorageError::Full { path } } else { StorageError::Io { action, path, source } }
}

/// Whether a write failed for lack of space: the device, the quota or the largest file allowed.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge)
}

pub(super) fn not_a_store(path: &Path, reason: &str) -> StorageError {
    StorageError::NotAStore { path: path.display().to_string(), reason: reason.to_owned() }
}

fn refuse_strangers(path: &Path) -> Result<(), StorageError> {
    let entries = fs::read_dir(path).map_err(|source| io_error("reading", path, source))?;
    let names = entries.map(|entry| entry.map(|entry| entry.file_name())).collect::<Result<Vec<_>, _>>();
    let names = names.map_err(|source| io_error("reading", path, source))?;
    let has = |wanted: &str| names.iter().any(|name| name == OsStr::new(wanted));
    if has(IDENTITY) {
        return Ok(());
    }
    if has(DATA) {
        return Err(not_a_store(path, "data lies in it, but its identity file is missing"));
    }
    match names.iter().find(|name| !HARMLESS.iter().any(|harmless| *name == OsStr::new(harmless))) {
        Some(stranger) => Err(not_a_store(path, &format!("it holds {}", stranger.display()))),
        None => Ok(()),
    }
}

pub(super) fn read_identity(directory: &Path) -> Result<Option<Identity>, StorageError> {
    let path = directory.join(IDENTITY);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(io_error("reading", &path, source)),
    };
    let damaged = |reason: &str| StorageError::Corrupt { what: path.display().to_string(), reason: reason.to_owned() };
    let rest =
        bytes.strip_prefix(MAGIC).ok_or_else(|| not_a_store(directory, "its identity file is not one of ours"))?;
    let (format, sealed) = rest.split_first_chunk::<4>().ok_or_else(|| damaged("it is cut short"))?;
    let found = u32::from_le_bytes(*format);
    if found != FORMAT {
        return Err(StorageError::Format { path: directory.display().to_string(), found, supported: FORMAT });
    }
    unseal(SEAL, sealed).map(Some).map_err(damaged)
}
