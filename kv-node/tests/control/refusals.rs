//! Starts and reports that make no sense are refused with the reason and the remedy.

use kv_core::config::{Available, Mode};
use kv_core::types::{Incarnation, StoreId};
use kv_core::version::Conflict;
use kv_node::control::{
    Command, FileError, Founding, KeyspaceSpec, MembershipStatus, ProposeError, RaftKind, RefusalKind, StartError,
    StartMode, remembered,
};

use crate::world::{Spec, World, address, create, drop_keyspace, propose, run, until_membership, until_state};

/// Starts `spec` and checks how the cluster refuses it.
async fn check_refused(world: &World, spec: &Spec, kind: RefusalKind, message: &str) {
    let control = world.start(spec).await;
    let membership = until_membership(&control, "a refusal", |s| matches!(s, MembershipStatus::Refused(_))).await;
    let MembershipStatus::Refused(refusal) = membership else { unreachable!("waited for") };
    assert_eq!((refusal.kind, refusal.message.as_str()), (kind, message));
    world.stop(spec, control).await;
}

/// Starts `spec` and checks why it does not start.
async fn check_not_started(world: &World, spec: &Spec, message: &str) {
    let error = world.try_start(spec).await.unwrap_err();
    assert_eq!(error.to_string(), message);
}

#[test]
fn a_name_that_is_taken_is_refused() {
    run(async {
        let world = World::new();
        let _nodes = world.cluster(3).await;
        let twin = Spec { name: "n2".to_owned(), ..Spec::joiner(9) };
        let message = "the name n2 belongs to n2 at n2:7400 with store 00000000000003ea; choose another name, or, if \
                       that store is lost for good, start this node with --replaces 00000000000003ea";
        // Numbers follow the order of arrival, so the second node to come has number 2.
        check_refused(&world, &twin, RefusalKind::Exists, message).await;
        let wrong = Spec { replaces: Some(StoreId(5)), ..Spec::joiner(8) };
        let message = "no member named n8 has store 0000000000000005; check the name and the store id";
        check_refused(&world, &wrong, RefusalKind::NotFound, message).await;
    });
}

#[test]
fn flags_that_do_not_fit_a_used_directory_are_refused() {
    run(async {
        let world = World::new();
        let nodes = world.cluster(2).await;
        let mut specs = Vec::new();
        for (spec, control) in nodes {
            world.stop(&spec, control).await;
            specs.push(spec.rebooted());
        }
        let other = Founding { expect: 1, copies: 2, partitions: 8 };
        let founder = Spec { start_mode: StartMode::Bootstrap(other), ..specs[0].clone() };
        let message = "the directory was founded with --expect 2 --copies 3 --partitions 16, not 1, 2 and 8; start the \
                       node with these values or without the flags, or with an empty directory to found another cluster";
        check_not_started(&world, &founder, message).await;
        let joiner = Spec { start_mode: StartMode::Bootstrap(other), ..specs[1].clone() };
        let message = "the directory belongs to a node that joined a cluster; start it without --bootstrap, or with an \
                       empty directory to found another cluster";
        check_not_started(&world, &joiner, message).await;

        // The flags of the first start, and none at all, are fine.
        let control = world.start(&specs[0]).await;
        until_membership(&control, "a member", |s| matches!(s, MembershipStatus::Member { .. })).await;
        let resumed = Spec { start_mode: StartMode::Resume, ..specs[1].clone() };
        let second = world.start(&resumed).await;
        until_state(&control, "its second boot", |state| {
            state.member_named("n2").is_some_and(|(_, member)| member.incarnation.boot == 2)
        })
        .await;
        world.stop(&resumed, second).await;
        let renamed = Spec { name: "elsewhere".to_owned(), ..specs[1].rebooted() };
        let message = "n2 is known with name n2, not elsewhere; start it with --name n2 or without the flag";
        check_refused(&world, &renamed, RefusalKind::Precondition, message).await;
    });
}

#[test]
fn an_empty_directory_must_be_told_what_to_do() {
    run(async {
        let world = World::new();
        let resumed = Spec { start_mode: StartMode::Resume, ..Spec::joiner(1) };
        let error = world.try_start(&resumed).await.unwrap_err();
        assert!(matches!(error, StartError::Flags(_)), "{error}");
        assert!(error.to_string().ends_with("start the node with --bootstrap or --join"), "{error}");
        let nowhere = Spec { start_mode: StartMode::Join(Vec::new()), ..Spec::joiner(1) };
        check_not_started(&world, &nowhere, "--join names no address; name at least one node of the cluster").await;
        let odd = Founding { partitions: 100, ..Founding::default() };
        let odd = Spec { start_mode: StartMode::Bootstrap(odd), ..Spec::joiner(1) };
        check_not_started(&world, &odd, "partitions is 100; it must be a power of two from 1 to 65536").await;
        assert_eq!(remembered(&world.path().join("n1")).unwrap(), None, "a refused start leaves nothing behind");
    });
}

#[test]
fn a_node_of_another_cluster_is_refused() {
    run(async {
        let world = World::new();
        let _first = world.cluster(1).await;
        let mut stranger = Spec::founder(5, 1);
        let control = world.start(&stranger).await;
        until_membership(&control, "a member", |s| matches!(s, MembershipStatus::Member { .. })).await;
        let known = remembered(&world.path().join("n5")).unwrap().unwrap();
        assert_eq!(known.member.unwrap().1.name, "n5");
        world.stop(&stranger, control).await;
        // It is told to report to the first cluster, whose node has the only address it knows.
        stranger = Spec { start_mode: StartMode::Join(vec![address(1)]), ..stranger.rebooted() };
        stranger.incarnation.boot = 2;
        let joiner = Spec::joiner(2);
        let second = world.start(&joiner).await;
        until_membership(&second, "a member", |s| matches!(s, MembershipStatus::Member { .. })).await;
        world.stop(&joiner, second).await;
        let control = world.start(&stranger).await;
        // Alone it is a whole cluster of its own, so it goes on as that and never becomes a member of the other.
        until_state(&control, "its second boot", |state| {
            state.member_named("n5").is_some_and(|(_, member)| member.incarnation.boot == 2)
        })
        .await;
        world.stop(&stranger, control).await;
        // A member of the first cluster that is sent to the second is refused by it.
        let other = world.start(&Spec { start_mode: StartMode::Resume, ..stranger.rebooted() }).await;
        until_membership(&other, "a member", |s| matches!(s, MembershipStatus::Member { .. })).await;
        world.cut(&Spec::founder(1, 1));
        let lost = Spec { start_mode: StartMode::Join(vec![address(5)]), ..joiner.rebooted() };
        let message = "n2 belongs to another cluster, or to another generation of this one (group 00000000000003e9, this is \
                       00000000000003ed); check the addresses given to --join, or start it with an empty directory";
        check_refused(&world, &lost, RefusalKind::Foreign, message).await;
    });
}

#[test]
fn an_older_copy_of_a_store_is_refused() {
    run(async {
        let world = World::new();
        let mut nodes = world.cluster(3).await;
        let (spec, control) = nodes.remove(2);
        world.stop(&spec, control).await;
        let spec = spec.rebooted();
        let control = world.start(&spec).await;
        until_state(&nodes[0].1, "the second boot", |state| {
            state.member_named("n3").is_some_and(|(_, member)| member.incarnation.boot == 2)
        })
        .await;
        world.stop(&spec, control).await;

        // The directory is put back as it was before the second boot: the same boot comes again, with another nonce.
        let mut older = spec.clone();
        older.incarnation = Incarnation { nonce: 8, ..older.incarnation };
        let control = world.start(&older).await;
        let membership = until_membership(&control, "a refusal", |s| matches!(s, MembershipStatus::Refused(_))).await;
        let MembershipStatus::Refused(refusal) = membership else { unreachable!("waited for") };
        assert_eq!(refusal.kind, RefusalKind::RolledBack, "{refusal}");
        world.stop(&older, control).await;

        // The shell draws a new store id; the node goes on under its number.
        let mut renewed = older.clone();
        renewed.incarnation.store.0 += 500;
        let control = world.start(&renewed).await;
        let state =
            until_state(&control, "the new store", |state| state.member_of(renewed.incarnation.store).is_some()).await;
        assert_eq!(state.member_of(renewed.incarnation.store).unwrap().1.name, "n3");
        assert_eq!(state.members.len(), 3);
        assert!(propose(&control, create("after")).await.is_ok());
    });
}

#[test]
fn damaged_files_are_named() {
    run(async {
        let world = World::new();
        let mut nodes = world.cluster(1).await;
        let (spec, control) = nodes.remove(0);
        for round in 0..3 {
            propose(&control, create(&format!("ks-{round}"))).await.unwrap();
        }
        world.stop(&spec, control).await;
        let dir = world.path().join(&spec.dir);
        let log = std::fs::read_dir(&dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .find(|path| path.extension().is_some_and(|extension| extension == "log"));
        for file in [dir.join("identity"), dir.join("newest"), dir.join("vote"), log.unwrap()] {
            let good = std::fs::read(&file).unwrap();
            let mut bad = good.clone();
            bad[40.min(good.len() - 1)] ^= 1;
            std::fs::write(&file, bad).unwrap();
            let error = world.try_start(&spec.rebooted()).await.unwrap_err();
            assert!(matches!(error, StartError::File(FileError::Corrupt { .. })), "{}: {error}", file.display());
            assert!(error.to_string().starts_with(&format!("{} is damaged", file.display())), "{error}");
            std::fs::write(&file, good).unwrap();
        }
        let control = world.start(&spec.rebooted()).await;
        assert!(propose(&control, create("after")).await.is_ok(), "the files were put back as they were");
    });
}

#[test]
fn the_only_store_of_a_cluster_cannot_be_renewed() {
    run(async {
        let world = World::new();
        let mut nodes = world.cluster(1).await;
        let (mut spec, control) = nodes.remove(0);
        world.stop(&spec, control).await;
        spec.incarnation.store.0 += 1;
        let error = world.try_start(&spec).await.unwrap_err();
        assert!(matches!(error, StartError::StoreLost { .. }), "{error}");
    });
}

#[test]
fn keyspaces_are_checked() {
    run(async {
        let world = World::new();
        let nodes = world.cluster(1).await;
        let control = &nodes[0].1;
        let check = async |command: Command, kind: RefusalKind, message: &str| {
            let ProposeError::Refused(refusal) = propose(control, command).await.unwrap_err() else {
                panic!("not refused")
            };
            assert_eq!((refusal.kind, refusal.message.as_str()), (kind, message));
        };
        let message = "keyspace default exists already; use it, drop it, or choose another name";
        check(create("default"), RefusalKind::Exists, message).await;
        let Command::CreateKeyspace { spec, asked } = create("default") else { unreachable!("made above") };
        let command = Command::CreateKeyspace { spec: KeyspaceSpec { mode: Mode::Consistent, ..spec }, asked };
        let message =
            "keyspace default exists already and is available, not consistent; use it, drop it, or choose another name";
        check(command, RefusalKind::Exists, message).await;
        let message = "there is no keyspace nope; list the keyspaces to see their names";
        check(drop_keyspace("nope"), RefusalKind::NotFound, message).await;
        let message = "keyspace default is there from the start and stays; delete its keys";
        check(drop_keyspace("default"), RefusalKind::Precondition, message).await;
        let message = "keyspace \"\" is not possible; it has 1 to 63 of a-z, 0-9, '-', '_' and '.', and starts with a \
                       letter or digit";
        check(create(""), RefusalKind::Invalid, message).await;
        let Command::CreateKeyspace { spec, asked } = create("zero") else { unreachable!("made above") };
        let mode = Mode::Available(Available { r: 2, w: 0, strict: false, conflict: Conflict::Siblings });
        let command = Command::CreateKeyspace { spec: KeyspaceSpec { mode, ..spec }, asked };
        check(command, RefusalKind::Invalid, "w is 0; it must be from 1 to 16").await;
        let long = create(&"x".repeat(4 * 1024 * 1024));
        assert!(matches!(propose(control, long).await, Err(ProposeError::TooLong { .. })));
    });
}

#[test]
fn garbage_from_the_network_is_answered_and_harmless() {
    run(async {
        let world = World::new();
        let nodes = world.cluster(1).await;
        let control = &nodes[0].1;
        for kind in [
            RaftKind::Append,
            RaftKind::Vote,
            RaftKind::Snapshot,
            RaftKind::Propose,
            RaftKind::Report,
            RaftKind::CatchUp,
        ] {
            for payload in [&b""[..], &[0xff; 100], &[0; 4096]] {
                assert!(!control.handle_raft(kind, payload).await.is_empty());
            }
        }
        assert!(propose(control, create("after")).await.is_ok());
    });
}
