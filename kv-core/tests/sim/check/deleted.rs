//! Invariant 4: a deleted key does not come back. More generally, once a write is acknowledged, what it replaced is not
//! shown again by a read that must have seen it.
//!
//! A repeated put may land a second time, at a node that knows neither the first time nor what replaced it then, with a dot of
//! its own. Rule A7 sees to it that it goes again when the two are merged: where one dot of an operation was replaced, its value
//! is not shown. Where clocks are further apart than is allowed, and where the last writer wins, all of its dots must have been
//! replaced.

use std::collections::BTreeSet;

use kv_core::version::{Conflict, Dot};

use crate::history::{Ack, History, KeyId, OpId};

/// Whether nothing of what is shown was replaced by one of the acknowledged writes.
pub(crate) fn stays_replaced(history: &History, key: KeyId, shown: &[OpId], acks: &[Ack]) -> Result<(), String> {
    let acknowledged: BTreeSet<Dot> = acks.iter().flat_map(|ack| ack.dots.iter().copied()).collect();
    for id in shown {
        let op = history.op(*id);
        let replaced = |dot: &Dot| history.replaced_itself(key, *dot).any(|by| acknowledged.contains(&by));
        let by_all = history.clocks_are_wrong || history.key(key).conflict == Conflict::Lww;
        let comes_back = if by_all { op.dots.iter().all(replaced) } else { op.dots.iter().any(replaced) };
        if !op.dots.is_empty() && comes_back {
            return Err(format!(
                "invariant 4: {key:?} shows the value of {id:?} again, although a write that replaced it was acknowledged"
            ));
        }
    }
    Ok(())
}
