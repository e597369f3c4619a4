//! What the control plane keeps on disk beside its log: a directory, and small checked files in it.

pub(in crate::control) mod checked;
mod disk;

pub use disk::FileError;
pub(in crate::control) use disk::{Disk, Frozen, OsDisk};
