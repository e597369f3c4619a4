//! Clusters form, in any order and through crashes.

use std::collections::BTreeSet;

use kv_core::types::{Epoch, KeyspaceId, NodeId};
use kv_node::control::{MembershipStatus, Phase, RefusalKind};

use crate::world::{Spec, World, create, propose, run, until_equal, until_membership, until_state, until_status};

#[test]
fn one_node_forms_at_once() {
    run(async {
        let world = World::new();
        let control = world.start(&Spec::founder(1, 1)).await;
        let membership = until_membership(&control, "a member", |s| matches!(s, MembershipStatus::Member { .. })).await;
        assert_eq!(membership, MembershipStatus::Member { node: NodeId(1), spare: false });
        let state = until_state(&control, "a layout", |state| state.layout.is_some()).await;
        let layout = state.layout.as_ref().unwrap();
        assert_eq!(layout.epoch, Epoch(1));
        assert_eq!(Some((layout.cluster, layout.seed)), state.identity());
        assert_eq!(kv_core::ring::check(layout), Ok(()));
        assert_eq!(state.keyspaces[&KeyspaceId(0)].name, "default");
        world.stop(&Spec::founder(1, 1), control).await;
    });
}

#[test]
fn three_nodes_form_whoever_comes_first() {
    for order in [[1, 2, 3], [3, 2, 1], [2, 1, 3]] {
        run(async {
            let world = World::new();
            let mut nodes = Vec::new();
            for number in order {
                let spec = if number == 1 { Spec::founder(1, 3) } else { Spec::joiner(number) };
                let control = world.start(&spec).await;
                nodes.push((spec, control));
            }
            for (_, control) in &nodes {
                until_status(control, "three voters", |status| status.voters.len() == 3).await;
                until_state(control, "formed", |state| state.identity().is_some()).await;
            }
            let controls: Vec<_> = nodes.iter().map(|(_, control)| control).collect();
            let state = until_equal(&controls).await;
            let ids: BTreeSet<NodeId> = state.members.keys().copied().collect();
            assert_eq!(ids, BTreeSet::from([NodeId(1), NodeId(2), NodeId(3)]));
            let names: BTreeSet<&str> = state.members.values().map(|member| member.name.as_str()).collect();
            assert_eq!(names, BTreeSet::from(["n1", "n2", "n3"]));
            assert!(state.members.values().all(|member| !member.spare));
            let layout = state.layout.as_ref().unwrap();
            assert_eq!(kv_core::ring::check(layout), Ok(()));
            assert_eq!(layout.epoch, Epoch(1), "the first layout holds all three, no data moves");
        });
    }
}

#[test]
fn five_nodes_get_five_voters() {
    run(async {
        let world = World::new();
        let nodes = world.cluster(5).await;
        let controls: Vec<_> = nodes.iter().map(|(_, control)| control).collect();
        let state = until_equal(&controls).await;
        assert_eq!(state.members.len(), 5);
    });
}

#[test]
fn while_forming_everybody_says_how_many_have_come() {
    run(async {
        let world = World::new();
        let founder = world.start(&Spec::founder(1, 3)).await;
        let alone = |s: &MembershipStatus| s.to_string() == "forming: 1 of 3 members";
        until_membership(&founder, "forming alone", alone).await;
        let refused = propose(&founder, create("early")).await.unwrap_err();
        assert_eq!(refused.to_string(), "forming: 1 of 3 members; try again when the cluster is formed",);
        let second = world.start(&Spec::joiner(2)).await;
        for control in [&founder, &second] {
            let two = |s: &MembershipStatus| s.to_string() == "forming: 2 of 3 members";
            until_membership(control, "two of three", two).await;
            assert_eq!(control.state().borrow().layout, None, "nothing is served before all have come");
        }
    });
}

#[test]
fn crashes_while_forming_are_continued_without_double_ids() {
    run(async {
        let world = World::new();
        let mut founder_spec = Spec::founder(1, 3);
        let mut second_spec = Spec::joiner(2);
        let founder = world.start(&founder_spec).await;
        until_membership(&founder, "forming", |s| matches!(s, MembershipStatus::Forming { .. })).await;
        let second = world.start(&second_spec).await;
        until_state(&founder, "two members", |state| state.members.len() == 2).await;

        // The joiner dies as soon as the founder knows it, whatever it has heard itself; then the founder does.
        world.stop(&second_spec, second).await;
        world.stop(&founder_spec, founder).await;
        second_spec = second_spec.rebooted();
        let second = world.start(&second_spec).await;
        founder_spec = founder_spec.rebooted();
        let founder = world.start(&founder_spec).await;
        let two = |s: &MembershipStatus| s.to_string() == "forming: 2 of 3 members";
        until_membership(&founder, "two of three again", two).await;
        until_membership(&second, "two of three again", two).await;

        // The founder dies between the third report and whatever follows.
        let third_spec = Spec::joiner(3);
        let third = world.start(&third_spec).await;
        until_state(&founder, "three members", |state| state.members.len() == 3).await;
        world.stop(&founder_spec, founder).await;
        founder_spec = founder_spec.rebooted();
        let founder = world.start(&founder_spec).await;
        for control in [&founder, &second, &third] {
            until_state(control, "formed", |state| {
                state.identity().is_some() && state.members.values().any(|member| member.incarnation.boot == 3)
            })
            .await;
        }
        let state = until_equal(&[&founder, &second, &third]).await;
        let stores: BTreeSet<_> = state.members.values().map(|member| member.incarnation.store).collect();
        assert_eq!(state.members.len(), 3, "{:#?}", state.members);
        assert_eq!(stores.len(), 3);
    });
}

#[test]
fn a_joiner_that_died_before_it_was_admitted_resumes_without_flags() {
    run(async {
        let world = World::new();
        let spec = Spec::joiner(2);
        let joiner = world.start(&spec).await;
        let unanswered = |s: &MembershipStatus| s.to_string() == "joining: n1:7400 does not answer: connection refused";
        until_membership(&joiner, "an unanswered report", unanswered).await;
        world.stop(&spec, joiner).await;
        let founder = world.start(&Spec::founder(1, 2)).await;
        let resumed = Spec { start_mode: kv_node::control::StartMode::Resume, ..spec.rebooted() };
        let joiner = world.start(&resumed).await;
        for control in [&founder, &joiner] {
            until_state(control, "formed", |state| state.layout.is_some()).await;
        }
    });
}

#[test]
fn who_joins_a_formed_cluster_is_a_spare_and_three_vote() {
    run(async {
        let world = World::new();
        let mut nodes = world.cluster(1).await;
        for number in 2..=4 {
            let spec = Spec::joiner(number);
            let control = world.start(&spec).await;
            let membership =
                until_membership(&control, "a member", |s| matches!(s, MembershipStatus::Member { .. })).await;
            assert_eq!(membership, MembershipStatus::Member { node: NodeId(number), spare: true });
            nodes.push((spec, control));
        }
        for (_, control) in &nodes {
            let status = until_status(control, "three voters and a listener", |status| {
                status.voters.len() == 3 && status.learners.len() == 1
            })
            .await;
            assert!(status.voters.contains(&NodeId(1)), "the first voter stays");
        }
        let controls: Vec<_> = nodes.iter().map(|(_, control)| control).collect();
        let state = until_equal(&controls).await;
        let layout = state.layout.as_ref().unwrap();
        assert_eq!(layout.members.len(), 4);
        assert!(layout.partitions.iter().all(|entry| entry.owns(NodeId(1)) && entry.changed == Epoch(1)));
        assert!(layout.epoch > Epoch(1), "peers learn of a new member by a new epoch");
    });
}

#[test]
fn a_third_node_that_comes_too_late_for_forming_is_a_spare() {
    run(async {
        let world = World::new();
        let _nodes = world.cluster(2).await;
        let third = world.start(&Spec::joiner(3)).await;
        let membership = until_membership(&third, "a member", |s| matches!(s, MembershipStatus::Member { .. })).await;
        assert_eq!(membership, MembershipStatus::Member { node: NodeId(3), spare: true });
        until_status(&third, "three voters", |status| status.voters.len() == 3).await;
    });
}

#[test]
fn a_lost_store_is_replaced_under_the_same_number() {
    run(async {
        let world = World::new();
        let mut nodes = world.cluster(3).await;
        let (lost, control) = nodes.remove(2);
        let node = control.state().borrow().member_of(lost.incarnation.store).unwrap().0;
        world.stop(&lost, control).await;

        let mut fresh = lost.clone();
        fresh.incarnation.store.0 += 500;
        fresh.dir = "n3-fresh".to_owned();
        fresh.replaces = Some(lost.incarnation.store);
        let control = world.start(&fresh).await;
        let membership = until_membership(&control, "a member", |s| matches!(s, MembershipStatus::Member { .. })).await;
        assert_eq!(membership, MembershipStatus::Member { node, spare: false });
        let state = until_state(&control, "the new store in the layout", |state| {
            state.layout.as_ref().is_some_and(|layout| layout.members[&node].store == fresh.incarnation.store)
        })
        .await;
        assert!(state.retired.contains(&lost.incarnation.store));
        assert!(matches!(state.phase, Phase::Formed { .. }));
        let voters = until_status(&nodes[0].1, "three voters, the new store among them", |status| {
            status.voters.len() == 3 && status.voters.contains(&node)
        });
        voters.await;

        // The former store comes back: nobody takes it.
        world.stop(&fresh, control).await;
        let ghost = world.start(&lost.rebooted()).await;
        let membership = until_membership(&ghost, "a refusal", |s| matches!(s, MembershipStatus::Refused(_))).await;
        let MembershipStatus::Refused(refusal) = membership else { unreachable!("waited for") };
        assert_eq!(refusal.kind, RefusalKind::Removed);
        assert!(refusal.message.contains("was given up and must not come back"), "{refusal}");
    });
}
