//! The judge of the soak (`benches/soak/check.rs`) on histories that are good and on some that are not.

#[path = "../../benches/soak/check.rs"]
mod check;

use std::collections::BTreeSet;

use bytes::Bytes;
use kv_core::types::{RequestId, StoreId};
use kv_core::version::{Actor, Conflict, ContextToken, Hlc, Record, Replaces, Retired, Write};

use check::{Judged, KEYSPACE, Key};

const KEY: &[u8] = b"key";

/// A replica as the store has it, and a client beside it.
#[derive(Clone, Default)]
struct World {
    record: Record,
    key: Key,
    numbers: u64,
}

impl World {
    fn write(&mut self, is_delete: bool) -> Bytes {
        self.numbers += 1;
        let number = self.numbers;
        self.key.asks(number, is_delete);
        self.carry_out(number, self.key.context(), is_delete)
    }

    /// Carries a write out as a coordinator does.
    fn carry_out(&mut self, number: u64, context: Option<Bytes>, is_delete: bool) -> Bytes {
        let actor = Actor { store: StoreId(1), boot: 1, nonce: 1, instance: 1 };
        let token = context.map(|context| ContextToken::decode(&context, KEYSPACE, KEY).unwrap());
        let value = (!is_delete).then(|| Bytes::from(number.to_string()));
        let request = RequestId { stamp: Hlc(number), client: 1 };
        let write = Write { written: request.stamp, request, expires: None, value };
        let replaces = token.as_ref().map_or(Replaces::Earlier, Replaces::Shown);
        self.record.write(actor, replaces, Conflict::Siblings, write);
        ContextToken::after_write(&self.record, token.unwrap_or_default(), request, request.stamp).encode(KEYSPACE, KEY)
    }

    fn put(&mut self) -> u64 {
        let context = self.write(false);
        self.key.wrote(self.numbers, context, KEY);
        self.numbers
    }

    fn delete(&mut self) {
        let context = self.write(true);
        self.key.wrote(self.numbers, context, KEY);
    }

    fn found(&self) -> (BTreeSet<u64>, Bytes) {
        let values = self.record.siblings.iter().filter_map(|version| version.value.as_ref());
        let numbers = values.map(|value| std::str::from_utf8(value).unwrap().parse().unwrap());
        (numbers.collect(), ContextToken::of(&self.record).encode(KEYSPACE, KEY))
    }

    fn get(&mut self) -> Judged {
        let (found, context) = self.found();
        self.key.read(&found, context, KEY, true)
    }
}

const GOOD: Judged = Judged { stale: false, lost: false, came_back: 0 };

#[test]
fn a_history_of_a_store_that_keeps_its_promises_is_good() {
    let mut world = World::default();
    assert_eq!(world.get(), GOOD, "nothing was written");
    for _ in 0..3 {
        world.put();
        world.put();
        assert_eq!(world.get(), GOOD);
        world.delete();
        assert_eq!(world.get(), GOOD);
    }
}

#[test]
fn a_sibling_stays_beside_ones_own_writes_until_a_read_has_shown_it() {
    let mut world = World::default();
    world.put();
    // A write of somebody else stands beside it: contexts of the writes name these alone.
    let before = world.key.context();
    world.put();
    world.carry_out(99, before, false);
    let third = world.put();
    let fourth = world.put();
    let (found, _) = world.found();
    assert_eq!(found, BTreeSet::from([99, fourth]), "{third} was replaced by its own client");
    assert_eq!(world.get(), GOOD);
    let fifth = world.put();
    assert_eq!((world.get(), world.found().0), (GOOD, BTreeSet::from([fifth])));
    // One that is not there any more although nothing has replaced it is lost.
    let mut poorer = world.clone();
    poorer.record.siblings.clear();
    assert!(poorer.get().lost);
}

/// Another replica may not have it yet, and the answer of the write does not say what it has seen.
#[test]
fn a_write_beside_a_sibling_is_missed_by_reads_that_promise_nothing() {
    let mut world = World::default();
    world.put();
    let before = world.key.context();
    world.put();
    world.carry_out(99, before, false);
    let older = world.record.clone();
    world.put();
    world.record = older;
    let (found, context) = world.found();
    assert!(!world.key.judge(&found, &context, KEY, false).lost);
    assert!(world.key.judge(&found, &context, KEY, true).lost, "a read that sees all acknowledged writes must show it");
}

#[test]
fn an_older_record_is_stale_and_nothing_else() {
    let mut world = World::default();
    world.put();
    let older = world.record.clone();
    for is_delete in [false, true] {
        let mut world = world.clone();
        let context = world.write(is_delete);
        world.key.wrote(world.numbers, context, KEY);
        assert_eq!(world.get(), GOOD);
        world.record = older.clone();
        assert_eq!(world.get(), Judged { stale: true, ..GOOD });
    }
}

#[test]
fn a_lost_value_and_one_that_comes_back_are_told_apart() {
    let mut world = World::default();
    let first = world.put();
    world.put();
    let mut lost = world.clone();
    lost.record.siblings.clear();
    assert_eq!(lost.get(), Judged { lost: true, ..GOOD });
    // The first put is carried out once more by a node that has forgotten that it was replaced.
    world.record.retired = Retired::default();
    world.carry_out(first, None, false);
    assert_eq!(world.get(), Judged { came_back: 1, ..GOOD });
    world.delete();
    assert_eq!(world.get(), GOOD);
}

#[test]
fn a_write_of_unknown_outcome_explains_both() {
    let mut world = World::default();
    world.put();
    for carried_out in [false, true] {
        for is_delete in [false, true] {
            let mut world = world.clone();
            if carried_out {
                world.write(is_delete);
            } else {
                world.numbers += 1;
                world.key.asks(world.numbers, is_delete);
            }
            world.key.may_have_written(world.numbers);
            assert_eq!(world.get(), GOOD, "carried out: {carried_out}, a delete: {is_delete}");
            world.put();
            assert_eq!(world.get(), GOOD);
        }
    }
    let mut refused = world.clone();
    refused.key.asks(2, true);
    refused.key.did_nothing(2);
    refused.record.siblings.clear();
    assert!(refused.get().lost, "a write that did nothing explains nothing");
}
