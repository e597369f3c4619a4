//! The lines of the command bar, kept over restarts in a file that only its owner reads.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use super::model::HISTORY_MAX;

/// The file may grow to this many lines before it is written anew.
const FILE_LINES_MAX: usize = 2 * HISTORY_MAX;

/// The history's file.
#[derive(Clone, Debug, Default)]
pub struct History {
    path: Option<PathBuf>,
    lines: Vec<String>,
}

impl History {
    /// Reads the file; one that is absent or unreadable is an empty history.
    #[must_use]
    pub fn open(path: PathBuf) -> Self {
        let text = fs::read(&path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
        Self { path: Some(path), lines: text.lines().map(str::to_owned).collect() }
    }

    /// The newest lines, oldest first.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.lines.iter().skip(self.lines.len().saturating_sub(HISTORY_MAX)).cloned().collect()
    }

    /// Keeps a line.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn add(&mut self, line: &str) -> io::Result<()> {
        self.lines.push(line.to_owned());
        let Some(path) = &self.path else { return Ok(()) };
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let private = |options: &mut OpenOptions| -> io::Result<File> { options.create(true).mode(0o600).open(path) };
        if self.lines.len() > FILE_LINES_MAX {
            self.lines = self.lines();
            // What another dashboard wrote meanwhile is lost with what is too old.
            let mut file = private(OpenOptions::new().write(true).truncate(true))?;
            return file.write_all((self.lines.join("\n") + "\n").as_bytes());
        }
        private(OpenOptions::new().append(true))?.write_all(format!("{line}\n").as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_survive_and_are_bounded() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("kv/history");
        let mut history = History::open(path.clone());
        for index in 0..=FILE_LINES_MAX {
            history.add(&format!("get k{index}")).expect("kept");
        }
        let lines = History::open(path).lines();
        assert_eq!((lines.len(), lines[HISTORY_MAX - 1].as_str()), (HISTORY_MAX, "get k2000"));
    }
}
