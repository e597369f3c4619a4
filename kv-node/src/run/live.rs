//! The data plane of a member, from the layout that it learns to whatever ends it.

use std::sync::Arc;
use std::time::Duration;

use kv_core::config::NodeConfig;
use kv_core::event::Event;
use kv_core::storage::{Committer, DiskCommitter, DiskReader};
use kv_core::types::NodeId;
use kv_proto::v1::{EventKind, Severity};
use tokio::sync::{mpsc, watch};

use super::adopt::{adopt, adopt_addresses};
use super::watch::{follow_engine, follow_liveness};
use super::{End, RunError, random, receipts};
use crate::control::MembershipStatus;
use crate::engine::{Engine, EngineConfig};
use crate::events::NewEvent;
use crate::faults::{FaultyCommitter, FaultyReader};
use crate::link::{Identity, Links, Members, keep_links};
use crate::server::{Serving, Shared};
use crate::settings::Settings;

/// How often a node looks for tombstones to collect: a tenth of their age, within these.
const SETTLE_EVERY_MIN: Duration = Duration::from_millis(100);
const SETTLE_EVERY_MAX: Duration = Duration::from_secs(60);

/// Waits until the node belongs to a formed cluster, then runs its data plane until something ends it.
pub(super) async fn live(
    shared: Arc<Shared>,
    settings: &Settings,
    reader: DiskReader,
    mut committer: DiskCommitter,
) -> Result<End, RunError> {
    let mut membership = shared.control.membership();
    let mut state = shared.control.state();
    let mut logged = String::new();
    let node = loop {
        let current = membership.borrow_and_update().clone();
        let text = current.to_string();
        if text != logged {
            tracing::info!(membership = %text, "the membership status has changed");
            logged = text;
        }
        match current {
            MembershipStatus::Refused(refusal) => return End::of(refusal),
            MembershipStatus::Member { node, .. } if state.borrow_and_update().layout.is_some() => break node,
            // Puts and gets go on without the control plane, if the layout is known.
            MembershipStatus::Failed { reason } => match member_of(&shared) {
                Some(node) => break node,
                None => return Err(RunError::System(reason)),
            },
            MembershipStatus::Joining { .. } => {
                if let Some(node) = member_of(&shared) {
                    break node;
                }
            }
            MembershipStatus::Forming { .. } | MembershipStatus::Member { .. } => {}
        }
        tokio::select! {
            changed = membership.changed() => if changed.is_err() { return Err(RunError::System("the control plane ended".into())) },
            changed = state.changed() => if changed.is_err() { return Err(RunError::System("the control plane ended".into())) },
        }
    };
    let agreed = shared.state();
    let Some((cluster, seed)) = agreed.identity() else {
        return Err(RunError::System("the cluster has a layout but no identity".into()));
    };
    committer.bind(cluster, seed)?;
    let (events, mut happened) = mpsc::unbounded_channel();
    let node_config = NodeConfig {
        map_seed: u64::from_le_bytes(random()?),
        hot_bytes_max: settings.hot_bytes_max,
        hint_bytes_max: settings.hint_bytes_max,
        loops: settings.loops,
        collect_after: settings.tombstone_age,
        settle_every: (settings.tombstone_age / 10).clamp(SETTLE_EVERY_MIN, SETTLE_EVERY_MAX),
        ..NodeConfig::new(node)
    };
    let engine = Engine::start(EngineConfig {
        node: node_config,
        cluster: agreed.config.clone(),
        incarnation: shared.incarnation,
        reader: FaultyReader::new(reader, shared.faults.disk()),
        committer: FaultyCommitter::new(committer, shared.faults.disk(), settings.data_dir.display().to_string()),
        clock: shared.clock,
        events,
        answers: Arc::clone(&shared.connections.answers),
    })?;
    let identity = Identity {
        node,
        incarnation: shared.incarnation,
        boots: shared.boots.clone(),
        cluster,
        seed,
        config: agreed.config.clone(),
        // Who serves has been admitted to a group; and it belongs to one as long as it runs.
        generation: shared.control.generation().unwrap_or_default(),
    };
    shared.trust.belongs_to(node, cluster);
    let remembers = engine.clone();
    shared.control.remembers(Arc::new(move |node, store| {
        let engine = remembers.clone();
        Box::pin(async move { engine.seen(node, Some(store)).await.seen })
    }));
    let (liveness, control) = (Arc::clone(&shared.liveness), shared.control.clone());
    let links = Links::new(identity, engine.clone(), liveness, control, shared.trust.clone(), shared.clock);
    let (members, followed) = watch::channel(Members::new());
    adopt(&shared, &engine, &agreed, &members).await;
    shared.serving.send_replace(Some(Serving { node, engine: engine.clone(), links: links.clone() }));
    shared.vitals.send_modify(|vitals| vitals.serves = true);
    shared.event(NewEvent {
        severity: Severity::Info,
        kind: EventKind::Serving,
        message: format!("{} serves as {node} of cluster {cluster}", shared.name),
        undo: String::new(),
    });
    let tasks = [
        tokio::spawn(keep_links(links.clone(), followed)),
        tokio::spawn(follow_liveness(Arc::clone(&shared), links.clone())),
        tokio::spawn(receipts::follow(Arc::clone(&shared), engine.clone())),
        tokio::spawn(follow_engine(Arc::clone(&shared), engine.clone())),
    ];
    let mut moved = shared.control.moved();
    // Addresses that were found before are not in the channel.
    adopt_addresses(&shared, &shared.state(), &members);
    let end = loop {
        tokio::select! {
            changed = state.changed() => match changed {
                Ok(()) => {
                    let agreed = Arc::clone(&state.borrow_and_update());
                    adopt(&shared, &engine, &agreed, &members).await;
                }
                Err(_) => break Err(RunError::System("the control plane ended".into())),
            },
            // The sender lives as long as the control plane, whose end the other branches notice.
            Ok(()) = moved.changed() => adopt_addresses(&shared, &shared.state(), &members),
            changed = membership.changed() => {
                let current = membership.borrow_and_update().clone();
                tracing::info!(membership = %current, "the membership status has changed");
                match (changed, current) {
                    (Err(_), _) => break Err(RunError::System("the control plane ended".into())),
                    (Ok(()), MembershipStatus::Refused(refusal)) => break End::of(refusal),
                    // Without the control plane puts and gets go on with the layout that is known.
                    (Ok(()), MembershipStatus::Failed { reason }) => shared.event(NewEvent {
                        severity: Severity::Error,
                        kind: EventKind::ControlFailed,
                        message: format!("the control plane has stopped: {reason}; restart the node"),
                        undo: String::new(),
                    }),
                    (Ok(()), _) => {}
                }
            }
            event = happened.recv() => match event {
                Some(event) => {
                    if let Event::Poisoned { reason } = &event {
                        links.stop(reason);
                    }
                    let event = NewEvent::from(event);
                    shared.event(NewEvent { message: shared.state().with_names(&event.message), ..event });
                }
                None => break Err(RunError::System("the engine has stopped".into())),
            },
        }
    };
    for task in tasks {
        task.abort();
    }
    end
}

/// The node's number, if it knows that it is a member of a formed cluster, however long ago it learned so.
fn member_of(shared: &Shared) -> Option<NodeId> {
    let state = shared.state();
    state.layout.as_ref()?;
    state.member_of(shared.incarnation.store).map(|(node, _)| node)
}
