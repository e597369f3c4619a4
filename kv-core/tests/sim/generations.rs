//! Another generation of a cluster (rule D2): the directories of all nodes are restored from copies that were taken one after the
//! other, perhaps while partitions moved. One of them founds a generation, the others join it with what they hold, one of them late.
//! What any of them held is there in the end, unless it was replaced; what one of them knew to be deleted stays away.

use std::sync::Arc;
use std::time::Duration;

use kv_core::message::{Attempt, Consistency, Level};
use kv_core::ring::Layout;
use kv_core::storage::Space;
use kv_core::topology::Change;
use kv_core::types::{Epoch, Generation, PartitionId, StoreId};
use kv_core::version::{Hlc, Record, Version};

use crate::check::converged::replicas_are_equal;
use crate::history::KeyId;
use crate::report::{Count, Report};
use crate::settings::{MS, Mutation, Settings, node_id};
use crate::workload::{Ask, Asker};
use crate::world::{AgreedStore, Event, World};
use crate::{rules, settling};

const QUORUM: Consistency = Consistency { level: Level::Quorum, strict: true };

/// Epochs that the generation before may have given out beyond those that its founder knows.
const EPOCHS_AHEAD: u64 = 1_000_000;

/// What a directory holds when it is to enter the generation.
struct Directory {
    machine: usize,
    /// Of each key the record, and the hint for other owners.
    records: Vec<(KeyId, Record)>,
    hints: Vec<(KeyId, Record)>,
    /// Up to where each partition had settled, where that counts.
    settled: Vec<(PartitionId, Hlc)>,
}

impl World {
    /// Keys are written and deleted through machines that chance picks, and now and then a directory is copied.
    fn write_while_copies_are_taken(&mut self, moves: bool) {
        let keys: Vec<KeyId> = self.history.key_ids().collect();
        for step in 0..self.dice.between(10, 40) {
            let (key, through) = (*self.dice.pick(&keys), self.dice.index(self.machines.len()));
            let value = (!self.dice.chance(350)).then(|| self.history.next_value(0));
            // Whether it is refused, since layouts change, makes no difference.
            let op = self.plan_write(key, value, QUORUM);
            self.ask(Asker::Past, Ask::Write(op, Attempt::Plain), through, self.layouts.len() - 1);
            self.wait_for(1200 * MS, |world| world.pending.is_empty());
            if self.dice.chance(200) {
                let machine = self.dice.index(self.machines.len());
                self.machines[machine].copy = Some(self.machines[machine].disk.copy());
            }
            if self.dice.chance(150) {
                // Long enough that tombstones are collected.
                self.wait_a_while(1000);
            }
            if moves && step % 8 == 3 {
                let node = node_id(self.dice.index(self.machines.len()));
                let weight = *self.dice.pick(&[0.5, 1.0, 2.0]);
                self.operate(&[Change::Weight { node, weight }]);
            }
        }
    }

    /// Every node stops, and the directories of most are replaced by the copies that there are of them.
    fn restore_all(&mut self) {
        for machine in 0..self.machines.len() {
            self.crash(machine);
            self.forget_fences(machine);
            let copy = self.machines[machine].copy.take().filter(|_| self.dice.chance(800));
            if let Some(copy) = copy {
                self.machines[machine].disk.restore(copy);
                self.machines[machine].acted_on = Epoch(0);
                self.count(Count::RollBacks);
            }
        }
        self.pending.clear();
        self.operation = None;
        self.unsynced.clear();
        self.old_copies.clear();
    }

    /// What a directory holds.
    fn directory(&self, machine: usize) -> Directory {
        let disk = &self.machines[machine].disk;
        let held = |space: Space| {
            let record = |key| disk.durable_record(&self.storage_key(space, key));
            self.history.key_ids().filter_map(|key| Some((key, record(key)?))).collect()
        };
        let layout = disk.durable_layout();
        let since = |partition| Some(layout.as_ref()?.entry(partition)?.owner(node_id(machine))?.since);
        let settled = |partition: PartitionId| {
            let (until, within) = disk.durable_settled(partition)?;
            (since(partition) == Some(within)).then_some((partition, until))
        };
        Directory {
            machine,
            records: held(Space::Owned),
            hints: held(Space::Hint),
            settled: self.layouts[0].partition_ids().filter_map(settled).collect(),
        }
    }

    /// The directory of a machine enters the generation. Whoever knew it knows that its store is another one.
    fn enter_generation(&mut self, machine: usize) {
        self.crash(machine);
        let store = StoreId(self.dice.any());
        let mutation = self.settings.mutation;
        let former = self.machines[machine].disk.store;
        let disk = &mut self.machines[machine].disk;
        disk.enter(store, |name| match mutation {
            Some(Mutation::SettledStaysBehind) => !name.starts_with(b"settled/"),
            Some(Mutation::EntersUnmarked) => name != b"entered-generation",
            _ => true,
        });
        if mutation == Some(Mutation::RenewalWipes) {
            disk.wipe(store, kv_core::boots::Boots::default());
        }
        self.machines[machine].generation = self.generation;
        self.machines[machine].acted_on = Epoch(0);
        self.agreed[machine].retired.insert(former);
        self.mark_unsynced(machine);
    }

    /// The directory of a machine founds another generation, from the layout that it knows.
    fn found_generation(&mut self, founder: usize) {
        let Some(known) = self.machines[founder].disk.durable_layout() else { return };
        let number = self.generation.number + 1;
        self.agreed.iter_mut().for_each(|agreed| *agreed = AgreedStore::default());
        // What moved moves no more.
        let partitions = known.partitions.iter().map(|entry| kv_core::ring::Entry { joint: None, ..entry.clone() });
        let known = Layout { partitions: partitions.collect(), ..known.clone() };
        self.layouts = vec![Arc::new(known)];
        let former = self.machines[founder].disk.store;
        self.generation = Generation { number, founder: former };
        self.enter_generation(founder);
        let store = self.machines[founder].disk.store;
        self.generation = Generation { number, founder: store };
        self.machines[founder].generation = self.generation;
        let known = self.layout();
        let mut members = known.members.clone();
        if let Some(member) = members.get_mut(&node_id(founder)) {
            member.store = store;
        }
        self.layouts = vec![Arc::new(known.of_generation(members, Epoch(known.epoch.0 + EPOCHS_AHEAD)))];
    }

    /// All owners hold the same. A tombstone that some have collected goes everywhere, within a few rounds.
    fn expect_equal_in_the_end(&mut self) {
        self.settle();
        self.wait_for(5000 * MS, |world| replicas_are_equal(world).is_ok());
        self.expect_equal_replicas();
    }

    /// Where a version was held, no owner lacks it, unless something had replaced it.
    fn expect_kept(&mut self, directories: &[Directory]) {
        let mut lost = None;
        for directory in directories {
            for (key, record) in directory.records.iter().chain(&directory.hints) {
                let stored = self.storage_key(Space::Owned, *key);
                let values = record.siblings.iter().filter(|version| version.value.is_some());
                for version in values.filter(|version| self.history.replaced_by(*key, version.dot).next().is_none()) {
                    let has = |owner: &usize| {
                        let held = self.machines[*owner].disk.durable_record(&stored);
                        held.is_some_and(|held| held.siblings.iter().any(|sibling| sibling.request == version.request))
                    };
                    if let Some(owner) = self.owners(stored.partition()).iter().find(|owner| !has(owner)) {
                        lost = Some(format!(
                            "D2: {} of {key:?}, which the directory of {} held, is lost at {}",
                            version.dot,
                            node_id(directory.machine),
                            node_id(*owner)
                        ));
                    }
                }
            }
        }
        if let Some(lost) = lost {
            self.fail(lost);
        }
    }

    /// What had settled in one directory, which did not hold it any more, is nowhere.
    fn expect_deleted(&mut self, directories: &[Directory], first: &Layout) {
        let mut back = None;
        for key in self.history.key_ids() {
            let stored = self.storage_key(Space::Owned, key);
            let partition = stored.partition();
            for owner in self.owners(partition) {
                let held = self.machines[owner].disk.durable_record(&stored).unwrap_or_default();
                for version in held.siblings.iter().filter(|version| version.value.is_some()) {
                    let knows = |directory: &&Directory| {
                        let owns = first.entry(partition).is_some_and(|it| it.owns(node_id(directory.machine)));
                        owns && directory.knows_deleted(key, partition, version)
                    };
                    if let Some(directory) = directories.iter().find(knows) {
                        back = Some(format!(
                            "D2: {} of {key:?} is back at {}, although {} knew that it was deleted",
                            version.dot,
                            node_id(owner),
                            node_id(directory.machine)
                        ));
                    }
                }
            }
        }
        if let Some(back) = back {
            self.fail(back);
        }
    }
}

impl Directory {
    /// Whether something had settled here, and was not held any more.
    fn knows_deleted(&self, key: KeyId, partition: PartitionId, version: &Version) -> bool {
        let settled = self.settled.iter().any(|(of, until)| *of == partition && version.written <= *until);
        let held = self.records.iter().find(|(of, _)| *of == key);
        settled && held.is_none_or(|(_, record)| !record.siblings.iter().any(|it| it.dot == version.dot))
    }
}

/// The story. `moves`: partitions move while copies are taken.
fn restore_all_and_go_on(world: &mut World, moves: bool) {
    world.begin();
    world.write_while_copies_are_taken(moves);
    world.wait_a_while(300);
    world.restore_all();
    if world.failure.is_some() {
        return;
    }
    let nodes = world.machines.len();
    let directories: Vec<Directory> = (0..nodes).map(|machine| world.directory(machine)).collect();
    // A directory from before the cluster was formed knows nothing that could be founded.
    let known: Vec<usize> = (0..nodes).filter(|it| world.machines[*it].disk.durable_layout().is_some()).collect();
    let founder = *world.dice.pick(&known);
    let late = world.dice.index(nodes);
    world.found_generation(founder);
    let first = world.layout();
    let joiners = (0..nodes).filter(|machine| *machine != founder && *machine != late);
    joiners.for_each(|machine| world.enter_generation(machine));
    for machine in 0..nodes {
        world.machines[machine].quarantined = false;
        let delay = world.dice.between(1, 50) * MS;
        world.at(world.time + delay, Event::Start { machine });
    }
    if late != founder {
        // It comes as it was, obeys nobody, and is nobody's peer. Then it joins.
        world.wait_a_while(400);
        world.enter_generation(late);
        world.start(late);
    }
    world.wait(100 * MS);
    world.settle();
    world.run_until(world.time + 500 * MS);
    world.settle();
    world.expect_kept(&directories);
    world.expect_deleted(&directories, &first);
    world.expect_equal_in_the_end();
    // It works.
    for key in world.history.key_ids().collect::<Vec<_>>() {
        let through = world.dice.index(nodes);
        world.write(key, false, QUORUM, through);
    }
    world.expect_equal_in_the_end();
}

fn adjust(settings: &mut Settings, copies: u8) {
    settling::alone(settings, 4, copies);
    settings.node.settle_every = Duration::from_millis(10);
    settings.node.deadline = Duration::from_secs(1);
}

fn check(mutation: Mutation, expected: &[&str], copies: u8, moves: bool) -> Report {
    let story = |world: &mut World| restore_all_and_go_on(world, moves);
    rules::check(mutation, expected, |settings| adjust(settings, copies), story)
}

#[test]
fn leaving_behind_what_was_settled_is_caught() {
    let report = check(Mutation::SettledStaysBehind, &["is back"], 3, false);
    assert!(report.get(Count::Collected) > 0, "nothing was collected");
    assert!(report.get(Count::RollBacks) > 0, "nothing was restored");
}

#[test]
fn a_generation_that_forgets_what_directories_held_is_caught() {
    let report = check(Mutation::RenewalWipes, &["is lost"], 3, true);
    assert!(report.get(Count::Operations) > 0, "nothing moved");
}

#[test]
fn entering_without_saying_so_is_caught() {
    check(Mutation::EntersUnmarked, &["liveness"], 1, false);
}
