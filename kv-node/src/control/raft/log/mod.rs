//! The Raft log on disk.

pub(in crate::control) mod files;
mod segment;
pub(in crate::control) mod store;
pub(in crate::control) mod writer;

#[cfg(test)]
mod tests;
