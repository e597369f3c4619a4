//! The control plane: what the whole cluster agrees on, and how.
//!
//! A Raft group over 1, 3 or 5 voters; all other members listen. It holds the members, the keyspaces and the layout,
//! and is the only place where they change. Losing its majority stops changes of the cluster, never puts and gets:
//! every node keeps the newest agreed state on disk and serves from it.
//!
//! | module | concept |
//! | --- | --- |
//! | `plane` | the handle: start, look, shut down |
//! | `command`, `state`, `apply` | what is agreed on: a pure state machine |
//! | `operation`, `operate` | plans that are carried out, and how each command changes them |
//! | `audit` | who changed what, and what undoes it |
//! | `drive` | the leader takes the next step of an operation when the nodes' reports allow it |
//! | `propose`, `serve` | having a command agreed on; answering other nodes |
//! | `catch_up` | learning what is newer than what a node knows, before it says that something does not exist |
//! | `report`, `keeper` | a node makes itself known; the leader founds, forms, and keeps the group equal to the members |
//! | `voters` | who votes: a pure function |
//! | `transport`, `link`, `network`, `peers` | messages, and who is where |
//! | `discover` | finding members that are not where they were |
//! | `identity`, `machine`, `log`, `file`, `disk` | what is on disk |
//!
//! # Forming
//!
//! The founding node begins a Raft group of its own, named by its store id, and commits `Found`. Nodes that report are
//! admitted by a committed command that numbers them, and listen from then on, so each knows "1 of 3 members". When
//! all have come, the leader commits identity, hash seed and first layout in one command. Each step is an entry of the
//! log and idempotent, so a crash anywhere is continued after the restart.
//!
//! # Stores, not nodes, take part
//!
//! The Raft group knows its nodes by store id. A member whose data directory was lost or rolled back takes part under
//! its new store id: as a listener first, and as a voter when it has caught up. Nothing that its former store
//! promised is expected of it, and the former store can never return (rule D2).

mod apply;
mod audit;
mod catch_up;
mod command;
mod discover;
mod disk;
mod drive;
mod file;
mod identity;
mod keeper;
mod link;
mod log;
mod machine;
mod network;
mod operate;
mod operation;
mod peers;
mod plane;
mod propose;
mod raft;
mod report;
mod serve;
mod state;
#[cfg(test)]
mod tests;
pub(crate) mod transport;
mod voters;

pub use apply::{COPIES_MAX, KEYSPACES_MAX};
pub use audit::{AUDIT_BYTES_MAX, AUDIT_MAX, AuditEntry, AuditKind, AuditTrail};
pub use command::{Arrival, Command, CommandId, Done, Founding, KeyspaceSpec, Outcome, Proposal, Refusal, RefusalKind};
pub use disk::FileError;
pub use drive::{REPORT_EVERY, Reported, TransferReport};
pub use identity::{Entrance, Remembered, StartError, remembered};
pub use log::ENTRY_BYTES_MAX;
pub use operate::already_running;
pub use operation::{Asked, Estimate, Operation, OperationId, OperationState, THROTTLE_BYTES, Throttle, joint_max};
pub use peers::{Clock, SharedLiveness};
pub use plane::{ControlConfig, ControlPlane, ControlStatus, PROPOSALS_MAX, Standing, Timing};
pub use propose::ProposeError;
pub use state::{ClusterState, MemberRecord, Phase};
pub use transport::wire::{serve_identify, serve_join, serve_raft};
pub use transport::{
    Call, GroupId, GrpcTransport, IdentifyReply, IdentifyRequest, JoinReply, JoinRequest, MESSAGE_BYTES_MAX, RaftKind,
    Transport, TransportError, Whereabouts,
};
pub use voters::{Candidate, choose};
