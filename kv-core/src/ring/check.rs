//! Every invariant of a layout, stated in one function.

use std::collections::BTreeMap;

use super::balance::{Portion, portions};
use super::{Entry, Layout, Member, PARTITIONS_MAX, fair_shares, zone_limit};
use crate::types::{Epoch, NodeId, PartitionId, StoreId};

/// The most members of a cluster.
pub const MEMBERS_MAX: usize = 4096;

/// The longest name of a member or a zone, in bytes: that of a DNS label.
pub const NAME_BYTES_MAX: usize = 63;

/// The least weight. The bounds keep sums of weights exact enough for shares.
pub const WEIGHT_MIN: f64 = 1e-6;

/// The greatest weight.
pub const WEIGHT_MAX: f64 = 1e6;

/// How far rounding may move a computed share. Shares are at most 2^24, and doubles have 52 bits.
const SHARE_ERROR: f64 = 1e-6;

/// Which invariant a layout breaks.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum LayoutError {
    /// The ring cannot be cut like this.
    #[error("a layout has {found} partitions; the number must be a power of two from 1 to {PARTITIONS_MAX}")]
    PartitionCount {
        /// How many.
        found: usize,
    },
    /// No copies wanted.
    #[error("a layout wants 0 copies of each partition; at least 1 is needed")]
    NoCopies,
    /// Nobody may own partitions.
    #[error("a layout has {members} members and all are spares; at least one must be able to own partitions")]
    NoOwners {
        /// How many members.
        members: usize,
    },
    /// Too many members.
    #[error("a layout has {found} members; at most {MEMBERS_MAX} are supported")]
    MemberCount {
        /// How many.
        found: usize,
    },
    /// A name that people could not type or that would not fit.
    #[error(
        "{node} is named {name:?}; a name has 1 to {NAME_BYTES_MAX} bytes, starts with a letter or digit and goes on \
         with letters, digits, '-', '_' and '.' (ASCII)"
    )]
    Name {
        /// The member.
        node: NodeId,
        /// Its name.
        name: String,
    },
    /// Two members share a name.
    #[error("{node} and {other} are both named {name:?}; give one of them another name")]
    NameTaken {
        /// A member.
        node: NodeId,
        /// The other.
        other: NodeId,
        /// The name.
        name: String,
    },
    /// A zone with a malformed name.
    #[error(
        "{node} is in zone {zone:?}; a zone's name has 1 to {NAME_BYTES_MAX} bytes, starts with a letter or digit and \
         goes on with letters, digits, '-', '_', '.' and '/' (ASCII)"
    )]
    Zone {
        /// The member.
        node: NodeId,
        /// Its zone.
        zone: String,
    },
    /// A weight that gives no share.
    #[error("{node} has weight {weight}; a weight is a number from {WEIGHT_MIN} to {WEIGHT_MAX}")]
    Weight {
        /// The member.
        node: NodeId,
        /// Its weight.
        weight: f64,
    },
    /// Two members share a data directory, so the second would count as a copy of the first.
    #[error("{node} and {other} both have store {store}; start one of them with an empty data directory")]
    StoreTaken {
        /// A member.
        node: NodeId,
        /// The other.
        other: NodeId,
        /// The store.
        store: StoreId,
    },
    /// An entry changed after the layout was made.
    #[error("{partition} changed at {changed}, after its layout's epoch {epoch}")]
    Changed {
        /// The partition.
        partition: PartitionId,
        /// The entry's epoch.
        changed: Epoch,
        /// The layout's.
        epoch: Epoch,
    },
    /// An owner entered after its entry last changed.
    #[error("{node} entered {partition} at {since}, after the entry's last change at {changed}")]
    Since {
        /// The partition.
        partition: PartitionId,
        /// The owner.
        node: NodeId,
        /// When it entered.
        since: Epoch,
        /// The entry's epoch.
        changed: Epoch,
    },
    /// An owner that is no member.
    #[error("{partition} is owned by {node}, which is no member")]
    NotMember {
        /// The partition.
        partition: PartitionId,
        /// The owner.
        node: NodeId,
    },
    /// An owner that is a spare.
    #[error("{partition} is owned by {node}, which is a spare")]
    Spare {
        /// The partition.
        partition: PartitionId,
        /// The owner.
        node: NodeId,
    },
    /// An owner twice.
    #[error("{partition} is owned by {node} twice")]
    OwnerTwice {
        /// The partition.
        partition: PartitionId,
        /// The owner.
        node: NodeId,
    },
    /// Too few or too many owners.
    #[error("{partition} has {found} owners; it must have {wanted}: as many as copies, or as members that may own")]
    OwnerCount {
        /// The partition.
        partition: PartitionId,
        /// How many.
        found: usize,
        /// How many there must be.
        wanted: usize,
    },
    /// Too many owners in one zone.
    #[error("{partition} has {found} owners in zone {zone}; {limit} are allowed, so that the zones hold equal parts")]
    ZoneCrowded {
        /// The partition.
        partition: PartitionId,
        /// The zone.
        zone: String,
        /// How many.
        found: usize,
        /// How many are allowed.
        limit: usize,
    },
    /// A migration that its entry does not describe soundly.
    #[error(
        "{partition} migrates in a way that cannot work: its new owners must be distinct, those that enter must copy from \
         old owners, and a settled layout has no migrations"
    )]
    Joint {
        /// The partition.
        partition: PartitionId,
    },
    /// A node holds too much or too little.
    #[error("{node} holds {found} copies; its fair share is {fair:.2}, and it may be at most one away")]
    Copies {
        /// The node.
        node: NodeId,
        /// How many it holds.
        found: u32,
        /// Its fair share.
        fair: f64,
    },
    /// A node has too many or too few primaries.
    #[error("{node} has {found} primaries; its fair share is {fair:.2}, and it may be at most one away")]
    FirstPlaces {
        /// The node.
        node: NodeId,
        /// How many it has.
        found: u32,
        /// Its fair share.
        fair: f64,
    },
}

/// Checks everything that is true of every layout. The numbers of owners, the zones and the balance are demanded of
/// settled layouts only.
///
/// # Errors
/// The first invariant that is broken.
pub fn check(layout: &Layout) -> Result<(), LayoutError> {
    check_size(layout.partitions.len(), layout.copies)?;
    check_members(&layout.members)?;
    for (partition, entry) in layout.partition_ids().zip(&layout.partitions) {
        check_entry(layout, partition, entry)?;
    }
    if layout.settled { check_balance(layout) } else { Ok(()) }
}

/// Checks what is true of an entry whether or not an operation runs.
fn check_entry(layout: &Layout, partition: PartitionId, entry: &Entry) -> Result<(), LayoutError> {
    if entry.changed > layout.epoch {
        return Err(LayoutError::Changed { partition, changed: entry.changed, epoch: layout.epoch });
    }
    for owners in entry.sets() {
        if owners.is_empty() {
            return Err(LayoutError::OwnerCount { partition, found: 0, wanted: layout.owners_per_partition() });
        }
        for (place, owner) in owners.iter().enumerate() {
            let node = owner.node;
            if !layout.members.contains_key(&node) {
                return Err(LayoutError::NotMember { partition, node });
            }
            if owners[..place].iter().any(|earlier| earlier.node == node) {
                return Err(LayoutError::OwnerTwice { partition, node });
            }
            if owner.since > entry.changed {
                return Err(LayoutError::Since { partition, node, since: owner.since, changed: entry.changed });
            }
        }
    }
    let joint = entry.joint.is_some();
    if joint && (layout.settled || !entry.is_valid()) { Err(LayoutError::Joint { partition }) } else { Ok(()) }
}

/// Checks that every partition has its owners, in distinct zones as far as there are enough, and every node its share.
fn check_balance(layout: &Layout) -> Result<(), LayoutError> {
    check_balance_within(layout, &|_| Slack::default())
}

/// Whether a layout without migrations is as a settled one.
pub(crate) fn is_balanced(layout: &Layout) -> bool {
    check_balance(layout).is_ok()
}

/// As [`check_balance`], with nodes that may be further from their fair share by what `slack` says.
pub(crate) fn check_balance_within(layout: &Layout, slack: &dyn Fn(NodeId) -> Slack) -> Result<(), LayoutError> {
    let rules = Rules::of(layout);
    for (partition, entry) in layout.partition_ids().zip(&layout.partitions) {
        if entry.owners.len() != rules.owners {
            return Err(LayoutError::OwnerCount { partition, found: entry.owners.len(), wanted: rules.owners });
        }
        let mut zones: Vec<&str> = Vec::with_capacity(entry.owners.len());
        for owner in &entry.owners {
            let node = owner.node;
            let member = layout.members.get(&node).ok_or(LayoutError::NotMember { partition, node })?;
            if member.spare {
                return Err(LayoutError::Spare { partition, node });
            }
            zones.push(&member.zone);
        }
        for zone in &zones {
            let found = zones.iter().filter(|other| *other == zone).count();
            if found > rules.zone_limit {
                let zone = (*zone).to_owned();
                return Err(LayoutError::ZoneCrowded { partition, zone, found, limit: rules.zone_limit });
            }
        }
    }
    for (node, Portion { copies, fair, first, first_fair }) in portions(layout, &rules) {
        let slack = slack(node);
        if is_beyond(copies, fair, slack.copies) {
            return Err(LayoutError::Copies { node, found: copies, fair });
        }
        if is_beyond(first, first_fair, slack.first) {
            return Err(LayoutError::FirstPlaces { node, found: first, fair: first_fair });
        }
    }
    Ok(())
}

/// Checks the numbers that shape a layout.
pub(crate) fn check_size(partitions: usize, copies: u8) -> Result<(), LayoutError> {
    if !partitions.is_power_of_two() || partitions > PARTITIONS_MAX as usize {
        return Err(LayoutError::PartitionCount { found: partitions });
    }
    if copies == 0 {
        return Err(LayoutError::NoCopies);
    }
    Ok(())
}

/// Checks the members by themselves.
pub(crate) fn check_members(members: &BTreeMap<NodeId, Member>) -> Result<(), LayoutError> {
    if members.len() > MEMBERS_MAX {
        return Err(LayoutError::MemberCount { found: members.len() });
    }
    if members.values().all(|member| member.spare) {
        return Err(LayoutError::NoOwners { members: members.len() });
    }
    let mut names: BTreeMap<&str, NodeId> = BTreeMap::new();
    let mut stores: BTreeMap<StoreId, NodeId> = BTreeMap::new();
    for (&node, member) in members {
        if !is_name(&member.name, b"-_.") {
            return Err(LayoutError::Name { node, name: member.name.clone() });
        }
        if !is_name(&member.zone, b"-_./") {
            return Err(LayoutError::Zone { node, zone: member.zone.clone() });
        }
        // Not a number is in no range.
        if !(WEIGHT_MIN..=WEIGHT_MAX).contains(&member.weight) {
            return Err(LayoutError::Weight { node, weight: member.weight });
        }
        if let Some(other) = names.insert(&member.name, node) {
            return Err(LayoutError::NameTaken { node, other, name: member.name.clone() });
        }
        if let Some(other) = stores.insert(member.store, node) {
            return Err(LayoutError::StoreTaken { node, other, store: member.store });
        }
    }
    Ok(())
}

fn is_name(name: &str, marks: &[u8]) -> bool {
    let bytes = name.as_bytes();
    bytes.len() <= NAME_BYTES_MAX
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || marks.contains(byte))
}

/// Whether a number is more than one away from a fair share.
pub(super) fn is_unfair(found: u32, fair: f64) -> bool {
    is_beyond(found, fair, (0, 0))
}

fn is_beyond(found: u32, fair: f64, (less, more): (u32, u32)) -> bool {
    let away = f64::from(found) - fair;
    away > 1.0 + f64::from(more) + SHARE_ERROR || -away > 1.0 + f64::from(less) + SHARE_ERROR
}

/// How far below and above its fair share a node may be, beyond what rounding brings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Slack {
    /// Copies.
    pub(crate) copies: (u32, u32),
    /// Primaries.
    pub(crate) first: (u32, u32),
}

/// What the members of a layout demand of its entries.
pub(crate) struct Rules {
    /// Owners of each partition.
    pub(crate) owners: usize,
    /// The most owners of one partition in one zone.
    pub(crate) zone_limit: usize,
    /// Fair shares of the members that may own.
    pub(crate) shares: BTreeMap<NodeId, f64>,
}

impl Rules {
    /// The rules of a layout whose members and size have been checked.
    pub(crate) fn of(layout: &Layout) -> Self {
        Self::new(&layout.members, layout.partition_count(), layout.copies)
    }

    /// The rules for members and a size that have been checked.
    pub(crate) fn new(members: &BTreeMap<NodeId, Member>, partitions: u32, copies: u8) -> Self {
        let mut zones: BTreeMap<&str, usize> = BTreeMap::new();
        for member in members.values().filter(|member| !member.spare) {
            *zones.entry(&member.zone).or_default() += 1;
        }
        let sizes: Vec<usize> = zones.into_values().collect();
        let owners = usize::from(copies).min(sizes.iter().sum());
        let zone_limit = zone_limit(&sizes, owners);
        Self { owners, zone_limit, shares: fair_shares(members, partitions, copies) }
    }

    /// The fair share of primaries of a node with this fair share of copies: each owner has the same part of its
    /// partitions' primaries.
    pub(crate) fn first_share(&self, share: f64) -> f64 {
        share / f64::from(u8::try_from(self.owners).unwrap_or(u8::MAX)).max(1.0)
    }
}
