//! The format of a log segment.
//!
//! A segment is a header and records, each of one log entry, in the order of their indexes without a gap. Numbers are
//! little-endian.
//!
//! | header | | record | |
//! | --- | --- | --- | --- |
//! | mark `KVRAFTLG` | 8 bytes | mark `KVRE` | 4 bytes |
//! | format number | u32 | length of the entry | u32 |
//! | zero | u32 | checksum | u64 |
//! | salt | u64 | batch | u64 |
//! | checksum of the above | u64 | index | u64 |
//! | | | entry | length |
//!
//! A record's checksum (XXH3) covers its length, batch, index and entry, and is seeded with the salt plus the record's
//! position, so neither a client's value nor a displaced record can pass for a record.
//!
//! **Batches.** Records are written in batches, each synced before the next is begun; `batch` is the position in the
//! file at which the record's batch begins. So everything before that position was durable when the record was
//! written. This distinguishes a torn tail from damage: behind an invalid record, records of the same batch may be whole
//! (a crash may lose any part of an unsynced write), but a valid record whose batch begins behind the invalid one
//! proves that the invalid one was durable once.

use std::ops::Range;

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::control::files::checked::{number, wide};

/// Bytes before the first record.
pub(in crate::control) const HEADER_BYTES: u64 = 32;

/// Bytes of a record before its entry.
pub(in crate::control) const RECORD_BYTES: usize = 32;

const HEADER_MARK: &[u8; 8] = b"KVRAFTLG";
const RECORD_MARK: &[u8; 4] = b"KVRE";

/// The format number of segments.
pub(in crate::control) const FORMAT: u32 = 2;

/// The header of a segment with this salt.
pub(in crate::control) fn header(salt: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(32);
    bytes.extend_from_slice(HEADER_MARK);
    bytes.extend_from_slice(&FORMAT.to_le_bytes());
    bytes.extend_from_slice(&0_u32.to_le_bytes());
    bytes.extend_from_slice(&salt.to_le_bytes());
    bytes.extend_from_slice(&xxh3_64(&bytes).to_le_bytes());
    bytes
}

/// What a header says.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::control) enum Header {
    /// It is whole.
    Salt(u64),
    /// It is whole and of another format.
    Format(u32),
    /// It is not whole.
    Invalid,
}

/// Reads the header of a segment.
pub(in crate::control) fn read_header(bytes: &[u8]) -> Header {
    let valid = bytes.get(..8) == Some(HEADER_MARK.as_slice())
        && bytes.get(..24).map(xxh3_64).is_some_and(|sum| wide(bytes, 24) == Some(sum));
    match (valid, number(bytes, 8), wide(bytes, 16)) {
        (true, Some(FORMAT), Some(salt)) => Header::Salt(salt),
        (true, Some(format), _) => Header::Format(format),
        _ => Header::Invalid,
    }
}

/// Appends a record to `bytes`, which will be written at `base`.
pub(in crate::control) fn push_record(bytes: &mut Vec<u8>, base: u64, salt: u64, index: u64, entry: &[u8]) {
    let position = base + bytes.len() as u64;
    // Callers bound entries by ENTRY_BYTES_MAX.
    let len = u32::try_from(entry.len()).unwrap_or(u32::MAX);
    bytes.extend_from_slice(RECORD_MARK);
    bytes.extend_from_slice(&len.to_le_bytes());
    bytes.extend_from_slice(&checksum(salt, position, len, base, index, entry).to_le_bytes());
    bytes.extend_from_slice(&base.to_le_bytes());
    bytes.extend_from_slice(&index.to_le_bytes());
    bytes.extend_from_slice(entry);
}

fn checksum(salt: u64, position: u64, len: u32, batch: u64, index: u64, entry: &[u8]) -> u64 {
    let mut hash = Xxh3::with_seed(salt.wrapping_add(position));
    hash.update(&len.to_le_bytes());
    hash.update(&batch.to_le_bytes());
    hash.update(&index.to_le_bytes());
    hash.update(entry);
    hash.digest()
}

/// A record in the bytes of its segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::control) struct Record {
    /// The index of its entry.
    pub(in crate::control) index: u64,
    /// Where the record begins.
    pub(in crate::control) start: u64,
    /// Where its entry is.
    pub(in crate::control) entry: Range<usize>,
    batch: u64,
}

/// What a segment holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::control) struct Scan {
    /// Its whole records.
    pub(in crate::control) records: Vec<Record>,
    /// Where the last of them ends.
    pub(in crate::control) end: u64,
    /// Whether something that is no record follows: a torn tail.
    pub(in crate::control) torn: bool,
}

/// Reads all records behind the header.
///
/// # Errors
/// If a record that was durable is damaged; the reason names its position.
pub(in crate::control) fn scan(bytes: &[u8], salt: u64) -> Result<Scan, String> {
    let mut records: Vec<Record> = Vec::new();
    let mut end = HEADER_BYTES;
    while let Some(record) = record_at(bytes, end, salt) {
        if let Some(last) = records.last()
            && record.index != last.index + 1
        {
            return Err(format!("entry {} follows entry {} at byte {end}", record.index, last.index));
        }
        end = record.entry.end as u64;
        records.push(record);
    }
    let torn = end < bytes.len() as u64;
    if torn {
        for position in end + 1..bytes.len() as u64 {
            if let Some(later) = record_at(bytes, position, salt)
                && later.batch > end
            {
                return Err(format!("the record at byte {end} is invalid, but the one at byte {position} is not"));
            }
        }
    }
    Ok(Scan { records, end, torn })
}

/// The record that begins at `position`, if one does.
fn record_at(bytes: &[u8], position: u64, salt: u64) -> Option<Record> {
    let at = usize::try_from(position).ok()?;
    if bytes.get(at..at.checked_add(4)?)? != RECORD_MARK {
        return None;
    }
    let len = number(bytes, at + 4)?;
    let sum = wide(bytes, at + 8)?;
    let batch = wide(bytes, at + 16)?;
    let index = wide(bytes, at + 24)?;
    let start = at + RECORD_BYTES;
    let entry = start..start.checked_add(usize::try_from(len).ok()?)?;
    let content = bytes.get(entry.clone())?;
    (checksum(salt, position, len, batch, index, content) == sum).then_some(Record {
        index,
        start: position,
        entry,
        batch,
    })
}
