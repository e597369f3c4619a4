//! What an engine has done, and how long it took.

use std::time::Duration;

use hdrhistogram::Histogram;
use kv_core::message::{Operation, Outcome, Request};
use kv_core::types::Monotonic;

/// How much time one window of latencies covers.
const WINDOW: Duration = Duration::from_secs(1);

/// The longest latency that is told apart, in microseconds.
const LATENCY_US_MAX: u64 = 60_000_000;

/// What the engine has done since it was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Gets from clients.
    pub gets: u64,
    /// Puts from clients.
    pub puts: u64,
    /// Deletes from clients.
    pub deletes: u64,
    /// Pages of scans.
    pub scans: u64,
    /// Requests that failed.
    pub failures: u64,
    /// Requests passed on to an owner.
    pub forwards: u64,
    /// Replicas repaired by reads.
    pub read_repairs: u64,
    /// Hints and lag marks delivered.
    pub handoffs: u64,
    /// Look-ups answered by the hot tier.
    pub hot_hits: u64,
    /// Look-ups that had to read the store.
    pub hot_misses: u64,
    /// Commits made durable.
    pub commits: u64,
    /// Batches in these commits.
    pub committed_batches: u64,
    /// Bytes that came in for copies and refills of partitions.
    pub copied_bytes: u64,
}

/// How long the requests of the last full window took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latency {
    /// The median, in microseconds; 0: there were none.
    pub p50_us: u64,
    /// The 99th percentile.
    pub p99_us: u64,
}

/// What kind of request is counted when it ends.
#[derive(Clone, Copy, Debug)]
pub(super) enum RequestKind {
    Get,
    Put,
    Delete,
    Scan,
    Inspect,
}

impl RequestKind {
    pub(super) fn of(request: &Request) -> Self {
        match request {
            Request::Key(key) => match &key.operation {
                Operation::Get => Self::Get,
                Operation::Write { value: Some(_), .. } => Self::Put,
                Operation::Write { value: None, .. } => Self::Delete,
            },
            Request::Scan(_) => Self::Scan,
            Request::Inspect { .. } => Self::Inspect,
        }
    }
}

impl Counters {
    pub(super) fn count(&mut self, kind: RequestKind, outcome: &Outcome) {
        let counter = match kind {
            RequestKind::Get => &mut self.gets,
            RequestKind::Put => &mut self.puts,
            RequestKind::Delete => &mut self.deletes,
            RequestKind::Scan => &mut self.scans,
            RequestKind::Inspect => return,
        };
        *counter += 1;
        self.failures += u64::from(outcome.is_err());
    }
}

/// Latencies of the window under way and of the one before it.
pub(super) struct Latencies {
    current: Histogram<u64>,
    since: Monotonic,
    last: Latency,
}

impl Latencies {
    pub(super) fn new(now: Monotonic) -> Option<Self> {
        let current = Histogram::new_with_max(LATENCY_US_MAX, 2).ok()?;
        Some(Self { current, since: now, last: Latency::default() })
    }

    pub(super) fn record(&mut self, now: Monotonic, started: Monotonic) {
        self.roll(now);
        let took = u64::try_from(now.since(started).as_micros()).unwrap_or(u64::MAX);
        self.current.saturating_record(took);
    }

    /// The last full window.
    pub(super) fn last(&mut self, now: Monotonic) -> Latency {
        self.roll(now);
        self.last
    }

    fn roll(&mut self, now: Monotonic) {
        let passed = now.since(self.since);
        if passed < WINDOW {
            return;
        }
        self.last = if self.current.is_empty() || passed >= 2 * WINDOW {
            Latency::default()
        } else {
            Latency { p50_us: self.current.value_at_quantile(0.5), p99_us: self.current.value_at_quantile(0.99) }
        };
        self.current.reset();
        self.since = now;
    }
}
