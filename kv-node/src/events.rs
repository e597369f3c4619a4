//! What happened on this node: a bounded memory of events, and a signal for those who follow them.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use kv_core::types::WallTime;
use kv_proto::v1::{self, Severity};
use tokio::sync::watch;

/// Events that are kept.
pub const EVENTS_MAX: usize = 4096;

/// The events of one node.
#[derive(Debug)]
pub struct Events {
    kept: Mutex<VecDeque<v1::Event>>,
    /// The sequence number of the newest event; 0: there is none.
    newest: watch::Sender<u64>,
}

/// Something to remember.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEvent {
    /// How much it matters.
    pub severity: Severity,
    /// What kind of event, in lower case with hyphens.
    pub kind: &'static str,
    /// For people.
    pub message: String,
    /// The command that undoes it; empty if there is none.
    pub undo: String,
}

impl Events {
    /// No events yet.
    #[must_use]
    pub fn new() -> Self {
        Self { kept: Mutex::default(), newest: watch::Sender::new(0) }
    }

    /// Remembers an event, and logs it. The oldest one makes room.
    pub fn add(&self, node: u64, at: WallTime, event: NewEvent) {
        let NewEvent { severity, kind, message, undo } = event;
        match severity {
            Severity::Error => tracing::error!(event = kind, "{message}"),
            Severity::Warning => tracing::warn!(event = kind, "{message}"),
            Severity::Info | Severity::Unspecified => tracing::info!(event = kind, "{message}"),
        }
        let mut kept = self.kept();
        let sequence = *self.newest.borrow() + 1;
        if kept.len() >= EVENTS_MAX {
            kept.pop_front();
        }
        kept.push_back(v1::Event {
            sequence,
            time_us: at.0,
            node,
            severity: severity.into(),
            kind: kind.to_owned(),
            message,
            undo,
        });
        drop(kept);
        self.newest.send_replace(sequence);
    }

    /// The kept events with higher sequence numbers than `after`, oldest first.
    #[must_use]
    pub fn after(&self, after: u64) -> Vec<v1::Event> {
        self.kept().iter().filter(|event| event.sequence > after).cloned().collect()
    }

    /// Changes when there is a newer event.
    #[must_use]
    pub fn newest(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<v1::Event>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Events {
    fn default() -> Self {
        Self::new()
    }
}

impl From<kv_core::event::Event> for NewEvent {
    fn from(event: kv_core::event::Event) -> Self {
        use kv_core::event::Event as Core;
        let (severity, kind) = match &event {
            Core::PeerUp { .. } => (Severity::Info, "peer-up"),
            Core::PeerDown { .. } => (Severity::Warning, "peer-down"),
            Core::PeerStoreReplaced { .. } => (Severity::Warning, "peer-store-replaced"),
            Core::LayoutAdopted { .. } => (Severity::Info, "layout-adopted"),
            Core::RefillStarted { .. } => (Severity::Warning, "refill-started"),
            Core::RefillDone { .. } => (Severity::Info, "refill-done"),
            Core::CopyStarted { .. } => (Severity::Info, "copy-started"),
            Core::CopyRetried { .. } => (Severity::Info, "copy-retried"),
            Core::CopyDone { .. } => (Severity::Info, "copy-done"),
            Core::ResidueDropped { .. } => (Severity::Info, "residue-dropped"),
            Core::Repaired { .. } => (Severity::Info, "repaired"),
            Core::Compared { .. } => (Severity::Info, "compared"),
            Core::HandedOff { .. } => (Severity::Info, "handed-off"),
            Core::ReadRepaired { .. } => (Severity::Info, "read-repaired"),
            Core::Swept { .. } => (Severity::Info, "swept"),
            Core::KeyspacesRemoved { .. } => (Severity::Info, "keyspaces-removed"),
            Core::Damaged { .. } => (Severity::Error, "record-damaged"),
            Core::Poisoned { .. } => (Severity::Error, "store-failed"),
        };
        Self { severity, kind, message: event.to_string(), undo: String::new() }
    }
}
