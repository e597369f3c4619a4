//! Hosts on one machine, for this bench and for the one of histories: each node runs in a network namespace of its own, joined to the others by a bridge, so that a
//! cut loses packets as a network does, and nobody is told of it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{BRIDGE, FLAGS, FLAGS_FIRST, Outcome, SUBNET};

/// Hosts that there may be.
const HOSTS_MAX: usize = 9;

/// How long a node may take to say that it is ready.
const START_MAX: Duration = Duration::from_secs(60);

/// All hosts, and the folder in which their nodes keep their data. Dropping them takes everything away again.
pub(crate) struct Hosts {
    folder: tempfile::TempDir,
    /// Where a small file system is mounted.
    small: Option<PathBuf>,
    pub(crate) hosts: Vec<Host>,
}

/// One host and its node.
pub(crate) struct Host {
    number: usize,
    pub(crate) name: String,
    pub(crate) address: String,
    data: PathBuf,
    log: PathBuf,
    node: Option<Child>,
    arguments: Vec<String>,
    /// How it comes to its cluster.
    joins: Vec<String>,
}

fn run(program: &str, arguments: &str) -> Outcome<()> {
    let ran = Command::new(program).args(arguments.split_whitespace()).output()?;
    if ran.status.success() {
        return Ok(());
    }
    Err(format!("{program} {arguments}: {}", String::from_utf8_lossy(&ran.stderr).trim()).into())
}

fn ip(arguments: &str) -> Outcome<()> {
    run("ip", arguments)
}

impl Hosts {
    /// Makes the hosts and starts a cluster on them, with three copies and 64 partitions. With `small_mib`, the data of the last one
    /// lies on a file system of so many MiB in memory, which can be filled.
    pub(crate) fn start(count: usize, small_mib: Option<u32>) -> Outcome<Self> {
        // What an earlier run that was killed has left behind.
        take_away(HOSTS_MAX);
        let mut hosts = Self { folder: tempfile::tempdir()?, small: None, hosts: Vec::new() };
        ip(&format!("link add {BRIDGE} type bridge"))?;
        ip(&format!("addr add {SUBNET}.254/24 dev {BRIDGE}"))?;
        ip(&format!("link set {BRIDGE} up"))?;
        for number in 1..=count {
            let host = Host::lay(number, hosts.folder.path())?;
            if let Some(mib) = small_mib.filter(|_| number == count) {
                fs::create_dir_all(&host.data)?;
                let target = host.data.display();
                run("mount", &format!("-t tmpfs -o size={mib}m {BRIDGE} {target}"))?;
                hosts.small = Some(host.data.clone());
            }
            hosts.hosts.push(host);
        }
        for index in 0..count {
            let joins = match index {
                0 => vec![
                    "--bootstrap".to_owned(),
                    "--expect".to_owned(),
                    count.to_string(),
                    "--partitions".to_owned(),
                    "64".to_owned(),
                ],
                _ => vec!["--join".to_owned(), hosts.hosts[0].address.clone()],
            };
            hosts.hosts[index].joins = joins;
            if index == 0 {
                hosts.hosts[0].joins.extend(FLAGS_FIRST.iter().map(|&flag| flag.to_owned()));
            }
            hosts.hosts[index].start()?;
        }
        Ok(hosts)
    }

    /// Makes one more host, on which no node runs yet.
    pub(crate) fn add(&mut self) -> Outcome<()> {
        let host = Host::lay(self.hosts.len() + 1, self.folder.path())?;
        self.hosts.push(host);
        Ok(())
    }

    /// Of all nodes that run.
    pub(crate) fn addresses(&self) -> Vec<String> {
        self.hosts.iter().filter(|host| host.node.is_some()).map(|host| host.address.clone()).collect()
    }

    /// Keeps the logs of the nodes for whoever has to find out what went wrong.
    pub(crate) fn keep_logs(&self, folder: &Path) -> Outcome<()> {
        fs::create_dir_all(folder)?;
        for host in &self.hosts {
            fs::copy(&host.log, folder.join(format!("{}.log", host.name)))?;
        }
        Ok(())
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for host in &mut self.hosts {
            if let Some(node) = &mut host.node {
                // It may have ended by itself.
                drop(node.kill());
                drop(node.wait());
            }
        }
        if let Some(small) = &self.small {
            drop(run("umount", &small.display().to_string()));
        }
        take_away(HOSTS_MAX);
    }
}

/// Removes the namespaces and the bridge, as far as they are there.
fn take_away(count: usize) {
    for number in 1..=count {
        drop(ip(&format!("link del {BRIDGE}{number}")));
        drop(ip(&format!("netns del {BRIDGE}{number}")));
    }
    drop(ip(&format!("link del {BRIDGE}")));
}

impl Host {
    fn lay(number: usize, folder: &Path) -> Outcome<Self> {
        let space = format!("{BRIDGE}{number}");
        ip(&format!("netns add {space}"))?;
        ip(&format!("link add {space} type veth peer name inner netns {space}"))?;
        ip(&format!("link set {space} master {BRIDGE} up"))?;
        ip(&format!("-n {space} addr add {SUBNET}.{number}/24 dev inner"))?;
        ip(&format!("-n {space} link set inner up"))?;
        ip(&format!("-n {space} link set lo up"))?;
        let name = format!("n{number}");
        let address = format!("{SUBNET}.{number}:7400");
        let data = folder.join(&name);
        let secret = folder.join("secret");
        if !secret.exists() {
            kv_node::trust::secret::make(&secret)?;
        }
        let (data_dir, secret) = (data.display().to_string(), secret.display().to_string());
        let arguments =
            ["--name", &name, "--listen", &address, "--data-dir", &data_dir, "--cluster-secret-file", &secret];
        Ok(Self {
            number,
            arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
            log: folder.join(format!("{name}.log")),
            name,
            address,
            data,
            node: None,
            joins: Vec::new(),
        })
    }

    /// Starts the node and waits until it accepts connections.
    pub(crate) fn start(&mut self) -> Outcome<()> {
        self.start_with(&[])
    }

    /// Starts a node without data, which joins by the nodes with these addresses. `replaces`: the store that was lost here.
    pub(crate) fn start_empty(&mut self, addresses: &[String], replaces: Option<u64>) -> Outcome<()> {
        if self.data.exists() {
            fs::remove_dir_all(&self.data)?;
        }
        self.joins = vec!["--join".to_owned(), addresses.join(",")];
        let replaces = replaces.map(|store| ["--replaces".to_owned(), format!("{store:016x}")]);
        self.start_with(replaces.as_ref().map_or(&[], |flags| flags.as_slice()))
    }

    fn start_with(&mut self, flags: &[String]) -> Outcome<()> {
        let log = File::options().create(true).append(true).open(&self.log)?;
        let mut node = Command::new("ip")
            .args(["netns", "exec", &format!("{BRIDGE}{}", self.number)])
            .arg(env!("CARGO_BIN_EXE_kv-node"))
            .args(&self.arguments)
            .args(&self.joins)
            .args(FLAGS)
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()?;
        let mut line = String::new();
        BufReader::new(node.stdout.take().ok_or("no output")?).read_line(&mut line)?;
        if !line.starts_with("ready ") {
            drop(node.wait());
            return Err(format!("{} did not start: {}", self.name, self.last_words()).into());
        }
        self.node = Some(node);
        Ok(())
    }

    /// The last line of its log.
    fn last_words(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        log.lines().last().unwrap_or("(no log)").to_owned()
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) -> Outcome<()> {
        if let Some(mut node) = self.node.take() {
            node.kill()?;
            node.wait()?;
        }
        Ok(())
    }

    pub(crate) fn signal(&self, name: &str) -> Outcome<()> {
        let node = self.node.as_ref().ok_or("no process")?;
        run("kill", &format!("-{name} {}", node.id()))
    }

    /// Whether its process has ended by itself.
    pub(crate) fn has_ended(&mut self) -> Outcome<bool> {
        match &mut self.node {
            Some(node) => Ok(node.try_wait()?.is_some()),
            None => Ok(true),
        }
    }

    /// Loses all packets from and to the host, or no longer.
    pub(crate) fn cut(&self, cut: bool) -> Outcome<()> {
        let state = if cut { "down" } else { "up" };
        ip(&format!("link set {BRIDGE}{} {state}", self.number))
    }

    /// Answers every packet to the host by breaking its connection, or no longer.
    pub(crate) fn reset(&self, reset: bool) -> Outcome<()> {
        let what = if reset { "-A" } else { "-D" };
        let rule = "INPUT ! -i lo -p tcp -j REJECT --reject-with tcp-reset";
        self.iptables(&format!("{what} {rule}"))
    }

    fn iptables(&self, arguments: &str) -> Outcome<()> {
        ip(&format!("netns exec {BRIDGE}{} iptables -w {arguments}", self.number))
    }

    /// Loses all packets to the host and none from it, or no longer.
    pub(crate) fn deafen(&self, deaf: bool) -> Outcome<()> {
        self.iptables(&format!("{} INPUT ! -i lo -j DROP", if deaf { "-A" } else { "-D" }))
    }

    /// Loses all packets from the host and none to it, or no longer.
    pub(crate) fn mute(&self, mute: bool) -> Outcome<()> {
        self.iptables(&format!("{} OUTPUT ! -o lo -j DROP", if mute { "-A" } else { "-D" }))
    }

    /// Loses the packets that come from another host, or no longer.
    pub(crate) fn ignore(&self, other: &Self, ignores: bool) -> Outcome<()> {
        let what = if ignores { "-A" } else { "-D" };
        self.iptables(&format!("{what} INPUT -s {SUBNET}.{} -j DROP", other.number))
    }

    /// Whether a node runs there.
    pub(crate) fn runs(&self) -> bool {
        self.node.is_some()
    }

    /// Waits for its node to end by itself.
    pub(crate) fn gone(&mut self) -> Outcome<bool> {
        let ended = self.has_ended()?;
        if ended {
            self.node = None;
        }
        Ok(ended)
    }

    /// Fills the file system of the node's data until nothing more fits. Removing the file that it returns gives the room back.
    pub(crate) fn fill(&self) -> Outcome<PathBuf> {
        let ballast = self.data.join("ballast");
        let mut file = File::create(&ballast)?;
        let piece = vec![0_u8; 1 << 20];
        // The error is the aim: no space left on device.
        while std::io::Write::write_all(&mut file, &piece).is_ok() {}
        Ok(ballast)
    }

    /// Memory of the process in KiB: now, and at its highest.
    pub(crate) fn memory_kib(&self) -> Option<(u64, u64)> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.node.as_ref()?.id())).ok()?;
        let of = |field: &str| {
            let line = status.lines().find(|line| line.starts_with(field))?;
            line.split_whitespace().nth(1)?.parse().ok()
        };
        Some((of("VmRSS:")?, of("VmHWM:")?))
    }
}

/// Waits until `look` finds something; says whether it did within `limit`.
pub(crate) async fn until<F: Future<Output = bool>>(limit: Duration, mut look: impl FnMut() -> F) -> Option<Duration> {
    let began = Instant::now();
    while began.elapsed() < limit {
        if look().await {
            return Some(began.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    None
}

/// The limit on a start, for whoever waits for one.
pub(crate) const fn start_max() -> Duration {
    START_MAX
}
