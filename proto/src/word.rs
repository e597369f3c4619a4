//! The words that people and programs see for enums of the wire: in lower case, with hyphens.

use crate::v1::{EventKind, OperationKind};

impl EventKind {
    /// Its word; `unknown` for a kind of a later release.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Unspecified => "unknown",
            Self::PeerUp => "peer-up",
            Self::PeerDown => "peer-down",
            Self::PeerStoreReplaced => "peer-store-replaced",
            Self::LayoutAdopted => "layout-adopted",
            Self::RefillStarted => "refill-started",
            Self::RefillDone => "refill-done",
            Self::CopyStarted => "copy-started",
            Self::CopyRetried => "copy-retried",
            Self::CopyDone => "copy-done",
            Self::ResidueDropped => "residue-dropped",
            Self::Repaired => "repaired",
            Self::Compared => "compared",
            Self::HandedOff => "handed-off",
            Self::ReadRepaired => "read-repaired",
            Self::Swept => "swept",
            Self::KeyspacesRemoved => "keyspaces-removed",
            Self::Collected => "collected",
            Self::SettlingHindered => "settling-hindered",
            Self::ClockOff => "clock-off",
            Self::ClockRight => "clock-right",
            Self::SetAside => "set-aside",
            Self::RecordDamaged => "record-damaged",
            Self::StoreFailed => "store-failed",
            Self::Serving => "serving",
            Self::ControlFailed => "control-failed",
            Self::Liveness => "liveness",
            Self::TransferStalled => "transfer-stalled",
            Self::DiskShort => "disk-short",
            Self::DiskRoom => "disk-room",
            Self::RepairBegun => "repair-begun",
            Self::FaultsSet => "faults-set",
            Self::FaultsEnded => "faults-ended",
            Self::ClusterFounded => "cluster-founded",
            Self::ClusterFormed => "cluster-formed",
            Self::MemberJoined => "member-joined",
            Self::MemberMoved => "member-moved",
            Self::StoreReplaced => "store-replaced",
            Self::MemberLeft => "member-left",
            Self::KeyspaceCreated => "keyspace-created",
            Self::KeyspaceDropped => "keyspace-dropped",
            Self::OperationBegun => "operation-begun",
            Self::OperationPaused => "operation-paused",
            Self::OperationResumed => "operation-resumed",
            Self::OperationRetried => "operation-retried",
            Self::OperationCancelled => "operation-cancelled",
            Self::OperationDone => "operation-done",
            Self::ThrottleChanged => "throttle-changed",
            Self::GenerationFounded => "generation-founded",
            Self::MemberRejoined => "member-rejoined",
        }
    }
}

impl OperationKind {
    /// Its word, which is that of the command language; `unknown` for a kind of a later release.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Unspecified => "unknown",
            Self::Add => "add",
            Self::Remove => "remove",
            Self::Replace => "replace",
            Self::Copies => "copies",
            Self::Weight => "weight",
            Self::Zone => "zone",
            Self::Rebalance => "rebalance",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_the_names_of_the_wire() {
        let word = |name: &str, prefix: &str| name.trim_start_matches(prefix).to_lowercase().replace('_', "-");
        let events: Vec<EventKind> = (1..128).filter_map(|number| EventKind::try_from(number).ok()).collect();
        assert_eq!(events.len(), 49);
        for kind in events {
            assert_eq!(kind.word(), word(kind.as_str_name(), "EVENT_KIND_"));
        }
        for kind in (1..8).filter_map(|number| OperationKind::try_from(number).ok()) {
            assert_eq!(kind.word(), word(kind.as_str_name(), "OPERATION_KIND_"));
        }
    }
}
