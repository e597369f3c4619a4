//! Fair shares: how many copies each member should hold.

use std::collections::BTreeMap;

use super::Member;
use crate::types::NodeId;

/// The fewest owners of one partition that some zone must hold: the least limit under which zones of these sizes
/// have places for `owners` distinct nodes.
///
/// It is 1, which makes the zones distinct, wherever there are as many zones as owners. With fewer zones it is
/// `ceil(owners / zones)`, or more if a zone is too small to take its part.
#[must_use]
pub fn zone_limit(zone_sizes: &[usize], owners: usize) -> usize {
    let places = |limit: usize| zone_sizes.iter().map(|&size| size.min(limit)).sum::<usize>();
    (1..owners).find(|&limit| places(limit) >= owners).unwrap_or(owners.max(1))
}

/// The fair share of every member that is no spare, in copies of partitions.
///
/// Shares are proportional to the weights, but nobody can hold two copies of one partition, and no zone more than
/// `zone_limit` of them. What exceeds such a cap is redistributed over the others by their weights (water-filling), in
/// a capped zone over the zone's other members first. The shares add up to `partitions` times the number of owners.
///
/// Weights must satisfy [`super::check`]; `copies` must be above zero.
#[must_use]
pub fn fair_shares(members: &BTreeMap<NodeId, Member>, partitions: u32, copies: u8) -> BTreeMap<NodeId, f64> {
    let mut zones: BTreeMap<&str, Vec<Place>> = BTreeMap::new();
    let mut count = 0;
    for (&node, member) in members.iter().filter(|(_, member)| !member.spare) {
        zones.entry(&member.zone).or_default().push(Place { node, weight: member.weight, full: false });
        count += 1;
    }
    let owners = usize::from(copies).min(count);
    let sizes: Vec<usize> = zones.values().map(Vec::len).collect();
    let node_cap = f64::from(partitions);
    let zone_cap = node_cap * float(zone_limit(&sizes, owners));

    // Each round finds the level at which the open members' shares add up to what the full ones leave. A level below
    // the final one fills only what the final one fills too, so no decision is ever taken back.
    let mut open: Vec<Vec<Place>> = zones.into_values().collect();
    let mut left = node_cap * float(owners);
    let mut shares = BTreeMap::new();
    loop {
        let (weight, full) = sums(open.iter().flatten());
        let level = level(left - node_cap * full, weight);
        let taken = |place: &Place| if place.full { node_cap } else { node_cap.min(level * place.weight) };
        let capped = |zone: &Vec<Place>| zone.iter().map(taken).sum::<f64>() >= zone_cap;
        // Zones first: a full zone settles its members by itself.
        let (closed, rest): (Vec<_>, Vec<_>) = open.into_iter().partition(capped);
        open = rest;
        left -= zone_cap * float(closed.len());
        let mut changed = !closed.is_empty();
        for zone in closed {
            settle(zone, zone_cap, node_cap, &mut shares);
        }
        if !changed {
            changed = fill(open.iter_mut().flatten(), level, node_cap);
        }
        if !changed || open.is_empty() {
            break;
        }
    }
    let all: Vec<Place> = open.into_iter().flatten().collect();
    settle(all, left, node_cap, &mut shares);
    shares
}

/// One member while shares are computed.
struct Place {
    node: NodeId,
    weight: f64,
    /// Holds a copy of every partition.
    full: bool,
}

/// Divides `total` among the members of one zone, or of all zones that have room.
fn settle(mut places: Vec<Place>, total: f64, node_cap: f64, shares: &mut BTreeMap<NodeId, f64>) {
    loop {
        let (weight, full) = sums(&places);
        let level = level(total - node_cap * full, weight);
        if !fill(places.iter_mut(), level, node_cap) {
            let share = |place: &Place| if place.full { node_cap } else { level * place.weight };
            shares.extend(places.iter().map(|place| (place.node, share(place))));
            return;
        }
    }
}

/// Marks the members that the level fills; says whether there were any.
fn fill<'a>(places: impl Iterator<Item = &'a mut Place>, level: f64, node_cap: f64) -> bool {
    let mut filled = false;
    for place in places.filter(|place| !place.full && level * place.weight >= node_cap) {
        place.full = true;
        filled = true;
    }
    filled
}

/// The weight of those that are not full, and how many are.
fn sums<'a>(places: impl IntoIterator<Item = &'a Place>) -> (f64, f64) {
    places.into_iter().fold(
        (0.0, 0.0),
        |(weight, full), place| {
            if place.full { (weight, full + 1.0) } else { (weight + place.weight, full) }
        },
    )
}

/// Copies per unit of weight.
fn level(copies: f64, weight: f64) -> f64 {
    if weight > 0.0 { copies.max(0.0) / weight } else { 0.0 }
}

#[allow(clippy::cast_precision_loss, reason = "counts of members and copies are far below 2^52")]
fn float(count: usize) -> f64 {
    count as f64
}
