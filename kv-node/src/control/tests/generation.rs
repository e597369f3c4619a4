//! Another generation of a cluster in the agreed state: nothing that was given out is given out again, nobody of the former generation
//! counts before he has come, and what he knows is not lost.

use kv_core::config::{Keyspace, KeyspaceList};
use kv_core::topology::Change;
use kv_core::types::{Generation, Incarnation, KeyspaceId, NodeId, StoreId};

use super::operations::{asked, begin, cluster, descriptor, layout};
use super::state::{done, drop_keyspace, refused};
use crate::control::state::{
    AuditKind, ClusterState, Command, Done, GenerationStart, KeyspaceSpec, OperationState, Origin, RefusalKind,
};

const FIRST: Generation = Generation { number: 1, founder: StoreId(1) };

fn create(state: &mut ClusterState, id: u128, name: &str) -> KeyspaceId {
    let spec = KeyspaceSpec { name: name.to_owned(), mode: Keyspace::initial().mode };
    match done(state, id, Command::CreateKeyspace { spec, asked: asked(1) }) {
        Done::KeyspaceCreated { id } => id,
        done => panic!("{done:?}"),
    }
}

fn start(state: &ClusterState, node: u64, store: u64) -> GenerationStart {
    GenerationStart {
        node: NodeId(node),
        incarnation: Incarnation { store: StoreId(store), boot: 2, nonce: 0 },
        former: Vec::new(),
        before: FIRST,
        keyspaces: state.keyspace_list(),
        asked: asked(9),
    }
}

/// What a node says that comes from where this state was the newest.
fn origin(state: &ClusterState, stores: &[u64]) -> Box<Origin> {
    Box::new(Origin {
        cluster: state.identity().unwrap().0,
        generation: FIRST,
        revision: state.revision,
        epoch: layout(state).epoch,
        next_node: state.next_node(),
        keyspaces: state.keyspace_list(),
        stores: stores.iter().map(|store| StoreId(*store)).collect(),
        records: 12,
        hints: 3,
    })
}

fn rejoin(number: u8, store: u8, origin: Box<Origin>) -> Command {
    Command::Rejoin { descriptor: descriptor(number, store, 1), origin }
}

fn newest(state: &ClusterState) -> (AuditKind, String) {
    let entry = state.audit.after(state.audit.newest() - 1).last().unwrap();
    (entry.kind, entry.what.clone())
}

#[test]
fn a_generation_begins_with_its_founder_and_waits_for_the_others() {
    let mut state = cluster(3, 1);
    create(&mut state, 200, "a");
    let operation = begin(&state, &[Change::Add { node: NodeId(4) }]);
    done(&mut state, 201, operation);
    let before = state.clone();
    state.begin_generation(start(&before, 2, 20)).unwrap();

    assert_eq!(state.identity(), before.identity(), "cluster and seed stay");
    assert_eq!(state.generation(StoreId(20)), Generation { number: 2, founder: StoreId(20) });
    assert_eq!(state.former_generation(StoreId(1)), Some(FIRST));
    assert_eq!(state.awaited.iter().map(|node| node.0).collect::<Vec<_>>(), [1, 3, 4]);
    assert!(state.retired.contains(&StoreId(2)) && !state.retired.contains(&StoreId(1)));
    assert_eq!(state.operations.back().unwrap().state, OperationState::Cancelled);
    let (old, new) = (layout(&before), layout(&state));
    kv_core::ring::check(new).unwrap();
    assert!(new.epoch.0 > old.epoch.0 + 1000 && state.revision > before.revision + 1000);
    for (was, is) in old.partitions.iter().zip(&new.partitions) {
        let nodes = |owners: &[kv_core::ring::Owner]| owners.iter().map(|owner| owner.node).collect::<Vec<_>>();
        assert_eq!(nodes(&was.owners), nodes(&is.owners), "who owns what stays");
        assert_eq!((is.changed, &is.joint), (new.epoch, &None));
        let founder = is.owners.iter().find(|owner| owner.node == NodeId(2)).unwrap();
        assert_eq!(founder.since, new.epoch, "it enters anew");
    }
    let (kind, what) = newest(&state);
    assert_eq!(kind, AuditKind::GenerationFounded);
    assert!(what.contains("generation 2 of the cluster was founded by n2; to come: n1, n3, n4"), "{what}");
    assert!(what.contains("(node add n4) was cancelled"), "{what}");
    let next = create(&mut state, 300, "b");
    assert!(next.0 > 1000, "the former generation may have made {next}");
}

#[test]
fn nobody_counts_before_he_has_come_under_another_store() {
    let mut state = cluster(3, 0);
    let before = state.clone();
    state.begin_generation(start(&before, 1, 10)).unwrap();
    // The very store that the agreed state names, as it was.
    let kind = refused(&mut state, 200, Command::Admit(descriptor(2, 2, 5)));
    assert_eq!(kind, RefusalKind::Superseded);
    let came = done(&mut state, 201, rejoin(2, 20, origin(&before, &[2])));
    assert_eq!(came, Done::Admitted { node: NodeId(2), spare: false });
    assert_eq!(state.awaited.iter().map(|node| node.0).collect::<Vec<_>>(), [3]);
    assert_eq!(layout(&state).members[&NodeId(2)].store, StoreId(20));
    let (kind, what) = newest(&state);
    assert_eq!(kind, AuditKind::MemberRejoined);
    assert_eq!(what, "n2 has come from generation 1 with 12 records and 3 hints");
    // It reports again: nothing changes.
    let revision = state.revision;
    done(&mut state, 202, rejoin(2, 20, origin(&before, &[2])));
    assert!(state.revision <= revision + 1 && state.audit.newest() > 0);
    // Its former store, and another copy of its directory.
    assert_eq!(refused(&mut state, 203, Command::Admit(descriptor(2, 2, 9))), RefusalKind::Removed);
    assert_eq!(refused(&mut state, 204, rejoin(2, 21, origin(&before, &[2]))), RefusalKind::Exists);
    // Under another name it becomes a spare, whose records are handed over.
    let came = done(&mut state, 205, rejoin(9, 21, origin(&before, &[2])));
    let Done::Admitted { node, spare: true } = came else { panic!("{came:?}") };
    assert!(node.0 > 1000, "the former generation may have had a {node}");
    assert!(!state.retired.contains(&StoreId(20)), "what it says of itself ends nobody");
}

#[test]
fn keyspaces_that_only_others_know_are_kept_and_what_was_dropped_stays_dropped() {
    let mut old = cluster(3, 0);
    let both = create(&mut old, 200, "both");
    let gone = create(&mut old, 201, "gone");
    done(&mut old, 202, drop_keyspace("gone"));
    let founder = old.clone();
    // What the founder has not heard of.
    let later = create(&mut old, 203, "later");
    let again = create(&mut old, 204, "again");
    let brief = create(&mut old, 205, "brief");
    done(&mut old, 206, drop_keyspace("brief"));
    let mut state = founder.clone();
    state.begin_generation(start(&founder, 1, 10)).unwrap();
    let other = create(&mut state, 300, "again");
    let list = state.keyspace_list();
    done(&mut state, 301, rejoin(2, 20, origin(&old, &[2])));
    assert!(state.keyspace_list().is_newer_than(&list), "nodes take the list over");
    let name = |state: &ClusterState, id: KeyspaceId| state.keyspaces.get(&id).map(|keyspace| keyspace.name.clone());
    assert_eq!(name(&state, both).as_deref(), Some("both"));
    assert_eq!(name(&state, later).as_deref(), Some("later"));
    assert_eq!(name(&state, again), Some(format!("again.recovered-{}", again.0)), "the name has another one");
    assert_eq!(name(&state, other).as_deref(), Some("again"));
    assert_eq!((name(&state, gone), name(&state, brief)), (None, None));
    assert!(newest(&state).1.contains("it knew keyspaces that the founder did not: later, again.recovered-"));
    assert!(newest(&state).1.contains("it knew a newer agreed state"));
    // A copy from before the drop brings nothing back, nor does one from before a drop in this generation.
    let mut copy = cluster(3, 0);
    create(&mut copy, 200, "both");
    create(&mut copy, 201, "gone");
    done(&mut state, 302, drop_keyspace("later"));
    done(&mut state, 303, rejoin(3, 30, origin(&copy, &[3])));
    assert_eq!(name(&state, gone), None);
    let third = Box::new(Origin { keyspaces: old.keyspace_list(), ..*origin(&old, &[]) });
    done(&mut state, 304, rejoin(8, 80, third));
    assert_eq!(name(&state, later), None, "it was dropped here");
    let next = create(&mut state, 305, "next");
    assert!([both, gone, later, again, brief, other].iter().all(|id| *id < next), "{next}");
}

#[test]
fn who_comes_from_elsewhere_is_refused() {
    let before = cluster(3, 0);
    let mut state = before.clone();
    state.begin_generation(start(&before, 1, 10)).unwrap();
    let mut stranger = origin(&before, &[2]);
    stranger.cluster.0 += 1;
    assert_eq!(refused(&mut state, 200, rejoin(2, 20, stranger)), RefusalKind::Precondition);
    // Another recovery has given a number out that this one has given out, too.
    let mine = create(&mut state, 201, "mine");
    let theirs = Keyspace { id: mine, name: "theirs".to_owned(), ..Keyspace::initial() };
    let keyspaces = KeyspaceList::new(KeyspaceId(mine.0 + 1), [Keyspace::initial(), theirs]);
    let fork = Box::new(Origin {
        generation: Generation { number: 1, founder: StoreId(77) },
        keyspaces,
        ..*origin(&before, &[2])
    });
    assert_eq!(refused(&mut state, 202, rejoin(2, 20, fork)), RefusalKind::Precondition);
    let many = Box::new(Origin { stores: vec![StoreId(5); 65], ..*origin(&before, &[]) });
    assert_eq!(refused(&mut state, 203, rejoin(2, 20, many)), RefusalKind::Precondition);
    let nobody = start(&before, 9, 10);
    assert_eq!(before.clone().begin_generation(nobody).unwrap_err().kind, RefusalKind::Precondition);
    let unfounded = ClusterState::default().begin_generation(start(&before, 1, 10));
    assert_eq!(unfounded.unwrap_err().kind, RefusalKind::Precondition);
}

#[test]
fn members_that_are_given_up_are_waited_for_no_more() {
    let before = cluster(4, 0);
    let mut state = before.clone();
    state.begin_generation(start(&before, 1, 10)).unwrap();
    let remove = begin(&state, &[Change::RemoveDead { node: NodeId(3) }]);
    done(&mut state, 200, remove);
    assert_eq!(state.awaited.iter().map(|node| node.0).collect::<Vec<_>>(), [2, 4]);
    assert!(state.retired.contains(&StoreId(3)));
    // A wiped node takes its own place as ever.
    let mut wiped = descriptor(2, 22, 1);
    wiped.replaces = vec![StoreId(2)];
    done(&mut state, 201, Command::Admit(wiped));
    assert_eq!(state.awaited.iter().map(|node| node.0).collect::<Vec<_>>(), [4]);
}

#[test]
fn a_generation_may_follow_another() {
    let first = cluster(3, 0);
    let mut second = first.clone();
    second.begin_generation(start(&first, 1, 10)).unwrap();
    let mut third = second.clone();
    let again = GenerationStart { before: second.generation(StoreId(10)), ..start(&second, 1, 11) };
    third.begin_generation(again).unwrap();
    assert_eq!(third.generation(StoreId(11)).number, 3);
    assert!(third.former_generation(StoreId(1)).is_some() && third.former_generation(StoreId(10)).is_some());
    // One that was left behind for two generations.
    done(&mut third, 200, rejoin(2, 20, origin(&first, &[2])));
    assert!(newest(&third).1.contains("from generation 1"));
}
