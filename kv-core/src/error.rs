//! Errors: a coarse kind that tells the caller what to do, and a message that names the problem, the limit and the remedy.

use serde::{Deserialize, Serialize};

use crate::types::{Hlc, Seq};

/// What the caller of a failed request should do. Each kind has one status code on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// The request is wrong and will never succeed as it is.
    Invalid,
    /// Something that the request names does not exist.
    NotFound,
    /// Not enough replicas can be reached, and nothing was done: try again later.
    Unavailable,
    /// The outcome is unknown: the write may or may not take effect. Repeating it with the same request id is safe.
    Unknown,
    /// A bound was reached and nothing was done: slow down, or free what is full.
    Exhausted,
    /// The request was routed by an outdated layout, and nothing was done: learn the newer one and try again.
    StaleEpoch,
    /// Stored data is damaged.
    Corrupt,
    /// The node's store failed; the node has stopped serving.
    Poisoned,
    /// A condition does not hold, or what the request was made for has changed since: look again, then decide again.
    Conflict,
}

/// Why a request was not served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct RequestError {
    /// What to do.
    pub kind: Kind,
    /// For people: the problem, the limit and the remedy.
    pub message: String,
    /// Of a write that was refused for its stamp: its client draws a new request id with a stamp above this, and tries again
    /// (rule A7). 0: there is nothing to draw.
    pub newest: Hlc,
}

impl RequestError {
    /// An error of `kind`.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), newest: Hlc::default() }
    }

    /// A write whose stamp does not do: nothing was done, and another one above `newest` would.
    pub fn stamp(newest: Hlc, message: impl Into<String>) -> Self {
        Self { newest, ..Self::new(Kind::Conflict, message) }
    }

    /// Whether the request wants another stamp, and nothing was done.
    #[must_use]
    pub fn wants_stamp(&self) -> bool {
        self.kind == Kind::Conflict && self.newest > Hlc::default()
    }

    /// A wrong request.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, message)
    }

    /// Not enough replicas.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Kind::Unavailable, message)
    }

    /// A bound was reached.
    pub fn exhausted(message: impl Into<String>) -> Self {
        Self::new(Kind::Exhausted, message)
    }

    /// A condition that does not hold.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(Kind::Conflict, message)
    }

    /// Whether nothing was done, so that even a request without an id may be repeated.
    #[must_use]
    pub fn is_safe_to_retry(&self) -> bool {
        matches!(self.kind, Kind::Unavailable | Kind::Exhausted | Kind::StaleEpoch) || self.wants_stamp()
    }
}

impl StorageError {
    /// Whether the process or the system had no file descriptor left: nothing is wrong with the store.
    #[must_use]
    pub fn is_out_of_descriptors(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_out_of_descriptors(source))
    }
}

/// Why a store could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// Another process has the directory open.
    #[error("{path} is in use by another process; stop that process, or give this node another data directory")]
    Locked {
        /// The directory.
        path: String,
    },
    /// The directory holds something else.
    #[error("{path} is not a kv store: {reason}; give the node an empty directory, or the one it used before")]
    NotAStore {
        /// The directory.
        path: String,
        /// What was found.
        reason: String,
    },
    /// The store was written by a build that this one cannot read.
    #[error(
        "{path} has format {found}, this build reads format {supported}; run it with the build that wrote it, or upgrade"
    )]
    Format {
        /// The directory.
        path: String,
        /// The format number found.
        found: u32,
        /// The format number that this build reads.
        supported: u32,
    },
    /// The store belongs to another cluster.
    #[error(
        "{path} belongs to cluster {found}, not to {expected}; start the node with the data directory of this cluster, \
         or with an empty one"
    )]
    OtherCluster {
        /// The directory.
        path: String,
        /// The cluster that the store belongs to.
        found: crate::types::ClusterId,
        /// The cluster that the node wants to join.
        expected: crate::types::ClusterId,
    },
    /// The device is full.
    #[error("the disk that holds {path} is full; free space there and restart the node: nothing acknowledged is lost")]
    Full {
        /// The directory.
        path: String,
    },
    /// A stored value fails its check.
    #[error(
        "{what} is damaged: {reason}; the copy on another replica can replace it (repair), other keys are not affected"
    )]
    Corrupt {
        /// What is damaged.
        what: String,
        /// Which check failed.
        reason: String,
    },
    /// Files of the store are damaged, missing, or not those that were written.
    #[error(
        "{path} is damaged: {reason}; nothing was changed: restore the file if you can, otherwise give the node an empty \
         data directory, and the cluster refills it"
    )]
    Damaged {
        /// The file or directory.
        path: String,
        /// What was found.
        reason: String,
    },
    /// The store is older than it should be: writes that it confirmed are missing.
    #[error(
        "{path} was rolled back: {what}; put the newest state back, or start the node once with the store renewed: it \
         keeps this data under a new store id and is refilled by the cluster before it answers"
    )]
    RolledBack {
        /// The directory.
        path: String,
        /// How that shows.
        what: String,
    },
    /// Flushes or compactions have fallen behind and do not catch up.
    #[error(
        "the storage engine at {path} has not caught up in {waited_ms} ms ({sealed} memtables to flush, {runs} runs to \
         compact); look for a slow or failing disk, then restart the node: nothing acknowledged is lost"
    )]
    Stalled {
        /// The directory.
        path: String,
        /// How long a commit has waited, in milliseconds.
        waited_ms: u64,
        /// Memtables that wait to be flushed.
        sealed: usize,
        /// Runs of tables that wait to be compacted.
        runs: usize,
    },
    /// An earlier commit failed.
    #[error(
        "the store stopped at batch {at} after a failed write; restart the node, which reads the truth back from the disk"
    )]
    Poisoned {
        /// The last batch of the commit that failed.
        at: Seq,
    },
    /// The operating system reports a failure.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or directory.
        path: String,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// The engine reports a failure of another kind.
    #[error(
        "the storage engine failed at {path}: {reason}; restart the node, and if it happens again, replace the disk and refill the node"
    )]
    Engine {
        /// The directory.
        path: String,
        /// What the engine says.
        reason: String,
    },
}

/// Whether the process or the system has no file descriptor left: nothing was done, and it passes.
#[must_use]
pub fn is_out_of_descriptors(error: &std::io::Error) -> bool {
    /// The same on every Unix.
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    cfg!(unix) && matches!(error.raw_os_error(), Some(ENFILE | EMFILE))
}
