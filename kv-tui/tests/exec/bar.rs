//! Every line gives the same in the command bar as in `exec`.

use std::collections::BTreeSet;

use clap::CommandFactory;
use kv_tui::command::Line;
use kv_tui::dashboard::msg::Feed;
use kv_tui::dashboard::source::command;
use kv_tui::dashboard::source::grpc::Grpc;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use crate::support::Cluster;

/// What a line prints, and how it ends.
#[derive(Debug, PartialEq, Eq)]
struct Result {
    printed: Vec<String>,
    code: i32,
    error: String,
}

impl Cluster {
    /// Runs a line as the command bar does.
    fn bar(&self, line: &str) -> Result {
        let (feed, mut reported) = mpsc::channel(10_000);
        let (_stop, stopped) = oneshot::channel();
        let source = Grpc { addresses: vec![self.addresses.clone()], read_only: false };
        let source = Grpc { addresses: source.addresses[0].split(',').map(str::to_owned).collect(), ..source };
        command::run(line, false, &source, &feed, stopped);
        let mut result = Result { printed: Vec::new(), code: -1, error: String::new() };
        while let Ok(feed) = reported.try_recv() {
            match feed {
                Feed::Output(lines) => result.printed.extend(lines.iter().map(|line| same(line))),
                Feed::Ended { code, error } => {
                    result.code = i32::from(code);
                    result.error = same(&error);
                }
                other => panic!("{other:?}"),
            }
        }
        result
    }

    /// Runs a line as a script of one line, with its position taken out of errors.
    fn script(&self, line: &str) -> Result {
        let ran = self.exec_with(&["--file", "-"], line.as_bytes());
        let reported =
            |line: &str| serde_json::from_str::<Value>(line).ok()?["error"]["message"].as_str().map(str::to_owned);
        let error = match ran.errors.split_once("error: ") {
            Some((_, error)) => Some(error.trim_end().to_owned()),
            None => ran.errors.lines().find_map(reported),
        };
        // Without an error, what stands on standard error are notes.
        let notes = if error.is_some() { "" } else { ran.errors.as_str() };
        let error = error.unwrap_or_default().replacen("-: line 1: ", "", 1);
        let text = ran.text();
        let printed: Vec<String> = notes.lines().chain(text.lines()).map(same).collect();
        Result { printed, code: ran.code, error: same(&error) }
    }
}

/// A line without what differs between two clusters: addresses, moments, contexts, and rates.
fn same(text: &str) -> String {
    let in_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, ':' | '.' | '-' | '_');
    let mut out = String::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c| !in_word(c)).unwrap_or(rest.len());
        let word = &rest[..end];
        out.push_str(match word {
            word if word.starts_with("127.0.0.1:") => "ADDRESS",
            word if word.starts_with("20") && word.ends_with('Z') && word.contains('T') => "MOMENT",
            // Contexts hold moments, too.
            _ if out.ends_with("\"context\":\"") => "CONTEXT",
            word => word,
        });
        let gap = rest[end..].find(in_word).map_or(rest.len(), |gap| end + gap);
        out.push_str(&rest[end..gap]);
        rest = &rest[gap..];
    }
    match out.rsplit_once(", ") {
        Some((counted, rate)) if rate.ends_with(" a second") => counted.to_owned(),
        _ => out,
    }
}

/// Lines of every command, in this order; later ones see what earlier ones changed.
const LINES: &[&str] = &[
    "put user:42 '{\"name\": \"안녕\"}'",
    "put \\x00\\xff v --ttl 1h",
    "put k v -c all",
    "put k",
    "get user:42",
    "get user:42 --output json",
    "get \\x00\\xff --output json",
    "get user:42 --all-replicas",
    "get absent",
    "get absent --output json",
    "get k -k nowhere",
    "scan",
    "scan user: --keys-only",
    "scan --limit 1 --output json",
    "del k",
    "get k",
    "count",
    "count --output json",
    "where user:42",
    "where user:42 --output json",
    "status",
    "status --output json",
    "wait ready",
    "node ls",
    "node ls --output json",
    "node show n1",
    "node show n9",
    "ring",
    "ring --grid",
    "ring --copies --output json",
    "keyspace create users --r 1 --w 1",
    "keyspace create locks --mode consistent",
    "keyspace create more --mode consistent --w 2",
    "keyspace ls",
    "put k v -k locks --if-absent --output json",
    "put k w -k locks --if-absent",
    "put k w --if-absent",
    "put k w -k locks -c one",
    "del k -k locks --if-context AAAA",
    "get k -k locks --all-replicas",
    "get k -k locks --all-replicas --output json",
    "keyspace drop users",
    "keyspace drop users --yes",
    "keyspace drop users --yes",
    "node add n9 --dry-run",
    "node weight n1 2 --dry-run",
    "copies 2 --dry-run",
    "rebalance --dry-run",
    "op ls",
    "op show 9",
    "op throttle 16MiB/s",
    "op throttle fast",
    "op retry 9",
    "repair 3",
    "repair 16 --output json",
    "fault ls",
    "fault cut n1,n2 | n3",
    "fault slow n1 40ms",
    "fault heal --output json",
    "events",
    "events --output json",
    "import /nonexistent/file",
    "scna",
    "get",
    "get 'k",
    "help",
    "put --help",
    "# nothing",
];

#[test]
fn a_line_gives_the_same_in_the_bar_and_in_exec() {
    let folder = tempfile::tempdir().expect("a folder");
    let records = crate::support::file(folder.path(), "records.ndjson", "{\"key\":\"i1\",\"value\":\"v\"}\n");
    let (by_bar, by_exec) = (Cluster::start(), Cluster::start());
    let import = format!("import {records}");
    for line in LINES.iter().copied().chain([import.as_str()]) {
        assert_eq!(by_bar.bar(line), by_exec.script(line), "{line}");
    }
    // A file is written once: the bar's is put aside before `exec` writes its own.
    let path = folder.path().join("exported");
    let line = format!("export {}", path.display());
    let (reported, kept) = (by_bar.bar(&line), std::fs::read_to_string(&path).expect("exported"));
    std::fs::remove_file(&path).expect("removed");
    assert_eq!(reported, by_exec.script(&line));
    assert_eq!(same(&kept), same(&std::fs::read_to_string(&path).expect("exported")));
}

#[test]
fn every_command_has_a_line() {
    // Files are named by a test; what `bench` prints is measured.
    let others = ["import", "export", "bench"];
    let tried: BTreeSet<&str> = LINES.iter().filter_map(|line| line.split(' ').next()).chain(others).collect();
    for command in Line::command().get_subcommands() {
        assert!(tried.contains(command.get_name()), "no line tries {}", command.get_name());
    }
}
