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
//! | 1, 2, 3 | records, hints, lag marks: storage keys as they are |
//! | 0x80 | the meta space: names behind it |
//! | 0x90 | ledger entries: slot, big-endian |
//! | 0x91 | ledger checkpoints: partition, big-endian |
//! | 0x92 | the engine's own name and boot |

mod engine;
mod identity;
mod journal;
mod ledger;
mod open;
mod tables;

pub use engine::{DiskCommitter, DiskMetrics, DiskReader};
pub use open::{DiskStore, OpenIds};

const META: u8 = 0x80;
const ENTRY: u8 = 0x90;
const CHECKPOINT: u8 = 0x91;
const ENGINE: u8 = 0x92;

/// How a store on disk is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskConfig {
    /// Bytes of uncompressed blocks kept in memory.
    pub cache_bytes: u64,
    /// Bytes of records gathered in memory before they are written to a table. Fixed when the store is created.
    pub memtable_bytes: u64,
    /// Threads that flush and compact; at least 2, since one alone can wait for itself.
    pub workers: usize,
    /// How long a commit waits for flushes and compactions that have fallen behind, before it fails, in milliseconds.
    pub stall_ms_max: u64,
    /// Draw a new store id and keep the data: for a store that was rolled back to an earlier state. Its peers then refill
    /// it before it answers (rule D2).
    pub renew: bool,
    /// Count the statistics anew at start, which reads everything.
    pub recount: bool,
}

impl Default for DiskConfig {
    fn default() -> Self {
        Self {
            cache_bytes: 64 * 1024 * 1024,
            memtable_bytes: 16 * 1024 * 1024,
            workers: 2,
            stall_ms_max: 60_000,
            renew: false,
            recount: false,
        }
    }
}
