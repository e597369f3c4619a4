//! Single nodes of the local cluster: started, stopped, killed, frozen and thawed as real processes, and new ones.

use kv_proto::client::{Client, Options};
use kv_proto::v1;
use tokio::time::{Instant, sleep};

use super::arguments::Place;
use super::{Folder, LOOK_EVERY, START_TIMEOUT, STOP_TIMEOUT, State, check_alive, existing, folder_of, free_addresses};
use super::{launch, named_folder, node_item, wait_for_end};
use crate::asker::asker;
use crate::command::{Process, did_you_mean};
use crate::error::{Class, CommandError};
use crate::observe::snapshot::ClusterSnapshot;
use crate::output::{Format, Sink};

/// A node that was started for the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Started {
    /// Its name.
    pub name: String,
    /// Where it takes requests.
    pub address: String,
}

/// The addresses of the nodes of the local cluster, running or not; none if there is no local cluster.
pub(crate) fn known_addresses() -> Result<Vec<String>, CommandError> {
    let folder = folder_of(named_folder())?;
    Ok(State::read(&folder)?.map(|state| state.addresses()).unwrap_or_default())
}

/// Refuses unless the cluster with nodes at `addresses` is the local one, which no addresses mean, too.
///
/// # Errors
/// `Usage`, saying which cluster this is.
pub(crate) fn check_local(addresses: &[String]) -> Result<(), CommandError> {
    let local = known_addresses()?;
    if addresses.is_empty() || addresses.iter().any(|address| local.contains(address)) {
        return Ok(());
    }
    Err(CommandError::usage(format!(
        "the cluster of {} is not the local one, whose processes alone this program starts and stops; do it on the \
         machine of the node, or leave --connect out",
        addresses.join(", ")
    )))
}

fn open() -> Result<(Folder, State), CommandError> {
    let place = Place { dir: named_folder(), output: Format::Table };
    let folder = Folder::open(&place)?;
    let state = existing(&folder)?;
    Ok((folder, state))
}

fn no_node(state: &State, name: &str) -> CommandError {
    let names: Vec<&str> = state.nodes.iter().map(|node| node.name.as_str()).collect();
    let meant = did_you_mean(name, names.iter().copied());
    let message = format!("the local cluster has no node {name:?}{meant}; its nodes are: {}", names.join(", "));
    CommandError::new(Class::NotFound, message)
}

/// Does something to the process of the node called `name`.
///
/// # Errors
/// If there is no such node, or it cannot be done.
pub(crate) async fn act(action: Process, name: &str, sink: &mut dyn Sink) -> Result<(), CommandError> {
    let (folder, mut state) = open()?;
    let index = state.index_of(name).ok_or_else(|| no_node(&state, name))?;
    let process = state.nodes[index].process.clone().filter(super::Identity::is_running);
    match (action, process) {
        (Process::Start, None) => start(&folder, &mut state, index).await?,
        (Process::Start, Some(process)) if process.is_frozen() => {
            return Err(CommandError::new(
                Class::Conflict,
                format!("{name} runs and is frozen; resume it with: node thaw {name}"),
            ));
        }
        (Process::Start, Some(_)) | (Process::Stop | Process::Kill, None) => {}
        (Process::Stop, Some(process)) => {
            process.terminate()?;
            wait_for_end(&state.nodes[index], Instant::now() + STOP_TIMEOUT, sink).await?;
        }
        (Process::Kill, Some(process)) => {
            process.kill()?;
            while process.is_running() {
                sleep(LOOK_EVERY).await;
            }
        }
        (Process::Freeze | Process::Thaw, Some(process)) => {
            let freeze = action == Process::Freeze;
            if freeze { process.freeze() } else { process.thaw() }?;
            // A signal takes its time.
            while process.is_running() && process.is_frozen() != freeze {
                sleep(LOOK_EVERY).await;
            }
        }
        (Process::Freeze | Process::Thaw, None) => {
            return Err(CommandError::new(
                Class::Conflict,
                format!("{name} does not run; start it with: node start {name}"),
            ));
        }
    }
    sink.item(node_item(&state.nodes[index], &folder.path))
}

/// Starts a node. One that the cluster has removed starts with an empty data directory, as a spare.
async fn start(folder: &Folder, state: &mut State, index: usize) -> Result<(), CommandError> {
    if state.nodes[index].is_removed(&folder.path) {
        // It ends by itself, shortly after it has learned that it was removed.
        let deadline = Instant::now() + STOP_TIMEOUT;
        while state.nodes[index].is_running() {
            if Instant::now() >= deadline {
                let name = &state.nodes[index].name;
                let message = format!("{name} was removed and has not ended yet; end it with: node kill {name}");
                return Err(CommandError::new(Class::Unavailable, message));
            }
            sleep(LOOK_EVERY).await;
        }
        state.nodes[index].clear(&folder.path)?;
        state.write(&folder.path)?;
    }
    let mut child = launch(state, index, &folder.path)?;
    let node = &state.nodes[index];
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        check_alive(node, &mut child, &folder.path)?;
        match serves(&node.name, &node.address).await {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() >= deadline => {
                return Err(CommandError::new(
                    Class::Unavailable,
                    format!("{} runs but does not serve: {error}; see its log in {}", node.name, folder.path.display()),
                ));
            }
            Err(_) => sleep(LOOK_EVERY).await,
        }
    }
}

/// Whether the node at `address` serves as the member called `name`.
async fn serves(name: &str, address: &str) -> Result<(), CommandError> {
    let client = Client::connect(&[address.to_owned()], Options::default()).await?;
    let cluster = ClusterSnapshot::take(&client, false).await?;
    match cluster.description.member(name) {
        Some(member) if cluster.serves(member.id) => Ok(()),
        Some(_) => Err(CommandError::new(Class::Unavailable, format!("{name} acts on no layout yet"))),
        None => Err(CommandError::new(Class::Unavailable, format!("{name} is not a member yet"))),
    }
}

/// Whether the local cluster has a node called `name` that the cluster has removed.
pub(crate) fn is_removed(name: &str) -> Result<bool, CommandError> {
    let folder = folder_of(named_folder())?;
    let state = State::read(&folder)?;
    Ok(state.is_some_and(|state| state.nodes.iter().any(|node| node.name == name && node.is_removed(&folder))))
}

/// Starts a node that the cluster has removed with an empty data directory: it becomes a spare under its old name.
///
/// # Errors
/// If there is no such node, or the process does not start or serve.
pub(crate) async fn bring_back(name: &str, zone: Option<&str>, weight: Option<f64>) -> Result<Started, CommandError> {
    let (folder, mut state) = open()?;
    let index = state.index_of(name).ok_or_else(|| no_node(&state, name))?;
    if zone.is_some() || weight.is_some() {
        state.nodes[index].flags = flags(zone, weight);
    }
    start(&folder, &mut state, index).await?;
    Ok(Started { name: name.to_owned(), address: state.nodes[index].address.clone() })
}

fn flags(zone: Option<&str>, weight: Option<f64>) -> Vec<String> {
    let zone = zone.map(|zone| ["--zone".to_owned(), zone.to_owned()]);
    let weight = weight.map(|weight| ["--weight".to_owned(), weight.to_string()]);
    zone.into_iter().chain(weight).flatten().collect()
}

/// Starts the process of a new node, which becomes a spare of the cluster. `taken` names cannot be its own.
///
/// # Errors
/// If there is no local cluster, or the process does not start or serve.
pub(crate) async fn add(zone: Option<&str>, weight: Option<f64>, taken: &[String]) -> Result<Started, CommandError> {
    let (folder, mut state) = open()?;
    let address = free_addresses(1)?.remove(0);
    let added = state.add(address, flags(zone, weight), taken);
    let started = Started { name: added.name.clone(), address: added.address.clone() };
    state.write(&folder.path)?;
    let index = state.nodes.len() - 1;
    if let Err(error) = start(&folder, &mut state, index).await {
        drop(folder);
        let after = take_away(&started.name).await.message(&started.name);
        return Err(CommandError { message: format!("{}; {after}", error.message), ..error });
    }
    Ok(started)
}

/// What became of a node that was started and is not wanted any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TakenAway {
    /// Nothing is left of it.
    Gone,
    /// It stays, and why.
    Stays(String),
}

impl TakenAway {
    /// The message about it.
    pub(crate) fn message(&self, name: &str) -> String {
        match self {
            Self::Gone => format!("{name} was taken away again: its process has ended, and its folder is deleted"),
            Self::Stays(why) => {
                format!("{name} stays, as a spare without partitions ({why}); node remove {name} takes it away")
            }
        }
    }
}

/// How long the cluster may take to let a spare go.
const LEAVE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(15);

/// Takes a node away again that was started for a change that was not made: it leaves the cluster, its process ends and its
/// folder is deleted. A node that owns something, or that the cluster does not let go, stays.
pub(crate) async fn take_away(name: &str) -> TakenAway {
    match try_to_take_away(name).await {
        Ok(()) => TakenAway::Gone,
        Err(error) => TakenAway::Stays(error.message),
    }
}

async fn try_to_take_away(name: &str) -> Result<(), CommandError> {
    let (folder, mut state) = open()?;
    let Some(index) = state.index_of(name) else { return Ok(()) };
    let others: Vec<String> =
        state.nodes.iter().filter(|node| node.name != name).map(|node| node.address.clone()).collect();
    let client = Client::connect(&others, Options::default()).await?;
    leave(name, &client).await?;
    // A node that has learned that it was removed ends by itself; its data is of no use any more.
    if let Some(process) = state.nodes[index].process.clone() {
        let deadline = Instant::now() + STOP_TIMEOUT;
        if process.is_running() {
            process.terminate()?;
        }
        while process.is_running() {
            if Instant::now() >= deadline {
                process.kill()?;
            }
            sleep(LOOK_EVERY).await;
        }
    }
    let path = state.nodes[index].folder(&folder.path);
    let deleted = std::fs::remove_dir_all(&path);
    if let Err(error) = deleted
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(CommandError::file("delete", &path.display().to_string(), &error));
    }
    state.nodes.remove(index);
    state.write(&folder.path)
}

/// Has the cluster let a spare go. One that never became a member needs nothing.
async fn leave(name: &str, client: &Client) -> Result<(), CommandError> {
    let deadline = Instant::now() + LEAVE_TIMEOUT;
    let mut asked = false;
    loop {
        let cluster = ClusterSnapshot::take(client, false).await?;
        let Some(member) = cluster.description.member(name) else { return Ok(()) };
        let owns = |layout: &kv_core::ring::Layout| layout.partitions.iter().any(|entry| entry.owns(member.id));
        if !member.member.spare || cluster.description.layout.as_deref().is_some_and(owns) {
            return Err(CommandError::new(Class::Conflict, "it owns partitions"));
        }
        if !asked {
            let change = kv_core::topology::Change::Remove { node: member.id };
            let request =
                v1::ApplyRequest { changes: vec![(&change).into()], by: asker(), ..v1::ApplyRequest::default() };
            client.apply(request).await?;
            asked = true;
        }
        if Instant::now() >= deadline {
            return Err(CommandError::new(Class::Unavailable, "the cluster has not let it go yet"));
        }
        sleep(LOOK_EVERY).await;
    }
}
