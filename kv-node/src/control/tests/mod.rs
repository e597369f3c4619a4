//! Tests that need the inside: the state machine, and a disk that crashes.

mod forming;
pub(crate) mod sim;
mod state;
