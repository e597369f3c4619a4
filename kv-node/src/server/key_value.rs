//! `KeyValue`: gets, puts, deletes, scans, and the stream of many operations.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use kv_core::error::{Kind, RequestError};
use kv_core::message::{Outcome, Request as CoreRequest, Response as CoreResponse};
use kv_proto::edge::{Edge, Incoming, IncomingScan};
use kv_proto::limits::{FRAME_BYTES_TARGET, FRAME_OPERATIONS_MAX};
use kv_proto::reply::{self, BatchKind};
use kv_proto::status::to_status;
use kv_proto::v1::key_value_server::KeyValue;
use kv_proto::v1::{self, BatchRequest, BatchResponse};
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::Shared;
use crate::engine::{Engine, ReplyTo, StreamResult};

/// Operations of one stream that may be in flight. A client that sends more is not read until some have ended.
const STREAM_OPERATIONS_MAX: usize = 4096;

/// Messages that wait for a client that does not take its results.
const RESULTS_AHEAD: usize = 4;

/// The service.
pub(super) struct Service(pub(super) Arc<Shared>);

type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Service {
    async fn ask(&self, timeout_ms: u32, check: impl Fn(&Edge<'_>) -> Result<Incoming, RequestError>) -> Outcome {
        // Before the cluster has formed no keyspace is known: that it is forming is the better answer.
        let engine = self.0.serving()?.engine;
        let Incoming { request, timeout } = self.0.known(timeout_ms, check).await?;
        engine.request(request, timeout).await
    }
}

#[tonic::async_trait]
impl KeyValue for Service {
    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        let request = request.get_ref();
        reply::get(self.ask(request.timeout_ms, |edge| edge.get(request)).await).map(Response::new).map_err(to_status)
    }

    async fn put(&self, request: Request<v1::PutRequest>) -> Result<Response<v1::PutResponse>, Status> {
        let request = request.get_ref();
        reply::put(self.ask(request.timeout_ms, |edge| edge.put(request)).await).map(Response::new).map_err(to_status)
    }

    async fn delete(&self, request: Request<v1::DeleteRequest>) -> Result<Response<v1::DeleteResponse>, Status> {
        let request = request.get_ref();
        reply::delete(self.ask(request.timeout_ms, |edge| edge.delete(request)).await)
            .map(Response::new)
            .map_err(to_status)
    }

    type ScanStream = BoxStream<v1::ScanResponse>;

    async fn scan(&self, request: Request<v1::ScanRequest>) -> Result<Response<Self::ScanStream>, Status> {
        let engine = self.0.serving().map_err(to_status)?.engine;
        let request = request.get_ref();
        let scan = self.0.known(request.timeout_ms, |edge| edge.scan(request)).await.map_err(to_status)?;
        let (pages, stream) = mpsc::channel(1);
        tokio::spawn(send_pages(engine, scan, pages));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    type BatchStream = BoxStream<BatchResponse>;

    async fn batch(&self, request: Request<Streaming<BatchRequest>>) -> Result<Response<Self::BatchStream>, Status> {
        let (responses, stream) = mpsc::channel(RESULTS_AHEAD);
        tokio::spawn(serve_batch(Arc::clone(&self.0), request.into_inner(), responses));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

/// Asks for page after page, no faster than the client takes them.
async fn send_pages(engine: Engine, scan: IncomingScan, pages: mpsc::Sender<Result<v1::ScanResponse, Status>>) {
    let IncomingScan { mut page, limit, timeout } = scan;
    let mut left = limit;
    loop {
        let outcome = engine.request(CoreRequest::Scan(page.clone()), timeout).await;
        let next = match &outcome {
            Ok(CoreResponse::Page { entries, next }) => {
                left = left.map(|left| left.saturating_sub(entries.len() as u64));
                next.clone()
            }
            _ => None,
        };
        let failed = outcome.is_err();
        // A client that has gone away wants no more pages.
        if pages.send(reply::page(outcome).map_err(to_status)).await.is_err() || failed || left == Some(0) {
            return;
        }
        let Some(next) = next else { return };
        page.after = Some(next);
        if let Some(left) = left {
            page.limit = page.limit.min(usize::try_from(left).unwrap_or(usize::MAX));
        }
    }
}

/// Takes operations, hands them to the loop, and sends results as they come, whatever their order.
async fn serve_batch(
    shared: Arc<Shared>,
    mut incoming: Streaming<BatchRequest>,
    responses: mpsc::Sender<Result<BatchResponse, Status>>,
) {
    let (results, mut finished) = mpsc::unbounded_channel();
    let permits = Arc::new(tokio::sync::Semaphore::new(STREAM_OPERATIONS_MAX));
    let sending = {
        let permits = Arc::clone(&permits);
        let responses = responses.clone();
        async move {
            let mut taken: Vec<StreamResult> = Vec::with_capacity(FRAME_OPERATIONS_MAX);
            while finished.recv_many(&mut taken, FRAME_OPERATIONS_MAX).await > 0 {
                permits.add_permits(taken.len());
                let mut response = BatchResponse::default();
                let mut bytes = 0;
                for (id, kind, outcome) in taken.drain(..) {
                    let result = reply::batch_result(id, kind, outcome);
                    bytes += result.encoded_len();
                    response.results.push(result);
                    if bytes >= FRAME_BYTES_TARGET {
                        bytes = 0;
                        if responses.send(Ok(std::mem::take(&mut response))).await.is_err() {
                            return;
                        }
                    }
                }
                if !response.results.is_empty() && responses.send(Ok(response)).await.is_err() {
                    return;
                }
            }
        }
    };
    let sender = tokio::spawn(sending);
    let mut stopping = shared.stopping.subscribe();
    loop {
        let message = tokio::select! {
            message = incoming.message() => message,
            () = super::stopped(&mut stopping) => break,
        };
        let operations = match message {
            Ok(Some(batch)) => batch.operations,
            Ok(None) | Err(_) => break,
        };
        let keyspaces = shared.keyspaces();
        let edge = shared.edge(&keyspaces);
        let serving = shared.serving();
        let mut requests: Vec<(CoreRequest, Option<Duration>, ReplyTo)> = Vec::with_capacity(operations.len());
        let mut unknown = Vec::new();
        for operation in operations {
            let Ok(permit) = permits.acquire().await else { return };
            permit.forget();
            let id = operation.id;
            let reply = ReplyTo::Stream { id, kind: BatchKind::of(&operation), results: results.clone() };
            match (&serving, edge.operation(&operation)) {
                (Ok(_), Ok(incoming)) => requests.push((incoming.request, incoming.timeout, reply)),
                (Ok(_), Err(error)) if error.kind == Kind::NotFound => unknown.push((operation, error, reply)),
                (Ok(_), Err(error)) => reply.send(Err(error)),
                (Err(error), _) => reply.send(Err(error.clone())),
            }
        }
        if !unknown.is_empty() {
            // Others need not wait until the node knows more. The permits bound how many do.
            let shared = Arc::clone(&shared);
            tokio::spawn(async move { shared.retry_unknown(unknown).await });
        }
        if let Ok(serving) = serving {
            serving.engine.requests(requests).await;
        }
    }
    // What is in flight still gets its results.
    drop(results);
    drop(sender.await);
}
