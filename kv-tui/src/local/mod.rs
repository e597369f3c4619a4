//! The local cluster: real node processes on this machine, which outlive the program that started them.

mod arguments;
mod launch;
pub(crate) mod nodes;
mod process;
mod state;

use std::fs::{self, File, TryLockError};
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::OnceLock;
use std::time::Duration;

use kv_core::small_file;
use kv_proto::client::{Client, Options};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::{Instant, sleep};

use crate::error::{Class, CommandError};
use crate::observe::all_serve;
use crate::output::{Format, Human, Item, Printer, Sink};
use crate::paths::Paths;
pub(crate) use arguments::{LocalAction, LocalOpen};
use arguments::{Place, Size};
pub use launch::NODE_MODE;
use process::Identity;
use state::{LocalNode, State};

/// How long a node may take to stop before it is killed; nothing acknowledged is lost by that.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

/// How long the cluster may take to become ready.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// How often a process is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Bytes of a log that are shown when a node ends at once.
const LOG_TAIL: usize = 2000;

/// Bytes of a log in which its last line is looked for.
const LOG_LINE: usize = 400;

pub(crate) async fn run(action: LocalAction) -> Result<(), CommandError> {
    match action {
        LocalAction::Start { size, place } => start(size, &place).await,
        LocalAction::Stop { place } => stop(&place).await,
        LocalAction::Status { place } => status(&place),
        LocalAction::Destroy { place, yes } => destroy(&place, yes).await,
    }
}

/// The addresses of the running local cluster.
pub(crate) fn addresses() -> Result<Vec<String>, CommandError> {
    let folder = folder_of(named_folder())?;
    let nodes = State::read(&folder)?.map(|state| state.nodes).unwrap_or_default();
    let running: Vec<String> = nodes.into_iter().filter(LocalNode::is_running).map(|node| node.address).collect();
    if running.is_empty() {
        return Err(CommandError::new(
            Class::Unavailable,
            "no cluster is named and no local one runs; name one with --connect ADDR:PORT, or start one with \
             kv-tui local start",
        ));
    }
    Ok(running)
}

/// The folder that is shown, where it was named when the program started.
static SHOWN: OnceLock<PathBuf> = OnceLock::new();

/// The folder that was named: for what is shown, else by the environment.
fn named_folder() -> Option<PathBuf> {
    SHOWN.get().cloned().or_else(|| std::env::var_os("KV_LOCAL_DIR").map(PathBuf::from))
}

fn folder_of(dir: Option<PathBuf>) -> Result<PathBuf, CommandError> {
    dir.map_or_else(|| Paths::new().map(|paths| paths.local()), Ok)
}

/// The cluster's folder, locked against other programs that would change it.
#[derive(Debug)]
struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Folder {
    fn open(place: &Place) -> Result<Self, CommandError> {
        let path = folder_of(place.dir.clone())?;
        let shown = path.display().to_string();
        fs::create_dir_all(&path).map_err(|error| CommandError::file("create", &shown, &error))?;
        let lock = File::create(path.join("lock")).map_err(|error| CommandError::file("lock", &shown, &error))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(CommandError::new(
                Class::Unavailable,
                format!("another program is changing the local cluster in {shown}; try again when it is done"),
            )),
            Err(TryLockError::Error(error)) => Err(CommandError::file("lock", &shown, &error)),
        }
    }
}

/// A local cluster that was started, or found running, to be shown.
#[derive(Debug)]
pub(crate) struct Shown {
    /// The addresses of its nodes.
    pub(crate) addresses: Vec<String>,
    folder: PathBuf,
    /// Whether the folder is not the usual one.
    named: bool,
    ephemeral: bool,
    /// The processes that were started here, until they are watched.
    started: Mutex<Vec<(LocalNode, Child)>>,
}

/// Starts the local cluster unless it runs. It need not be ready yet unless `ready`.
pub(crate) async fn open(open: &LocalOpen, ready: bool) -> Result<Shown, CommandError> {
    let place = Place {
        dir: if open.ephemeral { Some(temporary_folder()?) } else { open.dir.clone().or_else(named_folder) },
        output: Format::Table,
    };
    let folder = Folder::open(&place)?;
    // Commands of the bar mean the cluster that is shown. A second one is not shown by one process.
    SHOWN.get_or_init(|| folder.path.clone());
    let shown = |state: &State, children: Vec<(usize, Child)>| Shown {
        addresses: state.addresses(),
        folder: folder.path.clone(),
        named: open.dir.is_some(),
        ephemeral: open.ephemeral,
        started: Mutex::new(children.into_iter().map(|(index, child)| (state.nodes[index].clone(), child)).collect()),
    };
    let started = match start_processes(open.size, &folder) {
        Ok((state, mut children)) if ready => {
            wait_until_ready(&state, &mut children, &folder.path).await.map(|()| (state, children))
        }
        done => done,
    };
    match started {
        Ok((state, children)) => Ok(shown(&state, children)),
        Err(error) => {
            if open.ephemeral {
                // What could not be started must not stay; why it could not matters more than what is left.
                drop(folder);
                drop(discard(&place.dir.unwrap_or_default()).await);
            }
            Err(error)
        }
    }
}

impl Shown {
    /// Tells when a node that was started here ends, with what its log says last.
    pub(crate) fn watch(&self, notices: &UnboundedSender<String>) {
        let started = std::mem::take(&mut *self.started.lock());
        for (node, mut child) in started {
            let (notices, folder) = (notices.clone(), self.folder.clone());
            let waiting = std::thread::Builder::new().name("local node".to_owned()).spawn(move || {
                let Ok(status) = child.wait() else { return };
                let log = launch::log_tail(&node, &folder, LOG_LINE);
                let last = log.lines().last().unwrap_or_default();
                // The dashboard may have ended in the meantime.
                notices.send(format!("{} has ended ({status}); its log says: {last}", node.name)).unwrap_or(());
            });
            // Without a thread the node is seen to be down all the same, only not why.
            drop(waiting);
        }
    }

    /// Ends an ephemeral cluster; gives the line that says what is left running.
    pub(crate) async fn leave(self) -> Result<String, CommandError> {
        let count = self.addresses.len();
        if self.ephemeral {
            discard(&self.folder).await?;
            return Ok(format!("the {count} nodes of the temporary cluster are stopped, and their data is deleted"));
        }
        let nodes = if count == 1 { "node" } else { "nodes" };
        let named = if self.named { format!(" --dir {}", self.folder.display()) } else { String::new() };
        Ok(format!("the {count} {nodes} of the local cluster keep running; kv-tui local stop{named} ends them"))
    }

    /// The command that ends an ephemeral cluster which could not be ended in order.
    pub(crate) fn rescue(&self) -> Option<String> {
        self.ephemeral.then(|| {
            format!(
                "the temporary cluster still runs; kv-tui local destroy --yes --dir {} ends it",
                self.folder.display()
            )
        })
    }
}

/// A folder that only its owner can read, with a unique name.
fn temporary_folder() -> Result<PathBuf, CommandError> {
    let number = getrandom::u64().map_err(|error| CommandError::failed(format!("no random number: {error}")))?;
    let path = std::env::temp_dir().join(format!("kv-{number:016x}"));
    fs::DirBuilder::new()
        .mode(0o700)
        .create(&path)
        .map_err(|error| CommandError::file("create", &path.display().to_string(), &error))?;
    Ok(path)
}

/// Kills the nodes of a temporary cluster, whose data is of no use any more, and deletes its folder.
async fn discard(path: &Path) -> Result<(), CommandError> {
    if let Some(state) = State::read(path)? {
        let processes: Vec<Identity> = state.nodes.into_iter().filter_map(|node| node.process).collect();
        for process in processes.iter().filter(|process| process.is_running()) {
            process.kill()?;
        }
        for process in &processes {
            while process.is_running() {
                sleep(LOOK_EVERY).await;
            }
        }
    }
    fs::remove_dir_all(path).map_err(|error| CommandError::file("delete", &path.display().to_string(), &error))
}

async fn start(size: Size, place: &Place) -> Result<(), CommandError> {
    let folder = Folder::open(place)?;
    let state = start_nodes(size, &folder).await?;
    let mut printer = Printer::new(place.output, io::stdout(), io::stderr());
    for node in &state.nodes {
        printer.item(node_item(node, &folder.path))?;
    }
    printer.flush()
}

async fn start_nodes(size: Size, folder: &Folder) -> Result<State, CommandError> {
    let (state, mut started) = start_processes(size, folder)?;
    wait_until_ready(&state, &mut started, &folder.path).await?;
    Ok(state)
}

/// Starts the processes that do not run; they need not be ready yet. Gives them with their places.
fn start_processes(size: Size, folder: &Folder) -> Result<(State, Vec<(usize, Child)>), CommandError> {
    let mut state = match State::read(&folder.path)? {
        Some(state) => state.of_size(size, &folder.path)?,
        None => State::new(free_addresses(size.of_nodes()?)?, size.zones),
    };
    // Written before the first process starts, so that none can be lost.
    state.write(&folder.path)?;
    let mut started = Vec::new();
    for index in 0..state.nodes.len() {
        if state.nodes[index].is_running() || state.nodes[index].is_removed(&folder.path) {
            continue;
        }
        started.push((index, launch(&mut state, index, &folder.path)?));
    }
    Ok((state, started))
}

/// The secret of the cluster, in its folder.
const SECRET: &str = "secret";

/// Makes a secret for the cluster, unless it has one. Nodes that run without one would not talk to those with it, so a cluster
/// of an earlier build gets its secret when none of its nodes runs.
fn secure(state: &State, folder: &Path) -> Result<(), CommandError> {
    let path = folder.join(SECRET);
    if path.exists() || state.nodes.iter().any(LocalNode::is_running) {
        return Ok(());
    }
    kv_node::trust::secret::make(&path).map_err(CommandError::failed)
}

/// Starts one node and remembers its process.
fn launch(state: &mut State, index: usize, folder: &Path) -> Result<Child, CommandError> {
    secure(state, folder)?;
    let child = launch::spawn(state, index, folder)?;
    state.nodes[index].process = Identity::of(child.id());
    state.write(folder)?;
    Ok(child)
}

async fn wait_until_ready(state: &State, started: &mut [(usize, Child)], folder: &Path) -> Result<(), CommandError> {
    let deadline = Instant::now() + START_TIMEOUT;
    let addresses = state.addresses();
    loop {
        for (index, child) in started.iter_mut() {
            check_alive(&state.nodes[*index], child, folder)?;
        }
        let ready = match Client::connect(&addresses, Options::default()).await {
            Ok(client) => all_serve(&client).await,
            Err(error) => Err(error.into()),
        };
        match ready {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() >= deadline => {
                return Err(CommandError::new(
                    Class::Unavailable,
                    format!(
                        "the nodes run but the cluster is not ready: {error}; see the logs in {}",
                        folder.display()
                    ),
                ));
            }
            Err(_) => sleep(LOOK_EVERY).await,
        }
    }
}

fn check_alive(node: &LocalNode, child: &mut Child, folder: &Path) -> Result<(), CommandError> {
    let Ok(Some(status)) = child.try_wait() else { return Ok(()) };
    let log = launch::log_tail(node, folder, LOG_TAIL);
    Err(CommandError::failed(format!("{} ended at once ({status}); its log says:\n{log}", node.name)))
}

async fn stop(place: &Place) -> Result<(), CommandError> {
    let folder = Folder::open(place)?;
    let mut state = existing(&folder)?;
    let mut printer = Printer::new(place.output, io::stdout(), io::stderr());
    stop_all(&state, &mut printer).await?;
    for node in &mut state.nodes {
        node.process = None;
    }
    state.write(&folder.path)?;
    for node in &state.nodes {
        printer.item(node_item(node, &folder.path))?;
    }
    printer.flush()
}

async fn stop_all(state: &State, sink: &mut dyn Sink) -> Result<(), CommandError> {
    for node in &state.nodes {
        if let Some(process) = node.process.as_ref().filter(|process| process.is_running()) {
            process.terminate()?;
        }
    }
    let deadline = Instant::now() + STOP_TIMEOUT;
    for node in &state.nodes {
        wait_for_end(node, deadline, sink).await?;
    }
    Ok(())
}

/// Waits for a node that was asked to end; kills it when the time is over.
async fn wait_for_end(node: &LocalNode, deadline: Instant, sink: &mut dyn Sink) -> Result<(), CommandError> {
    let Some(process) = &node.process else { return Ok(()) };
    let mut killed = false;
    while process.is_running() {
        if Instant::now() >= deadline && !killed {
            sink.note(&format!("{} did not stop within {} s and is killed", node.name, STOP_TIMEOUT.as_secs()));
            process.kill()?;
            killed = true;
        }
        sleep(LOOK_EVERY).await;
    }
    Ok(())
}

fn status(place: &Place) -> Result<(), CommandError> {
    let path = folder_of(place.dir.clone())?;
    let state = State::read(&path)?.ok_or_else(|| none_in(&path))?;
    let mut printer = Printer::new(place.output, io::stdout(), io::stderr());
    for node in &state.nodes {
        printer.item(node_item(node, &path))?;
    }
    printer.flush()
}

async fn destroy(place: &Place, confirmed: bool) -> Result<(), CommandError> {
    if !confirmed {
        return Err(CommandError::new(
            Class::Refused,
            "destroying the local cluster deletes all of its data for good; add --yes to do it",
        ));
    }
    let folder = Folder::open(place)?;
    let state = existing(&folder)?;
    let mut printer = Printer::new(place.output, io::stdout(), io::stderr());
    stop_all(&state, &mut printer).await?;
    // Only what this program has made is deleted.
    for node in &state.nodes {
        let path = node.folder(&folder.path);
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(CommandError::file("delete", &path.display().to_string(), &error));
            }
            _ => {}
        }
    }
    let secret = folder.path.join(SECRET);
    small_file::remove(&secret).map_err(|error| CommandError::file("delete", &secret.display().to_string(), &error))?;
    State::delete(&folder.path)?;
    let shown = folder.path.display().to_string();
    printer.item(Item {
        json: json!({"schema": 1, "dir": shown, "destroyed": true}),
        raw: format!("{shown}\n").into_bytes(),
        human: Human::Text(format!("destroyed the local cluster in {shown}")),
    })?;
    printer.flush()
}

fn existing(folder: &Folder) -> Result<State, CommandError> {
    State::read(&folder.path)?.ok_or_else(|| none_in(&folder.path))
}

fn none_in(folder: &Path) -> CommandError {
    CommandError::new(
        Class::NotFound,
        format!("there is no local cluster in {}; kv-tui local start makes one", folder.display()),
    )
}

fn node_item(node: &LocalNode, folder: &Path) -> Item {
    let pid = node.process.as_ref().filter(|process| process.is_running()).map(|process| process.pid);
    let state = node.state(folder);
    let path = node.folder(folder).display().to_string();
    Item {
        json: json!({
            "schema": 1,
            "name": node.name,
            "state": state,
            "address": node.address,
            "pid": pid,
            "dir": path,
        }),
        raw: format!("{}\n", node.address).into_bytes(),
        human: Human::Row {
            header: &["NODE", "STATE", "ADDRESS", ">PID", "FOLDER"],
            cells: vec![
                node.name.clone(),
                state.to_owned(),
                node.address.clone(),
                pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
                path,
            ],
        },
    }
}

/// Addresses with ports that are free now. They are kept from then on.
fn free_addresses(count: usize) -> Result<Vec<String>, CommandError> {
    let listen = || TcpListener::bind("127.0.0.1:0");
    // All are held until the last one is found, so that they differ.
    let listeners: Vec<TcpListener> = (0..count)
        .map(|_| listen())
        .collect::<io::Result<_>>()
        .map_err(|error| CommandError::failed(format!("no free port on 127.0.0.1: {error}")))?;
    listeners
        .iter()
        .map(|listener| listener.local_addr().map(|address| address.to_string()))
        .collect::<io::Result<_>>()
        .map_err(|error| CommandError::failed(format!("no free port on 127.0.0.1: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_gets_its_secret_while_none_of_its_nodes_runs() {
        let folder = tempfile::tempdir().expect("a folder");
        let secret = folder.path().join(SECRET);
        let mut state = State::new(vec!["127.0.0.1:1".to_owned(), "127.0.0.1:2".to_owned()], None);
        // A node of an earlier build, which knows of no secret.
        state.nodes[1].process = Identity::of(std::process::id());
        secure(&state, folder.path()).expect("nothing to do");
        assert!(!secret.exists());
        state.nodes[1].process = None;
        secure(&state, folder.path()).expect("made");
        let made = fs::read(&secret).expect("made");
        state.nodes[0].process = Identity::of(std::process::id());
        secure(&state, folder.path()).expect("nothing to do");
        assert_eq!(fs::read(&secret).expect("kept"), made);
    }
}
