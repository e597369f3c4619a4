//! The end of a run: faults stop, the cluster settles, and what is left is judged.

use std::collections::BTreeMap;

use bytes::Bytes;
use kv_core::config::NodeConfig;
use kv_core::error::Kind;
use kv_core::message::{Attempt, Consistency, Level, Outcome, Response, ScanRequest};
use kv_core::node::Node;
use kv_core::types::Hlc;

use crate::check::{answers, collected, converged, kept, kept::Final, remembered, renewed};
use crate::clock::MachineClock;
use crate::history::{End, KeyId, OpId, WriteOp};
use crate::report::Count;
use crate::settings::{MS, node_id};
use crate::trace::note;
use crate::workload::{Ask, Asker, Stamps};
use crate::world::World;

/// A cluster that is not quiet this long after all faults have ended has lost track of something.
const SETTLE_MAX: u64 = 60_000 * MS;

/// How soon every member durably knows how far a store is: half a second until it is said, half a second until that is
/// written, and the time of the way and of a sync.
const REMEMBERED_WITHIN: u64 = 1200 * MS;

/// How consistent the audit reads and writes: every owner takes part.
const ALL: Consistency = Consistency { level: Level::All, strict: true };

/// What the audit has read.
#[derive(Debug, Default)]
pub(crate) struct Audit {
    finals: BTreeMap<KeyId, Final>,
    /// The keys found by the scan that is under way.
    scanned: Vec<Bytes>,
    /// Where its next page starts.
    next: Option<Bytes>,
    /// Whether the last request was refused because there was no room, or by a node that knew another layout.
    is_refused: bool,
    /// Names its writes.
    stamps: Option<Stamps>,
}

impl World {
    /// Runs the world from the beginning to the verdict.
    pub(crate) fn run(&mut self) {
        self.plan_work();
        self.plan_faults();
        self.run_until(self.settings.trouble_ends);
        self.finish();
    }

    /// Ends all trouble and judges what is left.
    pub(crate) fn finish(&mut self) {
        let micros = |time: std::time::Duration| u64::try_from(time.as_micros()).unwrap_or(0);
        self.stop_clients();
        self.heal();
        self.settle();
        // Failure detectors may yet give up somebody whom they heard nothing of before.
        self.run_until(self.time + 400 * MS);
        self.settle();
        if self.settings.repetitions > 0 {
            // What was written last is repeated for as long as that is allowed, and longer.
            let within = self.settings.repeat_within();
            self.run_until(self.time + within + within / 8 + 10 * MS);
            self.settle();
        }
        let points = remembered::points(self);
        self.run_until(self.time + REMEMBERED_WITHIN);
        self.judge(|world| remembered::by_all(world, &points));
        self.is_audited = true;
        self.settle();
        if self.report.get(Count::ClockSkews) == 0 && !self.settings.left_to_reads {
            // Replicas become equal without anybody asking, once each has found what expires.
            let NodeConfig { sweep_every, repair_every, .. } = &self.settings.node;
            self.run_until(self.time + micros(*sweep_every) * 2 + micros(*repair_every) * 3 + 200 * MS);
            self.settle();
            self.judge(converged::replicas_are_equal);
        }
        // Timestamps of a clock that was far ahead are refused until the other clocks have come near (rule A8), and the
        // audit would see values expire.
        let wait = if self.report.get(Count::ClockSkews) > 0 { 3000 * MS } else { 600 * MS };
        // What one owner has swept and collected another one holds until it has swept it.
        let wait = wait.max(micros(self.settings.node.sweep_every) * 2 + 200 * MS);
        self.run_until(self.time + wait);
        self.settle();
        // Two reads of everything: the first repairs, the second must find nothing to repair.
        self.read_everything();
        let first = std::mem::take(&mut self.audit.finals);
        self.settle();
        self.read_everything();
        self.judge(|world| world.judge_finals(&first));
        self.scan_everything();
        self.settle();
        self.judge(converged::replicas_are_equal);
        // Every tombstone becomes old enough, and goes, unless that is switched off.
        self.run_until(self.time + micros(self.settings.age()) + 100 * MS);
        self.settle();
        if !self.settings.node.settle_every.is_zero() {
            self.judge(collected::none_is_left);
        }
        self.judge(converged::replicas_are_equal);
        self.judge(|world| answers::nothing_means_nothing(&world.history));
        self.write_everything();
        self.settle();
        self.judge(converged::replicas_are_equal);
        self.judge(renewed::old_copies_are_merged);
        self.judge_registers();
        self.settle();
        self.judge(Self::registers_are_equal);
    }

    fn judge(&mut self, check: impl Fn(&Self) -> Result<(), String>) {
        if self.failure.is_none() {
            let judged = check(self);
            self.expect(judged);
        }
    }

    /// Runs until all machines run, know the layout and talk to each other, and no partition is being refilled.
    pub(crate) fn settle_machines(&mut self) {
        let end = self.time + SETTLE_MAX;
        while self.failure.is_none() && self.time < end {
            self.run_until(self.time + 20 * MS);
            let living = self.living();
            let connected = living
                .iter()
                .all(|&one| living.iter().all(|&other| one == other || self.network.is_connected(one, other)));
            let knows = |core: &Node| core.status().epoch == self.layout().epoch;
            let ready = living.iter().all(|machine| self.machines[*machine].core.as_ref().is_some_and(knows));
            if connected && ready && self.unsynced.is_empty() {
                // A node uses a session when it durably knows the peer.
                self.run_until(self.time + 50 * MS);
                return;
            }
        }
    }

    /// Runs until nothing is left to do.
    pub(crate) fn settle(&mut self) {
        let end = self.time + SETTLE_MAX;
        while self.failure.is_none() {
            self.run_until(self.time + 20 * MS);
            let Some(busy) = self.what_is_left() else { return };
            if self.time > end {
                self.fail(format!("liveness: {} s after all faults ended: {busy}", SETTLE_MAX / MS / 1000));
            }
        }
    }

    /// Something that is not settled yet.
    fn what_is_left(&self) -> Option<String> {
        if !self.clients_are_done() {
            return Some("a client waits for an answer".to_owned());
        }
        if !self.pending.is_empty() {
            return Some("a request has no answer".to_owned());
        }
        if self.operation.is_some() {
            return Some(format!("the operation has not ended: {}", self.why_operation_waits()));
        }
        let living = self.living();
        for &index in &living {
            let machine = &self.machines[index];
            let node = node_id(index);
            let Some(core) = &machine.core else { return Some(format!("{node} is down")) };
            if let Some(peer) =
                living.iter().copied().find(|peer| *peer != index && !self.network.is_connected(index, *peer))
            {
                return Some(format!("{node} and {} do not talk", node_id(peer)));
            }
            let status = core.status();
            let quiet = status.requests == 0
                && status.replications == 0
                && status.hints == 0
                && status.hint_bytes == 0
                && status.missed_writes == 0
                && status.unsynced.is_empty()
                && status.receiving == 0
                && status.leaving == 0
                && status.repairing == 0
                && status.dropping == 0
                && status.settling.due == 0
                && !status.reclaiming
                && status.peer_bytes == 0
                && status.unsynced_batches == 0
                && status.keys_busy == 0
                && !status.poisoned
                && status.epoch == self.layout().epoch;
            if !quiet {
                return Some(format!("{node} is busy: {status:?}"));
            }
        }
        if !self.unsynced.is_empty() {
            return Some(format!("partitions were never refilled: {:?}", self.unsynced.keys()));
        }
        None
    }

    /// What the nodes say of the copies that are not done.
    fn why_operation_waits(&self) -> String {
        let waiting = |index: &usize| {
            let transfers = self.machines[*index].core.as_ref().map(Node::transfers).unwrap_or_default();
            transfers.into_iter().map(|transfer| format!("{}: {transfer:?}", node_id(*index))).collect::<Vec<_>>()
        };
        self.living().iter().flat_map(waiting).collect::<Vec<_>>().join("; ")
    }

    /// Asks one thing after the other, each of one machine; an error is a failure of the run.
    pub(crate) fn audit_asks(&mut self, asks: Vec<(Ask, usize)>) {
        note!(self, "audit: {} requests", asks.len());
        for (ask, machine) in asks {
            // Where there is no room a client slows down and tries again: what is still under way, such as a forward that was
            // hedged, ends, and then there is. So it does when the layout has just changed.
            let end = self.time + SETTLE_MAX;
            loop {
                self.ask(Asker::Audit, ask.clone(), machine, self.layouts.len() - 1);
                self.await_audit();
                if self.failure.is_some() || !std::mem::take(&mut self.audit.is_refused) {
                    break;
                }
                if self.time > end {
                    self.fail(format!("liveness: {ask:?} is refused again and again although nothing else is asked"));
                }
                self.run_until(self.time + 20 * MS);
            }
        }
    }

    /// One after the other: a node with tight limits takes only a few requests at once. A forward that was hedged is answered
    /// while another owner is still busy with it.
    fn await_audit(&mut self) {
        let end = self.time + 2000 * MS;
        let is_busy = |world: &Self| {
            let cores = world.machines.iter().filter_map(|machine| machine.core.as_ref());
            !world.pending.is_empty() || cores.into_iter().any(|core| core.status().requests > 0)
        };
        while is_busy(self) && self.failure.is_none() && self.time < end {
            self.run_until(self.time + MS);
        }
    }

    fn read_everything(&mut self) {
        let mut asks = Vec::new();
        for key in self.history.key_ids() {
            let living = self.living();
            let machine = *self.dice.pick(&living);
            asks.push((Ask::Read { key, consistency: ALL }, machine));
        }
        self.audit_asks(asks);
    }

    /// Scans every keyspace, page by page, and compares with what the gets have found.
    fn scan_everything(&mut self) {
        let available = self.keyspaces.iter().filter(|keyspace| keyspace.available().is_some());
        for keyspace in available.cloned().collect::<Vec<_>>() {
            self.audit.scanned.clear();
            self.audit.next = None;
            loop {
                let after = self.audit.next.take();
                let prefix = Bytes::new();
                let scan =
                    ScanRequest { keyspace: keyspace.id, prefix, after, limit: 3, keys_only: false, consistency: ALL };
                let living = self.living();
                let machine = *self.dice.pick(&living);
                self.audit_asks(vec![(Ask::Scan(scan), machine)]);
                if self.failure.is_some() || self.audit.next.is_none() {
                    break;
                }
            }
            let live = |key: &KeyId| self.audit.finals.get(key).is_some_and(|read| !read.values.is_empty());
            let here = |key: &KeyId| self.history.key(*key).keyspace == keyspace.id;
            let keys = self.history.key_ids().filter(|key| here(key) && live(key));
            let mut expected: Vec<Bytes> = keys.map(|key| self.history.key(key).bytes.clone()).collect();
            expected.sort();
            if expected != self.audit.scanned {
                let scanned = std::mem::take(&mut self.audit.scanned);
                self.fail(format!("a scan of {} returned {scanned:?}, gets found {expected:?}", keyspace.id));
            }
        }
    }

    fn write_everything(&mut self) {
        for key in self.history.key_ids() {
            let value = Some(self.history.next_value(0));
            let machine = self.first_owner(key);
            self.audit_write(key, value, ALL, machine);
        }
    }

    /// Writes a key without a context, which must succeed; `None` deletes.
    pub(crate) fn audit_write(&mut self, key: KeyId, value: Option<Bytes>, consistency: Consistency, machine: usize) {
        let op = self.plan_write(key, value, consistency);
        self.audit_asks(vec![(Ask::Write(op, Attempt::Plain), machine)]);
    }

    /// A write of the audit that nobody has asked for yet.
    pub(crate) fn plan_write(&mut self, key: KeyId, value: Option<Bytes>, consistency: Consistency) -> OpId {
        let (wall, now) = (MachineClock::new().wall(self.time), self.time);
        // By a clock that is right, and above all that was shown.
        let request = self.audit.stamps.get_or_insert_with(|| Stamps::new(u64::MAX, wall, now)).next(now);
        let op = WriteOp::new(key, consistency, request, value, now);
        self.history.add_op(op)
    }

    /// An answer to the audit arrives.
    pub(crate) fn audit_learns(&mut self, ask: &Ask, outcome: Outcome) {
        match (ask, outcome) {
            (Ask::Bad { kind, .. }, Err(error)) if error.kind == *kind => {}
            (Ask::Write(op, _), Err(error)) if error.wants_stamp() => {
                let now = self.time;
                if let Some(stamps) = &mut self.audit.stamps {
                    stamps.shown(error.newest);
                    let request = stamps.next(now);
                    self.history.stamp_anew(*op, request, now);
                }
                self.audit.is_refused = true;
            }
            (_, Err(error)) if matches!(error.kind, Kind::Exhausted | Kind::StaleEpoch) => self.audit.is_refused = true,
            (_, Err(error)) => {
                self.fail(format!("liveness: after everything has healed {ask:?} fails: {:?}: {error}", error.kind));
            }
            (Ask::Read { key, .. }, Ok(Response::Got { values, context, newest })) => {
                self.audit_is_shown(newest);
                match crate::check::shown::values(self, *key, &values, &context) {
                    Ok((context, mut values)) => {
                        values.sort();
                        self.audit.finals.insert(*key, Final { values, context });
                    }
                    Err(what) => self.fail(what),
                }
            }
            (Ask::Scan(_), Ok(Response::Page { entries, next })) => {
                self.audit.scanned.extend(entries.into_iter().map(|entry| entry.key));
                self.audit.next = next;
            }
            (ask, Ok(Response::Written { newest, .. })) => {
                self.audit_is_shown(newest);
                self.set_end(ask, End::Done);
            }
            (ask, _) => self.set_end(ask, End::Done),
        }
    }

    /// The audit learns a timestamp, unless a clock is so wrong that other nodes would refuse it.
    fn audit_is_shown(&mut self, newest: Hlc) {
        let limit = Hlc::at(MachineClock::new().wall(self.time)).plus(self.settings.cluster.clock_skew_max / 2);
        if let Some(stamps) = self.audit.stamps.as_mut().filter(|_| newest <= limit) {
            stamps.shown(newest);
        }
    }

    fn judge_finals(&self, first: &BTreeMap<KeyId, Final>) -> Result<(), String> {
        for key in self.history.key_ids() {
            let Some(read) = self.audit.finals.get(&key) else {
                return Err(format!("liveness: {key:?} could not be read at the end"));
            };
            let with_collected = |read: &Final| Final {
                context: collected::with_collected(self, key, &read.context),
                values: read.values.clone(),
            };
            let read = &with_collected(read);
            kept::all_acknowledged(&self.history, key, read, self.wall_high())?;
            if let Some(earlier) = first.get(&key).map(with_collected)
                && earlier.context != read.context
            {
                return Err(format!("two reads of {key:?} at all differ though nobody wrote: {earlier:?}, {read:?}"));
            }
        }
        Ok(())
    }
}
