//! The engine of the kv store: deterministic, without sockets, async, or a clock or randomness of its own.
//!
//! `node::Node::step` takes what happens (a request, a message, a finished read or commit, a layout) and returns what
//! the shell must do (send, reply, read, persist, wake). See ARCHITECTURE.md for the map.

mod acceptor;
mod apply;
pub mod boots;
pub mod cell;
mod comparisons;
pub mod config;
pub mod error;
pub mod event;
mod event_loop;
mod exchange;
mod filling;
mod handoff;
pub mod handshake;
mod hub;
mod kernel;
pub mod map;
pub mod message;
pub mod node;
mod parts;
mod purge;
pub mod recovery;
pub mod register;
mod replication;
mod requests;
mod residue;
pub mod ring;
pub mod rule;
mod settled;
mod shell;
mod slices;
pub mod small_file;
pub mod storage;
mod sweeper;
mod throttle;
pub mod topology;
pub mod types;
pub mod version;
mod view;
mod wiring;
