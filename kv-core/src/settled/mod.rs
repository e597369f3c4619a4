//! The settled barrier (rule A6), and the collection of tombstones, which stands on it.
//!
//! A partition has *settled* up to a watermark when every owner durably holds everything that was written at or before it, or what
//! has replaced it; when no member holds anything of it beside the owners' copies, as a hint or as residue; and when nothing that
//! old is written or taken any more. Each owner keeps the watermark with its copy ([`View::settled_until`]). A tombstone at or below
//! it has done its work and is removed: whatever it has replaced is held by nobody, and should something of it still turn up, in a
//! message that was late or in an old copy, the watermark says that it is gone (`Record::merge_settled`).
//!
//! An owner with tombstones that are old enough begins a round for a batch of its partitions:
//!
//! 1. *Confirm*: every member says that it holds no hints and no residue of the partition, and promises, durably, to write nothing
//!    with a timestamp at or below the watermark.
//! 2. *Hold*: every owner takes nothing at or below the watermark that it lacks, but from the copies of other owners.
//! 3. *Compare*: the owner that began is compared with all others, twice, so that what one of them holds all of them hold.
//! 4. *Adopt*: every owner makes the watermark durable, and then collects by it.
//!
//! The steps need no order among messages, on one stream or on several: what is old and still under way from a member that lives is
//! held by an owner, so that the comparisons bring it; what is under way from one that died is not taken after step 2; and what
//! arrives after step 4 is known to have settled. Members keep nothing of a round but their promise, and any number of rounds may
//! run at once.
//!
//! | file | concept |
//! | --- | --- |
//! | `round` | the owner that begins |
//! | `member` | what every member answers |
//! | `collect` | what goes when a watermark is durable |

mod collect;
mod member;
mod round;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::cell::Unsettled;
use crate::error::StorageError;
use crate::event::Event;
use crate::message::{CallId, HinderedBy, SettleStep};
use crate::ring::Entry;
use crate::rule::Rule;
use crate::shell::SettleStatus;
use crate::storage::Reader;
use crate::types::{Epoch, Monotonic, NodeId, PartitionId, WallTime};
use crate::version::Hlc;
use crate::view::{View, meta};
use crate::wiring::{Ctx, Timer};

use collect::Collecting;
pub(crate) use member::Change;
use round::Round;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Settling {
    /// Owned partitions of which something waits for the watermark.
    due: BTreeMap<PartitionId, Due>,
    round: Option<Round>,
    /// Steps of the round under way that this node itself is asked.
    own: VecDeque<OwnStep>,
    collecting: Collecting,
    /// Watermarks that are being made durable.
    adopting: BTreeMap<PartitionId, meta::Settled>,
    /// Above what this loop has promised to write; durable, or being made so.
    confirmed: Hlc,
    /// By how much the clocks of members were behind this node's when a watermark was too young for them.
    lags: BTreeMap<NodeId, Duration>,
    hindered: Option<Hindered>,
}

/// What waits for the watermark of a partition.
#[derive(Clone, Copy, Debug)]
struct Due {
    /// When the oldest tombstone was written.
    tombstone: Option<Hlc>,
    /// From what watermark on a retired request may be forgotten (rule A7). Its record is not looked for: it forgets when it is written.
    retired: Option<Hlc>,
    /// Since when it is old enough.
    since: Option<Monotonic>,
    /// When the next round may be tried.
    again: Monotonic,
}

impl Due {
    /// The lowest watermark of which there is use.
    fn lowest(&self) -> Hlc {
        self.tombstone.into_iter().chain(self.retired).min().unwrap_or_default()
    }
}

/// A step that this node itself is asked.
#[derive(Debug)]
pub(crate) struct OwnStep {
    pub(crate) round: CallId,
    pub(crate) step: SettleStep,
    pub(crate) until: Hlc,
    pub(crate) partitions: Vec<(PartitionId, Epoch)>,
}

/// Who holds up a watermark, and by what.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hindered {
    node: NodeId,
    by: HinderedBy,
}

impl Settling {
    /// What the store remembers.
    ///
    /// # Errors
    /// If the node's own entries cannot be read.
    pub(crate) fn recover(reader: &impl Reader) -> Result<Self, StorageError> {
        // The node may have had another number of loops: what any of them has promised holds for all.
        let confirmed: BTreeMap<u16, Hlc> = meta::read_all(reader, meta::CONFIRMED, u16::from_be_bytes)?;
        Ok(Self { confirmed: confirmed.into_values().max().unwrap_or_default(), ..Self::default() })
    }

    /// Keeps the promises of earlier runs.
    pub(crate) fn resume(&mut self, ctx: &mut Ctx<'_>) {
        if ctx.view.keep(Rule::WriteAboveConfirmed) {
            ctx.kernel.clock.raise(self.confirmed);
            if let Some(highest) = ctx.view.watermarks().max() {
                ctx.kernel.clock.raise(highest);
            }
        }
    }

    /// Something in an owned partition waits for the watermark.
    pub(crate) fn want(&mut self, ctx: &mut Ctx<'_>, partition: PartitionId, unsettled: Unsettled) {
        let every = ctx.view.config.settle_every;
        if every.is_zero() || !ctx.view.owns(partition) {
            return;
        }
        let none = Due { tombstone: None, retired: None, since: None, again: Monotonic(0) };
        let due = self.due.entry(partition).or_insert(none);
        let retired = unsettled.retired.map(|stamp| stamp.plus(ctx.view.cluster.requests_kept()));
        due.tombstone = due.tombstone.into_iter().chain(unsettled.tombstone).min();
        due.retired = due.retired.into_iter().chain(retired).min();
        if self.round.is_none() {
            ctx.kernel.arm(ctx.kernel.now.mono.plus(every), Timer::Settle);
        }
    }

    /// A partition is to be looked through again.
    fn look_again(&mut self, ctx: &mut Ctx<'_>, partition: PartitionId) {
        self.want(ctx, partition, Unsettled { tombstone: Some(Hlc::default()), retired: None });
    }

    /// Takes note of what was stored or found.
    pub(crate) fn note_unsettled(&mut self, ctx: &mut Ctx<'_>) {
        for (partition, unsettled) in ctx.kernel.take_unsettled() {
            self.want(ctx, partition, unsettled);
        }
    }

    /// It is time to look what is due, or the round under way waits.
    pub(crate) fn pass(&mut self, ctx: &mut Ctx<'_>, exchanges: &mut crate::exchange::Exchanges) {
        if self.round.is_some() {
            self.remind(ctx, exchanges);
        } else {
            self.begin(ctx);
        }
        let config = &ctx.view.config;
        let next = if self.round.is_some() { config.retry_after } else { config.settle_every };
        if self.round.is_some() || !self.due.is_empty() {
            ctx.kernel.arm(ctx.kernel.now.mono.plus(next), Timer::Settle);
        }
    }

    /// The next step that this node itself is asked.
    pub(crate) fn next_own(&mut self) -> Option<OwnStep> {
        self.own.pop_front()
    }

    /// Somebody holds up a watermark. That is told where tombstones wait for it.
    fn hinder(&mut self, ctx: &mut Ctx<'_>, node: NodeId, by: HinderedBy) {
        if self.due.values().all(|due| due.tombstone.is_none()) {
            return;
        }
        let hindered = Hindered { node, by };
        if self.hindered.as_ref() != Some(&hindered) {
            ctx.kernel.event(Event::SettlingHindered { node, by: hindered.by.clone() });
            self.hindered = Some(hindered);
        }
    }

    /// A partition is filled from a copy with this watermark, and has got all of it: what had settled there has settled here.
    pub(crate) fn inherit(&mut self, ctx: &mut Ctx<'_>, partition: PartitionId, until: Hlc) {
        if until > Hlc::default() && ctx.view.keep(Rule::WatermarkTravels) {
            self.adopt(ctx, partition, until);
        }
    }

    /// What waits to settle.
    pub(crate) fn status(&self, view: &View, now: WallTime) -> SettleStatus {
        let limit = limit_at(view, now);
        let old: Vec<PartitionId> = self
            .due
            .iter()
            .filter(|(_, due)| due.tombstone.is_some_and(|oldest| oldest <= limit))
            .map(|(&partition, _)| partition)
            .collect();
        let oldest =
            self.due.values().filter_map(|due| due.tombstone).map(Hlc::wall).filter(|oldest| oldest.0 > 0).min();
        let watermark = |&partition: &PartitionId| view.settled_until(partition).unwrap_or_default().wall();
        SettleStatus {
            due: old.len() + self.collecting.len(),
            oldest,
            watermark: old.iter().map(watermark).min(),
            hindered: self.hindered.as_ref().filter(|_| !old.is_empty()).map(|it| (it.node, it.by.clone())),
            collected: self.collecting.collected(),
            // That the kernel knows.
            set_aside: 0,
        }
    }
}

/// The minimum age of what settles.
fn minimum_age(view: &View) -> Duration {
    // As long as a request may be repeated, what it has left must be known.
    view.config.collect_after.max(view.cluster.repeat_within).saturating_add(view.cluster.clocks_apart_max())
}

/// What is old enough by a clock: everything at or before this.
fn limit_at(view: &View, wall: WallTime) -> Hlc {
    let age = if view.keep(Rule::AgeBeforeSettled) { minimum_age(view) } else { Duration::ZERO };
    Hlc::at(earlier(wall, age))
}

fn earlier(wall: WallTime, by: Duration) -> WallTime {
    WallTime(wall.0.saturating_sub(u64::try_from(by.as_micros()).unwrap_or(u64::MAX)))
}

/// Whether a partition is one that can settle: nobody enters or leaves it.
fn is_stable(entry: &Entry) -> bool {
    entry.joint.is_none()
}
