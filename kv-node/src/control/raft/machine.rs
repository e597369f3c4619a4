//! The agreed state as the Raft engine sees it, its snapshots, and its publication.
//!
//! The working state is in memory: the last snapshot plus the entries behind it. The *published* state is what the
//! rest of the node acts on. It only moves forward, and it is on disk (in `newest`) before it is published, so a node
//! that starts again serves it at once: before there is a leader, and when there is none.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Cursor;
use std::sync::Arc;

use openraft::storage::RaftStateMachine;
use openraft::{AnyError, EmptyNode, EntryPayload, Membership, OptionalSend, RaftSnapshotBuilder};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::log::store::LogStore;
use super::log::writer::Writer;
use super::{Entry, LogId, Snapshot, SnapshotMeta, StorageError, StorageIoError, StoredMembership, TypeConfig};
use crate::control::files::checked as file;
use crate::control::files::{Disk, FileError};
use crate::control::peers::RaftId;
use crate::control::state::{ClusterState, Done, Outcome};

const SNAPSHOT: &str = "snapshot";
const NEWEST: &str = "newest";

/// The most bytes of a snapshot: a layout of 65,536 partitions has about 1 MiB.
pub(in crate::control) const SNAPSHOT_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// The state machine of one node.
#[derive(Debug)]
pub(in crate::control) struct Machine {
    shared: Arc<Mutex<Shared>>,
    snapshots: Gate,
    writer: Writer,
    published: Published,
}

/// Where the published state is read. It outlives the machine, which ends with a failed engine: what is known is
/// served on.
pub(in crate::control) type Published = Arc<watch::Sender<Arc<ClusterState>>>;

/// Held while the snapshot file is replaced: one that is being built never overwrites a newer one that arrives.
type Gate = Arc<tokio::sync::Mutex<()>>;

#[derive(Clone, Debug, Default)]
struct Shared {
    last_applied: Option<LogId>,
    membership: StoredMembership,
    state: ClusterState,
    snapshot: Option<SnapshotFile>,
}

/// The content of the snapshot file.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct SnapshotFile {
    meta: SnapshotMeta,
    /// A `ClusterState` in postcard.
    data: Vec<u8>,
}

/// What the disk held of the state.
#[derive(Debug, Default)]
pub(in crate::control) struct Stored {
    snapshot: Option<(SnapshotFile, ClusterState)>,
    /// The newest state that was ever published.
    pub(in crate::control) newest: ClusterState,
}

/// Reads the stored state.
pub(in crate::control) fn load<D: Disk>(disk: &mut D) -> Result<Stored, FileError> {
    // A damaged one is an error and not derived from the files beside it: the log does not say which of its entries were agreed
    // on, and the snapshot alone may be older than what this node has acted on. Both would make it go back, or ahead.
    let newest: ClusterState = file::value(disk, NEWEST)?.unwrap_or_default();
    let Some(snapshot) = file::value::<D, SnapshotFile>(disk, SNAPSHOT)? else {
        return Ok(Stored { snapshot: None, newest });
    };
    let state: ClusterState = postcard::from_bytes(&snapshot.data)
        .map_err(|error| FileError::Corrupt { path: disk.path(SNAPSHOT), reason: error.to_string() })?;
    // A crash may have come between the snapshot and the publication.
    let newest = if state.revision > newest.revision { state.clone() } else { newest };
    Ok(Stored { snapshot: Some((snapshot, state)), newest })
}

/// What a directory knows of the agreed state, whatever is missing or damaged in it.
#[derive(Debug, Default)]
pub(in crate::control) struct Found {
    /// The newest state.
    pub(in crate::control) state: Option<ClusterState>,
    /// The snapshot: its last entry of the log, who voted then, and the state.
    pub(in crate::control) snapshot: Option<(Option<LogId>, StoredMembership, ClusterState)>,
    /// What cannot be read, and why.
    pub(in crate::control) damaged: Vec<FileError>,
}

/// Looks for the newest agreed state among the files there are.
pub(in crate::control) fn find<D: Disk>(disk: &mut D) -> Found {
    let mut found = Found::default();
    match file::value::<D, ClusterState>(disk, NEWEST) {
        Ok(newest) => found.state = newest,
        Err(error) => found.damaged.push(error),
    }
    match file::value::<D, SnapshotFile>(disk, SNAPSHOT) {
        Ok(Some(snapshot)) => match postcard::from_bytes::<ClusterState>(&snapshot.data) {
            Ok(state) => {
                if found.state.as_ref().is_none_or(|newest| state.revision > newest.revision) {
                    found.state = Some(state.clone());
                }
                found.snapshot = Some((snapshot.meta.last_log_id, snapshot.meta.last_membership, state));
            }
            Err(error) => {
                found.damaged.push(FileError::Corrupt { path: disk.path(SNAPSHOT), reason: error.to_string() });
            }
        },
        Ok(None) => {}
        Err(error) => found.damaged.push(error),
    }
    found
}

/// Writes a state with which a group of one voter begins, as a snapshot up to the entry `first`.
pub(in crate::control) fn write_first<D: Disk>(
    disk: &mut D,
    state: &ClusterState,
    voter: RaftId,
    first: LogId,
) -> Result<(), FileError> {
    let nodes = BTreeMap::from([(voter, EmptyNode::new())]);
    let membership = Membership::new(vec![BTreeSet::from([voter])], nodes);
    let membership = StoredMembership::new(Some(first), membership);
    let meta = SnapshotMeta { last_log_id: Some(first), last_membership: membership, snapshot_id: first.to_string() };
    let snapshot = SnapshotFile { meta, data: file::encode(state)? };
    file::replace(disk, SNAPSHOT, &file::encode(&snapshot)?)?;
    file::replace(disk, NEWEST, &file::encode(state)?)
}

/// Sets the snapshot of a store that was given up aside. The newest state stays and is served.
pub(in crate::control) fn set_snapshot_aside<D: Disk>(disk: &mut D, prefix: &str) -> Result<(), FileError> {
    file::set_aside(disk, SNAPSHOT, prefix)
}

impl Machine {
    /// A state machine that starts with what was stored; `log` writes its files.
    pub(in crate::control) fn new(stored: Stored, log: &LogStore) -> (Self, Published) {
        let published = Arc::new(watch::Sender::new(Arc::new(stored.newest)));
        let shared = stored.snapshot.map_or_else(Shared::default, |(snapshot, state)| Shared {
            last_applied: snapshot.meta.last_log_id,
            membership: snapshot.meta.last_membership.clone(),
            state,
            snapshot: Some(snapshot),
        });
        let shared = Arc::new(Mutex::new(shared));
        let machine = Self {
            shared,
            snapshots: Gate::default(),
            writer: log.writer().clone(),
            published: Arc::clone(&published),
        };
        (machine, published)
    }

    /// Makes the working state durable and then visible, if it is newer than what is visible.
    async fn publish(&self) -> Result<(), FileError> {
        let state = {
            let shared = self.shared.lock();
            if shared.state.revision <= self.published.borrow().revision {
                return Ok(());
            }
            shared.state.clone()
        };
        self.writer.replace(NEWEST, file::encode(&state)?).await?;
        self.published.send_replace(Arc::new(state));
        Ok(())
    }
}

fn snapshot_failed(error: &FileError) -> StorageError {
    StorageIoError::write_snapshot(None, AnyError::new(error)).into()
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        let shared = self.shared.lock();
        Ok((shared.last_applied, shared.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Outcome>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let outcomes = {
            let mut shared = self.shared.lock();
            let mut outcomes = Vec::new();
            for entry in entries {
                shared.last_applied = Some(entry.log_id);
                outcomes.push(match entry.payload {
                    EntryPayload::Blank => Outcome::Done(Done::Nothing),
                    EntryPayload::Normal(proposal) => shared.state.apply(proposal),
                    EntryPayload::Membership(membership) => {
                        shared.membership = StoredMembership::new(Some(entry.log_id), membership);
                        Outcome::Done(Done::Nothing)
                    }
                });
            }
            outcomes
        };
        self.publish().await.map_err(|error| StorageIoError::write_state_machine(AnyError::new(&error)))?;
        Ok(outcomes)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder {
            view: self.shared.lock().clone(),
            shared: Arc::clone(&self.shared),
            snapshots: Arc::clone(&self.snapshots),
            writer: self.writer.clone(),
        }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError> {
        let data = snapshot.into_inner();
        let state: ClusterState = postcard::from_bytes(&data).map_err(|error| {
            StorageIoError::read_snapshot(Some(meta.signature()), AnyError::error(error.to_string()))
        })?;
        let snapshot = SnapshotFile { meta: meta.clone(), data };
        let content = file::encode(&snapshot).map_err(|error| snapshot_failed(&error))?;
        let _gate = self.snapshots.lock().await;
        self.writer.replace(SNAPSHOT, content).await.map_err(|error| snapshot_failed(&error))?;
        *self.shared.lock() = Shared {
            last_applied: meta.last_log_id,
            membership: meta.last_membership.clone(),
            state,
            snapshot: Some(snapshot),
        };
        self.publish().await.map_err(|error| snapshot_failed(&error))
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, StorageError> {
        let shared = self.shared.lock();
        Ok(shared.snapshot.as_ref().map(|snapshot| Snapshot {
            meta: snapshot.meta.clone(),
            snapshot: Box::new(Cursor::new(snapshot.data.clone())),
        }))
    }
}

/// Writes a snapshot of the state at the moment of its creation.
#[derive(Debug)]
pub(in crate::control) struct Builder {
    view: Shared,
    shared: Arc<Mutex<Shared>>,
    snapshots: Gate,
    writer: Writer,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot, StorageError> {
        let data = file::encode(&self.view.state).map_err(|error| snapshot_failed(&error))?;
        let id = self.view.last_applied.map_or_else(|| "empty".to_owned(), |last| last.to_string());
        let meta = SnapshotMeta {
            last_log_id: self.view.last_applied,
            last_membership: self.view.membership.clone(),
            snapshot_id: id,
        };
        let snapshot = SnapshotFile { meta: meta.clone(), data: data.clone() };
        let content = file::encode(&snapshot).map_err(|error| snapshot_failed(&error))?;
        let _gate = self.snapshots.lock().await;
        if let Some(current) = &self.shared.lock().snapshot
            && current.meta.last_log_id > meta.last_log_id
        {
            let current = current.clone();
            return Ok(Snapshot { meta: current.meta, snapshot: Box::new(Cursor::new(current.data)) });
        }
        self.writer.replace(SNAPSHOT, content).await.map_err(|error| snapshot_failed(&error))?;
        self.shared.lock().snapshot = Some(snapshot);
        Ok(Snapshot { meta, snapshot: Box::new(Cursor::new(data)) })
    }
}
