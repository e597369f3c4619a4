//! The encoding: what is sent is read back, and nothing else is.

use proptest::prelude::*;

use super::*;
use crate::error::Kind;
use crate::ring::Owner;
use crate::storage::{LEAVES, Leaf, Tally};
use crate::types::{Monotonic, StoreId};
use crate::version::{Actor, Conflict, ContextToken, Record, Replaces, Write};

fn actor(instance: u64) -> Actor {
    Actor { store: StoreId(0x0123_4567_89ab_cdef), boot: 3, nonce: 0xdead_beef, instance }
}

fn record_of(values: &[usize]) -> Record {
    let mut record = Record::default();
    for (instance, &length) in (1..).zip(values) {
        let request = RequestId { client: 0x0123_4567_89ab_cdef, stamp: Hlc(instance) };
        let value = Some(Bytes::from(vec![b'v'; length]));
        let written = Hlc::at(WallTime(1_790_000_000_000_000));
        record.write(
            actor(instance),
            Replaces::Shown(&ContextToken::default()),
            Conflict::Siblings,
            Write { written, request, expires: None, value },
        );
    }
    record
}

fn any_cell() -> impl Strategy<Value = Cell> {
    prop::collection::vec(0usize..40, 0..4).prop_map(|values| record_of(&values).into())
}

fn any_bytes() -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..20).prop_map(Bytes::from)
}

fn any_entry() -> impl Strategy<Value = Entry> {
    let owner = |node| Owner { node: NodeId(node), since: Epoch(1) };
    (1u64..4).prop_map(move |owners| Entry::settled(Epoch(5), (0..owners).map(owner).collect()))
}

fn any_refusal() -> impl Strategy<Value = Refusal> {
    prop_oneof![
        any_entry().prop_map(|newer| Refusal::Stale { newer }),
        any::<u64>().prop_map(|epoch| Refusal::Behind { epoch: Epoch(epoch) }),
        Just(Refusal::NotSynced),
        Just(Refusal::ClockOff),
        Just(Refusal::Late),
        Just(Refusal::NotOwner),
        Just(Refusal::Busy(RequestError::exhausted("full"))),
        Just(Refusal::Failed(RequestError::new(Kind::Corrupt, "damaged"))),
    ]
}

fn any_request() -> impl Strategy<Value = Request> {
    let consistency = prop_oneof![Just(Consistency::default()), Just(Consistency { level: Level::All, strict: true })];
    let operation = prop_oneof![
        Just(Operation::Get),
        (any::<u64>(), prop::option::of(any_bytes()), prop::option::of(any_bytes()), prop::option::of(any::<u64>()))
            .prop_map(|(sequence, value, context, ttl)| Operation::Write {
                request: (sequence > 0).then_some(RequestId { client: 1, stamp: Hlc(sequence) }),
                attempt: [Attempt::Plain, Attempt::First, Attempt::Repeated, Attempt::Hedge]
                    [usize::from(sequence.to_le_bytes()[0]) % 4],
                value,
                context,
                ttl: ttl.map(Duration::from_micros),
                when: [When::Always, When::Absent, When::Unchanged][usize::from(sequence.to_le_bytes()[1]) % 3],
            }),
    ];
    prop_oneof![
        (any::<u32>(), any_bytes(), any::<u64>(), consistency, operation).prop_map(
            |(keyspace, key, epoch, consistency, operation)| Request::Key(KeyRequest {
                keyspace: KeyspaceId(keyspace),
                key,
                epoch: Epoch(epoch),
                consistency,
                operation
            })
        ),
        (any_bytes(), prop::option::of(any_bytes()), any::<u16>()).prop_map(|(prefix, after, limit)| {
            let (keyspace, consistency) = (KeyspaceId(1), Consistency::default());
            Request::Scan(ScanRequest { keyspace, prefix, after, limit: limit.into(), keys_only: true, consistency })
        }),
        any_bytes().prop_map(|key| Request::Inspect { keyspace: KeyspaceId(2), key }),
    ]
}

fn any_response() -> impl Strategy<Value = Response> {
    let value = || any_bytes().prop_map(|value| Value { value, written: Hlc(5), expires: Some(WallTime(9)) });
    let entry = (any_bytes(), prop::collection::vec(value(), 0..3), any_bytes())
        .prop_map(|(key, values, context)| ScanEntry { key, values, context });
    let view = prop_oneof![prop::option::of(any_cell()).prop_map(Ok), Just(Err(RequestError::unavailable("down"))),]
        .prop_map(|cell| ReplicaView { node: NodeId(4), owner: true, cell });
    prop_oneof![
        (prop::collection::vec(value(), 0..3), any_bytes()).prop_map(|(values, context)| Response::Got {
            values,
            context,
            newest: Hlc(77)
        }),
        (any_bytes(), 1usize..9).prop_map(|(context, siblings)| Response::Written {
            context,
            siblings,
            newest: Hlc(78)
        }),
        (prop::collection::vec(entry, 0..3), prop::option::of(any_bytes()))
            .prop_map(|(entries, next)| Response::Page { entries, next }),
        prop::collection::vec(view, 0..3).prop_map(|replicas| Response::Inspected { replicas }),
    ]
}

fn result_of<T: std::fmt::Debug>(done: impl Strategy<Value = T>) -> impl Strategy<Value = Result<T, Refusal>> {
    prop_oneof![2 => done.prop_map(Ok), 1 => any_refusal().prop_map(Err)]
}

fn any_reading() -> impl Strategy<Value = Reading> {
    let echo = (any::<u64>(), any::<u32>())
        .prop_map(|(mono, held)| Echo { mono: Monotonic(mono), held: Duration::from_micros(held.into()) });
    (any::<u64>(), any::<u64>(), proptest::option::of(echo)).prop_map(|(wall, mono, echo)| Reading {
        wall: WallTime(wall),
        mono: Monotonic(mono),
        echo,
    })
}

fn any_position() -> impl Strategy<Value = Position> {
    (any::<u32>().prop_map(KeyspaceId), any_bytes())
}

fn any_keyed() -> impl Strategy<Value = Vec<Keyed>> {
    prop::collection::vec((any::<u32>().prop_map(KeyspaceId), any_bytes(), any_cell()), 0..3)
}

fn any_leaves() -> impl Strategy<Value = Vec<Leaf>> {
    any::<u64>().prop_map(|seed| (0..LEAVES as u64).map(|leaf| Leaf { count: leaf % 5, hash: seed ^ leaf }).collect())
}

fn any_question() -> impl Strategy<Value = Question> {
    let after = || prop::option::of(any_position());
    prop_oneof![
        any::<Option<u64>>().prop_map(|unless| Question::Leaves { unless }),
        (after(), any::<u32>()).prop_map(|(after, bytes_max)| Question::Records { after, bytes_max }),
        (any_leaves(), after()).prop_map(|(leaves, after)| Question::Digests {
            leaves: LeafSet::differing(&leaves, &vec![Leaf { count: 1, hash: 1 }; LEAVES]),
            after
        }),
        prop::collection::vec(any_position(), 0..3).prop_map(|keys| Question::Fetch { keys }),
        any_keyed().prop_map(|records| Question::Offer { records }),
    ]
}

fn any_answer() -> impl Strategy<Value = Answer> {
    let next = || prop::option::of(any_position());
    let entry = (any_position(), any::<u64>(), any::<u32>()).prop_map(|((keyspace, key), digest, bytes)| DigestEntry {
        keyspace,
        key,
        digest,
        bytes,
    });
    prop_oneof![
        (any_leaves(), any::<u64>()).prop_map(|(leaves, root)| {
            Answer::Leaves(Tree { leaves, root, tally: Tally { keys: 1, bytes: root, records: 2 }, settled: Hlc(root) })
        }),
        (any_keyed(), next(), any::<u64>()).prop_map(|(records, next, settled)| Answer::Records {
            records,
            next,
            settled: Hlc(settled)
        }),
        (prop::collection::vec(entry, 0..3), next(), any::<u64>())
            .prop_map(|(entries, next, settled)| Answer::Digests { entries, next, settled: Hlc(settled) }),
        Just(Answer::Taken),
        Just(Answer::Equal),
    ]
}

fn any_message() -> impl Strategy<Value = Message> {
    let call = || any::<u64>().prop_map(CallId);
    let role = || prop_oneof![Just(Role::Owner), Just(Role::Fallback)];
    let outcome = prop_oneof![any_response().prop_map(Ok), Just(Err(RequestError::invalid("no")))];
    let held = prop_oneof![
        prop::option::of(any_cell()).prop_map(ReadReply::Full),
        prop::option::of(any::<u64>()).prop_map(ReadReply::Digest)
    ];
    let records = || prop::collection::vec((any::<u32>().prop_map(KeyspaceId), any_bytes(), any_cell()), 0..3);
    let query = (prop::collection::vec((any::<u16>(), any::<u64>()), 0..4), any_bytes(), prop::option::of(any_bytes()))
        .prop_map(|(partitions, prefix, after)| SliceQuery {
            partitions: partitions.into_iter().map(|(id, epoch)| (PartitionId(id), Epoch(epoch))).collect(),
            keyspace: KeyspaceId(3),
            prefix,
            after,
            limit: 10,
            keys_only: false,
        });
    let purpose =
        prop_oneof![Just(Purpose::Refill), Just(Purpose::Copy), Just(Purpose::HandOver), Just(Purpose::Settle)];
    let step = || {
        prop_oneof![
            Just(SettleStep::Confirm),
            Just(SettleStep::Hold),
            Just(SettleStep::Release),
            Just(SettleStep::Adopt)
        ]
    };
    let hindrance = prop_oneof![
        Just(Hindrance::Epoch),
        Just(Hindrance::Hints),
        Just(Hindrance::Residue),
        Just(Hindrance::Incomplete),
        any::<u32>().prop_map(|ms| Hindrance::Clock { behind: Duration::from_millis(ms.into()) }),
        Just(Hindrance::NotOwner)
    ];
    let taken = prop_oneof![Just(Ok(())), hindrance.prop_map(Err)];
    prop_oneof![
        (call(), any_request(), any::<u32>()).prop_map(|(call, request, ms)| Message::Forward {
            call,
            request,
            deadline: Duration::from_millis(ms.into())
        }),
        (call(), result_of(outcome)).prop_map(|(call, outcome)| Message::Forwarded { call, outcome }),
        (call(), any::<u64>(), role(), any_bytes(), any_cell()).prop_map(|(call, epoch, role, key, cell)| {
            Message::Replicate { call, epoch: Epoch(epoch), role, keyspace: KeyspaceId(0), key, cell }
        }),
        (call(), result_of(Just(())), any::<u64>()).prop_map(|(call, result, commit)| Message::Replicated {
            call,
            result,
            commit
        }),
        (any::<u64>(), any_reading()).prop_map(|(commit, clock)| Message::Shown { commit, clock }),
        (call(), role(), any_bytes(), any::<bool>()).prop_map(|(call, role, key, digest)| {
            Message::Read { call, epoch: Epoch(8), role, keyspace: KeyspaceId(1), key, digest }
        }),
        (call(), result_of(held), any::<u64>()).prop_map(|(call, result, settled)| Message::ReadResult {
            call,
            result,
            settled: Hlc(settled)
        }),
        (call(), query).prop_map(|(call, slice)| Message::Slice { call, slice }),
        (
            call(),
            result_of((records(), any::<bool>(), any::<u64>()).prop_map(|(records, more, settled)| SliceAnswer {
                records,
                more,
                settled: vec![(PartitionId(1), Hlc(settled))],
            }))
        )
            .prop_map(|(call, result)| Message::SliceResult { call, result }),
        (call(), any::<u16>(), purpose, any_question()).prop_map(|(call, partition, purpose, question)| {
            Message::Exchange { call, partition: PartitionId(partition), epoch: Epoch(3), purpose, question }
        }),
        (call(), result_of(any_answer()), any::<u64>()).prop_map(|(call, result, commit)| Message::ExchangeResult {
            call,
            result,
            commit
        }),
        (call(), step(), any::<u64>(), prop::collection::vec((any::<u16>(), any::<u64>()), 0..4)).prop_map(
            |(round, step, until, partitions)| Message::Settle {
                round,
                step,
                until: Hlc(until),
                partitions: partitions.into_iter().map(|(id, epoch)| (PartitionId(id), Epoch(epoch))).collect(),
            }
        ),
        (call(), step(), prop::collection::vec((any::<u16>().prop_map(PartitionId), taken), 0..4))
            .prop_map(|(round, step, answers)| Message::Settled { round, step, answers }),
        any::<u64>().prop_map(|epoch| Message::CaughtUp { epoch: Epoch(epoch) }),
        Just(Message::Ping),
        Just(Message::Pong),
        (0u32..9).prop_map(|next| Message::Keyspaces {
            list: crate::config::KeyspaceList::new(KeyspaceId(next), [crate::config::Keyspace::initial()]),
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn round_trips(message in any_message()) {
        let bytes = message.encode();
        prop_assert_eq!(Message::decode(&bytes), Ok(message));
    }

    #[test]
    fn every_cut_and_every_tail_is_refused(message in any_message(), cut in any::<prop::sample::Index>()) {
        let mut bytes = message.encode();
        prop_assert!(Message::decode(&bytes[..cut.index(bytes.len())]).is_err());
        bytes.push(0);
        prop_assert_eq!(Message::decode(&bytes), Err(MessageError { reason: "bytes follow the message" }));
    }

    /// What a damaged frame decodes to, if anything, keeps the rules that the core relies on.
    #[test]
    fn damaged_messages_are_refused_or_sound(
        message in any_message(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = message.encode();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(read) = Message::decode(&bytes) {
            prop_assert!(is_sound(&read), "{read:?}");
            prop_assert_eq!(Message::decode(&read.encode()), Ok(read));
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Ok(read) = Message::decode(&bytes) {
            prop_assert!(is_sound(&read), "{read:?}");
            prop_assert_eq!(Message::decode(&read.encode()), Ok(read));
        }
    }
}

fn is_sound(message: &Message) -> bool {
    match message {
        Message::Replicate { cell, .. } => cell.is_valid(),
        Message::ReadResult { result: Ok(ReadReply::Full(Some(cell))), .. } => cell.is_valid(),
        Message::SliceResult { result: Ok(SliceAnswer { records, .. }), .. } => {
            records.iter().all(|entry| entry.2.is_valid())
        }
        Message::Exchange { question: Question::Offer { records }, .. }
        | Message::ExchangeResult { result: Ok(Answer::Records { records, .. }), .. } => {
            records.iter().all(|entry| entry.2.is_valid())
        }
        Message::ExchangeResult { result: Ok(Answer::Leaves(tree)), .. } => tree.leaves.len() == LEAVES,
        Message::ReadResult { result: Err(Refusal::Stale { newer }), .. }
        | Message::ExchangeResult { result: Err(Refusal::Stale { newer }), .. }
        | Message::Replicated { result: Err(Refusal::Stale { newer }), .. }
        | Message::SliceResult { result: Err(Refusal::Stale { newer }), .. }
        | Message::Forwarded { outcome: Err(Refusal::Stale { newer }), .. } => newer.is_valid(),
        _ => true,
    }
}

#[test]
fn malformed_contents_are_refused() {
    let refused = |message: Message| {
        let error = Message::decode(&message.encode()).expect_err("it breaks a rule");
        assert_eq!(error.reason, "a record or an entry breaks its own rules", "{message:?}");
    };
    let mut record = record_of(&[1, 2]);
    record.siblings.reverse();
    let cell = Cell::from(record);
    let (call, key) = (CallId(1), Bytes::from_static(b"key"));
    let (epoch, role, keyspace) = (Epoch(1), Role::Owner, KeyspaceId(0));
    refused(Message::Replicate { call, epoch, role, keyspace, key: key.clone(), cell: cell.clone() });
    let settled = Hlc::default();
    refused(Message::ReadResult { call, result: Ok(ReadReply::Full(Some(cell.clone()))), settled });
    let records = vec![(keyspace, key, cell.clone())];
    refused(Message::SliceResult {
        call,
        result: Ok(SliceAnswer { records: records.clone(), more: false, settled: Vec::new() }),
    });
    refused(Message::ExchangeResult {
        call,
        result: Ok(Answer::Records { records: records.clone(), next: None, settled: Hlc(0) }),
        commit: 0,
    });
    let tree = Tree { leaves: vec![Leaf::default(); LEAVES - 1], root: 0, tally: Tally::default(), settled: Hlc(0) };
    refused(Message::ExchangeResult { call, result: Ok(Answer::Leaves(tree)), commit: 0 });
    let (partition, purpose) = (PartitionId(1), Purpose::HandOver);
    refused(Message::Exchange { call, partition, epoch, purpose, question: Question::Offer { records } });
    let replicas = vec![ReplicaView { node: NodeId(1), owner: true, cell: Ok(Some(cell)) }];
    refused(Message::Forwarded { call, outcome: Ok(Ok(Response::Inspected { replicas })) });

    let owner = |node, since| Owner { node: NodeId(node), since: Epoch(since) };
    for owners in
        [vec![], vec![owner(1, 1), owner(1, 1)], vec![owner(1, 9)], (0..256).map(|node| owner(node, 1)).collect()]
    {
        let refusal = || Refusal::Stale { newer: Entry::settled(Epoch(5), owners.clone()) };
        refused(Message::Replicated { call, result: Err(refusal()), commit: 0 });
        refused(Message::ReadResult { call, result: Err(refusal()), settled: Hlc::default() });
        refused(Message::SliceResult { call, result: Err(refusal()) });
        refused(Message::Forwarded { call, outcome: Err(refusal()) });
        refused(Message::ExchangeResult { call, result: Err(refusal()), commit: 0 });
    }
}

/// The bytes that every put costs on the way to a replica.
#[test]
fn a_replication_is_small() {
    let (call, epoch, role, keyspace) = (CallId(1_000_000), Epoch(7), Role::Owner, KeyspaceId(0));
    let key = Bytes::from_static(b"0123456789abcdef");
    let message = Message::Replicate { call, epoch, role, keyspace, key, cell: record_of(&[100]).into() };
    assert_eq!(message.encode().len(), 183);
}
