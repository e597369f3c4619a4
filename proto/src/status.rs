//! Errors as gRPC statuses and back. The details of a status follow `google.rpc.Status`, so that other tools show them.

use kv_core::error::{Kind, RequestError};
use kv_core::types::Hlc;
use prost::{Message, Name};
use tonic::{Code, Status};

use crate::v1;

/// `google.rpc.Status`, the content of the trailer `grpc-status-details-bin`.
#[derive(Clone, PartialEq, prost::Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<prost_types::Any>,
}

/// The status code of a kind; each kind has its own.
#[must_use]
pub fn code_of(kind: Kind) -> Code {
    match kind {
        Kind::Invalid => Code::InvalidArgument,
        Kind::NotFound => Code::NotFound,
        Kind::Unavailable => Code::Unavailable,
        Kind::Unknown => Code::DeadlineExceeded,
        Kind::Exhausted => Code::ResourceExhausted,
        Kind::StaleEpoch => Code::Aborted,
        Kind::Corrupt => Code::DataLoss,
        Kind::Poisoned => Code::Internal,
        Kind::Conflict => Code::FailedPrecondition,
    }
}

/// The status that carries an error.
#[must_use]
pub fn to_status(error: RequestError) -> Status {
    let code = code_of(error.kind);
    let message = error.message.clone();
    let any = prost_types::Any { type_url: v1::Error::type_url(), value: v1::Error::from(error).encode_to_vec() };
    let details = RpcStatus { code: code.into(), message: message.clone(), details: vec![any] };
    Status::with_details(code, message, details.encode_to_vec().into())
}

/// The error that a status carries.
///
/// A status without our details comes from the transport, a proxy or a limit of the gRPC library. Where it does not say
/// plainly that nothing was done, the outcome is unknown.
#[must_use]
pub fn from_status(status: &Status) -> RequestError {
    if let Some(error) = details_of(status) {
        return error;
    }
    let kind = match status.code() {
        Code::InvalidArgument | Code::Unimplemented | Code::Unauthenticated | Code::PermissionDenied => Kind::Invalid,
        Code::NotFound => Kind::NotFound,
        Code::DataLoss => Kind::Corrupt,
        _ => Kind::Unknown,
    };
    let message = if status.message().is_empty() { status.code().description() } else { status.message() };
    RequestError::new(kind, message)
}

/// Whether a status was made by a node rather than on the way.
pub(crate) fn has_details(status: &Status) -> bool {
    details_of(status).is_some()
}

fn details_of(status: &Status) -> Option<RequestError> {
    let details = RpcStatus::decode(status.details()).ok()?;
    let any = details.details.into_iter().find(|any| any.type_url == v1::Error::type_url())?;
    RequestError::try_from(v1::Error::decode(any.value.as_slice()).ok()?).ok()
}

impl Name for v1::Error {
    const NAME: &'static str = "Error";
    const PACKAGE: &'static str = "kv.v1";

    fn type_url() -> String {
        "type.googleapis.com/kv.v1.Error".to_owned()
    }
}

impl From<RequestError> for v1::Error {
    fn from(error: RequestError) -> Self {
        let kind = match error.kind {
            Kind::Invalid => v1::ErrorKind::Invalid,
            Kind::NotFound => v1::ErrorKind::NotFound,
            Kind::Unavailable => v1::ErrorKind::Unavailable,
            Kind::Unknown => v1::ErrorKind::Unknown,
            Kind::Exhausted => v1::ErrorKind::Exhausted,
            Kind::StaleEpoch => v1::ErrorKind::StaleEpoch,
            Kind::Corrupt => v1::ErrorKind::Corrupt,
            Kind::Poisoned => v1::ErrorKind::Poisoned,
            Kind::Conflict => v1::ErrorKind::Conflict,
        };
        Self { kind: kind.into(), message: error.message, newest: error.newest.0 }
    }
}

/// An error of a kind that this build does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} is not a kind of error that this build knows")]
pub struct UnknownKind {
    /// The number of the kind.
    pub kind: i32,
}

impl TryFrom<v1::Error> for RequestError {
    type Error = UnknownKind;

    fn try_from(error: v1::Error) -> Result<Self, UnknownKind> {
        let kind = match v1::ErrorKind::try_from(error.kind) {
            Ok(v1::ErrorKind::Invalid) => Kind::Invalid,
            Ok(v1::ErrorKind::NotFound) => Kind::NotFound,
            Ok(v1::ErrorKind::Unavailable) => Kind::Unavailable,
            Ok(v1::ErrorKind::Unknown) => Kind::Unknown,
            Ok(v1::ErrorKind::Exhausted) => Kind::Exhausted,
            Ok(v1::ErrorKind::StaleEpoch) => Kind::StaleEpoch,
            Ok(v1::ErrorKind::Corrupt) => Kind::Corrupt,
            Ok(v1::ErrorKind::Poisoned) => Kind::Poisoned,
            Ok(v1::ErrorKind::Conflict) => Kind::Conflict,
            Ok(v1::ErrorKind::Unspecified) | Err(_) => return Err(UnknownKind { kind: error.kind }),
        };
        Ok(Self { newest: Hlc(error.newest), ..Self::new(kind, error.message) })
    }
}

/// The error of one operation of a batch; one of an unknown kind leaves the outcome unknown.
#[must_use]
pub fn from_error(error: v1::Error) -> RequestError {
    let message = error.message.clone();
    RequestError::try_from(error).unwrap_or_else(|_| RequestError::new(Kind::Unknown, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [Kind; 9] = [
        Kind::Invalid,
        Kind::NotFound,
        Kind::Unavailable,
        Kind::Unknown,
        Kind::Exhausted,
        Kind::StaleEpoch,
        Kind::Corrupt,
        Kind::Poisoned,
        Kind::Conflict,
    ];

    #[test]
    fn every_kind_survives_the_wire_and_has_its_own_code() {
        let mut codes = Vec::new();
        for kind in KINDS {
            let error = RequestError::new(kind, format!("about {kind:?}"));
            let status = to_status(error.clone());
            assert_eq!(status.message(), error.message);
            assert_eq!(from_status(&status), error);
            assert!(!codes.contains(&status.code()), "{kind:?} shares its code");
            codes.push(status.code());
        }
    }

    #[test]
    fn a_foreign_status_never_claims_that_nothing_was_done() {
        for code in 1..=16 {
            let status = Status::new(Code::from(code), "from a proxy");
            let error = from_status(&status);
            assert!(!error.is_safe_to_retry(), "{:?} became {:?}", status.code(), error.kind);
            assert_eq!(error.message, "from a proxy");
        }
        assert_eq!(from_status(&Status::new(Code::Unavailable, "")).kind, Kind::Unknown);
    }

    #[test]
    fn damaged_details_are_ignored() {
        let status = Status::with_details(Code::Unavailable, "broken", vec![0xff, 0x00, 0x13].into());
        assert_eq!(from_status(&status).kind, Kind::Unknown);
        let unknown = v1::Error { kind: 99, message: "newer".to_owned(), newest: 0 };
        assert_eq!(from_error(unknown), RequestError::new(Kind::Unknown, "newer"));
    }
}
