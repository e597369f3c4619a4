//! What the mouse does: a click means what the view has drawn there.

use super::actions::{act, chosen, open, step};
use super::{go, on_key};
use crate::dashboard::cluster::{EventId, event_id};
use crate::dashboard::dialog::Dialog;
use crate::dashboard::keymap::Key;
use crate::dashboard::model::{Model, Pane};
use crate::dashboard::mouse::{Mouse, MouseKind, Target};
use crate::dashboard::msg::Effect;
use crate::dashboard::planning::Stage;
use crate::dashboard::view::draw;

/// Rows that one step of the wheel moves.
const WHEEL_ROWS: isize = 3;

pub(super) fn on_mouse(model: &mut Model, mouse: Mouse) -> Vec<Effect> {
    model.notice.clear();
    let targets: Vec<Target> = draw(model).targets.at(mouse.at).collect();
    let pane = targets.iter().find_map(|target| match target {
        Target::Pane(pane) => Some(*pane),
        _ => None,
    });
    let rows = match mouse.kind {
        MouseKind::Click => return click(model, targets.first().copied(), pane),
        MouseKind::WheelUp => -WHEEL_ROWS,
        MouseKind::WheelDown => WHEEL_ROWS,
    };
    match &mut model.dialog {
        Some(Dialog::Help { top }) => {
            *top = top.saturating_add_signed(rows).min(model.keymap.active(model.screen).count())
        }
        Some(Dialog::Choose { names, row, .. }) => {
            *row = row.saturating_add_signed(rows.signum()).min(names.len().saturating_sub(1));
        }
        Some(Dialog::Plan(planning)) => {
            if let Stage::Review(review) = &mut planning.stage {
                review.scroll(rows);
            }
        }
        Some(Dialog::Confirm(_)) => {}
        None => {
            // The wheel moves what it is over.
            let kept = model.pane;
            model.pane = pane.unwrap_or(kept);
            return step(model, rows);
        }
    }
    Vec::new()
}

fn click(model: &mut Model, target: Option<Target>, pane: Option<Pane>) -> Vec<Effect> {
    if let Some(Dialog::Choose { choice, names, .. }) = model.dialog.clone() {
        if let Some(Target::Choice(row)) = target {
            model.dialog = None;
            return chosen(model, choice, &names, row);
        }
        return Vec::new();
    }
    if let Some(Dialog::Plan(planning)) = &mut model.dialog {
        match target {
            Some(Target::Field(field)) => match &mut planning.stage {
                Stage::Review(review) => review.typing = true,
                _ => planning.focus = field,
            },
            Some(Target::Press(key @ Key::Char(_))) => {
                // A button is no letter of the word; the field keeps the focus.
                let Stage::Review(review) = &mut planning.stage else { return on_key(model, key) };
                let typing = std::mem::replace(&mut review.typing, false);
                let effects = on_key(model, key);
                if let Some(Dialog::Plan(planning)) = &mut model.dialog
                    && let Stage::Review(review) = &mut planning.stage
                {
                    review.typing = typing;
                }
                return effects;
            }
            Some(Target::Press(key)) => return on_key(model, key),
            _ => {}
        }
        return Vec::new();
    }
    if model.dialog.is_some() {
        return Vec::new();
    }
    if let Some(pane) = pane {
        model.pane = pane;
    }
    match target {
        None | Some(Target::Pane(_) | Target::Choice(_) | Target::Field(_)) => {}
        Some(Target::Press(key)) => return on_key(model, key),
        Some(Target::Do(action)) => return act(model, action),
        Some(Target::Screen(screen)) => return go(model, screen),
        Some(Target::Node(node)) => {
            let again = model.selected().is_some_and(|member| member.id == node) && model.nodes.selected.is_some();
            model.nodes.selected = Some(node);
            // A second click opens what the first one has selected.
            if again && model.pane == Pane::Main {
                return open(model);
            }
        }
        Some(Target::NodeColumn(column)) => model.nodes.sort_by(column),
        Some(Target::Cell(partition)) => model.partition = Some(partition),
        Some(Target::Partition(partition)) => model.partitions.selected = Some(partition),
        Some(Target::PartitionColumn(order)) => model.partitions.sort_by(order),
        Some(Target::Key(row)) => {
            model.keys.cursor = row;
            return open(model);
        }
        Some(Target::Event(id)) => {
            let ids: Vec<EventId> = model.shown().map_or_else(Vec::new, |cluster| {
                cluster.listed(&model.events, model.audit).into_iter().map(event_id).collect()
            });
            let row = ids.iter().position(|known| *known == id).unwrap_or(0);
            model.events.select(&ids, row);
        }
        Some(Target::Move(id)) => model.moves.selected = Some(id),
        Some(Target::MoveColumn(order)) => model.moves.sort_by(order),
        Some(Target::Operation(id)) => {
            let again = model.operations.selected == Some(id);
            model.operations.selected = Some(id);
            if again {
                return open(model);
            }
        }
        Some(Target::EventColumn(order)) => model.events.sort_by(order),
    }
    Vec::new()
}
