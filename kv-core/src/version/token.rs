//! Context tokens: what a read gives to a client, and a put gives back to replace exactly what was read.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::{Context, Hlc, Record, Retired};
use crate::types::{KeyspaceId, RequestId};

/// The highest counter that a client may claim to have seen: far above any real one, and far enough below what peers
/// accept that a forged token cannot make a record that they refuse.
const COUNTER_MAX: u64 = 1 << 61;

/// The first byte of a token.
const FORMAT: u8 = 2;

/// What a client has seen of one key: opaque bytes outside, checked when they come back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContextToken {
    /// The dots seen.
    pub context: Context,
    /// The latest timestamp seen, so that the write that replaces it is later (rule A8).
    pub latest: Hlc,
    /// The requests whose values were shown. A write with the token replaces them under whatever dot they stand (rule A7).
    pub shown: Vec<RequestId>,
    /// The requests that the record knew to be replaced.
    pub retired: Retired,
}

/// A token that this key's reads did not give.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContextTokenError {
    /// Not a token at all, or damaged.
    #[error("the context is damaged or not a context; pass it on as a get returned it")]
    Damaged,
    /// Another build gave it.
    #[error(
        "the context has format {found}, this build reads format {FORMAT}; read the key again and pass what that returns"
    )]
    Format {
        /// The format byte found.
        found: u8,
    },
    /// A token of another key: accepting it would hide writes that its reader never saw.
    #[error("the context belongs to another key; pass the context that a get of this key returned")]
    OtherKey,
}

impl ContextToken {
    /// The token of a read that returned `record`.
    #[must_use]
    pub fn of(record: &Record) -> Self {
        let mut shown: Vec<RequestId> = record.siblings.iter().map(|sibling| sibling.request).collect();
        shown.sort_unstable();
        shown.dedup();
        Self { context: record.context.clone(), latest: record.latest(), shown, retired: record.retired.clone() }
    }

    /// The token for the client whose write left `record` and whose own token was `seen` (empty if it had none).
    ///
    /// If siblings stand beside the write, the client has not seen them, and the record's context would silently replace
    /// them with its next put. It then keeps what it had, and its own write: its next put replaces that and stands beside the
    /// others, and a get shows them all.
    #[must_use]
    pub fn after_write(record: &Record, seen: Self, request: RequestId, written: Hlc) -> Self {
        if record.siblings.len() > 1 { seen.with(request, written) } else { Self::of(record) }
    }

    /// The same after a write of its client, of whose record no more is told.
    #[must_use]
    pub fn with(mut self, request: RequestId, written: Hlc) -> Self {
        self.latest = self.latest.max(written);
        if let Err(at) = self.shown.binary_search(&request) {
            self.shown.insert(at, request);
        }
        self
    }

    /// Whether the request's value was shown, or was replaced before.
    #[must_use]
    pub fn knows(&self, request: RequestId) -> bool {
        self.shown.binary_search(&request).is_ok() || self.retired.contains(request)
    }

    /// Leaves out requests with stamps above `latest`, which nobody can have made: what a client passes may be made up, and
    /// those would stay in the record for longer than all others.
    pub(crate) fn forget_above(&mut self, latest: Hlc) {
        self.shown.retain(|id| id.stamp <= latest);
        self.retired.retain(|id| id.stamp <= latest);
    }

    /// The bytes for the client.
    #[must_use]
    pub fn encode(&self, keyspace: KeyspaceId, key: &[u8]) -> Bytes {
        let mut out = vec![FORMAT];
        out.extend_from_slice(&key_check(keyspace, key));
        // Writing to a vector cannot fail, and the types hold nothing that postcard refuses.
        let mut out = postcard::to_extend(self, out).unwrap_or_default();
        let check = short(xxh3_64(&out));
        out.extend_from_slice(&check);
        Bytes::from(out)
    }

    /// Reads the bytes that a client passed for `key`.
    ///
    /// # Errors
    /// If they are not what `encode` gave for this key.
    pub fn decode(bytes: &[u8], keyspace: KeyspaceId, key: &[u8]) -> Result<Self, ContextTokenError> {
        let (body, check) = bytes.split_last_chunk::<4>().ok_or(ContextTokenError::Damaged)?;
        let (head, rest) = body.split_first_chunk::<5>().ok_or(ContextTokenError::Damaged)?;
        if *check != short(xxh3_64(body)) {
            return Err(ContextTokenError::Damaged);
        }
        if head[0] != FORMAT {
            return Err(ContextTokenError::Format { found: head[0] });
        }
        if head[1..] != key_check(keyspace, key) {
            return Err(ContextTokenError::OtherKey);
        }
        match postcard::take_from_bytes::<Self>(rest) {
            Ok((token, [])) if token.is_valid() => Ok(token),
            _ => Err(ContextTokenError::Damaged),
        }
    }

    fn is_valid(&self) -> bool {
        self.context.counter_max() <= COUNTER_MAX && self.shown.windows(2).all(|pair| pair[0] < pair[1])
    }
}

fn key_check(keyspace: KeyspaceId, key: &[u8]) -> [u8; 4] {
    short(xxh3_64_with_seed(key, u64::from(keyspace.0)))
}

fn short(hash: u64) -> [u8; 4] {
    let [a, b, c, d, ..] = hash.to_le_bytes();
    [a, b, c, d]
}
