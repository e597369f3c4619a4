//! Values that an old copy held and that were deleted elsewhere while it was away: the tombstone has settled and is gone, so they must not
//! come back (rules A6 and D2). They are set aside, in the same commit that removes them, and listed for an operator. Nothing reads
//! them otherwise.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::StorageKey;
use crate::types::{KeyspaceId, WallTime};
use crate::version::Version;

/// With what the names of these entries of the meta space begin.
pub const ASIDE: &[u8] = b"aside/";

/// The most bytes of values that one loop sets aside. Beyond that they are counted, and not kept.
pub(crate) const ASIDE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// A value that was set aside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetAside {
    /// The keyspace.
    pub keyspace: KeyspaceId,
    /// The key.
    pub key: Bytes,
    /// The value.
    pub value: Bytes,
    /// When it was written.
    pub written: WallTime,
    /// When it was set aside.
    pub at: WallTime,
}

impl SetAside {
    /// The entry for a version; `None`: it deletes. The same version has the same name, so it is set aside once.
    pub(crate) fn entry(key: &StorageKey, version: &Version, at: WallTime) -> Option<(Bytes, Bytes)> {
        let value = version.value.clone()?;
        let (keyspace, written) = (key.keyspace(), version.written.wall());
        let dot = postcard::to_allocvec(&version.dot).unwrap_or_default();
        let name = [ASIDE, &keyspace.0.to_be_bytes(), &xxh3_64(&dot).to_be_bytes(), key.key()].concat();
        let aside = Self { keyspace, key: key.key_bytes(), value, written, at };
        Some((Bytes::from(name), Bytes::from(postcard::to_allocvec(&aside).unwrap_or_default())))
    }

    /// Reads an entry; `None`: it is damaged.
    #[must_use]
    pub fn decode(value: &[u8]) -> Option<Self> {
        postcard::from_bytes(value).ok()
    }
}
