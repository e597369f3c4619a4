//! The server of the kv store: the shell around the engine of `kv-core`.
//!
//! | module | concept |
//! | --- | --- |
//! | `run`, `settings`, `own_files`, `signals`, `log` | a node from start to end |
//! | `recover` | what stopped nodes hold, and how another generation of a cluster begins |
//! | `engine` | one task steps the core, one thread commits, others read |
//! | `outbox` | what is queued for a peer: the engine fills it, the link empties it |
//! | `link` | one stream for each pair of nodes |
//! | `server` | the gRPC services and `/metrics` |
//! | `control` | who belongs to the cluster and where data lives: agreed on by Raft |
//! | `transfers` | what a node remembers of the copies that it makes |
//! | `liveness` | who answers |
//! | `trust` | who may speak as a peer: the secret of the cluster and the proof of it |
//! | `descriptors`, `budget` | how file descriptors are divided; bytes that may be held |
//! | `admission`, `read_window` | whose writes are let in next; how many reads of a connection are under way |
//! | `events`, `usage`, `clock` | what happened, what it costs, what time it is |

pub mod admission;
pub mod budget;
pub mod clock;
pub mod control;
mod delay;
pub mod descriptors;
pub mod engine;
pub mod events;
pub mod faults;
pub mod link;
pub mod liveness;
mod log;
mod outbox;
mod own_files;
pub mod read_window;
mod recover;
mod run;
pub mod server;
pub mod settings;
mod signals;
pub mod transfers;
pub mod trust;
pub mod usage;

pub use own_files::REMOVED_FILE;
pub use run::run;

/// The release, for people.
pub const BUILD: &str = env!("CARGO_PKG_VERSION");
