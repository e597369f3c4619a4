//! Draws the model. A view reads the model and fills a buffer; it changes nothing and asks for nothing.

mod canvas;
mod chart;
mod events;
mod flow;
mod grid;
mod help;
mod inspector;
mod keys;
mod migration;
mod moves;
mod nodes;
mod output;
mod overlay;
mod overview;
mod partitions;
mod plan;
mod plan_pages;
mod registers;
mod ring;
mod table;

use kv_core::config::{Available, Mode};
use ratatui::buffer::Buffer;
use ratatui::layout::{Position, Rect};

use super::cluster::Cluster;
use super::dialog::Dialog;
use super::keymap::{Binding, Screen};
use super::level::Level;
use super::model::{Link, Model, Pane};
use super::mouse::{Target, Targets};
use super::theme::Role;
use crate::observe::faults::Faults;
use crate::observe::health::Word;
use crate::output::time::short;
use crate::run::report;
use canvas::{Canvas, Panel};
pub(super) use inspector::inspected_lines;
pub(super) use output::place as output_place;

/// Below this size there is only a message.
pub const SIZE_MIN: (u16, u16) = (60, 16);

/// A drawn screen.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Its cells.
    pub buffer: Buffer,
    /// Where the cursor of the terminal is; `None`: it is hidden.
    pub cursor: Option<Position>,
    /// What can be clicked.
    pub targets: Targets,
}

/// How much room there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// 120x36 and more: frames around everything.
    Wide,
    /// 80x24 and more: rules between the parts.
    Medium,
    /// 60x16 and more: the essential.
    Small,
}

impl Room {
    fn of(size: (u16, u16)) -> Option<Self> {
        let fits = |width, height| size.0 >= width && size.1 >= height;
        if fits(120, 36) {
            Some(Self::Wide)
        } else if fits(80, 24) {
            Some(Self::Medium)
        } else {
            fits(SIZE_MIN.0, SIZE_MIN.1).then_some(Self::Small)
        }
    }

    fn is_framed(self) -> bool {
        self == Self::Wide
    }
}

/// Whether a screen of this size has room for the ring beside the map.
#[must_use]
pub(super) fn shows_ring(size: (u16, u16)) -> bool {
    Room::of(size) == Some(Room::Wide)
}

/// What the header, the tabs and the footer leave.
fn body_of(area: Rect, room: Room) -> Rect {
    let above = 1 + u16::from(room != Room::Small);
    Rect { y: area.y + above, height: area.height.saturating_sub(above + 1), ..area }
}

/// Draws the model.
#[must_use]
pub fn draw(model: &Model) -> Frame {
    let area = Rect::new(0, 0, model.size.0, model.size.1);
    let mut buffer = Buffer::empty(area);
    let mut canvas = Canvas::new(&mut buffer, model.theme);
    let Some(room) = Room::of(model.size) else {
        let text = format!("{}x{} is too small; {}x{} is needed", area.width, area.height, SIZE_MIN.0, SIZE_MIN.1);
        for (y, line) in (0..area.height).zip(canvas.wrapped(&text, area.width)) {
            canvas.text(area, 0, y, &line, Role::Text);
        }
        return Frame { buffer, cursor: None, targets: Targets::default() };
    };
    let tabs = u16::from(room != Room::Small);
    draw_header(&mut canvas, model, Rect { height: 1, ..area }, room);
    if tabs > 0 {
        draw_tabs(&mut canvas, model, Rect { y: 1, height: 1, ..area });
    }
    let body = body_of(area, room);
    match model.shown() {
        None => draw_absent(&mut canvas, model, body),
        Some(cluster) => match model.screen {
            Screen::Overview => overview::draw(&mut canvas, model, cluster, body, room),
            Screen::Nodes => nodes::draw(&mut canvas, model, cluster, body, room),
            Screen::Migration => migration::draw(&mut canvas, model, cluster, body, room),
            Screen::Keys => keys::draw(&mut canvas, model, cluster, body, room),
            Screen::Events => events::draw(&mut canvas, model, cluster, body, room),
        },
    }
    let quiet = |output: &&super::model::Output| !(output.quiet && output.code.is_none());
    if let Some(output) = model.output.as_ref().filter(quiet) {
        output::draw(&mut canvas, output, body, room);
    }
    let asked = model.dialog.as_ref().and_then(|dialog| overlay::dialog(&mut canvas, model, dialog, body));
    let cursor = draw_footer(&mut canvas, model, area).or(asked);
    let targets = std::mem::take(&mut canvas.targets);
    Frame { buffer, cursor, targets }
}

/// A panel of a part in which keys can move.
fn pane<'a>(model: &Model, pane: Pane, title: &'a str, note: &'a str, room: Room) -> Panel<'a> {
    Panel { title, note, framed: room.is_framed(), pane: Some((pane, model.pane == pane)) }
}

/// A panel that only shows.
fn plain<'a>(title: &'a str, note: &'a str, room: Room) -> Panel<'a> {
    Panel { title, note, framed: room.is_framed(), pane: None }
}

/// What a filter leaves, for the note of a panel; nothing if there is no filter.
pub(super) fn filter_note(filter: &str, shown: usize, all: usize) -> String {
    if filter.is_empty() { String::new() } else { format!("filter {filter}: {shown} of {all}") }
}

/// The upper `height` rows of an area, and the rest.
pub(super) fn split(area: Rect, height: u16) -> (Rect, Rect) {
    let height = height.min(area.height);
    (Rect { height, ..area }, Rect { y: area.y + height, height: area.height - height, ..area })
}

/// The left `width` columns of an area, and the rest.
pub(super) fn columns(area: Rect, width: u16) -> (Rect, Rect) {
    let width = width.min(area.width);
    (Rect { width, ..area }, Rect { x: area.x + width, width: area.width - width, ..area })
}

fn draw_header(canvas: &mut Canvas<'_>, model: &Model, area: Rect, room: Room) {
    let place = format!("{} {} {}", model.target, canvas.symbol('▸'), model.screen.title());
    let title = if room == Room::Small { place } else { format!("kv-tui  {place}") };
    let Some(cluster) = model.shown() else {
        canvas.text(area, 1, 0, &title, Role::Title);
        return;
    };
    let description = &cluster.snapshot.description;
    let health = cluster.health().word;
    let role = Level::from(health).role();
    let symbol = match health {
        Word::Healthy => '●',
        Word::Settling | Word::Uneven => '◆',
        Word::Degraded => '▲',
        Word::Unavailable => '✗',
        Word::Forming => '○',
    };
    let up = description.members.iter().filter(|member| cluster.snapshot.serves(member.id)).count();
    let mut facts = match description.forming {
        Some((present, expected)) => format!("  {present}/{expected} members"),
        None => format!("  {up}/{} up", description.members.len()),
    };
    if let Some(layout) = &description.layout {
        if let Some(keyspace) = description.keyspaces.first().filter(|_| room == Room::Wide) {
            let copies = layout.owners_per_partition();
            match keyspace.mode {
                Mode::Available(Available { r, w, .. }) => facts.push_str(&format!("  N{copies} R{r} W{w}")),
                Mode::Consistent => facts.push_str(&format!("  N{copies} consistent")),
            }
        }
        let epoch = if room == Room::Small { "e" } else { "epoch " };
        facts.push_str(&format!("  {epoch}{}", layout.epoch.0));
    }
    facts.push_str(if model.read_only { "  RO " } else { "  RW " });
    let (link, link_role) = link_words(canvas, model);
    // Without a row of tabs, old data is marked as such here.
    let (word, role, facts) = if room == Room::Small && link_role != Role::Good {
        (link, link_role, " ".to_owned())
    } else {
        (format!("{} {}", canvas.symbol(symbol), health.text().to_uppercase()), role, facts)
    };
    // Whoever looks at a screen must not take a drill for an emergency, nor the other way round.
    let drill = match Faults::of(&cluster.snapshot).is_empty() {
        true => "",
        false => "FAULTS INJECTED  ",
    };
    let width = canvas.width(drill) + canvas.width(&word) + canvas.width(&facts);
    let x = area.width.saturating_sub(width);
    let title = canvas.fitted(&title, x.saturating_sub(2));
    canvas.text(area, 1, 0, &title, Role::Title);
    let x = canvas.text(area, x, 0, drill, Role::Bad);
    let x = canvas.text(area, x, 0, &word, role);
    canvas.text(area, x, 0, &facts, Role::Text);
}

/// What may fail, marked where it is dangerous, and how it is drawn.
fn safety(canvas: &Canvas<'_>, cluster: &Cluster, line: &str) -> (String, Role) {
    let level = Level::from(cluster.safety());
    let mark = level.mark().map_or_else(String::new, |mark| format!("{} ", canvas.symbol(mark)));
    (format!("{mark}{line}"), level.role())
}

fn draw_tabs(canvas: &mut Canvas<'_>, model: &Model, area: Rect) {
    let mut x = 1;
    for (index, screen) in Screen::ALL.into_iter().enumerate() {
        let role = if screen == model.screen { Role::Selected } else { Role::Text };
        let title = format!(" {} {} ", index + 1, screen.title());
        canvas.target(area, x, 0, canvas.width(&title), Target::Screen(screen));
        x = canvas.text(area, x, 0, &title, role);
    }
    let (text, role) = link_words(canvas, model);
    let end = area.width.saturating_sub(canvas.width(&text) + 1).max(x + 1);
    canvas.text(area, end, 0, &text, role);
    if let Some(cluster) = model.shown() {
        let (text, role) = safety(canvas, cluster, &cluster.safety().short_line());
        let role = if role == Role::Good { Role::Dim } else { role };
        if x + canvas.width(&text) + 4 <= end {
            canvas.right(area, end - 2, 0, &text, role);
        }
    }
}

/// How fresh what is shown is.
fn link_words(canvas: &Canvas<'_>, model: &Model) -> (String, Role) {
    let age =
        |since: u64| short(std::time::Duration::from_secs((model.now_us.saturating_sub(since) / 1_000_000).max(1)));
    if let Some(frozen) = &model.frozen {
        // The moment, not an age, so that nothing moves on a frozen screen.
        return (format!("FROZEN at {}  Space resumes", canvas::clock(frozen.reported_us)), Role::Warn);
    }
    match (&model.link, &model.cluster) {
        (Link::Connecting, _) => ("connecting".to_owned(), Role::Warn),
        (Link::Offline { .. }, Some(cluster)) => {
            (format!("{} OFFLINE  data {} old", canvas.symbol('✗'), age(cluster.reported_us)), Role::Bad)
        }
        (Link::Offline { .. }, None) => (format!("{} OFFLINE", canvas.symbol('✗')), Role::Bad),
        (Link::Live, Some(cluster)) if model.now_us.saturating_sub(cluster.reported_us) > super::cluster::FRESH_US => {
            (format!("{} data {} old", canvas.symbol('▲'), age(cluster.reported_us)), Role::Warn)
        }
        (Link::Live, _) => (format!("{} LIVE", canvas.symbol('▶')), Role::Good),
    }
}

/// Nothing has been seen of the cluster yet.
fn draw_absent(canvas: &mut Canvas<'_>, model: &Model, area: Rect) {
    let mut lines = vec![format!("Connecting to {}", model.target)];
    if let Link::Offline { error, retry_us } = &model.link {
        let left = retry_us.saturating_sub(model.now_us).div_ceil(1_000_000);
        lines = vec![format!("No node of {} is in reach; trying again in {left} s", model.target), String::new()];
        lines.extend(canvas.wrapped(error, area.width.saturating_sub(4)));
        lines.push(String::new());
        lines.push("Start the nodes, or name others with --connect ADDR:PORT".to_owned());
    }
    for (row, line) in (1_u16..).zip(&lines) {
        canvas.text(area, 2, row, line, Role::Text);
    }
}

/// How far the operation that is followed is.
fn followed(canvas: &Canvas<'_>, model: &Model) -> Option<String> {
    let (operation, leaving) = super::update::followed(model)?;
    let progress = model.cluster.as_ref()?.operations.progress.as_ref();
    let progress = progress.filter(|progress| progress.operation.id == operation.id && progress.is_active());
    let text = match (leaving, progress) {
        (Some(why), _) => format!("{} done; {why}", operation.command),
        (None, Some(progress)) => {
            let left = progress.eta().map_or_else(String::new, |(left, _)| format!(", {} left", report::seconds(left)));
            let far = format!("{:.1}%, {}/{} moves", progress.share() * 100.0, progress.moved(), operation.moves);
            format!("{far}{left}: {}", operation.command)
        }
        (None, None) => operation.command.clone(),
    };
    Some(format!("{} {}", canvas.symbol('▶'), crate::output::bytes::printable(text.as_bytes())))
}

/// The last line: what is typed, a message, or the hints.
fn draw_footer(canvas: &mut Canvas<'_>, model: &Model, screen: Rect) -> Option<Position> {
    let area = Rect { y: screen.height - 1, height: 1, ..screen };
    let above = Rect { y: screen.height.saturating_sub(2), height: 1, ..screen };
    if let Some(bar) = &model.bar {
        return Some(overlay::bar(canvas, model, bar, above, area));
    }
    if let Some(bar) = &model.filter {
        let prompt = if model.screen == Screen::Keys { "prefix: " } else { "filter: " };
        return Some(overlay::line(canvas, prompt, bar, area));
    }
    if !model.notice.is_empty() {
        let notice = canvas.fitted(&model.notice, area.width.saturating_sub(2));
        canvas.text(area, 1, 0, &notice, Role::Warn);
        return None;
    }
    if let Some(Dialog::Confirm(_)) = &model.dialog {
        canvas.text(area, 1, 0, "Enter does it when the word is typed   Esc leaves everything as it is", Role::Dim);
        return None;
    }
    if let Some(Dialog::Plan(planning)) = &model.dialog {
        canvas.text(area, 1, 0, plan::hint(planning, model.epoch()), Role::Dim);
        return None;
    }
    let mut hints: Vec<&Binding> =
        model.keymap.active(model.screen).filter(|binding| !binding.short.is_empty()).collect();
    let key = |binding: &Binding| binding.keys.first().map(|key| key.name()).unwrap_or_default();
    // The last three lead to everything else; what is before them is dropped first where there is no room.
    let width = |hints: &[&Binding]| {
        hints.iter().map(|hint| canvas.width(&key(hint)) + canvas.width(hint.short) + 3).sum::<u16>()
    };
    while width(&hints) > area.width && hints.len() > 3 {
        hints.remove(hints.len() - 4);
    }
    let mut x = 1;
    if let Some(text) = followed(canvas, model) {
        // What leads to everything else stays.
        hints.drain(..hints.len().saturating_sub(3));
        let room = area.width.saturating_sub(width(&hints) + 3);
        x = canvas.text(area, x, 0, &canvas.fitted(&text, room), Role::Good) + 2;
    }
    for hint in &hints {
        let width = canvas.width(&key(hint)) + 1 + canvas.width(hint.short);
        canvas.target(area, x, 0, width, Target::Do(hint.action));
        x = canvas.text(area, x, 0, &key(hint), Role::Title) + 1;
        x = canvas.text(area, x, 0, hint.short, Role::Dim) + 2;
    }
    None
}
