//! Why an attempt failed, and what a status says.

use std::error::Error;

use kv_core::error::RequestError;
use tonic::{ConnectError, Status};

/// Why an attempt failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// What to do.
    pub error: RequestError,
    /// Whether the connection failed rather than the node refused.
    pub transport: bool,
}

/// What a status says, with the causes that it wraps.
pub(super) fn describe_status(status: &Status) -> String {
    let mut parts = Vec::new();
    let mut source = status.source();
    while let Some(error) = source {
        parts.push(error.to_string());
        source = error.source();
    }
    // The innermost cause says what happened, such as "Connection refused (os error 111)".
    match parts.pop() {
        Some(cause) => cause,
        None if status.message().is_empty() => status.code().description().to_owned(),
        None => status.message().to_owned(),
    }
}

/// Whether no connection was made.
pub(super) fn is_connect_error(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}
