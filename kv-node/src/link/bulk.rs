//! The stream for bulk of a session, on a connection of its own: pieces of copies and large records never wait in front of
//! small requests.
//!
//! It belongs to the session and ends with it, so frames of a closed session are discarded here, too. The session also ends
//! with it: what was queued in it is lost, and the engine expects losses only where a session ends. While there is none,
//! bulk goes by the session's stream.

use std::convert::Infallible;

use kv_core::types::NodeId;
use kv_proto::v1;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::dial::{CONNECT_TIMEOUT, PAUSE_MAX, PAUSE_MIN};
use super::session::{
    Assembly, Ending, Frames, HEARTBEAT_EVERY, Lateness, SessionError, Sink, bytes_of, decode, first_hello, frames,
    hello_frame, messages_of,
};
use super::{Caller, Links, Open};
use crate::clock::Clock;
use crate::outbox::{Load, Outbox, Outgoing};
use crate::trust::Purpose;

/// Frames between the queue and the stream: one, as for requests.
const FRAMES_AHEAD: usize = 1;

/// The session that a bulk stream belongs to.
struct Session {
    node: NodeId,
    number: u64,
    outbox: Outbox,
    closed: watch::Receiver<Option<Ending>>,
}

/// Serves a bulk stream that a peer opened; returns what flows back to it.
pub fn accept_bulk(links: Links, mut incoming: Streaming<v1::Frame>, caller: Caller) -> Frames {
    let (frames, outgoing) = mpsc::channel(FRAMES_AHEAD);
    tokio::spawn(async move {
        let outcome = async {
            let theirs = first_hello(&mut incoming).await?;
            let mine = links.hello(links.0.engine.seen(theirs.node, Some(theirs.incarnation.store)).await);
            let verdict = links.agree(&mine, &theirs, caller.incarnation);
            let session = links.session(theirs.node, |open| open.incarnation == theirs.incarnation);
            // With the answer the other end begins to send, so there must be a session for it. If the two do not talk, the
            // answer says why.
            if session.is_ok() || verdict.is_err() {
                drop(frames.send(Ok(hello_frame(&mine))).await);
            }
            verdict?;
            let session = session?;
            (caller.is_peers)();
            links.carry(session, &mut incoming, &frames).await
        };
        if let Err(error) = outcome.await {
            drop(frames.send(Err(Status::aborted(error.to_string()))).await);
        }
    });
    ReceiverStream::new(outgoing)
}

impl Links {
    /// Keeps a bulk stream open to the peer at `address` for as long as the session lasts; without an address the peer
    /// opens it.
    pub(super) async fn keep_bulk(&self, node: NodeId, address: Option<&str>) -> Infallible {
        let Some(address) = address else { return std::future::pending().await };
        let mut pause = PAUSE_MIN;
        loop {
            if let Err(error) = self.dial_bulk(node, address).await {
                tracing::debug!(peer = %node, %address, %error, "no stream for bulk");
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    async fn dial_bulk(&self, node: NodeId, address: &str) -> Result<(), SessionError> {
        let session = self.session(node, |_| true)?;
        let mut client = self.connect(address, Purpose::Bulk, CONNECT_TIMEOUT).await?;
        let mut mine = self.hello(self.0.engine.seen(node, None).await);
        let (sender, outgoing) = frames();
        if sender.send(hello_frame(&mine)).await.is_err() {
            return Err(SessionError::Closed);
        }
        let mut incoming = client.bulk(outgoing).await?.into_inner();
        let theirs = first_hello(&mut incoming).await?;
        mine.seen = self.0.engine.seen(theirs.node, Some(theirs.incarnation.store)).await.seen;
        if theirs.node != node {
            return Err(SessionError::OtherNode { found: theirs.node, expected: node });
        }
        self.agree(&mine, &theirs, None)?;
        self.carry(session, &mut incoming, &sender).await
    }

    /// The open session with a peer.
    fn session(&self, node: NodeId, is_meant: impl Fn(&Open) -> bool) -> Result<Session, SessionError> {
        let open = self.0.open.lock();
        let open = open.get(&node).filter(|open| is_meant(open)).ok_or(SessionError::Closed)?;
        let (number, outbox) = (open.number, open.outbox.clone());
        Ok(Session { node, number, outbox, closed: open.ending.subscribe() })
    }

    /// Exchanges bulk until the stream or the session ends.
    async fn carry(
        &self,
        session: Session,
        incoming: &mut Streaming<v1::Frame>,
        frames: &impl Sink,
    ) -> Result<(), SessionError> {
        let Session { node, number, outbox, mut closed } = session;
        let mut outgoing = outbox.attach_bulk();
        let id = outgoing.id();
        let outcome = tokio::select! {
            outcome = self.receive_bulk(node, number, incoming) => outcome,
            outcome = transmit_bulk(&mut outgoing, frames, self.0.clock) => outcome,
            // The session has ended if nobody can close it any more.
            ending = closed.wait_for(Option::is_some) => {
                let ending = ending.ok().and_then(|ending| ending.clone());
                Err(ending.map_or(SessionError::Closed, SessionError::GivenUp))
            }
        };
        outbox.detach_bulk(&id);
        if let Some(open) = self.0.open.lock().get(&node).filter(|open| open.number == number) {
            let why = outcome.as_ref().err().map_or_else(|| "it was closed".to_owned(), ToString::to_string);
            open.end(Ending::Bulk(why));
        }
        outcome
    }

    async fn receive_bulk(
        &self,
        node: NodeId,
        session: u64,
        incoming: &mut Streaming<v1::Frame>,
    ) -> Result<(), SessionError> {
        let (mut lateness, mut assembly) = (Lateness::default(), Assembly::default());
        while let Some(frame) = incoming.message().await? {
            let sent = lateness.sent(frame.sent_us, self.0.clock.now().mono);
            let messages = messages_of(frame, &mut assembly)?;
            if !messages.is_empty() {
                self.0.engine.bulk(node, session, decode(&messages)?, bytes_of(&messages), sent).await;
            }
        }
        Err(SessionError::Closed)
    }
}

/// Sends what is queued. An empty frame now and then lets the other end tell a stream that was paused from one that had nothing
/// to carry.
async fn transmit_bulk(outgoing: &mut Outgoing, frames: &impl Sink, clock: Clock) -> Result<(), SessionError> {
    let mut beat = tokio::time::interval(HEARTBEAT_EVERY);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let overflown = outgoing.overflown();
    tokio::pin!(overflown);
    loop {
        let load = tokio::select! {
            () = &mut overflown => return Err(SessionError::TooSlow),
            load = outgoing.next() => load.ok_or(SessionError::Closed)?,
            _ = beat.tick() => Load::Messages(Vec::new()),
        };
        let frame = v1::Frame { sent_us: clock.now().mono.0.max(1), ..load.into_frame() };
        let taken = tokio::select! {
            taken = frames.push(frame) => taken,
            () = &mut overflown => return Err(SessionError::TooSlow),
        };
        if !taken {
            return Err(SessionError::Closed);
        }
    }
}
