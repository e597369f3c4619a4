//! What happened on this node: a bounded memory of events, and a signal for those who follow them.
//!
//! Changes of the cluster are not among them: they are durable, and the same on every node (`control::AuditTrail`).

use std::collections::{BTreeMap, VecDeque};

use kv_core::types::WallTime;
use kv_proto::v1::{self, EventKind, Severity};
use parking_lot::Mutex;
use tokio::sync::watch;

/// Events of each kind that are kept. An operation reports every partition several times, which must not push out what
/// happens once; there are some thirty kinds.
pub const EVENTS_OF_KIND_MAX: usize = 256;

/// The events of one node.
#[derive(Debug)]
pub struct Events {
    kept: Mutex<Kept>,
    /// The sequence number of the newest event; 0: there is none.
    newest: watch::Sender<u64>,
}

/// The newest events of each kind, oldest first.
type Kept = BTreeMap<EventKind, VecDeque<v1::Event>>;

/// Something to remember.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewEvent {
    /// How much it matters.
    pub severity: Severity,
    /// What kind of event.
    pub kind: EventKind,
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

    /// Remembers an event, and logs it. The oldest one of its kind makes room.
    pub fn add(&self, node: u64, at: WallTime, event: NewEvent) {
        let NewEvent { severity, kind, message, undo } = event;
        match severity {
            Severity::Error => tracing::error!(event = kind.word(), "{message}"),
            Severity::Warning => tracing::warn!(event = kind.word(), "{message}"),
            Severity::Info | Severity::Unspecified => tracing::info!(event = kind.word(), "{message}"),
        }
        let mut kept = self.kept.lock();
        let sequence = *self.newest.borrow() + 1;
        let of_kind = kept.entry(kind).or_default();
        if of_kind.len() >= EVENTS_OF_KIND_MAX {
            of_kind.pop_front();
        }
        of_kind.push_back(v1::Event {
            sequence,
            time_us: at.0,
            node,
            severity: severity.into(),
            kind: kind.into(),
            message,
            undo,
            audit: None,
        });
        drop(kept);
        self.newest.send_replace(sequence);
    }

    /// The kept events with higher sequence numbers than `after`, oldest first.
    #[must_use]
    pub fn after(&self, after: u64) -> Vec<v1::Event> {
        let is_newer = |event: &&v1::Event| event.sequence > after;
        let mut events: Vec<v1::Event> = self.kept.lock().values().flatten().filter(is_newer).cloned().collect();
        events.sort_by_key(|event| event.sequence);
        events
    }

    /// Changes when there is a newer event.
    #[must_use]
    pub fn newest(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
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
            Core::PeerUp { .. } => (Severity::Info, EventKind::PeerUp),
            Core::PeerDown { .. } => (Severity::Warning, EventKind::PeerDown),
            Core::PeerStoreReplaced { .. } => (Severity::Warning, EventKind::PeerStoreReplaced),
            Core::LayoutAdopted { .. } => (Severity::Info, EventKind::LayoutAdopted),
            Core::RefillStarted { .. } => (Severity::Warning, EventKind::RefillStarted),
            Core::RefillDone { .. } => (Severity::Info, EventKind::RefillDone),
            Core::CopyStarted { .. } => (Severity::Info, EventKind::CopyStarted),
            Core::CopyRetried { .. } => (Severity::Info, EventKind::CopyRetried),
            Core::CopyDone { .. } => (Severity::Info, EventKind::CopyDone),
            Core::ResidueDropped { .. } => (Severity::Info, EventKind::ResidueDropped),
            Core::Repaired { .. } => (Severity::Info, EventKind::Repaired),
            Core::Compared { .. } => (Severity::Info, EventKind::Compared),
            Core::HandedOff { .. } => (Severity::Info, EventKind::HandedOff),
            Core::ReadRepaired { .. } => (Severity::Info, EventKind::ReadRepaired),
            Core::Swept { .. } => (Severity::Info, EventKind::Swept),
            Core::Collected { .. } => (Severity::Info, EventKind::Collected),
            Core::SettlingHindered { .. } => (Severity::Info, EventKind::SettlingHindered),
            Core::ClockOff { .. } => (Severity::Error, EventKind::ClockOff),
            Core::ClockRight => (Severity::Info, EventKind::ClockRight),
            Core::SetAside { .. } => (Severity::Warning, EventKind::SetAside),
            Core::KeyspacesRemoved { .. } => (Severity::Info, EventKind::KeyspacesRemoved),
            Core::Damaged { .. } => (Severity::Error, EventKind::RecordDamaged),
            Core::Poisoned { .. } => (Severity::Error, EventKind::StoreFailed),
        };
        Self { severity, kind, message: event.to_string(), undo: String::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: EventKind, number: usize) -> NewEvent {
        NewEvent { severity: Severity::Info, kind, message: number.to_string(), undo: String::new() }
    }

    #[test]
    fn details_of_an_operation_push_nothing_else_out() {
        let events = Events::new();
        events.add(1, WallTime(1), event(EventKind::Serving, 0));
        for number in 0..EVENTS_OF_KIND_MAX + 10 {
            events.add(1, WallTime(2), event(EventKind::CopyStarted, number));
            events.add(1, WallTime(2), event(EventKind::CopyDone, number));
        }
        let kept = events.after(0);
        assert_eq!(kept.len(), 1 + 2 * EVENTS_OF_KIND_MAX, "bounded for each kind");
        assert_eq!(kept[0].kind(), EventKind::Serving);
        assert!(kept.is_sorted_by_key(|event| event.sequence));
        assert_eq!(kept[1].message, "10", "the oldest of a kind makes room");
        let newest = *events.newest().borrow();
        assert_eq!(
            events.after(newest - 2).iter().map(|event| event.kind()).collect::<Vec<_>>(),
            [EventKind::CopyStarted, EventKind::CopyDone]
        );
    }
}
