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

use std::time::Duration;

use crate::error::StorageError;
use crate::message::{Answer, CallId, Errand, Keyed, LeafSet, Message, Position, Question, Refusal, Tree};
use crate::node::keys::{Applied, Held, LeavesFor, ReadFor, Task};
use crate::node::peers::Purpose;
use crate::node::timers::Timer;
use crate::node::{Effect, Node, ReadId};
use crate::replica::throttle::Booking;
use crate::rule::Rule;
use crate::storage::{PartitionStats, Slice, SliceRequest, Space, StorageKey, Stored};
use crate::topology::Wait;
use crate::types::{Epoch, KeyspaceId, Monotonic, NodeId, PartitionId};

pub(crate) use pace::Turns;
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

/// After this long without getting on, an exchange says what it waits for.
const STALLED_AFTER: Duration = Duration::from_secs(1);

/// Numbers the exchanges of one incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ExchangeId(pub(crate) u64);

/// An exchange under way.
#[derive(Debug)]
pub(crate) struct Exchange {
    pub(crate) partition: PartitionId,
    pub(crate) peer: NodeId,
    pub(crate) errand: Errand,
    epoch: Epoch,
    step: Step,
    /// Whether taking all records in order is out of question, or done.
    compare_only: bool,
    /// The question that is under way, and when it was asked.
    asked: Option<(CallId, Monotonic)>,
    /// The answer whose records are being merged. What an earlier round merges does not count.
    round: CallId,
    /// Records of that answer that are not durable here.
    applying: usize,
    /// Whether one of them could not be merged: they are asked for again.
    spoiled: bool,
    /// When it last got on.
    moved_at: Monotonic,
    /// Why it does not ask, if it does not.
    waits: Option<Wait>,
    /// Whether it has waited for the limit on bytes, and may ask now.
    is_its_turn: bool,
    /// What the question under way may bring, where there is a limit.
    booked: Option<Booking>,
    /// The peer's tree when it was last asked for.
    pub(crate) tree: Option<Tree>,
    /// How often both trees were compared, and the leaves that differed each time. One that was equal once is settled: what
    /// either side held at the beginning is part of what both held then.
    looks: u32,
    suspects: LeafSet,
    /// Records fetched or offered.
    pub(crate) records: u64,
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
    /// Whether records are still being taken in order.
    pub(crate) fn is_copying(&self) -> bool {
        !self.compare_only && !matches!(self.step, Step::Walk(_) | Step::OwnPage(_))
    }

    /// Why it does not get on, in words.
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
        self.errand != Errand::HandOver
    }

    fn pushes(&self) -> bool {
        matches!(self.errand, Errand::HandOver | Errand::Repair)
    }
}

impl Node {
    /// Begins an exchange. `after`: records up to there were taken from this peer in order before.
    pub(crate) fn start_exchange(
        &mut self,
        partition: PartitionId,
        peer: NodeId,
        errand: Errand,
        compare_only: bool,
        after: Option<Position>,
    ) -> ExchangeId {
        let id = ExchangeId(self.next_id());
        let exchange = Exchange {
            partition,
            peer,
            errand,
            epoch: self.entry(partition).map(|entry| entry.changed).unwrap_or_default(),
            // Where records were taken in order before, the peer's tree says only how many there are.
            step: match after {
                Some(after) if !compare_only => Step::Bulk { after: Some(after), next: None },
                _ if errand == Errand::Repair => Step::OwnRoot,
                _ => Step::Tree { unless: None },
            },
            compare_only,
            asked: None,
            round: CallId(0),
            applying: 0,
            spoiled: false,
            moved_at: self.now.mono,
            waits: None,
            is_its_turn: false,
            booked: None,
            tree: None,
            looks: 0,
            suspects: LeafSet::default(),
            records: 0,
        };
        self.exchanges.insert(id, exchange);
        // Not at once: who starts an exchange notes its name before it can end.
        self.arm(self.now.mono, Timer::Exchange(id));
        id
    }

    fn take_exchange(&mut self, id: ExchangeId) -> Option<Exchange> {
        self.timers.disarm(Timer::Exchange(id));
        self.exchanges.remove(&id)
    }

    /// Forgets an exchange. Nobody is told.
    pub(crate) fn cancel_exchange(&mut self, id: ExchangeId) {
        if let Some(exchange) = self.take_exchange(id) {
            self.unbook(exchange.booked);
            self.forget_calls(|purpose| purpose == Purpose::Exchange(id));
        }
    }

    /// Those that wait for leave to ask, or for their peer, may go on.
    pub(crate) fn wake_exchanges(&mut self, which: impl Fn(&Exchange) -> bool) {
        let woken = self.exchanges.iter().filter(|(_, exchange)| which(exchange)).map(|(&id, _)| id);
        for id in woken.collect::<Vec<_>>() {
            self.arm(self.now.mono, Timer::Exchange(id));
        }
        self.set_turn();
    }

    /// Asks the next question, unless one is under way.
    pub(crate) fn exchange_step(&mut self, id: ExchangeId) {
        let patience = self.config.retry_after * 4;
        let Some(exchange) = self.exchanges.get_mut(&id) else { return };
        let (peer, errand, partition, epoch) = (exchange.peer, exchange.errand, exchange.partition, exchange.epoch);
        if exchange.applying > 0 || matches!(exchange.step, Step::OwnTree | Step::OwnPage(_)) {
            return;
        }
        if let Some((call, at)) = exchange.asked {
            if self.now.mono < at.plus(patience) {
                return self.arm(at.plus(patience), Timer::Exchange(id));
            }
            // The question or its answer was lost.
            exchange.asked = None;
            let booked = exchange.booked.take();
            self.unbook(booked);
            self.answered(peer, call);
        }
        if !self.is_up(peer) {
            return self.exchange_failed(id, format!("{peer} is down"));
        }
        let (entries_max, bytes_max) = (self.config.slice_entries_max, self.question_bytes_max(id));
        let paused = self.transfers.paused;
        let Some(exchange) = self.exchanges.get_mut(&id) else { return };
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
                Next::Read { after, upto } => return self.read_own_page(id, after, upto),
                Next::Done => return self.exchange_done(id),
            },
            Step::OwnRoot => return self.read_leaves(partition, LeavesFor::Exchange(id)),
            Step::OwnTree | Step::OwnPage(_) => return,
        };
        if !self.book(id, &question) {
            return;
        }
        let call = self.next_call();
        if let Some(exchange) = self.exchanges.get_mut(&id) {
            exchange.asked = Some((call, self.now.mono));
            if let Question::Offer { records } = &question {
                exchange.records += records.len() as u64;
            }
        }
        let message = Message::Exchange { call, partition, epoch, errand, question };
        self.ask(peer, call, Purpose::Exchange(id), message);
        self.arm(self.now.mono.plus(patience), Timer::Exchange(id));
    }

    /// The peer has answered, or refused.
    pub(crate) fn exchange_answered(&mut self, id: ExchangeId, call: CallId, result: Result<Answer, Refusal>) {
        let now = self.now.mono;
        let keyspaces = &self.keyspaces;
        let Some(exchange) = self.exchanges.get_mut(&id) else { return };
        if exchange.asked.take_if(|asked| asked.0 == call).is_none() {
            return;
        }
        let answer = match result {
            Ok(answer) => answer,
            Err(refusal) => {
                let booked = exchange.booked.take();
                self.unbook(booked);
                return self.exchange_refused(id, refusal);
            }
        };
        exchange.moved_at = now;
        exchange.round = call;
        match (&mut exchange.step, answer) {
            (Step::Tree { unless: Some(_) }, Answer::Equal) => self.exchange_done(id),
            (Step::Tree { .. }, Answer::Leaves(tree)) => {
                exchange.step = Step::OwnTree;
                exchange.tree = Some(tree);
                let partition = exchange.partition;
                self.read_leaves(partition, LeavesFor::Exchange(id));
            }
            (Step::Bulk { after, next: end }, Answer::Records { records, next }) => {
                if next.is_some() && next <= *after {
                    return self.exchange_misled(id);
                }
                *end = next;
                self.merge(id, records);
            }
            (Step::Walk(_), Answer::Records { records, .. }) => self.merge(id, records),
            (Step::Walk(walk), Answer::Digests { mut entries, next }) => {
                // The peer may not know yet that a keyspace was dropped.
                entries.retain(|entry| !keyspaces.is_dropped(entry.keyspace));
                if !walk.learn(entries, next) {
                    return self.exchange_misled(id);
                }
                self.exchange_step(id);
            }
            (Step::Walk(walk), Answer::Taken) => {
                walk.settled();
                self.exchange_step(id);
            }
            _ => self.exchange_misled(id),
        }
    }

    fn exchange_misled(&mut self, id: ExchangeId) {
        let peer = self.exchanges.get(&id).map(|exchange| exchange.peer).unwrap_or_default();
        self.exchange_failed(id, format!("{peer} answers something else than was asked"));
    }

    fn exchange_refused(&mut self, id: ExchangeId, refusal: Refusal) {
        let Some(peer) = self.exchanges.get(&id).map(|exchange| exchange.peer) else { return };
        let overtaken = matches!(refusal, Refusal::Behind { epoch } if epoch < self.caught_up(peer));
        let at = if overtaken { self.now.mono } else { self.now.mono.plus(self.config.retry_after) };
        let Some(exchange) = self.exchanges.get_mut(&id) else { return };
        let why = format!("{peer}: {refusal}");
        match refusal {
            // It will know more, or have more room, before long.
            Refusal::Behind { .. } | Refusal::Busy(_) => {
                exchange.waits = Some(Wait::Other(why));
                self.arm(at, Timer::Exchange(id));
            }
            Refusal::Stale { .. } | Refusal::NotSynced | Refusal::NotOwner => {
                self.repair_refused(id);
                self.exchange_failed(id, why);
            }
            Refusal::Failed(_) | Refusal::Late => self.exchange_failed(id, why),
        }
    }

    /// The session of the peer has ended.
    pub(crate) fn exchange_lost(&mut self, id: ExchangeId) {
        if let Some(exchange) = self.exchanges.get(&id) {
            let why = format!("{} is down", exchange.peer);
            self.exchange_failed(id, why);
        }
    }

    fn exchange_failed(&mut self, id: ExchangeId, why: String) {
        let Some(mut exchange) = self.take_exchange(id) else { return };
        self.unbook(exchange.booked.take());
        self.forget_calls(|purpose| purpose == Purpose::Exchange(id));
        match exchange.errand {
            Errand::Refill | Errand::Copy => self.copy_failed(id, &exchange, why),
            Errand::HandOver => self.handover_failed(id, &exchange, why),
            Errand::Repair => self.repair_failed(id, &exchange),
        }
    }

    fn exchange_done(&mut self, id: ExchangeId) {
        let Some(exchange) = self.take_exchange(id) else { return };
        match exchange.errand {
            Errand::Refill | Errand::Copy => self.copy_covered(id, &exchange),
            Errand::HandOver => self.handover_covered(id, &exchange),
            Errand::Repair => self.repair_done(id, &exchange),
        }
    }

    /// Merges what was received.
    fn merge(&mut self, id: ExchangeId, mut records: Vec<Keyed>) {
        records.retain(|(keyspace, ..)| !self.is_dropped(*keyspace));
        let Some(exchange) = self.exchanges.get_mut(&id) else { return };
        let (partition, round) = (exchange.partition, exchange.round);
        exchange.applying = records.len();
        exchange.spoiled = false;
        exchange.records += records.len() as u64;
        let bytes = bytes_of(&records);
        self.pay(id, bytes);
        if records.is_empty() {
            return self.merged(id);
        }
        let keys = records.iter().filter(|record| record.2.has_value()).count() as u64;
        self.copy_received(id, partition, keys, bytes);
        for (keyspace, key, record) in records {
            let key = StorageKey::new(Space::Owned, partition, keyspace, &key);
            self.with_key(key, Task::Apply { record, applied: Applied::Exchange { id, round } });
        }
    }

    /// Holds what depends on a merged record until it is durable.
    pub(crate) fn hold_merged(&mut self, key: &StorageKey, id: ExchangeId, round: CallId) {
        let held = Held::Merged { id, round };
        if self.rules.keep(Rule::CursorBehindData) {
            self.hold_key(key, held);
        } else {
            self.exchange_merged(id, round, true);
        }
    }

    /// A record is durable here, or could not be merged.
    pub(crate) fn exchange_merged(&mut self, id: ExchangeId, round: CallId, well: bool) {
        let Some(exchange) = self.exchanges.get_mut(&id) else { return };
        if exchange.round != round {
            return;
        }
        exchange.spoiled |= !well;
        exchange.applying = exchange.applying.saturating_sub(1);
        if exchange.applying == 0 {
            self.merged(id);
        }
    }

    /// All of an answer has been merged and is durable.
    fn merged(&mut self, id: ExchangeId) {
        let (now, retry_at) = (self.now.mono, self.now.mono.plus(self.config.retry_after));
        let Some(exchange) = self.exchanges.get_mut(&id) else { return };
        exchange.moved_at = now;
        if exchange.spoiled {
            // A record of this node's own is damaged and being mended.
            exchange.waits = Some(Wait::Other(OWN_DAMAGED.to_owned()));
            self.arm(retry_at, Timer::Exchange(id));
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
                self.copy_moved(id, at);
            }
            Step::Walk(walk) => walk.settled(),
            Step::OwnRoot | Step::Tree { .. } | Step::OwnTree | Step::OwnPage(_) => {}
        }
        self.exchange_step(id);
    }

    /// Reads the statistics of a partition of this node's own.
    pub(crate) fn read_leaves(&mut self, partition: PartitionId, reason: LeavesFor) {
        let read = ReadId(self.next_id());
        self.reads.insert(read, ReadFor::Leaves(reason));
        self.out.push(Effect::Leaves { read, partition });
    }

    /// Statistics were read.
    pub(crate) fn leaves_done(&mut self, read: ReadId, result: Result<PartitionStats, StorageError>) {
        let Some(ReadFor::Leaves(reason)) = self.reads.remove(&read) else { return };
        match (reason, result) {
            // They may show writes that are not durable yet.
            (reason, Ok(stats)) => self.hold(self.issued(), Held::Leaves { reason, stats: Box::new(stats) }),
            (LeavesFor::Exchange(id), Err(error)) => self.exchange_failed(id, error.to_string()),
            (LeavesFor::Serving(id), Err(error)) => self.serving_unreadable(id, &error),
            (LeavesFor::Receipt(partition), Err(_)) => self.receipt_unreadable(partition),
            (LeavesFor::Residue(partition), Err(_)) => self.residue_unreadable(partition),
            (LeavesFor::Purge(_), Err(_)) => self.purge_unreadable(),
        }
    }

    /// What the statistics of a partition show is durable.
    pub(crate) fn leaves_durable(&mut self, reason: LeavesFor, stats: &PartitionStats) {
        match reason {
            LeavesFor::Exchange(id) => self.own_tree(id, stats),
            LeavesFor::Serving(id) => self.serve_tree(id, stats),
            LeavesFor::Receipt(partition) => self.write_receipt(partition, stats),
            LeavesFor::Residue(partition) => self.residue_counted(partition, stats),
            LeavesFor::Purge(partition) => self.purge_counted(partition, stats),
        }
    }

    fn own_tree(&mut self, id: ExchangeId, own: &PartitionStats) {
        let mine = self.kept(own).records;
        let Some(exchange) = self.exchanges.get_mut(&id) else { return };
        if matches!(exchange.step, Step::OwnRoot) {
            exchange.step = Step::Tree { unless: Some(own.root()) };
            return self.exchange_step(id);
        }
        let (Step::OwnTree, Some(tree)) = (&exchange.step, &exchange.tree) else { return };
        let theirs = tree.tally.records;
        let takes_all = matches!(exchange.errand, Errand::Refill | Errand::Copy)
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
                return self.exchange_done(id);
            }
            if exchange.errand == Errand::Repair && differing.len() <= FEW_LEAVES && exchange.looks < LOOKS_MAX {
                exchange.step = Step::OwnRoot;
                self.arm(self.now.mono.plus(LOOK_AGAIN_AFTER), Timer::Exchange(id));
                return;
            }
            exchange.step = Step::Walk(Walk::new(differing));
        }
        self.exchange_step(id);
    }

    fn read_own_page(&mut self, id: ExchangeId, after: Option<Position>, upto: Known) {
        let Some(exchange) = self.exchanges.get_mut(&id) else { return };
        let partition = exchange.partition;
        let step = std::mem::replace(&mut exchange.step, Step::Tree { unless: None });
        let Step::Walk(walk) = step else { return };
        exchange.step = Step::OwnPage(walk);
        let until = match upto {
            Known::To(Some(position)) => storage_key(partition, &position).successor(),
            Known::To(None) | Known::All => StorageKey::partition_end(Space::Owned, partition),
        };
        let request = self.records_behind(partition, after.as_ref(), until, self.config.slice_bytes_max);
        let read = ReadId(self.next_id());
        self.reads.insert(read, ReadFor::Exchange(id));
        self.out.push(Effect::Slice { read, request });
    }

    /// A slice of a partition's records.
    fn records_behind(
        &self,
        partition: PartitionId,
        after: Option<&Position>,
        until: StorageKey,
        bytes_max: usize,
    ) -> SliceRequest {
        let from = after.map_or_else(
            || StorageKey::new(Space::Owned, partition, KeyspaceId(0), &[]),
            |after| storage_key(partition, after).successor(),
        );
        let from = self.behind_dropped(from).min(until.clone());
        let entries_max = self.config.slice_entries_max;
        SliceRequest { from, until, entries_max, bytes_max }
    }

    /// This node's own records of a page were read.
    pub(crate) fn own_page_read(&mut self, id: ExchangeId, result: Result<Slice, StorageError>) {
        match result {
            // Only what is durable here counts as held.
            Ok(slice) => self.hold(self.issued(), Held::OwnPage { id, slice }),
            Err(error) => self.exchange_failed(id, error.to_string()),
        }
    }

    pub(crate) fn own_page_durable(&mut self, id: ExchangeId, slice: Slice) {
        let Some(exchange) = self.exchanges.get(&id) else { return };
        let Step::OwnPage(walk) = &exchange.step else { return };
        let (leaves, pulls, pushes) = (walk.leaves(), exchange.pulls(), exchange.pushes());
        let last = slice.more.then(|| slice.entries.last().map(|entry| position(&entry.0))).flatten();
        let mut own = Vec::new();
        let mut damaged = false;
        let kept = |key: &StorageKey| !self.keyspaces.is_dropped(key.keyspace());
        let entries: Vec<&(StorageKey, bytes::Bytes)> =
            slice.entries.iter().filter(|entry| leaves.contains(&entry.0) && kept(&entry.0)).collect();
        for (key, bytes) in entries {
            match Stored::decode(bytes) {
                Ok(Stored { record, .. }) => {
                    let digest = record.digest();
                    own.push(Own { position: position(key), digest, record: pushes.then_some(record) });
                }
                Err(_) => {
                    damaged = true;
                    self.mend(key);
                }
            }
        }
        let retry_at = self.now.mono.plus(self.config.retry_after);
        let Some(exchange) = self.exchanges.get_mut(&id) else { return };
        let step = std::mem::replace(&mut exchange.step, Step::Tree { unless: None });
        let Step::OwnPage(mut walk) = step else { return };
        if damaged {
            exchange.waits = Some(Wait::Other(OWN_DAMAGED.to_owned()));
            exchange.step = Step::Walk(walk);
            self.arm(retry_at, Timer::Exchange(id));
            return;
        }
        walk.compare(own, last, pulls);
        exchange.step = Step::Walk(walk);
        self.exchange_step(id);
    }
}

/// Bytes of keys and records, as the statistics count them.
fn bytes_of(records: &[Keyed]) -> u64 {
    records.iter().map(|(_, key, record)| (key.len() + Stored::encoded_len(record)) as u64).sum()
}

fn position(key: &StorageKey) -> Position {
    (key.keyspace(), key.key_bytes())
}

fn storage_key(partition: PartitionId, position: &Position) -> StorageKey {
    StorageKey::new(Space::Owned, partition, position.0, &position.1)
}
