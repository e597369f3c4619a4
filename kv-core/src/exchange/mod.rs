//! Bringing one partition into line with one other replica: the asking side.
//!
//! An exchange asks for the leaves of the peer's Merkle tree, and walks through those that differ from this node's: it
//! fetches the records that this node lacks, offers those that the peer lacks, or both. When it ends, every version that
//! one side held at its beginning is held or dominated by the other, durably (rule M1): a record that changes meanwhile
//! only grows. A node that holds next to nothing takes the records in storage order first.
//!
//! Copies, refills, hand-overs and anti-entropy all use exchanges; each is told how its exchanges end.

mod pace;
mod serve;
mod walk;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::error::StorageError;
use crate::message::{Answer, CallId, Keyed, LeafSet, Message, Position, Purpose, Question, Refusal, Tree};
use crate::rule::Rule;
use crate::storage::{PartitionStats, Slice, SliceRequest, Space, StorageKey, Stored, Tally};
use crate::throttle::Booking;
use crate::topology::Wait;
use crate::types::{Epoch, KeyspaceId, Monotonic, NodeId, PartitionId};
use crate::version::Hlc;
use crate::view::View;
use crate::wiring::{AfterDurable, Applied, Ctx, ExchangeId, Peers, ReadFor, StatsFor, Task, Timer, Waiter};

use pace::unbook;
pub(crate) use serve::Serving;
use walk::{Known, Next, Own, Walk};

/// A node that holds fewer records than one of so many of the peer's takes them all instead of comparing.
const BULK_BELOW: u64 = 4;

/// Two owners that differ in so few leaves look again before they walk through them: mostly these are writes under way,
/// which have arrived by then, and to walk is to read the whole partition.
const FEW_LEAVES: usize = 16;

/// How long they wait for that, and how often they look at most.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(50);
const LOOKS_MAX: u32 = 3;

/// What an exchange waits for that needs a record of its own node that is damaged.
const OWN_DAMAGED: &str = "a damaged record of this node's own is being replaced";

/// After this long without progress, an exchange says what it waits for.
const STALLED_AFTER: Duration = Duration::from_secs(1);

/// The exchanges under way, the asking side.
#[derive(Debug, Default)]
pub(crate) struct Exchanges {
    open: BTreeMap<ExchangeId, Exchange>,
    outcomes: VecDeque<Outcome>,
}

/// What an exchange has come to.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Records have been received, so many keys with values among them.
    Received { id: ExchangeId, partition: PartitionId, keys: u64, bytes: u64 },
    /// Everything up to a place, or all (`None`), was taken in order and is durable.
    Moved { id: ExchangeId, partition: PartitionId, at: Option<Position> },
    /// The other replica is not complete, or one of both does not know the layout: `Failed` follows.
    Refused { id: ExchangeId },
    /// Both hold the same, except for what was written meanwhile.
    Done(Ended),
    /// It could not go on, for this reason.
    Failed(Ended, String),
}

/// An exchange that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) id: ExchangeId,
    pub(crate) purpose: Purpose,
    pub(crate) partition: PartitionId,
    pub(crate) peer: NodeId,
    /// The peer's tree when it was last asked for.
    pub(crate) tree: Option<Tree>,
    /// Records fetched or offered.
    pub(crate) records: u64,
}

/// What is known at one moment.
#[derive(Debug)]
pub(crate) struct Situation<'a> {
    pub(crate) at: Monotonic,
    pub(crate) view: &'a View,
    pub(crate) peers: &'a Peers,
    pub(crate) exchanges: &'a Exchanges,
}

/// An exchange under way.
#[derive(Debug)]
pub(crate) struct Exchange {
    partition: PartitionId,
    peer: NodeId,
    purpose: Purpose,
    epoch: Epoch,
    step: Step,
    /// Whether taking all records in order is out of question, or done.
    compare_only: bool,
    /// The question that is under way, and when it was asked.
    asked: Option<(CallId, Monotonic)>,
    /// The answer whose records are being merged. What an earlier round merges does not count.
    round: CallId,
    /// The watermark of the peer's copy, as of that answer (rule A6).
    settled: Hlc,
    /// Records of that answer that are not durable here.
    applying: usize,
    /// Whether one of them could not be merged: they are asked for again.
    merge_failed: bool,
    /// When it last made progress.
    moved_at: Monotonic,
    /// Why it does not ask, if it does not.
    waits: Option<Wait>,
    /// Whether it has asked the hub to move bytes, where there is a limit.
    asks_leave: bool,
    /// It may: the next question can be asked.
    leave: Option<Booking>,
    /// What the question under way may bring, where there is a limit.
    booked: Option<Booking>,
    /// The peer's tree when it was last asked for.
    tree: Option<Tree>,
    /// How often both trees were compared, and the leaves that differed each time. One that was equal once is settled: what
    /// either side held at the beginning is part of what both held then.
    looks: u32,
    suspects: LeafSet,
    /// Records fetched or offered.
    records: u64,
}

#[derive(Debug)]
enum Step {
    /// This node's own root is read: if the peer has the same, there is nothing to compare.
    OwnRoot,
    /// The peer's leaves are asked for, unless its root is this one.
    Tree { unless: Option<u64> },
    /// This node's own leaves are read.
    OwnTree,
    /// The peer's records are taken in storage order; everything up to the place is durable here.
    Bulk { after: Option<Position>, next: Option<Position> },
    /// Pages are compared.
    Walk(Walk),
    /// This node's own records of a page are read.
    OwnPage(Walk),
}

impl Exchange {
    fn ended(self, id: ExchangeId) -> Ended {
        let Self { purpose, partition, peer, tree, records, .. } = self;
        Ended { id, purpose, partition, peer, tree, records }
    }

    /// What the peer held when it was last asked.
    pub(crate) fn peer_holds(&self) -> Option<Tally> {
        self.tree.as_ref().map(|tree| tree.tally)
    }

    /// Whether records are still being taken in order.
    pub(crate) fn is_copying(&self) -> bool {
        !self.compare_only && !matches!(self.step, Step::Walk(_) | Step::OwnPage(_))
    }

    /// Why it makes no progress, in words.
    pub(crate) fn waiting_for(&self, now: Monotonic) -> Option<Wait> {
        if self.waits.is_some() {
            return self.waits.clone();
        }
        let idle = now.since(self.moved_at);
        if idle < STALLED_AFTER {
            return None;
        }
        let what = match &self.asked {
            Some(_) => format!("{} has not answered", self.peer),
            None => "this node's disk has not finished".to_owned(),
        };
        Some(Wait::Other(format!("{what} for {:.1} s", idle.as_secs_f64())))
    }

    /// Whether it waits for leave to ask, which another source would wait for, too.
    pub(crate) fn is_held_back(&self) -> bool {
        matches!(self.waits, Some(Wait::Paused | Wait::Limited))
    }

    fn pulls(&self) -> bool {
        self.purpose != Purpose::HandOver
    }

    /// Whether this node's copy is filled from the peer's, so that it learns what was collected there.
    fn fills(&self) -> bool {
        matches!(self.purpose, Purpose::Refill | Purpose::Copy)
    }

    fn pushes(&self) -> bool {
        matches!(self.purpose, Purpose::HandOver | Purpose::Repair | Purpose::Settle)
    }
}

impl Exchanges {
    /// How many are under way.
    pub(crate) fn len(&self) -> usize {
        self.open.len()
    }

    /// One that is under way.
    pub(crate) fn get(&self, id: ExchangeId) -> Option<&Exchange> {
        self.open.get(&id)
    }

    /// The next thing that one has come to.
    pub(crate) fn next_outcome(&mut self) -> Option<Outcome> {
        self.outcomes.pop_front()
    }

    /// Begins an exchange. `after`: records up to there were taken from this peer in order before.
    pub(crate) fn start(
        &mut self,
        ctx: &mut Ctx<'_>,
        partition: PartitionId,
        peer: NodeId,
        purpose: Purpose,
        compare_only: bool,
        after: Option<Position>,
    ) -> ExchangeId {
        let id = ExchangeId(ctx.kernel.next_id());
        let exchange = Exchange {
            partition,
            peer,
            purpose,
            epoch: ctx.view.entry_epoch(partition),
            // Where records were taken in order before, the peer's tree says only how many there are.
            step: match after {
                Some(after) if !compare_only => Step::Bulk { after: Some(after), next: None },
                _ if matches!(purpose, Purpose::Repair | Purpose::Settle) => Step::OwnRoot,
                _ => Step::Tree { unless: None },
            },
            compare_only,
            asked: None,
            round: CallId(0),
            settled: Hlc::default(),
            applying: 0,
            merge_failed: false,
            moved_at: ctx.kernel.now.mono,
            waits: None,
            asks_leave: false,
            leave: None,
            booked: None,
            tree: None,
            looks: 0,
            suspects: LeafSet::default(),
            records: 0,
        };
        self.open.insert(id, exchange);
        // Not at once: who starts an exchange notes its name before it can end.
        ctx.kernel.arm(ctx.kernel.now.mono, Timer::Exchange(id));
        id
    }

    fn take(&mut self, ctx: &mut Ctx<'_>, id: ExchangeId) -> Option<Exchange> {
        ctx.kernel.disarm(Timer::Exchange(id));
        let mut exchange = self.open.remove(&id)?;
        unbook(ctx, exchange.leave.take());
        unbook(ctx, exchange.booked.take());
        Some(exchange)
    }

    /// Forgets an exchange. Nobody is told.
    pub(crate) fn cancel(&mut self, ctx: &mut Ctx<'_>, id: ExchangeId) {
        if self.take(ctx, id).is_some() {
            ctx.kernel.forget_calls(|purpose| purpose == Waiter::Exchange(id));
        }
    }

    /// Those with a peer that waited for it to know the layout may go on.
    pub(crate) fn peer_caught_up(&mut self, ctx: &mut Ctx<'_>, peer: NodeId) {
        self.wake(ctx, |exchange| exchange.peer == peer);
    }

    /// Other limits hold.
    pub(crate) fn limited(&mut self, ctx: &mut Ctx<'_>) {
        self.wake(ctx, |_| true);
    }

    /// Those that wait for leave to ask, or for their peer, may go on.
    fn wake(&mut self, ctx: &mut Ctx<'_>, which: impl Fn(&Exchange) -> bool) {
        let woken = self.open.iter().filter(|(_, exchange)| which(exchange)).map(|(&id, _)| id);
        for id in woken.collect::<Vec<_>>() {
            ctx.kernel.arm(ctx.kernel.now.mono, Timer::Exchange(id));
        }
    }

    /// Asks the next question, unless one is under way.
    pub(crate) fn step(&mut self, ctx: &mut Ctx<'_>, id: ExchangeId) {
        let patience = ctx.view.config.retry_after * 4;
        let Some(exchange) = self.open.get_mut(&id) else { return };
        let (peer, purpose, partition, epoch) = (exchange.peer, exchange.purpose, exchange.partition, exchange.epoch);
        if exchange.applying > 0 || matches!(exchange.step, Step::OwnTree | Step::OwnPage(_)) {
            return;
        }
        if let Some((call, at)) = exchange.asked {
            if ctx.kernel.now.mono < at.plus(patience) {
                return ctx.kernel.arm(at.plus(patience), Timer::Exchange(id));
            }
            // The question or its answer was lost.
            exchange.asked = None;
            unbook(ctx, exchange.booked.take());
            ctx.kernel.answered(peer, call);
        }
        if !ctx.can_be_asked(peer, purpose) {
            return self.failed(ctx, id, format!("{peer} is down"));
        }
        let (entries_max, bytes_max) = (ctx.view.config.slice_entries_max, self.question_bytes_max(ctx, id));
        let paused = ctx.view.transfers.paused;
        let Some(exchange) = self.open.get_mut(&id) else { return };
        if paused && exchange.is_pausable() {
            exchange.waits = Some(Wait::Paused);
            return;
        }
        exchange.waits = None;
        let question = match &mut exchange.step {
            Step::Tree { unless } => Question::Leaves { unless: *unless },
            Step::Bulk { after, .. } => {
                Question::Records { after: after.clone(), bytes_max: u32::try_from(bytes_max).unwrap_or(u32::MAX) }
            }
            Step::Walk(walk) => match walk.next(entries_max, bytes_max) {
                Next::Ask(question) => question,
                Next::Read { after, upto } => return self.read_own_page(ctx, id, after, upto),
                Next::Done => return self.done(ctx, id),
            },
            Step::OwnRoot => return ctx.kernel.read_stats(partition, ReadFor::Stats(StatsFor::Exchange(id))),
            Step::OwnTree | Step::OwnPage(_) => return,
        };
        if !self.book(ctx, id, &question) {
            return;
        }
        let call = ctx.kernel.next_call();
        if let Some(exchange) = self.open.get_mut(&id) {
            exchange.asked = Some((call, ctx.kernel.now.mono));
            if let Question::Offer { records } = &question {
                exchange.records += records.len() as u64;
            }
        }
        let message = Message::Exchange { call, partition, epoch, purpose, question };
        ctx.kernel.ask(peer, call, Waiter::Exchange(id), message);
        ctx.kernel.arm(ctx.kernel.now.mono.plus(patience), Timer::Exchange(id));
    }

    /// The peer has answered, or refused.
    pub(crate) fn answered(
        &mut self,
        ctx: &mut Ctx<'_>,
        id: ExchangeId,
        call: CallId,
        result: Result<Answer, Refusal>,
    ) {
        let now = ctx.kernel.now.mono;
        let Some(exchange) = self.open.get_mut(&id) else { return };
        if exchange.asked.take_if(|asked| asked.0 == call).is_none() {
            return;
        }
        let answer = match result {
            Ok(answer) => answer,
            Err(refusal) => {
                unbook(ctx, exchange.booked.take());
                return self.refused(ctx, id, refusal);
            }
        };
        exchange.moved_at = now;
        exchange.round = call;
        match (&mut exchange.step, answer) {
            (Step::Tree { unless: Some(_) }, Answer::Equal) => self.done(ctx, id),
            (Step::Tree { .. }, Answer::Leaves(tree)) => {
                exchange.step = Step::OwnTree;
                exchange.tree = Some(tree);
                let partition = exchange.partition;
                ctx.kernel.read_stats(partition, ReadFor::Stats(StatsFor::Exchange(id)));
            }
            (Step::Bulk { after, next: end }, Answer::Records { records, next, settled }) => {
                if next.is_some() && next <= *after {
                    return self.unexpected_reply(ctx, id);
                }
                *end = next;
                exchange.settled = settled;
                self.merge(ctx, id, records);
            }
            (Step::Walk(_), Answer::Records { records, settled, .. }) => {
                exchange.settled = settled;
                self.merge(ctx, id, records);
            }
            (Step::Walk(walk), Answer::Digests { mut entries, next, settled }) => {
                exchange.settled = settled;
                // The peer may not know yet that a keyspace was dropped.
                entries.retain(|entry| !ctx.view.is_dropped(entry.keyspace));
                if !walk.learn(entries, next) {
                    return self.unexpected_reply(ctx, id);
                }
                self.step(ctx, id);
            }
            (Step::Walk(walk), Answer::Taken) => {
                walk.settled();
                self.step(ctx, id);
            }
            _ => self.unexpected_reply(ctx, id),
        }
    }

    fn unexpected_reply(&mut self, ctx: &mut Ctx<'_>, id: ExchangeId) {
        let peer = self.open.get(&id).map(|exchange| exchange.peer).unwrap_or_default();
        self.failed(ctx, id, format!("{peer} sent an unexpected reply"));
    }

    fn refused(&mut self, ctx: &mut Ctx<'_>, id: ExchangeId, refusal: Refusal) {
        let Some(peer) = self.open.get(&id).map(|exchange| exchange.peer) else { return };
        let overtaken = matches!(refusal, Refusal::Behind { epoch } if epoch < ctx.kernel.peers.caught_up(peer));
        let at = if overtaken { ctx.kernel.now.mono } else { ctx.kernel.now.mono.plus(ctx.view.config.retry_after) };
        let Some(exchange) = self.open.get_mut(&id) else { return };
        let why = format!("{peer}: {refusal}");
        match refusal {
            // It will know more, or have more room, before long.
            Refusal::Behind { .. } | Refusal::Busy(_) => {
                exchange.waits = Some(Wait::Other(why));
                ctx.kernel.arm(at, Timer::Exchange(id));
            }
            Refusal::Stale { .. } | Refusal::NotSynced | Refusal::NotOwner => {
                self.outcomes.push_back(Outcome::Refused { id });
                self.failed(ctx, id, why);
            }
            Refusal::Failed(_) | Refusal::Late | Refusal::ClockOff => self.failed(ctx, id, why),
        }
    }

    /// The session of the peer has ended.
    pub(crate) fn lost(&mut self, ctx: &mut Ctx<'_>, id: ExchangeId) {
        if let Some(exchange) = self.open.get(&id) {
            let why = format!("{} is down", exchange.peer);
            self.failed(ctx, id, why);
        }
    }

    fn failed(&mut self, ctx: &mut Ctx<'_>, id: ExchangeId, why: String) {
        let Some(exchange) = self.take(ctx, id) else { return };
        ctx.kernel.forget_calls(|purpose| purpose == Waiter::Exchange(id));
        self.outcomes.push_back(Outcome::Failed(exchange.ended(id), why));
    }

    fn done(&mut self, ctx: &mut Ctx<'_>, id: ExchangeId) {
        if let Some(exchange) = self.take(ctx, id) {
            self.outcomes.push_back(Outcome::Done(exchange.ended(id)));
        }
    }

    /// Merges what was received.
    fn merge(&mut self, ctx: &mut Ctx<'_>, id: ExchangeId, mut records: Vec<Keyed>) {
        records.retain(|(keyspace, ..)| !ctx.view.is_dropped(*keyspace));
        let Some(exchange) = self.open.get_mut(&id) else { return };
        let (partition, round, settled) = (exchange.partition, exchange.round, exchange.settled);
        exchange.applying = records.len();
        exchange.merge_failed = false;
        exchange.records += records.len() as u64;
        let bytes = bytes_of(&records);
        self.pay(ctx, id, bytes);
        if records.is_empty() {
            return self.merged(ctx, id);
        }
        let keys = records.iter().filter(|record| record.2.has_value()).count() as u64;
        self.outcomes.push_back(Outcome::Received { id, partition, keys, bytes });
        for (keyspace, key, cell) in records {
            let key = StorageKey::owned(partition, keyspace, &key);
            ctx.kernel.with_key(key, Task::Apply { cell, applied: Applied::Exchange { id, round, settled } });
        }
    }

    /// A record is durable here, or could not be merged.
    pub(crate) fn record_merged(&mut self, ctx: &mut Ctx<'_>, id: ExchangeId, round: CallId, well: bool) {
        let Some(exchange) = self.open.get_mut(&id) else { return };
        if exchange.round != round {
            return;
        }
        exchange.merge_failed |= !well;
        exchange.applying = exchange.applying.saturating_sub(1);
        if exchange.applying == 0 {
            self.merged(ctx, id);
        }
    }

    /// All of an answer has been merged and is durable.
    fn merged(&mut self, ctx: &mut Ctx<'_>, id: ExchangeId) {
        let (now, retry_at) = (ctx.kernel.now.mono, ctx.kernel.now.mono.plus(ctx.view.config.retry_after));
        let Some(exchange) = self.open.get_mut(&id) else { return };
        exchange.moved_at = now;
        if exchange.merge_failed {
            // A record of this node's own is damaged and being restored.
            exchange.waits = Some(Wait::Other(OWN_DAMAGED.to_owned()));
            ctx.kernel.arm(retry_at, Timer::Exchange(id));
            return;
        }
        match &mut exchange.step {
            Step::Bulk { after, next } => {
                let at = next.take();
                if at.is_some() {
                    after.clone_from(&at);
                } else {
                    exchange.compare_only = true;
                    exchange.step = Step::Tree { unless: None };
                }
                // The cursor moves no earlier than its data is durable (rule M2).
                let partition = exchange.partition;
                self.outcomes.push_back(Outcome::Moved { id, partition, at });
            }
            Step::Walk(walk) => walk.settled(),
            Step::OwnRoot | Step::Tree { .. } | Step::OwnTree | Step::OwnPage(_) => {}
        }
        self.step(ctx, id);
    }

    /// This node's own statistics could not be read.
    pub(crate) fn unreadable(&mut self, ctx: &mut Ctx<'_>, id: ExchangeId, error: &StorageError) {
        self.failed(ctx, id, error.to_string());
    }

    /// This node's own statistics are durable.
    pub(crate) fn own_tree(&mut self, ctx: &mut Ctx<'_>, id: ExchangeId, own: &PartitionStats) {
        let mine = ctx.view.kept(own).records;
        let Some(exchange) = self.open.get_mut(&id) else { return };
        if matches!(exchange.step, Step::OwnRoot) {
            exchange.step = Step::Tree { unless: Some(own.root()) };
            return self.step(ctx, id);
        }
        let (Step::OwnTree, Some(tree)) = (&exchange.step, &exchange.tree) else { return };
        let theirs = tree.tally.records;
        let takes_all = matches!(exchange.purpose, Purpose::Refill | Purpose::Copy)
            && !exchange.compare_only
            && mine.saturating_mul(BULK_BELOW) < theirs;
        if takes_all {
            exchange.step = Step::Bulk { after: None, next: None };
        } else {
            exchange.compare_only = true;
            let differing = LeafSet::differing(own.leaves(), &tree.leaves);
            let differing = if exchange.looks == 0 { differing } else { differing.and(&exchange.suspects) };
            (exchange.looks, exchange.suspects) = (exchange.looks + 1, differing);
            if differing.is_empty() {
                return self.done(ctx, id);
            }
            let compares = matches!(exchange.purpose, Purpose::Repair | Purpose::Settle);
            if compares && differing.len() <= FEW_LEAVES && exchange.looks < LOOKS_MAX {
                exchange.step = Step::OwnRoot;
                ctx.kernel.arm(ctx.kernel.now.mono.plus(LOOK_AGAIN_AFTER), Timer::Exchange(id));
                return;
            }
            exchange.step = Step::Walk(Walk::new(differing));
        }
        self.step(ctx, id);
    }

    fn read_own_page(&mut self, ctx: &mut Ctx<'_>, id: ExchangeId, after: Option<Position>, upto: Known) {
        let Some(exchange) = self.open.get_mut(&id) else { return };
        let partition = exchange.partition;
        let step = std::mem::replace(&mut exchange.step, Step::Tree { unless: None });
        let Step::Walk(walk) = step else { return };
        exchange.step = Step::OwnPage(walk);
        let until = match upto {
            Known::To(Some(position)) => storage_key(partition, &position).successor(),
            Known::To(None) | Known::All => StorageKey::partition_end(Space::Owned, partition),
        };
        let request = records_behind(ctx.view, partition, after.as_ref(), until, ctx.view.config.slice_bytes_max);
        ctx.kernel.read_slice(request, ReadFor::Exchange(id));
    }

    /// This node's own records of a page were read.
    pub(crate) fn own_page_read(&mut self, ctx: &mut Ctx<'_>, id: ExchangeId, result: Result<Slice, StorageError>) {
        match result {
            // Only what is durable here counts as held.
            Ok(slice) => ctx.kernel.after_issued(AfterDurable::OwnPage { id, slice }),
            Err(error) => self.failed(ctx, id, error.to_string()),
        }
    }

    pub(crate) fn own_page_durable(&mut self, ctx: &mut Ctx<'_>, id: ExchangeId, slice: Slice) {
        let Some(exchange) = self.open.get(&id) else { return };
        let Step::OwnPage(walk) = &exchange.step else { return };
        let (leaves, pulls, pushes) = (walk.leaves(), exchange.pulls(), exchange.pushes());
        let last = slice.more.then(|| slice.entries.last().map(|entry| position(&entry.0))).flatten();
        let mut own = Vec::new();
        let mut damaged = false;
        // What a former owner holds of registers its successors have, or never needed: it is not merged (rule E3).
        let merged =
            |key: &StorageKey| exchange.purpose != Purpose::HandOver || ctx.view.available(key.keyspace()).is_some();
        let kept = |key: &StorageKey| !ctx.view.is_dropped(key.keyspace()) && merged(key);
        let entries: Vec<&(StorageKey, bytes::Bytes)> =
            slice.entries.iter().filter(|entry| leaves.contains(&entry.0) && kept(&entry.0)).collect();
        for (key, bytes) in entries {
            match Stored::decode(bytes) {
                Ok(Stored { cell, .. }) if cell.is_blank() => {}
                Ok(Stored { cell, .. }) => {
                    let digest = cell.digest();
                    own.push(Own { position: position(key), digest, cell: pushes.then_some(cell) });
                }
                Err(_) => {
                    damaged = true;
                    ctx.kernel.unreadable(key.clone(), None);
                }
            }
        }
        let retry_at = ctx.kernel.now.mono.plus(ctx.view.config.retry_after);
        let Some(exchange) = self.open.get_mut(&id) else { return };
        let step = std::mem::replace(&mut exchange.step, Step::Tree { unless: None });
        let Step::OwnPage(mut walk) = step else { return };
        if damaged {
            exchange.waits = Some(Wait::Other(OWN_DAMAGED.to_owned()));
            exchange.step = Step::Walk(walk);
            ctx.kernel.arm(retry_at, Timer::Exchange(id));
            return;
        }
        let fills = exchange.fills() && ctx.view.keep(Rule::OldCopyLearnsOfCollection);
        let alone = walk.compare(own, last, pulls);
        exchange.step = Step::Walk(walk);
        let (partition, round, settled) = (exchange.partition, exchange.round, exchange.settled);
        if alone.is_empty() || !fills || settled == Hlc::default() {
            return self.step(ctx, id);
        }
        // Rule A6: the peer does not hold these. What its copy had settled with is gone there for good.
        exchange.applying = alone.len();
        exchange.merge_failed = false;
        for at in alone {
            ctx.kernel.with_key(storage_key(partition, &at), Task::Condemn { settled, id, round });
        }
    }
}

/// A slice of a partition's records.
fn records_behind(
    view: &View,
    partition: PartitionId,
    after: Option<&Position>,
    until: StorageKey,
    bytes_max: usize,
) -> SliceRequest {
    let from = after.map_or_else(
        || StorageKey::keyspace_start(Space::Owned, partition, KeyspaceId(0)),
        |after| storage_key(partition, after).successor(),
    );
    let from = view.behind_dropped(from).min(until.clone());
    SliceRequest { from, until, entries_max: view.config.slice_entries_max, bytes_max }
}

/// Bytes of keys and records, as the statistics count them.
fn bytes_of(records: &[Keyed]) -> u64 {
    records.iter().map(|(_, key, cell)| (key.len() + Stored::encoded_len(cell)) as u64).sum()
}

fn position(key: &StorageKey) -> Position {
    (key.keyspace(), key.key_bytes())
}

fn storage_key(partition: PartitionId, position: &Position) -> StorageKey {
    StorageKey::owned(partition, position.0, &position.1)
}
