//! Newtypes for identities, positions and time. An index is not a count, and a clock reading is an argument.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

id!(
    /// A member of the cluster. Given by the control plane, never used again after a removal.
    NodeId(u64), "n"
);
id!(
    /// A fixed slice of the hash ring, numbered in token order; a cluster has at most 65,536.
    PartitionId(u16), "p"
);
id!(
    /// A named set of keys with its own consistency settings.
    KeyspaceId(u32), "ks"
);
id!(
    /// The number of a layout. Epochs only grow; they fence messages.
    Epoch(u64), "e"
);
id!(
    /// The position of a persisted batch in the order in which one loop issued its batches.
    Seq(u64), "seq"
);

/// The identity of a data directory, drawn once when it is created (rule D2). A store that was wiped or replaced has
/// another one, so peers never mistake it for the store that acknowledged earlier writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StoreId(pub u64);

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The identity of a cluster, drawn when it is formed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClusterId(pub u128);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// The seed of the ring hash. Immutable, part of the cluster's identity and of every handshake (rule D3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HashSeed(pub u64);

/// One run of one store: the boot counter is durable before the first use of the incarnation, and the nonce tells two
/// boots apart that a disk restored from a copy would number alike (rule D2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Incarnation {
    /// The data directory.
    pub store: StoreId,
    /// How often the store has been opened, this time included; from 1.
    pub boot: u32,
    /// Random, drawn at this boot.
    pub nonce: u32,
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}.{:08x}", self.store, self.boot, self.nonce)
    }
}

/// Which control plane a node obeys. `kv-node recover` founds another generation of a cluster whose control plane is lost: the same
/// cluster, seed and keyspaces under a control plane that owes nothing to the one before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Generation {
    /// Counts the generations of a cluster from 1.
    pub number: u32,
    /// The store of the node that has founded it: two recoveries that know nothing of each other found two of one number.
    pub founder: StoreId,
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "generation {} of store {}", self.number, self.founder)
    }
}

/// How far a store had come when it was shown to somebody (rule D2): one of its runs, and the last batch of that run that was
/// durable then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Point {
    /// The store and its run.
    pub incarnation: Incarnation,
    /// The number of the batch; 0: none.
    pub commit: u64,
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} up to commit {}", self.incarnation, self.commit)
    }
}

/// The identity of a client's operation and its place in the order of operations, the same in every repetition (rule A7). The
/// version that it writes keeps it, and the record remembers it when that version is replaced.
///
/// Ordered by stamp: a write without a context replaces what comes before it in this order, so that replicas that took the
/// same operations in another order end with the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId {
    /// When its client began it: above every timestamp that the client's session has been shown. No two operations of one
    /// session have the same.
    pub stamp: Hlc,
    /// Random, drawn by each client session.
    #[serde(with = "fixed")]
    pub client: u64,
}

/// Numbers that are large anyway take eight bytes in encodings, where a variable length takes ten.
mod fixed {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
    pub(super) fn serialize<S: Serializer>(number: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        number.to_le_bytes().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        <[u8; 8]>::deserialize(deserializer).map(u64::from_le_bytes)
    }
}

/// A reading of the monotonic clock, in microseconds since an arbitrary start of this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Monotonic(pub u64);

impl Monotonic {
    /// The moment `after` later; saturates at the end of time.
    #[must_use]
    pub fn plus(self, after: Duration) -> Self {
        Self(self.0.saturating_add(micros(after)))
    }

    /// The time from `earlier` to this moment; zero if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

/// A reading of the wall clock, in microseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WallTime(pub u64);

impl WallTime {
    /// The moment `after` later; saturates.
    #[must_use]
    pub fn plus(self, after: Duration) -> Self {
        Self(self.0.saturating_add(micros(after)))
    }
}

/// Bits of the logical counter below the microseconds. 52 bits of microseconds reach the year 2112.
const LOGICAL_BITS: u32 = 12;

/// A timestamp of a hybrid logical clock: microseconds of the wall clock, then a logical counter for what happens within one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Hlc(pub u64);

impl Hlc {
    /// The first timestamp of the moment.
    #[must_use]
    pub fn at(wall: WallTime) -> Self {
        Self(wall.0.min(u64::MAX >> LOGICAL_BITS) << LOGICAL_BITS)
    }

    /// The wall clock part.
    #[must_use]
    pub fn wall(self) -> WallTime {
        WallTime(self.0 >> LOGICAL_BITS)
    }

    /// The first timestamp that is later by so much.
    #[must_use]
    pub fn plus(self, after: Duration) -> Self {
        Self(self.0.saturating_add(micros(after).min(u64::MAX >> LOGICAL_BITS) << LOGICAL_BITS))
    }

    /// The next timestamp.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Hlc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.wall().0, self.0 & ((1 << LOGICAL_BITS) - 1))
    }
}

/// Both clocks at one moment: the only source of time inside the core.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// For timers and deadlines: never goes back.
    pub mono: Monotonic,
    /// For timestamps and expiry: may jump either way.
    pub wall: WallTime,
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
