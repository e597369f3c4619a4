//! The threads of the store: one commits batches in groups, two read. None of them ever makes the loop wait.

use std::sync::Arc;
use std::sync::mpsc as sync;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kv_core::error::StorageError;
use kv_core::node::ReadId;
use kv_core::storage::{Batch, Committer, PartitionStats, Reader, Slice, SliceRequest, Stats, StorageKey, Write};
use kv_core::types::{PartitionId, Seq};
use tokio::sync::{mpsc, oneshot};

use super::room::StoreRoom;

/// The most batches in one commit.
const GROUP_BATCHES_MAX: usize = 1024;

/// A commit is closed when its writes reach this many bytes, so that none takes long: whatever is in it, and what has come since,
/// waits until all of it is synced.
const GROUP_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What the threads report to the loop.
#[derive(Debug)]
pub(super) enum Done {
    Persisted {
        seq: Seq,
        batches: u64,
        took: Duration,
    },
    Failed(StorageError),
    Read {
        read: ReadId,
        result: Result<Option<Bytes>, StorageError>,
    },
    Slice {
        read: ReadId,
        result: Result<Slice, StorageError>,
    },
    Leaves {
        read: ReadId,
        stats: PartitionStats,
    },
    Reclaimed(Result<(), StorageError>),
    CaughtUp(Result<(), StorageError>),
    /// The committing thread has ended; everything given to it is durable, unless it failed.
    Ended,
}

/// The jobs of the committing thread.
enum Commit {
    Batch {
        seq: Seq,
        batch: Batch,
    },
    Stats(oneshot::Sender<Arc<Stats>>),
    /// The statistics of one partition behind the next commit.
    Leaves {
        read: ReadId,
        partition: PartitionId,
    },
    /// Nothing follows.
    End,
}

/// Reads for a reading thread.
pub(super) enum Job {
    Get { read: ReadId, key: StorageKey },
    Slice { read: ReadId, request: SliceRequest },
    Reclaim { bytes: u64 },
    CatchUp,
}

/// Asks the committing thread for its statistics.
#[derive(Clone, Debug)]
pub(super) struct Handle {
    commits: sync::Sender<Commit>,
}

impl Handle {
    /// The statistics between two commits.
    pub(super) fn stats(&self) -> oneshot::Receiver<Arc<Stats>> {
        let (reply, answer) = oneshot::channel();
        // If the thread has ended, dropping the sender says so.
        drop(self.commits.send(Commit::Stats(reply)));
        answer
    }
}

/// The loop's ends of the channels to the threads.
pub(super) struct Storage {
    commits: sync::Sender<Commit>,
    gets: sync::Sender<Job>,
    slices: sync::Sender<Job>,
    reclaims: sync::Sender<Job>,
    /// Bytes given to the committing thread that are not durable.
    pending: std::collections::VecDeque<(Seq, usize)>,
    pending_bytes: usize,
    room: Arc<StoreRoom>,
    /// The committing thread ends when the store has failed. The loop continues, and says so.
    _done: mpsc::UnboundedSender<Done>,
}

impl Storage {
    /// Starts the threads. What they finish goes to `done`; what was read goes to `read`, and the threads that read wait
    /// while nobody takes it.
    pub(super) fn start<R: Reader, C: Committer>(
        reader: &R,
        committer: C,
        done: mpsc::UnboundedSender<Done>,
        read: mpsc::Sender<Done>,
        room: Arc<StoreRoom>,
    ) -> Result<Self, StorageError> {
        let (commits, inbox) = sync::channel();
        let to_loop = done.clone();
        spawn("kv-commit", move || commit_all(committer, &inbox, &to_loop))?;
        let reading = |name: &'static str| {
            let (jobs, inbox) = sync::channel();
            let (reader, done) = (reader.clone(), read.clone());
            spawn(name, move || read_all(&reader, &inbox, &done)).map(|()| jobs)
        };
        // Slices are long: they have a thread of their own, so that no get waits behind one.
        let gets = reading("kv-read")?;
        let slices = reading("kv-slice")?;
        let reclaims = reading("kv-reclaim")?;
        let pending = std::collections::VecDeque::new();
        Ok(Self { commits, gets, slices, reclaims, pending, pending_bytes: 0, room, _done: done })
    }

    pub(super) fn handle(&self) -> Handle {
        Handle { commits: self.commits.clone() }
    }

    // A thread that has ended has reported it to the loop: nothing is lost silently when a send fails.

    pub(super) fn persist(&mut self, seq: Seq, batch: Batch) {
        let bytes = bytes_of(&batch);
        self.pending.push_back((seq, bytes));
        self.pending_bytes += bytes;
        self.room.set_pending(self.pending_bytes);
        drop(self.commits.send(Commit::Batch { seq, batch }));
    }

    pub(super) fn persisted(&mut self, seq: Seq) {
        while let Some(&(first, bytes)) = self.pending.front()
            && first <= seq
        {
            self.pending.pop_front();
            self.pending_bytes -= bytes;
        }
        self.room.set_pending(self.pending_bytes);
    }

    /// Lets the threads end, the committing one behind everything that was given to it.
    pub(super) fn end(self) {
        drop(self.commits.send(Commit::End));
    }

    /// Bytes on their way to the disk.
    pub(super) fn pending_bytes(&self) -> usize {
        self.pending_bytes
    }

    pub(super) fn get(&self, read: ReadId, key: StorageKey) {
        drop(self.gets.send(Job::Get { read, key }));
    }

    pub(super) fn leaves(&self, read: ReadId, partition: PartitionId) {
        drop(self.commits.send(Commit::Leaves { read, partition }));
    }

    pub(super) fn slice(&self, read: ReadId, request: SliceRequest) {
        drop(self.slices.send(Job::Slice { read, request }));
    }

    pub(super) fn catch_up(&self) {
        drop(self.reclaims.send(Job::CatchUp));
    }

    pub(super) fn reclaim(&self, bytes: u64) {
        drop(self.reclaims.send(Job::Reclaim { bytes }));
    }
}

fn spawn(name: &'static str, body: impl FnOnce() + Send + 'static) -> Result<(), StorageError> {
    thread::Builder::new().name(name.to_owned()).spawn(body).map(drop).map_err(|source| StorageError::Io {
        action: "start a thread",
        path: name.to_owned(),
        source,
    })
}

fn bytes_of(batch: &Batch) -> usize {
    let bytes = |write: &Write| match write {
        Write::Record { key, value, .. } => key.as_bytes().len() + value.as_ref().map_or(0, Bytes::len),
        Write::Meta { name, value } => name.len() + value.as_ref().map_or(0, Bytes::len),
    };
    // Every write has some weight, so that the bound also bounds their number.
    batch.writes.iter().map(|write| bytes(write) + 64).sum()
}

/// Group commit: whatever has come in while the last commit was being synced is committed together.
fn commit_all<C: Committer>(mut committer: C, inbox: &sync::Receiver<Commit>, done: &mpsc::UnboundedSender<Done>) {
    let mut batches = Vec::new();
    let mut asked = Vec::new();
    let mut leaves = Vec::new();
    while let Ok(first) = inbox.recv() {
        let mut through = None;
        let mut bytes = 0;
        let mut end = false;
        let mut next = Some(first);
        while let Some(commit) = next {
            match commit {
                Commit::Batch { seq, batch } => {
                    bytes += bytes_of(&batch);
                    batches.push(batch);
                    through = Some(seq);
                }
                Commit::Stats(reply) => asked.push(reply),
                Commit::Leaves { read, partition } => leaves.push((read, partition)),
                Commit::End => end = true,
            }
            let full = end || batches.len() >= GROUP_BATCHES_MAX || bytes >= GROUP_BYTES_MAX;
            next = if full { None } else { inbox.try_recv().ok() };
        }
        if let Some(seq) = through {
            let count = batches.len() as u64;
            let began = Instant::now();
            let outcome = committer.commit(&batches, seq);
            let took = began.elapsed();
            batches.clear();
            let failed = outcome.is_err();
            let message = outcome.map_or_else(Done::Failed, |()| Done::Persisted { seq, batches: count, took });
            if done.send(message).is_err() || failed {
                break;
            }
        }
        for (read, partition) in leaves.drain(..) {
            let stats = committer.stats().partition(partition).cloned().unwrap_or_default();
            // Should the loop have gone, the next commit ends the thread.
            drop(done.send(Done::Leaves { read, stats }));
        }
        if !asked.is_empty() {
            let stats = Arc::new(committer.stats().clone());
            for reply in asked.drain(..) {
                drop(reply.send(Arc::clone(&stats)));
            }
        }
        if end {
            break;
        }
    }
    drop(committer);
    drop(done.send(Done::Ended));
}

fn read_all<R: Reader>(reader: &R, inbox: &sync::Receiver<Job>, done: &mpsc::Sender<Done>) {
    while let Ok(job) = inbox.recv() {
        let message = match job {
            Job::Get { read, key } => Done::Read { read, result: reader.get(&key) },
            Job::Slice { read, request } => Done::Slice { read, result: reader.slice(&request) },
            Job::Reclaim { bytes } => Done::Reclaimed(reader.reclaim(bytes)),
            Job::CatchUp => Done::CaughtUp(reader.catch_up()),
        };
        if done.blocking_send(message).is_err() {
            break;
        }
    }
}
