//! What the cluster agrees on: layouts and keyspaces, as the hub tells of them, and what follows for each component.

use std::sync::Arc;

use super::{EventLoop, ctx};
use crate::config::KeyspaceList;
use crate::parts::{Ask, Mover, Tell};
use crate::ring::Layout;
use crate::rule::Rule;
use crate::slices::Requester;
use crate::topology::{Receipt, TransferSettings};
use crate::types::{PartitionId, StoreId};
use crate::view::meta;
use crate::wiring::Timer;

impl EventLoop {
    /// The control plane has committed a layout, which is being made durable.
    fn layout_given(&mut self, layout: Arc<Layout>) {
        self.view.give(layout);
        if !self.view.keep(Rule::DropAfterAdoption) {
            self.residues.plan(ctx!(self), &mut self.exchanges);
        }
    }

    /// The layout is durable: act on it (rules D1 and E1).
    fn adopt(&mut self, layout: Arc<Layout>, original: Option<StoreId>) {
        let before = self.view.adopt(layout.clone(), original);
        for (partition, settled) in self.view.take_placed() {
            match settled {
                Some(settled) => drop(self.kernel.persist_meta(meta::settled(partition), meta::encode(&settled))),
                None => self.kernel.forget_meta(meta::settled(partition)),
            }
        }
        self.kernel.say(Ask::Adopted { epoch: layout.epoch });
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
        self.settling.restart(ctx!(self), &mut self.exchanges);
        self.sweeper.forget(&changed);
        self.purge.plan(ctx!(self));
        self.tell_caught_up();
        self.kernel.arm(self.kernel.now.mono, Timer::Handoff);
    }

    /// A receipt for a migration is durable.
    pub(super) fn covered(&mut self, receipt: Receipt) {
        let partition = receipt.partition;
        if self.view.joint_epoch(partition) == Some(receipt.joint)
            && let Some(synced) = self.view.synced_by_entering(partition)
        {
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
    /// dropped is refused at once. What is stored of that goes when the hub says that the list is durable.
    pub(super) fn keyspaces_given(&mut self, list: KeyspaceList) {
        let known = self.view.keyspaces();
        let is_older = || self.view.keep(Rule::NewestKeyspaces) && !list.is_newer_than(known);
        if list == *known || is_older() {
            return;
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
    fn transfers_given(&mut self, settings: TransferSettings) {
        self.view.transfers = settings;
        self.exchanges.limited(ctx!(self));
        self.filling.plan(ctx!(self), &mut self.exchanges);
        self.residues.arm(ctx!(self));
    }

    /// The hub has something to say.
    pub(super) fn told(&mut self, tell: Tell) {
        match tell {
            Tell::Given(layout) => self.layout_given(layout),
            Tell::Layout { layout, original } => self.adopt(layout, original),
            Tell::KeyspacesDurable(list) => self.purge.list_durable(ctx!(self), list),
            Tell::PeerUp { node, incarnation } => self.peer_known(node, incarnation),
            Tell::Transfers(settings) => self.transfers_given(settings),
            Tell::Clock(state) => self.view.clock = state,
            Tell::Turn { partition, purpose } => {
                self.filling.turn(ctx!(self), &mut self.exchanges, partition, purpose);
            }
            Tell::Booked { by: Mover::Exchange(id), booking } => self.exchanges.booked(ctx!(self), id, booking),
            Tell::Booked { by: Mover::Drop(partition), .. } => self.residues.booked(ctx!(self), partition),
            Tell::Reclaimed => self.purge.reclaimed(ctx!(self)),
            Tell::Slice { job, query } => self.slices.serve(ctx!(self), Requester::Hub { job }, query),
            Tell::Scan { tag, request, deadline } => self.requests.part_of_scan(ctx!(self), tag, request, deadline),
        }
    }
}
