//! Finding members that are not where they were: after a change of addresses, perhaps of all at once.
//!
//! While a member is silent or nobody leads, the node asks every place it has heard of who is there: the addresses given
//! to `--join`, where members were, and what peers know. An address is taken over only from the node that answers there,
//! if it shows the group and cluster of this one and the store of a member, no older than the newest run seen of it. What
//! anybody says of a third node, or of itself in a question, is only a place to ask. Whoever is asked asks back, so one
//! address that leads to one member is enough.
//!
//! Found addresses are used at once, by the control plane and by the links. They are agreed on as ever: each node reports
//! its address to the leader, once there is one.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use kv_core::types::NodeId;
use tokio::task::JoinSet;

use super::Member;
use crate::control::peers::raft_id;
use crate::control::peers::transport::{GroupId, IdentifyReply, IdentifyRequest, NodeAddress};
use crate::control::state::MEMBERS_MAX;
use crate::liveness::Condition;

/// Places that are asked at once.
const ASKED_AT_ONCE: usize = 32;

/// The most places that are asked in one round.
const ASKED_MAX: usize = 4 * MEMBERS_MAX;

/// The longest pause between two rounds while members are missing and nothing is found.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Runs until the node stops.
pub(in crate::control) async fn run(member: Arc<Member>) {
    let mut pause = member.group.timing.report_min;
    loop {
        let searches = match member.group.link.group.get() {
            Some(&group) if is_anybody_missing(&member) => {
                let found = round(&member, group).await;
                pause = if found { member.group.timing.report_min } else { pause.saturating_mul(2).min(PAUSE_MAX) };
                true
            }
            _ => {
                pause = member.group.timing.report_min;
                false
            }
        };
        let wait = if searches { pause } else { member.group.timing.review };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = member.group.link.peers.candidate_added.notified() => {}
        }
    }
}

/// The members other than this node that do not answer.
fn missing(member: &Member) -> BTreeSet<NodeId> {
    let state = member.group.state();
    let others = state.members.iter().filter(|(_, record)| raft_id(record.incarnation.store) != member.group.id());
    let silent = |node: NodeId| member.group.link.peers.opinion(node).is_none_or(|it| it.condition != Condition::Up);
    others.map(|(&node, _)| node).filter(|&node| silent(node)).collect()
}

fn is_anybody_missing(member: &Member) -> bool {
    !missing(member).is_empty() || (member.group.leader().is_none() && member.group.state().members.len() > 1)
}

/// Asks everywhere once. Returns whether a member was found at another place than before.
async fn round(member: &Arc<Member>, group: GroupId) -> bool {
    let peers = &member.group.link.peers;
    let state = member.group.state();
    // Rumours first: somebody has just asked from there.
    let mut places: VecDeque<String> = peers.take_candidates().into_values().collect();
    places.extend(member.contacts.iter().cloned());
    for record in state.members.values() {
        places.extend(peers.address(raft_id(record.incarnation.store)));
        places.push_back(record.address.clone());
    }
    let mut asked = BTreeSet::from([member.group.link.address.clone()]);
    let mut asking = JoinSet::new();
    let mut found = false;
    loop {
        while asking.len() < ASKED_AT_ONCE
            && asked.len() < ASKED_MAX
            && let Some(place) = places.pop_front()
        {
            if asked.insert(place.clone()) {
                asking.spawn(ask(Arc::clone(member), group, place));
            }
        }
        match asking.join_next().await {
            Some(Ok(Some((place, reply)))) => found |= take(member, group, &place, reply, &mut places),
            Some(_) => {}
            None => return found,
        }
    }
}

/// Asks one place; `None` if nobody answers.
async fn ask(member: Arc<Member>, group: GroupId, place: String) -> Option<(String, IdentifyReply)> {
    let reply = member.group.link.identify(group, &place).await?;
    Some((place, reply))
}

/// Takes in what a place answered; further ones to ask go to `places`. Returns whether a member was found there that was
/// thought to be elsewhere.
fn take(member: &Member, group: GroupId, place: &str, reply: IdentifyReply, places: &mut VecDeque<String>) -> bool {
    let peers = &member.group.link.peers;
    let state = member.group.state();
    let cluster = state.identity().map(|(cluster, _)| cluster);
    let is_ours =
        reply.group == Some(group) && (reply.cluster.is_none() || cluster.is_none() || reply.cluster == cluster);
    if !is_ours {
        tracing::debug!(%place, "the node there belongs to another cluster");
        return false;
    }
    let NodeAddress { incarnation, address } = reply.me;
    let Some((node, record)) = state.member_of(incarnation.store) else { return false };
    if raft_id(incarnation.store) == member.group.id() || peers.is_retired(incarnation.store) {
        return false;
    }
    places.extend(reply.known.into_iter().take(2 * MEMBERS_MAX).filter_map(|known| {
        let differs = peers.address(raft_id(known.incarnation.store)).as_ref() != Some(&known.address);
        (differs && state.member_of(known.incarnation.store).is_some()).then_some(known.address)
    }));
    let before = peers.address(raft_id(incarnation.store));
    if address != place {
        // Where it says that it is reached, it must answer, too; until then it is where it has answered.
        places.push_back(address);
        if before.as_deref() != Some(place) && peers.opinion(node).is_some_and(|it| it.condition == Condition::Up) {
            return false;
        }
    }
    if let Err(seen) = peers.heard(incarnation, place) {
        let (name, shown) = (&record.name, incarnation.boot);
        tracing::warn!(%place, "{name} answers there with boot {shown} of its store, boot {} up to commit {} has been seen", seen.incarnation.boot, seen.commit);
        return false;
    }
    let moved = before.as_deref() != Some(place);
    if moved {
        tracing::info!(before = before.unwrap_or_default(), found = %place, "{} is found at another address", record.name);
    }
    moved
}

impl Member {
    /// Answers a node that asked by its `Transport::identify`.
    pub(in crate::control) fn identify(&self, request: IdentifyRequest) -> IdentifyReply {
        let group = self.group.link.group.get().copied();
        let me = NodeAddress { incarnation: self.group.link.me, address: self.group.link.address.clone() };
        let state = self.group.state();
        let cluster = state.identity().map(|(cluster, _)| cluster);
        if group != Some(request.group) {
            return IdentifyReply { group, cluster, me, known: Vec::new() };
        }
        self.group.link.peers.suggest(request.sender.incarnation.store, &request.sender.address);
        let known = state
            .members
            .values()
            .filter(|member| raft_id(member.incarnation.store) != self.group.id())
            .filter_map(|member| {
                let address = self.group.link.peers.address(raft_id(member.incarnation.store))?;
                Some(NodeAddress { incarnation: member.incarnation, address })
            })
            .collect();
        IdentifyReply { group, cluster, me, known }
    }

    /// Where a member takes requests, as far as this node knows, which may be newer than what is agreed on.
    pub(in crate::control) fn address_of(&self, node: NodeId) -> Option<String> {
        let state = self.group.state();
        let store = state.members.get(&node)?.incarnation.store;
        if raft_id(store) == self.group.id() {
            return Some(self.group.link.address.clone());
        }
        self.group.link.peers.address(raft_id(store))
    }
}
