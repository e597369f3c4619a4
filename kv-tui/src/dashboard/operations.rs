//! The operations as the dashboard knows them, how far the newest is, and what clients notice of it.

use std::collections::BTreeMap;

use kv_proto::v1;

use super::columns::{MoveOrder, OperationOrder};
use super::list::List;
use super::progress::{MoveId, MoveState, Progress, Step};
use crate::observe::snapshot::ClusterSnapshot;
use crate::run::operation::state_word;
use crate::run::preview;

/// The operations that are remembered.
#[derive(Clone, Debug, Default)]
pub struct Operations {
    /// Ascending by number, without details.
    pub all: Vec<v1::Operation>,
    /// How far the newest one is.
    pub progress: Option<Progress>,
    /// The limit on copying.
    pub throttle: Option<v1::ThrottleSetting>,
    /// The highest p99 of any node before the operation began, in microseconds; `None`: it was not observed.
    pub p99_before_us: Option<u64>,
    /// The requests that have failed since the operation was first seen.
    failures: Failures,
    /// The highest p99 that was seen last while nothing was under way.
    p99_idle_us: Option<u64>,
}

impl Operations {
    /// The operation that is carried out or paused.
    #[must_use]
    pub fn active(&self) -> Option<&v1::Operation> {
        self.progress.as_ref().filter(|progress| progress.is_active()).map(|progress| &progress.operation)
    }

    /// Takes a member's report.
    pub(super) fn observe_report(&mut self, snapshot: &v1::NodeSnapshot, cluster: &ClusterSnapshot) {
        self.failures.count(snapshot);
        if let Some(operation) = &snapshot.operation {
            self.observe(operation, cluster);
        }
        if let Some(throttle) = &snapshot.throttle {
            let newer = self.throttle.as_ref().is_none_or(|known| known.set_us <= throttle.set_us);
            if newer {
                self.throttle = Some(throttle.clone());
            }
        }
        if let Some(progress) = &mut self.progress {
            progress.observe_report(snapshot);
        }
        if self.active().is_none() {
            let worst =
                cluster.node_reports().filter_map(|reported| reported.usage).map(|usage| usage.latency_p99_us).max();
            self.p99_idle_us = worst.filter(|us| *us > 0);
        }
    }

    fn observe(&mut self, operation: &v1::Operation, cluster: &ClusterSnapshot) {
        let newest = self.progress.as_ref().map_or(0, |progress| progress.operation.id);
        if operation.id > newest {
            self.progress = Some(Progress::new(operation));
            // The latency before an operation is unknown if it was running before the first observation.
            self.p99_before_us = self.p99_idle_us;
            self.failures.begin_anew();
        }
        let Some(progress) = &mut self.progress else { return };
        let unknown = operation.details.iter().any(|step| {
            let known = progress.steps.get(&(step.partition, step.to));
            known.is_none_or(|known| known.total == (0, 0))
        });
        let sizes = if unknown { preview::sizes(cluster) } else { BTreeMap::new() };
        progress.observe_operation(operation, |partition| sizes.get(&partition).copied().unwrap_or_default());
        let known = self.all.iter().position(|known| known.id >= operation.id);
        let plain = v1::Operation { details: Vec::new(), ..progress.operation.clone() };
        match known {
            Some(at) if self.all[at].id == plain.id => self.all[at] = plain,
            None if operation.id == plain.id => self.all.push(plain),
            _ => {}
        }
    }

    /// Requests that have failed since the operation was first seen. It only grows, also when nodes restart or leave.
    #[must_use]
    pub fn failures_since(&self) -> u64 {
        self.failures.since()
    }

    /// The stats of an operation, the same wherever it is shown: for the newest those of its moves.
    #[must_use]
    pub fn stats(&self, operation: &v1::Operation) -> OperationStats {
        match self.progress.as_ref().filter(|progress| progress.operation.id == operation.id) {
            Some(progress) => {
                let ((keys, bytes), _) = progress.copied();
                OperationStats { moved: progress.moved(), keys, bytes }
            }
            None => {
                let v1::Operation { moved, keys_moved: keys, bytes_moved: bytes, .. } = *operation;
                OperationStats { moved, keys, bytes }
            }
        }
    }
}

/// How far an operation is, for a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OperationStats {
    /// Replicas that are cut over.
    pub moved: u64,
    /// Keys that are copied.
    pub keys: u64,
    /// Bytes of them.
    pub bytes: u64,
}

/// Requests that have failed since a moment, of all processes that have reported them: of those that have ended as well.
#[derive(Clone, Debug, Default)]
struct Failures {
    /// By store: the newest process of each.
    processes: BTreeMap<u64, Process>,
    /// Of processes that have ended.
    ended: u64,
}

#[derive(Clone, Copy, Debug)]
struct Process {
    boot: u32,
    /// What it had counted at the moment.
    before: u64,
    /// The most that it has reported.
    newest: u64,
}

impl Process {
    fn since(self) -> u64 {
        self.newest.saturating_sub(self.before)
    }
}

impl Failures {
    fn count(&mut self, reported: &v1::NodeSnapshot) {
        let Some(counters) = reported.counters else { return };
        let newest = counters.failures;
        match self.processes.get_mut(&reported.store_id) {
            // What a process had counted before the first observation is not known.
            None => {
                self.processes.insert(reported.store_id, Process { boot: reported.boot, before: newest, newest });
            }
            Some(known) if known.boot == reported.boot => known.newest = known.newest.max(newest),
            Some(known) if known.boot < reported.boot => {
                self.ended = self.ended.saturating_add(known.since());
                *known = Process { boot: reported.boot, before: 0, newest };
            }
            // A late word of a process that has ended.
            Some(_) => {}
        }
    }

    fn begin_anew(&mut self) {
        self.ended = 0;
        for process in self.processes.values_mut() {
            process.before = process.newest;
        }
    }

    fn since(&self) -> u64 {
        self.processes.values().fold(self.ended, |sum, process| sum.saturating_add(process.since()))
    }
}

impl Operations {
    /// Takes the operations that are remembered.
    pub(super) fn observe_all(&mut self, reported: v1::OperationsResponse, cluster: &ClusterSnapshot) {
        if reported.throttle.is_some() {
            self.throttle = reported.throttle;
        }
        for operation in &reported.operations {
            match self.all.binary_search_by_key(&operation.id, |known| known.id) {
                Ok(_) => {}
                Err(at) => {
                    let plain = v1::Operation { details: Vec::new(), ..operation.clone() };
                    self.all.insert(at, plain);
                }
            }
        }
        if let Some(newest) = reported.operations.last() {
            self.observe(newest, cluster);
        }
        if let Some(first) = reported.operations.first().map(|operation| operation.id) {
            self.all.retain(|operation| operation.id >= first);
        }
    }

    /// The moves that a list shows, in its order.
    pub(super) fn moves_of(
        &self,
        list: &List<MoveOrder, MoveId>,
        name: impl Fn(u64) -> String,
    ) -> Vec<(MoveId, &Step)> {
        let Some(progress) = &self.progress else { return Vec::new() };
        let shown = |(id, step): &(&MoveId, &Step)| {
            list.filter.is_empty()
                || list.shows(&id.0.to_string())
                || list.shows(step.state.word())
                || [step.from, step.source, id.1].into_iter().any(|node| node > 0 && list.shows(&name(node)))
        };
        let mut moves: Vec<(MoveId, &Step)> =
            progress.steps.iter().filter(shown).map(|(id, step)| (*id, step)).collect();
        match list.sort {
            MoveOrder::State => moves.sort_by_key(|(_, step)| step.state),
            MoveOrder::Partition => {}
            MoveOrder::Node => moves.sort_by_key(|((_, to), step)| (step.source, *to)),
            MoveOrder::Progress => moves.sort_by(|a, b| b.1.share.total_cmp(&a.1.share)),
            MoveOrder::Rate => moves.sort_by(|a, b| b.1.rate.total_cmp(&a.1.rate)),
            MoveOrder::Eta => moves.sort_by_key(|(_, step)| std::cmp::Reverse(Progress::step_eta(step))),
        }
        if list.reverse {
            moves.reverse();
        }
        moves
    }

    /// The operations that a list shows, the newest first.
    #[must_use]
    pub fn listed(&self, list: &List<OperationOrder, u64>) -> Vec<&v1::Operation> {
        let shown = |operation: &&v1::Operation| {
            [operation.command.as_str(), &operation.id.to_string(), state_word(operation.state())]
                .into_iter()
                .any(|field| list.shows(field))
        };
        let mut operations: Vec<&v1::Operation> = self.all.iter().rev().filter(shown).collect();
        if list.reverse {
            operations.reverse();
        }
        operations
    }

    /// The state of a partition's moves for the map; `None`: it stays where it is.
    #[must_use]
    pub fn moving(&self) -> BTreeMap<u32, (MoveState, u64)> {
        let mut states: BTreeMap<u32, (MoveState, u64)> = BTreeMap::new();
        for ((partition, to), step) in self.progress.iter().flat_map(|progress| &progress.steps) {
            let state = states.entry(*partition).or_insert((step.state, *to));
            // A partition has moved when all of its replicas have; until then the busiest one speaks for it.
            if step.state < state.0 {
                *state = (step.state, *to);
            }
        }
        states
    }
}
