//! Invariant 4: a deleted key does not come back. More generally, once a write is acknowledged, what it replaced is not
//! shown again by a read that must have seen it.
//!
//! A repeated put may land a second time after what replaced it the first time (rule A7), with a dot of its own: a value
//! has come back only if every dot of its operation was replaced.

use std::collections::BTreeSet;

use kv_core::version::Dot;

use crate::history::{Ack, History, KeyId, OpId};

/// Whether nothing of what is shown was replaced by one of the acknowledged writes.
pub(crate) fn stays_replaced(history: &History, key: KeyId, shown: &[OpId], acks: &[Ack]) -> Result<(), String> {
    let acknowledged: BTreeSet<Dot> = acks.iter().flat_map(|ack| ack.dots.iter().copied()).collect();
    for id in shown {
        let op = history.op(*id);
        let replaced = |dot: &Dot| history.replaced_by(key, *dot).any(|by| acknowledged.contains(&by));
        if !op.dots.is_empty() && op.dots.iter().all(replaced) {
            return Err(format!(
                "invariant 4: {key:?} shows the value of {id:?} again, although a write that replaced it was acknowledged"
            ));
        }
    }
    Ok(())
}
