//! What the cluster agrees on: layouts and keyspaces, durable first and then acted on (rules D1 and E1), and what follows
//! for each component.

use std::sync::Arc;

use bytes::Bytes;

use super::{Node, ctx};
use crate::config::KeyspaceList;
use crate::event::Event;
use crate::message::Message;
use crate::ring::Layout;
use crate::rule::Rule;
use crate::topology::{Receipt, TransferSettings};
use crate::types::PartitionId;
use crate::view::meta;
use crate::wiring::{AfterDurable, Timer};

impl Node {
    /// The control plane has committed a layout.
    pub(super) fn layout_given(&mut self, layout: Arc<Layout>) {
        if !self.view.give(&layout) {
            return;
        }
        if self.view.is_original() {
            // With every layout, so that no disk can keep a later one and lose this.
            let store = meta::encode(&self.view.incarnation.store);
            self.kernel.persist_meta(Bytes::from_static(meta::ORIGINAL), store);
        }
        if !self.view.keep(Rule::DropAfterAdoption) {
            self.residues.plan(ctx!(self), &mut self.exchanges);
        }
        let durable = self.kernel.persist_meta(Bytes::from_static(meta::LAYOUT), meta::encode(&*layout));
        let durable = if self.view.keep(Rule::DurableLayout) { durable } else { self.kernel.durable() };
        self.kernel.after(durable, AfterDurable::Adopt(layout));
    }

    /// The layout is durable: act on it.
    pub(super) fn adopt(&mut self, layout: Arc<Layout>) {
        let epoch = layout.epoch;
        let Ok(before) = self.view.adopt(layout.clone()) else { return };
        self.kernel.event(Event::LayoutAdopted { epoch });
        let changed = |partition: PartitionId| {
            let old = before.as_ref().and_then(|before| before.entry(partition));
            old.map(|entry| entry.changed) != layout.entry(partition).map(|entry| entry.changed)
        };
        // A phase of a request never mixes epochs (rule E2): what was asked by the old entry is asked again.
        self.requests.reroute(ctx!(self), &changed);
        self.replications.reroute(ctx!(self), &changed);
        self.filling.restart(ctx!(self), &mut self.exchanges, &changed);
        self.comparisons.restart(ctx!(self), &mut self.exchanges, &changed);
        self.residues.plan(ctx!(self), &mut self.exchanges);
        self.purge.plan(ctx!(self));
        self.tell_caught_up();
        self.kernel.arm(self.kernel.now.mono, Timer::Handoff);
    }

    /// A receipt for a migration is durable.
    pub(super) fn covered(&mut self, receipt: Receipt) {
        let (partition, synced) = (receipt.partition, (receipt.store, receipt.joint));
        if self.view.enters(partition) && self.view.joint_epoch(partition) == Some(receipt.joint) {
            self.view.note_synced(partition, synced);
        }
        if self.filling.receipt_durable(ctx!(self), &mut self.exchanges, receipt) {
            self.comparisons.recount();
        }
    }

    /// It is durable that a partition is complete.
    pub(super) fn synced(&mut self, partition: PartitionId, synced: meta::Synced) {
        self.view.note_synced(partition, synced);
        self.filling.refilled(ctx!(self), &mut self.exchanges, partition);
        self.comparisons.recount();
        self.comparisons.add_partition(ctx!(self), &mut self.exchanges, partition);
    }

    /// A list of keyspaces, from the control plane or from a peer. What exists by it can be used at once, and what was
    /// dropped is refused at once. What is stored of that goes when the list is durable.
    pub(super) fn keyspaces_given(&mut self, list: KeyspaceList) {
        let known = self.view.keyspaces();
        let is_older = || self.view.keep(Rule::NewestKeyspaces) && !list.is_newer_than(known);
        if list == *known || is_older() {
            return;
        }
        let durable = self.kernel.persist_meta(meta::keyspaces(), meta::encode(&list));
        self.kernel.after(durable, AfterDurable::Keyspaces(Box::new(list.clone())));
        for peer in self.kernel.peers.up() {
            self.kernel.send(peer, Message::Keyspaces { list: list.clone() });
        }
        self.view.replace_keyspaces(list);
        self.requests.end_dropped(ctx!(self));
        self.replications.give_up_dropped(ctx!(self));
        // Whoever was refused something on a keyspace that was not known here may ask again.
        if self.view.layout().is_some() {
            self.tell_caught_up();
        }
    }

    /// How fast partitions may be copied from now on.
    pub(super) fn transfers_given(&mut self, settings: TransferSettings) {
        if self.view.transfers == settings {
            return;
        }
        self.view.transfers = settings;
        self.exchanges.limited(ctx!(self));
        self.filling.plan(ctx!(self), &mut self.exchanges);
        self.residues.arm(ctx!(self));
    }
}
