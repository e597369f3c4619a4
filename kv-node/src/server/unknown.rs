//! What a node does before it says that something does not exist: others may know it already.

use std::time::Duration;

use kv_core::error::{Kind, RequestError};
use kv_proto::edge::{Edge, Incoming};
use kv_proto::v1::BatchOperation;
use kv_proto::v1::batch_operation::Operation;

use super::Shared;
use crate::engine::ReplyTo;

/// How long a request waits at most until the node knows all that the cluster has agreed on.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a change of the keyspaces waits until all members in reach know it.
const SPREAD_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a request with this timeout of its own waits; 0: as long as the node does.
fn timeout_for(timeout_ms: u32) -> Duration {
    if timeout_ms == 0 { CATCH_UP_TIMEOUT } else { Duration::from_millis(timeout_ms.into()).min(CATCH_UP_TIMEOUT) }
}

fn timeout_of(operation: &BatchOperation) -> u32 {
    match &operation.operation {
        Some(Operation::Get(get)) => get.timeout_ms,
        Some(Operation::Put(put)) => put.timeout_ms,
        Some(Operation::Delete(delete)) => delete.timeout_ms,
        None => 0,
    }
}

impl Shared {
    /// Validates a request. What it names and this node does not know is looked up once more when the node has learned
    /// what the cluster has agreed on.
    ///
    /// # Errors
    /// As `check` says, or `Unavailable` if the node cannot know whether it exists.
    pub(super) async fn known<T>(
        &self,
        timeout_ms: u32,
        check: impl Fn(&Edge<'_>) -> Result<T, RequestError>,
    ) -> Result<T, RequestError> {
        match check(&self.edge(&self.keyspaces())) {
            Err(error) if error.kind == Kind::NotFound => {
                self.settle_unknown(error, timeout_for(timeout_ms)).await?;
                check(&self.edge(&self.keyspaces()))
            }
            checked => checked,
        }
    }

    /// Waits until "not found" can be said for sure.
    ///
    /// # Errors
    /// `Unavailable`, with what was not found, if it cannot.
    async fn settle_unknown(&self, unknown: RequestError, timeout: Duration) -> Result<(), RequestError> {
        let learned = self.control.catch_up(timeout).await;
        learned.map(drop).map_err(|reason| {
            let why = format!("{unknown}; {} cannot tell whether that is up to date ({reason}); try again", self.name);
            RequestError::unavailable(why)
        })
    }

    /// Learns what the cluster has agreed on. Without an answer the node continues with what it knows.
    pub(super) async fn learn(&self) {
        drop(self.control.learn(CATCH_UP_TIMEOUT).await);
    }

    /// Returns when the keyspaces that were just agreed on are known wherever a request may arrive, or after a moment.
    pub(super) async fn spread(&self) {
        if let Ok(revision) = self.control.catch_up(SPREAD_TIMEOUT).await {
            let late = self.control.spread(revision, SPREAD_TIMEOUT).await;
            if !late.is_empty() {
                let state = self.state();
                let names: Vec<String> = late.into_iter().map(|node| state.name_of(node)).collect();
                tracing::warn!(members = %names.join(", "), "do not know the newest keyspaces yet");
            }
        }
    }

    /// Looks operations up once more whose keyspace this node did not know, and has them done.
    pub(super) async fn retry_unknown(&self, operations: Vec<(BatchOperation, RequestError, ReplyTo)>) {
        let longest = operations.iter().map(|(operation, _, _)| timeout_for(timeout_of(operation))).max();
        let learned = match operations.first() {
            Some((_, error, _)) => self.settle_unknown(error.clone(), longest.unwrap_or(CATCH_UP_TIMEOUT)).await,
            None => return,
        };
        let keyspaces = self.keyspaces();
        let edge = self.edge(&keyspaces);
        let mut requests = Vec::with_capacity(operations.len());
        for (operation, _, reply) in operations {
            match learned.clone().and_then(|()| edge.operation(&operation)) {
                Ok(Incoming { request, timeout }) => requests.push((request, timeout, reply)),
                Err(error) => reply.send(Err(error)),
            }
        }
        match self.serving() {
            Ok(serving) => serving.engine.requests(requests, None).await,
            Err(error) => requests.into_iter().for_each(|(_, _, reply)| reply.send(Err(error.clone()))),
        }
    }
}
