//! Clients of one consistent keyspace that write down what they ask and what they are told, as histories that `kv-histories` judges.
//! They are for nodes that are real, or nearly so, and whatever happens to these.
//!
//! Some clients are the client library, which knows the cluster. The others ask one node at a time, any of them: they repeat writes of
//! unknown outcome elsewhere under the same identity, give up early, and send attempts that come late or twice.

mod ask;
mod client;
mod dice;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kv_core::error::RequestError;
use kv_histories::{Action, Operation, Outcome};
use kv_proto::client::{Client, Options};
use parking_lot::{Mutex, RwLock};
use tokio::task::JoinHandle;

use client::{Recording, Way};

/// What the clients do.
#[derive(Clone, Debug)]
pub struct Workload {
    /// The keyspace, which is a consistent one.
    pub keyspace: String,
    /// From it follows what each client asks.
    pub seed: u64,
    /// Clients that know the cluster.
    pub smart: u64,
    /// Clients that ask one node at a time.
    pub direct: u64,
    /// Keys at a time.
    pub keys: u64,
    /// After so many operations all clients go on to other keys, so that the history of a key has an end.
    pub rotate_after: u64,
    /// How long an attempt may take.
    pub timeout: Duration,
    /// The longest pause between two operations of a client.
    pub pause_max: Duration,
    /// By how much the clocks of nodes and clients may differ when a value goes by itself.
    pub clocks_apart: Duration,
}

impl Default for Workload {
    fn default() -> Self {
        Self {
            keyspace: String::new(),
            seed: 1,
            smart: 4,
            direct: 6,
            keys: 4,
            rotate_after: 2000,
            timeout: Duration::from_millis(1500),
            pause_max: Duration::from_millis(20),
            clocks_apart: Duration::from_secs(1),
        }
    }
}

/// How many operations have ended how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Reads that found a value.
    pub found: u64,
    /// Reads that found nothing.
    pub absent: u64,
    /// Those of both that were part of a scan.
    pub scanned: u64,
    /// Puts that are done.
    pub puts: u64,
    /// Those of them whose values go by themselves.
    pub expiring: u64,
    /// Deletes that are done.
    pub deletes: u64,
    /// Writes on a condition that did not hold.
    pub failed: u64,
    /// Operations that did nothing for another reason.
    pub refused: u64,
    /// Operations of unknown outcome.
    pub unknown: u64,
    /// Attempts that were sent after others of the same write.
    pub repetitions: u64,
    /// Writes whose outcome was told by a repetition.
    pub by_repetition: u64,
    /// Attempts that came late or twice, whose answers nobody awaited.
    pub late: u64,
    /// Requests that were called wrong, which none is.
    pub wrong: u64,
    /// What was said of the last of them.
    pub wrong_because: String,
}

impl Counts {
    /// Operations of which something is known.
    #[must_use]
    pub fn known(&self) -> u64 {
        self.found + self.absent + self.puts + self.deletes + self.failed
    }

    fn count(&mut self, operation: &Operation) {
        match (&operation.outcome, &operation.action) {
            (Outcome::Got { value: Some(_) }, _) => self.found += 1,
            (Outcome::Got { value: None }, _) => self.absent += 1,
            (Outcome::Done, Action::Put { expires, .. }) => {
                self.puts += 1;
                self.expiring += u64::from(expires.is_some());
            }
            (Outcome::Done, _) => self.deletes += 1,
            (Outcome::Failed { .. }, _) => self.failed += 1,
            (Outcome::Refused, _) => self.refused += 1,
            (Outcome::Unknown, _) => self.unknown += 1,
        }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} reads of a value and {} of nothing ({} in scans), {} puts ({} for a while), {} deletes, {} conditions that did not hold, {} \
             refused, {} unknown; {} repetitions, of which {} told the outcome, and {} attempts late or twice",
            self.found,
            self.absent,
            self.scanned,
            self.puts,
            self.expiring,
            self.deletes,
            self.failed,
            self.refused,
            self.unknown,
            self.repetitions,
            self.by_repetition,
            self.late
        )
    }
}

/// An operation, and the generation of its key.
type Told = (u64, Operation);

/// What all clients share.
#[derive(Debug)]
struct Shared {
    workload: Workload,
    began: Instant,
    stop: AtomicBool,
    /// Operations that were begun.
    asked: AtomicU64,
    /// To which generation of keys each client has come.
    generations: Vec<AtomicU64>,
    told: Mutex<(Vec<Told>, Counts)>,
}

impl Shared {
    /// The time of the history.
    fn now(&self) -> u64 {
        micros(self.began.elapsed())
    }

    fn count(&self, count: impl FnOnce(&mut Counts)) {
        count(&mut self.told.lock().1);
    }

    fn wrong(&self, because: String) {
        self.count(|counts| {
            counts.wrong += 1;
            counts.wrong_because = because;
        });
    }

    fn record(&self, generation: u64, operation: Operation) {
        let mut told = self.told.lock();
        told.1.count(&operation);
        told.0.push((generation, operation));
    }
}

/// Clients at work.
#[derive(Debug)]
pub struct Recorder {
    shared: Arc<Shared>,
    nodes: Arc<RwLock<Vec<String>>>,
    clients: Vec<JoinHandle<()>>,
}

impl Recorder {
    /// Sets the clients to work at the nodes with these addresses.
    ///
    /// # Errors
    /// If no node answers.
    pub async fn start(addresses: &[String], workload: Workload) -> Result<Self, RequestError> {
        let all = workload.smart + workload.direct;
        let shared = Arc::new(Shared {
            began: Instant::now(),
            stop: AtomicBool::new(false),
            asked: AtomicU64::new(0),
            generations: (0..all).map(|_| AtomicU64::new(0)).collect(),
            told: Mutex::default(),
            workload,
        });
        let nodes = Arc::new(RwLock::new(addresses.to_vec()));
        let mut clients = Vec::new();
        for number in 0..shared.workload.smart {
            let (timeout, begins) = (shared.workload.timeout, Instant::now());
            let options = Options { timeout, attempt_timeout: timeout / 2, ..Options::default() };
            let client = Client::connect(addresses, options).await?;
            // It takes the time of a node for that of the moment at which it was told.
            clients.push(Recording::new(&shared, number, Way::cluster(client, begins.elapsed())));
        }
        for number in shared.workload.smart..all {
            clients.push(Recording::new(&shared, number, Way::nodes(Arc::clone(&nodes), number)));
        }
        let clients = clients.into_iter().map(|client| tokio::spawn(client.work())).collect();
        Ok(Self { shared, nodes, clients })
    }

    /// Clients that ask one node at a time ask these from now on.
    pub fn ask_at(&self, addresses: &[String]) {
        addresses.clone_into(&mut self.nodes.write());
    }

    /// What was told until now.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.shared.told.lock().1.clone()
    }

    /// Takes the histories of the keys that no client asks for any more.
    #[must_use]
    pub fn take_ended(&self) -> Vec<Operation> {
        let of = |generation: &AtomicU64| generation.load(Ordering::SeqCst);
        let oldest = self.shared.generations.iter().map(of).min().unwrap_or_default();
        let mut told = self.shared.told.lock();
        let (ended, others) = std::mem::take(&mut told.0).into_iter().partition(|(generation, _)| *generation < oldest);
        told.0 = others;
        in_order(ended)
    }

    /// Lets each client end its operation, and gives the history that was not taken.
    ///
    /// # Errors
    /// If a client has panicked.
    pub async fn stop(self) -> Result<(Vec<Operation>, Counts), tokio::task::JoinError> {
        self.shared.stop.store(true, Ordering::SeqCst);
        for client in self.clients {
            client.await?;
        }
        let mut told = self.shared.told.lock();
        let (history, counts) = std::mem::take(&mut *told);
        Ok((in_order(history), counts))
    }
}

fn in_order(told: Vec<Told>) -> Vec<Operation> {
    let mut history: Vec<Operation> = told.into_iter().map(|(_, operation)| operation).collect();
    history.sort_by_key(|operation| operation.called);
    history
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
