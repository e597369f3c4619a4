//! What the process uses: processor time, memory, disk.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kv_proto::v1;
use parking_lot::Mutex;

use crate::faults::Disk;

/// How often the data directory is measured; in between the last value holds.
const MEASURE_EVERY: Duration = Duration::from_secs(10);

/// Clock ticks per second in `/proc`, fixed by the Linux ABI.
const TICKS_PER_SECOND: u64 = 100;

/// Reads the statistics of this process and its data directory.
#[derive(Debug)]
pub struct Usage {
    directory: PathBuf,
    faults: Disk,
    disk: Mutex<Option<(Instant, u64)>>,
}

impl Usage {
    /// For the process that keeps its data in `directory`, on a disk with these faults.
    #[must_use]
    pub fn new(directory: PathBuf, faults: Disk) -> Self {
        Self { directory, faults, disk: Mutex::default() }
    }

    /// The statistics now; zero for what the platform does not report.
    #[must_use]
    pub fn read(&self) -> v1::Usage {
        v1::Usage {
            cpu_us: cpu_us().unwrap_or(0),
            memory_bytes: memory_bytes().unwrap_or(0),
            disk_bytes: self.disk_bytes(),
            disk_free_bytes: self.free_bytes().unwrap_or(0),
            ..v1::Usage::default()
        }
    }

    /// Bytes free on the device of the data directory; `None` where the platform does not report it.
    #[must_use]
    pub fn free_bytes(&self) -> Option<u64> {
        if self.faults.is_full() { Some(0) } else { fs4::available_space(&self.directory).ok() }
    }

    fn disk_bytes(&self) -> u64 {
        let mut known = self.disk.lock();
        match *known {
            Some((at, bytes)) if at.elapsed() < MEASURE_EVERY => bytes,
            _ => {
                let bytes = bytes_below(&self.directory);
                *known = Some((Instant::now(), bytes));
                bytes
            }
        }
    }
}

fn cpu_us() -> Option<u64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name in parentheses may hold anything, so fields are counted behind it.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some(ticks * 1_000_000 / TICKS_PER_SECOND)
}

fn memory_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    let kib = line.split_whitespace().nth(1)?.parse::<u64>().ok()?;
    Some(kib * 1024)
}

fn bytes_below(directory: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(directory) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => bytes_below(&entry.path()),
            Ok(metadata) => metadata.len(),
            // It vanished between the two calls.
            Err(_) => 0,
        })
        .sum()
}
