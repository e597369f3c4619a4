//! What nodes tell each other of their clocks (rule A8).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::types::{Monotonic, WallTime};

/// What the clocks of a node show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reading {
    /// The wall clock.
    pub wall: WallTime,
    /// The monotonic clock, which says something to the node itself only.
    pub mono: Monotonic,
    /// The last reading of the receiver that the node has; `None`: it has none yet, and wants one.
    pub echo: Option<Echo>,
}

/// A reading that is sent back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Echo {
    /// The monotonic clock in it.
    pub mono: Monotonic,
    /// How long ago it came.
    pub held: Duration,
}
