//! Clients at work: each writes and reads keys of its own, remembers what was acknowledged, and how long it waited.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
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

/// Keys of one client.
const KEYS: usize = 100;

/// The pause between two operations: the machine has to have time for the nodes.
const PAUSE: Duration = Duration::from_millis(8);

/// How long an operation may take before it counts as failed and is tried again.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Waits that are longer are counted.
const LONG: Duration = Duration::from_millis(300);

/// What a client knows of one of its keys. A value is its number, with the client's name before and padding behind it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Key {
    /// The number of the last write or delete that was acknowledged, and whether it was a delete.
    acknowledged: Option<(u64, bool)>,
    /// Writes whose outcome is unknown, and whether they are deletes.
    unknown: BTreeMap<u64, bool>,
    /// Numbers that some acknowledged write has replaced.
    replaced: BTreeSet<u64>,
    context: Option<Bytes>,
}

/// What the clients of one turn have seen.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) operations: u64,
    pub(crate) unavailable: u64,
    pub(crate) unknown: u64,
    pub(crate) exhausted: u64,
    pub(crate) other: u64,
    /// The longest time from the first attempt of an operation to its success.
    pub(crate) longest: Duration,
    /// Whose it was.
    pub(crate) whose: String,
    /// Waits of more than 300 ms.
    pub(crate) long: u64,
    /// The last failure, in words.
    pub(crate) failure: String,
    /// Reads that missed the newest acknowledged write: allowed without `strict`, counted.
    pub(crate) stale: u64,
}

impl Seen {
    fn succeeded(&mut self, waited: Duration, stale: bool, whose: impl FnOnce() -> String) {
        self.operations += 1;
        self.stale += u64::from(stale);
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
    /// The clients that talk to one node only, whether they count: not while their node is the victim.
    pub(crate) counted: Vec<Arc<AtomicBool>>,
}

/// Who carries operations out.
enum Way {
    /// A client that knows the whole cluster.
    Cluster(Client),
    /// A client that asks one node, whatever happens.
    Node { client: KeyValueClient<Channel>, counted: Arc<AtomicBool> },
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
    /// `smart` clients that know the cluster, at four levels of consistency, and one at each node.
    pub(crate) async fn start(client: &Client, addresses: &[String], smart: usize) -> Result<Self, RequestError> {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let mut load = Self { seen, stop, tasks: Vec::new(), counted: Vec::new() };
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
            let counted = Arc::new(AtomicBool::new(true));
            load.counted.push(Arc::clone(&counted));
            let way = Way::Node { client: KeyValueClient::new(endpoint.connect_lazy()), counted };
            let (level, consistency) = levels[index % levels.len()];
            load.spawn(format!("n{}-{level}", index + 1), way, consistency);
        }
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
            // Shifted by one with each pass over the keys, so that every key gets every action.
            let action = match (round + round / KEYS as u64) % 10 {
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
        let counted = self.counts();
        loop {
            self.number += 1;
            let number = self.number;
            let result = tokio::time::timeout(TIMEOUT, self.attempt(index, action, number)).await;
            let result = result.unwrap_or_else(|_| Err(RequestError::new(Kind::Unknown, "no answer in time")));
            // A client whose node became the victim meanwhile, or was until now, says nothing of the others.
            let counted = counted && self.counts();
            match result {
                Ok(did) => {
                    let stale = self.keys[index].learn(action, number, did);
                    if counted {
                        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                        seen.succeeded(began.elapsed(), stale, || format!("{} {action:?}", self.name));
                    }
                    return;
                }
                Err(error) => {
                    if error.kind == Kind::Unknown && action != Action::Get {
                        self.keys[index].unknown.insert(number, action == Action::Delete);
                    }
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

    fn counts(&self) -> bool {
        match &self.way {
            Way::Cluster(_) => true,
            Way::Node { counted, .. } => counted.load(Ordering::Relaxed),
        }
    }

    fn key(&self, index: usize) -> Bytes {
        Bytes::from(format!("soak/{}/{index:04}", self.name))
    }

    async fn attempt(&mut self, index: usize, action: Action, number: u64) -> Result<Did, RequestError> {
        let key = self.key(index);
        let context = self.keys[index].context.clone();
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
            verdict.keys += 1;
            let came_back = key.came_back(&found).count();
            if !key.is_kept(&found) && came_back == 0 {
                verdict.lost.push(format!("{} {index}: found {found:?}, known {key:?}", self.name));
            }
            verdict.came_back += came_back;
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

impl Key {
    /// Notes a success; says whether a read missed the newest acknowledged write.
    fn learn(&mut self, action: Action, number: u64, did: Did) -> bool {
        match did {
            Did::Wrote(context) => {
                if let Some((before, false)) = self.acknowledged {
                    self.replaced.insert(before);
                }
                self.acknowledged = Some((number, action == Action::Delete));
                self.context = Some(context);
                false
            }
            Did::Read { numbers, context } => {
                let stale = !self.is_kept(&numbers);
                if !stale {
                    // The next write covers what this read has shown.
                    self.context = Some(context);
                }
                stale
            }
        }
    }

    /// Whether the values found hold what was acknowledged last, or what a later write of unknown outcome made of it.
    fn is_kept(&self, found: &BTreeSet<u64>) -> bool {
        let Some((number, is_delete)) = self.acknowledged else { return true };
        let later = self.unknown.range(number..);
        let explained = later.clone().any(|(later, is_delete)| *is_delete || found.contains(later));
        if is_delete { self.came_back(found).next().is_none() } else { found.contains(&number) || explained }
    }

    /// Values that an acknowledged write or delete has replaced and that are there all the same.
    fn came_back<'a>(&'a self, found: &'a BTreeSet<u64>) -> impl Iterator<Item = u64> + 'a {
        found.intersection(&self.replaced).copied()
    }
}

fn number_of(value: &Bytes) -> Option<u64> {
    std::str::from_utf8(value).ok()?.split('/').next()?.parse().ok()
}
