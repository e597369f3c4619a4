//! A machine: one process around `Node::step`, doing for it what the shell of a real node does.

use std::collections::BTreeSet;
use std::sync::Arc;

use kv_core::boots::Boots;
use kv_core::config::NodeConfig;
use kv_core::error::StorageError;
use kv_core::event::Event as NodeEvent;
use kv_core::handshake::Claims;
use kv_core::message::{Message, Purpose, Response};
use kv_core::node::{Effect, Input, Node};
use kv_core::ring::Layout;
use kv_core::rule::Rule;
use kv_core::storage::{Batch, Space, StorageKey, Stored, Write};
use kv_core::types::{Epoch, Generation, Incarnation, Monotonic, PartitionId, Point, Seq, StoreId};
use kv_core::version::{ContextToken, Record};

use crate::check;
use crate::clock::{MachineClock, Time};
use crate::disk::{Disk, DiskCopy, KEYSPACE_LIST};
use crate::report::Count;
use crate::settings::{MS, Mutation, node_id};
use crate::trace::{brief_batch, note};
use crate::world::{Event, World};

/// One machine with its disk, running or not.
#[derive(Debug)]
pub(crate) struct Machine {
    /// The process; `None` while it is down.
    pub(crate) core: Option<Node>,
    /// Counts the runs of the process, so that what belongs to an earlier one is discarded.
    pub(crate) life: u64,
    pub(crate) incarnation: Incarnation,
    /// The control plane that it obeys.
    pub(crate) generation: Generation,
    pub(crate) disk: Disk,
    pub(crate) clock: MachineClock,
    /// When the node wants to be woken.
    pub(crate) wake: Option<Monotonic>,
    /// A copy of the disk that somebody kept.
    pub(crate) copy: Option<DiskCopy>,
    /// The store is an older copy and has not met a peer yet. Its operator keeps clients away until it has.
    pub(crate) quarantined: bool,
    /// Whether its disk is an older copy that was not renewed.
    pub(crate) is_older_copy: bool,
    /// Whether a second process has run on a copy of its disk since it started, and peers have met that.
    pub(crate) has_twin: bool,
    /// Machines that durably knew when the older copy was restored that it is one.
    pub(crate) known_to: BTreeSet<usize>,
    /// What peers have claimed in this run of its process.
    pub(crate) claims: Claims<Point>,
    /// The newest layout on which the node of this store has acted.
    pub(crate) acted_on: Epoch,
    /// What the next run claims to be, for the mutation that gives a wiped store the identity of its predecessor.
    pub(crate) false_identity: Option<Incarnation>,
    /// Syncs take this much longer until the given moment.
    pub(crate) slow_until: Time,
    /// It hears of no layout behind this one.
    pub(crate) hears_up_to: Option<Epoch>,
    /// Whether this run of the node knows all keyspaces that exist. Those beside the first are created as the run begins.
    pub(crate) knows_keyspaces: bool,
    /// Its process does nothing until then.
    pub(crate) frozen_until: Time,
    /// Some part of its node lags until then.
    pub(crate) lags_until: Time,
    /// The newest list of keyspaces that its control plane has. The node may have a newer one, from its peers.
    pub(crate) told_keyspaces: usize,
    /// It was destroyed and declared dead.
    pub(crate) dead: bool,
    /// Whether a store of it was lost or replaced by an older copy.
    pub(crate) ever_lost: bool,
}

impl Machine {
    /// A machine that was never started.
    pub(crate) fn new(store: StoreId) -> Self {
        Self {
            core: None,
            life: 0,
            incarnation: Incarnation::default(),
            generation: Generation::default(),
            disk: Disk::new(store),
            clock: MachineClock::new(),
            wake: None,
            copy: None,
            quarantined: false,
            is_older_copy: false,
            has_twin: false,
            known_to: BTreeSet::new(),
            claims: Claims::default(),
            acted_on: Epoch(0),
            false_identity: None,
            slow_until: 0,
            hears_up_to: None,
            knows_keyspaces: false,
            frozen_until: 0,
            lags_until: 0,
            told_keyspaces: 0,
            dead: false,
            ever_lost: false,
        }
    }
}

impl World {
    /// Whether the process of a machine runs.
    pub(crate) fn is_running(&self, machine: usize) -> bool {
        self.machines[machine].core.is_some()
    }

    /// Starts the process of a machine.
    pub(crate) fn start(&mut self, index: usize) {
        if self.is_running(index) || self.machines[index].dead {
            return;
        }
        let nonce = u32::try_from(self.dice.below(u64::from(u32::MAX))).unwrap_or(0);
        let mono_start = self.dice.below(1 << 40);
        let time = self.time;
        let loops = self.settings.loops.unwrap_or_else(|| *self.loop_dice.pick(&[1, 2, 4]));
        let map_seed = self.dice.any();
        let config = NodeConfig { node: node_id(index), map_seed, loops, ..self.settings.node.clone() };
        let machine = &mut self.machines[index];
        let opened = machine.disk.open(nonce);
        machine.incarnation = machine.false_identity.take().unwrap_or(opened);
        machine.clock.booted = time;
        machine.clock.mono_start = mono_start;
        machine.wake = None;
        machine.frozen_until = 0;
        machine.claims = Claims::default();
        if let Some(Mutation::Core(rule)) = self.settings.mutation {
            machine.claims.break_rule(rule);
        }
        let (reader, stats) = machine.disk.recovery();
        match Node::recover(config, self.settings.cluster.clone(), machine.incarnation, &reader, stats) {
            Ok(mut core) => {
                if let Some(Mutation::Core(rule)) = self.settings.mutation {
                    core.break_rule(rule);
                }
                if self.settings.left_to_reads {
                    core.break_rule(Rule::CompareAfterCrash);
                }
                machine.core = Some(core);
            }
            Err(error) => return self.fail(format!("{} cannot recover: {error}", node_id(index))),
        }
        if let Some(epoch) =
            self.machines[index].core.as_ref().and_then(|core| core.layout()).map(|layout| layout.epoch)
        {
            for partition in self.layouts[0].partition_ids() {
                check::covered::fence(self, index, partition, Epoch(epoch.0.saturating_sub(1)), epoch);
            }
        }
        self.complete_refilled(index);
        let machine = &self.machines[index];
        let (epoch, acted_on) = (machine.core.as_ref().map(|core| core.status().epoch), machine.acted_on);
        self.expect(check::epochs::never_fall(index, epoch.unwrap_or_default(), acted_on));
        if self.machines[index].life > 0 {
            self.report.add(Count::Recoveries, 1);
        }
        note!(self, "{} starts, store {}", node_id(index), self.machines[index].incarnation);
        // The control plane tells what it has committed, sometimes late; a node that knew a layout serves meanwhile.
        self.machines[index].knows_keyspaces = false;
        let (told, newest) = (self.machines[index].told_keyspaces, self.newest_keyspaces());
        self.tell_keyspaces(index, told);
        let mut aside = self.dice.aside();
        if aside.chance(300) {
            let late = aside.below(300 * MS);
            self.at(time + late, Event::TellKeyspaces { machine: index, list: newest });
        } else {
            self.tell_keyspaces(index, newest);
        }
        self.step(index, Input::Transfers(self.transfers));
        let late = if self.dice.chance(300) { self.dice.below(300 * MS) } else { 0 };
        self.at(time + late, Event::TellLayouts { machine: index });
        let heard = self.hearing();
        self.at(heard, Event::StoreReported { machine: index });
        for peer in 0..self.machines.len() {
            let delay = self.dice.between(1, 20) * MS;
            self.at(time + delay, Event::Connect { one: index, other: peer });
        }
    }

    /// What was refilled before a crash is complete, although the node had no time to say so.
    fn complete_refilled(&mut self, index: usize) {
        let machine = &self.machines[index];
        // At the first boot nothing is refilled yet, and an older copy does not know that it is one.
        let knows = machine.disk.boots.newest() > 1 && !machine.quarantined;
        let Some(core) = machine.core.as_ref().filter(|core| knows && core.layout().is_some()) else { return };
        let open = core.status().unsynced;
        // Only what the node knows itself to own can have been refilled.
        let owns = |partition: &PartitionId| {
            let entry = core.layout().and_then(|layout| layout.entry(*partition));
            entry.is_some_and(|entry| entry.owners.iter().any(|owner| owner.node == node_id(index)))
        };
        let complete = |partition: &PartitionId| !open.contains(partition) && owns(partition);
        let lost = self.unsynced.keys().filter(|(owner, partition)| *owner == index && complete(partition));
        for (_, partition) in lost.copied().collect::<Vec<_>>() {
            self.refilled(index, partition);
        }
    }

    /// A partition counts as complete again.
    fn refilled(&mut self, index: usize, partition: PartitionId) {
        if let Some(lost) = self.unsynced.remove(&(index, partition)) {
            self.expect(check::refilled::is_restored(self, index, partition, &lost));
        }
    }

    /// Stops the process of a machine at once; its disk loses any subset of what is not durable.
    pub(crate) fn crash(&mut self, index: usize) {
        if !self.is_running(index) {
            return;
        }
        self.expect(check::converged::statistics_are_exact(index, &self.machines[index].disk));
        let machine = &mut self.machines[index];
        machine.core = None;
        machine.life += 1;
        let crash = machine.disk.crash(&mut self.dice);
        self.report.add(Count::Crashes, 1);
        self.report.add(Count::LostBatches, crash.lost);
        self.report.add(Count::Holes, u64::from(crash.hole));
        note!(self, "{} crashes, {} batches lost", node_id(index), crash.lost);
        self.close_all(index);
        self.connections_break(index);
    }

    /// A store that is an older copy gets a new identity, keeps its data, and is started again (rule D2).
    pub(crate) fn renew(&mut self, index: usize) {
        self.crash(index);
        self.expect(check::renewed::is_older_copy(index, &self.machines[index]));
        self.machines[index].is_older_copy = false;
        self.machines[index].known_to.clear();
        self.machines[index].has_twin = false;
        // It is refilled with what the others hold by now.
        self.mark_unsynced(index);
        self.forget_fences(index);
        self.machines[index].acted_on = Epoch(0);
        let store = StoreId(self.dice.any());
        note!(self, "{} is an older copy, renewed as store {store}", node_id(index));
        let held = check::renewed::held(self, index);
        self.machines[index].disk.renew(store);
        if self.settings.mutation == Some(Mutation::RenewalWipes) {
            self.machines[index].disk.wipe(store, Boots::default());
        }
        self.expect(check::renewed::is_kept(self, index, &held));
        self.old_copies.push((index, held));
        self.machines[index].quarantined = false;
        let delay = self.dice.between(1, 10) * MS;
        self.at(self.time + delay, Event::Start { machine: index });
    }

    /// Gives a node one input and carries out what it decides.
    pub(crate) fn step(&mut self, index: usize, input: Input) {
        if self.failure.is_some() {
            return;
        }
        // What a process that has ended would have been told is not kept for the next one.
        if !self.is_running(index) {
            return;
        }
        if let Some(thaws) = self.thaws(index) {
            let life = self.machines[index].life;
            return self.at(thaws, Event::Input { machine: index, life, input });
        }
        let machine = &mut self.machines[index];
        let now = machine.clock.now(self.time);
        let Some(core) = machine.core.as_mut() else { return };
        let lag = !self.healed && self.loop_dice.chance(self.settings.lags);
        let lag = lag.then(|| (self.loop_dice.index(core.parts()), self.loop_dice.between(1, 20) * MS));
        if let Some((part, _)) = lag {
            core.hold_part(part, true);
        }
        let partitions = || self.layouts[0].partition_ids();
        self.acted_before = partitions().map(|partition| acts_on(core, partition)).collect();
        let mut effects = std::mem::take(&mut self.effects);
        let hedged = core.hedged();
        core.step(now, input, &mut effects);
        self.report.add(Count::Hedges, core.hedged() - hedged);
        let acted_now: Vec<Epoch> = partitions().map(|partition| acts_on(core, partition)).collect();
        if let Some((part, duration)) = lag {
            let life = self.machines[index].life;
            self.report.add(Count::Lags, 1);
            let goes_on = self.time + duration;
            self.machines[index].lags_until = goes_on.max(self.machines[index].lags_until);
            self.at(goes_on, Event::GoesOn { machine: index, life, part });
        }
        self.fence(index, &acted_now);
        // A node whose clock is off goes by those of the others.
        let latest = self.machines.iter().map(|machine| machine.clock.wall(self.time)).max();
        self.wall_max = self.wall_max.max(latest.unwrap_or_default());
        // The history learns what is written before it judges what is sent or answered.
        for effect in &mut effects {
            if let Effect::Persist { seq, batch } = effect {
                let learnt = self.learn(index, batch);
                self.expect(learnt);
                self.put_on_disk(index, *seq, std::mem::take(batch));
            }
        }
        // Looking at the limits at every step would take longer than the steps.
        if self.report.events.is_multiple_of(16)
            && let Some(core) = &self.machines[index].core
        {
            let kept = check::bounds::are_kept(index, &core.status(), core.parts() - 1, &self.settings.node);
            self.expect(kept);
        }
        for effect in effects.drain(..) {
            self.carry_out(index, effect);
        }
        self.effects = effects;
    }

    fn learn(&mut self, index: usize, batch: &Batch) -> Result<(), String> {
        for write in &batch.writes {
            if let Write::Meta { name, value: Some(value) } = write
                && name.as_ref() == KEYSPACE_LIST
            {
                check::dropped::list_is_newer(self, index, value)?;
            }
            if let Write::Record { key, value: None, .. } = write
                && key.space() == Space::Owned
            {
                self.removed(index, key)?;
            }
            let machine = &self.machines[index];
            let Write::Record { key, value: Some(value), .. } = write else { continue };
            match key.space() {
                Space::Missed => continue,
                Space::Hint => self.report.add(Count::Hints, 1),
                Space::Owned => {}
            }
            if Some(key.keyspace()) == self.registers.keyspace() {
                if check::registers::never_fall(self, index, key, value)? {
                    // It was collected and written again within one batch.
                    self.removed(index, key)?;
                }
                continue;
            }
            let Some(id) = self.history.key_named(key.keyspace(), &key.key_bytes()) else {
                return Err(format!("{} stores {key}, which nobody wrote", node_id(index)));
            };
            let stored = Stored::decode(value).map_err(|error| format!("{key} is written damaged: {error}"))?;
            let Some(record) = stored.cell.record().cloned() else {
                return Err(format!("{} stores a register at {key}", node_id(index)));
            };
            let (incarnation, before) = (machine.incarnation, machine.disk.visible_record(key));
            let is_new = |before: &Record| !record.context.dominates(&before.context);
            if key.space() == Space::Owned && before.as_ref().is_some_and(is_new) {
                // It was removed and written again within one batch.
                self.removed(index, key)?;
            }
            self.history.record_written(incarnation, id, before.as_ref(), &record, self.time)?;
        }
        Ok(())
    }

    /// A machine removes an owned record: it was collected, or the machine does not own the partition any more.
    fn removed(&mut self, index: usize, key: &StorageKey) -> Result<(), String> {
        let entries = self.acted_entries(index, key.partition());
        let owned = entries.iter().rev().find(|entry| entry.owns(node_id(index)));
        if let Some(entry) = owned {
            let collected = check::collected::may_go(self, index, entry, key);
            // A node that does not know of the drop of a keyspace yet collects in it.
            let is_dropped = self.history.dropped.contains(&key.keyspace());
            if collected.is_ok() || (entries.len() == 1 && !is_dropped) {
                return collected;
            }
        }
        check::dropped::may_go(self, index, key)?;
        self.report.add(Count::Dropped, 1);
        Ok(())
    }

    fn carry_out(&mut self, index: usize, effect: Effect) {
        let life = self.machines[index].life;
        match effect {
            Effect::Send { to, message } => {
                self.watch_questions(index, to, &message);
                self.send(index, to, &message);
            }
            Effect::Reply { tag, outcome } => self.reply(index, tag, outcome),
            Effect::Read { read, key } => {
                let disk = &self.machines[index].disk;
                let sees = disk.reader_sees(&mut self.dice);
                let result = Ok(disk.read(&key, sees));
                let at = self.read_ends();
                self.at(at, Event::Input { machine: index, life, input: Input::ReadDone { read, result } });
            }
            Effect::Slice { read, request } => {
                let disk = &self.machines[index].disk;
                let sees = disk.reader_sees(&mut self.dice);
                let result = Ok(disk.slice(&request, sees));
                let at = self.read_ends();
                self.at(at, Event::Input { machine: index, life, input: Input::SliceDone { read, result } });
            }
            Effect::Leaves { read, partition } => {
                let stats = self.machines[index].disk.stats().partition(partition).cloned();
                let result = Ok(stats.unwrap_or_default());
                let at = self.read_ends();
                self.at(at, Event::Input { machine: index, life, input: Input::LeavesDone { read, result } });
            }
            // It is on the disk already.
            Effect::Persist { .. } => self.sync(index),
            Effect::Reclaim { .. } => {
                let at = self.read_ends();
                self.at(at, Event::Input { machine: index, life, input: Input::Reclaimed });
            }
            Effect::WakeAt(at) => {
                self.machines[index].wake = Some(at);
                let lateness = if self.dice.chance(100) { self.dice.below(2 * MS) } else { 0 };
                let time = self.machines[index].clock.time_of(at) + lateness;
                self.at(time, Event::Wake { machine: index, life, at });
            }
            Effect::Event(event) => self.node_event(index, &event),
        }
    }

    /// A batch goes to the disk: visible now, durable after a sync.
    fn put_on_disk(&mut self, index: usize, seq: Seq, batch: Batch) {
        note!(self, "{} writes {seq}: {}", node_id(index), brief_batch(&batch));
        let names = batch.writes.iter().filter_map(|write| match write {
            Write::Meta { name, .. } => Some(name),
            Write::Record { .. } => None,
        });
        let is_of_copy = |name: &bytes::Bytes| name.starts_with(b"progress/") || name.starts_with(b"receipt/");
        let of_copy = names.into_iter().any(is_of_copy);
        self.machines[index].disk.persist(seq, batch);
        let (life, quarantined) = (self.machines[index].life, self.machines[index].quarantined);
        if of_copy
            && !quarantined
            && !self.machines[index].has_twin
            && !self.healed
            && self.dice.chance(self.settings.faults.crashes_of_copies)
        {
            let stops = self.time + self.dice.below(2 * MS);
            self.at(stops, Event::Crash { machine: index, life });
            let restarts = stops + self.dice.between(1, 100) * MS;
            self.at(restarts, Event::Start { machine: index });
        }
    }

    fn read_ends(&mut self) -> Time {
        let slow = self.dice.chance(self.settings.slow_reads);
        if slow { self.time + self.dice.below(5 * MS) } else { self.time }
    }

    /// Begins a sync of all that waits for one, unless one is under way.
    fn sync(&mut self, index: usize) {
        let machine = &mut self.machines[index];
        let Some(through) = machine.disk.last_pending() else { return };
        if std::mem::replace(&mut machine.disk.syncing, true) {
            return;
        }
        let (life, slow) = (machine.life, machine.slow_until > self.time);
        let usual = 20 + self.dice.below(self.settings.sync);
        let duration = if slow { usual + self.dice.below(200 * MS) } else { usual };
        self.at(self.time + duration, Event::Synced { machine: index, life, through });
    }

    /// A sync ends, well or not.
    pub(crate) fn synced(&mut self, index: usize, life: u64, through: Seq) {
        let machine = &mut self.machines[index];
        if machine.life != life {
            return;
        }
        machine.disk.syncing = false;
        if std::mem::take(&mut machine.disk.failing) {
            self.report.add(Count::FailedSyncs, 1);
            note!(self, "{}: a sync fails", node_id(index));
            self.step(index, Input::PersistFailed { error: StorageError::Poisoned { at: through } });
            let stops = self.time + self.dice.below(5 * MS);
            self.at(stops, Event::Crash { machine: index, life });
            let restarts = stops + self.dice.between(1, 300) * MS;
            self.at(restarts, Event::Start { machine: index });
            return;
        }
        machine.disk.confirm(through);
        note!(self, "{}: durable up to {through}", node_id(index));
        self.sync(index);
        self.step(index, Input::Persisted { seq: through });
    }

    fn node_event(&mut self, index: usize, event: &NodeEvent) {
        note!(self, "{}: {event}", node_id(index));
        match event {
            NodeEvent::RefillDone { partition, .. } => {
                self.report.add(Count::Refills, 1);
                self.refilled(index, *partition);
            }
            NodeEvent::LayoutAdopted { epoch } => {
                let before = std::mem::replace(&mut self.machines[index].acted_on, *epoch);
                self.expect(check::epochs::never_fall(index, *epoch, before));
            }
            NodeEvent::CopyRetried { .. } => self.report.add(Count::CopiesRetried, 1),
            NodeEvent::Repaired { records, .. } => self.report.add(Count::Compared, *records),
            NodeEvent::Compared { records, .. } => self.report.add(Count::Pending, *records),
            NodeEvent::HandedOff { records } => self.report.add(Count::HandedOff, *records),
            NodeEvent::ReadRepaired { .. } => self.report.add(Count::Repairs, 1),
            NodeEvent::KeyspacesRemoved { records, .. } => self.report.add(Count::Purged, *records),
            NodeEvent::Swept { records } => self.report.add(Count::Swept, *records),
            NodeEvent::Damaged { reason } => self.fail(format!("{}: {reason}", node_id(index))),
            _ => {}
        }
    }

    /// Remembers what each question is about, and judges each answer (invariant 6).
    fn watch_questions(&mut self, index: usize, to: kv_core::types::NodeId, message: &Message) {
        let peer = crate::settings::machine_of(to);
        let partitions = match message {
            Message::Read { call, epoch, role: kv_core::message::Role::Owner, key, .. }
            | Message::Replicate { call, epoch, role: kv_core::message::Role::Owner, key, .. } => {
                Some((*call, vec![(self.layouts[0].partition_of(key), *epoch)]))
            }
            Message::Slice { call, slice } => Some((*call, slice.partitions.clone())),
            Message::Exchange { call, partition, epoch, purpose, .. } if *purpose != Purpose::Refill => {
                Some((*call, vec![(*partition, *epoch)]))
            }
            Message::Forwarded { outcome: Ok(Ok(Response::Written { context, .. })), .. } => {
                self.remember_entry(index, context);
                None
            }
            _ => None,
        };
        if let Some((call, partitions)) = partitions {
            let life = self.machines[index].life;
            self.asked.insert((index, life, call), partitions);
            return;
        }
        let answered = match message {
            Message::Replicated { call, result: Ok(()), .. }
            | Message::ReadResult { call, result: Ok(_), .. }
            | Message::SliceResult { call, result: Ok(_) }
            | Message::ExchangeResult { call, result: Ok(_), .. } => *call,
            Message::Forward { .. } => return self.count(Count::Forwards),
            _ => return,
        };
        let life = self.machines[peer].life;
        let about: Vec<(PartitionId, Epoch)> = self.asked.get(&(peer, life, answered)).cloned().unwrap_or_default();
        let is_unsynced = |partition| self.unsynced.contains_key(&(index, partition));
        self.expect(check::ownership::may_answer(index, &about, &self.layouts, is_unsynced));
    }

    /// A coordinator acknowledges a write: by the entry on which it acts now.
    fn remember_entry(&mut self, index: usize, token: &bytes::Bytes) {
        let mut keys = self.history.keys.iter();
        if let Some(key) = keys.find(|key| ContextToken::decode(token, key.keyspace, &key.bytes).is_ok()) {
            let entries = self.acted_entries(index, key.partition);
            let under_way = self.under_way.entry(token.clone()).or_default();
            under_way.coordinator = Some(index);
            under_way.at = self.time;
            under_way.entries.extend(entries);
        }
    }

    /// The entries of a partition on which a machine may have acted in its present step: several layouts may have become
    /// durable at once.
    pub(crate) fn acted_entries(&self, index: usize, partition: PartitionId) -> Vec<kv_core::ring::Entry> {
        let after = self.machines[index].core.as_ref().map(|core| acts_on(core, partition)).unwrap_or_default();
        let before = self.acted_before.get(usize::from(partition.0)).copied().unwrap_or_default();
        let is_between = |layout: &&Arc<Layout>| layout.epoch >= before && layout.epoch <= after;
        self.layouts.iter().filter(is_between).filter_map(|layout| layout.entry(partition).cloned()).collect()
    }

    /// A part that has lagged takes what has come meanwhile.
    pub(crate) fn part_goes_on(&mut self, index: usize, life: u64, part: usize) {
        let machine = &mut self.machines[index];
        if machine.life == life
            && let Some(core) = &mut machine.core
        {
            core.hold_part(part, false);
            self.step(index, Input::Wake);
        }
    }

    /// Loops have begun to act on other layouts.
    fn fence(&mut self, index: usize, acted_now: &[Epoch]) {
        let before = std::mem::take(&mut self.acted_before);
        for (partition, (&before, &now)) in self.layouts[0].partition_ids().zip(before.iter().zip(acted_now)) {
            if before != now {
                check::covered::fence(self, index, partition, before, now);
            }
        }
        self.acted_before = before;
    }

    /// The stored key of a record on an owner.
    pub(crate) fn storage_key(&self, space: Space, key: crate::history::KeyId) -> StorageKey {
        let key = self.history.key(key);
        StorageKey::owned(key.partition, key.keyspace, &key.bytes).in_space(space)
    }
}

/// The epoch on which a node acts for a partition.
pub(crate) fn acts_on(core: &Node, partition: PartitionId) -> Epoch {
    core.layout_for(partition).map(|layout| layout.epoch).unwrap_or_default()
}
