//! The nodes screen: the table, and all that the selected node tells.

use std::time::Duration;

use kv_core::types::NodeId;
use kv_proto::v1;
use ratatui::layout::Rect;

use super::canvas::{Canvas, grouped, known, latency};
use super::{Room, table};
use crate::dashboard::model::{Cluster, Model};
use crate::dashboard::theme::Role;
use crate::dashboard::update::node_name;
use crate::output::bytes::printable;
use crate::output::time::{short, size};
use crate::run::picture::state_word;

pub(super) fn draw(canvas: &mut Canvas<'_>, model: &Model, cluster: &Cluster, area: Rect, room: Room) {
    let framed = room == Room::Wide;
    let height = (table::rows(cluster) + if framed { 2 } else { 1 }).min((area.height / 2).max(4));
    let note = format!("sort {}", model.sort.title());
    let inner = canvas.panel(Rect { height, ..area }, "Nodes", &note, framed);
    table::draw(canvas, model, cluster, inner, room);
    let below = Rect { y: area.y + height, height: area.height.saturating_sub(height), ..area };
    let Some(member) = model.selected() else { return };
    let title = printable(member.member.name.as_bytes());
    let Some(snapshot) = cluster.picture.snapshot(member.id) else {
        let inner = canvas.panel(below, &title, "not in reach", framed);
        let report = cluster.picture.reports.iter().find(|report| report.node == member.id);
        let why =
            report.and_then(|report| report.snapshot.as_ref().err()).map(|error| printable(error.message.as_bytes()));
        canvas.text(inner, 0, 0, &why.unwrap_or_else(|| "its address is not known".to_owned()), Role::Bad);
        draw_opinions(canvas, cluster, member.id, inner, 2);
        return;
    };
    let note = format!(
        "{}  v{}  pid {}",
        printable(snapshot.zone.as_bytes()),
        printable(snapshot.build.as_bytes()),
        snapshot.pid
    );
    let inner = canvas.panel(below, &title, &note, framed);
    let wide = inner.width >= 100;
    let column = if wide { inner.width / 2 } else { inner.width };
    let left = Rect { width: column, ..inner };
    let facts = facts(model, cluster, snapshot);
    let fitting = usize::from(inner.height);
    for (y, (name, value)) in (0_u16..).zip(facts.iter().take(fitting)) {
        canvas.text(left, 0, y, name, Role::Dim);
        canvas.text(left, 12, y, value, Role::Text);
    }
    let used = u16::try_from(facts.len()).unwrap_or(u16::MAX);
    if wide {
        let right = Rect { x: inner.x + column, width: inner.width - column, ..inner };
        draw_peers(canvas, cluster, snapshot, right, 0);
    } else {
        draw_peers(canvas, cluster, snapshot, inner, used.saturating_add(1));
    }
}

fn facts(model: &Model, cluster: &Cluster, snapshot: &v1::NodeSnapshot) -> Vec<(&'static str, String)> {
    let counters = snapshot.counters.unwrap_or_default();
    let pending = snapshot.pending.unwrap_or_default();
    let usage = snapshot.usage.unwrap_or_default();
    let track = cluster.tracks.get(&NodeId(snapshot.node));
    let minutes = Duration::from_micros(snapshot.uptime_us).as_secs() / 60 * 60;
    let age = track.map(|track| model.now_us.saturating_sub(track.told_us) / 1_000_000).filter(|age| *age > 2);
    let up = if minutes == 0 { "less than a minute".to_owned() } else { short(Duration::from_secs(minutes)) };
    let mut facts = vec![
        ("address", printable(snapshot.address.as_bytes())),
        ("up", format!("{up}, boot {}", snapshot.boot)),
        ("partitions", format!("{} copies, {} first places", snapshot.partitions_held, snapshot.primary)),
        ("keys", format!("{} copies, {} in first places", grouped(snapshot.keys), grouped(snapshot.keys_primary))),
        ("bytes", size(snapshot.bytes)),
        (
            "latency",
            format!(
                "p50 {}  p99 {}",
                known(Some(usage.latency_p50_us).filter(|us| *us > 0), latency),
                known(Some(usage.latency_p99_us).filter(|us| *us > 0), latency)
            ),
        ),
        ("pending", format!("{} requests, {} writes to copies", pending.requests, pending.replications)),
        (
            "waiting",
            format!(
                "{} hints ({}), {} keys lag, {} refills",
                pending.hints,
                size(pending.hint_bytes),
                pending.lag,
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
        ("memory", format!("{} resident", size(usage.memory_bytes))),
        ("hot", format!("{} of requests found it in memory", hit_rate(counters))),
        ("disk", format!("{} used, {} free", size(usage.disk_bytes), size(usage.disk_free_bytes))),
        ("layout", format!("epoch {}", snapshot.layout_epoch)),
    ];
    if !snapshot.poisoned.is_empty() {
        facts.insert(0, ("stopped", printable(snapshot.poisoned.as_bytes())));
    }
    if let Some(age) = age {
        facts.insert(0, ("age", format!("these figures are {age} s old")));
    }
    facts
}

fn hit_rate(counters: v1::Counters) -> String {
    let all = counters.hot_hits + counters.hot_misses;
    #[allow(clippy::cast_precision_loss, reason = "three digits are shown")]
    known((all > 0).then_some(()), |()| format!("{:.1}%", counters.hot_hits as f64 * 100.0 / all as f64))
}

/// What the node thinks of its peers.
fn draw_peers(canvas: &mut Canvas<'_>, cluster: &Cluster, snapshot: &v1::NodeSnapshot, area: Rect, top: u16) {
    canvas.text(area, 0, top, "what it thinks of its peers", Role::Dim);
    for (y, peer) in (top.saturating_add(1)..area.height).zip(&snapshot.peers) {
        let name = node_name(cluster, NodeId(peer.node));
        let mut text = format!("{}: {}", printable(name.as_bytes()), state_word(peer.state()));
        if peer.round_trip_us > 0 {
            text.push_str(&format!(", round trip {}", latency(peer.round_trip_us)));
        }
        if !peer.reason.is_empty() {
            text.push_str(&format!(", {}", printable(peer.reason.as_bytes())));
        }
        canvas.text(area, 0, y, &text, opinion_role(peer));
    }
}

/// What the others think of a node.
fn draw_opinions(canvas: &mut Canvas<'_>, cluster: &Cluster, node: NodeId, area: Rect, top: u16) {
    let opinions = cluster.picture.snapshots().flat_map(|told| told.peers.iter().map(move |peer| (told, peer)));
    for (y, (told, peer)) in (top..area.height).zip(opinions.filter(|(_, peer)| peer.node == node.0)) {
        let why = if peer.reason.is_empty() { String::new() } else { format!(": {}", peer.reason) };
        let text = format!("{} takes it to be {}{why}", told.name, state_word(peer.state()));
        canvas.text(area, 0, y, &printable(text.as_bytes()), opinion_role(peer));
    }
}

fn opinion_role(peer: &v1::PeerOpinion) -> Role {
    match peer.state() {
        v1::MemberState::Down => Role::Bad,
        v1::MemberState::Suspect => Role::Warn,
        _ => Role::Text,
    }
}
