//! The cluster as the dashboard knows it: the same `ClusterSnapshot` that `exec` prints, and what is derived from it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, OnceLock};

use kv_core::error::RequestError;
use kv_core::types::NodeId;
use kv_proto::client::NodeReport;
use kv_proto::describe::{Description, MemberView};
use kv_proto::v1;

use super::columns::{Column, EventOrder, MoveOrder, PartitionOrder};
use super::list::List;
use super::operations::Operations;
use super::progress::{MoveId, Step};
use crate::observe::health::Health;
use crate::observe::safety::Safety;
use crate::observe::snapshot::{ClusterSnapshot, Share, state_word};

/// Seconds of throughput that are kept.
pub const THROUGHPUT_SLOTS: usize = 3600;

/// Events of each kind that are kept, of all nodes together; changes of the cluster are one kind.
pub const EVENTS_OF_KIND_MAX: usize = 1000;

/// Figures older than this do not count as the present, in microseconds.
pub const FRESH_US: u64 = 2_500_000;

/// What identifies an event: its time, its node, whether it is a change of the cluster, and its number there.
pub type EventId = (u64, u64, bool, u64);

/// The cluster as last reported.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// The agreed state, and each member's own report.
    pub snapshot: ClusterSnapshot,
    /// What several reports together say of each member.
    pub tracks: BTreeMap<NodeId, Track>,
    /// What is derived from the snapshot.
    derived: Derived,
    /// Each member's part of the copies.
    pub shares: BTreeMap<NodeId, Share>,
    /// The newest event last.
    pub events: VecDeque<v1::Event>,
    /// One slot a second, the newest last; `None` where no member reported.
    pub throughput: VecDeque<Option<Rates>>,
    /// The operations that are remembered, ascending by number, and how far the newest is.
    pub operations: Operations,
    /// When anything was last reported, in microseconds.
    pub reported_us: u64,
    /// The second of the newest slot.
    pub slot: u64,
}

/// What is derived from the snapshot. It takes a pass over every partition, so it is computed when it is drawn, not when a
/// member reports, and dropped when what it depends on has changed.
#[derive(Clone, Debug, Default)]
struct Derived {
    health: OnceLock<Health>,
    safety: OnceLock<Safety>,
    live_keys: OnceLock<Option<u64>>,
}

/// What is derived from a member's last two reports.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Track {
    /// When the last one came, in microseconds.
    pub reported_us: u64,
    /// The rates between the last two; `None` with only one of this process.
    pub rates: Option<Rates>,
}

/// Operations a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// Gets.
    pub gets: f64,
    /// Puts and deletes.
    pub writes: f64,
    /// Proposals for keys of consistent keyspaces that began again.
    pub contention: f64,
}

impl Rates {
    /// The rates between two reports; `None` if the node's process is not the same, or no time has passed.
    #[must_use]
    pub fn between(before: &v1::NodeSnapshot, after: &v1::NodeSnapshot) -> Option<Self> {
        let same = before.store_id == after.store_id && before.boot == after.boot;
        let (old, new) = (before.counters?, after.counters?);
        let passed = after.uptime_us.checked_sub(before.uptime_us).filter(|passed| *passed > 0 && same)?;
        #[allow(clippy::cast_precision_loss, reason = "rates are shown with three digits")]
        let rate = |old: u64, new: u64| new.checked_sub(old).map(|done| done as f64 * 1e6 / passed as f64);
        Some(Self {
            gets: rate(old.gets, new.gets)?,
            writes: rate(old.puts + old.deletes, new.puts + new.deletes)?,
            contention: rate(old.register_retries, new.register_retries)?,
        })
    }

    /// All operations.
    #[must_use]
    pub fn all(self) -> f64 {
        self.gets + self.writes
    }
}

impl Cluster {
    /// A cluster of which only the description is known.
    #[must_use]
    pub fn new(description: Arc<Description>, now_us: u64) -> Self {
        let snapshot = ClusterSnapshot { description, reports: Vec::new() };
        let mut cluster = Self {
            derived: Derived::default(),
            shares: snapshot.shares(),
            snapshot,
            tracks: BTreeMap::new(),
            events: VecDeque::new(),
            throughput: VecDeque::new(),
            operations: Operations::default(),
            reported_us: now_us,
            slot: now_us / 1_000_000,
        };
        cluster.describe(Arc::clone(&cluster.snapshot.description));
        cluster
    }

    /// Takes a newer description; members that have gone are forgotten.
    pub fn describe(&mut self, description: Arc<Description>) {
        let ids: Vec<NodeId> = description.members.iter().map(|member| member.id).collect();
        self.snapshot.reports.retain(|report| ids.contains(&report.node));
        self.tracks.retain(|node, _| ids.contains(node));
        for member in &description.members {
            match self.snapshot.reports.iter_mut().find(|report| report.node == member.id) {
                Some(report) => report.address.clone_from(&member.address),
                None => self.snapshot.reports.push(NodeReport {
                    node: member.id,
                    address: member.address.clone(),
                    snapshot: Err(RequestError::unavailable("no report received yet")),
                    events: Vec::new(),
                }),
            }
        }
        self.snapshot.description = description;
        self.shares = self.snapshot.shares();
        self.derived = Derived::default();
    }

    /// Takes a member's report; returns what has visibly changed.
    pub fn observe_report(&mut self, node: NodeId, mut snapshot: Box<v1::NodeSnapshot>, now_us: u64) -> Change {
        let Some(report) = self.snapshot.reports.iter_mut().find(|report| report.node == node) else {
            return Change::Nothing;
        };
        let rates = report.snapshot.as_ref().ok().and_then(|before| Rates::between(before, &snapshot));
        let new = report.snapshot.as_mut().map_or(Change::Shown, |before| change_between(before, &mut snapshot));
        let safe = report.snapshot.as_ref().is_ok_and(|before| is_as_safe(before, &snapshot));
        report.snapshot = Ok(snapshot);
        let track = self.tracks.insert(node, Track { reported_us: now_us, rates });
        self.reported_us = now_us;
        if new == Change::Shown {
            // Keys that are written say nothing of what may fail, which is what takes longest to find out.
            let safety = if safe { std::mem::take(&mut self.derived.safety) } else { OnceLock::new() };
            self.derived = Derived { safety, ..Derived::default() };
        }
        let reported = self.snapshot.reports.iter().find(|report| report.node == node);
        if let Some(Ok(snapshot)) = reported.map(|report| &report.snapshot) {
            self.operations.observe_report(snapshot, &self.snapshot);
        }
        if track.is_some_and(|track| track.rates == rates) { new } else { Change::Shown }
    }

    /// Takes the operations that are remembered.
    pub fn observe_operations(&mut self, reported: v1::OperationsResponse) {
        self.operations.observe_all(reported, &self.snapshot);
    }

    /// The moves that a list shows, in its order.
    #[must_use]
    pub fn moves_of(&self, list: &List<MoveOrder, MoveId>) -> Vec<(MoveId, &Step)> {
        self.operations.moves_of(list, |node| self.name_of(NodeId(node)))
    }

    /// A member does not report.
    pub fn lose(&mut self, node: NodeId, error: String) {
        if let Some(report) = self.snapshot.reports.iter_mut().find(|report| report.node == node) {
            report.snapshot = Err(RequestError::unavailable(error));
            self.tracks.remove(&node);
            self.derived = Derived::default();
        }
    }

    /// Keeps an event, unless it is known. A stream that was opened again repeats what is kept.
    pub fn add_event(&mut self, event: v1::Event) {
        let at = self.events.partition_point(|known| event_id(known) < event_id(&event));
        if self.events.get(at).is_some_and(|known| event_id(known) == event_id(&event)) {
            return;
        }
        let is_alike = |known: &v1::Event| is_of_kind(known, &event);
        // Details of an operation never push out what happens once.
        if self.events.iter().filter(|known| is_alike(known)).count() >= EVENTS_OF_KIND_MAX {
            let oldest = self.events.iter().position(is_alike).unwrap_or(0);
            if oldest >= at {
                return;
            }
            self.events.remove(oldest);
            self.events.insert(at - 1, event);
        } else {
            self.events.insert(at, event);
        }
    }

    /// Fills the slots of throughput up to the present second; `false` if that shows nothing new.
    pub fn pass_time(&mut self, now_us: u64) -> bool {
        let second = now_us / 1_000_000;
        let passed = second.saturating_sub(self.slot);
        if passed == 0 {
            return false;
        }
        self.slot = second;
        // A program that was stopped has seen nothing in the meantime.
        let missed = usize::try_from(passed - 1).unwrap_or(usize::MAX).min(THROUGHPUT_SLOTS);
        let rates = self.rates(now_us);
        // What was before the first rate is not a gap.
        if self.throughput.is_empty() && rates.is_none() {
            return false;
        }
        self.throughput.extend(std::iter::repeat_n(None, missed));
        self.throughput.push_back(rates);
        while self.throughput.len() > THROUGHPUT_SLOTS {
            self.throughput.pop_front();
        }
        // Where nothing was done all the time, the chart stays empty while it moves.
        self.throughput.iter().any(|slot| slot.is_none_or(|rates| rates.all() > 0.0))
    }

    /// Whether some data is so old that its age is shown.
    #[must_use]
    pub fn is_stale(&self, now_us: u64) -> bool {
        let old = |reported_us: u64| now_us.saturating_sub(reported_us) > FRESH_US;
        old(self.reported_us) || self.tracks.values().any(|track| old(track.reported_us))
    }

    /// The operations of all members that reported just now; `None` if none did.
    #[must_use]
    pub fn rates(&self, now_us: u64) -> Option<Rates> {
        let fresh = self.tracks.values().filter(|track| now_us.saturating_sub(track.reported_us) <= FRESH_US);
        fresh.filter_map(|track| track.rates).reduce(|sum, rates| Rates {
            gets: sum.gets + rates.gets,
            writes: sum.writes + rates.writes,
            contention: sum.contention + rates.contention,
        })
    }

    /// The members that a list shows, in its order.
    #[must_use]
    pub fn ordered(&self, list: &List<Column, NodeId>) -> Vec<&MemberView> {
        let shown = |member: &&MemberView| {
            let fields = [&member.member.name, &member.member.zone, &member.address];
            list.shows(state_word(self.snapshot.state(member))) || fields.into_iter().any(|field| list.shows(field))
        };
        let mut members: Vec<&MemberView> = self.snapshot.description.members.iter().filter(shown).collect();
        if list.sort == Column::Name {
            // As they joined, which is how they are lettered.
        } else if list.sort.is_text() {
            members.sort_by_cached_key(|member| self.text_of(member, list.sort));
        } else {
            // The largest first, and what is not known last.
            let metric = |member: &MemberView| self.metric(member, list.sort).unwrap_or(f64::NEG_INFINITY);
            members.sort_by(|a, b| metric(b).total_cmp(&metric(a)));
        }
        if list.reverse {
            members.reverse();
        }
        members
    }

    /// The words of a column of words.
    fn text_of(&self, member: &MemberView, column: Column) -> String {
        match column {
            Column::State => state_word(self.snapshot.state(member)).to_owned(),
            Column::Zone => member.member.zone.clone(),
            Column::Address => member.address.clone(),
            _ => member.member.name.clone(),
        }
    }

    /// The value of a numeric column; `None` if it is not known.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "values are compared and shown with three digits")]
    pub fn metric(&self, member: &MemberView, column: Column) -> Option<f64> {
        let snapshot = self.snapshot.report(member.id);
        let share = self.shares.get(&member.id);
        let rates = self.tracks.get(&member.id).and_then(|track| track.rates);
        let reported = |metric: fn(&v1::NodeSnapshot) -> u64| snapshot.map(|snapshot| metric(snapshot) as f64);
        match column {
            Column::Name | Column::State | Column::Zone | Column::Address => None,
            Column::Partitions => share.map(|share| share.partitions as f64),
            Column::Primary => share.map(|share| share.primary as f64),
            Column::Keys => reported(|snapshot| snapshot.keys),
            Column::Bytes => reported(|snapshot| snapshot.bytes),
            Column::Own | Column::Bar => share.map(|share| share.ownership),
            Column::Fair => share.map(|share| share.fair),
            Column::Over => share.map(|share| share.partitions as f64 - share.fair_partitions),
            Column::Gets => rates.map(|rates| rates.gets),
            Column::Puts => rates.map(|rates| rates.writes),
            Column::P50 => self.latency_us(member.id, |usage| usage.latency_p50_us).map(|us| us as f64),
            Column::P99 => self.latency_us(member.id, |usage| usage.latency_p99_us).map(|us| us as f64),
            Column::Hints => snapshot.and_then(|snapshot| snapshot.pending).map(|pending| pending.hints as f64),
            Column::Up => reported(|snapshot| snapshot.uptime_us),
        }
    }

    /// The stats of the partitions that a member holds, in an order; those that hold a filter's digits.
    #[must_use]
    pub fn partitions_of(&self, node: NodeId, list: &List<PartitionOrder, u32>) -> Vec<PartitionRow> {
        let Some(layout) = self.snapshot.description.layout.as_deref() else { return Vec::new() };
        let reported: BTreeMap<u32, &v1::PartitionStats> = self
            .snapshot
            .report(node)
            .into_iter()
            .flat_map(|snapshot| &snapshot.partitions)
            .map(|stats| (stats.partition, stats))
            .collect();
        let mut rows = Vec::new();
        for (id, entry) in layout.partition_ids().zip(&layout.partitions) {
            let Some(place) = entry.nodes().position(|owner| owner == node) else { continue };
            let partition = u32::from(id.0);
            if !list.shows(&partition.to_string()) {
                continue;
            }
            let stats = reported.get(&partition);
            let sum = |pick: fn(&v1::PartitionKeyspaceStats) -> u64| {
                stats.map(|stats| stats.keyspaces.iter().map(pick).sum())
            };
            rows.push(PartitionRow {
                partition,
                place,
                keys: sum(|stats| stats.keys),
                bytes: sum(|stats| stats.bytes),
                synced: stats.map(|stats| stats.synced),
                merkle_root: stats.map(|stats| stats.merkle_root),
                owners: entry.nodes().collect(),
            });
        }
        match list.sort {
            PartitionOrder::Number => {}
            PartitionOrder::Keys => rows.sort_by_key(|row| std::cmp::Reverse(row.keys)),
            PartitionOrder::Bytes => rows.sort_by_key(|row| std::cmp::Reverse(row.bytes)),
            PartitionOrder::Place => rows.sort_by_key(|row| row.place),
        }
        if list.reverse {
            rows.reverse();
        }
        rows
    }

    /// The events that a list shows, in its order: the newest first. With `audit` only changes of the cluster.
    #[must_use]
    pub fn listed(&self, list: &List<EventOrder, EventId>, audit: bool) -> Vec<&v1::Event> {
        let name = |event: &v1::Event| self.snapshot.description.name_of(NodeId(event.node));
        let shown = |event: &&v1::Event| {
            list.filter.is_empty()
                || [event.message.as_str(), event.kind().word(), &event.undo].into_iter().any(|field| list.shows(field))
                || list.shows(event.severity().as_str_name().trim_start_matches("SEVERITY_"))
                || list.shows(&name(event))
                || event.audit.as_ref().is_some_and(|audit| list.shows(&audit.by) || list.shows(&audit.command))
        };
        let shown = |event: &&v1::Event| (!audit || event.audit.is_some()) && shown(event);
        let mut events: Vec<&v1::Event> = self.events.iter().rev().filter(shown).collect();
        match list.sort {
            EventOrder::Time => {}
            EventOrder::Level => events.sort_by_key(|event| std::cmp::Reverse(event.severity)),
            EventOrder::Node => events.sort_by_key(|event| event.node),
        }
        if list.reverse {
            events.reverse();
        }
        events
    }

    /// A latency of a member in its last interval, in microseconds; `None`: no requests, or unknown.
    #[must_use]
    pub fn latency_us(&self, node: NodeId, pick: fn(&v1::Usage) -> u64) -> Option<u64> {
        let usage = self.snapshot.report(node)?.usage?;
        Some(pick(&usage)).filter(|us| *us > 0)
    }

    /// The name of a node, or its number.
    #[must_use]
    pub fn name_of(&self, node: NodeId) -> String {
        self.snapshot.description.name_of(node)
    }

    /// The place of a member in the order of the letters and colours.
    #[must_use]
    pub fn index(&self, node: NodeId) -> Option<usize> {
        self.snapshot.description.members.iter().position(|member| member.id == node)
    }

    /// The health of the snapshot.
    #[must_use]
    pub fn health(&self) -> &Health {
        self.derived.health.get_or_init(|| Health::of(&self.snapshot))
    }

    /// What may fail.
    #[must_use]
    pub fn safety(&self) -> &Safety {
        self.derived.safety.get_or_init(|| Safety::of(&self.snapshot))
    }

    /// Live keys, each once; `None` while some partition has no complete owner in reach.
    #[must_use]
    pub fn live_keys(&self) -> Option<u64> {
        *self.derived.live_keys.get_or_init(|| self.snapshot.live_keys())
    }
}

/// A partition on one of its owners.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionRow {
    /// The partition.
    pub partition: u32,
    /// The owner's place in the preference list, from 0.
    pub place: usize,
    /// Keys of all keyspaces; `None`: not reported.
    pub keys: Option<u64>,
    /// Bytes of keys and records.
    pub bytes: Option<u64>,
    /// Whether the copy is complete.
    pub synced: Option<bool>,
    /// The root of its Merkle tree.
    pub merkle_root: Option<u64>,
    /// The preference list.
    pub owners: Vec<NodeId>,
}

/// What identifies an event.
#[must_use]
pub fn event_id(event: &v1::Event) -> EventId {
    (event.time_us, event.node, event.audit.is_some(), event.sequence)
}

/// Whether two events count as the same kind, of which only so many are kept.
fn is_of_kind(one: &v1::Event, other: &v1::Event) -> bool {
    match (&one.audit, &other.audit) {
        (None, None) => one.kind == other.kind,
        (one, other) => one.is_some() == other.is_some(),
    }
}

/// The bound below which a round trip stays, in milliseconds, in the steps 1, 2, 5, 10 and so on: its digits would only
/// flicker.
#[must_use]
pub fn round_trip_ms(us: u64) -> u64 {
    let mut bound = 1;
    while us >= bound * 1000 && bound < 1_000_000 {
        bound = if bound.to_string().starts_with('2') { bound / 2 * 5 } else { bound * 2 };
    }
    bound
}

/// What a report shows that the one before did not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// Nothing.
    Nothing,
    /// Figures that only stand among the details of its node.
    Details,
    /// Figures that may be seen anywhere.
    Shown,
}

/// What has changed in a report. Every field counts that is not left out explicitly.
fn change_between(before: &mut v1::NodeSnapshot, after: &mut v1::NodeSnapshot) -> Change {
    // The stats of the partitions are many, and are compared without a copy.
    let (old, new) = (std::mem::take(&mut before.partitions), std::mem::take(&mut after.partitions));
    let (seen_before, seen_after) = (seen(before), seen(after));
    let change = if old != new || without_details(&seen_before) != without_details(&seen_after) {
        Change::Shown
    } else if seen_before != seen_after {
        Change::Details
    } else {
        Change::Nothing
    };
    (before.partitions, after.partitions) = (old, new);
    change
}

/// Whether a report says the same as the one before of what may fail: who serves, by which layout, and which copies are
/// complete.
fn is_as_safe(before: &v1::NodeSnapshot, after: &v1::NodeSnapshot) -> bool {
    let copies = |reported: &v1::NodeSnapshot| reported.partitions.len();
    let same = |(old, new): (&v1::PartitionStats, &v1::PartitionStats)| {
        (old.partition, old.synced) == (new.partition, new.synced)
    };
    before.layout_epoch == after.layout_epoch
        && before.poisoned.is_empty() == after.poisoned.is_empty()
        && copies(before) == copies(after)
        && before.partitions.iter().zip(&after.partitions).all(same)
}

/// A report as it is seen: without clocks and processor time, and with sizes and ages as coarse as they are shown.
fn seen(snapshot: &v1::NodeSnapshot) -> v1::NodeSnapshot {
    let mut seen = v1::NodeSnapshot {
        taken_us: 0,
        uptime_us: snapshot.uptime_us / 60_000_000,
        usage: snapshot.usage.map(|usage| v1::Usage {
            cpu_us: 0,
            memory_bytes: usage.memory_bytes >> 20,
            disk_bytes: usage.disk_bytes >> 20,
            disk_free_bytes: usage.disk_free_bytes >> 30,
            ..usage
        }),
        ..snapshot.clone()
    };
    for peer in &mut seen.peers {
        (peer.since_us, peer.queued_bytes, peer.round_trip_us) = (0, 0, round_trip_ms(peer.round_trip_us));
        if peer.state() == v1::MemberState::Up {
            // Why a peer is up is when it was last heard, which moves all the time and is not shown.
            peer.reason.clear();
        }
    }
    seen
}

/// A report without what is only seen among the details of its node. Rates stand for the counters elsewhere.
fn without_details(seen: &v1::NodeSnapshot) -> v1::NodeSnapshot {
    let mut rest = v1::NodeSnapshot {
        counters: None,
        usage: seen.usage.map(|usage| v1::Usage { memory_bytes: 0, disk_bytes: 0, disk_free_bytes: 0, ..usage }),
        ..seen.clone()
    };
    for peer in &mut rest.peers {
        peer.round_trip_us = 0;
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_have_few_words() {
        let reported = [0, 999, 1000, 1999, 2000, 4999, 5000, 9999, 10_000, 150_000, u64::MAX].map(round_trip_ms);
        assert_eq!(reported, [1, 1, 2, 2, 5, 5, 10, 10, 20, 200, 1_000_000]);
    }

    #[test]
    fn what_is_new_is_told_by_where_it_is_seen() {
        let check = |change: fn(&mut v1::NodeSnapshot), expected: Change| {
            let peer = v1::PeerOpinion { node: 2, state: v1::MemberState::Up.into(), ..v1::PeerOpinion::default() };
            let mut before = v1::NodeSnapshot { peers: vec![peer], ..v1::NodeSnapshot::default() };
            (before.usage, before.counters) = (Some(v1::Usage::default()), Some(v1::Counters::default()));
            let mut after = before.clone();
            change(&mut after);
            let changed = after.clone();
            assert_eq!(change_between(&mut before, &mut after), expected, "{changed:?}");
            assert_eq!(after, changed, "nothing is lost by looking");
        };
        check(|snapshot| snapshot.taken_us = 9, Change::Nothing);
        check(|snapshot| snapshot.uptime_us = 59_000_000, Change::Nothing);
        check(|snapshot| snapshot.peers[0].reason = "heard 0.1 s ago".to_owned(), Change::Nothing);
        check(|snapshot| snapshot.usage.as_mut().expect("set").disk_bytes = 1 << 20, Change::Details);
        check(|snapshot| snapshot.counters.as_mut().expect("set").commits = 1, Change::Details);
        check(|snapshot| snapshot.peers[0].round_trip_us = 5000, Change::Details);
        check(|snapshot| snapshot.usage.as_mut().expect("set").latency_p99_us = 7, Change::Shown);
        check(|snapshot| snapshot.peers[0].state = v1::MemberState::Down.into(), Change::Shown);
        check(|snapshot| snapshot.partitions = vec![v1::PartitionStats::default()], Change::Shown);
        check(|snapshot| snapshot.keys = 1, Change::Shown);
    }
}
