//! How the leader answers a node that makes itself known: it admits it, or says why not.

use kv_core::boots::Boots;
use kv_core::config::ClusterConfig;
use kv_core::message::PROTOCOL_VERSION;
use kv_core::types::{Point, StoreId};

use super::Leader;
use crate::control::peers::raft_id;
use crate::control::peers::transport::{GroupId, JoinReply, JoinRequest, ProposeReply};
use crate::control::state::{
    Command, Done, NodeDescriptor, Outcome, Phase, Proposal, Refusal, RefusalKind, check_place, superseded,
};
use crate::liveness::Condition;

impl Leader {
    /// Takes a report: admits the node as the leader, or says where the leader is.
    pub(in crate::control) async fn join(&self, request: JoinRequest) -> JoinReply {
        let JoinRequest { protocol, id, group, config, descriptor, boots, origin } = request;
        if protocol != PROTOCOL_VERSION {
            return refused(format!(
                "{} speaks protocol version {protocol}, this cluster {PROTOCOL_VERSION}; run the same release on both",
                descriptor.name
            ));
        }
        let Some(&mine) = self.group.link.group.get() else {
            return later("this node has not joined a cluster itself yet".to_owned(), None);
        };
        if let Some(group) = group
            && group != mine
        {
            if let Some(former) = self.group.state().former_generation(StoreId(group.0)) {
                return JoinReply::Refused(superseded(&descriptor.name, former.number));
            }
            let message = format!(
                "{} belongs to another cluster, or to another generation of this one (group {group}, this is {mine}); check the \
                 addresses given to --join, or start it with an empty directory",
                descriptor.name
            );
            return JoinReply::Refused(Refusal::new(RefusalKind::Foreign, message));
        }
        let state = self.group.state();
        if let Some(origin) = &origin
            && origin.generation.number >= state.generation(StoreId(mine.0)).number
        {
            // Here an earlier control plane is still at work, or one that was founded elsewhere at the same time.
            return later(
                format!(
                    "{} is of generation {} of the cluster, and {} comes from generation {}; name a node of the new one",
                    self.group.me.name,
                    state.generation(StoreId(mine.0)).number,
                    descriptor.name,
                    origin.generation.number
                ),
                None,
            );
        }
        // The founding node alone says for how long requests may be repeated; the others take it over.
        let config = ClusterConfig { repeat_within: state.config.repeat_within, ..config };
        if state.phase != Phase::Unfounded && config != state.config {
            return refused(format!(
                "{} has other cluster settings (limits or clock skew); start it with those of the cluster",
                descriptor.name
            ));
        }
        if let Err(refusal) = check_place(&descriptor) {
            return JoinReply::Refused(refusal);
        }
        if !self.group.is_leader() {
            let leader = self.group.leader().filter(|&leader| leader != self.group.id());
            let address = leader.and_then(|leader| self.group.link.peers.address(leader));
            return later(format!("{} does not lead", self.group.me.name), address);
        }
        if let Some(refusal) = self.refuse_older_copy(&descriptor, &boots) {
            return JoinReply::Refused(refusal);
        }
        if let Some(reply) = self.refuse_to_impersonate(&descriptor, mine).await {
            return reply;
        }
        if let Some(reply) = self.refuse_to_displace(&descriptor, mine).await {
            return reply;
        }
        let command = match origin {
            Some(origin) => Command::Rejoin { descriptor, origin },
            None => Command::Admit(descriptor),
        };
        let proposal = Proposal { id, at: self.group.wall().at, command };
        match self.lead(proposal, self.group.timing.call).await {
            ProposeReply::Committed(Outcome::Done(Done::Admitted { node, spare })) => {
                let cluster = self.group.state().identity().map(|(cluster, _)| cluster);
                JoinReply::Admitted { group: mine, node, spare, cluster }
            }
            ProposeReply::Committed(Outcome::Done(_)) => {
                refused("the report's id belongs to another command; draw a new one".to_owned())
            }
            // The founder has not committed its first entry yet.
            ProposeReply::Committed(Outcome::Refused(refusal)) if state.phase == Phase::Unfounded => {
                later(refusal.message, None)
            }
            ProposeReply::Committed(Outcome::Refused(refusal)) => JoinReply::Refused(refusal),
            ProposeReply::NotLeader => later(format!("{} does not lead", self.group.me.name), None),
            ProposeReply::Overloaded => later("too many changes wait already".to_owned(), None),
            ProposeReply::Unknown(reason) => later(reason, None),
        }
    }

    /// Refuses a store that lacks a boot that was agreed on, however many boots it counts (rule D2).
    fn refuse_older_copy(&self, descriptor: &NodeDescriptor, boots: &Boots) -> Option<Refusal> {
        let shown = descriptor.incarnation;
        let state = self.group.state();
        let (node, member) = state.member_of(shown.store)?;
        let agreed = Point { incarnation: member.incarnation, commit: 0 };
        (!boots.has(shown, agreed)).then(|| {
            Refusal::new(
                RefusalKind::RolledBack,
                format!(
                    "{node} shows an older copy of its store, which lacks boot {}; it must draw a new store id and be refilled",
                    member.incarnation.boot
                ),
            )
        })
    }

    /// Refuses a report for the store of a member that comes from somebody else: the member would be looked for elsewhere, or
    /// taken for an older copy of itself. The member's store must answer where the report says, and none of another boot where
    /// it was until now.
    async fn refuse_to_impersonate(&self, descriptor: &NodeDescriptor, group: GroupId) -> Option<JoinReply> {
        let state = self.group.state();
        let NodeDescriptor { incarnation, address, .. } = descriptor;
        let (_, member) = state.member_of(incarnation.store)?;
        let is_known = member.incarnation == *incarnation && member.address == *address;
        if is_known || *incarnation == self.group.me.incarnation {
            return None;
        }
        let link = &self.group.link;
        let before = link.peers.address(raft_id(incarnation.store)).unwrap_or_else(|| member.address.clone());
        let mut others = vec![before, member.address.clone()];
        others.retain(|other| other != address);
        others.dedup();
        let first = others.first().cloned().unwrap_or_else(|| address.clone());
        let last = others.last().cloned().unwrap_or_else(|| address.clone());
        let (there, first_answer, last_answer) =
            tokio::join!(link.identify(group, address), link.identify(group, &first), link.identify(group, &last));
        for (place, answer) in [(&first, first_answer), (&last, last_answer)] {
            let Some(me) = answer.map(|answer| answer.me.incarnation) else { continue };
            if me.store == incarnation.store && me != *incarnation {
                return Some(later(
                    format!(
                        "{} answers at {place} with boot {} of the store for which boot {} is reported from {address}; stop one \
                         of the two",
                        member.name, me.boot, incarnation.boot
                    ),
                    None,
                ));
            }
        }
        match there.map(|answer| answer.me.incarnation) {
            Some(me) if me == *incarnation => None,
            Some(me) => Some(later(
                format!(
                    "{address} is said to be {} with boot {} of its store, but boot {} of store {} answers there; a node reports \
                     for itself only",
                    member.name, incarnation.boot, me.boot, me.store
                ),
                None,
            )),
            None => Some(later(
                format!(
                    "{} reports from {address}, and nobody answers there; it must be reached from {}",
                    member.name, self.group.me.name
                ),
                None,
            )),
        }
    }

    /// Refuses a node that would take the place of a member which is alive: that member could never come back.
    async fn refuse_to_displace(&self, descriptor: &NodeDescriptor, group: GroupId) -> Option<JoinReply> {
        let state = self.group.state();
        let (node, member) = state.member_named(&descriptor.name)?;
        let held = member.incarnation.store;
        if held == descriptor.incarnation.store || !descriptor.replaces.contains(&held) {
            return None;
        }
        let address = self.group.link.peers.address(raft_id(held)).unwrap_or_else(|| member.address.clone());
        let answer = self.group.link.identify(group, &address).await.map(|answer| answer.me.incarnation);
        // A node whose own store was renewed or lost is back at once, where it was: nobody else can be there.
        if answer == Some(descriptor.incarnation) && descriptor.address == address {
            return None;
        }
        if held == self.group.me.incarnation.store || answer.is_some_and(|answer| answer.store == held) {
            return Some(refused(format!(
                "{} is up at {address} with store {held}, and its store would be given up; stop it first if another store \
                 is to take its place, or start this node under another --name",
                member.name
            )));
        }
        match self.group.link.peers.opinion(node) {
            Some(opinion) if opinion.condition == Condition::Down => None,
            // It may only be slow.
            opinion => {
                let why = opinion.map_or_else(|| "nothing is known of it".to_owned(), |opinion| opinion.reason);
                Some(later(
                    format!("{} is not considered down yet ({why}), so its place is not free", member.name),
                    None,
                ))
            }
        }
    }
}

fn refused(message: String) -> JoinReply {
    JoinReply::Refused(Refusal { kind: RefusalKind::Precondition, message })
}

fn later(reason: String, leader: Option<String>) -> JoinReply {
    JoinReply::Later { reason, leader }
}
