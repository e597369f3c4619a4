//! Tokens: the position of a key on the 64-bit ring.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::types::{HashSeed, PartitionId};

/// The position of `key` on the ring: `xxh3_64` (XXH3, 64 bits) under the cluster's seed.
#[must_use]
pub fn token(seed: HashSeed, key: &[u8]) -> u64 {
    xxh3_64_with_seed(key, seed.0)
}

/// The partition of a token: its top bits.
///
/// `partitions` is a power of two from 1 to 65,536, as `Layout` guarantees.
#[must_use]
pub fn partition(token: u64, partitions: u32) -> PartitionId {
    debug_assert!(partitions.is_power_of_two() && partitions <= super::PARTITIONS_MAX);
    let bits = partitions.trailing_zeros();
    // A shift by 64 is undefined; one partition has no bits.
    let index = if bits == 0 { 0 } else { token >> (64 - bits) };
    #[allow(clippy::cast_possible_truncation, reason = "at most 16 bits are left after the shift")]
    PartitionId(index as u16)
}

/// The first token of `partition`.
#[must_use]
pub fn first_token(partition: PartitionId, partitions: u32) -> u64 {
    let bits = partitions.trailing_zeros();
    if bits == 0 { 0 } else { u64::from(partition.0) << (64 - bits) }
}
