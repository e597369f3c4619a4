//! Everything that runs in a node: control plane, services, and the data plane once the node is a member.

use std::sync::Arc;
use std::time::Duration;

use kv_core::storage::{Committer, DiskCommitter, DiskReader, Opened};
use kv_proto::v1::{EventKind, Severity};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::live::live;
use super::start::{announce, control_config, faults, listen, no_address};
use super::{End, RunError};
use crate::clock::Clock;
use crate::control::{ControlPlane, Founding, GrpcTransport, SharedLiveness, StartError, StartMode, remembered};
use crate::descriptors::Division;
use crate::events::{Events, NewEvent};
use crate::liveness::{Heartbeats, Timeouts};
use crate::own_files::mark_secured;
use crate::server::connections::{self, ConnectionSettings, Connections};
use crate::server::{Shared, audit, routes};
use crate::settings::Settings;
use crate::signals;
use crate::transfers::Watchdog;
use crate::trust::{Trust, secret::Secret};
use crate::usage::Usage;

/// Runs the node until a signal or something of its own ends it.
pub(super) async fn serve(
    settings: &Settings,
    secrets: &[Secret],
    division: Division,
    opened: Opened,
    reader: DiskReader,
    mut committer: DiskCommitter,
    renewed: Option<&str>,
) -> Result<End, RunError> {
    let signal = signals::stop().map_err(RunError::System)?;
    let clock = Clock::start();
    clock.set_ahead(settings.clock_ahead_ms);
    let faults = faults(settings, clock);
    let data = &settings.data_dir;
    let known = remembered(&data.join("control")).map_err(StartError::from)?;
    let member = known.as_ref().and_then(|known| known.member.as_ref()).map(|(_, member)| member.clone());
    let listener = listen(settings, member.as_ref()).await?;
    let local = listener.local_addr().map_err(|error| no_address(&error))?;
    let start_mode = match (&settings.start_mode, &known) {
        (Some(start_mode), _) => start_mode.clone(),
        (None, Some(_)) => StartMode::Resume,
        (None, None) => StartMode::Bootstrap(Founding::default()),
    };
    let liveness: SharedLiveness = Arc::new(Mutex::new(Heartbeats::new(Timeouts::default())));
    let before = known.as_ref().and_then(|known| known.before.clone());
    let config = control_config(settings, (member, before), start_mode, local, &opened, &liveness, clock)?;
    let (name, address, zone, weight) =
        (config.name.clone(), config.address.clone(), config.zone.clone(), config.weight);
    let trust =
        Trust::with_faults(&name, opened.incarnation, secrets.to_vec(), settings.allow_open_peers, faults.clone());
    // Whatever may be wrong with this start has been looked at: from here on it serves, and counts as a boot (rule D2).
    ControlPlane::check(&config)?;
    committer.begin()?;
    if !secrets.is_empty() {
        mark_secured(data)?;
    } else if !local.ip().to_canonical().is_loopback() {
        tracing::warn!(%local, "this node is open: whoever reaches it is taken for a node of the cluster");
    }
    let control = ControlPlane::start(config, Arc::new(GrpcTransport::new(trust.clone()))).await?;
    let shared = Arc::new(Shared {
        name: name.clone(),
        address,
        zone,
        weight,
        incarnation: opened.incarnation,
        boots: opened.boots,
        cluster: settings.cluster.clone(),
        clock,
        control,
        trust: trust.clone(),
        liveness,
        events: Events::new(),
        usage: Usage::new(data.clone(), faults.disk()),
        faults,
        disk_reserve_bytes: settings.disk_reserve_bytes,
        watchdog: Watchdog::default(),
        serving: watch::Sender::new(None),
        connections: Connections::new(ConnectionSettings {
            division,
            streams_max: settings.streams_max,
            idle_timeout: settings.idle_timeout,
        }),
        keyspaces: Mutex::default(),
        vitals: watch::Sender::default(),
        stopping: watch::Sender::new(false),
    });
    let routes = routes(&shared)
        .map_err(|error| RunError::System(format!("the reflection service cannot be started: {error}")))?;
    let stopping = shared.stopping.subscribe();
    let server = tokio::spawn(connections::serve(listener, routes, Arc::clone(&shared.connections), trust, stopping));
    let logged = tokio::spawn(audit::log(Arc::clone(&shared)));
    announce(&name, local);
    if let Some(why) = renewed {
        shared.event(NewEvent {
            severity: Severity::Warning,
            kind: EventKind::StoreReplaced,
            message: format!(
                "the store of {name} has a new id, since it was an older copy: {why}. What it holds is kept as an old copy; its \
                 partitions answer again when they are refilled from all of their other owners"
            ),
            undo: String::new(),
        });
    }

    let end = tokio::select! {
        end = live(Arc::clone(&shared), settings, reader, committer) => end,
        () = signal => Ok(End::Stopped),
    };
    logged.abort();
    shared.vitals.send_modify(|vitals| vitals.draining = true);
    let serving = shared.serving.borrow().clone();
    if let Some(serving) = serving {
        serving.engine.stop().await;
    }
    shared.stopping.send_replace(true);
    // Streams that nobody closes must not keep the process alive.
    drop(tokio::time::timeout(Duration::from_secs(2), server).await);
    shared.control.shutdown().await;
    end
}
