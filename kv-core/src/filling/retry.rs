//! Copies that wait begin again, because an operator wants them to.

use super::progress::why_no_source;
use super::{Copy, Filling};
use crate::event::Event;
use crate::exchange::Exchanges;
use crate::message::Purpose;
use crate::types::{NodeId, PartitionId};
use crate::wiring::Ctx;

impl Filling {
    /// Lets the copies of partitions that wait for a source begin again at once, where possible with another source. What
    /// they have so far stays. Those that make progress, and those that wait in good order, are left alone.
    pub(crate) fn retry(&mut self, ctx: &mut Ctx<'_>, exchanges: &mut Exchanges, partitions: &[PartitionId]) {
        for &partition in partitions {
            if let Some(why) = self.why_copy_waits(ctx, exchanges, partition) {
                self.retry_copy(ctx, exchanges, partition, why);
            }
        }
    }

    /// Why a copy makes no progress, if another try may help.
    fn why_copy_waits(&self, ctx: &Ctx<'_>, exchanges: &Exchanges, partition: PartitionId) -> Option<String> {
        let copy = self.copies.get(&partition).filter(|copy| !copy.ending)?;
        if copy.purpose == Purpose::Copy && ctx.view.transfers.paused {
            return None;
        }
        if let Some((id, _)) = copy.exchange {
            let exchange = exchanges.get(id)?;
            return if exchange.is_held_back() {
                None
            } else {
                exchange.waiting_for(ctx.kernel.now.mono).map(|wait| wait.to_string())
            };
        }
        // One that has asked nobody yet waits for its turn, unless nobody can be asked.
        let entry = ctx.view.entry(partition)?;
        let covered = |node: &NodeId| copy.progress.covered.iter().any(|source| source.node == *node);
        let mut open = Self::sources(ctx.view, entry, copy.purpose).into_iter().filter(|node| !covered(node));
        let nobody = !open.any(|node| ctx.can_be_asked(node, copy.purpose));
        if copy.failed.is_empty() && !nobody {
            None
        } else {
            why_no_source(ctx.view, &ctx.kernel.peers, partition, copy)
        }
    }

    fn retry_copy(&mut self, ctx: &mut Ctx<'_>, exchanges: &mut Exchanges, partition: PartitionId, why: String) {
        let now = ctx.kernel.now.mono;
        let Some(copy) = self.copies.get_mut(&partition) else { return };
        copy.tries = copy.tries.saturating_add(1);
        let stalled = copy.exchange.take();
        if let Some((_, node)) = stalled {
            copy.failed.insert(node, (why.clone(), now));
            copy.give_up(node);
        } else {
            let mut failed: Vec<_> =
                copy.failed.iter().map(|(&node, failed)| (failed.1, copy.turn_of(node), node)).collect();
            failed.sort_unstable();
            failed.into_iter().for_each(|(_, _, node)| copy.give_up(node));
        }
        for failed in copy.failed.values_mut() {
            failed.1 = now;
        }
        ctx.kernel.event(Event::CopyRetried { partition, why });
        if let Some((id, _)) = stalled {
            exchanges.cancel(ctx, id);
        }
        self.step(ctx, exchanges, partition);
    }
}

impl Copy {
    /// This source is asked behind all others from now on.
    fn give_up(&mut self, node: NodeId) {
        self.given_up.retain(|given_up| *given_up != node);
        self.given_up.push(node);
    }

    /// How long ago a source was given up: those that were not come first.
    pub(super) fn turn_of(&self, node: NodeId) -> usize {
        self.given_up.iter().position(|given_up| *given_up == node).map_or(0, |at| at + 1)
    }
}
