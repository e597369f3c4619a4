//! The settled barrier (rule A6): what an owner asks of the members for some of its partitions, and what they answer.
//!
//! Nothing of this depends on the order of messages: an answer names the round and the step that it is for, and what may be lost is
//! asked again.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A step of a round of the barrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum SettleStep {
    /// Every member: promise to write nothing at or below the watermark, and say whether anything is held beside the owners' copies.
    Confirm,
    /// Every owner: take nothing at or below the watermark that is not held, but from another owner's copy.
    Hold,
    /// Every owner: the round has ended without a watermark, and takes the last step back.
    Release,
    /// Every owner: everything at or below the watermark has settled.
    Adopt,
}

/// Why a member does not take a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Hindrance {
    /// It knows another entry of the partition, or the partition migrates.
    Epoch,
    /// It holds hints.
    Hints,
    /// It may hold what was left of the partition.
    Residue,
    /// Its copy is not complete, or may be an old one.
    Incomplete,
    /// By its clock the watermark is too young.
    Clock {
        /// By so much.
        behind: Duration,
    },
    /// It is not an owner.
    NotOwner,
}

impl fmt::Display for Hindrance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Epoch => f.write_str("acts on another layout, or the partition migrates"),
            Self::Hints => f.write_str("holds hints that are not delivered"),
            Self::Residue => f.write_str("holds records of partitions that it has left"),
            Self::Incomplete => f.write_str("is being refilled"),
            Self::Clock { behind } => write!(f, "has a clock that is {} ms behind", behind.as_millis()),
            Self::NotOwner => f.write_str("does not own the partition"),
        }
    }
}

/// What holds up the watermark of a partition at a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HinderedBy {
    /// The member is down.
    Down,
    /// Its disk is slow: what it is asked for is not durable yet.
    Disk,
    /// It does not answer.
    Silence,
    /// It does not take a step.
    Refusal(Hindrance),
    /// Its copy cannot be compared.
    Comparison {
        /// Why not.
        why: String,
    },
}

impl fmt::Display for HinderedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Down => f.write_str("is down"),
            Self::Disk => f.write_str("waits for its disk"),
            Self::Silence => f.write_str("has not answered in time"),
            Self::Refusal(hindrance) => hindrance.fmt(f),
            Self::Comparison { why } => write!(f, "cannot be compared: {why}"),
        }
    }
}
