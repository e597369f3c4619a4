//! The stream of many operations. Its operations in flight, and its results that wait for the client, are bounded; while
//! either is reached the stream is read no further, so that a client that takes nothing costs no more than that.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use kv_core::error::{Kind, RequestError};
use kv_core::message::Request as CoreRequest;
use kv_proto::limits::{BATCH_OPERATIONS_MAX, FRAME_BYTES_TARGET, FRAME_OPERATIONS_MAX};
use kv_proto::reply::{self, BatchKind};
use kv_proto::status::to_status;
use kv_proto::v1::batch_operation::Operation;
use kv_proto::v1::{BatchOperation, BatchRequest, BatchResponse};
use prost::Message;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::Stream;
use tonic::{Status, Streaming};

use super::connections::{Connection, Received};
use super::{Shared, Turn, Wants, is_read};
use crate::budget::{Budget, Share};
use crate::delay::Delays;
use crate::engine::{Engine, Promise, ReplyTo, StreamResult};

/// Operations of one stream that may be in flight or have a result that waits. A client that sends more is not read until
/// some of its results have left.
const STREAM_OPERATIONS_MAX: usize = BATCH_OPERATIONS_MAX;

/// Bytes of results of one stream from which on it is read no further.
const STREAM_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Messages between the results and the connection.
const RESULTS_AHEAD: usize = 2;

/// How often a client is shown that the node is there while its writes wait for their turn: more often than it takes a silent
/// node for stalled.
const SHOW_EVERY: Duration = Duration::from_millis(50);

/// Operations for the loop.
type Requests = Vec<(CoreRequest, Option<Duration>, ReplyTo)>;

/// What goes to the client, with the room that it takes.
type Outgoing = Result<(BatchResponse, Held), Status>;

/// Room that is given back when the connection has taken a message.
#[derive(Debug, Default)]
struct Held {
    places: Option<Places>,
    bytes: Vec<Share>,
}

/// Places of operations whose results are on their way out.
#[derive(Debug)]
struct Places {
    room: Arc<Semaphore>,
    count: usize,
}

impl Drop for Places {
    fn drop(&mut self) {
        self.room.add_permits(self.count);
    }
}

/// The results, as the connection takes them.
pub(super) struct Results {
    messages: mpsc::Receiver<Outgoing>,
    /// Of the message that the connection has: it asks for the next one when that has left.
    held: Held,
}

impl Stream for Results {
    type Item = Result<BatchResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.held = Held::default();
        let next = ready!(self.messages.poll_recv(context));
        Poll::Ready(next.map(|message| {
            let (response, held) = message?;
            self.held = held;
            Ok(response)
        }))
    }
}

/// Serves a stream; what comes back goes to the client.
pub(super) fn serve(
    shared: Arc<Shared>,
    incoming: Streaming<BatchRequest>,
    connection: Option<Arc<Connection>>,
    received: Option<Received>,
) -> Results {
    let (responses, messages) = mpsc::channel(RESULTS_AHEAD);
    tokio::spawn(run(shared, incoming, connection, received, responses));
    Results { messages, held: Held::default() }
}

/// Takes operations, hands them to the loop, and sends results as they come, whatever their order.
async fn run(
    shared: Arc<Shared>,
    incoming: Streaming<BatchRequest>,
    connection: Option<Arc<Connection>>,
    received: Option<Received>,
    responses: mpsc::Sender<Outgoing>,
) {
    let (results, finished) = mpsc::unbounded_channel();
    let room = Arc::new(Semaphore::new(STREAM_OPERATIONS_MAX));
    let sender = tokio::spawn(send(finished, Arc::clone(&room), responses.clone()));
    let stream = Operations {
        shared,
        incoming,
        connection,
        received,
        room,
        waiting: Budget::new(STREAM_BYTES_MAX),
        results,
        responses: responses.clone(),
        delays: Delays::default(),
    };
    let end = tokio::select! {
        end = stream.read() => end,
        // The client has gone: nobody waits for results.
        () = responses.closed() => return,
    };
    // What is in flight still gets its results, before the word that ends the stream.
    if sender.await.is_ok()
        && let Err(status) = end
    {
        drop(responses.send(Err(status)).await);
    }
}

/// The operations of one stream.
struct Operations {
    shared: Arc<Shared>,
    incoming: Streaming<BatchRequest>,
    connection: Option<Arc<Connection>>,
    received: Option<Received>,
    room: Arc<Semaphore>,
    waiting: Arc<Budget>,
    results: mpsc::UnboundedSender<StreamResult>,
    responses: mpsc::Sender<Outgoing>,
    delays: Delays,
}

impl Operations {
    /// Reads to the end, which is an error unless the client has come to its own.
    async fn read(mut self) -> Result<(), Status> {
        let mut stopping = self.shared.stopping.subscribe();
        loop {
            self.waiting.room().await;
            let message = tokio::select! {
                message = self.incoming.message() => message?,
                () = super::stopped(&mut stopping) => return Err(Status::unavailable("the node is stopping")),
            };
            let Some(BatchRequest { operations, sent_us }) = message else { return Ok(()) };
            self.shared.faults.clients().await;
            let delay = self.delays.of(sent_us, self.shared.clock.now().mono);
            if operations.is_empty() {
                self.show();
            }
            let count = operations.len();
            if count > BATCH_OPERATIONS_MAX {
                return Err(to_status(RequestError::invalid(format!(
                    "a message has {count} operations, the limit is {BATCH_OPERATIONS_MAX}; nothing of it was done, send \
                     them in several messages"
                ))));
            }
            let mut rest = &operations[..];
            while !rest.is_empty() {
                let (part, behind) = rest.split_at(self.part_of(rest));
                self.begin(part, delay).await;
                rest = behind;
            }
            // What waited for its turn until now counted among what comes in.
            if let Some(received) = &self.received {
                received.taken();
            }
        }
    }

    /// How many of these operations are begun together: not more reads than go in at once.
    fn part_of(&self, operations: &[BatchOperation]) -> usize {
        let most = operations.len().min(FRAME_OPERATIONS_MAX);
        let Some(connection) = &self.connection else { return most };
        let is_get = |operation: &BatchOperation| matches!(operation.operation, Some(Operation::Get(_)));
        let gets = operations.iter().enumerate().filter(|(_, operation)| is_get(operation));
        gets.map(|(index, _)| index).nth(connection.reads.at_once()).unwrap_or(most).min(most)
    }

    /// The client asks whether the node is there. Without room there are results on their way that say so.
    fn show(&self) {
        drop(self.responses.try_send(Ok((BatchResponse::default(), Held::default()))));
    }

    /// Waits for the turn of requests; what they wait for is taken off their time. Large writes have room in the store then.
    async fn turn(&self, engine: &Engine, requests: &mut Requests) -> Option<Promise> {
        let wants = Wants::of(requests.iter().map(|(request, _, _)| request));
        if wants.is_nothing() {
            return None;
        }
        if let Some(turn) = self.shared.turn_now(self.connection.as_ref(), wants) {
            return let_in(requests, turn, Duration::ZERO);
        }
        let shortest = requests.iter().filter_map(|(_, timeout, _)| *timeout).min();
        let turn = self.shared.turn(engine, self.connection.as_ref(), wants, shortest);
        tokio::pin!(turn);
        // The stream is not read meanwhile, and a client that asks whether the node is there must not take it for stalled.
        let mut shows = tokio::time::interval(SHOW_EVERY);
        let began = tokio::time::Instant::now();
        let turn = loop {
            tokio::select! {
                biased;
                turn = &mut turn => break turn,
                _ = shows.tick() => if began.elapsed() >= SHOW_EVERY { self.show() },
            }
        };
        match turn {
            Err(error) => {
                requests.drain(..).for_each(|(_, _, reply)| reply.send(Err(error.clone())));
                None
            }
            Ok((turn, waited)) => let_in(requests, turn, waited),
        }
    }

    async fn begin(&mut self, operations: &[BatchOperation], delay: Duration) {
        let count = u32::try_from(operations.len()).unwrap_or(u32::MAX);
        // Nobody closes it. The places come back with the results.
        if let Ok(permit) = self.room.acquire_many(count).await {
            permit.forget();
        }
        let keyspaces = self.shared.keyspaces();
        let edge = self.shared.edge(&keyspaces);
        let serving = self.shared.serving();
        let mut requests: Requests = Vec::with_capacity(operations.len());
        let mut unknown = Vec::new();
        for operation in operations {
            let kind = BatchKind::of(operation);
            let (results, waiting) = (self.results.clone(), Arc::clone(&self.waiting));
            let reply = ReplyTo::Stream { id: operation.id, kind, results, waiting, ticket: None, read: None };
            match (&serving, edge.operation(operation)) {
                // Its client has stopped waiting, and may have written something else since.
                (Ok(_), Ok(incoming)) if incoming.timeout.is_some_and(|timeout| timeout <= delay) => {
                    let why = "the request came after its time was up; nothing was done";
                    reply.send(Err(RequestError::unavailable(why)));
                }
                (Ok(_), Ok(incoming)) => {
                    let timeout = incoming.timeout.map(|timeout| timeout - delay);
                    requests.push((incoming.request, timeout, reply));
                }
                (Ok(_), Err(error)) if error.kind == Kind::NotFound => unknown.push((operation.clone(), error, reply)),
                (Ok(_), Err(error)) => reply.send(Err(error)),
                (Err(error), _) => reply.send(Err(error.clone())),
            }
        }
        if !unknown.is_empty() {
            // Others need not wait until the node knows more. The places of the stream bound how many do.
            let shared = Arc::clone(&self.shared);
            tokio::spawn(async move { shared.retry_unknown(unknown).await });
        }
        if let Ok(serving) = serving {
            let promise = self.turn(&serving.engine, &mut requests).await;
            serving.engine.requests(requests, promise).await;
        }
    }
}

/// Gives each request its part of a turn for which they waited so long. What they have of the store's room.
fn let_in(requests: &mut Requests, Turn { write, mut reads, promise }: Turn, waited: Duration) -> Option<Promise> {
    let write = write.map(Arc::new);
    for (request, timeout, reply) in requests {
        *timeout = timeout.map(|timeout| timeout.saturating_sub(waited));
        if let ReplyTo::Stream { ticket, read, .. } = reply {
            ticket.clone_from(&write);
            *read = if is_read(request) { reads.pop() } else { None };
        }
    }
    promise
}

/// Sends results in messages of some size until there are no more, or the client has gone.
async fn send(
    mut finished: mpsc::UnboundedReceiver<StreamResult>,
    room: Arc<Semaphore>,
    responses: mpsc::Sender<Outgoing>,
) {
    let mut taken: Vec<StreamResult> = Vec::with_capacity(FRAME_OPERATIONS_MAX);
    while finished.recv_many(&mut taken, FRAME_OPERATIONS_MAX).await > 0 {
        let mut response = BatchResponse::default();
        let mut held = Held::default();
        let mut bytes = 0;
        for StreamResult { id, kind, answer, waits } in taken.drain(..) {
            let result = reply::batch_result(id, kind, answer.outcome);
            bytes += result.encoded_len();
            response.results.push(result);
            held.bytes.extend(answer.share);
            held.bytes.push(waits);
            if bytes >= FRAME_BYTES_TARGET {
                bytes = 0;
                let message = (std::mem::take(&mut response), std::mem::take(&mut held));
                if !give(message, &room, &responses).await {
                    return;
                }
            }
        }
        if !response.results.is_empty() && !give((response, held), &room, &responses).await {
            return;
        }
    }
}

async fn give(
    (response, mut held): (BatchResponse, Held),
    room: &Arc<Semaphore>,
    responses: &mpsc::Sender<Outgoing>,
) -> bool {
    held.places = Some(Places { room: Arc::clone(room), count: response.results.len() });
    responses.send(Ok((response, held))).await.is_ok()
}
