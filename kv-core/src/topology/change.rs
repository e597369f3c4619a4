//! Changes: what an operator wants to be different.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::operation::Standing;
use super::{Refusal, RefusalKind};
use crate::ring::check::{check_members, check_size};
use crate::ring::{Layout, LayoutError, Member, zone_limit};
use crate::types::NodeId;

/// One staged intent. Several are planned together as one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Change {
    /// A spare begins to own partitions.
    Add {
        /// The spare.
        node: NodeId,
    },
    /// A node gives all its copies away and becomes a spare, which leaves the cluster when it holds nothing any more, unless
    /// it is added again before. A spare leaves at once.
    Remove {
        /// The node.
        node: NodeId,
    },
    /// A node that will not come back leaves the cluster. Its copies are made again from those of the survivors.
    RemoveDead {
        /// The node.
        node: NodeId,
    },
    /// A spare takes the places of another node, and its weight; that node becomes a spare and leaves as a removed one.
    Replace {
        /// Who gives its places away.
        old: NodeId,
        /// The spare that takes them.
        new: NodeId,
    },
    /// A node has another capacity.
    Weight {
        /// The node.
        node: NodeId,
        /// Its new weight.
        weight: f64,
    },
    /// A node is in another failure domain.
    Zone {
        /// The node.
        node: NodeId,
        /// Its new zone.
        zone: String,
    },
    /// Another number of copies is wanted.
    Copies {
        /// N, at least 1.
        copies: u8,
    },
    /// Every node gets its fair share, whatever the layout was before: evens out what a cancelled operation left.
    Rebalance,
}

impl Change {
    /// The change in the command language, with nodes as `name` calls them.
    #[must_use]
    pub fn command(&self, name: impl Fn(NodeId) -> String) -> String {
        match self {
            Self::Add { node } => format!("node add {}", name(*node)),
            Self::Remove { node } => format!("node remove {}", name(*node)),
            Self::RemoveDead { node } => format!("node remove {} --dead", name(*node)),
            Self::Replace { old, new } => format!("node replace {} {}", name(*old), name(*new)),
            Self::Weight { node, weight } => format!("node weight {} {weight}", name(*node)),
            Self::Zone { node, zone } => format!("node zone {} {zone}", name(*node)),
            Self::Copies { copies } => format!("copies {copies}"),
            Self::Rebalance => "rebalance".to_owned(),
        }
    }
}

/// As in the command language, with the numbers of nodes.
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.command(|node| node.to_string()))
    }
}

/// What the changes make of the members.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Target {
    pub(super) members: BTreeMap<NodeId, Member>,
    pub(super) copies: u8,
    /// Who takes whose places.
    pub(super) replaced: BTreeMap<NodeId, NodeId>,
    /// Nodes whose copies cannot be read.
    pub(super) dead: BTreeSet<NodeId>,
}

impl Target {
    /// Applies the changes to the members of a layout.
    ///
    /// # Errors
    /// If a change names an unknown node or one in the wrong state, contradicts another one, or leaves too few nodes or
    /// zones.
    pub(super) fn of(layout: &Layout, changes: &[Change]) -> Result<Self, Refusal> {
        if changes.is_empty() {
            return Err(Refusal::new(RefusalKind::Invalid, "no change is given", "name at least one"));
        }
        let mut target = Self {
            members: layout.members.clone(),
            copies: layout.copies,
            replaced: BTreeMap::new(),
            dead: BTreeSet::new(),
        };
        let mut placed = BTreeSet::new();
        let mut once = |node: NodeId| {
            if placed.insert(node) {
                return Ok(());
            }
            let reason = format!("two of the changes add, remove or replace {}", name(layout, node));
            Err(Refusal::new(RefusalKind::Invalid, reason, "keep one of them"))
        };
        for change in changes {
            match change {
                Change::Add { node } => {
                    once(*node)?;
                    target.spare(layout, *node)?.spare = false;
                }
                Change::Remove { node } => {
                    once(*node)?;
                    let member = target.member(*node)?;
                    if member.spare {
                        target.members.remove(node);
                    } else {
                        member.spare = true;
                    }
                }
                Change::RemoveDead { node } => {
                    once(*node)?;
                    target.member(*node)?;
                    target.members.remove(node);
                    target.dead.insert(*node);
                }
                Change::Replace { old, new } => {
                    once(*old)?;
                    once(*new)?;
                    target.replace(layout, *old, *new)?;
                }
                Change::Weight { node, weight } => target.member(*node)?.weight = *weight,
                Change::Zone { node, zone } => target.member(*node)?.zone.clone_from(zone),
                Change::Copies { copies } => target.copies = *copies,
                Change::Rebalance => {}
            }
        }
        target.check(layout)?;
        Ok(target)
    }

    fn member(&mut self, node: NodeId) -> Result<&mut Member, Refusal> {
        self.members.get_mut(&node).ok_or_else(|| {
            let remedy = "see `node ls`; a new node is started with --join first";
            Refusal::new(RefusalKind::NotFound, format!("{node} is no member of the cluster"), remedy)
        })
    }

    fn spare(&mut self, layout: &Layout, node: NodeId) -> Result<&mut Member, Refusal> {
        let member = self.member(node)?;
        if member.spare {
            return Ok(member);
        }
        let reason = format!("{} owns partitions already", name(layout, node));
        let remedy = if layout.settled {
            "name a spare; `node ls` lists them"
        } else {
            "`rebalance` gives it its fair share; or name a spare"
        };
        Err(Refusal::new(RefusalKind::Precondition, reason, remedy))
    }

    fn replace(&mut self, layout: &Layout, old: NodeId, new: NodeId) -> Result<(), Refusal> {
        let leaving = self.member(old)?;
        if leaving.spare {
            let reason = format!("{} is a spare, so it has no places to give away", name(layout, old));
            return Err(Refusal::new(RefusalKind::Precondition, reason, "add the other node instead"));
        }
        leaving.spare = true;
        let weight = leaving.weight;
        let coming = self.spare(layout, new)?;
        coming.spare = false;
        coming.weight = weight;
        self.replaced.insert(old, new);
        Ok(())
    }

    fn check(&self, layout: &Layout) -> Result<(), Refusal> {
        let owners = owning(&self.members);
        if owners.is_empty() {
            let remedy = "add another node in the same plan; the last one is stopped, not removed";
            return Err(Refusal::new(RefusalKind::Nodes, "no node would be left to own partitions", remedy));
        }
        let invalid = |error: LayoutError| {
            Refusal::new(RefusalKind::Invalid, error.to_string(), "nothing was planned; change what is named")
        };
        check_size(layout.partitions.len(), self.copies).map_err(invalid)?;
        check_members(&self.members).map_err(invalid)?;
        let before = owning(&layout.members);
        let left: Vec<NodeId> = before.iter().filter(|node| !owners.contains(node)).copied().collect();
        if left.is_empty() {
            return Ok(());
        }
        let names = left.iter().map(|&node| name(layout, node)).collect::<Vec<_>>().join(", ");
        if owners.len() < usize::from(self.copies).min(before.len()) {
            let reason = format!("without {names}, {} nodes are left for {} copies", owners.len(), self.copies);
            let remedy = format!("add a node first or in the same plan, or set copies to {} first", owners.len());
            return Err(Refusal::new(RefusalKind::Nodes, reason, remedy));
        }
        let wanted = usize::from(self.copies).min(owners.len());
        let limit_before = zone_limit(&zone_sizes(&layout.members), wanted);
        let limit = zone_limit(&zone_sizes(&self.members), wanted);
        if limit > limit_before {
            let zones: BTreeSet<&str> =
                left.iter().filter_map(|node| Some(layout.members.get(node)?.zone.as_str())).collect();
            let zones = zones.into_iter().collect::<Vec<_>>().join(", ");
            let reason = format!(
                "without {names}, a zone would hold {limit} of the {wanted} copies of some partitions instead of {limit_before}"
            );
            let remedy = format!("add a node in zone {zones} first or in the same plan, or lower the number of copies");
            return Err(Refusal::new(RefusalKind::Zones, reason, remedy));
        }
        Ok(())
    }
}

/// Whether changes that make these members and this number of copies of a layout leave who may own partitions, the weights
/// and zones of these and the number of copies as they are, and do not ask for a rebalance: then nothing has to move.
pub(super) fn asks_for_no_move(
    layout: &Layout,
    changes: &[Change],
    members: &BTreeMap<NodeId, Member>,
    copies: u8,
) -> bool {
    let owning = |members: &BTreeMap<NodeId, Member>| -> Vec<(NodeId, Standing)> {
        members.iter().filter(|(_, member)| !member.spare).map(|(&node, it)| (node, Standing::of(it))).collect()
    };
    !changes.contains(&Change::Rebalance) && copies == layout.copies && owning(members) == owning(&layout.members)
}

/// The name of a node for messages, or its number if it is no member.
pub(super) fn name(layout: &Layout, node: NodeId) -> String {
    layout.members.get(&node).map_or_else(|| node.to_string(), |member| member.name.clone())
}

fn owning(members: &BTreeMap<NodeId, Member>) -> BTreeSet<NodeId> {
    members.iter().filter(|(_, member)| !member.spare).map(|(&node, _)| node).collect()
}

fn zone_sizes(members: &BTreeMap<NodeId, Member>) -> Vec<usize> {
    let mut zones: BTreeMap<&str, usize> = BTreeMap::new();
    for member in members.values().filter(|member| !member.spare) {
        *zones.entry(&member.zone).or_default() += 1;
    }
    zones.into_values().collect()
}
