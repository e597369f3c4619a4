//! Small files that are replaced as a whole: the vote, the purge mark, the snapshot, the newest state, the identity.
//!
//! Format: the mark `KVCF`, the format number (u32), the checksum of the content (XXH3, u64), the content; numbers are
//! little-endian. How a file is replaced, so that after a crash it is the old one or the new one, is `small_file`'s matter.

use std::io;

use kv_core::small_file::{Folder, replace_in};
use serde::Serialize;
use serde::de::DeserializeOwned;
use xxhash_rust::xxh3::xxh3_64;

use super::{Disk, FileError};

const MARK: &[u8; 4] = b"KVCF";
const FORMAT: u32 = 3;
const HEADER: usize = 16;

/// The content of a file in its encoding.
pub(in crate::control) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, FileError> {
    // The encoder fails only for types that it does not support, which the tests of each type rule out.
    postcard::to_stdvec(value)
        .map_err(|error| FileError::Poisoned { reason: format!("a value cannot be encoded: {error}") })
}

/// Replaces the file `name`; durable when it returns.
pub(in crate::control) fn replace<D: Disk>(disk: &mut D, name: &str, content: &[u8]) -> Result<(), FileError> {
    let mut bytes = Vec::with_capacity(HEADER + content.len());
    bytes.extend_from_slice(MARK);
    bytes.extend_from_slice(&FORMAT.to_le_bytes());
    bytes.extend_from_slice(&xxh3_64(content).to_le_bytes());
    bytes.extend_from_slice(content);
    let path = disk.path(name);
    replace_in(&mut Files(disk), name, &bytes).map_err(|source| FileError::io("write", path, source))
}

/// Gives the file `name` a name that begins with `prefix`; durable when it returns. None of that name is fine.
pub(in crate::control) fn set_aside<D: Disk>(disk: &mut D, name: &str, prefix: &str) -> Result<(), FileError> {
    let path = disk.path(name);
    let mut renamed = || {
        if disk.list()?.iter().any(|found| found == name) {
            disk.rename(name, &format!("{prefix}{name}"))?;
        }
        disk.sync_dir()
    };
    renamed().map_err(|source| FileError::io("set aside", path, source))
}

/// The disk as a folder of small files.
struct Files<'a, D>(&'a mut D);

impl<D: Disk> Folder for Files<'_, D> {
    fn create(&mut self, name: &str) -> io::Result<()> {
        self.0.create(name)
    }

    fn write(&mut self, name: &str, content: &[u8]) -> io::Result<()> {
        self.0.write(name, 0, content)
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        self.0.sync(name)
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(from, to)
    }

    fn sync_folder(&mut self) -> io::Result<()> {
        self.0.sync_dir()
    }
}

/// The content of the file `name`; `None` if there is none.
pub(in crate::control) fn content<D: Disk>(disk: &mut D, name: &str) -> Result<Option<Vec<u8>>, FileError> {
    let path = disk.path(name);
    let Some(mut bytes) = disk.read(name).map_err(|source| FileError::io("read", path.clone(), source))? else {
        return Ok(None);
    };
    let corrupt = |reason: &str| FileError::Corrupt { path: path.clone(), reason: reason.to_owned() };
    let (Some(mark), Some(format), Some(sum)) = (bytes.get(..4), number(&bytes, 4), wide(&bytes, 8)) else {
        return Err(corrupt("it is too short"));
    };
    if mark != MARK {
        return Err(corrupt("it does not begin with its mark"));
    }
    if format != FORMAT {
        return Err(FileError::Format { path, found: format, supported: FORMAT });
    }
    let content = bytes.split_off(HEADER);
    if xxh3_64(&content) != sum {
        return Err(corrupt("its checksum does not match"));
    }
    Ok(Some(content))
}

/// The value in the file `name`; `None` if there is none.
pub(in crate::control) fn value<D: Disk, T: DeserializeOwned>(
    disk: &mut D,
    name: &str,
) -> Result<Option<T>, FileError> {
    let Some(content) = content(disk, name)? else { return Ok(None) };
    match postcard::from_bytes(&content) {
        Ok(value) => Ok(Some(value)),
        Err(error) => Err(FileError::Corrupt { path: disk.path(name), reason: error.to_string() }),
    }
}

/// The little-endian u32 at `at`.
pub(in crate::control) fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// The little-endian u64 at `at`.
pub(in crate::control) fn wide(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}
