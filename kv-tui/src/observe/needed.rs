//! How many owners of a partition must serve so that every keyspace can be read and written.

use kv_core::config::Keyspace;
use kv_core::ring::{Entry, Owner};

/// The owners that the most demanding keyspace needs, by the size of a set of owners.
#[derive(Clone, Debug, Default)]
pub(super) struct Needed(Vec<usize>);

impl Needed {
    /// What these keyspaces need of the sets of these entries: worked out once for each size, since there are many sets.
    pub(super) fn of(keyspaces: &[Keyspace], entries: &[Entry]) -> Self {
        let largest = entries.iter().flat_map(Entry::sets).map(<[Owner]>::len).max().unwrap_or_default();
        let of_size = |size: usize| {
            let needed = keyspaces.iter().map(|keyspace| keyspace.mode.owners_needed(size)).max();
            needed.unwrap_or(1).min(size)
        };
        Self((0..=largest).map(of_size).collect())
    }

    /// How many of these owners must serve.
    pub(super) fn among(&self, owners: &[Owner]) -> usize {
        self.0.get(owners.len()).copied().unwrap_or_default()
    }
}
