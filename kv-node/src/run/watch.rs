//! Watches the peers and the engine, for events and for health checks.

use std::sync::Arc;
use std::time::Duration;

use kv_proto::v1::{EventKind, Severity};

use crate::engine::Engine;
use crate::events::NewEvent;
use crate::link::Links;
use crate::liveness::Condition;
use crate::server::Shared;

/// Keeps the vitals as the engine is.
pub(super) async fn follow_engine(shared: Arc<Shared>, engine: Engine) {
    /// How often the engine is asked whether it still answers.
    const ASK_EVERY: Duration = Duration::from_secs(1);
    let mut failed = engine.failed();
    loop {
        let failure = failed.borrow_and_update().clone();
        // A loop whose store has failed still answers.
        let stalled = failure.is_none() && !engine.answers().await;
        shared.vitals.send_if_modified(|vitals| {
            let before = vitals.clone();
            (vitals.failed, vitals.stalled) = (failure, stalled);
            *vitals != before
        });
        tokio::select! {
            // An engine that has ended says nothing more; the node ends with it.
            changed = failed.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(ASK_EVERY) => {}
        }
    }
}

/// Reports an event when the opinion of a peer changes, and closes the stream of a peer that is down: it may be
/// stalled, and its stream would stay open forever.
pub(super) async fn follow_liveness(shared: Arc<Shared>, links: Links) {
    /// How often at least the opinions are checked: a change may have another cause than silence.
    const CHECK_EVERY: Duration = Duration::from_millis(250);
    loop {
        let now = shared.clock.now().mono;
        let (transitions, next) = {
            let mut liveness = shared.liveness.lock();
            (liveness.transitions(now), liveness.next_change(now))
        };
        for transition in transitions {
            let name = shared.state().name_of(transition.peer);
            let condition = transition.to.condition;
            match condition {
                Condition::Down => links.close(transition.peer),
                Condition::Suspect => links.silent(transition.peer).await,
                Condition::Up => {}
            }
            let severity = if condition == Condition::Up { Severity::Info } else { Severity::Warning };
            let because =
                if transition.to.reason.is_empty() { String::new() } else { format!(": {}", transition.to.reason) };
            shared.event(NewEvent {
                severity,
                kind: EventKind::Liveness,
                message: format!("{name} {} -> {condition}{because}", transition.from),
                undo: String::new(),
            });
        }
        let wait = next.map_or(CHECK_EVERY, |next| next.since(now).min(CHECK_EVERY));
        tokio::time::sleep(wait.max(Duration::from_millis(10))).await;
    }
}
