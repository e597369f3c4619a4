//! What an engine has done, and how long it took.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use kv_core::config::{Available, KeyspaceList, Mode};
use kv_core::error::Kind;
use kv_core::message::{Operation, Outcome, Request, Response};
use kv_core::types::{KeyspaceId, Monotonic};
use kv_core::version::Conflict;

/// How much time one window of latencies covers.
const WINDOW: Duration = Duration::from_secs(1);

/// The longest latency that is distinguished, in microseconds.
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
    /// Of these, requests that another owner had already and did not answer.
    pub hedges: u64,
    /// Retired requests that were forgotten because a record had no room for them.
    pub retired_forgotten: u64,
    /// How often proposals for keys of consistent keyspaces began again.
    pub register_retries: u64,
    /// Replicas repaired by reads.
    pub read_repairs: u64,
    /// Hints and missed-write markers delivered.
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RequestKind {
    /// A get.
    Get,
    /// A put.
    Put,
    /// A delete.
    Delete,
    /// One page of a scan.
    Scan,
    /// An inspection of every copy of a key.
    Inspect,
}

impl RequestKind {
    /// Its name in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Put => "put",
            Self::Delete => "delete",
            Self::Scan => "scan",
            Self::Inspect => "inspect",
        }
    }

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

/// Which requests are counted together. All parts come from closed sets, so there are never more than a few hundred.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestClass {
    /// What was asked.
    pub kind: RequestKind,
    /// What the keyspace does with concurrent writes; "unknown" where the node does not know the keyspace.
    pub mode: &'static str,
    /// "ok", "unchanged" of a write whose condition does not hold, or the kind of the error.
    pub outcome: &'static str,
}

/// Upper bounds of the buckets of [`Durations`], in microseconds. What takes longer is counted by `count` alone.
pub const BUCKETS_US: [u64; 16] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000,
];

/// How long all requests of one class took since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Durations {
    /// How many there were.
    pub count: u64,
    /// How long they took together, in microseconds.
    pub sum_us: u64,
    /// How many took at most the bound of the bucket and more than the one before.
    pub buckets: [u64; BUCKETS_US.len()],
}

impl Durations {
    pub(super) fn record(&mut self, took_us: u64) {
        self.count += 1;
        self.sum_us = self.sum_us.saturating_add(took_us);
        let at = BUCKETS_US.partition_point(|bound| *bound < took_us);
        if let Some(bucket) = self.buckets.get_mut(at) {
            *bucket += 1;
        }
    }
}

/// The requests since the start, by class.
#[derive(Debug, Default)]
pub(super) struct Requests {
    modes: BTreeMap<KeyspaceId, &'static str>,
    classes: BTreeMap<RequestClass, Durations>,
}

impl Requests {
    /// The keyspaces that there are now.
    pub(super) fn keyspaces(&mut self, keyspaces: &KeyspaceList) {
        let mode = |mode: &Mode| match mode {
            Mode::Available(Available { conflict: Conflict::Siblings, .. }) => "siblings",
            Mode::Available(Available { conflict: Conflict::Lww, .. }) => "lww",
            Mode::Consistent => "consistent",
        };
        self.modes = keyspaces.iter().map(|keyspace| (keyspace.id, mode(&keyspace.mode))).collect();
    }

    /// The mode of the keyspace that a request names: it is looked up before the request, which may outlive the keyspace.
    pub(super) fn mode_of(&self, request: &Request) -> &'static str {
        let keyspace = match request {
            Request::Key(request) => request.keyspace,
            Request::Scan(request) => request.keyspace,
            Request::Inspect { keyspace, .. } => *keyspace,
        };
        self.modes.get(&keyspace).copied().unwrap_or("unknown")
    }

    pub(super) fn record(&mut self, kind: RequestKind, mode: &'static str, outcome: &Outcome, took: Duration) {
        let outcome = match outcome {
            Ok(Response::Unchanged { .. }) => "unchanged",
            Ok(_) => "ok",
            Err(error) => name_of(error.kind),
        };
        self.classes.entry(RequestClass { kind, mode, outcome }).or_default().record(micros(took));
    }

    pub(super) fn classes(&self) -> BTreeMap<RequestClass, Durations> {
        self.classes.clone()
    }
}

/// The name of a kind of error in metrics.
const fn name_of(kind: Kind) -> &'static str {
    match kind {
        Kind::Invalid => "invalid",
        Kind::NotFound => "not_found",
        Kind::Unavailable => "unavailable",
        Kind::Unknown => "unknown",
        Kind::Exhausted => "exhausted",
        Kind::StaleEpoch => "stale_epoch",
        Kind::Corrupt => "corrupt",
        Kind::Poisoned => "poisoned",
        Kind::Conflict => "conflict",
    }
}

fn micros(took: Duration) -> u64 {
    u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
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

    pub(super) fn record(&mut self, now: Monotonic, took: Duration) {
        self.roll(now);
        self.current.saturating_record(micros(took));
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

#[cfg(test)]
mod tests {
    use kv_core::error::RequestError;
    use kv_core::message::Response;

    use super::*;

    #[test]
    fn durations_are_counted_in_the_bucket_that_holds_them() {
        let mut requests = Requests::default();
        let done: Outcome = Ok(Response::Page { entries: Vec::new(), next: None });
        for took in [0, 100, 101, 10_000_000, 10_000_001] {
            requests.record(RequestKind::Scan, "lww", &done, Duration::from_micros(took));
        }
        let failed: Outcome = Err(RequestError::unavailable("down"));
        requests.record(RequestKind::Scan, "lww", &failed, Duration::from_secs(5));
        let classes = requests.classes();
        assert_eq!(classes.len(), 2);
        let ok = classes[&RequestClass { kind: RequestKind::Scan, mode: "lww", outcome: "ok" }];
        assert_eq!((ok.count, ok.sum_us), (5, 20_000_202));
        assert_eq!((ok.buckets[0], ok.buckets[1], ok.buckets[15]), (2, 1, 1));
        assert_eq!(ok.buckets.iter().sum::<u64>(), 4, "the longest is in no bucket but the last, which counts all");
        let failed = classes[&RequestClass { kind: RequestKind::Scan, mode: "lww", outcome: "unavailable" }];
        assert_eq!(failed.count, 1);
    }
}
