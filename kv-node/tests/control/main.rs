//! The control plane of whole clusters in one process: real timers, real files, messages passed by function call.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod catch_up;
mod forming;
mod grpc;
mod loss;
mod operations;
mod refusals;
mod world;
