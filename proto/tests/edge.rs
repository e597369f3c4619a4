//! What the edge lets in, and what it says about the rest.

use std::time::Duration;

use bytes::Bytes;
use kv_core::config::{ClusterConfig, Keyspace, Mode};
use kv_core::error::{Kind, RequestError};
use kv_core::message::{Attempt, Hello, KeyRequest, Level, Operation, Request, When};
use kv_core::register::token;
use kv_core::types::{Epoch, Hlc, KeyspaceId, RequestId};
use kv_proto::edge::{Edge, Keyspaces, cursor_after};
use kv_proto::limits::SCAN_PAGE_KEYS_MAX;
use kv_proto::peer::Joining;
use kv_proto::v1;
use proptest::prelude::*;
use prost::Message as _;

/// Some time of the year 2026.
const STAMP: u64 = 1_780_000_000_000_000 << 12;

fn with_edge<T>(check: impl FnOnce(Edge<'_>) -> T) -> T {
    let keyspaces = Keyspaces::from_iter([Keyspace::initial(), locks()]);
    let limits = ClusterConfig::default();
    check(Edge { limits: &limits, keyspaces: &keyspaces })
}

fn locks() -> Keyspace {
    Keyspace { id: KeyspaceId(4), name: "locks".to_owned(), mode: Mode::Consistent }
}

/// A put in the consistent keyspace.
fn put_lock(key: &str) -> v1::PutRequest {
    v1::PutRequest { keyspace: locks().name, ..put(key) }
}

fn put(key: &str) -> v1::PutRequest {
    v1::PutRequest { key: Bytes::copy_from_slice(key.as_bytes()), ..Default::default() }
}

/// The kind and message of the refusal.
fn refused<T: std::fmt::Debug>(result: Result<T, RequestError>) -> String {
    let error = result.expect_err("the edge lets it in");
    format!("{:?}: {}", error.kind, error.message)
}

fn key_request(request: Request) -> KeyRequest {
    match request {
        Request::Key(request) => request,
        other => panic!("not an operation on a key: {other:?}"),
    }
}

#[test]
fn a_full_put_arrives_whole() {
    let wire = v1::PutRequest {
        value: Bytes::from_static(b"v"),
        context: Some(Bytes::from_static(b"token")),
        ttl_ms: Some(1500),
        request: Some(v1::RequestId { client: 3, stamp: STAMP }),
        attempt: v1::Attempt::Repeated.into(),
        level: v1::Level::All.into(),
        strict: true,
        epoch: 9,
        timeout_ms: 250,
        ..put("k")
    };
    let incoming = with_edge(|edge| edge.put(&wire)).expect("valid");
    assert_eq!(incoming.timeout, Some(Duration::from_millis(250)));
    let request = key_request(incoming.request);
    assert_eq!((request.epoch, request.consistency.level, request.consistency.strict), (Epoch(9), Level::All, true));
    assert_eq!(
        request.operation,
        Operation::Write {
            request: Some(RequestId { client: 3, stamp: Hlc(STAMP) }),
            attempt: Attempt::Repeated,
            value: Some(Bytes::from_static(b"v")),
            context: Some(Bytes::from_static(b"token")),
            ttl: Some(Duration::from_millis(1500)),
            when: When::Always,
        }
    );
}

#[test]
fn a_write_without_an_id_is_named_by_its_coordinator() {
    let incoming = with_edge(|edge| edge.put(&put("k"))).expect("valid");
    let Operation::Write { request, attempt, .. } = key_request(incoming.request).operation else { panic!("no write") };
    assert_eq!((request, attempt), (None, Attempt::Plain));
}

#[test]
fn bad_puts_are_refused_with_field_and_limit() {
    let check = |wire: v1::PutRequest, expected: &str| {
        assert_eq!(with_edge(|edge| refused(edge.put(&wire))), expected);
    };
    check(put(""), "Invalid: key: is empty; a key has at least 1 byte");
    check(
        put(&"k".repeat(4097)),
        "Invalid: key: has 4097 bytes, 4096 are allowed; use a shorter key, such as a hash of this one",
    );
    check(
        v1::PutRequest { value: vec![0; 1024 * 1024 + 1].into(), ..put("k") },
        "Invalid: value: has 1048577 bytes, 1048576 are allowed; store a larger value in pieces",
    );
    check(
        v1::PutRequest { keyspace: "nope".to_owned(), ..put("k") },
        "NotFound: no keyspace \"nope\"; create it, or use one of: default, locks",
    );
    check(
        v1::PutRequest { level: 7, ..put("k") },
        "Invalid: level: 7 is not a level; use 0 (as the keyspace says), 1 (one), 2 (quorum) or 3 (all)",
    );
    check(
        v1::PutRequest { ttl_ms: Some(0), ..put("k") },
        "Invalid: ttl_ms: is 0; leave it out for a value that stays, or delete the key",
    );
    check(
        v1::PutRequest { ttl_ms: Some(u64::MAX), ..put("k") },
        "Invalid: ttl_ms: is 18446744073709551615, at most 3153600000000 (100 years) are allowed; \
         leave it out for a value that stays",
    );
    check(
        v1::PutRequest { context: Some(Bytes::new()), ..put("k") },
        "Invalid: context: is empty; pass what a get returned, or leave it out",
    );
    check(
        v1::PutRequest { context: Some(vec![1; 300_000].into()), ..put("k") },
        "Invalid: context: has 300000 bytes, 233520 are allowed; pass it as a get returned it",
    );
    check(
        v1::PutRequest { timeout_ms: 3_600_001, ..put("k") },
        "Invalid: timeout_ms: is 3600001, at most 3600000 (one hour) are allowed; leave it out for the node's own limit",
    );
    check(
        v1::PutRequest { request: Some(v1::RequestId { client: 0, stamp: STAMP }), ..put("k") },
        "Invalid: request: client is 0; draw a random number for each session, or leave the request id out to have the node draw \
         one",
    );
    check(
        v1::PutRequest { request: Some(v1::RequestId { client: 3, stamp: 17 }), ..put("k") },
        "Invalid: request: stamp is 17, which is no time after 2019; stamps are microseconds since 1970 times 4096, above the \
         newest timestamp of every answer; leave the request id out to have the node draw one",
    );
    check(
        v1::PutRequest { attempt: v1::Attempt::Repeated.into(), ..put("k") },
        "Invalid: attempt: is set without a request id; pass the id under which the write was or may be sent again",
    );
    check(
        v1::PutRequest { attempt: 3, ..put("k") },
        "Invalid: attempt: 3 is none; use 0 (not sent before), 1 (not sent before, draws another stamp) or 2 (repeated)",
    );
    let empty = v1::BatchOperation { id: 1, operation: None };
    let said = with_edge(|edge| refused(edge.operation(&empty)));
    assert_eq!(said, "Invalid: operation: is missing; set get, put or delete");
}

#[test]
fn conditions_arrive_in_consistent_keyspaces() {
    let context = token::encode(None, locks().id, b"k");
    let condition = |request: KeyRequest| match request.operation {
        Operation::Write { when, context, .. } => (when, context),
        Operation::Get => panic!("no write"),
    };
    let put = |wire: v1::PutRequest| condition(key_request(with_edge(|edge| edge.put(&wire)).expect("valid").request));
    assert_eq!(put(put_lock("k")), (When::Always, None));
    assert_eq!(put(v1::PutRequest { if_absent: true, ..put_lock("k") }), (When::Absent, None));
    let unchanged = v1::PutRequest { if_context: Some(context.clone()), ..put_lock("k") };
    assert_eq!(put(unchanged), (When::Unchanged, Some(context.clone())));
    let delete = v1::DeleteRequest {
        keyspace: locks().name,
        key: "k".into(),
        if_context: Some(context.clone()),
        level: v1::Level::Quorum.into(),
        strict: true,
        ..Default::default()
    };
    let delete = condition(key_request(with_edge(|edge| edge.delete(&delete)).expect("valid").request));
    assert_eq!(delete, (When::Unchanged, Some(context)));
}

#[test]
fn what_a_mode_does_not_serve_is_refused_with_the_remedy() {
    let check = |wire: v1::PutRequest, expected: &str| {
        assert_eq!(with_edge(|edge| refused(edge.put(&wire))), format!("Invalid: {expected}"));
    };
    let context = token::encode(None, locks().id, b"k");
    check(
        v1::PutRequest { if_absent: true, ..put("k") },
        "if_absent: keyspace default is available, and two nodes could both find a condition true there; use a keyspace of mode \
         consistent (keyspace create NAME --mode consistent)",
    );
    check(
        v1::PutRequest { if_context: Some(context.clone()), ..put("k") },
        "if_context: keyspace default is available, and two nodes could both find a condition true there; use a keyspace of mode \
         consistent (keyspace create NAME --mode consistent)",
    );
    check(
        v1::PutRequest { if_absent: true, if_context: Some(context.clone()), ..put_lock("k") },
        "if_context: is set beside if_absent, and a write has one condition; the context of a get that found nothing says the same as \
         if_absent",
    );
    check(
        v1::PutRequest { if_absent: true, context: Some(context.clone()), ..put_lock("k") },
        "context: is set beside a condition; leave it out, since a write on a condition replaces what the condition names",
    );
    check(
        v1::PutRequest { context: Some(context.clone()), ..put_lock("k") },
        "context: keyspace locks is consistent, and holds no values side by side that a context could name; pass the context as a \
         condition, if_context (--if-context), or leave it out",
    );
    check(
        v1::PutRequest { if_context: Some(Bytes::new()), ..put_lock("k") },
        "if_context: is empty; pass what a get returned, or leave it out",
    );
    let foreign = "if_context: no read of this key of keyspace locks gave this context: it is damaged, of another key, of another \
                   keyspace, or from before the keyspace was dropped and created again; pass the context that a get of this key \
                   returned";
    check(v1::PutRequest { if_context: Some(context.clone()), ..put_lock("other") }, foreign);
    let before = token::encode(None, KeyspaceId(3), b"k");
    check(v1::PutRequest { if_context: Some(before), ..put_lock("k") }, foreign);
    check(v1::PutRequest { if_context: Some(Bytes::from_static(&[2; 20])), ..put_lock("k") }, foreign);
    for (level, word) in [(v1::Level::One, "one"), (v1::Level::All, "all")] {
        let expected = format!(
            "level: is {word}, and keyspace locks is consistent, where a majority of the owners agrees on every answer; leave the level \
             out, or use quorum (2)"
        );
        check(v1::PutRequest { level: level.into(), ..put_lock("k") }, &expected);
        let get = v1::GetRequest { keyspace: locks().name, key: "k".into(), level: level.into(), ..Default::default() };
        assert_eq!(with_edge(|edge| refused(edge.get(&get))), format!("Invalid: {expected}"));
        let scan = v1::ScanRequest { keyspace: locks().name, level: level.into(), ..Default::default() };
        assert_eq!(with_edge(|edge| refused(edge.scan(&scan))), format!("Invalid: {expected}"));
    }
}

#[test]
fn limits_are_inclusive() {
    let wire = v1::PutRequest { value: vec![0; 1024 * 1024].into(), ..put(&"k".repeat(4096)) };
    assert!(with_edge(|edge| edge.put(&wire)).is_ok());
}

#[test]
fn an_empty_keyspace_name_means_default() {
    let named = v1::GetRequest { keyspace: "default".to_owned(), key: "k".into(), ..Default::default() };
    let unnamed = v1::GetRequest { key: "k".into(), ..Default::default() };
    with_edge(|edge| assert_eq!(edge.get(&named), edge.get(&unnamed)));
}

#[test]
fn scans_are_paged() {
    let scan = |limit| with_edge(|edge| edge.scan(&v1::ScanRequest { limit, ..Default::default() })).expect("valid");
    assert_eq!((scan(0).page.limit, scan(0).limit), (SCAN_PAGE_KEYS_MAX, None));
    assert_eq!((scan(3).page.limit, scan(3).limit), (3, Some(3)));
    assert_eq!((scan(u64::MAX).page.limit, scan(u64::MAX).limit), (SCAN_PAGE_KEYS_MAX, Some(u64::MAX)));
}

#[test]
fn foreign_cursors_are_refused() {
    for cursor in [&b"\x02key"[..], b"\x01", b"key"] {
        let wire = v1::ScanRequest { cursor: Bytes::copy_from_slice(cursor), ..Default::default() };
        let error = with_edge(|edge| edge.scan(&wire)).expect_err("not a cursor");
        assert_eq!(error.kind, Kind::Invalid);
        assert!(error.message.starts_with("cursor: is damaged"), "{error}");
    }
}

proptest! {
    #[test]
    fn a_cursor_continues_behind_its_key(key in proptest::collection::vec(any::<u8>(), 1..100)) {
        let wire = v1::ScanRequest { cursor: cursor_after(Some(&key)), ..Default::default() };
        let after = with_edge(|edge| edge.scan(&wire)).map(|scan| scan.page.after);
        prop_assert_eq!(after, Ok(Some(Bytes::from(key))));
    }

    #[test]
    fn any_cursor_is_refused_or_read_back(cursor in cursor_like()) {
        let wire = v1::ScanRequest { cursor: Bytes::from(cursor.clone()), ..Default::default() };
        if let Ok(scan) = with_edge(|edge| edge.scan(&wire)) {
            prop_assert_eq!(&cursor_after(scan.page.after.as_deref())[..], &cursor[..]);
        }
    }

    #[test]
    fn any_bytes_as_a_batch_are_refused_or_read_back(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        batch_is_read_back(&bytes)?;
    }

    /// Changes of a real batch: they get further than random bytes.
    #[test]
    fn a_changed_batch_is_refused_or_read_back(
        key in proptest::collection::vec(any::<u8>(), 0..20),
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let get = v1::GetRequest { key: Bytes::from(key.clone()), level: 2, ..Default::default() };
        let put = v1::PutRequest { ttl_ms: Some(5), context: Some(Bytes::from_static(b"c")), ..put("k") };
        let operation = |id, operation| v1::BatchOperation { id, operation: Some(operation) };
        let operations = vec![
            operation(1, v1::batch_operation::Operation::Get(get)),
            operation(2, v1::batch_operation::Operation::Put(put)),
            operation(3, v1::batch_operation::Operation::Put(v1::PutRequest { if_absent: true, ..put_lock("k") })),
            operation(4, v1::batch_operation::Operation::Delete(v1::DeleteRequest {
                keyspace: locks().name,
                key: "k".into(),
                if_context: Some(token::encode(None, locks().id, b"k")),
                ..Default::default()
            })),
        ];
        let mut bytes = v1::BatchRequest { operations, sent_us: 9 }.encode_to_vec();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        batch_is_read_back(&bytes)?;
    }

    /// What nodes say of themselves before anything else.
    #[test]
    fn any_bytes_as_a_greeting_are_refused_or_read_back(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
        if let Ok(hello) = v1::Hello::decode(&bytes[..]).map_err(drop).and_then(|wire| Hello::try_from(wire).map_err(drop)) {
            prop_assert_eq!(Hello::try_from(v1::Hello::from(&hello)), Ok(hello));
        }
        let joining = v1::JoinRequest::decode(&bytes[..]).map_err(drop);
        if let Ok(joining) = joining.and_then(|wire| Joining::try_from(wire).map_err(drop)) {
            prop_assert_eq!(Joining::try_from(v1::JoinRequest::from(joining.clone())), Ok(joining));
        }
    }
}

/// Bytes of which some begin as cursors do.
fn cursor_like() -> impl Strategy<Value = Vec<u8>> {
    let key = || proptest::collection::vec(any::<u8>(), 0..40);
    prop_oneof![key(), key().prop_map(|key| [&[1], &key[..]].concat())]
}

/// Whether bytes are no batch, or one that encodes to what decodes again and whose operations are judged.
fn batch_is_read_back(bytes: &[u8]) -> Result<(), TestCaseError> {
    let Ok(batch) = v1::BatchRequest::decode(bytes) else { return Ok(()) };
    prop_assert_eq!(v1::BatchRequest::decode(&batch.encode_to_vec()[..]), Ok(batch.clone()));
    for operation in &batch.operations {
        if let Err(error) = with_edge(|edge| edge.operation(operation)) {
            prop_assert!(!error.message.is_empty());
        }
    }
    Ok(())
}

#[test]
fn the_end_of_a_scan_has_no_cursor() {
    assert!(cursor_after(None).is_empty());
}
