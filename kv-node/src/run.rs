//! A node from start to end.

use std::ffi::OsString;
use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kv_core::config::NodeConfig;
use kv_core::error::StorageError;
use kv_core::event::Event;
use kv_core::storage::{Committer, DiskCommitter, DiskConfig, DiskReader, DiskStore, OpenIds, Opened};
use kv_core::types::{NodeId, StoreId};
use kv_proto::address::is_of_one_machine;
use kv_proto::edge::Keyspaces;
use kv_proto::request_id::RequestIds;
use kv_proto::v1::Severity;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

use crate::clock::Clock;
use crate::control::{
    ClusterState, ControlConfig, ControlPlane, Entrance, GrpcTransport, MemberRecord, Refusal, RefusalKind, Standing,
    Timing, remembered,
};
use crate::descriptors::{self, Division};
use crate::engine::{Command, Engine, EngineConfig};
use crate::events::{Events, NewEvent};
use crate::link::{Identity, Links, Members, keep_links};
use crate::liveness::{Condition, Heartbeats, Patience};
use crate::own_files::{ListenFile, OwnFileError, check_not_removed, mark_removed};
use crate::server::connections::{self, ConnectionSettings, Connections};
use crate::server::{Serving, Shared, audit, routes};
use crate::settings::{Settings, SettingsError};
use crate::transfers::{Watchdog, follow};
use crate::usage::Usage;
use crate::{log, signals};

/// How long a node that starts its store again waits for the threads of the run before.
const LOCK_PATIENCE: Duration = Duration::from_secs(60);

/// Why a node does not start, or stops by itself.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    /// Flags, environment or file.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The log.
    #[error(transparent)]
    Log(#[from] log::LogError),
    /// The store.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The control plane.
    #[error(transparent)]
    Control(#[from] crate::control::StartError),
    /// A file of the node.
    #[error(transparent)]
    File(#[from] OwnFileError),
    /// The address.
    #[error("listen: {address} cannot be used: {problem}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// Why, and what to do.
        problem: String,
    },
    /// The cluster does not take the node as it is.
    #[error("the cluster refuses this node: {0}")]
    Refused(Refusal),
    /// Something that the system does not give.
    #[error("{0}")]
    System(String),
}

/// How a run ended.
enum End {
    /// By a signal.
    Stopped,
    /// The store is an older copy than peers have seen: it starts again under a new id and is refilled.
    RolledBack(String),
    /// The node is no member any more.
    Removed(String),
}

impl End {
    /// What a refusal by the cluster leads to.
    fn of(refusal: Refusal) -> Result<Self, RunError> {
        match refusal.kind {
            RefusalKind::RolledBack => Ok(Self::RolledBack(refusal.message)),
            RefusalKind::Removed => Ok(Self::Removed(refusal.message)),
            _ => Err(RunError::Refused(refusal)),
        }
    }
}

/// Runs a node with these command-line arguments, the program's name first, until a signal ends it.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    match try_run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(RunError::Settings(SettingsError::Flags(error))) => {
            // Help and version are errors of this kind, too, with an exit code of their own.
            match error.print() {
                // A reader that has gone away, such as head, has seen enough.
                Err(failed) if !error.use_stderr() && failed.kind() != std::io::ErrorKind::BrokenPipe => {
                    drop(writeln!(std::io::stderr(), "kv-node: cannot write the output: {failed}"));
                    ExitCode::FAILURE
                }
                _ => ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2)),
            }
        }
        Err(error) => {
            tracing::error!(%error, "the node stops");
            drop(writeln!(std::io::stderr(), "kv-node: {error}"));
            ExitCode::from(if matches!(error, RunError::Settings(_)) { 2 } else { 1 })
        }
    }
}

fn try_run(args: impl IntoIterator<Item = OsString>) -> Result<(), RunError> {
    let settings = Settings::read(args)?;
    log::start(&settings.log)?;
    check_not_removed(&settings.data_dir)?;
    let why = match run_once(&settings, false) {
        Ok(End::RolledBack(why)) => why,
        Err(RunError::Storage(StorageError::RolledBack { what, .. })) => what,
        Ok(end) => return ended(&settings, end),
        Err(error) => return Err(error),
    };
    tracing::warn!(%why, "the store starts again under a new id");
    ended(&settings, run_once(&settings, true)?)
}

fn ended(settings: &Settings, end: End) -> Result<(), RunError> {
    match end {
        End::Stopped => Ok(()),
        End::Removed(why) => {
            tracing::warn!(%why, "the node ends");
            Ok(mark_removed(&settings.data_dir, &why)?)
        }
        End::RolledBack(why) => Err(RunError::System(why)),
    }
}

/// One run of the store, from its opening until nothing of it is left.
fn run_once(settings: &Settings, renew: bool) -> Result<End, RunError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| RunError::System(format!("no runtime can be started: {error}")))?;
    let division = divide_descriptors(settings)?;
    let (opened, reader, committer) = open_store(settings, &division, renew)?;
    let lock = reader.lock();
    let end = runtime.block_on(serve(settings, division, opened, reader, committer));
    drop(runtime);
    // The threads that read end when they learn that the engine has gone, and the last one closes the store. Until then
    // it cannot be opened again.
    if matches!(end, Ok(End::RolledBack(_))) && !lock.wait_until_free(LOCK_PATIENCE) {
        let waited = LOCK_PATIENCE.as_secs();
        return Err(RunError::System(format!(
            "the store cannot be opened again: a thread of this node has used it for {waited} s, so its disk may have \
             stalled; restart the node"
        )));
    }
    end
}

fn random<const N: usize>() -> Result<[u8; N], RunError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|error| RunError::System(format!("the system gives no random numbers: {error}")))?;
    Ok(bytes)
}

/// Raises the limit on open files and divides it.
fn divide_descriptors(settings: &Settings) -> Result<Division, RunError> {
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

fn open_store(
    settings: &Settings,
    division: &Division,
    renew: bool,
) -> Result<(Opened, DiskReader, DiskCommitter), RunError> {
    let ids = OpenIds { store: StoreId(u64::from_le_bytes(random()?)), nonce: u32::from_le_bytes(random()?) };
    let config =
        DiskConfig { cache_bytes: settings.cache_bytes, renew, files: division.tables, ..DiskConfig::default() };
    Ok(DiskStore::open(&settings.data_dir.join("store"), &config, ids)?)
}

async fn serve(
    settings: &Settings,
    division: Division,
    opened: Opened,
    reader: DiskReader,
    committer: DiskCommitter,
) -> Result<End, RunError> {
    let signal = signals::stop()?;
    let clock = Clock::start();
    let data = &settings.data_dir;
    let known = remembered(&data.join("control")).map_err(crate::control::StartError::from)?;
    let member = known.as_ref().and_then(|known| known.member.as_ref()).map(|(_, member)| member.clone());
    let listener = listen(settings, member.as_ref()).await?;
    let local = listener.local_addr().map_err(|error| no_address(&error))?;
    let entrance = match (&settings.entrance, &known) {
        (Some(entrance), _) => entrance.clone(),
        (None, Some(_)) => Entrance::Resume,
        (None, None) => Entrance::Bootstrap(crate::control::Founding::default()),
    };
    let liveness: crate::control::SharedLiveness = Arc::new(Mutex::new(Heartbeats::new(Patience::default())));
    let config = control_config(settings, member, entrance, local, opened, &liveness, clock)?;
    let (name, address, zone, weight) =
        (config.name.clone(), config.address.clone(), config.zone.clone(), config.weight);
    let control = ControlPlane::start(config, Arc::new(GrpcTransport::default())).await?;
    let shared = Arc::new(Shared {
        name: name.clone(),
        address,
        zone,
        weight,
        incarnation: opened.incarnation,
        cluster: settings.cluster.clone(),
        clock,
        control,
        liveness,
        events: Events::new(),
        request_ids: RequestIds::new(u64::from_le_bytes(random()?)),
        usage: Usage::new(data.clone()),
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
    let server = tokio::spawn(connections::serve(listener, routes, Arc::clone(&shared.connections), stopping));
    let logged = tokio::spawn(audit::log(Arc::clone(&shared)));
    announce(&name, local);

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
    drop(tokio::time::timeout(std::time::Duration::from_secs(2), server).await);
    shared.control.shutdown().await;
    end
}

/// Binds the address and remembers it, so that a port that was picked once is kept.
async fn listen(settings: &Settings, member: Option<&MemberRecord>) -> Result<TcpListener, RunError> {
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

fn no_address(error: &std::io::Error) -> RunError {
    RunError::System(format!("the listener has no address: {error}"))
}

fn control_config(
    settings: &Settings,
    member: Option<MemberRecord>,
    entrance: Entrance,
    local: SocketAddr,
    opened: Opened,
    liveness: &crate::control::SharedLiveness,
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
    Ok(ControlConfig {
        dir: settings.data_dir.join("control"),
        entrance,
        name: name.unwrap_or_else(|| format!("{}-{}", host_name(), local.port())),
        address: settings.advertise.clone().unwrap_or_else(|| local.to_string()),
        zone: member
            .as_ref()
            .map(|member| member.zone.clone())
            .or_else(|| settings.zone.clone())
            .unwrap_or_else(|| "default".to_owned()),
        weight: member.as_ref().map(|member| member.weight).or(settings.weight).unwrap_or(1.0),
        version: crate::BUILD.to_owned(),
        incarnation: opened.incarnation,
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
fn announce(name: &str, local: SocketAddr) {
    let mut out = std::io::stdout().lock();
    if let Err(error) = writeln!(out, "ready {name} {local}").and_then(|()| out.flush()) {
        tracing::warn!(%error, "nobody reads on stdout that {name} is ready on {local}");
    }
}

/// Waits until the node belongs to a formed cluster, then runs its data plane until something ends it.
async fn live(
    shared: Arc<Shared>,
    settings: &Settings,
    reader: DiskReader,
    mut committer: DiskCommitter,
) -> Result<End, RunError> {
    let mut standing = shared.control.standing();
    let mut state = shared.control.state();
    let mut told = String::new();
    let node = loop {
        let current = standing.borrow_and_update().clone();
        let text = current.to_string();
        if text != told {
            tracing::info!(standing = %text, "how the node stands");
            told = text;
        }
        match current {
            Standing::Refused(refusal) => return End::of(refusal),
            Standing::Member { node, .. } if state.borrow_and_update().layout.is_some() => break node,
            // Puts and gets go on without the control plane, if the layout is known.
            Standing::Failed { reason } => match member_of(&shared) {
                Some(node) => break node,
                None => return Err(RunError::System(reason)),
            },
            Standing::Joining { .. } => {
                if let Some(node) = member_of(&shared) {
                    break node;
                }
            }
            Standing::Forming { .. } | Standing::Member { .. } => {}
        }
        tokio::select! {
            changed = standing.changed() => if changed.is_err() { return Err(RunError::System("the control plane ended".into())) },
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
        ..NodeConfig::new(node)
    };
    let engine = Engine::start(EngineConfig {
        node: node_config,
        cluster: agreed.config.clone(),
        incarnation: shared.incarnation,
        reader,
        committer,
        clock: shared.clock,
        events,
        answers: Arc::clone(&shared.connections.answers),
    })?;
    let identity = Identity { node, incarnation: shared.incarnation, cluster, seed, config: agreed.config.clone() };
    let links = Links::new(identity, engine.clone(), Arc::clone(&shared.liveness), shared.clock);
    let (members, followed) = watch::channel(Members::new());
    hand_over(&shared, &engine, &agreed, &members).await;
    shared.serving.send_replace(Some(Serving { node, engine: engine.clone(), links: links.clone() }));
    shared.vitals.send_modify(|vitals| vitals.serves = true);
    shared.event(NewEvent {
        severity: Severity::Info,
        kind: "serving",
        message: format!("{} serves as {node} of cluster {cluster}", shared.name),
        undo: String::new(),
    });
    let tasks = [
        tokio::spawn(keep_links(links.clone(), followed)),
        tokio::spawn(follow_liveness(Arc::clone(&shared), links.clone())),
        tokio::spawn(follow(Arc::clone(&shared), engine.clone())),
        tokio::spawn(follow_engine(Arc::clone(&shared), engine.clone())),
    ];
    let mut rolled_back = links.rolled_back();
    let mut moved = shared.control.moved();
    // What was found before is not told again.
    hand_over_addresses(&shared, &shared.state(), &members);
    let end = loop {
        tokio::select! {
            changed = state.changed() => match changed {
                Ok(()) => {
                    let agreed = Arc::clone(&state.borrow_and_update());
                    hand_over(&shared, &engine, &agreed, &members).await;
                }
                Err(_) => break Err(RunError::System("the control plane ended".into())),
            },
            // The sender lives as long as the control plane, whose end the others tell.
            Ok(()) = moved.changed() => hand_over_addresses(&shared, &shared.state(), &members),
            changed = standing.changed() => {
                let current = standing.borrow_and_update().clone();
                tracing::info!(standing = %current, "how the node stands");
                match (changed, current) {
                    (Err(_), _) => break Err(RunError::System("the control plane ended".into())),
                    (Ok(()), Standing::Refused(refusal)) => break End::of(refusal),
                    // Without the control plane puts and gets go on with the layout that is known.
                    (Ok(()), Standing::Failed { reason }) => shared.event(NewEvent {
                        severity: Severity::Error,
                        kind: "control-failed",
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
            changed = rolled_back.changed() => {
                let why = rolled_back.borrow().as_ref().map(ToString::to_string);
                if let (Ok(()), Some(why)) = (changed, why) {
                    break Ok(End::RolledBack(why));
                }
            }
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

/// Gives the agreed state to those who act on it.
async fn hand_over(shared: &Shared, engine: &Engine, agreed: &ClusterState, members: &watch::Sender<Members>) {
    if let Some(layout) = &agreed.layout {
        engine.tell(Command::Layout(Arc::clone(layout))).await;
    }
    engine.tell(Command::Keyspaces(agreed.keyspace_list())).await;
    // The engine is told first: it must know whatever a request names.
    let keyspaces: Keyspaces = agreed.keyspaces.values().cloned().collect();
    *shared.keyspaces.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(keyspaces);
    shared.control.acts_on(agreed.revision);
    hand_over_addresses(shared, agreed, members);
}

/// Gives the links the addresses of the members, as far as this node knows.
fn hand_over_addresses(shared: &Shared, agreed: &ClusterState, members: &watch::Sender<Members>) {
    let address =
        |node: NodeId, member: &MemberRecord| shared.control.address_of(node).unwrap_or_else(|| member.address.clone());
    let current: Members = agreed.members.iter().map(|(node, member)| (*node, address(*node, member))).collect();
    members.send_if_modified(|known| {
        let differs = *known != current;
        *known = current;
        differs
    });
}

/// Keeps the vitals as the engine is.
async fn follow_engine(shared: Arc<Shared>, engine: Engine) {
    /// How often the engine is asked whether it still answers.
    const ASK_EVERY: std::time::Duration = std::time::Duration::from_secs(1);
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

/// Tells the operators when the opinion of a peer changes, and closes the stream of a peer that is down: it may be
/// stalled, and its stream would stay open for ever.
async fn follow_liveness(shared: Arc<Shared>, links: Links) {
    /// How often at least the opinions are looked at: a change may come from elsewhere than silence.
    const LOOK_EVERY: std::time::Duration = std::time::Duration::from_millis(250);
    loop {
        let now = shared.clock.now().mono;
        let (transitions, next) = {
            let mut liveness = shared.liveness.lock().unwrap_or_else(PoisonError::into_inner);
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
                kind: "liveness",
                message: format!("{name} {} -> {condition}{because}", transition.from),
                undo: String::new(),
            });
        }
        let wait = next.map_or(LOOK_EVERY, |next| next.since(now).min(LOOK_EVERY));
        tokio::time::sleep(wait.max(std::time::Duration::from_millis(10))).await;
    }
}
