//! Real node processes on this machine: started, filled, killed, restarted, stopped, destroyed.

mod moving;
mod repair;
mod support;
mod truth;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write as _};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use kv_proto::client::{Client, How, Options, Retry, Write};
use parking_lot::Mutex;
use serde_json::{Value, json};
use support::{Local, kill};
use tokio::task::JoinSet;

const CATALOGUE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/packages.ndjson.gz");

/// The records of the catalogue.
fn catalogue() -> Vec<(Bytes, Bytes)> {
    let file = std::fs::File::open(CATALOGUE).expect("the catalogue");
    let lines = BufReader::new(flate2::read::GzDecoder::new(file)).lines();
    let text = |value: &Value| Bytes::from(value.as_str().expect("text").to_owned());
    lines
        .map(|line| {
            let record: Value = serde_json::from_str(&line.expect("a line")).expect("JSON");
            (text(&record["key"]), text(&record["value"]))
        })
        .collect()
}

#[test]
fn a_local_cluster_lives_and_keeps_its_data() {
    let local = Local::new();
    assert_eq!(local.exec(&["status"]).code, 5, "nothing runs yet");
    let started = local.run(&["local", "start", "--nodes", "3", "--output", "json"]).ok().json();
    assert_eq!(started.len(), 3);
    local.exec(&["put", "k", "v"]).ok();
    assert_eq!(local.exec(&["get", "k"]).ok().one()["versions"][0]["value"], json!("v"));
    assert_eq!(local.start(), started, "a second start finds the same processes");
    assert_eq!(local.run(&["local", "start", "--nodes", "5"]).code, 2);

    local.expect_secret(&started);
    let imported = local.exec(&["import", CATALOGUE]).ok().one();
    assert_eq!(imported["imported"], json!(20_000));
    local.exec(&["wait", "idle", "--timeout", "120s"]).ok();
    let nodes = local.exec(&["node", "ls"]).ok().json();
    let sum = |field: &str| nodes.iter().map(|node| node[field].as_u64().expect("a number")).sum::<u64>();
    assert_eq!((sum("keys"), sum("keys_primary"), sum("primary")), (3 * 20_001, 20_001, 256));
    assert_eq!(local.exec(&["count"]).ok().one()["keys"], json!(20_001));

    let stopped = local.run(&["local", "stop", "--output", "json"]).ok().json();
    assert!(stopped.iter().all(|node| node["state"] == json!("stopped") && node["pid"] == Value::Null));
    assert_eq!(local.exec(&["get", "k"]).code, 5);
    let addresses = |nodes: &[Value]| nodes.iter().map(|node| node["address"].clone()).collect::<Vec<_>>();
    assert_eq!(addresses(&local.start()), addresses(&started), "ports are kept");
    assert_eq!(local.exec(&["count"]).ok().one()["keys"], json!(20_001));
    assert_eq!(local.run(&["local", "destroy"]).code, 6);
    local.run(&["local", "destroy", "--yes"]).ok();
    assert_eq!(local.run(&["local", "status"]).code, 3);
}

#[test]
fn a_single_node_is_a_complete_store() {
    let local = Local::new();
    local.run(&["local", "start", "--nodes", "1"]).ok();
    local.exec(&["put", "k", "v", "--ttl", "1h"]).ok();
    let got = local.exec(&["get", "k", "-c", "all"]).ok().one();
    assert!(got["versions"][0]["expires"].is_string(), "{got}");
    local.exec(&["wait", "healthy"]).ok();
    local.exec(&["del", "k"]).ok();
    assert_eq!(local.exec(&["get", "k"]).code, 3);
    assert_eq!(local.exec(&["scan"]).ok().out, "");
}

#[test]
fn single_nodes_are_killed_frozen_and_started_again() {
    let local = Local::new();
    assert_eq!(local.exec(&["node", "start", "n1"]).code, 3, "there is no local cluster");
    local.start();
    local.exec(&["put", "k", "v"]).ok();
    let state = |action: &str, node: &str| {
        let node = local.exec(&["node", action, node]).ok().one();
        node["state"].as_str().expect("a word").to_owned()
    };
    assert_eq!(state("kill", "n1"), "stopped");
    assert_eq!(state("kill", "n1"), "stopped", "killing what does not run is no error");
    assert_eq!(local.exec(&["get", "k"]).ok().one()["versions"][0]["value"], json!("v"), "two of three serve");
    assert_eq!(local.exec(&["node", "freeze", "n1"]).code, 4, "it does not run");
    assert_eq!(state("stop", "n2"), "stopped");
    assert_eq!(state("stop", "n3"), "stopped");
    assert_eq!(state("start", "n2"), "running", "no node need be in reach for that");
    assert_eq!(state("start", "n1"), "running");
    assert_eq!(state("freeze", "n1"), "frozen");
    let refused = local.exec(&["node", "start", "n1"]);
    assert_eq!((refused.code, refused.errors.contains("node thaw n1")), (4, true), "{}", refused.errors);
    assert_eq!(state("thaw", "n1"), "running");
    assert_eq!(state("start", "n3"), "running");
    local.exec(&["wait", "healthy"]).ok();
    let unknown = local.exec(&["node", "kill", "n9"]);
    assert_eq!(unknown.code, 3);
    assert!(unknown.errors.contains("its nodes are: n1, n2, n3"), "{}", unknown.errors);
    let other = local.run(&["exec", "--connect", "127.0.0.1:1", "node", "kill", "n1"]);
    assert_eq!(other.code, 2, "another cluster's processes are not ours: {}", other.errors);
}

/// A process that ends with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        drop((self.0.kill(), self.0.wait()));
    }
}

/// Starts a node that joins a cluster; its address.
fn joining(folder: &std::path::Path, contact: &str, secret: &std::path::Path) -> (Process, String) {
    let child = Command::new(env!("CARGO_BIN_EXE_kv-tui"))
        .args([kv_tui::NODE_MODE, "--listen", "127.0.0.1:0", "--name", "stray", "--join", contact, "--data-dir"])
        .arg(folder)
        .arg("--cluster-secret-file")
        .arg(secret)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("a process");
    let mut node = Process(child);
    let mut line = String::new();
    BufReader::new(node.0.stdout.take().expect("its output")).read_line(&mut line).expect("a line");
    let address = line.split_whitespace().nth(2).unwrap_or_else(|| panic!("{line:?}")).to_owned();
    (node, address)
}

/// Answers whoever connects as a web server would.
fn web_server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    std::thread::spawn(move || {
        while let Ok((mut caller, _)) = listener.accept() {
            // Whether it is understood is the caller's affair.
            drop(caller.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"));
        }
    });
    address
}

#[test]
fn only_a_spare_of_the_cluster_is_added_whatever_answers_at_an_address() {
    let (local, other) = (Local::new(), Local::new());
    local.run(&["local", "start", "--nodes", "1"]).ok();
    other.run(&["local", "start", "--nodes", "1"]).ok();
    let (member, others) = (local.addresses().remove(0), other.addresses().remove(0));
    let folder = tempfile::tempdir().expect("a folder");
    let (_stray, spare_of_other) = joining(folder.path(), &others, &other.secret());
    let spares = || other.exec(&["node", "ls"]).ok().json().iter().any(|node| node["state"] == json!("spare"));
    while !spares() {
        std::thread::yield_now();
    }
    let closed = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").to_string();
    let join = format!("--join {member}");
    for (address, code, words) in [
        (web_server(), 5, ["no node in reach", &join]),
        (closed, 5, ["Connection refused", &join]),
        (others, 4, ["belongs to another cluster", &join]),
        (spare_of_other, 4, ["the node stray", "belongs to another cluster"]),
        (member.clone(), 4, ["owns partitions already", "name a spare"]),
        ("n1".to_owned(), 4, ["owns partitions already", "name a spare"]),
        ("n9".to_owned(), 3, ["the nodes are: n1", "--join"]),
    ] {
        let ran = local.exec(&["node", "add", &address]);
        assert_eq!(ran.code, code, "{address}: {}", ran.errors);
        for word in words {
            assert!(ran.errors.contains(word), "{address}: {word:?} is missing in {}", ran.errors);
        }
    }
    assert_eq!(local.exec(&["op", "ls"]).ok().out, "", "nothing was begun");
    assert_eq!(local.exec(&["node", "ls"]).ok().json().len(), 1);
}

#[test]
fn a_removed_node_comes_back_empty_under_its_name() {
    let local = Local::new();
    local.run(&["local", "start", "--nodes", "1"]).ok();
    local.exec(&["put", "k", "v"]).ok();
    local.exec(&["--timeout", "60s", "--yes", "copies", "1", "--wait"]).ok();
    let added = local.exec(&["--timeout", "60s", "node", "add", "--wait"]).ok();
    assert!(added.errors.contains("started n2"), "{}", added.errors);
    // The founding node: it must join what it founded, not found it again.
    local.exec(&["--timeout", "60s", "--yes", "node", "remove", "n1", "--wait"]).ok();
    let names = || -> Vec<String> {
        local
            .exec(&["node", "ls"])
            .ok()
            .json()
            .iter()
            .map(|node| node["name"].as_str().expect("a name").to_owned())
            .collect()
    };
    assert_eq!(names(), ["n2"]);
    let back = local.exec(&["--timeout", "60s", "node", "add", "n1", "--wait"]).ok();
    assert!(back.errors.contains("started n1"), "{}", back.errors);
    local.exec(&["--timeout", "60s", "wait", "healthy"]).ok();
    assert_eq!(names(), ["n2", "n1"]);
    assert_eq!(local.exec(&["get", "k"]).ok().one()["versions"][0]["value"], json!("v"));
}

/// Writes the catalogue until `stop`; gives what was acknowledged.
async fn write_all(
    client: Client,
    records: Arc<Vec<(Bytes, Bytes)>>,
    acknowledged: Arc<Mutex<BTreeMap<Bytes, Bytes>>>,
) {
    let next = Arc::new(AtomicUsize::new(0));
    let mut writers = JoinSet::new();
    for _ in 0..64 {
        let (client, records) = (client.clone(), Arc::clone(&records));
        let (next, acknowledged) = (Arc::clone(&next), Arc::clone(&acknowledged));
        writers.spawn(async move {
            while let Some((key, value)) = records.get(next.fetch_add(1, Ordering::Relaxed)) {
                if client.put(&How::default(), key, value, &Write::default()).await.is_ok() {
                    acknowledged.lock().insert(key.clone(), value.clone());
                }
            }
        });
    }
    while writers.join_next().await.is_some() {}
}

#[test]
fn what_was_acknowledged_survives_the_death_of_all_nodes_at_once() {
    let local = Local::new();
    local.start();
    let (addresses, pids) = (local.addresses(), local.pids());
    assert_eq!(pids.len(), 3);
    let records = Arc::new(catalogue());
    let acknowledged: Arc<Mutex<BTreeMap<Bytes, Bytes>>> = Arc::default();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    // Nothing is repeated: after the crash the writers run through what is left, and fail at once.
    let options = Options { retry: Retry::Never, ..Options::default() };
    let client = runtime.block_on(Client::connect(&addresses, options)).expect("connected");
    let writing = runtime.spawn(write_all(client, Arc::clone(&records), Arc::clone(&acknowledged)));
    while acknowledged.lock().len() < 5000 {
        std::thread::yield_now();
    }
    kill(&pids);
    runtime.block_on(writing).expect("the writers end");
    let acknowledged = acknowledged.lock().clone();
    assert!(acknowledged.len() < records.len(), "the nodes died in the middle");

    local.start();
    let client = runtime.block_on(Client::connect(&addresses, Options::default())).expect("connected");
    let how = How { timeout: Some(Duration::from_secs(30)), ..How::default() };
    runtime.block_on(async {
        for (key, value) in &acknowledged {
            let got = client.get(&how, key).await.expect("readable");
            let values: Vec<&Bytes> = got.values.iter().map(|version| &version.value).collect();
            assert_eq!(values, [value], "{key:?}");
        }
    });

    // The interrupted import is simply done again.
    let imported = local.exec(&["import", CATALOGUE]).ok().one();
    assert_eq!(imported["imported"], json!(20_000));
    local.exec(&["wait", "idle", "--timeout", "120s"]).ok();
    let nodes = local.exec(&["node", "ls"]).ok().json();
    let keys: u64 = nodes.iter().map(|node| node["keys"].as_u64().expect("a number")).sum();
    assert_eq!(keys, 3 * 20_000);
}
