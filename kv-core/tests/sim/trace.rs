//! What happens, line by line: to replay a failing seed and to compare two runs of one.

use kv_core::cell::Cell;
use kv_core::message::{Answer, Message, Operation, Outcome, Question, ReadReply, Request, Response};
use kv_core::register::proposal::{self, Reply};
use kv_core::register::{Ballot, State};
use kv_core::storage::{Batch, Space, Stored, Write};

/// Notes a line, with the virtual time, if the run keeps a trace. The arguments are not evaluated otherwise.
macro_rules! note {
    ($world:expr, $($arg:tt)*) => {
        if $world.trace.is_some() {
            let line = format!($($arg)*);
            $world.write_trace(&line);
        }
    };
}
pub(crate) use note;

/// A cell in a few words: the siblings of a record, and how many actors its context knows.
fn cell(cell: &Cell) -> String {
    let record = match cell {
        Cell::Available(record) => record,
        Cell::Consistent(register) => {
            let accepted = register.accepted.as_ref();
            let accepted = accepted.map_or_else(
                || "nothing".to_owned(),
                |accepted| format!("{} at {}", register_state(&accepted.state), ballot(accepted.ballot)),
            );
            return format!("{accepted}, promised {}", ballot(register.promised));
        }
    };
    let siblings: Vec<String> = record
        .siblings
        .iter()
        .map(|version| {
            let value = version.value.as_deref().map_or_else(|| "deleted".to_owned(), shorten);
            format!("{}={value}", version.dot)
        })
        .collect();
    format!("[{}] of {} actors", siblings.join(" "), record.context.len())
}

fn shorten(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == b':').unwrap_or(value.len().min(8));
    value[..end].escape_ascii().to_string()
}

/// A batch in one line.
pub(crate) fn brief_batch(batch: &Batch) -> String {
    let writes: Vec<String> = batch
        .writes
        .iter()
        .map(|write| match write {
            Write::Meta { name, .. } => format!("meta {}", name.escape_ascii()),
            Write::Record { key, value: None, .. } => format!("{key} removed"),
            Write::Record { key, .. } if key.space() == Space::Missed => format!("{key}"),
            Write::Record { key, value: Some(value), .. } => match Stored::decode(value) {
                Ok(stored) => format!("{key} {}", cell(&stored.cell)),
                Err(error) => format!("{key} {error}"),
            },
        })
        .collect();
    writes.join(", ")
}

fn ballot(ballot: Ballot) -> String {
    format!("{}.{}.{}", ballot.epoch, ballot.counter, ballot.proposer.node)
}

fn register_state(state: &State) -> String {
    let value = state.value.as_ref().map_or_else(|| "deleted".to_owned(), |value| shorten(value));
    format!("{value} of {}", ballot(state.version))
}

fn register_question(question: &proposal::Question) -> String {
    match question {
        proposal::Question::Read => "read".to_owned(),
        proposal::Question::Ballot => "ballot".to_owned(),
        proposal::Question::ReadAll => "read by all".to_owned(),
        proposal::Question::Prepare { ballot: at } => format!("prepare {}", ballot(*at)),
        proposal::Question::Accept { ballot: at, state, .. } => {
            format!("accept {} {}", ballot(*at), register_state(state))
        }
    }
}

fn register_reply(reply: &Reply) -> String {
    match reply {
        Reply::Told(None) => "nothing".to_owned(),
        Reply::Told(Some(accepted)) => format!("{} at {}", register_state(&accepted.state), ballot(accepted.ballot)),
        Reply::At(at) => format!("at {}", ballot(*at)),
        Reply::Accepted => "accepted".to_owned(),
        Reply::Refused(promised) => format!("promised {}", ballot(*promised)),
    }
}

/// A message in one line.
pub(crate) fn brief(message: &Message) -> String {
    match message {
        Message::Forward { call, request: what, .. } => format!("forward {}: {}", call.0, request(what)),
        Message::Forwarded { call, outcome: Ok(answer) } => format!("forwarded {}: {}", call.0, outcome(answer)),
        Message::Forwarded { call, outcome: Err(refusal) } => format!("forwarded {}: refused: {refusal}", call.0),
        Message::Replicate { call, epoch, role, keyspace, key, cell: what } => {
            format!("replicate {} {epoch} {role:?} {keyspace}/{}: {}", call.0, key.escape_ascii(), cell(what))
        }
        Message::Replicated { call, result: Ok(()), .. } => format!("replicated {}", call.0),
        Message::Replicated { call, result: Err(refusal), .. } => format!("replicated {}: refused: {refusal}", call.0),
        Message::Read { call, epoch, role, keyspace, key, digest } => {
            let what = if *digest { "digest" } else { "record" };
            format!("read {} {epoch} {role:?} {keyspace}/{}: {what}", call.0, key.escape_ascii())
        }
        Message::ReadResult { call, result: Ok(ReadReply::Full(what)), .. } => {
            format!("result {}: {}", call.0, what.as_ref().map_or_else(|| "nothing".to_owned(), cell))
        }
        Message::ReadResult { call, result: Ok(ReadReply::Digest(digest)), .. } => {
            format!("result {}: {digest:016x?}", call.0)
        }
        Message::ReadResult { call, result: Err(refusal), .. } => format!("result {}: refused: {refusal}", call.0),
        Message::Register { call, epoch, key, question: what, .. } => {
            format!("register {} {epoch} {}: {}", call.0, key.escape_ascii(), register_question(what))
        }
        Message::RegisterAnswer { call, result: Ok(reply), .. } => {
            format!("register answer {}: {}", call.0, register_reply(reply))
        }
        Message::RegisterAnswer { call, result: Err(refusal), .. } => {
            format!("register answer {}: refused: {refusal}", call.0)
        }
        Message::Slice { call, slice } => format!("slice {}: {slice:?}", call.0),
        Message::SliceResult { call, result: Ok(answer) } => {
            format!("slice result {}, more: {}: {}", call.0, answer.more, keyed(&answer.records))
        }
        Message::SliceResult { call, result: Err(refusal) } => format!("slice result {}: refused: {refusal}", call.0),
        Message::Exchange { call, partition, epoch, purpose, question: what } => {
            format!("{purpose:?} {} {partition} {epoch}: {}", call.0, question(what))
        }
        Message::ExchangeResult { call, result: Ok(what), .. } => format!("exchange {}: {}", call.0, answer(what)),
        Message::Settle { round, step, until, partitions } => {
            format!("{step:?} {} until {until}: {partitions:?}", round.0)
        }
        Message::Settled { round, step, answers } => format!("{step:?} {}: {answers:?}", round.0),
        Message::CaughtUp { epoch } => format!("acts on {epoch}"),
        Message::Shown { commit, .. } => format!("is at {commit}"),
        Message::Ping => "ping".to_owned(),
        Message::Pong => "pong".to_owned(),
        Message::Keyspaces { list } => {
            format!("keyspaces {:?}", list.iter().map(|keyspace| keyspace.id.0).collect::<Vec<_>>())
        }
        Message::ExchangeResult { call, result: Err(refusal), .. } => {
            format!("exchange {}: refused: {refusal}", call.0)
        }
    }
}

fn keyed(records: &[kv_core::message::Keyed]) -> String {
    let text =
        |(keyspace, key, what): &kv_core::message::Keyed| format!("{keyspace}/{}: {}", key.escape_ascii(), cell(what));
    records.iter().map(text).collect::<Vec<_>>().join(", ")
}

fn question(question: &Question) -> String {
    match question {
        Question::Leaves { unless: Some(root) } => format!("leaves unless the root is {root:016x}"),
        Question::Leaves { unless: None } => "leaves".to_owned(),
        Question::Records { after, bytes_max } => format!("at most {bytes_max} bytes of records after {after:?}"),
        Question::Digests { after, .. } => format!("digests after {after:?}"),
        Question::Fetch { keys } => format!("fetch {keys:?}"),
        Question::Offer { records } => format!("offer {}", keyed(records)),
    }
}

fn answer(answer: &Answer) -> String {
    match answer {
        Answer::Equal => "the same root".to_owned(),
        Answer::Leaves(tree) => format!("root {:016x}, {:?}", tree.root, tree.tally),
        Answer::Records { records, next, .. } => format!("records {}, next {next:?}", keyed(records)),
        Answer::Digests { entries, next, .. } => {
            let text = |entry: &kv_core::message::DigestEntry| {
                format!("{}/{} {:016x}", entry.keyspace, entry.key.escape_ascii(), entry.digest)
            };
            let entries: Vec<String> = entries.iter().map(text).collect();
            format!("digests {}, next {next:?}", entries.join(", "))
        }
        Answer::Taken => "taken".to_owned(),
    }
}

/// A request in one line.
pub(crate) fn request(request: &Request) -> String {
    match request {
        Request::Key(what) => {
            let name = format!("{}/{}", what.keyspace, what.key.escape_ascii());
            let level = format!("{:?}{}", what.consistency.level, if what.consistency.strict { " strict" } else { "" });
            match &what.operation {
                Operation::Get => format!("get {name} ({level}, {})", what.epoch),
                Operation::Write { value, context, request, attempt, .. } => {
                    let value = value.as_deref().map_or_else(|| "deleted".to_owned(), shorten);
                    let context = if context.is_some() { " with context" } else { "" };
                    format!("put {name}={value}{context} ({level}, {}, {attempt:?} {request:?})", what.epoch)
                }
            }
        }
        Request::Scan(scan) => format!(
            "scan {} prefix {:?} after {:?} limit {} ({:?})",
            scan.keyspace, scan.prefix, scan.after, scan.limit, scan.consistency
        ),
        Request::Inspect { keyspace, key } => format!("inspect {keyspace}/{}", key.escape_ascii()),
    }
}

/// An answer in one line.
pub(crate) fn outcome(outcome: &Outcome) -> String {
    match outcome {
        Ok(Response::Got { values, .. }) => {
            format!("got {:?}", values.iter().map(|value| shorten(&value.value)).collect::<Vec<_>>())
        }
        Ok(Response::Written { siblings, .. }) => format!("written, {siblings} siblings"),
        Ok(Response::Unchanged { value, .. }) => {
            format!("unchanged, found {:?}", value.as_ref().map(|value| shorten(&value.value)))
        }
        Ok(Response::Page { entries, next }) => {
            let keys: Vec<String> = entries.iter().map(|entry| entry.key.escape_ascii().to_string()).collect();
            format!("page {keys:?}, next {next:?}")
        }
        Ok(Response::Inspected { replicas }) => format!("inspected {} replicas", replicas.len()),
        Err(error) => format!("{:?}: {}", error.kind, error.message),
    }
}
