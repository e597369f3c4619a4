//! Maximum flow (Dinic, "Algorithm for solution of a problem of maximum flow in networks with power estimation",
//! 1970): O(E sqrt V) where every path has a unit edge, as in assignments of places to nodes.
//!
//! Quotas with a lower bound need no construction of their own: run once with the lower bounds as the capacities of the
//! edges into the sink, raise these to the upper bounds, and run again. Further paths never take flow back from an edge
//! that enters the sink, so the lower bounds stay met, and the second run ends at a maximum as if it had been the first.
//!
//! Where edges have costs, the primal-dual method (Ford and Fulkerson, "Flows in Networks", 1962) finds a cheapest maximum
//! flow: potentials make the cheapest paths those along edges of reduced cost zero, and a maximum flow runs among them;
//! then the next cheapest paths are measured. The quotas work as before: filling lower bounds first is what a reward
//! above any cost on that part of each edge would do.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A directed network that keeps its flow between runs.
pub(crate) struct Network {
    /// Edges in pairs: each edge is followed by its reverse, whose capacity is the flow that can be taken back.
    edges: Vec<Edge>,
    /// The latest edge that leaves each vertex.
    latest: Vec<u32>,
    /// What the cheapest way to each vertex costs. No edge with capacity left has a reduced cost (its cost, plus the
    /// potential of its start, less that of its end) below zero, but for those that leave the sink, which no path uses.
    potential: Vec<i64>,
}

struct Edge {
    to: u32,
    /// What can still flow.
    residual: u32,
    /// The edge that left the same vertex before this one was added.
    previous: u32,
    /// What one unit costs; the opposite for the reverse.
    cost: i32,
}

/// An edge of a network.
#[derive(Clone, Copy)]
pub(crate) struct EdgeId(u32);

/// No edge, no vertex, no distance.
const NONE: u32 = u32::MAX;

impl Network {
    /// A network of that many vertices, numbered from 0.
    pub(crate) fn new(vertices: usize, edges: usize) -> Self {
        Self { edges: Vec::with_capacity(2 * edges), latest: vec![NONE; vertices], potential: vec![0; vertices] }
    }

    /// Adds an edge without cost.
    pub(crate) fn edge(&mut self, from: u32, to: u32, capacity: u32) -> EdgeId {
        self.edge_at(from, to, capacity, 0)
    }

    /// Adds an edge on which each unit costs `cost`, at least 0. All edges are added before the first run.
    pub(crate) fn edge_at(&mut self, from: u32, to: u32, capacity: u32, cost: i32) -> EdgeId {
        debug_assert!(cost >= 0, "potentials start at zero");
        let id = self.half(from, to, capacity, cost);
        self.half(to, from, 0, -cost);
        EdgeId(id)
    }

    fn half(&mut self, from: u32, to: u32, residual: u32, cost: i32) -> u32 {
        #[allow(clippy::cast_possible_truncation, reason = "at most 2^24 places, so below 2^26 half edges")]
        let id = self.edges.len() as u32;
        let previous = std::mem::replace(&mut self.latest[from as usize], id);
        self.edges.push(Edge { to, residual, previous, cost });
        id
    }

    /// Adds to an edge's capacity.
    pub(crate) fn raise(&mut self, edge: EdgeId, by: u32) {
        self.edges[edge.0 as usize].residual += by;
    }

    /// What flows through an edge.
    pub(crate) fn flow(&self, edge: EdgeId) -> u32 {
        self.edges[edge.0 as usize + 1].residual
    }

    /// What the cheapest way to `vertex` costs, after [`Self::run_cheapest`].
    pub(crate) fn potential(&self, vertex: u32) -> i64 {
        self.potential[vertex as usize]
    }

    /// Increases the flow from `source` to `sink` to the maximum, and what it costs by the least; returns the increase.
    pub(crate) fn run_cheapest(&mut self, source: u32, sink: u32) -> u32 {
        // Edges into the sink that were raised have capacity again: lowering the sink keeps their reduced costs sound.
        let mut edge = self.latest[sink as usize];
        while let Some(Edge { to, previous, .. }) = self.edges.get(edge as usize) {
            let forward = &self.edges[edge as usize ^ 1];
            if forward.residual > 0 {
                let reached = self.potential[*to as usize] + i64::from(forward.cost);
                self.potential[sink as usize] = self.potential[sink as usize].min(reached);
            }
            edge = *previous;
        }
        let mut total = 0;
        while self.reprice(source, sink) {
            total += self.run(source, sink);
        }
        total
    }

    /// Brings the potentials up to date, so that the cheapest paths have reduced cost zero; whether the sink can be reached.
    /// Dijkstra's algorithm on reduced costs; vertices beyond the sink's distance rise by that distance.
    fn reprice(&mut self, source: u32, sink: u32) -> bool {
        let mut distance = vec![i64::MAX; self.latest.len()];
        distance[source as usize] = 0;
        // Most reduced costs are zero: what is as near as the vertex at hand needs no place in the heap.
        let mut near = vec![source];
        let mut far: BinaryHeap<Reverse<(i64, u32)>> = BinaryHeap::new();
        let nearest = |far: &mut BinaryHeap<Reverse<(i64, u32)>>, distance: &[i64]| loop {
            let Reverse((at, vertex)) = far.pop()?;
            // What came nearer since it was put in has another entry.
            if distance[vertex as usize] == at {
                return Some(vertex);
            }
        };
        'search: while let Some(vertex) = near.pop().or_else(|| nearest(&mut far, &distance)) {
            if vertex == sink {
                break;
            }
            let at = distance[vertex as usize];
            let mut edge = self.latest[vertex as usize];
            while let Some(step) = self.edges.get(edge as usize) {
                if step.residual > 0 {
                    let reached = at + self.reduced_cost(vertex, step);
                    if reached < distance[step.to as usize] {
                        distance[step.to as usize] = reached;
                        match reached == at {
                            // Nothing that is left is nearer.
                            true if step.to == sink => break 'search,
                            true => near.push(step.to),
                            false => far.push(Reverse((reached, step.to))),
                        }
                    }
                }
                edge = step.previous;
            }
        }
        let limit = distance[sink as usize];
        if limit == i64::MAX {
            return false;
        }
        for (potential, distance) in self.potential.iter_mut().zip(&distance) {
            *potential += limit.min(*distance);
        }
        true
    }

    fn reduced_cost(&self, from: u32, edge: &Edge) -> i64 {
        i64::from(edge.cost) + self.potential[from as usize] - self.potential[edge.to as usize]
    }

    /// Increases the flow from `source` to `sink` along edges of reduced cost zero to the maximum; returns the increase.
    /// Without costs these are all edges.
    pub(crate) fn run(&mut self, source: u32, sink: u32) -> u32 {
        let mut distance = vec![NONE; self.latest.len()];
        let mut queue = Vec::with_capacity(self.latest.len());
        let mut total = 0;
        while self.measure(source, sink, &mut distance, &mut queue) {
            let mut next = self.latest.clone();
            loop {
                let amount = self.augment(source, sink, &distance, &mut next);
                if amount == 0 {
                    break;
                }
                total += amount;
            }
        }
        total
    }

    /// Distances from the source along edges with capacity left, up to that of the sink; whether the sink can be reached.
    fn measure(&self, source: u32, sink: u32, distance: &mut [u32], queue: &mut Vec<u32>) -> bool {
        distance.fill(NONE);
        distance[source as usize] = 0;
        queue.clear();
        queue.push(source);
        let mut at = 0;
        while let Some(&vertex) = queue.get(at) {
            at += 1;
            let mut edge = self.latest[vertex as usize];
            while let Some(step) = self.edges.get(edge as usize) {
                if step.residual > 0 && distance[step.to as usize] == NONE && self.reduced_cost(vertex, step) == 0 {
                    distance[step.to as usize] = distance[vertex as usize] + 1;
                    if step.to == sink {
                        return true;
                    }
                    queue.push(step.to);
                }
                edge = step.previous;
            }
        }
        false
    }

    /// Sends flow along one shortest path; 0 if none is left. `next` holds the first edge of each vertex that is not
    /// known to lead nowhere. A loop with its path in hand, since paths may be longer than a thread's stack is deep.
    fn augment(&mut self, source: u32, sink: u32, distance: &[u32], next: &mut [u32]) -> u32 {
        let mut path: Vec<u32> = Vec::new();
        let mut vertex = source;
        while vertex != sink {
            let edge = next[vertex as usize];
            match self.edges.get(edge as usize) {
                Some(step)
                    if step.residual > 0
                        && distance[step.to as usize] != NONE
                        && distance[step.to as usize] == distance[vertex as usize] + 1
                        && self.reduced_cost(vertex, step) == 0 =>
                {
                    path.push(edge);
                    vertex = step.to;
                }
                Some(step) => next[vertex as usize] = step.previous,
                None => {
                    // A dead end: go back, and never take the edge that led here again.
                    let Some(taken) = path.pop() else { return 0 };
                    vertex = self.edges[taken as usize ^ 1].to;
                    next[vertex as usize] = self.edges[taken as usize].previous;
                }
            }
        }
        let amount = path.iter().map(|&edge| self.edges[edge as usize].residual).min().unwrap_or(0);
        for edge in path {
            self.edges[edge as usize].residual -= amount;
            self.edges[edge as usize ^ 1].residual += amount;
        }
        amount
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn takes_back_a_greedy_choice() {
        // 0 is the source, 1 and 2 want 3 or 4; only 1 can take 4.
        let mut network = Network::new(6, 7);
        network.edge(0, 1, 1);
        network.edge(0, 2, 1);
        let to_4 = network.edge(1, 4, 1);
        let to_3 = network.edge(1, 3, 1);
        network.edge(2, 3, 1);
        network.edge(3, 5, 1);
        network.edge(4, 5, 1);
        assert_eq!(network.run(0, 5), 2);
        assert_eq!((network.flow(to_3), network.flow(to_4)), (0, 1));
    }

    /// The least cost of each amount of flow from 0 to 3, by trying every flow of small edges.
    fn cheapest_by_force(edges: &[(u32, u32, u32, i32)]) -> std::collections::BTreeMap<u32, i64> {
        let mut found = std::collections::BTreeMap::new();
        let mut flows = vec![0u32; edges.len()];
        loop {
            let net = |vertex: u32| -> i64 {
                edges
                    .iter()
                    .zip(&flows)
                    .map(|(&(from, to, _, _), &flow)| {
                        i64::from(flow) * (i64::from(u8::from(from == vertex)) - i64::from(u8::from(to == vertex)))
                    })
                    .sum()
            };
            if (1..3).all(|vertex| net(vertex) == 0) && net(0) >= 0 {
                let cost: i64 = edges.iter().zip(&flows).map(|(edge, &flow)| i64::from(edge.3) * i64::from(flow)).sum();
                let amount = u32::try_from(net(0)).unwrap();
                let least = found.entry(amount).or_insert(cost);
                *least = cost.min(*least);
            }
            let Some(at) = (0..edges.len()).find(|&at| flows[at] < edges[at].2) else { return found };
            flows[..at].fill(0);
            flows[at] += 1;
        }
    }

    proptest! {
        /// The cheapest maximum flow, found by trying all flows.
        #[test]
        fn is_as_cheap_as_can_be(
            edges in prop::collection::vec((0u32..4, 0u32..4, 0u32..3, 0i32..5), 0..9),
        ) {
            // Nothing enters the source or leaves the sink, as in every network that has quotas.
            let edges: Vec<_> = edges.into_iter().filter(|&(from, to, ..)| from != 3 && to != 0 && from != to).collect();
            let mut network = Network::new(4, edges.len());
            let ids: Vec<EdgeId> =
                edges.iter().map(|&(from, to, capacity, cost)| network.edge_at(from, to, capacity, cost)).collect();
            let amount = network.run_cheapest(0, 3);
            let cost: i64 = ids.iter().zip(&edges).map(|(&id, edge)| i64::from(network.flow(id)) * i64::from(edge.3)).sum();
            prop_assert_eq!(Some((amount, cost)), cheapest_by_force(&edges).pop_last());
        }

        /// The maximum flow is the least cut, found by trying all of them.
        #[test]
        fn equals_the_least_cut(
            edges in prop::collection::vec((0u32..6, 0u32..6, 0u32..5), 0..16),
            raised in prop::collection::vec(0u32..4, 16),
        ) {
            let mut network = Network::new(6, edges.len());
            let ids: Vec<EdgeId> = edges.iter().map(|&(from, to, capacity)| network.edge(from, to, capacity)).collect();
            let least = |capacity: &dyn Fn(usize) -> u32| {
                (0u32..64)
                    .filter(|side| side & 1 == 1 && side & 32 == 0)
                    .map(|side| {
                        let crosses = |&(from, to, _): &(u32, u32, u32)| side >> from & 1 == 1 && side >> to & 1 == 0;
                        (0..edges.len()).filter(|&at| crosses(&edges[at])).map(capacity).sum::<u32>()
                    })
                    .min()
            };
            let first = network.run(0, 5);
            prop_assert_eq!(Some(first), least(&|at| edges[at].2));
            for (&id, &by) in ids.iter().zip(&raised) {
                network.raise(id, by);
            }
            let second = network.run(0, 5);
            prop_assert_eq!(Some(first + second), least(&|at| edges[at].2 + raised[at]));
            for (at, &id) in ids.iter().enumerate() {
                prop_assert!(edges[at].0 == edges[at].1 || network.flow(id) <= edges[at].2 + raised[at]);
            }
        }
    }
}
