//! The lines of the command bar, kept over restarts in a file that only its owner reads.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, JoinHandle};

use kv_core::small_file::{self, Access};
use tokio::sync::mpsc::UnboundedSender;

use super::model::HISTORY_MAX;

/// The file may grow to this many lines before it is rewritten.
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
            // What another dashboard wrote in the meantime is lost with what is too old.
            return small_file::replace(path, (self.lines.join("\n") + "\n").as_bytes(), Access::Owner);
        }
        private(OpenOptions::new().append(true))?.write_all(format!("{line}\n").as_bytes())
    }

    /// Keeps lines on a thread of its own, so that no disk delays a key press. What goes wrong is sent to `notices`.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn keep(mut self, notices: UnboundedSender<String>) -> io::Result<Keeper> {
        let (lines, given) = channel::<String>();
        let thread = thread::Builder::new().name("history".to_owned()).spawn(move || {
            for line in given {
                if let Err(error) = self.add(&line) {
                    // When the receiver is gone, the notice cannot be read.
                    notices.send(format!("cannot keep the history: {error}")).unwrap_or(());
                }
            }
        })?;
        Ok(Keeper { lines: Some(lines), thread: Some(thread) })
    }
}

/// Takes lines to keep. When it is dropped, they are kept.
#[derive(Debug)]
pub struct Keeper {
    lines: Option<Sender<String>>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Gives a line to keep.
    pub fn give(&self, line: String) {
        if let Some(lines) = &self.lines {
            // The thread ends only with its owner.
            lines.send(line).unwrap_or(());
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.lines = None;
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap_or(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_survive_and_are_bounded() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("kv/history");
        let (notices, _told) = tokio::sync::mpsc::unbounded_channel();
        let keeper = History::open(path.clone()).keep(notices).expect("a thread");
        for index in 0..=FILE_LINES_MAX {
            keeper.give(format!("get k{index}"));
        }
        drop(keeper);
        let lines = History::open(path).lines();
        assert_eq!((lines.len(), lines[HISTORY_MAX - 1].as_str()), (HISTORY_MAX, "get k2000"));
    }

    #[test]
    fn a_failure_is_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let (notices, mut reported) = tokio::sync::mpsc::unbounded_channel();
        let keeper = History::open(folder.path().to_owned()).keep(notices).expect("a thread");
        keeper.give("get k".to_owned());
        drop(keeper);
        assert!(reported.try_recv().expect("a notice").contains("cannot keep the history"));
    }
}
