//! Answers on the way out of a node, and on the way into a client.

use bytes::Bytes;
use kv_core::cell::Cell;
use kv_core::error::{Kind, RequestError};
use kv_core::message::{Outcome, ReplicaView, Response, ScanEntry, Value};
use kv_core::register::{Accepted, Ballot, Register};
use kv_core::types::WallTime;
use kv_core::version::{Dot, Hlc, Record, Version};

use crate::edge::{copy, cursor_after};
use crate::status::from_error;
use crate::v1;

/// Bits of an `Hlc` below its microseconds.
const LOGICAL_BITS: u32 = 12;

/// The answer to a read.
///
/// # Errors
/// The outcome's own, or `Unknown` if the outcome is not one of a read.
pub fn get(outcome: Outcome) -> Result<v1::GetResponse, RequestError> {
    match outcome? {
        Response::Got { values, context, newest } => {
            Ok(v1::GetResponse { versions: values.into_iter().map(Into::into).collect(), context, newest: newest.0 })
        }
        _ => Err(mismatch()),
    }
}

/// The answer to a write.
///
/// # Errors
/// The outcome's own, or `Unknown` if the outcome is not one of a write.
pub fn put(outcome: Outcome) -> Result<v1::PutResponse, RequestError> {
    match outcome? {
        Response::Written { context, siblings, newest } => {
            Ok(v1::PutResponse { context, siblings: count(siblings), newest: newest.0, unchanged: None })
        }
        Response::Unchanged { value, context, newest } => {
            let unchanged = Some(v1::Unchanged { found: value.map(Into::into) });
            Ok(v1::PutResponse { context, siblings: 0, newest: newest.0, unchanged })
        }
        _ => Err(mismatch()),
    }
}

/// The answer to a deletion.
///
/// # Errors
/// The outcome's own, or `Unknown` if the outcome is not one of a deletion.
pub fn delete(outcome: Outcome) -> Result<v1::DeleteResponse, RequestError> {
    match outcome? {
        Response::Written { context, siblings, newest } => {
            Ok(v1::DeleteResponse { context, siblings: count(siblings), newest: newest.0, unchanged: None })
        }
        Response::Unchanged { value, context, newest } => {
            let unchanged = Some(v1::Unchanged { found: value.map(Into::into) });
            Ok(v1::DeleteResponse { context, siblings: 0, newest: newest.0, unchanged })
        }
        _ => Err(mismatch()),
    }
}

/// A page of a scan.
///
/// # Errors
/// The outcome's own, or `Unknown` if the outcome is not one of a scan.
pub fn page(outcome: Outcome) -> Result<v1::ScanResponse, RequestError> {
    match outcome? {
        Response::Page { entries, next } => Ok(v1::ScanResponse {
            entries: entries.into_iter().map(Into::into).collect(),
            cursor: cursor_after(next.as_deref()),
        }),
        _ => Err(mismatch()),
    }
}

/// The replicas of an inspection.
///
/// # Errors
/// The outcome's own, or `Unknown` if the outcome is not one of an inspection.
pub fn replicas(outcome: Outcome) -> Result<Vec<v1::ReplicaView>, RequestError> {
    match outcome? {
        Response::Inspected { replicas } => Ok(replicas.into_iter().map(Into::into).collect()),
        _ => Err(mismatch()),
    }
}

/// Which operation of a batch a result belongs to, kept from its arrival to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchKind {
    /// A read.
    Get,
    /// A write.
    Put,
    /// A deletion.
    Delete,
}

impl BatchKind {
    /// The kind of an operation; that of one without content does not matter, since it fails.
    #[must_use]
    pub fn of(operation: &v1::BatchOperation) -> Self {
        match operation.operation {
            Some(v1::batch_operation::Operation::Put(_)) => Self::Put,
            Some(v1::batch_operation::Operation::Delete(_)) => Self::Delete,
            Some(v1::batch_operation::Operation::Get(_)) | None => Self::Get,
        }
    }
}

/// The result of operation `id` of a batch.
#[must_use]
pub fn batch_result(id: u64, kind: BatchKind, outcome: Outcome) -> v1::BatchResult {
    use v1::batch_result::Result as Wire;
    let result = match kind {
        BatchKind::Get => get(outcome).map(Wire::Get),
        BatchKind::Put => put(outcome).map(Wire::Put),
        BatchKind::Delete => delete(outcome).map(Wire::Delete),
    };
    v1::BatchResult { id, result: Some(result.unwrap_or_else(|error| Wire::Error(error.into()))) }
}

/// The outcome that a batch result carries; one without content leaves it unknown.
///
/// # Errors
/// The operation's own.
pub fn outcome_of(result: v1::BatchResult) -> Outcome {
    match result.result {
        Some(v1::batch_result::Result::Get(got)) => Ok(got.into()),
        Some(v1::batch_result::Result::Put(put)) => Ok(put.into()),
        Some(v1::batch_result::Result::Delete(delete)) => Ok(delete.into()),
        Some(v1::batch_result::Result::Error(error)) => Err(from_error(error)),
        None => Err(RequestError::new(Kind::Unknown, "the node sent a result without content")),
    }
}

impl From<Value> for v1::Version {
    fn from(value: Value) -> Self {
        let (written_us, written_logical) = split(value.written);
        Self { value: value.value, written_us, written_logical, expires_us: value.expires.map(|wall| wall.0) }
    }
}

impl From<v1::Version> for Value {
    fn from(wire: v1::Version) -> Self {
        Self {
            value: copy(&wire.value),
            written: join(wire.written_us, wire.written_logical),
            expires: wire.expires_us.map(WallTime),
        }
    }
}

impl From<v1::GetResponse> for Response {
    fn from(wire: v1::GetResponse) -> Self {
        let values = wire.versions.into_iter().map(Into::into).collect();
        Self::Got { values, context: copy(&wire.context), newest: Hlc(wire.newest) }
    }
}

impl From<v1::PutResponse> for Response {
    fn from(wire: v1::PutResponse) -> Self {
        written(&wire.context, wire.siblings, wire.newest, wire.unchanged)
    }
}

impl From<v1::DeleteResponse> for Response {
    fn from(wire: v1::DeleteResponse) -> Self {
        written(&wire.context, wire.siblings, wire.newest, wire.unchanged)
    }
}

fn written(context: &Bytes, siblings: u32, newest: u64, unchanged: Option<v1::Unchanged>) -> Response {
    let (context, newest) = (copy(context), Hlc(newest));
    match unchanged {
        None => Response::Written { context, siblings: siblings as usize, newest },
        Some(v1::Unchanged { found }) => Response::Unchanged { value: found.map(Into::into), context, newest },
    }
}

impl From<ScanEntry> for v1::ScanEntry {
    fn from(entry: ScanEntry) -> Self {
        let versions = entry.values.into_iter().map(Into::into).collect();
        Self { key: entry.key, versions, context: entry.context }
    }
}

impl From<v1::ScanEntry> for ScanEntry {
    fn from(wire: v1::ScanEntry) -> Self {
        let values = wire.versions.into_iter().map(Into::into).collect();
        Self { key: copy(&wire.key), values, context: copy(&wire.context) }
    }
}

impl From<ReplicaView> for v1::ReplicaView {
    fn from(view: ReplicaView) -> Self {
        let answer = match view.cell {
            Ok(Some(Cell::Available(record))) => v1::replica_view::Answer::Record(record.into()),
            Ok(Some(Cell::Consistent(register))) => v1::replica_view::Answer::Register(register.into()),
            Ok(None) => v1::replica_view::Answer::Record(Record::default().into()),
            Err(error) => v1::replica_view::Answer::Error(error.into()),
        };
        Self { node: view.node.0, owner: view.owner, answer: Some(answer) }
    }
}

impl From<Register> for v1::RegisterView {
    fn from(register: Register) -> Self {
        let Register { promised, accepted, .. } = register;
        Self { promised: Some(promised.into()), accepted: accepted.map(Into::into) }
    }
}

impl From<Accepted> for v1::AcceptedView {
    fn from(Accepted { ballot, state }: Accepted) -> Self {
        let (written_us, written_logical) = split(state.written);
        Self {
            ballot: Some(ballot.into()),
            version: Some(state.version.into()),
            written_us,
            written_logical,
            expires_us: state.expires.map(|wall| wall.0),
            value: state.value,
            request: state.requests.that_wrote(state.version).map(Into::into),
        }
    }
}

impl From<Ballot> for v1::Ballot {
    fn from(ballot: Ballot) -> Self {
        Self { epoch: ballot.epoch.0, counter: ballot.counter, node: ballot.proposer.node.0 }
    }
}

impl From<Record> for v1::RecordView {
    fn from(record: Record) -> Self {
        let digest = record.digest();
        let context =
            record.context.iter().map(|(actor, counter)| v1::Dot { actor: actor.to_string(), counter }).collect();
        Self { versions: record.siblings.into_iter().map(Into::into).collect(), context, digest }
    }
}

impl From<Version> for v1::VersionView {
    fn from(version: Version) -> Self {
        let (written_us, written_logical) = split(version.written);
        Self {
            dot: Some(version.dot.into()),
            written_us,
            written_logical,
            expires_us: version.expires.map(|wall| wall.0),
            value: version.value,
            request: Some(version.request.into()),
        }
    }
}

impl From<Dot> for v1::Dot {
    fn from(dot: Dot) -> Self {
        Self { actor: dot.actor.to_string(), counter: dot.counter }
    }
}

fn split(written: Hlc) -> (u64, u32) {
    let logical = written.0 & ((1 << LOGICAL_BITS) - 1);
    (written.wall().0, u32::try_from(logical).unwrap_or(0))
}

fn join(written_us: u64, logical: u32) -> Hlc {
    Hlc(Hlc::at(WallTime(written_us)).0 | u64::from(logical) & ((1 << LOGICAL_BITS) - 1))
}

fn count(siblings: usize) -> u32 {
    u32::try_from(siblings).unwrap_or(u32::MAX)
}

fn mismatch() -> RequestError {
    RequestError::new(
        Kind::Unknown,
        "the node answered another question than the one asked; run the same release on all",
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kv_core::register::done::{Done, Requests};
    use kv_core::register::{Proposer, State};
    use kv_core::types::{Epoch, NodeId, RequestId};

    use super::*;

    fn value(expires: Option<u64>) -> Value {
        let written = Hlc(Hlc::at(WallTime(1_700_000_000_000_000)).0 + 77);
        Value { value: Bytes::from_static(b"v"), written, expires: expires.map(WallTime) }
    }

    #[test]
    fn answers_survive_the_wire() {
        let (values, context) = (vec![value(None), value(Some(5))], Bytes::from_static(b"c"));
        let got = Response::Got { values, context, newest: Hlc(7) };
        assert_eq!(get(Ok(got.clone())).map(Response::from), Ok(got));
        let written = Response::Written { context: Bytes::from_static(b"c"), siblings: 3, newest: Hlc(8) };
        assert_eq!(put(Ok(written.clone())).map(Response::from), Ok(written.clone()));
        assert_eq!(delete(Ok(written.clone())).map(Response::from), Ok(written));
        for value in [None, Some(value(None))] {
            let unchanged = Response::Unchanged { value, context: Bytes::from_static(b"c"), newest: Hlc(9) };
            assert_eq!(put(Ok(unchanged.clone())).map(Response::from), Ok(unchanged.clone()));
            assert_eq!(delete(Ok(unchanged.clone())).map(Response::from), Ok(unchanged.clone()));
            assert_eq!(outcome_of(batch_result(9, BatchKind::Put, Ok(unchanged.clone()))), Ok(unchanged));
        }
        let entry = ScanEntry { key: Bytes::from_static(b"k"), values: vec![value(None)], context: Bytes::new() };
        assert_eq!(ScanEntry::from(v1::ScanEntry::from(entry.clone())), entry);
    }

    #[test]
    fn results_of_a_batch_carry_errors_and_content() {
        let written = Response::Written { context: Bytes::new(), siblings: 1, newest: Hlc(9) };
        assert_eq!(outcome_of(batch_result(9, BatchKind::Put, Ok(written.clone()))), Ok(written.clone()));
        let error = RequestError::exhausted("too many requests");
        assert_eq!(outcome_of(batch_result(9, BatchKind::Get, Err(error.clone()))), Err(error));
        let kind = outcome_of(batch_result(9, BatchKind::Get, Ok(written))).map_err(|error| error.kind);
        assert_eq!(kind, Err(Kind::Unknown), "a write in answer to a read");
        let kind = outcome_of(v1::BatchResult { id: 9, result: None }).map_err(|error| error.kind);
        assert_eq!(kind, Err(Kind::Unknown));
    }

    #[test]
    fn an_inspection_shows_tombstones_and_failures() {
        let (ok, failed) = (Ok(None), Err(RequestError::unavailable("n2 is down")));
        let view = |owner, cell| ReplicaView { node: NodeId(2), owner, cell };
        let seen = replicas(Ok(Response::Inspected { replicas: vec![view(true, ok), view(false, failed)] }));
        let seen = seen.expect("an inspection");
        assert_eq!(seen[0].answer, Some(v1::replica_view::Answer::Record(Record::default().into())));
        assert!(
            matches!(&seen[1].answer, Some(v1::replica_view::Answer::Error(error)) if error.message == "n2 is down")
        );
        let dot = Dot { counter: 4, ..Dot::default() };
        let tombstone = Version { dot, written: Hlc(5), request: Default::default(), expires: None, value: None };
        let shown = v1::VersionView::from(tombstone);
        assert_eq!((shown.value, shown.dot.map(|dot| dot.counter)), (None, Some(4)));
    }

    #[test]
    fn an_inspection_shows_registers() {
        let proposer = Proposer { node: NodeId(3), boot: 1, nonce: 9 };
        let ballot = |counter| Ballot { epoch: Epoch(2), counter, proposer };
        let request = RequestId { stamp: Hlc(8), client: 6 };
        let mut requests = Requests::default();
        requests.remember(Done { request, version: Some(ballot(4)) }, Duration::from_mins(10));
        let state = State {
            version: ballot(4),
            requests,
            written: Hlc::at(WallTime(7)),
            expires: Some(WallTime(9)),
            value: Some(Bytes::from_static(b"v")),
        };
        let accepted = Some(Accepted { ballot: ballot(5), state });
        let register = Register { promised: ballot(6), accepted, empty_since: Hlc::default() };
        let shown = v1::RegisterView::from(register);
        let wire = |counter| Some(v1::Ballot { epoch: 2, counter, node: 3 });
        let accepted = shown.accepted.expect("accepted");
        assert_eq!((shown.promised, accepted.ballot, accepted.version), (wire(6), wire(5), wire(4)));
        assert_eq!(
            (accepted.value.as_deref(), accepted.written_us, accepted.expires_us),
            (Some(&b"v"[..]), 7, Some(9))
        );
        assert_eq!(accepted.request, Some(request.into()));
        assert_eq!(v1::RegisterView::from(Register::default()).accepted, None);
    }
}
