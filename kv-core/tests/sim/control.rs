//! The control plane: it commits layouts, runs operations by `kv_core::topology`, and hears of nodes late.
//!
//! Plans come from the planner, steps from `topology::operation`, as in the real one. Layouts reach nodes at different
//! moments and with gaps; receipts reach the control plane late and more than once.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::Arc;

use kv_core::config::{Keyspace, KeyspaceList};
use kv_core::node::Input;
use kv_core::ring::{Entry, Layout, check as check_layout};
use kv_core::topology::operation::{self, Target};
use kv_core::topology::{Change, Receipt, TransferSettings, plan};
use kv_core::types::{Epoch, Incarnation, KeyspaceId, NodeId, PartitionId, StoreId};

use crate::check;
use crate::clock::Time;
use crate::machine::Machine;
use crate::report::Count;
use crate::settings::{MS, Mutation, machine_of, node_id, other_seed};
use crate::trace::note;
use crate::world::{Event, World};

/// An operation that runs.
#[derive(Debug)]
pub(crate) struct Running {
    target: Target,
    receipts: BTreeMap<(PartitionId, NodeId), Receipt>,
    migrating_max: usize,
}

impl World {
    /// The entry of a partition in the newest layout.
    pub(crate) fn entry(&self, partition: PartitionId) -> Entry {
        self.layout().entry(partition).cloned().expect("a partition of the run")
    }

    /// The machines that hold all of a partition by the newest layout: while it migrates, its old owners.
    pub(crate) fn old_owners(&self, partition: PartitionId) -> Vec<usize> {
        self.entry(partition).owners.iter().map(|owner| machine_of(owner.node)).collect()
    }

    /// Machines that were not declared dead.
    pub(crate) fn living(&self) -> Vec<usize> {
        (0..self.machines.len()).filter(|machine| !self.machines[*machine].dead).collect()
    }

    /// Begins an operation of a kind that chance decides, if it is possible.
    pub(crate) fn draw_operation_fault(&mut self) {
        let layout = self.layout();
        let owning: Vec<NodeId> = layout.members.iter().filter(|(_, m)| !m.spare).map(|(node, _)| *node).collect();
        let spares: Vec<NodeId> = layout.members.iter().filter(|(_, m)| m.spare).map(|(node, _)| *node).collect();
        let some = |world: &mut Self, from: &[NodeId]| world.dice.pick(from).to_owned();
        let changes = match self.dice.below(8) {
            0 | 1 if !spares.is_empty() => spares.iter().map(|&node| Change::Add { node }).collect(),
            2 if owning.len() > 1 => vec![Change::Remove { node: some(self, &owning) }],
            3 if !spares.is_empty() => {
                let (old, new) = (some(self, &owning), some(self, &spares));
                vec![Change::Replace { old, new }]
            }
            4 if spares.len() > 1 && owning.len() > 1 => vec![
                Change::Replace { old: owning[0], new: spares[0] },
                Change::Replace { old: owning[1], new: spares[1] },
            ],
            5 => vec![Change::Copies { copies: u8::try_from(self.dice.between(1, 5)).unwrap_or(1) }],
            6 if owning.len() > 2 => {
                let node = some(self, &owning);
                return self.remove_dead(machine_of(node));
            }
            _ => {
                let node = some(self, &owning);
                vec![Change::Weight { node, weight: *self.dice.pick(&[0.5, 1.0, 2.0]) }]
            }
        };
        self.operate(&changes);
    }

    /// A machine is destroyed and declared dead, if the promise about lost disks covers it.
    pub(crate) fn remove_dead(&mut self, machine: usize) {
        if self.operation.is_some() || self.machines[machine].dead || !self.may_lose_disk(machine) {
            return;
        }
        let changes = [Change::RemoveDead { node: node_id(machine) }];
        if !self.can_operate(&changes) {
            return;
        }
        note!(self, "{} is destroyed", node_id(machine));
        self.count(Count::Deaths);
        self.crash(machine);
        self.machines[machine].dead = true;
        self.operate(&changes);
    }

    fn target_of(&self, changes: &[Change]) -> Option<Target> {
        let layout = self.layout();
        plan(&layout, changes).ok()?.operation(&layout).ok()
    }

    fn can_operate(&self, changes: &[Change]) -> bool {
        !self.a_node_runs_twice()
            && self.target_of(changes).is_some_and(|target| operation::begin(&self.layout(), &target, 1).is_ok())
    }

    /// Plans and begins an operation; one that is refused does nothing. Whether it has begun.
    pub(crate) fn operate(&mut self, changes: &[Change]) -> bool {
        if self.operation.is_some() || self.a_node_runs_twice() {
            return false;
        }
        let Some(target) = self.target_of(changes) else { return false };
        let migrating_max = self.dice.index(6) + 1;
        let Ok(next) = operation::begin(&self.layout(), &target, migrating_max) else { return false };
        note!(self, "operation: {changes:?}, {} partitions change", operation::remaining(&self.layout(), &target));
        self.count(Count::Operations);
        self.operation = Some(Running { target, receipts: BTreeMap::new(), migrating_max });
        self.commit_layout(next);
        self.tick_later();
        true
    }

    fn tick_later(&mut self) {
        let delay = self.dice.between(2, 30) * MS;
        self.at(self.time + delay, Event::ControlTick);
    }

    /// The control plane hears of receipts and goes on with its operation.
    pub(crate) fn control_tick(&mut self) {
        if self.operation.is_none() {
            return;
        }
        for index in self.living() {
            if !self.healed && self.dice.chance(300) {
                continue;
            }
            let Some(core) = &self.machines[index].core else { continue };
            for receipt in core.receipts() {
                if self.receipts_seen.insert((receipt.node, receipt.partition, receipt.joint, receipt.store)) {
                    self.count(Count::Receipts);
                    let judged = check::covered::is_true(self, &receipt);
                    self.expect(judged);
                }
                for _ in 0..=u64::from(self.dice.chance(200)) {
                    let late = if self.dice.chance(200) { 300 } else { 10 };
                    let at = self.time + self.dice.below(late * MS);
                    self.at(at, Event::Receipt(receipt.clone()));
                }
            }
        }
        self.advance();
        if self.operation.is_some() {
            self.tick_later();
        }
    }

    /// A receipt reaches the control plane.
    pub(crate) fn receipt_arrives(&mut self, receipt: Receipt) {
        if let Some(running) = &mut self.operation {
            running.receipts.insert((receipt.partition, receipt.node), receipt);
        }
    }

    fn advance(&mut self) {
        let layout = self.layout();
        if self.settings.mutation == Some(Mutation::CutOverWithoutReceipts) {
            self.forge_receipts();
        }
        let Some(Running { target, receipts, migrating_max }) = &self.operation else { return };
        if let Some(next) = operation::advance(&layout, target, receipts, *migrating_max) {
            self.commit_layout(next);
        }
        let Some(Running { target, .. }) = &self.operation else { return };
        if operation::remaining(&self.layout(), target) == 0 {
            note!(self, "the operation is done");
            self.operation = None;
        }
    }

    /// Rule M3 broken: receipts that nobody has given.
    fn forge_receipts(&mut self) {
        let layout = self.layout();
        let Some(running) = &mut self.operation else { return };
        for (partition, entry) in layout.partition_ids().zip(&layout.partitions) {
            let Some(joint) = &entry.joint else { continue };
            for to in &joint.receivers {
                let sources = entry.owners.iter();
                let receipt = Receipt {
                    partition,
                    joint: joint.epoch,
                    node: to.node,
                    store: layout.members[&to.node].store,
                    sources: sources.map(|o| kv_core::topology::SourceReceipt { node: o.node, root: 0 }).collect(),
                    keys: 0,
                    bytes: 0,
                };
                running.receipts.insert((partition, to.node), receipt);
            }
        }
    }

    /// Ends the operation that runs: what has moved stays, the rest goes back.
    pub(crate) fn cancel_operation(&mut self) {
        if let Some(running) = self.operation.take() {
            note!(self, "the operation is cancelled");
            self.count(Count::Cancels);
            let next = operation::cancel(&self.layout(), &running.target);
            self.commit_layout(next);
        }
    }

    /// The control plane learns with which store a machine runs, and lists it with that one.
    pub(crate) fn store_reported(&mut self, machine: usize) {
        if !self.is_of_generation(machine) {
            return;
        }
        let store = self.machines[machine].disk.store;
        self.boot_reported(machine);
        let before = self.layout();
        let listed = before.members.get(&node_id(machine)).map(|member| member.store);
        if listed.is_none_or(|listed| listed == store) || self.machines[machine].quarantined {
            return;
        }
        let mut members = before.members.clone();
        if let Some(member) = members.get_mut(&node_id(machine)) {
            member.store = store;
        }
        let next = if self.settings.mutation == Some(Mutation::StoreChangesInPlace) {
            Layout { epoch: Epoch(before.epoch.0 + 1), members, ..Layout::clone(&before) }
        } else {
            before.with_members(members)
        };
        self.commit_layout(next);
    }

    /// The control plane learns of a boot, unless it knows that the store is an older copy.
    fn boot_reported(&mut self, machine: usize) {
        let shown = self.machines[machine].incarnation;
        if !self.is_running(machine) || self.machines[machine].quarantined || self.agreed_proves(machine, shown) {
            return;
        }
        let agreed = &mut self.agreed[machine];
        if agreed.newest.store != shown.store && agreed.newest != Incarnation::default() {
            agreed.retired.insert(agreed.newest.store);
        }
        agreed.newest = shown;
    }

    /// Commits a layout and tells every node, sooner or later.
    pub(crate) fn commit_layout(&mut self, layout: Layout) {
        note!(self, "layout {}: {}", layout.epoch, picture(&self.layout(), &layout));
        self.expect(check_layout(&layout).map_err(|error| format!("invariant 5: {error}")));
        let before = self.layout();
        self.layouts.push(Arc::new(layout));
        let layout = self.layout();
        for (partition, (was, is)) in layout.partition_ids().zip(before.partitions.iter().zip(&layout.partitions)) {
            if was.changed != is.changed {
                self.report.add(Count::CutOvers, u64::from(was.joint.is_some() && is.owners != was.owners));
                check::refilled::entry_changed(self, partition, was, is);
            }
        }
        for machine in self.living() {
            let most = if self.healed { 20 } else { *self.dice.pick(&[1, 20, 50, 500]) };
            let at = self.time + self.dice.below(most * MS);
            self.at(at, Event::TellLayouts { machine });
        }
    }

    /// Gives a node the layouts that it does not know: all of them or, once it knows one, sometimes just the last.
    pub(crate) fn tell_layouts(&mut self, machine: usize) {
        if !self.is_of_generation(machine) {
            return;
        }
        let Machine { core: Some(core), hears_up_to, .. } = &self.machines[machine] else { return };
        let known = core.layout().map(|layout| layout.epoch);
        let is_new = |layout: &&Arc<Layout>| known.is_none_or(|known| layout.epoch > known);
        let is_heard = |layout: &&Arc<Layout>| hears_up_to.is_none_or(|last| layout.epoch <= last);
        let newer: Vec<Arc<Layout>> = self.layouts.iter().filter(is_new).filter(is_heard).cloned().collect();
        let skip = if known.is_some() && self.dice.chance(500) { newer.len().saturating_sub(1) } else { 0 };
        for layout in newer.into_iter().skip(skip) {
            self.step(machine, Input::Layout(self.as_told(machine, layout)));
        }
    }

    /// A layout as a machine is told it.
    fn as_told(&self, machine: usize, layout: Arc<Layout>) -> Arc<Layout> {
        if self.settings.other_seed != Some(machine) {
            return layout;
        }
        Arc::new(Layout { seed: other_seed(layout.seed), ..Layout::clone(&layout) })
    }

    /// The number of the list of keyspaces in force.
    pub(crate) fn newest_keyspaces(&self) -> usize {
        self.keyspace_lists.len() - 1
    }

    /// Gives a node a list of keyspaces. One that has restarted, or learns of several at once, may have a newer one already.
    pub(crate) fn tell_keyspaces(&mut self, index: usize, list: usize) {
        if let Some(thaws) = self.thaws(index) {
            return self.at(thaws, Event::TellKeyspaces { machine: index, list });
        }
        let newest = self.newest_keyspaces();
        let is_obeyed = self.is_of_generation(index);
        let machine = &mut self.machines[index];
        if machine.core.is_some() && is_obeyed {
            machine.knows_keyspaces |= list == newest;
            machine.told_keyspaces = machine.told_keyspaces.max(list);
            let list = self.keyspace_lists[list].clone();
            self.step(index, Input::Keyspaces(list));
        }
    }

    /// Commits a list of keyspaces and tells every node, sooner or later.
    fn commit_keyspaces(&mut self) {
        let list = KeyspaceList::new(KeyspaceId(self.next_keyspace), self.keyspaces.iter().cloned());
        self.keyspace_lists.push(list);
        self.machines.iter_mut().for_each(|machine| machine.knows_keyspaces = false);
        let list = self.newest_keyspaces();
        let mut aside = self.dice.aside();
        for machine in self.living() {
            let most = *aside.pick(&[1, 20, 100, 1000]);
            let at = self.time + aside.below(most * MS);
            self.at(at, Event::TellKeyspaces { machine, list });
        }
    }

    /// A keyspace is created, with keys of its own.
    pub(crate) fn create_keyspace(&mut self) {
        let id = KeyspaceId(self.next_keyspace);
        self.next_keyspace += 1;
        self.count(Count::KeyspacesCreated);
        let keyspace = Keyspace { id, name: format!("made-{}", id.0), ..Keyspace::initial() };
        note!(self, "{id} is created");
        self.keyspaces.push(keyspace.clone());
        self.plan_keys(&keyspace);
        self.commit_keyspaces();
    }

    /// A keyspace is dropped. Clients go on writing to it for a while.
    pub(crate) fn drop_keyspace(&mut self) {
        let may = |keyspace: &&Keyspace| keyspace.id.0 > 0 && keyspace.available().is_some();
        let candidates: Vec<KeyspaceId> = self.keyspaces.iter().filter(may).map(|it| it.id).collect();
        if candidates.is_empty() {
            return;
        }
        let id = *self.dice.aside().pick(&candidates);
        note!(self, "{id} is dropped");
        self.count(Count::KeyspacesDropped);
        self.keyspaces.retain(|keyspace| keyspace.id != id);
        self.history.dropped.insert(id);
        self.commit_keyspaces();
    }

    /// Other limits for copies, or a pause.
    pub(crate) fn set_transfers(&mut self, settings: TransferSettings) {
        self.transfers = settings;
        for machine in self.living() {
            self.step(machine, Input::Transfers(settings));
        }
    }

    /// Draws limits for copies.
    pub(crate) fn draw_transfers(&mut self) -> TransferSettings {
        TransferSettings {
            paused: self.dice.chance(200),
            bytes_per_second_max: NonZeroU64::new(*self.dice.pick(&[0, 0, 2000, 20_000])),
            transfers_max: u16::try_from(self.dice.between(1, 5)).unwrap_or(1),
        }
    }

    /// Whether the store that a layout lists for a node is the one that it has.
    pub(crate) fn is_listed(&self, machine: usize) -> bool {
        let listed = self.layout().members.get(&node_id(machine)).map(|member| member.store);
        listed.is_none_or(|listed: StoreId| listed == self.machines[machine].disk.store)
    }

    /// Whether a machine obeys the control plane that there is.
    fn is_of_generation(&self, machine: usize) -> bool {
        self.machines[machine].generation == self.generation
    }

    /// When the control plane may hear of a machine.
    pub(crate) fn hearing(&mut self) -> Time {
        self.time + self.dice.between(1, 100) * MS
    }
}

/// The entries that a layout changes.
fn picture(before: &Layout, after: &Layout) -> String {
    let nodes = |owners: &[kv_core::ring::Owner]| {
        owners.iter().map(|owner| format!("{}@{}", owner.node, owner.since)).collect::<Vec<_>>().join(" ")
    };
    let changed = after.partition_ids().zip(before.partitions.iter().zip(&after.partitions));
    let texts = changed.filter(|(_, (was, is))| was != is).map(|(partition, (_, is))| {
        let joint = is.joint.as_ref().map(|joint| format!(" -> {}", nodes(&joint.owners)));
        format!("{partition}: {}{}", nodes(&is.owners), joint.unwrap_or_default())
    });
    texts.collect::<Vec<_>>().join(", ")
}
