//! Operations: plans that are carried out, and what is remembered of those that have ended.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::num::NonZeroU64;

use kv_core::ring::Layout;
use kv_core::topology::operation::Target;
use kv_core::topology::preview::undo;
use kv_core::topology::{Change, Move, Plan, PlanHash, Receipt, TransferSettings};
use kv_core::types::{Epoch, NodeId, PartitionId, WallTime};
use serde::{Deserialize, Serialize};

/// Numbers operations from 1; never used again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OperationId(pub u64);

impl fmt::Display for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Operations that are kept, the running one included. The oldest makes room.
pub(super) const OPERATIONS_MAX: usize = 64;

/// Moves and receipts that all ended operations together keep in detail; beyond that the oldest keep their numbers only.
pub(super) const DETAILS_MAX: usize = 16_384;

/// The longest text that says who asked, in bytes.
pub(super) const BY_BYTES_MAX: usize = kv_proto::limits::BY_BYTES_MAX;

/// The most receipts in one command.
pub(in crate::control) const RECEIPTS_MAX: usize = 4096;

/// The most partitions that one retry names.
pub(super) const RETRY_MAX: usize = 4096;

/// The bytes per second that a throttle may allow: slower is a pause, faster is none.
pub const THROTTLE_BYTES: std::ops::RangeInclusive<u64> = 1024..=1 << 40;

/// Partitions that migrate at once: enough that an epoch cuts over many, few enough that most of the cluster is exposed to
/// one quorum only while the control plane has no majority.
#[must_use]
pub fn migrating_max(partitions: u32) -> usize {
    usize::try_from((partitions / 8).clamp(8, 512)).unwrap_or(8)
}

/// Who wanted something, and when.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// The person or program, as it calls itself; may be empty.
    pub by: String,
    /// By the clock of the node that took the command.
    pub at: WallTime,
}

/// How far an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum OperationState {
    /// It is carried out.
    Running,
    /// Nothing new is copied or cut over until it is resumed.
    Paused,
    /// Its last partition was cut over.
    Done,
    /// It was cancelled before that.
    Cancelled,
}

impl OperationState {
    /// Whether it is the one operation that may be under way.
    #[must_use]
    pub fn is_active(self) -> bool {
        matches!(self, Self::Running | Self::Paused)
    }
}

impl fmt::Display for OperationState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Done => "done",
            Self::Cancelled => "cancelled",
        })
    }
}

/// What sort of operation it is. A later one weighs more: a node that is added with another weight is added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OperationKind {
    /// The shares of the nodes are evened out.
    Rebalance,
    /// A node is in another zone.
    Zone,
    /// The weight of a node changes.
    Weight,
    /// The number of copies changes.
    Copies,
    /// Nodes begin to own partitions.
    Add,
    /// Nodes give their partitions away.
    Remove,
    /// A node takes the place of another one.
    Replace,
}

/// How much a plan moves, as the node estimated it that made the plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Estimate {
    /// Live keys in the copies that are made.
    pub keys: u64,
    /// Bytes of their keys and records.
    pub bytes: u64,
}

/// A plan that is carried out, or was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Operation {
    /// Its number.
    pub id: OperationId,
    /// What was asked for.
    pub changes: Vec<Change>,
    /// In the words of the command language, with the names that the nodes had.
    pub command: String,
    /// The plan.
    pub hash: PlanHash,
    /// The epoch for which the plan was made.
    pub parent: Epoch,
    /// Who began it.
    pub asked: Asked,
    /// How far it is.
    pub state: OperationState,
    /// The replicas that move; empty for an old operation.
    pub moves: Vec<Move>,
    /// How many there are.
    pub moves_planned: u64,
    /// How few there could have been.
    pub moves_minimum: u64,
    /// How many have been cut over. Never shrinks.
    pub moved: u64,
    /// How much it moves.
    pub estimate: Estimate,
    /// Live keys and bytes of all moves whose receipt was agreed on.
    pub copied: Estimate,
    /// Nodes that begin to own partitions.
    pub entering: BTreeSet<NodeId>,
    /// Nodes that give all their partitions away.
    pub leaving: BTreeSet<NodeId>,
    /// The proofs that its copies are complete; empty for an old operation.
    pub receipts: BTreeMap<(PartitionId, NodeId), Receipt>,
    /// How many there are.
    pub receipts_agreed: u64,
    /// When the first partition was cut over.
    pub first_cut_over: Option<WallTime>,
    /// When the last one so far was cut over.
    pub last_cut_over: Option<WallTime>,
    /// When it ended.
    pub ended: Option<Asked>,
    /// How often transfers were told to begin again.
    pub retries: u32,
    /// Which retry was the last one to name a partition; empty once the operation has ended. A receiver that knows fewer
    /// retries than there were finds here what it has missed.
    pub retried: BTreeMap<PartitionId, u32>,
    /// What a cancel undid and what stays, in words; otherwise empty.
    pub outcome: String,
    /// The command that leads back when it is done; empty if none does.
    pub undo: String,
    /// What is left to do; `None` once it has ended.
    pub target: Option<Target>,
}

impl Operation {
    /// An operation that begins.
    pub(super) fn new(id: OperationId, plan: Plan, target: Target, names: &Layout, asked: Asked) -> Self {
        let in_words = |change: &Change| change.command(|node| name_in(names, node));
        let command = plan.changes.iter().map(in_words).collect::<Vec<_>>().join(" and ");
        let back = undo(names, &plan.changes);
        let leaves = |node: &NodeId| back.contains(&Change::Remove { node: *node });
        // Who leaves again needs no other weight or zone before.
        let needed = back.iter().filter(|change| match change {
            Change::Weight { node, .. } | Change::Zone { node, .. } => !leaves(node),
            _ => true,
        });
        let undo = match needed.collect::<Vec<_>>().as_slice() {
            [back] => in_words(back),
            _ => String::new(),
        };
        let was_spare = |node: &NodeId| names.members.get(node).is_none_or(|member| member.spare);
        let crossing = |spare: bool| {
            let members = target.members.iter().filter(move |(_, standing)| standing.spare == spare);
            members.map(|(&node, _)| node).filter(move |node| was_spare(node) != spare).collect()
        };
        Self {
            id,
            command,
            hash: plan.hash,
            parent: plan.parent,
            asked,
            state: OperationState::Running,
            moves_planned: plan.moves.len() as u64,
            moves_minimum: plan.minimum,
            changes: plan.changes,
            moves: plan.moves,
            moved: 0,
            estimate: Estimate::default(),
            copied: Estimate::default(),
            entering: crossing(false),
            leaving: crossing(true),
            receipts: BTreeMap::new(),
            receipts_agreed: 0,
            first_cut_over: None,
            last_cut_over: None,
            ended: None,
            retries: 0,
            retried: BTreeMap::new(),
            outcome: String::new(),
            undo,
            target: Some(target),
        }
    }

    /// What sort of operation it is: that of the change which weighs most; `None` if it has no change.
    #[must_use]
    pub fn kind(&self) -> Option<OperationKind> {
        let kinds = self.changes.iter().map(|change| match change {
            Change::Add { .. } => OperationKind::Add,
            Change::Remove { .. } | Change::RemoveDead { .. } => OperationKind::Remove,
            Change::Replace { .. } => OperationKind::Replace,
            Change::Copies { .. } => OperationKind::Copies,
            Change::Weight { .. } => OperationKind::Weight,
            Change::Zone { .. } => OperationKind::Zone,
            Change::Rebalance => OperationKind::Rebalance,
        });
        kinds.max()
    }

    /// Notes that receipts were agreed on.
    pub(super) fn keep(&mut self, receipts: Vec<Receipt>) {
        self.receipts.extend(receipts.into_iter().map(|receipt| ((receipt.partition, receipt.node), receipt)));
        self.receipts_agreed = self.receipts.len() as u64;
        // Where copies become fewer, those that stay prove that they are complete, too; nothing moves to them.
        let of_moves = self.moves.iter().filter_map(|step| self.receipts.get(&(step.partition, step.to)));
        self.copied = of_moves.fold(Estimate::default(), |sum, receipt| Estimate {
            keys: sum.keys.saturating_add(receipt.keys),
            bytes: sum.bytes.saturating_add(receipt.bytes),
        });
    }

    /// Counts the moves that `layout` has cut over.
    pub(super) fn count_moved(&mut self, layout: &Layout) -> bool {
        let is_done = |step: &&Move| {
            layout.entry(step.partition).is_some_and(|entry| entry.joint.is_none() && entry.owns(step.to))
        };
        let moved = self.moves.iter().filter(is_done).count() as u64;
        let grew = moved > self.moved;
        self.moved = self.moved.max(moved);
        grew
    }

    /// Ends it.
    pub(super) fn end(&mut self, state: OperationState, asked: Asked) {
        self.state = state;
        self.ended = Some(asked);
        self.target = None;
        self.retried.clear();
    }

    /// Partitions that a retry beyond the first `known` ones has named.
    pub fn retried_after(&self, known: u32) -> impl Iterator<Item = PartitionId> + '_ {
        self.retried.iter().filter(move |(_, retry)| **retry > known).map(|(partition, _)| *partition)
    }

    /// Moves and receipts that it keeps in detail.
    pub(super) fn details(&self) -> usize {
        self.moves.len() + self.receipts.len()
    }

    /// Keeps the numbers only.
    pub(super) fn forget_details(&mut self) {
        self.moves = Vec::new();
        self.receipts = BTreeMap::new();
    }
}

/// The limit on the bytes that each node copies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Throttle {
    /// Bytes per second for each receiving node; `None`: no limit.
    pub bytes_per_second_max: Option<NonZeroU64>,
    /// Who set it; not set: nobody has.
    pub asked: Option<Asked>,
}

impl Throttle {
    /// What nodes are to do while `operation` is under way.
    #[must_use]
    pub fn settings(&self, operation: Option<&Operation>) -> TransferSettings {
        TransferSettings {
            paused: operation.is_some_and(|operation| operation.state == OperationState::Paused),
            bytes_per_second_max: self.bytes_per_second_max,
            transfers_max: TransferSettings::TRANSFERS_MAX,
        }
    }
}

/// The name of a node, or its number if it is no member.
fn name_in(layout: &Layout, node: NodeId) -> String {
    layout.members.get(&node).map_or_else(|| node.to_string(), |member| member.name.clone())
}
