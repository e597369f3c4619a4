//! The leader drives operations: nodes report to it, and it proposes the next step as soon as one is possible.
//!
//! What nodes report is in the leader's memory only. It is reported until it is agreed on, so a new leader soon knows
//! it, too, and nothing depends on who asked for the operation.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kv_core::topology::{Receipt, operation};
use kv_core::types::{Epoch, NodeId, StoreId};
use serde::{Deserialize, Serialize};

use super::Leader;
use crate::control::peers::transport::ReportReply;
use crate::control::peers::{RaftId, raft_id};
use crate::control::state::{Asked, ClusterState, Command, OperationState, RECEIPTS_MAX, migrating_max};

/// How often a node reports while something is under way.
pub const REPORT_EVERY: Duration = Duration::from_millis(200);

/// What a node reports to the leader about the copies that it makes and the records that it still has to hand over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferReport {
    /// Its store.
    pub store: StoreId,
    /// The epoch of the layout on which it acts.
    pub epoch: Epoch,
    /// Receipts that are not agreed on yet, at most [`TransferReport::RECEIPTS_MAX`].
    pub receipts: Vec<Receipt>,
    /// Records that others may need from it: residue, hints and missed-write markers.
    pub left: u64,
}

impl TransferReport {
    /// The most receipts in one report; the others follow.
    pub const RECEIPTS_MAX: usize = RECEIPTS_MAX;
}

/// The reports that the leader has, by member.
pub(in crate::control) type Reports = BTreeMap<NodeId, TransferReport>;

impl Leader {
    /// Keeps a report if this node leads.
    pub(in crate::control) fn take_report(&self, report: TransferReport) -> ReportReply {
        if !self.group.is_leader() {
            return ReportReply::NotLeader;
        }
        let state = self.group.state();
        let Some((node, _)) = state.member_of(report.store) else { return ReportReply::Taken };
        let mut reports = self.reports.lock();
        reports.retain(|node, _| state.members.contains_key(node));
        let differs = reports.get(&node) != Some(&report);
        reports.insert(node, report);
        drop(reports);
        if differs {
            self.reported.notify_one();
        }
        ReportReply::Taken
    }
}

/// Proposes the next step, if there is one. Returns whether the state has changed.
pub(super) async fn propose_next_step(leader: &Leader, state: &ClusterState) -> bool {
    let reports = leader.reports.lock().clone();
    let metrics = leader.group.metrics();
    let voters: BTreeSet<RaftId> = metrics.membership_config.membership().voter_ids().collect();
    match next_step(state, &reports, &|store| voters.contains(&raft_id(store)), leader.group.wall()) {
        Some(command) => leader.commit(command).await,
        None => false,
    }
}

/// The next step that the reports allow. A store that votes stays until others vote in its place: if it went first, the
/// last voter could leave with the control plane's only majority.
pub(in crate::control) fn next_step(
    state: &ClusterState,
    reports: &Reports,
    votes: &dyn Fn(StoreId) -> bool,
    asked: Asked,
) -> Option<Command> {
    let layout = state.layout.as_deref()?;
    if let Some(active) = state.active_operation().filter(|active| active.state == OperationState::Running) {
        let target = active.target.as_ref()?;
        let reported = reports.values().flat_map(|report| &report.receipts).take(RECEIPTS_MAX);
        let mut known = active.receipts.clone();
        known.extend(reported.clone().map(|receipt| ((receipt.partition, receipt.node), receipt.clone())));
        if operation::advance(layout, target, &known, migrating_max(layout.partition_count())).is_some() {
            let is_new = |receipt: &&Receipt| active.receipts.get(&(receipt.partition, receipt.node)) != Some(*receipt);
            let receipts = reported.filter(is_new).cloned().collect();
            return Some(Command::Advance { operation: active.id, epoch: layout.epoch, receipts, asked });
        }
    }
    state.leaving.iter().find_map(|(&node, &since)| {
        let report = reports.get(&node)?;
        let member = state.members.get(&node)?;
        let holds_nothing = report.left == 0 && report.epoch >= since && report.store == member.incarnation.store;
        (holds_nothing && !votes(report.store)).then_some(Command::Dismiss {
            node,
            store: report.store,
            epoch: report.epoch,
        })
    })
}
