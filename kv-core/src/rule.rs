//! The protocol rules that a test can switch off one at a time, to show that the simulator's checkers notice.
//!
//! Without the feature `mutation` every rule holds and nothing can change that.

/// A rule of the protocol, named after the list in DESIGN (section "Protocol rules").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// D1: an answer that depends on a write waits until the write is durable.
    SyncBeforeReply,
    /// A1: the first dot after a boot has a fresh actor.
    FreshActorAfterBoot,
    /// A1: the first dot in a hint has a fresh actor.
    FreshActorPerHint,
    /// D2: a node whose store was lost is refilled before it acknowledges or answers.
    RefillLostStore,
    /// A2: replication sends the coordinator's whole merged record.
    WholeRecord,
    /// A read sends what it merged to the replicas that lack it.
    ReadRepair,
    /// A7: a request id that the record already carries gets no new dot.
    RememberRequests,
    /// A5: a hint stays until every current owner has confirmed it.
    KeepHintUntilConfirmed,
    /// E1: a layout is durable before the node acts on it.
    DurableLayout,
}

/// Which rules hold.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rules {
    #[cfg(feature = "mutation")]
    broken: Vec<Rule>,
}

impl Rules {
    /// Whether `rule` holds.
    #[cfg(feature = "mutation")]
    pub(crate) fn keep(&self, rule: Rule) -> bool {
        !self.broken.contains(&rule)
    }

    /// Whether `rule` holds: always.
    #[cfg(not(feature = "mutation"))]
    #[allow(clippy::unused_self, reason = "the signature is the same with the feature")]
    pub(crate) fn keep(&self, _rule: Rule) -> bool {
        true
    }

    #[cfg(feature = "mutation")]
    pub(crate) fn break_rule(&mut self, rule: Rule) {
        self.broken.push(rule);
    }
}
