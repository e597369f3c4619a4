//! The plan dialog: the fields, and the plan with what it moves and means.

use std::collections::BTreeSet;

use kv_core::types::NodeId;
use kv_proto::v1;
use kv_proto::v1::change::Change as Kinds;
use ratatui::layout::{Position, Rect};

use super::canvas::Canvas;
use super::overlay::{boxed, draw_typed};
use super::plan_pages;
use crate::dashboard::cluster::Cluster;
use crate::dashboard::keymap::Key;
use crate::dashboard::model::Model;
use crate::dashboard::mouse::Target;
use crate::dashboard::planning::{Kind, Page, Planning, Review, Stage};
use crate::dashboard::theme::{Role, Theme};
use crate::output::bytes::printable;
use crate::output::time::size;
use crate::run::preview;

/// The widest that the dialog gets.
const WIDTH_MAX: u16 = 108;

/// Where the values of the fields and the words of the summary begin.
const LABEL: u16 = 9;

/// Partitions that the map draws; of more it says how many move.
const MAP_PARTITIONS_MAX: usize = 4096;

/// A line: pieces with their roles.
pub(super) type Line = Vec<(String, Role)>;

/// What the last row of the screen says.
pub(super) fn hint(planning: &Planning, epoch: Option<u64>) -> &'static str {
    match &planning.stage {
        Stage::Form => "Tab next  Shift-Tab back  Enter shows the plan  Esc cancel",
        Stage::Starting | Stage::Joining(_) | Stage::Asked => "Esc back to the fields",
        Stage::Review(review) if review.types(epoch) => "Enter starts it  Tab keys  Up/Down scroll  Esc cancel",
        Stage::Review(_) => "j/k scroll  o sources  w why these moves  y copy  E export  b back  Tab type  Esc cancel",
    }
}

/// Draws the dialog; where the cursor is if text is typed.
pub(super) fn draw(canvas: &mut Canvas<'_>, model: &Model, planning: &Planning, area: Rect) -> Option<Position> {
    let width = WIDTH_MAX.min(area.width);
    let title = planning.kind.title();
    let cluster = model.shown()?;
    if let Stage::Review(review) = &planning.stage {
        return draw_review(canvas, model, cluster, (planning.kind, review), Rect { width, ..area }, area);
    }
    let mut notes: Vec<Line> = Vec::new();
    let mut add = |text: String, role: Role| {
        notes.extend(canvas.wrapped(&text, width - 4).into_iter().map(|line| vec![(line, role)]));
    };
    match &planning.stage {
        Stage::Form => {
            let spares: Vec<&str> = cluster
                .snapshot
                .description
                .members
                .iter()
                .filter(|it| it.member.spare)
                .map(|it| it.member.name.as_str())
                .collect();
            if matches!(planning.kind, Kind::Add | Kind::Replace) && !spares.is_empty() {
                add(format!("spares: {}", printable(spares.join(" ").as_bytes())), Role::Dim);
            }
            let throttle = cluster.operations.throttle.as_ref();
            let limit = match throttle.and_then(|throttle| throttle.bytes_per_second_max) {
                Some(limit) => format!("{}/s for each receiving node", size(limit)),
                None => "none".to_owned(),
            };
            add(format!("limit on copying now: {limit}"), Role::Dim);
        }
        Stage::Starting => add("Starting a process for the new node; nothing moves yet.".to_owned(), Role::Text),
        Stage::Joining(name) => add(format!("{name} runs; waiting until it is a member."), Role::Text),
        Stage::Asked | Stage::Review(_) => add("Computing the plan; nothing moves yet.".to_owned(), Role::Text),
    }
    if !planning.error.is_empty() {
        add(printable(planning.error.as_bytes()), Role::Bad);
    }
    let fields = u16::try_from(planning.fields.len()).unwrap_or(0);
    let rows = fields + 3 + u16::try_from(notes.len()).unwrap_or(0);
    let inner = boxed(canvas, area, (width, rows + 4), title, "nothing has changed yet");
    let mut cursor = None;
    // With little room only the field in which is typed says what belongs there.
    let beside = inner.width >= 100;
    let hint_x = if beside { inner.width / 2 - 8 } else { inner.width };
    for (y, (at, field)) in (1..inner.height).zip(planning.fields.iter().enumerate()) {
        let focused = at == planning.focus && planning.stage == Stage::Form;
        canvas.text(inner, 0, y, field.name, if focused { Role::Focus } else { Role::Dim });
        canvas.target(inner, 0, y, inner.width, Target::Field(at));
        let value = Rect { y: inner.y + y, height: 1, width: hint_x.saturating_sub(1), ..inner };
        let position = draw_typed(canvas, &field.value, value, LABEL);
        if !field.choices.is_empty() && focused {
            let end = LABEL + canvas.width(&field.value.text);
            canvas.text(value, end + 1, 0, "(Space changes it)", Role::Dim);
        } else if focused {
            cursor = Some(position);
        }
        if beside {
            canvas.text(inner, hint_x, y, field.hint, Role::Dim);
        } else if focused {
            let hint = canvas.fitted(field.hint, inner.width.saturating_sub(LABEL));
            canvas.text(inner, LABEL, fields + 1, &hint, Role::Dim);
        }
    }
    draw_lines(
        canvas,
        &notes,
        Rect { y: inner.y + fields + 2, height: inner.height.saturating_sub(fields + 4), ..inner },
    );
    let buttons = [(Key::Esc, "Cancel", Role::Text), (Key::Enter, "Show the plan", Role::Title)];
    draw_buttons(canvas, inner, &buttons, planning.stage == Stage::Form);
    cursor
}

fn draw_review(
    canvas: &mut Canvas<'_>,
    model: &Model,
    cluster: &Cluster,
    (kind, review): (Kind, &Review),
    wanted: Rect,
    area: Rect,
) -> Option<Position> {
    let width = wanted.width - 4;
    let lines = match review.page {
        Page::Plan => lines(canvas, cluster, review, width),
        Page::Sources => plan_pages::sources(canvas, cluster, review, width),
        Page::Why => plan_pages::why(canvas, cluster, review, width),
    };
    let height = u16::try_from(lines.len()).unwrap_or(u16::MAX).saturating_add(6).min(area.height);
    let page = match review.page {
        Page::Plan => "review the plan",
        Page::Sources => "where copies are read",
        Page::Why => "why these moves",
    };
    let title = format!("{}: {page}", kind.title());
    let inner = boxed(canvas, area, (wanted.width, height), &title, "dry run: nothing has changed yet");
    let below = 3.min(inner.height);
    let shown = Rect { height: inner.height - below, ..inner };
    let last = lines.len().saturating_sub(usize::from(shown.height));
    let top = review.top.min(last);
    draw_lines(canvas, &lines[top..], shown);
    if top < last {
        canvas.right(inner, inner.width, shown.height, &format!(" {} more lines below ", last - top), Role::Dim);
    }
    let y = inner.height.saturating_sub(2);
    let field = Rect { y: inner.y + y, height: 1, ..inner };
    let epoch = model.epoch();
    let typing = review.types(epoch);
    let mut buttons = vec![(Key::Esc, "Cancel", Role::Text), (Key::Char('b'), "Back", Role::Text)];
    let mut cursor = None;
    if review.is_void(epoch) {
        let now = epoch.unwrap_or_default();
        let text =
            format!("This plan is void: it was made for epoch {}, and it is {now} now.", review.plan.parent_epoch);
        canvas.text(field, 0, 0, &canvas.fitted(&text, inner.width), Role::Bad);
        buttons.push((Key::Enter, "New plan", Role::Title));
    } else if !review.plan.refusals.is_empty() {
        canvas.text(field, 0, 0, "As things are, this plan must not start; see above what to do.", Role::Bad);
    } else {
        let prompt = format!("Type {} to unlock Start: ", review.confirm.word);
        let start = canvas.text(field, 0, 0, &prompt, Role::Warn);
        let position = draw_typed(canvas, &review.confirm.typed, field, start);
        cursor = typing.then_some(position);
        canvas.target(field, 0, 0, inner.width, Target::Field(0));
        let note = format!("void if epoch {} changes", review.plan.parent_epoch);
        if start + canvas.width(&review.confirm.typed.text) + canvas.width(&note) + 2 < inner.width {
            canvas.right(field, inner.width, 0, &note, Role::Dim);
        }
        let role = if review.confirm.is_typed() { Role::Good } else { Role::Dim };
        buttons.push((Key::Enter, "Start", role));
    }
    let marked = |page: Page| if review.page == page { Role::Title } else { Role::Text };
    buttons.insert(2, (Key::Char('o'), "Sources", marked(Page::Sources)));
    buttons.insert(3, (Key::Char('w'), "Why", marked(Page::Why)));
    buttons.insert(4, (Key::Char('E'), "Export JSON", Role::Text));
    buttons.insert(5, (Key::Char('y'), "Copy command", Role::Text));
    if typing {
        buttons.insert(2, (Key::Tab, "Keys", Role::Text));
    }
    draw_buttons(canvas, inner, &buttons, typing);
    cursor
}

fn draw_lines(canvas: &mut Canvas<'_>, lines: &[Line], area: Rect) {
    for (y, line) in (0..area.height).zip(lines) {
        let mut x = 0;
        for (text, role) in line {
            x = canvas.text(area, x, y, text, *role);
        }
    }
}

/// What can be clicked, in the last row. While a field takes the letters, they name no button.
fn draw_buttons(canvas: &mut Canvas<'_>, area: Rect, buttons: &[(Key, &str, Role)], typing: bool) {
    let Some(y) = area.height.checked_sub(1) else { return };
    let whole = |(key, what, _): &(Key, &str, Role)| match key {
        Key::Char(_) if typing => format!("[{what}]"),
        key => format!("[{} {what}]", key.name()),
    };
    let all: u16 = buttons.iter().map(|button| canvas.width(&whole(button)) + 2).sum();
    // Where there is no room only the last one, which does it, says what it is.
    let short = all > area.width + 2;
    let text = |button: &(Key, &str, Role)| match button.0 {
        Key::Enter => whole(button),
        Key::Tab if short => whole(button),
        key if short => format!("[{}]", key.name()),
        _ => whole(button),
    };
    // Letters alone would say nothing while they are typed.
    let named = |button: &&(Key, &str, Role)| !(short && typing && matches!(button.0, Key::Char(_)));
    let buttons: Vec<&(Key, &str, Role)> = buttons.iter().filter(named).collect();
    let all: u16 = buttons.iter().map(|button| canvas.width(&text(button)) + 2).sum();
    let mut x = area.width.saturating_sub(all.saturating_sub(2));
    for button in buttons {
        let text = text(button);
        canvas.target(area, x, y, canvas.width(&text), Target::Press(button.0));
        x = canvas.text(area, x, y, &text, button.2) + 2;
    }
}

fn lines(canvas: &Canvas<'_>, cluster: &Cluster, review: &Review, width: u16) -> Vec<Line> {
    let plan = &review.plan;
    let mut lines = checks(canvas, cluster, plan);
    lines.extend(ownership(canvas, cluster, plan, width));
    lines.extend(map(canvas, cluster, plan, width));
    lines.push(Vec::new());
    for text in preview::summary(&cluster.snapshot, plan, review.bytes_per_second) {
        let (word, rest) = text.split_at_checked(usize::from(LABEL)).unwrap_or((&text, ""));
        let role = match word.trim() {
            "refused" => Role::Bad,
            "warning" => Role::Warn,
            // The command is shown below, with the word that it needs.
            "to do it" => continue,
            _ => Role::Text,
        };
        for (at, line) in canvas.wrapped(&printable(rest.as_bytes()), width - LABEL).into_iter().enumerate() {
            let word = if at == 0 { word.trim().to_uppercase() } else { String::new() };
            lines.push(vec![(format!("{word:<9}"), if role == Role::Text { Role::Dim } else { role }), (line, role)]);
        }
    }
    for (at, line) in canvas.wrapped(&printable(review.command().as_bytes()), width - LABEL).into_iter().enumerate() {
        lines.push(vec![(if at == 0 { "SAME AS  " } else { "         " }.to_owned(), Role::Dim), (line, Role::Dim)]);
    }
    lines
}

/// What was checked of the nodes that enter the cluster.
fn checks(canvas: &Canvas<'_>, cluster: &Cluster, plan: &v1::PlanResponse) -> Vec<Line> {
    let entering = plan.changes.iter().filter_map(|change| match change.change {
        Some(Kinds::Add(node)) => Some(node),
        Some(Kinds::Replace(replace)) => Some(replace.new),
        _ => None,
    });
    let description = &cluster.snapshot.description;
    let mut lines = Vec::new();
    for member in entering.filter_map(|node| description.members.iter().find(|member| member.id == NodeId(node))) {
        let snapshot = cluster.snapshot.report(member.id);
        let builds: BTreeSet<&str> = cluster.snapshot.node_reports().map(|snapshot| snapshot.build.as_str()).collect();
        let facts = format!(
            "{}   {}   zone {}   weight {}",
            member.member.name, member.address, member.member.zone, member.member.weight
        );
        lines.push(vec![(printable(facts.as_bytes()), Role::Title)]);
        let answers: [(bool, &str, &str); 3] = [
            (snapshot.is_some(), "in reach", "not in reach"),
            (builds.len() <= 1, "same version", "versions differ"),
            (snapshot.is_some_and(|snapshot| snapshot.keys == 0), "empty store", "holds keys"),
        ];
        let mut line: Line = Vec::new();
        for (good, yes, no) in answers {
            let (symbol, text, role) = if good { ('✓', yes, Role::Good) } else { ('▲', no, Role::Warn) };
            line.push((format!("{} {text}   ", canvas.symbol(symbol)), role));
        }
        lines.push(line);
    }
    if !lines.is_empty() {
        lines.push(Vec::new());
    }
    lines
}

/// What every node owns, now and afterwards.
fn ownership(canvas: &Canvas<'_>, cluster: &Cluster, plan: &v1::PlanResponse, width: u16) -> Vec<Line> {
    let cells = match width {
        100.. => 20,
        74.. => 8,
        _ => 0,
    };
    let gap = " ".repeat(cells);
    let title = format!("OWNERSHIP       NOW {gap}   AFTER {gap}   CHANGE     PARTITIONS");
    let mut lines = vec![vec![(title, Role::Dim)]];
    let most = plan
        .nodes
        .iter()
        .flat_map(|node| [node.before.unwrap_or_default().ownership, node.after.unwrap_or_default().ownership])
        .fold(f64::MIN_POSITIVE, f64::max);
    for node in &plan.nodes {
        let (before, after) = (node.before.unwrap_or_default(), node.after.unwrap_or_default());
        let (letter, role) = lettered(canvas, cluster, node.node);
        let name = canvas.fitted(&printable(node.name.as_bytes()), 9);
        let bar = |share: f64| if cells == 0 { String::new() } else { canvas.meter(share / most, cells) };
        let change = (after.ownership - before.ownership) * 100.0;
        let change = if change.abs() < 0.05 { String::new() } else { format!("{change:+.1}%") };
        let arrow = canvas.symbol('→');
        let partitions = if before.copies == after.copies {
            after.copies.to_string()
        } else {
            format!("{} {arrow} {}", before.copies, after.copies)
        };
        let note = match (before.copies, after.copies) {
            (0, 1..) => "  new",
            (1.., 0) => "  empty",
            _ => "",
        };
        lines.push(vec![
            (format!("{letter} {name:<9}"), role),
            (format!(" {:>6.1}% {}", before.ownership * 100.0, bar(before.ownership)), Role::Text),
            (format!(" {:>6.1}% {}", after.ownership * 100.0, bar(after.ownership)), Role::Text),
            (format!(" {change:>7}"), Role::Text),
            (format!("  {partitions:>13}"), Role::Text),
            (note.to_owned(), Role::Title),
        ]);
    }
    lines
}

/// The partitions in token order: who gets a copy.
fn map(canvas: &Canvas<'_>, cluster: &Cluster, plan: &v1::PlanResponse, width: u16) -> Vec<Line> {
    let Some(layout) = cluster.snapshot.description.layout.as_deref() else { return Vec::new() };
    let count = layout.partitions.len();
    if plan.moves.is_empty() {
        return Vec::new();
    }
    let touched: BTreeSet<u32> = plan.moves.iter().map(|step| step.partition).collect();
    if count > MAP_PARTITIONS_MAX {
        let text = format!("PARTITIONS  {} of {count} get a copy elsewhere", touched.len());
        return vec![Vec::new(), vec![(text, Role::Dim)]];
    }
    let mut cells: Vec<(char, Role)> = vec![(canvas.symbol('·'), Role::Dim); count];
    let mut taken = vec![false; count];
    for step in &plan.moves {
        let Some(at) = usize::try_from(step.partition).ok().filter(|at| *at < count) else { continue };
        cells[at] = if taken[at] { ('+', Role::Title) } else { lettered(canvas, cluster, step.to) };
        taken[at] = true;
    }
    let mark = canvas.symbol('·');
    let title = format!("PARTITIONS in token order: the letter of who gets a copy, + several do, {mark} stays");
    let mut lines = vec![Vec::new(), vec![(canvas.fitted(&title, width), Role::Dim)]];
    let across = if width >= 74 { 64 } else { 32 };
    for (row, cells) in cells.chunks(across).enumerate() {
        let mut line: Line = vec![(format!("{:>6} ", row * across), Role::Dim)];
        for (at, (letter, role)) in cells.iter().enumerate() {
            let gap = if at % 16 == 0 && at > 0 { " " } else { "" };
            line.push((format!("{gap}{letter}"), *role));
        }
        lines.push(line);
    }
    lines
}

/// The letter and colour of a node.
pub(super) fn lettered(canvas: &Canvas<'_>, cluster: &Cluster, node: u64) -> (char, Role) {
    let index = cluster.index(NodeId(node));
    index.map_or_else(|| (canvas.symbol('·'), Role::Text), |index| (Theme::letter(index), Role::Node(index)))
}
