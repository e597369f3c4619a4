//! Directed scripts: situations in which the rules matter most and which chance alone arranges too rarely.

use kv_core::config::Mode;
use kv_core::error::Kind;
use kv_core::message::{Attempt, Consistency, KeyRequest, Level, Operation, Request, When};
use kv_core::rule::Rule;
use kv_core::storage::Space;
use kv_core::topology::Change;
use kv_core::types::Epoch;

use crate::history::KeyId;
use crate::report::{Count, Report};
use crate::runner::{Run, run_adjusted, run_script};
use crate::settings::{Faults, MS, Mutation, Settings, node_id};
use crate::workload::{Ask, Asker};
use crate::world::World;

/// Seeds that each script is tried with.
const SEEDS: u64 = 150;

const ONE: Consistency = Consistency { level: Level::One, strict: false };
const QUORUM: Consistency = Consistency { level: Level::Quorum, strict: true };
const SLOPPY: Consistency = Consistency { level: Level::Quorum, strict: false };

/// Runs a script with many seeds; none may fail, and each of these things must have happened.
pub(crate) fn check(run: impl Fn(u64) -> Run, happened: &[Count]) {
    let mut report = Report::new();
    for seed in 0..SEEDS {
        let run = run(seed);
        assert_eq!(run.failure, None, "the script fails with seed {seed}");
        report.join(&run.report);
    }
    for what in happened {
        assert!(report.get(*what) > 0, "the script never had {}", what.name());
    }
}

/// The settings of a script without any trouble but its own.
pub(crate) fn calm(settings: &mut Settings, nodes: usize, copies: u8) {
    settings.nodes = nodes;
    settings.copies = copies;
    settings.spares = 0;
    settings.zones = 1;
    settings.faults = Faults::default();
    settings.network.loss = 0;
    settings.operations = 0;
    settings.lags = 0;
    settings.keyspaces.retain(|keyspace| keyspace.available().is_some());
    for keyspace in &mut settings.keyspaces {
        let Mode::Available(available) = &mut keyspace.mode else { continue };
        available.strict = false;
    }
    settings.node = kv_core::config::NodeConfig {
        hint_bytes_max: 1 << 20,
        request_bytes_max: 1 << 20,
        answer_bytes_max: 1 << 20,
        peer_bytes_max: 1 << 20,
        requests_max: 1000,
        replications_max: 1000,
        key_waiters_max: 100,
        ..settings.node.clone()
    };
}

/// The owners of a key are cut off; a fallback takes a write, hands it off, and takes the next one, a delete among them.
/// Its second hint is another record instance than its first (rules A1 and A5).
fn hints_with_delete(world: &mut World) {
    world.begin();
    let key = KeyId(0);
    let owners = world.owners(world.history.key(key).partition);
    let Some(fallback) = (0..world.machines.len()).find(|machine| !owners.contains(machine)) else { return };
    for round in 0..5 {
        owners.iter().for_each(|&owner| world.isolate(owner));
        world.wait_until_noticed();
        world.write(key, round % 3 == 2, ONE, fallback);
        owners.iter().for_each(|&owner| world.rejoin(owner));
        world.settle();
    }
    world.finish();
}

#[test]
fn hints_with_deletes_reach_their_owners() {
    let run = |seed| run_script(seed, false, |settings| calm(settings, 4, 2), hints_with_delete);
    check(run, &[Count::Hints, Count::HandedOff]);
}

#[test]
fn an_actor_used_again_for_another_hint_loses_a_write() {
    let adjust = |settings: &mut Settings| {
        calm(settings, 4, 2);
        settings.mutation = Some(Mutation::Core(Rule::FreshActorPerHint));
        settings.overlooks_actors = true;
    };
    let failure = run_script(0, false, adjust, hints_with_delete).failure;
    assert!(failure.as_ref().is_some_and(|what| what.contains("invariant")), "found {failure:?}");
}

/// An owner is cut off while its key is written. When it is back it gets the write without anybody asking: whoever
/// could not confirm a write is remembered by a missed-write marker.
fn write_past_an_owner(world: &mut World) {
    world.begin();
    let key = KeyId(0);
    let owners = world.owners(world.history.key(key).partition);
    world.isolate(owners[1]);
    // Sometimes the failure detectors have noticed, sometimes not.
    world.wait_a_while(400);
    for _ in 0..3 {
        world.write(key, false, QUORUM, owners[0]);
    }
    world.rejoin(owners[1]);
    world.settle();
    world.expect_equal_replicas();
    world.finish();
}

#[test]
fn an_owner_that_was_cut_off_is_brought_up_to_date() {
    let adjust = |settings: &mut Settings| {
        calm(settings, 3, 3);
        settings.node.deadline = std::time::Duration::from_millis(500);
    };
    check(|seed| run_script(seed, false, adjust, write_past_an_owner), &[Count::HandedOff]);
}

/// A disk comes back as an older copy while clients write: nobody may read what it has forgotten.
pub(crate) fn roll_back_under_load(world: &mut World) {
    world.begin();
    let key = KeyId(0);
    let owners = world.owners(world.history.key(key).partition);
    let (victim, other) = (owners[0], owners[1]);
    world.write(key, false, QUORUM, victim);
    world.settle_machines();
    world.machines[victim].copy = Some(world.machines[victim].disk.copy());
    world.crash_for_a_while(victim);
    world.settle_machines();
    // Acknowledged by the victim and one more: after the roll-back, only that one knows it.
    world.write(key, false, QUORUM, victim);
    world.settle_machines();
    world.roll_back(victim, 1);
    for _ in 0..10 {
        world.audit_asks(vec![(Ask::Read { key, consistency: QUORUM }, other)]);
    }
    world.wait(300 * MS);
    world.finish();
}

#[test]
fn a_rolled_back_disk_under_load_is_refilled() {
    let adjust = |settings: &mut Settings| {
        calm(settings, 3, 3);
        settings.clients = 3;
        settings.operations = 60;
        settings.think = 20 * MS;
        // The layout with the new store takes up to 500 ms to reach a node, which is asked in vain until then.
        settings.node.deadline = std::time::Duration::from_secs(1);
    };
    let run = |seed| run_script(seed, false, adjust, roll_back_under_load);
    check(run, &[Count::RollBacks, Count::RollBacksNoticed, Count::Refills]);
}

#[test]
fn two_coordinators_on_lossy_links_agree() {
    let adjust = |settings: &mut Settings| {
        calm(settings, 3, 3);
        settings.network.loss = 300;
        settings.network.duplication = 300;
        settings.network.late = 200;
        settings.keys_per_keyspace = 1;
        settings.clients = 4;
        settings.operations = 60;
        settings.think = 0;
    };
    check(
        |seed| run_adjusted(seed, false, adjust),
        &[Count::Drops, Count::Duplicates, Count::Reorders, Count::Siblings],
    );
}

#[test]
fn wipes_and_roll_backs_under_load_lose_nothing() {
    let adjust = |settings: &mut Settings| {
        calm(settings, 4, 3);
        settings.faults =
            Faults { wipes: 4, roll_backs: 3, crashes: 3, failed_syncs: 1, slow_disks: 2, ..Faults::default() };
        settings.keys_per_keyspace = 1;
        settings.clients = 4;
        settings.operations = 120;
        settings.think = 20 * MS;
        settings.trouble_ends = 3000 * MS;
    };
    let happened = [Count::Wipes, Count::RollBacks, Count::Refills, Count::StrictReads];
    check(|seed| run_adjusted(seed, false, adjust), &happened);
}

/// The settings of a script that moves partitions under load.
pub(crate) fn moving(settings: &mut Settings, nodes: usize, spares: usize, copies: u8) {
    calm(settings, nodes, copies);
    settings.spares = spares;
    settings.clients = 4;
    settings.operations = 60;
    settings.think = 10 * MS;
    settings.trouble_ends = 3000 * MS;
    settings.node.deadline = std::time::Duration::from_millis(300);
}

/// Two of three owners are replaced while the third hears nothing of it and puts are in flight: it goes on at the old
/// epoch, together with whoever has not adopted the new one yet.
pub(crate) fn replace_two_of_three(world: &mut World) {
    world.begin();
    let frozen = world.dice.index(3);
    world.hold_layouts_back(frozen);
    let others: Vec<usize> = (0..3).filter(|machine| *machine != frozen).collect();
    world.operate(&[
        Change::Replace { old: node_id(others[0]), new: node_id(3) },
        Change::Replace { old: node_id(others[1]), new: node_id(4) },
    ]);
    world.wait_for_operation(1000 * MS);
    world.give_layouts(frozen);
    world.wait_for_operation(1000 * MS);
    world.finish();
}

#[test]
fn replacing_two_of_three_with_one_frozen_loses_nothing() {
    let adjust = |settings: &mut Settings| {
        moving(settings, 5, 2, 3);
        settings.network.late = 200;
    };
    let happened = [Count::CutOvers, Count::Receipts, Count::StrictReads, Count::Dropped];
    check(|seed| run_script(seed, false, adjust, replace_two_of_three), &happened);
}

/// A node is asked to leave and the operation cancelled, or it leaves and comes back, three times, while keys are
/// written and deleted; machines crash in between.
pub(crate) fn leave_cancel_rejoin(world: &mut World) {
    world.begin();
    let node = node_id(0);
    for round in 0..3 {
        world.operate(&[Change::Remove { node }]);
        world.wait_a_while(150);
        if round == 1 {
            world.wait_for_operation(2000 * MS);
        } else {
            world.cancel_operation();
        }
        let crashed = world.dice.index(world.machines.len());
        world.crash_for_a_while(crashed);
        world.wait_a_while(60);
        world.operate(&[Change::Add { node }]);
        world.wait_for_operation(1500 * MS);
    }
    world.finish();
}

#[test]
fn leaving_and_coming_back_brings_no_deleted_key_back() {
    let adjust = |settings: &mut Settings| moving(settings, 4, 0, 3);
    let happened = [Count::Cancels, Count::CutOvers, Count::Dropped];
    check(|seed| run_script(seed, false, adjust, leave_cancel_rejoin), &happened);
}

/// Fewer copies, then more again.
pub(crate) fn five_copies_to_three(world: &mut World) {
    world.begin();
    for copies in [3, 5] {
        world.operate(&[Change::Copies { copies }]);
        let crashed = world.dice.index(world.machines.len());
        world.crash_for_a_while(crashed);
        world.wait_for_operation(1500 * MS);
    }
    world.finish();
}

#[test]
fn fewer_copies_still_hold_everything() {
    let adjust = |settings: &mut Settings| moving(settings, 5, 0, 5);
    let happened = [Count::CutOvers, Count::Receipts, Count::Dropped];
    check(|seed| run_script(seed, false, adjust, five_copies_to_three), &happened);
}

/// A node enters, and one disk of those that take part is lost in the middle: a source's or the receiver's.
pub(crate) fn move_with_a_disk_lost(world: &mut World) {
    world.begin();
    world.operate(&[Change::Add { node: node_id(3) }]);
    world.wait_a_while(80);
    let lost = world.dice.index(4);
    world.wipe(lost, 6);
    world.wait_for_operation(2500 * MS);
    world.finish();
}

#[test]
fn a_disk_lost_in_the_middle_of_a_move_loses_nothing() {
    let adjust = |settings: &mut Settings| moving(settings, 4, 1, 3);
    let happened = [Count::Wipes, Count::CutOvers, Count::Refills];
    check(|seed| run_script(seed, false, adjust, move_with_a_disk_lost), &happened);
}

/// A member is destroyed under load and removed as dead: its copies are made again from the survivors.
pub(crate) fn remove_a_dead_member(world: &mut World) {
    world.begin();
    world.wait_a_while(100);
    let dead = world.dice.index(4);
    for _ in 0..20 {
        world.remove_dead(dead);
        world.wait(20 * MS);
    }
    world.wait_for_operation(2500 * MS);
    world.finish();
}

#[test]
fn the_copies_of_a_dead_member_are_made_anew() {
    let adjust = |settings: &mut Settings| moving(settings, 4, 0, 3);
    let happened = [Count::Deaths, Count::CutOvers, Count::Receipts];
    check(|seed| run_script(seed, false, adjust, remove_a_dead_member), &happened);
}

/// A node enters while one of its sources does not hear of it, and refuses. The copies wait for that source for ever,
/// unless somebody has them begin again: two of three old owners are enough.
fn enter_past_a_source_that_refuses(world: &mut World) {
    world.begin();
    world.hold_layouts_back(0);
    world.operate(&[Change::Add { node: node_id(3) }]);
    let waits = |world: &World| {
        let transfers = world.machines[3].core.as_ref().map(|core| core.transfers()).unwrap_or_default();
        let waiting = transfers.into_iter().filter(|it| it.source == Some(node_id(0)) && it.waiting_for.is_some());
        waiting.map(|it| (it.partition, it.tries)).collect::<Vec<_>>()
    };
    world.wait_for_operation(2000 * MS);
    if world.operation.is_none() {
        world.fail("the operation ends although a source refuses".to_owned());
    }
    for _ in 0..200 {
        let before = waits(world);
        world.retry_copies(3);
        for (partition, tries) in waits(world) {
            if before.contains(&(partition, tries)) {
                world.fail(format!("the copy of {partition} waits as before"));
            }
        }
        world.wait_for_operation(50 * MS);
    }
    if world.operation.is_some() {
        world.fail("the operation does not end however often its copies begin again".to_owned());
    }
    world.give_layouts(0);
    world.finish();
}

#[test]
fn copies_that_begin_anew_take_another_source() {
    let adjust = |settings: &mut Settings| {
        without_clients(settings);
        settings.network.duplication = 0;
    };
    let run = |seed| run_script(seed, false, adjust, enter_past_a_source_that_refuses);
    check(run, &[Count::CopiesRetried, Count::CutOvers]);
}

/// An owner is cut off, and another node takes its writes as hints. As soon as the owner is back the hints are sent to it,
/// and at the same time its partitions migrate to the very node that holds the hints (rule A5).
fn own_what_is_hinted(world: &mut World) {
    world.begin();
    let owner = world.dice.index(2);
    let fallback = 1 - owner;
    world.isolate(owner);
    world.wait_until_noticed();
    let theirs = |key: &KeyId| world.old_owners(world.history.key(*key).partition) == [owner];
    for key in world.history.key_ids().filter(theirs).collect::<Vec<_>>() {
        world.write(key, false, ONE, fallback);
    }
    world.rejoin(owner);
    let later = world.dice.between(0, 60);
    world.wait(later * MS);
    world.hold_layouts_back(owner);
    world.operate(&[Change::Weight { node: node_id(owner), weight: 0.25 }]);
    let later = world.dice.between(0, 400);
    world.wait(later * MS);
    world.give_layouts(owner);
    world.wait_for_operation(2500 * MS);
    world.finish();
}

#[test]
fn hints_of_a_node_that_becomes_the_owner_are_kept() {
    let adjust = |settings: &mut Settings| {
        without_clients(settings);
        settings.nodes = 2;
        settings.spares = 0;
        settings.copies = 1;
        // The hint must still be on its way when the partition is cut over.
        settings.network.loss = 400;
    };
    let happened = [Count::Hints, Count::HandedOff, Count::CutOvers];
    check(|seed| run_script(seed, false, adjust, own_what_is_hinted), &happened);
}

/// A partition is cut over while two of its old owners hear nothing of it. A write is confirmed by the third and by the
/// new owner; then the third loses its disk, and its new store hears of the migration, but not of its end. By that layout
/// the two that lag behind are all of its other owners, and both lack the write.
fn refill_by_an_old_layout(world: &mut World) {
    world.begin();
    let key = KeyId(0);
    let partition = world.history.key(key).partition;
    let owners = world.old_owners(partition);
    world.operate(&[Change::Replace { old: node_id(owners[1]), new: node_id(3) }]);
    let acts_on = |world: &World, machine: usize| world.machines[machine].acted_on == world.layout().epoch;
    let has_begun =
        |world: &World| (0..4).all(|machine| acts_on(world, machine)) && world.entry(partition).joint.is_some();
    if !world.wait_for(5000 * MS, has_begun) {
        return world.finish();
    }
    let joint = world.layout().epoch;
    for machine in [owners[1], owners[2]] {
        world.machines[machine].hears_up_to = Some(joint);
    }
    let has_ended =
        |world: &World| world.entry(partition).joint.is_none() && acts_on(world, owners[0]) && acts_on(world, 3);
    if !world.wait_for(5000 * MS, has_ended) {
        return world.finish();
    }
    world.write(key, false, QUORUM, owners[0]);
    world.machines[owners[0]].hears_up_to = Some(joint);
    world.wipe(owners[0], 1);
    world.wait(500 * MS);
    (0..4).for_each(|machine| world.give_layouts(machine));
    world.wait_for_operation(2500 * MS);
    world.finish();
}

/// Two of three owners are cut off. Where only owners count a write and a read are refused, though neither asks for that
/// itself: the keyspace says so.
fn ask_a_strict_keyspace(world: &mut World) {
    world.begin();
    let strict = |key: &KeyId| world.owners_only(world.history.key(*key).keyspace, SLOPPY);
    let Some(key) = world.history.key_ids().find(strict) else { return world.fail("no keyspace is strict".into()) };
    let name = world.history.key(key).clone();
    let owners = world.owners(name.partition);
    world.isolate(owners[1]);
    world.isolate(owners[2]);
    world.wait_until_noticed();
    let epoch = world.entry(name.partition).changed;
    let value = Some(world.history.next_value(key.0));
    let write = Operation::Write {
        request: None,
        attempt: Attempt::First,
        value,
        context: None,
        ttl: None,
        when: When::Always,
    };
    let ask = |operation: Operation| {
        let (keyspace, key) = (name.keyspace, name.bytes.clone());
        let request = Request::Key(KeyRequest { keyspace, key, epoch, consistency: SLOPPY, operation });
        (Ask::Bad { request, kind: Kind::Unavailable }, owners[0])
    };
    let asks = vec![ask(write), ask(Operation::Get)];
    world.audit_asks(asks);
    world.finish();
}

#[test]
fn in_a_strict_keyspace_only_owners_count() {
    let adjust = |settings: &mut Settings| {
        calm(settings, 5, 3);
        settings.clients = 0;
        for keyspace in &mut settings.keyspaces {
            let Mode::Available(available) = &mut keyspace.mode else { continue };
            available.strict = keyspace.name == "latest";
        }
    };
    check(|seed| run_script(seed, false, adjust, ask_a_strict_keyspace), &[]);
}

/// A hint is on its way to both owners. One confirms it and loses its disk; its new store is refilled from the other, which
/// the hint reaches only then (rule E3).
fn lose_a_store_between_two_confirmations(world: &mut World) {
    world.begin();
    let key = KeyId(0);
    let partition = world.history.key(key).partition;
    let owners = world.old_owners(partition);
    let Some(holder) = (0..3).find(|machine| !owners.contains(machine)) else { return world.finish() };
    world.isolate(holder);
    world.wait_until_noticed();
    world.write(key, false, ONE, holder);
    for &owner in &owners {
        world.heal_path(holder, owner);
        world.heal_path(owner, holder);
        world.wait_for(2000 * MS, |world| world.network.has_begun(holder, owner));
    }
    world.cut(holder, owners[1]);
    let stored = world.storage_key(Space::Owned, key);
    let has_it = |world: &World, machine: usize| world.machines[machine].disk.durable_record(&stored).is_some();
    if !world.wait_for(200 * MS, |world| has_it(world, owners[0])) {
        return world.finish();
    }
    // The confirmation arrives. What was lost on the way to the other owner is sent again later.
    world.wait(5 * MS);
    world.heal_path(holder, owners[1]);
    world.wipe(owners[0], 1);
    world.wait_for(1000 * MS, |world| world.is_listed(owners[0]) && world.is_running(owners[0]));
    owners.iter().for_each(|&machine| world.give_layouts(machine));
    let is_equal = |world: &World, machine: usize| {
        let status = world.machines[machine].core.as_ref().map(|core| core.status());
        status.is_some_and(|status| status.repairing == 0)
    };
    let lost = (owners[0], partition);
    let is_refilled =
        |world: &World| !world.unsynced.contains_key(&lost) && owners.iter().all(|&machine| is_equal(world, machine));
    world.wait_for(1000 * MS, is_refilled);
    world.settle();
    world.expect_equal_replicas();
    world.finish();
}

fn two_copies_among_three(settings: &mut Settings) {
    without_clients(settings);
    calm(settings, 3, 2);
    settings.network.delay = MS;
    settings.network.late = 0;
    settings.sync = 2 * MS;
    settings.node.retry_after = std::time::Duration::from_secs(1);
}

#[test]
fn a_store_lost_between_two_confirmations_gets_the_record_back() {
    check(
        |seed| run_script(seed, false, two_copies_among_three, lose_a_store_between_two_confirmations),
        &[Count::HandedOff, Count::Wipes],
    );
}

#[test]
fn counting_what_a_lost_store_confirmed_is_caught() {
    let adjust = |settings: &mut Settings| {
        two_copies_among_three(settings);
        settings.mutation = Some(Mutation::StoreChangesInPlace);
    };
    let run = |seed| run_script(seed, false, adjust, lose_a_store_between_two_confirmations).failure;
    let first = (0..SEEDS).find_map(run);
    assert!(first.as_ref().is_some_and(|what| what.contains("invariant 3")), "found {first:?}");
}

/// A key is written and read by the first node that acts on a new layout; the others hear of it 20 ms later. How long
/// either takes must follow from that, not from when attempts are repeated.
fn ask_while_others_lag(world: &mut World) {
    world.begin();
    let first = world.dice.index(3);
    let others: Vec<usize> = (0..4).filter(|machine| *machine != first).collect();
    let before = world.layout().epoch;
    others.iter().for_each(|&machine| world.hold_layouts_back(machine));
    world.operate(&[Change::Add { node: node_id(3) }]);
    let moving = world.history.key_ids().find(|key| world.entry(world.history.key(*key).partition).joint.is_some());
    world.wait_for(2000 * MS, |world| world.machines[first].acted_on != before);
    let Some(key) = moving else { return world.finish() };
    let ask = if world.dice.chance(500) {
        let value = world.history.next_value(0);
        Ask::Write(world.plan_write(key, Some(value), QUORUM), Attempt::Plain)
    } else {
        Ask::Read { key, consistency: QUORUM }
    };
    let (begun, layout) = (world.time, world.layouts.len() - 1);
    world.ask(Asker::Audit, ask, first, layout);
    world.wait(20 * MS);
    others.iter().for_each(|&machine| world.give_layouts(machine));
    world.wait_for(2000 * MS, |world| world.pending.is_empty());
    if world.time - begun > 120 * MS {
        world.fail(format!("it took {} ms", (world.time - begun) / MS));
    }
    world.finish();
}

#[test]
fn what_is_under_way_goes_on_when_the_others_know_the_layout() {
    let adjust = |settings: &mut Settings| {
        without_clients(settings);
        settings.keys_per_keyspace = 8;
        settings.partitions = 4;
        settings.node.deadline = std::time::Duration::from_secs(3);
        settings.node.retry_after = std::time::Duration::from_millis(500);
        settings.network.delay = MS;
        settings.network.late = 0;
        settings.sync = 2 * MS;
    };
    check(|seed| run_script(seed, false, adjust, ask_while_others_lag), &[Count::CutOvers]);
}

fn without_clients(settings: &mut Settings) {
    moving(settings, 4, 1, 3);
    settings.operations = 0;
}

#[test]
fn a_store_that_hears_of_an_old_layout_is_not_filled_by_it() {
    let run = |seed| run_script(seed, false, without_clients, refill_by_an_old_layout);
    check(run, &[Count::Wipes, Count::CutOvers, Count::Refills]);
}

#[test]
fn filling_a_store_by_a_layout_that_does_not_list_it_is_caught() {
    let adjust = |settings: &mut Settings| {
        without_clients(settings);
        settings.mutation = Some(Mutation::Core(Rule::ListedStore));
        // A store that is not listed gets no session, either.
        settings.lets_anybody_in = true;
    };
    let failures = (0..SEEDS).filter_map(|seed| run_script(seed, false, adjust, refill_by_an_old_layout).failure);
    let first = failures.into_iter().next();
    assert!(first.as_ref().is_some_and(|what| what.contains("D2")), "found {first:?}");
}

/// Two owners come back as older copies, and only one of them knows that of the other: it has renewed its store, and needs what
/// the one holds of which it knows that it is older.
fn pull_from_an_owner_in_doubt(world: &mut World) {
    world.begin();
    let (doubted, asker, third) = (0, 1, 2);
    let key = KeyId(0);
    world.write(key, false, QUORUM, doubted);
    world.wait(1500 * MS);
    let copy = world.machines[doubted].disk.copy();
    // What it shows from now on the third does not see.
    for (from, to) in [(doubted, third), (third, doubted)] {
        world.cut(from, to);
    }
    world.wait_until_noticed();
    world.write(key, false, QUORUM, doubted);
    world.wait(1500 * MS);
    let asker_copy = world.machines[asker].disk.copy();
    world.crash(asker);
    world.start(asker);
    world.wait(1000 * MS);
    world.crash(doubted);
    world.machines[doubted].disk.restore(copy);
    world.machines[doubted].acted_on = Epoch(0);
    for (from, to) in [(doubted, third), (third, doubted)] {
        world.heal_path(from, to);
    }
    world.start(doubted);
    world.wait(500 * MS);
    assert!(
        !world.network.is_connected(doubted, asker) && world.network.is_connected(doubted, third),
        "it is in doubt"
    );
    world.crash(asker);
    world.machines[asker].disk.restore(asker_copy);
    world.machines[asker].acted_on = Epoch(0);
    world.machines[asker].is_older_copy = true;
    world.machines[asker].quarantined = true;
    world.mark_unsynced(asker);
    world.start(asker);
    if !world.wait_for(20_000 * MS, |world| world.unsynced.is_empty()) {
        world.fail("D2: a store is never refilled, since another owner's is in doubt".to_owned());
    }
}

fn three_idle(settings: &mut Settings) {
    calm(settings, 3, 3);
    settings.operations = 0;
    settings.node.deadline = std::time::Duration::from_millis(500);
}

#[test]
fn an_owner_whose_store_is_in_doubt_still_gives_what_it_holds() {
    let run = |seed| run_script(seed, false, three_idle, pull_from_an_owner_in_doubt);
    check(run, &[Count::RollBacksNoticed, Count::Refills, Count::Doubts]);
}

#[test]
fn asking_only_those_who_are_fresh_is_caught() {
    let adjust = |settings: &mut Settings| {
        three_idle(settings);
        settings.mutation = Some(Mutation::Core(Rule::PullByIdentity));
    };
    let failures = (0..SEEDS).filter_map(|seed| run_script(seed, false, adjust, pull_from_an_owner_in_doubt).failure);
    let first = failures.into_iter().next();
    assert!(first.as_ref().is_some_and(|what| what.contains("D2")), "found {first:?}");
}

/// All owners renew their stores at the same moment, while clients work. Each keeps what it holds and is refilled from the others,
/// which are being refilled themselves.
fn renew_all_at_once(world: &mut World) {
    world.begin();
    world.wait_a_while(1000);
    for machine in world.living() {
        world.machines[machine].is_older_copy = true;
    }
    for machine in world.living() {
        world.renew(machine);
    }
    world.wait(1500 * MS);
    world.finish();
}

#[test]
fn owners_that_renew_all_at_once_lose_nothing() {
    let adjust = |settings: &mut Settings| {
        calm(settings, 3, 3);
        settings.clients = 3;
        settings.operations = 60;
        settings.think = 20 * MS;
        settings.node.deadline = std::time::Duration::from_millis(500);
    };
    check(|seed| run_script(seed, false, adjust, renew_all_at_once), &[Count::Refills, Count::StrictReads]);
}
