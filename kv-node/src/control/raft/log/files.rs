//! The log on disk: its segments, the vote and the purge mark. Synchronous; one thread owns it.
//!
//! * **Append** writes one batch to the newest segment and syncs it. A segment that has reached its size is followed by
//!   a new one, whose header and name are durable before a record is written to it.
//! * **Truncate** removes whole segments from the back, each removal durable before the next, and then cuts the segment
//!   in which the truncation begins: a crash leaves a longer log, never a hole.
//! * **Purge** makes the purge mark durable first and then removes segments that are behind it, in any order:
//!   recovery ignores what is behind the mark.

use super::segment::{self, HEADER_BYTES, Header};
use crate::control::files::checked as file;
use crate::control::files::{Disk, FileError};
use crate::control::state::ENTRY_BYTES_MAX;

const PURGED: &str = "purged";
const SUFFIX: &str = ".log";

/// An entry in its encoding, with its index.
pub(in crate::control) type Encoded = (u64, Vec<u8>);

/// The log on disk.
#[derive(Debug)]
pub(in crate::control) struct LogFiles<D> {
    disk: D,
    /// In the order of their indexes; the last one is appended to.
    segments: Vec<Segment>,
    /// A segment of at least this many bytes is followed by a new one.
    segment_bytes: u64,
}

#[derive(Debug)]
struct Segment {
    name: String,
    salt: u64,
    /// The index of its first record.
    first: u64,
    /// Where each record begins, by index from `first`.
    starts: Vec<u64>,
    /// Where the last record ends.
    end: u64,
}

impl Segment {
    /// The index behind its last record.
    fn next(&self) -> u64 {
        self.first + self.starts.len() as u64
    }
}

/// What the disk held.
#[derive(Debug, Default)]
pub(in crate::control) struct Recovered {
    /// The content of the purge mark.
    pub(in crate::control) purged: Option<Vec<u8>>,
    /// The entries behind the mark, without a gap.
    pub(in crate::control) entries: Vec<Encoded>,
}

impl<D: Disk> LogFiles<D> {
    /// Opens the log and cuts a torn tail. `purged_index` reads the index out of the purge mark.
    pub(in crate::control) fn open(
        mut disk: D,
        segment_bytes: u64,
        purged_index: impl Fn(&[u8]) -> Option<u64>,
    ) -> Result<(Self, Recovered), FileError> {
        // A killed process may have renamed files and not synced their names. What is read now counts from now on.
        disk.sync_dir().map_err(|source| FileError::io("sync", disk.path(""), source))?;
        let purged = file::content(&mut disk, PURGED)?;
        let path = disk.path(PURGED);
        let behind = match &purged {
            None => None,
            Some(content) => {
                let reason = "it names no entry".to_owned();
                Some(purged_index(content).ok_or(FileError::Corrupt { path, reason })?)
            }
        };
        let path = disk.path("");
        let names = disk.list().map_err(|source| FileError::io("list", path, source))?;
        let names: Vec<(u64, String)> = names.into_iter().filter_map(|name| Some((first_of(&name)?, name))).collect();
        let mut log = Self { disk, segments: Vec::new(), segment_bytes };
        let mut entries = Vec::new();
        let count = names.len();
        for (place, (first, name)) in names.into_iter().enumerate() {
            let is_last = place + 1 == count;
            log.recover(first, name, is_last, behind, &mut entries)?;
        }
        if let (Some(behind), Some((first, _))) = (behind, entries.first())
            && *first > behind + 1
        {
            let reason = format!("the log begins at entry {first}, but entries up to {behind} were purged");
            return Err(FileError::Corrupt { path: log.disk.path(""), reason });
        }
        if let Some(behind) = behind {
            log.remove_behind(behind)?;
        }
        Ok((log, Recovered { purged, entries }))
    }

    fn recover(
        &mut self,
        first: u64,
        name: String,
        is_last: bool,
        behind: Option<u64>,
        entries: &mut Vec<Encoded>,
    ) -> Result<(), FileError> {
        let path = self.disk.path(&name);
        let corrupt = |reason: String| FileError::Corrupt { path: path.clone(), reason };
        let io = |action| {
            let path = path.clone();
            move |source| FileError::io(action, path, source)
        };
        let bytes = self.disk.read(&name).map_err(io("read"))?.unwrap_or_default();
        let salt = match segment::read_header(&bytes) {
            Header::Salt(salt) => salt,
            Header::Format(found) => return Err(FileError::Format { path, found, supported: segment::FORMAT }),
            // The creation was cut short: nothing is written behind a header that is not durable.
            Header::Invalid if is_last && bytes.len() as u64 <= HEADER_BYTES => {
                self.disk.remove(&name).map_err(io("remove"))?;
                return self.disk.sync_dir().map_err(io("remove"));
            }
            Header::Invalid => return Err(corrupt("its header is invalid".to_owned())),
        };
        let scan = segment::scan(&bytes, salt).map_err(corrupt)?;
        if scan.torn && !is_last {
            return Err(corrupt(format!("it ends in the middle of a record, at byte {}", scan.end)));
        }
        if scan.torn {
            self.disk.set_len(&name, scan.end).map_err(io("cut"))?;
        }
        if is_last {
            // What a killed process left in the cache counts from now on, so it must survive a loss of power, too.
            self.disk.sync(&name).map_err(io("sync"))?;
        }
        if let Some(record) = scan.records.first()
            && record.index != first
        {
            return Err(corrupt(format!("it begins with entry {}, not {first}", record.index)));
        }
        // Purged segments may be missing in any order, others not.
        let gap = |last: &Segment| first != last.next() && behind.is_none_or(|behind| first > behind + 1);
        if let Some(last) = self.segments.last()
            && gap(last)
        {
            return Err(corrupt(format!("entry {} must come before it and is missing", last.next())));
        }
        for record in &scan.records {
            if behind.is_none_or(|behind| record.index > behind) {
                let entry = bytes.get(record.entry.clone()).unwrap_or_default();
                entries.push((record.index, entry.to_vec()));
            }
        }
        let starts = scan.records.iter().map(|record| record.start).collect();
        self.segments.push(Segment { name, salt, first, starts, end: scan.end });
        Ok(())
    }

    /// Appends a batch; it is durable when this returns. The entries follow the last one without a gap.
    pub(in crate::control) fn append(&mut self, batch: &[Encoded]) -> Result<(), FileError> {
        let Some(&(first, _)) = batch.first() else { return Ok(()) };
        if let Some(last) = self.segments.last()
            && first != last.next()
        {
            let reason = format!("entry {first} follows entry {}, which leaves a gap", last.next());
            return Err(FileError::Poisoned { reason });
        }
        if self.segments.last().is_none_or(|last| last.end >= self.segment_bytes) {
            self.start_segment(first)?;
        }
        let Some(segment) = self.segments.last_mut() else { return Err(FileError::Closed) };
        let mut bytes = Vec::new();
        let mut starts = Vec::with_capacity(batch.len());
        for (index, entry) in batch {
            let expected = segment.next() + starts.len() as u64;
            if *index != expected || entry.len() > ENTRY_BYTES_MAX {
                let reason = format!("entry {index} of {} bytes follows entry {expected}", entry.len());
                return Err(FileError::Poisoned { reason });
            }
            starts.push(segment.end + bytes.len() as u64);
            segment::push_record(&mut bytes, segment.end, segment.salt, *index, entry);
        }
        let mut written = || {
            self.disk.write(&segment.name, segment.end, &bytes)?;
            self.disk.sync(&segment.name)
        };
        written().map_err(|source| FileError::io("append to", self.disk.path(&segment.name), source))?;
        segment.end += bytes.len() as u64;
        segment.starts.extend(starts);
        Ok(())
    }

    fn start_segment(&mut self, first: u64) -> Result<(), FileError> {
        let name = format!("{first:020}{SUFFIX}");
        let mut salt = [0; 8];
        let failed = |error: getrandom::Error| FileError::Poisoned { reason: format!("no random numbers: {error}") };
        getrandom::fill(&mut salt).map_err(failed)?;
        let salt = u64::from_le_bytes(salt);
        let mut written = || {
            self.disk.create(&name)?;
            self.disk.write(&name, 0, &segment::header(salt))?;
            self.disk.sync(&name)?;
            self.disk.sync_dir()
        };
        written().map_err(|source| FileError::io("create", self.disk.path(&name), source))?;
        self.segments.push(Segment { name, salt, first, starts: Vec::new(), end: HEADER_BYTES });
        Ok(())
    }

    /// Removes the entries from index `from` on; durable when this returns.
    pub(in crate::control) fn truncate(&mut self, from: u64) -> Result<(), FileError> {
        while let Some(last) = self.segments.last()
            && last.first >= from
        {
            let path = self.disk.path(&last.name);
            let mut removed = || {
                self.disk.remove(&last.name)?;
                self.disk.sync_dir()
            };
            removed().map_err(|source| FileError::io("remove", path, source))?;
            self.segments.pop();
        }
        let Some(last) = self.segments.last_mut() else { return Ok(()) };
        let keep = usize::try_from(from - last.first).unwrap_or(usize::MAX);
        let Some(&cut) = last.starts.get(keep) else { return Ok(()) };
        let mut written = || {
            self.disk.set_len(&last.name, cut)?;
            self.disk.sync(&last.name)
        };
        written().map_err(|source| FileError::io("cut", self.disk.path(&last.name), source))?;
        last.starts.truncate(keep);
        last.end = cut;
        Ok(())
    }

    /// Removes the entries up to index `upto`. `mark` is kept and returned by the next `open`.
    pub(in crate::control) fn purge(&mut self, upto: u64, mark: &[u8]) -> Result<(), FileError> {
        file::replace(&mut self.disk, PURGED, mark)?;
        self.remove_behind(upto)
    }

    fn remove_behind(&mut self, upto: u64) -> Result<(), FileError> {
        let count = self.segments.iter().take_while(|segment| segment.next() <= upto + 1).count();
        // A last segment that is exactly used up stays, so that the next entry finds its place; one that the mark has
        // overtaken goes, since the next entry does not follow its last.
        let keeps_last =
            count == self.segments.len() && self.segments.last().is_some_and(|last| last.next() == upto + 1);
        let count = if keeps_last { count.saturating_sub(1) } else { count };
        if count == 0 {
            return Ok(());
        }
        for segment in self.segments.drain(..count) {
            self.disk
                .remove(&segment.name)
                .map_err(|source| FileError::io("remove", self.disk.path(&segment.name), source))?;
        }
        let path = self.disk.path("");
        self.disk.sync_dir().map_err(|source| FileError::io("sync", path, source))
    }

    /// Writes the purge mark of a log that has no entries.
    pub(in crate::control) fn write_purged(disk: &mut D, mark: &[u8]) -> Result<(), FileError> {
        file::replace(disk, PURGED, mark)
    }

    /// Gives the files of the whole log, the purge mark among them, names that begin with `prefix`. A crash may leave any part
    /// of it, so the caller repeats it.
    pub(in crate::control) fn set_aside(disk: &mut D, prefix: &str) -> Result<(), FileError> {
        let path = disk.path("");
        let mut renamed = || {
            for name in disk.list()? {
                if first_of(&name).is_some() || name == PURGED {
                    disk.rename(&name, &format!("{prefix}{name}"))?;
                }
            }
            disk.sync_dir()
        };
        renamed().map_err(|source| FileError::io("set aside", path, source))
    }

    /// Bytes in all segments.
    pub(in crate::control) fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.end).sum()
    }

    /// The directory, for the small files beside the log.
    pub(in crate::control) fn disk(&mut self) -> &mut D {
        &mut self.disk
    }
}

/// The index in the name of a segment; `None` if it is the name of something else.
fn first_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(SUFFIX)?;
    (digits.len() == 20).then(|| digits.parse().ok())?
}
