//! Tests that need the inside: the state machine, and a disk that crashes.

mod audit;
mod forming;
mod generation;
mod operations;
pub(crate) mod sim;
mod state;
