//! events and the audit trail.

use serde_json::{Value, json};

use crate::support::Cluster;

#[test]
fn events_of_all_nodes_are_listed() {
    let cluster = Cluster::start();
    let events = cluster.json(&["events"]).json();
    let nodes: Vec<&Value> = events.iter().map(|event| &event["node"]).collect();
    assert_eq!(nodes[..3], [&json!("n1"), &json!("n2"), &json!("n3")]);
    assert!(!cluster.exec(&["events"]).text().contains('\u{1b}'), "no escape reaches the screen");
}

#[test]
fn each_change_of_the_cluster_is_listed_once() {
    let cluster = Cluster::start();
    let audit = cluster.json(&["events", "--audit"]).json();
    let reported = audit.iter().map(|line| (&line["by"], &line["command"], &line["undo"], &line["node"]));
    let expected = [
        (&json!("ann@desk"), &json!("node add n4"), &json!("node remove n4"), &Value::Null),
        (&json!("bob@desk"), &json!("keyspace drop old"), &Value::Null, &Value::Null),
    ];
    assert!(reported.eq(expected), "each change once, although every node reports it: {audit:?}");
    let text = cluster.exec(&["events", "--audit"]).text();
    assert!(text.contains("n4 is being added  (by ann@desk; undo: node remove n4)"), "{text}");
    assert!(text.contains("keyspace old dropped  (by bob@desk; undo: nothing)"), "{text}");
}
