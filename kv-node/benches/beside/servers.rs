//! The processes: three nodes of the store, and three of etcd, each with a directory of its own in a temporary one.

use std::error::Error;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::Outcome;

/// Processes of each store.
pub(crate) const NODES: usize = 3;

/// The unit of processor time in /proc, on every Linux that there is.
const TICK: Duration = Duration::from_millis(10);

/// The processes of one store.
#[derive(Debug)]
pub(crate) struct Servers {
    servers: Vec<Server>,
}

/// One process. Dropping it ends it.
#[derive(Debug)]
struct Server {
    program: PathBuf,
    arguments: Vec<String>,
    address: String,
    log: PathBuf,
    process: Option<Child>,
}

impl Servers {
    /// Starts nodes of the store that found a cluster, as `kv-tui local` does. `program`: another build than the one beside this.
    pub(crate) fn ours(folder: &Path, program: Option<&Path>) -> Outcome<Self> {
        // A build beside this run replaces the program; nodes that start again must be what they were.
        let original = program.unwrap_or_else(|| Path::new(env!("CARGO_BIN_EXE_kv-node")));
        let program = folder.join("kv-node");
        fs::copy(original, &program)?;
        let secret = folder.join("secret");
        kv_node::trust::secret::make(&secret)?;
        let addresses = free_addresses(NODES)?;
        let servers = addresses.iter().enumerate().map(|(index, address)| {
            let name = format!("n{}", index + 1);
            let mut arguments = words("--name", &name);
            arguments.extend(words("--listen", address));
            arguments.extend(words("--data-dir", folder.join(&name).display()));
            arguments.extend(words("--cluster-secret-file", secret.display()));
            if index == 0 {
                arguments.push("--bootstrap".to_owned());
                arguments.extend(words("--expect", NODES));
            } else {
                arguments.extend(words("--join", &addresses[0]));
            }
            Server::new(&program, arguments, address, folder.join(format!("{name}.log")))
        });
        Self { servers: servers.collect() }.started()
    }

    /// Starts members of an etcd cluster with the settings that it has by itself; `None`: etcd is not installed.
    pub(crate) fn etcd(folder: &Path) -> Outcome<Option<Self>> {
        if etcd_version().is_none() {
            return Ok(None);
        }
        let addresses = free_addresses(2 * NODES)?;
        let (clients, peers) = addresses.split_at(NODES);
        let cluster: Vec<String> = peers.iter().enumerate().map(|(at, peer)| format!("e{at}=http://{peer}")).collect();
        let servers = clients.iter().zip(peers).enumerate().map(|(index, (client, peer))| {
            let name = format!("e{index}");
            let mut arguments = words("--name", &name);
            arguments.extend(words("--data-dir", folder.join(&name).display()));
            arguments.extend(words("--listen-client-urls", format!("http://{client}")));
            arguments.extend(words("--advertise-client-urls", format!("http://{client}")));
            arguments.extend(words("--listen-peer-urls", format!("http://{peer}")));
            arguments.extend(words("--initial-advertise-peer-urls", format!("http://{peer}")));
            arguments.extend(words("--initial-cluster", cluster.join(",")));
            arguments.extend(words("--initial-cluster-state", "new"));
            Server::new(Path::new("etcd"), arguments, client, folder.join(format!("{name}.log")))
        });
        Ok(Some(Self { servers: servers.collect() }.started()?))
    }

    fn started(mut self) -> Outcome<Self> {
        for server in &mut self.servers {
            server.start()?;
        }
        Ok(self)
    }

    /// Where they take requests.
    pub(crate) fn addresses(&self) -> Vec<String> {
        self.servers.iter().map(|server| server.address.clone()).collect()
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self, index: usize) -> Outcome<()> {
        self.servers[index].kill()
    }

    /// Starts it again with what its disk holds.
    pub(crate) fn restart(&mut self, index: usize) -> Outcome<()> {
        self.servers[index].start()
    }

    /// The processor time that all of them have taken so far.
    pub(crate) fn processor_time(&self) -> Outcome<Duration> {
        let ids = self.servers.iter().filter_map(|server| server.process.as_ref()).map(Child::id);
        ids.map(|id| processor_time(&id.to_string())).sum()
    }

    /// What they said last, for whoever has to find out why they did not start.
    pub(crate) fn last_words(&self) -> String {
        let logs = self.servers.iter().map(|server| fs::read_to_string(&server.log).unwrap_or_default());
        logs.filter_map(|log| log.lines().last().map(str::to_owned)).collect::<Vec<_>>().join("\n")
    }
}

impl Server {
    fn new(program: &Path, arguments: Vec<String>, address: &str, log: PathBuf) -> Self {
        Self { program: program.to_owned(), arguments, address: address.to_owned(), log, process: None }
    }

    fn start(&mut self) -> Outcome<()> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(&self.program);
        // Settings of somebody else's etcd or node are none of these.
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ETCD_") || name.starts_with("KV_")) {
            command.env_remove(name);
        }
        let command = command.args(&self.arguments).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let started = command.spawn();
        self.process = Some(started.map_err(|error| format!("{}: {error}", self.program.display()))?);
        Ok(())
    }

    fn kill(&mut self) -> Outcome<()> {
        if let Some(mut process) = self.process.take() {
            process.kill()?;
            process.wait()?;
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.kill());
    }
}

/// The first line of what etcd says of itself; `None`: it is not installed.
pub(crate) fn etcd_version() -> Option<String> {
    let told = Command::new("etcd").arg("--version").output().ok()?;
    Some(String::from_utf8_lossy(&told.stdout).lines().next()?.to_owned())
}

/// The processor time of a process, from `/proc/PID/stat`.
pub(crate) fn processor_time(process: &str) -> Outcome<Duration> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The name in parentheses may hold anything, so fields are counted behind it.
    let fields = stat.rsplit_once(')').map(|(_, fields)| fields).ok_or("a strange /proc")?;
    ticks(fields.split_whitespace().skip(11).take(2))
}

/// The processor time of everything on the machine.
pub(crate) fn processor_time_of_all() -> Outcome<Duration> {
    let stat = fs::read_to_string("/proc/stat")?;
    let fields: Vec<&str> = stat.lines().next().unwrap_or_default().split_whitespace().skip(1).collect();
    // user, nice, system, idle, iowait, irq, softirq
    ticks([0, 1, 2, 5, 6].into_iter().filter_map(|at| fields.get(at).copied()))
}

fn ticks<'a>(fields: impl Iterator<Item = &'a str>) -> Outcome<Duration> {
    let sum: Result<u32, _> = fields.map(str::parse::<u32>).sum();
    Ok(TICK * sum.map_err(|error| -> Box<dyn Error + Send + Sync> { format!("a strange /proc: {error}").into() })?)
}

fn words(flag: &str, value: impl ToString) -> Vec<String> {
    vec![flag.to_owned(), value.to_string()]
}

/// Addresses that nobody listens on. All are held until the last is found, so that no two are the same.
fn free_addresses(count: usize) -> Outcome<Vec<String>> {
    let held = (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<Vec<_>, _>>()?;
    Ok(held
        .iter()
        .map(|listener| listener.local_addr().map(|address| address.to_string()))
        .collect::<Result<_, _>>()?)
}
