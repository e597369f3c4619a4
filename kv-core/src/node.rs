//! `Node::step`: the single entry point of the core. Core decides, shell acts.

use std::sync::Arc;

use bytes::Bytes;

use crate::config::Keyspace;
use crate::error::StorageError;
use crate::event::Event;
use crate::message::{Message, Outcome, Request};
use crate::ring::Layout;
use crate::storage::{Batch, Slice, SliceRequest, StorageKey};
use crate::types::{Incarnation, Monotonic, NodeId, Seq};

/// The shell's name for a client request, returned with the answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(pub u64);

/// Numbers the reads that the core asks of the shell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReadId(pub u64);

/// What happens to a node.
#[derive(Debug)]
pub enum Input {
    /// A client asks.
    Request {
        /// Names the answer.
        tag: Tag,
        /// What is asked.
        request: Request,
        /// When the client stops waiting; `None`: after the configured time.
        deadline: Option<Monotonic>,
    },
    /// A message of the current session with a peer.
    Message {
        /// The peer.
        from: NodeId,
        /// What it says.
        message: Message,
    },
    /// A session with a peer begins; its handshake was accepted.
    PeerUp {
        /// The peer.
        node: NodeId,
        /// Its store and boot.
        incarnation: Incarnation,
    },
    /// The failure detector gives a peer up. Its session is closed.
    PeerDown {
        /// The peer.
        node: NodeId,
    },
    /// An `Effect::Read` was carried out.
    ReadDone {
        /// Which read.
        read: ReadId,
        /// The encoded record.
        result: Result<Option<Bytes>, StorageError>,
    },
    /// An `Effect::Slice` was carried out.
    SliceDone {
        /// Which read.
        read: ReadId,
        /// The entries.
        result: Result<Slice, StorageError>,
    },
    /// Every batch up to and with this one is durable.
    Persisted {
        /// The last durable batch.
        seq: Seq,
    },
    /// A commit failed: the store is poisoned.
    PersistFailed {
        /// Why.
        error: StorageError,
    },
    /// The control plane has committed a layout. Older ones than the current are ignored.
    Layout(Arc<Layout>),
    /// The control plane has committed the keyspaces.
    Keyspaces(Vec<Keyspace>),
    /// The moment of the last `Effect::WakeAt` has come.
    Wake,
}

/// What the shell does for the core, in order.
#[derive(Debug)]
pub enum Effect {
    /// Send a message on the session with a peer; dropped if there is none.
    Send {
        /// The peer.
        to: NodeId,
        /// What to say.
        message: Message,
    },
    /// Answer a client.
    Reply {
        /// Which request.
        tag: Tag,
        /// The answer.
        outcome: Outcome,
    },
    /// Read one record; answered by `Input::ReadDone`.
    Read {
        /// Names the answer.
        read: ReadId,
        /// Which record.
        key: StorageKey,
    },
    /// Read a slice beside the loop; answered by `Input::SliceDone`.
    Slice {
        /// Names the answer.
        read: ReadId,
        /// Which range.
        request: SliceRequest,
    },
    /// Commit a batch behind all earlier ones; answered by `Input::Persisted`.
    Persist {
        /// Its position.
        seq: Seq,
        /// The writes.
        batch: Batch,
    },
    /// Give `Input::Wake` at this moment. A later effect of this kind replaces an earlier one.
    WakeAt(Monotonic),
    /// Something worth telling an operator.
    Event(Event),
}

/// The effects of one or more steps, in order.
pub type Effects = Vec<Effect>;
