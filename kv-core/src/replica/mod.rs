//! One copy's duties: apply what coordinators send, answer reads and slices, deliver hints, refill a lost store, sweep.

mod apply;
mod handoff;
mod refill;
mod replication;
mod slice;
mod sweep;

pub(crate) use handoff::HandoffPass;
pub(crate) use refill::Refill;
pub(crate) use replication::{Goal, Replication, ReplicationId, Target};
pub(crate) use slice::{Requester, SliceJob};
pub(crate) use sweep::Sweeper;
