//! The server of the kv store: the shell around the engine of `kv-core`.
//!
//! `control` agrees on who belongs to the cluster and where data lives; `liveness` knows who answers.

pub mod control;
pub mod liveness;
