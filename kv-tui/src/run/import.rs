//! import: NDJSON into a keyspace, many records in flight.

use std::ffi::OsStr;
use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kv_core::config::Mode;
use kv_core::error::RequestError;
use kv_proto::client::{Client, How, Write};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::how;
use super::ndjson::{ImportedValue, Record};
use super::stream::{In, read_line};
use crate::command::ImportArgs;
use crate::error::CommandError;
use crate::output::time::now_us;
use crate::output::{Human, Item, Sink};

/// Records read ahead of those in flight.
const READ_AHEAD: usize = 256;

/// How often progress is printed on a terminal.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// Problems that are reported one by one.
const TOLD_MAX: u64 = 10;

/// A line that was read, with its number, or what is wrong.
type Line = (u64, Result<Record, Bad>);

/// What is wrong with a file.
#[derive(Debug)]
enum Bad {
    /// This line.
    Line(String),
    /// The file from this line on, of which nothing more can be read.
    File(String),
}

#[derive(Debug, Default)]
struct Progress {
    imported: u64,
    failed: u64,
    expired: u64,
    lines: u64,
    first_failure: Option<CommandError>,
}

pub(super) async fn import(args: &ImportArgs, client: &Client, sink: &mut dyn Sink) -> Result<(), CommandError> {
    let path = args.file.to_string_lossy().into_owned();
    let mut lines = read_lines(&args.file)?;
    let how = Arc::new(how(&args.within, args.consistency));
    let in_flight = usize::from(args.in_flight);
    let started = Instant::now();
    let mut progress = Progress::default();
    let mut writing: JoinSet<(u64, Result<bool, RequestError>)> = JoinSet::new();
    let mut ticks = interval(PROGRESS_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let on_terminal = std::io::stderr().is_terminal();
    let mut reading = true;
    let interrupt = tokio::signal::ctrl_c();
    tokio::pin!(interrupt);
    let mut interrupted = false;
    loop {
        // A malformed line, a failure or Ctrl-C ends the reading; what is in flight is waited for and counted.
        reading = reading && (args.keep_going || progress.first_failure.is_none());
        if !reading && writing.is_empty() {
            break;
        }
        tokio::select! {
            line = lines.recv(), if reading && writing.len() < in_flight => match line {
                None => reading = false,
                Some((number, Ok(record))) => {
                    progress.lines = number;
                    let (client, how) = (client.clone(), Arc::clone(&how));
                    writing.spawn(async move { (number, write(&client, &how, record).await) });
                }
                Some((number, Err(Bad::Line(why)))) => {
                    progress.lines = number;
                    progress.fail(CommandError::failed(format!("{path}: line {number} {why}")), sink);
                }
                Some((0, Err(Bad::File(why)))) => progress.fail(CommandError::failed(format!("{path}: {why}")), sink),
                Some((number, Err(Bad::File(why)))) => {
                    let message = format!("{path}: cannot be read behind line {number}: {why}");
                    progress.fail(CommandError::failed(message), sink);
                }
            },
            Some(done) = writing.join_next(), if !writing.is_empty() => match done {
                Ok((_, Ok(true))) => progress.imported += 1,
                Ok((_, Ok(false))) => progress.expired += 1,
                Ok((number, Err(error))) => {
                    let mut error = CommandError::from(error);
                    error.message = format!("{path}: line {number}: {}", error.message);
                    progress.fail(error, sink);
                }
                Err(error) => progress.fail(CommandError::failed(format!("a writer ended: {error}")), sink),
            },
            _ = ticks.tick(), if on_terminal => progress.print(started, sink),
            _ = &mut interrupt, if !interrupted => {
                interrupted = true;
                reading = false;
                progress.fail(CommandError::failed(format!("{path}: interrupted behind line {}", progress.lines)), sink);
            }
        }
    }
    progress.finish(&path, started, args.keep_going, sink)
}

impl Progress {
    fn fail(&mut self, error: CommandError, sink: &mut dyn Sink) {
        self.failed += 1;
        if self.first_failure.is_some() && self.failed <= TOLD_MAX {
            sink.note(&error.message);
        }
        self.first_failure.get_or_insert(error);
    }

    fn print(&self, started: Instant, sink: &mut dyn Sink) {
        if self.imported > 0 {
            sink.note(&format!("{} imported, {:.0} a second", self.imported, self.rate(started)));
        }
    }

    fn rate(&self, started: Instant) -> f64 {
        #[allow(clippy::cast_precision_loss, reason = "a rate for people")]
        let imported = self.imported as f64;
        imported / started.elapsed().as_secs_f64().max(1e-6)
    }

    fn finish(self, path: &str, started: Instant, keep_going: bool, sink: &mut dyn Sink) -> Result<(), CommandError> {
        let rate = self.rate(started).round();
        let mut text = format!("{} imported, {rate:.0} a second", self.imported);
        if self.failed > 0 {
            text.push_str(&format!(", {} failed", self.failed));
        }
        if self.expired > 0 {
            text.push_str(&format!(", {} had expired", self.expired));
        }
        sink.item(Item {
            json: json!({
                "schema": 1,
                "file": path,
                "imported": self.imported,
                "failed": self.failed,
                "expired": self.expired,
                "lines": self.lines,
                "seconds": started.elapsed().as_secs_f64(),
                "rate": rate,
            }),
            raw: format!("{}\n", self.imported).into_bytes(),
            human: Human::Text(text),
        })?;
        let Some(mut error) = self.first_failure else { return Ok(()) };
        error.message = if keep_going {
            format!("{} ({} failed in all, {} imported)", error.message, self.failed, self.imported)
        } else {
            format!(
                "{} (the {} records imported before stay; --keep-going skips such lines)",
                error.message, self.imported
            )
        };
        Err(error)
    }
}

/// Writes one record; `false` if all of its values have expired in the meantime.
async fn write(client: &Client, how: &How, record: Record) -> Result<bool, RequestError> {
    let now = now_us();
    let mut live = Vec::with_capacity(record.values.len());
    for ImportedValue { value, expires } in record.values {
        match expires.map(|at| at.saturating_sub(now)) {
            // Below a millisecond is as good as over.
            Some(left) if left < 1000 => {}
            left => live.push((value, left.map(Duration::from_micros))),
        }
    }
    let key = record.key;
    match live.as_slice() {
        [] => return Ok(false),
        [(value, ttl)] => put(client, how, &key, value, None, *ttl).await?,
        many if is_consistent(client, how) => {
            return Err(RequestError::invalid(format!(
                "the key has {} values side by side, and keyspace {} is consistent, where a key has one; choose one of them, or import into \
                 an available keyspace",
                many.len(),
                how.keyspace
            )));
        }
        many => {
            // Writes that have seen the same stand side by side.
            let seen = client.get(how, &key).await?.context;
            for (value, ttl) in many {
                put(client, how, &key, value, Some(seen.clone()), *ttl).await?;
            }
        }
    }
    Ok(true)
}

fn is_consistent(client: &Client, how: &How) -> bool {
    let description = client.description();
    description.keyspaces.iter().any(|known| known.name == how.keyspace && known.mode == Mode::Consistent)
}

async fn put(
    client: &Client,
    how: &How,
    key: &Bytes,
    value: &Bytes,
    context: Option<Bytes>,
    ttl: Option<Duration>,
) -> Result<(), RequestError> {
    client.put(how, key, value, &Write { context, ttl }).await.map(drop)
}

/// Reads and parses lines on a thread of their own, since files block. Dropping the receiver ends it.
fn read_lines(file: &OsStr) -> Result<mpsc::Receiver<Line>, CommandError> {
    let path = file.to_string_lossy().into_owned();
    let source = In::open(file).map_err(|error| CommandError::file("read", &path, &error))?;
    let (found, lines) = mpsc::channel(READ_AHEAD);
    let read = move || {
        let mut before = 0;
        if let Err(error) = parse_lines(source, &mut before, &found) {
            // The receiver may have been dropped.
            drop(found.blocking_send((before, Err(Bad::File(error.to_string())))));
        }
    };
    std::thread::Builder::new()
        .name("import".to_owned())
        .spawn(read)
        .map_err(|error| CommandError::file("start a thread for", &path, &error))?;
    Ok(lines)
}

/// Parses lines until the end, or until the receiver is gone; `before` is the number of the last whole one.
fn parse_lines(source: In, before: &mut u64, found: &mpsc::Sender<Line>) -> std::io::Result<()> {
    let mut source = source.lines()?;
    let mut line = Vec::new();
    while read_line(&mut *source, &mut line)? {
        *before += 1;
        let blank = line.iter().all(u8::is_ascii_whitespace);
        if !blank && found.blocking_send((*before, Record::parse(&line).map_err(Bad::Line))).is_err() {
            break;
        }
        line.clear();
    }
    Ok(())
}
