//! Registers in directed scripts: few keys, many clients, and one kind of trouble at a time. What the clients are told must be
//! linearizable, as in every run.

use std::time::Duration;

use crate::report::{Count, Report};
use crate::runner::{run_adjusted, run_script};
use crate::scripts::{calm, five_copies_to_three, leave_cancel_rejoin, move_with_a_disk_lost, moving};
use crate::scripts::{remove_a_dead_member, replace_two_of_three};
use crate::settings::{Faults, MS, Settings};
use crate::world::World;

/// Seeds that each script is told with.
const SEEDS: u64 = 60;

/// Clients of the registers, with so many operations each.
fn registers(settings: &mut Settings, operations: usize) {
    settings.keyspaces.push(crate::settings::registers());
    settings.register_operations = operations;
    settings.clients = 1;
    settings.operations = 10;
}

/// No seed fails, and each of these things happens in some.
fn check(adjust: impl Fn(&mut Settings), script: Option<fn(&mut World)>, happened: &[Count]) {
    let mut report = Report::new();
    for seed in 0..SEEDS {
        let run = match script {
            Some(script) => run_script(seed, false, &adjust, script),
            None => run_adjusted(seed, false, &adjust),
        };
        assert_eq!(run.failure, None, "the script fails with seed {seed}");
        report.join(&run.report);
    }
    for what in happened.iter().chain(&[Count::RegisterGets, Count::RegisterWrites, Count::RegisterConditions]) {
        assert!(report.get(*what) > 0, "the script never had {}", what.name());
    }
}

#[test]
fn coordinators_on_lossy_links_agree() {
    let adjust = |settings: &mut Settings| {
        calm(settings, 3, 3);
        settings.network.loss = 300;
        settings.network.duplication = 300;
        settings.network.late = 200;
        registers(settings, 60);
        settings.think = 0;
    };
    check(adjust, None, &[Count::Drops, Count::Duplicates, Count::Reorders, Count::RegisterRepetitions]);
}

#[test]
fn agreement_survives_wipes_and_roll_backs_under_load() {
    let adjust = |settings: &mut Settings| {
        calm(settings, 5, 5);
        settings.faults =
            Faults { wipes: 4, roll_backs: 3, crashes: 3, failed_syncs: 1, slow_disks: 2, ..Faults::default() };
        registers(settings, 120);
        settings.think = 20 * MS;
        settings.trouble_ends = 3000 * MS;
    };
    check(adjust, None, &[Count::Wipes, Count::RollBacks, Count::Refills]);
}

#[test]
fn agreement_survives_the_replacement_of_two_owners_of_three() {
    // With much contention and with little.
    for think in [0, 20 * MS] {
        let adjust = |settings: &mut Settings| {
            moving(settings, 5, 2, 3);
            settings.network.late = 200;
            registers(settings, 100);
            settings.think = think;
        };
        check(adjust, Some(replace_two_of_three), &[Count::CutOvers, Count::Receipts, Count::Dropped]);
    }
}

#[test]
fn agreement_survives_nodes_that_leave_and_come_back() {
    let adjust = |settings: &mut Settings| {
        moving(settings, 4, 0, 3);
        registers(settings, 100);
    };
    check(adjust, Some(leave_cancel_rejoin), &[Count::Cancels, Count::CutOvers, Count::Dropped]);
}

#[test]
fn agreement_survives_fewer_copies() {
    let adjust = |settings: &mut Settings| {
        moving(settings, 5, 0, 5);
        registers(settings, 100);
    };
    check(adjust, Some(five_copies_to_three), &[Count::CutOvers, Count::Receipts, Count::Dropped]);
}

#[test]
fn agreement_survives_a_disk_that_is_lost_in_the_middle_of_a_move() {
    let adjust = |settings: &mut Settings| {
        moving(settings, 4, 1, 3);
        registers(settings, 100);
    };
    check(adjust, Some(move_with_a_disk_lost), &[Count::Wipes, Count::CutOvers]);
}

#[test]
fn agreement_survives_a_member_that_is_removed_as_dead() {
    let adjust = |settings: &mut Settings| {
        moving(settings, 4, 0, 3);
        registers(settings, 100);
    };
    check(adjust, Some(remove_a_dead_member), &[Count::Deaths, Count::CutOvers]);
}

#[test]
fn deleted_registers_are_collected_while_others_write_and_machines_crash() {
    let adjust = |settings: &mut Settings| {
        calm(settings, 3, 3);
        settings.faults = Faults { crashes: 4, slow_disks: 2, ..Faults::default() };
        registers(settings, 200);
        settings.think = 30 * MS;
        settings.trouble_ends = 4000 * MS;
        settings.cluster.repeat_within = Duration::from_millis(100);
        settings.cluster.clock_skew_max = Duration::from_millis(20);
        settings.node.collect_after = Duration::from_millis(100);
        settings.node.settle_every = Duration::from_millis(10);
    };
    check(adjust, None, &[Count::RegistersCollected, Count::RegistersRead]);
}
