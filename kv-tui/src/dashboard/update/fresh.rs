//! A node whose process was started for a change: it is taken away again unless the change begins.

use crate::dashboard::model::{Fresh, Model};
use crate::dashboard::msg::{Ask, Effect};

/// The notice when a change is given up.
const NOTHING: &str = "nothing was changed";

/// A change was given up: what was started for it goes as well.
pub(super) fn give_up(model: &mut Model) -> Vec<Effect> {
    NOTHING.clone_into(&mut model.notice);
    let effects = release(model);
    model.notice.push_str(&match &model.fresh {
        None | Some(Fresh::Begins(_)) => String::new(),
        Some(Fresh::Starting(_)) => "; the node that is being started is taken away again".to_owned(),
        Some(Fresh::Runs(name) | Fresh::Leaves(name)) => {
            format!("; {name}, which was started for it, is taken away again")
        }
    });
    effects
}

/// Takes the node away that runs for a change that is no longer wanted.
pub(super) fn release(model: &mut Model) -> Vec<Effect> {
    let Some(Fresh::Runs(name)) = &model.fresh else { return Vec::new() };
    let name = name.clone();
    model.fresh = Some(Fresh::Leaves(name.clone()));
    vec![Effect::Ask(Ask::TakeAway { name })]
}

/// The process runs, or does not. Whether it is still waited for.
pub(super) fn started(model: &mut Model, generation: u64, name: Option<&str>, awaited: bool) -> Vec<Effect> {
    if model.fresh == Some(Fresh::Starting(generation)) {
        model.fresh = name.map(|name| Fresh::Runs(name.to_owned()));
    }
    match model.fresh {
        None if model.quits => vec![Effect::Quit],
        Some(Fresh::Runs(_)) if !awaited => release(model),
        _ => Vec::new(),
    }
}

/// A node other than the one that was started is asked for: that one goes.
pub(super) fn keep_only(model: &mut Model, wanted: &str) -> Vec<Effect> {
    match &model.fresh {
        Some(Fresh::Runs(name)) if name != wanted => release(model),
        _ => Vec::new(),
    }
}

/// The line that adds the node runs.
pub(super) fn begins(model: &mut Model) {
    if let Some(Fresh::Runs(name)) = &model.fresh {
        model.fresh = Some(Fresh::Begins(name.clone()));
    }
}

/// The line that adds the node has ended. What did not begin leaves no node behind; where it is unknown whether it began,
/// the node stays.
pub(super) fn ended(model: &mut Model, code: u8) -> Vec<Effect> {
    let Some(Fresh::Begins(name)) = &model.fresh else { return Vec::new() };
    let known = code != crate::error::Class::Unavailable.exit_code();
    model.fresh = if code != 0 && known { Some(Fresh::Runs(name.clone())) } else { None };
    let effects = release(model);
    if effects.is_empty() && model.quits { vec![Effect::Quit] } else { effects }
}

/// Nothing is left of it, or it stays; `message` says which.
pub(super) fn taken_away(model: &mut Model, message: String) -> Vec<Effect> {
    model.notice = message;
    model.fresh = None;
    if model.quits { vec![Effect::Quit] } else { Vec::new() }
}

/// Holds a wish to leave back until nothing is left of the node. Who asks a second time leaves at once.
pub(super) fn before_leaving(model: &mut Model, effects: Vec<Effect>) -> Vec<Effect> {
    if model.fresh.is_none() || model.quits || !effects.contains(&Effect::Quit) {
        return effects;
    }
    model.quits = true;
    let mut effects: Vec<Effect> = effects.into_iter().filter(|effect| *effect != Effect::Quit).collect();
    effects.extend(release(model));
    "the node that was started is taken away before the dashboard ends; once more leaves at once, and the node stays"
        .clone_into(&mut model.notice);
    effects
}
