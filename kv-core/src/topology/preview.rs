//! What a plan means for the cluster: sizes, shares, safety, time and disks. Measured figures come in as [`Facts`]; the
//! plan and its hash do not depend on them.

use std::collections::{BTreeMap, BTreeSet};

use super::notice::{Notice, notices};
use super::{Change, Move, Plan, Refusal, RefusalKind};
use crate::ring::{Entry, Layout, Member, fair_shares};
use crate::types::{Epoch, NodeId, PartitionId};

/// The part of a disk that a move may fill, in percent of what is free: the rest is for compaction and for writes that
/// come meanwhile.
const DISK_FILL_PERCENT: u64 = 90;

/// Keys and bytes of one copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Keys.
    pub keys: u64,
    /// Bytes of keys and records.
    pub bytes: u64,
}

impl Size {
    fn add(&mut self, other: Self) {
        self.keys = self.keys.saturating_add(other.keys);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

/// How a node is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// It does not answer.
    pub down: bool,
    /// The 99th percentile of the latency of its requests, in microseconds; 0: unknown.
    pub latency_p99_us: u64,
    /// Bytes free on its device; `None`: unknown.
    pub disk_free: Option<u64>,
}

/// What is known of a cluster beside its layout. All of it may be missing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// What one copy of each partition holds. Partitions that are missing count as empty, and are reported.
    pub sizes: BTreeMap<PartitionId, Size>,
    /// How the nodes are.
    pub nodes: BTreeMap<NodeId, NodeFacts>,
    /// How fast each source may be read, in bytes a second; 0: no limit is known, and there is no estimate.
    pub bytes_per_second: u64,
}

/// What a node holds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Holding {
    /// Copies of partitions.
    pub copies: u32,
    /// Primaries.
    pub first: u32,
    /// The fair share of copies.
    pub fair: f64,
    /// Keys and bytes in its copies.
    pub size: Size,
}

/// What the plan does to one member.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeOutlook {
    /// The node.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// Its zone afterwards; where it leaves, its zone now.
    pub zone: String,
    /// Its weight now and afterwards; 0 where it is a spare or no member.
    pub weight: (f64, f64),
    /// What it holds now and afterwards.
    pub holds: (Holding, Holding),
    /// Its part of all copies now and afterwards, from 0 to 1.
    pub ownership: (f64, f64),
    /// Copies that it gets and that it gives away.
    pub moves: (u32, u32),
    /// Bytes that it must store beyond what it holds, before anything is dropped.
    pub disk_needed: u64,
    /// Bytes free on its device; `None`: unknown.
    pub disk_free: Option<u64>,
}

/// What travels from one node to another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Copies.
    pub moves: u32,
    /// Keys and bytes.
    pub size: Size,
}

/// What a zone has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZoneOutlook {
    /// Nodes that own partitions, now and afterwards.
    pub nodes: (u32, u32),
    /// Copies, now and afterwards.
    pub copies: (u32, u32),
}

/// What may fail. A partition survives a failure if a majority of its owners is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Safety {
    /// Owners of each partition now and afterwards.
    pub owners: (u32, u32),
    /// The fewest living copies of any partition during the moves: no copy is dropped before the new one is complete.
    pub copies_min: u32,
    /// Nodes that any partition survives the loss of: now, during the moves, and afterwards.
    pub nodes: (u32, u32, u32),
    /// The most owners of one partition in one zone, now and afterwards.
    pub zone_owners: (u32, u32),
    /// Whether any one zone may fail, now, during the moves, and afterwards.
    pub zone: (bool, bool, bool),
}

/// How long the moves take if every source is read as fast as it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Estimate {
    /// Seconds, rounded up.
    pub seconds: u64,
    /// The source that gives the most.
    pub source: NodeId,
    /// What it gives, in bytes.
    pub bytes: u64,
}

/// What a plan means.
#[derive(Clone, Debug, PartialEq)]
pub struct Preview {
    /// All moves together.
    pub size: Size,
    /// One copy of all partitions.
    pub total: Size,
    /// Partitions of whose size nothing is known; they count as empty.
    pub unknown: u32,
    /// The members, ascending by number, those that leave included.
    pub nodes: Vec<NodeOutlook>,
    /// What travels, by source and receiver.
    pub links: BTreeMap<(NodeId, NodeId), Link>,
    /// The zones by name.
    pub zones: BTreeMap<String, ZoneOutlook>,
    /// What may fail.
    pub safety: Safety,
    /// How long it takes; `None` without a limit, or without sizes.
    pub estimate: Option<Estimate>,
    /// What to know: why less moves than one might expect, and what could go wrong.
    pub notices: Vec<Notice>,
    /// Why the plan must not be carried out as things are; usually empty.
    pub refusals: Vec<Refusal>,
    /// The changes that lead back; empty where nothing does.
    pub undo: Vec<Change>,
}

/// The size of a move.
#[must_use]
pub fn size_of(facts: &Facts, step: &Move) -> Size {
    facts.sizes.get(&step.partition).copied().unwrap_or_default()
}

/// Tells what a plan means for `layout`, for which it was made.
///
/// # Errors
/// As [`Plan::target`].
pub fn preview(layout: &Layout, plan: &Plan, facts: &Facts) -> Result<Preview, Refusal> {
    let target = plan.target(layout, Epoch(layout.epoch.0.saturating_add(1)))?;
    let dead: BTreeSet<NodeId> =
        layout.members.keys().filter(|node| !plan.members.contains_key(node)).copied().collect();
    let mut links: BTreeMap<(NodeId, NodeId), Link> = BTreeMap::new();
    let mut size = Size::default();
    for step in &plan.moves {
        let link = links.entry((step.source, step.to)).or_default();
        link.moves += 1;
        link.size.add(size_of(facts, step));
        size.add(size_of(facts, step));
    }
    let mut total = Size::default();
    facts.sizes.values().for_each(|size| total.add(*size));
    let nodes = nodes(layout, &target, plan, facts);
    let zones = zones(layout, &target);
    let safety = safety(layout, &target, plan, &dead);
    let known = layout.partition_ids().filter(|partition| facts.sizes.contains_key(partition)).count();
    let mut preview = Preview {
        size,
        total,
        unknown: layout.partition_count().saturating_sub(u32::try_from(known).unwrap_or(u32::MAX)),
        estimate: estimate(&links, facts),
        refusals: refusals(&nodes),
        undo: undo(layout, &plan.changes),
        notices: Vec::new(),
        nodes,
        links,
        zones,
        safety,
    };
    preview.notices = notices(layout, &target, plan, facts, &preview);
    Ok(preview)
}

fn nodes(layout: &Layout, target: &Layout, plan: &Plan, facts: &Facts) -> Vec<NodeOutlook> {
    let (before, after) = (holdings(layout, facts), holdings(target, facts));
    let copies =
        |held: &BTreeMap<NodeId, Holding>| held.values().map(|holding| f64::from(holding.copies)).sum::<f64>().max(1.0);
    let (all_before, all_after) = (copies(&before), copies(&after));
    let mut got: BTreeMap<NodeId, (u32, u64)> = BTreeMap::new();
    let mut gave: BTreeMap<NodeId, u32> = BTreeMap::new();
    for step in &plan.moves {
        let got = got.entry(step.to).or_default();
        *got = (got.0 + 1, got.1.saturating_add(size_of(facts, step).bytes));
        step.from.into_iter().for_each(|from| *gave.entry(from).or_default() += 1);
    }
    // A weight counts for members that may own.
    let weight = |member: Option<&Member>| member.filter(|member| !member.spare).map_or(0.0, |member| member.weight);
    let outlook = |(&node, now): (&NodeId, &Member)| {
        let then = target.members.get(&node);
        let holds = (before.get(&node).copied().unwrap_or_default(), after.get(&node).copied().unwrap_or_default());
        let (copies_got, disk_needed) = got.get(&node).copied().unwrap_or_default();
        NodeOutlook {
            node,
            name: now.name.clone(),
            zone: then.unwrap_or(now).zone.clone(),
            weight: (weight(Some(now)), weight(then)),
            ownership: (f64::from(holds.0.copies) / all_before, f64::from(holds.1.copies) / all_after),
            holds,
            moves: (copies_got, gave.get(&node).copied().unwrap_or_default()),
            disk_needed,
            disk_free: facts.nodes.get(&node).and_then(|facts| facts.disk_free),
        }
    };
    layout.members.iter().map(outlook).collect()
}

fn holdings(layout: &Layout, facts: &Facts) -> BTreeMap<NodeId, Holding> {
    let mut held: BTreeMap<NodeId, Holding> = BTreeMap::new();
    for (partition, entry) in layout.partition_ids().zip(&layout.partitions) {
        for (place, node) in entry.nodes().enumerate() {
            let holding = held.entry(node).or_default();
            holding.copies += 1;
            holding.first += u32::from(place == 0);
            holding.size.add(facts.sizes.get(&partition).copied().unwrap_or_default());
        }
    }
    for (node, fair) in fair_shares(&layout.members, layout.partition_count(), layout.copies) {
        held.entry(node).or_default().fair = fair;
    }
    held
}

fn zones(layout: &Layout, target: &Layout) -> BTreeMap<String, ZoneOutlook> {
    let mut zones: BTreeMap<String, ZoneOutlook> = BTreeMap::new();
    let mut count = |layout: &Layout, pick: fn(&mut ZoneOutlook) -> (&mut u32, &mut u32)| {
        for member in layout.members.values().filter(|member| !member.spare) {
            *pick(zones.entry(member.zone.clone()).or_default()).0 += 1;
        }
        for member in layout.partitions.iter().flat_map(Entry::nodes).filter_map(|node| layout.members.get(&node)) {
            *pick(zones.entry(member.zone.clone()).or_default()).1 += 1;
        }
    };
    count(layout, |zone| (&mut zone.nodes.0, &mut zone.copies.0));
    count(target, |zone| (&mut zone.nodes.1, &mut zone.copies.1));
    zones
}

fn safety(layout: &Layout, target: &Layout, plan: &Plan, dead: &BTreeSet<NodeId>) -> Safety {
    let now = endurance(layout, dead);
    let then = endurance(target, &BTreeSet::new());
    // While a partition migrates, both its old and its new owners must be able to decide.
    let moving = |now: u32, then: u32| if plan.moves.is_empty() { now.max(then) } else { now.min(then) };
    Safety {
        owners: (count(layout.owners_per_partition()), count(target.owners_per_partition())),
        copies_min: now.living.min(then.living),
        nodes: (now.nodes, moving(now.nodes, then.nodes), then.nodes),
        zone_owners: (now.zone_owners, then.zone_owners),
        zone: (now.zone, now.zone && then.zone, then.zone),
    }
}

/// What the partition that endures least endures.
struct Endurance {
    living: u32,
    nodes: u32,
    zone_owners: u32,
    zone: bool,
}

fn endurance(layout: &Layout, dead: &BTreeSet<NodeId>) -> Endurance {
    let mut least = Endurance { living: u32::MAX, nodes: u32::MAX, zone_owners: 0, zone: true };
    for entry in &layout.partitions {
        let owners = entry.nodes().count();
        let majority = owners / 2 + 1;
        let living: Vec<NodeId> = entry.nodes().filter(|node| !dead.contains(node)).collect();
        let mut in_zone: BTreeMap<&str, usize> = BTreeMap::new();
        for member in living.iter().filter_map(|node| layout.members.get(node)) {
            *in_zone.entry(&member.zone).or_default() += 1;
        }
        let most = in_zone.into_values().max().unwrap_or(0);
        least.living = least.living.min(count(living.len()));
        least.nodes = least.nodes.min(count(living.len().saturating_sub(majority)));
        least.zone_owners = least.zone_owners.max(count(most));
        least.zone &= living.len() >= most + majority;
    }
    least
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn estimate(links: &BTreeMap<(NodeId, NodeId), Link>, facts: &Facts) -> Option<Estimate> {
    let mut sources: BTreeMap<NodeId, u64> = BTreeMap::new();
    for ((source, _), link) in links {
        let bytes = sources.entry(*source).or_default();
        *bytes = bytes.saturating_add(link.size.bytes);
    }
    let (source, bytes) = sources.into_iter().max_by_key(|&(source, bytes)| (bytes, std::cmp::Reverse(source)))?;
    (facts.bytes_per_second > 0 && !facts.sizes.is_empty()).then(|| Estimate {
        seconds: bytes.div_ceil(facts.bytes_per_second),
        source,
        bytes,
    })
}

fn refusals(nodes: &[NodeOutlook]) -> Vec<Refusal> {
    let full = |outlook: &NodeOutlook| {
        let free = outlook.disk_free?;
        let usable = free / 100 * DISK_FILL_PERCENT;
        (outlook.disk_needed > usable).then(|| {
            let (name, needed) = (&outlook.name, outlook.disk_needed);
            let reason =
                format!("{name} would get {needed} bytes, and {usable} of the {free} free bytes may be filled");
            let remedy = format!("free space on {name}, give it less weight, or add another node");
            Refusal::new(RefusalKind::Disk, reason, remedy)
        })
    };
    nodes.iter().filter_map(full).collect()
}

/// The changes that lead back to `layout`, in the order in which they are to be made; empty if none do.
#[must_use]
pub fn undo(layout: &Layout, changes: &[Change]) -> Vec<Change> {
    let mut back = Vec::new();
    for change in changes.iter().rev() {
        back.push(match change {
            Change::Add { node } => Change::Remove { node: *node },
            Change::Weight { node, .. } => match layout.members.get(node) {
                Some(member) => Change::Weight { node: *node, weight: member.weight },
                None => return Vec::new(),
            },
            Change::Zone { node, .. } => match layout.members.get(node) {
                Some(member) => Change::Zone { node: *node, zone: member.zone.clone() },
                None => return Vec::new(),
            },
            Change::Copies { .. } => Change::Copies { copies: layout.copies },
            // A node leaves when it has given its places away, and comes back as another one, if at all.
            Change::Remove { .. } | Change::RemoveDead { .. } | Change::Replace { .. } => return Vec::new(),
            // Nobody wants the unevenness back.
            Change::Rebalance => continue,
        });
    }
    back
}
