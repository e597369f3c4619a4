//! One `Batch` stream to one node, shared by all operations that are in flight to it.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use kv_core::error::{Kind, RequestError};
use kv_core::message::Outcome;
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout_at};
use tokio_stream::Stream;
use tonic::transport::Channel;

use super::failure::{Failure, describe_status};
use super::pulse::{Check, Pulse};
use super::stub::key_value;
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
    /// Whether the node is connected and does not answer at present.
    stalled: watch::Sender<bool>,
    /// Something is awaited, or the stream has ended.
    awaited: Notify,
    opened: Instant,
}

#[derive(Debug)]
struct State {
    last_id: u64,
    pulse: Pulse,
    /// Calls beside the stream for which the node is watched.
    watchers: usize,
    waiting: HashMap<u64, Waiting>,
    /// Why the stream has ended.
    closed: Option<String>,
}

/// What is said of an operation.
#[derive(Debug)]
enum Notice {
    Ended(Result<Outcome, Failure>),
    /// The node has stopped answering. Should it go on, the answer comes by this way.
    Stalled(oneshot::Receiver<Notice>),
}

/// How far an operation got.
#[derive(Debug)]
pub(super) enum Reply {
    /// It has ended.
    Ended(Outcome),
    /// Its node has stopped answering.
    Stalled(Late),
}

/// An operation whose node has stopped answering. Dropping it gives the operation up.
#[derive(Debug)]
pub(super) struct Late {
    shared: Arc<Shared>,
    id: u64,
    answer: oneshot::Receiver<Notice>,
    deadline: Instant,
}

/// Names what only asks the node to show itself.
const PROBE: u64 = 0;

#[derive(Debug)]
struct Waiting {
    answer: oneshot::Sender<Notice>,
    /// Whether the operation may have left this process.
    sent: bool,
}

impl Session {
    /// Opens the stream; the connection is made in the background.
    pub(super) fn open(channel: Channel, address: &str, in_flight_max: usize, stall_after: Duration) -> Self {
        let (queue, queued) = mpsc::channel(in_flight_max);
        let shared = Arc::new(Shared {
            address: address.to_owned(),
            permits: Semaphore::new(in_flight_max),
            state: Mutex::new(State {
                last_id: PROBE,
                pulse: Pulse::new(stall_after),
                watchers: 0,
                waiting: HashMap::new(),
                closed: None,
            }),
            stalled: watch::Sender::new(false),
            awaited: Notify::new(),
            opened: Instant::now(),
        });
        let frames = Frames { queued, shared: Arc::clone(&shared), first: None, probe: false };
        tokio::spawn(read(channel, frames, Arc::clone(&shared)));
        tokio::spawn(watch_pulse(Arc::clone(&shared), queue.downgrade()));
        Self { queue, shared }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.shared.state.lock().closed.is_some()
    }

    /// Whether the node is connected and does not answer at present.
    pub(super) fn is_stalled(&self) -> bool {
        *self.shared.stalled.borrow()
    }

    /// Watches the node until it stops answering.
    pub(super) async fn stalls(&self) {
        let _watcher = self.shared.watch();
        let mut stalled = self.shared.stalled.subscribe();
        drop(stalled.wait_for(|stalled| *stalled).await);
    }

    /// Has one operation done. Dropping the future gives the operation up; it may still be carried out.
    pub(super) async fn call(&self, operation: Operation, deadline: Instant) -> Result<Reply, Failure> {
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
        // A caller that waits for room at a node that stops answering has done nothing yet, and need not wait with the others.
        let stalls = async {
            if self.is_stalled() {
                std::future::pending::<()>().await;
            }
            self.stalls().await;
        };
        let room = tokio::select! {
            biased;
            room = timeout_at(deadline, room) => room,
            () = stalls => return Err(self.shared.timed_out(false)),
        };
        let (permit, place) = match room {
            Ok(Some(room)) => room,
            Ok(None) => return Err(self.shared.ended()),
            Err(_) => return Err(self.shared.timed_out(false)),
        };
        let (answer, answered) = oneshot::channel();
        let id = self.shared.enter(answer)?;
        let mut entry = Entry { shared: &self.shared, id: Some(id) };
        place.send(v1::BatchOperation { id, operation: Some(operation) });
        match timeout_at(deadline, answered).await {
            Ok(Ok(Notice::Ended(outcome))) => {
                entry.id = None;
                outcome.map(Reply::Ended)
            }
            Ok(Ok(Notice::Stalled(answer))) => {
                // What keeps the place of the operation gives it back.
                entry.id = None;
                permit.forget();
                Ok(Reply::Stalled(Late { shared: Arc::clone(&self.shared), id, answer, deadline }))
            }
            Ok(Err(_)) => Err(self.shared.ended()),
            Err(_) => {
                let sent = self.shared.state.lock().waiting.get(&id).is_none_or(|waiting| waiting.sent);
                Err(self.shared.timed_out(sent))
            }
        }
    }
}

impl Late {
    /// Gives the operation up if it has not left this process. Then nothing was done.
    pub(super) fn withdraw_unsent(&mut self) -> Option<Failure> {
        let mut state = self.shared.state.lock();
        if state.waiting.get(&self.id).is_none_or(|waiting| waiting.sent) {
            return None;
        }
        state.waiting.remove(&self.id);
        drop(state);
        Some(self.shared.timed_out(false))
    }

    /// Waits for the end of the operation.
    pub(super) async fn ended(&mut self) -> Result<Outcome, Failure> {
        loop {
            match timeout_at(self.deadline, &mut self.answer).await {
                Ok(Ok(Notice::Ended(outcome))) => return outcome,
                Ok(Ok(Notice::Stalled(answer))) => self.answer = answer,
                Ok(Err(_)) => return Err(self.shared.ended()),
                Err(_) => return Err(self.shared.timed_out(true)),
            }
        }
    }
}

impl Drop for Late {
    fn drop(&mut self) {
        self.shared.state.lock().waiting.remove(&self.id);
        self.shared.permits.add_permits(1);
    }
}

/// A call beside the stream that waits for the node.
struct Watcher<'a>(&'a Shared);

impl Drop for Watcher<'_> {
    fn drop(&mut self) {
        self.0.state.lock().watchers -= 1;
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
            self.shared.state.lock().waiting.remove(&id);
        }
    }
}

impl Shared {
    fn watch(&self) -> Watcher<'_> {
        let mut state = self.state.lock();
        state.watchers += 1;
        let is_first = state.pulse.asked(Instant::now());
        drop(state);
        if is_first {
            self.awaited.notify_one();
        }
        Watcher(self)
    }

    fn enter(&self, answer: oneshot::Sender<Notice>) -> Result<u64, Failure> {
        let mut state = self.state.lock();
        if state.closed.is_some() {
            drop(state);
            return Err(self.ended());
        }
        state.last_id += 1;
        let id = state.last_id;
        state.waiting.insert(id, Waiting { answer, sent: false });
        let is_first = state.pulse.asked(Instant::now());
        drop(state);
        if is_first {
            self.awaited.notify_one();
        }
        Ok(id)
    }

    fn check_pulse(&self) -> Check {
        let mut state = self.state.lock();
        if state.closed.is_some() {
            return Check::Idle;
        }
        let awaits = state.awaits();
        let check = state.pulse.check(Instant::now(), awaits);
        if check == Check::Stalled {
            // With the lock held, so that what comes now takes it back.
            self.stalled.send_replace(true);
        }
        check
    }

    /// The node has stopped answering: callers that wait learn it, and may continue to wait.
    fn stall(&self) {
        let renew = |waiting: &mut Waiting| {
            let (answer, rest) = oneshot::channel();
            (std::mem::replace(&mut waiting.answer, answer), rest)
        };
        let renewed: Vec<_> = self.state.lock().waiting.values_mut().map(renew).collect();
        for (answer, rest) in renewed {
            // Whoever has stopped waiting need not know.
            drop(answer.send(Notice::Stalled(rest)));
        }
    }

    /// Gives the results to those who wait. A result without a waiter was given up.
    fn settle(&self, results: Vec<v1::BatchResult>) {
        let mut answers = Vec::with_capacity(results.len());
        let mut state = self.state.lock();
        for result in results {
            if let Some(waiting) = state.waiting.remove(&result.id) {
                answers.push((waiting.answer, result));
            }
        }
        let awaits = state.awaits();
        state.pulse.heard(Instant::now(), awaits);
        if *self.stalled.borrow() {
            self.stalled.send_replace(false);
            self.awaited.notify_one();
        }
        drop(state);
        for (answer, result) in answers {
            // A caller that has stopped waiting does not need it.
            drop(answer.send(Notice::Ended(Ok(outcome_of(result)))));
        }
    }

    fn close(&self, reason: &str) {
        let mut state = self.state.lock();
        state.closed = Some(reason.to_owned());
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        self.stalled.send_replace(false);
        self.awaited.notify_one();
        for waiting in waiting.into_values() {
            let failure = self.broken(waiting.sent, reason);
            drop(waiting.answer.send(Notice::Ended(Err(failure))));
        }
    }

    fn ended(&self) -> Failure {
        let reason = self.state.lock().closed.clone();
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

impl State {
    fn awaits(&self) -> bool {
        self.watchers > 0 || !self.waiting.is_empty()
    }
}

/// Watches the node while something is awaited from it, until the stream ends.
async fn watch_pulse(shared: Arc<Shared>, queue: mpsc::WeakSender<v1::BatchOperation>) {
    loop {
        shared.awaited.notified().await;
        loop {
            if shared.state.lock().closed.is_some() {
                return;
            }
            match shared.check_pulse() {
                Check::Idle => break,
                Check::Again(at) => sleep_until(at).await,
                Check::Probe(at) => {
                    let Some(queue) = queue.upgrade() else { return };
                    // A full queue is one that the connection does not take.
                    drop(queue.try_send(v1::BatchOperation { id: PROBE, operation: None }));
                    drop(queue);
                    sleep_until(at).await;
                }
                Check::Stalled => {
                    shared.stall();
                    break;
                }
            }
        }
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
    /// Whether the node is to be asked to show itself.
    probe: bool,
}

impl Frames {
    /// A message; one without operations asks the node to show itself.
    fn message(&self, operations: Vec<v1::BatchOperation>) -> v1::BatchRequest {
        let sent_us = u64::try_from(self.shared.opened.elapsed().as_micros()).unwrap_or(u64::MAX).max(1);
        v1::BatchRequest { operations, sent_us }
    }
}

impl Stream for Frames {
    type Item = v1::BatchRequest;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.first.is_none() && std::mem::take(&mut self.probe) {
            return Poll::Ready(Some(self.message(Vec::new())));
        }
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
        let mut state = shared.state.lock();
        while let Some(operation) = next.take() {
            self.probe |= operation.id == PROBE;
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
        state.pulse.sent(bytes);
        drop(state);
        if operations.is_empty() {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Some(self.message(operations)))
    }
}
