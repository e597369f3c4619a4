//! Changes and plans as they travel.

use std::collections::BTreeMap;

use kv_core::error::{Kind, RequestError};
use kv_core::ring::{Layout, MEMBERS_MAX};
use kv_core::topology::preview::{Facts, Holding, NodeFacts, NodeOutlook, Preview, Size, size_of};
use kv_core::topology::{self, Change, NoticeKind, Plan, Refusal, RefusalKind};
use kv_core::types::{NodeId, PartitionId};

use crate::peer::missing;
use crate::v1;
use crate::v1::change::Change as Kinds;

/// The most changes of one plan: one for each member that there can be.
pub const CHANGES_MAX: usize = MEMBERS_MAX;

/// What to plan, valid by itself.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanQuestion {
    /// The changes.
    pub changes: Vec<Change>,
    /// What the caller knows of the cluster.
    pub facts: Facts,
}

impl PlanQuestion {
    /// Reads a request. `layout` says which partitions there are.
    ///
    /// # Errors
    /// `Invalid` with the field and the limit.
    pub fn from_wire(wire: v1::PlanRequest, layout: &Layout) -> Result<Self, RequestError> {
        let count = wire.changes.len();
        if !(1..=CHANGES_MAX).contains(&count) {
            return Err(RequestError::invalid(format!("changes: are {count}, 1 to {CHANGES_MAX} are allowed")));
        }
        let changes = wire.changes.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?;
        let mut sizes = BTreeMap::new();
        for size in wire.sizes {
            let id = u16::try_from(size.partition).ok().map(PartitionId).filter(|&id| layout.entry(id).is_some());
            let id = id.ok_or_else(|| {
                let last = layout.partition_count().saturating_sub(1);
                RequestError::invalid(format!("sizes: partition {} is beyond the last one, {last}", size.partition))
            })?;
            if sizes.insert(id, Size { keys: size.keys, bytes: size.bytes }).is_some() {
                return Err(RequestError::invalid(format!("sizes: partition {} is given twice", size.partition)));
            }
        }
        if wire.nodes.len() > MEMBERS_MAX {
            let found = wire.nodes.len();
            return Err(RequestError::invalid(format!("nodes: are {found}, at most {MEMBERS_MAX} are allowed")));
        }
        let facts = |node: v1::NodeCondition| {
            let facts =
                NodeFacts { down: node.down, latency_p99_us: node.latency_p99_us, disk_free: node.disk_free_bytes };
            (NodeId(node.node), facts)
        };
        let nodes = wire.nodes.into_iter().map(facts).collect();
        Ok(Self { changes, facts: Facts { sizes, nodes, bytes_per_second: wire.bytes_per_second } })
    }
}

impl From<&Change> for v1::Change {
    fn from(change: &Change) -> Self {
        let change = match change {
            Change::Add { node } => Kinds::Add(node.0),
            Change::Remove { node } => Kinds::Remove(node.0),
            Change::RemoveDead { node } => Kinds::RemoveDead(node.0),
            Change::Replace { old, new } => Kinds::Replace(v1::ReplaceNode { old: old.0, new: new.0 }),
            Change::Weight { node, weight } => Kinds::Weight(v1::SetWeight { node: node.0, weight: *weight }),
            Change::Zone { node, zone } => Kinds::Zone(v1::SetZone { node: node.0, zone: zone.clone() }),
            Change::Copies { copies } => Kinds::Copies(u32::from(*copies)),
            Change::Rebalance => Kinds::Rebalance(v1::Rebalance {}),
        };
        Self { change: Some(change) }
    }
}

impl TryFrom<v1::Change> for Change {
    type Error = RequestError;

    fn try_from(wire: v1::Change) -> Result<Self, RequestError> {
        Ok(match wire.change.ok_or_else(|| missing("changes.change"))? {
            Kinds::Add(node) => Self::Add { node: NodeId(node) },
            Kinds::Remove(node) => Self::Remove { node: NodeId(node) },
            Kinds::RemoveDead(node) => Self::RemoveDead { node: NodeId(node) },
            Kinds::Replace(replace) => Self::Replace { old: NodeId(replace.old), new: NodeId(replace.new) },
            Kinds::Weight(set) => Self::Weight { node: NodeId(set.node), weight: set.weight },
            Kinds::Zone(set) => Self::Zone { node: NodeId(set.node), zone: set.zone },
            Kinds::Rebalance(v1::Rebalance {}) => Self::Rebalance,
            Kinds::Copies(copies) => match u8::try_from(copies) {
                Ok(copies) if copies > 0 => Self::Copies { copies },
                _ => {
                    let message = format!("changes.copies: is {copies}, 1 to {} are allowed", u8::MAX);
                    return Err(RequestError::invalid(message));
                }
            },
        })
    }
}

/// Answers a request to plan: pure, and at most a few seconds of work for the largest layouts.
///
/// # Errors
/// `Invalid` for what the request gets wrong, and refused changes as [`refusal_to_error`] says.
pub fn answer(request: v1::PlanRequest, layout: &Layout) -> Result<v1::PlanResponse, RequestError> {
    let PlanQuestion { changes, facts } = PlanQuestion::from_wire(request, layout)?;
    let plan = topology::plan(layout, &changes).map_err(|refusal| refusal_to_error(&refusal))?;
    let preview = topology::preview(layout, &plan, &facts).map_err(|refusal| refusal_to_error(&refusal))?;
    Ok(plan_to_wire(&plan, &preview, &facts))
}

/// A refused change as an error.
#[must_use]
pub fn refusal_to_error(refusal: &Refusal) -> RequestError {
    let kind = match refusal.kind {
        RefusalKind::NotFound => Kind::NotFound,
        RefusalKind::Invalid => Kind::Invalid,
        RefusalKind::Precondition
        | RefusalKind::Running
        | RefusalKind::Nodes
        | RefusalKind::Zones
        | RefusalKind::Data
        | RefusalKind::Disk
        | RefusalKind::Stale => Kind::Conflict,
    };
    RequestError::new(kind, refusal.to_string())
}

/// A plan and what it means.
#[must_use]
pub fn plan_to_wire(plan: &Plan, preview: &Preview, facts: &Facts) -> v1::PlanResponse {
    let moves = plan.moves.iter().map(|step| {
        let Size { keys, bytes } = size_of(facts, step);
        v1::Move {
            partition: u32::from(step.partition.0),
            from: step.from.map_or(0, |from| from.0),
            to: step.to.0,
            source: step.source.0,
            keys,
            bytes,
        }
    });
    let partitions = plan.partitions.iter().map(|change| v1::PartitionChange {
        partition: u32::from(change.partition.0),
        owners: change.owners.iter().map(|owner| owner.0).collect(),
    });
    let links = preview.links.iter().map(|(&(source, to), link)| v1::PlanLink {
        source: source.0,
        to: to.0,
        moves: link.moves,
        size: Some(link.size.into()),
    });
    let zones = preview.zones.iter().map(|(zone, outlook)| v1::PlanZone {
        zone: zone.clone(),
        nodes_before: outlook.nodes.0,
        nodes_after: outlook.nodes.1,
        copies_before: outlook.copies.0,
        copies_after: outlook.copies.1,
    });
    let notices = preview.notices.iter().map(|notice| v1::PlanNotice {
        kind: match notice.kind {
            NoticeKind::Less => v1::PlanNoticeKind::Less.into(),
            NoticeKind::Warning => v1::PlanNoticeKind::Warning.into(),
            NoticeKind::Gap => v1::PlanNoticeKind::Gap.into(),
        },
        text: notice.text.clone(),
        help: notice.help.clone(),
    });
    let refusal =
        |refusal: &Refusal| v1::PlanRefusal { reason: refusal.reason.clone(), remedy: refusal.remedy.clone() };
    v1::PlanResponse {
        hash: plan.hash.to_string(),
        parent_epoch: plan.parent.0,
        changes: plan.changes.iter().map(Into::into).collect(),
        copies: u32::from(plan.copies),
        partitions: partitions.collect(),
        moves: moves.collect(),
        moves_minimum: plan.minimum,
        size: Some(preview.size.into()),
        total: Some(preview.total.into()),
        partitions_unknown: preview.unknown,
        nodes: preview.nodes.iter().map(Into::into).collect(),
        links: links.collect(),
        zones: zones.collect(),
        safety: Some(safety(preview)),
        estimate: preview.estimate.map(|estimate| v1::PlanEstimate {
            seconds: estimate.seconds,
            source: estimate.source.0,
            bytes: estimate.bytes,
        }),
        notices: notices.collect(),
        refusals: preview.refusals.iter().map(refusal).collect(),
        undo: preview.undo.iter().map(Into::into).collect(),
    }
}

fn safety(preview: &Preview) -> v1::PlanSafety {
    let safety = &preview.safety;
    v1::PlanSafety {
        owners_before: safety.owners.0,
        owners_after: safety.owners.1,
        copies_min: safety.copies_min,
        failures_before: safety.nodes.0,
        failures_during: safety.nodes.1,
        failures_after: safety.nodes.2,
        zone_owners_before: safety.zone_owners.0,
        zone_owners_after: safety.zone_owners.1,
        zone_failure_before: safety.zone.0,
        zone_failure_during: safety.zone.1,
        zone_failure_after: safety.zone.2,
    }
}

impl From<Size> for v1::PlanSize {
    fn from(size: Size) -> Self {
        Self { keys: size.keys, bytes: size.bytes }
    }
}

impl From<&NodeOutlook> for v1::PlanNode {
    fn from(outlook: &NodeOutlook) -> Self {
        let holding = |holding: &Holding, ownership: f64, weight: f64| v1::PlanHolding {
            copies: holding.copies,
            primary: holding.first,
            fair_share: holding.fair,
            ownership,
            weight,
            size: Some(holding.size.into()),
        };
        Self {
            node: outlook.node.0,
            name: outlook.name.clone(),
            zone: outlook.zone.clone(),
            before: Some(holding(&outlook.holds.0, outlook.ownership.0, outlook.weight.0)),
            after: Some(holding(&outlook.holds.1, outlook.ownership.1, outlook.weight.1)),
            moves_in: outlook.moves.0,
            moves_out: outlook.moves.1,
            disk_needed_bytes: outlook.disk_needed,
            disk_free_bytes: outlook.disk_free,
        }
    }
}
