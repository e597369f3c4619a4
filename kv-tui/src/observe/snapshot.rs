//! The cluster at one moment: the agreed state, and every member's own report.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kv_core::ring::{Layout, fair_shares};
use kv_core::types::{KeyspaceId, NodeId, PartitionId};
use kv_proto::client::{Client, NodeReport};
use kv_proto::describe::{Description, MemberView};
use kv_proto::v1;

use crate::error::{Class, CommandError};

/// How long a member may take to report.
pub(crate) const REPORT_TIMEOUT: Duration = Duration::from_secs(2);

/// The cluster at one moment.
#[derive(Clone, Debug)]
pub struct ClusterSnapshot {
    /// The agreed state.
    pub description: Arc<Description>,
    /// The report of each member, or why there is none.
    pub reports: Vec<NodeReport>,
}

impl ClusterSnapshot {
    /// Asks all members for their reports; with the stats of every partition if `partitions`.
    pub(crate) async fn take(client: &Client, partitions: bool) -> Result<Self, CommandError> {
        Self::of(client.refresh().await?, client, partitions).await
    }

    /// The same, from a node that has the newest agreed state: what is missing in it does not exist.
    pub(crate) async fn take_newest(client: &Client, partitions: bool) -> Result<Self, CommandError> {
        Self::of(client.refresh_newest().await?, client, partitions).await
    }

    /// Takes a snapshot in which `find` finds what is meant. The node that is asked first may not know yet what was added a
    /// moment ago; then the newest state is asked for.
    pub(crate) async fn with<T>(
        client: &Client,
        find: impl Fn(&Self) -> Result<T, CommandError>,
    ) -> Result<(Self, T), CommandError> {
        let cluster = Self::take(client, true).await?;
        match find(&cluster) {
            Err(error) if error.class == Class::NotFound => {
                let newest = Self::take_newest(client, true).await?;
                let found = find(&newest)?;
                Ok((newest, found))
            }
            found => found.map(|found| (cluster, found)),
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

    /// The report of a member; `None` if it does not report.
    #[must_use]
    pub fn report(&self, node: NodeId) -> Option<&v1::NodeSnapshot> {
        let report = self.reports.iter().find(|report| report.node == node)?;
        report.snapshot.as_deref().ok()
    }

    /// All reports that were received.
    pub fn node_reports(&self) -> impl Iterator<Item = &v1::NodeSnapshot> + '_ {
        self.reports.iter().filter_map(|report| report.snapshot.as_deref().ok())
    }

    /// Whether a member serves: it reports, acts on a layout, and its store works.
    #[must_use]
    pub fn serves(&self, node: NodeId) -> bool {
        self.report(node).is_some_and(|snapshot| {
            snapshot.layout_epoch > 0 && snapshot.poisoned.is_empty() && !self.is_left_behind(snapshot)
        })
    }

    /// Whether a node belongs to an earlier generation of the cluster than another one: nobody counts it.
    fn is_left_behind(&self, snapshot: &v1::NodeSnapshot) -> bool {
        let generation =
            |snapshot: &v1::NodeSnapshot| snapshot.control.as_ref().map_or(0, |control| control.generation);
        self.node_reports().any(|other| generation(other) > generation(snapshot)) && generation(snapshot) > 0
    }

    /// Whether a member is to come from an earlier generation of the cluster, as far as any node says that leads or knows a leader.
    #[must_use]
    pub fn is_awaited(&self, node: NodeId) -> bool {
        let control = self.node_reports().filter_map(|snapshot| snapshot.control.as_ref());
        let newest = control.max_by_key(|control| (control.generation, control.leads));
        newest.is_some_and(|control| control.awaited.contains(&node.0))
    }

    /// The state of a member: from its own report, else from what the others report of it.
    #[must_use]
    pub fn state(&self, member: &MemberView) -> v1::MemberState {
        if let Some(snapshot) = self.report(member.id) {
            return match snapshot.state() {
                v1::MemberState::Unspecified if member.member.spare => v1::MemberState::Spare,
                v1::MemberState::Unspecified => v1::MemberState::Up,
                state => state,
            };
        }
        let opinions = self.node_reports().flat_map(|snapshot| &snapshot.peers);
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
        // Of two reports on one operation the one with more progress is newer.
        let ended = |operation: &v1::Operation| operation.ended_us > 0;
        let known = self.node_reports().filter_map(|snapshot| snapshot.operation.as_ref());
        known.max_by_key(|operation| (operation.id, ended(operation), operation.moved, operation.receipts))
    }

    /// What all members together still have to do.
    #[must_use]
    pub fn pending(&self) -> v1::Pending {
        let mut sum = v1::Pending::default();
        for pending in self.node_reports().filter_map(|snapshot| snapshot.pending.as_ref()) {
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

    /// The live keys of a keyspace, each once: those of each partition as its first reachable synced owner reports them.
    /// The stats of the partitions must be part of the snapshot.
    ///
    /// # Errors
    /// The first partition that has no such owner.
    pub fn count(&self, layout: &Layout, keyspace: KeyspaceId) -> Result<u64, PartitionId> {
        let stats: BTreeMap<(u64, u32), &v1::PartitionStats> = self
            .node_reports()
            .flat_map(|snapshot| snapshot.partitions.iter().map(move |stats| ((snapshot.node, stats.partition), stats)))
            .collect();
        let mut keys = 0;
        for partition in layout.partition_ids() {
            let owners = layout.entry(partition).into_iter().flat_map(|entry| entry.nodes());
            let synced = owners
                .filter_map(|owner| stats.get(&(owner.0, u32::from(partition.0))))
                .find(|stats| stats.synced)
                .ok_or(partition)?;
            let of_keyspace = synced.keyspaces.iter().filter(|stats| stats.keyspace == keyspace.0);
            keys += of_keyspace.map(|stats| stats.keys).sum::<u64>();
        }
        Ok(keys)
    }

    /// The live keys of all keyspaces, each once, as `count` counts them; `None` if some partition has no complete owner
    /// in reach, or the stats of the partitions are not part of the snapshot.
    #[must_use]
    pub fn live_keys(&self) -> Option<u64> {
        let layout = self.description.layout.as_deref()?;
        // The lowest position among the owners that report a complete copy, and its keys.
        let mut best: Vec<Option<(usize, u64)>> = vec![None; layout.partitions.len()];
        for snapshot in self.node_reports() {
            for stats in snapshot.partitions.iter().filter(|stats| stats.synced) {
                let at = usize::try_from(stats.partition).unwrap_or(usize::MAX);
                let (Some(entry), Some(best)) = (layout.partitions.get(at), best.get_mut(at)) else { continue };
                let Some(place) = entry.nodes().position(|owner| owner.0 == snapshot.node) else { continue };
                if best.is_none_or(|(other, _)| place < other) {
                    *best = Some((place, stats.keyspaces.iter().map(|keyspace| keyspace.keys).sum()));
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
    /// Partitions of which it is the primary.
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
