//! Draws the model. A view reads the model and fills a buffer; it changes nothing and asks for nothing.

mod canvas;
mod events;
mod keys;
mod nodes;
mod overlay;
mod overview;
mod table;

use ratatui::buffer::Buffer;
use ratatui::layout::{Position, Rect};

use super::keymap::{Screen, active};
use super::model::{Link, Model};
use super::theme::Role;
use crate::output::time::short;
use crate::run::health::Word;
use canvas::Canvas;

/// Below this size there is only a message.
pub const SIZE_MIN: (u16, u16) = (60, 16);

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
}

/// Draws the model, and tells where the cursor of the terminal stands; `None`: it is hidden.
#[must_use]
pub fn draw(model: &Model) -> (Buffer, Option<Position>) {
    let area = Rect::new(0, 0, model.size.0, model.size.1);
    let mut buffer = Buffer::empty(area);
    let mut canvas = Canvas::new(&mut buffer, model.theme);
    let Some(room) = Room::of(model.size) else {
        let text = format!("{}x{} is too small; {}x{} is needed", area.width, area.height, SIZE_MIN.0, SIZE_MIN.1);
        canvas.text(area, 0, 0, &text, Role::Text);
        return (buffer, None);
    };
    let tabs = u16::from(room != Room::Small);
    let header = Rect { height: 1, ..area };
    draw_header(&mut canvas, model, header, room);
    if tabs > 0 {
        draw_tabs(&mut canvas, model, Rect { y: 1, height: 1, ..area });
    }
    let body = Rect { y: 1 + tabs, height: area.height - 2 - tabs, ..area };
    let footer = Rect { y: area.height - 1, height: 1, ..area };
    match model.shown() {
        None => draw_absent(&mut canvas, model, body),
        Some(cluster) => match model.screen {
            Screen::Overview => overview::draw(&mut canvas, model, cluster, body, room),
            Screen::Nodes => nodes::draw(&mut canvas, model, cluster, body, room),
            Screen::Keys => keys::draw(&mut canvas, model, cluster, body, room),
            Screen::Events => events::draw(&mut canvas, model, cluster, body, room),
        },
    }
    if let Some(output) = &model.output {
        overlay::output(&mut canvas, output, body, room);
    }
    if let Some(top) = model.help {
        overlay::help(&mut canvas, model.screen, top, body);
    }
    let cursor = draw_footer(&mut canvas, model, footer);
    (buffer, cursor)
}

fn draw_header(canvas: &mut Canvas<'_>, model: &Model, area: Rect, room: Room) {
    let place = format!("{} {} {}", model.target, canvas.symbol('▸'), model.screen.title());
    let title = if room == Room::Small { place } else { format!("kv-tui  {place}") };
    let Some(cluster) = model.shown() else {
        canvas.text(area, 1, 0, &title, Role::Title);
        return;
    };
    let description = &cluster.picture.description;
    let (symbol, role) = match cluster.health.word {
        Word::Healthy => ('●', Role::Good),
        Word::Settling => ('◆', Role::Good),
        Word::Degraded => ('▲', Role::Warn),
        Word::Unavailable => ('✗', Role::Bad),
        Word::Forming => ('○', Role::Warn),
    };
    let up = description.members.iter().filter(|member| cluster.picture.serves(member.id)).count();
    let mut facts = format!("  {up}/{} up", description.members.len());
    if let Some(layout) = &description.layout {
        if let Some(keyspace) = description.keyspaces.first().filter(|_| room == Room::Wide) {
            facts.push_str(&format!("  N{} R{} W{}", layout.owners_per_partition(), keyspace.r, keyspace.w));
        }
        facts.push_str(&format!("  epoch {}", layout.epoch.0));
    }
    facts.push_str(if model.read_only { "  RO " } else { "  RW " });
    let word = format!("{} {}", canvas.symbol(symbol), cluster.health.word.text().to_uppercase());
    let width = canvas.width(&word) + canvas.width(&facts);
    let x = area.width.saturating_sub(width);
    canvas.text(Rect { width: x.saturating_sub(1), ..area }, 1, 0, &title, Role::Title);
    let x = canvas.text(area, x, 0, &word, role);
    canvas.text(area, x, 0, &facts, Role::Text);
}

fn draw_tabs(canvas: &mut Canvas<'_>, model: &Model, area: Rect) {
    let mut x = 1;
    for (index, screen) in Screen::ALL.into_iter().enumerate() {
        let role = if screen == model.screen { Role::Selected } else { Role::Text };
        x = canvas.text(area, x, 0, &format!(" {} {} ", index + 1, screen.title()), role);
    }
    let (text, role) = link_words(canvas, model);
    let x = area.width.saturating_sub(canvas.width(&text) + 1).max(x + 1);
    canvas.text(area, x, 0, &text, role);
}

/// How fresh what is shown is.
fn link_words(canvas: &Canvas<'_>, model: &Model) -> (String, Role) {
    let age = |since: u64| short(std::time::Duration::from_secs(model.now_us.saturating_sub(since) / 1_000_000));
    if let Some(frozen) = &model.frozen {
        return (format!("FROZEN  {} old  Space goes on", age(frozen.told_us)), Role::Warn);
    }
    match (&model.link, &model.cluster) {
        (Link::Connecting, _) => ("connecting".to_owned(), Role::Warn),
        (Link::Offline { .. }, Some(cluster)) => {
            (format!("{} OFFLINE  data {} old", canvas.symbol('✗'), age(cluster.told_us)), Role::Bad)
        }
        (Link::Offline { .. }, None) => (format!("{} OFFLINE", canvas.symbol('✗')), Role::Bad),
        (Link::Live, Some(cluster)) if model.now_us.saturating_sub(cluster.told_us) > super::model::FRESH_US => {
            (format!("{} data {} old", canvas.symbol('▲'), age(cluster.told_us)), Role::Warn)
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

/// The last line: what is typed, a message, or the hints.
fn draw_footer(canvas: &mut Canvas<'_>, model: &Model, area: Rect) -> Option<Position> {
    if let Some(bar) = &model.bar {
        let (nodes, keyspaces) = super::update::names(model);
        return Some(overlay::bar(canvas, ":", bar, &bar.candidates(&nodes, &keyspaces), area));
    }
    if let Some(bar) = &model.keys.typing {
        return Some(overlay::bar(canvas, "prefix: ", bar, &[], area));
    }
    if !model.notice.is_empty() {
        canvas.text(area, 1, 0, &model.notice, Role::Warn);
        return None;
    }
    let mut hints: Vec<(String, &str)> = active(model.screen)
        .filter(|binding| !binding.short.is_empty())
        .filter_map(|binding| binding.keys.first().map(|key| (key.name(), binding.short)))
        .collect();
    // The last three lead to everything else; what stands before them goes first where there is no room.
    let width = |hints: &[(String, &str)]| {
        hints.iter().map(|(key, word)| canvas.width(key) + canvas.width(word) + 3).sum::<u16>()
    };
    while width(&hints) > area.width && hints.len() > 3 {
        hints.remove(hints.len() - 4);
    }
    let mut x = 1;
    for (key, word) in &hints {
        x = canvas.text(area, x, 0, key, Role::Title) + 1;
        x = canvas.text(area, x, 0, word, Role::Dim) + 2;
    }
    None
}
