//! What the parts of a node say to each other: the hub, which has what belongs to the node, and its loops, each of which has
//! a set of partitions. They share no memory; whatever one needs of another is one of these values, and values from one part
//! to another arrive in the order in which they were said.

use std::sync::Arc;

use crate::config::KeyspaceList;
use crate::error::StorageError;
use crate::message::{Message, Outcome, Purpose, Refusal, Request, ScanRequest, SliceAnswer, SliceQuery};
use crate::ring::Layout;
use crate::shell::{ClockState, ReadId, Tag};
use crate::storage::{PartitionStats, Slice};
use crate::throttle::Booking;
use crate::topology::TransferSettings;
use crate::types::{Epoch, Incarnation, Monotonic, NodeId, PartitionId, Point, Seq, StoreId};

/// What happens to a loop.
#[derive(Debug)]
pub(crate) enum LoopInput {
    /// A client asks.
    Request { tag: Tag, request: Request, deadline: Monotonic },
    /// A message of the current session with a peer.
    Message { from: NodeId, message: Message },
    /// A session with a peer was opened. It may not be used yet: what comes in it is kept.
    PeerOpened { node: NodeId, incarnation: Incarnation },
    /// A stream with an owner was opened of which one of both takes the other's store for an older copy: it may be asked for what
    /// it holds, and may ask.
    PeerDoubted { node: NodeId },
    /// Something has come from a peer that is not for this loop.
    Heard { from: NodeId },
    /// Nothing has come from a peer for longer than usual.
    PeerSilent { node: NodeId },
    /// The session with a peer has ended.
    PeerDown { node: NodeId },
    /// One record was read.
    ReadDone { read: ReadId, result: Result<Option<bytes::Bytes>, StorageError> },
    /// A slice was read.
    SliceDone { read: ReadId, result: Result<Slice, StorageError> },
    /// The statistics of a partition were read.
    LeavesDone { read: ReadId, result: Result<PartitionStats, StorageError> },
    /// Every batch of this loop up to and with this one is durable.
    Persisted { seq: Seq },
    /// A commit failed.
    PersistFailed { reason: String },
    /// Copies of these partitions that wait are to begin again.
    Retry(Vec<PartitionId>),
    /// These partitions are to be compared with their other owners.
    Repair(Vec<PartitionId>),
    /// The control plane has a list of keyspaces. What exists by it can be used by every later request, so it does not come by
    /// way of the hub.
    Keyspaces(KeyspaceList),
    /// The hub has something to say.
    Told(Tell),
    /// A timer may be due.
    Wake,
}

/// What the hub tells loops.
#[derive(Clone, Debug)]
pub(crate) enum Tell {
    /// The control plane has committed a layout. It is not durable yet.
    Given(Arc<Layout>),
    /// A layout is durable: act on it. `original`: the store, if it was there when the cluster was formed.
    Layout { layout: Arc<Layout>, original: Option<StoreId> },
    /// A list of keyspaces is durable: what is stored of dropped ones may go.
    KeyspacesDurable(KeyspaceList),
    /// A peer's incarnation is durably known: its session may be used.
    PeerUp { node: NodeId, incarnation: Incarnation },
    /// How fast partitions may be copied from now on.
    Transfers(TransferSettings),
    /// How the node's clock compares with those of the members.
    Clock(ClockState),
    /// A partition may be filled now.
    Turn { partition: PartitionId, purpose: Purpose },
    /// So many bytes may be moved as were asked for.
    Booked { by: Mover, booking: Booking },
    /// The storage engine has given back the space of what had been removed when it was told.
    Reclaimed,
    /// A part of a slice for another node is wanted.
    Slice { job: u64, query: SliceQuery },
    /// A part of a client's scan is wanted.
    Scan { tag: Tag, request: ScanRequest, deadline: Monotonic },
}

/// Who wants to move bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mover {
    /// An exchange, by its question.
    Exchange(ExchangeId),
    /// The deletion of what was left of a partition.
    Drop(PartitionId),
}

/// Numbers the exchanges of one loop in one incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ExchangeId(pub(crate) u64);

/// What a loop asks of the hub, or tells it.
#[derive(Debug)]
pub(crate) enum Ask {
    /// The loop acts on a layout.
    Adopted { epoch: Epoch },
    /// A partition is to be filled as soon as it may be: `Tell::Turn`.
    WantTurn { partition: PartitionId, purpose: Purpose },
    /// It is filled, waits for something else, or needs no filling any more.
    EndTurn { partition: PartitionId, purpose: Purpose },
    /// So many bytes are to be moved: `Tell::Booked`.
    Book { by: Mover, bytes: u64 },
    /// What was booked has moved so many bytes.
    Settle { booking: Booking, bytes: u64 },
    /// So many bytes were moved that were not booked.
    Moved { bytes: u64 },
    /// Records of dropped keyspaces are gone, and the storage engine may still keep so many bytes of them.
    Removed { bytes: u64 },
    /// A part of a slice for another node.
    Slice { job: u64, result: Result<SliceAnswer, Refusal> },
    /// A part of a client's scan.
    Page { tag: Tag, outcome: Outcome },
}

/// What happens to the hub.
#[derive(Debug)]
pub(crate) enum HubInput {
    /// The control plane has committed a layout.
    Layout(Arc<Layout>),
    /// The control plane, or a peer, has a list of keyspaces.
    Keyspaces(KeyspaceList),
    /// How fast partitions may be copied from now on.
    Transfers(TransferSettings),
    /// A session with a peer was opened.
    PeerOpened { node: NodeId, shown: Point },
    /// How far the stores of peers are, as they have said since the last time, and how far this node's is.
    Shown { peers: Vec<(NodeId, Point)>, shows: u64 },
    /// The session with a peer has ended.
    PeerDown { node: NodeId },
    /// A message of a peer that is for the node as a whole.
    Message { from: NodeId, message: Message },
    /// A client scans.
    Scan { tag: Tag, request: ScanRequest, deadline: Monotonic },
    /// The storage engine has given space back.
    Reclaimed,
    /// Every batch of the hub up to and with this one is durable.
    Persisted { seq: Seq },
    /// A commit failed.
    PersistFailed,
    /// A loop asks.
    Asked { index: u16, ask: Ask },
    /// A timer may be due.
    Wake,
}
