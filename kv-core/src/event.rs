//! What a node tells its operators.

use std::fmt;

use crate::message::HinderedBy;
use crate::types::{Epoch, Incarnation, NodeId, PartitionId};

/// Something worth telling an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A session with a peer began.
    PeerUp {
        /// The peer.
        node: NodeId,
        /// Its store and boot.
        incarnation: Incarnation,
    },
    /// A peer was given up.
    PeerDown {
        /// The peer.
        node: NodeId,
    },
    /// A peer came back with another store: what the old one held is gone.
    PeerStoreReplaced {
        /// The peer.
        node: NodeId,
    },
    /// The node acts on a newer layout.
    LayoutAdopted {
        /// Its number.
        epoch: Epoch,
    },
    /// The store lost this partition and copies it back from the other owners.
    RefillStarted {
        /// The partition.
        partition: PartitionId,
    },
    /// The partition holds again all that its other owners held.
    RefillDone {
        /// The partition.
        partition: PartitionId,
        /// Records received.
        records: u64,
    },
    /// The partition migrates to this node, which begins to copy it.
    CopyStarted {
        /// The partition.
        partition: PartitionId,
    },
    /// A copy that waited begins again, because an operator wants it to.
    CopyRetried {
        /// The partition.
        partition: PartitionId,
        /// What it waited for.
        why: String,
    },
    /// The partition holds all that its sources held when they were fenced; the receipt is durable.
    CopyDone {
        /// The partition.
        partition: PartitionId,
        /// How many sources cover it.
        sources: usize,
        /// Live keys held.
        keys: u64,
    },
    /// What was left of a partition is held by every current owner and was deleted here.
    ResidueDropped {
        /// The partition.
        partition: PartitionId,
        /// Records deleted.
        records: u64,
    },
    /// Two owners compared a partition and gave each other what they lacked.
    Repaired {
        /// The partition.
        partition: PartitionId,
        /// The other owner.
        peer: NodeId,
        /// Records fetched and offered.
        records: u64,
    },
    /// Copies that a member may have left unequal, by dying during a write or by a change of owners, were compared.
    Compared {
        /// Comparisons of this node's copy of a partition with another owner's.
        comparisons: u64,
        /// Records fetched and offered.
        records: u64,
    },
    /// Hints or missed-write markers for a partition were delivered to all of its owners.
    HandedOff {
        /// How many.
        records: u64,
    },
    /// A read found replicas that differed, and sent them what they lacked.
    ReadRepaired {
        /// The partition.
        partition: PartitionId,
        /// How many replicas.
        replicas: usize,
    },
    /// Expired keys left the counts.
    Swept {
        /// How many.
        records: u64,
    },
    /// Tombstones that have settled on every owner were removed here.
    Collected {
        /// Records that were deleted, or that lost a tombstone beside a value.
        records: u64,
    },
    /// A member holds up the collection of tombstones.
    SettlingHindered {
        /// The member.
        node: NodeId,
        /// By what.
        by: HinderedBy,
    },
    /// An old copy held values that were deleted elsewhere meanwhile. They do not come back, and are kept aside.
    SetAside {
        /// How many.
        values: u64,
        /// How many are kept in all.
        kept: u64,
    },
    /// The node's clock is further from those of most members than is allowed.
    ClockOff {
        /// By how many microseconds it is ahead of them; negative: behind.
        ahead_us: i64,
    },
    /// The node's clock is near those of most members again, or too few of them say that it is not.
    ClockRight,
    /// What was stored of dropped keyspaces was removed.
    KeyspacesRemoved {
        /// Records, hints and missed-write markers.
        records: u64,
        /// Their bytes.
        bytes: u64,
    },
    /// A stored record cannot be read; it is treated as not held, and the other replicas refill it.
    Damaged {
        /// What the check says.
        reason: String,
    },
    /// The store failed; the node has stopped serving.
    Poisoned {
        /// Why.
        reason: String,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PeerUp { node, incarnation } => write!(f, "{node} is up, store {incarnation}"),
            Self::PeerDown { node } => write!(f, "{node} is down"),
            Self::PeerStoreReplaced { node } => write!(f, "{node} came back with another store and is being refilled"),
            Self::LayoutAdopted { epoch } => write!(f, "layout {epoch} adopted"),
            Self::RefillStarted { partition } => write!(f, "refilling {partition} from its other owners"),
            Self::RefillDone { partition, records } => write!(f, "{partition} refilled with {records} records"),
            Self::CopyStarted { partition } => write!(f, "copying {partition}, which migrates to this node"),
            Self::CopyRetried { partition, why } => write!(f, "copying {partition} begins again; it waited: {why}"),
            Self::CopyDone { partition, sources, keys } => {
                write!(f, "{partition} is covered by {sources} old owners and holds {keys} keys")
            }
            Self::ResidueDropped { partition, records } => {
                write!(f, "{records} records of {partition}, which migrated away, dropped: every owner has them")
            }
            Self::Repaired { partition, peer, records } => {
                write!(f, "comparing {partition} with {peer} restored {records} records")
            }
            Self::Compared { comparisons, records } => {
                write!(f, "{comparisons} comparisons with other owners restored {records} records")
            }
            Self::HandedOff { records } => write!(f, "{records} hinted records handed off"),
            Self::ReadRepaired { partition, replicas } => {
                write!(f, "a read repaired {replicas} replicas of {partition}")
            }
            Self::Swept { records } => write!(f, "{records} expired keys swept"),
            Self::Collected { records } => write!(f, "{records} tombstones collected: every owner has settled"),
            Self::SettlingHindered { node, by } => write!(f, "tombstones are not collected: {node} {by}"),
            Self::SetAside { values, kept } => write!(
                f,
                "{values} values of an old copy were deleted elsewhere meanwhile: they are set aside ({kept} in all), and `kv-node \
                 recover --set-aside` prints them while the node is stopped"
            ),
            Self::ClockOff { ahead_us } => {
                let by = ahead(*ahead_us);
                write!(
                    f,
                    "the clock of this node is {by} those of most members: it coordinates no write with a time to live, and \
                     none where the last writer wins; set the clock (for instance with NTP)"
                )
            }
            Self::ClockRight => f.write_str("the clock of this node is not off any more"),
            Self::KeyspacesRemoved { records, bytes } => {
                write!(f, "{records} records of dropped keyspaces removed, {bytes} bytes")
            }
            Self::Damaged { reason } => write!(f, "damaged record: {reason}"),
            Self::Poisoned { reason } => write!(f, "the store failed, serving stopped: {reason}"),
        }
    }
}

/// By how much a clock is ahead of others, or behind them, for people.
pub(crate) fn ahead(ahead_us: i64) -> String {
    let side = if ahead_us < 0 { "behind" } else { "ahead of" };
    format!("{} ms {side}", ahead_us.unsigned_abs() / 1000)
}
