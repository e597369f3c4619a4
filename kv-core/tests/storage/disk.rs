//! What only a store on disk does: identity, crashes, damage.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use kv_core::error::StorageError;
use kv_core::storage::{
    Batch, Committer, DiskCommitter, DiskConfig, DiskReader, DiskStore, FORMER, OpenIds, Opened, Reader, Space,
    StorageKey, Stored, Write, recount,
};
use kv_core::types::{ClusterId, HashSeed, Point, Seq, StoreId};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::conformance::all;
use crate::support::{batch, key, meta, stored, write};

pub fn small() -> DiskConfig {
    DiskConfig { cache_bytes: 1024 * 1024, ..DiskConfig::default() }
}

fn ids(store: u64) -> OpenIds {
    OpenIds { store: StoreId(store), nonce: 7 }
}

pub fn open(path: &Path) -> (Opened, DiskReader, DiskCommitter) {
    DiskStore::open(path, &small(), ids(1)).unwrap()
}

fn refusal(path: &Path, config: &DiskConfig) -> StorageError {
    match DiskStore::open(path, config, ids(2)) {
        Ok(_) => panic!("{} was opened", path.display()),
        Err(error) => error,
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            // Journals are allocated ahead, with zeros that need not be written.
            let bytes = fs::read(entry.path()).unwrap();
            let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            fs::write(&target, &bytes[..used]).unwrap();
            let file = OpenOptions::new().write(true).open(target).unwrap();
            file.set_len(u64::try_from(bytes.len()).unwrap()).unwrap();
        }
    }
}

/// The store as a power loss would leave it, while it is still open: a copy of its files.
pub fn crash_image(path: &Path) -> tempfile::TempDir {
    let image = tempfile::tempdir().unwrap();
    copy(path, image.path());
    image
}

fn owned(number: u32) -> StorageKey {
    key(Space::Owned, u16::try_from(number % 7).unwrap(), number % 2, &number.to_be_bytes())
}

/// A commit that puts one more record and counts itself in the meta space.
fn numbered(number: u32) -> Batch {
    let record = stored(u64::from(number) + 1, Some(&number.to_be_bytes().repeat(20)));
    batch([write(&owned(number), None, Some(&record)), meta(b"commits", Some(&number.to_be_bytes()))])
}

/// How many numbered commits the store holds, having checked that it is exactly the first so many, and that the kept
/// statistics are those of the entries.
fn commits_held(reader: &DiskReader, committer: &DiskCommitter) -> u32 {
    let last = reader.meta(b"commits").unwrap().map(|bytes| u32::from_be_bytes(bytes[..].try_into().unwrap()));
    let held = last.map_or(0, |last| last + 1);
    let slice = reader.slice(&all(StorageKey::space_start(Space::Owned), StorageKey::space_end(Space::Owned))).unwrap();
    assert_eq!(slice.entries.len(), usize::try_from(held).unwrap(), "a commit survives whole or not at all");
    for number in 0..held {
        assert!(reader.get(&owned(number)).unwrap().is_some(), "commit {number} of {held}");
    }
    let counted = recount(reader).unwrap();
    assert_eq!(counted.damaged, []);
    assert_eq!(*committer.stats(), counted.stats);
    held
}

fn journal(path: &Path) -> PathBuf {
    let files = fs::read_dir(path.join("data")).unwrap().map(|entry| entry.unwrap().path());
    let mut journals: Vec<_> = files.filter(|path| path.extension().is_some_and(|it| it == "jnl")).collect();
    assert_eq!(journals.len(), 1);
    journals.remove(0)
}

/// Bytes of the journal in use, without the zeros that it was allocated with.
fn journal_length(path: &Path) -> usize {
    let bytes = fs::read(path).unwrap();
    bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1
}

fn with_bytes(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

/// The last holder of a store may be any thread, and closing it takes its time.
#[test]
fn the_lock_of_a_store_is_free_as_soon_as_it_says_so() {
    let directory = tempfile::tempdir().unwrap();
    for round in 0..40 {
        let (opened, reader, mut committer) = open(directory.path());
        assert_eq!(opened.incarnation.boot, round + 1);
        let lock = reader.lock();
        let readers: Vec<_> = (0..3).map(|_| reader.clone()).collect();
        let holders: Vec<_> = readers
            .into_iter()
            .map(|reader| {
                std::thread::Builder::new().spawn(move || {
                    reader.meta(b"commits").unwrap();
                    drop(reader);
                })
            })
            .collect();
        committer.commit(&[numbered(round)], Seq(1)).unwrap();
        drop(committer);
        assert!(!lock.wait_until_free(Duration::ZERO), "a reader is left");
        drop(reader);
        assert!(lock.wait_until_free(Duration::from_secs(60)));
        assert!(lock.wait_until_free(Duration::ZERO), "it stays free, for whoever asks later");
        holders.into_iter().for_each(|holder| holder.unwrap().join().unwrap());
    }
}

#[test]
fn each_boot_counts_and_the_store_id_stays() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("new").join("store");
    for boot in 1..4 {
        let (opened, _, _committer) = open(&path);
        assert_eq!(opened.incarnation.store, StoreId(1));
        assert_eq!(opened.incarnation.boot, boot);
        assert_eq!(opened.incarnation.nonce, 7);
        assert_eq!(opened.cluster, None);
    }
    let (opened, _, _) = DiskStore::open(&path, &small(), ids(99)).unwrap();
    assert_eq!(opened.incarnation.store, StoreId(1), "only a new store takes the id offered");
}

/// The boots of a store, and how far each came.
fn boots(opened: &Opened) -> Vec<(u32, u64)> {
    opened.boots.all().iter().map(|boot| (boot.number, boot.last)).collect()
}

#[test]
fn a_start_that_comes_to_nothing_is_no_boot() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let (opened, reader, mut committer) = open(path);
    assert_eq!(boots(&opened), [(1, 0)]);
    committer.commit(&[numbered(0)], Seq(3)).unwrap();
    committer.commit(&[numbered(1), numbered(2)], Seq(5)).unwrap();
    drop((reader, committer));
    let identity = fs::read(path.join("identity")).unwrap();
    for _ in 0..3 {
        let (opened, _, _) = DiskStore::prepare(path, &small(), ids(2)).unwrap();
        assert_eq!(boots(&opened), [(1, 5), (2, 0)], "it would be the second");
        assert_eq!(fs::read(path.join("identity")).unwrap(), identity);
    }
    let (opened, _, mut committer) = DiskStore::prepare(path, &small(), ids(2)).unwrap();
    committer.begin().unwrap();
    committer.begin().unwrap();
    drop(committer);
    assert_eq!(boots(&opened), [(1, 5), (2, 0)]);
    // Whoever commits without a word has begun.
    let (_, _, mut committer) = DiskStore::prepare(path, &small(), ids(2)).unwrap();
    committer.commit(&[numbered(3)], Seq(9)).unwrap();
    drop(committer);
    let (opened, _, _committer) = open(path);
    assert_eq!(boots(&opened), [(1, 5), (2, 0), (3, 9), (4, 0)]);
}

/// What others have seen of a store tells it from each of its copies, whenever that was taken and however often it was opened.
#[test]
fn a_copy_lacks_what_the_store_has_shown() {
    let directory = tempfile::tempdir().unwrap();
    let (opened, _, mut committer) =
        DiskStore::open(directory.path(), &small(), OpenIds { nonce: 11, ..ids(1) }).unwrap();
    committer.commit(&[numbered(0)], Seq(1)).unwrap();
    let copied = crash_image(directory.path());
    committer.commit(&[numbered(1)], Seq(2)).unwrap();
    let seen = |commit| Point { incarnation: opened.incarnation, commit };
    for nonce in 50..54 {
        let (opened, _, _) = DiskStore::open(copied.path(), &small(), OpenIds { nonce, ..ids(1) }).unwrap();
        assert!(opened.boots.has(opened.incarnation, seen(1)) && !opened.boots.has(opened.incarnation, seen(2)));
    }
    drop(committer);
    let (opened, _, _) = DiskStore::open(directory.path(), &small(), OpenIds { nonce: 12, ..ids(1) }).unwrap();
    assert!(opened.boots.has(opened.incarnation, seen(2)) && !opened.boots.has(opened.incarnation, seen(3)));
}

#[test]
fn a_store_in_use_is_locked() {
    let directory = tempfile::tempdir().unwrap();
    let (_, reader, committer) = open(directory.path());
    assert!(matches!(refusal(directory.path(), &small()), StorageError::Locked { .. }));
    drop(committer);
    assert!(matches!(refusal(directory.path(), &small()), StorageError::Locked { .. }), "readers count");
    drop(reader);
    open(directory.path());
}

#[test]
fn a_cluster_is_remembered_and_another_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (_, _, mut committer) = open(directory.path());
    committer.bind(ClusterId(5), HashSeed(6)).unwrap();
    drop(committer);
    let (opened, _, mut committer) = open(directory.path());
    assert_eq!(opened.cluster, Some((ClusterId(5), HashSeed(6))));
    assert!(matches!(committer.bind(ClusterId(4), HashSeed(6)), Err(StorageError::OtherCluster { .. })));
    committer.bind(ClusterId(5), HashSeed(6)).unwrap();
}

#[test]
fn a_directory_with_something_else_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("thesis.tex"), b"important").unwrap();
    let error = refusal(directory.path(), &small());
    assert!(matches!(&error, StorageError::NotAStore { reason, .. } if reason.contains("thesis.tex")), "{error}");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);

    let file = directory.path().join("thesis.tex");
    assert!(matches!(refusal(&file, &small()), StorageError::NotAStore { .. }));
    assert_eq!(fs::read(&file).unwrap(), b"important");
}

#[test]
fn a_first_start_that_was_cut_short_is_repeated() {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("lost+found")).unwrap();
    fs::write(directory.path().join("identity.new"), b"half").unwrap();
    let (opened, _, _) = open(directory.path());
    assert_eq!(opened.incarnation.boot, 1);

    // Identity at boot 0, half an engine beside it.
    let other = tempfile::tempdir().unwrap();
    fs::create_dir_all(other.path().join("data/keyspaces")).unwrap();
    fs::write(other.path().join("data/lock"), b"").unwrap();
    let image = fs::read(directory.path().join("identity")).unwrap();
    assert_eq!(image.len(), identity_bytes(1, 1).len());
    fs::write(other.path().join("identity"), identity_bytes(1, 0)).unwrap();
    let (opened, reader, mut committer) = open(other.path());
    assert_eq!(opened.incarnation.boot, 1);
    committer.commit(&[numbered(0)], Seq(1)).unwrap();
    assert_eq!(commits_held(&reader, &committer), 1);
}

/// The identity file of a store without a cluster, built on request.
fn identity_bytes(store: u8, boot: u8) -> Vec<u8> {
    let payload = [store, store, boot, 0];
    let check = xxhash_rust::xxh3::xxh3_64_with_seed(&payload, 1).to_le_bytes();
    [b"kv-store".as_slice(), &3u32.to_le_bytes(), &[1], &check, &payload].concat()
}

#[test]
fn the_identity_file_is_checked() {
    let directory = tempfile::tempdir().unwrap();
    open(directory.path()).2.commit(&[numbered(0)], Seq(1)).unwrap();
    let identity = directory.path().join("identity");
    let right = fs::read(&identity).unwrap();

    let check = |bytes: Option<&[u8]>, expected: fn(&StorageError) -> bool| {
        match bytes {
            Some(bytes) => fs::write(&identity, bytes).unwrap(),
            None => fs::remove_file(&identity).unwrap(),
        }
        let error = refusal(directory.path(), &small());
        assert!(expected(&error), "{error}");
    };
    let changed = |at: usize, to: u8| {
        let mut bytes = right.clone();
        bytes[at] = to;
        bytes
    };
    check(None, |error| matches!(error, StorageError::NotAStore { .. }));
    check(Some(&[]), |error| matches!(error, StorageError::NotAStore { .. }));
    check(Some(b"something else entirely"), |error| matches!(error, StorageError::NotAStore { .. }));
    check(Some(&changed(8, 9)), |error| matches!(error, StorageError::Format { found: 9, supported: 3, .. }));
    check(Some(&right[..10]), |error| matches!(error, StorageError::Corrupt { .. }));
    check(Some(&right[..right.len() - 1]), |error| matches!(error, StorageError::Corrupt { .. }));
    for (at, byte) in right.iter().enumerate().skip(12) {
        check(Some(&changed(at, byte ^ 0x10)), |error| matches!(error, StorageError::Corrupt { .. }));
    }
    fs::write(&identity, &right).unwrap();
    let (_, reader, committer) = open(directory.path());
    assert_eq!(commits_held(&reader, &committer), 1, "nothing was lost meanwhile");
}

#[test]
fn identity_and_data_of_different_stores_do_not_go_together() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    DiskStore::open(one.path(), &small(), ids(1)).unwrap();
    DiskStore::open(two.path(), &small(), ids(2)).unwrap();
    fs::copy(one.path().join("identity"), two.path().join("identity")).unwrap();
    let error = refusal(two.path(), &small());
    assert!(matches!(&error, StorageError::NotAStore { reason, .. } if reason.contains("different stores")), "{error}");
}

#[test]
fn missing_engine_files_are_noticed_before_anything_is_made_anew() {
    for name in ["version", "keyspaces/0/current", "keyspaces/1/current", "0.jnl"] {
        let directory = tempfile::tempdir().unwrap();
        let (_, reader, mut committer) = open(directory.path());
        committer.commit(&[numbered(0)], Seq(1)).unwrap();
        drop((reader, committer));
        let (file, aside) = (directory.path().join("data").join(name), directory.path().join("aside"));
        fs::rename(&file, &aside).unwrap();
        let error = refusal(directory.path(), &small());
        assert!(matches!(error, StorageError::Damaged { .. }), "{name}: {error}");
        fs::rename(&aside, &file).unwrap();
        let (_, reader, committer) = open(directory.path());
        assert_eq!(commits_held(&reader, &committer), 1, "{name}");
    }
}

#[test]
fn what_was_committed_survives_a_crash_and_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let (_, reader, mut committer) = open(directory.path());
    for number in 0..50 {
        committer.commit(&[numbered(number)], Seq(u64::from(number))).unwrap();
        if number % 10 == 9 {
            let image = crash_image(directory.path());
            let (_, reader, committer) = open(image.path());
            assert_eq!(commits_held(&reader, &committer), number + 1);
        }
    }
    drop((reader, committer));
    let (_, reader, mut committer) = open(directory.path());
    assert_eq!(commits_held(&reader, &committer), 50);
    committer.commit(&[numbered(50)], Seq(1)).unwrap();
    assert_eq!(commits_held(&reader, &committer), 51);
    assert!(!reader.metrics().recounted, "statistics come from the ledger, not from a scan");
}

/// A power loss keeps any part of the pages of the commit that was not confirmed.
#[test]
fn a_torn_commit_is_dropped_whole() {
    let directory = tempfile::tempdir().unwrap();
    let (_, _, mut committer) = open(directory.path());
    let journal_path = journal(directory.path());
    for number in 0..10 {
        committer.commit(&[numbered(number)], Seq(u64::from(number))).unwrap();
    }
    let before = journal_length(&journal_path);
    // The watermark as it is when the next commit was not confirmed.
    let confirmed = fs::read(directory.path().join("confirmed")).unwrap();
    let large = Batch { writes: (10..100).flat_map(|number| numbered(number).writes).collect() };
    let large = Batch { writes: large.writes.into_iter().filter(|it| matches!(it, Write::Record { .. })).collect() };
    committer.commit(&[large], Seq(10)).unwrap();
    let after = journal_length(&journal_path);
    assert!(after > before + 8192, "the commit has several pages");

    let torn = |change: &dyn Fn(&mut Vec<u8>)| {
        let image = crash_image(directory.path());
        fs::write(image.path().join("confirmed"), &confirmed).unwrap();
        with_bytes(&journal(image.path()), change);
        let (_, reader, committer) = open(image.path());
        assert_eq!(commits_held(&reader, &committer), 10);
        drop((reader, committer));
        let (_, reader, mut committer) = open(image.path());
        committer.commit(&[numbered(10)], Seq(1)).unwrap();
        drop((reader, committer));
        let (_, reader, committer) = open(image.path());
        assert_eq!(commits_held(&reader, &committer), 11, "the journal can be written on");
    };
    for cut in [before + 1, before + 13, before + 100, (before + after) / 2, after - 1] {
        torn(&|bytes| bytes.truncate(cut));
        torn(&|bytes| bytes[cut..after].fill(0));
    }
    // A page in the middle is missing, those around it are there.
    let page = (before / 4096 + 1) * 4096;
    torn(&|bytes| bytes[page..page + 4096].fill(0));
    torn(&|bytes| bytes[before..page].fill(0));
}

/// Bits flip in the journal, in commits that were confirmed.
#[test]
fn damage_in_the_journal_is_an_error_that_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    drop(open(directory.path()));
    // Opened again, the journal has no zeros behind it.
    let (_, reader, mut committer) = open(directory.path());
    for number in 0..10 {
        committer.commit(&[numbered(number)], Seq(u64::from(number))).unwrap();
    }
    drop((reader, committer));
    let length = journal_length(&journal(directory.path()));
    let (mut damaged, mut missed) = (0, 0);
    for step in 0..200 {
        let image = crash_image(directory.path());
        let path = journal(image.path());
        let at = step * (length - 1) / 200;
        with_bytes(&path, |bytes| bytes[at] ^= 1 << (step % 8));
        let bytes = fs::read(&path).unwrap();
        match DiskStore::open(image.path(), &small(), ids(2)) {
            Err(StorageError::Damaged { .. }) => {
                damaged += 1;
                assert_eq!(fs::read(&path).unwrap(), bytes, "byte {at}: the file is left for a repair");
            }
            // In the last commit, damage cannot be told from a torn write; but it was confirmed, and so it is missed.
            Err(StorageError::RolledBack { .. }) => missed += 1,
            Err(error) => panic!("byte {at} of {length}: {error}"),
            // The number of the last batch may have any gap before it.
            Ok((_, reader, committer)) => assert_eq!(commits_held(&reader, &committer), 10, "byte {at} of {length}"),
        }
    }
    assert!(damaged > 150 && missed > 0, "{damaged} found damaged, {missed} found missing");
}

#[test]
fn a_rolled_back_store_is_noticed_and_can_be_renewed() {
    let directory = tempfile::tempdir().unwrap();
    let (_, _, mut committer) = open(directory.path());
    committer.bind(ClusterId(5), HashSeed(6)).unwrap();
    committer.commit(&[numbered(0)], Seq(1)).unwrap();
    let old = crash_image(directory.path());
    committer.commit(&[numbered(1)], Seq(2)).unwrap();
    drop(committer);

    // The engine's files are restored from a copy of the same boot.
    fs::remove_dir_all(directory.path().join("data")).unwrap();
    copy(&old.path().join("data"), &directory.path().join("data"));
    let error = refusal(directory.path(), &small());
    assert!(matches!(&error, StorageError::RolledBack { what, .. } if what.contains("commit")), "{error}");

    let renew = DiskConfig { renew: true, ..small() };
    let (opened, reader, mut committer) = DiskStore::open(directory.path(), &renew, ids(77)).unwrap();
    assert_eq!(opened.incarnation.store, StoreId(77));
    assert_eq!(opened.cluster, Some((ClusterId(5), HashSeed(6))));
    assert_eq!(boots(&opened), [(opened.incarnation.boot, 0)], "another store has other boots");
    let former = reader.meta(FORMER).unwrap().unwrap();
    assert_eq!(postcard::from_bytes::<Vec<StoreId>>(&former).unwrap(), [StoreId(1)]);
    assert_eq!(commits_held(&reader, &committer), 1, "the data is kept");
    committer.commit(&[numbered(1)], Seq(2)).unwrap();
    drop((reader, committer));
    let (opened, reader, committer) = open(directory.path());
    assert_eq!(opened.incarnation.store, StoreId(77), "the new id stays");
    assert_eq!(commits_held(&reader, &committer), 2);
    drop((reader, committer));

    // The engine's files are restored from a copy of an earlier boot, the watermark with them.
    fs::remove_dir_all(directory.path().join("data")).unwrap();
    copy(&old.path().join("data"), &directory.path().join("data"));
    fs::remove_file(directory.path().join("confirmed")).unwrap();
    let error = refusal(directory.path(), &small());
    assert!(matches!(&error, StorageError::RolledBack { what, .. } if what.contains("boot")), "{error}");
}

#[test]
fn a_damaged_record_is_named_and_others_are_served() {
    let directory = tempfile::tempdir().unwrap();
    let (_, reader, mut committer) = open(directory.path());
    committer.commit(&[numbered(0), numbered(1), numbered(2)], Seq(1)).unwrap();
    // What the medium holds at one key is no longer what was written there.
    for bad in [&b"\x09rubbish that is long enough"[..], b"", b"\x01short"] {
        let Write::Record { key, before, after, .. } = numbered(7).writes.remove(0) else { unreachable!() };
        let value = Some(Bytes::copy_from_slice(bad));
        let before = before.or(after);
        let first = reader.get(&key).unwrap().is_none();
        let before = if first { None } else { before };
        committer
            .commit(&[batch([Write::Record { key: key.clone(), value, before, after, damaged: false }])], Seq(2))
            .unwrap();
        let encoded = reader.get(&key).unwrap().unwrap();
        let error = Stored::decode(&encoded).unwrap_err().at(&key);
        assert!(error.to_string().contains(&key.to_string()), "{error}");
        assert!(Stored::decode(&reader.get(&owned(1)).unwrap().unwrap()).is_ok());
        assert_eq!(recount(&reader).unwrap().damaged, std::slice::from_ref(&key));
    }
    // The repair does not know what it replaces; counts are exact again nevertheless, and stay so.
    let record = stored(9, Some(b"repaired"));
    let Write::Record { key, value, before, after, .. } = write(&owned(7), None, Some(&record)) else { unreachable!() };
    let repair = batch([Write::Record { key, value, before, after, damaged: true }]);
    committer.commit(&[repair, batch([meta(b"x", Some(b"y"))])], Seq(3)).unwrap();
    let counted = recount(&reader).unwrap();
    assert_eq!(counted.damaged, []);
    assert_eq!(*committer.stats(), counted.stats);
    drop((reader, committer));
    let (_, reader, committer) = open(directory.path());
    assert_eq!(*committer.stats(), recount(&reader).unwrap().stats);
    assert!(!reader.metrics().recounted);
}

#[test]
fn statistics_can_be_counted_anew() {
    let directory = tempfile::tempdir().unwrap();
    let (_, reader, mut committer) = open(directory.path());
    committer.commit(&[numbered(0), numbered(1)], Seq(1)).unwrap();
    // A core that misstates what it writes: the counts are wrong from here on.
    let Write::Record { key, value, after, .. } = numbered(2).writes.remove(0) else { unreachable!() };
    let wrong = batch([Write::Record { key, value, before: None, after, damaged: false }]);
    committer.commit(&[wrong], Seq(2)).unwrap();
    let Write::Record { key, after, .. } = numbered(2).writes.remove(0) else { unreachable!() };
    let mut heavier = after.unwrap();
    heavier.bytes += 5;
    let value = stored(3, Some(b"x")).encode();
    let wrong = batch([Write::Record { key, value: Some(value), before: after, after: Some(heavier), damaged: false }]);
    committer.commit(&[wrong], Seq(3)).unwrap();
    assert_ne!(*committer.stats(), recount(&reader).unwrap().stats);
    drop((reader, committer));

    let again = DiskConfig { recount: true, ..small() };
    let (_, reader, committer) = DiskStore::open(directory.path(), &again, ids(1)).unwrap();
    assert!(reader.metrics().recounted);
    assert_eq!(*committer.stats(), recount(&reader).unwrap().stats);
    drop((reader, committer));
    let (_, reader, mut committer) = open(directory.path());
    assert!(!reader.metrics().recounted);
    assert_eq!(*committer.stats(), recount(&reader).unwrap().stats);
    committer.commit(&[numbered(3)], Seq(4)).unwrap();
    drop((reader, committer));
    let (_, reader, committer) = open(directory.path());
    assert_eq!(*committer.stats(), recount(&reader).unwrap().stats);
}

#[test]
fn a_key_that_the_engine_cannot_store_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let (_, _, mut committer) = open(directory.path());
    let record = stored(1, Some(b"v"));
    let long = key(Space::Owned, 0, 0, &[1; 70_000]);
    let error = committer.commit(&[batch([write(&long, None, Some(&record))])], Seq(4)).unwrap_err();
    assert!(error.to_string().contains("65535"), "{error}");
    let error = committer.commit(&[numbered(0)], Seq(5)).unwrap_err();
    assert!(matches!(error, StorageError::Poisoned { at: Seq(4) }), "{error}");
    drop(committer);
    let (_, reader, mut committer) = open(directory.path());
    committer.commit(&[numbered(0)], Seq(1)).unwrap();
    assert_eq!(commits_held(&reader, &committer), 1);
}

#[test]
fn garbage_behind_the_journal_is_cut_off() {
    let directory = tempfile::tempdir().unwrap();
    let (_, reader, mut committer) = open(directory.path());
    committer.commit(&[numbered(0)], Seq(1)).unwrap();
    drop((reader, committer));
    // Opening again cuts the journal to its length.
    drop(open(directory.path()));
    let mut file = OpenOptions::new().append(true).open(journal(directory.path())).unwrap();
    file.write_all(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 1, 1, 1, 1, 1]).unwrap();
    let (_, reader, committer) = open(directory.path());
    assert_eq!(commits_held(&reader, &committer), 1);
}

/// A store most of whose records lie in tables.
fn store_with_tables(path: &Path, records: u32) {
    let config = DiskConfig { memtable_bytes: 32 * 1024, ..small() };
    let (_, reader, mut committer) = DiskStore::open(path, &config, ids(1)).unwrap();
    for number in 0..records {
        committer.commit(&[numbered(number)], Seq(u64::from(number))).unwrap();
    }
    drop((reader, committer));
}

fn files_under(path: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(path).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            files_under(&entry.path(), found);
        } else {
            found.push(entry.path());
        }
    }
}

/// Bits flip, bytes change, and files are cut, anywhere in the engine's files. A start says so and leaves the rest as it
/// was, or every read is right or says so.
#[test]
fn damage_anywhere_is_an_error_and_never_a_wrong_answer() {
    let directory = tempfile::tempdir().unwrap();
    let records = 1500;
    store_with_tables(directory.path(), records);
    let right: Vec<_> = {
        let (_, reader, _committer) = open(directory.path());
        (0..records).map(|number| reader.get(&owned(number)).unwrap().unwrap()).collect()
    };
    let mut files = Vec::new();
    files_under(&directory.path().join("data"), &mut files);
    files.sort();
    files.retain(|file| fs::metadata(file).unwrap().len() > 0);
    assert!(files.iter().any(|file| file.parent().unwrap().ends_with("keyspaces/1/tables")), "{files:?}");
    let mut random = StdRng::seed_from_u64(4);
    let (mut refused, mut partly, mut unharmed) = (0, 0, 0);
    for trial in 0..DAMAGE_TRIALS {
        let file = &files[trial % files.len()];
        let name = file.strip_prefix(directory.path()).unwrap();
        let image = crash_image(directory.path());
        let target = image.path().join(name);
        let bytes = fs::read(&target).unwrap();
        let (at, kind) = (random.random_range(0..bytes.len()), random.random_range(0..4));
        with_bytes(&target, |bytes| match kind {
            0 => bytes[at] ^= 1 << random.random_range(0..8),
            1 => bytes.truncate(at),
            2 => bytes[at..].iter_mut().take(16).for_each(|byte| *byte = random.random()),
            _ => bytes[at..].iter_mut().take(4096).for_each(|byte| *byte = 0),
        });
        let what = format!("trial {trial}: {} at {at}, kind {kind}", name.display());
        let (reader, committer) = match DiskStore::open(image.path(), &small(), ids(2)) {
            Ok((_, reader, committer)) => (reader, committer),
            Err(error) => {
                refused += 1;
                assert!(
                    !matches!(error, StorageError::Poisoned { .. } | StorageError::Stalled { .. }),
                    "{what}: {error}"
                );
                fs::write(&target, &bytes).unwrap();
                let (_, reader, _committer) = open(image.path());
                let found = (0..records).map(|number| reader.get(&owned(number)).unwrap().unwrap());
                assert!(found.eq(right.iter().cloned()), "{what}: with the file restored, all is there");
                continue;
            }
        };
        let mut errors = 0;
        for (number, right) in right.iter().enumerate() {
            match reader.get(&owned(u32::try_from(number).unwrap())) {
                Ok(Some(found)) => assert_eq!(found, right, "{what}: record {number}"),
                Ok(None) => panic!("{what}: record {number} is gone without a word"),
                Err(_) => errors += 1,
            }
        }
        drop((reader, committer));
        *if errors == 0 { &mut unharmed } else { &mut partly } += 1;
    }
    assert!(refused > 0 && partly > 0, "{refused} refused, {partly} partly readable, {unharmed} unharmed");
}

const DAMAGE_TRIALS: usize = 100;
