//! Plans: what a change moves, as data. Carrying one out makes no choices.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::change::asks_for_no_move;
use super::operation::{self, Standing};
use super::slack::slack;
use super::{Change, Refusal, RefusalKind};
use crate::ring::check::{Slack, check_balance_within, is_balanced};
use crate::ring::{Entry, Layout, LayoutError, Member, Owner};
use crate::types::{ClusterId, Epoch, NodeId, PartitionId};

/// Names a plan: the hash of all that it would do. 16 hexadecimal digits as text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PlanHash(pub u64);

impl fmt::Display for PlanHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A text that is no hash of a plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no plan; the hash of a plan has 16 hexadecimal digits, as `--dry-run` prints it")]
pub struct NotAHash(pub String);

impl FromStr for PlanHash {
    type Err = NotAHash;

    fn from_str(text: &str) -> Result<Self, NotAHash> {
        let digits = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let value = digits.then(|| u64::from_str_radix(text, 16).ok()).flatten();
        value.map(Self).ok_or_else(|| NotAHash(text.to_owned()))
    }
}

/// One replica that changes its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    /// The partition.
    pub partition: PartitionId,
    /// Whose place is taken, which may be a dead node's; `None` where the number of copies grows.
    pub from: Option<NodeId>,
    /// Who gets a copy.
    pub to: NodeId,
    /// Whom the copy is best read from: `from` if it lives, otherwise another owner.
    pub source: NodeId,
}

/// A partition whose preference list changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionChange {
    /// The partition.
    pub partition: PartitionId,
    /// Its new preference list.
    pub owners: Vec<NodeId>,
}

/// What changes would do to one layout. Made by [`super::plan`]; data from elsewhere is checked by [`Plan::target`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Names the plan.
    pub hash: PlanHash,
    /// The cluster.
    pub cluster: ClusterId,
    /// The epoch of the layout that it was made for. It applies to no other.
    pub parent: Epoch,
    /// What was asked for.
    pub changes: Vec<Change>,
    /// The members afterwards, spares included.
    pub members: BTreeMap<NodeId, Member>,
    /// N afterwards.
    pub copies: u8,
    /// The partitions whose preference list changes, ascending; some only change their order.
    pub partitions: Vec<PartitionChange>,
    /// The replicas that move, ascending by partition.
    pub moves: Vec<Move>,
    /// No layout with fair shares can be reached with fewer moves: a lower bound, found by other code than the moves.
    pub minimum: u64,
}

impl Plan {
    /// How many moves more than the proven minimum the plan has; 0 wherever it is proven optimal.
    #[must_use]
    pub fn gap(&self) -> u64 {
        (self.moves.len() as u64).saturating_sub(self.minimum)
    }

    /// The layout that the plan leads to, numbered `epoch`. Owners that enter have it as their `since`.
    ///
    /// # Errors
    /// If the plan was made for another layout, was altered, or leads to a layout that [`crate::ring::check`] refuses.
    pub fn target(&self, parent: &Layout, epoch: Epoch) -> Result<Layout, Refusal> {
        let stale = |reason: String| Refusal::new(RefusalKind::Stale, reason, "make the plan again");
        if parent.cluster != self.cluster || parent.epoch != self.parent {
            return Err(stale(format!(
                "plan {} was made for {}, and the layout is at {}",
                self.hash, self.parent, parent.epoch
            )));
        }
        if self.hash != self.computed_hash() {
            return Err(stale(format!("plan {} has other contents than its hash says", self.hash)));
        }
        let mut layout = parent.clone();
        layout.epoch = epoch;
        layout.copies = self.copies;
        layout.members.clone_from(&self.members);
        for change in &self.partitions {
            let Some(entry) = layout.partitions.get_mut(usize::from(change.partition.0)) else {
                return Err(stale(format!("plan {} changes {}, which does not exist", self.hash, change.partition)));
            };
            let since = |node: NodeId| entry.old_owner(node).map_or(epoch, |old| old.since);
            let owners = change.owners.iter().map(|&node| Owner { node, since: since(node) }).collect();
            *entry = Entry::settled(epoch, owners);
        }
        layout.settled = false;
        let sound = crate::ring::check(&layout).and_then(|()| self.check_shares(parent, &layout));
        sound.map_err(|error| stale(format!("plan {} leads to no sound layout: {error}", self.hash)))?;
        layout.settled = is_balanced(&layout);
        Ok(layout)
    }

    /// Checks that no node ends further from its fair share than it was, or than rounding brings. A plan that leaves all
    /// partitions and their owners as they are may leave them uneven.
    fn check_shares(&self, parent: &Layout, target: &Layout) -> Result<(), LayoutError> {
        let migrating = target.partition_ids().zip(&target.partitions).find(|(_, entry)| entry.joint.is_some());
        if let Some((partition, _)) = migrating {
            return Err(LayoutError::Joint { partition });
        }
        if self.partitions.is_empty() && asks_for_no_move(parent, &self.changes, &self.members, self.copies) {
            return Ok(());
        }
        let before = slack(parent, &self.changes);
        let owners = u32::try_from(target.owners_per_partition()).unwrap_or(u32::MAX).max(1);
        check_balance_within(target, &|node| {
            let Slack { copies, first: (less, more) } = before.get(&node).copied().unwrap_or_default();
            Slack { copies, first: (less + copies.0.div_ceil(owners), more + copies.1.div_ceil(owners)) }
        })
    }

    /// The goal of the operation that carries the plan out.
    ///
    /// # Errors
    /// As [`Plan::target`], and if a partition of the layout is migrating.
    pub fn operation(&self, parent: &Layout) -> Result<operation::Target, Refusal> {
        self.target(parent, parent.epoch)?;
        let members = self.members.iter().map(|(&node, member)| (node, Standing::of(member))).collect();
        let lists = self.partitions.iter().map(|change| (change.partition, change.owners.clone())).collect();
        let sources = self.moves.iter().map(|step| ((step.partition, step.to), step.source)).collect();
        operation::Target::new(parent, members, self.copies, &lists, &sources).map_err(|error| {
            Refusal::new(RefusalKind::Stale, error.to_string(), "make the plan again when nothing migrates")
        })
    }

    /// The hash of all that the plan would do.
    pub(super) fn computed_hash(&self) -> PlanHash {
        let done =
            (self.cluster, self.parent, &self.changes, &self.members, self.copies, &self.partitions, &self.moves);
        // Encoding into memory fails for no value of these types; if it did, the hash would match no plan.
        PlanHash(postcard::to_stdvec(&done).map_or(0, |bytes| xxh3_64(&bytes)))
    }
}
