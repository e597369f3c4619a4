//! Nodes and majorities are lost and come back.

use std::sync::Arc;
use std::time::Duration;

use kv_core::types::KeyspaceId;
use kv_node::control::{Done, MembershipStatus, ProposeError};

use crate::world::{
    Spec, World, create, drop_keyspace, leader_of, propose, run, until_equal, until_membership, until_state,
    until_status,
};

#[test]
fn all_nodes_restart_and_go_on() {
    run(async {
        let world = World::new();
        let nodes = world.cluster(3).await;
        propose(&nodes[1].1, create("kept")).await.unwrap();
        let controls: Vec<_> = nodes.iter().map(|(_, control)| control).collect();
        let before = until_state(controls[1], "the keyspace", |state| state.keyspace_named("kept").is_some()).await;
        let mut specs = Vec::new();
        for (spec, control) in nodes {
            world.stop(&spec, control).await;
            specs.push(spec.rebooted());
        }
        let mut nodes = Vec::new();
        for spec in specs {
            let control = world.start(&spec).await;
            nodes.push((spec, control));
        }
        for (spec, control) in &nodes {
            let state = until_state(control, "the new boots", |state| {
                state.members.values().all(|member| member.incarnation.boot == 2)
            })
            .await;
            assert_eq!(state.identity(), before.identity(), "{}", spec.name);
            assert_eq!(state.keyspaces, before.keyspaces);
            let layout = |state: &kv_node::control::ClusterState| Arc::clone(state.layout.as_ref().unwrap());
            assert_eq!(layout(&state), layout(&before), "a restart is no new epoch");
        }
        assert_eq!(propose(&nodes[2].1, create("more")).await, Ok(Done::KeyspaceCreated { id: KeyspaceId(2) }));
    });
}

#[test]
fn a_node_alone_serves_the_newest_state_and_says_why_nothing_changes() {
    run(async {
        let world = World::new();
        let mut nodes = world.cluster(3).await;
        propose(&nodes[0].1, create("kept")).await.unwrap();
        let before = until_state(&nodes[2].1, "the keyspace", |state| state.keyspace_named("kept").is_some()).await;
        let last = nodes[2].0.rebooted();
        for (spec, control) in nodes.drain(..) {
            world.stop(&spec, control).await;
        }

        let alone = world.start(&last).await;
        // At once: nothing was waited for, and nobody else is there.
        assert_eq!(*alone.state().borrow(), before);
        assert!(matches!(*alone.membership().borrow(), MembershipStatus::Member { .. }));
        assert_eq!(alone.leader(), None);
        let error = alone.propose(create("x"), Duration::from_millis(1500)).await.unwrap_err();
        let ProposeError::NoLeader { reason } = &error else { panic!("{error}") };
        assert!(reason.starts_with("1 of 3 voters reachable (n1 is "), "{error}");
        assert!(error.to_string().ends_with("changes of the cluster wait for a majority of the voters"), "{error}");
        assert_eq!(*alone.state().borrow(), before, "a failed change changes nothing");
    });
}

#[test]
fn the_leader_is_lost_and_comes_back() {
    run(async {
        let world = World::new();
        let mut nodes = world.cluster(3).await;
        let (spec, control) = nodes.remove(leader_of(&nodes).await);
        let term = control.status().borrow().term;
        world.stop(&spec, control).await;

        assert!(propose(&nodes[0].1, create("while-away")).await.is_ok());
        until_status(&nodes[0].1, "a later term", |status| status.term > term).await;
        assert!(propose(&nodes[1].1, create("too")).await.is_ok());

        let back = world.start(&spec.rebooted()).await;
        until_state(&back, "what it missed", |state| state.keyspace_named("too").is_some()).await;
        assert!(propose(&back, drop_keyspace("too")).await.is_ok());
        until_state(&back, "its own command", |state| state.keyspace_named("too").is_none()).await;
    });
}

#[test]
fn a_leader_without_a_majority_changes_nothing_and_follows_the_new_one() {
    run(async {
        let world = World::new();
        let nodes = world.cluster(3).await;
        let old = leader_of(&nodes).await;
        world.cut(&nodes[old].0);
        until_status(&nodes[old].1, "the loss of the majority", |status| !status.is_leader).await;
        let error = nodes[old].1.propose(create("minority"), Duration::from_millis(500)).await.unwrap_err();
        assert!(matches!(error, ProposeError::NoLeader { .. }), "{error}");

        let other = usize::from(old == 0);
        assert!(propose(&nodes[other].1, create("majority")).await.is_ok());
        world.mend(&nodes[old].0);
        until_state(&nodes[old].1, "the majority's change", |state| state.keyspace_named("majority").is_some()).await;
        let controls: Vec<_> = nodes.iter().map(|(_, control)| control).collect();
        let state = until_equal(&controls).await;
        assert!(state.keyspace_named("minority").is_none());
    });
}

#[test]
fn changes_from_several_nodes_at_once_are_all_applied_once() {
    run(async {
        let world = World::new();
        let nodes = world.cluster(3).await;
        let mut made = Vec::new();
        for round in 0..10 {
            let creates = nodes.iter().enumerate().map(|(at, (_, control))| {
                let control = control.clone();
                tokio::spawn(async move { propose(&control, create(&format!("ks-{round}-{at}"))).await })
            });
            let tasks: Vec<_> = creates.collect();
            for task in tasks {
                let Done::KeyspaceCreated { id } = task.await.unwrap().unwrap() else { panic!("no keyspace") };
                made.push(id);
            }
            if round % 2 == 0 {
                let name = format!("ks-{round}-0");
                let drops = nodes.iter().map(|(_, control)| {
                    let (control, name) = (control.clone(), name.clone());
                    tokio::spawn(async move { propose(&control, drop_keyspace(&name)).await })
                });
                let tasks: Vec<_> = drops.collect();
                let mut dropped = 0;
                for task in tasks {
                    match task.await.unwrap() {
                        Ok(Done::KeyspaceDropped { .. }) => dropped += 1,
                        Err(ProposeError::Refused(_)) => {}
                        other => panic!("{other:?}"),
                    }
                }
                assert_eq!(dropped, 1, "one of the three drops it, the others find it gone");
            }
        }
        let expected: Vec<KeyspaceId> = (1..=30).map(KeyspaceId).collect();
        made.sort();
        assert_eq!(made, expected, "numbers are unique and never used again");
        let controls: Vec<_> = nodes.iter().map(|(_, control)| control).collect();
        let state = until_equal(&controls).await;
        assert_eq!(state.keyspaces.len(), 1 + 30 - 5);
    });
}

#[test]
fn a_node_that_moved_is_found_at_its_new_address() {
    run(async {
        let world = World::new();
        let mut nodes = world.cluster(3).await;
        let leader = leader_of(&nodes).await;
        let at = usize::from(leader == 0);
        let (spec, control) = nodes.remove(at);
        world.stop(&spec, control).await;
        let moved = Spec { address: "elsewhere:7400".to_owned(), ..spec.rebooted() };
        let control = world.start(&moved).await;
        for (_, other) in &nodes {
            until_state(other, "the new address", |state| {
                state.members.values().any(|member| member.address == moved.address)
            })
            .await;
        }
        assert!(propose(&nodes[0].1, create("after")).await.is_ok());
        until_state(&control, "the change at the new address", |state| state.keyspace_named("after").is_some()).await;
        until_membership(&control, "a member", |s| matches!(s, MembershipStatus::Member { .. })).await;
    });
}

#[test]
fn a_disk_that_fails_stops_the_control_plane_and_not_the_state_that_is_served() {
    run(async {
        let world = World::new();
        let mut nodes = world.cluster(1).await;
        let (spec, control) = nodes.remove(0);
        propose(&control, create("before")).await.unwrap();
        let before = until_state(&control, "the keyspace", |state| state.keyspace_named("before").is_some()).await;
        // A directory in the way of the file that every change writes.
        let obstacle = world.path().join(&spec.dir).join("newest.new");
        std::fs::create_dir(&obstacle).unwrap();
        let error = propose(&control, create("never-shown")).await.unwrap_err();
        assert!(matches!(error, ProposeError::Stopped { .. }), "{error}");
        until_membership(&control, "a failure", |s| matches!(s, MembershipStatus::Failed { .. })).await;
        assert_eq!(*control.state().borrow(), before, "what is served is what is durable");
        until_status(&control, "the reason", |status| {
            status.failed.as_ref().is_some_and(|reason| reason.contains("newest"))
        })
        .await;
        assert!(control.state().has_changed().is_ok(), "who follows the state is not cut off");
        world.stop(&spec, control).await;

        std::fs::remove_dir(&obstacle).unwrap();
        let control = world.start(&spec.rebooted()).await;
        assert!(propose(&control, create("after")).await.is_ok());
    });
}

#[test]
fn the_voters_spread_over_zones_that_come_later_and_the_leader_gives_way() {
    run(async {
        let world = World::new();
        let mut nodes = world.cluster(3).await;
        // The first node is left out of the lead, so that it is the leader who must go.
        if leader_of(&nodes).await == 0 {
            let (spec, control) = nodes.remove(0);
            world.stop(&spec, control).await;
            assert!(propose(&nodes[0].1, create("new-leader")).await.is_ok());
            let spec = spec.rebooted();
            let control = world.start(&spec).await;
            nodes.insert(0, (spec, control));
        }
        let leader = leader_of(&nodes).await;
        assert_ne!(leader, 0);
        for number in 4..=5 {
            let spec = Spec { zone: format!("z{number}"), ..Spec::joiner(number) };
            let spec = Spec { start_mode: kv_node::control::StartMode::Join(vec![nodes[1].0.address.clone()]), ..spec };
            let control = world.start(&spec).await;
            nodes.push((spec, control));
        }
        for (_, control) in &nodes {
            let state = until_state(control, "five members", |state| state.members.len() == 5).await;
            let node = |name: &str| state.member_named(name).unwrap().0;
            let spread = std::collections::BTreeSet::from([node("n1"), node("n4"), node("n5")]);
            until_status(control, "one voter in each zone, of the first the one with the lowest number", |status| {
                !status.voters_change
                    && status.voters.iter().copied().collect::<std::collections::BTreeSet<_>>() == spread
            })
            .await;
        }
        assert!(propose(&nodes[leader].1, create("after")).await.is_ok());
    });
}
