//! What a keyspace promises, and the proof that it is available.
//!
//! Code that is to differ by mode matches on [`Mode`], without a default branch: whoever adds a mode is led to every such
//! place by the compiler. What only available keyspaces have takes an [`AvailableKeyspace`], which nothing but a keyspace
//! of that mode gives out.

use serde::{Deserialize, Serialize};

use super::Keyspace;
use crate::types::KeyspaceId;
use crate::version::Conflict;

/// What a keyspace promises, with the settings that this takes. It never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// It always answers, and reconciles later.
    Available(Available),
    /// It is linearizable, key by key, and refuses rather than lie: a majority of the owners agrees on every answer.
    Consistent,
}

/// The settings of an available keyspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Available {
    /// Replicas that a read asks, capped at the number of owners.
    pub r: u8,
    /// Durable copies that a write waits for, capped at the number of owners.
    pub w: u8,
    /// Only owners count, no fallbacks, for every request: as if each had asked for it.
    pub strict: bool,
    /// What becomes of concurrent writes.
    pub conflict: Conflict,
}

impl Mode {
    /// The word for people, and for command lines.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Available(_) => "available",
            Self::Consistent => "consistent",
        }
    }

    /// Whether timestamps decide which of concurrent writes survives, so that a wrong clock does harm (rule A8).
    #[must_use]
    pub fn timestamps_decide(&self) -> bool {
        match self {
            Self::Available(settings) => settings.conflict == Conflict::Lww,
            Self::Consistent => false,
        }
    }

    /// How many of so many owners a read or a write at the keyspace's own level waits for, whichever takes more.
    #[must_use]
    pub fn owners_needed(&self, owners: usize) -> usize {
        match self {
            Self::Available(Available { r, w, .. }) => usize::from(*r.max(w)).clamp(1, owners.max(1)),
            Self::Consistent => owners / 2 + 1,
        }
    }
}

/// A keyspace that is known to be available. Hints, missed-write markers, fallbacks, residue that is merged into the copies
/// of owners, and quorums of R and W exist for such keyspaces only, and whoever makes one of these shows this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AvailableKeyspace {
    id: KeyspaceId,
    settings: Available,
}

impl Keyspace {
    /// The proof that the keyspace is available; `None` if it is not.
    #[must_use]
    pub fn available(&self) -> Option<AvailableKeyspace> {
        match self.mode {
            Mode::Available(settings) => Some(AvailableKeyspace { id: self.id, settings }),
            Mode::Consistent => None,
        }
    }
}

impl AvailableKeyspace {
    /// Its number.
    #[must_use]
    pub fn id(&self) -> KeyspaceId {
        self.id
    }

    /// Its settings.
    #[must_use]
    pub fn settings(&self) -> Available {
        self.settings
    }
}
