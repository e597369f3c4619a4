//! Bounds of what travels, used by both ends of every connection.

use std::time::Duration;

/// The largest message that clients, nodes and peers send or accept, in bytes. It leaves room for a frame that is
/// nearly full and then takes the largest record.
pub const MESSAGE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// The largest answer that a node sends to a client, in bytes, and a client accepts. A key whose values were written on both
/// sides of a cut can have more of them than fit into a message of the usual size; whoever reads it gets them all.
pub const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The largest message between two nodes, in bytes. What no frame carries travels in pieces.
pub const PEER_MESSAGE_BYTES_MAX: usize = 48 * 1024 * 1024;

/// The size of the pieces in which a message travels that no frame carries.
pub const PIECE_BYTES: usize = 1024 * 1024;

/// The highest `value_bytes_max` with which a cluster can be formed: a record holds up to two values of that length, unless
/// parts of the cluster were cut off from each other while it was written.
pub const VALUE_BYTES_CEILING: usize = 3 * 1024 * 1024;

/// A batch message or a frame is closed when its content reaches this many bytes, in either direction. Larger ones save
/// nothing, and delay what is queued behind them.
pub const FRAME_BYTES_TARGET: usize = 256 * 1024;

/// A batch message or a frame is closed when it holds this many operations.
pub const FRAME_OPERATIONS_MAX: usize = 512;

/// The largest operation that a client sends: a message that is nearly full takes one more of them.
pub const OPERATION_BYTES_MAX: usize = MESSAGE_BYTES_MAX - FRAME_BYTES_TARGET - 64 * 1024;

/// The most operations in one batch message that a node takes.
pub const BATCH_OPERATIONS_MAX: usize = 4096;

/// The most keys in one page of a scan.
pub const SCAN_PAGE_KEYS_MAX: usize = 512;

/// The longest time to live.
pub const TTL_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// The longest time that a client may ask to wait.
pub const TIMEOUT_MAX: Duration = Duration::from_secs(60 * 60);

/// How many siblings a context may name for each that one node lets stand side by side: nodes that are cut off from each other
/// write their own.
pub const SHOWN_PER_SIBLING: usize = 16;

/// The most bytes of a context for each actor and each request that it may name, and for the rest of it.
pub const CONTEXT_BYTES_PER_ACTOR: usize = 48;

/// The longest name of a node, a zone or a keyspace, in bytes.
pub const NAME_BYTES_MAX: usize = 64;

/// The longest text that says who asks for a change, in bytes.
pub const BY_BYTES_MAX: usize = 128;

/// The longest delay of a message, and the longest spread of delays, that a node acts out, in milliseconds.
pub const FAULT_DELAY_MS_MAX: u32 = 60_000;

/// Of a hundred segments this many may be lost: with more, hardly any message arrives before its sender has given up.
pub const FAULT_DROP_PERCENT_MAX: u32 = 90;

/// The most copies that a keyspace may ask for.
pub const QUORUM_MAX: u32 = 16;

/// The bounds of the interval between two snapshots of `Watch`.
pub const WATCH_INTERVAL: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(60 * 60);

/// The interval between two snapshots of `Watch` if the request does not say.
pub const WATCH_INTERVAL_DEFAULT: Duration = Duration::from_secs(1);
