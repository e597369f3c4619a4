//! Log files of bounded size: a full one is renamed, and the oldest is deleted.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// The file that is written; `node.log.1` was written before it, `node.log.2` before that.
pub(super) const NAME: &str = "node.log";

/// How large a file becomes.
const BYTES_MAX: u64 = 8 * 1024 * 1024;

/// How many files there are.
const FILES_MAX: usize = 8;

/// The files of one log.
#[derive(Debug)]
pub(super) struct Files {
    dir: PathBuf,
    bytes_max: u64,
    files_max: usize,
    file: File,
    bytes: u64,
}

fn open(path: &Path) -> io::Result<(File, u64)> {
    // Another process may write to the same file, such as a local cluster that has the node's stderr there.
    let file = OpenOptions::new().create(true).append(true).open(path)?;
    let bytes = file.metadata()?.len();
    Ok((file, bytes))
}

impl Files {
    /// Goes on where the log in this directory ends.
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        Self::bounded(dir, BYTES_MAX, FILES_MAX)
    }

    fn bounded(dir: &Path, bytes_max: u64, files_max: usize) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let (file, bytes) = open(&dir.join(NAME))?;
        Ok(Self { dir: dir.to_owned(), bytes_max, files_max, file, bytes })
    }

    /// Puts the file aside and begins another.
    fn rotate(&mut self) -> io::Result<()> {
        let path = |number: usize| match number {
            0 => self.dir.join(NAME),
            number => self.dir.join(format!("{NAME}.{number}")),
        };
        for number in (1..self.files_max).rev() {
            match fs::rename(path(number - 1), path(number)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        (self.file, self.bytes) = open(&path(0))?;
        Ok(())
    }
}

impl Write for Files {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let length = line.len() as u64;
        if self.bytes > 0 && self.bytes + length > self.bytes_max && self.rotate().is_err() {
            // The bound counts more than what is old.
            self.file.set_len(0)?;
            self.bytes = 0;
        }
        let written = self.file.write(line)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(dir: &Path) -> Vec<(String, u64)> {
        let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
        let mut sizes: Vec<(String, u64)> =
            entries.map(|entry| (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().len())).collect();
        sizes.sort();
        sizes
    }

    #[test]
    fn the_files_together_stay_below_their_bound_and_hold_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = Files::bounded(dir.path(), 100, 3).unwrap();
        for number in 0..1000 {
            writeln!(files, "line {number:05}").unwrap();
            let sizes = sizes(dir.path());
            assert!(sizes.len() <= 3 && sizes.iter().all(|(_, bytes)| *bytes <= 100), "{sizes:?}");
        }
        let text = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        let all = format!("{}{}{}", text("node.log.2"), text("node.log.1"), text("node.log"));
        let lines: Vec<&str> = all.lines().collect();
        let expected: Vec<String> = (1000 - lines.len()..1000).map(|number| format!("line {number:05}")).collect();
        assert_eq!(lines, expected, "nothing is missing between the files");
        assert!(lines.len() > 18);
    }

    #[test]
    fn a_log_goes_on_where_it_ended_and_takes_a_line_that_is_too_long() {
        let dir = tempfile::tempdir().unwrap();
        writeln!(Files::bounded(dir.path(), 20, 2).unwrap(), "before").unwrap();
        let mut files = Files::bounded(dir.path(), 20, 2).unwrap();
        writeln!(files, "after").unwrap();
        assert_eq!(fs::read_to_string(dir.path().join(NAME)).unwrap(), "before\nafter\n");
        // A line is written at once, as the log does.
        files.write_all(format!("{}\n", "x".repeat(30)).as_bytes()).unwrap();
        assert_eq!(sizes(dir.path()), [(NAME.to_owned(), 31), (format!("{NAME}.1"), 13)]);
    }
}
