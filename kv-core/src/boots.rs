//! The boots of a store: what tells a store from an older copy of itself (rule D2).
//!
//! A boot is a run that came as far as serving. It has a number, a nonce that was drawn for it, and the last commit that is
//! durable of it. A copy of a store has the boots up to the moment of the copy, and what follows has other nonces: however
//! often it is started, its list lacks what the store has shown to others since.

use serde::{Deserialize, Serialize};

use crate::types::{Incarnation, Point};

/// The most boots that a store remembers. Older ones are dropped and count as missing: who has seen the store last in one of them
/// takes it for an older copy, never an older copy for the store.
pub const BOOTS_MAX: usize = 1024;

/// A run of a store that came as far as serving.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// Counts the boots of the store from 1.
    pub number: u32,
    /// Random, drawn for this boot.
    pub nonce: u32,
    /// The last commit of it that is durable; 0 while it runs.
    pub last: u64,
}

/// The boots of a store, the present one last.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boots(Vec<Boot>);

impl Boots {
    /// A list as it was received or read; `None` if it cannot be one.
    #[must_use]
    pub fn new(boots: Vec<Boot>) -> Option<Self> {
        Some(Self(boots)).filter(Self::is_valid)
    }

    /// Whether the list can be one: not too long, with numbers that grow.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.0.len() <= BOOTS_MAX && self.0.is_sorted_by(|one, next| one.number < next.number)
    }

    /// The boots, oldest first.
    #[must_use]
    pub fn all(&self) -> &[Boot] {
        &self.0
    }

    /// The number of the last boot; 0 before the first.
    #[must_use]
    pub fn newest(&self) -> u32 {
        self.0.last().map_or(0, |boot| boot.number)
    }

    /// A boot begins. `last`: how far the one before had come.
    pub fn begin(&mut self, number: u32, nonce: u32, last: u64) {
        self.end(last);
        self.0.push(Boot { number, nonce, last: 0 });
        let surplus = self.0.len().saturating_sub(BOOTS_MAX);
        self.0.drain(..surplus);
    }

    /// How far the last boot has come.
    pub fn end(&mut self, last: u64) {
        if let Some(boot) = self.0.last_mut() {
            boot.last = last;
        }
    }

    /// The last boot did not come as far as serving.
    pub fn forget_last(&mut self) {
        self.0.pop();
    }

    /// Whether a store that runs as `shown` and has these boots has been where `seen` says: it is that run, or has come as
    /// far in it as was seen. True of another store, of which the list says nothing.
    #[must_use]
    pub fn has(&self, shown: Incarnation, seen: Point) -> bool {
        let Point { incarnation, commit } = seen;
        let is_it = |boot: &Boot| boot.number == incarnation.boot && boot.nonce == incarnation.nonce;
        incarnation.store != shown.store
            || incarnation == shown
            || self.0.iter().any(|boot| is_it(boot) && boot.last >= commit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::StoreId;

    fn run(boot: u32, nonce: u32) -> Incarnation {
        Incarnation { store: StoreId(7), boot, nonce }
    }

    #[test]
    fn a_copy_lacks_what_the_store_has_shown_since() {
        let mut boots = Boots::default();
        boots.begin(1, 11, 0);
        boots.begin(2, 22, 40);
        // A copy of the running store, and what it is when it is started.
        let mut copy = boots.clone();
        copy.begin(3, 99, 70);
        boots.begin(3, 33, 90);
        let seen = |boot, nonce, commit| Point { incarnation: run(boot, nonce), commit };
        for (point, by_store, by_copy) in [
            (seen(1, 11, 40), true, true),
            (seen(1, 11, 41), false, false),
            (seen(1, 12, 1), false, false),
            (seen(2, 22, 70), true, true),
            (seen(2, 22, 71), true, false),
            (seen(2, 22, 91), false, false),
            (seen(3, 33, 0), true, false),
            (seen(3, 33, 500), true, false),
            (seen(4, 44, 0), false, false),
        ] {
            assert_eq!(boots.has(run(3, 33), point), by_store, "{point}");
            assert_eq!(copy.has(run(3, 99), point), by_copy, "{point}");
        }
        // However often the copy is started.
        copy.begin(4, 98, 10);
        assert!(!copy.has(run(4, 98), seen(3, 33, 0)));
        let other = Point { incarnation: Incarnation { store: StoreId(8), ..run(9, 9) }, commit: 9 };
        assert!(boots.has(run(3, 33), other), "another store");
    }

    #[test]
    fn old_boots_are_dropped_and_count_as_missing() {
        let mut boots = Boots::default();
        let many = u32::try_from(BOOTS_MAX).unwrap() + 5;
        (1..=many).for_each(|number| boots.begin(number, number, 3));
        assert_eq!((boots.all().len(), boots.newest()), (BOOTS_MAX, many));
        assert!(boots.is_valid());
        let seen = |boot| Point { incarnation: run(boot, boot), commit: 3 };
        assert!(!boots.has(run(many, many), seen(5)) && boots.has(run(many, many), seen(6)));
        assert_eq!(Boots::new(vec![Boot { number: 2, nonce: 0, last: 0 }; 2]), None);
    }
}
