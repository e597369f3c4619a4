//! Settings. Those that all nodes must share and those of one node are two types, so that they cannot be confused.

mod mode;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use mode::{Available, AvailableKeyspace, Mode};

use crate::types::{KeyspaceId, NodeId};
use crate::version::Conflict;

/// Settings on which all nodes of a cluster must agree. They travel in the handshake.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterConfig {
    /// The longest key, in bytes.
    pub key_bytes_max: usize,
    /// The longest value, in bytes.
    pub value_bytes_max: usize,
    /// The most values that may stand side by side in one record before a put must name the context that it replaces.
    pub siblings_max: usize,
    /// The most actors in one record's context.
    pub actors_max: usize,
    /// How far ahead of a node's clock a timestamp may be (rule A8).
    pub clock_skew_max: Duration,
    /// For how long a request may be repeated: one whose stamp is older is refused (rule A7).
    pub repeat_within: Duration,
}

impl ClusterConfig {
    /// The most bytes of values in one record with several siblings: two values of the greatest length.
    #[must_use]
    pub fn record_bytes_max(&self) -> usize {
        self.value_bytes_max.saturating_mul(2)
    }

    /// For how long a request is remembered whose value was replaced: as long as it may be repeated, by every clock (rule A7).
    #[must_use]
    pub fn requests_kept(&self) -> Duration {
        self.repeat_within.saturating_add(self.clocks_apart_max())
    }

    /// The most that the clocks of two nodes may be apart, each of which is as far from the truth as is allowed.
    #[must_use]
    pub fn clocks_apart_max(&self) -> Duration {
        self.clock_skew_max.saturating_mul(2)
    }
}

impl Default for ClusterConfig {
    fn default() -> Self {
        Self {
            key_bytes_max: 4 * 1024,
            value_bytes_max: 1024 * 1024,
            siblings_max: 32,
            actors_max: 4096,
            clock_skew_max: Duration::from_millis(500),
            repeat_within: Duration::from_secs(600),
        }
    }
}

/// Settings of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    /// The node.
    pub node: NodeId,
    /// How many loops the node has, from 1. Each serves an equal part of the partitions, and has an equal part of the node's
    /// limits on memory.
    pub loops: u16,
    /// Seeds the hash maps; random in production.
    pub map_seed: u64,
    /// Bytes of decoded records kept in memory.
    pub hot_bytes_max: usize,
    /// Requests in flight, client and forwarded ones together. One more is refused.
    pub requests_max: usize,
    /// Bytes of keys and values of writes in flight, client's and forwarded ones together. One that does not fit is refused.
    pub request_bytes_max: usize,
    /// Bytes of answers of replicas held for reads in flight. A read whose answers do not fit is refused.
    pub answer_bytes_max: usize,
    /// Bytes of records sent to one peer that it has not answered. A write that needs the peer is refused beyond it; when
    /// they reach this and `request_bytes_max`, the peer gets no more records and missed-write markers take their place.
    pub peer_bytes_max: usize,
    /// Operations that may wait for one key.
    pub key_waiters_max: usize,
    /// Replications that may be unconfirmed at once; beyond it, puts are refused.
    pub replications_max: usize,
    /// Bytes of hints that the node holds for others; beyond it, new hints are refused (rule A5).
    pub hint_bytes_max: u64,
    /// How long a request may take if it does not say.
    pub deadline: Duration,
    /// How long a read waits for the replicas that it asked first before it asks the others, and a forwarded request for
    /// its coordinator before another owner gets it, too.
    pub hedge_after: Duration,
    /// How long a peer may say nothing at all, although it was asked something, until requests go on without it and ask it
    /// last. It is asked to show itself after half of that. Three times its shortest round trip, if that is longer.
    pub stall_after: Duration,
    /// How long a replication waits for a confirmation before it is sent again; doubled each time, up to 16 times this.
    pub retry_after: Duration,
    /// Hints and missed-write markers delivered at once.
    pub handoffs_max: usize,
    /// How often the node looks for hints and missed-write markers that can be delivered.
    pub handoff_every: Duration,
    /// The bound on how long an expired key stays in the counts: every record is looked at once in this time.
    pub sweep_every: Duration,
    /// Entries in a slice of a scan, a sweep or a refill.
    pub slice_entries_max: usize,
    /// Bytes in such a slice.
    pub slice_bytes_max: usize,
    /// Bytes of records that one question of an exchange brings. Requests that come meanwhile wait for as much work, so it
    /// is far less than a slice may have.
    pub copy_bytes_max: usize,
    /// Partitions that a refill copies at once.
    pub refills_max: usize,
    /// In this time every owned partition is compared once with each of its other owners (anti-entropy); zero: never.
    pub repair_every: Duration,
    /// A tombstone is collected when it is older than this and twice `ClusterConfig::clock_skew_max`, by the clock of every member,
    /// and has settled (rule A6).
    pub collect_after: Duration,
    /// How often the node looks whether there is something to collect, and how long it waits after it was hindered; zero: never.
    pub settle_every: Duration,
}

impl NodeConfig {
    /// The defaults for `node`.
    #[must_use]
    pub fn new(node: NodeId) -> Self {
        Self {
            node,
            loops: 1,
            map_seed: 0,
            hot_bytes_max: 64 * 1024 * 1024,
            requests_max: 4096,
            request_bytes_max: 32 * 1024 * 1024,
            answer_bytes_max: 64 * 1024 * 1024,
            peer_bytes_max: 16 * 1024 * 1024,
            key_waiters_max: 1024,
            replications_max: 65_536,
            hint_bytes_max: 1024 * 1024 * 1024,
            deadline: Duration::from_secs(5),
            hedge_after: Duration::from_millis(50),
            stall_after: Duration::from_millis(100),
            retry_after: Duration::from_millis(500),
            handoffs_max: 64,
            handoff_every: Duration::from_secs(1),
            sweep_every: Duration::from_secs(600),
            slice_entries_max: 1024,
            slice_bytes_max: 1024 * 1024,
            copy_bytes_max: 48 * 1024,
            refills_max: 4,
            repair_every: Duration::from_secs(3600),
            collect_after: Duration::from_secs(600),
            settle_every: Duration::from_secs(60),
        }
    }
}

impl NodeConfig {
    /// The settings of one of the node's loops. Limits on what may be in flight are divided: no loop waits for another one to
    /// give something back, and all together never hold more than the node may. What limits one piece of work stays.
    #[must_use]
    pub(crate) fn of_loop(&self, index: u16) -> Self {
        let of = self.loops.max(1);
        let part = |most: usize| most.div_ceil(usize::from(of));
        Self {
            map_seed: self.map_seed ^ (u64::from(index) << 48),
            hot_bytes_max: self.hot_bytes_max / usize::from(of),
            requests_max: part(self.requests_max),
            request_bytes_max: part(self.request_bytes_max),
            answer_bytes_max: part(self.answer_bytes_max),
            peer_bytes_max: part(self.peer_bytes_max),
            replications_max: part(self.replications_max),
            hint_bytes_max: self.hint_bytes_max.div_ceil(u64::from(of)),
            handoffs_max: part(self.handoffs_max),
            ..self.clone()
        }
    }
}

/// A named set of keys and its consistency settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keyspace {
    /// Its number, never used again after a drop.
    pub id: KeyspaceId,
    /// Its name, unique in the cluster.
    pub name: String,
    /// What it promises.
    pub mode: Mode,
}

impl Keyspace {
    /// The keyspace that exists from the start: available, R=2, W=2, siblings.
    #[must_use]
    pub fn initial() -> Self {
        let mode = Mode::Available(Available { r: 2, w: 2, strict: false, conflict: Conflict::Siblings });
        Self { id: KeyspaceId(0), name: "default".to_owned(), mode }
    }
}

/// The keyspaces on which the cluster has agreed. Lists of one cluster only ever get newer: a number is given out once, and
/// a keyspace that was dropped never comes back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyspaceList {
    /// The number of the next keyspace. A lower number that is not listed was dropped.
    next: KeyspaceId,
    keyspaces: BTreeMap<KeyspaceId, Keyspace>,
}

impl KeyspaceList {
    /// A list. `next` is the number that the next keyspace will get.
    #[must_use]
    pub fn new(next: KeyspaceId, keyspaces: impl IntoIterator<Item = Keyspace>) -> Self {
        let keyspaces: BTreeMap<KeyspaceId, Keyspace> = keyspaces.into_iter().map(|it| (it.id, it)).collect();
        let above = keyspaces.last_key_value().map_or(0, |(id, _)| id.0.saturating_add(1));
        Self { next: KeyspaceId(next.0.max(above)), keyspaces }
    }

    /// The list from the start.
    #[must_use]
    pub fn initial() -> Self {
        Self::new(KeyspaceId(0), [Keyspace::initial()])
    }

    /// The keyspace of a number, if it exists.
    #[must_use]
    pub fn get(&self, id: KeyspaceId) -> Option<&Keyspace> {
        self.keyspaces.get(&id)
    }

    /// The number that the next keyspace will get.
    #[must_use]
    pub fn next(&self) -> KeyspaceId {
        self.next
    }

    /// The keyspaces that exist, ascending by number.
    pub fn iter(&self) -> impl Iterator<Item = &Keyspace> {
        self.keyspaces.values()
    }

    /// Whether there was a keyspace of this number that exists no more. One that is younger than the list was not dropped.
    #[must_use]
    pub fn is_dropped(&self, id: KeyspaceId) -> bool {
        id < self.next && !self.keyspaces.contains_key(&id)
    }

    /// How many keyspaces were dropped.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        u64::from(self.next.0).saturating_sub(self.keyspaces.len() as u64)
    }

    /// The lowest number above `id` that was not dropped.
    pub(crate) fn next_kept(&self, id: KeyspaceId) -> KeyspaceId {
        let above = (std::ops::Bound::Excluded(id), std::ops::Bound::Unbounded);
        self.keyspaces.range(above).next().map_or(self.next, |(id, _)| *id)
    }

    /// Whether this list is newer than another one of the same cluster: each creation and each drop makes it so.
    #[must_use]
    pub fn is_newer_than(&self, other: &Self) -> bool {
        self.changes() > other.changes()
    }

    /// How often it was changed: keyspaces that were ever created, and those that were dropped.
    fn changes(&self) -> u64 {
        u64::from(self.next.0) + self.dropped()
    }

    /// Whether a list that came from elsewhere says what lists may say.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.keyspaces.iter().all(|(id, keyspace)| *id == keyspace.id && *id < self.next)
    }
}

impl Default for KeyspaceList {
    fn default() -> Self {
        Self::initial()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_only_get_newer_and_know_what_was_dropped() {
        let keyspace = |id: u32| Keyspace { id: KeyspaceId(id), name: format!("k{id}"), ..Keyspace::initial() };
        let first = KeyspaceList::initial();
        let created = KeyspaceList::new(KeyspaceId(3), [keyspace(0), keyspace(1), keyspace(2)]);
        let dropped = KeyspaceList::new(KeyspaceId(3), [keyspace(0), keyspace(2)]);
        let again = KeyspaceList::new(KeyspaceId(4), [keyspace(0), keyspace(2), keyspace(3)]);
        let lists = [&first, &created, &dropped, &again];
        for (at, list) in lists.iter().enumerate() {
            assert!(list.is_valid());
            for (other_at, other) in lists.iter().enumerate() {
                assert_eq!(list.is_newer_than(other), at > other_at, "{list:?} and {other:?}");
            }
        }
        assert_eq!((created.dropped(), dropped.dropped()), (0, 1));
        assert_eq!([0, 1, 2, 3].map(|id| dropped.is_dropped(KeyspaceId(id))), [false, true, false, false]);
        assert_eq!([0, 1, 2].map(|id| dropped.next_kept(KeyspaceId(id)).0), [2, 2, 3]);
        let forged = KeyspaceList { next: KeyspaceId(1), ..created };
        assert!(!forged.is_valid());
    }
}
