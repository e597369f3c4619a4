//! Storage keys: `space | partition | keyspace | key`, so that one partition of one space is one contiguous range.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};

use crate::config::AvailableKeyspace;
use crate::types::{KeyspaceId, PartitionId};

/// Bytes before the user's key.
const PREFIX: usize = 1 + 2 + 4;

/// What kind of entry a key holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Space {
    /// Cells of partitions that the node owns.
    Owned = 1,
    /// Hints: records of available keyspaces, held for owners that were down.
    Hint = 2,
    /// Missed-write markers: keys of owned records of available keyspaces that some other owner has not confirmed.
    Missed = 3,
}

impl Space {
    /// All spaces.
    pub const ALL: [Self; 3] = [Self::Owned, Self::Hint, Self::Missed];

    /// The space that a first byte stands for.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|space| *space as u8 == byte)
    }
}

/// The key of a stored entry. Big-endian numbers make byte order the order of partitions, keyspaces and keys.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StorageKey(Bytes);

impl StorageKey {
    /// The key of an owned cell.
    #[must_use]
    pub fn owned(partition: PartitionId, keyspace: KeyspaceId, key: &[u8]) -> Self {
        Self::new(Space::Owned, partition, keyspace, key)
    }

    /// The key of a hint, which only available keyspaces have.
    #[must_use]
    pub fn hint(keyspace: AvailableKeyspace, partition: PartitionId, key: &[u8]) -> Self {
        Self::new(Space::Hint, partition, keyspace.id(), key)
    }

    /// The key of the missed-write marker of an owned record, which only available keyspaces have.
    #[must_use]
    pub fn marker(&self, keyspace: AvailableKeyspace) -> Self {
        debug_assert_eq!(self.keyspace(), keyspace.id(), "{self} is of another keyspace");
        self.in_space(Space::Missed)
    }

    fn new(space: Space, partition: PartitionId, keyspace: KeyspaceId, key: &[u8]) -> Self {
        let mut out = BytesMut::with_capacity(PREFIX + key.len());
        out.put_u8(space as u8);
        out.put_u16(partition.0);
        out.put_u32(keyspace.0);
        out.put_slice(key);
        Self(out.freeze())
    }

    /// A key as a store returned it; `None` if it is none of ours.
    #[must_use]
    pub fn from_bytes(bytes: Bytes) -> Option<Self> {
        Space::from_byte(*bytes.first()?)?;
        (bytes.len() >= PREFIX).then_some(Self(bytes))
    }

    /// A bound before every key of `keyspace` in `partition` and `space`, and behind those of lower keyspaces.
    #[must_use]
    pub fn keyspace_start(space: Space, partition: PartitionId, keyspace: KeyspaceId) -> Self {
        Self::new(space, partition, keyspace, &[])
    }

    /// The first key behind every key of `partition` in `space`.
    #[must_use]
    pub fn partition_end(space: Space, partition: PartitionId) -> Self {
        match partition.0.checked_add(1) {
            Some(next) => Self::keyspace_start(space, PartitionId(next), KeyspaceId(0)),
            // Behind the last partition comes the next space, at its very start.
            None => Self::space_end(space),
        }
    }

    /// The first key of `space`.
    #[must_use]
    pub fn space_start(space: Space) -> Self {
        Self::keyspace_start(space, PartitionId(0), KeyspaceId(0))
    }

    /// A bound behind every key of `space`.
    #[must_use]
    pub fn space_end(space: Space) -> Self {
        let mut out = BytesMut::with_capacity(PREFIX);
        out.put_u8(space as u8 + 1);
        out.put_bytes(0, PREFIX - 1);
        Self(out.freeze())
    }

    /// The first key behind this one.
    #[must_use]
    pub fn successor(&self) -> Self {
        let mut out = BytesMut::with_capacity(self.0.len() + 1);
        out.put_slice(&self.0);
        out.put_u8(0);
        Self(out.freeze())
    }

    /// The same partition, keyspace and key in another space, to look up what stands there. What is to be put there gets
    /// its key from [`Self::hint`] or [`Self::marker`].
    #[must_use]
    pub fn in_space(&self, space: Space) -> Self {
        Self::new(space, self.partition(), self.keyspace(), self.key())
    }

    /// The kind of entry.
    #[must_use]
    pub fn space(&self) -> Space {
        match self.0[0] {
            2 => Space::Hint,
            3 => Space::Missed,
            _ => Space::Owned,
        }
    }

    /// The partition.
    #[must_use]
    pub fn partition(&self) -> PartitionId {
        PartitionId(u16::from_be_bytes([self.0[1], self.0[2]]))
    }

    /// The keyspace.
    #[must_use]
    pub fn keyspace(&self) -> KeyspaceId {
        KeyspaceId(u32::from_be_bytes([self.0[3], self.0[4], self.0[5], self.0[6]]))
    }

    /// The user's key.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        &self.0[PREFIX..]
    }

    /// The user's key, sharing this key's memory.
    #[must_use]
    pub fn key_bytes(&self) -> Bytes {
        self.0.slice(PREFIX..)
    }

    /// All bytes, as they order entries in the store.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for StorageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}/{}/{}/{}", self.space(), self.partition(), self.keyspace(), self.key().escape_ascii())
    }
}

impl fmt::Display for StorageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
