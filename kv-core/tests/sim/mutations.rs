//! Each rule of the protocol that the simulator is responsible for, switched off: the checkers must notice. A mutation
//! that nobody notices would mean that the checkers or the workload are too weak.

use std::time::Duration;

use kv_core::rule::Rule;

use crate::report::Count;
use crate::runner::run_adjusted;
use crate::settings::{MS, Mutation, Settings};

/// Seeds that a mutation may take. Most take a few.
const SEEDS_MAX: u64 = 3000;

/// Runs seeds until one fails under the mutation. The complaint must be one of the expected.
fn check(mutation: Mutation, expected: &[&str]) {
    check_adjusted(mutation, expected, |settings| settings.mutation = Some(mutation));
}

/// The same for the rules about actors, with the checker that looks for actors used twice switched off: what comes of
/// it must be noticed, too.
fn check_consequences(mutation: Mutation, expected: &[&str]) {
    check_adjusted(mutation, expected, |settings| {
        settings.mutation = Some(mutation);
        settings.overlooks_actors = true;
    });
}

fn check_adjusted(mutation: Mutation, expected: &[&str], adjust: impl Fn(&mut Settings)) {
    check_within(SEEDS_MAX, mutation, expected, adjust);
}

/// Some of so many seeds fails without a rule, with one of the expected complaints.
pub(crate) fn check_within(seeds_max: u64, mutation: Mutation, expected: &[&str], adjust: impl Fn(&mut Settings)) {
    for seed in 0..seeds_max {
        if let Some(failure) = run_adjusted(seed, false, &adjust).failure {
            println!("{mutation:?} is caught by seed {seed}: {failure}");
            let fits = expected.iter().any(|what| failure.contains(what));
            assert!(fits, "{mutation:?} fails, but not as expected, at seed {seed}: {failure}");
            return;
        }
    }
    panic!("{mutation:?} is not caught by {seeds_max} seeds");
}

#[test]
fn acknowledging_before_the_sync_is_caught() {
    check(Mutation::Core(Rule::SyncBeforeReply), &["invariant 8", "D1"]);
}

#[test]
fn an_actor_used_again_after_a_crash_is_caught() {
    check(Mutation::Core(Rule::FreshActorAfterBoot), &["A1", "invariant 4"]);
    check_consequences(Mutation::Core(Rule::FreshActorAfterBoot), &["invariant", "strict", "A6"]);
}

#[test]
fn an_actor_used_again_for_another_hint_is_caught() {
    check(Mutation::Core(Rule::FreshActorPerHint), &["A1"]);
}

#[test]
fn a_wiped_store_that_keeps_its_identity_is_caught() {
    // Or the others notice that its boot ends before what they were shown, and it is renewed although it is no copy.
    check(Mutation::WipeKeepsIdentity, &["A1", "invariant", "strict", "D2", "do not talk"]);
    check_consequences(Mutation::WipeKeepsIdentity, &["invariant", "strict", "D2", "do not talk"]);
}

#[test]
fn a_wiped_store_that_answers_with_emptiness_is_caught() {
    check(Mutation::Core(Rule::RefillLostStore), &["D2", "never refilled"]);
}

#[test]
fn talking_to_somebody_who_is_no_member_is_caught() {
    // A member in whose name a stranger came with another store is not let in again.
    check(
        Mutation::Core(Rule::MembersOnly),
        &["nobody wrote", "nobody made", "invariant", "A1", "strict", "do not talk", "D2"],
    );
}

#[test]
fn believing_a_single_member_is_caught() {
    check(Mutation::Core(Rule::ProvenClaims), &["D2"]);
}

#[test]
fn telling_stores_by_the_number_of_their_boots_is_caught() {
    check(Mutation::Core(Rule::ListOfBoots), &["D2", "invariant", "strict", "A1"]);
}

#[test]
fn ignoring_how_far_a_boot_had_come_is_caught() {
    check(Mutation::Core(Rule::EndOfBoot), &["D2", "invariant", "strict", "A1"]);
}

#[test]
fn showing_nothing_but_acknowledgements_is_caught() {
    check(Mutation::Core(Rule::ShowCommits), &["D2"]);
}

#[test]
fn forgetting_what_peers_have_shown_is_caught() {
    check(Mutation::Core(Rule::RememberShown), &["D2"]);
}

#[test]
fn refilling_from_one_owner_is_caught() {
    check(Mutation::Core(Rule::RefillFromAll), &["D2"]);
}

#[test]
fn a_renewal_that_wipes_the_store_is_caught() {
    check(Mutation::RenewalWipes, &["D2"]);
}

#[test]
fn sending_a_delta_is_caught() {
    check(Mutation::Core(Rule::WholeRecord), &["invariant", "strict"]);
}

#[test]
fn skipping_read_repair_is_caught() {
    let left_to_reads = |settings: &mut Settings| {
        settings.left_to_reads = true;
        settings.keyspaces.retain(|keyspace| keyspace.available().is_some());
        settings.node.repair_every = Duration::ZERO;
        settings.node.settle_every = Duration::ZERO;
    };
    for seed in 0..300 {
        assert_eq!(
            run_adjusted(seed, false, left_to_reads).failure,
            None,
            "seed {seed}: reads alone make replicas equal"
        );
    }
    check_adjusted(Mutation::Core(Rule::ReadRepair), &["invariant 3"], |settings| {
        settings.mutation = Some(Mutation::Core(Rule::ReadRepair));
        left_to_reads(settings);
    });
}

#[test]
fn leaving_apart_what_a_dead_coordinator_left_apart_is_caught() {
    let mutation = Mutation::Core(Rule::CompareAfterCrash);
    check_adjusted(mutation, &["invariant 3"], |settings| {
        settings.mutation = Some(mutation);
        // What settles is compared, too.
        settings.node.settle_every = Duration::ZERO;
    });
}

#[test]
fn turns_in_the_background_make_replicas_equal_by_themselves() {
    let mut healed = 0;
    for seed in 0..300 {
        let run = run_adjusted(seed, false, |settings| {
            settings.mutation = Some(Mutation::Core(Rule::CompareAfterCrash));
            settings.node.repair_every = Duration::from_millis(500);
        });
        assert_eq!(run.failure, None, "seed {seed}");
        healed += run.report.get(Count::Compared);
    }
    assert!(healed > 0, "no seed left replicas apart");
}

#[test]
fn forgetting_request_ids_is_caught() {
    check(Mutation::Core(Rule::RememberRequests), &["A7"]);
}

/// Runs in which clients repeat most of what they do. The other parts of rule A7 are told as stories in `repeats`.
fn check_repetitions(rule: Rule, expected: &[&str]) {
    check_adjusted(Mutation::Core(rule), expected, |settings| {
        settings.mutation = Some(Mutation::Core(rule));
        settings.repetitions = 600;
        settings.keys_per_keyspace = 1;
        settings.faults.partitions += 4;
    });
}

#[test]
fn forgetting_which_requests_were_replaced_is_caught() {
    check_repetitions(Rule::RetireReplaced, &["A7", "invariant", "strict"]);
}

#[test]
fn keeping_what_was_replaced_elsewhere_is_caught() {
    check_repetitions(Rule::DropRetired, &["A7", "invariant", "strict"]);
}

#[test]
fn repeating_what_is_too_old_is_caught() {
    check_repetitions(Rule::RefuseOldRequests, &["A7"]);
}

#[test]
fn replacing_in_the_order_of_arrival_is_caught() {
    check_repetitions(Rule::BlindReplacesEarlier, &["A7", "invariant", "strict"]);
}

#[test]
fn dropping_a_hint_too_early_is_caught() {
    check(Mutation::Core(Rule::KeepHintUntilConfirmed), &["invariant", "strict"]);
}

#[test]
fn acting_on_a_layout_that_is_not_durable_is_caught() {
    // What it has left by such a layout it also drops.
    check(Mutation::Core(Rule::DurableLayout), &["invariant 7", "M4"]);
}

/// Only runs that change their topology can notice these.
fn check_moves(mutation: Mutation, expected: &[&str]) {
    check_adjusted(mutation, expected, |settings| {
        settings.mutation = Some(mutation);
        settings.move_often();
    });
}

#[test]
fn a_quorum_in_one_set_only_is_caught() {
    check_moves(Mutation::Core(Rule::BothQuorums), &["invariant", "strict"]);
}

#[test]
fn dropping_what_nobody_has_confirmed_is_caught() {
    check_moves(Mutation::Core(Rule::HandOverBeforeDrop), &["A4"]);
}

#[test]
fn progress_of_an_earlier_ownership_is_caught() {
    // A receipt of an earlier try also keeps a node from copying again.
    check_moves(Mutation::Core(Rule::SinceCounts), &["E3", "M1", "D2", "invariant", "strict", "liveness"]);
}

#[test]
fn copying_from_too_few_is_caught() {
    check_moves(Mutation::Core(Rule::CoveredByMajority), &["M1"]);
}

#[test]
fn copying_from_a_source_that_is_not_fenced_is_caught() {
    check_moves(Mutation::Core(Rule::FencedSource), &["M1"]);
}

#[test]
fn progress_that_is_durable_before_its_data_is_caught() {
    let single_copies = |settings: &mut Settings| {
        settings.move_often();
        // No other source brings what was lost, and many crashes meet a copy.
        settings.copies = 1;
        settings.faults.operations = 8;
        settings.faults.crashes_of_copies = 300;
        settings.sync = 10 * MS;
    };
    for seed in 0..60 {
        assert_eq!(
            run_adjusted(seed, false, single_copies).failure,
            None,
            "seed {seed}: with the rule nothing is lost"
        );
    }
    check_adjusted(
        Mutation::Core(Rule::CursorBehindData),
        &["M1", "D2", "invariant", "strict", "liveness"],
        |settings| {
            settings.mutation = Some(Mutation::Core(Rule::CursorBehindData));
            single_copies(settings);
        },
    );
}

#[test]
fn counting_a_source_that_was_left_midway_is_caught() {
    check_moves(Mutation::Core(Rule::CoverageOfEachSource), &["M1", "D2"]);
}

#[test]
fn dropping_before_the_layout_is_durable_is_caught() {
    // What is dropped by a layout that is not durable looks like a collection of live records, too.
    check_moves(Mutation::Core(Rule::DropAfterAdoption), &["M4", "A6"]);
}

#[test]
fn cutting_over_without_receipts_is_caught() {
    // A partition whose new owners hold nothing may also stay closed.
    check_moves(Mutation::CutOverWithoutReceipts, &["invariant", "strict", "liveness"]);
}

#[test]
fn answering_at_another_epoch_is_caught() {
    check_moves(Mutation::Core(Rule::FenceByEpoch), &["invariant", "strict", "M1"]);
}

#[test]
fn a_timestamp_below_what_was_seen_is_caught() {
    check(Mutation::Core(Rule::TimestampAboveSeen), &["invariant", "strict"]);
}

#[test]
fn a_page_that_ends_behind_what_was_read_is_caught() {
    check(Mutation::Core(Rule::PageEndsWhereOneStops), &["a strict scan misses", "invariant 2"]);
}

#[test]
fn counting_by_the_clock_is_caught() {
    check(Mutation::Core(Rule::CountsIgnoreClocks), &["the statistics of", "entries or bytes cannot change"]);
}

#[test]
fn calling_what_is_not_known_yet_absent_is_caught() {
    check(Mutation::Core(Rule::UnknownIsBehind), &["a good request is refused as NotFound"]);
}

/// Runs that drop keyspaces, with crashes in the midst of it.
fn check_drops(mutation: Mutation, expected: &[&str]) {
    check_adjusted(mutation, expected, |settings| {
        settings.mutation = Some(mutation);
        settings.faults.drops = 2;
        settings.faults.creations = 2;
        settings.faults.crashes += 4;
    });
}

#[test]
fn forgetting_a_removal_at_a_restart_is_caught() {
    // A marker that is left keeps the node busy.
    check_drops(Mutation::Core(Rule::ResumePurge), &["K1", "liveness"]);
}

#[test]
fn taking_what_was_dropped_is_caught() {
    // Or what is written is deleted unseen, by whoever relies on the rule, and the statistics notice.
    check_drops(Mutation::Core(Rule::RefuseDropped), &["K1", "entries or bytes cannot change"]);
}

#[test]
fn going_back_to_an_older_list_of_keyspaces_is_caught() {
    check_drops(Mutation::Core(Rule::NewestKeyspaces), &["K1"]);
}

#[test]
fn a_scan_that_leaves_loops_out_is_caught() {
    check(Mutation::Core(Rule::AskEveryLoop), &["scan", "R1", "invariant 2"]);
}

#[test]
fn accepting_below_a_promise_is_caught() {
    check(Mutation::Core(Rule::KeepPromises), &["C1", "C2", "invariant 2"]);
}

#[test]
fn taking_over_what_is_below_a_promise_is_caught() {
    check(Mutation::Core(Rule::InstallAbovePromise), &["C2", "invariant 2"]);
}

#[test]
fn reading_what_no_majority_agrees_on_is_caught() {
    check(Mutation::Core(Rule::ReadWantsAgreement), &["invariant 2"]);
}

#[test]
fn proposing_something_else_than_was_found_is_caught() {
    check(Mutation::Core(Rule::ProposeLatest), &["invariant 2"]);
}

#[test]
fn changing_a_register_twice_for_one_request_is_caught() {
    check(Mutation::Core(Rule::RememberChanges), &["invariant 2"]);
}

#[test]
fn trying_again_what_has_failed_is_caught() {
    check(Mutation::Core(Rule::RememberFailures), &["invariant 2"]);
}

#[test]
fn failing_on_what_no_majority_agrees_on_is_caught() {
    // Nothing is written then where replicas are to be brought together, either.
    check(Mutation::Core(Rule::ConfirmBeforeFailing), &["invariant 2", "liveness", "invariant 3"]);
}

#[test]
fn failing_while_the_change_may_still_be_found_is_caught() {
    check(Mutation::Core(Rule::WithdrawBeforeFailing), &["invariant 2"]);
}

#[test]
fn calling_what_has_expired_absent_is_caught() {
    // What is not deleted is found again and again.
    check(Mutation::Core(Rule::DeleteExpired), &["invariant 2", "liveness"]);
}

#[test]
fn taking_a_forgotten_request_for_new_is_caught() {
    check(Mutation::Core(Rule::RefuseForgotten), &["invariant 2"]);
}
