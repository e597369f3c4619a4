//! The planner: a pure function from a layout and changes to a plan.

use std::collections::BTreeMap;

use super::assign::{Problem, assign};
use super::change::{Target, asks_for_no_move, name};
use super::places::{List, arrange, choose_first};
use super::slack::{first_bounds, rounded, slack, widened};
use super::{Change, Move, PartitionChange, Plan, PlanHash, Refusal, RefusalKind};
use crate::ring::check::{Rules, Slack};
use crate::ring::first::{Deal, Nodes};
use crate::ring::{self, Layout};
use crate::types::{Epoch, NodeId, PartitionId};

/// Plans changes of a layout: pure and deterministic.
///
/// In the layout that the plan leads to, each node holds its fair share of copies and of primaries, rounded down or
/// up; where the layout was uneven, and the changes are not to rebalance it, no node is further from its share than it
/// was. Among all such layouts the plan moves the fewest replicas; `Plan::gap` is 0 where that is proven, which is
/// always unless the search gives up.
///
/// # Errors
/// If the layout is not sound, or the changes are refused, with the reason and the remedy.
pub fn plan(layout: &Layout, changes: &[Change]) -> Result<Plan, Refusal> {
    ring::check(layout).map_err(|error| {
        let remedy = "a plan needs a sound layout; this is a fault of the software, please report it";
        Refusal::new(RefusalKind::Stale, format!("layout {} is not sound: {error}", layout.epoch), remedy)
    })?;
    if let Some(partition) = layout.partition_ids().find(|&id| layout.entry(id).is_some_and(|it| it.joint.is_some())) {
        let reason = format!("{partition} is migrating: an operation is under way");
        let remedy = "wait for it or cancel it; `op ls` shows it";
        return Err(Refusal::new(RefusalKind::Running, reason, remedy));
    }
    let target = Target::of(layout, changes)?;
    let mut plan = Plan {
        hash: PlanHash::default(),
        cluster: layout.cluster,
        parent: layout.epoch,
        changes: changes.to_vec(),
        moves: Vec::new(),
        partitions: Vec::new(),
        copies: target.copies,
        members: target.members.clone(),
        minimum: 0,
    };
    if !asks_for_no_move(layout, changes, &target.members, target.copies) {
        (plan.moves, plan.partitions, plan.minimum) = placed(layout, &target, &slack(layout, changes))?;
    }
    plan.hash = plan.computed_hash();
    plan.target(layout, Epoch(layout.epoch.0.saturating_add(1)))?;
    Ok(plan)
}

/// Who moves where, which preference lists change, and how few moves there could be.
type Placed = (Vec<Move>, Vec<PartitionChange>, u64);

fn placed(layout: &Layout, target: &Target, slack: &BTreeMap<NodeId, Slack>) -> Result<Placed, Refusal> {
    let rules = Rules::new(&target.members, layout.partition_count(), target.copies);
    let nodes = Nodes::new(&target.members, &rules, layout.partition_count());
    let fair = Deal::wrap_around(&nodes, layout.partitions.len(), rules.owners);
    let index: BTreeMap<NodeId, u32> = nodes.ids.iter().copied().zip(0..).collect();
    let slack_of = |id: &NodeId| slack.get(id).copied().unwrap_or_default();

    let bounds = nodes.ids.iter().zip(&nodes.quotas).map(|(id, &quota)| {
        let (least, most) = widened(rounded(rules.shares[id]), slack_of(id).copies);
        (least.min(quota), most.max(quota).min(layout.partition_count()))
    });
    let problem = problem(layout, target, &rules, &nodes, &index, bounds.collect());
    let solution = assign(&problem, &fair.places).ok_or_else(unsolved)?;
    let mut lists = lists(layout, target, &nodes, &index, &solution.places);
    let first = nodes.ids.iter().map(|id| {
        let copies = widened(rounded(rules.shares[id]), slack_of(id).copies);
        widened(first_bounds(copies, rules.owners), slack_of(id).first)
    });
    if !choose_first(&mut lists, &first.collect::<Vec<_>>()) {
        return Err(unsolved());
    }
    // A place that an heir takes costs one less than a move of `cost_new`, and all heirs together cost less than one.
    let minimum = solution.bound.max(0).unsigned_abs().div_ceil(u64::from(problem.cost_new.unsigned_abs()));
    Ok((moves(layout, target, &nodes, &lists)?, changed(layout, &nodes, &lists), minimum))
}

fn unsolved() -> Refusal {
    let remedy = "please report the layout and the changes";
    Refusal::new(RefusalKind::Invalid, "no layout with fair shares was found, which is a fault of the planner", remedy)
}

/// What the assignment has to keep, and what it costs.
fn problem(
    layout: &Layout,
    target: &Target,
    rules: &Rules,
    nodes: &Nodes,
    index: &BTreeMap<NodeId, u32>,
    bounds: Vec<(u32, u32)>,
) -> Problem {
    let mut heirs = 0;
    for node in layout.partitions.iter().flat_map(|entry| entry.nodes()) {
        heirs += i32::from(target.replaced.contains_key(&node));
    }
    // That an heir takes exactly the places that it inherits is worth something, but never a move.
    let cost_new = heirs.saturating_add(1);
    let cheap = |entry: &ring::Entry| {
        let mut list: Vec<(u32, i32)> = entry.nodes().filter_map(|node| Some((*index.get(&node)?, 0))).collect();
        for heir in entry.nodes().filter_map(|node| target.replaced.get(&node)) {
            list.extend(index.get(heir).map(|&heir| (heir, cost_new - 1)));
        }
        list
    };
    Problem {
        zones: nodes.zones.clone(),
        zone_limit: u32::try_from(rules.zone_limit).unwrap_or(u32::MAX),
        owners: rules.owners,
        bounds,
        cheap: layout.partitions.iter().map(cheap).collect(),
        cost_new,
    }
}

fn lists(
    layout: &Layout,
    target: &Target,
    nodes: &Nodes,
    index: &BTreeMap<NodeId, u32>,
    places: &[Vec<u32>],
) -> Vec<List> {
    // Zones by name: a leaving owner may be the last of its zone.
    let mut zone_numbers: BTreeMap<&str, u32> = BTreeMap::new();
    for (id, &zone) in nodes.ids.iter().zip(&nodes.zones) {
        zone_numbers.extend(target.members.get(id).map(|member| (member.zone.as_str(), zone)));
    }
    let zone_of = |node: &NodeId| {
        let member = target.members.get(node).or_else(|| layout.members.get(node));
        member.and_then(|member| zone_numbers.get(member.zone.as_str())).copied().unwrap_or(u32::MAX)
    };
    let zones: BTreeMap<NodeId, u32> = layout.members.keys().map(|node| (*node, zone_of(node))).collect();
    let list = |(entry, owners): (&ring::Entry, &Vec<u32>)| {
        let old: Vec<Option<u32>> = entry.nodes().map(|node| index.get(&node).copied()).collect();
        let old_zones: Vec<u32> = entry.nodes().map(|node| zones.get(&node).copied().unwrap_or(u32::MAX)).collect();
        let heir = |(at, node)| Some((at, *index.get(target.replaced.get(&node)?)?));
        let heirs: Vec<(usize, u32)> = entry.nodes().enumerate().filter_map(heir).collect();
        arrange(&old, &heirs, owners, &old_zones, &nodes.zones)
    };
    layout.partitions.iter().zip(places).map(list).collect()
}

fn changed(layout: &Layout, nodes: &Nodes, lists: &[List]) -> Vec<PartitionChange> {
    let change = |((partition, entry), list): ((PartitionId, &ring::Entry), &List)| {
        let owners: Vec<NodeId> = list.owners.iter().map(|&at| nodes.ids[at as usize]).collect();
        (!entry.nodes().eq(owners.iter().copied())).then_some(PartitionChange { partition, owners })
    };
    layout.partition_ids().zip(&layout.partitions).zip(lists).filter_map(change).collect()
}

/// The replicas that move. A source that is not the leaving owner itself is the one that is read from least.
fn moves(layout: &Layout, target: &Target, nodes: &Nodes, lists: &[List]) -> Result<Vec<Move>, Refusal> {
    let mut moves = Vec::new();
    let mut read: BTreeMap<NodeId, u32> = BTreeMap::new();
    let mut lost: Vec<PartitionId> = Vec::new();
    for ((partition, entry), list) in layout.partition_ids().zip(&layout.partitions).zip(lists) {
        let living = || entry.nodes().filter(|node| !target.dead.contains(node));
        if living().next().is_none() {
            lost.push(partition);
        }
        for &(to, place) in &list.entering {
            let from = place.and_then(|at| entry.nodes().nth(at));
            let idle = || living().min_by_key(|node| read.get(node).copied().unwrap_or(0));
            let Some(source) = from.filter(|node| !target.dead.contains(node)).or_else(idle) else { continue };
            *read.entry(source).or_default() += 1;
            moves.push(Move { partition, from, to: nodes.ids[to as usize], source });
        }
    }
    if let Some(first) = lost.first() {
        let names = target.dead.iter().map(|&node| name(layout, node)).collect::<Vec<_>>().join(", ");
        let reason =
            format!("{names} holds the only copies of {} partitions, {first} first, which would be lost", lost.len());
        let remedy = "start it again with its data directory, then remove it without --dead";
        return Err(Refusal::new(RefusalKind::Data, reason, remedy));
    }
    Ok(moves)
}
