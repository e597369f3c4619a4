//! The progress of an operation: a pure function of its plan, the agreed state and the reports of the receiving nodes.
//!
//! Reports may arrive late, twice or in any order: the part that is done never shrinks and never passes the whole, and
//! only the last cut-over completes it. A cancel is the exception: it undoes copies that were not cut over, and from then
//! on only cut-over moves count.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use kv_proto::v1;

/// The part of a move that copying makes; verification and the cut-over make the rest.
const COPIED: f64 = 0.9;
const VERIFYING: f64 = 0.95;
const COVERED: f64 = 0.99;

/// The window over which rates are computed, in microseconds of the receiving node's clock.
const WINDOW_US: u64 = 10_000_000;

/// The most samples that a window holds.
const SAMPLES_MAX: usize = 64;

/// One replica that moves: its partition and who gets it.
pub type MoveId = (u32, u64);

/// How a move is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "named as on the screen")]
pub enum MoveState {
    Stalled,
    Copying,
    Verifying,
    Covered,
    Waiting,
    Moved,
    /// The operation was cancelled before the cut-over.
    Undone,
}

impl MoveState {
    /// The word of it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Stalled => "stalled",
            Self::Copying => "copying",
            Self::Verifying => "verifying",
            Self::Covered => "covered",
            Self::Waiting => "waiting",
            Self::Moved => "moved",
            Self::Undone => "undone",
        }
    }
}

/// Why a move makes no progress.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Wait {
    /// It does, or no reason was given.
    #[default]
    None,
    /// Copying is paused.
    Paused,
    /// The limit on copying holds it back.
    Limited,
    /// Its receiver no longer reports.
    ReceiverAway,
    /// Something else, in the words of its receiver.
    Other(String),
}

impl Wait {
    fn of(transfer: &v1::Transfer) -> Self {
        match transfer.wait() {
            v1::TransferWait::Paused => Self::Paused,
            v1::TransferWait::Limited => Self::Limited,
            _ if transfer.waiting_for.is_empty() => Self::None,
            _ => Self::Other(transfer.waiting_for.clone()),
        }
    }
}

/// One replica that moves.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Whose place is taken; 0: the copy is created.
    pub from: u64,
    /// The node that it is read from: as the receiver reports, else as planned.
    pub source: u64,
    /// How it is.
    pub state: MoveState,
    /// The part that is done, 0 to 1. Never shrinks.
    pub share: f64,
    /// Keys and bytes copied, each the largest value ever reported.
    pub copied: (u64, u64),
    /// Keys and bytes to copy; 0: not known.
    pub total: (u64, u64),
    /// How often it was begun.
    pub tries: u32,
    /// Why it makes no progress.
    pub wait: Wait,
    /// The old owners that prove the copy complete; empty: no proof yet.
    pub covered_by: Vec<u64>,
    /// Bytes a second, smoothed; 0: nothing arrives.
    pub rate: f64,
    /// Bytes that the running transfer reported last, for rates.
    reported_bytes: u64,
}

impl Step {
    /// Bytes that are still to be copied, as far as known.
    #[must_use]
    pub fn remaining(&self) -> u64 {
        match self.state {
            MoveState::Moved | MoveState::Covered | MoveState::Verifying | MoveState::Undone => 0,
            _ => self.total.1.saturating_sub(self.copied.1),
        }
    }

    /// Why it makes no progress, in words; empty: it does, or no reason was given.
    #[must_use]
    pub fn waiting_for(&self) -> &str {
        match &self.wait {
            Wait::None => "",
            Wait::Paused => "paused",
            Wait::Limited => "the limit of bytes per second",
            Wait::ReceiverAway => "its receiver is not in reach",
            Wait::Other(reason) => reason,
        }
    }

    fn reach(&mut self, share: f64) {
        self.share = self.share.max(share.clamp(0.0, 1.0));
    }
}

/// After so many reports in a row in which others call a receiver unreachable, it counts as unreachable.
const MISSED_MAX: u32 = 3;

/// The states in which a node does not report what arrives.
const OUT_OF_REACH: [v1::MemberState; 2] = [v1::MemberState::Suspect, v1::MemberState::Down];

/// What travels from one node to another.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Link {
    /// Grows whenever bytes have arrived. Marks on the screen step by it.
    pub ticks: u64,
    /// Bytes that have arrived.
    pub bytes: u64,
    /// Samples: the receiver's clock, and the bytes then.
    samples: VecDeque<(u64, u64)>,
}

impl Link {
    /// Bytes a second over the last seconds; 0: nothing arrives.
    #[must_use]
    pub fn rate(&self) -> f64 {
        let (Some(first), Some(last)) = (self.samples.front(), self.samples.back()) else { return 0.0 };
        let (passed, bytes) = (last.0.saturating_sub(first.0), last.1.saturating_sub(first.1));
        if passed == 0 { 0.0 } else { rate_of(bytes, passed) }
    }

    fn sample(&mut self, now_us: u64, arrived: u64) {
        // Repeated reports and clocks that were set back say nothing about rates.
        if self.samples.back().is_some_and(|(last, _)| now_us <= *last) {
            return;
        }
        if arrived > 0 {
            self.bytes = self.bytes.saturating_add(arrived);
            self.ticks += 1;
        }
        self.samples.push_back((now_us, self.bytes));
        while self.samples.len() > SAMPLES_MAX
            || (self.samples.len() > 2
                && self.samples.front().is_some_and(|(first, _)| now_us.saturating_sub(*first) > WINDOW_US))
        {
            self.samples.pop_front();
        }
    }
}

/// What one source gives to one receiver.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Flow {
    /// Replicas.
    pub moves: usize,
    /// Those that are cut over.
    pub moved: usize,
    /// The part that is done, 0 to 1.
    pub share: f64,
    /// Bytes that are still to be copied, as far as known.
    pub left: u64,
    /// Bytes a second; 0: nothing arrives.
    pub rate: f64,
    /// How long it needs at its present rate; `None`: unknown, or nothing is left. A source that is read slowly because
    /// others are read first has no estimate.
    pub eta: Option<Duration>,
    /// Whether one of its moves has stalled.
    pub stalled: bool,
}

/// How far an operation is.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    /// The operation, as last reported.
    pub operation: v1::Operation,
    /// Its moves.
    pub steps: BTreeMap<MoveId, Step>,
    /// What travels, by source and receiver.
    pub links: BTreeMap<(u64, u64), Link>,
    /// Bytes that receipts confirm and that no sample of a link has counted yet.
    proven: BTreeMap<(u64, u64), u64>,
    /// When each receiver last reported, by its clock.
    reported_us: BTreeMap<u64, u64>,
    /// When the limit on copying last held a receiver back, by its clock.
    limited_us: BTreeMap<u64, u64>,
    /// How often others have called a receiver unreachable since its last report.
    missed: BTreeMap<u64, u32>,
    /// The part that is done, 0 to 1.
    share: f64,
}

impl Progress {
    /// An operation of which nothing is known yet.
    #[must_use]
    pub fn new(operation: &v1::Operation) -> Self {
        let operation = v1::Operation { details: Vec::new(), ..operation.clone() };
        let mut progress = Self {
            operation,
            steps: BTreeMap::new(),
            links: BTreeMap::new(),
            proven: BTreeMap::new(),
            reported_us: BTreeMap::new(),
            limited_us: BTreeMap::new(),
            missed: BTreeMap::new(),
            share: 0.0,
        };
        progress.derive();
        progress
    }

    /// Whether the operation is carried out, or paused.
    #[must_use]
    pub fn is_active(&self) -> bool {
        matches!(self.operation.state(), v1::OperationState::Running | v1::OperationState::Paused)
    }

    /// Observes the agreed state of the operation, with or without details. `size` gives keys and bytes of a partition,
    /// 0 for unknown. A report of an outdated node undoes nothing.
    pub fn observe_operation(&mut self, operation: &v1::Operation, size: impl Fn(u32) -> (u64, u64)) {
        if operation.id != self.operation.id {
            return;
        }
        // What has ended stays as it ended.
        let known = self.operation.state();
        let ended = matches!(known, v1::OperationState::Done | v1::OperationState::Cancelled);
        let older = operation.moved < self.operation.moved
            || operation.receipts < self.operation.receipts
            || (ended && operation.state() != known);
        if !older {
            self.operation = v1::Operation { details: Vec::new(), ..operation.clone() };
        }
        for step in &operation.details {
            let kept = self.steps.entry((step.partition, step.to)).or_insert_with(|| Step {
                from: step.from,
                source: step.source,
                state: MoveState::Waiting,
                share: 0.0,
                copied: (0, 0),
                total: size(step.partition),
                tries: 0,
                wait: Wait::None,
                covered_by: Vec::new(),
                rate: 0.0,
                reported_bytes: 0,
            });
            if kept.total == (0, 0) {
                kept.total = size(step.partition);
            }
            if let Some(receipt) = &step.receipt {
                // A small partition may be copied completely between two reports of its receiver.
                let more = receipt.bytes.saturating_sub(kept.reported_bytes);
                kept.reported_bytes = kept.reported_bytes.max(receipt.bytes);
                let proven = self.proven.entry((kept.source, step.to)).or_default();
                *proven = proven.saturating_add(more);
                kept.copied = (kept.copied.0.max(receipt.keys), kept.copied.1.max(receipt.bytes));
                kept.total = (kept.total.0.max(kept.copied.0), kept.total.1.max(kept.copied.1));
                kept.covered_by = receipt.sources.iter().map(|source| source.node).collect();
                kept.reach(COVERED);
                if kept.state != MoveState::Moved {
                    kept.state = MoveState::Covered;
                    kept.wait = Wait::None;
                }
            }
            if step.moved {
                kept.state = MoveState::Moved;
                kept.wait = Wait::None;
                kept.reach(1.0);
            }
        }
        // What has ended says so of each of its moves, whether their details have come or not.
        let end = match self.operation.state() {
            v1::OperationState::Cancelled => Some(MoveState::Undone),
            v1::OperationState::Done => Some(MoveState::Moved),
            _ => None,
        };
        for step in self.steps.values_mut().filter(|step| step.state != MoveState::Moved) {
            let Some(end) = end else { break };
            step.state = end;
            step.wait = Wait::None;
            if end == MoveState::Moved {
                step.reach(1.0);
            }
        }
        self.derive();
    }

    /// Observes what a receiving node reports of its transfers.
    pub fn observe_report(&mut self, snapshot: &v1::NodeSnapshot) {
        if !self.is_active() {
            return;
        }
        self.missed.remove(&snapshot.node);
        for peer in snapshot.peers.iter().filter(|peer| OUT_OF_REACH.contains(&peer.state())) {
            let missed = self.missed.entry(peer.node).or_default();
            *missed += 1;
            // A receiver that only some nodes cannot reach still reports its own progress.
            if *missed == MISSED_MAX {
                self.mark_unreachable(peer.node);
            }
        }
        let mut arrived: BTreeMap<u64, u64> = BTreeMap::new();
        let before_us = self.reported_us.insert(snapshot.node, snapshot.taken_us);
        let passed_us = before_us.map_or(0, |before| snapshot.taken_us.saturating_sub(before));
        for ((_, to), step) in &mut self.steps {
            // A transfer that is no longer reported waits or is done; the operation says which.
            if *to == snapshot.node && !matches!(step.state, MoveState::Moved | MoveState::Covered | MoveState::Undone)
            {
                step.state = MoveState::Waiting;
                step.wait = Wait::None;
            }
            if *to == snapshot.node && step.state != MoveState::Waiting {
                step.rate = 0.0;
            }
        }
        if snapshot.transfers.iter().any(|transfer| transfer.wait() == v1::TransferWait::Limited) {
            self.limited_us.insert(snapshot.node, snapshot.taken_us);
        }
        for transfer in &snapshot.transfers {
            let Some(step) = self.steps.get_mut(&(transfer.partition, snapshot.node)) else { continue };
            if matches!(step.state, MoveState::Moved | MoveState::Undone) {
                continue;
            }
            // Verifying asks the other sources as well, which are not what the copy flows from.
            if transfer.source > 0 && transfer.phase() == v1::TransferPhase::Copying {
                step.source = transfer.source;
            }
            // A transfer that restarts counts from nothing.
            let more = transfer.bytes.checked_sub(step.reported_bytes).unwrap_or(transfer.bytes);
            step.reported_bytes = transfer.bytes;
            let sum = arrived.entry(step.source).or_default();
            *sum = sum.saturating_add(more);
            let now = if passed_us == 0 { step.rate } else { rate_of(more, passed_us) };
            step.rate = if step.rate > 0.0 { (step.rate + now) / 2.0 } else { now };
            step.tries = step.tries.max(transfer.tries);
            step.copied = (step.copied.0.max(transfer.keys), step.copied.1.max(transfer.bytes));
            if transfer.bytes_total > 0 {
                step.total = (transfer.keys_total, transfer.bytes_total);
            }
            step.total = (step.total.0.max(step.copied.0), step.total.1.max(step.copied.1));
            step.wait = Wait::of(transfer);
            let (state, share) = match transfer.phase() {
                v1::TransferPhase::Unspecified | v1::TransferPhase::Waiting => (MoveState::Waiting, 0.0),
                v1::TransferPhase::Copying => (MoveState::Copying, COPIED * part(step.copied.1, step.total.1)),
                v1::TransferPhase::Verifying => (MoveState::Verifying, VERIFYING),
                v1::TransferPhase::Covered => (MoveState::Covered, COVERED),
            };
            if step.state != MoveState::Covered {
                step.state = if transfer.stalled { MoveState::Stalled } else { state };
            }
            step.reach(share);
        }
        for ((source, to), bytes) in &mut self.proven {
            if *to == snapshot.node {
                let sum = arrived.entry(*source).or_default();
                *sum = sum.saturating_add(std::mem::take(bytes));
            }
        }
        for (source, to) in self.links.keys() {
            if *to == snapshot.node {
                arrived.entry(*source).or_default();
            }
        }
        for (source, bytes) in arrived {
            self.links.entry((source, snapshot.node)).or_default().sample(snapshot.taken_us, bytes);
        }
        self.derive();
    }

    /// Nothing arrives at a receiver that is unreachable, whatever it reported last.
    fn mark_unreachable(&mut self, receiver: u64) {
        for (_, link) in self.links.iter_mut().filter(|((_, to), _)| *to == receiver) {
            link.samples.clear();
        }
        for ((_, to), step) in &mut self.steps {
            if *to == receiver && matches!(step.state, MoveState::Copying | MoveState::Verifying | MoveState::Stalled) {
                step.state = MoveState::Stalled;
                step.rate = 0.0;
                step.wait = Wait::ReceiverAway;
            }
        }
    }

    fn derive(&mut self) {
        #[allow(clippy::cast_precision_loss, reason = "at most some million moves")]
        let share = if self.steps.is_empty() {
            part(self.operation.moved, self.operation.moves)
        } else {
            self.steps.values().map(|step| step.share).sum::<f64>() / self.steps.len() as f64
        };
        if self.operation.state() == v1::OperationState::Cancelled {
            self.share = part(self.moved(), self.operation.moves);
            return;
        }
        let done = self.operation.state() == v1::OperationState::Done;
        // Before the end there is something left, whatever rounding says.
        let most = if done || self.moved() >= self.operation.moves.max(1) { 1.0 } else { 0.999 };
        let share = if done { 1.0 } else { share.min(most) };
        self.share = self.share.max(share);
    }

    /// The part that is done, 0 to 1.
    #[must_use]
    pub fn share(&self) -> f64 {
        self.share
    }

    /// Replicas that are cut over, as the moves show them; the agreed state may be a moment ahead. Every screen and command
    /// shows this number.
    #[must_use]
    pub fn moved(&self) -> u64 {
        let known = u64::try_from(self.count(MoveState::Moved)).unwrap_or(u64::MAX);
        if self.steps.is_empty() { self.operation.moved } else { known }
    }

    /// Keys and bytes copied so far, and those of the whole; 0: not known. The first never pass the second.
    #[must_use]
    pub fn copied(&self) -> ((u64, u64), (u64, u64)) {
        let operation = &self.operation;
        // Copies that a cancel has undone were made for nothing.
        let counted = self.steps.values().filter(|step| step.state != MoveState::Undone);
        let sum = counted.fold((0_u64, 0_u64), |sum, step| {
            (sum.0.saturating_add(step.copied.0), sum.1.saturating_add(step.copied.1))
        });
        let cancelled = operation.state() == v1::OperationState::Cancelled && !self.steps.is_empty();
        let done = if cancelled { sum } else { (sum.0.max(operation.keys_moved), sum.1.max(operation.bytes_moved)) };
        let known = self
            .steps
            .values()
            .fold((0_u64, 0_u64), |sum, step| (sum.0.saturating_add(step.total.0), sum.1.saturating_add(step.total.1)));
        let planned = |planned: u64, known: u64, done: u64| if planned == 0 { known } else { planned }.max(done);
        (done, (planned(operation.keys_planned, known.0, done.0), planned(operation.bytes_planned, known.1, done.1)))
    }

    /// Bytes a second that arrive anywhere.
    #[must_use]
    pub fn rate(&self) -> f64 {
        if self.operation.state() == v1::OperationState::Running {
            self.links.values().map(Link::rate).sum()
        } else {
            0.0
        }
    }

    /// How long the slowest source or receiver needs for what is left, and who that is; `None` while nothing arrives.
    #[must_use]
    pub fn eta(&self) -> Option<(Duration, u64)> {
        if self.operation.state() != v1::OperationState::Running {
            return None;
        }
        let mut sources: BTreeMap<u64, u64> = BTreeMap::new();
        let mut receivers: BTreeMap<u64, u64> = BTreeMap::new();
        for ((_, to), step) in &self.steps {
            for left in [sources.entry(step.source).or_default(), receivers.entry(*to).or_default()] {
                *left = left.saturating_add(step.remaining());
            }
        }
        let rate = |of: &dyn Fn(&(u64, u64)) -> bool| {
            self.links.iter().filter(|(ends, _)| of(ends)).map(|(_, link)| link.rate()).sum::<f64>()
        };
        // Only a source that is read as fast as it gives says how long it needs: others wait for their turn, or a limit. Under
        // a limit, too, there is a moment at which each is asked, so what held the receiver back lately counts.
        let read = |node: u64| {
            let reads = |step: &Step| step.state == MoveState::Copying && step.wait == Wait::None;
            self.steps.iter().any(|((_, to), step)| step.source == node && reads(step) && !self.is_limited(*to))
        };
        let by_source = sources
            .iter()
            .filter(|(node, _)| read(**node))
            .map(|(node, left)| (*node, *left, rate(&|ends| ends.0 == *node)));
        let by_receiver = receivers.iter().map(|(node, left)| (*node, *left, rate(&|ends| ends.1 == *node)));
        // A receiver from which nothing comes in says nothing; a source that is not read yet waits for its receivers.
        let needs = |(node, left, rate): (u64, u64, f64)| {
            #[allow(clippy::cast_precision_loss, reason = "a time is shown with two digits")]
            let seconds = left as f64 / rate;
            (rate > 0.0 && left > 0).then(|| (Duration::from_secs_f64(seconds.min(1e9)), node))
        };
        let starved = receivers.iter().any(|(node, left)| *left > 0 && rate(&|ends| ends.1 == *node) <= 0.0);
        if starved { None } else { by_source.chain(by_receiver).filter_map(needs).max() }
    }

    /// Whether rates at a receiver are those of the limit on copying: it has held a copy back within the time that rates
    /// look back.
    fn is_limited(&self, receiver: u64) -> bool {
        let (limited, reported) = (self.limited_us.get(&receiver), self.reported_us.get(&receiver));
        limited.zip(reported).is_some_and(|(limited, reported)| reported.saturating_sub(*limited) <= WINDOW_US)
    }

    /// How long a move needs for what is left at its present rate; `None`: unknown, or nothing is left.
    #[must_use]
    pub fn step_eta(step: &Step) -> Option<Duration> {
        eta(step.remaining(), step.rate)
    }

    /// What travels and has travelled from each source to each receiver, ascending.
    #[must_use]
    pub fn flows(&self) -> BTreeMap<(u64, u64), Flow> {
        let mut flows: BTreeMap<(u64, u64), Flow> = BTreeMap::new();
        for ((_, to), step) in &self.steps {
            let flow = flows.entry((step.source, *to)).or_default();
            flow.moves += 1;
            flow.moved += usize::from(step.state == MoveState::Moved);
            flow.share += step.share;
            flow.left = flow.left.saturating_add(step.remaining());
            flow.stalled |= step.state == MoveState::Stalled;
        }
        let all = self.eta();
        for (ends, flow) in &mut flows {
            #[allow(clippy::cast_precision_loss, reason = "at most some million moves")]
            let share = flow.share / flow.moves as f64;
            flow.share = share;
            if flow.moved < flow.moves && self.operation.state() == v1::OperationState::Running {
                flow.rate = self.links.get(ends).map_or(0.0, Link::rate);
                flow.eta = eta(flow.left, flow.rate).filter(|left| all.is_none_or(|(all, _)| *left <= 2 * all));
            }
        }
        flows
    }

    /// How many moves are in a state.
    #[must_use]
    pub fn count(&self, state: MoveState) -> usize {
        self.steps.values().filter(|step| step.state == state).count()
    }
}

fn eta(left: u64, rate: f64) -> Option<Duration> {
    #[allow(clippy::cast_precision_loss, reason = "a time is shown with two digits")]
    let seconds = left as f64 / rate;
    (rate >= 1.0 && left > 0).then(|| Duration::from_secs_f64(seconds.min(1e9)))
}

fn rate_of(bytes: u64, passed_us: u64) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "rates are shown with three digits")]
    let rate = bytes as f64 * 1e6 / passed_us as f64;
    rate
}

fn part(done: u64, all: u64) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "a part is shown with three digits")]
    let part = done.min(all) as f64 / all.max(1) as f64;
    part
}

#[cfg(test)]
mod tests;
