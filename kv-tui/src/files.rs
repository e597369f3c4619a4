//! Files that get their names when they are complete.
//!
//! What is written has a temporary name in the same folder until it is whole and durable. A failure, a signal
//! or a full disk leaves nothing under the name that was asked for, and a file that has this name already is kept.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use parking_lot::{Mutex, MutexGuard};

/// The files of this process that are not complete, so that an end of the process can remove them.
static INCOMPLETE: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// How many temporary names are tried before the error asks the user to clean up.
const NAMES_MAX: u32 = 100;

/// Bytes of the name that a temporary name repeats: with its prefix and suffix it stays within what file systems accept.
const NAME_BYTES_MAX: usize = 100;

/// A file being written. Only `finish` gives it its name; dropping it removes it.
#[derive(Debug)]
pub(crate) struct NewFile {
    file: File,
    temporary: PathBuf,
    name: PathBuf,
}

impl NewFile {
    /// Begins a file that will be called `name`.
    ///
    /// # Errors
    /// If a file of this name exists, or its folder cannot be written.
    pub(crate) fn create(name: &Path) -> io::Result<Self> {
        if name.symlink_metadata().is_ok() {
            return Err(exists());
        }
        let Some(last) = name.file_name() else { return Err(io::ErrorKind::IsADirectory.into()) };
        for number in 0..NAMES_MAX {
            let temporary = name.with_file_name(temporary_name(last, number));
            match File::create_new(&temporary) {
                Ok(file) => {
                    incomplete().insert(temporary.clone());
                    return Ok(Self { file, temporary, name: name.to_owned() });
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::other("too many incomplete files (.part) of this name are in its folder; remove them"))
    }

    /// The file, for encoders that own what they write to.
    pub(crate) fn file(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// Makes what was written durable and gives it its name.
    ///
    /// # Errors
    /// If it cannot be made durable, or a file of this name was made in the meantime. There is no file then.
    pub(crate) fn finish(self) -> io::Result<()> {
        self.file.sync_all()?;
        // A link fails where the name is taken, which a rename does not.
        match fs::hard_link(&self.temporary, &self.name) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(exists()),
            // Some file systems have no links.
            Err(_) if self.name.symlink_metadata().is_ok() => return Err(exists()),
            Err(_) => fs::rename(&self.temporary, &self.name)?,
        }
        let folder = self.name.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        incomplete().remove(&self.temporary);
        // It is gone already where it was renamed.
        fs::remove_file(&self.temporary).unwrap_or(());
    }
}

/// Removes what is not complete; called where the process ends without the owners of such files.
pub(crate) fn remove_incomplete() {
    for temporary in std::mem::take(&mut *incomplete()) {
        // An error here cannot be error to anyone.
        fs::remove_file(temporary).unwrap_or(());
    }
}

fn incomplete() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    INCOMPLETE.lock()
}

fn exists() -> io::Error {
    io::Error::new(io::ErrorKind::AlreadyExists, "it exists already; name another file, or remove this one")
}

/// Hidden, and named after what it becomes.
fn temporary_name(last: &OsStr, number: u32) -> OsString {
    let mut name = OsString::from(".");
    let kept = last.as_bytes().get(..NAME_BYTES_MAX).unwrap_or(last.as_bytes());
    name.push(OsStr::from_bytes(kept));
    name.push(format!(".{}-{number}.part", std::process::id()));
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<OsString> {
        let mut names: Vec<OsString> =
            fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").file_name()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_has_its_name_only_when_it_is_complete() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("out.ndjson");
        let mut file = NewFile::create(&path).expect("created");
        file.write_all(b"half").expect("written");
        assert!(!path.exists() && names(folder.path()).len() == 1);
        drop(file);
        assert!(names(folder.path()).is_empty(), "what was given up is removed");
        let mut file = NewFile::create(&path).expect("created again");
        file.write_all(b"whole").expect("written");
        file.finish().expect("complete");
        assert_eq!(names(folder.path()), ["out.ndjson"]);
        assert_eq!(fs::read(&path).expect("readable"), b"whole");
    }

    #[test]
    fn what_exists_is_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("out");
        let mut file = NewFile::create(&path).expect("created");
        file.write_all(b"ours").expect("written");
        fs::write(&path, b"theirs").expect("written meanwhile");
        let error = file.finish().expect_err("the name is taken");
        assert!(error.to_string().contains("exists already; name another"), "{error}");
        assert_eq!((names(folder.path()).len(), fs::read(&path).expect("readable")), (1, b"theirs".to_vec()));
        assert_eq!(NewFile::create(&path).expect_err("taken").kind(), io::ErrorKind::AlreadyExists);
        let long = folder.path().join("x".repeat(250));
        NewFile::create(&long).and_then(NewFile::finish).expect("also with a long name");
        assert!(NewFile::create(Path::new("/")).is_err());
    }
}
