//! A node reports to its cluster until what is agreed on about it is true: after the first start to become a member,
//! after every further one to make its boot, address and release known.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use kv_core::message::PROTOCOL_VERSION;
use kv_core::types::{Generation, Point};

use super::Member;
use crate::control::leader::command_id;
use crate::control::peers::raft_id;
use crate::control::peers::transport::{GroupId, JoinReply, JoinRequest};
use crate::control::state::{NodeDescriptor, Phase, Refusal, RefusalKind};

/// How far the report has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::control) struct Progress {
    /// What the node waits for, for people.
    pub(super) waits_for: String,
    /// Set if the cluster refuses the node; final.
    pub(super) refused: Option<Refusal>,
}

/// The refusal for a node that runs an older copy of its store.
pub(super) fn rolled_back(me: &NodeDescriptor, seen: Option<Point>) -> Refusal {
    let seen = seen.map_or_else(
        || "what others have seen of it".to_owned(),
        |Point { incarnation, commit }| {
            format!("boot {} up to commit {commit}, which others have seen", incarnation.boot)
        },
    );
    Refusal::new(
        RefusalKind::RolledBack,
        format!(
            "{} runs an older copy of its store, which lacks {seen}; it must draw a new store id and be refilled, and keeps what \
             it holds",
            me.name
        ),
    )
}

/// Reports until it is no longer needed.
pub(in crate::control) async fn run(member: Arc<Member>) {
    let mut state = member.group.state.clone();
    let mut wait = member.group.timing.report_min;
    while !is_known(&member) {
        // The founder's first report is part of the command that founds the cluster.
        let begins = member.group.founding.is_some()
            && member.group.link.group.get() == Some(&GroupId(member.group.me.incarnation.store.0));
        let founds = begins && state.borrow_and_update().phase == Phase::Unfounded;
        if !founds && round(&member).await {
            return;
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            changed = state.changed() => {
                if changed.is_err() {
                    return;
                }
            }
        }
        wait = wait.saturating_mul(2).min(member.group.timing.report_max);
    }
}

/// Whether what the cluster knows of the node is true.
fn is_known(member: &Member) -> bool {
    let state = member.group.state();
    let me = &member.group.me;
    member.group.link.group.get().is_some()
        && state.member_of(me.incarnation.store).is_some_and(|(_, member)| {
            member.incarnation == me.incarnation
                && member.address == me.address
                && member.version == me.version
                && member.name == me.name
        })
}

/// Asks everybody who may know until one gives a final answer. Returns whether one did.
async fn round(member: &Member) -> bool {
    let Ok(id) = command_id() else { return false };
    let request = JoinRequest {
        protocol: PROTOCOL_VERSION,
        id,
        group: member.group.link.group.get().copied(),
        config: member.group.cluster.clone(),
        descriptor: member.group.me.clone(),
        boots: member.group.link.boots.clone(),
        origin: member.origin(),
    };
    if member.group.is_leader() {
        let reply = member.leader.join(request).await;
        return settle(member, reply, &member.group.me.address).await.is_ok();
    }
    let mut asked: BTreeSet<String> = BTreeSet::from([member.group.me.address.clone()]);
    let mut ask = targets(member);
    let mut refused = None;
    let mut waits_for = "no node of the cluster is known; name one with --join".to_owned();
    while let Some(address) = ask.pop_front() {
        if !asked.insert(address.clone()) {
            continue;
        }
        let timeout = call_timeout(member);
        let reply =
            tokio::time::timeout(timeout, member.group.link.transport.join(&address, request.clone(), timeout)).await;
        match reply {
            Ok(Ok(reply)) => match settle(member, reply, &address).await {
                Ok(()) => return true,
                Err(Redirect { reason, leader }) => {
                    waits_for = reason;
                    if let Some(leader) = leader {
                        ask.push_front(leader);
                    }
                }
            },
            Ok(Err(error)) => {
                if error.refused {
                    refused = Some(Refusal::new(RefusalKind::Precondition, error.reason.clone()));
                }
                waits_for = error.to_string();
            }
            Err(_elapsed) => waits_for = format!("{address} does not answer: silent for {timeout:?}"),
        }
    }
    if let Some(refusal) = refused.filter(|_| member.group.link.group.get().is_none()) {
        // Nobody has let it in yet, and nobody will as it is. A member goes on: it may be the other that is to be changed.
        refuse(member, refusal);
        return true;
    }
    member.progress.send_if_modified(|progress| {
        let differs = progress.waits_for != waits_for;
        progress.waits_for = waits_for;
        differs
    });
    false
}

fn call_timeout(member: &Member) -> Duration {
    member.group.timing.call
}

/// The leader first, then where the members are said to be, then the addresses that the node was started with.
fn targets(member: &Member) -> VecDeque<String> {
    let state = member.group.state();
    let leader = member.group.leader().and_then(|leader| member.group.link.peers.address(leader));
    let members =
        state.members.values().filter_map(|record| member.group.link.peers.address(raft_id(record.incarnation.store)));
    leader.into_iter().chain(members).chain(member.contacts.iter().cloned()).collect()
}

/// Ask somewhere else, or later.
struct Redirect {
    reason: String,
    leader: Option<String>,
}

async fn settle(member: &Member, reply: JoinReply, address: &str) -> Result<(), Redirect> {
    match reply {
        JoinReply::Admitted { group, node, spare, cluster } => {
            if let Some(&known) = member.group.link.group.get()
                && known != group
            {
                let message = format!(
                    "{address} belongs to another cluster, or to another generation of this one; check the addresses given to --join"
                );
                refuse(member, Refusal::new(RefusalKind::Precondition, message));
                return Ok(());
            }
            if let Err(error) = member.admitted(group).await {
                return Err(Redirect { reason: error.to_string(), leader: None });
            }
            let cluster = cluster.map_or_else(|| "that is forming".to_owned(), |cluster| cluster.to_string());
            if spare {
                tracing::info!(%node, %cluster, "this node is a spare: it gets data when an operator adds it");
            } else {
                tracing::info!(%node, %cluster, "this node is a member");
            }
            let waits_for = format!("admitted as {node}, waiting for the agreed state");
            member.progress.send_modify(|progress| progress.waits_for = waits_for);
            Ok(())
        }
        JoinReply::Refused(refusal) => {
            // A node that knows the members does not end for the word of one of them.
            let knows = !member.group.state().members.is_empty() && address != member.group.me.address;
            match (refusal.kind, member.group.link.peers.member_at(address)) {
                (RefusalKind::RolledBack, Some(author)) if knows => member.group.link.is_older(author, None),
                (RefusalKind::Removed, Some(author)) if knows => member.group.link.is_given_up(author),
                (RefusalKind::Superseded, Some(author)) if knows => {
                    // Which one it is, a message of the control plane tells.
                    let number = member.group.link.generation().map_or(1, |generation| generation.number);
                    let later = Generation { number: number.saturating_add(1), ..Generation::default() };
                    member.group.link.is_superseded(author, later);
                }
                // A member that was left behind, or that has gone ahead, is no reason for this node to end.
                (RefusalKind::Foreign, Some(_)) if knows => {}
                (RefusalKind::RolledBack | RefusalKind::Removed | RefusalKind::Superseded, None) if knows => {}
                _ => {
                    refuse(member, refusal);
                    return Ok(());
                }
            }
            Err(Redirect { reason: format!("{address}: {}", refusal.message), leader: None })
        }
        JoinReply::Later { reason, leader } => Err(Redirect { reason: format!("{address}: {reason}"), leader }),
    }
}

fn refuse(member: &Member, refusal: Refusal) {
    tracing::error!(%refusal, "the cluster refuses this node");
    member.progress.send_modify(|progress| progress.refused = Some(refusal));
}
