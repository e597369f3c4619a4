//! status, wait, and the dashboard that is printed once.

use serde_json::json;

use crate::op::{FACTS, moving};
use crate::support::{Cluster, run_with};

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
