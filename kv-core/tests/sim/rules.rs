//! Rules that chance alone does not put to the test, or not so that anybody notices: a story for each, first with the rule
//! and then without it.

use std::time::Duration;

use kv_core::message::{Consistency, Level};
use kv_core::rule::Rule;
use kv_core::storage::{Space, StorageKey};

use crate::history::KeyId;
use crate::report::{Count, Report};
use crate::runner::run_script;
use crate::scripts::calm;
use crate::settings::{MS, Mutation, Settings, node_id};
use crate::world::World;

/// Seeds that each story is told with.
const SEEDS: u64 = 100;

const SLOPPY: Consistency = Consistency { level: Level::Quorum, strict: false };

/// No seed fails while the rule holds; some seed fails without it, with one of the expected complaints. What happened with
/// the rule.
pub(crate) fn check(
    mutation: Mutation,
    expected: &[&str],
    adjust: impl Fn(&mut Settings),
    story: impl Fn(&mut World),
) -> Report {
    let mut report = Report::new();
    for seed in 0..SEEDS {
        let run = run_script(seed, false, &adjust, &story);
        assert_eq!(run.failure, None, "the story fails with seed {seed}");
        report.join(&run.report);
    }
    let without = |settings: &mut Settings| {
        adjust(settings);
        settings.mutation = Some(mutation);
    };
    let failure = (0..SEEDS).find_map(|seed| Some((seed, run_script(seed, false, without, &story).failure?)));
    let Some((seed, failure)) = failure else { panic!("{mutation:?} is not caught by {SEEDS} seeds") };
    println!("{mutation:?} is caught by seed {seed}: {failure}");
    assert!(expected.iter().any(|what| failure.contains(what)), "{mutation:?} fails, but not as expected: {failure}");
    report
}

/// The settings of a story that tells all that happens.
pub(crate) fn alone(settings: &mut Settings, nodes: usize, copies: u8) {
    calm(settings, nodes, copies);
    settings.clients = 0;
    settings.keys_per_keyspace = 3;
    settings.faults.drops = 0;
    settings.faults.creations = 0;
    settings.network.duplication = 0;
    settings.repetitions = 0;
    settings.cluster.repeat_within = Duration::from_secs(3);
    settings.cluster.clock_skew_max = Duration::from_millis(500);
}

/// The node whose hash seed differs.
const STRANGER: usize = 4;

/// One node has another hash seed than the others, so that every key is in another partition there. The owners of a key are
/// cut off, and two fallbacks take a write. If the stranger is one of them, it holds the write where nobody looks for it.
fn write_beside_a_stranger(world: &mut World) {
    world.plan_work();
    world.wait(300 * MS);
    let owners_of = |world: &World, key: KeyId| world.owners(world.history.key(key).partition);
    let Some(key) = world.history.key_ids().find(|key| !owners_of(world, *key).contains(&STRANGER)) else { return };
    let owners = owners_of(world, key);
    owners.iter().for_each(|&owner| world.isolate(owner));
    world.wait_until_noticed();
    let Some(coordinator) = (0..STRANGER).find(|machine| !owners.contains(machine)) else { return };
    world.write(key, false, SLOPPY, coordinator);
}

#[test]
fn talking_to_a_node_with_another_hash_seed_is_caught() {
    let adjust = |settings: &mut Settings| {
        alone(settings, 5, 2);
        settings.other_seed = Some(STRANGER);
    };
    let report = check(Mutation::GreetWithoutSeed, &["invariant 8"], adjust, write_beside_a_stranger);
    assert!(report.get(Count::Hints) > 0, "no fallback took a write");
}

/// Every node is up, and every key is written through every node. Nobody holds a hint.
fn write_while_all_are_up(world: &mut World) {
    world.begin();
    for key in world.history.key_ids().collect::<Vec<_>>() {
        for machine in 0..world.machines.len() {
            world.write(key, false, SLOPPY, machine);
        }
    }
    for index in 0..world.machines.len() {
        let hints = world.machines[index].disk.stats().total(Space::Hint).records;
        if hints > 0 || world.report.get(Count::Hints) > 0 {
            world.fail(format!("A9: hints were made, {hints} at {}, although every owner is up", node_id(index)));
        }
    }
    world.finish();
}

#[test]
fn asking_fallbacks_beside_owners_that_are_up_is_caught() {
    let adjust = |settings: &mut Settings| alone(settings, 5, 3);
    check(Mutation::Core(Rule::FallbackOnlyForDown), &["A9"], adjust, write_while_all_are_up);
}

/// One owner is cut off, and another one is slow to make things durable. A write at a majority is confirmed by both owners that
/// are up, not by the first of them and a fallback.
fn write_past_a_slow_owner(world: &mut World) {
    world.begin();
    let key = KeyId(0);
    let owners = world.owners(world.history.key(key).partition);
    let Some(fallback) = (0..world.machines.len()).find(|machine| !owners.contains(machine)) else { return };
    world.isolate(owners[2]);
    world.wait_until_noticed();
    for _ in 0..5 {
        world.machines[owners[1]].slow_until = world.time + 1000 * MS;
        world.write(key, false, SLOPPY, owners[0]);
        let (owned, hint) = (world.storage_key(Space::Owned, key), world.storage_key(Space::Hint, key));
        let holds = |machine: usize, key: &StorageKey| world.machines[machine].disk.durable_record(key);
        let newest = holds(owners[0], &owned).unwrap_or_default();
        let by_fallback = holds(fallback, &hint).is_some();
        if by_fallback && !holds(owners[1], &owned).unwrap_or_default().dominates(&newest) {
            world.fail("A9: a fallback counts although enough owners can be reached".to_owned());
        }
    }
    world.machines[owners[1]].slow_until = world.time;
    world.rejoin(owners[2]);
    world.finish();
}

#[test]
fn counting_a_fallback_beside_enough_owners_is_caught() {
    let adjust = |settings: &mut Settings| {
        alone(settings, 4, 3);
        // A slow disk is not a stalled node.
        settings.node.stall_after = std::time::Duration::from_secs(2);
        settings.silence = (200 * MS, 300 * MS);
        settings.node.deadline = std::time::Duration::from_secs(2);
    };
    let mutation = Mutation::Core(Rule::FallbackInPlaceOfAbsent);
    let report = check(mutation, &["A9"], adjust, write_past_a_slow_owner);
    assert!(report.get(Count::Hints) > 0, "no fallback took a write");
}

/// An owner takes no more from its coordinator while a key is written, and stays up. It gets the write without anybody
/// asking, and without a comparison: no session ends.
fn write_past_a_full_owner(world: &mut World) {
    world.begin();
    let key = KeyId(0);
    let owners = world.owners(world.history.key(key).partition);
    world.cut(owners[0], owners[1]);
    world.write(key, false, Consistency { level: Level::Quorum, strict: true }, owners[0]);
    // Longer than a write is sent again and again.
    world.wait(1500 * MS);
    world.heal_path(owners[0], owners[1]);
    world.settle();
    world.expect_equal_replicas();
    world.finish();
}

#[test]
fn forgetting_who_missed_a_write_is_caught() {
    let adjust = |settings: &mut Settings| {
        alone(settings, 3, 3);
        // No failure detector gives anybody up, so that no comparison begins.
        settings.silence = (4000 * MS, 5000 * MS);
        settings.node.repair_every = std::time::Duration::ZERO;
        settings.node.retry_after = std::time::Duration::from_millis(10);
        settings.node.deadline = std::time::Duration::from_millis(500);
    };
    let mutation = Mutation::Core(Rule::MarkMissedWrites);
    let report = check(mutation, &["invariant 3"], adjust, write_past_a_full_owner);
    assert!(report.get(Count::HandedOff) > 0, "no marker brought a write to an owner");
}
