//! What the source sends, and what is asked of it.

use bytes::Bytes;

use super::{fresh, plan, steer};
use crate::command::unescape;
use crate::dashboard::cluster::{Change, Cluster};
use crate::dashboard::keymap::Screen;
use crate::dashboard::model::{Link, Model, OUTPUT_LINES_MAX};
use crate::dashboard::msg::{Ask, Effect, Feed};

/// Keys that are kept on the keys screen.
const KEYS_MAX: usize = 100_000;

pub(super) fn on_feed(model: &mut Model, feed: Feed) -> Vec<Effect> {
    let now_us = model.now_us;
    if let Feed::Snapshot(node, snapshot) = feed {
        let Some(cluster) = &mut model.cluster else { return Vec::new() };
        let stale = cluster.is_stale(now_us);
        let change = cluster.observe_report(node, snapshot, now_us);
        let shown = match change {
            Change::Nothing => false,
            Change::Details => model.screen == Screen::Nodes,
            Change::Shown => true,
        };
        model.changed |= (stale || shown) && model.frozen.is_none();
        steer::on_change(model);
        return plan::on_change(model);
    }
    model.changed = true;
    match feed {
        Feed::Description(description) => {
            let new = model.cluster.as_ref().is_none_or(|cluster| {
                let known = cluster.snapshot.description.cluster;
                known.is_some() && known != description.cluster
            });
            if new {
                model.cluster = Some(Cluster::new(description, now_us));
            } else if let Some(cluster) = &mut model.cluster {
                cluster.describe(description);
                cluster.reported_us = now_us;
            }
            model.link = Link::Live;
            if model.screen == Screen::Keys && !model.keys.asked {
                return browse(model, true);
            }
            steer::on_change(model);
            return plan::on_change(model);
        }
        Feed::Offline { error, retry_us } => model.link = Link::Offline { error, retry_us },
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
        Feed::Completions { generation, keys } if generation == model.completion.generation => {
            model.completion.keys = keys;
        }
        Feed::Inspected { generation, key, result } if generation == model.keys.generation => {
            model.keys.inspected = Some((key, result));
            model.keys.top = 0;
        }
        Feed::Operations(reported) => {
            with_cluster(model, |cluster| cluster.observe_operations(*reported));
            steer::on_change(model);
        }
        Feed::Planned { generation, result } => plan::on_planned(model, generation, result),
        Feed::Started { generation, result } => return plan::on_started(model, generation, result),
        Feed::TakenAway(reported) => return fresh::taken_away(model, reported),
        Feed::Notice(text) => model.notice = text,
        // Answers to questions that are no longer asked.
        Feed::Keys { .. } | Feed::Completions { .. } | Feed::Inspected { .. } | Feed::Snapshot(..) => {}
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
            let mut effects = on_ended(model, code, error);
            effects.extend(fresh::ended(model, code));
            return effects;
        }
    }
    Vec::new()
}

/// A command has ended: keys that it changed are read again where they are on the screen.
fn on_ended(model: &mut Model, code: u8, error: String) -> Vec<Effect> {
    let Some(output) = &mut model.output else { return Vec::new() };
    output.code = Some(code);
    output.error = error;
    let line = crate::command::Line::parse_line(output.line.as_bytes());
    if code != 0 && output.quiet && model.followed.as_ref().is_some_and(|hash| output.line.contains(hash)) {
        // What did not begin has no end.
        model.followed = None;
    }
    if output.quiet && code == 0 {
        // The command's last word says what is done, or has only begun.
        model.notice = match output.lines.back() {
            Some(line) => line.trim().to_owned(),
            None => format!("done: {}", output.line),
        };
        model.output = None;
        return Vec::new();
    }
    if model.screen == Screen::Keys && matches!(line, Ok(Some(line)) if line.command.changes()) {
        let row = model.keys.cursor;
        let effects = browse(model, true);
        model.keys.cursor = row;
        return effects;
    }
    Vec::new()
}

fn with_cluster(model: &mut Model, change: impl FnOnce(&mut Cluster)) {
    if let Some(cluster) = &mut model.cluster {
        change(cluster);
    }
}

/// Asks for keys: from the first on, or the next page.
pub(super) fn browse(model: &mut Model, anew: bool) -> Vec<Effect> {
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
    vec![Effect::Ask(Ask::Browse { generation: keys.generation, keyspace: keys.keyspace.clone(), prefix, cursor })]
}

/// Asks what the replicas of the selected key hold.
pub(super) fn inspect(model: &Model) -> Vec<Effect> {
    let keys = &model.keys;
    let Some(key) = keys.keys.get(keys.cursor).cloned() else { return Vec::new() };
    vec![Effect::Ask(Ask::Inspect { generation: keys.generation, keyspace: keys.keyspace.clone(), key })]
}
