//! Layouts: durable first, then acted on (rules D1 and E1).

use std::sync::Arc;

use super::{Effect, Node, meta};
use crate::config::Keyspace;
use crate::event::Event;
use crate::node::keys::Held;
use crate::ring::{FIRST_EPOCH, Layout};
use crate::rule::Rule;
use crate::types::{KeyspaceId, PartitionId};

impl Node {
    pub(super) fn layout_given(&mut self, layout: Arc<Layout>) {
        if layout.epoch <= self.newest {
            return;
        }
        let store = self.incarnation.store;
        let is_member = |layout: &Layout| layout.members.get(&self.config.node).is_some_and(|me| me.store == store);
        if layout.epoch == FIRST_EPOCH && is_member(&layout) {
            self.original = Some(store);
        }
        if self.original == Some(store) {
            // With every layout, so that no disk can keep a later one and lose this.
            self.persist_meta(bytes::Bytes::from_static(meta::ORIGINAL), meta::encode(&store));
        }
        self.newest = layout.epoch;
        self.given = Some(layout.clone());
        if !self.rules.keep(Rule::DropAfterAdoption) {
            self.plan_handovers();
        }
        let durable = self.persist_meta(bytes::Bytes::from_static(meta::LAYOUT), meta::encode(&*layout));
        let durable = if self.rules.keep(Rule::DurableLayout) { durable } else { self.durable };
        self.hold(durable, Held::Adopt(layout));
    }

    /// The layout is durable: act on it.
    pub(super) fn adopt(&mut self, layout: Arc<Layout>) {
        let epoch = layout.epoch;
        if self.layout.as_ref().is_some_and(|current| current.epoch >= epoch) {
            return;
        }
        let before = self.layout.replace(layout.clone());
        self.out.push(Effect::Event(Event::LayoutAdopted { epoch }));
        let changed = |partition: PartitionId| {
            let old = before.as_ref().and_then(|before| before.entry(partition));
            old.map(|entry| entry.changed) != layout.entry(partition).map(|entry| entry.changed)
        };
        // A phase of a request never mixes epochs (rule E2): what was asked by the old entry is asked again.
        self.reroute(&changed);
        self.restart_copies(&changed);
        self.restart_repairs(&changed);
        self.plan_handovers();
        self.plan_purge();
        self.tell_caught_up(epoch);
        self.arm(self.now.mono, super::Timer::Handoff);
    }

    pub(crate) fn keyspace(&self, id: KeyspaceId) -> Option<&Keyspace> {
        self.keyspaces.get(id)
    }

    /// Whether this node owns `partition` (while it migrates: as an old or a new owner) and this loop serves it.
    pub(crate) fn owns(&self, partition: PartitionId) -> bool {
        self.config.partitions.contains(partition)
            && self
                .layout
                .as_ref()
                .and_then(|layout| layout.entry(partition))
                .is_some_and(|entry| entry.owns(self.config.node))
    }

    /// Whether this store holds what the layout expects of an owner of `partition`: it was there when the cluster was
    /// formed and has owned the partition from the start, or it has been refilled or copied to since (rules D2 and E3).
    /// That the layout names this store is not enough: a member whose store was lost is listed with its new one. But a
    /// store that it does not name was given up, or has still to be filled: another one may have confirmed what it lacks,
    /// and peers that lost their own memory do not recognise it. Who only enters a migrating partition is not asked alone, however much it holds.
    pub(crate) fn is_synced(&self, partition: PartitionId) -> bool {
        if !self.rules.keep(Rule::RefillLostStore) {
            return true;
        }
        let Some(layout) = &self.layout else { return false };
        let Some(entry) = layout.entry(partition) else { return false };
        let Some(owner) = entry.owners.iter().find(|owner| owner.node == self.config.node) else { return false };
        let store = self.incarnation.store;
        if !self.is_listed() {
            return false;
        }
        let original = self.original == Some(store) && owner.since <= FIRST_EPOCH;
        let counts = |synced: &meta::Synced| {
            synced.0 == store && (synced.1 == owner.since || !self.rules.keep(Rule::SinceCounts))
        };
        original || self.synced.get(&partition).is_some_and(counts)
    }

    /// Whether this node's confirmations and answers count for `partition`: as those of a complete old owner, or of one
    /// that enters, which count among the new owners only (rule A3).
    pub(crate) fn holds(&self, partition: PartitionId) -> bool {
        let enters = || self.entry(partition).is_some_and(|entry| entry.enters(self.config.node));
        self.is_synced(partition) || (self.is_listed() && enters())
    }

    /// The partition holds all that its other owners held: remember it, then serve it.
    pub(crate) fn mark_synced(&mut self, partition: PartitionId) {
        let Some(owner) = self
            .entry(partition)
            .and_then(|entry| entry.owners.iter().find(|owner| owner.node == self.config.node).copied())
        else {
            return;
        };
        let synced = (self.incarnation.store, owner.since);
        let durable = self.persist_meta(meta::synced(partition), meta::encode(&synced));
        self.hold(durable, Held::Synced { partition, synced });
    }
}
