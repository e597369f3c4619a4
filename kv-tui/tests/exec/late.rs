//! What the node that is asked first does not know yet is asked for once more before it is called missing.

use std::time::{Duration, Instant};

use crate::{Cluster, with_a_spare};

#[test]
fn a_member_that_has_just_come_is_found() {
    let cluster = Cluster::start();
    with_a_spare(&cluster);
    let found = |looks: usize, arguments: &[&str]| {
        cluster.world.lock().expect("lock").joining = looks;
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
