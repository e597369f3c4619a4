//! node ls and show, and members that a node does not know yet.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Cluster, with_a_spare};

#[test]
fn nodes_are_listed_and_shown() {
    let cluster = Cluster::start();
    let nodes = cluster.json(&["node", "ls"]).json();
    assert_eq!(nodes.len(), 3);
    let primaries: u64 = nodes.iter().map(|node| node["primary"].as_u64().expect("a number")).sum();
    assert_eq!((primaries, &nodes[0]["partitions"]), (16, &json!(16)));
    assert_eq!((&nodes[0]["name"], &nodes[0]["state"], &nodes[0]["zone"]), (&json!("n1"), &json!("up"), &json!("z1")));
    assert_eq!((&nodes[2]["ownership"], &nodes[2]["fair_share"]), (&json!(0.333333), &json!(0.333333)));
    assert_eq!(cluster.json(&["node", "show", "n2"]).one()["leader"], json!(false));
    assert!(cluster.exec(&["node", "ls"]).text().starts_with("NODE  STATE  ADDRESS"));
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

#[test]
fn a_member_that_has_just_come_is_found() {
    let cluster = Cluster::start();
    with_a_spare(&cluster);
    let found = |looks: usize, arguments: &[&str]| {
        cluster.world().joining = looks;
        let ran = cluster.exec(arguments);
        assert_eq!(ran.code, 0, "{arguments:?}: {}", ran.errors);
    };
    found(1, &["node", "show", "n3"]);
    found(1, &["node", "weight", "n3", "2", "--dry-run"]);
    // It has said that it is ready, and joins now.
    found(4, &["node", "add", "n3", "--dry-run"]);
}

#[test]
fn a_member_that_does_not_come_is_waited_for_as_long_as_a_command_may_take() {
    let cluster = Cluster::start();
    let begin = Instant::now();
    let ran = cluster.exec(&["--timeout", "1s", "node", "add", "n9"]);
    assert_eq!(ran.code, 3, "{}", ran.errors);
    assert!(ran.errors.contains("no node \"n9\""), "{}", ran.errors);
    assert!(begin.elapsed() >= Duration::from_secs(1));
    // For everything else it would have to be a member already.
    let ran = cluster.exec(&["--timeout", "1s", "node", "remove", "n9"]);
    assert_eq!(ran.code, 3, "{}", ran.errors);
}
