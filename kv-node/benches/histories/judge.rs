//! Histories are written to a file and judged, slice by slice: a slice has all that was asked of the keys of one generation.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use kv_histories::{Operation, Violation, check, write};

use super::Outcome;

/// Operations that are shown of a history that is not linearizable.
const SHOWN_MAX: usize = 60;

/// Where histories go.
pub(crate) struct Judge {
    path: PathBuf,
    file: BufWriter<File>,
    pub(crate) operations: usize,
    pub(crate) keys: usize,
    /// The longest time that one slice took.
    pub(crate) longest: Duration,
    pub(crate) violations: usize,
}

impl Judge {
    pub(crate) fn new(path: PathBuf) -> Outcome<Self> {
        let file = BufWriter::new(File::create(&path)?);
        Ok(Self { path, file, operations: 0, keys: 0, longest: Duration::ZERO, violations: 0 })
    }

    /// Judges what was told of some keys; says whether it is linearizable.
    pub(crate) fn judge(&mut self, history: &[Operation]) -> Outcome<bool> {
        write(&mut self.file, history)?;
        self.operations += history.len();
        self.keys += history.iter().map(|operation| &operation.key).collect::<BTreeSet<_>>().len();
        let began = Instant::now();
        let judged = check(history);
        self.longest = self.longest.max(began.elapsed());
        let Err(violation) = judged else { return Ok(true) };
        self.violations += 1;
        self.show(history, &violation)?;
        Ok(false)
    }

    fn show(&self, history: &[Operation], violation: &Violation) -> Outcome<()> {
        let (Violation::Impossible { operation, .. } | Violation::Malformed { operation, .. }) = violation;
        let prefix = shortest(history, operation);
        let path = self.path.with_extension("violation.ndjson");
        let mut file = BufWriter::new(File::create(&path)?);
        write(&mut file, &prefix)?;
        file.flush()?;
        println!("VIOLATION: {violation}");
        println!(
            "  the shortest history that shows it has {} operations, in {}; the last of them:",
            prefix.len(),
            path.display()
        );
        for operation in &prefix[prefix.len().saturating_sub(SHOWN_MAX)..] {
            println!("  {operation}");
        }
        Ok(())
    }
}

/// The shortest history of the key that is not linearizable: what had begun when the operation ended, without what can be left out. Reads
/// can, and writes that nobody has seen.
fn shortest(history: &[Operation], end: &Operation) -> Vec<Operation> {
    let has_begun = |operation: &&Operation| {
        operation.key == end.key && end.returned.is_none_or(|returned| operation.called <= returned)
    };
    let mut left: Vec<Operation> = history.iter().filter(has_begun).cloned().collect();
    let ends_there = |history: &[Operation]| matches!(check(history), Err(Violation::Impossible { operation, .. } | Violation::Malformed { operation, .. }) if *operation == *end);
    let mut at = 0;
    while at < left.len() {
        let mut fewer = left.clone();
        let gone = fewer.remove(at);
        // Without a write, what it explains would be a fault of its own, which ends elsewhere.
        if gone != *end && ends_there(&fewer) {
            left = fewer;
        } else {
            at += 1;
        }
    }
    left
}
