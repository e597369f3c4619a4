//! Retired requests: those whose values a record has seen replaced (rule A7).

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::Hlc;
use crate::types::{RequestId, WallTime};

/// The most retired requests that a record remembers. Beyond it those with the lowest stamps are forgotten: a repetition of
/// such a request may bring its value back as a sibling.
pub const RETIRED_MAX: usize = 256;

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

/// How the ids are encoded: the clients, each once, then for each id, ascending, how many microseconds it is later than the one
/// before, its logical counter, and the place of its client. A key that is written often by few sessions takes a few bytes an id;
/// a record without any takes one byte for the length.
fn encode(ids: &[RequestId]) -> Vec<u8> {
    let mut clients: Vec<u64> = ids.iter().map(|id| id.client).collect();
    clients.sort_unstable();
    clients.dedup();
    let mut out = Vec::with_capacity(4 + clients.len() * 8 + ids.len() * 6);
    put_number(&mut out, clients.len() as u64);
    clients.iter().for_each(|client| out.extend_from_slice(&client.to_le_bytes()));
    let mut before = 0;
    for id in ids {
        let wall = id.stamp.wall().0;
        put_number(&mut out, wall - before);
        put_number(&mut out, id.stamp.0 - Hlc::at(id.stamp.wall()).0);
        put_number(&mut out, clients.binary_search(&id.client).unwrap_or(0) as u64);
        before = wall;
    }
    out
}

/// Reads what `encode` wrote; `None`: it is anything else.
fn decode(mut bytes: &[u8]) -> Option<Vec<RequestId>> {
    let count = usize::try_from(take_number(&mut bytes)?).ok().filter(|count| *count <= RETIRED_MAX)?;
    let mut clients = Vec::with_capacity(count);
    for _ in 0..count {
        let (client, rest) = bytes.split_first_chunk::<8>()?;
        clients.push(u64::from_le_bytes(*client));
        bytes = rest;
    }
    let (mut ids, mut wall): (Vec<RequestId>, u64) = (Vec::with_capacity(count), 0);
    while !bytes.is_empty() {
        wall = wall.checked_add(take_number(&mut bytes)?).filter(|wall| Hlc::at(WallTime(*wall)).wall().0 == *wall)?;
        let logical = take_number(&mut bytes)?;
        let stamp = Hlc(Hlc::at(WallTime(wall)).0.checked_add(logical)?);
        let client = *clients.get(usize::try_from(take_number(&mut bytes)?).ok()?)?;
        let id = RequestId { stamp, client };
        if stamp.wall().0 != wall || ids.len() == RETIRED_MAX || ids.last().is_some_and(|last| *last >= id) {
            return None;
        }
        ids.push(id);
    }
    Some(ids)
}

/// Seven bits a byte, the lowest first.
fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    out.push(number.to_le_bytes()[0]);
}

fn take_number(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for place in 0..10 {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let bits = u64::from(byte & 0x7f);
        // The tenth byte has room for one bit.
        if place == 9 && bits > 1 {
            return None;
        }
        number |= bits << (7 * place);
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

impl Serialize for Retired {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.ids.is_empty() {
            serializer.serialize_bytes(&[])
        } else {
            serializer.serialize_bytes(&encode(&self.ids))
        }
    }
}

// Not derived: what comes from a disk, a peer or a client must not break the order that the lookups rely on, or the bound.
impl<'de> Deserialize<'de> for Retired {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Ids;
        impl de::Visitor<'_> for Ids {
            type Value = Retired;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {RETIRED_MAX} ascending request ids")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Retired, E> {
                if bytes.is_empty() {
                    return Ok(Retired::default());
                }
                let ids = decode(bytes).ok_or_else(|| E::invalid_value(de::Unexpected::Bytes(bytes), &self))?;
                Ok(Retired { ids })
            }
        }
        deserializer.deserialize_bytes(Ids)
    }
}
