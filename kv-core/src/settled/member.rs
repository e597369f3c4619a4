//! What every member answers to the steps of a round.

use std::time::Duration;

use super::{Settling, is_stable, limit_at};
use crate::message::{CallId, Hindrance, SettleStep};
use crate::residue::Residues;
use crate::rule::Rule;
use crate::types::{Epoch, Monotonic, NodeId, PartitionId};
use crate::version::Hlc;
use crate::view::meta;
use crate::wiring::{AfterDurable, Ctx};

/// For how many deadlines of requests an owner holds: far longer than a round takes, and longer than anything can be under way.
const HOLD_DEADLINES: u32 = 24;

/// What follows for the view, at once.
#[derive(Debug)]
pub(crate) enum Change {
    /// Nothing at or below `until` is taken that is lacking, but from other owners.
    Hold { partition: PartitionId, until: Hlc, ends: Monotonic },
    /// A hold came to nothing.
    Release { partition: PartitionId, until: Hlc },
}

impl Settling {
    /// An owner, this node perhaps, asks for a step. The answer is sent when everything that it is about is durable.
    pub(crate) fn asked(
        &mut self,
        ctx: &mut Ctx<'_>,
        residues: &Residues,
        from: NodeId,
        (round, step, until): (CallId, SettleStep, Hlc),
        partitions: &[(PartitionId, Epoch)],
    ) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut answers = Vec::new();
        let ends = ctx.kernel.now.mono.plus(ctx.view.config.deadline * HOLD_DEADLINES);
        for &(partition, epoch) in partitions {
            if !ctx.view.serves(partition) {
                continue;
            }
            let answer = match step {
                SettleStep::Confirm => may_confirm(ctx, residues, partition, epoch, until),
                SettleStep::Hold | SettleStep::Adopt => may_adopt(ctx, partition, epoch, until),
                SettleStep::Release => Ok(()),
            };
            if answer.is_ok() {
                match step {
                    SettleStep::Confirm => self.promise(ctx, until),
                    SettleStep::Hold if ctx.view.keep(Rule::HoldWhileSettling) => {
                        changes.push(Change::Hold { partition, until, ends });
                    }
                    SettleStep::Hold => {}
                    SettleStep::Release => changes.push(Change::Release { partition, until }),
                    SettleStep::Adopt => self.adopt(ctx, partition, until),
                }
            }
            answers.push((partition, answer));
        }
        if step != SettleStep::Release {
            // What was taken before is seen by every comparison that is made after the answer.
            ctx.kernel.after_issued(AfterDurable::Settled { to: from, round, step, answers });
        }
        changes
    }

    /// Nothing is written at or below `until` any more, after a restart neither.
    fn promise(&mut self, ctx: &mut Ctx<'_>, until: Hlc) {
        if until > self.confirmed && ctx.view.keep(Rule::WriteAboveConfirmed) {
            self.confirmed = until;
            ctx.kernel.clock.raise(until);
            ctx.kernel.persist_meta(meta::confirmed(ctx.view.place.index), meta::encode(&until));
        }
    }

    /// Everything in a partition at or below `until` has settled.
    pub(super) fn adopt(&mut self, ctx: &mut Ctx<'_>, partition: PartitionId, until: Hlc) {
        if ctx.view.settled_until(partition).is_some_and(|known| known >= until) {
            return;
        }
        let Some(since) = ctx.view.since(partition) else { return };
        let settled: meta::Settled = (until, since);
        // Two rounds may end at once: the lower watermark must not take the place of the higher one.
        if self.adopting.get(&partition).is_some_and(|other| other.1 == since && other.0 >= until) {
            return;
        }
        self.adopting.insert(partition, settled);
        let durable = if ctx.view.keep(Rule::WatermarkBeforeCollection) {
            ctx.kernel.persist_meta(meta::settled(partition), meta::encode(&settled))
        } else {
            ctx.kernel.durable()
        };
        ctx.kernel.after(durable, AfterDurable::Watermark { partition, settled });
    }
}

/// Whether nothing of a partition is held here beside a complete copy of an owner.
fn may_confirm(
    ctx: &Ctx<'_>,
    residues: &Residues,
    partition: PartitionId,
    epoch: Epoch,
    until: Hlc,
) -> Result<(), Hindrance> {
    may_settle(ctx, partition, epoch)?;
    is_past(until, limit_at(ctx.view, ctx.kernel.now.wall))?;
    if ctx.view.owns(partition) {
        if !ctx.view.is_synced(partition) {
            return Err(Hindrance::Incomplete);
        }
    } else if residues.may_hold(partition) && ctx.view.keep(Rule::ResidueHinders) {
        return Err(Hindrance::Residue);
    }
    if ctx.kernel.hints_of(partition) > 0 && ctx.view.keep(Rule::HintsHinder) {
        return Err(Hindrance::Hints);
    }
    Ok(())
}

/// Whether this node is an owner that takes part.
fn may_adopt(ctx: &Ctx<'_>, partition: PartitionId, epoch: Epoch, until: Hlc) -> Result<(), Hindrance> {
    may_settle(ctx, partition, epoch)?;
    // It was old when it was confirmed. A watermark that lies ahead would keep writes of the present out.
    is_past(until, Hlc::at(ctx.kernel.now.wall))?;
    if !ctx.view.owns(partition) {
        return Err(Hindrance::NotOwner);
    }
    if !ctx.view.is_synced(partition) {
        return Err(Hindrance::Incomplete);
    }
    Ok(())
}

/// Whether a watermark is not ahead of what this node's clock allows.
fn is_past(until: Hlc, limit: Hlc) -> Result<(), Hindrance> {
    if until <= limit {
        return Ok(());
    }
    let behind = until.wall().0.saturating_sub(limit.wall().0).saturating_add(1);
    Err(Hindrance::Clock { behind: Duration::from_micros(behind) })
}

/// Whether this node acts on the entry for which a round was begun.
fn may_settle(ctx: &Ctx<'_>, partition: PartitionId, epoch: Epoch) -> Result<(), Hindrance> {
    let same = ctx.view.entry(partition).is_some_and(|entry| entry.changed == epoch && is_stable(entry));
    if same || !ctx.view.keep(Rule::SettleInOneEpoch) { Ok(()) } else { Err(Hindrance::Epoch) }
}
