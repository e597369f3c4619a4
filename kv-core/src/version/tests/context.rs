//! Contexts are version vectors, and damaged ones are refused.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::{Actor, Context, Dot};
use super::{actor, any_context};

/// The same as a map, for which everything is obvious.
fn model(context: &Context) -> BTreeMap<Actor, u64> {
    context.iter().collect()
}

proptest! {
    #[test]
    fn joins_to_the_highest_counters(a in any_context(), b in any_context()) {
        let mut joined = a.clone();
        joined.join(&b);
        let mut expected = model(&a);
        for (actor, counter) in model(&b) {
            let mine = expected.entry(actor).or_default();
            *mine = counter.max(*mine);
        }
        prop_assert_eq!(model(&joined), expected);
        prop_assert!(joined.iter().zip(joined.iter().skip(1)).all(|(one, next)| one.0 < next.0));
        prop_assert!(joined.dominates(&a) && joined.dominates(&b));
        prop_assert_eq!(a.dominates(&b), joined == a);
    }

    #[test]
    fn sees_dots_with_all_earlier_ones(context in any_context(), instance in 0u64..8, counter in 0u64..7) {
        let dot = Dot { actor: actor(instance), counter };
        let known = model(&context).get(&dot.actor).copied().unwrap_or(0);
        prop_assert_eq!(context.counter(dot.actor), known);
        prop_assert_eq!(context.covers(dot), counter <= known);
        let mut after = context.clone();
        after.see(dot);
        prop_assert_eq!(after.counter(dot.actor), known.max(counter));
        prop_assert!(after.dominates(&context));
        prop_assert_eq!(after.len(), context.len() + usize::from(known == 0 && counter > 0));
    }

    /// Only what a context encodes is read back: the look-ups rely on its order.
    #[test]
    fn reads_back_only_ordered_entries(entries in prop::collection::vec((0u64..4, 0u64..3), 0..5)) {
        let entries: Vec<(Actor, u64)> = entries.into_iter().map(|(instance, n)| (actor(instance), n)).collect();
        let bytes = postcard::to_allocvec(&entries).unwrap();
        let ordered = entries.windows(2).all(|pair| pair[0].0 < pair[1].0) && entries.iter().all(|entry| entry.1 > 0);
        let read = postcard::from_bytes::<Context>(&bytes);
        prop_assert_eq!(read.is_ok(), ordered);
        if let Ok(context) = read {
            prop_assert_eq!(postcard::to_allocvec(&context).unwrap(), bytes);
            prop_assert_eq!(context.iter().collect::<Vec<_>>(), entries);
        }
    }
}

#[test]
fn refuses_counters_that_nobody_reaches() {
    let read =
        |counter: u64| postcard::from_bytes::<Context>(&postcard::to_allocvec(&[(actor(1), counter)][..]).unwrap());
    assert!(read(1 << 62).is_ok());
    assert!(read((1 << 62) + 1).is_err());
    assert!(read(u64::MAX).is_err());
}
