//! How many bytes requests, records and answers count for while they are in flight.

use bytes::Bytes;

use super::{KeyRequest, Keyed, Message, Operation, ReadReply, Request, SliceAnswer};
use crate::cell::Cell;
pub(crate) use crate::cell::OVERHEAD;
use crate::register::proposal::{Question, Reply};

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

/// Bytes that count for a replica's answer to a get.
pub(crate) fn of_read_reply(held: &ReadReply) -> usize {
    match held {
        // An answer counts, even that there is nothing.
        ReadReply::Full(cell) => cell.as_ref().map_or(OVERHEAD, Cell::bytes_in_flight),
        ReadReply::Digest(_) => 0,
    }
}

/// Bytes that count for what a replica tells of a register.
pub(crate) fn of_told<E>(answer: &Result<Reply, E>) -> usize {
    match answer {
        Ok(Reply::Told(Some(accepted))) => OVERHEAD + accepted.state.value.as_ref().map_or(0, Bytes::len),
        _ => 0,
    }
}

/// Bytes that count for a replica's answer to a scan.
pub(crate) fn of_slice(answer: &SliceAnswer) -> usize {
    answer.records.iter().map(of_keyed).sum()
}

/// Bytes that count for a cell and its key.
pub(crate) fn of_keyed((_, key, cell): &Keyed) -> usize {
    key.len() + cell.bytes_in_flight()
}

/// Bytes that count while a peer has not answered a message.
pub(crate) fn of_message(message: &Message) -> usize {
    match message {
        Message::Forward { request, .. } => of_request(request),
        Message::Replicate { key, cell, .. } => key.len() + cell.bytes_in_flight(),
        Message::Register { key, question: Question::Accept { state, .. }, .. } => {
            2 * OVERHEAD + key.len() + state.value.as_ref().map_or(0, Bytes::len)
        }
        _ => 0,
    }
}
