//! Consistent keyspaces: conditions of put and del, and how they fail.

use serde_json::{Value, json};

use crate::support::{Cluster, Ran};

fn with_locks() -> Cluster {
    let cluster = Cluster::start();
    let created = cluster.json(&["keyspace", "create", "locks", "--mode", "consistent"]);
    assert_eq!(created.code, 0, "{}", created.errors);
    cluster
}

fn context(ran: &Ran) -> String {
    ran.one()["context"].as_str().expect("a context").to_owned()
}

#[test]
fn a_condition_that_fails_shows_what_was_found() {
    let cluster = with_locks();
    let put = cluster.json(&["put", "k", "a", "-k", "locks", "--if-absent"]);
    assert_eq!((put.code, &put.one()["unchanged"]), (0, &json!(false)), "{}", put.errors);
    let first = context(&put);

    let again = cluster.json(&["put", "k", "b", "-k", "locks", "--if-absent"]);
    assert_eq!(again.code, 4);
    let found = again.one();
    assert_eq!((&found["unchanged"], &found["found"], &found["context"]), (&json!(true), &json!(true), &json!(first)));
    assert_eq!(found["versions"][0]["value"], json!("a"));
    let error: Value = serde_json::from_str(&again.errors).expect("JSON on standard error");
    let message = format!(
        "the condition does not hold, and nothing was written: k holds a; to go on from that, pass --if-context {first}"
    );
    let error_expected = json!({"kind": "conflict", "message": message, "retry": false});
    assert_eq!(error["error"], error_expected);

    let put = cluster.json(&["put", "k", "b", "-k", "locks", "--if-context", &first]);
    let second = context(&put);
    let stale = cluster.exec(&["del", "k", "-k", "locks", "--if-context", &first]);
    let said = format!(
        "error: the condition does not hold, and nothing was deleted: k holds b; to go on from that, pass --if-context {second}\n"
    );
    assert_eq!((stale.code, stale.out.len(), stale.errors), (4, 0, said));
    let raw = cluster.exec(&["-o", "raw", "put", "k", "c", "-k", "locks", "--if-context", &first]);
    assert_eq!((raw.code, raw.out.len()), (4, 0));
    let gone = cluster.json(&["del", "k", "-k", "locks", "--if-context", &second]);
    assert_eq!(gone.code, 0, "{}", gone.errors);
    let absent = cluster.json(&["put", "k", "c", "-k", "locks", "--if-context", &second]);
    assert_eq!((absent.code, &absent.one()["found"]), (4, &json!(false)));
    assert!(absent.errors.contains("nothing was written: k is absent"), "{}", absent.errors);
    assert_eq!(cluster.exec(&["put", "k", "c", "-k", "locks", "--if-context", &context(&gone)]).code, 0);
    assert_eq!(cluster.exec(&["get", "k", "-k", "locks", "--strict", "-c", "quorum"]).text(), "c\n");
}

#[test]
fn what_a_mode_does_not_serve_is_named_with_the_remedy() {
    let cluster = with_locks();
    let context = context(&cluster.json(&["put", "k", "v", "-k", "locks"]));
    let check = |line: &[&str], says: &str| {
        let ran = cluster.exec(line);
        assert_eq!((ran.code, ran.errors.contains(says)), (2, true), "{line:?}: {}", ran.errors);
    };
    check(&["put", "k", "v", "--if-absent"], "keyspace default is available");
    check(&["put", "k", "v", "--if-context", &context], "use a keyspace of mode consistent");
    check(&["put", "k", "v", "-k", "locks", "--context", &context], "(--if-context)");
    check(&["del", "k", "-k", "locks", "--context", &context], "(--if-context)");
    check(&["put", "other", "v", "-k", "locks", "--if-context", &context], "no read of this key");
    check(&["put", "k", "v", "-k", "locks", "--if-absent", "--if-context", &context], "cannot be used with");
    check(&["put", "k", "v", "-k", "locks", "-c", "one"], "leave the level out");
    check(&["get", "k", "-k", "locks", "-c", "all"], "leave the level out");
    check(&["get", "k", "-k", "locks", "-c", "local"], "possible values: one, quorum, all");
    check(&["del", "k", "-k", "locks", "--if-absent"], "--if-absent is a condition of put");
    for flag in [&["--r", "2"][..], &["--w", "1"], &["--strict"], &["--conflict", "lww"]] {
        let mut line = vec!["keyspace", "create", "more", "--mode", "consistent"];
        line.extend(flag);
        check(&line, &format!("{} is a setting of available keyspaces", flag[0]));
    }
    // The keyspace is another one when it was dropped and created again.
    assert_eq!(cluster.exec(&["--yes", "keyspace", "drop", "locks"]).code, 0);
    assert_eq!(cluster.exec(&["keyspace", "create", "filler"]).code, 0);
    assert_eq!(cluster.exec(&["keyspace", "create", "locks", "--mode", "consistent"]).code, 0);
    check(&["put", "k", "v", "-k", "locks", "--if-context", &context], "dropped and created again");
}

#[test]
fn an_inspection_shows_what_each_replica_has_promised_and_accepted() {
    let cluster = with_locks();
    let inspect = ["get", "k", "-k", "locks", "--all-replicas"];
    let nothing = cluster.exec(&inspect).text();
    assert!(nothing.contains(": nothing"), "{nothing}");
    assert_eq!(cluster.exec(&["put", "k", "v", "-k", "locks", "--ttl", "1h"]).code, 0);
    let shown = cluster.json(&inspect).one();
    let replicas = shown["replicas"].as_array().expect("replicas").clone();
    let answered: Vec<&Value> = replicas.iter().filter(|replica| replica["error"].is_null()).collect();
    assert_eq!(answered.len(), 2, "one is down");
    let accepted = &answered[0]["accepted"];
    let ballot = accepted["ballot"].as_str().expect("a ballot");
    assert!(ballot.starts_with("1.1.n") && answered[0]["promised"].as_str().is_some_and(|it| it.starts_with("1.2.n")));
    assert_eq!(
        (&accepted["version"], &accepted["value"], &accepted["deleted"]),
        (&json!(ballot), &json!("v"), &json!(false))
    );
    assert!(accepted["expires"].is_string(), "{accepted}");
    let text = cluster.exec(&inspect).text();
    assert!(text.contains(&format!(", has accepted {ballot}\n  version {ballot}  written ")), "{text}");
    assert_eq!(cluster.exec(&["del", "k", "-k", "locks"]).code, 0);
    let text = cluster.exec(&["where", "k", "-k", "locks"]).text();
    assert!(text.contains("(deleted)"), "{text}");
}

#[test]
fn values_side_by_side_are_not_imported() {
    let cluster = with_locks();
    let folder = tempfile::tempdir().expect("a folder");
    let lines = "{\"key\":\"one\",\"value\":\"v\"}\n{\"key\":\"k\",\"values\":[{\"value\":\"a\"},{\"value\":\"b\"}]}\n";
    let records = crate::support::file(folder.path(), "records.ndjson", lines);
    let ran = cluster.exec(&["import", &records, "-k", "locks", "--keep-going"]);
    assert!(
        ran.code == 2 && ran.errors.contains("keyspace locks is consistent, where a key has one"),
        "{}",
        ran.errors
    );
    assert_eq!(cluster.exec(&["get", "one", "-k", "locks"]).text(), "v\n");
}

#[test]
fn the_help_tells_conditions_and_modes() {
    let cluster = Cluster::start();
    let help = cluster.exec(&["put", "--help"]).text();
    assert!(
        help.contains("--if-absent") && help.contains("--if-context <CTX>") && help.contains("exit with 4"),
        "{help}"
    );
    let help = cluster.exec(&["del", "--help"]).text();
    assert!(help.contains("--if-context <CTX>") && !help.contains("--if-absent"), "{help}");
    let help = cluster.exec(&["keyspace", "create", "--help"]).text();
    assert!(help.contains("--mode <MODE>") && help.contains("consistent"), "{help}");
}
