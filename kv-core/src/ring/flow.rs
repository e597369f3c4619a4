//! Maximum flow (Dinic, "Algorithm for solution of a problem of maximum flow in networks with power estimation",
//! 1970): O(E sqrt V) where every path has a unit edge, as in assignments of places to nodes.
//!
//! Quotas with a lower bound need no construction of their own: run once with the lower bounds as the capacities of the
//! edges into the sink, raise these to the upper bounds, and run again. Further paths never take flow back from an edge
//! that enters the sink, so the lower bounds stay met, and the second run ends at a maximum as if it had been the first.

/// A directed network that keeps its flow between runs.
pub(super) struct Network {
    /// Edges in pairs: each edge is followed by its reverse, whose capacity is the flow that can be taken back.
    edges: Vec<Edge>,
    /// The latest edge that leaves each vertex.
    latest: Vec<u32>,
}

struct Edge {
    to: u32,
    /// What can still flow.
    residual: u32,
    /// The edge that left the same vertex before this one was added.
    previous: u32,
}

/// An edge of a network.
#[derive(Clone, Copy)]
pub(super) struct EdgeId(u32);

/// No edge, no vertex, no distance.
const NONE: u32 = u32::MAX;

impl Network {
    /// A network of that many vertices, numbered from 0.
    pub(super) fn new(vertices: usize, edges: usize) -> Self {
        Self { edges: Vec::with_capacity(2 * edges), latest: vec![NONE; vertices] }
    }

    /// Adds an edge.
    pub(super) fn edge(&mut self, from: u32, to: u32, capacity: u32) -> EdgeId {
        let id = self.half(from, to, capacity);
        self.half(to, from, 0);
        EdgeId(id)
    }

    fn half(&mut self, from: u32, to: u32, residual: u32) -> u32 {
        #[allow(clippy::cast_possible_truncation, reason = "at most 2^24 places, so below 2^26 half edges")]
        let id = self.edges.len() as u32;
        let previous = std::mem::replace(&mut self.latest[from as usize], id);
        self.edges.push(Edge { to, residual, previous });
        id
    }

    /// Adds to an edge's capacity.
    pub(super) fn raise(&mut self, edge: EdgeId, by: u32) {
        self.edges[edge.0 as usize].residual += by;
    }

    /// What flows through an edge.
    pub(super) fn flow(&self, edge: EdgeId) -> u32 {
        self.edges[edge.0 as usize + 1].residual
    }

    /// Increases the flow from `source` to `sink` to the maximum; returns the increase.
    pub(super) fn run(&mut self, source: u32, sink: u32) -> u32 {
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

    /// Distances from the source along edges with capacity left; whether the sink can be reached.
    fn measure(&self, source: u32, sink: u32, distance: &mut [u32], queue: &mut Vec<u32>) -> bool {
        distance.fill(NONE);
        distance[source as usize] = 0;
        queue.clear();
        queue.push(source);
        let mut at = 0;
        while let Some(&vertex) = queue.get(at) {
            at += 1;
            let mut edge = self.latest[vertex as usize];
            while let Some(Edge { to, residual, previous }) = self.edges.get(edge as usize) {
                if *residual > 0 && distance[*to as usize] == NONE {
                    distance[*to as usize] = distance[vertex as usize] + 1;
                    queue.push(*to);
                }
                edge = *previous;
            }
        }
        distance[sink as usize] != NONE
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
                        && distance[step.to as usize] == distance[vertex as usize] + 1 =>
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

    proptest! {
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
