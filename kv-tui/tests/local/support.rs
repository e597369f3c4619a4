//! A local cluster of real processes in a folder of its own, stopped and deleted with the test.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt as _;
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// What one run of the program did.
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) errors: String,
}

impl Ran {
    fn of(Output { status, stdout, stderr }: Output) -> Self {
        Self {
            code: status.code().expect("an exit code"),
            out: String::from_utf8_lossy(&stdout).into_owned(),
            errors: String::from_utf8_lossy(&stderr).into_owned(),
        }
    }

    /// The lines of standard output as JSON.
    pub(crate) fn json(&self) -> Vec<Value> {
        let line = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line} {}", self.errors));
        self.out.lines().map(line).collect()
    }

    /// The one line of standard output as JSON.
    pub(crate) fn one(&self) -> Value {
        let mut lines = self.json();
        assert_eq!(lines.len(), 1, "{}{}", self.out, self.errors);
        lines.remove(0)
    }

    /// This run, which must have succeeded.
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{}{}", self.out, self.errors);
        self
    }
}

/// A run of the program that goes on.
pub(crate) struct Running(Child);

impl Running {
    /// Waits for its end.
    pub(crate) fn end(self) -> Ran {
        Ran::of(self.0.wait_with_output().expect("the program ends"))
    }
}

/// A command as the program carries it out.
fn executed<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    ["exec", "--output", "json"].iter().chain(arguments).copied().collect()
}

/// The folder of a local cluster.
pub(crate) struct Local {
    folder: TempDir,
}

impl Drop for Local {
    fn drop(&mut self) {
        // Where a test has failed, its nodes must not outlive it.
        drop(self.run(&["local", "destroy", "--yes"]));
    }
}

impl Local {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a folder") }
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        Ran::of(self.command(arguments).output().expect("the program runs"))
    }

    /// The file with the secret of the cluster.
    pub(crate) fn secret(&self) -> std::path::PathBuf {
        self.folder.path().join("secret")
    }

    /// The nodes prove a secret to each other that only their owner can read.
    pub(crate) fn expect_secret(&self, nodes: &[Value]) {
        let secret = std::fs::metadata(self.secret()).expect("a secret");
        assert_eq!(secret.mode() & 0o777, 0o600);
        for node in nodes {
            let mut stream = TcpStream::connect(node["address"].as_str().expect("an address")).expect("a node");
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: kv\r\nConnection: close\r\n\r\n").expect("asked");
            let mut page = String::new();
            stream.read_to_string(&mut page).expect("answered");
            let line = page.lines().find(|line| line.starts_with("kv_peers_proven{")).expect("the metric");
            assert!(line.ends_with(" 1") || line.ends_with(" 1.0"), "{line}");
        }
    }

    /// Starts the program with a command, which goes on beside the test.
    pub(crate) fn begin(&self, arguments: &[&str]) -> Running {
        let mut command = self.command(&executed(arguments));
        Running(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program runs"))
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kv-tui"));
        command.args(arguments).env_remove("KV_CONNECT").env("KV_LOCAL_DIR", self.folder.path());
        command
    }

    pub(crate) fn start(&self) -> Vec<Value> {
        self.run(&["local", "start", "--output", "json"]).ok().json()
    }

    pub(crate) fn exec(&self, arguments: &[&str]) -> Ran {
        self.run(&executed(arguments))
    }

    pub(crate) fn addresses(&self) -> Vec<String> {
        let nodes = self.run(&["local", "status", "--output", "json"]).ok().json();
        nodes.iter().map(|node| node["address"].as_str().expect("an address").to_owned()).collect()
    }

    /// The processes of the nodes that run.
    pub(crate) fn pids(&self) -> Vec<Pid> {
        let nodes = self.run(&["local", "status", "--output", "json"]).ok().json();
        let numbers = nodes.iter().filter_map(|node| node["pid"].as_i64());
        numbers.filter_map(|pid| i32::try_from(pid).ok().and_then(Pid::from_raw)).collect()
    }
}

/// Ends nodes as a crash would.
pub(crate) fn kill(pids: &[Pid]) {
    for pid in pids {
        kill_process(*pid, Signal::KILL).expect("killed");
    }
}
