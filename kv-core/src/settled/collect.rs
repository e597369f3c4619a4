//! What goes when a watermark is durable: tombstones at or below it, and with the last of them what only kept their context.
//!
//! A partition is walked through in slices beside the loop, one partition at a time. Partitions without tombstones are not looked at.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use super::{Settling, is_stable};
use crate::acceptor;
use crate::cell::{Cell, Unsettled};
use crate::event::Event;
use crate::message::CallId;
use crate::rule::Rule;
use crate::storage::{Slice, Space, StorageKey, Stored};
use crate::types::{KeyspaceId, PartitionId};
use crate::version::Hlc;
use crate::view::meta;
use crate::wiring::{AfterDurable, Ctx, ExchangeId, ReadFor, Task, Timer};

/// The pause between two slices: with the bounds of a slice, what limits the work.
const SLICE_EVERY: Duration = Duration::from_millis(10);

/// The walk through partitions that have settled.
#[derive(Debug, Default)]
pub(super) struct Collecting {
    waiting: VecDeque<PartitionId>,
    /// The partition whose turn it is, the place in it, and the oldest tombstone met that stays.
    turn: Option<(PartitionId, StorageKey, Option<Hlc>)>,
    /// Whether a slice is read, or will be when everything before is durable.
    reading: bool,
    /// Partitions in which a tombstone went and the rest of its record stayed. An owner that had collected the whole record before the
    /// rest was written has not kept the context, so the owners are to be compared.
    partly: BTreeSet<PartitionId>,
    /// Tombstones collected since there was last nothing to do, and since the loop began.
    records: u64,
    all: u64,
}

impl Collecting {
    /// Partitions that are looked at, or will be.
    pub(super) fn len(&self) -> usize {
        self.waiting.len() + usize::from(self.turn.is_some())
    }

    pub(super) fn collected(&self) -> u64 {
        self.all
    }

    fn has(&self, partition: PartitionId) -> bool {
        self.waiting.contains(&partition) || self.turn.as_ref().is_some_and(|turn| turn.0 == partition)
    }
}

impl Settling {
    /// A watermark is durable: what waits for it goes.
    pub(crate) fn watermark_durable(&mut self, ctx: &mut Ctx<'_>, partition: PartitionId, settled: meta::Settled) {
        if self.adopting.get(&partition) == Some(&settled) {
            self.adopting.remove(&partition);
        }
        if ctx.view.keep(Rule::WriteAboveConfirmed) {
            ctx.kernel.clock.raise(ctx.view.settled_until(partition).unwrap_or_default());
        }
        self.collect_due(ctx, partition);
    }

    /// Looks through a partition of which something has settled that waited for that. Whether there is something.
    pub(super) fn collect_due(&mut self, ctx: &mut Ctx<'_>, partition: PartitionId) -> bool {
        let Some(until) = ctx.view.settled_until(partition) else { return false };
        let Some(due) = self.due.get_mut(&partition) else { return false };
        due.retired = due.retired.filter(|retired| *retired > until);
        let Some(tombstone) = due.tombstone else {
            if due.retired.is_none() {
                self.due.remove(&partition);
            }
            return false;
        };
        if tombstone > until || !may_collect(ctx, partition) {
            return false;
        }
        if !self.collecting.has(partition) {
            self.collecting.waiting.push_back(partition);
            ctx.kernel.arm(ctx.kernel.now.mono, Timer::Collect);
        }
        true
    }

    /// Goes on with the partition whose turn it is, or gives the next one its turn.
    pub(crate) fn collect(&mut self, ctx: &mut Ctx<'_>) {
        if self.collecting.reading {
            return;
        }
        if self.collecting.turn.is_none()
            && let Some(partition) = self.collecting.waiting.pop_front()
        {
            // What is written from now on is noted again.
            if let Some(due) = self.due.get_mut(&partition) {
                due.tombstone = None;
                if due.retired.is_none() {
                    self.due.remove(&partition);
                }
            }
            let start = StorageKey::keyspace_start(Space::Owned, partition, KeyspaceId(0));
            self.collecting.turn = Some((partition, start, None));
            // What was noted before may be in a batch that a reader does not see yet.
            self.collecting.reading = true;
            return ctx.kernel.after_issued(AfterDurable::Collect);
        }
        self.collect_slice(ctx);
    }

    /// Everything is durable that was written before the partition had its turn.
    pub(crate) fn collect_begins(&mut self, ctx: &mut Ctx<'_>) {
        self.collecting.reading = false;
        self.collect_slice(ctx);
    }

    fn collect_slice(&mut self, ctx: &mut Ctx<'_>) {
        let Some((partition, from, _)) = self.collecting.turn.clone() else {
            let records = std::mem::take(&mut self.collecting.records);
            if records > 0 {
                ctx.kernel.event(Event::Collected { records });
            }
            return;
        };
        let request = ctx.view.slice_of(partition, Some(from));
        self.collecting.reading = true;
        ctx.kernel.read_slice(request, ReadFor::Collect(partition));
    }

    /// A slice was read; `None`: it could not be.
    pub(crate) fn collect_read(&mut self, ctx: &mut Ctx<'_>, partition: PartitionId, slice: Option<Slice>) {
        self.collecting.reading = false;
        let Some((_, _, mut oldest)) = self.collecting.turn.take() else { return };
        let Some(slice) = slice else {
            // It is looked at again at the next pass.
            self.look_again(ctx, partition);
            return ctx.kernel.arm(ctx.kernel.now.mono.plus(ctx.view.config.handoff_every), Timer::Collect);
        };
        let until = ctx.view.settled_until(partition).unwrap_or_default();
        for (key, bytes) in &slice.entries {
            if ctx.view.is_dropped(key.keyspace()) {
                continue;
            }
            let Ok(stored) = Stored::decode(bytes) else {
                ctx.kernel.unreadable(key.clone(), None);
                continue;
            };
            let Some(written) = stored.cell.tombstone() else { continue };
            if written <= until {
                ctx.kernel.with_key(key.clone(), Task::Collect);
            }
            // Of several tombstones the younger ones may stay.
            let stays =
                stored.cell.collected(until).map_or(Some(written), |rest| rest.and_then(|rest| rest.tombstone()));
            oldest = oldest.into_iter().chain(stays).min();
        }
        match slice.entries.last() {
            Some((last, _)) if slice.more => {
                self.collecting.turn = Some((partition, last.successor(), oldest));
                ctx.kernel.arm(ctx.kernel.now.mono.plus(SLICE_EVERY), Timer::Collect);
            }
            _ => {
                if let Some(oldest) = oldest {
                    self.want(ctx, partition, Unsettled { tombstone: Some(oldest), retired: None });
                }
                ctx.kernel.arm(ctx.kernel.now.mono, Timer::Collect);
            }
        }
    }

    /// The record is in memory: takes out what has settled.
    pub(crate) fn collect_record(&mut self, ctx: &mut Ctx<'_>, key: &StorageKey, stored: Option<&Stored>) {
        let partition = key.partition();
        let (Some(stored), Some(until)) = (stored, ctx.view.settled_until(partition)) else { return };
        if !may_collect(ctx, partition) {
            // A layout came meanwhile.
            return self.look_again(ctx, partition);
        }
        if let Some(rest) = stored.cell.collected(until) {
            self.collecting.records += 1;
            self.collecting.all += 1;
            if rest.is_some() {
                self.collecting.partly.insert(partition);
            }
            match rest {
                Some(cell) => {
                    ctx.kernel.put(key, Some(Stored { own: stored.own, cell }));
                }
                None => remove(ctx, key, &stored.cell),
            }
        }
    }

    /// The next partition whose owners are to be compared, since more was seen of a key on some of them than on others.
    pub(crate) fn next_partly_collected(&mut self) -> Option<PartitionId> {
        self.collecting.partly.pop_first()
    }

    /// The record could not be had: it is looked for at the next pass.
    pub(crate) fn collect_refused(&mut self, ctx: &mut Ctx<'_>, key: &StorageKey) {
        self.look_again(ctx, key.partition());
    }

    /// A copy from which this one is filled does not hold the record, and has settled up to `settled`: if nothing in the record is
    /// younger, it was replaced or collected there.
    pub(crate) fn condemn(
        &mut self,
        ctx: &mut Ctx<'_>,
        key: &StorageKey,
        stored: Option<&Stored>,
        (settled, id, round): (Hlc, ExchangeId, CallId),
    ) {
        if let Some(stored) = stored.filter(|stored| stored.cell.is_settled(settled)) {
            if ctx.view.keep(Rule::SetAside) {
                ctx.kernel.set_aside(key, &stored.cell.lost_to(None, settled));
            }
            remove(ctx, key, &stored.cell);
        }
        ctx.kernel.after_key(key, AfterDurable::Merged { id, round });
    }
}

/// Removes all that is held of a key.
fn remove(ctx: &mut Ctx<'_>, key: &StorageKey, cell: &Cell) {
    match cell.register() {
        Some(register) => acceptor::remove(ctx, key, register),
        None => {
            ctx.kernel.put(key, None);
        }
    }
}

/// Whether this node is an owner of a partition that nobody enters or leaves.
fn may_collect(ctx: &Ctx<'_>, partition: PartitionId) -> bool {
    ctx.view.owns(partition) && ctx.view.entry(partition).is_some_and(is_stable)
}
