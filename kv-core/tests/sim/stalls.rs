//! One of five nodes is frozen, or nothing reaches it and nothing comes from it any more, while every connection stays
//! open. Whatever the others can serve by themselves they answer within 300 ms, from the first moment on.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use kv_core::config::Available;
use kv_core::message::{Attempt, Consistency, Level, ScanRequest};
use kv_core::node::Tag;
use kv_core::rule::Rule;
use kv_core::version::Conflict;

use crate::clock::Time;
use crate::history::KeyId;
use crate::report::{Count, Report};
use crate::runner::{Run, run_script};
use crate::scripts::calm;
use crate::settings::{MS, Mutation, Settings};
use crate::workload::{Ask, Asker};
use crate::world::World;

/// Seeds that each script is tried with.
const SEEDS: u64 = 150;

/// Within this time a request must be answered.
const ANSWER_MAX: Time = 300 * MS;

/// What happens to the node.
#[derive(Clone, Copy)]
enum Stall {
    Frozen,
    CutOff,
}

fn adjust(settings: &mut Settings) {
    calm(settings, 5, 3);
    settings.partitions = 16;
    settings.keys_per_keyspace = 8;
    settings.network.delay = MS;
    settings.network.late = 0;
    settings.sync = 2 * MS;
    settings.slow_reads = 100;
    // Nobody is given up in the time that counts.
    settings.silence = (4000 * MS, 5000 * MS);
    settings.cluster.siblings_max = 32;
    settings.node.deadline = Duration::from_secs(5);
    settings.node.hedge_after = Duration::from_millis(50);
    settings.node.stall_after = Duration::from_millis(100);
    settings.node.retry_after = Duration::from_millis(500);
    settings.node.slice_entries_max = 64;
}

/// Whether the other owners can do alone what is asked: fallbacks count only for owners that are down.
fn is_served_without(world: &World, victim: usize, ask: &Ask) -> bool {
    let enough = |key: KeyId, consistency: Consistency, of_keyspace: fn(Available) -> u8| {
        let key = world.history.key(key);
        let owners = world.owners(key.partition);
        let of_keyspace = world.settings_of(key.keyspace).map_or(1, |settings| usize::from(of_keyspace(settings)));
        let needed = match consistency.level {
            Level::Keyspace => of_keyspace.min(owners.len()),
            Level::One => 1,
            Level::Quorum => owners.len() / 2 + 1,
            Level::All => owners.len(),
        };
        owners.iter().filter(|owner| **owner != victim).count() >= needed
    };
    match ask {
        Ask::Write(op, _) => {
            let op = world.history.op(*op);
            enough(op.key, op.consistency, |settings| settings.w)
        }
        Ask::Read { key, consistency } => enough(*key, *consistency, |settings| settings.r),
        Ask::Scan(scan) => matches!(scan.consistency.level, Level::One | Level::Quorum),
        Ask::Inspect { .. } | Ask::Register(..) | Ask::Registers { .. } | Ask::Bad { .. } => true,
    }
}

fn draw_ask(world: &mut World) -> Ask {
    let key = KeyId(world.dice.index(world.history.keys.len()));
    let level = *world.dice.pick(&[Level::One, Level::Quorum, Level::Keyspace, Level::All]);
    let consistency = Consistency { level, strict: world.dice.chance(500) };
    match world.dice.below(10) {
        // Some clients name their requests, others leave that to the node, which has written nothing of what it replaces. Where the last
        // writer wins such a write waits if the clock of its node lags.
        0..2 if world.history.key(key).conflict == Conflict::Siblings => {
            Ask::Write(world.plan_unnamed(key, false, consistency), Attempt::Plain)
        }
        0..4 => {
            let value = world.history.next_value(0);
            Ask::Write(world.plan_write(key, Some(value), consistency), Attempt::Plain)
        }
        4..8 => Ask::Read { key, consistency },
        8 => Ask::Inspect { key },
        _ => {
            let (keyspace, prefix) = (world.history.key(key).keyspace, Bytes::new());
            Ask::Scan(ScanRequest { keyspace, prefix, after: None, limit: 3, keys_only: false, consistency })
        }
    }
}

fn ask_past_a_stalled_node(world: &mut World, stall: Stall) {
    world.begin();
    for key in world.history.key_ids().collect::<Vec<_>>() {
        let machine = world.first_owner(key);
        world.write(key, false, Consistency { level: Level::All, strict: true }, machine);
    }
    let victim = world.dice.index(5);
    let others: Vec<usize> = (0..5).filter(|machine| *machine != victim).collect();
    // Sometimes requests are under way when it begins, sometimes the first one comes later.
    let begins = world.time + world.dice.below(30) * MS;
    let ends = begins + 1000 * MS;
    let mut stalled = false;
    let mut waiting: BTreeMap<Tag, (Time, String)> = BTreeMap::new();
    while world.time < ends + ANSWER_MAX && world.failure.is_none() {
        if !stalled && world.time >= begins {
            stalled = true;
            match stall {
                Stall::Frozen => world.freeze(victim, 1500 * MS),
                Stall::CutOff => world.isolate(victim),
            }
        }
        if world.time < ends {
            let ask = draw_ask(world);
            let machine = *world.dice.pick(&others);
            if is_served_without(world, victim, &ask) {
                let text = format!("{ask:?} of machine {machine} without {victim}");
                let layout = world.layouts.len() - 1;
                world.ask(Asker::Audit, ask, machine, layout);
                waiting.insert(Tag(world.tags), (world.time, text));
            } else if let Ask::Write(..) = ask {
                world.set_end(&ask, crate::history::End::Nothing);
            }
        }
        let wait = world.dice.between(1, 8) * MS;
        world.run_until(world.time + wait);
        waiting.retain(|tag, _| world.pending.contains_key(tag));
        if let Some((_, (asked, text))) = waiting.iter().find(|(_, (asked, _))| world.time > asked + ANSWER_MAX) {
            let (at, text) = ((world.time - asked) / MS, text.clone());
            world.fail(format!("availability: no answer after {at} ms: {text}"));
        }
    }
    world.rejoin(victim);
    world.finish();
}

fn run(seed: u64, stall: Stall, adjust: impl Fn(&mut Settings)) -> Run {
    run_script(seed, false, adjust, |world| ask_past_a_stalled_node(world, stall))
}

fn check(stall: Stall, happened: &[Count]) {
    let mut report = Report::new();
    for seed in 0..SEEDS {
        let run = run(seed, stall, adjust);
        assert_eq!(run.failure, None, "the script fails with seed {seed}");
        report.join(&run.report);
    }
    for what in happened {
        assert!(report.get(*what) > 0, "the script never had {}", what.name());
    }
}

fn check_caught(rule: Rule) {
    let broken = |settings: &mut Settings| {
        adjust(settings);
        settings.mutation = Some(Mutation::Core(rule));
    };
    let failure = (0..20).find_map(|seed| run(seed, Stall::Frozen, broken).failure);
    assert!(failure.as_ref().is_some_and(|what| what.contains("availability")), "{rule:?}: found {failure:?}");
}

#[test]
fn requests_go_on_at_once_without_a_frozen_node() {
    check(Stall::Frozen, &[Count::Freezes, Count::Hedges, Count::Forwards]);
}

#[test]
fn requests_go_on_at_once_without_a_node_that_is_cut_off() {
    check(Stall::CutOff, &[Count::Drops, Count::Hedges, Count::Forwards]);
}

#[test]
fn forwarding_to_one_owner_only_is_caught() {
    check_caught(Rule::HedgeForwards);
}

#[test]
fn hedges_that_only_replace_are_caught() {
    check_caught(Rule::HedgeGoesBeside);
}

#[test]
fn waiting_for_a_stalled_peer_is_caught() {
    check_caught(Rule::MoveOnFromStalled);
}
