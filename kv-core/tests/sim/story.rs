//! The words of directed scripts, so that each reads like its story: who is isolated, what is written where, how long it
//! takes, and what is expected in the end.

use kv_core::message::{Attempt, Consistency, Level};
use kv_core::types::{Hlc, RequestId};

use crate::check;
use crate::clock::Time;
use crate::history::{KeyId, OpId, WriteOp};
use crate::report::Count;
use crate::settings::MS;
use crate::workload::{Ask, Asker};
use crate::world::World;

/// Longer than any failure detector waits.
const NOTICED_AFTER: Time = 500 * MS;

/// Where a request of a client that names nothing is kept until its coordinator's name is known.
const UNNAMED: u64 = 99;

impl World {
    /// The keys and clients are there, and every machine runs.
    pub(crate) fn begin(&mut self) {
        self.plan_work();
        self.settle_machines();
    }

    /// Time passes.
    pub(crate) fn wait(&mut self, time: Time) {
        self.run_until(self.time + time);
    }

    /// Some time passes, so many milliseconds at the most.
    pub(crate) fn wait_a_while(&mut self, at_most: u64) {
        let time = self.dice.below(at_most) * MS;
        self.wait(time);
    }

    /// As long as it takes until everybody has noticed what is cut off.
    pub(crate) fn wait_until_noticed(&mut self) {
        self.wait(NOTICED_AFTER);
    }

    /// Time passes until something is true, or for so long. Whether it is.
    pub(crate) fn wait_for(&mut self, at_most: Time, is_true: impl Fn(&Self) -> bool) -> bool {
        let end = self.time + at_most;
        while !is_true(self) {
            if self.failure.is_some() || self.time >= end {
                return false;
            }
            self.wait(MS);
        }
        true
    }

    /// The operation ends, or so much time passes.
    pub(crate) fn wait_for_operation(&mut self, at_most: Time) {
        let end = self.time + at_most;
        while self.operation.is_some() && self.failure.is_none() && self.time < end {
            self.wait(5 * MS);
        }
    }

    /// Nothing passes between a machine and all others.
    pub(crate) fn isolate(&mut self, machine: usize) {
        for other in self.others(machine) {
            self.cut(machine, other);
            self.cut(other, machine);
        }
    }

    /// A machine reaches all others again, and they reach it.
    pub(crate) fn rejoin(&mut self, machine: usize) {
        for other in self.others(machine) {
            self.heal_path(machine, other);
            self.heal_path(other, machine);
        }
    }

    fn others(&self, machine: usize) -> impl Iterator<Item = usize> + use<> {
        (0..self.machines.len()).filter(move |other| *other != machine)
    }

    /// A machine hears of no layout behind the one in force.
    pub(crate) fn hold_layouts_back(&mut self, machine: usize) {
        self.machines[machine].hears_up_to = Some(self.layout().epoch);
    }

    /// It hears of all layouts again, at once.
    pub(crate) fn give_layouts(&mut self, machine: usize) {
        self.machines[machine].hears_up_to = None;
        self.tell_layouts(machine);
    }

    /// A value, or a delete, is written through a machine and awaited.
    pub(crate) fn write(&mut self, key: KeyId, is_delete: bool, consistency: Consistency, through: usize) {
        let value = (!is_delete).then(|| self.history.next_value(key.0));
        self.audit_write(key, value, consistency, through);
    }

    /// A client that has no clock, and names nothing, puts a value, for a while perhaps, and is answered.
    pub(crate) fn put_unnamed(&mut self, key: KeyId, ttl: bool, consistency: Consistency, through: usize) -> OpId {
        let op = self.plan_unnamed(key, ttl, consistency);
        let layout = self.layouts.len() - 1;
        self.ask(Asker::Past, Ask::Write(op, Attempt::Plain), through, layout);
        self.wait_for(1000 * MS, |world| world.pending.is_empty());
        self.wait(30 * MS);
        op
    }

    /// The same, planned.
    pub(crate) fn plan_unnamed(&mut self, key: KeyId, ttl: bool, consistency: Consistency) -> OpId {
        let value = Some(self.history.next_value(key.0));
        let counted = u64::try_from(self.history.ops.len()).unwrap_or(0);
        let request = RequestId { stamp: Hlc(counted), client: UNNAMED };
        let op = WriteOp { unnamed: true, ttl, ..WriteOp::new(key, consistency, request, value, self.time) };
        self.history.add_op(op)
    }

    /// All clocks are set: no node sees that by the others.
    pub(crate) fn set_clocks(&mut self, ahead: i64) {
        self.count(Count::ClockSkews);
        self.history.clocks_are_wrong = true;
        self.remember_clocks();
        self.machines.iter_mut().for_each(|machine| machine.clock.skew = ahead);
    }

    /// Frames from one machine to another take so much longer from now on.
    pub(crate) fn delay_frames(&mut self, from: usize, to: usize, by: Time) {
        self.network.slow[from][to] = by;
    }

    /// A value is written through a machine, which has sent it to others and has not made it durable. Nobody waits for the answer.
    pub(crate) fn write_unheard(&mut self, key: KeyId, through: usize) {
        let value = Some(self.history.next_value(key.0));
        let op = self.plan_write(key, value, Consistency { level: Level::One, strict: false });
        let layout = self.layouts.len() - 1;
        self.ask(Asker::Audit, Ask::Write(op, Attempt::First), through, layout);
        self.wait_for(100 * MS, |world| world.machines[through].disk.last_pending().is_some());
        self.pending.clear();
    }

    /// A process is killed; its disk loses all that is not durable.
    pub(crate) fn crash_forgetting(&mut self, machine: usize) {
        self.machines[machine].disk.forgets = true;
        self.crash(machine);
    }

    /// All owners of each key hold the same.
    pub(crate) fn expect_equal_replicas(&mut self) {
        if self.failure.is_none() {
            let equal = check::converged::replicas_are_equal(self);
            self.expect(equal);
        }
    }
}
