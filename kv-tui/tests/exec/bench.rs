//! bench: what it measures, and when it fails.

use std::thread;

use serde_json::json;

use crate::support::Cluster;

#[test]
fn the_benchmark_verifies_what_it_wrote() {
    let cluster = Cluster::start();
    for transport in [&[][..], &["--unary"]] {
        let mut arguments = vec!["bench", "--seconds", "1", "--warm-up", "100ms", "--clients", "8", "--keys", "200"];
        arguments.extend(transport);
        let ran = cluster.json(&arguments);
        assert_eq!(ran.code, 0, "{}", ran.errors);
        let result = ran.one();
        let (reads, writes) = (&result["reads"]["operations"], &result["writes"]["operations"]);
        assert_eq!(
            reads.as_u64().zip(writes.as_u64()).map(|(reads, writes)| reads + writes),
            result["operations"].as_u64()
        );
        assert_eq!((&result["failures"], &result["lost"], &result["wrong"]), (&json!(0), &json!(0), &json!(0)));
        assert!(result["verified"].as_u64().is_some_and(|verified| verified > 0), "{result}");
        assert_eq!(result["verified"], result["sampled"]);
    }
    // A key whose writes are refused shows as failures, not as lost.
    cluster.world().refuses = Some(|_| true);
    let ran = cluster.json(&["bench", "--seconds", "1", "--warm-up", "1ms", "--keys", "1", "--reads", "0%"]);
    assert_eq!(ran.code, 5);
    assert!(ran.errors.contains("no operation succeeded: this key is refused"), "{}", ran.errors);
    assert_eq!(ran.one()["failures_by_kind"]["corrupt"], ran.one()["failures"]);
}

#[test]
fn two_benchmarks_at_once_do_not_blame_each_other() {
    let cluster = Cluster::start();
    let arguments = ["bench", "--seconds", "1", "--warm-up", "1ms", "--clients", "4", "--keys", "20", "--reads", "30%"];
    let runs = thread::scope(|scope| {
        let runs = [(); 2].map(|()| scope.spawn(|| cluster.json(&arguments)));
        runs.map(|run| run.join().expect("it ends"))
    });
    for run in &runs {
        let result = run.one();
        assert_eq!((run.code, &result["lost"], &result["wrong"]), (0, &json!(0), &json!(0)), "{}", run.errors);
        assert!(result["verified"].as_u64().is_some_and(|verified| verified > 0));
    }
    assert_ne!(runs[0].one()["prefix"], runs[1].one()["prefix"]);
}

#[test]
fn more_failures_than_are_allowed_are_a_failure() {
    let cluster = Cluster::start();
    // About one key of eight: the last digit of its number is 0 or 8.
    cluster.world().refuses = Some(|key| key.ends_with(b"0") || key.ends_with(b"8"));
    let bench = |more: &[&str]| {
        let mut arguments = vec!["bench", "--seconds", "1", "--warm-up", "1ms", "--keys", "64", "--reads", "0%"];
        arguments.extend(more);
        cluster.json(&arguments)
    };
    let failed = bench(&[]);
    assert_eq!(failed.code, 5);
    let says = ["operations failed", "1.0% may; --allow-failures sets it", "this key is refused"];
    assert!(says.iter().all(|says| failed.errors.contains(says)), "{}", failed.errors);
    let result = failed.one();
    assert!(result["operations"].as_u64() > Some(0) && result["failures"].as_u64() > Some(0), "{result}");
    let allowed = bench(&["--allow-failures", "50%"]);
    assert_eq!(allowed.code, 0, "{}", allowed.errors);
}
