//! How the model changes: a pure function of the model and a message.

mod actions;
mod feed;
mod fresh;
mod plan;
mod pointer;
mod steer;
mod typing;

use super::dialog::Dialog;
use super::keymap::{Action, Key, Screen};
use super::model::{HISTORY_MAX, Link, Model};
use super::msg::{Effect, Msg};
pub use steer::followed;

/// Applies one message.
pub fn update(model: &mut Model, msg: Msg) -> Vec<Effect> {
    let asked = matches!(msg, Msg::Key(_) | Msg::Mouse(_));
    let effects = apply(model, msg);
    if asked { fresh::before_leaving(model, effects) } else { effects }
}

fn apply(model: &mut Model, msg: Msg) -> Vec<Effect> {
    // What is sent every second shows nothing new most of the time; everything else does.
    match msg {
        Msg::Clock(now_us) => {
            model.changed |= pass_time(model, now_us);
            return Vec::new();
        }
        Msg::Feed(feed) => return feed::on_feed(model, feed),
        _ => model.changed = true,
    }
    match msg {
        Msg::Key(key) => on_key(model, key),
        Msg::Mouse(mouse) => pointer::on_mouse(model, mouse),
        Msg::Paste(text) => typing::paste(model, &text),
        Msg::Resize(width, height) => {
            model.size = (width, height);
            vec![Effect::Redraw]
        }
        Msg::History(lines) => {
            let excess = lines.len().saturating_sub(HISTORY_MAX);
            model.history = lines.into_iter().skip(excess).collect();
            Vec::new()
        }
        Msg::Notice(text) => {
            model.notice = text;
            Vec::new()
        }
        Msg::Clock(_) | Msg::Feed(_) => Vec::new(),
    }
}

/// Takes note of the time; whether that shows: a chart moves on, or an age grows.
fn pass_time(model: &mut Model, now_us: u64) -> bool {
    // The clock of a machine may be set back; the screen's time does not.
    let before = model.now_us;
    model.now_us = before.max(now_us);
    let moved = model.cluster.as_mut().is_some_and(|cluster| cluster.pass_time(model.now_us));
    let second = model.now_us / 1_000_000 != before / 1_000_000;
    let ageing =
        model.link != Link::Live || model.cluster.as_ref().is_none_or(|cluster| cluster.is_stale(model.now_us));
    model.frozen.is_none() && (moved || (second && ageing))
}

fn on_key(model: &mut Model, key: Key) -> Vec<Effect> {
    model.notice.clear();
    if let Some(bar) = model.bar.take() {
        return typing::in_bar(model, bar, key);
    }
    if let Some(bar) = model.filter.take() {
        return typing::in_filter(model, bar, key);
    }
    // What only shows something does not prevent leaving.
    if key == Key::Ctrl('c') && !matches!(model.dialog, Some(Dialog::Confirm(_) | Dialog::Plan(_))) {
        return vec![Effect::Quit];
    }
    if let Some(dialog) = model.dialog.take() {
        return actions::in_dialog(model, dialog, key);
    }
    model.keymap.action(model.screen, key).map_or_else(Vec::new, |action| actions::act(model, action))
}

/// Moves to a screen.
fn go(model: &mut Model, screen: Screen) -> Vec<Effect> {
    if model.screen != screen {
        model.pane = super::model::Pane::Main;
    }
    model.screen = screen;
    if screen == Screen::Keys && !model.keys.asked && model.cluster.is_some() {
        feed::browse(model, true)
    } else {
        Vec::new()
    }
}

/// The key of an action, as it is written in messages.
fn key_of(model: &Model, action: Action) -> String {
    model.keymap.key_of(action)
}
