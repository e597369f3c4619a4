//! How even a layout is: what a cancelled operation may have left that a settled layout does not have.

use std::collections::BTreeMap;

use super::check::{Rules, is_unfair};
use super::{Entry, Layout};
use crate::types::NodeId;

/// What one node holds, and what it should.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Portion {
    /// Copies of partitions.
    pub copies: u32,
    /// Its fair share of copies.
    pub fair: f64,
    /// Partitions in which it is the primary.
    pub first: u32,
    /// Its fair share of primaries.
    pub first_fair: f64,
}

impl Portion {
    /// Whether its copies or its primaries are more than one away from its fair share, as [`super::check`] tolerates it.
    #[must_use]
    pub fn is_unfair(&self) -> bool {
        is_unfair(self.copies, self.fair) || is_unfair(self.first, self.first_fair)
    }
}

/// How even a layout is. While an operation runs it is between two balances and says nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Balance {
    /// What the members hold that own partitions or may own them.
    pub portions: BTreeMap<NodeId, Portion>,
    /// Partitions with fewer copies than there must be.
    pub lacking: u32,
    /// Partitions with more copies than are wanted.
    pub extra: u32,
    /// Partitions with more copies in one zone than the zones demand.
    pub crowded: u32,
}

impl Balance {
    /// That of a layout.
    #[must_use]
    pub fn of(layout: &Layout) -> Self {
        let rules = Rules::of(layout);
        let mut balance = Self { portions: portions(layout, &rules), ..Self::default() };
        for entry in &layout.partitions {
            let owners = entry.owners.len();
            balance.lacking += u32::from(owners < rules.owners);
            balance.extra += u32::from(owners > rules.owners);
            balance.crowded += u32::from(is_crowded(layout, entry, rules.zone_limit));
        }
        balance
    }

    /// The nodes that are too far from their fair share.
    pub fn unfair(&self) -> impl Iterator<Item = (NodeId, &Portion)> {
        self.portions.iter().filter(|(_, portion)| portion.is_unfair()).map(|(&node, portion)| (node, portion))
    }

    /// Whether the layout is as a settled one: every node has its fair share, every partition its copies and zones.
    #[must_use]
    pub fn is_even(&self) -> bool {
        self.unfair().next().is_none() && self.lacking + self.extra + self.crowded == 0
    }
}

/// What the members hold that own partitions or may own them.
pub(crate) fn portions(layout: &Layout, rules: &Rules) -> BTreeMap<NodeId, Portion> {
    let new = |(&node, &fair): (&NodeId, &f64)| {
        (node, Portion { fair, first_fair: rules.first_share(fair), ..Portion::default() })
    };
    let mut portions: BTreeMap<NodeId, Portion> = rules.shares.iter().map(new).collect();
    for (node, (copies, first)) in held(layout) {
        let portion = portions.entry(node).or_default();
        (portion.copies, portion.first) = (copies, first);
    }
    portions
}

/// How many copies each owner holds, and of how many partitions it is the primary.
pub(crate) fn held(layout: &Layout) -> BTreeMap<NodeId, (u32, u32)> {
    let mut held: BTreeMap<NodeId, (u32, u32)> = BTreeMap::new();
    for (place, node) in layout.partitions.iter().flat_map(|entry| entry.nodes().enumerate()) {
        let (copies, first) = held.entry(node).or_default();
        *copies += 1;
        *first += u32::from(place == 0);
    }
    held
}

fn is_crowded(layout: &Layout, entry: &Entry, limit: usize) -> bool {
    let zone = |node: NodeId| layout.members.get(&node).map(|member| member.zone.as_str());
    entry.nodes().any(|node| entry.nodes().filter(|&other| zone(other) == zone(node)).count() > limit)
}
