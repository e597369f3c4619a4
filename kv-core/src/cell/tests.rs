//! The laws of cells, on what valid histories leave on replicas. They name no kind: a kind adds the cells that its histories
//! make.

use bytes::Bytes;
use proptest::prelude::*;

use super::Cell;
use crate::config::{Available, Keyspace, Mode};
use crate::storage::{Space, StorageKey, Stored};
use crate::types::{KeyspaceId, PartitionId, RequestId, WallTime};
use crate::version::tests::history::{History, actions, any_conflict};
use crate::version::{Actor, Conflict, ContextToken, Hlc, Record, Replaces, Write};

/// Cells of one key at various times on various replicas, the mode of its keyspace, and the end of the history.
#[derive(Debug)]
struct Made {
    cells: Vec<Cell>,
    mode: Mode,
    wall: WallTime,
}

fn any_cells() -> impl Strategy<Value = Made> {
    (any_conflict(), actions()).prop_map(|(conflict, actions)| {
        let history = History::play(conflict, &actions);
        let mode = Mode::Available(Available { r: 2, w: 2, strict: false, conflict });
        Made { cells: history.records.into_iter().map(Cell::from).collect(), mode, wall: history.wall }
    })
}

fn merged(one: &Cell, other: &Cell, mode: &Mode) -> Cell {
    let mut merged = one.clone();
    merged.merge(other, Some(mode));
    merged
}

/// Merges where nothing may be held yet.
fn merge_into(held: &mut Option<Cell>, other: &Cell, mode: Option<&Mode>) {
    held.get_or_insert_with(|| other.nothing()).merge(other, mode);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn merge_is_commutative_associative_and_idempotent(
        made in any_cells(),
        picks in prop::collection::vec(any::<[prop::sample::Index; 3]>(), 12),
    ) {
        let merged = |one: &Cell, other: &Cell| merged(one, other, &made.mode);
        for [a, b, c] in picks {
            let (a, b, c) = (a.get(&made.cells), b.get(&made.cells), c.get(&made.cells));
            let ab = merged(a, b);
            prop_assert!(ab.is_valid());
            prop_assert_eq!(&ab, &merged(b, a), "commutative");
            prop_assert_eq!(merged(&ab, c), merged(a, &merged(b, c)), "associative");
            prop_assert_eq!(&merged(a, a), a, "idempotent");
            let mut held = None;
            merge_into(&mut held, a, Some(&made.mode));
            prop_assert_eq!(held.as_ref(), Some(a), "what is merged into nothing is all there is");
            merge_into(&mut held, b, Some(&made.mode));
            prop_assert_eq!(held, Some(ab));
        }
    }

    #[test]
    fn digests_and_dominance_say_what_a_merge_does(
        made in any_cells(),
        picks in prop::collection::vec(any::<[prop::sample::Index; 2]>(), 12),
    ) {
        for [a, b] in picks {
            let (a, b) = (a.get(&made.cells), b.get(&made.cells));
            let ab = merged(a, b, &made.mode);
            prop_assert!(ab.dominates(a) && ab.dominates(b));
            prop_assert_eq!(a.dominates(b), ab.digest() == a.digest());
            prop_assert_eq!(a.dominates(b) && b.dominates(a), a.digest() == b.digest());
        }
    }

    /// What a sweep does is seen by nobody else, and by no later merge.
    #[test]
    fn a_sweep_leaves_what_was_seen(
        made in any_cells(),
        picks in prop::collection::vec(any::<[prop::sample::Index; 2]>(), 12),
    ) {
        for [a, b] in picks {
            let (a, b) = (a.get(&made.cells), b.get(&made.cells));
            let mut swept = a.clone();
            prop_assert_eq!(swept.sweep(made.wall), a.expires().is_some_and(|expires| expires <= made.wall));
            prop_assert!(swept.expires().is_none_or(|expires| expires > made.wall));
            prop_assert_eq!(swept.digest(), a.digest());
            prop_assert!(!swept.clone().sweep(made.wall), "once is enough");
            let mut later = merged(a, b, &made.mode);
            later.sweep(made.wall);
            let mut sooner = merged(&swept, b, &made.mode);
            sooner.sweep(made.wall);
            prop_assert_eq!(later, sooner);
        }
    }

    #[test]
    fn sizes_count_what_is_held(made in any_cells()) {
        let key = StorageKey::owned(PartitionId(1), KeyspaceId(2), b"key");
        for cell in &made.cells {
            let stored = Stored { own: None, cell: cell.clone() };
            let encoded = stored.encode();
            prop_assert_eq!(Stored::decode(&encoded), Ok(stored.clone()));
            prop_assert_eq!(Stored::encoded_len(cell), encoded.len());
            let footprint = stored.footprint(&key, encoded.len());
            prop_assert_eq!(footprint.live, cell.has_value());
            prop_assert_eq!(footprint.bytes as usize, key.key().len() + encoded.len());
            prop_assert!(cell.heap().bytes >= cell.value_bytes() && cell.bytes_in_flight() >= cell.value_bytes());
            let mut stripped = cell.clone();
            stripped.strip();
            prop_assert_eq!(stripped.value_bytes(), 0);
            prop_assert_eq!((stripped.digest(), stripped.has_value()), (cell.digest(), cell.has_value()));
            let sent = postcard::to_allocvec(cell).expect("a vector has room");
            prop_assert_eq!(&postcard::from_bytes::<Cell>(&sent).expect("what was sent"), cell);
        }
    }

    /// Nothing that a replica does not understand is taken for a cell.
    #[test]
    fn other_bytes_are_no_cell(mut bytes in prop::collection::vec(any::<u8>(), 1..200)) {
        if let Ok(cell) = postcard::from_bytes::<Cell>(&bytes) {
            prop_assert_eq!(bytes[0], 0, "{:?}", cell);
        }
        bytes[0] = bytes[0].max(1);
        prop_assert!(postcard::from_bytes::<Cell>(&bytes).is_err(), "an unknown kind");
    }
}

#[test]
fn nothing_concurrent_is_given_up_while_the_keyspace_is_not_known() {
    let siblings = |mode: Option<&Mode>| {
        let mut held = None;
        merge_into(&mut held, &written("a", 1), mode);
        merge_into(&mut held, &written("b", 2), mode);
        let Some(Cell::Available(record)) = held else { panic!("two cells were merged") };
        record.siblings.len()
    };
    let mode = |conflict| Mode::Available(Available { r: 1, w: 1, strict: false, conflict });
    assert_eq!(siblings(Some(&mode(Conflict::Lww))), 1);
    assert_eq!(siblings(Some(&mode(Conflict::Siblings))), 2);
    assert_eq!(siblings(None), 2);
}

/// What one write leaves.
fn written(value: &'static str, instance: u64) -> Cell {
    let mut record = Record::default();
    let write = Write {
        written: Hlc(instance),
        request: RequestId { client: 1, stamp: Hlc(instance) },
        expires: None,
        value: Some(Bytes::from_static(value.as_bytes())),
    };
    let actor = Actor { instance, ..Actor::default() };
    record.write(actor, Replaces::Shown(&ContextToken::default()), Conflict::Siblings, write);
    record.into()
}

#[test]
fn keys_of_hints_and_markers_are_made_for_available_keyspaces() {
    let keyspace = Keyspace::initial().available().expect("the first keyspace is available");
    let owned = StorageKey::owned(PartitionId(7), keyspace.id(), b"key");
    assert_eq!(StorageKey::hint(keyspace, PartitionId(7), b"key"), owned.in_space(Space::Hint));
    assert_eq!(owned.marker(keyspace), owned.in_space(Space::Missed));
}
