//! A lower bound on what any assignment costs, which knows nothing of how assignments are found.
//!
//! Lagrangian relaxation (Geoffrion, 1974): the bounds on the copies of each node are given up for a price on each of its
//! copies. Whatever the prices are, every assignment costs at least
//!
//! `sum over partitions of (the cheapest owners, each at its cost less the price of its node)`
//! `+ sum over nodes of (price x the fewest copies if the price is above zero, otherwise x the most)`.
//!
//! The cheapest owners under a zone limit are found greedily, since sets of places with a limit for each zone are a
//! matroid. Good prices make the bound meet the cost of the best assignment; bad ones only make it lower.

use super::assign::{Problem, scatter};

/// Prices of the nodes, and what follows from them.
pub(super) struct Pricing {
    /// What a copy at each node is worth.
    prices: Vec<i64>,
    /// The nodes by price, the highest first.
    order: Vec<u32>,
    /// Where each run of equal prices ends.
    ends: Vec<usize>,
    /// Owners chosen in each zone.
    chosen: Vec<u32>,
    /// The cheapest owners of the partition at hand: each one's cost less its price, and the node.
    best: Vec<(i64, u32)>,
}

impl Pricing {
    pub(super) fn new(problem: &Problem) -> Self {
        let chosen = vec![0; problem.zone_count()];
        Self { prices: Vec::new(), order: Vec::new(), ends: Vec::new(), chosen, best: Vec::new() }
    }

    /// Takes new prices.
    pub(super) fn set(&mut self, problem: &Problem, prices: &[i64]) {
        debug_assert_eq!(problem.zones.len(), prices.len());
        self.prices = prices.to_vec();
        self.order = (0..).take(prices.len()).collect();
        self.order.sort_by_key(|&node| std::cmp::Reverse(prices[node as usize]));
        self.ends.clear();
        for (at, pair) in self.order.windows(2).enumerate() {
            if prices[pair[0] as usize] != prices[pair[1] as usize] {
                self.ends.push(at + 1);
            }
        }
        self.ends.push(prices.len());
    }

    /// The bound that the prices give. `visit` sees what the cheapest owners of each partition are worth.
    pub(super) fn bound(&mut self, problem: &Problem, mut visit: impl FnMut(usize, i64)) -> i64 {
        let mut total = 0;
        for (&price, &(least, most)) in self.prices.iter().zip(&problem.bounds) {
            total += price * i64::from(if price > 0 { least } else { most });
        }
        for partition in 0..problem.cheap.len() {
            let value = self.choose(problem, partition);
            total += value;
            visit(partition, value);
        }
        total
    }

    /// Adds to `columns` the cheapest owners of a partition, and up to `wanted` places that are as good as the worst of
    /// them.
    pub(super) fn offers(&mut self, problem: &Problem, partition: usize, wanted: usize, columns: &mut Vec<u32>) {
        self.choose(problem, partition);
        for &(_, node) in &self.best {
            if !columns.contains(&node) {
                columns.push(node);
            }
        }
        let worst = self.best.iter().map(|place| place.0).max().unwrap_or(i64::MIN);
        let full = columns.len() + wanted;
        for (value, node) in self.new_places(problem, partition) {
            if value > worst || columns.len() >= full {
                return;
            }
            if !columns.contains(&node) {
                columns.push(node);
            }
        }
    }

    /// Chooses the cheapest owners of a partition; returns what they are worth together.
    fn choose(&mut self, problem: &Problem, partition: usize) -> i64 {
        let mut chosen = std::mem::take(&mut self.chosen);
        let mut best = std::mem::take(&mut self.best);
        best.clear();
        let cheap = &problem.cheap[partition];
        let mut existing: Vec<(i64, u32)> =
            cheap.iter().map(|&(node, cost)| (i64::from(cost) - self.prices[node as usize], node)).collect();
        existing.sort_unstable();
        let mut existing = existing.into_iter().peekable();
        let mut new = self.new_places(problem, partition).peekable();
        while best.len() < problem.owners {
            let offer = new.peek().copied();
            let next = match existing.next_if(|place| offer.is_none_or(|offer| place.0 <= offer.0)) {
                Some(place) => place,
                None => match new.next() {
                    Some(offer) => offer,
                    None => break,
                },
            };
            let zone = &mut chosen[problem.zones[next.1 as usize] as usize];
            if *zone < problem.zone_limit {
                *zone += 1;
                best.push(next);
            }
        }
        drop(new);
        best.iter().for_each(|place| chosen[problem.zones[place.1 as usize] as usize] = 0);
        (self.chosen, self.best) = (chosen, best);
        self.best.iter().map(|place| place.0).sum()
    }

    /// The new places of a partition, the cheapest first. Among nodes of one price each partition begins elsewhere, so that
    /// they do not all want the same one.
    fn new_places<'a>(&'a self, problem: &'a Problem, partition: usize) -> impl Iterator<Item = (i64, u32)> + 'a {
        let mut start = 0;
        let nodes = self.ends.iter().flat_map(move |&end| {
            let run = &self.order[std::mem::replace(&mut start, end)..end];
            let turn = scatter(partition) as usize % run.len().max(1);
            run[turn..].iter().chain(&run[..turn]).copied()
        });
        let cheap = &problem.cheap[partition];
        let new = nodes.filter(|&node| cheap.iter().all(|place| place.0 != node));
        new.map(|node| (i64::from(problem.cost_new) - self.prices[node as usize], node))
    }
}
