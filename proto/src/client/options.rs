//! How a client behaves, and how one operation is to be done.

use std::time::Duration;

use bytes::Bytes;
use kv_core::message::Consistency;

/// How a client behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// How operations on keys travel.
    pub transport: Transport,
    /// What is repeated.
    pub retry: Retry,
    /// How long an operation may take, repetitions included, unless it says otherwise.
    pub timeout: Duration,
    /// How long one attempt may take before another node is asked.
    pub attempt_timeout: Duration,
    /// How long a node from which something is awaited may say nothing at all, until what waits for it is sent to another
    /// node as well, under the same identity, and new operations go elsewhere: its process has stopped, or the link to it
    /// is cut. A node that is only slow is asked to show itself, and does, so that overload moves nothing. What must not be
    /// repeated (`retry`) goes on waiting. It is longer automatically on slow links and for large messages; raise it on links
    /// that carry less than 8 MiB a second.
    pub stall_after: Duration,
    /// How long a connection may take to be made.
    pub connect_timeout: Duration,
    /// Operations in flight to one node; further ones wait.
    pub in_flight_max: usize,
    /// Talks only to the nodes that it is given, as a client does that reaches no other one: beyond a cut, for one.
    pub only_given: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            transport: Transport::Batch,
            retry: Retry::SameId,
            timeout: Duration::from_secs(5),
            attempt_timeout: Duration::from_secs(2),
            stall_after: Duration::from_millis(150),
            connect_timeout: Duration::from_secs(1),
            in_flight_max: 1024,
            only_given: false,
        }
    }
}

/// How operations on keys travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// Many share one stream for each node.
    #[default]
    Batch,
    /// Each is a call of its own.
    Unary,
}

/// What is repeated while the deadline lasts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Retry {
    /// Nothing.
    Never,
    /// Requests that did nothing, and reads.
    NothingDone,
    /// Also writes whose outcome is unknown, under the same identity.
    #[default]
    SameId,
}

/// How one operation is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct How {
    /// The keyspace; empty means "default".
    pub keyspace: String,
    /// How consistent.
    pub consistency: Consistency,
    /// How long it may take; `None`: as the client's options say.
    pub timeout: Option<Duration>,
}

/// What a put may say beside the value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Write {
    /// The context of an earlier read, whose result this write replaces.
    pub context: Option<Bytes>,
    /// After which time the value reads as absent.
    pub ttl: Option<Duration>,
}

/// On which condition a key of a consistent keyspace is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It is absent.
    Absent,
    /// Nothing has changed since the read that gave this context, which may have found the key absent.
    Unchanged(Bytes),
}
