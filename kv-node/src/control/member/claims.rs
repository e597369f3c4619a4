//! A member says that this node's store is an older copy, or was given up, or that there is a later generation of the cluster. That is for more than one to say (rule D2), so the
//! others are asked: each answers a question of the control plane by what it has seen and by what it knows to be agreed on.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::Member;
use crate::control::peers::raft_id;
use crate::control::peers::transport::{CatchUpReply, CatchUpRequest, RaftKind};

/// Runs until the node stops.
pub(in crate::control) async fn run(member: Arc<Member>) {
    let mut changed = member.group.link.claims_changed.subscribe();
    let longest = member.group.timing.report_max;
    loop {
        changed.borrow_and_update();
        if member.unproven_claims().is_empty() && member.group.link.later_generations().is_empty() {
            if changed.changed().await.is_err() {
                return;
            }
            continue;
        }
        ask_all(&member).await;
        tokio::time::sleep(longest).await;
    }
}

async fn ask_all(member: &Arc<Member>) {
    let state = member.group.state();
    let others = state.members.values().map(|record| raft_id(record.incarnation.store));
    let mut asking = JoinSet::new();
    for other in others.filter(|id| *id != member.group.id()) {
        let member = Arc::clone(member);
        asking.spawn(async move {
            let question = CatchUpRequest::ActsOn { revision: 0, timeout: Duration::ZERO };
            let timeout = member.group.timing.call;
            // What the answer says of this node's store is noted where it comes in.
            let answer = member.group.link.call::<_, CatchUpReply>(other, RaftKind::CatchUp, &question, timeout).await;
            tracing::debug!(?answer, "a member was asked about this node's store");
        });
    }
    while asking.join_next().await.is_some() {}
}
