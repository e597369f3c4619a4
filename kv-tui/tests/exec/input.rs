//! Arguments that are refused: the exit code, and what was probably meant.

use crate::support::{Cluster, file, run_with};

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
    check(&["put", "k", "v", "--if-absent"], 2, "use a keyspace of mode consistent");
    check(&["put", "k", "--value-file", "/nonexistent"], 1, "cannot read /nonexistent");
    check(&["node", "show", "n9"], 3, "the nodes are: n1, n2, n3");
    check(&["keyspace", "create", "No Name"], 2, "is not a name");
    check(&["keyspace", "create", "x", "--mode", "eventual"], 2, "possible values: available, consistent");
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
fn nothing_is_no_name() {
    let cluster = Cluster::start();
    assert_eq!(cluster.exec(&["put", "k", "v"]).code, 0);
    for arguments in [
        &["get", "k", "-k", ""][..],
        &["put", "k", "v", "--keyspace", ""],
        &["export", "-", "--keyspace="],
        &["node", "show", ""],
        &["node", "add", "", "--dry-run"],
        &["node", "zone", "n1", "", "--dry-run"],
        &["node", "kill", ""],
        &["keyspace", "drop", "", "--yes"],
        &["put", "k", "v", "--context", ""],
        &["scan", "--cursor", ""],
    ] {
        let ran = cluster.exec(arguments);
        assert!(ran.code == 2 && ran.errors.contains("it is empty"), "{arguments:?}: {} {}", ran.code, ran.errors);
    }
    let result = cluster.exec(&["get", "k", "-k", ""]).errors;
    assert!(result.contains("leave the option out for the keyspace default"), "{result}");
}

#[test]
fn what_was_probably_meant_is_said() {
    let cluster = Cluster::start();
    assert_eq!(cluster.exec(&["keyspace", "create", "sessions"]).code, 0);
    let check = |arguments: &[&str], code: i32, expected: &str| {
        let ran = cluster.exec(arguments);
        assert_eq!((ran.code, ran.errors.contains(expected)), (code, true), "{arguments:?}: {}", ran.errors);
    };
    check(&["get", "k", "-c", "quorm"], 2, "'quorum'");
    check(&["wait", "helthy"], 2, "'healthy'");
    check(&["keyspace", "create", "x", "--mode", "availabel"], 2, "'available'");
    check(&["keyspace", "create", "x", "--conflict", "siblngs"], 2, "'siblings'");
    check(&["status", "-o", "jsn"], 2, "'json'");
    check(&["get", "k", "-k", "sesions"], 3, "did you mean \"sessions\"?");
    check(&["count", "-k", "defualt"], 3, "did you mean \"default\"?");
    check(&["keyspace", "drop", "session", "--yes"], 3, "did you mean \"sessions\"?");
    check(&["node", "show", "N1"], 3, "did you mean \"n1\"?");
    check(&["node", "remove", "N2", "--dry-run"], 3, "did you mean \"n2\"?");
    let nothing = cluster.exec(&["get", "k", "-k", "orders"]);
    assert!(!nothing.errors.contains("did you mean"), "{}", nothing.errors);
    let theme = run_with(&["--theme", "drak", "--once", "--connect", &cluster.addresses], b"");
    assert!(theme.code == 2 && theme.errors.contains("'dark'"), "{}", theme.errors);
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
