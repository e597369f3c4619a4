//! The thread that writes: it alone touches the control plane's files, so a slow disk never holds up the runtime.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use openraft::storage::LogFlushed;
use tokio::sync::{mpsc, oneshot, watch};

use super::files::{Encoded, LogFiles};
use crate::control::files::checked as file;
use crate::control::files::{Disk, FileError};
use crate::control::raft::TypeConfig;

/// The most jobs that wait for the disk; one more waits for room.
const JOBS_MAX: usize = 64;

/// The most bytes of entries that are synced together.
const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Something to write, in the order of sending.
pub(in crate::control) enum Job {
    /// Entries; `flushed` is called when they are durable.
    Append { entries: Vec<Encoded>, flushed: LogFlushed<TypeConfig> },
    /// Removes the entries from this index on.
    Truncate { from: u64, reply: Reply },
    /// Removes the entries up to this index and keeps a mark.
    Purge { upto: u64, mark: Vec<u8>, reply: Reply },
    /// Replaces a small file.
    Replace { name: &'static str, content: Vec<u8>, reply: Reply },
}

type Reply = oneshot::Sender<Result<(), FileError>>;

/// Hands jobs to the thread.
#[derive(Clone, Debug)]
pub(in crate::control) struct Writer {
    jobs: mpsc::Sender<Job>,
    log_bytes: Arc<AtomicU64>,
    failed: watch::Receiver<Option<FileError>>,
}

impl Writer {
    /// Starts the thread, which ends when the last `Writer` is dropped and its jobs are done.
    pub(in crate::control) fn start<D: Disk>(log: LogFiles<D>) -> Result<(Self, JoinHandle<()>), FileError> {
        let (jobs, queue) = mpsc::channel(JOBS_MAX);
        let log_bytes = Arc::new(AtomicU64::new(log.bytes()));
        let (poisoned, failed) = watch::channel(None);
        let worker = Worker { log, poisoned, log_bytes: Arc::clone(&log_bytes) };
        let thread = std::thread::Builder::new()
            .name("kv-control-log".to_owned())
            .spawn(move || worker.run(queue))
            .map_err(|source| FileError::io("start the thread that writes", "the log".to_owned(), source))?;
        Ok((Self { jobs, log_bytes, failed }, thread))
    }

    /// Bytes of the log on disk.
    pub(in crate::control) fn log_bytes(&self) -> u64 {
        self.log_bytes.load(Ordering::Relaxed)
    }

    /// Set once a write has failed: nothing is written any more.
    pub(in crate::control) fn failed(&self) -> watch::Receiver<Option<FileError>> {
        self.failed.clone()
    }

    /// Hands over entries without waiting for the disk.
    pub(in crate::control) async fn append(
        &self,
        entries: Vec<Encoded>,
        flushed: LogFlushed<TypeConfig>,
    ) -> Result<(), FileError> {
        self.jobs.send(Job::Append { entries, flushed }).await.map_err(closed)
    }

    /// Returns when the removal is durable.
    pub(in crate::control) async fn truncate(&self, from: u64) -> Result<(), FileError> {
        self.ask(|reply| Job::Truncate { from, reply }).await
    }

    /// Returns when the removal is durable.
    pub(in crate::control) async fn purge(&self, upto: u64, mark: Vec<u8>) -> Result<(), FileError> {
        self.ask(|reply| Job::Purge { upto, mark, reply }).await
    }

    /// Returns when the file has durably been replaced.
    pub(in crate::control) async fn replace(&self, name: &'static str, content: Vec<u8>) -> Result<(), FileError> {
        self.ask(|reply| Job::Replace { name, content, reply }).await
    }

    async fn ask(&self, job: impl FnOnce(Reply) -> Job) -> Result<(), FileError> {
        let (reply, answer) = oneshot::channel();
        self.jobs.send(job(reply)).await.map_err(closed)?;
        answer.await.unwrap_or(Err(FileError::Closed))
    }
}

fn closed(_: mpsc::error::SendError<Job>) -> FileError {
    FileError::Closed
}

struct Worker<D> {
    log: LogFiles<D>,
    /// Set by the first failure. Nobody knows what the disk holds then, so nothing is written any more.
    poisoned: watch::Sender<Option<FileError>>,
    log_bytes: Arc<AtomicU64>,
}

impl<D: Disk> Worker<D> {
    fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        let mut next = None;
        while let Some(job) = next.take().or_else(|| queue.blocking_recv()) {
            match job {
                Job::Append { entries, flushed } => next = self.append(entries, flushed, &mut queue),
                Job::Truncate { from, reply } => self.answer(reply, |log| log.truncate(from)),
                Job::Purge { upto, mark, reply } => self.answer(reply, |log| log.purge(upto, &mark)),
                Job::Replace { name, content, reply } => {
                    self.answer(reply, |log| file::replace(log.disk(), name, &content));
                }
            }
            self.log_bytes.store(self.log.bytes(), Ordering::Relaxed);
        }
    }

    /// Appends the entries together with those that wait behind them. Returns a job that it took and did not do.
    fn append(
        &mut self,
        entries: Vec<Encoded>,
        flushed: LogFlushed<TypeConfig>,
        queue: &mut mpsc::Receiver<Job>,
    ) -> Option<Job> {
        let mut batch = entries;
        let mut waiting = vec![flushed];
        let mut next = None;
        while batch.iter().map(|(_, entry)| entry.len()).sum::<usize>() < BATCH_BYTES_MAX {
            match queue.try_recv() {
                Ok(Job::Append { entries, flushed }) => {
                    batch.extend(entries);
                    waiting.push(flushed);
                }
                Ok(other) => {
                    next = Some(other);
                    break;
                }
                Err(_) => break,
            }
        }
        let result = self.attempt(|log| log.append(&batch));
        for flushed in waiting {
            flushed.log_io_completed(result.clone().map_err(std::io::Error::other));
        }
        next
    }

    fn answer(&mut self, reply: Reply, write: impl FnOnce(&mut LogFiles<D>) -> Result<(), FileError>) {
        let result = self.attempt(write);
        // Nobody waits any more if the runtime is being shut down.
        reply.send(result).ok();
    }

    fn attempt(&mut self, write: impl FnOnce(&mut LogFiles<D>) -> Result<(), FileError>) -> Result<(), FileError> {
        if let Some(first) = &*self.poisoned.borrow() {
            return Err(FileError::Poisoned { reason: first.to_string() });
        }
        write(&mut self.log).inspect_err(|error| {
            tracing::error!(error = error as &dyn std::error::Error, "the control plane's files failed");
            self.poisoned.send_replace(Some(error.clone()));
        })
    }
}
