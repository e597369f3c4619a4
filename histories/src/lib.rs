//! What clients of a store asked and were told, and whether one copy of the data, on which one operation is carried out after the
//! other, could have told them the same (linearizability: Herlihy and Wing, "Linearizability: A Correctness Condition for
//! Concurrent Objects", 1990).
//!
//! It knows nothing of how the store works. The simulator and the tests on real processes record such histories, and anybody may: a
//! history is one line of JSON for each operation.

mod linear;
mod lines;

pub use linear::{Violation, check};
pub use lines::{LineError, read, write};

use std::fmt;

use serde::{Deserialize, Serialize};

/// An operation on one key, from its call to its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// Who asked; for people.
    pub client: u64,
    /// The key.
    pub key: String,
    /// What was asked.
    #[serde(flatten)]
    pub action: Action,
    /// When, in microseconds of the one clock of the history.
    pub called: u64,
    /// When its end was known. `None`: it was never known, and the operation may take effect at any time after its call, or never.
    pub returned: Option<u64>,
    /// What its client was told.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// What is asked of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "action")]
pub enum Action {
    /// Its value.
    Get,
    /// It gets a value, which no other put of the key has.
    Put {
        /// The value.
        value: String,
        /// Under which condition.
        when: Condition,
        /// If it lives for a while only.
        expires: Option<Expiry>,
    },
    /// It is deleted.
    Delete {
        /// Under which condition.
        when: Condition,
    },
}

/// Under which condition a key is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// None.
    Always,
    /// It has no value.
    Absent,
    /// It has still the value that its client was shown.
    Holds(String),
    /// Nothing was written since its client was shown that it had no value.
    StillAbsent,
}

/// When a value may go by itself, in microseconds of the history's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expiry {
    /// Not before.
    pub earliest: u64,
    /// Nobody who asks later may be shown it.
    pub latest: u64,
}

/// What a client was told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "outcome")]
pub enum Outcome {
    /// The value of the key, if it has one.
    Got {
        /// The value.
        value: Option<String>,
    },
    /// It is written.
    Done,
    /// The condition does not hold, and nothing was done.
    Failed {
        /// What was found, if that was said: a value or nothing.
        found: Option<Option<String>>,
    },
    /// Nothing was done, for another reason.
    Refused,
    /// Nobody knows.
    Unknown,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { client, key, action, called, returned, outcome } = self;
        write!(f, "client {client} at {called}: {action} of {key} -> {outcome}")?;
        match returned {
            Some(returned) => write!(f, " at {returned}"),
            None => f.write_str(", never answered"),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Get => f.write_str("get"),
            Self::Put { value, when, expires } => {
                write!(f, "put {value}{when}{}", if expires.is_some() { " for a while" } else { "" })
            }
            Self::Delete { when } => write!(f, "delete{when}"),
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Always => Ok(()),
            Self::Absent => f.write_str(" if absent"),
            Self::Holds(value) => write!(f, " if it holds {value}"),
            Self::StillAbsent => f.write_str(" if still absent"),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |value: &Option<String>| value.clone().unwrap_or_else(|| "nothing".to_owned());
        match self {
            Self::Got { value } => write!(f, "got {}", show(value)),
            Self::Done => f.write_str("done"),
            Self::Failed { found: None } => f.write_str("the condition does not hold"),
            Self::Failed { found: Some(found) } => write!(f, "the condition does not hold, found {}", show(found)),
            Self::Refused => f.write_str("refused"),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

#[cfg(test)]
mod tests;
