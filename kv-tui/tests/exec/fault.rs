//! fault.

use kv_core::types::NodeId;
use kv_proto::v1;
use serde_json::json;

use crate::support::{Cluster, run_with};

#[test]
fn a_cut_is_told_to_both_sides_and_healed() {
    let cluster = Cluster::start();
    assert_eq!(cluster.exec(&["fault", "ls"]).text().trim(), "no faults");
    let cut = cluster.json(&["fault", "cut", "n1,n2", "|", "n3"]).json();
    let link = |from: &str, to: &str| {
        json!({
            "schema": 1, "kind": "link", "from": from, "to": to, "both_ways": true, "cut": true, "delay_ms": 0, "jitter_ms": 0,
            "drop_percent": 0,
        })
    };
    assert_eq!(cut, [link("n1", "n3"), link("n2", "n3")]);
    let told = |node: u64| cluster.world().faults.get(&NodeId(node)).cloned().unwrap_or_default();
    let paths =
        |node: u64| told(node).links.iter().map(|link| (link.out.is_some(), link.back.is_some())).collect::<Vec<_>>();
    assert_eq!((paths(1), paths(2), paths(3)), (vec![(true, true)], vec![(true, true)], vec![(true, true); 2]));
    assert_eq!(told(1).links[0].address, cluster.addresses.split(",").nth(2).expect("three"));
    let status = cluster.exec(&["status"]).text();
    assert!(status.contains("faults are injected: n1 <-> n3: cut; n2 <-> n3: cut: fault heal"), "{status}");
    assert_eq!(cluster.exec(&["fault", "heal", "n1"]).text().lines().count(), 2, "a header, and the cut that is left");
    assert_eq!(cluster.exec(&["fault", "heal"]).text().trim(), "no faults");
    assert!((1..=3).all(|node| told(node) == v1::Faults::default()));
}

#[test]
fn faults_add_up_and_each_is_named() {
    let cluster = Cluster::start();
    for line in [
        "fault cut n3 --one-way --clients",
        "fault slow n1 40ms --jitter 10ms",
        "fault drop n1 5",
        "fault pause-disk n2",
        "fault clock n2 -2h",
    ] {
        let ran = cluster.exec(&line.split(' ').collect::<Vec<_>>());
        assert_eq!(ran.code, 0, "{line}: {}", ran.errors);
    }
    let text = String::from_utf8(cluster.exec(&["-o", "raw", "fault", "ls"]).out).expect("text");
    let expected = [
        "n1 -> n3\t40 to 50 ms slower, 5% of segments lost",
        "n1 <-> n2\t40 to 50 ms slower, 5% of segments lost",
        "n3 -> n1\tcut, 40 to 50 ms slower, 5% of segments lost",
        "n3 -> n2\tcut",
        "n3\tclients cannot read or write here",
        "n2\tits disk stands still",
        "n2\tits clock is 7200s behind",
    ];
    assert_eq!(text.lines().collect::<Vec<_>>(), expected);
    assert_eq!(cluster.json(&["fault", "slow", "default", "nowhere", "40"]).code, 3);
    for (line, code) in [
        ("fault cut n9", 3),
        ("fault cut n1 | n1", 2),
        ("fault cut n1,n2,n3", 2),
        ("fault cut n1 | n2 | n3", 2),
        ("fault slow n1 61s", 2),
        ("fault slow n1 soon", 2),
        ("fault slow n1 n2", 2),
        ("fault slow default default 5ms", 2),
        ("fault drop n1 91", 2),
        ("fault clock n1 late", 2),
        ("fault", 2),
    ] {
        let ran = cluster.exec(&line.split(' ').collect::<Vec<_>>());
        assert_eq!(ran.code, code, "{line}: {}", ran.errors);
    }
}

#[test]
fn a_client_on_one_side_of_a_cut_asks_no_other_node() {
    let cluster = Cluster::start();
    let first = cluster.addresses.split(',').next().expect("a node").to_owned();
    let only = |words: &[&str]| run_with(&[&["exec", "--only", "--connect", &first], words].concat(), b"");
    assert_eq!(only(&["put", "k", "v"]).code, 0);
    let told = only(&["node", "ls", "--output", "json"]);
    assert!(told.text().contains("n2"), "it is shown the others: {}", told.errors);
    let status = only(&["status"]).text();
    assert!(status.contains("n2 is not in reach (n2 is not among the nodes to which this client talks)"), "{status}");
    assert_eq!(run_with(&["exec", "--only", "status"], b"").code, 2, "it needs to be told which");
}
