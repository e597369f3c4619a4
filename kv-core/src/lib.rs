//! The engine of the kv store: deterministic, without sockets, async, or a clock or randomness of its own.
//!
//! `node::Node::step` takes what happens (a request, a message, a finished read or commit, a layout) and returns what
//! the shell must do (send, reply, read, persist, wake). See ARCHITECTURE.md for the map.

pub mod config;
mod coordinator;
pub mod error;
pub mod event;
pub mod handshake;
pub mod map;
pub mod message;
pub mod node;
mod replica;
pub mod ring;
pub mod rule;
pub mod small_file;
pub mod storage;
pub mod topology;
pub mod types;
pub mod version;
