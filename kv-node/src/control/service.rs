//! The messages of the control plane that come in by the `Peer` service.

use kv_core::error::RequestError;
use kv_core::message::PROTOCOL_VERSION;
use kv_proto::status::to_status;
use kv_proto::v1;
use tonic::Status;

use super::peers::transport::{IdentifyRequest, JoinReply, JoinRequest, MESSAGE_BYTES_MAX, RaftKind};
use super::plane::ControlPlane;
use super::state::{Refusal, RefusalKind};

/// Answers `Peer.Raft`.
///
/// # Errors
/// `INVALID_ARGUMENT` for a message that no node of this release sends.
pub async fn serve_raft(control: &ControlPlane, request: v1::RaftRequest) -> Result<v1::RaftReply, Status> {
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
    let payload = control.handle_raft(kind, &request.payload).await.into();
    Ok(v1::RaftReply { payload })
}

/// Answers `Peer.Join`.
///
/// # Errors
/// `INVALID_ARGUMENT`, naming the field.
pub async fn serve_join(control: &ControlPlane, request: v1::JoinRequest) -> Result<v1::JoinReply, Status> {
    // Before the fields: those of another version may be others.
    let reply = if request.protocol == PROTOCOL_VERSION {
        let request = JoinRequest::try_from(request).map_err(to_status)?;
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

/// Answers `Peer.Identify`.
///
/// # Errors
/// `INVALID_ARGUMENT`, naming the field.
pub fn serve_identify(control: &ControlPlane, request: v1::IdentifyRequest) -> Result<v1::IdentifyReply, Status> {
    check_protocol(request.protocol)?;
    let request = IdentifyRequest::try_from(request).map_err(to_status)?;
    Ok(control.handle_identify(request).into())
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
