//! How many bytes requests, records and answers count for while they are in flight.

use bytes::Bytes;

use super::{KeyRequest, Keyed, Message, Operation, ReadReply, Request, SliceAnswer};
use crate::version::Record;

/// What a record or a request takes beside its key and values.
pub(crate) const OVERHEAD: usize = 128;

/// What a context takes for each actor.
const ACTOR_BYTES: usize = 32;

/// Bytes that count for a client's request.
pub(crate) fn of_request(request: &Request) -> usize {
    match request {
        Request::Key(request) => of_key_request(request),
        Request::Scan(_) | Request::Inspect { .. } => 0,
    }
}

/// Bytes that count for a request about a key: gets bring nothing with them.
pub(crate) fn of_key_request(request: &KeyRequest) -> usize {
    match &request.operation {
        Operation::Get => 0,
        Operation::Write { value, context, .. } => {
            let len = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
            OVERHEAD + request.key.len() + len(value) + len(context)
        }
    }
}

/// Bytes that count for a record.
pub(crate) fn of_record(record: &Record) -> usize {
    OVERHEAD + record.value_bytes() + record.context.len() * ACTOR_BYTES + record.siblings.len() * OVERHEAD
}

/// Bytes that count for a replica's answer to a get.
pub(crate) fn of_read_reply(held: &ReadReply) -> usize {
    match held {
        ReadReply::Full(record) => of_record(record),
        ReadReply::Digest(_) => 0,
    }
}

/// Bytes that count for a replica's answer to a scan.
pub(crate) fn of_slice(answer: &SliceAnswer) -> usize {
    answer.records.iter().map(of_keyed).sum()
}

/// Bytes that count for a record and its key.
pub(crate) fn of_keyed((_, key, record): &Keyed) -> usize {
    key.len() + of_record(record)
}

/// Bytes that count while a peer has not answered a message.
pub(crate) fn of_message(message: &Message) -> usize {
    match message {
        Message::Forward { request, .. } => of_request(request),
        Message::Replicate { key, record, .. } => key.len() + of_record(record),
        _ => 0,
    }
}
