//! One client: it draws what to do, does it, and writes down what it is told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use kv_core::error::{Kind, RequestError};
use kv_core::message::Value;
use kv_core::types::{Hlc, WallTime};
use kv_histories::{Action, Condition, Expiry, Operation, Outcome};
use kv_proto::client::{self, Change, Client, Conditional, How, ScanQuery, Unchanged};
use kv_proto::request_id::RequestIds;
use parking_lot::RwLock;
use tokio::time::{sleep, timeout};

use super::ask::{self, Attempt, Nodes, Seen, Told, When, Write};
use super::dice::Dice;
use super::{Shared, micros};

/// How often a client asks for one write.
const ATTEMPTS_MAX: u32 = 4;

/// How late an attempt may come whose answer nobody awaits.
const LATE_MAX_MS: u64 = 1500;

/// Whom a client asks.
#[derive(Debug)]
pub(super) enum Way {
    /// The cluster, by the client library. Its time may be so much behind.
    Cluster { client: Client, behind: Duration },
    /// One node at a time.
    Nodes { nodes: Nodes, ids: RequestIds },
}

impl Way {
    pub(super) fn cluster(client: Client, behind: Duration) -> Self {
        Self::Cluster { client, behind }
    }

    pub(super) fn nodes(addresses: Arc<RwLock<Vec<String>>>, number: u64) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // Unlike those of other runs on the same nodes.
        let session = micros(now) << 8 | (number & 0xff);
        Self::Nodes { nodes: Nodes::new(addresses), ids: RequestIds::new(session, WallTime(micros(now))) }
    }
}

/// One client.
#[derive(Debug)]
pub(super) struct Recording {
    shared: Arc<Shared>,
    number: u64,
    dice: Dice,
    way: Way,
    /// Counts its values, each of which is written once.
    values: u64,
    generation: u64,
    seen: BTreeMap<String, Seen>,
}

/// How an operation has ended.
struct Ended {
    outcome: Outcome,
    seen: Option<Seen>,
}

impl Ended {
    fn refused() -> Self {
        Self { outcome: Outcome::Refused, seen: None }
    }

    fn unknown() -> Self {
        Self { outcome: Outcome::Unknown, seen: None }
    }

    fn got(seen: Seen) -> Self {
        Self { outcome: Outcome::Got { value: seen.value.clone() }, seen: Some(seen) }
    }

    fn written(write: &Write, context: Bytes) -> Self {
        Self { outcome: Outcome::Done, seen: Some(Seen { context, value: write.value.clone() }) }
    }

    fn failed(seen: Seen) -> Self {
        Self { outcome: Outcome::Failed { found: Some(seen.value.clone()) }, seen: Some(seen) }
    }
}

impl Recording {
    pub(super) fn new(shared: &Arc<Shared>, number: u64, way: Way) -> Self {
        let dice = Dice::new(shared.workload.seed, number);
        Self { shared: Arc::clone(shared), number, dice, way, values: 0, generation: 0, seen: BTreeMap::new() }
    }

    /// Asks until the run ends.
    pub(super) async fn work(mut self) {
        let shared = Arc::clone(&self.shared);
        let place = usize::try_from(self.number).unwrap_or(usize::MAX);
        while !shared.stop.load(Ordering::SeqCst) {
            let asked = shared.asked.fetch_add(1, Ordering::SeqCst);
            let generation = asked / shared.workload.rotate_after;
            if generation > self.generation {
                self.generation = generation;
                self.seen.clear();
            }
            if let Some(mine) = shared.generations.get(place) {
                mine.store(self.generation, Ordering::SeqCst);
            }
            self.step().await;
            sleep(Duration::from_micros(self.dice.below(micros(shared.workload.pause_max)))).await;
        }
    }

    fn prefix(&self) -> String {
        format!("g{}/", self.generation)
    }

    async fn step(&mut self) {
        let key = format!("{}k{}", self.prefix(), self.dice.below(self.shared.workload.keys));
        match self.dice.below(100) {
            0..40 => self.get(key).await,
            40..44 => self.scan().await,
            44..52 if matches!(self.way, Way::Cluster { .. }) => self.update(key).await,
            _ => {
                let write = self.draw(&key);
                self.write(key, write).await;
            }
        }
    }

    fn value(&mut self) -> String {
        self.values += 1;
        format!("c{}v{}", self.number, self.values)
    }

    fn draw(&mut self, key: &str) -> Write {
        let seen = self.seen.get(key).cloned();
        let is_delete = self.dice.chance(20);
        let when = match (self.dice.below(10), seen) {
            (0..3, _) if !is_delete => When::Absent,
            (3..7, Some(seen)) => When::Unchanged(seen),
            _ => When::Always,
        };
        let goes = !is_delete && self.dice.chance(12);
        let ttl = goes.then(|| Duration::from_millis(self.dice.between(50, 2500)));
        Write { value: (!is_delete).then(|| self.value()), when, ttl }
    }

    fn how(&self) -> How {
        How { keyspace: self.shared.workload.keyspace.clone(), ..How::default() }
    }

    fn record(&mut self, key: String, action: Action, called: u64, ended: Ended) {
        let Ended { outcome, seen } = ended;
        let returned = (outcome != Outcome::Unknown).then(|| self.shared.now());
        if let Some(seen) = seen {
            self.seen.insert(key.clone(), seen);
        }
        let operation = Operation { client: self.number, key, action, called, returned, outcome };
        self.shared.record(self.generation, operation);
    }

    async fn get(&mut self, key: String) {
        let (called, name, limit) = (self.shared.now(), Bytes::from(key.clone()), self.shared.workload.timeout);
        let how = self.how();
        let got = match &mut self.way {
            Way::Cluster { client, .. } => client.get(&how, &name).await.map(|got| seen(got.context, &got.values)),
            Way::Nodes { nodes, .. } => match nodes.pick(self.dice.below(u64::MAX)) {
                Some(node) => ask::get(node, &how.keyspace, &name, limit).await,
                None => Err(RequestError::unavailable("there is no node")),
            },
        };
        let ended = match got {
            Ok(seen) => Ended::got(seen),
            Err(error) if error.kind == Kind::Unknown => Ended::unknown(),
            Err(error) => {
                self.look(&error);
                Ended::refused()
            }
        };
        self.record(key, Action::Get, called, ended);
    }

    /// No request of these clients is a wrong one.
    fn look(&self, error: &RequestError) {
        if matches!(error.kind, Kind::Invalid | Kind::NotFound | Kind::Corrupt) {
            self.shared.wrong(format!("client {}: {error}", self.number));
        }
    }

    async fn scan(&mut self) {
        let (called, prefix, limit) = (self.shared.now(), self.prefix(), self.shared.workload.timeout);
        let keys = self.shared.workload.keys;
        // Some of the keys, or more than there are.
        let most = self.dice.between(1, keys + 1);
        let how = self.how();
        let (entries, is_whole) = match &mut self.way {
            Way::Cluster { client, .. } => {
                let query =
                    ScanQuery { prefix: Bytes::from(prefix.clone()), limit: Some(most), ..ScanQuery::default() };
                let (mut scan, mut entries, mut is_whole) = (client.scan(&how, query), Vec::new(), false);
                while let Ok(Some(page)) = scan.next_page().await {
                    let seen = |entry: &kv_core::message::ScanEntry| seen(entry.context.clone(), &entry.values);
                    entries.extend(page.entries.iter().map(|entry| (entry.key.clone(), seen(entry))));
                    is_whole = page.cursor.is_none();
                }
                (entries, is_whole)
            }
            Way::Nodes { nodes, .. } => match nodes.pick(self.dice.below(u64::MAX)) {
                Some(node) => ask::scan(node, &how.keyspace, &prefix, most, limit).await,
                None => return,
            },
        };
        let mut found: BTreeMap<String, Seen> = BTreeMap::new();
        for (key, seen) in entries {
            found.insert(ask::text(&key), seen);
        }
        // Keys come in order: those that were passed over had no value, as those behind the last one if there are no more.
        let last = found.keys().next_back().cloned();
        let all = (0..keys).map(|key| format!("{prefix}k{key}"));
        let passed: Vec<String> = all.filter(|key| is_whole || last.as_ref().is_some_and(|last| key < last)).collect();
        for key in passed {
            found.entry(key).or_insert(Seen { context: Bytes::new(), value: None });
        }
        self.shared.count(|counts| counts.scanned += found.len() as u64);
        for (key, seen) in found {
            // Without a context for a key that is absent.
            let ended = Ended {
                outcome: Outcome::Got { value: seen.value.clone() },
                seen: seen.value.is_some().then_some(seen),
            };
            self.record(key, Action::Get, called, ended);
        }
    }

    async fn write(&mut self, key: String, write: Write) {
        let (called, name, how) = (self.shared.now(), Bytes::from(key.clone()), self.how());
        let ended = if let Way::Cluster { client, .. } = &self.way {
            let result = by_library(client, &how, &name, &write).await;
            result.unwrap_or_else(|error| self.ended_by(&error))
        } else {
            self.write_at_nodes(&name, &write).await
        };
        let action = self.action(&write, called);
        self.record(key, action, called, ended);
    }

    fn ended_by(&self, error: &RequestError) -> Ended {
        self.look(error);
        match error.kind {
            Kind::Unknown | Kind::Poisoned | Kind::Corrupt => Ended::unknown(),
            _ => Ended::refused(),
        }
    }

    /// What was asked, once it has ended: a value goes so long after its request was named, which may have been done at any time until
    /// then.
    fn action(&self, write: &Write, called: u64) -> Action {
        let when = match &write.when {
            When::Always => Condition::Always,
            When::Absent => Condition::Absent,
            When::Unchanged(Seen { value: Some(value), .. }) => Condition::Holds(value.clone()),
            When::Unchanged(Seen { value: None, .. }) => Condition::StillAbsent,
        };
        let behind = if let Way::Cluster { behind, .. } = &self.way { *behind } else { Duration::ZERO };
        let apart = self.shared.workload.clocks_apart;
        let expires = write.ttl.map(|ttl| Expiry {
            earliest: (called + micros(ttl)).saturating_sub(micros(apart + behind)),
            latest: self.shared.now() + micros(ttl + apart),
        });
        match write.value.clone() {
            Some(value) => Action::Put { value, when, expires },
            None => Action::Delete { when },
        }
    }

    /// Sends a write to one node after the other until its outcome is known, or the client has had enough.
    async fn write_at_nodes(&mut self, key: &Bytes, write: &Write) -> Ended {
        let Self { shared, dice, way: Way::Nodes { nodes, ids }, .. } = self else { return Ended::refused() };
        let (keyspace, limit) = (shared.workload.keyspace.clone(), shared.workload.timeout);
        let mut attempt = Attempt {
            keyspace,
            key: key.clone(),
            write: write.clone(),
            request: ids.next(),
            repeats: false,
            timeout: limit,
        };
        let mut is_uncertain = false;
        if dice.chance(4) {
            // The first attempt is overtaken by the second one.
            send_late(shared, dice, nodes, attempt.clone());
            is_uncertain = true;
        }
        for tries in 0..ATTEMPTS_MAX {
            let Some(node) = nodes.pick(dice.below(u64::MAX)) else { return Ended::refused() };
            attempt.repeats = is_uncertain;
            shared.count(|counts| counts.repetitions += u64::from(tries > 0));
            // Some have no patience; their attempts go on.
            let patience =
                if dice.chance(8) { Duration::from_micros(dice.between(200, 20_000)) } else { limit + limit };
            let asked = tokio::spawn(ask::write(node, attempt.clone()));
            let told = match timeout(patience, asked).await {
                Ok(Ok(told)) => told,
                Ok(Err(_)) | Err(_) => Told::Unknown,
            };
            let ended = match told {
                Told::Written(context) => Ended::written(write, context),
                Told::Unchanged(seen) => Ended::failed(seen),
                Told::FailedBefore => Ended { outcome: Outcome::Failed { found: None }, seen: None },
                Told::Wrong(because) => {
                    shared.wrong(because);
                    return if is_uncertain { Ended::unknown() } else { Ended::refused() };
                }
                Told::Nothing(newest) => {
                    if !is_uncertain && newest > Hlc::default() {
                        // Nothing of it was done anywhere: it is another request from now on.
                        ids.refused(attempt.request, newest);
                        attempt.request = ids.next();
                    } else if dice.chance(50) {
                        break;
                    }
                    continue;
                }
                Told::Unknown => {
                    is_uncertain = true;
                    if dice.chance(25) {
                        break;
                    }
                    continue;
                }
            };
            shared.count(|counts| counts.by_repetition += u64::from(is_uncertain));
            // Who was told that the condition did not hold, and had asked once only, does not ask again.
            if (ended.outcome == Outcome::Done || is_uncertain) && dice.chance(10) {
                send_late(shared, dice, nodes, Attempt { repeats: true, ..attempt });
            }
            return ended;
        }
        if is_uncertain { Ended::unknown() } else { Ended::refused() }
    }

    /// Reads a key, and writes it on the condition that nothing has changed, until that is so.
    async fn update(&mut self, key: String) {
        let (name, how, shared) = (Bytes::from(key.clone()), self.how(), Arc::clone(&self.shared));
        let Way::Cluster { client, .. } = &self.way else { return };
        let client = client.clone();
        // All attempts but the last one have done nothing.
        let mut last: Option<(Write, u64)> = None;
        let updated = client
            .update(&how, &name, |found| {
                let value = self.value();
                let found = Seen { context: Bytes::new(), value: found.map(|found| ask::text(&found.value)) };
                let write = Write { value: Some(value.clone()), when: When::Unchanged(found), ttl: None };
                last = Some((write, shared.now()));
                Ok(Change::Put { value: Bytes::from(value), ttl: None })
            })
            .await;
        let Some((write, called)) = last else { return };
        let ended = match updated {
            Ok(updated) => Ended::written(&write, updated.context),
            Err(error) => self.ended_by(&error),
        };
        let action = self.action(&write, called);
        self.record(key, action, called, ended);
    }
}

/// Sends an attempt whose answer nobody awaits.
fn send_late(shared: &Shared, dice: &mut Dice, nodes: &mut Nodes, attempt: Attempt) {
    let Some(node) = nodes.pick(dice.below(u64::MAX)) else { return };
    let late = Duration::from_millis(dice.below(LATE_MAX_MS));
    shared.count(|counts| counts.late += 1);
    tokio::spawn(async move {
        sleep(late).await;
        ask::write(node, attempt).await;
    });
}

async fn by_library(client: &Client, how: &How, key: &Bytes, write: &Write) -> Result<Ended, RequestError> {
    let condition = match &write.when {
        When::Always => None,
        When::Absent => Some(client::Condition::Absent),
        When::Unchanged(seen) => Some(client::Condition::Unchanged(seen.context.clone())),
    };
    let answer = match (&write.value, condition) {
        (Some(value), Some(condition)) => {
            client.put_if(how, key, &Bytes::from(value.clone()), write.ttl, &condition).await?
        }
        (Some(value), None) => {
            let how_long = client::Write { context: None, ttl: write.ttl };
            Conditional::Written(client.put(how, key, &Bytes::from(value.clone()), &how_long).await?)
        }
        (None, Some(client::Condition::Unchanged(context))) => client.delete_if(how, key, &context).await?,
        (None, _) => Conditional::Written(client.delete(how, key, None).await?),
    };
    Ok(match answer {
        Conditional::Written(written) => Ended::written(write, written.context),
        Conditional::Unchanged(Unchanged { value, context }) => Ended::failed(seen(context, value.as_slice())),
    })
}

fn seen(context: Bytes, values: &[Value]) -> Seen {
    Seen { context, value: ask::value_of(values.iter().map(|value| ask::text(&value.value))) }
}
