//! put, get and del.

use serde_json::{Value, json};

use crate::support::{Cluster, file};

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
