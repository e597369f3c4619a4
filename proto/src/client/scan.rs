//! Scans: pages from one node, continued at another where that one fails.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kv_core::error::{Kind, RequestError};
use kv_core::message::ScanEntry;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::Streaming;

use super::failure::Failure;
use super::options::How;
use super::pool::Node;
use super::{Client, calls, level_of, stub, timeout_to_wire};
use crate::v1;

/// The pause before a scan is continued after every node has failed.
const PAUSE: Duration = Duration::from_millis(50);

/// What to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScanQuery {
    /// Only keys that start with it.
    pub prefix: Bytes,
    /// Where an earlier scan stopped; empty: from the first key.
    pub cursor: Bytes,
    /// The most keys; `None`: all.
    pub limit: Option<u64>,
    /// Leave the values out.
    pub keys_only: bool,
}

/// Some keys of a scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The keys, ascending.
    pub entries: Vec<ScanEntry>,
    /// Where to go on; `None`: there are no more keys.
    pub cursor: Option<Bytes>,
}

/// A scan under way.
#[derive(Debug)]
pub struct Scan {
    client: Client,
    request: v1::ScanRequest,
    timeout: Duration,
    open: Option<(Arc<Node>, Streaming<v1::ScanResponse>)>,
    tried: Vec<Arc<Node>>,
    last_key: Bytes,
    /// Keys that may still come.
    left: Option<u64>,
    done: bool,
}

impl Scan {
    pub(super) fn new(client: Client, how: &How, query: ScanQuery) -> Self {
        let timeout = how.timeout.unwrap_or(client.options().timeout);
        let request = v1::ScanRequest {
            keyspace: how.keyspace.clone(),
            prefix: query.prefix,
            cursor: query.cursor,
            limit: query.limit.unwrap_or(0),
            keys_only: query.keys_only,
            level: level_of(how),
            strict: how.consistency.strict,
            timeout_ms: timeout_to_wire(timeout),
        };
        let done = query.limit == Some(0);
        let (last_key, left) = (Bytes::new(), query.limit);
        Self { client, request, timeout, open: None, tried: Vec::new(), last_key, left, done }
    }

    /// The next page; `None` after the last one.
    ///
    /// # Errors
    /// As the node says, or `Unavailable` if no node gives a page before the timeout. The scan can be continued by
    /// calling again, or later by the cursor of the last page.
    pub async fn next_page(&mut self) -> Result<Option<Page>, RequestError> {
        let deadline = Instant::now() + self.timeout;
        let mut last = RequestError::unavailable("no node was asked");
        while !self.done {
            if Instant::now() >= deadline {
                return Err(last);
            }
            let failure = match self.step(deadline).await {
                Ok(Some(page)) => return Ok(Some(page)),
                // The stream ended in the middle: the next one continues.
                Ok(None) => continue,
                Err(failure) => failure,
            };
            if let Some((node, _)) = self.open.take() {
                if failure.transport {
                    node.suspect();
                }
                self.tried.push(node);
            }
            let repeatable =
                failure.error.is_safe_to_retry() || matches!(failure.error.kind, Kind::Unknown | Kind::Poisoned);
            if !repeatable {
                return Err(failure.error);
            }
            last = failure.error;
        }
        Ok(None)
    }

    /// Opens a stream where there is none, and takes one page from it.
    async fn step(&mut self, deadline: Instant) -> Result<Option<Page>, Failure> {
        if self.open.is_none() {
            let nodes = self.client.view().any_node();
            let untried = nodes.into_iter().find(|node| !self.tried.iter().any(|tried| Arc::ptr_eq(tried, node)));
            let Some(node) = untried else {
                self.tried.clear();
                sleep(PAUSE.min(deadline.saturating_duration_since(Instant::now()))).await;
                return Ok(None);
            };
            self.request.limit = self.left.unwrap_or(0);
            let mut client = stub::key_value(node.channel());
            let until = deadline.min(Instant::now() + self.client.options().attempt_timeout);
            let opened = calls::within(&node, until, client.scan(self.request.clone()));
            match calls::unless_stalled(&node, opened).await {
                Ok(stream) => self.open = Some((node, stream)),
                Err(failure) => {
                    if failure.transport {
                        node.suspect();
                    }
                    self.tried.push(node);
                    return Err(failure);
                }
            }
        }
        let Some((node, stream)) = &mut self.open else { return Ok(None) };
        let message = async { Ok(timeout_at(deadline, stream.message()).await) };
        match calls::unless_stalled(node, message).await? {
            Ok(Ok(Some(page))) => {
                let node = Arc::clone(node);
                self.accept(page).map(Some).map_err(|error| Failure {
                    error: RequestError::new(error.kind, format!("{}: {error}", node.address())),
                    transport: false,
                })
            }
            Ok(Ok(None)) => {
                let message = format!("{}: the scan ended before its last page", node.address());
                Err(Failure { error: RequestError::unavailable(message), transport: false })
            }
            Ok(Err(status)) => Err(calls::failure(node, &status)),
            Err(_) => {
                let message = format!("{}: no page in time", node.address());
                Err(Failure { error: RequestError::unavailable(message), transport: true })
            }
        }
    }

    /// Checks a page and moves on behind it.
    fn accept(&mut self, page: v1::ScanResponse) -> Result<Page, RequestError> {
        let mut last_key = &self.last_key;
        for entry in &page.entries {
            if entry.key <= *last_key || !entry.key.starts_with(&self.request.prefix) {
                return Err(RequestError::new(Kind::Unknown, "the page repeats keys or holds foreign ones"));
            }
            last_key = &entry.key;
        }
        let count = u64::try_from(page.entries.len()).unwrap_or(u64::MAX);
        if self.left.is_some_and(|left| left < count) {
            return Err(RequestError::new(Kind::Unknown, "the page holds more keys than were asked for"));
        }
        if page.entries.is_empty() && !page.cursor.is_empty() && page.cursor == self.request.cursor {
            return Err(RequestError::new(Kind::Unknown, "the page does not move on"));
        }
        self.left = self.left.map(|left| left - count);
        self.last_key = Bytes::copy_from_slice(last_key);
        self.request.cursor = Bytes::copy_from_slice(&page.cursor);
        self.done = page.cursor.is_empty() || self.left == Some(0);
        if self.done {
            self.open = None;
        }
        self.tried.clear();
        Ok(Page {
            entries: page.entries.into_iter().map(Into::into).collect(),
            cursor: (!page.cursor.is_empty()).then(|| self.request.cursor.clone()),
        })
    }
}
