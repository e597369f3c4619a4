//! For how long nothing can be written after a process was killed.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::Outcome;
use super::load;
use super::servers::Servers;
use super::stores::{Store, Worker};

/// Writes in flight.
const IN_FLIGHT: usize = 4;

/// How long is written before the kill, of which the second half counts, and after it.
const BEFORE: Duration = Duration::from_secs(2);
const AFTER: Duration = Duration::from_secs(8);

/// When the others know for certain that the process is down: a second more than the failure detector waits.
const KNOWN_AFTER: Duration = Duration::from_secs(6);

/// How long a write to etcd is awaited until it is tried again. Its client repeats no write by itself, and a member that has handed a
/// write to a dead leader keeps it for seconds.
const ETCD_ATTEMPT: Duration = Duration::from_millis(100);

/// The longest times between two successes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Gap {
    /// In the second before the kill, to compare with.
    pub(crate) before: Duration,
    /// From the kill on.
    pub(crate) after: Duration,
    /// Once the process is known to be down.
    pub(crate) known: Duration,
    pub(crate) failures: usize,
}

#[derive(Debug, Default)]
struct Seen {
    successes: Mutex<Vec<Instant>>,
    failures: Mutex<Vec<String>>,
    is_over: AtomicBool,
}

/// The key that is written in the turn with this number, so that other processes are the first owners.
pub(crate) fn key(turn: usize) -> Bytes {
    Bytes::from(format!("gap/{turn}"))
}

/// Kills a process while its key is written, measures, and starts it again.
pub(crate) async fn kill(store: &Store, servers: &mut Servers, key: &Bytes, victim: usize) -> Outcome<Gap> {
    let seen = Arc::new(Seen::default());
    let mut writing = JoinSet::new();
    for number in 0..IN_FLIGHT {
        writing.spawn(write(store.worker(number, Some(victim)), key.clone(), Arc::clone(&seen)));
    }
    sleep(BEFORE).await;
    let killed = Instant::now();
    servers.kill(victim)?;
    sleep(AFTER).await;
    let ended = Instant::now();
    seen.is_over.store(true, Ordering::Relaxed);
    while let Some(written) = writing.join_next().await {
        written?;
    }
    servers.restart(victim)?;
    store.wait_until_healthy(servers).await?;

    let mut successes = seen.successes.lock().unwrap_or_else(PoisonError::into_inner).clone();
    successes.retain(|success| *success < ended);
    successes.sort_unstable();
    let failures = seen.failures.lock().unwrap_or_else(PoisonError::into_inner).len();
    let longest = |from: Instant, until: Instant| longest(&successes, from, until);
    Ok(Gap {
        before: longest(killed - BEFORE / 2, killed),
        after: longest(killed, ended),
        known: longest(killed + KNOWN_AFTER, ended),
        failures,
    })
}

/// The longest time between two successes that reaches into the time from `from` to `until`. Where there is none until then it ends there.
fn longest(successes: &[Instant], from: Instant, until: Instant) -> Duration {
    let begin = successes.partition_point(|success| *success < from).saturating_sub(1);
    let inside = successes[begin..].iter().copied().take_while(|success| *success < until);
    let mut last = successes.get(begin).copied().filter(|success| *success < from).unwrap_or(from);
    let mut longest = Duration::ZERO;
    for success in inside.chain([until]) {
        longest = longest.max(success.saturating_duration_since(last));
        last = success;
    }
    longest
}

async fn write(mut worker: Worker, key: Bytes, seen: Arc<Seen>) {
    let mut number = 0;
    while !seen.is_over.load(Ordering::Relaxed) {
        number += 1;
        let value = load::value(number);
        let ended = match &worker {
            Worker::Ours(..) => worker.put(&key, &value).await,
            Worker::Etcd(_) => match timeout(ETCD_ATTEMPT, worker.put(&key, &value)).await {
                Ok(ended) => ended,
                Err(late) => Err(late.into()),
            },
        };
        match ended {
            Ok(()) => seen.successes.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now()),
            Err(error) => {
                seen.failures.lock().unwrap_or_else(PoisonError::into_inner).push(error.to_string());
                // Whoever is refused at once must not take the processor from an election.
                sleep(Duration::from_millis(2)).await;
            }
        }
    }
}
