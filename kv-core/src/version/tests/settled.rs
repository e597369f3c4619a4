//! What merging does between copies that have settled up to a watermark (rule A6).

use bytes::Bytes;
use proptest::prelude::*;

use super::super::{Conflict, ContextToken, Dot, Hlc, Record, Replaces, Retired, Write};
use super::actor;
use super::history::{History, actions, any_conflict};
use crate::types::RequestId;

fn dots(record: &Record) -> Vec<Dot> {
    record.siblings.iter().map(|sibling| sibling.dot).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Without watermarks it is the merge.
    #[test]
    fn without_watermarks_it_is_the_merge(
        conflict in any_conflict(),
        actions in actions(),
        picks in prop::collection::vec(any::<[prop::sample::Index; 2]>(), 12),
    ) {
        let history = History::play(conflict, &actions);
        for [a, b] in picks {
            let (a, b) = (a.get(&history.records), b.get(&history.records));
            let (mut one, mut other) = (a.clone(), a.clone());
            one.merge(b, conflict);
            other.merge_settled(Hlc::default(), b, Hlc::default(), conflict);
            prop_assert_eq!(one, other);
        }
    }

    /// When everybody has heard of everything, the tombstones go; and whatever anybody held before brings nothing back, whether it comes to
    /// a copy that has collected, or is what such a copy is filled into.
    #[test]
    fn nothing_that_was_held_before_comes_back(
        conflict in any_conflict(),
        actions in actions(),
        picks in prop::collection::vec(any::<prop::sample::Index>(), 12),
    ) {
        let history = History::play(conflict, &actions);
        let mut settled = history.converged().swap_remove(0);
        settled.sweep(history.wall);
        let until = settled.latest().max(history.records.iter().map(Record::latest).max().unwrap_or_default());
        settled.collect(until);
        prop_assert_eq!(settled.tombstone(), None);
        // A record of which nothing is left is deleted with its context.
        let kept = if settled.siblings.is_empty() { Record::default() } else { settled };
        for old in picks {
            let old = old.get(&history.records);
            let mut here = kept.clone();
            here.merge_settled(until, old, Hlc::default(), conflict);
            prop_assert_eq!(dots(&here), dots(&kept), "to the copy: {:?}", old);
            let mut filled = old.clone();
            filled.merge_settled(Hlc::default(), &kept, until, conflict);
            prop_assert_eq!(dots(&filled), dots(&kept), "into the old copy: {:?}", old);
        }
    }
}

fn write(record: &mut Record, instance: u64, at: u64, value: &str) {
    let request = RequestId { client: instance, stamp: Hlc(at) };
    let value = (value != "-").then(|| Bytes::copy_from_slice(value.as_bytes()));
    let write = Write { written: Hlc(at), request, expires: None, value };
    record.write(actor(instance), Replaces::Held, Conflict::Siblings, write);
}

#[test]
fn a_key_that_is_written_again_does_not_get_its_old_value_back() {
    let mut old = Record::default();
    write(&mut old, 1, 10, "old");
    let mut deleted = old.clone();
    write(&mut deleted, 1, 20, "-");
    assert_eq!(deleted.tombstone(), Some(Hlc(20)));
    assert!(deleted.collect(Hlc(20)) && deleted.siblings.is_empty());
    let mut again = Record::default();
    write(&mut again, 2, 30, "new");
    let mut here = again.clone();
    here.merge_settled(Hlc(20), &old, Hlc::default(), Conflict::Siblings);
    assert_eq!(here, again, "what is late brings nothing");
    let mut filled = old.clone();
    filled.merge_settled(Hlc::default(), &again, Hlc(20), Conflict::Siblings);
    assert_eq!(dots(&filled), dots(&again), "an old copy is filled");
    // What is younger than the watermark is concurrent, as ever.
    let mut young = Record::default();
    write(&mut young, 3, 25, "young");
    assert!(again.lacks_settled(&young, Hlc(25)) && !again.lacks_settled(&young, Hlc(24)));
    again.merge_settled(Hlc(20), &young, Hlc::default(), Conflict::Siblings);
    assert_eq!(again.siblings.len(), 2);
}

#[test]
fn a_tombstone_beside_a_value_goes_alone() {
    let mut record = Record::default();
    let nothing = ContextToken::default();
    let put = |at: u64, value: Option<&'static str>| Write {
        written: Hlc(at),
        request: RequestId { client: 1, stamp: Hlc(at) },
        expires: None,
        value: value.map(|value| Bytes::from_static(value.as_bytes())),
    };
    record.write(actor(1), Replaces::Shown(&nothing), Conflict::Siblings, put(10, None));
    record.write(actor(2), Replaces::Shown(&nothing), Conflict::Siblings, put(5, Some("kept")));
    let before = record.clone();
    assert!(!record.collect(Hlc(9)));
    assert!(record.collect(Hlc(10)));
    assert_eq!((record.siblings.len(), record.has_value(), &record.context), (1, true, &before.context));
    // Whoever has not collected yet learns that the tombstone is gone, and brings it to nobody.
    let mut other = before.clone();
    other.merge(&record, Conflict::Siblings);
    // It remembers who wrote the tombstone for a while (rule A7).
    other.retired = Retired::default();
    assert_eq!(other, record);
    record.merge_settled(Hlc(10), &before, Hlc::default(), Conflict::Siblings);
    assert_eq!(other, record);
}
