//! The cluster's health in words, with the reasons and what to do: a pure function of the picture.

use kv_core::types::NodeId;

use super::picture::{Picture, state_word};
use kv_proto::v1;

/// The word for a cluster's health, the worst that applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Word {
    /// All members are up, every partition has all of its copies, nothing is pending.
    Healthy,
    /// As healthy, but writes are still on their way to some copies.
    Settling,
    /// Every request can be served, but some copy or member is missing.
    Degraded,
    /// Some partition cannot meet R or W with its owners.
    Unavailable,
    /// The cluster waits for its first members.
    Forming,
}

impl Word {
    /// The word.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Settling => "settling",
            Self::Degraded => "degraded",
            Self::Unavailable => "unavailable",
            Self::Forming => "forming",
        }
    }
}

/// Why, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// What is the matter.
    pub what: String,
    /// What to do; empty: wait.
    pub remedy: String,
}

/// The health of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// In a word.
    pub word: Word,
    /// Why it is not healthy.
    pub reasons: Vec<Reason>,
    /// Whether every partition can meet R and W.
    pub ready: bool,
    /// Whether nothing is pending on any member, all of which were asked.
    pub idle: bool,
}

impl Health {
    /// The health that a picture shows.
    #[must_use]
    pub fn of(picture: &Picture) -> Self {
        let mut health = Self { word: Word::Healthy, reasons: Vec::new(), ready: true, idle: true };
        if picture.description.layout.is_none() {
            let (present, expected) = picture.description.forming.unwrap_or_default();
            health.ready = false;
            health.because(
                Word::Forming,
                format!("{present} of {expected} members have reported"),
                "start the other nodes with --join",
            );
            return health;
        }
        health.look_at_members(picture);
        health.look_at_partitions(picture);
        health.look_at_pending(picture);
        health
    }

    fn because(&mut self, word: Word, what: impl Into<String>, remedy: impl Into<String>) {
        self.word = self.word.max(word);
        self.reasons.push(Reason { what: what.into(), remedy: remedy.into() });
    }

    fn look_at_members(&mut self, picture: &Picture) {
        let newest = picture.snapshots().map(|snapshot| snapshot.layout_epoch).max().unwrap_or(0);
        for member in &picture.description.members {
            let name = &member.member.name;
            match picture.snapshot(member.id) {
                None => {
                    let why = picture.reports.iter().find(|report| report.node == member.id).map_or_else(
                        || "its address is not known".to_owned(),
                        |report| report.snapshot.as_ref().map_or_else(|error| error.message.clone(), |_| String::new()),
                    );
                    self.idle = false;
                    self.because(
                        Word::Degraded,
                        format!("{name} is not in reach ({why})"),
                        format!("start {name}, or check the network between here and it"),
                    );
                }
                Some(snapshot) if !snapshot.poisoned.is_empty() => {
                    self.idle = false;
                    self.because(
                        Word::Degraded,
                        format!("{name} has stopped serving: {}", snapshot.poisoned),
                        format!("check the disk of {name}, then restart it"),
                    );
                }
                Some(snapshot) if snapshot.layout_epoch < newest => {
                    self.because(
                        Word::Settling,
                        format!("{name} acts on layout {}, the newest is {newest}", snapshot.layout_epoch),
                        "",
                    );
                }
                Some(_) => {}
            }
        }
        self.look_at_opinions(picture);
    }

    /// A member may be in reach from here and not from its peers.
    fn look_at_opinions(&mut self, picture: &Picture) {
        for snapshot in picture.snapshots() {
            for peer in &snapshot.peers {
                let state = peer.state();
                let bad = matches!(state, v1::MemberState::Down | v1::MemberState::Suspect);
                if bad && picture.serves(NodeId(peer.node)) {
                    let name = picture.description.name_of(NodeId(peer.node));
                    let why = if peer.reason.is_empty() { String::new() } else { format!(": {}", peer.reason) };
                    self.because(
                        Word::Degraded,
                        format!("{} takes {name} to be {}{why}", snapshot.name, state_word(state)),
                        format!("check the network between {} and {name}", snapshot.name),
                    );
                }
            }
        }
    }

    fn look_at_partitions(&mut self, picture: &Picture) {
        let Some(layout) = picture.description.layout.as_deref() else { return };
        let strictest = picture.description.keyspaces.iter().map(|keyspace| keyspace.r.max(keyspace.w)).max();
        let needed = usize::from(strictest.unwrap_or(1));
        let (mut short, mut unsynced) = (0_usize, 0_usize);
        for (id, entry) in layout.partition_ids().zip(&layout.partitions) {
            let serving = entry.nodes().filter(|owner| picture.serves(*owner)).count();
            short += usize::from(serving < needed.min(entry.owners.len()));
            unsynced += entry
                .nodes()
                .filter(|owner| {
                    let figures = picture.snapshot(*owner).into_iter().flat_map(|snapshot| &snapshot.partitions);
                    figures.clone().any(|figures| figures.partition == u32::from(id.0) && !figures.synced)
                })
                .count();
        }
        if short > 0 {
            self.ready = false;
            self.because(
                Word::Unavailable,
                format!("{short} of {} partitions have too few owners in reach for R or W", layout.partitions.len()),
                "start the nodes that are down",
            );
        }
        if unsynced > 0 {
            self.because(Word::Degraded, format!("{unsynced} copies of partitions are being refilled"), "");
        }
        let wanted = usize::from(layout.copies);
        let may_own = layout.owners_per_partition();
        if may_own < wanted {
            // A small cluster is a complete store: it grows copies as members come.
            self.because(
                Word::Healthy,
                format!("{wanted} copies are wanted, {may_own} members may hold one"),
                "add nodes for more copies",
            );
        }
    }

    fn look_at_pending(&mut self, picture: &Picture) {
        let pending = picture.pending();
        let parts = [
            (pending.requests, "requests in flight"),
            (pending.replications, "writes on their way to a copy"),
            (pending.hints, "hints held for absent owners"),
            (pending.lag, "keys that a copy lacks"),
            (pending.refills, "partitions being refilled"),
        ];
        let parts: Vec<String> =
            parts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
        if !parts.is_empty() {
            self.idle = false;
            self.because(Word::Settling, parts.join(", "), "");
        }
    }
}
