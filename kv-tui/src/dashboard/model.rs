//! What the dashboard knows. The cluster's part is the same `Picture` that `exec` prints, so both show the same numbers.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use kv_core::error::RequestError;
use kv_core::types::NodeId;
use kv_proto::client::{Inspection, NodeReport};
use kv_proto::describe::{Description, MemberView};
use kv_proto::v1;

use super::bar::Bar;
use super::keymap::Screen;
use super::theme::Theme;
use crate::run::health::Health;
use crate::run::picture::{Picture, Share};

/// Seconds of throughput that are kept.
pub const THROUGHPUT_SLOTS: usize = 600;

/// Events that are kept.
pub const EVENTS_MAX: usize = 1000;

/// Figures older than this do not count as the present, in microseconds.
pub const FRESH_US: u64 = 2_500_000;

/// Lines of a command's output that are kept.
pub const OUTPUT_LINES_MAX: usize = 10_000;

/// Lines of the history that are kept.
pub const HISTORY_MAX: usize = 1000;

/// Everything that the screen depends on.
#[derive(Clone, Debug)]
pub struct Model {
    /// Columns and rows of the terminal.
    pub size: (u16, u16),
    /// The time, in microseconds since 1970-01-01T00:00:00Z.
    pub now_us: u64,
    /// How it is drawn.
    pub theme: Theme,
    /// Which cluster is meant, for the title.
    pub target: String,
    /// Refuse what changes the cluster.
    pub read_only: bool,
    /// How the connection is.
    pub link: Link,
    /// The cluster, as soon as it has been seen once.
    pub cluster: Option<Cluster>,
    /// What is shown instead while the view is frozen.
    pub frozen: Option<Box<Cluster>>,
    /// The screen.
    pub screen: Screen,
    /// Whether the help lies on top, and from which line it is shown.
    pub help: Option<usize>,
    /// The row selected among the nodes, in the order shown.
    pub node_cursor: usize,
    /// The order of the nodes.
    pub sort: Sort,
    /// Whether the grid shows all copies instead of first places.
    pub copies: bool,
    /// The first event shown, counted from the newest.
    pub event_top: usize,
    /// The keys screen.
    pub keys: Keys,
    /// The line being typed.
    pub bar: Option<Bar>,
    /// Lines typed before, oldest first.
    pub history: Vec<String>,
    /// What the last command printed.
    pub output: Option<Output>,
    /// A message to the person, until the next key.
    pub notice: String,
}

/// How the connection is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Link {
    /// The first attempt is under way.
    Connecting,
    /// It stands.
    Live,
    /// No node is in reach.
    Offline {
        /// Why.
        error: String,
        /// When it is tried again.
        retry_us: u64,
    },
}

/// The order of the nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "named as the columns")]
pub enum Sort {
    #[default]
    Name,
    Keys,
    Ownership,
    Rate,
    P99,
}

impl Sort {
    /// The column's name.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Name => "NODE",
            Self::Keys => "KEYS",
            Self::Ownership => "OWN",
            Self::Rate => "OPS/s",
            Self::P99 => "p99",
        }
    }

    /// The order after this one.
    #[must_use]
    pub fn next(self) -> Self {
        match self {
            Self::Name => Self::Keys,
            Self::Keys => Self::Ownership,
            Self::Ownership => Self::Rate,
            Self::Rate => Self::P99,
            Self::P99 => Self::Name,
        }
    }
}

/// The cluster as it was last told.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// What is agreed on, and each member's own account.
    pub picture: Picture,
    /// What the pictures together say of each member.
    pub tracks: BTreeMap<NodeId, Track>,
    /// The health of the picture.
    pub health: Health,
    /// Each member's part of the copies.
    pub shares: BTreeMap<NodeId, Share>,
    /// The newest event last.
    pub events: VecDeque<v1::Event>,
    /// One slot a second, the newest last; `None` where no member told its figures.
    pub throughput: VecDeque<Option<Rates>>,
    /// When anything was last told, in microseconds.
    pub told_us: u64,
    /// The second of the newest slot.
    pub slot: u64,
}

/// What follows from a member's last two accounts.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Track {
    /// When the last one came, in microseconds.
    pub told_us: u64,
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
}

impl Rates {
    /// The rates between two accounts; `None` if the node's process is not the same, or no time has passed.
    #[must_use]
    pub fn between(before: &v1::NodeSnapshot, after: &v1::NodeSnapshot) -> Option<Self> {
        let same = before.store_id == after.store_id && before.boot == after.boot;
        let (old, new) = (before.counters?, after.counters?);
        let passed = after.uptime_us.checked_sub(before.uptime_us).filter(|passed| *passed > 0 && same)?;
        #[allow(clippy::cast_precision_loss, reason = "rates are shown with three digits")]
        let rate = |old: u64, new: u64| new.checked_sub(old).map(|done| done as f64 * 1e6 / passed as f64);
        Some(Self { gets: rate(old.gets, new.gets)?, writes: rate(old.puts + old.deletes, new.puts + new.deletes)? })
    }

    /// All operations.
    #[must_use]
    pub fn all(self) -> f64 {
        self.gets + self.writes
    }
}

/// The keys screen.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    /// Only keys that start with it, as it was typed.
    pub prefix: String,
    /// The prefix being typed.
    pub typing: Option<Bar>,
    /// Names the newest question; answers to older ones are dropped.
    pub generation: u64,
    /// The keys that are loaded, ascending.
    pub keys: Vec<Bytes>,
    /// Where to go on; `None`: there are no more.
    pub more: Option<Bytes>,
    /// A question is under way.
    pub loading: bool,
    /// Whether the first page has been asked for.
    pub asked: bool,
    /// Why the last question failed.
    pub error: String,
    /// The selected row.
    pub cursor: usize,
    /// What the replicas of a key hold.
    pub inspected: Option<(Bytes, Result<Box<Inspection>, String>)>,
}

/// What a command printed.
#[derive(Clone, Debug, Default)]
pub struct Output {
    /// The line.
    pub line: String,
    /// What it printed.
    pub lines: VecDeque<String>,
    /// Lines that were dropped at the front.
    pub dropped: usize,
    /// The exit code, when it has ended.
    pub code: Option<u8>,
    /// Why it failed.
    pub error: String,
    /// Lines scrolled up from the end.
    pub up: usize,
}

impl Model {
    /// A dashboard that has seen nothing yet.
    #[must_use]
    pub fn new(target: String, theme: Theme, read_only: bool, size: (u16, u16), now_us: u64) -> Self {
        Self {
            size,
            now_us,
            theme,
            target,
            read_only,
            link: Link::Connecting,
            cluster: None,
            frozen: None,
            screen: Screen::Overview,
            help: None,
            node_cursor: 0,
            sort: Sort::default(),
            copies: false,
            event_top: 0,
            keys: Keys::default(),
            bar: None,
            history: Vec::new(),
            output: None,
            notice: String::new(),
        }
    }

    /// The cluster that is on the screen.
    #[must_use]
    pub fn shown(&self) -> Option<&Cluster> {
        self.frozen.as_deref().or(self.cluster.as_ref())
    }

    /// The member that is selected.
    #[must_use]
    pub fn selected(&self) -> Option<&MemberView> {
        self.shown()?.ordered(self.sort).get(self.node_cursor).copied()
    }
}

impl Cluster {
    /// A cluster of which only the description is known.
    #[must_use]
    pub fn new(description: Arc<Description>, now_us: u64) -> Self {
        let picture = Picture { description, reports: Vec::new() };
        let mut cluster = Self {
            health: Health::of(&picture),
            shares: picture.shares(),
            picture,
            tracks: BTreeMap::new(),
            events: VecDeque::new(),
            throughput: VecDeque::new(),
            told_us: now_us,
            slot: now_us / 1_000_000,
        };
        cluster.describe(Arc::clone(&cluster.picture.description));
        cluster
    }

    /// Takes a newer description; members that have gone are forgotten.
    pub fn describe(&mut self, description: Arc<Description>) {
        let ids: Vec<NodeId> = description.members.iter().map(|member| member.id).collect();
        self.picture.reports.retain(|report| ids.contains(&report.node));
        self.tracks.retain(|node, _| ids.contains(node));
        for member in &description.members {
            match self.picture.reports.iter_mut().find(|report| report.node == member.id) {
                Some(report) => report.address.clone_from(&member.address),
                None => self.picture.reports.push(NodeReport {
                    node: member.id,
                    address: member.address.clone(),
                    snapshot: Err(RequestError::unavailable("its figures have not come yet")),
                    events: Vec::new(),
                }),
            }
        }
        self.picture.description = description;
        self.shares = self.picture.shares();
        self.judge();
    }

    /// Takes a member's account.
    pub fn report(&mut self, node: NodeId, snapshot: Box<v1::NodeSnapshot>, now_us: u64) {
        let Some(report) = self.picture.reports.iter_mut().find(|report| report.node == node) else { return };
        let rates = report.snapshot.as_ref().ok().and_then(|before| Rates::between(before, &snapshot));
        report.snapshot = Ok(snapshot);
        self.tracks.insert(node, Track { told_us: now_us, rates });
        self.told_us = now_us;
        self.judge();
    }

    /// A member does not tell its figures.
    pub fn lose(&mut self, node: NodeId, error: String) {
        if let Some(report) = self.picture.reports.iter_mut().find(|report| report.node == node) {
            report.snapshot = Err(RequestError::unavailable(error));
            self.tracks.remove(&node);
            self.judge();
        }
    }

    /// Keeps an event, unless it is known. A stream that was opened again repeats what is kept.
    pub fn add_event(&mut self, event: v1::Event) {
        let order = |event: &v1::Event| (event.time_us, event.node, event.sequence);
        let at = self.events.partition_point(|known| order(known) < order(&event));
        if self.events.get(at).is_some_and(|known| order(known) == order(&event)) {
            return;
        }
        self.events.insert(at, event);
        if self.events.len() > EVENTS_MAX {
            self.events.pop_front();
        }
    }

    /// Fills the slots of throughput up to the present second.
    pub fn pass_time(&mut self, now_us: u64) {
        let second = now_us / 1_000_000;
        let passed = second.saturating_sub(self.slot);
        if passed == 0 {
            return;
        }
        self.slot = second;
        // A program that was stopped has seen nothing meanwhile.
        let missed = usize::try_from(passed - 1).unwrap_or(usize::MAX).min(THROUGHPUT_SLOTS);
        let rates = self.rates(now_us);
        // What was before the first rate is not a gap.
        if self.throughput.is_empty() && rates.is_none() {
            return;
        }
        self.throughput.extend(std::iter::repeat_n(None, missed));
        self.throughput.push_back(rates);
        while self.throughput.len() > THROUGHPUT_SLOTS {
            self.throughput.pop_front();
        }
    }

    /// The operations of all members that told their figures just now; `None` if none did.
    #[must_use]
    pub fn rates(&self, now_us: u64) -> Option<Rates> {
        let fresh = self.tracks.values().filter(|track| now_us.saturating_sub(track.told_us) <= FRESH_US);
        fresh
            .filter_map(|track| track.rates)
            .reduce(|sum, rates| Rates { gets: sum.gets + rates.gets, writes: sum.writes + rates.writes })
    }

    /// The 99th percentile of a member's latency in its last interval, in microseconds; `None`: no requests, or unknown.
    #[must_use]
    pub fn p99_us(&self, node: NodeId) -> Option<u64> {
        let usage = self.picture.snapshot(node)?.usage?;
        (usage.latency_p99_us > 0).then_some(usage.latency_p99_us)
    }

    /// The members in an order.
    #[must_use]
    pub fn ordered(&self, sort: Sort) -> Vec<&MemberView> {
        let mut members: Vec<&MemberView> = self.picture.description.members.iter().collect();
        let keys = |member: &MemberView| self.picture.snapshot(member.id).map(|snapshot| snapshot.keys);
        let rate = |member: &MemberView| self.tracks.get(&member.id).and_then(|track| track.rates).map(Rates::all);
        let share = |member: &MemberView| self.shares.get(&member.id).map(|share| share.partitions);
        match sort {
            Sort::Name => {}
            Sort::Keys => members.sort_by_key(|member| std::cmp::Reverse(keys(member))),
            Sort::Ownership => members.sort_by_key(|member| std::cmp::Reverse(share(member))),
            Sort::Rate => members.sort_by(|a, b| rate(b).unwrap_or(-1.0).total_cmp(&rate(a).unwrap_or(-1.0))),
            Sort::P99 => members.sort_by_key(|member| std::cmp::Reverse(self.p99_us(member.id))),
        }
        members
    }

    /// The place of a member in the order of the letters and colours.
    #[must_use]
    pub fn index(&self, node: NodeId) -> Option<usize> {
        self.picture.description.members.iter().position(|member| member.id == node)
    }

    fn judge(&mut self) {
        self.health = Health::of(&self.picture);
    }
}
