//! Clients at work: each writes and reads keys of its own, remembers what was acknowledged, and how long it waited.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kv_core::error::{Kind, RequestError};
use kv_core::message::{Consistency, Level};
use kv_proto::client::{Client, How, Write};
use kv_proto::status::from_status;
use kv_proto::v1;
use kv_proto::v1::key_value_client::KeyValueClient;
use tonic::transport::{Channel, Endpoint};

use super::check::{Judged, Key};

/// Keys of one client.
const KEYS: usize = 100;

/// The pause between two operations: the machine has to have time for the nodes.
const PAUSE: Duration = Duration::from_millis(8);

/// How long an operation may take before it counts as failed and is tried again.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Waits that are longer are counted.
const LONG: Duration = Duration::from_millis(300);

/// What the clients of one turn have seen.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// When the turn began.
    began: Moment,
    pub(crate) operations: u64,
    pub(crate) unavailable: u64,
    pub(crate) unknown: u64,
    pub(crate) exhausted: u64,
    pub(crate) other: u64,
    /// The longest time from the first attempt of an operation to its success.
    pub(crate) longest: Duration,
    /// Whose it was, and when.
    pub(crate) whose: String,
    /// Waits of more than 300 ms.
    pub(crate) long: u64,
    /// How late the clients' own process was at most: so much of a wait may be its own.
    pub(crate) lag: Duration,
    /// The last failure, in words.
    pub(crate) failure: String,
    /// Reads that did not know all acknowledged writes of their client, where both were not strict: no promise is broken.
    pub(crate) stale: u64,
    /// The same where both were strict: a promise is broken.
    pub(crate) stale_strict: u64,
    /// Reads that knew all acknowledged writes and lacked a value that nothing can have replaced: a promise is broken.
    pub(crate) lost: u64,
    /// Whose these were, and what was found.
    pub(crate) violations: Vec<String>,
}

/// A moment, by default that in which it is made.
#[derive(Clone, Copy, Debug)]
struct Moment(Instant);

impl Default for Moment {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Moment {
    fn elapsed(self) -> Duration {
        self.0.elapsed()
    }
}

/// Violations that are told in words.
const VIOLATIONS_TOLD: usize = 20;

impl Seen {
    fn judged(&mut self, judged: Judged, strict: bool, whose: impl FnOnce() -> String) {
        self.stale += u64::from(judged.stale && !strict);
        self.stale_strict += u64::from(judged.stale && strict);
        self.lost += u64::from(judged.lost);
        if (judged.lost || (judged.stale && strict)) && self.violations.len() < VIOLATIONS_TOLD {
            self.violations.push(whose());
        }
    }

    fn succeeded(&mut self, waited: Duration, whose: impl FnOnce() -> String) {
        self.operations += 1;
        self.long += u64::from(waited > LONG);
        if waited > self.longest {
            self.longest = waited;
            self.whose = whose();
        }
    }

    fn failed(&mut self, error: &RequestError) {
        self.failure.clone_from(&error.message);
        match error.kind {
            Kind::Unavailable => self.unavailable += 1,
            Kind::Unknown => self.unknown += 1,
            Kind::Exhausted => self.exhausted += 1,
            _ => self.other += 1,
        }
    }
}

/// The clients of one run.
pub(crate) struct Load {
    pub(crate) seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<Worker>>,
    /// How often the node of each client that talks to one only has become the victim, or has ceased to be: odd while it is.
    turns: Vec<Arc<AtomicU64>>,
}

/// Who carries operations out.
enum Way {
    /// A client that knows the whole cluster.
    Cluster(Client),
    /// A client that asks one node, whatever happens.
    Node { client: KeyValueClient<Channel>, turns: Arc<AtomicU64> },
}

/// One client.
pub(crate) struct Worker {
    name: String,
    way: Way,
    consistency: Consistency,
    keys: Vec<Key>,
    number: u64,
}

impl Load {
    /// The node is the victim from now on: the client that asks it alone does not count.
    pub(crate) fn becomes_victim(&self, node: usize) {
        self.turns[node].fetch_add(1, Ordering::Relaxed);
    }

    /// It is the victim no more, if it was.
    pub(crate) fn is_no_victim(&self, node: usize) {
        let turns = &self.turns[node];
        if !turns.load(Ordering::Relaxed).is_multiple_of(2) {
            turns.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// `smart` clients that know the cluster, at four levels of consistency, and one at each node.
    pub(crate) async fn start(client: &Client, addresses: &[String], smart: usize) -> Result<Self, RequestError> {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let mut load = Self { seen, stop, tasks: Vec::new(), turns: Vec::new() };
        let levels = [
            ("default", Consistency::default()),
            ("one", Consistency { level: Level::One, strict: false }),
            ("quorum", Consistency { level: Level::Quorum, strict: false }),
            ("strict", Consistency { level: Level::Quorum, strict: true }),
        ];
        for index in 0..smart {
            let (level, consistency) = levels[index % levels.len()];
            let way = Way::Cluster(client.again(client.options().clone()).await?);
            load.spawn(format!("cluster-{level}-{index}"), way, consistency);
        }
        for (index, address) in addresses.iter().enumerate() {
            let endpoint = Endpoint::from_shared(format!("http://{address}"))
                .map_err(|error| RequestError::invalid(error.to_string()))?
                .tcp_nodelay(true)
                .connect_timeout(Duration::from_secs(1));
            let turns = Arc::new(AtomicU64::new(0));
            load.turns.push(Arc::clone(&turns));
            let way = Way::Node { client: KeyValueClient::new(endpoint.connect_lazy()), turns };
            let (level, consistency) = levels[index % levels.len()];
            load.spawn(format!("n{}-{level}", index + 1), way, consistency);
        }
        tokio::spawn(watch_lag(Arc::clone(&load.seen), Arc::clone(&load.stop)));
        Ok(load)
    }

    fn spawn(&mut self, name: String, way: Way, consistency: Consistency) {
        let worker = Worker { name, way, consistency, keys: vec![Key::default(); KEYS], number: 0 };
        self.tasks.push(tokio::spawn(worker.work(Arc::clone(&self.seen), Arc::clone(&self.stop))));
    }

    /// What was seen since the last call.
    pub(crate) fn take(&self) -> Seen {
        std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Ends all clients.
    pub(crate) async fn stop(self) -> Vec<Worker> {
        self.stop.store(true, Ordering::Relaxed);
        let mut workers = Vec::new();
        for task in self.tasks {
            workers.extend(task.await.ok());
        }
        workers
    }
}

/// Notes how late a task of this process wakes up. The machine may be too busy for its clients as well as for its nodes.
async fn watch_lag(seen: Arc<Mutex<Seen>>, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        let due = Instant::now() + PAUSE;
        tokio::time::sleep(PAUSE).await;
        let lag = due.elapsed();
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.lag = seen.lag.max(lag);
    }
}

/// What one operation led to.
enum Did {
    Wrote(Bytes),
    Read { numbers: BTreeSet<u64>, context: Bytes },
}

impl Worker {
    async fn work(mut self, seen: Arc<Mutex<Seen>>, stop: Arc<AtomicBool>) -> Self {
        let mut round: u64 = 0;
        while !stop.load(Ordering::Relaxed) {
            round += 1;
            let index = usize::try_from(round.wrapping_mul(31) % KEYS as u64).unwrap_or(0);
            // Shifted by one with each pass over the keys, so that every key gets every action. Each begins with a get: a write
            // without a context replaces whatever its coordinator has when it is carried out, which may be late.
            let action = match (round + round / KEYS as u64) % 10 {
                _ if self.keys[index].context().is_none() => Action::Get,
                0 => Action::Delete,
                1..=5 => Action::Put,
                _ => Action::Get,
            };
            self.until_success(index, action, &seen, &stop).await;
            tokio::time::sleep(PAUSE).await;
        }
        self
    }

    /// Carries an action out, again and again until it succeeds; a write that is tried again is a new write.
    async fn until_success(&mut self, index: usize, action: Action, seen: &Mutex<Seen>, stop: &AtomicBool) {
        let began = Instant::now();
        let turn = self.turn();
        loop {
            self.number += 1;
            let number = self.number;
            if action != Action::Get {
                self.keys[index].asks(number, action == Action::Delete);
            }
            let result = tokio::time::timeout(TIMEOUT, self.attempt(index, action, number)).await;
            let result = result.unwrap_or_else(|_| Err(RequestError::new(Kind::Unknown, "no answer in time")));
            // A client whose node was the victim at any time since says nothing of the others.
            let counted = turn.is_multiple_of(2) && turn == self.turn();
            match result {
                Ok(did) => {
                    let judged = self.learn(index, number, did);
                    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                    // What is promised holds for every client, whether its waits count or not.
                    let strict = self.consistency.strict;
                    seen.judged(judged, strict, || format!("{} {index}: {judged:?}", self.name));
                    if counted {
                        let moment = seen.began.elapsed().as_secs_f64();
                        seen.succeeded(began.elapsed(), || format!("{} {action:?} at {moment:.1} s", self.name));
                    }
                    return;
                }
                Err(error) => {
                    self.failed(index, number, &error);
                    if counted {
                        seen.lock().unwrap_or_else(PoisonError::into_inner).failed(&error);
                    }
                }
            }
            if stop.load(Ordering::Relaxed) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    fn turn(&self) -> u64 {
        match &self.way {
            Way::Cluster(_) => 0,
            Way::Node { turns, .. } => turns.load(Ordering::Relaxed),
        }
    }

    fn key(&self, index: usize) -> Bytes {
        Bytes::from(format!("soak/{}/{index:04}", self.name))
    }

    /// Notes a success; what a read says of the promises.
    fn learn(&mut self, index: usize, number: u64, did: Did) -> Judged {
        let key = self.key(index);
        match did {
            Did::Wrote(context) => {
                self.keys[index].wrote(number, context, &key);
                Judged::default()
            }
            Did::Read { numbers, context } => self.keys[index].read(&numbers, context, &key, self.consistency.strict),
        }
    }

    /// Notes a failure: of a read it says nothing.
    fn failed(&mut self, index: usize, number: u64, error: &RequestError) {
        match error.kind {
            Kind::Unknown | Kind::Poisoned | Kind::Corrupt => self.keys[index].may_have_written(number),
            _ => self.keys[index].did_nothing(number),
        }
    }

    async fn attempt(&mut self, index: usize, action: Action, number: u64) -> Result<Did, RequestError> {
        let key = self.key(index);
        let context = self.keys[index].context();
        let value = Bytes::from(format!("{number}/{:0>180}", index));
        match &mut self.way {
            Way::Cluster(client) => {
                let how = How { consistency: self.consistency, ..How::default() };
                match action {
                    Action::Put => {
                        let write = Write { context, ttl: None };
                        Ok(Did::Wrote(client.put(&how, &key, &value, &write).await?.context))
                    }
                    Action::Delete => Ok(Did::Wrote(client.delete(&how, &key, context.as_ref()).await?.context)),
                    Action::Get => {
                        let got = client.get(&how, &key).await?;
                        let numbers = got.values.iter().filter_map(|value| number_of(&value.value)).collect();
                        Ok(Did::Read { numbers, context: got.context })
                    }
                }
            }
            Way::Node { client, .. } => {
                let level = v1::Level::into(kv_proto::edge::level_to_wire(self.consistency.level));
                let strict = self.consistency.strict;
                let failed = |status: tonic::Status| from_status(&status);
                match action {
                    Action::Put => {
                        let request = v1::PutRequest { key, value, context, level, strict, ..Default::default() };
                        Ok(Did::Wrote(client.put(request).await.map_err(failed)?.into_inner().context))
                    }
                    Action::Delete => {
                        let request = v1::DeleteRequest { key, context, level, strict, ..Default::default() };
                        Ok(Did::Wrote(client.delete(request).await.map_err(failed)?.into_inner().context))
                    }
                    Action::Get => {
                        let request = v1::GetRequest { key, level, strict, ..Default::default() };
                        let got = client.get(request).await.map_err(failed)?.into_inner();
                        let numbers = got.versions.iter().filter_map(|version| number_of(&version.value)).collect();
                        Ok(Did::Read { numbers, context: got.context })
                    }
                }
            }
        }
    }

    /// Compares what every copy agrees on with what was acknowledged: keys lost, and effects that came twice.
    pub(crate) async fn judge(&self, client: &Client) -> Result<Verdict, RequestError> {
        let all = How {
            consistency: Consistency { level: Level::All, strict: true },
            timeout: Some(Duration::from_secs(30)),
            ..How::default()
        };
        let mut verdict = Verdict::default();
        for (index, key) in self.keys.iter().enumerate() {
            let got = client.get(&all, &self.key(index)).await?;
            let found: BTreeSet<u64> = got.values.iter().filter_map(|value| number_of(&value.value)).collect();
            let judged = key.judge(&found, &got.context, &self.key(index), true);
            verdict.keys += 1;
            if judged.lost || judged.stale {
                verdict.lost.push(format!("{} {index}: found {found:?}, {judged:?}, known {key:?}", self.name));
            }
            verdict.came_back += judged.came_back;
        }
        Ok(verdict)
    }
}

/// What the end of a run says of the keys of one client.
#[derive(Clone, Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) keys: usize,
    pub(crate) lost: Vec<String>,
    /// Values that were replaced or deleted and are there again: attempts of a request that one node carried out after
    /// another one had, once it was thawed or in reach again.
    pub(crate) came_back: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Put,
    Delete,
    Get,
}

fn number_of(value: &Bytes) -> Option<u64> {
    std::str::from_utf8(value).ok()?.split('/').next()?.parse().ok()
}
