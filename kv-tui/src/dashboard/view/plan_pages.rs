//! What else there is to know of a plan: from whom copies are read, and why it moves what it moves.

use std::collections::BTreeMap;

use kv_core::types::NodeId;
use kv_proto::v1;

use super::canvas::{Canvas, grouped, known, latency};
use super::plan::{Line, lettered};
use crate::dashboard::cluster::Cluster;
use crate::dashboard::planning::Review;
use crate::dashboard::theme::Role;
use crate::output::bytes::printable;
use crate::output::time::size;

/// The lines above a list: what the page is about.
fn head(canvas: &Canvas<'_>, texts: &[&str], width: u16) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for text in texts {
        lines.extend(canvas.wrapped(text, width).into_iter().map(|line| vec![(line, Role::Text)]));
    }
    lines.push(Vec::new());
    lines
}

/// From whom copies are read first, how these nodes are, and who else holds the same.
pub(super) fn sources(canvas: &Canvas<'_>, cluster: &Cluster, review: &Review, width: u16) -> Vec<Line> {
    let mut lines = head(
        canvas,
        &[
            "Each copy is read completely from one owner; then what other owners hold in addition is fetched. If an owner \
             does not answer, the next one is asked automatically.",
        ],
        width,
    );
    let layout = cluster.snapshot.description.layout.as_deref();
    let mut read: BTreeMap<u64, (u64, u64, BTreeMap<NodeId, u64>)> = BTreeMap::new();
    for step in &review.plan.moves {
        let (moves, bytes, others) = read.entry(step.source).or_default();
        *moves += 1;
        *bytes = bytes.saturating_add(step.bytes);
        let entry = layout.and_then(|layout| layout.partitions.get(usize::try_from(step.partition).ok()?));
        for owner in entry.into_iter().flat_map(|entry| entry.nodes()).filter(|owner| owner.0 != step.source) {
            *others.entry(owner).or_default() += 1;
        }
    }
    lines.push(vec![("READ FIRST      REPLICAS         BYTES      p99  ELSE FROM".to_owned(), Role::Dim)]);
    for (source, (moves, bytes, others)) in read {
        let (letter, role) = lettered(canvas, cluster, source);
        let name = canvas.fitted(&cluster.name_of(NodeId(source)), 10);
        let p99 = known(cluster.latency_us(NodeId(source), |usage| usage.latency_p99_us), latency);
        let away = if cluster.snapshot.serves(NodeId(source)) { "" } else { "  not in reach" };
        let others: Vec<String> =
            others.iter().map(|(node, moves)| format!("{} {moves}", cluster.name_of(*node))).collect();
        let facts = format!(" {:>10} {:>13} {p99:>8}", grouped(moves), size(bytes));
        lines.push(vec![
            (format!("{letter} {:<10}", printable(name.as_bytes())), role),
            (facts, Role::Text),
            (away.to_owned(), Role::Warn),
            (format!("  {}", printable(others.join(", ").as_bytes())), Role::Dim),
        ]);
    }
    lines
}

/// Why these replicas move: the fair shares, and each move.
pub(super) fn why(canvas: &Canvas<'_>, cluster: &Cluster, review: &Review, width: u16) -> Vec<Line> {
    let plan = &review.plan;
    let bound = format!(
        "Each node holds its fair share of the copies, rounded down or up, and no zone more of a partition than it must. \
         No layout that does so is reached with fewer than {} moves; this plan has {}.",
        plan.moves_minimum,
        plan.moves.len()
    );
    let mut lines = head(canvas, &[&bound], width);
    for node in &plan.nodes {
        let (before, after) = (node.before.unwrap_or_default(), node.after.unwrap_or_default());
        let (letter, role) = lettered(canvas, cluster, node.node);
        let does = match (node.moves_in, node.moves_out) {
            (0, 0) => "keeps what it has".to_owned(),
            (gets, 0) => format!("gets {gets}"),
            (0, gives) => format!("gives {gives}"),
            (gets, gives) => format!("gets {gets} and gives {gives}"),
        };
        let arrow = canvas.symbol('→');
        let text = format!(" {} {arrow} {} (fair {:.1}): {does}", before.copies, after.copies, after.fair_share);
        lines.push(vec![
            (format!("{letter} {}", printable(node.name.as_bytes())), role),
            (canvas.fitted(&text, width.saturating_sub(canvas.width(&node.name) + 2)), Role::Text),
        ]);
    }
    for notice in plan.notices.iter().filter(|notice| notice.kind() == v1::PlanNoticeKind::Less) {
        let text = printable(format!("{}: {}", notice.text, notice.help).trim_end_matches(": ").as_bytes());
        lines.extend(canvas.wrapped(&text, width).into_iter().map(|line| vec![(line, Role::Text)]));
    }
    lines.push(Vec::new());
    lines.push(vec![("  PART  MOVE                      KEYS         BYTES  READ FROM".to_owned(), Role::Dim)]);
    let arrow = canvas.symbol('→');
    let name = |node: u64| if node == 0 { "new".to_owned() } else { cluster.name_of(NodeId(node)) };
    for step in &plan.moves {
        let ends = canvas.fitted(&format!("{} {arrow} {}", name(step.from), name(step.to)), 16);
        let pad = " ".repeat(usize::from(16_u16.saturating_sub(canvas.width(&ends))));
        let text = format!(
            "{:>6}  {ends}{pad} {:>13} {:>13}  {}",
            step.partition,
            grouped(step.keys),
            size(step.bytes),
            name(step.source)
        );
        lines.push(vec![(printable(text.as_bytes()), Role::Text)]);
    }
    lines
}
