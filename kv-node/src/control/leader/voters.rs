//! Which members vote in the control plane: a pure function of the members, their zones and the present voters.

use std::collections::{BTreeMap, BTreeSet};

use kv_core::types::NodeId;

/// A member that could vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// The member.
    pub node: NodeId,
    /// Its failure domain.
    pub zone: &'a str,
    /// Whether it votes now.
    pub votes: bool,
}

/// Chooses the voters among `candidates`: 1 of up to two, 3 of up to four, 5 of more, spread over the zones as evenly
/// as possible.
///
/// If five would give one zone a majority and three would not, three are chosen: the control plane survives the loss
/// of a zone rather than of a second node. Among equally spread choices those that vote now stay, then the lowest
/// numbers win, so the choice is stable.
#[must_use]
pub fn choose(candidates: &[Candidate<'_>]) -> BTreeSet<NodeId> {
    let largest = match candidates.len() {
        0 => return BTreeSet::new(),
        1 | 2 => 1,
        3 | 4 => 3,
        _ => 5,
    };
    let spread_out = [5, 3].into_iter().filter(|&count| count <= largest).map(|count| spread(candidates, count));
    spread_out
        .into_iter()
        .find(|choice| choice.most_in_a_zone * 2 < choice.voters.len())
        .unwrap_or_else(|| spread(candidates, largest))
        .voters
}

struct Choice {
    voters: BTreeSet<NodeId>,
    most_in_a_zone: usize,
}

/// Takes `count` candidates, each from a zone that has given the fewest so far.
fn spread(candidates: &[Candidate<'_>], count: usize) -> Choice {
    let mut zones: BTreeMap<&str, Vec<Candidate<'_>>> = BTreeMap::new();
    for candidate in candidates {
        zones.entry(candidate.zone).or_default().push(*candidate);
    }
    for zone in zones.values_mut() {
        // From the back: those that vote now come first, then the lowest numbers.
        zone.sort_by_key(|candidate| (candidate.votes, std::cmp::Reverse(candidate.node)));
    }
    let mut given: BTreeMap<&str, usize> = BTreeMap::new();
    let mut voters = BTreeSet::new();
    while voters.len() < count {
        let next = zones
            .iter()
            .filter_map(|(&zone, left)| left.last().map(|candidate| (zone, *candidate)))
            .min_by_key(|(zone, candidate)| (given.get(zone).copied().unwrap_or(0), !candidate.votes, candidate.node));
        let Some((zone, candidate)) = next else { break };
        zones.entry(zone).or_default().pop();
        *given.entry(zone).or_default() += 1;
        voters.insert(candidate.node);
    }
    Choice { voters, most_in_a_zone: given.into_values().max().unwrap_or(0) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Members as `number zone`, voters marked by a star; the chosen numbers.
    #[track_caller]
    fn check(members: &str, expected: &[u64]) {
        let candidates: Vec<Candidate<'_>> = members
            .split(", ")
            .filter(|text| !text.is_empty())
            .map(|text| {
                let (number, zone) = text.split_once(' ').unwrap();
                let node = NodeId(number.trim_end_matches('*').parse().unwrap());
                Candidate { node, zone, votes: number.ends_with('*') }
            })
            .collect();
        let chosen: Vec<u64> = choose(&candidates).into_iter().map(|node| node.0).collect();
        assert_eq!(chosen, expected, "{members}");
    }

    #[test]
    fn the_number_follows_the_size() {
        check("", &[]);
        check("1 a", &[1]);
        check("1 a, 2 a", &[1]);
        check("1 a, 2 a, 3 a", &[1, 2, 3]);
        check("1 a, 2 a, 3 a, 4 a", &[1, 2, 3]);
        check("1 a, 2 a, 3 a, 4 a, 5 a", &[1, 2, 3, 4, 5]);
        check("1 a, 2 a, 3 a, 4 a, 5 a, 6 a, 7 a", &[1, 2, 3, 4, 5]);
    }

    #[test]
    fn present_voters_stay() {
        check("1 a, 2* a", &[2]);
        check("1 a, 2* a, 3* a, 4* a", &[2, 3, 4]);
        check("1 a, 2* b, 3* c, 4* d", &[2, 3, 4]);
        check("1* a, 2 a, 3* a, 4 a, 5* a, 6 a", &[1, 2, 3, 4, 5]);
    }

    #[test]
    fn zones_are_spread() {
        check("1 a, 2 a, 3 a, 4 b, 5 c", &[1, 4, 5]);
        check("1 a, 2 a, 3 b, 4 b, 5 c, 6 c", &[1, 2, 3, 4, 5]);
        check("1* a, 2* a, 3* a, 4 b, 5 b, 6 c, 7 d, 8 e", &[1, 4, 6, 7, 8]);
        check("1 a, 2 a, 3 b", &[1, 2, 3]);
    }

    #[test]
    fn three_voters_that_survive_a_zone_beat_five_that_do_not() {
        check("1 a, 2 a, 3 a, 4 a, 5 b, 6 c", &[1, 5, 6]);
        // With two zones one of them always has the majority.
        check("1 a, 2 a, 3 a, 4 b, 5 b", &[1, 2, 3, 4, 5]);
    }

    proptest! {
        #[test]
        fn the_choice_is_odd_stable_and_spread(
            zones in prop::collection::vec((0_u8..5, any::<bool>()), 1..20),
        ) {
            let names = ["a", "b", "c", "d", "e"];
            let candidates: Vec<Candidate<'_>> = (1_u64..)
                .zip(&zones)
                .map(|(number, &(zone, votes))| Candidate {
                    node: NodeId(number),
                    zone: names[usize::from(zone)],
                    votes,
                })
                .collect();
            let chosen = choose(&candidates);
            prop_assert!([1, 3, 5].contains(&chosen.len()));
            prop_assert!(chosen.len() <= candidates.len());

            let settled: Vec<Candidate<'_>> = candidates
                .iter()
                .map(|candidate| Candidate { votes: chosen.contains(&candidate.node), ..*candidate })
                .collect();
            prop_assert_eq!(choose(&settled), chosen.clone(), "choosing again must change nothing");

            for zone in names {
                let of = |name: &str| {
                    let all = candidates.iter().filter(|candidate| candidate.zone == name);
                    let taken = all.clone().filter(|candidate| chosen.contains(&candidate.node)).count();
                    (taken, all.count() - taken)
                };
                let (taken, _) = of(zone);
                for other in names {
                    let (others, left) = of(other);
                    prop_assert!(left == 0 || taken <= others + 1, "zone {} could have given more", other);
                }
            }
        }
    }
}
