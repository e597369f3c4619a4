//! The plan dialog: a change is asked for, its plan looked at, and exactly that plan started.

use super::actions::rows_of;
use super::typing::start_quietly;
use super::{fresh, go};
use crate::command::Line;
use crate::dashboard::confirm::Confirm;
use crate::dashboard::dialog::Dialog;
use crate::dashboard::keymap::{Key, Screen, latin};
use crate::dashboard::model::{Fresh, Model};
use crate::dashboard::msg::{Ask, Effect};
use crate::dashboard::planning::{Kind, Page, Planning, Review, Stage};
use crate::error::CommandError;
use crate::run::operation::in_the_way;
use crate::run::{limits, preview};
use kv_proto::v1;

/// Asks which node is to be added: the selected one if it is a spare, else any spare.
pub(super) fn add(model: &mut Model) {
    let members = model.shown().map_or(&[][..], |cluster| &cluster.snapshot.description.members);
    let spare = model.selected().into_iter().chain(members).find(|member| member.member.spare);
    let spare = spare.map(|member| member.member.name.clone()).unwrap_or_default();
    open(model, Planning::new(Kind::Add, &[&spare]));
}

pub(super) fn remove(model: &mut Model) {
    let name = selected(model);
    open(model, Planning::new(Kind::Remove, &[&name]));
}

pub(super) fn replace(model: &mut Model) {
    let members = model.shown().map_or(&[][..], |cluster| &cluster.snapshot.description.members);
    let spare = members.iter().find(|member| member.member.spare);
    let spare = spare.map(|member| member.member.name.clone()).unwrap_or_default();
    let name = selected(model);
    open(model, Planning::new(Kind::Replace, &[&name, &spare]));
}

pub(super) fn weigh(model: &mut Model) {
    let weight = model.selected().map(|member| member.member.weight.to_string()).unwrap_or_default();
    let name = selected(model);
    open(model, Planning::new(Kind::Weight, &[&name, &weight]));
}

fn selected(model: &Model) -> String {
    model.selected().map(|member| member.member.name.clone()).unwrap_or_default()
}

fn open(model: &mut Model, planning: Planning) {
    model.dialog = Some(Dialog::Plan(Box::new(planning)));
}

/// Asks for the plan, or for the process of the node of which it will speak.
pub(super) fn submit(model: &mut Model, mut planning: Box<Planning>) -> Vec<Effect> {
    model.plans += 1;
    planning.generation = model.plans;
    planning.error.clear();
    let mut effects =
        if planning.kind == Kind::Add { fresh::keep_only(model, planning.value("node")) } else { Vec::new() };
    let asked = if planning.is_new_node() { new_node(model, &planning) } else { question(model, &planning) };
    match asked {
        Ok((stage, ask)) => {
            if stage == Stage::Starting {
                model.fresh = Some(Fresh::Starting(planning.generation));
            }
            planning.stage = stage;
            effects.push(Effect::Ask(ask));
        }
        Err(error) => {
            planning.stage = Stage::Form;
            planning.error = error.message;
        }
    }
    model.dialog = Some(Dialog::Plan(planning));
    effects
}

fn parsed(line: &str) -> Result<Line, CommandError> {
    Line::parse_line(line.as_bytes())?.ok_or_else(|| CommandError::usage("no command is given"))
}

fn question(model: &Model, planning: &Planning) -> Result<(Stage, Ask), CommandError> {
    let cluster = model.cluster.as_ref().ok_or_else(|| CommandError::failed("no node is in reach"))?;
    let line = parsed(&planning.line())?;
    let request = Box::new(preview::request(&line.command, &cluster.snapshot, cluster.operations.throttle.as_ref())?);
    Ok((Stage::Asked, Ask::Plan { generation: planning.generation, request }))
}

fn new_node(model: &Model, planning: &Planning) -> Result<(Stage, Ask), CommandError> {
    if model.fresh.is_some() {
        let message = "a node that was started before is still being started or taken away; try again in a moment";
        return Err(CommandError::failed(message));
    }
    if let Some(running) = model.cluster.as_ref().and_then(|cluster| cluster.operations.active()) {
        return Err(CommandError::failed(in_the_way(running)));
    }
    let text = |name: &str| Some(planning.value(name).to_owned()).filter(|text| !text.is_empty());
    let weight = text("weight").map(|text| text.parse::<f64>().map_err(|_ignored| text)).transpose();
    let weight =
        weight.map_err(|text| CommandError::usage(format!("weight: {text:?} is not a number, such as 1.5")))?;
    let taken = model.names().nodes;
    Ok((Stage::Starting, Ask::NewNode { generation: planning.generation, zone: text("zone"), weight, taken }))
}

/// The dialog, if it waits for the answer to this question.
fn waiting(model: &mut Model, generation: u64) -> Option<Box<Planning>> {
    let waits = matches!(&model.dialog, Some(Dialog::Plan(planning)) if planning.generation == generation
        && matches!(planning.stage, Stage::Asked | Stage::Starting));
    match model.dialog.take_if(|_| waits) {
        Some(Dialog::Plan(planning)) => Some(planning),
        _ => None,
    }
}

pub(super) fn on_planned(model: &mut Model, generation: u64, result: Result<Box<v1::PlanResponse>, String>) {
    let Some(mut planning) = waiting(model, generation) else { return };
    let reviewed = match result {
        Ok(plan) => review(model, &planning, *plan).map_err(|error| error.message),
        Err(error) => Err(error),
    };
    match reviewed {
        Ok(review) => planning.stage = Stage::Review(Box::new(review)),
        Err(error) => {
            planning.stage = Stage::Form;
            planning.error = error;
        }
    }
    model.dialog = Some(Dialog::Plan(planning));
}

fn review(model: &Model, planning: &Planning, plan: v1::PlanResponse) -> Result<Review, CommandError> {
    let cluster = model.cluster.as_ref().ok_or_else(|| CommandError::failed("no node is in reach"))?;
    let line = planning.line();
    let settings = parsed(&line)?.command.topology();
    let word = match planning.kind {
        Kind::Copies => "copies".to_owned(),
        Kind::Rebalance => "rebalance".to_owned(),
        _ => cluster.name_of(preview::member(&cluster.snapshot, planning.value("node"))?),
    };
    let confirm = Confirm::new(format!("{line} --plan {}", plan.hash), String::new(), word);
    let throttle = cluster.operations.throttle.as_ref();
    let bytes_per_second = settings.map_or(0, |settings| limits::assumed(&settings, throttle));
    let waits = planning.waits;
    // The field has the focus: a name that is typed never means anything else.
    let typing = plan.refusals.is_empty();
    Ok(Review { plan, page: Page::Plan, bytes_per_second, confirm, waits, typing, top: 0 })
}

pub(super) fn on_started(model: &mut Model, generation: u64, result: Result<String, String>) -> Vec<Effect> {
    let name = result.as_deref().ok();
    let Some(mut planning) = waiting(model, generation) else {
        return fresh::started(model, generation, name, false);
    };
    let effects = fresh::started(model, generation, name, true);
    match result {
        Ok(name) => {
            // The process has its zone and its weight already.
            for field in &mut planning.fields {
                match field.name {
                    "node" => field.value = crate::dashboard::bar::Bar::with(&name),
                    "zone" | "weight" => field.value = crate::dashboard::bar::Bar::default(),
                    _ => {}
                }
            }
            planning.stage = Stage::Joining(name);
        }
        Err(error) => {
            planning.stage = Stage::Form;
            planning.error = error;
        }
    }
    model.dialog = Some(Dialog::Plan(planning));
    effects
}

/// Something new is known of the cluster: a node that was waited for may be there.
pub(super) fn on_change(model: &mut Model) -> Vec<Effect> {
    let Some(Dialog::Plan(planning)) = &model.dialog else { return Vec::new() };
    let Stage::Joining(name) = &planning.stage else { return Vec::new() };
    let there = model.cluster.as_ref().is_some_and(|cluster| {
        let member = cluster.snapshot.description.member(name);
        member.is_some_and(|member| cluster.snapshot.report(member.id).is_some())
    });
    match model.dialog.take_if(|_| there) {
        Some(Dialog::Plan(planning)) => submit(model, planning),
        _ => Vec::new(),
    }
}

pub(super) fn in_dialog(model: &mut Model, mut planning: Box<Planning>, key: Key) -> Vec<Effect> {
    let epoch = model.epoch();
    if key == Key::Ctrl('c') {
        return fresh::give_up(model);
    }
    match &mut planning.stage {
        Stage::Form => match key {
            Key::Esc => return fresh::give_up(model),
            Key::Enter => return submit(model, planning),
            key => planning.edit(key),
        },
        Stage::Starting | Stage::Joining(_) | Stage::Asked => {
            if key == Key::Esc {
                planning.stage = Stage::Form;
            }
        }
        Stage::Review(review) => match key {
            Key::Esc => return fresh::give_up(model),
            Key::Enter if review.is_void(epoch) => return submit(model, planning),
            Key::Enter => {
                if let Some(refusal) = review.plan.refusals.first() {
                    model.notice = format!("{}; {}", refusal.reason, refusal.remedy);
                } else if review.confirm.is_typed() {
                    return begin(model, planning);
                } else {
                    model.notice = format!("type {} to unlock Start", review.confirm.word);
                    review.typing = true;
                }
            }
            Key::Tab | Key::BackTab => review.typing = !review.typing,
            key if review.types(epoch) => {
                if !review.confirm.typed.edit(key) {
                    // Keys that mean nothing to a field move in the plan.
                    review.scroll(rows_of(model, model.keymap.action(model.screen, key)));
                }
            }
            key => {
                let plain = if let Key::Char(c) = key { Key::Char(latin(c)) } else { key };
                let rows = rows_of(model, model.keymap.action(model.screen, key));
                match plain {
                    Key::Char('y') => {
                        "copied the command (OSC 52)".clone_into(&mut model.notice);
                        let copy = Effect::Copy(review.command());
                        model.dialog = Some(Dialog::Plan(planning));
                        return vec![copy];
                    }
                    Key::Char('E') => {
                        let save = export(model, review);
                        model.dialog = Some(Dialog::Plan(planning));
                        return save;
                    }
                    Key::Char('o') => turn(review, Page::Sources),
                    Key::Char('w') => turn(review, Page::Why),
                    Key::Char('b') => planning.stage = Stage::Form,
                    _ => review.scroll(rows),
                }
            }
        },
    }
    model.dialog = Some(Dialog::Plan(planning));
    Vec::new()
}

/// Shows a page of a plan, or what was shown before it.
fn turn(review: &mut Review, page: Page) {
    review.page = if review.page == page { Page::Plan } else { page };
    review.top = 0;
}

/// Starts exactly the plan that is shown.
fn begin(model: &mut Model, planning: Box<Planning>) -> Vec<Effect> {
    let Stage::Review(review) = &planning.stage else { return Vec::new() };
    let line = review.confirm.line.clone();
    let followed = review.waits.then(|| review.plan.hash.clone());
    let mut effects = start_quietly(model, line);
    if effects.is_empty() {
        // Another command is under way; the plan waits.
        model.dialog = Some(Dialog::Plan(planning));
        return effects;
    }
    model.followed = followed;
    fresh::begins(model);
    effects.extend(go(model, Screen::Migration));
    effects
}

fn export(model: &Model, review: &Review) -> Vec<Effect> {
    let Some(cluster) = &model.cluster else { return Vec::new() };
    let text = format!("{:#}\n", preview::json(&cluster.snapshot, &review.plan, review.bytes_per_second));
    vec![Effect::Ask(Ask::Save { name: format!("plan-{}.json", review.plan.hash), text })]
}

impl Model {
    /// The epoch of the newest layout that is known.
    #[must_use]
    pub fn epoch(&self) -> Option<u64> {
        let layout = self.cluster.as_ref()?.snapshot.description.layout.as_deref()?;
        Some(layout.epoch.0)
    }
}
