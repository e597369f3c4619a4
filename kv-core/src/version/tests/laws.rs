//! The laws of merging, on records that valid histories produce.

use bytes::Bytes;
use proptest::prelude::*;

use super::super::{Conflict, Context, ContextToken, Hlc, Record, Replaces, Retired, Version, Write};
use super::actor;
use super::history::{History, actions, any_conflict};
use crate::types::{RequestId, WallTime};

fn merged(a: &Record, b: &Record, conflict: Conflict) -> Record {
    let mut merged = a.clone();
    merged.merge(b, conflict);
    merged
}

fn dots(record: &Record) -> Vec<super::super::Dot> {
    record.siblings.iter().map(|sibling| sibling.dot).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn merge_is_commutative_associative_and_idempotent(
        conflict in any_conflict(),
        actions in actions(),
        picks in prop::collection::vec(any::<[prop::sample::Index; 3]>(), 12),
    ) {
        let history = History::play(conflict, &actions);
        let merged = |a: &Record, b: &Record| merged(a, b, conflict);
        for [a, b, c] in picks {
            let (a, b, c) = (a.get(&history.records), b.get(&history.records), c.get(&history.records));
            let ab = merged(a, b);
            history.agrees(&ab);
            prop_assert_eq!(&ab, &merged(b, a), "commutative");
            prop_assert_eq!(merged(&ab, c), merged(a, &merged(b, c)), "associative");
            prop_assert_eq!(&merged(a, a), a, "idempotent");
            prop_assert_eq!(&merged(&ab, b), &ab, "what is known changes nothing");
            // Sweeping is not seen by merges: it may come before or after.
            let mut swept = ab.clone();
            swept.sweep(history.wall);
            let mut other = a.clone();
            other.sweep(history.wall);
            prop_assert_eq!(&merged(&other, a), &other, "a swept value does not come back");
            let mut later = merged(&other, b);
            later.sweep(history.wall);
            prop_assert_eq!(&later, &swept);
            prop_assert_eq!(swept.digest(), ab.digest());
        }
    }

    #[test]
    fn digests_and_dominance_say_what_a_merge_does(
        conflict in any_conflict(),
        actions in actions(),
        picks in prop::collection::vec(any::<[prop::sample::Index; 2]>(), 12),
    ) {
        let history = History::play(conflict, &actions);
        for [a, b] in picks {
            let (a, b) = (a.get(&history.records), b.get(&history.records));
            let same = a.context == b.context && dots(a) == dots(b);
            prop_assert_eq!(a.digest() == b.digest(), same);
            let ab = merged(a, b, conflict);
            // Values may still go, if the other side has swept them: nothing that was seen changes.
            prop_assert_eq!(a.dominates(b), ab.context == a.context && dots(&ab) == dots(a));
            prop_assert_eq!(a.dominates(b) && b.dominates(a), same);
        }
    }

    /// Whatever the order in which everybody hears of everything, all end with the same.
    #[test]
    fn replicas_converge(conflict in any_conflict(), actions in actions()) {
        let history = History::play(conflict, &actions);
        let ends = history.converged();
        history.agrees(&ends[0]);
        for end in &ends {
            prop_assert_eq!(end, &ends[0]);
        }
    }
}

fn write(record: &mut Record, instance: u64, seen: &Context, conflict: Conflict, at: u64, value: &str) {
    let request = RequestId { client: instance, stamp: Hlc(at) };
    let value = (value != "-").then(|| Bytes::copy_from_slice(value.as_bytes()));
    let token = ContextToken { context: seen.clone(), ..ContextToken::default() };
    let write = Write { written: Hlc(at), request, expires: None, value };
    record.write(actor(instance), Replaces::Shown(&token), conflict, write);
}

fn values(record: &Record) -> Vec<&str> {
    let mut found: Vec<&str> =
        record.live(WallTime(0)).iter().map(|v| std::str::from_utf8(v.value.as_ref().unwrap()).unwrap()).collect();
    found.sort_unstable();
    found
}

#[test]
fn concurrent_puts_stand_side_by_side_until_a_put_has_seen_them() {
    let none = Context::new();
    let (mut a, mut b) = (Record::default(), Record::default());
    write(&mut a, 1, &none, Conflict::Siblings, 1, "cat");
    write(&mut b, 2, &none, Conflict::Siblings, 2, "dog");
    let both = merged(&a, &b, Conflict::Siblings);
    assert_eq!(values(&both), ["cat", "dog"]);
    // Who has read only the cat replaces only the cat.
    let mut bird = both.clone();
    write(&mut bird, 1, &a.context, Conflict::Siblings, 3, "bird");
    assert_eq!(values(&bird), ["bird", "dog"]);
    let mut cow = both.clone();
    write(&mut cow, 2, &both.context, Conflict::Siblings, 4, "cow");
    assert_eq!(values(&cow), ["cow"]);
    // The cow has not seen the bird; nothing brings the cat or the dog back.
    let all = [&a, &b, &both, &bird, &cow]
        .into_iter()
        .fold(Record::default(), |all, one| merged(&all, one, Conflict::Siblings));
    assert_eq!(values(&all), ["bird", "cow"]);
}

#[test]
fn a_delete_is_a_write_that_stays() {
    let (mut a, mut late) = (Record::default(), Record::default());
    write(&mut a, 1, &Context::new(), Conflict::Siblings, 1, "cat");
    late.merge(&a, Conflict::Siblings);
    let seen = a.context.clone();
    write(&mut a, 1, &seen, Conflict::Siblings, 2, "-");
    assert!(values(&a).is_empty() && !a.has_value());
    for end in [merged(&a, &late, Conflict::Siblings), merged(&late, &a, Conflict::Siblings)] {
        assert_eq!(end, a, "the late copy does not bring the value back");
    }
}

#[test]
fn the_latest_of_concurrent_puts_wins() {
    let none = Context::new();
    let (mut a, mut b) = (Record::default(), Record::default());
    write(&mut a, 1, &none, Conflict::Lww, 7, "cat");
    write(&mut b, 2, &none, Conflict::Lww, 5, "dog");
    assert_eq!(values(&merged(&a, &b, Conflict::Lww)), ["cat"]);
    assert_eq!(values(&merged(&b, &a, Conflict::Lww)), ["cat"]);
    // At the same moment the dot decides, on every replica alike.
    let mut c = Record::default();
    write(&mut c, 2, &none, Conflict::Lww, 7, "cow");
    assert_eq!(merged(&a, &c, Conflict::Lww), merged(&c, &a, Conflict::Lww));
}

/// Should a broken peer send another value under a known dot, merging still gives one result.
#[test]
fn two_values_of_one_dot_become_one() {
    let version = |value: Option<&str>, sequence: u64| {
        let mut record = Record::default();
        write(&mut record, 1, &Context::new(), Conflict::Siblings, 1, "x");
        record.siblings[0].value = value.map(|value| Bytes::copy_from_slice(value.as_bytes()));
        record.siblings[0].request.stamp = Hlc(sequence);
        record
    };
    let all = [version(Some("a"), 1), version(Some("b"), 1), version(Some("b"), 2), version(None, 1)];
    for a in &all {
        for b in &all {
            assert_eq!(merged(a, b, Conflict::Siblings), merged(b, a, Conflict::Siblings));
            for c in &all {
                let one = merged(&merged(a, b, Conflict::Siblings), c, Conflict::Siblings);
                assert_eq!(one, merged(a, &merged(b, c, Conflict::Siblings), Conflict::Siblings));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// One request that several coordinators carried out, each with a dot of its own, among writes of others: whoever
    /// merges whatever in whatever order ends with the same record, and readers see one value for it.
    #[test]
    fn a_request_with_several_dots_reads_as_one_value(
        conflict in any_conflict(),
        writes in prop::collection::vec((0u64..6, 0u64..3, 0usize..6), 1..12),
        order in prop::collection::vec((0usize..6, 0usize..6), 0..24),
    ) {
        let mut replicas = vec![Record::default(); 6];
        for (at, (request, seen, replica)) in (1..).zip(writes) {
            // A write of its own kind has seen what its replica holds; a repeated one has seen nothing.
            let context = if seen == 0 { replicas[replica].context.clone() } else { Context::new() };
            let token = ContextToken { context, ..ContextToken::default() };
            let request = RequestId { client: 1, stamp: Hlc(request) };
            let value = Some(Bytes::from(format!("value of {}", request.stamp.0)));
            let write = Write { written: Hlc(at), request, expires: None, value };
            let instance = replica as u64 + 1;
            replicas[replica].write(actor(instance), Replaces::Shown(&token), conflict, write);
        }
        let all = |records: &[Record]| {
            records.iter().fold(Record::default(), |all, record| merged(&all, record, conflict))
        };
        let expected = all(&replicas);
        for (to, from) in order {
            let from = replicas[from].clone();
            replicas[to].merge(&from, conflict);
        }
        replicas.reverse();
        let found = all(&replicas);
        prop_assert_eq!(&found, &expected);
        prop_assert_eq!(&merged(&found, &expected, conflict), &expected);
        let live = found.live(WallTime(0));
        prop_assert_eq!(live.len(), found.operations());
        let mut requests: Vec<_> = live.iter().map(|version| version.request).collect();
        requests.sort_unstable();
        requests.dedup();
        prop_assert_eq!(requests.len(), live.len(), "a request is shown once");
    }
}

#[test]
fn repeated_requests_read_as_one_value() {
    let mut record = Record::default();
    write(&mut record, 1, &Context::new(), Conflict::Siblings, 1, "cat");
    let mut again = Record::default();
    write(&mut again, 2, &Context::new(), Conflict::Siblings, 1, "cat");
    again.siblings[0].request = record.siblings[0].request;
    let both = merged(&record, &again, Conflict::Siblings);
    assert_eq!((both.siblings.len(), both.operations(), values(&both)), (2, 1, vec!["cat"]));
}

#[test]
fn malformed_records_are_not_valid() {
    let mut sound = Record::default();
    write(&mut sound, 1, &Context::new(), Conflict::Siblings, 1, "cat");
    write(&mut sound, 2, &Context::new(), Conflict::Siblings, 2, "dog");
    assert!(sound.is_valid() && sound.siblings.len() == 2);
    let broken = |change: &dyn Fn(&mut Record)| {
        let mut record = sound.clone();
        change(&mut record);
        record.is_valid()
    };
    assert!(!broken(&|record| record.siblings.reverse()), "out of order");
    assert!(!broken(&|record| record.siblings[1] = record.siblings[0].clone()), "twice");
    assert!(!broken(&|record| record.siblings[0].dot.counter = 0), "no dot");
    assert!(!broken(&|record| record.siblings[0].dot.counter = 2), "unseen");
    assert!(!broken(&|record| record.context = Context::new()), "unseen");
}

#[test]
fn expiry_counts_values_only() {
    let version = |instance: u64, expires: Option<u64>, value: Option<&'static str>| Version {
        dot: super::super::Dot { actor: actor(instance), counter: 1 },
        written: Hlc(instance),
        request: RequestId { client: 1, stamp: Hlc(instance) },
        expires: expires.map(WallTime),
        value: value.map(|value| Bytes::from_static(value.as_bytes())),
    };
    let context: Context = [3, 1, 2].map(|instance| (actor(instance), 1)).into_iter().collect();
    let mut siblings =
        vec![version(1, Some(10), Some("cat")), version(2, Some(5), None), version(3, None, Some("cow"))];
    siblings.sort_by_key(|sibling| sibling.dot);
    let mut record = Record { context, siblings, retired: Retired::default() };
    assert!(record.is_valid());
    assert_eq!((record.expires(), record.latest(), record.value_bytes()), (Some(WallTime(10)), Hlc(3), 6));
    assert_eq!(values(&record), ["cat", "cow"]);
    assert_eq!(record.live(WallTime(10)).len(), 1, "at its moment of expiry a value is gone");
    assert!(!record.sweep(WallTime(9)));
    assert!(record.sweep(WallTime(10)));
    assert_eq!((record.expires(), record.value_bytes(), record.has_value()), (None, 3, true));
    assert!(!record.sweep(WallTime(10)), "once");
}
