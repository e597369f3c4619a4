//! One session: both ends say hello, check each other, and then exchange frames until the stream ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kv_core::handshake::HandshakeError;
use kv_core::message::{FORWARD_AGE_MAX, Hello, Message};
use kv_core::types::{Incarnation, Monotonic, NodeId};
use kv_proto::limits::PEER_MESSAGE_BYTES_MAX;
use kv_proto::v1;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{Caller, Links, Open};
use crate::delay::Delays;
use crate::engine::Command;
use crate::outbox::{Outgoing, outbox};
use crate::trust::Reason;

/// How long the other end may take to say hello.
pub(super) const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// How often each end shows that it is alive.
pub(super) const HEARTBEAT_EVERY: Duration = Duration::from_millis(500);

/// A session that is silent for longer than a heartbeat should take may be broken without a word. How long the peer has to show
/// that it is by answering elsewhere, or so many round trips, and how much longer the session then has to say something.
const SILENT_FOR: Duration = Duration::from_millis(700);
const ANSWER_PATIENCE: Duration = Duration::from_millis(200);
const ANSWER_ROUND_TRIPS: u32 = 4;
const GRACE: Duration = Duration::from_millis(50);

/// How long a stream with a store in doubt stays open while nobody asks for anything on it. It is opened again soon.
const PULL_PATIENCE: Duration = Duration::from_secs(2);

/// Frames between the queue and the stream. One more and they would gather behind a busy stream half empty.
const FRAMES_AHEAD: usize = 1;

/// What flows to the other end.
pub type Frames = ReceiverStream<Result<v1::Frame, Status>>;

/// Why a session ended or did not begin.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    /// The stream failed.
    #[error("the stream failed: {0}")]
    Stream(Box<Status>),
    /// The other end closed it.
    #[error("the peer closed the stream")]
    Closed,
    /// The other end did not say who it is.
    #[error("the peer did not say hello within {} s", HELLO_TIMEOUT.as_secs())]
    Silent,
    /// The two must not talk.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// Who opened the connection has proven to be somebody else.
    #[error("{proven} has opened this connection and says hello as {says}; nobody but a node itself may do that")]
    OtherIdentity {
        /// Who has opened it.
        proven: Incarnation,
        /// Who says hello.
        says: Incarnation,
    },
    /// One of the two does not know the cluster's secret.
    #[error("{0}")]
    Refused(String),
    /// It sent something that is not a frame of ours.
    #[error("the peer sent invalid data: {0}")]
    Garbage(String),
    /// Another node answers at the address.
    #[error("{found} answers where {expected} is expected")]
    OtherNode {
        /// Who answers.
        found: NodeId,
        /// Who is expected.
        expected: NodeId,
    },
    /// It takes less than it is sent.
    #[error("the peer is too slow to take what is queued for it")]
    TooSlow,
    /// This node closed it.
    #[error(transparent)]
    GivenUp(#[from] Ending),
}

/// Why this node closes a session.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum Ending {
    /// The peer is considered down.
    #[error("the peer was silent for too long")]
    Silent,
    /// This node does not serve any more.
    #[error("this node has stopped serving: {0}")]
    Stopped(String),
    /// The peer has opened another one.
    #[error("the peer has begun another session")]
    BegunAnew,
    /// The other end has closed the connection, and the word of it was lost.
    #[error("the connection is broken: the peer answers on another one")]
    HalfOpen,
    /// The stream for bulk belongs to the session and ends with it.
    #[error("the stream for bulk ended: {0}")]
    Bulk(String),
}

impl From<Status> for SessionError {
    fn from(status: Status) -> Self {
        Self::Stream(Box::new(status))
    }
}

/// Serves a session that a peer opened; returns what flows back to it.
pub fn accept(links: Links, mut incoming: Streaming<v1::Frame>, caller: Caller) -> Frames {
    let (frames, outgoing) = mpsc::channel(FRAMES_AHEAD);
    tokio::spawn(async move {
        let outcome = async {
            let theirs = first_hello(&mut incoming).await?;
            // A peer that gets an answer counts this node as up.
            links.check_running()?;
            // The answer says who this node is even if the two do not talk, so that the other end learns why.
            let mine = links.hello(links.0.engine.seen(theirs.node, Some(theirs.incarnation.store)).await);
            drop(frames.send(Ok(hello_frame(&mine))).await);
            let agreed = links.agree(&mine, &theirs, caller.incarnation);
            if let Err(SessionError::Handshake(doubt)) = &agreed
                && doubt.is_doubt()
            {
                links.pull(theirs.node, &mut incoming, &frames).await;
            }
            agreed?;
            (caller.is_peers)();
            links.run(theirs, None, &mut incoming, &frames).await
        };
        if let Err(error) = outcome.await {
            tracing::info!(%error, "a session with a peer ended");
            drop(frames.send(Err(Status::aborted(error.to_string()))).await);
        }
    });
    ReceiverStream::new(outgoing)
}

/// What a dialling node sends, and the handle that feeds it.
pub(super) fn frames() -> (mpsc::Sender<v1::Frame>, ReceiverStream<v1::Frame>) {
    let (frames, outgoing) = mpsc::channel(FRAMES_AHEAD);
    (frames, ReceiverStream::new(outgoing))
}

pub(super) fn hello_frame(hello: &Hello) -> v1::Frame {
    v1::Frame { hello: Some(hello.into()), ..v1::Frame::default() }
}

pub(super) async fn first_hello(incoming: &mut Streaming<v1::Frame>) -> Result<Hello, SessionError> {
    let frame = tokio::time::timeout(HELLO_TIMEOUT, incoming.message()).await;
    let frame = frame.map_err(|_elapsed| SessionError::Silent)??.ok_or(SessionError::Closed)?;
    let hello = frame.hello.ok_or_else(|| SessionError::Garbage("its first frame has no hello".to_owned()))?;
    Hello::try_from(hello).map_err(|error| SessionError::Garbage(error.to_string()))
}

/// Where a session's frames go: towards a server as they are, towards a client as results.
pub(super) trait Sink {
    /// Waits for room; says whether the other end still listens.
    fn push(&self, frame: v1::Frame) -> impl Future<Output = bool> + Send;
}

impl Sink for mpsc::Sender<v1::Frame> {
    async fn push(&self, frame: v1::Frame) -> bool {
        self.send(frame).await.is_ok()
    }
}

impl Sink for mpsc::Sender<Result<v1::Frame, Status>> {
    async fn push(&self, frame: v1::Frame) -> bool {
        self.send(Ok(frame)).await.is_ok()
    }
}

impl Links {
    /// Goes on with a session that this node opened to `expected`; its own hello has been sent.
    pub(super) async fn opened(
        &self,
        expected: NodeId,
        address: &str,
        mut mine: Hello,
        incoming: &mut Streaming<v1::Frame>,
        frames: &mpsc::Sender<v1::Frame>,
    ) -> Result<(), SessionError> {
        let theirs = first_hello(incoming).await?;
        mine.seen = self.0.engine.seen(theirs.node, Some(theirs.incarnation.store)).await.seen;
        if theirs.node != expected {
            return Err(SessionError::OtherNode { found: theirs.node, expected });
        }
        let agreed = self.agree(&mine, &theirs, None);
        if let Err(SessionError::Handshake(doubt)) = &agreed
            && doubt.is_doubt()
        {
            self.pull(theirs.node, incoming, frames).await;
        }
        agreed?;
        self.run(theirs, Some(address), incoming, frames).await
    }

    /// There is no session, since one of both takes the other's store for an older copy. While either asks for what the other
    /// holds, to refill partitions, that is carried (rule D2); nothing else is, and neither counts as up.
    async fn pull(&self, node: NodeId, incoming: &mut Streaming<v1::Frame>, frames: &impl Sink) {
        let session = self.0.sessions.fetch_add(1, Ordering::Relaxed);
        let (outbox, outgoing) = outbox();
        self.0.engine.send(Command::PeerDoubted { node, session, outbox }).await;
        let echo = Echo::default();
        let outcome = tokio::select! {
            outcome = self.receive_pulls(node, session, incoming) => outcome,
            outcome = self.transmit(outgoing, frames, &echo) => outcome,
        };
        self.0.engine.send(Command::PeerDown { node, session }).await;
        tracing::debug!(peer = %node, ?outcome, "a stream with a store in doubt ended");
    }

    /// Takes what is asked for refills and given to them, until nothing has come for a while.
    async fn receive_pulls(
        &self,
        node: NodeId,
        session: u64,
        incoming: &mut Streaming<v1::Frame>,
    ) -> Result<(), SessionError> {
        let mut lateness = Lateness::default();
        let mut idle_since = self.0.clock.now().mono;
        loop {
            self.check_running()?;
            let left = PULL_PATIENCE.saturating_sub(self.0.clock.now().mono.since(idle_since));
            let Ok(frame) = tokio::time::timeout(left, incoming.message()).await else { return Ok(()) };
            let frame = frame?.ok_or(SessionError::Closed)?;
            let sent = lateness.sent(frame.sent_us, self.0.clock.now().mono);
            let mut messages = decode(&frame.messages)?;
            messages.retain(Message::is_pull);
            if !messages.is_empty() {
                idle_since = self.0.clock.now().mono;
                self.0.engine.messages(node, session, messages, bytes_of(&frame.messages), sent).await;
            }
        }
    }

    /// Whether the two talk. `proven`: the store and boot that the other end has proven to be, if it has opened the stream
    /// and has proven any.
    pub(super) fn agree(&self, mine: &Hello, theirs: &Hello, proven: Option<Incarnation>) -> Result<(), SessionError> {
        self.check_running()?;
        let (says, refusals) = (theirs.incarnation, self.0.trust.refusals());
        if let Some(proven) = proven.filter(|proven| *proven != says) {
            let error = SessionError::OtherIdentity { proven, says };
            refusals.note(Some(proven.store), Reason::OtherIdentity, &error.to_string());
            return Err(error);
        }
        match self.0.control.check_hello(mine, theirs) {
            Ok(()) => {
                refusals.settle(says.store);
                Ok(())
            }
            Err(error) => {
                let text = self.0.control.state().borrow().with_names(&error.to_string());
                refusals.note(Some(says.store), reason_of(&error), &format!("no session with a peer: {text}"));
                Err(error.into())
            }
        }
    }

    /// Runs a session to its end. `address` is where the peer is, if this node opened the session and has to open the
    /// stream for bulk.
    async fn run(
        &self,
        theirs: Hello,
        address: Option<&str>,
        incoming: &mut Streaming<v1::Frame>,
        frames: &impl Sink,
    ) -> Result<(), SessionError> {
        let node = theirs.node;
        let number = self.0.sessions.fetch_add(1, Ordering::Relaxed);
        let (outbox, outgoing) = outbox();
        let (ending, closed) = watch::channel(None);
        let round_trip_us = Arc::new(AtomicU64::new(0));
        let (incarnation, commit) = (theirs.incarnation, theirs.commit);
        let open =
            Open { number, incarnation, outbox: outbox.clone(), round_trip_us: Arc::clone(&round_trip_us), ending };
        {
            let mut sessions = self.0.open.lock();
            self.check_running()?;
            if let Some(older) = sessions.insert(node, open) {
                // The peer has begun again; the older stream may take long to notice.
                older.end(Ending::BegunAnew);
            }
        }
        self.heard(node);
        self.0.engine.send(Command::PeerUp { node, session: number, incarnation, commit, outbox }).await;
        let echo = Echo::default();
        let heard = AtomicU64::new(self.0.clock.now().mono.0);
        let outcome = tokio::select! {
            outcome = self.receive(node, number, incoming, &echo, &round_trip_us, &heard) => outcome,
            ending = self.half_open(address, &heard, &round_trip_us) => Err(ending.into()),
            outcome = self.transmit(outgoing, frames, &echo) => outcome,
            ending = closed_by_node(closed) => Err(ending.into()),
            never = self.keep_bulk(node, address) => match never {},
        };
        self.0.engine.send(Command::PeerDown { node, session: number }).await;
        let current = self.0.open.lock().get(&node).is_some_and(|open| open.number == number);
        if current {
            self.0.open.lock().remove(&node);
            let reason = outcome.as_ref().err().map_or_else(|| "the session ended".to_owned(), ToString::to_string);
            self.lost(node, &reason);
        }
        outcome
    }

    async fn receive(
        &self,
        node: NodeId,
        session: u64,
        incoming: &mut Streaming<v1::Frame>,
        echo: &Echo,
        round_trip_us: &AtomicU64,
        heard: &AtomicU64,
    ) -> Result<(), SessionError> {
        let (mut lateness, mut assembly) = (Lateness::default(), Assembly::default());
        while let Some(frame) = incoming.message().await? {
            self.heard(node);
            let read = self.0.clock.now().mono;
            heard.store(read.0, Ordering::Relaxed);
            let sent = lateness.sent(frame.sent_us, read);
            if let Some(heartbeat) = frame.heartbeat {
                let now = read.0;
                echo.received(heartbeat.sent_us, now);
                if heartbeat.echo_us > 0 {
                    round_trip_us.store(now.saturating_sub(heartbeat.echo_us).max(1), Ordering::Relaxed);
                }
            }
            let messages = messages_of(frame, &mut assembly)?;
            if messages.is_empty() {
                self.0.engine.send(Command::Heard { node, session }).await;
                continue;
            }
            self.0.engine.messages(node, session, decode(&messages)?, bytes_of(&messages), sent).await;
        }
        Err(SessionError::Closed)
    }

    /// Ends when the session is silent and the peer answers on another connection: the other end has closed this one while the
    /// word of it could not come through. The system here finds that out only when it sends again, after ever longer pauses.
    async fn half_open(&self, address: Option<&str>, heard: &AtomicU64, round_trip_us: &AtomicU64) -> Ending {
        // Whoever has not opened the session is dialled anew.
        let Some(address) = address else { return std::future::pending().await };
        loop {
            let last = heard.load(Ordering::Relaxed);
            let silent = self.0.clock.now().mono.since(Monotonic(last));
            if silent < SILENT_FOR {
                tokio::time::sleep(SILENT_FOR - silent).await;
                continue;
            }
            let round_trip = Duration::from_micros(round_trip_us.load(Ordering::Relaxed));
            let patience = ANSWER_PATIENCE.max(round_trip * ANSWER_ROUND_TRIPS);
            let answers = tokio::time::timeout(patience, self.answers(address)).await.unwrap_or(false);
            // A node that has just been busy sends on both.
            tokio::time::sleep(GRACE).await;
            if answers && heard.load(Ordering::Relaxed) == last {
                return Ending::HalfOpen;
            }
        }
    }

    async fn transmit(&self, mut outgoing: Outgoing, frames: &impl Sink, echo: &Echo) -> Result<(), SessionError> {
        let mut heartbeat = tokio::time::interval(HEARTBEAT_EVERY);
        heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let overflown = outgoing.overflown();
        tokio::pin!(overflown);
        loop {
            let mut frame = v1::Frame::default();
            tokio::select! {
                () = &mut overflown => return Err(SessionError::TooSlow),
                load = outgoing.next() => match load {
                    Some(load) => frame = load.into_frame(),
                    None => return Err(SessionError::Closed),
                },
                _ = heartbeat.tick() => {
                    let now = self.0.clock.now().mono.0;
                    frame.heartbeat =
                        Some(v1::Heartbeat { sent_us: now.max(1), echo_us: echo.of(now), layout_epoch: 0 });
                }
            }
            frame.sent_us = self.0.clock.now().mono.0.max(1);
            // A stream that takes nothing must not keep the overflow from being seen.
            let taken = tokio::select! {
                taken = frames.push(frame) => taken,
                () = &mut overflown => return Err(SessionError::TooSlow),
            };
            if !taken {
                return Err(SessionError::Closed);
            }
        }
    }
}

fn reason_of(error: &HandshakeError) -> Reason {
    match error {
        HandshakeError::Protocol { .. } => Reason::Malformed,
        HandshakeError::OtherCluster { .. } => Reason::OtherCluster,
        HandshakeError::OtherGeneration { .. } => Reason::OtherGeneration,
        HandshakeError::OtherConfig { .. } => Reason::OtherSettings,
        HandshakeError::Myself { .. } => Reason::OtherIdentity,
        HandshakeError::NotMember { .. } => Reason::NotMember,
        HandshakeError::OtherStore { .. } => Reason::OtherStore,
        HandshakeError::PeerRolledBack { .. } | HandshakeError::RolledBack { .. } => Reason::OlderCopy,
    }
}

pub(super) fn bytes_of(messages: &[Bytes]) -> usize {
    messages.iter().map(Bytes::len).sum()
}

/// When the frames of a stream were sent, as far as that matters.
#[derive(Debug, Default)]
pub(super) struct Lateness {
    delays: Delays,
    pauses: PauseDetector,
}

impl Lateness {
    /// When a frame was sent that is read now, by this node's clock: not now if it was paused on its way.
    pub(super) fn sent(&mut self, sent_us: u64, now: Monotonic) -> Monotonic {
        let paused = self.pauses.of(self.delays.of(sent_us, now), now);
        Monotonic(now.0.saturating_sub(u64::try_from(paused.as_micros()).unwrap_or(u64::MAX)))
    }
}

/// Whether frames are late because the link, or a process, was paused. Under load frames wait as well, but then they are
/// read all the time, and what they bring is wanted.
#[derive(Debug, Default)]
struct PauseDetector {
    read: Option<Monotonic>,
    late: bool,
}

impl PauseDetector {
    /// A frame that took so long is read: for how long it was paused on its way.
    fn of(&mut self, delay: Duration, now: Monotonic) -> Duration {
        let before = self.read.replace(now);
        let paused = before.is_some_and(|before| now.since(before) >= FORWARD_AGE_MAX);
        self.late = delay >= FORWARD_AGE_MAX && (self.late || paused);
        if self.late { delay } else { Duration::ZERO }
    }
}

/// A message that comes in pieces, as far as it is there.
#[derive(Debug, Default)]
pub(crate) struct Assembly {
    bytes: BytesMut,
    /// How many bytes of it have still to come; 0: none is coming.
    left: usize,
}

impl Assembly {
    /// Takes the next piece, of whose message so many bytes follow. The message, when it is complete.
    pub(crate) fn add(&mut self, piece: &[u8], left: u64) -> Result<Option<Bytes>, String> {
        let left = usize::try_from(left).unwrap_or(usize::MAX);
        let comes = piece.len().saturating_add(left);
        if piece.is_empty() || (self.left > 0 && self.left != comes) {
            return Err(format!(
                "a piece of {} bytes with {left} to follow where {} are awaited",
                piece.len(),
                self.left
            ));
        }
        if comes > PEER_MESSAGE_BYTES_MAX {
            return Err(format!("a message of {comes} bytes in pieces; {PEER_MESSAGE_BYTES_MAX} are allowed"));
        }
        self.bytes.extend_from_slice(piece);
        self.left = left;
        // What was announced takes no room before it is there.
        Ok((left == 0).then(|| std::mem::take(&mut self.bytes).freeze()))
    }
}

/// The messages that are complete with this frame.
pub(super) fn messages_of(frame: v1::Frame, assembly: &mut Assembly) -> Result<Vec<Bytes>, SessionError> {
    let v1::Frame { mut messages, piece, piece_left, .. } = frame;
    if !piece.is_empty() || piece_left > 0 {
        let whole = assembly.add(&piece, piece_left).map_err(SessionError::Garbage)?;
        messages.extend(whole);
    }
    Ok(messages)
}

/// The messages of a frame.
pub(super) fn decode(messages: &[Bytes]) -> Result<Vec<Message>, SessionError> {
    let decode = |bytes: &Bytes| Message::decode(bytes).map_err(|error| SessionError::Garbage(error.to_string()));
    messages.iter().map(decode).collect()
}

async fn closed_by_node(mut closed: watch::Receiver<Option<Ending>>) -> Ending {
    let ending = closed.wait_for(Option::is_some).await.ok().and_then(|ending| ending.clone());
    match ending {
        Some(ending) => ending,
        // Nobody can close the session any more but its stream.
        None => std::future::pending().await,
    }
}

/// The peer's last heartbeat, and when it came.
#[derive(Debug, Default)]
struct Echo {
    sent_us: AtomicU64,
    at_us: AtomicU64,
}

impl Echo {
    fn received(&self, sent_us: u64, now_us: u64) {
        self.sent_us.store(sent_us, Ordering::Relaxed);
        self.at_us.store(now_us, Ordering::Relaxed);
    }

    /// The peer's clock as it would read now if the way took no time; 0: nothing was heard.
    fn of(&self, now_us: u64) -> u64 {
        match self.sent_us.load(Ordering::Relaxed) {
            0 => 0,
            sent => sent + now_us.saturating_sub(self.at_us.load(Ordering::Relaxed)),
        }
    }
}
