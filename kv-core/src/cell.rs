//! Cells: what a replica stores of one key, whatever the mode of its keyspace.
//!
//! Storage, messages between replicas, exchanges, hand-off, residue, slices and the sweeper handle cells by what all of
//! them have: merge, dominance, digest, sizes, expiry. What is inside a cell concerns the component that answers clients
//! of keyspaces of its mode, and the codec of the store.
//!
//! Of one key all replicas hold cells of one kind: the mode of a keyspace never changes, and its number is never given to
//! another one.

use std::mem::size_of;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::config::Mode;
use crate::register::Register;
use crate::register::done::Done;
use crate::types::{RequestId, WallTime};
use crate::version::{Actor, Conflict, Hlc, Record, Replaces, Retired, Settled, Version, Write};

/// What a cell, or a version in it, takes in messages beside keys and values.
pub(crate) const OVERHEAD: usize = 128;

/// What a context takes in messages for each actor.
const ACTOR_BYTES: usize = 32;

/// What a request that a register remembers takes in messages.
const REQUEST_BYTES: usize = 40;

/// What a retired request takes in messages.
const RETIRED_BYTES: usize = 20;

/// What a replica stores of one key. Merging is commutative, associative and idempotent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cell {
    /// Of an available keyspace.
    Available(Record),
    /// Of a consistent keyspace.
    Consistent(Register),
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
            Self::Consistent(register) => register.is_valid(),
        }
    }

    /// Adds all that `other` knows. `mode` is that of the keyspace; while it is not known here nothing concurrent is given
    /// up. Says how many retired requests (rule A7) were forgotten because there was no room.
    pub fn merge(&mut self, other: &Self, mode: Option<&Mode>) -> usize {
        match (self, other) {
            (Self::Available(record), Self::Available(other)) => record.merge(other, conflict_of(mode)),
            (Self::Consistent(register), Self::Consistent(other)) => {
                register.install(other);
                0
            }
            (one, other) => one.stays_beside(other),
        }
    }

    /// The same where nothing may be held yet, between copies with watermarks, `own` of what is held and `others` of `other` (rule A6).
    /// Where everything that was known has settled and is gone, nothing is held.
    pub(crate) fn merge_settled_into(
        held: &mut Option<Self>,
        own: Hlc,
        other: &Self,
        others: Hlc,
        mode: Option<&Mode>,
    ) -> usize {
        match (held.get_or_insert_with(|| other.nothing()), other) {
            (Self::Available(record), Self::Available(other)) => {
                let forgotten = record.merge_settled(own, other, others, conflict_of(mode));
                if record.siblings.is_empty() {
                    *held = None;
                }
                forgotten
            }
            // It is gone from the one copy, or from the other: a register stands for its key as a whole.
            (Self::Consistent(register), Self::Consistent(other))
                if register.accepted.is_none() && other.is_settled(own) =>
            {
                if *register == Register::default() {
                    *held = None;
                }
                0
            }
            (one, other) => one.merge(other, mode),
        }
    }

    /// Whether `other` brings something at or below `until` that `held` neither has nor has seen (rule A6).
    pub(crate) fn lacks_settled(held: Option<&Self>, other: &Self, until: Hlc) -> bool {
        match (held, other) {
            (Some(Self::Available(record)), Self::Available(other)) => record.lacks_settled(other, until),
            (None, Self::Available(other)) => Record::default().lacks_settled(other, until),
            _ => false,
        }
    }

    /// When the oldest tombstone in it was written.
    pub(crate) fn tombstone(&self) -> Option<Hlc> {
        match self {
            Self::Available(record) => record.tombstone(),
            Self::Consistent(register) => register.tombstone(),
        }
    }

    /// Takes out which requests were replaced, for the mutation check.
    pub(crate) fn take_retired(&mut self) -> Retired {
        match self {
            Self::Available(record) => std::mem::take(&mut record.retired),
            Self::Consistent(_) => Retired::default(),
        }
    }

    /// Keeps what it holds of requests that were replaced, which must not be (rule A7), for the mutation check.
    pub(crate) fn keep_retired(&mut self, mut known: Retired) {
        match self {
            Self::Available(Record { siblings, retired, .. }) => {
                known.join(retired);
                known.retain(|id| !siblings.iter().any(|sibling| sibling.request == id));
                *retired = known;
            }
            Self::Consistent(_) => {}
        }
    }

    /// Rule A8: what a timestamp above `credible` has won against in a merge without its coordinator having seen that is written again
    /// above it, as a client would do that knew of both. It is a dot of its own, so the order of timestamps stays the same everywhere. `held`
    /// and `sent` are what was merged, each with the watermark of the other copy. `None`: nothing is to be written.
    pub(crate) fn keep_above(
        &self,
        (held, own): (Option<&Self>, Hlc),
        (sent, others): (&Self, Hlc),
        credible: Hlc,
        mode: Option<&Mode>,
        actor: impl FnOnce() -> Actor,
    ) -> Option<(Self, Actor)> {
        let decides = mode.is_some_and(Mode::timestamps_decide);
        if !decides || self.latest() <= credible {
            return None;
        }
        let (Self::Available(merged), Self::Available(sent)) = (self, sent) else { return None };
        let nothing = Record::default();
        let held = held.and_then(Self::record).unwrap_or(&nothing);
        let lost = [held.outdone_by(sent, others), sent.outdone_by(held, own)].into_iter().flatten();
        let lost = lost.filter(|lost| lost.written <= credible).max_by_key(|lost| (lost.written, lost.dot))?;
        let Version { request, expires, value, .. } = lost.clone();
        let mut record = merged.clone();
        let (actor, written) = (actor(), record.latest().next());
        record.write(actor, Replaces::Held, Conflict::Lww, Write { written, request, expires, value });
        Some((record.into(), actor))
    }

    /// Values that go because another copy, which has settled up to `settled` and has `other` or nothing of the key, does not hold
    /// them, though it does not know what has replaced them either (rule A6).
    pub(crate) fn lost_to(&self, other: Option<&Self>, settled: Hlc) -> Vec<Version> {
        let Some(record) = self.record() else { return Vec::new() };
        let other = other.and_then(Self::record);
        let covers = |version: &Version| other.is_some_and(|other| other.context.covers(version.dot));
        let is_lost = |version: &&Version| version.value.is_some() && version.written <= settled && !covers(version);
        record.siblings.iter().filter(is_lost).cloned().collect()
    }

    /// What of it the watermark of its partition has to pass.
    pub(crate) fn unsettled(&self) -> Unsettled {
        match self {
            Self::Available(record) => {
                Unsettled { tombstone: record.tombstone(), retired: record.retired.iter().next().map(|id| id.stamp) }
            }
            Self::Consistent(register) => Unsettled { tombstone: register.tombstone(), retired: None },
        }
    }

    /// Takes the tombstones out that were written at or before `until`. `None`: there are none. Nothing may be left.
    pub(crate) fn collected(&self, until: Hlc) -> Option<Option<Self>> {
        match self {
            Self::Available(record) => {
                let mut rest = record.clone();
                rest.collect(until).then(|| (!rest.siblings.is_empty()).then(|| rest.into()))
            }
            Self::Consistent(register) => register.tombstone().filter(|written| *written <= until).map(|_| None),
        }
    }

    /// Whether all of it was written at or before `until`.
    pub(crate) fn is_settled(&self, until: Hlc) -> bool {
        match self {
            Self::Available(record) => record.latest() <= until,
            Self::Consistent(register) => register.is_settled(until),
        }
    }

    /// A cell of the same kind that has seen nothing.
    pub(crate) fn nothing(&self) -> Self {
        match self {
            Self::Available(_) => Self::Available(Record::default()),
            Self::Consistent(_) => Self::Consistent(Register::default()),
        }
    }

    /// Of one key all replicas hold cells of one kind. What another kind says is not taken.
    fn stays_beside(&self, other: &Self) -> usize {
        debug_assert!(false, "cells of two kinds: {self:?} and {other:?}");
        0
    }

    /// The record of an available keyspace.
    #[must_use]
    pub fn record(&self) -> Option<&Record> {
        match self {
            Self::Available(record) => Some(record),
            Self::Consistent(_) => None,
        }
    }

    /// The register of a consistent keyspace.
    #[must_use]
    pub fn register(&self) -> Option<&Register> {
        match self {
            Self::Consistent(register) => Some(register),
            Self::Available(_) => None,
        }
    }

    /// Whether merging `other` into this cell would change nothing that has been seen.
    #[must_use]
    pub fn dominates(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Available(record), Self::Available(other)) => record.dominates(other),
            (Self::Consistent(register), Self::Consistent(other)) => register.ballot() >= other.ballot(),
            _ => false,
        }
    }

    /// A hash of what has been seen and what is held: equal on two replicas exactly when a merge would change neither.
    #[must_use]
    pub fn digest(&self) -> u64 {
        match self {
            Self::Available(record) => record.digest(),
            Self::Consistent(register) => register.digest(),
        }
    }

    /// Whether there is nothing in it that other replicas need: a register that has promised something and accepted nothing. Replicas are
    /// equal without it.
    #[must_use]
    pub fn is_blank(&self) -> bool {
        self.register().is_some_and(|register| register.accepted.is_none())
    }

    /// Whether there is a value, expired or not: the key is then counted as live.
    #[must_use]
    pub fn has_value(&self) -> bool {
        match self {
            Self::Available(record) => record.has_value(),
            Self::Consistent(register) => register.value().is_some(),
        }
    }

    /// Bytes of the values held.
    #[must_use]
    pub fn value_bytes(&self) -> usize {
        match self {
            Self::Available(record) => record.value_bytes(),
            Self::Consistent(register) => register.value().map_or(0, Bytes::len),
        }
    }

    /// The earliest moment at which a value expires, and from which the sweeper has something to do.
    #[must_use]
    pub fn expires(&self) -> Option<WallTime> {
        match self {
            Self::Available(record) => record.expires(),
            Self::Consistent(register) => register.expires(),
        }
    }

    /// Does what is to be done when values expire; says whether that changed anything.
    pub fn sweep(&mut self, wall: WallTime) -> bool {
        match self {
            Self::Available(record) => record.sweep(wall),
            // A majority agrees first (rule C8).
            Self::Consistent(_) => false,
        }
    }

    /// Forgets what was remembered for repetitions of requests of which none can come any more (rule A7); says how many.
    pub(crate) fn age_out(&mut self, settled: Settled, limit: Duration) -> usize {
        match self {
            Self::Available(record) => record.age_out(settled, limit),
            Self::Consistent(_) => 0,
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
            Self::Consistent(register) => register.strip(),
        }
    }

    /// The latest timestamp that the cell shows, from which a clock learns (rule A8).
    pub(crate) fn latest(&self) -> Hlc {
        match self {
            Self::Available(record) => record.latest(),
            Self::Consistent(_) => Hlc::default(),
        }
    }

    /// Bytes that count while the cell is in flight.
    pub(crate) fn bytes_in_flight(&self) -> usize {
        match self {
            Self::Available(record) => {
                let lists = record.context.len() * ACTOR_BYTES + record.retired.len() * RETIRED_BYTES;
                OVERHEAD + record.value_bytes() + lists + record.siblings.len() * OVERHEAD
            }
            Self::Consistent(register) => {
                2 * OVERHEAD + register.value().map_or(0, Bytes::len) + register.requests() * REQUEST_BYTES
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
                let retired = record.retired.len() * size_of::<RequestId>();
                let allocations = 2 + values + usize::from(retired > 0);
                Heap { bytes: lists + retired + record.value_bytes(), allocations }
            }
            Self::Consistent(register) => {
                let value = register.value().map_or(0, Bytes::len);
                let requests = register.requests() * size_of::<Done>();
                Heap { bytes: value + requests, allocations: usize::from(value > 0) + usize::from(requests > 0) }
            }
        }
    }
}

/// What of a cell, or of the cells of a partition, waits for the watermark (rule A6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Unsettled {
    /// When the oldest tombstone was written.
    pub(crate) tombstone: Option<Hlc>,
    /// The lowest stamp of a retired request.
    pub(crate) retired: Option<Hlc>,
}

impl Unsettled {
    pub(crate) fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Adds what waits in another cell.
    pub(crate) fn add(&mut self, other: Self) {
        let earlier = |one: Option<Hlc>, other: Option<Hlc>| one.into_iter().chain(other).min();
        self.tombstone = earlier(self.tombstone, other.tombstone);
        self.retired = earlier(self.retired, other.retired);
    }
}

impl From<Register> for Cell {
    fn from(register: Register) -> Self {
        Self::Consistent(register)
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
        Some(Mode::Consistent) | None => Conflict::Siblings,
    }
}

#[cfg(test)]
mod tests;
