//! The engine on disk: fjall, an LSM tree in pure Rust, behind the contract.
//!
//! # What is trusted
//!
//! An `fsync` that returned `Ok` makes the bytes before it survive. A write that was not synced may be lost, kept, or
//! kept in part, in pages of any order. A rename within a directory is atomic. Bytes that were written may rot.
//!
//! # How a commit becomes durable
//!
//! All batches of a commit, the ledger's entry and checkpoints with them, are one fjall batch: written to fjall's journal
//! under one checksum, synced, and only then shown to readers. A crash leaves it whole or not at all. See `ledger` for the
//! statistics, `journal` and `tables` for what is checked before fjall reads its files, `identity` for the directory.
//!
//! # Keys in fjall's one tree
//!
//! | first byte | what |
//! | --- | --- |
//! | 1, 2, 3 | records, hints, missed-write markers: storage keys as they are |
//! | 0x80 | the meta space: names behind it |
//! | 0x90 | ledger entries: slot, big-endian |
//! | 0x91 | ledger checkpoints: partition, big-endian |
//! | 0x92 | the engine's own name and boot |
//! | 0x92, 1 | the number of the last batch, and its boot: changed by each commit |
//! | 0x92, 2 | the boots of the store |

mod background;
mod descriptors;
mod engine;
mod identity;
mod journal;
mod ledger;
mod open;
mod tables;

pub use engine::{DiskCommitter, DiskMetrics, DiskReader};
pub use identity::StoreLock;
pub use open::{DiskStore, OpenIds};

const META: u8 = 0x80;
const ENTRY: u8 = 0x90;
const CHECKPOINT: u8 = 0x91;
const ENGINE: u8 = 0x92;
const END: [u8; 2] = [ENGINE, 1];
const BOOTS: [u8; 2] = [ENGINE, 2];

/// How a store on disk is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskConfig {
    /// Bytes of uncompressed blocks kept in memory.
    pub cache_bytes: u64,
    /// The most bytes of records gathered in memory before they are written to a table. A store gathers three quarters of it
    /// or more, by its id, so that replicas that take in the same writes flush and compact at different times. Fixed when
    /// the store is created.
    pub memtable_bytes: u64,
    /// Bytes of a table that a compaction writes. fjall lets all reads and commits wait while it syncs the last table of a
    /// compaction. Fixed when the store is created.
    pub table_bytes: u64,
    /// Threads that flush and compact, at least 3. One alone can wait for itself; and fjall's first does not compact but
    /// asks without a pause whether another one would, so that with two it takes a processor for as long as the other
    /// compacts.
    pub workers: usize,
    /// Tables whose files are kept open, at least 10.
    pub files: usize,
    /// How long a commit waits for flushes and compactions that have fallen behind, before it fails, in milliseconds.
    pub stall_ms_max: u64,
    /// Draw a new store id and keep the data, as an old copy: for a store that was rolled back to an earlier state. Its peers
    /// then refill it before it answers, and what it holds is merged (rule D2).
    pub renew: bool,
    /// Count the statistics again at start, which reads everything.
    pub recount: bool,
}

impl Default for DiskConfig {
    fn default() -> Self {
        Self {
            cache_bytes: 64 * 1024 * 1024,
            memtable_bytes: 16 * 1024 * 1024,
            table_bytes: 16 * 1024 * 1024,
            workers: 4,
            files: 256,
            stall_ms_max: 60_000,
            renew: false,
            recount: false,
        }
    }
}
