//! Retired requests: those whose values a record has seen replaced (rule A7).

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::Hlc;
use crate::types::{RequestId, WallTime};

/// The most retired requests that a record remembers. Beyond it those with the lowest stamps are forgotten: a repetition of
/// such a request may bring its value back as a sibling.
pub const RETIRED_MAX: usize = 256;

/// Bytes of a request id in encodings.
const ID_BYTES: usize = 16;

/// Requests that took effect and were replaced. Whatever carries one of their ids is not written again, and not kept where
/// it turns up. The set belongs to the context that it travels with: who has seen the dots knows what they replaced. So it is
/// part of no digest, and says nothing about dominance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retired {
    /// Ascending, each once, at most `RETIRED_MAX`. Most records have none.
    ids: Vec<RequestId>,
}

/// The moment, by this node's clock, at which a barrier began that has since found its partition settled (rule A6): all owners
/// held the same, and no hint, residue or request that was older than it was left anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Settled(pub WallTime);

impl Retired {
    /// Whether the request is one of them.
    #[must_use]
    pub fn contains(&self, id: RequestId) -> bool {
        self.ids.binary_search(&id).is_ok()
    }

    /// Adds a request; says how many were forgotten because there was no room: none or one.
    pub(crate) fn add(&mut self, id: RequestId) -> usize {
        if let Err(at) = self.ids.binary_search(&id) {
            self.ids.insert(at, id);
        }
        self.keep_newest()
    }

    /// Adds the requests of another set; says how many were forgotten because there was no room.
    pub(crate) fn join(&mut self, other: &Self) -> usize {
        if other.ids.is_empty() || self.ids == other.ids {
            return 0;
        }
        if self.ids.is_empty() {
            self.ids.clone_from(&other.ids);
            return 0;
        }
        let mine = std::mem::take(&mut self.ids);
        self.ids.reserve_exact(mine.len().max(other.ids.len()));
        let mut theirs = other.ids.iter().copied().peekable();
        for id in mine {
            while let Some(their) = theirs.next_if(|their| *their < id) {
                self.ids.push(their);
            }
            theirs.next_if(|their| *their == id);
            self.ids.push(id);
        }
        self.ids.extend(theirs);
        self.keep_newest()
    }

    /// Forgets the requests that `is_wanted` does not name.
    pub(crate) fn retain(&mut self, is_wanted: impl Fn(RequestId) -> bool) {
        self.ids.retain(|id| is_wanted(*id));
    }

    /// Forgets the requests with stamps before `before`; says how many.
    pub(crate) fn age_out(&mut self, before: Hlc) -> usize {
        let old = self.ids.partition_point(|id| id.stamp < before);
        self.ids.drain(..old);
        old
    }

    fn keep_newest(&mut self) -> usize {
        let forgotten = self.ids.len().saturating_sub(RETIRED_MAX);
        self.ids.drain(..forgotten);
        forgotten
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// They, ascending by stamp.
    pub fn iter(&self) -> impl Iterator<Item = RequestId> + '_ {
        self.ids.iter().copied()
    }
}

impl FromIterator<RequestId> for Retired {
    fn from_iter<I: IntoIterator<Item = RequestId>>(ids: I) -> Self {
        let mut retired = Self::default();
        for id in ids {
            retired.add(id);
        }
        retired
    }
}

// Not derived: 16 bytes each behind their length, so that a record without any takes one byte.
impl Serialize for Retired {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.ids.is_empty() {
            return serializer.serialize_bytes(&[]);
        }
        let mut bytes = Vec::with_capacity(self.ids.len() * ID_BYTES);
        for id in &self.ids {
            bytes.extend_from_slice(&id.stamp.0.to_le_bytes());
            bytes.extend_from_slice(&id.client.to_le_bytes());
        }
        serializer.serialize_bytes(&bytes)
    }
}

// Not derived: what comes from a disk, a peer or a client must not break the order that the lookups rely on, or the bound.
impl<'de> Deserialize<'de> for Retired {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Ids;
        impl de::Visitor<'_> for Ids {
            type Value = Retired;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {RETIRED_MAX} ascending request ids of {ID_BYTES} bytes")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Retired, E> {
                let (chunks, rest) = bytes.as_chunks::<ID_BYTES>();
                let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
                let id = |chunk: &[u8; ID_BYTES]| {
                    let (stamp, client) = chunk.split_at(ID_BYTES / 2);
                    RequestId { stamp: Hlc(word(stamp)), client: word(client) }
                };
                if !rest.is_empty() || chunks.len() > RETIRED_MAX {
                    return Err(E::invalid_length(bytes.len(), &self));
                }
                let ids: Vec<RequestId> = chunks.iter().map(id).collect();
                if ids.windows(2).any(|pair| pair[0] >= pair[1]) {
                    return Err(E::custom("request ids must ascend"));
                }
                Ok(Retired { ids })
            }
        }
        deserializer.deserialize_bytes(Ids)
    }
}
