//! The program as scripts see it: what it prints where, and how it exits.

mod bar;
mod bench;
mod fake;
mod late;
mod pipes;
mod transfer;
mod words;

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use fake::Cluster;
use kv_core::ring::{FirstLayout, first_layout};
use kv_core::types::{KeyspaceId, NodeId};
use kv_proto::v1;
use serde_json::{Value, json};

/// What one run of the program did.
struct Ran {
    code: i32,
    out: Vec<u8>,
    errors: String,
}

impl Ran {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }

    /// The lines of standard output as JSON.
    fn json(&self) -> Vec<Value> {
        self.text().lines().map(|line| serde_json::from_str(line).expect("a JSON line")).collect()
    }

    /// The one line of standard output as JSON.
    fn one(&self) -> Value {
        let mut lines = self.json();
        assert_eq!(lines.len(), 1, "{}{}", self.text(), self.errors);
        lines.remove(0)
    }
}

fn run_with(arguments: &[&str], input: &[u8]) -> Ran {
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

impl Cluster {
    fn exec(&self, arguments: &[&str]) -> Ran {
        self.exec_with(arguments, b"")
    }

    fn exec_with(&self, arguments: &[&str], input: &[u8]) -> Ran {
        let mut all = vec!["exec", "--connect", &self.addresses];
        all.extend(arguments);
        run_with(&all, input)
    }

    fn json(&self, arguments: &[&str]) -> Ran {
        let mut all = vec!["--output", "json"];
        all.extend(arguments);
        self.exec(&all)
    }
}

fn file(folder: &Path, name: &str, content: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, content).expect("written");
    path.display().to_string()
}

#[test]
fn keys_are_put_got_and_deleted() {
    let cluster = Cluster::start();
    let put = cluster.json(&["put", "k", "v"]);
    assert_eq!(put.code, 0, "{}", put.errors);
    let put = put.one();
    assert_eq!((&put["schema"], &put["key"], &put["siblings"]), (&json!(1), &json!("k"), &json!(1)));
    assert!(put["context"].as_str().is_some_and(|context| !context.is_empty()));

    let got = cluster.json(&["get", "k"]).one();
    assert_eq!((&got["found"], &got["versions"][0]["value"]), (&json!(true), &json!("v")));
    assert_eq!(got["versions"][0]["expires"], Value::Null);
    let written = got["versions"][0]["written"].as_str().expect("a moment");
    assert!(written.len() == 27 && written.ends_with('Z'), "{written}");

    assert_eq!(cluster.exec(&["--output", "raw", "get", "k"]).out, b"v");
    assert_eq!(cluster.exec(&["get", "k"]).text(), "v\n");
    assert_eq!(cluster.exec(&["get", "k", "--output", "raw"]).out, b"v", "the format may stand behind the command");
    assert_eq!(cluster.json(&["del", "k"]).one()["siblings"], json!(0));

    let absent = cluster.json(&["get", "k"]);
    assert_eq!((absent.code, &absent.one()["found"]), (3, &json!(false)));
    let error: Value = serde_json::from_str(&absent.errors).expect("JSON on standard error");
    assert_eq!(error, json!({"schema": 1, "error": {"kind": "not_found", "message": "k is absent", "retry": false}}));
    let absent = cluster.exec(&["get", "k"]);
    assert_eq!((absent.code, absent.out.len(), absent.errors.as_str()), (3, 0, "error: k is absent\n"));
}

#[test]
fn bytes_travel_unchanged() {
    let cluster = Cluster::start();
    let value: Vec<u8> = (0..=255).collect();
    let put = cluster.exec_with(&["put", r"\x00\xff", "--value-file", "-"], &value);
    assert_eq!(put.code, 0, "{}", put.errors);
    assert_eq!(cluster.exec(&["--output", "raw", "get", r"\x00\xff"]).out, value);
    let got = cluster.json(&["get", r"\x00\xff"]).one();
    assert_eq!(got["key"], json!({"base64": "AP8="}));
    let shown = cluster.exec(&["get", r"\x00\xff"]).text();
    assert!(shown.is_ascii() && shown.starts_with(r"\x00\x01"), "{shown}");
    let document = r#"{"path":"C:\\dir\n","emoji":"강남점 🦀"}"#;
    assert_eq!(cluster.exec(&["put", "doc", document]).code, 0);
    assert_eq!(cluster.exec(&["-o", "raw", "get", "doc"]).text(), document);
}

#[test]
fn siblings_are_shown_and_resolved() {
    let cluster = Cluster::start();
    let nothing = cluster.json(&["get", "k"]).one();
    let context = nothing["context"].as_str().expect("also for an absent key");
    for value in ["a", "b"] {
        assert_eq!(cluster.exec(&["put", "k", value, "--context", context]).code, 0);
    }
    let got = cluster.json(&["get", "k"]).one();
    assert_eq!(got["versions"].as_array().map(Vec::len), Some(2));
    let raw = cluster.exec(&["--output", "raw", "get", "k"]);
    assert_eq!((raw.code, raw.out.len()), (4, 0));
    assert!(raw.errors.contains("2 values side by side"), "{}", raw.errors);
    let context = got["context"].as_str().expect("a context");
    assert_eq!(cluster.json(&["put", "k", "c", "--context", context]).one()["siblings"], json!(1));
    let other = cluster.exec(&["put", "other", "c", "--context", context]);
    assert_eq!(other.code, 2);
    assert!(other.errors.contains("belongs to another key"), "{}", other.errors);
}

#[test]
fn scans_list_count_and_continue() {
    let cluster = Cluster::start();
    let script: String = (0..120).map(|index| format!("put key-{index:03} value-{index}\n")).collect();
    let ran = cluster.exec_with(&["--file", "-"], script.as_bytes());
    assert_eq!(ran.code, 0, "{}", ran.errors);

    let count = cluster.json(&["count"]).one();
    assert_eq!((&count["keyspace"], &count["keys"], &count["settled"]), (&json!("default"), &json!(120), &json!(true)));
    assert_eq!(cluster.exec(&["-o", "raw", "count"]).text(), "120\n");
    cluster.world().pending.hints = 4;
    assert_eq!(cluster.json(&["count"]).one()["settled"], json!(false));

    let keys = cluster.exec(&["-o", "raw", "scan", "--keys-only"]).text();
    assert_eq!(keys, (0..120).map(|index| format!("key-{index:03}\n")).collect::<String>());
    assert_eq!(cluster.json(&["scan", "key-01"]).json().len(), 10);

    let mut page = cluster.json(&["scan", "--limit", "70", "--keys-only"]).json();
    assert_eq!(page.len(), 71);
    let cursor = page.pop().expect("a cursor")["cursor"].as_str().expect("a cursor").to_owned();
    let rest = cluster.json(&["scan", "--cursor", &cursor, "--keys-only"]).json();
    assert_eq!((rest.len(), &rest[0]["key"]), (50, &json!("key-070")));
    assert_eq!(cluster.exec(&["scan", "--limit", "1"]).errors, "there is more: --cursor AWtleS0wMDA\n");
    assert_eq!(cluster.exec(&["scan", "--cursor", "AA"]).code, 2);
}

#[test]
fn bad_input_is_named_with_its_exit_code() {
    let cluster = Cluster::start();
    let check = |arguments: &[&str], code: i32, expected: &str| {
        let ran = cluster.exec(arguments);
        assert_eq!(ran.code, code, "{arguments:?}: {}", ran.errors);
        assert!(ran.errors.contains(expected), "{arguments:?}: {}", ran.errors);
        assert!(ran.out.is_empty(), "{arguments:?}: {}", ran.text());
    };
    check(&["put", "", "v"], 2, "key: is empty");
    check(&["put", &"k".repeat(4097), "v"], 2, "4097 bytes, 4096 are allowed");
    check(&["get", "k", "-k", "nope"], 3, "no keyspace \"nope\"");
    check(&["count", "-k", "nope"], 3, "no keyspace \"nope\"");
    check(&["frobnicate"], 2, "unrecognized subcommand");
    check(&["put", "k", "v", "--if-absent"], 2, "consistent mode");
    check(&["put", "k", "--value-file", "/nonexistent"], 1, "cannot read /nonexistent");
    check(&["node", "show", "n9"], 3, "the nodes are: n1, n2, n3");
    check(&["keyspace", "create", "No Name"], 2, "is not a name");
    check(&["keyspace", "create", "x", "--mode", "consistent"], 2, "available keyspaces only");
    check(&["keyspace", "drop", "default"], 6, "add --yes");
    check(&["bench", "--value-size", "5"], 2, "at least 32 bytes");
    check(&["import", "/nonexistent"], 1, "cannot read /nonexistent");
    check(&["--file", "/nonexistent"], 1, "cannot read /nonexistent");
    let none = run_with(&["exec", "get", "k"], b"");
    assert_eq!(none.code, 5);
    assert!(none.errors.contains("name one with --connect ADDR:PORT, or start one with kv-tui local start"));
    let none = run_with(&["exec", "--connect", "127.0.0.1:1", "get", "k"], b"");
    assert_eq!(none.code, 5);
    assert!(none.errors.contains("no node in reach (127.0.0.1:1: "), "{}", none.errors);
    assert_eq!(run_with(&["exec"], b"").code, 2);
    assert_eq!(run_with(&["--nonsense"], b"").code, 2);
    let help = run_with(&["exec", "help"], b"");
    assert!(help.code == 0 && help.text().contains("bench"), "help needs no cluster: {}", help.errors);
}

#[test]
fn scripts_stop_at_the_first_failure_unless_told_otherwise() {
    let cluster = Cluster::start();
    let script = b"# a comment\n\nput a 1\nget nothing\nput 'b c' \"2\"\nbad line\n";
    let stopped = cluster.exec_with(&["--file", "-"], script);
    assert_eq!(stopped.code, 3);
    assert_eq!(stopped.errors, "error: -: line 4: nothing is absent\n");
    assert_eq!(cluster.exec(&["get", "b c"]).code, 3);

    let all = cluster.exec_with(&["--keep-going", "--file", "-"], script);
    assert_eq!(all.code, 3, "the first failure decides");
    assert!(all.errors.contains("line 6: unrecognized subcommand 'bad'"), "{}", all.errors);
    assert_eq!(cluster.exec(&["get", "b c"]).text(), "2\n");
    let same = cluster.exec_with(&["--output", "json", "--file", "-"], b"get 'b c'");
    assert_eq!(same.out, cluster.json(&["get", "b c"]).out, "a line gives the same as the words");
}

#[test]
fn the_cluster_is_described() {
    let cluster = Cluster::start();
    assert_eq!(cluster.exec(&["put", "k", "v"]).code, 0);
    let nodes = cluster.json(&["node", "ls"]).json();
    assert_eq!(nodes.len(), 3);
    let primaries: u64 = nodes.iter().map(|node| node["primary"].as_u64().expect("a number")).sum();
    assert_eq!((primaries, &nodes[0]["partitions"]), (16, &json!(16)));
    assert_eq!((&nodes[0]["name"], &nodes[0]["state"], &nodes[0]["zone"]), (&json!("n1"), &json!("up"), &json!("z1")));
    assert_eq!((&nodes[2]["ownership"], &nodes[2]["fair_share"]), (&json!(0.333333), &json!(0.333333)));
    assert_eq!(cluster.json(&["node", "show", "n2"]).one()["leader"], json!(false));
    assert!(cluster.exec(&["node", "ls"]).text().starts_with("NODE  STATE  ADDRESS"));

    let ring = cluster.json(&["ring"]).json();
    assert_eq!((ring.len(), &ring[0]["partitions"]), (3, &json!(16)));
    let grid = cluster.json(&["ring", "--grid"]).json();
    assert_eq!((grid.len(), &grid[1]["owners"]), (16, &json!(["n2"])));
    assert_eq!(cluster.json(&["ring", "--copies"]).json()[1]["owners"], json!(["n2", "n3", "n1"]));

    let place = cluster.json(&["where", "k"]).one();
    assert_eq!(place["replicas"].as_array().map(Vec::len), Some(3));
    let failed = place["replicas"].as_array().expect("replicas").iter().find(|replica| replica["node"] == "n3");
    assert_eq!(failed.map(|replica| &replica["error"]), Some(&json!("n3 is down")));
    assert_eq!(place["owners"], cluster.json(&["get", "k", "--all-replicas"]).one()["owners"]);
    assert_eq!(place["token"].as_str().map(str::len), Some(16));

    let events = cluster.json(&["events"]).json();
    let nodes: Vec<&Value> = events.iter().map(|event| &event["node"]).collect();
    assert_eq!(nodes[..3], [&json!("n1"), &json!("n2"), &json!("n3")]);
    assert!(!cluster.exec(&["events"]).text().contains('\u{1b}'), "no escape reaches the screen");

    let audit = cluster.json(&["events", "--audit"]).json();
    let told = audit.iter().map(|line| (&line["by"], &line["command"], &line["undo"], &line["node"]));
    let expected = [
        (&json!("ann@desk"), &json!("node add n4"), &json!("node remove n4"), &Value::Null),
        (&json!("bob@desk"), &json!("keyspace drop old"), &Value::Null, &Value::Null),
    ];
    assert!(told.eq(expected), "each change once, although every node tells it: {audit:?}");
    let text = cluster.exec(&["events", "--audit"]).text();
    assert!(text.contains("n4 is being added  (by ann@desk; undo: node remove n4)"), "{text}");
    assert!(text.contains("keyspace old dropped  (by bob@desk; undo: nothing)"), "{text}");
}

#[test]
fn health_is_told_and_waited_for() {
    let cluster = Cluster::start();
    let status = cluster.json(&["status"]).one();
    assert_eq!((&status["health"], &status["ready"], &status["idle"]), (&json!("healthy"), &json!(true), &json!(true)));
    assert_eq!(
        run_with(&["--connect", &cluster.addresses], b"").text(),
        "healthy  3/3 up, 3 copies of 16 partitions, epoch 1\n  every key has 3 copies at least; one more node may fail\n"
    );
    assert_eq!((&status["safety"]["copies_min"], &status["safety"]["failures"]), (&json!(3), &json!(1)));
    let node = cluster.json(&["node", "show", "n1"]).one();
    assert_eq!(node["safe_to_stop"], json!(true), "{}", node["safe_to_stop_why"]);
    for until in ["ready", "idle", "healthy"] {
        assert_eq!(cluster.exec(&["wait", until]).code, 0);
    }
    cluster.world().pending.replications = 7;
    assert_eq!(cluster.json(&["status"]).one()["health"], json!("settling"));
    let late = cluster.exec(&["wait", "idle", "--timeout", "200ms"]);
    assert_eq!(late.code, 5);
    assert!(late.errors.contains("not idle after 200 ms: 7 writes on their way to a copy"), "{}", late.errors);
    assert_eq!(cluster.exec(&["wait", "ready"]).code, 0);
    cluster.world().layout = None;
    let forming = cluster.json(&["status"]).one();
    assert_eq!((&forming["health"], &forming["forming"]), (&json!("forming"), &json!({"present": 1, "expected": 3})));
    assert_eq!(cluster.exec(&["count"]).code, 5);
    let unreached = run_with(&["exec", "--connect", "127.0.0.1:1", "wait", "ready", "--timeout", "300ms"], b"");
    assert_eq!(unreached.code, 5);
    let refused = cluster.exec(&["--timeout", "300ms", "get", "k"]);
    assert!(refused.code == 5 && refused.errors.contains("forming: 1 of 3 members"), "{}", refused.errors);
}

#[test]
fn keyspaces_are_created_and_dropped() {
    let cluster = Cluster::start();
    let created = cluster.json(&["keyspace", "create", "users", "--r", "1", "--conflict", "lww"]).one();
    assert_eq!((&created["r"], &created["w"], &created["conflict"]), (&json!(1), &json!(2), &json!("lww")));
    assert_eq!(cluster.exec(&["put", "k", "v", "-k", "users"]).code, 0);
    assert_eq!(cluster.exec(&["get", "k"]).code, 3);
    assert!(cluster.world().records.keys().any(|(keyspace, _)| *keyspace == KeyspaceId(1)));
    assert_eq!(cluster.exec(&["-o", "raw", "keyspace", "ls"]).text(), "default\nusers\n");
    assert_eq!(cluster.exec(&["--yes", "keyspace", "drop", "users"]).code, 0);
    assert_eq!(cluster.exec(&["keyspace", "drop", "users", "--yes"]).code, 3);
    assert_eq!(cluster.exec(&["-o", "raw", "keyspace", "ls"]).text(), "default\n");
}

#[test]
fn paths_and_completions_are_printed_without_a_cluster() {
    let info: Value = serde_json::from_slice(&run_with(&["info", "-o", "json"], b"").out).expect("JSON");
    assert_eq!(info["local_cluster"], json!("/nonexistent/kv-local"));
    for shell in ["bash", "zsh", "fish"] {
        assert!(run_with(&["completions", shell], b"").text().contains("kv-tui"), "{shell}");
    }
    let none = run_with(&["local", "status"], b"");
    assert!(none.code == 3 && none.errors.contains("kv-tui local start makes one"), "{}", none.errors);
    assert_eq!(run_with(&["local", "destroy"], b"").code, 6);
}

/// An operation of the fake cluster.
fn operation(id: u64, state: v1::OperationState) -> v1::Operation {
    v1::Operation {
        id,
        kind: v1::OperationKind::Add.into(),
        command: format!("node add n{}", id + 3),
        state: state.into(),
        moves: 12,
        moves_minimum: 12,
        moved: if state == v1::OperationState::Done { 12 } else { 3 },
        by: "ann".to_owned(),
        begun_us: 1,
        ended_us: if state == v1::OperationState::Done { 2_000_001 } else { 0 },
        ..Default::default()
    }
}

#[test]
fn operations_are_listed_shown_and_steered() {
    let cluster = Cluster::start();
    assert_eq!(cluster.json(&["op", "ls"]).text(), "");
    assert_eq!(cluster.json(&["op", "watch"]).code, 3, "there is none");
    cluster.world().operations =
        vec![operation(1, v1::OperationState::Done), operation(2, v1::OperationState::Running)];
    let listed = cluster.json(&["op", "ls"]).json();
    let told: Vec<_> = listed.iter().map(|it| (it["id"].clone(), it["state"].clone(), it["moved"].clone())).collect();
    assert_eq!(told, [(json!(1), json!("done"), json!(12)), (json!(2), json!("running"), json!(3))]);
    assert_eq!((listed[0]["seconds"].clone(), listed[1]["progress"].clone()), (json!(2.0), json!(0.25)));
    assert_eq!(listed[1]["waiting_for"], Value::Null);

    let shown = cluster.exec(&["op", "show", "1"]);
    let text = shown.text();
    assert!(text.starts_with("operation 1: node add n4 (done)\nmoved     12 of 12 replicas (100.0 %)"), "{text}");
    assert_eq!(cluster.json(&["op", "show", "9"]).code, 3);
    assert_eq!(cluster.json(&["op", "pause", "2"]).one()["state"], json!("paused"));
    assert_eq!(cluster.json(&["op", "ls"]).json()[1]["waiting_for"], json!("paused; op resume 2 goes on"));
    assert_eq!(cluster.json(&["op", "resume", "2"]).one()["state"], json!("running"));
    let retried = cluster.json(&["op", "retry", "2", "1", "5"]).one();
    assert_eq!((&retried["state"], &retried["retried"]), (&json!("running"), &json!([])));
    assert_eq!(retried["message"], json!("nothing began anew: no transfer waits for a source"));
    let unknown = cluster.json(&["op", "retry", "2", "999"]);
    assert_eq!(unknown.code, 3);
    assert_eq!(cluster.json(&["op", "throttle", "16MiB/s"]).one()["bytes_per_second_max"], json!(16 << 20));
    assert_eq!(cluster.json(&["op", "throttle", "off"]).one()["bytes_per_second_max"], Value::Null);
    for nonsense in ["0", "0MiB/s", "-1MiB/s", "fast", "16", "16MiB"] {
        assert_eq!(cluster.json(&["op", "throttle", nonsense]).code, 2, "{nonsense}");
    }
    assert_eq!(cluster.json(&["op", "watch", "1"]).one()["state"], json!("done"));
    assert_eq!(cluster.json(&["op", "cancel", "2"]).one()["state"], json!("cancelled"));
    let again = cluster.json(&["op", "cancel", "2"]);
    assert_eq!((again.code, again.errors.contains("has ended")), (4, true), "{}", again.errors);
    assert_eq!(cluster.json(&["op", "watch", "2"]).code, 4, "it was cancelled");
}

/// An operation under way: n3 has got one partition, copies a second one, and waits with the others.
fn moving(cluster: &Cluster) {
    let receipt = v1::Receipt {
        keys: 10,
        bytes: 1000,
        sources: [1, 2].map(|node| v1::ReceiptSource { node, merkle_root: 9 }).to_vec(),
        ..Default::default()
    };
    let step = |partition: u32| v1::OperationMove {
        partition,
        from: 1,
        to: 3,
        source: 1,
        moved: partition == 0,
        receipt: (partition == 0).then(|| receipt.clone()),
    };
    let details = (0..4).map(step).collect();
    let transfer = v1::Transfer {
        partition: 1,
        source: 1,
        phase: v1::TransferPhase::Copying.into(),
        keys: 5,
        keys_total: 10,
        bytes: 500,
        bytes_total: 1000,
        tries: 2,
        idle_us: 11_000_000,
        stalled: true,
        waiting_for: "n1 does not answer".to_owned(),
        ..Default::default()
    };
    let mut world = cluster.world();
    world.transfers = vec![transfer];
    world.throttle = Some(1 << 20);
    world.operations = vec![
        operation(1, v1::OperationState::Done),
        v1::Operation { moves: 4, moved: 1, receipts: 1, details, ..operation(2, v1::OperationState::Running) },
    ];
}

/// What is to be told of [`moving`], as text.
const FACTS: &[&str] = &[
    "operation 2: node add n5 (running)",
    "moved     1 of 4 replicas (25.0 %)",
    "speed     0 B/s   limit 1.0 MiB/s a receiver",
    "so far, no end in sight yet",
    "phases    2 wait → 1 copy (1 stalled) → 0 verify → 0 covered → 1 moved",
    "waits     stalled: n3 waits with partition 1: n1 does not answer",
    "flow      n1 → n3  1 of 4 replicas, 36 %, 0 B/s, stalled",
    "     0  n1 → n3  cut over, 10 keys, 1000 B, covered by n1 n2",
    "     1  n1 → n3  stalled 45 %, 500 of 1000 from n1; n1 does not answer",
    "     3  n1 → n3  waiting 0 %; waits for its turn",
];

#[test]
fn an_operation_is_shown_with_every_wait() {
    let cluster = Cluster::start();
    assert_eq!(cluster.json(&["op", "show"]).code, 3, "there is none");
    moving(&cluster);
    let text = cluster.exec(&["op", "show"]).text();
    for fact in FACTS {
        assert!(text.contains(fact), "{fact:?} is missing:\n{text}");
    }
    let json = cluster.json(&["op", "show"]).one();
    assert_eq!((&json["id"], &json["state"], &json["rate"]), (&json!(2), &json!("running"), &json!(0)));
    assert_eq!((&json["limit"]["bytes_per_second_max"], &json["eta_seconds"]), (&json!(1 << 20), &Value::Null));
    assert_eq!((&json["phases"]["stalled"], &json["phases"]["waiting"]), (&json!(1), &json!(2)));
    assert_eq!((&json["flow"][0]["source"], &json["flow"][0]["stalled"]), (&json!("n1"), &json!(true)));
    let moves = &json["moves_detail"];
    let told = |at: usize| (moves[at]["state"].clone(), moves[at]["waiting_for"].clone());
    assert_eq!(told(0), (json!("moved"), Value::Null));
    assert_eq!(told(1), (json!("stalled"), json!("n1 does not answer")));
    assert_eq!(told(3), (json!("waiting"), json!("waits for its turn")));
    assert_eq!(moves[0]["receipt"]["sources"][1]["node"], json!("n2"));
}

#[test]
fn one_look_tells_the_operation_too() {
    let cluster = Cluster::start();
    let once = |more: &[&str]| {
        let mut arguments = vec!["--connect", &cluster.addresses, "--once"];
        arguments.extend(more);
        run_with(&arguments, b"")
    };
    let none = once(&["--plain"]);
    assert!(none.code == 0 && !none.text().contains("operation"), "{}{}", none.text(), none.errors);
    assert_eq!(once(&["--json"]).json().len(), 4, "the status and three nodes");
    moving(&cluster);
    let plain = once(&["--plain"]).text();
    for fact in FACTS {
        assert!(plain.contains(fact), "{fact:?} is missing:\n{plain}");
    }
    let json = once(&["--json"]).json();
    let shown = cluster.json(&["op", "show"]).one();
    for fact in ["id", "copied", "share", "limit", "phases", "flow", "moves_detail", "waiting_for"] {
        assert_eq!(json[4][fact], shown[fact], "{fact}");
    }
}

#[test]
fn a_limit_is_set_with_the_operation() {
    let cluster = Cluster::start();
    with_a_spare(&cluster);
    let add = |more: &[&str]| {
        let mut arguments = vec!["node", "add", "n3"];
        arguments.extend(more);
        cluster.exec(&arguments)
    };
    assert_eq!(add(&["--limit", "2MiB/s", "--dry-run"]).code, 0);
    assert_eq!(cluster.world().throttle, None, "a dry run changes nothing");
    cluster.world().busy = "an operation is running".to_owned();
    let refused = add(&["--limit", "2MiB/s"]);
    assert_eq!((refused.code, cluster.world().throttle), (4, None), "{}", refused.errors);
    cluster.world().busy = String::new();
    let begun = add(&["--limit", "2MiB/s"]);
    assert_eq!((begun.code, cluster.world().throttle), (0, Some(2 << 20)), "{}", begun.errors);
    assert!(begun.errors.contains("copies at most 2.0 MiB/s from now on"), "{}", begun.errors);
    assert!(add(&["--dry-run"]).code == 0 && add(&["--limit", "off"]).code == 0);
    assert_eq!(cluster.world().throttle, None);
}

/// Two nodes with all copies, and a spare.
#[test]
fn a_repair_says_what_is_compared() {
    let cluster = Cluster::start();
    let begun = cluster.json(&["repair"]).one();
    assert_eq!(
        (&begun["partitions"], &begun["comparisons"], &begun["records"]),
        (&json!(16), &json!(96), &Value::Null)
    );
    let waited = cluster.json(&["repair", "3", "--wait"]).one();
    assert_eq!((&waited["partitions"], &waited["nodes"]["n2"]), (&json!(1), &json!(2)));
    assert_eq!((&waited["done"], &waited["failed"], &waited["records"]), (&json!(18), &json!(0), &json!(12)));
    let text = cluster.exec(&["repair", "3"]).text();
    assert_eq!(text.trim(), "1 partition is compared: 6 comparisons begun by n1, n2, n3");
    assert_eq!(cluster.json(&["repair", "16"]).code, 3);
    assert_eq!(cluster.json(&["repair", "all"]).code, 2);
}

fn with_a_spare(cluster: &Cluster) {
    let mut world = cluster.world.lock().expect("lock");
    let layout = world.layout.clone().expect("formed");
    let mut members = layout.members.clone();
    members.get_mut(&NodeId(3)).expect("three nodes").spare = true;
    let (cluster, seed, epoch) = (layout.cluster, layout.seed, layout.epoch);
    let input = FirstLayout { cluster, seed, epoch, copies: 2, partitions: layout.partition_count(), members };
    world.layout = Some(first_layout(input).expect("a sound layout"));
}

#[test]
fn a_dry_run_shows_the_plan_and_changes_nothing() {
    let cluster = Cluster::start();
    with_a_spare(&cluster);
    for index in 0..50 {
        assert_eq!(cluster.exec(&["put", &format!("k{index}"), "v"]).code, 0);
    }
    let before = cluster.world.lock().expect("lock").layout.clone();
    let plan = cluster.json(&["node", "add", "n3", "--dry-run"]);
    assert_eq!(plan.code, 0, "{}", plan.errors);
    let plan = plan.one();
    let hash = plan["hash"].as_str().expect("a hash").to_owned();
    assert_eq!((&plan["schema"], &plan["parent_epoch"], hash.len()), (&json!(1), &json!(1), 16));
    // 16 partitions of 2 copies on 3 nodes: the new one gets 10 or 11.
    let moves = plan["moves"].as_array().expect("moves");
    assert_eq!((moves.len(), &plan["moves_minimum"], &plan["moves_total"]), (10, &json!(10), &json!(10)));
    for step in moves {
        assert_eq!((&step["to"], &step["from"]), (&json!("n3"), &step["source"]), "{step}");
    }
    let keys: u64 = moves.iter().filter_map(|step| step["keys"].as_u64()).sum();
    assert!(keys > 0 && plan["keys"] == json!(keys) && plan["keys_of_all"] == json!(50), "{}", plan["keys"]);
    assert_eq!((&plan["nodes"][2]["after"]["partitions"], &plan["nodes"][2]["moves_in"]), (&json!(10), &json!(10)));
    assert_eq!((&plan["undo"], &plan["refusals"]), (&json!(["node remove n3"]), &json!([])));
    assert_eq!(plan["safety"]["copies_min"], json!(2));

    let table = cluster.exec(&["node", "add", "n3", "--dry-run", "--plan", &hash]);
    let text = table.text();
    for part in [
        &format!("plan {hash} for epoch 1: node add n3"),
        "0 → 10",
        "moves    10 replicas",
        "the minimum is 10",
        "C n3 = gets a copy",
        "safety   at least 2 of 2 copies of every key stay",
        "undo     node remove n3",
        &format!("to do it kv-tui exec node add n3 --plan {hash} --yes"),
    ] {
        assert!(text.contains(part), "{part:?} is missing:\n{text}{}", table.errors);
    }
    assert_eq!(cluster.exec(&["-o", "raw", "node", "add", "n3", "--dry-run"]).text(), format!("{hash}\n"));
    let other = cluster.exec(&["node", "add", "n3", "--weight", "2", "--zone", "z9", "--dry-run"]).text();
    assert!(other.contains("kv-tui exec node add n3 --zone z9 --weight 2 --plan"), "{other}");
    let stale = cluster.exec(&["node", "add", "n3", "--dry-run", "--plan", "0123456789abcdef"]);
    assert_eq!(stale.code, 4);
    assert!(stale.errors.contains("is stale"), "{}", stale.errors);
    assert_eq!(cluster.world.lock().expect("lock").layout, before, "nothing has changed");
}

#[test]
fn exactly_the_previewed_plan_is_carried_out() {
    let cluster = Cluster::start();
    with_a_spare(&cluster);
    let hash = cluster.exec(&["-o", "raw", "node", "add", "n3", "--dry-run"]).text().trim().to_owned();
    let stale = cluster.exec(&["node", "add", "n3", "--plan", "0123456789abcdef"]);
    assert_eq!((stale.code, stale.errors.contains("is stale")), (4, true), "{}", stale.errors);
    assert!(cluster.world().operations.is_empty());
    let begun = cluster.json(&["node", "add", "n3", "--plan", &hash]).one();
    assert_eq!((&begun["id"], &begun["state"], &begun["plan"]), (&json!(1), &json!("running"), &json!(hash)));
    assert_eq!(begun["moves"], json!(10));
    cluster.world().operations[0].set_state(v1::OperationState::Done);
    assert_eq!(cluster.json(&["op", "watch"]).one()["state"], json!("done"));
    let nowhere = cluster.exec(&["node", "add", "127.0.0.1:1"]);
    assert_eq!(
        (nowhere.code, nowhere.errors.contains("start a node there with --join")),
        (5, true),
        "{}",
        nowhere.errors
    );
    let no_local = cluster.exec(&["node", "add"]);
    assert_eq!((no_local.code, no_local.errors.contains("is not the local one")), (2, true), "{}", no_local.errors);
}

#[test]
fn refused_changes_say_why_and_what_would_help() {
    let cluster = Cluster::start();
    with_a_spare(&cluster);
    let refused = |arguments: &[&str], code: i32, says: &str| {
        let ran = cluster.exec(arguments);
        assert_eq!(ran.code, code, "{arguments:?}: {}{}", ran.text(), ran.errors);
        assert!(ran.errors.contains(says), "{arguments:?}: {}", ran.errors);
    };
    refused(&["node", "add", "n9", "--dry-run"], 3, "the nodes are: n1, n2, n3");
    refused(&["node", "add", "n1", "--dry-run"], 4, "n1 owns partitions already; name a spare");
    refused(&["node", "remove", "n1", "--dry-run"], 4, "1 nodes are left for 2 copies; add a node first");
    refused(&["node", "weight", "n1", "0", "--dry-run"], 2, "weight 0");
    refused(&["copies", "0", "--dry-run"], 2, "0 is not in 1..");
    refused(&["node", "add", "n3", "--dry-run", "--plan", "8f3a"], 2, "16 hexadecimal digits");
    refused(&["node", "add", "n3", "--dry-run", "--limit", "fast"], 2, "is not a rate");
    let nothing = cluster.exec(&["node", "weight", "n1", "5", "--dry-run"]);
    assert_eq!(nothing.code, 0, "{}", nothing.errors);
    assert!(nothing.text().contains("every node holds every partition whatever its weight"), "{}", nothing.text());
    let replace = cluster.json(&["node", "replace", "n2", "n3", "--dry-run"]).one();
    assert_eq!((&replace["moves_total"], &replace["undo"]), (&json!(16), &json!([])));
    let created = cluster.json(&["copies", "3", "--dry-run"]).one();
    assert_eq!((&created["moves_total"], &created["notices"][0]["kind"]), (&json!(0), &json!("less")));
}

#[test]
fn read_only_refuses_what_changes_the_cluster() {
    let cluster = Cluster::start();
    assert_eq!(cluster.exec(&["--read-only", "put", "k", "v"]).code, 6);
    let folder = tempfile::tempdir().expect("a folder");
    let script = file(folder.path(), "script", "count\nput k v\n");
    let ran = cluster.exec(&["--read-only", "--file", &script]);
    assert!(ran.code == 6 && ran.errors.contains("line 2"), "{}", ran.errors);
    assert_eq!(cluster.exec(&["--read-only", "count"]).text(), "0\n", "nothing was written");
    let all = ["--read-only", "exec", "--connect", &cluster.addresses, "put", "k", "v"];
    assert_eq!(run_with(&all, b"").code, 6, "also in front of exec");
}
