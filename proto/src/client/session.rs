//! One `Batch` stream to one node, shared by all operations that are in flight to it.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use kv_core::error::{Kind, RequestError};
use kv_core::message::Outcome;
use prost::Message;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use tokio_stream::Stream;
use tonic::transport::Channel;

use super::calls::{Failure, describe_status, key_value};
use crate::limits::{FRAME_BYTES_TARGET, FRAME_OPERATIONS_MAX, OPERATION_BYTES_MAX};
use crate::reply::outcome_of;
use crate::v1;
use crate::v1::batch_operation::Operation;

/// The stream. When it ends, operations that were sent have an unknown outcome, and the others were not done.
#[derive(Debug)]
pub(super) struct Session {
    queue: mpsc::Sender<v1::BatchOperation>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    address: String,
    /// One for each operation in flight, which bounds `State::waiting`.
    permits: Semaphore,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    last_id: u64,
    waiting: HashMap<u64, Waiting>,
    /// Why the stream has ended.
    closed: Option<String>,
}

#[derive(Debug)]
struct Waiting {
    answer: oneshot::Sender<Result<Outcome, Failure>>,
    /// Whether the operation may have left this process.
    sent: bool,
}

impl Session {
    /// Opens the stream; the connection is made in the background.
    pub(super) fn open(channel: Channel, address: &str, in_flight_max: usize) -> Self {
        let (queue, queued) = mpsc::channel(in_flight_max);
        let shared = Arc::new(Shared {
            address: address.to_owned(),
            permits: Semaphore::new(in_flight_max),
            state: Mutex::default(),
        });
        let frames = Frames { queued, shared: Arc::clone(&shared), first: None };
        tokio::spawn(read(channel, frames, Arc::clone(&shared)));
        Self { queue, shared }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.shared.lock().closed.is_some()
    }

    /// Has one operation done. Dropping the future gives the operation up; it may still be carried out.
    pub(super) async fn call(&self, operation: Operation, deadline: Instant) -> Result<Outcome, Failure> {
        let bytes = operation.encoded_len();
        if bytes > OPERATION_BYTES_MAX {
            // It would end the stream, and with it the operations of everybody else.
            let message =
                format!("the operation has {bytes} bytes, the limit is {OPERATION_BYTES_MAX}; split the value");
            return Err(Failure { error: RequestError::invalid(message), transport: false });
        }
        let room = async {
            let permit = self.shared.permits.acquire().await.ok()?;
            let place = self.queue.reserve().await.ok()?;
            Some((permit, place))
        };
        let (_permit, place) = match timeout_at(deadline, room).await {
            Ok(Some(room)) => room,
            Ok(None) => return Err(self.shared.ended()),
            Err(_) => return Err(self.shared.timed_out(false)),
        };
        let (answer, answered) = oneshot::channel();
        let id = self.shared.enter(answer)?;
        let mut entry = Entry { shared: &self.shared, id: Some(id) };
        place.send(v1::BatchOperation { id, operation: Some(operation) });
        match timeout_at(deadline, answered).await {
            Ok(Ok(outcome)) => {
                entry.id = None;
                outcome
            }
            Ok(Err(_)) => Err(self.shared.ended()),
            Err(_) => {
                let sent = self.shared.lock().waiting.get(&id).is_none_or(|waiting| waiting.sent);
                Err(self.shared.timed_out(sent))
            }
        }
    }
}

/// Takes an operation that is given up out of the waiting ones.
struct Entry<'a> {
    shared: &'a Shared,
    id: Option<u64>,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.shared.lock().waiting.remove(&id);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, answer: oneshot::Sender<Result<Outcome, Failure>>) -> Result<u64, Failure> {
        let mut state = self.lock();
        if state.closed.is_some() {
            drop(state);
            return Err(self.ended());
        }
        state.last_id += 1;
        let id = state.last_id;
        state.waiting.insert(id, Waiting { answer, sent: false });
        Ok(id)
    }

    /// Gives the results to those who wait. A result that nobody waits for was given up.
    fn settle(&self, results: Vec<v1::BatchResult>) {
        let mut answers = Vec::with_capacity(results.len());
        let mut state = self.lock();
        for result in results {
            if let Some(waiting) = state.waiting.remove(&result.id) {
                answers.push((waiting.answer, result));
            }
        }
        drop(state);
        for (answer, result) in answers {
            // Whoever has stopped waiting does not need it.
            drop(answer.send(Ok(outcome_of(result))));
        }
    }

    fn close(&self, reason: &str) {
        let mut state = self.lock();
        state.closed = Some(reason.to_owned());
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        for waiting in waiting.into_values() {
            let failure = self.broken(waiting.sent, reason);
            drop(waiting.answer.send(Err(failure)));
        }
    }

    fn ended(&self) -> Failure {
        let reason = self.lock().closed.clone();
        self.broken(false, reason.as_deref().unwrap_or("the stream has ended"))
    }

    fn broken(&self, sent: bool, reason: &str) -> Failure {
        let kind = if sent { Kind::Unknown } else { Kind::Unavailable };
        Failure { error: RequestError::new(kind, format!("{}: {reason}", self.address)), transport: true }
    }

    fn timed_out(&self, sent: bool) -> Failure {
        let (kind, what) = if sent {
            (Kind::Unknown, "no answer in time, the outcome is unknown")
        } else {
            (Kind::Unavailable, "the connection did not take the request in time, nothing was done")
        };
        Failure { error: RequestError::new(kind, format!("{}: {what}", self.address)), transport: true }
    }
}

/// Reads results until the stream ends.
async fn read(channel: Channel, frames: Frames, shared: Arc<Shared>) {
    let reason = match key_value(channel).batch(frames).await {
        Err(status) => describe_status(&status),
        Ok(response) => {
            let mut results = response.into_inner();
            loop {
                match results.message().await {
                    Ok(Some(batch)) => shared.settle(batch.results),
                    Ok(None) => break "the node has closed the stream".to_owned(),
                    Err(status) => break describe_status(&status),
                }
            }
        }
    };
    shared.close(&reason);
}

/// What goes out: whatever is queued when the connection asks for more, in one message.
struct Frames {
    queued: mpsc::Receiver<v1::BatchOperation>,
    shared: Arc<Shared>,
    first: Option<v1::BatchOperation>,
}

impl Stream for Frames {
    type Item = v1::BatchRequest;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(first) = self.first.take() else {
            let Some(first) = ready!(self.queued.poll_recv(context)) else { return Poll::Ready(None) };
            self.first = Some(first);
            // The tasks that are ready now queue theirs first; without this, messages stay nearly empty.
            context.waker().wake_by_ref();
            return Poll::Pending;
        };
        let mut operations = Vec::new();
        let mut bytes = 0;
        let mut next = Some(first);
        let shared = Arc::clone(&self.shared);
        let mut state = shared.lock();
        while let Some(operation) = next.take() {
            // What was given up while it was queued is not sent at all.
            if let Some(waiting) = state.waiting.get_mut(&operation.id) {
                waiting.sent = true;
                bytes += operation.encoded_len();
                operations.push(operation);
            }
            if operations.len() < FRAME_OPERATIONS_MAX && bytes < FRAME_BYTES_TARGET {
                next = self.queued.try_recv().ok();
            }
        }
        drop(state);
        if operations.is_empty() {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Some(v1::BatchRequest { operations }))
    }
}
