//! keyspace create, ls and drop.

use kv_core::types::KeyspaceId;
use serde_json::json;

use crate::support::Cluster;

#[test]
fn keyspaces_are_created_and_dropped() {
    let cluster = Cluster::start();
    let created = cluster.json(&["keyspace", "create", "users", "--r", "1", "--conflict", "lww"]).one();
    assert_eq!((&created["r"], &created["w"], &created["conflict"]), (&json!(1), &json!(2), &json!("lww")));
    assert_eq!(cluster.exec(&["put", "k", "v", "-k", "users"]).code, 0);
    assert_eq!(cluster.exec(&["get", "k"]).code, 3);
    assert!(cluster.world().records.keys().any(|(keyspace, _)| *keyspace == KeyspaceId(1)));
    assert_eq!(cluster.exec(&["-o", "raw", "keyspace", "ls"]).text(), "default\nusers\n");
    assert_eq!(cluster.exec(&["--yes", "keyspace", "drop", "users"]).code, 0);
    assert_eq!(cluster.exec(&["keyspace", "drop", "users", "--yes"]).code, 3);
    assert_eq!(cluster.exec(&["-o", "raw", "keyspace", "ls"]).text(), "default\n");
}

#[test]
fn a_strict_keyspace_is_created_and_shown() {
    let cluster = Cluster::start();
    let created = cluster.json(&["keyspace", "create", "ledger", "--strict"]).one();
    assert_eq!((&created["strict"], &created["r"]), (&json!(true), &json!(2)));
    let listed: Vec<_> = cluster.json(&["keyspace", "ls"]).json().iter().map(|one| one["strict"].clone()).collect();
    assert_eq!(listed, [json!(false), json!(true)]);
}

#[test]
fn a_consistent_keyspace_is_shown_by_its_mode() {
    let cluster = Cluster::start();
    let created = cluster.json(&["keyspace", "create", "locks", "--mode", "consistent"]).one();
    let expected =
        json!({"schema": 1, "name": "locks", "id": 1, "mode": "consistent", "strict": true, "created": true});
    assert_eq!(created, expected);
    let listed = cluster.exec(&["keyspace", "ls"]).text();
    let rows: Vec<Vec<&str>> = listed.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["KEYSPACE", "MODE", "R", "W", "STRICT", "CONFLICT"]);
    assert_eq!(rows[1], ["default", "available", "2", "2", "no", "siblings"]);
    assert_eq!(rows[2], ["locks", "consistent", "-", "-", "yes", "-"]);
    let status = cluster.exec(&["status"]).text();
    assert!(status.contains("\n  2 keyspaces, of which consistent: locks\n"), "{status}");
    assert_eq!(cluster.json(&["status"]).one()["keyspaces"], json!({"available": 1, "consistent": 1}));
}
