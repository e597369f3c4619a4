//! The line being typed: a command, or a filter.

use crate::command::Line;
use crate::dashboard::bar::{Bar, LINE_BYTES_MAX};
use crate::dashboard::confirm::Confirm;
use crate::dashboard::dialog::Dialog;
use crate::dashboard::keymap::{Key, Screen};
use crate::dashboard::model::{HISTORY_MAX, Model, Output, Pane};
use crate::dashboard::msg::{Ask, Effect};
use crate::dashboard::planning::Planning;

use super::feed::browse;
use super::plan;

pub(super) fn paste(model: &mut Model, text: &str) -> Vec<Effect> {
    if let Some(Dialog::Confirm(confirm)) = &mut model.dialog {
        confirm.typed.insert(text);
    } else if let Some(Dialog::Plan(planning)) = &mut model.dialog {
        planning.paste(text);
    } else if let Some(bar) = &mut model.bar {
        if !bar.paste(text) {
            model.notice = format!(
                "what was pasted is not taken: a line has at most {} KiB; put KEY --value-file FILE takes longer values",
                LINE_BYTES_MAX / 1024
            );
        }
        return want_keys(model);
    } else if let Some(filter) = &mut model.filter {
        filter.insert(text);
    }
    Vec::new()
}

pub(super) fn in_bar(model: &mut Model, mut bar: Bar, key: Key) -> Vec<Effect> {
    match key {
        Key::Esc | Key::Ctrl('c') => return Vec::new(),
        Key::Enter => return run(model, &bar.text),
        Key::Up | Key::Ctrl('p') => bar.recall_older(&model.history),
        Key::Down | Key::Ctrl('n') => bar.recall_newer(&model.history),
        Key::Tab => bar.complete(&model.names()),
        // An empty line is left by taking back what opened it.
        Key::Backspace if bar.text.is_empty() => return Vec::new(),
        key => {
            bar.edit(key);
        }
    }
    model.bar = Some(bar);
    want_keys(model)
}

/// Asks for the keys that may complete the line, once for each beginning.
fn want_keys(model: &mut Model) -> Vec<Effect> {
    let Some(place) = model.bar.as_ref().and_then(Bar::key_place) else { return Vec::new() };
    let completion = &mut model.completion;
    if completion.asked.as_ref() == Some(&place) {
        return Vec::new();
    }
    completion.generation += 1;
    completion.asked = Some(place.clone());
    let (keyspace, prefix) = place;
    vec![Effect::Ask(Ask::Complete { generation: completion.generation, keyspace, prefix })]
}

/// Keeps a line in the history and runs it, unless it destroys something that must be confirmed first.
pub(super) fn run(model: &mut Model, line: &str) -> Vec<Effect> {
    // Only what separates words: other spaces may be the end of a value.
    let line = line.trim_matches([' ', '\t']);
    match line {
        "" => return Vec::new(),
        "q" | "quit" | "exit" => return vec![Effect::Quit],
        _ => {}
    }
    // What was read may have changed when the next line is typed.
    model.completion.asked = None;
    let mut effects = remember(model, line);
    let parsed = Line::parse_line(line.as_bytes()).ok().flatten().filter(|parsed| !parsed.yes && !model.read_only);
    if let Some(planning) = parsed.as_ref().and_then(|parsed| Planning::of(&parsed.command)) {
        effects.extend(plan::submit(model, Box::new(planning)));
        return effects;
    }
    let destroys = parsed.and_then(|parsed| parsed.command.destroys());
    if let Some((what, word)) = destroys {
        model.dialog = Some(Dialog::Confirm(Box::new(Confirm::new(line.to_owned(), what, word))));
        return effects;
    }
    effects.extend(start(model, line.to_owned(), false));
    effects
}

/// Keeps a line in the history, once.
pub(super) fn remember(model: &mut Model, line: &str) -> Vec<Effect> {
    if model.history.last().map(String::as_str) == Some(line) {
        return Vec::new();
    }
    model.history.push(line.to_owned());
    if model.history.len() > HISTORY_MAX {
        model.history.remove(0);
    }
    vec![Effect::Remember(line.to_owned())]
}

/// Runs a line.
pub(super) fn start(model: &mut Model, line: String, confirmed: bool) -> Vec<Effect> {
    if model.output.as_ref().is_some_and(|output| output.code.is_none()) {
        "a command is still running; Esc ends it".clone_into(&mut model.notice);
        return Vec::new();
    }
    let follows = Line::parse_line(line.as_bytes()).ok().flatten().is_some_and(|line| line.command.follows());
    model.output = Some(Output { line: line.clone(), follows, ..Output::default() });
    vec![Effect::Ask(Ask::Run { line, confirmed })]
}

/// Runs a line of which only a failure, or one line at the end, is worth showing.
pub(super) fn start_quietly(model: &mut Model, line: String) -> Vec<Effect> {
    let mut effects = start(model, line.clone(), true);
    if let Some(output) = model.output.as_mut().filter(|_| !effects.is_empty()) {
        output.quiet = true;
        effects.extend(remember(model, &line));
    }
    effects
}

/// Opens the filter of the list that the keys move in, with what it holds.
pub(super) fn open_filter(model: &mut Model) {
    if let Some(filter) = filter_of(model) {
        model.filter = Some(Bar::with(filter));
    }
}

/// The filter of the list that the keys move in.
pub(super) fn filter_of(model: &mut Model) -> Option<&mut String> {
    match (model.screen, model.pane) {
        (Screen::Overview | Screen::Nodes, Pane::Main) => Some(&mut model.nodes.filter),
        (Screen::Nodes, Pane::Side) => Some(&mut model.partitions.filter),
        (Screen::Overview, Pane::Side) | (Screen::Events, _) => Some(&mut model.events.filter),
        (Screen::Migration, Pane::Main) => Some(&mut model.moves.filter),
        (Screen::Migration, Pane::Side) => Some(&mut model.operations.filter),
        (Screen::Keys, _) => Some(&mut model.keys.prefix),
    }
}

pub(super) fn in_filter(model: &mut Model, mut bar: Bar, key: Key) -> Vec<Effect> {
    match key {
        Key::Esc | Key::Ctrl('c') => return Vec::new(),
        Key::Enter => return set_filter(model, bar.text),
        key => {
            bar.edit(key);
        }
    }
    // Lists follow while it is typed; keys are asked of the cluster, and wait for Enter.
    if model.screen != Screen::Keys {
        set_filter(model, bar.text.clone());
    }
    model.filter = Some(bar);
    Vec::new()
}

pub(super) fn set_filter(model: &mut Model, text: String) -> Vec<Effect> {
    if let Some(filter) = filter_of(model) {
        *filter = text;
    }
    if model.screen == Screen::Keys { browse(model, true) } else { Vec::new() }
}
