//! What is typed arrives as it is, or is refused with what was probably meant.

use crate::fake::Cluster;
use crate::{file, run_with};

#[test]
fn a_script_stores_what_it_says() {
    let cluster = Cluster::start();
    let script = br#"put t {"a":1}
put q '{"a": "x y"}'
put path C:\dir\new
put it it's
"#;
    let ran = cluster.exec_with(&["--file", "-"], script);
    assert_eq!(ran.code, 0, "{}", ran.errors);
    for (key, expected) in [("t", r#"{"a":1}"#), ("q", r#"{"a": "x y"}"#), ("path", r"C:\dir\new"), ("it", "it's")] {
        assert_eq!(cluster.exec(&["-o", "raw", "get", key]).text(), expected);
    }
    let refused = |line: &str, expected: &str| {
        let ran = cluster.exec_with(&["--file", "-"], line.as_bytes());
        assert_eq!((ran.code, ran.errors.contains(expected)), (2, true), "{line}: {}", ran.errors);
    };
    refused("put k 'a'b", "is closed in the middle of a word");
    refused("put k 'ab", "is not closed");
    refused(r"put k a\ b", "stands in front of a space");
    refused(r#"put k {"a": 1}"#, "unexpected argument");
    refused(r#"put k {"a":"x y"}"#, "put them around the whole word");
    refused("put k --value-file -", "standard input is the script");
}

#[test]
fn scripts_are_text() {
    let cluster = Cluster::start();
    let marked = cluster.exec_with(&["--file", "-"], "\u{feff}put k v\nget k\n".as_bytes());
    assert_eq!((marked.code, marked.text().ends_with("v\n")), (0, true), "{}", marked.errors);
    let wide: Vec<u8> = "get k\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let wide = cluster.exec_with(&["--file", "-"], &wide);
    assert!(wide.code == 1 && wide.errors.contains("it is UTF-16LE text"), "{}", wide.errors);
    let packed = cluster.exec_with(&["--file", "-"], b"\x1f\x8b\x08");
    assert!(packed.errors.contains("it is gzip data: pipe it through gzip -dc"), "{}", packed.errors);
    let endless = cluster.exec(&["--file", "/dev/zero"]);
    assert_ne!(endless.code, 0);
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
    let told = cluster.exec(&["get", "k", "-k", ""]).errors;
    assert!(told.contains("leave the option out for the keyspace default"), "{told}");
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
fn a_value_file_is_read_as_far_as_a_value_may_be_long() {
    let cluster = Cluster::start();
    let folder = tempfile::tempdir().expect("a folder");
    let most = file(folder.path(), "most", &"x".repeat(1024 * 1024));
    assert_eq!(cluster.exec(&["put", "k", "--value-file", &most]).code, 0);
    let more = file(folder.path(), "more", &"x".repeat(1024 * 1024 + 1));
    let says = "has more than 1048576 bytes, which is the most that a value may have";
    for path in [more.as_str(), "/dev/zero"] {
        let ran = cluster.exec(&["put", "k", "--value-file", path]);
        assert_eq!((ran.code, ran.errors.contains(says)), (2, true), "{path}: {}", ran.errors);
    }
    let piped = cluster.exec_with(&["put", "k", "--value-file", "-"], &vec![0; 1024 * 1024 + 1]);
    assert_eq!((piped.code, piped.errors.contains(says)), (2, true), "{}", piped.errors);
    let path = folder.path().display().to_string();
    let ran = cluster.exec(&["put", "k", "--value-file", &path]);
    assert_eq!((ran.code, ran.errors.contains("is a folder; name a file")), (2, true), "{}", ran.errors);
}

#[test]
fn a_node_that_has_not_joined_says_why() {
    let cluster = Cluster::start();
    cluster.world().layout = None;
    cluster.world().keyspaces.clear();
    cluster.world().waiting = "joining: 127.0.0.1:1: connection refused".to_owned();
    for arguments in [&["node", "ls"][..], &["ring"], &["count"]] {
        let ran = cluster.exec(arguments);
        assert_eq!(ran.code, 5);
        let says = "belongs to no cluster yet: joining: 127.0.0.1:1: connection refused";
        assert!(ran.errors.contains(says) && !ran.errors.contains("0 of 0"), "{arguments:?}: {}", ran.errors);
    }
    let status = cluster.exec(&["status"]).text();
    assert!(status.contains("connection refused") && !status.contains("0 of 0"), "{status}");
}
