//! Sending one record to several nodes, again and again until each has confirmed it or is given up.

use std::collections::{BTreeMap, VecDeque};

use crate::cell::Cell;
use crate::config::AvailableKeyspace;
use crate::kernel::TimerKey;
use crate::message::{CallId, Message, Refusal, Role};
use crate::rule::Rule;
use crate::storage::{Space, StorageKey};
use crate::types::{Epoch, NodeId, PartitionId};
use crate::wiring::{Ctx, OpId, ReplicationId, Task, Timer, Waiter};

/// How often a record is sent to a node that is up and does not confirm, before it becomes a missed-write marker.
const ATTEMPTS_MAX: u32 = 8;

/// The records on their way to other nodes.
#[derive(Debug, Default)]
pub(crate) struct Replications {
    open: BTreeMap<ReplicationId, Replication>,
    outcomes: VecDeque<Outcome>,
}

/// What has become of a replication.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// A node, asked at this epoch, durably holds a client's write.
    Acked { op: OpId, node: NodeId, role: Role, epoch: Epoch },
    /// A node does not take a client's write: another one may hold it in its place, if the write wants that.
    Refused { id: ReplicationId, op: OpId, node: NodeId },
    /// A node does not take a write yet; it is asked again.
    Declined { op: OpId, node: NodeId },
    /// A client's write has got as far as it gets.
    WriteEnded { op: OpId },
    /// A hint, or an owned record with a missed-write marker, of this digest was confirmed by all other owners, or was not.
    HandedOff { key: StorageKey, space: Space, digest: u64, own: Option<Epoch>, confirmed: bool },
}

/// A record on its way to other nodes.
#[derive(Debug)]
struct Replication {
    /// The key, in the space in which this node holds the record.
    key: StorageKey,
    cell: Cell,
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
    /// A client's write to an available keyspace; whoever does not confirm it is remembered by a missed-write marker.
    Write { op: OpId, keyspace: AvailableKeyspace },
    /// A read repair: the next read tries again.
    Repair,
    /// A hint, or an owned record with a missed-write marker, of this digest. `own`: the epoch at which this node's own copy of a hint
    /// was made, if it was.
    HandOff { space: Space, digest: u64, own: Option<Epoch> },
}

impl Target {
    /// An owner of the partition.
    pub(crate) fn owner(node: NodeId) -> Self {
        Self::new(node, Role::Owner)
    }

    /// A node that holds a hint, as only available keyspaces have them.
    pub(crate) fn fallback(node: NodeId, _: AvailableKeyspace) -> Self {
        Self::new(node, Role::Fallback)
    }

    fn new(node: NodeId, role: Role) -> Self {
        Self { node, role, state: Delivery::Waiting, call: None, epoch: Epoch(0) }
    }
}

impl Replications {
    /// How many are under way.
    pub(crate) fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether one is under way.
    pub(crate) fn is_open(&self, id: ReplicationId) -> bool {
        self.open.contains_key(&id)
    }

    /// The next thing that has become of one.
    pub(crate) fn next_outcome(&mut self) -> Option<Outcome> {
        self.outcomes.pop_front()
    }

    /// Sends a record to several nodes.
    pub(crate) fn start(&mut self, ctx: &mut Ctx<'_>, key: StorageKey, cell: Cell, targets: Vec<Target>, goal: Goal) {
        let id = ReplicationId(ctx.kernel.next_id());
        self.open.insert(id, Replication { key, cell, targets, goal, attempt: 0, timer: None });
        self.send_waiting(ctx, id);
    }

    /// Sends the record to everybody who has not confirmed it.
    fn send_waiting(&mut self, ctx: &mut Ctx<'_>, id: ReplicationId) {
        self.send_to(ctx, id, |_| true);
        self.schedule(ctx, id);
    }

    /// Sends the record to some of those who have not confirmed it.
    fn send_to(&mut self, ctx: &mut Ctx<'_>, id: ReplicationId, whom: impl Fn(&Target) -> bool) {
        let Some(replication) = self.open.get(&id) else { return };
        let key = replication.key.clone();
        let cell = replication.cell.clone();
        let epoch = ctx.view.entry_epoch(key.partition());
        let waiting: Vec<(usize, NodeId, Role, Option<CallId>)> = replication
            .targets
            .iter()
            .enumerate()
            .filter(|(_, target)| target.state == Delivery::Waiting && whom(target))
            .map(|(index, target)| (index, target.node, target.role, target.call))
            .collect();
        let bytes = key.key().len() + cell.bytes_in_flight();
        for (index, node, role, call) in waiting {
            let has_room = ctx.kernel.peer_has_last_room(node, bytes);
            if call.is_some() && !has_room {
                // It waits in the queue for the peer already.
                continue;
            }
            // A peer that takes nothing more gets the record later, as one that is down does.
            let up = ctx.is_up(node) && has_room;
            let call = if up { Some(call.unwrap_or_else(|| ctx.kernel.next_call())) } else { None };
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
                    cell: cell.clone(),
                };
                ctx.kernel.ask(node, call, Waiter::Replicate(id), message);
            }
        }
    }

    fn target(&mut self, id: ReplicationId, index: usize) -> Option<&mut Target> {
        self.open.get_mut(&id)?.targets.get_mut(index)
    }

    /// Sets the time of the next attempt, or ends the replication if nobody is left to wait for.
    fn schedule(&mut self, ctx: &mut Ctx<'_>, id: ReplicationId) {
        let Some(replication) = self.open.get(&id) else { return };
        if replication.targets.iter().all(|target| target.state != Delivery::Waiting) {
            self.end(ctx, id);
            return;
        }
        let wait = ctx.view.config.retry_after * 2u32.pow(replication.attempt.min(4));
        let at = ctx.kernel.now.mono.plus(wait);
        let timer = ctx.kernel.set_timer(at, Timer::Retry(id));
        let old = self.open.get_mut(&id).and_then(|replication| replication.timer.replace(timer));
        if let Some(old) = old {
            ctx.kernel.cancel_timer(old);
        }
    }

    /// Nobody has confirmed for a while.
    pub(crate) fn retry(&mut self, ctx: &mut Ctx<'_>, id: ReplicationId) {
        let Some(replication) = self.open.get_mut(&id) else { return };
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
        let stalled = self.stalled_targets(ctx, id);
        self.send_to(ctx, id, |target| target.call.is_none() || !stalled.contains(&target.node));
        self.schedule(ctx, id);
    }

    fn stalled_targets(&self, ctx: &Ctx<'_>, id: ReplicationId) -> Vec<NodeId> {
        let targets = self.open.get(&id).into_iter().flat_map(|replication| &replication.targets);
        targets.map(|target| target.node).filter(|&node| ctx.is_stalled(node)).collect()
    }

    /// The entries of some partitions have changed.
    pub(crate) fn reroute(&mut self, ctx: &mut Ctx<'_>, changed: &dyn Fn(PartitionId) -> bool) {
        for id in self.ids(|found| changed(found.key.partition())) {
            self.retarget(ctx, id);
        }
    }

    /// Nobody has to hold records of dropped keyspaces any more.
    pub(crate) fn give_up_dropped(&mut self, ctx: &mut Ctx<'_>) {
        for id in self.ids(|found| ctx.view.is_dropped(found.key.keyspace())) {
            self.give_up(ctx, id);
        }
    }

    fn ids(&self, which: impl Fn(&Replication) -> bool) -> Vec<ReplicationId> {
        self.open.iter().filter(|(_, found)| which(found)).map(|(&id, _)| id).collect()
    }

    /// The layout has changed: the record goes to the owners of now.
    fn retarget(&mut self, ctx: &mut Ctx<'_>, id: ReplicationId) {
        let Some(replication) = self.open.get(&id) else { return };
        let me = ctx.me();
        let Some(entry) = ctx.view.entry(replication.key.partition()).cloned() else { return };
        let Some(replication) = self.open.get_mut(&id) else { return };
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
            Role::Fallback => target.state == Delivery::Confirmed || !entry.owns(target.node),
        });
        for owner in entry.nodes().filter(|&owner| owner != me) {
            if !replication.targets.iter().any(|target| target.node == owner && target.role == Role::Owner) {
                replication.targets.push(Target::owner(owner));
            }
        }
        for (node, call) in outdated {
            ctx.kernel.answered(node, call);
        }
        self.send_waiting(ctx, id);
    }

    /// A node that refused records may take them now.
    pub(crate) fn again(&mut self, ctx: &mut Ctx<'_>, node: NodeId) {
        let refused =
            |target: &Target| target.node == node && target.state == Delivery::Waiting && target.call.is_none();
        for id in self.ids(|found| found.targets.iter().any(refused)) {
            self.send_to(ctx, id, refused);
            self.end_if_done(ctx, id);
        }
    }

    /// A node answered.
    pub(crate) fn answered(
        &mut self,
        ctx: &mut Ctx<'_>,
        id: ReplicationId,
        from: NodeId,
        call: CallId,
        result: Result<(), Refusal>,
    ) {
        let newest = ctx.kernel.peers.caught_up(from);
        let Some(replication) = self.open.get_mut(&id) else { return };
        let goal = replication.goal;
        let Some(target) = replication.targets.iter_mut().find(|target| target.call == Some(call)) else { return };
        target.call = None;
        match result {
            Ok(()) => {
                target.state = Delivery::Confirmed;
                let (role, epoch) = (target.role, target.epoch);
                if let Goal::Write { op, .. } = goal {
                    self.outcomes.push_back(Outcome::Acked { op, node: from, role, epoch });
                }
            }
            // It has learned the layout meanwhile.
            Err(Refusal::Behind { epoch }) if epoch < newest => {
                self.send_to(ctx, id, |target| target.node == from && target.call.is_none());
            }
            // It says when it knows the layout; this node's own next one sends the record again; the next attempt finds
            // the replica less busy.
            Err(Refusal::Stale { .. } | Refusal::Behind { .. } | Refusal::Busy(_)) => {
                if let Goal::Write { op, .. } = goal {
                    self.outcomes.push_back(Outcome::Declined { op, node: from });
                }
                return;
            }
            Err(Refusal::NotSynced | Refusal::NotOwner | Refusal::Late | Refusal::ClockOff | Refusal::Failed(_)) => {
                target.state = Delivery::GivenUp;
                return self.refused(ctx, id, from);
            }
        }
        self.end_if_done(ctx, id);
    }

    /// A node's session ended.
    pub(crate) fn failed(&mut self, ctx: &mut Ctx<'_>, id: ReplicationId, node: NodeId, call: CallId) {
        let Some(replication) = self.open.get_mut(&id) else { return };
        let lost = |target: &&mut Target| target.node == node && target.call == Some(call);
        let Some(target) = replication.targets.iter_mut().find(lost) else { return };
        target.call = None;
        target.state = Delivery::GivenUp;
        self.refused(ctx, id, node);
    }

    /// A node's session ended, perhaps with its store: what it confirmed as a fallback is not relied upon. The owners that
    /// lack the record are remembered here then. Owners that come back with another store enter their partitions anew (E3).
    pub(crate) fn session_ended(&mut self, node: NodeId) {
        let targets = self.open.values_mut().flat_map(|replication| &mut replication.targets);
        let held = |target: &&mut Target| target.node == node && target.role == Role::Fallback;
        for target in targets.filter(held).filter(|target| target.state == Delivery::Confirmed) {
            target.state = Delivery::GivenUp;
        }
    }

    /// A node does not take the record.
    fn refused(&mut self, ctx: &mut Ctx<'_>, id: ReplicationId, node: NodeId) {
        match self.open.get(&id).map(|replication| replication.goal) {
            Some(Goal::Write { op, .. }) => self.outcomes.push_back(Outcome::Refused { id, op, node }),
            _ => self.end_if_done(ctx, id),
        }
    }

    /// A write was refused by a node. If it still lacks copies and fallbacks count, the next one is asked.
    pub(crate) fn go_on(&mut self, ctx: &mut Ctx<'_>, id: ReplicationId, wants_fallback: bool) {
        if let Some(replication) = self.open.get_mut(&id).filter(|_| wants_fallback)
            && let Goal::Write { keyspace, .. } = replication.goal
        {
            let (me, partition) = (ctx.me(), replication.key.partition());
            let is_asked = |node: &NodeId| replication.targets.iter().any(|target| target.node == *node);
            let fallbacks = ctx.fallbacks_up(partition, usize::MAX);
            if let Some(node) = fallbacks.into_iter().find(|node| *node != me && !is_asked(node)) {
                replication.targets.push(Target::fallback(node, keyspace));
                self.send_to(ctx, id, |target| target.node == node);
            }
        }
        self.end_if_done(ctx, id);
    }

    fn end_if_done(&mut self, ctx: &mut Ctx<'_>, id: ReplicationId) {
        let done =
            |replication: &Replication| replication.targets.iter().all(|target| target.state != Delivery::Waiting);
        if self.open.get(&id).is_some_and(done) {
            self.end(ctx, id);
        }
    }

    /// Nobody has to hold the record any more.
    fn give_up(&mut self, ctx: &mut Ctx<'_>, id: ReplicationId) {
        let Some(replication) = self.open.get_mut(&id) else { return };
        for target in replication.targets.iter_mut().filter(|target| target.state == Delivery::Waiting) {
            target.state = Delivery::GivenUp;
        }
        self.end(ctx, id);
    }

    fn end(&mut self, ctx: &mut Ctx<'_>, id: ReplicationId) {
        let Some(Replication { key, targets, goal, timer, .. }) = self.open.remove(&id) else { return };
        if let Some(timer) = timer {
            ctx.kernel.cancel_timer(timer);
        }
        for target in &targets {
            if let Some(call) = target.call {
                ctx.kernel.give_up_call(target.node, call);
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
            Goal::Write { op, keyspace } => {
                // Each fallback that holds the record will bring it to every owner; without one this node must.
                let is_missed = key.space() == Space::Owned && unconfirmed > count(Role::Fallback, true);
                if is_missed && ctx.view.keep(Rule::MarkMissedWrites) {
                    ctx.kernel.with_key(key.marker(keyspace), Task::Mark);
                }
                self.outcomes.push_back(Outcome::WriteEnded { op });
            }
            Goal::Repair => {}
            Goal::HandOff { space, digest, own } => {
                let confirmed = unconfirmed == 0;
                self.outcomes.push_back(Outcome::HandedOff { key, space, digest, own, confirmed });
            }
        }
    }
}
