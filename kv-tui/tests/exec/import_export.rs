//! import and export: whole files, or none.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kv_testing::ScanFault;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tonic::Status;

use crate::support::{Cluster, file};

#[test]
fn imports_name_bad_lines_and_keep_what_was_imported() {
    let cluster = Cluster::start();
    let folder = tempfile::tempdir().expect("a folder");
    let good: String = (0..500).map(|index| format!("{{\"key\":\"k{index}\",\"value\":\"v{index}\"}}\n")).collect();
    let path =
        file(folder.path(), "mixed.ndjson", &format!("{good}\n{{\"key\":\n{{\"key\":\"late\",\"value\":\"v\"}}\n"));

    let stopped = cluster.json(&["import", &path]);
    assert_eq!(stopped.code, 1);
    let result = stopped.one();
    assert_eq!((&result["imported"], &result["failed"], &result["lines"]), (&json!(500), &json!(1), &json!(502)));
    assert!(stopped.errors.contains("line 502 is not JSON"), "{}", stopped.errors);
    assert!(stopped.errors.contains("the 500 records imported before stay"), "{}", stopped.errors);
    assert_eq!(cluster.exec(&["-o", "raw", "count"]).text(), "500\n");

    let all = cluster.json(&["import", "--keep-going", &path]);
    assert_eq!((all.code, &all.one()["imported"], &all.one()["failed"]), (1, &json!(501), &json!(1)));
    assert_eq!(cluster.exec(&["-o", "raw", "get", "late"]).text(), "v");

    // A record that the cluster refuses is named by its line, too.
    cluster.world().refuses = Some(|key| key == b"k7");
    let refused = cluster.json(&["import", "--keep-going", &path]);
    assert_eq!((refused.code, &refused.one()["failed"]), (1, &json!(2)));
    assert!(refused.errors.contains("line 8: this key is refused"), "{}", refused.errors);

    let piped = cluster.exec_with(&["-o", "raw", "import", "-", "-k", "default"], b"{\"key\":\"p\",\"value\":\"q\"}");
    assert_eq!((piped.code, piped.text().as_str()), (0, "1\n"));
    let broken = file(folder.path(), "broken.ndjson.gz", "no gzip");
    let broken = cluster.exec(&["import", &broken]);
    assert_eq!(broken.code, 1);
    assert!(broken.errors.contains("it is plain text or empty, and not gzip data"), "{}", broken.errors);
}

#[test]
fn an_interrupted_import_tells_what_it_did() {
    let cluster = Cluster::start();
    let mut child = Command::new(env!("CARGO_BIN_EXE_kv-tui"))
        .args(["exec", "--connect", &cluster.addresses, "--output", "json", "import", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut input = child.stdin.take().expect("piped");
    for index in 0..10 {
        writeln!(input, "{{\"key\":\"k{index}\",\"value\":\"v\"}}").expect("written");
    }
    input.flush().expect("written");
    while cluster.world().records.len() < 10 {
        std::thread::yield_now();
    }
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("a process");
    kill_process(pid, Signal::INT).expect("interrupted");
    let ran = child.wait_with_output().expect("ends while its input is open");
    drop(input);
    assert_eq!(ran.status.code(), Some(1));
    let result: Value = serde_json::from_slice(&ran.stdout).expect("JSON");
    assert_eq!(result["imported"], json!(10));
    let errors = String::from_utf8_lossy(&ran.stderr);
    assert!(errors.contains("interrupted behind line 10"), "{errors}");
}

#[test]
fn the_package_catalogue_is_imported_and_exported_whole() {
    let cluster = Cluster::start();
    let catalogue = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/packages.ndjson.gz");
    let imported = cluster.json(&["import", catalogue]);
    assert_eq!((imported.code, &imported.one()["imported"]), (0, &json!(20_000)), "{}", imported.errors);
    assert_eq!(cluster.exec(&["-o", "raw", "count"]).text(), "20000\n");

    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("out.ndjson").display().to_string();
    assert_eq!(cluster.exec(&["export", &path]).code, 0);
    let sorted = |text: String| {
        let mut lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        lines.sort_by_key(|line| line["key"].to_string());
        lines
    };
    let mut original = String::new();
    let file = fs::File::open(catalogue).expect("the catalogue");
    std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(file), &mut original).expect("text");
    assert!(sorted(fs::read_to_string(&path).expect("exported")) == sorted(original), "a record differs");
}

#[test]
fn an_export_is_imported_as_it_was() {
    let cluster = Cluster::start();
    let folder = tempfile::tempdir().expect("a folder");
    let nothing = cluster.json(&["get", "both"]).one();
    let context = nothing["context"].as_str().expect("a context");
    for arguments in [
        &["put", "plain", "v"][..],
        &["put", "short", "v", "--ttl", "1h"],
        &["put", r"\xfe", r"\xff"],
        &["put", "both", "a", "--context", context],
        &["put", "both", "b", "--context", context],
        &["put", "gone", "v"],
        &["del", "gone"],
    ] {
        assert_eq!(cluster.exec(arguments).code, 0);
    }
    for name in ["all.ndjson", "all.ndjson.gz", "all.ndjson.zst"] {
        let path = folder.path().join(name).display().to_string();
        let exported = cluster.json(&["export", &path]);
        assert_eq!((exported.code, &exported.one()["exported"]), (0, &json!(4)), "{}", exported.errors);
        let again = cluster.exec(&["export", &path]);
        assert!(again.code == 1 && again.errors.contains("exists"), "{}", again.errors);

        let other = Cluster::start();
        let imported = other.json(&["import", &path]);
        assert_eq!((imported.code, &imported.one()["imported"]), (0, &json!(4)), "{}", imported.errors);
        let values = |cluster: &Cluster, key: &str| -> Vec<(Value, bool)> {
            let got = cluster.json(&["get", key]).one();
            let versions = got["versions"].as_array().expect("versions").clone();
            let mut values: Vec<_> = versions
                .into_iter()
                .map(|version| (version["value"].clone(), version["expires"].is_string()))
                .collect();
            values.sort_by_key(|(value, _)| value.to_string());
            values
        };
        for key in ["plain", "short", r"\xfe", "both", "gone"] {
            assert_eq!(values(&other, key), values(&cluster, key), "{key} in {name}");
        }
    }
    let lines = cluster.exec(&["export", "-", "pl"]);
    assert_eq!(lines.text(), "{\"key\":\"plain\",\"value\":\"v\"}\n");
}

/// The names in a folder.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn an_export_that_fails_leaves_no_file() {
    let cluster = Cluster::start();
    let folder = tempfile::tempdir().expect("a folder");
    for index in 0..120 {
        assert_eq!(cluster.exec(&["put", &format!("k{index:03}"), "v"]).code, 0);
    }
    for name in ["out.ndjson", "out.ndjson.gz", "out.ndjson.zst"] {
        let path = folder.path().join(name).display().to_string();
        let unknown = cluster.exec(&["export", &path, "-k", "nope"]);
        assert_eq!((unknown.code, names(folder.path()).len()), (3, 0), "{}", unknown.errors);
        // The cluster answers the first page, and then no more.
        cluster.world().scan_fault = Some(ScanFault::Break(1, Status::data_loss("no more pages")));
        let failed = cluster.exec(&["export", &path]);
        assert_ne!(failed.code, 0);
        assert!(names(folder.path()).is_empty(), "{name}: {:?}", names(folder.path()));
        cluster.world().scan_fault = None;
        let again = cluster.json(&["export", &path]);
        assert_eq!((again.code, &again.one()["exported"]), (0, &json!(120)), "{}", again.errors);
        assert_eq!(names(folder.path()), [name], "nothing blocks the next try, and nothing is left beside it");
        let held = fs::read(&path).expect("readable");
        let refused = cluster.exec(&["export", &path]);
        assert_eq!(refused.code, 1);
        assert!(refused.errors.contains("it exists already; name another file"), "{}", refused.errors);
        assert_eq!(fs::read(&path).expect("readable"), held);
        fs::remove_file(&path).expect("removed");
    }
    let nowhere = cluster.exec(&["export", "/nonexistent/out"]);
    assert!(nowhere.code == 1 && nowhere.errors.contains("cannot write /nonexistent/out"), "{}", nowhere.errors);
}

#[test]
fn a_signal_ends_an_export_without_a_file() {
    let cluster = Cluster::start();
    assert_eq!(cluster.exec(&["put", "k", "v"]).code, 0);
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let folder = tempfile::tempdir().expect("a folder");
        cluster.world().scan_fault = Some(ScanFault::Hang);
        let mut child = Command::new(env!("CARGO_BIN_EXE_kv-tui"))
            .args(["exec", "--connect", &cluster.addresses, "--timeout", "60s", "export"])
            .arg(folder.path().join("out.ndjson.zst"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let deadline = Instant::now() + Duration::from_secs(30);
        while names(folder.path()).is_empty() && Instant::now() < deadline {
            std::thread::yield_now();
        }
        let names_during = names(folder.path());
        assert!(names_during.iter().all(|name| name.ends_with(".part")), "{names_during:?}");
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("a process");
        kill_process(pid, signal).expect("sent");
        let status = child.wait().expect("it ends");
        assert_eq!(status.code(), Some(1), "{signal:?}");
        assert!(names(folder.path()).is_empty(), "{signal:?}: {:?}", names(folder.path()));
        cluster.world().scan_fault = None;
    }
}

#[test]
fn every_frame_and_member_is_imported_and_checked() {
    let cluster = Cluster::start();
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["part.ndjson.gz", "part.ndjson.zst"] {
        let mut both = Vec::new();
        for half in ["a", "b"] {
            let (key, path) = (format!("{half}:{name}"), folder.path().join(format!("{half}-{name}")));
            assert_eq!(cluster.exec(&["put", &key, "v"]).code, 0);
            assert_eq!(cluster.exec(&["export", &path.display().to_string(), &key]).code, 0);
            assert_eq!(cluster.exec(&["del", &key, "--yes"]).code, 0);
            both.extend(fs::read(path).expect("exported"));
        }
        let write = |bytes: &[u8]| {
            let path = folder.path().join(name);
            fs::write(&path, bytes).expect("written");
            path.display().to_string()
        };
        let imported = cluster.json(&["import", &write(&both)]);
        assert_eq!((imported.code, &imported.one()["imported"]), (0, &json!(2)), "{}", imported.errors);
        let trailing = cluster.json(&["import", &write(&[&both[..], b"some garbage at the end"].concat())]);
        assert_eq!((trailing.code, &trailing.one()["imported"]), (1, &json!(2)));
        assert!(trailing.errors.contains("comes something"), "{}", trailing.errors);
        let cut = cluster.json(&["import", &write(&both[..both.len() - 3])]);
        assert_eq!(cut.code, 1);
        assert!(cut.errors.contains("cut off"), "{}", cut.errors);
    }
}

#[test]
fn what_is_no_text_of_records_is_named() {
    let cluster = Cluster::start();
    let folder = tempfile::tempdir().expect("a folder");
    let record = "{\"key\":\"marked\",\"value\":\"v\"}\n";
    let check = |name: &str, content: &[u8], expected: &str| {
        let path = folder.path().join(name);
        fs::write(&path, content).expect("written");
        let ran = cluster.exec(&["import", &path.display().to_string()]);
        assert_eq!((ran.code, ran.errors.contains(expected)), (1, true), "{name}: {}", ran.errors);
    };
    let wide: Vec<u8> = [0xfeff].into_iter().chain(record.encode_utf16()).flat_map(u16::to_le_bytes).collect();
    check("wide.ndjson", &wide, "it is UTF-16LE text, and only UTF-8 is read: iconv -f UTF-16LE");
    check("plain.gz", record.as_bytes(), "not gzip data: name it without .gz");
    check("archive.zip", b"PK\x03\x04", "it is a zip archive, which is not unpacked here: unzip -p");
    check("data.ndjson", b"\x1f\x8b\x08\0\0\0", "it is gzip data: let its name end in .gz, or gzip -dc");
    let marked = file(folder.path(), "marked.ndjson", &format!("\u{feff}{record}"));
    assert_eq!(cluster.exec(&["import", &marked]).code, 0);
    assert_eq!(cluster.exec(&["get", "marked"]).text(), "v\n");
    let piped = cluster.exec_with(&["import", "-"], b"\x1f\x8b\x08");
    assert!(piped.errors.contains("-: it is gzip data: pipe it through gzip -dc"), "{}", piped.errors);
    let folder = cluster.exec(&["import", &folder.path().display().to_string()]);
    assert!(folder.errors.contains("it is a folder"), "{}", folder.errors);
}
