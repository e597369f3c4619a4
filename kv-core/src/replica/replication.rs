//! Sending one record to several nodes, again and again until each has confirmed it or is given up.

use crate::coordinator::OpId;
use crate::message::{CallId, Message, Refusal, Role};
use crate::node::keys::Task;
use crate::node::peers::Purpose;
use crate::node::timers::{Timer, TimerKey};
use crate::node::{Node, weight};
use crate::storage::{Space, StorageKey};
use crate::types::{Epoch, NodeId};
use crate::version::Record;

/// How often a record is sent to a node that is up and does not confirm, before it becomes a lag mark.
const ATTEMPTS_MAX: u32 = 8;

/// Numbers the replications of one incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ReplicationId(pub(crate) u64);

/// A record on its way to other nodes.
#[derive(Debug)]
pub(crate) struct Replication {
    /// The key, in the space in which this node holds the record.
    pub(crate) key: StorageKey,
    record: Record,
    targets: Vec<Target>,
    goal: Goal,
    attempt: u32,
    timer: Option<TimerKey>,
}

/// One node that is to hold the record.
#[derive(Debug)]
pub(crate) struct Target {
    node: NodeId,
    role: Role,
    state: Delivery,
    call: Option<CallId>,
    /// The epoch at which it was asked last.
    epoch: Epoch,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Delivery {
    Waiting,
    Confirmed,
    GivenUp,
}

/// What the replication is for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    /// A client's write; whoever does not confirm it is remembered by a lag mark.
    Write(OpId),
    /// A read repair: the next read tries again.
    Repair,
    /// A hint, or an owned record with a lag mark, of this digest. `own`: the epoch at which this node's own copy of a hint
    /// was made, if it was.
    HandOff { space: Space, digest: u64, own: Option<Epoch> },
}

impl Target {
    pub(crate) fn new(node: NodeId, role: Role) -> Self {
        Self { node, role, state: Delivery::Waiting, call: None, epoch: Epoch(0) }
    }
}

impl Node {
    pub(crate) fn start_replication(&mut self, key: StorageKey, record: Record, targets: Vec<Target>, goal: Goal) {
        let id = ReplicationId(self.next_id());
        self.replications.insert(id, Replication { key, record, targets, goal, attempt: 0, timer: None });
        self.send_waiting(id);
    }

    /// Sends the record to everybody who has not confirmed it.
    fn send_waiting(&mut self, id: ReplicationId) {
        self.send_to(id, |_| true);
        self.schedule(id);
    }

    /// Sends the record to some of those who have not confirmed it.
    fn send_to(&mut self, id: ReplicationId, whom: impl Fn(&Target) -> bool) {
        let Some(replication) = self.replications.get(&id) else { return };
        let key = replication.key.clone();
        let record = replication.record.clone();
        let epoch = self.entry(key.partition()).map(|entry| entry.changed).unwrap_or_default();
        let waiting: Vec<(usize, NodeId, Role, Option<CallId>)> = replication
            .targets
            .iter()
            .enumerate()
            .filter(|(_, target)| target.state == Delivery::Waiting && whom(target))
            .map(|(index, target)| (index, target.node, target.role, target.call))
            .collect();
        let bytes = key.key().len() + weight::of_record(&record);
        for (index, node, role, call) in waiting {
            let has_room = self.peer_has_last_room(node, bytes);
            if call.is_some() && !has_room {
                // It waits in the queue for the peer already.
                continue;
            }
            // A peer that takes nothing more gets the record later, as one that is down does.
            let up = self.is_up(node) && has_room;
            let call = if up { Some(call.unwrap_or_else(|| self.next_call())) } else { None };
            if let Some(target) = self.target(id, index) {
                target.call = call;
                target.epoch = epoch;
                if !up {
                    target.state = Delivery::GivenUp;
                }
            }
            if let Some(call) = call {
                let message = Message::Replicate {
                    call,
                    epoch,
                    role,
                    keyspace: key.keyspace(),
                    key: key.key_bytes(),
                    record: record.clone(),
                };
                self.ask(node, call, Purpose::Replicate(id), message);
            }
        }
    }

    fn target(&mut self, id: ReplicationId, index: usize) -> Option<&mut Target> {
        self.replications.get_mut(&id)?.targets.get_mut(index)
    }

    /// Sets the time of the next attempt, or ends the replication if nobody is left to wait for.
    fn schedule(&mut self, id: ReplicationId) {
        let Some(replication) = self.replications.get(&id) else { return };
        if replication.targets.iter().all(|target| target.state != Delivery::Waiting) {
            self.end_replication(id);
            return;
        }
        let wait = self.config.retry_after * 2u32.pow(replication.attempt.min(4));
        let timer = self.set_timer(self.now.mono.plus(wait), Timer::Retry(id));
        let old = self.replications.get_mut(&id).and_then(|replication| replication.timer.replace(timer));
        if let Some(old) = old {
            self.timers.cancel(old);
        }
    }

    /// Nobody has confirmed for a while.
    pub(crate) fn retry(&mut self, id: ReplicationId) {
        let Some(replication) = self.replications.get_mut(&id) else { return };
        replication.timer = None;
        replication.attempt += 1;
        if replication.attempt >= ATTEMPTS_MAX {
            for target in &mut replication.targets {
                if target.state == Delivery::Waiting {
                    target.state = Delivery::GivenUp;
                }
            }
        }
        // To a node that has stalled the record is on its way; one more behind it would only fill the queue.
        let stalled = self.stalled_targets(id);
        self.send_to(id, |target| target.call.is_none() || !stalled.contains(&target.node));
        self.schedule(id);
    }

    fn stalled_targets(&self, id: ReplicationId) -> Vec<NodeId> {
        let targets = self.replications.get(&id).into_iter().flat_map(|replication| &replication.targets);
        targets.map(|target| target.node).filter(|&node| self.is_stalled(node)).collect()
    }

    /// The layout has changed: the record goes to the owners of now.
    pub(crate) fn retarget(&mut self, id: ReplicationId) {
        let Some(replication) = self.replications.get(&id) else { return };
        let me = self.config.node;
        let Some(entry) = self.entry(replication.key.partition()).cloned() else { return };
        let Some(replication) = self.replications.get_mut(&id) else { return };
        let mut outdated = Vec::new();
        for target in &mut replication.targets {
            // An answer to a question of the old epoch must not count at the new one.
            outdated.extend(target.call.take().map(|call| (target.node, call)));
            // What was confirmed under an earlier ownership may be gone again.
            if entry.owner(target.node).is_some_and(|owner| owner.since > target.epoch) {
                target.state = Delivery::Waiting;
            }
        }
        replication.targets.retain(|target| match target.role {
            Role::Owner => entry.owns(target.node),
            Role::StandIn => target.state == Delivery::Confirmed || !entry.owns(target.node),
        });
        for owner in entry.nodes().filter(|&owner| owner != me) {
            if !replication.targets.iter().any(|target| target.node == owner && target.role == Role::Owner) {
                replication.targets.push(Target::new(owner, Role::Owner));
            }
        }
        for (node, call) in outdated {
            self.answered(node, call);
        }
        self.send_waiting(id);
    }

    /// A node that refused records may take them now.
    pub(crate) fn replicate_again(&mut self, node: NodeId) {
        let refused =
            |target: &Target| target.node == node && target.state == Delivery::Waiting && target.call.is_none();
        let waiting = self.replications.iter().filter(|(_, found)| found.targets.iter().any(refused));
        for id in waiting.map(|(&id, _)| id).collect::<Vec<_>>() {
            self.send_to(id, refused);
            self.end_if_done(id);
        }
    }

    /// A node answered.
    pub(crate) fn replicated(&mut self, id: ReplicationId, from: NodeId, call: CallId, result: Result<(), Refusal>) {
        let newest = self.caught_up(from);
        let Some(replication) = self.replications.get_mut(&id) else { return };
        let goal = replication.goal;
        let Some(target) = replication.targets.iter_mut().find(|target| target.call == Some(call)) else { return };
        target.call = None;
        match result {
            Ok(()) => {
                target.state = Delivery::Confirmed;
                let (role, epoch) = (target.role, target.epoch);
                if let Goal::Write(op) = goal {
                    self.write_acked(op, from, role, epoch);
                }
            }
            // It has learned the layout meanwhile.
            Err(Refusal::Behind { epoch }) if epoch < newest => {
                self.send_to(id, |target| target.node == from && target.call.is_none());
            }
            // It says when it knows the layout; this node's own next one sends the record again; the next attempt finds
            // the replica less busy.
            Err(Refusal::Stale { .. } | Refusal::Behind { .. } | Refusal::Busy(_)) => return,
            Err(Refusal::NotSynced | Refusal::NotOwner | Refusal::Late | Refusal::Failed(_)) => {
                target.state = Delivery::GivenUp;
                self.stand_in_instead(id);
            }
        }
        self.end_if_done(id);
    }

    /// A node's session ended.
    pub(crate) fn replication_failed(&mut self, id: ReplicationId, node: NodeId, call: CallId) {
        let Some(replication) = self.replications.get_mut(&id) else { return };
        let lost = |target: &&mut Target| target.node == node && target.call == Some(call);
        let Some(target) = replication.targets.iter_mut().find(lost) else { return };
        target.call = None;
        target.state = Delivery::GivenUp;
        self.stand_in_instead(id);
        self.end_if_done(id);
    }

    /// A write still lacks copies and may use stand-ins: ask the next one.
    fn stand_in_instead(&mut self, id: ReplicationId) {
        let Some(replication) = self.replications.get(&id) else { return };
        let Goal::Write(op) = replication.goal else { return };
        if !self.write_wants_stand_in(op) {
            return;
        }
        let me = self.config.node;
        let asked: Vec<NodeId> = replication.targets.iter().map(|target| target.node).collect();
        let partition = replication.key.partition();
        let next =
            self.stand_ins_up(partition, usize::MAX).into_iter().find(|&node| node != me && !asked.contains(&node));
        if let (Some(node), Some(replication)) = (next, self.replications.get_mut(&id)) {
            replication.targets.push(Target::new(node, Role::StandIn));
            self.send_to(id, |target| target.node == node);
        }
    }

    fn end_if_done(&mut self, id: ReplicationId) {
        let done =
            |replication: &Replication| replication.targets.iter().all(|target| target.state != Delivery::Waiting);
        if self.replications.get(&id).is_some_and(done) {
            self.end_replication(id);
        }
    }

    /// Nobody has to hold the record any more.
    pub(crate) fn give_up_replication(&mut self, id: ReplicationId) {
        let Some(replication) = self.replications.get_mut(&id) else { return };
        for target in replication.targets.iter_mut().filter(|target| target.state == Delivery::Waiting) {
            target.state = Delivery::GivenUp;
        }
        self.end_replication(id);
    }

    fn end_replication(&mut self, id: ReplicationId) {
        let Some(Replication { key, targets, goal, timer, .. }) = self.replications.remove(&id) else { return };
        if let Some(timer) = timer {
            self.timers.cancel(timer);
        }
        for target in &targets {
            if let Some(call) = target.call {
                self.give_up_call(target.node, call);
            }
        }
        let count = |role: Role, confirmed: bool| {
            targets
                .iter()
                .filter(|target| target.role == role && (target.state == Delivery::Confirmed) == confirmed)
                .count()
        };
        let unconfirmed = count(Role::Owner, false);
        match goal {
            Goal::Write(op) => {
                // Each stand-in that holds the record will bring it to every owner; without one this node must.
                if key.space() == Space::Owned && unconfirmed > count(Role::StandIn, true) {
                    self.with_key(key.in_space(Space::Lag), Task::Mark);
                }
                self.write_short(op);
            }
            Goal::Repair => {}
            Goal::HandOff { space, digest, own } => {
                let confirmed = unconfirmed == 0 && self.has_own_copy(&key, space, own);
                self.handed_off(&key, space, digest, confirmed);
            }
        }
    }
}
