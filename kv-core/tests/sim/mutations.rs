//! Each rule of the protocol that the simulator is responsible for, switched off: the checkers must notice. A mutation
//! that nobody notices would mean that the checkers or the workload are too weak.

use kv_core::rule::Rule;

use crate::runner::run_adjusted;
use crate::settings::{Mutation, Settings};

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
    for seed in 0..SEEDS_MAX {
        if let Some(failure) = run_adjusted(seed, false, &adjust).failure {
            println!("{mutation:?} is caught by seed {seed}: {failure}");
            let fits = expected.iter().any(|what| failure.contains(what));
            assert!(fits, "{mutation:?} fails, but not as expected, at seed {seed}: {failure}");
            return;
        }
    }
    panic!("{mutation:?} is not caught by {SEEDS_MAX} seeds");
}

#[test]
fn acknowledging_before_the_sync_is_caught() {
    check(Mutation::Core(Rule::SyncBeforeReply), &["invariant 8", "D1"]);
}

#[test]
fn an_actor_used_again_after_a_crash_is_caught() {
    check(Mutation::Core(Rule::FreshActorAfterBoot), &["A1"]);
    check_consequences(Mutation::Core(Rule::FreshActorAfterBoot), &["invariant", "strict"]);
}

#[test]
fn an_actor_used_again_for_another_hint_is_caught() {
    check(Mutation::Core(Rule::FreshActorPerHint), &["A1"]);
}

#[test]
fn a_wiped_store_that_keeps_its_identity_is_caught() {
    check(Mutation::WipeKeepsIdentity, &["A1"]);
    check_consequences(Mutation::WipeKeepsIdentity, &["invariant", "strict"]);
}

#[test]
fn a_wiped_store_that_answers_with_emptiness_is_caught() {
    check(Mutation::Core(Rule::RefillLostStore), &["D2"]);
}

#[test]
fn sending_a_delta_is_caught() {
    check(Mutation::Core(Rule::WholeRecord), &["invariant", "strict"]);
}

#[test]
fn skipping_read_repair_is_caught() {
    check(Mutation::Core(Rule::ReadRepair), &["invariant 3"]);
}

#[test]
fn forgetting_request_ids_is_caught() {
    check(Mutation::Core(Rule::RememberRequests), &["A7"]);
}

#[test]
fn dropping_a_hint_too_early_is_caught() {
    check(Mutation::Core(Rule::KeepHintUntilConfirmed), &["invariant", "strict"]);
}

#[test]
fn acting_on_a_layout_that_is_not_durable_is_caught() {
    check(Mutation::Core(Rule::DurableLayout), &["invariant 7"]);
}
