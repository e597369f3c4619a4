//! Runs the program against a fake cluster.

use std::fs;
use std::io::Write;
use std::ops::Deref;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use kv_core::ring::{FirstLayout, first_layout};
use kv_core::types::NodeId;
use kv_testing::layout;
use serde_json::Value;

/// What one run of the program did.
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: Vec<u8>,
    pub(crate) errors: String,
}

impl Ran {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }

    /// The lines of standard output as JSON.
    pub(crate) fn json(&self) -> Vec<Value> {
        self.text().lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect()
    }

    /// The one line of standard output as JSON.
    pub(crate) fn one(&self) -> Value {
        let mut lines = self.json();
        assert_eq!(lines.len(), 1, "{}{}", self.text(), self.errors);
        lines.remove(0)
    }
}

pub(crate) fn run_with(arguments: &[&str], input: &[u8]) -> Ran {
    let mut child = Command::new(env!("CARGO_BIN_EXE_kv-tui"))
        .args(arguments)
        .env_remove("KV_CONNECT")
        .env("KV_LOCAL_DIR", "/nonexistent/kv-local")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    // A program that does not read its input closes it.
    drop(child.stdin.take().expect("piped").write_all(input));
    let Output { status, stdout, stderr } = child.wait_with_output().expect("the program ends");
    let code = status.code().expect("an exit code");
    Ran { code, out: stdout, errors: String::from_utf8_lossy(&stderr).into_owned() }
}

/// A fake cluster of three nodes with three copies of each partition.
pub(crate) struct Cluster {
    fake: kv_testing::Cluster,
    /// Where its nodes listen, as `--connect` takes them.
    pub(crate) addresses: String,
}

impl Deref for Cluster {
    type Target = kv_testing::Cluster;

    fn deref(&self) -> &Self::Target {
        &self.fake
    }
}

impl Cluster {
    pub(crate) fn start() -> Self {
        let fake = kv_testing::Cluster::start(Some(layout(3, 1)));
        let addresses = fake.addresses.join(",");
        Self { fake, addresses }
    }

    pub(crate) fn exec(&self, arguments: &[&str]) -> Ran {
        self.exec_with(arguments, b"")
    }

    pub(crate) fn exec_with(&self, arguments: &[&str], input: &[u8]) -> Ran {
        let mut all = vec!["exec", "--connect", &self.addresses];
        all.extend(arguments);
        run_with(&all, input)
    }

    pub(crate) fn json(&self, arguments: &[&str]) -> Ran {
        let mut all = vec!["--output", "json"];
        all.extend(arguments);
        self.exec(&all)
    }
}

pub(crate) fn file(folder: &Path, name: &str, content: &str) -> String {
    let path = folder.join(name);
    fs::write(&path, content).expect("written");
    path.display().to_string()
}

/// Two nodes with all copies, and a spare.
pub(crate) fn with_a_spare(cluster: &Cluster) {
    let mut world = cluster.world();
    let layout = world.layout.clone().expect("formed");
    let mut members = layout.members.clone();
    members.get_mut(&NodeId(3)).expect("three nodes").spare = true;
    let (cluster, seed, epoch) = (layout.cluster, layout.seed, layout.epoch);
    let input = FirstLayout { cluster, seed, epoch, copies: 2, partitions: layout.partition_count(), members };
    world.layout = Some(first_layout(input).expect("a sound layout"));
}
