//! A full disk, made with a limit on the size of files: a child process runs into it.

use std::path::Path;
use std::process::Command;

use kv_core::error::StorageError;
use kv_core::storage::{Committer, DiskConfig, DiskStore, OpenIds, Reader, Space, recount};
use kv_core::types::{Seq, StoreId};

use crate::support::{batch, key, stored, write};

const IDS: OpenIds = OpenIds { store: StoreId(1), nonce: 1 };

/// Names the store to the child.
const STORE: &str = "KV_STORAGE_TEST_FULL";

/// Bytes in the blocks that `ulimit -f` counts in.
const BLOCK: u64 = 512;

/// No flush, so that the journal grows past the limit.
fn config() -> DiskConfig {
    DiskConfig { memtable_bytes: 512 * 1024 * 1024, ..DiskConfig::default() }
}

/// Runs the ignored test `name` with files limited to `bytes`, on the store in `path`.
fn limited(name: &str, path: &Path, bytes: u64) {
    let output = Command::new("sh")
        // The signal would end the process before the write could fail.
        .args(["-c", "trap '' XFSZ; ulimit -f \"$1\"; exec \"$2\" --exact \"$3\" --ignored --nocapture", "sh"])
        .arg((bytes / BLOCK).to_string())
        .arg(std::env::current_exe().unwrap())
        .arg(format!("full::{name}"))
        .env(STORE, path)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

fn store() -> std::path::PathBuf {
    std::env::var_os(STORE).unwrap().into()
}

#[test]
fn a_disk_that_fills_up_is_recognised_and_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    limited("child_commits_until_full", directory.path(), 66 * 1024 * 1024);
    let (_, reader, mut committer) = DiskStore::open(directory.path(), &config(), IDS).unwrap();
    let confirmed = std::fs::read_to_string(directory.path().join("confirmed.txt")).unwrap().parse::<u32>().unwrap();
    assert!(confirmed > 10, "{confirmed} commits before the disk was full");
    for number in 0..confirmed {
        assert!(reader.get(&owned(number)).unwrap().is_some(), "commit {number} of {confirmed}");
    }
    assert_eq!(*committer.stats(), recount(&reader).unwrap().stats);
    commit(&mut committer, 1_000_000).unwrap();
    assert!(reader.get(&owned(1_000_000)).unwrap().is_some());
}

#[test]
fn a_store_that_cannot_be_made_says_so_and_can_be_made_later() {
    let directory = tempfile::tempdir().unwrap();
    limited("child_cannot_open", directory.path(), 1024 * 1024);
    let (opened, _, mut committer) = DiskStore::open(directory.path(), &config(), IDS).unwrap();
    assert_eq!(opened.incarnation.boot, 1);
    commit(&mut committer, 0).unwrap();
}

fn owned(number: u32) -> kv_core::storage::StorageKey {
    key(Space::Owned, 0, 0, &number.to_be_bytes())
}

fn commit(committer: &mut impl Committer, number: u32) -> Result<(), StorageError> {
    // Not compressible, so that the journal grows by as much.
    let mut state = u64::from(number) + 1;
    let bytes = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    });
    let value: Vec<u8> = bytes.take(1024 * 1024).collect();
    committer.commit(&[batch([write(&owned(number), None, Some(&stored(1, Some(&value))))])], Seq(u64::from(number)))
}

#[test]
#[ignore = "a part of a_disk_that_fills_up_is_recognised_and_loses_nothing"]
fn child_commits_until_full() {
    let (_, reader, mut committer) = DiskStore::open(&store(), &config(), IDS).unwrap();
    let mut confirmed = 0;
    let error = loop {
        assert!(confirmed < 1000, "the limit is never reached");
        match commit(&mut committer, confirmed) {
            Ok(()) => confirmed += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, StorageError::Full { .. }), "{error}");
    let again = commit(&mut committer, confirmed).unwrap_err();
    assert!(matches!(again, StorageError::Poisoned { .. }), "{again}");
    assert!(reader.get(&owned(confirmed - 1)).unwrap().is_some(), "reads go on");
    std::fs::write(store().join("confirmed.txt"), confirmed.to_string()).unwrap();
}

#[test]
#[ignore = "a part of a_store_that_cannot_be_made_says_so_and_can_be_made_later"]
fn child_cannot_open() {
    let Err(error) = DiskStore::open(&store(), &config(), IDS) else { panic!("the store was opened") };
    assert!(matches!(error, StorageError::Full { .. }), "{error}");
}
