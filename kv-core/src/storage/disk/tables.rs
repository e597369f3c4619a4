//! Checks lsm-tree's manifests and the contents lists of its tables before lsm-tree reads them.
//!
//! lsm-tree 3.1 stores a checksum of the manifest but does not look at it, and it believes the lengths in manifests and
//! contents lists before it has checked them: a flipped bit makes it ask for gigabytes, which ends the process. Blocks of
//! tables it checks itself, whenever it reads one.
//!
//! `current`: manifest number `n: u64`, XXH3 (128 bits) of the file `v{n}`, `0`. Manifests and tables are archives: sections,
//! then a contents list `"TOC!", count: u32`, `count` times `position: u64, length: u64, name length: u16, name`, then a
//! trailer `"SFA!", 1, 0, XXH3 (128 bits) of the contents list, its position: u64, its length: u64`. The section `tables` of a
//! manifest: `levels: u8`, for each `runs: u8`, for each `tables: u32`, for each `id: u64, 0, checksum: u128, seqno: u64`.
//! Integers are little-endian.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::path::Path;

use xxhash_rust::xxh3::xxh3_128;

use super::identity::io_error;
use crate::error::StorageError;

const TRAILER_BYTES: u64 = 4 + 1 + 1 + 16 + 8 + 8;

/// The most bytes of a contents list; real ones have ten sections.
const CONTENTS_BYTES_MAX: u64 = 64 * 1024;

/// Bytes of one table in a manifest.
const TABLE_BYTES: usize = 8 + 1 + 16 + 8;

/// Checks the tree in a folder.
pub(super) fn check(tree: &Path) -> Result<(), StorageError> {
    let current_path = tree.join("current");
    let current = fs::read(&current_path).map_err(|source| io_error("reading", &current_path, source))?;
    let Ok(current) = <[u8; 25]>::try_from(current) else {
        return Err(damaged(&current_path, "it is cut short"));
    };
    let (number, checksum) = (number(&current[..8]), &current[8..24]);
    let path = tree.join(format!("v{number}"));
    let manifest = match fs::read(&path) {
        Ok(manifest) => manifest,
        Err(error) if error.kind() == ErrorKind::NotFound => return Err(damaged(&path, "it is missing")),
        Err(source) => return Err(io_error("reading", &path, source)),
    };
    if xxh3_128(&manifest).to_le_bytes() != checksum || current[24] != 0 {
        return Err(damaged(&path, "its checksum does not match"));
    }
    let tables = table_ids(&manifest).ok_or_else(|| damaged(&path, "it has no list of tables"))?;
    for id in tables {
        let path = tree.join("tables").join(id.to_string());
        match contents(&path) {
            Ok(Some(_)) => {}
            Ok(None) => return Err(damaged(&path, "its contents list does not match its checksum")),
            Err(error) if error.kind() == ErrorKind::NotFound => return Err(damaged(&path, "it is missing")),
            Err(source) => return Err(io_error("reading", &path, source)),
        }
    }
    Ok(())
}

fn damaged(path: &Path, reason: &str) -> StorageError {
    StorageError::Damaged { path: path.display().to_string(), reason: reason.to_owned() }
}

/// A little-endian number of up to eight bytes.
fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// The contents list of the archive at `path`; `None` if it is not intact.
fn contents(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let Some(trailer_at) = length.checked_sub(TRAILER_BYTES) else { return Ok(None) };
    file.seek(SeekFrom::Start(trailer_at))?;
    let mut trailer = Vec::new();
    file.by_ref().take(TRAILER_BYTES).read_to_end(&mut trailer)?;
    let Some((checksum, position, length)) = trailer_of(&trailer) else { return Ok(None) };
    if length > CONTENTS_BYTES_MAX || position.checked_add(length).is_none_or(|end| end > trailer_at) {
        return Ok(None);
    }
    file.seek(SeekFrom::Start(position))?;
    let mut list = Vec::new();
    file.take(length).read_to_end(&mut list)?;
    Ok((xxh3_128(&list).to_le_bytes() == checksum).then_some(list))
}

fn trailer_of(trailer: &[u8]) -> Option<([u8; 16], u64, u64)> {
    let rest = trailer.strip_prefix(b"SFA!\x01\x00")?;
    let (checksum, rest) = rest.split_first_chunk::<16>()?;
    (rest.len() == 16).then(|| (*checksum, number(&rest[..8]), number(&rest[8..])))
}

/// The tables that a manifest names.
fn table_ids(manifest: &[u8]) -> Option<Vec<u64>> {
    let trailer_at = manifest.len().checked_sub(usize::try_from(TRAILER_BYTES).ok()?)?;
    let (_, position, _) = trailer_of(&manifest[trailer_at..])?;
    let mut list = manifest.get(usize::try_from(position).ok()?..trailer_at)?.strip_prefix(b"TOC!")?;
    let mut sections = number(take(&mut list, 4)?);
    let mut section = loop {
        sections = sections.checked_sub(1)?;
        let position = usize::try_from(number(take(&mut list, 8)?)).ok()?;
        let length = usize::try_from(number(take(&mut list, 8)?)).ok()?;
        let name_length = usize::try_from(number(take(&mut list, 2)?)).ok()?;
        if take(&mut list, name_length)? == b"tables" {
            break manifest.get(position..position.checked_add(length)?)?;
        }
    };
    let mut ids = Vec::new();
    for _ in 0..number(take(&mut section, 1)?) {
        for _ in 0..number(take(&mut section, 1)?) {
            for _ in 0..number(take(&mut section, 4)?) {
                ids.push(number(&take(&mut section, TABLE_BYTES)?[..8]));
            }
        }
    }
    Some(ids)
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, behind) = rest.split_at_checked(length)?;
    *rest = behind;
    Some(taken)
}
