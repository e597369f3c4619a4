//! Who owns what: the cheapest assignment of nodes to partitions, proven so.
//!
//! The assignment is a flow of minimum cost from the partitions over their zones to the nodes, where a place that stays
//! costs nothing and a new one costs one move. Such networks have whole optimal solutions. The network with every
//! possible place would have partitions times nodes edges; nearly all of them are of no use. So it is solved with few of
//! them (column generation; Dantzig and Wolfe, "Decomposition Principle for Linear Programs", 1960):
//!
//! 1. The places that exist, those of some fair assignment, so that a solution exists, and a few for each partition at
//!    nodes that lack copies.
//! 2. The optimal solution of this network gives each node a price, and the prices a lower bound for every assignment.
//! 3. If the bound meets the cost, no assignment is cheaper. Otherwise the bound names partitions that could do better
//!    with places that the network lacks: these are added, and it is solved again.

use super::bound::Pricing;
use crate::ring::flow::{EdgeId, Network};

/// Solutions of growing networks that are tried before the best one is returned with a gap.
const ROUNDS_MAX: usize = 64;

/// New places offered to each partition that loses owners, and to every other one, at the start.
const OFFERS_LOSING: usize = 12;
const OFFERS: usize = 4;

/// New places offered after a solution, to all partitions that could do better together.
const NEW_OFFERS: usize = 1 << 16;

/// What is to be assigned. Partitions, nodes and zones are numbered from 0.
pub(super) struct Problem {
    /// The zone of each node.
    pub(super) zones: Vec<u32>,
    /// The most owners of one partition in one zone.
    pub(super) zone_limit: u32,
    /// Owners of each partition.
    pub(super) owners: usize,
    /// The fewest and the most copies of each node.
    pub(super) bounds: Vec<(u32, u32)>,
    /// For each partition, the nodes that cost less than a new place, with what they cost.
    pub(super) cheap: Vec<Vec<(u32, i32)>>,
    /// What a new place costs.
    pub(super) cost_new: i32,
}

impl Problem {
    /// What it costs that `node` owns `partition`.
    pub(super) fn cost(&self, partition: usize, node: u32) -> i32 {
        let cheap = self.cheap.get(partition).and_then(|list| list.iter().find(|place| place.0 == node));
        cheap.map_or(self.cost_new, |place| place.1)
    }

    /// How many zones there are.
    pub(super) fn zone_count(&self) -> usize {
        self.zones.iter().max().map_or(0, |&last| last as usize + 1)
    }
}

/// An assignment.
pub(super) struct Solution {
    /// The owners of each partition, in no particular order.
    pub(super) places: Vec<Vec<u32>>,
    /// No assignment costs less.
    pub(super) bound: i64,
}

/// The cheapest assignment. `fair` is any assignment that keeps the bounds and the zone limit: the owners of one
/// partition after the other.
///
/// `None` only if `fair` breaks a rule.
pub(super) fn assign(problem: &Problem, fair: &[u32]) -> Option<Solution> {
    let mut columns = first_columns(problem, fair);
    let mut bound = i64::MIN;
    let mut pricing = Pricing::new(problem);
    for round in 1.. {
        let solved = solve(problem, &columns)?;
        pricing.set(problem, &solved.prices);
        let mut better = Vec::new();
        let found = pricing.bound(problem, |partition, value| {
            if value < solved.value(problem, partition) {
                better.push(partition);
            }
        });
        bound = bound.max(found);
        if bound >= solved.cost || round >= ROUNDS_MAX {
            return Some(Solution { places: solved.places, bound });
        }
        let offers = (NEW_OFFERS / better.len().max(1)).max(1);
        for partition in better {
            pricing.offers(problem, partition, offers, &mut columns[partition]);
        }
    }
    None
}

/// The places with which the search begins.
fn first_columns(problem: &Problem, fair: &[u32]) -> Vec<Vec<u32>> {
    let mut held = vec![0u32; problem.zones.len()];
    for &(node, _) in problem.cheap.iter().flatten() {
        held[node as usize] += 1;
    }
    let below = |bound: fn(&(u32, u32)) -> u32| -> Vec<u32> {
        let counted = (0..).zip(held.iter().zip(&problem.bounds));
        counted.filter(|(_, (held, bounds))| **held < bound(bounds)).map(|(node, _)| node).collect()
    };
    let mut lacking = below(|bounds| bounds.0);
    if lacking.is_empty() {
        // Nobody has to get more: those who may take what others lose.
        lacking = below(|bounds| bounds.1);
    }
    let mut columns = Vec::with_capacity(problem.cheap.len());
    for (partition, (cheap, fair)) in problem.cheap.iter().zip(fair.chunks_exact(problem.owners)).enumerate() {
        let mut list: Vec<u32> = cheap.iter().map(|place| place.0).collect();
        list.extend(fair.iter().filter(|node| cheap.iter().all(|place| place.0 != **node)));
        let offers = if cheap.len() < problem.owners { OFFERS_LOSING } else { OFFERS };
        for step in 0..offers.min(lacking.len()) {
            // Consecutive partitions begin at places that are far apart.
            let node = lacking[(scatter(partition) as usize).wrapping_add(step) % lacking.len()];
            if !list.contains(&node) {
                list.push(node);
            }
        }
        columns.push(list);
    }
    columns
}

/// Mixes a number (Knuth, "The Art of Computer Programming", 6.4: multiplicative hashing).
pub(super) fn scatter(number: usize) -> u32 {
    u32::try_from(number & 0xffff_ffff).unwrap_or(0).wrapping_mul(2_654_435_769) >> 8
}

/// The optimal solution of one network.
struct Solved {
    places: Vec<Vec<u32>>,
    cost: i64,
    /// What a copy at each node is worth.
    prices: Vec<i64>,
}

impl Solved {
    /// What the places of a partition cost at the prices of their nodes.
    fn value(&self, problem: &Problem, partition: usize) -> i64 {
        let places = self.places[partition].iter();
        places.map(|&node| i64::from(problem.cost(partition, node)) - self.prices[node as usize]).sum()
    }
}

fn solve(problem: &Problem, columns: &[Vec<u32>]) -> Option<Solved> {
    let ids = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let nodes = problem.zones.len();
    let first_zone = nodes + columns.len();
    // A partition needs a vertex for a zone only where it could take more owners from it than it may.
    let mut in_zone = vec![0u32; problem.zone_count()];
    let mut vertices = first_zone;
    for list in columns {
        list.iter().for_each(|&node| in_zone[problem.zones[node as usize] as usize] += 1);
        for &node in list {
            let count = std::mem::take(&mut in_zone[problem.zones[node as usize] as usize]);
            vertices += usize::from(count > problem.zone_limit);
        }
    }
    let (source, sink) = (ids(vertices), ids(vertices + 1));
    let edges: usize = columns.iter().map(Vec::len).sum::<usize>() + (vertices - first_zone) + columns.len() + nodes;
    let mut network = Network::new(vertices + 2, edges);
    let mut next_zone = ids(first_zone);
    let mut zone_vertex = vec![u32::MAX; in_zone.len()];
    let mut places: Vec<Vec<EdgeId>> = Vec::with_capacity(columns.len());
    for (partition, list) in columns.iter().enumerate() {
        let vertex = ids(nodes + partition);
        network.edge(source, vertex, ids(problem.owners));
        list.iter().for_each(|&node| in_zone[problem.zones[node as usize] as usize] += 1);
        let mut made = Vec::with_capacity(list.len());
        for &node in list {
            let zone = problem.zones[node as usize] as usize;
            if in_zone[zone] > problem.zone_limit && zone_vertex[zone] == u32::MAX {
                zone_vertex[zone] = next_zone;
                network.edge(vertex, next_zone, problem.zone_limit);
                next_zone += 1;
            }
            let from = if zone_vertex[zone] == u32::MAX { vertex } else { zone_vertex[zone] };
            made.push(network.edge_at(from, node, 1, problem.cost(partition, node)));
        }
        for &node in list {
            in_zone[problem.zones[node as usize] as usize] = 0;
            zone_vertex[problem.zones[node as usize] as usize] = u32::MAX;
        }
        places.push(made);
    }
    // Added last, so that they are found first.
    let quotas: Vec<(EdgeId, u32)> = (0..)
        .zip(&problem.bounds)
        .map(|(node, &(least, most))| (network.edge(node, sink, least), most.saturating_sub(least)))
        .collect();
    let mut placed = network.run_cheapest(source, sink) as usize;
    for (edge, by) in quotas {
        network.raise(edge, by);
    }
    placed += network.run_cheapest(source, sink) as usize;
    if placed != columns.len() * problem.owners {
        return None;
    }
    let mut cost = 0;
    let chosen = columns.iter().zip(&places).enumerate().map(|(partition, (list, edges))| {
        let chosen = list.iter().zip(edges).filter(|(_, edge)| network.flow(**edge) > 0).map(|(&node, _)| node);
        chosen.inspect(|&node| cost += i64::from(problem.cost(partition, node))).collect()
    });
    let chosen = chosen.collect();
    let prices = (0..ids(nodes)).map(|node| network.potential(node) - network.potential(sink)).collect();
    Some(Solved { places: chosen, cost, prices })
}
