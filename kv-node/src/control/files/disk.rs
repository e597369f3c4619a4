//! The directory that the control plane keeps its files in, as a small set of operations, so that tests can put a disk
//! behind it that crashes at any of them.
//!
//! What is trusted: after `sync` the bytes and the length of a file survive a loss of power, and after `sync_dir` so do
//! the names. Before that, a crash keeps any subset of the writes, any part of one, and any subset of the creations,
//! removals and renames. A rename is atomic. What was synced stays as it is; a medium that changes it is caught by
//! checksums.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kv_core::error::is_out_of_descriptors;

/// A flat directory of files.
pub(in crate::control) trait Disk: Send + 'static {
    /// For messages: where `name` is.
    fn path(&self, name: &str) -> String;
    /// The names of all files, ascending.
    fn list(&mut self) -> io::Result<Vec<String>>;
    /// The whole content, or `None` if there is no such file.
    fn read(&mut self, name: &str) -> io::Result<Option<Vec<u8>>>;
    /// Creates an empty file; an existing one loses its content.
    fn create(&mut self, name: &str) -> io::Result<()>;
    /// Writes at a position of an existing file, at or before its end.
    fn write(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Cuts an existing file.
    fn set_len(&mut self, name: &str, len: u64) -> io::Result<()>;
    /// Makes content and length of a file durable.
    fn sync(&mut self, name: &str) -> io::Result<()>;
    /// Gives a file another name; a file of that name is replaced.
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file; none of that name is fine.
    fn remove(&mut self, name: &str) -> io::Result<()>;
    /// Makes creations, removals and renames durable.
    fn sync_dir(&mut self) -> io::Result<()>;
}

/// Opens something, and tries again for a while when there is no file descriptor: nothing has been done then.
fn patiently<T>(open: impl Fn() -> io::Result<T>) -> io::Result<T> {
    const STEP: Duration = Duration::from_millis(10);
    const TRIES: u32 = 3000;
    for _ in 0..TRIES {
        match open() {
            Err(error) if is_out_of_descriptors(&error) => std::thread::sleep(STEP),
            done => return done,
        }
    }
    open()
}

/// A directory of the operating system.
#[derive(Debug)]
pub(in crate::control) struct OsDisk {
    dir: PathBuf,
    /// Files that were written to: the segment in use and little else.
    open: BTreeMap<String, File>,
}

impl OsDisk {
    /// Opens `dir`, which is created if it is missing.
    pub(in crate::control) fn open(dir: &Path) -> Result<Self, FileError> {
        kv_core::small_file::create_folder(dir)
            .map_err(|source| FileError::io("create", dir.display().to_string(), source))?;
        Ok(Self { dir: dir.to_owned(), open: BTreeMap::new() })
    }

    fn file(&mut self, name: &str) -> io::Result<&mut File> {
        if !self.open.contains_key(name) {
            let file = patiently(|| OpenOptions::new().write(true).open(self.dir.join(name)))?;
            self.open.insert(name.to_owned(), file);
        }
        self.open.get_mut(name).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }
}

impl Disk for OsDisk {
    fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    fn list(&mut self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in patiently(|| std::fs::read_dir(&self.dir))? {
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn read(&mut self, name: &str) -> io::Result<Option<Vec<u8>>> {
        match patiently(|| File::open(self.dir.join(name))) {
            Ok(mut file) => {
                let mut bytes = Vec::new();
                file.read_to_end(&mut bytes)?;
                Ok(Some(bytes))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn create(&mut self, name: &str) -> io::Result<()> {
        let file = patiently(|| File::create(self.dir.join(name)))?;
        self.open.insert(name.to_owned(), file);
        Ok(())
    }

    fn write(&mut self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let file = self.file(name)?;
        file.seek(SeekFrom::Start(offset))?;
        file.write_all(bytes)
    }

    fn set_len(&mut self, name: &str, len: u64) -> io::Result<()> {
        self.file(name)?.set_len(len)
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        self.file(name)?.sync_data()
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.open.remove(from);
        self.open.remove(to);
        std::fs::rename(self.dir.join(from), self.dir.join(to))
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.open.remove(name);
        match std::fs::remove_file(self.dir.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn sync_dir(&mut self) -> io::Result<()> {
        patiently(|| File::open(&self.dir))?.sync_all()
    }
}

/// A directory that is only read: part of its files, and nothing that is done to them has an effect. So what opens a log for use can be
/// used to look into one.
#[derive(Debug)]
pub(in crate::control) struct Frozen {
    disk: OsDisk,
    /// What the names of the files begin with that are looked at; they are known by the rest.
    prefix: String,
}

impl Frozen {
    /// The files of `dir` whose names begin with `prefix`.
    pub(in crate::control) fn open(dir: &Path, prefix: &str) -> Self {
        Self { disk: OsDisk { dir: dir.to_owned(), open: BTreeMap::new() }, prefix: prefix.to_owned() }
    }
}

impl Disk for Frozen {
    fn path(&self, name: &str) -> String {
        self.disk.path(&format!("{}{name}", self.prefix))
    }

    fn list(&mut self) -> io::Result<Vec<String>> {
        let names = self.disk.list()?;
        Ok(names.iter().filter_map(|name| name.strip_prefix(&self.prefix)).map(str::to_owned).collect())
    }

    fn read(&mut self, name: &str) -> io::Result<Option<Vec<u8>>> {
        self.disk.read(&format!("{}{name}", self.prefix))
    }

    fn create(&mut self, _name: &str) -> io::Result<()> {
        Ok(())
    }

    fn write(&mut self, _name: &str, _offset: u64, _bytes: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn set_len(&mut self, _name: &str, _len: u64) -> io::Result<()> {
        Ok(())
    }

    fn sync(&mut self, _name: &str) -> io::Result<()> {
        Ok(())
    }

    fn rename(&mut self, _from: &str, _to: &str) -> io::Result<()> {
        Ok(())
    }

    fn remove(&mut self, _name: &str) -> io::Result<()> {
        Ok(())
    }

    fn sync_dir(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Why a file of the control plane could not be read or written.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FileError {
    /// The operating system reports a failure.
    #[error("cannot {action} {path}; free or repair the disk, then restart the node")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or directory.
        path: String,
        /// What the operating system says.
        source: Arc<io::Error>,
    },
    /// Bytes that were durable have changed.
    #[error(
        "{path} is damaged: {reason}; put the file back as it was, or start the node with an empty data directory and \
         say that it replaces its old store"
    )]
    Corrupt {
        /// The file.
        path: String,
        /// Which check failed.
        reason: String,
    },
    /// A build that is newer or older wrote the file.
    #[error(
        "{path} has format {found}, this build reads format {supported}; run the node with the build that wrote it"
    )]
    Format {
        /// The file.
        path: String,
        /// The format number found.
        found: u32,
        /// The format number that this build reads.
        supported: u32,
    },
    /// An earlier write failed, so nobody knows what the disk holds.
    #[error("the control plane's files are closed after a failed write ({reason}); restart the node")]
    Poisoned {
        /// What failed.
        reason: String,
    },
    /// The thread that writes has ended.
    #[error("the control plane of this node is shut down")]
    Closed,
}

impl FileError {
    pub(in crate::control) fn io(action: &'static str, path: String, source: io::Error) -> Self {
        Self::Io { action, path, source: Arc::new(source) }
    }
}
