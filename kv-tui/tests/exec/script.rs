//! Scripts: --file, and how its lines are read.

use crate::support::Cluster;

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
    refused(r"put k a\ b", "is in front of a space");
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
