//! Clients that do one thing as often as they can, and what that takes.

use std::time::Duration;

use bytes::Bytes;
use hdrhistogram::Histogram;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::Outcome;
use super::servers::{Servers, processor_time, processor_time_of_all};
use super::stores::{Seen, Store, Swapped, Worker};

/// Bytes of a value.
const VALUE_BYTES: usize = 100;

/// The longest latency that is told apart, in microseconds.
const LATENCY_MAX_US: u64 = 60_000_000;

/// What the clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// Each writes any of so many keys.
    Put { keys: u64 },
    /// Each reads any of so many keys.
    Get { keys: u64 },
    /// All add one to the same key, by compare and set.
    Add { round: usize },
}

/// How long it is done: first without looking.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub(crate) warm_up: Duration,
    pub(crate) measured: Duration,
}

/// What was measured.
#[derive(Clone, Debug, Default)]
pub(crate) struct Figures {
    pub(crate) operations: u64,
    pub(crate) seconds: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    /// Processor time of all processes of the store, and of this one.
    pub(crate) servers: Duration,
    pub(crate) clients: Duration,
    /// Of everything else on the machine, the kernel and the other store included, as a share of a core.
    pub(crate) others: f64,
    /// Comparisons that failed.
    pub(crate) retries: u64,
    pub(crate) failures: u64,
    /// One of them.
    pub(crate) failure: String,
}

/// What one client has to tell.
struct Tally {
    latency: Histogram<u64>,
    retries: u64,
    failures: u64,
    failure: String,
    /// Sums that were written, also while nobody looked, and attempts of which nobody knows.
    added: u64,
    unknown: u64,
}

/// The moments of a measurement.
#[derive(Clone, Copy, Debug)]
struct Window {
    from: Instant,
    until: Instant,
}

/// Marsaglia's xorshift64*: values that do not compress, and choices of keys.
#[derive(Debug)]
struct Random(u64);

/// The key with this number.
pub(crate) fn key(number: u64) -> Bytes {
    Bytes::from(format!("key/{number:08}"))
}

/// A value that begins with a number and does not compress.
pub(crate) fn value(number: u64) -> Bytes {
    let mut random = Random::new(number);
    let mut value = format!("{number}/").into_bytes();
    while value.len() < VALUE_BYTES {
        value.extend_from_slice(&random.next().to_le_bytes());
    }
    value.truncate(VALUE_BYTES);
    Bytes::from(value)
}

/// Writes all keys once.
pub(crate) async fn fill(store: &Store, keys: u64) -> Outcome<()> {
    const AT_ONCE: u64 = 64;
    let mut filling = JoinSet::new();
    for first in 0..AT_ONCE {
        let mut worker = store.worker(usize::try_from(first)?, None);
        filling.spawn(async move {
            for number in (first..keys).step_by(usize::try_from(AT_ONCE)?) {
                worker.put(&key(number), &value(number)).await?;
            }
            Outcome::Ok(())
        });
    }
    while let Some(filled) = filling.join_next().await {
        filled??;
    }
    Ok(())
}

/// Does `work` with so many clients, each of which waits for its answer before it goes on.
pub(crate) async fn measure(
    store: &Store,
    servers: &Servers,
    work: Work,
    in_flight: usize,
    times: Times,
) -> Outcome<Figures> {
    let before = match work {
        Work::Add { round } => number_of(&store.worker(0, None).get(&counter(round, in_flight)).await?)?,
        Work::Put { .. } | Work::Get { .. } => 0,
    };
    let from = Instant::now() + times.warm_up;
    let window = Window { from, until: from + times.measured };
    let mut working = JoinSet::new();
    for number in 0..in_flight {
        let worker = store.worker(number, None);
        working.spawn(run(worker, work, (number, in_flight), window));
    }
    sleep_until(window.from).await;
    let begin = processor_times(servers)?;
    sleep_until(window.until).await;
    let end = processor_times(servers)?;
    let seconds = (window.until - window.from).as_secs_f64();

    let mut total = Tally::new()?;
    while let Some(tally) = working.join_next().await {
        total.add(tally??)?;
    }
    if let Work::Add { round } = work {
        let sum = number_of(&store.worker(0, None).get(&counter(round, in_flight)).await?)? - before;
        if !(total.added..=total.added + total.unknown).contains(&sum) {
            let (added, unknown) = (total.added, total.unknown);
            return Err(format!("{added} sums were written, {unknown} perhaps, and the counter says {sum}").into());
        }
    }
    let [of_servers, of_clients, of_all] = [0, 1, 2].map(|at| end[at].saturating_sub(begin[at]));
    let others = of_all.saturating_sub(of_servers + of_clients).as_secs_f64() / seconds;
    #[allow(clippy::cast_precision_loss, reason = "a latency for people")]
    let ms = |quantile| total.latency.value_at_quantile(quantile) as f64 / 1000.0;
    Ok(Figures {
        operations: total.latency.len(),
        seconds,
        p50_ms: ms(0.5),
        p99_ms: ms(0.99),
        servers: of_servers,
        clients: of_clients,
        others,
        retries: total.retries,
        failures: total.failures,
        failure: total.failure,
    })
}

/// The processor time that the servers take while nobody asks anything, as a share of a core.
pub(crate) async fn idle(servers: &Servers, time: Duration) -> Outcome<f64> {
    let before = servers.processor_time()?;
    tokio::time::sleep(time).await;
    Ok((servers.processor_time()? - before).as_secs_f64() / time.as_secs_f64())
}

fn processor_times(servers: &Servers) -> Outcome<[Duration; 3]> {
    Ok([servers.processor_time()?, processor_time("self")?, processor_time_of_all()?])
}

/// The key that all clients of one measurement write.
fn counter(round: usize, writers: usize) -> Bytes {
    Bytes::from(format!("counter/{round}/{writers}"))
}

fn number_of(seen: &Seen) -> Outcome<u64> {
    let Some(value) = &seen.value else { return Ok(0) };
    let number = value.split(|&byte| byte == b'/').next().unwrap_or_default();
    Ok(std::str::from_utf8(number)?.parse()?)
}

async fn run(worker: Worker, work: Work, (number, of): (usize, usize), window: Window) -> Outcome<Tally> {
    match work {
        Work::Put { keys } => put_or_get(worker, keys, true, number, window).await,
        Work::Get { keys } => put_or_get(worker, keys, false, number, window).await,
        Work::Add { round } => add(worker, counter(round, of), window).await,
    }
}

async fn put_or_get(mut worker: Worker, keys: u64, puts: bool, number: usize, window: Window) -> Outcome<Tally> {
    let mut tally = Tally::new()?;
    let mut random = Random::new(u64::try_from(number)?);
    loop {
        let began = Instant::now();
        if began >= window.until {
            return Ok(tally);
        }
        let key = key(random.below(keys));
        let ended = if puts {
            worker.put(&key, &value(random.next())).await
        } else {
            match worker.get(&key).await {
                Ok(Seen { value: Some(value), .. }) if value.len() == VALUE_BYTES => Ok(()),
                Ok(_) => Err("a value is missing".into()),
                Err(error) => Err(error),
            }
        };
        match ended {
            Ok(()) => tally.succeeded(began, window),
            Err(error) => tally.failed(&error.to_string(), window),
        }
    }
}

async fn add(mut worker: Worker, key: Bytes, window: Window) -> Outcome<Tally> {
    let mut tally = Tally::new()?;
    let mut began = Instant::now();
    let mut seen = worker.get(&key).await?;
    while Instant::now() < window.until {
        let next = value(number_of(&seen)? + 1);
        match worker.swap(&key, &next, &seen.mark).await {
            Ok(Swapped::Done(mark)) => {
                tally.added += 1;
                tally.succeeded(began, window);
                seen = Seen { value: Some(next), mark };
                began = Instant::now();
            }
            Ok(Swapped::Lost(found)) => {
                tally.retries += u64::from(window.contains(Instant::now()));
                seen = found;
            }
            Err(error) => {
                tally.unknown += 1;
                tally.failed(&error.to_string(), window);
                seen = worker.get(&key).await?;
            }
        }
    }
    Ok(tally)
}

impl Window {
    fn contains(self, moment: Instant) -> bool {
        (self.from..self.until).contains(&moment)
    }
}

impl Tally {
    fn new() -> Outcome<Self> {
        let latency = Histogram::new_with_bounds(1, LATENCY_MAX_US, 2)?;
        Ok(Self { latency, retries: 0, failures: 0, failure: String::new(), added: 0, unknown: 0 })
    }

    fn succeeded(&mut self, began: Instant, window: Window) {
        if window.contains(Instant::now()) {
            let us = u64::try_from(began.elapsed().as_micros()).unwrap_or(LATENCY_MAX_US);
            self.latency.saturating_record(us.max(1));
        }
    }

    fn failed(&mut self, why: &str, window: Window) {
        self.failures += u64::from(window.contains(Instant::now()));
        why.clone_into(&mut self.failure);
    }

    fn add(&mut self, other: Self) -> Outcome<()> {
        self.latency.add(&other.latency)?;
        self.retries += other.retries;
        self.failures += other.failures;
        self.added += other.added;
        self.unknown += other.unknown;
        if !other.failure.is_empty() {
            self.failure = other.failure;
        }
        Ok(())
    }
}

impl Random {
    fn new(seed: u64) -> Self {
        Self((seed.wrapping_mul(0xa076_1d64_78bd_642f) ^ 0x9e37_79b9_7f4a_7c15).max(1))
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: u64) -> u64 {
        // The bias is far below what a benchmark could see.
        u64::try_from((u128::from(self.next()) * u128::from(bound)) >> 64).unwrap_or(0)
    }
}
