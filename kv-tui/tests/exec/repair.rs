//! repair.

use serde_json::{Value, json};

use crate::support::Cluster;

#[test]
fn a_repair_says_what_is_compared() {
    let cluster = Cluster::start();
    let begun = cluster.json(&["repair"]).one();
    assert_eq!(
        (&begun["partitions"], &begun["comparisons"], &begun["records"]),
        (&json!(16), &json!(96), &Value::Null)
    );
    let waited = cluster.json(&["repair", "3", "--wait"]).one();
    assert_eq!((&waited["partitions"], &waited["nodes"]["n2"]), (&json!(1), &json!(2)));
    assert_eq!((&waited["done"], &waited["failed"], &waited["records"]), (&json!(18), &json!(0), &json!(12)));
    let text = cluster.exec(&["repair", "3"]).text();
    assert_eq!(text.trim(), "1 partition is compared: 6 comparisons begun by n1, n2, n3");
    assert_eq!(cluster.json(&["repair", "16"]).code, 3);
    assert_eq!(cluster.json(&["repair", "all"]).code, 2);
}
