//! What must be confirmed by a typed word.

use super::bar::Bar;

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
