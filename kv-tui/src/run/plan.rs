//! A plan for people and for scripts.

use std::collections::BTreeMap;
use std::time::Duration;

use kv_core::topology::Change;
use kv_core::types::NodeId;
use kv_proto::v1;
use serde_json::{Value, json};

use crate::command::for_shell;
use crate::error::CommandError;
use crate::observe::snapshot::ClusterSnapshot;
use crate::output::table::Table;
use crate::output::time::{short, size};
use crate::output::{Human, Item, Sink};

/// A map of the partitions is drawn up to this many.
const MAP_PARTITIONS_MAX: u32 = 1024;

/// Partitions in one row of the map, and in one group of it.
const MAP_COLUMNS: usize = 64;
const MAP_GROUP: usize = 16;

/// One letter for each node of the map, in the order of their numbers.
const LETTERS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// Prints a plan.
pub(super) fn show(
    cluster: &ClusterSnapshot,
    plan: &v1::PlanResponse,
    bytes_per_second: u64,
    sink: &mut dyn Sink,
) -> Result<(), CommandError> {
    let names = Names(cluster);
    sink.item(Item {
        json: plan_json(&names, plan, bytes_per_second),
        raw: format!("{}\n", plan.hash).into_bytes(),
        human: Human::Text(text(&names, plan, bytes_per_second)?),
    })
}

/// The names of the members.
pub(super) struct Names<'a>(pub(super) &'a ClusterSnapshot);

impl Names<'_> {
    fn of(&self, node: u64) -> String {
        self.0.description.name_of(NodeId(node))
    }

    /// A change in the command language.
    fn command(&self, change: &v1::Change) -> String {
        match Change::try_from(change.clone()) {
            Ok(change) => change.command(|node| self.of(node.0)),
            Err(error) => format!("a change that this build does not know ({error})"),
        }
    }

    /// The one command that asks for the changes.
    fn whole(&self, changes: &[v1::Change]) -> Option<String> {
        let changes: Vec<Change> = changes.iter().filter_map(|change| change.clone().try_into().ok()).collect();
        let (last, before) = changes.split_last()?;
        let mut command = self.command(&last.into());
        for change in before {
            match (change, last) {
                (Change::Zone { node, zone }, Change::Add { node: added }) if node == added => {
                    command.push_str(&format!(" --zone {zone}"));
                }
                (Change::Weight { node, weight }, Change::Add { node: added }) if node == added => {
                    command.push_str(&format!(" --weight {weight}"));
                }
                _ => return None,
            }
        }
        Some(command)
    }
}

pub(super) fn plan_json(names: &Names<'_>, plan: &v1::PlanResponse, bytes_per_second: u64) -> Value {
    let safety = plan.safety.unwrap_or_default();
    let (moved, total) = (plan.size.unwrap_or_default(), plan.total.unwrap_or_default());
    let moves = plan.moves.iter().map(|step| {
        json!({
            "partition": step.partition,
            "from": (step.from > 0).then(|| names.of(step.from)),
            "to": names.of(step.to),
            "source": names.of(step.source),
            "keys": step.keys,
            "bytes": step.bytes,
        })
    });
    let partitions = plan.partitions.iter().map(|change| {
        let owners: Vec<String> = change.owners.iter().map(|&owner| names.of(owner)).collect();
        json!({"partition": change.partition, "owners": owners})
    });
    let nodes = plan.nodes.iter().map(|node| {
        json!({
            "name": node.name,
            "zone": node.zone,
            "before": holding_json(&node.before.unwrap_or_default()),
            "after": holding_json(&node.after.unwrap_or_default()),
            "moves_in": node.moves_in,
            "moves_out": node.moves_out,
            "disk_needed": node.disk_needed_bytes,
            "disk_free": node.disk_free_bytes,
        })
    });
    let links = plan.links.iter().map(|link| {
        let size = link.size.unwrap_or_default();
        json!({
            "source": names.of(link.source),
            "to": names.of(link.to),
            "moves": link.moves,
            "keys": size.keys,
            "bytes": size.bytes,
        })
    });
    let zones = plan.zones.iter().map(|zone| {
        json!({
            "zone": zone.zone,
            "nodes_before": zone.nodes_before,
            "nodes_after": zone.nodes_after,
            "copies_before": zone.copies_before,
            "copies_after": zone.copies_after,
        })
    });
    let estimate = estimate(plan, bytes_per_second).map(|(left, receiver, bytes)| {
        json!({"seconds": left.as_secs(), "slowest_receiver": names.of(receiver), "bytes": bytes})
    });
    let notices = plan
        .notices
        .iter()
        .map(|notice| json!({"kind": kind_word(notice.kind()), "what": notice.text, "remedy": notice.help}));
    let refusals = plan.refusals.iter().map(|refusal| json!({"what": refusal.reason, "remedy": refusal.remedy}));
    json!({
        "schema": 1,
        "hash": plan.hash,
        "parent_epoch": plan.parent_epoch,
        "changes": commands(names, &plan.changes),
        "copies": plan.copies,
        "moves": moves.collect::<Vec<_>>(),
        "moves_total": plan.moves.len(),
        "moves_minimum": plan.moves_minimum,
        "keys": moved.keys,
        "bytes": moved.bytes,
        "keys_of_all": total.keys,
        "bytes_of_all": total.bytes,
        "partitions_unknown": plan.partitions_unknown,
        "partitions": partitions.collect::<Vec<_>>(),
        "nodes": nodes.collect::<Vec<_>>(),
        "links": links.collect::<Vec<_>>(),
        "zones": zones.collect::<Vec<_>>(),
        "safety": {
            "owners_before": safety.owners_before,
            "owners_after": safety.owners_after,
            "copies_min": safety.copies_min,
            "failures_before": safety.failures_before,
            "failures_during": safety.failures_during,
            "failures_after": safety.failures_after,
            "zone_owners_before": safety.zone_owners_before,
            "zone_owners_after": safety.zone_owners_after,
            "zone_failure_before": safety.zone_failure_before,
            "zone_failure_during": safety.zone_failure_during,
            "zone_failure_after": safety.zone_failure_after,
        },
        "estimate": estimate,
        "notices": notices.collect::<Vec<_>>(),
        "refusals": refusals.collect::<Vec<_>>(),
        "undo": commands(names, &plan.undo),
    })
}

fn commands(names: &Names<'_>, changes: &[v1::Change]) -> Vec<String> {
    changes.iter().map(|change| names.command(change)).collect()
}

fn holding_json(holding: &v1::PlanHolding) -> Value {
    let size = holding.size.unwrap_or_default();
    json!({
        "partitions": holding.copies,
        "primary": holding.primary,
        "fair_share": holding.fair_share,
        "ownership": holding.ownership,
        "weight": holding.weight,
        "keys": size.keys,
        "bytes": size.bytes,
    })
}

fn kind_word(kind: v1::PlanNoticeKind) -> &'static str {
    match kind {
        v1::PlanNoticeKind::Unspecified => "note",
        v1::PlanNoticeKind::Less => "less",
        v1::PlanNoticeKind::Warning => "warning",
        v1::PlanNoticeKind::Gap => "gap",
    }
}

const NODE_HEADER: &[&str] =
    &["NODE", "ZONE", ">NOW%", ">AFTER%", ">CHANGE", ">PARTITIONS", ">PRIMARY", ">IN", ">OUT", ">NEEDS", ">FREE"];

const LINK_HEADER: &[&str] = &["SOURCE", "TO", ">MOVES", ">KEYS", ">BYTES"];

const ZONE_HEADER: &[&str] = &["ZONE", ">NODES", ">COPIES"];

fn text(names: &Names<'_>, plan: &v1::PlanResponse, bytes_per_second: u64) -> Result<String, CommandError> {
    let mut lines = vec![format!(
        "plan {} for epoch {}: {}",
        plan.hash,
        plan.parent_epoch,
        commands(names, &plan.changes).join(", ")
    )];
    lines.push(String::new());
    let percent = |share: f64| format!("{:.1}", share * 100.0);
    let nodes = plan.nodes.iter().map(|node| {
        let (before, after) = (node.before.unwrap_or_default(), node.after.unwrap_or_default());
        vec![
            node.name.clone(),
            node.zone.clone(),
            percent(before.ownership),
            percent(after.ownership),
            format!("{:+.1}", (after.ownership - before.ownership) * 100.0),
            arrow(before.copies, after.copies),
            arrow(before.primary, after.primary),
            node.moves_in.to_string(),
            node.moves_out.to_string(),
            size(node.disk_needed_bytes),
            node.disk_free_bytes.map_or_else(|| "-".to_owned(), size),
        ]
    });
    lines.extend(table(NODE_HEADER, nodes)?);
    if plan.zones.len() > 1 {
        lines.push(String::new());
        let zones = plan.zones.iter().map(|zone| {
            vec![
                zone.zone.clone(),
                arrow(zone.nodes_before, zone.nodes_after),
                arrow(zone.copies_before, zone.copies_after),
            ]
        });
        lines.extend(table(ZONE_HEADER, zones)?);
    }
    if !plan.links.is_empty() {
        lines.push(String::new());
        let links = plan.links.iter().map(|link| {
            let moved = link.size.unwrap_or_default();
            vec![
                names.of(link.source),
                names.of(link.to),
                link.moves.to_string(),
                moved.keys.to_string(),
                size(moved.bytes),
            ]
        });
        lines.extend(table(LINK_HEADER, links)?);
    }
    lines.extend(map(names, plan));
    lines.push(String::new());
    lines.extend(summary(names, plan, bytes_per_second));
    Ok(lines.join("\n"))
}

/// How long the moves take if every receiver copies as fast as it may: the time, who gets the most, and how much. `None`
/// without a limit, or without sizes.
fn estimate(plan: &v1::PlanResponse, bytes_per_second: u64) -> Option<(Duration, u64, u64)> {
    let mut receivers: BTreeMap<u64, u64> = BTreeMap::new();
    for link in &plan.links {
        let bytes = receivers.entry(link.to).or_default();
        *bytes = bytes.saturating_add(link.size.unwrap_or_default().bytes);
    }
    let (receiver, bytes) = receivers.into_iter().max_by_key(|(_, bytes)| *bytes).filter(|(_, bytes)| *bytes > 0)?;
    let left = Duration::from_secs((bytes_per_second > 0).then(|| bytes.div_ceil(bytes_per_second))?);
    Some((left, receiver, bytes))
}

/// The lines below the tables.
pub(super) fn summary(names: &Names<'_>, plan: &v1::PlanResponse, bytes_per_second: u64) -> Vec<String> {
    let safety = plan.safety.unwrap_or_default();
    let moved = plan.size.unwrap_or_default();
    let mut lines = vec![format!(
        "moves    {} replicas, {} keys, {}; the minimum is {}",
        plan.moves.len(),
        moved.keys,
        size(moved.bytes),
        plan.moves_minimum
    )];
    lines.push(match estimate(plan, bytes_per_second) {
        Some((left, receiver, bytes)) => format!(
            "time     {} at {}/s into each node; {} gets the most, {}",
            short(left),
            size(bytes_per_second),
            names.of(receiver),
            size(bytes)
        ),
        None => "time     not estimated: nothing moves, or no limit or no sizes are known".to_owned(),
    });
    let copies = safety.owners_before;
    let mut line = format!("safety   at least {} of {copies} copies of every key stay", safety.copies_min);
    let may = |nodes: u32| if nodes == 1 { "1 node may fail".to_owned() } else { format!("{nodes} nodes may fail") };
    let (during, after) = (may(safety.failures_during), may(safety.failures_after));
    let zones = match (safety.zone_failure_during, safety.zone_failure_after) {
        (true, true) => "; a zone may fail, too",
        (false, true) => "; a zone may fail afterwards",
        (true, false) => "; a zone may fail meanwhile, but not afterwards",
        (false, false) => "",
    };
    line.push_str(&format!("; {during} meanwhile, {after} afterwards{zones}"));
    lines.push(line);
    if !plan.undo.is_empty() {
        lines.push(format!("undo     {}", commands(names, &plan.undo).join(", ")));
    }
    for notice in &plan.notices {
        let mark = if notice.kind() == v1::PlanNoticeKind::Less { "note" } else { "warning" };
        let help = if notice.help.is_empty() { String::new() } else { format!(": {}", notice.help) };
        lines.push(format!("{mark:<8} {}{help}", notice.text));
    }
    for refusal in &plan.refusals {
        lines.push(format!("refused  {}: {}", refusal.reason, refusal.remedy));
    }
    if let Some(command) = names.whole(&plan.changes) {
        lines.push(format!("to do it kv-tui exec {} --plan {} --yes", for_shell(&command), plan.hash));
    }
    lines
}

/// The partitions in token order: the letter of the node that gets a copy, `+` where several do, `·` where none does.
fn map(names: &Names<'_>, plan: &v1::PlanResponse) -> Vec<String> {
    let Some(layout) = names.0.description.layout.as_deref() else { return Vec::new() };
    let letters: Vec<char> = LETTERS.chars().collect();
    let partitions = layout.partition_count();
    if plan.moves.is_empty() || partitions > MAP_PARTITIONS_MAX || plan.nodes.len() > letters.len() {
        return Vec::new();
    }
    let letter = |node: u64| plan.nodes.iter().position(|other| other.node == node).map_or('?', |at| letters[at]);
    let mut cells = vec!['·'; partitions as usize];
    for step in &plan.moves {
        if let Some(cell) = cells.get_mut(step.partition as usize) {
            *cell = if *cell == '·' { letter(step.to) } else { '+' };
        }
    }
    let receiving = plan.nodes.iter().filter(|node| node.moves_in > 0);
    let legend: Vec<String> = receiving.map(|node| format!("{} {}", letter(node.node), node.name)).collect();
    let mut lines = vec![
        String::new(),
        format!("partitions in token order: {} = gets a copy, + = several do, · = stays", legend.join(", ")),
    ];
    for (row, cells) in cells.chunks(MAP_COLUMNS).enumerate() {
        let groups: Vec<String> = cells.chunks(MAP_GROUP).map(|group| group.iter().collect()).collect();
        lines.push(format!("{:>6}  {}", row * MAP_COLUMNS, groups.join(" ")));
    }
    lines
}

fn arrow(before: u32, after: u32) -> String {
    if before == after { before.to_string() } else { format!("{before} → {after}") }
}

/// The lines of a table.
fn table(
    header: &'static [&'static str],
    rows: impl Iterator<Item = Vec<String>>,
) -> Result<Vec<String>, CommandError> {
    let failed = |error: std::io::Error| CommandError::failed(format!("cannot lay out a table: {error}"));
    let mut out = Vec::new();
    let mut table = Table::default();
    for cells in rows {
        table.add(header, cells, &mut out).map_err(failed)?;
    }
    table.write(&mut out).map_err(failed)?;
    Ok(String::from_utf8_lossy(&out).lines().map(str::to_owned).collect())
}
