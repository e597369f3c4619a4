//! The cluster client: it learns the layout, goes straight to an owner of each key, fails over, and repeats only what is
//! safe to repeat.
//!
//! Operations on keys share one `Batch` stream for each node. Every write carries an identity (rule A7), so a write whose
//! outcome is unknown is repeated under the same identity while its deadline lasts. A repeated write without a context may
//! land behind one that came in between; who needs exactly one effect passes a context.
//!
//! In consistent keyspaces writes may have conditions (`put_if`, `delete_if`), and `update` and `add` change a key by what it holds.

mod admin;
mod calls;
mod failure;
mod options;
mod pool;
mod pulse;
mod retry;
mod scan;
mod session;
mod stub;
mod update;
mod view;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use kv_core::error::{Kind, RequestError};
use kv_core::message::{Response, Value};
use parking_lot::{Mutex, RwLock};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::describe::Description;
use crate::edge::{check_key, check_value};
use crate::request_id::RequestIds;
use crate::v1;
pub use admin::{Inspection, NodeReport};
pub use options::{Condition, How, Options, Retry, Transport, Write};
use pool::{Node, Pool};
use retry::KeyOperation;
pub use scan::{Page, Scan, ScanQuery};
pub use update::{Change, Updated};
use view::View;

/// How long after one refresh of the layout a failed connection does not cause another.
const REFRESH_EVERY: Duration = Duration::from_secs(1);

/// A handle on a cluster; clones share their connections.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    options: Options,
    ids: RequestIds,
    pool: Pool,
    /// Replaced as a whole by the holder of `refreshing`.
    view: RwLock<Arc<View>>,
    refreshing: tokio::sync::Mutex<()>,
    refreshed: Mutex<Instant>,
    counters: Counters,
}

#[derive(Debug, Default)]
struct Counters {
    attempts: AtomicU64,
    retries: AtomicU64,
    failovers: AtomicU64,
    moved: AtomicU64,
    refreshes: AtomicU64,
}

/// What a client has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientStats {
    /// Operations sent, repetitions included.
    pub attempts: u64,
    /// Repetitions.
    pub retries: u64,
    /// Attempts at a node other than the first owner.
    pub failovers: u64,
    /// Operations sent to another node as well because the one that had them stopped answering.
    pub moved: u64,
    /// Times that the layout was asked for.
    pub refreshes: u64,
}

/// The answer to a get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Got {
    /// None: the key is absent. More than one: concurrent writes that stand side by side.
    pub values: Vec<Value>,
    /// What a put passes to replace exactly these.
    pub context: Bytes,
}

/// The answer to a put or a delete on a condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Conditional {
    /// The condition held, and the write is done.
    Written(Written),
    /// The condition does not hold, and nothing was done.
    Unchanged(Unchanged),
}

/// What a write found whose condition does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unchanged {
    /// The value that stands there; `None`: the key is absent.
    pub value: Option<Value>,
    /// What a write passes on the condition that this has not changed.
    pub context: Bytes,
}

/// The answer to a put or a delete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// What a put passes to replace what this write left.
    pub context: Bytes,
    /// How many values now stand side by side.
    pub siblings: usize,
}

impl Client {
    /// Connects to a cluster of which at least one of `addresses` (each host:port) is a node.
    ///
    /// # Errors
    /// `Invalid` if an address is not one, `Unavailable` if no node answers within the connect timeout.
    pub async fn connect(addresses: &[String], options: Options) -> Result<Self, RequestError> {
        let pool = Pool::new(&options);
        let seeds = addresses.iter().map(|address| pool.node(address)).collect::<Result<Vec<_>, _>>()?;
        let (description, refusals) = first_description(&seeds, &options).await;
        let Some(description) = description else {
            let refusals = if refusals.is_empty() { "no address was given".to_owned() } else { refusals.join("; ") };
            return Err(RequestError::unavailable(format!(
                "no node in reach ({refusals}); check the addresses, and that the nodes run"
            )));
        };
        let time = description.time;
        let view = View::new(description, &pool, seeds);
        let client_id = getrandom::u64()
            .map_err(|error| RequestError::unavailable(format!("the system gives no random numbers: {error}")))?;
        Ok(Self {
            inner: Arc::new(Inner {
                ids: RequestIds::new(client_id, time),
                pool,
                view: RwLock::new(Arc::new(view)),
                refreshing: tokio::sync::Mutex::new(()),
                refreshed: Mutex::new(Instant::now()),
                counters: Counters::default(),
                options,
            }),
        })
    }

    /// Another client of the same cluster, with connections of its own.
    ///
    /// # Errors
    /// As for `connect`.
    pub async fn again(&self, options: Options) -> Result<Self, RequestError> {
        let view = self.view();
        let addresses: Vec<String> = view.addresses().into_iter().map(str::to_owned).collect();
        Self::connect(&addresses, options).await
    }

    /// How this client behaves.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.inner.options
    }

    /// Reads a key.
    ///
    /// # Errors
    /// As the node says, or `Unavailable` or `Unknown` when the deadline has passed.
    pub async fn get(&self, how: &How, key: &Bytes) -> Result<Got, RequestError> {
        self.check(key, None)?;
        match self.on_key(how, key, &KeyOperation::Get).await? {
            Response::Got { values, context, .. } => Ok(Got { values, context }),
            _ => Err(mismatch()),
        }
    }

    /// Writes a key.
    ///
    /// # Errors
    /// As the node says, `Unavailable` if nothing was done before the deadline, or `Unknown` if perhaps it was.
    pub async fn put(&self, how: &How, key: &Bytes, value: &Bytes, write: &Write) -> Result<Written, RequestError> {
        self.check(key, Some(value))?;
        let operation = KeyOperation::Put { value, write, condition: None };
        written(self.on_key(how, key, &operation).await?)
    }

    /// Writes a key of a consistent keyspace if the condition holds.
    ///
    /// # Errors
    /// As for a put. `Conflict`: the condition did not hold for an earlier attempt of this write, and nothing was done. `Unknown` is also
    /// what a condition that fails for the first attempt becomes while a second one has no answer.
    pub async fn put_if(
        &self,
        how: &How,
        key: &Bytes,
        value: &Bytes,
        ttl: Option<Duration>,
        condition: &Condition,
    ) -> Result<Conditional, RequestError> {
        self.check(key, Some(value))?;
        let write = Write { context: None, ttl };
        let operation = KeyOperation::Put { value, write: &write, condition: Some(condition) };
        conditional(self.on_key(how, key, &operation).await?)
    }

    /// Deletes a key; only what `context` covers, if there is one.
    ///
    /// # Errors
    /// As for a put.
    pub async fn delete(&self, how: &How, key: &Bytes, context: Option<&Bytes>) -> Result<Written, RequestError> {
        self.check(key, None)?;
        let operation = KeyOperation::Delete { context };
        written(self.on_key(how, key, &operation).await?)
    }

    /// Deletes a key of a consistent keyspace if nothing has changed since the read that gave `context`.
    ///
    /// # Errors
    /// As for `put_if`.
    pub async fn delete_if(&self, how: &How, key: &Bytes, context: &Bytes) -> Result<Conditional, RequestError> {
        self.check(key, None)?;
        conditional(self.on_key(how, key, &KeyOperation::DeleteIf { context }).await?)
    }

    /// Lists keys in byte order.
    #[must_use]
    pub fn scan(&self, how: &How, query: ScanQuery) -> Scan {
        Scan::new(self.clone(), how, query)
    }

    /// The cluster as this client knows it.
    #[must_use]
    pub fn description(&self) -> Arc<Description> {
        Arc::clone(&self.view().description)
    }

    /// What this client has done.
    #[must_use]
    pub fn stats(&self) -> ClientStats {
        let counters = &self.inner.counters;
        ClientStats {
            attempts: counters.attempts.load(Ordering::Relaxed),
            retries: counters.retries.load(Ordering::Relaxed),
            failovers: counters.failovers.load(Ordering::Relaxed),
            moved: counters.moved.load(Ordering::Relaxed),
            refreshes: counters.refreshes.load(Ordering::Relaxed),
        }
    }

    /// Asks for the newest layout, members and keyspaces.
    ///
    /// # Errors
    /// `Unavailable` if no node answers; the client then keeps what it knows.
    pub async fn refresh(&self) -> Result<Arc<Description>, RequestError> {
        self.refresh_from(&self.view(), None, false).await?;
        Ok(self.description())
    }

    /// As `refresh`, by a node that first learns what the cluster has agreed on until now. It costs a round among the
    /// members, and is used before a caller is told that something does not exist.
    ///
    /// # Errors
    /// As `refresh`.
    pub async fn refresh_newest(&self) -> Result<Arc<Description>, RequestError> {
        self.refresh_from(&self.view(), None, true).await?;
        Ok(self.description())
    }

    fn counters(&self) -> &Counters {
        &self.inner.counters
    }

    fn view(&self) -> Arc<View> {
        Arc::clone(&self.inner.view.read())
    }

    /// What would only be refused, or break the stream for all, is not sent.
    fn check(&self, key: &Bytes, value: Option<&Bytes>) -> Result<(), RequestError> {
        let view = self.view();
        check_key(key, &view.description.limits)?;
        value.map_or(Ok(()), |value| check_value(value, &view.description.limits))
    }

    /// Asks for what is newer than `stale`, first at `hint`. Callers that saw the same stale view share one answer.
    async fn refresh_from(
        &self,
        stale: &Arc<View>,
        hint: Option<&Arc<Node>>,
        newest: bool,
    ) -> Result<(), RequestError> {
        let _one_at_a_time = self.inner.refreshing.lock().await;
        let current = self.view();
        if !newest && !Arc::ptr_eq(&current, stale) {
            return Ok(());
        }
        self.counters().refreshes.fetch_add(1, Ordering::Relaxed);
        let mut last = None;
        for node in hint.into_iter().cloned().chain(current.any_node()) {
            match calls::describe(&node, current.description.layout.as_ref(), newest, self.options()).await {
                Ok(description) => {
                    let next = current.succeeded_by(description, &self.inner.pool, &node)?;
                    self.inner.pool.keep(&next.addresses());
                    *self.inner.view.write() = Arc::new(next);
                    *self.inner.refreshed.lock() = Instant::now();
                    return Ok(());
                }
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| RequestError::unavailable("no node is known")))
    }

    /// Refreshes after a failed connection, which may mean that addresses have changed, but not for each of many.
    /// What is under way goes on meanwhile with the nodes that are known.
    fn refresh_sometimes(&self, stale: &Arc<View>) {
        let due = {
            let mut refreshed = self.inner.refreshed.lock();
            let due = refreshed.elapsed() >= REFRESH_EVERY;
            if due {
                *refreshed = Instant::now();
            }
            due
        };
        if due {
            let (client, stale) = (self.clone(), Arc::clone(stale));
            // Without an answer the client continues with what it knows.
            tokio::spawn(async move { drop(client.refresh_from(&stale, None, false).await) });
        }
    }
}

/// The first description that any of the nodes gives, and what the others said until then.
async fn first_description(seeds: &[Arc<Node>], options: &Options) -> (Option<Description>, Vec<String>) {
    let mut asking = JoinSet::new();
    for seed in seeds {
        let (seed, options) = (Arc::clone(seed), options.clone());
        asking.spawn(async move {
            let answer = calls::describe(&seed, None, false, &options).await;
            answer.map_err(|error| {
                if error.kind == Kind::Invalid { format!("{}: {error}", seed.address()) } else { error.message }
            })
        });
    }
    let mut refusals = Vec::new();
    while let Some(answer) = asking.join_next().await {
        match answer {
            Ok(Ok(description)) => return (Some(description), refusals),
            Ok(Err(refusal)) => refusals.push(refusal),
            Err(_) => {}
        }
    }
    refusals.sort();
    (None, refusals)
}

fn written(response: Response) -> Result<Written, RequestError> {
    match response {
        Response::Written { context, siblings, .. } => Ok(Written { context, siblings }),
        _ => Err(mismatch()),
    }
}

fn conditional(response: Response) -> Result<Conditional, RequestError> {
    match response {
        Response::Unchanged { value, context, .. } => Ok(Conditional::Unchanged(Unchanged { value, context })),
        response => written(response).map(Conditional::Written),
    }
}

fn mismatch() -> RequestError {
    RequestError::new(
        Kind::Unknown,
        "the node answered another question than the one asked; run the same release on all",
    )
}

/// A timeout as it travels; never 0, which would mean the node's own.
fn timeout_to_wire(timeout: Duration) -> u32 {
    u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX).clamp(1, 3_600_000)
}

fn level_of(how: &How) -> i32 {
    v1::Level::into(crate::edge::level_to_wire(how.consistency.level))
}
