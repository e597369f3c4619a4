//! Gives what has become possible, and what components have brought about, to those to whom it belongs.

use super::{EventLoop, ctx};
use crate::acceptor;
use crate::apply;
use crate::error::StorageError;
use crate::exchange;
use crate::kernel::Ready;
use crate::message::{CallId, Message, Purpose, ReadReply, Refusal, SettleStep};
use crate::parts::{Ask, LoopInput, Tell};
use crate::register::proposal::Reply;
use crate::replication::{self, Goal};
use crate::requests::{Command, refusal_error};
use crate::settled::Change;
use crate::shell::{Effect, ReadId};
use crate::slices::Requester;
use crate::storage::{PartitionStats, Slice, Space, StorageKey, Stored};
use crate::types::{Epoch, NodeId, PartitionId};
use crate::version::Hlc;
use crate::wiring::{AfterDurable, Applied, Asker, ReadFor, StatsFor, Task, Timer, Waiter};

impl EventLoop {
    pub(super) fn handle(&mut self, input: LoopInput) {
        if let Some(error) = &self.poisoned {
            let error = error.clone();
            match input {
                LoopInput::Request { tag, .. } => self.kernel.effect(Effect::Reply { tag, outcome: Err(error) }),
                LoopInput::Told(Tell::Scan { tag, .. }) => self.kernel.say(Ask::Page { tag, outcome: Err(error) }),
                _ => {}
            }
            return;
        }
        match input {
            LoopInput::Request { tag, request, deadline } => {
                self.requests.client_request(ctx!(self), tag, request, deadline);
            }
            LoopInput::Message { from, message } => self.message(from, message),
            LoopInput::PeerOpened { node, incarnation } => self.peer_opened(node, incarnation),
            LoopInput::PeerDoubted { node } => self.peer_doubted(node),
            LoopInput::PeerDown { node } => self.peer_down(node),
            LoopInput::Heard { from } => self.kernel.note_heard(from),
            LoopInput::PeerSilent { node } => self.peer_stalled(node),
            LoopInput::ReadDone { read, result } => self.kernel.loaded(read, result),
            LoopInput::SliceDone { read, result } => self.slice_read(read, result),
            LoopInput::LeavesDone { read, result } => self.stats_read(read, result),
            LoopInput::Persisted { seq } => self.kernel.persisted(seq),
            LoopInput::PersistFailed { reason } => self.poison(reason),
            LoopInput::Retry(partitions) => self.filling.retry(ctx!(self), &mut self.exchanges, &partitions),
            LoopInput::Repair(partitions) => self.comparisons.request(ctx!(self), &mut self.exchanges, &partitions),
            LoopInput::Keyspaces(list) => self.keyspaces_given(list),
            LoopInput::Told(tell) => self.told(tell),
            LoopInput::Wake => {}
        }
    }

    pub(super) fn fire(&mut self, timer: Timer) {
        match timer {
            Timer::Deadline(op) => self.requests.deadline_passed(ctx!(self), op),
            Timer::Hedge(op) => self.requests.hedge(ctx!(self), op),
            Timer::Again(op) => self.requests.register_again(ctx!(self), op),
            Timer::Late => self.requests.late_registers(ctx!(self)),
            Timer::Retry(replication) => self.replications.retry(ctx!(self), replication),
            Timer::Watch(node) => self.watch_peer(node),
            Timer::Handoff => self.handoff.pass(ctx!(self)),
            Timer::Sweep => self.sweeper.pass(ctx!(self)),
            Timer::Purge => self.purge.step(ctx!(self)),
            Timer::Copy(partition) => self.filling.step(ctx!(self), &mut self.exchanges, partition),
            Timer::Exchange(exchange) => self.exchanges.step(ctx!(self), exchange),
            Timer::HandOver => self.residues.pass(ctx!(self), &mut self.exchanges),
            Timer::Repair => self.comparisons.turn(ctx!(self), &mut self.exchanges),
            Timer::Deferred => self.comparisons.again(ctx!(self), &mut self.exchanges),
            Timer::Settle => self.settling.pass(ctx!(self), &mut self.exchanges),
            Timer::Collect => self.settling.collect(ctx!(self)),
            Timer::GivenUp => self.kernel.forget_given_up(),
        }
    }

    /// Does everything that has become possible, until nothing is left of it.
    pub(super) fn settle(&mut self) {
        loop {
            if let Some(ready) = self.kernel.next() {
                self.ready(ready);
            } else if let Some(command) = self.requests.next_command() {
                self.carry_out(command);
            } else if let Some(outcome) = self.replications.next_outcome() {
                self.replication_outcome(outcome);
            } else if let Some(slice) = self.slices.next_answer() {
                self.requests.own_slice(ctx!(self), slice.scan, slice.result);
            } else if let Some(outcome) = self.exchanges.next_outcome() {
                self.exchange_outcome(outcome);
            } else if let Some(partition) = self.settling.next_partly_collected().or_else(|| self.kernel.take_uneven())
            {
                self.comparisons.add_partition(ctx!(self), &mut self.exchanges, partition);
            } else if let Some(key) = self.kernel.take_apart() {
                self.requests.confirm_register(ctx!(self), &key);
            } else if let Some(own) = self.settling.next_own() {
                let me = self.view.me();
                self.settle_asked(me, (own.round, own.step, own.until), &own.partitions);
            } else {
                break;
            }
        }
        self.handoff.note_held(ctx!(self));
        self.settling.note_unsettled(ctx!(self));
    }

    /// An owner takes a step of the settled barrier. What the view is to know it knows before anything else happens.
    pub(super) fn settle_asked(
        &mut self,
        from: NodeId,
        step: (CallId, SettleStep, Hlc),
        partitions: &[(PartitionId, Epoch)],
    ) {
        for change in self.settling.asked(ctx!(self), &self.residues, from, step, partitions) {
            match change {
                Change::Hold { partition, until, ends } => self.view.hold(partition, until, ends),
                Change::Release { partition, until } => self.view.release(partition, until),
            }
        }
    }

    fn ready(&mut self, ready: Ready<crate::wiring::Wires>) {
        match ready {
            Ready::Run { key, stored, task } => self.run(&key, stored.as_deref(), task),
            Ready::Refused { key, task, refusal } => self.refuse(&key, task, refusal),
            Ready::Durable(then) => self.durable(then),
            Ready::Unreadable(key) => self.requests.restore(ctx!(self), &key),
        }
    }

    /// The record of a key is in memory.
    fn run(&mut self, key: &StorageKey, stored: Option<&Stored>, task: Task) {
        // Its keyspace may have been dropped since.
        if self.view.refuses_dropped(key.keyspace()) {
            let refusal = Refusal::Failed(self.view.dropped_error(key.keyspace()));
            return self.refuse(key, task, refusal);
        }
        let cell = || stored.map(|stored| stored.cell.clone());
        let digest_of = |stored: &Stored| stored.cell.digest();
        match task {
            Task::Write(op) => self.requests.coordinate_write(ctx!(self), op, key, stored),
            Task::ReadForOp(op, role) => {
                let settled = self.view.watermark(key.partition());
                self.kernel.after_key(key, AfterDurable::ReadForOp { op, role, cell: cell(), settled });
            }
            Task::ReadForPeer { peer, call, digest } => {
                let held = if digest { ReadReply::Digest(stored.map(digest_of)) } else { ReadReply::Full(cell()) };
                let settled = self.view.watermark(key.partition());
                let message = Message::ReadResult { call, result: Ok(held), settled };
                self.kernel.after_key(key, AfterDurable::Send { to: peer, message });
            }
            Task::Register { asker, question } => acceptor::answer(ctx!(self), key, stored, asker, question),
            Task::Apply { cell, applied } => {
                if let Applied::Offered { serving } | Applied::Residue { serving, .. } = applied
                    && let Err(refusal) = self.serving.serves(&self.view, serving)
                {
                    return self.kernel.refuse(key.clone(), Task::Apply { cell, applied }, refusal);
                }
                apply::apply(ctx!(self), key, stored, cell, applied);
            }
            Task::Sweep => self.sweeper.record(ctx!(self), key, stored),
            Task::HandOff { space } => {
                self.handoff.hand_off(ctx!(self), &mut self.replications, key, space, stored);
            }
            Task::Mark => {
                if stored.is_none() {
                    self.kernel.put(key, Some(Stored::marker()));
                }
            }
            Task::RemoveHint { digest } => {
                if stored.is_some_and(|stored| digest_of(stored) == digest) {
                    self.kernel.put(key, None);
                }
            }
            Task::UnmarkUnchanged { digest } => {
                if stored.is_none_or(|stored| digest_of(stored) == digest) {
                    self.kernel.with_key(key.in_space(Space::Missed), Task::Unmark);
                }
            }
            Task::Unmark => {
                if stored.is_some() {
                    self.kernel.put(key, None);
                }
            }
            Task::Fetch { serving } => {
                let fetched = AfterDurable::Fetched { serving, key: key.clone(), cell: cell() };
                self.kernel.after_key(key, fetched);
            }
            Task::Drop { epoch } => self.residues.drop_record(ctx!(self), key, stored, epoch),
            Task::Collect => self.settling.collect_record(ctx!(self), key, stored),
            Task::Condemn { settled, id, round } => {
                self.settling.condemn(ctx!(self), key, stored, (settled, id, round));
            }
        }
    }

    /// A task cannot run, because its record cannot be had.
    fn refuse(&mut self, key: &StorageKey, task: Task, refusal: Refusal) {
        match task {
            Task::Write(op) => self.requests.finish(ctx!(self), op, Err(refusal_error(&refusal))),
            Task::ReadForOp(op, role) => {
                let me = self.view.me();
                self.requests.read_failed(ctx!(self), op, me, role, Some(refusal));
            }
            Task::ReadForPeer { peer, call, .. } => {
                self.kernel.send(peer, Message::ReadResult { call, result: Err(refusal), settled: Hlc::default() });
            }
            Task::Apply { applied: Applied::Peer { peer, call, .. }, .. } => {
                self.kernel.send(peer, Message::Replicated { call, result: Err(refusal), commit: 0 });
            }
            Task::Apply { applied: Applied::Exchange { id, round, .. }, .. } | Task::Condemn { id, round, .. } => {
                self.exchanges.record_merged(ctx!(self), id, round, false);
            }
            Task::Apply { applied: Applied::Offered { serving } | Applied::Residue { serving, .. }, .. } => {
                self.serving.refuse(ctx!(self), serving, refusal);
            }
            Task::Register { asker, .. } => self.register_answer(asker, Err(refusal)),
            Task::Fetch { serving } => self.serving.fetched(ctx!(self), serving, key, None),
            Task::Sweep => self.sweeper.refused(ctx!(self), key.partition()),
            Task::Collect => self.settling.collect_refused(ctx!(self), key),
            Task::Drop { .. } => self.residues.drop_made(ctx!(self), key.partition(), None),
            Task::HandOff { .. } | Task::Apply { applied: Applied::OwnHint, .. } => self.handoff.skipped(ctx!(self)),
            Task::Apply { applied: Applied::Repair, .. }
            | Task::Mark
            | Task::RemoveHint { .. }
            | Task::UnmarkUnchanged { .. }
            | Task::Unmark => {}
        }
    }

    /// This node's replica has answered a proposer.
    fn register_answer(&mut self, asker: Asker, result: Result<Reply, Refusal>) {
        if let Some((op, call, result)) = acceptor::answered(ctx!(self), asker, result) {
            let me = self.view.me();
            self.requests.register_answered(ctx!(self), op, me, call, result.map_err(Some));
        }
    }

    /// What was waited for is durable.
    fn durable(&mut self, then: AfterDurable) {
        match then {
            AfterDurable::Send { to, message } => self.kernel.send(to, message),
            AfterDurable::Replicated { peer, call, session, partition } => {
                if self.kernel.peers.session(peer) == session {
                    self.kernel.send(peer, Message::Replicated { call, result: Ok(()), commit: 0 });
                } else {
                    // Whoever sent it may have died since, and nobody else may know of the record; and the comparisons
                    // that are pending for that may have come before it.
                    self.comparisons.add_partition(ctx!(self), &mut self.exchanges, partition);
                }
            }
            AfterDurable::Register { asker, reply } => self.register_answer(asker, Ok(reply)),
            AfterDurable::Acked { op, epoch } => self.requests.write_durable(ctx!(self), op, epoch),
            AfterDurable::ReadForOp { op, role, cell, settled } => {
                let me = self.view.me();
                self.requests.read_answered(ctx!(self), op, (me, role), ReadReply::Full(cell), settled);
            }
            AfterDurable::Merged { id, round } => self.exchanges.record_merged(ctx!(self), id, round, true),
            AfterDurable::Slice { job } => self.slices.durable(ctx!(self), job),
            AfterDurable::Stats { reason, stats } => self.stats_durable(reason, &stats),
            AfterDurable::OwnPage { id, slice } => self.exchanges.own_page_durable(ctx!(self), id, slice),
            AfterDurable::Served { id, slice } => self.serving.served_durable(ctx!(self), id, slice),
            AfterDurable::Fetched { serving, key, cell } => {
                self.serving.fetched(ctx!(self), serving, &key, cell);
            }
            AfterDurable::Taken { serving } => self.serving.taken(ctx!(self), serving),
            AfterDurable::OwnHint { key, cell } => {
                let own = self.view.entry(key.partition()).map(|entry| entry.changed);
                let ctx = ctx!(self);
                self.handoff.hand_off_to_others(ctx, &mut self.replications, &key, Space::Hint, cell, own);
            }
            AfterDurable::Covered(receipt) => self.covered(*receipt),
            AfterDurable::Dropped(partition) => self.residues.drop_durable(ctx!(self), partition),
            AfterDurable::Settled { to, round, step, answers } if to == self.view.me() => {
                self.settling.answered(ctx!(self), &mut self.exchanges, to, (round, step), answers);
            }
            AfterDurable::Settled { to, round, step, answers } => {
                self.kernel.send(to, Message::Settled { round, step, answers });
            }
            AfterDurable::Sweep => self.sweeper.read_slice(ctx!(self)),
            AfterDurable::Collect => self.settling.collect_begins(ctx!(self)),
            AfterDurable::Watermark { partition, settled } => {
                self.view.note_settled(partition, settled);
                self.settling.watermark_durable(ctx!(self), partition, settled);
            }
            AfterDurable::Purged => self.purge.slice_durable(ctx!(self)),
            AfterDurable::Synced { partition, synced } => self.synced(partition, synced),
        }
    }

    /// A slice was read beside the loop.
    fn slice_read(&mut self, read: ReadId, result: Result<Slice, StorageError>) {
        match self.kernel.take_read(read) {
            Some(ReadFor::Slice { job, part }) => self.slices.part_done(ctx!(self), job, part, result),
            Some(ReadFor::HandOff) => match result {
                Ok(slice) => self.handoff.read(ctx!(self), &slice),
                Err(_) => self.handoff.unreadable(ctx!(self)),
            },
            Some(ReadFor::Sweep(partition)) => self.sweeper.read(ctx!(self), partition, result.ok()),
            Some(ReadFor::Exchange(exchange)) => self.exchanges.own_page_read(ctx!(self), exchange, result),
            Some(ReadFor::Serving(serving)) => self.serving.serving_read(ctx!(self), serving, result),
            Some(ReadFor::Drop(partition)) => {
                self.residues.drop_read(ctx!(self), partition, result.ok());
            }
            Some(ReadFor::Collect(partition)) => self.settling.collect_read(ctx!(self), partition, result.ok()),
            Some(ReadFor::Purge(partition)) => self.purge.read(ctx!(self), partition, result.ok()),
            Some(ReadFor::Stats(_)) | None => {}
        }
    }

    /// The statistics of a partition were read beside the loop.
    fn stats_read(&mut self, read: ReadId, result: Result<PartitionStats, StorageError>) {
        let Some(ReadFor::Stats(reason)) = self.kernel.take_read(read) else { return };
        match (reason, result) {
            // They may show writes that are not durable yet.
            (reason, Ok(stats)) => {
                self.kernel.after_issued(AfterDurable::Stats { reason, stats: Box::new(stats) });
            }
            (StatsFor::Exchange(id), Err(error)) => self.exchanges.unreadable(ctx!(self), id, &error),
            (StatsFor::Serving(id), Err(error)) => self.serving.unreadable(ctx!(self), id, &error),
            (StatsFor::Receipt(partition), Err(_)) => self.filling.receipt_unreadable(ctx!(self), partition),
            (StatsFor::Residue(partition), Err(_)) => self.residues.unreadable(ctx!(self), partition),
            (StatsFor::Purge(_), Err(_)) => self.purge.unreadable(ctx!(self)),
        }
    }

    /// What the statistics of a partition show is durable.
    fn stats_durable(&mut self, reason: StatsFor, stats: &PartitionStats) {
        match reason {
            StatsFor::Exchange(id) => self.exchanges.own_tree(ctx!(self), id, stats),
            StatsFor::Serving(id) => self.serving.serve_tree(ctx!(self), id, stats),
            StatsFor::Receipt(partition) => self.filling.write_receipt(ctx!(self), partition, stats),
            StatsFor::Residue(partition) => self.residues.counted(ctx!(self), partition, stats),
            StatsFor::Purge(partition) => self.purge.counted(ctx!(self), partition, stats),
        }
    }

    /// A request needs something of others.
    fn carry_out(&mut self, command: Command) {
        match command {
            Command::Replicate { key, cell, targets, goal } => {
                // A read repair can wait for the next read.
                let waits = matches!(goal, Goal::Repair);
                if !waits || self.replications.len() < self.view.config.replications_max {
                    let ctx = ctx!(self);
                    self.replications.start(ctx, key, cell, targets, goal);
                }
            }
            Command::Slice { op, attempt, query } => {
                self.slices.serve(ctx!(self), Requester::Op(op, attempt), query);
            }
            Command::ForgetSlices { op } => self.slices.forget(op),
        }
    }

    fn replication_outcome(&mut self, outcome: replication::Outcome) {
        use replication::Outcome;
        match outcome {
            Outcome::Acked { op, node, role, epoch } => self.requests.write_acked(ctx!(self), op, node, role, epoch),
            Outcome::Declined { op, node } => self.requests.write_declined(ctx!(self), op, node),
            Outcome::Refused { id, op, node } => {
                self.requests.write_declined(ctx!(self), op, node);
                let wants_fallback = self.requests.write_wants_fallback(op);
                self.replications.go_on(ctx!(self), id, wants_fallback);
            }
            Outcome::WriteEnded { op } => self.requests.write_short(ctx!(self), op),
            Outcome::HandedOff { key, space, digest, own, confirmed } => {
                self.handoff.handed_off(ctx!(self), &key, (space, digest, own), confirmed);
            }
        }
    }

    fn exchange_outcome(&mut self, outcome: exchange::Outcome) {
        use exchange::Outcome;
        match outcome {
            Outcome::Received { id, partition, keys, bytes } => self.filling.received(id, partition, keys, bytes),
            Outcome::Moved { id, partition, at } => self.filling.moved(ctx!(self), id, partition, at),
            Outcome::Refused { id } => self.comparisons.refused(id),
            Outcome::Done(ended) => match ended.purpose {
                Purpose::Refill | Purpose::Copy => {
                    let settled = ended.tree.as_ref().map_or(Hlc::default(), |tree| tree.settled);
                    self.settling.inherit(ctx!(self), ended.partition, settled);
                    self.filling.covered(ctx!(self), &mut self.exchanges, &ended);
                }
                Purpose::HandOver => self.residues.covered(ctx!(self), &ended),
                Purpose::Repair => self.comparisons.done(ctx!(self), &mut self.exchanges, &ended),
                Purpose::Settle => self.settling.compared(ctx!(self), &mut self.exchanges, &ended),
            },
            Outcome::Failed(ended, why) => match ended.purpose {
                Purpose::Refill | Purpose::Copy => self.filling.failed(ctx!(self), &mut self.exchanges, &ended, why),
                Purpose::HandOver => self.residues.failed(ctx!(self), &ended, why),
                Purpose::Repair => self.comparisons.failed(ctx!(self), &mut self.exchanges, &ended),
                Purpose::Settle => self.settling.not_compared(ctx!(self), &mut self.exchanges, &ended, why),
            },
        }
    }

    /// Whether a request or a replication waits for an answer. Exchanges have time.
    pub(super) fn waits(&self, waiter: Waiter) -> bool {
        match waiter {
            Waiter::Forward(op) | Waiter::Read(op, _) | Waiter::Register(op) | Waiter::Slice(op) => {
                self.requests.is_open(op)
            }
            Waiter::Replicate(replication) => self.replications.is_open(replication),
            Waiter::Exchange(_) => false,
        }
    }
}
