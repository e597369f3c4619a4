//! bench: throughput and latency of reads and writes, and whether what was written is there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hdrhistogram::Histogram;
use kv_core::error::RequestError;
use kv_proto::client::{Client, How, Options, Transport, Write};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::bench_load::{Known, VALUE_MIN, Verdict, Xorshift, key, prefix, value, verdict};
use super::how;
use crate::command::BenchArgs;
use crate::error::{Class, CommandError};
use crate::output::{Human, Item, Sink};

/// The longest latency that is recorded exactly.
const LATENCY_MAX_US: u64 = 60_000_000;

/// Keys that are read back at the end.
const SAMPLE: usize = 1000;

/// What all clients of a run share.
#[derive(Debug)]
struct Run {
    id: u64,
    how: How,
    reads: f64,
    value_size: usize,
    measure_from: Instant,
    until: Instant,
}

/// Counts and latencies of one kind of operation.
#[derive(Debug)]
struct Tally {
    /// In microseconds, of those that succeeded.
    latency: Histogram<u64>,
    failures: u64,
}

#[derive(Debug)]
struct Outcome {
    reads: Tally,
    writes: Tally,
    by_kind: BTreeMap<&'static str, u64>,
    /// Reads during the run that were not as they must be.
    wrong: u64,
    lost: u64,
    /// The keys that this client wrote, with what it knows of them.
    keys: Vec<(u64, Known)>,
    first_error: Option<RequestError>,
}

pub(super) async fn bench(args: &BenchArgs, client: &Client, sink: &mut dyn Sink) -> Result<(), CommandError> {
    if args.value_size < VALUE_MIN {
        return Err(CommandError::usage(format!(
            "--value-size: at least {VALUE_MIN} bytes are needed for verification"
        )));
    }
    let transport = if args.unary { Transport::Unary } else { Transport::Batch };
    let clients = u64::from(args.clients).min(args.keys);
    let in_flight_max = usize::try_from(clients).unwrap_or(usize::MAX).max(1024);
    let options = Options { transport, in_flight_max, ..client.options().clone() };
    let client = client.again(options).await?;
    let id = getrandom::u64().map_err(|error| CommandError::failed(format!("no random numbers: {error}")))?;
    let measure_from = Instant::now() + args.warm_up;
    let run = Arc::new(Run {
        id,
        how: how(&args.within, args.consistency),
        reads: args.reads,
        value_size: usize::try_from(args.value_size).unwrap_or(usize::MAX),
        measure_from,
        until: measure_from + Duration::from_secs(args.seconds),
    });
    let mut working = JoinSet::new();
    for worker in 0..clients {
        let mine = (args.keys - worker).div_ceil(clients);
        working.spawn(work(client.clone(), Arc::clone(&run), worker, clients, mine));
    }
    sleep_until(run.measure_from).await;
    let cpu_before = cpu_time();
    sleep_until(run.until).await;
    let cpu = cpu_time().saturating_sub(cpu_before);

    let mut total = Outcome::new()?;
    while let Some(done) = working.join_next().await {
        total.add(done.map_err(|error| CommandError::failed(format!("a client ended: {error}")))??)?;
    }
    let verified = verify(&client, &run, &mut total).await;
    report(args, &run, &total, verified, cpu, client.stats().retries, sink)
}

async fn work(client: Client, run: Arc<Run>, worker: u64, clients: u64, mine: u64) -> Result<Outcome, CommandError> {
    let mut outcome = Outcome::new()?;
    let mut known = vec![Known::default(); usize::try_from(mine).unwrap_or(0)];
    let mut choices = Xorshift::new(run.id ^ worker.wrapping_mul(0xa076_1d64_78bd_642f));
    loop {
        let started = Instant::now();
        if started >= run.until {
            break;
        }
        let nth = choices.below(mine);
        let index = worker + nth * clients;
        let Some(known) = usize::try_from(nth).ok().and_then(|nth| known.get_mut(nth)) else { break };
        let measured = started >= run.measure_from;
        let key = key(run.id, index);
        let is_read = choices.share() < run.reads;
        let failure = if is_read {
            match client.get(&run.how, &key).await {
                Ok(got) => {
                    let values = got.values.iter().map(|version| &version.value[..]);
                    outcome.record(verdict(run.id, index, *known, values));
                    None
                }
                Err(error) => Some(error),
            }
        } else {
            known.tried += 1;
            let value = value(run.id, index, known.tried, run.value_size);
            match client.put(&run.how, &key, &value, &Write::default()).await {
                Ok(_) => {
                    known.acknowledged = known.tried;
                    None
                }
                Err(error) => Some(error),
            }
        };
        if measured {
            outcome.count(is_read, started.elapsed(), failure);
        }
    }
    let written = known.into_iter().enumerate().filter(|(_, known)| known.tried > 0);
    outcome.keys = written.map(|(nth, known)| (worker + nth as u64 * clients, known)).collect();
    Ok(outcome)
}

impl Outcome {
    fn new() -> Result<Self, CommandError> {
        Ok(Self {
            reads: Tally::new()?,
            writes: Tally::new()?,
            by_kind: BTreeMap::new(),
            wrong: 0,
            lost: 0,
            keys: Vec::new(),
            first_error: None,
        })
    }

    fn record(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Good => {}
            Verdict::Lost => self.lost += 1,
            Verdict::Wrong => self.wrong += 1,
        }
    }

    fn count(&mut self, is_read: bool, took: Duration, failure: Option<RequestError>) {
        let tally = if is_read { &mut self.reads } else { &mut self.writes };
        match failure {
            None => {
                let us = u64::try_from(took.as_micros()).unwrap_or(LATENCY_MAX_US);
                tally.latency.saturating_record(us.clamp(1, LATENCY_MAX_US));
            }
            Some(error) => {
                tally.failures += 1;
                *self.by_kind.entry(CommandError::from(error.clone()).kind).or_default() += 1;
                self.first_error.get_or_insert(error);
            }
        }
    }

    fn add(&mut self, other: Self) -> Result<(), CommandError> {
        self.reads.add(&other.reads)?;
        self.writes.add(&other.writes)?;
        for (kind, count) in other.by_kind {
            *self.by_kind.entry(kind).or_default() += count;
        }
        self.wrong += other.wrong;
        self.lost += other.lost;
        self.keys.extend(other.keys);
        self.first_error = self.first_error.take().or(other.first_error);
        Ok(())
    }
}

impl Tally {
    fn new() -> Result<Self, CommandError> {
        // Two digits are precise enough for latencies, and small enough for thousands of clients.
        let latency = Histogram::new_with_bounds(1, LATENCY_MAX_US, 2)
            .map_err(|error| CommandError::failed(format!("no histogram: {error}")))?;
        Ok(Self { latency, failures: 0 })
    }

    fn add(&mut self, other: &Self) -> Result<(), CommandError> {
        self.failures += other.failures;
        self.latency.add(&other.latency).map_err(|error| CommandError::failed(format!("histograms differ: {error}")))
    }

    fn json(&self, seconds: f64) -> Value {
        let at = |quantile| self.latency.value_at_quantile(quantile);
        json!({
            "operations": self.latency.len(),
            "failures": self.failures,
            "rate": rate(self.latency.len(), seconds),
            "p50_us": at(0.5),
            "p90_us": at(0.9),
            "p99_us": at(0.99),
            "p999_us": at(0.999),
            "max_us": self.latency.max(),
        })
    }

    fn cells(&self, name: &str, seconds: f64) -> Vec<String> {
        let at = |quantile| format!("{:.2} ms", ms(self.latency.value_at_quantile(quantile)));
        vec![
            name.to_owned(),
            self.latency.len().to_string(),
            self.failures.to_string(),
            format!("{:.0}/s", rate(self.latency.len(), seconds)),
            at(0.5),
            at(0.9),
            at(0.99),
            at(0.999),
            format!("{:.2} ms", ms(self.latency.max())),
        ]
    }
}

/// Reads a sample of the written keys back; gives how many could be read.
async fn verify(client: &Client, run: &Run, total: &mut Outcome) -> u64 {
    total.keys.sort_by_key(|(index, _)| index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let sample: Vec<(u64, Known)> = total.keys.iter().take(SAMPLE).copied().collect();
    let mut reading = JoinSet::new();
    for (index, known) in sample {
        let (client, how, key) = (client.clone(), run.how.clone(), key(run.id, index));
        reading.spawn(async move { (index, known, client.get(&how, &key).await) });
    }
    let mut verified = 0;
    while let Some(done) = reading.join_next().await {
        match done {
            Ok((index, known, Ok(got))) => {
                verified += 1;
                total.record(verdict(run.id, index, known, got.values.iter().map(|version| &version.value[..])));
            }
            Ok((_, _, Err(error))) => {
                total.first_error.get_or_insert(error);
            }
            Err(_) => {}
        }
    }
    verified
}

fn report(
    args: &BenchArgs,
    run: &Run,
    total: &Outcome,
    verified: u64,
    cpu: Duration,
    retries: u64,
    sink: &mut dyn Sink,
) -> Result<(), CommandError> {
    #[allow(clippy::cast_precision_loss, reason = "at most a day")]
    let seconds = args.seconds as f64;
    let done = total.reads.latency.len() + total.writes.latency.len();
    let failures = total.reads.failures + total.writes.failures;
    let sampled = u64::try_from(total.keys.len().min(SAMPLE)).unwrap_or(u64::MAX);
    #[allow(clippy::cast_precision_loss, reason = "a number for people")]
    let cpu_us = (cpu.as_micros() as f64 / done.max(1) as f64 * 100.0).round() / 100.0;
    let transport = if args.unary { "unary" } else { "batch" };
    sink.item(Item {
        json: json!({
            "schema": 1,
            "transport": transport,
            "seconds": args.seconds,
            "clients": args.clients,
            "keys": args.keys,
            "prefix": prefix(run.id),
            "value_size": args.value_size,
            "operations": done,
            "failures": failures,
            "failures_by_kind": total.by_kind,
            "retries": retries,
            "rate": rate(done, seconds),
            "reads": total.reads.json(seconds),
            "writes": total.writes.json(seconds),
            "client_cpu_us_per_operation": cpu_us,
            "sampled": sampled,
            "verified": verified,
            "lost": total.lost,
            "wrong": total.wrong,
        }),
        raw: format!("{:.0}\n", rate(done, seconds)).into_bytes(),
        human: Human::Text(format!(
            "{done} operations in {} s with {} in flight ({transport}): {:.0}/s, {failures} failures, {retries} retries, \
             {cpu_us} us of client CPU each",
            args.seconds,
            args.clients,
            rate(done, seconds)
        )),
    })?;
    if sink.format() == crate::output::Format::Table {
        for (name, tally) in [("reads", &total.reads), ("writes", &total.writes)] {
            sink.item(Item {
                json: Value::Null,
                raw: Vec::new(),
                human: Human::Row {
                    header: &["", ">COUNT", ">FAILED", ">RATE", ">P50", ">P90", ">P99", ">P99.9", ">MAX"],
                    cells: tally.cells(name, seconds),
                },
            })?;
        }
        sink.flush()?;
        sink.note(&format!(
            "{verified} of {sampled} keys verified: {} lost, {} wrong; the keys of this run begin with {} and stay",
            total.lost,
            total.wrong,
            prefix(run.id)
        ));
    }
    let counts =
        Counts { done, failures, sampled, verified, bad: total.lost + total.wrong, allowed: args.allow_failures };
    counts.check(total)
}

/// What decides whether a run was good.
#[derive(Clone, Copy, Debug)]
struct Counts {
    done: u64,
    failures: u64,
    sampled: u64,
    verified: u64,
    bad: u64,
    /// The share of operations that may fail.
    allowed: f64,
}

impl Counts {
    fn check(self, total: &Outcome) -> Result<(), CommandError> {
        let Self { done, failures, sampled, verified, bad, allowed } = self;
        if bad > 0 {
            return Err(CommandError::failed(format!(
                "{} reads missed an acknowledged write and {} returned what was never written",
                total.lost, total.wrong
            )));
        }
        let why =
            total.first_error.as_ref().map_or_else(|| "nothing was answered in time".to_owned(), ToString::to_string);
        let unavailable = |message: String| Err(CommandError::new(Class::Unavailable, format!("{message}: {why}")));
        if done == 0 {
            return unavailable("no operation succeeded".to_owned());
        }
        let percent = |share: f64| format!("{:.1}%", share * 100.0);
        let remedy = format!("{} may; --allow-failures sets it", percent(allowed));
        let failed = share(failures, done + failures);
        if failed > allowed {
            return unavailable(format!(
                "{failures} of {} operations failed, {} ({remedy})",
                done + failures,
                percent(failed)
            ));
        }
        let unread = sampled.saturating_sub(verified);
        if share(unread, sampled) > allowed {
            return unavailable(format!("{unread} of {sampled} sampled keys could not be read back ({remedy})"));
        }
        Ok(())
    }
}

fn share(part: u64, whole: u64) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "a share for people")]
    let share = part as f64 / whole.max(1) as f64;
    share
}

fn rate(count: u64, seconds: f64) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "a rate for people")]
    let rate = count as f64 / seconds.max(1e-6);
    (rate * 10.0).round() / 10.0
}

fn ms(us: u64) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "a latency for people")]
    let ms = us as f64 / 1000.0;
    ms
}

/// The processor time of this process.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}
