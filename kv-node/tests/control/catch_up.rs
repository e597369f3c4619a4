//! A node that was away for long catches up by a snapshot.

use kv_node::control::Timing;

use crate::world::{World, create, drop_keyspace, leader_of, propose, run, until_equal, until_state, until_status};

#[test]
fn a_long_absent_node_catches_up_by_a_snapshot() {
    run(async {
        let mut world = World::new();
        world.timing = Timing { snapshot_entries: 20, kept_entries: 4, ..world.timing };
        let mut nodes = world.cluster(3).await;
        let leader = leader_of(&nodes).await;
        let (spec, control) = nodes.remove(usize::from(leader == 0));
        let missed = control.status().borrow().last_log.unwrap();
        world.stop(&spec, control).await;

        for round in 0..30 {
            propose(&nodes[0].1, create(&format!("ks-{round}"))).await.unwrap();
            if round > 0 {
                propose(&nodes[0].1, drop_keyspace(&format!("ks-{}", round - 1))).await.unwrap();
            }
        }
        // Nobody has the entries any more that the absent node needs next.
        for (_, control) in &nodes {
            until_status(control, "a purged log", |status| status.purged.is_some_and(|purged| purged > missed)).await;
        }

        let back = world.start(&spec.rebooted()).await;
        until_state(&back, "the last keyspace", |state| state.keyspace_named("ks-29").is_some()).await;
        let status =
            until_status(&back, "a snapshot", |status| status.snapshot.is_some_and(|index| index > missed)).await;
        assert!(status.snapshot > Some(missed));
        propose(&back, create("after")).await.unwrap();
        let state = until_equal(&[&nodes[0].1, &nodes[1].1, &back]).await;
        assert_eq!(state.keyspaces.len(), 3, "default, ks-29 and the new one");

        // And it starts again from its own snapshot.
        world.stop(&spec, back).await;
        let again = world.start(&spec.rebooted().rebooted()).await;
        propose(&again, create("again")).await.unwrap();
        until_state(&again, "its own command", |state| state.keyspace_named("again").is_some()).await;
        until_equal(&[&nodes[0].1, &nodes[1].1, &again]).await;
    });
}
