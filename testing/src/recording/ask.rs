//! One attempt of an operation at one node, as a client would make it that knows no other, and what is told of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kv_core::error::{Kind, RequestError};
use kv_core::types::{Hlc, RequestId};
use kv_proto::status::from_status;
use kv_proto::v1;
use kv_proto::v1::key_value_client::KeyValueClient;
use parking_lot::RwLock;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};
use tonic::{ConnectError, Status};

/// How long a connection may take to be made.
const CONNECT_MAX: Duration = Duration::from_secs(1);

/// What was found of a key: the context, and the value if there is one.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) context: Bytes,
    pub(super) value: Option<String>,
}

/// Under which condition a key is written.
#[derive(Clone, Debug)]
pub(super) enum When {
    Always,
    Absent,
    /// As it was seen.
    Unchanged(Seen),
}

/// A put, or a delete if there is no value.
#[derive(Clone, Debug)]
pub(super) struct Write {
    pub(super) value: Option<String>,
    pub(super) when: When,
    pub(super) ttl: Option<Duration>,
}

/// What an attempt of a write was told.
#[derive(Clone, Debug)]
pub(super) enum Told {
    Written(Bytes),
    /// The condition does not hold.
    Unchanged(Seen),
    /// It did not hold when an earlier attempt was made.
    FailedBefore,
    /// The attempt did nothing. A request that is made anew has a stamp above this.
    Nothing(Hlc),
    /// The same, since the request is wrong, which none is here.
    Wrong(String),
    Unknown,
}

/// The entries of a scan, and whether there are no more.
pub(super) type Entries = (Vec<(Bytes, Seen)>, bool);

/// A write under its identity, to be sent as often as one likes.
#[derive(Clone, Debug)]
pub(super) struct Attempt {
    pub(super) keyspace: String,
    pub(super) key: Bytes,
    pub(super) write: Write,
    pub(super) request: RequestId,
    /// Whether it may have been sent before.
    pub(super) repeats: bool,
    pub(super) timeout: Duration,
}

/// One node.
#[derive(Clone, Debug)]
pub(super) struct Node {
    address: String,
    stub: KeyValueClient<Channel>,
}

/// The nodes, each with a connection.
#[derive(Clone, Debug)]
pub(super) struct Nodes {
    pub(super) addresses: Arc<RwLock<Vec<String>>>,
    stubs: BTreeMap<String, KeyValueClient<Channel>>,
}

impl Nodes {
    pub(super) fn new(addresses: Arc<RwLock<Vec<String>>>) -> Self {
        Self { addresses, stubs: BTreeMap::new() }
    }

    /// One of them, by a number.
    pub(super) fn pick(&mut self, number: u64) -> Option<Node> {
        let address = {
            let addresses = self.addresses.read();
            let count = u64::try_from(addresses.len()).ok().filter(|count| *count > 0)?;
            addresses.get(usize::try_from(number % count).ok()?)?.clone()
        };
        if let Some(stub) = self.stubs.get(&address).cloned() {
            return Some(Node { address, stub });
        }
        let endpoint = Endpoint::from_shared(format!("http://{address}")).ok()?;
        let channel = endpoint.tcp_nodelay(true).connect_timeout(CONNECT_MAX).connect_lazy();
        let stub = KeyValueClient::new(channel);
        self.stubs.insert(address.clone(), stub.clone());
        Some(Node { address, stub })
    }
}

fn to_wire(timeout: Duration) -> u32 {
    u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX).max(1)
}

pub(super) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The one value of a key. More than one is no value that anybody has written, and is judged as such.
pub(super) fn value_of(values: impl Iterator<Item = String>) -> Option<String> {
    let values: Vec<String> = values.collect();
    (!values.is_empty()).then(|| values.join(" beside "))
}

fn seen(context: Bytes, versions: &[v1::Version]) -> Seen {
    Seen { context, value: value_of(versions.iter().map(|version| text(&version.value))) }
}

/// Reads a key.
pub(super) async fn get(
    Node { address, mut stub }: Node,
    keyspace: &str,
    key: &Bytes,
    limit: Duration,
) -> Result<Seen, RequestError> {
    let (keyspace, key, timeout_ms) = (keyspace.to_owned(), key.clone(), to_wire(limit));
    let request = v1::GetRequest { keyspace, key, timeout_ms, ..v1::GetRequest::default() };
    let got = within(&address, limit, stub.get(request)).await?;
    Ok(seen(got.context, &got.versions))
}

/// Sends a write.
pub(super) async fn write(Node { address, mut stub }: Node, attempt: Attempt) -> Told {
    let Attempt { keyspace, key, write: Write { value, when, ttl }, request, repeats, timeout: limit } = attempt;
    let (request, timeout_ms) = (Some(request.into()), to_wire(limit));
    let attempt = if repeats { v1::Attempt::Repeated } else { v1::Attempt::First }.into();
    let (if_absent, if_context) = match when {
        When::Always => (false, None),
        When::Absent => (true, None),
        When::Unchanged(Seen { context, .. }) => (false, Some(context)),
    };
    let answer = if let Some(value) = value {
        let (value, ttl_ms) = (Bytes::from(value), ttl.map(|ttl| u64::from(to_wire(ttl))));
        let put = v1::PutRequest {
            keyspace,
            key,
            value,
            ttl_ms,
            request,
            timeout_ms,
            attempt,
            if_absent,
            if_context,
            ..v1::PutRequest::default()
        };
        within(&address, limit, stub.put(put)).await.map(|written| (written.unchanged, written.context))
    } else {
        let delete =
            v1::DeleteRequest { keyspace, key, request, timeout_ms, attempt, if_context, ..Default::default() };
        within(&address, limit, stub.delete(delete)).await.map(|written| (written.unchanged, written.context))
    };
    match answer {
        Ok((None, context)) => Told::Written(context),
        Ok((Some(v1::Unchanged { found }), context)) => {
            let value = found.map(|version| text(&version.value));
            Told::Unchanged(Seen { context, value })
        }
        Err(error) => told(&error),
    }
}

/// Lists the keys that begin with `prefix`; what was told until an error.
pub(super) async fn scan(
    Node { address, mut stub }: Node,
    keyspace: &str,
    prefix: &str,
    most: u64,
    limit: Duration,
) -> Entries {
    let (keyspace, prefix, timeout_ms) =
        (keyspace.to_owned(), Bytes::copy_from_slice(prefix.as_bytes()), to_wire(limit));
    let request = v1::ScanRequest { keyspace, prefix, limit: most, timeout_ms, ..v1::ScanRequest::default() };
    let mut entries = Vec::new();
    let Ok(mut pages) = within(&address, limit, stub.scan(request)).await else { return (entries, false) };
    while let Ok(Ok(Some(page))) = timeout(limit, pages.message()).await {
        entries.extend(page.entries.into_iter().map(|entry| (entry.key, seen(entry.context, &entry.versions))));
        if page.cursor.is_empty() {
            return (entries, true);
        }
    }
    (entries, false)
}

async fn within<T>(
    address: &str,
    limit: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, RequestError> {
    let mut error = match timeout(limit, call).await {
        Ok(Ok(answer)) => return Ok(answer.into_inner()),
        // Nothing can have been done where no connection was made.
        Ok(Err(status)) if is_connect_error(&status) => RequestError::unavailable("no connection"),
        Ok(Err(status)) => from_status(&status),
        Err(_) => RequestError::new(Kind::Unknown, "no answer in time"),
    };
    error.message = format!("{address}: {}", error.message);
    Err(error)
}

fn is_connect_error(status: &Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.is::<ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// What the error of a write says.
fn told(error: &RequestError) -> Told {
    match error.kind {
        Kind::Unknown | Kind::Poisoned | Kind::Corrupt => Told::Unknown,
        Kind::Conflict if !error.wants_stamp() => Told::FailedBefore,
        Kind::Conflict | Kind::Unavailable | Kind::Exhausted | Kind::StaleEpoch => Told::Nothing(error.newest),
        Kind::Invalid | Kind::NotFound => Told::Wrong(error.message.clone()),
    }
}
