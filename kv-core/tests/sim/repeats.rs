//! Rule A7 in stories: a request that is repeated, late and elsewhere, takes effect once. Each is told first with a part of the
//! rule and then without it.

use std::time::Duration;

use kv_core::message::{Attempt, Consistency, Level};
use kv_core::rule::Rule;
use kv_core::storage::Space;
use kv_core::types::{Hlc, RequestId};
use kv_core::version::{Conflict, ContextToken};

use crate::clock::{MachineClock, Time};
use crate::history::{KeyId, OpId, Seen, WriteOp};
use crate::rules::{alone, check};
use crate::runner::run_script;
use crate::settings::{MS, Mutation, Settings};
use crate::workload::{Ask, Asker, Stamps};
use crate::world::World;

const ONE: Consistency = Consistency { level: Level::One, strict: false };
const QUORUM: Consistency = Consistency { level: Level::Quorum, strict: true };
const ALL: Consistency = Consistency { level: Level::All, strict: true };

/// Three nodes, three copies, and nothing that happens by itself.
fn three(settings: &mut Settings) {
    alone(settings, 3, 3);
    settings.node.deadline = Duration::from_millis(500);
    settings.cluster.siblings_max = 32;
}

/// What a story tells of one key.
struct Story<'a> {
    world: &'a mut World,
    key: KeyId,
    /// Its owners.
    owners: Vec<usize>,
}

impl<'a> Story<'a> {
    fn begin(world: &'a mut World, conflict: Conflict) -> Option<Self> {
        world.begin();
        let key = world.history.key_ids().find(|key| world.history.key(*key).conflict == conflict)?;
        let owners = world.owners(world.history.key(key).partition);
        Some(Self { world, key, owners })
    }

    /// The true time, so much later.
    fn stamp(&self, later: Time) -> Hlc {
        Hlc::at(MachineClock::new().wall(self.world.time + later))
    }

    /// A put of a client, with the stamp of a moment so much later than now.
    fn plan(&mut self, client: u64, later: Time, seen: Option<Seen>) -> OpId {
        let request = RequestId { stamp: self.stamp(later), client: 100 + client };
        let value = Some(self.world.history.next_value(0));
        let op = WriteOp::new(self.key, ONE, request, value, self.world.time);
        self.world.history.add_op(WriteOp { seen, ..op })
    }

    /// The same of a delete.
    fn plan_delete(&mut self, client: u64, later: Time) -> OpId {
        let op = self.plan(client, later, None);
        self.world.history.ops[op.0].value = None;
        op
    }

    /// An operation is sent to an owner, and must succeed.
    fn send(&mut self, op: OpId, attempt: Attempt, owner: usize, consistency: Consistency) {
        self.world.history.ops[op.0].consistency = consistency;
        self.world.audit_asks(vec![(Ask::Write(op, attempt), self.owners[owner])]);
        // Operations follow each other, by every clock.
        self.world.wait(30 * MS);
    }

    /// An operation is sent to an owner until every owner has it, as soon as that is possible.
    fn send_soon(&mut self, op: OpId, owner: usize) {
        self.world.history.ops[op.0].consistency = ALL;
        let (layout, machine) = (self.world.layouts.len() - 1, self.owners[owner]);
        let end = self.world.time + 2000 * MS;
        while self.world.history.op(op).took_effect.is_none() && self.world.time < end && self.world.failure.is_none() {
            self.world.ask(Asker::Past, Ask::Write(op, Attempt::First), machine, layout);
            self.world.wait_for(1000 * MS, |world| world.pending.is_empty());
        }
        self.world.wait(30 * MS);
    }

    /// What a client has read that asked one owner alone.
    fn read(&self, owner: usize) -> Seen {
        let stored = self.world.storage_key(Space::Owned, self.key);
        let record = self.world.machines[self.owners[owner]].disk.durable_record(&stored).unwrap_or_default();
        let token = ContextToken::of(&record);
        let name = self.world.history.key(self.key);
        let values = record.live(MachineClock::new().wall(self.world.time)).into_iter();
        let values = values.filter_map(|it| self.world.history.op_of_value(self.key, it.value.as_ref()?)).collect();
        let (context, shown) = (token.context.clone(), token.shown.clone());
        Seen { token: token.encode(name.keyspace, &name.bytes), context, shown, values: Some(values) }
    }

    /// A strict read through an owner, which the checkers judge.
    fn is_read(&mut self, owner: usize) {
        self.world.audit_asks(vec![(Ask::Read { key: self.key, consistency: QUORUM }, self.owners[owner])]);
    }

    fn isolate(&mut self, owner: usize) {
        self.world.isolate(self.owners[owner]);
        self.world.wait_until_noticed();
    }

    fn isolate_all(&mut self) {
        (0..3).for_each(|owner| self.world.isolate(self.owners[owner]));
        self.world.wait_until_noticed();
    }

    fn rejoin(&mut self, owner: usize) {
        self.world.rejoin(self.owners[owner]);
    }
}

/// A put; what it wrote is replaced by who has read it. An owner that was cut off takes the put again, and rejoins.
fn repeat_where_nothing_is_known(world: &mut World) {
    let Some(mut story) = Story::begin(world, Conflict::Siblings) else { return };
    story.isolate(2);
    let first = story.plan(1, 0, None);
    story.send(first, Attempt::First, 0, QUORUM);
    let seen = story.read(0);
    let second = story.plan(2, 0, Some(seen));
    story.send(second, Attempt::First, 1, QUORUM);
    story.send(first, Attempt::Repeated, 2, ONE);
    story.rejoin(2);
    world.settle();
    world.finish();
}

/// The same where nobody but the owner that has replaced the value ever held it under that dot.
fn repeat_where_nobody_held_it(world: &mut World) {
    let Some(mut story) = Story::begin(world, Conflict::Siblings) else { return };
    story.isolate_all();
    let first = story.plan(1, 0, None);
    story.send(first, Attempt::First, 0, ONE);
    let seen = story.read(0);
    let second = story.plan(2, 0, Some(seen));
    story.send(second, Attempt::First, 0, ONE);
    story.send(first, Attempt::Repeated, 2, ONE);
    (0..3).for_each(|owner| story.rejoin(owner));
    world.settle();
    world.finish();
}

#[test]
fn forgetting_what_was_replaced_is_caught() {
    let mutation = Mutation::Core(Rule::RetireReplaced);
    check(mutation, &["invariant 4"], three, repeat_where_nobody_held_it);
}

#[test]
fn keeping_what_turns_up_of_a_replaced_request_is_caught() {
    let mutation = Mutation::Core(Rule::DropRetired);
    check(mutation, &["invariant 4"], three, repeat_where_nothing_is_known);
}

/// An owner that was cut off comes back with a put that it alone holds, and coordinates at once what replaces it. The put is
/// repeated at another owner, which has what replaced it and never held the put, while the first one is cut off again.
fn repeat_where_it_was_replaced(world: &mut World) {
    let Some(mut story) = Story::begin(world, Conflict::Siblings) else { return };
    story.isolate(0);
    let first = story.plan(1, 0, None);
    story.send(first, Attempt::First, 0, ONE);
    let seen = story.read(0);
    story.rejoin(0);
    let second = story.plan(2, 0, Some(seen));
    story.send_soon(second, 0);
    story.isolate(0);
    story.send(first, Attempt::Repeated, 1, QUORUM);
    story.is_read(1);
    story.rejoin(0);
    world.finish();
}

#[test]
fn sending_records_without_what_was_replaced_is_caught() {
    let mutation = Mutation::Core(Rule::RetiredTravel);
    check(mutation, &["invariant 4"], three, repeat_where_it_was_replaced);
}

/// A put reaches one owner, which is cut off, and then both others. Who has read it at the first replaces it through the others.
fn replace_under_another_dot(world: &mut World) {
    let Some(mut story) = Story::begin(world, Conflict::Siblings) else { return };
    story.isolate(0);
    let first = story.plan(1, 0, None);
    story.send(first, Attempt::First, 0, ONE);
    story.send(first, Attempt::Repeated, 1, QUORUM);
    let seen = story.read(0);
    let second = story.plan(2, 0, Some(seen));
    story.send(second, Attempt::First, 2, QUORUM);
    story.is_read(1);
    story.rejoin(0);
    world.finish();
}

#[test]
fn tokens_that_do_not_name_what_was_shown_are_caught() {
    let mutation = Mutation::Core(Rule::TokensNameShown);
    check(mutation, &["invariant 4"], three, replace_under_another_dot);
}

#[test]
fn replacing_by_dots_alone_is_caught() {
    let mutation = Mutation::Core(Rule::ReplaceById);
    check(mutation, &["invariant 4"], three, replace_under_another_dot);
}

/// Two puts reach an owner each, and are repeated at the other one's, while nobody hears of anybody.
fn replace_each_other(world: &mut World) {
    let Some(mut story) = Story::begin(world, Conflict::Siblings) else { return };
    story.isolate_all();
    let first = story.plan(1, 0, None);
    story.send(first, Attempt::First, 0, ONE);
    let second = story.plan(2, 0, None);
    story.send(second, Attempt::First, 1, ONE);
    story.send(second, Attempt::Repeated, 0, ONE);
    story.send(first, Attempt::Repeated, 1, ONE);
    (0..3).for_each(|owner| story.rejoin(owner));
    world.settle();
    world.finish();
}

#[test]
fn writes_without_an_order_are_caught() {
    let mutation = Mutation::Core(Rule::BlindReplacesEarlier);
    check(mutation, &["A7", "invariant 1"], three, replace_each_other);
}

/// The clock by which a client stamps its put is ahead. A put of another client, made later and stamped earlier, stands where the
/// first one is repeated.
fn repeat_over_what_is_younger(world: &mut World) {
    let Some(mut story) = Story::begin(world, Conflict::Siblings) else { return };
    story.isolate(0);
    let first = story.plan(1, 200 * MS, None);
    story.send(first, Attempt::First, 0, ONE);
    let second = story.plan(2, 0, None);
    story.send(second, Attempt::First, 1, QUORUM);
    story.send(first, Attempt::Repeated, 2, QUORUM);
    story.rejoin(0);
    world.finish();
}

#[test]
fn a_repetition_that_replaces_what_may_be_younger_is_caught() {
    let mutation = Mutation::Core(Rule::RepetitionSparesRecent);
    check(mutation, &["A7"], three, repeat_over_what_is_younger);
}

/// A put is repeated when that is not allowed any more.
fn repeat_too_late(world: &mut World) {
    let Some(mut story) = Story::begin(world, Conflict::Siblings) else { return };
    let first = story.plan(1, 0, None);
    story.send(first, Attempt::First, 0, ALL);
    let within = story.world.settings.repeat_within();
    story.world.wait(within + 10 * MS);
    let (layout, machine) = (story.world.layouts.len() - 1, story.owners[1]);
    story.world.ask(Asker::Past, Ask::Write(first, Attempt::Repeated), machine, layout);
    story.world.wait_for(1000 * MS, |world| world.pending.is_empty());
    world.finish();
}

#[test]
fn carrying_out_what_is_too_old_is_caught() {
    let mutation = Mutation::Core(Rule::RefuseOldRequests);
    check(mutation, &["older than repetitions may be"], three, repeat_too_late);
}

/// Where the last writer wins: a put, a later one, and the first one again.
fn repeat_where_the_last_writer_wins(world: &mut World) {
    let Some(mut story) = Story::begin(world, Conflict::Lww) else { return };
    let first = story.plan(1, 0, None);
    story.send(first, Attempt::First, 0, ALL);
    let second = story.plan(2, 0, None);
    story.send(second, Attempt::First, 0, ALL);
    story.send(first, Attempt::Repeated, 1, ALL);
    world.finish();
}

#[test]
fn a_repetition_that_counts_as_the_last_writer_is_caught() {
    let mutation = Mutation::Core(Rule::RepetitionAtStamp);
    check(mutation, &["A7"], three, repeat_where_the_last_writer_wins);
}

/// The same with a first client whose clock is ahead, and a second one that does not know of it.
fn repeat_of_a_client_that_is_ahead(world: &mut World) {
    let Some(mut story) = Story::begin(world, Conflict::Lww) else { return };
    let first = story.plan(1, 300 * MS, None);
    story.send(first, Attempt::First, 0, ALL);
    let second = story.plan(2, 0, None);
    story.send(second, Attempt::Plain, 0, ALL);
    story.send(first, Attempt::Repeated, 1, ALL);
    world.finish();
}

#[test]
fn writing_before_the_stamp_is_caught() {
    let mutation = Mutation::Core(Rule::WrittenAtStamp);
    check(mutation, &["A7"], three, repeat_of_a_client_that_is_ahead);
}

/// As long as an owner that is cut off may hold another dot of a request, the others remember that it was replaced.
fn rejoin_after_the_age(world: &mut World) {
    let Some(mut story) = Story::begin(world, Conflict::Siblings) else { return };
    story.isolate(2);
    let first = story.plan(1, 0, None);
    story.send(first, Attempt::First, 0, QUORUM);
    let seen = story.read(0);
    let second = story.plan(2, 0, Some(seen));
    story.send(second, Attempt::First, 0, QUORUM);
    story.send(first, Attempt::Repeated, 2, ONE);
    let within = story.world.settings.repeat_within();
    story.world.wait(within + 1100 * MS);
    let seen = story.read(0);
    let third = story.plan(3, 0, Some(seen));
    story.send(third, Attempt::First, 0, QUORUM);
    story.rejoin(2);
    world.settle();
    world.finish();
}

#[test]
fn forgetting_by_age_alone_is_caught() {
    let mutation = Mutation::Core(Rule::ForgetWhenSettled);
    check(mutation, &["invariant 4"], three, rejoin_after_the_age);
}

/// The same where partitions settle, and twice as fast as requests may be repeated.
fn settling(settings: &mut Settings) {
    three(settings);
    settings.cluster.clock_skew_max = Duration::from_millis(100);
    settings.cluster.repeat_within = Duration::from_millis(500);
    settings.node.settle_every = Duration::from_millis(5);
}

/// What was old when a partition settled is forgotten when its record is written again, everywhere, and does not come back. Nothing
/// but what is to be forgotten makes the partition settle: nothing is deleted.
fn forget_after_the_age(world: &mut World) {
    let Some(mut story) = Story::begin(world, Conflict::Siblings) else { return };
    let kept = story.world.settings.requests_kept();
    let first = story.plan(1, 0, None);
    story.send(first, Attempt::First, 0, ALL);
    story.world.wait(kept);
    let second = story.plan(2, 0, None);
    story.send(second, Attempt::First, 1, ALL);
    story.world.wait(kept + 200 * MS);
    let third = story.plan(3, 0, None);
    story.send(third, Attempt::First, 2, ALL);
    let stored = story.world.storage_key(Space::Owned, story.key);
    for owner in story.owners.clone() {
        let record = story.world.machines[owner].disk.durable_record(&stored).unwrap_or_default();
        let names = |op: OpId| record.retired.contains(story.world.history.op(op).request);
        if names(first) || !names(second) || record.siblings.len() != 1 {
            story.world.fail(format!("{record:?} does not remember the second request alone"));
        }
    }
    world.finish();
}

#[test]
fn retired_requests_age_out_once_their_partition_has_settled() {
    for seed in 0..50 {
        assert_eq!(run_script(seed, false, settling, forget_after_the_age).failure, None, "seed {seed}");
    }
}

/// All clocks have gone back, and a node is asked again for what was deleted and collected by the clocks that there were.
fn repeat_what_was_collected(world: &mut World) {
    let Some(mut story) = Story::begin(world, Conflict::Siblings) else { return };
    let begun = story.world.time;
    let (first, second) = (story.plan(1, 0, None), story.plan_delete(2, 1));
    story.send(first, Attempt::First, 0, ALL);
    story.send(second, Attempt::First, 1, ALL);
    let stored = story.world.storage_key(Space::Owned, story.key);
    let owners = story.owners.clone();
    let is_gone =
        |world: &World| owners.iter().all(|&owner| world.machines[owner].disk.durable_record(&stored).is_none());
    if !story.world.wait_for(5000 * MS, is_gone) {
        return story.world.fail("the tombstone is not collected".into());
    }
    let back = i64::try_from(story.world.time - begun - 50 * MS).unwrap_or(i64::MAX);
    story.world.set_clocks(-back);
    let (layout, machine) = (story.world.layouts.len() - 1, owners[2]);
    story.world.ask(Asker::Past, Ask::Write(first, Attempt::Repeated), machine, layout);
    story.world.wait_for(1000 * MS, |world| world.pending.is_empty());
    story.world.set_clocks(0);
    world.finish();
}

#[test]
fn carrying_out_what_has_settled_is_caught() {
    let mutation = Mutation::Core(Rule::WriteAboveConfirmed);
    check(mutation, &["A7", "invariant", "strict", "P33"], settling, repeat_what_was_collected);
}

/// Puts without contexts, one after the other, by many clients through all nodes, whose clocks are as far apart as is allowed:
/// some clients name their puts, the others leave that to the nodes.
fn put_one_after_the_other(world: &mut World) {
    let skews: Vec<i64> =
        world.machines.iter().map(|_| i64::try_from(world.dice.below(500)).unwrap_or(0) - 250).collect();
    for (machine, skew) in world.machines.iter_mut().zip(skews) {
        machine.clock.skew = skew * 1000;
    }
    world.begin();
    let mut sessions: Vec<Stamps> = (0..6)
        .map(|client| {
            Stamps::new(200 + client, world.machines[usize::try_from(client % 4).unwrap_or(0)].clock.wall(0), 0)
        })
        .collect();
    for _ in 0..60 {
        let key = KeyId(world.dice.index(world.history.keys.len()));
        let (client, machine) = (world.dice.index(sessions.len()), world.dice.index(world.machines.len()));
        let unnamed = world.dice.chance(400);
        let value = Some(world.history.next_value(0));
        let request = sessions[client].next(world.time);
        let op = WriteOp { unnamed, ..WriteOp::new(key, ALL, request, value, world.time) };
        let op = world.history.add_op(op);
        let attempt = if unnamed { Attempt::Plain } else { Attempt::First };
        while !world.is_put(op, attempt, machine, &mut sessions[client]) && world.failure.is_none() {}
        let stored = world.storage_key(Space::Owned, key);
        let owner = world.first_owner(key);
        let record = world.machines[owner].disk.durable_record(&stored).unwrap_or_default();
        if record.operations() != 1 && world.failure.is_none() {
            world.fail(format!("{} values after puts one after the other: {record:?}", record.operations()));
        }
        world.wait_a_while(20);
    }
    world.finish();
}

impl World {
    /// A put is sent and answered. If it wants another stamp, its session draws one.
    fn is_put(&mut self, op: OpId, attempt: Attempt, machine: usize, session: &mut Stamps) -> bool {
        let layout = self.layouts.len() - 1;
        self.ask(Asker::Past, Ask::Write(op, attempt), machine, layout);
        self.wait_for(1000 * MS, |world| world.pending.is_empty());
        let Some(wanted) = self.wanted_stamp.take() else { return true };
        session.shown(wanted);
        let request = session.next(self.time);
        self.history.stamp_anew(op, request, self.time);
        false
    }
}

#[test]
fn blind_puts_one_after_the_other_leave_no_siblings() {
    let adjust = |settings: &mut Settings| {
        alone(settings, 4, 3);
        settings.node.deadline = Duration::from_millis(500);
        // All nodes answer: beside one that does not a put may stand beside another (P20).
        settings.node.stall_after = Duration::from_secs(1);
    };
    let mut stamped_anew = 0;
    for seed in 0..100 {
        let run = run_script(seed, false, adjust, put_one_after_the_other);
        assert_eq!(run.failure, None, "seed {seed}");
        stamped_anew += run.report.get(crate::report::Count::StampedAnew);
    }
    assert!(stamped_anew > 0, "no stamp was too low");
}
