//! Why a change is not planned, and what to do instead.

use serde::{Deserialize, Serialize};

/// What kind of refusal it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RefusalKind {
    /// A node that is no member.
    NotFound,
    /// The change is wrong by itself, or contradicts another one.
    Invalid,
    /// The node is not in the state that the change needs.
    Precondition,
    /// An operation is running.
    Running,
    /// Fewer nodes than copies would be left.
    Nodes,
    /// Copies of a partition would share a zone that do not now.
    Zones,
    /// Partitions would be lost.
    Data,
    /// A disk would overflow.
    Disk,
    /// The plan was made for another layout.
    Stale,
}

/// Why a change is not planned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{reason}; {remedy}")]
pub struct Refusal {
    /// What kind of refusal it is.
    pub kind: RefusalKind,
    /// What stands in the way, with names and numbers.
    pub reason: String,
    /// What to do instead.
    pub remedy: String,
}

impl Refusal {
    /// A refusal.
    pub fn new(kind: RefusalKind, reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { kind, reason: reason.into(), remedy: remedy.into() }
    }
}
