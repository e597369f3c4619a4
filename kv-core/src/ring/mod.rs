//! Where data lives: the hash ring, its partitions, and the layout that gives each partition its owners.

pub mod hash;
mod layout;

pub use layout::{Entry, Layout, Member, Owner, PARTITIONS_MAX};
