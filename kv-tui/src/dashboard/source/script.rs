//! A node that is added to the cluster in memory: what every node reports of it, second by second.

use std::sync::Arc;

use kv_core::ring::{Entry, Joint, Layout, Owner, Receiver};
use kv_core::topology::{self, Change, Plan};
use kv_core::types::{Epoch, NodeId};
use kv_proto::describe::Description;
use kv_proto::v1;

use super::fake::START_US;

/// Partitions that are cut over in a second.
const A_SECOND: usize = 8;

/// Partitions that migrate at once.
const MIGRATING: usize = 8;

/// Keys and bytes of each partition.
const KEYS: u64 = 1000;
const BYTES: u64 = 120_000;

/// An operation that adds a node.
#[derive(Clone, Debug)]
pub struct Script {
    before: Layout,
    plan: Plan,
    node: NodeId,
}

impl Script {
    /// A spare is added to the cluster of this description; `None` if it has no layout or there is no plan.
    #[must_use]
    pub fn add(description: &Description, node: NodeId) -> Option<Self> {
        let before = description.layout.as_deref()?.clone();
        let plan = topology::plan(&before, &[Change::Add { node }]).ok()?;
        Some(Self { before, plan, node })
    }

    /// Seconds until everything is moved.
    #[must_use]
    pub fn seconds(&self) -> u64 {
        u64::try_from(self.plan.partitions.len().div_ceil(A_SECOND)).unwrap_or(0) + 1
    }

    /// How many of the partitions are cut over, and how many more migrate.
    fn cut_over(&self, second: u64) -> (usize, usize) {
        let all = self.plan.partitions.len();
        let done = usize::try_from(second.saturating_sub(1)).unwrap_or(usize::MAX).saturating_mul(A_SECOND).min(all);
        let migrating = if second == 0 { 0 } else { MIGRATING.min(all - done) };
        (done, migrating)
    }

    /// What is agreed on.
    #[must_use]
    pub fn description(&self, before: &Description, second: u64) -> Arc<Description> {
        let (done, migrating) = self.cut_over(second);
        let mut layout = self.before.clone();
        layout.epoch = Epoch(self.before.epoch.0 + second);
        layout.settled = second == 0 || second >= self.seconds();
        if second > 0
            && let Some(member) = layout.members.get_mut(&self.node)
        {
            member.spare = false;
        }
        for (at, change) in self.plan.partitions.iter().enumerate().take(done + migrating) {
            let Some(entry) = layout.partitions.get_mut(usize::from(change.partition.0)) else { continue };
            let epoch = layout.epoch;
            let since =
                |node: &NodeId| entry.owners.iter().find(|owner| owner.node == *node).map_or(epoch, |it| it.since);
            let owners: Vec<Owner> =
                change.owners.iter().map(|node| Owner { node: *node, since: since(node) }).collect();
            if at < done {
                *entry = Entry::settled(epoch, owners);
                continue;
            }
            let source = entry.owners[0].node;
            let receivers = owners.iter().filter(|owner| entry.owners.iter().all(|old| old.node != owner.node));
            let receivers = receivers.map(|owner| Receiver { node: owner.node, source }).collect();
            entry.joint = Some(Joint { epoch, owners, receivers, sources_min: 2 });
            entry.changed = epoch;
        }
        let mut description = before.clone();
        for member in &mut description.members {
            if member.id == self.node && second > 0 {
                member.member.spare = false;
                member.state = if layout.settled { v1::MemberState::Up } else { v1::MemberState::Joining };
            }
        }
        description.layout = Some(Arc::new(layout));
        Arc::new(description)
    }

    /// The operation, with its moves; `None` before it began.
    #[must_use]
    pub fn operation(&self, second: u64) -> Option<v1::Operation> {
        if second == 0 {
            return None;
        }
        let (done, migrating) = self.cut_over(second);
        let over: Vec<_> = self.plan.partitions[..done].iter().map(|change| change.partition).collect();
        let details: Vec<v1::OperationMove> = self
            .plan
            .moves
            .iter()
            .map(|step| {
                let moved = over.contains(&step.partition);
                let sources = [1, 2].map(|node| v1::ReceiptSource { node, merkle_root: 9 }).to_vec();
                v1::OperationMove {
                    partition: u32::from(step.partition.0),
                    from: step.from.map_or(0, |from| from.0),
                    to: step.to.0,
                    source: step.source.0,
                    moved,
                    receipt: moved.then(|| v1::Receipt { keys: KEYS, bytes: BYTES, sources, ..Default::default() }),
                }
            })
            .collect();
        let moved = details.iter().filter(|step| step.moved).count() as u64;
        let moves = details.len() as u64;
        let ended = second >= self.seconds();
        let state = if ended { v1::OperationState::Done } else { v1::OperationState::Running };
        Some(v1::Operation {
            id: 7,
            kind: v1::OperationKind::Add.into(),
            command: "node add n4".to_owned(),
            state: state.into(),
            plan_hash: self.plan.hash.to_string(),
            parent_epoch: self.plan.parent.0,
            by: "mina".to_owned(),
            begun_us: START_US + 1_000_000,
            first_cut_over_us: if moved > 0 { START_US + 2_000_000 } else { 0 },
            last_cut_over_us: if moved > 0 { START_US + second * 1_000_000 } else { 0 },
            ended_us: if ended { START_US + self.seconds() * 1_000_000 } else { 0 },
            moves,
            moves_minimum: self.plan.minimum,
            moved,
            keys_planned: moves * KEYS,
            bytes_planned: moves * BYTES,
            keys_moved: moved * KEYS,
            bytes_moved: moved * BYTES,
            receipts: moved,
            migrating: u32::try_from(migrating).unwrap_or(u32::MAX),
            undo: "node remove n4".to_owned(),
            entering: vec![self.node.0],
            details,
            ..v1::Operation::default()
        })
    }

    /// What the new node copies: the first transfers verify, one has stalled, the last one waits for its turn.
    #[must_use]
    pub fn transfers(&self, node: NodeId, second: u64) -> Vec<v1::Transfer> {
        if node != self.node {
            return Vec::new();
        }
        let (done, migrating) = self.cut_over(second);
        let moving: Vec<_> =
            self.plan.partitions[done..done + migrating].iter().map(|change| change.partition).collect();
        let steps = self.plan.moves.iter().filter(|step| moving.contains(&step.partition));
        steps
            .enumerate()
            .map(|(at, step)| {
                let (phase, part, waiting_for, stalled) = match at {
                    0 => (v1::TransferPhase::Verifying, 8, "", false),
                    5 => (v1::TransferPhase::Copying, 2, "n2 does not answer", true),
                    7 => (v1::TransferPhase::Waiting, 0, "4 copies run at once", false),
                    at => (v1::TransferPhase::Copying, 8 - at as u64, "", false),
                };
                v1::Transfer {
                    partition: u32::from(step.partition.0),
                    joint_epoch: self.before.epoch.0 + second,
                    source: step.source.0,
                    phase: phase.into(),
                    keys: KEYS * part / 8,
                    keys_total: KEYS,
                    bytes: BYTES * part / 8,
                    bytes_total: BYTES,
                    tries: u32::from(part > 0) + u32::from(stalled),
                    waiting_for: waiting_for.to_owned(),
                    wait: if waiting_for.is_empty() { 0 } else { v1::TransferWait::Other.into() },
                    stalled,
                    ..v1::Transfer::default()
                }
            })
            .collect()
    }
}
