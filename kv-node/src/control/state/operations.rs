//! How operations change the agreed state. Every condition is checked when the command is applied (rule M3): what was
//! true when it was proposed may not be true any more.

use std::num::NonZeroU64;
use std::sync::Arc;

use kv_core::ring::Layout;
use kv_core::topology::operation::{self, Standing, Target};
use kv_core::topology::{Plan, Receipt, RefusalKind as PlanRefusal};
use kv_core::types::{Epoch, NodeId, PartitionId, StoreId};

use super::ClusterState;
use super::command::{Done, Refusal, RefusalKind};
use super::members::{invalid, precondition};
use super::operation::{
    Asked, BY_BYTES_MAX, DETAILS_MAX, Estimate, OPERATIONS_MAX, Operation, OperationId, OperationState, RECEIPTS_MAX,
    RETRY_MAX, THROTTLE_BYTES, Throttle, migrating_max,
};

impl ClusterState {
    /// The operation that is under way.
    #[must_use]
    pub fn active_operation(&self) -> Option<&Operation> {
        self.operations.back().filter(|operation| operation.state.is_active())
    }

    /// The operation of this number, as far as it is kept.
    #[must_use]
    pub fn operation(&self, id: OperationId) -> Option<&Operation> {
        self.operations.iter().find(|operation| operation.id == id)
    }

    /// Begins to carry a plan out.
    pub(super) fn apply_plan(&mut self, plan: Plan, estimate: Estimate, asked: Asked) -> Result<Done, Refusal> {
        self.check_formed()?;
        check_by(&asked)?;
        if let Some(active) = self.active_operation() {
            return Err(already_running(active));
        }
        let layout = self.layout.clone().ok_or_else(|| precondition("the cluster has no layout yet"))?;
        let target = plan.operation(&layout).map_err(|refusal| {
            let kind = match refusal.kind {
                PlanRefusal::Stale => RefusalKind::Stale,
                PlanRefusal::NotFound => RefusalKind::NotFound,
                PlanRefusal::Invalid => RefusalKind::Invalid,
                PlanRefusal::Precondition
                | PlanRefusal::Running
                | PlanRefusal::Nodes
                | PlanRefusal::Zones
                | PlanRefusal::Data
                | PlanRefusal::Disk => RefusalKind::Precondition,
            };
            Refusal::new(kind, refusal.to_string())
        })?;
        let next = operation::begin(&layout, &target, migrating_max(layout.partition_count()))
            .map_err(|error| Refusal::new(RefusalKind::Stale, format!("{error}; make the plan again")))?;
        let id = OperationId(self.next_operation.saturating_add(1));
        self.next_operation = id.0;
        let mut operation = Operation::new(id, plan, target, &layout, asked);
        operation.estimate = estimate;
        for node in &operation.entering {
            self.leaving.remove(node);
        }
        if self.operations.len() >= OPERATIONS_MAX {
            self.operations.pop_front();
        }
        let at = operation.asked.clone();
        self.operations.push_back(operation);
        self.follow(next);
        self.review_active(at);
        self.changed();
        Ok(Done::Begun { operation: id })
    }

    /// Takes receipts, cuts over what has all of its own, and opens the next partitions.
    pub(super) fn advance(
        &mut self,
        id: OperationId,
        epoch: Epoch,
        receipts: Vec<Receipt>,
        at: Asked,
    ) -> Result<Done, Refusal> {
        if receipts.len() > RECEIPTS_MAX {
            return Err(invalid(format!("{} receipts in one command; {RECEIPTS_MAX} are allowed", receipts.len())));
        }
        let layout = self.active(id)?.1;
        if layout.epoch != epoch {
            return Err(Refusal::new(
                RefusalKind::Stale,
                format!("the layout is at {}, not at {epoch} any more; look again", layout.epoch),
            ));
        }
        let (operation, _) = self.active(id)?;
        if operation.state == OperationState::Paused {
            return Err(precondition(format!("operation {id} is paused; resume it first")));
        }
        let Some(target) = operation.target.clone() else { return Err(ended(operation)) };
        let fresh: Vec<Receipt> = receipts.into_iter().filter(|receipt| counts(&layout, operation, receipt)).collect();
        let mut known = operation.receipts.clone();
        known.extend(fresh.iter().map(|receipt| ((receipt.partition, receipt.node), receipt.clone())));
        let next = operation::advance(&layout, &target, &known, migrating_max(layout.partition_count()));
        if fresh.is_empty() && next.is_none() {
            return Err(Refusal::new(RefusalKind::Stale, "no receipt is new and nothing is ready to be cut over"));
        }
        self.active_mut(id)?.keep(fresh);
        let cut_over = next.is_some();
        if let Some(next) = next {
            self.follow(next);
        }
        self.review_active(at);
        self.changed();
        Ok(Done::Advanced { operation: id, cut_over })
    }

    pub(super) fn pause(&mut self, id: OperationId, asked: &Asked) -> Result<Done, Refusal> {
        self.set_state(id, OperationState::Paused, asked)
    }

    pub(super) fn resume(&mut self, id: OperationId, asked: &Asked) -> Result<Done, Refusal> {
        self.set_state(id, OperationState::Running, asked)
    }

    fn set_state(&mut self, id: OperationId, state: OperationState, asked: &Asked) -> Result<Done, Refusal> {
        check_by(asked)?;
        let operation = self.active_mut(id)?;
        if operation.state != state {
            operation.state = state;
            self.changed();
        }
        Ok(Done::Changed { operation: id })
    }

    /// Tells the receivers of these partitions, or of all that lack a receipt, to begin the transfers again that wait.
    pub(super) fn retry(
        &mut self,
        id: OperationId,
        partitions: &[PartitionId],
        asked: &Asked,
    ) -> Result<Done, Refusal> {
        check_by(asked)?;
        if partitions.len() > RETRY_MAX {
            return Err(invalid(format!(
                "{} partitions in one retry; {RETRY_MAX} are allowed, and naming none retries all",
                partitions.len()
            )));
        }
        let (operation, layout) = self.active(id)?;
        if operation.state == OperationState::Paused {
            return Err(precondition(format!("operation {id} is paused; resume it first: op resume {id}")));
        }
        for &partition in partitions {
            check_migrates(operation, &layout, partition)?;
        }
        let lacks_receipt = |partition: &PartitionId| {
            let joint = layout.entry(*partition).and_then(|entry| entry.joint.as_ref());
            let has = |node: NodeId, joint: Epoch| {
                operation.receipts.get(&(*partition, node)).is_some_and(|receipt| receipt.joint == joint)
            };
            joint.is_some_and(|joint| joint.receivers.iter().any(|to| !has(to.node, joint.epoch)))
        };
        let told: Vec<PartitionId> = if partitions.is_empty() {
            layout.partition_ids().filter(lacks_receipt).collect()
        } else {
            partitions.to_vec()
        };
        let operation = self.active_mut(id)?;
        let retry = operation.retries.saturating_add(1);
        operation.retries = retry;
        // What has been cut over since is of no more use to anybody.
        operation.retried.retain(|partition, _| layout.entry(*partition).is_some_and(|entry| entry.joint.is_some()));
        operation.retried.extend(told.into_iter().map(|partition| (partition, retry)));
        self.changed();
        Ok(Done::Retried { operation: id, retry })
    }

    /// Limits how fast nodes copy, for this operation and all later ones.
    pub(super) fn throttle(&mut self, limit: Option<NonZeroU64>, asked: Asked) -> Result<Done, Refusal> {
        self.check_formed()?;
        check_by(&asked)?;
        if let Some(limit) = limit
            && !THROTTLE_BYTES.contains(&limit.get())
        {
            return Err(invalid(format!(
                "a throttle of {limit} bytes per second is not possible, {} to {} are allowed; pause the operation to stop \
                 it, or say off to take the limit away",
                THROTTLE_BYTES.start(),
                THROTTLE_BYTES.end()
            )));
        }
        self.throttle = Throttle { bytes_per_second_max: limit, asked: Some(asked) };
        self.changed();
        Ok(Done::Throttled)
    }

    /// Ends an operation: what is not cut over goes back to its old owners.
    pub(super) fn cancel(&mut self, id: OperationId, asked: Asked) -> Result<Done, Refusal> {
        check_by(&asked)?;
        let (operation, layout) = self.active(id)?;
        let Some(target) = operation.target.clone() else { return Err(ended(operation)) };
        let moved = operation.moved;
        let left = operation.moves_planned.saturating_sub(moved);
        let joint = layout.partitions.iter().filter(|entry| entry.joint.is_some()).count();
        let mut outcome = format!("{joint} migrating partitions went back to their owners, {left} moves were not made");
        let back = operation::cancel(&layout, &target);
        if moved > 0 {
            outcome.push_str(&format!("; {moved} moves were cut over before and stay"));
        }
        if !back.settled {
            outcome.push_str("; the copies are not spread evenly: rebalance evens them out");
        }
        let dead = self.dead_by(&target, &layout);
        if !dead.is_empty() {
            outcome.push_str(&format!("; removed for good: {}", dead.join(", ")));
        }
        self.follow(back);
        let operation = self.active_mut(id)?;
        operation.outcome = outcome;
        operation.end(OperationState::Cancelled, asked);
        self.forget_details();
        self.changed();
        Ok(Done::Cancelled { operation: id })
    }

    /// A node that owns nothing and holds nothing any more leaves the cluster. `epoch` is that of the layout on which it
    /// acted when it said so.
    pub(super) fn dismiss(&mut self, node: NodeId, store: StoreId, epoch: Epoch) -> Result<Done, Refusal> {
        let Some(&since) = self.leaving.get(&node) else {
            return Err(precondition(format!("{node} is not leaving; remove it first")));
        };
        let owns = |layout: &Arc<Layout>| layout.partitions.iter().any(|entry| entry.owns(node));
        if self.layout.as_ref().is_some_and(owns) || epoch < since {
            return Err(Refusal::new(
                RefusalKind::Stale,
                format!("{node} owns partitions, or did at {epoch}; it stays until it holds none"),
            ));
        }
        match self.members.get(&node) {
            Some(member) if member.incarnation.store == store => {}
            _ => return Err(Refusal::new(RefusalKind::Stale, format!("{node} has another store by now; look again"))),
        }
        self.members.remove(&node);
        self.leaving.remove(&node);
        self.retired.insert(store);
        self.members_changed();
        Ok(Done::Dismissed { node })
    }

    /// The operation under way, which must be `id`, and the layout.
    fn active(&self, id: OperationId) -> Result<(&Operation, Arc<Layout>), Refusal> {
        let layout = self.layout.clone().ok_or_else(|| precondition("the cluster has no layout yet"))?;
        match self.operation(id) {
            Some(operation) if operation.state.is_active() => Ok((operation, layout)),
            Some(operation) => Err(ended(operation)),
            None => Err(Refusal::new(
                RefusalKind::NotFound,
                format!("there is no operation {id}; op ls lists those that are remembered"),
            )),
        }
    }

    fn active_mut(&mut self, id: OperationId) -> Result<&mut Operation, Refusal> {
        self.active(id)?;
        self.operations
            .back_mut()
            .filter(|operation| operation.id == id)
            .ok_or_else(|| precondition(format!("operation {id} is not the last one")))
    }

    /// Takes over a layout that an operation has led to, and what it says of the members.
    fn follow(&mut self, layout: Layout) {
        let gone: Vec<NodeId> =
            self.members.keys().filter(|node| !layout.members.contains_key(node)).copied().collect();
        for node in gone {
            if let Some(member) = self.members.remove(&node) {
                self.retired.insert(member.incarnation.store);
            }
            self.leaving.remove(&node);
            self.awaited.remove(&node);
        }
        for (node, member) in &mut self.members {
            let Some(agreed) = layout.members.get(node) else { continue };
            let Standing { zone, weight, spare } = Standing::of(agreed);
            (member.zone, member.weight, member.spare) = (zone, weight, spare);
        }
        self.layout = Some(Arc::new(layout));
    }

    /// Brings the numbers of the operation under way up to date, and ends it when its last partition was cut over.
    fn review_active(&mut self, at: Asked) {
        let Some(layout) = self.layout.clone() else { return };
        let Some(operation) = self.operations.back_mut().filter(|operation| operation.state.is_active()) else {
            return;
        };
        if operation.count_moved(&layout) {
            operation.first_cut_over.get_or_insert(at.at);
            operation.last_cut_over = Some(at.at);
        }
        let reached = |target: &Target| operation::remaining(&layout, target) == 0;
        if operation.target.as_ref().is_none_or(reached) {
            for node in &operation.leaving {
                self.leaving.insert(*node, layout.epoch);
            }
            operation.end(OperationState::Done, Asked { by: String::new(), at: at.at });
            self.forget_details();
        }
    }

    /// The names of members that the operation has removed as dead, or as spares.
    fn dead_by(&self, target: &Target, layout: &Layout) -> Vec<String> {
        let Some(operation) = self.active_operation() else { return Vec::new() };
        let named = operation.changes.iter().filter_map(|change| match change {
            kv_core::topology::Change::RemoveDead { node } | kv_core::topology::Change::Remove { node } => Some(*node),
            _ => None,
        });
        let gone = named.filter(|node| !target.members.contains_key(node) && !layout.members.contains_key(node));
        gone.map(|node| node.to_string()).collect()
    }

    /// Keeps the memory of ended operations bounded.
    fn forget_details(&mut self) {
        let mut kept = 0_usize;
        for operation in self.operations.iter_mut().rev() {
            kept = kept.saturating_add(operation.details());
            if kept > DETAILS_MAX && !operation.state.is_active() {
                operation.forget_details();
            }
        }
    }
}

/// Whether a receipt is new and is for a migrating partition, by a receiver with the store that it has now.
fn counts(layout: &Layout, operation: &Operation, receipt: &Receipt) -> bool {
    let entry = layout.entry(receipt.partition);
    let Some(joint) = entry.and_then(|entry| entry.joint.as_ref()) else { return false };
    let store = layout.members.get(&receipt.node).map(|member| member.store);
    let agreed = operation.receipts.get(&(receipt.partition, receipt.node));
    receipt.joint == joint.epoch
        && Some(receipt.store) == store
        && joint.receivers.iter().any(|receiver| receiver.node == receipt.node)
        && agreed != Some(receipt)
}

/// Whether the transfers of a partition are under way, and if not, why.
fn check_migrates(operation: &Operation, layout: &Layout, partition: PartitionId) -> Result<(), Refusal> {
    let id = operation.id;
    let Some(entry) = layout.entry(partition) else {
        let last = layout.partition_count().saturating_sub(1);
        let message = format!("there is no partition {}; the cluster has 0 to {last}", partition.0);
        return Err(Refusal::new(RefusalKind::NotFound, message));
    };
    if entry.joint.is_some() {
        return Ok(());
    }
    let mut moves = operation.moves.iter().filter(|step| step.partition == partition).peekable();
    let partition = partition.0;
    Err(precondition(if moves.peek().is_none() {
        format!("partition {partition} does not move in operation {id}; op show {id} lists what moves")
    } else if moves.all(|step| entry.owns(step.to)) {
        format!("partition {partition} has been cut over already; nothing of it is left to retry")
    } else {
        format!("partition {partition} has not begun to move; its turn in operation {id} comes by itself")
    }))
}

pub(super) fn check_by(asked: &Asked) -> Result<(), Refusal> {
    if asked.by.len() > BY_BYTES_MAX {
        return Err(invalid(format!("by: has {} bytes, the limit is {BY_BYTES_MAX}", asked.by.len())));
    }
    Ok(())
}

/// Why a second operation does not begin.
#[must_use]
pub fn already_running(active: &Operation) -> Refusal {
    let Operation { id, command, state, .. } = active;
    let by = if active.asked.by.is_empty() { String::new() } else { format!(", begun by {}", active.asked.by) };
    precondition(format!(
        "operation {id} ({command}{by}) is {state}, and there is one at a time; wait for it with op watch {id}, or end it \
         with op cancel {id}"
    ))
}

fn ended(operation: &Operation) -> Refusal {
    let Operation { id, state, command, .. } = operation;
    precondition(format!("operation {id} ({command}) is {state} already; op show {id} says how it ended"))
}
