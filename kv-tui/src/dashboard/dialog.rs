//! What lies on top of a screen and takes the keys until it is closed.

use super::confirm::Confirm;
use super::planning::Planning;

/// A dialog.
#[derive(Clone, Debug, PartialEq)]
pub enum Dialog {
    /// The keys that work here.
    Help {
        /// The first line shown.
        top: usize,
    },
    /// One of several names.
    Choose {
        /// What it is chosen for.
        choice: Choice,
        /// The names.
        names: Vec<String>,
        /// The selected one.
        row: usize,
    },
    /// A line that destroys something: its word must be typed before it runs.
    Confirm(Box<Confirm>),
    /// A change of the topology: what is asked for, and the plan that must be confirmed before it starts.
    Plan(Box<Planning>),
}

/// What a name is chosen for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The keyspace whose keys are shown.
    Keyspace,
}
