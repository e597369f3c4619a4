//! Rule A8 in stories: clocks that are off. Each is told first with a part of the rule and then without it.

use std::time::Duration;

use kv_core::message::{Consistency, Level};
use kv_core::rule::Rule;
use kv_core::storage::Space;
use kv_core::version::{Conflict, Record};

use crate::history::{KeyId, OpId};
use crate::report::Count;
use crate::rules::{alone, check};
use crate::settings::{MS, Mutation, Settings};
use crate::world::World;

const ONE: Consistency = Consistency { level: Level::One, strict: false };
const QUORUM: Consistency = Consistency { level: Level::Quorum, strict: true };
const ALL: Consistency = Consistency { level: Level::All, strict: true };

/// By how much a clock is ahead in these stories.
const AHEAD: i64 = 3_000_000;

/// As long as it takes at most until a node has compared its clock with those of the others.
const COMPARED_AFTER: u64 = 1000 * MS;

fn three(settings: &mut Settings) {
    alone(settings, 3, 3);
    settings.node.deadline = Duration::from_millis(500);
    settings.node.sweep_every = Duration::from_millis(50);
    settings.cluster.clock_skew_max = Duration::from_millis(100);
}

/// The same with a fourth node, which does not own every key.
fn four(settings: &mut Settings) {
    three(settings);
    settings.nodes = 4;
}

impl World {
    /// The clock of a machine is set.
    fn set_clock(&mut self, machine: usize, ahead: i64) {
        self.count(Count::ClockSkews);
        self.history.clocks_are_wrong = true;
        self.remember_clocks();
        self.machines[machine].clock.skew = ahead;
    }

    /// A key where conflicts are settled so.
    fn key_with(&self, conflict: Conflict) -> Option<KeyId> {
        self.history.key_ids().find(|key| self.history.key(*key).conflict == conflict)
    }

    /// What a machine durably holds.
    fn holds(&self, machine: usize, key: KeyId) -> Record {
        self.machines[machine].disk.durable_record(&self.storage_key(Space::Owned, key)).unwrap_or_default()
    }

    /// Every owner holds the value of an operation, and nothing beside it.
    fn expect_held_by_all(&mut self, key: KeyId, op: OpId) {
        for owner in self.owners(self.history.key(key).partition) {
            let record = self.holds(owner, key);
            let value = self.history.op(op).value.as_ref();
            if record.siblings.len() != 1 || record.siblings[0].value.as_ref() != value {
                self.fail(format!("A8: an owner does not hold the value of {op:?} alone: {record:?}"));
            }
        }
    }
}

/// A node whose clock is ahead is asked to put a value where the last writer wins. Another owner puts it.
fn put_through_a_clock_that_is_ahead(world: &mut World) {
    world.begin();
    let Some(key) = world.key_with(Conflict::Lww) else { return };
    world.set_clock(0, AHEAD);
    world.wait(COMPARED_AFTER);
    let op = world.put_unnamed(key, false, QUORUM, 0);
    let store = world.machines[0].incarnation.store;
    let record = world.holds(1, key);
    if record.siblings.iter().any(|sibling| sibling.dot.actor.store == store) {
        world.fail(format!("A8: a node whose clock is off has written {record:?}"));
    }
    world.settle();
    world.expect_held_by_all(key, op);
    world.set_clock(0, 0);
    world.finish();
}

#[test]
fn coordinating_with_a_clock_that_is_off_is_caught() {
    let mutation = Mutation::Core(Rule::RightClockWrites);
    check(mutation, &["A8"], three, put_through_a_clock_that_is_ahead);
}

/// A value that lives for a while is held by a node whose clock is ahead.
fn keep_until_it_expires(world: &mut World) {
    world.begin();
    let Some(key) = world.key_with(Conflict::Siblings) else { return };
    world.set_clock(0, AHEAD);
    world.wait(COMPARED_AFTER);
    let op = world.put_unnamed(key, true, ALL, 1);
    world.wait(100 * MS);
    // It lives for 200 ms.
    world.expect_held_by_all(key, op);
    world.set_clock(0, 0);
    world.finish();
}

#[test]
fn expiring_by_a_clock_that_is_off_is_caught() {
    let mutation = Mutation::Core(Rule::TimeOfMajority);
    check(mutation, &["A8"], three, keep_until_it_expires);
}

/// A node starts with a clock that is ahead, and has compared it with no other.
fn start_with_a_clock_that_is_ahead(world: &mut World) {
    world.begin();
    let Some(key) = world.key_with(Conflict::Siblings) else { return };
    let op = world.put_unnamed(key, true, ALL, 1);
    world.isolate(0);
    world.crash(0);
    world.set_clock(0, AHEAD);
    world.start(0);
    world.wait(100 * MS);
    world.expect_held_by_all(key, op);
    world.set_clock(0, 0);
    world.rejoin(0);
    world.finish();
}

#[test]
fn sweeping_before_clocks_are_compared_is_caught() {
    let mutation = Mutation::Core(Rule::SweepWhenSure);
    check(mutation, &["A8"], three, start_with_a_clock_that_is_ahead);
}

/// A node that is cut off writes with a clock that is ahead. Then the clock is set right, and it names writes of clients.
fn write_after_the_clock_was_set_back(world: &mut World) {
    world.begin();
    let Some(key) = world.key_with(Conflict::Siblings) else { return };
    let owners = world.owners(world.history.key(key).partition);
    let Some(other) = (0..4).find(|machine| !owners.contains(machine)) else { return };
    world.isolate(other);
    world.wait_until_noticed();
    world.set_clock(other, AHEAD);
    world.put_unnamed(key, false, ONE, other);
    world.set_clock(other, 0);
    world.rejoin(other);
    world.settle();
    let op = world.put_unnamed(key, false, ALL, other);
    if world.history.op(op).took_effect.is_none() {
        world.fail("A8: a node whose clock was set back cannot write".into());
    }
    world.finish();
}

#[test]
fn a_clock_that_never_goes_back_is_caught() {
    let mutation = Mutation::Core(Rule::ClockGoesBack);
    check(mutation, &["A8"], four, write_after_the_clock_was_set_back);
}

/// An owner that is cut off puts a value with a clock that is ahead. The others put one later, and acknowledge it.
fn put_against_a_clock_that_is_ahead(world: &mut World) {
    world.begin();
    let Some(key) = world.key_with(Conflict::Lww) else { return };
    world.isolate(0);
    world.wait_until_noticed();
    world.set_clock(0, AHEAD);
    world.put_unnamed(key, false, ONE, 0);
    let later = world.put_unnamed(key, false, QUORUM, 1);
    world.set_clock(0, 0);
    world.rejoin(0);
    world.settle();
    world.wait(500 * MS);
    world.settle();
    world.expect_held_by_all(key, later);
    world.finish();
}

#[test]
fn losing_to_a_clock_that_is_ahead_is_caught() {
    let mutation = Mutation::Core(Rule::WriteAboveTooFar);
    check(mutation, &["A8"], three, put_against_a_clock_that_is_ahead);
}
