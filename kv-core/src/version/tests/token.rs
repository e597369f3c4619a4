//! Context tokens come back as they were given, for their own key, or not at all.

use proptest::prelude::*;
use xxhash_rust::xxh3::xxh3_64;

use super::super::{Context, ContextToken, ContextTokenError, Dot, Hlc, RETIRED_MAX, Record, Retired, Version};
use super::{actor, any_context, any_ids};
use crate::types::{KeyspaceId, RequestId};

fn any_key() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 1..20)
}

proptest! {
    #[test]
    fn round_trips_for_its_own_key_only(
        context in any_context(),
        latest in any::<u64>(),
        shown in any_ids(),
        retired in any_ids(),
        keyspace in 0u32..3,
        key in any_key(),
        other_keyspace in 0u32..3,
        other_key in any_key(),
    ) {
        let (shown, retired) = (shown.iter().collect(), retired);
        let token = ContextToken { context, latest: Hlc(latest), shown, retired };
        let bytes = token.encode(KeyspaceId(keyspace), &key);
        prop_assert_eq!(ContextToken::decode(&bytes, KeyspaceId(keyspace), &key), Ok(token));
        if (keyspace, &key) != (other_keyspace, &other_key) {
            let refused = ContextToken::decode(&bytes, KeyspaceId(other_keyspace), &other_key);
            prop_assert_eq!(refused, Err(ContextTokenError::OtherKey));
        }
    }

    #[test]
    fn any_damage_is_refused(context in any_context(), retired in any_ids(), at in any::<prop::sample::Index>(), bit in 0u8..8, cut in any::<prop::sample::Index>()) {
        let token = ContextToken { context, latest: Hlc(77), retired, ..ContextToken::default() };
        let bytes = token.encode(KeyspaceId(1), b"key");
        let decode = |bytes: &[u8]| ContextToken::decode(bytes, KeyspaceId(1), b"key");
        let mut flipped = bytes.to_vec();
        flipped[at.index(bytes.len())] ^= 1 << bit;
        prop_assert_eq!(decode(&flipped), Err(ContextTokenError::Damaged));
        prop_assert_eq!(decode(&bytes[..cut.index(bytes.len())]), Err(ContextTokenError::Damaged));
        let mut longer = bytes.to_vec();
        longer.push(0);
        prop_assert_eq!(decode(&longer), Err(ContextTokenError::Damaged));
    }

    #[test]
    fn random_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(ContextToken::decode(&bytes, KeyspaceId(0), b"key").is_err());
    }

    /// The checks made right, so that the random bytes reach the decoder behind them.
    #[test]
    fn random_content_is_refused_or_read_back(content in prop::collection::vec(any::<u8>(), 0..200)) {
        is_read_back(&content)?;
    }

    /// Changes of a real token under right checks: they get further than random bytes.
    #[test]
    fn changed_content_is_refused_or_read_back(
        context in any_context(),
        shown in any_ids(),
        retired in any_ids(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let token = ContextToken { context, latest: Hlc(77), shown: shown.iter().collect(), retired };
        let bytes = token.encode(KeyspaceId(1), b"key");
        let mut content = bytes[HEAD..bytes.len() - CHECK].to_vec();
        for (at, byte) in changes {
            let at = at.index(content.len());
            content[at] = byte;
        }
        is_read_back(&content)?;
    }
}

/// Bytes of a token before its content: the format and the check of its key. Bytes behind it: the check of all before.
const HEAD: usize = 5;
const CHECK: usize = 4;

/// Whether a token with this content, under right checks, is refused or encodes to what decodes again.
fn is_read_back(content: &[u8]) -> Result<(), TestCaseError> {
    let own = ContextToken::default().encode(KeyspaceId(1), b"key");
    let mut bytes = [&own[..HEAD], content].concat();
    let check = xxh3_64(&bytes).to_le_bytes();
    bytes.extend_from_slice(&check[..CHECK]);
    match ContextToken::decode(&bytes, KeyspaceId(1), b"key") {
        Ok(token) => {
            let again = token.encode(KeyspaceId(1), b"key");
            prop_assert_eq!(ContextToken::decode(&again, KeyspaceId(1), b"key"), Ok(token));
        }
        Err(error) => prop_assert_eq!(error, ContextTokenError::Damaged),
    }
    Ok(())
}

/// The check is no signature: a client can make a token. It must not be able to stop the key's counters.
#[test]
fn forged_counters_are_refused() {
    let token = |counter| {
        let context: Context = [(actor(1), counter)].into_iter().collect();
        let bytes = ContextToken { context, ..ContextToken::default() }.encode(KeyspaceId(0), b"key");
        ContextToken::decode(&bytes, KeyspaceId(0), b"key").map(|_| ())
    };
    assert_eq!(token(1 << 61), Ok(()));
    assert_eq!(token((1 << 61) + 1), Err(ContextTokenError::Damaged));
    assert_eq!(token(u64::MAX), Err(ContextTokenError::Damaged));
}

#[test]
fn a_token_of_another_format_or_beyond_the_bounds_is_refused() {
    let checked = |mut bytes: Vec<u8>| {
        let check = xxh3_64(&bytes).to_le_bytes();
        bytes.extend_from_slice(&check[..CHECK]);
        ContextToken::decode(&bytes, KeyspaceId(1), b"key")
    };
    let own = ContextToken::default().encode(KeyspaceId(1), b"key");
    let body = own[..own.len() - CHECK].to_vec();
    assert_eq!(checked(body.clone()), Ok(ContextToken::default()));
    let older = checked([&[1], &body[1..]].concat()).unwrap_err();
    assert_eq!(older, ContextTokenError::Format { found: 1 });
    assert!(older.to_string().contains("has format 1, this build reads format 2; read the key again"), "{older}");
    // Context, timestamp, no shown ones, then one client and more retired ones than a record may have.
    let ids = [1, 0, 0].repeat(RETIRED_MAX + 1);
    let length = 9 + ids.len();
    assert_eq!(length, 6 << 7 | 0x0c, "the length that the bytes say");
    let bytes = [&own[..HEAD], &[0, 0, 0, 0x8c, 6, 1], &7u64.to_le_bytes(), &ids].concat();
    assert_eq!(checked(bytes), Err(ContextTokenError::Damaged));
}

#[test]
fn what_nobody_can_have_made_is_left_out() {
    let id = |stamp| RequestId { stamp: Hlc(stamp), client: 1 };
    let mut token = ContextToken {
        shown: vec![id(1), id(9)],
        retired: [id(2), id(8)].into_iter().collect(),
        ..ContextToken::default()
    };
    token.forget_above(Hlc(8));
    assert_eq!((token.shown.clone(), token.retired.iter().collect()), (vec![id(1)], vec![id(2), id(8)]));
    assert_eq!([1, 2, 8, 9].map(|stamp| token.knows(id(stamp))), [true, true, true, false]);
}

#[test]
fn a_write_beside_siblings_gives_back_what_its_client_saw_and_the_write() {
    let id = |stamp| RequestId { stamp: Hlc(stamp), client: 1 };
    let version = |instance, written| Version {
        dot: Dot { actor: actor(instance), counter: 1 },
        written: Hlc(written),
        request: id(written),
        expires: None,
        value: None,
    };
    let retired: Retired = [id(4)].into_iter().collect();
    let context: Context = [(actor(0), 1), (actor(1), 1)].into_iter().collect();
    let seen = ContextToken { latest: Hlc(3), shown: vec![id(3)], ..ContextToken::default() };
    let alone = Record { context: context.clone(), siblings: vec![version(1, 9)], retired: retired.clone() };
    let whole = ContextToken { context: context.clone(), latest: Hlc(9), shown: vec![id(9)], retired };
    assert_eq!(ContextToken::after_write(&alone, seen.clone(), id(9), Hlc(9)), whole);
    let beside = Record { context, siblings: vec![version(0, 8), version(1, 9)], retired: Retired::default() };
    let own = ContextToken { latest: Hlc(9), shown: vec![id(3), id(9)], ..seen.clone() };
    assert_eq!(ContextToken::after_write(&beside, seen, id(9), Hlc(9)), own);
}
