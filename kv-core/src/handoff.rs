//! Hinted handoff: hints and missed-write markers are delivered to all current owners as soon as these can be reached (rule A5).
//!
//! A pass walks through the hint space and the space of missed-write markers in slices. A hint is removed only when every current owner has
//! durably confirmed a record that dominates it, and only if it has not changed since it was sent.

use crate::cell::Cell;
use crate::event::Event;
use crate::replication::{Goal, Replications, Target};
use crate::rule::Rule;
use crate::storage::{Slice, SliceRequest, Space, StorageKey, Stored};
use crate::types::{Epoch, NodeId};
use crate::wiring::{Applied, Ctx, ReadFor, Task, Timer};

/// The walk through what is to be delivered.
#[derive(Debug, Default)]
pub(crate) struct Handoff {
    /// Where the next slice starts, while a pass is under way.
    cursor: Option<StorageKey>,
    /// Whether the current slice was the last.
    last: bool,
    /// Whether the current slice is still being read.
    reading: bool,
    /// Entries of the current slice that are not settled.
    in_flight: usize,
    /// Entries of this pass that every owner confirmed.
    delivered: u64,
    /// Whether something happened since the pass began that deserves another one at once.
    again: bool,
    /// Whether a timer for the next pass is set.
    armed: bool,
}

impl Handoff {
    /// Looks through all hints and missed-write markers, unless that is being done.
    pub(crate) fn pass(&mut self, ctx: &mut Ctx<'_>) {
        self.armed = false;
        if self.cursor.is_some() {
            self.again = true;
            return;
        }
        if waiting(ctx) == 0 {
            return;
        }
        self.cursor = Some(StorageKey::space_start(Space::Hint));
        self.delivered = 0;
        self.slice(ctx);
    }

    fn arm(&mut self, ctx: &mut Ctx<'_>) {
        if !self.armed && self.cursor.is_none() {
            self.armed = true;
            let at = ctx.kernel.now.mono.plus(ctx.view.config.handoff_every);
            ctx.kernel.arm(at, Timer::Handoff);
        }
    }

    /// A hint or missed-write marker may have come: makes sure that a pass follows.
    pub(crate) fn note_held(&mut self, ctx: &mut Ctx<'_>) {
        if ctx.kernel.take_held_changed() {
            self.arm(ctx);
        }
    }

    fn slice(&mut self, ctx: &mut Ctx<'_>) {
        let Some(from) = self.cursor.clone() else { return };
        let request = SliceRequest {
            from,
            until: StorageKey::space_end(Space::Missed),
            entries_max: ctx.view.config.handoffs_max,
            bytes_max: ctx.view.config.slice_bytes_max,
        };
        self.reading = true;
        ctx.kernel.read_slice(request, ReadFor::HandOff);
    }

    pub(crate) fn read(&mut self, ctx: &mut Ctx<'_>, slice: &Slice) {
        self.reading = false;
        self.last = !slice.more;
        self.cursor = slice.entries.last().map(|entry| entry.0.successor()).or(self.cursor.take());
        // Counted first: an entry may settle before the next is looked at.
        let mine: Vec<StorageKey> = slice
            .entries
            .iter()
            .map(|entry| entry.0.clone())
            .filter(|key| ctx.view.serves(key.partition()) && self.can_hand_off(ctx, key))
            .filter(|key| !ctx.view.is_dropped(key.keyspace()))
            .collect();
        self.in_flight = mine.len();
        for key in mine {
            let space = key.space();
            let held = if space == Space::Missed { key.in_space(Space::Owned) } else { key };
            ctx.kernel.with_key(held, Task::HandOff { space });
        }
        self.go_on(ctx);
    }

    /// The slice could not be read: the next pass tries again.
    pub(crate) fn unreadable(&mut self, ctx: &mut Ctx<'_>) {
        self.reading = false;
        self.last = true;
        self.go_on(ctx);
    }

    /// Whether any owner but this node can be reached.
    fn can_hand_off(&self, ctx: &Ctx<'_>, key: &StorageKey) -> bool {
        ctx.view.entry(key.partition()).is_some_and(|entry| {
            let others = || entry.nodes().filter(|&node| node != ctx.me());
            others().next().is_none() || others().any(|node| ctx.is_up(node))
        })
    }

    /// The record is in memory: send it to every owner.
    pub(crate) fn hand_off(
        &mut self,
        ctx: &mut Ctx<'_>,
        replications: &mut Replications,
        key: &StorageKey,
        space: Space,
        stored: Option<&Stored>,
    ) {
        let Some(stored) = stored else {
            // A missed-write marker without a record has nothing to deliver; a hint that is gone has been delivered.
            if space == Space::Missed {
                ctx.kernel.with_key(key.in_space(Space::Missed), Task::Unmark);
            }
            self.settled(ctx, false);
            return;
        };
        let cell = stored.cell.clone();
        if space == Space::Hint && ctx.view.owns(key.partition()) {
            // This node has become an owner itself: its own copy first.
            ctx.kernel.with_key(key.in_space(Space::Owned), Task::Apply { cell, applied: Applied::OwnHint });
        } else {
            self.hand_off_to_others(ctx, replications, key, space, cell, None);
        }
    }

    /// Sends a record to every other owner. `own`: the epoch at which this node's own copy of it was made.
    pub(crate) fn hand_off_to_others(
        &mut self,
        ctx: &mut Ctx<'_>,
        replications: &mut Replications,
        key: &StorageKey,
        space: Space,
        cell: Cell,
        own: Option<Epoch>,
    ) {
        let me = ctx.me();
        let owners: Vec<NodeId> = ctx.view.owners(key.partition());
        let targets = owners.into_iter().filter(|&owner| owner != me).map(Target::owner).collect();
        let digest = cell.digest();
        replications.start(ctx, key.clone(), cell, targets, Goal::HandOff { space, digest, own });
    }

    /// The record could not be read.
    pub(crate) fn skipped(&mut self, ctx: &mut Ctx<'_>) {
        self.settled(ctx, false);
    }

    /// Whether this node needs no copy of a hint among those that it owns, or has one. It may have become an owner after
    /// the hint was sent to the others: then nobody has told it yet.
    fn has_own_copy(&self, ctx: &Ctx<'_>, key: &StorageKey, space: Space, own: Option<Epoch>) -> bool {
        let mine = ctx.view.entry(key.partition()).and_then(|entry| entry.owner(ctx.me()));
        space != Space::Hint || mine.is_none_or(|owner| own.is_some_and(|made| owner.since <= made))
    }

    /// Everybody has confirmed the record, or was given up.
    pub(crate) fn handed_off(
        &mut self,
        ctx: &mut Ctx<'_>,
        key: &StorageKey,
        (space, digest, own): (Space, u64, Option<Epoch>),
        confirmed: bool,
    ) {
        let confirmed = confirmed && self.has_own_copy(ctx, key, space, own);
        if confirmed || !ctx.view.keep(Rule::KeepHintUntilConfirmed) {
            let task = match space {
                Space::Missed => Task::UnmarkUnchanged { digest },
                Space::Hint | Space::Owned => Task::RemoveHint { digest },
            };
            ctx.kernel.with_key(key.clone(), task);
        }
        self.settled(ctx, confirmed);
    }

    fn settled(&mut self, ctx: &mut Ctx<'_>, delivered: bool) {
        self.delivered += u64::from(delivered);
        self.in_flight = self.in_flight.saturating_sub(1);
        self.go_on(ctx);
    }

    fn go_on(&mut self, ctx: &mut Ctx<'_>) {
        if self.in_flight > 0 || self.reading || self.cursor.is_none() {
            return;
        }
        if !self.last {
            self.slice(ctx);
            return;
        }
        self.cursor = None;
        if self.delivered > 0 {
            ctx.kernel.event(Event::HandedOff { records: self.delivered });
        }
        if std::mem::take(&mut self.again) {
            self.armed = true;
            ctx.kernel.arm(ctx.kernel.now.mono, Timer::Handoff);
        } else if waiting(ctx) > 0 {
            self.arm(ctx);
        }
    }
}

/// How many records wait to be delivered.
fn waiting(ctx: &Ctx<'_>) -> u64 {
    let held = ctx.kernel.held();
    held.hints + held.missed_writes
}
