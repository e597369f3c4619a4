//! How the model changes: a pure function of the model and what it is told.

use bytes::Bytes;
use kv_core::types::NodeId;

use super::bar::Bar;
use super::keymap::{Action, Key, Screen, action};
use super::model::{Cluster, HISTORY_MAX, Link, Model, OUTPUT_LINES_MAX, Output};
use super::msg::{Ask, Effect, Feed, Msg};
use crate::command::unescape;

/// Rows below the cursor at which the next page of keys is fetched.
const FETCH_AHEAD: usize = 100;

/// Keys that are kept on the keys screen.
const KEYS_MAX: usize = 100_000;

/// Applies one message.
pub fn update(model: &mut Model, msg: Msg) -> Vec<Effect> {
    match msg {
        Msg::Clock(now_us) => {
            // The clock of a machine may be set back; the screen's time does not.
            model.now_us = model.now_us.max(now_us);
            if let Some(cluster) = &mut model.cluster {
                cluster.pass_time(model.now_us);
            }
            Vec::new()
        }
        Msg::Key(key) => on_key(model, key),
        Msg::Paste(text) => {
            if let Some(bar) = model.bar.as_mut().or(model.keys.typing.as_mut()) {
                bar.insert(&text);
            }
            Vec::new()
        }
        Msg::Resize(width, height) => {
            model.size = (width, height);
            vec![Effect::Redraw]
        }
        Msg::Feed(feed) => on_feed(model, feed),
        Msg::History(lines) => {
            let excess = lines.len().saturating_sub(HISTORY_MAX);
            model.history = lines.into_iter().skip(excess).collect();
            Vec::new()
        }
        Msg::Notice(text) => {
            model.notice = text;
            Vec::new()
        }
    }
}

fn on_feed(model: &mut Model, feed: Feed) -> Vec<Effect> {
    let now_us = model.now_us;
    match feed {
        Feed::Description(description) => {
            let new = model.cluster.as_ref().is_none_or(|cluster| {
                let known = cluster.picture.description.cluster;
                known.is_some() && known != description.cluster
            });
            if new {
                model.cluster = Some(Cluster::new(description, now_us));
            } else if let Some(cluster) = &mut model.cluster {
                cluster.describe(description);
                cluster.told_us = now_us;
            }
            model.link = Link::Live;
            if model.screen == Screen::Keys && !model.keys.asked {
                return browse(model, true);
            }
        }
        Feed::Offline { error, retry_us } => model.link = Link::Offline { error, retry_us },
        Feed::Snapshot(node, snapshot) => with_cluster(model, |cluster| cluster.report(node, snapshot, now_us)),
        Feed::Lost(node, error) => with_cluster(model, |cluster| cluster.lose(node, error)),
        Feed::Event(event) => with_cluster(model, |cluster| cluster.add_event(event)),
        Feed::Keys { generation, result } if generation == model.keys.generation => {
            model.keys.loading = false;
            match result {
                Ok((keys, more)) => {
                    model.keys.keys.extend(keys);
                    model.keys.more = more.filter(|_| model.keys.keys.len() < KEYS_MAX);
                    model.keys.error.clear();
                }
                Err(error) => model.keys.error = error,
            }
        }
        Feed::Inspected { generation, key, result } if generation == model.keys.generation => {
            model.keys.inspected = Some((key, result));
        }
        // Answers to questions that nobody asks any more.
        Feed::Keys { .. } | Feed::Inspected { .. } => {}
        Feed::Output(lines) => {
            if let Some(output) = &mut model.output {
                output.lines.extend(lines);
                while output.lines.len() > OUTPUT_LINES_MAX {
                    output.lines.pop_front();
                    output.dropped += 1;
                }
            }
        }
        Feed::Ended { code, error } => {
            if let Some(output) = &mut model.output {
                output.code = Some(code);
                output.error = error;
            }
        }
    }
    Vec::new()
}

fn with_cluster(model: &mut Model, change: impl FnOnce(&mut Cluster)) {
    if let Some(cluster) = &mut model.cluster {
        change(cluster);
    }
}

fn on_key(model: &mut Model, key: Key) -> Vec<Effect> {
    model.notice.clear();
    if let Some(bar) = model.bar.take() {
        return in_bar(model, bar, key);
    }
    if let Some(bar) = model.keys.typing.take() {
        return in_prefix(model, bar, key);
    }
    action(model.screen, key).map_or_else(Vec::new, |action| act(model, action))
}

fn in_bar(model: &mut Model, mut bar: Bar, key: Key) -> Vec<Effect> {
    match key {
        Key::Esc | Key::Ctrl('c') => return Vec::new(),
        Key::Enter => return run(model, &bar.text),
        Key::Up | Key::Ctrl('p') => bar.recall_older(&model.history),
        Key::Down | Key::Ctrl('n') => bar.recall_newer(&model.history),
        Key::Tab => {
            let (nodes, keyspaces) = names(model);
            bar.complete(&nodes, &keyspaces);
        }
        // An empty line is left by taking back what opened it.
        Key::Backspace if bar.text.is_empty() => return Vec::new(),
        key => {
            bar.edit(key);
        }
    }
    model.bar = Some(bar);
    Vec::new()
}

/// The names that completion offers: of nodes and of keyspaces.
#[must_use]
pub fn names(model: &Model) -> (Vec<String>, Vec<String>) {
    let Some(cluster) = model.shown() else { return (Vec::new(), Vec::new()) };
    let description = &cluster.picture.description;
    (
        description.members.iter().map(|member| member.member.name.clone()).collect(),
        description.keyspaces.iter().map(|keyspace| keyspace.name.clone()).collect(),
    )
}

fn run(model: &mut Model, line: &str) -> Vec<Effect> {
    let line = line.trim();
    match line {
        "" => return Vec::new(),
        "q" | "quit" | "exit" => return vec![Effect::Quit],
        _ => {}
    }
    let mut effects = Vec::new();
    if model.history.last().map(String::as_str) != Some(line) {
        model.history.push(line.to_owned());
        if model.history.len() > HISTORY_MAX {
            model.history.remove(0);
        }
        effects.push(Effect::Remember(line.to_owned()));
    }
    if model.output.as_ref().is_some_and(|output| output.code.is_none()) {
        "a command is still running; Esc ends it".clone_into(&mut model.notice);
        return effects;
    }
    model.output = Some(Output { line: line.to_owned(), ..Output::default() });
    effects.push(Effect::Ask(Ask::Run(line.to_owned())));
    effects
}

fn in_prefix(model: &mut Model, mut bar: Bar, key: Key) -> Vec<Effect> {
    match key {
        Key::Esc | Key::Ctrl('c') => return Vec::new(),
        Key::Enter => {
            model.keys.prefix = bar.text;
            return browse(model, true);
        }
        key => {
            bar.edit(key);
        }
    }
    model.keys.typing = Some(bar);
    Vec::new()
}

/// Asks for keys: from the first on, or the next page.
fn browse(model: &mut Model, anew: bool) -> Vec<Effect> {
    let keys = &mut model.keys;
    let cursor = if anew {
        keys.generation += 1;
        keys.keys.clear();
        keys.cursor = 0;
        keys.inspected = None;
        keys.error.clear();
        Some(Bytes::new())
    } else {
        keys.more.take()
    };
    let Some(cursor) = cursor else { return Vec::new() };
    keys.asked = true;
    keys.loading = true;
    let prefix = Bytes::from(unescape(keys.prefix.as_bytes()));
    vec![Effect::Ask(Ask::Browse { generation: keys.generation, prefix, cursor })]
}

fn act(model: &mut Model, action: Action) -> Vec<Effect> {
    match action {
        Action::Quit => return vec![Effect::Quit],
        Action::Suspend => return vec![Effect::Suspend],
        Action::Redraw => return vec![Effect::Redraw],
        Action::Command => model.bar = Some(Bar::default()),
        Action::Help => model.help = if model.help.is_some() { None } else { Some(0) },
        Action::Go(screen) => return go(model, screen),
        Action::NextScreen => return go(model, model.screen.stepped(1)),
        Action::PreviousScreen => return go(model, model.screen.stepped(Screen::ALL.len() - 1)),
        Action::Back => return back(model),
        Action::Sort => model.sort = model.sort.next(),
        Action::Grid => model.copies = !model.copies,
        Action::Prefix => model.keys.typing = Some(Bar::with(&model.keys.prefix)),
        Action::Freeze => {
            model.frozen = if model.frozen.is_some() { None } else { model.cluster.clone().map(Box::new) };
        }
        Action::Open => return open(model),
        Action::Up => return step(model, -1),
        Action::Down => return step(model, 1),
        Action::PageUp => return step(model, -page(model)),
        Action::PageDown => return step(model, page(model)),
        Action::First => return step(model, isize::MIN / 2),
        Action::Last => return step(model, isize::MAX / 2),
    }
    Vec::new()
}

fn go(model: &mut Model, screen: Screen) -> Vec<Effect> {
    model.screen = screen;
    model.help = None;
    if screen == Screen::Keys && !model.keys.asked && model.cluster.is_some() {
        browse(model, true)
    } else {
        Vec::new()
    }
}

fn back(model: &mut Model) -> Vec<Effect> {
    if model.help.take().is_some() {
        return Vec::new();
    }
    match &model.output {
        Some(output) if output.code.is_none() => return vec![Effect::Ask(Ask::Cancel)],
        Some(_) => model.output = None,
        None => model.screen = Screen::Overview,
    }
    Vec::new()
}

fn open(model: &mut Model) -> Vec<Effect> {
    match model.screen {
        Screen::Overview => go(model, Screen::Nodes),
        Screen::Keys => {
            let keys = &model.keys;
            let Some(key) = keys.keys.get(keys.cursor).cloned() else { return Vec::new() };
            vec![Effect::Ask(Ask::Inspect { generation: keys.generation, key })]
        }
        Screen::Nodes | Screen::Events => Vec::new(),
    }
}

/// Rows of a page.
fn page(model: &Model) -> isize {
    isize::try_from(model.size.1 / 2).unwrap_or(1).max(1)
}

/// Moves what has the attention by rows.
fn step(model: &mut Model, rows: isize) -> Vec<Effect> {
    let moved = |at: usize, count: usize| at.saturating_add_signed(rows).min(count.saturating_sub(1));
    if let Some(top) = model.help {
        model.help = Some(moved(top, super::keymap::active(model.screen).count()));
    } else if let Some(output) = &mut model.output {
        output.up = output.up.saturating_add_signed(-rows).min(output.lines.len().saturating_sub(1));
    } else {
        match model.screen {
            Screen::Overview | Screen::Nodes => {
                let count = model.shown().map_or(0, |cluster| cluster.picture.description.members.len());
                model.node_cursor = moved(model.node_cursor, count);
            }
            Screen::Events => {
                let count = model.shown().map_or(0, |cluster| cluster.events.len());
                model.event_top = moved(model.event_top, count);
            }
            Screen::Keys => {
                let keys = &mut model.keys;
                keys.cursor = moved(keys.cursor, keys.keys.len());
                if !keys.loading && keys.cursor + FETCH_AHEAD >= keys.keys.len() {
                    return browse(model, false);
                }
            }
        }
    }
    Vec::new()
}

/// The name of a node, or its number.
#[must_use]
pub fn node_name(cluster: &Cluster, node: NodeId) -> String {
    cluster.picture.description.name_of(node)
}
