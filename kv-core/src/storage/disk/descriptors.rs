//! File descriptors. fjall opens files in the background and stops for good when it is given none, so the shell keeps some
//! free for it, and here nothing is begun that may need one while there are too few: a commit waits before anything of it
//! is written, a compaction waits before it begins, and a read, which changes nothing, is tried again. A failed write or
//! sync is never tried again.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{StorageError, is_out_of_descriptors};

/// What a flush and a compaction may open together, but for tables that are kept open.
const NEEDED: usize = 24;

/// How long whoever waits sleeps before it looks again.
const STEP: Duration = Duration::from_millis(5);

/// How often a read is tried again.
const READ_TRIES: usize = 1000;

/// Tells whether there are descriptors.
#[derive(Clone, Debug)]
pub(super) struct Descriptors(Arc<File>);

impl Descriptors {
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        // A directory can be opened on every system that has such limits; elsewhere any handle does.
        File::open(directory).or_else(|_| File::open(std::env::current_exe()?)).map(|file| Self(Arc::new(file)))
    }

    /// Whether as many as are needed could be had just now.
    pub(super) fn are_enough(&self) -> bool {
        let mut taken = Vec::with_capacity(NEEDED);
        for _ in 0..NEEDED {
            match self.0.try_clone() {
                Ok(file) => taken.push(file),
                Err(error) if is_out_of_descriptors(&error) => return false,
                // Something else is wrong: whoever needs it says what.
                Err(_) => return true,
            }
        }
        true
    }

    /// Waits until there are enough; how many milliseconds that took.
    pub(super) fn wait(&self) -> u64 {
        let mut waited = Duration::ZERO;
        while !self.are_enough() {
            pause();
            waited += STEP;
        }
        u64::try_from(waited.as_millis()).unwrap_or(u64::MAX)
    }
}

/// Reads, and again while there are no descriptors.
pub(super) fn patiently<T>(read: impl Fn() -> Result<T, StorageError>) -> Result<T, StorageError> {
    for _ in 0..READ_TRIES {
        match read() {
            Err(error) if error.is_out_of_descriptors() => pause(),
            done => return done,
        }
    }
    read()
}

#[allow(
    clippy::disallowed_methods,
    reason = "the threads that wait are those of the store, and nothing else tells them"
)]
pub(super) fn pause() {
    std::thread::sleep(STEP);
}
