//! What the cluster agrees on: layouts and keyspaces. The hub makes them durable, once for all loops, and tells these (rules
//! D1 and E1).

use std::sync::Arc;

use bytes::Bytes;

use super::sessions::Sessions;
use super::{HubDurable, Kernel, To};
use crate::config::KeyspaceList;
use crate::error::StorageError;
use crate::event::Event;
use crate::message::Message;
use crate::parts::Tell;
use crate::ring::{FIRST_EPOCH, Layout};
use crate::rule::Rule;
use crate::storage::Reader;
use crate::types::{Epoch, Incarnation, NodeId, StoreId};
use crate::view::meta;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Agreed {
    store: StoreId,
    /// The store, if it was there when the cluster was formed.
    original: Option<StoreId>,
    /// The newest layout given, durable or not.
    newest: Epoch,
    /// The newest layout that loops were told to act on.
    told: Epoch,
    /// On which layout each loop acts.
    acts_on: Vec<Epoch>,
    keyspaces: KeyspaceList,
}

impl Agreed {
    pub(super) fn recover(incarnation: Incarnation, loops: usize, reader: &impl Reader) -> Result<Self, StorageError> {
        let layout: Option<Layout> = meta::read(reader, meta::LAYOUT)?;
        let epoch = layout.map_or(Epoch(0), |layout| layout.epoch);
        Ok(Self {
            store: incarnation.store,
            original: meta::read(reader, meta::ORIGINAL)?,
            newest: epoch,
            told: epoch,
            acts_on: vec![epoch; loops],
            keyspaces: meta::read(reader, meta::KEYSPACES)?.unwrap_or_default(),
        })
    }

    /// The keyspaces that are known here.
    pub(super) fn list(&self) -> &KeyspaceList {
        &self.keyspaces
    }

    /// The control plane has committed a layout.
    pub(super) fn layout(&mut self, kernel: &mut Kernel, me: NodeId, layout: Arc<Layout>) {
        if layout.epoch <= self.newest {
            return;
        }
        self.newest = layout.epoch;
        let is_member = || layout.members.get(&me).is_some_and(|me| me.store == self.store);
        if layout.epoch == FIRST_EPOCH && is_member() {
            self.original = Some(self.store);
        }
        if self.original == Some(self.store) {
            // With every layout, so that no disk can keep a later one and lose this.
            kernel.persist_meta(Bytes::from_static(meta::ORIGINAL), meta::encode(&self.store));
        }
        kernel.say((To::All, Tell::Given(layout.clone())));
        let durable = kernel.persist_meta(Bytes::from_static(meta::LAYOUT), meta::encode(&*layout));
        let durable = if kernel.rules.keep(Rule::DurableLayout) { durable } else { kernel.durable() };
        kernel.after(durable, HubDurable::Layout(layout));
    }

    /// A layout is durable: loops act on it.
    pub(super) fn layout_durable(&mut self, kernel: &mut Kernel, layout: Arc<Layout>) {
        if layout.epoch > self.told {
            self.told = layout.epoch;
            kernel.say((To::All, Tell::Layout { layout, original: self.original }));
        }
    }

    /// A loop acts on a layout. The node does when all of its loops do.
    pub(super) fn adopted(&mut self, kernel: &mut Kernel, index: u16, epoch: Epoch) {
        let before = self.acts_on.iter().min().copied();
        if let Some(acts_on) = self.acts_on.get_mut(usize::from(index)) {
            *acts_on = epoch.max(*acts_on);
        }
        let after = self.acts_on.iter().min().copied();
        if let Some(epoch) = after.filter(|_| after > before) {
            kernel.event(Event::LayoutAdopted { epoch });
        }
    }

    /// A list of keyspaces, from the control plane or from a peer. Loops have it already and use what exists by it, and refuse
    /// what was dropped. What is stored of that goes when the list is durable.
    pub(super) fn keyspaces(&mut self, kernel: &mut Kernel, sessions: &Sessions, list: KeyspaceList) {
        let is_older = || kernel.rules.keep(Rule::NewestKeyspaces) && !list.is_newer_than(&self.keyspaces);
        if list == self.keyspaces || is_older() {
            return;
        }
        let durable = kernel.persist_meta(meta::keyspaces(), meta::encode(&list));
        kernel.after(durable, HubDurable::Keyspaces(Box::new(list.clone())));
        for peer in sessions.up() {
            kernel.send(peer, Message::Keyspaces { list: list.clone() });
        }
        self.keyspaces = list;
    }
}
