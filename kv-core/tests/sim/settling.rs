//! The settled barrier (rule A6) and the collection of tombstones: a story for each condition, first with it and then without it.

use std::time::Duration;

use kv_core::message::{Consistency, HinderedBy, Level};
use kv_core::rule::Rule;
use kv_core::storage::{ASIDE, SetAside, Space};
use kv_core::topology::Change;

use crate::clock::Time;
use crate::history::KeyId;
use crate::machine::Machine;
use crate::report::{Count, Report};
use crate::settings::{MS, Mutation, Settings, node_id};
use crate::world::World;
use crate::{mutations, rules};

/// Seeds that a mutation may take for which chance is enough.
const SEEDS_MAX: u64 = 1000;

const ONE: Consistency = Consistency { level: Level::One, strict: false };
const QUORUM: Consistency = Consistency { level: Level::Quorum, strict: true };
const ALL: Consistency = Consistency { level: Level::All, strict: true };

/// A key, and another one in the same partition, of which the story has a tombstone collected.
const KEY: KeyId = KeyId(0);
const OTHER: KeyId = KeyId(6);

/// The story holds with the rule and fails without it, and something was collected. What happened with the rule.
fn check(rule: Rule, expected: &[&str], adjust: impl Fn(&mut Settings), story: impl Fn(&mut World)) -> Report {
    let report = rules::check(Mutation::Core(rule), expected, adjust, story);
    assert!(report.get(Count::Collected) > 0, "nothing was collected");
    report
}

/// Some seed of the usual runs fails without the rule.
fn check_by_chance(rule: Rule, expected: &[&str]) {
    let mutation = Mutation::Core(rule);
    mutations::check_within(SEEDS_MAX, mutation, expected, |settings| settings.mutation = Some(mutation));
}

/// The settings of a story: nothing happens but what it tells, and tombstones are collected as soon as they can be.
pub(crate) fn alone(settings: &mut Settings, nodes: usize, copies: u8) {
    rules::alone(settings, nodes, copies);
    settings.network.late = 0;
    settings.network.delay = 300;
    settings.cluster.clock_skew_max = Duration::from_millis(50);
    settings.node.collect_after = Duration::from_millis(10);
    settings.cluster.repeat_within = Duration::from_millis(500);
    settings.node.settle_every = Duration::from_millis(2);
    settings.node.repair_every = Duration::ZERO;
    settings.node.deadline = Duration::from_millis(500);
}

impl World {
    /// A key is written and deleted through a machine, and its tombstone becomes old enough.
    fn leave_tombstone(&mut self, key: KeyId, through: usize) {
        self.write(key, false, QUORUM, through);
        self.write(key, true, QUORUM, through);
        self.wait(self.age() + 10 * MS);
    }

    /// How old what is collected is at least.
    fn age(&self) -> Time {
        u64::try_from(self.settings.age().as_micros()).unwrap_or(0)
    }

    /// Whether no owner holds anything of a key.
    fn is_collected(&self, key: KeyId) -> bool {
        let stored = self.storage_key(Space::Owned, key);
        let owners = self.owners(stored.partition());
        owners.iter().all(|&owner| self.machines[owner].disk.durable_record(&stored).is_none())
    }

    /// Nothing of a key is left.
    fn expect_collected(&mut self, key: KeyId) {
        if !self.wait_for(5000 * MS, |world| world.is_collected(key)) {
            self.fail(format!("A6: {key:?} is not collected"));
        }
    }

    /// A machine that owns nothing of the partition of a key.
    fn stranger_to(&self, key: KeyId) -> usize {
        let owners = self.owners(self.history.key(key).partition);
        (0..self.machines.len()).find(|machine| !owners.contains(machine)).unwrap_or(0)
    }
}

#[test]
fn adopting_without_a_comparison_is_caught() {
    check_by_chance(Rule::CompareBeforeSettled, &["A6", "invariant"]);
}

#[test]
fn collecting_what_is_young_is_caught() {
    check_by_chance(Rule::AgeBeforeSettled, &["A6"]);
}

#[test]
fn collecting_by_a_watermark_that_is_not_durable_is_caught() {
    check_by_chance(Rule::WatermarkBeforeCollection, &["A6"]);
}

/// A node that is cut off holds a write as a hint, and nobody else has it. The owners have something to collect. One of them, and the
/// node.
fn cut_off_with_a_hint(world: &mut World) -> (usize, usize) {
    world.begin();
    let owner = world.owners(world.history.key(KEY).partition)[0];
    let fallback = world.stranger_to(KEY);
    world.isolate(fallback);
    world.wait_until_noticed();
    world.write(KEY, false, ONE, fallback);
    world.leave_tombstone(OTHER, owner);
    (owner, fallback)
}

/// It comes back.
fn come_back_with_a_hint(world: &mut World) {
    let (_, fallback) = cut_off_with_a_hint(world);
    world.rejoin(fallback);
    world.settle();
    world.expect_collected(OTHER);
    world.finish();
}

#[test]
fn settling_beside_a_hint_is_caught() {
    let adjust = |settings: &mut Settings| {
        alone(settings, 4, 2);
        settings.slow_reads = 1000;
    };
    let report = check(Rule::HintsHinder, &["invariant 1", "strict"], adjust, come_back_with_a_hint);
    assert!(report.get(Count::Hints) > 0, "no hint was made");
}

/// The same, but the node comes back only when the others have waited for it. They say so.
fn stay_away_with_a_hint(world: &mut World) {
    let (owner, fallback) = cut_off_with_a_hint(world);
    world.wait(300 * MS);
    let status = world.machines[owner].core.as_ref().map(|core| core.status().settling).unwrap_or_default();
    let says = status.hindered == Some((node_id(fallback), HinderedBy::Down));
    if world.settings.mutation.is_none() && (!says || status.due == 0 || world.is_collected(OTHER)) {
        world.fail(format!("A6: with a member down the owner says {status:?}"));
    }
    world.rejoin(fallback);
    world.settle();
    world.expect_collected(OTHER);
    world.finish();
}

#[test]
fn settling_without_a_member_that_is_down_is_caught() {
    let adjust = |settings: &mut Settings| alone(settings, 4, 2);
    let report = check(Rule::EveryMemberConfirms, &["invariant 1", "strict"], adjust, stay_away_with_a_hint);
    assert!(report.get(Count::Hints) > 0, "no hint was made");
}

/// An owner is cut off and takes a write. Its partition moves away from it meanwhile, copied from the other two, so that what it has
/// left is the only copy when it is back. `lags`: it does not know yet that it has left.
fn come_back_with_residue(world: &mut World, lags: bool) {
    world.begin();
    let partition = world.history.key(KEY).partition;
    let owners = world.old_owners(partition);
    let (victim, other) = (owners[2], owners[0]);
    world.isolate(victim);
    world.wait_until_noticed();
    world.write(KEY, false, ONE, victim);
    if lags {
        world.hold_layouts_back(victim);
    }
    world.operate(&[Change::Replace { old: node_id(victim), new: node_id(3) }]);
    world.wait_for_operation(5000 * MS);
    if world.operation.is_some() || world.old_owners(partition).contains(&victim) {
        return world.fail("the partition has not moved".to_owned());
    }
    world.leave_tombstone(OTHER, other);
    world.rejoin(victim);
    world.wait(400 * MS);
    world.give_layouts(victim);
    world.settle();
    world.expect_collected(OTHER);
    world.finish();
}

fn with_a_spare(settings: &mut Settings) {
    alone(settings, 4, 3);
    settings.spares = 1;
    settings.slow_reads = 1000;
}

#[test]
fn settling_beside_residue_is_caught() {
    let story = |world: &mut World| come_back_with_residue(world, false);
    check(Rule::ResidueHinders, &["A4", "invariant 1", "strict"], with_a_spare, story);
}

#[test]
fn settling_with_a_member_that_acts_on_another_entry_is_caught() {
    let story = |world: &mut World| come_back_with_residue(world, true);
    check(Rule::SettleInOneEpoch, &["A4", "invariant 1", "strict"], with_a_spare, story);
}

/// A write reaches an owner a second time, long after it was deleted and the tombstone collected.
fn send_twice_and_late(world: &mut World) {
    world.begin();
    let owners = world.owners(world.history.key(KEY).partition);
    world.delay_frames(owners[0], owners[2], 1500 * MS);
    world.write(KEY, false, QUORUM, owners[0]);
    world.delay_frames(owners[0], owners[2], 0);
    world.wait(200 * MS);
    world.leave_tombstone(KEY, owners[0]);
    world.expect_collected(KEY);
    world.wait(1500 * MS);
    world.finish();
}

#[test]
fn taking_back_what_was_collected_is_caught() {
    let adjust = |settings: &mut Settings| {
        alone(settings, 3, 3);
        settings.silence = (4000 * MS, 5000 * MS);
    };
    check(Rule::CollectedStaysGone, &["invariant 3", "invariant 4"], adjust, send_twice_and_late);
}

/// A node dies with a write of its own that is on its way to an owner, and comes back without it. The owners have something to
/// collect, and the write arrives while they settle.
fn die_with_a_write_under_way(world: &mut World) {
    world.begin();
    let owners = world.owners(world.history.key(KEY).partition);
    let (first, second) = (owners[0], owners[1]);
    let dead = owners[2];
    // Neither owner hears of the end of the session before the write.
    world.cut(dead, first);
    let age = world.age();
    let late = age + (40 + world.dice.below(120)) * MS;
    world.delay_frames(dead, second, late);
    world.write_unheard(KEY, dead);
    world.cut(dead, second);
    world.cut(second, dead);
    world.crash_forgetting(dead);
    world.heal_path(dead, first);
    world.start(dead);
    for key in [OTHER, KeyId(3)] {
        world.write(key, false, ONE, first);
        world.write(key, true, ONE, first);
    }
    world.wait(age + 290 * MS);
    world.delay_frames(dead, second, 0);
    world.heal_path(dead, second);
    world.heal_path(second, dead);
    world.settle();
    world.expect_collected(OTHER);
    world.finish();
}

#[test]
fn taking_something_old_while_settling_is_caught() {
    let adjust = |settings: &mut Settings| {
        alone(settings, 3, 3);
        settings.silence = (4000 * MS, 5000 * MS);
        settings.sync = 10 * MS;
        settings.network.loss = 200;
        settings.slow_reads = 700;
        settings.node.deadline = Duration::from_secs(2);
    };
    check(Rule::HoldWhileSettling, &["invariant 3", "strict"], adjust, die_with_a_write_under_way);
}

/// An owner comes back with a copy of its disk from before a delete, when the tombstone has been collected.
fn come_back_with_an_old_copy(world: &mut World, moves: bool) {
    world.begin();
    let partition = world.history.key(KEY).partition;
    let owners = world.old_owners(partition);
    let (victim, other) = (owners[0], owners[1]);
    world.write(KEY, false, ALL, other);
    world.settle_machines();
    world.machines[victim].copy = Some(world.machines[victim].disk.copy());
    world.crash_for_a_while(victim);
    world.settle_machines();
    world.leave_tombstone(KEY, other);
    world.expect_collected(KEY);
    if moves {
        // Whoever has seen the tombstone owns the partition no more, but for the victim.
        world.operate(&[Change::Replace { old: node_id(other), new: node_id(2) }]);
        world.wait_for_operation(5000 * MS);
        world.settle();
    }
    world.settle_machines();
    world.roll_back(victim, 1);
    world.wait(300 * MS);
    world.finish();
}

#[test]
fn keeping_what_was_collected_in_an_old_copy_is_caught() {
    let adjust = |settings: &mut Settings| alone(settings, 3, 3);
    let story = |world: &mut World| come_back_with_an_old_copy(world, false);
    let report = check(Rule::OldCopyLearnsOfCollection, &["invariant 3", "invariant 4"], adjust, story);
    assert!(report.get(Count::RollBacksNoticed) > 0, "no old copy came back");
}

/// The same. What the old copy held and was deleted is set aside.
fn come_back_with_a_deleted_value(world: &mut World) {
    come_back_with_an_old_copy(world, false);
    let keeps = |machine: &Machine| {
        let aside = machine.disk.durable_metas(ASIDE);
        aside.iter().filter_map(|(_, value)| SetAside::decode(value)).any(|aside| aside.written.0 > 0)
    };
    let was_refilled = world.report.get(Count::RollBacksNoticed) > 0;
    if was_refilled && !world.machines.iter().any(keeps) {
        world.fail("D2: what an old copy held and was deleted is not set aside".into());
    }
}

#[test]
fn dropping_what_was_deleted_elsewhere_is_caught() {
    let adjust = |settings: &mut Settings| alone(settings, 3, 3);
    check(Rule::SetAside, &["D2"], adjust, come_back_with_a_deleted_value);
}

#[test]
fn forgetting_the_watermark_in_a_move_is_caught() {
    let adjust = |settings: &mut Settings| {
        alone(settings, 3, 2);
        settings.spares = 1;
    };
    let story = |world: &mut World| come_back_with_an_old_copy(world, true);
    let report = check(Rule::WatermarkTravels, &["invariant 3", "invariant 4"], adjust, story);
    assert!(report.get(Count::RollBacksNoticed) > 0, "no old copy came back");
}

/// All clocks are set back by far more than the minimum age, and an owner starts again.
fn write_with_a_clock_set_back(world: &mut World) {
    world.begin();
    let owners = world.owners(world.history.key(KEY).partition);
    world.leave_tombstone(OTHER, owners[0]);
    world.expect_collected(OTHER);
    world.set_clocks(-2_000_000);
    world.crash(owners[0]);
    world.start(owners[0]);
    world.settle_machines();
    world.put_unnamed(KEY, false, QUORUM, owners[0]);
    world.finish();
}

#[test]
fn writing_below_what_was_confirmed_is_caught() {
    let adjust = |settings: &mut Settings| alone(settings, 3, 3);
    check(Rule::WriteAboveConfirmed, &["invariant 8", "invariant 1"], adjust, write_with_a_clock_set_back);
}
