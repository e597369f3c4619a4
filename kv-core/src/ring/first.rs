//! The first layout of a cluster: exact in its balance, mixed in who shares partitions with whom.
//!
//! 1. Whole quotas: each node's fair share rounded down or up, the largest remainders up, within what its zone can
//!    hold. Zones form a laminar family, for which taking the largest remainders first is optimal.
//! 2. McNaughton's wrap-around ("Scheduling with Deadlines and Loss Functions", 1959): the copies of one node after
//!    the other, grouped by zone, are dealt to the partitions round and round. A run of at most Q copies meets no partition
//!    twice, one of at most `zone_limit` times Q no partition more often than that.
//! 3. Swaps of owners between partitions, which keep every quota and zone rule: first at random, to mix, then those
//!    that spread each node's partners more evenly, so that the load of a dead node falls on all others.
//! 4. Primaries by maximum flow. Giving every owner an equal part of each of its partitions is a fractional
//!    solution whose node totals lie between the rounded-down and rounded-up quotas, so a whole one exists.
//! 5. Second places, which take over when the first is down, go to the owner that is second to the same first least
//!    often. The order of the others is random.

use std::collections::BTreeMap;

use super::check::{Rules, check_members, check_size};
use super::flow::Network;
use super::{Entry, Layout, LayoutError, Member, Owner};
use crate::types::{ClusterId, Epoch, HashSeed, NodeId};

/// Random swaps tried per copy: enough to forget the order in which copies were dealt.
const SWAPS_PER_COPY: usize = 8;

/// A bound on the work of the swaps, in owners looked at; it limits them only with a great many copies.
const SWAP_WORK_MAX: usize = 1 << 26;

/// What the first layout is made for.
#[derive(Clone, Debug, PartialEq)]
pub struct FirstLayout {
    /// The cluster's identity.
    pub cluster: ClusterId,
    /// The seed of the ring hash; it also decides the mixing.
    pub seed: HashSeed,
    /// The number of the layout.
    pub epoch: Epoch,
    /// N, the number of copies wanted, at least 1.
    pub copies: u8,
    /// Q, the number of partitions: a power of two up to `PARTITIONS_MAX`.
    pub partitions: u32,
    /// The members; spares get no partitions.
    pub members: BTreeMap<NodeId, Member>,
}

/// The first layout: a pure function of its input, for which `check` holds. Each node holds its fair share of copies
/// and of primaries, rounded down or up.
///
/// # Errors
/// If the partitions, the copies or the members break a rule of [`super::check`].
pub fn first_layout(input: FirstLayout) -> Result<Layout, LayoutError> {
    let FirstLayout { cluster, seed, epoch, copies, partitions, members } = input;
    check_size(partitions as usize, copies)?;
    check_members(&members)?;
    let rules = Rules::new(&members, partitions, copies);
    let nodes = Nodes::new(&members, &rules, partitions);
    let mut random = Random(seed.0);
    let mut deal = Deal::wrap_around(&nodes, partitions as usize, rules.owners);
    deal.mix(&nodes, rules.zone_limit, &mut random);
    deal.shuffle_places(&mut random);
    deal.assign_first_places(&nodes);
    deal.choose_second_places(nodes.ids.len());
    let owner = |&at: &u32| Owner { node: nodes.ids[at as usize], since: epoch };
    let entry = |places: &[u32]| Entry::settled(epoch, places.iter().map(owner).collect());
    let partitions = deal.places.chunks_exact(rules.owners).map(entry).collect();
    Ok(Layout { cluster, seed, epoch, copies, members, partitions, settled: true })
}

/// The members that may own, grouped by zone, addressed by their position.
pub(crate) struct Nodes {
    /// Their numbers.
    pub(crate) ids: Vec<NodeId>,
    /// The number of each node's zone, from 0 and ascending.
    pub(crate) zones: Vec<u32>,
    /// How many copies each node gets: its fair share rounded down or up.
    pub(crate) quotas: Vec<u32>,
}

impl Nodes {
    /// The nodes of members and a size that have been checked.
    pub(crate) fn new(members: &BTreeMap<NodeId, Member>, rules: &Rules, partitions: u32) -> Self {
        let mut grouped: Vec<(&str, NodeId)> =
            rules.shares.keys().filter_map(|&id| Some((members.get(&id)?.zone.as_str(), id))).collect();
        grouped.sort_unstable();
        let mut zones: Vec<u32> = Vec::with_capacity(grouped.len());
        for (at, (zone, _)) in grouped.iter().enumerate() {
            let last = zones.last().copied().unwrap_or(0);
            zones.push(if at > 0 && grouped[at - 1].0 != *zone { last + 1 } else { last });
        }
        let ids: Vec<NodeId> = grouped.into_iter().map(|(_, id)| id).collect();
        let shares: Vec<f64> = ids.iter().map(|id| rules.shares[id]).collect();
        let quotas = round(&shares, &zones, partitions, rules);
        Self { ids, zones, quotas }
    }
}

/// Rounds shares down or up so that they add up exactly and no zone gets more than it can hold.
fn round(shares: &[f64], zones: &[u32], partitions: u32, rules: &Rules) -> Vec<u32> {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "shares lie from 0 to PARTITIONS_MAX")]
    // A share that is whole but for the rounding of doubles counts as whole.
    let mut quotas: Vec<u32> = shares.iter().map(|share| (share + 1e-9).floor() as u32).collect();
    let wanted = partitions as usize * rules.owners;
    let mut missing = wanted.saturating_sub(quotas.iter().map(|&quota| quota as usize).sum());
    let zone_count = zones.last().map_or(0, |&zone| zone as usize + 1);
    let mut room = vec![partitions as usize * rules.zone_limit; zone_count];
    for (&zone, &quota) in zones.iter().zip(&quotas) {
        room[zone as usize] = room[zone as usize].saturating_sub(quota as usize);
    }
    let mut order: Vec<usize> = (0..shares.len()).collect();
    let remainder = |at: usize| shares[at] - f64::from(quotas[at]);
    let remainders: Vec<f64> = order.iter().map(|&at| remainder(at)).collect();
    order.sort_by(|&a, &b| remainders[b].total_cmp(&remainders[a]).then(a.cmp(&b)));
    for at in order {
        let room = &mut room[zones[at] as usize];
        if missing > 0 && *room > 0 && quotas[at] < partitions {
            quotas[at] += 1;
            *room -= 1;
            missing -= 1;
        }
    }
    debug_assert_eq!(missing, 0, "fair shares respect the caps, so their remainders fit");
    quotas
}

/// Who holds which partition.
pub(crate) struct Deal {
    /// The owners of one partition after the other, as positions in `Nodes`.
    pub(crate) places: Vec<u32>,
    /// Owners of each partition.
    owners: usize,
}

impl Deal {
    /// Deals every quota so that the zone rule holds, and no partition gets a node twice.
    pub(crate) fn wrap_around(nodes: &Nodes, partitions: usize, owners: usize) -> Self {
        let mut places = vec![0; partitions * owners];
        let copies = (0u32..).zip(&nodes.quotas).flat_map(|(node, &quota)| std::iter::repeat_n(node, quota as usize));
        for (turn, node) in copies.enumerate().take(places.len()) {
            places[turn % partitions * owners + turn / partitions] = node;
        }
        Self { places, owners }
    }

    fn partition(&self, at: usize) -> &[u32] {
        &self.places[at * self.owners..(at + 1) * self.owners]
    }

    /// Swaps owners between partitions, at random and then for the better.
    fn mix(&mut self, nodes: &Nodes, zone_limit: usize, random: &mut Random) {
        let tries = (SWAPS_PER_COPY * self.places.len()).min(SWAP_WORK_MAX / self.owners);
        for _ in 0..tries {
            let (a, b) = (random.below(self.places.len()), random.below(self.places.len()));
            if self.may_swap(a, b, nodes, zone_limit) {
                self.places.swap(a, b);
            }
        }
        let mut partners = Partners::of(self, nodes);
        for _ in 0..tries {
            let (a, b) = (random.below(self.places.len()), random.below(self.places.len()));
            if self.may_swap(a, b, nodes, zone_limit) && partners.gain(self, a, b) > 0.0 {
                partners.swap(self, a, b);
                self.places.swap(a, b);
            }
        }
    }

    /// Whether the owners at two places may change places: each is new to the other's partition, and fits its zones.
    fn may_swap(&self, a: usize, b: usize, nodes: &Nodes, zone_limit: usize) -> bool {
        let (node_a, node_b) = (self.places[a], self.places[b]);
        let (part_a, part_b) = (self.partition(a / self.owners), self.partition(b / self.owners));
        if node_a == node_b || part_a.contains(&node_b) || part_b.contains(&node_a) {
            return false;
        }
        let zone = |node: u32| nodes.zones[node as usize];
        let has_room =
            |part: &[u32], zone_in: u32| part.iter().filter(|&&node| zone(node) == zone_in).count() < zone_limit;
        zone(node_a) == zone(node_b) || (has_room(part_a, zone(node_b)) && has_room(part_b, zone(node_a)))
    }

    /// Brings the owners of each partition into a random order.
    fn shuffle_places(&mut self, random: &mut Random) {
        for places in self.places.chunks_exact_mut(self.owners) {
            for last in (1..places.len()).rev() {
                places.swap(last, random.below(last + 1));
            }
        }
    }

    /// Chooses which owner of each partition comes first.
    fn assign_first_places(&mut self, nodes: &Nodes) {
        let partitions = self.places.len() / self.owners;
        // Vertices: the nodes, the partitions, the source, the sink.
        let ids = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let first_partition = ids(nodes.ids.len());
        let (source, sink) = (first_partition + ids(partitions), first_partition + ids(partitions) + 1);
        let mut network = Network::new(sink as usize + 1, self.places.len() + partitions + nodes.ids.len());
        let owners = ids(self.owners);
        let mut quotas = Vec::with_capacity(nodes.ids.len());
        for (node, &copies) in (0u32..).zip(&nodes.quotas) {
            quotas.push((network.edge(node, sink, copies / owners), u32::from(copies % owners > 0)));
        }
        let mut choices = Vec::with_capacity(self.places.len());
        for (partition, places) in (first_partition..).zip(self.places.chunks_exact(self.owners)) {
            network.edge(source, partition, 1);
            choices.extend(places.iter().map(|&node| network.edge(partition, node, 1)));
        }
        let mut assigned = network.run(source, sink);
        for (edge, by) in quotas {
            network.raise(edge, by);
        }
        assigned += network.run(source, sink);
        debug_assert_eq!(assigned, ids(partitions), "equal parts are a fractional solution, so a whole one exists");
        for (places, choices) in self.places.chunks_exact_mut(self.owners).zip(choices.chunks_exact(self.owners)) {
            if let Some(first) = choices.iter().position(|&choice| network.flow(choice) > 0) {
                places.swap(0, first);
            }
        }
    }

    /// Spreads who comes second over the partitions of each first. The second round knows all that the first one chose.
    fn choose_second_places(&mut self, nodes: usize) {
        let mut chosen: BTreeMap<usize, u32> = BTreeMap::new();
        let pair = |places: &[u32], second: usize| places[0] as usize * nodes + places[second] as usize;
        if self.owners < 3 {
            return;
        }
        for round in 0..2 {
            for places in self.places.chunks_exact_mut(self.owners) {
                if round > 0
                    && let Some(count) = chosen.get_mut(&pair(places, 1))
                {
                    *count -= 1;
                }
                let often = |&second: &usize| chosen.get(&pair(places, second)).copied().unwrap_or(0);
                let second = (1..places.len()).min_by_key(often).unwrap_or(1);
                *chosen.entry(pair(places, second)).or_default() += 1;
                places.swap(1, second);
            }
        }
    }
}

/// How often each two nodes share a partition. The load of a dead node is spread best when each node shares with each
/// other one in proportion to what both hold, which is where the sum of `shared^2 / (copies * copies)` is least.
struct Partners {
    /// The numbers of shared partitions, one row per node.
    shared: Vec<u32>,
    nodes: usize,
    /// One over the copies that each node holds.
    inverse: Vec<f64>,
}

impl Partners {
    fn of(deal: &Deal, nodes: &Nodes) -> Self {
        let count = nodes.ids.len();
        let inverse = nodes.quotas.iter().map(|&quota| 1.0 / f64::from(quota.max(1))).collect();
        let mut partners = Self { shared: vec![0; count * count], nodes: count, inverse };
        for places in deal.places.chunks_exact(deal.owners) {
            for &a in places {
                for &b in places {
                    partners.shared[a as usize * count + b as usize] += 1;
                }
            }
        }
        partners
    }

    /// By how much the sum shrinks if the owners at two places change places.
    fn gain(&self, deal: &Deal, a: usize, b: usize) -> f64 {
        let (node_a, node_b) = (deal.places[a], deal.places[b]);
        let (part_a, part_b) = (deal.partition(a / deal.owners), deal.partition(b / deal.owners));
        // A square grows by 2x + 1 when x grows by one, and shrinks by 2x - 1.
        let less = |x: u32, y: u32| (2.0 * f64::from(self.shared(x, y)) - 1.0) * self.inverse[y as usize];
        let more = |x: u32, y: u32| (2.0 * f64::from(self.shared(x, y)) + 1.0) * self.inverse[y as usize];
        let mut gain = 0.0;
        let (inverse_a, inverse_b) = (self.inverse[node_a as usize], self.inverse[node_b as usize]);
        // Who is in both partitions keeps both partners.
        for &other in part_a.iter().filter(|&&other| other != node_a && !part_b.contains(&other)) {
            gain += less(node_a, other) * inverse_a - more(node_b, other) * inverse_b;
        }
        for &other in part_b.iter().filter(|&&other| other != node_b && !part_a.contains(&other)) {
            gain += less(node_b, other) * inverse_b - more(node_a, other) * inverse_a;
        }
        gain
    }

    fn swap(&mut self, deal: &Deal, a: usize, b: usize) {
        let (node_a, node_b) = (deal.places[a], deal.places[b]);
        for &other in deal.partition(a / deal.owners).iter().filter(|&&other| other != node_a) {
            self.change(node_a, other, false);
            self.change(node_b, other, true);
        }
        for &other in deal.partition(b / deal.owners).iter().filter(|&&other| other != node_b) {
            self.change(node_b, other, false);
            self.change(node_a, other, true);
        }
    }

    fn shared(&self, a: u32, b: u32) -> u32 {
        self.shared[a as usize * self.nodes + b as usize]
    }

    fn change(&mut self, a: u32, b: u32, more: bool) {
        for at in [a as usize * self.nodes + b as usize, b as usize * self.nodes + a as usize] {
            let shared = &mut self.shared[at];
            *shared = if more { *shared + 1 } else { shared.saturating_sub(1) };
        }
    }
}

/// SplitMix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", 2014): the stream is part of what
/// makes the layout a function of its input, so it is written down here rather than taken from a library.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 to `bound - 1`.
    #[allow(clippy::cast_possible_truncation, reason = "the product's upper half is below the bound")]
    fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }
}
