//! What each replica of a key of a consistent keyspace has accepted and promised, and what follows from that.

use kv_proto::client::Inspection;
use kv_proto::v1;
use kv_proto::v1::replica_view::Answer;

use super::canvas::Canvas;
use super::inspector::{Line, holder_line, place_lines, status_lines, value_lines};
use crate::dashboard::cluster::Cluster;
use crate::dashboard::theme::Role;
use crate::output::bytes::printable;
use crate::run::inspect::ballot_text;

/// Whether the replicas hold registers: the key is one of a consistent keyspace.
pub(super) fn are_shown(seen: &Inspection) -> bool {
    seen.replicas.iter().any(|replica| matches!(replica.answer, Some(Answer::Register(_))))
}

fn accepted(replica: &v1::ReplicaView) -> Option<&v1::AcceptedView> {
    match &replica.answer {
        Some(Answer::Register(register)) => register.accepted.as_ref(),
        _ => None,
    }
}

pub(super) fn lines(canvas: &Canvas<'_>, cluster: &Cluster, seen: &Inspection, width: u16) -> Vec<Line> {
    let states = states(seen);
    let mut lines = place_lines(canvas, cluster, seen);
    lines.extend(status_lines(canvas, status(seen), width));
    for replica in &seen.replicas {
        lines.push(holder_line(canvas, cluster, replica, held(replica, &states), width));
        lines.extend(ballot_lines(canvas, cluster, replica, width));
    }
    for (at, state) in states.iter().enumerate() {
        lines.push(Vec::new());
        let version = format!("version {}", ballot(cluster, state.version.as_ref()));
        lines.push(vec![
            (format!("v{}  ", at + 1), Role::Title),
            (canvas.fitted(&version, width.saturating_sub(4)), Role::Dim),
        ]);
        lines.extend(value_lines(canvas, (state.written_us, state.expires_us), state.value.as_deref(), width));
    }
    lines
}

/// Every state that some replica has accepted, once, in the order in which they are met.
fn states(seen: &Inspection) -> Vec<&v1::AcceptedView> {
    let mut states: Vec<&v1::AcceptedView> = Vec::new();
    for state in seen.replicas.iter().filter_map(accepted) {
        if !states.iter().any(|known| known.version == state.version) {
            states.push(state);
        }
    }
    states
}

/// What the key holds, as far as the owners that answered tell.
fn status(seen: &Inspection) -> (String, Role) {
    let owners: Vec<&v1::ReplicaView> = seen.replicas.iter().filter(|replica| replica.owner).collect();
    let majority = owners.len() / 2 + 1;
    let answered = owners.iter().filter(|owner| matches!(owner.answer, Some(Answer::Register(_) | Answer::Record(_))));
    let silent = owners.len() - answered.count();
    let under = |ballot: &Option<v1::Ballot>| {
        owners.iter().filter(|owner| accepted(owner).is_some_and(|accepted| accepted.ballot == *ballot)).count()
    };
    let agreed = owners.iter().filter_map(|owner| accepted(owner)).map(|accepted| under(&accepted.ballot)).max();
    let agreed = agreed.unwrap_or(0);
    let words = if agreed == owners.len() {
        return ("all owners have accepted the same".to_owned(), Role::Good);
    } else if agreed >= majority {
        format!("{agreed} of {} owners have accepted the same, which is what the key holds", owners.len())
    } else if agreed == 0 && silent == 0 {
        "no owner has accepted anything: the key was never written".to_owned()
    } else if silent > 0 {
        format!("{silent} of {} owners did not answer, and the others are no majority that agrees", owners.len())
    } else {
        "no majority has accepted the same: the next request on the key settles what it holds".to_owned()
    };
    (words, Role::Warn)
}

fn held(replica: &v1::ReplicaView, states: &[&v1::AcceptedView]) -> (String, Role) {
    match &replica.answer {
        Some(Answer::Register(v1::RegisterView { accepted: Some(accepted), .. })) => {
            let place = states.iter().position(|known| known.version == accepted.version);
            let name = place.map_or_else(String::new, |at| format!("v{}", at + 1));
            let deleted = if accepted.value.is_none() { ", deleted" } else { "" };
            (format!("{name}{deleted}"), Role::Text)
        }
        Some(Answer::Register(_) | Answer::Record(_)) => ("nothing".to_owned(), Role::Dim),
        Some(Answer::Error(error)) => (printable(error.message.as_bytes()), Role::Bad),
        None => ("no answer".to_owned(), Role::Bad),
    }
}

/// The ballots of a replica, below what it holds: side by side they would not fit.
fn ballot_lines(canvas: &Canvas<'_>, cluster: &Cluster, replica: &v1::ReplicaView, width: u16) -> Vec<Line> {
    let Some(Answer::Register(register)) = &replica.answer else { return Vec::new() };
    let mut ballots = format!("promised {}", ballot(cluster, register.promised.as_ref()));
    if let Some(accepted) = &register.accepted {
        ballots = format!("accepted {}, {ballots}", ballot(cluster, accepted.ballot.as_ref()));
    }
    let lines = canvas.wrapped(&ballots, width.saturating_sub(5));
    lines.into_iter().map(|line| vec![(format!("     {line}"), Role::Dim)]).collect()
}

fn ballot(cluster: &Cluster, ballot: Option<&v1::Ballot>) -> String {
    printable(ballot_text(ballot, &cluster.snapshot.description).as_bytes())
}
