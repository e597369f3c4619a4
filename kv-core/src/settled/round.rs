//! The owner that begins a round, for a batch of its partitions, and takes it from step to step.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{Due, OwnStep, Settling, earlier, is_stable, limit_at};
use crate::exchange::{Ended, Exchanges};
use crate::message::{CallId, HinderedBy, Hindrance, Message, Purpose, SettleStep};
use crate::ring::Entry;
use crate::rule::Rule;
use crate::types::{Epoch, Monotonic, NodeId, PartitionId};
use crate::version::Hlc;
use crate::wiring::{Ctx, ExchangeId, Timer};

/// Partitions of one round.
const BATCH_MAX: usize = 256;

/// Owners that are compared at once.
const COMPARISONS_MAX: usize = 4;

/// For how many deadlines of requests a round goes on: half as long as owners hold, so that none has let go when the last one adopts.
const ROUND_DEADLINES: u32 = 12;

/// For how many looks another owner leaves a round to those that precede it in the preference list.
const LOOKS_BEFORE_NEXT: u32 = 3;

/// A round under way.
#[derive(Debug)]
pub(super) struct Round {
    id: CallId,
    until: Hlc,
    stage: Stage,
    /// When the round began, and when it must have ended.
    ends: Monotonic,
    parts: BTreeMap<PartitionId, Part>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Confirm,
    Hold,
    Compare,
    Adopt,
}

impl Stage {
    fn step(self) -> Option<SettleStep> {
        match self {
            Self::Confirm => Some(SettleStep::Confirm),
            Self::Hold => Some(SettleStep::Hold),
            Self::Compare => None,
            Self::Adopt => Some(SettleStep::Adopt),
        }
    }
}

/// One partition of a round.
#[derive(Debug)]
struct Part {
    epoch: Epoch,
    owners: Vec<NodeId>,
    /// Who has not answered the present step.
    waits: BTreeSet<NodeId>,
    /// Owners that are still to be compared with this one, and the comparison under way.
    pairs: VecDeque<NodeId>,
    comparison: Option<ExchangeId>,
}

impl Round {
    /// Who is asked for the present step, and about which partitions.
    fn questions(&self) -> BTreeMap<NodeId, Vec<(PartitionId, Epoch)>> {
        let mut questions: BTreeMap<NodeId, Vec<(PartitionId, Epoch)>> = BTreeMap::new();
        for (&partition, part) in &self.parts {
            for &node in &part.waits {
                questions.entry(node).or_default().push((partition, part.epoch));
            }
        }
        questions
    }
}

impl Settling {
    /// Begins a round for partitions of which something is old enough, unless a member is down.
    pub(super) fn begin(&mut self, ctx: &mut Ctx<'_>) {
        let due: Vec<PartitionId> = self.due.keys().copied().collect();
        let (now, mine) = (ctx.kernel.now.mono, limit_at(ctx.view, ctx.kernel.now.wall));
        let Some(layout) = ctx.view.layout().cloned() else { return };
        let me = ctx.me();
        let members: Vec<NodeId> = layout.members.keys().copied().filter(|&node| node != me).collect();
        // Clocks that were behind would refuse a watermark that is young enough for this one.
        let lag = members.iter().filter_map(|node| self.lags.get(node)).max().copied().unwrap_or_default();
        let until = Hlc::at(earlier(mine.wall(), lag));
        let mut parts = BTreeMap::new();
        for partition in due {
            if !ctx.view.owns(partition) {
                self.due.remove(&partition);
                continue;
            }
            if self.collect_due(ctx, partition) || parts.len() >= BATCH_MAX {
                continue;
            }
            let Some(entry) = ctx.view.entry(partition) else { continue };
            if let Some(part) = self.part_of(ctx, partition, entry, (until, mine), now) {
                parts.insert(partition, part);
            }
        }
        if parts.is_empty() {
            return;
        }
        let down = members.iter().copied().find(|&node| !ctx.is_up(node));
        let asked: BTreeSet<NodeId> = if ctx.view.keep(Rule::EveryMemberConfirms) {
            if let Some(node) = down {
                return self.hinder(ctx, node, HinderedBy::Down);
            }
            members.into_iter().chain([me]).collect()
        } else {
            members.into_iter().filter(|&node| ctx.is_up(node)).chain([me]).collect()
        };
        for part in parts.values_mut() {
            part.waits.clone_from(&asked);
        }
        let ends = now.plus(ctx.view.config.deadline * ROUND_DEADLINES);
        self.round = Some(Round { id: ctx.kernel.next_call(), until, stage: Stage::Confirm, ends, parts });
        self.ask(ctx);
    }

    /// The part that a partition has in the next round, if it is due and this owner's to begin.
    fn part_of(
        &mut self,
        ctx: &Ctx<'_>,
        partition: PartitionId,
        entry: &Entry,
        (until, mine): (Hlc, Hlc),
        now: Monotonic,
    ) -> Option<Part> {
        let due: &mut Due = self.due.get_mut(&partition)?;
        let settles = is_stable(entry) && ctx.view.is_synced(partition);
        if !settles || due.lowest() > mine {
            return None;
        }
        let since = *due.since.get_or_insert(now);
        let place = entry.owners.iter().position(|owner| owner.node == ctx.me())?;
        let patience = ctx.view.config.settle_every * LOOKS_BEFORE_NEXT * u32::try_from(place).unwrap_or(u32::MAX);
        if now < since.plus(patience) || now < due.again || due.lowest() > until {
            return None;
        }
        let owners = entry.owners.iter().map(|owner| owner.node).collect();
        let (waits, pairs) = (BTreeSet::new(), VecDeque::new());
        Some(Part { epoch: entry.changed, owners, waits, pairs, comparison: None })
    }

    /// Asks for the present step whoever has not answered it.
    fn ask(&mut self, ctx: &mut Ctx<'_>) {
        let Some(round) = &self.round else { return };
        let Some(step) = round.stage.step() else { return };
        let (id, until) = (round.id, round.until);
        for (node, partitions) in round.questions() {
            if node == ctx.me() {
                self.own.push_back(OwnStep { round: id, step, until, partitions });
            } else {
                ctx.kernel.send(node, Message::Settle { round: id, step, until, partitions });
            }
        }
        ctx.kernel.arm(ctx.kernel.now.mono.plus(ctx.view.config.retry_after), Timer::Settle);
    }

    /// The round under way waits: what may have been lost is asked again, and what takes too long is left for another round.
    pub(super) fn remind(&mut self, ctx: &mut Ctx<'_>, exchanges: &mut Exchanges) {
        let Some(round) = &self.round else { return };
        if ctx.kernel.now.mono < round.ends {
            return self.ask(ctx);
        }
        let waiting: Vec<(PartitionId, NodeId)> = round
            .parts
            .iter()
            .filter_map(|(&partition, part)| Some((partition, part.waits.first().or(part.pairs.front()).copied()?)))
            .collect();
        if round.stage == Stage::Adopt {
            // Those that have not said so see for themselves that they lag behind.
            let late: Vec<PartitionId> = waiting.into_iter().map(|(partition, _)| partition).collect();
            return late.into_iter().for_each(|partition| self.settled(ctx, partition));
        }
        let me = ctx.me();
        for (partition, node) in waiting {
            let by = if node == me { HinderedBy::Disk } else { HinderedBy::Silence };
            self.give_up(ctx, exchanges, partition, Some((node, by)));
        }
        self.go_on(ctx, exchanges);
    }

    /// A member answers a step.
    pub(crate) fn answered(
        &mut self,
        ctx: &mut Ctx<'_>,
        exchanges: &mut Exchanges,
        from: NodeId,
        (id, step): (CallId, SettleStep),
        answers: Vec<(PartitionId, Result<(), Hindrance>)>,
    ) {
        for (partition, answer) in answers {
            let Some(round) = self.round.as_mut().filter(|round| round.id == id) else { return };
            if round.stage.step() != Some(step) {
                return;
            }
            let Some(part) = round.parts.get_mut(&partition) else { continue };
            match answer {
                Ok(()) => {
                    part.waits.remove(&from);
                }
                Err(hindrance) => {
                    if let Hindrance::Clock { behind } = hindrance {
                        let lag = self.lags.entry(from).or_default();
                        *lag += behind;
                    }
                    self.give_up(ctx, exchanges, partition, Some((from, HinderedBy::Refusal(hindrance))));
                }
            }
        }
        self.go_on(ctx, exchanges);
    }

    /// Takes the next step with all partitions at once, when every one is ready for it.
    fn go_on(&mut self, ctx: &mut Ctx<'_>, exchanges: &mut Exchanges) {
        loop {
            let Some(round) = &mut self.round else { return };
            if round.parts.is_empty() {
                return self.end(ctx);
            }
            match round.stage {
                Stage::Compare => {
                    if round.parts.values().any(|part| part.comparison.is_some() || !part.pairs.is_empty()) {
                        return self.compare(ctx, exchanges);
                    }
                    round.stage = Stage::Adopt;
                    round.parts.values_mut().for_each(|part| part.waits = part.owners.iter().copied().collect());
                    return self.ask(ctx);
                }
                Stage::Adopt => {
                    let done = round.parts.iter().filter(|(_, part)| part.waits.is_empty());
                    let done: Vec<PartitionId> = done.map(|(&partition, _)| partition).collect();
                    done.iter().for_each(|&partition| self.settled(ctx, partition));
                    return;
                }
                Stage::Confirm | Stage::Hold if round.parts.values().any(|part| !part.waits.is_empty()) => return,
                Stage::Confirm => {
                    round.stage = Stage::Hold;
                    round.parts.values_mut().for_each(|part| part.waits = part.owners.iter().copied().collect());
                    return self.ask(ctx);
                }
                Stage::Hold => {
                    round.stage = Stage::Compare;
                    let (me, compares) = (ctx.me(), ctx.view.keep(Rule::CompareBeforeSettled));
                    for part in round.parts.values_mut().filter(|_| compares) {
                        let others = || part.owners.iter().copied().filter(|&node| node != me);
                        // What the last one held reaches the first ones the second time.
                        let again = others().count().saturating_sub(1);
                        part.pairs = others().chain(others().take(again)).collect();
                    }
                }
            }
        }
    }

    /// Compares this owner with others, a few at once.
    fn compare(&mut self, ctx: &mut Ctx<'_>, exchanges: &mut Exchanges) {
        let Some(round) = &mut self.round else { return };
        let mut running = round.parts.values().filter(|part| part.comparison.is_some()).count();
        for (&partition, part) in &mut round.parts {
            if running >= COMPARISONS_MAX {
                return;
            }
            if let (None, Some(&peer)) = (part.comparison, part.pairs.front()) {
                part.comparison = Some(exchanges.start(ctx, partition, peer, Purpose::Settle, true, None));
                running += 1;
            }
        }
    }

    /// Two owners hold the same.
    pub(crate) fn compared(&mut self, ctx: &mut Ctx<'_>, exchanges: &mut Exchanges, ended: &Ended) {
        let part = self.round.as_mut().and_then(|round| round.parts.get_mut(&ended.partition));
        if let Some(part) = part.filter(|part| part.comparison == Some(ended.id)) {
            part.comparison = None;
            part.pairs.pop_front();
            self.go_on(ctx, exchanges);
        }
    }

    /// Two owners cannot be compared.
    pub(crate) fn not_compared(&mut self, ctx: &mut Ctx<'_>, exchanges: &mut Exchanges, ended: &Ended, why: String) {
        let part = self.round.as_ref().and_then(|round| round.parts.get(&ended.partition));
        if part.is_some_and(|part| part.comparison == Some(ended.id)) {
            self.give_up(ctx, exchanges, ended.partition, Some((ended.peer, HinderedBy::Comparison { why })));
            self.go_on(ctx, exchanges);
        }
    }

    /// Leaves a partition for another round.
    fn give_up(
        &mut self,
        ctx: &mut Ctx<'_>,
        exchanges: &mut Exchanges,
        partition: PartitionId,
        by: Option<(NodeId, HinderedBy)>,
    ) {
        let Some(round) = &mut self.round else { return };
        let Some(part) = round.parts.remove(&partition) else { return };
        let (id, until) = (round.id, round.until);
        if let Some(comparison) = part.comparison {
            exchanges.cancel(ctx, comparison);
        }
        if matches!(round.stage, Stage::Hold | Stage::Compare) {
            let (step, partitions) = (SettleStep::Release, vec![(partition, part.epoch)]);
            for &node in &part.owners {
                if node == ctx.me() {
                    self.own.push_back(OwnStep { round: id, step, until, partitions: partitions.clone() });
                } else {
                    ctx.kernel.send(node, Message::Settle { round: id, step, until, partitions: partitions.clone() });
                }
            }
        }
        if let Some(due) = self.due.get_mut(&partition) {
            due.again = ctx.kernel.now.mono.plus(ctx.view.config.settle_every);
        }
        if let Some((node, by)) = by {
            self.hinder(ctx, node, by);
        }
    }

    /// Every owner has the watermark, or sees for itself that it lags behind.
    fn settled(&mut self, ctx: &mut Ctx<'_>, partition: PartitionId) {
        let Some(round) = &mut self.round else { return };
        if round.parts.remove(&partition).is_some() {
            self.hindered = None;
            if let Some(due) = self.due.get_mut(&partition) {
                due.since = None;
            }
        }
        if self.round.as_ref().is_some_and(|round| round.parts.is_empty()) {
            self.end(ctx);
        }
    }

    /// The round has ended; the next one may begin at once.
    fn end(&mut self, ctx: &mut Ctx<'_>) {
        self.round = None;
        if !self.due.is_empty() {
            // Not in the same step: what has been adopted is to be collected first.
            let next = ctx.view.config.settle_every.min(ctx.view.config.retry_after);
            ctx.kernel.arm(ctx.kernel.now.mono.plus(next), Timer::Settle);
        }
    }

    /// The session with a member has ended: what it has confirmed does not count any more.
    pub(crate) fn peer_down(&mut self, ctx: &mut Ctx<'_>, exchanges: &mut Exchanges, node: NodeId) {
        self.lags.remove(&node);
        let Some(round) = &mut self.round else { return };
        if round.stage == Stage::Adopt {
            round.parts.values_mut().for_each(|part| {
                part.waits.remove(&node);
            });
        } else {
            for partition in round.parts.keys().copied().collect::<Vec<_>>() {
                self.give_up(ctx, exchanges, partition, Some((node, HinderedBy::Down)));
            }
        }
        self.go_on(ctx, exchanges);
    }

    /// The layout has changed: nothing that was confirmed by the last one counts.
    pub(crate) fn restart(&mut self, ctx: &mut Ctx<'_>, exchanges: &mut Exchanges) {
        let Some(round) = &self.round else { return };
        for partition in round.parts.keys().copied().collect::<Vec<_>>() {
            self.give_up(ctx, exchanges, partition, None);
        }
        self.end(ctx);
    }
}
