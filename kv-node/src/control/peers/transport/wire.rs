//! Messages of the control plane as gRPC carries them, both ways.

use kv_core::error::RequestError;
use kv_core::types::NodeId;
use kv_proto::address::check_address;
use kv_proto::peer::{Joining, cluster_from_wire, cluster_to_wire};
use kv_proto::v1;
use tonic::Status;

use super::{GroupId, IdentifyReply, IdentifyRequest, JoinReply, JoinRequest, NodeAddress, RaftKind};
use crate::control::state::{CommandId, NodeDescriptor, Refusal, RefusalKind};

impl From<RaftKind> for v1::RaftKind {
    fn from(kind: RaftKind) -> Self {
        match kind {
            RaftKind::Append => Self::Append,
            RaftKind::Vote => Self::Vote,
            RaftKind::Snapshot => Self::InstallSnapshot,
            RaftKind::Propose => Self::Propose,
            RaftKind::Report => Self::Report,
            RaftKind::CatchUp => Self::CatchUp,
        }
    }
}

impl TryFrom<v1::JoinRequest> for JoinRequest {
    type Error = RequestError;

    fn try_from(wire: v1::JoinRequest) -> Result<Self, Self::Error> {
        let joining = Joining::try_from(wire)?;
        Ok(Self {
            protocol: joining.protocol,
            id: CommandId(joining.request_id),
            group: joining.group.map(GroupId),
            config: joining.config,
            descriptor: NodeDescriptor {
                name: joining.name,
                address: joining.address,
                zone: joining.zone,
                weight: joining.weight,
                incarnation: joining.incarnation,
                version: joining.version,
                replaces: joining.replaces,
            },
            boots: joining.boots,
            origin: joining.origin,
        })
    }
}

/// A report as it travels.
pub(super) fn join_request(request: JoinRequest) -> v1::JoinRequest {
    let NodeDescriptor { name, address, zone, weight, incarnation, version, replaces } = request.descriptor;
    Joining {
        protocol: request.protocol,
        name,
        address,
        zone,
        weight,
        incarnation,
        config: request.config,
        version,
        request_id: request.id.0,
        group: request.group.map(|group| group.0),
        replaces,
        boots: request.boots,
        origin: request.origin,
    }
    .into()
}

impl From<JoinReply> for v1::JoinReply {
    fn from(reply: JoinReply) -> Self {
        use v1::join_reply::Outcome;
        let outcome = match reply {
            JoinReply::Admitted { group, node, spare, cluster } => Outcome::Admitted(v1::Admission {
                group: group.0,
                node: node.0,
                spare,
                cluster_id: cluster_to_wire(cluster),
            }),
            JoinReply::Refused(refusal) => Outcome::Refused(v1::JoinRefusal {
                kind: v1::JoinRefusalKind::from(refusal.kind).into(),
                message: refusal.message,
            }),
            JoinReply::Later { reason, leader } => {
                Outcome::Later(v1::JoinLater { reason, leader_address: leader.unwrap_or_default() })
            }
        };
        Self { outcome: Some(outcome) }
    }
}

impl From<RefusalKind> for v1::JoinRefusalKind {
    fn from(kind: RefusalKind) -> Self {
        match kind {
            RefusalKind::Invalid => Self::Invalid,
            RefusalKind::NotFound => Self::NotFound,
            RefusalKind::Exists => Self::Exists,
            RefusalKind::Precondition | RefusalKind::Stale => Self::Precondition,
            RefusalKind::Exhausted => Self::Exhausted,
            RefusalKind::RolledBack => Self::RolledBack,
            RefusalKind::Removed => Self::Removed,
            RefusalKind::Superseded => Self::Superseded,
            RefusalKind::Foreign => Self::Foreign,
        }
    }
}

impl From<NodeAddress> for v1::NodeAddress {
    fn from(of: NodeAddress) -> Self {
        Self { incarnation: Some(of.incarnation.into()), address: of.address }
    }
}

impl TryFrom<v1::NodeAddress> for NodeAddress {
    type Error = RequestError;

    fn try_from(wire: v1::NodeAddress) -> Result<Self, Self::Error> {
        check_address(&wire.address)?;
        let incarnation = wire.incarnation.ok_or_else(|| RequestError::invalid("incarnation: is missing"))?.into();
        Ok(Self { incarnation, address: wire.address })
    }
}

fn missing_node() -> RequestError {
    RequestError::invalid("the node does not say who it is; run the same release on all nodes")
}

impl From<IdentifyRequest> for v1::IdentifyRequest {
    fn from(request: IdentifyRequest) -> Self {
        let IdentifyRequest { protocol, group, sender } = request;
        Self { protocol, group: group.0, sender: Some(sender.into()) }
    }
}

impl TryFrom<v1::IdentifyRequest> for IdentifyRequest {
    type Error = RequestError;

    fn try_from(wire: v1::IdentifyRequest) -> Result<Self, Self::Error> {
        Ok(Self {
            protocol: wire.protocol,
            group: GroupId(wire.group),
            sender: wire.sender.ok_or_else(missing_node)?.try_into()?,
        })
    }
}

impl From<IdentifyReply> for v1::IdentifyReply {
    fn from(reply: IdentifyReply) -> Self {
        let IdentifyReply { group, cluster, me, known } = reply;
        Self {
            group: group.map(|group| group.0),
            cluster_id: cluster_to_wire(cluster),
            me: Some(me.into()),
            known: known.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<v1::IdentifyReply> for IdentifyReply {
    type Error = RequestError;

    fn try_from(wire: v1::IdentifyReply) -> Result<Self, Self::Error> {
        Ok(Self {
            group: wire.group.map(GroupId),
            cluster: cluster_from_wire(&wire.cluster_id)?,
            me: wire.me.ok_or_else(missing_node)?.try_into()?,
            // One that cannot be read does not keep the others from being used.
            known: wire.known.into_iter().filter_map(|known| known.try_into().ok()).collect(),
        })
    }
}

/// Reads an answer to a report.
pub(super) fn join_reply(wire: v1::JoinReply) -> Result<JoinReply, RequestError> {
    use v1::join_reply::Outcome;
    match wire.outcome {
        Some(Outcome::Admitted(admission)) => Ok(JoinReply::Admitted {
            group: GroupId(admission.group),
            node: NodeId(admission.node),
            spare: admission.spare,
            cluster: cluster_from_wire(&admission.cluster_id)?,
        }),
        Some(Outcome::Refused(refusal)) => {
            let kind = match refusal.kind() {
                v1::JoinRefusalKind::Invalid => RefusalKind::Invalid,
                v1::JoinRefusalKind::NotFound => RefusalKind::NotFound,
                v1::JoinRefusalKind::Exists => RefusalKind::Exists,
                v1::JoinRefusalKind::Precondition | v1::JoinRefusalKind::Unspecified => RefusalKind::Precondition,
                v1::JoinRefusalKind::Exhausted => RefusalKind::Exhausted,
                v1::JoinRefusalKind::RolledBack => RefusalKind::RolledBack,
                v1::JoinRefusalKind::Removed => RefusalKind::Removed,
                v1::JoinRefusalKind::Superseded => RefusalKind::Superseded,
                v1::JoinRefusalKind::Foreign => RefusalKind::Foreign,
            };
            Ok(JoinReply::Refused(Refusal::new(kind, refusal.message)))
        }
        Some(Outcome::Later(later)) => Ok(JoinReply::Later {
            reason: later.reason,
            leader: Some(later.leader_address).filter(|address| !address.is_empty()),
        }),
        None => Err(RequestError::invalid("outcome: is missing; run the same release on all nodes")),
    }
}

/// The answer to a report that the other node calls invalid.
pub(super) fn join_invalid(status: &Status) -> JoinReply {
    JoinReply::Refused(Refusal::new(RefusalKind::Invalid, status.message()))
}
