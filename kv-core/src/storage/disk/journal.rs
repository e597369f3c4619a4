//! Checks fjall's journals before fjall reads them.
//!
//! fjall 3.1 cuts a journal at the first entry that it cannot read, whatever follows, and refuses to open when the last
//! batch is whole in length but wrong in content. The first loses confirmed batches when a bit flips in the middle of a
//! journal. The second turns a crash that this medium allows into a store that does not open: an unsynced batch of several
//! pages may lose any of them. So we look first, without changing anything, and tell the two cases apart: a bad batch with
//! a whole one behind it was confirmed, and is damage; a bad batch with nothing behind it was never confirmed, and is
//! cut off.
//!
//! Journal format 3 (`fjall/src/journal/entry.rs`), integers little-endian:
//! start `1, items: u32, seqno: u64`; item `2, kind: u8, compression: u8, tree: u64, key length: u16, value length: u32,
//! stored length: u32, key, stored value`; clear `4, tree: u64`; end `3, xxh3 of all items: u64, "FJL\x03"`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

use super::identity::io_error;
use crate::error::StorageError;

const TRAILER: [u8; 4] = *b"FJL\x03";
const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const CLEAR: u8 = 4;

/// The most by which the number of a batch exceeds the one before; fjall counts on for its own writes in between.
const GAP_MAX: u64 = u32::MAX as u64;

/// Checks every journal in `data`, and cuts a torn batch off the last one.
pub(super) fn check(data: &Path) -> Result<(), StorageError> {
    let entries = fs::read_dir(data).map_err(|source| io_error("reading", data, source))?;
    let mut journals = Vec::new();
    for entry in entries {
        let path = entry.map_err(|source| io_error("reading", data, source))?.path();
        let number = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".jnl"));
        if let Some(number) = number.and_then(|number| number.parse::<u64>().ok()) {
            journals.push((number, path));
        }
    }
    journals.sort();
    let last = journals.pop().ok_or_else(|| damage(data, "no journal is left in it"))?;
    for (_, path) in &journals {
        if let Found::Bad { at, .. } = scan(path).map_err(|source| io_error("reading", path, source))? {
            return Err(damage(path, &format!("a batch at byte {at} is not what was written")));
        }
    }
    let path = &last.1;
    let Found::Bad { at, seqno } = scan(path).map_err(|source| io_error("reading", path, source))? else {
        return Ok(());
    };
    if let Some(next) = whole_batch_behind(path, at, seqno).map_err(|source| io_error("reading", path, source))? {
        return Err(damage(
            path,
            &format!("a batch at byte {at} is not what was written, but confirmed ones follow from byte {next} on"),
        ));
    }
    let cut = || {
        let file = OpenOptions::new().write(true).open(path)?;
        file.set_len(at)?;
        file.sync_all()
    };
    cut().map_err(|source| io_error("cutting a torn batch off", path, source))
}

fn damage(path: &Path, reason: &str) -> StorageError {
    StorageError::Damaged { path: path.display().to_string(), reason: reason.to_owned() }
}

/// How a journal ends.
enum Found {
    /// With a whole batch, behind which there is nothing but the zeros that it was allocated with.
    Clean,
    /// With something else, from this byte on; the last whole batch before it has this number.
    Bad { at: u64, seqno: Option<u64> },
}

fn scan(path: &PathBuf) -> io::Result<Found> {
    let file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut reader = BufReader::with_capacity(256 * 1024, file);
    let (mut at, mut seqno) = (0, None);
    loop {
        match batch(&mut reader, length - at) {
            // A batch's checksum leaves its number out, but numbers ascend, with small gaps.
            Ok(found) if seqno.is_some_and(|last| found.seqno <= last || found.seqno - last > GAP_MAX) => break,
            Ok(found) => {
                at += found.length;
                seqno = Some(found.seqno);
            }
            Err(error) if error.kind() == ErrorKind::UnexpectedEof || error.kind() == ErrorKind::InvalidData => break,
            Err(error) => return Err(error),
        }
    }
    Ok(if zeros_from(path, at)? { Found::Clean } else { Found::Bad { at, seqno } })
}

fn zeros_from(path: &Path, at: u64) -> io::Result<bool> {
    let mut reader = BufReader::with_capacity(256 * 1024, File::open(path)?);
    io::Seek::seek(&mut reader, io::SeekFrom::Start(at))?;
    loop {
        let buffer = io::BufRead::fill_buf(&mut reader)?;
        if buffer.is_empty() {
            return Ok(true);
        }
        if buffer.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
        let length = buffer.len();
        io::BufRead::consume(&mut reader, length);
    }
}

/// Looks for a whole batch with a later number behind the start of a bad one.
fn whole_batch_behind(path: &Path, at: u64, before: Option<u64>) -> io::Result<Option<u64>> {
    let mut file = File::open(path)?;
    io::Seek::seek(&mut file, io::SeekFrom::Start(at))?;
    let mut rest = Vec::new();
    file.read_to_end(&mut rest)?;
    let end = rest.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    rest.truncate(end);
    for offset in 1..rest.len() {
        let mut behind = &rest[offset..];
        if behind[0] != START {
            continue;
        }
        let left = u64::try_from(behind.len()).unwrap_or(u64::MAX);
        if batch(&mut behind, left)
            .is_ok_and(|found| before.is_none_or(|before| found.seqno > before && found.seqno - before <= GAP_MAX))
        {
            return Ok(Some(at + u64::try_from(offset).unwrap_or(u64::MAX)));
        }
    }
    Ok(None)
}

struct Batch {
    length: u64,
    seqno: u64,
}

/// Reads one whole batch from at most `left` bytes. Whatever is not one is `InvalidData` or `UnexpectedEof`.
fn batch(reader: &mut impl Read, left: u64) -> io::Result<Batch> {
    let invalid = || io::Error::from(ErrorKind::InvalidData);
    let [tag] = array(reader)?;
    if tag != START {
        return Err(invalid());
    }
    let items = u32::from_le_bytes(array(reader)?);
    let seqno = u64::from_le_bytes(array(reader)?);
    let mut length = 1 + 4 + 8;
    let mut hasher = Xxh3::new();
    let mut payload = Vec::new();
    for _ in 0..items {
        let [tag] = array(reader)?;
        hasher.update(&[tag]);
        length += 1;
        match tag {
            ITEM => {
                let head: [u8; 20] = array(reader)?;
                hasher.update(&head);
                let [.., k0, k1, _, _, _, _, s0, s1, s2, s3] = head;
                let key = u64::from(u16::from_le_bytes([k0, k1]));
                let bytes = key + u64::from(u32::from_le_bytes([s0, s1, s2, s3]));
                length += 20 + bytes;
                // A length that lies must not make this allocate more than the file has.
                if length > left {
                    return Err(invalid());
                }
                payload.clear();
                let read = reader.by_ref().take(bytes).read_to_end(&mut payload)?;
                if u64::try_from(read).unwrap_or(0) != bytes {
                    return Err(ErrorKind::UnexpectedEof.into());
                }
                hasher.update(&payload);
            }
            CLEAR => {
                let tree: [u8; 8] = array(reader)?;
                hasher.update(&tree);
                length += 8;
            }
            _ => return Err(invalid()),
        }
    }
    let [tag] = array(reader)?;
    let checksum = u64::from_le_bytes(array(reader)?);
    let trailer: [u8; 4] = array(reader)?;
    if tag != END || checksum != hasher.digest() || trailer != TRAILER {
        return Err(invalid());
    }
    Ok(Batch { length: length + 1 + 8 + 4, seqno })
}

fn array<const N: usize>(reader: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    reader.read_exact(&mut bytes)?;
    Ok(bytes)
}
