//! Invariant 1: an acknowledged write is never lost while a quorum's worth of its replicas' disks survives.
//!
//! After everything has healed and settled, a read at `all` shows the write, or has seen what replaced it. Being
//! *covered* by the final context is not enough: somewhere there must be a write that was meant to replace it (its client
//! had read it, or its coordinator held it), and that write must be shown or have been replaced likewise, and so on. A
//! write that is covered without such a chain was lost. Deletes and versions whose time is over end a chain.

use kv_core::types::WallTime;
use kv_core::version::Context;

use super::deleted;
use crate::history::{Answer, History, KeyId, OpId};

/// What the final read of a key returned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Final {
    pub(crate) values: Vec<OpId>,
    pub(crate) context: Context,
}

/// Judges the final read of one key.
pub(crate) fn all_acknowledged(history: &History, key: KeyId, read: &Final, wall: WallTime) -> Result<(), String> {
    let answer = Answer { values: &read.values, context: Some(&read.context), wall };
    for ack in &history.acks[key.0] {
        for dot in &ack.dots {
            if !read.context.covers(*dot) || !history.is_settled(ack.op, *dot, &answer) {
                return Err(format!(
                    "invariant 1: {:?} of {key:?} was acknowledged and is lost: dot {dot}, final values {:?}",
                    ack.op, read.values
                ));
            }
        }
    }
    deleted::stays_replaced(history, key, &read.values, &history.acks[key.0])
}
