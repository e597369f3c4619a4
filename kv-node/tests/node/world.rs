//! Node processes of one test: each with a directory and a port of its own, all ended with the test.

use std::io::{BufRead, BufReader, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kv_proto::client::{Client, How, Options, Write};
use kv_proto::v1;

/// How long anything may take before the test gives up. Never a measure of speed: the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// One node process.
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) address: String,
    args: Vec<String>,
    files: Option<u32>,
    child: Child,
    log: Arc<Mutex<String>>,
}

/// What was answered by plain HTTP.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) status: u16,
    /// The first line and the headers, in small letters.
    pub(crate) head: String,
    pub(crate) body: String,
}

/// The nodes of one test.
pub(crate) struct World {
    dir: tempfile::TempDir,
    pub(crate) nodes: Vec<Node>,
}

/// Starts the program; its log is collected.
pub(crate) fn spawn(args: &[String]) -> (Child, Arc<Mutex<String>>) {
    spawn_with(args, None)
}

/// The same, with a limit on open files.
fn spawn_with(args: &[String], files: Option<u32>) -> (Child, Arc<Mutex<String>>) {
    let files = files.map_or_else(String::new, |files| format!("ulimit -n {files}; "));
    // A write beyond a limit on the size of files fails then, instead of ending the process.
    let mut child = Command::new("sh")
        .args(["-c", &format!("{files}trap '' XFSZ; exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_kv-node")])
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("RUST_BACKTRACE", "1")
        .spawn()
        .unwrap();
    let log = Arc::new(Mutex::new(String::new()));
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let collected = Arc::clone(&log);
    std::thread::spawn(move || {
        let mut line = String::new();
        while stderr.read_line(&mut line).is_ok_and(|count| count > 0) {
            collected.lock().unwrap().push_str(&line);
            line.clear();
        }
    });
    (child, log)
}

/// Runs the program to its end, which must come by itself: its exit code and what it wrote to stderr.
pub(crate) fn run_to_end(args: &[String]) -> (Option<i32>, String) {
    let (mut child, log) = spawn(args);
    let status = wait_for_exit(&mut child);
    let mut rest = String::new();
    child.stdout.take().unwrap().read_to_string(&mut rest).unwrap();
    // The collecting thread ends with the pipe.
    let text = until("the log is complete", || {
        let text = log.lock().unwrap().clone();
        text.contains("kv-node: ").then_some(text)
    });
    (status.code(), text)
}

pub(crate) fn wait_for_exit(child: &mut Child) -> ExitStatus {
    until("the process ends", || child.try_wait().unwrap())
}

/// Waits until `look` finds something.
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begin.elapsed() < PATIENCE, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until `look` finds something, asking the nodes.
pub(crate) async fn until_async<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(begin.elapsed() < PATIENCE, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until a node ends by itself; its exit code.
pub(crate) fn wait_for_exit_code(node: &mut Node) -> Option<i32> {
    wait_for_exit(&mut node.child).code()
}

pub(crate) fn strings(args: &[&str]) -> Vec<String> {
    args.iter().map(|arg| (*arg).to_owned()).collect()
}

impl Node {
    fn start(name: &str, dir: &Path, args: &[String], files: Option<u32>) -> Self {
        let mut all = strings(&["--data-dir", dir.to_str().unwrap(), "--name", name]);
        if !args.iter().any(|arg| arg == "--listen") {
            all.extend(strings(&["--listen", "127.0.0.1:0"]));
        }
        all.extend_from_slice(args);
        let (child, log) = spawn_with(&all, files);
        let mut node = Self { name: name.to_owned(), address: String::new(), args: all, files, child, log };
        node.wait_for_ready();
        node
    }

    fn wait_for_ready(&mut self) {
        let mut line = String::new();
        let mut stdout = BufReader::new(self.child.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words.first(), Some(&"ready"), "{}: {line:?}\n{}", self.name, self.log());
        assert_eq!(words[1], self.name);
        self.address = words[2].to_owned();
    }

    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// A line of `/proc/PID/status` that tells an amount of memory, in bytes.
    pub(crate) fn memory(&self, line: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let found = status.lines().find_map(|found| found.strip_prefix(line)).unwrap();
        found.trim_start_matches(':').split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
    }

    /// One figure of `/metrics`; `None` while the node gives no answer.
    pub(crate) fn metric(&self, name: &str) -> Option<u64> {
        let mut stream = std::net::TcpStream::connect(&self.address).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: kv\r\nConnection: close\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let line = text.lines().find(|line| line.starts_with(&format!("kv_{name}{{")))?;
        // Gauges are told as 1.0, counters as 1.
        line.rsplit(' ').next()?.split('.').next()?.parse().ok()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL: nothing is written, nothing is said.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// From now on no file of the process can grow: its store fails with the next write.
    pub(crate) fn fail_writes(&self) {
        let status = Command::new("prlimit").args(["--fsize=1", "--pid", &self.pid().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// Asks for a page by plain HTTP.
    pub(crate) fn page(&self, method: &str, path: &str, headers: &str) -> Page {
        let mut stream = std::net::TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let request =
            format!("{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{headers}\r\n", self.address);
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Page { status, head: head.to_lowercase(), body: body.to_owned() }
    }

    /// SIGTERM, and the exit code.
    pub(crate) fn stop(&mut self) -> Option<i32> {
        self.signal("TERM");
        wait_for_exit(&mut self.child).code()
    }

    /// Starts it again with the same arguments, which must lead to the same address.
    pub(crate) fn restart(&mut self) {
        let before = self.address.clone();
        self.restart_with(&[]);
        assert_eq!(self.address, before, "the port is kept");
    }

    /// Starts it again with other values of some flags.
    pub(crate) fn restart_with(&mut self, flags: &[(&str, &str)]) {
        for (flag, value) in flags {
            match self.args.iter().position(|arg| arg == flag) {
                Some(at) => (*value).clone_into(&mut self.args[at + 1]),
                None => self.args.extend(strings(&[flag, value])),
            }
        }
        self.start_again();
    }

    /// Starts it again at another address or with other nodes to join, neither founding a cluster nor with flags of the
    /// first start; without the value of a flag that is empty.
    pub(crate) fn restart_at(&mut self, flags: &[(&str, &str)]) {
        let mut args = strings(&["--data-dir", &self.value_of("--data-dir"), "--name", &self.name]);
        let (given, listen) = (|flag| flags.iter().any(|(given, _)| *given == flag), self.value_of("--listen"));
        if !given("--listen") {
            args.extend(strings(&["--listen", &listen]));
        }
        let named = flags.iter().filter(|(_, value)| !value.is_empty());
        args.extend(named.flat_map(|(flag, value)| strings(&[flag, value])));
        self.args = args;
        self.start_again();
    }

    fn value_of(&self, flag: &str) -> String {
        let at = self.args.iter().position(|arg| arg == flag).unwrap();
        self.args[at + 1].clone()
    }

    fn start_again(&mut self) {
        let (child, log) = spawn_with(&self.args, self.files);
        self.child = child;
        self.log = log;
        self.wait_for_ready();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
        if std::thread::panicking() {
            eprintln!("---- log of {} ----\n{}", self.name, self.log());
        }
    }
}

impl World {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), nodes: Vec::new() }
    }

    pub(crate) fn dir(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn add(&mut self, name: &str, args: &[&str]) -> usize {
        self.nodes.push(Node::start(name, &self.dir(name), &strings(args), None));
        self.nodes.len() - 1
    }

    /// Adds a node that may have so many files open.
    pub(crate) fn add_with_files(&mut self, name: &str, args: &[&str], files: u32) -> usize {
        self.nodes.push(Node::start(name, &self.dir(name), &strings(args), Some(files)));
        self.nodes.len() - 1
    }

    /// A cluster of `count` members that has formed and whose nodes all serve.
    pub(crate) async fn cluster(count: usize) -> (Self, Client) {
        Self::cluster_of(count, 32).await
    }

    /// The same with so many partitions.
    pub(crate) async fn cluster_of(count: usize, partitions: u32) -> (Self, Client) {
        Self::cluster_with(count, partitions, &[]).await
    }

    /// The same, all nodes with these flags as well.
    pub(crate) async fn cluster_with(count: usize, partitions: u32, flags: &[&str]) -> (Self, Client) {
        let mut world = Self::new();
        let (expect, partitions) = (count.to_string(), partitions.to_string());
        let founds = ["--bootstrap", "--expect", &expect, "--partitions", &partitions];
        world.add("n1", &[&founds, flags].concat());
        for number in 2..=count {
            let first = world.nodes[0].address.clone();
            world.add(&format!("n{number}"), &[&["--join", &first], flags].concat());
        }
        let client = world.client().await;
        world.wait_until_all_up(&client).await;
        let voters = if count < 3 { 1 } else { 3 };
        until_async("the control plane has its voters", || async {
            (client.refresh().await.ok()?.voters.len() >= voters).then_some(())
        })
        .await;
        (world, client)
    }

    pub(crate) fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.address.clone()).collect()
    }

    pub(crate) async fn client(&self) -> Client {
        let addresses = self.addresses();
        until_async("the cluster has formed", || async {
            let client = Client::connect(&addresses, options()).await.ok()?;
            client.description().layout.is_some().then_some(client)
        })
        .await
    }

    /// Waits until every node serves and takes every other member for up.
    pub(crate) async fn wait_until_all_up(&self, client: &Client) {
        let count = self.nodes.len();
        until_async("all nodes are up", || async {
            let reports = reports(client).await;
            let up = |snapshot: &v1::NodeSnapshot| {
                snapshot.layout_epoch > 0
                    && snapshot.peers.len() + 1 == count
                    && snapshot
                        .peers
                        .iter()
                        .all(|peer| !matches!(peer.state(), v1::MemberState::Suspect | v1::MemberState::Down))
            };
            (reports.len() == count && reports.iter().all(up)).then_some(())
        })
        .await;
    }

    /// Waits until nothing is pending anywhere.
    pub(crate) async fn wait_until_idle(&self, client: &Client) {
        until_async("all nodes are idle", || async {
            let reports = reports(client).await;
            let idle = |snapshot: &v1::NodeSnapshot| {
                let pending = snapshot.pending.unwrap_or_default();
                pending.replications + pending.hints + pending.missed_writes + pending.refills + pending.comparisons
                    == 0
            };
            (reports.len() == self.nodes.len() && reports.iter().all(idle)).then_some(())
        })
        .await;
    }
}

/// A port on which nothing listens.
pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The time of this machine's clock, as reports tell it.
pub(crate) fn wall_us() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    u64::try_from(since.as_micros()).unwrap()
}

/// The account of the node at an address, asked alone: others may be dead or frozen.
pub(crate) async fn report_of(address: &str) -> Option<v1::NodeSnapshot> {
    let mut node = v1::cluster_client::ClusterClient::connect(format!("http://{address}")).await.ok()?;
    let request = v1::WatchRequest { once: true, ..v1::WatchRequest::default() };
    let told = node.watch(request).await.ok()?.into_inner().message().await.ok()??;
    match told.item? {
        v1::watch_response::Item::Snapshot(snapshot) => Some(*snapshot),
        v1::watch_response::Item::Event(_) => None,
    }
}

/// A client with more patience than usual.
pub(crate) fn options() -> Options {
    Options { timeout: Duration::from_secs(20), ..Options::default() }
}

/// The account of every member that answers.
pub(crate) async fn reports(client: &Client) -> Vec<v1::NodeSnapshot> {
    let request = v1::WatchRequest { once: true, partitions: true, ..v1::WatchRequest::default() };
    // A client learns of members that came after it.
    drop(client.refresh().await);
    let reports = client.reports(request, Duration::from_secs(5)).await;
    reports.into_iter().filter_map(|report| report.snapshot.ok()).map(|snapshot| *snapshot).collect()
}

pub(crate) async fn put(client: &Client, key: &str, value: &str) {
    let (key, value) = (Bytes::from(key.to_owned()), Bytes::from(value.to_owned()));
    client.put(&How::default(), &key, &value, &Write::default()).await.unwrap();
}

pub(crate) async fn get(client: &Client, key: &str) -> Vec<String> {
    let got = client.get(&How::default(), &Bytes::from(key.to_owned())).await.unwrap();
    got.values.iter().map(|value| String::from_utf8_lossy(&value.value).into_owned()).collect()
}
