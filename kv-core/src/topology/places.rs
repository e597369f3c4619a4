//! From sets of owners to preference lists: who takes whose place, and who comes first.
//!
//! Primaries never cost a move. Each node holds its fair share of copies rounded down or up, so giving every owner
//! an equal part of each of its partitions is a fractional choice of first owners whose totals lie between the fair
//! shares of primaries rounded down and up. These are whole numbers, so by the integrality of flows a whole choice
//! exists for every such assignment: a reordering of the lists is enough.

use crate::ring::flow::{EdgeId, Network};

/// A preference list that is being made.
pub(super) struct List {
    /// The owners, the primary first.
    pub(super) owners: Vec<u32>,
    /// Who enters, and whose place it takes: a position in the old list, or `None` if the list grew.
    pub(super) entering: Vec<(u32, Option<usize>)>,
    /// Whether the owners are others than before.
    pub(super) changed: bool,
}

/// Puts the owners of a partition in order. Who stays keeps its place; who enters takes that of a leaving owner, of its
/// own zone where there is one.
///
/// `old` is the old list, with `None` for who is no member any more; `heirs` says who is meant to take over from whom,
/// as pairs of a position in `old` and a node.
pub(super) fn arrange(
    old: &[Option<u32>],
    heirs: &[(usize, u32)],
    owners: &[u32],
    old_zones: &[u32],
    zones: &[u32],
) -> List {
    let mut places: Vec<Option<u32>> = old.iter().map(|node| node.filter(|node| owners.contains(node))).collect();
    let mut left: Vec<u32> = owners.iter().filter(|node| !places.contains(&Some(**node))).copied().collect();
    left.sort_unstable();
    let mut entering = Vec::with_capacity(left.len());
    let changed = !left.is_empty() || places.contains(&None);
    let mut take = |left: &mut Vec<u32>, fits: &dyn Fn(usize, u32) -> bool| {
        left.retain(|&node| {
            let at = (0..places.len()).find(|&at| places[at].is_none() && fits(at, node));
            if let Some(at) = at {
                places[at] = Some(node);
                entering.push((node, Some(at)));
            }
            at.is_none()
        });
    };
    take(&mut left, &|at, node| heirs.contains(&(at, node)));
    take(&mut left, &|at, node| old_zones[at] == zones[node as usize]);
    take(&mut left, &|_, _| true);
    let mut owners: Vec<u32> = places.into_iter().flatten().collect();
    for node in left {
        owners.push(node);
        entering.push((node, None));
    }
    List { owners, entering, changed }
}

/// Chooses first owners so that each node has between its fewest and its most primaries. Whoever comes first keeps
/// that place wherever possible; where not, lists whose owners change anyway are reordered rather than others.
///
/// False if there is no such choice, which the fair shares rule out.
pub(super) fn choose_first(lists: &mut [List], bounds: &[(u32, u32)]) -> bool {
    let ids = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let nodes = bounds.len();
    let (source, sink) = (ids(nodes + lists.len()), ids(nodes + lists.len() + 1));
    let places: usize = lists.iter().map(|list| list.owners.len()).sum();
    let mut network = Network::new(sink as usize + 1, places + lists.len() + nodes);
    let mut choices = Vec::with_capacity(lists.len());
    for (vertex, list) in (ids(nodes)..).zip(lists.iter()) {
        network.edge(source, vertex, 1);
        let reorder = if list.changed { 1 } else { 2 };
        let costs = std::iter::once(0).chain(std::iter::repeat(reorder));
        let edges = list.owners.iter().zip(costs).map(|(&node, cost)| network.edge_at(vertex, node, 1, cost));
        choices.push(edges.collect::<Vec<_>>());
    }
    // Added last, so that they are found first.
    let quotas: Vec<(EdgeId, u32)> = (0..)
        .zip(bounds)
        .map(|(node, &(least, most))| (network.edge(node, sink, least), most.saturating_sub(least)))
        .collect();
    let mut chosen = network.run_cheapest(source, sink);
    for (edge, by) in quotas {
        network.raise(edge, by);
    }
    chosen += network.run_cheapest(source, sink);
    for (list, choices) in lists.iter_mut().zip(&choices) {
        if let Some(first) = choices.iter().position(|&choice| network.flow(choice) > 0) {
            list.owners.swap(0, first);
        }
    }
    chosen as usize == lists.len()
}
