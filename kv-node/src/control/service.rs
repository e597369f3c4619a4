//! The messages of the control plane that come in by the `Peer` service.

use kv_core::error::RequestError;
use kv_core::message::PROTOCOL_VERSION;
use kv_core::types::{Incarnation, StoreId};
use kv_proto::status::to_status;
use kv_proto::v1;
use tonic::Status;

use super::peers::transport::{GroupId, IdentifyRequest, JoinReply, JoinRequest, MESSAGE_BYTES_MAX, RaftKind};
use super::plane::ControlPlane;
use super::state::{Refusal, RefusalKind};

/// The store that a message of the control plane says to be from, whoever has sent it.
#[must_use]
pub fn sender_of(request: &v1::RaftRequest) -> Option<StoreId> {
    if request.protocol != PROTOCOL_VERSION {
        return None;
    }
    // The beginning of an envelope.
    let (head, _) = postcard::take_from_bytes::<(GroupId, Incarnation)>(&request.payload).ok()?;
    Some(head.1.store)
}

/// Answers `Peer.Raft`. `proven`: the store and boot that the caller has proven to be, if it has.
///
/// # Errors
/// `INVALID_ARGUMENT` for a message that no node of this release sends.
pub async fn serve_raft(
    control: &ControlPlane,
    request: v1::RaftRequest,
    proven: Option<Incarnation>,
) -> Result<v1::RaftReply, Status> {
    let kind = match request.kind() {
        v1::RaftKind::Append => RaftKind::Append,
        v1::RaftKind::Vote => RaftKind::Vote,
        v1::RaftKind::InstallSnapshot => RaftKind::Snapshot,
        v1::RaftKind::Propose => RaftKind::Propose,
        v1::RaftKind::Report => RaftKind::Report,
        v1::RaftKind::CatchUp => RaftKind::CatchUp,
        v1::RaftKind::Unspecified => {
            return Err(invalid(format!("kind: {} is not known; run the same release on all nodes", request.kind)));
        }
    };
    check_protocol(request.protocol)?;
    if request.payload.len() > MESSAGE_BYTES_MAX {
        return Err(invalid(format!("payload: has {} bytes, the limit is {MESSAGE_BYTES_MAX}", request.payload.len())));
    }
    let payload = control.handle_raft_of(kind, &request.payload, proven).await.into();
    Ok(v1::RaftReply { payload })
}

/// Answers `Peer.Join`, as [`serve_raft`] does.
///
/// # Errors
/// `INVALID_ARGUMENT`, naming the field; `PERMISSION_DENIED` for a report of another node than the caller.
pub async fn serve_join(
    control: &ControlPlane,
    request: v1::JoinRequest,
    proven: Option<Incarnation>,
) -> Result<v1::JoinReply, Status> {
    // Before the fields: those of another version may be others.
    let reply = if request.protocol == PROTOCOL_VERSION {
        let request = JoinRequest::try_from(request).map_err(to_status)?;
        check_sender(request.descriptor.incarnation, proven)?;
        control.handle_join(request).await
    } else {
        JoinReply::Refused(Refusal::new(
            RefusalKind::Precondition,
            format!(
                "{:?} speaks protocol version {}, this cluster {PROTOCOL_VERSION}; run the same release on both",
                request.name, request.protocol
            ),
        ))
    };
    Ok(reply.into())
}

/// Answers `Peer.Identify`, as [`serve_raft`] does. A question without a sender only asks whether anybody answers.
///
/// # Errors
/// `INVALID_ARGUMENT`, naming the field; `PERMISSION_DENIED` for a question of another node than the caller.
pub fn serve_identify(
    control: &ControlPlane,
    request: v1::IdentifyRequest,
    proven: Option<Incarnation>,
) -> Result<v1::IdentifyReply, Status> {
    check_protocol(request.protocol)?;
    if control.has_stopped() {
        // Else it could seem to be in two places when it is started again elsewhere.
        return Err(to_status(RequestError::unavailable("this node is stopping")));
    }
    let request = IdentifyRequest::try_from(request).map_err(to_status)?;
    check_sender(request.sender.incarnation, proven)?;
    Ok(control.handle_identify(request).into())
}

/// Whoever has proven to be a node speaks for no other one.
fn check_sender(says: Incarnation, proven: Option<Incarnation>) -> Result<(), Status> {
    match proven {
        Some(proven) if proven != says => Err(Status::permission_denied(format!(
            "{proven} has opened this connection and speaks for {says}; nobody but a node itself may do that"
        ))),
        _ => Ok(()),
    }
}

fn check_protocol(protocol: u32) -> Result<(), Status> {
    if protocol == PROTOCOL_VERSION {
        return Ok(());
    }
    Err(invalid(format!(
        "protocol: is {protocol}, this node speaks {PROTOCOL_VERSION}; run the same release on all nodes"
    )))
}

fn invalid(message: String) -> Status {
    to_status(RequestError::invalid(message))
}
