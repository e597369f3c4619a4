//! What the keys do.

use kv_core::types::NodeId;

use super::feed::{browse, inspect};
use super::plan;
use super::steer;
use super::typing::{filter_of, open_filter, set_filter, start};
use super::{go, key_of};
use crate::command::quoted;
use crate::dashboard::bar::Bar;
use crate::dashboard::cluster::{EventId, event_id};
use crate::dashboard::confirm::Confirm;
use crate::dashboard::dialog::{Choice, Dialog};
use crate::dashboard::keymap::{Action, Key, Screen};
use crate::dashboard::list::Order;
use crate::dashboard::model::{Map, MigrationView, Model, Pane, ZOOMS};
use crate::dashboard::msg::{Ask, Effect};
use crate::dashboard::progress::MoveId;
use crate::dashboard::view::output_place;
use crate::output::bytes::printable;

/// Rows below the cursor at which the next page of keys is fetched.
const FETCH_AHEAD: usize = 100;

pub(super) fn act(model: &mut Model, action: Action) -> Vec<Effect> {
    match action {
        Action::Quit => return vec![Effect::Quit],
        Action::Suspend => return vec![Effect::Suspend],
        Action::Redraw => return vec![Effect::Redraw],
        Action::Command => model.bar = Some(Bar::default()),
        Action::Help => model.dialog = Some(Dialog::Help { top: 0 }),
        Action::Go(screen) => return go(model, screen),
        Action::NextScreen => return go(model, model.screen.stepped(1)),
        Action::PreviousScreen => return go(model, model.screen.stepped(Screen::ALL.len() - 1)),
        Action::NextPane => {
            model.pane = if model.pane == Pane::Main { Pane::Side } else { Pane::Main };
        }
        Action::Back => return back(model),
        Action::Sort => sort(model),
        Action::Reverse => reverse(model),
        Action::Map => {
            model.map = match model.map {
                Map::First => Map::Copies,
                // With enough room the ring is beside the map already.
                Map::Copies if !crate::dashboard::view::shows_ring(model.size) => Map::Ring,
                Map::Copies | Map::Ring => Map::First,
            };
        }
        Action::Left => mark(model, -1),
        Action::Right => mark(model, 1),
        Action::Wider => model.zoom = (model.zoom + 1).min(ZOOMS.len() - 1),
        Action::Narrower => model.zoom = model.zoom.saturating_sub(1),
        Action::Filter => open_filter(model),
        Action::Keyspace => choose_keyspace(model),
        Action::Put => return change(model, Model::put),
        Action::Delete => return change(model, Model::delete),
        Action::Pause | Action::Resume | Action::RetryAll | Action::Throttle | Action::CancelOperation => {
            return steer::act(model, action);
        }
        Action::Export => return steer::export(model),
        Action::View => {
            model.view = match model.view {
                MigrationView::Moves => MigrationView::Flow,
                MigrationView::Flow => MigrationView::Map,
                MigrationView::Map => MigrationView::Moves,
            };
            model.pane = Pane::Main;
        }
        Action::Audit => {
            model.audit = !model.audit;
            model.events.selected = None;
        }
        Action::AddNode => return change(model, plan::add),
        Action::RemoveNode => return change(model, plan::remove),
        Action::ReplaceNode => return change(model, plan::replace),
        Action::Weigh => return change(model, plan::weigh),
        Action::Copy => return copy(model),
        Action::Freeze => {
            model.frozen = if model.frozen.is_some() { None } else { model.cluster.clone().map(Box::new) };
        }
        Action::Mouse => {
            model.mouse = !model.mouse;
            let key = key_of(model, Action::Mouse);
            model.notice = if model.mouse {
                "the mouse works here again".to_owned()
            } else {
                format!("the mouse belongs to the terminal, to select text; {key} takes it back")
            };
            return vec![Effect::Mouse(model.mouse)];
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

/// A change by a key, unless only reading is allowed.
fn change(model: &mut Model, make: fn(&mut Model)) -> Vec<Effect> {
    if model.read_only {
        "this changes the cluster, and only reading is allowed".clone_into(&mut model.notice);
    } else {
        make(model);
    }
    Vec::new()
}

impl Model {
    /// The words that name the keyspace, unless it is the usual one.
    fn in_keyspace(&self) -> String {
        if self.keys.keyspace == "default" { String::new() } else { format!(" -k {}", self.keys.keyspace) }
    }

    fn put(&mut self) {
        let line = format!("put{} ", self.in_keyspace());
        self.bar = Some(Bar::with(&line));
    }

    fn delete(&mut self) {
        let Some(key) = self.keys.keys.get(self.keys.cursor) else { return };
        let line = format!("del {}{}", quoted(key), self.in_keyspace());
        let what = format!("deletes the key {} of the keyspace {} for good", printable(key), self.keys.keyspace);
        self.dialog = Some(Dialog::Confirm(Box::new(Confirm::new(line, what, printable(key)))));
    }
}

pub(super) fn in_dialog(model: &mut Model, dialog: Dialog, key: Key) -> Vec<Effect> {
    let action = model.keymap.action(model.screen, key);
    match dialog {
        Dialog::Help { top } => {
            if !matches!(action, Some(Action::Help | Action::Back | Action::Quit)) {
                let rows = rows_of(model, action);
                let top = top.saturating_add_signed(rows).min(model.keymap.active(model.screen).count());
                model.dialog = Some(Dialog::Help { top });
                // A screen's key leads there from the help, too.
                if let Some(Action::Go(screen)) = action {
                    model.dialog = None;
                    return go(model, screen);
                }
            }
        }
        Dialog::Choose { choice, names, row } => match action {
            Some(Action::Back | Action::Quit | Action::Keyspace) => {}
            Some(Action::Open) => return chosen(model, choice, &names, row),
            // Where no open is bound on a screen, Enter still chooses.
            _ if key == Key::Enter => return chosen(model, choice, &names, row),
            _ => {
                let row = row.saturating_add_signed(rows_of(model, action)).min(names.len().saturating_sub(1));
                model.dialog = Some(Dialog::Choose { choice, names, row });
            }
        },
        Dialog::Plan(planning) => return plan::in_dialog(model, planning, key),
        Dialog::Confirm(mut confirm) => match key {
            Key::Esc | Key::Ctrl('c') => "nothing was changed".clone_into(&mut model.notice),
            Key::Enter if confirm.is_typed() => return start(model, confirm.line, true),
            key => {
                confirm.typed.edit(key);
                model.dialog = Some(Dialog::Confirm(confirm));
            }
        },
    }
    Vec::new()
}

/// How many rows an action moves.
pub(super) fn rows_of(model: &Model, action: Option<Action>) -> isize {
    match action {
        Some(Action::Up) => -1,
        Some(Action::Down) => 1,
        Some(Action::PageUp) => -page(model),
        Some(Action::PageDown) => page(model),
        Some(Action::First) => isize::MIN / 2,
        Some(Action::Last) => isize::MAX / 2,
        _ => 0,
    }
}

fn choose_keyspace(model: &mut Model) {
    let names = model.names().keyspaces;
    if names.is_empty() {
        "no keyspace is known yet".clone_into(&mut model.notice);
        return;
    }
    let row = names.iter().position(|name| *name == model.keys.keyspace).unwrap_or(0);
    model.dialog = Some(Dialog::Choose { choice: Choice::Keyspace, names, row });
}

/// A name has been chosen.
pub(super) fn chosen(model: &mut Model, choice: Choice, names: &[String], row: usize) -> Vec<Effect> {
    let Some(name) = names.get(row) else { return Vec::new() };
    match choice {
        Choice::Keyspace => {
            model.keys.keyspace.clone_from(name);
            browse(model, true)
        }
    }
}

fn back(model: &mut Model) -> Vec<Effect> {
    match &model.output {
        Some(output) if output.code.is_none() => return vec![Effect::Ask(Ask::Cancel)],
        Some(_) => {
            model.output = None;
            return Vec::new();
        }
        None => {}
    }
    if model.followed.take().is_some() {
        "the operation continues; nothing waits for it any more".clone_into(&mut model.notice);
        return Vec::new();
    }
    if model.audit && model.screen == Screen::Events {
        model.audit = false;
        return Vec::new();
    }
    if filter_of(model).is_some_and(|filter| !filter.is_empty()) {
        return set_filter(model, String::new());
    }
    if model.pane == Pane::Side {
        model.pane = Pane::Main;
        return Vec::new();
    }
    go(model, Screen::Overview)
}

/// Opens what is selected.
pub(super) fn open(model: &mut Model) -> Vec<Effect> {
    match (model.screen, model.pane) {
        (Screen::Overview, Pane::Main) => go(model, Screen::Nodes),
        (Screen::Overview, Pane::Side) => go(model, Screen::Events),
        (Screen::Nodes, Pane::Main) => {
            model.pane = Pane::Side;
            Vec::new()
        }
        (Screen::Keys, _) => inspect(model),
        (Screen::Migration, _) => steer::show(model),
        (Screen::Nodes, Pane::Side) | (Screen::Events, _) => Vec::new(),
    }
}

fn sort(model: &mut Model) {
    match (model.screen, model.pane) {
        (Screen::Overview | Screen::Nodes, Pane::Main) => {
            model.nodes.sort = model.nodes.sort.next();
            model.nodes.reverse = false;
        }
        (Screen::Nodes, Pane::Side) => {
            model.partitions.sort = model.partitions.sort.next();
            model.partitions.reverse = false;
        }
        (Screen::Overview, Pane::Side) | (Screen::Events, _) => {
            model.events.sort = model.events.sort.next();
            model.events.reverse = false;
        }
        (Screen::Migration, Pane::Main) => {
            model.moves.sort = model.moves.sort.next();
            model.moves.reverse = false;
        }
        (Screen::Keys, _) | (Screen::Migration, Pane::Side) => {}
    }
}

fn reverse(model: &mut Model) {
    match (model.screen, model.pane) {
        (Screen::Overview | Screen::Nodes, Pane::Main) => model.nodes.reverse = !model.nodes.reverse,
        (Screen::Nodes, Pane::Side) => model.partitions.reverse = !model.partitions.reverse,
        (Screen::Overview, Pane::Side) | (Screen::Events, _) => model.events.reverse = !model.events.reverse,
        (Screen::Migration, Pane::Main) => model.moves.reverse = !model.moves.reverse,
        (Screen::Migration, Pane::Side) => model.operations.reverse = !model.operations.reverse,
        (Screen::Keys, _) => {}
    }
}

/// Moves the mark in the map.
fn mark(model: &mut Model, by: isize) {
    let layout = model.shown().and_then(|cluster| cluster.snapshot.description.layout.as_deref());
    let count = layout.map_or(0, |layout| layout.partitions.len());
    model.partition = match model.partition {
        _ if count == 0 => None,
        None => Some(0),
        Some(at) => Some(at.saturating_add_signed(by).min(count - 1)),
    };
}

/// Gives what is selected to the clipboard.
fn copy(model: &mut Model) -> Vec<Effect> {
    let text = match (model.screen, model.pane, &model.output) {
        (_, _, Some(output)) => {
            let lines: Vec<&str> = output.lines.iter().map(String::as_str).collect();
            Some(lines.join("\n")).filter(|text| !text.is_empty())
        }
        (Screen::Overview | Screen::Nodes, Pane::Main, _) => model.selected().map(|member| member.address.clone()),
        (Screen::Nodes, Pane::Side, _) => selected_partition(model).map(|partition| partition.to_string()),
        (Screen::Overview, Pane::Side, _) | (Screen::Events, _, _) => model.shown().and_then(|cluster| {
            let events = cluster.listed(&model.events, model.audit);
            let ids: Vec<EventId> = events.iter().map(|event| event_id(event)).collect();
            events.get(model.events.row_in(&ids)).map(|event| printable(event.message.as_bytes()))
        }),
        (Screen::Migration, Pane::Main, _) => steer::selected_move(model),
        (Screen::Migration, Pane::Side, _) => steer::selected_operation(model).map(|id| format!("op show {id}")),
        (Screen::Keys, _, _) => model.keys.keys.get(model.keys.cursor).map(|key| printable(key)),
    };
    let Some(text) = text else {
        "there is nothing to copy".clone_into(&mut model.notice);
        return Vec::new();
    };
    let shown = crate::output::bytes::shortened(text.lines().next().unwrap_or_default(), 40);
    model.notice = format!("copied {} (OSC 52)", printable(shown.as_bytes()));
    vec![Effect::Copy(text)]
}

fn selected_partition(model: &Model) -> Option<u32> {
    let rows = model.shown()?.partitions_of(model.selected()?.id, &model.partitions);
    let ids: Vec<u32> = rows.iter().map(|row| row.partition).collect();
    ids.get(model.partitions.row_in(&ids)).copied()
}

/// Rows of a page.
fn page(model: &Model) -> isize {
    isize::try_from(model.size.1 / 2).unwrap_or(1).max(1)
}

/// Moves what has the attention by rows.
pub(super) fn step(model: &mut Model, rows: isize) -> Vec<Effect> {
    let place = output_place(model);
    if let (Some(output), Some(place)) = (&mut model.output, place) {
        let row = place.first.saturating_add_signed(rows).min(place.last());
        // At the end of what goes on, its end is followed again.
        output.first_row = Some(row).filter(|row| !output.follows || *row < place.last());
        return Vec::new();
    }
    match (model.screen, model.pane) {
        (Screen::Overview | Screen::Nodes, Pane::Main) => {
            let ids: Vec<NodeId> = model.shown().map_or_else(Vec::new, |cluster| {
                cluster.ordered(&model.nodes).iter().map(|member| member.id).collect()
            });
            model.nodes.step(&ids, rows);
        }
        (Screen::Nodes, Pane::Side) => {
            let ids: Vec<u32> = match (model.shown(), model.selected()) {
                (Some(cluster), Some(member)) => {
                    cluster.partitions_of(member.id, &model.partitions).iter().map(|row| row.partition).collect()
                }
                _ => Vec::new(),
            };
            model.partitions.step(&ids, rows);
        }
        (Screen::Overview, Pane::Side) | (Screen::Events, _) => {
            let ids: Vec<EventId> = model.shown().map_or_else(Vec::new, |cluster| {
                cluster.listed(&model.events, model.audit).into_iter().map(event_id).collect()
            });
            model.events.step(&ids, rows);
            // At the first row the list goes on to follow what happens.
            if model.events.row == 0 {
                model.events.selected = None;
            }
        }
        (Screen::Migration, Pane::Main) => {
            let ids: Vec<MoveId> = model.shown().map_or_else(Vec::new, |cluster| {
                cluster.moves_of(&model.moves).into_iter().map(|(id, _)| id).collect()
            });
            model.moves.step(&ids, rows);
        }
        (Screen::Migration, Pane::Side) => {
            let ids: Vec<u64> = model.shown().map_or_else(Vec::new, |cluster| {
                cluster.operations.listed(&model.operations).into_iter().map(|operation| operation.id).collect()
            });
            model.operations.step(&ids, rows);
        }
        (Screen::Keys, Pane::Main) => {
            let keys = &mut model.keys;
            keys.cursor = keys.cursor.saturating_add_signed(rows).min(keys.keys.len().saturating_sub(1));
            if !keys.loading && keys.cursor + FETCH_AHEAD >= keys.keys.len() {
                return browse(model, false);
            }
        }
        (Screen::Keys, Pane::Side) => {
            let lines = crate::dashboard::view::inspected_lines(model);
            model.keys.top = model.keys.top.saturating_add_signed(rows).min(lines.saturating_sub(1));
        }
    }
    Vec::new()
}
