//! The nodes screen: the table, the report of the selected node, and its partitions.

use std::time::Duration;

use kv_core::types::NodeId;
use kv_proto::v1;
use ratatui::layout::Rect;

use super::canvas::{Canvas, grouped, known, latency, rate};
use super::{Room, columns, pane, partitions, plain, split, table};
use crate::dashboard::cluster::{Cluster, FRESH_US, round_trip_ms};
use crate::dashboard::level::Level;
use crate::dashboard::model::{Model, Pane};
use crate::dashboard::theme::Role;
use crate::observe::clocks;
use crate::observe::safety::Verdict;
use crate::observe::settling::Tombstones;
use crate::observe::snapshot::state_word;
use crate::output::bytes::printable;
use crate::output::time::{short, size};

/// Cells of the names of facts.
const FACT: u16 = 12;

pub(super) fn draw(canvas: &mut Canvas<'_>, model: &Model, cluster: &Cluster, area: Rect, room: Room) {
    let totals = room != Room::Small;
    let edges = if room.is_framed() { 2 } else { 1 };
    let height = (table::rows(cluster, model, totals) + edges).min((area.height / 2).max(5));
    let (top, below) = split(area, height);
    let note = super::overview::nodes_note(model, cluster);
    let inner = canvas.panel(top, pane(model, Pane::Main, "Nodes", &note, room));
    table::draw(canvas, model, cluster, inner, table::Table { columns: &model.columns[1], totals });
    let Some(member) = model.selected() else { return };
    // With less room either the node's report or its partitions are shown: the one in which the keys move.
    let (details, parts) = match room {
        Room::Wide => {
            let (left, right) = columns(below, below.width / 2);
            (Some(left), Some(right))
        }
        _ if model.pane == Pane::Side => (None, Some(below)),
        _ => (Some(below), None),
    };
    if let Some(area) = details {
        draw_details(canvas, model, cluster, member.id, area, room);
    }
    if let Some(area) = parts {
        partitions::draw(canvas, model, cluster, member.id, area, room);
    }
}

fn draw_details(canvas: &mut Canvas<'_>, model: &Model, cluster: &Cluster, node: NodeId, area: Rect, room: Room) {
    let title = printable(cluster.name_of(node).as_bytes());
    let Some(snapshot) = cluster.snapshot.report(node) else {
        let inner = canvas.panel(area, plain(&title, "not in reach", room));
        let report = cluster.snapshot.reports.iter().find(|report| report.node == node);
        let why =
            report.and_then(|report| report.snapshot.as_ref().err()).map(|error| printable(error.message.as_bytes()));
        let why = why.unwrap_or_else(|| "its address is not known".to_owned());
        let mut y = 0;
        for line in canvas.wrapped(&why, inner.width) {
            canvas.text(inner, 0, y, &line, Role::Bad);
            y += 1;
        }
        draw_opinions(canvas, cluster, node, inner, y + 1);
        return;
    };
    let version = printable(snapshot.build.as_bytes());
    let note = format!("{}   v{version}   pid {}", printable(snapshot.zone.as_bytes()), snapshot.pid);
    let inner = canvas.panel(area, plain(&title, &note, room));
    let facts = facts(model, cluster, snapshot);
    let mut y = 0;
    for (name, value) in &facts {
        canvas.text(inner, 0, y, name, Role::Dim);
        // What does not fit is the end of a sentence, not of a number.
        for line in canvas.wrapped(value, inner.width.saturating_sub(FACT)) {
            canvas.text(inner, FACT, y, &line, Role::Text);
            y += 1;
        }
    }
    draw_peers(canvas, cluster, snapshot, inner, y);
}

fn facts(model: &Model, cluster: &Cluster, snapshot: &v1::NodeSnapshot) -> Vec<(&'static str, String)> {
    let counters = snapshot.counters.unwrap_or_default();
    let pending = snapshot.pending.unwrap_or_default();
    let usage = snapshot.usage.unwrap_or_default();
    let track = cluster.tracks.get(&NodeId(snapshot.node));
    let minutes = Duration::from_micros(snapshot.uptime_us).as_secs() / 60 * 60;
    let age = track.map(|track| model.now_us.saturating_sub(track.reported_us)).filter(|age| *age > FRESH_US);
    let up = if minutes == 0 { "less than a minute".to_owned() } else { short(Duration::from_secs(minutes)) };
    let reported = |us: u64| known(Some(us).filter(|us| *us > 0), latency);
    let mut facts = Vec::new();
    if let Some(age) = age {
        facts.push(("age", format!("this report is {} s old", age / 1_000_000)));
    }
    if !snapshot.poisoned.is_empty() {
        facts.push(("stopped", printable(snapshot.poisoned.as_bytes())));
    }
    let verdict = Verdict::of(&cluster.snapshot, NodeId(snapshot.node));
    let comparisons = match pending.comparisons {
        0 => String::new(),
        count => format!(", {} comparisons", grouped(count)),
    };
    let own = [
        ("may stop", format!("{}: {}", if verdict.safe { "yes" } else { "no" }, verdict.why)),
        ("address", printable(snapshot.address.as_bytes())),
        ("up", format!("{up}, boot {}, layout epoch {}", snapshot.boot, snapshot.layout_epoch)),
        ("partitions", format!("{} copies, {} primaries", snapshot.partitions_held, snapshot.primary)),
        ("keys", format!("{} copies, {} as primary", grouped(snapshot.keys), grouped(snapshot.keys_primary))),
        ("bytes", format!("{} of keys and records", size(snapshot.bytes))),
        ("latency", format!("p50 {}, p99 {}", reported(usage.latency_p50_us), reported(usage.latency_p99_us))),
        ("in flight", format!("{} requests, {} writes to copies", pending.requests, pending.replications)),
        (
            "waiting",
            format!(
                "{} hints ({}), {} keys lag, {} refills{comparisons}",
                grouped(pending.hints),
                size(pending.hint_bytes),
                grouped(pending.missed_writes),
                pending.refills
            ),
        ),
        (
            "served",
            format!(
                "{} gets, {} puts, {} deletes, {} scans",
                grouped(counters.gets),
                grouped(counters.puts),
                grouped(counters.deletes),
                grouped(counters.scans)
            ),
        ),
        ("failed", format!("{} requests, {} forwarded", grouped(counters.failures), grouped(counters.forwards))),
        ("repaired", format!("{} by reads, {} handed off", grouped(counters.read_repairs), grouped(counters.handoffs))),
        ("memory", format!("{} resident, {}", size(usage.memory_bytes), hit_rate(counters))),
        ("disk", format!("{} used, {} free", size(usage.disk_bytes), size(usage.disk_free_bytes))),
    ];
    facts.extend(own);
    if counters.register_retries > 0 {
        let now = track
            .and_then(|track| track.rates)
            .map_or_else(String::new, |rates| format!(", {} a second", rate(rates.contention)));
        facts.push(("contention", format!("{} retries of consistent keys{now}", grouped(counters.register_retries))));
    }
    if let Some(line) = clocks::line(snapshot) {
        facts.push(("clock", line));
    }
    let aside = snapshot.settling.as_ref().map_or(0, |settling| settling.set_aside);
    if aside > 0 {
        facts.push(("set aside", format!("{} values that were deleted elsewhere", grouped(aside))));
    }
    if let Some(line) = Tombstones::of_node(&cluster.snapshot, snapshot).line() {
        facts.push(("tombstones", printable(line.as_bytes())));
    }
    let left: Vec<&v1::Residue> = snapshot.residue.iter().filter(|left| left.records > 0).collect();
    if !left.is_empty() {
        let records: u64 = left.iter().map(|left| left.records).sum();
        let bytes: u64 = left.iter().map(|left| left.bytes).sum();
        let why = left.iter().find(|left| !left.waiting_for.is_empty());
        let why = why.map_or_else(String::new, |left| format!("; waits: {}", printable(left.waiting_for.as_bytes())));
        let text =
            format!("{} records ({}) of {} partitions that it left{why}", grouped(records), size(bytes), left.len());
        facts.push(("hands over", text));
    }
    if !snapshot.transfers.is_empty() {
        let stalled = snapshot.transfers.iter().filter(|transfer| transfer.stalled).count();
        let text = format!("{} partitions, {stalled} stalled", snapshot.transfers.len());
        facts.push(("copies", text));
    }
    facts
}

fn hit_rate(counters: v1::Counters) -> String {
    let all = counters.hot_hits + counters.hot_misses;
    if all == 0 {
        return "no record asked for yet".to_owned();
    }
    #[allow(clippy::cast_precision_loss, reason = "three digits are shown")]
    let share = counters.hot_hits as f64 * 100.0 / all as f64;
    format!("{share:.1}% of records found there")
}

/// What the node thinks of its peers.
fn draw_peers(canvas: &mut Canvas<'_>, cluster: &Cluster, snapshot: &v1::NodeSnapshot, area: Rect, top: u16) {
    for (at, (y, peer)) in (top..area.height).zip(&snapshot.peers).enumerate() {
        let name = printable(cluster.name_of(NodeId(peer.node)).as_bytes());
        let mut text = format!("{name} {}", state_word(peer.state()));
        if peer.round_trip_us > 0 {
            text.push_str(&format!(", round trip below {} ms", round_trip_ms(peer.round_trip_us)));
        }
        if !peer.reason.is_empty() && peer.state() != v1::MemberState::Up {
            text.push_str(&format!(", {}", printable(peer.reason.as_bytes())));
        }
        if at == 0 {
            canvas.text(area, 0, y, "sees", Role::Dim);
        }
        let text = canvas.fitted(&text, area.width.saturating_sub(FACT));
        canvas.text(area, FACT, y, &text, opinion_role(peer));
    }
}

/// What the others think of a node.
fn draw_opinions(canvas: &mut Canvas<'_>, cluster: &Cluster, node: NodeId, area: Rect, top: u16) {
    let opinions =
        cluster.snapshot.node_reports().flat_map(|reported| reported.peers.iter().map(move |peer| (reported, peer)));
    for (y, (reported, peer)) in (top..area.height).zip(opinions.filter(|(_, peer)| peer.node == node.0)) {
        let why = if peer.reason.is_empty() { String::new() } else { format!(": {}", peer.reason) };
        let text = format!("{} considers it {}{why}", reported.name, state_word(peer.state()));
        let text = canvas.fitted(&printable(text.as_bytes()), area.width);
        canvas.text(area, 0, y, &text, opinion_role(peer));
    }
}

fn opinion_role(peer: &v1::PeerOpinion) -> Role {
    match Level::from(peer.state()) {
        Level::Good | Level::Quiet => Role::Text,
        level => level.role(),
    }
}
