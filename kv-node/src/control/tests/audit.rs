//! The audit trail: every change of the cluster, who made it, and the command that undoes it.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};

use kv_core::config::{Available, Mode};
use kv_core::topology::Change;
use kv_core::types::{NodeId, PartitionId, StoreId, WallTime};
use kv_core::version::Conflict;

use super::operations::{asked, begin, cluster, finish, layout};
use super::state::{descriptor, done, drop_keyspace, refused};
use crate::control::state::{Asked, AuditEntry, ClusterState, Command, KeyspaceSpec, Operation, OperationId};

/// What the commands since `after` have left in the trail: kind, who, command and undo of each.
fn lines(state: &ClusterState, after: u64) -> Vec<String> {
    let line = |entry: &AuditEntry| {
        let AuditEntry { by, kind, command, undo, .. } = entry;
        format!("{kind:?} | {by} | {command} | {undo}")
    };
    state.audit.after(after).map(line).collect()
}

/// The id of the next command that is checked: a repeated one would change nothing.
static NEXT: AtomicU64 = AtomicU64::new(0);

#[track_caller]
fn check(state: &mut ClusterState, command: Command, expected: &[&str]) {
    let after = state.audit.newest();
    done(state, 10_000 + u128::from(NEXT.fetch_add(1, Ordering::Relaxed)), command);
    assert_eq!(lines(state, after), expected);
}

fn create(name: &str, asked: Asked) -> Command {
    let spec = KeyspaceSpec {
        name: name.to_owned(),
        mode: Mode::Available(Available { r: 1, w: 2, strict: false, conflict: Conflict::Lww }),
    };
    Command::CreateKeyspace { spec, asked }
}

#[test]
fn every_change_says_who_made_it_and_what_undoes_it() {
    let mut state = cluster(3, 1);
    assert_eq!(
        lines(&state, 0),
        [
            "ClusterFounded | node n1 |  | ",
            "MemberJoined | node n2 |  | ",
            "MemberJoined | node n3 |  | ",
            "ClusterFormed | cluster |  | ",
            "MemberJoined | node n4 |  | node remove n4",
        ]
    );
    let state = &mut state;
    let made = "keyspace create a --r 1 --w 2 --conflict lww";
    check(state, create("a", asked(1)), &[&format!("KeyspaceCreated | ann | {made} | keyspace drop a")]);
    let made = made.replace(" a ", " b ");
    let spec = KeyspaceSpec { name: "locks".to_owned(), mode: Mode::Consistent };
    let locks = Command::CreateKeyspace { spec, asked: asked(2) };
    let line = "KeyspaceCreated | ann | keyspace create locks --mode consistent | keyspace drop locks";
    check(state, locks, &[line]);
    let unknown = Asked { by: String::new(), at: WallTime(9) };
    check(state, create("b", unknown), &[&format!("KeyspaceCreated | unknown | {made} | keyspace drop b")]);
    check(state, drop_keyspace("a"), &["KeyspaceDropped | unknown | keyspace drop a | "]);
    assert!(state.audit.after(0).last().unwrap().what.contains("nothing brings them back"));
    let limit = |bytes| Command::Throttle { bytes_per_second_max: NonZeroU64::new(bytes), asked: asked(3) };
    check(state, limit(4096), &["ThrottleChanged | ann | op throttle 4096B/s | op throttle off"]);
    check(state, limit(0), &["ThrottleChanged | ann | op throttle off | op throttle 4096B/s"]);

    let add = begin(state, &[Change::Weight { node: NodeId(4), weight: 2.0 }, Change::Add { node: NodeId(4) }]);
    check(state, add, &["OperationBegun | ann | node weight n4 2 and node add n4 | node remove n4"]);
    let operation = OperationId(1);
    let pause = Command::Pause { operation, asked: asked(4) };
    check(state, pause.clone(), &["OperationPaused | ann | op pause 1 | op resume 1"]);
    check(state, pause, &[]);
    let resume = Command::Resume { operation, asked: asked(4) };
    check(state, resume.clone(), &["OperationResumed | ann | op resume 1 | op pause 1"]);
    check(state, resume, &[]);
    let retry = |partitions| Command::Retry { operation, partitions, asked: asked(5) };
    check(state, retry(Vec::new()), &["OperationRetried | ann | op retry 1 | "]);
    let joint = layout(state).partition_ids().find(|id| layout(state).entry(*id).unwrap().joint.is_some()).unwrap();
    let named = format!("OperationRetried | ann | op retry 1 {} | ", joint.0);
    check(state, retry(vec![joint]), &[&named]);
    let after = state.audit.newest();
    finish(state, 500);
    assert_eq!(
        lines(state, after),
        ["OperationDone | ann | node weight n4 2 and node add n4 | node remove n4"],
        "its steps are no changes that anybody asked for, its end is one"
    );
    let Operation { moves_planned, copied, .. } = state.operation(operation).unwrap();
    let far = format!("done: {moves_planned} of {moves_planned} replicas moved, {} keys", copied.keys);
    let end = state.audit.after(after).next().unwrap();
    assert!(end.what.contains(&far), "{} without {far}", end.what);

    let remove = begin(state, &[Change::Remove { node: NodeId(2) }]);
    check(state, remove, &["OperationBegun | ann | node remove n2 | "]);
    let cancel = Command::Cancel { operation: OperationId(2), asked: asked(6) };
    check(state, cancel, &["OperationCancelled | ann | op cancel 2 | node remove n2"]);
    let entry = state.audit.after(0).last().unwrap();
    assert!(entry.what.contains("went back to their owners") && entry.kind.is_warning(), "{}", entry.what);
}

#[test]
fn what_changes_nothing_leaves_no_line() {
    let mut state = cluster(3, 1);
    let before = state.audit.clone();
    refused(&mut state, 700, drop_keyspace("none"));
    refused(
        &mut state,
        701,
        Command::Retry { operation: OperationId(1), partitions: vec![PartitionId(1)], asked: asked(1) },
    );
    let again = super::operations::descriptor(2, 2, 2);
    done(&mut state, 702, Command::Admit(again.clone()));
    assert_eq!(state.audit, before, "a restart is no change of the cluster");
    let moved = crate::control::state::NodeDescriptor {
        address: "elsewhere:1".to_owned(),
        ..super::operations::descriptor(2, 2, 3)
    };
    check(&mut state, Command::Admit(moved), &["MemberMoved | node n2 |  | "]);
    let wiped = crate::control::state::NodeDescriptor { replaces: vec![StoreId(3)], ..descriptor(3, 30, 1) };
    check(&mut state, Command::Admit(wiped), &["StoreReplaced | node n3 |  | "]);
}
