//! Who is asked for a request, and how many must answer.

use crate::config::AvailableKeyspace;
use crate::message::{Consistency, Level, Role};
use crate::ring::{Entry, Owner};
use crate::types::NodeId;

/// What a request needs: enough of each set of owners. While a partition migrates there are two sets, the old owners
/// and the new ones, and a node in both counts in both (rule A3). Fallbacks count in every set, where they count at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Needs {
    consistency: Consistency,
    /// The keyspace's R or W.
    keyspace_level: u8,
    /// Only the old owners count.
    old_only: bool,
}

impl Needs {
    /// What a read of `keyspace` needs. A read of one copy that may be stale anyway needs one old owner.
    pub(crate) fn of_read(consistency: Consistency, keyspace: AvailableKeyspace) -> Self {
        let r = keyspace.settings().r;
        let of_one = match consistency.level {
            Level::One => true,
            Level::Keyspace => r <= 1,
            Level::Quorum | Level::All => false,
        };
        Self { consistency, keyspace_level: r, old_only: of_one && !consistency.strict }
    }

    /// What a write to `keyspace` needs.
    pub(crate) fn of_write(consistency: Consistency, keyspace: AvailableKeyspace) -> Self {
        Self { consistency, keyspace_level: keyspace.settings().w, old_only: false }
    }

    /// A majority of the owners of each set (rule C3).
    pub(crate) fn majority() -> Self {
        Self { consistency: Consistency { level: Level::Quorum, strict: true }, keyspace_level: 0, old_only: false }
    }

    /// All old owners.
    pub(crate) fn every_old_owner() -> Self {
        Self { consistency: Consistency { level: Level::All, strict: true }, keyspace_level: 0, old_only: true }
    }

    /// The same, but only the old owners count.
    pub(crate) fn of_old_owners(self) -> Self {
        Self { old_only: true, ..self }
    }

    /// How many of `owners` are needed.
    fn of(&self, owners: usize) -> usize {
        let wanted = match self.consistency.level {
            Level::Keyspace => usize::from(self.keyspace_level),
            Level::One => 1,
            Level::Quorum => owners / 2 + 1,
            Level::All => owners,
        };
        wanted.clamp(1, owners.max(1))
    }

    fn sets<'a>(&self, entry: &'a Entry) -> impl Iterator<Item = &'a [Owner]> + Clone {
        let count = if self.old_only { 1 } else { usize::MAX };
        entry.sets().take(count)
    }

    /// Whether these owners, and as many fallbacks, are enough.
    pub(crate) fn are_met(&self, entry: &Entry, has: impl Fn(&Owner) -> bool, fallbacks: usize) -> bool {
        self.sets(entry).all(|set| set.iter().filter(|owner| has(owner)).count() + fallbacks >= self.of(set.len()))
    }

    /// Whether what has answered is enough: a fallback counts only as far as owners that can be reached are too few, in the
    /// place of one that cannot (rule A9).
    pub(crate) fn are_met_in_place(
        &self,
        entry: &Entry,
        has: impl Fn(&Owner) -> bool,
        can: impl Fn(&Owner) -> bool,
        fallbacks: usize,
    ) -> bool {
        self.sets(entry).all(|set| {
            let needed = self.of(set.len());
            let reached = set.iter().filter(|owner| has(owner) || can(owner)).count();
            let in_place = fallbacks.min(needed.saturating_sub(reached));
            set.iter().filter(|owner| has(owner)).count() + in_place >= needed
        })
    }

    /// The first of these that are enough together, and no more than needed; those that are left over.
    pub(crate) fn choose(&self, entry: &Entry, candidates: Vec<Asked>) -> (Vec<Asked>, Vec<Asked>) {
        let (mut chosen, mut rest): (Vec<Asked>, Vec<Asked>) = (Vec::new(), Vec::new());
        for asked in candidates {
            let in_set = |set: &[Owner], asked: &Asked| {
                asked.1 == Role::Fallback || set.iter().any(|owner| owner.node == asked.0)
            };
            let lacks = |set: &[Owner]| chosen.iter().filter(|one| in_set(set, one)).count() < self.of(set.len());
            if self.sets(entry).any(|set| lacks(set) && in_set(set, &asked)) {
                chosen.push(asked);
            } else {
                rest.push(asked);
            }
        }
        (chosen, rest)
    }

    /// The same of owners.
    pub(crate) fn choose_owners(&self, entry: &Entry, candidates: Vec<NodeId>) -> (Vec<NodeId>, Vec<NodeId>) {
        let candidates = candidates.into_iter().map(|node| (node, Role::Owner)).collect();
        let (chosen, rest) = self.choose(entry, candidates);
        let nodes = |asked: Vec<Asked>| asked.into_iter().map(|(node, _)| node).collect();
        (nodes(chosen), nodes(rest))
    }

    /// For people: how many there are of how many that are needed.
    pub(crate) fn progress(&self, entry: &Entry, has: impl Fn(&Owner) -> bool, fallbacks: usize) -> String {
        let part = |set: &[Owner]| {
            let found = set.iter().filter(|owner| has(owner)).count() + fallbacks;
            format!("{found} of {}", self.of(set.len()))
        };
        let mut parts = self.sets(entry).map(part);
        let old = parts.next().unwrap_or_default();
        parts.next().map_or(old.clone(), |new| format!("{old} (and {new} among the owners to which it migrates)"))
    }
}

/// Whether only owners count.
pub(crate) fn owners_only(consistency: Consistency) -> bool {
    consistency.strict || consistency.level == Level::All
}

/// A node in the role in which it is asked.
pub(crate) type Asked = (NodeId, Role);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Keyspace;
    use crate::ring::{Joint, Receiver};
    use crate::types::Epoch;

    fn owners(nodes: &[u64]) -> Vec<Owner> {
        nodes.iter().map(|&node| Owner { node: NodeId(node), since: Epoch(1) }).collect()
    }

    /// Old owners and, if there are any, new ones.
    fn entry(old: &[u64], new: &[u64]) -> Entry {
        let mut entry = Entry::settled(Epoch(5), owners(old));
        if !new.is_empty() {
            let receivers = vec![Receiver { node: NodeId(new[0]), source: NodeId(old[0]) }];
            entry.joint = Some(Joint { epoch: Epoch(5), owners: owners(new), receivers, sources_min: 2 });
        }
        entry
    }

    fn needs(level: Level, strict: bool) -> Needs {
        let keyspace = Keyspace::initial().available().expect("the first keyspace is available");
        Needs::of_read(Consistency { level, strict }, keyspace)
    }

    #[track_caller]
    fn check(needs: Needs, entry: &Entry, has: &[u64], fallbacks: usize, met: bool) {
        let has = |owner: &Owner| has.contains(&owner.node.0);
        assert_eq!(needs.are_met(entry, has, fallbacks), met, "{}", needs.progress(entry, has, fallbacks));
    }

    #[test]
    fn both_sets_need_their_quorum() {
        let migrating = entry(&[1, 2, 3], &[3, 4, 5]);
        let quorum = needs(Level::Quorum, true);
        check(quorum, &migrating, &[1, 2], 0, false);
        check(quorum, &migrating, &[4, 5], 0, false);
        check(quorum, &migrating, &[1, 3], 0, false);
        check(quorum, &migrating, &[1, 3, 4], 0, true);
        check(quorum, &migrating, &[1, 4], 1, true);
        check(needs(Level::All, false), &migrating, &[1, 2, 3, 4], 0, false);
        check(needs(Level::All, false), &migrating, &[1, 2, 3, 4, 5], 0, true);
        check(quorum, &entry(&[1, 2, 3], &[]), &[1, 2], 0, true);
    }

    #[test]
    fn a_fallback_counts_only_where_owners_that_can_be_reached_are_too_few() {
        let quorum = needs(Level::Quorum, false);
        let met = |entry: &Entry, has: &[u64], can: &[u64], fallbacks: usize| {
            let (has, can) = (|owner: &Owner| has.contains(&owner.node.0), |owner: &Owner| can.contains(&owner.node.0));
            quorum.are_met_in_place(entry, has, can, fallbacks)
        };
        let settled = entry(&[1, 2, 3], &[]);
        assert!(!met(&settled, &[1], &[1, 2], 1), "the second owner can be reached");
        assert!(met(&settled, &[1, 2], &[1, 2], 0));
        assert!(met(&settled, &[1], &[1], 1), "no other owner can");
        assert!(met(&settled, &[], &[], 2));
        assert!(!met(&settled, &[], &[3], 2), "one owner can");
        assert!(met(&settled, &[1, 2], &[], 0), "who has answered counts, reached or not");
        let migrating = entry(&[1, 2, 3], &[3, 4, 5]);
        assert!(!met(&migrating, &[1, 2, 4], &[1, 2, 4, 5], 1));
        assert!(met(&migrating, &[1, 2, 4], &[1, 2, 4], 1), "too few of the new owners can be reached");
    }

    #[test]
    fn one_copy_is_one_old_owner_unless_the_read_is_strict() {
        let migrating = entry(&[1, 2, 3], &[4, 5, 6]);
        check(needs(Level::One, false), &migrating, &[1], 0, true);
        check(needs(Level::One, false), &migrating, &[4], 0, false);
        check(needs(Level::One, true), &migrating, &[1], 0, false);
        check(needs(Level::One, true), &migrating, &[1, 4], 0, true);
    }

    #[test]
    fn sets_of_other_sizes_have_other_needs() {
        let shrinking = entry(&[1, 2, 3, 4, 5], &[1, 2, 3]);
        check(needs(Level::Quorum, true), &shrinking, &[1, 2], 0, false);
        check(needs(Level::Quorum, true), &shrinking, &[1, 4, 5], 0, false);
        check(needs(Level::Quorum, true), &shrinking, &[1, 2, 5], 0, true);
        // The keyspace's R of 2 is capped by the only owner.
        check(needs(Level::Keyspace, true), &entry(&[1], &[1, 2]), &[1, 2], 0, true);
        check(needs(Level::Keyspace, true), &entry(&[1], &[1, 2]), &[1], 0, false);
    }

    #[test]
    fn no_more_are_chosen_than_needed() {
        let owner = |node| (NodeId(node), Role::Owner);
        let choose = |entry: &Entry, candidates: &[u64]| {
            let (chosen, rest) =
                needs(Level::Quorum, true).choose(entry, candidates.iter().map(|&n| owner(n)).collect());
            let ids = |asked: Vec<Asked>| asked.into_iter().map(|asked| asked.0.0).collect::<Vec<_>>();
            (ids(chosen), ids(rest))
        };
        assert_eq!(choose(&entry(&[1, 2, 3], &[]), &[2, 1, 3]), (vec![2, 1], vec![3]));
        assert_eq!(choose(&entry(&[1, 2, 3], &[1, 2, 4]), &[1, 2, 3, 4]), (vec![1, 2], vec![3, 4]));
        assert_eq!(choose(&entry(&[1, 2, 3], &[3, 4, 5]), &[1, 2, 3, 4, 5]), (vec![1, 2, 3, 4], vec![5]));
    }
}
