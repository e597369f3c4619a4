//! Bytes that change on the medium are noticed, and a torn tail is distinguished from them.

use proptest::prelude::*;

use crate::control::files::checked as file;
use crate::control::files::{Disk as _, FileError};
use crate::control::raft::log::files::{Encoded, LogFiles};
use crate::control::tests::sim::SimDisk;

const SEGMENT_BYTES: u64 = 400;

fn index(mark: &[u8]) -> Option<u64> {
    mark.try_into().ok().map(u64::from_le_bytes)
}

fn entry(index: u64) -> Encoded {
    let len = usize::try_from(index % 7).unwrap() * 30;
    (index, vec![u8::try_from(index).unwrap(); len])
}

/// Ten batches of two entries, of which the first three are purged.
fn written() -> SimDisk {
    let disk = SimDisk::default();
    let (mut log, _) = LogFiles::open(disk.clone(), SEGMENT_BYTES, index).unwrap();
    for batch in 0..10 {
        log.append(&[entry(2 * batch), entry(2 * batch + 1)]).unwrap();
    }
    log.purge(2, &2_u64.to_le_bytes()).unwrap();
    assert!(disk.names().len() > 3, "the log must have several segments");
    disk
}

fn entries(disk: &SimDisk) -> Result<Vec<Encoded>, FileError> {
    LogFiles::open(disk.clone(), SEGMENT_BYTES, index).map(|(_, found)| found.entries)
}

#[test]
fn no_changed_byte_is_ever_believed() {
    let all: Vec<Encoded> = (3..20).map(entry).collect();
    assert_eq!(entries(&written()).unwrap(), all);
    let config = ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() };
    let mut cut = 0;
    let mut refused = 0;
    let outcomes = std::cell::RefCell::new((&mut cut, &mut refused));
    proptest::test_runner::TestRunner::new(config)
        .run(&(any::<prop::sample::Index>(), 1_u8..), |(place, mask)| {
            let disk = written();
            let names = disk.names();
            let total: usize = names.iter().map(|name| disk.len(name)).sum();
            let mut at = place.index(total);
            let name = names
                .iter()
                .find(|name| {
                    let here = at < disk.len(name);
                    at -= if here { 0 } else { disk.len(name) };
                    here
                })
                .unwrap();
            disk.flip(name, at, mask);
            let mut outcomes = outcomes.borrow_mut();
            match entries(&disk) {
                // Only the last batch cannot be distinguished from one that was never synced.
                Ok(found) => {
                    prop_assert!(found == all[..15] || found == all[..16], "{} at {}: {:?}", name, at, found);
                    prop_assert_eq!(Some(name), names.iter().rfind(|name| name.ends_with(".log")));
                    *outcomes.0 += 1;
                }
                Err(FileError::Corrupt { path, reason }) => {
                    prop_assert!(path.starts_with("sim/") && !reason.is_empty());
                    *outcomes.1 += 1;
                }
                Err(FileError::Format { .. }) => *outcomes.1 += 1,
                Err(other) => prop_assert!(false, "{}", other),
            }
            Ok(())
        })
        .unwrap();
    assert!(cut > 20 && refused > 1000, "{cut} cut, {refused} refused");
}

#[test]
fn a_missing_segment_is_damage() {
    let mut disk = written();
    let names = disk.names();
    let logs: Vec<&String> = names.iter().filter(|name| name.ends_with(".log")).collect();
    disk.remove(logs[1]).unwrap();
    let error = entries(&disk).unwrap_err();
    assert!(error.to_string().contains("must come before it and is missing"), "{error}");
}

#[test]
fn a_value_that_looks_like_a_record_is_no_record() {
    let disk = SimDisk::default();
    let (mut log, _) = LogFiles::open(disk.clone(), SEGMENT_BYTES, index).unwrap();
    log.append(&[entry(0)]).unwrap();
    let name = disk.names().remove(0);
    // The bytes of a whole segment as an entry: each of its records is whole, at another position.
    let copy = disk.clone().read(&name).unwrap().unwrap();
    log.append(&[(1, copy.clone()), (2, copy)]).unwrap();
    let len = disk.len(&name);
    disk.flip(&name, len - 1, 1);
    let found = entries(&disk).unwrap();
    assert_eq!(found.len(), 2, "the damaged tail is cut and its content is not taken for records");
}

#[test]
fn small_files_are_whole_or_refused() {
    let mut disk = SimDisk::default();
    assert_eq!(file::content(&mut disk, "vote").unwrap(), None);
    file::replace(&mut disk, "vote", b"content").unwrap();
    assert_eq!(file::content(&mut disk, "vote").unwrap().as_deref(), Some(&b"content"[..]));
    for at in 0..disk.len("vote") {
        disk.flip("vote", at, 0x10);
        let error = file::content(&mut disk, "vote").unwrap_err();
        assert!(matches!(error, FileError::Corrupt { .. } | FileError::Format { .. }), "byte {at}: {error}");
        disk.flip("vote", at, 0x10);
    }
    // A crash at any point of a replacement leaves the old file or the new one.
    for fuse in 1..6 {
        for seed in 0..64 {
            let mut disk = disk.clone();
            disk.arm(None, seed);
            file::replace(&mut disk, "vote", b"old").unwrap();
            disk.arm(Some(fuse), seed * 0x9e37_79b9);
            file::replace(&mut disk, "vote", b"new").unwrap_err();
            disk.lose_power();
            let found = file::content(&mut disk, "vote").unwrap().unwrap();
            assert!(found == b"old" || found == b"new", "{found:?}");
        }
    }
}
