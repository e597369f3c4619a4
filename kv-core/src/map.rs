//! Hash maps whose seed comes from outside, so that a run replays and a client cannot choose colliding keys.

#![allow(clippy::disallowed_types, reason = "this is the one place that builds the map type with an explicit hasher")]

/// The hasher of the core's maps.
pub use foldhash::fast::FixedState as MapState;

/// A hash map with an explicit seed. It is never iterated: order must not decide anything.
pub type Map<K, V> = std::collections::HashMap<K, V, MapState>;

/// An empty map for `seed`.
#[must_use]
pub fn map<K, V>(seed: u64) -> Map<K, V> {
    Map::with_hasher(MapState::with_seed(seed))
}
