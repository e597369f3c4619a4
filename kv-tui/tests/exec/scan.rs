//! scan and count.

use serde_json::json;

use crate::support::Cluster;

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
