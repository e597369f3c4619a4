//! What passes between the core and its shell: what happens, what the shell must do about it, and what the core is busy with.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use crate::config::KeyspaceList;
use crate::error::StorageError;
use crate::event::Event;
use crate::message::{HinderedBy, Message, Outcome, Request};
use crate::ring::Layout;
use crate::storage::{Batch, PartitionStats, Slice, SliceRequest, StorageKey};
use crate::topology::TransferSettings;
use crate::types::{Epoch, Incarnation, Monotonic, NodeId, PartitionId, Seq, WallTime};

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
        /// How far it said that its store is.
        commit: u64,
    },
    /// A stream with a member begins of which one of both takes the other's store for an older copy (rule D2). It is no
    /// session: nothing is confirmed on it, and neither counts the other. What both hold may be asked for and given.
    PeerDoubted {
        /// The peer.
        node: NodeId,
    },
    /// Something has come from a peer that is not for the core, such as a heartbeat.
    Heard {
        /// The peer.
        from: NodeId,
    },
    /// The failure detector has heard nothing of a peer for longer than usual. Its session stays open.
    PeerSilent {
        /// The peer.
        node: NodeId,
    },
    /// The failure detector gives a peer up. Its session is closed, or such a stream.
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
    /// An `Effect::Leaves` was carried out.
    LeavesDone {
        /// Which read.
        read: ReadId,
        /// The statistics of the partition as of the last commit or later; the default if it has no entries.
        result: Result<PartitionStats, StorageError>,
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
    /// The control plane has committed the keyspaces. Older lists than the current one are ignored.
    Keyspaces(KeyspaceList),
    /// An `Effect::Reclaim` was carried out, as far as possible.
    Reclaimed,
    /// How fast partitions may be copied from now on. Until the first, the defaults hold.
    Transfers(TransferSettings),
    /// An operator wants the copies of these partitions that wait for a source to begin again.
    Retry(Vec<PartitionId>),
    /// An operator wants these partitions compared with their other owners now, as far as this node holds all of them.
    Repair(Vec<PartitionId>),
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
    /// Read the statistics of a partition, as of the last commit or later; answered by `Input::LeavesDone`.
    Leaves {
        /// Names the answer.
        read: ReadId,
        /// The partition.
        partition: PartitionId,
    },
    /// Commit a batch behind all earlier ones; answered by `Input::Persisted`.
    Persist {
        /// Its position.
        seq: Seq,
        /// The writes.
        batch: Batch,
    },
    /// So many bytes of records were deleted at once: have the storage engine give their space back to the device, beside
    /// the loop; answered by `Input::Reclaimed`.
    Reclaim {
        /// The bytes.
        bytes: u64,
    },
    /// Give `Input::Wake` at this moment. A later effect of this kind replaces an earlier one.
    WakeAt(Monotonic),
    /// Something worth telling an operator.
    Event(Event),
}

/// The effects of one or more steps, in order.
pub type Effects = Vec<Effect>;

/// How the wall clock of a node compares with those of the members (rule A8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClockState {
    /// Too few members have said what their clocks show, or these differ so much that more than half agree with nobody.
    #[default]
    Unknown,
    /// It is within `clock_skew_max` of the clocks of more than half of the members, its own counted.
    Right,
    /// It is further than that from the clocks of more than half of the members, all of them on one side.
    Off {
        /// By how many microseconds it is ahead of the one in the middle; negative: behind.
        ahead_us: i64,
    },
}

impl ClockState {
    /// Whether the node's clock must decide nothing.
    #[must_use]
    pub fn is_off(self) -> bool {
        matches!(self, Self::Off { .. })
    }

    /// The time by the clocks of the members, when the node's shows `wall`.
    #[must_use]
    pub fn corrected(self, wall: WallTime) -> WallTime {
        match self {
            Self::Off { ahead_us } => WallTime(wall.0.saturating_add_signed(ahead_us.saturating_neg())),
            Self::Unknown | Self::Right => wall,
        }
    }
}

/// What a node is busy with: zeros mean that nothing waits to be settled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The epoch of the layout on which the node acts; 0 before the first.
    pub epoch: Epoch,
    /// Requests without an answer.
    pub requests: usize,
    /// Bytes of keys and values of the writes among them.
    pub request_bytes: usize,
    /// Bytes that replicas have answered to the reads among them.
    pub answer_bytes: usize,
    /// Bytes of records that a peer has been sent and has not answered; those of the peer with most.
    pub peer_bytes: usize,
    /// Writes that some replica has not confirmed.
    pub replications: usize,
    /// Records held for owners that were down.
    pub hints: u64,
    /// Bytes of these.
    pub hint_bytes: u64,
    /// Keys of owned records that some other owner has not confirmed.
    pub missed_writes: u64,
    /// Owned partitions that are not complete: the store was lost and they are being refilled.
    pub unsynced: Vec<PartitionId>,
    /// Partitions that migrate to this node and are not covered yet.
    pub receiving: usize,
    /// Partitions that this node has left and may still hold records of.
    pub leaving: usize,
    /// Comparisons with other owners that were requested by an operator, or are pending since copies may have become unequal, and are
    /// not done. Those with owners that are down are left out.
    pub repairing: usize,
    /// What became of comparisons requested by an operator.
    pub repairs: RepairStats,
    /// Partitions that may hold records of dropped keyspaces, which are being removed.
    pub dropping: usize,
    /// Tombstones that wait to settle on all owners.
    pub settling: SettleStatus,
    /// Whether the storage engine gives back the space of what was removed.
    pub reclaiming: bool,
    /// How the node's clock compares with those of the members.
    pub clock: ClockState,
    /// By how many microseconds the clocks of other members are ahead of the node's, as far as that is known.
    pub clocks: BTreeMap<NodeId, i64>,
    /// Batches that are not durable.
    pub unsynced_batches: u64,
    /// Keys with work in progress.
    pub keys_busy: usize,
    /// Whether the store failed.
    pub poisoned: bool,
}

impl Status {
    /// Adds what another part of the node is busy with. The epoch stays.
    pub(crate) fn add(&mut self, other: Self) {
        let Self {
            epoch: _,
            requests,
            request_bytes,
            answer_bytes,
            peer_bytes,
            replications,
            hints,
            hint_bytes,
            missed_writes,
            unsynced,
            receiving,
            leaving,
            repairing,
            repairs,
            dropping,
            settling,
            reclaiming,
            // These belong to the node as a whole.
            clock: _,
            clocks: _,
            unsynced_batches,
            keys_busy,
            poisoned,
        } = other;
        self.requests += requests;
        self.request_bytes += request_bytes;
        self.answer_bytes += answer_bytes;
        self.peer_bytes += peer_bytes;
        self.replications += replications;
        self.hints += hints;
        self.hint_bytes += hint_bytes;
        self.missed_writes += missed_writes;
        self.unsynced.extend(unsynced);
        self.unsynced.sort_unstable();
        self.receiving += receiving;
        self.leaving += leaving;
        self.repairing += repairing;
        self.repairs.add(repairs);
        self.dropping += dropping;
        self.settling.add(settling);
        self.reclaiming |= reclaiming;
        self.unsynced_batches += unsynced_batches;
        self.keys_busy += keys_busy;
        self.poisoned |= poisoned;
    }
}

/// What became of the comparisons that were requested by an operator, since the node started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RepairStats {
    /// Comparisons asked for; those that are neither done nor failed are still to come.
    pub asked: u64,
    /// Comparisons that came to their end.
    pub done: u64,
    /// Comparisons that did not: the other owner refused or went down, or the layout changed.
    pub failed: u64,
    /// Records that they fetched and offered.
    pub records: u64,
}

impl RepairStats {
    fn add(&mut self, other: Self) {
        self.asked += other.asked;
        self.done += other.done;
        self.failed += other.failed;
        self.records += other.records;
    }
}

/// What waits to settle (rule A6), for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SettleStatus {
    /// Partitions with tombstones that are old enough, and those that settle or are being collected.
    pub due: usize,
    /// When the oldest tombstone was written that is not collected.
    pub oldest: Option<WallTime>,
    /// The lowest watermark of the partitions with tombstones that are old enough; 0 if one has never settled. `None`: there are none.
    pub watermark: Option<WallTime>,
    /// The member that holds up the watermark, and by what.
    pub hindered: Option<(NodeId, HinderedBy)>,
    /// Tombstones, and what kept their context, that were collected since the node started.
    pub collected: u64,
    /// Values of old copies that were deleted elsewhere, and are set aside.
    pub set_aside: u64,
}

impl SettleStatus {
    pub(crate) fn add(&mut self, other: Self) {
        let Self { due, oldest, watermark, hindered, collected, set_aside } = other;
        self.set_aside += set_aside;
        let lower = |one: Option<WallTime>, other: Option<WallTime>| one.into_iter().chain(other).min();
        self.due += due;
        self.oldest = lower(self.oldest, oldest);
        self.watermark = lower(self.watermark, watermark);
        self.hindered = self.hindered.take().or(hindered);
        self.collected += collected;
    }
}
