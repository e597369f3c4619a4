//! What lies on top of a screen and takes the keys until it is closed.

use super::bar::Bar;
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

/// A line that destroys something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confirm {
    /// The line.
    pub line: String,
    /// What it does, as the end of a sentence.
    pub what: String,
    /// The word that lets it run.
    pub word: String,
    /// What has been typed of it.
    pub typed: Bar,
}

impl Confirm {
    /// The longest word that a user is asked to type.
    const WORD_MAX: usize = 24;

    /// Asks for the word of what is destroyed, or for another one where that is too long to type.
    #[must_use]
    pub fn new(line: String, what: String, word: String) -> Self {
        let typeable = word.chars().count() <= Self::WORD_MAX && !word.is_empty() && word.is_ascii();
        let word = if typeable { word } else { "destroy".to_owned() };
        Self { line, what, word, typed: Bar::default() }
    }

    /// Whether the word was typed.
    #[must_use]
    pub fn is_typed(&self) -> bool {
        self.typed.text == self.word
    }
}
