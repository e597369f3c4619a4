//! Identities of operations (rule A7).

use std::sync::atomic::{AtomicU64, Ordering};

use kv_core::error::RequestError;
use kv_core::types::RequestId;

use crate::v1;

/// Gives every operation of one session its own identity.
#[derive(Debug)]
pub struct RequestIds {
    client: u64,
    next: AtomicU64,
}

impl RequestIds {
    /// The identities of the session `client`, which the caller draws at random.
    #[must_use]
    pub fn new(client: u64) -> Self {
        Self { client, next: AtomicU64::new(1) }
    }

    /// The next one; never the same twice.
    pub fn next(&self) -> RequestId {
        RequestId { client: self.client, sequence: self.next.fetch_add(1, Ordering::Relaxed) }
    }
}

impl From<RequestId> for v1::RequestId {
    fn from(id: RequestId) -> Self {
        Self { client: id.client, sequence: id.sequence }
    }
}

impl TryFrom<v1::RequestId> for RequestId {
    type Error = RequestError;

    fn try_from(id: v1::RequestId) -> Result<Self, Self::Error> {
        // A client that forgot to fill it in would have all of its writes taken for repetitions of the first.
        if id.client == 0 || id.sequence == 0 {
            return Err(RequestError::invalid(
                "request: client and sequence are both above 0; leave the request id out to have the node draw one",
            ));
        }
        Ok(Self { client: id.client, sequence: id.sequence })
    }
}
