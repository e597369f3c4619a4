//! Where data lives: the hash ring, its partitions, and the layout that gives each partition its owners.

pub(crate) mod balance;
pub(crate) mod check;
pub(crate) mod first;
pub(crate) mod flow;
pub mod hash;
mod layout;
mod picture;
mod share;
#[cfg(test)]
mod tests;

pub use balance::{Balance, Portion};
pub use check::{LayoutError, MEMBERS_MAX, NAME_BYTES_MAX, WEIGHT_MAX, WEIGHT_MIN, check};
pub use first::{FirstLayout, first_layout};
pub use layout::{Entry, FIRST_EPOCH, Joint, Layout, Member, Owner, PARTITIONS_MAX, Receiver};
pub use share::{fair_shares, zone_limit};
