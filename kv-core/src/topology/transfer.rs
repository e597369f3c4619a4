//! What a node says of the partitions that it copies and of those that it leaves.

use std::fmt;
use std::num::NonZeroU64;

use serde::{Deserialize, Serialize};

use crate::types::{Epoch, NodeId, PartitionId, StoreId};

/// How fast a node may copy. The running operation decides it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferSettings {
    /// Nothing new is asked for.
    pub paused: bool,
    /// The most bytes of keys and records that the node takes in each second, over all its copies; `None`: no limit.
    pub bytes_per_second_max: Option<NonZeroU64>,
    /// The most partitions that the node copies at once; at least 1.
    pub transfers_max: u16,
}

impl TransferSettings {
    /// Copies at once, where nothing else is set: enough to hide a round trip, few enough to end one after the other.
    pub const TRANSFERS_MAX: u16 = 4;
}

impl Default for TransferSettings {
    fn default() -> Self {
        Self { paused: false, bytes_per_second_max: None, transfers_max: Self::TRANSFERS_MAX }
    }
}

/// The proof that a receiver holds or dominates every version that its sources held when they were fenced (rule M1).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// The partition.
    pub partition: PartitionId,
    /// The joint epoch for which it was made; it counts for no other (rule E3).
    pub joint: Epoch,
    /// The receiver.
    pub node: NodeId,
    /// Its store. Another store of the same node has proved nothing.
    pub store: StoreId,
    /// By whom it is covered: at least as many as the entry demands.
    pub sources: Vec<SourceReceipt>,
    /// Live keys that the receiver holds.
    pub keys: u64,
    /// Bytes of keys and records that were copied.
    pub bytes: u64,
}

/// One source of a receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceReceipt {
    /// The old owner.
    pub node: NodeId,
    /// The root of its Merkle tree at the snapshot that was covered.
    pub root: u64,
}

/// A partition that a node copies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// The partition.
    pub partition: PartitionId,
    /// The joint epoch.
    pub joint: Epoch,
    /// Whom it copies from at present.
    pub source: Option<NodeId>,
    /// How far it is.
    pub phase: TransferPhase,
    /// Live keys copied.
    pub keys: u64,
    /// Live keys of the source when the copy began, at least `keys`; 0 while it is not known.
    pub keys_total: u64,
    /// Bytes of keys and records copied.
    pub bytes: u64,
    /// Bytes of the source when the copy began, at least `bytes`; 0 while it is not known.
    pub bytes_total: u64,
    /// How often it was begun, the first time included; 0 while it waits for its turn.
    pub tries: u32,
    /// Why it makes no progress at this moment; `None` while it does.
    pub waiting_for: Option<Wait>,
}

/// Why a transfer makes no progress at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Copying is paused.
    Paused,
    /// The limit on copying holds it back.
    Limited,
    /// Something else, in words.
    Other(String),
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Paused => "paused",
            Self::Limited => "the limit of bytes per second",
            Self::Other(reason) => reason,
        })
    }
}

/// How far a transfer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TransferPhase {
    /// It waits for its turn.
    Waiting,
    /// Records are copied in key order.
    Copying,
    /// What differs from a source is looked for and merged.
    Verifying,
    /// The receipt is durable.
    Covered,
}

/// What a node still holds of a partition that it does not own any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Residue {
    /// The partition.
    pub partition: PartitionId,
    /// Records left, tombstones included.
    pub records: u64,
    /// Bytes of their keys and encodings.
    pub bytes: u64,
    /// Why it does not shrink at this moment, in words; `None` while it does.
    pub waiting_for: Option<String>,
}
