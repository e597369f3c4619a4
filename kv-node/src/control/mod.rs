//! The control plane: what the whole cluster agrees on, and how.
//!
//! A Raft group over 1, 3 or 5 voters; all other members are learners. It holds the members, the keyspaces and the layout,
//! and is the only place where they change. Losing its majority stops changes of the cluster, never puts and gets:
//! every node keeps the newest agreed state on disk and serves from it.
//!
//! | module | concept |
//! | --- | --- |
//! | `state` | what is agreed on: a pure state machine, its commands, operations and audit trail |
//! | `files` | the control plane's directory and the small checked files in it |
//! | `peers` | where the other nodes are, and messages to and from them |
//! | `config` | what the control plane is started with |
//! | `raft` | the Raft group: engine, network, log, state machine and snapshots on disk |
//! | `leader` | what the leader does: admit, form, take the next step of operations, keep the group equal to the members |
//! | `member` | what a member does: make itself known, find others, report receipts, propose, catch up |
//! | `recover` | what a directory knows while no node runs on it, and how another generation begins there |
//! | `plane`, `serve`, `service` | the handle; answering other nodes |
//!
//! Imports run from the end of this table to its beginning.
//!
//! # A cut-over in three hops
//!
//! A member reports its receipts (`member/reports`) to the leader, which proposes to advance the operation as soon as all
//! receipts of a partition are there (`leader/operations`). Every node applies the command, which makes the next layout
//! (`state/operations`: `advance`), and gives the layout to its engine (`run/adopt`).
//!
//! # Forming
//!
//! The founding node begins a Raft group of its own, named by its store id, and commits `Found`. Nodes that report are
//! admitted by a committed command that numbers them, and are learners from then on, so each knows "1 of 3 members". When
//! all have come, the leader commits identity, hash seed and first layout in one command. Each step is an entry of the
//! log and idempotent, so a crash anywhere is continued after the restart.
//!
//! # Stores, not nodes, take part
//!
//! The Raft group knows its nodes by store id. A member whose data directory was lost or rolled back takes part under
//! its new store id: as a learner first, and as a voter when it has caught up. Nothing that its former store
//! promised is expected of it, and the former store can never return (rule D2).

mod config;
mod files;
mod leader;
mod member;
mod peers;
mod plane;
mod raft;
mod recover;
mod serve;
mod service;
mod state;
#[cfg(test)]
mod tests;

pub use config::{ControlConfig, PROPOSALS_MAX, StartError, StartMode, Timing};
pub use files::FileError;
pub use leader::{Candidate, REPORT_EVERY, TransferReport, choose};
pub use member::{
    ControlStatus, ControlView, MembershipStatus, ProposeError, Remembered, Reported, Trouble, remembered,
};
pub use peers::transport::{
    Call, GroupId, GrpcTransport, IdentifyReply, IdentifyRequest, JoinReply, JoinRequest, MESSAGE_BYTES_MAX,
    NodeAddress, RaftKind, Transport, TransportError,
};
pub use peers::{Clock, Memory, SharedLiveness};
pub use plane::ControlPlane;
pub(crate) use recover::{Known, NewFounder, NewMember, found, join, look};
pub use service::{sender_of, serve_identify, serve_join, serve_raft};
pub use state::{
    AUDIT_BYTES_MAX, AUDIT_MAX, Asked, AuditEntry, AuditKind, AuditTrail, COPIES_MAX, ClusterState, Command, CommandId,
    Done, ENTRY_BYTES_MAX, Estimate, FormerGeneration, Founding, GenerationStart, KEYSPACES_MAX, KeyspaceSpec,
    MemberRecord, NodeDescriptor, Operation, OperationId, OperationKind, OperationState, Origin, Outcome, Phase,
    Proposal, Refusal, RefusalKind, THROTTLE_BYTES, Throttle, already_running, last_change, migrating_max,
};
