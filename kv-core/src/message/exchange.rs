//! Questions about one partition between two of its replicas: to copy it, to compare it, to hand over what is left of it.
//! All of this is bulk: it may wait, and nothing that a client waits for may wait behind it.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::cell::Cell;
use crate::storage::{LEAVES, Leaf, StorageKey, Tally, leaf_of};
use crate::types::KeyspaceId;
use crate::version::Hlc;

/// What a replica asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Purpose {
    /// Its store was lost: whatever another owner holds helps, even one that is being refilled itself.
    Refill,
    /// It enters the partition and copies from old owners that hold all of it.
    Copy,
    /// It has left the partition and hands over what it still holds: every owner that may acknowledge takes it.
    HandOver,
    /// Both hold all of the partition and compare.
    Repair,
    /// The same, for the settled barrier (rule A6).
    Settle,
}

/// A place in the storage order of one partition.
pub type Position = (KeyspaceId, Bytes);

/// A cell and its key.
pub type Keyed = (KeyspaceId, Bytes, Cell);

/// A question about one partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Question {
    /// The leaves of its Merkle tree.
    Leaves {
        /// What is asked for only if the root is another one.
        unless: Option<u64>,
    },
    /// Its records in storage order.
    Records {
        /// Only those behind this place.
        after: Option<Position>,
        /// The answer ends with the record that reaches so many bytes, or earlier.
        bytes_max: u32,
    },
    /// What its records are, in storage order.
    Digests {
        /// Only those of these leaves.
        leaves: LeafSet,
        /// Only those behind this place.
        after: Option<Position>,
    },
    /// The records of some keys.
    Fetch {
        /// The keys.
        keys: Vec<Position>,
    },
    /// To merge some records.
    Offer {
        /// The records.
        records: Vec<Keyed>,
    },
}

/// The answer to a question. Everything that it shows is durable at the node that answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// To `Leaves`.
    Leaves(Tree),
    /// To `Leaves`: the root is the one that was named.
    Equal,
    /// To `Records` and `Fetch`.
    Records {
        /// The records, in storage order. Those that cannot be read are left out.
        records: Vec<Keyed>,
        /// Where to go on; `None` at the end. Nothing in between is left.
        next: Option<Position>,
        /// The watermark of the copy before it was read: what was written at or before it and is not there was replaced or collected
        /// (rule A6). 0: nothing is known.
        settled: Hlc,
    },
    /// To `Digests`.
    Digests {
        /// What the records are, in storage order.
        entries: Vec<DigestEntry>,
        /// Where to go on; `None` at the end.
        next: Option<Position>,
        /// As for `Records`; 0 if some record could not be read.
        settled: Hlc,
    },
    /// To `Offer`: records that dominate the offered ones are durable.
    Taken,
}

/// The Merkle tree of a partition at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tree {
    /// Its leaves, all of them.
    pub leaves: Vec<Leaf>,
    /// Its root.
    pub root: u64,
    /// What the partition holds.
    pub tally: Tally,
    /// The watermark of the copy before it was read (rule A6); 0: none.
    pub settled: Hlc,
}

/// What one record is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DigestEntry {
    /// Its keyspace.
    pub keyspace: KeyspaceId,
    /// Its key.
    pub key: Bytes,
    /// The record's digest.
    #[serde(with = "postcard::fixint::le")]
    pub digest: u64,
    /// Bytes of the key and the encoded record.
    pub bytes: u32,
}

impl DigestEntry {
    /// Its place in storage order.
    #[must_use]
    pub fn position(&self) -> Position {
        (self.keyspace, self.key.clone())
    }
}

/// A set of Merkle leaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeafSet([u64; LEAVES / 64]);

impl LeafSet {
    /// The leaves in which two trees differ.
    #[must_use]
    pub fn differing(one: &[Leaf], other: &[Leaf]) -> Self {
        let mut set = Self::default();
        for (leaf, (mine, theirs)) in (0..=u8::MAX).zip(one.iter().zip(other)) {
            if mine != theirs {
                set.0[usize::from(leaf) / 64] |= 1 << (leaf % 64);
            }
        }
        set
    }

    /// Whether the leaf of a stored key is in the set.
    #[must_use]
    pub fn contains(&self, key: &StorageKey) -> bool {
        let leaf = leaf_of(key);
        self.0[usize::from(leaf) / 64] & (1 << (leaf % 64)) != 0
    }

    /// The leaves that are in both sets.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        let mut both = *self;
        for (word, others) in both.0.iter_mut().zip(other.0) {
            *word &= others;
        }
        both
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Question {
    /// Whether what it brings is well formed.
    pub(super) fn is_valid(&self) -> bool {
        match self {
            Self::Offer { records } => records.iter().all(|record| record.2.is_valid()),
            _ => true,
        }
    }
}

impl Answer {
    /// Whether what it brings is well formed.
    pub(super) fn is_valid(&self) -> bool {
        match self {
            Self::Leaves(tree) => tree.leaves.len() == LEAVES,
            Self::Records { records, .. } => records.iter().all(|record| record.2.is_valid()),
            Self::Digests { .. } | Self::Taken | Self::Equal => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::PartitionId;

    #[test]
    fn leaves_that_differ_are_found() {
        let key = StorageKey::owned(PartitionId(3), KeyspaceId(1), b"key");
        let mut one = vec![Leaf::default(); LEAVES];
        let other = one.clone();
        assert!(LeafSet::differing(&one, &other).is_empty());
        for leaf in 0..LEAVES {
            one[leaf] = Leaf { count: 1, hash: 7 };
            let set = LeafSet::differing(&one, &other);
            assert_eq!((set.len(), set.is_empty()), (1, false));
            assert_eq!(set.and(&set), set);
            one[(leaf + 1) % LEAVES] = Leaf { count: 1, hash: 7 };
            assert_eq!(LeafSet::differing(&one, &other).and(&set), set);
            one[leaf] = Leaf::default();
            assert!(LeafSet::differing(&one, &other).and(&set).is_empty());
            one[(leaf + 1) % LEAVES] = Leaf::default();
            assert_eq!(set.contains(&key), leaf == usize::from(leaf_of(&key)));
        }
    }
}
