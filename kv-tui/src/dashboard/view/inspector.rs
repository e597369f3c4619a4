//! What each replica of a key holds: who has which version, how versions relate, and their values.

use kv_core::types::NodeId;
use kv_proto::client::Inspection;
use kv_proto::v1;
use kv_proto::v1::replica_view::Answer;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;

use super::canvas::{Canvas, grouped};
use super::{Room, pane, registers};
use crate::dashboard::cluster::Cluster;
use crate::dashboard::keymap::Action;
use crate::dashboard::model::{Model, Pane};
use crate::dashboard::theme::{Role, Theme};
use crate::output::bytes::printable;
use crate::output::time::rfc3339;

/// Bytes of a value that are shown.
const VALUE_BYTES: usize = 4096;

/// A line: pieces with their roles.
pub(super) type Line = Vec<(String, Role)>;

/// Draws the replicas of the key that was opened.
pub(super) fn draw(canvas: &mut Canvas<'_>, model: &Model, area: Rect, room: Room) {
    let Some((key, _)) = &model.keys.inspected else {
        let inner = canvas.panel(area, pane(model, Pane::Side, "Replicas", "", room));
        let open = model.keymap.key_of(Action::Open);
        canvas.text(inner, 0, 0, &format!("{open} asks every replica of the key"), Role::Dim);
        return;
    };
    let title = canvas.fitted(&printable(key), area.width.saturating_sub(24));
    let inner = canvas.panel(area, pane(model, Pane::Side, &title, "", room));
    let lines = lines(canvas, model, inner.width);
    let top = model.keys.top.min(lines.len().saturating_sub(1));
    for (y, line) in (0..inner.height).zip(lines.iter().skip(top)) {
        let mut x = 0;
        for (text, role) in line {
            x = canvas.text(inner, x, y, text, *role);
        }
    }
    if lines.len().saturating_sub(top) > usize::from(inner.height) && inner.height > 0 {
        let text = format!(" {} more lines ", lines.len() - top - usize::from(inner.height));
        canvas.right(inner, inner.width, inner.height - 1, &text, Role::Dim);
    }
}

/// How many lines the replicas take, for scrolling.
#[must_use]
pub(in crate::dashboard) fn inspected_lines(model: &Model) -> usize {
    let mut buffer = Buffer::empty(Rect::new(0, 0, 1, 1));
    let canvas = Canvas::new(&mut buffer, model.theme);
    lines(&canvas, model, (model.size.0 * 3 / 5).saturating_sub(4)).len()
}

fn lines(canvas: &Canvas<'_>, model: &Model, width: u16) -> Vec<Line> {
    let (Some(cluster), Some((_, result))) = (model.shown(), &model.keys.inspected) else { return Vec::new() };
    match result {
        Ok(seen) if registers::are_shown(seen) => registers::lines(canvas, cluster, seen, width),
        Ok(seen) => replica_lines(canvas, cluster, seen, width),
        Err(error) => {
            let text = canvas.wrapped(&printable(error.as_bytes()), width);
            text.into_iter().map(|line| vec![(line, Role::Bad)]).collect()
        }
    }
}

fn record(replica: &v1::ReplicaView) -> Option<&v1::RecordView> {
    match &replica.answer {
        Some(Answer::Record(record)) => Some(record),
        _ => None,
    }
}

/// Every version that some replica holds, once, in the order in which they are met.
fn versions(seen: &Inspection) -> Vec<&v1::VersionView> {
    let mut versions: Vec<&v1::VersionView> = Vec::new();
    for version in seen.replicas.iter().filter_map(record).flat_map(|record| &record.versions) {
        if !versions.iter().any(|known| known.dot == version.dot) {
            versions.push(version);
        }
    }
    versions
}

/// Where the key is: its token, its partition and its owners.
pub(super) fn place_lines(canvas: &Canvas<'_>, cluster: &Cluster, seen: &Inspection) -> Vec<Line> {
    let arrow = canvas.symbol('→');
    let mut lines: Vec<Line> = Vec::new();
    let place = format!("partition {}, epoch {}", seen.partition, seen.epoch);
    lines.push(vec![("token   ".to_owned(), Role::Dim), (format!("{:016x}", seen.token), Role::Text)]);
    lines.push(vec![("place   ".to_owned(), Role::Dim), (place, Role::Text)]);
    let mut walk: Line = vec![("walk    ".to_owned(), Role::Dim)];
    for (at, replica) in seen.replicas.iter().filter(|replica| replica.owner).enumerate() {
        if at > 0 {
            walk.push((format!(" {arrow} "), Role::Dim));
        }
        let node = NodeId(replica.node);
        let index = cluster.index(node);
        walk.push((index.map_or('?', Theme::letter).to_string(), index.map_or(Role::Dim, Role::Node)));
        walk.push((format!(" {}", printable(cluster.name_of(node).as_bytes())), Role::Text));
    }
    lines.push(walk);
    lines
}

/// What the replicas say together, and the head of the table of what each holds.
pub(super) fn status_lines(canvas: &Canvas<'_>, (words, role): (String, Role), width: u16) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for (at, line) in canvas.wrapped(&words, width.saturating_sub(8)).into_iter().enumerate() {
        let label = if at == 0 { "status  " } else { "        " };
        lines.push(vec![(label.to_owned(), Role::Dim), (line, role)]);
    }
    lines.push(Vec::new());
    lines.push(vec![("     NODE        ROLE      HOLDS".to_owned(), Role::Dim)]);
    lines
}

fn replica_lines(canvas: &Canvas<'_>, cluster: &Cluster, seen: &Inspection, width: u16) -> Vec<Line> {
    let versions = versions(seen);
    let mut lines = place_lines(canvas, cluster, seen);
    lines.extend(status_lines(canvas, status(seen, &versions), width));
    for replica in &seen.replicas {
        lines.push(replica_line(canvas, cluster, replica, &versions, width));
    }
    let siblings: Vec<usize> = (0..versions.len()).filter(|at| are_siblings(seen, versions[*at])).collect();
    if siblings.len() > 1 {
        lines.push(Vec::new());
        let names: Vec<String> = siblings.iter().map(|at| format!("v{}", at + 1)).collect();
        let mark = canvas.symbol('∥');
        let text = format!(
            "{}: concurrent, for no write had seen another's dot; the next put that names a get's context replaces them",
            names.join(&format!(" {mark} "))
        );
        lines.extend(canvas.wrapped(&text, width).into_iter().map(|line| vec![(line, Role::Warn)]));
    }
    for (at, version) in versions.iter().enumerate() {
        lines.push(Vec::new());
        lines.extend(version_lines(canvas, cluster, at, version, width));
    }
    lines
}

/// Whether a version is concurrent with others on some replica.
fn are_siblings(seen: &Inspection, version: &v1::VersionView) -> bool {
    let beside = |record: &v1::RecordView| {
        record.versions.len() > 1 && record.versions.iter().any(|other| other.dot == version.dot)
    };
    seen.replicas.iter().filter_map(record).any(beside)
}

fn status(seen: &Inspection, versions: &[&v1::VersionView]) -> (String, Role) {
    let owners: Vec<&v1::ReplicaView> = seen.replicas.iter().filter(|replica| replica.owner).collect();
    let digests: Vec<u64> = owners.iter().filter_map(|replica| record(replica)).map(|record| record.digest).collect();
    let equal = digests.windows(2).all(|pair| pair[0] == pair[1]);
    let silent = owners.len() - digests.len();
    let mut words = match (silent, equal) {
        (0, true) => "all owners hold the same".to_owned(),
        (_, false) => "owners differ".to_owned(),
        (silent, true) => format!("{silent} of {} owners did not answer; the others agree", owners.len()),
    };
    let live = versions.iter().filter(|version| are_siblings(seen, version)).count();
    if live > 1 {
        words = format!("CONFLICT: {live} concurrent versions; {words}");
    } else if versions.is_empty() && silent == 0 {
        words = "absent: no owner holds it".to_owned();
    }
    let good = silent == 0 && equal && live <= 1;
    (words, if good { Role::Good } else { Role::Warn })
}

fn replica_line(
    canvas: &Canvas<'_>,
    cluster: &Cluster,
    replica: &v1::ReplicaView,
    versions: &[&v1::VersionView],
    width: u16,
) -> Line {
    let held = match &replica.answer {
        Some(Answer::Record(record)) if record.versions.is_empty() => ("no copy".to_owned(), Role::Dim),
        Some(Answer::Record(record)) => {
            let held = |version: &v1::VersionView| versions.iter().position(|known| known.dot == version.dot);
            let names: Vec<String> = record.versions.iter().filter_map(held).map(|at| format!("v{}", at + 1)).collect();
            let more = if replica.owner { "" } else { ", as a hint" };
            (format!("{}{more}", names.join(" ")), Role::Text)
        }
        Some(Answer::Register(_)) => ("a register".to_owned(), Role::Text),
        Some(Answer::Error(error)) => (printable(error.message.as_bytes()), Role::Bad),
        None => ("no answer".to_owned(), Role::Bad),
    };
    holder_line(canvas, cluster, replica, held, width)
}

/// A replica, its role, and what it holds.
pub(super) fn holder_line(
    canvas: &Canvas<'_>,
    cluster: &Cluster,
    replica: &v1::ReplicaView,
    (holds, role): (String, Role),
    width: u16,
) -> Line {
    let node = NodeId(replica.node);
    let index = cluster.index(node);
    let name = canvas.fitted(&printable(cluster.name_of(node).as_bytes()), 10);
    let pad = " ".repeat(usize::from(12_u16.saturating_sub(canvas.width(&name))));
    let part = if replica.owner { "owner" } else { "fallback" };
    vec![
        ("   ".to_owned(), Role::Text),
        (index.map_or('?', Theme::letter).to_string(), index.map_or(Role::Dim, Role::Node)),
        (format!(" {name}{pad}{part:<10}"), Role::Text),
        (canvas.fitted(&holds, width.saturating_sub(27)), role),
    ]
}

/// The dot of a version with the name of the node that made it: node/boot.instance:counter.
fn dot_text(cluster: &Cluster, version: &v1::VersionView) -> String {
    let Some(dot) = &version.dot else { return String::new() };
    let (store, instance) = dot.actor.split_once('/').unwrap_or((dot.actor.as_str(), ""));
    let members = &cluster.snapshot.description.members;
    let name = members.iter().find(|member| member.member.store.to_string() == store);
    let name = name.map_or_else(|| store.to_owned(), |member| member.member.name.clone());
    let slash = if instance.is_empty() { "" } else { "/" };
    printable(format!("{name}{slash}{instance}:{}", dot.counter).as_bytes())
}

fn version_lines(
    canvas: &Canvas<'_>,
    cluster: &Cluster,
    at: usize,
    version: &v1::VersionView,
    width: u16,
) -> Vec<Line> {
    let mut lines = vec![vec![
        (format!("v{}  ", at + 1), Role::Title),
        (canvas.fitted(&format!("dot {}", dot_text(cluster, version)), width.saturating_sub(4)), Role::Dim),
    ]];
    let times = (version.written_us, version.expires_us);
    lines.extend(value_lines(canvas, times, version.value.as_deref(), width));
    lines
}

/// When a value was written and until when it is there, and the value itself; `None`: it was deleted.
pub(super) fn value_lines(
    canvas: &Canvas<'_>,
    (written_us, expires_us): (u64, Option<u64>),
    value: Option<&[u8]>,
    width: u16,
) -> Vec<Line> {
    let written = rfc3339(written_us);
    let written = written.get(..23).unwrap_or(&written).replace('T', " ");
    let mut facts = vec![format!("written {written} UTC")];
    if let Some(value) = value {
        facts.push(format!("{} bytes", grouped(u64::try_from(value.len()).unwrap_or(0))));
    }
    if let Some(expires) = expires_us {
        facts.push(format!("expires {}", rfc3339(expires).get(..19).unwrap_or_default().replace('T', " ")));
    }
    let facts = canvas.wrapped(&facts.join(", "), width.saturating_sub(4));
    let mut lines: Vec<Line> = facts.into_iter().map(|line| vec![(format!("    {line}"), Role::Dim)]).collect();
    match value {
        None => lines.push(vec![("    deleted".to_owned(), Role::Warn)]),
        Some(value) => {
            let shown = printable(&value[..value.len().min(VALUE_BYTES)]);
            let more = if value.len() > VALUE_BYTES { " ... and more; :get shows all" } else { "" };
            let text = canvas.chopped(&format!("{shown}{more}"), width.saturating_sub(4));
            lines.extend(text.into_iter().map(|line| vec![(format!("    {line}"), Role::Text)]));
        }
    }
    lines
}
