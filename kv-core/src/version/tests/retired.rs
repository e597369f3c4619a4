//! The set of retired requests: a bounded set, and what it does to merges.

use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use super::super::{
    Conflict, Context, ContextToken, Dot, Hlc, RETIRED_MAX, Record, Replaces, Retired, Settled, Version, Write,
};
use super::{actor, any_context, any_ids};
use crate::types::{RequestId, WallTime};

fn id(stamp: u64) -> RequestId {
    RequestId { stamp: Hlc(stamp), client: 1 }
}

fn joined(one: &Retired, other: &Retired) -> Retired {
    let mut joined = one.clone();
    joined.join(other);
    joined
}

/// Any record that is well formed, whether writes can have made it or not. A dot stands for one version.
fn any_record() -> impl Strategy<Value = Record> {
    (any_context(), prop::collection::vec(any::<bool>(), 30), any_ids()).prop_map(|(context, live, retired)| {
        let dots = context.iter().flat_map(|(actor, last)| (1..=last).map(move |counter| Dot { actor, counter }));
        let version = |dot: Dot| Version {
            dot,
            written: Hlc(20),
            // Several dots of one request are among them.
            request: RequestId { stamp: Hlc((dot.actor.instance * 7 + dot.counter) % 20), client: dot.counter % 3 },
            expires: None,
            value: Some(Bytes::new()),
        };
        let siblings: Vec<Version> = dots.zip(live).filter(|it| it.1).map(|it| version(it.0)).collect();
        let mut record = Record { siblings, ..Record::default() };
        record.siblings.retain(|sibling| !retired.contains(sibling.request));
        Record { context, retired, ..record }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    /// With the ids, merging keeps its laws for all records, in whatever way they came about.
    #[test]
    fn merging_any_records_is_commutative_associative_and_idempotent(
        a in any_record(), b in any_record(), c in any_record()
    ) {
        let merged = |one: &Record, other: &Record| {
            let mut merged = one.clone();
            assert_eq!(merged.merge(other, Conflict::Siblings), 0);
            assert!(merged.is_valid(), "{merged:?}");
            merged
        };
        prop_assert_eq!(merged(&a, &a), a.clone());
        prop_assert_eq!(merged(&a, &b), merged(&b, &a));
        prop_assert_eq!(merged(&merged(&a, &b), &c), merged(&a, &merged(&b, &c)));
        prop_assert_eq!(merged(&merged(&a, &b), &b), merged(&a, &b));
    }

    #[test]
    fn joining_is_commutative_associative_idempotent_and_bounded(
        a in many_ids(), b in many_ids(), c in many_ids()
    ) {
        prop_assert_eq!(joined(&a, &a), a.clone());
        prop_assert_eq!(joined(&a, &b), joined(&b, &a));
        prop_assert_eq!(joined(&joined(&a, &b), &c), joined(&a, &joined(&b, &c)));
        let all = joined(&a, &b);
        let mut expected: Vec<RequestId> = a.iter().chain(b.iter()).collect();
        expected.sort_unstable();
        expected.dedup();
        let forgotten = expected.len().saturating_sub(RETIRED_MAX);
        prop_assert_eq!(all.iter().collect::<Vec<_>>(), expected[forgotten..].to_vec(), "the newest are kept");
        prop_assert_eq!(a.clone().join(&b), forgotten);
    }

    #[test]
    fn what_is_written_is_read_back(ids in prop_oneof![many_ids(), any_ids_at_all()]) {
        let bytes = postcard::to_allocvec(&ids).expect("a vector has room");
        prop_assert_eq!(postcard::from_bytes::<Retired>(&bytes), Ok(ids.clone()));
        prop_assert!(bytes.len() <= 4 + 20 * ids.len());
    }

    #[test]
    fn other_bytes_are_no_retired_requests(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(ids) = postcard::from_bytes::<Retired>(&bytes) {
            let again = postcard::to_allocvec(&ids).expect("a vector has room");
            prop_assert_eq!(postcard::from_bytes::<Retired>(&again), Ok(ids));
        }
    }
}

fn any_ids_at_all() -> impl Strategy<Value = Retired> {
    let id = (any::<u64>(), any::<u64>()).prop_map(|(stamp, client)| RequestId { stamp: Hlc(stamp), client });
    prop::collection::vec(id, 0..20).prop_map(|ids| ids.into_iter().collect())
}

fn many_ids() -> impl Strategy<Value = Retired> {
    (0u64..400, 0usize..RETIRED_MAX + 1, 1u64..3)
        .prop_map(|(first, count, step)| (0..count as u64).map(|at| id(first + at * step)).collect())
}

#[test]
fn a_record_without_retired_requests_pays_one_byte() {
    assert_eq!(postcard::to_allocvec(&Retired::default()).expect("a vector has room"), [0]);
}

#[test]
fn unordered_or_too_many_ids_are_refused() {
    // One client, then so many microseconds after the one before, a logical counter, and the place of the client.
    let encoded = |ids: &[[u8; 3]]| {
        let bytes = [&[1][..], &7u64.to_le_bytes(), &ids.concat()].concat();
        postcard::to_allocvec(&Bytes::from(bytes)).expect("a vector has room")
    };
    let read = |ids: &[[u8; 3]]| postcard::from_bytes::<Retired>(&encoded(ids)).map(|ids| ids.len()).ok();
    assert_eq!((read(&[[1, 0, 0], [1, 0, 0]]), read(&[[1, 0, 0], [0, 1, 0]])), (Some(2), Some(2)));
    assert_eq!(read(&[[1, 1, 0], [0, 1, 0]]), None, "twice");
    assert_eq!(read(&[[1, 1, 0], [0, 0, 0]]), None, "out of order");
    assert_eq!(read(&[[1, 0, 1]]), None, "a client that is not there");
    let most = [[1, 0, 0]; RETIRED_MAX + 1];
    assert_eq!((read(&most[1..]), read(&most)), (Some(RETIRED_MAX), None));
    let cut = encoded(&[[1, 0, 0]]);
    assert!(postcard::from_bytes::<Retired>(&[&[11], &cut[1..12]].concat()).is_err(), "half an id");
}

/// A key that one session writes often.
#[test]
fn an_id_takes_a_few_bytes() {
    let ids: Retired = (0..256)
        .map(|at| RequestId { stamp: Hlc::at(WallTime(1_790_000_000_000_000 + at * 1500)), client: u64::MAX })
        .collect();
    let bytes = postcard::to_allocvec(&ids).expect("a vector has room");
    assert!(bytes.len() < 256 * 5, "{}", bytes.len());
    assert_eq!(postcard::from_bytes::<Retired>(&bytes), Ok(ids));
}

fn write(record: &mut Record, instance: u64, replaces: Replaces<'_>, stamp: u64) -> usize {
    let write = Write { written: Hlc(stamp), request: id(stamp), expires: None, value: Some(Bytes::new()) };
    record.write(actor(instance), replaces, Conflict::Siblings, write).1
}

#[test]
fn beyond_the_bound_the_oldest_requests_are_forgotten_and_counted() {
    let mut record = Record::default();
    let forgotten: usize = (1..=300).map(|stamp| write(&mut record, 1, Replaces::Earlier, stamp)).sum();
    assert_eq!((record.retired.len(), forgotten, record.siblings.len()), (RETIRED_MAX, 299 - RETIRED_MAX, 1));
    assert!(!record.knows(id(43)) && record.knows(id(44)) && record.knows(id(300)));
    // What turns up of a forgotten one stands beside what replaced it: nothing is lost.
    let mut late = Record::default();
    write(&mut late, 2, Replaces::Earlier, 43);
    record.merge(&late, Conflict::Siblings);
    assert_eq!(record.siblings.iter().map(|it| it.request).collect::<Vec<_>>(), [id(300), id(43)]);
}

/// A repeated R replaces Q at one node, a repeated Q replaces R at the other: with an order one of them stays.
#[test]
fn two_writes_never_replace_each_other() {
    let (mut one, mut other) = (Record::default(), Record::default());
    write(&mut one, 1, Replaces::Earlier, 1);
    write(&mut one, 1, Replaces::Earlier, 2);
    write(&mut other, 2, Replaces::Earlier, 2);
    write(&mut other, 2, Replaces::Earlier, 1);
    assert_eq!((one.siblings.len(), other.siblings.len()), (1, 2));
    one.merge(&other, Conflict::Siblings);
    let held: Vec<RequestId> = one.siblings.iter().map(|it| it.request).collect();
    assert_eq!((held, one.retired.iter().collect::<Vec<_>>()), (vec![id(2), id(2)], vec![id(1)]));
}

#[test]
fn what_was_replaced_under_one_dot_goes_under_every_other() {
    let (mut here, mut there) = (Record::default(), Record::default());
    write(&mut here, 1, Replaces::Earlier, 1);
    write(&mut there, 2, Replaces::Earlier, 1);
    let read = ContextToken::of(&here);
    write(&mut here, 1, Replaces::Shown(&read), 2);
    let before = there.clone();
    there.merge(&here, Conflict::Siblings);
    assert_eq!(there.siblings.iter().map(|it| it.request).collect::<Vec<_>>(), [id(2)]);
    assert!(there.context.covers(before.siblings[0].dot), "its dot stays seen");
    // A put with what was read replaces it where another dot of it stands, too.
    let mut elsewhere = before;
    write(&mut elsewhere, 3, Replaces::Shown(&read), 3);
    assert_eq!(elsewhere.siblings.iter().map(|it| it.request).collect::<Vec<_>>(), [id(3)]);
}

#[test]
fn a_repetition_spares_what_may_be_younger() {
    let second = Hlc::at(WallTime(1_000_000)).0;
    let by = |request: RequestId, sibling: RequestId| {
        let dot = Dot { actor: actor(1), counter: 1 };
        let sibling = Version { dot, written: sibling.stamp, request: sibling, expires: None, value: None };
        [Replaces::Earlier, Replaces::LongEarlier(Duration::from_secs(1))].map(|it| it.replaces(request, &sibling))
    };
    let of = |client, stamp| RequestId { stamp: Hlc(stamp), client };
    assert_eq!(by(of(1, 5 * second), of(2, 3 * second)), [true, true]);
    assert_eq!(by(of(1, 5 * second), of(2, 4 * second)), [true, false], "within what clocks may be apart");
    assert_eq!(by(of(1, 5 * second), of(1, 4 * second)), [true, true], "its own session");
    assert_eq!(by(of(1, 5 * second), of(2, 6 * second)), [false, false]);
    assert_eq!(by(of(1, 5 * second), of(2, 5 * second)), [false, false], "the client decides between equal stamps");
    assert_eq!(by(of(2, 5 * second), of(1, 5 * second)), [true, false]);
}

#[test]
fn only_what_was_old_when_the_partition_settled_ages_out() {
    let at = |seconds: u64| Hlc::at(WallTime(seconds * 1_000_000)).0;
    let mut record = Record::default();
    for stamp in [at(10), at(20), at(30), at(40)] {
        write(&mut record, 1, Replaces::Earlier, stamp);
    }
    let before = record.clone();
    let settled = |seconds: u64| Settled(WallTime(seconds * 1_000_000));
    assert_eq!(record.age_out(settled(20), Duration::from_secs(10)), 0, "exactly as old as the limit");
    assert_eq!(record, before);
    assert_eq!(record.age_out(settled(31), Duration::from_secs(10)), 2);
    assert_eq!(record.retired.iter().collect::<Vec<_>>(), [id(at(30))]);
    assert_eq!((record.digest(), record.dominates(&before)), (before.digest(), true), "nobody else notices");
    assert_eq!(record.age_out(settled(5), Duration::from_secs(10)), 0, "a limit before the beginning of time");
}

#[test]
fn a_sibling_that_is_retired_is_not_valid() {
    let mut record = Record { context: Context::new(), ..Record::default() };
    write(&mut record, 1, Replaces::Earlier, 1);
    assert!(record.is_valid());
    record.retired = [id(1)].into_iter().collect();
    assert!(!record.is_valid());
}
