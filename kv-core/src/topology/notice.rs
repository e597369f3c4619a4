//! What to know about a plan: why it moves nothing or less than one might expect, what would help, and what could go
//! wrong while it is carried out.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::change::{asks_for_no_move, name};
use super::preview::{Facts, Preview};
use super::{Change, Plan};
use crate::ring::{Balance, Layout, Member, Portion, zone_limit};
use crate::types::NodeId;

/// A source this many times slower than the median one is called slow.
const SLOW_FACTOR: u64 = 3;

/// What a notice is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NoticeKind {
    /// Why nothing moves, or less than one might expect.
    Less,
    /// Something that could go wrong.
    Warning,
    /// The plan may not be optimal.
    Gap,
}

/// Something to know about a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// What it is about.
    pub kind: NoticeKind,
    /// What is so, with names and numbers.
    pub text: String,
    /// What would help; empty if nothing has to be done.
    pub help: String,
}

impl Notice {
    fn new(kind: NoticeKind, text: impl Into<String>, help: impl Into<String>) -> Self {
        Self { kind, text: text.into(), help: help.into() }
    }
}

pub(super) fn notices(layout: &Layout, target: &Layout, plan: &Plan, facts: &Facts, preview: &Preview) -> Vec<Notice> {
    let mut found = Vec::new();
    if plan.gap() > 0 {
        let text = format!(
            "{} moves are planned; that {} are not enough is proven",
            plan.moves.len(),
            plan.minimum.saturating_sub(1)
        );
        found.push(Notice::new(
            NoticeKind::Gap,
            text,
            "the plan is sound; fewer changes at once may be planned exactly",
        ));
    }
    found.extend(capped_copies(target));
    found.extend(capped_shares(target, plan));
    found.extend(walled_zones(layout, target, plan));
    found.extend(nothing_moves(layout, target, plan));
    found.extend(stays_uneven(layout, target));
    found.extend(weaker(layout, target, plan, preview));
    found.extend(sources(layout, plan, facts));
    if preview.unknown > 0 && !plan.moves.is_empty() {
        let text = format!(
            "the sizes of {} of {} partitions are not known and count as nothing",
            preview.unknown,
            layout.partition_count()
        );
        found.push(Notice::new(
            NoticeKind::Warning,
            text,
            "keys, bytes, time and disks may be more; bring all nodes into reach",
        ));
    }
    found
}

fn owning(layout: &Layout) -> impl Iterator<Item = (&NodeId, &Member)> {
    layout.members.iter().filter(|(_, member)| !member.spare)
}

/// More copies are wanted than there are nodes.
fn capped_copies(target: &Layout) -> Option<Notice> {
    let (wanted, kept) = (usize::from(target.copies), target.owners_per_partition());
    (wanted > kept).then(|| {
        let text = format!("{wanted} copies are wanted, and {kept} are kept, one on each node that may own");
        Notice::new(NoticeKind::Less, text, format!("add {} nodes", wanted - kept))
    })
}

/// Nodes that a change gives more weight than they can use.
fn capped_shares(target: &Layout, plan: &Plan) -> Vec<Notice> {
    let mut found = Vec::new();
    let shares = crate::ring::fair_shares(&target.members, target.partition_count(), target.copies);
    let all: f64 = owning(target).map(|(_, member)| member.weight).sum();
    let copies =
        f64::from(target.partition_count()) * shares.values().sum::<f64>() / f64::from(target.partition_count());
    for change in &plan.changes {
        let (Change::Add { node } | Change::Weight { node, .. } | Change::Replace { new: node, .. }) = change else {
            continue;
        };
        let (Some(member), Some(&fair)) = (target.members.get(node), shares.get(node)) else { continue };
        let asked = copies * member.weight / all.max(f64::MIN_POSITIVE);
        let label = &member.name;
        if fair < 1.0 {
            let text = format!("the fair share of {label} is {fair:.3} partitions, less than one, so it may get none");
            found.push(Notice::new(NoticeKind::Less, text, format!("give {label} more weight than {}", member.weight)));
        } else if asked > fair + 1.0 && fair + 1e-6 >= f64::from(target.partition_count()) {
            let text = format!(
                "by its weight {label} would hold {asked:.0} copies, but no node holds more than one copy of each of the {} partitions",
                target.partition_count()
            );
            found.push(Notice::new(NoticeKind::Less, text, "add more nodes, or lower the number of copies"));
        } else if asked > fair + 1.0 {
            let text = format!(
                "by its weight {label} would hold {asked:.0} copies; zone {} can hold only so many that its share is {fair:.0}",
                member.zone
            );
            found.push(Notice::new(NoticeKind::Less, text, "spread the weight evenly over the zones"));
        }
    }
    found
}

/// A node that is added relieves only its own zone where every zone holds its limit already.
fn walled_zones(layout: &Layout, target: &Layout, plan: &Plan) -> Vec<Notice> {
    let mut sizes: BTreeMap<&str, usize> = BTreeMap::new();
    owning(target).for_each(|(_, member)| *sizes.entry(&member.zone).or_default() += 1);
    let owners = target.owners_per_partition();
    let limit = zone_limit(&sizes.values().copied().collect::<Vec<_>>(), owners);
    // Only where the zones are exactly full does nothing cross their borders.
    if sizes.len() < 2 || limit * sizes.len() != owners {
        return Vec::new();
    }
    let mut found = Vec::new();
    for change in &plan.changes {
        let Change::Add { node } = change else { continue };
        let Some(member) = target.members.get(node) else { continue };
        let others = owning(layout).filter(|(_, other)| other.zone == member.zone).count();
        let existed = owning(layout).any(|(_, other)| other.zone == member.zone);
        if existed {
            let text = format!(
                "each of the {} zones holds {limit} of the {owners} copies of every partition, so {} relieves only the {others} other nodes of zone {}",
                sizes.len(),
                member.name,
                member.zone
            );
            found.push(Notice::new(
                NoticeKind::Less,
                text,
                "add a node to every zone, or a node in a new zone, to relieve all",
            ));
        }
    }
    found
}

fn nothing_moves(layout: &Layout, target: &Layout, plan: &Plan) -> Option<Notice> {
    if !plan.moves.is_empty() {
        return None;
    }
    let less = |text: String, help: &str| Some(Notice::new(NoticeKind::Less, text, help));
    let (before, after) = (layout.owners_per_partition(), target.owners_per_partition());
    let nodes = owning(target).count();
    if after < before {
        return less(format!("nothing moves: each partition drops {} of its {before} copies", before - after), "");
    }
    if plan.changes.iter().all(|change| matches!(change, Change::Remove { .. } | Change::RemoveDead { .. })) {
        return less("nothing moves: the nodes that leave own no partitions".to_owned(), "");
    }
    if nodes == after {
        let text = format!(
            "nothing moves: {nodes} nodes hold {after} copies, so every node holds every partition whatever its weight"
        );
        return less(text, "add nodes, or lower the number of copies");
    }
    if asks_for_no_move(layout, &plan.changes, &plan.members, plan.copies) {
        return less("nothing moves: who owns partitions, and how much of them, stays as it is".to_owned(), "");
    }
    if plan.changes.contains(&Change::Rebalance) {
        return less(
            "nothing moves: every node holds its fair share already, rounded to whole partitions".to_owned(),
            "",
        );
    }
    less(
        "nothing moves: every node holds its fair share already, rounded to whole partitions".to_owned(),
        "a greater change of weight moves more",
    )
}

/// The layout was uneven, and is so afterwards: nobody asked for the moves that would even it out.
fn stays_uneven(layout: &Layout, target: &Layout) -> Option<Notice> {
    if target.settled {
        return None;
    }
    let holds = |(node, portion): (NodeId, &Portion)| {
        format!("{} holds {} copies of its fair share of {:.0}", name(target, node), portion.copies, portion.fair)
    };
    let balance = Balance::of(target);
    let away = |portion: &Portion| (f64::from(portion.copies) - portion.fair).abs();
    let worst = balance.unfair().max_by(|one, other| away(one.1).total_cmp(&away(other.1)));
    let worst = worst.map_or_else(|| "not every partition has its copies".to_owned(), holds);
    let was = if layout.settled { "" } else { ", as it was before" };
    let text = format!("afterwards the copies are not spread evenly{was}: {worst}");
    Some(Notice::new(NoticeKind::Less, text, "rebalance evens it out"))
}

fn weaker(layout: &Layout, target: &Layout, plan: &Plan, preview: &Preview) -> Vec<Notice> {
    let mut found = Vec::new();
    let safety = &preview.safety;
    if safety.zone.0 && !safety.zone.2 {
        let text = format!(
            "afterwards a zone holds {} of the {} copies of some partitions, so its failure stops them",
            safety.zone_owners.1, safety.owners.1
        );
        found.push(Notice::new(NoticeKind::Warning, text, "add nodes in other zones"));
    }
    if safety.nodes.2 < safety.nodes.0 {
        let text = format!("afterwards {} nodes may fail instead of {}", safety.nodes.2, safety.nodes.0);
        found.push(Notice::new(NoticeKind::Warning, text, "keep more copies"));
    }
    let dead: Vec<String> = plan
        .changes
        .iter()
        .filter_map(|change| match change {
            Change::RemoveDead { node } => Some(name(layout, *node)),
            _ => None,
        })
        .collect();
    let majority = u32::try_from(layout.owners_per_partition() / 2 + 1).unwrap_or(u32::MAX);
    if !dead.is_empty() && safety.copies_min < majority {
        let text = format!(
            "without {} some partitions have {} of {} copies left, no majority: writes that only lost copies confirmed are gone",
            dead.join(", "),
            safety.copies_min,
            safety.owners.0
        );
        found.push(Notice::new(
            NoticeKind::Warning,
            text,
            "start a lost node again if its disk still exists, and remove it without --dead",
        ));
    }
    for change in &plan.changes {
        let Change::Replace { old, new } = change else { continue };
        let (Some(was), Some(now), Some(is)) =
            (layout.members.get(new), layout.members.get(old), target.members.get(new))
        else {
            continue;
        };
        if (was.weight - is.weight).abs() > f64::EPSILON {
            let text = format!(
                "{} takes over the weight of {}, {}, instead of its own, {}",
                is.name, now.name, is.weight, was.weight
            );
            found.push(Notice::new(
                NoticeKind::Warning,
                text,
                format!("afterwards: node weight {} {}", is.name, was.weight),
            ));
        }
    }
    found
}

/// Sources that are down or slow.
fn sources(layout: &Layout, plan: &Plan, facts: &Facts) -> Vec<Notice> {
    let mut read: BTreeMap<NodeId, u32> = BTreeMap::new();
    for step in &plan.moves {
        *read.entry(step.source).or_default() += 1;
    }
    let mut latencies: Vec<u64> = facts.nodes.values().map(|facts| facts.latency_p99_us).filter(|&us| us > 0).collect();
    latencies.sort_unstable();
    let median = latencies.get(latencies.len().saturating_sub(1) / 2).copied().unwrap_or(0);
    let mut found = Vec::new();
    for (source, moves) in read {
        let Some(facts) = facts.nodes.get(&source) else { continue };
        let (label, all) = (name(layout, source), plan.moves.len());
        if facts.down {
            let text = format!(
                "{label} is down; {moves} of the {all} moves would be read from it, and are read from other owners"
            );
            found.push(Notice::new(NoticeKind::Warning, text, format!("start {label}, or remove it with --dead")));
        } else if median > 0 && facts.latency_p99_us > median.saturating_mul(SLOW_FACTOR) {
            let millis = facts.latency_p99_us / 1000;
            let text = format!("{label} is slow now (p99 {millis} ms); {moves} of the {all} moves are read from it");
            found.push(Notice::new(NoticeKind::Warning, text, "wait until it has recovered, or expect more time"));
        }
    }
    found
}
