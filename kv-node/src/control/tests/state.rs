//! The state machine: pure, deterministic, and never in a state that it should not be in.

use std::collections::{BTreeMap, BTreeSet};

use kv_core::config::{Available, ClusterConfig, Mode};
use kv_core::ring::{FirstLayout, first_layout};
use kv_core::topology::{Change, plan};
use kv_core::types::{ClusterId, Epoch, HashSeed, Incarnation, KeyspaceId, NodeId, StoreId, WallTime};
use kv_core::version::Conflict;
use proptest::prelude::*;

use crate::control::state::{Asked, Estimate, OperationId};
use crate::control::state::{ClusterState, Phase};
use crate::control::state::{
    Command, CommandId, Done, Founding, KeyspaceSpec, NodeDescriptor, Outcome, Proposal, RefusalKind,
};

pub(super) fn descriptor(number: u8, store: u8, boot: u32) -> NodeDescriptor {
    NodeDescriptor {
        name: format!("n{number}"),
        address: format!("host-{number}:7400"),
        zone: format!("z{}", number % 3),
        weight: 1.0,
        incarnation: Incarnation { store: StoreId(store.into()), boot, nonce: 0 },
        version: "1".to_owned(),
        replaces: Vec::new(),
    }
}

fn found(expect: u32) -> Command {
    let founding = Founding { expect, copies: 3, partitions: 8 };
    Command::Found { founding, config: ClusterConfig::default(), founder: descriptor(1, 1, 1) }
}

fn create(name: &str) -> Command {
    let spec = KeyspaceSpec {
        name: name.to_owned(),
        mode: Mode::Available(Available { r: 1, w: 1, strict: false, conflict: Conflict::Lww }),
    };
    Command::CreateKeyspace { spec, asked: Asked::default() }
}

pub(super) fn drop_keyspace(name: &str) -> Command {
    Command::DropKeyspace { name: name.to_owned(), asked: Asked::default() }
}

/// The command that forms a cluster in this state.
pub(super) fn form(state: &ClusterState) -> Command {
    let copies = if let Phase::Forming(founding) = state.phase { founding.copies } else { 3 };
    let layout = first_layout(FirstLayout {
        cluster: ClusterId(7),
        seed: HashSeed(8),
        epoch: Epoch(1),
        copies,
        partitions: 8,
        members: state.layout_members(),
    });
    Command::Form { layout: layout.unwrap() }
}

pub(super) fn apply(state: &mut ClusterState, id: u128, command: Command) -> Outcome {
    state.apply(Proposal { id: CommandId(id), at: WallTime(7), command })
}

#[track_caller]
pub(super) fn done(state: &mut ClusterState, id: u128, command: Command) -> Done {
    apply(state, id, command).into_result().unwrap()
}

#[track_caller]
pub(super) fn refused(state: &mut ClusterState, id: u128, command: Command) -> RefusalKind {
    apply(state, id, command).into_result().unwrap_err().kind
}

/// A cluster of node 1.
fn formed() -> ClusterState {
    let mut state = ClusterState::default();
    done(&mut state, 1, found(1));
    let command = form(&state);
    done(&mut state, 2, command);
    state
}

#[test]
fn a_repeated_command_is_applied_once() {
    let mut state = formed();
    let first = done(&mut state, 10, create("a"));
    let before = state.clone();
    assert_eq!(done(&mut state, 10, create("a")), first, "the outcome is that of the first time");
    assert_eq!(state, before);
    assert_eq!(refused(&mut state, 11, create("a")), RefusalKind::Exists, "another command is another command");
}

#[test]
fn the_memory_of_commands_is_bounded() {
    let mut state = formed();
    for id in 100..100 + 2 * ClusterState::RECENT_MAX as u128 {
        refused(&mut state, id, drop_keyspace("none"));
    }
    assert_eq!(state.recent.len(), ClusterState::RECENT_MAX);
    assert_eq!(state.revision, formed().revision, "a refused command is no change");
}

#[test]
fn a_first_layout_for_other_members_is_stale() {
    let mut state = ClusterState::default();
    done(&mut state, 1, found(2));
    let alone = form(&state);
    assert_eq!(refused(&mut state, 2, alone.clone()), RefusalKind::Precondition, "one of two is not enough");
    done(&mut state, 3, Command::Admit(descriptor(2, 2, 1)));
    assert_eq!(refused(&mut state, 4, alone), RefusalKind::Stale);
    let both = form(&state);
    assert_eq!(done(&mut state, 5, both.clone()), Done::Formed { epoch: Epoch(1) });
    assert_eq!(refused(&mut state, 6, both), RefusalKind::Precondition, "a cluster forms once");
}

#[test]
fn more_reports_than_expected_before_the_layout_make_spares() {
    let mut state = ClusterState::default();
    done(&mut state, 1, found(2));
    assert_eq!(
        done(&mut state, 2, Command::Admit(descriptor(2, 2, 1))),
        Done::Admitted { node: NodeId(2), spare: false }
    );
    assert_eq!(
        done(&mut state, 3, Command::Admit(descriptor(3, 3, 1))),
        Done::Admitted { node: NodeId(3), spare: true }
    );
    let command = form(&state);
    done(&mut state, 4, command);
    let layout = state.layout.as_ref().unwrap();
    assert_eq!(layout.members.len(), 3);
    assert!(layout.partitions.iter().all(|entry| !entry.owns(NodeId(3))));
}

#[test]
fn a_store_is_replaced_only_by_one_that_names_it() {
    let mut state = formed();
    done(&mut state, 3, Command::Admit(descriptor(2, 2, 5)));
    let epoch = state.layout.as_ref().unwrap().epoch;
    let mut wiped = descriptor(2, 9, 1);
    assert_eq!(refused(&mut state, 4, Command::Admit(wiped.clone())), RefusalKind::Exists);
    wiped.replaces = vec![StoreId(1), StoreId(2)];
    let admitted = done(&mut state, 5, Command::Admit(wiped.clone()));
    assert_eq!(admitted, Done::Admitted { node: NodeId(2), spare: true });
    let layout = state.layout.clone().unwrap();
    assert_eq!((layout.epoch, layout.members[&NodeId(2)].store), (Epoch(epoch.0 + 1), StoreId(9)));
    assert_eq!(refused(&mut state, 6, Command::Admit(descriptor(2, 2, 6))), RefusalKind::Removed, "never again");
    // Reporting again, still naming the lost store, changes nothing.
    let before = state.revision;
    assert_eq!(done(&mut state, 7, Command::Admit(wiped)), admitted);
    assert_eq!(state.revision, before);
}

#[test]
fn people_read_names() {
    let mut state = formed();
    done(&mut state, 3, Command::Admit(NodeDescriptor { name: "berlin".to_owned(), ..descriptor(2, 2, 1) }));
    assert_eq!(
        state.with_names("n2: refused; n2, n1 and n20 (n2) of p2"),
        "berlin: refused; berlin, n1 and n20 (n2) of p2"
    );
}

#[test]
fn boots_only_grow() {
    let mut state = formed();
    done(&mut state, 3, Command::Admit(descriptor(2, 2, 5)));
    assert_eq!(refused(&mut state, 4, Command::Admit(descriptor(2, 2, 4))), RefusalKind::RolledBack);
    let mut twin = descriptor(2, 2, 5);
    twin.incarnation.nonce = 1;
    assert_eq!(refused(&mut state, 5, Command::Admit(twin)), RefusalKind::RolledBack);
    let layout = state.layout.clone();
    done(&mut state, 6, Command::Admit(descriptor(2, 2, 6)));
    assert_eq!(state.layout, layout, "a boot is no new epoch");
}

#[test]
fn reports_that_make_no_sense_are_refused() {
    let check = |change: fn(&mut NodeDescriptor)| {
        let mut odd = descriptor(2, 2, 1);
        change(&mut odd);
        assert_eq!(refused(&mut formed(), 3, Command::Admit(odd.clone())), RefusalKind::Invalid, "{odd:?}");
    };
    check(|odd| odd.name = "Upper".to_owned());
    check(|odd| odd.zone = "a/b".to_owned());
    check(|odd| odd.weight = f64::NAN);
    check(|odd| odd.weight = -1.0);
    check(|odd| odd.address = "a".repeat(1000));
    check(|odd| odd.version = "v".repeat(100));
    check(|odd| odd.replaces = vec![StoreId(1); 100]);
}

#[test]
fn the_encoding_of_commands_is_stable() {
    let state = formed();
    let change = Change::Copies { copies: 2 };
    let plan = plan(state.layout.as_deref().unwrap(), &[change]).unwrap();
    let (operation, asked) = (OperationId(1), Asked::default());
    let commands = [
        found(1),
        Command::Admit(descriptor(1, 1, 1)),
        form(&state),
        create("a"),
        drop_keyspace("a"),
        Command::Apply { plan, estimate: Estimate::default(), asked: asked.clone() },
        Command::Advance { operation, epoch: Epoch(2), receipts: Vec::new(), asked: asked.clone() },
        Command::Pause { operation, asked: asked.clone() },
        Command::Resume { operation, asked: asked.clone() },
        Command::Throttle { bytes_per_second_max: None, asked: asked.clone() },
        Command::Retry { operation, partitions: Vec::new(), asked: asked.clone() },
        Command::Cancel { operation, asked },
        Command::Dismiss { node: NodeId(1), store: StoreId(1), epoch: Epoch(2) },
    ];
    for (number, command) in (0..).zip(&commands) {
        let bytes = postcard::to_stdvec(command).unwrap();
        assert_eq!(bytes[0], number, "the number of {command} is part of every log");
        assert_eq!(&postcard::from_bytes::<Command>(&bytes).unwrap(), command);
    }
}

/// A command by small numbers, so that collisions are frequent.
#[derive(Clone, Debug)]
enum Choice {
    Found(u32),
    Admit { number: u8, store: u8, boot: u32, replaces: Option<u8> },
    Form,
    Create(u8),
    Drop(u8),
    Repeat(usize),
}

fn choices() -> impl Strategy<Value = Vec<Choice>> {
    let choice = prop_oneof![
        1 => (1..4_u32).prop_map(Choice::Found),
        6 => (1..6_u8, 1..9_u8, 1..4_u32, prop::option::weighted(0.3, 1..9_u8))
            .prop_map(|(number, store, boot, replaces)| Choice::Admit { number, store, boot, replaces }),
        2 => Just(Choice::Form),
        3 => (0..5_u8).prop_map(Choice::Create),
        2 => (0..5_u8).prop_map(Choice::Drop),
        1 => (0..64_usize).prop_map(Choice::Repeat),
    ];
    prop::collection::vec(choice, 1..64)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_commands_keep_the_state_sound(choices in choices()) {
        let mut state = ClusterState::default();
        let mut replica = ClusterState::default();
        let mut proposals: Vec<(Proposal, Outcome)> = Vec::new();
        let mut nodes: BTreeMap<NodeId, String> = BTreeMap::new();
        let mut keyspaces: BTreeSet<KeyspaceId> = BTreeSet::from([KeyspaceId(0)]);
        for (id, choice) in choices.into_iter().enumerate() {
            let command = match choice {
                Choice::Found(expect) => found(expect),
                Choice::Admit { number, store, boot, replaces } => {
                    let mut descriptor = descriptor(number, store, boot);
                    descriptor.replaces = replaces.into_iter().map(|store| StoreId(store.into())).collect();
                    Command::Admit(descriptor)
                }
                Choice::Form if state.members.is_empty() => continue,
                Choice::Form => form(&state),
                Choice::Create(name) => create(&format!("ks{name}")),
                Choice::Drop(name) => drop_keyspace(&format!("ks{name}")),
                Choice::Repeat(at) => {
                    if let Some((proposal, outcome)) = proposals.get(at) {
                        let before = state.clone();
                        prop_assert_eq!(&state.apply(proposal.clone()), outcome);
                        prop_assert_eq!(&state, &before);
                    }
                    continue;
                }
            };
            let before = state.clone();
            let proposal = Proposal { id: CommandId(id as u128 + 1), at: WallTime(7), command };
            let outcome = state.apply(proposal.clone());
            prop_assert_eq!(&replica.apply(proposal.clone()), &outcome);
            // A node that starts from a snapshot in between holds the same.
            replica = postcard::from_bytes(&postcard::to_stdvec(&replica).unwrap()).unwrap();
            prop_assert_eq!(&replica, &state);

            prop_assert!(state.revision == before.revision || state.revision == before.revision + 1);
            if state.revision == before.revision {
                let mut unchanged = before.clone();
                unchanged.recent = state.recent.clone();
                prop_assert_eq!(&unchanged, &state, "a change must be counted");
            }
            match &outcome {
                Outcome::Done(Done::Admitted { node, .. }) => {
                    let name = &state.members[node].name;
                    prop_assert_eq!(nodes.entry(*node).or_insert_with(|| name.clone()), name, "a number was used again");
                }
                Outcome::Done(Done::KeyspaceCreated { id }) => {
                    prop_assert!(keyspaces.insert(*id), "{} was used again", id);
                }
                Outcome::Refused(refusal) => {
                    prop_assert!(refusal.message.len() > 20, "a refusal says why and what to do: {}", refusal);
                    prop_assert_eq!(state.revision, before.revision, "a refused command changed something");
                }
                Outcome::Done(_) => {}
            }
            let names: BTreeSet<&str> = state.members.values().map(|member| member.name.as_str()).collect();
            let stores: BTreeSet<StoreId> = state.members.values().map(|member| member.incarnation.store).collect();
            prop_assert_eq!(names.len(), state.members.len());
            prop_assert_eq!(stores.len(), state.members.len());
            prop_assert!(stores.is_disjoint(&state.retired));
            if let Some(layout) = &state.layout {
                prop_assert_eq!(kv_core::ring::check(layout), Ok(()));
                prop_assert_eq!(&layout.members, &state.layout_members());
                prop_assert_eq!(state.identity(), Some((layout.cluster, layout.seed)));
                if let Some(before) = &before.layout {
                    let same = before == layout;
                    prop_assert!(same && before.epoch == layout.epoch || !same && before.epoch < layout.epoch);
                }
            }
            proposals.push((proposal, outcome));
        }
    }
}
