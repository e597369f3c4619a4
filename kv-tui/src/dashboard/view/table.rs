//! The table of the nodes, with the columns that fit.

use kv_core::types::NodeId;
use kv_proto::describe::MemberView;
use kv_proto::v1::MemberState;
use ratatui::layout::Rect;

use super::canvas::{Canvas, grouped, known, latency, rate};
use crate::dashboard::cluster::Cluster;
use crate::dashboard::columns::Column;
use crate::dashboard::level::Level;
use crate::dashboard::list::top_of;
use crate::dashboard::model::Model;
use crate::dashboard::mouse::Target;
use crate::dashboard::theme::{Role, Theme};
use crate::observe::snapshot::state_word;
use crate::output::bytes::printable;
use crate::output::time::{short, size};

/// Cells of the bar of shares.
const METER: usize = 8;

/// Cells in front of the name: the mark of the selection and the letter.
const LEAD: u16 = 4;

/// Cells of the state.
const STATE: u16 = 10;

/// The most cells that names take.
const NAME_MAX: u16 = 16;

/// Which table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table<'a> {
    /// The columns behind name and state.
    pub(super) columns: &'a [Column],
    /// Whether the last row holds the sums.
    pub(super) totals: bool,
}

/// Draws the table, the selected row marked, scrolled so that it is seen.
pub(super) fn draw(canvas: &mut Canvas<'_>, model: &Model, cluster: &Cluster, area: Rect, table: Table<'_>) {
    let names = cluster.snapshot.description.members.iter().map(|member| canvas.width(&member.member.name));
    let name_width = names.max().unwrap_or(0).clamp(4, NAME_MAX) + 2;
    let first = LEAD + name_width + STATE;
    let mut columns: Vec<Column> = table.columns.to_vec();
    // A column that would be cut is left out, the least important first.
    while first + columns.iter().map(|column| column.width()).sum::<u16>() > area.width {
        let Some(at) = (0..columns.len()).min_by_key(|at| columns[*at].rank()) else { break };
        columns.remove(at);
    }
    let all = [(Column::Name, LEAD, name_width), (Column::State, LEAD + name_width, STATE)].into_iter();
    let mut end = first;
    let all: Vec<(Column, u16, u16)> = all
        .chain(columns.iter().map(|column| {
            end += column.width();
            (*column, end - column.width(), column.width())
        }))
        .collect();
    for (column, x, width) in &all {
        let sorted = model.nodes.sort == *column && *column != Column::Name;
        let arrow = if sorted { canvas.symbol('▼').to_string() } else { String::new() };
        let role = if sorted { Role::Title } else { Role::Dim };
        if column.is_text() {
            let shift = u16::from(column.width() > 0) * 2;
            canvas.text(area, x + shift, 0, &format!("{}{arrow}", column.title()), role);
        } else {
            canvas.right(area, x + width, 0, &format!("{}{arrow}", column.title()), role);
        }
        canvas.target(area, *x, 0, *width, Target::NodeColumn(*column));
    }
    let members = cluster.ordered(&model.nodes);
    let totals = u16::from(table.totals && area.height > 3);
    let rows = usize::from(area.height.saturating_sub(1 + totals));
    let ids: Vec<NodeId> = members.iter().map(|member| member.id).collect();
    let cursor = model.nodes.row_in(&ids);
    let top = top_of(cursor, rows);
    if members.is_empty() {
        canvas.text(area, LEAD, 1, "no node passes the filter; Esc clears it", Role::Dim);
    }
    for (y, (index, member)) in (1_u16..).zip(members.iter().enumerate().skip(top).take(rows)) {
        let place = cluster.index(member.id).unwrap_or(0);
        if index == cursor {
            canvas.text(area, 0, y, &canvas.symbol('▸').to_string(), Role::Title);
        }
        canvas.text(area, 2, y, &Theme::letter(place).to_string(), Role::Node(place));
        let name = canvas.fitted(&printable(member.member.name.as_bytes()), name_width - 2);
        canvas.text(area, LEAD, y, &name, Role::Node(place));
        let (symbol, word, role) = state(cluster, member);
        canvas.text(area, LEAD + name_width, y, &format!("{} {word}", canvas.symbol(symbol)), role);
        for (column, x, width) in all.iter().skip(2) {
            let text = cell(canvas, cluster, member, *column);
            if column.is_text() {
                let text = canvas.fitted(&text, width - 2);
                canvas.text(area, x + 2, y, &text, Role::Text);
            } else {
                canvas.right(area, x + width, y, &text, Role::Text);
            }
        }
        canvas.target(area, 0, y, area.width, Target::Node(member.id));
    }
    if totals > 0 {
        let y = u16::try_from(members.len().min(rows)).unwrap_or(0) + 1;
        canvas.text(area, 2, y, &canvas.symbol('Σ').to_string(), Role::Dim);
        canvas.text(area, LEAD, y, "all", Role::Dim);
        for (column, x, width) in all.iter().skip(2) {
            canvas.right(area, x + width, y, &total(cluster, &members, *column), Role::Title);
        }
    }
}

/// How many rows the table wants.
pub(super) fn rows(cluster: &Cluster, model: &Model, totals: bool) -> u16 {
    let members = cluster.ordered(&model.nodes).len().max(1);
    u16::try_from(members).unwrap_or(u16::MAX - 4).saturating_add(1 + u16::from(totals))
}

/// The symbol, word and role of a member's state.
pub(super) fn state(cluster: &Cluster, member: &MemberView) -> (char, String, Role) {
    let snapshot = cluster.snapshot.report(member.id);
    if snapshot.is_some_and(|snapshot| !snapshot.poisoned.is_empty()) {
        return ('✗', "STOPPED".to_owned(), Level::Danger.role());
    }
    let state = cluster.snapshot.state(member);
    let symbol = match state {
        MemberState::Up => '●',
        MemberState::Spare | MemberState::Unspecified => '○',
        MemberState::Joining | MemberState::Leaving => '◆',
        MemberState::Suspect => '▲',
        MemberState::Down => '✗',
    };
    (symbol, state_word(state).to_uppercase(), Level::from(state).role())
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts, back from the form in which they are compared"
)]
fn shown(canvas: &Canvas<'_>, column: Column, value: f64) -> String {
    let whole = value.max(0.0) as u64;
    match column {
        Column::Own | Column::Fair => format!("{:.1}%", value * 100.0),
        Column::Bar => canvas.meter(value, METER),
        Column::Over if value.abs() < 0.05 => "0.0".to_owned(),
        Column::Over => format!("{value:+.1}"),
        Column::Gets | Column::Puts => rate(value),
        Column::P50 | Column::P99 => latency(whole),
        Column::Bytes => size(whole),
        // Whole minutes: seconds would be the only thing that moves on an idle screen.
        Column::Up => short(std::time::Duration::from_secs((whole / 60_000_000 * 60).max(60))),
        _ => grouped(whole),
    }
}

fn cell(canvas: &Canvas<'_>, cluster: &Cluster, member: &MemberView, column: Column) -> String {
    match column {
        Column::Zone => printable(member.member.zone.as_bytes()),
        Column::Address => printable(member.address.as_bytes()),
        // The whole bar is the largest share, so that differences are seen.
        Column::Bar => {
            let largest = cluster.shares.values().map(|share| share.ownership).fold(f64::MIN_POSITIVE, f64::max);
            cluster.metric(member, column).map_or_else(String::new, |value| canvas.meter(value / largest, METER))
        }
        _ => known(cluster.metric(member, column), |value| shown(canvas, column, value)),
    }
}

/// The sum over the members shown; nothing for what has no sum, `-` where a member does not report its part.
fn total(cluster: &Cluster, members: &[&MemberView], column: Column) -> String {
    let sum = || members.iter().map(|member| cluster.metric(member, column)).sum::<Option<f64>>();
    match column {
        Column::Partitions | Column::Primary | Column::Keys | Column::Hints =>
        {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a sum of counts")]
            known(sum(), |sum| grouped(sum as u64))
        }
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a sum of counts")]
        Column::Bytes => known(sum(), |sum| size(sum as u64)),
        Column::Own | Column::Fair => known(sum(), |sum| format!("{:.1}%", sum * 100.0)),
        Column::Gets | Column::Puts => known(sum(), rate),
        _ => String::new(),
    }
}
