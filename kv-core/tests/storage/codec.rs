use std::time::Duration;

use bytes::Bytes;
use kv_core::cell::Cell;
use kv_core::error::StorageError;
use kv_core::register::done::{Done, Requests};
use kv_core::register::{Accepted, Ballot, Proposer, Register, State};
use kv_core::storage::{FORMAT_AVAILABLE, FORMAT_CONSISTENT, Space, Stored, StoredError};
use kv_core::types::{Epoch, Hlc, NodeId, RequestId, WallTime};
use kv_core::version::Version;
use proptest::prelude::*;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::support::{any_stored, key, stored};

proptest! {
    #[test]
    fn what_is_encoded_is_decoded(stored in any_stored()) {
        prop_assert_eq!(Stored::decode(&stored.encode()), Ok(stored.clone()));
        let peers = Stored { own: None, ..stored };
        prop_assert_eq!(Stored::encoded_len(&peers.cell), peers.encode().len());
    }

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(Stored::decode(&bytes).is_err());
    }

    /// The checksum made right, so that the random bytes reach the decoder behind it.
    #[test]
    fn random_content_never_panics(payload in proptest::collection::vec(any::<u8>(), 0..300)) {
        match Stored::decode(&sealed(&payload)) {
            Ok(stored) => is_read_back(&stored)?,
            Err(error) => prop_assert!(matches!(error, StoredError::Payload { .. }), "{}", error),
        }
    }

    /// Mutations of a real record under a right checksum: they get further than random bytes.
    #[test]
    fn mutated_content_never_panics(
        stored in any_stored(),
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
        cut in proptest::option::of(any::<proptest::sample::Index>()),
    ) {
        let mut payload = stored.encode()[5..].to_vec();
        for (at, byte) in changes {
            let at = at.index(payload.len());
            payload[at] = byte;
        }
        if let Some(cut) = cut {
            payload.truncate(cut.index(payload.len()));
        }
        match Stored::decode(&sealed(&payload)) {
            Ok(stored) => is_read_back(&stored)?,
            Err(error) => prop_assert!(matches!(error, StoredError::Payload { .. }), "{}", error),
        }
    }

    /// Valid records that no history makes, as broken peers and disks may bring them.
    #[test]
    fn whatever_decodes_merges_to_the_same_from_both_sides(
        pair in (any_stored(), any_stored()),
        changes in proptest::collection::vec((any::<bool>(), any::<proptest::sample::Index>(), any::<u8>()), 0..6),
    ) {
        let mut contents = [pair.0.encode()[5..].to_vec(), pair.1.encode()[5..].to_vec()];
        for (which, at, byte) in changes {
            let content = &mut contents[usize::from(which)];
            let at = at.index(content.len());
            content[at] = byte;
        }
        let [Ok(one), Ok(other)] = contents.map(|content| Stored::decode(&sealed(&content))) else { return Ok(()) };
        let (mut here, mut there) = (one.cell.clone(), other.cell.clone());
        here.merge(&other.cell, None);
        there.merge(&one.cell, None);
        prop_assert_eq!(&here, &there);
        prop_assert!(here.is_valid() && here.dominates(&one.cell) && here.dominates(&other.cell));
        // Two requests under one dot are a broken node's doing, and one of them may be known under another dot.
        let [Some(first), Some(second)] = [one.cell.record(), other.cell.record()] else { panic!("two records") };
        let agree = |mine: &Version| second.siblings.iter().all(|their| their.dot != mine.dot || their.request == mine.request);
        if first.siblings.iter().all(agree) {
            let digest = here.digest();
            here.merge(&one.cell, None);
            prop_assert_eq!(here.digest(), digest);
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed(stored in any_stored(), at in any::<proptest::sample::Index>(), bit in 0..8u8) {
        let mut bytes = stored.encode().to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let error = Stored::decode(&bytes).unwrap_err();
        let expected = if at == 0 {
            matches!(error, StoredError::Format { found } if found == bytes[0])
        } else {
            matches!(error, StoredError::Checksum { .. })
        };
        prop_assert!(expected, "byte {}: {}", at, error);
    }

    #[test]
    fn every_cut_is_noticed(stored in any_stored(), cut in any::<proptest::sample::Index>()) {
        let bytes = stored.encode();
        prop_assert!(Stored::decode(&bytes[..cut.index(bytes.len())]).is_err());
    }
}

/// What was decoded is valid, and encodes to what decodes again.
fn is_read_back(stored: &Stored) -> Result<(), TestCaseError> {
    prop_assert!(stored.cell.is_valid());
    prop_assert_eq!(Stored::decode(&stored.encode()), Ok(stored.clone()));
    Ok(())
}

#[test]
fn the_format_on_the_medium_does_not_change_unnoticed() {
    let hex: String = stored(9, Some(b"value")).encode().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(hex, EXPECTED);
}

const EXPECTED: &str = "026678640301ef9bafcdf8acd1910103effdb6f50d090101000001000107ffeeddccbbaa9988f9ffffffffffffff\
    3f00010576616c7565";

#[test]
fn each_cause_has_its_error() {
    let bytes = stored(1, Some(b"v")).encode();
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = bytes.to_vec();
        change(&mut bytes);
        Stored::decode(&bytes).unwrap_err()
    };
    assert_eq!(with(&|bytes| bytes.truncate(4)), StoredError::TooShort { found: 4 });
    assert_eq!(with(&|bytes| bytes[0] = FORMAT_AVAILABLE + 1), StoredError::Format { found: FORMAT_AVAILABLE + 1 });
    assert!(matches!(with(&|bytes| bytes[9] ^= 1), StoredError::Checksum { .. }));
    let mut longer = bytes[5..].to_vec();
    longer.push(0);
    let error = Stored::decode(&sealed(&longer)).unwrap_err();
    assert_eq!(error.to_string(), "its content is not a record: bytes follow the record");
    assert_eq!(
        StoredError::Format { found: 9 }.to_string(),
        "it has record format 9, this build reads formats 2 (of available keyspaces) and 65 (of consistent ones); read it \
         with the build that wrote it"
    );
}

#[test]
fn a_record_that_breaks_its_own_rules_is_refused() {
    // No context, no own actor, nothing retired, one sibling of the first actor of the context: nobody.
    let payload = [&[0, 0, 0, 1, 0, 1, 0][..], &[0; 8], &[0, 0, 0]].concat();
    let error = Stored::decode(&sealed(&payload)).unwrap_err();
    assert_eq!(error.to_string(), "its content is not a record: it names an actor that its context has not seen");
}

#[test]
fn a_damaged_record_is_named_with_its_remedy() {
    let key = key(Space::Owned, 7, 0, b"user:1");
    let error: StorageError = StoredError::TooShort { found: 0 }.at(&key);
    let text = error.to_string();
    assert!(text.contains("Owned/p7/ks0/user:1") && text.contains("repair"), "{text}");
}

#[test]
fn a_decoded_value_has_memory_of_its_own() {
    let bytes = stored(1, Some(&[7; 64])).encode();
    let decoded = Stored::decode(&bytes).unwrap();
    let Some(record) = decoded.cell.record() else { panic!("a record") };
    let value: &Bytes = record.siblings[0].value.as_ref().unwrap();
    let frame = bytes.as_ptr_range();
    assert!(!frame.contains(&value.as_ptr()), "keeping a value must not keep the frame that it came in");
}

fn sealed(payload: &[u8]) -> Vec<u8> {
    let check = xxh3_64_with_seed(payload, u64::from(FORMAT_AVAILABLE)).to_le_bytes();
    [&[FORMAT_AVAILABLE], &check[..4], payload].concat()
}

fn ballot(counter: u64) -> Ballot {
    Ballot { epoch: Epoch(3), counter, proposer: Proposer { node: NodeId(2), boot: 1, nonce: 0xdead_beef } }
}

/// A register that has accepted a value, or nothing.
fn register(value: Option<&[u8]>) -> Stored {
    let mut requests = Requests::default();
    let request = RequestId { stamp: Hlc(9), client: 7 };
    requests.remember(Done { request, version: Some(ballot(2)) }, Duration::from_mins(10));
    let accepted = value.map(|value| Accepted {
        ballot: ballot(4),
        state: State {
            version: ballot(2),
            requests,
            written: Hlc(9),
            expires: Some(WallTime(5)),
            value: Some(Bytes::copy_from_slice(value)),
        },
    });
    Stored { own: None, cell: Register { promised: ballot(5), accepted, empty_since: Hlc::default() }.into() }
}

#[test]
fn a_register_is_read_as_it_was_written_and_nothing_else_is() {
    for stored in [register(None), register(Some(b"value")), register(Some(&[1; 5000]))] {
        let bytes = stored.encode();
        assert_eq!(bytes[0], FORMAT_CONSISTENT);
        assert_eq!(Stored::decode(&bytes), Ok(stored));
        for length in 0..bytes.len() {
            assert!(Stored::decode(&bytes[..length]).is_err());
        }
        let mut as_record = bytes.to_vec();
        as_record[0] = FORMAT_AVAILABLE;
        assert!(Stored::decode(&as_record).is_err(), "no kind is read as another");
    }
    let promise_forgotten = Register { promised: ballot(1), ..register(Some(b"v")).cell.register().cloned().unwrap() };
    let payload = postcard::to_allocvec(&promise_forgotten).unwrap();
    let check = xxh3_64_with_seed(&payload, u64::from(FORMAT_CONSISTENT)).to_le_bytes();
    let bytes = [&[FORMAT_CONSISTENT], &check[..4], &payload].concat();
    assert!(matches!(Stored::decode(&bytes), Err(StoredError::Payload { .. })));
}

#[test]
fn registers_are_equal_by_what_they_have_accepted() {
    let other = Register { promised: ballot(9), ..register(Some(b"v")).cell.register().cloned().unwrap() };
    let (one, other) = (register(Some(b"v")).cell, Cell::from(other));
    assert_eq!(one.digest(), other.digest());
    assert!(one.dominates(&other) && other.dominates(&one));
    assert!(one.has_value() && one.value_bytes() == 1 && one.expires() == Some(WallTime(5)));
    assert!(!register(None).cell.has_value() && one.dominates(&register(None).cell));
    assert!(!register(None).cell.dominates(&one));
}
