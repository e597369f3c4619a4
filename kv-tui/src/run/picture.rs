//! The cluster at one moment: what is agreed on, and every member's own account.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kv_core::ring::{Layout, fair_shares};
use kv_core::types::{KeyspaceId, NodeId, PartitionId};
use kv_proto::client::{Client, NodeReport};
use kv_proto::describe::{Description, MemberView};
use kv_proto::v1;

use crate::error::{Class, CommandError};

/// How long a member may take to tell its figures.
pub(super) const REPORT_TIMEOUT: Duration = Duration::from_secs(2);

/// The cluster at one moment.
#[derive(Clone, Debug)]
pub struct Picture {
    /// What is agreed on.
    pub description: Arc<Description>,
    /// What each member tells.
    pub reports: Vec<NodeReport>,
}

impl Picture {
    /// Asks all members; with the figures of every partition if `partitions`.
    pub(crate) async fn take(client: &Client, partitions: bool) -> Result<Self, CommandError> {
        Self::of(client.refresh().await?, client, partitions).await
    }

    /// The same, by a node that knows all that was agreed on until now: what is missing here does not exist.
    pub(crate) async fn take_newest(client: &Client, partitions: bool) -> Result<Self, CommandError> {
        Self::of(client.refresh_newest().await?, client, partitions).await
    }

    /// Takes a picture in which `find` finds what is meant. What the node that is asked first does not know may have come a
    /// moment ago.
    pub(crate) async fn with<T>(
        client: &Client,
        find: impl Fn(&Self) -> Result<T, CommandError>,
    ) -> Result<(Self, T), CommandError> {
        let picture = Self::take(client, true).await?;
        match find(&picture) {
            Err(error) if error.class == Class::NotFound => {
                let newest = Self::take_newest(client, true).await?;
                let found = find(&newest)?;
                Ok((newest, found))
            }
            found => found.map(|found| (picture, found)),
        }
    }

    async fn of(description: Arc<Description>, client: &Client, partitions: bool) -> Result<Self, CommandError> {
        let request = v1::WatchRequest { partitions, once: true, ..Default::default() };
        let reports = client.reports(request, REPORT_TIMEOUT).await;
        Ok(Self { description, reports })
    }

    /// Why the node that was asked has no layout, and what to do.
    pub(crate) fn why_no_layout(&self) -> (String, &'static str) {
        let description = &self.description;
        if let Some((present, expected)) = description.forming {
            return (format!("{present} of {expected} members have reported"), "start the other nodes with --join");
        }
        let stands = if description.waiting.is_empty() { "it does not say why" } else { &description.waiting };
        let node = if description.node_name.is_empty() { "the node" } else { &description.node_name };
        (
            format!("{node} belongs to no cluster yet: {stands}"),
            "check the addresses of its --join and the nodes there, or ask another node",
        )
    }

    /// The figures of a member; `None` if it does not tell them.
    #[must_use]
    pub fn snapshot(&self, node: NodeId) -> Option<&v1::NodeSnapshot> {
        let report = self.reports.iter().find(|report| report.node == node)?;
        report.snapshot.as_deref().ok()
    }

    /// All figures that are told.
    pub fn snapshots(&self) -> impl Iterator<Item = &v1::NodeSnapshot> + '_ {
        self.reports.iter().filter_map(|report| report.snapshot.as_deref().ok())
    }

    /// Whether a member serves: it tells its figures, acts on a layout, and its store works.
    #[must_use]
    pub fn serves(&self, node: NodeId) -> bool {
        self.snapshot(node).is_some_and(|snapshot| snapshot.layout_epoch > 0 && snapshot.poisoned.is_empty())
    }

    /// How a member is: by its own account, or else by what the others think of it.
    #[must_use]
    pub fn state(&self, member: &MemberView) -> v1::MemberState {
        if let Some(snapshot) = self.snapshot(member.id) {
            return match snapshot.state() {
                v1::MemberState::Unspecified if member.member.spare => v1::MemberState::Spare,
                v1::MemberState::Unspecified => v1::MemberState::Up,
                state => state,
            };
        }
        let opinions = self.snapshots().flat_map(|snapshot| &snapshot.peers);
        let mut states = opinions.filter(|peer| peer.node == member.id.0).map(v1::PeerOpinion::state);
        if states.any(|state| state == v1::MemberState::Suspect) {
            v1::MemberState::Suspect
        } else {
            v1::MemberState::Down
        }
    }

    /// The newest operation that any member knows; not set if there never was one.
    #[must_use]
    pub fn operation(&self) -> Option<&v1::Operation> {
        // Of two accounts of one operation the one that is further on is newer.
        let ended = |operation: &v1::Operation| operation.ended_us > 0;
        let known = self.snapshots().filter_map(|snapshot| snapshot.operation.as_ref());
        known.max_by_key(|operation| (operation.id, ended(operation), operation.moved, operation.receipts))
    }

    /// What all members together still have to do.
    #[must_use]
    pub fn pending(&self) -> v1::Pending {
        let mut sum = v1::Pending::default();
        for pending in self.snapshots().filter_map(|snapshot| snapshot.pending.as_ref()) {
            sum.requests += pending.requests;
            sum.replications += pending.replications;
            sum.hints += pending.hints;
            sum.hint_bytes += pending.hint_bytes;
            sum.missed_writes += pending.missed_writes;
            sum.refills += pending.refills;
            sum.transfers += pending.transfers;
            sum.residue += pending.residue;
            sum.comparisons += pending.comparisons;
            sum.dropped += pending.dropped;
            sum.reclaiming += pending.reclaiming;
        }
        sum
    }

    /// The live keys of a keyspace, each once: those of each partition as its first synced owner in reach tells them.
    /// The figures of the partitions must be part of the picture.
    ///
    /// # Errors
    /// The first partition that has no such owner.
    pub fn count(&self, layout: &Layout, keyspace: KeyspaceId) -> Result<u64, PartitionId> {
        let figures: BTreeMap<(u64, u32), &v1::PartitionStats> = self
            .snapshots()
            .flat_map(|snapshot| {
                snapshot.partitions.iter().map(move |figures| ((snapshot.node, figures.partition), figures))
            })
            .collect();
        let mut keys = 0;
        for partition in layout.partition_ids() {
            let owners = layout.entry(partition).into_iter().flat_map(|entry| entry.nodes());
            let synced = owners
                .filter_map(|owner| figures.get(&(owner.0, u32::from(partition.0))))
                .find(|figures| figures.synced)
                .ok_or(partition)?;
            let of_keyspace = synced.keyspaces.iter().filter(|figures| figures.keyspace == keyspace.0);
            keys += of_keyspace.map(|figures| figures.keys).sum::<u64>();
        }
        Ok(keys)
    }

    /// The live keys of all keyspaces, each once, as `count` counts them; `None` if some partition has no complete owner
    /// in reach, or the figures of the partitions are not part of the picture.
    #[must_use]
    pub fn live_keys(&self) -> Option<u64> {
        let layout = self.description.layout.as_deref()?;
        // The best place among the owners that tell a complete copy, and its keys.
        let mut best: Vec<Option<(usize, u64)>> = vec![None; layout.partitions.len()];
        for snapshot in self.snapshots() {
            for figures in snapshot.partitions.iter().filter(|figures| figures.synced) {
                let at = usize::try_from(figures.partition).unwrap_or(usize::MAX);
                let (Some(entry), Some(best)) = (layout.partitions.get(at), best.get_mut(at)) else { continue };
                let Some(place) = entry.nodes().position(|owner| owner.0 == snapshot.node) else { continue };
                if best.is_none_or(|(other, _)| place < other) {
                    *best = Some((place, figures.keyspaces.iter().map(|keyspace| keyspace.keys).sum()));
                }
            }
        }
        best.into_iter().map(|best| best.map(|(_, keys)| keys)).sum()
    }

    /// Each member's part of all copies, and its fair share of them.
    #[must_use]
    pub fn shares(&self) -> BTreeMap<NodeId, Share> {
        let Some(layout) = &self.description.layout else { return BTreeMap::new() };
        let mut shares: BTreeMap<NodeId, Share> = BTreeMap::new();
        for entry in &layout.partitions {
            // While a partition migrates its old owners hold it.
            for (place, owner) in entry.owners.iter().map(|owner| owner.node).enumerate() {
                let share = shares.entry(owner).or_default();
                share.partitions += 1;
                share.primary += u64::from(place == 0);
            }
        }
        let copies: u64 = shares.values().map(|share| share.partitions).sum();
        let fair = fair_shares(&layout.members, layout.partition_count(), layout.copies);
        for member in layout.members.keys() {
            let share = shares.entry(*member).or_default();
            share.ownership = ratio(share.partitions, copies);
            #[allow(clippy::cast_precision_loss, reason = "at most 65,536 partitions of 16 copies")]
            let all = copies.max(1) as f64;
            share.fair = rounded(fair.get(member).copied().unwrap_or(0.0) / all);
            share.fair_partitions = fair.get(member).copied().unwrap_or(0.0);
        }
        shares
    }
}

/// What a member owns by the layout.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Share {
    /// Copies of partitions.
    pub partitions: u64,
    /// First places.
    pub primary: u64,
    /// The part of all copies, 0 to 1.
    pub ownership: f64,
    /// The fair part of all copies, 0 to 1.
    pub fair: f64,
    /// The fair share in copies.
    pub fair_partitions: f64,
}

fn ratio(part: u64, whole: u64) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "at most 65,536 partitions of 16 copies")]
    rounded(part as f64 / whole.max(1) as f64)
}

/// To six digits, which is what output shows.
fn rounded(share: f64) -> f64 {
    (share * 1e6).round() / 1e6
}

/// The word of a state.
#[must_use]
pub fn state_word(state: v1::MemberState) -> &'static str {
    match state {
        v1::MemberState::Unspecified => "unknown",
        v1::MemberState::Up => "up",
        v1::MemberState::Suspect => "suspect",
        v1::MemberState::Down => "down",
        v1::MemberState::Spare => "spare",
        v1::MemberState::Joining => "joining",
        v1::MemberState::Leaving => "leaving",
    }
}
