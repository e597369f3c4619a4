//! The hybrid logical clock (rule A8).

use std::time::Duration;

use proptest::prelude::*;

use super::super::{Clock, Hlc};
use crate::types::WallTime;

const LIMIT: Duration = Duration::from_millis(500);

#[derive(Clone, Debug)]
enum Step {
    /// The wall clock jumps, either way.
    Wall(i64),
    /// A write that replaces a timestamp this far from the wall clock.
    Tick(i64),
    /// A timestamp from elsewhere, this far from the wall clock.
    Observe(i64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let offset = || prop_oneof![-2_000_000i64..2_000_000, Just(500_000), Just(500_001), Just(0)];
    let step =
        prop_oneof![offset().prop_map(Step::Wall), offset().prop_map(Step::Tick), offset().prop_map(Step::Observe)];
    prop::collection::vec(step, 1..40)
}

proptest! {
    #[test]
    fn grows_and_exceeds_what_it_accepted(steps in steps()) {
        let mut clock = Clock::default();
        let mut wall = WallTime(10_000_000);
        // The latest timestamp that the clock must exceed from now on.
        let mut floor = Hlc::default();
        for step in steps {
            match step {
                Step::Wall(by) => wall = WallTime(wall.0.saturating_add_signed(by)),
                Step::Tick(ahead) => {
                    let seen = Hlc::at(WallTime(wall.0.saturating_add_signed(ahead)));
                    let given = clock.tick(wall, seen);
                    prop_assert!(given > seen && given > floor && given >= Hlc::at(wall));
                    // No later than it must be.
                    prop_assert_eq!(given, Hlc::at(wall).max(floor.next()).max(seen.next()));
                    floor = floor.next().max(Hlc::at(wall));
                }
                Step::Observe(ahead) => {
                    let remote = Hlc::at(WallTime(wall.0.saturating_add_signed(ahead)));
                    let accepted = clock.observe(wall, remote, LIMIT);
                    prop_assert_eq!(accepted.is_ok(), ahead <= 500_000);
                    match accepted {
                        Ok(()) => floor = floor.max(remote),
                        Err(skew) => prop_assert_eq!((skew.ahead_ms, skew.limit_ms), (ahead as u64 / 1000, 500)),
                    }
                }
            }
        }
    }
}

#[test]
fn a_far_future_timestamp_advances_nothing() {
    let (mut clock, wall) = (Clock::default(), WallTime(1_000_000));
    let future = Hlc(u64::MAX - 1);
    assert!(clock.observe(wall, future, LIMIT).is_err());
    // A record that was taken nevertheless is exceeded; other records do not feel it.
    assert_eq!(clock.tick(wall, future), Hlc(u64::MAX));
    assert_eq!(clock.tick(wall, Hlc::default()), Hlc::at(wall).next());
}

#[test]
fn a_timestamp_shows_its_parts() {
    let stamp = Hlc::at(WallTime(5)).next().next();
    assert_eq!((stamp.wall(), stamp.to_string()), (WallTime(5), "5+2".to_owned()));
    assert_eq!(Hlc::at(WallTime(u64::MAX)).wall(), WallTime(u64::MAX >> 12), "the highest wall time saturates");
    assert_eq!(Hlc(u64::MAX).next(), Hlc(u64::MAX));
}

#[test]
fn a_clock_goes_back_with_a_wall_clock_that_was_set_back() {
    let (mut clock, ahead, right) = (Clock::default(), WallTime(9_000_000), WallTime(1_000_000));
    let before = clock.tick(ahead, Hlc::default());
    clock.keep_near(WallTime(8_600_000), LIMIT);
    assert_eq!(clock.reading(right), before, "it may be so far ahead");
    clock.keep_near(right, LIMIT);
    assert_eq!((clock.reading(right), clock.set_back()), (Hlc::at(right), 1));
    // Never below what was promised.
    clock.raise(Hlc::at(WallTime(1_200_000)));
    clock.tick(ahead, Hlc::default());
    clock.keep_near(right, LIMIT);
    assert_eq!((clock.reading(right), clock.set_back()), (Hlc::at(WallTime(1_200_000)), 2));
    clock.raise(Hlc::at(ahead));
    clock.keep_near(right, LIMIT);
    assert_eq!((clock.reading(right), clock.set_back()), (Hlc::at(ahead), 2), "there is nowhere to go back to");
}

#[test]
fn no_two_requests_get_one_name() {
    let (wall, limit) = (WallTime(1_000_000), Duration::from_millis(500));
    let mut clock = Clock::default();
    // Two clients have seen the same, by a clock that is ahead of this one.
    let ahead = Hlc::at(WallTime(1_200_000));
    let (first, _) = clock.name(wall, ahead, limit);
    let (second, _) = clock.name(wall, ahead, limit);
    assert!(first > ahead && second > first);
    assert!(clock.name(wall, Hlc::default(), limit).0 > second);
    // What is too far ahead takes no other request along.
    let far = Hlc::at(WallTime(1_900_000));
    let (first, is_far) = clock.name(wall, far, limit);
    let (second, is_far_again) = clock.name(wall, far, limit);
    assert!(first > far && second > first && is_far && is_far_again);
    assert!(clock.name(wall, Hlc::default(), limit).0 < ahead.plus(limit));
    // Its time comes, and it is given again: to a request of another kind.
    let mut later = clock;
    assert_eq!(later.name(WallTime(1_500_000), far, limit), (first, false));
    // The clock is set back by a little: stamps stay credible, and whoever draws them has another name.
    let before = clock.set_back();
    let early = WallTime(600_000);
    assert!(clock.name(early, Hlc::default(), limit).0 < Hlc::at(early.plus(limit)));
    assert_eq!(clock.set_back(), before + 1);
}
