//! The table of the nodes, with the columns that fit.

use kv_proto::describe::MemberView;
use kv_proto::v1::{self, MemberState};
use ratatui::layout::Rect;

use super::Room;
use super::canvas::{Canvas, grouped, known, latency, rate};
use crate::dashboard::model::{Cluster, Model, Sort};
use crate::dashboard::theme::{Role, Theme};
use crate::output::bytes::printable;
use crate::output::time::size;
use crate::run::picture::state_word;

/// Cells of the bar of shares.
const METER: usize = 8;

/// A column: its name, its width, and whether it needs more room than the smallest.
type Column = (&'static str, u16, Needs);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    Nothing,
    Medium,
    Wide,
}

const COLUMNS: &[Column] = &[
    ("KEYS", 10, Needs::Nothing),
    ("BYTES", 10, Needs::Wide),
    ("OWN", 6, Needs::Nothing),
    ("FAIR", 6, Needs::Medium),
    ("", 9, Needs::Wide),
    ("+/-", 6, Needs::Wide),
    ("GET/s", 7, Needs::Nothing),
    ("PUT/s", 7, Needs::Nothing),
    ("p99", 8, Needs::Nothing),
    ("HINTS", 7, Needs::Medium),
    ("ADDRESS", 22, Needs::Wide),
];

/// Draws the table, the selected row marked, scrolled so that it is seen.
pub(super) fn draw(canvas: &mut Canvas<'_>, model: &Model, cluster: &Cluster, area: Rect, room: Room) {
    let fits = |needs: Needs| match needs {
        Needs::Nothing => true,
        Needs::Medium => room != Room::Small,
        Needs::Wide => room == Room::Wide,
    };
    let name_width = if room == Room::Small { 6 } else { 12 };
    let mut columns: Vec<Column> = COLUMNS.iter().copied().filter(|column| fits(column.2)).collect();
    // A column that would be cut is left out.
    while 14 + name_width + columns.iter().map(|column| column.1).sum::<u16>() > area.width {
        columns.pop();
    }
    canvas.text(area, 4, 0, "NODE", Role::Dim);
    canvas.text(area, 4 + name_width, 0, "STATE", Role::Dim);
    let first = 4 + name_width + 10;
    let mut end = first;
    for (name, width, _) in &columns {
        end += width;
        let sorted = *name == model.sort.title() || (model.sort == Sort::Rate && matches!(*name, "GET/s" | "PUT/s"));
        canvas.right(area, end, 0, name, if sorted { Role::Title } else { Role::Dim });
    }
    let rows = usize::from(area.height.saturating_sub(1));
    let members = cluster.ordered(model.sort);
    let cursor = model.node_cursor.min(members.len().saturating_sub(1));
    let top = cursor.saturating_sub(rows.saturating_sub(1));
    for (y, (index, member)) in (1_u16..).zip(members.iter().enumerate().skip(top).take(rows)) {
        let place = cluster.index(member.id).unwrap_or(0);
        if index == cursor {
            canvas.text(area, 0, y, &canvas.symbol('▸').to_string(), Role::Title);
        }
        canvas.text(area, 2, y, &Theme::letter(place).to_string(), Role::Node(place));
        let name = printable(member.member.name.as_bytes());
        let name_area = Rect { width: area.width.min(4 + name_width - 1), ..area };
        canvas.text(name_area, 4, y, &name, Role::Node(place));
        let (symbol, word, role) = state(cluster, member);
        canvas.text(area, 4 + name_width, y, &format!("{} {word}", canvas.symbol(symbol)), role);
        let mut end = first;
        for (name, width, _) in &columns {
            end += width;
            canvas.right(area, end, y, &cell(canvas, cluster, member, name), Role::Text);
        }
    }
}

/// How many rows the table wants.
pub(super) fn rows(cluster: &Cluster) -> u16 {
    u16::try_from(cluster.picture.description.members.len()).unwrap_or(u16::MAX).saturating_add(1)
}

/// The symbol, word and role of a member's state.
pub(super) fn state(cluster: &Cluster, member: &MemberView) -> (char, String, Role) {
    let snapshot = cluster.picture.snapshot(member.id);
    if snapshot.is_some_and(|snapshot| !snapshot.poisoned.is_empty()) {
        return ('✗', "STOPPED".to_owned(), Role::Bad);
    }
    let state = cluster.picture.state(member);
    let (symbol, role) = match state {
        MemberState::Up => ('●', Role::Good),
        MemberState::Spare | MemberState::Unspecified => ('○', Role::Dim),
        MemberState::Joining | MemberState::Leaving => ('◆', Role::Warn),
        MemberState::Suspect => ('▲', Role::Warn),
        MemberState::Down => ('✗', Role::Bad),
    };
    (symbol, state_word(state).to_uppercase(), role)
}

fn cell(canvas: &Canvas<'_>, cluster: &Cluster, member: &MemberView, column: &str) -> String {
    let snapshot = cluster.picture.snapshot(member.id);
    let share = cluster.shares.get(&member.id).copied();
    let rates = cluster.tracks.get(&member.id).and_then(|track| track.rates);
    let told = |figure: fn(&v1::NodeSnapshot) -> u64| snapshot.map(figure);
    let percent = |share: f64| format!("{:.1}%", share * 100.0);
    match column {
        "KEYS" => known(told(|snapshot| snapshot.keys), grouped),
        "BYTES" => known(told(|snapshot| snapshot.bytes), size),
        "OWN" => known(share, |share| percent(share.ownership)),
        "FAIR" => known(share, |share| percent(share.fair)),
        // The whole bar is the largest share, so that differences are seen.
        "" => share.map_or_else(String::new, |share| {
            let largest = cluster.shares.values().map(|share| share.ownership).fold(f64::MIN_POSITIVE, f64::max);
            canvas.meter(share.ownership / largest, METER)
        }),
        "+/-" => known(share, |share| {
            #[allow(clippy::cast_precision_loss, reason = "at most 65,536 partitions of 16 copies")]
            let over = share.partitions as f64 - share.fair_partitions;
            if over.abs() < 0.05 { "0.0".to_owned() } else { format!("{over:+.1}") }
        }),
        "GET/s" => known(rates, |rates| rate(rates.gets)),
        "PUT/s" => known(rates, |rates| rate(rates.writes)),
        "p99" => known(cluster.p99_us(member.id), latency),
        "HINTS" => known(snapshot.and_then(|snapshot| snapshot.pending), |pending| grouped(pending.hints)),
        "ADDRESS" => printable(member.address.as_bytes()),
        _ => String::new(),
    }
}
