//! What a node starts with: its share of file descriptors, its store, its address, and the control plane's settings.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;

use kv_core::storage::{DiskCommitter, DiskConfig, DiskReader, DiskStore, OpenIds, Opened};
use kv_core::types::StoreId;
use kv_proto::address::is_of_one_machine;
use tokio::net::TcpListener;

use super::{RunError, random};
use crate::clock::Clock;
use crate::control::{ControlConfig, MemberRecord, SharedLiveness, StartError, StartMode, Timing, remembered};
use crate::descriptors::{self, Division};
use crate::faults::Faults;
use crate::own_files::{ListenFile, is_secured};
use crate::settings::{Settings, SettingsError};
use crate::trust::{self, secret::Secret};

/// Raises the limit on open files and divides it.
pub(super) fn divide_descriptors(settings: &Settings) -> Result<Division, RunError> {
    let limit = descriptors::raise().map_err(RunError::System)?;
    let division = Division::of(limit, settings.connections_max);
    let Division { tables, clients, peers, .. } = division;
    tracing::info!(limit, tables, clients, peers, "how open files are divided");
    if clients < settings.connections_max {
        let wanted = settings.connections_max;
        tracing::warn!(
            limit,
            clients,
            wanted,
            "the limit on open files allows for fewer connections; raise it (ulimit -n)"
        );
    }
    Ok(division)
}

pub(super) fn open_store(
    settings: &Settings,
    division: &Division,
    renew: bool,
) -> Result<(Opened, DiskReader, DiskCommitter), RunError> {
    let ids = OpenIds { store: StoreId(u64::from_le_bytes(random()?)), nonce: u32::from_le_bytes(random()?) };
    let config =
        DiskConfig { cache_bytes: settings.cache_bytes, renew, files: division.tables, ..DiskConfig::default() };
    Ok(DiskStore::prepare(&settings.data_dir.join("store"), &config, ids)?)
}

/// The secrets of the node's cluster, if it has any; a founding node makes the first one. Nothing else is changed, so that a
/// start without them leaves no trace.
pub(super) fn secrets(settings: &Settings) -> Result<Vec<Secret>, RunError> {
    let unusable = |problem: String| RunError::Settings(SettingsError::Value { field: "cluster-secret-file", problem });
    let Some(path) = &settings.cluster_secret_file else {
        if is_secured(&settings.data_dir) && !settings.allow_open_peers {
            return Err(unusable(
                "is not given, and the cluster of this node has a secret: without it no other node would talk to this one; name \
                 the file with --cluster-secret-file PATH"
                    .to_owned(),
            ));
        }
        return Ok(Vec::new());
    };
    let is_new = remembered(&settings.data_dir.join("control")).map_err(StartError::from)?.is_none();
    let founds = is_new && !matches!(settings.start_mode, Some(StartMode::Join(_) | StartMode::Resume));
    let (secrets, made) = trust::load(path, founds).map_err(unusable)?;
    if made {
        tracing::info!(path = %path.display(), "a secret for the cluster is made; give every node that joins a copy of the file");
    }
    Ok(secrets)
}

/// Whether an address can be reached from other machines only by those who prove the cluster's secret, or not at all, or
/// somebody has said that this is fine.
fn check_open(settings: &Settings, address: SocketAddr) -> Result<(), RunError> {
    if address.ip().to_canonical().is_loopback() || settings.cluster_secret_file.is_some() || settings.allow_open_peers
    {
        return Ok(());
    }
    let problem = format!(
        "{address} can be reached from other machines, and whoever reaches it could read, change and destroy everything as a \
         node of the cluster; give --cluster-secret-file PATH (the founding node makes the file, every other node gets a \
         copy), or --allow-open-peers if everybody in this network is trusted"
    );
    Err(RunError::Settings(SettingsError::Value { field: "listen", problem }))
}

/// The faults of this node: none, unless it takes some.
pub(super) fn faults(settings: &Settings, clock: Clock) -> Faults {
    if !settings.allow_faults {
        return Faults::default();
    }
    tracing::warn!(
        "this node takes faults (--allow-faults): whoever reaches its port can cut it off, stop or fill its disk, and set its clock wrong"
    );
    Faults::allowed(clock)
}

/// Binds the address and remembers it, so that a port that was picked once is kept.
pub(super) async fn listen(settings: &Settings, member: Option<&MemberRecord>) -> Result<TcpListener, RunError> {
    let file = ListenFile::read(&settings.data_dir)?;
    let before = file.before(settings.listen, member.map(|member| member.address.as_str()))?;
    let address = settings.listen_or(before);
    if settings.advertise.is_none() && !is_of_one_machine(address.ip()) {
        return Err(RunError::Settings(SettingsError::Value {
            field: "advertise",
            problem: format!(
                "is not given, and no other machine reaches this node at {address}, where it listens; name an address of \
                 this machine with --advertise ADDR:PORT"
            ),
        }));
    }
    check_open(settings, address)?;
    if settings.allow_faults && !address.ip().to_canonical().is_loopback() {
        return Err(RunError::Settings(SettingsError::Value {
            field: "allow-faults",
            problem: format!(
                "is for clusters on one machine, and {address} can be reached from other ones: whoever reaches it could cut this node \
                 off and stop its disk; listen on 127.0.0.1, or leave it out"
            ),
        }));
    }
    let listener = TcpListener::bind(address).await.map_err(|error| RunError::Listen {
        address,
        problem: match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                "another process listens there; stop it, or choose another port with --listen".to_owned()
            }
            _ => format!("{error}; choose an address of this machine with --listen"),
        },
    })?;
    let local = listener.local_addr().map_err(|error| no_address(&error))?;
    file.write(local)?;
    Ok(listener)
}

pub(super) fn no_address(error: &std::io::Error) -> RunError {
    RunError::System(format!("the listener has no address: {error}"))
}

pub(super) fn control_config(
    settings: &Settings,
    (member, before): (Option<MemberRecord>, Option<(String, String, f64)>),
    start_mode: StartMode,
    local: SocketAddr,
    opened: &Opened,
    liveness: &SharedLiveness,
    clock: Clock,
) -> Result<ControlConfig, RunError> {
    if let Some(member) = &member {
        if let Some(name) = &settings.name
            && *name != member.name
        {
            let problem = format!(
                "is {name:?}, but this data directory belongs to a node with {:?}; leave the flag out, or use another \
                 --data-dir",
                member.name
            );
            return Err(RunError::Settings(SettingsError::Value { field: "name", problem }));
        }
        // These may have been changed since the first start, for which the flags were written.
        if let Some(zone) = settings.zone.as_ref().filter(|zone| **zone != member.zone) {
            tracing::warn!(
                flag = %zone, agreed = %member.zone,
                "--zone is not what the cluster has agreed on, which counts; node zone changes it"
            );
        }
        if let Some(weight) = settings.weight.filter(|weight| weight.to_bits() != member.weight.to_bits()) {
            tracing::warn!(
                flag = weight,
                agreed = member.weight,
                "--weight is not what the cluster has agreed on, which counts; node weight changes it"
            );
        }
    }
    let name = member.as_ref().map(|member| member.name.clone()).or_else(|| settings.name.clone());
    let (name, zone, weight) = match before {
        // Another name is for a node whose place has been taken meanwhile.
        Some((before, zone, weight)) => (name.or(Some(before)), Some(zone), Some(weight)),
        None => (name, settings.zone.clone(), settings.weight),
    };
    Ok(ControlConfig {
        dir: settings.data_dir.join("control"),
        start_mode,
        name: name.unwrap_or_else(|| format!("{}-{}", host_name(), local.port())),
        address: settings.advertise.clone().unwrap_or_else(|| local.to_string()),
        zone: member.as_ref().map(|member| member.zone.clone()).or(zone).unwrap_or_else(|| "default".to_owned()),
        weight: member.as_ref().map(|member| member.weight).or(weight).unwrap_or(1.0),
        version: crate::BUILD.to_owned(),
        incarnation: opened.incarnation,
        boots: opened.boots.clone(),
        has_data: true,
        replaces: settings.replaces,
        cluster: settings.cluster.clone(),
        liveness: Arc::clone(liveness),
        clock: Arc::new(move || clock.now().mono),
        timing: Timing::default(),
    })
}

/// The host's name as far as it can be part of a node's name.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name: String = name
        .trim()
        .chars()
        .map(|letter| if letter.is_ascii_alphanumeric() || letter == '-' { letter.to_ascii_lowercase() } else { '-' })
        .take(32)
        .collect();
    let name = name.trim_matches('-');
    if name.is_empty() { "node".to_owned() } else { name.to_owned() }
}

/// Says that the node accepts connections. Who started it may have stopped reading: at a second run of the store, for one.
pub(super) fn announce(name: &str, local: SocketAddr) {
    let mut out = std::io::stdout().lock();
    if let Err(error) = writeln!(out, "ready {name} {local}").and_then(|()| out.flush()) {
        tracing::warn!(%error, "nobody reads on stdout that {name} is ready on {local}");
    }
}
