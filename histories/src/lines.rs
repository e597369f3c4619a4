//! A history as lines of JSON.

use std::io::{self, BufRead, Write};

use super::Operation;

/// Why a history cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// A line is no operation.
    #[error("line {line} is no operation: {error}")]
    Malformed {
        /// Its number, from 1.
        line: usize,
        /// What is wrong with it.
        error: serde_json::Error,
    },
    /// The file cannot be read.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Reads a history. Empty lines are passed over.
///
/// # Errors
/// At the first line that is no operation.
pub fn read(from: impl BufRead) -> Result<Vec<Operation>, LineError> {
    let mut operations = Vec::new();
    for (index, line) in from.lines().enumerate() {
        let line = line?;
        if !line.trim().is_empty() {
            let operation = serde_json::from_str(&line);
            operations.push(operation.map_err(|error| LineError::Malformed { line: index + 1, error })?);
        }
    }
    Ok(operations)
}

/// Writes a history.
///
/// # Errors
/// If that cannot be done.
pub fn write(mut to: impl Write, history: &[Operation]) -> io::Result<()> {
    for operation in history {
        serde_json::to_writer(&mut to, operation)?;
        to.write_all(b"\n")?;
    }
    to.flush()
}
