//! ring and where.

use serde_json::json;

use crate::support::Cluster;

#[test]
fn the_ring_shows_who_owns_what() {
    let cluster = Cluster::start();
    let ring = cluster.json(&["ring"]).json();
    assert_eq!((ring.len(), &ring[0]["partitions"]), (3, &json!(16)));
    let grid = cluster.json(&["ring", "--grid"]).json();
    assert_eq!((grid.len(), &grid[1]["owners"]), (16, &json!(["n2"])));
    assert_eq!(cluster.json(&["ring", "--copies"]).json()[1]["owners"], json!(["n2", "n3", "n1"]));
}

#[test]
fn a_key_is_found_on_its_replicas() {
    let cluster = Cluster::start();
    assert_eq!(cluster.exec(&["put", "k", "v"]).code, 0);
    let place = cluster.json(&["where", "k"]).one();
    assert_eq!(place["replicas"].as_array().map(Vec::len), Some(3));
    let failed = place["replicas"].as_array().expect("replicas").iter().find(|replica| replica["node"] == "n3");
    assert_eq!(failed.map(|replica| &replica["error"]), Some(&json!("n3 is down")));
    assert_eq!(place["owners"], cluster.json(&["get", "k", "--all-replicas"]).one()["owners"]);
    assert_eq!(place["token"].as_str().map(str::len), Some(16));
}
