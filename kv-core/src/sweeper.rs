//! The sweeper: expired values become tombstones, so that they leave the counts within a stated bound.
//!
//! Partitions take turns. One whose records are all known not to expire before some moment is left alone until then.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::event::Event;
use crate::rule::Rule;
use crate::shell::ClockState;
use crate::storage::{Slice, Space, StorageKey, Stored};
use crate::types::{KeyspaceId, PartitionId, WallTime};
use crate::wiring::{AfterDurable, Ctx, ReadFor, Task, Timer};

/// Turns are never closer together than this, however many partitions there are.
const TURN_MIN: Duration = Duration::from_millis(10);

/// Where the sweeper is, and what it knows.
#[derive(Debug, Default)]
pub(crate) struct Sweeper {
    /// For each partition that was looked at since the start: the earliest moment at which something in it expires.
    known: BTreeMap<PartitionId, Option<WallTime>>,
    /// The partition whose turn it is, the place in it, and the earliest expiry met so far.
    turn: Option<(PartitionId, StorageKey, Option<WallTime>)>,
    /// The partition that was looked at last.
    last: Option<PartitionId>,
    /// Records swept in this turn.
    swept: u64,
}

impl Sweeper {
    /// Takes note of what was written meanwhile and expires.
    fn note_expiries(&mut self, ctx: &mut Ctx<'_>) {
        for (partition, expires) in ctx.kernel.take_expiries() {
            self.note(partition, expires);
        }
    }

    /// Something in a partition expires then.
    fn note(&mut self, partition: PartitionId, expires: WallTime) {
        let sooner = |known: WallTime| known.min(expires);
        if let Some(known) = self.known.get_mut(&partition) {
            *known = Some(known.map_or(expires, sooner));
        }
        if let Some((turn, _, earliest)) = &mut self.turn
            && *turn == partition
        {
            *earliest = Some(earliest.map_or(expires, sooner));
        }
    }

    /// The entries of some partitions have changed: what is stored of them may be owned anew, and is looked at again.
    pub(crate) fn forget(&mut self, changed: &dyn Fn(PartitionId) -> bool) {
        self.known.retain(|partition, _| !changed(*partition));
    }

    /// Goes on with the partition whose turn it is, or gives the next one its turn.
    pub(crate) fn pass(&mut self, ctx: &mut Ctx<'_>) {
        self.note_expiries(ctx);
        if ctx.view.clock == ClockState::Unknown && ctx.view.keep(Rule::SweepWhenSure) {
            // What a clock that is ahead sweeps is gone for everybody.
            ctx.kernel.arm(ctx.kernel.now.mono.plus(self.turn_length(ctx)), Timer::Sweep);
            return;
        }
        if self.turn.is_none() {
            self.turn = self.next_turn(ctx).map(|partition| {
                let start = StorageKey::keyspace_start(Space::Owned, partition, KeyspaceId(0));
                (partition, start, None)
            });
            self.swept = 0;
            if self.turn.is_some() {
                // What was noted before may be in a batch that a reader does not see yet.
                return ctx.kernel.after_issued(AfterDurable::Sweep);
            }
            ctx.kernel.arm(ctx.kernel.now.mono.plus(self.turn_length(ctx)), Timer::Sweep);
            return;
        }
        self.read_slice(ctx);
    }

    /// Everything is durable that was written before the partition had its turn: looks at it.
    pub(crate) fn read_slice(&mut self, ctx: &mut Ctx<'_>) {
        let Some((partition, from, _)) = self.turn.clone() else { return };
        let request = ctx.view.slice_of(partition, Some(from));
        ctx.kernel.read_slice(request, ReadFor::Sweep(partition));
    }

    /// A slice was read; `None`: it could not be.
    pub(crate) fn read(&mut self, ctx: &mut Ctx<'_>, partition: PartitionId, slice: Option<Slice>) {
        self.note_expiries(ctx);
        let Some((_, _, mut earliest)) = self.turn.take() else { return };
        let Some(slice) = slice else {
            self.refused(ctx, partition);
            self.last = Some(partition);
            return ctx.kernel.arm(ctx.kernel.now.mono.plus(self.turn_length(ctx)), Timer::Sweep);
        };
        for (key, bytes) in &slice.entries {
            if ctx.view.is_dropped(key.keyspace()) {
                continue;
            }
            let Ok(stored) = Stored::decode(bytes) else {
                ctx.kernel.unreadable(key.clone(), None);
                continue;
            };
            ctx.kernel.note_unsettled(partition, stored.cell.unsettled());
            let Some(expires) = stored.cell.expires() else { continue };
            if expires <= ctx.kernel.now.wall {
                ctx.kernel.with_key(key.clone(), Task::Sweep);
            } else {
                earliest = Some(earliest.map_or(expires, |earliest| earliest.min(expires)));
            }
        }
        match slice.entries.last() {
            Some((last, _)) if slice.more => {
                self.turn = Some((partition, last.successor(), earliest));
                ctx.kernel.arm(ctx.kernel.now.mono.plus(TURN_MIN), Timer::Sweep);
            }
            _ => {
                self.known.insert(partition, earliest);
                self.last = Some(partition);
                if self.swept > 0 {
                    ctx.kernel.event(Event::Swept { records: self.swept });
                }
                ctx.kernel.arm(ctx.kernel.now.mono.plus(self.turn_length(ctx)), Timer::Sweep);
            }
        }
    }

    /// A record could not be had: its partition has another turn.
    pub(crate) fn refused(&mut self, ctx: &mut Ctx<'_>, partition: PartitionId) {
        self.known.insert(partition, Some(ctx.kernel.now.wall));
    }

    /// The record is in memory: sweep it.
    pub(crate) fn record(&mut self, ctx: &mut Ctx<'_>, key: &StorageKey, stored: Option<&Stored>) {
        let Some(stored) = stored else { return };
        if stored.cell.register().is_some() {
            // One owner has a majority delete it (rule C8).
            let first = ctx.view.owners(key.partition()).into_iter().find(|&node| ctx.reachable(node));
            if first == Some(ctx.me()) && stored.cell.expires().is_some_and(|at| at <= ctx.kernel.now.wall) {
                ctx.kernel.note_apart(key);
            }
        }
        let mut cell = stored.cell.clone();
        if cell.sweep(ctx.kernel.now.wall) {
            self.swept += 1;
            ctx.kernel.put(key, Some(Stored { own: stored.own, cell: cell.clone() }));
        }
        // The clock may have gone back since the partition was looked at: then this is still to come.
        if let Some(expires) = cell.expires() {
            self.note(key.partition(), expires);
        }
    }

    /// The next owned partition, in turn, that may hold something expired.
    fn next_turn(&self, ctx: &Ctx<'_>) -> Option<PartitionId> {
        let layout = ctx.view.layout()?;
        let is_due = |partition: &PartitionId| {
            ctx.view.owns(*partition)
                && match self.known.get(partition) {
                    None => true,
                    Some(earliest) => earliest.is_some_and(|earliest| earliest <= ctx.kernel.now.wall),
                }
        };
        let last = self.last;
        let behind = layout.partition_ids().filter(|&partition| last.is_none_or(|last| partition > last)).find(is_due);
        behind.or_else(|| layout.partition_ids().find(is_due))
    }

    /// How long a turn lasts, so that every partition has had one within `sweep_every`.
    fn turn_length(&self, ctx: &Ctx<'_>) -> Duration {
        let all = ctx.view.layout().map_or(1, |layout| layout.partition_count());
        let partitions = all.div_ceil(u32::from(ctx.view.config.loops.max(1)));
        (ctx.view.config.sweep_every / partitions.max(1)).max(TURN_MIN)
    }
}
