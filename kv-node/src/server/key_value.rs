//! `KeyValue`: gets, puts, deletes, scans, and the stream of many operations.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use kv_core::error::RequestError;
use kv_core::message::{Outcome, Request as CoreRequest, Response as CoreResponse};
use kv_proto::edge::{Edge, Incoming, IncomingScan};
use kv_proto::reply;
use kv_proto::status::to_status;
use kv_proto::v1::key_value_server::KeyValue;
use kv_proto::v1::{self, BatchRequest};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::Stream;
use tonic::{Extensions, Request, Response, Status, Streaming};

use super::connections::{Connection, Deadline, Received};
use super::{Shared, Turn, Wants, batch, usual_timeout};
use crate::budget::Share;
use crate::engine::{Answer, Engine, bytes_of};

/// The service.
pub(super) struct Service(pub(super) Arc<Shared>);

/// The pages of a scan, as the connection takes them.
pub(super) struct Pages {
    pages: mpsc::Receiver<Result<(v1::ScanResponse, Option<Share>), Status>>,
    /// The room of the page that the connection has: it asks for the next one when that has left.
    held: Option<Share>,
}

impl Stream for Pages {
    type Item = Result<v1::ScanResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.held = None;
        let next = ready!(self.pages.poll_recv(context));
        Poll::Ready(next.map(|page| {
            let (page, share) = page?;
            self.held = share;
            Ok(page)
        }))
    }
}

impl Service {
    /// Has a request done. Its caller may wait shorter than the message says.
    async fn ask(
        &self,
        extensions: &Extensions,
        timeout_ms: u32,
        check: impl Fn(&Edge<'_>) -> Result<Incoming, RequestError>,
    ) -> Answer {
        self.0.faults.clients().await;
        // Before the cluster has formed no keyspace is known: that it is forming is the better answer.
        let engine = match self.0.serving() {
            Ok(serving) => serving.engine,
            Err(error) => return Err(error).into(),
        };
        match self.0.known(timeout_ms, check).await {
            Ok(Incoming { request, timeout }) => {
                let timeout = within(extensions, timeout);
                match self.0.turn(&engine, extensions.get(), Wants::of([&request]), timeout).await {
                    // It lasts until the answer is there.
                    Ok((turn, waited)) => {
                        let Turn { write: _write, reads, promise } = turn;
                        let timeout = timeout.map(|timeout| timeout - waited);
                        let answer = engine.answer(request, timeout, promise).await;
                        reads.into_iter().for_each(|read| read.ended(bytes_of(&answer.outcome)));
                        answer
                    }
                    Err(error) => Err(error).into(),
                }
            }
            Err(error) => Err(error).into(),
        }
    }
}

/// How long a request may take: as its message says, as its caller's `grpc-timeout` says, or as the node does.
fn within(extensions: &Extensions, timeout: Option<Duration>) -> Option<Duration> {
    extensions.get::<Deadline>().map_or(timeout, |deadline| deadline.shortens(Instant::now(), timeout, usual_timeout()))
}

/// An answer as it travels. What it holds of the room for answers is given back when the client has taken it.
fn respond<T>(
    Answer { outcome, share }: Answer,
    to_wire: impl FnOnce(Outcome) -> Result<T, RequestError>,
) -> Result<Response<T>, Status> {
    let mut response = Response::new(to_wire(outcome).map_err(to_status)?);
    if let Some(share) = share {
        response.extensions_mut().insert(Arc::new(share));
    }
    Ok(response)
}

#[tonic::async_trait]
impl KeyValue for Service {
    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        let (_, extensions, request) = request.into_parts();
        let answer = self.ask(&extensions, request.timeout_ms, |edge| edge.get(&request)).await;
        respond(answer, reply::get)
    }

    async fn put(&self, request: Request<v1::PutRequest>) -> Result<Response<v1::PutResponse>, Status> {
        let (_, extensions, request) = request.into_parts();
        let answer = self.ask(&extensions, request.timeout_ms, |edge| edge.put(&request)).await;
        respond(answer, reply::put)
    }

    async fn delete(&self, request: Request<v1::DeleteRequest>) -> Result<Response<v1::DeleteResponse>, Status> {
        let (_, extensions, request) = request.into_parts();
        let answer = self.ask(&extensions, request.timeout_ms, |edge| edge.delete(&request)).await;
        respond(answer, reply::delete)
    }

    type ScanStream = Pages;

    async fn scan(&self, request: Request<v1::ScanRequest>) -> Result<Response<Self::ScanStream>, Status> {
        self.0.faults.clients().await;
        let engine = self.0.serving().map_err(to_status)?.engine;
        let request = request.get_ref();
        let scan = self.0.known(request.timeout_ms, |edge| edge.scan(request)).await.map_err(to_status)?;
        let (pages, stream) = mpsc::channel(1);
        tokio::spawn(send_pages(engine, scan, pages));
        Ok(Response::new(Pages { pages: stream, held: None }))
    }

    type BatchStream = batch::Results;

    async fn batch(&self, request: Request<Streaming<BatchRequest>>) -> Result<Response<Self::BatchStream>, Status> {
        let received = request.extensions().get::<Received>().cloned();
        let connection = request.extensions().get::<Arc<Connection>>().cloned();
        Ok(Response::new(batch::serve(Arc::clone(&self.0), request.into_inner(), connection, received)))
    }
}

/// Asks for page after page, no faster than the client takes them.
async fn send_pages(
    engine: Engine,
    scan: IncomingScan,
    pages: mpsc::Sender<Result<(v1::ScanResponse, Option<Share>), Status>>,
) {
    let IncomingScan { mut page, limit, timeout } = scan;
    let mut left = limit;
    loop {
        let Answer { outcome, share } = engine.answer(CoreRequest::Scan(page.clone()), timeout, None).await;
        let next = match &outcome {
            Ok(CoreResponse::Page { entries, next }) => {
                left = left.map(|left| left.saturating_sub(entries.len() as u64));
                next.clone()
            }
            _ => None,
        };
        let failed = outcome.is_err();
        // A client that has gone away wants no more pages.
        let reply = reply::page(outcome).map(|page| (page, share)).map_err(to_status);
        if pages.send(reply).await.is_err() || failed || left == Some(0) {
            return;
        }
        let Some(next) = next else { return };
        page.after = Some(next);
        if let Some(left) = left {
            page.limit = page.limit.min(usize::try_from(left).unwrap_or(usize::MAX));
        }
    }
}
