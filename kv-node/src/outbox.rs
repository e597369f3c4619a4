//! What is queued for a peer. It is pulled: the stream takes what has gathered while it was busy, as one frame.
//!
//! There are two queues, each for a stream with a connection of its own. What is bulk goes by the second one, and so does every
//! large message: a small one never waits behind a megabyte that the connection, or the peer, has not taken yet. The core copes
//! with any order between the two.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use kv_core::error::RequestError;
use kv_core::message::{Message, Refusal};
use kv_proto::limits::{
    FRAME_BYTES_TARGET, FRAME_OPERATIONS_MAX, MESSAGE_BYTES_MAX, PEER_MESSAGE_BYTES_MAX, PIECE_BYTES,
};
use kv_proto::v1;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};

/// Bytes that may be queued for a peer. One that takes less than it is sent loses its session, and comes back.
const QUEUED_BYTES_MAX: usize = 64 * 1024 * 1024;

/// While more than this is queued, answers that carry records are replaced by the word that this node is busy. Records that
/// the core sends on its own are bounded by it (`peer_bytes_max`), so neither ends the session of a peer that reads.
const ANSWERED_BYTES_MAX: usize = 56 * 1024 * 1024;

/// A message from this size on goes by the bulk stream. Below, a frame of many of them is no larger than of any others.
pub(crate) const LARGE_BYTES: usize = 16 * 1024;

/// A longer message travels in pieces, each in a frame of its own. The room left of a message of the stream is what a frame adds.
const WHOLE_BYTES_MAX: usize = MESSAGE_BYTES_MAX - 16 * 1024;

/// The sending end of a session. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Outbox {
    requests: Queue,
    /// The queue of the bulk stream, while there is one.
    bulk: Arc<Mutex<Option<Queue>>>,
}

/// One queue, taken by one stream.
#[derive(Clone, Debug)]
struct Queue {
    messages: mpsc::UnboundedSender<Bytes>,
    shared: Arc<Shared>,
}

/// The end from which the stream is fed.
#[derive(Debug)]
pub(crate) struct Outgoing {
    queue: mpsc::UnboundedReceiver<Bytes>,
    shared: Arc<Shared>,
    /// Taken from the queue, but too much for the last frame.
    left: Option<Bytes>,
    /// What has still to be sent of a message that travels in pieces. Nothing overtakes it.
    pieces: Option<Bytes>,
}

/// What the next frame carries.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Load {
    /// Whole messages, in order.
    Messages(Vec<Bytes>),
    /// A piece of a message, and how much of it follows.
    Piece(Bytes, usize),
}

impl Load {
    /// The frame; who sends it adds when.
    pub(crate) fn into_frame(self) -> v1::Frame {
        match self {
            Self::Messages(messages) => v1::Frame { messages, ..v1::Frame::default() },
            Self::Piece(piece, left) => v1::Frame { piece, piece_left: left as u64, ..v1::Frame::default() },
        }
    }
}

#[derive(Debug, Default)]
struct Shared {
    bytes: AtomicUsize,
    overflown: AtomicBool,
    overflow: Notify,
}

pub(crate) fn outbox() -> (Outbox, Outgoing) {
    let (requests, outgoing) = queue();
    (Outbox { requests, bulk: Arc::default() }, outgoing)
}

fn queue() -> (Queue, Outgoing) {
    let (messages, queue) = mpsc::unbounded_channel();
    let shared = Arc::new(Shared::default());
    (Queue { messages, shared: Arc::clone(&shared) }, Outgoing { queue, shared, left: None, pieces: None })
}

impl Outbox {
    /// Queues a message. A session that has ended, or whose queue is full, drops it; its calls fail with the session.
    /// Bulk and what is large goes by its own stream while there is one.
    pub(crate) fn push(&self, message: &Message) {
        let bytes = Bytes::from(message.encode());
        let is_bulk = message.is_bulk() || bytes.len() >= LARGE_BYTES;
        let bulk = if is_bulk { self.bulk.lock().clone() } else { None };
        bulk.as_ref().unwrap_or(&self.requests).push(message, bytes);
    }

    /// A queue for a bulk stream, which takes the place of an earlier one.
    pub(crate) fn attach_bulk(&self) -> Outgoing {
        let (queue, outgoing) = queue();
        *self.bulk.lock() = Some(queue);
        outgoing
    }

    /// The bulk stream fed by `outgoing` has ended: bulk goes by the session's stream until there is another.
    pub(crate) fn detach_bulk(&self, shared: &BulkId) {
        let mut bulk = self.bulk.lock();
        if bulk.as_ref().is_some_and(|queue| Arc::ptr_eq(&queue.shared, &shared.0)) {
            *bulk = None;
        }
    }

    /// Bytes that wait.
    #[must_use]
    pub(crate) fn queued_bytes(&self) -> usize {
        let bulk = self.bulk.lock().as_ref().map_or(0, Queue::bytes);
        self.requests.bytes() + bulk
    }
}

/// Tells one bulk stream from another.
#[derive(Debug)]
pub(crate) struct BulkId(Arc<Shared>);

impl Queue {
    /// Queues a message that is encoded in these bytes.
    fn push(&self, message: &Message, mut bytes: Bytes) {
        if self.shared.overflown.load(Ordering::Relaxed) {
            return;
        }
        let has_room = self.bytes() + bytes.len() <= ANSWERED_BYTES_MAX;
        let is_too_large = bytes.len() > PEER_MESSAGE_BYTES_MAX;
        if (!has_room || is_too_large)
            && let Some(refusal) = message.refused(refusal(bytes.len(), has_room))
        {
            bytes = Bytes::from(refusal.encode());
        }
        if bytes.len() > PEER_MESSAGE_BYTES_MAX {
            // It would end the session at the other side, and again each time that it is repeated. A record gets that
            // large only if two dozen nodes, cut off from each other, take large values for one key.
            tracing::error!(
                bytes = bytes.len(),
                limit = PEER_MESSAGE_BYTES_MAX,
                "a message to a peer is too large and is not sent; read the keys with many concurrent values and put \
                 them with their contexts"
            );
            return;
        }
        let queued = self.shared.bytes.fetch_add(bytes.len(), Ordering::Relaxed) + bytes.len();
        if queued > QUEUED_BYTES_MAX {
            self.shared.overflown.store(true, Ordering::Relaxed);
            self.shared.overflow.notify_one();
            return;
        }
        drop(self.messages.send(bytes));
    }

    fn bytes(&self) -> usize {
        self.shared.bytes.load(Ordering::Relaxed)
    }
}

/// Why an answer to a peer is not sent.
fn refusal(bytes: usize, has_room: bool) -> Refusal {
    if has_room {
        let limit = PEER_MESSAGE_BYTES_MAX;
        return Refusal::Failed(RequestError::exhausted(format!(
            "the answer has {bytes} bytes, the limit between nodes is {limit}; put keys with many concurrent values with \
             their contexts"
        )));
    }
    Refusal::Busy(RequestError::exhausted(format!(
        "{ANSWERED_BYTES_MAX} bytes of answers wait for the node that asks; nothing was done, slow down and try again"
    )))
}

impl Outgoing {
    /// What distinguishes the queue from others.
    pub(crate) fn id(&self) -> BulkId {
        BulkId(Arc::clone(&self.shared))
    }

    /// What the next frame carries: waits for a message, then takes what else has gathered.
    pub(crate) async fn next(&mut self) -> Option<Load> {
        if self.pieces.is_some() {
            return self.piece();
        }
        if self.left.is_none() {
            self.left = Some(self.queue.recv().await?);
            // Its sender may be about to queue more. A caller that gives up here finds the message in its place.
            tokio::task::yield_now().await;
        }
        let first = self.left.take()?;
        if first.len() > WHOLE_BYTES_MAX {
            self.pieces = Some(first);
            return self.piece();
        }
        let mut bytes = first.len();
        let mut messages = vec![first];
        while messages.len() < FRAME_OPERATIONS_MAX
            && let Ok(next) = self.queue.try_recv()
        {
            if bytes + next.len() > FRAME_BYTES_TARGET {
                self.left = Some(next);
                break;
            }
            bytes += next.len();
            messages.push(next);
        }
        self.shared.bytes.fetch_sub(bytes, Ordering::Relaxed);
        Some(Load::Messages(messages))
    }

    fn piece(&mut self) -> Option<Load> {
        let mut rest = self.pieces.take()?;
        let piece = rest.split_to(rest.len().min(PIECE_BYTES));
        self.shared.bytes.fetch_sub(piece.len(), Ordering::Relaxed);
        let left = rest.len();
        self.pieces = (left > 0).then_some(rest);
        Some(Load::Piece(piece, left))
    }

    /// Ends when the peer has taken too little for too long.
    pub(crate) fn overflown(&self) -> impl Future<Output = ()> + Send + 'static {
        let shared = Arc::clone(&self.shared);
        async move { shared.overflow.notified().await }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::Assembly;
    use kv_core::message::{CallId, ReadReply, Role};
    use kv_core::types::{Epoch, KeyspaceId, RequestId, StoreId};
    use kv_core::version::{Actor, Conflict, ContextToken, Hlc, Record, Replaces, Write};

    /// The messages of the next frame.
    async fn next(outgoing: &mut Outgoing) -> Vec<Bytes> {
        match outgoing.next().await.unwrap() {
            Load::Messages(messages) => messages,
            piece @ Load::Piece(..) => panic!("{piece:?}"),
        }
    }

    fn message(call: u64) -> Message {
        Message::Replicated { call: CallId(call), result: Err(Refusal::NotSynced), commit: 0 }
    }

    #[tokio::test]
    async fn what_has_gathered_leaves_in_one_frame_and_in_order() {
        let (outbox, mut outgoing) = outbox();
        for call in 0..FRAME_OPERATIONS_MAX as u64 + 10 {
            outbox.push(&message(call));
        }
        let first = next(&mut outgoing).await;
        assert_eq!(first.len(), FRAME_OPERATIONS_MAX);
        assert_eq!(Message::decode(&first[3]), Ok(message(3)));
        assert_eq!(next(&mut outgoing).await.len(), 10);
        assert_eq!(outbox.queued_bytes(), 0);
        drop(outbox);
        assert_eq!(outgoing.next().await, None);
    }

    #[tokio::test]
    async fn a_queue_that_is_never_taken_overflows_at_its_bound() {
        let (outbox, outgoing) = outbox();
        let each = message(0).encode().len();
        for call in 0..(QUEUED_BYTES_MAX / each + 2) as u64 {
            outbox.push(&message(call % 100));
        }
        outgoing.overflown().await;
        let queued = outbox.queued_bytes();
        outbox.push(&message(1));
        assert_eq!(outbox.queued_bytes(), queued, "nothing more is taken");
    }

    #[tokio::test]
    async fn answers_to_a_peer_that_takes_nothing_do_not_break_its_session() {
        let (outbox, mut outgoing) = outbox();
        let record = record(1024 * 1024);
        let settled = Hlc::default();
        let answer = |call| Message::ReadResult {
            call: CallId(call),
            result: Ok(ReadReply::Full(Some(record.clone().into()))),
            settled,
        };
        for call in 0..200 {
            outbox.push(&answer(call));
        }
        assert!(outbox.queued_bytes() <= ANSWERED_BYTES_MAX + 200 * 1024, "{}", outbox.queued_bytes());
        let mut busy = 0;
        let mut taken = 0;
        while taken < 200 {
            let messages = next(&mut outgoing).await;
            taken += messages.len();
            let is_busy = |message: &Bytes| {
                matches!(Message::decode(message), Ok(Message::ReadResult { result: Err(Refusal::Busy(_)), .. }))
            };
            busy += messages.iter().filter(|message| is_busy(message)).count();
        }
        assert!(busy > 100, "{busy}");
        outbox.push(&answer(200));
        assert_eq!(Message::decode(&next(&mut outgoing).await[0]), Ok(answer(200)), "and so it goes on");
    }

    fn record(bytes: usize) -> Record {
        let actor = Actor { store: StoreId(1), boot: 1, nonce: 1, instance: 1 };
        let write = Write {
            written: Hlc::default(),
            request: RequestId::default(),
            expires: None,
            value: Some(Bytes::from(vec![7; bytes])),
        };
        let mut record = Record::default();
        record.write(actor, Replaces::Shown(&ContextToken::default()), Conflict::Siblings, write);
        record
    }

    #[tokio::test]
    async fn bulk_goes_by_its_own_stream_while_there_is_one() {
        let (outbox, mut requests) = outbox();
        let bulk = Message::ExchangeResult { call: CallId(1), result: Err(Refusal::NotSynced), commit: 0 };
        assert!(bulk.is_bulk() && !message(1).is_bulk());
        outbox.push(&bulk);
        assert_eq!(next(&mut requests).await.len(), 1, "before there is one");
        let mut stream = outbox.attach_bulk();
        outbox.push(&message(1));
        outbox.push(&bulk);
        assert_eq!(Message::decode(&next(&mut stream).await[0]), Ok(bulk.clone()));
        assert_eq!(Message::decode(&next(&mut requests).await[0]), Ok(message(1)));
        let newer = outbox.attach_bulk();
        outbox.detach_bulk(&stream.id());
        outbox.push(&bulk);
        assert!(outbox.queued_bytes() > 0, "an older stream that ends takes nothing from the newer one");
        outbox.detach_bulk(&newer.id());
        outbox.push(&bulk);
        assert_eq!(next(&mut requests).await.len(), 1);
    }

    #[tokio::test]
    async fn what_no_frame_carries_leaves_in_pieces_and_nothing_overtakes_it() {
        let (outbox, mut outgoing) = outbox();
        let bytes = MESSAGE_BYTES_MAX + 1000;
        let result = Ok(ReadReply::Full(Some(record(bytes).into())));
        let large = Message::ReadResult { call: CallId(1), result, settled: Hlc::default() };
        outbox.push(&large);
        outbox.push(&message(2));
        let mut assembly = Assembly::default();
        let mut frames = 0;
        let whole = loop {
            let frame = outgoing.next().await.unwrap().into_frame();
            assert!(frame.messages.is_empty() && frame.piece.len() <= PIECE_BYTES);
            frames += 1;
            if let Some(whole) = assembly.add(&frame.piece, frame.piece_left).unwrap() {
                break whole;
            }
        };
        assert_eq!((frames, Message::decode(&whole)), (9, Ok(large)));
        assert_eq!(Message::decode(&next(&mut outgoing).await[0]), Ok(message(2)));
        assert_eq!(outbox.queued_bytes(), 0);
        // What nobody sends is refused: the end of a message that never began, more than was announced, too much.
        assert!(assembly.add(&[0; 10], u64::MAX).is_err());
        assert!(assembly.add(&[0; 10], PEER_MESSAGE_BYTES_MAX as u64).is_err());
        assert_eq!(assembly.add(&[0; 10], 10), Ok(None));
        assert!(assembly.add(&[0; 10], 10).is_err());
        assert!(assembly.add(&[], 0).is_err());
    }

    #[tokio::test]
    async fn a_record_that_nothing_carries_is_answered_with_a_refusal() {
        let (outbox, mut outgoing) = outbox();
        let result = Ok(ReadReply::Full(Some(record(PEER_MESSAGE_BYTES_MAX).into())));
        outbox.push(&Message::ReadResult { call: CallId(1), result, settled: Hlc::default() });
        let refused = Message::decode(&next(&mut outgoing).await[0]);
        assert!(matches!(refused, Ok(Message::ReadResult { result: Err(Refusal::Failed(_)), .. })), "{refused:?}");
    }

    #[tokio::test]
    async fn a_small_message_never_waits_behind_large_ones() {
        let (outbox, mut requests) = outbox();
        let mut bulk = outbox.attach_bulk();
        let large = |call| {
            let (epoch, role, keyspace) = (Epoch(1), Role::Owner, KeyspaceId(0));
            let (key, record) = (Bytes::from_static(b"k"), record(LARGE_BYTES));
            Message::Replicate { call: CallId(call), epoch, role, keyspace, key, cell: record.into() }
        };
        for call in 0..16 {
            outbox.push(&large(call));
        }
        outbox.push(&message(16));
        let first = next(&mut requests).await;
        assert_eq!(first.iter().map(|bytes| Message::decode(bytes)).collect::<Vec<_>>(), [Ok(message(16))]);
        assert_eq!(Message::decode(&next(&mut bulk).await[0]), Ok(large(0)));
    }
}
