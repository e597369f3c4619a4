//! Changes of the topology: the plan that is shown, and that it is carried out.

use kv_proto::v1;
use serde_json::json;

use crate::support::{Cluster, with_a_spare};

#[test]
fn a_dry_run_shows_the_plan_and_changes_nothing() {
    let cluster = Cluster::start();
    with_a_spare(&cluster);
    for index in 0..50 {
        assert_eq!(cluster.exec(&["put", &format!("k{index}"), "v"]).code, 0);
    }
    let before = cluster.world().layout.clone();
    let plan = cluster.json(&["node", "add", "n3", "--dry-run"]);
    assert_eq!(plan.code, 0, "{}", plan.errors);
    let plan = plan.one();
    let hash = plan["hash"].as_str().expect("a hash").to_owned();
    assert_eq!((&plan["schema"], &plan["parent_epoch"], hash.len()), (&json!(1), &json!(1), 16));
    // 16 partitions of 2 copies on 3 nodes: the new one gets 10 or 11.
    let moves = plan["moves"].as_array().expect("moves");
    assert_eq!((moves.len(), &plan["moves_minimum"], &plan["moves_total"]), (10, &json!(10), &json!(10)));
    for step in moves {
        assert_eq!((&step["to"], &step["from"]), (&json!("n3"), &step["source"]), "{step}");
    }
    let keys: u64 = moves.iter().filter_map(|step| step["keys"].as_u64()).sum();
    assert!(keys > 0 && plan["keys"] == json!(keys) && plan["keys_of_all"] == json!(50), "{}", plan["keys"]);
    assert_eq!((&plan["nodes"][2]["after"]["partitions"], &plan["nodes"][2]["moves_in"]), (&json!(10), &json!(10)));
    assert_eq!((&plan["undo"], &plan["refusals"]), (&json!(["node remove n3"]), &json!([])));
    assert_eq!(plan["safety"]["copies_min"], json!(2));

    let table = cluster.exec(&["node", "add", "n3", "--dry-run", "--plan", &hash]);
    let text = table.text();
    for part in [
        &format!("plan {hash} for epoch 1: node add n3"),
        "0 → 10",
        "moves    10 replicas",
        "the minimum is 10",
        "C n3 = gets a copy",
        "safety   at least 2 of 2 copies of every key stay",
        "undo     node remove n3",
        &format!("to do it kv-tui exec node add n3 --plan {hash} --yes"),
    ] {
        assert!(text.contains(part), "{part:?} is missing:\n{text}{}", table.errors);
    }
    assert_eq!(cluster.exec(&["-o", "raw", "node", "add", "n3", "--dry-run"]).text(), format!("{hash}\n"));
    let other = cluster.exec(&["node", "add", "n3", "--weight", "2", "--zone", "z9", "--dry-run"]).text();
    assert!(other.contains("kv-tui exec node add n3 --zone z9 --weight 2 --plan"), "{other}");
    let stale = cluster.exec(&["node", "add", "n3", "--dry-run", "--plan", "0123456789abcdef"]);
    assert_eq!(stale.code, 4);
    assert!(stale.errors.contains("is stale"), "{}", stale.errors);
    assert_eq!(cluster.world().layout, before, "nothing has changed");
}

#[test]
fn exactly_the_previewed_plan_is_carried_out() {
    let cluster = Cluster::start();
    with_a_spare(&cluster);
    let hash = cluster.exec(&["-o", "raw", "node", "add", "n3", "--dry-run"]).text().trim().to_owned();
    let stale = cluster.exec(&["node", "add", "n3", "--plan", "0123456789abcdef"]);
    assert_eq!((stale.code, stale.errors.contains("is stale")), (4, true), "{}", stale.errors);
    assert!(cluster.world().operations.is_empty());
    let begun = cluster.json(&["node", "add", "n3", "--plan", &hash]).one();
    assert_eq!((&begun["id"], &begun["state"], &begun["plan"]), (&json!(1), &json!("running"), &json!(hash)));
    assert_eq!(begun["moves"], json!(10));
    cluster.world().operations[0].set_state(v1::OperationState::Done);
    assert_eq!(cluster.json(&["op", "watch"]).one()["state"], json!("done"));
    let nowhere = cluster.exec(&["node", "add", "127.0.0.1:1"]);
    assert_eq!(
        (nowhere.code, nowhere.errors.contains("start a node there with --join")),
        (5, true),
        "{}",
        nowhere.errors
    );
    let no_local = cluster.exec(&["node", "add"]);
    assert_eq!((no_local.code, no_local.errors.contains("is not the local one")), (2, true), "{}", no_local.errors);
}

#[test]
fn refused_changes_say_why_and_what_would_help() {
    let cluster = Cluster::start();
    with_a_spare(&cluster);
    let refused = |arguments: &[&str], code: i32, says: &str| {
        let ran = cluster.exec(arguments);
        assert_eq!(ran.code, code, "{arguments:?}: {}{}", ran.text(), ran.errors);
        assert!(ran.errors.contains(says), "{arguments:?}: {}", ran.errors);
    };
    refused(&["node", "add", "n9", "--dry-run"], 3, "the nodes are: n1, n2, n3");
    refused(&["node", "add", "n1", "--dry-run"], 4, "n1 owns partitions already; name a spare");
    refused(&["node", "remove", "n1", "--dry-run"], 4, "1 nodes are left for 2 copies; add a node first");
    refused(&["node", "weight", "n1", "0", "--dry-run"], 2, "weight 0");
    refused(&["copies", "0", "--dry-run"], 2, "0 is not in 1..");
    refused(&["node", "add", "n3", "--dry-run", "--plan", "8f3a"], 2, "16 hexadecimal digits");
    refused(&["node", "add", "n3", "--dry-run", "--limit", "fast"], 2, "is not a rate");
    let nothing = cluster.exec(&["node", "weight", "n1", "5", "--dry-run"]);
    assert_eq!(nothing.code, 0, "{}", nothing.errors);
    assert!(nothing.text().contains("every node holds every partition whatever its weight"), "{}", nothing.text());
    let replace = cluster.json(&["node", "replace", "n2", "n3", "--dry-run"]).one();
    assert_eq!((&replace["moves_total"], &replace["undo"]), (&json!(16), &json!([])));
    let created = cluster.json(&["copies", "3", "--dry-run"]).one();
    assert_eq!((&created["moves_total"], &created["notices"][0]["kind"]), (&json!(0), &json!("less")));
}

#[test]
fn a_limit_is_set_with_the_operation() {
    let cluster = Cluster::start();
    with_a_spare(&cluster);
    let add = |more: &[&str]| {
        let mut arguments = vec!["node", "add", "n3"];
        arguments.extend(more);
        cluster.exec(&arguments)
    };
    assert_eq!(add(&["--limit", "2MiB/s", "--dry-run"]).code, 0);
    assert_eq!(cluster.world().throttle, None, "a dry run changes nothing");
    cluster.world().busy = "an operation is running".to_owned();
    let refused = add(&["--limit", "2MiB/s"]);
    assert_eq!((refused.code, cluster.world().throttle), (4, None), "{}", refused.errors);
    cluster.world().busy = String::new();
    let begun = add(&["--limit", "2MiB/s"]);
    assert_eq!((begun.code, cluster.world().throttle), (0, Some(2 << 20)), "{}", begun.errors);
    assert!(begun.errors.contains("copies at most 2.0 MiB/s from now on"), "{}", begun.errors);
    assert!(add(&["--dry-run"]).code == 0 && add(&["--limit", "off"]).code == 0);
    assert_eq!(cluster.world().throttle, None);
}
