//! What goes wrong, and when.
//!
//! A disk is only taken away while the promise about lost disks (invariant 1) covers it. Before a wipe or a roll-back
//! the oracle looks at all disks: every partition has another owner, none is being refilled anywhere, and for every acknowledged write the *other*
//! disks durably hold the write or what replaced it. Then a quorum's worth of each write's copies has survived as far
//! as it was ever promised, and a loss afterwards is the protocol's fault. The replicas of a strictly acknowledged write
//! are its owners alone: what survives only in a hint is not lost, but a strict read may miss it until it is delivered.
//!
//! A roll-back is the return of a copy that was taken at any time before, while the store ran or not, once or several times.
//! Every peer durably remembers something that the copy lacks, and the peers are more than half of the members or the control
//! plane knows of a boot that the copy lacks. Rule D2 promises to notice no other roll-back: what no peer that is alive was
//! shown, nobody can miss. The restored store may start several times before it meets a peer.
//!
//! A twin is a second process on a copy of a running node's disk. Peers take it for a later boot, which it is; from then on the
//! first process runs an older copy.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use kv_core::boots::Boots;
use kv_core::message::{Attempt, CallId, Consistency, Hello, KeyRequest, Level, Message, Operation, Request, When};
use kv_core::ring::Layout;
use kv_core::types::{Epoch, Hlc, Incarnation, Point, RequestId, StoreId};
use kv_core::version::Record;

use kv_core::node::Input;
use kv_core::storage::Space;
use kv_core::topology::TransferSettings;

use crate::check;
use crate::clock::Time;
use crate::disk::DiskCopy;
use crate::history::{Answer, KeyId, OpId};
use crate::machine::Machine;
use crate::report::Count;
use crate::settings::{MS, Mutation, node_id};
use crate::trace::note;
use crate::world::{AgreedStore, Event, UnderWay, World};

/// How often a fault that the rules forbid at its moment is tried again.
const TRIES: u8 = 6;

/// A fault.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// A process is killed and started again.
    Crash { machine: usize },
    /// All processes are killed at once.
    PowerFailure,
    /// Two machines cannot reach each other.
    Cut { one: usize, other: usize },
    /// A machine cannot reach any other.
    Isolate { machine: usize },
    /// A machine's frames do not reach another, which reaches it.
    CutOneWay { from: usize, to: usize },
    /// The end of the three above.
    Heal { from: usize, to: usize },
    /// A process is stopped for a while and goes on.
    Freeze { machine: usize, duration: Time },
    /// A failure detector errs.
    Suspect { machine: usize, peer: usize },
    /// A disk is replaced by an empty one.
    Wipe { machine: usize, tries: u8 },
    /// A copy of a disk is kept.
    Copy { machine: usize },
    /// A disk is replaced by the copy.
    RollBack { machine: usize, tries: u8 },
    /// A second process runs on a copy of a machine's disk, as its node, and meets the others.
    Twin { machine: usize, tries: u8 },
    /// The next sync of a disk fails.
    FailSync { machine: usize },
    /// A disk becomes slow for a while.
    SlowDisk { machine: usize },
    /// A wall clock is set wrong.
    SetClock { machine: usize, skew: i64 },
    /// The control plane commits another layout with the same owners.
    NewEpoch,
    /// An operation begins, if none runs.
    Operate,
    /// The operation that runs is cancelled.
    Cancel,
    /// Copies get other limits.
    Transfers,
    /// An operator has a node compare some partitions.
    Repair { machine: usize },
    /// An operator has all nodes begin copies again that wait.
    Retry,
    /// A process that is down starts and ends before it serves: perhaps its boot is in the list of its store.
    FailStart { machine: usize },
    /// A keyspace is created.
    CreateKeyspace,
    /// A keyspace is dropped.
    DropKeyspace,
    /// Somebody who is no member says hello to a machine.
    Stranger { machine: usize, as_member: bool, claims: bool },
    /// A member claims something untrue of a machine's store.
    Lie { liar: usize, machine: usize },
}

impl World {
    /// Draws the faults of the run.
    pub(crate) fn plan_faults(&mut self) {
        let faults = self.settings.faults;
        let machines = self.settings.nodes;
        for _ in 0..faults.crashes {
            let machine = self.dice.index(machines);
            let fault = if self.dice.chance(100) { Fault::PowerFailure } else { Fault::Crash { machine } };
            self.plan(fault);
        }
        for _ in 0..faults.partitions {
            let (one, other) = (self.dice.index(machines), self.dice.index(machines));
            let fault = match self.dice.below(3) {
                0 => Fault::Isolate { machine: one },
                1 => Fault::CutOneWay { from: one, to: other },
                _ => Fault::Cut { one, other },
            };
            self.plan(fault);
        }
        for _ in 0..faults.suspicions {
            let (machine, peer) = (self.dice.index(machines), self.dice.index(machines));
            self.plan(Fault::Suspect { machine, peer });
        }
        for _ in 0..faults.wipes {
            let machine = self.dice.index(machines);
            self.plan(Fault::Wipe { machine, tries: TRIES });
        }
        for _ in 0..faults.roll_backs {
            let machine = self.dice.index(machines);
            // The copy, a boot that it does not know, and its return.
            let copied = self.dice.below(self.settings.trouble_ends / 2);
            let crashed = copied + self.dice.between(1, 200) * MS;
            let restored = crashed + self.dice.between(400, 1000) * MS;
            self.at(copied, Event::Fault(Fault::Copy { machine }));
            // Or the copy is of the boot that runs when it returns.
            let mut aside = self.dice.aside();
            if aside.chance(600) {
                self.at(crashed, Event::Fault(Fault::Crash { machine }));
            }
            self.at(restored, Event::Fault(Fault::RollBack { machine, tries: TRIES }));
            if aside.chance(300) {
                // The same copy once more.
                let again = restored + aside.between(300, 1000) * MS;
                self.at(again, Event::Fault(Fault::RollBack { machine, tries: TRIES }));
            }
        }
        for _ in 0..faults.failed_syncs {
            let machine = self.dice.index(machines);
            self.plan(Fault::FailSync { machine });
        }
        for _ in 0..faults.slow_disks {
            let machine = self.dice.index(machines);
            self.plan(Fault::SlowDisk { machine });
        }
        for _ in 0..faults.clock_jumps {
            let machine = self.dice.index(machines);
            let limit = i64::try_from(self.settings.cluster.clock_skew_max.as_micros()).unwrap_or(0);
            // Two nodes are within the allowed skew of each other if each is within half of it of the truth.
            let reach = if self.dice.chance(200) { 4 * limit } else { limit / 2 };
            let skew = i64::try_from(self.dice.below(2 * reach.unsigned_abs())).unwrap_or(0) - reach;
            self.plan(Fault::SetClock { machine, skew });
        }
        for _ in 0..faults.epochs {
            self.plan(Fault::NewEpoch);
        }
        for _ in 0..faults.operations {
            self.plan(Fault::Operate);
        }
        for _ in 0..faults.cancels {
            self.plan(Fault::Cancel);
        }
        for _ in 0..faults.transfers {
            self.plan(Fault::Transfers);
        }
        for _ in 0..faults.repairs {
            let machine = self.dice.index(machines);
            self.plan(Fault::Repair { machine });
        }
        // Drawn aside, so that they change nothing else of a run.
        let mut aside = self.dice.aside();
        for _ in 0..faults.twins {
            let at = 20 * MS + aside.below(self.settings.trouble_ends);
            self.at(at, Event::Fault(Fault::Twin { machine: aside.index(machines), tries: TRIES }));
        }
        let kinds = [(Fault::CreateKeyspace, faults.creations), (Fault::DropKeyspace, faults.drops)];
        for (fault, count) in kinds {
            for _ in 0..count {
                let at = 20 * MS + aside.below(self.settings.trouble_ends);
                self.at(at, Event::Fault(fault));
            }
        }
        if faults.operations > 0 && aside.chance(500) {
            for _ in 0..aside.between(1, 6) {
                let at = aside.below(self.settings.trouble_ends);
                let fault = match aside.below(3) {
                    0 => Fault::Repair { machine: aside.index(machines) },
                    _ => Fault::Retry,
                };
                self.at(at, Event::Fault(fault));
            }
        }
        if aside.chance(300) {
            for _ in 0..aside.between(1, 4) {
                let at = aside.below(self.settings.trouble_ends);
                let most = *aside.pick(&[30, 300, 1200]);
                let (machine, duration) = (aside.index(machines), aside.between(1, most) * MS);
                self.at(at, Event::Fault(Fault::Freeze { machine, duration }));
            }
        }
        // One member at the most lies: more than half of them would be believed.
        let liar = aside.index(machines);
        for _ in 0..*aside.pick(&[0, 1, 2, 4]) {
            let at = aside.below(self.settings.trouble_ends);
            let machine = aside.index(machines);
            let (as_member, claims) = (aside.chance(500), aside.chance(500));
            let stranger = Fault::Stranger { machine, as_member, claims };
            self.at(at, Event::Fault(if aside.chance(500) { stranger } else { Fault::Lie { liar, machine } }));
        }
        for machine in &mut self.machines {
            machine.clock.drift = i64::try_from(self.dice.below(2000)).unwrap_or(0) - 1000;
        }
    }

    fn plan(&mut self, fault: Fault) {
        let at = 20 * MS + self.dice.below(self.settings.trouble_ends - 20 * MS);
        self.at(at, Event::Fault(fault));
    }

    /// A fault strikes, unless the time of faults is over.
    pub(crate) fn strike(&mut self, fault: Fault) {
        if self.healed {
            return;
        }
        note!(self, "fault: {fault:?}");
        match fault {
            Fault::Crash { machine } => self.crash_for_a_while(machine),
            Fault::PowerFailure => (0..self.machines.len()).for_each(|machine| self.crash_for_a_while(machine)),
            Fault::Cut { one, other } => {
                if one != other {
                    self.count(Count::Partitions);
                    self.cut_for_a_while(&[(one, other), (other, one)]);
                }
            }
            Fault::Isolate { machine } => {
                let others = (0..self.machines.len()).filter(|other| *other != machine);
                let paths: Vec<_> = others.flat_map(|other| [(machine, other), (other, machine)]).collect();
                self.report.add(Count::Partitions, paths.len() as u64 / 2);
                self.cut_for_a_while(&paths);
            }
            Fault::CutOneWay { from, to } => {
                if from != to {
                    self.count(Count::OneWayPartitions);
                    self.cut_for_a_while(&[(from, to)]);
                }
            }
            Fault::Heal { from, to } => self.heal_path(from, to),
            Fault::Freeze { machine, duration } => self.freeze(machine, duration),
            Fault::Suspect { machine, peer } => {
                if machine != peer {
                    self.suspect(machine, peer);
                }
            }
            Fault::Wipe { machine, tries } => self.wipe(machine, tries),
            Fault::Copy { machine } => self.machines[machine].copy = Some(self.machines[machine].disk.copy()),
            Fault::RollBack { machine, tries } => self.roll_back(machine, tries),
            Fault::Twin { machine, tries } => self.twin(machine, tries),
            Fault::FailSync { machine } => {
                let Machine { quarantined, has_twin, .. } = self.machines[machine];
                if self.is_running(machine) && !quarantined && !has_twin {
                    self.machines[machine].disk.failing = true;
                }
            }
            Fault::SlowDisk { machine } => self.machines[machine].slow_until = self.time + 300 * MS,
            Fault::SetClock { machine, skew } => {
                let limit = self.settings.cluster.clock_skew_max.as_micros();
                let beyond = u128::from(skew.unsigned_abs()) > limit / 2;
                self.count(if beyond { Count::ClockSkews } else { Count::ClockJumps });
                self.history.clocks_are_wrong |= beyond;
                self.remember_clocks();
                self.machines[machine].clock.skew = skew;
            }
            Fault::NewEpoch => self.new_epoch(),
            Fault::Operate => self.draw_operation_fault(),
            Fault::Cancel => self.cancel_operation(),
            Fault::Transfers => {
                let settings = self.draw_transfers();
                self.set_transfers(settings);
            }
            Fault::Repair { machine } => {
                let partitions = self.layout().partition_ids().collect();
                self.step(machine, Input::Repair(partitions));
            }
            Fault::FailStart { machine } => self.fail_start(machine),
            Fault::CreateKeyspace => self.create_keyspace(),
            Fault::DropKeyspace => self.drop_keyspace(),
            Fault::Stranger { machine, as_member, claims } => self.strange(machine, as_member, claims),
            Fault::Lie { liar, machine } => self.lie(liar, machine),
            Fault::Retry => self.living().into_iter().for_each(|machine| self.retry_copies(machine)),
        }
    }

    /// An operator has a machine begin those of its copies again that wait.
    pub(crate) fn retry_copies(&mut self, machine: usize) {
        let partitions = self.layout().partition_ids().collect();
        self.step(machine, Input::Retry(partitions));
    }

    /// Kills a process and starts it again after a while.
    pub(crate) fn crash_for_a_while(&mut self, machine: usize) {
        if self.is_running(machine) && !self.machines[machine].has_twin {
            self.crash(machine);
            let most = *self.dice.pick(&[5, 100, 800]);
            let down = self.dice.between(1, most) * MS;
            self.at(self.time + down, Event::Start { machine });
            let mut aside = self.dice.aside();
            if aside.chance(150) {
                let at = self.time + aside.below(down);
                self.at(at, Event::Fault(Fault::FailStart { machine }));
            }
        }
    }

    /// A start that fails when the store is open, such as for a port that is in use.
    fn fail_start(&mut self, machine: usize) {
        if self.is_running(machine) || self.machines[machine].dead {
            return;
        }
        self.count(Count::FailedStarts);
        let mut aside = self.dice.aside();
        if aside.chance(500) {
            // It got so far that its boot is durable, and has met nobody.
            let nonce = u32::try_from(aside.below(u64::from(u32::MAX))).unwrap_or(0);
            self.machines[machine].disk.open(nonce);
        }
    }

    fn cut_for_a_while(&mut self, paths: &[(usize, usize)]) {
        let most = *self.dice.pick(&[50, 300, 1200]);
        let end = self.time + self.dice.between(1, most) * MS;
        for &(from, to) in paths {
            self.cut(from, to);
            self.at(end, Event::Fault(Fault::Heal { from, to }));
        }
    }

    fn try_later(&mut self, fault: Fault) {
        let delay = self.dice.between(20, 200) * MS;
        self.at(self.time + delay, Event::Fault(fault));
    }

    /// Replaces a disk by an empty one, if the promise allows it.
    pub(crate) fn wipe(&mut self, machine: usize, tries: u8) {
        if self.machines[machine].dead {
            return;
        }
        if !self.may_lose_disk(machine) {
            if tries > 1 {
                self.try_later(Fault::Wipe { machine, tries: tries - 1 });
            }
            return;
        }
        self.count(Count::Wipes);
        self.crash(machine);
        let store = StoreId(self.dice.any());
        let target = &mut self.machines[machine];
        if self.settings.mutation == Some(Mutation::WipeKeepsIdentity) {
            target.false_identity = Some(target.incarnation);
            target.disk.wipe(target.incarnation.store, target.disk.boots.clone());
        } else {
            target.disk.wipe(store, Boots::default());
            self.mark_unsynced(machine);
        }
        let target = &mut self.machines[machine];
        target.acted_on = Epoch(0);
        target.copy = None;
        target.is_older_copy = false;
        target.known_to.clear();
        target.quarantined = false;
        self.forget_fences(machine);
        self.forget_memory(machine);
        let down = self.dice.between(1, 100) * MS;
        self.at(self.time + down, Event::Start { machine });
        if self.dice.chance(300) {
            // In the middle of the refill, perhaps.
            let again = self.time + down + self.dice.between(2, 60) * MS;
            self.at(again, Event::Fault(Fault::Crash { machine }));
        }
    }

    /// Replaces a disk by the copy that was kept, if the promise allows it.
    pub(crate) fn roll_back(&mut self, machine: usize, tries: u8) {
        let target = &self.machines[machine];
        let Some(copy) = target.copy.clone().filter(|_| !target.dead) else { return };
        let is_of_boot = copy.store == target.disk.store && copy.boots.newest() == target.disk.boots.newest();
        if !self.is_noticed(machine, &copy) || !self.may_lose_disk(machine) {
            if tries > 1 {
                self.try_later(Fault::RollBack { machine, tries: tries - 1 });
            }
            return;
        }
        self.count(if is_of_boot { Count::RollBacksOfBoot } else { Count::RollBacks });
        self.crash(machine);
        self.forget_memory(machine);
        self.mark_unsynced(machine);
        let others: BTreeSet<usize> = self.living().into_iter().filter(|peer| *peer != machine).collect();
        let target = &mut self.machines[machine];
        target.acted_on = Epoch(0);
        target.disk.restore(copy);
        target.quarantined = true;
        target.is_older_copy = true;
        target.known_to = others;
        target.disk.failing = false;
        self.forget_fences(machine);
        let down = self.dice.between(1, 50) * MS;
        self.at(self.time + down, Event::Start { machine });
        let mut aside = self.dice.aside();
        if aside.chance(200) {
            let at = self.time + aside.below(down);
            self.at(at, Event::Fault(Fault::FailStart { machine }));
        }
        if aside.chance(300) {
            // It starts several times, perhaps before it meets anybody.
            let mut at = self.time + down;
            for _ in 0..aside.between(1, 3) {
                at += aside.between(1, 10) * MS;
                self.at(at, Event::Fault(Fault::Crash { machine }));
            }
        }
    }

    /// What a machine knew of others, and what its old copies were to bring, is gone with its disk.
    fn forget_memory(&mut self, machine: usize) {
        self.machines.iter_mut().for_each(|other| {
            other.known_to.remove(&machine);
        });
        self.old_copies.retain(|(of, _)| *of != machine);
    }

    /// A second process runs on a copy of a machine's disk: it meets all others as a later boot of the same node, and ends.
    pub(crate) fn twin(&mut self, machine: usize, tries: u8) {
        let Some(nonce) = u32::try_from(self.dice.aside().below(u64::from(u32::MAX))).ok() else { return };
        let others: Vec<usize> = self.living().into_iter().filter(|peer| *peer != machine).collect();
        let Machine { disk, incarnation, .. } = &self.machines[machine];
        let mut boots = disk.copy().boots;
        let last = boots.all().last().map_or(0, |boot| boot.last);
        let twin = Incarnation { store: incarnation.store, boot: boots.newest() + 1, nonce };
        boots.begin(twin.boot, nonce, last);
        let meets = |world: &Self, peer: usize| {
            let is_there = world.network.is_connected(machine, peer) && world.thaws(peer).is_none();
            let lags = world.machines[peer].lags_until > world.time;
            let seen = world.machines[peer].core.as_ref().and_then(|core| core.seen(node_id(machine)));
            let works = world.machines[peer].core.as_ref().is_some_and(|core| !core.status().poisoned);
            is_there
                && works
                && !lags
                && seen.is_some_and(|seen| seen.incarnation == *incarnation && boots.has(twin, seen))
        };
        let is_proven = others.len() * 2 > self.layout().members.len();
        // A partition with one owner has nobody to be refilled from.
        let is_copied = self.layout().partitions.iter().all(|entry| entry.sets().all(|set| set.len() > 1));
        let is_calm = is_copied && self.operation.is_none() && self.unsynced.is_empty();
        let is_sound =
            self.is_running(machine) && !self.machines[machine].is_older_copy && self.thaws(machine).is_none();
        if !is_proven || !is_sound || !is_calm || !others.iter().all(|peer| meets(self, *peer)) {
            if tries > 1 {
                self.try_later(Fault::Twin { machine, tries: tries - 1 });
            }
            return;
        }
        self.count(Count::Twins);
        // No part begins to lag at this moment: it is to be true at once that the others have met it.
        let lags = std::mem::take(&mut self.settings.lags);
        for &peer in &others {
            self.suspect(peer, machine);
            self.suspect(machine, peer);
            let node = node_id(machine);
            self.step(peer, Input::PeerUp { node, incarnation: twin, commit: 0 });
            self.step(peer, Input::PeerDown { node });
            // It stays until they durably remember it.
            if let Some(through) = self.machines[peer].disk.last_pending() {
                self.machines[peer].disk.failing = false;
                self.synced(peer, self.machines[peer].life, through);
            }
        }
        self.settings.lags = lags;
        let known_to = others.into_iter().collect();
        let target = &mut self.machines[machine];
        (target.is_older_copy, target.has_twin, target.known_to) = (true, true, known_to);
    }

    /// Whether two processes run as one node, or have, and the first one does not know yet.
    pub(crate) fn a_node_runs_twice(&self) -> bool {
        self.machines.iter().any(|machine| machine.has_twin)
    }

    /// What a store that is gone held when it was fenced says nothing of the one that takes its place.
    pub(crate) fn forget_fences(&mut self, machine: usize) {
        self.machines[machine].ever_lost = true;
        self.fenced.retain(|(fenced, _, _), _| *fenced != machine);
    }

    pub(crate) fn mark_unsynced(&mut self, machine: usize) {
        let layout = self.layout();
        for partition in layout.partition_ids() {
            if self.old_owners(partition).contains(&machine) {
                let lost = check::refilled::lost(self, machine, partition);
                self.unsynced.insert((machine, partition), lost);
            }
        }
    }

    /// Whether every other machine durably remembers something that a copy of this one's disk lacks, and together they are enough
    /// to prove it, unless the agreed state does. A peer whose own store was lost since may have forgotten which stores this
    /// machine had before.
    fn is_noticed(&self, machine: usize, copy: &DiskCopy) -> bool {
        let next = Incarnation { store: copy.store, boot: copy.boots.newest() + 1, nonce: u32::MAX };
        let AgreedStore { newest, retired } = &self.agreed[machine];
        let agreed = Point { incarnation: *newest, commit: 0 };
        let by_agreed = retired.contains(&copy.store) || !copy.boots.has(next, agreed);
        let others: Vec<usize> = self.living().into_iter().filter(|peer| *peer != machine).collect();
        let knows = |peer: &usize| {
            let seen = self.machines[*peer].disk.durable_seen(node_id(machine));
            seen.is_some_and(|(seen, retired)| {
                let is_it = seen.incarnation.store == copy.store;
                retired.contains(&copy.store) || is_it && !copy.boots.has(next, seen)
            })
        };
        let proven = others.len() * 2 > self.layout().members.len() || by_agreed;
        proven && !others.is_empty() && others.iter().all(knows)
    }

    /// Somebody who is no member says hello to a machine, under a number of its own or that of a member, and claims to have
    /// seen a later boot of it. If it got a session, it would write.
    fn strange(&mut self, machine: usize, as_member: bool, claims: bool) {
        let peer = (machine + 1) % self.machines.len();
        let Some(mine) = self.hello(machine, peer) else { return };
        let mut aside = self.dice.aside();
        // The network has no way back to it; what the node sends goes nowhere.
        let node = if as_member && peer != machine { node_id(peer) } else { node_id(self.machines.len()) };
        let incarnation = Incarnation { store: StoreId(aside.any()), boot: 1, nonce: 1 };
        let later = Incarnation { boot: mine.incarnation.boot + 1, ..mine.incarnation };
        let seen = Point { incarnation: later, commit: 0 };
        let theirs = Hello { node, incarnation, seen: claims.then_some(seen), ..mine.clone() };
        self.count(Count::Strangers);
        let mine = Hello { seen: None, ..mine };
        if self.greeted(machine, &mine, &theirs).is_err() {
            return;
        }
        let key = aside.index(self.history.keys.len());
        let key = KeyRequest {
            keyspace: self.history.keys[key].keyspace,
            key: self.history.keys[key].bytes.clone(),
            epoch: self.layout().epoch,
            consistency: Consistency { level: Level::One, strict: false },
            operation: Operation::Write {
                request: Some(RequestId {
                    client: aside.any(),
                    stamp: Hlc::at(self.machines[machine].clock.wall(self.time)),
                }),
                attempt: Attempt::Plain,
                value: Some(Bytes::from_static(b"made up")),
                context: None,
                ttl: None,
                when: When::Always,
            },
        };
        let (call, deadline) = (CallId(aside.any()), Duration::from_millis(500));
        let message = Message::Forward { call, request: Request::Key(key), deadline };
        self.step(machine, Input::PeerUp { node, incarnation, commit: 0 });
        let life = self.machines[machine].life;
        let input = Input::Message { from: node, message };
        self.at(self.time + 100 * MS, Event::Input { machine, life, input });
    }

    /// The liar of the run, a member, claims to have seen a later boot of a machine.
    fn lie(&mut self, liar: usize, machine: usize) {
        let (Some(mine), Some(theirs)) = (self.hello(machine, liar), self.hello(liar, machine)) else { return };
        if liar == machine || self.machines[machine].quarantined || self.thaws(machine).is_some() {
            return;
        }
        self.count(Count::Lies);
        let later = Incarnation { boot: mine.incarnation.boot + 1, ..mine.incarnation };
        // What it says ends no session: it says it on a new connection.
        let later = Point { incarnation: later, commit: 0 };
        drop(self.greeted(machine, &mine, &Hello { seen: Some(later), ..theirs }));
    }

    /// The rule at the top of this file.
    pub(crate) fn may_lose_disk(&self, machine: usize) -> bool {
        // A partition with one owner has nobody to be refilled from.
        let copied = self.layout().partitions.iter().all(|entry| entry.sets().all(|set| set.len() > 1));
        // Whoever knows that a store is an older copy must not forget it before that is proven.
        let copied = copied && !self.machines.iter().any(|machine| machine.is_older_copy);
        // A client may yet learn of a write that only this disk holds.
        let late = |ack: &UnderWay| ack.coordinator == Some(machine) && self.time < ack.at + 1000 * MS;
        // Some part that lags may hold what this disk alone has confirmed, and acknowledge by it later.
        let lags =
            (0..self.machines.len()).any(|other| other != machine && self.machines[other].lags_until > self.time);
        copied
            && !lags
            && !self.under_way.values().any(late)
            && self.unsynced.is_empty()
            && self.history.key_ids().all(|key| self.is_safe_without(machine, key))
            && self.registers_are_safe_without(machine)
    }

    fn is_safe_without(&self, machine: usize, key: KeyId) -> bool {
        let conflict = self.history.key(key).conflict;
        let acks = &self.history.acks[key.0];
        let old_owners = self.old_owners(self.history.key(key).partition);
        let survive = |spaces: &[Space], only_strict: bool| {
            let mut rest = Record::default();
            for (index, other) in self.machines.iter().enumerate() {
                let counts = !other.dead && (!only_strict || old_owners.contains(&index));
                if index != machine && counts {
                    for space in spaces {
                        if let Some(record) = other.disk.durable_record(&self.storage_key(*space, key)) {
                            rest.merge(&record, conflict);
                        }
                    }
                }
            }
            rest.context = check::collected::with_collected(self, key, &rest.context);
            let held: Vec<OpId> = self.ops_of(key, &rest);
            let answer = Answer { values: &held, context: Some(&rest.context), wall: self.wall_high() };
            let safe = |op, dot| rest.context.covers(dot) && self.history.is_settled(op, dot, &answer);
            let mut asked = acks.iter().filter(|ack| !only_strict || ack.strict);
            asked.all(|ack| ack.dots.iter().all(|dot| safe(ack.op, *dot)))
        };
        survive(&[Space::Owned, Space::Hint], false) && survive(&[Space::Owned], true)
    }

    /// The operations whose values a record holds.
    pub(crate) fn ops_of(&self, key: KeyId, record: &Record) -> Vec<OpId> {
        let values = record.siblings.iter().filter_map(|version| version.value.as_deref());
        values.filter_map(|value| self.history.op_of_value(key, value)).collect()
    }

    /// Commits a layout with the same owners in which some entries have changed, and tells every node, sooner or later.
    fn new_epoch(&mut self) {
        self.count(Count::Epochs);
        let before = self.layout();
        let epoch = Epoch(before.epoch.0 + 1);
        let mut layout: Layout = Layout::clone(&before);
        layout.epoch = epoch;
        for entry in &mut layout.partitions {
            if self.dice.chance(500) && self.operation.is_none() {
                entry.changed = epoch;
            }
        }
        self.commit_layout(layout);
    }

    /// The end of all faults: paths are healed, machines run, clocks are right, and the control plane reaches everybody.
    pub(crate) fn heal(&mut self) {
        note!(self, "all faults end");
        self.remember_clocks();
        self.healed = true;
        self.settings.network.late = 0;
        self.settings.network.duplication = 0;
        self.set_transfers(TransferSettings::default());
        for machine in self.living() {
            self.machines[machine].hears_up_to = None;
            self.machines[machine].clock.skew = 0;
            self.machines[machine].clock.drift = 0;
            self.machines[machine].disk.failing = false;
            self.machines[machine].slow_until = 0;
            for peer in self.living() {
                if peer != machine {
                    self.heal_path(machine, peer);
                }
            }
            if self.is_running(machine) {
                self.tell_layouts(machine);
                self.tell_keyspaces(machine, self.newest_keyspaces());
                self.at(self.time, Event::StoreReported { machine });
            } else {
                let delay = self.dice.below(100 * MS);
                self.at(self.time + delay, Event::Start { machine });
            }
        }
    }
}
