//! Every request gets one answer in time (the workload sees to that), and an error says the truth: bad requests are
//! refused for what is wrong with them, good ones only for what a retry can heal, and "nothing was done" means it.

use kv_core::error::Kind;
use kv_core::message::{Attempt, Outcome, ReplicaView};
use kv_core::ring::Entry;

use crate::history::{End, History, KeyId};
use crate::settings::Settings;
use crate::workload::Ask;
use crate::world::World;

/// Whether the answer's kind of error fits the request.
pub(crate) fn error_is_allowed(
    ask: &Ask,
    outcome: &Outcome,
    settings: &Settings,
    clocks_are_wrong: bool,
) -> Result<(), String> {
    // A node that is overloaded, cut off or has no layout yet may refuse anything.
    let busy = |kind: Kind| {
        matches!(kind, Kind::Unavailable | Kind::Unknown | Kind::Exhausted | Kind::StaleEpoch | Kind::Poisoned)
    };
    match (ask, outcome) {
        (Ask::Bad { kind, .. }, Err(error))
            if error.kind == *kind || (busy(error.kind) && error.kind != Kind::Unknown) =>
        {
            Ok(())
        }
        (Ask::Bad { kind, .. }, other) => Err(format!("a request that is {kind:?} got {other:?}")),
        (_, Ok(_)) => Ok(()),
        (_, Err(error)) if error.message.is_empty() => Err("an error without a message".to_owned()),
        (_, Err(error)) if busy(error.kind) => Ok(()),
        // Where the last writer wins, all that do not repeat draw another stamp.
        (Ask::Write(_, Attempt::First | Attempt::Plain), Err(error)) if error.wants_stamp() => Ok(()),
        // So do those of whose requests a register remembers too little; and a repetition may learn that the first attempt has failed.
        (Ask::Register(_, Attempt::First | Attempt::Repeated), Err(error)) if error.kind == Kind::Conflict => Ok(()),
        // A session that has learnt that its time is wrong goes back, behind what it was shown before.
        (Ask::Write(..), Err(error)) if error.kind == Kind::Invalid && clocks_are_wrong => Ok(()),
        // A put without a context is refused when the siblings would become too many.
        (Ask::Write(..), Err(error)) if error.kind == Kind::Invalid && settings.cluster.siblings_max < 32 => Ok(()),
        (_, Err(error)) => Err(format!("a good request is refused as {:?}: {}", error.kind, error.message)),
    }
}

/// An operation whose every attempt was refused with "nothing was done" has left no trace.
pub(crate) fn nothing_means_nothing(history: &History) -> Result<(), String> {
    for (index, op) in history.ops.iter().enumerate() {
        if op.end == Some(End::Nothing) && !op.dots.is_empty() {
            return Err(format!(
                "operation {index} was refused as if nothing was done, but it has dots: {:?}",
                op.dots
            ));
        }
    }
    Ok(())
}

/// An inspection says something of every owner, once.
pub(crate) fn owners_are_listed(world: &World, key: KeyId, replicas: &[ReplicaView]) -> Result<(), String> {
    let mut listed: Vec<_> = replicas.iter().filter(|replica| replica.owner).map(|replica| replica.node).collect();
    listed.sort();
    let partition = world.history.key(key).partition;
    // Any entry will do: layouts change while an inspection is under way.
    let entries = world.layouts.iter().filter_map(|layout| layout.entry(partition));
    let are_owners = |entry: &Entry| {
        let mut owners: Vec<_> = entry.nodes().collect();
        owners.sort();
        listed == owners
    };
    if entries.into_iter().any(are_owners) {
        Ok(())
    } else {
        Err(format!("an inspection of {key:?} lists {listed:?}, which never were the owners"))
    }
}
