//! Cells: what a replica stores of one key, whatever the mode of its keyspace.
//!
//! Storage, messages between replicas, exchanges, hand-off, residue, slices and the sweeper handle cells by what all of
//! them have: merge, dominance, digest, sizes, expiry. What is inside a cell concerns the component that answers clients
//! of keyspaces of its mode, and the codec of the store.
//!
//! Of one key all replicas hold cells of one kind: the mode of a keyspace never changes, and its number is never given to
//! another one.

use std::mem::size_of;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::config::Mode;
use crate::types::WallTime;
use crate::version::{Actor, Conflict, Hlc, Record, Version};

/// What a cell, or a version in it, takes in messages beside keys and values.
pub(crate) const OVERHEAD: usize = 128;

/// What a context takes in messages for each actor.
const ACTOR_BYTES: usize = 32;

/// What a replica stores of one key. Merging is commutative, associative and idempotent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cell {
    /// Of an available keyspace.
    Available(Record),
}

/// What a cell takes in memory beside its own fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Heap {
    /// Bytes of lists and values.
    pub(crate) bytes: usize,
    /// Allocations that hold them.
    pub(crate) allocations: usize,
}

impl Cell {
    /// Whether the cell is well formed. What comes from a peer or a disk is checked once, on receipt.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        match self {
            Self::Available(record) => record.is_valid(),
        }
    }

    /// Adds all that `other` knows. `mode` is that of the keyspace; while it is not known here nothing concurrent is given
    /// up.
    pub fn merge(&mut self, other: &Self, mode: Option<&Mode>) {
        match (self, other) {
            (Self::Available(record), Self::Available(other)) => record.merge(other, conflict_of(mode)),
        }
    }

    /// The same where nothing may be held yet.
    pub fn merge_into(held: &mut Option<Self>, other: &Self, mode: Option<&Mode>) {
        held.get_or_insert_with(|| other.nothing()).merge(other, mode);
    }

    /// The same between copies with watermarks, `own` of what is held and `others` of `other` (rule A6). Where everything that was
    /// known has settled and is gone, nothing is held.
    pub(crate) fn merge_settled_into(
        held: &mut Option<Self>,
        own: Hlc,
        other: &Self,
        others: Hlc,
        mode: Option<&Mode>,
    ) {
        match (held.get_or_insert_with(|| other.nothing()), other) {
            (Self::Available(record), Self::Available(other)) => {
                record.merge_settled(own, other, others, conflict_of(mode));
                if record.siblings.is_empty() {
                    *held = None;
                }
            }
        }
    }

    /// Whether `other` brings something at or below `until` that `held` neither has nor has seen (rule A6).
    pub(crate) fn lacks_settled(held: Option<&Self>, other: &Self, until: Hlc) -> bool {
        match (held, other) {
            (Some(Self::Available(record)), Self::Available(other)) => record.lacks_settled(other, until),
            (None, Self::Available(other)) => Record::default().lacks_settled(other, until),
        }
    }

    /// When the oldest tombstone in it was written.
    pub(crate) fn tombstone(&self) -> Option<Hlc> {
        match self {
            Self::Available(record) => record.tombstone(),
        }
    }

    /// Takes the tombstones out that were written at or before `until`. `None`: there are none. Nothing may be left.
    pub(crate) fn collected(&self, until: Hlc) -> Option<Option<Self>> {
        match self {
            Self::Available(record) => {
                let mut rest = record.clone();
                rest.collect(until).then(|| (!rest.siblings.is_empty()).then(|| rest.into()))
            }
        }
    }

    /// Whether all of it was written at or before `until`.
    pub(crate) fn is_settled(&self, until: Hlc) -> bool {
        self.latest() <= until
    }

    /// A cell of the same kind that has seen nothing.
    fn nothing(&self) -> Self {
        match self {
            Self::Available(_) => Self::Available(Record::default()),
        }
    }

    /// Whether merging `other` into this cell would change nothing that has been seen.
    #[must_use]
    pub fn dominates(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Available(record), Self::Available(other)) => record.dominates(other),
        }
    }

    /// A hash of what has been seen and what is held: equal on two replicas exactly when a merge would change neither.
    #[must_use]
    pub fn digest(&self) -> u64 {
        match self {
            Self::Available(record) => record.digest(),
        }
    }

    /// Whether there is a value, expired or not: the key is then counted as live.
    #[must_use]
    pub fn has_value(&self) -> bool {
        match self {
            Self::Available(record) => record.has_value(),
        }
    }

    /// Bytes of the values held.
    #[must_use]
    pub fn value_bytes(&self) -> usize {
        match self {
            Self::Available(record) => record.value_bytes(),
        }
    }

    /// The earliest moment at which a value expires, and from which the sweeper has something to do.
    #[must_use]
    pub fn expires(&self) -> Option<WallTime> {
        match self {
            Self::Available(record) => record.expires(),
        }
    }

    /// Does what is to be done when values expire; says whether that changed anything.
    pub fn sweep(&mut self, wall: WallTime) -> bool {
        match self {
            Self::Available(record) => record.sweep(wall),
        }
    }

    /// Leaves the values out of the answer to a scan of keys only, but keeps what is live.
    pub(crate) fn strip(&mut self) {
        match self {
            Self::Available(record) => {
                for sibling in &mut record.siblings {
                    if let Some(value) = &mut sibling.value {
                        *value = Bytes::new();
                    }
                }
            }
        }
    }

    /// The latest timestamp that the cell shows, from which a clock learns (rule A8).
    pub(crate) fn latest(&self) -> Hlc {
        match self {
            Self::Available(record) => record.latest(),
        }
    }

    /// Bytes that count while the cell is in flight.
    pub(crate) fn bytes_in_flight(&self) -> usize {
        match self {
            Self::Available(record) => {
                OVERHEAD + record.value_bytes() + record.context.len() * ACTOR_BYTES + record.siblings.len() * OVERHEAD
            }
        }
    }

    /// What the cell takes in memory beside its own fields.
    pub(crate) fn heap(&self) -> Heap {
        match self {
            Self::Available(record) => {
                let values = record.siblings.iter().filter(|sibling| sibling.value.is_some()).count();
                let lists =
                    record.context.len() * size_of::<(Actor, u64)>() + record.siblings.len() * size_of::<Version>();
                Heap { bytes: lists + record.value_bytes(), allocations: 2 + values }
            }
        }
    }
}

impl From<Record> for Cell {
    fn from(record: Record) -> Self {
        Self::Available(record)
    }
}

fn conflict_of(mode: Option<&Mode>) -> Conflict {
    match mode {
        Some(Mode::Available(settings)) => settings.conflict,
        None => Conflict::Siblings,
    }
}

#[cfg(test)]
mod tests;
