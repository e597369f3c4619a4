//! One operation from its start to its end: attempts at one node after the other until one answers or the deadline is exceeded.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use kv_core::error::{Kind, RequestError};
use kv_core::message::{Attempt as WriteAttempt, Outcome, Response};
use kv_core::types::{Epoch, RequestId};
use tokio::time::{Instant, sleep_until};

use super::failure::Failure;
use super::options::{Condition, How, Retry, Transport, Write};
use super::pool::Node;
use super::session::{Late, Reply};
use super::view::Route;
use super::{Client, calls, level_of, mismatch, timeout_to_wire};
use crate::edge::attempt_to_wire;
use crate::v1;
use crate::v1::batch_operation::Operation;

/// The pause after every node was tried once, doubled each time up to the longest one.
const PAUSE_FIRST: Duration = Duration::from_millis(10);
const PAUSE_LONGEST: Duration = Duration::from_millis(500);

/// How often a write draws another stamp because a later value stood there each time, before it is put beside that.
const STAMPS_MAX: u32 = 16;

/// What to do with a key.
#[derive(Debug)]
pub(super) enum KeyOperation<'a> {
    Get,
    Put {
        value: &'a Bytes,
        write: &'a Write,
        condition: Option<&'a Condition>,
    },
    Delete {
        context: Option<&'a Bytes>,
    },
    /// If nothing has changed since the read that gave the context.
    DeleteIf {
        context: &'a Bytes,
    },
}

/// Under which identity a write is sent, and whether it may have been carried out. It keeps its identity over all attempts that
/// may take effect.
#[derive(Clone, Copy, Debug)]
struct Sent {
    request: RequestId,
    attempt: WriteAttempt,
}

impl KeyOperation<'_> {
    fn is_read(&self) -> bool {
        matches!(self, Self::Get)
    }

    /// Whether it is answered by this kind of response.
    fn is_answered_by(&self, response: &Response) -> bool {
        match response {
            Response::Got { .. } => self.is_read(),
            Response::Written { .. } => !self.is_read(),
            Response::Unchanged { .. } => {
                matches!(self, Self::Put { condition: Some(_), .. } | Self::DeleteIf { .. })
            }
            Response::Page { .. } | Response::Inspected { .. } => false,
        }
    }

    fn to_wire(&self, how: &How, key: &Bytes, sent: Sent, epoch: Epoch, timeout: Duration) -> Operation {
        let (keyspace, key, strict) = (how.keyspace.clone(), key.clone(), how.consistency.strict);
        let (level, epoch, timeout_ms) = (level_of(how), epoch.0, timeout_to_wire(timeout));
        let (request, attempt) = (Some(sent.request.into()), attempt_to_wire(sent.attempt).into());
        match self {
            Self::Get => Operation::Get(v1::GetRequest { keyspace, key, level, strict, epoch, timeout_ms }),
            Self::Put { value, write, condition } => Operation::Put(v1::PutRequest {
                keyspace,
                key,
                value: Bytes::clone(value),
                context: write.context.clone(),
                ttl_ms: write.ttl.map(|ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX)),
                request,
                level,
                strict,
                epoch,
                timeout_ms,
                attempt,
                if_absent: matches!(condition, Some(Condition::Absent)),
                if_context: match condition {
                    Some(Condition::Unchanged(context)) => Some(context.clone()),
                    Some(Condition::Absent) | None => None,
                },
            }),
            Self::Delete { .. } | Self::DeleteIf { .. } => Operation::Delete(v1::DeleteRequest {
                keyspace,
                key,
                context: if let Self::Delete { context } = self { context.cloned() } else { None },
                if_context: if let Self::DeleteIf { context } = self { Some(Bytes::clone(context)) } else { None },
                request,
                level,
                strict,
                epoch,
                timeout_ms,
                attempt,
            }),
        }
    }
}

/// What has happened so far.
#[derive(Debug, Default)]
struct Progress {
    /// Nodes tried since the last pause.
    tried: Vec<Arc<Node>>,
    rounds: u32,
    attempts: u32,
    /// How often another stamp was drawn.
    stamps: u32,
    /// A write whose outcome is unknown stays unknown, whatever later attempts say.
    unknown: Option<RequestError>,
    /// The last error, but what a node said rather than that it then said nothing.
    last: Option<RequestError>,
    last_is_answer: bool,
}

impl Progress {
    fn failed(&mut self, error: RequestError, is_answer: bool) {
        if is_answer || !self.last_is_answer {
            self.last = Some(error);
            self.last_is_answer = is_answer;
        }
    }

    /// An attempt has ended that was not the only one waited for.
    fn late_failed(&mut self, operation: &KeyOperation<'_>, failure: Failure) {
        let Failure { error, transport } = failure;
        if !operation.is_read() && matches!(error.kind, Kind::Unknown | Kind::Poisoned) {
            self.unknown.get_or_insert_with(|| error.clone());
        }
        self.failed(error, !transport);
    }

    /// What an answer means beside other attempts. A register remembers that the condition of a repetition did not hold, and the others
    /// fail then, too. If it did not hold for the first attempt, a later one may find that it does. `are_others_out`: whether some have no
    /// answer.
    fn certain(response: Response, attempt: WriteAttempt, are_others_out: bool) -> Result<Response, RequestError> {
        let is_certain = attempt == WriteAttempt::Repeated || !are_others_out;
        if is_certain || !matches!(response, Response::Unchanged { .. }) {
            return Ok(response);
        }
        Err(RequestError::new(
            Kind::Unknown,
            "the outcome is unknown: the first attempt found that the condition does not hold, and a second one has no answer; read the key, \
             then decide",
        ))
    }

    fn end(self, error: RequestError) -> RequestError {
        match self.unknown {
            // A condition that did not hold for an earlier attempt: nothing was done, and nothing will be.
            Some(_) if error.kind == Kind::Conflict && !error.wants_stamp() => error,
            Some(unknown) if error.kind != Kind::Unknown => {
                RequestError::new(Kind::Unknown, format!("{unknown}; a later attempt: {error}"))
            }
            _ => error,
        }
    }

    fn give_up(mut self, timeout: Duration) -> RequestError {
        let attempts = self.attempts;
        let last = self.last.take().unwrap_or_else(|| RequestError::unavailable("no node was asked"));
        let kind = last.kind;
        let error = RequestError::new(
            kind,
            format!("{last} (gave up after {} ms and {attempts} attempts)", timeout.as_millis()),
        );
        self.end(error)
    }
}

/// How an attempt ended.
enum Attempted {
    Done(Response),
    /// Its node has stopped answering, and another one may be asked in the meantime.
    Stalled(Late),
}

/// An attempt at a node that has stopped answering.
struct LateAttempt {
    node: Arc<Node>,
    attempt: WriteAttempt,
    ended: Late,
}

/// Waits for the first of them that ends, and takes it out. Without any it waits for ever.
async fn first_ended(late: &mut Vec<LateAttempt>) -> (LateAttempt, Result<Outcome, Failure>) {
    let (at, ended) = {
        let mut waits: Vec<_> = late.iter_mut().map(|attempt| Box::pin(attempt.ended.ended())).collect();
        std::future::poll_fn(move |context| {
            for (at, wait) in waits.iter_mut().enumerate() {
                if let Poll::Ready(ended) = wait.as_mut().poll(context) {
                    return Poll::Ready((at, ended));
                }
            }
            Poll::Pending
        })
        .await
    };
    (late.swap_remove(at), ended)
}

impl Client {
    pub(super) async fn on_key(
        &self,
        how: &How,
        key: &Bytes,
        operation: &KeyOperation<'_>,
    ) -> Result<Response, RequestError> {
        let timeout = how.timeout.unwrap_or(self.options().timeout);
        let deadline = Instant::now() + timeout;
        let mut progress = Progress::default();
        let mut request = self.inner.ids.next();
        let mut late: Vec<LateAttempt> = Vec::new();
        loop {
            let view = self.view();
            if !late.is_empty() && view.healthy_route(key, &progress.tried).is_none() {
                // Everybody who answers has been asked: asking those again that do not would only add to their work.
                let (first, ended) = first_ended(&mut late).await;
                match self.judge(operation, &first.node, ended) {
                    Ok(response) => return Progress::certain(response, first.attempt, !late.is_empty()),
                    Err(failure) => progress.late_failed(operation, failure),
                }
                if Instant::now() >= deadline {
                    return Err(progress.give_up(timeout));
                }
                continue;
            }
            let Some(route) = view.route(key, &progress.tried) else {
                progress.tried.clear();
                let pause = PAUSE_FIRST.saturating_mul(1 << progress.rounds.min(10)).min(PAUSE_LONGEST);
                progress.rounds += 1;
                let until = Instant::now() + pause;
                if until >= deadline || view.any_node().is_empty() {
                    return Err(progress.give_up(timeout));
                }
                sleep_until(until).await;
                continue;
            };
            self.count_attempt(&mut progress, &route);
            // What was sent before may have been carried out, or may yet: who carries it out now must know.
            let is_repeated = progress.unknown.is_some() || !late.is_empty();
            let attempt = if is_repeated {
                WriteAttempt::Repeated
            } else if self.options().retry == Retry::Never || progress.stamps == STAMPS_MAX {
                WriteAttempt::Plain
            } else {
                WriteAttempt::First
            };
            let sent = Sent { request, attempt };
            let attempted = {
                let attempt = self.attempt(how, key, operation, sent, &route, deadline);
                tokio::pin!(attempt);
                loop {
                    tokio::select! {
                        biased;
                        attempted = &mut attempt => break attempted,
                        (first, ended) = first_ended(&mut late), if !late.is_empty() => {
                            match self.judge(operation, &first.node, ended) {
                                // The attempt that has just begun has no answer.
                                Ok(response) => return Progress::certain(response, first.attempt, true),
                                Err(failure) => progress.late_failed(operation, failure),
                            }
                        }
                    }
                }
            };
            let failure = match attempted {
                Ok(Attempted::Done(response)) => return Progress::certain(response, sent.attempt, !late.is_empty()),
                Ok(Attempted::Stalled(ended)) => {
                    self.counters().moved.fetch_add(1, Ordering::Relaxed);
                    progress.tried.push(Arc::clone(&route.node));
                    late.push(LateAttempt { node: route.node, attempt: sent.attempt, ended });
                    continue;
                }
                Err(failure) => failure,
            };
            let error = failure.error;
            if !operation.is_read() && matches!(error.kind, Kind::Unknown | Kind::Poisoned) {
                progress.unknown.get_or_insert_with(|| error.clone());
            }
            if error.wants_stamp() {
                self.inner.ids.refused(request, error.newest);
                if !is_repeated && late.is_empty() && Instant::now() < deadline {
                    // Nothing of it was done anywhere: it is another request from now on.
                    request = self.inner.ids.next();
                    progress.stamps += 1;
                    progress.failed(error, true);
                    continue;
                }
            } else if !self.may_repeat(operation, request, error.kind) {
                return Err(progress.end(error));
            }
            let stale = error.kind == Kind::StaleEpoch;
            progress.failed(error, !failure.transport);
            if Instant::now() >= deadline {
                return Err(progress.give_up(timeout));
            }
            if failure.transport {
                self.refresh_sometimes(&view);
            }
            if stale {
                let before = route.epoch;
                // Without an answer the next node may know more.
                drop(self.refresh_from(&view, Some(&route.node), false).await);
                if self.view().route(key, &[]).is_some_and(|again| again.epoch > before) {
                    progress.tried.clear();
                    continue;
                }
            }
            progress.tried.push(route.node);
        }
    }

    fn count_attempt(&self, progress: &mut Progress, route: &Route) {
        let counters = self.counters();
        counters.attempts.fetch_add(1, Ordering::Relaxed);
        counters.retries.fetch_add(u64::from(progress.attempts > 0), Ordering::Relaxed);
        counters.failovers.fetch_add(u64::from(!route.first), Ordering::Relaxed);
        progress.attempts += 1;
    }

    async fn attempt(
        &self,
        how: &How,
        key: &Bytes,
        operation: &KeyOperation<'_>,
        sent: Sent,
        route: &Route,
        deadline: Instant,
    ) -> Result<Attempted, Failure> {
        let now = Instant::now();
        let until = deadline.min(now + self.options().attempt_timeout);
        let wire = operation.to_wire(how, key, sent, route.epoch, until - now);
        let repeatable = self.may_repeat(operation, sent.request, Kind::Unknown);
        let ended = match self.options().transport {
            Transport::Batch => match route.node.session().call(wire, until).await {
                Ok(Reply::Ended(outcome)) => Ok(outcome),
                Ok(Reply::Stalled(mut late)) => {
                    if self.may_repeat(operation, sent.request, Kind::Unavailable)
                        && let Some(failure) = late.withdraw_unsent()
                    {
                        return Err(failure);
                    }
                    if repeatable {
                        return Ok(Attempted::Stalled(late));
                    }
                    late.ended().await
                }
                Err(failure) => Err(failure),
            },
            Transport::Unary if repeatable => {
                calls::unless_stalled(&route.node, calls::unary(&route.node, wire, until)).await
            }
            Transport::Unary => calls::unary(&route.node, wire, until).await,
        };
        self.judge(operation, &route.node, ended).map(Attempted::Done)
    }

    /// What the end of an attempt means, for the operation and for its node.
    fn judge(
        &self,
        operation: &KeyOperation<'_>,
        node: &Node,
        ended: Result<Outcome, Failure>,
    ) -> Result<Response, Failure> {
        match ended {
            Ok(outcome) => {
                node.trust();
                if let Ok(
                    Response::Got { newest, .. }
                    | Response::Written { newest, .. }
                    | Response::Unchanged { newest, .. },
                ) = &outcome
                {
                    self.inner.ids.shown(*newest);
                }
                match outcome {
                    Ok(response) if operation.is_answered_by(&response) => Ok(response),
                    Ok(_) => Err(Failure { error: mismatch(), transport: false }),
                    Err(error) => Err(Failure { error, transport: false }),
                }
            }
            Err(failure) => {
                if failure.transport {
                    node.suspect();
                }
                Err(failure)
            }
        }
    }

    fn may_repeat(&self, operation: &KeyOperation<'_>, request: RequestId, kind: Kind) -> bool {
        let retry = self.options().retry;
        match kind {
            Kind::Invalid | Kind::NotFound | Kind::Corrupt | Kind::Conflict => false,
            Kind::Unavailable | Kind::Exhausted | Kind::StaleEpoch => retry != Retry::Never,
            Kind::Unknown | Kind::Poisoned if operation.is_read() => retry != Retry::Never,
            // Nodes take no request that is older (rule A7).
            Kind::Unknown | Kind::Poisoned => {
                let within = self.view().description.limits.repeat_within;
                retry == Retry::SameId && self.inner.ids.age(request) < within
            }
        }
    }
}
