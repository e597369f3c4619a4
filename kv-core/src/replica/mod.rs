//! One copy's duties: apply what coordinators send, answer reads and slices, deliver hints, fill what was lost or is
//! entered, hand over what was left, compare with the other owners, sweep, remove what was dropped.

mod apply;
mod copy;
mod exchange;
mod handoff;
mod purge;
mod repair;
mod replication;
mod residue;
mod slice;
mod sweep;
mod throttle;

pub(crate) use copy::{Copy, Progress};
pub(crate) use exchange::{Exchange, ExchangeId, Serving, Turns};
pub(crate) use handoff::HandoffPass;
pub(crate) use purge::Purge;
pub use purge::left_of_dropped;
pub use repair::RepairFigures;
pub(crate) use repair::Repairs;
pub(crate) use replication::{Goal, Replication, ReplicationId, Target};
pub(crate) use residue::Leftovers;
pub(crate) use slice::{Requester, SliceJob};
pub(crate) use sweep::Sweeper;
pub(crate) use throttle::Throttle;
