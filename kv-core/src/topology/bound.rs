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

/// Buffers of [`lower_bound`].
pub(super) struct Scratch {
    /// The nodes by price, the highest first.
    order: Vec<u32>,
    /// Where each run of equal prices ends.
    ends: Vec<usize>,
    /// Owners chosen in each zone.
    chosen: Vec<u32>,
    best: Vec<u32>,
}

impl Scratch {
    pub(super) fn new(problem: &Problem) -> Self {
        Self { order: Vec::new(), ends: Vec::new(), chosen: vec![0; problem.zone_count()], best: Vec::new() }
    }
}

/// The bound that the prices give. `visit` sees the cheapest owners of each partition at these prices, and their value.
pub(super) fn lower_bound(
    problem: &Problem,
    prices: &[i64],
    scratch: &mut Scratch,
    mut visit: impl FnMut(usize, &[u32], i64),
) -> i64 {
    let price = |node: u32| prices[node as usize];
    scratch.order.clear();
    scratch.order.extend((0..).take(prices.len()));
    scratch.order.sort_by_key(|&node| std::cmp::Reverse(price(node)));
    scratch.ends.clear();
    for (at, pair) in scratch.order.windows(2).enumerate() {
        if price(pair[0]) != price(pair[1]) {
            scratch.ends.push(at + 1);
        }
    }
    scratch.ends.push(prices.len());

    let mut total = 0;
    for (&price, &(least, most)) in prices.iter().zip(&problem.bounds) {
        total += price * i64::from(if price > 0 { least } else { most });
    }
    for (partition, cheap) in problem.cheap.iter().enumerate() {
        let value = cheapest(problem, prices, partition, cheap, scratch);
        total += value;
        visit(partition, &scratch.best, value);
    }
    total
}

/// Leaves the cheapest owners of a partition in `scratch.best` and returns their value.
fn cheapest(problem: &Problem, prices: &[i64], partition: usize, cheap: &[(u32, i32)], scratch: &mut Scratch) -> i64 {
    let Scratch { order, ends, chosen, best } = scratch;
    let price = |node: u32| prices[node as usize];
    let mut existing: Vec<(i64, u32)> =
        cheap.iter().map(|&(node, cost)| (i64::from(cost) - price(node), node)).collect();
    existing.sort_unstable();
    let mut existing = existing.into_iter().peekable();
    // Among nodes of one price each partition begins elsewhere, so that they do not all want the same one.
    let mut start = 0;
    let new = ends.iter().flat_map(|&end| {
        let run = &order[std::mem::replace(&mut start, end)..end];
        let turn = scatter(partition) as usize % run.len().max(1);
        run[turn..].iter().chain(&run[..turn]).copied()
    });
    let mut new = new.filter(|&node| cheap.iter().all(|place| place.0 != node)).peekable();
    best.clear();
    let mut value = 0;
    while best.len() < problem.owners {
        let offer = new.peek().map(|&node| (i64::from(problem.cost_new) - price(node), node));
        let next = match (existing.peek(), offer) {
            (Some(&place), offer) if offer.is_none_or(|offer| place.0 <= offer.0) => {
                existing.next();
                place
            }
            (_, Some(offer)) => {
                new.next();
                offer
            }
            (_, None) => break,
        };
        let zone = &mut chosen[problem.zones[next.1 as usize] as usize];
        if *zone < problem.zone_limit {
            *zone += 1;
            best.push(next.1);
            value += next.0;
        }
    }
    best.iter().for_each(|&node| chosen[problem.zones[node as usize] as usize] = 0);
    value
}
