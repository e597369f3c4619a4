//! The walk through a partition in which two replicas find the records that differ, page by page. Pure.

use std::collections::{BTreeMap, VecDeque};

use crate::cell::Cell;
use crate::message::{DigestEntry, Keyed, LeafSet, Position, Question};

/// How far something is known: up to a place (`None`: the start), or all of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Known {
    To(Option<Position>),
    All,
}

/// A walk through the leaves that differ.
#[derive(Debug)]
pub(super) struct Walk {
    leaves: LeafSet,
    /// Everything up to here is settled.
    after: Option<Position>,
    /// The peer's records behind `after`, as far as it has told.
    theirs: VecDeque<DigestEntry>,
    known: Known,
    page: Option<Page>,
}

/// What is to be done about one stretch of the partition.
#[derive(Debug, Default)]
struct Page {
    /// The end of the stretch; `None`: the end of the partition.
    upto: Option<Position>,
    /// The peer's records that this node lacks, with their bytes.
    want: VecDeque<(Position, u32)>,
    /// This node's records that the peer lacks.
    give: VecDeque<Keyed>,
    /// How many of the first of either are under way.
    asked: usize,
    /// What is given is read once more when all that is wanted has come: it may have been agreed on again meanwhile, in place of what came.
    is_stale: bool,
}

/// What a walk needs next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Ask(Question),
    /// This node's own records of a stretch: behind the primary, up to the second.
    Read {
        after: Option<Position>,
        upto: Known,
    },
    Done,
}

/// One of this node's own records.
#[derive(Debug)]
pub(super) struct Own {
    pub(super) position: Position,
    pub(super) digest: u64,
    /// What is to be sent if the peer lacks it; `None` if nothing is sent.
    pub(super) cell: Option<Cell>,
}

impl Page {
    /// What is given as it is now.
    fn refresh(&mut self, own: Vec<Own>) {
        self.is_stale = false;
        let mut now: BTreeMap<Position, Cell> =
            own.into_iter().filter_map(|mine| Some((mine.position, mine.cell?))).collect();
        for (keyspace, key, cell) in &mut self.give {
            if let Some(fresh) = now.remove(&(*keyspace, key.clone())) {
                *cell = fresh;
            }
        }
    }
}

impl Walk {
    pub(super) fn new(leaves: LeafSet) -> Self {
        Self { leaves, after: None, theirs: VecDeque::new(), known: Known::To(None), page: None }
    }

    pub(super) fn leaves(&self) -> LeafSet {
        self.leaves
    }

    /// What to do next. Questions take at most so many entries and about so many bytes.
    pub(super) fn next(&mut self, entries_max: usize, bytes_max: usize) -> Next {
        if let Some(page) = &mut self.page {
            if !page.want.is_empty() {
                let sizes = page.want.iter().map(|(_, bytes)| *bytes as usize);
                page.asked = first_of(sizes, entries_max, bytes_max);
                let keys = page.want.iter().take(page.asked).map(|(position, _)| position.clone()).collect();
                return Next::Ask(Question::Fetch { keys });
            }
            if page.is_stale {
                let upto = page.upto.clone().map_or(Known::All, |upto| Known::To(Some(upto)));
                return Next::Read { after: self.after.clone(), upto };
            }
            if !page.give.is_empty() {
                let sizes = page.give.iter().map(|(_, key, cell)| key.len() + cell.value_bytes());
                page.asked = first_of(sizes, entries_max, bytes_max);
                let records = page.give.iter().take(page.asked).cloned().collect();
                return Next::Ask(Question::Offer { records });
            }
            self.after.clone_from(&page.upto);
            self.page = None;
            if self.after.is_none() {
                return Next::Done;
            }
        }
        if self.known == Known::To(self.after.clone()) {
            return Next::Ask(Question::Digests { leaves: self.leaves, after: self.after.clone() });
        }
        Next::Read { after: self.after.clone(), upto: self.known.clone() }
    }

    /// The peer has told more. Whether that makes sense.
    pub(super) fn learn(&mut self, entries: Vec<DigestEntry>, next: Option<Position>) -> bool {
        let Known::To(from) = &self.known else { return false };
        let mut before = from.clone();
        for entry in &entries {
            let position = entry.position();
            if before.as_ref().is_some_and(|before| *before >= position) {
                return false;
            }
            before = Some(position);
        }
        if next.is_some() && (next < before || next == *from) {
            return false;
        }
        self.theirs.extend(entries);
        self.known = next.map_or(Known::All, |next| Known::To(Some(next)));
        true
    }

    /// This node's own records of the stretch that was to be read, up to `last` if there are more behind it. Those that the peer does
    /// not hold at all.
    pub(super) fn compare(&mut self, own: Vec<Own>, last: Option<Position>, pull: bool) -> Vec<Position> {
        if let Some(page) = &mut self.page {
            page.refresh(own);
            return Vec::new();
        }
        let upto = last.or_else(|| match &self.known {
            Known::To(known) => known.clone(),
            Known::All => None,
        });
        let mut page = Page { upto, ..Page::default() };
        let within = |position: &Position| page.upto.as_ref().is_none_or(|upto| position <= upto);
        let mut own = own.into_iter().peekable();
        let mut alone = Vec::new();
        let mut give = |mine: Own| {
            if let Some(cell) = mine.cell {
                page.give.push_back((mine.position.0, mine.position.1, cell));
            }
        };
        while let Some(their) = self.theirs.front()
            && within(&their.position())
        {
            let position = their.position();
            while let Some(mine) = own.next_if(|mine| mine.position < position) {
                alone.push(mine.position.clone());
                give(mine);
            }
            let mine = own.next_if(|mine| mine.position == position);
            if mine.as_ref().is_none_or(|mine| mine.digest != their.digest) {
                if pull {
                    let is_register = |mine: &Own| mine.cell.as_ref().is_some_and(|cell| cell.register().is_some());
                    page.is_stale |= mine.as_ref().is_some_and(is_register);
                    page.want.push_back((position, their.bytes));
                }
                mine.into_iter().for_each(&mut give);
            }
            self.theirs.pop_front();
        }
        own.for_each(|mine| {
            alone.push(mine.position.clone());
            give(mine);
        });
        self.page = Some(page);
        alone
    }

    /// What was asked for last has been done.
    pub(super) fn settled(&mut self) {
        if let Some(page) = &mut self.page {
            let asked = std::mem::take(&mut page.asked);
            if page.want.is_empty() {
                page.give.drain(..asked.min(page.give.len()));
            } else {
                page.want.drain(..asked.min(page.want.len()));
            }
        }
    }
}

/// How many of these fit, at least one.
fn first_of(sizes: impl Iterator<Item = usize>, entries_max: usize, bytes_max: usize) -> usize {
    let mut bytes = 0;
    let fitting = sizes.take(entries_max).take_while(|size| {
        let fits = bytes < bytes_max;
        bytes += size;
        fits
    });
    fitting.count().max(1)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::register::{Ballot, Register};
    use crate::storage::{LEAVES, Leaf};
    use crate::types::KeyspaceId;
    use crate::version::Record;

    fn position(at: u8) -> Position {
        (KeyspaceId(u32::from(at / 16)), Bytes::from(vec![at]))
    }

    fn all_leaves() -> LeafSet {
        LeafSet::differing(&[Leaf::default(); LEAVES], &[Leaf { count: 1, hash: 1 }; LEAVES])
    }

    /// Walks with replicas that hold these digests; returns what was fetched and what was offered.
    fn walk(
        mine: &BTreeMap<u8, u64>,
        theirs: &BTreeMap<u8, u64>,
        (their_page, my_page, chunk): (usize, usize, usize),
        (pull, push): (bool, bool),
    ) -> (Vec<Position>, Vec<Position>) {
        let mut walk = Walk::new(all_leaves());
        let (mut fetched, mut offered) = (Vec::new(), Vec::new());
        for _ in 0..10_000 {
            match walk.next(chunk, usize::MAX) {
                Next::Done => return (fetched, offered),
                Next::Ask(Question::Digests { after, .. }) => {
                    let behind = theirs.iter().filter(|(at, _)| after.as_ref().is_none_or(|a| position(**at) > *a));
                    let all: Vec<DigestEntry> = behind
                        .map(|(at, digest)| {
                            let (keyspace, key) = position(*at);
                            DigestEntry { keyspace, key, digest: *digest, bytes: 1 }
                        })
                        .collect();
                    let page: Vec<DigestEntry> = all.iter().take(their_page).cloned().collect();
                    let next = (all.len() > page.len()).then(|| page[page.len() - 1].position());
                    assert!(walk.learn(page, next));
                }
                Next::Ask(Question::Fetch { keys }) => {
                    assert!(keys.len() <= chunk);
                    fetched.extend(keys);
                    walk.settled();
                }
                Next::Ask(Question::Offer { records }) => {
                    assert!(records.len() <= chunk);
                    offered.extend(records.into_iter().map(|(keyspace, key, _)| (keyspace, key)));
                    walk.settled();
                }
                Next::Ask(other) => panic!("{other:?} is no question of a walk"),
                Next::Read { after, upto } => {
                    let within = |at: &u8| match &upto {
                        Known::To(upto) => Some(position(*at)) <= *upto,
                        Known::All => true,
                    };
                    let all: Vec<Own> = mine
                        .iter()
                        .filter(|(at, _)| Some(position(**at)) > after && within(at))
                        .map(|(at, digest)| {
                            let cell =
                                || if at % 2 == 0 { Register::default().into() } else { Record::default().into() };
                            let cell = push.then(cell);
                            Own { position: position(*at), digest: *digest, cell }
                        })
                        .collect();
                    let more = all.len() > my_page;
                    let page: Vec<Own> = all.into_iter().take(my_page).collect();
                    let last = more.then(|| page[page.len() - 1].position.clone());
                    walk.compare(page, last, pull);
                }
            }
        }
        panic!("the walk does not end");
    }

    proptest! {
        /// Whatever the sizes of pages: exactly what differs is fetched and offered, once, in order.
        #[test]
        fn exactly_what_differs_is_exchanged(
            mine in prop::collection::btree_map(any::<u8>(), 0u64..3, 0..40),
            theirs in prop::collection::btree_map(any::<u8>(), 0u64..3, 0..40),
            sizes in (1usize..6, 1usize..6, 1usize..6),
            ways in (any::<bool>(), any::<bool>()),
        ) {
            let (fetched, offered) = walk(&mine, &theirs, sizes, ways);
            let lacks = |have: &BTreeMap<u8, u64>, other: &BTreeMap<u8, u64>| -> Vec<Position> {
                other.iter().filter(|(at, digest)| have.get(at) != Some(digest)).map(|(at, _)| position(*at)).collect()
            };
            let want = if ways.0 { lacks(&mine, &theirs) } else { Vec::new() };
            let give = if ways.1 { lacks(&theirs, &mine) } else { Vec::new() };
            prop_assert_eq!(fetched, want);
            prop_assert_eq!(offered, give);
        }
    }

    #[test]
    fn answers_that_lead_nowhere_are_refused() {
        let entry = |at: u8| {
            let (keyspace, key) = position(at);
            DigestEntry { keyspace, key, digest: 1, bytes: 1 }
        };
        let learn = |entries: Vec<DigestEntry>, next| Walk::new(all_leaves()).learn(entries, next);
        assert!(learn(vec![entry(1), entry(2)], Some(position(2))));
        assert!(!learn(vec![entry(2), entry(1)], None), "out of order");
        assert!(!learn(vec![entry(2)], Some(position(1))), "back");
        let mut walk = Walk::new(all_leaves());
        assert!(walk.learn(Vec::new(), Some(position(5))));
        assert!(!walk.learn(Vec::new(), Some(position(5))), "no progress");
        assert!(!walk.learn(vec![entry(4)], None), "behind what was told");
        assert!(walk.learn(Vec::new(), None));
        assert!(!walk.learn(Vec::new(), None), "all was told");
    }

    #[test]
    fn a_register_is_given_as_it_is_when_what_the_other_one_holds_has_come() {
        let own = |counter: u64| {
            let promised = Ballot { counter, ..Ballot::default() };
            let cell: Cell = Register { promised, ..Register::default() }.into();
            Own { position: position(1), digest: counter, cell: Some(cell) }
        };
        let mut walk = Walk::new(all_leaves());
        let (keyspace, key) = position(1);
        assert!(walk.learn(vec![DigestEntry { keyspace, key, digest: 9, bytes: 1 }], None));
        walk.compare(vec![own(1)], None, true);
        assert!(matches!(walk.next(10, 1000), Next::Ask(Question::Fetch { .. })));
        walk.settled();
        assert_eq!(
            walk.next(10, 1000),
            Next::Read { after: None, upto: Known::All },
            "it may have been agreed on again"
        );
        walk.compare(vec![own(2)], None, true);
        let Next::Ask(Question::Offer { records }) = walk.next(10, 1000) else { panic!("nothing is given") };
        assert_eq!(records.into_iter().map(|record| Some(record.2)).collect::<Vec<_>>(), [own(2).cell]);
        walk.settled();
        assert_eq!(walk.next(10, 1000), Next::Done);
    }

    #[test]
    fn what_was_lost_is_asked_again() {
        let mut walk = Walk::new(all_leaves());
        let (keyspace, key) = position(1);
        assert!(walk.learn(vec![DigestEntry { keyspace, key, digest: 1, bytes: 1 }], None));
        walk.compare(Vec::new(), None, true);
        let first = walk.next(10, 10);
        assert_eq!(walk.next(10, 10), first);
        walk.settled();
        assert_eq!(walk.next(10, 10), Next::Done);
    }
}
