//! Who was refused as a peer, and why: for the log, for metrics and for `status`.
//!
//! Whoever is refused may say any name. So what is remembered has bounds, and what `status` tells is taken from it only for
//! members that do not answer otherwise.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use kv_core::types::StoreId;
use parking_lot::Mutex;

/// Stores of which it is remembered that they were refused. One more replaces the one that was refused longest ago.
const STORES_MAX: usize = 256;

/// For how long a refusal is told. Who is refused tries again every second.
const TOLD_FOR: Duration = Duration::from_secs(10);

/// Different messages that are written in a window. Further ones are counted together: each could have another name.
const DIFFERENT_MAX: usize = 32;
const WINDOW: Duration = Duration::from_secs(60);

/// Why a peer was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// One end has a secret and the other shows none.
    NoSecret,
    /// The two ends have no secret in common.
    WrongSecret,
    /// It belongs to another cluster.
    OtherCluster,
    /// It is no member, as far as this node knows.
    NotMember,
    /// It is a member with another store, as far as this node knows.
    OtherStore,
    /// It runs an older copy of its store, or says so of this node.
    OlderCopy,
    /// It says on a connection that it is somebody else than who opened it, or uses it for something else.
    OtherIdentity,
    /// What it sent cannot be read, or has another version.
    Malformed,
    /// Its settings are not those of this node.
    OtherSettings,
    /// It belongs to another generation of the cluster.
    OtherGeneration,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::NoSecret,
        Self::WrongSecret,
        Self::OtherCluster,
        Self::NotMember,
        Self::OtherStore,
        Self::OlderCopy,
        Self::OtherIdentity,
        Self::Malformed,
        Self::OtherSettings,
        Self::OtherGeneration,
    ];

    /// The reason as metrics name it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NoSecret => "no-secret",
            Self::WrongSecret => "wrong-secret",
            Self::OtherCluster => "other-cluster",
            Self::NotMember => "not-member",
            Self::OtherStore => "other-store",
            Self::OlderCopy => "older-copy",
            Self::OtherIdentity => "other-identity",
            Self::Malformed => "malformed",
            Self::OtherSettings => "other-settings",
            Self::OtherGeneration => "other-generation",
        }
    }
}

/// What was refused.
#[derive(Debug, Default)]
pub struct Refusals {
    counts: [AtomicU64; Reason::ALL.len()],
    latest: Mutex<BTreeMap<StoreId, (Instant, String)>>,
    written: Mutex<Written>,
}

/// The messages of a while.
#[derive(Debug, Default)]
struct Written {
    began: Option<Instant>,
    texts: std::collections::BTreeSet<String>,
}

impl Written {
    /// Whether a message may be written as it is.
    fn takes(&mut self, text: &str, now: Instant) -> bool {
        if self.began.is_none_or(|began| now.duration_since(began) >= WINDOW) {
            (self.began, self.texts) = (Some(now), std::collections::BTreeSet::new());
        }
        if self.texts.contains(text) {
            return true;
        }
        let takes = self.texts.len() < DIFFERENT_MAX;
        if takes {
            self.texts.insert(text.to_owned());
        }
        takes
    }
}

impl Refusals {
    /// Notes that a peer was refused, or has refused this node. `store` is the one that it shows, if it shows any.
    pub fn note(&self, store: Option<StoreId>, reason: Reason, text: &str) {
        let now = Instant::now();
        let at = Reason::ALL.iter().position(|other| *other == reason).unwrap_or_default();
        self.counts[at].fetch_add(1, Ordering::Relaxed);
        if let Some(store) = store {
            let mut latest = self.latest.lock();
            if latest.len() >= STORES_MAX && !latest.contains_key(&store) {
                let oldest = latest.iter().min_by_key(|(_, (at, _))| *at).map(|(store, _)| *store);
                oldest.and_then(|oldest| latest.remove(&oldest));
            }
            latest.insert(store, (now, text.to_owned()));
        }
        // What is said again and again the log itself counts.
        if self.written.lock().takes(text, now) {
            match reason {
                // So it is for a moment whenever a node joins.
                Reason::NotMember | Reason::OtherStore => tracing::info!(reason = reason.name(), "{text}"),
                _ => tracing::warn!(reason = reason.name(), "{text}"),
            }
        } else {
            tracing::warn!(
                reason = reason.name(),
                "a connection that says to be a peer's is refused; it gives ever other names"
            );
        }
    }

    /// A peer was let in under a store: what was refused before is over.
    pub fn settle(&self, store: StoreId) {
        self.latest.lock().remove(&store);
    }

    /// Why a store was refused lately.
    #[must_use]
    pub fn latest(&self, store: StoreId) -> Option<String> {
        let latest = self.latest.lock();
        latest.get(&store).filter(|(at, _)| at.elapsed() < TOLD_FOR).map(|(_, text)| text.clone())
    }

    /// How often peers were refused for each reason.
    #[must_use]
    pub fn counts(&self) -> Vec<(Reason, u64)> {
        Reason::ALL.iter().zip(&self.counts).map(|(reason, count)| (*reason, count.load(Ordering::Relaxed))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_has_a_bound() {
        let refusals = Refusals::default();
        for store in 0..1000 {
            refusals.note(Some(StoreId(store)), Reason::WrongSecret, &format!("somebody who says to be x{store}"));
        }
        assert_eq!(refusals.latest.lock().len(), STORES_MAX);
        assert_eq!(refusals.latest(StoreId(0)), None);
        assert_eq!(refusals.latest(StoreId(999)).as_deref(), Some("somebody who says to be x999"));
        assert_eq!(refusals.written.lock().texts.len(), DIFFERENT_MAX);
        refusals.settle(StoreId(999));
        assert_eq!(refusals.latest(StoreId(999)), None);
        let counts: Vec<u64> = refusals.counts().into_iter().map(|(_, count)| count).collect();
        assert_eq!(counts, [0, 1000, 0, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_message_that_was_written_is_written_again() {
        let mut written = Written::default();
        let now = Instant::now();
        for number in 0..100 {
            assert_eq!(written.takes(&format!("x{number}"), now), number < DIFFERENT_MAX, "{number}");
        }
        assert!(written.takes("x0", now), "the log counts it");
        assert!(written.takes("x99", now + WINDOW), "another window");
    }
}
