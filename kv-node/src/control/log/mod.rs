//! The Raft log on disk.

pub(crate) mod files;
mod segment;
pub(crate) mod store;
pub(crate) mod writer;

pub use segment::ENTRY_BYTES_MAX;

#[cfg(test)]
mod tests;
