//! Readers that go away, such as head, and outputs that are full.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Cluster, run_with};

/// Runs the program with a standard output that nobody reads any more; its exit code, and what it says.
fn run_closed(arguments: &[&str]) -> (Option<i32>, String) {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let mut child = Command::new(env!("CARGO_BIN_EXE_kv-tui"))
        .args(arguments)
        .env("KV_LOCAL_DIR", "/nonexistent/kv-local")
        .env_remove("KV_CONNECT")
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    drop(reader);
    let mut printed = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut printed).expect("text");
    (child.wait().expect("it ends").code(), printed)
}

#[test]
fn a_reader_that_goes_away_is_no_panic() {
    let cluster = Cluster::start();
    assert_eq!(cluster.exec(&["put", "k", "v"]).code, 0);
    let exec = |words: &[&'static str]| [&["exec", "--connect", &cluster.addresses], words].concat();
    for arguments in [
        vec!["completions", "bash"],
        vec!["completions", "zsh"],
        vec!["info"],
        vec!["info", "-o", "json"],
        vec!["--help"],
        vec!["--version"],
        vec!["exec", "help"],
        vec!["exec", "put", "--help"],
        vec!["--once", "--plain", "--connect", &cluster.addresses],
        vec!["--once", "--json", "--connect", &cluster.addresses],
        exec(&["scan"]),
        exec(&["export", "-"]),
        exec(&["events"]),
        exec(&["-o", "json", "node", "ls"]),
    ] {
        let (code, printed) = run_closed(&arguments);
        assert!(matches!(code, Some(0 | 1)), "{arguments:?}: {code:?} {printed}");
        assert!(!printed.contains("panicked") && !printed.contains("error"), "{arguments:?}: {printed}");
    }
    // Without a reader of either output nothing is printed, and the exit code is the same.
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let mut child = Command::new(env!("CARGO_BIN_EXE_kv-tui"))
        .args(["exec", "--connect", &cluster.addresses, "get", "nothing"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(writer)
        .spawn()
        .expect("the program starts");
    drop(reader);
    assert_eq!(child.wait().expect("it ends").code(), Some(3));
}

#[test]
fn an_output_that_is_full_is_an_error() {
    for arguments in [&["completions", "bash"][..], &["info"], &["--help"], &["exec", "help"]] {
        let full = OpenOptions::new().write(true).open("/dev/full").expect("the device");
        let ran = Command::new(env!("CARGO_BIN_EXE_kv-tui")).args(arguments).stdout(full).output().expect("it runs");
        let printed = String::from_utf8_lossy(&ran.stderr);
        assert_eq!(ran.status.code(), Some(1), "{arguments:?}: {printed}");
        assert!(printed.contains("cannot write the output"), "{arguments:?}: {printed}");
    }
}

#[test]
fn a_node_whose_log_nobody_reads_goes_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let mut node = Command::new(env!("CARGO_BIN_EXE_kv-tui"))
        .args([kv_tui::NODE_MODE, "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(folder.path().join("n1"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(writer)
        .spawn()
        .expect("the node starts");
    drop(reader);
    let mut ready = String::new();
    let mut out = BufReader::new(node.stdout.take().expect("piped"));
    out.read_line(&mut ready).expect("a line");
    let address = ready.trim().rsplit(' ').next().expect("an address").to_owned();
    let exec = |words: &[&str]| run_with(&[&["exec", "--connect", &address, "--timeout", "30s"], words].concat(), b"");
    let waited = exec(&["wait", "ready"]);
    assert_eq!(waited.code, 0, "{ready}{}", waited.errors);
    assert_eq!(exec(&["put", "k", "v"]).code, 0);
    assert_eq!(exec(&["get", "k"]).text(), "v\n");
    let pid = i32::try_from(node.id()).ok().and_then(Pid::from_raw).expect("a process");
    kill_process(pid, Signal::TERM).expect("sent");
    assert_eq!(node.wait().expect("it ends").code(), Some(0));
}
